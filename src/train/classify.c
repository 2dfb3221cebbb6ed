/* classify.c: the labels of one text. */
#include <stdlib.h>

#include "base/status.h"
#include "train/encoded.h"
#include "train/ensemble.h"
#include "train/scorer.h"

static sp_status encode_text(sp_encoded_row *out, const sp_model *model, size_t n_front, const sp_task *task, const char *text)
{
    size_t room;
    const sp_row row = {.kind = SP_ROW_LABEL, .line = 1, .text = text};
    sp_status st = sp_room_behind_prompt(&room, model, n_front);
    if (!st) st = sp_task_encode(out, task, sp_model_tokenizer(model), &row, room);
    if (!st && out->truncated && task->max_length == 0)
        st = sp_fail(SP_ERR_ARGUMENT,
                     "the text does not fit the model's context of %zu tokens; shorten it, or give a maximal length "
                     "to cut it at the left",
                     room);
    return st;
}

/* logprobs (n_candidates) written */
static sp_status score_candidates(double *logprobs, sp_scorer *scorer, const sp_encoded_row *row)
{
    const double *nll;
    sp_item *items = calloc(row->n_candidates, sizeof *items);
    if (!items) return sp_fail_no_memory(row->n_candidates * sizeof *items);
    for (size_t c = 0; c < row->n_candidates; c++) items[c] = sp_item_of(row, c);
    sp_status st = sp_scorer_score(&nll, scorer, items, row->n_candidates);
    for (size_t c = 0; c < row->n_candidates && !st; c++) {
        logprobs[c] = 0;
        for (size_t k = 0; k < row->n_candidate[c]; k++) logprobs[c] -= *nll++;
    }
    free(items);
    return st;
}

/* labels and logprobs (n_labels) of out written; its best. */
static sp_status classify(sp_classification *out, sp_model *model, const sp_prompt *const *prompts, size_t n_prompts,
                          const sp_task *task, const char *text)
{
    sp_encoded_row row = {0};
    sp_scorer *scorer = NULL;
    sp_root *roots = NULL;
    sp_status st = sp_ensemble_check(prompts, n_prompts, model, NULL);
    if (!st) st = encode_text(&row, model, sp_ensemble_n_front(prompts, n_prompts), task, text);
    if (!st) st = sp_scorer_create(&scorer, model);
    if (!st) st = sp_ensemble_set(&roots, scorer, prompts, n_prompts);
    if (!st) st = score_candidates(out->logprobs, scorer, &row);
    for (size_t i = 0; i < out->n_labels && !st; i++) {
        out->labels[i] = task->verbalizers[i].label;
        if (out->logprobs[i] > out->logprobs[out->best]) out->best = i;
    }
    free(roots);
    sp_scorer_free(scorer);
    sp_encoded_row_clear(&row);
    return st;
}

sp_status sp_classify_ensemble(sp_classification *out, sp_model *model, const sp_prompt *const *prompts, size_t n_prompts,
                               const sp_task *task, const char *text)
{
    sp_task own;
    sp_status st = task ? SP_OK : sp_ensemble_task(&own, NULL, prompts, n_prompts);
    *out = (sp_classification){0};
    if (st) return st;
    if (!task) task = &own;
    if (task->n_verbalizers == 0)
        return sp_fail(SP_ERR_ARGUMENT, "no labels to choose from; give verbalizers, or a prompt that was trained on labels");
    size_t n = out->n_labels = task->n_verbalizers;
    out->labels = calloc(n, sizeof *out->labels);
    out->logprobs = calloc(n, sizeof *out->logprobs);
    if (!out->labels || !out->logprobs) st = sp_fail_no_memory(n * sizeof *out->logprobs);
    if (!st) st = classify(out, model, prompts, n_prompts, task, text);
    if (st) sp_classification_clear(out);
    return st;
}

sp_status sp_classify(sp_classification *out, sp_model *model, const sp_prompt *prompt, const sp_task *task, const char *text)
{
    return sp_classify_ensemble(out, model, &prompt, prompt ? 1 : 0, task, text);
}

void sp_classification_clear(sp_classification *classification)
{
    free((void *)classification->labels);
    free(classification->logprobs);
    *classification = (sp_classification){0};
}
