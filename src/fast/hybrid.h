/* hybrid.h: attention where one polynomial for all queries and keys would cost too much, but parts of it are cheap.
 *
 * Queries come in the order of their norms, and every tile of them has the smallest degree that serves it; the few keys that lie
 * farthest from the centre are exact for every query, so that the others span a smaller range; queries beyond the largest degree
 * are exact in full. All parts share one centre, one scale and one normaliser. */
#ifndef SP_FAST_HYBRID_H
#define SP_FAST_HYBRID_H

#include <stdint.h>

#include "fast/fast.h"

typedef struct sp_hybrid {
    const sp_fast_call *call; /* not causal */

    /* the plan */
    size_t degree;       /* the cap on a tile's; 0: no plan */
    size_t n_outer;      /* keys that are exact for every query */
    double inner_radius; /* no other key is farther from the centre; rounded up */
    uint32_t outer;      /* the group of distances at which the exact keys begin */
    double *distances;   /* (n_keys) of keys from the centre */
    size_t *order;       /* (n_queries): by their bounds, nearly */
    double cost;
} sp_hybrid;

/* Plans where that costs less than `limit`; degree is 0 where it does not. Cost: O(n d). */
sp_status sp_hybrid_plan(sp_hybrid *hybrid, double limit);

bool sp_hybrid_is_outer(const sp_hybrid *hybrid, size_t key);

/* Carries the plan out. MEMORY: it does not fit max_bytes. */
sp_status sp_hybrid_attend(float *out, sp_certificate *certificate, const sp_hybrid *hybrid);

#endif
