// y = x W^T for 5 to some hundred rows of x: weights become float16 or bfloat16 in registers and go
// through mma.m16n8k16 as they are. Compiled for one weight format (weights.cuh) and for
//
//   ROWS    rows of x of a block, a multiple of 8; more rows are more blocks (blockIdx.y)
//   TILES   tiles of 16 outputs of a warp, which share what it reads of x
//   ACROSS  warps of a block beside each other along the outputs
//   ALONG   warps of a block that share the inputs, chunk by chunk
//   SPLIT   blocks that share the inputs: a cluster, so that they can add their sums (1 before sm_90)
//   STAGES  batches of chunks in shared memory, of which all but one are on their way
//   BLOCKS  blocks that should fit a multiprocessor
//
// A batch is ALONG chunks of 256 inputs. Each warp copies its own words and parameters, all warps
// together copy x. Sums are added in a fixed order, so that the same x gives the same y bit for bit.
#include "weights.cuh"

constexpr int WARPS = ACROSS * ALONG;
constexpr int THREADS = 32 * WARPS;
constexpr int COLUMNS = ROWS / 8;  // of 8 rows of x: what one mma multiplies
constexpr int OUTPUTS = 16 * TILES * ACROSS;

constexpr int X_ROW = 256 + 16;  // numbers; so rows begin at other banks, and loads do not collide
constexpr int X_BYTES = ROWS * X_ROW * 2;
constexpr int WORD_BYTES = PLANES * 32 * 16;       // of a tile and chunk
constexpr int TABLE_BYTES = TABLES * GROUP_BYTES;  // of a tile and chunk
constexpr int WARP_BYTES = TILES * (WORD_BYTES + TABLE_BYTES);
constexpr int STAGE_BYTES = ALONG * X_BYTES + WARPS * WARP_BYTES;

constexpr int SUM_ROW = OUTPUTS + 4;  // floats; the same reason

// Where this thread copies from.
struct Sources {
    const unsigned char *words[TILES];       // of this warp's tiles: this lane's first word
    const unsigned char *parameters[TILES];  // of the same tiles
    const unsigned short *x;                 // first row of the block, this lane's first 8 inputs
    int inputs;                              // of a row of x
    int rows;                                // of x, from the block's first on
    bool aligned;                            // rows of x begin at multiples of 16 bytes
};

// ---- copies into shared memory ----

// This warp's words and parameters of a chunk.
__device__ __forceinline__ void copy_weights(const Sources &from, int chunk, unsigned char *stage) {
    int lane = threadIdx.x & 31;
    constexpr int pieces = GROUP_BYTES / 16;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        unsigned char *to = stage + t * (WORD_BYTES + TABLE_BYTES) + lane * 16;
        const unsigned char *words = from.words[t] + chunk * WORD_BYTES;
#pragma unroll
        for (int plane = 0; plane < PLANES; ++plane) {
            copy_async(to + plane * 512, words + plane * 512);
        }
#pragma unroll
        for (int i = 0; i < TABLES * pieces; i += 32) {
            int piece = i + lane, group = group_of(chunk, piece / pieces);
            if (piece < TABLES * pieces) {
                int place = group * GROUP_BYTES + piece % pieces * 16;
                copy_async(to + WORD_BYTES + i * 16, from.parameters[t] + place);
            }
        }
    }
}

// The block's rows of x, in the batch that begins with `chunk`. What lies outside of x is zero.
__device__ __forceinline__ void copy_x(const Sources &from, int chunk, unsigned char *stage) {
    int warp = threadIdx.x / 32, place = (threadIdx.x & 31) * 8;
    unsigned short *to = reinterpret_cast<unsigned short *>(stage) + place;
#pragma unroll
    for (int i = 0; i < ALONG * ROWS; i += WARPS) {
        int line = i + warp, row = line % ROWS, input = (chunk + line / ROWS) * 256;
        if (ALONG * ROWS % WARPS && line >= ALONG * ROWS) {
            break;
        }
        int present = row < from.rows ? min(max(from.inputs - input - place, 0), 8) : 0;
        const unsigned short *at = from.x;
        at += present ? (size_t)row * from.inputs + input : 0;
        if (from.aligned) {
            copy_or_zeros(to + line * X_ROW, at, 2 * present);
        } else {
            for (int j = 0; j < 8; ++j) {
                to[line * X_ROW + j] = j < present ? at[j] : 0;
            }
        }
    }
}

// ---- one tile of weights, one chunk ----

struct Tile {
    unsigned tables[2][2][TABLE_REGISTERS];  // [of the step k or k + 4][row g or g + 8]
};

__device__ __forceinline__ void make_tables(const unsigned char *parameters, int table,
                                            unsigned (&tables)[2][TABLE_REGISTERS]) {
    int g = (threadIdx.x & 31) / 4;
    float row_g[PARAMETERS], row_g8[PARAMETERS];
    load_parameters(parameters + (table * 8 + g) * PARAMETERS * PAIR_BYTES, row_g, row_g8);
    make_table(row_g, tables[0]);
    make_table(row_g8, tables[1]);
}

// The tables of the steps k and k + 4 of a half of a chunk, where they are other ones than before.
__device__ __forceinline__ void renew_tables(const unsigned char *parameters, int half, int k,
                                             Tile &tile) {
    int first = (8 * half + k) / TABLE_STEPS, second = (8 * half + k + 4) / TABLE_STEPS;
    if ((8 * half + k) % TABLE_STEPS == 0 || (k == 0 && TABLE_STEPS < 8)) {
        make_tables(parameters, first, tile.tables[0]);
        if (second != first) {
            make_tables(parameters, second, tile.tables[1]);
        }
    }
}

// sums += a half of a chunk: 128 inputs of all tiles of this warp. x: this lane's place in row g.
__device__ __forceinline__ void multiply_half(const unsigned char *stage, const unsigned short *x,
                                              int half, Tile (&tiles)[TILES],
                                              float (&sums)[TILES][COLUMNS][4]) {
    int lane = threadIdx.x & 31;
    unsigned words[TILES][2][PLANES];
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        const uint4 *from = reinterpret_cast<const uint4 *>(stage + t * (WORD_BYTES + TABLE_BYTES));
#pragma unroll
        for (int plane = 0; plane < PLANES; ++plane) {
            uint4 word = from[plane * 32 + lane];
            words[t][0][plane] = half ? word.z : word.x;
            words[t][1][plane] = half ? word.w : word.y;
        }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        unsigned first[TILES][4], second[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            const unsigned char *parameters = stage + t * (WORD_BYTES + TABLE_BYTES) + WORD_BYTES;
            renew_tables(parameters, half, k, tiles[t]);
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const unsigned *of_first = tiles[t].tables[0][row];
                const unsigned *of_second = tiles[t].tables[TABLE_STEPS < 8][row];
                unsigned a[2], b[2];
                row_weights(words[t][row], k, of_first, of_second, a, b);
                first[t][row] = a[0];
                first[t][row + 2] = a[1];
                second[t][row] = b[0];
                second[t][row + 2] = b[1];
            }
        }
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            const unsigned short *from = x + n * 8 * X_ROW + (8 * half + k) * 16;
            uint2 b = *reinterpret_cast<const uint2 *>(from);
            uint2 c = *reinterpret_cast<const uint2 *>(from + 64);
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                multiply_halves(sums[t][n], first[t], b.x, b.y);
                multiply_halves(sums[t][n], second[t], c.x, c.y);
            }
        }
    }
}

// ---- sums ----

// This warp's sums into shared memory: [along][row of x][output of the block].
__device__ __forceinline__ void keep_sums(const float (&sums)[TILES][COLUMNS][4], int across,
                                          int along, float *shared) {
    int g = (threadIdx.x & 31) / 4, column = (threadIdx.x & 3) * 2;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            float *to = shared + (along * ROWS + n * 8 + column) * SUM_ROW;
            to += (across * TILES + t) * 16 + g;
            to[0] = sums[t][n][0];
            to[SUM_ROW] = sums[t][n][1];
            to[8] = sums[t][n][2];
            to[SUM_ROW + 8] = sums[t][n][3];
        }
    }
}

// What a thread adds up and writes: the block's outputs of all rows are cut up between the blocks of
// the cluster, and those between threads.
constexpr int RESULTS = (ROWS * OUTPUTS + SPLIT * THREADS - 1) / (SPLIT * THREADS);

__device__ __forceinline__ int place_of_result(int i) {
    int block = SPLIT > 1 ? blockIdx.z : 0;
    return (i * SPLIT + block) * THREADS + threadIdx.x;  // in [row of x][output of the block]
}

// The sums of the warps along the inputs and of the cluster's blocks, in this order.
__device__ __forceinline__ void add_sums(const float *shared, float (&results)[RESULTS]) {
#pragma unroll
    for (int i = 0; i < RESULTS; ++i) {
        int place = place_of_result(i), row = place / OUTPUTS, output = place % OUTPUTS;
        results[i] = 0.0f;
        if (place < ROWS * OUTPUTS) {
#pragma unroll
            for (int block = 0; block < SPLIT; ++block) {
#pragma unroll
                for (int along = 0; along < ALONG; ++along) {
                    const float *from = shared + (along * ROWS + row) * SUM_ROW + output;
                    results[i] += SPLIT > 1 ? read_of_cluster(from, block) : *from;
                }
            }
        }
    }
}

__device__ __forceinline__ void write_y(const float (&results)[RESULTS], const float *bias,
                                        unsigned short *y, int outputs, int rows) {
#pragma unroll
    for (int i = 0; i < RESULTS; ++i) {
        int place = place_of_result(i), row = place / OUTPUTS + blockIdx.y * ROWS;
        int output = place % OUTPUTS + blockIdx.x * OUTPUTS;
        if (place < ROWS * OUTPUTS && row < rows && output < outputs) {
            float sum = results[i] + (bias ? bias[output] : 0.0f);
            y[(size_t)row * outputs + output] = float_to_activation(sum);
        }
    }
}

// words, parameters: layout.py. x (rows, inputs), y (rows, outputs). bias (outputs) or null.
// Grid: (blocks of OUTPUTS, blocks of ROWS, SPLIT); shared memory: see half_rows.py.
extern "C" __global__ void
#if SPLIT > 1 && __CUDA_ARCH__ >= 900
__cluster_dims__(1, 1, SPLIT)
#endif
__launch_bounds__(THREADS, BLOCKS)
half_rows(const uint4 *words, const unsigned char *parameters, const unsigned short *x,
          const float *bias, unsigned short *y, int outputs, int inputs, int rows) {
    unsigned char *shared = static_cast<unsigned char *>(shared_memory());
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31, across = warp % ACROSS;
    int along = warp / ACROSS, chunks = (inputs + 255) / 256, first_row = blockIdx.y * ROWS;
    int share = (chunks + SPLIT - 1) / SPLIT, first_chunk = share * blockIdx.z;
    int end = min(first_chunk + share, chunks);
    int batches = (end - first_chunk + ALONG - 1) / ALONG;
    int mine = ALONG * X_BYTES + warp * WARP_BYTES;  // of a stage: this warp's words

    Sources from;
    constexpr int group = GROUP ? GROUP : 1;
    int groups = GROUP ? (chunks * 256 + group - 1) / group : 1;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        // One tile too many is read, and not written.
        int tile = (blockIdx.x * ACROSS + across) * TILES + t;
        tile = min(tile, (outputs - 1) / 16);
        from.words[t] = reinterpret_cast<const unsigned char *>(words);
        from.words[t] += (size_t)tile * chunks * WORD_BYTES + lane * 16;
        from.parameters[t] = parameters + (size_t)tile * groups * GROUP_BYTES;
    }
    from.x = x + (size_t)first_row * inputs + lane * 8;
    from.inputs = inputs;
    from.rows = rows - first_row;
    from.aligned = inputs % 8 == 0 && reinterpret_cast<size_t>(x) % 16 == 0;

    // Weights are not what an earlier kernel writes; x may be.
#pragma unroll
    for (int batch = 0; batch < STAGES - 1; ++batch) {
        int chunk = first_chunk + batch * ALONG + along;
        if (chunk < end) {
            copy_weights(from, chunk, shared + batch * STAGE_BYTES + mine);
        }
    }
    wait_for_previous_kernels();
    let_next_kernel_start();
#pragma unroll
    for (int batch = 0; batch < STAGES - 1; ++batch) {
        if (batch < batches) {
            copy_x(from, first_chunk + batch * ALONG, shared + batch * STAGE_BYTES);
        }
        commit_copies();
    }

    float sums[TILES][COLUMNS][4] = {};
    for (int batch = 0; batch < batches; ++batch) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        int ahead = batch + STAGES - 1, chunk = first_chunk + batch * ALONG + along;
        if (ahead < batches) {
            unsigned char *stage = shared + ahead % STAGES * STAGE_BYTES;
            int next = chunk + (STAGES - 1) * ALONG;
            if (next < end) {
                copy_weights(from, next, stage + mine);
            }
            copy_x(from, first_chunk + ahead * ALONG, stage);
        }
        commit_copies();
        if (chunk < end) {
            const unsigned char *stage = shared + batch % STAGES * STAGE_BYTES;
            const unsigned short *rows_of_x = reinterpret_cast<const unsigned short *>(stage);
            rows_of_x += (along * ROWS + lane / 4) * X_ROW + (lane & 3) * 4;
            Tile tiles[TILES];
            multiply_half(stage + mine, rows_of_x, 0, tiles, sums);
            multiply_half(stage + mine, rows_of_x, 1, tiles, sums);
        }
    }

    wait_for_copies<0>();
    __syncthreads();
    float *kept = reinterpret_cast<float *>(shared);
    keep_sums(sums, across, along, kept);
    float results[RESULTS];
    if (SPLIT > 1) {
        synchronize_cluster();
        add_sums(kept, results);
        synchronize_cluster();  // a block's shared memory stays until all have read it
    } else {
        __syncthreads();
        add_sums(kept, results);
    }
    write_y(results, bias, y, outputs, rows);
}
