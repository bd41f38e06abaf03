/* The kernels in plain C: the definition of the others, and what serves where no vector instructions are known. */
#include <math.h>

#include "bcq_kernel.h"

/* Entries first..first+count-1 of the 128 that belong to 16 inputs; the table of `inputs` inputs from x on. */
static void fill(const float *x, int inputs, float per_step, int parts, int16_t (*out)[LOOKUPS], int first) {
    for (int c = 0; c < 1 << inputs; c++) {
        float value = 0;
        for (int j = 0; j < inputs; j++)
            value += c >> j & 1 ? x[j] : -x[j];
        value *= per_step;
        int entry = fabsf(value) < 1e9f ? (int)lrintf(value) : 0; /* not finite: the step is not, either */
        int high = parts == 2 ? (entry + (1 << (SPLIT - 1))) >> SPLIT : entry;
        out[0][first + c] = (int16_t)high;
        if (parts == 2)
            out[1][first + c] = (int16_t)(entry - high * (1 << SPLIT));
    }
}

static void tables(const float *x, int64_t length, int64_t group, int parts, bcq_tables *out) {
    int64_t segment = 0;
    for (int64_t start = 0; start < length; start += group) {
        float sum = 0;
        for (int64_t k = start; k < start + group; k++)
            sum += x[k];
        out->sums[start / group] = sum;
        for (int64_t from = start, to; from < start + group; from = to, segment++) {
            to = from + SEGMENT < start + group ? from + SEGMENT : start + group;
            float magnitude = 0;
            for (int64_t k = from; k < to; k++)
                magnitude += fabsf(x[k]);
            out->steps[segment] = bcq_step(magnitude, parts);
            float per_step = 1.0f / out->steps[segment];
            for (int64_t k = from; k < to; k += 16) {
                fill(x + k, 6, per_step, parts, out->entries[k / 16], 0);
                fill(x + k + 6, 5, per_step, parts, out->entries[k / 16], 64);
                fill(x + k + 11, 5, per_step, parts, out->entries[k / 16], 96);
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

/* sum of the entries that the words of one lane choose, over one segment */
static int sum_of_entries(const uint16_t *words, int64_t stride, const int16_t (*entries)[2][LOOKUPS], int64_t count,
                          int parts) {
    int high = 0, low = 0;
    for (int64_t k = 0; k < count; k++) {
        int word = words[k * stride], index[3] = {word & 63, 64 + (word >> 6 & 31), 96 + (word >> 11)};
        for (int j = 0; j < 3; j++) {
            high += entries[k][0][index[j]];
            low += parts == 2 ? entries[k][1][index[j]] : 0;
        }
    }
    return parts == 2 ? high * (1 << SPLIT) + low : high;
}

static void multiply(const bcq_block *block, const bcq_tables *tables, int batch, int parts, float *sums) {
    const bcq_weight *w = block->weight;
    int64_t segment = 0;
    for (int64_t g = 0; g < block->length / block->group; g++) {
        const uint16_t *words = (const uint16_t *)((const char *)block->words + g * block->words_stride);
        const char *scales = block->scales + g * block->scale_stride;
        for (int64_t k = 0, length; k < block->group; k += length, segment++) {
            length = block->group - k < SEGMENT ? block->group - k : SEGMENT;
            for (int lane = 0; lane < BCQ_ROWS * w->bits; lane++) {
                int plane = lane / BCQ_ROWS, row = lane % 2 * 16 + lane % BCQ_ROWS / 2;
                float a = alpha(w, scales, plane, row);
                const uint16_t *from = words + k / 16 * bcq_stride(w) + lane;
                for (int m = 0; m < batch; m++) {
                    const int16_t (*entries)[2][LOOKUPS] = tables[m].entries + (g * block->group + k) / 16;
                    int sum = sum_of_entries(from, bcq_stride(w), entries, length / 16, parts);
                    sums[m * BCQ_ROWS + row] += tables[m].steps[segment] * (a * (float)sum);
                }
            }
        }
        for (int m = 0; m < batch; m++)
            for (int row = 0; row < BCQ_ROWS; row++)
                sums[m * BCQ_ROWS + row] += shift(w, scales, row) * tables[m].sums[g];
    }
}

static void product(const bcq_block *strip, const bcq_tables *tables, int batch, int parts, float *sums) {
    for (int i = 0; i < bcq_together(strip->weight); i++)
        multiply(strip + i, tables, batch, parts, sums + i * batch * BCQ_ROWS);
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
            words += inside / 16 * bcq_stride(w) + 2 * (row % 16) + row / 16;
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

const bcq_functions bcq_portable = {tables, product, dequantize, read_all};
