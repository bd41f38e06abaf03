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

// The address of what lies in shared memory, as instructions take it.
__device__ __forceinline__ unsigned shared_address(const void *pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// The dynamic shared memory of the thread block.
__device__ __forceinline__ unsigned char *shared_pointer() {
    extern __shared__ uint4 memory[];
    return reinterpret_cast<unsigned char *>(memory);
}

__device__ __forceinline__ void copy_async(void *shared, const void *global) {
    copy_async(shared_address(shared), global);
}

// Like copy_async; zeros, and nothing is read, where there is nothing `present`.
__device__ __forceinline__ void copy_or_zeros(void *shared, const void *global, bool present) {
    asm volatile("{\n\t.reg .pred absent;\n\t"
                 "setp.eq.u32 absent, %2, 0;\n\t"
                 "cp.async.cg.shared.global [%0], [%1], 16, absent;\n\t}"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"((unsigned)present)
                 : "memory");
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
        : "r"(shared_address(shared)), "r"(block));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
#endif
    return value;
}
