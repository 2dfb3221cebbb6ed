/* test_describe.c: descriptions of files that leave things out or say them in another way. Real ones: oracle/adapter.py. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <gguf.h>
#include <jansson.h>

#include "base/file.h"
#include "files.h"
#include "format/safetensors.h"

static json_t *describe(const char *path)
{
    char *text;
    json_error_t error;
    if (sp_describe(&text, path)) fail_msg("%s", sp_message());
    json_t *o = json_loads(text, 0, &error);
    assert_non_null(o);
    sp_free(text);
    return o;
}

static void assert_member(const json_t *o, const char *key, const char *expected)
{
    char *text = json_dumps(json_object_get(o, key), JSON_ENCODE_ANY | JSON_COMPACT);
    assert_non_null(text); /* NULL: the member is absent, not null */
    assert_string_equal(text, expected);
    free(text);
}

static json_t *describe_gguf(struct gguf_context *g)
{
    memory_file file = memory_file_create();
    assert_true(gguf_write_to_file(g, file.path, false));
    gguf_free(g);
    json_t *o = describe(file.path);
    close(file.fd);
    return o;
}

static void a_model_that_says_nothing(void **state)
{
    static const char *const absent[] = {"architecture", "name",      "file_type", "n_layer", "d_model",        "d_ffn",
                                         "n_head",       "n_head_kv", "d_head",    "n_vocab", "context_length", "rope_theta"};
    json_t *o = describe_gguf(gguf_init_empty());
    (void)state;
    assert_member(o, "kind", "\"model\"");
    for (size_t i = 0; i < ARRAY_LEN(absent); i++) assert_member(o, absent[i], "null");
    assert_member(o, "n_parameters", "0");
    assert_member(o, "tensor_types", "{}");
    assert_member(o, "tokenizer",
                  "{\"model\":null,\"pre\":null,\"n_vocab\":null,\"bos\":null,\"eos\":null,\"add_bos\":null,"
                  "\"chat_template\":false}");
    json_decref(o);
}

static void a_model_of_another_architecture(void **state)
{
    static const int32_t heads[] = {8, 4, 8};
    static const char *tokens[] = {"a", "b"};
    struct gguf_context *g = gguf_init_empty();
    (void)state;
    gguf_set_val_str(g, "general.architecture", "openelm");
    gguf_set_val_str(g, "general.name", "a\xff\"b"); /* no UTF-8 */
    gguf_set_val_u32(g, "general.file_type", 15);
    gguf_set_val_u64(g, "openelm.block_count", 3);
    gguf_set_val_u32(g, "openelm.embedding_length", 128);
    gguf_set_arr_data(g, "openelm.attention.head_count", GGUF_TYPE_INT32, heads, ARRAY_LEN(heads));
    gguf_set_val_str(g, "openelm.feed_forward_length", "not a number");
    gguf_set_val_f32(g, "openelm.rope.freq_base", 0.5f);
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", tokens, ARRAY_LEN(tokens));
    gguf_set_val_str(g, "tokenizer.chat_template", "{{ messages }}");
    json_t *o = describe_gguf(g);
    assert_member(o, "architecture", "\"openelm\"");
    assert_member(o, "name", "\"a\xef\xbf\xbd\\\"b\"");
    assert_member(o, "file_type", "\"Q4_K_M\"");
    assert_member(o, "n_layer", "3");
    assert_member(o, "n_head", "[8,4,8]");
    assert_member(o, "d_head", "null");
    assert_member(o, "d_ffn", "null");
    assert_member(o, "n_vocab", "2");
    assert_member(o, "rope_theta", "0.5");
    json_decref(o);
}

static void older_files_leave_sizes_to_the_reader(void **state)
{
    struct gguf_context *g = gguf_init_empty();
    (void)state;
    gguf_set_val_str(g, "general.architecture", "llama");
    gguf_set_val_u32(g, "general.file_type", 4711);
    gguf_set_val_u32(g, "llama.embedding_length", 128);
    gguf_set_val_u32(g, "llama.attention.head_count", 4);
    json_t *o = describe_gguf(g);
    assert_member(o, "n_head_kv", "4");
    assert_member(o, "d_head", "32");
    assert_member(o, "file_type", "4711");
    json_decref(o);
}

static void a_safetensors_file(void **state)
{
    static const float values[2] = {1, 2};
    const sp_st_tensor tensor = {"t", SP_F32, 2, {1, 2}, values, sizeof values};
    const sp_metadata_item metadata = {"format", "pt"};
    char *dir = make_directory(), *path = sp_path_join(dir, "any-name");
    (void)state;
    assert_int_equal(sp_safetensors_write(path, &tensor, 1, &metadata, 1), SP_OK);
    json_t *o = describe(path);
    assert_member(o, "kind", "\"tensors\"");
    assert_member(o, "bytes", "8");
    assert_member(o, "tensors", "[{\"name\":\"t\",\"dtype\":\"F32\",\"shape\":[1,2]}]");
    assert_member(o, "metadata", "{\"format\":\"pt\"}");
    json_decref(o);
    free(path);
    remove_directory(dir);
}

static void what_cannot_be_described(void **state)
{
    char *dir = make_directory(), *json = dir;
    (void)state;
    assert_fails(sp_describe(&json, "/no/such/file"), SP_ERR_IO, "/no/such/file: cannot open");
    assert_null(json);
    assert_fails(sp_describe(&json, "/proc/version"), SP_ERR_FORMAT,
                 "neither a GGUF model, nor a safetensors file, nor a directory with");
    assert_fails(sp_describe(&json, dir), SP_ERR_FORMAT, "it has no adapter_config.json");
    remove_directory(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_that_says_nothing),
        cmocka_unit_test(a_model_of_another_architecture),
        cmocka_unit_test(older_files_leave_sizes_to_the_reader),
        cmocka_unit_test(a_safetensors_file),
        cmocka_unit_test(what_cannot_be_described),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
