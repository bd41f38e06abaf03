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
constexpr int SHARED_TABLE_WORDS = TILES * TABLES * 16 * TABLE_ROW;  // of a warp, after the stages

constexpr int SUM_ROW = OUTPUTS + 4;  // floats; the same reason

// ---- copies into shared memory ----

// Where this thread copies weights from: this warp's tiles, and its next chunk.
struct Weights {
    const unsigned char *words[TILES];       // this lane's first word of the chunk
    const unsigned char *parameters[TILES];  // of the chunk, or of the tile where groups are large
    int chunk, end;
};

// And x: a warp copies lines of 256 inputs, this one and every WARPS-th after it. Lines go over the
// rows of the first chunk of a batch, then over those of the next.
struct Inputs {
    const unsigned short *x;  // this lane's 8 inputs of this warp's first line
    int left;                 // inputs from there to the end of the row
    int rows;                 // of x, from the line's on
    int inputs;               // of a row of x
    int place;                // of the 8 inputs in a stage
};

static_assert(ROWS % WARPS == 0 || WARPS % ROWS == 0, "lines of a warp would be of any row");

constexpr bool GROUPS_IN_CHUNK = GROUP && GROUP <= 128;

__device__ __forceinline__ const unsigned char *words_of(const uint4 *words, int tile, int chunks,
                                                         int chunk) {
    return reinterpret_cast<const unsigned char *>(words) + ((size_t)tile * chunks + chunk) * WORD_BYTES;
}

__device__ __forceinline__ const unsigned char *parameters_of(const unsigned char *parameters,
                                                              int tile, int chunks, int chunk) {
    constexpr int group = GROUP ? GROUP : 1;
    int groups = GROUP ? (chunks * 256 + group - 1) / group : 1;
    size_t place = (size_t)tile * groups + (GROUPS_IN_CHUNK ? chunk * TABLES : 0);
    return parameters + place * GROUP_BYTES;
}

// This warp's words and parameters of its next chunk.
__device__ __forceinline__ void copy_weights(Weights &from, unsigned char *stage) {
    int lane = threadIdx.x & 31;
    constexpr int pieces = GROUP_BYTES / 16;
    if (from.chunk < from.end) {
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            unsigned char *to = stage + t * (WORD_BYTES + TABLE_BYTES) + lane * 16;
#pragma unroll
            for (int plane = 0; plane < PLANES; ++plane) {
                copy_async(to + plane * 512, from.words[t] + plane * 512);
            }
#pragma unroll
            for (int i = 0; i < TABLES * pieces; i += 32) {
                int piece = i + lane, place = piece * 16;
                if (!GROUPS_IN_CHUNK) {
                    place = group_of(from.chunk, piece / pieces) * GROUP_BYTES;
                    place += piece % pieces * 16;
                }
                if (piece < TABLES * pieces) {
                    copy_async(to + WORD_BYTES + i * 16, from.parameters[t] + place);
                }
            }
        }
    }
    from.chunk += ALONG;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        from.words[t] += ALONG * WORD_BYTES;
        from.parameters[t] += GROUPS_IN_CHUNK ? ALONG * TABLE_BYTES : 0;
    }
}

// The block's rows of x in its next batch. What lies outside of x is zero.
template <bool ALIGNED>  // rows of x begin at multiples of 16 bytes
__device__ __forceinline__ void copy_x(Inputs &from, unsigned char *stage) {
    unsigned short *to = reinterpret_cast<unsigned short *>(stage) + from.place;
#pragma unroll
    for (int i = 0; i < ALONG * ROWS; i += WARPS) {
        const int row = i % ROWS, input = i / ROWS * 256;
        const unsigned short *at = from.x + row * from.inputs + input;
        int present = row < from.rows ? from.left - input : 0;
        if (ALONG * ROWS < WARPS && threadIdx.x / 32 >= ALONG * ROWS) {
            break;
        }
        if (ALIGNED) {
            copy_or_zeros(to + i * X_ROW, at, present > 0);
        } else {
            for (int j = 0; j < 8; ++j) {
                to[i * X_ROW + j] = j < present ? at[j] : 0;
            }
        }
    }
    from.x += ALONG * 256;
    from.left -= ALONG * 256;
}

__device__ __forceinline__ void copy_batch_of_x(Inputs &from, bool aligned, unsigned char *stage) {
    if (aligned) {
        copy_x<true>(from, stage);
    } else {
        copy_x<false>(from, stage);
    }
}

// ---- one chunk ----

// The tables of all rows of a tile and chunk: each lane makes some, all lanes read them.
__device__ __forceinline__ void share_tables(const unsigned char *parameters, unsigned *tables) {
#pragma unroll
    for (int i = 0; i < 16 * TABLES; i += 32) {
        int entry = i + (threadIdx.x & 31), row = entry % 16, of_table = entry / 16 * 8 + row % 8;
        if (entry < 16 * TABLES) {
            float numbers[PARAMETERS];
            load_row(parameters + of_table * PARAMETERS * PAIR_BYTES, row / 8, numbers);
            unsigned table[TABLE_REGISTERS];
            make_table(numbers, table);
            store_table(tables + entry * TABLE_ROW, table);
        }
    }
}

// sums += a half of a chunk: 128 inputs of all tiles of this warp. x: this lane's place in row g.
__device__ __forceinline__ void multiply_half(const unsigned char *stage, const unsigned *shared,
                                              const unsigned short *x, int half,
                                              float (&sums)[TILES][COLUMNS][4]) {
    int lane = threadIdx.x & 31;
    unsigned words[TILES][2][PLANES];
    unsigned tables[TILES][2][2][TABLE_REGISTERS];  // [..][of k or k + 4][row g or g + 8]
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
        const int table = (8 * half + k) / TABLE_STEPS, later = (8 * half + k + 4) / TABLE_STEPS;
        const bool renewed = k == 0 || (8 * half + k) % TABLE_STEPS == 0;
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                if (renewed) {
                    const unsigned *from = shared + (t * TABLES * 16 + row * 8 + lane / 4) * TABLE_ROW;
                    load_table(from + table * 16 * TABLE_ROW, tables[t][0][row]);
                    load_table(from + later * 16 * TABLE_ROW, tables[t][1][row]);
                }
                unsigned a[2], b[2];
                row_weights(words[t][row], k, tables[t][0][row], tables[t][1][row], a, b);
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

// sums += the chunk of this warp in a stage.
__device__ __forceinline__ void multiply_chunk(const unsigned char *stage, unsigned *tables,
                                               float (&sums)[TILES][COLUMNS][4]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const unsigned short *x = reinterpret_cast<const unsigned short *>(stage);
    x += (warp / ACROSS * ROWS + lane / 4) * X_ROW + (lane & 3) * 4;
    stage += ALONG * X_BYTES + warp * WARP_BYTES;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        const unsigned char *parameters = stage + t * (WORD_BYTES + TABLE_BYTES) + WORD_BYTES;
        share_tables(parameters, tables + t * TABLES * 16 * TABLE_ROW);
    }
    __syncwarp();
    multiply_half(stage, tables, x, 0, sums);
    multiply_half(stage, tables, x, 1, sums);
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
    unsigned char *shared = shared_pointer();
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31, across = warp % ACROSS;
    int along = warp / ACROSS, chunks = (inputs + 255) / 256, first_row = blockIdx.y * ROWS;
    int share = (chunks + SPLIT - 1) / SPLIT, first_chunk = share * blockIdx.z;
    int end = min(first_chunk + share, chunks);
    int batches = (end - first_chunk + ALONG - 1) / ALONG;
    int mine = ALONG * X_BYTES + warp * WARP_BYTES;  // of a stage: this warp's words

    Weights weights;
    weights.chunk = first_chunk + along;
    weights.end = end;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        int tile = (blockIdx.x * ACROSS + across) * TILES + t;
        tile = min(tile, (outputs - 1) / 16);  // one too many is read, and not written
        weights.words[t] = words_of(words, tile, chunks, weights.chunk) + lane * 16;
        weights.parameters[t] = parameters_of(parameters, tile, chunks, weights.chunk);
    }
    int row = warp % ROWS, input = (first_chunk + warp / ROWS) * 256 + lane * 8;
    Inputs of_x;
    of_x.x = x + (size_t)(first_row + row) * inputs + input;
    of_x.left = inputs - input;
    of_x.rows = rows - first_row - row;
    of_x.inputs = inputs;
    of_x.place = warp * X_ROW + lane * 8;
    bool aligned = inputs % 8 == 0 && reinterpret_cast<size_t>(x) % 16 == 0;

    // Weights are not what an earlier kernel writes; x may be.
#pragma unroll
    for (int batch = 0; batch < STAGES - 1; ++batch) {
        copy_weights(weights, shared + batch * STAGE_BYTES + mine);
    }
    wait_for_previous_kernels();
    let_next_kernel_start();
#pragma unroll
    for (int batch = 0; batch < STAGES - 1; ++batch) {
        if (batch < batches) {
            copy_batch_of_x(of_x, aligned, shared + batch * STAGE_BYTES);
        }
        commit_copies();
    }

    float sums[TILES][COLUMNS][4] = {};
    unsigned *tables = reinterpret_cast<unsigned *>(shared + STAGES * STAGE_BYTES);
    tables += warp * SHARED_TABLE_WORDS;
    unsigned char *stage = shared, *free_stage = shared + (STAGES - 1) * STAGE_BYTES;
    for (int batch = 0; batch < batches; ++batch) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        if (batch + STAGES - 1 < batches) {
            copy_weights(weights, free_stage + mine);
            copy_batch_of_x(of_x, aligned, free_stage);
        }
        commit_copies();
        if (first_chunk + batch * ALONG + along < end) {
            multiply_chunk(stage, tables, sums);
        }
        free_stage = stage;
        stage = stage == shared + (STAGES - 1) * STAGE_BYTES ? shared : stage + STAGE_BYTES;
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
