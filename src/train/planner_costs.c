/* planner_costs.c: time and memory of a prompt of random vectors: they do not depend on what was learnt. */
#include "train/planner_costs.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/sort.h"
#include "base/status.h"
#include "model/model.h"
#include "prompt/prompt.h"
#include "train/loss.h"

enum { N_TIMED_STEPS = 3, N_TIMED_TOKENS = 16 };

static double median(double *values, size_t n)
{
    sp_sort_doubles(values, n);
    return values[n / 2];
}

/* Rows from all over the data: files are sorted, often by length or by label. */
static void spread_items(sp_item *items, size_t n, const sp_encoded_data *rows)
{
    for (size_t i = 0; i < n; i++) {
        size_t index = i * rows->n / n;
        items[i] = sp_encoded_item(rows, index, rows->rows[index].right);
    }
}

/* The first pass finds the engine's memory as small as the last length left it, and is not counted. */
static sp_status time_steps(double *seconds, sp_scorer *scorer, const sp_prompt *prompt, const sp_encoded_data *rows,
                            size_t batch_size)
{
    double loss, times[N_TIMED_STEPS];
    size_t n_values = sp_prompt_n_row_values(prompt);
    float *d_rows = calloc(n_values, sizeof *d_rows);
    sp_item *items = calloc(batch_size, sizeof *items);
    sp_status st = d_rows && items ? SP_OK : sp_fail_no_memory(n_values * sizeof *d_rows);
    if (!st) spread_items(items, batch_size, rows);
    for (int i = -1; i < N_TIMED_STEPS && !st; i++) {
        double begin = sp_seconds();
        sp_scorer_set_prompt(scorer, prompt); /* again each time: its keys are computed anew, as in training */
        st = sp_mean_loss(&loss, d_rows, scorer, items, batch_size, batch_size);
        if (i >= 0) times[i] = sp_seconds() - begin;
    }
    if (!st) *seconds = median(times, N_TIMED_STEPS);
    free(items);
    free(d_rows);
    return st;
}

/* The tokens are a row's, over and over: what they say costs nothing. */
static sp_status time_decoding(double *tokens_per_second, sp_model *model, const sp_prompt *prompt, const sp_encoded_row *row)
{
    sp_session *session;
    double times[N_TIMED_TOKENS];
    float *logits = malloc(sp_model_n_vocab(model) * sizeof *logits);
    sp_status st =
        logits ? sp_session_create(&session, model, prompt) : sp_fail_no_memory(sp_model_n_vocab(model) * sizeof *logits);
    if (st) {
        free(logits);
        return st;
    }
    for (size_t i = 0; i < N_TIMED_TOKENS && !st; i++) {
        double begin = sp_seconds();
        st = sp_session_append(session, &row->context[i % row->n_context], 1, logits);
        times[i] = sp_seconds() - begin;
    }
    if (!st) *tokens_per_second = 1 / median(times, N_TIMED_TOKENS);
    sp_session_free(session);
    free(logits);
    return st;
}

static size_t peak_bytes(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) ? 0 : (size_t)usage.ru_maxrss * 1024;
}

sp_status sp_plan_measure_costs(sp_plan_length *length, sp_model *model, const sp_encoded_data *rows, size_t batch_size)
{
    const sp_prompt_options options = {.num_virtual_tokens = length->num_virtual_tokens, .init = SP_INIT_RANDOM};
    sp_prompt *prompt = NULL;
    sp_scorer *scorer = NULL;
    sp_status st = sp_prompt_create(&prompt, model, &options);
    if (!st) st = sp_scorer_create(&scorer, model);
    if (!st) st = time_steps(&length->step_seconds, scorer, prompt, rows, batch_size);
    if (!st) st = time_decoding(&length->decode_tokens_per_second, model, prompt, &rows->rows[0]);
    length->peak_bytes = peak_bytes();
    sp_model_info info;
    sp_model_get_info(&info, model);
    length->state_bytes = 2 * info.n_layer * info.n_head_kv * info.d_head * length->num_virtual_tokens * sizeof(float);
    sp_scorer_free(scorer);
    sp_prompt_free(prompt);
    return st;
}
