// x (rows, K) -> bit planes of its blocks of 128 inputs (bit_planes.cuh), for bit_serial.cu.
//
// Macros: BF16 (0: x is float16), X_PLANES (8 or 16). Inputs from K on are zero.
#include "bit_planes.cuh"

extern "C" __global__ void __launch_bounds__(256)
bit_planes(const unsigned short* x, unsigned* planes, float* blocks, int K) {
  let_next_kernel_start();
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int half = warp >> 2;  // which block of the chunk
  const int chunk = blockIdx.x, chunks = gridDim.x, row = blockIdx.y;
  const int first = chunk * 256 + half * 128 + first_input(lane);
  wait_for_previous_kernels();

  float values[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const int input = first + 4 * t;
    values[t] = input < K ? activation_to_float(x[static_cast<size_t>(row) * K + input]) : 0.0f;
  }
  write_bit_planes(values, warp & 3, half, static_cast<size_t>(row) * chunks + chunk, planes,
                   blocks);
}
