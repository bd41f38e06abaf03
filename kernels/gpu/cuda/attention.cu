// Attention of one new token, one block for each head: rotary embedding, cache, softmax, sum.
//
// qkv: the head's query, then the keys and values of all key heads, each of HEAD numbers. cosines,
// sines [room][HEAD]: of the rotary embedding. keys, values [key head][room][HEAD]: the cache. The
// token's place in it is count[0] + offset: there its key and value are written, and it sees the
// places up to its own. scale: of the scores.
// y, or planes and blocks (bit_planes.cuh, HEAD 128 alone): where the heads' outputs go, one after
// the other. Dynamic shared memory: 4 bytes for each place of the cache.
//
// Macros: BF16, X_PLANES, HEAD (a power of two, 8 .. 256).
//
// HEAD / 8 lanes have a place of the cache at a time, each 8 of its numbers. Blocks that share a key
// head compute its new key all of them, and the first of them writes it: none reads it back.
// BATCH places of each are on their way at a time, the first before their query is known.
#define THREADS 512
#include "one_row.cuh"

constexpr int LANES = HEAD / 8;           // that have a place
constexpr int AT_ONCE = THREADS / LANES;  // places that the block has at a time
constexpr int PER_WARP = 32 / LANES;
constexpr int BATCH = 8;
constexpr int FETCHED = 256;  // places that are fetched before it is known how many are there
constexpr int PIECE = 2048;   // bytes that a thread fetches at once

// Fetches `pieces` pieces into the second-level cache.
__device__ __forceinline__ void fetch(const unsigned short* from, int pieces) {
  for (int piece = threadIdx.x; piece < pieces; piece += THREADS)
    prefetch(reinterpret_cast<const char*>(from) + static_cast<size_t>(piece) * PIECE, PIECE);
}

// Of the places first, first + AT_ONCE, .. the eight numbers that a lane has; zeros from `end` on.
__device__ __forceinline__ void load_batch(uint4 (&batch)[BATCH], const unsigned short* from,
                                           int first, int end) {
#pragma unroll
  for (int b = 0; b < BATCH; ++b) {
    const int at = first + b * AT_ONCE;
    batch[b] = make_uint4(0, 0, 0, 0);
    if (at < end) batch[b] = *reinterpret_cast<const uint4*>(from + static_cast<size_t>(at) * HEAD);
  }
}

// The sum over the lanes that have a place.
__device__ __forceinline__ float sum_of_place(float sum) {
#pragma unroll
  for (int mask = LANES / 2; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
  return sum;
}

// Of number i of a row, turned by the angles of the place: torch rounds after each operator.
__device__ __forceinline__ float turned(const unsigned short* row, int i, float cosine, float sine) {
  const float own = activation_to_float(row[i]);
  const float other = activation_to_float(row[i < HEAD / 2 ? i + HEAD / 2 : i - HEAD / 2]);
  return rounded(rounded(own * cosine) + rounded((i < HEAD / 2 ? -other : other) * sine));
}

extern "C" __global__ void __launch_bounds__(THREADS)
attention(const unsigned short* qkv, const unsigned short* cosines, const unsigned short* sines,
          unsigned short* keys, unsigned short* values, const long long* count, unsigned short* y,
          unsigned* planes, float* blocks, int heads, int key_heads, int room, int offset,
          float scale) {
  __shared__ float query[HEAD], key[HEAD], value[HEAD];
  __shared__ float partial[WARPS_OF_BLOCK * HEAD];
  __shared__ float largest_places[WARPS_OF_BLOCK], sum_places[WARPS_OF_BLOCK];
  let_next_kernel_start();
  const int head = blockIdx.x, thread = threadIdx.x;
  const int lane = thread & 31, warp = thread >> 5;
  const int share = heads / key_heads, key_head = head / share;
  const size_t cache = static_cast<size_t>(key_head) * room * HEAD;
  if (head % share == 0) {  // a place that is not written yet is fetched in vain, at worst
    const int fetched = min(room, FETCHED) * HEAD * 2 / PIECE;
    fetch(keys + cache, fetched);
    fetch(values + cache, fetched);
  }
  wait_for_previous_kernels();
  const int place = static_cast<int>(count[0]) + offset;
  const int part = lane % LANES * 8;                 // the first number that this lane has
  const int first = warp * PER_WARP + lane / LANES;  // place
  uint4 batch[BATCH];
  load_batch(batch, keys + cache + part, first, place);

  if (thread < HEAD) {
    const float cosine = activation_to_float(cosines[static_cast<size_t>(place) * HEAD + thread]);
    const float sine = activation_to_float(sines[static_cast<size_t>(place) * HEAD + thread]);
    const unsigned short* new_key = qkv + static_cast<size_t>(heads + key_head) * HEAD;
    const unsigned short* new_value = new_key + static_cast<size_t>(key_heads) * HEAD;
    query[thread] = turned(qkv + static_cast<size_t>(head) * HEAD, thread, cosine, sine);
    key[thread] = turned(new_key, thread, cosine, sine);
    value[thread] = activation_to_float(new_value[thread]);
    if (head % share == 0) {
      const size_t at = cache + static_cast<size_t>(place) * HEAD + thread;
      keys[at] = float_to_activation(key[thread]);
      values[at] = new_value[thread];
    }
  }
  __syncthreads();

  const unsigned scores = shared_memory();
  float own[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) own[j] = query[part + j] * scale;
  for (int begin = 0; begin < place; begin += BATCH * AT_ONCE) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      float numbers[8], sum = 0.0f;
      to_floats(numbers, batch[b]);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum = fmaf(own[j], numbers[j], sum);
      sum = sum_of_place(sum);
      const int at = begin + b * AT_ONCE + first;
      if (at < place && part == 0) store_shared(scores + 4 * at, sum);
    }
    load_batch(batch, keys + cache + part, begin + BATCH * AT_ONCE + first, place);
  }
  float sum = 0.0f;  // of its own place
#pragma unroll
  for (int j = 0; j < 8; ++j) sum = fmaf(own[j], key[part + j], sum);
  sum = sum_of_place(sum);
  if (thread == 0) store_shared(scores + 4 * place, sum);
  load_batch(batch, values + cache + part, first, place);
  __syncthreads();

  float maximum = __uint_as_float(0xFF800000u);  // minus infinity
  for (int at = thread; at <= place; at += THREADS)
    maximum = larger(maximum, load_shared_float(scores + 4 * at));
  maximum = largest_of_block(maximum, largest_places);
  float total = 0.0f;
  for (int at = thread; at <= place; at += THREADS) {
    const float weight = expf(load_shared_float(scores + 4 * at) - maximum);
    store_shared(scores + 4 * at, weight);
    total += weight;
  }
  total = sum_of_block(total, sum_places);  // all weights are there after it

  float sums[8] = {};
  for (int begin = 0; begin < place; begin += BATCH * AT_ONCE) {
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      const int at = begin + b * AT_ONCE + first;
      const float weight = at < place ? load_shared_float(scores + 4 * at) : 0.0f;
      float numbers[8];
      to_floats(numbers, batch[b]);
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[j] = fmaf(weight, numbers[j], sums[j]);
    }
    load_batch(batch, values + cache + part, begin + BATCH * AT_ONCE + first, place);
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int mask = LANES; mask < 32; mask *= 2) sums[j] += __shfl_xor_sync(~0u, sums[j], mask);
    if (lane < LANES) partial[warp * HEAD + part + j] = sums[j];
  }
  __syncthreads();
  float output = 0.0f;
  if (thread < HEAD) {
    output = load_shared_float(scores + 4 * place) * value[thread];
#pragma unroll
    for (int w = 0; w < WARPS_OF_BLOCK; ++w) output += partial[w * HEAD + thread];
    output = rounded(output / total);
    if (y != nullptr) y[static_cast<size_t>(head) * HEAD + thread] = float_to_activation(output);
  }
  if (HEAD != 128 || planes == nullptr) return;
  if (thread < HEAD) query[thread] = output;
  __syncthreads();
  if (warp >= 4) return;
  float inputs[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) inputs[t] = query[(first_input(lane) + 4 * t) % HEAD];
  write_bit_planes(inputs, warp, head % 2, head / 2, planes, blocks);
}
