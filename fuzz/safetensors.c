/* safetensors.c: hostile safetensors files: opened, described, every tensor read. */
#define _GNU_SOURCE
#include "format/safetensors.h"
#include "input.h"

static unsigned read_tensor(const sp_safetensors *f, const sp_st_tensor *t)
{
    unsigned sum = 0;
    float value;
    if (sp_safetensors_find(f, t->name) != t) abort();
    for (size_t i = 0; i < t->n_bytes; i++) sum += ((const uint8_t *)t->data)[i];
    for (size_t i = 0; i < t->n_bytes / sp_dtype_bytes(t->type); i++)
        if (!sp_safetensors_read_f32(&value, f, t, i, 1)) sum += value > 0;
    return sum;
}

static volatile unsigned sum; /* what is read must be used, or the compiler leaves the reading out */

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    static input_file file;
    sp_safetensors *f;
    char *json;
    if (!file.fd) input_file_open(&file);
    input_file_set(&file, bytes, n_bytes);
    sp_status st = sp_safetensors_open(&f, file.path);
    check_message(st);
    if (st) return 0;
    for (size_t i = 0; i < sp_safetensors_n_tensors(f); i++) sum += read_tensor(f, sp_safetensors_at(f, i));
    sp_safetensors_close(f);
    check_message(sp_describe(&json, file.path));
    sp_free(json);
    return 0;
}
