/* test_capacity.c: the counts of the capacity lab are those of the machines that are built, and the counting bounds hold, and are
 * attained, where all prompts can be tried. tests/oracle/capacity.py holds the formulas against mpmath. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lab/universal.h"

#define ARRAY_LEN(array) (sizeof(array) / sizeof *(array))

static sp_capacity_bound_report bound_of(sp_capacity_bound_options options)
{
    sp_capacity_bound_report report;
    assert_int_equal(sp_lab_capacity_bound(&report, &options), SP_OK);
    return report;
}

/* ---- what constructions take ---- */

static size_t tokens_built(sp_construction construction, const sp_universal_shape *shape, sp_status *status)
{
    sp_universal u = {0};
    if (construction == SP_LOOKUP) *status = sp_universal_lookup(&u, shape);
    if (construction == SP_UNIFORM) *status = sp_universal_uniform(&u, shape);
    if (construction == SP_DIGITS) *status = sp_universal_digits(&u, shape);
    if (construction == SP_INDEX) *status = sp_universal_index(&u, shape, sp_target_functions, sp_n_target_functions);
    size_t n = u.num_virtual_tokens;
    sp_universal_clear(&u);
    return n;
}

/* The machines of the grids that the calculator chooses have the tokens it says, and f64 carries digits and index where the bits it
 * says are at most 53. */
static void test_constructions_are_counted_as_built(void **state)
{
    (void)state;
    static const struct {
        size_t d, len;
        double epsilon;
    } cases[] = {{1, 1, 0.3}, {1, 1, 0.1}, {1, 1, 0.02}, {1, 2, 0.2}, {1, 2, 0.1}, {2, 1, 0.1}, {2, 2, 0.3}, {1, 3, 0.15}};
    size_t n_carried = 0, n_refused = 0;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const sp_capacity_bound_report r =
            bound_of((sp_capacity_bound_options){.d = cases[i].d, .len = cases[i].len, .epsilon = cases[i].epsilon});
        for (int row = SP_CAPACITY_TAKES_LOOKUP; row <= SP_CAPACITY_TAKES_INDEX; row++) {
            static const sp_construction of_row[] = {SP_LOOKUP, SP_UNIFORM, SP_DIGITS, SP_INDEX};
            sp_construction construction = of_row[row - SP_CAPACITY_TAKES_LOOKUP];
            sp_universal_shape shape = {cases[i].d, cases[i].len, r.rows[row].grid, 1.0 / 16, false};
            sp_status st = SP_OK;
            size_t n = tokens_built(construction, &shape, &st);
            if (isnan(r.rows[row].log2_bits) || exp2(r.rows[row].log2_bits) <= 53) {
                assert_int_equal(st, SP_OK);
                assert_true(r.rows[row].num_virtual_tokens == (double)n);
                n_carried++;
            } else {
                assert_int_equal(st, SP_ERR_UNSUPPORTED);
                n_refused++;
            }
        }
    }
    assert_true(n_carried > 0 && n_refused > 0);
}

/* The grid is the coarsest that does: half of it would not. */
static void test_grid_is_the_coarsest(void **state)
{
    (void)state;
    for (double epsilon = 0.4; epsilon > 1e-6; epsilon *= 0.71) {
        size_t g = bound_of((sp_capacity_bound_options){.epsilon = epsilon, .lipschitz = 1.7}).rows[SP_CAPACITY_TAKES_LOOKUP].grid;
        assert_true(1.7 * (1 + 1.0 / 16) / 2 / (double)g <= epsilon);
        assert_true(g == 2 || 1.7 * (1 + 1.0 / 16) / (double)g > epsilon);
    }
}

/* ---- what no machine passes ---- */

/* Every prompt of so many bits in turn: how many different answers does the machine give at the centres of its cells, each read as
 * 0 or 1? Never more than prompts; the look-up reaches it, so the count behind the bound is attained. */
static void test_count_is_attained(void **state)
{
    (void)state;
    static const struct {
        size_t d, len, grid;
    } cases[] = {{1, 1, 2}, {1, 1, 8}, {2, 1, 2}, {1, 2, 2}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const sp_universal_shape shape = {cases[i].d, cases[i].len, cases[i].grid, 1.0 / 16, false};
        sp_universal u = {0};
        assert_int_equal(sp_universal_lookup(&u, &shape), SP_OK);
        size_t n_cells = sp_power(shape.grid, shape.d * shape.len), n_answers = n_cells * shape.len * shape.d;
        size_t n_numbers = u.num_virtual_tokens * shape.d, n_different = 0;
        double prompt[8], x[64], y[64];
        bool seen[1 << 8] = {false};
        assert_in_range(n_numbers, 1, 8);
        assert_in_range(n_answers, 1, 8);
        for (size_t c = 0; c < n_cells; c++) sp_cell_centre(x + c * shape.d * shape.len, &shape, c);
        for (size_t bits = 0; bits < (size_t)1 << n_numbers; bits++) {
            size_t answer = 0;
            for (size_t k = 0; k < n_numbers; k++) prompt[k] = (double)(bits >> k & 1);
            assert_int_equal(sp_net_forward(y, NULL, u.net, prompt, x, n_cells, false), SP_OK);
            for (size_t k = 0; k < n_answers; k++) answer |= (size_t)(y[k] > 0.5) << k;
            n_different += !seen[answer];
            seen[answer] = true;
        }
        assert_int_equal(n_different, (size_t)1 << n_numbers);
        const sp_capacity_bound_report r = bound_of(
            (sp_capacity_bound_options){.d = shape.d, .len = shape.len, .n_sequences = n_cells, .epsilon = 0.49, .precision = 1});
        assert_true(r.rows[SP_CAPACITY_COUNT_PAIRS].num_virtual_tokens == (double)u.num_virtual_tokens);
        sp_universal_clear(&u);
    }
}

/* No construction passes a bound: for every function, in tokens of numbers of as many bits as the construction asks for. */
static void test_nothing_passes_the_bound(void **state)
{
    (void)state;
    for (size_t d = 1; d <= 3; d++)
        for (size_t len = 1; len <= 3; len++)
            for (double alpha = 0; alpha <= 2; alpha++) /* 0: the sup norm */
                for (double epsilon = 0.45; epsilon > 1e-4; epsilon *= 0.7) {
                    sp_capacity_bound_options o = {.d = d, .len = len, .alpha = alpha, .epsilon = epsilon, .precision = 1};
                    const sp_capacity_bound_report r = bound_of(o);
                    const sp_capacity_row *bound = &r.rows[SP_CAPACITY_COUNT_FUNCTIONS],
                                          *digits = &r.rows[SP_CAPACITY_TAKES_DIGITS];
                    assert_true(r.rows[SP_CAPACITY_TAKES_LOOKUP].num_virtual_tokens >= bound->num_virtual_tokens);
                    assert_true(r.rows[SP_CAPACITY_TAKES_UNIFORM].num_virtual_tokens >= bound->num_virtual_tokens);
                    assert_true(digits->log2_bits + log2((double)d) >= bound->log2_bits);
                }
}

static void assert_refused(const char *message, sp_capacity_bound_options options)
{
    sp_capacity_bound_report report;
    assert_int_equal(sp_lab_capacity_bound(&report, &options), SP_ERR_ARGUMENT);
    if (!strstr(sp_message(), message)) fail_msg("\"%s\" is not in: %s", message, sp_message());
}

static void test_refusals(void **state)
{
    (void)state;
    assert_refused("between 0 and 0.5", (sp_capacity_bound_options){.epsilon = 0.5});
    assert_refused("between 0 and 0.5", (sp_capacity_bound_options){.epsilon = NAN});
    assert_refused("norm of at least 1", (sp_capacity_bound_options){.alpha = 0.5});
    assert_refused("slopes above 0", (sp_capacity_bound_options){.lipschitz = -1});
    assert_refused("at least 1 bit", (sp_capacity_bound_options){.precision = 0.5});
    assert_refused("at most", (sp_capacity_bound_options){.d = (size_t)1 << 40});
    assert_refused("beyond 2^62", (sp_capacity_bound_options){.lipschitz = 1e12, .epsilon = 1e-9});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_constructions_are_counted_as_built),
        cmocka_unit_test(test_grid_is_the_coarsest),
        cmocka_unit_test(test_count_is_attained),
        cmocka_unit_test(test_nothing_passes_the_bound),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
