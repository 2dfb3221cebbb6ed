/* loss.c: the mean of means. Each item's tokens are weighted 1 / (items * its tokens), so that one packed pass, several of
 * them, and the mean of passes over single items are the same sum. */
#include "train/loss.h"

#include <stdlib.h>

#include "base/status.h"
#include "prompt/prompt.h"

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

sp_status sp_mean_loss(double *loss, float *d_rows, sp_scorer *scorer, const sp_item *items, size_t n_items, size_t pass_items)
{
    double sum = 0, scale = 1 / (double)n_items;
    for (size_t i = 0, n; i < n_items; i += n) {
        const double *nll;
        n = sp_scorer_fit(items + i, n_items - i < pass_items ? n_items - i : pass_items);
        sp_status st =
            d_rows ? sp_scorer_gradient(&nll, d_rows, scorer, items + i, n, scale) : sp_scorer_score(&nll, scorer, items + i, n);
        if (st) return st;
        sum += sum_of_means(nll, items + i, n);
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
        items[i] = (sp_item){e->tokens, e->tokens + n_context, n_context, e->n_answer, 0};
    }
    return SP_OK;
}

sp_status sp_loss(double *loss, float *gradient, sp_model *model, const sp_prompt *prompt, const sp_example *examples,
                  size_t n_examples)
{
    if (n_examples == 0) return sp_fail(SP_ERR_ARGUMENT, "no examples; the mean of nothing is no loss");
    if (gradient && !prompt) return sp_fail(SP_ERR_ARGUMENT, "a gradient is wanted and there is no prompt to take it by");
    sp_scorer *scorer = NULL;
    sp_item *items = NULL;
    float *d_rows = NULL;
    sp_status st = prompt ? sp_prompt_check(prompt, model, NULL) : SP_OK;
    if (!st) st = items_of_examples(&items, examples, n_examples);
    if (!st) st = sp_scorer_create(&scorer, model);
    if (!st && gradient && !(d_rows = calloc(sp_prompt_n_row_values(prompt), sizeof *d_rows)))
        st = sp_fail_no_memory(sp_prompt_n_row_values(prompt) * sizeof *d_rows);
    if (!st) {
        sp_scorer_set_prompt(scorer, prompt);
        st = sp_mean_loss(loss, d_rows, scorer, items, n_examples, n_examples);
    }
    if (!st && gradient) st = sp_prompt_backward(gradient, prompt, d_rows);
    sp_scorer_free(scorer);
    free(d_rows);
    free(items);
    return st;
}
