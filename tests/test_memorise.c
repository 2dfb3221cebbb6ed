/* test_memorise.c: a layer with random weights against finite differences, learning where the answer is known by hand, prompts that
 * are written down, and the experiment. tests/oracle/memorise.py holds layer and derivatives against PyTorch. */
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "lab/keyed.h"
#include "lab/memorise.h"
#include "lab/random_layer.h"

#define ARRAY_LEN(array) (sizeof(array) / sizeof *(array))

enum { MAX_NUMBERS = 256 };

/* ---- the layer ---- */

/* Central differences have an error of about step^2 and rounding / step; a kink between the two points would show as more, and none
 * lies there with these seeds. */
static void check_jacobian(const sp_random_layer_shape *shape, size_t n_sequences, size_t n_prompt)
{
    double x[MAX_NUMBERS], prompt[MAX_NUMBERS], jacobian[MAX_NUMBERS * 16], y[MAX_NUMBERS], low[MAX_NUMBERS], high[MAX_NUMBERS];
    const size_t n = n_sequences * shape->len * shape->d, m = n_prompt * shape->d;
    sp_rng rng = sp_rng_seed(5, 0);
    sp_random_layer layer = {0};
    sp_layer_inputs inputs = {0};
    assert_true(n <= MAX_NUMBERS && m <= MAX_NUMBERS && n * m <= ARRAY_LEN(jacobian));
    for (size_t i = 0; i < n; i++) x[i] = sp_rng_uniform(&rng);
    assert_int_equal(sp_random_layer_create(&layer, shape, 3), SP_OK);
    assert_int_equal(sp_layer_inputs_create(&inputs, &layer, x, n_sequences), SP_OK);
    for (size_t i = 0; i < m; i++) prompt[i] = layer.size * sp_rng_normal(&rng);
    double *scratch = malloc(sp_layer_scratch(&layer, n_prompt) * sizeof *scratch);
    sp_layer_answer(y, jacobian, &inputs, prompt, n_prompt, scratch);
    const double step = 1e-6 * layer.size;
    double largest = 0;
    for (size_t c = 0; c < m; c++) {
        const double kept = prompt[c];
        prompt[c] = kept + step;
        sp_layer_answer(high, NULL, &inputs, prompt, n_prompt, scratch);
        prompt[c] = kept - step;
        sp_layer_answer(low, NULL, &inputs, prompt, n_prompt, scratch);
        prompt[c] = kept;
        for (size_t i = 0; i < n; i++) {
            const double slope = (high[i] - low[i]) / (2 * step);
            assert_true(fabs(slope - jacobian[i * m + c]) <= 1e-7 * (1 + fabs(slope)));
            largest = fmax(largest, fabs(slope));
        }
    }
    assert_true(largest > 1e-3); /* of all zeros the comparison would say nothing */
    free(scratch);
    sp_layer_inputs_clear(&inputs);
    sp_random_layer_clear(&layer);
}

static void test_jacobian(void **state)
{
    (void)state;
    static const sp_random_layer_shape shapes[] = {{1, 1, 0, 8, 6}, {3, 1, 0, 16, 6}, {2, 2, 0, 32, 6},
                                                   {1, 3, 5, 8, 6}, {2, 2, 8, 32, 6}, {4, 1, 1, 1, 6}};
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        for (size_t n_prompt = 1; n_prompt <= 6; n_prompt += 5) check_jacobian(&shapes[i], 4, n_prompt);
}

/* A longer prompt's layer is the shorter one's. */
static void test_positions_go_on(void **state)
{
    (void)state;
    sp_random_layer shorter = {0}, longer = {0};
    assert_int_equal(sp_random_layer_create(&shorter, &(sp_random_layer_shape){2, 1, 3, 4, 5}, 9), SP_OK);
    assert_int_equal(sp_random_layer_create(&longer, &(sp_random_layer_shape){2, 1, 3, 4, 50}, 9), SP_OK);
    assert_memory_equal(shorter.positions, longer.positions, 5 * 3 * sizeof(double));
    assert_memory_equal(shorter.w2, longer.w2, 2 * 4 * sizeof(double));
    sp_random_layer_clear(&shorter);
    sp_random_layer_clear(&longer);
}

/* ---- learning ---- */

/* Attention that averages, OV = 1, no units: the answer is x + (sum of the prompt + x) / (tokens + 1). */
static void make_averaging(sp_random_layer *layer)
{
    assert_int_equal(sp_random_layer_create(layer, &(sp_random_layer_shape){1, 1, 0, 1, 8}, 1), SP_OK);
    layer->q[0] = layer->k[0] = layer->w2[0] = 0;
    layer->ov[0] = 1;
}

static void test_known_by_hand(void **state)
{
    (void)state;
    static const double x[] = {0.2, 0.7}, y[] = {0.9, 0.1};
    const sp_layer_fit_options options = {.epsilon = 1e-9, .steps = 100, .restarts = 2};
    sp_random_layer layer = {0};
    sp_layer_inputs one = {0}, two = {0};
    double prompt[8], error;
    size_t n_steps = 0;
    make_averaging(&layer);
    assert_int_equal(sp_layer_inputs_create(&one, &layer, x, 1), SP_OK);
    assert_int_equal(sp_layer_inputs_create(&two, &layer, x, 2), SP_OK);
    assert_int_equal(sp_layer_fit(prompt, &error, &n_steps, &one, y, 1, &options), SP_OK);
    assert_true(error <= 1e-9);
    assert_true(fabs(prompt[0] - (2 * (y[0] - x[0]) - x[0])) <= 1e-8);
    for (size_t n = 1; n <= 8; n++) { /* two answers differ by x_1 - x_0 times 1 + 1 / (n + 1), whatever the prompt */
        const double fixed = (x[1] - x[0]) * (1 + 1 / (double)(n + 1)), miss = fabs(y[1] - y[0] - fixed) / 2;
        assert_int_equal(sp_layer_fit(prompt, &error, &n_steps, &two, y, n, &options), SP_OK);
        assert_true(fabs(error - miss) <= 1e-6); /* the least squares leave both as far off */
    }
    sp_layer_inputs_clear(&one);
    sp_layer_inputs_clear(&two);
    sp_random_layer_clear(&layer);
}

/* More numbers than answers, and fewer. */
static void test_more_and_fewer_numbers(void **state)
{
    (void)state;
    const sp_layer_fit_options options = {.epsilon = 1e-3, .steps = 200, .restarts = 8};
    sp_random_layer layer = {0};
    sp_layer_inputs inputs = {0};
    sp_pairs pairs;
    double prompt[32], error;
    size_t n_steps = 0;
    assert_int_equal(sp_random_layer_create(&layer, &(sp_random_layer_shape){2, 1, 8, 32, 16}, 0), SP_OK);
    assert_int_equal(sp_pairs_draw(&pairs, 4, 2, 1, false, 0), SP_OK);
    assert_int_equal(sp_layer_inputs_create(&inputs, &layer, pairs.x, pairs.n), SP_OK);
    assert_int_equal(sp_layer_fit(prompt, &error, &n_steps, &inputs, pairs.y, 16, &options), SP_OK);
    assert_true(error <= 1e-3);
    assert_int_equal(sp_layer_fit(prompt, &error, &n_steps, &inputs, pairs.y, 1, &options), SP_OK);
    assert_true(error > 1e-3); /* two numbers for eight answers */
    sp_layer_inputs_clear(&inputs);
    sp_pairs_clear(&pairs);
    sp_random_layer_clear(&layer);
}

/* ---- prompts that are written down ---- */

static double largest_difference(const double *a, const double *b, size_t n)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(a[i] - b[i]));
    return largest;
}

/* Its own prompt answers; another data set's, of the same inputs and other answers, or of other inputs, does not. */
static void test_keyed(void **state)
{
    (void)state;
    for (size_t d = 1; d <= 3; d++)
        for (size_t len = 1; len <= 3; len++) {
            double prompt[MAX_NUMBERS], y[MAX_NUMBERS];
            sp_pairs own, other;
            sp_universal machine = {0};
            assert_int_equal(sp_pairs_draw(&own, 8, d, len, false, 1), SP_OK);
            assert_int_equal(sp_pairs_draw(&other, 8, d, len, false, 2), SP_OK);
            const size_t n_tokens = 8 * len, n = n_tokens * d;
            const size_t grid = sp_universal_separating_grid(own.x, n_tokens, d, 1.0 / 1024, 24);
            const sp_universal_shape shape = {d, len, grid, 1.0 / 1024, true};
            assert_true(grid >= 2);
            assert_int_equal(sp_universal_keyed(&machine, &shape, n_tokens), SP_OK);
            sp_universal_keyed_prompt(prompt, &shape, own.x, own.y, n_tokens);
            for (size_t i = 0; i < n; i++) assert_true(prompt[i] >= 0 && prompt[i] <= 1);
            assert_int_equal(sp_net_forward(y, NULL, machine.net, prompt, own.x, 8, false), SP_OK);
            assert_true(largest_difference(y, own.y, n) <= 1e-9);
            sp_universal_keyed_prompt(prompt, &shape, own.x, other.y, n_tokens);
            assert_int_equal(sp_net_forward(y, NULL, machine.net, prompt, own.x, 8, false), SP_OK);
            assert_true(largest_difference(y, own.y, n) > 0.3);
            sp_universal_keyed_prompt(prompt, &shape, other.x, other.y, n_tokens);
            assert_int_equal(sp_net_forward(y, NULL, machine.net, prompt, own.x, 8, false), SP_OK);
            assert_true(largest_difference(y, own.y, n) > 0.3);
            sp_universal_clear(&machine);
            sp_pairs_clear(&own);
            sp_pairs_clear(&other);
        }
}

/* The machine does not depend on how long the prompt is, but for its zeros. */
static void test_keyed_is_of_constant_size(void **state)
{
    (void)state;
    const sp_universal_shape shape = {2, 1, 64, 1.0 / 64, true};
    sp_universal few = {0}, many = {0};
    assert_int_equal(sp_universal_keyed(&few, &shape, 2), SP_OK);
    assert_int_equal(sp_universal_keyed(&many, &shape, 200), SP_OK);
    const sp_net_size a = sp_net_get_size(few.net), b = sp_net_get_size(many.net);
    assert_int_equal(a.n_attention, 1);
    assert_int_equal(a.n_channels, b.n_channels);
    assert_int_equal(a.n_weights_nonzero, b.n_weights_nonzero);
    sp_universal_clear(&few);
    sp_universal_clear(&many);
}

static void test_separating_grid(void **state)
{
    (void)state;
    static const double apart[] = {0.1, 0.35}, close[] = {0.3, 0.30001}, same[] = {0.3, 0.3}, ramp[] = {0.5};
    static const double plane[] = {0.1, 0.1, 0.1, 0.9}; /* two points that differ in one number */
    assert_int_equal(sp_universal_separating_grid(apart, 2, 1, 1.0 / 64, 20), 4);
    assert_int_equal(sp_universal_separating_grid(plane, 2, 2, 1.0 / 64, 20), 2);
    assert_int_equal(sp_universal_separating_grid(same, 2, 1, 1.0 / 64, 20), 0);
    assert_int_equal(sp_universal_separating_grid(ramp, 1, 1, 1.0 / 64, 20), 0); /* a border of every grid */
    const size_t fine = sp_universal_separating_grid(close, 2, 1, 1.0 / 64, 20);
    assert_true(fine > 1000);
    assert_true(floor(close[0] * (double)fine) != floor(close[1] * (double)fine));
}

/* ---- data ---- */

static void test_data(void **state)
{
    (void)state;
    sp_pairs few, many, shared;
    assert_int_equal(sp_pairs_draw(&few, 3, 2, 2, false, 4), SP_OK);
    assert_int_equal(sp_pairs_draw(&many, 30, 2, 2, false, 4), SP_OK);
    assert_int_equal(sp_pairs_draw(&shared, 5, 2, 2, true, 4), SP_OK);
    assert_memory_equal(few.x, many.x, 3 * 4 * sizeof(double));
    assert_memory_equal(few.y, many.y, 3 * 4 * sizeof(double));
    for (size_t i = 1; i < 5; i++) assert_memory_equal(shared.x, shared.x + i * 4, 2 * sizeof(double));
    assert_memory_not_equal(shared.x + 2, shared.x + 4 + 2, 2 * sizeof(double));
    sp_pairs_clear(&few);
    sp_pairs_clear(&many);
    sp_pairs_clear(&shared);
    double x[] = {0.25, 0.5, 0.75}, y[] = {0, 1, 0.5};
    assert_true(sp_pairs_lipschitz(&(sp_pairs){3, 1, 1, x, y}) == 4);
    assert_true(sp_pairs_lipschitz(&(sp_pairs){1, 1, 1, x, y}) == 1);
}

/* ---- the experiment ---- */

static const size_t SEQUENCES[] = {1, 3}, D[] = {1, 2}, LEN[] = {1, 2};

static sp_memorise_options small(void)
{
    return (sp_memorise_options){.sequences = SEQUENCES,
                                 .d = D,
                                 .len = LEN,
                                 .n_sequences = 2,
                                 .n_d = 2,
                                 .n_len = 2,
                                 .n_seeds = 2,
                                 .max_tokens = 8,
                                 .restarts = 2};
}

static void check_trained(const sp_memorise_trained *t, const sp_memorise_options *o)
{
    assert_true(t->num_virtual_tokens <= o->max_tokens);
    assert_true((t->num_virtual_tokens > 0) == (t->error <= o->epsilon));
    assert_true((t->num_virtual_tokens > 0) == (t->bits > 0));
    assert_true(isfinite(t->error) && t->largest > 0 && t->steps > 0);
}

static void test_experiment(void **state)
{
    (void)state;
    sp_memorise_options options = small();
    sp_memorise_report r;
    size_t n_reached = 0, n_missed = 0;
    assert_int_equal(sp_lab_memorise(&r, &options, NULL), SP_OK);
    assert_int_equal(r.n_points, 16);
    for (size_t i = 0; i < r.n_points; i++) {
        const sp_memorise_point *p = &r.points[i];
        assert_int_equal(p->d, D[i / 8]);
        assert_int_equal(p->len, LEN[i / 4 % 2]);
        assert_int_equal(p->n_sequences, SEQUENCES[i / 2 % 2]);
        assert_int_equal(p->seed, i % 2);
        for (int k = 0; k < SP_MEMORISE_N_LAYERS; k++) check_trained(&p->trained[k], &r.options);
        n_reached += p->trained[SP_MEMORISE_WIDE].num_virtual_tokens > 0;
        n_missed += p->trained[SP_MEMORISE_PLAIN].num_virtual_tokens == 0;
        const sp_memorise_constructed *table = &p->constructed[SP_MEMORISE_TABLE], *keyed = &p->constructed[SP_MEMORISE_KEYED];
        assert_true(table->error <= 1e-9 && keyed->error <= 1e-9);
        assert_true(keyed->num_virtual_tokens == (double)(p->n_sequences * p->len));
        assert_true(table->num_virtual_tokens == (double)p->len * pow((double)table->grid, (double)(p->d * p->len)));
        sp_capacity_bound_report bound;
        const sp_capacity_bound_options formula = {.d = p->d,
                                                   .len = p->len,
                                                   .lipschitz = p->lipschitz,
                                                   .epsilon = r.options.epsilon,
                                                   .precision = 64,
                                                   .n_sequences = p->n_sequences};
        assert_int_equal(sp_lab_capacity_bound(&bound, &formula), SP_OK);
        assert_true(p->log2_paper == bound.rows[SP_CAPACITY_PAPER].log2_tokens);
        assert_true(p->log2_pairs == bound.rows[SP_CAPACITY_COUNT_PAIRS].log2_tokens);
    }
    assert_true(n_reached >= 10); /* the wide layer holds three sequences mostly; */
    assert_true(n_missed >= 6);   /* the plain one hardly ever does */
    sp_memorise_report_clear(&r);
}

/* The same seed gives the same bytes, whatever the number of threads; another one does not. */
static void test_determinism(void **state)
{
    (void)state;
    sp_memorise_options options = small();
    sp_memorise_report a, b, other;
    const int n_threads = omp_get_max_threads();
    assert_int_equal(sp_lab_memorise(&a, &options, NULL), SP_OK);
    omp_set_num_threads(n_threads == 1 ? 3 : 1);
    assert_int_equal(sp_lab_memorise(&b, &options, NULL), SP_OK);
    omp_set_num_threads(n_threads);
    options.seed = 10;
    assert_int_equal(sp_lab_memorise(&other, &options, NULL), SP_OK);
    for (size_t i = 0; i < a.n_points; i++) {
        for (int k = 0; k < SP_MEMORISE_N_LAYERS; k++) {
            assert_int_equal(a.points[i].trained[k].num_virtual_tokens, b.points[i].trained[k].num_virtual_tokens);
            assert_int_equal(a.points[i].trained[k].steps, b.points[i].trained[k].steps);
            assert_memory_equal(&a.points[i].trained[k].error, &b.points[i].trained[k].error, sizeof(double));
        }
        assert_true(a.points[i].trained[0].error != other.points[i].trained[0].error);
    }
    sp_memorise_report_clear(&a);
    sp_memorise_report_clear(&b);
    sp_memorise_report_clear(&other);
}

/* Sequences that share a token, whose answers differ: no machine that looks at one token alone can tell them apart. */
static void test_shared_token(void **state)
{
    (void)state;
    static const size_t two = 2, one = 1;
    const sp_memorise_options options = {.sequences = &two,
                                         .d = &one,
                                         .len = &two,
                                         .n_sequences = 1,
                                         .n_d = 1,
                                         .n_len = 1,
                                         .n_seeds = 1,
                                         .max_tokens = 2,
                                         .restarts = 1,
                                         .is_shared = true};
    sp_memorise_report r;
    assert_int_equal(sp_lab_memorise(&r, &options, NULL), SP_OK);
    assert_int_equal(r.points[0].constructed[SP_MEMORISE_KEYED].grid, 0);
    assert_true(isnan(r.points[0].constructed[SP_MEMORISE_KEYED].error));
    assert_true(r.points[0].constructed[SP_MEMORISE_TABLE].error <= 1e-9);
    sp_memorise_report_clear(&r);
}

static void assert_refused(const char *message, sp_memorise_options options)
{
    sp_memorise_report report;
    assert_int_equal(sp_lab_memorise(&report, &options, NULL), SP_ERR_ARGUMENT);
    if (!strstr(sp_message(), message)) fail_msg("\"%s\" is not in: %s", message, sp_message());
    assert_null(report.points);
}

static void test_refusals(void **state)
{
    (void)state;
    static const size_t zero = 0, one = 1, many = 1000;
    assert_refused("sequences 0: give numbers from 1", (sp_memorise_options){.sequences = &zero, .n_sequences = 1});
    assert_refused("sequences 1000: give numbers from 1 to 256", (sp_memorise_options){.sequences = &many, .n_sequences = 1});
    assert_refused("d 1000", (sp_memorise_options){.d = &many, .n_d = 1});
    assert_refused("len 1: give numbers from 2", (sp_memorise_options){.len = &one, .n_len = 1, .is_shared = true});
    assert_refused("to 0.5", (sp_memorise_options){.epsilon = 0.5});
    assert_refused("to 0.5", (sp_memorise_options){.epsilon = NAN});
    assert_refused("at least 1", (sp_memorise_options){.precision = 0.5});
    assert_refused("at most 512", (sp_memorise_options){.max_tokens = 513});
    assert_refused("at most 1024", (sp_memorise_options){.n_hidden = 1 << 20});
    assert_refused("at most 10000", (sp_memorise_options){.n_seeds = SIZE_MAX});
}

static void count_progress(void *user, const sp_progress *progress)
{
    assert_true(progress->done <= progress->total);
    ++*(size_t *)user;
}

static void test_hooks(void **state)
{
    (void)state;
    sp_memorise_options options = small();
    sp_memorise_report r;
    size_t n_calls = 0;
    int stop = 0;
    const sp_hooks hooks = {.progress = count_progress, .user = &n_calls, .stop = &stop};
    assert_int_equal(sp_lab_memorise(&r, &options, &hooks), SP_OK);
    assert_true(n_calls > 0);
    sp_memorise_report_clear(&r);
    stop = 1;
    assert_int_equal(sp_lab_memorise(&r, &options, &hooks), SP_ERR_STOPPED);
    assert_null(r.points);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_jacobian),        cmocka_unit_test(test_positions_go_on),
        cmocka_unit_test(test_known_by_hand),   cmocka_unit_test(test_more_and_fewer_numbers),
        cmocka_unit_test(test_keyed),           cmocka_unit_test(test_keyed_is_of_constant_size),
        cmocka_unit_test(test_separating_grid), cmocka_unit_test(test_data),
        cmocka_unit_test(test_experiment),      cmocka_unit_test(test_determinism),
        cmocka_unit_test(test_shared_token),    cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_hooks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
