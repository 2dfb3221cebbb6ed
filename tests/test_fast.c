/* test_fast.c: attention in almost linear time: every rung's loops against loops in double, whole calls against attention in double
 * and their own certificates, the worst values there are, and everything that is refused. Random trials by the thousand:
 * fast_trials.c. */
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
#include "fast/fast.h"
#include "fast/kernels.h"
#include "fast/monomials.h"
#include "fast/remez.h"
#include "softprompt.h"

static const sp_fast_kernels *rungs[3];
static size_t n_rungs;

static float *floats(size_t n, uint64_t seed, double scale)
{
    float *x = aligned_alloc(64, (n * sizeof *x + 127) / 64 * 64);
    sp_rng rng = sp_rng_seed(seed, n);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = (float)(scale * (2 * sp_rng_uniform(&rng) - 1));
    return x;
}

static void assert_near(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance)) fail_msg("got %.9g, want %.9g within %.3g", got, want, tolerance); /* NaN fails, too */
}

/* ---- monomials ---- */

/* m(x) of every monomial, in the order of the tree. */
static size_t list_values(double *out, const double *x, size_t d, size_t degree, size_t level, size_t last, double value)
{
    if (level == degree) return 0;
    size_t n = d - last, at = n;
    for (size_t i = last; i < d; i++) out[i - last] = value * x[i];
    for (size_t i = last; i < d; i++) at += list_values(out + at, x, d, degree, level + 1, i, out[i - last]);
    return at;
}

static size_t monomials_of(double *out, const double *x, size_t d, size_t degree)
{
    out[0] = 1;
    return 1 + list_values(out + 1, x, d, degree, 0, 0, 1);
}

enum { MAX_FEATURES = 20000 };

/* (q . k)^j is the sum over the monomials of degree j of multinomial m(q) m(k). */
static void multinomials_expand_powers(void **state)
{
    (void)state;
    static uint8_t levels[MAX_FEATURES];
    static double factors[MAX_FEATURES], mq[MAX_FEATURES], mk[MAX_FEATURES];
    static const size_t shapes[][2] = {{1, 16}, {2, 9}, {3, 6}, {5, 5}, {8, 4}, {16, 3}, {64, 2}, {100, 1}, {7, 0}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        size_t d = shapes[s][0], degree = shapes[s][1], n = sp_monomials_count(d, degree);
        double q[100], k[100], dot = 0, powers[SP_MAX_DEGREE + 1] = {0}, sizes[SP_MAX_DEGREE + 1] = {0};
        sp_rng rng = sp_rng_seed(1, s);
        for (size_t i = 0; i < d; i++) {
            q[i] = sp_rng_normal(&rng), k[i] = sp_rng_normal(&rng);
            dot += q[i] * k[i];
        }
        sp_monomials_list(levels, factors, d, degree);
        assert_int_equal(monomials_of(mq, q, d, degree), n);
        monomials_of(mk, k, d, degree);
        for (size_t a = 0; a < n; a++) {
            powers[levels[a]] += factors[a] * mq[a] * mk[a];
            sizes[levels[a]] += fabs(factors[a] * mq[a] * mk[a]);
        }
        for (size_t j = 0; j <= degree; j++) assert_near(powers[j], pow(dot, (double)j), 1e-12 * sizes[j]);
    }
}

/* ---- kernels ---- */

static void check_polynomial_kernels(const sp_fast_kernels *kernels, size_t n_keys, size_t d, size_t degree, size_t columns)
{
    static double m[MAX_FEATURES];
    size_t n = sp_monomials_count(d, degree), size = (n * columns + kernels->lanes - 1) / kernels->lanes * kernels->lanes;
    size_t stride = sp_key_stride(kernels), block = kernels->block_keys, width = kernels->tile_queries;
    float *x = floats(d * stride, 3, 1), *v = floats(block * columns, 4, 1), *q = floats(d * width, 5, 1);
    float *scratch = floats(sp_fast_scratch_floats(kernels, d, degree), 6, 1), *out = floats(columns * width, 7, 1);
    float *before = floats(columns * width, 7, 1), *features = floats(size, 8, 0);
    double *moments = calloc(size, sizeof *moments), *want = calloc(size, sizeof *want), *sizes = calloc(size, sizeof *sizes);
    for (size_t i = 0; i < size; i++) moments[i] = want[i] = 3;
    for (size_t j = 0; j < n_keys; j++) {
        double key[64];
        for (size_t i = 0; i < d; i++) key[i] = (double)x[i * stride + j];
        monomials_of(m, key, d, degree);
        for (size_t i = 0; i < n * columns; i++) {
            double value = (double)v[(j / kernels->lanes * columns + i % columns) * kernels->lanes + j % kernels->lanes];
            want[i] += m[i / columns] * value;
            sizes[i] += fabs(m[i / columns] * value);
        }
    }
    kernels->add_keys(moments, x, v, n_keys, d, degree, columns, scratch);
    for (size_t i = 0; i < n * columns; i++) {
        assert_near(moments[i], want[i], (double)(SP_TERMS_IN_F32 + 4 + degree) * FLT_EPSILON / 2 * sizes[i]);
        features[i] = (float)want[i];
    }
    kernels->evaluate(out, q, features, d, degree, columns);
    for (size_t u = 0; u < width; u++) {
        double query[64];
        for (size_t i = 0; i < d; i++) query[i] = (double)q[i * width + u];
        monomials_of(m, query, d, degree);
        for (size_t c = 0; c < columns; c++) {
            double sum = (double)before[c * width + u], magnitude = fabs(sum);
            for (size_t a = 0; a < n; a++) {
                sum += m[a] * (double)features[a * columns + c];
                magnitude += fabs(m[a] * (double)features[a * columns + c]);
            }
            assert_near((double)out[c * width + u], sum, (double)(degree * d + 2) * FLT_EPSILON / 2 * magnitude);
        }
    }
    free(x), free(v), free(q), free(scratch), free(out), free(before), free(features), free(moments), free(want), free(sizes);
}

static void polynomial_kernels_match(void **state)
{
    (void)state;
    static const size_t shapes[][2] = {{1, 0}, {1, 1}, {1, 5},  {2, 2}, {3, 3}, {4, 4}, {5, 2},
                                       {7, 3}, {9, 1}, {11, 2}, {2, 9}, {3, 6}, {4, 7}};
    for (size_t r = 0; r < n_rungs; r++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            for (size_t columns = 1; columns <= rungs[r]->max_columns; columns++)
                for (size_t n = rungs[r]->block_keys; n >= rungs[r]->lanes; n /= 4)
                    check_polynomial_kernels(rungs[r], n, shapes[s][0], shapes[s][1], columns);
}

/* 2^(q . k) summed, with and without a running maximum, whole and along a diagonal. */
static void check_exact_kernel(const sp_fast_kernels *kernels, size_t n, size_t d, size_t groups, size_t columns, bool online,
                               ptrdiff_t diagonal)
{
    size_t width = kernels->tile_queries, all = groups * columns;
    double size = online ? 60 : 3;
    float *q = floats(d * width, 3, size), *k = floats(n * d, 4, 1), *v = floats(n * all, 5, 1), *out = floats(all * width, 6, 0);
    float *weights = floats((size_t)SP_EXACT_BLOCK * width, 7, 1), max[64];
    for (size_t u = 0; u < width; u++) max[u] = -INFINITY;
    kernels->exact(out, online ? max : NULL, q, k, v, n, d, groups, columns, diagonal, weights);
    for (size_t u = 0; u < width; u++) {
        double most = -INFINITY, reach = 0;
        size_t seen = diagonal < (ptrdiff_t)n ? (size_t)(diagonal + (ptrdiff_t)u + 1) : n;
        if (seen > n) seen = n;
        for (size_t pass = 0; pass < 1 + all; pass++) {
            double sum = 0, magnitude = 0;
            for (size_t j = 0; j < seen; j++) {
                double s = 0;
                for (size_t i = 0; i < d; i++) s += (double)q[i * width + u] * (double)k[j * d + i];
                if (pass == 0) {
                    most = fmax(most, s), reach = fmax(reach, fabs(s));
                    continue;
                }
                double term = exp2(s - (online ? most : 0)) * (double)v[j * all + pass - 1];
                sum += term, magnitude += fabs(term);
            }
            if (pass == 0 && online) assert_near((double)max[u], most, 1e-5 * (1 + reach));
            if (pass > 0) assert_near((double)out[(pass - 1) * width + u], sum, (1e-6 * (reach + (double)d) + 4e-6) * magnitude);
        }
    }
    free(q), free(k), free(v), free(out), free(weights);
}

static void exact_kernel_matches(void **state)
{
    (void)state;
    for (size_t r = 0; r < n_rungs; r++)
        for (int online = 0; online <= 1; online++) {
            for (size_t n = 4; n <= 300; n = n * 3 + 4) {
                check_exact_kernel(rungs[r], n, 3, 1, rungs[r]->max_columns, online, PTRDIFF_MAX);
                check_exact_kernel(rungs[r], n, 17, 3, 2, online, PTRDIFF_MAX);
            }
            for (ptrdiff_t diagonal = 0; diagonal < 300; diagonal = diagonal * 2 + 1)
                check_exact_kernel(rungs[r], 300, 5, 2, 4, online, diagonal);
        }
}

/* ---- whole calls ---- */

/* softmax(scale q k^T) v of one query, in double. */
static void attend_f64(double *out, const sp_attention_head *h, size_t query)
{
    double most = -INFINITY, sum = 0, *scores = malloc(h->n_keys * sizeof *scores);
    size_t ldq = h->ldq ? h->ldq : h->d, ldk = h->ldk ? h->ldk : h->d, ldv = h->ldv ? h->ldv : h->d_v;
    size_t n_keys = h->causal ? h->n_keys - h->n_queries + query + 1 : h->n_keys;
    double scale = h->scale != 0 ? (double)h->scale : (double)(float)(1 / sqrt((double)h->d));
    for (size_t j = 0; j < n_keys; j++) {
        scores[j] = 0;
        for (size_t i = 0; i < h->d; i++) scores[j] += scale * (double)h->q[query * ldq + i] * (double)h->k[j * ldk + i];
        most = fmax(most, scores[j]);
    }
    for (size_t c = 0; c < h->d_v; c++) out[c] = 0;
    for (size_t j = 0; j < n_keys; j++) {
        double weight = exp(scores[j] - most);
        sum += weight;
        for (size_t c = 0; c < h->d_v; c++) out[c] += weight * (double)h->v[j * ldv + c];
    }
    for (size_t c = 0; c < h->d_v; c++) out[c] /= sum;
    free(scores);
}

static double largest_difference(const float *out, const sp_attention_head *h)
{
    double want[64], largest = 0;
    for (size_t i = 0; i < h->n_queries; i++) {
        attend_f64(want, h, i);
        for (size_t c = 0; c < h->d_v; c++) {
            double difference = fabs((double)out[i * (h->ldo ? h->ldo : h->d_v) + c] - want[c]);
            if (!(difference <= largest)) largest = difference;
        }
    }
    return largest;
}

static sp_fast *create(sp_fast_options options)
{
    sp_fast *fast;
    if (sp_fast_create(&fast, &options)) fail_msg("%s", sp_message());
    return fast;
}

/* Every shape, each degree forced: within the certificate, and exact attention within rounding. */
static void outputs_are_certified(void **state)
{
    (void)state;
    static const struct {
        size_t n_queries, n_keys, d, d_v, degree;
        double scale;
    } shapes[] = {{1, 1, 1, 1, 1, .01},    {3, 2, 2, 1, 2, .1},   {33, 700, 3, 5, 6, .7},    {40, 1025, 8, 8, 4, .12},
                  {5, 512, 8, 23, 3, .07}, {70, 90, 4, 4, 8, .6}, {17, 600, 16, 16, 3, .03}, {9, 333, 64, 64, 2, .003},
                  {64, 511, 5, 13, 5, .3}, {32, 40, 1, 2, 16, 5}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        sp_fast *fast = create((sp_fast_options){.degree = shapes[s].degree});
        size_t d = shapes[s].d, d_v = shapes[s].d_v, n_q = shapes[s].n_queries, n_k = shapes[s].n_keys;
        float *q = floats(n_q * d, 1, 1), *k = floats(n_k * d, 2, 1), *v = floats(n_k * d_v, 3, 1), *out = floats(n_q * d_v, 4, 9);
        sp_attention_head head = {
            .q = q, .k = k, .v = v, .n_queries = n_q, .n_keys = n_k, .d = d, .d_v = d_v, .scale = (float)shapes[s].scale};
        sp_certificate certificate;
        assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
        assert_int_equal(certificate.n_exact, 0);
        assert_int_equal(certificate.n_features, sp_monomials_count(d, shapes[s].degree));
        assert_true(certificate.epsilon <= 1e-3 && certificate.range <= sp_exp_polynomial_range(shapes[s].degree, 1e-3));
        assert_true(certificate.polynomial_bound <= 1.001e-3 && certificate.rounding_bound < 1e-4 * exp(2 * certificate.range));
        double found = largest_difference(out, &head);
        if (!(found <= certificate.polynomial_bound + certificate.rounding_bound))
            fail_msg("shape %zu: %g off, certified %g + %g", s, found, certificate.polynomial_bound, certificate.rounding_bound);
        assert_int_equal(sp_exact_attention(out, fast, &head), SP_OK);
        assert_near(largest_difference(out, &head), 0, 3e-6);
        free(q), free(k), free(v), free(out);
        sp_fast_free(fast);
    }
}

/* Causal, from a single query to many blocks, keys before the first query or none; some queries far out. */
static void causal_outputs_are_certified(void **state)
{
    (void)state;
    static const size_t shapes[][2] = {{1, 1}, {5, 5}, {33, 33}, {700, 700}, {1100, 1300}, {40, 1024}, {1, 600}, {513, 2000}};
    enum { D = 4 };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int far = 0; far <= 1; far++) {
            sp_fast *fast = create((sp_fast_options){.degree = 4});
            size_t n_q = shapes[s][0], n_k = shapes[s][1];
            float *q = floats(n_q * D, 1, 1), *k = floats(n_k * D, 2, 1), *v = floats(n_k * D, 3, 1), *out = floats(n_q * D, 4, 9);
            for (size_t i = 0; i < n_k * D; i++) v[i] = v[i] * .1f + (k[i] > 0 ? .8f : -.8f); /* values that follow the keys */
            for (size_t i = 0; i < n_q * D && far; i++) q[i] *= i / D % 300 == 150 ? 100 : 1;
            sp_attention_head head = {
                .q = q, .k = k, .v = v, .n_queries = n_q, .n_keys = n_k, .d = D, .d_v = D, .scale = .25f, .causal = true};
            sp_certificate certificate;
            assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
            if (!far) assert_int_equal(certificate.n_exact, 0);
            if (far && n_q > 150) assert_true(certificate.n_exact >= (n_q + 149) / 300 && certificate.n_exact < n_q);
            double found = largest_difference(out, &head), bound = certificate.polynomial_bound + certificate.rounding_bound;
            if (!(found <= bound)) fail_msg("%zu queries, %zu keys: %g off, certified %g", n_q, n_k, found, bound);
            assert_true(certificate.rounding_bound < 2e-4);
            assert_int_equal(sp_exact_attention(out, fast, &head), SP_OK);
            assert_near(largest_difference(out, &head), 0, 2e-5);
            free(q), free(k), free(v), free(out);
            sp_fast_free(fast);
        }
}

/* Rows of several heads, one behind the other, with room between them that nobody touches. */
static void heads_stand_side_by_side(void **state)
{
    (void)state;
    enum { N = 150, D = 4, HEADS = 3, LD = HEADS * D + 5 };
    sp_fast *fast = create((sp_fast_options){.degree = 4});
    float *q = floats((size_t)N * LD, 1, 1), *k = floats((size_t)N * LD, 2, 1), *v = floats((size_t)N * LD, 3, 1),
          *out = floats((size_t)N * LD, 4, 1);
    float *before = floats((size_t)N * LD, 4, 1);
    for (size_t h = 0; h < HEADS; h++) {
        sp_attention_head head = {q + h * D, k + h * D, v + h * D, N, N, D, D, LD, LD, LD, LD, .2f, false};
        sp_certificate certificate;
        assert_int_equal(sp_fast_attention(out + h * D, &certificate, fast, &head), SP_OK);
        assert_true(largest_difference(out + h * D, &head) <= certificate.polynomial_bound + certificate.rounding_bound);
    }
    for (size_t i = 0; i < (size_t)N * LD; i++)
        if (i % LD >= HEADS * D) assert_true(out[i] == before[i]);
    free(q), free(k), free(v), free(out), free(before);
    sp_fast_free(fast);
}

/* Far queries, some of them so far that exp would overflow, are noticed, counted, and exact; a common offset of all keys changes
 * nothing, however large. */
static void far_queries_are_exact(void **state)
{
    (void)state;
    enum { N_Q = 100, N_K = 700, D = 6 };
    for (int offset = 0; offset <= 1; offset++) {
        sp_fast *fast = create((sp_fast_options){.degree = 3});
        float *q = floats((size_t)N_Q * D, 1, .4), *k = floats((size_t)N_K * D, 2, .5), *v = floats((size_t)N_K, 3, 1),
              *out = floats(N_Q, 4, 1);
        size_t n_far = 0;
        for (size_t i = 0; i < N_Q; i++) {
            if (i % 7 == 3) n_far++;
            for (size_t j = 0; j < D && i % 7 == 3; j++) q[i * D + j] *= i % 2 ? 20.f : 4000.f;
        }
        for (size_t i = 0; i < (size_t)N_K * D && offset; i++) k[i] += 64;
        sp_attention_head head = {.q = q, .k = k, .v = v, .n_queries = N_Q, .n_keys = N_K, .d = D, .d_v = 1};
        sp_certificate certificate;
        assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
        assert_int_equal(certificate.n_exact, n_far);
        assert_true(certificate.max_range > 100 && certificate.range < 0.665);
        for (size_t i = 0; i < N_Q; i++) {
            double want;
            attend_f64(&want, &head, i);
            double bound = i % 7 == 3 ? (i % 2 ? 2e-5 : 5e-3) : certificate.polynomial_bound + certificate.rounding_bound;
            assert_near((double)out[i], want, bound);
        }
        free(q), free(k), free(v), free(out);
        sp_fast_free(fast);
    }
}

/* Where the polynomial's error is largest, up to `reach`: one point for each run of equal signs, which are degree + 2. */
static size_t find_worst_scores(double *points, const sp_exp_polynomial *p, double reach)
{
    enum { SAMPLES = 20000 };
    size_t n = 0;
    double largest = 0;
    for (int i = 0; i <= SAMPLES; i++) {
        double s = reach * (2.0 * i / SAMPLES - 1), value = 0;
        for (size_t j = p->degree + 1; j-- > 0;) value = value * s + p->c[j];
        double error = value * exp(-s) - 1;
        if (n == 0 || (error > 0) != (largest > 0)) n++, largest = 0; /* a new run */
        if (fabs(error) > fabs(largest)) largest = error, points[n - 1] = s;
        if (largest == 0) largest = error;
    }
    return n;
}

/* Keys along q with these scores, as often as makes both signs of the error weigh the same, and the sign as value. */
static size_t make_worst_keys(float *k, float *v, const float *q, size_t d, const double *points, size_t n_points, size_t n_keys,
                              double offset)
{
    double masses[SP_MAX_DEGREE + 2], total = 0;
    size_t n = 0;
    for (size_t i = 0; i < n_points; i++) total += masses[i] = exp(-points[i]) / (double)((n_points + 1 - i % 2) / 2);
    for (size_t i = 0; i < n_points; i++)
        for (double left = fmax(1, floor(masses[i] / total * (double)(n_keys - n_points))); left >= 1; left--, n++) {
            for (size_t j = 0; j < d; j++) k[n * d + j] = (float)(points[i] * (double)q[j] + offset * (double)(j + 1));
            v[n] = (float)((i % 2 ? 1 : -1) + 50 * offset);
        }
    return n;
}

/* The worst there is: the certificate holds, and is nearly reached, but for the bound on rounding, which grows like e^(2 range).
 * What common offsets of keys and values add is rounding alone.
 */
static void worst_values_reach_the_bound(void **state)
{
    (void)state;
    enum { N_KEYS = 3000, D = 5 };
    static float k[N_KEYS * D], v[N_KEYS];
    static const float q[D] = {.3f, -.5f, .1f, .7f, .4f}; /* of norm 1 */
    for (size_t degree = 1; degree <= 8; degree++)
        for (int offset = 0; offset <= 1; offset++) {
            sp_fast *fast = create((sp_fast_options){.degree = degree});
            sp_exp_polynomial p;
            double points[SP_MAX_DEGREE + 2];
            float out;
            sp_exp_polynomial_fit(&p, degree, sp_exp_polynomial_range(degree, 1e-3));
            assert_int_equal(find_worst_scores(points, &p, p.rho * (1 - 1e-5)), degree + 2);
            size_t n = make_worst_keys(k, v, q, D, points, degree + 2, N_KEYS, offset);
            sp_attention_head head = {.q = q, .k = k, .v = v, .n_queries = 1, .n_keys = n, .d = D, .d_v = 1, .scale = 1};
            sp_certificate certificate;
            assert_int_equal(sp_fast_attention(&out, &certificate, fast, &head), SP_OK);
            assert_int_equal(certificate.n_exact, 0);
            double found = largest_difference(&out, &head), bound = certificate.polynomial_bound + certificate.rounding_bound;
            if (!(found <= bound && (found >= .9 * bound || degree > 5) && found >= .95 * certificate.polynomial_bound))
                fail_msg("degree %zu: %.6g off, certified %g + %g", degree, found, certificate.polynomial_bound,
                         certificate.rounding_bound);
            sp_fast_free(fast);
        }
}

/* The same weights, by the polynomial itself, in double: what is left is f32's part of the error. */
static void attend_polynomial_f64(double *out, const sp_attention_head *h, const sp_exp_polynomial *p, const float *centre,
                                  size_t query)
{
    double normaliser = 0;
    for (size_t c = 0; c < h->d_v; c++) out[c] = 0;
    for (size_t j = 0; j < h->n_keys; j++) {
        double s = 0, weight = 0;
        for (size_t i = 0; i < h->d; i++)
            s += (double)h->scale * (double)h->q[query * h->d + i] * ((double)h->k[j * h->d + i] - (double)centre[i]);
        for (size_t g = p->degree + 1; g-- > 0;) weight = weight * s + p->c[g];
        normaliser += weight;
        for (size_t c = 0; c < h->d_v; c++) out[c] += weight * (double)h->v[j * h->d_v + c];
    }
    for (size_t c = 0; c < h->d_v; c++) out[c] /= normaliser;
}

/* Keys at two ends of the range, their signs as values: each block rounds as the one before it, and nothing averages out. The bound
 * that is certified is a hundred times as large; `bench/attention rounding` measures 2^20 keys. */
static void rounding_does_not_add_up(void **state)
{
    (void)state;
    enum { N_Q = 40 };
    static const size_t shapes[][3] = {{8, 4, 16384}, {16, 3, 4096}, {64, 2, 2048}}; /* d, degree, keys */
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const size_t d = shapes[s][0], n_k = shapes[s][2];
        sp_fast *fast = create((sp_fast_options){.degree = shapes[s][1]});
        const sp_exp_polynomial *p = &fast->polynomials[shapes[s][1]];
        float *q = floats(N_Q * d, 1, 1), *k = floats(n_k * d, 2, 1), *v = floats(n_k * d, 3, 1), *out = floats(N_Q * d, 4, 1);
        sp_rng rng = sp_rng_seed(4, s);
        for (size_t j = 0; j < n_k; j++) {
            const float sign = sp_rng_below(&rng, 2) ? 1 : -1, length = (float)sp_rng_uniform(&rng);
            for (size_t i = 0; i < d; i++) {
                const double direction = sqrt(.97 * p->rho * (double)(i + 1) * 2 / (double)(d * (d + 1)));
                k[j * d + i] = sign * (float)direction;
                v[j * d + i] = sign;
                if (j < N_Q) q[j * d + i] = length * (float)direction;
            }
        }
        const sp_attention_head head = {.q = q,
                                        .k = k,
                                        .v = v,
                                        .n_queries = N_Q,
                                        .n_keys = n_k,
                                        .d = d,
                                        .d_v = d,
                                        .ldq = d,
                                        .ldk = d,
                                        .ldv = d,
                                        .ldo = d,
                                        .scale = 1};
        sp_certificate certificate;
        sp_frame frame;
        float centre[64];
        assert_int_equal(sp_frame_measure(&frame, &head, fast->kernels, 1, fast->arena), SP_OK);
        memcpy(centre, frame.centre, d * sizeof *centre);
        assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
        assert_int_equal(certificate.n_exact, 0);
        for (size_t i = 0; i < N_Q; i++) {
            double want[64];
            attend_polynomial_f64(want, &head, p, centre, i);
            for (size_t c = 0; c < d; c++) assert_near((double)out[i * d + c], want[c], 4e-7);
        }
        free(q), free(k), free(v), free(out);
        sp_fast_free(fast);
    }
}

/* Left to itself a call takes the exact kernel where that is cheaper, and the smallest degree that serves otherwise. */
static void degrees_are_chosen_by_cost(void **state)
{
    (void)state;
    enum { N = 6000, D = 4 };
    sp_fast *fast = create((sp_fast_options){0});
    sp_fast_set_least_hybrid(fast, INFINITY);
    float *q = floats((size_t)N * D, 1, 1), *k = floats((size_t)N * D, 2, 1), *v = floats((size_t)N * D, 3, 1),
          *out = floats((size_t)N * D, 4, 1);
    sp_attention_head head = {.q = q, .k = k, .v = v, .n_queries = N, .n_keys = N, .d = D, .d_v = D, .scale = .25f};
    sp_certificate certificate;
    assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
    assert_int_equal(certificate.degree, 4);
    assert_int_equal(certificate.n_exact, 0);
    head.n_keys = head.n_queries = 12;
    assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
    assert_int_equal(certificate.degree, 0);
    assert_int_equal(certificate.n_exact, 12);
    assert_true(certificate.polynomial_bound == 0 && certificate.rounding_bound == 0);
    head.scale = 1000;
    head.n_keys = head.n_queries = N;
    assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
    assert_true(certificate.n_exact > N / 2);
    head.n_queries = 0;
    assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
    assert_int_equal(certificate.n_queries, 0);
    free(q), free(k), free(v), free(out);
    sp_fast_free(fast);
}

/* Beyond degree 8 rounding decides, which grows with the range and with d; a caller who names the last degree has it. */
static void high_degrees_must_not_round_much(void **state)
{
    (void)state;
    enum { N = 3000, D = 2 };
    sp_fast *fast = create((sp_fast_options){0}), *told = create((sp_fast_options){.max_degree = 12});
    sp_fast_call few = {.fast = fast, .head = {.d = 4}}, many = {.fast = fast, .head = {.d = 32}};
    assert_true(sp_fast_may_choose(&few, 10) && sp_fast_may_choose(&many, 8) && !sp_fast_may_choose(&many, 10));
    many.fast = told;
    assert_true(sp_fast_may_choose(&many, 12));
    float *q = floats((size_t)N * D, 1, 1.7), *k = floats((size_t)N * D, 2, 1.7), *v = floats(N, 3, 1), *out = floats(N, 4, 1);
    const sp_attention_head head = {.q = q, .k = k, .v = v, .n_queries = N, .n_keys = N, .d = D, .d_v = 1, .scale = .8f};
    sp_certificate certificate;
    assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
    assert_true(certificate.degree > 8 && certificate.n_exact == 0 && certificate.rounding_bound <= 1e-3 * 2);
    assert_true(largest_difference(out, &head) <= certificate.polynomial_bound + certificate.rounding_bound);
    free(q), free(k), free(v), free(out);
    sp_fast_free(fast), sp_fast_free(told);
}

/* ---- what is refused ---- */

static void refused(sp_status got, sp_status want, const char *words)
{
    assert_int_equal(got, want);
    if (!strstr(sp_message(), words)) fail_msg("\"%s\" does not say \"%s\"", sp_message(), words);
}

/* Keys and queries far out, a few: the keys are exact for all queries, the queries in full, the others keep a small degree, and
 * all of it stays within one certificate. What a handle may choose among decides nothing about correctness. */
static void far_keys_are_exact_for_all(void **state)
{
    (void)state;
    static const struct {
        size_t n, d, d_v;
        float far_key, far_query;
        double size;
    } shapes[] = {{700, 2, 3, 9, 1, .6}, {2048, 4, 4, 6, 1, .5}, {1500, 3, 17, 5, 900, .5}, {3000, 4, 64, 4, 30, .4}};
    sp_fast *fast = create((sp_fast_options){0});
    sp_fast_set_least_hybrid(fast, 0);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const size_t n = shapes[s].n, d = shapes[s].d, d_v = shapes[s].d_v;
        float *q = floats(n * d, 1, shapes[s].size), *k = floats(n * d, 2, shapes[s].size), *v = floats(n * d_v, 3, .1),
              *out = floats(n * d_v, 4, 9);
        for (size_t i = 0; i < n * d; i++) {
            if (i / d % 400 == 9) k[i] *= shapes[s].far_key;
            if (i / d % 350 == 5) q[i] *= shapes[s].far_query;
        }
        for (size_t i = 0; i < n * d_v; i++) v[i] += k[i / d_v * d] > 0 ? .8f : -.8f; /* values that follow the keys */
        sp_attention_head head = {.q = q, .k = k, .v = v, .n_queries = n, .n_keys = n, .d = d, .d_v = d_v};
        sp_certificate certificate;
        assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
        assert_true(certificate.n_exact_keys > 0 && certificate.n_exact_keys <= n / 8);
        assert_true(certificate.n_exact < n / 4);
        if (shapes[s].far_query > 1) assert_true(certificate.n_exact > 0);
        assert_true(certificate.range < certificate.max_range && certificate.epsilon <= 1e-3);
        const double found = largest_difference(out, &head), bound = certificate.polynomial_bound + certificate.rounding_bound;
        if (!(found <= bound)) fail_msg("shape %zu: %g off, certified %g", s, found, bound);
        assert_true(certificate.rounding_bound < 5e-4);
        free(q), free(k), free(v), free(out);
    }
    sp_fast_free(fast);
}

/* Normal queries and keys, some of them far: with one cut for all tiles 128 of the queries would be exact. */
static void tiles_have_cuts_of_their_own(void **state)
{
    (void)state;
    enum { N = 4096, D = 3 };
    sp_fast *fast = create((sp_fast_options){0});
    sp_fast_set_least_hybrid(fast, 0);
    sp_rng rng = sp_rng_seed(4, N);
    float *q = floats((size_t)N * D, 1, 1), *k = floats((size_t)N * D, 2, 1), *v = floats((size_t)N * D, 3, 1),
          *out = floats((size_t)N * D, 4, 9);
    for (size_t i = 0; i < (size_t)N * D; i++) q[i] = (float)sp_rng_normal(&rng), k[i] = (float)sp_rng_normal(&rng);
    const sp_attention_head head = {.q = q, .k = k, .v = v, .n_queries = N, .n_keys = N, .d = D, .d_v = D};
    sp_certificate certificate;
    assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
    assert_true(certificate.n_exact <= 64 && certificate.n_exact_keys > 0 && certificate.n_exact_keys <= N / 8);
    assert_true(certificate.range < certificate.max_range);
    assert_true(largest_difference(out, &head) <= certificate.polynomial_bound + certificate.rounding_bound);
    free(q), free(k), free(v), free(out);
    sp_fast_free(fast);
}

/* Everything that a call does, on one thread, two and three, however little there is to do: the same bits, the same certificate.
 * With few bytes threads find less room beside the moments. */
static void threads_change_no_bit(void **state)
{
    (void)state;
    static const struct {
        size_t n_queries, n_keys, d, d_v, degree;
        double size;
        float far;
        bool causal;
        uint64_t max_bytes;
    } shapes[] = {
        {70, 9000, 3, 3, 4, .5, 1, false, 0},  {800, 5001, 4, 20, 3, .4, 6, false, 0}, {500, 3000, 4, 4, 4, .5, 1, false, 45000},
        {2100, 2100, 4, 4, 4, .4, 1, true, 0}, {1500, 2777, 3, 30, 4, .5, 9, true, 0}, {2000, 2000, 4, 4, 0, .7, 6, false, 0},
        {600, 600, 16, 16, 0, 3, 1, false, 0}, {40, 3000, 3, 3, 3, .5, 900, true, 0},  {0, 30, 2, 2, 2, 1, 1, false, 0},
        {3, 3, 2, 2, 2, .1, 1, true, 0},       {33, 9000, 2, 2, 0, .2, 1, false, 0}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const size_t n_q = shapes[s].n_queries, n_k = shapes[s].n_keys, d = shapes[s].d, d_v = shapes[s].d_v;
        float *q = floats(n_q * d, 1, shapes[s].size), *k = floats(n_k * d, 2, shapes[s].size), *v = floats(n_k * d_v, 3, 1);
        float *out[] = {floats(n_q * d_v, 4, 1), floats(n_q * d_v, 4, 1)},
              *exact[] = {floats(n_q * d_v, 5, 1), floats(n_q * d_v, 5, 1)};
        for (size_t i = 0; i < n_q * d; i++) q[i] *= i / d % 400 == 9 ? shapes[s].far : 1;
        for (size_t i = 0; i < n_k * d; i++) k[i] *= i / d % 350 == 9 && shapes[s].far < 100 ? shapes[s].far : 1;
        const sp_attention_head head = {
            .q = q, .k = k, .v = v, .n_queries = n_q, .n_keys = n_k, .d = d, .d_v = d_v, .causal = shapes[s].causal};
        sp_certificate certificates[2] = {0};
        for (int n_threads = 1; n_threads <= 3; n_threads++) {
            const bool other = n_threads > 1;
            sp_fast *fast =
                create((sp_fast_options){.degree = shapes[s].degree, .max_bytes = shapes[s].max_bytes, .n_threads = n_threads});
            sp_fast_set_least_hybrid(fast, 0);
            sp_fast_set_least_share(fast, 0);
            if (sp_fast_attention(out[other], &certificates[other], fast, &head)) fail_msg("%s", sp_message());
            if (!shapes[s].max_bytes && sp_exact_attention(exact[other], fast, &head)) fail_msg("%s", sp_message());
            assert_memory_equal(out[other], out[0], n_q * d_v * sizeof(float));
            assert_memory_equal(exact[other], exact[0], n_q * d_v * sizeof(float));
            assert_memory_equal(&certificates[other], &certificates[0], sizeof certificates[0]);
            sp_fast_free(fast);
        }
        free(q), free(k), free(v), free(out[0]), free(out[1]), free(exact[0]), free(exact[1]);
    }
}

/* Scores far too wide for any degree: the exact kernel alone, and it says so. */
static void wide_scores_stay_exact(void **state)
{
    (void)state;
    enum { N = 600, D = 16 };
    sp_fast *fast = create((sp_fast_options){0});
    float *q = floats((size_t)N * D, 1, 3), *k = floats((size_t)N * D, 2, 3), *v = floats((size_t)N * D, 3, 1),
          *out = floats((size_t)N * D, 4, 9);
    sp_attention_head head = {.q = q, .k = k, .v = v, .n_queries = N, .n_keys = N, .d = D, .d_v = D};
    sp_certificate certificate;
    assert_int_equal(sp_fast_attention(out, &certificate, fast, &head), SP_OK);
    assert_true(certificate.degree == 0 && certificate.n_exact == N && certificate.n_exact_keys == 0);
    assert_near(largest_difference(out, &head), 0, 2e-5);
    free(q), free(k), free(v), free(out);
    sp_fast_free(fast);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    sp_fast *fast;
    refused(sp_fast_create(&fast, &(sp_fast_options){.epsilon = 1}), SP_ERR_ARGUMENT, "epsilon");
    assert_null(fast);
    refused(sp_fast_create(&fast, &(sp_fast_options){.epsilon = NAN}), SP_ERR_ARGUMENT, "epsilon");
    refused(sp_fast_create(&fast, &(sp_fast_options){.degree = 17}), SP_ERR_ARGUMENT, "degree 17");
    refused(sp_fast_create(&fast, &(sp_fast_options){.range = -1}), SP_ERR_ARGUMENT, "range");
    refused(sp_fast_create(&fast, &(sp_fast_options){.n_threads = -1}), SP_ERR_ARGUMENT, "-1 threads");
    refused(sp_fast_create(&fast, &(sp_fast_options){.range = 6}), SP_ERR_UNSUPPORTED, "degree 10 serves scores up to 5.156");
    refused(sp_fast_create(&fast, &(sp_fast_options){.range = 1.2, .degree = 4}), SP_ERR_UNSUPPORTED,
            "degree 4 serves scores up to 1.15");
    refused(sp_fast_create(&fast, &(sp_fast_options){.range = 100, .max_degree = 16}), SP_ERR_UNSUPPORTED, "degree 16 serves");
    assert_null(fast);
    fast = create((sp_fast_options){.range = 6, .max_degree = 12});
    sp_fast_free(fast);
    sp_fast_free(NULL);
}

static void bad_input_is_refused(void **state)
{
    (void)state;
    enum { N = 50, D = 3 };
    sp_fast *fast = create((sp_fast_options){.degree = 2});
    float *q = floats((size_t)N * D, 1, .1), *k = floats((size_t)N * D, 2, .1), *v = floats((size_t)N * D, 3, 1), out[N * D];
    const sp_attention_head good = {.q = q, .k = k, .v = v, .n_queries = N, .n_keys = N, .d = D, .d_v = D};
    sp_attention_head head = good;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t b = 0; b < 3; b++) {
        float *const arrays[] = {q, k, v};
        static const char *const names[] = {"query 11: coordinate 2", "key 11: coordinate 2", "value 11: coordinate 2"};
        for (size_t a = 0; a < 3; a++) {
            float kept = arrays[a][11 * D + 2];
            arrays[a][11 * D + 2] = bad[b];
            refused(sp_fast_attention(out, NULL, fast, &head), SP_ERR_ARGUMENT, names[a]);
            refused(sp_exact_attention(out, fast, &head), SP_ERR_ARGUMENT, names[a]);
            arrays[a][11 * D + 2] = kept;
        }
    }
    head.n_keys = 0;
    refused(sp_fast_attention(out, NULL, fast, &head), SP_ERR_ARGUMENT, "no keys");
    head = good, head.d = 0;
    refused(sp_fast_attention(out, NULL, fast, &head), SP_ERR_ARGUMENT, "coordinates");
    head = good, head.ldk = 2;
    refused(sp_fast_attention(out, NULL, fast, &head), SP_ERR_ARGUMENT, "2 apart");
    head = good, head.causal = true, head.n_keys--;
    refused(sp_fast_attention(out, NULL, fast, &head), SP_ERR_ARGUMENT, "causal attention of 50 queries over 49 keys");
    head = good, head.scale = INFINITY;
    refused(sp_fast_attention(out, NULL, fast, &head), SP_ERR_ARGUMENT, "scale");
    head = good, head.scale = 1e38f;
    refused(sp_fast_attention(out, NULL, fast, &head), SP_ERR_ARGUMENT, "beyond what f32 holds");
    assert_int_equal(sp_fast_attention(out, NULL, fast, &good), SP_OK);
    sp_fast_free(fast);
    fast = create((sp_fast_options){.degree = 8});
    float *wide = floats(64 * 64, 1, 1e-3);
    head = (sp_attention_head){.q = wide, .k = wide, .v = wide, .n_queries = 64, .n_keys = 64, .d = 64, .d_v = 3};
    refused(sp_fast_attention(out, NULL, fast, &head), SP_ERR_MEMORY, "would fit");
    sp_fast_free(fast);
    free(q), free(k), free(v), free(wide);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(multinomials_expand_powers),   cmocka_unit_test(polynomial_kernels_match),
        cmocka_unit_test(exact_kernel_matches),         cmocka_unit_test(outputs_are_certified),
        cmocka_unit_test(causal_outputs_are_certified), cmocka_unit_test(heads_stand_side_by_side),
        cmocka_unit_test(far_queries_are_exact),        cmocka_unit_test(worst_values_reach_the_bound),
        cmocka_unit_test(degrees_are_chosen_by_cost),   cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(bad_input_is_refused),         cmocka_unit_test(far_keys_are_exact_for_all),
        cmocka_unit_test(wide_scores_stay_exact),       cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(rounding_does_not_add_up),     cmocka_unit_test(high_degrees_must_not_round_much),
        cmocka_unit_test(tiles_have_cuts_of_their_own),
    };
    n_rungs = sp_fast_kernels_list(rungs);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
