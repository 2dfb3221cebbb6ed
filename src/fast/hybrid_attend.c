/* hybrid_attend.c: a plan of hybrid.c carried out, and what is certain of its output.
 *
 * Moments grow from the innermost shell of keys outwards; after each cut that tiles have, the states of their degrees are made,
 * each of a subset of the moments, in the same order. What is behind a cut in the keys' order is exact.
 *
 * Invariant: a tile of degree g has |q| radius |scale| (1 + 8 u) <= the range of g, radius being its cut's, and with that of all
 * keys
 * <= SP_NO_SHIFT. */
#include <math.h>
#include <string.h>

#include "base/sizes.h"
#include "fast/balance.h"
#include "fast/hybrid.h"
#include "fast/moments.h"
#include "fast/tiles.h"

typedef struct hybrid_run {
    const sp_hybrid *plan;
    const sp_fast_call *call;
    sp_tile *tiles;
    size_t n_tiles;
    size_t *cuts;        /* (n_tiles), of those that have a degree */
    sp_rows rows, given; /* all keys in the plan's order, and as they came, where some tile wants any */
    sp_served served[SP_MAX_DEGREE + 1];
    sp_turned turned;
    size_t n_outer;     /* the most keys that are exact for a query that is not exact in full */
    double outer_range; /* the largest score of such a query with such a key */
} hybrid_run;

/* ---- tiles of queries ---- */

/* Those with the largest bounds first. */
static sp_status list_tiles(hybrid_run *run)
{
    const sp_fast_call *call = run->call;
    const size_t width = call->fast->kernels->tile_queries, n_queries = call->head.n_queries;
    run->n_tiles = (n_queries + width - 1) / width;
    run->tiles = sp_arena_alloc(call->fast->arena, run->n_tiles, sizeof *run->tiles);
    run->cuts = sp_arena_alloc(call->fast->arena, run->n_tiles, sizeof *run->cuts);
    if (!run->tiles || !run->cuts) return SP_ERR_MEMORY;
    for (size_t i = 0; i < run->n_tiles; i++) {
        const size_t t = run->n_tiles - 1 - i;
        sp_tile *tile = &run->tiles[t];
        *tile = (sp_tile){.queries = run->plan->order + i * width,
                          .n = sp_smaller(width, n_queries - i * width),
                          .end = call->head.n_keys,
                          .last = PTRDIFF_MAX};
        tile->bound = sp_tile_bound(call, tile->queries, tile->n);
        tile->degree = sp_hybrid_choose(&run->cuts[t], run->plan, tile->bound);
        tile->first = tile->degree == SP_NO_DEGREE ? 0 : run->plan->cuts[run->cuts[t]].n_inner;
        tile->rows = tile->degree == SP_NO_DEGREE ? &run->given : &run->rows;
    }
    return SP_OK;
}

/* ---- keys ---- */

/* The states of a cut, one for each degree that its tiles have. */
static sp_status make_states(hybrid_run *run, sp_moments *moments, size_t cut)
{
    float *states[SP_MAX_DEGREE + 1] = {NULL};
    for (size_t i = 0; i < run->n_tiles; i++) {
        sp_tile *tile = &run->tiles[i];
        if (tile->degree == SP_NO_DEGREE || run->cuts[i] != cut) continue;
        float **state = &states[tile->degree];
        if (!*state) {
            *state = sp_arena_alloc(run->call->fast->arena, sp_moments_state_size(moments, tile->degree), sizeof **state);
            if (!*state) return SP_ERR_MEMORY;
            sp_moments_add(moments, run->plan->cuts[cut].n_inner);
            sp_moments_make_state(*state, moments, tile->degree);
        }
        tile->state = *state;
    }
    return SP_OK;
}

static sp_status pass_keys(hybrid_run *run)
{
    const sp_fast_call *call = run->call;
    const sp_hybrid *plan = run->plan;
    const double max_bytes = (double)call->fast->options.max_bytes;
    const double spare_bytes = max_bytes - sp_moments_bytes(call, plan->degree, plan->n_cuts * (plan->degree + 1));
    sp_moments moments;
    sp_status st = sp_moments_begin(&moments, call, plan->degree, call->fast->kernels->block_keys, plan->keys, false, spare_bytes);
    for (size_t c = plan->n_cuts; c-- > 0 && !st;) st = make_states(run, &moments, c);
    for (size_t i = 0; i < run->n_tiles && !st; i++) {
        const sp_tile *tile = &run->tiles[i];
        if (tile->first == tile->end) continue;
        if (tile->state && run->rows.n == 0) st = sp_rows_pack(&run->rows, call, plan->keys);
        if (!tile->state && run->given.n == 0) st = sp_rows_pack(&run->given, sp_fast_given(call), NULL);
    }
    return st;
}

/* ---- the certificate ---- */

static void note_tiles(hybrid_run *run)
{
    for (size_t i = 0; i < run->n_tiles; i++) {
        const sp_tile *tile = &run->tiles[i];
        if (!tile->state) continue;
        sp_served_add(&run->served[tile->degree], tile->n,
                      sp_hybrid_inner_bound(run->plan, &run->plan->cuts[run->cuts[i]], tile->bound),
                      tile->least / (double)run->call->head.n_keys);
        sp_turned_add(&run->turned, run->call, tile->queries, tile->n);
        if (tile->first == tile->end) continue;
        run->n_outer = sp_larger(run->n_outer, tile->end - tile->first);
        run->outer_range = fmax(run->outer_range, tile->bound);
    }
}

/* As in attention.c; the exact keys' part is a sum in a row, with scores that round d times. */
static double bound_rounding(const hybrid_run *run, size_t degree)
{
    const sp_fast_call *call = run->call;
    const double d = (double)call->head.d;
    double weights =
        sp_rounding_of_weights(&run->served[degree], &call->fast->polynomials[degree], (sp_term_roundings){.per_level = 1, .d = d});
    if (run->n_outer) weights += (double)(run->n_outer + 2 * call->fast->kernels->tile_queries) + (d + 5) * run->outer_range;
    weights += sp_turned_rounding_of_weights(&run->turned, call);
    return sp_rounding_bound(weights, call->frame.value_range, call->frame.value_magnitude);
}

/* The worst of the degrees that were used. */
static void certify(sp_certificate *out, const hybrid_run *run)
{
    const sp_fast_call *call = run->call;
    const sp_fast *fast = call->fast;
    const size_t n_queries = call->head.n_queries;
    *out = (sp_certificate){
        .n_queries = n_queries, .n_keys = call->head.n_keys, .n_exact = n_queries, .max_range = sp_fast_given(call)->largest_bound};
    for (size_t g = fast->first_degree; g <= run->plan->degree; g++) {
        const sp_served *served = &run->served[g];
        if (served->n_queries == 0) continue;
        out->n_exact -= served->n_queries;
        out->degree = g;
        out->range = fmax(out->range, served->range);
        out->epsilon = fmax(out->epsilon, fast->polynomials[g].eps);
        out->rounding_bound = fmax(out->rounding_bound, bound_rounding(run, g));
    }
    if (out->degree == SP_NO_DEGREE) return;
    out->n_features = sp_monomials_count(call->head.d, out->degree);
    out->n_exact_keys = run->n_outer;
    out->rank = call->given ? call->head.d : 0;
    out->remainder = run->turned.off;
    out->polynomial_bound = call->frame.value_range * sp_weights_distance(out->epsilon + out->remainder);
}

sp_status sp_hybrid_attend(float *out, sp_certificate *certificate, const sp_hybrid *hybrid)
{
    hybrid_run run = {.plan = hybrid, .call = hybrid->call};
    sp_status st = list_tiles(&run);
    if (!st) st = pass_keys(&run);
    if (!st) st = sp_tiles_answer(out, run.tiles, run.n_tiles, run.call);
    if (st) return st;
    note_tiles(&run);
    if (certificate) certify(certificate, &run);
    return SP_OK;
}
