/* load.c: a PEFT adapter directory as a soft prompt: ours, or PEFT's own, which has no softprompt.json and may leave out most of
 * its configuration. What counts is the tensor; numbers in the configuration must agree with it where they are given. */
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "format/adapter.h"
#include "prompt/internal.h"
#include "prompt/task.h"

/* ---- adapter_config.json and the tensor ----------------------------------------------------------------------- */

static sp_status check_config(const sp_adapter *a)
{
    if (!sp_adapter_is_runnable(a->peft_type))
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: peft_type %.64s is not run by this version; it runs PROMPT_TUNING, P_TUNING, PREFIX_TUNING, "
                       "CARTRIDGE, MULTITASK_PROMPT_TUNING and CPT",
                       a->config_path, a->peft_type);
    if (a->num_transformer_submodules > 1)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: a prompt for %zu submodules (encoder and decoder); only decoders are run",
                       a->config_path, a->num_transformer_submodules);
    return SP_OK;
}

static sp_method method_of(const sp_adapter *a)
{
    int method = 0;
    while (method < SP_N_METHODS && strcmp(a->peft_type, sp_peft_types[method]) != 0) method++;
    assert(method < SP_N_METHODS); /* check_config was here */
    return (sp_method)method;
}

static sp_status check_length(const sp_adapter *a, const char *field, size_t expected, uint64_t found)
{
    if (expected == 0 || expected == found) return SP_OK;
    return sp_fail(SP_ERR_FORMAT, "%s: tensor " SP_PROMPT_TENSOR " has %" PRIu64 " where \"%s\" in " SP_ADAPTER_CONFIG " says %zu",
                   a->tensors_path, found, field, expected);
}

/* Rows of keys and values: a key and a value of token_dim numbers for every layer. */
static sp_status check_keys_values(const sp_adapter *a, uint64_t width)
{
    const uint64_t n_vectors = a->num_layers > UINT64_MAX / 2 ? UINT64_MAX : 2 * (uint64_t)a->num_layers;
    const uint64_t token_dim = n_vectors ? width / n_vectors : a->token_dim;
    if (n_vectors && (width % n_vectors || width < n_vectors))
        return sp_fail(SP_ERR_FORMAT,
                       "%s: tensor " SP_PROMPT_TENSOR " has %" PRIu64 " columns: no keys and values of the %zu layers that "
                       "\"num_layers\" in " SP_ADAPTER_CONFIG " says",
                       a->tensors_path, width, a->num_layers);
    return check_length(a, "token_dim", a->token_dim, token_dim);
}

static sp_status find_tensor(const sp_st_tensor **out, const sp_adapter *a)
{
    sp_status st;
    const sp_st_tensor *t = *out = sp_safetensors_find(a->tensors, SP_PROMPT_TENSOR);
    if (!t)
        return sp_fail(SP_ERR_FORMAT, "%s: no tensor " SP_PROMPT_TENSOR " (of %zu): not the weights of a %.64s adapter",
                       a->tensors_path, sp_safetensors_n_tensors(a->tensors), a->peft_type);
    if (t->n_dims != 2 || t->shape[0] == 0 || t->shape[1] == 0)
        return sp_fail(SP_ERR_FORMAT, "%s: tensor " SP_PROMPT_TENSOR " is not a matrix with a row for each virtual token",
                       a->tensors_path);
    if ((st = check_length(a, "num_virtual_tokens", a->num_virtual_tokens, t->shape[0]))) return st;
    return sp_method_is_given(method_of(a)) ? check_keys_values(a, t->shape[1])
                                            : check_length(a, "token_dim", a->token_dim, t->shape[1]);
}

/* All n numbers of a tensor whose last dimension has n_columns. */
static sp_status read_tensor(float *out, const sp_adapter *a, const sp_st_tensor *t, size_t n, size_t n_columns)
{
    sp_status st = sp_safetensors_read_f32(out, a->tensors, t, 0, n);
    for (size_t i = 0; i < n && !st; i++)
        if (!isfinite(out[i]))
            st = sp_fail(SP_ERR_FORMAT, "%s: tensor %s: row %zu, column %zu is %f", a->tensors_path, t->name, i / n_columns,
                         i % n_columns, (double)out[i]);
    return st;
}

static sp_status read_weights(sp_prompt *p, const sp_adapter *a, const sp_st_tensor *t)
{
    float *to = p->method == SP_METHOD_MULTITASK ? sp_prompt_multitask_parts(p, p->weights).shared : p->rows;
    return read_tensor(to, a, t, p->num_virtual_tokens * p->width, p->width);
}

/* ---- factors of tasks ------------------------------------------------------------------------------------------- */

static sp_status find_factor(const sp_st_tensor **out, const sp_adapter *a, const char *name)
{
    const sp_st_tensor *t = *out = sp_safetensors_find(a->tensors, name);
    if (!t)
        return sp_fail(SP_ERR_FORMAT, "%s: no tensor %s (of %zu): not the weights of a %.64s adapter", a->tensors_path, name,
                       sp_safetensors_n_tensors(a->tensors), a->peft_type);
    if (t->n_dims == 3) return SP_OK;
    return sp_fail(SP_ERR_FORMAT, "%s: tensor %s has %zu dimensions, not 3: a matrix for each task", a->tensors_path, name,
                   t->n_dims);
}

/* cols (tasks, virtual tokens, ranks) and rows (tasks, ranks, width). */
static sp_status check_factors(const sp_prompt *p, const sp_adapter *a, const sp_st_tensor *cols, const sp_st_tensor *rows)
{
    size_t num_tasks = 0, num_ranks = 0;
    sp_status st = sp_json_get_size(&num_tasks, a->config, "num_tasks", a->config_path);
    if (!st) st = sp_json_get_size(&num_ranks, a->config, "num_ranks", a->config_path);
    if (st) return st;
    const uint64_t *c = cols->shape, *r = rows->shape;
    if (c[0] == 0 || c[2] == 0 || c[0] != r[0] || c[2] != r[1] || c[1] != p->num_virtual_tokens || r[2] != p->width ||
        (num_tasks && num_tasks != c[0]) || (num_ranks && num_ranks != c[2]))
        return sp_fail(SP_ERR_FORMAT,
                       "%s: tensors " SP_COLS_TENSOR " (%" PRIu64 ", %" PRIu64 ", %" PRIu64 ") and " SP_ROWS_TENSOR " (%" PRIu64
                       ", %" PRIu64 ", %" PRIu64
                       ") are no factors of %zu virtual tokens of %zu numbers for %zu tasks of rank %zu (0: "
                       "not said)",
                       a->tensors_path, c[0], c[1], c[2], r[0], r[1], r[2], p->num_virtual_tokens, p->width, num_tasks, num_ranks);
    return c[0] <= SP_MAX_TASKS && c[2] <= SP_MAX_RANKS
               ? SP_OK
               : sp_fail(SP_ERR_UNSUPPORTED, "%s: %" PRIu64 " tasks of rank %" PRIu64 "; at most %d, and %d", a->tensors_path, c[0],
                         c[2], SP_MAX_TASKS, SP_MAX_RANKS);
}

static sp_status read_factors(sp_prompt *p, const sp_adapter *a)
{
    const sp_st_tensor *cols, *rows;
    sp_status st;
    if ((st = find_factor(&cols, a, SP_COLS_TENSOR)) || (st = find_factor(&rows, a, SP_ROWS_TENSOR)) ||
        (st = check_factors(p, a, cols, rows)) || (st = sp_prompt_set_tasks(p, cols->shape[0], cols->shape[2])))
        return st;
    const sp_multitask_parts to = sp_prompt_multitask_parts(p, p->weights);
    st = read_tensor(to.cols, a, cols, p->num_tasks * p->num_virtual_tokens * p->num_ranks, p->num_ranks);
    return st ? st : read_tensor(to.rows, a, rows, p->num_tasks * p->num_ranks * p->width, p->width);
}

/* What the method has beside one matrix; then the rows as they come from it. */
static sp_status read_method_parts(sp_prompt *p, const sp_adapter *a, const sp_st_tensor *tensor)
{
    sp_status st = p->method == SP_METHOD_MULTITASK ? read_factors(p, a) : SP_OK;
    sp_cpt *cpt;
    if (!st) st = read_weights(p, a, tensor);
    if (!st && p->method == SP_METHOD_CPT && !(st = sp_cpt_read(&cpt, a->config, p->num_virtual_tokens, a->config_path)))
        st = sp_prompt_set_context(p, cpt);
    return st ? st : sp_prompt_update(p);
}

/* ---- origin ------------------------------------------------------------------------------------------------------ */

static sp_status copy_string(char **out, const char *text)
{
    if (!text || (*out = strdup(text))) return SP_OK;
    return sp_fail_no_memory(strlen(text) + 1);
}

static sp_status read_frozen(sp_prompt *p, const json_t *object, const char *path, size_t fallback)
{
    p->num_frozen_tokens = fallback;
    sp_status st = sp_json_get_size(&p->num_frozen_tokens, object, "num_frozen_tokens", path);
    if (!st && p->num_frozen_tokens > p->num_virtual_tokens)
        st = sp_fail(SP_ERR_FORMAT, "%s: \"num_frozen_tokens\" is %zu of %zu virtual tokens", path, p->num_frozen_tokens,
                     p->num_virtual_tokens);
    return st;
}

/* How the prompt began; an initialisation that we do not know counts as random, as does a text that is not told. */
static sp_status read_init(sp_prompt *p, const json_t *object, const char *key, const char *text_key, const char *path)
{
    const char *init = NULL, *text = NULL;
    sp_status st = sp_json_get_string(&init, object, key, path);
    if (!st) st = sp_json_get_string(&text, object, text_key, path);
    if (st) return st;
    p->init = SP_INIT_RANDOM;
    for (int i = 0; init && i < 3; i++)
        if (strcmp(init, sp_init_names[i].peft) == 0 || strcmp(init, sp_init_names[i].own) == 0) p->init = (sp_init)i;
    if (p->init == SP_INIT_TEXT && !text) p->init = SP_INIT_RANDOM; /* what PEFT would not load again */
    return p->init == SP_INIT_TEXT ? copy_string(&p->init_text, text) : SP_OK;
}

/* The network that the rows came from, which the adapter does not hold: what its configuration says of it. */
static sp_status read_encoder(sp_prompt *p, const sp_adapter *a)
{
    const char *type = NULL;
    sp_status st = sp_json_get_size(&p->encoder_hidden_size, a->config, "encoder_hidden_size", a->config_path);
    if (st || p->method == SP_METHOD_PREFIX) {
        p->prefix_projection = json_is_true(json_object_get(a->config, "prefix_projection"));
        return st;
    }
    if ((st = sp_json_get_size(&p->encoder_num_layers, a->config, "encoder_num_layers", a->config_path)) ||
        (st = sp_json_get_string(&type, a->config, "encoder_reparameterization_type", a->config_path)))
        return st;
    p->encoder_type = type && strcmp(type, sp_encoder_type_names[SP_ENCODER_LSTM]) == 0 ? SP_ENCODER_LSTM : SP_ENCODER_MLP;
    return SP_OK;
}

static sp_status read_origin(sp_prompt *p, const sp_adapter *a)
{
    sp_status st = SP_OK;
    p->n_layer = a->num_layers;
    p->n_head = a->num_attention_heads;
    if (p->method == SP_METHOD_PROMPT || p->method == SP_METHOD_MULTITASK)
        st = read_init(p, a->config, "prompt_tuning_init", "prompt_tuning_init_text", a->config_path);
    else
        p->init = p->cpt ? SP_INIT_TEXT : SP_INIT_RANDOM;
    if (!st && (p->method == SP_METHOD_PTUNING || p->method == SP_METHOD_PREFIX)) st = read_encoder(p, a);
    if (!st && p->method == SP_METHOD_CARTRIDGE) st = read_frozen(p, a->config, a->config_path, 1);
    return st ? st : copy_string(&p->base_model, a->base_model);
}

/* ---- softprompt.json ------------------------------------------------------------------------------------------ */

static sp_status check_version(const sp_adapter *a)
{
    size_t version = 0;
    sp_status st = sp_json_get_size(&version, a->own, "format_version", a->own_path);
    if (st) return st;
    if (version == 0)
        return sp_fail(SP_ERR_FORMAT, "%s: \"format_version\" is missing; copy the whole directory again", a->own_path);
    if (version > SP_PROMPT_FORMAT_VERSION)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: format version %zu, this program reads up to %d; use a newer softprompt",
                       a->own_path, version, SP_PROMPT_FORMAT_VERSION);
    return SP_OK;
}

static sp_status read_text_position(sp_prompt *p, const json_t *method, const char *path)
{
    size_t position = 0;
    sp_status st = sp_json_get_size(&position, method, "text_position", path);
    return st || position == 0 ? st : sp_prompt_set_text_position(p, position);
}

/* How far scores reached when the keys were trained with a bound. */
static sp_status read_trained_bound(sp_prompt *p, const json_t *method, const char *path)
{
    json_t *bound = NULL;
    sp_status st = sp_json_get_object(&bound, method, "key_bound", path);
    if (st || !bound) return st;
    const double reached = json_number_value(json_object_get(bound, "bound"));
    const double max_logit = json_number_value(json_object_get(bound, "max_logit"));
    p->trained_bound = fmax(0, fmax(reached, max_logit));
    return SP_OK;
}

/* What was compiled: a prefix, or a cartridge. */
static sp_status read_compiled_from(sp_prompt *p, const json_t *method, const char *path)
{
    const char *name = NULL;
    sp_status st = sp_json_get_string(&name, method, "name", path);
    if (name && strcmp(name, sp_adapter_method(sp_peft_types[SP_METHOD_CARTRIDGE])) == 0) p->method = SP_METHOD_CARTRIDGE;
    return st;
}

static sp_status read_method(sp_prompt *p, const sp_adapter *a)
{
    json_t *method = NULL;
    sp_status st = sp_json_get_object(&method, a->own, "method", a->own_path);
    if (!st) st = read_frozen(p, method, a->own_path, p->num_frozen_tokens);
    if (!st) st = read_text_position(p, method, a->own_path);
    if (!st) st = read_trained_bound(p, method, a->own_path);
    if (!st && p->states) st = read_compiled_from(p, method, a->own_path);
    if (st || p->method == SP_METHOD_PROMPT || p->method == SP_METHOD_MULTITASK) return st;
    if (!p->cpt) return read_init(p, method, "init", "init_text", a->own_path); /* PEFT has no fields for it in these */
    const char *text = NULL;
    st = sp_json_get_string(&text, method, "init_text", a->own_path);
    return st ? st : copy_string(&p->init_text, text);
}

static sp_status read_verbalizer(sp_verbalizer *out, const json_t *entry, const char *path)
{
    sp_status st;
    if (!json_is_object(entry)) return sp_fail(SP_ERR_FORMAT, "%s: \"verbalizers\" holds something else than objects", path);
    if ((st = sp_json_get_string(&out->label, entry, "label", path)) || (st = sp_json_get_string(&out->text, entry, "text", path)))
        return st;
    return out->label && out->text ? SP_OK : sp_fail(SP_ERR_FORMAT, "%s: a verbalizer lacks \"label\" or \"text\"", path);
}

/* The strings stay the JSON tree's: sp_prompt_set_task copies them. */
static sp_status read_task(sp_prompt *p, const sp_adapter *a)
{
    json_t *task = NULL;
    sp_task read = {0};
    sp_status st = sp_json_get_object(&task, a->own, "task", a->own_path);
    if (st || !task) return st;
    if ((st = sp_json_get_string(&read.template_text, task, "template", a->own_path)) ||
        (st = sp_json_get_size(&read.max_length, task, "max_length", a->own_path)))
        return st;
    const json_t *list = json_object_get(task, "verbalizers");
    if (list && !json_is_array(list)) return sp_fail(SP_ERR_FORMAT, "%s: \"verbalizers\" is no array", a->own_path);
    read.n_verbalizers = json_array_size(list);
    sp_verbalizer *verbalizers = calloc(read.n_verbalizers + 1, sizeof *verbalizers);
    if (!verbalizers) return sp_fail_no_memory((read.n_verbalizers + 1) * sizeof *verbalizers);
    for (size_t i = 0; i < read.n_verbalizers && !st; i++)
        st = read_verbalizer(&verbalizers[i], json_array_get(list, i), a->own_path);
    read.verbalizers = verbalizers;
    if (!st && sp_task_check(&read)) st = sp_fail(SP_ERR_FORMAT, "%s: %s", a->own_path, sp_message());
    if (!st) st = sp_prompt_set_task(p, &read);
    free(verbalizers);
    return st;
}

static sp_status read_hash(uint64_t *out, const json_t *object, const char *key, const char *path)
{
    const char *text = NULL;
    sp_status st = sp_json_get_string(&text, object, key, path);
    if (st) return st;
    if (!text || strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16)
        return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is not a hash of 16 hexadecimal digits", path, key);
    *out = strtoull(text, NULL, 16);
    return SP_OK;
}

static sp_status read_fingerprint(sp_prompt *p, const sp_adapter *a)
{
    json_t *object = NULL;
    sp_fingerprint *f = &p->fingerprint;
    const char *path = a->own_path;
    sp_status st = sp_json_get_object(&object, a->own, "fingerprint", path);
    if (st || !object) return st;
    if ((st = read_hash(&f->tokenizer, object, "tokenizer", path)) ||
        (st = read_hash(&f->embeddings, object, "embeddings", path)) ||
        (st = sp_json_get_size(&f->n_layer, object, "n_layer", path)) ||
        (st = sp_json_get_size(&f->d_model, object, "d_model", path)) ||
        (st = sp_json_get_size(&f->n_head, object, "n_head", path)) ||
        (st = sp_json_get_size(&f->n_head_kv, object, "n_head_kv", path)) ||
        (st = sp_json_get_size(&f->n_vocab, object, "n_vocab", path)))
        return st;
    p->has_fingerprint = true;
    return SP_OK;
}

static sp_status read_own(sp_prompt *p, const sp_adapter *a)
{
    sp_status st;
    if (!a->own) return SP_OK;
    if ((st = check_version(a)) || (st = read_method(p, a)) || (st = read_task(p, a))) return st;
    return read_fingerprint(p, a);
}

/* *out is the caller's to free, also after a failure. */
static sp_status load_rows(sp_prompt **out, const sp_adapter *a)
{
    const sp_st_tensor *tensor;
    sp_status st = check_config(a);
    if (!st) st = find_tensor(&tensor, a);
    if (!st) st = sp_prompt_allocate(out, tensor->shape[0], tensor->shape[1]);
    if (st) return st;
    (*out)->method = method_of(a);
    return read_method_parts(*out, a, tensor);
}

sp_status sp_prompt_load(sp_prompt **out, const char *dir)
{
    sp_adapter *a;
    sp_prompt *p = NULL;
    *out = NULL;
    sp_status st = sp_adapter_open(&a, dir);
    if (st) return st;
    st = strcmp(a->peft_type, SP_ADAPTER_COMPILED) == 0 ? sp_prompt_read_states(&p, a) : load_rows(&p, a);
    if (!st) st = read_origin(p, a);
    if (!st) st = read_own(p, a);
    sp_adapter_close(a);
    if (st)
        sp_prompt_free(p);
    else
        *out = p;
    return st;
}
