/* test_penalizer.c: how far a prompt's keys reach beyond a bound, on a tiny model. What is claimed: it is what its definition says
 * of keys and values as they stand; gradients, of every kind of prompt, are those that finite differences find; what is inside
 * costs nothing and is not moved. oracle/bounded_keys.py holds it against torch. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "prompt/penalizer.h"
#include "prompt/prompt.h"
#include "tiny_fixture.h"

enum { P = 5, HEADS = TINY_LAYERS * TINY_KV_HEADS, D = TINY_D / TINY_HEADS, WIDTH = 2 * HEADS * D };

static sp_prompt *create(sp_prompt_options options)
{
    sp_prompt *p;
    options.num_virtual_tokens = P;
    options.seed = 3;
    if (sp_prompt_create(&p, model, &options)) fail_msg("%s", sp_message());
    return p;
}

static const float NORMS[HEADS] = {2.5F, 0.5F, 0, 1.5F}; /* one head was seen by no query */

/* The definition, of keys and values (P, WIDTH). */
static double penalty_of(const float *keys_values, double max_logit)
{
    double sum = 0;
    for (size_t h = 0; h < HEADS; h++) {
        const float *keys = keys_values + (2 * (h / TINY_KV_HEADS) * TINY_KV_HEADS + h % TINY_KV_HEADS) * D;
        for (size_t j = 0; j < P; j++) {
            double squares = 0;
            for (size_t i = 0; i < D; i++) {
                double mean = 0;
                for (size_t k = 0; k < P; k++) mean += (double)keys[k * WIDTH + i] / P;
                squares += pow((double)keys[j * WIDTH + i] - mean, 2);
            }
            const double bound = (double)NORMS[h] * sqrt(squares);
            if (bound > max_logit) sum += pow(bound / max_logit - 1, 2);
        }
    }
    return sum / (HEADS * P);
}

static void is_its_definition(void **state)
{
    (void)state;
    sp_prompt *prompt = create((sp_prompt_options){.method = SP_METHOD_PREFIX, .init = SP_INIT_RANDOM});
    static const double limits[] = {0.1, 1, 3};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        double penalty, expected = penalty_of(sp_prompt_keys_values(prompt), limits[i]);
        assert_int_equal(sp_key_penalty(&penalty, NULL, model, prompt, NORMS, limits[i]), SP_OK);
        assert_true(expected > 1e-3 && fabs(penalty - expected) <= 1e-12 * expected);
    }
    sp_prompt_free(prompt);
}

/* A prompt of embeddings has the penalty of the keys that the model computes for them. */
static void is_of_the_keys_computed(void **state)
{
    (void)state;
    sp_prompt *prompt = create((sp_prompt_options){.method = SP_METHOD_PROMPT});
    sp_penalizer *penalizer;
    const float *keys_values;
    double penalty;
    assert_int_equal(sp_penalizer_create(&penalizer, model, prompt), SP_OK);
    assert_int_equal(sp_penalizer_keys_values(&keys_values, penalizer, sp_prompt_embeddings(prompt)), SP_OK);
    assert_int_equal(sp_key_penalty(&penalty, NULL, model, prompt, NORMS, 0.2), SP_OK);
    const double expected = penalty_of(keys_values, 0.2);
    assert_true(expected > 1e-3 && fabs(penalty - expected) <= 1e-12 * expected);
    sp_penalizer_free(penalizer);
    sp_prompt_free(prompt);
}

static double norm(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static double penalty_along(sp_prompt *prompt, const float *start, const float *direction, double step, double max_logit)
{
    float *weights = sp_prompt_weights(prompt);
    double penalty;
    for (size_t i = 0; i < sp_prompt_n_weights(prompt); i++) weights[i] = start[i] + (float)(step * (double)direction[i]);
    assert_int_equal(sp_prompt_update(prompt), SP_OK);
    assert_int_equal(sp_key_penalty(&penalty, NULL, model, prompt, NORMS, max_logit), SP_OK);
    return penalty;
}

/* Along the gradient the penalty changes by |g|^2 a unit. */
static void check_gradient(sp_prompt *prompt, double max_logit, double distance)
{
    const size_t n = sp_prompt_n_weights(prompt);
    float *gradient = malloc(n * sizeof *gradient), *start = malloc(n * sizeof *start);
    double penalty;
    assert_int_equal(sp_key_penalty(&penalty, gradient, model, prompt, NORMS, max_logit), SP_OK);
    memcpy(start, sp_prompt_weights(prompt), n * sizeof *start);
    const double length = norm(gradient, n), step = distance / length;
    assert_true(penalty > 0 && length > 1e-4);
    const double up = penalty_along(prompt, start, gradient, step, max_logit);
    const double down = penalty_along(prompt, start, gradient, -step, max_logit);
    const double slope = (up - down) / (2 * step);
    if (fabs(slope - length * length) > 2e-3 * length * length) fail_msg("slope %g, |g|^2 %g", slope, length * length);
    free(gradient);
    free(start);
}

static void gradients_are_right(void **state)
{
    (void)state;
    static const sp_prompt_options options[] = {
        {.method = SP_METHOD_PROMPT},
        {.method = SP_METHOD_PREFIX, .init = SP_INIT_RANDOM},
        {.method = SP_METHOD_PREFIX, .prefix_projection = true},
        {.method = SP_METHOD_PTUNING, .encoder_hidden_size = 11},
        {.method = SP_METHOD_PTUNING, .encoder_hidden_size = 11, .encoder_reparameterization_type = SP_ENCODER_LSTM},
        {.method = SP_METHOD_MULTITASK, .num_tasks = 2},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        sp_prompt *prompt = create(options[i]);
        if (options[i].num_tasks) assert_int_equal(sp_prompt_use_task(prompt, 1), SP_OK);
        check_gradient(prompt, 0.05, 2e-4); /* every head is beyond */
        sp_prompt_free(prompt);
    }
}

/* Nothing beyond: no penalty, and nothing that moves. */
static void inside_costs_nothing(void **state)
{
    (void)state;
    sp_prompt *prompt = create((sp_prompt_options){.method = SP_METHOD_PREFIX, .init = SP_INIT_RANDOM});
    float gradient[P * WIDTH];
    double penalty;
    assert_int_equal(sp_key_penalty(&penalty, gradient, model, prompt, NORMS, 1e6), SP_OK);
    assert_true(penalty == 0 && norm(gradient, P * WIDTH) == 0);
    sp_prompt_free(prompt);
    prompt = create((sp_prompt_options){.method = SP_METHOD_PROMPT});
    float *rows = malloc(sp_prompt_n_weights(prompt) * sizeof *rows);
    assert_int_equal(sp_key_penalty(&penalty, rows, model, prompt, NORMS, 1e6), SP_OK);
    assert_true(penalty == 0 && norm(rows, sp_prompt_n_weights(prompt)) == 0);
    free(rows);
    sp_prompt_free(prompt);
}

/* Keys that are all alike are inside, whatever the bound: no direction leads out of a mean. */
static void equal_keys_are_inside(void **state)
{
    (void)state;
    sp_prompt *prompt = create((sp_prompt_options){.method = SP_METHOD_PREFIX, .init = SP_INIT_RANDOM});
    float *rows = sp_prompt_keys_values(prompt), gradient[P * WIDTH];
    double penalty;
    for (size_t j = 1; j < P; j++) memcpy(rows + j * WIDTH, rows, WIDTH * sizeof *rows);
    assert_int_equal(sp_key_penalty(&penalty, gradient, model, prompt, NORMS, 1e-3), SP_OK);
    assert_true(penalty == 0 && norm(gradient, P * WIDTH) == 0);
    sp_prompt_free(prompt);
}

static void what_cannot_be_is_said(void **state)
{
    (void)state;
    sp_prompt *prompt = create((sp_prompt_options){.method = SP_METHOD_PROMPT});
    static const double limits[] = {0, -1, NAN, INFINITY};
    double penalty;
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        assert_int_equal(sp_key_penalty(&penalty, NULL, model, prompt, NORMS, limits[i]), SP_ERR_ARGUMENT);
        assert_non_null(strstr(sp_message(), "give a number above 0"));
    }
    sp_prompt_free(prompt);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_its_definition),    cmocka_unit_test(is_of_the_keys_computed), cmocka_unit_test(gradients_are_right),
        cmocka_unit_test(inside_costs_nothing), cmocka_unit_test(equal_keys_are_inside),   cmocka_unit_test(what_cannot_be_is_said),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
