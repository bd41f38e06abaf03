// Stands in for kernels/gpu/cuda/conversions.cuh where there is no GPU: the same functions in C++,
// and a thread block whose threads are coroutines. Instructions of a warp wait for its 32 lanes and
// are computed from the fragments as the PTX ISA documents them. Asynchronous copies are made as
// late as the source allows. The blocks of a grid run one after the other, those of a cluster
// (SPLIT along z) side by side.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __shared__ static
#define __CUDA_ARCH__ 900

using std::max;
using std::min;
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct dim3 { unsigned x, y, z; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

// ---- threads ----

constexpr std::size_t STACK_BYTES = 1 << 16;

struct Barrier {
  int waiting = 0, round = 0;
};

struct Copy {
  void* to;
  const void* from;
};

struct ThreadBlock;

struct Thread {
  ThreadBlock* block;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  bool done = false;
  std::vector<Copy> open;                // asynchronous copies of the batch that is not yet closed
  std::deque<std::vector<Copy>> closed;  // and of those that may still be on their way
};

struct Warp {
  Barrier barrier;
  unsigned char slots[32][64];
};

struct ThreadBlock {
  dim3 index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier, named[16];
  std::vector<uint4> memory;  // dynamic shared memory
};

#ifdef SPLIT
constexpr unsigned CLUSTER = SPLIT;
#else
constexpr unsigned CLUSTER = 1;
#endif

inline dim3 gridDim, blockDim;
inline ucontext_t scheduler;
inline ThreadBlock cluster[CLUSTER];
inline Barrier whole_cluster;
inline Thread* running;
inline void (*body)(void*);
inline void* body_argument;
#define threadIdx (running->index)
#define blockIdx (running->block->index)

inline void give_way() { swapcontext(&running->context, &scheduler); }

inline void arrive(Barrier& barrier, int members) {
  const int round = barrier.round;
  if (++barrier.waiting == members) {
    barrier.waiting = 0;
    ++barrier.round;
  }
  while (barrier.round == round) give_way();
}

inline Warp& own_warp() { return running->block->warps[threadIdx.x / 32]; }

inline void __syncthreads() { arrive(running->block->barrier, blockDim.x); }

inline void __syncwarp() { arrive(own_warp().barrier, 32); }

template <int COUNT>
inline void synchronize_threads(int barrier) {
  arrive(running->block->named[barrier], COUNT);
}

inline void synchronize_cluster() { arrive(whole_cluster, CLUSTER * blockDim.x); }

inline float read_of_cluster(const float* shared, int block) {
  const auto* own = reinterpret_cast<const unsigned char*>(running->block->memory.data());
  const auto* theirs = reinterpret_cast<const unsigned char*>(cluster[block].memory.data());
  float value;
  std::memcpy(&value, theirs + (reinterpret_cast<const unsigned char*>(shared) - own), sizeof value);
  return value;
}

// What all lanes of the warp give.
template <class Value>
struct Lanes {
  Value of[32];
};

template <class Value>
inline Lanes<Value> exchange(const Value& value) {
  static_assert(sizeof(Value) <= 64);
  Warp& warp = own_warp();
  std::memcpy(warp.slots[threadIdx.x % 32], &value, sizeof value);
  arrive(warp.barrier, 32);
  Lanes<Value> all;
  for (int lane = 0; lane < 32; ++lane) std::memcpy(&all.of[lane], warp.slots[lane], sizeof value);
  arrive(warp.barrier, 32);
  return all;
}

template <class Value>
inline Value __shfl_xor_sync(unsigned, Value value, int mask) {
  return exchange(value).of[threadIdx.x % 32 ^ mask];
}

template <class Value>
inline Value __shfl_sync(unsigned, Value value, int lane) {
  return exchange(value).of[lane & 31];
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const auto all = exchange(predicate);
  unsigned word = 0;
  for (int lane = 0; lane < 32; ++lane) word |= static_cast<unsigned>(all.of[lane]) << lane;
  return word;
}

inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const auto all = exchange(value);
  return *std::max_element(all.of, all.of + 32);
}

inline void run_thread() {
  body(body_argument);
  running->done = true;
  give_way();
}

inline void begin_block(ThreadBlock& block, dim3 index) {
  block.index = index;
  block.threads.clear();
  block.threads.resize(blockDim.x);
  block.warps.assign((blockDim.x + 31) / 32, Warp());
  block.barrier = Barrier();
  std::fill_n(block.named, 16, Barrier());
  for (unsigned i = 0; i < blockDim.x; ++i) {
    Thread& thread = block.threads[i];
    thread.block = &block;
    thread.index = {i, 0, 0};
    thread.stack.reset(new char[STACK_BYTES]);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&thread.context, run_thread, 0);
  }
}

inline void run_cluster(dim3 first) {
  for (unsigned i = 0; i < CLUSTER; ++i) begin_block(cluster[i], {first.x, first.y, first.z + i});
  whole_cluster = Barrier();
  for (bool alive = true; alive;) {
    alive = false;
    for (ThreadBlock& block : cluster)
      for (Thread& thread : block.threads) {
        if (thread.done) continue;
        alive = true;
        running = &thread;
        swapcontext(&scheduler, &thread.context);
      }
  }
}

template <class... Arguments>
struct Call {
  void (*kernel)(Arguments...);
  void** arguments;

  template <std::size_t... I>
  void unpack(std::index_sequence<I...>) {
    kernel(*static_cast<Arguments*>(arguments[I])...);
  }
  static void run(void* self) {
    static_cast<Call*>(self)->unpack(std::index_sequence_for<Arguments...>());
  }
};

// arguments[i] is the address of the i-th argument of the kernel.
template <class... Arguments>
inline void launch(void (*kernel)(Arguments...), const unsigned* grid, unsigned block,
                   int shared_bytes, void** arguments) {
  Call<Arguments...> call{kernel, arguments};
  body = Call<Arguments...>::run;
  body_argument = &call;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block, 1, 1};
  const uint4 poison{~0u, ~0u, ~0u, ~0u};
  for (ThreadBlock& each : cluster) each.memory.assign((shared_bytes + 15) / 16, poison);
  for (unsigned z = 0; z < gridDim.z; z += CLUSTER)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; ++x) run_cluster({x, y, z});
  body_argument = nullptr;
}

// ---- numbers ----

template <class To, class From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
inline float __int_as_float(int bits) { return same_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return same_bits<unsigned>(value); }
inline int __float2int_rn(float value) {
  return std::isnan(value) ? 0 : static_cast<int>(std::nearbyintf(value));
}

inline float float16_to_float(unsigned short number) { return same_bits<_Float16>(number); }
inline unsigned short float_to_float16(float value) {
  return same_bits<unsigned short>(static_cast<_Float16>(value));
}
inline float bfloat16_to_float(unsigned short number) {
  return same_bits<float>(static_cast<unsigned>(number) << 16);
}
inline unsigned short float_to_bfloat16(float value) {
  const unsigned bits = same_bits<unsigned>(value);
  if (std::isnan(value)) return 0x7FFF;
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
inline float2 float16_pair_to_floats(unsigned pair) {
  return {float16_to_float(pair & 0xFFFF), float16_to_float(pair >> 16)};
}

#ifdef BF16
inline float activation_to_float(unsigned short number) {
  return BF16 ? bfloat16_to_float(number) : float16_to_float(number);
}
inline unsigned short float_to_activation(float value) {
  return BF16 ? float_to_bfloat16(value) : float_to_float16(value);
}
inline unsigned floats_to_activations(float first, float second) {
  return float_to_activation(first) | static_cast<unsigned>(float_to_activation(second)) << 16;
}
#endif

// ---- memory ----

inline uint4 load_once(const uint4* address) { return *address; }

inline volatile char fetched;

inline void prefetch(const char* global, unsigned bytes) {
  for (unsigned i = 0; i < bytes; i += 16) fetched = global[i];  // faults where memory ends
}

inline unsigned shared_memory() { return 0; }

inline char* shared_pointer(unsigned address) {
  return reinterpret_cast<char*>(running->block->memory.data()) + address;
}

template <int WORDS>
inline void load_shared(unsigned (&words)[WORDS], unsigned address) {
  std::memcpy(words, shared_pointer(address), sizeof words);
}

inline void store_shared(unsigned address, float value) {
  std::memcpy(shared_pointer(address), &value, sizeof value);
}

inline float load_shared_float(unsigned address) {
  float value;
  std::memcpy(&value, shared_pointer(address), sizeof value);
  return value;
}

inline void copy_async(unsigned shared, const void* global) {
  running->open.push_back({shared_pointer(shared), global});
}

inline void commit_copies() {
  running->closed.push_back(std::move(running->open));
  running->open.clear();
}

template <int NEWEST>
inline void wait_for_copies() {
  while (running->closed.size() > NEWEST) {
    for (const Copy& copy : running->closed.front()) std::memcpy(copy.to, copy.from, 16);
    running->closed.pop_front();
  }
}

inline void let_next_kernel_start() {}
inline void wait_for_previous_kernels() {}

// ---- matrix units ----

inline void multiply_bits(unsigned (&counts)[4], unsigned row_g, unsigned row_g8, unsigned column) {
  struct Fragments {
    unsigned a[2], b;
  };
  const auto all = exchange(Fragments{{row_g, row_g8}, column});
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) {
    counts[i] = 0;
    for (int part = 0; part < 4; ++part)  // 32 of the 128 bits
      counts[i] += __builtin_popcount(all.of[4 * g + part].a[i / 2] &
                                      all.of[4 * (2 * t + i % 2) + part].b);
  }
}

inline void multiply_bytes(int (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  struct Fragments {
    unsigned a[4], b[2];
  };
  const auto all = exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 32; ++k) {
      const unsigned left = all.of[4 * g + k % 16 / 4].a[k / 16 * 2 + i / 2] >> 8 * (k % 4);
      const unsigned right = all.of[4 * (2 * t + i % 2) + k % 16 / 4].b[k / 16] >> 8 * (k % 4);
      sums[i] += static_cast<unsigned char>(left) * static_cast<signed char>(right);
    }
}

#ifdef BF16
inline void multiply_halves(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  struct Fragments {
    unsigned a[4], b[2];
  };
  const auto all = exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) {
    double sum = 0;
    for (int k = 0; k < 16; ++k) {
      const unsigned left = all.of[4 * g + k % 8 / 2].a[k / 8 * 2 + i / 2];
      const unsigned right = all.of[4 * (2 * t + i % 2) + k % 8 / 2].b[k / 8];
      sum += static_cast<double>(activation_to_float(left >> 16 * (k % 2))) *
             activation_to_float(right >> 16 * (k % 2));
    }
    sums[i] += static_cast<float>(sum);
  }
}
#endif
