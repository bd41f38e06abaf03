// Sum and root mean square norm of one row: s = x + update, y = weight (s / sqrt(mean s^2 + epsilon)).
//
// Macros: BF16, X_PLANES. All numbers of a row are in that dtype. update: may be null. sum: where s
// goes, or null; neither x nor update, which all blocks read. y, or planes and blocks
// (bit_planes.cuh): where the result goes; the others are null. K: of the row, a multiple of 8.
//
// Each block sums the squares of the whole row, in the same order, and writes 256 of its numbers.
#include "one_row.cuh"

__device__ __forceinline__ float summed(const unsigned short* x, const unsigned short* update,
                                        int i) {
  const float value = activation_to_float(x[i]);
  return update == nullptr ? value : rounded(value + activation_to_float(update[i]));
}

extern "C" __global__ void __launch_bounds__(THREADS)
normed(const unsigned short* x, const unsigned short* update, const unsigned short* weight,
       unsigned short* sum, unsigned short* y, unsigned* planes, float* blocks, int K,
       float epsilon) {
  __shared__ float places[WARPS_OF_BLOCK];
  let_next_kernel_start();
  const int own = blockIdx.x * THREADS + threadIdx.x;
  const float factor = own < K ? activation_to_float(weight[own]) : 0.0f;  // of a weight: constant
  wait_for_previous_kernels();

  const float value = own < K ? summed(x, update, own) : 0.0f;
  float squares = 0.0f;
#pragma unroll 2
  for (int i = threadIdx.x * 8; i < K; i += THREADS * 8) {
    float values[8];
    load_eight(values, x + i);
    if (update != nullptr) {
      float more[8];
      load_eight(more, update + i);
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = rounded(values[j] + more[j]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) squares = fmaf(values[j], values[j], squares);
  }
  const float mean = sum_of_block(squares, places) / static_cast<float>(K);
  const float result = rounded(factor * rounded(value * (1.0f / sqrtf(mean + epsilon))));
  if (own < K && sum != nullptr) sum[own] = float_to_activation(value);
  if (own < K && y != nullptr) y[own] = float_to_activation(result);
  if (planes != nullptr) write_planes_of_chunk(own < K ? result : 0.0f, planes, blocks);
}
