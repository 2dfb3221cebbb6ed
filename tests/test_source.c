/* test_source.c: Hugging Face directories in GGUF's words: what is read, under which name, and what is refused and says so. Whole
 * models against transformers: oracle/hf_directories.py. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "base/buffer.h"
#include "base/file.h"
#include "files.h"
#include "format/json.h"
#include "format/safetensors.h"
#include "format/source.h"

enum { D = 8, D_FFN = 12, D_HEAD = 4, VOCAB = 11, MAX_TENSORS = 64 };

/* ---- directories ------------------------------------------------------------------------------------------------ */

/* Two layers of d_model 8, two heads of 4, one of keys. */
static const char llama_config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":8,\"intermediate_size\":12,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":2,\"num_key_value_heads\":1,\"max_position_embeddings\":64,"
    "\"rms_norm_eps\":1e-5,\"vocab_size\":11,\"rope_theta\":10000.0,\"torch_dtype\":\"float32\"}";

typedef struct tensor_set {
    sp_st_tensor tensors[MAX_TENSORS];
    size_t n;
} tensor_set;

/* Numbers 0.5, 1.5, 2.5, ...: exact in every type. */
static void add_tensor(tensor_set *set, const char *name, sp_dtype type, size_t n_dims, size_t rows, size_t columns)
{
    static float numbers[1024];
    sp_st_tensor *t = &set->tensors[set->n++];
    assert_true(set->n <= MAX_TENSORS && rows * columns <= ARRAY_LEN(numbers));
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) numbers[i] = 0.5f + (float)i;
    *t = (sp_st_tensor){.name = strdup(name), .type = type, .n_dims = n_dims, .data = numbers};
    t->shape[0] = rows;
    t->shape[n_dims == 2] = n_dims == 2 ? columns : rows;
    t->n_bytes = rows * (n_dims == 2 ? columns : 1) * sp_dtype_bytes(type);
}

static void add_matrix(tensor_set *set, const char *name, size_t rows, size_t columns)
{
    add_tensor(set, name, SP_F32, 2, rows, columns);
}
static void add_vector(tensor_set *set, const char *name, size_t n)
{
    add_tensor(set, name, SP_F32, 1, n, 1);
}

static void add_layer(tensor_set *set, int layer)
{
    static const struct {
        const char *name;
        size_t rows, columns;
    } parts[] = {{"input_layernorm", D, 0},       {"self_attn.q_proj", D, D}, {"self_attn.k_proj", D_HEAD, D},
                 {"self_attn.v_proj", D_HEAD, D}, {"self_attn.o_proj", D, D}, {"post_attention_layernorm", D, 0},
                 {"mlp.gate_proj", D_FFN, D},     {"mlp.up_proj", D_FFN, D},  {"mlp.down_proj", D, D_FFN}};
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        char name[128];
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, parts[i].name);
        if (parts[i].columns)
            add_matrix(set, name, parts[i].rows, parts[i].columns);
        else
            add_vector(set, name, parts[i].rows);
    }
}

static void add_llama(tensor_set *set)
{
    add_matrix(set, "model.embed_tokens.weight", VOCAB, D);
    add_layer(set, 0);
    add_layer(set, 1);
    add_vector(set, "model.norm.weight", D);
    add_matrix(set, "lm_head.weight", VOCAB, D);
}

static void clear_tensors(tensor_set *set)
{
    for (size_t i = 0; i < set->n; i++) free((void *)(uintptr_t)set->tensors[i].name);
    set->n = 0;
}

static void remove_tensor(tensor_set *set, const char *name)
{
    for (size_t i = 0; i < set->n; i++)
        if (strcmp(set->tensors[i].name, name) == 0) {
            free((void *)(uintptr_t)set->tensors[i].name);
            set->tensors[i] = set->tensors[--set->n];
            return;
        }
    fail_msg("no tensor %s", name);
}

static void write_bytes(const char *dir, const char *name, const void *bytes, size_t n_bytes)
{
    char *path = sp_path_join(dir, name);
    assert_int_equal(sp_write_file_atomic(path, &(sp_bytes){bytes, n_bytes}, 1), SP_OK);
    free(path);
}
static void write_text(const char *dir, const char *name, const char *text)
{
    write_bytes(dir, name, text, strlen(text));
}
static void write_tensors(const char *dir, const char *name, const tensor_set *set, size_t first, size_t n)
{
    char *path = sp_path_join(dir, name);
    assert_int_equal(sp_safetensors_write(path, set->tensors + first, n, NULL, 0), SP_OK);
    free(path);
}

/* The llama's configuration with members of `changes` (JSON) in place of its own; null stays null, "absent" takes a member away. */
static void write_config(const char *dir, const char *changes)
{
    json_t *config = json_loads(llama_config, 0, NULL), *more = json_loads(changes ? changes : "{}", 0, NULL), *value;
    const char *key;
    char *text;
    assert_non_null(config);
    if (!more) fail_msg("bad JSON in the test: %s", changes);
    json_object_foreach(more, key, value)
    {
        if (json_is_string(value) && strcmp(json_string_value(value), "absent") == 0)
            json_object_del(config, key);
        else
            json_object_set(config, key, value);
    }
    assert_int_equal(sp_json_dump(&text, config, 0), SP_OK);
    write_text(dir, "config.json", text);
    free(text);
    json_decref(config);
    json_decref(more);
}

static char *make_llama(const char *changes)
{
    char *dir = make_directory();
    tensor_set set = {0};
    write_config(dir, changes);
    add_llama(&set);
    write_tensors(dir, "model.safetensors", &set, 0, set.n);
    clear_tensors(&set);
    return dir;
}

/* ---- what is read ----------------------------------------------------------------------------------------------- */

static sp_source *open_source(const char *dir)
{
    sp_source *source;
    if (sp_source_open(&source, dir)) fail_msg("%s", sp_message());
    return source;
}

static uint32_t get_u32(const sp_source *source, const char *key)
{
    uint32_t value = 0;
    if (sp_source_get_u32(&value, source, key)) fail_msg("%s", sp_message());
    return value;
}
static double get_f32(const sp_source *source, const char *key)
{
    float value = 0;
    if (sp_source_get_f32(&value, source, key)) fail_msg("%s", sp_message());
    return (double)value;
}

static void settings_under_ggufs_keys(void **state)
{
    char *dir = make_llama("{\"head_dim\":null}");
    sp_source *source = open_source(dir);
    sp_gguf_string text;
    uint32_t value;
    (void)state;
    assert_int_equal(get_u32(source, "llama.block_count"), 2);
    assert_int_equal(get_u32(source, "llama.embedding_length"), 8);
    assert_int_equal(get_u32(source, "llama.feed_forward_length"), 12);
    assert_int_equal(get_u32(source, "llama.context_length"), 64);
    assert_int_equal(get_u32(source, "llama.attention.head_count"), 2);
    assert_int_equal(get_u32(source, "llama.attention.head_count_kv"), 1);
    assert_int_equal(get_u32(source, "llama.rope.dimension_count"), 4);
    assert_float_equal(get_f32(source, "llama.attention.layer_norm_rms_epsilon"), 1e-5, 1e-12);
    assert_float_equal(get_f32(source, "llama.rope.freq_base"), 10000, 0);
    assert_false(sp_source_has(source, "llama.attention.key_length")); /* null: the head's even share */
    assert_false(sp_source_has(source, "llama.attention.sliding_window"));
    assert_false(sp_source_has(source, "llama.rope.scaling.type"));
    assert_int_equal(sp_source_get_string(&text, source, "general.architecture"), SP_OK);
    assert_int_equal(text.n_bytes, 5);
    assert_memory_equal(text.bytes, "llama", 5);
    assert_int_equal(sp_source_get_string(&text, source, "general.name"), SP_OK);
    assert_int_equal(text.n_bytes, strlen(dir));
    assert_fails(sp_source_get_u32(&value, source, "llama.expert_count"), SP_ERR_FORMAT, "nothing in it gives llama.expert_count");
    assert_fails(sp_source_get_string(&text, source, "llama.block_count"), SP_ERR_FORMAT, "\"num_hidden_layers\" is not a string");
    assert_string_equal(sp_source_spelling(source, "llama.block_count"), "num_hidden_layers");
    assert_string_equal(sp_source_spelling(source, "blk.1.ffn_up.weight"), "model.layers.1.mlp.up_proj.weight");
    assert_string_equal(sp_source_spelling(source, "llama.unknown"), "llama.unknown");
    assert_true(sp_source_rows_as_trained(source));
    assert_null(sp_source_gguf(source));
    sp_source_close(source);
    remove_directory(dir);
}

static void assert_tensor(const sp_source *source, const char *name, enum ggml_type type, size_t width, size_t rows, size_t n_bytes)
{
    const sp_gguf_tensor *t = sp_source_find_tensor(source, name);
    if (!t) fail_msg("no tensor %s", name);
    assert_string_equal(t->name, name);
    assert_int_equal(t->type, type);
    assert_int_equal(t->shape[0], width);
    assert_int_equal(t->shape[1], rows);
    assert_int_equal(t->shape[2] * t->shape[3], 1);
    assert_int_equal(t->n_bytes, n_bytes);
}

static void tensors_under_ggufs_names(void **state)
{
    static const float first[] = {0.5f, 1.5f};
    char *dir = make_llama(NULL);
    sp_source *source = open_source(dir);
    (void)state;
    assert_int_equal(sp_source_n_tensors(source), 21);
    assert_tensor(source, "token_embd.weight", GGML_TYPE_F32, D, VOCAB, 4 * D * VOCAB);
    assert_tensor(source, "output.weight", GGML_TYPE_F32, D, VOCAB, 4 * D * VOCAB);
    assert_tensor(source, "output_norm.weight", GGML_TYPE_F32, D, 1, 4 * D);
    assert_tensor(source, "blk.0.attn_norm.weight", GGML_TYPE_F32, D, 1, 4 * D);
    assert_tensor(source, "blk.1.attn_k.weight", GGML_TYPE_F32, D, D_HEAD, 4 * D * D_HEAD);
    assert_tensor(source, "blk.1.ffn_down.weight", GGML_TYPE_F32, D_FFN, D, 4 * D * D_FFN);
    assert_memory_equal(sp_source_find_tensor(source, "blk.1.attn_k.weight")->data, first, sizeof first);
    for (size_t i = 0; i < sp_source_n_tensors(source); i++)
        assert_ptr_equal(sp_source_find_tensor(source, sp_source_tensor_at(source, i)->name), sp_source_tensor_at(source, i));
    assert_null(sp_source_find_tensor(source, "model.embed_tokens.weight"));
    sp_source_close(source);
    remove_directory(dir);
}

static void a_tied_head_is_left_out(void **state)
{
    char *dir = make_llama("{\"tie_word_embeddings\":true}");
    sp_source *source = open_source(dir);
    (void)state;
    assert_null(sp_source_find_tensor(source, "output.weight"));
    assert_int_equal(sp_source_n_tensors(source), 20);
    sp_source_close(source);
    remove_directory(dir);
}

static void write_index(const char *dir, const tensor_set *set, size_t n_first, const char *second)
{
    json_t *index = json_pack("{s:{s:i}, s:{}}", "metadata", "total_size", 1, "weight_map");
    char *text;
    for (size_t i = 0; i < set->n; i++)
        json_object_set_new(json_object_get(index, "weight_map"), set->tensors[i].name,
                            json_string(i < n_first ? "model-00001-of-00002.safetensors" : second));
    assert_int_equal(sp_json_dump(&text, index, 0), SP_OK);
    write_text(dir, "model.safetensors.index.json", text);
    free(text);
    json_decref(index);
}

static char *make_sharded(const tensor_set *set, size_t n_first, const char *second)
{
    char *dir = make_directory();
    write_config(dir, NULL);
    write_tensors(dir, "model-00001-of-00002.safetensors", set, 0, n_first);
    write_tensors(dir, "model-00002-of-00002.safetensors", set, n_first, set->n - n_first);
    write_index(dir, set, n_first, second);
    return dir;
}

static size_t tensor_bytes(const tensor_set *set)
{
    size_t n_bytes = 0;
    for (size_t i = 0; i < set->n; i++) n_bytes += set->tensors[i].n_bytes;
    return n_bytes;
}

static void shards_are_one_model(void **state)
{
    char *whole_dir = make_llama(NULL);
    sp_source *whole = open_source(whole_dir);
    tensor_set set = {0};
    (void)state;
    add_llama(&set);
    for (size_t n_first = 1; n_first < set.n; n_first += 9) {
        char *dir = make_sharded(&set, n_first, "model-00002-of-00002.safetensors");
        sp_source *source = open_source(dir);
        assert_int_equal(sp_source_n_tensors(source), sp_source_n_tensors(whole));
        for (size_t i = 0; i < sp_source_n_tensors(whole); i++) {
            const sp_gguf_tensor *a = sp_source_tensor_at(whole, i), *b = sp_source_find_tensor(source, a->name);
            assert_non_null(b);
            assert_int_equal(a->n_bytes, b->n_bytes);
            assert_memory_equal(a->data, b->data, a->n_bytes);
        }
        assert_true(sp_source_file_bytes(source) > tensor_bytes(&set));
        sp_source_close(source);
        remove_directory(dir);
    }
    clear_tensors(&set);
    sp_source_close(whole);
    remove_directory(whole_dir);
}

/* 1 is added in f32, whatever the type. */
static void norms_of_gemma_get_their_one(void **state)
{
    static const char *const more[] = {"pre_feedforward_layernorm", "post_feedforward_layernorm", "self_attn.q_norm",
                                       "self_attn.k_norm"};
    char *dir = make_directory();
    tensor_set set = {0};
    (void)state;
    write_config(dir,
                 "{\"model_type\":\"gemma3_text\",\"architectures\":[\"Gemma3ForCausalLM\"],\"head_dim\":4,\"sliding_window\":16,"
                 "\"num_hidden_layers\":2,\"query_pre_attn_scalar\":16,\"rope_theta\":5e5}");
    add_llama(&set);
    for (int layer = 0; layer < 2; layer++)
        for (size_t i = 0; i < ARRAY_LEN(more); i++) {
            char name[128];
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, more[i]);
            add_vector(&set, name, i < 2 ? D : D_HEAD);
        }
    write_tensors(dir, "model.safetensors", &set, 0, set.n);
    sp_source *source = open_source(dir);
    const float *values = sp_source_find_tensor(source, "blk.1.post_ffw_norm.weight")->data;
    assert_float_equal(values[0], 1.5, 0);
    assert_float_equal(values[7], 8.5, 0);
    assert_float_equal(((const float *)sp_source_find_tensor(source, "blk.0.attn_k_norm.weight")->data)[3], 4.5, 0);
    assert_float_equal(((const float *)sp_source_find_tensor(source, "blk.0.ffn_up.weight")->data)[0], 0.5, 0);
    assert_null(sp_source_find_tensor(source, "output.weight")); /* gemma's is tied unless it says no */
    assert_int_equal(get_u32(source, "gemma3.attention.sliding_window"), 16);
    assert_int_equal(get_u32(source, "gemma3.attention.sliding_window_pattern"), 3); /* of 6: no layer is without */
    assert_float_equal(get_f32(source, "gemma3.attention.scale"), 0.25, 0);
    assert_float_equal(get_f32(source, "gemma3.rope.freq_base"), 5e5, 0);
    assert_float_equal(get_f32(source, "gemma3.rope.freq_base_swa"), 1e4, 0);
    sp_source_close(source);
    clear_tensors(&set);
    remove_directory(dir);
}

/* A gpt2's matrices are (n_in, n_out): row r, column c was number r * 3 + c of 2 rows of 3. */
static void matrices_of_gpt2_are_transposed(void **state)
{
    static const float expected[] = {0.5f, 3.5f, 1.5f, 4.5f, 2.5f, 5.5f};
    static const struct {
        const char *name;
        size_t rows, columns;
    } parts[] = {{"wte.weight", 3, 2},
                 {"wpe.weight", 4, 2},
                 {"ln_f.weight", 2, 0},
                 {"h.0.ln_1.weight", 2, 0},
                 {"h.0.ln_2.weight", 2, 0},
                 {"h.0.attn.c_attn.weight", 2, 6},
                 {"h.0.attn.c_proj.weight", 2, 2},
                 {"h.0.mlp.c_fc.weight", 2, 3},
                 {"h.0.mlp.c_fc.bias", 3, 0},
                 {"transformer.h.0.mlp.c_proj.weight", 3, 2}};
    char *dir = make_directory();
    tensor_set set = {0};
    (void)state;
    write_config(dir,
                 "{\"model_type\":\"gpt2\",\"architectures\":[\"GPT2LMHeadModel\"],\"n_layer\":1,\"n_embd\":2,\"n_inner\":null,"
                 "\"n_positions\":4,\"n_head\":1}");
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        add_tensor(&set, parts[i].name, SP_F32, parts[i].columns ? 2 : 1, parts[i].rows, parts[i].columns ? parts[i].columns : 1);
    add_tensor(&set, "h.0.attn.bias", SP_BOOL, 2, 4, 4); /* the mask */
    write_tensors(dir, "model.safetensors", &set, 0, set.n);
    sp_source *source = open_source(dir);
    assert_int_equal(sp_source_n_tensors(source), ARRAY_LEN(parts));
    assert_tensor(source, "blk.0.ffn_up.weight", GGML_TYPE_F32, 2, 3, sizeof expected);
    assert_memory_equal(sp_source_find_tensor(source, "blk.0.ffn_up.weight")->data, expected, sizeof expected);
    assert_tensor(source, "blk.0.ffn_up.bias", GGML_TYPE_F32, 3, 1, 12);
    assert_tensor(source, "token_embd.weight", GGML_TYPE_F32, 2, 3, 24);
    assert_int_equal(get_u32(source, "gpt2.feed_forward_length"), 8); /* four times the width, where n_inner is null */
    assert_false(sp_source_has(source, "gpt2.rope.freq_base"));
    sp_source_close(source);
    clear_tensors(&set);
    remove_directory(dir);
}

/* Two heads of one dimension: rows q0 k0 v0 q1 k1 v1 become q0 q1 k0 k1 v0 v1. */
static void heads_of_gpt_neox_are_separated(void **state)
{
    static const float bias[] = {0.5f, 3.5f, 1.5f, 4.5f, 2.5f, 5.5f}, matrix[] = {0.5f, 1.5f, 6.5f, 7.5f, 2.5f, 3.5f};
    static const char *const matrices[] = {"attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"};
    static const char *const norms[] = {"input_layernorm", "post_attention_layernorm"};
    char *dir = make_directory(), name[128];
    tensor_set set = {0};
    sp_source *source;
    bool parallel;
    (void)state;
    write_config(dir, "{\"model_type\":\"gpt_neox\",\"hidden_size\":2,\"num_hidden_layers\":1,\"attention_bias\":true,"
                      "\"hidden_act\":\"gelu\",\"rotary_pct\":1.0,\"use_parallel_residual\":false,\"rope_theta\":\"absent\","
                      "\"rotary_emb_base\":5000}");
    add_matrix(&set, "gpt_neox.embed_in.weight", 3, 2);
    add_matrix(&set, "embed_out.weight", 3, 2);
    add_vector(&set, "gpt_neox.final_layer_norm.weight", 2);
    for (size_t i = 0; i < ARRAY_LEN(matrices) + ARRAY_LEN(norms); i++) {
        snprintf(name, sizeof name, "gpt_neox.layers.0.%s.weight", i < 3 ? matrices[i] : norms[i - 3]);
        add_tensor(&set, name, SP_F32, i < 3 ? 2 : 1, 2, i < 3 ? 2 : 1);
    }
    add_matrix(&set, "gpt_neox.layers.0.attention.query_key_value.weight", 6, 2);
    add_vector(&set, "gpt_neox.layers.0.attention.query_key_value.bias", 6);
    write_tensors(dir, "model.safetensors", &set, 0, set.n);
    source = open_source(dir);
    assert_tensor(source, "blk.0.attn_qkv.weight", GGML_TYPE_F32, 2, 6, 48);
    assert_memory_equal(sp_source_find_tensor(source, "blk.0.attn_qkv.weight")->data, matrix, sizeof matrix);
    assert_memory_equal(sp_source_find_tensor(source, "blk.0.attn_qkv.bias")->data, bias, sizeof bias);
    assert_int_equal(sp_source_get_bool(&parallel, source, "gptneox.use_parallel_residual"), SP_OK);
    assert_false(parallel);
    assert_float_equal(get_f32(source, "gptneox.rope.freq_base"), 5000, 0);
    sp_source_close(source);
    remove_tensor(&set, "gpt_neox.layers.0.attention.query_key_value.bias");
    add_vector(&set, "gpt_neox.layers.0.attention.query_key_value.bias", 5);
    write_tensors(dir, "model.safetensors", &set, 0, set.n);
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT, "5 rows are not q, k and v of 2 heads");
    clear_tensors(&set);
    remove_directory(dir);
}

static void llama_3_scaling_divides_frequencies(void **state)
{
    char *dir = make_llama("{\"head_dim\":16,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
                           "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":32}}");
    sp_source *source = open_source(dir);
    const sp_gguf_tensor *t = sp_source_find_tensor(source, "rope_freqs.weight");
    (void)state;
    assert_non_null(t);
    assert_int_equal(t->shape[0], 8);
    const float *factors = t->data;
    const double turns = 32 * pow(10000, -2.0 / 16) / (2 * M_PI), kept = (turns - 1) / 3; /* of pair 1, within 32 positions */
    assert_float_equal(factors[0], 1, 0);                                                 /* 5.1 turns: above 4 */
    assert_float_equal(factors[1], 1 / ((1 - kept) / 8 + kept), 1e-6);
    for (size_t i = 3; i < 8; i++) assert_float_equal(factors[i], 8, 0); /* below 1 */
    sp_source_close(source);
    remove_directory(dir);
}

/* ---- what is refused -------------------------------------------------------------------------------------------- */

static const struct {
    const char *changes; /* of the configuration */
    sp_status status;
    const char *words;
} refused[] = {
    {"{\"model_type\":\"mamba\"}", SP_ERR_UNSUPPORTED,
     "model_type \"mamba\" is not supported; this version reads directories of: llama, "},
    {"{\"model_type\":\"absent\"}", SP_ERR_FORMAT, "config.json: \"model_type\" is missing"},
    {"{\"model_type\":7}", SP_ERR_FORMAT, "\"model_type\" is an integer, not a string"},
    {"{\"architectures\":[\"LlamaForSequenceClassification\"]}", SP_ERR_UNSUPPORTED, "LlamaForSequenceClassification is no causal"},
    {"{\"quantization_config\":{\"quant_method\":\"gptq\"}}", SP_ERR_UNSUPPORTED,
     "the checkpoint is quantised (\"quantization_config\": gptq)"},
    {"{\"hidden_act\":\"relu\"}", SP_ERR_UNSUPPORTED, "\"hidden_act\" is \"relu\"; this version runs llama only with \"silu\""},
    {"{\"mlp_bias\":true}", SP_ERR_UNSUPPORTED, "\"mlp_bias\" is true; this version runs llama only with false"},
    {"{\"attention_bias\":true}", SP_ERR_FORMAT, "tensor model.layers.0.self_attn.q_proj.bias is missing"},
    {"{\"num_hidden_layers\":3}", SP_ERR_FORMAT, "tensor model.layers.2.input_layernorm.weight is missing"},
    {"{\"num_hidden_layers\":1000000000000}", SP_ERR_FORMAT, "tensor model.layers.2.input_layernorm.weight is missing"},
    {"{\"num_hidden_layers\":\"two\"}", SP_ERR_FORMAT, "\"num_hidden_layers\" is a string, not an integer"},
    {"{\"num_hidden_layers\":-1}", SP_ERR_FORMAT, "\"num_hidden_layers\" is -1, which cannot be negative"},
    {"{\"rms_norm_eps\":[]}", SP_ERR_FORMAT, "\"rms_norm_eps\" is no number"},
    {"{\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}}", SP_ERR_UNSUPPORTED,
     "RoPE of type \"dynamic\" is not supported; known: default, "},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", SP_ERR_FORMAT, "\"factor\" of RoPE's linear scaling is 0"},
    {"{\"rope_scaling\":{\"type\":\"linear\"}}", SP_ERR_FORMAT, "\"factor\" of RoPE's linear scaling is 0"},
    {"{\"rope_scaling\":7}", SP_ERR_FORMAT, "\"rope_scaling\" is an integer, not an object"},
    {"{\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4,\"truncate\":false}}", SP_ERR_UNSUPPORTED,
     "\"truncate\" of RoPE's yarn"},
    {"{\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4,\"mscale\":1,\"mscale_all_dim\":-7.213475204444817}}",
     SP_ERR_FORMAT, "no finite factor"},
    {"{\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":4,\"low_freq_factor\":4,\"high_freq_factor\":1}}", SP_ERR_FORMAT,
     "0 < low < high was"},
    {"{\"rope_parameters\":{\"full_attention\":{}}}", SP_ERR_UNSUPPORTED, "\"rope_parameters\" by kind of layer"},
    {"{\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1],\"long_factor\":[1,2]}}", SP_ERR_FORMAT,
     "\"short_factor\" is no list of 2 numbers"},
    {"{\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,2],\"long_factor\":[1,0]}}", SP_ERR_FORMAT,
     "\"long_factor\": entry 1 is no number above 0"},
    {"{\"partial_rotary_factor\":1.5}", SP_ERR_FORMAT, "\"partial_rotary_factor\" is 1.5"},
    {"{\"model_type\":\"qwen2\",\"use_sliding_window\":true}", SP_ERR_UNSUPPORTED,
     "\"use_sliding_window\" is true; this version runs qwen2 only with false"},
    {"{\"model_type\":\"smollm3\",\"no_rope_layers\":[1,1,0]}", SP_ERR_UNSUPPORTED,
     "\"no_rope_layers\" has another entry at layer 2"},
    {"{\"model_type\":\"gemma3_text\",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}", SP_ERR_UNSUPPORTED,
     "layer 1 breaks the period of 1"},
    {"{\"model_type\":\"gemma3_text\",\"layer_types\":[\"sliding_attention\"]}", SP_ERR_FORMAT, "has 1 entries for 2 layers"},
    {"{\"model_type\":\"gemma3_text\",\"layer_types\":[\"linear_attention\",7]}", SP_ERR_UNSUPPORTED,
     "layer 0 is linear_attention; known: full_attention"},
    {"{\"model_type\":\"gemma3_text\"}", SP_ERR_FORMAT, "tensor model.layers.0.pre_feedforward_layernorm.weight is missing"},
    {"{\"model_type\":\"gemma3\"}", SP_ERR_FORMAT, "\"text_config\" is missing"},
};

static void other_settings_are_refused_by_name(void **state)
{
    char *dir = make_llama(NULL);
    sp_source *source;
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        write_config(dir, refused[i].changes);
        assert_fails(sp_source_open(&source, dir), refused[i].status, refused[i].words);
        assert_null(source);
    }
    remove_directory(dir);
}

typedef struct tensor_change {
    const char *without, *with;
    sp_dtype type;
    size_t n_dims, rows, columns;
    sp_status status;
    const char *words;
} tensor_change;

static const tensor_change other_tensors[] = {
    {.without = "model.norm.weight", .status = SP_ERR_FORMAT, .words = "tensor model.norm.weight is missing; copy"},
    {.without = "lm_head.weight", .status = SP_ERR_FORMAT, .words = "tensor lm_head.weight is missing"},
    {.without = "model.layers.1.mlp.up_proj.weight",
     .status = SP_ERR_FORMAT,
     .words = "tensor model.layers.1.mlp.up_proj.weight is missing"},
    {.with = "score.weight",
     .n_dims = 2,
     .rows = 2,
     .columns = D,
     .type = SP_F32,
     .status = SP_ERR_UNSUPPORTED,
     .words = "tensor score.weight is no part of llama as"},
    {.with = "model.layers.0.self_attn.q_proj.scales",
     .n_dims = 1,
     .rows = 2,
     .type = SP_F32,
     .status = SP_ERR_UNSUPPORTED,
     .words = "q_proj.scales is no part of llama"},
    {.with = "model.layers.x.self_attn.q_proj.weight",
     .n_dims = 1,
     .rows = 2,
     .type = SP_F32,
     .status = SP_ERR_UNSUPPORTED,
     .words = "layers.x.self_attn.q_proj.weight is no part"},
    {.with = "model.layers.0.self_attn.q_proj.bias",
     .n_dims = 1,
     .rows = D,
     .type = SP_F32,
     .status = SP_ERR_FORMAT,
     .words = "q_proj.bias is there, but \"attention_bias\" is not true"},
    {.without = "model.norm.weight",
     .with = "model.norm.weight",
     .n_dims = 1,
     .rows = D,
     .type = SP_I8,
     .status = SP_ERR_UNSUPPORTED,
     .words = "tensor model.norm.weight: dtype I8; weights are read in F32, F16 and BF16"},
    {.without = "model.norm.weight",
     .with = "model.norm.weight",
     .n_dims = 1,
     .rows = D,
     .type = SP_F64,
     .status = SP_ERR_UNSUPPORTED,
     .words = "dtype F64"},
    {.without = "model.norm.weight",
     .with = "model.norm.weight",
     .n_dims = 1,
     .rows = 0,
     .type = SP_F32,
     .status = SP_ERR_FORMAT,
     .words = "tensor model.norm.weight has 1 dimensions and 0 bytes"},
};

static void other_tensors_are_refused_by_name(void **state)
{
    char *dir = make_llama(NULL);
    sp_source *source;
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(other_tensors); i++) {
        const tensor_change *c = &other_tensors[i];
        tensor_set set = {0};
        add_llama(&set);
        if (c->without) remove_tensor(&set, c->without);
        if (c->with) add_tensor(&set, c->with, c->type, c->n_dims, c->rows, c->columns);
        write_tensors(dir, "model.safetensors", &set, 0, set.n);
        assert_fails(sp_source_open(&source, dir), c->status, c->words);
        clear_tensors(&set);
    }
    remove_directory(dir);
}

/* What old checkpoints hold and transformers computes itself. */
static void frequencies_are_left_out(void **state)
{
    char *dir = make_llama(NULL);
    tensor_set set = {0};
    (void)state;
    add_llama(&set);
    add_vector(&set, "model.layers.1.self_attn.rotary_emb.inv_freq", 2);
    write_tensors(dir, "model.safetensors", &set, 0, set.n);
    sp_source *source = open_source(dir);
    assert_int_equal(sp_source_n_tensors(source), 21);
    sp_source_close(source);
    clear_tensors(&set);
    remove_directory(dir);
}

/* ---- damaged and hostile directories ---------------------------------------------------------------------------- */

static void hostile_indices(void **state)
{
    static const char *const outside[] = {"../model-00002-of-00002.safetensors", "/etc/passwd", "..", "", "sub/x.safetensors"};
    tensor_set set = {0};
    sp_source *source;
    (void)state;
    add_llama(&set);
    for (size_t i = 0; i < ARRAY_LEN(outside); i++) {
        char *dir = make_sharded(&set, 3, outside[i]);
        assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT, "is no file of this directory; do not trust this model");
        remove_directory(dir);
    }
    char *dir = make_sharded(&set, 3, "model-00003-of-00002.safetensors");
    assert_fails(sp_source_open(&source, dir), SP_ERR_IO,
                 "model-00003-of-00002.safetensors: this shard, which model.safetensors.index.json names, is not there");
    write_index(dir, &set, 4, "model-00002-of-00002.safetensors");
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT,
                 "is not in model-00001-of-00002.safetensors, where model.safetensors.index.json has it");
    write_tensors(dir, "model-00002-of-00002.safetensors", &set, 0, set.n);
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT, "is in two shards");
    write_text(dir, "model.safetensors.index.json", "{\"metadata\":{}}");
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT, "\"weight_map\" is missing");
    write_text(dir, "model.safetensors.index.json", "{\"weight_map\":{\"a\":7}}");
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT, "tensor a: its shard is no string");
    write_text(dir, "model.safetensors.index.json", "{\"weight_map\":{}}");
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT, "tensor model.embed_tokens.weight is missing");
    remove_directory(dir);
    clear_tensors(&set);
}

static void every_truncation_fails(void **state)
{
    char *dir = make_llama(NULL), *path = sp_path_join(dir, "model.safetensors"), *bytes;
    size_t n_bytes;
    sp_source *source;
    (void)state;
    assert_int_equal(sp_read_file(&bytes, &n_bytes, path, 1 << 20), SP_OK);
    for (size_t n = 0; n < n_bytes; n += 101) {
        assert_int_equal(truncate(path, (off_t)n), 0);
        assert_int_equal(sp_source_open(&source, dir), SP_ERR_FORMAT);
        assert_non_null(strstr(sp_message(), "model.safetensors"));
        assert_int_equal(sp_write_file_atomic(path, &(sp_bytes){bytes, n_bytes}, 1), SP_OK);
    }
    free(bytes);
    free(path);
    remove_directory(dir);
}

static void configurations_that_are_no_json(void **state)
{
    char *dir = make_llama(NULL), *deep = malloc(8002);
    sp_source *source;
    (void)state;
    write_text(dir, "config.json", "{\"model_type\":\"ll\xff\"}");
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT, "config.json:1:");
    write_text(dir, "config.json", "[]");
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT, "not a JSON object");
    memset(deep, '[', 8000);
    memcpy(deep, "{\"a\":", 5);
    write_bytes(dir, "config.json", deep, 8000);
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT, "bad JSON");
    free(deep);
    remove_directory(dir);
}

static void directories_without_safetensors(void **state)
{
    char *dir = make_directory();
    sp_source *source;
    (void)state;
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT, "a directory without config.json; a model is a GGUF file or");
    write_text(dir, "adapter_config.json", "{}");
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT, "a PEFT adapter, not a model");
    write_config(dir, NULL);
    assert_fails(sp_source_open(&source, dir), SP_ERR_FORMAT,
                 "neither model.safetensors nor model.safetensors.index.json is there");
    write_text(dir, "pytorch_model.bin", "PK");
    assert_fails(sp_source_open(&source, dir), SP_ERR_UNSUPPORTED,
                 "its weights are a pickle (pytorch_model.bin), which can run code; load it");
    remove_directory(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(settings_under_ggufs_keys),
        cmocka_unit_test(tensors_under_ggufs_names),
        cmocka_unit_test(a_tied_head_is_left_out),
        cmocka_unit_test(shards_are_one_model),
        cmocka_unit_test(norms_of_gemma_get_their_one),
        cmocka_unit_test(matrices_of_gpt2_are_transposed),
        cmocka_unit_test(heads_of_gpt_neox_are_separated),
        cmocka_unit_test(llama_3_scaling_divides_frequencies),
        cmocka_unit_test(other_settings_are_refused_by_name),
        cmocka_unit_test(other_tensors_are_refused_by_name),
        cmocka_unit_test(frequencies_are_left_out),
        cmocka_unit_test(hostile_indices),
        cmocka_unit_test(every_truncation_fails),
        cmocka_unit_test(configurations_that_are_no_json),
        cmocka_unit_test(directories_without_safetensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
