/* plane.h: the plane in which a head's keys lie, or nearly: k = centre + basis^T a + a remainder.
 *
 * Scores with such keys depend on rank numbers of a query, basis q, besides q . centre, which is common to all keys. */
#ifndef SP_FAST_PLANE_H
#define SP_FAST_PLANE_H

#include "softprompt.h"

typedef struct sp_plane {
    size_t d, rank;
    double *centre; /* (d) */
    double *basis;  /* (rank, d); rows orthonormal where they were found here. NULL: rank 0 */
} sp_plane;         /* sp_plane_free frees what it holds */

/* The plane of the fewest dimensions, at most max_rank, that no key is farther from than `tolerance` times the largest distance of
 * a key from the centre and f32's rounding: directions are taken from the farthest key that is left, one by one, and then turned
 * towards the keys' own principal ones. Its centre is the keys' mean, or the middle of their box in the plane where that is nearer
 * to all. UNSUPPORTED: the keys have more dimensions; the message says how far the farthest is. Cost: O(n_keys d rank), in f64. */
sp_status sp_plane_find(sp_plane *out, const sp_attention_head *keys, size_t max_rank, double tolerance);

/* The one that was given; the centre NULL: the keys' mean. */
sp_status sp_plane_copy(sp_plane *out, const sp_attention_head *keys, const float *centre, const float *basis, size_t rank);
void sp_plane_free(sp_plane *plane);

/* How far keys lie from their plane because their own numbers were rounded to f32. */
double sp_plane_rounding(const sp_plane *plane);

/* a (rank) = basis (k - centre). Returns |a|; *remainder = |k - centre - basis^T a|. scratch (d). */
double sp_plane_project(double *a, double *remainder, const sp_plane *plane, const float *key, double *scratch);

#endif
