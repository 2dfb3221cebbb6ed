/* sizes.h: arithmetic on sizes. */
#ifndef SP_BASE_SIZES_H
#define SP_BASE_SIZES_H

#include <stddef.h>

static inline size_t sp_smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t sp_larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* To a multiple of `step`. */
static inline size_t sp_round_up(size_t n, size_t step)
{
    return (n + step - 1) / step * step;
}

#endif
