/* test_planner.c: the curve through pilots' losses, rows that are held out, and a plan on a tiny model. */
#define _GNU_SOURCE
#include <ftw.h>
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
#include "format/dataset.h"
#include "softprompt.h"
#include "tiny_model.h"
#include "train/power_law.h"

/* ---- the curve ---- */

static void test_points_on_a_curve_give_it_back(void **state)
{
    (void)state;
    const sp_power_law laws[] = {{0.3, 1.2, 0.7, 0}, {0, 2, 1.5, 0}, {0.01, 5, 0.3, 0}, {1, 0.2, 3, 0}};
    const double x[] = {1, 2, 4, 8, 16, 32};
    for (size_t k = 0; k < sizeof laws / sizeof *laws; k++) {
        double y[6];
        for (size_t i = 0; i < 6; i++) y[i] = sp_power_law_at(&laws[k], x[i]);
        sp_power_law found = sp_power_law_fit(x, y, 6);
        for (size_t i = 0; i < 6; i++) assert_true(fabs(sp_power_law_at(&found, x[i]) / y[i] - 1) < 1e-6);
        assert_true(fabs(sp_power_law_at(&found, 128) / sp_power_law_at(&laws[k], 128) - 1) < 1e-4);
        assert_true(found.noise < 1e-6);
    }
}

static void test_a_flat_or_rising_curve_has_no_gain(void **state)
{
    (void)state;
    const double x[] = {1, 2, 4, 8, 16}, flat[] = {0.5, 0.5, 0.5, 0.5, 0.5}, rising[] = {0.4, 0.45, 0.5, 0.55, 0.6};
    sp_power_law law = sp_power_law_fit(x, flat, 5);
    assert_true(fabs(sp_power_law_at(&law, 128) - 0.5) < 1e-9 && fabs(sp_power_law_at(&law, 1) - 0.5) < 1e-9);
    law = sp_power_law_fit(x, rising, 5);
    assert_true(law.gain * (1 - pow(128, -law.rate)) < 1e-9);
    assert_true(law.noise > 0.05);
}

/* Over many draws the curve is right on average, and the noise that it reports is the noise that there was. */
static void test_noise_is_found(void **state)
{
    (void)state;
    const sp_power_law truth = {0.3, 1, 0.8, 0};
    const double noise = 0.1;
    enum { N = 10, DRAWS = 300 };
    double sum_at_4 = 0, sum_of_variances = 0;
    sp_rng rng = sp_rng_seed(1, 2);
    for (int k = 0; k < DRAWS; k++) {
        double x[N], y[N];
        for (int i = 0; i < N; i++) {
            x[i] = exp2(i / 2);
            y[i] = sp_power_law_at(&truth, x[i]) * (1 + noise * sp_rng_normal(&rng));
        }
        sp_power_law found = sp_power_law_fit(x, y, N);
        sum_at_4 += sp_power_law_at(&found, 4);
        sum_of_variances += found.noise * found.noise;
    }
    assert_true(fabs(sum_at_4 / DRAWS / sp_power_law_at(&truth, 4) - 1) < 0.02);
    assert_true(fabs(sqrt(sum_of_variances / DRAWS) / noise - 1) < 0.1);
}

/* ---- rows held out ---- */

static char directory[64], path[128];
static sp_model *model;

static const char *in_directory(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static sp_dataset *make_rows(size_t n)
{
    sp_dataset *rows;
    FILE *file = fopen(in_directory("rows.jsonl"), "w");
    assert_non_null(file);
    for (size_t i = 0; i < n; i++) fprintf(file, "{\"text\": \"%zu and one\", \"label\": \"%s\"}\n", i, i % 2 ? "odd" : "even");
    fclose(file);
    assert_int_equal(sp_dataset_load(&rows, path, NULL), SP_OK);
    return rows;
}

static sp_dataset *make_pairs(size_t n)
{
    sp_dataset *rows;
    sp_rng rng = sp_rng_seed(7, 1);
    FILE *file = fopen(in_directory("pairs.jsonl"), "w");
    assert_non_null(file);
    for (size_t i = 0; i < n; i++)
        fprintf(file, "{\"prompt\": \"%zu:\", \"completion\": \"%c\"}\n", i, (int)('a' + sp_rng_below(&rng, 8)));
    fclose(file);
    assert_int_equal(sp_dataset_load(&rows, path, NULL), SP_OK);
    return rows;
}

static void test_rows_are_held_out(void **state)
{
    (void)state;
    enum { N = 100, N_HELD_OUT = 12 };
    sp_dataset *whole = make_rows(N), *rest, *held_out, *other[2];
    assert_int_equal(sp_dataset_hold_out(&rest, &held_out, whole, N_HELD_OUT, 5), SP_OK);
    assert_int_equal(sp_dataset_n_rows(rest), N - N_HELD_OUT);
    assert_int_equal(sp_dataset_n_rows(held_out), N_HELD_OUT);
    size_t seen[N + 1] = {0}, n_same = 0;
    for (size_t i = 0; i < N - N_HELD_OUT; i++) seen[sp_dataset_row(rest, i)->line]++;
    for (size_t i = 0; i < N_HELD_OUT; i++) seen[sp_dataset_row(held_out, i)->line]++;
    for (size_t line = 1; line <= N; line++) assert_int_equal(seen[line], 1);
    for (size_t i = 1; i < N - N_HELD_OUT; i++) assert_true(sp_dataset_row(rest, i - 1)->line < sp_dataset_row(rest, i)->line);
    assert_int_equal(sp_dataset_hold_out(&other[0], &other[1], whole, N_HELD_OUT, 6), SP_OK);
    for (size_t i = 0; i < N_HELD_OUT; i++) n_same += sp_dataset_row(held_out, i)->line == sp_dataset_row(other[1], i)->line;
    assert_true(n_same < N_HELD_OUT);
    sp_dataset_free(other[0]);
    sp_dataset_free(other[1]);
    sp_dataset_free(rest);
    sp_dataset_free(held_out);
    sp_dataset_free(whole);
}

/* ---- a plan ---- */

static const sp_plan_options options = {
    .steps = 5, .n_seeds = 2, .batch_size = 4, .max_virtual_tokens = 6, .bits_per_vector = 50, .seed = 3};

static double height(const sp_plan_curve *c, size_t n)
{
    return c->floor + c->gain * pow((double)n, -c->rate);
}

static void assert_is_consistent(const sp_plan_report *r)
{
    const size_t expected[] = {1, 2, 4, 6};
    assert_int_equal(r->n_lengths, 4);
    for (size_t i = 0; i < r->n_lengths; i++) {
        const sp_plan_length *l = &r->lengths[i];
        assert_int_equal(l->num_virtual_tokens, expected[i]);
        assert_int_equal(l->n_pilots, 2);
        const sp_plan_figure *figures[] = {&l->loss, &l->accuracy};
        for (size_t k = 0; k < 2; k++) {
            const sp_plan_figure *f = figures[k];
            assert_true(f->least <= f->mean && f->mean <= f->most && f->least >= 0 && f->fitted_low <= f->fitted_high);
        }
        assert_true(fabs(l->loss.fitted - height(&r->loss_curve, expected[i])) < 1e-12);
        assert_true(fabs(l->accuracy.fitted - fmax(1 - height(&r->error_curve, expected[i]), 0)) < 1e-12);
        assert_true(l->step_seconds > 0 && l->decode_tokens_per_second > 0 && l->peak_bytes > 1 << 20);
        assert_int_equal(l->state_bytes, expected[i] * 2 * TINY_LAYERS * TINY_KV_HEADS * (TINY_D / TINY_HEADS) * 4);
    }
    assert_true(r->low <= r->num_virtual_tokens && r->num_virtual_tokens <= r->high);
}

/* The shortest prompt within a point of the longest one's accuracy, by hand. */
static void assert_is_recommended(const sp_plan_report *r)
{
    size_t i = 0;
    while (r->lengths[i].accuracy.fitted < r->lengths[r->n_lengths - 1].accuracy.fitted - 0.01) i++;
    assert_int_equal(r->num_virtual_tokens, r->lengths[i].num_virtual_tokens);
}

/* What the planner calls a pilot's loss is what sp_train finds with these options, and the answer's bits are sp_evaluate's. */
static void test_a_plan_is_made_of_trainings(void **state)
{
    (void)state;
    sp_dataset *rows = make_rows(40);
    sp_plan_report report, again;
    assert_int_equal(sp_plan(&report, model, rows, rows, in_directory("plan"), &options, NULL), SP_OK);
    assert_is_consistent(&report);
    assert_is_recommended(&report);
    for (size_t i = 0; i < report.n_lengths; i++) {
        double sum = 0, right = 0;
        for (uint64_t seed = 3; seed < 5; seed++) {
            const sp_train_options training = {.prompt = {.num_virtual_tokens = report.lengths[i].num_virtual_tokens, .seed = seed},
                                               .steps = 5,
                                               .batch_size = 4,
                                               .seed = seed,
                                               .overwrite = true};
            sp_train_report trained;
            assert_int_equal(sp_train(&trained, model, rows, rows, in_directory("alone"), &training, NULL), SP_OK);
            sum += trained.evaluation.loss;
            right += trained.evaluation.accuracy;
        }
        assert_true(fabs(report.lengths[i].accuracy.mean - right / 2) < 1e-9);
        assert_true(fabs(report.lengths[i].loss.mean - sum / 2) < 1e-9);
    }
    sp_evaluation alone;
    assert_int_equal(sp_evaluate(&alone, model, NULL, NULL, rows, NULL, NULL), SP_OK);
    assert_true(fabs(report.loss - alone.loss) < 1e-9 && report.accuracy == alone.accuracy);
    double n_tokens = 0; /* " odd" is 4 tokens of the byte-level tokenizer, " even" 5 */
    for (size_t i = 0; i < 40; i++) n_tokens += i % 2 ? 4 : 5;
    assert_true(fabs(report.answer_bits - log2(alone.perplexity) * n_tokens / 40) < 1e-9);
    assert_true(fabs(report.vectors_to_memorise - report.answer_bits * 40 / 50) < 1e-9);

    sp_plan_options resumed = options;
    resumed.resume = true;
    assert_int_equal(sp_plan(&again, model, rows, rows, in_directory("plan"), &resumed, NULL), SP_OK);
    for (size_t i = 0; i < report.n_lengths; i++) assert_true(report.lengths[i].loss.mean == again.lengths[i].loss.mean);
    assert_true(report.lengths[2].loss.fitted_low == again.lengths[2].loss.fitted_low);
    assert_int_equal(sp_plan(&again, model, rows, rows, in_directory("plan"), &options, NULL),
                     SP_ERR_ARGUMENT); /* they are there */
    sp_dataset_free(rows);
}

/* With 99 points to lose one virtual token is enough, however its loss compares; without labels the loss decides. */
static void test_right_answers_decide_where_there_are_labels(void **state)
{
    (void)state;
    sp_dataset *rows = make_rows(40), *pairs = make_pairs(32);
    const sp_plan_options strict = {
        .steps = 5, .n_seeds = 1, .batch_size = 4, .max_virtual_tokens = 16, .tolerance = 1e-6, .points = 99, .overwrite = true};
    sp_plan_report r;
    assert_int_equal(sp_plan(&r, model, rows, rows, in_directory("labels"), &strict, NULL), SP_OK);
    assert_true(r.lengths[0].loss.fitted > r.lengths[4].loss.fitted * (1 + 1e-6));
    assert_int_equal(r.num_virtual_tokens, 1);
    assert_int_equal(sp_plan(&r, model, pairs, pairs, in_directory("labels"), &strict, NULL), SP_OK);
    assert_true(isnan(r.error_curve.floor) && isnan(r.lengths[0].accuracy.mean) && isnan(r.lengths[0].accuracy.fitted));
    assert_int_equal(r.num_virtual_tokens, 16);
    sp_dataset_free(pairs);
    sp_dataset_free(rows);
}

/* ---- beyond the first pilots ---- */

enum { N_LENGTHS = 7, N_FIRST = 5 }; /* 1, 2, 4, ..., 64; up to 16 in any case */

/* The length, by its index, that the curve through the first n of the report's recommends: by hand, a pilot each. */
static size_t recommended_by(const sp_plan_report *r, size_t n, double tolerance)
{
    double x[N_LENGTHS], y[N_LENGTHS];
    for (size_t i = 0; i < n; i++) x[i] = (double)r->lengths[i].num_virtual_tokens, y[i] = r->lengths[i].loss.mean;
    sp_power_law law = sp_power_law_fit(x, y, n);
    size_t i = 0;
    while (sp_power_law_at(&law, (double)r->lengths[i].num_virtual_tokens) >
           (1 + tolerance) * sp_power_law_at(&law, (double)r->lengths[N_LENGTHS - 1].num_virtual_tokens))
        i++;
    return i;
}

/* Pairs learnt by heart, planned for with this tolerance: longer pilots follow one by one for exactly as long as the curve through
 * those before asks for a longer prompt than was tried. -> how many lengths were. */
static size_t explore_pairs(double tolerance)
{
    const sp_plan_options exploring = {
        .steps = 15, .n_seeds = 1, .batch_size = 8, .max_virtual_tokens = 64, .tolerance = tolerance, .resume = true, .seed = 4};
    sp_dataset *rows = make_pairs(32);
    sp_plan_report r;
    size_t n_tried = N_FIRST;
    assert_int_equal(sp_plan(&r, model, rows, rows, in_directory("explored"), &exploring, NULL), SP_OK);
    assert_int_equal(r.n_lengths, N_LENGTHS);
    while (recommended_by(&r, n_tried, tolerance) >= n_tried) n_tried++;
    for (size_t i = 0; i < N_LENGTHS; i++) {
        assert_int_equal(r.lengths[i].n_pilots, i < n_tried);
        assert_true(isfinite(r.lengths[i].loss.mean) == (i < n_tried) && isfinite(r.lengths[i].loss.fitted));
    }
    assert_int_equal(r.num_virtual_tokens, r.lengths[recommended_by(&r, n_tried, tolerance)].num_virtual_tokens);
    sp_dataset_free(rows);
    return n_tried;
}

static void test_longer_pilots_follow_while_the_curve_falls(void **state)
{
    (void)state;
    assert_int_equal(explore_pairs(0.9), N_FIRST);
    assert_int_equal(explore_pairs(0.13), N_FIRST + 1);
    assert_int_equal(explore_pairs(1e-6), N_LENGTHS);
}

static void test_rows_are_split_where_there_are_enough(void **state)
{
    (void)state;
    sp_dataset *rows = make_rows(80), *few = make_rows(20);
    const sp_plan_options quick = {.steps = 1, .n_seeds = 1, .max_virtual_tokens = 2};
    sp_plan_report report;
    assert_int_equal(sp_plan(&report, model, rows, NULL, in_directory("split"), &quick, NULL), SP_OK);
    assert_true(report.is_held_out);
    assert_int_equal(report.n_rows, 70);
    assert_int_equal(report.n_held_out, 10);
    assert_int_equal(sp_plan(&report, model, few, NULL, in_directory("few"), &quick, NULL), SP_OK);
    assert_false(report.is_held_out);
    assert_int_equal(report.n_rows, 20);
    assert_int_equal(report.n_held_out, 20);
    assert_true(isnan(report.vectors_to_memorise));
    sp_dataset_free(few);
    sp_dataset_free(rows);
}

static void assert_fails(const sp_plan_options *o, sp_status expected, const char *words)
{
    sp_dataset *rows = make_rows(40);
    sp_plan_report report;
    sp_status st = sp_plan(&report, model, rows, NULL, in_directory("failed"), o, NULL);
    if (st != expected || !strstr(sp_message(), words)) fail_msg("status %d: %s", st, sp_message());
    sp_dataset_free(rows);
}

static void test_bad_options(void **state)
{
    (void)state;
    assert_fails(&(sp_plan_options){.max_virtual_tokens = 1}, SP_ERR_ARGUMENT, "at most 1 virtual tokens");
    assert_fails(&(sp_plan_options){.max_virtual_tokens = 4096}, SP_ERR_ARGUMENT, "give 2 to 4095");
    assert_fails(&(sp_plan_options){.n_seeds = 17}, SP_ERR_ARGUMENT, "at most 16");
    assert_fails(&(sp_plan_options){.tolerance = 1}, SP_ERR_ARGUMENT, "tolerance 1");
    assert_fails(&(sp_plan_options){.points = 100}, SP_ERR_ARGUMENT, "100 points");
    assert_fails(&(sp_plan_options){.max_virtual_tokens = 300}, SP_ERR_ARGUMENT, "context"); /* the tiny model's is 192 */
}

static void test_it_stops(void **state)
{
    (void)state;
    sp_dataset *rows = make_rows(40);
    const volatile int stop = 1;
    const sp_hooks hooks = {.stop = &stop};
    sp_plan_report report;
    assert_int_equal(sp_plan(&report, model, rows, NULL, in_directory("stopped"), &options, &hooks), SP_ERR_STOPPED);
    sp_dataset_free(rows);
}

/* ---- */

static int remove_entry(const char *name, const struct stat *info, int kind, struct FTW *walk)
{
    (void)info, (void)kind, (void)walk;
    return remove(name);
}

static int open_model(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/sp-planner-XXXXXX");
    if (!mkdtemp(directory) || !tiny_model_write(in_directory("model.gguf"))) return -1;
    const sp_model_options two_threads = {.n_threads = 2};
    return sp_model_load(&model, path, &two_threads) ? -1 : 0;
}

static int close_model(void **state)
{
    (void)state;
    sp_model_free(model);
    return nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_points_on_a_curve_give_it_back),
        cmocka_unit_test(test_a_flat_or_rising_curve_has_no_gain),
        cmocka_unit_test(test_noise_is_found),
        cmocka_unit_test(test_rows_are_held_out),
        cmocka_unit_test(test_a_plan_is_made_of_trainings),
        cmocka_unit_test(test_right_answers_decide_where_there_are_labels),
        cmocka_unit_test(test_longer_pilots_follow_while_the_curve_falls),
        cmocka_unit_test(test_rows_are_split_where_there_are_enough),
        cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_it_stops),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
