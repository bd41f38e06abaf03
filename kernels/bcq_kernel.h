/* What the files of the kernels share: one table of functions for each instruction set. */
#ifndef QBENCH_BCQ_KERNEL_H
#define QBENCH_BCQ_KERNEL_H

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
#define ENTRIES 16  /* of a table: the sums +-x0 +-x1 +-x2 +-x3 */
#define SEGMENT 128 /* inputs that a 16-bit sum of the fast mode covers at most */
#define TILE_TABLES (BCQ_TILE / 4)
#define TILE_GROUPS (BCQ_TILE / 32)

/* A tile of the activations: entry c of table q of row m is sum_j (c_j ? x : -x)[4q + j]. The 16-bit entries are in units of
 * their segment's step, each table twice, since the fifth bit of a lane's index is one of the next index. */
typedef struct {
    union {
        float exact[BCQ_BATCH][TILE_TABLES][ENTRIES];
        int16_t fast[BCQ_BATCH][TILE_TABLES][2 * ENTRIES];
    };
    float sums[BCQ_BATCH][TILE_GROUPS];  /* of the activations of each group in the tile */
    float steps[BCQ_BATCH][TILE_GROUPS]; /* of the segments, each a group or a part of one */
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
    void (*tables)(const float *x, int64_t length, int64_t group, int m, int fast, bcq_tables *out);
    void (*exact)(const bcq_block *block, const bcq_tables *tables, int batch, float *sums); /* [batch][32] += */
    void (*fast)(const bcq_block *block, const bcq_tables *tables, int batch, float *sums);
    void (*dequantize)(const bcq_block *block, int rows, int64_t stride, void *out, int bfloat); /* stride in elements */
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

INLINE const char *bcq_shifts(const bcq_weight *weight, const char *scales) {
    return scales + (weight->uniform ? 1 : weight->bits) * BCQ_ROWS * bcq_bytes(weight->scale_type);
}

/* The unit of a segment's 16-bit tables. All sums of a segment's entries stay within 32767: an entry is at most the sum of
 * its four |x|, times 1/step, plus 1/2 from rounding, so a sum is at most 32740 + SEGMENT/4/2 = 32756, and the float32
 * rounding of step and of the entries adds less than 1. */
INLINE float bcq_step(float magnitude) { return magnitude * (1.0f / 32740.0f); }

/* 1/step, or 0 where that would not be finite: such small activations count as zeros. */
INLINE float bcq_per_step(float step) { return step > 1e-30f ? 1.0f / step : 0.0f; }

#endif
