/* test_prompt.c: soft prompts and their directories, against a model of 24 tokens that lives in this file: its functions stand in
 * for the model's and the tokenizer's, so that every embedding is known. oracle/adapter.py holds the directories against PEFT. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "base/file.h"
#include "base/status.h"
#include "files.h"
#include "format/safetensors.h"
#include "prompt/internal.h"
#include "prompt/task.h"
#include "text/tokenizer.h"

/* ---- the stand-ins --------------------------------------------------------------------------------------------- */

enum { D_MODEL = 4, N_SPECIAL = 4, N_TOKENS = 20, N_VOCAB = 24 /* four rows of padding */, N_CONTEXT = 64, BOS = 1 };
enum { N_LAYER = 3, N_HEAD_KV = 2, D_HEAD = 2, KV_WIDTH = 2 * N_LAYER * N_HEAD_KV * D_HEAD };

struct sp_tokenizer {
    int32_t bos;
};

struct sp_model {
    sp_tokenizer tokenizer;
    size_t d_model;
    const char *name;
    sp_fingerprint fingerprint;
};

static sp_model tiny = {{BOS}, D_MODEL, "tiny", {0x0123456789abcdef, 0xfedcba9876543210, 3, D_MODEL, 6, 2, N_VOCAB}};

static float embedding(int32_t token, size_t column)
{
    return (float)token + (float)column / 8;
}

const char *sp_version(void)
{
    return "0.0";
}
size_t sp_model_d_model(const sp_model *model)
{
    return model->d_model;
}
size_t sp_model_n_vocab(const sp_model *model)
{
    return (void)model, N_VOCAB;
}
const sp_tokenizer *sp_model_tokenizer(const sp_model *model)
{
    return &model->tokenizer;
}
sp_fingerprint sp_model_fingerprint(const sp_model *model)
{
    return model->fingerprint;
}
int32_t sp_tokenizer_bos(const sp_tokenizer *tokenizer)
{
    return tokenizer->bos;
}
size_t sp_tokenizer_n_vocab(const sp_tokenizer *tokenizer)
{
    return (void)tokenizer, N_TOKENS;
}

void sp_model_get_info(sp_model_info *out, const sp_model *model)
{
    *out = (sp_model_info){.name = model->name,
                           .n_layer = N_LAYER,
                           .n_head = 6,
                           .n_head_kv = N_HEAD_KV,
                           .d_head = D_HEAD,
                           .d_model = model->d_model,
                           .context_length = N_CONTEXT};
}

sp_status sp_model_embed(float *out, const sp_model *model, const int32_t *tokens, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= N_VOCAB) return sp_fail(SP_ERR_ARGUMENT, "token %d", tokens[i]);
        for (size_t c = 0; c < model->d_model; c++) out[i * model->d_model + c] = embedding(tokens[i], c);
    }
    return SP_OK;
}

sp_status sp_model_embedding_moments(double *mean, double *deviation, const sp_model *model)
{
    (void)model;
    *mean = 2;
    *deviation = 0.5;
    return SP_OK;
}

size_t sp_model_window(const sp_model *model)
{
    return (void)model, 0;
}

/* In place of compile.c and fast/: nothing here is compiled, tests/test_compile.c has prompts that are. */
static sp_status fail_compiled(void)
{
    fail_msg("a prompt of rows was taken for a compiled one");
    return SP_ERR_UNSUPPORTED;
}
float sp_model_attention_scale(const sp_model *model)
{
    return (void)model, fail_compiled(), 0;
}
sp_status sp_model_check_states(const sp_model *model)
{
    return (void)model, fail_compiled();
}
sp_status sp_prompt_read_states(sp_prompt **out, const sp_adapter *adapter)
{
    return (void)out, (void)adapter, fail_compiled();
}
sp_status sp_prompt_write_states(const sp_prompt *prompt, const char *path)
{
    return (void)prompt, (void)path, fail_compiled();
}
sp_status sp_prompt_get_compiled_info(sp_compiled_info *out, const sp_prompt *prompt)
{
    return (void)out, (void)prompt, fail_compiled();
}
void sp_state_set_release(sp_state_set *set)
{
    if (set) fail_compiled();
}

/* In place of keys.c: each token's row holds the token. */
sp_status sp_keys_values_of_tokens(float *weights, sp_model *model, const int32_t *tokens, size_t n)
{
    (void)model;
    for (size_t i = 0; i < n * KV_WIDTH; i++) weights[i] = (float)tokens[i / KV_WIDTH];
    return SP_OK;
}

sp_status sp_keys_values_of_embeddings(float *weights, sp_model *model, const float *rows, size_t n)
{
    (void)model;
    for (size_t i = 0; i < n * KV_WIDTH; i++) weights[i] = rows[i / KV_WIDTH];
    return SP_OK;
}

sp_status sp_keys_values_of_text(float *weights, sp_model *model, const char *text, size_t n)
{
    (void)model;
    if (strlen(text) < n) return sp_fail(SP_ERR_ARGUMENT, "too short");
    for (size_t i = 0; i < n * KV_WIDTH; i++) weights[i] = (float)text[i / KV_WIDTH];
    return SP_OK;
}

/* In place of network.c, which test_network holds against PEFT: its one matrix is half the rows, and starts as halves. */
struct sp_network {
    sp_network_shape shape;
    sp_network_matrix matrix;
};

sp_status sp_network_create(sp_network **out, const sp_network_shape *shape)
{
    *out = calloc(1, sizeof **out);
    assert_non_null(*out);
    **out = (sp_network){*shape, {.name = "half", .n_rows = shape->n, .n_columns = shape->n_out}};
    return SP_OK;
}
void sp_network_free(sp_network *network)
{
    free(network);
}
size_t sp_network_n_matrices(const sp_network *network)
{
    return network ? 1 : 0;
}
const sp_network_matrix *sp_network_matrices(const sp_network *network)
{
    return &network->matrix;
}
void sp_network_init(float *weights, const sp_network *network, sp_rng *rng)
{
    assert_in_range(sp_rng_below(rng, 10), 0, 9);
    for (size_t i = 0; i < network->shape.n * network->shape.n_out; i++) weights[i] = 0.5f;
}
sp_status sp_network_fit(float *weights, sp_network *network, const float *targets)
{
    for (size_t i = 0; i < network->shape.n * network->shape.n_out; i++) weights[i] = targets[i] / 2;
    return SP_OK;
}
sp_status sp_network_forward(float *rows, sp_network *network, const float *weights)
{
    for (size_t i = 0; i < network->shape.n * network->shape.n_out; i++) rows[i] = 2 * weights[i];
    return SP_OK;
}
sp_status sp_network_backward(float *gradient, sp_network *network, const float *weights, const float *d_rows)
{
    assert_non_null(weights);
    for (size_t i = 0; i < network->shape.n * network->shape.n_out; i++) gradient[i] += 2 * d_rows[i];
    return SP_OK;
}

/* A letter a token: 'a' is the first behind the special ones. */
sp_status sp_tokenize(int32_t **out, size_t *n_out, const sp_tokenizer *tokenizer, const char *text, size_t n_bytes, unsigned flags)
{
    (void)tokenizer;
    assert_int_equal(n_bytes, SIZE_MAX);
    assert_false(flags & SP_TOKENIZE_ADD_BOS);
    *n_out = 0;
    *out = malloc((strlen(text) + 1) * sizeof **out);
    assert_non_null(*out);
    for (; *text; text++)
        if (*text >= 'a') (*out)[(*n_out)++] = *text - 'a' + N_SPECIAL;
    return SP_OK;
}

sp_status sp_detokenize(char **out, size_t *n_bytes, const sp_tokenizer *tokenizer, const int32_t *tokens, size_t n,
                        bool with_special)
{
    (void)tokenizer;
    assert_int_equal(n, 1);
    assert_false(with_special);
    assert_in_range(*tokens, 0, N_TOKENS - 1);
    *n_bytes = *tokens < N_SPECIAL ? 0 : 1;
    *out = strdup(*tokens < N_SPECIAL ? "" : "a");
    return SP_OK;
}

static char *copy_text(const char *text)
{
    return text ? strdup(text) : NULL;
}

sp_status sp_task_copy(sp_task **out, const sp_task *task)
{
    sp_task *copy = calloc(1, sizeof *copy);
    sp_verbalizer *verbalizers = calloc(task->n_verbalizers + 1, sizeof *verbalizers);
    assert_true(copy && verbalizers);
    for (size_t i = 0; i < task->n_verbalizers; i++)
        verbalizers[i] = (sp_verbalizer){copy_text(task->verbalizers[i].label), copy_text(task->verbalizers[i].text)};
    *copy = (sp_task){copy_text(task->template_text), verbalizers, task->n_verbalizers, task->max_length};
    *out = copy;
    return SP_OK;
}

/* One of the checks stands for all; test_task has them. */
sp_status sp_task_check(const sp_task *task)
{
    bool good = !task->template_text || strstr(task->template_text, "{text}");
    return good ? SP_OK : sp_fail(SP_ERR_ARGUMENT, "template \"%s\": {text} is missing", task->template_text);
}

void sp_task_free(sp_task *task)
{
    if (!task) return;
    for (size_t i = 0; i < task->n_verbalizers; i++) {
        free((char *)(uintptr_t)task->verbalizers[i].label);
        free((char *)(uintptr_t)task->verbalizers[i].text);
    }
    free((void *)(uintptr_t)task->verbalizers);
    free((char *)(uintptr_t)task->template_text);
    free(task);
}

/* ---- initialisation --------------------------------------------------------------------------------------------- */

static sp_prompt *create(const sp_prompt_options *options)
{
    sp_prompt *p;
    if (sp_prompt_create(&p, &tiny, options)) fail_msg("%s", sp_message());
    return p;
}

/* The token whose embedding the row is. */
static int32_t token_of(sp_prompt *p, size_t row)
{
    const float *values = sp_prompt_embeddings(p) + row * D_MODEL;
    const int32_t token = (int32_t)values[0];
    for (size_t c = 0; c < D_MODEL; c++) assert_true(values[c] == embedding(token, c));
    return token;
}

static void defaults_are_32_vocabulary_rows(void **state)
{
    sp_prompt *p = create(NULL);
    (void)state;
    assert_int_equal(sp_prompt_num_virtual_tokens(p), 32);
    assert_int_equal(sp_prompt_num_frozen_tokens(p), 0);
    assert_int_equal(sp_prompt_d_model(p), D_MODEL);
    assert_null(sp_prompt_task(p));
    for (size_t r = 0; r < 32; r++) assert_in_range(token_of(p, r), N_SPECIAL, N_TOKENS - 1);
    sp_prompt_free(p);
    sp_prompt_free(NULL);
}

static void vocabulary_rows_are_plain_and_different(void **state)
{
    size_t count[N_VOCAB] = {0};
    sp_prompt *p = create(&(sp_prompt_options){.num_virtual_tokens = N_TOKENS - N_SPECIAL, .seed = 3});
    sp_prompt *same = create(&(sp_prompt_options){.num_virtual_tokens = N_TOKENS - N_SPECIAL, .seed = 3});
    sp_prompt *other = create(&(sp_prompt_options){.num_virtual_tokens = N_TOKENS - N_SPECIAL, .seed = 4});
    const size_t n_bytes = (N_TOKENS - N_SPECIAL) * D_MODEL * sizeof(float);
    (void)state;
    for (size_t r = 0; r < N_TOKENS - N_SPECIAL; r++) count[token_of(p, r)]++;
    for (size_t t = 0; t < N_VOCAB; t++) assert_int_equal(count[t], t >= N_SPECIAL && t < N_TOKENS ? 1 : 0);
    assert_memory_equal(sp_prompt_embeddings(p), sp_prompt_embeddings(same), n_bytes);
    assert_memory_not_equal(sp_prompt_embeddings(p), sp_prompt_embeddings(other), n_bytes);
    sp_prompt_free(p);
    sp_prompt_free(same);
    sp_prompt_free(other);
}

static void random_rows_have_the_vocabularys_moments(void **state)
{
    sp_prompt *p = create(&(sp_prompt_options){.num_virtual_tokens = 60, .init = SP_INIT_RANDOM});
    const size_t n = 60 * D_MODEL;
    double sum = 0, squares = 0;
    (void)state;
    for (size_t i = 0; i < n; i++) sum += sp_prompt_embeddings(p)[i];
    for (size_t i = 0; i < n; i++) squares += pow(sp_prompt_embeddings(p)[i] - sum / n, 2);
    assert_true(fabs(sum / n - 2) < 4 * 0.5 / sqrt(n)); /* four deviations of the estimate */
    assert_true(fabs(sqrt(squares / n) - 0.5) < 4 * 0.5 / sqrt(2.0 * n));
    sp_prompt_free(p);
}

static void text_is_repeated_or_cut(void **state)
{
    sp_prompt *p = create(&(sp_prompt_options){.num_virtual_tokens = 7, .init = SP_INIT_TEXT, .init_text = "abc"});
    (void)state;
    for (size_t r = 0; r < 7; r++) assert_int_equal(token_of(p, r), N_SPECIAL + r % 3);
    sp_prompt_free(p);
    p = create(&(sp_prompt_options){.num_virtual_tokens = 2, .init = SP_INIT_TEXT, .init_text = "fed"});
    assert_int_equal(token_of(p, 0), N_SPECIAL + 5);
    assert_int_equal(token_of(p, 1), N_SPECIAL + 4);
    sp_prompt_free(p);
}

static void a_sink_is_a_frozen_bos(void **state)
{
    sp_prompt *p =
        create(&(sp_prompt_options){.num_virtual_tokens = 3, .init = SP_INIT_TEXT, .init_text = "a", .sink = SP_SINK_BOS});
    (void)state;
    assert_int_equal(sp_prompt_num_virtual_tokens(p), 3);
    assert_int_equal(sp_prompt_num_frozen_tokens(p), 1);
    assert_int_equal(token_of(p, 0), BOS);
    assert_int_equal(token_of(p, 1), N_SPECIAL);
    sp_prompt_free(p);
}

static void options_that_make_no_sense(void **state)
{
    sp_model no_bos = tiny;
    sp_prompt *p = (sp_prompt *)&no_bos;
    (void)state;
    no_bos.tokenizer.bos = -1;
    assert_fails(sp_prompt_create(&p, &tiny, &(sp_prompt_options){.num_virtual_tokens = 1, .sink = SP_SINK_BOS}), SP_ERR_ARGUMENT,
                 "leaves nothing to train");
    assert_null(p);
    assert_fails(sp_prompt_create(&p, &no_bos, &(sp_prompt_options){.sink = SP_SINK_BOS}), SP_ERR_UNSUPPORTED, "no BOS token");
    assert_fails(sp_prompt_create(&p, &tiny, &(sp_prompt_options){.init = SP_INIT_TEXT}), SP_ERR_ARGUMENT, "needs a text");
    assert_fails(sp_prompt_create(&p, &tiny, &(sp_prompt_options){.init = SP_INIT_TEXT, .init_text = "!"}), SP_ERR_ARGUMENT,
                 "gives no token");
    assert_fails(sp_prompt_create(&p, &tiny, &(sp_prompt_options){.num_virtual_tokens = N_CONTEXT}), SP_ERR_ARGUMENT,
                 "context of 64");
    assert_fails(sp_prompt_create(&p, &tiny, &(sp_prompt_options){.num_virtual_tokens = SIZE_MAX}), SP_ERR_ARGUMENT,
                 "context of 64");
    assert_fails(sp_prompt_create(&p, &tiny, &(sp_prompt_options){.init = (sp_init)9}), SP_ERR_ARGUMENT,
                 "unknown initialisation 9");
}

/* ---- directories ------------------------------------------------------------------------------------------------ */

static const sp_verbalizer verbalizers[] = {{"positive", " positive"}, {"négatif", " négatif\n"}};
static const sp_task task = {"Review: {text}\nSentiment:", verbalizers, ARRAY_LEN(verbalizers), 77};

static void write_file(const char *dir, const char *name, const char *text)
{
    char *path = sp_path_join(dir, name);
    assert_int_equal(sp_write_file_atomic(path, &(sp_bytes){text, strlen(text)}, 1), SP_OK);
    free(path);
}

static char *read_file(size_t *n_bytes, const char *dir, const char *name)
{
    char *path = sp_path_join(dir, name), *bytes;
    if (sp_read_file(&bytes, n_bytes, path, 1 << 20)) fail_msg("%s", sp_message());
    free(path);
    return bytes;
}

static void write_tensor(const char *dir, const char *name, sp_dtype type, uint64_t n_rows, uint64_t n_cols, const void *values)
{
    char *path = sp_path_join(dir, "adapter_model.safetensors");
    const sp_st_tensor tensor = {name, type, 2, {n_rows, n_cols}, values, n_rows * n_cols * sp_dtype_bytes(type)};
    assert_int_equal(sp_safetensors_write(path, &tensor, 1, NULL, 0), SP_OK);
    free(path);
}

static sp_prompt *load(const char *dir)
{
    sp_prompt *p;
    if (sp_prompt_load(&p, dir)) fail_msg("%s", sp_message());
    return p;
}

static sp_prompt *create_with_task(void)
{
    sp_prompt *p =
        create(&(sp_prompt_options){.num_virtual_tokens = 5, .sink = SP_SINK_BOS, .init = SP_INIT_TEXT, .init_text = "ab"});
    assert_int_equal(sp_prompt_set_task(p, &task), SP_OK);
    return p;
}

static void keys_and_values_come_back_whole(void **state)
{
    (void)state;
    for (int method = SP_METHOD_PREFIX; method <= SP_METHOD_CARTRIDGE; method++) {
        char *dir = make_directory();
        const size_t n_frozen = method == SP_METHOD_CARTRIDGE ? 2 : 0;
        sp_prompt *p = create(&(sp_prompt_options){.method = (sp_method)method,
                                                   .num_virtual_tokens = 5,
                                                   .num_frozen_tokens = n_frozen,
                                                   .init = SP_INIT_TEXT,
                                                   .init_text = "abcdef"});
        sp_prompt_keys_values(p)[7] = 0x1.234567p-20f;
        assert_int_equal(sp_prompt_save(p, dir), SP_OK);
        sp_prompt *q = load(dir);
        assert_int_equal(sp_prompt_method(q), method);
        assert_int_equal(sp_prompt_num_virtual_tokens(q), 5);
        assert_int_equal(sp_prompt_num_frozen_tokens(q), n_frozen);
        assert_int_equal(sp_prompt_width(q), KV_WIDTH);
        assert_int_equal(sp_prompt_d_model(q), 0);
        assert_null(sp_prompt_embeddings(q));
        assert_memory_equal(sp_prompt_keys_values(q), sp_prompt_keys_values(p), 5 * KV_WIDTH * sizeof(float));
        assert_int_equal(q->init, SP_INIT_TEXT);
        assert_string_equal(q->init_text, "abcdef");
        assert_int_equal(sp_prompt_check(q, &tiny, NULL), SP_OK);
        q->n_layer = N_LAYER * 2; /* as many numbers, otherwise laid out */
        assert_fails(sp_prompt_check(q, &tiny, NULL), SP_ERR_MISMATCH, "trained for another model");
        sp_prompt_free(p);
        sp_prompt_free(q);
        remove_directory(dir);
    }
}

static void a_cartridge_freezes_its_first_token(void **state)
{
    (void)state;
    sp_prompt *p = create(&(sp_prompt_options){.method = SP_METHOD_CARTRIDGE, .num_virtual_tokens = 3});
    assert_int_equal(sp_prompt_num_frozen_tokens(p), 1);
    sp_prompt_free(p);
    p = create(&(sp_prompt_options){.method = SP_METHOD_CARTRIDGE, .num_virtual_tokens = 1, .num_frozen_tokens = SIZE_MAX});
    assert_int_equal(sp_prompt_num_frozen_tokens(p), 0);
    sp_prompt_free(p);
    static const struct {
        sp_prompt_options options;
        const char *message;
    } cases[] = {
        {{.method = SP_METHOD_CARTRIDGE, .num_virtual_tokens = 1}, "leave nothing to train"},
        {{.method = SP_METHOD_CARTRIDGE, .num_virtual_tokens = 4, .num_frozen_tokens = 4}, "leave nothing to train"},
        {{.method = SP_METHOD_PREFIX, .num_frozen_tokens = 1}, "only a cartridge"},
        {{.method = SP_METHOD_PREFIX, .sink = SP_SINK_BOS}, "method prompt only"},
        {{.method = SP_METHOD_PREFIX, .init = SP_INIT_TEXT}, "needs a text"},
        {{.method = SP_METHOD_PREFIX, .num_virtual_tokens = 3, .init = SP_INIT_TEXT, .init_text = "ab"}, "too short"},
        {{.method = SP_METHOD_PREFIX, .init = (sp_init)9}, "unknown initialisation"},
        {{.method = (sp_method)9}, "unknown method"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_fails(sp_prompt_create(&p, &tiny, &cases[i].options), SP_ERR_ARGUMENT, cases[i].message);
        assert_null(p);
    }
}

static void assert_shape(const sp_network_shape *got, const sp_network_shape *want)
{
    assert_int_equal(got->kind, want->kind);
    assert_int_equal(got->n, want->n);
    assert_int_equal(got->n_in, want->n_in);
    assert_int_equal(got->n_hidden, want->n_hidden);
    assert_int_equal(got->n_layers, want->n_layers);
    assert_int_equal(got->n_out, want->n_out);
}

/* Rows are what the network makes, from whichever start; the network's shape is the options', or PEFT's default of the model. */
static void a_network_makes_the_rows(void **state)
{
    (void)state;
    sp_prompt *p = create(
        &(sp_prompt_options){.method = SP_METHOD_PTUNING, .num_virtual_tokens = 3, .init = SP_INIT_TEXT, .init_text = "abc"});
    for (size_t r = 0; r < 3; r++) assert_int_equal(token_of(p, r), N_SPECIAL + r);
    assert_ptr_not_equal(sp_prompt_weights(p), sp_prompt_embeddings(p));
    assert_int_equal(sp_prompt_n_weights(p), 3 * D_MODEL);
    assert_shape(&p->network->shape, &(sp_network_shape){SP_NETWORK_MLP, 3, D_MODEL, D_MODEL, 2, D_MODEL});
    sp_prompt_weights(p)[5] = 8;
    assert_int_equal(sp_prompt_update(p), SP_OK);
    assert_true(sp_prompt_embeddings(p)[5] == 16);
    float d_rows[3 * D_MODEL] = {0, 1}, gradient[3 * D_MODEL];
    assert_int_equal(sp_prompt_backward(gradient, p, d_rows), SP_OK);
    assert_true(gradient[0] == 0 && gradient[1] == 2);
    sp_prompt_free(p);
    p = create(&(sp_prompt_options){.method = SP_METHOD_PTUNING,
                                    .init = SP_INIT_RANDOM,
                                    .encoder_hidden_size = 7,
                                    .encoder_reparameterization_type = SP_ENCODER_LSTM,
                                    .encoder_num_layers = 3});
    for (size_t i = 0; i < sp_prompt_n_weights(p); i++) assert_true(sp_prompt_embeddings(p)[i] == 1);
    assert_shape(&p->network->shape, &(sp_network_shape){SP_NETWORK_LSTM, 32, D_MODEL, 7, 3, D_MODEL});
    sp_prompt_free(p);
    p = create(&(sp_prompt_options){
        .method = SP_METHOD_PREFIX, .prefix_projection = true, .num_virtual_tokens = 2, .init = SP_INIT_TEXT, .init_text = "ab"});
    for (size_t i = 0; i < 2 * KV_WIDTH; i++) assert_true(sp_prompt_keys_values(p)[i] == (i < KV_WIDTH ? 'a' : 'b'));
    assert_shape(&p->network->shape,
                 &(sp_network_shape){SP_NETWORK_PROJECTION, 2, N_HEAD_KV * D_HEAD, N_HEAD_KV * D_HEAD, 2, KV_WIDTH});
    sp_prompt_free(p);
    static const struct {
        sp_prompt_options options;
        const char *message;
    } cases[] = {
        {{.prefix_projection = true}, "method prefix only"},
        {{.method = SP_METHOD_CARTRIDGE, .prefix_projection = true}, "method prefix only"},
        {{.encoder_hidden_size = 8}, "method ptuning, and with prefix_projection"},
        {{.method = SP_METHOD_PREFIX, .encoder_reparameterization_type = SP_ENCODER_LSTM}, "method ptuning only"},
        {{.method = SP_METHOD_PTUNING, .encoder_num_layers = 3}, "is of an LSTM"},
        {{.method = SP_METHOD_PTUNING, .encoder_reparameterization_type = (sp_encoder_type)9}, "type 9"},
        {{.method = SP_METHOD_PTUNING, .sink = SP_SINK_BOS}, "method prompt only"},
        {{.method = SP_METHOD_PTUNING, .init = SP_INIT_TEXT}, "needs a text"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_fails(sp_prompt_create(&p, &tiny, &cases[i].options), SP_ERR_ARGUMENT, cases[i].message);
        assert_null(p);
    }
}

/* An adapter holds the rows; its configuration tells of the network that made them, again and again. */
static void a_network_is_not_saved(void **state)
{
    (void)state;
    static const sp_prompt_options options[] = {
        {.method = SP_METHOD_PTUNING, .num_virtual_tokens = 3, .encoder_hidden_size = 9},
        {.method = SP_METHOD_PTUNING,
         .num_virtual_tokens = 3,
         .encoder_reparameterization_type = SP_ENCODER_LSTM,
         .encoder_num_layers = 3,
         .init = SP_INIT_RANDOM},
        {.method = SP_METHOD_PREFIX, .num_virtual_tokens = 3, .prefix_projection = true, .encoder_hidden_size = 9},
    };
    static const char *const told[][3] = {
        {"\"encoder_reparameterization_type\": \"MLP\"", "\"encoder_hidden_size\": 9", "\"encoder_num_layers\": 2"},
        {"\"encoder_reparameterization_type\": \"LSTM\"", "\"encoder_hidden_size\": 4", "\"encoder_num_layers\": 3"},
        {"\"prefix_projection\": true", "\"encoder_hidden_size\": 9", "\"token_dim\": 4"},
    };
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        char *dir = make_directory(), *again = make_directory();
        sp_prompt *p = create(&options[i]);
        assert_int_equal(sp_prompt_save(p, dir), SP_OK);
        sp_prompt *q = load(dir);
        assert_int_equal(sp_prompt_method(q), options[i].method);
        assert_int_equal(q->init, options[i].init);
        assert_ptr_equal(sp_prompt_weights(q), q->rows);
        assert_memory_equal(q->rows, p->rows, 3 * sp_prompt_width(p) * sizeof(float));
        assert_int_equal(sp_prompt_check(q, &tiny, NULL), SP_OK);
        assert_int_equal(sp_prompt_save(q, again), SP_OK);
        size_t n_bytes;
        char *config = read_file(&n_bytes, dir, "adapter_config.json"),
             *config_again = read_file(&n_bytes, again, "adapter_config.json");
        assert_string_equal(config, config_again);
        for (size_t k = 0; k < 3; k++)
            if (!strstr(config, told[i][k])) fail_msg("%s is not in %s", told[i][k], config);
        free(config);
        free(config_again);
        sp_prompt_free(p);
        sp_prompt_free(q);
        remove_directory(dir);
        remove_directory(again);
    }
}

static void a_prompt_comes_back_whole(void **state)
{
    char *dir = make_directory();
    sp_prompt *p = create_with_task();
    (void)state;
    sp_prompt_embeddings(p)[7] = 0x1.234567p-20f;
    assert_int_equal(sp_prompt_save(p, dir), SP_OK);
    sp_prompt *q = load(dir);
    assert_int_equal(sp_prompt_num_virtual_tokens(q), 5);
    assert_int_equal(sp_prompt_num_frozen_tokens(q), 1);
    assert_int_equal(sp_prompt_d_model(q), D_MODEL);
    assert_memory_equal(sp_prompt_embeddings(q), sp_prompt_embeddings(p), 5 * D_MODEL * sizeof(float));
    const sp_task *t = sp_prompt_task(q);
    assert_string_equal(t->template_text, task.template_text);
    assert_int_equal(t->n_verbalizers, 2);
    assert_string_equal(t->verbalizers[1].label, "négatif");
    assert_string_equal(t->verbalizers[1].text, " négatif\n");
    assert_int_equal(t->max_length, 77);
    sp_prompt_free(p);
    sp_prompt_free(q);
    remove_directory(dir);
}

static void the_configuration_is_pefts(void **state)
{
    /* What PEFT 0.21.2 writes for PromptTuningConfig, but for the values. */
    static const char expected[] =
        "{\n  \"auto_mapping\": null,\n  \"base_model_name_or_path\": \"tiny\",\n  \"inference_mode\": true,\n"
        "  \"modules_to_save\": null,\n  \"num_attention_heads\": 6,\n  \"num_layers\": 3,\n"
        "  \"num_transformer_submodules\": 1,\n  \"num_virtual_tokens\": 5,\n"
        "  \"peft_type\": \"PROMPT_TUNING\",\n  \"peft_version\": \"0.21.2\",\n"
        "  \"prompt_tuning_init\": \"TEXT\",\n  \"prompt_tuning_init_text\": \"ab\",\n  \"revision\": null,\n"
        "  \"task_type\": \"CAUSAL_LM\",\n  \"token_dim\": 4,\n  \"tokenizer_kwargs\": null,\n"
        "  \"tokenizer_name_or_path\": \"tiny\"\n}";
    char *dir = make_directory();
    sp_prompt *p = create_with_task();
    size_t n_bytes;
    (void)state;
    assert_int_equal(sp_prompt_save(p, dir), SP_OK);
    char *config = read_file(&n_bytes, dir, "adapter_config.json");
    assert_string_equal(config, expected);
    free(config);
    sp_prompt_free(p);
    remove_directory(dir);
}

static const char *const file_names[] = {"adapter_config.json", "adapter_model.safetensors", "softprompt.json"};

static void equal_prompts_give_equal_bytes(void **state)
{
    char *dirs[2] = {make_directory(), make_directory()};
    sp_prompt *p = create_with_task(), *q;
    (void)state;
    assert_int_equal(sp_prompt_save(p, dirs[0]), SP_OK);
    q = load(dirs[0]);
    assert_int_equal(sp_prompt_save(q, dirs[1]), SP_OK);
    assert_int_equal(sp_prompt_save(q, dirs[1]), SP_OK); /* over itself */
    for (size_t i = 0; i < ARRAY_LEN(file_names); i++) {
        size_t n[2];
        char *a = read_file(&n[0], dirs[0], file_names[i]), *b = read_file(&n[1], dirs[1], file_names[i]);
        assert_int_equal(n[0], n[1]);
        assert_memory_equal(a, b, n[0]);
        free(a);
        free(b);
    }
    sp_prompt_free(p);
    sp_prompt_free(q);
    remove_directory(dirs[0]);
    remove_directory(dirs[1]);
}

static void adapters_of_pefts_own(void **state)
{
    static const char *const configs[] = {
        "{\"peft_type\":\"PROMPT_TUNING\"}",
        "{\"peft_type\":\"PROMPT_TUNING\",\"num_virtual_tokens\":2,\"num_layers\":null,\"prompt_tuning_init\":\"TEXT\"}",
        "{\"peft_type\":\"P_TUNING\",\"num_virtual_tokens\":2,\"token_dim\":3,\"encoder_hidden_size\":16}",
    };
    static const uint16_t f16[] = {0x3c00, 0xc000, 0, 0x3800, 0, 0}, bf16[] = {0x3f80, 0xc000, 0, 0x3f00, 0, 0};
    static const float f32[] = {1, -2, 0, 0.5f, 0, 0};
    static const struct {
        sp_dtype type;
        const void *values;
    } tensors[] = {{SP_F32, f32}, {SP_F16, f16}, {SP_BF16, bf16}};
    char *dir = make_directory();
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(configs) * ARRAY_LEN(tensors); i++) {
        write_file(dir, "adapter_config.json", configs[i / ARRAY_LEN(tensors)]);
        write_tensor(dir, "prompt_embeddings", tensors[i % ARRAY_LEN(tensors)].type, 2, 3, tensors[i % ARRAY_LEN(tensors)].values);
        sp_prompt *p = load(dir);
        assert_int_equal(sp_prompt_num_virtual_tokens(p), 2);
        assert_int_equal(sp_prompt_d_model(p), 3);
        assert_int_equal(sp_prompt_num_frozen_tokens(p), 0);
        assert_null(sp_prompt_task(p));
        assert_memory_equal(sp_prompt_embeddings(p), f32, sizeof f32);
        sp_prompt_free(p);
    }
    remove_directory(dir);
}

/* ---- what cannot be loaded --------------------------------------------------------------------------------------- */

static const char good_config[] = "{\"peft_type\":\"PROMPT_TUNING\",\"num_virtual_tokens\":2,\"token_dim\":3}";
static const float good_values[6] = {1, 2, 3, 4, 5, 6};

static void configurations_that_are_refused(void **state)
{
    static const struct {
        const char *config;
        sp_status status;
        const char *message;
    } cases[] = {
        {"{\n  \"peft_type\" \"PROMPT_TUNING\"}", SP_ERR_FORMAT, "adapter_config.json:2:29: bad JSON"},
        {"", SP_ERR_FORMAT, "adapter_config.json:1:0: bad JSON"},
        {"[1]", SP_ERR_FORMAT, "not a JSON object"},
        {"{\"r\":8}", SP_ERR_FORMAT, "\"peft_type\" is missing"},
        {"{\"peft_type\":null}", SP_ERR_FORMAT, "\"peft_type\" is missing"},
        {"{\"peft_type\":7}", SP_ERR_FORMAT, "\"peft_type\" is an integer, not a string"},
        {"{\"peft_type\":\"LORA\"}", SP_ERR_UNSUPPORTED, "peft_type LORA is not run by this version; it runs PROMPT_TUNING"},
        {"{\"peft_type\":\"ADAPTION_PROMPT\"}", SP_ERR_UNSUPPORTED, "peft_type ADAPTION_PROMPT is not run"},
        {"{\"peft_type\":\"PROMPT_TUNING\",\"num_transformer_submodules\":2}", SP_ERR_UNSUPPORTED, "encoder and decoder"},
        {"{\"peft_type\":\"PROMPT_TUNING\",\"num_virtual_tokens\":3}", SP_ERR_FORMAT,
         "has 2 where \"num_virtual_tokens\" in adapter_config.json says 3"},
        {"{\"peft_type\":\"PROMPT_TUNING\",\"token_dim\":4}", SP_ERR_FORMAT, "has 3 where \"token_dim\""},
        {"{\"peft_type\":\"PREFIX_TUNING\",\"num_layers\":2}", SP_ERR_FORMAT, "no keys and values of the 2 layers"},
        {"{\"peft_type\":\"PREFIX_TUNING\",\"num_layers\":9223372036854775807}", SP_ERR_FORMAT, "no keys and values of the 9223"},
        {"{\"peft_type\":\"CARTRIDGE\",\"num_frozen_tokens\":3}", SP_ERR_FORMAT, "\"num_frozen_tokens\" is 3 of 2"},
        {"{\"peft_type\":\"PROMPT_TUNING\",\"token_dim\":-4}", SP_ERR_FORMAT, "\"token_dim\" is -4"},
        {"{\"peft_type\":\"PROMPT_TUNING\",\"token_dim\":\"4\"}", SP_ERR_FORMAT, "\"token_dim\" is a string, not an integer"},
    };
    char *dir = make_directory();
    (void)state;
    write_tensor(dir, "prompt_embeddings", SP_F32, 2, 3, good_values);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        sp_prompt *p;
        write_file(dir, "adapter_config.json", cases[i].config);
        assert_fails(sp_prompt_load(&p, dir), cases[i].status, cases[i].message);
        assert_null(p);
    }
    remove_directory(dir);
}

static void tensors_that_are_refused(void **state)
{
    static const float infinite[] = {1, 2, 3, 4, INFINITY, 6}, undefined[] = {NAN, 2, 3, 4, 5, 6};
    static const int32_t integers[6] = {0};
    char *dir = make_directory();
    sp_prompt *p;
    (void)state;
    write_file(dir, "adapter_config.json", good_config);
    assert_fails(sp_prompt_load(&p, dir), SP_ERR_FORMAT, "adapter_model.safetensors is missing");
    write_file(dir, "adapter_model.bin", "");
    assert_fails(sp_prompt_load(&p, dir), SP_ERR_UNSUPPORTED, "pickle");
    write_tensor(dir, "weights", SP_F32, 2, 3, good_values);
    assert_fails(sp_prompt_load(&p, dir), SP_ERR_FORMAT, "no tensor prompt_embeddings (of 1)");
    write_tensor(dir, "prompt_embeddings", SP_F32, 2, 3, infinite);
    assert_fails(sp_prompt_load(&p, dir), SP_ERR_FORMAT, "row 1, column 1 is inf");
    write_tensor(dir, "prompt_embeddings", SP_F32, 2, 3, undefined);
    assert_fails(sp_prompt_load(&p, dir), SP_ERR_FORMAT, "row 0, column 0 is nan");
    write_tensor(dir, "prompt_embeddings", SP_I32, 2, 3, integers);
    assert_fails(sp_prompt_load(&p, dir), SP_ERR_FORMAT, "I32 where floating-point numbers belong");
    write_tensor(dir, "prompt_embeddings", SP_F32, 0, 3, good_values);
    assert_fails(sp_prompt_load(&p, dir), SP_ERR_FORMAT, "not a matrix with a row for each virtual token");
    write_file(dir, "adapter_model.safetensors", "garbage that is long enough");
    assert_fails(sp_prompt_load(&p, dir), SP_ERR_FORMAT, "not a safetensors file");
    remove_directory(dir);
}

static void places_that_are_no_adapter(void **state)
{
    char *dir = make_directory();
    sp_prompt *p;
    (void)state;
    assert_fails(sp_prompt_load(&p, "/no/such/place"), SP_ERR_IO, "/no/such/place: no such directory");
    assert_fails(sp_prompt_load(&p, "/proc/version"), SP_ERR_FORMAT, "/proc/version: a file; an adapter is a directory");
    assert_fails(sp_prompt_load(&p, dir), SP_ERR_FORMAT, "no adapter: it has no adapter_config.json");
    write_file(dir, "config.json", "{}");
    assert_fails(sp_prompt_load(&p, dir), SP_ERR_FORMAT, "a Hugging Face model");
    remove_directory(dir);
}

static void damaged_softprompt_json(void **state)
{
    static const struct {
        const char *text;
        sp_status status;
        const char *message;
    } cases[] = {
        {"{\"format_version\":1", SP_ERR_FORMAT, "softprompt.json:1:19: bad JSON"},
        {"{}", SP_ERR_FORMAT, "\"format_version\" is missing"},
        {"{\"format_version\":2}", SP_ERR_UNSUPPORTED, "format version 2, this program reads up to 1"},
        {"{\"format_version\":1,\"method\":{\"num_frozen_tokens\":3}}", SP_ERR_FORMAT, "\"num_frozen_tokens\" is 3 of 2"},
        {"{\"format_version\":1,\"method\":[]}", SP_ERR_FORMAT, "\"method\" is an array, not an object"},
        {"{\"format_version\":1,\"task\":{\"template\":3}}", SP_ERR_FORMAT, "\"template\" is an integer"},
        {"{\"format_version\":1,\"task\":{\"template\":\"x\"}}", SP_ERR_FORMAT,
         "softprompt.json: template \"x\": {text} is missing"},
        {"{\"format_version\":1,\"task\":{\"verbalizers\":{}}}", SP_ERR_FORMAT, "\"verbalizers\" is no array"},
        {"{\"format_version\":1,\"task\":{\"verbalizers\":[7]}}", SP_ERR_FORMAT, "something else than objects"},
        {"{\"format_version\":1,\"task\":{\"verbalizers\":[{\"label\":\"a\"}]}}", SP_ERR_FORMAT, "lacks \"label\" or \"text\""},
        {"{\"format_version\":1,\"fingerprint\":{\"tokenizer\":\"12\"}}", SP_ERR_FORMAT, "\"tokenizer\" is not a hash"},
        {"{\"format_version\":1,\"fingerprint\":{}}", SP_ERR_FORMAT, "\"tokenizer\" is not a hash"},
        {"{\"format_version\":1,\"task\":null,\"fingerprint\":null}", SP_OK, ""},
    };
    char *dir = make_directory();
    (void)state;
    write_file(dir, "adapter_config.json", good_config);
    write_tensor(dir, "prompt_embeddings", SP_F32, 2, 3, good_values);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        sp_prompt *p = NULL;
        write_file(dir, "softprompt.json", cases[i].text);
        if (cases[i].status)
            assert_fails(sp_prompt_load(&p, dir), cases[i].status, cases[i].message);
        else
            p = load(dir);
        sp_prompt_free(p);
    }
    remove_directory(dir);
}

/* Not atomically: thousands of synced files take long. */
static void overwrite(const char *path, const char *bytes, size_t n_bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
}

static bool loads_or_explains(const char *dir)
{
    sp_prompt *p;
    if (!sp_prompt_load(&p, dir)) {
        sp_prompt_free(p);
        return true;
    }
    assert_non_null(strstr(sp_message(), dir));
    assert_null(strpbrk(sp_message(), "\r\n"));
    return false;
}

static void every_truncation_and_every_byte(void **state)
{
    char *dir = make_directory();
    sp_prompt *p = create_with_task();
    size_t n_refused = 0;
    (void)state;
    assert_int_equal(sp_prompt_save(p, dir), SP_OK);
    for (size_t f = 0; f < ARRAY_LEN(file_names); f++) {
        size_t n;
        char *path = sp_path_join(dir, file_names[f]), *bytes = read_file(&n, dir, file_names[f]);
        for (size_t i = 0; i < n; i++) {
            overwrite(path, bytes, i);
            n_refused += !loads_or_explains(dir);
            bytes[i] ^= 0x15;
            overwrite(path, bytes, n);
            n_refused += !loads_or_explains(dir);
            bytes[i] ^= 0x15;
        }
        overwrite(path, bytes, n);
        assert_true(loads_or_explains(dir));
        free(bytes);
        free(path);
    }
    assert_true(n_refused > 1000);
    sp_prompt_free(p);
    remove_directory(dir);
}

static void what_cannot_be_saved(void **state)
{
    static const sp_verbalizer latin1[] = {{"positive", " tr\xe8s bon"}};
    char *dir = make_directory();
    sp_prompt *p = create_with_task();
    (void)state;
    assert_int_equal(sp_prompt_save(p, dir), SP_OK);
    sp_prompt_embeddings(p)[9] = NAN;
    assert_fails(sp_prompt_save(p, dir), SP_ERR_ARGUMENT, "not saved: virtual token 2 holds nan");
    sp_prompt_free(load(dir)); /* the good one is still there */
    assert_fails(sp_prompt_set_task(p, &(sp_task){.verbalizers = latin1, .n_verbalizers = 1}), SP_ERR_ARGUMENT,
                 "byte 3 is not UTF-8");
    assert_string_equal(sp_prompt_task(p)->template_text, task.template_text);
    sp_prompt_embeddings(p)[9] = 0;
    assert_fails(sp_prompt_save(p, "/proc/no/such"), SP_ERR_IO, "/proc/no");
    sp_prompt_free(p);
    remove_directory(dir);
}

/* ---- does it belong to the model --------------------------------------------------------------------------------- */

static char last_warning[512];
static size_t n_warnings;

static void keep_warning(void *user, sp_log_level level, const char *line)
{
    (void)user;
    assert_int_equal(level, SP_LOG_WARNING);
    snprintf(last_warning, sizeof last_warning, "%s", line);
    n_warnings++;
}

static void another_model_is_noticed(void **state)
{
    const sp_logger logger = {keep_warning, NULL};
    sp_model other = tiny;
    char *dir = make_directory();
    sp_prompt *p = create_with_task();
    (void)state;
    assert_int_equal(sp_prompt_save(p, dir), SP_OK);
    sp_prompt_free(p);
    p = load(dir);
    other.name = "another name";
    assert_int_equal(sp_prompt_check(p, &other, &logger), SP_OK);
    assert_int_equal(n_warnings, 0); /* names are no evidence */
    other.fingerprint.tokenizer++;
    assert_int_equal(sp_prompt_check(p, &other, &logger), SP_OK);
    assert_int_equal(n_warnings, 1);
    assert_non_null(strstr(last_warning, "other tokenizer"));
    assert_int_equal(sp_prompt_check(p, &other, NULL), SP_OK);
    other.fingerprint = tiny.fingerprint;
    other.fingerprint.embeddings ^= UINT64_C(1) << 63;
    assert_int_equal(sp_prompt_check(p, &other, &logger), SP_OK);
    assert_non_null(strstr(last_warning, "other embeddings"));
    other.fingerprint = tiny.fingerprint;
    other.fingerprint.n_head_kv++;
    assert_int_equal(sp_prompt_check(p, &other, &logger), SP_OK);
    assert_non_null(strstr(last_warning, "other layers or heads"));
    assert_int_equal(n_warnings, 3);
    other.d_model = 8;
    assert_fails(sp_prompt_check(p, &other, &logger), SP_ERR_MISMATCH, "vectors have 4 numbers, the model's embeddings 8");
    sp_prompt_free(p);
    write_file(dir, "softprompt.json", "{\"format_version\":1}");
    p = load(dir);
    assert_int_equal(sp_prompt_check(p, &tiny, &logger), SP_OK);
    assert_int_equal(n_warnings, 3); /* no fingerprint, no warning */
    sp_prompt_free(p);
    remove_directory(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_32_vocabulary_rows),
        cmocka_unit_test(vocabulary_rows_are_plain_and_different),
        cmocka_unit_test(random_rows_have_the_vocabularys_moments),
        cmocka_unit_test(text_is_repeated_or_cut),
        cmocka_unit_test(a_sink_is_a_frozen_bos),
        cmocka_unit_test(options_that_make_no_sense),
        cmocka_unit_test(a_prompt_comes_back_whole),
        cmocka_unit_test(keys_and_values_come_back_whole),
        cmocka_unit_test(a_cartridge_freezes_its_first_token),
        cmocka_unit_test(a_network_makes_the_rows),
        cmocka_unit_test(a_network_is_not_saved),
        cmocka_unit_test(the_configuration_is_pefts),
        cmocka_unit_test(equal_prompts_give_equal_bytes),
        cmocka_unit_test(adapters_of_pefts_own),
        cmocka_unit_test(configurations_that_are_refused),
        cmocka_unit_test(tensors_that_are_refused),
        cmocka_unit_test(places_that_are_no_adapter),
        cmocka_unit_test(damaged_softprompt_json),
        cmocka_unit_test(every_truncation_and_every_byte),
        cmocka_unit_test(what_cannot_be_saved),
        cmocka_unit_test(another_model_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
