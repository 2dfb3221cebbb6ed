/* adapter.c: hostile adapter directories. The input is adapter_config.json, a NUL, softprompt.json, a NUL, and
 * adapter_model.safetensors; without the second NUL there is no softprompt.json. */
#define _GNU_SOURCE
#include "input.h"

enum { CONFIG, OWN, TENSORS, N_FILES };

static const char *const names[N_FILES] = {"adapter_config.json", "softprompt.json", "adapter_model.safetensors"};
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

/* A directory of links to files in memory: a run writes nothing to a disk. */
static void make_directory(void)
{
    char path[64];
    require(mkdtemp(dir) != NULL, dir);
    atexit(remove_directory);
    for (int i = 0; i < N_FILES; i++) {
        input_file_open(&files[i]);
        name_file(path, i);
        require(symlink(files[i].path, path) == 0, path);
    }
}

static void set_files(const uint8_t *bytes, size_t n_bytes)
{
    const uint8_t *end = bytes + n_bytes, *first = memchr(bytes, 0, n_bytes);
    const uint8_t *second = first ? memchr(first + 1, 0, (size_t)(end - first - 1)) : NULL;
    char own[64];
    name_file(own, OWN);
    input_file_set(&files[CONFIG], bytes, first ? (size_t)(first - bytes) : n_bytes);
    input_file_set(&files[TENSORS],
                   second  ? second + 1
                   : first ? first + 1
                           : end,
                   second  ? (size_t)(end - second - 1)
                   : first ? (size_t)(end - first - 1)
                           : 0);
    unlink(own);
    if (!second) return;
    input_file_set(&files[OWN], first + 1, (size_t)(second - first - 1));
    require(symlink(files[OWN].path, own) == 0, own);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    sp_prompt *prompt;
    char *json;
    if (!files[0].fd) make_directory();
    if (n_bytes) set_files(bytes, n_bytes);
    check_message(sp_describe(&json, dir));
    sp_free(json);
    sp_status st = sp_prompt_load(&prompt, dir);
    check_message(st);
    if (st) return 0;
    const float *values = sp_prompt_weights(prompt);
    for (size_t i = 0; i < sp_prompt_n_weights(prompt); i++)
        if (values[i] - values[i] != 0) abort(); /* only finite numbers come through */
    if (sp_prompt_num_frozen_tokens(prompt) > sp_prompt_num_virtual_tokens(prompt)) abort();
    sp_prompt_free(prompt);
    return 0;
}
