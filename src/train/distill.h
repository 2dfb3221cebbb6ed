/* distill.h: the loss of context distillation: a prompt that stands for a text.
 *
 *   teacher   [text, tokens of a query ...]            the frozen model with the text in its context
 *   student   [soft prompt, tokens of a query ...]     the same model behind the prompt
 *
 * A query is an item, as the scorer has them: the distributions compared are those behind which its answer's tokens stand. A BOS
 * that begins queries, where the teacher's text has one, is read by the student alone: it stands behind virtual tokens, but not in
 * the middle of a text. */
#ifndef SP_TRAIN_DISTILL_H
#define SP_TRAIN_DISTILL_H

#include "train/encoded.h"
#include "train/scorer.h"
#include "train/teacher.h"

typedef struct sp_distiller sp_distiller;

/* context (n >= 1 tokens): the teacher's, copied. The model must outlive it. */
sp_status sp_distiller_create(sp_distiller **out, sp_model *model, const int32_t *context, size_t n);
void sp_distiller_free(sp_distiller *distiller);
sp_teacher *sp_distiller_teacher(sp_distiller *distiller); /* the distiller's */

/* The student's prompt from now on; NULL: nothing. It must stay, and be set again after its rows were changed. */
void sp_distiller_set_prompt(sp_distiller *distiller, const sp_prompt *prompt);

/* loss = mean over items of the mean over their answer tokens of KL(teacher || student) of that token, in nats, in as many passes
 * as it takes, each of at most pass_items >= 1 items. n_items >= 1.
 *   gradient   (prompt rows, width) += dloss/dprompt, of every row; NULL: not computed
 * ARGUMENT: an item without a token of its own (beside BOS) in front of its answer. */
sp_status sp_distiller_loss(double *loss, float *gradient, sp_distiller *distiller, const sp_item *items, size_t n_items,
                            size_t pass_items);

/* The same over all rows of `data` (candidate 0 of each), as an evaluation of which only n, n_truncated, loss and seconds are
 * meant. SP_ERR_STOPPED: the hooks said so. `hooks` may be NULL. */
sp_status sp_distiller_evaluate(sp_evaluation *out, sp_distiller *distiller, const sp_encoded_data *data, size_t pass_items,
                                const sp_hooks *hooks);

#endif
