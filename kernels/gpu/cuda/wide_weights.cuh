// Weights in registers, as wgmma's fragments have them, from the words and parameters in shared
// memory.
#pragma once
#include "wgmma.cuh"

#define ENTRIES (UNIFORM ? 2 : PLANES + SHIFT)  // of a group

// Parameters in float32 may be small where half precision has few bits left: they are scaled up.
#define WEIGHT_SCALE (META32 ? 64.f : 1.f)

// Parameters of a group, each twice in a word, for the outputs g (0) and g + 8 (1).
struct Parameters {
  u32 value[ENTRIES][2];  // binary: -alpha, shift; uniform: scale, -zero_point

  __device__ __forceinline__ void load(u32 address) {
#pragma unroll
    for (int i = 0; i < ENTRIES; ++i) {
      u32 pair;
      if (META32) {
        u32 two[2];
        load_shared(two, address + 8 * i);
        float scale = UNIFORM && i == 1 ? 1.f : WEIGHT_SCALE;
        pair = half_pair(__uint_as_float(two[0]) * scale, __uint_as_float(two[1]) * scale);
      } else {
        u32 one[1];
        load_shared(one, address + 4 * i);
        pair = one[0];
      }
      if (UNIFORM ? i == 1 : i < PLANES) pair ^= 0x80008000;
      value[i][0] = __byte_perm(pair, pair, 0x1010);
      value[i][1] = __byte_perm(pair, pair, 0x3232);
    }
  }
};

// The sum of terms FIRST .. LAST - 1, halves first, so that few roundings add up. Term p < PLANES is
// alpha_p where the bit of plane p is set, which turns the sign of -alpha_p, then comes the shift.
template <int FIRST, int LAST>
__device__ __forceinline__ u32 sum_of_terms(const u32 (&words)[PLANES][2], int output, int bit,
                                            const Parameters& parameters) {
  if constexpr (LAST - FIRST > 1) {
    constexpr int MIDDLE = (FIRST + LAST) / 2;
    return add2(sum_of_terms<FIRST, MIDDLE>(words, output, bit, parameters),
                sum_of_terms<MIDDLE, LAST>(words, output, bit, parameters));
  } else if constexpr (FIRST < PLANES) {
    return (words[FIRST][output] << (15 - bit) & 0x80008000) ^ parameters.value[FIRST][output];
  } else {
    return parameters.value[FIRST][output];
  }
}

// The weights of bits `bit` and `bit + 16` of the planes' words, as two halves.
__device__ __forceinline__ u32 weight_pair(const u32 (&words)[PLANES][2], int output, int bit,
                                           const Parameters& parameters) {
  if (UNIFORM) {
    u32 code = 0x64006400;  // 1024, whose last bits count ones
#pragma unroll
    for (int p = 0; p < PLANES; ++p) {
      u32 w = words[p][output];
      code |= (p < bit ? w >> (bit - p) : w << (p - bit)) & 0x00010001 << p;
    }
    u32 above = add2(add2(code, 0xE400E400), parameters.value[1][output]);  // - 1024, - zero_point
    return multiply2(above, parameters.value[0][output]);
  }
  return sum_of_terms<0, ENTRIES>(words, output, bit, parameters);
}
