/* target_expression.c: a function from a formula, by muParser. */
#include <math.h>
#include <muParserDLL.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/rng.h"
#include "base/status.h"
#include "lab/target.h"

enum { N_PROBES = 20000, RNG_STREAM = 0x736c6f70 }; /* "slop" */
static const double PROBE = 1e-4;

struct sp_target_expression {
    muParserHandle_t parser;
    double *x, i; /* (n): what the parser's variables are bound to */
    size_t n;
};

static double evaluate_one(sp_target_expression *e)
{
    double value = mupEval(e->parser);
    return isfinite(value) ? fmin(fmax(value, 0), 1) : 0;
}

static void evaluate_expression(double *y, const double *x, size_t n, const void *data)
{
    sp_target_expression *e = (sp_target_expression *)(uintptr_t)data; /* its variables are written, not what it is */
    for (size_t k = 0; k < n; k++) e->x[k] = x[k];
    for (size_t k = 0; k < n; k++) {
        e->i = (double)k + 1;
        y[k] = evaluate_one(e);
    }
}

/* The steepest of many short ways in random directions of the cube's corners, where a slope in the sup norm is attained. */
static double estimate_slope(sp_target_expression *e)
{
    sp_rng rng = sp_rng_seed(0, RNG_STREAM);
    double steepest = 0, from[e->n], to[e->n], a[e->n], b[e->n];
    for (size_t probe = 0; probe < N_PROBES; probe++) {
        for (size_t k = 0; k < e->n; k++) {
            from[k] = PROBE + (1 - 2 * PROBE) * sp_rng_uniform(&rng);
            to[k] = from[k] + (sp_rng_uniform(&rng) < 0.5 ? -PROBE : PROBE);
        }
        evaluate_expression(a, from, e->n, e);
        evaluate_expression(b, to, e->n, e);
        for (size_t k = 0; k < e->n; k++) steepest = fmax(steepest, fabs(a[k] - b[k]) / PROBE);
    }
    return steepest;
}

static sp_status bind(sp_target_expression *e, const char *text)
{
    char name[32];
    for (size_t k = 0; k < e->n; k++) {
        snprintf(name, sizeof name, "x%zu", k + 1);
        mupDefineVar(e->parser, name, &e->x[k]);
    }
    mupDefineVar(e->parser, "i", &e->i);
    mupDefineConst(e->parser, "pi", acos(-1.0));
    mupSetExpr(e->parser, text);
    e->i = 1;
    (void)mupEval(e->parser);
    if (!mupError(e->parser)) return SP_OK;
    return sp_fail(SP_ERR_ARGUMENT, "the expression \"%.80s\": %.120s (variables: x1 to x%zu, and i, the number of the output)",
                   text, mupGetErrorMsg(e->parser), e->n);
}

static sp_status create(sp_target_expression *e, const char *text, size_t n)
{
    e->n = n;
    e->x = calloc(n, sizeof *e->x);
    e->parser = mupCreate(0);
    if (!e->x || !e->parser) return sp_fail_no_memory(n * sizeof *e->x);
    return bind(e, text);
}

sp_status sp_target_expression_create(sp_target_expression **out, sp_target_function *f, const char *text, size_t n,
                                      double lipschitz)
{
    *out = NULL;
    sp_target_expression *e = calloc(1, sizeof *e);
    if (!e) return sp_fail_no_memory(sizeof *e);
    sp_status st = create(e, text, n);
    if (st) {
        sp_target_expression_free(e);
        return st;
    }
    *f = (sp_target_function){"expression", lipschitz > 0 ? lipschitz : estimate_slope(e), evaluate_expression, e};
    *out = e;
    return SP_OK;
}

void sp_target_expression_free(sp_target_expression *expression)
{
    if (!expression) return;
    if (expression->parser) mupRelease(expression->parser);
    free(expression->x);
    free(expression);
}
