/* The innermost loops of methods on CPUs: a plain C ABI that links to no tensor library.
 *
 * Each does what a function in Python of the same name does, which it is tested against. All arrays are float32 and
 * contiguous unless said, and nothing overlaps. A vector has 16 numbers on every processor and products are not fused
 * with sums, so that results are the same bits wherever they are computed.
 */
#ifndef QBENCH_LOOPS_H
#define QBENCH_LOOPS_H

#include <stdint.h>

#define LOOPS_API __attribute__((visibility("default")))
#define LOOPS_COLUMNS 1024 /* of a block at most: its rows, 16 at a time, lie on the stack */
#define LOOPS_LEVELS 64
#define LOOPS_UNKNOWNS 8

/* Error feedback over a block of `columns` columns, methods/error_feedback.py: U [columns][columns] upper, all others
 * [columns][out]. W becomes what each column was when it was rounded. */
LOOPS_API int loops_round_block(int64_t columns, int64_t out, const float *U, const float *s, const float *inverse,
                                const float *z, float top, float *W, float *codes, float *errors);

/* The same onto the nearest of ascending levels, methods/curvature.py: tables [groups][levels][out], group_of
 * [columns] int64. */
LOOPS_API int loops_feed_back_block(int64_t columns, int64_t out, int64_t levels, const float *U, const float *tables,
                                    const int64_t *group_of, float *W, float *errors);

/* error[row] = sum f (w - s (q - z))^2 with q the nearest code in 0..top, methods/grids.py: W [rows][group], f the same
 * or NULL for 1, s and z [rows]. */
LOOPS_API int loops_grid_error(int64_t rows, int64_t group, const float *W, const float *f, const float *s,
                               const float *z, float top, float *error);

/* fw[row] = sum f (q - z) w and fd[row] = sum f (q - z)^2, of the same. */
LOOPS_API int loops_fit_sums(int64_t rows, int64_t group, const float *W, const float *f, const float *s,
                             const float *z, float top, float *fw, float *fd);

/* What the weights between midpoints count together, and their sum, methods/alternating.py: sorted [rows][group],
 * middle [rows][levels - 1], both ascending; mass and prefix [rows][group + 1] double, sums of what comes before, mass
 * NULL where each counts 1; count and total [rows][levels] double. */
LOOPS_API int loops_cells(int64_t rows, int64_t group, int64_t levels, const float *sorted, const float *middle,
                          const double *mass, const double *prefix, double *count, double *total);

/* index[k] = order[rank] of each weight, the rank being how many of its row's midpoints lie below it, as in
 * methods/level_mapping.py: W [rows][group], middle [rows][levels - 1] ascending, order [rows][levels] and index
 * [rows][group] int64. */
LOOPS_API int loops_ranked(int64_t rows, int64_t group, int64_t levels, const float *W, const float *middle,
                           const int64_t *order, int64_t *index);

/* theta with the least sum over levels of count (c theta)^2 - 2 total (c theta), methods/alternating.py, all double:
 * columns [levels][unknowns], c one of its rows; count and total [rows][levels]; theta [rows][unknowns]. */
LOOPS_API int loops_least_squares(int64_t rows, int64_t levels, int64_t unknowns, const double *columns,
                                  const double *count, const double *total, double *theta);

#endif
