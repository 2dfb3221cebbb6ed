/* adapter.c: opening an adapter directory: the three files, and the numbers that every PEFT type has. */
#include "format/adapter.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/status.h"

static const struct {
    const char *peft_type, *name;
    bool runnable;
} methods[] = {
    {"PROMPT_TUNING", "prompt", true},
    {"P_TUNING", "ptuning", true},
    {"PREFIX_TUNING", "prefix", true},
    {"CARTRIDGE", "cartridge", true},
    {"MULTITASK_PROMPT_TUNING", "multitask", true},
    {"CPT", "cpt", true},
    {SP_ADAPTER_COMPILED, "polynomial", true},
};
enum { N_METHODS = sizeof methods / sizeof methods[0] };

const char *sp_adapter_method(const char *peft_type)
{
    for (size_t i = 0; i < N_METHODS; i++)
        if (strcmp(methods[i].peft_type, peft_type) == 0) return methods[i].name;
    return peft_type;
}

bool sp_adapter_is_runnable(const char *peft_type)
{
    for (size_t i = 0; i < N_METHODS; i++)
        if (strcmp(methods[i].peft_type, peft_type) == 0) return methods[i].runnable;
    return false;
}

/* What `dir` is instead, as far as its files tell. */
static sp_status fail_no_adapter(const char *dir)
{
    char *model = sp_path_join(dir, "config.json");
    if (!model) return SP_ERR_MEMORY;
    bool is_model = sp_path_exists(model);
    free(model);
    if (!sp_path_exists(dir)) return sp_fail(SP_ERR_IO, "%s: no such directory", dir);
    if (!sp_path_is_directory(dir))
        return sp_fail(SP_ERR_FORMAT, "%s: a file; an adapter is a directory with " SP_ADAPTER_CONFIG " in it", dir);
    if (is_model)
        return sp_fail(SP_ERR_FORMAT, "%s: a Hugging Face model (config.json), not an adapter; give it as the model", dir);
    return sp_fail(SP_ERR_FORMAT, "%s: no adapter: it has no " SP_ADAPTER_CONFIG, dir);
}

static sp_status read_config(sp_adapter *a, const char *dir)
{
    sp_status st;
    const char *path = a->config_path;
    if (!sp_path_exists(path)) return fail_no_adapter(dir);
    if ((st = sp_json_read(&a->config, path))) return st;
    if ((st = sp_json_get_string(&a->peft_type, a->config, "peft_type", path)) ||
        (st = sp_json_get_string(&a->base_model, a->config, "base_model_name_or_path", path)) ||
        (st = sp_json_get_size(&a->num_virtual_tokens, a->config, "num_virtual_tokens", path)) ||
        (st = sp_json_get_size(&a->token_dim, a->config, "token_dim", path)) ||
        (st = sp_json_get_size(&a->num_layers, a->config, "num_layers", path)) ||
        (st = sp_json_get_size(&a->num_attention_heads, a->config, "num_attention_heads", path)) ||
        (st = sp_json_get_size(&a->num_transformer_submodules, a->config, "num_transformer_submodules", path)))
        return st;
    return a->peft_type ? SP_OK
                        : sp_fail(SP_ERR_FORMAT, "%s: \"peft_type\" is missing: not PEFT's configuration of an adapter", path);
}

static sp_status read_tensors(sp_adapter *a, const char *dir)
{
    if (sp_path_exists(a->tensors_path)) return sp_safetensors_open(&a->tensors, a->tensors_path);
    char *pickle = sp_path_join(dir, "adapter_model.bin");
    if (!pickle) return SP_ERR_MEMORY;
    bool is_pickle = sp_path_exists(pickle);
    free(pickle);
    if (is_pickle)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: adapter_model.bin is a pickle, which can run code; save it again with PEFT as safetensors", dir);
    return sp_fail(SP_ERR_FORMAT, "%s: " SP_ADAPTER_TENSORS " is missing; copy the whole directory again", dir);
}

sp_status sp_adapter_open(sp_adapter **out, const char *dir)
{
    sp_status st = SP_ERR_MEMORY;
    *out = NULL;
    sp_adapter *a = calloc(1, sizeof *a);
    if (!a) return sp_fail_no_memory(sizeof *a);
    if (!(a->config_path = sp_path_join(dir, SP_ADAPTER_CONFIG)) || !(a->tensors_path = sp_path_join(dir, SP_ADAPTER_TENSORS)) ||
        !(a->own_path = sp_path_join(dir, SP_ADAPTER_OWN)))
        goto fail;
    if ((st = read_config(a, dir)) || (st = read_tensors(a, dir))) goto fail;
    if (sp_path_exists(a->own_path) && (st = sp_json_read(&a->own, a->own_path))) goto fail;
    *out = a;
    return SP_OK;
fail:
    sp_adapter_close(a);
    return st;
}

void sp_adapter_close(sp_adapter *a)
{
    if (!a) return;
    sp_safetensors_close(a->tensors);
    json_decref(a->config);
    json_decref(a->own);
    free(a->config_path);
    free(a->tensors_path);
    free(a->own_path);
    free(a);
}
