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

/* ---- files that are well formed and say something else ------------------------------------------------------------ */

/* One thing changed in the good file. A key gets a value; a tensor of the model is left out, or takes another's place. */
typedef struct change {
    const char *key;
    enum gguf_type type;
    double number;       /* UINT32, FLOAT32 */
    const char *text;    /* STRING */
    const char *without; /* a tensor that is left out */
    const char *with;    /* a tensor that is added, all zeros */
    int64_t shape[2];
    enum ggml_type tensor_type;
} change;

static void set_value(struct gguf_context *g, const change *c)
{
    if (c->type == GGUF_TYPE_UINT32) gguf_set_val_u32(g, c->key, (uint32_t)c->number);
    if (c->type == GGUF_TYPE_FLOAT32) gguf_set_val_f32(g, c->key, (float)c->number);
    if (c->type == GGUF_TYPE_STRING) gguf_set_val_str(g, c->key, c->text);
}

static void add_tensor(struct gguf_context *g, struct ggml_context *context, const change *c)
{
    struct ggml_tensor *t = ggml_new_tensor_2d(context, c->tensor_type, c->shape[0], c->shape[1]);
    memset(t->data, 0, ggml_nbytes(t));
    ggml_set_name(t, c->with);
    gguf_add_tensor(g, t);
}

/* The good file with the change, written to `path`. */
static void write_changed(const char *path, const change *c)
{
    struct ggml_context *tensors, *added = ggml_init((struct ggml_init_params){.mem_size = 1 << 18});
    struct gguf_context *g = gguf_init_empty(), *old;
    assert_int_equal(sp_write_file_atomic(path, &(sp_bytes){good, n_good}, 1), SP_OK);
    assert_non_null(old = gguf_init_from_file(path, (struct gguf_init_params){.ctx = &tensors}));
    gguf_set_kv(g, old);
    if (c->key) set_value(g, c);
    for (struct ggml_tensor *t = ggml_get_first_tensor(tensors); t; t = ggml_get_next_tensor(tensors, t))
        if (gguf_find_tensor(old, ggml_get_name(t)) >= 0 && !(c->without && strcmp(ggml_get_name(t), c->without) == 0))
            gguf_add_tensor(g, t);
    if (c->with) add_tensor(g, added, c);
    assert_true(gguf_write_to_file(g, path, false));
    gguf_free(g);
    gguf_free(old);
    ggml_free(tensors);
    ggml_free(added);
}

#define U32(name, value) .key = name, .type = GGUF_TYPE_UINT32, .number = value
#define F32(name, value) .key = name, .type = GGUF_TYPE_FLOAT32, .number = value
#define STRING(name, value) .key = name, .type = GGUF_TYPE_STRING, .text = value
#define TENSOR(name, columns, rows, of) .with = name, .shape = {columns, rows}, .tensor_type = GGML_TYPE_##of

static const struct {
    change change;
    sp_status status;
    const char *words;
} refused[] = {
    {{STRING("general.architecture", "bert")},
     SP_ERR_UNSUPPORTED,
     "architecture \"bert\" is not supported; this version runs: llama, qwen2, qwen3, "},
    {{U32("llama.block_count", 0)}, SP_ERR_FORMAT, "llama.block_count is 0, not in 1 .. "},
    {{U32("llama.block_count", 1)}, SP_ERR_UNSUPPORTED, "tensor blk.1.attn_norm.weight is no part"},
    {{U32("llama.block_count", 3)}, SP_ERR_FORMAT, "tensor blk.2.attn_norm.weight is missing"},
    {{U32("llama.block_count", 9999)}, SP_ERR_FORMAT, "9999 layers, but only 20 tensors"},
    {{U32("llama.block_count", 4294967295.0)}, SP_ERR_FORMAT, "llama.block_count is 4294967295, not in 1 .. "},
    {{U32("llama.embedding_length", 64)}, SP_ERR_FORMAT, "tensor token_embd.weight has shape (261, 32); (261, 64) was expected"},
    {{U32("llama.embedding_length", 4294967295.0)}, SP_ERR_FORMAT, "llama.embedding_length is 4294967295, not in"},
    {{U32("llama.feed_forward_length", 47)}, SP_ERR_FORMAT, "tensor blk.0.ffn_gate.weight has shape (48, 32); (47, 32) was"},
    {{U32("llama.feed_forward_length", 4294967295.0)}, SP_ERR_FORMAT, "llama.feed_forward_length is 4294967295, not in"},
    {{U32("llama.context_length", 0)}, SP_ERR_FORMAT, "llama.context_length is 0, not in 1 .. "},
    {{U32("llama.attention.head_count", 0)}, SP_ERR_FORMAT, "llama.attention.head_count is 0, not in 1 .. "},
    {{U32("llama.attention.head_count", 3)}, SP_ERR_FORMAT, "3 heads cannot share 2 key heads evenly"},
    {{U32("llama.attention.head_count", 64)}, SP_ERR_FORMAT, "RoPE over 1 dimensions"},
    {{U32("llama.attention.head_count_kv", 3)}, SP_ERR_FORMAT, "4 heads cannot share 3 key heads evenly"},
    {{U32("llama.attention.head_count_kv", 4)}, SP_ERR_FORMAT, "tensor blk.0.attn_k.weight has shape (16, 32); (32, 32) was"},
    {{U32("llama.attention.key_length", 7)}, SP_ERR_FORMAT, "RoPE over 7 dimensions"},
    {{U32("llama.attention.value_length", 4)}, SP_ERR_UNSUPPORTED, "values of 4 dimensions beside keys of 8"},
    {{U32("llama.rope.dimension_count", 3)}, SP_ERR_FORMAT, "RoPE over 3 dimensions"},
    {{U32("llama.rope.dimension_count", 16)}, SP_ERR_FORMAT, "llama.rope.dimension_count is 16, not in 1 .. 8"},
    {{U32("llama.expert_count", 8)}, SP_ERR_UNSUPPORTED, "a mixture of 8 experts"},
    {{F32("llama.final_logit_softcapping", -30)}, SP_ERR_FORMAT, "llama.final_logit_softcapping is -30; a finite number >= 0"},
    {{F32("llama.attn_logit_softcapping", NAN)}, SP_ERR_FORMAT, "llama.attn_logit_softcapping: nan"},
    {{F32("llama.attention.scale", INFINITY)}, SP_ERR_FORMAT, "llama.attention.scale: inf"},
    {{F32("llama.attention.layer_norm_rms_epsilon", -1)}, SP_ERR_FORMAT, "layer_norm_rms_epsilon is -1"},
    {{F32("llama.attention.layer_norm_rms_epsilon", NAN)}, SP_ERR_FORMAT, "layer_norm_rms_epsilon: nan"},
    {{F32("llama.rope.freq_base", 0)}, SP_ERR_FORMAT, "with base 0"},
    {{STRING("llama.rope.scaling.type", "longrope")}, SP_ERR_UNSUPPORTED, "llama.rope.scaling.type \"longrope\" is not supported"},
    {{F32("llama.rope.scaling.factor", 0)}, SP_ERR_FORMAT, "a RoPE scaling factor of 0"},
    {{STRING("tokenizer.ggml.model", "plamo2")}, SP_ERR_UNSUPPORTED, "tokenizer \"plamo2\""},
    {{STRING("tokenizer.ggml.pre", "nobody")}, SP_ERR_UNSUPPORTED, "\"nobody\""},
    {{U32("tokenizer.ggml.eos_token_id", TINY_VOCAB)}, SP_ERR_FORMAT, "EOS is token 261, but the vocabulary ends at 260"},
    {{.without = "output_norm.weight"}, SP_ERR_FORMAT, "tensor output_norm.weight is missing"},
    {{.without = "blk.1.ffn_down.weight"}, SP_ERR_FORMAT, "tensor blk.1.ffn_down.weight is missing"},
    {{TENSOR("blk.0.ffn_up.bias", TINY_FFN, 1, F32)}, SP_ERR_UNSUPPORTED, "tensor blk.0.ffn_up.bias is no part"},
    {{TENSOR("output.weight", TINY_D, TINY_VOCAB - 1, F32)},
     SP_ERR_FORMAT,
     "tensor output.weight has shape (260, 32); (261, 32) was"},
    {{TENSOR("rope_freqs.weight", 4, 1, F32)}, SP_ERR_FORMAT, "tensor rope_freqs.weight: value 0 is not above 0"},
    {{TENSOR("rope_freqs.weight", 5, 1, F32)}, SP_ERR_FORMAT, "tensor rope_freqs.weight: 4 values of f32 were expected"},
    {{.without = "blk.0.ffn_down.weight", TENSOR("blk.0.ffn_down.weight", TINY_D, TINY_FFN, F32)},
     SP_ERR_FORMAT,
     "tensor blk.0.ffn_down.weight has shape (48, 32); (32, 48) was"},
    {{.without = "blk.0.attn_q.weight", TENSOR("blk.0.attn_q.weight", TINY_D, TINY_D, I32)},
     SP_ERR_UNSUPPORTED,
     "tensor blk.0.attn_q.weight has type i32, which cannot be expanded"},
};

static void other_models_are_refused_by_name(void **state)
{
    char *dir = make_directory(), *path = sp_path_join(dir, "model.gguf");
    sp_model *model;
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        write_changed(path, &refused[i].change);
        assert_fails(sp_model_load(&model, path, &one_thread), refused[i].status, refused[i].words);
        assert_null(model);
    }
    free(path);
    remove_directory(dir);
}

static void a_context_of_one_token(void **state)
{
    static const change one = {U32("llama.context_length", 1)};
    static const int32_t token = 72;
    char *dir = make_directory(), *path = sp_path_join(dir, "model.gguf");
    sp_model *model;
    sp_session *session;
    sp_generation generation;
    (void)state;
    write_changed(path, &one);
    assert_int_equal(sp_model_load(&model, path, &one_thread), SP_OK);
    assert_int_equal(sp_session_create(&session, model, NULL), SP_OK);
    assert_int_equal(sp_session_append(session, &token, 1, NULL), SP_OK);
    assert_fails(sp_session_append(session, &token, 1, NULL), SP_ERR_ARGUMENT, "room for 0");
    assert_int_equal(sp_generate(&generation, session, NULL, 0, NULL, NULL, NULL), SP_OK); /* the token that needs no room */
    assert_int_equal(generation.n_tokens, 1);
    sp_generation_clear(&generation);
    sp_session_free(session);
    sp_model_free(model);
    free(path);
    remove_directory(dir);
}

static void weights_that_are_no_numbers(void **state)
{
    static const int32_t tokens[] = {72, 101};
    static const float nan_value = NAN;
    static const sp_verbalizer verbalizers[] = {{"a", " a"}, {"b", " b"}};
    static const sp_task task = {.verbalizers = verbalizers, .n_verbalizers = 2};
    const sp_example example = {tokens, 2, 1, 0};
    sp_classification found;
    double loss;
    char *bytes = copy_good();
    sp_model *model;
    sp_session *session;
    (void)state;
    memcpy(bytes + n_good - sizeof nan_value, &nan_value, sizeof nan_value); /* the last of output_norm */
    assert_int_equal(load_bytes(&model, bytes, n_good), SP_OK);
    assert_int_equal(sp_session_create(&session, model, NULL), SP_OK);
    assert_fails(sp_session_append(session, tokens, 2, NULL), SP_ERR_FORMAT, "the logit of token 0 is nan");
    assert_int_equal(sp_session_n_tokens(session), 0);
    assert_fails(sp_loss(&loss, NULL, model, NULL, &example, 1), SP_ERR_FORMAT, "a token's loss is nan");
    assert_fails(sp_classify(&found, model, NULL, &task, "text"), SP_ERR_FORMAT, "a token's loss is nan");
    sp_session_free(session);
    sp_model_free(model);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_good_file_runs),
        cmocka_unit_test(every_truncation_fails),
        cmocka_unit_test(every_flipped_byte_of_the_header),
        cmocka_unit_test(every_byte_of_the_header_at_its_largest),
        cmocka_unit_test(other_models_are_refused_by_name),
        cmocka_unit_test(a_context_of_one_token),
        cmocka_unit_test(weights_that_are_no_numbers),
    };
    return cmocka_run_group_tests(tests, make_good, free_good);
}
