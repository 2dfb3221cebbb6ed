/* rounding.h: the part of a certificate that f32 is to blame for, a worst case.
 *
 * The inputs' rounding moves a score s by at most 2 u |s|, and so the weights by at most u |s| in total variation. A term of degree
 * j of the sums, of size at most |c_j| range^j a key, carries the rounding of SP_TERMS_IN_F32 additions and those over lanes, of
 * its value and its state, and as many more as the way that it is made of: each u; numerator and normaliser alike, whose errors
 * add. */
#ifndef SP_FAST_ROUNDING_H
#define SP_FAST_ROUNDING_H

#include "fast/remez.h"

#define SP_UNIT_ROUNDOFF 0x1p-24 /* of f32 */

/* What queries found that one polynomial answered. Zero-initialise. */
typedef struct sp_served {
    size_t n_queries;
    double range;             /* the largest size of a score */
    double least_mean_weight; /* normaliser / keys in the moments */
} sp_served;

/* n queries more, whose normalisers are mean_weight times the keys, or more: a NaN stays. */
void sp_served_add(sp_served *served, size_t n, double range, double mean_weight);

/* A term of degree j rounds base + per_level j + d min(j + 1, degree) times more. */
typedef struct sp_term_roundings {
    double base, per_level, d;
} sp_term_roundings;

/* How far the weights are off at most, together, in units of u; infinite where the polynomial has no digits left. */
double sp_rounding_of_weights(const sp_served *served, const sp_exp_polynomial *p, sp_term_roundings roundings);

/* What that does to an output, and the roundings of values and output themselves. */
double sp_rounding_bound(double of_weights, double value_range, double value_magnitude);

#endif
