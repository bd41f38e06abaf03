// The whole weight (outputs, inputs) in float16 or bfloat16, for products of many rows by cuBLAS.
// A warp makes 16 outputs x 128 inputs at a time in shared memory and writes runs of 256 bytes.
// WARPS warps of a block take chunks beside each other; grid: (chunks / WARPS, tiles).
#include "weights.cuh"

constexpr int ROW = 128 + 8;  // numbers; so that the 8 rows of a store lie in other banks

// 128 inputs of a tile: made by all lanes, in shared memory.
__device__ __forceinline__ void make_half(const unsigned (&words)[2][PLANES],
                                          const unsigned char *parameters, int chunk, int half,
                                          unsigned short *to) {
    int lane = threadIdx.x & 31, g = lane / 4;
    unsigned tables[2][2][TABLE_REGISTERS];  // [of the step k or k + 4][row g or g + 8]
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            int step = 8 * half + k + 4 * i;
            if (k == 0 || step % TABLE_STEPS == 0) {
                int group = group_of(chunk, step / TABLE_STEPS);
                float row_g[PARAMETERS], row_g8[PARAMETERS];
                const unsigned char *at = parameters + (size_t)group * GROUP_BYTES;
                load_parameters(at + g * PARAMETERS * PAIR_BYTES, row_g, row_g8);
                make_table(row_g, tables[i][0]);
                make_table(row_g8, tables[i][1]);
            }
        }
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            unsigned first[2], second[2];
            row_weights(words[row], k, tables[0][row], tables[TABLE_STEPS < 8][row], first, second);
            unsigned short *at = to + (8 * row + g) * ROW + 16 * k + 4 * (lane & 3);
            *reinterpret_cast<uint2 *>(at) = make_uint2(first[0], first[1]);
            *reinterpret_cast<uint2 *>(at + 64) = make_uint2(second[0], second[1]);
        }
    }
}

// From shared memory to the weight, 8 inputs a lane.
__device__ __forceinline__ void write_half(const unsigned short *from, unsigned short *weight,
                                           int outputs, int inputs, int output, int input) {
    int lane = threadIdx.x & 31, place = lane % 16 * 8;
    input += place;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int row = 2 * i + lane / 16;
        const unsigned short *at = from + row * ROW + place;
        unsigned short *to = weight + (size_t)(output + row) * inputs + input;
        if (output + row >= outputs) {
            continue;
        }
        if (inputs % 8 == 0) {
            if (input < inputs) {
                *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(at);
            }
        } else {
            for (int j = 0; j < 8 && input + j < inputs; ++j) {
                to[j] = at[j];
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
dequantize(const uint4 *words, const unsigned char *parameters, unsigned short *weight, int outputs,
           int inputs) {
    alignas(16) __shared__ unsigned short shared[WARPS][16 * ROW];
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31, tile = blockIdx.y;
    int chunks = (inputs + 255) / 256, chunk = blockIdx.x * WARPS + warp;
    constexpr int group = GROUP ? GROUP : 1;
    int groups = GROUP ? (chunks * 256 + group - 1) / group : 1;
    wait_for_previous_kernels();
    let_next_kernel_start();
    if (chunk >= chunks) {
        return;
    }
    const uint4 *from = words + ((size_t)tile * chunks + chunk) * PLANES * 32 + lane;
    uint4 loaded[PLANES];
#pragma unroll
    for (int plane = 0; plane < PLANES; ++plane) {
        loaded[plane] = load_once(from + plane * 32);
    }
    parameters += (size_t)tile * groups * GROUP_BYTES;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        unsigned rows[2][PLANES];
#pragma unroll
        for (int plane = 0; plane < PLANES; ++plane) {
            rows[0][plane] = half ? loaded[plane].z : loaded[plane].x;
            rows[1][plane] = half ? loaded[plane].w : loaded[plane].y;
        }
        make_half(rows, parameters, chunk, half, shared[warp]);
        __syncwarp();
        write_half(shared[warp], weight, outputs, inputs, 16 * tile, 256 * chunk + 128 * half);
        __syncwarp();
    }
}
