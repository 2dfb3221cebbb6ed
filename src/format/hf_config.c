/* hf_config.c: which family a directory is of, and its hyperparameters under GGUF's keys.
 *
 * What a setting decides and nothing here computes is refused by the setting's name: a model that runs is the model that
 * transformers would run. */
#include "format/hf_config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/status.h"

void sp_hf_config_clear(sp_hf_config *c)
{
    json_decref(c->settings);
    json_decref(c->metadata);
    json_decref(c->spelling);
    for (size_t i = 0; i < sizeof c->factors / sizeof *c->factors; i++) free(c->factors[i].values);
    *c = (sp_hf_config){0};
}

/* ---- values ------------------------------------------------------------------------------------------------- */

sp_status sp_hf_get_real(double *out, const json_t *object, const char *key, const char *path)
{
    const json_t *value = json_object_get(object, key);
    if (!value || json_is_null(value)) return SP_OK;
    if (!json_is_number(value)) return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is no number", path, key);
    *out = json_number_value(value);
    return SP_OK;
}

size_t sp_hf_config_size(const sp_hf_config *c, const char *gguf)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", c->family->architecture, gguf);
    return (size_t)json_integer_value(json_object_get(c->metadata, key));
}

sp_status sp_hf_config_put(sp_hf_config *c, const char *gguf, json_t *value, const char *hf)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", c->family->architecture, gguf);
    if (json_object_set_new(c->metadata, key, value)) return sp_json_fail_no_memory();
    return json_object_set_new(c->spelling, key, json_string(hf)) ? sp_json_fail_no_memory() : SP_OK;
}

static sp_status put_setting(sp_hf_config *c, const sp_hf_setting *s, const char *path)
{
    const json_t *given = json_object_get(c->settings, s->hf);
    size_t size = 0;
    double real = 0;
    sp_status st;
    if (!given || (json_is_null(given) && s->kind != SP_HF_CAP)) return SP_OK;
    switch (s->kind) {
    case SP_HF_SIZE:
        if ((st = sp_json_get_size(&size, c->settings, s->hf, path))) return st;
        return sp_hf_config_put(c, s->gguf, json_integer((json_int_t)size), s->hf);
    case SP_HF_REAL:
    case SP_HF_CAP:
        if ((st = sp_hf_get_real(&real, c->settings, s->hf, path))) return st;
        return sp_hf_config_put(c, s->gguf, json_real(real), s->hf);
    default:
        if (!json_is_boolean(given)) return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is neither true nor false", path, s->hf);
        return sp_hf_config_put(c, s->gguf, json_boolean(json_is_true(given)), s->hf);
    }
}

/* ---- which family ------------------------------------------------------------------------------------------- */

/* Numbers that some quantiser rounded stand in tensors of its own. */
static sp_status refuse_quantised(const json_t *config, const char *path)
{
    const json_t *quantised = json_object_get(config, "quantization_config");
    const char *method = json_string_value(json_object_get(quantised, "quant_method"));
    if (!quantised || json_is_null(quantised)) return SP_OK;
    return sp_fail(SP_ERR_UNSUPPORTED,
                   "%s: the checkpoint is quantised (\"quantization_config\": %.40s); use the original in f32, f16 or bf16, or a "
                   "quantised GGUF file of the model",
                   path, method ? method : "of an unnamed method");
}

/* Heads for other work have a class of their own, named here. */
static sp_status check_class(const json_t *config, const char *path)
{
    static const char *const endings[] = {"ForCausalLM", "LMHeadModel", "ForConditionalGeneration"};
    const char *name = json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    if (!name) return SP_OK;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        const size_t n = strlen(name), n_ending = strlen(endings[i]);
        if (n >= n_ending && strcmp(name + n - n_ending, endings[i]) == 0) return SP_OK;
    }
    return sp_fail(SP_ERR_UNSUPPORTED, "%s: \"architectures\": %.80s is no causal language model; use the ...ForCausalLM one", path,
                   name);
}

static sp_status find_family(sp_hf_config *c, const json_t *config, const char *path)
{
    const char *name = NULL;
    char known[256];
    sp_status st = sp_json_get_string(&name, config, "model_type", path);
    if (st) return st;
    if (!name) return sp_fail(SP_ERR_FORMAT, "%s: \"model_type\" is missing: not the configuration of a transformers model", path);
    if (!(c->family = sp_hf_family_find(name)))
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: model_type \"%.60s\" is not supported; this version reads directories of: %s", path,
                       name, sp_hf_family_list(known, sizeof known));
    return check_class(config, path);
}

static sp_status load_own(json_t **out, const char *text)
{
    *out = json_loads(text, 0, NULL);
    return *out ? SP_OK : sp_json_fail_no_memory();
}

/* The language model's settings, completed with what the configuration's class has where the file is silent. */
static sp_status complete_settings(sp_hf_config *c, json_t *config, const char *path)
{
    json_t *part = config, *defaults;
    sp_status st = SP_OK;
    if (c->family->part) {
        part = NULL;
        st = sp_json_get_object(&part, config, c->family->part, path);
        if (!st && !part) st = sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is missing", path, c->family->part);
    }
    if (!st) st = refuse_quantised(config, path);
    if (!st) st = load_own(&defaults, c->family->defaults);
    if (st) return st;
    c->settings = json_copy(part);
    bool ok = c->settings && json_object_update_missing(c->settings, defaults) == 0;
    json_decref(defaults);
    return ok ? SP_OK : sp_json_fail_no_memory();
}

/* ---- settings that the architecture fixes ------------------------------------------------------------------- */

static bool is_one_of(const json_t *value, const json_t *allowed)
{
    size_t i;
    json_t *one;
    if (!json_is_array(allowed)) return json_equal(value, allowed);
    json_array_foreach(allowed, i, one) if (json_equal(value, one)) return true;
    return false;
}

/* A value in a message: short, and on one line. */
static sp_status fail_setting(const char *path, const char *key, const json_t *value, const json_t *allowed, const char *family)
{
    char *given = NULL, *known = NULL;
    const json_t *first = json_is_array(allowed) ? json_array_get(allowed, 0) : allowed;
    sp_status st = sp_json_dump(&given, value, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!st) st = sp_json_dump(&known, first, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!st)
        st = sp_fail(SP_ERR_UNSUPPORTED, "%s: \"%s\" is %.60s; this version runs %s only with %s", path, key, given, family, known);
    free(given);
    free(known);
    return st;
}

static sp_status check_fixed(const sp_hf_config *c, const char *path)
{
    json_t *fixed, *allowed;
    const char *key;
    sp_status st = load_own(&fixed, c->family->fixed);
    if (st) return st;
    json_object_foreach(fixed, key, allowed)
    {
        const json_t *value = json_object_get(c->settings, key);
        if (!st && value && !is_one_of(value, allowed)) st = fail_setting(path, key, value, allowed, c->family->model_type);
    }
    json_decref(fixed);
    return st;
}

/* Where a list says which layers have RoPE, it must say what the interval does. */
static sp_status check_no_rope_layers(const sp_hf_config *c, const char *path)
{
    const json_t *layers = json_object_get(c->settings, "no_rope_layers"), *has_rope;
    size_t i, interval = 0;
    sp_status st = sp_json_get_size(&interval, c->settings, "no_rope_layer_interval", path);
    if (st || interval == 0) return st;
    json_array_foreach(layers, i, has_rope)
    {
        bool expected = (i + 1) % interval != 0;
        if (!json_is_integer(has_rope) || (json_integer_value(has_rope) != 0) != expected)
            return sp_fail(
                SP_ERR_UNSUPPORTED,
                "%s: \"no_rope_layers\" has another entry at layer %zu than every %zu-th without RoPE, which this version "
                "runs",
                path, i, interval);
    }
    return SP_OK;
}

/* ---- windows ------------------------------------------------------------------------------------------------ */

/* Of each `period` layers the last has no window; 0: all have one. From layer_types, which is an array. */
static sp_status find_period(size_t *period, const json_t *types, const char *path)
{
    size_t i;
    const json_t *type;
    *period = 0;
    json_array_foreach(types, i, type)
    {
        const char *name = json_string_value(type);
        bool windowed = name && strcmp(name, "sliding_attention") == 0;
        if (!windowed && !(name && strcmp(name, "full_attention") == 0))
            return sp_fail(SP_ERR_UNSUPPORTED, "%s: \"layer_types\": layer %zu is %.40s; known: full_attention, sliding_attention",
                           path, i, name ? name : "no string");
        if (!windowed && *period == 0) *period = i + 1;
        if (windowed == (*period && (i + 1) % *period == 0))
            return sp_fail(SP_ERR_UNSUPPORTED,
                           "%s: \"layer_types\": layer %zu breaks the period of %zu; this version runs models where the last of "
                           "every so many layers has no window",
                           path, i, *period);
    }
    return SP_OK;
}

/* 0: no layer has one, which is said, as the architecture may have a window of its own */
static sp_status put_window(sp_hf_config *c, size_t window)
{
    return sp_hf_config_put(c, "attention.sliding_window", json_integer((json_int_t)window), "sliding_window");
}

static sp_status put_windows_by_layer(sp_hf_config *c, size_t window, const char *path)
{
    const json_t *types = json_object_get(c->settings, "layer_types");
    size_t n_layer = sp_hf_config_size(c, "block_count"), period = 0;
    sp_status st = SP_OK;
    if (json_is_array(types) && json_array_size(types) != n_layer)
        st = sp_fail(SP_ERR_FORMAT, "%s: \"layer_types\" has %zu entries for %zu layers", path, json_array_size(types), n_layer);
    if (!st && json_is_array(types))
        st = find_period(&period, types, path);
    else if (!st)
        st = sp_json_get_size(&period, c->settings, "sliding_window_pattern", path);
    if (st || period == 1) return st ? st : put_window(c, 0);
    if (period == 0 || period > n_layer) period = n_layer + 1;
    st = sp_hf_config_put(c, "attention.sliding_window_pattern", json_integer((json_int_t)period), "layer_types");
    return st ? st : put_window(c, window);
}

static sp_status put_windows(sp_hf_config *c, const char *path)
{
    size_t window = 0;
    sp_status st = sp_json_get_size(&window, c->settings, "sliding_window", path);
    if (st || c->family->windows == SP_HF_NO_WINDOWS) return st;
    return window && c->family->windows == SP_HF_WINDOWS_BY_LAYER ? put_windows_by_layer(c, window, path) : put_window(c, window);
}

/* ---- all of it ---------------------------------------------------------------------------------------------- */

/* Where the width of the feed-forward block is left open. */
static sp_status put_ffn(sp_hf_config *c)
{
    const size_t d_model = sp_hf_config_size(c, "embedding_length");
    if (!c->family->learned_positions || sp_hf_config_size(c, "feed_forward_length") || d_model > INT32_MAX) return SP_OK;
    return sp_hf_config_put(c, "feed_forward_length", json_integer(4 * (json_int_t)d_model), "n_inner");
}

/* Scores are divided by the root of this, where it is not the head's width. */
static sp_status put_attention_scale(sp_hf_config *c, const char *path)
{
    double scalar = 0;
    sp_status st = sp_hf_get_real(&scalar, c->settings, "query_pre_attn_scalar", path);
    if (st || !json_object_get(c->settings, "query_pre_attn_scalar")) return st;
    if (!(scalar > 0)) return sp_fail(SP_ERR_FORMAT, "%s: \"query_pre_attn_scalar\" is %g; it must be above 0", path, scalar);
    return sp_hf_config_put(c, "attention.scale", json_real(1 / sqrt(scalar)), "query_pre_attn_scalar");
}

static sp_status put_names(sp_hf_config *c, const sp_hf_directory *d)
{
    const char *path = sp_hf_directory_path(d);
    int failed = json_object_set_new(c->metadata, "general.architecture", json_string(c->family->architecture));
    failed |= json_object_set_new(c->metadata, "general.name", sp_json_text(path, strlen(path)));
    return failed ? sp_json_fail_no_memory() : SP_OK;
}

sp_status sp_hf_config_read(sp_hf_config *out, const sp_hf_directory *d)
{
    const char *path = sp_hf_directory_config_path(d);
    sp_status st;
    *out = (sp_hf_config){0};
    if ((st = find_family(out, sp_hf_directory_config(d), path)) ||
        (st = complete_settings(out, sp_hf_directory_config(d), path)) || (st = check_fixed(out, path)) ||
        (st = check_no_rope_layers(out, path)))
        return st;
    out->metadata = json_object();
    out->spelling = json_object();
    if (!out->metadata || !out->spelling) return sp_json_fail_no_memory();
    for (const sp_hf_setting *s = out->family->settings; s->hf; s++)
        if ((st = put_setting(out, s, path))) return st;
    if ((st = put_names(out, d)) || (st = put_windows(out, path)) || (st = put_ffn(out)) || (st = put_attention_scale(out, path)))
        return st;
    return out->family->learned_positions ? SP_OK : sp_hf_read_rope(out, path);
}
