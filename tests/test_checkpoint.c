/* test_checkpoint.c: what survives in a run directory: checkpoints, their state, settings, and who may write where.
 * No model is needed: the settings compared here are made by hand. */
#include <dirent.h>
#include <fcntl.h>
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
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "train/checkpoint.h"
#include "train/run_dir.h"
#include "train/settings.h"
#include "train/state.h"

enum { N_ROWS = 3, N_COLUMNS = 5, N = N_ROWS * N_COLUMNS };

static char directory[64];

static int make_directory(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/sp-checkpoint-XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int remove_directory(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    return system(command);
}

static char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static void write_text(const char *name, const char *text)
{
    FILE *file = fopen(path_of(name), "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static bool exists(const char *name)
{
    return sp_path_exists(path_of(name));
}

static size_t n_entries(const char *name)
{
    size_t n = 0;
    DIR *listing = opendir(path_of(name));
    assert_non_null(listing);
    for (struct dirent *entry; (entry = readdir(listing));) n += entry->d_name[0] != '.';
    closedir(listing);
    return n;
}

/* A logger that counts warnings and keeps the last. */
typedef struct warnings {
    int n;
    char last[1024];
} warnings;

static void keep_warning(void *user, sp_log_level level, const char *line)
{
    warnings *w = user;
    w->n += level == SP_LOG_WARNING;
    snprintf(w->last, sizeof w->last, "%s", line);
}

static sp_status save(uint64_t step, uint64_t previous, const char *owner)
{
    float prompt[N], moment[N];
    char state[64];
    for (int i = 0; i < N; i++) prompt[i] = (float)step + (float)i, moment[i] = -prompt[i];
    const sp_named_matrix matrices[] = {{"prompt", N_ROWS, N_COLUMNS, prompt}, {"moment", 1, N, moment}};
    snprintf(state, sizeof state, "{\"step\": %d, \"quoted\": \"\\u00e9\\n\"}", (int)step);
    const sp_checkpoint checkpoint = {step, owner, state, matrices, 2};
    return sp_checkpoint_save(directory, &checkpoint, previous);
}

/* Loads, and checks that what came is what save() wrote for the step; 0: nothing came and nothing was touched. */
static uint64_t load(const char *owner, warnings *w)
{
    float prompt[N], moment[N];
    for (int i = 0; i < N; i++) prompt[i] = moment[i] = 1234;
    const sp_named_matrix matrices[] = {{"prompt", N_ROWS, N_COLUMNS, prompt}, {"moment", 1, N, moment}};
    const sp_logger logger = {keep_warning, w};
    char *state, want[64];
    uint64_t step;
    *w = (warnings){0};
    assert_int_equal(sp_checkpoint_load(&state, &step, directory, owner, matrices, 2, &logger), SP_OK);
    for (int i = 0; i < N; i++) {
        assert_true(prompt[i] == (step ? (float)step + (float)i : 1234));
        assert_true(moment[i] == (step ? -prompt[i] : 1234));
    }
    snprintf(want, sizeof want, "{\"step\": %d, \"quoted\": \"\\u00e9\\n\"}", (int)step);
    if (step)
        assert_string_equal(state, want);
    else
        assert_null(state);
    free(state);
    return step;
}

static void test_newest_is_loaded(void **state)
{
    (void)state;
    warnings w;
    assert_int_equal(load("a", &w), 0);
    assert_int_equal(save(10, 0, "a"), SP_OK);
    assert_int_equal(save(20, 10, "a"), SP_OK);
    assert_int_equal(load("a", &w), 20);
    assert_int_equal(save(123456789, 20, "a"), SP_OK);
    assert_int_equal(load("a", &w), 123456789);
    assert_int_equal(w.n, 0);
    assert_int_equal(n_entries("checkpoints"), 2);
    assert_true(exists("checkpoints/step-00000020.safetensors"));
}

static void test_other_owner_is_left(void **state)
{
    (void)state;
    warnings w;
    assert_int_equal(save(10, 0, "a"), SP_OK);
    assert_int_equal(save(20, 10, "b"), SP_OK);
    assert_int_equal(load("a", &w), 10);
    assert_int_equal(w.n, 1);
    assert_non_null(strstr(w.last, "step-00000020.safetensors: belongs to a run with other settings"));
}

/* Every truncation and every flipped byte of the newest file leads to the one before it. */
static void test_last_good_one(void **state)
{
    (void)state;
    warnings w;
    char *bytes;
    size_t n_bytes;
    const char *name = "checkpoints/step-00000020.safetensors";
    assert_int_equal(save(10, 0, "a"), SP_OK);
    assert_int_equal(save(20, 10, "a"), SP_OK);
    assert_int_equal(sp_read_file(&bytes, &n_bytes, path_of(name), 1 << 20), SP_OK);
    for (size_t cut = 0; cut < n_bytes; cut += 7) {
        const sp_bytes piece = {bytes, cut};
        assert_int_equal(sp_write_file_atomic(path_of(name), &piece, 1), SP_OK);
        assert_int_equal(load("a", &w), 10);
        assert_int_equal(w.n, 1);
        assert_non_null(strstr(w.last, name));
    }
    for (size_t flip = 0; flip < n_bytes; flip++) {
        bytes[flip] ^= 0x20;
        const sp_bytes piece = {bytes, n_bytes};
        assert_int_equal(sp_write_file_atomic(path_of(name), &piece, 1), SP_OK);
        uint64_t step = load("a", &w);
        bytes[flip] ^= 0x20;
        /* A space for a NUL of the padding, or the other case of a key in hexadecimal, harms nothing; load() has compared it all.
         */
        assert_true(step == 10 ? w.n == 1 : step == 20);
    }
    free(bytes);
    assert_int_equal(save(30, 10, "a"), SP_OK); /* 20 was never good: it goes, 10 stays */
    assert_true(exists("checkpoints/step-00000010.safetensors"));
    assert_false(exists(name));
}

static void test_none_is_good(void **state)
{
    (void)state;
    warnings w;
    assert_int_equal(save(10, 0, "a"), SP_OK);
    write_text("checkpoints/step-00000010.safetensors", "no");
    assert_int_equal(load("a", &w), 0);
    assert_int_equal(w.n, 1);
}

/* A limit on the size of files stands for a full disk: write fails in the middle, with the same way out. */
static void test_full_disk(void **state)
{
    (void)state;
    warnings w;
    const struct rlimit small = {200, RLIM_INFINITY}, large = {RLIM_INFINITY, RLIM_INFINITY};
    assert_int_equal(save(10, 0, "a"), SP_OK);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    sp_status st = save(20, 10, "a");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &large), 0);
    assert_int_equal(st, SP_ERR_IO);
    assert_non_null(strstr(sp_message(), "step-00000020.safetensors: cannot write"));
    assert_int_equal(load("a", &w), 10);
    assert_int_equal(w.n, 0);
    assert_int_equal(n_entries("checkpoints"), 1);
}

static void test_leftovers(void **state)
{
    (void)state;
    assert_int_equal(save(10, 0, "a"), SP_OK);
    write_text("checkpoints/step-00000020.safetensors.tmp.77", "half");
    write_text("checkpoints/notes.txt", "mine");
    assert_int_equal(save(20, 10, "a"), SP_OK);
    assert_false(exists("checkpoints/step-00000020.safetensors.tmp.77"));
    assert_int_equal(sp_checkpoint_remove_all(directory), SP_OK);
    assert_int_equal(n_entries("checkpoints"), 1);
    assert_true(exists("checkpoints/notes.txt"));
}

static void test_state_round_trip(void **state)
{
    (void)state;
    sp_train_state a = {.step = 120,
                        .best_step = 50,
                        .n_without_gain = 2,
                        .first_loss = 0.1 + 0.2,
                        .last_loss = 1e-300,
                        .stopped_early = true,
                        .log_bytes = 1ull << 40,
                        .event_bytes = 7};
    a.best = (sp_evaluation){.n = 9,
                             .has_accuracy = true,
                             .accuracy = 1. / 3,
                             .accuracy_ci95 = {0.1, 0.9},
                             .macro_f1 = 0.7,
                             .loss = 3.3,
                             .perplexity = INFINITY,
                             .seconds = 2.5};
    sp_train_state b;
    char *text;
    assert_int_equal(sp_train_state_print(&text, &a), SP_OK);
    assert_int_equal(sp_train_state_parse(&b, text), SP_OK);
    assert_true(a.step == b.step && a.first_loss == b.first_loss && a.last_loss == b.last_loss && b.stopped_early && !b.finished);
    assert_true(a.log_bytes == b.log_bytes && a.event_bytes == b.event_bytes && a.n_without_gain == b.n_without_gain);
    assert_true(a.best.n == b.best.n && a.best.accuracy == b.best.accuracy && a.best.accuracy_ci95[1] == b.best.accuracy_ci95[1]);
    assert_true(b.best.has_accuracy && !b.best.has_exact_match && isinf(b.best.perplexity) && a.best.loss == b.best.loss);
    free(text);
    assert_int_equal(sp_train_state_parse(&b, "[]"), SP_ERR_FORMAT);
    assert_int_equal(sp_train_state_parse(&b, "{\"step\": -1}"), SP_ERR_FORMAT);
    assert_non_null(strstr(sp_message(), "step"));
}

/* ---- the run directory ---- */

static json_t *settings(double learning_rate, int n_threads)
{
    return json_pack("{s:{s:f, s:i}, s:{s:s}, s:{s:i}}", "training", "learning_rate", learning_rate, "steps", 300, "task",
                     "template", "Review: {text}\n", "machine", "n_threads", n_threads);
}

static sp_status open_run(bool *resumed, double learning_rate, int n_threads, bool resume, bool overwrite, warnings *w)
{
    const sp_logger logger = {keep_warning, w};
    json_t *now = settings(learning_rate, n_threads);
    *w = (warnings){0};
    sp_status st = sp_run_dir_open(resumed, directory, now, resume, overwrite, &logger);
    json_decref(now);
    return st;
}

static void test_run_directory(void **state)
{
    (void)state;
    bool resumed;
    warnings w;
    assert_int_equal(open_run(&resumed, 0.02, 2, true, false, &w), SP_OK); /* resume where nothing is: begins */
    assert_false(resumed);
    assert_true(exists("settings.json"));
    assert_int_equal(open_run(&resumed, 0.02, 2, false, false, &w), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "overwrite"));
    assert_int_equal(open_run(&resumed, 0.02, 2, true, false, &w), SP_OK);
    assert_true(resumed);
    assert_int_equal(w.n, 0);
    assert_int_equal(open_run(&resumed, 0.02, 3, true, false, &w), SP_OK);
    assert_int_equal(w.n, 1);
    assert_non_null(strstr(w.last, "n_threads (saved 2, now 3)"));
    assert_int_equal(open_run(&resumed, 0.5, 2, true, false, &w), SP_ERR_MISMATCH);
    assert_non_null(strstr(sp_message(), "learning_rate (saved 0.02, now 0.5)"));
    assert_null(strstr(sp_message(), "steps"));
}

static void test_overwrite_removes_only_a_run(void **state)
{
    (void)state;
    bool resumed;
    warnings w;
    assert_int_equal(open_run(&resumed, 0.02, 2, false, false, &w), SP_OK);
    write_text("adapter_config.json", "{}");
    write_text("adapter_model.safetensors.tmp.12", "");
    write_text("events.out.tfevents.1", "");
    write_text("events-of-mine", "");
    write_text("settings.json.bak", "");
    write_text("notes.txt", "");
    assert_int_equal(save(10, 0, "a"), SP_OK);
    assert_int_equal(open_run(&resumed, 0.5, 2, false, true, &w), SP_OK);
    assert_false(resumed);
    assert_false(exists("adapter_config.json") || exists("adapter_model.safetensors.tmp.12") || exists("events.out.tfevents.1"));
    assert_false(exists("checkpoints"));
    assert_true(exists("notes.txt") && exists("events-of-mine") && exists("settings.json.bak") && exists("settings.json"));
}

static void test_foreign_directory(void **state)
{
    (void)state;
    bool resumed;
    warnings w;
    write_text("adapter_config.json", "{}");
    assert_int_equal(open_run(&resumed, 0.02, 2, false, false, &w), SP_ERR_ARGUMENT);
    assert_int_equal(open_run(&resumed, 0.02, 2, true, false, &w), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "no settings.json"));
    assert_true(exists("adapter_config.json"));
    write_text("settings.json", "{\"training\": ");
    assert_int_equal(open_run(&resumed, 0.02, 2, true, false, &w), SP_ERR_FORMAT);
    assert_non_null(strstr(sp_message(), "settings.json"));
}

/* ---- options ---- */

static void test_options(void **state)
{
    (void)state;
    sp_train_options in = {0}, out;
    assert_int_equal(sp_train_options_resolve(&out, &in, 8000), SP_OK);
    assert_true(out.steps == 300 && out.warmup_steps == 10 && out.batch_size == 16 && out.learning_rate == 0.02);
    assert_true(out.max_grad_norm == 1 && out.save_every == 10 && out.prompt.num_virtual_tokens == 32);
    assert_int_equal(sp_train_options_resolve(&out, &in, 100), SP_OK); /* three epochs: ceil(300 / 16) */
    assert_true(out.steps == 19 && out.warmup_steps == 1);
    in.epochs = 0.5;
    in.gradient_accumulation_steps = 4;
    in.warmup_steps = SIZE_MAX;
    assert_int_equal(sp_train_options_resolve(&out, &in, 1000), SP_OK);
    assert_true(out.steps == 8 && out.warmup_steps == 0);
    in.epochs = 1e300;
    assert_int_equal(sp_train_options_resolve(&out, &in, 1000), SP_ERR_ARGUMENT);
    in.steps = 5;
    assert_int_equal(sp_train_options_resolve(&out, &in, 1000), SP_ERR_ARGUMENT);
    in = (sp_train_options){.learning_rate = NAN};
    assert_int_equal(sp_train_options_resolve(&out, &in, 1000), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "learning_rate"));
    in = (sp_train_options){.batch_size = SIZE_MAX / 2, .gradient_accumulation_steps = 3};
    assert_int_equal(sp_train_options_resolve(&out, &in, 1000), SP_ERR_ARGUMENT);
    in = (sp_train_options){.resume = true, .overwrite = true};
    assert_int_equal(sp_train_options_resolve(&out, &in, 1000), SP_ERR_ARGUMENT);
}

#define IN_DIRECTORY(test) cmocka_unit_test_setup_teardown(test, make_directory, remove_directory)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_DIRECTORY(test_newest_is_loaded),
        IN_DIRECTORY(test_other_owner_is_left),
        IN_DIRECTORY(test_last_good_one),
        IN_DIRECTORY(test_none_is_good),
        IN_DIRECTORY(test_full_disk),
        IN_DIRECTORY(test_leftovers),
        cmocka_unit_test(test_state_round_trip),
        IN_DIRECTORY(test_run_directory),
        IN_DIRECTORY(test_overwrite_removes_only_a_run),
        IN_DIRECTORY(test_foreign_directory),
        cmocka_unit_test(test_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
