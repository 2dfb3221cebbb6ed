/* clock.h: seconds that only go forward. */
#ifndef SP_BASE_CLOCK_H
#define SP_BASE_CLOCK_H

#include <time.h>

static inline double sp_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Processor time of the calling thread, which other programs disturb less. */
static inline double sp_thread_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
