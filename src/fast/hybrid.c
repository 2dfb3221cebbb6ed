/* hybrid.c: the plan of hybrid.h: which keys are exact, and up to which degree queries are answered by a polynomial.
 *
 * Bounds of queries and distances of keys are counted by the leading bits of their f32 forms, 32 groups to a power of two. From
 * these counts the cost of every cut through the keys and of every degree follows without another look at the data, and sorting
 * is a matter of counting, too: a comparison sort would take as long as the polynomial's products.
 * Cost: O(n d) and a few thousand steps. */
#include "fast/hybrid.h"

#include <math.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"

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
} hybrid_counts;

static double pair_cost(const sp_hybrid *h)
{
    return (double)(h->head->d + h->frame->groups * h->frame->columns) + SP_EXP_COST;
}

/* Queries of whole groups that a degree serves where inner keys reach `radius`. Outer keys add e^s as it is, without a shift. */
static size_t count_served(const sp_hybrid *h, const hybrid_counts *counts, size_t degree, double radius)
{
    const double full = h->frame->radius, most = h->polynomials[degree].rho * (1 - 1e-6);
    const double bound = radius * SP_HYBRID_NO_SHIFT < most * full ? SP_HYBRID_NO_SHIFT : most * (full / radius);
    return counts->queries[group_of(bound)];
}

/* Keeps the cheapest cap for one cut, if it costs less than `least`, which follows. */
static void plan_cut(sp_hybrid *h, const hybrid_counts *counts, uint32_t outer, double radius, double *least)
{
    const double n_keys = (double)h->head->n_keys, n_queries = (double)h->head->n_queries;
    const double columns = (double)(h->frame->groups * h->frame->columns), pair = pair_cost(h);
    const size_t n_outer = h->head->n_keys - counts->keys[outer];
    double queries = 0, states = 0, n_before = 0;
    for (size_t g = h->first_degree; g <= h->last_degree; g++) {
        const double features = (double)sp_monomials_count(h->head->d, g) * columns;
        const double n_served = (double)count_served(h, counts, g, radius);
        if (features * (double)(sizeof(double) + (g + 1) * sizeof(float)) > (double)h->max_bytes) return;
        queries += (n_served - n_before) * (features * SP_QUERY_COST + (double)n_outer * pair);
        states += features * STATE_COST;
        n_before = n_served;
        const double cost = SP_KEY_COST * features * n_keys + queries + states + (n_queries - n_served) * n_keys * pair;
        if (n_served == 0 || cost >= *least) continue;
        *least = cost;
        h->degree = g, h->outer = outer, h->n_outer = n_outer;
    }
}

/* Every group of keys in which some stand is a cut, from none outside on, until too many are. */
static void choose_cut(sp_hybrid *h, const hybrid_counts *counts, double limit)
{
    const uint32_t n_keys = (uint32_t)h->head->n_keys;
    uint32_t top = group_of(h->frame->radius) + 1;
    plan_cut(h, counts, N_GROUPS, h->frame->radius, &limit);
    while (top > 0 && (double)(n_keys - counts->keys[top]) <= MOST_OUTER * (double)n_keys) {
        const uint32_t bits = top << DROPPED_BITS;
        float edge;
        memcpy(&edge, &bits, sizeof edge);
        if (counts->keys[top] < n_keys && counts->keys[top] > counts->keys[top - 1]) plan_cut(h, counts, top, (double)edge, &limit);
        top--;
    }
}

static void sort_queries(sp_hybrid *h, uint32_t *counts)
{
    for (size_t i = 0; i < h->head->n_queries; i++) h->order[counts[group_of(h->bounds[i])]++] = (uint32_t)i;
}

sp_status sp_hybrid_plan(sp_hybrid *h, double limit)
{
    const size_t n_keys = h->head->n_keys, n_queries = h->head->n_queries;
    hybrid_counts counts = {sp_arena_alloc(h->arena, N_GROUPS + 1, sizeof(uint32_t)),
                            sp_arena_alloc(h->arena, N_GROUPS + 1, sizeof(uint32_t))};
    h->degree = 0;
    if (n_keys > UINT32_MAX || n_queries > UINT32_MAX) return SP_OK;
    h->distances = sp_arena_alloc(h->arena, n_keys, sizeof *h->distances);
    h->order = sp_arena_alloc(h->arena, n_queries, sizeof *h->order);
    if (!counts.queries || !counts.keys || !h->distances || !h->order) return SP_ERR_MEMORY;
    sp_frame_measure_distances(h->distances, h->frame, h->head);
    count_below(counts.queries, h->bounds, n_queries);
    count_below(counts.keys, h->distances, n_keys);
    choose_cut(h, &counts, limit);
    if (h->degree == 0) return SP_OK;
    h->inner_radius = h->n_outer ? 0 : h->frame->radius;
    for (size_t j = 0; j < n_keys && h->n_outer; j++)
        if (!sp_hybrid_is_outer(h, j)) h->inner_radius = fmax(h->inner_radius, h->distances[j]);
    sort_queries(h, counts.queries);
    return SP_OK;
}

bool sp_hybrid_is_outer(const sp_hybrid *h, size_t key)
{
    return group_of(h->distances[key]) >= h->outer;
}
