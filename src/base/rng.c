/* rng.c: xoshiro256** and what is drawn from it. */
#include "base/rng.h"

#include <math.h>

static uint64_t rotate_left(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

static uint64_t split_mix(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

sp_rng sp_rng_seed(uint64_t seed, uint64_t stream)
{
    uint64_t mixed_stream = stream, state = seed ^ split_mix(&mixed_stream);
    sp_rng rng;
    for (int i = 0; i < 4; i++) rng.state[i] = split_mix(&state);
    return rng;
}

uint64_t sp_rng_next(sp_rng *rng)
{
    uint64_t *s = rng->state, result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

double sp_rng_uniform(sp_rng *rng)
{
    return (double)(sp_rng_next(rng) >> 11) * 0x1p-53;
}

double sp_rng_normal(sp_rng *rng)
{
    double u = 1 - sp_rng_uniform(rng), v = sp_rng_uniform(rng); /* u in (0, 1]: its logarithm is finite */
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

size_t sp_rng_below(sp_rng *rng, size_t bound)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % bound, draw; /* draws past the last whole multiple would be biased */
    do draw = sp_rng_next(rng);
    while (draw >= limit);
    return (size_t)(draw % bound);
}

void sp_rng_permute(sp_rng *rng, size_t *order, size_t n)
{
    for (size_t i = 0; i < n; i++) { /* Fisher-Yates, inside out */
        size_t j = sp_rng_below(rng, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
}
