/* spectrum.c: eigenvalues of the smaller of the two Gram matrices, by Jacobi's rotations (Golub and Van Loan, Matrix Computations,
 * 8.5): a matrix of heads' size takes a few sweeps, and small eigenvalues come out as accurate as large ones of their
 * neighbourhood. */
#include "audit/spectrum.h"

#include <math.h>
#include <stdlib.h>

#include "base/status.h"

enum { MAX_SWEEPS = 50 };
static const double ROUNDING = 1e-24;

/* Turns a (m, m), symmetric, so that a_pq becomes 0. */
static void rotate(double *a, size_t m, size_t p, size_t q)
{
    const double apq = a[p * m + q];
    if (apq == 0) return;
    const double theta = (a[q * m + q] - a[p * m + p]) / (2 * apq);
    const double t = copysign(1, theta) / (fabs(theta) + sqrt(theta * theta + 1)), c = 1 / sqrt(t * t + 1), s = t * c;
    for (size_t i = 0; i < m; i++) {
        double ip = a[i * m + p], iq = a[i * m + q];
        a[i * m + p] = c * ip - s * iq;
        a[i * m + q] = s * ip + c * iq;
    }
    for (size_t i = 0; i < m; i++) {
        double pi = a[p * m + i], qi = a[q * m + i];
        a[p * m + i] = c * pi - s * qi;
        a[q * m + i] = s * pi + c * qi;
    }
}

/* The diagonal of a (m, m) becomes its eigenvalues. */
static void diagonalise(double *a, size_t m)
{
    for (int sweep = 0; sweep < MAX_SWEEPS; sweep++) {
        double off = 0, all = 0;
        for (size_t p = 0; p < m; p++)
            for (size_t q = 0; q < m; q++) {
                all += a[p * m + q] * a[p * m + q];
                off += p == q ? 0 : a[p * m + q] * a[p * m + q];
            }
        if (off <= 1e-24 * all) return;
        for (size_t p = 0; p + 1 < m; p++)
            for (size_t q = p + 1; q < m; q++) rotate(a, m, p, q);
    }
}

/* centred (d, n) = vectors less their mean. Returns the energy about 0. */
static double centre(double *centred, const float *vectors, size_t ld, size_t d, size_t n)
{
    double energy = 0;
    for (size_t i = 0; i < d; i++, vectors += ld, centred += n) {
        double mean = 0;
        for (size_t r = 0; r < n; r++) {
            mean += (double)vectors[r] / (double)n;
            energy += (double)vectors[r] * (double)vectors[r];
        }
        for (size_t r = 0; r < n; r++) centred[r] = (double)vectors[r] - mean;
    }
    return energy;
}

/* x x^T (d, d), or x^T x (n, n), of x (d, n). */
static void multiply(double *gram, const double *x, size_t d, size_t n)
{
    const size_t m = d < n ? d : n, length = d < n ? n : d, step = d < n ? 1 : n, apart = d < n ? n : 1;
    for (size_t p = 0; p < m; p++)
        for (size_t q = 0; q <= p; q++) {
            double sum = 0;
            for (size_t i = 0; i < length; i++) sum += x[p * apart + i * step] * x[q * apart + i * step];
            gram[p * m + q] = gram[q * m + p] = sum;
        }
}

static int descending(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;
    return (a < b) - (a > b);
}

sp_status sp_spectrum_rank(size_t *out, const float *vectors, size_t ld, size_t d, size_t n, double share, sp_arena *scratch)
{
    const size_t m = d < n ? d : n;
    const sp_arena_mark mark = sp_arena_get_mark(scratch);
    double *x = sp_arena_alloc(scratch, d * n, sizeof *x), *gram = sp_arena_alloc(scratch, m * m, sizeof *gram), all = 0, sum = 0;
    *out = 0;
    if (!x || !gram) return SP_ERR_MEMORY;
    const double energy = centre(x, vectors, ld, d, n);
    multiply(gram, x, d, n);
    diagonalise(gram, m);
    for (size_t i = 0; i < m; i++) all += gram[i] = gram[i * m + i]; /* rows i and on are not read any more */
    qsort(gram, m, sizeof *gram, descending);
    if (all <= ROUNDING * energy) all = 0; /* the mean of equal numbers is not quite that number */
    for (; sum < share * all && *out < m; ++*out) sum += gram[*out];
    sp_arena_reset(scratch, mark);
    return SP_OK;
}
