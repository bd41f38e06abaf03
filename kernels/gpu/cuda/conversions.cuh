// What the kernels of this folder share: half precision without CUDA's headers (NVRTC has none),
// copies past the caches, programmatic dependent launch, and the matrix units' instructions.
//
// A float16 or bfloat16 number is an `unsigned short`, two of them an `unsigned` with the first in
// the low half. BF16 says which of both x and y are.
#pragma once

// ---- half precision ----

__device__ __forceinline__ float float16_to_float(unsigned short number) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(number));
  return value;
}

__device__ __forceinline__ unsigned short float_to_float16(float value) {
  unsigned short number;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(number) : "f"(value));
  return number;
}

// A bfloat16 number is the upper half of a float.
__device__ __forceinline__ float bfloat16_to_float(unsigned short number) {
  return __uint_as_float(static_cast<unsigned>(number) << 16);
}

__device__ __forceinline__ unsigned short float_to_bfloat16(float value) {
  unsigned short number;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(number) : "f"(value));
  return number;
}

// Both float16 numbers of a pair.
__device__ __forceinline__ float2 float16_pair_to_floats(unsigned pair) {
  return make_float2(float16_to_float(pair & 0xFFFF), float16_to_float(pair >> 16));
}

#ifdef BF16
__device__ __forceinline__ float activation_to_float(unsigned short number) {
  return BF16 ? bfloat16_to_float(number) : float16_to_float(number);
}

__device__ __forceinline__ unsigned short float_to_activation(float value) {
  return BF16 ? float_to_bfloat16(value) : float_to_float16(value);
}

// Two floats rounded to a pair, `first` in the low half.
__device__ __forceinline__ unsigned floats_to_activations(float first, float second) {
  unsigned pair;
  if (BF16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  }
  return pair;
}
#endif

// ---- memory ----

// Weights are read once: past the first-level cache, which is left to x.
__device__ __forceinline__ uint4 load_once(const uint4* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

// Shared memory is addressed by 32-bit numbers: pointers would be made again in every loop.
// The address of the thread block's dynamic shared memory, a multiple of 16.
__device__ __forceinline__ unsigned shared_memory() {
  extern __shared__ uint4 memory[];
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(memory));
  asm volatile("" : "+r"(address));  // held in a register from here on
  return address;
}

// 32-bit words from shared memory that is aligned to as much of WORDS * 4 bytes as a load can take.
template <int WORDS>
__device__ __forceinline__ void load_shared(unsigned (&words)[WORDS], unsigned address) {
#pragma unroll
  for (int i = 0; i < WORDS;) {
    if constexpr (WORDS % 4 == 0) {
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[i]), "=r"(words[i + 1]), "=r"(words[i + 2]), "=r"(words[i + 3])
                   : "r"(address + 4 * i));
      i += 4;
    } else if constexpr (WORDS % 2 == 0) {
      asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                   : "=r"(words[i]), "=r"(words[i + 1])
                   : "r"(address + 4 * i));
      i += 2;
    } else {
      asm volatile("ld.shared.u32 %0, [%1];" : "=r"(words[i]) : "r"(address + 4 * i));
      i += 1;
    }
  }
}

__device__ __forceinline__ void store_shared(unsigned address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" : : "r"(address), "f"(value) : "memory");
}

__device__ __forceinline__ float load_shared_float(unsigned address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}

// Asks for bytes in the second-level cache, for kernels that read them later; both arguments are
// multiples of 16.
__device__ __forceinline__ void prefetch(const char* global, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" : : "l"(global), "r"(bytes) : "memory");
#else
  for (unsigned i = 0; i < bytes; i += 32)
    asm volatile("prefetch.global.L2 [%0];" : : "l"(global + i) : "memory");
#endif
}

// Starts copying 16 bytes to shared memory; `commit_copies` closes a batch of copies.
__device__ __forceinline__ void copy_async(unsigned shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
               :
               : "r"(shared), "l"(global)
               : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" : : : "memory");
}

// Waits until at most `NEWEST` of this thread's batches are on their way.
template <int NEWEST>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(NEWEST) : "memory");
}

// ---- programmatic dependent launch (sm_90; elsewhere kernels run one after the other) ----

// From here on the next kernel of the stream may start beside this one.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

// Until here nothing may be read that an earlier kernel writes, nor written that one reads. Every
// thread block has to call it, so that a finished kernel means that all before it are finished.
__device__ __forceinline__ void wait_for_previous_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

// ---- matrix units: PTX ISA, section "Warp-level matrix instructions"; lane = 4 g + t ----

// counts[i] = popcounts of (a & b) over 128 bits. a: bits 32 t .. 32 t + 31 of the rows g and
// g + 8, b: the same bits of column g; counts: (row g, columns 2 t and 2 t + 1), then (row g + 8, ...).
__device__ __forceinline__ void multiply_bits(unsigned (&counts)[4], unsigned row_g,
                                              unsigned row_g8, unsigned column) {
  asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
      : "=r"(counts[0]), "=r"(counts[1]), "=r"(counts[2]), "=r"(counts[3])
      : "r"(row_g), "r"(row_g8), "r"(column), "r"(0));
}

// sums += a b, 16 x 32 by 32 x 8, a of unsigned and b of signed bytes. a: (row g, inputs 4 t ..
// 4 t + 3), (row g + 8, the same), (row g, inputs 16 + 4 t ..), (row g + 8, the same); b: inputs
// 4 t .. and 16 + 4 t .. of column g; sums like the counts above.
__device__ __forceinline__ void multiply_bytes(int (&sums)[4], const unsigned (&a)[4], unsigned b0,
                                               unsigned b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#ifdef BF16
// sums += a b, 16 x 16 by 16 x 8. a: (row g, inputs 2 t, 2 t + 1), (row g + 8, the same), (row g,
// inputs 2 t + 8, 2 t + 9), (row g + 8, the same); b: inputs 2 t, 2 t + 1 and 2 t + 8, 2 t + 9 of
// column g; sums like the counts above.
__device__ __forceinline__ void multiply_halves(float (&sums)[4], const unsigned (&a)[4],
                                                unsigned b0, unsigned b1) {
  if (BF16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}
#endif
