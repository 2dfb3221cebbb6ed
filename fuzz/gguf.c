/* gguf.c: hostile GGUF files: opened, described, and every value and tensor read. */
#define _GNU_SOURCE
#include "format/gguf.h"
#include "input.h"

/* The keys that readers ask for, and those of the seeds. */
static const char *const keys[] = {
    "general.architecture",
    "general.name",
    "general.alignment",
    "general.file_type",
    "llama.block_count",
    "llama.rope.freq_base",
    "llama.attention.head_count",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.add_bos_token",
    "u8",
    "i8",
    "u16",
    "i16",
    "u64",
    "i64",
    "f64",
};

static unsigned sum_string(sp_gguf_string s)
{
    unsigned sum = 0;
    for (size_t i = 0; i < s.n_bytes; i++) sum += (unsigned char)s.bytes[i];
    return sum;
}

static unsigned read_value(const sp_gguf *g, const char *key)
{
    sp_gguf_string text;
    uint32_t integer = 0;
    int32_t item = 0;
    float real = 0;
    bool flag = false;
    size_t n = 0;
    unsigned sum = sp_gguf_has(g, key);
    if (!sp_gguf_get_string(&text, g, key)) sum += sum_string(text);
    check_message(sp_gguf_get_u32(&integer, g, key));
    check_message(sp_gguf_get_f32(&real, g, key));
    check_message(sp_gguf_get_bool(&flag, g, key));
    if (sp_gguf_get_array_n(&n, g, key)) return sum + integer + flag;
    for (size_t i = 0; i < n; i++) {
        if (!sp_gguf_get_array_string(&text, g, key, i)) sum += sum_string(text);
        if (!sp_gguf_get_array_i32(&item, g, key, i)) sum += (unsigned)item;
        if (!sp_gguf_get_array_f32(&real, g, key, i)) sum += real > 0;
    }
    return sum;
}

static unsigned read_tensors(const sp_gguf *g)
{
    unsigned sum = 0;
    for (size_t i = 0; i < sp_gguf_n_tensors(g); i++) {
        const sp_gguf_tensor *t = sp_gguf_tensor_at(g, i);
        if (sp_gguf_find_tensor(g, t->name) != t || t->n_bytes == 0) abort();
        sum += ((const uint8_t *)t->data)[0] + ((const uint8_t *)t->data)[t->n_bytes - 1];
    }
    return sum;
}

static volatile unsigned sum; /* what is read must be used, or the compiler leaves the reading out */

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    static input_file file;
    sp_gguf *g;
    char *json;
    if (!file.fd) input_file_open(&file);
    input_file_set(&file, bytes, n_bytes);
    sp_status st = sp_gguf_open(&g, file.path);
    check_message(st);
    if (st) return 0;
    sum = read_tensors(g);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) sum += read_value(g, keys[i]);
    sp_gguf_close(g);
    if (sp_describe(&json, file.path)) abort(); /* a file that opens can be described */
    sp_free(json);
    return 0;
}
