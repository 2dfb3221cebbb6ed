/* schedule.c: linear warm-up, then cosine, linear or constant. */
#include "train/schedule.h"

#include <math.h>

double sp_schedule_factor(sp_schedule schedule, size_t step, size_t warmup, size_t total)
{
    if (step < warmup) return (double)step / (double)warmup;
    if (schedule == SP_CONSTANT) return 1;
    double length = total > warmup ? (double)(total - warmup) : 1, done = (double)(step - warmup) / length;
    if (schedule == SP_COSINE) return fmax(0, 0.5 * (1 + cos(3.141592653589793 * done)));
    return step < total ? (double)(total - step) / length : 0;
}
