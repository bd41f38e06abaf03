/* The loops of methods over odd sizes, in buffers of exactly the stated bytes, for the sanitizers: `make sanitize`.
 * What they compute is tested in test_native_loops.py. */
#include <stdio.h>
#include <stdlib.h>

#include "../../methods/native/loops.h"

static const int64_t ROWS[] = {1, 7, 16, 33}, COLUMNS[] = {1, 15, 16, 40, LOOPS_COLUMNS}, LEVELS[] = {2, 8, LOOPS_LEVELS};

#define EACH(size, of) for (size_t size##_at = 0; size##_at < sizeof of / sizeof *of; size##_at++)

static uint32_t state = 1;

static void *memory(size_t bytes) {
    void *new = malloc(bytes);
    if (!new)
        abort();
    return new;
}

/* Ascending from 0.5 on within each row, by less than 0.01 each. */
static float *numbers(int64_t rows, int64_t columns) {
    float *of = memory((size_t)(rows * columns) * sizeof *of);
    for (int64_t i = 0; i < rows * columns; i++) {
        state = state * 1664525 + 1013904223;
        of[i] = (i % columns ? of[i - 1] : 0.5f) + (float)(state >> 24) / 32768.0f;
    }
    return of;
}

static double *sums(int64_t rows, int64_t columns) {
    double *of = memory((size_t)(rows * columns) * sizeof *of);
    for (int64_t i = 0; i < rows * columns; i++)
        of[i] = (double)(i % columns);
    return of;
}

static int64_t *indices(int64_t rows, int64_t columns) {
    int64_t *of = memory((size_t)(rows * columns) * sizeof *of);
    for (int64_t i = 0; i < rows * columns; i++)
        of[i] = i % columns;
    return of;
}

static void expect(int status, int expected, const char *what) {
    if (status != expected) {
        printf("%s returned %d\n", what, status);
        exit(1);
    }
}

static void columns_of(int64_t columns, int64_t out) {
    float *U = numbers(columns, columns), *W = numbers(columns, out), *s = numbers(columns, out);
    float *codes = numbers(columns, out), *errors = numbers(columns, out);
    expect(loops_round_block(columns, out, U, s, s, s, 7, W, codes, errors), 0, "round_block");
    EACH(levels, LEVELS) {
        int64_t levels = LEVELS[levels_at], groups = columns;
        float *tables = numbers(groups * out, levels);
        int64_t *group_of = indices(1, columns);
        expect(loops_feed_back_block(columns, out, levels, U, tables, group_of, W, errors), 0, "feed_back_block");
        free(tables);
        free(group_of);
    }
    free(U), free(W), free(s), free(codes), free(errors);
}

static void groups_of(int64_t rows, int64_t group) {
    float *W = numbers(rows, group), *s = numbers(rows, 1), *first = numbers(rows, 1), *second = numbers(rows, 1);
    const float *counts[] = {NULL, W};
    EACH(weighted, counts) {
        const float *f = counts[weighted_at];
        expect(loops_grid_error(rows, group, W, f, s, s, 15, first), 0, "grid_error");
        expect(loops_fit_sums(rows, group, W, f, s, s, 15, first, second), 0, "fit_sums");
    }
    EACH(levels, LEVELS) {
        int64_t levels = LEVELS[levels_at], unknowns = 1 + (int64_t)levels_at * 3;
        float *middle = numbers(rows, levels - 1);
        double *prefix = sums(rows, group + 1), *count = sums(rows, levels), *total = sums(rows, levels);
        double *signs = sums(levels, unknowns), *theta = sums(rows, unknowns);
        int64_t *order = indices(rows, levels), *index = indices(rows, group);
        expect(loops_cells(rows, group, levels, W, middle, NULL, prefix, count, total), 0, "cells");
        expect(loops_cells(rows, group, levels, W, middle, prefix, prefix, count, total), 0, "cells");
        expect(loops_ranked(rows, group, levels, W, middle, order, index), 0, "ranked");
        expect(loops_least_squares(rows, levels, unknowns, signs, count, total, theta), 0, "least_squares");
        free(middle), free(prefix), free(count), free(total), free(signs), free(theta), free(order), free(index);
    }
    free(W), free(s), free(first), free(second);
}

int main(void) {
    EACH(rows, ROWS) EACH(columns, COLUMNS) {
        columns_of(COLUMNS[columns_at], ROWS[rows_at]);
        groups_of(ROWS[rows_at], COLUMNS[columns_at]);
    }
    expect(loops_round_block(LOOPS_COLUMNS + 1, 1, NULL, NULL, NULL, NULL, 1, NULL, NULL, NULL), 1, "too many columns");
    expect(loops_feed_back_block(1, 1, LOOPS_LEVELS + 1, NULL, NULL, NULL, NULL, NULL), 1, "too many levels");
    expect(loops_least_squares(1, 2, LOOPS_UNKNOWNS + 1, NULL, NULL, NULL, NULL), 1, "too many unknowns");
    puts("the loops keep to their buffers");
    return 0;
}
