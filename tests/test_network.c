/* test_network.c: the encoders of P-tuning and of a projected prefix against PEFT's own modules (tests/oracle/encoder.py), and what
 * they start from. */
#include <float.h>
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "format/safetensors.h"
#include "prompt/network.h"

static const struct {
    const char *name;
    sp_network_shape shape;
} CASES[] = {
    {"mlp", {SP_NETWORK_MLP, 5, 7, 9, 0, 7}},
    {"mlp_one", {SP_NETWORK_MLP, 1, 17, 16, 0, 17}},
    {"mlp_many", {SP_NETWORK_MLP, 12, 5, 4, 0, 5}},
    {"lstm", {SP_NETWORK_LSTM, 5, 6, 5, 2, 6}},
    {"lstm_one", {SP_NETWORK_LSTM, 1, 6, 4, 1, 6}},
    {"lstm_two", {SP_NETWORK_LSTM, 2, 3, 5, 2, 3}},
    {"lstm_deep", {SP_NETWORK_LSTM, 9, 4, 3, 3, 4}},
    {"projection", {SP_NETWORK_PROJECTION, 6, 4, 10, 0, 24}},
    {"projection_one", {SP_NETWORK_PROJECTION, 1, 2, 8, 0, 8}},
};
enum { N_CASES = sizeof CASES / sizeof *CASES };

static sp_safetensors *oracle;

static int open_oracle(void **state)
{
    (void)state;
    return sp_safetensors_open(&oracle, SP_TEST_DATA "/encoder.safetensors");
}

static int close_oracle(void **state)
{
    (void)state;
    sp_safetensors_close(oracle);
    return 0;
}

static float *numbers(size_t n)
{
    float *x = calloc(n, sizeof *x);
    assert_non_null(x);
    return x;
}

/* n numbers of the oracle's tensor CASE.WHAT[.NAME]. */
static void read_tensor(float *out, const char *which, const char *what, const char *name, size_t n)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s%s%s", which, what, name ? "." : "", name ? name : "");
    const sp_st_tensor *tensor = sp_safetensors_find(oracle, key);
    if (!tensor) fail_msg("no tensor %s", key);
    assert_int_equal(tensor->n_bytes, n * sizeof *out);
    assert_int_equal(sp_safetensors_read_f32(out, oracle, tensor, 0, n), SP_OK);
}

static float *read_matrices(const char *which, const char *what, const sp_network *network)
{
    float *values = numbers(sp_network_n_weights(network));
    for (size_t i = 0; i < sp_network_n_matrices(network); i++) {
        const sp_network_matrix *m = &sp_network_matrices(network)[i];
        read_tensor(values + m->offset, which, what, m->name, m->n_rows * m->n_columns);
    }
    return values;
}

/* The difference's norm over the norm; false for NaN. */
static void assert_close(const char *what, const float *got, const float *want, size_t n)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += (double)want[i] * want[i];
    }
    if (!(difference <= 1e-12 * norm)) fail_msg("%s: relative error %g", what, sqrt(difference / norm));
}

static sp_network *create(const sp_network_shape *shape)
{
    sp_network *network;
    assert_int_equal(sp_network_create(&network, shape), SP_OK);
    return network;
}

static size_t n_row_values(const sp_network_shape *shape)
{
    return shape->n * shape->n_out;
}

static void test_same_as_peft(void **state)
{
    (void)state;
    for (size_t c = 0; c < N_CASES; c++) {
        const char *which = CASES[c].name;
        sp_network *network = create(&CASES[c].shape);
        const size_t n_rows = n_row_values(&CASES[c].shape), n_weights = sp_network_n_weights(network);
        float *weights = read_matrices(which, "weight", network), *want = read_matrices(which, "gradient", network);
        float *rows = numbers(n_rows), *their_rows = numbers(n_rows), *d_rows = numbers(n_rows), *gradient = numbers(n_weights);
        read_tensor(their_rows, which, "rows", NULL, n_rows);
        read_tensor(d_rows, which, "d_rows", NULL, n_rows);
        for (int round = 0; round < 2; round++) { /* twice: gradients add up, activations are those of the last forward */
            assert_int_equal(sp_network_forward(rows, network, weights), SP_OK);
            assert_close(which, rows, their_rows, n_rows);
            assert_int_equal(sp_network_backward(gradient, network, weights, d_rows), SP_OK);
        }
        for (size_t i = 0; i < n_weights; i++) want[i] *= 2;
        for (size_t i = 0; i < sp_network_n_matrices(network); i++) {
            const sp_network_matrix *m = &sp_network_matrices(network)[i];
            assert_close(m->name, gradient + m->offset, want + m->offset, m->n_rows * m->n_columns);
        }
        free(weights);
        free(want);
        free(rows);
        free(their_rows);
        free(d_rows);
        free(gradient);
        sp_network_free(network);
    }
}

/* Wide enough that every loop is divided among threads. */
static void test_threads_change_nothing(void **state)
{
    (void)state;
    static const sp_network_shape shapes[] = {{SP_NETWORK_MLP, 33, 130, 150, 0, 130},
                                              {SP_NETWORK_LSTM, 17, 130, 70, 2, 130},
                                              {SP_NETWORK_PROJECTION, 33, 64, 64, 0, 1000}};
    const int before = omp_get_max_threads();
    for (size_t c = 0; c < 3; c++) {
        sp_network *network = create(&shapes[c]);
        const size_t n_rows = n_row_values(&shapes[c]), n_weights = sp_network_n_weights(network);
        float *weights = numbers(n_weights), *rows[3], *gradients[3];
        sp_rng rng = sp_rng_seed(c, 1);
        sp_network_init(weights, network, &rng);
        for (int k = 0; k < 3; k++) {
            rows[k] = numbers(n_rows);
            gradients[k] = numbers(n_weights);
            omp_set_num_threads(k + 1);
            assert_int_equal(sp_network_forward(rows[k], network, weights), SP_OK);
            assert_int_equal(sp_network_backward(gradients[k], network, weights, rows[k]), SP_OK);
            assert_memory_equal(rows[k], rows[0], n_rows * sizeof(float));
            assert_memory_equal(gradients[k], gradients[0], n_weights * sizeof(float));
        }
        for (int k = 0; k < 3; k++) {
            free(rows[k]);
            free(gradients[k]);
        }
        free(weights);
        sp_network_free(network);
    }
    omp_set_num_threads(before);
}

/* Means and deviations of what torch's modules start from, within five standard errors. */
static void test_init(void **state)
{
    (void)state;
    for (size_t c = 0; c < N_CASES; c++) {
        const sp_network_shape *small = &CASES[c].shape;
        const sp_network_shape shape = {small->kind, 40, 30, 50, small->n_layers, 60};
        sp_network *network = create(&shape);
        float *weights = numbers(sp_network_n_weights(network));
        sp_rng rng = sp_rng_seed(c, 2);
        sp_network_init(weights, network, &rng);
        for (size_t i = 0; i < sp_network_n_matrices(network); i++) {
            const sp_network_matrix *m = &sp_network_matrices(network)[i];
            const bool is_lstm = strncmp(m->name, "lstm", 4) == 0, is_bias = m->n_rows == 1 && i > 0;
            const size_t n = m->n_rows * m->n_columns, fan_in = is_bias ? m[-1].n_columns : m->n_columns;
            const double bound = i == 0 ? 0 : 1 / sqrt((double)(is_lstm ? shape.n_hidden : fan_in));
            const double deviation = i == 0 ? 1 : bound / sqrt(3);
            double sum = 0, squares = 0;
            for (size_t j = 0; j < n; j++) {
                const double w = weights[m->offset + j];
                if (bound > 0) assert_true(fabs(w) <= bound * (1 + FLT_EPSILON));
                sum += w;
                squares += w * w;
            }
            assert_true(fabs(sum / (double)n) <= 5 * deviation / sqrt((double)n));
            assert_true(fabs(squares / (double)n / (deviation * deviation) - 1) <= 5 * sqrt(2 / (double)n));
        }
        free(weights);
        sp_network_free(network);
    }
}

static double distance(const float *a, const float *b, size_t n)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(squares);
}

/* The rows become what is wanted where the last layer reads enough numbers, and come nearer where it does not. */
static void test_fit(void **state)
{
    (void)state;
    static const sp_network_shape shapes[] = {{SP_NETWORK_MLP, 16, 24, 40, 0, 24},
                                              {SP_NETWORK_LSTM, 16, 24, 12, 2, 24},
                                              {SP_NETWORK_PROJECTION, 16, 8, 20, 0, 96},
                                              {SP_NETWORK_PROJECTION, 1, 8, 20, 0, 96},
                                              {SP_NETWORK_PROJECTION, 60, 8, 8, 0, 96}};
    for (size_t c = 0; c < 5; c++) {
        sp_network *network = create(&shapes[c]);
        const size_t n_rows = n_row_values(&shapes[c]);
        float *weights = numbers(sp_network_n_weights(network)), *targets = numbers(n_rows), *rows = numbers(n_rows);
        float *zeros = numbers(n_rows);
        sp_rng rng = sp_rng_seed(c, 3);
        sp_network_init(weights, network, &rng);
        for (size_t i = 0; i < n_rows; i++) targets[i] = (float)sp_rng_normal(&rng);
        assert_int_equal(sp_network_forward(rows, network, weights), SP_OK);
        const double before = distance(rows, targets, n_rows), size = distance(zeros, targets, n_rows);
        assert_int_equal(sp_network_fit(weights, network, targets), SP_OK);
        assert_int_equal(sp_network_forward(rows, network, weights), SP_OK);
        const double after = distance(rows, targets, n_rows);
        if (shapes[c].n <= shapes[c].n_hidden + 1)
            assert_true(after <= 1e-2 * size);
        else
            assert_true(after < 0.99 * before && after > 0.1 * size);
        free(weights);
        free(targets);
        free(rows);
        free(zeros);
        sp_network_free(network);
    }
}

static void test_bad_shapes(void **state)
{
    (void)state;
    static const sp_network_shape shapes[] = {
        {SP_NETWORK_MLP, 0, 7, 9, 0, 7},
        {SP_NETWORK_MLP, 5, 7, 0, 0, 7},
        {SP_NETWORK_LSTM, 5, 7, 9, 0, 7},
        {SP_NETWORK_LSTM, 5, 7, 9, SP_NETWORK_MAX_LAYERS + 1, 7},
        {SP_NETWORK_MLP, 5, 7, SP_NETWORK_MAX_HIDDEN + 1, 0, 7},
        {SP_NETWORK_PROJECTION, 5, 7, 9, 0, SIZE_MAX},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        sp_network *network = (sp_network *)&network;
        assert_int_equal(sp_network_create(&network, &shapes[i]), SP_ERR_ARGUMENT);
        assert_null(network);
        assert_non_null(strstr(sp_message(), "encoder"));
    }
    sp_network_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_peft), cmocka_unit_test(test_threads_change_nothing),
        cmocka_unit_test(test_init),         cmocka_unit_test(test_fit),
        cmocka_unit_test(test_bad_shapes),
    };
    return cmocka_run_group_tests(tests, open_oracle, close_oracle);
}
