/* source.c: a GGUF file as it is, or a Hugging Face directory's parts put together. */
#include "format/source.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/status.h"
#include "format/hf_config.h"
#include "format/hf_directory.h"
#include "format/hf_tensors.h"

struct sp_source {
    sp_gguf *gguf;              /* or NULL, and all of these: */
    sp_hf_directory *directory; /* owns the shards that tensors point into */
    sp_hf_config config;
    sp_hf_tensors tensors;
};

static sp_status open_directory(sp_source *source, const char *path)
{
    sp_status st = sp_hf_directory_open(&source->directory, path);
    if (!st) st = sp_hf_config_read(&source->config, source->directory);
    return st ? st : sp_hf_tensors_read(&source->tensors, source->directory, &source->config);
}

sp_status sp_source_open(sp_source **out, const char *path)
{
    *out = NULL;
    sp_source *source = calloc(1, sizeof *source);
    if (!source) return sp_fail_no_memory(sizeof *source);
    sp_status st = sp_path_is_directory(path) ? open_directory(source, path) : sp_gguf_open(&source->gguf, path);
    if (st)
        sp_source_close(source);
    else
        *out = source;
    return st;
}

void sp_source_close(sp_source *source)
{
    if (!source) return;
    sp_hf_tensors_clear(&source->tensors);
    sp_hf_config_clear(&source->config);
    sp_hf_directory_close(source->directory);
    sp_gguf_close(source->gguf);
    free(source);
}

const char *sp_source_path(const sp_source *source)
{
    return source->gguf ? sp_gguf_path(source->gguf) : sp_hf_directory_path(source->directory);
}
uint64_t sp_source_file_bytes(const sp_source *source)
{
    return source->gguf ? sp_gguf_file_bytes(source->gguf) : sp_hf_directory_tensor_file_bytes(source->directory);
}
const sp_gguf *sp_source_gguf(const sp_source *source)
{
    return source->gguf;
}
bool sp_source_rows_as_trained(const sp_source *source)
{
    return source->gguf == NULL;
}

const char *sp_source_spelling(const sp_source *source, const char *name)
{
    const char *key = json_string_value(json_object_get(source->config.spelling, name));
    size_t tensor = sp_names_find(&source->tensors.names, (sp_name){name, strlen(name)});
    return key ? key : tensor != SP_NO_NAME ? source->tensors.own_names[tensor] : name;
}

/* ---- metadata ----------------------------------------------------------------------------------------------- */

static const char *config_path(const sp_source *source)
{
    return sp_hf_directory_config_path(source->directory);
}

/* A directory's value, which must be there: GGUF's keys that a family does not have are asked for with sp_source_has. */
static sp_status find_value(const json_t **out, const sp_source *source, const char *key)
{
    *out = json_object_get(source->config.metadata, key);
    if (*out) return SP_OK;
    for (const sp_hf_setting *s = source->config.family->settings; s->hf; s++) {
        const size_t n = strlen(source->config.family->architecture);
        if (strncmp(key, source->config.family->architecture, n) == 0 && key[n] == '.' && strcmp(key + n + 1, s->gguf) == 0)
            return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is missing; copy the whole directory again", config_path(source), s->hf);
    }
    return sp_fail(SP_ERR_FORMAT, "%s: nothing in it gives %s", config_path(source), key);
}

static sp_status fail_type(const sp_source *source, const char *key, const char *wanted)
{
    return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is not %s", config_path(source), sp_source_spelling(source, key), wanted);
}

bool sp_source_has(const sp_source *source, const char *key)
{
    return source->gguf ? sp_gguf_has(source->gguf, key) : json_object_get(source->config.metadata, key) != NULL;
}

sp_status sp_source_get_u32(uint32_t *out, const sp_source *source, const char *key)
{
    const json_t *value;
    if (source->gguf) return sp_gguf_get_u32(out, source->gguf, key);
    sp_status st = find_value(&value, source, key);
    if (st) return st;
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < 0 || number > UINT32_MAX) return fail_type(source, key, "a whole number that fits");
    *out = (uint32_t)number;
    return SP_OK;
}

sp_status sp_source_get_f32(float *out, const sp_source *source, const char *key)
{
    const json_t *value;
    if (source->gguf) return sp_gguf_get_f32(out, source->gguf, key);
    sp_status st = find_value(&value, source, key);
    if (st) return st;
    double number = json_number_value(value);
    if (!json_is_number(value) || !isfinite((float)number)) return fail_type(source, key, "a number that fits");
    *out = (float)number;
    return SP_OK;
}

sp_status sp_source_get_bool(bool *out, const sp_source *source, const char *key)
{
    const json_t *value;
    if (source->gguf) return sp_gguf_get_bool(out, source->gguf, key);
    sp_status st = find_value(&value, source, key);
    if (st) return st;
    if (!json_is_boolean(value)) return fail_type(source, key, "true or false");
    *out = json_is_true(value);
    return SP_OK;
}

sp_status sp_source_get_string(sp_gguf_string *out, const sp_source *source, const char *key)
{
    const json_t *value;
    if (source->gguf) return sp_gguf_get_string(out, source->gguf, key);
    sp_status st = find_value(&value, source, key);
    if (st) return st;
    if (!json_is_string(value)) return fail_type(source, key, "a string");
    *out = (sp_gguf_string){json_string_value(value), json_string_length(value)};
    return SP_OK;
}

/* ---- tensors ------------------------------------------------------------------------------------------------ */

size_t sp_source_n_tensors(const sp_source *source)
{
    return source->gguf ? sp_gguf_n_tensors(source->gguf) : source->tensors.names.n;
}
const sp_gguf_tensor *sp_source_tensor_at(const sp_source *source, size_t index)
{
    return source->gguf ? sp_gguf_tensor_at(source->gguf, index) : &source->tensors.tensors[index];
}
const sp_gguf_tensor *sp_source_find_tensor(const sp_source *source, const char *name)
{
    if (source->gguf) return sp_gguf_find_tensor(source->gguf, name);
    size_t i = sp_names_find(&source->tensors.names, (sp_name){name, strlen(name)});
    return i == SP_NO_NAME ? NULL : &source->tensors.tensors[i];
}
