/* hybrid_attend.c: a plan of hybrid.c carried out, and what is certain of its output.
 *
 * Moments are made once, of the largest degree; the state of a smaller one reads a subset of them, in the same order, and is made
 * when a tile first asks for it. Keys that are exact for every query stand in their blocks with values of 0.
 *
 * Invariant: a tile of degree g has |q| inner_radius |scale| (1 + 8 u) <= the range of g, and |q| radius |scale| <= NO_SHIFT. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"
#include "fast/hybrid.h"
#include "fast/monomials.h"

enum { MAX_TILE = 32 };
#define UNIT_ROUNDOFF 0x1p-24 /* of f32 */
#define LOG2_E 1.44269504088896341

/* What tiles of one degree found. */
typedef struct degree_use {
    float *state; /* (groups, size of a group); NULL: no tile has asked for it */
    size_t n_queries;
    double range;             /* the largest score of an inner key */
    double least_mean_weight; /* normaliser / keys */
} degree_use;

typedef struct hybrid_run {
    sp_hybrid *plan;
    double *moments, *multinomials;
    uint8_t *levels;
    degree_use uses[SP_MAX_DEGREE + 1];
    float *tile, *sums, *max, *weights;
    float *outer_k, *outer_v, *all_k, *all_v; /* rows of the exact kernel */
    size_t n_outer, n_all;                    /* rounded up to its step; n_all 0: not packed yet */
    double outer_range;                       /* the largest score of an outer key with a query that is not exact in full */
} hybrid_run;

static size_t n_columns(const sp_hybrid *h)
{
    return h->frame->groups * h->frame->columns;
}

static size_t group_size(const sp_hybrid *h, size_t degree)
{
    const size_t lanes = h->kernels->lanes;
    return (sp_monomials_count(h->head->d, degree) * h->frame->columns + lanes - 1) / lanes * lanes;
}

/* ---- the inner keys ---- */

/* Without a value, and without its one in the normaliser, a key adds nothing. */
static void leave_out_outer(float *v, const sp_hybrid *h, size_t first, size_t n)
{
    const size_t lanes = h->kernels->lanes, block = h->kernels->block_keys, columns = h->frame->columns;
    for (size_t j = 0; j < n; j++) {
        if (!sp_hybrid_is_outer(h, first + j)) continue;
        for (size_t g = 0; g < h->frame->groups; g++)
            for (size_t c = 0; c < columns; c++) v[g * columns * block + (j / lanes * columns + c) * lanes + j % lanes] = 0;
    }
}

static sp_status make_moments(hybrid_run *run)
{
    sp_hybrid *h = run->plan;
    const sp_fast_kernels *kernels = h->kernels;
    const sp_frame *frame = h->frame;
    const size_t n_features = sp_monomials_count(frame->d, h->degree), size = group_size(h, h->degree);
    const size_t block = kernels->block_keys, n_keys = h->head->n_keys;
    float *x = sp_arena_alloc(h->arena, frame->d * sp_key_stride(kernels), sizeof *x);
    float *v = sp_arena_alloc(h->arena, n_columns(h) * block, sizeof *v);
    float *scratch = sp_arena_alloc(h->arena, sp_fast_scratch_floats(kernels, frame->d, h->degree), sizeof *scratch);
    run->moments = sp_arena_alloc(h->arena, frame->groups * size, sizeof *run->moments);
    run->levels = sp_arena_alloc(h->arena, n_features, sizeof *run->levels);
    run->multinomials = sp_arena_alloc(h->arena, n_features, sizeof *run->multinomials);
    if (!x || !v || !scratch || !run->moments || !run->levels || !run->multinomials) return SP_ERR_MEMORY;
    memset(run->moments, 0, frame->groups * size * sizeof *run->moments);
    sp_monomials_list(run->levels, run->multinomials, frame->d, h->degree);
    for (size_t first = 0, n; first < n_keys; first += n) {
        n = sp_smaller(block, n_keys - first);
        sp_frame_pack_keys(x, v, frame, h->head, first, n, kernels);
        if (h->n_outer) leave_out_outer(v, h, first, n);
        for (size_t g = 0; g < frame->groups; g++)
            kernels->add_keys(run->moments + g * size, x, v + g * frame->columns * block, frame->d, h->degree, frame->columns,
                              scratch);
    }
    return SP_OK;
}

/* Moments times coefficient and multinomial, of the monomials up to a degree: depth first, they stand in one order in all. */
static sp_status make_state(hybrid_run *run, size_t degree)
{
    sp_hybrid *h = run->plan;
    const double *c = h->polynomials[degree].c;
    const size_t n = sp_monomials_count(h->head->d, h->degree), columns = h->frame->columns;
    const size_t from_size = group_size(h, h->degree), size = group_size(h, degree);
    float *state = sp_arena_alloc(h->arena, h->frame->groups * size, sizeof *state);
    if (!state) return SP_ERR_MEMORY;
    for (size_t g = 0; g < h->frame->groups; g++) {
        const double *from = run->moments + g * from_size;
        float *to = state + g * size;
        for (size_t a = 0; a < n; a++, from += columns) {
            if (run->levels[a] > degree) continue;
            const double factor = run->multinomials[a] * c[run->levels[a]];
            for (size_t i = 0; i < columns; i++) *to++ = (float)(from[i] * factor);
        }
    }
    run->uses[degree].state = state;
    return SP_OK;
}

/* ---- rows of the exact kernel ---- */

static sp_status pack_rows(float **k, float **v, size_t *n, const sp_hybrid *h, const sp_attention_head *keys)
{
    const size_t rows = keys->n_keys + SP_EXACT_KEYS;
    const double n_bytes = (double)rows * (double)(keys->d + n_columns(h)) * sizeof(float);
    if (n_bytes > (double)h->max_bytes)
        return sp_fail(SP_ERR_MEMORY, "exact attention over %zu keys takes %.4g bytes, and %.4g are allowed", keys->n_keys, n_bytes,
                       (double)h->max_bytes);
    *k = sp_arena_alloc(h->arena, rows * keys->d, sizeof(float));
    *v = sp_arena_alloc(h->arena, rows * n_columns(h), sizeof(float));
    if (!*k || !*v) return SP_ERR_MEMORY;
    *n = sp_frame_pack_rows(*k, *v, h->frame, keys, 0, keys->n_keys);
    return SP_OK;
}

static sp_status pack_outer(hybrid_run *run)
{
    const sp_hybrid *h = run->plan;
    const size_t d = h->head->d, d_v = h->head->d_v;
    float *k = sp_arena_alloc(h->arena, h->n_outer * d, sizeof *k), *v = sp_arena_alloc(h->arena, h->n_outer * d_v, sizeof *v);
    size_t n = 0;
    if (!k || !v) return SP_ERR_MEMORY;
    for (size_t j = 0; j < h->head->n_keys; j++) {
        if (!sp_hybrid_is_outer(h, j)) continue;
        memcpy(k + n * d, h->head->k + j * h->head->ldk, d * sizeof *k);
        memcpy(v + n * d_v, h->head->v + j * h->head->ldv, d_v * sizeof *v);
        n++;
    }
    assert(n == h->n_outer);
    const sp_attention_head keys = {.k = k, .v = v, .n_keys = n, .d = d, .d_v = d_v, .ldk = d, .ldv = d_v};
    return pack_rows(&run->outer_k, &run->outer_v, &run->n_outer, h, &keys);
}

static void add_rows(hybrid_run *run, float *max, const float *k, const float *v, size_t n)
{
    const sp_frame *frame = run->plan->frame;
    run->plan->kernels->exact(run->sums, max, run->tile, k, v, n, frame->d, frame->groups, frame->columns, PTRDIFF_MAX,
                              run->weights);
}

/* ---- tiles of queries ---- */

/* The smallest degree that serves queries up to a bound; 0: they are exact in full. */
static size_t degree_for(const sp_hybrid *h, double bound)
{
    const double inner = bound * (h->inner_radius / h->frame->radius) * (1 + 8 * UNIT_ROUNDOFF);
    if (bound > SP_HYBRID_NO_SHIFT) return 0;
    for (size_t g = h->first_degree; g <= h->degree; g++)
        if (inner <= h->polynomials[g].rho) return g;
    return 0;
}

static sp_status sum_exactly(hybrid_run *run, double bound)
{
    sp_hybrid *h = run->plan;
    if (run->n_all == 0) {
        sp_status st = pack_rows(&run->all_k, &run->all_v, &run->n_all, h, h->head);
        if (st) return st;
    }
    for (size_t u = 0; u < h->kernels->tile_queries; u++) run->max[u] = -INFINITY;
    add_rows(run, bound > SP_HYBRID_NO_SHIFT ? run->max : NULL, run->all_k, run->all_v, run->n_all);
    return SP_OK;
}

static sp_status sum_inner(hybrid_run *run, size_t degree)
{
    const sp_hybrid *h = run->plan;
    if (!run->uses[degree].state) {
        sp_status st = make_state(run, degree);
        if (st) return st;
    }
    const size_t columns = h->frame->columns, size = group_size(h, degree);
    for (size_t g = 0; g < h->frame->groups; g++)
        h->kernels->evaluate(run->sums + g * columns * h->kernels->tile_queries, run->tile, run->uses[degree].state + g * size,
                             h->head->d, degree, columns);
    return SP_OK;
}

static void note_tile(hybrid_run *run, size_t degree, size_t n, double bound, double least)
{
    const sp_hybrid *h = run->plan;
    degree_use *use = &run->uses[degree];
    const double mean = least / (double)h->head->n_keys, inner = bound * (h->inner_radius / h->frame->radius);
    if (use->n_queries == 0 || !(mean >= use->least_mean_weight)) use->least_mean_weight = mean;
    use->n_queries += n;
    use->range = fmax(use->range, inner * (1 + 8 * UNIT_ROUNDOFF));
    if (h->n_outer) run->outer_range = fmax(run->outer_range, bound);
}

static sp_status answer_tile(float *out, hybrid_run *run, const size_t *queries, size_t n)
{
    const sp_hybrid *h = run->plan;
    double bound = 0;
    for (size_t i = 0; i < n; i++) bound = fmax(bound, h->bounds[queries[i]]);
    const size_t degree = degree_for(h, bound);
    sp_status st = SP_OK;
    memset(run->sums, 0, n_columns(h) * h->kernels->tile_queries * sizeof *run->sums);
    if (degree) {
        sp_frame_pack_queries(run->tile, h->frame, h->head, queries, n, 1, h->kernels);
        st = sum_inner(run, degree);
    }
    if (!degree || h->n_outer) sp_frame_pack_queries(run->tile, h->frame, h->head, queries, n, LOG2_E, h->kernels);
    if (!st && !degree) st = sum_exactly(run, bound);
    if (!st && degree && h->n_outer) add_rows(run, NULL, run->outer_k, run->outer_v, run->n_outer);
    if (st) return st;
    const double least = sp_frame_unpack(out, h->head->ldo, run->sums, h->frame, queries, n, h->kernels);
    if (degree) note_tile(run, degree, n, bound, least);
    return SP_OK;
}

/* ---- the certificate ---- */

/* As in attention.c: of a degree's tiles, and the exact keys' part, which is a sum in a row, with scores that round d times. */
static double bound_rounding(const hybrid_run *run, size_t degree)
{
    enum { EVERY_TERM = SP_TERMS_IN_F32 + 9 };
    static const double SECOND_ORDER = 1.01; /* as long as 10^5 roundings meet */
    const sp_hybrid *h = run->plan;
    const degree_use *use = &run->uses[degree];
    const double *c = h->polynomials[degree].c, d = (double)h->head->d;
    double terms = 0, power = 1;
    if (!(use->least_mean_weight > 0)) return INFINITY;
    for (size_t j = 0; j <= degree; j++) {
        terms += fabs(c[j]) * power * ((double)(EVERY_TERM + j) + (double)sp_smaller(j + 1, degree) * d);
        power *= use->range;
    }
    double weights = terms / use->least_mean_weight + use->range;
    if (h->n_outer) weights += (double)(run->n_outer + 2 * h->kernels->tile_queries) + (d + 5) * run->outer_range;
    return UNIT_ROUNDOFF *
           (SECOND_ORDER * h->frame->value_range * weights + 3 * (h->frame->value_range + h->frame->value_magnitude));
}

/* The worst of the degrees that were used. */
static void certify(sp_certificate *out, const hybrid_run *run)
{
    const sp_hybrid *h = run->plan;
    *out = (sp_certificate){.n_queries = h->head->n_queries, .n_keys = h->head->n_keys, .n_exact = h->head->n_queries};
    for (size_t i = 0; i < h->head->n_queries; i++) out->max_range = fmax(out->max_range, h->bounds[i]);
    for (size_t g = h->first_degree; g <= h->degree; g++) {
        const degree_use *use = &run->uses[g];
        if (use->n_queries == 0) continue;
        out->n_exact -= use->n_queries;
        out->degree = g;
        out->range = fmax(out->range, use->range);
        out->epsilon = fmax(out->epsilon, h->polynomials[g].eps);
        out->rounding_bound = fmax(out->rounding_bound, bound_rounding(run, g));
    }
    if (out->degree == 0) return;
    out->n_features = sp_monomials_count(h->head->d, out->degree);
    out->n_exact_keys = h->n_outer;
    out->polynomial_bound = h->frame->value_range * sp_weights_distance(out->epsilon);
}

/* ---- putting it together ---- */

static sp_status allocate(hybrid_run *run)
{
    const sp_hybrid *h = run->plan;
    const size_t width = h->kernels->tile_queries;
    run->tile = sp_arena_alloc(h->arena, h->head->d * width, sizeof(float));
    run->sums = sp_arena_alloc(h->arena, n_columns(h) * width, sizeof(float));
    run->max = sp_arena_alloc(h->arena, width, sizeof(float));
    run->weights = sp_arena_alloc(h->arena, (size_t)SP_EXACT_BLOCK * width, sizeof(float));
    return run->tile && run->sums && run->max && run->weights ? SP_OK : SP_ERR_MEMORY;
}

sp_status sp_hybrid_attend(float *out, sp_certificate *certificate, sp_hybrid *hybrid)
{
    hybrid_run run = {.plan = hybrid};
    size_t queries[MAX_TILE];
    const size_t width = hybrid->kernels->tile_queries, n_queries = hybrid->head->n_queries;
    sp_status st = allocate(&run);
    if (!st && hybrid->n_outer) st = pack_outer(&run);
    if (!st) st = make_moments(&run);
    for (size_t first = 0, n; first < n_queries && !st; first += n) {
        n = sp_smaller(width, n_queries - first);
        for (size_t u = 0; u < n; u++) queries[u] = hybrid->order[first + u];
        st = answer_tile(out, &run, queries, n);
    }
    if (!st && certificate) certify(certificate, &run);
    return st;
}
