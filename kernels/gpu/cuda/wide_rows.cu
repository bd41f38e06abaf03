// y = x W^T for 17 rows of x and more, on Hopper's asynchronous matrix units (sm_90a).
//
// A weight is dequantized once, in registers, for ROWS rows of x. Per 16 inputs, a warpgroup has a
// fragment A of 64 outputs x 16 inputs in registers (half precision) and multiplies it with ROWS
// rows of x in shared memory: wgmma m64 nROWS k16, sums in float32. While the matrix units work on
// two fragments, the warps dequantize the next two.
//
//   OUT_GROUPS x K_GROUPS warpgroups   dequantize and multiply 64 outputs, every K_GROUPSth chunk
//   the last warpgroup                 warp 0 copies tiles of x, warp 1 words and parameters, into
//                                      rings of shared memory, by bulk copies that end on barriers
//
// A cluster is SHARE x SPLITS blocks: SHARE blocks with the same rows and neighbouring outputs each
// read a part of every tile of x and send it to all; SPLITS blocks divide the inputs of the same
// outputs, and each sums a part of the rows over all of them, in their order: no atomics.
//
// Macros beside the common ones: ROWS (32, 64, 128, 192, 256), OUT_GROUPS, K_GROUPS, SHARE, SPLITS,
// BLOCKS (of one multiprocessor), X_STAGES and W_STAGES (of the rings), CONSUMER_REGISTERS, and
// X_BF16: whether x and y are bfloat16. BF16 is 0, since weights and tiles of x are float16.
#include "wgmma.cuh"
#include "weights.cuh"
#include "wide_x.cuh"

// Parameters in float32 may be small where half precision has few bits left: they are scaled up.
#define WEIGHT_SCALE (META32 ? 64.f : 1.f)

#define CLUSTER (SHARE * SPLITS)
#define OUTPUTS (64 * OUT_GROUPS)
#define TILES (4 * OUT_GROUPS)
#define CONSUMERS (128 * OUT_GROUPS * K_GROUPS)
#define THREADS (CONSUMERS + 128)

#define SLOT_COPIES (GROUP > 128 ? TABLES : 1)  // up to 128, a chunk's groups are neighbours

#define X_BYTES (ROWS * 128)          // 64 inputs of a stage
#define WORD_BYTES (PLANES * 512)     // of a tile and chunk
#define SLOT_BYTES (TABLES * GROUP_BYTES)
#define W_BYTES (TILES * (WORD_BYTES + SLOT_BYTES))
#define PITCH (OUTPUTS + 4)           // floats of a row of sums: no two lanes in one bank
#define RING_BYTES (X_STAGES * X_BYTES + W_STAGES * W_BYTES)
#define SUM_BYTES (ROWS * PITCH * 4)
#define BARRIER_OFFSET (RING_BYTES > K_GROUPS * SUM_BYTES ? RING_BYTES : K_GROUPS * SUM_BYTES)

// ---- the rings

struct Ring {  // a stage and the parity of its turn
  u32 stage = 0, parity = 0;

  __device__ __forceinline__ void advance(u32 stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
  __device__ __forceinline__ void skip(u32 stages, u32 by) {
    for (stage += by; stage >= stages; stage -= stages) parity ^= 1;
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
  wait_for_previous_kernels();
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
                params + ((size_t)tile * groups + group) * GROUP_BYTES, bytes, full);
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

// Tables of the rows g and g + 8, from the parameters at this address in shared memory.
__device__ __forceinline__ void make_tables(u32 at, u32 (&tables)[2][TABLE_REGISTERS]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float numbers[PARAMETERS];
    load_row(at + r * PARAMETER_BYTES, numbers);
#pragma unroll
    for (int i = 0; i < PARAMETERS; ++i) numbers[i] *= UNIFORM && i == 1 ? 1.f : WEIGHT_SCALE;
    make_table(numbers, tables[r]);
  }
}

// Which of the warpgroups that divide the inputs: the same in a warp, and known to be.
__device__ __forceinline__ u32 group_of_inputs() {
  return K_GROUPS == 1 ? 0 : __shfl_sync(~0u, threadIdx.x / (128 * OUT_GROUPS), 0);
}

// A warpgroup's 64 outputs x ROWS rows, summed over its chunks.
__device__ __forceinline__ void multiply(float (&sums)[ROWS / 2], const Shared& shared,
                                         const Place& place) {
  int lane = threadIdx.x % 32, local = threadIdx.x / 32 % TILES;  // tile of 16 outputs of this warp
  u32 group = group_of_inputs();
  u32 word_offset = local * WORD_BYTES + lane * 16;
  u32 table_offset = TILES * WORD_BYTES + local * SLOT_BYTES + lane / 4 * PARAMETERS * PAIR_BYTES;
  u32 words[2][PLANES];  // of the rows g and g + 8
  u32 tables[2][2][TABLE_REGISTERS];  // of a step of 0 .. 3 and of the fourth after it, of g, g + 8
  u32 fragments[2][2][4];
  Ring x_ring, w_ring;
  if (K_GROUPS > 1) {
    w_ring.skip(W_STAGES, group);
    x_ring.skip(X_STAGES, 4 * group);
  }
  u32 read[2] = {~0u, ~0u};  // stages of x that the matrix units still read
  for (int chunk = place.begin + group; chunk < place.end; chunk += K_GROUPS) {
    u32 stage = shared.weights(w_ring.stage);
    barrier_wait(shared.w_full(w_ring.stage), w_ring.parity);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      u32 x_stages[2];
      u64 x[2];  // descriptors of 64 inputs each
#pragma unroll
      for (int p = 0; p < PLANES; ++p) {
        u32 both[2];
        load_shared(both, stage + word_offset + p * 512 + half * 8);
        words[0][p] = both[0], words[1][p] = both[1];
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {  // the steps k and k + 4 of 16 inputs
        int early = (8 * half + k) / TABLE_STEPS, late = (8 * half + k + 4) / TABLE_STEPS;
        if (k % TABLE_STEPS == 0 && (half == 0 || TABLES > 1)) {
          make_tables(stage + table_offset + early * GROUP_BYTES, tables[0]);
          if (late != early) make_tables(stage + table_offset + late * GROUP_BYTES, tables[1]);
        }
        u32(&a)[2][4] = fragments[k % 2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          u32 first[2], second[2];
          row_weights(words[r], k, tables[0][r], tables[late != early][r], first, second);
          a[0][r] = first[0], a[0][2 + r] = first[1];
          a[1][r] = second[0], a[1][2 + r] = second[1];
        }
        if (half == 1 && k == 3) {  // all words and parameters have been read
          __syncwarp();
          if (lane == 0) barrier_arrive(shared.w_empty(w_ring.stage));
        }
        if (k == 0) {
#pragma unroll
          for (int i = 0; i < 2; ++i, x_ring.advance(X_STAGES)) {
            barrier_wait(shared.x_full(x_ring.stage), x_ring.parity);
            x_stages[i] = x_ring.stage;
            x[i] = matrix_descriptor(shared.x(x_ring.stage));
          }
        }
        wgmma_fence();
        wgmma(sums, a[0], x[0] + 2 * k);
        wgmma(sums, a[1], x[1] + 2 * k);
        wgmma_commit();
        wgmma_wait<1>();  // what was issued before this has ended, and its fragments are free
        if (k == 0) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (read[i] != ~0u) release_x(shared, place, read[i]);
            read[i] = x_stages[i];
          }
        }
      }
    }
    w_ring.advance(W_STAGES);
    if (K_GROUPS > 1) {
      w_ring.skip(W_STAGES, K_GROUPS - 1);
      x_ring.skip(X_STAGES, 4 * (K_GROUPS - 1));
    }
  }
  wgmma_wait<0>();
}

// ---- the end: sums -> shared memory -> the sum over SPLITS blocks -> y

__device__ __forceinline__ void store_sums(const float (&sums)[ROWS / 2], u32 base) {
  int lane = threadIdx.x % 32, output = threadIdx.x / 32 % TILES * 16 + lane / 4;
  base += threadIdx.x / (128 * OUT_GROUPS) * SUM_BYTES;
#pragma unroll
  for (int i = 0; i < ROWS / 2; ++i) {
    int row = i / 4 * 8 + lane % 4 * 2 + (i & 1);
    u32 at = base + (row * PITCH + output + 8 * (i >> 1 & 1)) * 4;
    store_shared(at, sums[i]);
  }
}

__device__ __forceinline__ u16 rounded(float v) {
  return X_BF16 ? float_to_bfloat16(v) : float_to_float16(v);
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
    for (int s = 0; s < SPLITS * K_GROUPS; ++s) {
      u32 address = at + s % K_GROUPS * SUM_BYTES;
      float4 v = load_peer(peer_address(address, place.rank_of_split(s / K_GROUPS)));
      sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
    }
    u16 result[4];
    float scale = unscale[row] / WEIGHT_SCALE;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      bool inside = output + j < outputs;
      result[j] = rounded(sum[j] * scale + (bias && inside ? bias[output + j] : 0.f));
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
    let_next_kernel_start();
    threads_sync<CONSUMERS>();  // no warpgroup reads the rings any more
    store_sums(sums, shared.base);
    if (CLUSTER > 1) cluster_sync();
    else threads_sync<CONSUMERS>();
    wait_for_previous_kernels();  // for unscale
    write_y(shared, place, unscale, bias, y, rows, outputs);
    if (CLUSTER > 1) cluster_sync();  // a block's sums stay until the others have read them
  }
}
