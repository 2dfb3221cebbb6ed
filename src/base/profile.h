/* profile.h: where the engine's time goes, in thread-seconds since the process began. */
#ifndef SP_BASE_PROFILE_H
#define SP_BASE_PROFILE_H

#include "softprompt.h"

typedef enum sp_part { SP_PART_MATMUL, SP_PART_EXPAND, SP_PART_ATTENTION, SP_PART_NORM, SP_PART_ACTIVATION, SP_N_PARTS } sp_part;

/* Seconds of the calling thread. From any thread. EXPAND is time within MATMUL's regions, and taken off it in the end. */
void sp_profile_add(sp_part part, double seconds);

/* A parallel region that began at sp_seconds() == begin and ends now: its time, on every thread. From the thread that opened it. */
void sp_profile_add_region(sp_part part, double begin);

#endif
