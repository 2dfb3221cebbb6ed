/* planner_costs.h: what a prompt of some length costs on this machine, now. */
#ifndef SP_TRAIN_PLANNER_COSTS_H
#define SP_TRAIN_PLANNER_COSTS_H

#include "train/encoded.h"

/* Writes step_seconds, decode_tokens_per_second, peak_bytes and state_bytes of `length`, whose num_virtual_tokens is set: the
 * median of a few passes over batch_size rows, forward and backward, and of a few tokens behind the prompt. Peaks are the process's
 * so far, so shorter lengths come first. */
sp_status sp_plan_measure_costs(sp_plan_length *length, sp_model *model, const sp_encoded_data *rows, size_t batch_size);

#endif
