/* bound_run.h: what a run of training has beside the others' where its keys are bounded (max_logit): directions, norms of queries,
 * a projection behind every step, or, of keys that come from embeddings or from a network, a penalty in it. All of it is the
 * trainer's. */
#ifndef SP_TRAIN_BOUND_RUN_H
#define SP_TRAIN_BOUND_RUN_H

#include "train/trainer.h"

/* The bound itself, of zeros, for the trainer's prompt. ARGUMENT: a rank beyond the model's heads. */
sp_status sp_bound_run_open(sp_trainer *trainer);

/* Before steps are taken, once rows are encoded: what measures; and, before the first step, directions and norms, and the prompt
 * projected. */
sp_status sp_bound_run_prepare(sp_trainer *trainer);

/* trainer->d_rows += the gradient of *penalty, which belongs to a step of trainer->items (n_examples), once for all its passes; its
 * weight is in it. Of keys that are projected 0, and nothing. */
sp_status sp_bound_run_penalize(double *penalty, sp_trainer *trainer, size_t n_examples);

/* Behind the optimiser's step, which is not counted yet: keys are projected, and now and then queries measured. */
sp_status sp_bound_run_step(sp_trainer *trainer);

/* Measures and projects until nothing moves: what is evaluated, and what is written, is inside. Where there is but a penalty
 * nothing moves. */
sp_status sp_bound_run_settle(sp_trainer *trainer);

/* Settles the prompt that will be written, measures the bound that it reaches on rows that it was not trained on, and gives the
 * prompt what softprompt.json tells of it. */
sp_status sp_bound_run_finish(sp_trainer *trainer);

void sp_bound_run_clear(sp_trainer *trainer);

#endif
