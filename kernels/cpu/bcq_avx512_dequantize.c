/* Weights as numbers, with AVX-512: bits of 32 inputs are masks that assemble codes, and codes choose levels. */
#include "bcq_kernel.h"

#ifdef BCQ_X86
#include "bcq_avx512.h"

/* Bits 0..31 of a lane: input k of the first words and input 16 + k of the second, for one plane of a row. */
LOOP void join_words(const bcq_weight *w, const uint16_t *words, int64_t length, uint32_t (*out)[BCQ_ROWS]) {
    for (int64_t k = 0; k < length; k += 32, words += 2 * bcq_stride(w))
        for (int i = 0; i < w->bits; i++, out++) {
            __m512i first = _mm512_load_si512(words + i * BCQ_ROWS);
            __m512i second = _mm512_load_si512(words + bcq_stride(w) + i * BCQ_ROWS);
            __m512i low = _mm512_mask_blend_epi16(0xaaaaaaaa, first, _mm512_slli_epi32(second, 16));
            __m512i high = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(first, 16), second);
            _mm512_storeu_si512(*out, low);
            _mm512_storeu_si512(*out + 16, high);
        }
}

/* The weights that the 16 codes from `first` on mean, in the order of operations that defines the format, up to the
 * shift of a binary weight. Bit planes-1-i of a code is that of plane i. */
LOOP __m512 levels_of(const bcq_weight *w, const float *scale, float shift, int first, const int planes) {
    __m512i code = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                    _mm512_set1_epi32(first));
    if (w->uniform)
        return _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(shift)), _mm512_set1_ps(*scale));
    __m512 value = _mm512_setzero_ps();
#pragma GCC unroll 5
    for (int i = 0; i < planes; i++) { /* the sign is turned where the bit is 0 */
        __m512i sign = _mm512_slli_epi32(_mm512_xor_si512(code, _mm512_set1_epi32(-1)), 31 - (planes - 1 - i));
        sign = _mm512_and_si512(sign, _mm512_set1_epi32(INT32_MIN));
        __m512 part =
            _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(_mm512_set1_ps(scale[i * BCQ_ROWS])), sign));
        value = i ? _mm512_add_ps(value, part) : part;
    }
    return value;
}

LOOP __m512 add_shift(const bcq_weight *w, __m512 value, float shift) {
    return w->uniform || w->shift_type == BCQ_NONE ? value : _mm512_add_ps(value, _mm512_set1_ps(shift));
}

LOOP __m256i to_bfloats(__m512 value) { /* to nearest, ties to even; a NaN stays one */
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(1 << 22));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

/* The codes of 32 inputs of the first `planes` planes, in 16 bits each. */
LOOP __m512i codes_of(uint32_t (*words)[BCQ_ROWS], int row, const int planes) {
    __m512i code = _mm512_maskz_set1_epi16(words[0][row], (short)(1 << (planes - 1)));
#pragma GCC unroll 8
    for (int i = 1; i < planes; i++)
        code = _mm512_mask_add_epi16(code, words[i][row], code, _mm512_set1_epi16((short)(1 << (planes - 1 - i))));
    return code;
}

/* Up to 5 planes: 32 levels lie in registers, and codes choose among them. */
LOOP void dequantize_few(const bcq_weight *w, float (*scale)[BCQ_ROWS], const float *shift, uint32_t (*words)[BCQ_ROWS],
                         int rows, int64_t length, int64_t stride, void *out, const int bfloat, const int planes) {
    for (int row = 0; row < rows; row++) {
        __m512 low = add_shift(w, levels_of(w, &scale[0][row], shift[row], 0, planes), shift[row]), high = low;
        if (planes > 4)
            high = add_shift(w, levels_of(w, &scale[0][row], shift[row], 16, planes), shift[row]);
        __m512i levels = _mm512_inserti64x4(_mm512_castsi256_si512(to_bfloats(low)), to_bfloats(high), 1);
        for (int64_t k = 0; k < length / 32; k++) {
            __m512i code = codes_of(words + k * planes, row, planes);
            if (bfloat) {
                _mm512_storeu_si512((uint16_t *)out + row * stride + 32 * k, _mm512_permutexvar_epi16(code, levels));
                continue;
            }
            __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(code));
            __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(code, 1));
            _mm512_storeu_ps((float *)out + row * stride + 32 * k, _mm512_permutex2var_ps(low, first, high));
            _mm512_storeu_ps((float *)out + row * stride + 32 * k + 16, _mm512_permutex2var_ps(low, second, high));
        }
    }
}

/* More planes: levels for the first 5, to which the others are added; codes of a uniform weight become numbers. */
LOOP void dequantize_many(const bcq_weight *w, float (*scale)[BCQ_ROWS], const float *shift,
                          uint32_t (*words)[BCQ_ROWS], int rows, int64_t length, int64_t stride, void *out,
                          const int bfloat, const int planes) {
    for (int row = 0; row < rows; row++) {
        __m512 low = levels_of(w, &scale[0][row], shift[row], 0, 5),
               high = levels_of(w, &scale[0][row], shift[row], 16, 5);
        for (int64_t k = 0; k < length / 32; k++) {
            uint32_t (*word)[BCQ_ROWS] = words + k * planes;
            __m512i code = w->uniform ? codes_of(word, row, planes) : codes_of(word, row, 5);
            for (int half = 0; half < 2; half++) {
                __m512i index =
                    _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64(code, 1) : _mm512_castsi512_si256(code));
                __m512 value = _mm512_permutex2var_ps(low, index, high);
                if (w->uniform)
                    value = _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(index), _mm512_set1_ps(shift[row])),
                                          _mm512_set1_ps(scale[0][row]));
#pragma GCC unroll 3
                for (int i = 5; i < planes; i++) {
                    if (w->uniform)
                        break;
                    __m512i a = _mm512_castps_si512(_mm512_set1_ps(scale[i][row]));
                    __mmask16 turned = (__mmask16) ~(word[i][row] >> 16 * half);
                    a = _mm512_mask_xor_epi32(a, turned, a, _mm512_set1_epi32(INT32_MIN));
                    value = _mm512_add_ps(value, _mm512_castsi512_ps(a));
                }
                value = add_shift(w, value, shift[row]);
                int64_t at = row * stride + 32 * k + 16 * half;
                if (bfloat)
                    _mm256_storeu_si256((__m256i *)((uint16_t *)out + at), to_bfloats(value));
                else
                    _mm512_storeu_ps((float *)out + at, value);
            }
        }
    }
}

LOOP void widen_scales(const bcq_weight *w, const char *scales, float (*scale)[BCQ_ROWS], float *shift) {
    const char *shifts = bcq_shifts(w, scales);
    for (int half = 0; half < 2; half++) {
        for (int i = 0; i < (w->uniform ? 1 : w->bits); i++)
            _mm512_storeu_ps(scale[i] + 16 * half,
                             load_scales(scales + i * BCQ_ROWS * bcq_bytes(w->scale_type), half, w->scale_type));
        __m512 constant = _mm512_set1_ps(w->uniform ? bcq_middle(w) : 0.0f);
        _mm512_storeu_ps(shift + 16 * half,
                         w->shift_type == BCQ_NONE ? constant : load_scales(shifts, half, w->shift_type));
    }
}

typedef void (*row_kernel)(const bcq_weight *, float (*)[BCQ_ROWS], const float *, uint32_t (*)[BCQ_ROWS], int, int64_t,
                           int64_t, void *);
#define ROW_KERNEL(name, how, planes, bfloat)                                                                          \
    TARGET static void name(const bcq_weight *w, float (*scale)[BCQ_ROWS], const float *shift,                         \
                            uint32_t (*words)[BCQ_ROWS], int rows, int64_t length, int64_t stride, void *out) {        \
        how(w, scale, shift, words, rows, length, stride, out, bfloat, planes);                                        \
    }
#define ROW_KERNELS(planes, how)                                                                                       \
    ROW_KERNEL(floats_##planes, how, planes, 0) ROW_KERNEL(bfloats_##planes, how, planes, 1)
ROW_KERNELS(1, dequantize_few)
ROW_KERNELS(2, dequantize_few)
ROW_KERNELS(3, dequantize_few)
ROW_KERNELS(4, dequantize_few)
ROW_KERNELS(5, dequantize_few)
ROW_KERNELS(6, dequantize_many)
ROW_KERNELS(7, dequantize_many)
ROW_KERNELS(8, dequantize_many)
static const row_kernel row_kernels[2][8] = {
    {floats_1, floats_2, floats_3, floats_4, floats_5, floats_6, floats_7, floats_8},
    {bfloats_1, bfloats_2, bfloats_3, bfloats_4, bfloats_5, bfloats_6, bfloats_7, bfloats_8}};

TARGET void bcq_avx512_dequantize(const bcq_block *block, int rows, int64_t stride, void *out, int bfloat) {
    const bcq_weight *w = block->weight;
    float scale[8][BCQ_ROWS], shift[BCQ_ROWS];
    uint32_t words[BCQ_TILE / 32 * 8][BCQ_ROWS];
    for (int64_t g = 0; g < block->length / block->group; g++) {
        const char *from = (const char *)block->words + g * block->words_stride;
        join_words(w, (const uint16_t *)from, block->group, words);
        widen_scales(w, block->scales + g * block->scale_stride, scale, shift);
        char *to = (char *)out + g * block->group * (bfloat ? 2 : 4);
        row_kernels[bfloat][w->bits - 1](w, scale, shift, words, rows, block->group, stride, to);
    }
}
#endif
