/* test_key_bound.c: keys of a prompt that are held inside a bound. What is claimed of the projection: what it gives is inside and
 * no point inside is nearer; a second one changes nothing; values and means stay. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "prompt/key_bound.h"
#include "tensor/symmetric.h"

enum { LAYERS = 2, HEADS = 3, MAX_D = 24, MAX_KEYS = 40, TRIALS = 200 };

static const struct {
    size_t d, rank, n_keys;
    double length; /* of the keys about their mean, in radii */
} CASES[] = {{8, 8, 5, 3},    {8, 3, 7, 0.5}, {8, 3, 7, 10}, {24, 4, 40, 2},
             {24, 24, 40, 1}, {8, 1, 3, 2},   {8, 2, 1, 4},  {8, 2, 2, 4}};
enum { N_CASES = sizeof CASES / sizeof *CASES };

static size_t width_of(const sp_key_bound *b)
{
    return 2 * sp_key_bound_n_heads(b) * b->d_head;
}

/* Orthonormal rows: eigenvectors of a random symmetric matrix. */
static void random_directions(float *rows, size_t rank, size_t d, sp_rng *rng)
{
    static double a[MAX_D * MAX_D], vectors[MAX_D * MAX_D];
    for (size_t i = 0; i < d; i++)
        for (size_t k = 0; k <= i; k++) a[i * d + k] = a[k * d + i] = sp_rng_normal(rng);
    sp_symmetric_eigen(a, vectors, d);
    for (size_t i = 0; i < rank * d; i++) rows[i] = (float)vectors[i];
}

/* A bound whose radii are max_logit / norm = 1 to 2, and keys and values beside it. */
static sp_key_bound *make(float **keys_values, size_t index, sp_rng *rng)
{
    const sp_model_info info = {.n_layer = LAYERS, .n_head_kv = HEADS, .d_head = CASES[index].d};
    sp_key_bound *b;
    assert_int_equal(sp_key_bound_create(&b, 2, CASES[index].rank, &info, CASES[index].n_keys), SP_OK);
    for (size_t h = 0; h < LAYERS * HEADS; h++) {
        random_directions(b->directions + h * b->rank * b->d_head, b->rank, b->d_head, rng);
        b->query_norms[h] = (float)(1 + sp_rng_uniform(rng));
    }
    const double entry = CASES[index].length / sqrt((double)b->d_head);
    float *rows = *keys_values = malloc(b->n_keys * width_of(b) * sizeof *rows);
    for (size_t c = 0; c < width_of(b); c++) {
        const double centre = 3 * sp_rng_normal(rng);
        for (size_t j = 0; j < b->n_keys; j++) rows[j * width_of(b) + c] = (float)(centre + entry * sp_rng_normal(rng));
    }
    return b;
}

static float *copy_of(const float *rows, const sp_key_bound *b)
{
    const size_t n_bytes = b->n_keys * width_of(b) * sizeof *rows;
    return memcpy(malloc(n_bytes), rows, n_bytes);
}

static double radius_of(const sp_key_bound *b, size_t head)
{
    return b->max_logit / (double)b->query_norms[head];
}

static double mean_of(const float *keys, const sp_key_bound *b, size_t dimension)
{
    double mean = 0;
    for (size_t j = 0; j < b->n_keys; j++) mean += (double)keys[j * width_of(b) + dimension] / (double)b->n_keys;
    return mean;
}

static void what_is_projected_is_inside(void **state)
{
    (void)state;
    sp_rng rng = sp_rng_seed(1, 1);
    for (size_t i = 0; i < N_CASES; i++) {
        float *rows;
        sp_key_bound *b = make(&rows, i, &rng);
        float *before = copy_of(rows, b), *once;
        const size_t d = b->d_head, width = width_of(b);
        assert_true(sp_key_bound_project(rows, b) || b->n_keys == 1);
        for (size_t h = 0; h < sp_key_bound_n_heads(b); h++) {
            double norm, entry, free_norm, rest = 0;
            const size_t column = sp_key_bound_column(b, h), values = column + HEADS * d;
            const float *u = b->directions + h * b->rank * d;
            sp_key_bound_measure(&free_norm, &entry, before, b, h);
            sp_key_bound_measure(&norm, &entry, rows, b, h);
            assert_true(norm <= radius_of(b, h) && entry <= norm);
            assert_true(norm >= fmin(free_norm, radius_of(b, h)) * (1 - 3e-5)); /* and no shorter than need be */
            for (size_t k = 0; k < d; k++) {
                assert_true(fabs(mean_of(rows + column, b, k) - mean_of(before + column, b, k)) <= 1e-5);
                for (size_t j = 0; j < b->n_keys; j++) {
                    assert_true(rows[j * width + values + k] == before[j * width + values + k]);
                    if (b->rank == d) continue;
                    double x = (double)rows[j * width + column + k] - mean_of(rows + column, b, k); /* less what is in U: nothing */
                    for (size_t r = 0; r < b->rank; r++)
                        for (size_t m = 0; m < d; m++)
                            x -= (double)u[r * d + k] * (double)u[r * d + m] *
                                 ((double)rows[j * width + column + m] - mean_of(rows + column, b, m));
                    rest = fmax(rest, fabs(x));
                }
            }
            assert_true(rest <= 1e-5);
        }
        once = copy_of(rows, b);
        assert_false(sp_key_bound_project(rows, b));
        assert_memory_equal(rows, once, b->n_keys * width * sizeof *rows);
        free(once);
        free(before);
        free(rows);
        sp_key_bound_free(b);
    }
}

/* Some other keys of a head inside the bound, of the same mean or not: c + a U with a of mean 0, shrunk to the radius. */
static void random_inside(double *keys, const sp_key_bound *b, size_t head, const float *near, double spread, sp_rng *rng)
{
    const size_t d = b->d_head, n = b->n_keys;
    static double a[MAX_KEYS * MAX_D];
    const float *u = b->directions + head * b->rank * d;
    double largest = 0;
    for (size_t r = 0; r < b->rank; r++) {
        double mean = 0;
        for (size_t j = 0; j < n; j++) mean += (a[j * b->rank + r] = spread * sp_rng_normal(rng)) / (double)n;
        for (size_t j = 0; j < n; j++) {
            double own = 0; /* around the projection's own coordinates, so that there are such ones beside it */
            for (size_t k = 0; k < d; k++)
                own += (b->rank == d ? (double)(r == k) : (double)u[r * d + k]) *
                       ((double)near[j * width_of(b) + k] - mean_of(near, b, k));
            a[j * b->rank + r] += own - mean;
        }
    }
    for (size_t j = 0; j < n; j++) {
        double squares = 0;
        for (size_t r = 0; r < b->rank; r++) squares += a[j * b->rank + r] * a[j * b->rank + r];
        largest = fmax(largest, sqrt(squares));
    }
    const double radius = radius_of(b, head) * (1 - 1e-5); /* the projection stays so far inside */
    const double factor = largest > radius ? radius / largest : 1;
    for (size_t k = 0; k < d; k++) {
        const double centre = mean_of(near, b, k) + spread * sp_rng_normal(rng);
        for (size_t j = 0; j < n; j++) {
            keys[j * d + k] = centre;
            for (size_t r = 0; r < b->rank; r++)
                keys[j * d + k] += factor * a[j * b->rank + r] * (b->rank == d ? (double)(r == k) : (double)u[r * d + k]);
        }
    }
}

/* p is the nearest point of a convex set to x if and only if (x - p) . (y - p) <= 0 for every y in it. */
static void no_point_inside_is_nearer(void **state)
{
    (void)state;
    sp_rng rng = sp_rng_seed(2, 1);
    static double y[MAX_KEYS * MAX_D];
    for (size_t i = 0; i < N_CASES; i++) {
        float *rows;
        sp_key_bound *b = make(&rows, i, &rng);
        float *x = copy_of(rows, b);
        sp_key_bound_project(rows, b);
        for (size_t h = 0; h < sp_key_bound_n_heads(b); h++) {
            const float *p = rows + sp_key_bound_column(b, h), *from = x + sp_key_bound_column(b, h);
            for (int t = 0; t < TRIALS; t++) {
                double product = 0, length = 0;
                random_inside(y, b, h, p, pow(10, -(t % 4)), &rng);
                for (size_t j = 0; j < b->n_keys; j++)
                    for (size_t k = 0; k < b->d_head; k++) {
                        const size_t at = j * width_of(b) + k;
                        const double step = y[j * b->d_head + k] - (double)p[at];
                        product += ((double)from[at] - (double)p[at]) * step;
                        length += step * step;
                    }
                const double rounding = 1e-6 * CASES[i].length * (double)b->n_keys; /* of keys in f32 */
                assert_true(product <= rounding * (sqrt(length) + 10));
            }
        }
        free(x);
        free(rows);
        sp_key_bound_free(b);
    }
}

/* The same by alternating projections (Dykstra), which know nothing of Huber: onto each key's ball, and onto mean 0. */
static void dykstra(double *x, size_t n, size_t rank, double radius)
{
    static double balls[MAX_KEYS * MAX_D];
    memset(balls, 0, n * rank * sizeof *balls);
    for (int round = 0; round < 20000; round++) {
        for (size_t j = 0; j < n; j++) {
            double squares = 0;
            for (size_t r = 0; r < rank; r++) {
                x[j * rank + r] += balls[j * rank + r];
                squares += x[j * rank + r] * x[j * rank + r];
            }
            const double factor = fmin(1, radius / sqrt(squares));
            for (size_t r = 0; r < rank; r++) {
                balls[j * rank + r] = (1 - factor) * x[j * rank + r];
                x[j * rank + r] *= factor;
            }
        }
        for (size_t r = 0; r < rank; r++) { /* a subspace needs no memory */
            double mean = 0;
            for (size_t j = 0; j < n; j++) mean += x[j * rank + r] / (double)n;
            for (size_t j = 0; j < n; j++) x[j * rank + r] -= mean;
        }
    }
}

static void it_is_what_alternating_projections_give(void **state)
{
    (void)state;
    sp_rng rng = sp_rng_seed(3, 1);
    static double x[MAX_KEYS * MAX_D];
    for (size_t i = 0; i < 3; i++) {
        float *rows;
        sp_key_bound *b = make(&rows, i, &rng);
        float *before = copy_of(rows, b);
        const size_t d = b->d_head, column = sp_key_bound_column(b, 4);
        const float *u = b->directions + 4 * b->rank * d;
        for (size_t j = 0; j < b->n_keys; j++)
            for (size_t r = 0; r < b->rank; r++) {
                x[j * b->rank + r] = 0;
                for (size_t k = 0; k < d; k++)
                    x[j * b->rank + r] += (b->rank == d ? (double)(r == k) : (double)u[r * d + k]) *
                                          ((double)before[j * width_of(b) + column + k] - mean_of(before + column, b, k));
            }
        dykstra(x, b->n_keys, b->rank, radius_of(b, 4));
        sp_key_bound_project(rows, b);
        for (size_t j = 0; j < b->n_keys; j++)
            for (size_t k = 0; k < d; k++) {
                double want = mean_of(before + column, b, k);
                for (size_t r = 0; r < b->rank; r++)
                    want += x[j * b->rank + r] * (b->rank == d ? (double)(r == k) : (double)u[r * d + k]);
                assert_true(fabs(want - (double)rows[j * width_of(b) + column + k]) <= 3e-5 * (1 + radius_of(b, 4)));
            }
        free(before);
        free(rows);
        sp_key_bound_free(b);
    }
}

/* Without a norm there is no radius; the directions hold. Many keys far outside, of which some stand in one place. */
static void odd_heads(void **state)
{
    (void)state;
    sp_rng rng = sp_rng_seed(4, 1);
    float *rows;
    sp_key_bound *b = make(&rows, 3, &rng);
    double norm, entry, free_norm;
    memset(b->query_norms, 0, sp_key_bound_n_heads(b) * sizeof *b->query_norms);
    sp_key_bound_measure(&free_norm, &entry, rows, b, 1);
    assert_true(sp_key_bound_project(rows, b));
    sp_key_bound_measure(&norm, &entry, rows, b, 1);
    assert_true(fabs(norm - free_norm) <= 1e-5 * free_norm);
    for (size_t h = 0; h < sp_key_bound_n_heads(b); h++) b->query_norms[h] = 1e6F;
    for (size_t j = 0; j < b->n_keys; j++)
        for (size_t c = 0; c < width_of(b); c++)
            if (j < b->n_keys / 2) rows[j * width_of(b) + c] = 1;
    assert_true(sp_key_bound_project(rows, b));
    for (size_t h = 0; h < sp_key_bound_n_heads(b); h++) {
        sp_key_bound_measure(&norm, &entry, rows, b, h);
        assert_true(norm <= 2e-6 + 1e-6 * 30); /* the radius, and what f32 leaves of keys that large */
    }
    free(rows);
    sp_key_bound_free(b);
}

static void eigenvectors(void **state)
{
    (void)state;
    sp_rng rng = sp_rng_seed(5, 1);
    static double a[MAX_D * MAX_D], copy[MAX_D * MAX_D], v[MAX_D * MAX_D];
    for (size_t m = 1; m <= MAX_D; m++) {
        for (size_t i = 0; i < m; i++)
            for (size_t k = 0; k <= i; k++) a[i * m + k] = a[k * m + i] = sp_rng_normal(&rng);
        memcpy(copy, a, m * m * sizeof *a);
        sp_symmetric_eigen(a, v, m);
        for (size_t i = 0; i < m; i++) {
            if (i) assert_true(a[i * m + i] <= a[(i - 1) * m + i - 1]);
            for (size_t k = 0; k < m; k++) {
                double image = 0, product = 0;
                for (size_t j = 0; j < m; j++) {
                    image += copy[k * m + j] * v[i * m + j];
                    product += v[i * m + j] * v[k * m + j];
                }
                assert_true(fabs(image - a[i * m + i] * v[i * m + k]) <= 1e-11);
                assert_true(fabs(product - (i == k)) <= 1e-12);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_projected_is_inside),
        cmocka_unit_test(no_point_inside_is_nearer),
        cmocka_unit_test(it_is_what_alternating_projections_give),
        cmocka_unit_test(odd_heads),
        cmocka_unit_test(eigenvectors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
