// Stands in for kernels/gpu/cuda/instructions.cuh where there is no GPU: the same functions in C++.
#pragma once
#include "conversions.cuh"

#include <cstdlib>

constexpr unsigned ONES = BF16 ? 0x3F803F80 : 0x3C003C00;

inline unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
    unsigned result = 0;
    for (int half = 0; half < 32; half += 16) {
        // Exact in double: 22 bits and the sum of exponents that are near each other.
        double product = static_cast<double>(activation_to_float(a >> half)) *
                         activation_to_float(b >> half);
        double sum = product + activation_to_float(c >> half);
        float single = static_cast<float>(sum);
        result |= static_cast<unsigned>(float_to_activation(single)) << half;
    }
    return result;
}

inline unsigned add(unsigned a, unsigned b) { return multiply_add(a, ONES, b); }

inline unsigned chosen(unsigned mask, unsigned where_set, unsigned elsewhere) {
    return (where_set & mask) | (elsewhere & ~mask);
}

inline unsigned bytes_of(unsigned a, unsigned b, unsigned selectors) {
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned place = selectors >> (4 * i) & 15;
        unsigned byte = (place & 4 ? b : a) >> (8 * (place & 3)) & 0xFF;
        if (place & 8) byte = byte & 0x80 ? 0xFF : 0;  // what PRMT makes of a ninth place
        result |= byte << (8 * i);
    }
    return result;
}

inline unsigned char *shared_pointer() {
    return reinterpret_cast<unsigned char *>(dynamic_memory.data());
}

inline void copy_async(void *shared, const void *global) {
    running->open.push_back({shared, global});
}

inline void copy_or_zeros(void *shared, const void *global, bool present) {
    static const uint4 zeros = {0, 0, 0, 0};
    copy_async(shared, present ? global : &zeros);
}

// Blocks run one after the other.
inline void synchronize_cluster() { std::abort(); }
inline float read_of_cluster(const float *, int) { std::abort(); }
