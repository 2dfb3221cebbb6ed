/* test_cram.c: texts crammed into vectors of a tiny model. What is reported is held against the adapters that were written and
 * against losses that the plain interface gives; tests/oracle/cram.py has torch and PEFT do the same with a real model. */
#define _GNU_SOURCE /* mkstemps */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "files.h"
#include "lab/cram.h"
#include "model/model.h"
#include "softprompt.h"
#include "tiny_model.h"

static sp_model *model;
static char *work; /* a directory */

static int open_model(void **state)
{
    (void)state;
    char path[] = "/tmp/sp-cram-XXXXXX";
    int file = mkstemp(path);
    if (file < 0 || close(file) || !tiny_model_write(path)) return -1;
    sp_status st = sp_model_load(&model, path, &(sp_model_options){.n_threads = 2});
    unlink(path);
    work = make_directory();
    return st ? -1 : 0;
}

static int close_model(void **state)
{
    (void)state;
    sp_model_free(model);
    remove_directory(work);
    return 0;
}

static void remove_files(const char *dir, const char *names)
{
    char command[4096];
    snprintf(command, sizeof command, "rm -r '%s'/%s", dir, names);
    assert_int_equal(system(command), 0);
}

/* The token of the largest logit. */
static int32_t best_of(const float *logits)
{
    int32_t best = 0;
    for (int32_t i = 1; i < TINY_VOCAB; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* How many of the tokens the adapter predicts, each behind those before it. */
static size_t count_predicted(const sp_cram_sample *s, const char *dir)
{
    sp_prompt *prompt;
    sp_session *session;
    sp_generation first;
    float logits[TINY_VOCAB];
    assert_int_equal(sp_prompt_load(&prompt, dir), SP_OK);
    assert_int_equal(sp_session_create(&session, model, prompt), SP_OK);
    assert_int_equal(sp_generate(&first, session, NULL, 0, &(sp_sampling){.max_new_tokens = 1}, NULL, NULL), SP_OK);
    sp_session_rewind(session, 0);
    size_t n = 0;
    for (int32_t next = first.tokens[0]; n < s->n_text && next == s->tokens[n]; n++) {
        assert_int_equal(sp_session_append(session, &s->tokens[n], 1, logits), SP_OK);
        next = best_of(logits);
    }
    sp_generation_clear(&first);
    sp_session_free(session);
    sp_prompt_free(prompt);
    return n;
}

/* Bits behind BOS, by the loss. */
static double bits_of(const sp_cram_sample *s)
{
    int32_t tokens[TINY_CONTEXT] = {sp_tokenizer_bos(sp_model_tokenizer(model))};
    double loss;
    if (s->n_tokens == 0) return 0;
    memcpy(tokens + 1, s->tokens, s->n_tokens * sizeof *tokens);
    const sp_example example = {tokens, s->n_tokens + 1, s->n_tokens, 0};
    assert_int_equal(sp_loss(&loss, NULL, model, NULL, &example, 1), SP_OK);
    return loss * (double)s->n_tokens / log(2);
}

static void what_is_reported_is_what_the_adapters_say(void **state)
{
    (void)state;
    const sp_cram_options options = {
        .kind = SP_CRAM_RANDOM, .num_virtual_tokens = 2, .n_samples = 3, .steps = 150, .export_dir = work};
    sp_cram_report report;
    double tokens = 0, bits = 0;
    assert_int_equal(sp_lab_cram(&report, model, NULL, &options, NULL), SP_OK);
    assert_int_equal(report.n_samples, 3);
    for (size_t i = 0; i < report.n_samples; i++) {
        const sp_cram_sample *s = &report.samples[i];
        char *dir;
        assert_true(asprintf(&dir, "%s/sample-%zu", work, i + 1) > 0);
        assert_int_equal(count_predicted(s, dir), s->n_tokens);
        assert_true(fabs(s->bits - bits_of(s)) < 1e-4 * s->bits + 1e-9);
        assert_int_equal(s->n_text, TINY_CONTEXT - 3); /* BOS and two vectors */
        tokens += (double)s->n_tokens / 3;
        bits += s->bits / 3;
        remove_directory(dir);
    }
    remove_files(work, "checkpoints");
    assert_true(tokens > 0.5); /* by chance: one in 261 */
    assert_true(fabs(report.mean_tokens - tokens) < 1e-9 && fabs(report.mean_bits - bits) < 1e-6);
    assert_true(fabs(report.bits_per_vector - bits / 2) < 1e-6);
    sp_cram_report_clear(&report);
}

/* Steps in bf16; what they reach counts when f32 says it, and is said by the adapters in f32. */
static void what_bf16_finds_counts_in_f32(void **state)
{
    (void)state;
    const sp_cram_options options = {
        .kind = SP_CRAM_RANDOM, .num_virtual_tokens = 2, .n_samples = 3, .steps = 150, .export_dir = work};
    sp_cram_report report;
    sp_model_set_compute(model, SP_COMPUTE_BF16);
    assert_int_equal(sp_lab_cram(&report, model, NULL, &options, NULL), SP_OK);
    assert_int_equal(sp_model_compute(model), SP_COMPUTE_BF16);
    sp_model_set_compute(model, SP_COMPUTE_F32);
    for (size_t i = 0; i < report.n_samples; i++) {
        char *dir;
        assert_true(asprintf(&dir, "%s/sample-%zu", work, i + 1) > 0);
        assert_int_equal(count_predicted(&report.samples[i], dir), report.samples[i].n_tokens);
        remove_directory(dir);
    }
    remove_files(work, "checkpoints");
    assert_true(report.mean_tokens > 0.5);
    sp_cram_report_clear(&report);
}

static void the_same_call_finds_the_same(void **state)
{
    (void)state;
    const sp_cram_options options = {.kind = SP_CRAM_RANDOM, .n_samples = 2, .steps = 60, .seed = 5};
    sp_cram_report a, b, longer;
    assert_int_equal(sp_lab_cram(&a, model, NULL, &options, NULL), SP_OK);
    assert_int_equal(sp_lab_cram(&b, model, NULL, &options, NULL), SP_OK);
    sp_cram_options more = options;
    more.steps = 180;
    assert_int_equal(sp_lab_cram(&longer, model, NULL, &more, NULL), SP_OK);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(a.samples[i].n_tokens, b.samples[i].n_tokens);
        assert_memory_equal(a.samples[i].tokens, b.samples[i].tokens, a.samples[i].n_text * sizeof(int32_t));
        assert_true(longer.samples[i].n_tokens >= a.samples[i].n_tokens);
    }
    sp_cram_report_clear(&a);
    sp_cram_report_clear(&b);
    sp_cram_report_clear(&longer);
}

/* At a rate that moves nothing no token is said, so vectors begin anew, from other tokens each time, after 100 steps; and the
 * search does not mistake that for progress. */
static void vectors_that_say_nothing_begin_anew(void **state)
{
    (void)state;
    const sp_cram_options options = {.kind = SP_CRAM_RANDOM, .n_samples = 2, .steps = 210, .learning_rate = 1e-9};
    sp_cram_report report;
    assert_int_equal(sp_lab_cram(&report, model, NULL, &options, NULL), SP_OK);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(report.samples[i].n_tokens, 0);
        assert_int_equal(report.samples[i].restarts, 2);
        assert_int_equal(report.samples[i].steps, 210);
    }
    sp_cram_report_clear(&report);
}

static sp_dataset *load_rows(const char *rows)
{
    sp_dataset *data;
    char path[] = "/tmp/sp-cram-XXXXXX.csv";
    int file = mkstemps(path, 4);
    assert_true(file >= 0 && write(file, rows, strlen(rows)) == (ssize_t)strlen(rows) && close(file) == 0);
    assert_int_equal(sp_dataset_load(&data, path, NULL), SP_OK);
    unlink(path);
    return data;
}

static int by_value(const void *left, const void *right)
{
    return (*(const int32_t *)left > *(const int32_t *)right) - (*(const int32_t *)left < *(const int32_t *)right);
}

/* Long texts first; words are shuffled and none is lost. */
static void texts_are_drawn(void **state)
{
    (void)state;
    sp_dataset *data = load_rows("text\nab\none two six ten\nabcdefgh\nxyz\n");
    sp_cram_text plain[2], shuffled[2], too_many[5];
    assert_int_equal(sp_cram_texts_draw(plain, 2, model, data, SP_CRAM_NATURAL, 100, 0), SP_OK);
    assert_int_equal(plain[0].row, 1);
    assert_int_equal(plain[1].row, 2);
    assert_int_equal(plain[1].n, 8);
    assert_memory_equal(plain[1].tokens, ((const int32_t[]){'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}), 8 * sizeof(int32_t));
    assert_int_equal(sp_cram_texts_draw(shuffled, 2, model, data, SP_CRAM_SHUFFLED, 100, 3), SP_OK);
    assert_int_equal(shuffled[0].n, plain[0].n);
    assert_memory_not_equal(shuffled[0].tokens, plain[0].tokens, plain[0].n * sizeof(int32_t));
    qsort(plain[0].tokens, plain[0].n, sizeof(int32_t), by_value);
    qsort(shuffled[0].tokens, shuffled[0].n, sizeof(int32_t), by_value);
    assert_memory_equal(shuffled[0].tokens, plain[0].tokens, plain[0].n * sizeof(int32_t));
    assert_int_equal(sp_cram_texts_draw(too_many, 5, model, data, SP_CRAM_NATURAL, 100, 0), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "5 texts are wanted"));
    for (size_t i = 0; i < 2; i++) {
        free(plain[i].tokens);
        free(shuffled[i].tokens);
    }
    sp_dataset_free(data);
}

/* A text that ends is said to its end, and learning stops there. */
static void a_short_text_is_crammed_whole(void **state)
{
    (void)state;
    sp_dataset *data = load_rows("text\nabc\n");
    const sp_cram_options options = {.num_virtual_tokens = 2, .n_samples = 1, .steps = 2000};
    sp_cram_report report;
    assert_int_equal(sp_lab_cram(&report, model, data, &options, NULL), SP_OK);
    assert_int_equal(report.samples[0].n_tokens, 3);
    assert_int_equal(report.samples[0].n_text, 3);
    assert_true(report.samples[0].steps < 2000);
    sp_cram_report_clear(&report);
    sp_dataset_free(data);
}

/* The run that took more steps stays; kinds and lengths do not meet; what is not there is no error. */
static void results_are_kept(void **state)
{
    (void)state;
    sp_cram_sample samples[2] = {{.steps = 30}, {.steps = 40}};
    sp_cram_report report = {
        .num_virtual_tokens = 4, .n_samples = 2, .samples = samples, .mean_tokens = 9, .mean_bits = 80, .bits_per_vector = 20};
    sp_cram_result found;
    bool is_there;
    assert_int_equal(sp_cram_result_load(&found, &is_there, work, model, SP_CRAM_NATURAL, 4), SP_OK);
    assert_false(is_there);
    assert_int_equal(sp_cram_result_keep(&report, work, model, SP_CRAM_NATURAL), SP_OK);
    samples[0].steps = 10;
    report.bits_per_vector = 25;
    assert_int_equal(sp_cram_result_keep(&report, work, model, SP_CRAM_NATURAL), SP_OK); /* fewer steps */
    assert_int_equal(sp_cram_result_keep(&report, work, model, SP_CRAM_RANDOM), SP_OK);
    assert_int_equal(sp_cram_result_load(&found, &is_there, work, model, SP_CRAM_NATURAL, 4), SP_OK);
    assert_true(is_there && found.bits_per_vector == 20 && found.mean_tokens == 9 && found.mean_bits == 80);
    assert_true(found.n_samples == 2 && found.steps == 70);
    assert_int_equal(sp_cram_result_load(&found, &is_there, work, model, SP_CRAM_RANDOM, 4), SP_OK);
    assert_true(is_there && found.bits_per_vector == 25 && found.steps == 50);
    assert_int_equal(sp_cram_result_load(&found, &is_there, work, model, SP_CRAM_NATURAL, 1), SP_OK);
    assert_false(is_there);
    samples[0].steps = 100;
    report.stopped = true;
    assert_false(found.stopped);
    assert_int_equal(sp_cram_result_keep(&report, work, model, SP_CRAM_NATURAL), SP_OK);
    assert_int_equal(sp_cram_result_load(&found, &is_there, work, model, SP_CRAM_NATURAL, 4), SP_OK);
    assert_true(found.bits_per_vector == 25 && found.steps == 140 && found.stopped);
    remove_files(work, "*.json");
}

/* Where the folder can not be made, and where the disk is full: an error, and what was kept before stays. */
static void what_cannot_be_kept_is_an_error(void **state)
{
    (void)state;
    sp_cram_sample samples[1] = {{.steps = 30}};
    sp_cram_report report = {.num_virtual_tokens = 1, .n_samples = 1, .samples = samples, .mean_bits = 7, .bits_per_vector = 7};
    const struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY}, little = {16, RLIM_INFINITY};
    sp_cram_result found;
    bool is_there;
    char *file;
    assert_int_equal(sp_cram_result_keep(&report, work, model, SP_CRAM_NATURAL), SP_OK);
    samples[0].steps = 60;
    report.bits_per_vector = 9;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &little);
    assert_int_equal(sp_cram_result_keep(&report, work, model, SP_CRAM_NATURAL), SP_ERR_IO);
    setrlimit(RLIMIT_FSIZE, &all);
    assert_non_null(strstr(sp_message(), "cannot write"));
    assert_int_equal(sp_cram_result_load(&found, &is_there, work, model, SP_CRAM_NATURAL, 1), SP_OK);
    assert_true(is_there && found.bits_per_vector == 7);
    assert_true(asprintf(&file, "%s/file", work) > 0);
    fclose(fopen(file, "w"));
    assert_int_equal(sp_cram_result_keep(&report, file, model, SP_CRAM_NATURAL), SP_ERR_IO);
    assert_non_null(strstr(sp_message(), file));
    free(file);
    remove_files(work, "*");
}

/* The disk is full when the search is over: what was found is reported as if no adapter had been wanted, and the error returned. */
static void adapters_that_cannot_be_written_lose_nothing(void **state)
{
    (void)state;
    const struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY}, little = {64, RLIM_INFINITY};
    sp_cram_options options = {.kind = SP_CRAM_RANDOM, .num_virtual_tokens = 2, .n_samples = 2, .steps = 150};
    sp_cram_report wanted, found;
    assert_int_equal(sp_lab_cram(&wanted, model, NULL, &options, NULL), SP_OK);
    assert_true(wanted.mean_tokens > 0);
    options.export_dir = work;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &little);
    const sp_status st = sp_lab_cram(&found, model, NULL, &options, NULL);
    setrlimit(RLIMIT_FSIZE, &all);
    assert_int_equal(st, SP_ERR_IO);
    assert_non_null(strstr(sp_message(), "cannot write"));
    assert_int_equal(found.n_samples, 2);
    assert_false(found.stopped);
    for (size_t i = 0; i < 2; i++) assert_int_equal(found.samples[i].n_tokens, wanted.samples[i].n_tokens);
    assert_true(found.mean_bits == wanted.mean_bits);
    sp_cram_report_clear(&wanted);
    sp_cram_report_clear(&found);
    remove_files(work, "*");
}

/* Sets *user at step 60. */
static void stop_at_60(void *user, const sp_progress *progress)
{
    if (progress->done == 60) *(volatile int *)user = 1;
}

/* A search that is stopped reports, and writes, what one of so many steps does. */
static void a_stopped_search_has_what_a_shorter_one_has(void **state)
{
    (void)state;
    volatile int stop = 0;
    const sp_hooks hooks = {.progress = stop_at_60, .user = (void *)&stop, .stop = &stop};
    sp_cram_options options = {.kind = SP_CRAM_RANDOM, .num_virtual_tokens = 2, .n_samples = 2, .steps = 60};
    sp_cram_report shorter, stopped;
    assert_int_equal(sp_lab_cram(&shorter, model, NULL, &options, NULL), SP_OK);
    assert_false(shorter.stopped);
    options.steps = 1000;
    options.export_dir = work;
    assert_int_equal(sp_lab_cram(&stopped, model, NULL, &options, &hooks), SP_ERR_STOPPED);
    assert_non_null(strstr(sp_message(), "stopped after 60 of 1000 steps"));
    assert_true(stopped.stopped && stopped.mean_tokens == shorter.mean_tokens && stopped.mean_bits == shorter.mean_bits);
    for (size_t i = 0; i < 2; i++) {
        char *dir;
        assert_int_equal(stopped.samples[i].n_tokens, shorter.samples[i].n_tokens);
        assert_int_equal(stopped.samples[i].steps, 60);
        assert_true(asprintf(&dir, "%s/sample-%zu", work, i + 1) > 0);
        assert_int_equal(count_predicted(&stopped.samples[i], dir), stopped.samples[i].n_tokens);
        remove_directory(dir);
    }
    sp_cram_report_clear(&shorter);
    sp_cram_report_clear(&stopped);
    remove_files(work, "checkpoints");
}

static void assert_same_files(const char *left, const char *right)
{
    char command[4096];
    snprintf(command, sizeof command, "cmp '%s/%s' '%s/%s'", work, left, work, right);
    assert_int_equal(system(command), 0);
}

/* Stopped at step 60 and gone on with: the bytes of a search that was not stopped. */
static void a_stopped_search_goes_on(void **state)
{
    (void)state;
    volatile int stop = 0;
    const sp_hooks hooks = {.progress = stop_at_60, .user = (void *)&stop, .stop = &stop};
    char *whole, *parts;
    assert_true(asprintf(&whole, "%s/whole", work) > 0);
    assert_true(asprintf(&parts, "%s/parts", work) > 0);
    sp_cram_options options = {.kind = SP_CRAM_RANDOM, .num_virtual_tokens = 2, .n_samples = 3, .steps = 160, .export_dir = whole};
    sp_cram_report once, again;
    assert_int_equal(sp_lab_cram(&once, model, NULL, &options, NULL), SP_OK);
    options.export_dir = parts;
    options.steps = 100;
    assert_int_equal(sp_lab_cram(&again, model, NULL, &options, &hooks), SP_ERR_STOPPED);
    sp_cram_report_clear(&again);
    options.steps = 160;
    assert_int_equal(sp_lab_cram(&again, model, NULL, &options, NULL), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "--resume"));
    options.resume = true;
    assert_int_equal(sp_lab_cram(&again, model, NULL, &options, NULL), SP_OK);
    assert_true(again.mean_tokens > 0.5);
    for (size_t i = 0; i < 3; i++) {
        char left[64], right[64];
        assert_int_equal(again.samples[i].n_tokens, once.samples[i].n_tokens);
        assert_int_equal(again.samples[i].steps, once.samples[i].steps);
        assert_int_equal(again.samples[i].restarts, once.samples[i].restarts);
        assert_true(once.samples[i].restarts > 0); /* later than step 60 */
        snprintf(left, sizeof left, "whole/sample-%zu/adapter_model.safetensors", i + 1);
        snprintf(right, sizeof right, "parts/sample-%zu/adapter_model.safetensors", i + 1);
        assert_same_files(left, right);
    }
    sp_cram_report_clear(&once);
    sp_cram_report_clear(&again);
    free(whole);
    free(parts);
}

/* What stands in the directory is another's: refused with what to do, and left as it is, until it shall be replaced. */
static void another_search_is_not_gone_on_with(void **state)
{
    (void)state;
    sp_cram_options options = {.kind = SP_CRAM_RANDOM, .num_virtual_tokens = 2, .n_samples = 3, .steps = 160, .resume = true};
    sp_cram_report report;
    assert_true(asprintf((char **)&options.export_dir, "%s/parts", work) > 0);
    options.seed = 1;
    assert_int_equal(sp_lab_cram(&report, model, NULL, &options, NULL), SP_ERR_MISMATCH);
    assert_non_null(strstr(sp_message(), "other texts"));
    options.seed = 0, options.n_samples = 2;
    assert_int_equal(sp_lab_cram(&report, model, NULL, &options, NULL), SP_ERR_MISMATCH);
    options.n_samples = 3, options.learning_rate = 0.2;
    assert_int_equal(sp_lab_cram(&report, model, NULL, &options, NULL), SP_ERR_MISMATCH);
    options.learning_rate = 0;
    assert_int_equal(sp_lab_cram(&report, model, NULL, &options, NULL), SP_OK);
    assert_int_equal(report.samples[0].steps, 160);
    sp_cram_report_clear(&report);
    options.resume = false, options.overwrite = true, options.steps = 10;
    assert_int_equal(sp_lab_cram(&report, model, NULL, &options, NULL), SP_OK);
    assert_int_equal(report.samples[0].steps, 10);
    sp_cram_report_clear(&report);
    free((char *)options.export_dir);
    remove_files(work, "*");
}

static void it_stops_and_refuses(void **state)
{
    (void)state;
    const int stop = 1;
    const sp_hooks hooks = {.stop = &stop};
    sp_cram_report report;
    sp_cram_options options = {.kind = SP_CRAM_RANDOM, .n_samples = 2, .steps = 50};
    assert_int_equal(sp_lab_cram(&report, model, NULL, &options, &hooks), SP_ERR_STOPPED);
    assert_int_equal(report.n_samples, 2);
    assert_int_equal(report.samples[0].steps, 0);
    sp_cram_report_clear(&report);
    options.num_virtual_tokens = TINY_CONTEXT;
    assert_int_equal(sp_lab_cram(&report, model, NULL, &options, NULL), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "no room for a text"));
    assert_int_equal(report.n_samples, 0);
    options = (sp_cram_options){.kind = SP_CRAM_NATURAL};
    assert_int_equal(sp_lab_cram(&report, model, NULL, &options, NULL), SP_ERR_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_reported_is_what_the_adapters_say),
        cmocka_unit_test(what_bf16_finds_counts_in_f32),
        cmocka_unit_test(the_same_call_finds_the_same),
        cmocka_unit_test(vectors_that_say_nothing_begin_anew),
        cmocka_unit_test(texts_are_drawn),
        cmocka_unit_test(a_short_text_is_crammed_whole),
        cmocka_unit_test(results_are_kept),
        cmocka_unit_test(what_cannot_be_kept_is_an_error),
        cmocka_unit_test(adapters_that_cannot_be_written_lose_nothing),
        cmocka_unit_test(a_stopped_search_has_what_a_shorter_one_has),
        cmocka_unit_test(a_stopped_search_goes_on),
        cmocka_unit_test(another_search_is_not_gone_on_with),
        cmocka_unit_test(it_stops_and_refuses),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
