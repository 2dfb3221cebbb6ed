/* hf_directory.c: hostile model directories of Hugging Face. The input is config.json, a NUL, model.safetensors.index.json, a NUL,
 * and a file of tensors: model.safetensors where the index is empty, else the shard "a.safetensors". */
#define _GNU_SOURCE
#include "format/source.h"
#include "input.h"

enum { CONFIG, INDEX, WHOLE, SHARD, N_FILES };

static const char *const names[N_FILES] = {"config.json", "model.safetensors.index.json", "model.safetensors", "a.safetensors"};
static char dir[] = "/tmp/softprompt-fuzz-XXXXXX";
static input_file files[N_FILES];

static void name_file(char path[64], int file)
{
    snprintf(path, 64, "%s/%s", dir, names[file]);
}

static void remove_directory(void)
{
    char path[64];
    for (int i = 0; i < N_FILES; i++) {
        name_file(path, i);
        unlink(path);
    }
    rmdir(dir);
}

static void make_directory(void)
{
    require(mkdtemp(dir) != NULL, dir);
    atexit(remove_directory);
    for (int i = 0; i < N_FILES; i++) input_file_open(&files[i]);
}

/* A link to a file in memory: a run writes nothing to a disk. */
static void set_file(int file, bool wanted, const uint8_t *bytes, size_t n_bytes)
{
    char path[64];
    name_file(path, file);
    unlink(path);
    if (!wanted) return;
    input_file_set(&files[file], bytes, n_bytes);
    require(symlink(files[file].path, path) == 0, path);
}

static void set_files(const uint8_t *bytes, size_t n_bytes)
{
    const uint8_t *end = bytes + n_bytes, *first = memchr(bytes, 0, n_bytes);
    const uint8_t *index = first ? first + 1 : end, *second = memchr(index, 0, (size_t)(end - index));
    const uint8_t *tensors = second ? second + 1 : end;
    const size_t n_index = (size_t)((second ? second : end) - index), n_tensors = (size_t)(end - tensors);
    set_file(CONFIG, true, bytes, (size_t)((first ? first : end) - bytes));
    set_file(INDEX, n_index > 0, index, n_index);
    set_file(WHOLE, n_index == 0, tensors, n_tensors);
    set_file(SHARD, n_index > 0, tensors, n_tensors);
}

static unsigned read_values(const sp_source *source)
{
    static const char *const architectures[] = {"llama",  "qwen2", "qwen3", "smollm3", "gemma3",
                                                "gemma2", "phi3",  "gpt2",  "gptneox"};
    static const char *const keys[] = {"block_count",     "embedding_length",         "feed_forward_length",
                                       "context_length",  "attention.head_count",     "attention.head_count_kv",
                                       "rope.freq_base",  "rope.scaling.type",        "rope.scaling.factor",
                                       "attention.scale", "attention.sliding_window", "attention.key_length"};
    unsigned sum = 0;
    for (size_t a = 0; a < sizeof architectures / sizeof *architectures; a++)
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            char key[128];
            uint32_t integer = 0;
            float real = 0;
            bool flag = false;
            sp_gguf_string text;
            snprintf(key, sizeof key, "%s.%s", architectures[a], keys[k]);
            sum += sp_source_has(source, key);
            if (!sp_source_has(source, key)) continue;
            check_message(sp_source_get_u32(&integer, source, key));
            check_message(sp_source_get_f32(&real, source, key));
            check_message(sp_source_get_bool(&flag, source, key));
            check_message(sp_source_get_string(&text, source, key));
            if (real - real != 0) abort(); /* only finite numbers come through */
            sum += integer + flag + (unsigned)*sp_source_spelling(source, key);
        }
    return sum;
}

static unsigned read_tensors(const sp_source *source)
{
    unsigned sum = 0;
    for (size_t i = 0; i < sp_source_n_tensors(source); i++) {
        const sp_gguf_tensor *t = sp_source_tensor_at(source, i);
        const uint64_t n = t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
        if (sp_source_find_tensor(source, t->name) != t || n * ggml_type_size(t->type) != t->n_bytes) abort();
        for (size_t b = 0; b < t->n_bytes; b++) sum += ((const uint8_t *)t->data)[b];
    }
    return sum;
}

static volatile unsigned sum; /* what is read must be used, or the compiler leaves the reading out */

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    sp_source *source;
    char *json;
    if (!files[0].fd) make_directory();
    set_files(n_bytes ? bytes : (const uint8_t *)"", n_bytes);
    check_message(sp_describe(&json, dir));
    sp_free(json);
    sp_status st = sp_source_open(&source, dir);
    check_message(st);
    if (st) return 0;
    sum = read_values(source) + read_tensors(source);
    sp_source_close(source);
    return 0;
}
