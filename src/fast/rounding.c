/* rounding.c: rounding.h, by arithmetic alone. */
#include "fast/rounding.h"

#include <math.h>

#include "base/sizes.h"
#include "fast/kernels.h"

void sp_served_add(sp_served *served, size_t n, double range, double mean_weight)
{
    if (served->n_queries == 0 || !(mean_weight >= served->least_mean_weight)) served->least_mean_weight = mean_weight;
    served->n_queries += n;
    served->range = fmax(served->range, range);
}

double sp_rounding_of_weights(const sp_served *served, const sp_exp_polynomial *p, sp_term_roundings r)
{
    enum { EVERY_TERM = SP_TERMS_IN_F32 + 9 };
    double terms = 0, power = 1;
    if (!(served->least_mean_weight > 0)) return (double)INFINITY; /* degrees far above the default: all digits are lost */
    for (size_t j = 0; j <= p->degree; j++) {
        const double additions = r.d * (double)sp_smaller(j + 1, p->degree);
        terms += fabs(p->c[j]) * power * (EVERY_TERM + r.base + r.per_level * (double)j + additions);
        power *= served->range;
    }
    return terms / served->least_mean_weight + served->range;
}

double sp_rounding_bound(double of_weights, double value_range, double value_magnitude)
{
    static const double SECOND_ORDER = 1.01; /* as long as 10^5 roundings meet */
    return SP_UNIT_ROUNDOFF * (SECOND_ORDER * value_range * of_weights + 3 * (value_range + value_magnitude));
}
