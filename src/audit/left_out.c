/* left_out.c: how much the answers move when a virtual token is missing.
 *
 * What is left out is gone: the others move up, as if the prompt had been one shorter; only a prompt that says where text starts
 * keeps it there. Rows are those that were kept, each with all its candidates where it has labels. Cost: an evaluation of them for
 * each virtual token and one more. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audit/internal.h"
#include "base/clock.h"
#include "base/status.h"
#include "train/encoded.h"

/* The items of the rows that were kept, and what their answers cost. */
typedef struct sample {
    const sp_encoded_row *rows;
    size_t n_rows;
    sp_item *items; /* (n_items) of row after row: its candidates, of a row without labels its answer */
    size_t n_items;
    double *full, *without; /* (n_items) -ln p of each whole answer */
} sample;

/* ARGUMENT cannot come from here: the rows fit behind the whole prompt. */
static sp_status score(double *costs, sp_scorer *scorer, const sample *s)
{
    for (size_t first = 0, n; first < s->n_items; first += n) {
        const double *nll;
        n = sp_scorer_fit(s->items + first, s->n_items - first);
        sp_status st = sp_scorer_score(&nll, scorer, s->items + first, n);
        if (st) return st;
        for (size_t i = first; i < first + n; i++) {
            costs[i] = 0;
            for (size_t k = 0; k < s->items[i].n_answer; k++) costs[i] += *nll++;
        }
    }
    return SP_OK;
}

/* ln of what n answers' probabilities sum to. */
static double log_sum(const double *costs, size_t n)
{
    double least = costs[0], sum = 0;
    for (size_t i = 1; i < n; i++) least = fmin(least, costs[i]);
    for (size_t i = 0; i < n; i++) sum += exp(least - costs[i]);
    return log(sum) - least;
}

/* KL(full || without) of the distributions over n candidates, each made to sum to one. */
static double divergence(const double *full, const double *without, size_t n)
{
    const double log_full = log_sum(full, n), log_without = log_sum(without, n);
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double log_p = -full[i] - log_full, log_q = -without[i] - log_without;
        sum += exp(log_p) * (log_p - log_q);
    }
    return fmax(sum, 0);
}

static void compare(sp_audit_token *token, const sample *s)
{
    double kl = 0, loss = 0;
    size_t n_labelled = 0, n_answered = 0;
    for (size_t r = 0, i = 0; r < s->n_rows; i += s->rows[r++].n_candidates) {
        const sp_encoded_row *row = &s->rows[r];
        if (row->n_candidates > 1) {
            kl += divergence(s->full + i, s->without + i, row->n_candidates);
            n_labelled++;
        }
        if (row->right == SIZE_MAX) continue;
        const size_t right = i + row->right;
        loss += (s->without[right] - s->full[right]) / (double)s->items[right].n_answer;
        n_answered++;
    }
    token->left_out_kl = n_labelled ? kl / (double)n_labelled : NAN;
    token->left_out_loss = n_answered ? loss / (double)n_answered : NAN;
}

static void report_progress(const sp_hooks *hooks, size_t done, size_t total, double begin)
{
    if (!hooks || !hooks->progress) return;
    const sp_progress progress = {
        .what = "left out", .done = done, .total = total, .seconds = sp_seconds() - begin, .loss = (double)NAN};
    hooks->progress(hooks->user, &progress);
}

/* shorter (n - 1, width) = the root's rows without row `index`. */
static void leave_out(float *shorter, const float *rows, size_t n, size_t width, size_t index)
{
    memcpy(shorter, rows, index * width * sizeof *shorter);
    memcpy(shorter + index * width, rows + (index + 1) * width, (n - index - 1) * width * sizeof *shorter);
}

static sp_status leave_each_out(sp_audit *a, sp_scorer *scorer, const sp_root *root, const sample *s, float *shorter,
                                const sp_hooks *hooks)
{
    const size_t width = sp_prompt_width(a->prompt);
    const double begin = sp_seconds();
    sp_scorer_set_roots(scorer, root, 1);
    sp_status st = score(s->full, scorer, s);
    for (size_t t = 0; t < root->n && !st; t++) {
        if (hooks && hooks->stop && *hooks->stop)
            return sp_fail(SP_ERR_STOPPED, "stopped after leaving out %zu of %zu virtual tokens", t, root->n);
        leave_out(shorter, root->keys_values ? root->keys_values : root->embeddings, root->n, width, t);
        const bool is_empty = root->n == 1;
        const sp_root rest = {.n = root->n - 1,
                              .text_position = root->text_position == root->n ? root->n - 1 : root->text_position,
                              .embeddings = root->embeddings && !is_empty ? shorter : NULL,
                              .keys_values = root->keys_values && !is_empty ? shorter : NULL};
        sp_scorer_set_roots(scorer, &rest, 1);
        st = score(s->without, scorer, s);
        if (!st) compare(&a->tokens[t], s);
        report_progress(hooks, t + 1, root->n, begin);
    }
    return st;
}

/* Nothing stands in front of the answer of a row without context once the only virtual token is gone: such rows cannot be asked. */
static bool all_have_context(const sp_encoded_row *rows, size_t n)
{
    for (size_t r = 0; r < n; r++)
        if (!rows[r].n_context) return false;
    return true;
}

static sp_status make_sample(sample *s, const sp_encoded_row *rows, size_t n)
{
    *s = (sample){.rows = rows, .n_rows = n};
    for (size_t r = 0; r < n; r++) s->n_items += rows[r].n_candidates;
    s->items = calloc(s->n_items, sizeof *s->items);
    s->full = calloc(2 * s->n_items, sizeof *s->full);
    if (!s->items || !s->full) return sp_fail_no_memory(s->n_items * (sizeof *s->items + 2 * sizeof *s->full));
    s->without = s->full + s->n_items;
    sp_item *next = s->items;
    for (size_t r = 0; r < n; r++)
        for (size_t c = 0; c < rows[r].n_candidates; c++) *next++ = sp_item_of(&rows[r], c);
    return SP_OK;
}

sp_status sp_audit_leave_out(sp_audit *a, const sp_root *root, const sp_encoded_row *rows, size_t n, const sp_hooks *hooks)
{
    sample s;
    sp_scorer *scorer = NULL;
    const size_t width = sp_prompt_width(a->prompt);
    float *shorter = NULL;
    if (n == 0 || (root->n == 1 && !all_have_context(rows, n))) return SP_OK;
    sp_status st = make_sample(&s, rows, n);
    if (!st && !(shorter = malloc(root->n * width * sizeof *shorter))) st = sp_fail_no_memory(root->n * width * sizeof *shorter);
    if (!st) st = sp_scorer_create(&scorer, a->model);
    if (!st) st = leave_each_out(a, scorer, root, &s, shorter, hooks);
    if (!st) a->report.n_left_out_rows = n;
    sp_scorer_free(scorer);
    free(shorter);
    free(s.items);
    free(s.full);
    return st;
}
