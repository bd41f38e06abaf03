/* The kernels with AVX-512 (F, BW, VL): a lookup is one permutation of a table that lies in a register. */
#include "bcq_kernel.h"

#ifdef BCQ_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma,f16c")))
#define LOOP INLINE TARGET
#ifndef AHEAD
#define AHEAD 4096 /* bytes that are asked for before they are needed */
#endif

LOOP __m512 load_scales(const char *from, int half, int32_t type) { /* rows 16*half .. 16*half + 15 */
    if (type == BCQ_F32)
        return _mm512_loadu_ps((const float *)from + 16 * half);
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from + half));
}

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

LOOP void add_to(float *sum, __m512 a, __m512 b) {
    _mm512_storeu_ps(sum, _mm512_fmadd_ps(a, b, _mm512_loadu_ps(sum)));
}

LOOP void add_shifts(const bcq_weight *w, const char *scales, const bcq_tables *tables, int64_t g, int batch,
                     float *sums) {
    if (!w->uniform && w->shift_type == BCQ_NONE)
        return;
    for (int half = 0; half < 2; half++) {
        __m512 shift = load_shift(w, scales, half);
        for (int m = 0; m < batch; m++)
            add_to(sums + m * BCQ_ROWS + 16 * half, shift, _mm512_set1_ps(tables->sums[m][g]));
    }
}

/* v >> 4j in each 16-bit lane. As the upper half of a product: multipliers are on other ports than shifts and
 * permutations are. The factor is hidden from the compiler, which would make a shift of it. */
LOOP __m512i nibble(__m512i v, int j, const __m512i *factors) {
    return j ? _mm512_mulhi_epu16(v, factors[j]) : v;
}

LOOP void set_factors(__m512i *factors) {
    for (int j = 1; j < 4; j++) {
        factors[j] = _mm512_set1_epi16((short)(1 << (16 - 4 * j)));
        __asm__("" : "+v"(factors[j]));
    }
}

/* sums += alpha (c . x) over one group, for `planes` planes from `plane` on and `batch` rows of x from m on. */
LOOP void exact_group(const bcq_block *b, const uint16_t *words, const char *scales, const bcq_tables *tables,
                      int64_t table, int plane, int m, float *sums, const int planes, const int batch) {
    const bcq_weight *w = b->weight;
    __m512 low[4][4], high[4][4]; /* [plane][row of x]: rows 0..15 and 16..31 of the block */
    __m512i factors[4];
    set_factors(factors);
    for (int i = 0; i < planes; i++)
        for (int n = 0; n < batch; n++)
            low[i][n] = high[i][n] = _mm512_setzero_ps();
    words += plane * BCQ_ROWS;
    for (int64_t k = 0; k < b->group; k += 16, words += w->bits * BCQ_ROWS, table += 4) {
        __m512i first[4], second[4];
#pragma GCC unroll 4
        for (int i = 0; i < planes; i++) {
            first[i] = _mm512_load_si512(words + i * BCQ_ROWS);
            _mm_prefetch((const char *)(words + i * BCQ_ROWS) + AHEAD, _MM_HINT_T0);
            second[i] = _mm512_srli_epi32(first[i], 16);
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __m512 entries[4];
#pragma GCC unroll 4
            for (int n = 0; n < batch; n++)
                entries[n] = _mm512_load_ps(tables->exact[m + n][table + j]);
#pragma GCC unroll 4
            for (int i = 0; i < planes; i++) {
                __m512i a = nibble(first[i], j, factors), c = nibble(second[i], j, factors);
#pragma GCC unroll 4
                for (int n = 0; n < batch; n++) {
                    low[i][n] = _mm512_add_ps(low[i][n], _mm512_permutexvar_ps(a, entries[n]));
                    high[i][n] = _mm512_add_ps(high[i][n], _mm512_permutexvar_ps(c, entries[n]));
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < planes; i++) {
        __m512 a = load_alpha(w, scales, plane + i, 0), c = load_alpha(w, scales, plane + i, 1);
#pragma GCC unroll 4
        for (int n = 0; n < batch; n++) {
            add_to(sums + (m + n) * BCQ_ROWS, a, low[i][n]);
            add_to(sums + (m + n) * BCQ_ROWS + 16, c, high[i][n]);
        }
    }
}

/* The same over one segment in 16-bit sums, which cannot overflow (see bcq_step). */
LOOP void fast_segment(const bcq_block *b, const uint16_t *words, const char *scales, const bcq_tables *tables,
                       int64_t table, int64_t segment, int64_t length, int plane, int m, float *sums, const int planes,
                       const int batch) {
    const bcq_weight *w = b->weight;
    __m512i part[4][4];
    __m512i factors[4];
    set_factors(factors);
    for (int i = 0; i < planes; i++)
        for (int n = 0; n < batch; n++)
            part[i][n] = _mm512_setzero_si512();
    words += plane * BCQ_ROWS;
    for (int64_t k = 0; k < length; k += 16, words += w->bits * BCQ_ROWS, table += 4) {
        __m512i word[4];
#pragma GCC unroll 4
        for (int i = 0; i < planes; i++) {
            word[i] = _mm512_load_si512(words + i * BCQ_ROWS);
            _mm_prefetch((const char *)(words + i * BCQ_ROWS) + AHEAD, _MM_HINT_T0);
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
#pragma GCC unroll 4
            for (int n = 0; n < batch; n++) {
                __m512i entries = _mm512_load_si512(tables->fast[m + n][table + j]);
#pragma GCC unroll 4
                for (int i = 0; i < planes; i++)
                    part[i][n] = _mm512_add_epi16(
                        part[i][n], _mm512_permutexvar_epi16(nibble(word[i], j, factors), entries));
            }
    }
    __m512i low_half = _mm512_set1_epi32(1); /* v.low*1 + v.high*0 */
#pragma GCC unroll 4
    for (int n = 0; n < batch; n++) {
        __m512 low = _mm512_setzero_ps(), high = low;
#pragma GCC unroll 4
        for (int i = 0; i < planes; i++) {
            __m512 a = load_alpha(w, scales, plane + i, 0), c = load_alpha(w, scales, plane + i, 1);
            low = _mm512_fmadd_ps(a, _mm512_cvtepi32_ps(_mm512_madd_epi16(part[i][n], low_half)), low);
            high = _mm512_fmadd_ps(c, _mm512_cvtepi32_ps(_mm512_srai_epi32(part[i][n], 16)), high);
        }
        __m512 step = _mm512_set1_ps(tables->steps[m + n][segment]);
        add_to(sums + (m + n) * BCQ_ROWS, step, low);
        add_to(sums + (m + n) * BCQ_ROWS + 16, step, high);
    }
}

typedef void (*exact_kernel)(const bcq_block *, const uint16_t *, const char *, const bcq_tables *, int64_t, int, int,
                             float *);
typedef void (*fast_kernel)(const bcq_block *, const uint16_t *, const char *, const bcq_tables *, int64_t, int64_t,
                            int64_t, int, int, float *);

#define KERNELS(planes, batch)                                                                                         \
    TARGET static void exact_##planes##_##batch(const bcq_block *b, const uint16_t *words, const char *scales,        \
                                                const bcq_tables *t, int64_t table, int plane, int m, float *sums) {   \
        exact_group(b, words, scales, t, table, plane, m, sums, planes, batch);                                        \
    }                                                                                                                  \
    TARGET static void fast_##planes##_##batch(const bcq_block *b, const uint16_t *words, const char *scales,         \
                                               const bcq_tables *t, int64_t table, int64_t segment, int64_t length,    \
                                               int plane, int m, float *sums) {                                        \
        fast_segment(b, words, scales, t, table, segment, length, plane, m, sums, planes, batch);                      \
    }
#define KERNELS_OF(batch) KERNELS(1, batch) KERNELS(2, batch) KERNELS(3, batch) KERNELS(4, batch)
KERNELS_OF(1)
KERNELS_OF(2)
KERNELS_OF(4)

#define NAMES(kind, batch) {kind##_1_##batch, kind##_2_##batch, kind##_3_##batch, kind##_4_##batch}
static const exact_kernel exact_kernels[3][4] = {NAMES(exact, 1), NAMES(exact, 2), NAMES(exact, 4)};
static const fast_kernel fast_kernels[3][4] = {NAMES(fast, 1), NAMES(fast, 2), NAMES(fast, 4)};

/* How many of the rest are taken at once: as many sums as fit the 32 registers. */
INLINE int rows_at_once(int rest) { return rest >= 4 ? 2 : rest >= 2 ? 1 : 0; } /* log2 */
INLINE int planes_at_once(int rest, int most) { return rest <= most ? rest : rest < 2 * most ? (rest + 1) / 2 : most; }

TARGET static void exact(const bcq_block *block, const bcq_tables *tables, int batch, float *sums) {
    const bcq_weight *w = block->weight;
    for (int64_t g = 0; g < block->length / block->group; g++) {
        const uint16_t *words = (const uint16_t *)((const char *)block->words + g * block->words_stride);
        const char *scales = block->scales + g * block->scale_stride;
        for (int m = 0, rows; m < batch; m += 1 << rows) {
            rows = rows_at_once(batch - m);
            for (int i = 0, planes; i < w->bits; i += planes) {
                planes = planes_at_once(w->bits - i, rows == 2 ? 3 : 4);
                exact_kernels[rows][planes - 1](block, words, scales, tables, g * block->group / 4, i, m, sums);
            }
        }
        add_shifts(w, scales, tables, g, batch, sums);
    }
}

TARGET static void fast(const bcq_block *block, const bcq_tables *tables, int batch, float *sums) {
    const bcq_weight *w = block->weight;
    int64_t segment = 0;
    for (int64_t g = 0; g < block->length / block->group; g++) {
        const uint16_t *words = (const uint16_t *)((const char *)block->words + g * block->words_stride);
        const char *scales = block->scales + g * block->scale_stride;
        for (int64_t k = 0, length; k < block->group; k += length, segment++) {
            length = block->group - k < SEGMENT ? block->group - k : SEGMENT;
            const uint16_t *from = words + k / 16 * w->bits * BCQ_ROWS;
            for (int m = 0, rows; m < batch; m += 1 << rows) {
                rows = rows_at_once(batch - m);
                for (int i = 0, planes; i < w->bits; i += planes) {
                    planes = planes_at_once(w->bits - i, 4);
                    fast_kernels[rows][planes - 1](block, from, scales, tables, (g * block->group + k) / 4, segment,
                                                   length, i, m, sums);
                }
            }
        }
        add_shifts(w, scales, tables, g, batch, sums);
    }
}

/* +-x0 +-x1 +-x2 +-x3 for the 16 patterns of signs: the bit of a lane's number is 0 where the sign is turned. */
LOOP __m512 entries_of(const float *x) {
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

TARGET static void tables(const float *x, int64_t length, int64_t group, int m, int fast, bcq_tables *out) {
    int64_t segment = 0;
    for (int64_t start = 0; start < length; start += group) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t k = start; k < start + group; k += 16)
            sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + k));
        out->sums[m][start / group] = _mm512_reduce_add_ps(sum);
        if (!fast) {
            for (int64_t q = start / 4; q < (start + group) / 4; q++)
                _mm512_store_ps(out->exact[m][q], entries_of(x + 4 * q));
            continue;
        }
        for (int64_t from = start, to; from < start + group; from = to, segment++) {
            to = from + SEGMENT < start + group ? from + SEGMENT : start + group;
            __m512 magnitude = _mm512_setzero_ps();
            for (int64_t k = from; k < to; k += 16)
                magnitude = _mm512_add_ps(magnitude, _mm512_abs_ps(_mm512_loadu_ps(x + k)));
            float step = bcq_step(_mm512_reduce_add_ps(magnitude));
            __m512 per_step = _mm512_set1_ps(bcq_per_step(step));
            out->steps[m][segment] = step;
            for (int64_t q = from / 4; q < to / 4; q++) { /* not finite: INT32_MIN, whose lower half is 0 */
                __m512i units = _mm512_cvtps_epi32(_mm512_mul_ps(entries_of(x + 4 * q), per_step));
                __m256i narrow = _mm512_cvtepi32_epi16(units);
                _mm512_store_si512(out->fast[m][q], _mm512_inserti64x4(_mm512_castsi256_si512(narrow), narrow, 1));
            }
        }
    }
}

TARGET static uint64_t read_all(const char *memory, int64_t bytes) {
    __m512i found[4];
    for (int i = 0; i < 4; i++)
        found[i] = _mm512_setzero_si512();
    int64_t at = 0;
    for (; at + 256 <= bytes; at += 256)
        for (int i = 0; i < 4; i++) {
            _mm_prefetch(memory + at + 64 * i + AHEAD, _MM_HINT_T0);
            found[i] = _mm512_xor_si512(found[i], _mm512_loadu_si512(memory + at + 64 * i));
        }
    uint64_t rest = bcq_portable.read(memory + at, bytes - at), lanes[8];
    found[0] = _mm512_xor_si512(_mm512_xor_si512(found[0], found[1]), _mm512_xor_si512(found[2], found[3]));
    _mm512_storeu_si512(lanes, found[0]);
    for (int i = 0; i < 8; i++)
        rest ^= lanes[i];
    return rest;
}

static void dequantize(const bcq_block *block, int rows, int64_t stride, void *out, int bfloat) {
    bcq_portable.dequantize(block, rows, stride, out, bfloat);
}

const bcq_functions bcq_avx512 = {tables, exact, fast, dequantize, read_all};
#endif
