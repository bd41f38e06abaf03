// From words and parameters (layout.py) to weights as pairs of float16 or bfloat16 in registers.
//
// A row is one output of a tile for one lane 4 g + t: g or g + 8. A word of it holds, for each of
// the 8 steps of 16 inputs, the 4 inputs 16 step + 4 t + j: bit step + 8 j. `row_weights` gives the
// steps k and k + 4 at once: `first` and `second` each have the pairs j = 0, 1 and j = 2, 3, which
// are a0 and a2 of mma.m16n8k16 (row g; a1 and a3 for g + 8), where x's b0 is the inputs 4 t + {0, 1}
// of the step and b1 the inputs 4 t + {2, 3}.
//
// Three ways, by what takes the fewest instructions:
// - octets: three planes select one of 8 levels. The levels' low and high bytes lie in four
//   registers, nibbles of codes are selectors of PRMT: 4 PRMT for 4 weights.
// - quartets: two planes select one of 4 levels, which fill two registers whole: 2 PRMT and the
//   making of the selectors. Where a table serves few inputs (groups of 32 and 64) and for what
//   octets leave over.
// - codes (uniform, 4 planes and more): the code becomes the low byte of a number whose high byte
//   says 128 or 1024, from which that is taken off together with the zero point; then the scale.
// Tables are added in float32 and rounded once. Where a weight is the sum of two of them, it is
// rounded twice, as is a code's weight in bfloat16 (its scale, and the product).
#pragma once
#include "conversions.cuh"
#include "instructions.cuh"

// Numbers of a row and group: alpha_0, .., alpha_P-1[, shift], or scale and zero point.
constexpr int PARAMETERS = UNIFORM ? 2 : PLANES + SHIFT;
constexpr int PARAMETER_BYTES = META32 ? 4 : 2;
constexpr int PAIR_BYTES = 2 * PARAMETER_BYTES;           // of one number for the rows g and g + 8
constexpr int GROUP_BYTES = 8 * PARAMETERS * PAIR_BYTES;  // of all 16 outputs of a tile

// A chunk of 256 inputs has so many groups, or so many tables if a group is larger.
constexpr int TABLES = GROUP == 32 || GROUP == 64 ? 256 / GROUP : GROUP % 256 ? 2 : 1;
constexpr int TABLE_STEPS = 16 / TABLES;  // of 16 inputs that share a table

constexpr bool CODES = UNIFORM && PLANES >= 4;
constexpr int OCTETS_OF_PLANES[] = {0, 0, 0, 1, 0, 1, 2, 1, 2};
constexpr int OCTETS = CODES || TABLES > 2 ? 0 : OCTETS_OF_PLANES[PLANES];
constexpr int QUARTETS = CODES ? 0 : (PLANES - 3 * OCTETS + 1) / 2;
constexpr int TABLE_REGISTERS = CODES ? 3 : 4 * OCTETS + 2 * QUARTETS;
constexpr int TABLE_ROW = TABLE_REGISTERS == 2 ? 2 : (TABLE_REGISTERS + 3) / 4 * 4;  // in memory

constexpr float CODE_OFFSET = BF16 ? 128.0f : 1024.0f;
constexpr unsigned CODE_HIGH_BYTES = BF16 ? 0x43434343 : 0x64646464;  // of that offset

__device__ __forceinline__ unsigned twice(float value) { return floats_to_activations(value, value); }

__device__ __forceinline__ unsigned shifted_right(unsigned word, int places) {
    return places < 0 ? word << -places : word >> places;
}

// ---- parameters ----

// Which group a table of a chunk belongs to.
__device__ __forceinline__ int group_of(int chunk, int table) {
    constexpr int inputs = 256 / TABLES;
    return GROUP ? (chunk * 256 + table * inputs) / (GROUP ? GROUP : 1) : 0;
}

// at: the numbers of (tile, group, g) -> those of row g (second 0) or of row g + 8 (second 1).
__device__ __forceinline__ void load_row(const void *at, int second, float (&row)[PARAMETERS]) {
#pragma unroll
    for (int i = 0; i < PARAMETERS; ++i) {
        if (META32) {
            row[i] = static_cast<const float *>(at)[2 * i + second];
        } else {
            row[i] = float16_to_float(static_cast<const unsigned short *>(at)[2 * i + second]);
        }
    }
}

// at: the numbers of (tile, group, g) -> those of row g and those of row g + 8.
__device__ __forceinline__ void load_parameters(const void *at, float (&row_g)[PARAMETERS],
                                                float (&row_g8)[PARAMETERS]) {
    constexpr int count = PARAMETERS * PAIR_BYTES / 4;
    unsigned numbers[2 * PARAMETERS + 3];
#pragma unroll
    for (int i = 0; i < count; ++i) {  // in as few loads as the address allows
        if (count % 4 == 0 && i % 4 == 0) {
            uint4 four = static_cast<const uint4 *>(at)[i / 4];
            numbers[i] = four.x;
            numbers[i + 1] = four.y;
            numbers[i + 2] = four.z;
            numbers[i + 3] = four.w;
        } else if (count % 4 == 2 && i % 2 == 0) {
            uint2 two = static_cast<const uint2 *>(at)[i / 2];
            numbers[i] = two.x;
            numbers[i + 1] = two.y;
        } else if (count % 2) {
            numbers[i] = static_cast<const unsigned *>(at)[i];
        }
    }
#pragma unroll
    for (int i = 0; i < PARAMETERS; ++i) {
        float2 pair;
        if (META32) {
            pair = make_float2(__uint_as_float(numbers[2 * i]), __uint_as_float(numbers[2 * i + 1]));
        } else {
            pair = float16_pair_to_floats(numbers[i]);
        }
        row_g[i] = pair.x;
        row_g8[i] = pair.y;
    }
}

// ---- tables ----

// a weight = base + sum_p steps_p c_p
__device__ __forceinline__ void linear_form(const float (&parameters)[PARAMETERS], float &base,
                                            float (&steps)[PLANES]) {
    if (UNIFORM) {
        base = -parameters[0] * parameters[PARAMETERS - 1];
    } else {
        base = SHIFT ? parameters[PARAMETERS - 1] : 0.0f;
    }
#pragma unroll
    for (int p = 0; p < PLANES; ++p) {
        if (UNIFORM) {
            steps[p] = parameters[0] * static_cast<float>(1 << p);
        } else {
            base -= parameters[p];
            steps[p] = 2.0f * parameters[p];
        }
    }
}

__device__ __forceinline__ void make_octet(float base, float a, float b, float c, unsigned *table) {
    float level1 = base + a, level2 = base + b, level3 = level2 + a;
    unsigned pair01 = floats_to_activations(base, level1);
    unsigned pair23 = floats_to_activations(level2, level3);
    unsigned pair45 = floats_to_activations(base + c, level1 + c);
    unsigned pair67 = floats_to_activations(level2 + c, level3 + c);
    table[0] = bytes_of(pair01, pair23, 0x6420);
    table[1] = bytes_of(pair45, pair67, 0x6420);
    table[2] = bytes_of(pair01, pair23, 0x7531);
    table[3] = bytes_of(pair45, pair67, 0x7531);
}

// For one row and group.
__device__ __forceinline__ void make_table(const float (&parameters)[PARAMETERS],
                                           unsigned (&table)[TABLE_REGISTERS]) {
    if (CODES) {
        // The offset and the zero point as one number, and what its rounding leaves.
        float scale = parameters[0], together = CODE_OFFSET + parameters[1];
        unsigned rounded = twice(together);
        table[0] = rounded ^ 0x80008000;
        table[1] = twice(scale);
        table[2] = twice(-(together - activation_to_float(rounded & 0xFFFF)) * scale);
        return;
    }
    float base, steps[PLANES];
    linear_form(parameters, base, steps);
#pragma unroll
    for (int i = 0; i < OCTETS; ++i) {
        make_octet(i ? 0.0f : base, steps[3 * i], steps[3 * i + 1], steps[3 * i + 2], table + 4 * i);
    }
#pragma unroll
    for (int i = 0; i < QUARTETS; ++i) {
        int p = 3 * OCTETS + 2 * i;
        float zero = i + OCTETS ? 0.0f : base, a = steps[p], b = p + 1 < PLANES ? steps[p + 1] : 0.0f;
        table[4 * OCTETS + 2 * i] = floats_to_activations(zero, zero + a);
        table[4 * OCTETS + 2 * i + 1] = floats_to_activations(zero + b, zero + b + a);
    }
}

// Tables in shared memory: at multiples of TABLE_ROW words.
__device__ __forceinline__ void store_table(unsigned *to, const unsigned (&table)[TABLE_REGISTERS]) {
    unsigned all[TABLE_ROW] = {};
#pragma unroll
    for (int i = 0; i < TABLE_REGISTERS; ++i) {
        all[i] = table[i];
    }
#pragma unroll
    for (int i = 0; i < TABLE_ROW; i += 4) {
        if constexpr (TABLE_ROW == 2) {
            *reinterpret_cast<uint2 *>(to) = make_uint2(all[0], all[1]);
        } else {
            *reinterpret_cast<uint4 *>(to + i) = make_uint4(all[i], all[i + 1], all[i + 2], all[i + 3]);
        }
    }
}

__device__ __forceinline__ void load_table(const unsigned *from, unsigned (&table)[TABLE_REGISTERS]) {
    unsigned all[TABLE_ROW];
#pragma unroll
    for (int i = 0; i < TABLE_ROW; i += 4) {
        if constexpr (TABLE_ROW == 2) {
            uint2 two = *reinterpret_cast<const uint2 *>(from);
            all[0] = two.x, all[1] = two.y;
        } else {
            uint4 four = *reinterpret_cast<const uint4 *>(from + i);
            all[i] = four.x, all[i + 1] = four.y, all[i + 2] = four.z, all[i + 3] = four.w;
        }
    }
#pragma unroll
    for (int i = 0; i < TABLE_REGISTERS; ++i) {
        table[i] = all[i];
    }
}

// ---- codes of several planes ----

// Codes of two planes: in every byte j those of the steps odd, odd + 2, .. at bits 0, 2, 4, 6.
__device__ __forceinline__ unsigned codes2(unsigned low, unsigned high, int odd) {
    return chosen(0x55555555, shifted_right(low, odd), shifted_right(high, odd - 1));
}

// Codes of 3 or 4 planes as nibbles: of step k in the low nibble of byte j, of k + 4 in the high one.
__device__ __forceinline__ unsigned codes3(const unsigned *words, int k) {
    unsigned third = words[2] & (k & 1 ? 0xAAAAAAAA : 0x55555555);
    return chosen(0x33333333, codes2(words[0], words[1], k & 1) >> (k & 2), shifted_right(third, k - 2));
}

__device__ __forceinline__ unsigned codes4(const unsigned *words, int k) {
    unsigned low = codes2(words[0], words[1], k & 1), high = codes2(words[2], words[3], k & 1);
    return chosen(0x33333333, low >> (k & 2), high << (2 - (k & 2)));
}

// Nibbles of the planes p, p + 1, .. up to 4 of them.
__device__ __forceinline__ unsigned code_nibbles(const unsigned *words, int planes, int k) {
    if (planes >= 4) {
        return codes4(words, k);
    }
    if (planes == 3) {
        return codes3(words, k);
    }
    if (planes == 2) {
        return (codes2(words[0], words[1], k & 1) >> (k & 2)) & 0x33333333;
    }
    return (words[0] >> k) & 0x11111111;
}

// ---- weights ----

__device__ __forceinline__ void octet_weights(const unsigned *words, const unsigned *table, int k,
                                              unsigned (&first)[2], unsigned (&second)[2]) {
    // PRMT reads the low half. Shifting is what these units are busy with, multiplying is not:
    // nibbles below 8 have no carry, so the high word is codes >> 16.
    unsigned long long both = codes3(words, k) * 0x10001ull;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        unsigned selectors = static_cast<unsigned>(both >> (32 * pair));
        unsigned low = bytes_of(table[0], table[1], selectors);
        unsigned high = bytes_of(table[2], table[3], selectors);
        first[pair] = bytes_of(low, high, 0x6240);
        second[pair] = bytes_of(low, high, 0x7351);
    }
}

__device__ __forceinline__ void quartet_weights(const unsigned *words, int planes,
                                                const unsigned *table, int step,
                                                unsigned (&weights)[2]) {
    unsigned codes;  // at bits 1 and 2 of every byte j
    if (planes == 1) {
        codes = shifted_right(words[0], step - 1) & 0x02020202;
    } else {
        unsigned two = codes2(words[0], words[1], step & 1);
        codes = shifted_right(two, (step & 6) - 1) & 0x06060606;
    }
    // In every byte the places of a level's low and high byte; those of j = 0, 1 in the low half of
    // the low word, those of j = 2, 3 in the low half of the high word.
    unsigned long long selectors = codes * 0x110011ull + 0x0000101000001010ull;
    weights[0] = bytes_of(table[0], table[1], static_cast<unsigned>(selectors));
    weights[1] = bytes_of(table[0], table[1], static_cast<unsigned>(selectors >> 32));
}

// codes: one in each byte j.
__device__ __forceinline__ void code_weights(unsigned codes, const unsigned *table,
                                             unsigned (&weights)[2]) {
    constexpr bool split = BF16 && PLANES == 8;  // bfloat16 has room for 7 bits beside the offset
    unsigned low_codes = split ? codes & 0x0F0F0F0F : codes;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        unsigned places = pair ? 0x4342 : 0x4140;
        unsigned integers = add(bytes_of(low_codes, CODE_HIGH_BYTES, places), table[0]);
        if (split) {
            unsigned high = bytes_of((codes >> 4) & 0x0F0F0F0F, CODE_HIGH_BYTES, places);
            integers = multiply_add(add(high, 0xC300C300), 0x41804180, integers);  // (high - 128) 16
        }
        weights[pair] = multiply_add(integers, table[1], table[2]);
    }
}

__device__ __forceinline__ void all_code_weights(const unsigned *words, int k,
                                                 const unsigned *first_table,
                                                 const unsigned *second_table,
                                                 unsigned (&first)[2], unsigned (&second)[2]) {
    unsigned low = code_nibbles(words, PLANES, k), low_first = low & 0x0F0F0F0F;
    unsigned low_second = (low >> 4) & 0x0F0F0F0F;
    if (PLANES > 4) {
        unsigned high = code_nibbles(words + 4, PLANES - 4, k);
        low_first = chosen(0x0F0F0F0F, low, high << 4);
        low_second = chosen(0x0F0F0F0F, low >> 4, high);
    }
    code_weights(low_first, first_table, first);
    code_weights(low_second, second_table, second);
}

// The weights of the steps k and k + 4 (k 0..3) of 128 inputs of a row. words: one of each plane.
// The tables of both steps are the same in groups of at least 128.
__device__ __forceinline__ void row_weights(const unsigned (&words)[PLANES], int k,
                                            const unsigned *first_table, const unsigned *second_table,
                                            unsigned (&first)[2], unsigned (&second)[2]) {
    if (CODES) {
        all_code_weights(words, k, first_table, second_table, first, second);
        return;
    }
#pragma unroll
    for (int part = 0; part < OCTETS + QUARTETS; ++part) {
        unsigned a[2], b[2];
        if (part < OCTETS) {
            octet_weights(words + 3 * part, first_table + 4 * part, k, a, b);
        } else {
            int i = part - OCTETS, p = 3 * OCTETS + 2 * i, at = 4 * OCTETS + 2 * i;
            quartet_weights(words + p, PLANES - p, first_table + at, k, a);
            quartet_weights(words + p, PLANES - p, second_table + at, k + 4, b);
        }
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
            first[pair] = part ? add(first[pair], a[pair]) : a[pair];
            second[pair] = part ? add(second[pair], b[pair]) : b[pair];
        }
    }
}
