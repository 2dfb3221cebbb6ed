/* distill_run.h: what a run of training has beside the others' where it distils: a teacher, queries, and how far the text was from
 * nothing, and from the prompt, before the first step. All of it is the trainer's. */
#ifndef SP_TRAIN_DISTILL_RUN_H
#define SP_TRAIN_DISTILL_RUN_H

#include "train/trainer.h"

/* Fills in how many queries a run without data samples; *n_rows: rows or queries to train on. ARGUMENT: options that are not for
 * such a run, or nothing to train on. */
sp_status sp_distill_run_resolve(size_t *n_rows, sp_train_options *options, const sp_dataset *train, const sp_dataset *eval);

/* The teacher, and the room that it leaves. Before rows are encoded. ARGUMENT: the text is none, or too long. */
sp_status sp_distill_run_open(sp_trainer *trainer);

/* Encoded rows become queries, and some of them are held out where there are no others to evaluate on. Nothing without rows. */
sp_status sp_distill_run_take_rows(sp_trainer *trainer);

/* Samples the queries of a run without rows, or reads those that it sampled before. */
sp_status sp_distill_run_prepare(sp_trainer *trainer);

/* Before the first step: the divergences that the report sets beside the last one. */
sp_status sp_distill_run_start(sp_trainer *trainer);

void sp_distill_run_report(sp_train_report *report, const sp_trainer *trainer);

#endif
