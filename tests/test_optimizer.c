/* test_optimizer.c: optimisers, clipping and schedules against what PyTorch and transformers did (tests/oracle/optimizer.py). */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "train/optimizer.h"
#include "train/schedule.h"

enum { MAX_NUMBERS = 64 };

static json_t *oracle;

static int load_oracle(void **state)
{
    (void)state;
    json_error_t error;
    oracle = json_load_file(SP_TEST_DATA "/optimizer.json", 0, &error);
    return oracle ? 0 : -1;
}

static int drop_oracle(void **state)
{
    (void)state;
    json_decref(oracle);
    return 0;
}

static double number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static size_t read_numbers(float *out, const json_t *array)
{
    size_t i;
    json_t *value;
    assert_in_range(json_array_size(array), 1, MAX_NUMBERS);
    json_array_foreach(array, i, value) out[i] = (float)json_number_value(value);
    return i;
}

static void assert_close(const float *got, const json_t *want, double floor)
{
    size_t i;
    json_t *value;
    json_array_foreach(want, i, value)
    {
        double w = json_number_value(value);
        assert_true(fabs(got[i] - w) <= 1e-6 * fmax(fabs(w), floor)); /* false for NaN */
    }
}

static sp_optimizer kind_of(const json_t *run)
{
    return strcmp(json_string_value(json_object_get(run, "kind")), "adamw") ? SP_ADAFACTOR : SP_ADAMW;
}

/* n_frozen rows of 7 stand in front of the oracle's matrix: they must stay, and change nothing. */
static void follow(const json_t *run, size_t n_frozen)
{
    size_t n_rows = (size_t)number(run, "rows"), n_columns = (size_t)number(run, "columns"), next = 0;
    float matrix[MAX_NUMBERS], gradient[MAX_NUMBERS];
    sp_optimizer_state *optimizer;
    assert_int_equal(sp_optimizer_create(&optimizer, kind_of(run), &(sp_weight_shape){n_rows + n_frozen, n_columns, n_frozen}, 1,
                                         number(run, "weight_decay")),
                     SP_OK);
    sp_optimizer_set_betas(optimizer, number(run, "beta1"), number(run, "beta2"));
    for (size_t i = 0; i < n_frozen * n_columns; i++) matrix[i] = gradient[i] = 7;
    read_numbers(matrix + n_frozen * n_columns, json_object_get(run, "start"));
    const json_t *gradients = json_object_get(run, "gradients"), *rates = json_object_get(run, "rates"),
                 *kept = json_object_get(run, "kept");
    for (size_t step = 1; step <= json_array_size(gradients); step++) {
        read_numbers(gradient + n_frozen * n_columns, json_array_get(gradients, step - 1));
        sp_optimizer_step(optimizer, matrix, gradient, json_number_value(json_array_get(rates, step - 1)), step);
        const json_t *want = json_array_get(kept, next);
        if (!want || (size_t)number(want, "step") != step) continue;
        assert_close(matrix + n_frozen * n_columns, json_object_get(want, "matrix"), 0.02);
        next++;
    }
    assert_int_equal(next, json_array_size(kept));
    for (size_t i = 0; i < n_frozen * n_columns; i++) assert_true(matrix[i] == 7);
    sp_optimizer_free(optimizer);
}

static void test_trajectories(void **state)
{
    (void)state;
    size_t i;
    json_t *run;
    const json_t *runs = json_object_get(oracle, "trajectories");
    assert_true(json_array_size(runs) >= 5);
    json_array_foreach(runs, i, run)
    {
        follow(run, 0);
        follow(run, 2);
    }
}

/* Matrices that stand behind each other move as each does alone. */
static void test_matrices_are_apart(void **state)
{
    (void)state;
    const sp_weight_shape shapes[] = {{2, 3, 1}, {1, 2, 1}, {3, 2, 0}};
    const size_t begin[] = {0, 6, 8}, n = 14;
    for (int kind = SP_ADAMW; kind <= SP_ADAFACTOR; kind++) {
        sp_optimizer_state *all, *one;
        float w[14], gradient[14], alone[14];
        assert_int_equal(sp_optimizer_create(&all, (sp_optimizer)kind, shapes, 3, 0.01), SP_OK);
        for (size_t i = 0; i < n; i++) w[i] = alone[i] = (float)i, gradient[i] = (float)(i * i % 7) - 2.5f;
        for (uint64_t step = 1; step <= 3; step++) sp_optimizer_step(all, w, gradient, 0.1, step);
        for (size_t m = 0; m < 3; m += 2) { /* the second is frozen as a whole */
            assert_int_equal(sp_optimizer_create(&one, (sp_optimizer)kind, &shapes[m], 1, 0.01), SP_OK);
            for (uint64_t step = 1; step <= 3; step++) sp_optimizer_step(one, alone + begin[m], gradient + begin[m], 0.1, step);
            sp_optimizer_free(one);
        }
        assert_memory_equal(w, alone, sizeof w);
        sp_optimizer_free(all);
    }
}

/* What a checkpoint stores is all there is: a copy with the same matrices goes the same way, to the bit. */
static void test_state_is_complete(void **state)
{
    (void)state;
    for (int kind = SP_ADAMW; kind <= SP_ADAFACTOR; kind++) {
        sp_optimizer_state *a, *b;
        sp_named_matrix from[4], to[4];
        const sp_weight_shape shapes[] = {{2, 3, 1}, {3, 2, 0}};
        float w[12], v[12], gradient[12];
        assert_int_equal(sp_optimizer_create(&a, (sp_optimizer)kind, shapes, 2, 0.01), SP_OK);
        assert_int_equal(sp_optimizer_create(&b, (sp_optimizer)kind, shapes, 2, 0.01), SP_OK);
        for (int i = 0; i < 12; i++) w[i] = (float)i, gradient[i] = (float)(i % 5) - 2.5f;
        for (uint64_t step = 1; step <= 3; step++) sp_optimizer_step(a, w, gradient, 0.1, step);
        size_t n = sp_optimizer_matrices(from, a);
        assert_int_equal(sp_optimizer_matrices(to, b), n);
        for (size_t i = 0; i < n; i++) {
            assert_string_equal(from[i].name, to[i].name);
            memcpy(to[i].data, from[i].data, from[i].n_rows * from[i].n_columns * sizeof(float));
        }
        memcpy(v, w, sizeof w);
        sp_optimizer_step(a, w, gradient, 0.1, 4);
        sp_optimizer_step(b, v, gradient, 0.1, 4);
        assert_memory_equal(v, w, sizeof w);
        sp_optimizer_free(a);
        sp_optimizer_free(b);
    }
}

static void test_unknown_kind(void **state)
{
    (void)state;
    sp_optimizer_state *optimizer;
    assert_int_equal(sp_optimizer_create(&optimizer, (sp_optimizer)7, &(sp_weight_shape){1, 1, 0}, 1, 0), SP_ERR_ARGUMENT);
    assert_null(optimizer);
}

static void test_clipping(void **state)
{
    (void)state;
    size_t i;
    json_t *clip;
    float gradient[MAX_NUMBERS];
    json_array_foreach(json_object_get(oracle, "clips"), i, clip)
    {
        size_t n = read_numbers(gradient, json_object_get(clip, "gradient"));
        double norm = sp_gradient_clip(gradient, n, number(clip, "max_norm"));
        assert_true(fabs(norm - number(clip, "norm")) <= 1e-12 * norm);
        assert_close(gradient, json_object_get(clip, "clipped"), 1e-6);
    }
    float long_one[2] = {3, 4};
    assert_true(sp_gradient_clip(long_one, 2, -1) == 5);
    assert_true(long_one[0] == 3 && long_one[1] == 4);
    long_one[0] = NAN;
    assert_false(isfinite(sp_gradient_clip(long_one, 2, 1)));
}

static void test_schedules(void **state)
{
    (void)state;
    size_t i, step;
    json_t *run, *factor;
    json_array_foreach(json_object_get(oracle, "schedules"), i, run)
    {
        const char *name = json_string_value(json_object_get(run, "schedule"));
        sp_schedule schedule = !strcmp(name, "cosine") ? SP_COSINE : !strcmp(name, "linear") ? SP_LINEAR : SP_CONSTANT;
        json_array_foreach(json_object_get(run, "factors"), step, factor)
        {
            double got = sp_schedule_factor(schedule, step, (size_t)number(run, "warmup"), (size_t)number(run, "total"));
            assert_true(fabs(got - json_number_value(factor)) <= DBL_EPSILON);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trajectories), cmocka_unit_test(test_matrices_are_apart), cmocka_unit_test(test_state_is_complete),
        cmocka_unit_test(test_unknown_kind), cmocka_unit_test(test_clipping),           cmocka_unit_test(test_schedules),
    };
    return cmocka_run_group_tests(tests, load_oracle, drop_oracle);
}
