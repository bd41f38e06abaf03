// One row: y = silu(gate) up, where `both` has the K numbers of gate and then those of up.
//
// Macros: BF16, X_PLANES. The arguments are those of normed.cu.
#include "one_row.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
gated(const unsigned short* both, unsigned short* y, unsigned* planes, float* blocks, int K) {
  let_next_kernel_start();
  wait_for_previous_kernels();
  const int own = blockIdx.x * THREADS + threadIdx.x;
  float value = 0.0f;
  if (own < K) {
    const float gate = activation_to_float(both[own]), up = activation_to_float(both[K + own]);
    value = rounded(rounded(gate / (1.0f + expf(-gate))) * up);
    if (y != nullptr) y[own] = float_to_activation(value);
  }
  if (planes != nullptr) write_planes_of_chunk(value, planes, blocks);
}
