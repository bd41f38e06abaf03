// Stands in for kernels/gpu/cuda/instructions.cuh where there is no GPU: the same functions in C++.
#pragma once
#include "conversions.cuh"

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

inline unsigned held(unsigned number) { return number; }

inline unsigned char *shared_pointer() {
    return reinterpret_cast<unsigned char *>(running->block->memory.data());
}

template <int WORDS>
inline void store_shared(unsigned at, const unsigned (&words)[WORDS]) {
    std::memcpy(shared_pointer(at), words, sizeof words);
}

inline unsigned short load_shared_half(unsigned at) {
    unsigned short number;
    std::memcpy(&number, shared_pointer(at), sizeof number);
    return number;
}

inline void store_shared_half(unsigned at, unsigned short number) {
    std::memcpy(shared_pointer(at), &number, sizeof number);
}

inline void copy_or_zeros(unsigned shared, const void *global, bool present) {
    static const uint4 zeros = {0, 0, 0, 0};
    copy_async(shared, present ? global : &zeros);
}
