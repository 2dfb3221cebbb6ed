/* metrics.c: intervals and F1. */
#include "train/metrics.h"

#include <math.h>

static const double Z95 = 1.959963984540054; /* the normal quantile of 0.975 */

void sp_wilson_interval(double interval[2], size_t hits, size_t n)
{
    double share = (double)hits / (double)n, z2n = Z95 * Z95 / (double)n;
    double centre = (share + z2n / 2) / (1 + z2n);
    double half = Z95 / (1 + z2n) * sqrt(share * (1 - share) / (double)n + z2n / (4 * (double)n));
    interval[0] = hits == 0 ? 0 : centre - half; /* exact at the ends, where rounding would leave 1e-17 */
    interval[1] = hits == n ? 1 : centre + half;
}

double sp_macro_f1(const size_t *hits, const size_t *n_true, const size_t *n_predicted, size_t n_labels)
{
    double sum = 0;
    size_t n = 0;
    for (size_t i = 0; i < n_labels; i++) {
        size_t both = n_true[i] + n_predicted[i];
        if (both == 0) continue;
        sum += 2 * (double)hits[i] / (double)both;
        n++;
    }
    return n ? sum / (double)n : 0;
}
