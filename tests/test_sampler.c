/* test_sampler.c: what is drawn, against distributions written out by hand; and generation on a tiny model: streaming, stop
 * strings, limits, the same text for the same seed. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "generate/sampler.h"

enum { N_VOCAB = 6, N_DRAWS = 200000 };

/* Probabilities .4 .25 .15 .1 .06 .04 for tokens 3 1 0 5 2 4: not in the order of their ids. */
static const double probability[N_VOCAB] = {.15, .25, .06, .4, .04, .1};

static void get_logits(float *logits)
{
    for (int i = 0; i < N_VOCAB; i++) logits[i] = (float)log(probability[i]) + 7;
}

/* Draws many times; frequencies must be `expected` (which need not sum to 1) within five deviations, and zero where it is. */
static void assert_draws(const sp_sampling *options, const int32_t *text, size_t n_text, const double *expected)
{
    sp_sampler sampler;
    float logits[N_VOCAB];
    size_t counts[N_VOCAB] = {0};
    double total = 0, logprob;
    get_logits(logits);
    assert_int_equal(sp_sampler_init(&sampler, options, N_VOCAB), SP_OK);
    for (int i = 0; i < N_DRAWS; i++) {
        int32_t token = sp_sampler_next(&sampler, &logprob, logits, text, n_text);
        assert_in_range(token, 0, N_VOCAB - 1);
        assert_true(fabs(logprob - log(probability[token])) < 1e-5); /* of the unmodified distribution */
        counts[token]++;
    }
    for (int i = 0; i < N_VOCAB; i++) total += expected[i];
    for (int i = 0; i < N_VOCAB; i++) {
        double p = expected[i] / total, deviation = sqrt(p * (1 - p) * N_DRAWS);
        if (!(fabs((double)counts[i] - p * N_DRAWS) <= 5 * deviation))
            fail_msg("token %d: %zu of %d draws, probability %g", i, counts[i], N_DRAWS, p);
    }
    sp_sampler_clear(&sampler);
}

static void greedy_takes_the_largest(void **state)
{
    (void)state;
    const double expected[N_VOCAB] = {[3] = 1};
    assert_draws(&(sp_sampling){.top_p = 0.1f, .seed = 1}, NULL, 0, expected);
}

static void temperature_sharpens(void **state)
{
    (void)state;
    double half[N_VOCAB]; /* at temperature 1/2 probabilities are squared */
    for (int i = 0; i < N_VOCAB; i++) half[i] = probability[i] * probability[i];
    assert_draws(&(sp_sampling){.temperature = 1, .seed = 2}, NULL, 0, probability);
    assert_draws(&(sp_sampling){.temperature = 0.5f, .seed = 3}, NULL, 0, half);
}

static void filters_cut_the_tail(void **state)
{
    (void)state;
    const double two[N_VOCAB] = {[3] = .4, [1] = .25}, three[N_VOCAB] = {[3] = .4, [1] = .25, [0] = .15};
    const double four[N_VOCAB] = {[3] = .4, [1] = .25, [0] = .15, [5] = .1};
    assert_draws(&(sp_sampling){.temperature = 1, .top_k = 2, .seed = 4}, NULL, 0, two);
    assert_draws(&(sp_sampling){.temperature = 1, .top_k = 100, .seed = 5}, NULL, 0, probability);
    assert_draws(&(sp_sampling){.temperature = 1, .top_p = 0.66f, .seed = 6}, NULL, 0, three); /* .65 is not enough */
    assert_draws(&(sp_sampling){.temperature = 1, .top_p = 0.3f, .seed = 7}, NULL, 0, (double[N_VOCAB]){[3] = 1});
    assert_draws(&(sp_sampling){.temperature = 1, .min_p = 0.2f, .seed = 8}, NULL, 0, four); /* at least .08 */
    assert_draws(&(sp_sampling){.temperature = 1, .top_k = 4, .top_p = 0.7f, .seed = 9}, NULL, 0,
                 two); /* .65 / .9 of the four is enough */
}

/* Logits are positive here, so a penalty of 2 halves those of seen tokens, once each however often they occur. */
static void repetition_is_penalised_once(void **state)
{
    (void)state;
    const int32_t text[] = {3, 3, 3, 1};
    float logits[N_VOCAB];
    double expected[N_VOCAB];
    get_logits(logits);
    for (int i = 0; i < N_VOCAB; i++) expected[i] = exp((double)(i == 3 || i == 1 ? logits[i] / 2 : logits[i]));
    assert_draws(&(sp_sampling){.temperature = 1, .repetition_penalty = 2, .seed = 10}, text, 4, expected);
}

static void nonsense_is_refused(void **state)
{
    (void)state;
    static const sp_sampling bad[] = {{.temperature = -1}, {.temperature = NAN}, {.temperature = INFINITY},
                                      {.top_p = 1.5f},     {.min_p = -1},        {.repetition_penalty = -2}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        sp_sampler sampler;
        assert_int_equal(sp_sampler_init(&sampler, &bad[i], N_VOCAB), SP_ERR_ARGUMENT);
        assert_non_null(strstr(sp_message(), "sampling"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_largest), cmocka_unit_test(temperature_sharpens),
        cmocka_unit_test(filters_cut_the_tail),     cmocka_unit_test(repetition_is_penalised_once),
        cmocka_unit_test(nonsense_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
