/* save.c: a soft prompt as a PEFT adapter directory of its method's type.
 *
 *   adapter_model.safetensors   prompt_embeddings (num_virtual_tokens, width) f32, and the factors of several tasks
 *   softprompt.json             ours: {"format_version", "library_version", "method", "task", "fingerprint"}
 *   adapter_config.json         the fields that PEFT_VERSION writes, in its order
 *
 * Each file is written whole or not at all, the configuration last: a directory without it is no adapter, so a first save that
 * was cut off is seen. No file holds a time or a path: equal prompts give equal bytes. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/status.h"
#include "format/adapter.h"
#include "prompt/internal.h"

#define PEFT_VERSION "0.21.2"

const char *const sp_peft_types[SP_N_METHODS] = {
    [SP_METHOD_PROMPT] = "PROMPT_TUNING",
    [SP_METHOD_PREFIX] = "PREFIX_TUNING",
    [SP_METHOD_CARTRIDGE] = "CARTRIDGE",
    [SP_METHOD_PTUNING] = "P_TUNING",
    [SP_METHOD_MULTITASK] = "MULTITASK_PROMPT_TUNING",
    [SP_METHOD_CPT] = "CPT",
};

const char *const sp_encoder_type_names[2] = {[SP_ENCODER_MLP] = "MLP", [SP_ENCODER_LSTM] = "LSTM"};

const sp_init_name sp_init_names[3] = {
    [SP_INIT_VOCAB] = {"SAMPLE_VOCAB", "vocab"},
    [SP_INIT_RANDOM] = {"RANDOM", "random"},
    [SP_INIT_TEXT] = {"TEXT", "text"},
};

static json_t *text_or_null(const char *text)
{
    return text ? sp_json_text(text, strlen(text)) : json_null();
}
static json_t *size_or_null(size_t n)
{
    return n ? json_integer((json_int_t)n) : json_null();
}

/* Both are used up. NULL: no memory, or one of them was NULL. */
static json_t *join_objects(json_t *object, json_t *more)
{
    const bool ok = object && more && json_object_update(object, more) == 0;
    json_decref(more);
    if (ok) return object;
    json_decref(object);
    return NULL;
}

/* PEFT refuses a TEXT configuration without a tokenizer's name, which it uses for a new prompt only. */
static json_t *tokenizer_name(const sp_prompt *p)
{
    if (p->init != SP_INIT_TEXT) return json_null();
    return p->base_model ? text_or_null(p->base_model) : json_string("unknown");
}

static json_t *build_prompt_config(const sp_prompt *p)
{
    const bool from_text = p->init == SP_INIT_TEXT;
    return json_pack("{s:n, s:o, s:b, s:n, s:o, s:o, s:i, s:I, s:s, s:s, s:s, s:o, s:n, s:s, s:I, s:n, s:o}", "auto_mapping",
                     "base_model_name_or_path", text_or_null(p->base_model), "inference_mode", 1, "modules_to_save",
                     "num_attention_heads", size_or_null(p->n_head), "num_layers", size_or_null(p->n_layer),
                     "num_transformer_submodules", 1, "num_virtual_tokens", (json_int_t)p->num_virtual_tokens, "peft_type",
                     sp_peft_types[p->method], "peft_version", PEFT_VERSION, "prompt_tuning_init", sp_init_names[p->init].peft,
                     "prompt_tuning_init_text", text_or_null(from_text ? p->init_text : NULL), "revision", "task_type", "CAUSAL_LM",
                     "token_dim", (json_int_t)p->width, "tokenizer_kwargs", "tokenizer_name_or_path", tokenizer_name(p));
}

/* token_dim: numbers of one layer's key, as PEFT counts them under grouped-query attention. It is what PEFT writes for the hidden
 * size of a projection that is not there, too. */
static json_t *build_prefix_config(const sp_prompt *p)
{
    const size_t token_dim = p->n_layer ? p->width / p->n_layer / 2 : 0;
    const size_t hidden_size = p->encoder_hidden_size ? p->encoder_hidden_size : token_dim;
    return json_pack("{s:n, s:o, s:o, s:b, s:n, s:n, s:o, s:o, s:i, s:I, s:s, s:s, s:b, s:n, s:s, s:o}", "auto_mapping",
                     "base_model_name_or_path", text_or_null(p->base_model), "encoder_hidden_size", size_or_null(hidden_size),
                     "inference_mode", 1, "init_weights", "modules_to_save", "num_attention_heads", size_or_null(p->n_head),
                     "num_layers", size_or_null(p->n_layer), "num_transformer_submodules", 1, "num_virtual_tokens",
                     (json_int_t)p->num_virtual_tokens, "peft_type", sp_peft_types[p->method], "peft_version", PEFT_VERSION,
                     "prefix_projection", p->prefix_projection, "revision", "task_type", "CAUSAL_LM", "token_dim",
                     size_or_null(token_dim));
}

static json_t *build_cartridge_config(const sp_prompt *p)
{
    const size_t token_dim = p->n_layer ? p->width / p->n_layer / 2 : 0;
    return json_pack("{s:n, s:o, s:b, s:n, s:o, s:I, s:o, s:i, s:I, s:s, s:s, s:n, s:s, s:o}", "auto_mapping",
                     "base_model_name_or_path", text_or_null(p->base_model), "inference_mode", 1, "modules_to_save",
                     "num_attention_heads", size_or_null(p->n_head), "num_frozen_tokens", (json_int_t)p->num_frozen_tokens,
                     "num_layers", size_or_null(p->n_layer), "num_transformer_submodules", 1, "num_virtual_tokens",
                     (json_int_t)p->num_virtual_tokens, "peft_type", sp_peft_types[p->method], "peft_version", PEFT_VERSION,
                     "revision", "task_type", "CAUSAL_LM", "token_dim", size_or_null(token_dim));
}

/* encoder_num_layers is what PEFT writes for an MLP, too. A network that a loaded adapter does not tell of is written as PEFT's
 * default one: of it nothing is used but that the fields are there. */
static json_t *build_ptuning_config(const sp_prompt *p)
{
    return json_pack("{s:n, s:o, s:f, s:I, s:I, s:s, s:b, s:n, s:o, s:o, s:i, s:I, s:s, s:s, s:n, s:s, s:I}", "auto_mapping",
                     "base_model_name_or_path", text_or_null(p->base_model), "encoder_dropout", 0.0, "encoder_hidden_size",
                     (json_int_t)(p->encoder_hidden_size ? p->encoder_hidden_size : p->width), "encoder_num_layers",
                     (json_int_t)(p->encoder_num_layers ? p->encoder_num_layers : 2), "encoder_reparameterization_type",
                     sp_encoder_type_names[p->encoder_type], "inference_mode", 1, "modules_to_save", "num_attention_heads",
                     size_or_null(p->n_head), "num_layers", size_or_null(p->n_layer), "num_transformer_submodules", 1,
                     "num_virtual_tokens", (json_int_t)p->num_virtual_tokens, "peft_type", sp_peft_types[p->method], "peft_version",
                     PEFT_VERSION, "revision", "task_type", "CAUSAL_LM", "token_dim", (json_int_t)p->width);
}

/* A source is not told of: PEFT would look for its file whenever the adapter is loaded. */
static json_t *build_multitask_config(const sp_prompt *p)
{
    json_t *config = build_prompt_config(p), *own;
    own = json_pack("{s:I, s:I, s:n, s:i}", "num_ranks", (json_int_t)p->num_ranks, "num_tasks", (json_int_t)p->num_tasks,
                    "prompt_tuning_init_state_dict_path", "prompt_tuning_init_task", 0);
    return join_objects(config, own);
}

static json_t *build_cpt_config(const sp_prompt *p)
{
    json_t *config = json_pack("{s:n, s:o, s:b, s:n, s:o, s:o, s:i, s:I, s:s, s:s, s:n, s:s, s:I, s:n}", "auto_mapping",
                               "base_model_name_or_path", text_or_null(p->base_model), "inference_mode", 1, "modules_to_save",
                               "num_attention_heads", size_or_null(p->n_head), "num_layers", size_or_null(p->n_layer),
                               "num_transformer_submodules", 1, "num_virtual_tokens", (json_int_t)p->num_virtual_tokens,
                               "peft_type", sp_peft_types[p->method], "peft_version", PEFT_VERSION, "revision", "task_type",
                               "CAUSAL_LM", "token_dim", (json_int_t)p->width, "tokenizer_name_or_path");
    return join_objects(config, sp_cpt_build_config(p->cpt));
}

static json_t *build_compiled_config(const sp_prompt *p)
{
    return json_pack("{s:o, s:b, s:I, s:I, s:i, s:I, s:s, s:s}", "base_model_name_or_path", text_or_null(p->base_model),
                     "inference_mode", 1, "num_attention_heads", (json_int_t)p->n_head, "num_layers", (json_int_t)p->n_layer,
                     "num_transformer_submodules", 1, "num_virtual_tokens", (json_int_t)p->num_virtual_tokens, "peft_type",
                     SP_ADAPTER_COMPILED, "task_type", "CAUSAL_LM");
}

static json_t *build_config(const sp_prompt *p)
{
    if (p->states) return build_compiled_config(p);
    switch (p->method) {
    case SP_METHOD_PREFIX:
        return build_prefix_config(p);
    case SP_METHOD_CARTRIDGE:
        return build_cartridge_config(p);
    case SP_METHOD_PTUNING:
        return build_ptuning_config(p);
    case SP_METHOD_MULTITASK:
        return build_multitask_config(p);
    case SP_METHOD_CPT:
        return build_cpt_config(p);
    case SP_METHOD_PROMPT:
        break;
    }
    return build_prompt_config(p);
}

static json_t *build_task(const sp_task *task)
{
    if (!task) return json_null();
    json_t *verbalizers = json_array();
    bool ok = true;
    for (size_t i = 0; i < task->n_verbalizers; i++)
        ok = ok && !json_array_append_new(verbalizers, json_pack("{s:s, s:s}", "label", task->verbalizers[i].label, "text",
                                                                 task->verbalizers[i].text));
    if (!ok) {
        json_decref(verbalizers);
        return NULL;
    }
    return json_pack("{s:o, s:o, s:o}", "template", text_or_null(task->template_text), "verbalizers", verbalizers, "max_length",
                     size_or_null(task->max_length));
}

static json_t *build_key_bound(const sp_prompt *p)
{
    const sp_key_bound_report *r = &p->key_bound;
    if (!p->has_key_bound) return json_object();
    return json_pack("{s:{s:f, s:b, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:b}}", "key_bound", "max_logit", r->max_logit,
                     "is_penalty", r->is_penalty, "key_rank", (json_int_t)r->key_rank, "n_heads", (json_int_t)r->n_heads,
                     "training_bound", r->training_bound, "bound", r->bound, "score", r->score, "entries", r->entries,
                     "n_scores_inside", (json_int_t)r->n_scores_inside, "n_entries_inside", (json_int_t)r->n_entries_inside,
                     "n_rows", (json_int_t)r->n_rows, "are_held_out", r->are_held_out);
}

/* Only where it is not num_virtual_tokens, as it is in PEFT. */
static json_t *build_text_position(const sp_prompt *p)
{
    return p->text_position ? json_pack("{s:I}", "text_position", (json_int_t)p->text_position) : json_object();
}

static json_t *build_compiled(const sp_prompt *p)
{
    sp_compiled_info info;
    if (!p->states || sp_prompt_get_compiled_info(&info, p)) return json_object();
    return json_pack("{s:{s:s, s:I, s:I, s:I, s:f, s:f}}", "compiled", "method", "polynomial", "rank", (json_int_t)info.rank,
                     "degree", (json_int_t)info.degree, "n_features", (json_int_t)info.n_features, "epsilon", info.epsilon, "range",
                     info.range);
}

static json_t *build_method(const sp_prompt *p)
{
    json_t *method =
        json_pack("{s:s, s:I, s:I, s:s, s:o}", "name", sp_adapter_method(sp_peft_types[p->method]), "num_virtual_tokens",
                  (json_int_t)p->num_virtual_tokens, "num_frozen_tokens", (json_int_t)p->num_frozen_tokens, "init",
                  sp_init_names[p->init].own, "init_text", text_or_null(p->init_text));
    method = join_objects(method, build_text_position(p));
    method = join_objects(method, build_compiled(p));
    return join_objects(method, build_key_bound(p));
}

static json_t *build_fingerprint(const sp_prompt *p)
{
    const sp_fingerprint *f = &p->fingerprint;
    char tokenizer[17], embeddings[17];
    if (!p->has_fingerprint) return json_null();
    snprintf(tokenizer, sizeof tokenizer, "%016" PRIx64, f->tokenizer);
    snprintf(embeddings, sizeof embeddings, "%016" PRIx64, f->embeddings);
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "tokenizer", tokenizer, "embeddings", embeddings, "n_layer",
                     (json_int_t)f->n_layer, "d_model", (json_int_t)f->d_model, "n_head", (json_int_t)f->n_head, "n_head_kv",
                     (json_int_t)f->n_head_kv, "n_vocab", (json_int_t)f->n_vocab);
}

static json_t *build_own(const sp_prompt *p)
{
    return json_pack("{s:i, s:s, s:o, s:o, s:o}", "format_version", SP_PROMPT_FORMAT_VERSION, "library_version", sp_version(),
                     "method", build_method(p), "task", build_task(p->task), "fingerprint", build_fingerprint(p));
}

static sp_status write_json(json_t *object, const char *dir, const char *name)
{
    char *path = sp_path_join(dir, name);
    sp_status st = path ? SP_OK : SP_ERR_MEMORY;
    if (!st) st = object ? sp_json_write(object, path) : sp_json_fail_no_memory();
    free(path);
    json_decref(object);
    return st;
}

static sp_st_tensor tensor_of(const char *name, const float *data, size_t n_dims, uint64_t a, uint64_t b, uint64_t c)
{
    return (sp_st_tensor){.name = name,
                          .type = SP_F32,
                          .n_dims = n_dims,
                          .shape = {a, b, c},
                          .data = data,
                          .n_bytes = (size_t)(a * b * (n_dims > 2 ? c : 1)) * sizeof *data};
}

/* What PEFT saves of this method, by name; returns how many. */
static size_t list_tensors(sp_st_tensor out[3], const sp_prompt *p)
{
    if (p->method != SP_METHOD_MULTITASK) {
        out[0] = tensor_of(SP_PROMPT_TENSOR, p->rows, 2, p->num_virtual_tokens, p->width, 0);
        return 1;
    }
    const sp_multitask_parts parts = sp_prompt_multitask_parts(p, p->weights);
    out[0] = tensor_of(SP_COLS_TENSOR, parts.cols, 3, p->num_tasks, p->num_virtual_tokens, p->num_ranks);
    out[1] = tensor_of(SP_ROWS_TENSOR, parts.rows, 3, p->num_tasks, p->num_ranks, p->width);
    out[2] = tensor_of(SP_PROMPT_TENSOR, parts.shared, 2, p->num_virtual_tokens, p->width, 0);
    return 3;
}

static sp_status write_tensors(const sp_prompt *p, const char *dir)
{
    static const sp_metadata_item made_for = {"format", "pt"}; /* what PEFT writes, and transformers looks for */
    sp_st_tensor tensors[3];
    char *path = sp_path_join(dir, SP_ADAPTER_TENSORS);
    if (!path) return SP_ERR_MEMORY;
    const size_t n = p->states ? 0 : list_tensors(tensors, p);
    sp_status st = p->states ? sp_prompt_write_states(p, path) : sp_safetensors_write(path, tensors, n, &made_for, 1);
    free(path);
    return st;
}

/* A prompt that would not load again is not written over one that does. */
static sp_status check_finite(const sp_prompt *p, const char *dir)
{
    for (size_t i = 0; p->rows && i < sp_prompt_n_row_values(p); i++)
        if (!isfinite(p->rows[i]))
            return sp_fail(SP_ERR_ARGUMENT, "%s: not saved: virtual token %zu holds %f; train with a lower learning rate", dir,
                           i / p->width % p->num_virtual_tokens, (double)p->rows[i]);
    for (size_t i = 0; i < p->n_weights; i++)
        if (!isfinite(p->weights[i]))
            return sp_fail(SP_ERR_ARGUMENT, "%s: not saved: weight %zu is %f; train with a lower learning rate", dir, i,
                           (double)p->weights[i]);
    return SP_OK;
}

sp_status sp_prompt_save(const sp_prompt *prompt, const char *dir)
{
    sp_status st;
    if ((st = check_finite(prompt, dir)) || (st = sp_make_directory(dir))) return st;
    if ((st = write_tensors(prompt, dir)) || (st = write_json(build_own(prompt), dir, SP_ADAPTER_OWN))) return st;
    return write_json(build_config(prompt), dir, SP_ADAPTER_CONFIG);
}
