/* phase.h: hard instances of attention: a nearest neighbour among many keys that are half as near. */
#ifndef SP_LAB_PHASE_H
#define SP_LAB_PHASE_H

#include "softprompt.h"

typedef struct sp_phase_instance {
    size_t n, side; /* side = sqrt(n) clusters of as many keys */
    float *q, *k;   /* (n, 32) of -1 and 1; query i asks for the answer of cluster i / side */
    float *v;       /* (n) of -1 and 1 */
    float *out;     /* (n) */
    sp_fast *fast;  /* of the degree whose features are at most n */
    double range;   /* what it serves */
} sp_phase_instance;

/* Of the report's options; writes hard_n, hard_degree, hard_features, hard_range into it. Clear it on failure, too. */
sp_status sp_phase_instance_create(sp_phase_instance *out, sp_phase_report *report);
void sp_phase_instance_clear(sp_phase_instance *instance);

/* Entries of c sqrt(ln n): by the exact kernel, by the polynomial with the scores shrunk into its range, and what the polynomial's
 * certificate says of the scores as they are. */
sp_status sp_phase_instance_run(sp_phase_hard *out, sp_phase_instance *instance, double c);

/* The right answer of a query, -1 or 1. */
float sp_phase_instance_answer(const sp_phase_instance *instance, size_t query);

#endif
