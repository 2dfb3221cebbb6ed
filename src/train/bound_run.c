/* bound_run.c: a run whose keys are bounded, or penalised where they cannot be projected.
 *
 * Queries move with the prompt, in all layers but the first. So the norms that radii come from are measured at the start, every
 * MEASURE_EVERY steps, and, where keys are projected, before each evaluation and the end as often as it takes until measured
 * queries and projected keys agree. Directions and norms are in the checkpoint: a run that is resumed measures nothing that one
 * that was not has not. */
#include "train/bound_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/sizes.h"
#include "base/status.h"
#include "prompt/prompt.h"
#include "tensor/symmetric.h"

static const uint64_t ROWS_STREAM = 0x6b65797300000000; /* "keys": which rows are measured */

/* Norms that grew while settling are taken a little larger than they are, so that few rounds do. */
static const double MARGIN = 1e-3;

/* Of what a value differs from the first token's, when training starts. */
static const double VALUES_KEPT = 0.1;

enum { MEASURED_ROWS = 128, REPORTED_ROWS = 256, MEASURE_EVERY = 40, MAX_ROUNDS = 40 };

/* ---- opening ----------------------------------------------------------------------------------------------------------- */

sp_status sp_bound_run_open(sp_trainer *t)
{
    sp_model_info info;
    if (t->options.max_logit == 0) return SP_OK;
    if (sp_train_options_penalize(&t->options)) {
        sp_status st = sp_penalizer_create(&t->penalizer, t->model, t->prompt);
        if (st) return st;
    }
    sp_model_get_info(&info, t->model);
    const size_t rank = t->options.key_rank ? t->options.key_rank : info.d_head;
    if (rank > info.d_head)
        return sp_fail(SP_ERR_ARGUMENT, "key_rank is %zu, and a key of this model has %zu numbers; give 1 to %zu", rank,
                       info.d_head, info.d_head);
    return sp_key_bound_create(&t->bound, t->options.max_logit, rank, &info, sp_prompt_num_virtual_tokens(t->prompt));
}

void sp_bound_run_clear(sp_trainer *t)
{
    sp_key_bound_free(t->bound);
    sp_penalizer_free(t->penalizer);
    sp_key_meter_free(t->meter);
    free(t->measured_rows);
}

/* ---- measuring ----------------------------------------------------------------------------------------------------------- */

/* Some of n rows, seeded; *n_drawn of them. */
static sp_status draw_rows(size_t **out, size_t *n_drawn, size_t n, size_t most, uint64_t seed)
{
    size_t *rows = *out = malloc(n * sizeof *rows);
    if (!rows) return sp_fail_no_memory(n * sizeof *rows);
    sp_rng rng = sp_rng_seed(seed, ROWS_STREAM);
    sp_rng_permute(&rng, rows, n);
    *n_drawn = sp_smaller(n, most);
    return SP_OK;
}

/* The keys that a task's rows stand behind, of all of its layers. */
static sp_status keys_of_task(const float **keys_values, sp_trainer *t, size_t task)
{
    const float *rows = sp_prompt_task_rows(t->prompt, task);
    *keys_values = rows;
    return t->penalizer ? sp_penalizer_keys_values(keys_values, t->penalizer, rows) : SP_OK;
}

/* Each row of data behind its own task's keys; norms, entries and scores are the largest of all tasks'. */
static sp_status read_rows(sp_key_figures *figures, sp_trainer *t, const sp_encoded_data *data, const size_t *rows, size_t n)
{
    size_t *own = malloc(n * sizeof *own);
    sp_status st = own ? SP_OK : sp_fail_no_memory(n * sizeof *own);
    for (size_t task = 0; task < sp_prompt_num_tasks(t->prompt) && !st; task++) {
        const float *keys_values;
        size_t n_own = 0;
        for (size_t i = 0; i < n; i++)
            if ((data->tasks ? data->tasks[rows[i]] : 0) == task) own[n_own++] = rows[i];
        if (n_own == 0) continue;
        st = keys_of_task(&keys_values, t, task);
        if (!st) st = sp_key_meter_read(figures, t->meter, t->bound, keys_values, data, own, n_own);
    }
    free(own);
    return st;
}

static sp_status read_queries(sp_key_figures *figures, sp_trainer *t)
{
    return read_rows(figures, t, &t->train, t->measured_rows, t->n_measured_rows);
}

/* norms (n_heads) written */
static sp_status measure_norms(float *norms, sp_trainer *t)
{
    sp_key_figures figures = {.query_norms = norms};
    memset(norms, 0, sp_key_bound_n_heads(t->bound) * sizeof *norms);
    return read_queries(&figures, t);
}

/* Directions: of each head those in which its queries, behind the prompt that training starts with, are longest. */
static sp_status find_directions(sp_trainer *t)
{
    sp_key_bound *b = t->bound;
    const size_t d = b->d_head, n_heads = sp_key_bound_n_heads(b);
    double *moments = calloc(n_heads * d * d, sizeof *moments), *vectors = malloc(d * d * sizeof *vectors);
    sp_key_figures figures = {.moments = moments};
    sp_status st = moments && vectors ? read_queries(&figures, t) : sp_fail_no_memory(n_heads * d * d * sizeof *moments);
    for (size_t h = 0; h < n_heads && !st; h++) {
        sp_symmetric_eigen(moments + h * d * d, vectors, d);
        for (size_t i = 0; i < b->rank * d; i++) b->directions[h * b->rank * d + i] = (float)vectors[i];
    }
    free(moments);
    free(vectors);
    return st;
}

static sp_status measure_and_project(sp_trainer *t)
{
    sp_status st = measure_norms(t->bound->query_norms, t);
    if (!st && !t->penalizer) sp_key_bound_project(t->weights, t->bound);
    return st;
}

/* Models rest attention on their first token: its key stands far from the others and its value says next to nothing. Keys that have
 * to stay together can not hold it apart, and without it a prompt of a text's keys and values drowns the text. So the keys move
 * together to half way between it and the others, and the values most of the way to its value. */
static void rest_attention(sp_trainer *t)
{
    const sp_key_bound *b = t->bound;
    const size_t n = b->n_keys, d = b->d_head, width = 2 * sp_key_bound_n_heads(b) * d;
    for (size_t h = 0; h < sp_key_bound_n_heads(b); h++)
        for (size_t i = 0; i < d; i++) {
            float *key = t->weights + sp_key_bound_column(b, h) + i, *value = key + b->n_head_kv * d;
            const double first = (double)key[0], resting = (double)value[0];
            double others = 0;
            for (size_t j = 1; j < n; j++) others += (double)key[j * width] / (double)(n - 1);
            for (size_t j = 0; j < n && n > 1; j++) key[j * width] += (float)((j ? first - others : others - first) / 2);
            for (size_t j = 1; j < n; j++) value[j * width] = (float)(resting + VALUES_KEPT * ((double)value[j * width] - resting));
        }
}

/* Twice: the first projection moves the keys far, and the queries with them. */
static sp_status start(sp_trainer *t)
{
    const sp_prompt_options *o = &t->options.prompt;
    if (t->penalizer) return measure_and_project(t);
    sp_status st = find_directions(t);
    if (!o->init_prompt && o->init != SP_INIT_RANDOM) rest_attention(t);
    if (!st) st = measure_and_project(t);
    return st ? st : measure_and_project(t);
}

sp_status sp_bound_run_prepare(sp_trainer *t)
{
    if (!t->bound) return SP_OK;
    sp_status st = sp_key_meter_create(&t->meter, t->model);
    if (!st) st = draw_rows(&t->measured_rows, &t->n_measured_rows, t->train.n, MEASURED_ROWS, t->options.seed);
    return st || t->state.step ? st : start(t);
}

sp_status sp_bound_run_step(sp_trainer *t)
{
    if (!t->bound) return SP_OK;
    if ((t->state.step + 1) % MEASURE_EVERY == 0) return measure_and_project(t);
    if (!t->penalizer) sp_key_bound_project(t->weights, t->bound);
    return SP_OK;
}

/* Each example brings the penalty of the prompt that it stands behind: where tasks share a run, its mean over tasks is as theirs in
 * the step, and prompts that the step does not move cost nothing. */
sp_status sp_bound_run_penalize(double *penalty, sp_trainer *t, size_t n_examples)
{
    sp_status st = SP_OK;
    *penalty = 0;
    for (size_t task = 0; t->penalizer && task < sp_prompt_num_tasks(t->prompt) && !st; task++) {
        const float *rows = sp_prompt_task_rows(t->prompt, task);
        size_t n = 0;
        double own;
        for (size_t i = 0; i < n_examples; i++) n += t->items[i].root == task;
        if (n == 0) continue;
        const double weight = t->options.max_logit_weight * (double)n / (double)n_examples;
        st = sp_penalizer_add(&own, t->d_rows + (rows - sp_prompt_task_rows(t->prompt, 0)), t->penalizer, t->bound, rows, weight);
        if (!st) *penalty += weight * own;
    }
    return st;
}

/* The first round takes what it measures, so that keys may grow where queries have shrunk; the others only what has grown. */
sp_status sp_bound_run_settle(sp_trainer *t)
{
    if (!t->bound || t->penalizer) return SP_OK;
    const size_t n_heads = sp_key_bound_n_heads(t->bound);
    float *norms = t->bound->query_norms, *measured = malloc(n_heads * sizeof *measured);
    bool moved = true;
    sp_status st = measured ? SP_OK : sp_fail_no_memory(n_heads * sizeof *measured);
    for (int round = 0; round < MAX_ROUNDS && moved && !st; round++) {
        if ((st = measure_norms(measured, t))) break;
        for (size_t h = 0; h < n_heads; h++)
            if (round == 0 || measured[h] > norms[h]) norms[h] = (float)((double)measured[h] * (round ? 1 + MARGIN : 1));
        moved = sp_key_bound_project(t->weights, t->bound);
    }
    free(measured);
    if (st || !moved) return st;
    return sp_fail(SP_ERR_UNSUPPORTED,
                   "step %zu: queries and bounded keys do not come to rest in %d rounds; train with a lower learning rate",
                   (size_t)t->state.step, MAX_ROUNDS);
}

/* ---- what was reached ------------------------------------------------------------------------------------------------------- */

/* What the keys of each head (n_heads) are like: the largest norm and the largest entry about their mean, of all tasks. */
typedef struct key_sizes {
    double *norms, *entries;
} key_sizes;

static sp_status measure_keys(const key_sizes *out, sp_trainer *t)
{
    sp_status st = SP_OK;
    for (size_t task = 0; task < sp_prompt_num_tasks(t->prompt) && !st; task++) {
        const float *keys_values;
        if ((st = keys_of_task(&keys_values, t, task))) break;
        for (size_t h = 0; h < sp_key_bound_n_heads(t->bound); h++) {
            double norm, entry;
            sp_key_bound_measure(&norm, &entry, keys_values, t->bound, h);
            out->norms[h] = fmax(out->norms[h], norm);
            out->entries[h] = fmax(out->entries[h], entry);
        }
    }
    return st;
}

/* Of the queries that the bound was measured for. */
static double largest_bound(const sp_key_bound *b, const key_sizes *keys)
{
    double largest = 0;
    for (size_t h = 0; h < sp_key_bound_n_heads(b); h++) largest = fmax(largest, keys->norms[h] * (double)b->query_norms[h]);
    return largest;
}

/* Of what was seen of queries, with the keys as they are. */
static void sum_up(sp_key_bound_report *out, const sp_key_figures *figures, const key_sizes *keys, const sp_key_bound *b)
{
    const double log_n = log((double)b->n_keys);
    out->training_bound = largest_bound(b, keys);
    for (size_t h = 0; h < sp_key_bound_n_heads(b); h++) {
        const double entries = sqrt((double)b->rank * figures->scale * keys->entries[h] * figures->query_entries[h]);
        out->bound = fmax(out->bound, keys->norms[h] * (double)figures->query_norms[h]);
        out->score = fmax(out->score, figures->scores[h]);
        out->entries = fmax(out->entries, entries);
        out->n_scores_inside += figures->scores[h] <= log_n;
        out->n_entries_inside += entries <= sqrt(log_n);
    }
    out->n_rows = figures->n_rows;
}

static sp_status measure_report(sp_key_bound_report *out, sp_trainer *t, const sp_encoded_data *data, const size_t *rows, size_t n)
{
    const size_t n_heads = sp_key_bound_n_heads(t->bound);
    double *numbers = calloc(5 * n_heads, sizeof *numbers);
    if (!numbers) return sp_fail_no_memory(5 * n_heads * sizeof *numbers);
    sp_key_figures figures = {
        .scores = numbers, .query_entries = numbers + n_heads, .query_norms = (float *)(numbers + 2 * n_heads)};
    const key_sizes keys = {.norms = numbers + 3 * n_heads, .entries = numbers + 4 * n_heads};
    sp_status st = read_rows(&figures, t, data, rows, n);
    if (!st) st = measure_keys(&keys, t);
    if (!st) sum_up(out, &figures, &keys, t->bound);
    free(numbers);
    return st;
}

sp_status sp_bound_run_finish(sp_trainer *t)
{
    if (!t->bound) return SP_OK;
    sp_key_bound_report *report = &t->state.key_bound;
    const sp_encoded_data *held_out = t->judged && t->judged != &t->train ? t->judged : NULL;
    size_t *rows = NULL, n = 0;
    *report = (sp_key_bound_report){.max_logit = t->bound->max_logit,
                                    .key_rank = t->bound->rank,
                                    .n_heads = sp_key_bound_n_heads(t->bound),
                                    .is_penalty = t->penalizer != NULL,
                                    .are_held_out = held_out != NULL};
    sp_status st = t->penalizer ? measure_norms(t->bound->query_norms, t) : sp_bound_run_settle(t);
    if (!st && held_out) st = draw_rows(&rows, &n, held_out->n, REPORTED_ROWS, t->options.seed);
    if (!st)
        st = held_out ? measure_report(report, t, held_out, rows, n)
                      : measure_report(report, t, &t->train, t->measured_rows, t->n_measured_rows);
    free(rows);
    if (!st) sp_prompt_set_key_bound(t->prompt, report);
    return st;
}
