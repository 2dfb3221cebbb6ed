/* test_families.c: every row of the table of architectures as a tiny file made from the row itself: it runs, forward and backward,
 * and nothing that the row names can be missing or misshapen, nor anything be there that it does not name. What the numbers
 * should be, tests/oracle/engine.py knows. */
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

#include "files.h"
#include "model/architecture.h"
#include "tiny_model.h"

enum { D_HEAD = TINY_D / TINY_HEADS, Q_DIM = TINY_D, KV_DIM = TINY_KV_HEADS * D_HEAD, N_LAYERS = 3 };

/* What a file has otherwise than its row says. */
typedef struct change {
    const char *without; /* a tensor */
    const char *longer;  /* one with a row, or, a vector, a number, too many */
    const char *with;    /* one that is added: as many numbers as `n` */
    int64_t n;
    const char *key; /* after "<architecture>." */
    enum gguf_type type;
    double number;
} change;

static const int64_t lengths[SP_N_LENGTHS] = {[SP_ONE] = 0,          [SP_D_MODEL] = TINY_D,      [SP_D_HEAD] = D_HEAD,
                                              [SP_Q_DIM] = Q_DIM,    [SP_KV_DIM] = KV_DIM,       [SP_QKV_DIM] = Q_DIM + 2 * KV_DIM,
                                              [SP_D_FFN] = TINY_FFN, [SP_2_D_FFN] = 2 * TINY_FFN};

typedef struct writer {
    const change *change;
    struct gguf_context *gguf;
    struct ggml_context *context;
    sp_rng rng;
} writer;

static bool is(const char *name, const char *other)
{
    return other && strcmp(name, other) == 0;
}

static void add(writer *w, const char *name, int64_t n_columns, int64_t n_rows)
{
    if (is(name, w->change->without)) return;
    int64_t more = is(name, w->change->longer);
    tiny_add(w->gguf, w->context, &w->rng, name, n_rows ? n_columns : n_columns + more, n_rows ? n_rows + more : 0, 0.2);
}

static void set_number(const writer *w, const char *architecture, const char *name, enum gguf_type type, double number)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", architecture, name);
    if (type == GGUF_TYPE_UINT32) gguf_set_val_u32(w->gguf, key, (uint32_t)number);
    if (type == GGUF_TYPE_FLOAT32) gguf_set_val_f32(w->gguf, key, (float)number);
    if (type == GGUF_TYPE_BOOL) gguf_set_val_bool(w->gguf, key, number != 0);
}

static void set_numbers(const writer *w, const char *architecture)
{
    static const struct {
        const char *name;
        uint32_t number;
    } sizes[] = {{"block_count", N_LAYERS},           {"embedding_length", TINY_D},
                 {"feed_forward_length", TINY_FFN},   {"attention.head_count", TINY_HEADS},
                 {"context_length", TINY_CONTEXT},    {"attention.head_count_kv", TINY_KV_HEADS},
                 {"rope.dimension_count", D_HEAD - 2}};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) set_number(w, architecture, sizes[i].name, GGUF_TYPE_UINT32, sizes[i].number);
    if (w->change->key) set_number(w, architecture, w->change->key, w->change->type, w->change->number);
}

/* All tensors that the row requires. */
static void write_family(const char *path, const sp_architecture *a, const change *c)
{
    writer w = {c, gguf_init_empty(), ggml_init((struct ggml_init_params){.mem_size = 1 << 21}), sp_rng_seed(5, 0)};
    gguf_set_val_str(w.gguf, "general.architecture", a->name);
    set_numbers(&w, a->name);
    tiny_set_tokenizer(w.gguf);
    add(&w, "token_embd.weight", TINY_D, TINY_VOCAB);
    if (a->learned_positions) add(&w, "position_embd.weight", TINY_D, TINY_CONTEXT);
    add(&w, "output_norm.weight", TINY_D, 0);
    if (a->layer_norm) add(&w, "output_norm.bias", TINY_D, 0);
    for (int layer = 0; layer < N_LAYERS; layer++)
        for (size_t i = 0; i < SP_N_LAYER_TENSORS; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s", layer, sp_layer_tensor_forms[i].name);
            if (a->required >> i & 1)
                add(&w, name, lengths[sp_layer_tensor_forms[i].width], lengths[sp_layer_tensor_forms[i].rows]);
        }
    if (c->with) tiny_add(w.gguf, w.context, &w.rng, c->with, c->n, 0, 0);
    assert_true(gguf_write_to_file(w.gguf, path, false));
    gguf_free(w.gguf);
    ggml_free(w.context);
}

static sp_status load_family(sp_model **model, const sp_architecture *a, const change *c, sp_weights weights)
{
    memory_file file = memory_file_create();
    const sp_model_options options = {.n_threads = 1, .weights = weights};
    write_family(file.path, a, c);
    sp_status st = sp_model_load(model, file.path, &options);
    close(file.fd);
    return st;
}

/* ---- for every row -------------------------------------------------------------------------------------------------------- */

typedef void row_test(const sp_architecture *a);

/* The names out of the list that messages have: what is not in it cannot be found. */
static void for_every_row(row_test *test)
{
    char list[256], *next = sp_architecture_list(list, sizeof list) ? list : NULL;
    size_t n = 0;
    for (char *name; (name = strsep(&next, ",")); n++) test(sp_architecture_find(name + strspn(name, " ")));
    assert_true(n >= 9);
}

/* The gradient of a loss, one row of two virtual tokens behind the other. */
static void compute_gradient(float *gradient, double *loss, const sp_architecture *a, sp_weights weights, sp_method method)
{
    static const int32_t tokens[] = {72, 101, 108, 5, 7, 200};
    const sp_example examples[] = {{.tokens = tokens, .n_tokens = 6, .n_answer = 2},
                                   {.tokens = tokens, .n_tokens = 4, .n_answer = 1}};
    const sp_prompt_options options = {.method = method, .num_virtual_tokens = 2, .init = SP_INIT_RANDOM, .seed = 3};
    sp_model *model;
    sp_prompt *prompt;
    if (load_family(&model, a, &(change){0}, weights)) fail_msg("%s: %s", a->name, sp_message());
    assert_int_equal(sp_prompt_create(&prompt, model, &options), SP_OK);
    memset(gradient, 0, 2 * sp_prompt_width(prompt) * sizeof *gradient);
    assert_int_equal(sp_loss(loss, gradient, model, prompt, examples, 2), SP_OK);
    sp_prompt_free(prompt);
    sp_model_free(model);
}

/* Both ways to hold weights give one gradient, of embeddings and of keys and values. */
static void check_gradients(const sp_architecture *a)
{
    static float mapped[4 * N_LAYERS * KV_DIM], expanded[4 * N_LAYERS * KV_DIM];
    static const sp_method methods[] = {SP_METHOD_PROMPT, SP_METHOD_PREFIX};
    static const size_t n[] = {2 * TINY_D, 4 * N_LAYERS * KV_DIM};
    for (size_t k = 0; k < 2; k++) {
        double loss, again, square = 0;
        compute_gradient(mapped, &loss, a, SP_WEIGHTS_MAPPED, methods[k]);
        compute_gradient(expanded, &again, a, SP_WEIGHTS_F32, methods[k]);
        assert_true(isfinite(loss) && fabs(loss - again) <= 1e-5 * loss);
        for (size_t i = 0; i < n[k]; i++) {
            square += (double)mapped[i] * (double)mapped[i];
            if (!(fabsf(mapped[i] - expanded[i]) <= 1e-5f))
                fail_msg("%s: gradient %zu: %g, %g", a->name, i, mapped[i], expanded[i]);
        }
        assert_true(square > 1e-8);
    }
}

static void every_family_runs(void **state)
{
    (void)state;
    for_every_row(check_gradients);
}

static void check_refused(const sp_architecture *a, const change *c, sp_status status, const char *words)
{
    sp_model *model;
    if (load_family(&model, a, c, SP_WEIGHTS_MAPPED) == SP_OK) fail_msg("%s loads, although: %s", a->name, words);
    assert_fails(load_family(&model, a, c, SP_WEIGHTS_MAPPED), status, words);
    assert_null(model);
}

/* One tensor, left out and too long. */
static void check_needed(const sp_architecture *a, const char *name)
{
    char words[128];
    snprintf(words, sizeof words, "tensor %s is missing", name);
    check_refused(a, &(change){.without = name}, SP_ERR_FORMAT, words);
    snprintf(words, sizeof words, "tensor %s has shape (", name);
    check_refused(a, &(change){.longer = name}, SP_ERR_FORMAT, words);
}

static void check_all_needed(const sp_architecture *a)
{
    check_needed(a, "output_norm.weight");
    if (a->layer_norm) check_needed(a, "output_norm.bias");
    if (a->learned_positions) check_needed(a, "position_embd.weight");
    for (size_t i = 0; i < SP_N_LAYER_TENSORS; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.1.%s", sp_layer_tensor_forms[i].name);
        if (a->required >> i & 1) check_needed(a, name);
    }
}

static void every_tensor_is_needed(void **state)
{
    (void)state;
    for_every_row(check_all_needed);
}

static bool has_name(const sp_architecture *a, const char *name)
{
    for (size_t i = 0; i < SP_N_LAYER_TENSORS; i++)
        if ((a->required | a->optional) >> i & 1 && is(sp_layer_tensor_forms[i].name, name)) return true;
    return false;
}

/* Tensors that other rows have. */
static void check_others(const sp_architecture *a)
{
    char name[64], words[128];
    for (size_t i = 0; i < SP_N_LAYER_TENSORS; i++) {
        if (has_name(a, sp_layer_tensor_forms[i].name)) continue;
        snprintf(name, sizeof name, "blk.2.%s", sp_layer_tensor_forms[i].name);
        snprintf(words, sizeof words, "tensor %s is no part of the %s architecture", name, a->name);
        check_refused(a, &(change){.with = name, .n = TINY_D}, SP_ERR_UNSUPPORTED, words);
    }
    if (!a->layer_norm)
        check_refused(a, &(change){.with = "output_norm.bias", .n = TINY_D}, SP_ERR_UNSUPPORTED, "output_norm.bias is no part");
    if (!a->learned_positions)
        check_refused(a, &(change){.with = "position_embd.weight", .n = TINY_D}, SP_ERR_UNSUPPORTED, "position_embd.weight is no");
    if (a->learned_positions)
        check_refused(a, &(change){.with = "rope_freqs.weight", .n = 3}, SP_ERR_UNSUPPORTED, "rope_freqs.weight is no part");
    check_refused(a, &(change){.with = "rope_factors_long.weight", .n = 3}, SP_ERR_UNSUPPORTED,
                  "rope_factors_long.weight is no part");
}

static void no_other_tensor_is_taken(void **state)
{
    (void)state;
    for_every_row(check_others);
}

/* ---- what single rows have ------------------------------------------------------------------------------------------------- */

#define KEY(name, of, value) .key = name, .type = GGUF_TYPE_##of, .number = value

static void metadata_is_checked(void **state)
{
    (void)state;
    static const struct {
        const char *family;
        change change;
        sp_status status;
        const char *words;
    } cases[] = {
        {"gemma2", {KEY("attn_logit_softcapping", FLOAT32, -1)}, SP_ERR_FORMAT, "gemma2.attn_logit_softcapping is -1"},
        {"gemma2", {KEY("final_logit_softcapping", UINT32, 1)}, SP_ERR_FORMAT, "gemma2.final_logit_softcapping"},
        {"gemma2", {KEY("attention.sliding_window", FLOAT32, 8)}, SP_ERR_FORMAT, "gemma2.attention.sliding_window"},
        {"gptneox", {KEY("use_parallel_residual", UINT32, 1)}, SP_ERR_FORMAT, "gptneox.use_parallel_residual"},
        {"gptneox", {KEY("attention.sliding_window", UINT32, 8)}, SP_ERR_UNSUPPORTED, "knows no windows in the gptneox"},
        {"gptneox", {KEY("rope.dimension_count", UINT32, 3)}, SP_ERR_FORMAT, "RoPE over 3 dimensions"},
        {"gpt2",
         {KEY("context_length", UINT32, TINY_CONTEXT + 1)},
         SP_ERR_FORMAT,
         "tensor position_embd.weight has shape (192, 32); (193, 32)"},
        {"gpt2", {KEY("attention.layer_norm_epsilon", FLOAT32, -1)}, SP_ERR_FORMAT, "gpt2.attention.layer_norm_epsilon is -1"},
        {"phi3", {.with = "rope_factors_short.weight", .n = 4}, SP_ERR_FORMAT, "rope_factors_short.weight: 3 values of f32"},
        {"phi3",
         {.with = "rope_factors_short.weight", .n = 3, KEY("rope.scaling.original_context_length", UINT32, 0)},
         SP_ERR_FORMAT,
         "original_context_length is 0, not in 1"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        check_refused(sp_architecture_find(cases[i].family), &cases[i].change, cases[i].status, cases[i].words);
}

/* The logits behind some tokens, one after the other. */
static void run(float *logits, const sp_architecture *a, const change *c)
{
    static const int32_t tokens[] = {72, 101, 108, 5, 7, 200, 3, 9};
    sp_model *model;
    sp_session *session;
    if (load_family(&model, a, c, SP_WEIGHTS_MAPPED)) fail_msg("%s: %s", a->name, sp_message());
    assert_int_equal(sp_session_create(&session, model, NULL), SP_OK);
    for (size_t i = 0; i < ARRAY_LEN(tokens); i++)
        assert_int_equal(sp_session_append(session, &tokens[i], 1, logits + i * TINY_VOCAB), SP_OK);
    sp_session_free(session);
    sp_model_free(model);
}

/* Each of these keys is read: it changes what the model computes; a file without it says what the key would at its default. */
static void keys_matter_and_have_defaults(void **state)
{
    (void)state;
    static const struct {
        const char *family;
        change other, same;
    } cases[] = {
        {"gemma2", {KEY("attn_logit_softcapping", FLOAT32, 0.25)}, {KEY("attn_logit_softcapping", FLOAT32, 50)}},
        {"gemma2", {KEY("final_logit_softcapping", FLOAT32, 0.5)}, {KEY("final_logit_softcapping", FLOAT32, 30)}},
        {"gemma2", {KEY("attention.sliding_window", UINT32, 2)}, {KEY("attention.sliding_window", UINT32, 4096)}},
        {"phi3", {KEY("attention.sliding_window", UINT32, 2)}, {KEY("attention.sliding_window", UINT32, 0)}},
        {"gptneox", {KEY("use_parallel_residual", BOOL, false)}, {KEY("use_parallel_residual", BOOL, true)}},
        {"gpt2", {KEY("attention.layer_norm_epsilon", FLOAT32, 0.5)}, {KEY("attention.layer_norm_epsilon", FLOAT32, 1e-5)}},
        {"gemma3", {KEY("attention.scale", FLOAT32, 0.1)}, {KEY("attention.scale", FLOAT32, 0)}},
    };
    static float plain[8 * TINY_VOCAB], other[8 * TINY_VOCAB], same[8 * TINY_VOCAB];
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const sp_architecture *a = sp_architecture_find(cases[i].family);
        float largest = 0;
        run(plain, a, &(change){0});
        run(other, a, &cases[i].other);
        run(same, a, &cases[i].same);
        assert_memory_equal(plain, same, sizeof plain);
        for (size_t k = 0; k < 8 * TINY_VOCAB; k++) largest = fmaxf(largest, fabsf(plain[k] - other[k]));
        if (!(largest > 1e-3f)) fail_msg("%s: %s changes logits by %g only", a->name, cases[i].other.key, (double)largest);
        if (is(cases[i].other.key, "final_logit_softcapping"))
            for (size_t k = 0; k < 8 * TINY_VOCAB; k++) assert_true(fabsf(other[k]) <= 0.5f);
    }
}

/* LongRoPE: only as far as its short factors reach. */
static void a_long_context_is_cut(void **state)
{
    (void)state;
    static const change cut = {
        .with = "rope_factors_short.weight", .n = 3, KEY("rope.scaling.original_context_length", UINT32, 20)};
    sp_model *model;
    sp_model_info info;
    assert_int_equal(load_family(&model, sp_architecture_find("phi3"), &cut, SP_WEIGHTS_MAPPED), SP_OK);
    sp_model_get_info(&info, model);
    assert_int_equal(info.context_length, 20);
    sp_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_runs),
        cmocka_unit_test(every_tensor_is_needed),
        cmocka_unit_test(no_other_tensor_is_taken),
        cmocka_unit_test(metadata_is_checked),
        cmocka_unit_test(keys_matter_and_have_defaults),
        cmocka_unit_test(a_long_context_is_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
