/* power_law.h: a curve of diminishing returns through noisy points: y = floor + gain x^-rate. */
#ifndef SP_TRAIN_POWER_LAW_H
#define SP_TRAIN_POWER_LAW_H

#include <stddef.h>

typedef struct sp_power_law {
    double floor, gain, rate; /* floor, gain >= 0; rate in [SP_SLOWEST_RATE, SP_FASTEST_RATE] */
    double noise;             /* deviation of a point from the curve, as a share of its height */
} sp_power_law;

#define SP_SLOWEST_RATE 0.05
#define SP_FASTEST_RATE 4.0

/* Points lie off the curve by a share of its height: the least squares of (y - curve) / curve, with the denominator of the fit
 * before, a few times over, so that a loss of 0.02 that is 0.01 off counts as one of 2 that is 1 off. 1 <= n <=
 * SP_POWER_LAW_MAX_POINTS, x >= 1, y > 0. `noise` has n - 3 degrees of freedom, and is 0 of up to three points. */
enum { SP_POWER_LAW_MAX_POINTS = 256 };
sp_power_law sp_power_law_fit(const double *x, const double *y, size_t n);

double sp_power_law_at(const sp_power_law *law, double x);

#endif
