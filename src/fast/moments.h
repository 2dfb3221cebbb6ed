/* moments.h: one call's keys as moments, and what queries read of them: a state.
 *
 *   moments  (groups, size): of each group of columns (monomials, columns), in the kernels' order, in f64
 *   state    the same in f32, times the polynomial's coefficient and the monomial's multinomial */
#ifndef SP_FAST_MOMENTS_H
#define SP_FAST_MOMENTS_H

#include "fast/fast.h"

/* What one thread packs a block of keys into. */
typedef struct sp_key_block {
    float *x, *v, *scratch;
} sp_key_block;

typedef struct sp_moments {
    const sp_fast_call *call;
    size_t degree, n_features, size, block; /* block: keys in each, but for the last */
    uint8_t *levels;                        /* (n_features) */
    double *multinomials;                   /* (n_features) */
    double *factors;                        /* (size) of the degree's polynomial, for sp_moments_add_each; else NULL */
    double *sums;                           /* over the first n_keys keys */
    const size_t *list;                     /* the keys' order; or NULL: as they come */
    size_t n_keys;
    size_t n_threads, window; /* blocks whose moments stand side by side; 1 where one thread adds them up as they come */
    double *blocks;           /* (window) moments; NULL: window is 1 */
    sp_key_block *packed;     /* (n_threads) */
} sp_moments;

/* Bytes of moments, of n_states states and of what one thread needs. */
double sp_moments_bytes(const sp_fast_call *call, size_t degree, size_t n_states);

/* Of no keys yet. Threads may take `spare_bytes` besides: with less, fewer of them work. block: the kernels' block_keys; or, for
 * sp_moments_add_each alone, a part of it in whole vectors. */
sp_status sp_moments_begin(sp_moments *out, const sp_fast_call *call, size_t degree, size_t block, const size_t *list, bool each,
                           double spare_bytes);

/* Keys up to `end` are added, in blocks from where the last lot ended. */
void sp_moments_add(sp_moments *moments, size_t end);

/* n_blocks <= window blocks more, and the state after each of them, of the degree's own polynomial. */
void sp_moments_add_each(float *states, sp_moments *moments, size_t n_blocks);

/* Numbers of a state of a degree up to the moments' own; and the state. */
size_t sp_moments_state_size(const sp_moments *moments, size_t degree);
void sp_moments_make_state(float *state, const sp_moments *moments, size_t degree);

#endif
