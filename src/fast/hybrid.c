/* hybrid.c: the plan of hybrid.h: cuts through the keys, and up to which degree queries are answered by a polynomial.
 *
 * Bounds of queries and distances of keys are counted by the leading bits of their f32 forms, 32 groups to a power of two. From
 * these counts the cost of every cut and degree follows without another look at the data, and sorting is a matter of counting, too:
 * a comparison sort would take as long as the polynomial's products. Cost: O(n d) and a few thousand steps. */
#include "fast/hybrid.h"

#include <math.h>
#include <string.h>

#include "base/status.h"
#include "fast/moments.h"
#include "fast/tiles.h"

enum { DROPPED_BITS = 18, N_GROUPS = 1 << (31 - DROPPED_BITS) };
static const double MOST_OUTER = .125; /* of the keys, in the last cut; each before it has half as many outside */
static const double STATE_COST = 6;    /* of a number of a state, made once for a cut and a degree */

/* Groups ascend with the numbers, which are not negative. */
static uint32_t group_of(double x)
{
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits >> DROPPED_BITS;
}

/* counts (N_GROUPS + 1): how many numbers stand in the groups below. */
static void count_below(uint32_t *counts, const double *x, size_t n)
{
    memset(counts, 0, (N_GROUPS + 1) * sizeof *counts);
    for (size_t i = 0; i < n; i++) counts[group_of(x[i]) + 1]++;
    for (size_t g = 1; g <= N_GROUPS; g++) counts[g] += counts[g - 1];
}

typedef struct hybrid_counts {
    uint32_t *queries, *keys;
    double *distances; /* (n_keys) from the centre */
} hybrid_counts;

/* Of degrees that fit the memory, with states for every cut. */
static void list_products(sp_hybrid *h)
{
    const sp_fast_call *call = h->call;
    const sp_fast *fast = call->fast;
    for (size_t g = fast->first_degree; g <= fast->last_degree; g++) {
        const bool fits = sp_moments_bytes(call, g, h->n_cuts * (g + 1)) <= (double)fast->options.max_bytes;
        h->products[g] = fits && sp_fast_may_choose(call, g) ? sp_fast_degree_products(call, g) : (double)INFINITY;
    }
}

static double lower_edge(uint32_t group)
{
    const uint32_t bits = group << DROPPED_BITS;
    float edge;
    memcpy(&edge, &bits, sizeof edge);
    return (double)edge;
}

/* Exact keys' sums in f32, one behind the other, must stay within a quarter of epsilon, too. */
static double most_outer(const sp_hybrid *h)
{
    const double share = MOST_OUTER * (double)h->call->head.n_keys;
    const double in_f32 = h->call->fast->options.epsilon / (4 * SP_UNIT_ROUNDOFF);
    return share < in_f32 ? share : in_f32;
}

/* No key outside, then few, then twice as many in each: whole groups, but for what the exact kernel takes at once. */
static void list_cuts(sp_hybrid *h, const hybrid_counts *counts)
{
    const size_t n_keys = h->call->head.n_keys;
    uint32_t top = group_of(h->call->frame.radius) + 1;
    h->cuts[h->n_cuts++] = (sp_hybrid_cut){n_keys, h->call->frame.radius, N_GROUPS};
    for (int halvings = SP_MAX_CUTS - 2; halvings >= 0; halvings--) {
        const double most = ldexp(most_outer(h), -halvings);
        while (top > 0 && (double)(n_keys - counts->keys[top - 1]) <= most) top--;
        const size_t n_inner = counts->keys[top] / SP_EXACT_KEYS * SP_EXACT_KEYS;
        if (n_inner == 0 || n_inner == h->cuts[h->n_cuts - 1].n_inner) continue;
        h->cuts[h->n_cuts++] = (sp_hybrid_cut){n_inner, lower_edge(top), top};
    }
}

/* The smallest degree up to `most` for a cut; SP_NO_DEGREE where there is none. Keys outside add e^s as it is, without a shift. */
static size_t degree_for(const sp_hybrid *h, const sp_hybrid_cut *cut, double bound, size_t most)
{
    const sp_fast *fast = h->call->fast;
    const double inner = sp_hybrid_inner_bound(h, cut, bound);
    if (bound > SP_NO_SHIFT) return SP_NO_DEGREE;
    for (size_t g = fast->first_degree; g <= most; g++)
        if (inner <= fast->polynomials[g].rho) return g;
    return SP_NO_DEGREE;
}

static double cost_query(const sp_hybrid *h, const sp_hybrid_cut *cut, size_t degree)
{
    const size_t n_outer = h->call->head.n_keys - cut->n_inner;
    return h->products[degree] * SP_QUERY_COST + (double)n_outer * sp_fast_pair_cost(h->call);
}

static double cost_exact(const sp_hybrid *h)
{
    return (double)h->call->head.n_keys * sp_fast_pair_cost(sp_fast_given(h->call));
}

size_t sp_hybrid_choose(size_t *cut, const sp_hybrid *h, double bound)
{
    double least = cost_exact(h);
    size_t degree = SP_NO_DEGREE;
    for (size_t c = 0; c < h->n_cuts; c++) {
        const size_t g = degree_for(h, &h->cuts[c], bound, h->degree);
        if (g == SP_NO_DEGREE || cost_query(h, &h->cuts[c], g) >= least) continue;
        least = cost_query(h, &h->cuts[c], g);
        degree = g, *cut = c;
    }
    return degree;
}

/* What all queries cost with each degree as the cap, and the states that they read; infinite where no query is served. */
static void cost_caps(double costs[SP_MAX_DEGREE + 1], const sp_hybrid *h, const hybrid_counts *counts)
{
    const sp_fast *fast = h->call->fast;
    const double n_keys = (double)h->call->head.n_keys, exact = cost_exact(h);
    bool is_used[SP_MAX_DEGREE + 1][SP_MAX_CUTS][SP_MAX_DEGREE + 1] = {{{false}}}, is_serving[SP_MAX_DEGREE + 1] = {false};
    for (size_t cap = fast->first_degree; cap <= fast->last_degree; cap++) costs[cap] = SP_KEY_COST * h->products[cap] * n_keys;
    for (uint32_t group = 0; group < N_GROUPS; group++) {
        const double n = (double)(counts->queries[group + 1] - counts->queries[group]);
        size_t degrees[SP_MAX_CUTS];
        if (n == 0) continue;
        for (size_t c = 0; c < h->n_cuts; c++) degrees[c] = degree_for(h, &h->cuts[c], lower_edge(group + 1), fast->last_degree);
        for (size_t cap = fast->first_degree; cap <= fast->last_degree; cap++) {
            double least = exact;
            size_t best = h->n_cuts;
            for (size_t c = 0; c < h->n_cuts; c++) {
                if (degrees[c] == SP_NO_DEGREE || degrees[c] > cap || cost_query(h, &h->cuts[c], degrees[c]) >= least) continue;
                least = cost_query(h, &h->cuts[c], degrees[c]);
                best = c;
            }
            costs[cap] += n * least;
            if (best == h->n_cuts) continue;
            is_serving[cap] = true;
            if (!is_used[cap][best][degrees[best]]) costs[cap] += h->products[degrees[best]] * STATE_COST;
            is_used[cap][best][degrees[best]] = true;
        }
    }
    for (size_t cap = fast->first_degree; cap <= fast->last_degree; cap++)
        if (!is_serving[cap]) costs[cap] = (double)INFINITY;
}

static void choose_cap(sp_hybrid *h, const hybrid_counts *counts)
{
    double costs[SP_MAX_DEGREE + 1];
    cost_caps(costs, h, counts);
    for (size_t cap = h->call->fast->first_degree; cap <= h->call->fast->last_degree; cap++)
        if (costs[cap] < h->cost) h->cost = costs[cap], h->degree = cap;
}

static void sort_queries(sp_hybrid *h, uint32_t *counts)
{
    for (size_t i = 0; i < h->call->head.n_queries; i++) h->order[counts[group_of(h->call->bounds[i])]++] = i;
}

/* By the number of cuts that leave a key outside, so that each has its inner keys first. */
static void sort_keys(sp_hybrid *h, const double *distances)
{
    const size_t n_keys = h->call->head.n_keys;
    size_t at[SP_MAX_CUTS], shell = 0;
    uint8_t shells[N_GROUPS];
    for (uint32_t group = 0; group < N_GROUPS; group++) {
        while (shell + 1 < h->n_cuts && group >= h->cuts[h->n_cuts - 1 - shell].outer) shell++;
        shells[group] = (uint8_t)shell;
    }
    memset(at, 0, sizeof at);
    for (size_t j = 0; j < n_keys; j++)
        if (shells[group_of(distances[j])] + 1 < SP_MAX_CUTS) at[shells[group_of(distances[j])] + 1]++;
    for (size_t s = 1; s < SP_MAX_CUTS; s++) at[s] += at[s - 1];
    for (size_t j = 0; j < n_keys; j++) h->keys[at[shells[group_of(distances[j])]]++] = j;
}

sp_status sp_hybrid_plan(sp_hybrid *h, double limit)
{
    const sp_fast_call *call = h->call;
    const size_t n_keys = call->head.n_keys, n_queries = call->head.n_queries;
    sp_arena *arena = call->fast->arena;
    hybrid_counts counts = {.queries = sp_arena_alloc(arena, N_GROUPS + 1, sizeof(uint32_t)),
                            .keys = sp_arena_alloc(arena, N_GROUPS + 1, sizeof(uint32_t)),
                            .distances = sp_arena_alloc(arena, n_keys, sizeof(double))};
    h->degree = SP_NO_DEGREE;
    h->cost = limit;
    h->n_cuts = 0;
    if (n_keys > UINT32_MAX || n_queries > UINT32_MAX) return SP_OK;
    h->keys = sp_arena_alloc(arena, n_keys, sizeof *h->keys);
    h->order = sp_arena_alloc(arena, n_queries, sizeof *h->order);
    if (!counts.queries || !counts.keys || !counts.distances || !h->keys || !h->order) return SP_ERR_MEMORY;
    sp_frame_measure_distances(counts.distances, &call->frame, &call->head);
    count_below(counts.queries, call->bounds, n_queries);
    count_below(counts.keys, counts.distances, n_keys);
    list_cuts(h, &counts);
    list_products(h);
    choose_cap(h, &counts);
    if (h->degree == SP_NO_DEGREE) return SP_OK;
    sort_keys(h, counts.distances);
    sort_queries(h, counts.queries);
    return SP_OK;
}
