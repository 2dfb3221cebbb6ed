/* schedule.h: the learning rate of each step. */
#ifndef SP_TRAIN_SCHEDULE_H
#define SP_TRAIN_SCHEDULE_H

#include "softprompt.h"

/* The factor on the learning rate at `step`, from 0: up from 0 over `warmup` steps, then by the schedule down to 0 at `total`.
 * Equal to transformers' get_{cosine,linear,constant}_schedule_with_warmup; so with a warm-up the first step moves nothing
 * (but fills the optimiser's moments), and without one the last step is the smallest. */
double sp_schedule_factor(sp_schedule schedule, size_t step, size_t warmup, size_t total);

#endif
