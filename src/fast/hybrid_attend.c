/* hybrid_attend.c: a plan of hybrid.c carried out, and what is certain of its output.
 *
 * Moments are made once, of the largest degree; the state of a smaller one reads a subset of them, in the same order. Keys that are
 * exact for every query stand in their blocks with values of 0.
 *
 * Invariant: a tile of degree g has |q| inner_radius |scale| (1 + 8 u) <= the range of g, and |q| radius |scale| <= SP_NO_SHIFT. */
#include <assert.h>
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
    float *states[SP_MAX_DEGREE + 1]; /* of the degrees that a tile has */
    sp_rows outer, all;
    sp_served served[SP_MAX_DEGREE + 1];
    sp_turned turned;
    double outer_range; /* the largest score of an outer key with a query that is not exact in full */
} hybrid_run;

/* ---- tiles of queries ---- */

/* Of an inner key, rounded up. */
static double inner_bound(const hybrid_run *run, double bound)
{
    return bound * (run->plan->inner_radius / run->call->frame.radius) * (1 + 8 * SP_UNIT_ROUNDOFF);
}

/* The smallest degree that serves queries up to a bound. */
static size_t degree_for(const hybrid_run *run, double bound)
{
    const sp_fast *fast = run->call->fast;
    if (bound > SP_NO_SHIFT) return SP_NO_DEGREE;
    for (size_t g = fast->first_degree; g <= run->plan->degree; g++)
        if (inner_bound(run, bound) <= fast->polynomials[g].rho) return g;
    return SP_NO_DEGREE;
}

/* Those with the largest bounds first. */
static sp_status list_tiles(hybrid_run *run)
{
    const sp_fast_call *call = run->call;
    const size_t width = call->fast->kernels->tile_queries, n_queries = call->head.n_queries;
    run->n_tiles = (n_queries + width - 1) / width;
    run->tiles = sp_arena_alloc(call->fast->arena, run->n_tiles, sizeof *run->tiles);
    if (!run->tiles) return SP_ERR_MEMORY;
    for (size_t i = 0; i < run->n_tiles; i++) {
        sp_tile *tile = &run->tiles[run->n_tiles - 1 - i];
        *tile =
            (sp_tile){.queries = run->plan->order + i * width, .n = sp_smaller(width, n_queries - i * width), .last = PTRDIFF_MAX};
        tile->bound = sp_tile_bound(call, tile->queries, tile->n);
        tile->degree = degree_for(run, tile->bound);
    }
    return SP_OK;
}

/* ---- the inner keys ---- */

static sp_status make_states(hybrid_run *run)
{
    const sp_fast_call *call = run->call;
    sp_arena *arena = call->fast->arena;
    const size_t n_keys = call->head.n_keys, degree = run->plan->degree;
    uint8_t *left_out = run->plan->n_outer ? sp_arena_alloc(arena, n_keys, sizeof *left_out) : NULL;
    sp_moments moments;
    if (run->plan->n_outer && !left_out) return SP_ERR_MEMORY;
    for (size_t j = 0; j < n_keys && left_out; j++) left_out[j] = sp_hybrid_is_outer(run->plan, j);
    const double spare_bytes = (double)call->fast->options.max_bytes - sp_moments_bytes(call, degree, degree + 1);
    sp_status st = sp_moments_begin(&moments, call, degree, call->fast->kernels->block_keys, left_out, false, spare_bytes);
    if (st) return st;
    sp_moments_add(&moments, n_keys);
    for (size_t i = 0; i < run->n_tiles; i++) {
        sp_tile *tile = &run->tiles[i];
        if (tile->degree == SP_NO_DEGREE) continue;
        float **state = &run->states[tile->degree];
        if (!*state) {
            *state = sp_arena_alloc(arena, sp_moments_state_size(&moments, tile->degree), sizeof **state);
            if (!*state) return SP_ERR_MEMORY;
            sp_moments_make_state(*state, &moments, tile->degree);
        }
        tile->state = *state;
    }
    return SP_OK;
}

/* ---- exact keys ---- */

static sp_status pack_outer(hybrid_run *run)
{
    const sp_attention_head *head = &run->call->head;
    sp_arena *arena = run->call->fast->arena;
    const size_t d = head->d, d_v = head->d_v, most = run->plan->n_outer;
    float *k = sp_arena_alloc(arena, most * d, sizeof *k), *v = sp_arena_alloc(arena, most * d_v, sizeof *v);
    size_t n = 0;
    if (!k || !v) return SP_ERR_MEMORY;
    for (size_t j = 0; j < head->n_keys; j++) {
        if (!sp_hybrid_is_outer(run->plan, j)) continue;
        memcpy(k + n * d, head->k + j * head->ldk, d * sizeof *k);
        memcpy(v + n * d_v, head->v + j * head->ldv, d_v * sizeof *v);
        n++;
    }
    assert(n == most);
    const sp_attention_head keys = {.k = k, .v = v, .n_keys = n, .d = d, .d_v = d_v, .ldk = d, .ldv = d_v};
    return sp_rows_pack(&run->outer, run->call, &keys);
}

/* Which keys each tile adds exactly. */
static sp_status add_rows(hybrid_run *run)
{
    sp_status st = run->plan->n_outer ? pack_outer(run) : SP_OK;
    for (size_t i = 0; i < run->n_tiles && !st; i++) {
        sp_tile *tile = &run->tiles[i];
        const sp_fast_call *given = sp_fast_given(run->call);
        if (!tile->state && run->all.n == 0) st = sp_rows_pack(&run->all, given, &given->head);
        tile->rows = tile->state ? &run->outer : &run->all;
        tile->end = tile->rows->n;
    }
    return st;
}

/* ---- the certificate ---- */

static void note_tiles(hybrid_run *run)
{
    for (size_t i = 0; i < run->n_tiles; i++) {
        const sp_tile *tile = &run->tiles[i];
        if (!tile->state) continue;
        sp_served_add(&run->served[tile->degree], tile->n, inner_bound(run, tile->bound),
                      tile->least / (double)run->call->head.n_keys);
        sp_turned_add(&run->turned, run->call, tile->queries, tile->n);
        if (run->plan->n_outer) run->outer_range = fmax(run->outer_range, tile->bound);
    }
}

/* As in attention.c; the exact keys' part is a sum in a row, with scores that round d times. */
static double bound_rounding(const hybrid_run *run, size_t degree)
{
    const sp_fast_call *call = run->call;
    const double d = (double)call->head.d;
    double weights =
        sp_rounding_of_weights(&run->served[degree], &call->fast->polynomials[degree], (sp_term_roundings){.per_level = 1, .d = d});
    if (run->plan->n_outer) weights += (double)(run->outer.n + 2 * call->fast->kernels->tile_queries) + (d + 5) * run->outer_range;
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
    out->n_exact_keys = run->plan->n_outer;
    out->rank = call->given ? call->head.d : 0;
    out->remainder = run->turned.off;
    out->polynomial_bound = call->frame.value_range * sp_weights_distance(out->epsilon + out->remainder);
}

sp_status sp_hybrid_attend(float *out, sp_certificate *certificate, const sp_hybrid *hybrid)
{
    hybrid_run run = {.plan = hybrid, .call = hybrid->call};
    sp_status st = list_tiles(&run);
    if (!st) st = make_states(&run);
    if (!st) st = add_rows(&run);
    if (!st) st = sp_tiles_answer(out, run.tiles, run.n_tiles, run.call);
    if (st) return st;
    note_tiles(&run);
    if (certificate) certify(certificate, &run);
    return SP_OK;
}
