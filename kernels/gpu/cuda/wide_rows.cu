// y = x W^T for 33 rows of x and more, on Hopper's asynchronous matrix units (sm_90a).
//
// A weight is dequantized once, in registers, for ROWS rows of x. Per 16 inputs, a warpgroup has a
// fragment A of 64 outputs x 16 inputs in registers (half precision) and multiplies it with ROWS
// rows of x in shared memory: wgmma m64 nROWS k16, sums in float32. While the matrix units work on
// STEPS fragments, the warps dequantize the next.
//
//   warpgroups 0 .. OUT_GROUPS-1   each 64 outputs: dequantize, multiply
//   the last warpgroup             warp 0 copies tiles of x, warp 1 words and parameters, into
//                                  rings of shared memory, by bulk copies that end on barriers
//
// A cluster is SHARE x SPLITS blocks: SHARE blocks with the same rows and neighbouring outputs each
// read a part of every tile of x and send it to all; SPLITS blocks divide the inputs of the same
// outputs, and each sums a part of the rows over all of them, in their order: no atomics.
//
// Macros beside the common ones: ROWS (64, 128, 192, 256), OUT_GROUPS, SHARE, SPLITS, BLOCKS (of
// one multiprocessor), X_STAGES and W_STAGES (of the rings), CONSUMER_REGISTERS.
#include "wgmma.cuh"

#define CLUSTER (SHARE * SPLITS)
#define OUTPUTS (64 * OUT_GROUPS)
#define TILES (4 * OUT_GROUPS)
#define STEPS 4  // of 16 inputs: fragments that are dequantized, and multiplied, together
#define CONSUMERS (128 * OUT_GROUPS)
#define THREADS (CONSUMERS + 128)

#define ENTRIES (UNIFORM ? 2 : PLANES + SHIFT)
#define PARAMETER_BYTES (8 * ENTRIES * (META32 ? 8 : 4))  // of a tile and group
#define SLOTS (GROUP == 0 || GROUP % 256 == 0 ? 1 : GROUP < 128 ? 256 / GROUP : 2)  // of a chunk
#define SLOT_COPIES (GROUP > 128 ? SLOTS : 1)  // up to 128, a chunk's groups are neighbours

#define X_BYTES (ROWS * 128)          // 64 inputs of a stage
#define WORD_BYTES (PLANES * 512)     // of a tile and chunk
#define SLOT_BYTES (SLOTS * PARAMETER_BYTES)
#define W_BYTES (TILES * (WORD_BYTES + SLOT_BYTES))
#define PITCH (OUTPUTS + 4)           // floats of a row of sums: no two lanes in one bank
#define RING_BYTES (X_STAGES * X_BYTES + W_STAGES * W_BYTES)
#define SUM_BYTES (ROWS * PITCH * 4)
#define BARRIER_OFFSET (RING_BYTES > SUM_BYTES ? RING_BYTES : SUM_BYTES)

// ---- x -> tiles [64 inputs][rows][128 bytes], half precision, in the places wgmma wants
//
// Rows of bfloat16 are scaled by a power of two that brings their largest to 2^14..2^15: what
// half precision does not hold of them is 2^-39 of the largest. y is scaled back.
//
// A word of a plane gives lane t the inputs 4 t + {0, 2} and 4 t + {1, 3} of 16 as two pairs; a
// fragment has 2 t + {0, 1} and 2 t + 8 + {0, 1}. So of 16 inputs the even ones go first.

__device__ __forceinline__ float widened(u16 v) {
  return BF16 ? __uint_as_float((u32)v << 16) : half_to_float(v);
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

// The scale of a row: a power of two, from the largest exponent among its inputs.
__device__ __forceinline__ float row_scale(const u16* row, int columns, int aligned) {
  __shared__ u32 largest[32];
  u32 top = 0;  // bits of the largest magnitude, in both halves of a word
  for (int i = threadIdx.x; i * 16 < columns; i += blockDim.x) {
    u32 v[8];
    load_inputs(v, row, i * 16, columns, aligned);
#pragma unroll
    for (int j = 0; j < 8; ++j) top = max(top, max(v[j] & 0x7FFF, v[j] >> 16 & 0x7FFF));
  }
  top = __reduce_max_sync(~0u, top);
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = top;
  __syncthreads();
  for (u32 i = 0; i < blockDim.x / 32; ++i) top = max(top, largest[i]);
  int exponent = (int)(top >> 7) - 127;  // of bfloat16
  exponent = min(max(exponent, -100), 100);
  return __uint_as_float((u32)(127 + 14 - exponent) << 23);
}

// One block per row. tiles: uint4 [4 chunks][padded_rows][8]; unscale: float [rows].
extern "C" __global__ void prepare(const u16* x, uint4* tiles, float* unscale, int columns,
                                   int chunks, int padded_rows, int aligned) {
  wait_for_previous_kernel();
  start_next_kernel();
  int r = blockIdx.x;
  const u16* row = x + (size_t)r * columns;
  float scale = BF16 ? row_scale(row, columns, aligned) : 1.f;
  if (threadIdx.x == 0) unscale[r] = 1.f / scale;
  for (int i = threadIdx.x; i < chunks * 16; i += blockDim.x) {
    u32 v[8], even[4], odd[4];
    load_inputs(v, row, i * 16, columns, aligned);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      u32 p = v[2 * j], q = v[2 * j + 1];
      even[j] = half_pair(widened(p) * scale, widened(q) * scale);
      odd[j] = half_pair(widened(p >> 16) * scale, widened(q >> 16) * scale);
    }
    uint4* line = tiles + ((size_t)(i / 4) * padded_rows + r) * 8;
    int piece = 2 * (i % 4), swizzle = r & 7;
    line[piece ^ swizzle] = make_uint4(even[0], even[1], even[2], even[3]);
    line[(piece + 1) ^ swizzle] = make_uint4(odd[0], odd[1], odd[2], odd[3]);
  }
}

// ---- weights in registers

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
        u32 low, high;
        shared_pair(low, high, address + 8 * i);
        float scale = UNIFORM && i == 1 ? 1.f : WEIGHT_SCALE;
        pair = half_pair(__uint_as_float(low) * scale, __uint_as_float(high) * scale);
      } else {
        pair = shared_word(address + 4 * i);
      }
      if (UNIFORM ? i == 1 : i < PLANES) pair ^= 0x80008000;
      value[i][0] = __byte_perm(pair, pair, 0x1010);
      value[i][1] = __byte_perm(pair, pair, 0x3232);
    }
  }
};

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
  u32 sum = 0;
#pragma unroll
  for (int p = 0; p < PLANES; ++p) {  // a set bit turns the sign of -alpha
    u32 term = (words[p][output] << (15 - bit) & 0x80008000) ^ parameters.value[p][output];
    sum = p ? add2(sum, term) : SHIFT ? add2(parameters.value[ENTRIES - 1][output], term) : term;
  }
  return sum;
}

// ---- the rings

struct Ring {  // a stage and the parity of its turn
  u32 stage = 0, parity = 0;

  __device__ __forceinline__ void advance(u32 stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Addresses in shared memory, from a base that is a multiple of 1024.
struct Shared {
  u32 base;
  __device__ __forceinline__ u32 x(u32 stage) const { return base + stage * X_BYTES; }
  __device__ __forceinline__ u32 weights(u32 stage) const {
    return base + X_STAGES * X_BYTES + stage * W_BYTES;
  }
  __device__ __forceinline__ u32 barrier(u32 i) const { return base + BARRIER_OFFSET + 8 * i; }
  __device__ __forceinline__ u32 x_full(u32 stage) const { return barrier(stage); }
  __device__ __forceinline__ u32 x_empty(u32 stage) const { return barrier(X_STAGES + stage); }
  __device__ __forceinline__ u32 w_full(u32 stage) const { return barrier(2 * X_STAGES + stage); }
  __device__ __forceinline__ u32 w_empty(u32 stage) const {
    return barrier(2 * X_STAGES + W_STAGES + stage);
  }
};

// Which part of the product this block computes.
struct Place {
  int share, split, outputs, row, begin, end;  // first output and row; chunks begin .. end - 1

  __device__ __forceinline__ Place(int chunks) {
    int rank = cluster_rank();
    share = rank % SHARE;
    split = rank / SHARE;
    outputs = (blockIdx.x / CLUSTER * SHARE + share) * OUTPUTS;
    row = blockIdx.y * ROWS;
    begin = (int)((long long)chunks * split / SPLITS);
    end = (int)((long long)chunks * (split + 1) / SPLITS);
  }
  __device__ __forceinline__ u32 rank_of_share(int i) const { return split * SHARE + i; }
  __device__ __forceinline__ u32 rank_of_split(int i) const { return i * SHARE + share; }
};

// One thread copies all tiles of x; each block of a SHARE its part of the rows, to all of them.
__device__ __forceinline__ void copy_x(const Shared& shared, const Place& place, const char* x,
                                       int padded_rows) {
  wait_for_previous_kernel();
  constexpr u32 part = X_BYTES / SHARE;
  Ring ring;
  for (int tile = 4 * place.begin; tile < 4 * place.end; ++tile, ring.advance(X_STAGES)) {
    barrier_wait(shared.x_empty(ring.stage), ring.parity ^ 1);
    barrier_expect(shared.x_full(ring.stage), X_BYTES);
    const char* from = x + ((size_t)tile * padded_rows + place.row) * 128 + place.share * part;
    u32 to = shared.x(ring.stage) + place.share * part;
    if (SHARE == 1)
      copy_bulk(to, from, part, shared.x_full(ring.stage));
    else
      copy_multicast(to, from, part, shared.x_full(ring.stage),
                     (unsigned short)(((1 << SHARE) - 1) << place.rank_of_share(0)));
  }
}

// One warp copies the words and parameters of chunks of 256 inputs, a lane one run of bytes.
__device__ __forceinline__ void copy_weights(const Shared& shared, const Place& place,
                                             const char* words, const char* params, int tiles,
                                             int chunks, int groups) {
  int lane = threadIdx.x % 32;
  Ring ring;
  for (int chunk = place.begin; chunk < place.end; ++chunk, ring.advance(W_STAGES)) {
    u32 full = shared.w_full(ring.stage);
    barrier_wait(shared.w_empty(ring.stage), ring.parity ^ 1);
    if (lane == 0) barrier_expect(full, W_BYTES);
    __syncwarp();
    u32 stage = shared.weights(ring.stage);
    for (int i = lane; i < TILES * (1 + SLOT_COPIES); i += 32) {
      int local = i % TILES, copy = i / TILES - 1;
      int tile = min(place.outputs / 16 + local, tiles - 1);  // beyond the last: not stored
      if (copy < 0) {
        copy_bulk(stage + local * WORD_BYTES, words + ((size_t)tile * chunks + chunk) * WORD_BYTES,
                  WORD_BYTES, full);
        continue;
      }
      constexpr u32 bytes = SLOT_BYTES / SLOT_COPIES;
      int group = GROUP ? (chunk * 256 + copy * 128) / (GROUP ? GROUP : 1) : 0;
      copy_bulk(stage + TILES * WORD_BYTES + local * SLOT_BYTES + copy * bytes,
                params + ((size_t)tile * groups + group) * PARAMETER_BYTES, bytes, full);
    }
  }
}

// Tells the blocks that fill it that this warp has read a stage of x.
__device__ __forceinline__ void release_x(const Shared& shared, const Place& place, u32 stage) {
  int lane = threadIdx.x % 32;
  if (SHARE == 1) {
    if (lane == 0) barrier_arrive(shared.x_empty(stage));
  } else if (lane < SHARE) {
    barrier_arrive_peer(shared.x_empty(stage), place.rank_of_share(lane));
  }
}

// A warpgroup's 64 outputs x ROWS rows, summed over this block's chunks.
__device__ __forceinline__ void multiply(float (&sums)[ROWS / 2], const Shared& shared,
                                         const Place& place) {
  int lane = threadIdx.x % 32, local = threadIdx.x / 32;  // tile of 16 outputs of this warp
  u32 word_offset = local * WORD_BYTES + lane * 16;
  u32 parameter_offset =
      TILES * WORD_BYTES + local * SLOT_BYTES + lane / 4 * (PARAMETER_BYTES / 8);
  u32 words[PLANES][2], fragments[2][STEPS][4];
  Parameters parameters;
  Ring x_ring, w_ring;
  u32 previous = ~0u;  // the stage of x that the matrix units still read
  for (int chunk = place.begin; chunk < place.end; ++chunk, w_ring.advance(W_STAGES)) {
    u32 stage = shared.weights(w_ring.stage);
    barrier_wait(shared.w_full(w_ring.stage), w_ring.parity);
#pragma unroll
    for (int first = 0; first < 16; first += STEPS) {
      u32(&a)[STEPS][4] = fragments[first / STEPS % 2];
#pragma unroll
      for (int i = 0; i < STEPS; ++i) {
        int step = first + i, slot = step * SLOTS / 16;
        if (step % 8 == 0) {
#pragma unroll
          for (int p = 0; p < PLANES; ++p)
            shared_pair(words[p][0], words[p][1], stage + word_offset + p * 512 + step);
        }
        if (step == 0 || (step - 1) * SLOTS / 16 != slot)
          parameters.load(stage + parameter_offset + slot * PARAMETER_BYTES);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          a[i][j] = weight_pair(words, j & 1, step % 8 + j / 2 * 8, parameters);
      }
      if (first + STEPS == 16) {
        __syncwarp();
        if (lane == 0) barrier_arrive(shared.w_empty(w_ring.stage));
      }
      if (first % 4 == 0) barrier_wait(shared.x_full(x_ring.stage), x_ring.parity);
      u64 b = matrix_descriptor(shared.x(x_ring.stage)) + first % 4 * 2;
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < STEPS; ++i) wgmma(sums, a[i], b + 2 * i);
      wgmma_commit();
      wgmma_wait<1>();  // what was issued before this has ended, and its fragments are free
      if (first % 4 == 0 && previous != ~0u) release_x(shared, place, previous);
      if ((first + STEPS) % 4 == 0) {
        previous = x_ring.stage;
        x_ring.advance(X_STAGES);
      }
    }
  }
  wgmma_wait<0>();
}

// ---- the end: sums -> shared memory -> the sum over SPLITS blocks -> y

__device__ __forceinline__ void store_sums(const float (&sums)[ROWS / 2], u32 base) {
  int lane = threadIdx.x % 32, output = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < ROWS / 2; ++i) {
    int row = i / 4 * 8 + lane % 4 * 2 + (i & 1);
    u32 at = base + (row * PITCH + output + 8 * (i >> 1 & 1)) * 4;
    store_shared(at, sums[i]);
  }
}

__device__ __forceinline__ void write_y(const Shared& shared, const Place& place,
                                        const float* unscale, const float* bias, u16* y, int rows,
                                        int outputs) {
  constexpr int quads = OUTPUTS / 4, part = ROWS / SPLITS;
  for (int i = threadIdx.x; i < part * quads; i += CONSUMERS) {
    int local = place.split * part + i / quads, row = place.row + local;
    int output = place.outputs + i % quads * 4;
    if (row >= rows || output >= outputs) continue;
    u32 at = shared.base + (local * PITCH + i % quads * 4) * 4;
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int s = 0; s < SPLITS; ++s) {
      float4 v = load_peer(peer_address(at, place.rank_of_split(s)));
      sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
    }
    u16 result[4];
    float scale = unscale[row] / WEIGHT_SCALE;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      bool inside = output + j < outputs;
      result[j] = narrowed<BF16>(sum[j] * scale + (bias && inside ? bias[output + j] : 0.f));
    }
    u16* to = y + (size_t)row * outputs + output;
    if (outputs % 4 == 0) {
      *(uint2*)to = make_uint2(result[0] | (u32)result[1] << 16, result[2] | (u32)result[3] << 16);
    } else {
      for (int j = 0; j < 4 && output + j < outputs; ++j) to[j] = result[j];
    }
  }
}

// x: what prepare() wrote. words, params: see layout.py. bias: float [outputs] or null.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) __cluster_dims__(CLUSTER, 1, 1)
    multiply_wide(const char* x, const float* unscale, const char* words, const char* params,
                  const float* bias, u16* y, int rows, int outputs, int chunks, int groups,
                  int padded_rows) {
  Shared shared{(shared_memory() + 1023) & ~1023u};
  Place place(chunks);
  if (threadIdx.x == 0) {
    for (int i = 0; i < X_STAGES; ++i) {
      barrier_init(shared.x_full(i), 1);
      barrier_init(shared.x_empty(i), 4 * OUT_GROUPS * SHARE);
    }
    for (int i = 0; i < W_STAGES; ++i) {
      barrier_init(shared.w_full(i), 1);
      barrier_init(shared.w_empty(i), 4 * OUT_GROUPS);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (CLUSTER > 1) cluster_sync();
  if (threadIdx.x >= CONSUMERS) {
    registers_down<24>();
    int warp = threadIdx.x / 32 - CONSUMERS / 32;
    if (warp == 0 && threadIdx.x % 32 == 0) copy_x(shared, place, x, padded_rows);
    if (warp == 1)
      copy_weights(shared, place, words, params, (outputs + 15) / 16, chunks, groups);
    __syncwarp();
    if (CLUSTER > 1) cluster_sync();
    if (CLUSTER > 1) cluster_sync();
  } else {
    registers_up<CONSUMER_REGISTERS>();
    float sums[ROWS / 2];
#pragma unroll
    for (int i = 0; i < ROWS / 2; ++i) sums[i] = 0.f;
    multiply(sums, shared, place);
    start_next_kernel();
    threads_sync<CONSUMERS>();  // no warpgroup reads the rings any more
    store_sums(sums, shared.base);
    if (CLUSTER > 1) cluster_sync();
    else threads_sync<CONSUMERS>();
    wait_for_previous_kernel();  // for unscale
    write_y(shared, place, unscale, bias, y, rows, outputs);
    if (CLUSTER > 1) cluster_sync();  // a block's sums stay until the others have read them
  }
}
