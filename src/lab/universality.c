/* universality.c: sp_lab_universality: builds a frozen transformer, gives it the prompt of a function, and measures how far the two
 * are apart, against the bound that is proved.
 *
 *   error   d_p = (mean over X of sum |net - f|^p)^{1/p}, X uniform in the cube; the interval is the normal one of the mean
 *   sup     the largest difference over these, and over points chosen to be hard: grid points, corners, ramps
 *   order   the slope of log d_2 over log delta, over the grid and the coarser ones below it
 *
 * Cost: samples * d len * num_virtual_tokens * (bits + d), most of it exponentials. */
#include <inttypes.h>
#include <math.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"
#include "base/sizes.h"
#include "base/status.h"
#include "lab/export.h"
#include "lab/universal.h"

enum {
    DEFAULT_GRID = 16,
    DEFAULT_SAMPLES = 10000,
    N_CONTROL = 2000,
    N_PROBES = 32,
    MAX_NUMBERS = 16, /* d len */
    ENTRY_BYTES = 24, /* of a weight, as net.c keeps it */
    N_PATTERNS = 4,   /* of hard points */
    N_SIMPSON = 20000 /* intervals, even: a ramp's middle is steep */
};
static const uint64_t SAMPLE_STREAM = 0x73616d706c, HARD_STREAM = 0x68617264, SHUFFLE_STREAM = 0x73687566;
static const double DEFAULT_RAMP = 1.0 / 16, OTHER_BY = 0.05; /* in the mean */

/* One function on one net. */
typedef struct trial {
    const sp_universal *universal;
    const sp_target_function *f;
    double *prompt;
    size_t n; /* d len */
    double *x, *y, *gaps;
} trial;

typedef struct experiment {
    sp_universality_options options; /* resolved, but for the grid */
    sp_target_function f;
    sp_target_table *table;
    sp_target_expression *expression;
    const sp_hooks *hooks;
    double begin;
} experiment;

/* ---- options ---- */

static sp_status resolve_function(experiment *e)
{
    const sp_universality_options *o = &e->options;
    size_t n = o->d * o->len;
    if ((o->function != NULL) + (o->table_path != NULL) + (o->expression != NULL) > 1)
        return sp_fail(SP_ERR_ARGUMENT, "a function by name, a table and an expression are three; give one of them");
    if (o->table_path) return sp_target_table_load(&e->table, &e->f, o->table_path, n);
    if (o->expression) return sp_target_expression_create(&e->expression, &e->f, o->expression, n, o->lipschitz);
    const sp_target_function *found = sp_target_function_find(o->function ? o->function : "identity");
    if (!found)
        return sp_fail(SP_ERR_ARGUMENT,
                       "\"%.60s\" is no function here; there are identity, reverse, sort, mean, max, sine, bump and rotate",
                       o->function);
    e->f = *found;
    return SP_OK;
}

static sp_status resolve_grid(experiment *e)
{
    sp_universality_options *o = &e->options;
    double ramp = o->ramp > 0 ? o->ramp : DEFAULT_RAMP;
    size_t wanted = o->epsilon > 0 ? sp_universal_grid_for(o->construction, e->f.lipschitz, ramp, o->epsilon) : DEFAULT_GRID;
    if (wanted == 0)
        return sp_fail(SP_ERR_ARGUMENT, "an error of %g for a function of slope %g takes a grid beyond 2^62; allow a larger one",
                       o->epsilon, e->f.lipschitz);
    if (o->grid == 0) o->grid = wanted;
    if (o->grid < 2 || (o->grid & (o->grid - 1)))
        return sp_fail(SP_ERR_ARGUMENT, "a grid of %zu is no power of two of at least 2; give 2, 4, 8, ...", o->grid);
    if (o->epsilon > 0 && o->grid < wanted)
        return sp_fail(
            SP_ERR_ARGUMENT,
            "a grid of %zu cannot promise an error of %g for a function of slope %g: its bound is %g; a grid of %zu does", o->grid,
            o->epsilon, e->f.lipschitz, e->f.lipschitz * (1 + o->ramp) / 2 / (double)o->grid, wanted);
    return SP_OK;
}

static sp_status resolve(experiment *e, const sp_universality_options *options)
{
    sp_universality_options *o = &e->options;
    *o = *options;
    if (o->d == 0) o->d = 1;
    if (o->len == 0) o->len = 1;
    if (o->n_samples == 0) o->n_samples = DEFAULT_SAMPLES;
    if (o->d > MAX_NUMBERS || o->len > MAX_NUMBERS || o->d * o->len > MAX_NUMBERS)
        return sp_fail(SP_ERR_ARGUMENT, "%zu tokens of %zu numbers: the table has grid^%zu cells; at most %d numbers are accepted",
                       o->len, o->d, o->d * o->len, MAX_NUMBERS);
    if ((unsigned)o->construction > SP_DIGITS) return sp_fail(SP_ERR_ARGUMENT, "unknown construction %d", (int)o->construction);
    if (!(o->ramp >= 0 && o->ramp <= 1) || !(o->epsilon >= 0) || !(o->lipschitz >= 0))
        return sp_fail(SP_ERR_ARGUMENT,
                       "ramp %g, epsilon %g, lipschitz %g: a ramp in (0, 1] and numbers of at least 0 were expected", o->ramp,
                       o->epsilon, o->lipschitz);
    sp_status st = resolve_function(e);
    return st ? st : resolve_grid(e);
}

/* ---- building ---- */

/* Bytes of a net and of a prompt's stream, about; beyond the machine's memory nothing is begun. */
static sp_status check_memory(const sp_universal_shape *shape, sp_construction construction)
{
    sp_machine machine;
    sp_machine_describe(&machine);
    double n_cells = pow((double)shape->grid, (double)(shape->d * shape->len)), n_prompt = n_cells * (double)shape->len;
    double n_bits = (double)(shape->d * shape->len) * (double)sp_log2(shape->grid), d = (double)shape->d, bytes = 0;
    if (construction == SP_LOOKUP) bytes = n_prompt * ((n_bits + 6) * ENTRY_BYTES + (4 * n_bits + 4 * d + 8) * sizeof(double));
    if (construction == SP_UNIFORM) /* every value has a channel, and every prompt token all channels */
        bytes = n_prompt * d * (2 * n_bits + 8) * ENTRY_BYTES + n_prompt * n_prompt * d * 2 * sizeof(double);
    if (bytes <= (double)machine.memory_bytes / 2) return SP_OK;
    return sp_fail(SP_ERR_MEMORY,
                   "a table of %.3g values takes about %.3g GB here, more than half of this machine's %.3g GB; use a smaller grid",
                   n_prompt * d, bytes / 1e9, (double)machine.memory_bytes / 1e9);
}

/* Of INDEX: the named functions, and the caller's behind them where it is none of these. */
static size_t list_family(sp_target_function *family, const sp_target_function *f)
{
    memcpy(family, sp_target_functions, sp_n_target_functions * sizeof *family);
    if (sp_target_function_find(f->name)) return sp_n_target_functions;
    family[sp_n_target_functions] = *f;
    return sp_n_target_functions + 1;
}

static size_t index_of(const sp_target_function *f)
{
    const sp_target_function *found = sp_target_function_find(f->name);
    return found ? (size_t)(found - sp_target_functions) : sp_n_target_functions;
}

static sp_status build(sp_universal *out, const experiment *e, size_t grid)
{
    const sp_universality_options *o = &e->options;
    sp_universal_shape shape = {o->d, o->len, grid, o->ramp, o->is_deep};
    sp_status st = check_memory(&shape, o->construction);
    if (st) return st;
    if (shape.ramp == 0) /* an id that is not whole may be any function's: INDEX wants narrow ramps */
        shape.ramp = o->construction == SP_INDEX ? 1 / (64.0 * (double)grid * (double)grid) : DEFAULT_RAMP;
    sp_target_function family[sp_n_target_functions + 1];
    switch (o->construction) {
    case SP_LOOKUP:
        return sp_universal_lookup(out, &shape);
    case SP_UNIFORM:
        return sp_universal_uniform(out, &shape);
    case SP_DIGITS:
        return sp_universal_digits(out, &shape);
    case SP_INDEX:
        return sp_universal_index(out, &shape, family, list_family(family, &e->f));
    }
    return SP_ERR_ARGUMENT;
}

static sp_status make_prompt(double *prompt, const sp_universal *u, const sp_target_function *f)
{
    if (u->n_functions) sp_universal_index_prompt(prompt, u, index_of(f));
    if (u->n_functions) return SP_OK;
    return u->n_levels ? sp_universal_digits_prompt(prompt, u, f) : sp_universal_table_prompt(prompt, u, f);
}

/* ---- measuring ---- */

/* Is a number on one of the ramps, which lie around the borders between cells? */
static bool is_on_ramp(const sp_universal_shape *shape, double x)
{
    double steps = x * (double)shape->grid, border = nearbyint(steps);
    return border > 0 && border < (double)shape->grid && fabs(steps - border) < shape->ramp / 2 * (1 + 1e-9);
}

static bool any_on_ramp(const sp_universal_shape *shape, const double *x, size_t n)
{
    for (size_t k = 0; k < n; k++)
        if (is_on_ramp(shape, x[k])) return true;
    return false;
}

static void draw_samples(double *x, size_t n, uint64_t seed)
{
    sp_rng rng = sp_rng_seed(seed, SAMPLE_STREAM);
    for (size_t i = 0; i < n; i++) x[i] = sp_rng_uniform(&rng);
}

/* Points where the net has most to lose: on the grid, in corners, on ramps, and these mixed with random numbers. */
static void draw_hard(double *x, const sp_universal_shape *shape, size_t n, uint64_t seed)
{
    size_t n_each = shape->d * shape->len;
    double g = (double)shape->grid;
    sp_rng rng = sp_rng_seed(seed, HARD_STREAM);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < n_each; k++, x++) {
            double border = (double)sp_rng_below(&rng, shape->grid + 1) / g, u = sp_rng_uniform(&rng);
            switch (i % N_PATTERNS) {
            case 0:
                *x = border;
                break;
            case 1:
                *x = (double)(i / N_PATTERNS >> k % 16 & 1); /* all corners in turn */
                break;
            case 2:
                *x = fmin(fmax(border + (u - 0.5) * shape->ramp / g, 0), 1);
                break;
            default:
                *x = sp_rng_below(&rng, 2) ? u : fmin(fmax(border + (u - 0.5) * shape->ramp / g, 0), 1);
            }
        }
}

/* Runs the net on the trial's x (n_points); y becomes net - f. */
static sp_status run(trial *t, size_t n_points)
{
    double f[MAX_NUMBERS];
    sp_status st = sp_net_forward(t->y, t->gaps, t->universal->net, t->prompt, t->x, n_points, false);
    for (size_t i = 0; i < n_points && !st; i++) {
        sp_target_evaluate(f, t->f, t->x + i * t->n, t->n);
        for (size_t k = 0; k < t->n; k++) t->y[i * t->n + k] -= f[k];
    }
    return st;
}

/* d_p and the 95 % interval of it, from that of the mean of sum |difference|^p. */
static void average(double *error, double ci95[2], const trial *t, size_t n_points, int p)
{
    double sum = 0, squares = 0, n = (double)n_points;
    for (size_t i = 0; i < n_points; i++) {
        double own = 0;
        for (size_t k = 0; k < t->n; k++) own += pow(fabs(t->y[i * t->n + k]), p);
        sum += own;
        squares += own * own;
    }
    double mean = sum / n, deviation = sqrt(fmax(squares / n - mean * mean, 0) / n);
    *error = pow(mean, 1.0 / p);
    ci95[0] = pow(fmax(mean - 1.96 * deviation, 0), 1.0 / p);
    ci95[1] = pow(mean + 1.96 * deviation, 1.0 / p);
}

/* The bound of INDEX says nothing on the ramps; the others' holds everywhere. */
static double largest(const trial *t, size_t n_points)
{
    double sup = 0;
    for (size_t i = 0; i < n_points; i++) {
        if (t->universal->n_functions && any_on_ramp(&t->universal->shape, t->x + i * t->n, t->n)) continue;
        for (size_t k = 0; k < t->n; k++) {
            double difference = fabs(t->y[i * t->n + k]);
            if (!(difference <= sup)) sup = difference; /* a NaN stays */
        }
    }
    return sup;
}

static double smallest_gap(const trial *t, size_t n_points)
{
    size_t len = t->universal->shape.len;
    double gap = INFINITY;
    for (size_t i = 0; i < n_points; i++)
        for (size_t l = 0; l < len && !any_on_ramp(&t->universal->shape, t->x + i * t->n, t->n); l++)
            gap = fmin(gap, t->gaps[i * len + l]);
    return isfinite(gap) ? gap : 0;
}

/* How far the output of the identity has come, between two cells' values (0, 1), where the quantiser has gone the share t of a
 * ramp. */
static double ramp_output(const sp_universal *u, double t)
{
    double delta = 1 / (double)u->shape.grid;
    if (u->n_functions) return t >= 0.5; /* INDEX's ramps are narrow, and its bound leaves them out */
    if (u->gap > 0) return 1 / (1 + exp(-u->gap * (2 * t - 1)));
    return t < 0.5 ? fmax(0, delta - (1 - 2 * t)) / delta : 1; /* the maximum of two candidates, each less its code's distance */
}

/* The mean over one ramp of the square of the error. Simpson's rule; offset: of a value from the middle of its cell. */
static double ramp_square(const sp_universal *u, double delta, double w, double offset)
{
    double sum = 0;
    for (int i = 0; i <= N_SIMPSON; i++) {
        double t = (double)i / N_SIMPSON, error = (t - 0.5) * w - (ramp_output(u, t) - 0.5) * delta - offset;
        sum += error * error * (i == 0 || i == N_SIMPSON ? 1 : i % 2 ? 4 : 2);
    }
    return sum / (3 * N_SIMPSON);
}

/* The integral of (x - offset)^2 */
static double integrate_square(double from, double to, double offset)
{
    return (pow(to - offset, 3) - pow(from - offset, 3)) / 3;
}

/* d_2 of the identity by quadrature. Its coordinates do not disturb each other, and of each the cells and the ramps between add up.
 */
static double identity_error(const sp_universal *u)
{
    double g = (double)u->shape.grid, delta = 1 / g, w = u->n_functions ? 0 : u->shape.ramp * delta, rest = (delta - w) / 2;
    double offset = u->n_levels ? 0.25 * delta : 0; /* 2 grid levels: the middle of a cell lies on the border of two */
    double cells = (g - 2) * integrate_square(-rest, rest, offset) + integrate_square(-delta / 2, rest, offset) +
                   integrate_square(-rest, delta / 2, offset);
    return sqrt((double)(u->shape.d * u->shape.len) * (cells + (g - 1) * w * ramp_square(u, delta, w, offset)));
}

static sp_status measure(sp_universality_point *out, double *gap, trial *t, const sp_universality_options *o)
{
    const sp_universal *u = t->universal;
    *out = (sp_universality_point){.grid = u->shape.grid,
                                   .num_virtual_tokens = u->num_virtual_tokens,
                                   .bound = sp_universal_bound(u, t->f->lipschitz),
                                   .identity_exact = identity_error(u)};
    draw_samples(t->x, o->n_samples * t->n, o->seed);
    sp_status st = run(t, o->n_samples);
    if (st) return st;
    for (int p = 1; p <= 2; p++) average(&out->error[p - 1], out->ci95[p - 1], t, o->n_samples, p);
    *gap = smallest_gap(t, o->n_samples);
    out->sup = largest(t, o->n_samples);
    draw_hard(t->x, &u->shape, o->n_samples, o->seed);
    if ((st = run(t, o->n_samples))) return st;
    double hard = largest(t, o->n_samples);
    if (!(hard <= out->sup)) out->sup = hard;
    return SP_OK;
}

/* ---- controls: what must be far off, or the measurement says nothing ---- */

static sp_status measure_other(double *ratio, trial *t, const sp_universality_options *o, double own)
{
    double error, ci95[2];
    size_t n = sp_smaller(N_CONTROL, o->n_samples);
    draw_samples(t->x, n * t->n, o->seed);
    sp_status st = run(t, n);
    if (st) return st;
    average(&error, ci95, t, n, 2);
    *ratio = own > 0 ? error / own : INFINITY;
    return SP_OK;
}

static void shuffle(double *prompt, size_t n, size_t d, uint64_t seed)
{
    sp_rng rng = sp_rng_seed(seed, SHUFFLE_STREAM);
    for (size_t i = n; i > 1; i--) {
        size_t j = sp_rng_below(&rng, i);
        for (size_t r = 0; r < d; r++) {
            double kept = prompt[(i - 1) * d + r];
            prompt[(i - 1) * d + r] = prompt[j * d + r];
            prompt[j * d + r] = kept;
        }
    }
}

/* The next function by name that is another one here: of a single number, reverse is the identity. NULL: there is none. */
static const sp_target_function *find_other(const trial *t, uint64_t seed)
{
    double x[MAX_NUMBERS], own[MAX_NUMBERS], others[MAX_NUMBERS];
    for (size_t i = 1; i < sp_n_target_functions; i++) {
        const sp_target_function *other = &sp_target_functions[(index_of(t->f) + i) % sp_n_target_functions];
        double difference = 0;
        for (size_t probe = 0; probe < N_PROBES; probe++) {
            draw_samples(x, t->n, seed + probe);
            sp_target_evaluate(own, t->f, x, t->n);
            sp_target_evaluate(others, other, x, t->n);
            for (size_t k = 0; k < t->n; k++) difference += fabs(own[k] - others[k]) / (double)(t->n * N_PROBES);
        }
        if (difference > OTHER_BY) return other;
    }
    return NULL;
}

/* The prompt of another function, and the own one in another order. */
static sp_status measure_controls(sp_universality_report *report, trial *t, const sp_universality_options *o)
{
    double own = report->at.error[1];
    const sp_target_function *other = find_other(t, o->seed);
    report->control_other = report->control_shuffled = NAN;
    sp_status st = other ? make_prompt(t->prompt, t->universal, other) : SP_OK;
    if (!st && other) st = measure_other(&report->control_other, t, o, own);
    if (!st) st = make_prompt(t->prompt, t->universal, t->f);
    if (st || t->universal->num_virtual_tokens < 2) return st;
    shuffle(t->prompt, t->universal->num_virtual_tokens, o->d, o->seed);
    st = measure_other(&report->control_shuffled, t, o, own);
    return st ? st : make_prompt(t->prompt, t->universal, t->f);
}

/* ---- one grid ---- */

static sp_status hash_tensor(void *user, const char *name, const double *values, size_t n_rows, size_t n_columns)
{
    struct sha256_ctx *hash = user;
    uint64_t shape[] = {n_rows, n_columns};
    sha256_update(hash, strlen(name), (const uint8_t *)name);
    sha256_update(hash, sizeof shape, (const uint8_t *)shape);
    sha256_update(hash, n_rows * n_columns * sizeof *values, (const uint8_t *)values);
    return SP_OK;
}

static sp_status describe_net(sp_universality_report *report, const sp_universal *u)
{
    const sp_net_size size = sp_net_get_size(u->net);
    struct sha256_ctx hash;
    uint8_t digest[SHA256_DIGEST_SIZE];
    report->n_channels = size.n_channels;
    report->depth = size.n_ffn + size.n_attention;
    report->n_attention = size.n_attention;
    report->max_ffn_width = size.max_ffn_width;
    report->max_rank = size.max_rank;
    report->weights_nonzero = size.n_weights_nonzero;
    report->max_weight = size.max_weight;
    report->gap_bound = u->gap;
    report->leakage = u->leakage;
    sha256_init(&hash);
    sp_status st = sp_net_visit(u->net, hash_tensor, &hash);
    sha256_digest(&hash, sizeof digest, digest);
    for (size_t i = 0; i < sizeof digest; i++) snprintf(report->weights_sha256 + 2 * i, 3, "%02x", digest[i]);
    return st;
}

static sp_status allocate_trial(trial *t, const sp_universal *u, const experiment *e)
{
    const sp_universality_options *o = &e->options;
    size_t n = o->d * o->len;
    *t = (trial){.universal = u, .f = &e->f, .n = n};
    t->prompt = calloc(u->num_virtual_tokens * o->d, sizeof *t->prompt);
    t->x = calloc(o->n_samples * n, sizeof *t->x);
    t->y = calloc(o->n_samples * n, sizeof *t->y);
    t->gaps = calloc(o->n_samples * o->len, sizeof *t->gaps);
    if (t->prompt && t->x && t->y && t->gaps) return SP_OK;
    return sp_fail_no_memory((u->num_virtual_tokens * o->d + 3 * o->n_samples * n) * sizeof(double));
}

static void free_trial(trial *t)
{
    free(t->prompt);
    free(t->x);
    free(t->y);
    free(t->gaps);
}

/* is_asked: the grid that was asked for, of which more is told than its point. */
static sp_status run_grid(sp_universality_point *point, sp_universality_report *report, experiment *e, size_t grid, bool is_asked)
{
    sp_universal u = {0};
    trial t = {0};
    double gap = 0;
    sp_status st = build(&u, e, grid);
    if (!st) st = allocate_trial(&t, &u, e);
    if (!st) st = make_prompt(t.prompt, &u, &e->f);
    if (!st) st = measure(point, &gap, &t, &e->options);
    if (!st && is_asked) {
        report->at = *point;
        report->gap = u.gap > 0 ? gap : 0;
        report->ramp = u.shape.ramp;
        st = describe_net(report, &u);
        if (!st) st = measure_controls(report, &t, &e->options);
        if (!st && e->options.export_dir) st = sp_universal_export(e->options.export_dir, &u, t.prompt, e->f.name, e->options.seed);
    }
    free_trial(&t);
    sp_universal_clear(&u);
    return st;
}

/* ---- all grids ---- */

/* Slope of log d_2 over log delta, least squares. */
static double fit_order(const sp_universality_report *report)
{
    double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;
    for (size_t i = 0; i < report->n_points; i++) {
        const sp_universality_point *p = &report->points[i];
        if (!(p->error[1] > 1e-13)) continue; /* exact: a constant, say */
        double x = -log((double)p->grid), y = log(p->error[1]);
        n++, sx += x, sy += y, sxx += x * x, sxy += x * y;
    }
    return n > 1 ? (n * sxy - sx * sy) / (n * sxx - sx * sx) : NAN;
}

static void tell_progress(const experiment *e, size_t done, size_t total)
{
    if (!e->hooks || !e->hooks->progress) return;
    const sp_progress progress = {.what = "grid", .done = done, .total = total, .seconds = sp_seconds() - e->begin, .loss = NAN};
    e->hooks->progress(e->hooks->user, &progress);
}

/* The grid that was asked for comes first: what it is refused for is known at once. */
static sp_status run_grids(sp_universality_report *report, experiment *e)
{
    size_t grid = e->options.grid, n = 1;
    while (n < SP_UNIVERSALITY_MAX_POINTS && grid >> n >= 2 && !e->options.only_grid) n++;
    for (size_t i = 0; i < n; i++) {
        if (e->hooks && e->hooks->stop && *e->hooks->stop) return sp_fail(SP_ERR_STOPPED, "stopped after %zu of %zu grids", i, n);
        tell_progress(e, i, n);
        sp_status st = run_grid(&report->points[n - 1 - i], report, e, grid >> i, i == 0);
        if (st) return st;
    }
    tell_progress(e, n, n);
    report->n_points = n;
    report->order = fit_order(report);
    return SP_OK;
}

sp_status sp_lab_universality(sp_universality_report *out, const sp_universality_options *options, const sp_hooks *hooks)
{
    static const sp_universality_options defaults;
    experiment e = {.hooks = hooks, .begin = sp_seconds()};
    *out = (sp_universality_report){0};
    sp_status st = resolve(&e, options ? options : &defaults);
    if (!st) st = run_grids(out, &e);
    snprintf(out->function, sizeof out->function, "%s", e.f.name ? e.f.name : "");
    out->lipschitz = e.f.lipschitz;
    out->lipschitz_is_estimated = e.expression && e.options.lipschitz == 0;
    out->n_samples = e.options.n_samples;
    out->seconds = sp_seconds() - e.begin;
    sp_target_table_free(e.table);
    sp_target_expression_free(e.expression);
    return st;
}
