/* sort.h: doubles in ascending order. */
#ifndef SP_BASE_SORT_H
#define SP_BASE_SORT_H

#include <stdlib.h>

static inline int sp_compare_doubles(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static inline void sp_sort_doubles(double *values, size_t n)
{
    qsort(values, n, sizeof *values, sp_compare_doubles);
}

#endif
