/* memorise.h: a random data set of the memorisation lab. */
#ifndef SP_LAB_MEMORISE_H
#define SP_LAB_MEMORISE_H

#include "softprompt.h"

typedef struct sp_pairs {
    size_t n, d, len;
    double *x, *y; /* (n, len, d) */
} sp_pairs;        /* zero-initialise; sp_pairs_clear */

/* Of one seed, d and len, the first of many are the few. is_shared: token 0 of every sequence is that of the first. MEMORY. */
sp_status sp_pairs_draw(sp_pairs *out, size_t n, size_t d, size_t len, bool is_shared, uint64_t seed);
void sp_pairs_clear(sp_pairs *pairs);

/* The largest |Y_i - Y_j| / |X_i - X_j| of two pairs, in the sup norm; at least 1. */
double sp_pairs_lipschitz(const sp_pairs *pairs);

enum { SP_MEMORISE_MAX_BITS = 53 }; /* of f64 */

/* Builds a machine, writes its prompt, and runs it. MEMORY. */
sp_status sp_memorise_construct(sp_memorise_constructed *out, sp_memorise_construction construction, const sp_pairs *pairs,
                                double epsilon);

#endif
