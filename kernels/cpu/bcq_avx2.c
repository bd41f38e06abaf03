/* The kernels with AVX2, FMA and F16C. A byte shuffle looks up 16 entries of one byte in 32 lanes, which are 32 rows,
 * so entries come in digits of 6 bits, 2 of them (fast) or 4 (exact), and 4 lookups of one digit fit a byte:
 *
 *   entry = round(value/step) + 2^(6n-1), value the signed sum of 4 inputs, step = max sum |x| / (2^(6n-1) - 8)
 *
 * where 8 leaves room for the float32 rounding of step and value. Bytes are added to 16-bit sums as they are, in pairs
 * (S, which wraps), and the upper ones of the pairs alone (H): the lower ones are S - 2^8 H. A segment has at most 32
 * lookups, so a sum of digits is at most 2016, one of values less than 2^28, and rounding moves it by at most 32
 * step/2: 7.9e-3 (fast) or 1.9e-6 (exact) of max sum |x|. */
#include "bcq_kernel.h"

#ifdef BCQ_X86
#include "bcq_avx2.h"

#define DIGIT 6    /* bits; 4 numbers of so many bits add up in a byte */
#define INPUTS 16  /* of a word: 4 lookups */
#define AHEAD 6144 /* bytes; with 0, 3, 6, 8 KiB one row took 0.85, 0.72, 0.67, 0.67 of ggml's time at 3 and 4 bits */

/* The tables of 16 inputs with so many digits: [lookup][digit][16 entries]. */
INLINE uint8_t *tables_at(const bcq_tables *tables, int64_t input, int digits) {
    return (uint8_t *)(uintptr_t)tables->entries + input / 4 * digits * 16;
}

typedef struct { /* of one group of a block, 4 times 8 rows each */
    __m256 alpha[8][4];
    __m256 shift[4]; /* what the sum of the activations counts */
} group_scales;

LOOP void load_group(const bcq_weight *w, const char *scales, group_scales *out) {
    const char *shifts = bcq_shifts(w, scales);
    int stored = w->shift_type != BCQ_NONE;
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        __m256 shift = stored ? load_scales(shifts, 8 * q, w->shift_type) : _mm256_setzero_ps();
        if (w->uniform) {
            __m256 scale = load_scales(scales, 8 * q, w->scale_type);
            __m256 zero = stored ? shift : _mm256_set1_ps(bcq_middle(w));
            shift = _mm256_mul_ps(scale, _mm256_sub_ps(_mm256_set1_ps(bcq_half_range(w)), zero));
            for (int i = 0; i < w->bits; i++)
                out->alpha[i][q] = _mm256_mul_ps(scale, _mm256_set1_ps(bcq_place(w, i)));
        }
        out->shift[q] = shift;
    }
    for (int i = 0; i < (w->uniform ? 0 : w->bits); i++, scales += BCQ_ROWS * bcq_bytes(w->scale_type))
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++)
            out->alpha[i][q] = load_scales(scales, 8 * q, w->scale_type);
}

LOOP void add_to(float *sum, __m256 a, __m256 b) { _mm256_storeu_ps(sum, _mm256_fmadd_ps(a, b, _mm256_loadu_ps(sum))); }

typedef struct { /* of one digit: of all bytes in pairs, and of the upper bytes of the pairs */
    __m256i all, upper;
} digit_sums;

/* The entries that the indices choose. The table is loaded here and now: a compiler that sees more of them than there
 * are registers likes to load them all beforehand, and to store them again. */
LOOP __m256i look_up(const uint8_t *table, __m256i index) {
    __m256i entries;
    __asm__("vbroadcasti128 %1, %0" : "=x"(entries) : "m"(*(const __m128i *)table));
    return _mm256_shuffle_epi8(entries, index);
}

/* A load that happens once: a compiler likes to repeat it as the operand of each instruction that needs the value. */
LOOP __m256i load_once(const void *from) {
    __m256i value = _mm256_load_si256(from);
    __asm__("" : "+x"(value));
    return value;
}

/* sum += the entries that 16 inputs of 32 rows choose */
LOOP void add_lookups(const uint16_t *words, const uint8_t *tables, digit_sums *sum, const int digits) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i lower = load_once(words), upper = load_once(words + 16);
    __m256i index[4] = {_mm256_and_si256(lower, nibble), _mm256_and_si256(_mm256_srli_epi16(lower, 4), nibble),
                        _mm256_and_si256(upper, nibble), _mm256_and_si256(_mm256_srli_epi16(upper, 4), nibble)};
#pragma GCC unroll 4
    for (int d = 0; d < digits; d++) {
        __m256i found = look_up(tables + 16 * d, index[0]);
#pragma GCC unroll 3
        for (int j = 1; j < 4; j++) {
            found = _mm256_add_epi8(found, look_up(tables + 16 * (j * digits + d), index[j]));
            __asm__("" : "+x"(found));
        }
        sum[d].all = _mm256_add_epi16(sum[d].all, found);
        sum[d].upper = _mm256_add_epi16(sum[d].upper, _mm256_srli_epi16(found, 8));
        __asm__("" : "+x"(sum[d].all), "+x"(sum[d].upper));
    }
}

/* The 16-bit numbers low + 2^6 high, of the lower (half 0) or upper halves of the 32-bit lanes. */
LOOP __m256i join_digits(__m256i low, __m256i high, const int half) {
    const __m256i weights = _mm256_set1_epi32(1 | 1 << (16 + DIGIT));
    if (half)
        return _mm256_madd_epi16(_mm256_blend_epi16(_mm256_srli_epi32(low, 16), high, 0xaa), weights);
    return _mm256_madd_epi16(_mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa), weights);
}

/* y[0..31] += alpha (sum of entries) */
LOOP void add_sums(const digit_sums *sum, const __m256 *alpha, __m256 *y, const int digits) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        __m256i part[4];
#pragma GCC unroll 4
        for (int d = 0; d < digits; d++)
            part[d] = q % 2 ? sum[d].upper : _mm256_sub_epi16(sum[d].all, _mm256_slli_epi16(sum[d].upper, 8));
        __m256i value = join_digits(part[digits - 2], part[digits - 1], q / 2);
        if (digits == 4)
            value = _mm256_add_epi32(_mm256_slli_epi32(value, 2 * DIGIT), join_digits(part[0], part[1], q / 2));
        y[q] = _mm256_fmadd_ps(alpha[q], _mm256_cvtepi32_ps(value), y[q]);
    }
}

/* y[0..31] += step sum_i alpha_i (c_i . x) over a segment of `length` inputs of a block. */
LOOP void add_segment(const uint16_t *words, int64_t length, int planes, const uint8_t *tables,
                      const group_scales *scales, float step, float *y, const int digits) {
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    /* What the entries are too large by is 2^5 in each last digit. */
    const __m256i less = _mm256_set1_epi16((short)(-(length / 4) * (1 << (DIGIT - 1))));
    for (int i = 0; i < planes; i++) {
        digit_sums sum[4];
#pragma GCC unroll 4
        for (int d = 0; d < digits; d++) {
            sum[d].upper = d == digits - 1 ? less : _mm256_setzero_si256();
            sum[d].all = _mm256_add_epi16(sum[d].upper, _mm256_slli_epi16(sum[d].upper, 8));
        }
        const uint8_t *table = tables;
        for (int64_t k = 0; k < length; k += INPUTS, words += BCQ_ROWS, table += 64 * digits) {
            _mm_prefetch((const char *)words + AHEAD, _MM_HINT_T0);
            add_lookups(words, table, sum, digits);
        }
        add_sums(sum, scales->alpha[i], sums, digits);
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++)
        add_to(y + 8 * q, _mm256_set1_ps(step), sums[q]);
}

LOOP void multiply(const bcq_block *block, const bcq_tables *tables, int batch, float *sums, const int digits) {
    const bcq_weight *w = block->weight;
    int64_t segment = 0;
    for (int64_t start = 0, g = 0; start < block->length; start += block->group, g++) {
        const uint16_t *words = (const uint16_t *)((const char *)block->words + g * block->words_stride);
        group_scales scales;
        load_group(w, block->scales + g * block->scale_stride, &scales);
        for (int64_t k = 0, length; k < block->group; k += length, segment++) {
            length = block->group - k < SEGMENT ? block->group - k : SEGMENT;
            for (int m = 0; m < batch; m++)
                add_segment(words, length, w->bits, tables_at(tables + m, start + k, digits), &scales,
                            tables[m].steps[segment], sums + m * BCQ_ROWS, digits);
            words += length / INPUTS * w->bits * BCQ_ROWS;
        }
        for (int m = 0; m < (w->uniform || w->shift_type != BCQ_NONE ? batch : 0); m++)
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++)
                add_to(sums + m * BCQ_ROWS + 8 * q, scales.shift[q], _mm256_set1_ps(tables[m].sums[g]));
    }
}

TARGET static void multiply_exact(const bcq_block *block, const bcq_tables *tables, int batch, float *sums) {
    multiply(block, tables, batch, sums, 4);
}

TARGET static void multiply_fast(const bcq_block *block, const bcq_tables *tables, int batch, float *sums) {
    multiply(block, tables, batch, sums, 2);
}

static void product(const bcq_block *strip, const bcq_tables *tables, int batch, int parts, float *sums) {
    (parts == 2 ? multiply_exact : multiply_fast)(strip, tables, batch, sums);
}

/* The digits of 8 entries, as 4 bytes for each, in the order: digit 0 of all, digit 1 of all, ... */
LOOP __m256i split(__m256 value, __m256 per_step, const int digits) {
    const __m256i order =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m256i entry = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(value, per_step)),
                                     _mm256_set1_epi32(1 << (DIGIT * digits - 1)));
    __m256i upper = _mm256_slli_epi32(_mm256_and_si256(entry, _mm256_set1_epi32(0xfff000)), 4);
    entry = _mm256_or_si256(_mm256_and_si256(entry, _mm256_set1_epi32(0xfff)), upper); /* 12 bits in 16 */
    upper = _mm256_slli_epi32(_mm256_and_si256(entry, _mm256_set1_epi32(0x0fc00fc0)), 2);
    entry = _mm256_or_si256(_mm256_and_si256(entry, _mm256_set1_epi32(0x003f003f)), upper); /* 6 bits in 8 */
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(entry, order), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* The 16 entries of 4 inputs: +-x0 +-x1 +-x2 +-x3, where bit j of an entry's number is 0 if the sign of xj is turned.
 */
LOOP void fill(const float *x, __m256 per_step, uint8_t *out, const int digits) {
    const __m256 turn = _mm256_set1_ps(-0.0f), zero = _mm256_setzero_ps();
    __m256 a = _mm256_xor_ps(_mm256_set1_ps(x[0]), _mm256_blend_ps(turn, zero, 0xaa));
    __m256 b = _mm256_xor_ps(_mm256_set1_ps(x[1]), _mm256_blend_ps(turn, zero, 0xcc));
    __m256 c = _mm256_xor_ps(_mm256_set1_ps(x[2]), _mm256_blend_ps(turn, zero, 0xf0));
    __m256 three = _mm256_add_ps(_mm256_add_ps(a, b), c), last = _mm256_set1_ps(x[3]);
    __m256i first = split(_mm256_sub_ps(three, last), per_step, digits);
    __m256i second = split(_mm256_add_ps(three, last), per_step, digits);
    __m256i even = _mm256_unpacklo_epi64(first, second), odd = _mm256_unpackhi_epi64(first, second);
    _mm256_store_si256((__m256i *)out, _mm256_permute2x128_si256(even, odd, 0x20));
    if (digits == 4)
        _mm256_store_si256((__m256i *)out + 1, _mm256_permute2x128_si256(even, odd, 0x31));
}

LOOP float sum_of_lanes(__m256 value) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* The largest sum |x| of 4 inputs; NaN where an x is not finite. */
LOOP float largest_of(const float *x, int64_t count) {
    __m256 most = _mm256_setzero_ps(), all = most;
    for (int64_t k = 0; k < count; k += 8) {
        __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x + k));
        __m256 pairs = _mm256_hadd_ps(magnitude, magnitude);
        most = _mm256_max_ps(most, _mm256_hadd_ps(pairs, pairs));
        all = _mm256_add_ps(all, magnitude);
    }
    __m128 two = _mm_max_ss(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    return _mm_cvtss_f32(two) + 0.0f * sum_of_lanes(all);
}

LOOP void fill_tables(const float *x, int64_t length, int64_t group, bcq_tables *out, const int digits) {
    int64_t segment = 0;
    for (int64_t start = 0; start < length; start += group) {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t k = start; k < start + group; k += 8)
            sum = _mm256_add_ps(sum, _mm256_loadu_ps(x + k));
        out->sums[start / group] = sum_of_lanes(sum);
        for (int64_t from = start, to; from < start + group; from = to, segment++) {
            to = from + SEGMENT < start + group ? from + SEGMENT : start + group;
            float step = bcq_least_step(largest_of(x + from, to - from) / (float)((1 << (DIGIT * digits - 1)) - 8));
            out->steps[segment] = step;
            for (int64_t k = from; k < to; k += 4)
                fill(x + k, _mm256_set1_ps(1.0f / step), tables_at(out, k, digits), digits);
        }
    }
}

TARGET static void tables(const float *x, int64_t length, int64_t group, int parts, bcq_tables *out) {
    if (parts == 2)
        fill_tables(x, length, group, out, 4);
    else
        fill_tables(x, length, group, out, 2);
}

TARGET static uint64_t read_all(const char *memory, int64_t bytes) {
    __m256i found = _mm256_setzero_si256();
    int64_t part = bytes / 4 / 128 * 128;
    for (int64_t at = 0; at < part; at += 128)
        for (int64_t stream = 0; stream < 4; stream++)
            for (int i = 0; i < 4; i++)
                found = _mm256_xor_si256(found,
                                         _mm256_loadu_si256((const __m256i *)(memory + stream * part + at + 32 * i)));
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)lanes, found);
    return bcq_portable.read(memory + 4 * part, bytes - 4 * part) ^ lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

const bcq_functions bcq_avx2 = {tables, product, bcq_avx2_dequantize, read_all};
#endif
