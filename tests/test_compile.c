/* test_compile.c: a compiled prompt says what the prompt says whose moments it is: in sessions, in scores, from its file; text
 * starts where it is told to; and what cannot be done behind moments is refused. */
#define _GNU_SOURCE /* mkstemps, mkdtemp */
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
#include "files.h"
#include "prompt/prompt.h"
#include "softprompt.h"
#include "tiny_model.h"

enum { N_KEYS = 40, N_TEXT = 60, D_HEAD = TINY_D / TINY_HEADS, N_HEADS = TINY_LAYERS * TINY_KV_HEADS, RANK = 2 };

static sp_model *model;
static int32_t text[N_TEXT];

static int open_model(void **state)
{
    (void)state;
    char path[] = "/tmp/sp-compile-XXXXXX";
    int file = mkstemp(path);
    if (file < 0 || close(file) || !tiny_model_write(path)) return -1;
    const sp_status st = sp_model_load(&model, path, &(sp_model_options){.n_threads = 2});
    for (int32_t i = 0; i < N_TEXT; i++) text[i] = (i * 41 + i * i) % 250;
    unlink(path);
    return st ? -1 : 0;
}

static int close_model(void **state)
{
    (void)state;
    sp_model_free(model);
    return 0;
}

/* A prefix whose keys differ from their mean in RANK directions of each head, by `spread` in each. */
static sp_prompt *make_prompt_at(size_t n_keys, float spread, size_t text_position)
{
    sp_prompt *prompt;
    sp_rng rng;
    float directions[N_HEADS][RANK][D_HEAD];
    const sp_prompt_options options = {.method = SP_METHOD_CARTRIDGE,
                                       .num_virtual_tokens = n_keys,
                                       .init = SP_INIT_RANDOM,
                                       .seed = 3,
                                       .text_position = text_position};
    assert_int_equal(sp_prompt_create(&prompt, model, &options), SP_OK);
    rng = sp_rng_seed(7, 0);
    for (float *x = &directions[0][0][0]; x < &directions[0][0][0] + sizeof directions / sizeof(float); x++)
        *x = (float)sp_rng_normal(&rng) / sqrtf(D_HEAD);
    for (size_t j = 0; j < n_keys; j++)
        for (size_t h = 0; h < N_HEADS; h++) {
            float *row = sp_prompt_keys_values(prompt) + j * sp_prompt_width(prompt);
            float *key = row + (2 * (h / TINY_KV_HEADS) * TINY_KV_HEADS + h % TINY_KV_HEADS) * D_HEAD;
            const float a[RANK] = {(float)sp_rng_normal(&rng) * spread, (float)sp_rng_normal(&rng) * spread};
            for (size_t i = 0; i < D_HEAD; i++) key[i] = .1f * (float)i + a[0] * directions[h][0][i] + a[1] * directions[h][1][i];
        }
    return prompt;
}

static sp_prompt *make_prompt(size_t n_keys, float spread)
{
    return make_prompt_at(n_keys, spread, 0);
}

static sp_prompt *compile(const sp_prompt *prompt, double epsilon, double max_logit)
{
    sp_prompt *compiled;
    const sp_compile_options options = {.epsilon = epsilon, .max_logit = max_logit};
    assert_int_equal(sp_prompt_compile(&compiled, model, prompt, &options, NULL), SP_OK);
    return compiled;
}

/* (N_TEXT, TINY_VOCAB) behind the prompt: text in three parts, some of it forgotten and read again. */
static float *logits_behind_gone(const sp_prompt *prompt, sp_prompt *gone, sp_compiled_use *use)
{
    sp_session *session;
    float *logits = malloc(N_TEXT * TINY_VOCAB * sizeof *logits);
    assert_non_null(logits);
    assert_int_equal(sp_session_create(&session, model, prompt), SP_OK);
    if (gone) sp_prompt_free(gone); /* a session needs it no more */
    assert_int_equal(sp_session_append_all(session, text, 25, logits), SP_OK);
    sp_session_rewind(session, 10);
    assert_int_equal(sp_session_append_all(session, text + 10, N_TEXT - 11, logits + 10 * TINY_VOCAB), SP_OK);
    assert_int_equal(sp_session_append_all(session, text + N_TEXT - 1, 1, logits + (N_TEXT - 1) * TINY_VOCAB), SP_OK);
    sp_session_get_compiled_use(use, session);
    sp_session_free(session);
    return logits;
}

static float *logits_behind(const sp_prompt *prompt, sp_compiled_use *use)
{
    return logits_behind_gone(prompt, NULL, use);
}

static double largest_difference(const float *a, const float *b, size_t n)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)a[i] - (double)b[i]));
    return largest;
}

static double difference_behind(const sp_prompt *a, const sp_prompt *b, sp_compiled_use *use)
{
    sp_compiled_use none;
    float *left = logits_behind(a, &none), *right = logits_behind(b, use);
    const double difference = largest_difference(left, right, N_TEXT * TINY_VOCAB);
    assert_true(none.n_queries == 0);
    free(left);
    free(right);
    return difference;
}

static void says_what_its_keys_say(void **state)
{
    (void)state;
    static const double epsilons[] = {1e-2, 1e-6};
    double differences[2];
    sp_prompt *prompt = make_prompt(N_KEYS, .5f);
    for (size_t i = 0; i < 2; i++) {
        sp_compiled_use use;
        sp_prompt *compiled = compile(prompt, epsilons[i], 2);
        differences[i] = difference_behind(prompt, compiled, &use);
        assert_true(use.n_queries >= N_TEXT * TINY_HEADS * TINY_LAYERS && use.n_beyond == 0);
        assert_true(use.weights_bound > 0 && use.weights_bound <= epsilons[i] / 2 + 1e-6);
        sp_prompt_free(compiled);
    }
    assert_true(differences[0] < .1 && differences[0] > 100 * differences[1]); /* a coarse polynomial is seen to be one */
    assert_true(differences[1] < 1e-4);
    sp_prompt_free(prompt);
}

static double loss_behind(const sp_prompt *prompt)
{
    double loss;
    const sp_example examples[] = {{text, 20, 3, 0}, {text + 5, 30, 2, 0}, {text, 21, 4, 0}};
    assert_int_equal(sp_loss(&loss, NULL, model, prompt, examples, 3), SP_OK);
    return loss;
}

static void scores_as_its_keys_do(void **state)
{
    (void)state;
    sp_prompt *prompt = make_prompt(N_KEYS, .5f), *compiled = compile(prompt, 1e-6, 2), *other = make_prompt(N_KEYS, 1);
    assert_true(fabs(loss_behind(prompt) - loss_behind(compiled)) < 1e-6);
    assert_true(fabs(loss_behind(prompt) - loss_behind(other)) > 1e-4);
    sp_prompt_free(prompt);
    sp_prompt_free(compiled);
    sp_prompt_free(other);
}

static void text_starts_where_it_is_told_to(void **state)
{
    (void)state;
    sp_compiled_use use;
    sp_prompt *prompt = make_prompt(N_KEYS, .5f), *later = make_prompt(N_KEYS, .5f);
    assert_int_equal(sp_prompt_text_position(prompt), N_KEYS);
    assert_int_equal(sp_prompt_set_text_position(later, 90), SP_OK);
    sp_prompt *compiled = compile(later, 1e-6, 2);
    assert_int_equal(sp_prompt_text_position(compiled), 90);
    assert_true(difference_behind(later, compiled, &use) < 1e-4);
    assert_true(difference_behind(prompt, later, &use) > 1e-3);

    /* More keys than the model's context has positions: text starts before they would end. */
    sp_prompt *longer = make_prompt_at(3 * TINY_CONTEXT, .5f, 64), *refused;
    const sp_prompt_options too_long = {.method = SP_METHOD_PREFIX, .num_virtual_tokens = 3 * TINY_CONTEXT};
    assert_int_equal(sp_prompt_create(&refused, model, &too_long), SP_ERR_ARGUMENT);
    sp_prompt *short_one = compile(longer, 1e-6, 2);
    assert_true(difference_behind(longer, short_one, &use) < 1e-4);

    sp_compiled_info info, long_info;
    assert_int_equal(sp_prompt_get_compiled_info(&info, compiled), SP_OK);
    assert_int_equal(sp_prompt_get_compiled_info(&long_info, short_one), SP_OK);
    assert_true(info.n_bytes == long_info.n_bytes && info.rank == RANK && long_info.num_virtual_tokens == 3 * TINY_CONTEXT);
    assert_true(long_info.cost_ratio > 14 * info.cost_ratio);
    sp_prompt_free(prompt);
    sp_prompt_free(later);
    sp_prompt_free(compiled);
    sp_prompt_free(longer);
    sp_prompt_free(short_one);
}

/* Text positions of prompts of rows are in softprompt.json, too. */
static void is_saved_and_read_back(void **state)
{
    (void)state;
    char dir[] = "/tmp/sp-compile-XXXXXX", again[] = "/tmp/sp-compile-XXXXXX";
    sp_compiled_use use;
    sp_prompt *prompt = make_prompt(N_KEYS, .5f), *loaded;
    assert_non_null(mkdtemp(dir));
    assert_non_null(mkdtemp(again));
    assert_int_equal(sp_prompt_set_text_position(prompt, 77), SP_OK);
    assert_int_equal(sp_prompt_save(prompt, dir), SP_OK);
    assert_int_equal(sp_prompt_load(&loaded, dir), SP_OK);
    assert_int_equal(sp_prompt_text_position(loaded), 77);
    sp_prompt_free(loaded);

    sp_prompt *compiled = compile(prompt, 1e-4, 2);
    assert_int_equal(sp_prompt_save(compiled, dir), SP_OK);
    assert_int_equal(sp_prompt_load(&loaded, dir), SP_OK);
    assert_int_equal(sp_prompt_text_position(loaded), 77);
    assert_int_equal(sp_prompt_num_virtual_tokens(loaded), N_KEYS);
    assert_int_equal(sp_prompt_save(loaded, again), SP_OK);
    float *left = logits_behind(compiled, &use), *right = logits_behind_gone(loaded, loaded, &use);
    assert_memory_equal(left, right, N_TEXT * TINY_VOCAB * sizeof *left);
    static const char *const names[] = {"adapter_model.safetensors", "softprompt.json", "adapter_config.json"};
    for (size_t i = 0; i < 3; i++) {
        char a[128], b[128], command[500];
        snprintf(a, sizeof a, "%s/%s", dir, names[i]);
        snprintf(b, sizeof b, "%s/%s", again, names[i]);
        snprintf(command, sizeof command, "cmp %s %s && rm %s", a, b, b);
        assert_int_equal(system(command), 0);
    }
    free(left);
    free(right);
    sp_prompt_free(compiled);
    sp_prompt_free(prompt);

    /* Without one of its tensors, or with one cut off, it is no adapter. */
    char path[128], command[500];
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    snprintf(command, sizeof command, "sed -i 's/layer.1.head.1.moments/layer.1.head.7.moments/' %s", path);
    assert_int_equal(system(command), 0);
    assert_int_equal(sp_prompt_load(&loaded, dir), SP_ERR_FORMAT);
    assert_non_null(strstr(sp_message(), "layer.1.head.1.moments is missing"));
    snprintf(command, sizeof command, "truncate -s -100 %s", path);
    assert_int_equal(system(command), 0);
    assert_int_equal(sp_prompt_load(&loaded, dir), SP_ERR_FORMAT);
    snprintf(command, sizeof command, "rm -r %s %s", dir, again);
    assert_int_equal(system(command), 0);
}

static void queries_beyond_the_range_are_counted(void **state)
{
    (void)state;
    sp_compiled_use use;
    sp_prompt *prompt = make_prompt(N_KEYS, 4), *compiled = compile(prompt, 1e-3, .05);
    const double difference = difference_behind(prompt, compiled, &use);
    assert_true(use.n_beyond > 0 && use.n_beyond <= use.n_queries && use.weights_bound > 1e-3);
    assert_true(isfinite(difference) && difference > 1e-4);
    sp_prompt_free(prompt);
    sp_prompt_free(compiled);
}

static void what_needs_rows_is_refused(void **state)
{
    (void)state;
    sp_prompt *prompt = make_prompt(N_KEYS, .5f), *compiled = compile(prompt, 1e-3, 2), *embeddings, *out;
    const sp_compile_options served = {.max_logit = 2};
    assert_int_equal(sp_prompt_create(&embeddings, model, &(sp_prompt_options){.num_virtual_tokens = 4}), SP_OK);
    assert_null(sp_prompt_keys_values(compiled));
    assert_null(sp_prompt_embeddings(compiled));

    assert_int_equal(sp_prompt_compile(&out, model, embeddings, &served, NULL), SP_ERR_UNSUPPORTED);
    assert_int_equal(sp_prompt_compile(&out, model, compiled, &served, NULL), SP_ERR_UNSUPPORTED);
    assert_int_equal(sp_prompt_compile(&out, model, prompt, NULL, NULL), SP_ERR_ARGUMENT); /* which scores? */
    assert_non_null(strstr(sp_message(), "--max-logit"));
    assert_int_equal(sp_prompt_compile(&out, model, prompt, &(sp_compile_options){.max_logit = 4, .degree = 1}, NULL),
                     SP_ERR_UNSUPPORTED);
    assert_non_null(strstr(sp_message(), "layer 0, head 0"));
    assert_int_equal(sp_prompt_compile(&out, model, prompt, &(sp_compile_options){.max_logit = 2, .max_bytes = 1000}, NULL),
                     SP_ERR_MEMORY);
    assert_int_equal(sp_prompt_set_text_position(embeddings, 10), SP_ERR_UNSUPPORTED);

    double loss;
    float gradient[1];
    const sp_example example = {text, 20, 3, 0};
    assert_int_equal(sp_loss(&loss, gradient, model, compiled, &example, 1), SP_ERR_UNSUPPORTED);
    sp_session *session;
    assert_int_equal(sp_session_create_ensemble(&session, model, (const sp_prompt *[]){prompt, compiled}, 2), SP_ERR_UNSUPPORTED);
    sp_audit *audit;
    assert_int_equal(sp_audit_create(&audit, model, compiled, &(sp_audit_options){0}), SP_ERR_UNSUPPORTED);

    char dir[] = "/tmp/sp-compile-XXXXXX", command[64];
    assert_non_null(mkdtemp(dir));
    assert_int_equal(sp_prompt_save(compiled, dir), SP_OK);
    const sp_prompt_options from = {.method = SP_METHOD_PREFIX, .init_prompt = dir};
    assert_int_equal(sp_prompt_create(&out, model, &from), SP_ERR_UNSUPPORTED);
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
    sp_prompt_free(prompt);
    sp_prompt_free(compiled);
    sp_prompt_free(embeddings);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_what_its_keys_say),
        cmocka_unit_test(scores_as_its_keys_do),
        cmocka_unit_test(text_starts_where_it_is_told_to),
        cmocka_unit_test(is_saved_and_read_back),
        cmocka_unit_test(queries_beyond_the_range_are_counted),
        cmocka_unit_test(what_needs_rows_is_refused),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
