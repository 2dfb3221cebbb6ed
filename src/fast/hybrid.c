/* hybrid.c: the plan of hybrid.h: which keys are exact, and up to which degree queries are answered by a polynomial.
 *
 * Bounds of queries and distances of keys are counted by the leading bits of their f32 forms, 32 groups to a power of two. From
 * these counts the cost of every cut through the keys and of every degree follows without another look at the data, and sorting
 * is a matter of counting, too: a comparison sort would take as long as the polynomial's products.
 * Cost: O(n d) and a few thousand steps. */
#include "fast/hybrid.h"

#include <math.h>
#include <string.h>

#include "base/status.h"
#include "fast/moments.h"
#include "fast/tiles.h"

enum { DROPPED_BITS = 18, N_GROUPS = 1 << (31 - DROPPED_BITS) };
static const double MOST_OUTER = .125; /* of the keys: with more, exactness costs what it was to save */
static const double STATE_COST = 6;    /* of a number of a state, made once a degree */

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
    double products[SP_MAX_DEGREE + 1]; /* of a key or query with each degree; infinite where it must not be chosen */
} hybrid_counts;

static void list_products(hybrid_counts *counts, const sp_fast_call *call)
{
    const sp_fast *fast = call->fast;
    for (size_t g = fast->first_degree; g <= fast->last_degree; g++) {
        const bool fits = sp_moments_bytes(call, g, g + 1) <= (double)fast->options.max_bytes && sp_fast_may_choose(call, g);
        counts->products[g] = fits ? sp_fast_degree_products(call, g) : (double)INFINITY;
    }
}

/* Queries of whole groups that a degree serves where inner keys reach `radius`. Outer keys add e^s as it is, without a shift. */
static size_t count_served(const sp_hybrid *h, const hybrid_counts *counts, size_t degree, double radius)
{
    const double full = h->call->frame.radius, most = h->call->fast->polynomials[degree].rho * (1 - 1e-6);
    const double bound = radius * SP_NO_SHIFT < most * full ? SP_NO_SHIFT : most * (full / radius);
    return counts->queries[group_of(bound)];
}

/* Keeps the cheapest cap for one cut, if it costs less than the plan so far. */
static void plan_cut(sp_hybrid *h, const hybrid_counts *counts, uint32_t outer, double radius)
{
    const sp_fast_call *call = h->call;
    const sp_fast *fast = call->fast;
    const double n_keys = (double)call->head.n_keys, n_queries = (double)call->head.n_queries, pair = sp_fast_pair_cost(call);
    const double given_pair = sp_fast_pair_cost(sp_fast_given(call));
    const size_t n_outer = call->head.n_keys - counts->keys[outer];
    double queries = 0, states = 0, n_before = 0;
    for (size_t g = fast->first_degree; g <= fast->last_degree; g++) {
        const double products = counts->products[g], n_served = (double)count_served(h, counts, g, radius);
        if (products == (double)INFINITY) return;
        queries += (n_served - n_before) * (products * SP_QUERY_COST + (double)n_outer * pair);
        states += products * STATE_COST;
        n_before = n_served;
        const double cost = SP_KEY_COST * products * n_keys + queries + states + (n_queries - n_served) * n_keys * given_pair;
        if (n_served == 0 || cost >= h->cost) continue;
        h->cost = cost;
        h->degree = g, h->outer = outer, h->n_outer = n_outer;
    }
}

/* Every group of keys in which some stand is a cut, from none outside on, until too many are. */
static void choose_cut(sp_hybrid *h, const hybrid_counts *counts)
{
    const uint32_t n_keys = (uint32_t)h->call->head.n_keys;
    uint32_t top = group_of(h->call->frame.radius) + 1;
    plan_cut(h, counts, N_GROUPS, h->call->frame.radius);
    while (top > 0 && (double)(n_keys - counts->keys[top]) <= MOST_OUTER * (double)n_keys) {
        const uint32_t bits = top << DROPPED_BITS;
        float edge;
        memcpy(&edge, &bits, sizeof edge);
        if (counts->keys[top] < n_keys && counts->keys[top] > counts->keys[top - 1]) plan_cut(h, counts, top, (double)edge);
        top--;
    }
}

static void sort_queries(sp_hybrid *h, uint32_t *counts)
{
    for (size_t i = 0; i < h->call->head.n_queries; i++) h->order[counts[group_of(h->call->bounds[i])]++] = i;
}

sp_status sp_hybrid_plan(sp_hybrid *h, double limit)
{
    const sp_fast_call *call = h->call;
    const size_t n_keys = call->head.n_keys, n_queries = call->head.n_queries;
    sp_arena *arena = call->fast->arena;
    hybrid_counts counts = {.queries = sp_arena_alloc(arena, N_GROUPS + 1, sizeof(uint32_t)),
                            .keys = sp_arena_alloc(arena, N_GROUPS + 1, sizeof(uint32_t))};
    h->degree = SP_NO_DEGREE;
    h->cost = limit;
    if (n_keys > UINT32_MAX || n_queries > UINT32_MAX) return SP_OK;
    h->distances = sp_arena_alloc(arena, n_keys, sizeof *h->distances);
    h->order = sp_arena_alloc(arena, n_queries, sizeof *h->order);
    if (!counts.queries || !counts.keys || !h->distances || !h->order) return SP_ERR_MEMORY;
    sp_frame_measure_distances(h->distances, &call->frame, &call->head);
    count_below(counts.queries, call->bounds, n_queries);
    count_below(counts.keys, h->distances, n_keys);
    list_products(&counts, call);
    choose_cut(h, &counts);
    if (h->degree == SP_NO_DEGREE) return SP_OK;
    h->inner_radius = h->n_outer ? 0 : call->frame.radius;
    for (size_t j = 0; j < n_keys && h->n_outer; j++)
        if (!sp_hybrid_is_outer(h, j)) h->inner_radius = fmax(h->inner_radius, h->distances[j]);
    sort_queries(h, counts.queries);
    return SP_OK;
}

bool sp_hybrid_is_outer(const sp_hybrid *h, size_t key)
{
    return group_of(h->distances[key]) >= h->outer;
}
