/* scorer.h: what answers cost behind their contexts: a batch of them as one pass over a token tree, behind one prompt or several.
 *
 *     sp_scorer_set_prompt(scorer, prompt);
 *     for (size_t i = 0, n; i < n_items; i += n) {
 *         n = sp_scorer_fit(items + i, n_items - i);
 *         sp_scorer_score(&nll, scorer, items + i, n);
 *     }
 *
 * Items that begin alike share rows, so candidates of one example cost what they differ in, and the prompts' keys are
 * computed once for all passes until they are set again. */
#ifndef SP_TRAIN_SCORER_H
#define SP_TRAIN_SCORER_H

#include "prompt/prompt.h"

typedef struct sp_scorer sp_scorer;

typedef struct sp_item {
    const int32_t *context, *answer; /* borrowed for the call */
    size_t n_context, n_answer;      /* n_answer >= 1; n_context 0 only behind a prompt of embeddings */
    size_t root;                     /* which of the roots it stands behind: its task */
    const float *weights;            /* (n_answer) of its tokens' losses in a gradient; NULL: 1 / n_answer each */
} sp_item;

/* What items stand behind: the rows of a prompt, one way or the other, or its states, or (none of them, n 0) nothing. */
typedef struct sp_root {
    const float *embeddings;  /* (n, d_model) */
    const float *keys_values; /* (n, 2 * n_layer * n_head_kv * d_head), as sp_prompt_keys_values */
    size_t n;
    size_t text_position;            /* of what follows, in the model's eyes: n, in most */
    sp_state_set *states;            /* of a compiled prompt, sp_prompt_states; then no rows, and it is the only root */
    const sp_prompt_target *targets; /* (n_targets) that a gradient counts once for each item behind the root; else NULL, 0 */
    size_t n_targets;
} sp_root;

sp_status sp_scorer_create(sp_scorer **out, sp_model *model); /* the model must outlive it */
void sp_scorer_free(sp_scorer *scorer);

/* The roots of items from now on; item.root is an index into them. The array and the rows must stay, and be set again after they
 * were changed. n_roots >= 1. */
void sp_scorer_set_roots(sp_scorer *scorer, const sp_root *roots, size_t n_roots);

const sp_root *sp_scorer_roots(const sp_scorer *scorer); /* as they were set */

/* The same roots as one language model: every item stands behind all of them (item.root is not read), and a token is as likely as
 * the geometric mean of what the roots say of it, made to sum to one over the vocabulary. Only scores, no gradient. */
void sp_scorer_set_ensemble(sp_scorer *scorer, const sp_root *roots, size_t n_roots);

/* One root: the prompt, or nothing where it is NULL. As of a new scorer, which has nothing in front. */
void sp_scorer_set_prompt(sp_scorer *scorer, const sp_prompt *prompt);

sp_root sp_root_of_prompt(const sp_prompt *prompt); /* of the task in use; without targets. NULL: nothing */

/* A root for each task of the prompt, with what the loss wants predicted inside it; *out is freed with free. */
sp_status sp_roots_of_prompt(sp_root **out, size_t *n, const sp_prompt *prompt);

/* What attention to a compiled prompt came to, since the roots were set. */
sp_compiled_use sp_scorer_compiled_use(const sp_scorer *scorer);

/* How many of the items one pass takes: as many as fit a bounded number of rows of text (an ensemble has as many for each
 * root, and keeps nothing for backward), at least one of n_items >= 1. */
size_t sp_scorer_fit(const sp_item *items, size_t n_items);

/* *nll: -ln p of every answer token, in nats, item after item; then, root after root, of the targets of roots that items use. The
 * scorer's, until its next call. All roots take part, whatever the
 * items use, so that passes that follow find their keys.
 * ARGUMENT: an item without context and prompt, a token outside the vocabulary, a text beyond the model's context. UNSUPPORTED: a
 * compiled prompt beside others. */
sp_status sp_scorer_score(const double **nll, sp_scorer *scorer, const sp_item *items, size_t n_items);

/* The same, and gradient += d/drows of  scale * sum over items of the mean of their nll. Only roots that the items use take part.
 * Items behind a root with targets: the sum of their nll, and of each target's, weighted.
 *   gradient   (rows of all roots, width): root behind root, in the order in which they were set; rows of roots that no item uses
 *              are left alone
 * ARGUMENT: roots of embeddings among roots of keys and values, whose rows are not as wide. */
sp_status sp_scorer_gradient(const double **nll, float *gradient, sp_scorer *scorer, const sp_item *items, size_t n_items,
                             double scale);

/* Would greedy decoding say the whole answer of item `index` of the last sp_scorer_score? True where each of its tokens has
 * the largest logit (the lowest id of equal ones) behind those before it. */
sp_status sp_scorer_is_greedy(bool *out, sp_scorer *scorer, size_t index);

/* How many tokens of that answer, from its first, greedy decoding would say; of the last sp_scorer_gradient's items, too. */
sp_status sp_scorer_greedy_prefix(size_t *n, sp_scorer *scorer, size_t index);

#endif
