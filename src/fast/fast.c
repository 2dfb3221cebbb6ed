/* fast.c: the handle: options checked, polynomials found once, one for each degree that a call may choose. */
#include "fast/fast.h"

#include <math.h>
#include <stdlib.h>

#include "base/sizes.h"
#include "base/status.h"

enum { DEFAULT_MAX_DEGREE = 10, ANY_ROUNDING = 8, MAX_THREADS = 4096 };
static const double DEFAULT_EPSILON = 1e-3;
static const double LEAST_SHARE = 1e7; /* a sixth of a millisecond: waking a thread and waiting for it takes a tenth of that */

static sp_status check_options(const sp_fast_options *o)
{
    if (!(o->epsilon > 0 && o->epsilon < 1))
        return sp_fail(SP_ERR_ARGUMENT, "epsilon is %g; it is the relative error of a weight, between 0 and 1", o->epsilon);
    if (o->degree > SP_MAX_DEGREE || o->max_degree > SP_MAX_DEGREE)
        return sp_fail(SP_ERR_ARGUMENT, "degree %zu; polynomials go up to degree %d", sp_larger(o->degree, o->max_degree),
                       SP_MAX_DEGREE);
    if (!(o->range >= 0 && isfinite(o->range)))
        return sp_fail(SP_ERR_ARGUMENT, "range is %g; it is the largest size of a score, or 0", o->range);
    if (o->n_threads < 0 || o->n_threads > MAX_THREADS)
        return sp_fail(SP_ERR_ARGUMENT, "%d threads; between 1 and %d, or 0 for as many as this process may use", o->n_threads,
                       MAX_THREADS);
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

static void complete_options(sp_fast_options *o)
{
    sp_machine machine;
    if (o->epsilon == 0) o->epsilon = DEFAULT_EPSILON;
    if (o->max_degree == 0) o->max_degree = DEFAULT_MAX_DEGREE;
    if (o->max_bytes && o->n_threads) return;
    sp_machine_describe(&machine);
    if (o->max_bytes == 0) o->max_bytes = machine.memory_bytes / 2;
    if (o->n_threads == 0) o->n_threads = machine.n_threads;
}

sp_status sp_fast_create(sp_fast **out, const sp_fast_options *options)
{
    sp_fast *fast = calloc(1, sizeof *fast);
    *out = NULL;
    if (!fast) return sp_fail_no_memory(sizeof *fast);
    if (options) fast->options = *options;
    fast->watches_rounding = fast->options.max_degree == 0;
    complete_options(&fast->options);
    fast->least_hybrid = SP_LEAST_HYBRID;
    fast->least_share = LEAST_SHARE;
    fast->search_weight = 1;
    fast->kernels = sp_fast_kernels_select();
    sp_status st = check_options(&fast->options);
    if (!st && fast->options.range > 0) st = fit_range(fast);
    if (!st && fast->options.range == 0) fit_degrees(fast);
    if (!st) st = sp_arena_create(&fast->arena);
    if (st)
        sp_fast_free(fast);
    else
        *out = fast;
    return st;
}

void sp_fast_free(sp_fast *fast)
{
    if (!fast) return;
    sp_arena_free(fast->arena);
    for (size_t i = 0; i < fast->n_arenas; i++) sp_arena_free(fast->arenas[i]);
    free(fast->arenas);
    free(fast);
}

void sp_fast_set_least_hybrid(sp_fast *fast, double cost)
{
    fast->least_hybrid = cost;
}

void sp_fast_set_least_share(sp_fast *fast, double cost)
{
    fast->least_share = cost;
}

void sp_fast_set_search_weight(sp_fast *fast, double weight)
{
    fast->search_weight = weight;
}

double sp_fast_degree_products(const sp_fast_call *call, size_t degree)
{
    const size_t n = sp_monomials_count(call->head.d, degree), parents = degree ? sp_monomials_count(call->head.d, degree - 1) : 0;
    if (n == SIZE_MAX) return (double)INFINITY;
    return (double)call->frame.groups * ((double)n * (double)call->frame.columns + SP_PARENT_COST * (double)parents);
}

bool sp_fast_may_choose(const sp_fast_call *call, size_t degree)
{
    const sp_exp_polynomial *p = &call->fast->polynomials[degree];
    const sp_served worst = {.n_queries = 1, .range = p->rho, .least_mean_weight = 1};
    const sp_term_roundings roundings = {.per_level = 1, .d = (double)call->head.d};
    if (degree <= ANY_ROUNDING || !call->fast->watches_rounding) return true;
    return SP_UNIT_ROUNDOFF * sp_rounding_of_weights(&worst, p, roundings) <= call->fast->options.epsilon;
}

size_t sp_fast_threads(const sp_fast *fast, double cost)
{
    const size_t most = (size_t)fast->options.n_threads;
    if (cost >= (double)most * fast->least_share) return most;
    return sp_larger(1, (size_t)(cost / fast->least_share));
}
