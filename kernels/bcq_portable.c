/* The kernels in plain C: the definition of the others, and what serves where no vector instructions are known. */
#include <math.h>

#include "bcq_kernel.h"

static void tables(const float *x, int64_t length, int64_t group, int m, int fast, bcq_tables *out) {
    float entries[ENTRIES];
    int64_t segment = 0;
    for (int64_t start = 0; start < length; start += group) {
        float sum = 0;
        for (int64_t k = start; k < start + group; k++)
            sum += x[k];
        out->sums[m][start / group] = sum;
        for (int64_t from = start, to; from < start + group; from = to, segment++) {
            to = from + SEGMENT < start + group ? from + SEGMENT : start + group;
            float magnitude = 0;
            for (int64_t k = from; k < to; k++)
                magnitude += fabsf(x[k]);
            float step = bcq_step(magnitude), per_step = bcq_per_step(step);
            out->steps[m][segment] = step;
            for (int64_t q = from / 4; q < to / 4; q++) {
                for (int c = 0; c < ENTRIES; c++) {
                    float value = c & 1 ? x[4 * q] : -x[4 * q];
                    for (int j = 1; j < 4; j++)
                        value += c >> j & 1 ? x[4 * q + j] : -x[4 * q + j];
                    entries[c] = value;
                }
                if (!fast)
                    memcpy(out->exact[m][q], entries, sizeof entries);
                for (int c = 0; c < (fast ? 2 * ENTRIES : 0); c++) {
                    float scaled = entries[c % ENTRIES] * per_step;
                    out->fast[m][q][c] = fabsf(scaled) < 32767.0f ? (int16_t)lrintf(scaled) : 0;
                }
            }
        }
    }
}

INLINE float alpha(const bcq_weight *w, const char *scales, int plane, int row) {
    if (w->uniform)
        return bcq_load(scales, row, w->scale_type) * bcq_place(w, plane);
    return bcq_load(scales, plane * BCQ_ROWS + row, w->scale_type);
}

/* What the sum of the activations counts. */
INLINE float shift(const bcq_weight *w, const char *scales, int row) {
    const char *shifts = bcq_shifts(w, scales);
    int stored = w->shift_type != BCQ_NONE;
    if (!w->uniform)
        return stored ? bcq_load(shifts, row, w->shift_type) : 0.0f;
    float zero = stored ? bcq_load(shifts, row, w->shift_type) : bcq_middle(w);
    return bcq_load(scales, row, w->scale_type) * (bcq_half_range(w) - zero);
}

static void product(const bcq_block *block, const bcq_tables *tables, int batch, float *sums, int fast) {
    const bcq_weight *w = block->weight;
    int64_t segment = 0;
    for (int64_t g = 0; g < block->length / block->group; g++) {
        const uint16_t *words = (const uint16_t *)((const char *)block->words + g * block->words_stride);
        const char *scales = block->scales + g * block->scale_stride;
        int64_t first = g * block->group, last = first + block->group;
        for (int64_t from = first, to; from < last; from = to, segment++) {
            to = fast && from + SEGMENT < last ? from + SEGMENT : last;
            for (int m = 0; m < batch; m++)
                for (int i = 0; i < w->bits; i++)
                    for (int lane = 0; lane < BCQ_ROWS; lane++) {
                        int row = lane % 2 * 16 + lane / 2, whole = 0;
                        float part = 0;
                        for (int64_t k = from; k < to; k += 4) {
                            int word = words[((k - first) / 16 * w->bits + i) * BCQ_ROWS + lane];
                            int entry = word >> k % 16 & 15;
                            if (fast)
                                whole += tables->fast[m][k / 4][entry];
                            else
                                part += tables->exact[m][k / 4][entry];
                        }
                        if (fast)
                            part = (float)whole * tables->steps[m][segment];
                        sums[m * BCQ_ROWS + row] += alpha(w, scales, i, row) * part;
                    }
        }
        for (int m = 0; m < batch; m++)
            for (int row = 0; row < BCQ_ROWS; row++)
                sums[m * BCQ_ROWS + row] += shift(w, scales, row) * tables->sums[m][g];
    }
}

static void exact(const bcq_block *block, const bcq_tables *tables, int batch, float *sums) {
    product(block, tables, batch, sums, 0);
}

static void fast(const bcq_block *block, const bcq_tables *tables, int batch, float *sums) {
    product(block, tables, batch, sums, 1);
}

static float weight_of(const bcq_weight *w, const char *scales, int row, const uint16_t *words, int bit) {
    const char *shifts = bcq_shifts(w, scales);
    int stored = w->shift_type != BCQ_NONE;
    if (w->uniform) {
        int code = 0;
        for (int i = 0; i < w->bits; i++)
            code = 2 * code + (words[i * BCQ_ROWS] >> bit & 1);
        float zero = stored ? bcq_load(shifts, row, w->shift_type) : bcq_middle(w);
        return ((float)code - zero) * bcq_load(scales, row, w->scale_type);
    }
    float value = 0;
    for (int i = 0; i < w->bits; i++) {
        float a = alpha(w, scales, i, row);
        value = i ? value + (words[i * BCQ_ROWS] >> bit & 1 ? a : -a) : (words[0] >> bit & 1 ? a : -a);
    }
    return stored ? value + bcq_load(shifts, row, w->shift_type) : value;
}

static void dequantize(const bcq_block *block, int rows, int64_t stride, void *out, int bfloat) {
    const bcq_weight *w = block->weight;
    for (int row = 0; row < rows; row++)
        for (int64_t k = 0; k < block->length; k++) {
            int64_t g = k / block->group, inside = k % block->group;
            const uint16_t *words = (const uint16_t *)((const char *)block->words + g * block->words_stride);
            words += inside / 16 * w->bits * BCQ_ROWS + 2 * (row % 16) + row / 16;
            float value = weight_of(w, block->scales + g * block->scale_stride, row, words, (int)(inside % 16));
            if (bfloat)
                ((uint16_t *)out)[row * stride + k] = bcq_to_bfloat(value);
            else
                ((float *)out)[row * stride + k] = value;
        }
}

static uint64_t read_all(const char *memory, int64_t bytes) {
    uint64_t found[8] = {0}, value;
    for (int64_t at = 0; at < bytes / 64 * 64; at += 64)
        for (int i = 0; i < 8; i++) {
            memcpy(&value, memory + at + 8 * i, sizeof value);
            found[i] ^= value;
        }
    return found[0] ^ found[1] ^ found[2] ^ found[3] ^ found[4] ^ found[5] ^ found[6] ^ found[7];
}

const bcq_functions bcq_portable = {tables, exact, fast, dequantize, read_all};
