/* Products with binary-coded (BCQ) and uniform weights on CPUs: a plain C ABI that links to no tensor library.
 *
 * binary   w = shift + sum_i alpha_i c_i, c_i in {-1, +1}
 * uniform  w = scale (code - zero) = scale (h - zero) + sum_i (scale 2^(b-2-i)) c_i, h = (2^b - 1)/2, and plane 0 is
 * the most significant
 *
 * so both are the same sums with other constants. The derived layout (bcq_pack) holds the same bits and the same scales
 * as the canonical tensors, in the order in which the kernels read them:
 *
 *   tile    up to BCQ_TILE inputs, whole groups where a group fits; the tiles follow each other, so that one thread
 *           reads one stream a tile while the tables of the tile's activations stay in the first-level cache
 *   block   32 rows of a tile
 *   strip   4 blocks at 1 bit, 2 at 2 bits, else 1, so that a table in registers serves several planes; the last one is
 *           padded with zeros; with AVX2 always 1
 *   record  one group of a strip: words uint16 [group/16][block][bits][32], then scales [block]; with AVX2, words
 *           [segment][bits][16 inputs][32], as its tables leave registers for one plane at a time, and memory is best
 *           read in order; a segment is 128 inputs, the last one of a group what remains
 *   scales  alpha [bits][32] (uniform: scale [32]), then shift (uniform: zero) [32] where there is one;
 *           groups longer than a tile have all their scales behind the last tile, as [block][group]
 *
 * A word holds 16 inputs of one row and plane, input 0 the lowest bit. How 32 of them lie depends on what an
 * instruction set permutes: 16 bits  row r is lane 2 (r mod 16) + r div 16: as 32-bit lanes, the low halves are rows
 * 0..15 and the high halves rows 16..31, both in order bytes    (AVX2) the lower bytes of all rows, then the upper
 * ones; in either, row r is byte 4 (r mod 8) + r div 8, so that each quarter of the 32-bit lanes holds 8 rows in order
 */
#ifndef QBENCH_BCQ_H
#define QBENCH_BCQ_H

#include <stdint.h>

#define BCQ_API __attribute__((visibility("default")))
#define BCQ_TILE 256 /* its exact tables take 8 KiB; with 16 KiB the stream of weights drives them out of the cache */
#define BCQ_SEGMENT 128 /* inputs that one sum of integers covers at most; a group is cut into segments */
#define BCQ_ROWS 32
#define BCQ_BATCH 8 /* rows of x that share a reading of the weight */

enum bcq_type { BCQ_F32, BCQ_BF16, BCQ_F16, BCQ_NONE };
enum bcq_isa { BCQ_PORTABLE, BCQ_AVX2, BCQ_AVX512, BCQ_ISA_COUNT };
enum bcq_mode { BCQ_EXACT, BCQ_FAST };
enum bcq_status { BCQ_OK, BCQ_BAD_ARGUMENT, BCQ_NO_MEMORY, BCQ_NO_ISA };

typedef struct {
    int64_t rows, columns, group;   /* out, in, inputs that share a scale; both of the latter multiples of 32 */
    int32_t bits;                   /* 1..8 */
    int32_t uniform;                /* 0 binary, 1 uniform */
    int32_t scale_type, shift_type; /* BCQ_F16 or BCQ_F32; shift_type also BCQ_NONE: shift 0, or zero 2^(b-1) */
    int32_t isa;                    /* enum bcq_isa: whose layout it is, and what computes */
} bcq_weight;

/* Bytes of the derived layout, or -1 where the description is not one of a weight that the kernels take. */
BCQ_API int64_t bcq_size(const bcq_weight *weight);

/* codes: planes uint8 [bits][rows][columns/8], or uniform: a bit stream uint8 [rows][columns*bits/8];
 * scale: [rows][groups][bits], or uniform [rows][groups]; shift [rows][groups] or NULL; derived: bcq_size bytes at an
 * address that 64 divides. */
BCQ_API int bcq_pack(const bcq_weight *weight, const void *codes, const void *scale, const void *shift, void *derived);

/* y[m][rows] = x[m][columns] w^T + bias[rows], m < batch; x and y of `type` (BCQ_F32 or BCQ_BF16), bias float32 or
 * NULL. A row's bits depend neither on the batch nor on `threads`. */
BCQ_API int bcq_product(const bcq_weight *weight, const void *derived, const void *x, int32_t type, int64_t batch,
                        const float *bias, void *y, int32_t mode, int32_t threads);

/* out[last - first][columns] of `type`: rows first..last-1 of the weight, each number rounded once; 32 divides first.
 */
BCQ_API int bcq_dequantize(const bcq_weight *weight, const void *derived, int64_t first, int64_t last, void *out,
                           int32_t type, int32_t threads);

/* Reads every byte once, and returns a value that depends on all: what the memory can deliver. */
BCQ_API uint64_t bcq_read(const void *memory, int64_t bytes, int32_t isa, int32_t threads);

/* Asks for huge pages where the memory, which nothing was written to yet, spans any; bcq_pack does it itself. */
BCQ_API void bcq_prefer_huge_pages(void *memory, int64_t bytes);

BCQ_API int bcq_best_isa(void); /* the last of enum bcq_isa that this processor has */
BCQ_API int bcq_has_threads(void);

#endif
