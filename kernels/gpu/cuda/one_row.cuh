// What the kernels between the products of one token share (normed.cu, gated.cu, attention.cu).
//
// They have THREADS threads in a block (256, if it is not defined). Numbers are rounded to the dtype
// of x wherever torch, which computes the same one operator after the other, rounds them.
#pragma once
#include "bit_planes.cuh"

#ifndef THREADS
#define THREADS 256
#endif
constexpr int WARPS_OF_BLOCK = THREADS / 32;

__device__ __forceinline__ float rounded(float value) {
  return activation_to_float(float_to_activation(value));
}

__device__ __forceinline__ void to_floats(float (&values)[8], uint4 four) {
  const unsigned words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = activation_to_float(words[i] & 0xFFFF);
    values[2 * i + 1] = activation_to_float(words[i] >> 16);
  }
}

// Eight numbers that lie side by side, the first at a multiple of 16 bytes.
__device__ __forceinline__ void load_eight(float (&values)[8], const unsigned short* from) {
  to_floats(values, *reinterpret_cast<const uint4*>(from));
}

__device__ __forceinline__ float larger(float a, float b) { return a > b ? a : b; }

// The sum over the block, the same in all threads; `places` is the block's own for this one sum.
__device__ __forceinline__ float sum_of_block(float value, float* places) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(~0u, value, mask);
  if (threadIdx.x % 32 == 0) places[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < WARPS_OF_BLOCK; ++w) sum += places[w];
  return sum;
}

__device__ __forceinline__ float largest_of_block(float value, float* places) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = larger(value, __shfl_xor_sync(~0u, value, mask));
  if (threadIdx.x % 32 == 0) places[threadIdx.x / 32] = value;
  __syncthreads();
  float largest = places[0];
#pragma unroll
  for (int w = 1; w < WARPS_OF_BLOCK; ++w) largest = larger(largest, places[w]);
  return largest;
}

// The planes of a chunk of 256 inputs, one in each of 256 threads.
__device__ __forceinline__ void write_planes_of_chunk(float value, unsigned* planes,
                                                      float* blocks) {
  __shared__ float inputs[THREADS];
  inputs[threadIdx.x] = value;
  __syncthreads();
  const int warp = threadIdx.x >> 5, half = warp >> 2;
  float values[4];
#pragma unroll
  for (int t = 0; t < 4; ++t)
    values[t] = inputs[half * 128 + first_input(threadIdx.x & 31) + 4 * t];
  write_bit_planes(values, warp & 3, half, blockIdx.x, planes, blocks);
}
