/* scorer.h: what answers cost behind their contexts: a batch of them as one pass over a token tree.
 *
 *     sp_scorer_set_prompt(scorer, prompt);
 *     for (size_t i = 0, n; i < n_items; i += n) {
 *         n = sp_scorer_fit(items + i, n_items - i);
 *         sp_scorer_score(&nll, scorer, items + i, n);
 *     }
 *
 * Items that begin alike share rows, so candidates of one example cost what they differ in, and the prompt's keys are
 * computed once for all passes until it is set again. */
#ifndef SP_TRAIN_SCORER_H
#define SP_TRAIN_SCORER_H

#include "softprompt.h"

typedef struct sp_scorer sp_scorer;

typedef struct sp_item {
    const int32_t *context, *answer; /* borrowed for the call */
    size_t n_context, n_answer;      /* n_answer >= 1; n_context 0 only behind a prompt */
} sp_item;

sp_status sp_scorer_create(sp_scorer **out, sp_model *model); /* the model must outlive it */
void sp_scorer_free(sp_scorer *scorer);

/* The prompt in front of every item from now on; NULL: none. It must stay, and be set again after its rows were changed. */
void sp_scorer_set_prompt(sp_scorer *scorer, const sp_prompt *prompt);

/* How many of the items one pass takes: as many as fit a bounded number of rows, at least one of n_items >= 1. */
size_t sp_scorer_fit(const sp_item *items, size_t n_items);

/* *nll: -ln p of every answer token, in nats, item after item; the scorer's, until its next call.
 * ARGUMENT: an item without context and prompt, a token outside the vocabulary, a text beyond the model's context. */
sp_status sp_scorer_score(const double **nll, sp_scorer *scorer, const sp_item *items, size_t n_items);

/* The same, and gradient (prompt rows, width) += d/dprompt of  scale * sum over items of the mean of their nll. */
sp_status sp_scorer_gradient(const double **nll, float *gradient, sp_scorer *scorer, const sp_item *items, size_t n_items,
                             double scale);

/* Would greedy decoding say the whole answer of item `index` of the last sp_scorer_score? True where each of its tokens has
 * the largest logit (the lowest id of equal ones) behind those before it. */
sp_status sp_scorer_is_greedy(bool *out, sp_scorer *scorer, size_t index);

#endif
