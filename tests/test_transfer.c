/* test_transfer.c: prompts that start from others, on a tiny model: what the source says they say, of whatever kind they are;
 * sources that do not fit are refused by name; a run that starts from one notices when it was replaced. */
#define _GNU_SOURCE /* memfd_create, in files.h */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "files.h"
#include "softprompt.h"
#include "tiny_model.h"

enum { N_VIRTUAL = 3 };

static sp_model *model;
static char *directory;
static char sources[3][256]; /* of embeddings, with a sink, of keys and values */

static const int32_t TOKENS[] = {82, 42, 253, 31, 27, 9, 77};
static const sp_example EXAMPLE = {.tokens = TOKENS, .n_tokens = 7, .n_answer = 4};

static double loss_of(const sp_prompt *prompt)
{
    double loss;
    if (sp_loss(&loss, NULL, model, prompt, &EXAMPLE, 1)) fail_msg("%s", sp_message());
    return loss;
}

static void make_source(size_t i, const char *name, sp_prompt_options options)
{
    sp_prompt *prompt;
    snprintf(sources[i], sizeof sources[i], "%s/%s", directory, name);
    options.num_virtual_tokens = N_VIRTUAL;
    assert_int_equal(sp_prompt_create(&prompt, model, &options), SP_OK);
    for (size_t k = sp_prompt_width(prompt); k < N_VIRTUAL * sp_prompt_width(prompt); k++) /* no embedding of any token */
        sp_prompt_weights(prompt)[k] *= 1.5f;
    assert_int_equal(sp_prompt_save(prompt, sources[i]), SP_OK);
    sp_prompt_free(prompt);
}

static int open_model(void **state)
{
    (void)state;
    char path[300];
    directory = make_directory();
    snprintf(path, sizeof path, "%s/model.gguf", directory);
    const sp_model_options options = {.n_threads = 2};
    if (!tiny_model_write(path) || sp_model_load(&model, path, &options)) return -1;
    make_source(0, "embeddings", (sp_prompt_options){.seed = 3});
    make_source(1, "sink", (sp_prompt_options){.seed = 3, .sink = SP_SINK_BOS});
    make_source(2, "prefix", (sp_prompt_options){.seed = 4, .method = SP_METHOD_PREFIX});
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    char command[300];
    sp_model_free(model);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    free(directory);
    return system(command);
}

static void each_says_what_its_source_says(void **state)
{
    (void)state;
    static const struct {
        size_t source;
        sp_prompt_options options;
        size_t n_frozen;
    } cases[] = {
        {0, {.method = SP_METHOD_PROMPT}, 0},
        {1, {.method = SP_METHOD_PROMPT}, 1},
        {0, {.method = SP_METHOD_PREFIX}, 0},
        {1, {.method = SP_METHOD_CARTRIDGE, .num_frozen_tokens = 2}, 2},
        {2, {.method = SP_METHOD_CARTRIDGE}, 1},
        {2, {.method = SP_METHOD_PREFIX}, 0},
        {0, {.method = SP_METHOD_PTUNING, .encoder_hidden_size = 64}, 0},
        {0, {.method = SP_METHOD_PTUNING, .encoder_hidden_size = 64, .init = SP_INIT_RANDOM}, 0},
        {0, {.method = SP_METHOD_PREFIX, .prefix_projection = true, .encoder_hidden_size = 64}, 0},
        {0, {.method = SP_METHOD_MULTITASK, .source_init = SP_SOURCE_SHARED}, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        sp_prompt *source, *prompt, *other;
        sp_prompt_options options = cases[i].options;
        options.init_prompt = sources[cases[i].source];
        assert_int_equal(sp_prompt_load(&source, sources[cases[i].source]), SP_OK);
        if (sp_prompt_create(&prompt, model, &options)) fail_msg("case %zu: %s", i, sp_message());
        assert_int_equal(sp_prompt_num_virtual_tokens(prompt), N_VIRTUAL);
        assert_int_equal(sp_prompt_num_frozen_tokens(prompt), cases[i].n_frozen);
        double theirs = loss_of(source), ours = loss_of(prompt);
        if (!(fabs(ours - theirs) <= 1e-4 * theirs)) fail_msg("case %zu: %.7f, the source's %.7f", i, ours, theirs);
        options.init_prompt = NULL;
        options.num_virtual_tokens = N_VIRTUAL;
        assert_int_equal(sp_prompt_create(&other, model, &options), SP_OK);
        assert_true(fabs(loss_of(other) - theirs) > 1e-3 * theirs); /* and it is no matter of course */
        sp_prompt_free(other);
        sp_prompt_free(prompt);
        sp_prompt_free(source);
    }
}

static void sources_that_do_not_fit(void **state)
{
    (void)state;
    char missing[300], tasks[300];
    sp_prompt *prompt;
    snprintf(missing, sizeof missing, "%s/missing", directory);
    snprintf(tasks, sizeof tasks, "%s/tasks", directory);
    const sp_prompt_options two = {.method = SP_METHOD_MULTITASK, .num_tasks = 2, .num_virtual_tokens = N_VIRTUAL};
    assert_int_equal(sp_prompt_create(&prompt, model, &two), SP_OK);
    assert_int_equal(sp_prompt_save(prompt, tasks), SP_OK);
    sp_prompt_free(prompt);
    const struct {
        sp_prompt_options options;
        sp_status status;
        const char *words;
    } cases[] = {
        {{.init_prompt = sources[0], .num_virtual_tokens = 4}, SP_ERR_MISMATCH, "has 3 virtual tokens, and 4 are wanted"},
        {{.init_prompt = sources[2]}, SP_ERR_MISMATCH, "keys and values, from which a prompt of embeddings cannot start"},
        {{.init_prompt = sources[2], .method = SP_METHOD_PTUNING}, SP_ERR_MISMATCH, "cannot start"},
        {{.init_prompt = tasks}, SP_ERR_MISMATCH, "a prompt of 2 tasks"},
        {{.init_prompt = missing}, SP_ERR_IO, "missing"},
        {{.init_prompt = sources[0], .sink = SP_SINK_BOS}, SP_ERR_ARGUMENT, "brings its first row"},
        {{.init_prompt = sources[0], .method = SP_METHOD_CPT, .init_text = "x"}, SP_ERR_ARGUMENT, "starts from a text"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_fails(sp_prompt_create(&prompt, model, &cases[i].options), cases[i].status, cases[i].words);
        assert_null(prompt);
    }
}

static void runs(void **state)
{
    (void)state;
    char run[300];
    sp_train_report report;
    snprintf(run, sizeof run, "%s/run", directory);
    sp_train_options options = {.prompt = {.init_prompt = sources[0], .method = SP_METHOD_PREFIX},
                                .teacher_context = "warm: good\n",
                                .num_queries = 8,
                                .query_length = 4,
                                .steps = 2,
                                .resume = true};
    if (sp_train(&report, model, NULL, NULL, run, &options, NULL)) fail_msg("%s", sp_message());
    assert_int_equal(sp_train(&report, model, NULL, NULL, run, &options, NULL), SP_OK);
    assert_true(report.already_finished);
    make_source(0, "embeddings", (sp_prompt_options){.seed = 99});
    assert_fails(sp_train(&report, model, NULL, NULL, run, &options, NULL), SP_ERR_MISMATCH, "source_hash (saved");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_says_what_its_source_says), cmocka_unit_test(sources_that_do_not_fit),
        cmocka_unit_test(runs), /* last: it replaces a source */
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
