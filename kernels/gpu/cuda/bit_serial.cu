// y (ROWS, N) = x W^T + bias for few rows of x, on the matrix units' products of bits.
//
// W is planes of bits c_p and parameters (layout.py), x is planes of bits b_j and a scale for each
// block of 128 inputs (bit_planes.cu). So all products are popcounts. For a row of W, a row of x, and
// the inputs i that share parameters and a scale
//
//   n_pj = sum_i c_pi b_ij       one matrix instruction: 16 rows of W, 8 planes j of x
//   v_p  = sum_j 2^j n_pj - 2^X_PLANES n_p,top            = sum_i c_pi q_i, exactly
//   X    = scale_x sum_i q_i                              = sum_i x_i
//   y   += scale_x sum_p 2 alpha_p v_p + (shift - sum_p alpha_p) X          binary
//   y   += scale_x scale sum_p 2^p v_p - scale zero_point X                 uniform
//
// Lane 4 g + t of a warp counts for the rows g and g + 8 and the planes 2 t, 2 t + 1 and these + 8.
// It works with the places 1, 2, 256, 512 of these four (the last one of lane t = 3 negative), and
// 4^t, the place of the lane, is multiplied once at the end.
//
// No count is converted: the bits of an integer n < 2^23, read as a float, are the subnormal number
// n 2^-149, and fma takes subnormal numbers exactly at full speed. In return the parameters are
// lifted by 2^101 and the scales of x by 2^48 (bit_planes.cu): both stay far from the limits.
//
// Macros: PLANES, UNIFORM, SHIFT, GROUP, META32, BF16 (layout.py), X_PLANES (8 or 16), and
//   ROWS   rows of x
//   WARPS  of a thread block; warp w takes the chunks w, w + WARPS, ..
//   TILES  of 16 outputs, of a thread block; each warp has all
//   STAGES chunks of a warp in shared memory, of which all but one are on their way
#include "ring.cuh"

constexpr int X_WORDS = X_PLANES / 8;  // words of a lane and block
constexpr int PLACES = 2 * X_WORDS;    // counts of a lane and row of W

// What a lane has of a chunk of one row of x.
struct Inputs {
  unsigned words[2][X_WORDS];
  float scale[2];
  float sums[2][PARTS];  // X in the lanes t = 0; zero in the others, which are added at the end
};

// chunk: of all rows of x, one after the other.
__device__ __forceinline__ Inputs read_inputs(const unsigned* x_planes, const float* x_blocks,
                                              size_t chunk, int lane) {
  Inputs result;
  const unsigned* words = x_planes + (chunk * 32 + lane) * (2 * X_WORDS);
  if (X_WORDS == 2) {
    const uint4 four = *reinterpret_cast<const uint4*>(words);
    result.words[0][0] = four.x;
    result.words[0][X_WORDS - 1] = four.y;
    result.words[1][0] = four.z;
    result.words[1][X_WORDS - 1] = four.w;
  } else {
    const uint2 two = *reinterpret_cast<const uint2*>(words);
    result.words[0][0] = two.x;
    result.words[1][0] = two.y;
  }
  const bool adds = (lane & 3) == 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float* block = x_blocks + (chunk * 2 + half) * 8;
    const float2 head = *reinterpret_cast<const float2*>(block);
    result.scale[half] = head.x;
    if (PARTS == 1) result.sums[half][0] = adds ? head.y : 0.0f;
#pragma unroll
    for (int part = 0; PARTS > 1 && part < PARTS; ++part)
      result.sums[half][part] = adds ? block[(PARTS == 2 ? 2 : 4) + part] : 0.0f;
  }
  return result;
}

// Bit i of a word belongs to step i & 7 of 16 inputs: those of one of the PARTS of a block.
__device__ __forceinline__ unsigned part_of_word(unsigned word, int part) {
  if (PARTS == 1) return word;
  return word & (PARTS == 2 ? 0x0F0F0F0Fu << 4 * part : 0x03030303u << 2 * part);
}

// sum_p lifted_p v_p of the rows g and g + 8 over inputs that share parameters, this lane's part.
// rows: the words of the row g, then of the row g + 8. top: the factor of the last place.
__device__ __forceinline__ float2 multiply_group(const unsigned (&rows)[PLANES][2],
                                                 const unsigned (&x)[X_WORDS],
                                                 const Parameters& parameters, float top) {
  float counts[2][PLACES] = {};
#pragma unroll
  for (int p = 0; p < PLANES; ++p) {
#pragma unroll
    for (int i = 0; i < X_WORDS; ++i) {
      unsigned n[4];
      multiply_bits(n, rows[p][0], rows[p][1], x[i]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float& count = counts[k / 2][2 * i + k % 2];
        const float factor = UNIFORM ? float(1 << p) : parameters.lifted[k / 2][UNIFORM ? 0 : p];
        count = fmaf(factor, __uint_as_float(n[k]), count);
      }
    }
  }
  float sums[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = counts[h][0];
    if (X_WORDS == 2) {
      sum = fmaf(2.0f, counts[h][1], sum);
      sum = fmaf(256.0f, counts[h][PLACES - 2], sum);
    }
    sum = fmaf(top, counts[h][PLACES - 1], sum);
    sums[h] = UNIFORM ? sum * parameters.lifted[h][0] : sum;
  }
  return make_float2(sums[0], sums[1]);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
bit_serial(const uint4* words, const char* parameters, const unsigned* x_planes,
           const float* x_blocks, const float* bias, unsigned short* y, int N, int chunks,
           int groups) {
  let_next_kernel_start();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int last_tile = (N - 1) / 16;

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

  float sums[ROWS][TILES][2] = {};
  const float top = (X_WORDS == 2 ? 512.0f : 2.0f) * (t == 3 ? -1.0f : 1.0f);
  Inputs next[ROWS];
#pragma unroll
  for (int m = 0; m < ROWS; ++m)
    next[m] = read_inputs(x_planes, x_blocks,
                          static_cast<size_t>(m) * chunks + min(warp, chunks - 1), lane);

  unsigned current = ring, filled = ring + (STAGES - 1) * STAGE_BYTES;
  for (int chunk = warp; chunk < chunks; chunk += WARPS) {
    wait_for_copies<STAGES - 2>();
    __syncwarp();  // all lanes' copies have arrived, and nobody reads the stage that is filled now
    const int ahead = chunk + (STAGES - 1) * WARPS;
    if (ahead < chunks) fetch(filled, tile_words, tile_parameters, ahead, lane);
    commit_copies();

    Inputs inputs[ROWS];
#pragma unroll
    for (int m = 0; m < ROWS; ++m) {
      inputs[m] = next[m];
      const size_t row = static_cast<size_t>(m) * chunks;
      next[m] = read_inputs(x_planes, x_blocks, row + min(chunk + WARPS, chunks - 1), lane);
    }
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      const unsigned tile = current + i * TILE_BYTES;
      unsigned own[PLANES][4];
#pragma unroll
      for (int p = 0; p < PLANES; ++p) load_shared(own[p], tile + p * 512 + lane * 16);
      Parameters shared = channel[i];
#pragma unroll
      for (int part = 0; part < 2 * PARTS; ++part) {
        const int half = part / PARTS;
        if (!PER_CHANNEL && part % (2 * PARTS / GROUPS) == 0) shared = read_group(tile, part, g);
        unsigned rows[PLANES][2];
#pragma unroll
        for (int p = 0; p < PLANES; ++p) {
          rows[p][0] = own[p][2 * half];
          rows[p][1] = own[p][2 * half + 1];
        }
#pragma unroll
        for (int m = 0; m < ROWS; ++m) {
          unsigned x[X_WORDS];
#pragma unroll
          for (int j = 0; j < X_WORDS; ++j)
            x[j] = part_of_word(inputs[m].words[half][j], part % PARTS);
          const float2 v = multiply_group(rows, x, shared, top);
          const float scale = inputs[m].scale[half];
          const float sum = inputs[m].sums[half][part % PARTS];
          sums[m][i][0] = fmaf(scale, v.x, fmaf(shared.flat[0], sum, sums[m][i][0]));
          sums[m][i][1] = fmaf(scale, v.y, fmaf(shared.flat[1], sum, sums[m][i][1]));
        }
      }
    }
    filled = current;
    current = current + STAGE_BYTES == ring + STAGES * STAGE_BYTES ? ring : current + STAGE_BYTES;
  }

  // The four lanes of a row; then the warps in their order, of which each has left its stages.
  const float place = 1 << 2 * t;
#pragma unroll
  for (int m = 0; m < ROWS; ++m)
#pragma unroll
    for (int i = 0; i < TILES; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float sum = sums[m][i][h] * place;
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (t == 0) store_shared(ring + 4 * ((m * TILES + i) * 16 + 8 * h + g), sum);
      }
  write_outputs(first_ring, bias, y, ROWS, N);
}
