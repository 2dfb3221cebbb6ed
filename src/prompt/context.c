/* context.c: a prompt that is a text whose embeddings move a little: CPT.
 *
 * Weights: how far each token has moved, (num_virtual_tokens, d_model), which starts at zero. What an adapter holds is where the
 * tokens are; one that was loaded starts from there, as in PEFT. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "format/json.h"
#include "prompt/internal.h"

/* PEFT's defaults. */
static const double EPSILON = 0.1, DECAY_FACTOR = 1;

static sp_status update(sp_prompt *p)
{
    sp_cpt_project(p->weights, p->cpt, p->width);
    sp_cpt_forward(p->rows, p->start, p->weights, p->cpt, p->width);
    return SP_OK;
}

static sp_status backward(float *gradient, const sp_prompt *p, const float *d_rows)
{
    sp_cpt_backward(gradient, d_rows, p->cpt, p->width);
    return SP_OK;
}

static const sp_encoder encoder = {update, backward};

void sp_cpt_free(sp_cpt *cpt)
{
    if (!cpt) return;
    free(cpt->token_ids);
    free(cpt->tokens_type_mask);
    free(cpt->mask);
    free(cpt);
}

sp_status sp_cpt_create(sp_cpt **out, size_t n)
{
    sp_cpt *cpt = *out = calloc(1, sizeof *cpt);
    if (!cpt) return sp_fail_no_memory(sizeof *cpt);
    *cpt = (sp_cpt){.n = n,
                    .token_ids = calloc(n, sizeof *cpt->token_ids),
                    .tokens_type_mask = calloc(n, sizeof *cpt->tokens_type_mask),
                    .mask = calloc(n, sizeof *cpt->mask),
                    .opt_loss_decay_factor = DECAY_FACTOR,
                    .opt_projection_epsilon = EPSILON,
                    .opt_projection_format_epsilon = EPSILON};
    if (!cpt->token_ids || !cpt->tokens_type_mask || !cpt->mask) {
        sp_cpt_free(cpt);
        *out = NULL;
        return sp_fail_no_memory(n * sizeof(int32_t));
    }
    for (size_t i = 0; i < n; i++) cpt->mask[i] = cpt->tokens_type_mask[i] = 1;
    return SP_OK;
}

sp_status sp_prompt_set_context(sp_prompt *p, sp_cpt *cpt)
{
    const size_t n_values = p->num_virtual_tokens * p->width;
    const sp_weight_shape shape = {p->num_virtual_tokens, p->width, 0};
    p->cpt = cpt;
    p->start = malloc(n_values * sizeof *p->start);
    p->targets = calloc(cpt->n, sizeof *p->targets);
    if (!p->start || !p->targets) return sp_fail_no_memory(n_values * sizeof *p->start);
    memcpy(p->start, p->rows, n_values * sizeof *p->start);
    p->n_targets = sp_cpt_targets(p->targets, cpt);
    return sp_prompt_set_encoder(p, &encoder, &shape, 1);
}

/* ---- what it is made of --------------------------------------------------------------------------------------- */

/* 0 is the default, below it nothing moves. */
static double epsilon_of(double option)
{
    return option > 0 ? option : option < 0 ? 0 : EPSILON;
}

static sp_status check_settings(const sp_prompt_options *options)
{
    const double factor = options->opt_loss_decay_factor;
    if ((unsigned)options->opt_weighted_loss_type > SP_WEIGHTED_LOSS_DECAY)
        return sp_fail(SP_ERR_ARGUMENT, "unknown opt_weighted_loss_type %d", (int)options->opt_weighted_loss_type);
    if (!isfinite(factor) || factor < 0) return sp_fail(SP_ERR_ARGUMENT, "opt_loss_decay_factor is %g; give 0 or more", factor);
    if (!isfinite(options->opt_projection_epsilon) || !isfinite(options->opt_projection_format_epsilon))
        return sp_fail(SP_ERR_ARGUMENT, "opt_projection_epsilon is %g, opt_projection_format_epsilon %g; give finite numbers",
                       options->opt_projection_epsilon, options->opt_projection_format_epsilon);
    return SP_OK;
}

/* The tokens that were given are as many as they are: where would the types of a part, or of a repetition, go? */
static sp_status of_tokens(sp_cpt **out, const sp_prompt_options *options)
{
    const size_t n = options->n_cpt_tokens;
    if (options->num_virtual_tokens && options->num_virtual_tokens != n)
        return sp_fail(SP_ERR_ARGUMENT,
                       "%zu virtual tokens, and the prompt starts from %zu tokens of given types; leave their number to "
                       "these",
                       options->num_virtual_tokens, n);
    for (size_t i = 0; i < n && options->cpt_tokens_type_mask; i++)
        if (options->cpt_tokens_type_mask[i] < 0)
            return sp_fail(SP_ERR_ARGUMENT, "cpt_tokens_type_mask: token %zu has type %d; types are numbers from 0", i,
                           (int)options->cpt_tokens_type_mask[i]);
    sp_status st = sp_cpt_create(out, n);
    if (st) return st;
    memcpy((*out)->token_ids, options->cpt_token_ids, n * sizeof *options->cpt_token_ids);
    if (options->cpt_tokens_type_mask) memcpy((*out)->tokens_type_mask, options->cpt_tokens_type_mask, n * sizeof(int32_t));
    return SP_OK;
}

/* PEFT's TEXT, but without the BOS that a tokenizer may add. */
static sp_status of_text(sp_cpt **out, const sp_model *model, const sp_prompt_options *options)
{
    int32_t *tokens;
    size_t n_tokens;
    if (!options->init_text || !*options->init_text)
        return sp_fail(SP_ERR_ARGUMENT, "a context-aware prompt starts from a text that is not empty, or from tokens; give one");
    sp_status st =
        sp_tokenize(&tokens, &n_tokens, sp_model_tokenizer(model), options->init_text, SIZE_MAX, SP_TOKENIZE_PARSE_SPECIAL);
    if (st) return st;
    const size_t n = options->num_virtual_tokens ? options->num_virtual_tokens : n_tokens;
    if (n_tokens == 0) st = sp_fail(SP_ERR_ARGUMENT, "the text to start from gives no token; use a longer one");
    if (!st) st = sp_cpt_create(out, n);
    for (size_t i = 0; i < n && !st; i++) (*out)->token_ids[i] = tokens[i % n_tokens];
    sp_free(tokens);
    return st;
}

sp_status sp_cpt_of_options(sp_cpt **out, const sp_model *model, const sp_prompt_options *options)
{
    *out = NULL;
    sp_status st = check_settings(options);
    if (!st) st = options->n_cpt_tokens ? of_tokens(out, options) : of_text(out, model, options);
    if (st) return st;
    (*out)->opt_weighted_loss_type = options->opt_weighted_loss_type;
    if (options->opt_loss_decay_factor > 0) (*out)->opt_loss_decay_factor = options->opt_loss_decay_factor;
    (*out)->opt_projection_epsilon = epsilon_of(options->opt_projection_epsilon);
    (*out)->opt_projection_format_epsilon = epsilon_of(options->opt_projection_format_epsilon);
    return SP_OK;
}

/* ---- adapter_config.json -------------------------------------------------------------------------------------- */

static const char *const weighted_loss_names[] = {[SP_WEIGHTED_LOSS_NONE] = "none", [SP_WEIGHTED_LOSS_DECAY] = "decay"};

/* A list of n numbers from 0; an absent one leaves `out` as it is. */
static sp_status read_list(int32_t *out, size_t n, const json_t *config, const char *key, const char *path)
{
    const json_t *list = json_object_get(config, key);
    if (!list || json_is_null(list)) return SP_OK;
    if (!json_is_array(list) || json_array_size(list) != n)
        return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is no list of %zu numbers, one for each virtual token", path, key, n);
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(list, i);
        const json_int_t value = json_integer_value(item);
        if (!json_is_integer(item) || value < 0 || value > INT32_MAX)
            return sp_fail(SP_ERR_FORMAT, "%s: \"%s\": item %zu is no whole number from 0 to %" PRId32, path, key, i, INT32_MAX);
        out[i] = (int32_t)value;
    }
    return SP_OK;
}

static sp_status read_settings(sp_cpt *cpt, const json_t *config, const char *path)
{
    const char *loss = weighted_loss_names[SP_WEIGHTED_LOSS_NONE];
    sp_status st;
    if ((st = sp_json_get_string(&loss, config, "opt_weighted_loss_type", path)) ||
        (st = sp_json_get_real(&cpt->opt_loss_decay_factor, config, "opt_loss_decay_factor", path)) ||
        (st = sp_json_get_real(&cpt->opt_projection_epsilon, config, "opt_projection_epsilon", path)) ||
        (st = sp_json_get_real(&cpt->opt_projection_format_epsilon, config, "opt_projection_format_epsilon", path)))
        return st;
    for (int i = 0; i < 2; i++)
        if (strcmp(loss, weighted_loss_names[i]) == 0) {
            cpt->opt_weighted_loss_type = (sp_weighted_loss)i;
            return SP_OK;
        }
    return sp_fail(SP_ERR_FORMAT, "%s: \"opt_weighted_loss_type\" is \"%.40s\", neither none nor decay", path, loss);
}

sp_status sp_cpt_read(sp_cpt **out, const json_t *config, size_t num_virtual_tokens, const char *path)
{
    sp_cpt *cpt;
    sp_status st = sp_cpt_create(&cpt, num_virtual_tokens);
    *out = NULL;
    if (st) return st;
    if ((st = read_list(cpt->token_ids, cpt->n, config, "cpt_token_ids", path)) ||
        (st = read_list(cpt->mask, cpt->n, config, "cpt_mask", path)) ||
        (st = read_list(cpt->tokens_type_mask, cpt->n, config, "cpt_tokens_type_mask", path)) ||
        (st = read_settings(cpt, config, path))) {
        sp_cpt_free(cpt);
        return st;
    }
    *out = cpt;
    return SP_OK;
}

static json_t *build_list(const int32_t *values, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n && list; i++)
        if (json_array_append_new(list, json_integer(values[i]))) {
            json_decref(list);
            list = NULL;
        }
    return list;
}

json_t *sp_cpt_build_config(const sp_cpt *cpt)
{
    return json_pack("{s:o, s:o, s:o, s:s, s:f, s:f, s:f}", "cpt_token_ids", build_list(cpt->token_ids, cpt->n), "cpt_mask",
                     build_list(cpt->mask, cpt->n), "cpt_tokens_type_mask", build_list(cpt->tokens_type_mask, cpt->n),
                     "opt_weighted_loss_type", weighted_loss_names[cpt->opt_weighted_loss_type], "opt_loss_decay_factor",
                     cpt->opt_loss_decay_factor, "opt_projection_epsilon", cpt->opt_projection_epsilon,
                     "opt_projection_format_epsilon", cpt->opt_projection_format_epsilon);
}
