/* memorise.c: sp_lab_memorise: how many virtual tokens N random sequences take, learnt on layers with random weights and written
 * down for layers that are built, beside what formulas say.
 *
 * The fewest tokens that do are looked for by doubling, then bisection between the last length that failed and the first that did.
 * That takes the lengths that do for an interval. It is none by proof: learning may fail by bad luck, and a softmax cannot always
 * leave a token out; so what is reported is the fewest that were found.
 *
 * A task is one data set on one layer. Cost: a length of p tokens takes at most restarts * steps steps of layer_fit.c. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/sizes.h"
#include "base/status.h"
#include "lab/memorise.h"
#include "lab/random_layer.h"

static const size_t DEFAULT_SEQUENCES[] = {1, 2, 3, 4, 6, 8, 12, 16}, DEFAULT_D[] = {1, 2, 4}, DEFAULT_LEN[] = {1, 2};
static const double DEFAULT_EPSILON = 0.05, DEFAULT_PRECISION = 64;
static const double LEAST_EPSILON = 1e-9; /* below, rounding of what is learnt shows */
enum {
    DEFAULT_SEEDS = 3,
    DEFAULT_MAX_TOKENS = 64,
    DEFAULT_STEPS = 200,
    DEFAULT_RESTARTS = 16,
    DEFAULT_POSITIONS = 8,
    DEFAULT_HIDDEN = 32,
    MAX_SEQUENCES = 256,
    MAX_NUMBERS = 16, /* d, len */
    MAX_TOKENS = 512,
    MAX_WIDTH = 1024,
    MAX_POINTS = 10000
};

/* ---- options ---- */

static void use_default(const size_t **list, size_t *n, const size_t *fallback, size_t n_fallback)
{
    if (*list && *n) return;
    *list = fallback;
    *n = n_fallback;
}

static sp_status check_list(const char *name, const size_t *list, size_t n, size_t least, size_t most)
{
    for (size_t i = 0; i < n; i++)
        if (list[i] < least || list[i] > most)
            return sp_fail(SP_ERR_ARGUMENT, "%s %zu: give numbers from %zu to %zu", name, list[i], least, most);
    return SP_OK;
}

static sp_status check_numbers(const sp_memorise_options *o)
{
    if (!(o->epsilon >= LEAST_EPSILON && o->epsilon < 0.5))
        return sp_fail(SP_ERR_ARGUMENT,
                       "an epsilon of %g: give one from %g to 0.5, where the constant 1/2 is within epsilon of every answer",
                       o->epsilon, LEAST_EPSILON);
    if (!(o->precision >= 1 && isfinite(o->precision)))
        return sp_fail(SP_ERR_ARGUMENT, "a precision of %g bits: give at least 1", o->precision);
    if (o->max_tokens > MAX_TOKENS)
        return sp_fail(SP_ERR_ARGUMENT, "prompts of up to %zu tokens: give at most %d", o->max_tokens, MAX_TOKENS);
    if (o->n_positions > MAX_WIDTH || o->n_hidden > MAX_WIDTH)
        return sp_fail(SP_ERR_ARGUMENT, "%zu channels of positions, %zu units: give at most %d of each", o->n_positions,
                       o->n_hidden, MAX_WIDTH);
    if (o->n_sequences * o->n_d * o->n_len > MAX_POINTS / o->n_seeds)
        return sp_fail(SP_ERR_ARGUMENT, "%zu x %zu x %zu settings of %zu seeds: give at most %d in all", o->n_sequences, o->n_d,
                       o->n_len, o->n_seeds, MAX_POINTS);
    return SP_OK;
}

static sp_status resolve(sp_memorise_options *o)
{
    use_default(&o->sequences, &o->n_sequences, DEFAULT_SEQUENCES, sizeof DEFAULT_SEQUENCES / sizeof *DEFAULT_SEQUENCES);
    use_default(&o->d, &o->n_d, DEFAULT_D, sizeof DEFAULT_D / sizeof *DEFAULT_D);
    use_default(&o->len, &o->n_len, DEFAULT_LEN, sizeof DEFAULT_LEN / sizeof *DEFAULT_LEN);
    if (o->n_seeds == 0) o->n_seeds = DEFAULT_SEEDS;
    if (o->epsilon == 0) o->epsilon = DEFAULT_EPSILON;
    if (o->precision == 0) o->precision = DEFAULT_PRECISION;
    if (o->max_tokens == 0) o->max_tokens = DEFAULT_MAX_TOKENS;
    if (o->steps == 0) o->steps = DEFAULT_STEPS;
    if (o->restarts == 0) o->restarts = DEFAULT_RESTARTS;
    if (o->n_positions == 0) o->n_positions = DEFAULT_POSITIONS;
    if (o->n_hidden == 0) o->n_hidden = DEFAULT_HIDDEN;
    sp_status st = check_list("sequences", o->sequences, o->n_sequences, 1, MAX_SEQUENCES);
    if (!st) st = check_list("d", o->d, o->n_d, 1, MAX_NUMBERS);
    if (!st) st = check_list("len", o->len, o->n_len, o->is_shared ? 2 : 1, MAX_NUMBERS);
    return st ? st : check_numbers(o);
}

/* ---- a prompt that is learnt ---- */

typedef struct search {
    const sp_layer_inputs *inputs;
    const sp_pairs *pairs;
    sp_layer_fit_options fit;
    double *prompt, *rounded, *answers, *scratch;
} search;

/* The error behind the prompt's numbers as multiples of `step`. */
static double round_and_run(search *s, size_t n_tokens, double step)
{
    const size_t n = s->inputs->n_tokens * s->pairs->d;
    double error = 0;
    for (size_t i = 0; i < n_tokens * s->pairs->d; i++) s->rounded[i] = step * nearbyint(s->prompt[i] / step);
    sp_layer_answer(s->answers, NULL, s->inputs, s->rounded, n_tokens, s->scratch);
    for (size_t i = 0; i < n; i++) error = fmax(error, fabs(s->answers[i] - s->pairs->y[i]));
    return error;
}

/* Numbers lie between -2^e and 2^e. The fewest bits that do; fewer again might, by luck. */
static size_t count_bits(search *s, size_t n_tokens, double largest)
{
    size_t bits = 1;
    int e;
    (void)frexp(largest, &e);
    while (bits < SP_MEMORISE_MAX_BITS && !(round_and_run(s, n_tokens, ldexp(1, e + 1 - (int)bits)) <= 2 * s->fit.epsilon)) bits++;
    return bits;
}

/* Learns a prompt of so many tokens; what it reaches is noted where it is better than what was found. */
static sp_status try_length(bool *does, sp_memorise_trained *out, search *s, size_t n_tokens)
{
    double error;
    sp_status st = sp_layer_fit(s->prompt, &error, &out->steps, s->inputs, s->pairs->y, n_tokens, &s->fit);
    if (st) return st;
    *does = error <= s->fit.epsilon;
    if (!*does && (out->num_virtual_tokens || !(error < out->error))) return SP_OK;
    out->num_virtual_tokens = *does ? n_tokens : 0;
    out->error = error;
    out->largest = 0;
    for (size_t i = 0; i < n_tokens * s->pairs->d; i++) out->largest = fmax(out->largest, fabs(s->prompt[i]));
    out->bits = *does ? count_bits(s, n_tokens, out->largest) : 0;
    return SP_OK;
}

static bool is_stopped(const search *s)
{
    return s->fit.stop && *s->fit.stop;
}

static sp_status find_fewest(sp_memorise_trained *out, search *s, size_t max_tokens)
{
    size_t failed = 0, n = 1;
    sp_status st = SP_OK;
    while (!st && !is_stopped(s)) {
        bool does = false;
        st = try_length(&does, out, s, n);
        if (!does) failed = n;
        if (out->num_virtual_tokens) {
            if (out->num_virtual_tokens - failed <= 1) break;
            n = failed + (out->num_virtual_tokens - failed) / 2;
        } else {
            if (n == max_tokens) break;
            n = sp_smaller(2 * n, max_tokens);
        }
    }
    return st;
}

static sp_status train(sp_memorise_trained *out, sp_memorise_layer kind, const sp_pairs *pairs, uint64_t seed,
                       const sp_memorise_options *o, const sp_hooks *hooks)
{
    const sp_random_layer_shape shape = {.d = pairs->d,
                                         .len = pairs->len,
                                         .n_positions = kind == SP_MEMORISE_WIDE ? o->n_positions : 0,
                                         .n_hidden = o->n_hidden,
                                         .max_tokens = o->max_tokens};
    sp_random_layer layer = {0};
    sp_layer_inputs inputs = {0};
    search s = {.inputs = &inputs, .pairs = pairs, .fit = {o->epsilon, o->steps, o->restarts, seed, hooks ? hooks->stop : NULL}};
    *out = (sp_memorise_trained){.error = INFINITY};
    sp_status st = sp_random_layer_create(&layer, &shape, seed);
    if (!st) st = sp_layer_inputs_create(&inputs, &layer, pairs->x, pairs->n);
    if (!st) {
        const size_t n_prompt = o->max_tokens * pairs->d, n_answers = pairs->n * pairs->len * pairs->d;
        const size_t n = 2 * n_prompt + n_answers + sp_layer_scratch(&layer, o->max_tokens);
        s.prompt = malloc(n * sizeof *s.prompt);
        if (!s.prompt) st = sp_fail_no_memory(n * sizeof *s.prompt);
        if (!st) {
            s.rounded = s.prompt + n_prompt;
            s.answers = s.rounded + n_prompt;
            s.scratch = s.answers + n_answers;
            st = find_fewest(out, &s, o->max_tokens);
        }
    }
    free(s.prompt);
    sp_layer_inputs_clear(&inputs);
    sp_random_layer_clear(&layer);
    return st;
}

/* ---- points ---- */

static sp_status write_bounds(sp_memorise_point *p, const sp_memorise_options *o)
{
    sp_capacity_bound_report bound;
    const sp_capacity_bound_options options = {.d = p->d,
                                               .len = p->len,
                                               .lipschitz = p->lipschitz,
                                               .epsilon = o->epsilon,
                                               .precision = o->precision,
                                               .n_sequences = p->n_sequences};
    sp_status st = sp_lab_capacity_bound(&bound, &options);
    if (st) return st;
    p->log2_paper = bound.rows[SP_CAPACITY_PAPER].log2_tokens;
    p->log2_pairs = bound.rows[SP_CAPACITY_COUNT_PAIRS].log2_tokens;
    return SP_OK;
}

/* Task `part` of a point: a layer that is trained, or, last, all that is not. */
static sp_status run_part(sp_memorise_point *p, size_t part, const sp_memorise_options *o, const sp_hooks *hooks)
{
    sp_pairs pairs;
    sp_status st = sp_pairs_draw(&pairs, p->n_sequences, p->d, p->len, o->is_shared, p->seed);
    if (!st && part < SP_MEMORISE_N_LAYERS) {
        st = train(&p->trained[part], (sp_memorise_layer)part, &pairs, p->seed, o, hooks);
    } else if (!st) {
        p->lipschitz = sp_pairs_lipschitz(&pairs);
        for (int i = 0; i < SP_MEMORISE_N_CONSTRUCTIONS && !st; i++)
            st = sp_memorise_construct(&p->constructed[i], (sp_memorise_construction)i, &pairs, o->epsilon);
        if (!st) st = write_bounds(p, o);
    }
    sp_pairs_clear(&pairs);
    return st;
}

static void list_points(sp_memorise_point *points, const sp_memorise_options *o)
{
    for (size_t d = 0; d < o->n_d; d++)
        for (size_t len = 0; len < o->n_len; len++)
            for (size_t n = 0; n < o->n_sequences; n++)
                for (size_t seed = 0; seed < o->n_seeds; seed++)
                    *points++ = (sp_memorise_point){
                        .n_sequences = o->sequences[n], .d = o->d[d], .len = o->len[len], .seed = o->seed + seed};
}

static void report_progress(const sp_hooks *hooks, size_t done, size_t total, double begin)
{
    if (!hooks || !hooks->progress) return;
    const sp_progress progress = {
        .what = "data sets", .done = done, .total = total, .seconds = sp_seconds() - begin, .loss = (double)NAN};
    hooks->progress(hooks->user, &progress);
}

/* What went wrong first; messages are the thread's own, so it is kept here. */
typedef struct failure {
    sp_status status;
    char message[256];
} failure;

static bool is_over(const failure *f, const sp_hooks *hooks)
{
    bool has_failed;
#pragma omp critical
    has_failed = f->status != SP_OK;
    return has_failed || (hooks && hooks->stop && *hooks->stop);
}

static void note(failure *f, sp_status st)
{
#pragma omp critical
    if (!f->status) {
        snprintf(f->message, sizeof f->message, "%s", sp_message());
        f->status = st;
    }
}

/* The largest sets take longest, so they come first. */
static sp_status run_points(sp_memorise_report *r, const sp_hooks *hooks, double begin)
{
    enum { N_PARTS = SP_MEMORISE_N_LAYERS + 1 };
    const size_t n_tasks = r->n_points * N_PARTS;
    size_t done = 0;
    failure failed = {0};
#pragma omp parallel for schedule(dynamic)
    for (size_t task = 0; task < n_tasks; task++) {
        size_t now;
        if (is_over(&failed, hooks)) continue;
        sp_status st = run_part(&r->points[r->n_points - 1 - task / N_PARTS], task % N_PARTS, &r->options, hooks);
        if (st) note(&failed, st);
#pragma omp atomic capture
        now = ++done;
        if (omp_get_thread_num() == 0) report_progress(hooks, now / N_PARTS, r->n_points, begin);
    }
    if (failed.status) return sp_fail(failed.status, "%s", failed.message);
    return hooks && hooks->stop && *hooks->stop ? sp_fail(SP_ERR_STOPPED, "stopped; nothing is reported") : SP_OK;
}

sp_status sp_lab_memorise(sp_memorise_report *out, const sp_memorise_options *options, const sp_hooks *hooks)
{
    const double begin = sp_seconds();
    *out = (sp_memorise_report){.options = options ? *options : (sp_memorise_options){0}};
    sp_memorise_options *o = &out->options;
    sp_status st = resolve(o);
    if (st) return st;
    out->n_points = o->n_sequences * o->n_d * o->n_len * o->n_seeds;
    out->points = malloc(out->n_points * sizeof *out->points);
    if (!out->points) st = sp_fail_no_memory(out->n_points * sizeof *out->points);
    if (!st) {
        list_points(out->points, o);
        st = run_points(out, hooks, begin);
    }
    o->sequences = o->d = o->len = NULL; /* the caller's */
    out->seconds = sp_seconds() - begin;
    if (st) sp_memorise_report_clear(out);
    return st;
}

void sp_memorise_report_clear(sp_memorise_report *report)
{
    free(report->points);
    report->points = NULL;
    report->n_points = 0;
}
