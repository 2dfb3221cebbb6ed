/* hybrid.h: attention where one polynomial for all queries and keys would cost too much, but parts of it are cheap.
 *
 * Queries come in the order of their norms, keys in the order of shells about their centre. Every tile of queries has the cut
 * through the shells and the degree that cost it least: keys inside are answered by the polynomial, the few outside one by one.
 * Queries that no degree serves are exact in full. All parts share one centre, one scale and one normaliser. */
#ifndef SP_FAST_HYBRID_H
#define SP_FAST_HYBRID_H

#include <stdint.h>

#include "fast/fast.h"

enum { SP_MAX_CUTS = 12 };

/* The first n_inner keys of the plan's order, which lie within `radius` of the centre, rounded up. */
typedef struct sp_hybrid_cut {
    size_t n_inner;
    double radius;
    uint32_t outer; /* the group of distances at which the others begin */
} sp_hybrid_cut;

typedef struct sp_hybrid {
    const sp_fast_call *call; /* not causal */

    /* the plan */
    size_t degree;                   /* the cap on a tile's; 0: no plan */
    sp_hybrid_cut cuts[SP_MAX_CUTS]; /* from none outside to the most */
    size_t n_cuts;
    double products[SP_MAX_DEGREE + 1]; /* of a key or query with each degree; infinite where it must not be chosen */
    size_t *keys;                       /* (n_keys): by their shells, else as they come */
    size_t *order;                      /* (n_queries): by their bounds, nearly */
    double cost;
} sp_hybrid;

/* Of an inner key's score, where that of any is at most `bound`; rounded up. */
static inline double sp_hybrid_inner_bound(const sp_hybrid *hybrid, const sp_hybrid_cut *cut, double bound)
{
    return bound * (cut->radius / hybrid->call->frame.radius) * (1 + 8 * SP_UNIT_ROUNDOFF);
}

/* Plans where that costs less than `limit`; degree is 0 where it does not. Cost: O(n d). */
sp_status sp_hybrid_plan(sp_hybrid *hybrid, double limit);

/* What a tile whose bound is the largest of its queries' does with the cut of index *cut: its degree, or SP_NO_DEGREE. */
size_t sp_hybrid_choose(size_t *cut, const sp_hybrid *hybrid, double bound);

/* Carries the plan out. MEMORY: it does not fit max_bytes. */
sp_status sp_hybrid_attend(float *out, sp_certificate *certificate, const sp_hybrid *hybrid);

#endif
