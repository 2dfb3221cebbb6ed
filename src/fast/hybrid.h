/* hybrid.h: attention where one polynomial for all queries and keys would cost too much, but parts of it are cheap.
 *
 * Queries come in the order of their norms, and every tile of them has the smallest degree that serves it; the few keys that lie
 * farthest from the centre are exact for every query, so that the others span a smaller range; queries beyond the largest degree
 * are exact in full. All parts share one centre, one scale and one normaliser. */
#ifndef SP_FAST_HYBRID_H
#define SP_FAST_HYBRID_H

#include <stdint.h>

#include "base/arena.h"
#include "fast/frame.h"
#include "fast/kernels.h"
#include "fast/remez.h"
#include "softprompt.h"

/* Multiply-adds that fit what was timed (bench/attention): a pair of the exact kernel, besides its products, costs an exp; moments
 * cost more than their products, too. A plan must save a tenth of the exact kernel's cost. */
#define SP_EXP_COST 11.0
#define SP_KEY_COST 1.35
#define SP_QUERY_COST 1.0
#define SP_WORTHWHILE (1 / 1.1)
#define SP_SMALL_WORTHWHILE 0.75 /* of sums that take less than half a millisecond, whose costs are less certain */

/* What the exact kernel must cost, in these units, for a call to plan a hybrid; tests, whose sums are small, ask for less. */
void sp_fast_set_least_hybrid(sp_fast *fast, double cost);

/* Scores up to this need no shift by their maximum: e^40 is far from f32's ends. */
#define SP_HYBRID_NO_SHIFT 40.0

typedef struct sp_hybrid {
    const sp_fast_kernels *kernels;
    const sp_exp_polynomial *polynomials; /* those of first_degree .. last_degree, all of one epsilon */
    size_t first_degree, last_degree;
    uint64_t max_bytes;
    const sp_attention_head *head; /* complete, not causal */
    const sp_frame *frame;
    const double *bounds; /* (n_queries), of sp_frame_bound_queries */
    sp_arena *arena;

    /* the plan */
    size_t degree;       /* the cap on a tile's; 0: no plan */
    size_t n_outer;      /* keys that are exact for every query */
    double inner_radius; /* no other key is farther from the centre; rounded up */
    uint32_t outer;      /* the group of distances at which the exact keys begin */
    double *distances;   /* (n_keys) of keys from the centre */
    uint32_t *order;     /* (n_queries): by their bounds, nearly */
} sp_hybrid;

/* Plans where that costs less than `limit`, in the units above; degree is 0 where it does not. Cost: O(n d). */
sp_status sp_hybrid_plan(sp_hybrid *hybrid, double limit);

bool sp_hybrid_is_outer(const sp_hybrid *hybrid, size_t key);

/* Carries the plan out. MEMORY: it does not fit max_bytes. */
sp_status sp_hybrid_attend(float *out, sp_certificate *certificate, sp_hybrid *hybrid);

#endif
