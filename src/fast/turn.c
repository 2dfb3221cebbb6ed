/* turn.c: the products of turn.h: eight rows at once, sixteen columns at a time, sums in registers. */
#include "fast/turn.h"

#include <string.h>

#include "tensor/vec.h"

#define UNROLL _Pragma("GCC unroll 8")

enum {
    WIDE = LANES / 2,
    VECTORS = SP_TURN_COLUMNS / WIDE,
    AT_ONCE = LANES == 16  ? 8
              : LANES == 8 ? 2
                           : 1 /* rows that there are registers for */
};

typedef double dvec __attribute__((vector_size(8 * WIDE)));
typedef double unaligned_dvec __attribute__((vector_size(8 * WIDE), aligned(8), may_alias));

/* y (SP_TURN_ROWS, SP_TURN_COLUMNS), dense = x map, of x (depth, SP_TURN_ROWS): one block of the map's columns. */
INLINE void multiply(double *y, const double *x, const double *map, size_t stride, size_t depth)
{
    for (size_t r = 0; r < SP_TURN_ROWS; r += AT_ONCE) {
        dvec sums[AT_ONCE][VECTORS];
        UNROLL for (size_t a = 0; a < AT_ONCE; a++) UNROLL for (size_t v = 0; v < VECTORS; v++) sums[a][v] = (dvec){0};
        for (size_t j = 0; j < depth; j++) {
            dvec m[VECTORS];
            UNROLL for (size_t v = 0; v < VECTORS; v++) m[v] = *(const unaligned_dvec *)(map + j * stride + v * WIDE);
            UNROLL for (size_t a = 0; a < AT_ONCE; a++)
            {
                const double factor = x[j * SP_TURN_ROWS + r + a];
                UNROLL for (size_t v = 0; v < VECTORS; v++) sums[a][v] += factor * m[v];
            }
        }
        memcpy(y + r * SP_TURN_COLUMNS, sums, sizeof sums);
    }
}

/* x (d, SP_TURN_ROWS): rows less the centre, zeros for those that there are not. */
static void centre_rows(double *x, const float *rows, size_t ld, size_t n, const double *centre, size_t d)
{
    for (size_t i = 0; i < d; i++) {
        const double middle = centre ? centre[i] : 0;
        for (size_t r = 0; r < SP_TURN_ROWS; r++) x[i * SP_TURN_ROWS + r] = r < n ? (double)rows[r * ld + i] - middle : 0;
    }
}

/* squares: |x - y back|^2 of each row; y (rank, SP_TURN_ROWS). */
static void measure_remainders(double *squares, const double *x, const double *y, const double *back, size_t d, size_t rank)
{
    double z[SP_TURN_ROWS * SP_TURN_COLUMNS];
    memset(squares, 0, SP_TURN_ROWS * sizeof *squares);
    for (size_t c = 0; c < d; c += SP_TURN_COLUMNS) {
        multiply(z, y, back + c, sp_turn_stride(d), rank);
        for (size_t i = c; i < d && i < c + SP_TURN_COLUMNS; i++)
            for (size_t r = 0; r < SP_TURN_ROWS; r++) {
                const double left = x[i * SP_TURN_ROWS + r] - z[r * SP_TURN_COLUMNS + i - c];
                squares[r] += left * left;
            }
    }
}

static void turn(float *out, double *remainders, const float *rows, size_t ld, size_t n, const double *centre, const double *map,
                 const double *back, size_t d, size_t rank, double *scratch)
{
    double *x = scratch, *y = x + d * SP_TURN_ROWS, block[SP_TURN_ROWS * SP_TURN_COLUMNS], squares[SP_TURN_ROWS];
    for (size_t first = 0, some; first < n; first += some) {
        some = n - first < SP_TURN_ROWS ? n - first : SP_TURN_ROWS;
        centre_rows(x, rows + first * ld, ld, some, centre, d);
        for (size_t c = 0; c < rank; c += SP_TURN_COLUMNS) {
            multiply(block, x, map + c, sp_turn_stride(rank), d);
            for (size_t i = c; i < rank && i < c + SP_TURN_COLUMNS; i++)
                for (size_t r = 0; r < SP_TURN_ROWS; r++) {
                    y[i * SP_TURN_ROWS + r] = block[r * SP_TURN_COLUMNS + i - c];
                    if (r < some) out[(first + r) * rank + i] = (float)block[r * SP_TURN_COLUMNS + i - c];
                }
        }
        if (!remainders) continue;
        measure_remainders(squares, x, y, back, d, rank);
        memcpy(remainders + first, squares, some * sizeof *squares);
    }
}

/* Sixteen entries of eight rows at a time, all of x's rows behind each other: x passes d / 8 * d / 16 times. */
static void gram(double *out, const double *x, size_t n, size_t d)
{
    const size_t stride = sp_turn_stride(d);
    for (size_t i = 0; i < d; i += SP_TURN_ROWS)
        for (size_t c = 0; c < stride; c += SP_TURN_COLUMNS) {
            dvec sums[SP_TURN_ROWS][VECTORS];
            for (size_t r = 0; r < SP_TURN_ROWS; r += AT_ONCE) {
                UNROLL for (size_t a = 0; a < AT_ONCE; a++) UNROLL for (size_t v = 0; v < VECTORS; v++) sums[r + a][v] = (dvec){0};
                for (size_t j = 0; j < n; j++) {
                    const double *row = x + j * stride;
                    UNROLL for (size_t a = 0; a < AT_ONCE; a++) UNROLL for (size_t v = 0; v < VECTORS; v++) sums[r + a][v] +=
                        row[i + r + a] * *(const unaligned_dvec *)(row + c + v * WIDE);
                }
            }
            for (size_t r = 0; r < SP_TURN_ROWS && i + r < d; r++) memcpy(out + (i + r) * stride + c, sums[r], sizeof sums[r]);
        }
}

#define TABLE_OF_(variant) sp_turn_kernels_##variant
#define TABLE_OF(variant) TABLE_OF_(variant)

extern const sp_turn_kernels TABLE_OF(SP_KERNEL_VARIANT);
const sp_turn_kernels TABLE_OF(SP_KERNEL_VARIANT) = {.turn = turn, .gram = gram};
