/* exp.h: exp of vectors, for files that are compiled once for each rung (tensor/vec.h). */
#ifndef SP_TENSOR_EXP_H
#define SP_TENSOR_EXP_H

#include "tensor/vec.h"

#if defined(__AVX__)
#include <immintrin.h> /* for the few things that + and * do not say */
#endif

#define LOG2_E 1.44269504088896341f

typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));

/* Lanes of a where the mask is set, of b elsewhere: comparisons give such masks. */
INLINE vec choose(ivec mask, vec a, vec b)
{
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}

/* The larger lanes; b where either is no number. */
INLINE vec max_of(vec a, vec b)
{
#if LANES == 16
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

/* 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits. */
#define ROUND_SHIFT 12582912.0f

/* 2^f for |f| <= 1/2: a polynomial (least relative error, 2e-9). */
INLINE vec exp2_fraction(vec f)
{
    vec p = f * 1.5353362e-4f + 1.3398875e-3f;
    p = p * f + 9.6184369e-3f;
    p = p * f + 5.5503324e-2f;
    p = p * f + 2.4022648e-1f;
    p = p * f + 6.9314718e-1f;
    return p * f + 1.0f;
}

/* 2^n 2^f, n = shifted - ROUND_SHIFT being added to the exponent's bits. */
INLINE vec exp2_parts(vec shifted, vec f)
{
    vec p = exp2_fraction(f);
    return (vec)((uvec)p + ((uvec)shifted << 23)); /* unsigned: lanes that nobody uses may hold anything */
}

/* Relative error below 2.5e-7 on [-87, 88]; arguments outside are moved to the nearer end, so that e^-1000 is 1.6e-38, not 0: no
 * result is ever infinite or denormal. */
INLINE vec exp_vec(vec x)
{
    x = -max_of(broadcast(-88.0f), -max_of(broadcast(-87.0f), x)); /* a NaN stays one */
    vec shifted = x * LOG2_E + ROUND_SHIFT, n = shifted - ROUND_SHIFT;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts: the first has few bits, its product is exact */
    return exp2_parts(shifted, r * LOG2_E);
}

/* exp(x - shift) for what is not, or hardly, above 0, given shift * log2 e. Shorter: what rounding x log2 e loses is what rounding
 * x - shift would. From 2^-125 down everything is 2^-125. */
INLINE vec exp_below(vec x, float shift_log2)
{
    vec t = max_of(broadcast(-125.0f), x * LOG2_E - shift_log2), shifted = t + ROUND_SHIFT;
    return exp2_parts(shifted, t - (shifted - ROUND_SHIFT));
}

#endif
