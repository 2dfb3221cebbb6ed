/* profile.c: one counter of nanoseconds for each part of the work. */
#include "base/profile.h"

#include <omp.h>

#include "base/clock.h"

static int64_t nanoseconds[SP_N_PARTS];

void sp_profile_add(sp_part part, double seconds)
{
    __atomic_fetch_add(&nanoseconds[part], (int64_t)(1e9 * seconds), __ATOMIC_RELAXED);
}

void sp_profile_add_region(sp_part part, double begin)
{
    sp_profile_add(part, (sp_seconds() - begin) * omp_get_max_threads());
}

static double seconds_of(sp_part part)
{
    return 1e-9 * (double)__atomic_load_n(&nanoseconds[part], __ATOMIC_RELAXED);
}

void sp_profile_get(sp_profile *out)
{
    *out = (sp_profile){.matmul = seconds_of(SP_PART_MATMUL) - seconds_of(SP_PART_EXPAND),
                        .expand = seconds_of(SP_PART_EXPAND),
                        .attention = seconds_of(SP_PART_ATTENTION),
                        .norm = seconds_of(SP_PART_NORM),
                        .activation = seconds_of(SP_PART_ACTIVATION)};
}
