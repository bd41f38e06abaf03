// x -> tiles [64 inputs][rows][128 bytes], half precision, in the places wgmma wants
//
// Rows of bfloat16 are scaled by a power of two that brings their largest to 2^14..2^15: what
// half precision does not hold of them is 2^-39 of the largest. y is scaled back.
//
// A word of a plane gives lane t the inputs 4 t + {0, 1} and 4 t + {2, 3} of 16 as two pairs; a
// fragment has 2 t + {0, 1} and 2 t + 8 + {0, 1}. So of 16 inputs every second pair goes first.
#pragma once
#include "wgmma.cuh"

__device__ __forceinline__ float widened(u32 v) {
  return X_BF16 ? bfloat16_to_float((u16)v) : float16_to_float((u16)v);
}

// 16 inputs from `column` on, zero beyond the end, as 8 words of two.
__device__ __forceinline__ void load_inputs(u32 (&v)[8], const u16* row, int column, int columns,
                                            int aligned) {
  if (aligned && column + 16 <= columns) {
    uint4 low = *(const uint4*)(row + column), high = *(const uint4*)(row + column + 8);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    int at = column + 2 * i;
    u32 low = at < columns ? row[at] : 0, high = at + 1 < columns ? row[at + 1] : 0;
    v[i] = low | high << 16;
  }
}

// What a thread holds of a row at a time: 16 inputs at every blockDim.x-th place, from `first` on.
#define HELD 4
typedef u32 Held[HELD][8];

__device__ __forceinline__ void load_held(Held& held, int first, const u16* row, int columns,
                                          int aligned) {
#pragma unroll
  for (int j = 0; j < HELD; ++j)
    load_inputs(held[j], row, (first + j * (int)blockDim.x) * 16, columns, aligned);
}

// The power of two that a row is scaled with; largest: the bits of its largest magnitude.
__device__ __forceinline__ float scale_of(u32 largest) {
  int exponent = (int)(largest >> 7) - 127;  // of bfloat16
  exponent = min(max(exponent, -100), 100);
  return __uint_as_float((u32)(127 + 14 - exponent) << 23);
}

// The largest of all threads' numbers.
__device__ __forceinline__ u32 largest_of_block(u32 mine) {
  __shared__ u32 largest[32];
  mine = __reduce_max_sync(~0u, mine);
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = mine;
  __syncthreads();
  for (u32 i = 0; i < blockDim.x / 32; ++i) mine = max(mine, largest[i]);
  return mine;
}

// 16 inputs of item i, scaled and ordered, into their line. Two neighbouring lanes write their
// items one after the other, a half each, so that sectors of 32 bytes are written whole.
__device__ __forceinline__ void store_tile(uint4* tiles, int i, int items, const u32 (&v)[8],
                                           float scale, int r, int padded_rows) {
  u32 pairs[8], other[4];
  int upper = threadIdx.x & 1;
#pragma unroll
  for (int j = 0; j < 8; ++j)
    pairs[j] = half_pair(widened(v[j]) * scale, widened(v[j] >> 16) * scale);
#pragma unroll
  for (int j = 0; j < 4; ++j)
    other[j] = __shfl_xor_sync(~0u, upper ? pairs[2 * j] : pairs[2 * j + 1], 1);
  if (i >= items) return;
  uint4* line = tiles + ((size_t)(i / 4) * padded_rows + r) * 8;
  int lower_item = i % 4 - upper, swizzle = r & 7;
  uint4 own = upper ? make_uint4(pairs[1], pairs[3], pairs[5], pairs[7])
                    : make_uint4(pairs[0], pairs[2], pairs[4], pairs[6]);
  uint4 given = make_uint4(other[0], other[1], other[2], other[3]);
  line[(2 * lower_item + upper) ^ swizzle] = upper ? given : own;
  line[(2 * lower_item + 2 + upper) ^ swizzle] = upper ? own : given;
}

// One block per row. tiles: uint4 [4 chunks][padded_rows][8]; unscale: float [rows].
extern "C" __global__ void prepare(const u16* x, uint4* tiles, float* unscale, int columns,
                                   int chunks, int padded_rows, int aligned) {
  wait_for_previous_kernels();
  let_next_kernel_start();
  int r = blockIdx.x, items = chunks * 16, stride = HELD * blockDim.x;
  const u16* row = x + (size_t)r * columns;
  Held held;
  float scale = 1.f;
  if (X_BF16) {
    u32 largest = 0;
    for (int first = 0; first < items; first += stride) {
      load_held(held, first + threadIdx.x, row, columns, aligned);
#pragma unroll
      for (int j = 0; j < HELD * 8; ++j) {
        u32 v = held[j / 8][j % 8];
        largest = max(largest, max(v & 0x7FFF, v >> 16 & 0x7FFF));
      }
    }
    scale = scale_of(largest_of_block(largest));
  }
  if (threadIdx.x == 0) unscale[r] = 1.f / scale;
  for (int first = 0; first < items; first += stride) {
    int i = first + threadIdx.x;
    if (!X_BF16 || items > stride) load_held(held, i, row, columns, aligned);
#pragma unroll
    for (int j = 0; j < HELD; ++j)
      store_tile(tiles, i + j * blockDim.x, items, held[j], scale, r, padded_rows);
  }
}
