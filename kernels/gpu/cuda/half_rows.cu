// y = x W^T for 5 to some hundred rows of x: weights become float16 or bfloat16 in registers and go
// through mma.m16n8k16 as they are. Compiled for one weight format (weights.cuh) and for
//
//   ROWS    rows of x of a block, a multiple of 8; more rows are more blocks (blockIdx.y)
//   TILES   tiles of 16 outputs of a warp, which share what it reads of x
//   ACROSS  warps of a block beside each other along the outputs
//   ALONG   warps of a block that share the inputs, chunk by chunk
//   SPLIT   blocks that share the inputs: a cluster, which adds their sums (1 before sm_90)
//   STAGES  batches of chunks in shared memory, of which all but one are on their way
//   SPAN    0, or batches of x that arrive together
//   BLOCKS  blocks that should fit a multiprocessor
//
// A batch is ALONG chunks of 256 inputs. Each warp copies its own words and parameters. With SPAN 0
// all warps together copy x and meet at every batch: all make tables, then all multiply, and wait
// for the slowest. Otherwise the ACROSS warps of a chunk copy what they read of x and meet when a
// span begins; the others are elsewhere, so that one's waiting is another's work. Sums are added in
// a fixed order: the same x gives the same y bit for bit.
#include "weights.cuh"

constexpr int WARPS = ACROSS * ALONG;
constexpr int THREADS = 32 * WARPS;
constexpr int COLUMNS = ROWS / 8;  // of 8 rows of x: what one mma multiplies
constexpr int OUTPUTS = 16 * TILES * ACROSS;

constexpr int X_ROW = 256 + 16;  // numbers; so rows begin at other banks, and loads do not collide
constexpr int X_BYTES = ROWS * X_ROW * 2;
constexpr int WORD_BYTES = PLANES * 32 * 16;       // of a tile and chunk
constexpr int TABLE_BYTES = TABLES * GROUP_BYTES;  // of a tile and chunk
constexpr int TILE_BYTES = WORD_BYTES + TABLE_BYTES;
constexpr int WARP_BYTES = TILES * TILE_BYTES;
constexpr bool IN_SPANS = SPAN > 0;
constexpr int BATCHES = IN_SPANS ? SPAN : 1;  // of a span
constexpr int X_CHUNKS = BATCHES * ALONG;
constexpr int SPAN_BYTES = X_CHUNKS * X_BYTES;
// x lies at the begin of each stage, or in two buffers before all of them.
constexpr int X_BUFFERS = IN_SPANS ? 2 : STAGES;
constexpr int BEFORE_STAGES = IN_SPANS ? X_BUFFERS * SPAN_BYTES : 0;
constexpr int STAGE_BYTES = WARPS * WARP_BYTES + (IN_SPANS ? 0 : SPAN_BYTES);
constexpr int X_STEP = IN_SPANS ? SPAN_BYTES : STAGE_BYTES;  // from one buffer to the next
constexpr int SHARED_TABLE_BYTES = TABLES * 16 * TABLE_ROW * 4;     // of a tile and chunk
// Tables of two batches lie after the stages; of one with spans, where shared memory is scarce.
constexpr int TABLES_OF_BATCH = IN_SPANS ? 0 : WARPS * TILES * SHARED_TABLE_BYTES;
static_assert(STAGES >= 3, "parameters arrive a batch before their words are used");
static_assert(!IN_SPANS || SPAN >= STAGES - 2, "a span of x has arrived when it begins");

// Words of both halves of a chunk in one load, where there are registers for them.
constexpr bool AT_ONCE = IN_SPANS && TILES * PLANES <= 8 && ROWS <= 16;

constexpr int SUM_ROW = OUTPUTS + 4;  // floats; the same reason

// Lines of 256 inputs of x go over the rows of a chunk, then over those of the next. A warp copies
// one and every COPIERS-th after it: of the span, or of those of its chunks that it reads.
constexpr int COPIERS = IN_SPANS ? ACROSS : WARPS;
constexpr int LINES = IN_SPANS ? BATCHES * ROWS : ALONG * ROWS;
constexpr int CHUNK_STEP = IN_SPANS ? ALONG : 1;
static_assert(ROWS % COPIERS == 0 || COPIERS % ROWS == 0, "lines of a warp would be of any row");

__device__ __forceinline__ int copier() {
    int warp = threadIdx.x / 32;
    return IN_SPANS ? warp % ACROSS : warp;
}

// What this warp copies first, by its place in the span.
__device__ __forceinline__ int first_line() {
    int chunk = copier() / ROWS * CHUNK_STEP + (IN_SPANS ? threadIdx.x / 32 / ACROSS : 0);
    return chunk * ROWS + copier() % ROWS;
}

// Where this thread's data lie in shared memory, from the begin of a stage on, a span, or of all.
struct Places {
    unsigned words;        // of its first tile and plane
    unsigned parameters;   // of the row whose table it makes
    unsigned x;            // inputs 4 t, .. of row g in the first batch
    unsigned copy_of_x;    // the 8 inputs that it copies first
    unsigned own_table;    // that it makes, for a batch of even number
    unsigned tables;       // of row g, for the same
};

__device__ __forceinline__ Places places_of_thread() {
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31, along = warp / ACROSS, row = lane % 16;
    unsigned mine = (IN_SPANS ? BEFORE_STAGES : SPAN_BYTES) + warp * WARP_BYTES;
    unsigned all = shared_memory() + BEFORE_STAGES + STAGES * STAGE_BYTES;
    all += warp * TILES * SHARED_TABLE_BYTES;
    Places at;
    at.words = held(mine + lane * 16);
    at.parameters = mine + WORD_BYTES + (lane / 16 * 8 + row % 8) * PARAMETERS * PAIR_BYTES;
    at.parameters = held(at.parameters + row / 8 * PARAMETER_BYTES);
    at.x = held(((along * ROWS + lane / 4) * X_ROW + (lane & 3) * 4) * 2);
    at.copy_of_x = held((first_line() * X_ROW + lane * 8) * 2);
    at.own_table = held(all + lane * TABLE_ROW * 4);
    at.tables = held(all + lane / 4 * TABLE_ROW * 4);
    return at;
}

// ---- copies into shared memory ----

// Where this thread copies weights from: this warp's tiles, and its next chunk.
struct Weights {
    const unsigned char *words[TILES];       // this lane's first word of the chunk
    const unsigned char *parameters[TILES];  // of the chunk, or of the tile where groups are large
    int chunk, end;
};

// And x.
struct Inputs {
    const unsigned short *x;  // this lane's 8 inputs of this warp's first line
    int left;                 // inputs from there to the end of the row
    int rows;                 // of x, from the line's on
    int inputs;               // of a row of x
};

constexpr bool GROUPS_IN_CHUNK = GROUP && GROUP <= 128;

// Warps that stand along the inputs take the chunks of a batch in turn.
__device__ __forceinline__ Weights weights_of_warp(const uint4 *words,
                                                   const unsigned char *parameters, int outputs,
                                                   int chunks, int first_chunk, int end) {
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    constexpr int group = GROUP ? GROUP : 1;
    int groups = GROUP ? (chunks * 256 + group - 1) / group : 1;
    Weights from;
    from.chunk = first_chunk + warp / ACROSS;
    from.end = end;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        int tile = (blockIdx.x * ACROSS + warp % ACROSS) * TILES + t;
        tile = min(tile, (outputs - 1) / 16);  // one too many is read, and not written
        from.words[t] = reinterpret_cast<const unsigned char *>(words) + lane * 16;
        from.words[t] += ((size_t)tile * chunks + from.chunk) * WORD_BYTES;
        from.parameters[t] = parameters + (size_t)tile * groups * GROUP_BYTES;
        from.parameters[t] += GROUPS_IN_CHUNK ? from.chunk * TABLE_BYTES : 0;
    }
    return from;
}

__device__ __forceinline__ Inputs inputs_of_warp(const unsigned short *x, int inputs, int rows,
                                                 int first_chunk) {
    int lane = threadIdx.x & 31, row = blockIdx.y * ROWS + first_line() % ROWS;
    int input = (first_chunk + first_line() / ROWS) * 256 + lane * 8;
    return {x + (size_t)row * inputs + input, inputs - input, rows - row, inputs};
}

// This warp's words and parameters of its next chunk. to: this lane's first word in the stage.
__device__ __forceinline__ void copy_weights(Weights &from, unsigned to) {
    int lane = threadIdx.x & 31;
    constexpr int pieces = GROUP_BYTES / 16;
    if (from.chunk < from.end) {
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
            for (int plane = 0; plane < PLANES; ++plane) {
                copy_async(to + t * TILE_BYTES + plane * 512, from.words[t] + plane * 512);
            }
#pragma unroll
            for (int i = 0; i < TABLES * pieces; i += 32) {
                int piece = i + lane, place = piece * 16;
                if (!GROUPS_IN_CHUNK) {
                    place = group_of(from.chunk, piece / pieces) * GROUP_BYTES;
                    place += piece % pieces * 16;
                }
                if (piece < TABLES * pieces) {
                    unsigned at = to + t * TILE_BYTES + WORD_BYTES + i * 16;
                    copy_async(at, from.parameters[t] + place);
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

// The block's rows of x in its next span. What lies outside of x is zero. to: this lane's place.
__device__ __forceinline__ void copy_x(Inputs &from, bool aligned, unsigned to) {
    if (aligned) {  // rows of x begin at multiples of 16 bytes
#pragma unroll
        for (int i = 0; i < LINES; i += COPIERS) {
            const int row = i % ROWS, chunk = i / ROWS * CHUNK_STEP, input = chunk * 256;
            if (LINES >= COPIERS || copier() < LINES) {
                bool present = row < from.rows && input < from.left;
                unsigned at = to + (chunk * ROWS + row) * X_ROW * 2;
                copy_or_zeros(at, from.x + row * from.inputs + input, present);
            }
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < LINES; i += COPIERS) {
            int row = i % ROWS, chunk = i / ROWS * CHUNK_STEP, input = chunk * 256;
            int left = row < from.rows ? from.left - input : 0;
            const unsigned short *line = from.x + row * from.inputs + input;
            unsigned at = to + (chunk * ROWS + row) * X_ROW * 2;
            if (LINES >= COPIERS || copier() < LINES) {
#pragma unroll 1
                for (int j = 0; j < 8; ++j) {
                    store_shared_half(at + j * 2, j < left ? line[j] : 0);
                }
            }
        }
    }
    from.x += X_CHUNKS * 256;
    from.left -= X_CHUNKS * 256;
}

// ---- one chunk ----

// The tables of all rows of a tile and chunk are shared: each lane makes some, for the next batch.
constexpr int OWN_TABLES = (16 * TABLES + 31) / 32;
constexpr bool ALL_LANES = 16 * TABLES >= 32;  // else the first half of them

__device__ __forceinline__ void load_parameters_of_tables(
    unsigned parameters, float (&numbers)[TILES][OWN_TABLES][PARAMETERS]) {
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int i = 0; i < OWN_TABLES; ++i) {
            load_row(parameters + t * TILE_BYTES + i * 16 * PARAMETERS * PAIR_BYTES, numbers[t][i]);
        }
    }
}

__device__ __forceinline__ void make_tables(
    const float (&numbers)[TILES][OWN_TABLES][PARAMETERS], unsigned own_table) {
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int i = 0; i < OWN_TABLES; ++i) {
            unsigned table[TABLE_REGISTERS];
            make_table(numbers[t][i], table);
            if (ALL_LANES || (threadIdx.x & 31) < 16) {
                store_table(own_table + t * SHARED_TABLE_BYTES + i * 32 * TABLE_ROW * 4, table);
            }
        }
    }
}

// This lane's words of the tiles of a chunk: [..][row g, row g + 8], of one half or of both.
constexpr int HALVES = AT_ONCE ? 2 : 1;
using Words = unsigned[TILES][PLANES][2 * HALVES];

__device__ __forceinline__ void load_words(unsigned at, Words &words) {
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int plane = 0; plane < PLANES; ++plane) {
            load_shared(words[t][plane], at + t * TILE_BYTES + plane * 512);
        }
    }
}

// sums += a half of a chunk: 128 inputs of all tiles of this warp. all: words of this half, or of
// both. x: of the batch.
__device__ __forceinline__ void multiply_half(const Places &at, const Words &all, unsigned x,
                                              unsigned of_batch, int half,
                                              float (&sums)[TILES][COLUMNS][4]) {
    unsigned words[TILES][2][PLANES];               // [..][row g or g + 8]
    unsigned tables[TILES][2][2][TABLE_REGISTERS];  // [..][of step k or k + 4][row g or g + 8]
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int plane = 0; plane < PLANES; ++plane) {
            words[t][0][plane] = all[t][plane][AT_ONCE ? 2 * half : 0];
            words[t][1][plane] = all[t][plane][AT_ONCE ? 2 * half + 1 : 1];
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
                    unsigned from = at.tables + of_batch + t * SHARED_TABLE_BYTES;
                    from += row * 8 * TABLE_ROW * 4;
                    load_table(from + table * 16 * TABLE_ROW * 4, tables[t][0][row]);
                    if (later != table) {
                        load_table(from + later * 16 * TABLE_ROW * 4, tables[t][1][row]);
                    }
                }
                unsigned a[2], b[2];
                const unsigned *of_first = tables[t][0][row];
                const unsigned *of_second = tables[t][later != table][row];
                row_weights(words[t][row], k, of_first, of_second, a, b);
                first[t][row] = a[0];
                first[t][row + 2] = a[1];
                second[t][row] = b[0];
                second[t][row + 2] = b[1];
            }
        }
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            unsigned from = x + at.x + n * 8 * X_ROW * 2 + (8 * half + k) * 32, b[2], c[2];
            load_shared(b, from);
            load_shared(c, from + 128);
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                multiply_halves(sums[t][n], first[t], b[0], b[1]);
                multiply_halves(sums[t][n], second[t], c[0], c[1]);
            }
        }
    }
}

// ---- sums ----

// This warp's sums into shared memory: [along][row of x][output of the block].
__device__ __forceinline__ void keep_sums(const float (&sums)[TILES][COLUMNS][4], float *shared) {
    int across = threadIdx.x / 32 % ACROSS, along = threadIdx.x / 32 / ACROSS;
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

// What a thread adds up and writes: the outputs of all rows are cut up between the blocks of the
// cluster, and those between threads.
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
    unsigned shared = shared_memory();
    Places at = places_of_thread();
    int along = threadIdx.x / 32 / ACROSS, chunks = (inputs + 255) / 256;
    int share = (chunks + SPLIT - 1) / SPLIT, first_chunk = share * blockIdx.z;
    int end = min(first_chunk + share, chunks);
    int batches = (end - first_chunk + ALONG - 1) / ALONG;
    Weights weights = weights_of_warp(words, parameters, outputs, chunks, first_chunk, end);
    Inputs of_x = inputs_of_warp(x, inputs, rows, first_chunk);
    bool aligned = inputs % 8 == 0 && reinterpret_cast<size_t>(x) % 16 == 0;

    // Weights are not what an earlier kernel writes; x may be.
#pragma unroll
    for (int batch = 0; batch < STAGES - 1; ++batch) {
        copy_weights(weights, shared + batch * STAGE_BYTES + at.words);
    }
    wait_for_previous_kernels();
    let_next_kernel_start();
#pragma unroll
    for (int batch = 0; batch < STAGES - 1; ++batch) {
        if (batch < X_BUFFERS - 1 && batch * BATCHES < batches) {
            copy_x(of_x, aligned, shared + batch * X_STEP + at.copy_of_x);
        }
        commit_copies();
    }

    float sums[TILES][COLUMNS][4] = {};
    float numbers[TILES][OWN_TABLES][PARAMETERS];
    unsigned stage = shared, free_stage = shared + (STAGES - 1) * STAGE_BYTES, tables = 0;
    unsigned span = shared, free_span = shared + SPAN_BYTES, x_of_batch = shared;
    wait_for_copies<STAGES - 2>();
    __syncwarp();  // a warp's lanes read what others of them copied
    load_parameters_of_tables(stage + at.parameters, numbers);
    make_tables(numbers, at.own_table);
    for (int batch = 0; batch < batches; ++batch) {
        wait_for_copies<STAGES - 3>();
        if (batch % BATCHES == 0) {
            if (IN_SPANS) {
                synchronize_threads<32 * ACROSS>(1 + along);
            } else {
                __syncthreads();
            }
            if (batch + (X_BUFFERS - 1) * BATCHES < batches) {
                copy_x(of_x, aligned, (IN_SPANS ? free_span : free_stage) + at.copy_of_x);
            }
            x_of_batch = IN_SPANS ? span : stage;
            span = free_span;
            free_span = x_of_batch;
        } else {
            __syncwarp();
            x_of_batch += ALONG * X_BYTES;
        }
        if (batch + STAGES - 1 < batches) {
            copy_weights(weights, free_stage + at.words);
        }
        commit_copies();
        free_stage = stage;
        stage = stage == shared + (STAGES - 1) * STAGE_BYTES ? shared : stage + STAGE_BYTES;
        load_parameters_of_tables(stage + at.parameters, numbers);
        if (first_chunk + batch * ALONG + along < end) {
            Words words;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (half == 0 || !AT_ONCE) {
                    load_words(free_stage + at.words + half * 8, words);
                }
                multiply_half(at, words, x_of_batch, tables, half, sums);
            }
        }
        tables = TABLES_OF_BATCH - tables;
        if (IN_SPANS) {
            __syncwarp();  // nobody reads the tables any more
        }
        make_tables(numbers, at.own_table + tables);
    }

    wait_for_copies<0>();
    __syncthreads();
    float *kept = reinterpret_cast<float *>(shared_pointer());
    keep_sums(sums, kept);
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
