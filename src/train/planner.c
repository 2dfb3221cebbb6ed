/* planner.c: sp_plan: pilots of growing length, curves through what they reach, and the shortest prompt that its curve calls good.
 *
 *     split the rows -> what answers cost without a prompt -> what each length costs -> pilots -> curve -> recommendation
 *       ^ pilots twice as long, while the recommendation is longer than every pilot __________________|                        */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/rng.h"
#include "base/sort.h"
#include "base/status.h"
#include "format/dataset.h"
#include "train/evaluate.h"
#include "train/planner_costs.h"
#include "train/power_law.h"

enum {
    DEFAULT_STEPS = 60,
    DEFAULT_SEEDS = 2,
    DEFAULT_LONGEST = 128,
    DEFAULT_BATCH_SIZE = 16,
    MAX_SEEDS = 16,
    FIRST_PILOTS = 16, /* up to this length pilots are trained in any case */
    HELD_OUT_SHARE = 8,
    MAX_HELD_OUT = 512,
    FEWEST_HELD_OUT = 8, /* with fewer a loss says nothing: then it is that of the rows trained on */
    EVAL_BATCH_SIZE = 32,
    N_CURVES = 400,
    MAX_POINTS = SP_PLAN_MAX_LENGTHS * MAX_SEEDS /* at most SP_POWER_LAW_MAX_POINTS */
};
static const double DEFAULT_TOLERANCE = 0.02, DEFAULT_POINTS = 1, LOW_SHARE = 0.1, HIGH_SHARE = 0.9;
static const double LEAST_LOSS = 1e-6; /* what answers cost that are learnt by heart */
static const uint64_t CURVE_STREAM = 0x6375727665;

static const sp_plan_figure UNKNOWN = {NAN, NAN, NAN, NAN, NAN, NAN};

typedef struct planner {
    sp_model *model;
    const sp_dataset *train, *eval; /* rows of pilots, rows that they are judged by */
    sp_dataset *rest, *held_out;    /* those, where they are parts of the data; else NULL */
    const char *dir;
    sp_plan_options options; /* with defaults in */
    const sp_hooks *hooks;   /* may be NULL */
    sp_plan_report *report;

    double x[MAX_POINTS], loss[MAX_POINTS], error[MAX_POINTS]; /* (n_points) of each pilot: length, loss, share of wrong answers */
    size_t n_points;
    size_t n_pilots_planned, n_steps_before; /* for the progress that hooks see */
    double begin;
} planner;

/* ---- options ---- */

static sp_status resolve(sp_plan_options *o)
{
    if (o->batch_size == 0) o->batch_size = DEFAULT_BATCH_SIZE;
    if (o->steps == 0) o->steps = DEFAULT_STEPS;
    if (o->n_seeds == 0) o->n_seeds = DEFAULT_SEEDS;
    if (o->max_virtual_tokens == 0) o->max_virtual_tokens = DEFAULT_LONGEST;
    if (o->tolerance == 0) o->tolerance = DEFAULT_TOLERANCE;
    if (o->points == 0) o->points = DEFAULT_POINTS;
    if (o->n_seeds > MAX_SEEDS)
        return sp_fail(SP_ERR_ARGUMENT, "%zu pilots of each length: at most %d are accepted", o->n_seeds, MAX_SEEDS);
    if (o->max_virtual_tokens < 2 || o->max_virtual_tokens >> SP_PLAN_MAX_LENGTHS)
        return sp_fail(SP_ERR_ARGUMENT, "at most %zu virtual tokens: give 2 to %zu", o->max_virtual_tokens,
                       ((size_t)1 << SP_PLAN_MAX_LENGTHS) - 1);
    if (!(o->tolerance > 0 && o->tolerance < 1) || !(o->bits_per_vector >= 0 && isfinite(o->bits_per_vector)))
        return sp_fail(SP_ERR_ARGUMENT, "tolerance %g, %g bits a vector: give a share below 1, and bits from 0 on", o->tolerance,
                       o->bits_per_vector);
    if (!(o->points > 0 && o->points < 100))
        return sp_fail(SP_ERR_ARGUMENT, "%g points of accuracy: give more than 0, below 100", o->points);
    return SP_OK;
}

/* Powers of two, and the longest. */
static void list_lengths(sp_plan_report *report, size_t longest)
{
    for (size_t n = 1; n < longest; n *= 2) report->lengths[report->n_lengths++].num_virtual_tokens = n;
    report->lengths[report->n_lengths++].num_virtual_tokens = longest;
    for (size_t i = 0; i < report->n_lengths; i++) report->lengths[i].loss = report->lengths[i].accuracy = UNKNOWN;
}

/* ---- rows ---- */

static sp_status split_rows(planner *p, const sp_dataset *data, const sp_dataset *eval)
{
    size_t n = sp_dataset_n_rows(data), n_held_out = n / HELD_OUT_SHARE < MAX_HELD_OUT ? n / HELD_OUT_SHARE : MAX_HELD_OUT;
    p->train = data;
    p->eval = eval ? eval : data;
    p->report->is_held_out = eval != NULL || n_held_out >= FEWEST_HELD_OUT;
    if (!eval && n_held_out >= FEWEST_HELD_OUT) {
        sp_status st = sp_dataset_hold_out(&p->rest, &p->held_out, data, n_held_out, p->options.seed);
        if (st) return st;
        p->train = p->rest;
        p->eval = p->held_out;
    }
    p->report->n_rows = sp_dataset_n_rows(p->train);
    p->report->n_held_out = sp_dataset_n_rows(p->eval);
    return SP_OK;
}

static sp_status encode(sp_encoded_data *out, const planner *p, const sp_task *task, const sp_dataset *rows, size_t n_front)
{
    return sp_encoded_data_create(out, task, p->model, rows, n_front, 0, p->hooks ? p->hooks->logger : NULL);
}

/* The bits of an answer are those of all its tokens, where a loss is their mean. */
static sp_status measure_need(planner *p, const sp_task *task)
{
    sp_encoded_data rows = {0};
    sp_scorer *scorer = NULL;
    sp_evaluation alone;
    size_t n_tokens = 0;
    sp_status st = encode(&rows, p, task, p->eval, 0);
    if (!st) st = sp_scorer_create(&scorer, p->model);
    const sp_evaluation_inputs inputs = {.task = task, .data = &rows, .batch_size = EVAL_BATCH_SIZE};
    if (!st) st = sp_evaluate_encoded(&alone, scorer, &inputs, p->hooks);
    for (size_t i = 0; i < rows.n; i++) n_tokens += rows.rows[i].n_candidate[rows.rows[i].right];
    if (!st) {
        sp_plan_report *r = p->report;
        r->loss = alone.loss;
        r->has_accuracy = alone.has_accuracy;
        r->accuracy = alone.has_accuracy ? alone.accuracy : NAN;
        r->answer_bits = log2(alone.perplexity) * (double)n_tokens / (double)rows.n;
        r->vectors_to_memorise =
            p->options.bits_per_vector > 0 ? r->answer_bits * (double)r->n_rows / p->options.bits_per_vector : NAN;
    }
    sp_scorer_free(scorer);
    sp_encoded_data_clear(&rows);
    return st;
}

/* ---- costs ---- */

static bool is_stopped(const planner *p)
{
    return p->hooks && p->hooks->stop && *p->hooks->stop;
}

static void report_progress(const planner *p, const char *what, size_t done, size_t total, double loss)
{
    if (!p->hooks || !p->hooks->progress) return;
    const sp_progress progress = {.what = what, .done = done, .total = total, .seconds = sp_seconds() - p->begin, .loss = loss};
    p->hooks->progress(p->hooks->user, &progress);
}

static sp_status measure_costs(planner *p, const sp_task *task)
{
    sp_plan_report *r = p->report;
    sp_encoded_data rows = {0};
    sp_status st = encode(&rows, p, task, p->train, r->lengths[r->n_lengths - 1].num_virtual_tokens);
    for (size_t i = 0; i < r->n_lengths && !st; i++) {
        report_progress(p, "costs", i, r->n_lengths, NAN);
        if (is_stopped(p)) st = sp_fail(SP_ERR_STOPPED, "stopped before the first pilot");
        if (!st) st = sp_plan_measure_costs(&r->lengths[i], p->model, &rows, p->options.batch_size);
    }
    sp_encoded_data_clear(&rows);
    return st;
}

/* ---- pilots ---- */

/* The progress of one pilot as a part of that of all which are planned so far. */
static void on_pilot_progress(void *user, const sp_progress *progress)
{
    const planner *p = user;
    if (strcmp(progress->what, "train") != 0) return;
    report_progress(p, "pilots", p->n_steps_before + progress->done, p->n_pilots_planned * p->options.steps, progress->loss);
}

static sp_status train_pilot(sp_evaluation *out, planner *p, size_t num_virtual_tokens, uint64_t seed)
{
    const sp_plan_options *o = &p->options;
    const sp_train_options training = {.prompt = {.num_virtual_tokens = num_virtual_tokens, .seed = seed},
                                       .task = o->task,
                                       .learning_rate = o->learning_rate,
                                       .batch_size = o->batch_size,
                                       .steps = o->steps,
                                       .seed = seed,
                                       .resume = o->resume,
                                       .overwrite = o->overwrite};
    sp_hooks hooks = p->hooks ? *p->hooks : (sp_hooks){0};
    sp_train_report report;
    char name[64];
    hooks.progress = on_pilot_progress;
    hooks.user = p;
    snprintf(name, sizeof name, "%zu-%llu", num_virtual_tokens, (unsigned long long)seed);
    char *dir = sp_path_join(p->dir, name);
    if (!dir) return SP_ERR_MEMORY;
    sp_status st = sp_train(&report, p->model, p->train, p->eval, dir, &training, &hooks);
    if (st == SP_ERR_STOPPED) st = sp_fail(st, "stopped in the pilot %s", dir);
    free(dir);
    p->n_steps_before += o->steps;
    *out = report.evaluation;
    return st;
}

static void add_to_figure(sp_plan_figure *figure, double value, size_t n_before)
{
    if (n_before == 0) figure->mean = figure->least = figure->most = value;
    figure->mean += (value - figure->mean) / (double)(n_before + 1);
    figure->least = fmin(figure->least, value);
    figure->most = fmax(figure->most, value);
}

/* Half a row more than were wrong, of one row more: no wrong answer among 50 rows is better than one, not infinitely better. */
static double share_of_wrong(const sp_evaluation *found)
{
    const double n = (double)found->n;
    return (n * (1 - found->accuracy) + 0.5) / (n + 1);
}

static sp_status try_length(planner *p, sp_plan_length *length)
{
    for (size_t i = 0; i < p->options.n_seeds; i++) {
        sp_evaluation found;
        sp_status st = train_pilot(&found, p, length->num_virtual_tokens, p->options.seed + i);
        if (st) return st;
        const double loss = fmax(found.loss, LEAST_LOSS);
        p->x[p->n_points] = (double)length->num_virtual_tokens;
        p->loss[p->n_points] = loss;
        p->error[p->n_points++] = p->report->has_accuracy ? share_of_wrong(&found) : 0;
        add_to_figure(&length->loss, loss, length->n_pilots);
        if (p->report->has_accuracy) add_to_figure(&length->accuracy, found.accuracy, length->n_pilots);
        length->n_pilots++;
    }
    return SP_OK;
}

/* ---- the curves, and what they recommend ---- */

typedef struct curves {
    sp_power_law loss, error; /* error: where rows have labels */
} curves;

static curves fit(const planner *p, const double *loss, const double *error)
{
    curves c = {.loss = sp_power_law_fit(p->x, loss, p->n_points)};
    if (p->report->has_accuracy) c.error = sp_power_law_fit(p->x, error, p->n_points);
    return c;
}

/* Nearly as good as the longest prompt, by the curve that users care for: of right answers where there are any. */
static bool is_good(const curves *c, const planner *p, size_t index)
{
    const sp_plan_report *r = p->report;
    const double x = (double)r->lengths[index].num_virtual_tokens,
                 longest = (double)r->lengths[r->n_lengths - 1].num_virtual_tokens;
    if (r->has_accuracy) return sp_power_law_at(&c->error, x) <= sp_power_law_at(&c->error, longest) + p->options.points / 100;
    return sp_power_law_at(&c->loss, x) <= (1 + p->options.tolerance) * sp_power_law_at(&c->loss, longest);
}

static size_t shortest_good(const curves *c, const planner *p)
{
    size_t i = 0;
    while (!is_good(c, p, i)) i++; /* the longest is */
    return i;
}

static void draw_anew(double *y, const planner *p, const sp_power_law *law, sp_rng *rng)
{
    for (size_t i = 0; i < p->n_points; i++)
        y[i] = fmax(sp_power_law_at(law, p->x[i]) * (1 + law->noise * sp_rng_normal(rng)), LEAST_LOSS);
}

static double quantile(double *values, size_t n, double share)
{
    sp_sort_doubles(values, n);
    return values[(size_t)(share * (double)(n - 1) + 0.5)];
}

/* at (N_CURVES): the curve's values at one length, in all draws. */
static void set_fitted(sp_plan_figure *figure, const sp_power_law *law, double x, double *at)
{
    figure->fitted = sp_power_law_at(law, x);
    figure->fitted_low = quantile(at, N_CURVES, LOW_SHARE);
    figure->fitted_high = quantile(at, N_CURVES, HIGH_SHARE);
}

/* From shares of wrong answers; a curve through such may run above 1. */
static void turn_into_accuracy(sp_plan_figure *figure)
{
    const double high = fmax(1 - figure->fitted_low, 0);
    figure->fitted = fmax(1 - figure->fitted, 0);
    figure->fitted_low = fmax(1 - figure->fitted_high, 0);
    figure->fitted_high = high;
}

typedef struct draws {
    double *good;         /* (N_CURVES) what is recommended, as an index */
    double *loss, *error; /* (n_lengths, N_CURVES) the curves' values */
} draws;

static void set_ranges(planner *p, const curves *c, draws *d)
{
    sp_plan_report *r = p->report;
    for (size_t i = 0; i < r->n_lengths; i++) {
        sp_plan_length *l = &r->lengths[i];
        set_fitted(&l->loss, &c->loss, (double)l->num_virtual_tokens, &d->loss[i * N_CURVES]);
        if (!r->has_accuracy) continue;
        set_fitted(&l->accuracy, &c->error, (double)l->num_virtual_tokens, &d->error[i * N_CURVES]);
        turn_into_accuracy(&l->accuracy);
    }
    r->low = r->lengths[(size_t)quantile(d->good, N_CURVES, LOW_SHARE)].num_virtual_tokens;
    r->high = r->lengths[(size_t)quantile(d->good, N_CURVES, HIGH_SHARE)].num_virtual_tokens;
    if (r->low > r->num_virtual_tokens) r->low = r->num_virtual_tokens;
    if (r->high < r->num_virtual_tokens) r->high = r->num_virtual_tokens;
}

/* Parametric bootstrap: the curves with the pilots' noise drawn anew are fitted again, many times. */
static sp_status find_ranges(planner *p, const curves *c)
{
    const sp_plan_report *r = p->report;
    const size_t n_values = (1 + 2 * r->n_lengths) * N_CURVES;
    double *values = malloc(n_values * sizeof *values), loss[MAX_POINTS], error[MAX_POINTS];
    if (!values) return sp_fail_no_memory(n_values * sizeof *values);
    draws d = {values, values + N_CURVES, values + (1 + r->n_lengths) * N_CURVES};
    sp_rng rng = sp_rng_seed(p->options.seed, CURVE_STREAM);
    for (size_t k = 0; k < N_CURVES; k++) {
        draw_anew(loss, p, &c->loss, &rng);
        if (r->has_accuracy) draw_anew(error, p, &c->error, &rng);
        const curves other = fit(p, loss, error);
        d.good[k] = (double)shortest_good(&other, p);
        for (size_t i = 0; i < r->n_lengths; i++) {
            d.loss[i * N_CURVES + k] = sp_power_law_at(&other.loss, (double)r->lengths[i].num_virtual_tokens);
            d.error[i * N_CURVES + k] = sp_power_law_at(&other.error, (double)r->lengths[i].num_virtual_tokens);
        }
    }
    set_ranges(p, c, &d);
    free(values);
    return SP_OK;
}

static sp_plan_curve describe(const sp_power_law *law)
{
    return (sp_plan_curve){law->floor, law->gain, law->rate, law->noise};
}

/* Pilots up to FIRST_PILOTS, then as long as the curve asks for longer prompts than were tried. */
static sp_status explore(planner *p)
{
    sp_plan_report *r = p->report;
    curves c;
    size_t n_tried = 0, n_wanted = 0, good;
    while (n_wanted < r->n_lengths && r->lengths[n_wanted].num_virtual_tokens <= FIRST_PILOTS) n_wanted++;
    for (;;) {
        p->n_pilots_planned = n_wanted * p->options.n_seeds;
        for (; n_tried < n_wanted; n_tried++) {
            sp_status st = try_length(p, &r->lengths[n_tried]);
            if (st) return st;
        }
        c = fit(p, p->loss, p->error);
        good = shortest_good(&c, p);
        if (good < n_tried) break;
        n_wanted++;
    }
    r->loss_curve = describe(&c.loss);
    r->error_curve = r->has_accuracy ? describe(&c.error) : (sp_plan_curve){NAN, NAN, NAN, NAN};
    r->num_virtual_tokens = r->lengths[good].num_virtual_tokens;
    return find_ranges(p, &c);
}

/* ---- all of it ---- */

sp_status sp_plan(sp_plan_report *out, sp_model *model, const sp_dataset *data, const sp_dataset *eval, const char *dir,
                  const sp_plan_options *options, const sp_hooks *hooks)
{
    static const sp_plan_options defaults;
    planner p = {.model = model, .dir = dir, .options = options ? *options : defaults, .hooks = hooks, .report = out};
    sp_task *task = NULL;
    *out = (sp_plan_report){0};
    p.begin = sp_seconds();
    sp_status st = resolve(&p.options);
    if (!st && sp_dataset_n_rows(data) < 2) st = sp_fail(SP_ERR_ARGUMENT, "one row is no task to plan for: give more");
    if (!st) st = sp_task_resolve(&task, &p.options.task, data);
    if (!st) {
        list_lengths(out, p.options.max_virtual_tokens);
        out->steps = p.options.steps;
        st = split_rows(&p, data, eval);
    }
    if (!st) st = measure_need(&p, task);
    if (!st) st = measure_costs(&p, task);
    p.options.task = task ? *task : p.options.task; /* resolved from all rows: a label may be among those held out only */
    if (!st) st = explore(&p);
    out->seconds = sp_seconds() - p.begin;
    sp_dataset_free(p.rest);
    sp_dataset_free(p.held_out);
    sp_task_free(task);
    return st;
}
