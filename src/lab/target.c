/* target.c: the functions by name. For d len 1 some of them are the identity. */
#include "lab/target.h"

#include <math.h>
#include <string.h>

#include "base/sort.h"

static double mean_of(const double *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    return sum / (double)n;
}

static void identity(double *y, const double *x, size_t n, const void *data)
{
    (void)data;
    memcpy(y, x, n * sizeof *y);
}

static void reverse(double *y, const double *x, size_t n, const void *data)
{
    (void)data;
    for (size_t i = 0; i < n; i++) y[i] = x[n - 1 - i];
}

static void sort(double *y, const double *x, size_t n, const void *data)
{
    (void)data;
    memcpy(y, x, n * sizeof *y);
    sp_sort_doubles(y, n);
}

static void mean(double *y, const double *x, size_t n, const void *data)
{
    (void)data;
    for (size_t i = 0; i < n; i++) y[i] = mean_of(x, n);
}

static void max(double *y, const double *x, size_t n, const void *data)
{
    (void)data;
    double largest = x[0];
    for (size_t i = 1; i < n; i++) largest = fmax(largest, x[i]);
    for (size_t i = 0; i < n; i++) y[i] = largest;
}

/* |cos| / 2 times |2 mean + 2 x|' = 4: slope 2 */
static void sine(double *y, const double *x, size_t n, const void *data)
{
    (void)data;
    double m = mean_of(x, n);
    for (size_t i = 0; i < n; i++) y[i] = 0.5 + 0.5 * sin(2 * m + 2 * x[i]);
}

/* A tent over the middle of the cube: 1 there, 0 on its border. */
static void bump(double *y, const double *x, size_t n, const void *data)
{
    (void)data;
    double distance = 0;
    for (size_t i = 0; i < n; i++) distance = fmax(distance, fabs(x[i] - 0.5));
    for (size_t i = 0; i < n; i++) y[i] = 1 - 2 * distance;
}

/* All numbers one place on, the first one to the end. */
static void rotate(double *y, const double *x, size_t n, const void *data)
{
    (void)data;
    for (size_t i = 0; i < n; i++) y[i] = x[(i + 1) % n];
}

const sp_target_function sp_target_functions[] = {
    {"identity", 1, identity, NULL}, {"reverse", 1, reverse, NULL}, {"sort", 1, sort, NULL}, {"mean", 1, mean, NULL},
    {"max", 1, max, NULL},           {"sine", 2, sine, NULL},       {"bump", 2, bump, NULL}, {"rotate", 1, rotate, NULL},
};
const size_t sp_n_target_functions = sizeof sp_target_functions / sizeof *sp_target_functions;

const sp_target_function *sp_target_function_find(const char *name)
{
    for (size_t i = 0; i < sp_n_target_functions; i++)
        if (strcmp(sp_target_functions[i].name, name) == 0) return &sp_target_functions[i];
    return NULL;
}
