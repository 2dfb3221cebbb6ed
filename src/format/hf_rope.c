/* hf_rope.c: RoPE as config.json has it.
 *
 *   transformers 5   "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4, ...}, or one such object for each of
 *                    "full_attention" and "sliding_attention"
 *   transformers 4   "rope_theta": 1e6, "rope_scaling": null or {"type" or "rope_type": "yarn", "factor": 4, ...}; gemma3
 *                    also "rope_local_base_freq", for layers with a window
 *
 * Where the two disagree transformers takes rope_scaling, and so do we. What the llama 3 scaling and LongRoPE do to each frequency
 * is a vector in GGUF files. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "format/hf_config.h"

typedef struct rope {
    const json_t *parameters; /* borrowed; NULL: none given */
    const json_t *settings;
    const char *path;
    double theta, factor;
    size_t n_rot, original_context;
    const char *type;
} rope;

static const char in_rope[] = "rope_parameters";

/* Of the parameters themselves, else of the configuration, under the name that gpt_neox once had or today's. */
static sp_status get_real(double *out, const rope *r, const char *key, const char *old_key)
{
    sp_status st = sp_hf_get_real(out, r->settings, key, r->path);
    if (!st) st = sp_hf_get_real(out, r->settings, old_key, r->path);
    return st ? st : sp_hf_get_real(out, r->parameters, key, r->path);
}

static sp_status read_common(rope *r, const sp_hf_config *c, double default_theta)
{
    double part = 1;
    size_t d_head = sp_hf_config_size(c, "attention.key_length"), n_head = sp_hf_config_size(c, "attention.head_count");
    sp_status st;
    r->theta = default_theta;
    r->type = "default";
    if ((st = sp_hf_get_real(&r->theta, r->parameters, "rope_theta", r->path)) ||
        (st = sp_json_get_string(&r->type, r->parameters, "type", r->path)) ||
        (st = sp_json_get_string(&r->type, r->parameters, "rope_type", r->path)) ||
        (st = get_real(&part, r, "partial_rotary_factor", "rotary_pct")))
        return st;
    if (d_head == 0 && n_head > 0) d_head = sp_hf_config_size(c, "embedding_length") / n_head;
    if (!(part > 0 && part <= 1))
        return sp_fail(SP_ERR_FORMAT, "%s: \"partial_rotary_factor\" is %g, not above 0 and at most 1", r->path, part);
    if (d_head > 1 << 20) d_head = 1 << 20; /* refused later, by its own name */
    r->n_rot = (size_t)((double)d_head * part);
    return SP_OK;
}

/* What scaled variants start from. */
static sp_status read_original_context(rope *r)
{
    static const char *const keys[] = {"max_position_embeddings", "original_max_position_embeddings"};
    sp_status st = SP_OK;
    for (size_t i = 0; i < 2 && !st; i++) st = sp_json_get_size(&r->original_context, r->settings, keys[i], r->path);
    if (!st && !json_object_get(r->settings, keys[1])) st = sp_json_get_size(&r->original_context, r->parameters, keys[1], r->path);
    if (!st && r->original_context == 0) st = sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is 0 or missing", r->path, keys[1]);
    return st;
}

static sp_status read_factor(rope *r)
{
    double context = 0;
    sp_status st = sp_hf_get_real(&context, r->settings, "max_position_embeddings", r->path);
    if (strcmp(r->type, "yarn") == 0 || strcmp(r->type, "longrope") == 0) r->factor = context / (double)r->original_context;
    if (!st) st = sp_hf_get_real(&r->factor, r->parameters, "factor", r->path);
    if (!st && !(r->factor >= 1) && strcmp(r->type, "longrope") != 0)
        st = sp_fail(SP_ERR_FORMAT, "%s: \"factor\" of RoPE's %s scaling is %g; it must be 1 or more", r->path, r->type, r->factor);
    return st;
}

/* ---- by type ------------------------------------------------------------------------------------------------ */

static double yarn_magnitude(double factor, double scale)
{
    return factor <= 1 ? 1 : 0.1 * scale * log(factor) + 1;
}

/* GGUF's attn_factor multiplies 0.1 ln(factor) + 1; here the product itself may be given. */
static sp_status put_yarn(sp_hf_config *c, const rope *r)
{
    double fast = 32, slow = 1, scale = 0, scale_all = 0, magnitude = 0;
    const json_t *truncate = json_object_get(r->parameters, "truncate");
    sp_status st;
    if (truncate && !json_is_true(truncate) && !json_is_null(truncate))
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: \"truncate\" of RoPE's yarn scaling is off; this version only runs it on", r->path);
    if ((st = sp_hf_get_real(&fast, r->parameters, "beta_fast", r->path)) ||
        (st = sp_hf_get_real(&slow, r->parameters, "beta_slow", r->path)) ||
        (st = sp_hf_get_real(&scale, r->parameters, "mscale", r->path)) ||
        (st = sp_hf_get_real(&scale_all, r->parameters, "mscale_all_dim", r->path)))
        return st;
    magnitude = yarn_magnitude(r->factor, 1);
    if (scale != 0 && scale_all != 0) magnitude = yarn_magnitude(r->factor, scale) / yarn_magnitude(r->factor, scale_all);
    if ((st = sp_hf_get_real(&magnitude, r->parameters, "attention_factor", r->path))) return st;
    if (!isfinite(magnitude))
        return sp_fail(SP_ERR_FORMAT, "%s: \"mscale_all_dim\" %g gives RoPE's yarn scaling no finite factor", r->path, scale_all);
    if ((st = sp_hf_config_put(c, "rope.scaling.original_context_length", json_integer((json_int_t)r->original_context),
                               "original_max_position_embeddings")) ||
        (st = sp_hf_config_put(c, "rope.scaling.attn_factor", json_real(magnitude / (0.1 * log(r->factor) + 1)),
                               "attention_factor")) ||
        (st = sp_hf_config_put(c, "rope.scaling.yarn_beta_fast", json_real(fast != 0 ? fast : 32), "beta_fast")))
        return st;
    return sp_hf_config_put(c, "rope.scaling.yarn_beta_slow", json_real(slow != 0 ? slow : 1), "beta_slow");
}

static sp_status allocate_factors(sp_hf_vector *out, const char *name, const char *hf, size_t n)
{
    *out = (sp_hf_vector){name, hf, malloc((n + 1) * sizeof *out->values), n};
    return out->values ? SP_OK : sp_fail_no_memory((n + 1) * sizeof *out->values);
}

/* LongRoPE (arXiv 2402.13753): two lists, for texts within the original context and beyond. */
static sp_status read_long_factors(sp_hf_vector *out, const rope *r, const char *name, const char *hf)
{
    const json_t *list = json_object_get(r->parameters, hf), *factor;
    size_t i;
    if (!json_is_array(list) || json_array_size(list) != r->n_rot / 2)
        return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is no list of %zu numbers", r->path, hf, r->n_rot / 2);
    sp_status st = allocate_factors(out, name, hf, r->n_rot / 2);
    if (st) return st;
    json_array_foreach(list, i, factor)
    {
        out->values[i] = (float)json_number_value(factor);
        if (!json_is_number(factor) || !isfinite(out->values[i]) || !(out->values[i] > 0))
            return sp_fail(SP_ERR_FORMAT, "%s: \"%s\": entry %zu is no number above 0", r->path, hf, i);
    }
    return SP_OK;
}

static sp_status put_longrope(sp_hf_config *c, const rope *r)
{
    const double original = (double)r->original_context, stretch = fmax(r->factor, 1);
    double magnitude = stretch > 1 ? sqrt(1 + log(stretch) / log(original)) : 1;
    sp_status st = sp_hf_get_real(&magnitude, r->parameters, "attention_factor", r->path);
    if (!st && !isfinite(magnitude))
        st = sp_fail(SP_ERR_FORMAT, "%s: an original context of %zu gives LongRoPE no finite factor", r->path, r->original_context);
    if (!st) st = read_long_factors(&c->factors[0], r, "rope_factors_short.weight", "short_factor");
    if (!st) st = read_long_factors(&c->factors[1], r, "rope_factors_long.weight", "long_factor");
    if (!st) st = sp_hf_config_put(c, "rope.scaling.attn_factor", json_real(magnitude), "attention_factor");
    if (st) return st;
    return sp_hf_config_put(c, "rope.scaling.original_context_length", json_integer((json_int_t)r->original_context),
                            "original_max_position_embeddings");
}

/* Long waves are stretched, short ones stay, those between are blended: what each frequency is divided by. */
static sp_status make_llama3_factors(sp_hf_config *c, const rope *r)
{
    double low = 0, high = 0, context = (double)r->original_context;
    sp_status st = sp_hf_get_real(&low, r->parameters, "low_freq_factor", r->path);
    if (!st) st = sp_hf_get_real(&high, r->parameters, "high_freq_factor", r->path);
    if (st) return st;
    if (!(low > 0 && high > low))
        return sp_fail(SP_ERR_FORMAT,
                       "%s: RoPE's llama3 scaling with low_freq_factor %g and high_freq_factor %g; 0 < low < high was "
                       "expected",
                       r->path, low, high);
    if ((st = allocate_factors(&c->factors[0], "rope_freqs.weight", in_rope, r->n_rot / 2))) return st;
    for (size_t i = 0; i < c->factors[0].n; i++) {
        double turns = context * pow(r->theta, -2.0 * (double)i / (double)r->n_rot) / (2 * M_PI); /* within the original context */
        double kept = fmin(fmax((turns - low) / (high - low), 0), 1);
        c->factors[0].values[i] = (float)(1 / ((1 - kept) / r->factor + kept));
    }
    return SP_OK;
}

static sp_status put_scaling(sp_hf_config *c, rope *r)
{
    if (json_object_get(r->parameters, "short_factor") || strcmp(r->type, "su") == 0) r->type = "longrope"; /* its older names */
    bool longrope = strcmp(r->type, "longrope") == 0, yarn = strcmp(r->type, "yarn") == 0, llama3 = strcmp(r->type, "llama3") == 0,
         linear = strcmp(r->type, "linear") == 0;
    sp_status st;
    if (strcmp(r->type, "default") == 0) return SP_OK;
    if (!yarn && !llama3 && !linear && !longrope)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: RoPE of type \"%.40s\" is not supported; known: default, linear, yarn, llama3",
                       r->path, r->type);
    if ((st = read_original_context(r)) || (st = read_factor(r))) return st;
    if (llama3) return make_llama3_factors(c, r);
    if (longrope) return put_longrope(c, r);
    if ((st = sp_hf_config_put(c, "rope.scaling.type", json_string(r->type), in_rope)) ||
        (st = sp_hf_config_put(c, "rope.scaling.factor", json_real(r->factor), "factor")))
        return st;
    return yarn ? put_yarn(c, r) : SP_OK;
}

/* ---- one, or two -------------------------------------------------------------------------------------------- */

/* The RoPE of layers with a window: never scaled in the families here. */
static sp_status put_local(sp_hf_config *c, const json_t *parameters, const char *path)
{
    double theta = 10000;
    rope r = {.parameters = parameters, .settings = c->settings, .path = path};
    sp_status st = sp_hf_get_real(&theta, c->settings, "rope_local_base_freq", path);
    if (!st) st = read_common(&r, c, theta);
    if (!st && strcmp(r.type, "default") != 0)
        st = sp_fail(SP_ERR_UNSUPPORTED, "%s: RoPE of type \"%.40s\" in layers with a window is not supported; known: default",
                     path, r.type);
    return st ? st : sp_hf_config_put(c, "rope.freq_base_swa", json_real(r.theta), "rope_local_base_freq");
}

sp_status sp_hf_read_rope(sp_hf_config *c, const char *path)
{
    json_t *new_form = NULL, *old_form = NULL, *full = NULL, *sliding = NULL;
    double theta = 10000;
    sp_status st;
    if ((st = sp_json_get_object(&new_form, c->settings, in_rope, path)) ||
        (st = sp_json_get_object(&old_form, c->settings, "rope_scaling", path)) ||
        (st = sp_json_get_object(&full, new_form, "full_attention", path)) ||
        (st = sp_json_get_object(&sliding, new_form, "sliding_attention", path)) ||
        (st = sp_hf_get_real(&theta, c->settings, "rotary_emb_base", path)) || /* gpt_neox's, once */
        (st = sp_hf_get_real(&theta, c->settings, "rope_theta", path)))
        return st;
    if ((full || sliding) && !c->family->two_ropes)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: \"%s\" by kind of layer; this version runs %s with one RoPE", path, in_rope,
                       c->family->model_type);
    rope r = {.parameters = old_form ? old_form : full ? full : new_form, .settings = c->settings, .path = path};
    if ((st = read_common(&r, c, theta)) || (st = sp_hf_config_put(c, "rope.freq_base", json_real(r.theta), "rope_theta")) ||
        (st = put_scaling(c, &r)))
        return st;
    if (r.n_rot > 0 && (st = sp_hf_config_put(c, "rope.dimension_count", json_integer((json_int_t)r.n_rot), "head_dim"))) return st;
    return c->family->two_ropes ? put_local(c, sliding, path) : SP_OK;
}
