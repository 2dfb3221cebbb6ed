/* spectrum.h: of how many directions vectors are made. */
#ifndef SP_AUDIT_SPECTRUM_H
#define SP_AUDIT_SPECTRUM_H

#include "base/arena.h"

/* The rank that holds `share` (0 to 1) of the energy of vectors about their mean: the fewest directions whose squared singular
 * values sum to that share of all. vectors (d, n), transposed, rows ld apart: column r is vector r, n >= 1. Equal vectors have rank
 * 0. Cost: O(n d min(n, d) + min(n, d)^3), in f64; scratch is given back. */
sp_status sp_spectrum_rank(size_t *out, const float *vectors, size_t ld, size_t d, size_t n, double share, sp_arena *scratch);

#endif
