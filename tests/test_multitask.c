/* test_multitask.c: prompts of several tasks from what they share and their factors, and the gradient's way back. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "prompt/multitask.h"

enum { MAX_NUMBERS = 4096 };

static const sp_multitask_shape shapes[] = {{1, 1, 1, 1}, {2, 3, 1, 5}, {3, 4, 2, 17}, {2, 1, 3, 8}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

typedef struct numbers {
    float of[MAX_NUMBERS];
    sp_multitask_parts parts;
    size_t n;
} numbers;

static void lay_out(numbers *x, const sp_multitask_shape *s)
{
    x->parts.shared = x->of;
    x->parts.cols = x->parts.shared + s->num_virtual_tokens * s->d_model;
    x->parts.rows = x->parts.cols + s->num_tasks * s->num_virtual_tokens * s->num_ranks;
    x->n = (size_t)(x->parts.rows - x->of) + s->num_tasks * s->num_ranks * s->d_model;
    assert_true(x->n <= MAX_NUMBERS);
}

static void fill(float *x, size_t n, sp_rng *rng)
{
    for (size_t i = 0; i < n; i++) x[i] = (float)sp_rng_normal(rng);
}

static size_t n_prompts(const sp_multitask_shape *s)
{
    return s->num_tasks * s->num_virtual_tokens * s->d_model;
}

/* Small whole numbers: every sum is exact. */
static void a_task_is_the_shared_prompt_times_its_product(void **state)
{
    (void)state;
    const sp_multitask_shape s = {2, 2, 2, 3};
    float shared[] = {1, 2, 3, 4, 5, 6}, cols[] = {1, 2, 3, 4, 1, 0, 0, 1}, rows[] = {1, 0, 2, 0, 1, 1, 5, 6, 7, 8, 9, 10};
    const float expected[] = {1 * 1, 2 * 2, 3 * 4, 4 * 3, 5 * 4, 6 * 10, 1 * 5, 2 * 6, 3 * 7, 4 * 8, 5 * 9, 6 * 10};
    float prompts[12];
    sp_multitask_forward(prompts, &(sp_multitask_parts){shared, cols, rows}, &s);
    assert_memory_equal(prompts, expected, sizeof expected);
}

static double weighted_sum(const float *prompts, const float *weights, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)prompts[i] * weights[i];
    return sum;
}

/* In each single weight the prompts are linear: a central difference is exact at any step, but for rounding. */
static void gradients_are_differences(void **state)
{
    (void)state;
    static numbers w, g;
    static float prompts[MAX_NUMBERS], d_prompts[MAX_NUMBERS];
    sp_rng rng = sp_rng_seed(3, 1);
    for (size_t k = 0; k < N_SHAPES; k++) {
        const sp_multitask_shape *s = &shapes[k];
        lay_out(&w, s);
        lay_out(&g, s);
        fill(w.of, w.n, &rng);
        fill(d_prompts, n_prompts(s), &rng);
        memset(g.of, 0, sizeof g.of);
        sp_multitask_backward(&g.parts, d_prompts, &w.parts, s);
        for (size_t i = 0; i < w.n; i++) {
            const float kept = w.of[i];
            double sides[2];
            for (int side = 0; side < 2; side++) {
                w.of[i] = kept + (side ? -1.F : 1.F);
                sp_multitask_forward(prompts, &w.parts, s);
                sides[side] = weighted_sum(prompts, d_prompts, n_prompts(s));
            }
            w.of[i] = kept;
            assert_true(fabs((sides[0] - sides[1]) / 2 - (double)g.of[i]) <= 1e-4);
        }
    }
}

/* It adds; and a task whose prompt nobody used gets nothing. */
static void gradients_accumulate(void **state)
{
    (void)state;
    static numbers w, once, twice;
    static float d_prompts[MAX_NUMBERS];
    const sp_multitask_shape *s = &shapes[2];
    sp_rng rng = sp_rng_seed(4, 1);
    const size_t n_task = s->num_virtual_tokens * s->d_model;
    lay_out(&w, s);
    lay_out(&once, s);
    lay_out(&twice, s);
    fill(w.of, w.n, &rng);
    fill(d_prompts, n_prompts(s), &rng);
    memset(d_prompts + n_task, 0, n_task * sizeof *d_prompts);
    memset(once.of, 0, sizeof once.of);
    memset(twice.of, 0, sizeof twice.of);
    sp_multitask_backward(&once.parts, d_prompts, &w.parts, s);
    for (int i = 0; i < 2; i++) sp_multitask_backward(&twice.parts, d_prompts, &w.parts, s);
    for (size_t i = 0; i < w.n; i++) assert_true(fabsf(twice.of[i] - 2 * once.of[i]) <= 1e-5F * (1 + fabsf(once.of[i])));
    for (size_t i = 0; i < s->num_virtual_tokens * s->num_ranks; i++)
        assert_true(fabsf(once.parts.cols[s->num_virtual_tokens * s->num_ranks + i]) <= 0);
    for (size_t i = 0; i < s->num_ranks * s->d_model; i++) assert_true(fabsf(once.parts.rows[s->num_ranks * s->d_model + i]) <= 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_task_is_the_shared_prompt_times_its_product),
        cmocka_unit_test(gradients_are_differences),
        cmocka_unit_test(gradients_accumulate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
