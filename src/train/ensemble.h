/* ensemble.h: what evaluation and classification need of several prompts at once. */
#ifndef SP_TRAIN_ENSEMBLE_H
#define SP_TRAIN_ENSEMBLE_H

#include "train/scorer.h"

/* Each prompt fits the model. */
sp_status sp_ensemble_check(const sp_prompt *const *prompts, size_t n_prompts, const sp_model *model, const sp_logger *logger);

/* How many rows stand in front of a text: the longest prompt's. */
size_t sp_ensemble_n_front(const sp_prompt *const *prompts, size_t n_prompts);

/* Puts the prompts, of each the task in use, in front of the scorer's items: none, one, or an ensemble. *roots must live as long as
 * they stand there; free. */
sp_status sp_ensemble_set(sp_root **roots, sp_scorer *scorer, const sp_prompt *const *prompts, size_t n_prompts);

#endif
