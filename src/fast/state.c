/* state.c: the keys and values of one head as moments: made once and appended to. state_attend.c reads them.
 *
 * Keys pass in blocks through the kernels' sums into moments in f64, and are gone.
 *
 * Invariant: what queries read serves every key so far: |key in the plane| <= radius, |remainder| <= state->remainder.
 * Cost: of a key O(features (d_v + 1) + d * rank). */
#include "fast/state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/sizes.h"
#include "base/status.h"
#include "fast/frame.h"
#include "fast/kernels.h"
#include "fast/monomials.h"
#include "fast/rounding.h"

enum { DEFAULT_MAX_DEGREE = 8 };

static const double DEFAULT_EPSILON = 1e-3, DEFAULT_TOLERANCE = 1e-5;
static const double MAX_RANGE = 5; /* terms of opposite signs, e^range large, leave f32 no digits beyond */

/* ---- making one ---- */

static sp_status complete_keys(sp_attention_head *h)
{
    if (h->n_keys == 0) return sp_fail(SP_ERR_ARGUMENT, "a state of no keys: there is nothing to weigh; give at least one");
    if (h->d == 0 || h->d_v == 0)
        return sp_fail(SP_ERR_ARGUMENT, "keys of %zu coordinates and values of %zu; both must have some", h->d, h->d_v);
    if (h->scale == 0) h->scale = (float)(1 / sqrt((double)h->d));
    if (!isfinite(h->scale)) return sp_fail(SP_ERR_ARGUMENT, "scale is %f; it must be finite", (double)h->scale);
    if (h->ldk == 0) h->ldk = h->d;
    if (h->ldv == 0) h->ldv = h->d_v;
    if (h->ldk < h->d || h->ldv < h->d_v)
        return sp_fail(SP_ERR_ARGUMENT, "rows of %zu and %zu numbers cannot stand %zu and %zu apart", h->d, h->d_v, h->ldk, h->ldv);
    return SP_OK;
}

static sp_status check_finite(const char *what, const float *x, size_t ld, size_t n, size_t d)
{
    for (size_t r = 0; r < n; r++)
        for (size_t i = 0; i < d; i++)
            if (!isfinite(x[r * ld + i]))
                return sp_fail(SP_ERR_ARGUMENT, "%s %zu: coordinate %zu is %f; attention takes finite numbers only", what, r, i,
                               (double)x[r * ld + i]);
    return SP_OK;
}

static sp_status check_options(sp_fast_state_options *o)
{
    if (o->epsilon == 0) o->epsilon = DEFAULT_EPSILON;
    if (o->rank_tolerance == 0) o->rank_tolerance = DEFAULT_TOLERANCE;
    if (o->max_degree == 0) o->max_degree = DEFAULT_MAX_DEGREE;
    if (!(o->epsilon > 0 && o->epsilon < 1))
        return sp_fail(SP_ERR_ARGUMENT, "epsilon is %g; it is the relative error of a weight, between 0 and 1", o->epsilon);
    if (o->degree > SP_MAX_DEGREE || o->max_degree > SP_MAX_DEGREE)
        return sp_fail(SP_ERR_ARGUMENT, "degree %zu; polynomials go up to degree %d", sp_larger(o->degree, o->max_degree),
                       SP_MAX_DEGREE);
    if (!(o->rank_tolerance > 0 && o->rank_tolerance < 1))
        return sp_fail(SP_ERR_ARGUMENT, "rank_tolerance is %g; it is a share of the keys' distances, between 0 and 1",
                       o->rank_tolerance);
    if (!(o->query_norm >= 0 && isfinite(o->query_norm)) || !(o->key_radius >= 0 && isfinite(o->key_radius)) ||
        !(o->range >= 0 && isfinite(o->range)))
        return sp_fail(SP_ERR_ARGUMENT, "query_norm is %g, key_radius %g and range %g; they are lengths and a score, or 0",
                       o->query_norm, o->key_radius, o->range);
    if (o->query_norm == 0 && o->range == 0 && o->degree == 0)
        return sp_fail(SP_ERR_ARGUMENT, "none of query_norm, range and degree is given: which scores is the state to serve?");
    return SP_OK;
}

/* Squares of numbers of f32 may overflow f32, never f64. */
static double find_radius(const sp_fast_state *state, const sp_attention_head *keys, double *remainder, double *a, double *scratch)
{
    double radius = 0;
    *remainder = 0;
    for (size_t j = 0; j < keys->n_keys; j++) {
        double left;
        radius = fmax(radius, sp_plane_project(a, &left, &state->plane, keys->k + j * keys->ldk, scratch));
        *remainder = fmax(*remainder, left);
    }
    *remainder = sp_state_rounded_up(*remainder);
    return sp_state_rounded_up(radius);
}

static sp_status measure_plane(sp_fast_state *state, const sp_attention_head *keys, const sp_fast_state_options *o)
{
    const size_t d = keys->d;
    double *scratch = malloc(2 * d * sizeof *scratch), remainder;
    if (!scratch) return sp_fail_no_memory(2 * d * sizeof *scratch);
    const double radius = find_radius(state, keys, &remainder, scratch + d, scratch);
    free(scratch);
    state->radius = radius;
    state->remainder = remainder;
    if (o->key_radius > 0) {
        if (radius > o->key_radius)
            return sp_fail(SP_ERR_ARGUMENT, "a key lies %.6g from the centre, beyond the key_radius %g; raise it", radius,
                           o->key_radius);
        state->radius = o->key_radius;
    }
    state->max_remainder = fmax(remainder, o->rank_tolerance * state->radius + sp_plane_rounding(&state->plane));
    state->key_factor = sp_frame_shrinking_factor(state->radius);
    return SP_OK;
}

static sp_status choose_polynomial(sp_fast_state *state, const sp_fast_state_options *o)
{
    const double of_queries = sp_state_rounded_up(o->query_norm * state->radius * fabs((double)state->scale));
    const double range = fmax(of_queries, o->range) * (1 + 8 * SP_UNIT_ROUNDOFF);
    const size_t most = o->degree ? o->degree : o->max_degree;
    size_t degree = o->degree ? o->degree : 1;
    double reach = sp_exp_polynomial_range(degree, o->epsilon);
    while (reach < range && degree < most) reach = sp_exp_polynomial_range(++degree, o->epsilon);
    reach = fmin(reach, MAX_RANGE);
    if (!(range <= reach))
        return sp_fail(
            SP_ERR_UNSUPPORTED,
            "scores up to %.4g (queries up to %g, keys up to %.4g) are to be served; degree %zu serves up to %.4g at epsilon "
            "%g: lower query_norm, the range or the keys, or raise epsilon or the degree",
            range, o->query_norm, state->radius, most, reach, o->epsilon);
    sp_exp_polynomial_fit(&state->polynomial, degree, reach);
    return SP_OK;
}

static sp_status measure_values(sp_fast_state *state, const sp_attention_head *keys)
{
    double half = 0;
    for (size_t c = 0; c < state->d_v; c++) {
        float least = keys->v[c], most = keys->v[c];
        for (size_t j = 0; j < keys->n_keys; j++) {
            least = fminf(least, keys->v[j * keys->ldv + c]);
            most = fmaxf(most, keys->v[j * keys->ldv + c]);
        }
        state->value_least[c] = least;
        state->value_most[c] = most;
        state->value_middle[c] = (float)(((double)least + (double)most) / 2);
        half = fmax(half, fmax((double)most - (double)state->value_middle[c], (double)state->value_middle[c] - (double)least));
    }
    state->value_factor = sp_frame_shrinking_factor(half);
    return SP_OK;
}

sp_status sp_fast_state_allocate(sp_fast_state *state, uint64_t max_bytes)
{
    const size_t n = sp_monomials_count(state->plane.rank, state->polynomial.degree);
    state->columns = state->d_v + 1;
    state->ld = (state->columns + 3) / 4 * 4;
    const double n_bytes =
        n == SIZE_MAX
            ? INFINITY
            : (double)n * ((double)state->columns * sizeof(double) + (double)state->ld * sizeof(float) + 2 * sizeof(double));
    if (n_bytes > (double)max_bytes)
        return sp_fail(SP_ERR_MEMORY, "degree %zu in %zu dimensions takes %.4g bytes, and %.4g are allowed; lower one of them",
                       state->polynomial.degree, state->plane.rank, n_bytes, (double)max_bytes);
    state->n_features = n;
    state->moments = calloc(n * state->columns, sizeof *state->moments);
    state->factors = calloc(n, sizeof *state->factors);
    state->features = calloc(n * state->ld, sizeof *state->features);
    uint8_t *levels = malloc(n);
    const bool ok = state->moments && state->factors && state->features && levels;
    if (ok) {
        sp_monomials_list(levels, state->factors, state->plane.rank, state->polynomial.degree);
        for (size_t a = 0; a < n; a++) state->factors[a] *= state->polynomial.c[levels[a]];
    }
    free(levels);
    return ok ? SP_OK : sp_fail_no_memory((size_t)n_bytes);
}

void sp_fast_state_free(sp_fast_state *state)
{
    if (!state) return;
    sp_plane_free(&state->plane);
    free(state->value_middle);
    free(state->value_least);
    free(state->value_most);
    free(state->moments);
    free(state->factors);
    free(state->features);
    free(state);
}

void sp_fast_state_refresh(sp_fast_state *state)
{
    for (size_t a = 0; a < state->n_features; a++)
        for (size_t c = 0; c < state->columns; c++)
            state->features[a * state->ld + c] = (float)(state->moments[a * state->columns + c] * state->factors[a]);
}

/* ---- keys into moments ---- */

/* Keys on their way: coordinates in the plane as rows, then in the kernels' order; sums of one call. */
typedef struct key_pass {
    sp_arena *arena;
    sp_frame frame;
    sp_attention_head block; /* of coordinates and values */
    float *rows, *x, *v, *scratch;
    double *sums; /* (groups, n_features * columns of a group, in whole vectors) */
    size_t group_size;
    double *a, *wide;
} key_pass;

static sp_status begin_keys(key_pass *pass, const sp_fast_state *state, const sp_fast_kernels *kernels)
{
    const size_t groups = (state->columns + kernels->max_columns - 1) / kernels->max_columns, d = state->plane.rank;
    const size_t columns = (state->columns + groups - 1) / groups, lanes = kernels->lanes;
    *pass = (key_pass){0};
    sp_status st = sp_arena_create(&pass->arena);
    if (st) return st;
    pass->frame = (sp_frame){.kernels = kernels->rows,
                             .d = d,
                             .d_v = state->d_v,
                             .groups = groups,
                             .columns = columns,
                             .centre = sp_arena_alloc(pass->arena, d, sizeof(float)),
                             .key_factor = state->key_factor,
                             .value_middle = state->value_middle,
                             .value_factor = state->value_factor};
    pass->group_size = sp_round_up(state->n_features * columns, lanes);
    pass->rows = sp_arena_alloc(pass->arena, kernels->block_keys * d, sizeof(float));
    pass->x = sp_arena_alloc(pass->arena, d * sp_key_stride(kernels), sizeof(float));
    pass->v = sp_arena_alloc(pass->arena, groups * columns * kernels->block_keys, sizeof(float));
    pass->scratch = sp_arena_alloc(pass->arena, sp_fast_scratch_floats(kernels, d, state->polynomial.degree), sizeof(float));
    pass->sums = sp_arena_alloc(pass->arena, groups * pass->group_size, sizeof(double));
    pass->a = sp_arena_alloc(pass->arena, d, sizeof(double));
    pass->wide = sp_arena_alloc(pass->arena, state->plane.d, sizeof(double));
    if (!pass->frame.centre || !pass->rows || !pass->x || !pass->v || !pass->scratch || !pass->sums || !pass->a || !pass->wide)
        return SP_ERR_MEMORY;
    memset(pass->frame.centre, 0, d * sizeof(float));
    memset(pass->sums, 0, groups * pass->group_size * sizeof(double));
    return SP_OK;
}

/* Nothing of the keys is taken before all of them are seen to fit. */
static sp_status check_keys(double *remainder, const key_pass *pass, const sp_fast_state *state, const sp_attention_head *keys)
{
    sp_status st = check_finite("key", keys->k, keys->ldk, keys->n_keys, keys->d);
    if (!st) st = check_finite("value", keys->v, keys->ldv, keys->n_keys, keys->d_v);
    if (st) return st;
    *remainder = state->remainder;
    for (size_t j = 0; j < keys->n_keys; j++) {
        double left;
        const double radius =
            sp_state_rounded_up(sp_plane_project(pass->a, &left, &state->plane, keys->k + j * keys->ldk, pass->wide));
        left = sp_state_rounded_up(left);
        if (radius > state->radius)
            return sp_fail(SP_ERR_ARGUMENT,
                           "key %zu lies %.6g from the state's centre, which takes keys up to %.6g; make a state with a larger "
                           "key_radius",
                           j, radius, state->radius);
        if (left > state->max_remainder)
            return sp_fail(SP_ERR_ARGUMENT,
                           "key %zu lies %.3g off the plane of the state's keys, which takes up to %.3g; make a state of all keys, "
                           "or with a larger rank_tolerance",
                           j, left, state->max_remainder);
        *remainder = fmax(*remainder, left);
        for (size_t c = 0; c < keys->d_v; c++) {
            const double value = ((double)keys->v[j * keys->ldv + c] - (double)state->value_middle[c]) * state->value_factor;
            if (!(fabs(value) < 0x1p60))
                return sp_fail(SP_ERR_ARGUMENT, "value %zu: coordinate %zu is %g, out of all proportion to those before", j, c,
                               (double)keys->v[j * keys->ldv + c]);
        }
    }
    return SP_OK;
}

static void add_block(key_pass *pass, const sp_fast_state *state, const sp_attention_head *keys, size_t first, size_t n,
                      const sp_fast_kernels *kernels)
{
    const size_t rank = state->plane.rank, columns = pass->frame.columns;
    for (size_t j = 0; j < n; j++) {
        double left;
        sp_plane_project(pass->a, &left, &state->plane, keys->k + (first + j) * keys->ldk, pass->wide);
        for (size_t s = 0; s < rank; s++) pass->rows[j * rank + s] = (float)pass->a[s];
    }
    const sp_attention_head block = {.k = pass->rows, .ldk = rank, .v = keys->v + first * keys->ldv, .ldv = keys->ldv};
    sp_frame_pack_keys(pass->x, pass->v, &pass->frame, &block, NULL, 0, n, kernels);
    for (size_t g = 0; g < pass->frame.groups; g++)
        kernels->add_keys(pass->sums + g * pass->group_size, pass->x, pass->v + g * columns * kernels->block_keys,
                          sp_round_up(n, kernels->lanes), rank, state->polynomial.degree, columns, pass->scratch);
}

static void take_sums(sp_fast_state *state, const key_pass *pass)
{
    const size_t columns = pass->frame.columns;
    for (size_t a = 0; a < state->n_features; a++)
        for (size_t c = 0; c < state->columns; c++)
            state->moments[a * state->columns + c] += pass->sums[c / columns * pass->group_size + a * columns + c % columns];
    sp_fast_state_refresh(state);
}

static sp_status add_keys(sp_fast_state *state, const sp_attention_head *keys)
{
    const sp_fast_kernels *kernels = sp_fast_kernels_select();
    key_pass pass;
    double remainder;
    sp_status st = begin_keys(&pass, state, kernels);
    if (!st) st = check_keys(&remainder, &pass, state, keys);
    if (!st) {
        for (size_t first = 0, n; first < keys->n_keys; first += n) {
            n = sp_smaller(kernels->block_keys, keys->n_keys - first);
            add_block(&pass, state, keys, first, n, kernels);
            for (size_t j = 0; j < n; j++)
                for (size_t c = 0; c < state->d_v; c++) {
                    const float value = keys->v[(first + j) * keys->ldv + c];
                    state->value_least[c] = fminf(state->value_least[c], value);
                    state->value_most[c] = fmaxf(state->value_most[c], value);
                }
        }
        take_sums(state, &pass);
        state->remainder = remainder;
        state->n_keys += keys->n_keys;
    }
    sp_arena_free(pass.arena);
    return st;
}

static sp_status find_plane(sp_fast_state *state, const sp_attention_head *keys, const sp_fast_state_options *o)
{
    const size_t most = sp_smaller(keys->d, SP_FAST_STATE_MAX_RANK);
    if (!o->basis && o->rank) return sp_fail(SP_ERR_ARGUMENT, "rank %zu without a basis; give both, or neither", o->rank);
    if (o->rank > most || o->max_rank > SP_FAST_STATE_MAX_RANK)
        return sp_fail(SP_ERR_ARGUMENT, "rank %zu; a plane of keys of %zu numbers has at most %zu dimensions here",
                       sp_larger(o->rank, o->max_rank), keys->d, most);
    if (!o->basis) return sp_plane_find(&state->plane, keys, o->max_rank ? o->max_rank : most, o->rank_tolerance);
    sp_status st = o->centre ? check_finite("centre", o->centre, keys->d, 1, keys->d) : SP_OK;
    if (!st) st = check_finite("direction", o->basis, keys->d, o->rank, keys->d);
    return st ? st : sp_plane_copy(&state->plane, keys, o->centre, o->basis, o->rank);
}

static sp_status make(sp_fast_state *state, const sp_attention_head *keys, sp_fast_state_options *o)
{
    sp_status st = check_finite("key", keys->k, keys->ldk, keys->n_keys, keys->d);
    if (!st) st = check_finite("value", keys->v, keys->ldv, keys->n_keys, keys->d_v);
    if (!st) st = find_plane(state, keys, o);
    if (!st) st = measure_plane(state, keys, o);
    if (!st) st = choose_polynomial(state, o);
    if (!st) st = measure_values(state, keys);
    if (!st) st = sp_fast_state_allocate(state, o->max_bytes ? o->max_bytes : UINT64_MAX);
    return st ? st : add_keys(state, keys);
}

static sp_status create_values(sp_fast_state *state, size_t d_v)
{
    state->d_v = d_v;
    state->value_middle = calloc(d_v, sizeof *state->value_middle);
    state->value_least = calloc(d_v, sizeof *state->value_least);
    state->value_most = calloc(d_v, sizeof *state->value_most);
    return state->value_middle && state->value_least && state->value_most ? SP_OK : sp_fail_no_memory(d_v * sizeof(float));
}

sp_status sp_fast_state_create(sp_fast_state **out, const sp_attention_head *keys, const sp_fast_state_options *options)
{
    sp_attention_head head = *keys;
    sp_fast_state_options o = *options;
    *out = NULL;
    sp_status st = complete_keys(&head);
    if (!st) st = check_options(&o);
    if (st) return st;
    sp_fast_state *state = calloc(1, sizeof *state);
    if (!state) return sp_fail_no_memory(sizeof *state);
    state->scale = head.scale;
    st = create_values(state, head.d_v);
    if (!st) st = make(state, &head, &o);
    if (st)
        sp_fast_state_free(state);
    else
        *out = state;
    return st;
}

sp_status sp_fast_state_append(sp_fast_state *state, const sp_attention_head *keys)
{
    sp_attention_head head = *keys;
    sp_status st = complete_keys(&head);
    if (st) return st;
    if (head.d != state->plane.d || head.d_v != state->d_v)
        return sp_fail(SP_ERR_MISMATCH, "keys of %zu and values of %zu numbers for a state of %zu and %zu", head.d, head.d_v,
                       state->plane.d, state->d_v);
    return add_keys(state, &head);
}

void sp_fast_state_get_info(sp_fast_state_info *out, const sp_fast_state *state)
{
    const double scale = fabs((double)state->scale) * state->radius;
    *out = (sp_fast_state_info){.d = state->plane.d,
                                .d_v = state->d_v,
                                .n_keys = state->n_keys,
                                .rank = state->plane.rank,
                                .degree = state->polynomial.degree,
                                .n_features = state->n_features,
                                .n_bytes = state->n_features * (state->columns * sizeof(double) + state->ld * sizeof(float)),
                                .epsilon = state->polynomial.eps,
                                .range = state->polynomial.rho,
                                .key_radius = state->radius,
                                .query_norm = scale > 0 ? state->polynomial.rho / (1 + 8 * SP_UNIT_ROUNDOFF) / scale : INFINITY,
                                .remainder = state->remainder};
}
