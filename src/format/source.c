/* source.c: a model's files behind one face. */
#include "format/source.h"

#include <stdlib.h>

#include "base/status.h"

struct sp_source {
    sp_gguf *gguf;
};

sp_status sp_source_open(sp_source **out, const char *path)
{
    *out = NULL;
    sp_source *source = calloc(1, sizeof *source);
    if (!source) return sp_fail_no_memory(sizeof *source);
    sp_status st = sp_gguf_open(&source->gguf, path);
    if (st)
        sp_source_close(source);
    else
        *out = source;
    return st;
}

void sp_source_close(sp_source *source)
{
    if (!source) return;
    sp_gguf_close(source->gguf);
    free(source);
}

const char *sp_source_path(const sp_source *source)
{
    return sp_gguf_path(source->gguf);
}
size_t sp_source_file_bytes(const sp_source *source)
{
    return sp_gguf_file_bytes(source->gguf);
}
const sp_gguf *sp_source_gguf(const sp_source *source)
{
    return source->gguf;
}
bool sp_source_rows_as_trained(const sp_source *source)
{
    return source->gguf == NULL;
}

bool sp_source_has(const sp_source *source, const char *key)
{
    return sp_gguf_has(source->gguf, key);
}
sp_status sp_source_get_u32(uint32_t *out, const sp_source *source, const char *key)
{
    return sp_gguf_get_u32(out, source->gguf, key);
}
sp_status sp_source_get_f32(float *out, const sp_source *source, const char *key)
{
    return sp_gguf_get_f32(out, source->gguf, key);
}
sp_status sp_source_get_string(sp_gguf_string *out, const sp_source *source, const char *key)
{
    return sp_gguf_get_string(out, source->gguf, key);
}
size_t sp_source_n_tensors(const sp_source *source)
{
    return sp_gguf_n_tensors(source->gguf);
}
const sp_gguf_tensor *sp_source_tensor_at(const sp_source *source, size_t index)
{
    return sp_gguf_tensor_at(source->gguf, index);
}
const sp_gguf_tensor *sp_source_find_tensor(const sp_source *source, const char *name)
{
    return sp_gguf_find_tensor(source->gguf, name);
}
