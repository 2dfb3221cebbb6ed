/* test_fast_state.c: a head's keys and values as moments: against attention in double over the keys themselves, alone and beside
 * others; appended to, saved, read; queries and keys that leave the range; files that are no states. */
#define _GNU_SOURCE
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
#include "fast/state.h"
#include "files.h"
#include "softprompt.h"

enum { MOST_D = 64 };

/* Keys c + basis^T a with |a| <= radius, values that follow the first coordinate; queries whose coordinates have length
 * query_norm, beside a part outside the plane. */
typedef struct workload {
    size_t n_keys, n_queries, d, d_v, rank;
    float *k, *v, *q, *out, *lse;
    double basis[MOST_D * MOST_D];
    sp_attention_head keys, queries;
} workload;

static float *floats(size_t n)
{
    float *x = calloc(n + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

static void make_orthonormal(double *basis, size_t rank, size_t d, sp_rng *rng)
{
    for (size_t s = 0; s < rank; s++) {
        double *row = basis + s * d, squares = 0;
        for (size_t i = 0; i < d; i++) row[i] = sp_rng_normal(rng);
        for (size_t t = 0; t < s; t++) {
            double dot = 0;
            for (size_t i = 0; i < d; i++) dot += row[i] * basis[t * d + i];
            for (size_t i = 0; i < d; i++) row[i] -= dot * basis[t * d + i];
        }
        for (size_t i = 0; i < d; i++) squares += row[i] * row[i];
        for (size_t i = 0; i < d; i++) row[i] /= sqrt(squares);
    }
}

static void draw(workload *w, size_t n_keys, size_t n_queries, size_t d, size_t d_v, size_t rank, double radius, double query_norm)
{
    sp_rng rng = sp_rng_seed(n_keys, d + 100 * rank);
    double centre[MOST_D];
    *w = (workload){.n_keys = n_keys, .n_queries = n_queries, .d = d, .d_v = d_v, .rank = rank};
    w->k = floats(n_keys * d), w->v = floats(n_keys * d_v), w->q = floats(n_queries * d);
    w->out = floats(n_queries * d_v), w->lse = floats(n_queries);
    make_orthonormal(w->basis, rank, d, &rng);
    for (size_t i = 0; i < d; i++) centre[i] = 3 * sp_rng_normal(&rng);
    for (size_t j = 0; j < n_keys; j++) {
        double a[MOST_D], squares = 0;
        for (size_t s = 0; s < rank; s++) a[s] = sp_rng_normal(&rng), squares += a[s] * a[s];
        for (size_t s = 0; s < rank; s++) a[s] *= (j % 2 ? radius : radius * sp_rng_uniform(&rng)) / sqrt(squares);
        for (size_t i = 0; i < d; i++) {
            double key = centre[i];
            for (size_t s = 0; s < rank; s++) key += a[s] * w->basis[s * d + i];
            w->k[j * d + i] = (float)key;
        }
        for (size_t c = 0; c < d_v; c++) w->v[j * d_v + c] = (float)(7 + (rank && a[0] > 0 ? .5 : -.5) + .2 * sp_rng_normal(&rng));
    }
    for (size_t j = 0; j < n_queries; j++) {
        double x[MOST_D], inside[MOST_D], squares = 0;
        for (size_t i = 0; i < d; i++) x[i] = sp_rng_normal(&rng);
        for (size_t s = 0; s < rank; s++) {
            inside[s] = 0;
            for (size_t i = 0; i < d; i++) inside[s] += x[i] * w->basis[s * d + i];
            squares += inside[s] * inside[s];
        }
        for (size_t s = 0; s < rank; s++)
            for (size_t i = 0; i < d; i++) x[i] += inside[s] * (query_norm / sqrt(squares) - 1) * w->basis[s * d + i];
        for (size_t i = 0; i < d; i++) w->q[j * d + i] = (float)x[i];
    }
    w->keys = (sp_attention_head){.k = w->k, .v = w->v, .n_keys = n_keys, .d = d, .d_v = d_v};
    w->queries = (sp_attention_head){.q = w->q, .n_queries = n_queries, .d = d};
}

static void give_back(workload *w)
{
    free(w->k), free(w->v), free(w->q), free(w->out), free(w->lse);
}

/* Attention of a query over n keys in double; returns ln sum exp. */
static double attend_f64(double *out, const float *q, const float *k, const float *v, size_t n, size_t d, size_t d_v)
{
    double most = -INFINITY, sum = 0, *scores = malloc(n * sizeof *scores);
    assert_non_null(scores);
    for (size_t j = 0; j < n; j++) {
        scores[j] = 0;
        for (size_t i = 0; i < d; i++) scores[j] += (double)q[i] * (double)k[j * d + i];
        scores[j] *= (double)(float)(1 / sqrt((double)d));
        most = fmax(most, scores[j]);
    }
    memset(out, 0, d_v * sizeof *out);
    for (size_t j = 0; j < n; j++) {
        const double weight = exp(scores[j] - most);
        sum += weight;
        for (size_t c = 0; c < d_v; c++) out[c] += weight * (double)v[j * d_v + c];
    }
    for (size_t c = 0; c < d_v; c++) out[c] /= sum;
    free(scores);
    return most + log(sum);
}

static double largest_error(const workload *w, double *lse_error)
{
    double want[MOST_D], largest = 0;
    *lse_error = 0;
    for (size_t i = 0; i < w->n_queries; i++) {
        const double lse = attend_f64(want, w->q + i * w->d, w->k, w->v, w->n_keys, w->d, w->d_v);
        *lse_error = fmax(*lse_error, fabs(lse - (double)w->lse[i]));
        for (size_t c = 0; c < w->d_v; c++) {
            const double error = fabs((double)w->out[i * w->d_v + c] - want[c]);
            if (!(error <= largest)) largest = error;
        }
    }
    return largest;
}

static sp_fast_state *create(const workload *w, sp_fast_state_options options)
{
    sp_fast_state *state;
    if (sp_fast_state_create(&state, &w->keys, &options)) fail_msg("%s", sp_message());
    return state;
}

static sp_certificate attend(workload *w, const sp_fast_state *state)
{
    sp_certificate certificate;
    if (sp_fast_state_attend(w->out, w->lse, &certificate, state, &w->queries)) fail_msg("%s", sp_message());
    return certificate;
}

static void states_are_certified(void **unused)
{
    (void)unused;
    static const struct {
        size_t n_keys, n_queries, d, d_v, rank, degree;
        double score;
    } shapes[] = {{1, 3, 8, 4, 1, 1, .04},       {700, 40, 8, 5, 2, 5, 1.6},   {1500, 33, 64, 64, 4, 6, 2.2},
                  {1025, 17, 64, 64, 8, 4, 1.1}, {600, 5, 16, 16, 16, 2, .25}, {513, 16, 7, 1, 1, 8, 3.6},
                  {90, 1, 64, 3, 3, 3, .6},      {2000, 2, 5, 23, 5, 4, 1.1}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        workload w;
        const double radius = 2, norm = shapes[s].score / radius * sqrt((double)shapes[s].d);
        draw(&w, shapes[s].n_keys, shapes[s].n_queries, shapes[s].d, shapes[s].d_v, shapes[s].rank, radius, norm);
        sp_fast_state *state = create(&w, (sp_fast_state_options){.query_norm = norm * 1.0001});
        sp_fast_state_info info;
        sp_fast_state_get_info(&info, state);
        assert_int_equal(info.rank, shapes[s].n_keys > 1 ? shapes[s].rank : 0);
        assert_int_equal(info.degree, shapes[s].degree);
        assert_true(info.query_norm >= norm);
        const sp_certificate certificate = attend(&w, state);
        assert_int_equal(certificate.n_beyond, 0);
        assert_int_equal(certificate.n_features, sp_monomials_count(info.rank, info.degree));
        assert_true(certificate.polynomial_bound <= 1.2e-3 * 2 && certificate.epsilon <= 1e-3);
        double lse_error;
        const double error = largest_error(&w, &lse_error);
        if (!(error <= certificate.polynomial_bound + certificate.rounding_bound) || !(lse_error <= 1.2e-3 + 1e-5))
            fail_msg("shape %zu: %g off, certified %g + %g; lse %g off", s, error, certificate.polynomial_bound,
                     certificate.rounding_bound, lse_error);
        sp_fast_state_free(state);
        give_back(&w);
    }
}

/* Half of the keys in the state, half beside it: what an engine makes of both is attention over all. */
static void other_keys_share_the_softmax(void **unused)
{
    (void)unused;
    workload w;
    double other[MOST_D], want[MOST_D];
    draw(&w, 1000, 9, 64, 16, 4, 1, 16);
    const size_t half = 500;
    for (size_t j = half; j < w.n_keys; j++) /* beside it, keys may be anything */
        for (size_t i = 0; i < w.d; i++) w.k[j * w.d + i] *= .7f + .001f * (float)i;
    w.keys.n_keys = half;
    sp_fast_state *state = create(&w, (sp_fast_state_options){.query_norm = 17});
    const sp_certificate certificate = attend(&w, state);
    assert_int_equal(certificate.n_beyond, 0);
    double range = 0, largest = 0;
    for (size_t c = 0; c < w.d_v; c++) {
        double least = INFINITY, most = -INFINITY;
        for (size_t j = 0; j < w.n_keys; j++) {
            least = fmin(least, (double)w.v[j * w.d_v + c]);
            most = fmax(most, (double)w.v[j * w.d_v + c]);
        }
        range = fmax(range, most - least);
    }
    for (size_t i = 0; i < w.n_queries; i++) {
        const float *q = w.q + i * w.d;
        const double lse = attend_f64(other, q, w.k + half * w.d, w.v + half * w.d_v, w.n_keys - half, w.d, w.d_v);
        const double own = 1 / (1 + exp(lse - (double)w.lse[i]));
        attend_f64(want, q, w.k, w.v, w.n_keys, w.d, w.d_v);
        for (size_t c = 0; c < w.d_v; c++)
            largest = fmax(largest, fabs(own * (double)w.out[i * w.d_v + c] + (1 - own) * other[c] - want[c]));
    }
    assert_true(largest <= range * certificate.weights_bound + certificate.rounding_bound);
    assert_true(largest > 1e-7); /* a comparison with itself would be closer */
    sp_fast_state_free(state);
    give_back(&w);
}

static void appending_is_making_at_once(void **unused)
{
    (void)unused;
    workload w;
    draw(&w, 3000, 30, 64, 64, 4, 1, 16);
    const sp_fast_state_options options = {.query_norm = 17, .key_radius = 1.3, .rank_tolerance = 1e-4};
    sp_fast_state *whole = create(&w, options);
    float *out = floats(w.n_queries * w.d_v);
    attend(&w, whole);
    memcpy(out, w.out, w.n_queries * w.d_v * sizeof *out);
    workload part = w;
    part.keys.n_keys = 100;
    sp_fast_state *grown = create(&part, options);
    static const size_t ends[] = {101, 700, 701, 1400, 3000};
    for (size_t e = 0, first = 100; e < 5; first = ends[e++]) {
        part.keys.k = w.k + first * w.d, part.keys.v = w.v + first * w.d_v, part.keys.n_keys = ends[e] - first;
        if (sp_fast_state_append(grown, &part.keys)) fail_msg("%s", sp_message());
    }
    sp_fast_state_info info;
    sp_fast_state_get_info(&info, grown);
    assert_int_equal(info.n_keys, 3000);
    const sp_certificate certificate = attend(&w, grown);
    double lse_error, error = largest_error(&w, &lse_error), apart = 0;
    assert_true(error <= certificate.polynomial_bound + certificate.rounding_bound);
    for (size_t i = 0; i < w.n_queries * w.d_v; i++) apart = fmax(apart, fabs((double)(out[i] - w.out[i])));
    assert_true(apart <= 1e-3); /* another centre: another place on the polynomial */
    sp_fast_state_free(grown);
    /* In the same frame nothing but the order of sums differs. */
    float centre[MOST_D], basis[4 * MOST_D];
    for (size_t i = 0; i < w.d; i++) centre[i] = (float)whole->plane.centre[i];
    for (size_t i = 0; i < 4 * w.d; i++) basis[i] = (float)whole->plane.basis[i];
    sp_fast_state_options same = options;
    same.centre = centre, same.basis = basis, same.rank = 4;
    sp_fast_state_free(whole);
    whole = create(&w, same);
    attend(&w, whole);
    memcpy(out, w.out, w.n_queries * w.d_v * sizeof *out);
    part.keys = w.keys, part.keys.n_keys = 100;
    grown = create(&part, same);
    part.keys.k = w.k + 100 * w.d, part.keys.v = w.v + 100 * w.d_v, part.keys.n_keys = 2900;
    if (sp_fast_state_append(grown, &part.keys)) fail_msg("%s", sp_message());
    attend(&w, grown);
    for (size_t i = 0; i < w.n_queries * w.d_v; i++) assert_true(fabs((double)(out[i] - w.out[i])) <= 4e-6);
    sp_fast_state_free(whole);
    sp_fast_state_free(grown);
    free(out);
    give_back(&w);
}

static char *read_whole(const char *path, size_t *n)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    char *bytes = malloc(1 << 20);
    assert_non_null(bytes);
    *n = fread(bytes, 1, 1 << 20, file);
    assert_true(*n < 1 << 20 && *n > 0);
    fclose(file);
    return bytes;
}

static void files_round_trip(void **unused)
{
    (void)unused;
    char *dir = make_directory(), first[4096], second[4096];
    snprintf(first, sizeof first, "%s/a.safetensors", dir);
    snprintf(second, sizeof second, "%s/b.safetensors", dir);
    workload w;
    for (size_t rank = 0; rank <= 4; rank += 4) {
        draw(&w, 800, 7, 64, 64, rank, 1, 16);
        sp_fast_state *state = create(&w, (sp_fast_state_options){.query_norm = 17}), *loaded;
        attend(&w, state);
        float *out = floats(w.n_queries * w.d_v);
        memcpy(out, w.out, w.n_queries * w.d_v * sizeof *out);
        assert_int_equal(sp_fast_state_save(state, first), SP_OK);
        if (sp_fast_state_load(&loaded, first)) fail_msg("%s", sp_message());
        assert_int_equal(sp_fast_state_save(loaded, second), SP_OK);
        size_t n_first, n_second;
        char *a = read_whole(first, &n_first), *b = read_whole(second, &n_second);
        assert_int_equal(n_first, n_second);
        assert_memory_equal(a, b, n_first);
        attend(&w, loaded);
        assert_memory_equal(out, w.out, w.n_queries * w.d_v * sizeof *out);
        assert_int_equal(sp_fast_state_append(loaded, &w.keys), SP_OK);
        assert_int_equal(sp_fast_state_append(state, &w.keys), SP_OK);
        attend(&w, loaded);
        memcpy(out, w.out, w.n_queries * w.d_v * sizeof *out);
        attend(&w, state);
        assert_memory_equal(out, w.out, w.n_queries * w.d_v * sizeof *out);
        sp_fast_state_free(state);
        sp_fast_state_free(loaded);
        free(a), free(b), free(out);
        give_back(&w);
    }
    remove_directory(dir);
}

static void refused(sp_status got, sp_status want, const char *message)
{
    if (got != want || !strstr(sp_message(), message))
        fail_msg("status %d, \"%s\"; wanted %d, \"%s\"", got, sp_message(), want, message);
}

/* Each tensor damaged in turn. */
static void hostile_files_are_refused(void **unused)
{
    (void)unused;
    char *dir = make_directory(), path[4096];
    snprintf(path, sizeof path, "%s/state.safetensors", dir);
    workload w;
    draw(&w, 300, 2, 16, 8, 2, 1, 4);
    sp_fast_state *state = create(&w, (sp_fast_state_options){.query_norm = 5}), *loaded;
    static const struct {
        size_t tensor, index;
        double value;
        const char *message;
    } damages[] = {{0, 0, 1e300, "out of range"}, {0, 1, 0, "no degree"},     {0, 1, 1e9, "no degree"},
                   {0, 1, 2.5, "no degree"},      {0, 1, 3, "another shape"}, {0, 2, 1e9, "out of range"},
                   {0, 2, NAN, "not finite"},     {0, 3, -1, "out of range"}, {0, 6, 3, "out of range"},
                   {0, 6, 1024, "out of range"},  {0, 7, 0, "out of range"},  {0, 8, 0, "out of range"},
                   {0, 8, 301, "counts other"},   {0, 9, 2, "version"},       {1, 3, INFINITY, "not finite"},
                   {2, 5, NAN, "not finite"},     {3, 11, NAN, "not finite"}};
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        sp_state_tensors t;
        sp_fast_state_list(&t, state, "");
        double *copy = malloc(t.tensors[damages[i].tensor].n_bytes);
        assert_non_null(copy);
        memcpy(copy, t.tensors[damages[i].tensor].data, t.tensors[damages[i].tensor].n_bytes);
        copy[damages[i].index] = damages[i].value;
        t.tensors[damages[i].tensor].data = copy;
        assert_int_equal(sp_safetensors_write(path, t.tensors, SP_STATE_TENSORS, NULL, 0), SP_OK);
        refused(sp_fast_state_load(&loaded, path), SP_ERR_FORMAT, damages[i].message);
        assert_null(loaded);
        free(copy);
    }
    for (size_t missing = 0; missing < SP_STATE_TENSORS; missing++) {
        sp_state_tensors t;
        sp_fast_state_list(&t, state, "");
        t.tensors[missing] = t.tensors[SP_STATE_TENSORS - 1];
        assert_int_equal(sp_safetensors_write(path, t.tensors, SP_STATE_TENSORS - 1, NULL, 0), SP_OK);
        refused(sp_fast_state_load(&loaded, path), SP_ERR_FORMAT, "is missing");
    }
    sp_state_tensors t;
    sp_fast_state_list(&t, state, "");
    t.tensors[3].shape[0]--, t.tensors[3].n_bytes -= t.tensors[3].shape[1] * sizeof(double);
    assert_int_equal(sp_safetensors_write(path, t.tensors, SP_STATE_TENSORS, NULL, 0), SP_OK);
    refused(sp_fast_state_load(&loaded, path), SP_ERR_FORMAT, "another shape");
    sp_fast_state_free(state);
    give_back(&w);
    remove_directory(dir);
}

/* Queries beyond the range: counted, shortened, and the bound that is given for them holds. */
static void far_queries_are_counted(void **unused)
{
    (void)unused;
    for (double far = 1.2; far < 4; far *= 1.5) {
        workload w;
        draw(&w, 900, 21, 64, 32, 4, 1, 16);
        for (size_t i = 0; i < 5 * w.d; i++) w.q[i] *= (float)far;
        sp_fast_state *state = create(&w, (sp_fast_state_options){.query_norm = 16.1});
        const double reach = state->polynomial.rho, score = 16 * far / 8;
        const sp_certificate certificate = attend(&w, state);
        assert_int_equal(certificate.n_beyond, score > reach * 1.001 ? 5 : 0);
        double lse_error, error = largest_error(&w, &lse_error);
        assert_true(error <= certificate.polynomial_bound + certificate.rounding_bound);
        assert_true(lse_error <= 2 * atanh(certificate.weights_bound) + 1e-5);
        if (certificate.n_beyond) assert_true(certificate.weights_bound > (score - reach) / 4 || certificate.weights_bound > .5);
        sp_fast_state_free(state);
        give_back(&w);
    }
}

/* What a query beyond the range gets is what one gets that reaches its end in the same direction. */
static void far_queries_are_shortened(void **unused)
{
    (void)unused;
    workload w;
    draw(&w, 900, 5, 64, 32, 4, 1, 16);
    sp_fast_state *state = create(&w, (sp_fast_state_options){.query_norm = 16});
    sp_fast_state_info info;
    sp_fast_state_get_info(&info, state);
    for (size_t i = 0; i < w.n_queries * w.d; i++) w.q[i] *= (float)(info.query_norm / 16 * (1 - 1e-6));
    assert_int_equal(attend(&w, state).n_beyond, 0);
    float *out = floats(w.n_queries * w.d_v);
    memcpy(out, w.out, w.n_queries * w.d_v * sizeof *out);
    for (size_t i = 0; i < w.n_queries * w.d; i++) w.q[i] *= 5;
    assert_int_equal(attend(&w, state).n_beyond, w.n_queries);
    for (size_t i = 0; i < w.n_queries * w.d_v; i++)
        if (!(fabs((double)(out[i] - w.out[i])) <= 1e-5))
            fail_msg("%f at the range's end, %f beyond", (double)out[i], (double)w.out[i]);
    free(out);
    sp_fast_state_free(state);
    give_back(&w);
}

static void keys_out_of_frame_are_refused(void **unused)
{
    (void)unused;
    workload w;
    draw(&w, 500, 3, 64, 8, 3, 1, 8);
    sp_fast_state *state = create(&w, (sp_fast_state_options){.query_norm = 9});
    attend(&w, state);
    const float before = w.out[0];
    float key[MOST_D], value[MOST_D] = {0};
    sp_attention_head one = {.k = key, .v = value, .n_keys = 1, .d = w.d, .d_v = w.d_v};
    for (size_t i = 0; i < w.d; i++) key[i] = (float)(state->plane.centre[i] + 3 * w.basis[i]);
    refused(sp_fast_state_append(state, &one), SP_ERR_ARGUMENT, "key 0 lies 3");
    for (size_t i = 0; i < w.d; i++) key[i] = (float)(state->plane.centre[i] + (i == 0 ? .5 : 0));
    refused(sp_fast_state_append(state, &one), SP_ERR_ARGUMENT, "off the plane");
    key[5] = NAN;
    refused(sp_fast_state_append(state, &one), SP_ERR_ARGUMENT, "key 0: coordinate 5");
    for (size_t i = 0; i < w.d; i++) key[i] = (float)state->plane.centre[i];
    value[2] = INFINITY;
    refused(sp_fast_state_append(state, &one), SP_ERR_ARGUMENT, "value 0: coordinate 2");
    value[2] = 1e30f;
    refused(sp_fast_state_append(state, &one), SP_ERR_ARGUMENT, "proportion");
    one.d = 3;
    refused(sp_fast_state_append(state, &one), SP_ERR_MISMATCH, "state of 64 and 8");
    attend(&w, state);
    assert_true(before == w.out[0]);
    w.q[7] = NAN;
    refused(sp_fast_state_attend(w.out, NULL, NULL, state, &w.queries), SP_ERR_ARGUMENT, "query 0: coordinate 7");
    sp_fast_state_free(state);
    sp_fast_state *none;
    refused(sp_fast_state_create(&none, &w.keys, &(sp_fast_state_options){.epsilon = 0}), SP_ERR_ARGUMENT, "none of query_norm");
    refused(sp_fast_state_create(&none, &w.keys, &(sp_fast_state_options){.degree = 4, .max_rank = 2}), SP_ERR_UNSUPPORTED,
            "rank is above 2");
    refused(sp_fast_state_create(&none, &w.keys, &(sp_fast_state_options){.query_norm = 1000}), SP_ERR_UNSUPPORTED, "serves up to");
    refused(sp_fast_state_create(&none, &w.keys, &(sp_fast_state_options){.range = 5.5}), SP_ERR_UNSUPPORTED, "serves up to");
    refused(sp_fast_state_create(&none, &w.keys, &(sp_fast_state_options){.degree = 8, .max_bytes = 1000}), SP_ERR_MEMORY,
            "allowed");
    refused(sp_fast_state_create(&none, &w.keys, &(sp_fast_state_options){.degree = 4, .key_radius = .1}), SP_ERR_ARGUMENT,
            "raise it");
    refused(sp_fast_state_create(&none, &w.keys, &(sp_fast_state_options){.degree = 4, .rank = 2}), SP_ERR_ARGUMENT, "basis");
    w.keys.n_keys = 0;
    refused(sp_fast_state_create(&none, &w.keys, &(sp_fast_state_options){.degree = 4}), SP_ERR_ARGUMENT, "no keys");
    give_back(&w);
}

/* 2^20 keys and their queries at the limit: against the same polynomial in double. */
static void rounding_stays_small_over_many_keys(void **unused)
{
    (void)unused;
    enum { N = 1 << 20, D = 8, QUERIES = 6 };
    workload w;
    draw(&w, 1, QUERIES, D, 1, D, 1, 1);
    free(w.k), free(w.v);
    w.k = floats((size_t)N * D), w.v = floats(N);
    sp_rng rng = sp_rng_seed(7, 7);
    for (size_t j = 0; j < N; j++) {
        double squares = 0;
        for (size_t i = 0; i < D; i++)
            w.k[j * D + i] = (float)sp_rng_normal(&rng), squares += (double)w.k[j * D + i] * w.k[j * D + i];
        for (size_t i = 0; i < D; i++) w.k[j * D + i] *= (float)(1 / sqrt(squares));
        w.v[j] = w.k[j * D] > 0 ? 1 : -1;
    }
    w.keys = (sp_attention_head){.k = w.k, .v = w.v, .n_keys = N, .d = D, .d_v = 1};
    sp_fast_state *state = create(&w, (sp_fast_state_options){.degree = 4});
    const double scale = (double)state->scale, norm = state->polynomial.rho / (state->radius * scale) * (1 - 1e-6);
    double coordinates[D], left, scratch[D];
    for (size_t i = 0; i < QUERIES; i++) {
        double squares = 0;
        for (size_t c = 0; c < D; c++) squares += (double)w.q[i * D + c] * w.q[i * D + c];
        for (size_t c = 0; c < D; c++) w.q[i * D + c] *= (float)(norm / sqrt(squares));
    }
    const sp_certificate certificate = attend(&w, state);
    assert_int_equal(certificate.n_beyond, 0);
    double largest = 0;
    for (size_t i = 0; i < QUERIES; i++) {
        double sum = 0, total = 0, y[D] = {0};
        for (size_t s = 0; s < D; s++)
            for (size_t c = 0; c < D; c++) y[s] += state->plane.basis[s * D + c] * w.q[i * D + c];
        for (size_t j = 0; j < N; j++) {
            double score = 0, p = 0;
            sp_plane_project(coordinates, &left, &state->plane, w.k + j * D, scratch);
            for (size_t s = 0; s < D; s++) score += y[s] * coordinates[s] * scale;
            for (size_t g = state->polynomial.degree + 1; g-- > 0;) p = p * score + state->polynomial.c[g];
            sum += p * (double)w.v[j];
            total += p;
        }
        largest = fmax(largest, fabs(sum / total - (double)w.out[i]));
    }
    if (!(largest <= 5e-6)) fail_msg("rounding: %g", largest);
    assert_true(largest <= certificate.rounding_bound);
    print_message("rounding over 2^20 keys: %.2g (certified %.2g)\n", largest, certificate.rounding_bound);
    sp_fast_state_free(state);
    give_back(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_are_certified),
        cmocka_unit_test(other_keys_share_the_softmax),
        cmocka_unit_test(appending_is_making_at_once),
        cmocka_unit_test(files_round_trip),
        cmocka_unit_test(hostile_files_are_refused),
        cmocka_unit_test(far_queries_are_counted),
        cmocka_unit_test(far_queries_are_shortened),
        cmocka_unit_test(keys_out_of_frame_are_refused),
        cmocka_unit_test(rounding_stays_small_over_many_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
