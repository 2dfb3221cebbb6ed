/* loss.c: the mean of means. Each item's tokens are weighted 1 / (items * its tokens), so that one packed pass, several of
 * them, and the mean of passes over single items are the same sum. A prompt with targets of its own has the mean over tokens. */
#include "train/loss.h"

#include <stdlib.h>

#include "base/status.h"
#include "prompt/prompt.h"
#include "train/distill.h"

static double sum_of_means(const double *nll, const sp_item *items, size_t n_items)
{
    double sum = 0;
    for (size_t i = 0; i < n_items; nll += items[i++].n_answer) {
        double own = 0;
        for (size_t k = 0; k < items[i].n_answer; k++) own += nll[k];
        sum += own / (double)items[i].n_answer;
    }
    return sum;
}

/* Of items behind one root with targets; n_items times the targets' part, which stands behind the items'. */
static double sum_of_tokens(const double *nll, const sp_root *root, const sp_item *items, size_t n_items)
{
    double sum = 0, own = 0;
    for (size_t i = 0; i < n_items; i++)
        for (size_t k = 0; k < items[i].n_answer; k++) sum += *nll++;
    for (size_t t = 0; t < root->n_targets; t++) own += (double)root->targets[t].weight * *nll++;
    return sum + own * (double)n_items;
}

static size_t count_tokens(const sp_root *root, const sp_item *items, size_t n_items)
{
    size_t n = n_items * root->n_targets;
    for (size_t i = 0; i < n_items; i++) n += items[i].n_answer;
    return n;
}

sp_status sp_mean_loss(double *loss, float *d_rows, sp_scorer *scorer, const sp_item *items, size_t n_items, size_t pass_items)
{
    const sp_root *roots = sp_scorer_roots(scorer);
    const bool by_token = roots->targets != NULL; /* a prompt that has targets has one task */
    double sum = 0, scale = 1 / (double)(by_token ? count_tokens(roots, items, n_items) : n_items);
    for (size_t i = 0, n; i < n_items; i += n) {
        const double *nll;
        n = sp_scorer_fit(items + i, n_items - i < pass_items ? n_items - i : pass_items);
        sp_status st =
            d_rows ? sp_scorer_gradient(&nll, d_rows, scorer, items + i, n, scale) : sp_scorer_score(&nll, scorer, items + i, n);
        if (st) return st;
        sum += by_token ? sum_of_tokens(nll, roots, items + i, n) : sum_of_means(nll, items + i, n);
    }
    *loss = sum * scale;
    return SP_OK;
}

static sp_status items_of_examples(sp_item **out, const sp_example *examples, size_t n_examples)
{
    sp_item *items = *out = calloc(n_examples, sizeof *items);
    if (!items) return sp_fail_no_memory(n_examples * sizeof *items);
    for (size_t i = 0; i < n_examples; i++) {
        const sp_example *e = &examples[i];
        if (e->n_answer == 0 || e->n_answer > e->n_tokens) {
            free(items);
            *out = NULL;
            return sp_fail(SP_ERR_ARGUMENT, "example %zu: %zu answer tokens of %zu; at least one, and no more than there are",
                           i + 1, e->n_answer, e->n_tokens);
        }
        size_t n_context = e->n_tokens - e->n_answer;
        items[i] = (sp_item){e->tokens, e->tokens + n_context, n_context, e->n_answer, e->task_id, NULL};
    }
    return SP_OK;
}

/* Of answers, or where `context` is not NULL of divergences from what the model says behind it. */
static sp_status mean_loss(double *loss, float *d_rows, sp_model *model, const sp_prompt *prompt, const int32_t *context,
                           size_t n_context, const sp_item *items, size_t n_items)
{
    sp_scorer *scorer = NULL;
    sp_distiller *distiller = NULL;
    sp_root *roots = NULL;
    size_t n_roots;
    sp_status st = context ? sp_distiller_create(&distiller, model, context, n_context) : sp_scorer_create(&scorer, model);
    if (!st && context) {
        sp_distiller_set_prompt(distiller, prompt);
        if (d_rows) d_rows += sp_prompt_task_rows(prompt, sp_prompt_task_in_use(prompt)) - sp_prompt_task_rows(prompt, 0);
        st = sp_distiller_loss(loss, d_rows, distiller, items, n_items, n_items);
    } else if (!st) {
        st = sp_roots_of_prompt(&roots, &n_roots, prompt);
        if (!st) sp_scorer_set_roots(scorer, roots, n_roots);
        if (!st) st = sp_mean_loss(loss, d_rows, scorer, items, n_items, n_items);
    }
    sp_distiller_free(distiller);
    sp_scorer_free(scorer);
    free(roots);
    return st;
}

static sp_status loss_of_examples(double *loss, float *gradient, sp_model *model, const sp_prompt *prompt, const int32_t *context,
                                  size_t n_context, const sp_example *examples, size_t n_examples)
{
    if (n_examples == 0) return sp_fail(SP_ERR_ARGUMENT, "no examples; the mean of nothing is no loss");
    if (gradient && !prompt) return sp_fail(SP_ERR_ARGUMENT, "a gradient is wanted and there is no prompt to take it by");
    sp_item *items = NULL;
    float *d_rows = NULL;
    sp_status st = prompt ? sp_prompt_check(prompt, model, NULL) : SP_OK;
    if (!st) st = items_of_examples(&items, examples, n_examples);
    if (!st && gradient && !(d_rows = calloc(sp_prompt_n_row_values(prompt), sizeof *d_rows)))
        st = sp_fail_no_memory(sp_prompt_n_row_values(prompt) * sizeof *d_rows);
    if (!st) st = mean_loss(loss, d_rows, model, prompt, context, n_context, items, n_examples);
    if (!st && gradient) st = sp_prompt_backward(gradient, prompt, d_rows);
    free(d_rows);
    free(items);
    return st;
}

sp_status sp_loss(double *loss, float *gradient, sp_model *model, const sp_prompt *prompt, const sp_example *examples,
                  size_t n_examples)
{
    return loss_of_examples(loss, gradient, model, prompt, NULL, 0, examples, n_examples);
}

sp_status sp_distillation_loss(double *loss, float *gradient, sp_model *model, const sp_prompt *prompt, const int32_t *context,
                               size_t n_context, const sp_example *queries, size_t n_queries)
{
    if (!context || n_context == 0) return sp_fail(SP_ERR_ARGUMENT, "no context to stand for; give the tokens of a text");
    return loss_of_examples(loss, gradient, model, prompt, context, n_context, queries, n_queries);
}
