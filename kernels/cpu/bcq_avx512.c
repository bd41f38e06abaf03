/* The kernels with AVX-512 (F, BW, VL): a lookup is one permutation of a table that lies in a register.
 *
 * Nothing is prefetched by software: one stream, read in order, is left to the hardware, and asking for lines 1..16 KiB
 * ahead made every variant slower (the requests take the places of the first-level cache's few misses). */
#include "bcq_kernel.h"

#ifdef BCQ_X86
#include "bcq_avx512.h"

LOOP __m512 load_alpha(const bcq_weight *w, const char *scales, int plane, int half) {
    if (w->uniform)
        return _mm512_mul_ps(load_scales(scales, half, w->scale_type), _mm512_set1_ps(bcq_place(w, plane)));
    return load_scales(scales + plane * BCQ_ROWS * bcq_bytes(w->scale_type), half, w->scale_type);
}

LOOP __m512 load_shift(const bcq_weight *w, const char *scales, int half) {
    const char *shifts = bcq_shifts(w, scales);
    if (!w->uniform)
        return load_scales(shifts, half, w->shift_type);
    __m512 zero = w->shift_type == BCQ_NONE ? _mm512_set1_ps(bcq_middle(w)) : load_scales(shifts, half, w->shift_type);
    return _mm512_mul_ps(load_scales(scales, half, w->scale_type),
                         _mm512_sub_ps(_mm512_set1_ps(bcq_half_range(w)), zero));
}

LOOP void add_to(float *sum, __m512 a, __m512 b) { _mm512_storeu_ps(sum, _mm512_fmadd_ps(a, b, _mm512_loadu_ps(sum))); }

LOOP void add_shifts(const bcq_weight *w, const char *scales, const bcq_tables *tables, int64_t g, int batch,
                     float *sums) {
    if (!w->uniform && w->shift_type == BCQ_NONE)
        return;
    for (int half = 0; half < 2; half++) {
        __m512 shift = load_shift(w, scales, half);
        for (int m = 0; m < batch; m++)
            add_to(sums + m * BCQ_ROWS + 16 * half, shift, _mm512_set1_ps(tables[m].sums[g]));
    }
}

typedef struct {
    const bcq_weight *weight;
    const uint16_t *words;
    const char *scales;
    int64_t first, length, index; /* of the segment: its first input in the tile, its inputs, its number in the tile */
    int64_t scales_next, sums_next; /* bytes and sums from one block to the next */
} segment;

/* Shifts by 6 and 11 as upper halves of products: multipliers are on other ports than shifts and permutations are. The
 * factors are hidden from the compiler, which would make shifts of them. */
typedef struct {
    __m512i six, eleven;
} factors;

LOOP factors hidden_factors(void) {
    factors f = {_mm512_set1_epi16(1 << (16 - 6)), _mm512_set1_epi16(1 << (16 - 11))};
    __asm__("" : "+v"(f.six), "+v"(f.eleven));
    return f;
}

/* A load that happens once: a compiler likes to repeat it as the operand of each instruction that needs the value, and
 * then loads are what there is too much of. */
LOOP __m512i load_once(const void *from) {
    __m512i value = _mm512_load_si512(from);
    __asm__("" : "+v"(value));
    return value;
}

/* sums += step sum_i alpha_i (c_i . x) over the segment, for `planes` planes from `plane` on, or all of several
 * `blocks`, and `batch` tables. */
LOOP void add_segment(const segment *s, const bcq_tables *tables, int plane, float *sums, const int blocks,
                      const int planes, const int batch, const int parts) {
    const bcq_weight *w = s->weight;
    const uint16_t *words = s->words + plane * BCQ_ROWS;
    factors f = hidden_factors();
    __m512i sum[4][4][2];
    for (int i = 0; i < blocks * planes; i++)
        for (int m = 0; m < batch; m++)
            sum[i][m][0] = sum[i][m][1] = _mm512_setzero_si512();
    for (int64_t k = s->first / 16; k < (s->first + s->length) / 16; k++, words += bcq_stride(w)) {
        __m512i word[4], second[4], third[4];
#pragma GCC unroll 4
        for (int i = 0; i < blocks * planes; i++) {
            word[i] = load_once(words + i * BCQ_ROWS);
            second[i] = _mm512_mulhi_epu16(word[i], f.six);
            third[i] = _mm512_mulhi_epu16(word[i], f.eleven);
        }
#pragma GCC unroll 4
        for (int m = 0; m < batch; m++)
#pragma GCC unroll 2
            for (int p = 0; p < parts; p++) {
                const int16_t *entries = tables[m].entries[k][p];
                __m512i first = load_once(entries), next = load_once(entries + 32);
                __m512i middle = load_once(entries + 64), last = load_once(entries + 96);
#pragma GCC unroll 4
                for (int i = 0; i < blocks * planes; i++) {
                    __m512i *to = &sum[i][m][p];
                    *to = _mm512_add_epi16(*to, _mm512_permutex2var_epi16(first, word[i], next));
                    *to = _mm512_add_epi16(*to, _mm512_permutexvar_epi16(second[i], middle));
                    *to = _mm512_add_epi16(*to, _mm512_permutexvar_epi16(third[i], last));
                }
            }
    }
    __m512i weights =
        _mm512_set1_epi32(parts == 2 ? 1 | 1 << (16 + SPLIT) : 1); /* of the halves of a pair of 16 bits */
#pragma GCC unroll 4
    for (int m = 0; m < batch; m++)
#pragma GCC unroll 4
        for (int block = 0; block < blocks; block++) {
            const char *scales = s->scales + block * s->scales_next;
            float *to = sums + block * s->sums_next + m * BCQ_ROWS;
            __m512 low_rows = _mm512_setzero_ps(), high_rows = low_rows;
#pragma GCC unroll 4
            for (int i = 0; i < planes; i++) {
                __m512i high = sum[block * planes + i][m][0], low = sum[block * planes + i][m][1], a, b;
                if (parts == 2) { /* pairs (low, high) of rows 0..15 and of rows 16..31 */
                    a = _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
                    b = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(low, 16), high);
                    a = _mm512_madd_epi16(a, weights);
                    b = _mm512_madd_epi16(b, weights);
                } else {
                    a = _mm512_madd_epi16(high, weights);
                    b = _mm512_srai_epi32(high, 16);
                }
                low_rows = _mm512_fmadd_ps(load_alpha(w, scales, plane + i, 0), _mm512_cvtepi32_ps(a), low_rows);
                high_rows = _mm512_fmadd_ps(load_alpha(w, scales, plane + i, 1), _mm512_cvtepi32_ps(b), high_rows);
            }
            __m512 step = _mm512_set1_ps(tables[m].steps[s->index]);
            add_to(to, step, low_rows);
            add_to(to + 16, step, high_rows);
        }
}

typedef void (*kernel)(const segment *, const bcq_tables *, int, float *);

#define KERNEL(blocks, planes, batch, parts)                                                                           \
    TARGET static void add_##blocks##_##planes##_##batch##_##parts(const segment *s, const bcq_tables *t, int plane,   \
                                                                   float *y) {                                         \
        add_segment(s, t, plane, y, blocks, planes, batch, parts);                                                     \
    }
#define KERNELS(batch, parts)                                                                                          \
    KERNEL(1, 1, batch, parts)                                                                                         \
    KERNEL(1, 2, batch, parts) KERNEL(1, 3, batch, parts) KERNEL(1, 4, batch, parts) KERNEL(2, 2, batch, parts)        \
        KERNEL(4, 1, batch, parts)
#define NAMES(batch, parts)                                                                                            \
    {add_1_1_##batch##_##parts, add_1_2_##batch##_##parts, add_1_3_##batch##_##parts,                                  \
     add_1_4_##batch##_##parts, add_4_1_##batch##_##parts, add_2_2_##batch##_##parts}
KERNELS(1, 1)
KERNELS(1, 2)
KERNELS(2, 1)
KERNELS(2, 2)
KERNELS(4, 1)
KERNELS(4, 2)
static const kernel kernels[2][3][6] = {{NAMES(1, 1), NAMES(2, 1), NAMES(4, 1)},
                                        {NAMES(1, 2), NAMES(2, 2), NAMES(4, 2)}};

/* As many at once as their sums fit the registers with one or two tables. With four, three would be enough of them,
 * but that is no faster, and the bits of a row would depend on the batch: what is added at once is rounded once. */
INLINE int planes_at_once(int rest) { return rest <= 4 ? rest : rest < 8 ? (rest + 1) / 2 : 4; }

/* All planes of a strip's segment for 1, 2 or 4 tables, as `log` says. */
LOOP void add_planes(segment s, const bcq_tables *tables, int log, int parts, float *sums) {
    const kernel *chosen = kernels[parts - 1][log];
    int bits = s.weight->bits, together = bcq_together(s.weight);
    if (together > 1 && log < 2) {
        chosen[3 + bits](&s, tables, 0, sums);
        return;
    }
    for (int block = 0; block < together; block++) {
        for (int i = 0, planes; i < bits; i += planes) {
            planes = planes_at_once(bits - i);
            chosen[planes - 1](&s, tables, i, sums);
        }
        s.words += bits * BCQ_ROWS, s.scales += s.scales_next, sums += s.sums_next;
    }
}

TARGET static void product(const bcq_block *strip, const bcq_tables *tables, int batch, int parts, float *sums) {
    const bcq_weight *w = strip->weight;
    int together = bcq_together(w);
    segment s = {.weight = w, .sums_next = batch * BCQ_ROWS};
    s.scales_next = together > 1 ? strip[1].scales - strip->scales : 0;
    for (int64_t g = 0; g < strip->length / strip->group; g++) {
        const char *words = (const char *)strip->words + g * strip->words_stride;
        s.scales = strip->scales + g * strip->scale_stride;
        for (int64_t k = 0; k < strip->group; k += s.length, s.index++) {
            s.words = (const uint16_t *)words + k / 16 * bcq_stride(w);
            s.first = g * strip->group + k;
            s.length = strip->group - k < SEGMENT ? strip->group - k : SEGMENT;
            for (int m = 0, log = 0; m < batch; m += 1 << log) {
                log = batch - m >= 4 && parts == 1 ? 2 : batch - m >= 2 ? 1 : 0;
                add_planes(s, tables + m, log, parts, sums + m * BCQ_ROWS);
            }
        }
        for (int i = 0; i < together; i++)
            add_shifts(w, s.scales + i * s.scales_next, tables, g, batch, sums + i * s.sums_next);
    }
}

/* +-x0 +-x1 +-x2 +-x3 for the 16 patterns of signs: the bit of a lane's number is 0 where the sign is turned. */
LOOP __m512 sums_of_four(const float *x) {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    static const __mmask16 turned[4] = {0x5555, 0x3333, 0x0f0f, 0x00ff};
    __m512 sum = _mm512_setzero_ps();
    for (int j = 0; j < 4; j++) {
        __m512i value = _mm512_castps_si512(_mm512_set1_ps(x[j]));
        __m512 signed_value = _mm512_castsi512_ps(_mm512_mask_xor_epi32(value, turned[j], value, sign));
        sum = j ? _mm512_add_ps(sum, signed_value) : signed_value;
    }
    return sum;
}

/* 16 entries of both parts. What is not finite becomes INT32_MIN, and its step makes NaN of it. */
LOOP void store_entries(__m512 value, __m512 per_step, int parts, int16_t (*out)[LOOKUPS], int first) {
    __m512i entry = _mm512_cvtps_epi32(_mm512_mul_ps(value, per_step)), high = entry;
    if (parts == 2) {
        high = _mm512_srai_epi32(_mm512_add_epi32(entry, _mm512_set1_epi32(1 << (SPLIT - 1))), SPLIT);
        __m512i low = _mm512_sub_epi32(entry, _mm512_slli_epi32(high, SPLIT));
        _mm256_storeu_si256((__m256i *)(out[1] + first), _mm512_cvtepi32_epi16(low));
    }
    _mm256_storeu_si256((__m256i *)(out[0] + first), _mm512_cvtepi32_epi16(high));
}

LOOP void fill(const float *x, __m512 per_step, int parts, int16_t (*out)[LOOKUPS]) {
    static const int start[3] = {0, 6, 11}, place[3] = {0, 64, 96};
    for (int t = 0; t < 3; t++) {
        __m512 four = sums_of_four(x + start[t]), fifth = _mm512_set1_ps(x[start[t] + 4]);
        __m512 half[2] = {_mm512_sub_ps(four, fifth), _mm512_add_ps(four, fifth)}; /* bit 4 of the index */
        for (int bit = 0; bit < 2; bit++) {
            if (t) {
                store_entries(half[bit], per_step, parts, out, place[t] + 16 * bit);
                continue;
            }
            __m512 sixth = _mm512_set1_ps(x[5]);
            store_entries(_mm512_sub_ps(half[bit], sixth), per_step, parts, out, 16 * bit);
            store_entries(_mm512_add_ps(half[bit], sixth), per_step, parts, out, 32 + 16 * bit);
        }
    }
}

TARGET static void tables(const float *x, int64_t length, int64_t group, int parts, bcq_tables *out) {
    int64_t number = 0;
    for (int64_t start = 0; start < length; start += group) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t k = start; k < start + group; k += 16)
            sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + k));
        out->sums[start / group] = _mm512_reduce_add_ps(sum);
        for (int64_t from = start, to; from < start + group; from = to, number++) {
            to = from + SEGMENT < start + group ? from + SEGMENT : start + group;
            __m512 magnitude = _mm512_setzero_ps();
            for (int64_t k = from; k < to; k += 16)
                magnitude = _mm512_add_ps(magnitude, _mm512_abs_ps(_mm512_loadu_ps(x + k)));
            out->steps[number] = bcq_step(_mm512_reduce_add_ps(magnitude), parts);
            __m512 per_step = _mm512_set1_ps(1.0f / out->steps[number]);
            for (int64_t k = from; k < to; k += 16)
                fill(x + k, per_step, parts, out->entries[k / 16]);
        }
    }
}

/* Four streams, and no prefetch by software: the most that one thread was seen to read. */
TARGET static uint64_t read_all(const char *memory, int64_t bytes) {
    __m512i found[4];
    int64_t part = bytes / 4 / 256 * 256;
    for (int i = 0; i < 4; i++)
        found[i] = _mm512_setzero_si512();
    for (int64_t at = 0; at < part; at += 256)
        for (int64_t stream = 0; stream < 4; stream++)
            for (int i = 0; i < 4; i++)
                found[i] = _mm512_xor_si512(found[i], _mm512_loadu_si512(memory + stream * part + at + 64 * i));
    uint64_t rest = bcq_portable.read(memory + 4 * part, bytes - 4 * part), lanes[8];
    found[0] = _mm512_xor_si512(_mm512_xor_si512(found[0], found[1]), _mm512_xor_si512(found[2], found[3]));
    _mm512_storeu_si512(lanes, found[0]);
    for (int i = 0; i < 8; i++)
        rest ^= lanes[i];
    return rest;
}

const bcq_functions bcq_avx512 = {tables, product, bcq_avx512_dequantize, read_all};
#endif
