/* tiles.h: queries, a tile at a time: what the polynomial adds to their sums, and what keys add exactly. */
#ifndef SP_FAST_TILES_H
#define SP_FAST_TILES_H

#include "fast/fast.h"

/* Scores up to this need no shift by their maximum: e^40 is far from f32's ends. */
#define SP_NO_SHIFT 40.0

/* Keys in the order of the exact kernel. */
typedef struct sp_rows {
    float *k, *v;
    size_t n; /* rounded up to SP_EXACT_KEYS, by keys without weight; 0: not packed */
} sp_rows;

/* All keys, in the order of a list or as they come (NULL). MEMORY: they do not fit max_bytes. */
sp_status sp_rows_pack(sp_rows *out, const sp_fast_call *call, const size_t *list);

typedef struct sp_tile {
    const size_t *queries;
    size_t n;           /* up to the kernels' tile_queries */
    const float *state; /* NULL: no polynomial */
    size_t degree;
    const sp_rows *rows; /* NULL: no keys exactly */
    size_t first, end;   /* of rows */
    ptrdiff_t last;      /* query u sees those up to last + u; PTRDIFF_MAX: all */
    double bound;        /* of its queries' |scores|, the largest */
    double least;        /* written: the smallest normaliser */
} sp_tile;

/* The largest bound of some queries. */
double sp_tile_bound(const sp_fast_call *call, const size_t *queries, size_t n);

/* Parallel over tiles, which begin in their order: let those that cost most come first. A tile with a polynomial has exact scores
 * of at most SP_NO_SHIFT. Rows of a tile without one are packed in the coordinates that the call was given in. */
sp_status sp_tiles_answer(float *out, sp_tile *tiles, size_t n_tiles, const sp_fast_call *call);

#endif
