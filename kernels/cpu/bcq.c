/* The layout, and the walk over its tiles and blocks; the arithmetic is in one file for each instruction set. */
#define _DEFAULT_SOURCE /* posix_memalign, madvise */
#include <stdatomic.h>
#include <stdlib.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "bcq_kernel.h"

#ifdef BCQ_X86
#include <cpuid.h>
#endif

#define PLANE_BYTES 64 /* one plane of 32 rows and 16 inputs */
#define HUGE_PAGE ((uintptr_t)1 << 21)

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t strip_count(const bcq_weight *w) {
    int64_t rows = bcq_together(w) * BCQ_ROWS;
    return (w->rows + rows - 1) / rows;
}
INLINE int64_t block_count(const bcq_weight *w) { return strip_count(w) * bcq_together(w); }
INLINE int scales_inside(const bcq_weight *w) { return w->group <= BCQ_TILE; }

INLINE int64_t scale_bytes(const bcq_weight *w) {
    return BCQ_ROWS * ((w->uniform ? 1 : w->bits) * bcq_bytes(w->scale_type) + bcq_bytes(w->shift_type));
}

/* Bytes of a block of `length` inputs from the start of a group. */
INLINE int64_t block_bytes(const bcq_weight *w, int64_t length) {
    return length / 16 * w->bits * PLANE_BYTES + (scales_inside(w) ? length / w->group * scale_bytes(w) : 0);
}

/* Tiles end where groups do, and never hold parts of two groups that are longer than a tile. */
INLINE int64_t tile_end(const bcq_weight *w, int64_t start) {
    if (scales_inside(w))
        return min64(start + BCQ_TILE / w->group * w->group, w->columns);
    return min64(start + BCQ_TILE, (start / w->group + 1) * w->group);
}

static bcq_block block_at(const bcq_weight *w, const void *derived, int64_t start, int64_t end, int64_t index) {
    const char *base = derived;
    int64_t together = bcq_together(w), place = index % together;
    bcq_block block = {.weight = w, .length = end - start, .group = min64(w->group, end - start)};
    const char *strip = base + block_count(w) * block_bytes(w, start) + (index - place) * block_bytes(w, end - start);
    block.words = (const uint16_t *)(strip + place * w->bits * PLANE_BYTES);
    block.words_stride = together * block_bytes(w, block.group);
    block.scale_stride = block.words_stride;
    if (scales_inside(w))
        block.scales = strip + together * (w->group / 16 * w->bits * PLANE_BYTES) + place * scale_bytes(w);
    else {
        block.scales = base + block_count(w) * (w->columns / 16) * w->bits * PLANE_BYTES +
                       (index * (w->columns / w->group) + start / w->group) * scale_bytes(w);
    }
    return block;
}

int64_t bcq_size(const bcq_weight *w) {
    int whole = w->rows > 0 && w->group > 0 && w->columns > 0 && w->group % 32 == 0 && w->columns % w->group == 0;
    int typed = (w->scale_type == BCQ_F16 || w->scale_type == BCQ_F32) &&
                (w->shift_type == BCQ_F16 || w->shift_type == BCQ_F32 || w->shift_type == BCQ_NONE);
    if (!whole || !typed || w->bits < 1 || w->bits > 8 || w->rows > INT32_MAX || w->columns > INT32_MAX || w->isa < 0 ||
        w->isa >= BCQ_ISA_COUNT)
        return -1;
    return block_count(w) * (w->columns / 16 * w->bits * PLANE_BYTES + w->columns / w->group * scale_bytes(w));
}

/* The words of 16 inputs of one row, one for each plane. */
static void read_words(const bcq_weight *w, const uint8_t *codes, int64_t row, int64_t input, uint16_t *words) {
    if (!w->uniform) {
        for (int i = 0; i < w->bits; i++)
            memcpy(words + i, codes + ((i * w->rows + row) * w->columns + input) / 8, 2);
        return;
    }
    uint8_t stream[2 * 8 + 1] = {0};
    memcpy(stream, codes + (row * w->columns + input) / 8 * w->bits, (size_t)(2 * w->bits));
    memset(words, 0, sizeof *words * (size_t)w->bits);
    for (int k = 0; k < 16; k++) {
        int bit = k * w->bits;
        int code = (stream[bit / 8] | stream[bit / 8 + 1] << 8) >> bit % 8;
        for (int i = 0; i < w->bits; i++)
            words[i] |= (uint16_t)((code >> (w->bits - 1 - i) & 1) << k);
    }
}

/* One vector of 32 scales, zero beyond the last row; element `index` of row r's `count` is copied. */
static char *pack_scales(const bcq_weight *w, const char *from, int size, int64_t first, int64_t count, int64_t index,
                         char *to) {
    for (int64_t r = 0; r < BCQ_ROWS; r++, to += size) {
        if (first + r < w->rows)
            memcpy(to, from + ((first + r) * count + index) * size, (size_t)size);
        else
            memset(to, 0, (size_t)size);
    }
    return to;
}

static void pack_group(const bcq_weight *w, const void *scale, const void *shift, int64_t first, int64_t group,
                       char *to) {
    int64_t groups = w->columns / w->group, planes = w->uniform ? 1 : w->bits;
    for (int64_t i = 0; i < planes; i++)
        to = pack_scales(w, scale, bcq_bytes(w->scale_type), first, groups * planes, group * planes + i, to);
    if (w->shift_type != BCQ_NONE)
        pack_scales(w, shift, bcq_bytes(w->shift_type), first, groups, group, to);
}

static void put_word(const bcq_weight *w, int64_t row, uint16_t word, uint16_t *plane) {
    uint8_t *bytes = (uint8_t *)plane;
    if (w->isa != BCQ_AVX2) {
        plane[2 * (row % 16) + row / 16] = word;
        return;
    }
    bytes[4 * (row % 8) + row / 8] = (uint8_t)word;
    bytes[BCQ_ROWS + 4 * (row % 8) + row / 8] = (uint8_t)(word >> 8);
}

static void pack_words(const bcq_weight *w, const void *codes, int64_t first, int64_t input, int64_t length,
                       uint16_t *to) {
    uint16_t words[8];
    for (int64_t k = 0; k < length; k += 16)
        for (int64_t r = 0; r < BCQ_ROWS; r++) {
            if (first + r < w->rows)
                read_words(w, codes, first + r, input + k, words);
            else
                memset(words, 0, sizeof words);
            for (int i = 0; i < w->bits; i++)
                put_word(w, r, words[i], to + bcq_words_to(w, length, k, i));
        }
}

/* A stream through small pages waits for their addresses: reading was 21-24 GB/s with, and 27-29 GB/s without them. */
void bcq_prefer_huge_pages(void *memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    uintptr_t first = ((uintptr_t)memory + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    uintptr_t last = ((uintptr_t)memory + (uintptr_t)bytes) & ~(HUGE_PAGE - 1);
    if (last > first)
        (void)madvise((void *)first, last - first, MADV_HUGEPAGE); /* refused: it works all the same */
#else
    (void)memory, (void)bytes;
#endif
}

int bcq_pack(const bcq_weight *w, const void *codes, const void *scale, const void *shift, void *derived) {
    int64_t size = bcq_size(w);
    if (size < 0 || (uintptr_t)derived % 64 || !codes || !scale || (w->shift_type != BCQ_NONE && !shift))
        return BCQ_BAD_ARGUMENT;
    bcq_prefer_huge_pages(derived, size);
    for (int64_t start = 0, end; start < w->columns; start = end) {
        end = tile_end(w, start);
        for (int64_t index = 0; index < block_count(w); index++) {
            bcq_block block = block_at(w, derived, start, end, index);
            char *words = (char *)derived + ((const char *)block.words - (const char *)derived);
            char *scales = (char *)derived + (block.scales - (const char *)derived);
            for (int64_t g = 0; g < block.length / block.group; g++) {
                pack_words(w, codes, index * BCQ_ROWS, start + g * block.group, block.group,
                           (uint16_t *)(words + g * block.words_stride));
                pack_group(w, scale, shift, index * BCQ_ROWS, start / w->group + g, scales + g * block.scale_stride);
            }
        }
    }
    return BCQ_OK;
}

#ifdef BCQ_X86
static int has_f16c(void) { /* not every compiler's __builtin_cpu_supports knows it */
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static int find_best_isa(void) {
#ifdef BCQ_X86
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return BCQ_AVX512;
    if (avx2)
        return BCQ_AVX2;
#endif
    return BCQ_PORTABLE;
}

/* Asked once: in a virtual machine the processor's answer takes 20 us, as it comes from the host. */
int bcq_best_isa(void) {
    static _Atomic int best = -1;
    int known = atomic_load_explicit(&best, memory_order_relaxed);
    if (known < 0) {
        known = find_best_isa();
        atomic_store_explicit(&best, known, memory_order_relaxed);
    }
    return known;
}

int bcq_has_threads(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* NULL where this processor, or this build, lacks the instruction set. */
static const bcq_functions *functions(int32_t isa) {
    if (isa < 0 || isa > bcq_best_isa())
        return NULL;
#ifdef BCQ_X86
    if (isa == BCQ_AVX512)
        return &bcq_avx512;
    if (isa == BCQ_AVX2)
        return &bcq_avx2;
#endif
    return &bcq_portable;
}

typedef struct {
    const bcq_weight *weight;
    const void *derived;
    const float *x;
    int64_t batch;
    int parts;
    const bcq_functions *functions;
    float *sums; /* [block][batch][32] */
} product;

/* The strips first..last-1, tile after tile. */
static void multiply(const product *p, bcq_tables *tables, int64_t first, int64_t last) {
    const bcq_weight *w = p->weight;
    int batch = (int)p->batch, together = bcq_together(w);
    int64_t stride = together * batch * BCQ_ROWS;
    memset(p->sums + first * stride, 0, sizeof(float) * (size_t)((last - first) * stride));
    for (int64_t start = 0, end; start < w->columns; start = end) {
        end = tile_end(w, start);
        int64_t group = min64(w->group, end - start);
        for (int m = 0; m < batch; m++)
            p->functions->tables(p->x + m * w->columns + start, end - start, group, p->parts, tables + m);
        bcq_block strip[STRIP]; /* the strips of a tile are equally far apart */
        for (int i = 0; i < together; i++)
            strip[i] = block_at(w, p->derived, start, end, first * together + i);
        bcq_block next = block_at(w, p->derived, start, end, (first + 1) * together);
        int64_t words = (const char *)next.words - (const char *)strip->words, scales = next.scales - strip->scales;
        for (int64_t index = first; index < last; index++) {
            p->functions->product(strip, tables, batch, p->parts, p->sums + index * stride);
            for (int i = 0; i < together; i++) {
                strip[i].words = (const uint16_t *)((const char *)strip[i].words + words);
                strip[i].scales += scales;
            }
        }
    }
}

static void store(const product *p, const float *bias, void *y, int32_t type) {
    int64_t rows = p->weight->rows;
    for (int64_t m = 0; m < p->batch; m++)
        for (int64_t first = 0; first < rows; first += BCQ_ROWS) {
            const float *sums = p->sums + (first / BCQ_ROWS * p->batch + m) * BCQ_ROWS;
            for (int64_t r = 0; r < min64(BCQ_ROWS, rows - first); r++) {
                float value = sums[r] + (bias ? bias[first + r] : 0.0f);
                if (type == BCQ_BF16)
                    ((uint16_t *)y)[m * rows + first + r] = bcq_to_bfloat(value);
                else
                    ((float *)y)[m * rows + first + r] = value;
            }
        }
}

static void *aligned(int64_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, (size_t)bytes) ? NULL : memory;
}

/* At most BCQ_BATCH rows of x, whose tables fit the cache together. */
static int multiply_few(product p, const void *x, int32_t type, const float *bias, void *y, int32_t threads) {
    const bcq_weight *w = p.weight;
    int64_t strips = strip_count(w), team = bcq_has_threads() ? max64(1, min64(threads, strips)) : 1;
    int64_t widened = type == BCQ_BF16 ? (p.batch * w->columns * 4 + 63) / 64 * 64 : 0;
    int64_t sums = block_count(w) * p.batch * BCQ_ROWS * 4;
    int64_t tables = p.batch * (int64_t)sizeof(bcq_tables);
    char *memory = aligned(team * tables + sums + widened);
    if (!memory)
        return BCQ_NO_MEMORY;
    float *wide = (float *)(memory + team * tables + sums);
    for (int64_t k = 0; k < (widened ? p.batch * w->columns : 0); k++)
        wide[k] = bcq_load(x, k, BCQ_BF16);
    p.x = widened ? wide : x;
    p.sums = (float *)(memory + team * tables);
#ifdef _OPENMP
#pragma omp parallel for num_threads((int)team) schedule(static) if (team > 1)
#endif
    for (int64_t part = 0; part < team; part++)
        multiply(&p, (bcq_tables *)(memory + part * tables), strips * part / team, strips * (part + 1) / team);
    store(&p, bias, y, type);
    free(memory);
    return BCQ_OK;
}

int bcq_product(const bcq_weight *w, const void *derived, const void *x, int32_t type, int64_t batch, const float *bias,
                void *y, int32_t mode, int32_t threads) {
    product p = {.weight = w, .derived = derived, .parts = mode == BCQ_FAST ? 1 : 2, .functions = functions(w->isa)};
    if (!p.functions)
        return BCQ_NO_ISA;
    if (bcq_size(w) < 0 || batch < 0 || (type != BCQ_F32 && type != BCQ_BF16) ||
        (mode != BCQ_EXACT && mode != BCQ_FAST) || (uintptr_t)derived % 64)
        return BCQ_BAD_ARGUMENT;
    int status = BCQ_OK;
    for (int64_t m = 0; m < batch && status == BCQ_OK; m += BCQ_BATCH) {
        const char *from = (const char *)x + m * w->columns * bcq_bytes(type);
        char *to = (char *)y + m * w->rows * bcq_bytes(type);
        p.batch = min64(BCQ_BATCH, batch - m);
        status = multiply_few(p, from, type, bias, to, threads);
    }
    return status;
}

typedef struct {
    const bcq_weight *weight;
    const void *derived;
    int64_t first, last; /* rows */
    char *out;
    int32_t type;
    const bcq_functions *functions;
} dequantization;

/* The blocks from..to-1 of the wanted rows, tile after tile: in the order in which they lie in memory. */
static void widen(const dequantization *d, int64_t from, int64_t to) {
    const bcq_weight *w = d->weight;
    for (int64_t start = 0, end; start < w->columns; start = end) {
        end = tile_end(w, start);
        for (int64_t index = from; index < to; index++) {
            bcq_block block = block_at(w, d->derived, start, end, d->first / BCQ_ROWS + index);
            int64_t at = index * BCQ_ROWS, rows = min64(BCQ_ROWS, d->last - d->first - at);
            char *out = d->out + (at * w->columns + start) * bcq_bytes(d->type);
            d->functions->dequantize(&block, (int)rows, w->columns, out, d->type == BCQ_BF16);
        }
    }
}

int bcq_dequantize(const bcq_weight *w, const void *derived, int64_t first, int64_t last, void *out, int32_t type,
                   int32_t threads) {
    const bcq_functions *chosen = functions(w->isa);
    if (!chosen)
        return BCQ_NO_ISA;
    if (bcq_size(w) < 0 || first < 0 || first % BCQ_ROWS || last > w->rows || (type != BCQ_F32 && type != BCQ_BF16))
        return BCQ_BAD_ARGUMENT;
    int64_t blocks = last <= first ? 0 : (last - first + BCQ_ROWS - 1) / BCQ_ROWS;
    int64_t team = bcq_has_threads() ? max64(1, min64(threads, blocks)) : 1;
    dequantization d = {w, derived, first, last, out, type, chosen};
#ifdef _OPENMP
#pragma omp parallel for num_threads((int)team) schedule(static) if (team > 1)
#endif
    for (int64_t part = 0; part < team; part++)
        widen(&d, blocks * part / team, blocks * (part + 1) / team);
    return BCQ_OK;
}

uint64_t bcq_read(const void *memory, int64_t bytes, int32_t isa, int32_t threads) {
    const bcq_functions *chosen = functions(isa);
    int64_t team = bcq_has_threads() && threads > 1 ? threads : 1, part_bytes = bytes / team / 64 * 64;
    uint64_t found = 0;
    if (!chosen)
        return 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads((int)team) schedule(static) reduction(^ : found) if (team > 1)
#endif
    for (int64_t part = 0; part < team; part++)
        found ^= chosen->read((const char *)memory + part * part_bytes, part_bytes);
    return found;
}
