/* crammer.h: a search of lab capacity cram, shared by what learns (cram.c), what reports (cram_report.c) and what lets a search go
 * on another day (cram_state.c). */
#ifndef SP_LAB_CRAMMER_H
#define SP_LAB_CRAMMER_H

#include "lab/cram.h"
#include "prompt/prompt.h"
#include "train/optimizer.h"
#include "train/scorer.h"

typedef struct sp_cram_learner {
    sp_cram_text text;
    sp_prompt *prompt; /* BOS and the vectors */
    sp_optimizer_state *optimizer;
    size_t target; /* tokens that are being learnt */
    size_t steps;
    size_t first_target;
    size_t begun;     /* the step that the present vectors began at */
    size_t n_begun;   /* how often vectors began anew */
    bool speaks;      /* the present vectors have said a token */
    size_t best;      /* tokens said without an error, at most; behind best_rows */
    float *best_rows; /* (num_virtual_tokens + 1, d_model) */
    float *doubts;    /* (text.n) what each token counts in the loss, as it was last computed */
    float *weights;   /* (text.n) those of the target's tokens, made to sum to 1 */
    size_t said;      /* tokens that the last pass said without an error */
    bool is_whole;    /* the whole text is said: there is nothing more to learn */
} sp_cram_learner;

typedef struct sp_crammer {
    sp_model *model;
    sp_scorer *scorer;
    sp_cram_options options;  /* without zeros that stand for defaults */
    sp_cram_learner *samples; /* (n_samples) */
    size_t n_rows, d;         /* of a prompt */
    int32_t bos;
    size_t n_context; /* 1: BOS stands behind the vectors, as everywhere with this model */
    sp_root *roots;   /* (n_samples) of those that are being learnt */
    sp_item *items;   /* (n_samples) */
    size_t *active;   /* (n_active) indices of samples, as they stand in roots and items */
    size_t n_active;
    float *gradient; /* (n_samples, n_rows, d) */
    size_t step;     /* taken, of this search and those that it goes on from */
    double begin;    /* when the search began: the time that those took is before it */
    double saved;    /* when its state was last written */
    size_t saved_step;
    int lock;          /* of export_dir; -1: none */
    sp_status unsaved; /* of the last adapter that could not be written; SP_OK: all are */
    char why[512];     /* it could not */
} sp_crammer;

/* ---- cram_state.c: where a search stands, in DIR/checkpoints, so that a kill at any moment loses a minute of it ---- */

/* Takes export_dir for this search, and with `resume` goes on with the one that stands there, if there is one.
 * ARGUMENT: neither resume nor overwrite, and there is one. MISMATCH: it is of another model, or of other texts or flags. IO */
sp_status sp_cram_state_open(sp_crammer *crammer, const sp_logger *logger);

/* Writes it where a minute has passed since, or at once. On failure (a full disk) the one before is still there. */
sp_status sp_cram_state_save(sp_crammer *crammer, bool now);

/* ---- cram_report.c: what was reached ---- */

/* After a search that ended as `learnt` says, OK or STOPPED. */
sp_status sp_cram_report_or_fail(sp_cram_report *out, sp_crammer *crammer, sp_status learnt);

#endif
