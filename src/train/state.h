/* state.h: where a run stands: everything but the matrices that a checkpoint must carry.
 * It is written behind a step and before that step's evaluation. */
#ifndef SP_TRAIN_STATE_H
#define SP_TRAIN_STATE_H

#include "softprompt.h"

typedef struct sp_train_state {
    uint64_t step;           /* done */
    uint64_t best_step;      /* of the best evaluation; 0: none */
    uint64_t n_without_gain; /* evaluations since */
    double first_loss, last_loss;
    double kl_without_prompt, kl_at_start;             /* of distillation: before the first step */
    bool stopped_early, finished;                      /* finished: the adapter is written */
    uint64_t log_bytes, evaluation_bytes, event_bytes; /* of the logs: what is behind them belongs to later steps */
    sp_evaluation best;                                /* where best_step is not 0 */
    sp_key_bound_report key_bound;                     /* where keys are bounded, once finished */
} sp_train_state;

/* As a JSON object (free), every number such that it reads back as it was. */
sp_status sp_train_state_print(char **out, const sp_train_state *state);

/* FORMAT: a member is missing or has another type, by name. */
sp_status sp_train_state_parse(sp_train_state *out, const char *json);

#endif
