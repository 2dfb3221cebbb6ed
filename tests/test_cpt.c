/* test_cpt.c: what of a text in front may move, how far, and what of it counts in the loss. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "prompt/cpt.h"

enum { N = 9, D = 8 };

/* Two examples and a token of no kind between; the first answer has two tokens. */
static int32_t ids[N] = {10, 11, 12, 13, 14, 15, 16, 17, 18}, types[N] = {1, 2, 3, 4, 4, 0, 5, 6, 8};

static sp_cpt make(sp_weighted_loss kind)
{
    return (sp_cpt){.n = N,
                    .token_ids = ids,
                    .tokens_type_mask = types,
                    .opt_weighted_loss_type = kind,
                    .opt_loss_decay_factor = 0.5,
                    .opt_projection_epsilon = 0.4,
                    .opt_projection_format_epsilon = 0.2};
}

static double norm_of(const float *row)
{
    double squares = 0;
    for (size_t i = 0; i < D; i++) squares += (double)row[i] * row[i];
    return sqrt(squares);
}

/* epsilon sqrt(8 / 2048) = epsilon / 16 */
static void each_kind_has_its_radius(void **state)
{
    (void)state;
    const sp_cpt cpt = make(SP_WEIGHTED_LOSS_NONE);
    const double expected[N] = {0.0125, 0.025, 0.0125, 1e-10, 1e-10, 1e-10, 0.0125, 0.025, 1e-10};
    for (size_t t = 0; t < N; t++) assert_true(fabs(sp_cpt_radius(&cpt, t, D) / expected[t] - 1) < 1e-6);
}

static void what_is_too_long_is_shortened_once(void **state)
{
    (void)state;
    const sp_cpt cpt = make(SP_WEIGHTED_LOSS_NONE);
    float delta[N * D] = {0}, before[N * D], once[N * D];
    for (size_t i = 0; i < N * D; i++) delta[i] = (float)(i % 7) - 3;
    for (size_t i = 0; i < D; i++) delta[D + i] = 0.001F * (float)i; /* inside */
    memcpy(before, delta, sizeof before);
    sp_cpt_project(delta, &cpt, D);
    memcpy(once, delta, sizeof once);
    for (size_t t = 0; t < N; t++) {
        const double radius = sp_cpt_radius(&cpt, t, D);
        if (t == 1) continue;
        assert_true(fabs(norm_of(delta + t * D) / radius - 1) < 1e-6);
        const double scale = radius / norm_of(before + t * D); /* in the same direction */
        for (size_t i = 0; i < D; i++) assert_true(fabs(delta[t * D + i] - before[t * D + i] * scale) <= 1e-6 * radius);
    }
    assert_memory_equal(delta + D, before + D, D * sizeof *delta);
    sp_cpt_project(delta, &cpt, D);
    assert_memory_equal(delta, once, sizeof once);
}

static void nothing_may_move_within_zero(void **state)
{
    (void)state;
    sp_cpt cpt = make(SP_WEIGHTED_LOSS_NONE);
    float delta[N * D];
    cpt.opt_projection_epsilon = 0;
    for (size_t i = 0; i < N * D; i++) delta[i] = 1;
    sp_cpt_project(delta, &cpt, D);
    assert_true(norm_of(delta + D) <= 0);
    assert_true(norm_of(delta) > 0.01);
}

static void answers_do_not_move(void **state)
{
    (void)state;
    const sp_cpt cpt = make(SP_WEIGHTED_LOSS_NONE);
    const bool moves[N] = {true, true, true, false, false, false, true, true, false};
    float start[N * D], delta[N * D], rows[N * D], d_rows[N * D], d_delta[N * D];
    for (size_t i = 0; i < N * D; i++) start[i] = (float)i, delta[i] = 0.5F, d_rows[i] = (float)i + 1, d_delta[i] = 100;
    sp_cpt_forward(rows, start, delta, &cpt, D);
    sp_cpt_backward(d_delta, d_rows, &cpt, D);
    for (size_t i = 0; i < N * D; i++) {
        assert_true(fabsf(rows[i] - (float)i - 0.5F) <= 0);
        assert_true(fabsf(d_delta[i] - 100 - (moves[i / D] ? (float)i + 1 : 0)) <= 0);
    }
}

static void answers_in_front_are_predicted(void **state)
{
    (void)state;
    const struct {
        sp_weighted_loss kind;
        double first, second;
    } cases[] = {{SP_WEIGHTED_LOSS_NONE, 1, 1}, {SP_WEIGHTED_LOSS_DECAY, 0.25, 0.5}};
    for (size_t k = 0; k < 2; k++) {
        const sp_cpt cpt = make(cases[k].kind);
        const size_t rows[] = {2, 3, 7};
        sp_prompt_target targets[N];
        assert_int_equal(sp_cpt_targets(targets, &cpt), 3);
        for (size_t i = 0; i < 3; i++) {
            assert_int_equal(targets[i].row, rows[i]);
            assert_int_equal(targets[i].token, ids[rows[i] + 1]);
            assert_true(fabs(targets[i].weight - (i < 2 ? cases[k].first : cases[k].second)) < 1e-7);
        }
    }
}

/* The first token is predicted by nobody; PEFT leaves its type out when it counts how far back an answer is. */
static void an_answer_that_comes_first_counts_for_nothing(void **state)
{
    (void)state;
    int32_t few[] = {7, 8, 9}, kinds[] = {12, 4, 1};
    sp_cpt cpt = make(SP_WEIGHTED_LOSS_DECAY);
    sp_prompt_target targets[3];
    cpt.n = 3;
    cpt.token_ids = few;
    cpt.tokens_type_mask = kinds;
    assert_int_equal(sp_cpt_targets(targets, &cpt), 1);
    assert_int_equal(targets[0].row, 0);
    assert_int_equal(targets[0].token, 8);
    assert_true(fabs(targets[0].weight - 0.5) < 1e-7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_kind_has_its_radius),       cmocka_unit_test(what_is_too_long_is_shortened_once),
        cmocka_unit_test(nothing_may_move_within_zero),   cmocka_unit_test(answers_do_not_move),
        cmocka_unit_test(answers_in_front_are_predicted), cmocka_unit_test(an_answer_that_comes_first_counts_for_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
