/* What the files of the kernels share: one table of functions for each instruction set. */
#ifndef QBENCH_BCQ_KERNEL_H
#define QBENCH_BCQ_KERNEL_H

#include <float.h>
#include <stddef.h>
#include <string.h>

#include "bcq.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the layout of the words is little-endian"
#endif

#if defined(__x86_64__)
#define BCQ_X86 1
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define SEGMENT BCQ_SEGMENT
#define TILE_SEGMENTS (BCQ_TILE / 32)
#define STRIP 4 /* blocks of a strip at most */

/* A product is a sum of lookups: entry c of the table of a few inputs x is sum_j (c_j ? x_j : -x_j), and a word holds
 * the indices. Entries are integers in units of their segment's step, in one or two 16-bit parts, entry = 2^SPLIT high
 * + low with |low| <= 2^(SPLIT-1); the integers are added without rounding, so a sum's bits depend on no order.
 *
 * A word has three indices, of 6, 5 and 5 bits, so 128 inputs take 24 lookups. With L = sum |x| over the segment and
 * step = L / 32740 for one part, that over 2^SPLIT for two:
 *   no sum of high parts leaves 16 bits: |entry| <= (sum of its |x|) / step + 1/2, so the sum is at most
 *     32740 + 24 (1/2 + 1/2) = 32764, and the float32 rounding of step and entries adds less than 1;
 *   nor does one of low parts: 24 * 2^10 = 24576;
 *   rounding the entries moves a sum by at most 24 * step/2: 3.7e-4 L with one part (fast), 1.8e-7 L with two (exact);
 *     computing them in float32, at most 8 roundings each, by 4.8e-7 L. (A float32 sum of 128 numbers: by 7.6e-6 L.) */
#define LOOKUPS 128 /* entries for 16 inputs: 64 + 32 + 32 */
#define SPLIT 11
#define STEPS 32740.0f

typedef struct {
    int16_t entries[BCQ_TILE / 16][2][LOOKUPS]; /* high, low; tables of inputs 0..5, 6..10, 11..15 */
    float sums[TILE_SEGMENTS];                  /* of the inputs of each group in the tile */
    float steps[TILE_SEGMENTS];
} bcq_tables;

/* Where a block of a tile lies: one group after the other. */
typedef struct {
    const bcq_weight *weight;
    const uint16_t *words;
    const char *scales;                 /* of the first group */
    int64_t words_stride, scale_stride; /* bytes from one group to the next */
    int64_t length, group;              /* inputs in the tile, and in a group or the part of it in the tile */
} bcq_block;

typedef struct {
    /* of `length` inputs, in groups of `group` or one part of a group */
    void (*tables)(const float *x, int64_t length, int64_t group, int parts, bcq_tables *out);
    /* sums[block][m][32] += the product of each block of a strip and the m-th of `batch` tables */
    void (*product)(const bcq_block *strip, const bcq_tables *tables, int batch, int parts, float *sums);
    /* out[row][0..length-1], `stride` elements from row to row */
    void (*dequantize)(const bcq_block *block, int rows, int64_t stride, void *out, int bfloat);
    uint64_t (*read)(const char *memory, int64_t bytes);
} bcq_functions;

extern const bcq_functions bcq_portable;
#ifdef BCQ_X86
extern const bcq_functions bcq_avx2, bcq_avx512;
#endif

INLINE int bcq_bytes(int32_t type) { return type == BCQ_F32 ? 4 : type == BCQ_NONE ? 0 : 2; }

INLINE float bcq_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bcq_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float bcq_from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
    if (magnitude >= 0x7c00)
        return bcq_from_bits(sign | 0x7f800000 | magnitude << 13);
    float value = bcq_from_bits(magnitude << 13) * 0x1p112f; /* the exponent's bias is 15, not 127 */
    return bcq_from_bits(bcq_to_bits(value) | sign);
}

INLINE uint16_t bcq_to_bfloat(float value) { /* to nearest, ties to even; a NaN stays one */
    uint32_t bits = bcq_to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE float bcq_load(const void *from, int64_t index, int32_t type) {
    if (type == BCQ_F32)
        return ((const float *)from)[index];
    uint16_t half = ((const uint16_t *)from)[index];
    return type == BCQ_F16 ? bcq_from_half(half) : bcq_from_bits((uint32_t)half << 16);
}

/* 2^(b-2-i): what plane i of a uniform weight counts, in scales. */
INLINE float bcq_place(const bcq_weight *weight, int plane) {
    return bcq_from_bits((uint32_t)(127 + weight->bits - 2 - plane) << 23);
}

/* h = (2^b - 1)/2, and the zero point where none is stored. */
INLINE float bcq_half_range(const bcq_weight *weight) { return (float)((1 << weight->bits) - 1) * 0.5f; }
INLINE float bcq_middle(const bcq_weight *weight) { return (float)(1 << (weight->bits - 1)); }

/* Blocks of a strip; words from 16 inputs of a block to its next 16, but with AVX2. */
INLINE int bcq_together(const bcq_weight *weight) {
    return weight->isa == BCQ_AVX2 ? 1 : weight->bits == 1 ? 4 : weight->bits == 2 ? 2 : 1;
}
INLINE int64_t bcq_stride(const bcq_weight *weight) { return bcq_together(weight) * weight->bits * BCQ_ROWS; }

/* Words from the start of a group, or the part of it in a tile, of `length` inputs to those of input k. */
INLINE int64_t bcq_words_to(const bcq_weight *weight, int64_t length, int64_t k, int plane) {
    if (weight->isa != BCQ_AVX2)
        return k / 16 * bcq_stride(weight) + plane * BCQ_ROWS;
    int64_t first = k / SEGMENT * SEGMENT, rest = length - first < SEGMENT ? length - first : SEGMENT;
    return (first * weight->bits + plane * rest + (k - first)) / 16 * BCQ_ROWS;
}

INLINE const char *bcq_shifts(const bcq_weight *weight, const char *scales) {
    return scales + (weight->uniform ? 1 : weight->bits) * BCQ_ROWS * bcq_bytes(weight->scale_type);
}

/* Not smaller than what 1/step is finite for: entries of smaller activations have fewer digits. */
INLINE float bcq_least_step(float step) { return step < FLT_MIN ? FLT_MIN : step; /* NaN stays */ }

INLINE float bcq_step(float magnitude, int parts) {
    return bcq_least_step(magnitude * (parts == 2 ? 1.0f / (STEPS * (1 << SPLIT)) : 1.0f / STEPS));
}

#endif
