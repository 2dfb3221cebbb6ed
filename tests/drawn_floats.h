/* drawn_floats.h: numbers of a seed, in memory that ends where they do. Before it: cmocka.h. */
#ifndef SP_TESTS_DRAWN_FLOATS_H
#define SP_TESTS_DRAWN_FLOATS_H

#include "base/rng.h"

/* (n) uniform in [-scale, scale]; free. */
static float *floats(size_t n, uint64_t seed, double scale)
{
    float *x = malloc((n + 1) * sizeof *x);
    sp_rng rng = sp_rng_seed(seed, n);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = (float)(scale * (2 * sp_rng_uniform(&rng) - 1));
    return x;
}

#endif
