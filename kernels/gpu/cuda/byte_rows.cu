// y (M, N) = x W^T + bias for up to 16 rows of x, on the matrix units' products of bytes.
//
// As in bit_serial.cu W is planes of bits c_p and parameters, and x is integers q with a scale for
// each block of 128 inputs, here as two signed bytes (bytes.cu): q = 256 high + low. Of the bits of
// a plane one AND makes four bytes 0 or 128, in the odd steps of 16 inputs, or 0 or 64, in the even
// ones, whose q are doubled: so one shift does for two steps. Four rows of x fill the eight columns
// of a matrix instruction. Over at most 128 inputs
//
//   n = 2^21 + sum_i 128 c_pi high_i,   m = 2^21 + sum_i 128 c_pi low_i
//   v_p = (256 (n - 2^21) + (m - 2^21)) / 128 = sum_i c_pi q_i, exactly
//
// and the rest is the algebra of bit_serial.cu; the 128 is in the scales of x. The 2^21 keeps n and
// m positive and below 2^23, so that their bits, read as floats, are n 2^-149 and m 2^-149; it is
// taken off all planes at once.
//
// Lane 4 g + t sums for the rows g and g + 8 of a tile and the row t of each four rows of x.
//
// Macros: PLANES, UNIFORM, SHIFT, GROUP, META32, BF16 (layout.py), TILES, STAGES and WARPS as in
// bit_serial.cu, and FOURS: how many times four rows of x.
#include "ring.cuh"

constexpr int PART_PRODUCTS = 4 / PARTS;  // instructions of a block that share parameters
constexpr unsigned EVEN = 0x40404040, ODD = 0x80808080;
constexpr unsigned BIAS = 1u << 21;
constexpr float BIAS_AS_FLOAT = 2.9387358770557188e-39f;  // 2^21 2^-149

// Where there are registers for it: both blocks of a chunk in one go, and a block of x is read
// while the one before it is multiplied.
constexpr bool EARLY = PLANES * TILES <= 8 - 2 * FOURS;
constexpr int HALVES = EARLY ? 2 : 1;

// What a lane has of a block of four rows of x.
struct Block {
  unsigned bytes[4][2];  // of four matrix instructions
  float scale;
  float sums[PARTS];
};

// block: 2 chunk + half. row: of x, this lane's.
__device__ __forceinline__ Block read_block(const uint4* x_bytes, const float* x_blocks, int four,
                                            int block, int blocks, int lane) {
  Block result;
  const uint4* from = x_bytes + (static_cast<size_t>(four) * blocks + block) * 64 + lane;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 pair = from[32 * i];
    result.bytes[2 * i][0] = pair.x;
    result.bytes[2 * i][1] = pair.y;
    result.bytes[2 * i + 1][0] = pair.z;
    result.bytes[2 * i + 1][1] = pair.w;
  }
  const float* own = x_blocks + (static_cast<size_t>(4 * four + (lane & 3)) * blocks + block) * 8;
  if (PARTS == 1) {
    const float2 head = *reinterpret_cast<const float2*>(own);
    result.scale = head.x;
    result.sums[0] = head.y;
  } else {
    result.scale = own[0];
#pragma unroll
    for (int part = 0; part < PARTS; ++part) result.sums[part] = own[(PARTS == 2 ? 2 : 4) + part];
  }
  return result;
}

// Adds to `sums` [four][row g, row g + 8] what the inputs of part `part` of a block give.
__device__ __forceinline__ void multiply_part(float (&sums)[FOURS][2],
                                              const unsigned (&rows)[PLANES][2],
                                              const Block (&x)[FOURS],
                                              const Parameters& parameters, int part) {
  float counts[FOURS][4];  // (row g, high), (row g, low), (row g + 8, high), (row g + 8, low)
#pragma unroll
  for (int f = 0; f < FOURS; ++f)
#pragma unroll
    for (int k = 0; k < 4; ++k)  // the planes' factors in sum, times the bias
      counts[f][k] = -BIAS_AS_FLOAT * (UNIFORM ? (1 << PLANES) - 1 : parameters.total[k / 2]);
#pragma unroll
  for (int p = 0; p < PLANES; ++p) {
    int n[FOURS][4];
#pragma unroll
    for (int f = 0; f < FOURS; ++f)
#pragma unroll
      for (int k = 0; k < 4; ++k) n[f][k] = BIAS;
#pragma unroll
    for (int i = part * PART_PRODUCTS; i < (part + 1) * PART_PRODUCTS; ++i) {
      const unsigned row_g = rows[p][0] << (6 - 2 * i), row_g8 = rows[p][1] << (6 - 2 * i);
      const unsigned a[4] = {row_g & EVEN, row_g8 & EVEN, row_g & ODD, row_g8 & ODD};
#pragma unroll
      for (int f = 0; f < FOURS; ++f) multiply_bytes(n[f], a, x[f].bytes[i][0], x[f].bytes[i][1]);
    }
#pragma unroll
    for (int f = 0; f < FOURS; ++f)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float factor = UNIFORM ? float(1 << p) : parameters.lifted[k / 2][UNIFORM ? 0 : p];
        counts[f][k] = fmaf(factor, __int_as_float(n[f][k]), counts[f][k]);
      }
  }
#pragma unroll
  for (int f = 0; f < FOURS; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float v = fmaf(256.0f, counts[f][2 * h], counts[f][2 * h + 1]);
      if (UNIFORM) v *= parameters.lifted[h][0];
      sums[f][h] = fmaf(x[f].scale, v, fmaf(parameters.flat[h], x[f].sums[part], sums[f][h]));
    }
}

// Warps that a multiprocessor shall hold. Without a number the compiler may aim at more, and spill.
constexpr int RESIDENT = !EARLY ? 0 : FOURS == 1 ? 20 : 16;

extern "C" __global__ void __launch_bounds__(32 * WARPS, RESIDENT / WARPS)
byte_rows(const uint4* words, const char* parameters, const uint4* x_bytes, const float* x_blocks,
          const float* bias, unsigned short* y, int N, int chunks, int groups, int M) {
  let_next_kernel_start();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int last_tile = (N - 1) / 16, blocks = 2 * chunks;

  // The weights are on their way before the kernel that prepares x has ended.
  const uint4* tile_words[TILES];
  const char* tile_parameters[TILES];
  Parameters channel[TILES];
#pragma unroll
  for (int i = 0; i < TILES; ++i) {
    const size_t tile = min(static_cast<int>(blockIdx.x) * TILES + i, last_tile);
    tile_words[i] = words + tile * chunks * (PLANES * 32) + lane;
    tile_parameters[i] = parameters + tile * groups * GROUP_BYTES;
  }
  const unsigned first_ring = shared_memory(), ring = first_ring + warp * (STAGES * STAGE_BYTES);
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    const int chunk = warp + s * WARPS;
    if (chunk < chunks) fetch(ring + s * STAGE_BYTES, tile_words, tile_parameters, chunk, lane);
    commit_copies();
  }
#pragma unroll
  for (int i = 0; PER_CHANNEL && i < TILES; ++i) channel[i] = read_channel(tile_parameters[i], g);
  wait_for_previous_kernels();

  float sums[TILES][FOURS][2] = {};
  Block x[2][FOURS];  // the two blocks of a chunk
#pragma unroll
  for (int f = 0; EARLY && f < FOURS; ++f)
    x[0][f] = read_block(x_bytes, x_blocks, f, 2 * min(warp, chunks - 1), blocks, lane);

  unsigned current = ring, filled = ring + (STAGES - 1) * STAGE_BYTES;
  for (int chunk = warp; chunk < chunks; chunk += WARPS) {
    wait_for_copies<STAGES - 2>();
    __syncwarp();  // all lanes' copies have arrived, and nobody reads the stage that is filled now
    const int ahead = chunk + (STAGES - 1) * WARPS;
    if (ahead < chunks) fetch(filled, tile_words, tile_parameters, ahead, lane);
    commit_copies();

    unsigned own[TILES][PLANES][2 * HALVES];  // (row g, row g + 8), of one block or of both
    Parameters shared[TILES];
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      if (PER_CHANNEL) shared[i] = channel[i];
      else if (GROUPS == 1) shared[i] = read_group(current + i * TILE_BYTES, 0, g);
    }
#pragma unroll HALVES
    for (int half = 0; half < 2; ++half) {
      const int next = half == 0 ? 2 * chunk + 1 : 2 * min(chunk + WARPS, chunks - 1);
#pragma unroll
      for (int f = 0; f < FOURS; ++f)
        x[EARLY ? 1 - half : 0][f] =
            read_block(x_bytes, x_blocks, f, EARLY ? next : 2 * chunk + half, blocks, lane);
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
        const unsigned tile = current + i * TILE_BYTES;
        unsigned rows[PLANES][2];
#pragma unroll
        for (int p = 0; p < PLANES; ++p) {
          if (!EARLY || half == 0) load_shared(own[i][p], tile + p * 512 + lane * 16 + half * 8);
          rows[p][0] = own[i][p][EARLY ? 2 * half : 0];
          rows[p][1] = own[i][p][EARLY ? 2 * half + 1 : 1];
        }
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
          if (GROUPS > 1) shared[i] = read_group(tile, half * PARTS + part, g);
          multiply_part(sums[i], rows, x[EARLY ? half : 0], shared[i], part);
        }
      }
    }
    filled = current;
    current = current + STAGE_BYTES == ring + STAGES * STAGE_BYTES ? ring : current + STAGE_BYTES;
  }

  // The warps in their order, of which each has left its stages.
#pragma unroll
  for (int f = 0; f < FOURS; ++f)
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        store_shared(ring + 4 * (((4 * f + t) * TILES + i) * 16 + 8 * h + g), sums[i][f][h]);
  write_outputs(first_ring, bias, y, M, N);
}
