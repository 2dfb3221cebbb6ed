/* trainer.h: a run of training in progress: what it works on, what it has to remember, and how that gets to disk and back. */
#ifndef SP_TRAIN_TRAINER_H
#define SP_TRAIN_TRAINER_H

#include "prompt/penalizer.h"
#include "train/distill.h"
#include "train/encoded.h"
#include "train/events.h"
#include "train/key_meter.h"
#include "train/optimizer.h"
#include "train/run_log.h"
#include "train/scorer.h"
#include "train/settings.h"
#include "train/state.h"

typedef struct sp_trainer {
    sp_model *model;
    const sp_dataset *train_rows, *eval_rows; /* both may be NULL; train_rows only where queries are sampled */
    const char *dir;
    const sp_hooks *hooks;    /* may be NULL */
    sp_train_options options; /* resolved */
    sp_task *task;            /* resolved */
    sp_encoded_data train, eval;
    const sp_encoded_data *judged; /* what evaluations are of; NULL: there are none */
    size_t n_front;                /* tokens in front of a row, for which the model's context must have room */

    int32_t *cpt_token_ids, *cpt_tokens_type_mask; /* of examples, where the prompt starts from such; options has them */
    sp_prompt *prompt;
    sp_root *roots; /* (n_roots) its tasks' prompts */
    size_t n_roots;
    float *weights, *best, *gradient; /* (n_weights); weights are the prompt's own */
    size_t n_weights;
    float *d_rows; /* (num_tasks, num_virtual_tokens, width) */
    sp_optimizer_state *optimizer;
    sp_scorer *scorer;
    sp_distiller *distiller; /* NULL: answers are learnt */

    sp_key_bound *bound;     /* NULL: keys are free, and what follows of them is not used */
    sp_penalizer *penalizer; /* NULL: keys are projected; else a penalty, and of the bound only norms */
    sp_key_meter *meter;
    size_t *measured_rows, n_measured_rows; /* of `train`: whose queries the bound is for */

    sp_train_state state;
    char owner[SP_SETTINGS_HASH_BYTES];     /* of this run's checkpoints */
    uint64_t saved_step, before_saved_step; /* the two newest good checkpoints; 0: none */
    uint64_t evaluated_step;                /* the last one whose evaluation this call has done */
    sp_run_log *log, *evaluations;
    int lock; /* on the directory, while this run works in it; -1: none */
    sp_events *events;

    size_t *order; /* (rows) the permutation of epoch `order_epoch`; SIZE_MAX: none yet */
    size_t order_epoch;
    sp_item *items; /* (examples of a step) */

    double begin;              /* sp_seconds of this call */
    uint64_t n_rows, n_tokens; /* trained on in this call */
} sp_trainer;

/* The library's public call, in parts: checks the options, makes tokens of the data and the prompt, takes the directory, and finds
 * the newest checkpoint that is whole. Zero-initialise `trainer`; clear it also after a failure. */
sp_status sp_trainer_open(sp_trainer *trainer, sp_model *model, const sp_dataset *train, const sp_dataset *eval, const char *dir,
                          const sp_train_options *options, const sp_hooks *hooks);

/* What steps need and a finished run does not: the engine, logs cut back to the checkpoint. */
sp_status sp_trainer_prepare(sp_trainer *trainer);

/* Makes the present state durable: logs first, so that a checkpoint never knows more than they hold. */
sp_status sp_trainer_save(sp_trainer *trainer);

void sp_trainer_clear(sp_trainer *trainer);

const sp_logger *sp_trainer_logger(const sp_trainer *trainer); /* may be NULL */

#endif
