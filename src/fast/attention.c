/* attention.c: one head's attention: planned, computed in tiles of queries, certified.
 *
 * Keys pass once, in blocks, into moments; then tiles of queries read these. Queries whose scores might leave the polynomial's
 * range, by Cauchy-Schwarz, are gathered into tiles of their own and attend exactly. The degree is the one that costs least,
 * counting those. Where parts of the sum want different degrees, hybrid.c plans; where other coordinates make scores smaller or
 * fewer numbers of them, the call is planned there, too (balance.h).
 *
 * Invariant: a query that the polynomial answers has |score| * (1 + 8 u) <= range, u = 2^-24: the scores of the rounded inputs lie
 * on the range, too. */
#include <math.h>
#include <stdlib.h>

#include "base/sizes.h"
#include "base/status.h"
#include "fast/balance.h"
#include "fast/fast.h"
#include "fast/hybrid.h"
#include "fast/moments.h"
#include "fast/tiles.h"

static sp_status complete_head(sp_attention_head *h)
{
    if (h->n_keys == 0) return sp_fail(SP_ERR_ARGUMENT, "attention over no keys: there is nothing to weigh; give at least one");
    if (h->d == 0 || h->d_v == 0)
        return sp_fail(SP_ERR_ARGUMENT, "keys of %zu coordinates and values of %zu; both must have some", h->d, h->d_v);
    if (h->scale == 0) h->scale = (float)(1 / sqrt((double)h->d));
    if (h->causal && h->n_queries > h->n_keys)
        return sp_fail(SP_ERR_ARGUMENT, "causal attention of %zu queries over %zu keys; each query has a key of its own",
                       h->n_queries, h->n_keys);
    if (!isfinite(h->scale)) return sp_fail(SP_ERR_ARGUMENT, "scale is %f; it must be finite", (double)h->scale);
    size_t *strides[] = {&h->ldq, &h->ldk, &h->ldv, &h->ldo}, widths[] = {h->d, h->d, h->d_v, h->d_v};
    for (size_t i = 0; i < 4; i++) {
        if (*strides[i] == 0) *strides[i] = widths[i];
        if (*strides[i] < widths[i])
            return sp_fail(SP_ERR_ARGUMENT, "rows of %zu numbers cannot stand %zu apart", widths[i], *strides[i]);
    }
    return SP_OK;
}

/* ---- the plan: one degree, or the exact kernel ---- */

typedef struct single_plan {
    size_t degree;   /* or SP_NO_DEGREE */
    size_t n_served; /* queries on whose range it is */
    double exact;    /* what the exact kernel alone would cost */
    double cost;     /* of the plan, or what a hybrid must cost less than */
} single_plan;

static bool serves(const sp_exp_polynomial *p, double bound)
{
    return bound * (1 + 8 * SP_UNIT_ROUNDOFF) <= p->rho;
}

static bool is_degree_given(const sp_fast *fast)
{
    return fast->options.degree > 0 || fast->options.range > 0;
}

/* Keys that a query sees on average. */
static double seen_keys(const sp_fast_call *call)
{
    return (double)call->head.n_keys - (call->head.causal ? (double)call->head.n_queries / 2 : 0);
}

static double cost_exact(const sp_fast_call *call, size_t n_queries)
{
    return (double)n_queries * seen_keys(call) * sp_fast_pair_cost(sp_fast_given(call));
}

/* What is exact at a causal query's end, half a block on average, and a block's end, a share of it for each of its keys. */
static double cost_block(const sp_fast_call *call, size_t degree, size_t block)
{
    const double a_number = SP_BLOCK_COST * (double)call->fast->kernels->lanes;
    return (double)block / 2 * sp_fast_pair_cost(call) + sp_fast_degree_products(call, degree) * a_number / (double)block;
}

/* The length of causal blocks: the longest, or a half or a quarter of it where that costs less. */
static size_t choose_block(const sp_fast_call *call, size_t degree)
{
    const size_t longest = call->fast->kernels->block_keys;
    size_t best = longest;
    for (size_t block = longest / 2; block >= longest / 4 && call->head.causal; block /= 2)
        if (cost_block(call, degree, block) < cost_block(call, degree, best)) best = block;
    return best;
}

static double cost_degree(const sp_fast_call *call, size_t degree, size_t n_served)
{
    const double block = call->head.causal ? cost_block(call, degree, choose_block(call, degree)) : 0;
    return sp_fast_degree_products(call, degree) * (SP_KEY_COST * (double)call->head.n_keys + SP_QUERY_COST * (double)n_served) +
           cost_exact(call, call->head.n_queries - n_served) + (double)n_served * block;
}

static size_t count_served(const sp_fast_call *call, size_t degree)
{
    size_t n = 0;
    for (size_t i = 0; i < call->head.n_queries; i++) n += serves(&call->fast->polynomials[degree], call->bounds[i]);
    return n;
}

static sp_status refuse_memory(const sp_fast_call *call, size_t degree)
{
    const double max_bytes = (double)call->fast->options.max_bytes;
    size_t best = degree;
    while (best > 0 && sp_moments_bytes(call, best, 1) > max_bytes) best--;
    return sp_fail(SP_ERR_MEMORY, "degree %zu in %zu dimensions takes %.4g bytes, and %.4g are allowed; degree %zu would fit",
                   degree, call->head.d, sp_moments_bytes(call, degree, 1), max_bytes, best);
}

/* The degree that was asked for, or the one that costs least where that is less than the exact kernel's cost. */
static sp_status choose_degree(single_plan *plan, const sp_fast_call *call)
{
    const sp_fast *fast = call->fast;
    const bool is_given = is_degree_given(fast);
    plan->cost = plan->exact * (plan->exact < SP_LEAST_HYBRID ? SP_SMALL_WORTHWHILE : SP_WORTHWHILE);
    for (size_t g = fast->first_degree; g <= fast->last_degree && (is_given || sp_fast_may_choose(call, g)); g++) {
        if (sp_moments_bytes(call, g, 1) > (double)fast->options.max_bytes) {
            if (is_given) return refuse_memory(call, g);
            break;
        }
        const size_t n_served = count_served(call, g);
        const double cost = cost_degree(call, g, n_served);
        if (n_served > 0 && (is_given || cost < plan->cost)) *plan = (single_plan){g, n_served, plan->exact, cost};
        if (n_served == call->head.n_queries) break; /* higher degrees only cost more */
    }
    return SP_OK;
}

/* ---- one degree ---- */

typedef struct single_run {
    const sp_fast_call *call;
    size_t degree, n_served, block; /* block: keys that enter the moments together */
    size_t *queries;                /* (n_queries), as tiles take them */
    sp_tile *tiles;
    size_t n_tiles;
    sp_rows rows, given; /* all keys, where some query wants them: beside a polynomial, and as they were given */
    sp_turned turned;
    sp_served served;
} single_run;

static bool is_served(const single_run *run, size_t query)
{
    const sp_fast_call *call = run->call;
    return run->degree != SP_NO_DEGREE && serves(&call->fast->polynomials[run->degree], call->bounds[query]);
}

/* Queries n .. n + some of the list, a tile at a time. `degree`: theirs, or SP_NO_DEGREE. */
static void append_tiles(single_run *run, size_t first, size_t some, size_t degree)
{
    const size_t width = run->call->fast->kernels->tile_queries;
    for (size_t n; some > 0; first += n, some -= n) {
        n = sp_smaller(width, some);
        run->tiles[run->n_tiles++] = (sp_tile){.queries = run->queries + first,
                                               .n = n,
                                               .degree = degree,
                                               .bound = sp_tile_bound(run->call, run->queries + first, n),
                                               .last = PTRDIFF_MAX};
    }
}

static sp_status begin(single_run *run)
{
    const size_t width = run->call->fast->kernels->tile_queries, n_queries = run->call->head.n_queries;
    sp_arena *arena = run->call->fast->arena;
    run->queries = sp_arena_alloc(arena, n_queries, sizeof *run->queries);
    run->tiles = sp_arena_alloc(arena, n_queries / width + 2, sizeof *run->tiles);
    return run->queries && run->tiles ? SP_OK : SP_ERR_MEMORY;
}

static void note_tile(single_run *run, const sp_tile *tile, size_t n_passed)
{
    /* What the polynomial's terms round to is in proportion to the keys that passed. */
    const double mean_weight = n_passed ? tile->least / (double)n_passed : (double)INFINITY;
    if (tile->degree == SP_NO_DEGREE) return;
    sp_served_add(&run->served, tile->n, tile->bound, mean_weight);
    sp_turned_add(&run->turned, run->call, tile->queries, tile->n);
}

static double spare_bytes(const single_run *run)
{
    return (double)run->call->fast->options.max_bytes - sp_moments_bytes(run->call, run->degree, 1);
}

/* Queries that the polynomial does not serve, and then those that it does. */
static sp_status attend_to_all(float *out, single_run *run)
{
    const sp_fast_call *call = run->call;
    const size_t n_queries = call->head.n_queries, n_keys = call->head.n_keys;
    const size_t n_served = run->n_served;
    float *state = NULL;
    for (size_t i = 0, exact = 0, served = n_queries - n_served; i < n_queries; i++)
        run->queries[is_served(run, i) ? served++ : exact++] = i;
    append_tiles(run, 0, n_queries - n_served, SP_NO_DEGREE);
    append_tiles(run, n_queries - n_served, n_served, run->degree);
    sp_status st = n_served < n_queries ? sp_rows_pack(&run->given, sp_fast_given(call), NULL) : SP_OK;
    if (!st && n_served > 0) {
        sp_moments moments;
        if ((st = sp_moments_begin(&moments, call, run->degree, run->block, NULL, false, spare_bytes(run)))) return st;
        sp_moments_add(&moments, n_keys);
        state = sp_arena_alloc(call->fast->arena, sp_moments_state_size(&moments, run->degree), sizeof *state);
        if (!state) return SP_ERR_MEMORY;
        sp_moments_make_state(state, &moments, run->degree);
    }
    for (size_t i = 0; i < run->n_tiles; i++) {
        sp_tile *tile = &run->tiles[i];
        if (tile->degree == SP_NO_DEGREE)
            tile->rows = &run->given, tile->end = n_keys;
        else
            tile->state = state;
    }
    if (!st) st = sp_tiles_answer(out, run->tiles, run->n_tiles, call);
    for (size_t i = 0; i < run->n_tiles && !st; i++) note_tile(run, &run->tiles[i], n_keys);
    return st;
}

/* ---- one degree, causal ---- */

/* Keys in whole blocks that all queries of a causal tile see. */
static size_t passed_keys(const single_run *run, size_t tile)
{
    const sp_attention_head *head = &run->call->head;
    const size_t n_seen = head->n_keys - head->n_queries + run->tiles[tile].queries[0] + 1;
    return n_seen / run->block * run->block;
}

/* Neighbouring queries in each tile, which see the keys up to their own: those of the blocks that all of them see through a state,
 * the others exactly. Tiles in which a query is not served are exact as a whole. */
static void list_causal_tiles(single_run *run)
{
    const sp_attention_head *head = &run->call->head;
    for (size_t i = 0; i < head->n_queries; i++) run->queries[i] = i;
    append_tiles(run, 0, head->n_queries, run->degree);
    for (size_t t = 0; t < run->n_tiles; t++) {
        sp_tile *tile = &run->tiles[t];
        const size_t n_seen = head->n_keys - head->n_queries + tile->queries[0] + 1;
        for (size_t u = 0; u < tile->n; u++)
            if (!is_served(run, tile->queries[u])) tile->degree = SP_NO_DEGREE;
        tile->first = tile->degree == SP_NO_DEGREE ? 0 : passed_keys(run, t);
        tile->rows = tile->first > 0 ? &run->rows : &run->given;
        tile->end = n_seen + tile->n - 1;
        tile->last = (ptrdiff_t)n_seen - 1;
    }
}

/* A window of blocks of keys at a time, and the tiles that see no more than these. */
static sp_status pass_blocks(float *out, single_run *run, sp_moments *moments)
{
    const sp_fast_call *call = run->call;
    const size_t block = run->block, size = sp_moments_state_size(moments, run->degree);
    const size_t most = passed_keys(run, run->n_tiles - 1), first_passed = passed_keys(run, 0);
    float *states = sp_arena_alloc(call->fast->arena, moments->window * size, sizeof *states);
    sp_status st = states ? SP_OK : SP_ERR_MEMORY;
    if (first_passed) sp_moments_add(moments, first_passed - block);
    for (size_t first = 0, end; first < run->n_tiles && !st; first = end) {
        const size_t before = moments->n_keys, n_blocks = sp_smaller(moments->window, (most - before) / block);
        sp_moments_add_each(states, moments, n_blocks);
        for (end = first; end < run->n_tiles && passed_keys(run, end) <= moments->n_keys; end++) {
            sp_tile *tile = &run->tiles[end];
            if (tile->degree != SP_NO_DEGREE && tile->first > 0) tile->state = states + ((tile->first - before) / block - 1) * size;
        }
        st = sp_tiles_answer(out, run->tiles + first, end - first, call);
    }
    return st;
}

static sp_status attend_causally(float *out, single_run *run)
{
    const sp_fast_call *call = run->call;
    bool any_served = false;
    list_causal_tiles(run);
    for (size_t t = 0; t < run->n_tiles; t++) any_served = any_served || run->tiles[t].degree != SP_NO_DEGREE;
    sp_status st = sp_rows_pack(&run->given, sp_fast_given(call), NULL);
    run->rows = run->given;
    if (!st && call->given) st = sp_rows_pack(&run->rows, call, NULL);
    if (st) return st;
    if (any_served) {
        sp_moments moments;
        st = sp_moments_begin(&moments, call, run->degree, run->block, NULL, true, spare_bytes(run));
        if (!st) st = pass_blocks(out, run, &moments);
    } else {
        st = sp_tiles_answer(out, run->tiles, run->n_tiles, call);
    }
    for (size_t t = 0; t < run->n_tiles && !st; t++) note_tile(run, &run->tiles[t], run->tiles[t].first);
    return st;
}

/* ---- the certificate ---- */

/* The polynomial's terms also carry j products and the nested scheme's (j + 1) d additions. Exact terms at a causal query's end add
 * to the normaliser what they are, in a sum as long as a block and a tile; their scores round d times. */
static double bound_rounding(const single_run *run)
{
    const sp_fast_call *call = run->call;
    const double d = (double)call->head.d;
    double weights =
        sp_rounding_of_weights(&run->served, &call->fast->polynomials[run->degree], (sp_term_roundings){.per_level = 1, .d = d});
    if (call->head.causal) weights += (double)(run->block + 2 * call->fast->kernels->tile_queries) + (d + 4) * run->served.range;
    weights += sp_turned_rounding_of_weights(&run->turned, call);
    return sp_rounding_bound(weights, call->frame.value_range, call->frame.value_magnitude);
}

static void certify(sp_certificate *out, const single_run *run)
{
    const sp_fast_call *call = run->call;
    const size_t n_queries = call->head.n_queries;
    *out = (sp_certificate){.n_queries = n_queries,
                            .n_keys = call->head.n_keys,
                            .n_exact = n_queries - run->served.n_queries,
                            .max_range = sp_fast_given(call)->largest_bound};
    if (run->served.n_queries == 0) return;
    out->degree = run->degree;
    out->n_features = sp_monomials_count(call->head.d, run->degree);
    out->range = run->served.range;
    out->epsilon = call->fast->polynomials[run->degree].eps;
    out->rank = call->given ? call->head.d : 0;
    out->remainder = run->turned.off;
    out->polynomial_bound = call->frame.value_range * sp_weights_distance(out->epsilon + out->remainder);
    out->rounding_bound = bound_rounding(run);
}

/* ---- putting it together ---- */

static sp_status attend_single(float *out, sp_certificate *certificate, sp_fast_call *call, const single_plan *plan)
{
    single_run run = {.call = call, .degree = plan->degree, .n_served = plan->n_served, .block = choose_block(call, plan->degree)};
    call->n_threads = sp_fast_threads(call->fast, plan->degree ? plan->cost : plan->exact);
    sp_status st = begin(&run);
    if (!st) st = call->head.causal ? attend_causally(out, &run) : attend_to_all(out, &run);
    if (!st && certificate) certify(certificate, &run);
    return st;
}

typedef struct call_plan {
    sp_fast_call *call;
    single_plan single;
    sp_hybrid hybrid; /* degree 0: the single one */
    double cost;
} call_plan;

/* One degree, the exact kernel, or, where no degree was asked for and it costs less, the hybrid. */
static sp_status plan_call(call_plan *plan, sp_fast_call *call)
{
    const sp_fast *fast = call->fast;
    *plan = (call_plan){.call = call, .single.exact = cost_exact(call, call->head.n_queries), .hybrid.call = call};
    sp_status st = choose_degree(&plan->single, call);
    if (!st && !is_degree_given(fast) && !call->head.causal && call->frame.radius > 0 && plan->single.exact >= fast->least_hybrid)
        st = sp_hybrid_plan(&plan->hybrid, plan->single.cost);
    plan->cost = plan->hybrid.degree ? plan->hybrid.cost : plan->single.degree ? plan->single.cost : plan->single.exact;
    return st;
}

/* In other coordinates, where a plan there costs less. */
static sp_status plan_turned(call_plan *plan, sp_fast_call *turned)
{
    const sp_fast_call *call = plan->call;
    call_plan other;
    sp_balance balance;
    bool done = false;
    if (is_degree_given(call->fast) || plan->single.exact < call->fast->least_hybrid) return SP_OK;
    sp_status st = sp_balance_find(&balance, call, plan->cost);
    if (!st && balance.rank) st = sp_balance_turn(turned, &done, call, &balance);
    if (!st && done) st = plan_call(&other, turned);
    if (!st && done && other.cost < plan->cost) *plan = other;
    return st;
}

static sp_status attend(float *out, sp_certificate *certificate, sp_fast_call *call)
{
    call_plan plan;
    sp_fast_call turned;
    sp_status st = plan_call(&plan, call);
    if (!st) st = plan_turned(&plan, &turned);
    if (st) return st;
    if (plan.hybrid.degree == SP_NO_DEGREE) return attend_single(out, certificate, plan.call, &plan.single);
    plan.call->n_threads = sp_fast_threads(call->fast, plan.hybrid.cost);
    return sp_hybrid_attend(out, certificate, &plan.hybrid);
}

sp_status sp_fast_call_measure(sp_fast_call *call)
{
    static const double NUMBER_COST = 50; /* of one that is measured: read twice, in f64 */
    const sp_attention_head *h = &call->head;
    const double numbers = (double)h->n_keys * (double)(h->d + h->d_v) + (double)h->n_queries * (double)h->d;
    sp_arena *arena = call->fast->arena;
    const size_t n_threads = sp_fast_threads(call->fast, numbers * NUMBER_COST);
    sp_status st = sp_frame_measure(&call->frame, h, call->fast->kernels, n_threads, arena);
    if (st) return st;
    call->bounds = sp_arena_alloc(arena, h->n_queries, sizeof *call->bounds);
    return call->bounds ? sp_frame_bound_queries(call->bounds, &call->largest_bound, &call->frame, h, arena) : SP_ERR_MEMORY;
}

sp_status sp_fast_attention(float *out, sp_certificate *certificate, sp_fast *fast, const sp_attention_head *head)
{
    sp_fast_call call = {.fast = fast, .head = *head};
    sp_status st = complete_head(&call.head);
    if (!st) st = sp_fast_call_measure(&call);
    if (!st) st = attend(out, certificate, &call);
    sp_arena_reset(fast->arena, (sp_arena_mark){0});
    return st;
}

sp_status sp_exact_attention(float *out, sp_fast *fast, const sp_attention_head *head)
{
    sp_fast_call call = {.fast = fast, .head = *head};
    sp_status st = complete_head(&call.head);
    if (!st) st = sp_fast_call_measure(&call);
    if (!st) {
        const single_plan exact = {.degree = SP_NO_DEGREE, .exact = cost_exact(&call, call.head.n_queries)};
        st = attend_single(out, NULL, &call, &exact);
    }
    sp_arena_reset(fast->arena, (sp_arena_mark){0});
    return st;
}
