/* test_generate.c: generation on a tiny model whose tokens are bytes, so that its text is full of broken characters. */
#define _GNU_SOURCE /* memmem */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "text/unicode.h"
#include "tiny_model.h"

static sp_model *model;
static const int32_t beginning[] = {72, 101, 108};

static int load_tiny(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "/tmp/softprompt-generate-%ld.gguf", (long)getpid());
    if (!tiny_model_write(path)) return -1;
    sp_status st = sp_model_load(&model, path, NULL);
    unlink(path);
    return st ? -1 : 0;
}

static int free_tiny(void **state)
{
    (void)state;
    sp_model_free(model);
    return 0;
}

static bool collect(void *user, const char *text, size_t n_bytes)
{
    assert_int_equal(sp_utf8_valid_prefix(text, n_bytes), n_bytes);
    assert_int_equal(sp_buffer_add(user, text, n_bytes), SP_OK);
    return true;
}

/* A continuation of `beginning`; the pieces that were streamed must add up to its text. */
static sp_generation generate(const sp_sampling *options)
{
    sp_session *session;
    sp_generation out;
    sp_buffer streamed = {0};
    assert_int_equal(sp_session_create(&session, model, NULL), SP_OK);
    assert_int_equal(sp_generate(&out, session, beginning, 3, options, collect, &streamed), SP_OK);
    assert_int_equal(out.text[out.n_bytes], 0);
    assert_int_equal(streamed.n_bytes, out.n_bytes);
    if (out.n_bytes) assert_memory_equal(streamed.bytes, out.text, out.n_bytes);
    assert_int_equal(sp_utf8_valid_prefix(out.text, out.n_bytes), out.n_bytes);
    sp_buffer_free(&streamed);
    sp_session_free(session);
    return out;
}

/* Bytes, not strings: a NUL is a token like any other here. */
static bool same_text(const sp_generation *a, const sp_generation *b)
{
    return a->n_bytes == b->n_bytes && memcmp(a->text, b->text, a->n_bytes) == 0;
}

static void pieces_add_up_and_seeds_decide(void **state)
{
    (void)state;
    size_t n_different = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        const sp_sampling options = {.max_new_tokens = 60, .temperature = 1.5f, .seed = seed};
        sp_generation first = generate(&options), second = generate(&options),
                      other = generate(&(sp_sampling){.max_new_tokens = 60, .temperature = 1.5f, .seed = seed + 1000});
        assert_true(same_text(&first, &second));
        assert_int_equal(first.n_tokens, second.n_tokens);
        n_different += !same_text(&first, &other);
        assert_true(first.finish == SP_FINISH_LENGTH ? first.n_tokens == 60 : first.tokens[first.n_tokens - 1] == TINY_EOS);
        sp_generation_clear(&first);
        sp_generation_clear(&second);
        sp_generation_clear(&other);
    }
    assert_true(n_different > 30);
}

/* The first two printable ASCII characters in a row, into stop; an empty string where there are none. */
static void find_pair(char stop[3], const sp_generation *whole)
{
    memset(stop, 0, 3);
    for (size_t i = 1; i + 1 < whole->n_bytes && !*stop; i++)
        if (whole->text[i] > ' ' && whole->text[i] < 0x7f && whole->text[i + 1] > ' ' && whole->text[i + 1] < 0x7f)
            memcpy(stop, whole->text + i, 2);
}

/* The text with a stop string is the text without it, up to where the string first stands, however tokens cut it. */
static void stop_strings_end_the_text(void **state)
{
    (void)state;
    size_t n_stopped = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        sp_sampling options = {.max_new_tokens = 60, .temperature = 1.5f, .seed = seed};
        sp_generation whole = generate(&options);
        char stop[3];
        find_pair(stop, &whole);
        if (*stop) {
            const char *stops[] = {"never to be seen", stop};
            options.stop = stops;
            options.n_stop = 2;
            sp_generation cut = generate(&options);
            size_t at = (size_t)((char *)memmem(whole.text, whole.n_bytes, stop, 2) - whole.text);
            assert_int_equal(cut.finish, SP_FINISH_STOP);
            assert_int_equal(cut.n_bytes, at);
            assert_memory_equal(cut.text, whole.text, at);
            n_stopped++;
            sp_generation_clear(&cut);
        }
        sp_generation_clear(&whole);
    }
    assert_true(n_stopped > 5);
}

static bool cancel_at_once(void *user, const char *text, size_t n_bytes)
{
    (void)text;
    *(size_t *)user += n_bytes;
    return false;
}

static void the_caller_can_cancel(void **state)
{
    (void)state;
    sp_session *session;
    sp_generation out;
    size_t n_seen = 0;
    assert_int_equal(sp_session_create(&session, model, NULL), SP_OK);
    assert_int_equal(sp_generate(&out, session, beginning, 3, NULL, cancel_at_once, &n_seen), SP_OK);
    assert_int_equal(out.finish, SP_FINISH_CANCELLED);
    assert_int_equal(out.n_bytes, n_seen);
    sp_generation_clear(&out);
    sp_session_free(session);
}

/* A full context ends the text; no token fits behind it, and the session says so. */
static void the_context_is_the_limit(void **state)
{
    (void)state;
    static int32_t tokens[TINY_CONTEXT + 1];
    sp_session *session;
    sp_generation out;
    assert_int_equal(sp_session_create(&session, model, NULL), SP_OK);
    assert_int_equal(sp_session_append(session, tokens, TINY_CONTEXT + 1, NULL), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "room for 192"));
    assert_int_equal(sp_session_n_tokens(session), 0);
    assert_int_equal(sp_session_append(session, (const int32_t[]){-1}, 1, NULL), SP_ERR_ARGUMENT); /* no prompt's row */
    assert_non_null(strstr(sp_message(), "token -1 is outside"));
    assert_int_equal(sp_generate(&out, session, NULL, 0, NULL, NULL, NULL), SP_ERR_ARGUMENT); /* nothing to continue */
    assert_int_equal(sp_session_append(session, tokens, TINY_CONTEXT - 2, NULL), SP_OK);
    assert_int_equal(sp_generate(&out, session, NULL, 0, &(sp_sampling){.temperature = 2, .seed = 3}, NULL, NULL), SP_OK);
    assert_true(out.n_tokens <= 3);
    sp_generation_clear(&out);
    sp_session_free(session);
}

/* Logprobs are those of the model: the same session, asked token by token. */
static void logprobs_are_the_models(void **state)
{
    (void)state;
    sp_generation out = generate(&(sp_sampling){.max_new_tokens = 20, .temperature = 1, .top_k = 5, .seed = 4});
    sp_session *session;
    float logits[TINY_VOCAB];
    assert_int_equal(sp_session_create(&session, model, NULL), SP_OK);
    assert_int_equal(sp_session_append(session, beginning, 3, logits), SP_OK);
    for (size_t i = 0; i < out.n_tokens; i++) {
        double sum = 0;
        for (int t = 0; t < TINY_VOCAB; t++) sum += exp((double)logits[t]);
        assert_true(fabs((double)logits[out.tokens[i]] - log(sum) - (double)out.logprobs[i]) < 1e-5);
        assert_int_equal(sp_session_append(session, &out.tokens[i], 1, logits), SP_OK);
    }
    sp_session_free(session);
    sp_generation_clear(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_add_up_and_seeds_decide), cmocka_unit_test(stop_strings_end_the_text),
        cmocka_unit_test(the_caller_can_cancel),          cmocka_unit_test(the_context_is_the_limit),
        cmocka_unit_test(logprobs_are_the_models),
    };
    return cmocka_run_group_tests(tests, load_tiny, free_tiny);
}
