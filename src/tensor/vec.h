/* vec.h: vectors of the width that this compilation's flags allow, for files that are compiled once for each rung.
 *
 * The compilers' vector types (GNU C, gcc and clang): + and * on them become the widest instructions that the flags permit,
 * 16 lanes with AVX-512, 8 with AVX2, 4 otherwise. Only files of sp_add_kernel_variants include this header. */
#ifndef SP_TENSOR_VEC_H
#define SP_TENSOR_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float unaligned_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vec load(const float *p)
{
    return *(const unaligned_vec *)p;
}
INLINE void store(float *p, vec v)
{
    *(unaligned_vec *)p = v;
}
INLINE vec broadcast(float x)
{
    return x - (vec){0};
}

/* The first n < LANES values; the rest zero. */
INLINE vec load_part(const float *p, size_t n)
{
    vec v = {0};
    memcpy(&v, p, n * sizeof *p);
    return v;
}

INLINE void store_part(float *p, vec v, size_t n)
{
    memcpy(p, &v, n * sizeof *p);
}

#endif
