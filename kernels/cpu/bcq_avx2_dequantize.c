/* Weights as numbers, with AVX2. */
#include "bcq_kernel.h"

#ifdef BCQ_X86
#include "bcq_avx2.h"

/* Eight weights of one row, whose bits are those of one byte for each plane, in the order of operations that defines
 * the format. */
LOOP __m256 weights_of(const bcq_weight *w, const float *scale, float shift, const uint8_t *bytes, int64_t next) {
    __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i code = _mm256_setzero_si256();
    __m256 value = _mm256_setzero_ps();
    for (int i = 0; i < w->bits; i++) {
        __m256i bits = _mm256_srlv_epi32(_mm256_set1_epi32(bytes[i * next]), place);
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

TARGET void bcq_avx2_dequantize(const bcq_block *block, int rows, int64_t stride, void *out, int bfloat) {
    const bcq_weight *w = block->weight;
    float scale[8][BCQ_ROWS], shift[BCQ_ROWS];
    for (int64_t g = 0; g < block->length / block->group; g++) {
        const uint16_t *words = (const uint16_t *)((const char *)block->words + g * block->words_stride);
        widen_scales(w, block->scales + g * block->scale_stride, scale, shift);
        for (int row = 0; row < rows; row++)
            for (int64_t k = 0; k < block->group; k += 8) {
                const uint16_t *from = words + bcq_words_to(w, block->group, k, 0);
                int64_t next = 2 * (w->bits > 1 ? words + bcq_words_to(w, block->group, k, 1) - from : 0);
                const uint8_t *bytes = (const uint8_t *)from + k % 16 / 8 * BCQ_ROWS + 4 * (row % 8) + row / 8;
                __m256 value = weights_of(w, &scale[0][row], shift[row], bytes, next);
                int64_t at = row * stride + g * block->group + k;
                if (bfloat)
                    _mm_storeu_si128((__m128i *)((uint16_t *)out + at), to_bfloats(value));
                else
                    _mm256_storeu_ps((float *)out + at, value);
            }
    }
}
#endif
