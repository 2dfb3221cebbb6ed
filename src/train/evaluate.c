/* evaluate.c: rows scored in batches, each a token tree; counts; one line a row for whoever wants it.
 *
 *   labels        the candidate of the largest log-probability, summed over its tokens, is the prediction
 *   completions   exact match: greedy decoding would say every token, which teacher forcing shows without decoding
 *   text          its loss alone
 * Loss and perplexity are those of the right answer. Cost: a row a token of the data, a few more a candidate of several tokens. */
#include "train/evaluate.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "format/json.h"
#include "train/ensemble.h"
#include "train/metrics.h"

enum { DEFAULT_BATCH_SIZE = 32 };

/* One evaluation in progress. */
typedef struct tally {
    const sp_evaluation_inputs *inputs;
    sp_scorer *scorer;
    sp_item *items; /* (items_capacity) of a batch: the candidates of its rows, one after the other */
    size_t items_capacity;
    double *logprobs;                              /* (n_labels) of one row */
    size_t *hits, *n_true, *n_predicted, n_labels; /* (n_labels) each */
    size_t n_labelled, n_right;                    /* rows with a label */
    size_t n_completions, n_exact;                 /* rows with an answer of their own */
    size_t n_rows, n_tokens;                       /* answer tokens of the right candidates */
    double sum_of_means, sum_of_nll;
    sp_buffer predictions;
} tally;

/* What became of one row, for the predictions file. */
typedef struct outcome {
    size_t index; /* among the rows scored */
    const sp_encoded_row *row;
    double nll;        /* of the right answer, all tokens */
    size_t prediction; /* label rows */
    bool is_exact;     /* completions */
} outcome;

static bool has_labels(const tally *t, size_t index)
{
    return t->inputs->data->sources[index]->kind == SP_ROW_LABEL;
}

/* ---- the predictions file ---- */

static json_t *text_member(const char *text)
{
    return sp_json_text(text, strlen(text));
}

static json_t *describe_labels(const tally *t, const outcome *o)
{
    const sp_verbalizer *labels = t->inputs->task->verbalizers;
    json_t *logprobs = json_object();
    bool ok = logprobs != NULL;
    for (size_t i = 0; i < o->row->n_candidates && ok; i++) {
        json_t *value = isfinite(t->logprobs[i]) ? json_real(t->logprobs[i]) : json_null();
        ok = json_object_set_new(logprobs, labels[i].label, value) == 0;
    }
    if (!ok) {
        json_decref(logprobs);
        return NULL;
    }
    return json_pack("{s:o, s:o, s:o}", "label", text_member(labels[o->row->right].label), "prediction",
                     text_member(labels[o->prediction].label), "logprobs", logprobs);
}

static json_t *describe_answer(const outcome *o, bool is_completion)
{
    json_t *object = json_object();
    bool ok = object != NULL;
    if (ok && is_completion) ok = json_object_set_new(object, "exact_match", json_boolean(o->is_exact)) == 0;
    if (ok) ok = json_object_set_new(object, "logprob", isfinite(o->nll) ? json_real(-o->nll) : json_null()) == 0;
    if (ok) ok = json_object_set_new(object, "tokens", json_integer((json_int_t)o->row->n_candidate[o->row->right])) == 0;
    if (ok) return object;
    json_decref(object);
    return NULL;
}

/* {"row": 0, "line": 1, ...}: the row's number among the rows scored, and its line in the file. */
static sp_status add_prediction(tally *t, const outcome *o)
{
    if (!t->inputs->predictions_path) return SP_OK;
    const sp_row *row = t->inputs->data->sources[o->index];
    json_t *members = row->kind == SP_ROW_LABEL ? describe_labels(t, o) : describe_answer(o, row->kind != SP_ROW_TEXT);
    json_t *object = json_pack("{s:I, s:I}", "row", (json_int_t)o->index, "line", (json_int_t)row->line);
    char *line = NULL;
    bool ok = members && object && json_object_update(object, members) == 0;
    sp_status st = ok ? sp_json_dump(&line, object, JSON_REAL_PRECISION(9)) /* f32 logits hold no more */
                      : sp_json_fail_no_memory();
    json_decref(members);
    json_decref(object);
    if (!st) st = sp_buffer_printf(&t->predictions, "%s\n", line);
    free(line);
    return st;
}

static sp_status write_predictions(const tally *t)
{
    const char *path = t->inputs->predictions_path;
    const sp_bytes all = {t->predictions.bytes, t->predictions.n_bytes};
    return path ? sp_write_file_atomic(path, &all, 1) : SP_OK;
}

/* ---- counting ---- */

/* Sums for now; summarise_tasks makes means of them. */
static void count_task(const tally *t, const outcome *o, bool is_labelled, double loss)
{
    const size_t *tasks = t->inputs->data->tasks, task_id = tasks ? tasks[o->index] : 0;
    if (task_id >= t->inputs->n_tasks) return;
    sp_task_evaluation *task = &t->inputs->tasks[task_id];
    task->n++;
    task->accuracy += is_labelled && o->prediction == o->row->right;
    task->exact_match += o->is_exact;
    task->loss += loss;
}

/* nll: of the row's candidates, token by token; first_item: where they stand in the last pass. */
static sp_status count_row(tally *t, size_t index, const double *nll, size_t first_item)
{
    outcome o = {.index = index, .row = &t->inputs->data->rows[index]};
    bool is_labelled = has_labels(t, index), is_text = t->inputs->data->sources[index]->kind == SP_ROW_TEXT;
    sp_status st = SP_OK;
    for (size_t c = 0; c < o.row->n_candidates; nll += o.row->n_candidate[c++]) {
        double sum = 0;
        for (size_t k = 0; k < o.row->n_candidate[c]; k++) sum += nll[k];
        if (is_labelled) t->logprobs[c] = -sum;
        if (is_labelled && t->logprobs[c] > t->logprobs[o.prediction]) o.prediction = c;
        if (c == o.row->right) o.nll = sum;
    }
    size_t n_answer = o.row->n_candidate[o.row->right];
    t->n_rows++;
    t->n_tokens += n_answer;
    t->sum_of_nll += o.nll;
    t->sum_of_means += o.nll / (double)n_answer;
    if (is_labelled) {
        t->n_labelled++;
        t->n_right += o.prediction == o.row->right;
        t->hits[o.prediction] += o.prediction == o.row->right;
        t->n_true[o.row->right]++;
        t->n_predicted[o.prediction]++;
    } else if (!is_text) {
        st = sp_scorer_is_greedy(&o.is_exact, t->scorer, first_item + o.row->right);
        t->n_completions++;
        t->n_exact += o.is_exact;
    }
    count_task(t, &o, is_labelled, o.nll / (double)n_answer);
    return st ? st : add_prediction(t, &o);
}

static sp_status reserve_items(tally *t, size_t n)
{
    if (n <= t->items_capacity) return SP_OK;
    sp_item *larger = realloc(t->items, n * sizeof *larger);
    if (!larger) return sp_fail_no_memory(n * sizeof *larger);
    t->items = larger;
    t->items_capacity = n;
    return SP_OK;
}

/* Rows first .. first + *n_rows, as many as the batch size and one pass allow. */
static sp_status score_batch(size_t *n_rows, tally *t, size_t first)
{
    const sp_encoded_data *data = t->inputs->data;
    size_t n_items = 0, n = 0;
    for (; n < t->inputs->batch_size && first + n < data->n; n++) {
        const sp_encoded_row *row = &data->rows[first + n];
        sp_status st = reserve_items(t, n_items + row->n_candidates);
        if (st) return st;
        for (size_t c = 0; c < row->n_candidates; c++) t->items[n_items + c] = sp_encoded_item(data, first + n, c);
        if (n > 0 && sp_scorer_fit(t->items, n_items + row->n_candidates) < n_items + row->n_candidates) break;
        n_items += row->n_candidates;
    }
    const double *nll;
    sp_status st = sp_scorer_score(&nll, t->scorer, t->items, n_items);
    for (size_t r = 0, item = 0; r < n && !st; r++) {
        const sp_encoded_row *row = &data->rows[first + r];
        st = count_row(t, first + r, nll, item);
        for (size_t c = 0; c < row->n_candidates; c++, item++) nll += row->n_candidate[c];
    }
    *n_rows = n;
    return st;
}

static void summarise(sp_evaluation *out, const tally *t)
{
    *out = (sp_evaluation){.n = t->n_rows, .n_truncated = t->inputs->data->n_truncated};
    out->compiled = sp_scorer_compiled_use(t->scorer);
    out->loss = t->sum_of_means / (double)t->n_rows;
    out->perplexity = exp(t->sum_of_nll / (double)t->n_tokens);
    out->has_accuracy = t->n_labelled > 0;
    out->has_exact_match = t->n_completions > 0;
    if (out->has_accuracy) {
        out->accuracy = (double)t->n_right / (double)t->n_labelled;
        out->macro_f1 = sp_macro_f1(t->hits, t->n_true, t->n_predicted, t->n_labels);
        sp_wilson_interval(out->accuracy_ci95, t->n_right, t->n_labelled);
    }
    if (out->has_exact_match) {
        out->exact_match = (double)t->n_exact / (double)t->n_completions;
        sp_wilson_interval(out->exact_match_ci95, t->n_exact, t->n_completions);
    }
}

static void summarise_tasks(const tally *t)
{
    for (size_t k = 0; k < t->inputs->n_tasks; k++) {
        sp_task_evaluation *task = &t->inputs->tasks[k];
        const double n = task->n ? (double)task->n : 1;
        task->accuracy /= n;
        task->exact_match /= n;
        task->loss /= n;
    }
}

static void report_progress(const sp_hooks *hooks, const tally *t, double seconds)
{
    if (!hooks || !hooks->progress) return;
    const sp_progress progress = {.what = "eval",
                                  .done = t->n_rows,
                                  .total = t->inputs->data->n,
                                  .seconds = seconds,
                                  .rows_per_second = seconds > 0 ? (double)t->n_rows / seconds : 0,
                                  .loss = t->sum_of_means / (double)t->n_rows};
    hooks->progress(hooks->user, &progress);
}

static sp_status score_all(tally *t, const sp_hooks *hooks, double begin)
{
    for (size_t first = 0, n; first < t->inputs->data->n; first += n) {
        if (hooks && hooks->stop && *hooks->stop)
            return sp_fail(SP_ERR_STOPPED, "stopped after %zu of %zu rows", first, t->inputs->data->n);
        sp_status st = score_batch(&n, t, first);
        if (st) return st;
        report_progress(hooks, t, sp_seconds() - begin);
    }
    return write_predictions(t);
}

sp_status sp_evaluate_encoded(sp_evaluation *out, sp_scorer *scorer, const sp_evaluation_inputs *inputs, const sp_hooks *hooks)
{
    double begin = sp_seconds();
    size_t n_labels = inputs->task->n_verbalizers;
    tally t = {.inputs = inputs, .scorer = scorer, .n_labels = n_labels};
    *out = (sp_evaluation){0};
    for (size_t k = 0; k < inputs->n_tasks; k++) inputs->tasks[k] = (sp_task_evaluation){0};
    t.hits = calloc(3 * n_labels + 1, sizeof *t.hits);
    t.logprobs = calloc(n_labels + 1, sizeof *t.logprobs);
    sp_status st = t.hits && t.logprobs ? SP_OK : sp_fail_no_memory((n_labels + 1) * 4 * sizeof *t.hits);
    if (!st) {
        t.n_true = t.hits + n_labels;
        t.n_predicted = t.n_true + n_labels;
        st = score_all(&t, hooks, begin);
    }
    if (!st) summarise(out, &t);
    if (!st) summarise_tasks(&t);
    out->seconds = sp_seconds() - begin;
    sp_buffer_free(&t.predictions);
    free(t.items);
    free(t.logprobs);
    free(t.hits);
    return st;
}

bool sp_evaluation_is_better(const sp_evaluation *a, const sp_evaluation *b)
{
    if (a->has_accuracy && a->accuracy != b->accuracy) return a->accuracy > b->accuracy;
    if (a->has_exact_match && a->exact_match != b->exact_match) return a->exact_match > b->exact_match;
    return a->loss < b->loss || (isfinite(a->loss) && !isfinite(b->loss));
}

/* What is in front of the rows: the prompts, of one the prompts of its tasks. *n_tasks: how many a row may choose from; 0: it does
 * not matter what it names. */
static sp_status set_roots(sp_root **roots, size_t *n_tasks, sp_scorer *scorer, const sp_prompt *const *prompts, size_t n_prompts,
                           const sp_eval_options *options)
{
    *n_tasks = 0;
    if (n_prompts == 1 && !options->one_task && sp_prompt_method(prompts[0]) == SP_METHOD_MULTITASK) {
        sp_status st = sp_roots_of_prompt(roots, n_tasks, prompts[0]);
        if (!st) sp_scorer_set_roots(scorer, *roots, *n_tasks);
        return st;
    }
    for (size_t i = 0; i < n_prompts && !options->one_task; i++)
        if (sp_prompt_num_tasks(prompts[i]) > 1)
            return sp_fail(SP_ERR_ARGUMENT,
                           "prompt %zu of the ensemble has %zu tasks, and an ensemble reads one of each; say which one", i + 1,
                           sp_prompt_num_tasks(prompts[i]));
    return sp_ensemble_set(roots, scorer, prompts, n_prompts);
}

sp_status sp_evaluate_ensemble(sp_evaluation *out, sp_model *model, const sp_prompt *const *prompts, size_t n_prompts,
                               const sp_task *task, const sp_dataset *data, const sp_eval_options *options, const sp_hooks *hooks)
{
    static const sp_eval_options defaults;
    sp_task own, *resolved = NULL;
    sp_scorer *scorer = NULL;
    sp_encoded_data encoded = {0};
    sp_root *roots = NULL;
    size_t n_tasks;
    if (!options) options = &defaults;
    const sp_logger *logger = hooks ? hooks->logger : NULL;
    *out = (sp_evaluation){0};
    sp_status st = sp_ensemble_check(prompts, n_prompts, model, logger);
    if (!st && options->predictions_path) st = sp_check_writable(options->predictions_path);
    if (!st && !task) st = sp_ensemble_task(&own, NULL, prompts, n_prompts);
    if (!st) st = sp_task_resolve(&resolved, task ? task : &own, data);
    if (!st) st = sp_scorer_create(&scorer, model);
    if (!st) st = set_roots(&roots, &n_tasks, scorer, prompts, n_prompts, options);
    if (!st) st = sp_encoded_data_create(&encoded, resolved, model, data, sp_ensemble_n_front(prompts, n_prompts), n_tasks, logger);
    if (!st) {
        const sp_evaluation_inputs inputs = {resolved,
                                             &encoded,
                                             options->batch_size ? options->batch_size : DEFAULT_BATCH_SIZE,
                                             options->predictions_path,
                                             options->tasks,
                                             options->tasks ? options->n_tasks : 0};
        st = sp_evaluate_encoded(out, scorer, &inputs, hooks);
    }
    free(roots);
    sp_scorer_free(scorer);
    sp_encoded_data_clear(&encoded);
    sp_task_free(resolved);
    return st;
}

sp_status sp_evaluate(sp_evaluation *out, sp_model *model, const sp_prompt *prompt, const sp_task *task, const sp_dataset *data,
                      const sp_eval_options *options, const sp_hooks *hooks)
{
    return sp_evaluate_ensemble(out, model, &prompt, prompt ? 1 : 0, task, data, options, hooks);
}
