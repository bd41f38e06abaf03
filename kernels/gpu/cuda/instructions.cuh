// Instructions of the kernels with weights in registers: on pairs of float16 or bfloat16 numbers
// (BF16 says which), on bytes, copies that end in zeros, and clusters of thread blocks.
#pragma once
#include "conversions.cuh"

constexpr unsigned ONES = BF16 ? 0x3F803F80 : 0x3C003C00;

// a b + c of both numbers, rounded once.
__device__ __forceinline__ unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
    unsigned d;
    if (BF16) {
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    } else {
        asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    }
    return d;
}

__device__ __forceinline__ unsigned add(unsigned a, unsigned b) { return multiply_add(a, ONES, b); }

// One LOP3 that the compiler does not take apart: it would not share what steps have in common.
__device__ __forceinline__ unsigned chosen(unsigned mask, unsigned where_set, unsigned elsewhere) {
    unsigned d;
    asm("lop3.b32 %0, %1, %2, %3, 0xCA;" : "=r"(d) : "r"(mask), "r"(where_set), "r"(elsewhere));
    return d;
}

// Bytes of a (0 to 3) and b (4 to 7) by the four low nibbles of selectors, which are below 8.
__device__ __forceinline__ unsigned bytes_of(unsigned a, unsigned b, unsigned selectors) {
    unsigned d;  // the intrinsic would mask the selectors
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selectors));
    return d;
}

// The same number, held in a register from here on instead of being made again where it is used.
__device__ __forceinline__ unsigned held(unsigned number) {
    asm volatile("" : "+r"(number));
    return number;
}

// The dynamic shared memory of the thread block, as a pointer.
__device__ __forceinline__ unsigned char *shared_pointer() {
    extern __shared__ uint4 memory[];
    return reinterpret_cast<unsigned char *>(memory);
}

// 2, or a multiple of 4 words to shared memory.
template <int WORDS>
__device__ __forceinline__ void store_shared(unsigned at, const unsigned (&words)[WORDS]) {
    static_assert(WORDS == 2 || WORDS % 4 == 0, "in few stores");
#pragma unroll
    for (int i = 0; i < WORDS; i += 4) {
        if constexpr (WORDS == 2) {
            asm volatile("st.shared.v2.u32 [%0], {%1, %2};"
                         :
                         : "r"(at), "r"(words[0]), "r"(words[1])
                         : "memory");
        } else {
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                         :
                         : "r"(at + 4 * i), "r"(words[i]), "r"(words[i + 1]), "r"(words[i + 2]),
                           "r"(words[i + 3])
                         : "memory");
        }
    }
}

__device__ __forceinline__ unsigned short load_shared_half(unsigned at) {
    unsigned short number;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(number) : "r"(at));
    return number;
}

__device__ __forceinline__ void store_shared_half(unsigned at, unsigned short number) {
    asm volatile("st.shared.u16 [%0], %1;" : : "r"(at), "h"(number) : "memory");
}

// Like copy_async; zeros, and nothing is read, where there is nothing `present`.
__device__ __forceinline__ void copy_or_zeros(unsigned shared, const void *global, bool present) {
    asm volatile("{\n\t.reg .pred absent;\n\t"
                 "setp.eq.u32 absent, %2, 0;\n\t"
                 "cp.async.cg.shared.global [%0], [%1], 16, absent;\n\t}"
                 :
                 : "r"(shared), "l"(global), "r"(static_cast<unsigned>(present))
                 : "memory");
}

// So many threads of the block, those that name this barrier (1 to 15), have come here.
template <int THREADS>
__device__ __forceinline__ void synchronize_threads(int barrier) {
    asm volatile("bar.sync %0, %1;" : : "r"(barrier), "n"(THREADS) : "memory");
}

// All threads of the cluster have come here, and see what the others wrote before.
__device__ __forceinline__ void synchronize_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\t"
                 "barrier.cluster.wait.acquire.aligned;"
                 :
                 :
                 : "memory");
#endif
}

// What lies at this address of the shared memory of the cluster's block `block`.
__device__ __forceinline__ float read_of_cluster(const float *shared, int block) {
    float value = 0.0f;
#if __CUDA_ARCH__ >= 900
    unsigned address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))), "r"(block));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
#endif
    return value;
}
