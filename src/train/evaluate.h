/* evaluate.h: the evaluation of a prompt on rows that are tokens already, for training and for sp_evaluate. */
#ifndef SP_TRAIN_EVALUATE_H
#define SP_TRAIN_EVALUATE_H

#include "train/encoded.h"
#include "train/scorer.h"

typedef struct sp_evaluation_inputs {
    const sp_task *task; /* resolved: it names the labels */
    const sp_encoded_data *data;
    size_t batch_size;            /* rows a pass; >= 1 */
    const char *predictions_path; /* NULL: none */
    sp_task_evaluation *tasks;    /* (n_tasks) written, of the roots in their order; NULL, 0: not wanted */
    size_t n_tasks;
} sp_evaluation_inputs;

/* Scores every row behind its root, which the scorer has. SP_ERR_STOPPED: the hooks said so, nothing is written. `hooks` may be
 * NULL. */
sp_status sp_evaluate_encoded(sp_evaluation *out, sp_scorer *scorer, const sp_evaluation_inputs *inputs, const sp_hooks *hooks);

/* Is `a` better than `b`? By accuracy where rows have labels, else by exact match, equal ones by loss; else by loss alone. */
bool sp_evaluation_is_better(const sp_evaluation *a, const sp_evaluation *b);

#endif
