/* test_fast_balance.c: attention in other coordinates: turned scores against scores in double, ranges before and after,
 * certificates against attention in double, what must stay exact, and what is not balanced. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "drawn_floats.h"
#include "fast/balance.h"
#include "softprompt.h"

enum { MAX_D = 64 };

/* How a head's rows are drawn: keys of `rank` coordinates, spread between the largest and the smallest deviation of a coordinate of
 * the keys, and of the queries the other way round; all keys moved by `offset`; `off` of the coordinates beyond rank. */
typedef struct shape {
    size_t n_queries, n_keys, d, d_v, rank;
    double size, spread, offset, off;
    bool causal;
} shape;

typedef struct data {
    sp_attention_head head;
    float *q, *k, *v, *out;
} data;

/* Less twice their part along a mirror that is the same for all rows of a d. */
static void reflect(float *x, size_t n, size_t d)
{
    double mirror[MAX_D], squares = 0;
    sp_rng rng = sp_rng_seed(9, d);
    for (size_t i = 0; i < d; i++) mirror[i] = sp_rng_normal(&rng), squares += mirror[i] * mirror[i];
    for (size_t r = 0; r < n; r++) {
        double along = 0;
        for (size_t i = 0; i < d; i++) along += mirror[i] * (double)x[r * d + i] / squares;
        for (size_t i = 0; i < d; i++) x[r * d + i] = (float)((double)x[r * d + i] - 2 * along * mirror[i]);
    }
}

static void draw(data *out, const shape *s)
{
    const size_t d = s->d;
    out->q = floats(s->n_queries * d, 1, s->size);
    out->k = floats(s->n_keys * d, 2, s->size);
    out->v = floats(s->n_keys * s->d_v, 3, .2);
    out->out = floats(s->n_queries * s->d_v, 4, 9);
    for (size_t i = 0; i < s->n_keys * s->d_v; i++) out->v[i] += out->k[i / s->d_v * d] > 0 ? .8f : -.8f; /* they follow the keys */
    for (size_t i = 0; i < d; i++) {
        const double factor = pow(s->spread, d > 1 ? (double)i / (double)(d - 1) - .5 : 0);
        for (size_t j = 0; j < s->n_keys; j++) out->k[j * d + i] *= (float)(i < s->rank ? factor : s->off);
        for (size_t j = 0; j < s->n_queries; j++) out->q[j * d + i] /= (float)factor;
    }
    reflect(out->q, s->n_queries, d), reflect(out->k, s->n_keys, d);
    for (size_t i = 0; i < s->n_keys * d; i++) out->k[i] += (float)s->offset;
    out->head = (sp_attention_head){.q = out->q,
                                    .k = out->k,
                                    .v = out->v,
                                    .n_queries = s->n_queries,
                                    .n_keys = s->n_keys,
                                    .d = d,
                                    .d_v = s->d_v,
                                    .ldq = d,
                                    .ldk = d,
                                    .ldv = s->d_v,
                                    .ldo = s->d_v,
                                    .scale = (float)(1 / sqrt((double)d)),
                                    .causal = s->causal};
}

static void give_back(data *x)
{
    free(x->q), free(x->k), free(x->v), free(x->out);
}

/* A handle for which sums are never too small. */
static sp_fast *create(sp_fast_options options)
{
    sp_fast *fast;
    if (sp_fast_create(&fast, &options)) fail_msg("%s", sp_message());
    sp_fast_set_least_hybrid(fast, 0);
    sp_fast_set_least_share(fast, 0);
    sp_fast_set_search_weight(fast, 0);
    return fast;
}

static void attend_f64(double *out, const sp_attention_head *h, size_t query)
{
    double most = -INFINITY, sum = 0, *scores = malloc(h->n_keys * sizeof *scores);
    const size_t n_keys = h->causal ? h->n_keys - h->n_queries + query + 1 : h->n_keys;
    assert_non_null(scores);
    for (size_t j = 0; j < n_keys; j++) {
        scores[j] = 0;
        for (size_t i = 0; i < h->d; i++)
            scores[j] += (double)h->scale * (double)h->q[query * h->d + i] * (double)h->k[j * h->d + i];
        most = fmax(most, scores[j]);
    }
    for (size_t c = 0; c < h->d_v; c++) out[c] = 0;
    for (size_t j = 0; j < n_keys; j++) {
        const double weight = exp(scores[j] - most);
        sum += weight;
        for (size_t c = 0; c < h->d_v; c++) out[c] += weight * (double)h->v[j * h->d_v + c];
    }
    for (size_t c = 0; c < h->d_v; c++) out[c] /= sum;
    free(scores);
}

/* From attention in double; of every `step`-th query from `first` on. */
static double largest_difference(const data *x, size_t first, size_t step)
{
    double want[MAX_D], largest = 0;
    for (size_t i = first; i < x->head.n_queries; i += step) {
        attend_f64(want, &x->head, i);
        for (size_t c = 0; c < x->head.d_v; c++) {
            const double difference = fabs((double)x->out[i * x->head.d_v + c] - want[c]);
            if (!(difference <= largest)) largest = difference;
        }
    }
    return largest;
}

static void check_certificate(const data *x, const sp_certificate *certificate)
{
    const double found = largest_difference(x, 0, 1), bound = certificate->polynomial_bound + certificate->rounding_bound;
    if (!(found <= bound)) fail_msg("d %zu, rank %zu: %g off, certified %g", x->head.d, certificate->rank, found, bound);
    assert_true(certificate->epsilon <= 1e-3 && certificate->remainder <= certificate->epsilon);
    assert_true(bound < 2e-3 * 2);
}

/* ---- turned scores ---- */

static double length(const float *x, size_t n)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += (double)x[i] * (double)x[i];
    return sqrt(squares);
}

/* q . (k - c) and the product of the turned rows: off by what is said at most, and, where something was dropped, by a good part of
 * it, so that it says something. */
static void turned_scores_are_as_far_off_as_is_said(void **state)
{
    (void)state;
    static const shape shapes[] = {{60, 600, 8, 1, 8, .5, 30, 0, 0, false},     {60, 600, 5, 1, 2, .5, 3, 4, 0, false},
                                   {60, 700, 16, 1, 16, .3, 1000, 1, 0, false}, {60, 600, 33, 1, 7, .3, 5, 0, 1e-6, false},
                                   {60, 600, 17, 1, 3, .5, 1, 0, 3e-6, false},  {60, 600, 64, 1, 64, .2, 10, 2, 0, false},
                                   {60, 600, 1, 1, 1, .5, 1, 7, 0, false}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        data x;
        draw(&x, &shapes[s]);
        sp_fast *fast = create((sp_fast_options){0});
        sp_fast_call call = {.fast = fast, .head = x.head}, turned;
        sp_balance b;
        bool done;
        double used = 0, reach = 0;
        assert_int_equal(sp_fast_call_measure(&call), SP_OK);
        assert_int_equal(sp_balance_find(&b, &call, (double)INFINITY), SP_OK);
        assert_int_equal(b.rank, shapes[s].rank);
        assert_int_equal(sp_balance_turn(&turned, &done, &call, &b), SP_OK);
        assert_true(done);
        for (size_t j = 0; j < shapes[s].n_keys; j++) reach = fmax(reach, length(turned.head.k + j * b.rank, b.rank));
        for (size_t i = 0; i < shapes[s].n_queries; i++) {
            const double off = call.bounds[i] * turned.turned_off, scale = (double)x.head.scale;
            const double rounding =
                2.001 * SP_UNIT_ROUNDOFF * scale * length(turned.head.q + i * b.rank, b.rank) * reach; /* of either side */
            for (size_t j = 0; j < shapes[s].n_keys; j++) {
                double want = 0, got = 0;
                for (size_t c = 0; c < b.d; c++)
                    want += scale * (double)x.q[i * b.d + c] * ((double)x.k[j * b.d + c] - b.centre[c]);
                for (size_t c = 0; c < b.rank; c++)
                    got += scale * (double)turned.head.q[i * b.rank + c] * (double)turned.head.k[j * b.rank + c];
                if (!(fabs(got - want) <= off + rounding))
                    fail_msg("shape %zu, query %zu, key %zu: %g off, said %g + %g", s, i, j, got - want, off, rounding);
                used = fmax(used, fabs(got - want) / (off + rounding));
            }
        }
        if (!(used > .1)) fail_msg("shape %zu: scores use %g of what they may be off", s, used);
        give_back(&x);
        sp_fast_free(fast);
    }
}

/* Both sides have the same second moments, about: what balancing means. */
static void both_sides_are_alike(void **state)
{
    (void)state;
    data x;
    draw(&x, &(shape){2000, 2000, 8, 1, 8, .5, 100, 3, 0, false});
    sp_fast *fast = create((sp_fast_options){0});
    sp_fast_call call = {.fast = fast, .head = x.head}, turned;
    sp_balance b;
    bool done;
    double squares[2][8] = {{0}};
    assert_int_equal(sp_fast_call_measure(&call), SP_OK);
    assert_int_equal(sp_balance_find(&b, &call, (double)INFINITY), SP_OK);
    assert_int_equal(sp_balance_turn(&turned, &done, &call, &b), SP_OK);
    for (size_t i = 0; i < 2000 * 8; i++) {
        squares[0][i % 8] += (double)turned.head.q[i] * (double)turned.head.q[i];
        squares[1][i % 8] += (double)turned.head.k[i] * (double)turned.head.k[i];
    }
    for (size_t i = 0; i < 8; i++) assert_true(fabs(log(squares[0][i] / squares[1][i])) < .7);
    give_back(&x);
    sp_fast_free(fast);
}

/* ---- whole calls ---- */

/* Opposed spectra: no degree serves what comes, a small one does what is balanced; causal calls, too. */
static void opposed_spectra_keep_a_small_range(void **state)
{
    (void)state;
    static const shape shapes[] = {{1500, 1500, 8, 4, 8, .5, 100, 2, 0, false},
                                   {2000, 2500, 16, 16, 16, .2, 300, 0, 0, false},
                                   {2500, 2500, 8, 8, 8, .5, 100, 0, 0, true}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        data x;
        sp_certificate certificate;
        sp_fast *fast = create((sp_fast_options){0});
        draw(&x, &shapes[s]);
        assert_int_equal(sp_fast_attention(x.out, &certificate, fast, &x.head), SP_OK);
        assert_int_equal(certificate.rank, shapes[s].d);
        assert_true(certificate.degree > 0 && certificate.n_exact < x.head.n_queries / 10);
        if (!(certificate.range < certificate.max_range / 8))
            fail_msg("shape %zu: range %g of %g", s, certificate.range, certificate.max_range);
        assert_true(certificate.max_range > sp_exp_polynomial_range(8, 1e-3)); /* as they came, no degree would have served */
        assert_int_equal(certificate.n_features, sp_monomials_count(shapes[s].d, certificate.degree));
        check_certificate(&x, &certificate);
        give_back(&x);
        sp_fast_free(fast);
    }
}

/* Keys of low rank as they come: their own few coordinates; what lies off their plane is part of the bound, or too much for it. */
static void planes_are_found(void **state)
{
    (void)state;
    static const double offs[] = {0, 1e-6, 1e-5, 3e-3};
    for (size_t s = 0; s < sizeof offs / sizeof *offs; s++)
        for (int causal = 0; causal <= 1; causal++) {
            data x;
            sp_certificate certificate;
            sp_fast *fast = create((sp_fast_options){0});
            draw(&x, &(shape){1500, 1500, 32, 5, 3, .6, 2, 1, offs[s], causal});
            assert_int_equal(sp_fast_attention(x.out, &certificate, fast, &x.head), SP_OK);
            assert_true((certificate.rank == 3) == (offs[s] < 1e-3));
            assert_true((certificate.remainder > 0) == (certificate.rank > 0) && certificate.remainder <= 1e-3 / 8);
            if (offs[s] == 1e-5) assert_true(certificate.remainder > 1e-6);
            if (certificate.degree) check_certificate(&x, &certificate);
            if (!certificate.degree) assert_true(largest_difference(&x, 0, 1) < 2e-6);
            give_back(&x);
            sp_fast_free(fast);
        }
}

/* A key off the plane that no sample shows: measured, and so the call does without. */
static void a_key_off_the_plane_is_noticed(void **state)
{
    (void)state;
    data x;
    sp_certificate certificate;
    sp_fast *fast = create((sp_fast_options){0});
    draw(&x, &(shape){1500, 5000, 24, 3, 3, .4, 1, 0, 0, false});
    assert_int_equal(sp_fast_attention(x.out, &certificate, fast, &x.head), SP_OK);
    assert_int_equal(certificate.rank, 3);
    for (size_t i = 0; i < 24; i++) x.k[4321 * 24 + i] += i % 2 ? .5f : -.5f;
    assert_int_equal(sp_fast_attention(x.out, &certificate, fast, &x.head), SP_OK);
    assert_int_equal(certificate.rank, 0);
    assert_true(largest_difference(&x, 0, 7) <= certificate.polynomial_bound + certificate.rounding_bound + 2e-6);
    give_back(&x);
    sp_fast_free(fast);
}

/* Far queries and keys in a call that is balanced: the queries as exact as the exact kernel, in the coordinates that they came in.
 */
static void far_queries_stay_exact(void **state)
{
    (void)state;
    enum { STEP = 150, FIRST = 9 };
    for (int low = 0; low <= 1; low++) {
        data x;
        sp_certificate certificate;
        sp_fast *fast = create((sp_fast_options){0});
        draw(&x, &(shape){3000, 3000, 8, 6, low ? 3 : 8, .4, 10, 1, 0, false});
        for (size_t i = 0; i < 3000 * 8; i++) {
            if (i / 8 % STEP == FIRST) x.q[i] *= 60;
            if (i / 8 % 400 == 3) x.k[i] = 1 + (x.k[i] - 1) * 12;
        }
        assert_int_equal(sp_fast_attention(x.out, &certificate, fast, &x.head), SP_OK);
        assert_int_equal(certificate.rank, low ? 3 : 8);
        assert_true(certificate.n_exact >= 3000 / STEP && certificate.n_exact < 600);
        assert_true(certificate.n_exact_keys > 0);
        const double found = largest_difference(&x, FIRST, STEP);
        assert_int_equal(sp_exact_attention(x.out, fast, &x.head), SP_OK);
        const double exact = largest_difference(&x, FIRST, STEP);
        if (!(found <= 1.5 * exact + 1e-7)) fail_msg("%g off, the exact kernel %g", found, exact);
        for (size_t i = FIRST; i < 3000; i += STEP) memset(x.q + i * 8, 0, 8 * sizeof *x.q);
        assert_int_equal(sp_fast_attention(x.out, &certificate, fast, &x.head), SP_OK);
        check_certificate(&x, &certificate);
        give_back(&x);
        sp_fast_free(fast);
    }
}

static void threads_change_no_bit(void **state)
{
    (void)state;
    static const shape shapes[] = {{1500, 2100, 8, 8, 8, .4, 30, 1, 0, false},
                                   {1500, 1500, 40, 20, 4, .4, 3, 0, 0, false},
                                   {1800, 1800, 8, 3, 8, .4, 30, 0, 0, true},
                                   {1800, 2800, 20, 3, 2, .5, 1, 0, 0, true}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        data x;
        draw(&x, &shapes[s]);
        const size_t n = shapes[s].n_queries * shapes[s].d_v;
        float *first = floats(n, 1, 1);
        sp_certificate certificates[2];
        for (int n_threads = 1; n_threads <= 3; n_threads++) {
            sp_fast *fast = create((sp_fast_options){.n_threads = n_threads});
            sp_certificate *certificate = &certificates[n_threads > 1];
            memset(certificate, 0, sizeof *certificate);
            if (sp_fast_attention(x.out, certificate, fast, &x.head)) fail_msg("%s", sp_message());
            assert_int_equal(certificate->rank, shapes[s].rank);
            if (n_threads == 1) memcpy(first, x.out, n * sizeof *first);
            assert_memory_equal(x.out, first, n * sizeof *first);
            assert_memory_equal(certificate, &certificates[0], sizeof *certificate);
            sp_fast_free(fast);
        }
        free(first);
        give_back(&x);
    }
}

/* ---- what is left as it is ---- */

static size_t rank_of(data *x, sp_fast_options options, double search_weight)
{
    sp_certificate certificate;
    sp_fast *fast = create(options);
    sp_fast_set_search_weight(fast, search_weight);
    if (sp_fast_attention(x->out, &certificate, fast, &x->head)) fail_msg("%s", sp_message());
    if (certificate.degree) check_certificate(x, &certificate);
    sp_fast_free(fast);
    return certificate.rank;
}

/* A degree or a range that was asked for, few keys, sums that are too small for a search, little memory. */
static void others_are_taken_as_they_come(void **state)
{
    (void)state;
    data x;
    draw(&x, &(shape){900, 900, 8, 4, 8, .4, 30, 0, 0, false});
    assert_int_equal(rank_of(&x, (sp_fast_options){0}, 0), 8);
    assert_int_equal(rank_of(&x, (sp_fast_options){.degree = 3}, 0), 0);
    assert_int_equal(rank_of(&x, (sp_fast_options){.range = 1}, 0), 0);
    assert_int_equal(rank_of(&x, (sp_fast_options){0}, 1), 0);
    assert_int_equal(rank_of(&x, (sp_fast_options){.max_bytes = 200000}, 0), 0);
    x.head.n_keys = 511;
    assert_int_equal(rank_of(&x, (sp_fast_options){0}, 0), 0);
    give_back(&x);
}

/* Keys that are all alike, queries of length 0, numbers at f32's ends: answered, one way or the other. */
static void odd_rows_are_answered(void **state)
{
    (void)state;
    static const float sizes[] = {0, 1e-30f, 1e-18f, 1e18f};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        data x;
        draw(&x, &(shape){700, 700, 6, 2, 6, .4, 30, 0, 0, false});
        for (size_t i = 0; i < 700 * 6; i++) {
            x.k[i] *= sizes[s];
            x.q[i] *= sizes[s] > 0 ? 1 / sizes[s] : 1;
        }
        rank_of(&x, (sp_fast_options){0}, 0);
        assert_true(largest_difference(&x, 0, 1) < 2e-3);
        for (size_t i = 0; i < 700 * 6; i++) x.q[i] = 0;
        rank_of(&x, (sp_fast_options){0}, 0);
        assert_true(largest_difference(&x, 0, 1) < 2e-3);
        x.head.n_queries = 0;
        rank_of(&x, (sp_fast_options){0}, 0);
        give_back(&x);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turned_scores_are_as_far_off_as_is_said),
        cmocka_unit_test(both_sides_are_alike),
        cmocka_unit_test(opposed_spectra_keep_a_small_range),
        cmocka_unit_test(planes_are_found),
        cmocka_unit_test(a_key_off_the_plane_is_noticed),
        cmocka_unit_test(far_queries_stay_exact),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(others_are_taken_as_they_come),
        cmocka_unit_test(odd_rows_are_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
