/* attention.c: one head's attention: planned, computed in tiles of queries, certified.
 *
 * Keys pass once, in blocks, into moments; then tiles of queries read these. Queries whose scores might leave the polynomial's
 * range, by Cauchy-Schwarz, are gathered into tiles of their own and attend exactly. The degree is the one that costs least,
 * counting those.
 *
 * Invariant: a query that the polynomial answers has |score| * (1 + 8 u) <= range, u = 2^-24: the scores of the rounded inputs lie
 * on the range, too. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/sizes.h"
#include "base/status.h"
#include "fast/frame.h"
#include "fast/hybrid.h"
#include "fast/kernels.h"
#include "fast/monomials.h"
#include "fast/remez.h"
#include "softprompt.h"

enum { DEFAULT_MAX_DEGREE = 8, NO_DEGREE = 0, MAX_TILE = 32 };
static const double DEFAULT_EPSILON = 1e-3;
static const double LEAST_HYBRID = 4e7; /* of SP_EXP_COST's units: half a millisecond; with less, planning would show */

#define UNIT_ROUNDOFF 0x1p-24 /* of f32 */
#define LOG2_E 1.44269504088896341

struct sp_fast {
    sp_fast_options options;
    size_t first_degree, last_degree; /* to choose from */
    sp_exp_polynomial polynomials[SP_MAX_DEGREE + 1];
    const sp_fast_kernels *kernels;
    double least_hybrid; /* what the exact kernel must cost for a hybrid to be planned */
    sp_arena *arena;
};

/* ---- the handle ---- */

static sp_status check_options(const sp_fast_options *o)
{
    if (!(o->epsilon > 0 && o->epsilon < 1))
        return sp_fail(SP_ERR_ARGUMENT, "epsilon is %g; it is the relative error of a weight, between 0 and 1", o->epsilon);
    if (o->degree > SP_MAX_DEGREE || o->max_degree > SP_MAX_DEGREE)
        return sp_fail(SP_ERR_ARGUMENT, "degree %zu; polynomials go up to degree %d", sp_larger(o->degree, o->max_degree),
                       SP_MAX_DEGREE);
    if (!(o->range >= 0 && isfinite(o->range)))
        return sp_fail(SP_ERR_ARGUMENT, "range is %g; it is the largest size of a score, or 0", o->range);
    return SP_OK;
}

/* One polynomial, for a range that was asked for. */
static sp_status fit_range(sp_fast *fast)
{
    const sp_fast_options *o = &fast->options;
    size_t most = o->degree ? o->degree : o->max_degree;
    sp_exp_polynomial p;
    bool found = sp_exp_polynomial_find(&p, o->range, o->epsilon, most);
    if (o->degree || p.degree == 0) {
        sp_exp_polynomial_fit(&p, sp_larger(o->degree, 1), o->range);
        found = p.eps <= o->epsilon;
    }
    if (!found)
        return sp_fail(
            SP_ERR_UNSUPPORTED,
            "scores up to %g at epsilon %g: degree %zu serves scores up to %.4g, or epsilon %.3g; lower the range, raise "
            "epsilon or the degree",
            o->range, o->epsilon, most, sp_exp_polynomial_range(most, o->epsilon), p.eps);
    fast->first_degree = fast->last_degree = p.degree;
    fast->polynomials[p.degree] = p;
    return SP_OK;
}

static void fit_degrees(sp_fast *fast)
{
    const sp_fast_options *o = &fast->options;
    fast->first_degree = o->degree ? o->degree : 1;
    fast->last_degree = o->degree ? o->degree : o->max_degree;
    for (size_t g = fast->first_degree; g <= fast->last_degree; g++)
        sp_exp_polynomial_fit(&fast->polynomials[g], g, sp_exp_polynomial_range(g, o->epsilon));
}

sp_status sp_fast_create(sp_fast **out, const sp_fast_options *options)
{
    sp_fast *fast = calloc(1, sizeof *fast);
    *out = NULL;
    if (!fast) return sp_fail_no_memory(sizeof *fast);
    if (options) fast->options = *options;
    sp_fast_options *o = &fast->options;
    if (o->epsilon == 0) o->epsilon = DEFAULT_EPSILON;
    if (o->max_degree == 0) o->max_degree = DEFAULT_MAX_DEGREE;
    if (o->max_bytes == 0) {
        sp_machine machine;
        sp_machine_describe(&machine);
        o->max_bytes = machine.memory_bytes / 2;
    }
    fast->least_hybrid = LEAST_HYBRID;
    fast->kernels = sp_fast_kernels_select();
    sp_status st = check_options(o);
    if (!st && o->range > 0) st = fit_range(fast);
    if (!st && o->range == 0) fit_degrees(fast);
    if (!st) st = sp_arena_create(&fast->arena);
    if (st)
        sp_fast_free(fast);
    else
        *out = fast;
    return st;
}

void sp_fast_set_least_hybrid(sp_fast *fast, double cost)
{
    fast->least_hybrid = cost;
}

void sp_fast_free(sp_fast *fast)
{
    if (!fast) return;
    sp_arena_free(fast->arena);
    free(fast);
}

/* ---- one call ---- */

typedef struct fast_call {
    sp_fast *fast;
    sp_attention_head head; /* strides and scale filled in */
    sp_frame frame;
    double *bounds; /* (n_queries) of |scores| */
    size_t degree;  /* NO_DEGREE: all is exact */
    size_t n_features;
    uint8_t *levels; /* (n_features) */
    double *multinomials;
    float *state; /* (groups, n_features * columns rounded up to vectors) */
    float *rows_k, *rows_v;
    size_t n_rows; /* keys of the exact kernel; 0: not packed */
    float *tile, *sums, *max, *weights;
    size_t n_served;          /* queries that the polynomial answers */
    double least_mean_weight; /* over these: normaliser / keys in the moments */
    double range;             /* the largest bound of a query that the polynomial answers */
} fast_call;

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

/* Moments of one group of columns, in whole vectors. */
static size_t group_size(const fast_call *call, size_t n_features)
{
    size_t lanes = call->fast->kernels->lanes;
    return (n_features * call->frame.columns + lanes - 1) / lanes * lanes;
}

/* Bytes that moments, state and scratch of a degree take; infinite where nothing has so many. */
static double degree_bytes(const fast_call *call, size_t degree)
{
    size_t n = sp_monomials_count(call->head.d, degree);
    double per_feature = (double)(call->frame.groups * call->frame.columns) * (sizeof(double) + sizeof(float)) + sizeof(double) + 1;
    double levels = (double)degree * (double)call->head.d * (double)sp_key_stride(call->fast->kernels) * sizeof(float);
    return n == SIZE_MAX ? INFINITY : (double)n * per_feature + levels;
}

/* ---- the plan ---- */

static bool serves(const sp_exp_polynomial *p, double bound)
{
    return bound * (1 + 8 * UNIT_ROUNDOFF) <= p->rho;
}

/* Keys that a query sees on average. */
static double seen_keys(const fast_call *call)
{
    return (double)call->head.n_keys - (call->head.causal ? (double)call->head.n_queries / 2 : 0);
}

static double cost_exact(const fast_call *call, size_t n_queries)
{
    size_t all = call->frame.groups * call->frame.columns;
    return (double)n_queries * seen_keys(call) * ((double)(call->head.d + all) + SP_EXP_COST);
}

static double cost_degree(const fast_call *call, size_t degree, size_t n_served)
{
    double products = (double)sp_monomials_count(call->head.d, degree) * (double)(call->frame.groups * call->frame.columns);
    double block = call->head.causal ? (double)call->fast->kernels->block_keys / 2 : 0; /* exact at a causal query's end */
    return products * (SP_KEY_COST * (double)call->head.n_keys + SP_QUERY_COST * (double)n_served) +
           cost_exact(call, call->head.n_queries - n_served) + cost_exact(call, n_served) * block / seen_keys(call);
}

static size_t count_served(const fast_call *call, size_t degree)
{
    size_t n = 0;
    for (size_t i = 0; i < call->head.n_queries; i++) n += serves(&call->fast->polynomials[degree], call->bounds[i]);
    return n;
}

static sp_status refuse_memory(const fast_call *call, size_t degree)
{
    size_t best = degree;
    while (best > 0 && degree_bytes(call, best) > (double)call->fast->options.max_bytes) best--;
    return sp_fail(SP_ERR_MEMORY, "degree %zu in %zu dimensions takes %.4g bytes, and %.4g are allowed; degree %zu would fit",
                   degree, call->head.d, degree_bytes(call, degree), (double)call->fast->options.max_bytes, best);
}

/* The degree that was asked for, or the one that costs least where that is less than the exact kernel's cost. */
static sp_status choose_degree(double *cost_chosen, fast_call *call)
{
    const sp_fast *fast = call->fast;
    const double exact = cost_exact(call, call->head.n_queries);
    double least = exact * (exact < LEAST_HYBRID ? SP_SMALL_WORTHWHILE : SP_WORTHWHILE);
    bool is_given = fast->options.degree > 0 || fast->options.range > 0;
    for (size_t g = fast->first_degree; g <= fast->last_degree; g++) {
        if (degree_bytes(call, g) > (double)fast->options.max_bytes) {
            if (is_given) return refuse_memory(call, g);
            break;
        }
        size_t n_served = count_served(call, g);
        double cost = is_given ? 0 : cost_degree(call, g, n_served);
        if (n_served > 0 && (is_given || cost < least)) call->degree = g, least = cost;
        if (n_served == call->head.n_queries) break; /* higher degrees only cost more */
    }
    call->n_features = call->degree ? sp_monomials_count(call->head.d, call->degree) : 0;
    *cost_chosen = least;
    return SP_OK;
}

/* ---- the polynomial's side ---- */

/* State = moments times coefficient and multinomial. */
static void make_state(fast_call *call, const double *moments)
{
    const sp_exp_polynomial *p = &call->fast->polynomials[call->degree];
    size_t n = call->n_features, columns = call->frame.columns, size = group_size(call, n);
    for (size_t g = 0; g < call->frame.groups; g++)
        for (size_t a = 0; a < n; a++) {
            const double *from = moments + g * size + a * columns;
            float *to = call->state + g * size + a * columns;
            double factor = call->multinomials[a] * p->c[call->levels[a]];
            for (size_t c = 0; c < columns; c++) to[c] = (float)(from[c] * factor);
        }
}

/* Moments of the keys that passed so far, and what it takes to pass more of them. */
typedef struct key_pass {
    double *moments;
    float *x, *v, *scratch;
    size_t n_keys;
} key_pass;

static sp_status begin_keys(key_pass *pass, fast_call *call)
{
    const sp_fast_kernels *kernels = call->fast->kernels;
    sp_arena *arena = call->fast->arena;
    const sp_frame *frame = &call->frame;
    size_t size = frame->groups * group_size(call, call->n_features);
    *pass = (key_pass){.moments = sp_arena_alloc(arena, size, sizeof(double)),
                       .x = sp_arena_alloc(arena, frame->d * sp_key_stride(kernels), sizeof(float)),
                       .v = sp_arena_alloc(arena, frame->groups * frame->columns * kernels->block_keys, sizeof(float)),
                       .scratch = sp_arena_alloc(arena, sp_fast_scratch_floats(kernels, frame->d, call->degree), sizeof(float))};
    call->state = sp_arena_alloc(arena, size, sizeof(float));
    call->levels = sp_arena_alloc(arena, call->n_features, sizeof *call->levels);
    call->multinomials = sp_arena_alloc(arena, call->n_features, sizeof *call->multinomials);
    if (!pass->moments || !pass->x || !pass->v || !pass->scratch || !call->state || !call->levels || !call->multinomials)
        return SP_ERR_MEMORY;
    memset(pass->moments, 0, size * sizeof(double));
    sp_monomials_list(call->levels, call->multinomials, frame->d, call->degree);
    return SP_OK;
}

/* Keys up to `end` are added; all but the last lot must be whole blocks. */
static void add_keys_until(key_pass *pass, fast_call *call, size_t end)
{
    const sp_fast_kernels *kernels = call->fast->kernels;
    const sp_frame *frame = &call->frame;
    size_t block = kernels->block_keys, size = group_size(call, call->n_features);
    if (pass->n_keys == end) return;
    for (size_t n; pass->n_keys < end; pass->n_keys += n) {
        n = sp_smaller(block, end - pass->n_keys);
        sp_frame_pack_keys(pass->x, pass->v, frame, &call->head, pass->n_keys, n, kernels);
        for (size_t g = 0; g < frame->groups; g++)
            kernels->add_keys(pass->moments + g * size, pass->x, pass->v + g * frame->columns * block, frame->d, call->degree,
                              frame->columns, pass->scratch);
    }
    make_state(call, pass->moments);
}

static void evaluate_state(fast_call *call)
{
    const sp_fast_kernels *kernels = call->fast->kernels;
    size_t columns = call->frame.columns;
    for (size_t g = 0; g < call->frame.groups; g++)
        kernels->evaluate(call->sums + g * columns * kernels->tile_queries, call->tile,
                          call->state + g * group_size(call, call->n_features), call->head.d, call->degree, columns);
}

/* ---- the exact side ---- */

static sp_status pack_rows(fast_call *call)
{
    size_t n = call->head.n_keys + SP_EXACT_KEYS, all = call->frame.groups * call->frame.columns;
    double n_bytes = (double)n * (double)(call->head.d + all) * sizeof(float);
    if (n_bytes > (double)call->fast->options.max_bytes)
        return sp_fail(SP_ERR_MEMORY, "exact attention over %zu keys takes %.4g bytes, and %.4g are allowed", call->head.n_keys,
                       n_bytes, (double)call->fast->options.max_bytes);
    call->rows_k = sp_arena_alloc(call->fast->arena, n * call->head.d, sizeof(float));
    call->rows_v = sp_arena_alloc(call->fast->arena, n * all, sizeof(float));
    if (!call->rows_k || !call->rows_v) return SP_ERR_MEMORY;
    call->n_rows = sp_frame_pack_rows(call->rows_k, call->rows_v, &call->frame, &call->head, 0, call->head.n_keys);
    return SP_OK;
}

/* Adds keys first .. end, of which the tile's query u sees those up to `last` + u. */
static void add_exactly(fast_call *call, float *max, size_t first, size_t end, ptrdiff_t last)
{
    const sp_frame *frame = &call->frame;
    size_t n = sp_smaller((end - first + SP_EXACT_KEYS - 1) / SP_EXACT_KEYS * SP_EXACT_KEYS, call->n_rows - first);
    ptrdiff_t diagonal = last == PTRDIFF_MAX ? last : last - (ptrdiff_t)first;
    call->fast->kernels->exact(call->sums, max, call->tile, call->rows_k + first * frame->d,
                               call->rows_v + first * frame->groups * frame->columns, n, frame->d, frame->groups, frame->columns,
                               diagonal, call->weights);
}

/* ---- tiles of queries ---- */

static void begin_tile(fast_call *call, const size_t *queries, size_t n, double factor)
{
    const sp_fast_kernels *kernels = call->fast->kernels;
    sp_frame_pack_queries(call->tile, &call->frame, &call->head, queries, n, factor, kernels);
    memset(call->sums, 0, call->frame.groups * call->frame.columns * kernels->tile_queries * sizeof *call->sums);
}

static bool is_served(const fast_call *call, size_t query)
{
    return call->degree != NO_DEGREE && serves(&call->fast->polynomials[call->degree], call->bounds[query]);
}

/* Queries of one kind, served by the polynomial or not; causal ones are neighbours, the first of which sees n_seen keys. */
static void answer_tile(float *out, fast_call *call, const size_t *queries, size_t n, bool exactly, size_t n_passed, size_t n_seen)
{
    static const double NO_SHIFT = 40; /* scores up to this need none: e^40 is far from f32's ends */
    const sp_fast_kernels *kernels = call->fast->kernels;
    size_t end = call->head.causal ? n_seen + n - 1 : n_seen; /* keys that the last one sees */
    double bound = 0;
    for (size_t i = 0; i < n; i++) bound = fmax(bound, call->bounds[queries[i]]);
    begin_tile(call, queries, n, 1);
    if (!exactly && n_passed > 0) evaluate_state(call);
    if (exactly || n_passed < end) {
        ptrdiff_t last = call->head.causal ? (ptrdiff_t)n_seen - 1 : PTRDIFF_MAX;
        for (size_t u = 0; u < kernels->tile_queries; u++) call->max[u] = -INFINITY;
        sp_frame_pack_queries(call->tile, &call->frame, &call->head, queries, n, LOG2_E, kernels);
        add_exactly(call, exactly && bound > NO_SHIFT ? call->max : NULL, exactly ? 0 : n_passed, end, last);
    }
    double least = sp_frame_unpack(out, call->head.ldo, call->sums, &call->frame, queries, n, kernels);
    if (exactly) return;
    /* What the polynomial's terms round to is in proportion to the keys that passed. */
    double mean_weight = n_passed ? least / (double)n_passed : INFINITY;
    call->least_mean_weight = fmin(call->least_mean_weight, mean_weight);
    call->range = fmax(call->range, bound);
    call->n_served += n;
}

/* All queries of one kind, a tile at a time. */
static void answer_all(float *out, fast_call *call, bool exactly)
{
    size_t queries[MAX_TILE], n = 0, width = call->fast->kernels->tile_queries;
    for (size_t i = 0; i < call->head.n_queries; i++) {
        if (is_served(call, i) != exactly) queries[n++] = i;
        if (n == 0 || (n < width && i + 1 < call->head.n_queries)) continue;
        answer_tile(out, call, queries, n, exactly, call->head.n_keys, call->head.n_keys);
        n = 0;
    }
}

/* Neighbouring queries a tile at a time, from the first to the last; blocks of keys that all of them see have passed. Tiles in
 * which a query is not served are exact as a whole. */
static void answer_causally(float *out, fast_call *call, key_pass *pass)
{
    size_t queries[MAX_TILE], width = call->fast->kernels->tile_queries, block = call->fast->kernels->block_keys, n;
    size_t before = call->head.n_keys - call->head.n_queries;
    for (size_t first = 0; first < call->head.n_queries; first += n) {
        bool exactly = false;
        n = sp_smaller(width, call->head.n_queries - first);
        for (size_t u = 0; u < n; u++) {
            queries[u] = first + u;
            exactly = exactly || !is_served(call, first + u);
        }
        size_t n_seen = before + first + 1, n_passed = exactly ? 0 : n_seen / block * block;
        if (!exactly) add_keys_until(pass, call, n_passed);
        answer_tile(out, call, queries, n, exactly, n_passed, n_seen);
    }
}

/* ---- the certificate ---- */

/* The largest effect of f32's rounding on an output, a worst case. The inputs' rounding moves a score s by at most 2 u |s|, and so
 * the weights by at most u |s| in total variation. A term of degree j of the sums, of size at most |c_j| range^j a key, carries the
 * rounding of j products, of SP_TERMS_IN_F32 additions and those over lanes, of its value, its state and of the nested scheme's
 * (j + 1) d additions, each u; numerator and normaliser alike, whose errors add. Exact terms at a causal query's end add to the
 * normaliser what they are, in a sum as long as a block and a tile; their scores round d times. */
static double bound_rounding(const fast_call *call)
{
    enum { EVERY_TERM = SP_TERMS_IN_F32 + 9 };
    static const double SECOND_ORDER = 1.01; /* as long as a thousand roundings meet */
    const sp_exp_polynomial *p = &call->fast->polynomials[call->degree];
    double terms = 0, power = 1, value_range = call->frame.value_range;
    if (!(call->least_mean_weight > 0)) return INFINITY; /* degrees far above the default: all digits are lost */
    for (size_t j = 0; j <= call->degree; j++) {
        terms += fabs(p->c[j]) * power * (double)(EVERY_TERM + j + sp_smaller(j + 1, call->degree) * call->head.d);
        power *= call->range;
    }
    double weights = terms / call->least_mean_weight + call->range;
    if (call->head.causal)
        weights += (double)(call->fast->kernels->block_keys + 2 * call->fast->kernels->tile_queries) +
                   (double)(call->head.d + 4) * call->range;
    return UNIT_ROUNDOFF * (SECOND_ORDER * value_range * weights + 3 * (value_range + call->frame.value_magnitude));
}

static void certify(sp_certificate *out, const fast_call *call)
{
    *out = (sp_certificate){
        .n_queries = call->head.n_queries, .n_keys = call->head.n_keys, .n_exact = call->head.n_queries - call->n_served};
    for (size_t i = 0; i < call->head.n_queries; i++) out->max_range = fmax(out->max_range, call->bounds[i]);
    if (call->n_served == 0) return;
    out->degree = call->degree;
    out->n_features = call->n_features;
    out->range = call->range;
    out->epsilon = call->fast->polynomials[call->degree].eps;
    out->polynomial_bound = call->frame.value_range * sp_weights_distance(out->epsilon);
    out->rounding_bound = bound_rounding(call);
}

/* ---- putting it together ---- */

static sp_status allocate_tile(fast_call *call)
{
    size_t width = call->fast->kernels->tile_queries;
    sp_arena *arena = call->fast->arena;
    call->tile = sp_arena_alloc(arena, call->head.d * width, sizeof(float));
    call->sums = sp_arena_alloc(arena, call->frame.groups * call->frame.columns * width, sizeof(float));
    call->max = sp_arena_alloc(arena, width, sizeof(float));
    call->weights = sp_arena_alloc(arena, (size_t)SP_EXACT_BLOCK * width, sizeof(float));
    return call->tile && call->sums && call->max && call->weights ? SP_OK : SP_ERR_MEMORY;
}

/* One degree, the exact kernel, or, where no degree was asked for and it costs less, the hybrid, which then has answered. */
static sp_status plan(bool *done, float *out, sp_certificate *certificate, fast_call *call)
{
    sp_fast *fast = call->fast;
    const bool is_given = fast->options.degree > 0 || fast->options.range > 0;
    double cost;
    sp_status st = choose_degree(&cost, call);
    if (st || is_given || call->head.causal || !(call->frame.radius > 0)) return st;
    if (cost_exact(call, call->head.n_queries) < fast->least_hybrid) return st;
    sp_hybrid hybrid = {.kernels = fast->kernels,
                        .polynomials = fast->polynomials,
                        .first_degree = fast->first_degree,
                        .last_degree = fast->last_degree,
                        .max_bytes = fast->options.max_bytes,
                        .head = &call->head,
                        .frame = &call->frame,
                        .bounds = call->bounds,
                        .arena = fast->arena};
    if ((st = sp_hybrid_plan(&hybrid, cost)) || hybrid.degree == NO_DEGREE) return st;
    *done = true;
    return sp_hybrid_attend(out, certificate, &hybrid);
}

static sp_status attend(float *out, sp_certificate *certificate, fast_call *call, bool all_exact)
{
    sp_status st = complete_head(&call->head);
    if (!st) st = sp_frame_measure(&call->frame, &call->head, call->fast->kernels, call->fast->arena);
    if (st) return st;
    call->bounds = sp_arena_alloc(call->fast->arena, call->head.n_queries, sizeof *call->bounds);
    if (!call->bounds) return SP_ERR_MEMORY;
    if ((st = sp_frame_bound_queries(call->bounds, &call->frame, &call->head, call->fast->arena))) return st;
    bool done = false;
    if (!all_exact && (st = plan(&done, out, certificate, call))) return st;
    if (done) return SP_OK;
    if ((st = allocate_tile(call))) return st;
    key_pass pass = {0};
    size_t n_served = call->degree ? count_served(call, call->degree) : 0;
    if ((call->head.causal || n_served < call->head.n_queries) && (st = pack_rows(call))) return st;
    if (n_served > 0 && (st = begin_keys(&pass, call))) return st;
    if (call->head.causal) {
        answer_causally(out, call, &pass);
    } else {
        if (n_served > 0) add_keys_until(&pass, call, call->head.n_keys);
        answer_all(out, call, false);
        answer_all(out, call, true);
    }
    if (certificate) certify(certificate, call);
    return SP_OK;
}

static sp_status attend_with_scratch(float *out, sp_certificate *certificate, sp_fast *fast, const sp_attention_head *head,
                                     bool all_exact)
{
    fast_call call = {.fast = fast, .head = *head, .least_mean_weight = INFINITY};
    sp_status st = attend(out, certificate, &call, all_exact);
    sp_arena_reset(fast->arena, (sp_arena_mark){0});
    return st;
}

sp_status sp_fast_attention(float *out, sp_certificate *certificate, sp_fast *fast, const sp_attention_head *head)
{
    return attend_with_scratch(out, certificate, fast, head, false);
}

sp_status sp_exact_attention(float *out, sp_fast *fast, const sp_attention_head *head)
{
    return attend_with_scratch(out, NULL, fast, head, true);
}
