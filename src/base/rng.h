/* rng.h: random numbers that are the same on every machine. xoshiro256**, Blackman & Vigna 2018, seeded by SplitMix64. */
#ifndef SP_BASE_RNG_H
#define SP_BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

typedef struct sp_rng {
    uint64_t state[4];
} sp_rng;

/* Streams of one seed are independent: one a purpose (initialisation, order of epoch 3, sampling). */
sp_rng sp_rng_seed(uint64_t seed, uint64_t stream);
uint64_t sp_rng_next(sp_rng *rng);
double sp_rng_uniform(sp_rng *rng);                        /* [0, 1), 53 bits */
double sp_rng_normal(sp_rng *rng);                         /* mean 0, deviation 1 (Box-Muller, one value a call) */
size_t sp_rng_below(sp_rng *rng, size_t bound);            /* [0, bound), unbiased; bound >= 1 */
void sp_rng_permute(sp_rng *rng, size_t *order, size_t n); /* writes a random permutation of 0 .. n - 1 */

#endif
