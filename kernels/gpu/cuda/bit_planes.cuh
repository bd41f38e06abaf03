// A block of 128 inputs of x -> integers, and these -> bit planes, for bit_serial.cu.
//
//   x_i ~ scale q_i,   scale = max |x| / LARGEST over the block,   q_i rounded, ties to even
//   q_i = sum_j 2^j b_ij - 2^X_PLANES b_i,top   (two's complement: the top plane counts negative)
//
// Macros: X_PLANES (8 or 16), and what conversions.cuh wants.
//
// planes [row][chunk of 256][32 lanes][block of the chunk][X_PLANES / 8] words: lane 4 g + t has of
//   the planes g and g + 8 the bits i = 0 .. 31 of input 16 (i & 7) + 4 t + (i >> 3) of the block.
// blocks: see blocks.cuh.
//
// A warp makes the words of one t, with one input of each lane at a time; all four warps of a block
// compute its scale and need not meet.
#pragma once
#include "blocks.cuh"

constexpr int LARGEST = X_PLANES == 16 ? 32512 : 127;

// The first of the four inputs of its block that a lane has; the others are 4, 8 and 12 after it.
__device__ __forceinline__ int first_input(int lane) { return 16 * (lane & 7) + (lane >> 3); }

// values: of the block's inputs first_input + 4 t. chunk: of all rows of x, one after the other.
__device__ __forceinline__ void write_bit_planes(const float (&values)[4], int own_t, int half,
                                                 size_t chunk, unsigned* planes, float* blocks) {
  const int lane = threadIdx.x & 31;
  const float maximum = largest_magnitude(values);
  const float inverse = LARGEST / maximum;

  int q[4];
  int sum = 0;
  int own = 0;
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    q[t] = __float2int_rn(values[t] * inverse);
    sum += q[t];
    own = t == own_t ? q[t] : own;
  }

  unsigned words[X_PLANES / 8] = {};
#pragma unroll
  for (int j = 0; j < X_PLANES; ++j) {
    const unsigned word = __ballot_sync(~0u, own >> j & 1);
    words[j / 8] = lane == j % 8 ? word : words[j / 8];
  }
  if (lane < 8) {  // lane g has the planes g and g + 8
    const size_t place = chunk * 32 + 4 * lane + own_t;
#pragma unroll
    for (int i = 0; i < X_PLANES / 8; ++i)
      planes[(place * 2 + half) * (X_PLANES / 8) + i] = words[i];
  }

  if (own_t == 0) {
    // Bits 0, 3 and 4 of the lane number go over a quarter, bit 1 over quarters of a half.
    for (int bit : {1, 8, 16}) sum += __shfl_xor_sync(~0u, sum, bit);
    const int sum64 = sum + __shfl_xor_sync(~0u, sum, 2);
    const int sum128 = sum64 + __shfl_xor_sync(~0u, sum64, 4);
    const float scale = maximum / LARGEST;
    float* block = blocks + (chunk * 2 + half) * 8;
    if (lane == 0) {
      block[0] = scale * BLOCK_LIFT;
      block[1] = scale * sum128;
    }
    if (lane == 0 || lane == 4) block[2 + lane / 4] = scale * sum64;
    if (lane < 8 && lane % 2 == 0) block[4 + lane / 2] = scale * sum;
  }
}
