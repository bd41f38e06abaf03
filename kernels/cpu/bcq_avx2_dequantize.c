/* Weights as numbers, with AVX2: bits of 8 inputs of 4 rows are masks that assemble codes, and codes choose levels. */
#include "bcq_kernel.h"

#ifdef BCQ_X86
#include "bcq_avx2.h"

#define LEVEL_BITS 4 /* of the first planes, whose sums are looked up */

typedef struct { /* of one group of a block */
    float scale[8][BCQ_ROWS], shift[BCQ_ROWS];
    float levels[BCQ_ROWS]
                [1 << LEVEL_BITS]; /* of a binary weight: +-alpha_0 +-alpha_1 ..., by the code of these planes */
} constants;

LOOP __m256 add_signed(__m256 value, float scale, __m256i code, int bit) { /* the sign is turned where the bit is 0 */
    __m256i turned =
        _mm256_andnot_si256(_mm256_sll_epi32(code, _mm_cvtsi32_si128(31 - bit)), _mm256_set1_epi32(INT32_MIN));
    return _mm256_add_ps(value, _mm256_xor_ps(_mm256_set1_ps(scale), _mm256_castsi256_ps(turned)));
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

LOOP void fill_constants(const bcq_weight *w, const char *scales, int rows, constants *out) {
    int planes = w->bits < LEVEL_BITS ? w->bits : LEVEL_BITS;
    widen_scales(w, scales, out->scale, out->shift);
    for (int row = 0; row < (w->uniform ? 0 : rows); row++)
        for (int half = 0; half < 2; half++) {
            __m256i code = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(8 * half));
            __m256 level = _mm256_set1_ps(-0.0f); /* to which any number adds without a change */
            for (int i = 0; i < planes; i++)
                level = add_signed(level, out->scale[i][row], code, planes - 1 - i);
            _mm256_storeu_ps(out->levels[row] + 8 * half, level);
        }
}

/* The codes of 8 inputs of the rows r, r + 8, r + 16 and r + 24, whose bytes lie side by side; plane 0 is the uppermost
 * bit. next: bytes from plane to plane. */
LOOP __m256i codes_of(const uint8_t *bytes, int64_t next, int planes) {
    const __m256i repeat = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3,
                                            3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    __m256i code = _mm256_setzero_si256();
    for (int i = 0; i < planes; i++) {
        int32_t four;
        memcpy(&four, bytes + i * next, sizeof four);
        __m256i repeated = _mm256_shuffle_epi8(_mm256_set1_epi32(four), repeat);
        __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(repeated, bit), bit); /* -1 where the bit is 1 */
        code = _mm256_sub_epi8(_mm256_add_epi8(code, code), set);
    }
    return code;
}

/* What 8 codes of a row mean, in the order of operations that defines the format. */
LOOP __m256 weights_of(const bcq_weight *w, const constants *c, int row, __m256i code) {
    if (w->uniform)
        return _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(code), _mm256_set1_ps(c->shift[row])),
                             _mm256_set1_ps(c->scale[0][row]));
    int planes = w->bits < LEVEL_BITS ? w->bits : LEVEL_BITS;
    __m256i index = _mm256_srl_epi32(code, _mm_cvtsi32_si128(w->bits - planes));
    __m256 value = _mm256_permutevar8x32_ps(_mm256_loadu_ps(c->levels[row]), index); /* by the lower 3 bits */
    if (planes == LEVEL_BITS) {
        __m256 upper = _mm256_permutevar8x32_ps(_mm256_loadu_ps(c->levels[row] + 8), index);
        value = _mm256_blendv_ps(value, upper, _mm256_castsi256_ps(_mm256_slli_epi32(index, 31 - 3)));
    }
    for (int i = planes; i < w->bits; i++)
        value = add_signed(value, c->scale[i][row], code, w->bits - 1 - i);
    return w->shift_type == BCQ_NONE ? value : _mm256_add_ps(value, _mm256_set1_ps(c->shift[row]));
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

/* out[row][0..length-1] for the rows first, first + 8, ... of a segment that begins at `words`. */
LOOP void dequantize_rows(const bcq_weight *w, const uint16_t *words, int64_t length, const constants *c, int first,
                          int rows, int64_t stride, char *out, const int bfloat) {
    const uint8_t *bytes = (const uint8_t *)words + 4 * first;
    for (int64_t k = 0; k < length; k += 8, bytes += BCQ_ROWS) {
        uint64_t codes[4]; /* of 8 inputs each */
        _mm256_storeu_si256((__m256i *)codes, codes_of(bytes, length / 8 * BCQ_ROWS, w->bits));
        for (int q = 0, row = first; q < 4 && row < rows; q++, row += 8) {
            __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + q)));
            __m256 value = weights_of(w, c, row, code);
            if (bfloat)
                _mm_storeu_si128((__m128i *)((uint16_t *)out + row * stride + k), to_bfloats(value));
            else
                _mm256_storeu_ps((float *)out + row * stride + k, value);
        }
    }
}

LOOP void dequantize_group(const bcq_block *block, const uint16_t *words, const constants *c, int rows, int64_t stride,
                           char *out, const int bfloat) {
    const bcq_weight *w = block->weight;
    for (int64_t k = 0, length; k < block->group; k += length) {
        length = block->group - k < SEGMENT ? block->group - k : SEGMENT;
        for (int first = 0; first < 8 && first < rows; first++)
            dequantize_rows(w, words + bcq_words_to(w, block->group, k, 0), length, c, first, rows, stride,
                            out + k * (bfloat ? 2 : 4), bfloat);
    }
}

TARGET void bcq_avx2_dequantize(const bcq_block *block, int rows, int64_t stride, void *out, int bfloat) {
    constants c;
    char *to = out;
    for (int64_t g = 0; g < block->length / block->group; g++, to += block->group * (bfloat ? 2 : 4)) {
        const uint16_t *words = (const uint16_t *)((const char *)block->words + g * block->words_stride);
        fill_constants(block->weight, block->scales + g * block->scale_stride, rows, &c);
        if (bfloat)
            dequantize_group(block, words, &c, rows, stride, to, 1);
        else
            dequantize_group(block, words, &c, rows, stride, to, 0);
    }
}
#endif
