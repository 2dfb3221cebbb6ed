/* fast.h: the handle of attention in almost linear time, one call on it, and what parts of a call cost. What it does: softprompt.h.
 *
 * A call's numbers do not depend on how many threads share it: sums over keys are taken block by block, in their order (moments.c),
 * queries stand in tiles that know nothing of each other (tiles.c), and of what tiles found only extremes are kept. */
#ifndef SP_FAST_FAST_H
#define SP_FAST_FAST_H

#include "base/arena.h"
#include "fast/frame.h"
#include "fast/kernels.h"
#include "fast/remez.h"
#include "fast/rounding.h"
#include "softprompt.h"

enum { SP_NO_DEGREE = 0 }; /* all is exact */

struct sp_fast {
    sp_fast_options options;          /* with defaults filled in */
    size_t first_degree, last_degree; /* to choose from */
    bool watches_rounding;            /* nobody named the last degree: see sp_fast_may_choose */
    sp_exp_polynomial polynomials[SP_MAX_DEGREE + 1];
    const sp_fast_kernels *kernels;
    double least_hybrid;  /* what the exact kernel must cost for a hybrid to be planned */
    double least_share;   /* what a thread must have to do to be woken */
    double search_weight; /* of what finding other coordinates and turning rows costs; 1 */
    sp_arena *arena;
    sp_arena **arenas; /* (n_arenas) of threads that have heads of their own (heads.c) */
    size_t n_arenas;
};

/* Tests, whose sums are small, ask for less of both, in the units below. */
void sp_fast_set_least_hybrid(sp_fast *fast, double cost);
void sp_fast_set_least_share(sp_fast *fast, double cost);

/* ... and count what balancing costs for less than it does. */
void sp_fast_set_search_weight(sp_fast *fast, double weight);

/* One call, whose keys, values and queries are measured. */
typedef struct sp_fast_call {
    sp_fast *fast;
    sp_attention_head head; /* strides and scale filled in */
    sp_frame frame;
    double *bounds;       /* (n_queries) of |scores| */
    double largest_bound; /* of all queries; 0 where there are none */
    size_t n_threads;

    /* of a call in other coordinates (balance.h): */
    const struct sp_fast_call *given; /* as it came, or NULL */
    double turned_off;                /* what a score may be off by: so many times its query's bound in `given`, */
    double turned_rounding;           /* and so many times u times its bound here */
} sp_fast_call;

/* The coordinates in which queries are exact in full. */
static inline const sp_fast_call *sp_fast_given(const sp_fast_call *call)
{
    return call->given ? call->given : call;
}

/* Measures keys, values and queries of a head whose strides and scale are filled in. */
sp_status sp_fast_call_measure(sp_fast_call *call);

/* What a score may be off by in other coordinates, but for rounding: an eighth of epsilon. */
static inline double sp_fast_most_off(const sp_fast *fast)
{
    return fast->options.epsilon / 8;
}

/* ---- costs ---- */

/* Multiply-adds that fit what was timed (bench/attention): a pair of the exact kernel, besides its products, costs an exp; moments
 * cost more than their products, too, and so does each monomial that has children, in either direction: with few dimensions, and so
 * few children each, as much as a third of the products. A plan must save a tenth of the exact kernel's cost. */
#define SP_EXP_COST 11.0
#define SP_KEY_COST 1.3
#define SP_QUERY_COST 1.0
#define SP_PARENT_COST 5.0
#define SP_BLOCK_COST 7.5     /* of a number of the moments, a lane, at each block's end */
#define SP_LEAST_HYBRID 8.2e7 /* a millisecond; with less, planning would show */
#define SP_WORTHWHILE (1 / 1.1)
#define SP_SMALL_WORTHWHILE 0.75 /* of sums that take less than that, whose costs are less certain */

static inline size_t sp_fast_columns(const sp_fast_call *call)
{
    return call->frame.groups * call->frame.columns;
}

/* Of a query and a key in the exact kernel. */
static inline double sp_fast_pair_cost(const sp_fast_call *call)
{
    return (double)(call->head.d + sp_fast_columns(call)) + SP_EXP_COST;
}

/* Of a key, or a query, with a polynomial, but for the factors above; infinite where nothing has so many.
 */
double sp_fast_degree_products(const sp_fast_call *call, size_t degree);

/* Whether a call that may choose takes a degree, fit or not: beyond degree 8 only where what f32 may round at the range's ends,
 * keys weighing 1 on average as centred keys do at least, is within epsilon. */
bool sp_fast_may_choose(const sp_fast_call *call, size_t degree);

/* Threads that have enough to do. */
size_t sp_fast_threads(const sp_fast *fast, double cost);

#endif
