/* What the files for AVX2 share. */
#ifndef QBENCH_BCQ_AVX2_H
#define QBENCH_BCQ_AVX2_H

#include <immintrin.h>

#include "bcq_kernel.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LOOP INLINE TARGET

void bcq_avx2_dequantize(const bcq_block *block, int rows, int64_t stride, void *out, int bfloat);

LOOP __m256 load_scales(const char *from, int first, int32_t type) { /* of rows first .. first + 7 */
    if (type == BCQ_F32)
        return _mm256_loadu_ps((const float *)from + first);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)from + first)));
}

#endif
