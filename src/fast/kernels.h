/* kernels.h: the inner loops of attention in almost linear time, once for each rung of the ladder (tensor/kernels.h).
 *
 * The monomials of degree <= g in d variables are a tree: the root is 1, a node's children are its products with each variable from
 * its own last one on. They are numbered children first: the root; then, wherever a node comes, all of its children side by side,
 * and after them the children's own subtrees in order. So a lower degree's monomials stand in the same order, others left out.
 *
 *   keys      a block of `block_keys`, lanes being keys: x (d, SP_KEY_STRIDE(kernels)), v (block_keys / lanes, columns, lanes)
 *   queries   a tile of `tile_queries`, lanes being queries: q (d, tile_queries)
 *   moments   (monomials, columns): the sum over keys of monomial times column; columns are values, and ones for the normaliser
 *   out       (columns, tile_queries)
 *
 * Columns are worked on in groups of 1 to `max_columns`, so that their sums stay in registers. */
#ifndef SP_FAST_KERNELS_H
#define SP_FAST_KERNELS_H

#include <stdbool.h>
#include <stddef.h>

#include "fast/rows.h"

/* Sums of f32 are 32 terms long, then they are added in f64: as long on every rung, so that one bound on rounding holds. */
enum { SP_TERMS_IN_F32 = 32, SP_KEY_PAD = 16, SP_EXACT_KEYS = 4 };

typedef struct sp_fast_kernels {
    const char *name;
    size_t lanes;
    size_t block_keys;   /* SP_TERMS_IN_F32 * lanes, the most that add_keys takes */
    size_t tile_queries; /* 2 * lanes */
    size_t max_columns;
    const sp_row_kernels *rows;

    /* moments += those of a block of n keys, whole vectors. moments: (monomials * columns) rounded up to whole vectors. scratch:
     * sp_fast_scratch_floats. */
    void (*add_keys)(double *moments, const float *x, const float *v, size_t n, size_t d, size_t degree, size_t columns,
                     float *scratch);

    /* out += sum over monomials of the query's monomial times state (monomials, columns), by a nested Horner scheme: each term
     * passes through at most (its degree + 1) d additions. */
    void (*evaluate)(float *out, const float *q, const float *state, size_t d, size_t degree, size_t columns);

    /* out (groups * columns, tile) += sum over keys of 2^(q . k - shift) times v, the key's row. k (n, d), v (n, groups * columns),
     * rows; n a multiple of SP_EXACT_KEYS. q is scaled by log2 e beforehand.
     *   max  (tile) the largest q . k so far, -INFINITY at first, which is the shift, and what was summed before follows it; NULL:
     * no shift, for scores that are known to stay within +- 60 diagonal  lane u sees keys 0 .. diagonal + u only; PTRDIFF_MAX: all
     * weights: scratch of SP_EXACT_BLOCK * tile_queries. */
    void (*exact)(float *out, float *max, const float *q, const float *k, const float *v, size_t n, size_t d, size_t groups,
                  size_t columns, ptrdiff_t diagonal, float *weights);
} sp_fast_kernels;

enum { SP_EXACT_BLOCK = 128 };

/* Rows of keys stand this far apart: not a power of two, which would fall into few sets of the cache. */
static inline size_t sp_key_stride(const sp_fast_kernels *kernels)
{
    return kernels->block_keys + SP_KEY_PAD;
}

/* Scratch of add_keys: the monomials on the way down, and a row of ones. */
static inline size_t sp_fast_scratch_floats(const sp_fast_kernels *kernels, size_t d, size_t degree)
{
    return (1 + (degree > 1 ? degree - 1 : 0) * d) * sp_key_stride(kernels);
}

/* The rung that sp_kernels_select names; and all rungs that this CPU can run, generic first. */
const sp_fast_kernels *sp_fast_kernels_select(void);
size_t sp_fast_kernels_list(const sp_fast_kernels *out[3]);

#endif
