// Stands in for kernels/gpu/cuda/wgmma.cuh where there is no GPU: the same functions in C++, and
// clusters of blocks whose threads are coroutines. What is asynchronous happens late and in any
// order: bulk copies at random, products when they are waited for, from the shared memory of then.
// A write to registers that a product still reads, an address outside the shared memory and a
// cluster in which nothing can go on end the process.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __shared__ static

typedef unsigned u32;
typedef unsigned short u16;
typedef unsigned long long u64;
using std::max;
using std::min;
struct uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct float4 { float x, y, z, w; };
struct dim3 { u32 x, y, z; };
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

// ---- threads, blocks, clusters

constexpr u32 FIRST_ADDRESS = 1040;  // of the shared memory: a multiple of 16, not of 1024
constexpr size_t STACK_BYTES = 1 << 16;

struct Meeting {  // of a fixed number of threads
  int waiting = 0, round = 0;
};

struct TransactionBarrier {
  int arrivals = 0, missing = 0;
  long bytes = 0;
  u32 phase = 0;
};

struct Product {
  float* d;
  const u32* a;
  u32 read[4];  // what a was
  u64 b;
  int columns;
};

struct Block;
struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  Block* block;
  bool done = false;
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
};

struct Warp {
  Meeting meeting;
  unsigned char slots[32][64];
};

struct Block {
  dim3 index;
  u32 rank;
  std::vector<char> memory;
  std::map<u32, TransactionBarrier> barriers;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Meeting whole, first;
};

struct Copy {
  Block* block;
  u32 to, barrier;
  const char* from;
  u32 bytes;
};

inline ucontext_t scheduler;
inline Thread* running;
inline dim3 blockDim;
inline std::vector<Block> cluster;
inline Meeting cluster_meeting;
inline std::vector<Copy> copies;
inline std::mt19937 chance;
inline long events;  // whatever lets a waiting thread go on
inline void (*body)(void*);
inline void* body_argument;
#define threadIdx (running->index)
#define blockIdx (running->block->index)

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "block %u, thread %u: %s\n", running->block->rank, threadIdx.x, what);
  std::exit(1);
}

inline void give_way() { swapcontext(&running->context, &scheduler); }

inline void meet(Meeting& meeting, int members) {
  const int round = meeting.round;
  ++events;
  if (++meeting.waiting == members) meeting.waiting = 0, ++meeting.round;
  while (meeting.round == round) give_way();
}

inline Warp& warp_of_thread() { return running->block->warps[threadIdx.x / 32]; }
inline void __syncthreads() { meet(running->block->whole, blockDim.x); }
inline void __syncwarp() { meet(warp_of_thread().meeting, 32); }
template <int COUNT>
inline void threads_sync() { meet(running->block->first, COUNT); }
inline u32 cluster_rank() { return running->block->rank; }
inline void cluster_sync() { meet(cluster_meeting, cluster.size() * blockDim.x); }

template <class Value>
struct Lanes {
  Value of[32];
};

template <class Value>
inline Lanes<Value> exchange(const Value& value) {
  Warp& warp = warp_of_thread();
  std::memcpy(warp.slots[threadIdx.x % 32], &value, sizeof value);
  __syncwarp();
  Lanes<Value> all;
  for (int lane = 0; lane < 32; ++lane) std::memcpy(&all.of[lane], warp.slots[lane], sizeof value);
  __syncwarp();
  return all;
}

inline u32 __reduce_max_sync(u32, u32 value) {
  const auto all = exchange(value);
  return *std::max_element(all.of, all.of + 32);
}

// ---- shared memory. A cluster address has the block's rank + 1 in its upper bits.

inline char* shared_place(u32 address, u32 bytes) {
  Block* block = running->block;
  if (address >> 24) block = &cluster.at((address >> 24) - 1), address &= 0xFFFFFF;
  if (address < FIRST_ADDRESS || address + bytes > FIRST_ADDRESS + block->memory.size())
    fail("an address outside the shared memory");
  return block->memory.data() + (address - FIRST_ADDRESS);
}

template <class Value>
inline Value shared_value(u32 address) {
  if (address % sizeof(Value)) fail("a misaligned address");
  Value value;
  std::memcpy(&value, shared_place(address, sizeof value), sizeof value);
  return value;
}

inline u32 shared_memory() { return FIRST_ADDRESS; }
inline u32 peer_address(u32 address, u32 rank) { return address | (rank + 1) << 24; }
inline float4 load_peer(u32 address) {
  if (address % 16) fail("a misaligned address");
  float4 v;
  std::memcpy(&v, shared_place(address, 16), 16);
  return v;
}
inline u32 shared_word(u32 address) { return shared_value<u32>(address); }
inline void shared_pair(u32& low, u32& high, u32 address) {
  const u64 both = shared_value<u64>(address);
  low = both, high = both >> 32;
}
inline void store_shared(u32 address, float v) {
  std::memcpy(shared_place(address, 4), &v, 4);
}

// ---- barriers and copies

inline TransactionBarrier& barrier_at(Block& block, u32 address) {
  const auto found = block.barriers.find(address & 0xFFFFFF);
  if (found == block.barriers.end()) fail("no barrier at this address");
  return found->second;
}

inline void change(TransactionBarrier& barrier, int arrivals, long bytes) {
  barrier.missing -= arrivals;
  barrier.bytes += bytes;
  if (barrier.missing < 0) fail("too many arrivals");
  if (barrier.missing == 0 && barrier.bytes == 0) {
    ++barrier.phase, ++events;
    barrier.missing = barrier.arrivals;
  }
}

inline void barrier_init(u32 address, u32 arrivals) {
  shared_place(address, 8);
  running->block->barriers[address] = {(int)arrivals, (int)arrivals};
}
inline void barrier_init_fence() {}
inline void barrier_expect(u32 address, u32 bytes) {
  change(barrier_at(*running->block, address), 1, bytes);
}
inline void barrier_arrive(u32 address) { change(barrier_at(*running->block, address), 1, 0); }
inline void barrier_arrive_peer(u32 address, u32 rank) {
  change(barrier_at(cluster.at(rank), address), 1, 0);
}
inline void barrier_wait(u32 address, u32 parity) {
  while ((barrier_at(*running->block, address).phase & 1) == parity) give_way();
}

inline void copy_bulk_to(Block& block, u32 to, const void* from, u32 bytes, u32 barrier) {
  if (to % 16 || bytes % 16 || (size_t)from % 16) fail("a misaligned copy");
  copies.push_back({&block, to, barrier, (const char*)from, bytes});
}
inline void copy_bulk(u32 to, const void* from, u32 bytes, u32 barrier) {
  copy_bulk_to(*running->block, to, from, bytes, barrier);
}
inline void copy_multicast(u32 to, const void* from, u32 bytes, u32 barrier, u16 mask) {
  for (Block& block : cluster)
    if (mask >> block.rank & 1) copy_bulk_to(block, to, from, bytes, barrier);
}

inline void make_a_copy() {
  if (copies.empty()) return;
  std::swap(copies[chance() % copies.size()], copies.back());
  const Copy copy = copies.back();
  copies.pop_back();
  running = &copy.block->threads[0];  // whose addresses they are
  std::memcpy(shared_place(copy.to, copy.bytes), copy.from, copy.bytes);
  ++events;
  change(barrier_at(*copy.block, copy.barrier), 0, -(long)copy.bytes);
}

inline void wait_for_previous_kernel() {}
inline void start_next_kernel() {}
template <int COUNT>
inline void registers_up() {}
template <int COUNT>
inline void registers_down() {}

// ---- numbers

template <class To, class From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float __uint_as_float(u32 bits) { return same_bits<float>(bits); }
inline u32 __byte_perm(u32 low, u32 high, u32 selector) {
  const u64 bytes = low | (u64)high << 32;
  u32 result = 0;
  for (int i = 0; i < 4; ++i)
    result |= (u32)(bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return result;
}
inline float half_to_float(u16 v) { return same_bits<_Float16>(v); }
inline u16 to_half(float v) { return same_bits<u16>((_Float16)v); }
template <bool BFLOAT>
inline u16 narrowed(float v) {
  const u32 bits = same_bits<u32>(v);
  if (!BFLOAT) return to_half(v);
  return std::isnan(v) ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
inline u32 half_pair(float low, float high) { return to_half(low) | (u32)to_half(high) << 16; }
inline u32 add2(u32 a, u32 b) {  // float has 2 * 11 + 2 bits: rounding twice does no harm
  return half_pair(half_to_float(a) + half_to_float(b),
                   half_to_float(a >> 16) + half_to_float(b >> 16));
}
inline u32 multiply2(u32 a, u32 b) {
  return half_pair(half_to_float(a) * half_to_float(b),
                   half_to_float(a >> 16) * half_to_float(b >> 16));
}

// ---- wgmma

// PTX ISA, "Matrix Descriptor Format": address, stride and swizzle; the 16-byte pieces of the
// K-major 128-byte swizzle are exchanged by bits 7-9 of the address of which they are bits 4-6.
inline u64 matrix_descriptor(u32 address) {
  if (address % 1024) fail("a tile that does not begin with the swizzle's pattern");
  return (u64)(address >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

inline float operand_b(u64 b, int column, int k) {
  const u32 start = (b & 0x3FFF) << 4, stride = (b >> 32 & 0x3FFF) << 4;
  if (b >> 62 != 1) fail("a descriptor without the 128-byte swizzle");
  u32 at = start + column / 8 * stride + column % 8 * 128 + 2 * k;
  at ^= (at >> 7 & 7) << 4;
  return half_to_float(shared_value<u16>(at));
}

inline void wgmma_fence() {}

template <int COUNT>
inline void wgmma(float (&d)[COUNT], const u32 (&a)[4], u64 b) {
  running->open.push_back({d, a, {a[0], a[1], a[2], a[3]}, b, 2 * COUNT});
}

inline void wgmma_commit() {
  running->groups.push_back(std::move(running->open));
  running->open.clear();
}

struct Fragment {
  u32 a[4];
};

inline void compute(const Product& product) {
  if (std::memcmp(product.a, product.read, 16)) fail("a fragment changed while it was read");
  Fragment mine;
  std::memcpy(mine.a, product.read, sizeof mine.a);
  const auto all = exchange(mine);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  float a[2][16];
  for (int k = 0; k < 16; ++k)
    for (int h = 0; h < 2; ++h)
      a[h][k] = half_to_float(all.of[4 * g + k % 8 / 2].a[k / 8 * 2 + h] >> 16 * (k % 2));
  for (int column = 2 * t; column < product.columns; column += 8)
    for (int i = 0; i < 2; ++i) {
      float sum[2] = {0, 0};
      for (int k = 0; k < 16; ++k) {
        const float b = operand_b(product.b, column + i, k);
        sum[0] += a[0][k] * b, sum[1] += a[1][k] * b;
      }
      for (int h = 0; h < 2; ++h) product.d[column / 8 * 4 + 2 * h + i] += sum[h];
    }
}

template <int PENDING>
inline void wgmma_wait() {
  while (running->groups.size() > PENDING) {
    for (const Product& product : running->groups.front()) compute(product);
    running->groups.pop_front();
  }
}

// ---- launches

inline void run_thread() {
  body(body_argument);
  running->done = true;
  ++events;
  give_way();
}

inline void start(Thread& thread, u32 index, Block& block) {
  thread.index = {index, 0, 0};
  thread.block = &block;
  thread.stack.reset(new char[STACK_BYTES]);
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = STACK_BYTES;
  makecontext(&thread.context, run_thread, 0);
}

inline void run_cluster() {
  bool alive = true;
  for (int quiet = 0; alive;) {
    const long before = events;
    alive = false;
    for (Block& block : cluster)
      for (Thread& thread : block.threads) {
        if (thread.done) continue;
        alive = true;
        running = &thread;
        swapcontext(&scheduler, &thread.context);
      }
    for (int i = chance() % 8; i > 0; --i) make_a_copy();
    quiet = events == before && copies.empty() ? quiet + 1 : 0;
    if (alive && quiet > 4) fail("nothing can go on");
  }
  if (!copies.empty()) fail("the blocks have ended before their copies");
}

template <class... Arguments>
struct Call {
  void (*kernel)(Arguments...);
  void** arguments;

  template <size_t... I>
  void unpack(std::index_sequence<I...>) {
    kernel(*static_cast<Arguments*>(arguments[I])...);
  }
  static void run(void* self) {
    static_cast<Call*>(self)->unpack(std::index_sequence_for<Arguments...>());
  }
};

template <class... Arguments>
inline void launch(void (*kernel)(Arguments...), const u32* grid, u32 block, u32 size,
                   int shared_bytes, void** arguments) {
  Call<Arguments...> call{kernel, arguments};
  body = Call<Arguments...>::run;
  body_argument = &call;
  blockDim = {block, 1, 1};
  for (u32 y = 0; y < grid[1]; ++y)
    for (u32 x = 0; x < grid[0]; x += size) {
      cluster = std::vector<Block>(size);
      cluster_meeting = Meeting();
      for (u32 rank = 0; rank < size; ++rank) {
        Block& each = cluster[rank];
        each.index = {x + rank, y, 0};
        each.rank = rank;
        each.memory.assign(shared_bytes, (char)0xFF);
        each.warps = std::vector<Warp>((block + 31) / 32);
        each.threads = std::vector<Thread>(block);
        for (u32 i = 0; i < block; ++i) start(each.threads[i], i, each);
      }
      run_cluster();
    }
}
