/* The kernels with AVX2, FMA and F16C. A byte shuffle looks up 16 entries of one byte in 32 lanes, so entries come in
 * two (fast) or three (exact) bytes, which are summed apart in 16 bits:
 *
 *   entry = round(value/step) + 2^(8n-1), value the signed sum of 4 inputs, step = max sum |x| / (2^(8n-1) - 8)
 *
 * where 8 leaves room for the float32 rounding of step and value. A segment has at most 32 lookups, so a sum of bytes
 * is at most 8160, and rounding moves it by at most 32 step/2: 4.9e-4 (fast) or 1.9e-6 (exact) of max sum |x|. The
 * lanes are 16 bits wide, so the upper byte of each index is 0 and looks up entry 0: what that adds is known
 * beforehand. */
#include "bcq_kernel.h"

#ifdef BCQ_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LOOP INLINE TARGET

typedef struct { /* of 16 inputs, in the place of the 16-bit entries */
    uint8_t bytes[4][3][16];
    uint16_t stray[3]; /* of the segment that begins here: 256 times the sum of the entries 0, modulo 2^16 */
} byte_tables;

_Static_assert(sizeof(byte_tables) <= 2 * LOOKUPS * sizeof(int16_t), "byte tables fit the place of the others");

INLINE byte_tables *tables_at(const bcq_tables *tables, int64_t input) {
    return (byte_tables *)(uintptr_t)&tables->entries[input / 16];
}

LOOP __m256 load_scales(const char *from, int first, int32_t type) { /* of rows first .. first + 7 */
    if (type == BCQ_F32)
        return _mm256_loadu_ps((const float *)from + first);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)from + first)));
}

LOOP __m256 load_alpha(const bcq_weight *w, const char *scales, int plane, int first) {
    if (w->uniform)
        return _mm256_mul_ps(load_scales(scales, first, w->scale_type), _mm256_set1_ps(bcq_place(w, plane)));
    return load_scales(scales + plane * BCQ_ROWS * bcq_bytes(w->scale_type), first, w->scale_type);
}

LOOP __m256 load_shift(const bcq_weight *w, const char *scales, int first) {
    const char *shifts = bcq_shifts(w, scales);
    if (!w->uniform)
        return load_scales(shifts, first, w->shift_type);
    __m256 zero = w->shift_type == BCQ_NONE ? _mm256_set1_ps(bcq_middle(w)) : load_scales(shifts, first, w->shift_type);
    return _mm256_mul_ps(load_scales(scales, first, w->scale_type),
                         _mm256_sub_ps(_mm256_set1_ps(bcq_half_range(w)), zero));
}

LOOP void add_to(float *sum, __m256 a, __m256 b) { _mm256_storeu_ps(sum, _mm256_fmadd_ps(a, b, _mm256_loadu_ps(sum))); }

/* sums[0..7] and sums[16..23] += step alpha (sum of entries), for the 16 lanes that begin at `words`. */
LOOP void add_lanes(const bcq_weight *w, const uint16_t *words, const bcq_tables *tables, int64_t first, int64_t length,
                    __m256 low_scale, __m256 high_scale, float *sums, const int bytes) {
    const __m256i nibble = _mm256_set1_epi16(15);
    __m256i sum[3] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t k = first; k < first + length; k += 16, words += bcq_stride(w)) {
        const byte_tables *t = tables_at(tables, k);
        __m256i word = _mm256_load_si256((const __m256i *)words);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            __m256i index = _mm256_and_si256(_mm256_srli_epi16(word, 4 * j), nibble);
#pragma GCC unroll 3
            for (int p = 0; p < bytes; p++) {
                __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)t->bytes[j][p]));
                sum[p] = _mm256_add_epi16(sum[p], _mm256_shuffle_epi8(table, index));
            }
        }
    }
    const byte_tables *t = tables_at(tables, first);
    __m256i low = _mm256_set1_epi32((int32_t)-(length / 4) * (1 << (8 * bytes - 1))), high = low;
#pragma GCC unroll 3
    for (int p = 0; p < bytes; p++) {
        __m256i clean = _mm256_sub_epi16(sum[p], _mm256_set1_epi16((short)t->stray[p]));
        low = _mm256_add_epi32(low, _mm256_slli_epi32(_mm256_and_si256(clean, _mm256_set1_epi32(0xffff)), 8 * p));
        high = _mm256_add_epi32(high, _mm256_slli_epi32(_mm256_srli_epi32(clean, 16), 8 * p));
    }
    add_to(sums, low_scale, _mm256_cvtepi32_ps(low));
    add_to(sums + 16, high_scale, _mm256_cvtepi32_ps(high));
}

TARGET static void add_exact(const bcq_weight *w, const uint16_t *words, const bcq_tables *tables, int64_t first,
                             int64_t length, __m256 low_scale, __m256 high_scale, float *sums) {
    add_lanes(w, words, tables, first, length, low_scale, high_scale, sums, 3);
}

TARGET static void add_fast(const bcq_weight *w, const uint16_t *words, const bcq_tables *tables, int64_t first,
                            int64_t length, __m256 low_scale, __m256 high_scale, float *sums) {
    add_lanes(w, words, tables, first, length, low_scale, high_scale, sums, 2);
}

TARGET static void add_shifts(const bcq_weight *w, const char *scales, const bcq_tables *tables, int64_t g, int batch,
                              float *sums) {
    for (int row = 0; row < (w->uniform || w->shift_type != BCQ_NONE ? BCQ_ROWS : 0); row += 8)
        for (int m = 0; m < batch; m++)
            add_to(sums + m * BCQ_ROWS + row, load_shift(w, scales, row), _mm256_set1_ps(tables[m].sums[g]));
}

TARGET static void multiply(const bcq_block *block, const bcq_tables *tables, int batch, int parts, float *sums) {
    const bcq_weight *w = block->weight;
    int64_t segment = 0;
    for (int64_t g = 0; g < block->length / block->group; g++) {
        const uint16_t *words = (const uint16_t *)((const char *)block->words + g * block->words_stride);
        const char *scales = block->scales + g * block->scale_stride;
        for (int64_t k = 0, length; k < block->group; k += length, segment++) {
            length = block->group - k < SEGMENT ? block->group - k : SEGMENT;
            for (int part = 0; part < 2 * w->bits; part++) { /* of a plane: rows 0..7 and 16..23, or 8..15 and 24..31 */
                int row = part % 2 * 8, plane = part / 2;
                const uint16_t *from = words + k / 16 * bcq_stride(w) + plane * BCQ_ROWS + 2 * row;
                __m256 low = load_alpha(w, scales, plane, row), high = load_alpha(w, scales, plane, row + 16);
                for (int m = 0; m < batch; m++) {
                    __m256 step = _mm256_set1_ps(tables[m].steps[segment]);
                    (parts == 2 ? add_exact : add_fast)(w, from, tables + m, g * block->group + k, length,
                                                        _mm256_mul_ps(step, low), _mm256_mul_ps(step, high),
                                                        sums + m * BCQ_ROWS + row);
                }
            }
        }
        add_shifts(w, scales, tables, g, batch, sums);
    }
}

static void product(const bcq_block *strip, const bcq_tables *tables, int batch, int parts, float *sums) {
    for (int i = 0; i < bcq_together(strip->weight); i++)
        multiply(strip + i, tables, batch, parts, sums + i * batch * BCQ_ROWS);
}

/* The 16 signed sums of 4 inputs, and the bytes of their entries. */
LOOP void fill(const float *x, float per_step, int bytes, uint8_t (*out)[16]) {
    __m256i half[2], sign = _mm256_set1_epi32(INT32_MIN);
    for (int h = 0; h < 2; h++) {
        __m256i number = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(8 * h));
        __m256 sum = _mm256_setzero_ps();
        for (int j = 0; j < 4; j++) { /* the sign is turned where bit j of the number is 0 */
            __m256i turned = _mm256_andnot_si256(_mm256_slli_epi32(number, 31 - j), sign);
            __m256 value = _mm256_xor_ps(_mm256_set1_ps(x[j]), _mm256_castsi256_ps(turned));
            sum = j ? _mm256_add_ps(sum, value) : value;
        }
        half[h] = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(sum, _mm256_set1_ps(per_step))),
                                   _mm256_set1_epi32(1 << (8 * bytes - 1)));
    }
    for (int p = 0; p < bytes; p++) {
        __m256i a = _mm256_and_si256(_mm256_srli_epi32(half[0], 8 * p), _mm256_set1_epi32(255));
        __m256i b = _mm256_and_si256(_mm256_srli_epi32(half[1], 8 * p), _mm256_set1_epi32(255));
        __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
        __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        _mm_store_si128((__m128i *)out[p], packed);
    }
}

TARGET static void fill_segment(const float *x, int64_t from, int64_t to, int parts, bcq_tables *out, int64_t segment) {
    int bytes = parts + 1;
    float largest = 0, magnitude;
    for (int64_t k = from; k < to; k += 4) { /* written so that a NaN stays */
        magnitude = 0;
        for (int j = 0; j < 4; j++)
            magnitude += __builtin_fabsf(x[k + j]);
        largest = magnitude <= largest ? largest : magnitude;
        if (largest != largest)
            break;
    }
    byte_tables *head = tables_at(out, from);
    out->steps[segment] = largest * (1.0f / (float)((1 << (8 * bytes - 1)) - 8));
    memset(head->stray, 0, sizeof head->stray);
    for (int64_t k = from; k < to; k += 16) {
        byte_tables *t = tables_at(out, k);
        for (int j = 0; j < 4; j++) {
            fill(x + k + 4 * j, bcq_per_step(out->steps[segment]), bytes, t->bytes[j]);
            for (int p = 0; p < bytes; p++)
                head->stray[p] = (uint16_t)(head->stray[p] + 256 * t->bytes[j][p][0]);
        }
    }
}

TARGET static void tables(const float *x, int64_t length, int64_t group, int parts, bcq_tables *out) {
    int64_t segment = 0;
    for (int64_t start = 0; start < length; start += group) {
        float lanes[8] = {0};
        for (int64_t k = start; k < start + group; k += 8)
            for (int lane = 0; lane < 8; lane++)
                lanes[lane] += x[k + lane];
        out->sums[start / group] =
            ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
        for (int64_t from = start, to; from < start + group; from = to, segment++) {
            to = from + SEGMENT < start + group ? from + SEGMENT : start + group;
            fill_segment(x, from, to, parts, out, segment);
        }
    }
}

/* Eight weights of one row from bit `bit` of their words on, in the order of operations that defines the format. */
LOOP __m256 weights_of(const bcq_weight *w, const float *scale, float shift, const uint16_t *words, int bit) {
    __m256i place = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(bit));
    __m256i code = _mm256_setzero_si256();
    __m256 value = _mm256_setzero_ps();
    for (int i = 0; i < w->bits; i++) {
        __m256i bits = _mm256_srlv_epi32(_mm256_set1_epi32(words[i * BCQ_ROWS]), place);
        bits = _mm256_and_si256(bits, _mm256_set1_epi32(1));
        code = _mm256_add_epi32(_mm256_add_epi32(code, code), bits);
        if (w->uniform)
            continue;
        __m256i turned = _mm256_slli_epi32(_mm256_xor_si256(bits, _mm256_set1_epi32(1)), 31);
        __m256 part = _mm256_xor_ps(_mm256_set1_ps(scale[i * BCQ_ROWS]), _mm256_castsi256_ps(turned));
        value = i ? _mm256_add_ps(value, part) : part;
    }
    if (w->uniform)
        return _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(code), _mm256_set1_ps(shift)), _mm256_set1_ps(*scale));
    return w->shift_type == BCQ_NONE ? value : _mm256_add_ps(value, _mm256_set1_ps(shift));
}

LOOP __m128i to_bfloats(__m256 value) { /* to nearest, ties to even; a NaN stays one */
    __m256i bits = _mm256_castps_si256(value),
            odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(1 << 22));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0xd8);
    return _mm256_castsi256_si128(pairs);
}

LOOP void widen_scales(const bcq_weight *w, const char *scales, float (*scale)[BCQ_ROWS], float *shift) {
    const char *shifts = bcq_shifts(w, scales);
    for (int row = 0; row < BCQ_ROWS; row += 8) {
        for (int i = 0; i < (w->uniform ? 1 : w->bits); i++)
            _mm256_storeu_ps(scale[i] + row,
                             load_scales(scales + i * BCQ_ROWS * bcq_bytes(w->scale_type), row, w->scale_type));
        __m256 constant = _mm256_set1_ps(w->uniform ? bcq_middle(w) : 0.0f);
        _mm256_storeu_ps(shift + row, w->shift_type == BCQ_NONE ? constant : load_scales(shifts, row, w->shift_type));
    }
}

TARGET static void dequantize(const bcq_block *block, int rows, int64_t stride, void *out, int bfloat) {
    const bcq_weight *w = block->weight;
    float scale[8][BCQ_ROWS], shift[BCQ_ROWS];
    for (int64_t g = 0; g < block->length / block->group; g++) {
        const uint16_t *words = (const uint16_t *)((const char *)block->words + g * block->words_stride);
        widen_scales(w, block->scales + g * block->scale_stride, scale, shift);
        for (int row = 0; row < rows; row++)
            for (int64_t k = 0; k < block->group; k += 8) {
                const uint16_t *from = words + k / 16 * bcq_stride(w) + 2 * (row % 16) + row / 16;
                __m256 value = weights_of(w, &scale[0][row], shift[row], from, (int)(k % 16));
                int64_t at = row * stride + g * block->group + k;
                if (bfloat)
                    _mm_storeu_si128((__m128i *)((uint16_t *)out + at), to_bfloats(value));
                else
                    _mm256_storeu_ps((float *)out + at, value);
            }
    }
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

const bcq_functions bcq_avx2 = {tables, product, dequantize, read_all};
#endif
