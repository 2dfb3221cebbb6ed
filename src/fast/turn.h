/* turn.h: rows into other coordinates, by products in f64: once for each rung.
 *
 * Matrices of f64 have rows sp_turn_stride(columns) apart, zeros behind their columns. */
#ifndef SP_FAST_TURN_H
#define SP_FAST_TURN_H

#include <stddef.h>

enum { SP_TURN_COLUMNS = 16, SP_TURN_ROWS = 8 };

static inline size_t sp_turn_stride(size_t columns)
{
    return (columns + SP_TURN_COLUMNS - 1) / SP_TURN_COLUMNS * SP_TURN_COLUMNS;
}

/* Of sp_turn_kernels.turn. */
static inline size_t sp_turn_scratch_doubles(size_t d, size_t rank)
{
    return SP_TURN_ROWS * (d + rank);
}

typedef struct sp_turn_kernels {
    /* out (n, rank), dense = (row - centre) map, in f64, rounded once. map (d, rank); centre (d) or NULL: 0.
     *   remainders (n) or NULL: |row - centre - y back|^2, y being the row of `out` before it was rounded; back (rank, d) */
    void (*turn)(float *out, double *remainders, const float *rows, size_t ld, size_t n, const double *centre, const double *map,
                 const double *back, size_t d, size_t rank, double *scratch);

    /* gram (d, d) = x^T x of x (n, d). */
    void (*gram)(double *gram, const double *x, size_t n, size_t d);
} sp_turn_kernels;

/* The rung that sp_kernels_select names. */
const sp_turn_kernels *sp_turn_kernels_select(void);

#endif
