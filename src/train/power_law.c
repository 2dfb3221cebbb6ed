/* power_law.c: for a given rate the curve is linear in floor and gain, so only the rate is searched. */
#include "train/power_law.h"

#include <math.h>

enum { N_GRID = 64, N_REFINEMENTS = 60, N_FITS = 5 };
static const double GOLDEN = 0.6180339887498949;
static const double LEAST_SHARE = 0.1; /* of a point's height that its curve counts as: a curve may touch 0 */

typedef struct points {
    const double *x, *y;
    double weight[SP_POWER_LAW_MAX_POINTS]; /* of a difference: 1 / the height there */
    size_t n;
} points;

double sp_power_law_at(const sp_power_law *law, double x)
{
    return law->floor + law->gain * pow(x, -law->rate);
}

static double sum_of_squares(const sp_power_law *law, const points *p)
{
    double sum = 0;
    for (size_t i = 0; i < p->n; i++) {
        double off = p->weight[i] * (sp_power_law_at(law, p->x[i]) - p->y[i]);
        sum += off * off;
    }
    return sum;
}

/* The better of the two curves on the border of what is allowed. */
static sp_power_law fit_border(const sp_power_law *only_floor, const sp_power_law *only_gain, const points *p)
{
    return sum_of_squares(only_floor, p) <= sum_of_squares(only_gain, p) ? *only_floor : *only_gain;
}

/* floor * u_i + gain * v_i = z_i in the sense of least squares, u = weight, v = weight x^-rate, z = weight y; neither below 0. */
static sp_power_law fit_at_rate(double rate, const points *p)
{
    double uu = 0, uv = 0, vv = 0, uz = 0, vz = 0;
    for (size_t i = 0; i < p->n; i++) {
        double u = p->weight[i], v = u * pow(p->x[i], -rate), z = u * p->y[i];
        uu += u * u, uv += u * v, vv += v * v, uz += u * z, vz += v * z;
    }
    const sp_power_law only_floor = {.floor = uz / uu, .rate = rate}, only_gain = {.gain = vz / vv, .rate = rate};
    double determinant = uu * vv - uv * uv;
    if (!(determinant > 1e-14 * uu * vv)) return fit_border(&only_floor, &only_gain, p);
    sp_power_law law = {(uz * vv - vz * uv) / determinant, (vz * uu - uz * uv) / determinant, rate, 0};
    return law.floor >= 0 && law.gain >= 0 ? law : fit_border(&only_floor, &only_gain, p);
}

static double error_at_log_rate(double log_rate, const points *p)
{
    sp_power_law law = fit_at_rate(exp(log_rate), p);
    return sum_of_squares(&law, p);
}

/* Golden section in [low, high], where one minimum is. */
static double refine(double low, double high, const points *p)
{
    for (int i = 0; i < N_REFINEMENTS; i++) {
        double left = high - GOLDEN * (high - low), right = low + GOLDEN * (high - low);
        if (error_at_log_rate(left, p) <= error_at_log_rate(right, p))
            high = right;
        else
            low = left;
    }
    return (low + high) / 2;
}

static sp_power_law fit_weighted(const points *p)
{
    double low = log(SP_SLOWEST_RATE), step = (log(SP_FASTEST_RATE) - low) / (N_GRID - 1), least = INFINITY;
    int best = 0;
    for (int i = 0; i < N_GRID; i++) {
        double error = error_at_log_rate(low + i * step, p);
        if (error < least) least = error, best = i;
    }
    double left = low + (best > 0 ? best - 1 : 0) * step, right = low + (best < N_GRID - 1 ? best + 1 : best) * step;
    return fit_at_rate(exp(refine(left, right, p)), p);
}

sp_power_law sp_power_law_fit(const double *x, const double *y, size_t n)
{
    points p = {.x = x, .y = y, .n = n};
    sp_power_law law;
    for (size_t i = 0; i < n; i++) p.weight[i] = 1 / y[i];
    for (int k = 0; k < N_FITS; k++) {
        law = fit_weighted(&p);
        for (size_t i = 0; i < n; i++) p.weight[i] = 1 / fmax(sp_power_law_at(&law, x[i]), LEAST_SHARE * y[i]);
    }
    law.noise = n > 3 ? sqrt(sum_of_squares(&law, &p) / (double)(n - 3)) : 0;
    return law;
}
