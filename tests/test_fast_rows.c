/* test_fast_rows.c: measuring rows and bringing them into the kernels' order and back, on every rung, against loops in double, for
 * widths around four and numbers of rows around each vector's. Sizes from the smallest f32 to the largest. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "fast/frame.h"
#include "fast/kernels.h"

enum { MAX_ROWS = 600, MAX_D = 21, GAP = 3, LD = MAX_D + GAP };

static const sp_fast_kernels *rungs[3];
static size_t n_rungs;
static const size_t widths[] = {1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 21}, lengths[] = {1, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 64, 577};
static const double sizes[] = {1, 1e-3, 1e-38, 1e-44, 1e30, 3e38};
static float rows[MAX_ROWS * LD], centre[MAX_D];

static void draw(double size)
{
    sp_rng rng = sp_rng_seed(1, 1);
    for (size_t i = 0; i < MAX_ROWS * LD; i++) rows[i] = (float)(size * (2 * sp_rng_uniform(&rng) - 1));
    for (size_t i = 0; i < MAX_D; i++) centre[i] = (float)(size / 8 * (2 * sp_rng_uniform(&rng) - 1));
}

/* For every rung, size, width and number of rows. */
static void for_each(void (*check)(const sp_fast_kernels *kernels, size_t n, size_t d, double size))
{
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        draw(sizes[s]);
        for (size_t r = 0; r < n_rungs; r++)
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
                for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) check(rungs[r], lengths[l], widths[w], sizes[s]);
    }
}

static void assert_near(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance)) fail_msg("got %.9g, want %.9g within %.3g", got, want, tolerance); /* NaN fails, too */
}

static void check_measure(const sp_fast_kernels *kernels, size_t n, size_t d, double size)
{
    double sum[MAX_D];
    float least[MAX_D], most[MAX_D];
    kernels->rows->measure(sum, least, most, rows, LD, n, d);
    for (size_t i = 0; i < d; i++) {
        double want = 0;
        float low = rows[i], high = rows[i];
        for (size_t j = 0; j < n; j++) {
            const float x = rows[j * LD + i];
            want += (double)x;
            low = x < low ? x : low, high = x > high ? x : high;
        }
        assert_near(sum[i], want, 1e-13 * size * (double)n);
        assert_true(least[i] == low && most[i] == high);
    }
    const size_t at = (n - 1) * LD + d - 1;
    const float kept = rows[at], bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t b = 0; b < 3; b++) {
        rows[at] = bad[b];
        kernels->rows->measure(sum, least, most, rows, LD, n, d);
        assert_false(isfinite(sum[d - 1]));
    }
    rows[at] = kept;
}

static void columns_are_measured(void **state)
{
    (void)state;
    for_each(check_measure);
}

static void check_square(const sp_fast_kernels *kernels, size_t n, size_t d, double size)
{
    double squares[MAX_ROWS + 1];
    (void)size;
    squares[n] = 7;
    kernels->rows->square(squares, rows, LD, n, centre, d);
    for (size_t j = 0; j < n; j++) {
        double want = 0;
        for (size_t i = 0; i < d; i++) {
            const double x = (double)rows[j * LD + i] - (double)centre[i];
            want += x * x;
        }
        assert_near(squares[j], want, 1e-14 * want);
    }
    assert_true(squares[n] == 7);
}

static void distances_are_squared(void **state)
{
    (void)state;
    for_each(check_square);
}

/* Rounded once, or what f32 has no digits for: relative to the largest distance. */
static double shrunk(size_t j, size_t i, double factor)
{
    return ((double)rows[j * LD + i] - (double)centre[i]) * factor;
}

static void check_pack_of(const sp_fast_kernels *kernels, const size_t *list, size_t n, size_t d, double size)
{
    static float out[(MAX_ROWS + 16) * MAX_D], row[MAX_ROWS * (MAX_D + 1)];
    const size_t lanes = kernels->lanes, vectors = (n + lanes - 1) / lanes;
    const double factor = sp_frame_shrinking_factor(1.125 * size);
    const struct {
        size_t step, stride;
    } orders[] = {{lanes, vectors * lanes}, {d * lanes, lanes}}; /* as keys and as values stand */
    for (size_t o = 0; o < 2; o++) {
        for (size_t i = 0; i < sizeof out / sizeof *out; i++) out[i] = NAN;
        kernels->rows->pack(out, orders[o].step, orders[o].stride, rows, LD, list, n, d, centre, factor);
        for (size_t j = 0; j < vectors * lanes; j++)
            for (size_t i = 0; i < d; i++) {
                const double want = j < n ? shrunk(list ? list[j] : j, i, factor) : 0;
                assert_near((double)out[j / lanes * orders[o].step + i * orders[o].stride + j % lanes], want,
                            fabs(want) * FLT_EPSILON / 2 * (1 + 1e-8) + 1e-20);
            }
    }
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) row[i] = 7;
    kernels->rows->shrink(row, d + 1, rows, LD, list, n, d, centre, factor);
    for (size_t j = 0; j < n; j++) {
        for (size_t i = 0; i < d; i++) {
            const double want = shrunk(list ? list[j] : j, i, factor);
            assert_near((double)row[j * (d + 1) + i], want, fabs(want) * FLT_EPSILON / 2 * (1 + 1e-8) + 1e-20);
        }
        assert_true(row[j * (d + 1) + d] == 7);
    }
}

static void check_pack(const sp_fast_kernels *kernels, size_t n, size_t d, double size)
{
    size_t list[MAX_ROWS];
    for (size_t j = 0; j < n; j++) list[j] = (j * 7 + 3) % 599;
    check_pack_of(kernels, NULL, n, d, size);
    check_pack_of(kernels, list, n, d, size);
}

static void rows_are_packed(void **state)
{
    (void)state;
    for_each(check_pack);
}

/* Queries of a list to a tile, whose sums go back to these places alone. */
static void check_tile(const sp_fast_kernels *kernels, size_t n, size_t d, double size)
{
    static float tile[MAX_D * 32], out[MAX_ROWS * LD];
    float sums[(MAX_D + 1) * 32];
    size_t list[32], width = kernels->tile_queries;
    const double factor = 1 / (3 * size), value_factor = sp_frame_shrinking_factor(size);
    if (n > width) return;
    for (size_t u = 0; u < n; u++) list[u] = (u * 7 + 3) % 599;
    kernels->rows->gather(tile, rows, LD, list, n, d, factor);
    for (size_t u = 0; u < width; u++)
        for (size_t i = 0; i < d; i++)
            assert_true(tile[i * width + u] == (float)((double)rows[list[u < n ? u : n - 1] * LD + i] * factor));
    sp_rng rng = sp_rng_seed(2, n);
    for (size_t i = 0; i < (d + 1) * width; i++) sums[i] = (float)(sp_rng_uniform(&rng) - .5);
    for (size_t u = 0; u < width; u++) sums[d * width + u] = 2 + (float)((u * 5 + 3) % width);
    for (size_t i = 0; i < MAX_ROWS * LD; i++) out[i] = 7;
    double least = INFINITY;
    for (size_t u = 0; u < n; u++) least = fmin(least, (double)sums[d * width + u]);
    assert_true(kernels->rows->scatter(out, LD, list, n, sums, d, centre, value_factor) == least);
    for (size_t u = 0; u < n; u++)
        for (size_t i = 0; i < d; i++) {
            float *at = &out[list[u] * LD + i];
            const double part = (double)sums[i * width + u] / ((double)sums[d * width + u] * value_factor);
            const double want = (double)centre[i] + part;
            assert_near((double)*at, want, FLT_EPSILON / 2 * fabs(want) * (1 + 1e-6) + 1e-15 * fabs(part) + 1e-45);
            *at = 7;
        }
    for (size_t i = 0; i < MAX_ROWS * LD; i++) assert_true(out[i] == 7);
    sums[d * width + n - 1] = NAN;
    assert_true(isnan(kernels->rows->scatter(out, LD, list, n, sums, d, centre, value_factor)));
}

static void tiles_go_and_come_back(void **state)
{
    (void)state;
    for_each(check_tile);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(columns_are_measured),
        cmocka_unit_test(distances_are_squared),
        cmocka_unit_test(rows_are_packed),
        cmocka_unit_test(tiles_go_and_come_back),
    };
    n_rungs = sp_fast_kernels_list(rungs);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
