/* describe.c: what a file or directory is, as JSON: what `softprompt info FILE` shows.
 * Works for models of any architecture and adapters of any PEFT type; what a file does not say is null. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/status.h"
#include "format/adapter.h"
#include "format/gguf.h"
#include "format/hf_directory.h"
#include "text/tokenizer.h"

enum { MAX_LISTED = 1024 }; /* elements of a per-layer array */

/* general.file_type, as llama.cpp numbers it. The numbers that are missing were withdrawn. */
static const char *const file_types[] = {
    [0] = "F32",     [1] = "F16",     [2] = "Q4_0",     [3] = "Q4_1",    [7] = "Q8_0",       [8] = "Q5_0",    [9] = "Q5_1",
    [10] = "Q2_K",   [11] = "Q3_K_S", [12] = "Q3_K_M",  [13] = "Q3_K_L", [14] = "Q4_K_S",    [15] = "Q4_K_M", [16] = "Q5_K_S",
    [17] = "Q5_K_M", [18] = "Q6_K",   [19] = "IQ2_XXS", [20] = "IQ2_XS", [21] = "Q2_K_S",    [22] = "IQ3_XS", [23] = "IQ3_XXS",
    [24] = "IQ1_S",  [25] = "IQ4_NL", [26] = "IQ3_S",   [27] = "IQ3_M",  [28] = "IQ2_S",     [29] = "IQ2_M",  [30] = "IQ4_XS",
    [31] = "IQ1_M",  [32] = "BF16",   [36] = "TQ1_0",   [37] = "TQ2_0",  [38] = "MXFP4_MOE", [39] = "NVFP4",  [40] = "Q1_0",
};

/* Takes `value`; false where there was no memory for it, or for one before. */
static bool put(json_t *object, const char *key, json_t *value)
{
    return json_object_set_new(object, key, value) == 0;
}

static bool append(json_t *list, json_t *value)
{
    return json_array_append_new(list, value) == 0;
}

/* An array or object is whole or it is none. */
static json_t *whole_or_null(json_t *value, bool ok)
{
    if (ok) return value;
    json_decref(value);
    return NULL;
}

/* ---- a GGUF model ------------------------------------------------------------------------------------------- */

static json_t *text_value(const sp_gguf *g, const char *key)
{
    sp_gguf_string s;
    if (!sp_gguf_has(g, key) || sp_gguf_get_string(&s, g, key)) return json_null();
    return sp_json_text(s.bytes, s.n_bytes);
}

/* A number, or an array where the model has one for each layer. */
static json_t *integer_value(const sp_gguf *g, const char *key)
{
    uint32_t value;
    int32_t item;
    size_t n;
    if (!sp_gguf_has(g, key)) return json_null();
    if (!sp_gguf_get_u32(&value, g, key)) return json_integer(value);
    if (sp_gguf_get_array_n(&n, g, key) || n > MAX_LISTED) return json_null();
    json_t *list = json_array();
    bool ok = true;
    for (size_t i = 0; i < n && !sp_gguf_get_array_i32(&item, g, key, i); i++) ok = ok && append(list, json_integer(item));
    return whole_or_null(list, ok);
}

static json_t *real_value(const sp_gguf *g, const char *key)
{
    float value;
    return sp_gguf_has(g, key) && !sp_gguf_get_f32(&value, g, key) ? json_real((double)value) : json_null();
}

static json_t *bool_value(const sp_gguf *g, const char *key)
{
    bool value;
    return sp_gguf_has(g, key) && !sp_gguf_get_bool(&value, g, key) ? json_boolean(value) : json_null();
}

/* "ARCHITECTURE.KEY" in a buffer that the next call overwrites. */
static const char *own_key(char buffer[256], const char *architecture, const char *key)
{
    snprintf(buffer, 256, "%.128s.%s", architecture, key);
    return buffer;
}

static json_t *count_tensor_types(const sp_gguf *g)
{
    json_t *types = json_object();
    bool ok = true;
    for (size_t i = 0; i < sp_gguf_n_tensors(g); i++) {
        char name[32];
        snprintf(name, sizeof name, "%s", ggml_type_name(sp_gguf_tensor_at(g, i)->type));
        for (char *c = name; *c; c++) *c = (char)toupper((unsigned char)*c);
        ok = ok && put(types, name, json_integer(1 + json_integer_value(json_object_get(types, name))));
    }
    return whole_or_null(types, ok);
}

static uint64_t count_parameters(const sp_gguf *g)
{
    uint64_t n = 0;
    for (size_t i = 0; i < sp_gguf_n_tensors(g); i++) {
        const uint64_t *shape = sp_gguf_tensor_at(g, i)->shape;
        n += shape[0] * shape[1] * shape[2] * shape[3];
    }
    return n;
}

static json_t *describe_tokenizer(const sp_gguf *g)
{
    size_t n_vocab;
    bool has_vocab = sp_gguf_has(g, "tokenizer.ggml.tokens") && !sp_gguf_get_array_n(&n_vocab, g, "tokenizer.ggml.tokens");
    json_t *t = json_object();
    bool ok = put(t, "model", text_value(g, "tokenizer.ggml.model")) && put(t, "pre", text_value(g, "tokenizer.ggml.pre")) &&
              put(t, "n_vocab", has_vocab ? json_integer((json_int_t)n_vocab) : json_null()) &&
              put(t, "bos", integer_value(g, "tokenizer.ggml.bos_token_id")) &&
              put(t, "eos", integer_value(g, "tokenizer.ggml.eos_token_id")) &&
              put(t, "add_bos", bool_value(g, "tokenizer.ggml.add_bos_token")) &&
              put(t, "chat_template", json_boolean(sp_gguf_has(g, "tokenizer.chat_template")));
    return whole_or_null(t, ok);
}

/* The sizes whose keys begin with the architecture's name. */
static bool put_sizes(json_t *o, const sp_gguf *g, const char *architecture)
{
    static const struct {
        const char *name, *key;
    } sizes[] = {
        {"n_layer", "block_count"},         {"d_model", "embedding_length"},          {"d_ffn", "feed_forward_length"},
        {"n_head", "attention.head_count"}, {"n_head_kv", "attention.head_count_kv"}, {"d_head", "attention.key_length"},
        {"n_vocab", "vocab_size"},          {"context_length", "context_length"},
    };
    char key[256];
    bool ok = true;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        ok = ok && put(o, sizes[i].name, integer_value(g, own_key(key, architecture, sizes[i].key)));
    return ok && put(o, "rope_theta", real_value(g, own_key(key, architecture, "rope.freq_base")));
}

/* What older files leave to the reader: the head's size, the keys' heads, the vocabulary. */
static bool fill_in_sizes(json_t *o, const json_t *tokenizer)
{
    bool ok = true;
    json_int_t d_model = json_integer_value(json_object_get(o, "d_model")),
               n_head = json_integer_value(json_object_get(o, "n_head"));
    if (json_is_null(json_object_get(o, "d_head")) && d_model > 0 && n_head > 0)
        ok = put(o, "d_head", json_integer(d_model / n_head));
    if (json_is_null(json_object_get(o, "n_head_kv")) && n_head > 0) ok = ok && put(o, "n_head_kv", json_integer(n_head));
    if (json_is_null(json_object_get(o, "n_vocab")))
        ok = ok && !json_object_set(o, "n_vocab", json_object_get(tokenizer, "n_vocab"));
    return ok;
}

static json_t *file_type(const sp_gguf *g)
{
    uint32_t type;
    if (!sp_gguf_has(g, "general.file_type") || sp_gguf_get_u32(&type, g, "general.file_type")) return json_null();
    if (type < sizeof file_types / sizeof file_types[0] && file_types[type]) return json_string(file_types[type]);
    return json_integer(type);
}

static sp_status describe_model(json_t *o, const char *path)
{
    sp_gguf *g;
    sp_status st = sp_gguf_open(&g, path);
    if (st) return st;
    json_t *architecture = text_value(g, "general.architecture"), *tokenizer = describe_tokenizer(g);
    const char *prefix = json_is_string(architecture) ? json_string_value(architecture) : "";
    bool ok = architecture && tokenizer && put(o, "kind", json_string("model")) &&
              put(o, "path", sp_json_text(path, strlen(path))) &&
              put(o, "file_bytes", json_integer((json_int_t)sp_gguf_file_bytes(g))) &&
              !json_object_set(o, "architecture", architecture) && put(o, "name", text_value(g, "general.name")) &&
              put(o, "file_type", file_type(g)) && put_sizes(o, g, prefix) && fill_in_sizes(o, tokenizer) &&
              put(o, "n_parameters", json_integer((json_int_t)count_parameters(g))) &&
              put(o, "n_tensors", json_integer((json_int_t)sp_gguf_n_tensors(g))) &&
              put(o, "tensor_types", count_tensor_types(g)) && !json_object_set(o, "tokenizer", tokenizer);
    json_decref(architecture);
    json_decref(tokenizer);
    sp_gguf_close(g);
    return ok ? SP_OK : sp_json_fail_no_memory();
}

/* ---- a model directory of Hugging Face ------------------------------------------------------------------------ */

/* The language model's part of the configuration comes first, then the whole. */
static const json_t *find_setting(const json_t *config, const char *const *names)
{
    const json_t *parts[] = {json_object_get(config, "text_config"), config};
    for (size_t p = 0; p < 2; p++)
        for (size_t i = 0; names[i]; i++) {
            const json_t *value = json_object_get(parts[p], names[i]);
            if (value && !json_is_null(value)) return value;
        }
    return NULL;
}

static bool put_setting(json_t *o, const char *name, const json_t *config, const char *const *names)
{
    const json_t *value = find_setting(config, names);
    return put(o, name,
               value && !json_is_object(value) && !json_is_array(value) ? json_copy((json_t *)(uintptr_t)value) : json_null());
}

static bool put_hf_sizes(json_t *o, const json_t *config)
{
    static const struct {
        const char *name, *keys[3];
    } sizes[] = {
        {"n_layer", {"num_hidden_layers", "n_layer"}},
        {"d_model", {"hidden_size", "n_embd"}},
        {"d_ffn", {"intermediate_size", "n_inner"}},
        {"n_head", {"num_attention_heads", "n_head"}},
        {"n_head_kv", {"num_key_value_heads"}},
        {"d_head", {"head_dim"}},
        {"n_vocab", {"vocab_size"}},
        {"context_length", {"max_position_embeddings", "n_positions"}},
    };
    static const char *const theta[] = {"rope_theta", "rotary_emb_base", NULL};
    static const char *const rope[] = {"rope_parameters", "rope_scaling", NULL};
    bool ok = true;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) ok = ok && put_setting(o, sizes[i].name, config, sizes[i].keys);
    const json_t *parameters = find_setting(config, rope), *full = json_object_get(parameters, "full_attention");
    return ok &&
           put_setting(o, "rope_theta", find_setting(full ? full : parameters, theta) ? (full ? full : parameters) : config, theta);
}

/* What the configuration says the weights are: "bfloat16" as "BF16". tensor_types says what they are. */
static json_t *hf_file_type(const json_t *config)
{
    static const char *const keys[] = {"dtype", "torch_dtype", NULL};
    static const char *const types[][2] = {{"float32", "F32"}, {"float16", "F16"}, {"bfloat16", "BF16"}};
    const char *name = json_string_value(find_setting(config, keys));
    for (size_t i = 0; name && i < sizeof types / sizeof types[0]; i++)
        if (strcmp(name, types[i][0]) == 0) return json_string(types[i][1]);
    return name ? json_string(name) : json_null();
}

static json_t *count_dtypes(const sp_hf_directory *d)
{
    json_t *types = json_object();
    bool ok = true;
    for (size_t i = 0; i < sp_hf_directory_n_tensors(d); i++) {
        const char *name = sp_dtype_name(sp_hf_directory_tensor_at(d, i)->type);
        ok = ok && put(types, name, json_integer(1 + json_integer_value(json_object_get(types, name))));
    }
    return whole_or_null(types, ok);
}

static uint64_t count_values(const sp_hf_directory *d)
{
    uint64_t n = 0;
    for (size_t i = 0; i < sp_hf_directory_n_tensors(d); i++) {
        const sp_st_tensor *t = sp_hf_directory_tensor_at(d, i);
        n += t->n_bytes / sp_dtype_bytes(t->type);
    }
    return n;
}

static json_t *id_or_null(int32_t id)
{
    return id >= 0 ? json_integer(id) : json_null();
}

/* null where there is no tokenizer that can be read here. */
static json_t *describe_hf_tokenizer(const char *dir)
{
    sp_tokenizer *t;
    if (sp_tokenizer_from_hf(&t, dir)) return json_null();
    json_t *o = json_object();
    bool ok = put(o, "model", json_string(sp_tokenizer_kind(t))) && put(o, "pre", json_null()) &&
              put(o, "n_vocab", json_integer((json_int_t)sp_tokenizer_n_vocab(t))) &&
              put(o, "bos", id_or_null(sp_tokenizer_bos(t))) && put(o, "eos", id_or_null(sp_tokenizer_eos(t))) &&
              put(o, "add_bos", json_boolean(sp_tokenizer_adds_bos(t))) &&
              put(o, "chat_template", json_boolean(strcmp(sp_tokenizer_chat_family(t), "none") != 0));
    sp_tokenizer_free(t);
    return whole_or_null(o, ok);
}

static sp_status describe_hf_model(json_t *o, const char *dir)
{
    static const char *const name_keys[] = {"_name_or_path", NULL};
    sp_hf_directory *d;
    sp_status st = sp_hf_directory_open(&d, dir);
    if (st) return st;
    const json_t *config = sp_hf_directory_config(d), *model_type = json_object_get(config, "model_type");
    json_t *tokenizer = describe_hf_tokenizer(dir);
    bool ok = tokenizer && put(o, "kind", json_string("model")) && put(o, "path", sp_json_text(dir, strlen(dir))) &&
              put(o, "file_bytes", json_integer((json_int_t)sp_hf_directory_tensor_file_bytes(d))) &&
              put(o, "architecture", json_is_string(model_type) ? json_copy((json_t *)(uintptr_t)model_type) : json_null()) &&
              put_setting(o, "name", config, name_keys) && put(o, "file_type", hf_file_type(config)) && put_hf_sizes(o, config) &&
              fill_in_sizes(o, tokenizer) && put(o, "n_parameters", json_integer((json_int_t)count_values(d))) &&
              put(o, "n_tensors", json_integer((json_int_t)sp_hf_directory_n_tensors(d))) &&
              put(o, "tensor_types", count_dtypes(d)) && !json_object_set(o, "tokenizer", tokenizer);
    json_decref(tokenizer);
    sp_hf_directory_close(d);
    return ok ? SP_OK : sp_json_fail_no_memory();
}

/* ---- tensors and adapters ----------------------------------------------------------------------------------- */

static json_t *describe_tensor(const sp_st_tensor *t)
{
    json_t *shape = json_array();
    bool ok = true;
    for (size_t i = 0; i < t->n_dims; i++) ok = ok && append(shape, json_integer((json_int_t)t->shape[i]));
    if (!(shape = whole_or_null(shape, ok))) return NULL;
    return json_pack("{s:s, s:s, s:o}", "name", t->name, "dtype", sp_dtype_name(t->type), "shape", shape);
}

static json_t *list_tensors(const sp_safetensors *f)
{
    json_t *list = json_array();
    bool ok = true;
    for (size_t i = 0; i < sp_safetensors_n_tensors(f); i++) ok = ok && append(list, describe_tensor(sp_safetensors_at(f, i)));
    return whole_or_null(list, ok);
}

static uint64_t tensor_bytes(const sp_safetensors *f)
{
    uint64_t n = 0;
    for (size_t i = 0; i < sp_safetensors_n_tensors(f); i++) n += sp_safetensors_at(f, i)->n_bytes;
    return n;
}

static sp_status describe_safetensors(json_t *o, const char *path)
{
    sp_safetensors *f;
    sp_status st = sp_safetensors_open(&f, path);
    if (st) return st;
    const json_t *metadata = sp_safetensors_all_metadata(f);
    bool ok = put(o, "kind", json_string("tensors")) && put(o, "path", sp_json_text(path, strlen(path))) &&
              put(o, "bytes", json_integer((json_int_t)tensor_bytes(f))) && put(o, "tensors", list_tensors(f)) &&
              put(o, "metadata", metadata ? json_deep_copy(metadata) : json_object());
    sp_safetensors_close(f);
    return ok ? SP_OK : sp_json_fail_no_memory();
}

/* A copy of a member of softprompt.json, or null. */
static json_t *own_member(const sp_adapter *a, const char *key)
{
    json_t *value = json_object_get(a->own, key);
    return value ? json_deep_copy(value) : json_null();
}

static json_t *size_or_null(size_t n)
{
    return n ? json_integer((json_int_t)n) : json_null();
}

static sp_status describe_adapter(json_t *o, const char *dir)
{
    sp_adapter *a;
    sp_status st = sp_adapter_open(&a, dir);
    if (st) return st;
    bool ok = put(o, "kind", json_string("adapter")) && put(o, "path", sp_json_text(dir, strlen(dir))) &&
              put(o, "method", json_string(sp_adapter_method(a->peft_type))) && put(o, "peft_type", json_string(a->peft_type)) &&
              put(o, "runnable", json_boolean(sp_adapter_is_runnable(a->peft_type))) &&
              put(o, "num_virtual_tokens", size_or_null(a->num_virtual_tokens)) &&
              put(o, "token_dim", size_or_null(a->token_dim)) && put(o, "num_layers", size_or_null(a->num_layers)) &&
              put(o, "base_model", a->base_model ? json_string(a->base_model) : json_null()) &&
              put(o, "bytes", json_integer((json_int_t)tensor_bytes(a->tensors))) && put(o, "tensors", list_tensors(a->tensors)) &&
              put(o, "method_details", own_member(a, "method")) && put(o, "task", own_member(a, "task")) &&
              put(o, "fingerprint", own_member(a, "fingerprint"));
    sp_adapter_close(a);
    return ok ? SP_OK : sp_json_fail_no_memory();
}

/* ---- which of them ------------------------------------------------------------------------------------------- */

/* By what the file begins with: "GGUF", or eight bytes of length and a JSON object. */
static sp_status describe_file(json_t *o, const char *path)
{
    sp_mapped_file file;
    sp_status st = sp_map_file(&file, path);
    if (st) return st;
    const size_t n = strlen(path), n_ending = strlen(".safetensors");
    bool is_gguf = file.size >= 4 && memcmp(file.bytes, "GGUF", 4) == 0;
    bool is_safetensors =
        (n > n_ending && strcmp(path + n - n_ending, ".safetensors") == 0) || (file.size > 8 && file.bytes[8] == '{');
    sp_unmap_file(&file);
    if (is_gguf) return describe_model(o, path);
    if (is_safetensors) return describe_safetensors(o, path);
    return sp_fail(SP_ERR_FORMAT,
                   "%s: neither a GGUF model, nor a safetensors file, nor a directory with " SP_HF_CONFIG " or " SP_ADAPTER_CONFIG,
                   path);
}

static sp_status describe_directory(json_t *o, const char *path)
{
    char *adapter = sp_path_join(path, SP_ADAPTER_CONFIG), *model = sp_path_join(path, SP_HF_CONFIG);
    bool is_model = adapter && model && !sp_path_exists(adapter) && sp_path_exists(model);
    sp_status st = adapter && model ? SP_OK : SP_ERR_MEMORY;
    free(adapter);
    free(model);
    if (st) return st;
    return is_model ? describe_hf_model(o, path) : describe_adapter(o, path);
}

sp_status sp_describe(char **json, const char *path)
{
    *json = NULL;
    json_t *o = json_object();
    sp_status st = o ? SP_OK : sp_json_fail_no_memory();
    if (!st) st = sp_path_is_directory(path) ? describe_directory(o, path) : describe_file(o, path);
    if (!st) st = sp_json_dump(json, o, JSON_INDENT(2));
    json_decref(o);
    return st;
}
