/* test_kernels.c: every rung of the kernel ladder against plain loops in double, at lengths around each vector width. */
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
#include "tensor/kernels.h"

enum { MAX_N = 640 };
static const size_t sizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 577};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static const sp_kernels *rungs[3];
static size_t n_rungs;

/* Normal values, with room behind them that no kernel may touch. */
static void fill(float *x, size_t n, uint64_t seed, double scale)
{
    sp_rng rng = sp_rng_seed(seed, n);
    for (size_t i = 0; i < n; i++) x[i] = (float)(scale * sp_rng_normal(&rng));
}

static void assert_near(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance)) fail_msg("got %.9g, want %.9g within %.3g", got, want, tolerance); /* NaN fails, too */
}

static void dot_matches(void **state)
{
    (void)state;
    float a[MAX_N], b[MAX_N];
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t k = 0; k < N_SIZES; k++) {
            double want = 0, magnitude = 0;
            fill(a, sizes[k], 1, 1);
            fill(b, sizes[k], 2, 1);
            for (size_t i = 0; i < sizes[k]; i++) {
                want += (double)a[i] * (double)b[i];
                magnitude += fabs((double)a[i] * (double)b[i]);
            }
            assert_near((double)rungs[v]->dot(a, b, sizes[k]), want, (double)sizes[k] * FLT_EPSILON * magnitude);
        }
    assert_near((double)rungs[0]->dot(a, b, 0), 0, 0);
}

/* C = A B and C += A B, A plain and transposed, around the block of 6 rows and two vectors; nothing outside C is written. */
static void check_gemm(const sp_kernels *kernels, size_t m, size_t n, size_t k, bool transposed, bool accumulate)
{
    static float a[80 * 80], b[80 * 80], c[40 * 80], before[40 * 80];
    const size_t lda = transposed ? 40 : 80, a_row = transposed ? 1 : lda, a_col = transposed ? lda : 1, ldb = 77, ldc = 79;
    fill(a, 80 * 80, 3, 1);
    fill(b, 80 * 80, 4, 1);
    fill(c, 40 * 80, 5, 1);
    memcpy(before, c, sizeof c);
    kernels->gemm(c, ldc, a, a_row, a_col, b, ldb, m, n, k, accumulate);
    for (size_t i = 0; i < 40; i++)
        for (size_t j = 0; j < ldc; j++) {
            double want = (double)before[i * ldc + j];
            if (i < m && j < n) {
                if (!accumulate) want = 0;
                for (size_t l = 0; l < k; l++) want += (double)a[i * a_row + l * a_col] * (double)b[l * ldb + j];
            }
            assert_near((double)c[i * ldc + j], want, i < m && j < n ? 1e-5 * (double)(k + 1) : 0);
        }
}

static void gemm_matches(void **state)
{
    (void)state;
    static const size_t rows[] = {0, 1, 2, 3, 5, 6, 7, 12, 13}, columns[] = {0, 1, 3, 4, 7, 8, 15, 16, 17, 32, 33, 49, 64, 75},
                        inner[] = {0, 1, 5, 64};
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
            for (size_t j = 0; j < sizeof columns / sizeof *columns; j++)
                for (size_t l = 0; l < sizeof inner / sizeof *inner; l++)
                    for (int flags = 0; flags < 4; flags++)
                        check_gemm(rungs[v], rows[i], columns[j], inner[l], flags & 1, flags & 2);
}

static double reference_lse(const float *x, size_t n)
{
    double largest = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, (double)x[i]);
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - largest);
    return largest + log(sum);
}

/* Weights sum to what is said, equal exp(s - shift), and the padding is cleared; also where exp alone would overflow. */
static void softmax_matches(void **state)
{
    (void)state;
    static const double scales[] = {0.1, 5, 200};
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t k = 0; k < N_SIZES; k++)
            for (size_t s = 0; s < 3; s++) {
                float scores[MAX_N + 32], weights[MAX_N + 32];
                size_t n = sizes[k], padded = n + 5;
                double largest = -INFINITY, sum = 0;
                fill(scores, MAX_N + 32, 6, scales[s]);
                memcpy(weights, scores, sizeof weights);
                for (size_t i = 0; i < n; i++) largest = fmax(largest, (double)scores[i]);
                for (size_t i = 0; i < n; i++) sum += exp((double)scores[i] - largest);
                assert_near((double)rungs[v]->max(scores, n), largest, 0);
                assert_near((double)rungs[v]->softmax(weights, (float)largest, n, padded), sum,
                            2 * FLT_EPSILON * (2 + fabs(largest)) * sum);
                for (size_t i = 0; i < padded; i++) {
                    double want = i < n ? exp((double)scores[i] - largest) : 0;
                    double bound = 2 * FLT_EPSILON * (2 + fabs((double)scores[i]) + fabs(largest)); /* f32 differences, then exp */
                    assert_near((double)weights[i], want, bound * want + 1e-30);
                }
                double lse = reference_lse(scores, n);
                assert_near(rungs[v]->log_sum_exp(scores, n), lse, 1e-6 * (1 + fabs(lse)));
            }
}

/* A score that is no number stays one: it must not be hidden. */
static void softmax_keeps_nan(void **state)
{
    (void)state;
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t i = 0; i < 33; i++) {
            float s[64] = {0};
            s[i] = NAN;
            assert_true(isnan(rungs[v]->softmax(s, 0, 33, 33)));
        }
}

static void softmax_backward_is_the_derivative(void **state)
{
    (void)state;
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t k = 0; k < N_SIZES; k++) {
            float s[MAX_N + 32] = {0}, p[MAX_N + 32], dp[MAX_N + 32] = {0}, ds[MAX_N + 32];
            size_t n = sizes[k], padded = n + 5;
            double dot = 0;
            fill(s, padded, 7, 1);
            fill(dp, padded, 8, 1);
            memcpy(p, s, sizeof p);
            memcpy(ds, dp, sizeof ds);
            double lse = reference_lse(s, n);
            for (size_t j = 0; j < n; j++) dot += exp((double)s[j] - lse) * (double)dp[j];
            rungs[v]->softmax_backward(p, ds, (float)lse, (float)dot, n, padded);
            for (size_t i = 0; i < padded; i++) { /* d sum_j p_j dp_j / d s_i = p_i (dp_i - sum_j p_j dp_j) */
                double own = i < n ? exp((double)s[i] - lse) : 0;
                assert_near((double)p[i], own, 2e-6 * own);
                assert_near((double)ds[i], own * ((double)dp[i] - dot), i < n ? 2e-6 : 0);
            }
        }
}

static void scale_and_transpose_match(void **state)
{
    (void)state;
    float x[MAX_N], y[MAX_N], square[40 * 40], turned[40 * 40];
    fill(square, 40 * 40, 17, 1);
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t k = 0; k < N_SIZES; k++) {
            fill(x, sizes[k], 16, 1);
            rungs[v]->scale(y, x, 0.25f, sizes[k]);
            for (size_t i = 0; i < sizes[k]; i++) assert_near((double)y[i], 0.25 * (double)x[i], 0);
            size_t rows = sizes[k] % 39 + 1, columns = (sizes[k] + 20) % 37 + 1;
            memset(turned, 0, sizeof turned);
            rungs[v]->transpose(turned, 39, square, 40, rows, columns);
            for (size_t j = 0; j < 40; j++)
                for (size_t i = 0; i < 39; i++)
                    assert_near((double)turned[j * 39 + i], i < rows && j < columns ? (double)square[i * 40 + j] : 0, 0);
        }
}

static double reference_norm(const float *x, const float *w, const float *dy, double eps, size_t n)
{
    double squares = 0, along = 0;
    for (size_t i = 0; i < n; i++) squares += (double)x[i] * (double)x[i];
    for (size_t i = 0; i < n; i++) along += (double)dy[i] * (double)w[i] * (double)x[i];
    return along / sqrt(squares / (double)n + eps);
}

/* Forward by its definition; backward against central differences of sum dy * y in double. */
static void rms_norm_matches(void **state)
{
    (void)state;
    const double eps = 1e-5;
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t k = 0; k < N_SIZES; k++) {
            float x[MAX_N], w[MAX_N], y[MAX_N], dy[MAX_N], dx[MAX_N];
            size_t n = sizes[k];
            fill(x, n, 9, 3);
            fill(w, n, 10, 1);
            fill(dy, n, 11, 1);
            memset(dx, 0, sizeof dx);
            float rrms = rungs[v]->rms_norm(y, x, w, (float)eps, n);
            rungs[v]->rms_norm_backward(dx, dy, x, w, rrms, n);
            for (size_t i = 0; i < n; i++) {
                assert_near((double)y[i], (double)w[i] * (double)x[i] * (double)rrms, 1e-5);
                float kept = x[i], step = 1e-3f;
                x[i] = kept + step;
                double up = reference_norm(x, w, dy, eps, n), high = (double)x[i];
                x[i] = kept - step;
                double down = reference_norm(x, w, dy, eps, n), low = (double)x[i];
                x[i] = kept;
                assert_near((double)dx[i], (up - down) / (high - low), 2e-4);
            }
        }
}

/* sum dy * y of LayerNorm, y being without its bias, which adds a constant. */
static double reference_layer_norm(const float *x, const float *w, const float *dy, double eps, size_t n)
{
    double mean = 0, variance = 0, along = 0;
    for (size_t i = 0; i < n; i++) mean += (double)x[i] / (double)n;
    for (size_t i = 0; i < n; i++) variance += ((double)x[i] - mean) * ((double)x[i] - mean) / (double)n;
    for (size_t i = 0; i < n; i++) along += (double)dy[i] * (double)w[i] * ((double)x[i] - mean);
    return along / sqrt(variance + eps);
}

/* Numbers with a mean much larger than their deviation, as streams have them in some dimensions; a row of one number is its bias.
 */
static void layer_norm_matches(void **state)
{
    (void)state;
    const double eps = 1e-3;
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t k = 0; k < N_SIZES; k++) {
            float x[MAX_N], w[MAX_N], b[MAX_N], y[MAX_N], dy[MAX_N], dx[MAX_N], one[MAX_N];
            size_t n = sizes[k];
            fill(x, n, 9, 3);
            fill(w, n, 10, 1);
            fill(b, n, 18, 1);
            fill(dy, n, 11, 1);
            for (size_t i = 0; i < n; i++) x[i] += 20, dx[i] = 0.5f;
            float rstd = rungs[v]->layer_norm(y, x, w, b, (float)eps, n);
            rungs[v]->layer_norm_backward(dx, dy, x, w, rstd, n);
            for (size_t i = 0; i < n; i++) {
                memset(one, 0, sizeof one);
                one[i] = 1;
                assert_near((double)y[i], reference_layer_norm(x, w, one, eps, n) + (double)b[i], 2e-5);
                float kept = x[i], step = 4e-3f;
                x[i] = kept + step;
                double up = reference_layer_norm(x, w, dy, eps, n), high = (double)x[i];
                x[i] = kept - step;
                double down = reference_layer_norm(x, w, dy, eps, n), low = (double)x[i];
                x[i] = kept;
                assert_near((double)dx[i] - 0.5, (up - down) / (high - low), 3e-4);
            }
        }
}

static double reference_silu(double z)
{
    return z / (1 + exp(-z));
}

static double reference_gelu_tanh(double z)
{
    return 0.5 * z * (1 + tanh(sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)));
}

static double reference_gelu(double z)
{
    return 0.5 * z * erfc(-z / sqrt(2));
}

typedef double reference_activation(double z);
static reference_activation *const activations[SP_N_ACTIVATIONS] = {
    [SP_SILU] = reference_silu, [SP_GELU_TANH] = reference_gelu_tanh, [SP_GELU] = reference_gelu};

/* Of n numbers, also far into saturation; with another product behind the gate, and without one. */
static void check_activation(const sp_kernels *kernels, sp_activation kind, size_t n, double scale, bool gated)
{
    reference_activation *reference = activations[kind];
    float z[MAX_N], up[MAX_N], h[MAX_N], dh[MAX_N], dz[MAX_N], dup[MAX_N];
    fill(z, n, 12, scale);
    fill(up, n, 13, 1);
    fill(dh, n, 14, 1);
    memcpy(dz, z, sizeof z);
    memcpy(dup, up, sizeof up);
    kernels->activate[kind](h, z, gated ? up : NULL, n);
    kernels->activate_backward[kind](dz, gated ? dup : NULL, dh, n);
    for (size_t i = 0; i < n; i++) {
        double x = (double)z[i], u = gated ? (double)up[i] : 1, step = 1e-5;
        assert_near((double)h[i], reference(x) * u, 1e-6 * (1 + fabs(x * u)));
        double slope = (reference(x + step) - reference(x - step)) / (2 * step);
        assert_near((double)dz[i], (double)dh[i] * u * slope, 2e-6 * (1 + fabs((double)dh[i] * u)));
        assert_near((double)dup[i], gated ? (double)dh[i] * reference(x) : (double)up[i], 2e-6 * (1 + fabs(x * (double)dh[i])));
    }
}

static void activations_match(void **state)
{
    (void)state;
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t kind = 0; kind < SP_N_ACTIVATIONS; kind++)
            for (size_t k = 0; k < N_SIZES; k++)
                for (int flags = 0; flags < 4; flags++) check_activation(rungs[v], kind, sizes[k], flags & 1 ? 3 : 60, flags & 2);
}

/* What is left of gelu far below zero keeps its digits, down to where f32 itself ends, and nothing overflows. */
static void gelu_keeps_its_tail(void **state)
{
    (void)state;
    for (size_t v = 0; v < n_rungs; v++)
        for (float z = -13; z < 13; z += 0.0078125f) {
            float h;
            rungs[v]->activate[SP_GELU](&h, &z, NULL, 1);
            double want = reference_gelu((double)z),
                   bound = 1e-6 + (double)(z * z) * FLT_EPSILON; /* z^2 / 2 is rounded before exp */
            assert_near((double)h, want, fabs(want) * bound + 1e-37);
        }
    for (size_t v = 0; v < n_rungs; v++) {
        float far[] = {-1e30f, 1e30f, NAN}, h[3];
        rungs[v]->activate[SP_GELU](h, far, NULL, 3);
        assert_true(fabsf(h[0]) < 1e-6f && h[1] == 1e30f && isnan(h[2]));
    }
}

/* Values and slopes, also where the cap is all that is left; no number stays none. */
static void soft_cap_matches(void **state)
{
    (void)state;
    static const double caps[] = {0.5, 30}, scales[] = {0.01, 1, 40};
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t k = 0; k < N_SIZES; k++)
            for (size_t c = 0; c < 6; c++) {
                float x[MAX_N] = {0}, y[MAX_N], slope[MAX_N], alone[MAX_N];
                double cap = caps[c % 2];
                fill(x, sizes[k], 19, scales[c / 2]);
                memcpy(y, x, sizeof y);
                memcpy(alone, x, sizeof alone);
                rungs[v]->soft_cap(y, slope, (float)cap, sizes[k]);
                rungs[v]->soft_cap(alone, NULL, (float)cap, sizes[k]);
                for (size_t i = 0; i < sizes[k]; i++) {
                    double t = tanh((double)x[i] / cap);
                    assert_near((double)y[i], cap * t, 3e-7 * fabs(cap * t));
                    assert_near((double)slope[i], 1 - t * t, 4e-7);
                    assert_true(y[i] == alone[i]);
                }
            }
    for (size_t v = 0; v < n_rungs; v++) {
        float far[] = {-INFINITY, INFINITY, NAN, -1e30f};
        rungs[v]->soft_cap(far, NULL, 2, 4);
        assert_true(far[0] == -2 && far[1] == 2 && isnan(far[2]) && far[3] == -2);
    }
}

static void multiply_matches(void **state)
{
    (void)state;
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t k = 0; k < N_SIZES; k++) {
            float x[MAX_N] = {0}, y[MAX_N] = {0}, product[MAX_N];
            fill(x, sizes[k], 20, 1);
            fill(y, sizes[k], 21, 1);
            memcpy(product, y, sizeof y);
            rungs[v]->multiply(product, x, sizes[k]);
            for (size_t i = 0; i < sizes[k]; i++) assert_true(product[i] == x[i] * y[i]);
        }
}

static void exp_scaled_matches(void **state)
{
    (void)state;
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t k = 0; k < N_SIZES; k++) {
            float x[MAX_N] = {0}, y[MAX_N];
            fill(x, sizes[k], 15, 20);
            memcpy(y, x, sizeof y);
            rungs[v]->exp_scaled(y, 1.5f, 0.25f, sizes[k]);
            for (size_t i = 0; i < sizes[k]; i++) {
                double want = 0.25 * exp((double)(x[i] - 1.5f));
                assert_near((double)y[i], want, 3e-7 * want + 1e-37);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dot_matches),        cmocka_unit_test(gemm_matches),
        cmocka_unit_test(softmax_matches),    cmocka_unit_test(softmax_backward_is_the_derivative),
        cmocka_unit_test(softmax_keeps_nan),  cmocka_unit_test(scale_and_transpose_match),
        cmocka_unit_test(rms_norm_matches),   cmocka_unit_test(layer_norm_matches),
        cmocka_unit_test(activations_match),  cmocka_unit_test(gelu_keeps_its_tail),
        cmocka_unit_test(soft_cap_matches),   cmocka_unit_test(multiply_matches),
        cmocka_unit_test(exp_scaled_matches),
    };
    n_rungs = sp_kernels_list(rungs);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
