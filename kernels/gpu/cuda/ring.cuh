// Weights on their way to the integer products (bit_serial.cu, byte_rows.cu): a warp has a ring of
// stages in shared memory, each with one chunk of 256 inputs of TILES tiles of 16 outputs.
//
// Macros: PLANES, UNIFORM, SHIFT, GROUP, META32, BF16 (layout.py), WARPS, TILES, STAGES.
#pragma once
#include "conversions.cuh"

constexpr int PARAMETERS = UNIFORM ? 2 : PLANES + SHIFT;
constexpr int PAIR_WORDS = META32 ? 2 : 1;  // 32-bit words of a parameter of the rows g and g + 8
constexpr int LANE_BYTES = PARAMETERS * PAIR_WORDS * 4;
constexpr int GROUP_BYTES = 8 * LANE_BYTES;
// Groups of a chunk of 256 inputs: its two blocks share one, have one each (GROUP 128 and its odd
// multiples), or have PARTS each.
constexpr int PARTS = GROUP == 32 ? 4 : GROUP == 64 ? 2 : 1;
constexpr int GROUPS = GROUP % 256 == 0 ? 1 : 2 * PARTS;
constexpr bool PER_CHANNEL = GROUP == 0;
constexpr float LIFT = 2535301200456458802993406410752.0f;  // 2^101
// A stage has of each tile the words [PLANES][32 lanes][16 bytes], then the groups' parameters.
constexpr int WORDS_BYTES = PLANES * 512;
constexpr int PARAMETERS_BYTES = PER_CHANNEL ? 0 : GROUPS * GROUP_BYTES;
constexpr int TILE_BYTES = WORDS_BYTES + PARAMETERS_BYTES;
constexpr int STAGE_BYTES = TILES * TILE_BYTES;

// The parameters of the rows g and g + 8, made ready: y += scale_x sum_p lifted_p v_p + flat X.
struct Parameters {
  float lifted[2][UNIFORM ? 1 : PLANES];
  float total[2];  // sum_p lifted_p; of uniform weights lifted
  float flat[2];
};

__device__ __forceinline__ Parameters make_ready(const unsigned (&words)[PARAMETERS * PAIR_WORDS]) {
  float values[PARAMETERS][2];
#pragma unroll
  for (int a = 0; a < PARAMETERS; ++a) {
    const float2 pair = META32 ? make_float2(__uint_as_float(words[a * PAIR_WORDS]),
                                             __uint_as_float(words[a * PAIR_WORDS + META32]))
                               : float16_pair_to_floats(words[a * PAIR_WORDS]);
    values[a][0] = pair.x;
    values[a][1] = pair.y;
  }
  Parameters result;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (UNIFORM) {
      result.lifted[h][0] = result.total[h] = values[0][h] * LIFT;
      result.flat[h] = -values[0][h] * values[1][h];
    } else {
      float total = 0.0f;
#pragma unroll
      for (int p = 0; p < PLANES; ++p) {
        result.lifted[h][p] = values[p][h] * (2.0f * LIFT);
        total += values[p][h];
      }
      result.total[h] = total * (2.0f * LIFT);
      result.flat[h] = (SHIFT ? values[PARAMETERS - 1][h] : 0.0f) - total;
    }
  }
  return result;
}

// Where byte `byte` of a chunk's parameters lies among those of its tile.
__device__ __forceinline__ unsigned parameter_offset(unsigned chunk, unsigned byte) {
  const unsigned input = chunk * 256 + byte / GROUP_BYTES * (256 / GROUPS);
  return input / (PER_CHANNEL ? 1 : GROUP) * GROUP_BYTES + byte % GROUP_BYTES;
}

// Starts copying what a chunk has of all tiles: a lane copies its own 16 bytes of each plane.
__device__ __forceinline__ void fetch(unsigned stage, const uint4* const (&words)[TILES],
                                      const char* const (&parameters)[TILES], int chunk, int lane) {
#pragma unroll
  for (int i = 0; i < TILES; ++i) {
    const unsigned to = stage + i * TILE_BYTES + lane * 16;
    const uint4* from = words[i] + static_cast<size_t>(chunk) * (PLANES * 32);
#pragma unroll
    for (int p = 0; p < PLANES; ++p) copy_async(to + p * 512, from + p * 32);
#pragma unroll
    for (int byte = 0; byte < PARAMETERS_BYTES; byte += 512)
      if (byte + 512 <= PARAMETERS_BYTES || byte + lane * 16 < PARAMETERS_BYTES)
        copy_async(to + WORDS_BYTES + byte,
                   parameters[i] + parameter_offset(chunk, byte + lane * 16));
  }
}

// The parameters that all inputs of a tile share (GROUP 0), for the rows g and g + 8.
__device__ __forceinline__ Parameters read_channel(const char* parameters, int g) {
  unsigned own[PARAMETERS * PAIR_WORDS];
  const unsigned* from = reinterpret_cast<const unsigned*>(parameters + g * LANE_BYTES);
#pragma unroll
  for (int a = 0; a < PARAMETERS * PAIR_WORDS; ++a) own[a] = from[a];
  return make_ready(own);
}

// The parameters of group `group` of the chunk in a stage's tile, for the rows g and g + 8.
__device__ __forceinline__ Parameters read_group(unsigned tile, int group, int g) {
  unsigned own[PARAMETERS * PAIR_WORDS];
  load_shared(own, tile + WORDS_BYTES + group * GROUP_BYTES + g * LANE_BYTES);
  return make_ready(own);
}

// y (rows, N) = the sums of the warps, in their order, + bias. Each warp has put its sums where its
// ring began, [row][TILES * 16] floats, when its last copies had arrived.
__device__ __forceinline__ void write_outputs(unsigned first_ring, const float* bias,
                                              unsigned short* y, int rows, int N) {
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * TILES * 16; i += 32 * WARPS) {
    const int row = i / (TILES * 16), column = i % (TILES * 16);
    const int output = blockIdx.x * TILES * 16 + column;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w)
      sum += load_shared_float(first_ring + w * (STAGES * STAGE_BYTES) + 4 * i);
    if (output < N) {
      if (bias != nullptr) sum += bias[output];
      y[static_cast<size_t>(row) * N + output] = float_to_activation(sum);
    }
  }
}
