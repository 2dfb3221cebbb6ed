/* hf_directory.c: finding a directory's files, and all tensors of its shards.
 *
 * Invariant: no two tensors have one name, and every tensor that the index promises is in the shard that it names. The index names
 * plain files of this directory only: a name with a slash would read what the user did not point at. */
#include "format/hf_directory.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/status.h"
#include "format/names.h"

#define WEIGHTS "model.safetensors"
#define INDEX "model.safetensors.index.json"

struct sp_hf_directory {
    char *path, *config_path;
    json_t *config;
    sp_safetensors **shards; /* (shard_names.n) */
    sp_names shard_names;
    json_t *index;                /* owns the names of shards; NULL: one file */
    const sp_st_tensor **tensors; /* (names.n) */
    size_t *shard_of;             /* (names.n) */
    sp_names names;
};

/* ---- shards ------------------------------------------------------------------------------------------------- */

/* *there: is one of the names, which end with NULL, a file of the directory? */
static sp_status look_for(bool *there, const sp_hf_directory *d, const char *const *names)
{
    *there = false;
    for (; *names && !*there; names++) {
        char *path = sp_path_join(d->path, *names);
        if (!path) return SP_ERR_MEMORY;
        *there = sp_path_exists(path);
        free(path);
    }
    return SP_OK;
}

static sp_status open_shard(sp_hf_directory *d, const char *name)
{
    char *path = sp_path_join(d->path, name);
    if (!path) return SP_ERR_MEMORY;
    sp_status st = SP_OK;
    if (d->index && !sp_path_exists(path))
        st = sp_fail(SP_ERR_IO, "%s: this shard, which " INDEX " names, is not there; copy the whole directory again", path);
    if (!st) st = sp_safetensors_open(&d->shards[d->shard_names.n], path);
    if (!st) sp_names_add(&d->shard_names, (sp_name){name, strlen(name)});
    free(path);
    return st;
}

static sp_status reserve_shards(sp_hf_directory *d, size_t n)
{
    sp_status st = sp_names_reserve(&d->shard_names, n);
    if (st) return st;
    d->shards = calloc(n + 1, sizeof *d->shards);
    return d->shards ? SP_OK : sp_fail_no_memory((n + 1) * sizeof *d->shards);
}

static bool is_plain_name(const char *name)
{
    return *name && *name != '.' && !strchr(name, '/') && !strchr(name, '\\');
}

static sp_status open_indexed_shards(sp_hf_directory *d, const char *index_path)
{
    json_t *map = NULL, *value;
    const char *name;
    sp_status st = sp_json_read(&d->index, index_path);
    if (!st) st = sp_json_get_object(&map, d->index, "weight_map", index_path);
    if (!st && !map) st = sp_fail(SP_ERR_FORMAT, "%s: \"weight_map\" is missing; copy the whole directory again", index_path);
    if (!st) st = reserve_shards(d, json_object_size(map));
    if (st) return st;
    json_object_foreach(map, name, value)
    {
        const char *shard = json_string_value(value);
        if (!shard) return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s: its shard is no string", index_path, name);
        if (!is_plain_name(shard))
            return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s: \"%.128s\" is no file of this directory; do not trust this model",
                           index_path, name, shard);
        if (sp_names_find(&d->shard_names, (sp_name){shard, strlen(shard)}) == SP_NO_NAME && (st = open_shard(d, shard))) return st;
    }
    return SP_OK;
}

static sp_status fail_no_weights(const sp_hf_directory *d)
{
    static const char *const pickles[] = {"pytorch_model.bin", "pytorch_model.bin.index.json", NULL};
    static const char *const others[] = {"tf_model.h5", "flax_model.msgpack", NULL};
    bool pickle, other;
    sp_status st = look_for(&pickle, d, pickles);
    if (!st) st = look_for(&other, d, others);
    if (st) return st;
    if (pickle)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: its weights are a pickle (pytorch_model.bin), which can run code; load it with transformers and "
                       "save_pretrained it as safetensors",
                       d->path);
    if (other)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: its weights are TensorFlow's or Flax's; save it with transformers as safetensors",
                       d->path);
    return sp_fail(SP_ERR_FORMAT, "%s: neither " WEIGHTS " nor " INDEX " is there; copy the whole directory again", d->path);
}

static sp_status open_shards(sp_hf_directory *d)
{
    static const char *const weights[] = {WEIGHTS, NULL}, *const index[] = {INDEX, NULL};
    bool whole, indexed;
    sp_status st = look_for(&whole, d, weights);
    if (!st) st = look_for(&indexed, d, index);
    if (st) return st;
    if (whole) { /* transformers prefers it, too */
        st = reserve_shards(d, 1);
        return st ? st : open_shard(d, WEIGHTS);
    }
    if (!indexed) return fail_no_weights(d);
    char *path = sp_path_join(d->path, INDEX);
    st = path ? open_indexed_shards(d, path) : SP_ERR_MEMORY;
    free(path);
    return st;
}

/* ---- tensors ------------------------------------------------------------------------------------------------ */

static sp_status check_index(const sp_hf_directory *d)
{
    const json_t *map = json_object_get(d->index, "weight_map");
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, name, value)
    {
        const char *shard = json_string_value(value);
        size_t i = sp_names_find(&d->names, (sp_name){name, strlen(name)});
        if (i == SP_NO_NAME || d->shard_of[i] != sp_names_find(&d->shard_names, (sp_name){shard, strlen(shard)}))
            return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s is not in %.128s, where " INDEX " has it; copy the directory again",
                           d->path, name, shard);
    }
    return SP_OK;
}

static sp_status gather_tensors(sp_hf_directory *d)
{
    size_t n = 0;
    for (size_t s = 0; s < d->shard_names.n; s++) n += sp_safetensors_n_tensors(d->shards[s]);
    sp_status st = sp_names_reserve(&d->names, n);
    if (st) return st;
    d->tensors = calloc(n + 1, sizeof *d->tensors);
    d->shard_of = calloc(n + 1, sizeof *d->shard_of);
    if (!d->tensors || !d->shard_of) return sp_fail_no_memory((n + 1) * sizeof *d->tensors);
    for (size_t s = 0; s < d->shard_names.n; s++)
        for (size_t i = 0; i < sp_safetensors_n_tensors(d->shards[s]); i++) {
            const sp_st_tensor *t = sp_safetensors_at(d->shards[s], i);
            d->tensors[d->names.n] = t;
            d->shard_of[d->names.n] = s;
            if (!sp_names_add(&d->names, (sp_name){t->name, strlen(t->name)}))
                return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s is in two shards", d->path, t->name);
        }
    return check_index(d);
}

static sp_status read_config(sp_hf_directory *d)
{
    static const char *const adapter[] = {"adapter_config.json", NULL}, *const config[] = {SP_HF_CONFIG, NULL};
    bool is_adapter, is_model;
    sp_status st = look_for(&is_adapter, d, adapter);
    if (!st) st = look_for(&is_model, d, config);
    if (st) return st;
    if (!is_model && is_adapter)
        return sp_fail(SP_ERR_FORMAT, "%s: a PEFT adapter, not a model; give the model's file or directory", d->path);
    if (!is_model)
        return sp_fail(SP_ERR_FORMAT,
                       "%s: a directory without " SP_HF_CONFIG "; a model is a GGUF file or a directory of Hugging Face", d->path);
    return sp_json_read(&d->config, d->config_path);
}

/* ---- the handle --------------------------------------------------------------------------------------------- */

sp_status sp_hf_directory_open(sp_hf_directory **out, const char *path)
{
    sp_status st = SP_ERR_MEMORY;
    *out = NULL;
    sp_hf_directory *d = calloc(1, sizeof *d);
    if (!d) return sp_fail_no_memory(sizeof *d);
    if (!(d->path = strdup(path)))
        st = sp_fail_no_memory(strlen(path) + 1);
    else if ((d->config_path = sp_path_join(path, SP_HF_CONFIG)))
        st = read_config(d);
    if (!st) st = open_shards(d);
    if (!st) st = gather_tensors(d);
    if (st)
        sp_hf_directory_close(d);
    else
        *out = d;
    return st;
}

void sp_hf_directory_close(sp_hf_directory *d)
{
    if (!d) return;
    for (size_t s = 0; d->shards && s < d->shard_names.n; s++) sp_safetensors_close(d->shards[s]);
    sp_names_free(&d->names);
    sp_names_free(&d->shard_names);
    json_decref(d->config);
    json_decref(d->index);
    free(d->tensors);
    free(d->shard_of);
    free(d->shards);
    free(d->config_path);
    free(d->path);
    free(d);
}

const char *sp_hf_directory_path(const sp_hf_directory *d)
{
    return d->path;
}
json_t *sp_hf_directory_config(const sp_hf_directory *d)
{
    return d->config;
}
const char *sp_hf_directory_config_path(const sp_hf_directory *d)
{
    return d->config_path;
}

uint64_t sp_hf_directory_tensor_file_bytes(const sp_hf_directory *d)
{
    uint64_t n = 0;
    for (size_t s = 0; s < d->shard_names.n; s++) n += sp_safetensors_file_bytes(d->shards[s]);
    return n;
}

size_t sp_hf_directory_n_tensors(const sp_hf_directory *d)
{
    return d->names.n;
}
const sp_st_tensor *sp_hf_directory_tensor_at(const sp_hf_directory *d, size_t index)
{
    return d->tensors[index];
}
const sp_safetensors *sp_hf_directory_shard_of(const sp_hf_directory *d, size_t index)
{
    return d->shards[d->shard_of[index]];
}
