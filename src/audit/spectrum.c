/* spectrum.c: eigenvalues of the smaller of the two Gram matrices: a matrix of heads' size takes a few sweeps, and small
 * eigenvalues come out as accurate as large ones of their neighbourhood. */
#include "audit/spectrum.h"

#include "base/status.h"
#include "tensor/symmetric.h"

static const double ROUNDING = 1e-24;

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

sp_status sp_spectrum_rank(size_t *out, const float *vectors, size_t ld, size_t d, size_t n, double share, sp_arena *scratch)
{
    const size_t m = d < n ? d : n;
    const sp_arena_mark mark = sp_arena_get_mark(scratch);
    double *x = sp_arena_alloc(scratch, d * n, sizeof *x), *gram = sp_arena_alloc(scratch, m * m, sizeof *gram);
    double *directions = sp_arena_alloc(scratch, m * m, sizeof *directions), all = 0, sum = 0;
    *out = 0;
    if (!x || !gram || !directions) return SP_ERR_MEMORY;
    const double energy = centre(x, vectors, ld, d, n);
    multiply(gram, x, d, n);
    sp_symmetric_eigen(gram, directions, m);
    for (size_t i = 0; i < m; i++) all += gram[i * m + i];
    if (all <= ROUNDING * energy) all = 0; /* the mean of equal numbers is not quite that number */
    for (; sum < share * all && *out < m; ++*out) sum += gram[*out * m + *out];
    sp_arena_reset(scratch, mark);
    return SP_OK;
}
