/* run_log.h: the logs of a run directory, a JSON object a line: log.jsonl says what each step did, evaluations.jsonl how good the
 * prompt was.
 *
 *   {"step": 120, "loss": 0.412, "learning_rate": 0.0117, "grad_norm": 0.93, "seconds": 0.7, "examples": 16, "tokens": 611}
 *   {"step": 120, "eval_loss": 0.371, "eval_perplexity": 1.44, "eval_accuracy": 0.862, "eval_macro_f1": 0.861, ...}
 *
 * A step has "penalty" behind "grad_norm" where keys are penalised. Numbers read back as the very same doubles; one that is not
 * finite is null. */
#ifndef SP_TRAIN_RUN_LOG_H
#define SP_TRAIN_RUN_LOG_H

#include "softprompt.h"

typedef struct sp_run_log sp_run_log;

typedef struct sp_run_log_step {
    size_t step; /* from 1 */
    double loss, learning_rate, grad_norm;
    bool has_penalty;
    double penalty;            /* with has_penalty: its weight in it; the loss is without it */
    double seconds;            /* of this step alone */
    uint64_t examples, tokens; /* of this step alone */
} sp_run_log_step;

/* Keeps the first `offset` bytes of `path` (0: none). MISMATCH: the file is shorter. */
sp_status sp_run_log_open(sp_run_log **out, const char *path, uint64_t offset);

/* On failure (IO: a full disk, say) the file ends with the row before. */
sp_status sp_run_log_add_step(sp_run_log *log, const sp_run_log_step *row);
sp_status sp_run_log_add_evaluation(sp_run_log *log, size_t step, const sp_evaluation *evaluation);
sp_status sp_run_log_sync(sp_run_log *log);        /* what was written survives a power cut */
uint64_t sp_run_log_offset(const sp_run_log *log); /* for the checkpoint */
void sp_run_log_close(sp_run_log *log);            /* NULL is fine */

#endif
