/* phase.c: sp_lab_phase: attention timed below, at and above the line B = sqrt(ln n).
 *
 * Queries and keys are random corners {-B, B}^d, B = c sqrt(ln n): entries at the bound, and scores q . k / d that reach B^2. The
 * polynomial's degree follows from B^2 and epsilon, its features from degree and d, its time from n and features; whether that
 * grows like n or faster is what c decides. The exact kernel's time depends on n alone, and is measured once for each. */
#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/rng.h"
#include "base/sort.h"
#include "base/status.h"
#include "fast/remez.h"
#include "lab/phase.h"

enum { MAX_RUNS = 3, FITTED_FROM_LOG2 = 12, MAX_D = 64, MAX_LOG2_N = 20, LEAST_LOG2_N = 6 };

static const double DEFAULT_EPSILON = 1e-3, DEFAULT_SECONDS = 10;
static const double c_of[SP_PHASE_N_C] = {0.25, 0.5, 0.75, 1, 1.5};
static const double SHORT = 0.5;       /* seconds of a run that is worth repeating */
static const double FIRST_RATE = 1e-9; /* seconds of a feature of a key and query, until one was measured */

/* ---- options ---- */

static sp_status resolve(sp_phase_options *o)
{
    if (o->d == 0) o->d = 8;
    if (o->epsilon == 0) o->epsilon = DEFAULT_EPSILON;
    if (o->min_log2_n == 0) o->min_log2_n = 10;
    if (o->max_log2_n == 0) o->max_log2_n = MAX_LOG2_N;
    if (o->hard_log2_n == 0) o->hard_log2_n = 14;
    if (o->seconds == 0) o->seconds = DEFAULT_SECONDS;
    if (o->d > MAX_D) return sp_fail(SP_ERR_ARGUMENT, "a head of %zu: give 1 to %d", o->d, MAX_D);
    if (!(o->epsilon > 0 && o->epsilon < 1))
        return sp_fail(SP_ERR_ARGUMENT, "an epsilon of %g: give one between 0 and 1", o->epsilon);
    if (o->min_log2_n < LEAST_LOG2_N || o->max_log2_n > MAX_LOG2_N || o->min_log2_n > o->max_log2_n)
        return sp_fail(SP_ERR_ARGUMENT, "n from 2^%zu to 2^%zu: give a range inside 2^%d to 2^%d", o->min_log2_n, o->max_log2_n,
                       LEAST_LOG2_N, MAX_LOG2_N);
    if (o->hard_log2_n % 2 || o->hard_log2_n < LEAST_LOG2_N || o->hard_log2_n > 16)
        return sp_fail(SP_ERR_ARGUMENT, "hard instances of 2^%zu keys: give an even exponent from %d to 16", o->hard_log2_n,
                       LEAST_LOG2_N);
    if (!(o->seconds > 0)) return sp_fail(SP_ERR_ARGUMENT, "runs of at most %g seconds: give a time above 0", o->seconds);
    return SP_OK;
}

/* ---- one size ---- */

typedef struct workload { /* all (n, d); signs of corners, and the same times B */
    size_t n, d;
    float *q, *k, *v, *out;
    sp_attention_head head;
} workload;

static void workload_clear(workload *w)
{
    free(w->q);
}

static sp_status workload_create(workload *w, size_t n, size_t d, uint64_t seed)
{
    sp_rng rng = sp_rng_seed(seed, n);
    float *all = malloc(4 * n * d * sizeof *all);
    if (!all) return sp_fail_no_memory(4 * n * d * sizeof *all);
    *w = (workload){n, d, all, all + n * d, all + 2 * n * d, all + 3 * n * d, {0}};
    for (size_t i = 0; i < 2 * n * d; i++) all[i] = sp_rng_next(&rng) >> 63 ? 1 : -1;
    for (size_t i = 0; i < n * d; i++) w->v[i] = (float)(sp_rng_uniform(&rng) - 0.5);
    w->head = (sp_attention_head){.q = w->q, .k = w->k, .v = w->v, .n_queries = n, .n_keys = n, .d = d, .d_v = d};
    return SP_OK;
}

/* Entries of size 1 and a scale of B^2 / d are entries of size B and a scale of 1 / d. */
static void set_entry(workload *w, double entry)
{
    w->head.scale = (float)(entry * entry / (double)w->d);
}

typedef sp_status attend(sp_certificate *certificate, sp_fast *fast, workload *w);

static sp_status attend_exactly(sp_certificate *certificate, sp_fast *fast, workload *w)
{
    (void)certificate;
    return sp_exact_attention(w->out, fast, &w->head);
}

static sp_status attend_fast(sp_certificate *certificate, sp_fast *fast, workload *w)
{
    return sp_fast_attention(w->out, certificate, fast, &w->head);
}

/* The median of a few runs; of one, where it is long. */
static sp_status time_runs(double *seconds, sp_certificate *certificate, attend *call, sp_fast *fast, workload *w)
{
    double runs[MAX_RUNS];
    size_t n = 0;
    do {
        const double begin = sp_thread_seconds();
        sp_status st = call(certificate, fast, w);
        if (st) return st;
        runs[n++] = sp_thread_seconds() - begin;
    } while (n < MAX_RUNS && runs[n - 1] < SHORT);
    sp_sort_doubles(runs, n);
    *seconds = runs[n / 2];
    return SP_OK;
}

/* ---- points ---- */

/* What the point needs, by arithmetic alone. */
static sp_phase_point describe(double c, size_t n, const sp_phase_options *o)
{
    sp_exp_polynomial p;
    sp_phase_point point = {.c = c, .n = n, .entry = c * sqrt(log((double)n)), .degree = SIZE_MAX, .seconds = NAN, .bound = NAN};
    point.range = point.entry * point.entry;
    if (!sp_exp_polynomial_find(&p, point.range, o->epsilon, SP_MAX_DEGREE)) return point;
    point.degree = p.degree;
    point.features = sp_monomials_count(o->d, p.degree);
    return point;
}

static sp_status time_point(sp_phase_point *point, double *rate, workload *w, const sp_phase_options *o)
{
    const double work = (double)point->n * (double)point->features;
    sp_certificate certificate = {0};
    sp_fast *fast;
    if (point->degree == SIZE_MAX || point->features == SIZE_MAX || *rate * work > o->seconds) return SP_OK;
    const sp_fast_options options = {.epsilon = o->epsilon, .degree = point->degree, .max_degree = SP_MAX_DEGREE, .n_threads = 1};
    sp_status st = sp_fast_create(&fast, &options);
    if (st) return st;
    set_entry(w, point->entry);
    st = time_runs(&point->seconds, &certificate, attend_fast, fast, w);
    sp_fast_free(fast);
    if (st) return st;
    point->n_exact = certificate.n_exact;
    point->bound = certificate.polynomial_bound + certificate.rounding_bound;
    if (certificate.n_exact == 0) *rate = point->seconds / work;
    return SP_OK;
}

static sp_status time_size(sp_phase_size *size, const sp_phase_size *before, workload *w, const sp_phase_options *o)
{
    sp_fast *fast;
    size->n = w->n;
    if (before) {
        const double ratio = (double)size->n / (double)before->n;
        *size = (sp_phase_size){size->n, before->seconds * ratio * ratio, true};
        if (before->extended || size->seconds > o->seconds) return SP_OK;
    }
    sp_status st = sp_fast_create(&fast, &(sp_fast_options){.n_threads = 1});
    if (st) return st;
    set_entry(w, 1);
    size->extended = false;
    st = time_runs(&size->seconds, NULL, attend_exactly, fast, w);
    sp_fast_free(fast);
    return st;
}

static void report_progress(const sp_hooks *hooks, const char *what, size_t done, size_t total, double begin)
{
    if (!hooks || !hooks->progress) return;
    const sp_progress progress = {.what = what, .done = done, .total = total, .seconds = sp_seconds() - begin, .loss = (double)NAN};
    hooks->progress(hooks->user, &progress);
}

static sp_status run_size(sp_phase_report *r, size_t i, double *rate)
{
    const sp_phase_options *o = &r->options;
    const size_t n = (size_t)1 << (o->min_log2_n + i);
    workload w;
    sp_status st = workload_create(&w, n, o->d, o->seed);
    if (st) return st;
    st = time_size(&r->sizes[i], i ? &r->sizes[i - 1] : NULL, &w, o);
    for (size_t c = 0; c < SP_PHASE_N_C && !st; c++) {
        r->points[c][i] = describe(c_of[c], n, o);
        st = time_point(&r->points[c][i], rate, &w, o);
    }
    workload_clear(&w);
    if (!st) r->n_sizes = i + 1;
    return st;
}

/* ---- exponents ---- */

/* Slope of log time over log n. NAN: fewer than three points. */
static double fit_exponent(const double *n, const double *seconds, size_t count)
{
    double x = 0, y = 0, xx = 0, xy = 0;
    if (count < 3) return NAN;
    for (size_t i = 0; i < count; i++) {
        x += log(n[i]) / (double)count;
        y += log(seconds[i]) / (double)count;
    }
    for (size_t i = 0; i < count; i++) {
        xx += (log(n[i]) - x) * (log(n[i]) - x);
        xy += (log(n[i]) - x) * (log(seconds[i]) - y);
    }
    return xy / xx;
}

static void fit_exponents(sp_phase_report *r)
{
    double n[SP_PHASE_MAX_SIZES], seconds[SP_PHASE_MAX_SIZES];
    for (size_t c = 0; c <= SP_PHASE_N_C; c++) {
        size_t count = 0;
        for (size_t i = 0; i < r->n_sizes; i++) {
            const bool is_exact = c == SP_PHASE_N_C;
            const double time = is_exact ? r->sizes[i].seconds : r->points[c][i].seconds;
            if (isnan(time) || (is_exact && r->sizes[i].extended) || r->sizes[i].n < (size_t)1 << FITTED_FROM_LOG2) continue;
            n[count] = (double)r->sizes[i].n;
            seconds[count++] = time;
        }
        *(c < SP_PHASE_N_C ? &r->exponents[c] : &r->exact_exponent) = fit_exponent(n, seconds, count);
    }
}

/* ---- the experiment ---- */

static sp_status check_stop(const sp_hooks *hooks)
{
    return hooks && hooks->stop && *hooks->stop ? sp_fail(SP_ERR_STOPPED, "stopped; what was found is reported") : SP_OK;
}

static sp_status run_sizes(sp_phase_report *r, const sp_hooks *hooks)
{
    const size_t n = r->options.max_log2_n - r->options.min_log2_n + 1;
    const double begin = sp_seconds();
    double rate = FIRST_RATE;
    sp_status st = SP_OK;
    for (size_t i = 0; i < n && !st; i++) {
        if (!(st = check_stop(hooks))) st = run_size(r, i, &rate);
        report_progress(hooks, "sizes", i + 1, n, begin);
    }
    fit_exponents(r);
    return st;
}

static sp_status run_hard(sp_phase_report *r, const sp_hooks *hooks)
{
    const double begin = sp_seconds();
    sp_phase_instance instance;
    sp_status st = sp_phase_instance_create(&instance, r);
    for (size_t i = 0; i < SP_PHASE_N_HARD && !st; i++) {
        if (!(st = check_stop(hooks))) st = sp_phase_instance_run(&r->hard[i], &instance, 0.5 + (double)i / 8);
        report_progress(hooks, "hard instances", i + 1, SP_PHASE_N_HARD, begin);
    }
    sp_phase_instance_clear(&instance);
    return st;
}

sp_status sp_lab_phase(sp_phase_report *out, const sp_phase_options *options, const sp_hooks *hooks)
{
    *out = (sp_phase_report){.options = options ? *options : (sp_phase_options){0}};
    sp_status st = resolve(&out->options);
    if (!st) st = run_sizes(out, hooks);
    return st ? st : run_hard(out, hooks);
}
