/* What the files for AVX-512 share. */
#ifndef QBENCH_BCQ_AVX512_H
#define QBENCH_BCQ_AVX512_H

#include <immintrin.h>

#include "bcq_kernel.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma,f16c")))
#define LOOP INLINE TARGET

void bcq_avx512_dequantize(const bcq_block *block, int rows, int64_t stride, void *out, int bfloat);

LOOP __m512 load_scales(const char *from, int half, int32_t type) { /* rows 16*half .. 16*half + 15 */
    if (type == BCQ_F32)
        return _mm512_loadu_ps((const float *)from + 16 * half);
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from + half));
}

#endif
