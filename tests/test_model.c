/* test_model.c: what sp_model_load makes of damaged and hostile GGUF files. Either it says what is wrong, or the model that it
 * gives can be run: the sanitizer build sees whatever a wrong size would read or write. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "files.h"
#include "tiny_model.h"

static char *good;
static size_t n_good;

static const sp_model_options one_thread = {.n_threads = 1};

/* ---- files made of the tiny model's ------------------------------------------------------------------------------ */

static int make_good(void **state)
{
    char *dir = make_directory(), *path = sp_path_join(dir, "model.gguf");
    (void)state;
    bool made = path && tiny_model_write(path) && !sp_read_file(&good, &n_good, path, 1 << 20);
    free(path);
    remove_directory(dir);
    return made ? 0 : -1;
}

static int free_good(void **state)
{
    (void)state;
    free(good);
    return 0;
}

/* Where the tensors' data begin, to within the padding: the last tensor's entry ends the header. */
static size_t header_bytes(void)
{
    const char *last = memmem(good, n_good, "output_norm.weight", 18);
    assert_non_null(last);
    return (size_t)(last - good) + 18 + 4 + 8 + 4 + 8;
}

static char *copy_good(void)
{
    char *bytes = malloc(n_good);
    assert_non_null(bytes);
    return memcpy(bytes, good, n_good);
}

static sp_status load_bytes(sp_model **model, const void *bytes, size_t n_bytes)
{
    memory_file file = memory_file_create();
    memory_file_set(&file, bytes, n_bytes);
    sp_status st = sp_model_load(model, file.path, &one_thread);
    close(file.fd); /* the mapping stays */
    return st;
}

/* ---- running what loads ------------------------------------------------------------------------------------------ */

/* Loads, and where that works, runs some tokens. Failures are fine as long as they say something. */
static sp_status load_and_run(const void *bytes, size_t n_bytes)
{
    static const int32_t tokens[] = {72, 101, 108, 0, TINY_EOS};
    sp_model *model;
    sp_session *session = NULL;
    sp_status st = load_bytes(&model, bytes, n_bytes);
    assert_true((st == SP_OK) == (model != NULL));
    if (st) {
        assert_true(*sp_message() && !strpbrk(sp_message(), "\r\n"));
        return st;
    }
    assert_int_equal(sp_session_create(&session, model, NULL), SP_OK);
    for (size_t i = 0; i < ARRAY_LEN(tokens) && !st; i++) st = sp_session_append(session, &tokens[i], 1, NULL);
    if (!st) {
        sp_generation generation;
        const sp_sampling sampling = {.max_new_tokens = 2, .temperature = 1};
        st = sp_generate(&generation, session, NULL, 0, &sampling, NULL, NULL);
        sp_generation_clear(&generation);
    }
    sp_session_free(session);
    sp_model_free(model);
    return st;
}

static void the_good_file_runs(void **state)
{
    (void)state;
    if (load_and_run(good, n_good)) fail_msg("%s", sp_message());
}

static void every_truncation_fails(void **state)
{
    sp_model *model;
    (void)state;
    for (size_t n = 0; n < n_good; n += n < header_bytes() ? 1 : 997) {
        sp_status st = load_bytes(&model, good, n);
        if (st != SP_ERR_FORMAT) fail_msg("%zu bytes of %zu: status %d", n, n_good, st);
    }
}

/* One bit of every byte; which one goes round, so that neighbours differ. */
static void every_flipped_byte_of_the_header(void **state)
{
    char *bytes = copy_good();
    size_t n_refused = 0;
    (void)state;
    for (size_t i = 0; i < header_bytes(); i++) {
        bytes[i] = (char)(bytes[i] ^ 1 << i % 8);
        n_refused += load_and_run(bytes, n_good) != SP_OK;
        bytes[i] = good[i];
    }
    free(bytes);
    assert_true(n_refused > header_bytes() / 4);
}

static void every_byte_of_the_header_at_its_largest(void **state)
{
    char *bytes = copy_good();
    (void)state;
    for (size_t i = 0; i < header_bytes(); i++) {
        bytes[i] = (char)0xff;
        load_and_run(bytes, n_good);
        bytes[i] = good[i];
    }
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_good_file_runs),
        cmocka_unit_test(every_truncation_fails),
        cmocka_unit_test(every_flipped_byte_of_the_header),
        cmocka_unit_test(every_byte_of_the_header_at_its_largest),
    };
    return cmocka_run_group_tests(tests, make_good, free_good);
}
