/* rows.h: matrices as they are given, row beside row, measured and brought into the kernels' order and back: once for each rung.
 *
 * All of it reads every number once and does little with it, so that what it costs is turning rows into lanes: four coordinates of
 * as many rows as there are lanes at a time. Tiles are `lanes` or 2 * `lanes` rows, as kernels.h has them. */
#ifndef SP_FAST_ROWS_H
#define SP_FAST_ROWS_H

#include <stddef.h>

typedef struct sp_row_kernels {
    /* Of each coordinate of n >= 1 rows: the sum in f64, which is not finite where a number is not; the least and the largest. */
    void (*measure)(double *sum, float *least, float *most, const float *rows, size_t ld, size_t n, size_t d);

    /* squares (n): |row - centre|^2, in f64. */
    void (*square)(double *squares, const float *rows, size_t ld, size_t n, const float *centre, size_t d);

    /* (row - centre) * factor, a power of two, of n rows: out[j / lanes * step + i * stride + j % lanes], and zeros up to whole
     * lanes. Rounded once, as if in f64. list: which rows, or NULL: the first ones. */
    void (*pack)(float *out, size_t step, size_t stride, const float *rows, size_t ld, const size_t *list, size_t n, size_t d,
                 const float *centre, double factor);

    /* The same from row to row: out (n, d), ldo apart. */
    void (*shrink)(float *out, size_t ldo, const float *rows, size_t ld, const size_t *list, size_t n, size_t d,
                   const float *centre, double factor);

    /* tile (d, 2 lanes): the rows of a list, 0 < n <= 2 lanes, times factor in f64; the last one again in what is left of it. */
    void (*gather)(float *tile, const float *rows, size_t ld, const size_t *list, size_t n, size_t d, double factor);

    /* Back: out[list[u]] = middle + sums (d + 1, 2 lanes) / (their last row * factor). Returns the smallest of the last row. */
    double (*scatter)(float *out, size_t ld, const size_t *list, size_t n, const float *sums, size_t d, const float *middle,
                      double factor);
} sp_row_kernels;

#endif
