/* tokenizer_json.c: hostile tokenizers of Hugging Face directories, and a text run through what loads. The input is tokenizer.json,
 * a NUL, tokenizer_config.json, a NUL, and generation_config.json; what is missing is empty. */
#define _GNU_SOURCE
#include "input.h"
#include "text/tokenizer.h"

enum { N_FILES = 3 };

static const char *const names[N_FILES] = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"};
static char dir[] = "/tmp/softprompt-fuzz-XXXXXX";
static input_file files[N_FILES];

static void remove_directory(void)
{
    char path[64];
    for (int i = 0; i < N_FILES; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

/* A directory of links to files in memory: a run writes nothing to a disk. */
static void make_directory(void)
{
    char path[64];
    require(mkdtemp(dir) != NULL, dir);
    atexit(remove_directory);
    for (int i = 0; i < N_FILES; i++) {
        input_file_open(&files[i]);
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        require(symlink(files[i].path, path) == 0, path);
    }
}

static void set_files(const uint8_t *bytes, size_t n_bytes)
{
    for (int i = 0; i < N_FILES; i++) {
        const uint8_t *end = i + 1 < N_FILES && n_bytes ? memchr(bytes, 0, n_bytes) : NULL;
        size_t n = end ? (size_t)(end - bytes) : n_bytes;
        if (i > 0 && n == 0)
            input_file_set(&files[i], "{}", 2);
        else
            input_file_set(&files[i], bytes, n);
        bytes += end ? n + 1 : n;
        n_bytes -= end ? n + 1 : n;
    }
}

static void use(const sp_tokenizer *t)
{
    static const char text[] = "abab  ab<x>\n <y> 12\t\xc3\xa9\xe2\x96\x81 b<s>";
    int32_t *ids;
    size_t n, n_bytes;
    char *back;
    for (unsigned flags = 0; flags < 4; flags++) {
        sp_status st = sp_tokenize(&ids, &n, t, text, sizeof text - 1, flags);
        check_message(st);
        if (st) continue;
        for (size_t i = 0; i < n; i++)
            if (ids[i] < 0 || (size_t)ids[i] >= sp_tokenizer_n_vocab(t)) abort();
        st = sp_detokenize(&back, &n_bytes, t, ids, n, true);
        check_message(st);
        sp_free(back);
        sp_free(ids);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    sp_tokenizer *t;
    if (!files[0].fd) make_directory();
    set_files(n_bytes ? bytes : (const uint8_t *)"", n_bytes);
    sp_status st = sp_tokenizer_from_hf(&t, dir);
    check_message(st);
    if (st) return 0;
    use(t);
    sp_tokenizer_free(t);
    return 0;
}
