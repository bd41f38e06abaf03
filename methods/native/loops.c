/* One source for all processors: the compiler makes each loop for several instruction sets, and the loader picks. */
#include <stddef.h>
#include <string.h>

#include "loops.h"

/* The loader picks before a sanitizer is ready; a test wants one set at a time. */
#if defined(__SANITIZE_ADDRESS__) || defined(LOOPS_ONE_PROCESSOR)
#define FOR_EACH_PROCESSOR
#elif defined(__x86_64__) && defined(__GLIBC__) && (!defined(__clang__) || __clang_major__ >= 14)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t mask __attribute__((vector_size(LANES * sizeof(int32_t))));
#define SYSTEMS 8 /* of equations that are solved at a time */
typedef double systems __attribute__((vector_size(SYSTEMS * sizeof(double))));

/* Vectors go by address: without AVX-512 they have no register to be passed in. */
INLINE void choose(const mask *where, const vector *yes, const vector *no, vector *to) {
    *to = (vector)((*where & (mask)*yes) | (~*where & (mask)*no));
}

/* The first `count` numbers, and zeros. */
INLINE void load(const float *from, int64_t count, vector *to) {
    if (count >= LANES) {
        memcpy(to, from, sizeof *to);
        return;
    }
    memset(to, 0, sizeof *to);
    memcpy(to, from, (size_t)count * sizeof *from);
}

INLINE void store(const vector *from, int64_t count, float *to) {
    memcpy(to, from, (count < LANES ? (size_t)count : LANES) * sizeof *to);
}

/* To the nearest integer in 0..top, ties to even: from 1.5 * 2^23 on, float32 has integers alone. */
INLINE void nearest_code(float top, vector *q) {
    const vector zero = {0}, most = zero + top;
    mask where = *q > zero;
    choose(&where, q, &zero, q);
    where = *q < most;
    choose(&where, q, &most, q);
    *q = (*q + 12582912.0f) - 12582912.0f;
}

INLINE float sum(const vector *of) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++)
        total += (*of)[lane];
    return total;
}

/* Columns behind i take in the error of column i: w_j -= e U_ij. */
INLINE void take_in(int64_t i, int64_t columns, const float *row, const vector *e, vector *w) {
    for (int64_t j = i + 1; j < columns; j++)
        w[j] -= *e * row[j];
}

FOR_EACH_PROCESSOR
int loops_round_block(int64_t columns, int64_t out, const float *U, const float *s, const float *inverse,
                      const float *z, float top, float *W, float *codes, float *errors) {
    vector w[LOOPS_COLUMNS];
    if (columns > LOOPS_COLUMNS)
        return 1;
    for (int64_t first = 0; first < out; first += LANES) {
        int64_t rows = out - first;
        for (int64_t i = 0; i < columns; i++)
            load(W + i * out + first, rows, w + i);
        for (int64_t i = 0; i < columns; i++) {
            int64_t at = i * out + first;
            vector scale, per_scale, zero;
            load(s + at, rows, &scale);
            load(inverse + at, rows, &per_scale);
            load(z + at, rows, &zero);
            vector q = w[i] * per_scale + zero;
            nearest_code(top, &q);
            store(&q, rows, codes + at);
            vector e = (w[i] - scale * (q - zero)) / U[i * columns + i];
            store(&e, rows, errors + at);
            take_in(i, columns, U + i * columns, &e, w);
        }
        for (int64_t i = 0; i < columns; i++)
            store(w + i, rows, W + i * out + first);
    }
    return 0;
}

FOR_EACH_PROCESSOR
int loops_feed_back_block(int64_t columns, int64_t out, int64_t levels, const float *U, const float *tables,
                          const int64_t *group_of, float *W, float *errors) {
    vector w[LOOPS_COLUMNS], level[LOOPS_LEVELS];
    if (columns > LOOPS_COLUMNS || levels > LOOPS_LEVELS || levels < 1)
        return 1;
    for (int64_t first = 0; first < out; first += LANES) {
        int64_t rows = out - first;
        for (int64_t i = 0; i < columns; i++)
            load(W + i * out + first, rows, w + i);
        for (int64_t i = 0; i < columns; i++) {
            for (int64_t l = 0; l < levels; l++)
                load(tables + (group_of[i] * levels + l) * out + first, rows, level + l);
            vector chosen = level[0];
            for (int64_t l = 1; l < levels; l++) { /* midpoints ascend: the last one below w decides */
                mask above = w[i] > (level[l] + level[l - 1]) / 2;
                choose(&above, level + l, &chosen, &chosen);
            }
            vector e = (w[i] - chosen) / U[i * columns + i];
            store(&e, rows, errors + i * out + first);
            take_in(i, columns, U + i * columns, &e, w);
        }
        for (int64_t i = 0; i < columns; i++)
            store(w + i, rows, W + i * out + first);
    }
    return 0;
}

/* d = q - z and w of up to 16 weights of a row from k on, and what they count: none beyond the group's end. */
INLINE void on_grid(const float *W, const float *f, int64_t k, int64_t group, float per_scale, float zero, float top,
                    vector *w, vector *d, vector *counts) {
    static const float ones[LANES] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    load(W + k, group - k, w);
    load(f ? f + k : ones, group - k, counts);
    *d = *w * per_scale + zero;
    nearest_code(top, d);
    *d -= zero;
}

FOR_EACH_PROCESSOR
int loops_grid_error(int64_t rows, int64_t group, const float *W, const float *f, const float *s, const float *z,
                     float top, float *error) {
    for (int64_t row = 0; row < rows; row++) {
        vector total = {0};
        for (int64_t k = 0; k < group; k += LANES) {
            vector w, d, counts;
            on_grid(W + row * group, f ? f + row * group : NULL, k, group, 1 / s[row], z[row], top, &w, &d, &counts);
            vector change = d * s[row] - w;
            total += change * change * counts;
        }
        error[row] = sum(&total);
    }
    return 0;
}

FOR_EACH_PROCESSOR
int loops_fit_sums(int64_t rows, int64_t group, const float *W, const float *f, const float *s, const float *z,
                   float top, float *fw, float *fd) {
    for (int64_t row = 0; row < rows; row++) {
        vector with_w = {0}, with_d = {0};
        for (int64_t k = 0; k < group; k += LANES) {
            vector w, d, counts;
            on_grid(W + row * group, f ? f + row * group : NULL, k, group, 1 / s[row], z[row], top, &w, &d, &counts);
            with_w += d * counts * w;
            with_d += d * counts * d;
        }
        fw[row] = sum(&with_w);
        fd[row] = sum(&with_d);
    }
    return 0;
}

/* How many of the ascending numbers are below a limit. */
INLINE int64_t below(const float *sorted, int64_t group, float limit) {
    int64_t at = 0;
    for (int64_t left = group; left > 0;) { /* the answer is in at..at+left */
        int64_t half = (left + 1) / 2;
        at += sorted[at + half - 1] < limit ? half : 0;
        left = left - half;
    }
    return at;
}

int loops_cells(int64_t rows, int64_t group, int64_t levels, const float *sorted, const float *middle,
                const double *mass, const double *prefix, double *count, double *total) {
    for (int64_t row = 0; row < rows; row++) {
        const double *sums = prefix + row * (group + 1), *masses = mass ? mass + row * (group + 1) : NULL;
        int64_t start = 0;
        for (int64_t l = 0; l < levels; l++) {
            int64_t at = row * levels + l;
            int64_t end = group;
            if (l + 1 < levels)
                end = below(sorted + row * group, group, middle[row * (levels - 1) + l]);
            total[at] = sums[end] - sums[start];
            count[at] = masses ? masses[end] - masses[start] : (double)(end - start);
            start = end;
        }
    }
    return 0;
}

FOR_EACH_PROCESSOR
int loops_ranked(int64_t rows, int64_t group, int64_t levels, const float *W, const float *middle,
                 const int64_t *order, int64_t *index) {
    for (int64_t row = 0; row < rows; row++) {
        const float *limits = middle + row * (levels - 1);
        for (int64_t k = 0; k < group; k += LANES) {
            int64_t at = row * group + k;
            vector w;
            load(W + at, group - k, &w);
            mask rank = {0};
            for (int64_t l = 0; l < levels - 1; l++)
                rank -= w > limits[l]; /* a comparison that holds is -1 */
            for (int64_t lane = 0; lane < LANES && k + lane < group; lane++)
                index[at + lane] = order[row * levels + rank[lane]];
        }
    }
    return 0;
}

/* Gaussian elimination as in methods/greedy.py; the last column of A is the right side, and becomes the solution. A
 * pivot that vanishes sets its unknown to zero. */
INLINE void solve(int64_t unknowns, systems A[LOOPS_UNKNOWNS][LOOPS_UNKNOWNS + 1]) {
    systems least;
    for (int lane = 0; lane < SYSTEMS; lane++)
        least[lane] = (A[0][0][lane] > 1 ? A[0][0][lane] : 1) * 1e-9;
    for (int64_t i = 0; i < unknowns; i++) {
        systems inverse;
        for (int lane = 0; lane < SYSTEMS; lane++)
            inverse[lane] = A[i][i][lane] > least[lane] ? 1 / A[i][i][lane] : 0;
        for (int64_t j = i; j <= unknowns; j++)
            A[i][j] *= inverse;
        for (int64_t below = i + 1; below < unknowns; below++)
            for (int64_t j = unknowns; j > i; j--)
                A[below][j] -= A[below][i] * A[i][j];
    }
    for (int64_t i = unknowns - 2; i >= 0; i--)
        for (int64_t j = i + 1; j < unknowns; j++)
            A[i][unknowns] -= A[i][j] * A[j][unknowns];
}

FOR_EACH_PROCESSOR
int loops_least_squares(int64_t rows, int64_t levels, int64_t unknowns, const double *columns, const double *count,
                        const double *total, double *theta) {
    if (unknowns > LOOPS_UNKNOWNS || unknowns < 1)
        return 1;
    for (int64_t first = 0; first < rows; first += SYSTEMS) {
        int64_t here = rows - first < SYSTEMS ? rows - first : SYSTEMS;
        systems A[LOOPS_UNKNOWNS][LOOPS_UNKNOWNS + 1] = {{{0}}};
        for (int64_t l = 0; l < levels; l++) {
            const double *c = columns + l * unknowns;
            systems counts = {0}, totals = {0};
            for (int64_t lane = 0; lane < here; lane++) {
                counts[lane] = count[(first + lane) * levels + l];
                totals[lane] = total[(first + lane) * levels + l];
            }
            for (int64_t i = 0; i < unknowns; i++) {
                for (int64_t j = 0; j < unknowns; j++)
                    A[i][j] += counts * (c[i] * c[j]);
                A[i][unknowns] += totals * c[i];
            }
        }
        solve(unknowns, A);
        for (int64_t lane = 0; lane < here; lane++)
            for (int64_t i = 0; i < unknowns; i++)
                theta[(first + lane) * unknowns + i] = A[i][unknowns][lane];
    }
    return 0;
}
