/* test_universality.c: the constructions: codes, nets, prompts read back, what is refused. tests/oracle/universality.py holds the
 * figures against PyTorch and mpmath. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "lab/universal.h"

#define ARRAY_LEN(array) (sizeof(array) / sizeof *(array))

typedef sp_status builder(sp_universal *out, const sp_universal_shape *shape);

/* From each value to the next exactly one bit changes. */
static void test_gray_code(void **state)
{
    (void)state;
    for (size_t m = 1; m <= 10; m++)
        for (size_t v = 0; v + 1 < (size_t)1 << m; v++) {
            int changes = 0;
            for (size_t i = 0; i < m; i++) changes += sp_gray_bit(v, m, i) != sp_gray_bit(v + 1, m, i);
            assert_int_equal(changes, 1);
        }
}

static void centres(double *x, const sp_universal_shape *shape, size_t n_cells)
{
    for (size_t c = 0; c < n_cells; c++) sp_cell_centre(x + c * shape->d * shape->len, shape, c);
}

/* Whatever stands in the prompt is what the net says at the middle of each cell: a table of random 0 and 1, and a constant. */
static void read_back(builder *build, const sp_universal_shape *shape)
{
    sp_universal u = {0};
    assert_int_equal(build(&u, shape), SP_OK);
    size_t d = shape->d, len = shape->len, n_cells = sp_power(shape->grid, d * len), n = n_cells * len * d;
    double *prompt = malloc(n * sizeof *prompt), *x = malloc(n * sizeof *x), *y = malloc(n * sizeof *y);
    sp_rng rng = sp_rng_seed(1, 2);
    assert_int_equal(u.num_virtual_tokens, n_cells * len);
    centres(x, shape, n_cells);
    for (int constant = 0; constant < 2; constant++) {
        for (size_t i = 0; i < n; i++) prompt[i] = constant ? 0.37 : (double)sp_rng_below(&rng, 2);
        assert_int_equal(sp_net_forward(y, NULL, u.net, prompt, x, n_cells, false), SP_OK);
        for (size_t c = 0; c < n_cells; c++)
            for (size_t l = 0; l < len; l++)
                for (size_t r = 0; r < d; r++) {
                    double want = prompt[(l * n_cells + c) * d + r], got = y[(c * len + l) * d + r];
                    assert_true(fabs(got - want) <= 1e-15 + u.leakage);
                }
    }
    free(prompt);
    free(x);
    free(y);
    sp_universal_clear(&u);
}

static void test_tables_are_read_back(void **state)
{
    (void)state;
    static const struct {
        size_t d, len, grid;
    } cases[] = {{1, 1, 2}, {1, 1, 64}, {2, 1, 8}, {1, 2, 8}, {1, 3, 4}, {2, 2, 4}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        for (int deep = 0; deep < 2; deep++) {
            const sp_universal_shape shape = {cases[i].d, cases[i].len, cases[i].grid, 1.0 / 16, deep};
            read_back(sp_universal_lookup, &shape);
            if (cases[i].d * cases[i].len * cases[i].grid <= 16) read_back(sp_universal_uniform, &shape);
        }
}

/* Every digit of the one number comes out again: a table of random levels, as long as f64 is said to carry. */
static void test_digits_are_read_back(void **state)
{
    (void)state;
    static const struct {
        size_t d, len, grid;
    } cases[] = {{1, 1, 2}, {1, 1, 4}, {1, 1, 8}, {2, 1, 2}, {1, 2, 2}, {1, 3, 2}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        for (uint64_t seed = 0; seed < 20; seed++) {
            const sp_universal_shape shape = {cases[i].d, cases[i].len, cases[i].grid, 0.5, seed % 2};
            sp_universal u = {0};
            sp_status st = sp_universal_digits(&u, &shape);
            if (st == SP_ERR_UNSUPPORTED) continue; /* (1, 3) has 24 values of 4 levels: 58 bits */
            assert_int_equal(st, SP_OK);
            size_t d = shape.d, len = shape.len, n_cells = sp_power(shape.grid, d * len), n = n_cells * len;
            double b = (double)u.n_levels, prompt[2] = {0}, x[64], y[64], digits[64];
            sp_rng rng = sp_rng_seed(seed, 3);
            assert_in_range(n * d, 1, 64);
            for (size_t k = 0; k < n * d; k++) digits[k] = (double)sp_rng_below(&rng, u.n_levels);
            for (size_t r = 0; r < d; r++)
                for (size_t k = n; k-- > 0;) prompt[r] = prompt[r] / (b + 1) + digits[k * d + r];
            centres(x, &shape, n_cells);
            assert_int_equal(sp_net_forward(y, NULL, u.net, prompt, x, n_cells, false), SP_OK);
            for (size_t c = 0; c < n_cells; c++)
                for (size_t l = 0; l < len; l++)
                    for (size_t r = 0; r < d; r++)
                        assert_true(fabs(y[(c * len + l) * d + r] - (digits[(l * n_cells + c) * d + r] + 0.5) / b) <= u.leakage);
            sp_universal_clear(&u);
        }
}

static void draw(double *x, size_t n, uint64_t seed)
{
    sp_rng rng = sp_rng_seed(seed, 4);
    for (size_t i = 0; i < n; i++) x[i] = sp_rng_uniform(&rng);
}

/* Deep or wide, with the prompt's tokens computed once or for every input: the same function, on the ramps too. */
static void test_variants_agree(void **state)
{
    (void)state;
    enum { N = 400 };
    static const struct {
        builder *build;
        size_t d, len, grid;
        double ramp;
    } cases[] = {{sp_universal_lookup, 1, 1, 16, 0.5}, {sp_universal_lookup, 2, 1, 8, 0.0613},
                 {sp_universal_lookup, 1, 2, 8, 1},    {sp_universal_lookup, 2, 2, 4, 1.0 / 16},
                 {sp_universal_uniform, 1, 2, 4, 0.5}, {sp_universal_uniform, 2, 1, 4, 1},
                 {sp_universal_digits, 1, 2, 2, 0.5}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        sp_universal_shape shape = {cases[i].d, cases[i].len, cases[i].grid, cases[i].ramp, false};
        size_t n = N * shape.d * shape.len;
        double *x = malloc(n * sizeof *x), *y[3], *prompt = NULL;
        draw(x, n, i);
        for (int v = 0; v < 3; v++) {
            sp_universal u = {0};
            shape.is_deep = v == 1;
            assert_int_equal(cases[i].build(&u, &shape), SP_OK);
            assert_true(sp_net_prompt_is_shared(u.net));
            if (!prompt) {
                prompt = malloc(u.num_virtual_tokens * shape.d * sizeof *prompt);
                if (u.n_levels)
                    assert_int_equal(sp_universal_digits_prompt(prompt, &u, sp_target_function_find("sine")), SP_OK);
                else
                    assert_int_equal(sp_universal_table_prompt(prompt, &u, sp_target_function_find("sine")), SP_OK);
            }
            y[v] = malloc(n * sizeof *y[v]);
            assert_int_equal(sp_net_forward(y[v], NULL, u.net, prompt, x, v == 2 ? N / 4 : N, v == 2), SP_OK);
            sp_universal_clear(&u);
        }
        for (size_t k = 0; k < n; k++) assert_true(fabs(y[0][k] - y[1][k]) <= 1e-12);
        for (size_t k = 0; k < n / 4; k++) assert_true(fabs(y[0][k] - y[2][k]) <= 1e-12);
        for (int v = 0; v < 3; v++) free(y[v]);
        free(prompt);
        free(x);
    }
}

/* A layer that reads, of prompt tokens, what attention wrote there makes them depend on the input. */
static void test_prompt_that_is_not_shared(void **state)
{
    (void)state;
    sp_net *net = sp_net_create(1, 1, 2);
    sp_span x = sp_net_channels(net, 1), y = sp_net_channels(net, 1);
    sp_net_set_embedding(net, x.first, 0, 1);
    sp_net_set_output(net, y);
    for (int layer = 0; layer < 2; layer++) {
        sp_net_begin_attention(net, 0, 1);
        sp_net_set(net, SP_NET_V, 0, layer ? y.first : x.first, 1);
        sp_net_set(net, SP_NET_O, y.first, 0, 1);
    }
    assert_int_equal(sp_net_status(net), SP_OK);
    assert_false(sp_net_prompt_is_shared(net));
    double out, prompt[] = {1, 2}, input = 3; /* the mean, 2; then the mean of 2, 2, 2 is added */
    assert_int_equal(sp_net_forward(&out, NULL, net, prompt, &input, 1, false), SP_OK);
    assert_true(fabs(out - 4) < 1e-15);
    sp_net_free(net);
}

/* ---- the public call ---- */

static sp_universality_report run(const sp_universality_options *options)
{
    sp_universality_report report;
    assert_int_equal(sp_lab_universality(&report, options, NULL), SP_OK);
    return report;
}

/* The weights know nothing of the function: but for INDEX, whose family is built in, and even that is the same for all of it. */
static void test_weights_are_frozen(void **state)
{
    (void)state;
    for (int c = SP_LOOKUP; c <= SP_DIGITS; c++) {
        char first[65] = "";
        for (size_t i = 0; i < sp_n_target_functions; i++) {
            sp_universality_options o = {
                .construction = (sp_construction)c, .len = 2, .grid = 2, .only_grid = true, .n_samples = 200};
            o.function = sp_target_functions[i].name;
            sp_universality_report report = run(&o);
            if (i == 0) memcpy(first, report.weights_sha256, sizeof first);
            assert_string_equal(report.weights_sha256, first);
            assert_true(report.at.sup <= report.at.bound);
        }
    }
}

static void assert_refused(sp_status status, const char *message, const sp_universality_options *options)
{
    sp_universality_report report;
    assert_int_equal(sp_lab_universality(&report, options, NULL), status);
    if (!strstr(sp_message(), message)) fail_msg("\"%s\" is not in: %s", message, sp_message());
}

static void test_refusals(void **state)
{
    (void)state;
    assert_refused(SP_ERR_ARGUMENT, "no power of two", &(sp_universality_options){.grid = 12});
    assert_refused(SP_ERR_ARGUMENT, "a grid of 64 does", &(sp_universality_options){.grid = 16, .epsilon = 0.01});
    assert_refused(SP_ERR_ARGUMENT, "is no function here", &(sp_universality_options){.function = "cosine"});
    assert_refused(SP_ERR_ARGUMENT, "give one of them", &(sp_universality_options){.function = "sine", .expression = "x1"});
    assert_refused(SP_ERR_ARGUMENT, "the expression", &(sp_universality_options){.expression = "x1 +"});
    assert_refused(SP_ERR_ARGUMENT, "the expression", &(sp_universality_options){.expression = "x2"});
    assert_refused(SP_ERR_UNSUPPORTED, "decimal digits", &(sp_universality_options){.construction = SP_DIGITS, .grid = 64});
    assert_refused(SP_ERR_UNSUPPORTED, "decimal digits",
                   &(sp_universality_options){.construction = SP_INDEX, .d = 4, .len = 4, .grid = 16});
    assert_refused(SP_ERR_MEMORY, "smaller grid", &(sp_universality_options){.d = 2, .len = 2, .grid = 1024});
    assert_refused(SP_ERR_MEMORY, "smaller grid",
                   &(sp_universality_options){.construction = SP_UNIFORM, .d = 2, .len = 2, .grid = 64});
    assert_refused(SP_ERR_IO, "no-such-file", &(sp_universality_options){.table_path = "/no-such-file.csv"});
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void test_tables_of_users(void **state)
{
    (void)state;
    char path[] = "/tmp/softprompt-table-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    sp_universality_options o = {.table_path = path, .grid = 32, .only_grid = true, .n_samples = 500};
    write_text(path, "0,0.25\n0.5,1\n1,0.25\n");
    sp_universality_report report = run(&o);
    assert_true(report.lipschitz == 1.5 && report.at.sup <= report.at.bound);
    static const struct {
        const char *text, *message;
    } bad[] = {{"0,0.5,1\n", ":1: 3 columns"}, {"0,1\n0,0.5\n", "no function"}, {"0,2\n", "no number in [0, 1]"},
               {"0,nan\n", "no number"},       {"x,y\n", "no number"},          {"", "no row"}};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        write_text(path, bad[i].text);
        assert_refused(SP_ERR_FORMAT, bad[i].message, &o);
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gray_code),
        cmocka_unit_test(test_tables_are_read_back),
        cmocka_unit_test(test_digits_are_read_back),
        cmocka_unit_test(test_variants_agree),
        cmocka_unit_test(test_prompt_that_is_not_shared),
        cmocka_unit_test(test_weights_are_frozen),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_tables_of_users),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
