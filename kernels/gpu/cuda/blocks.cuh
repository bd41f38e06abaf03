// Blocks of 128 inputs of x as integers q ~ x / scale: what bit_planes.cu and bytes.cu share.
//
// blocks [row][chunk of 256][2][8] floats: scale 2^48, then the sums of scale q over the block, its
// two halves of 64 inputs, its four quarters of 32; and one float that is not used.
#pragma once
#include "conversions.cuh"

// Blocks whose largest number is smaller become zero; above it 1 / scale is finite.
constexpr float SMALLEST = 1e-30f;
// The products' sums are 2^-48 of what they mean; see bit_serial.cu.
constexpr float BLOCK_LIFT = 281474976710656.0f;

// The largest magnitude of a block of which each lane has four numbers. As bits, magnitudes are
// ordered like numbers, infinity and NaN at the end: these reach the scale, and so every output.
__device__ __forceinline__ float largest_magnitude(const float (&values)[4]) {
  unsigned largest = __float_as_uint(SMALLEST);
#pragma unroll
  for (int j = 0; j < 4; ++j) largest = max(largest, __float_as_uint(fabsf(values[j])));
  return __uint_as_float(__reduce_max_sync(~0u, largest));
}
