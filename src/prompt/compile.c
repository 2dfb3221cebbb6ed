/* compile.c: a prompt of keys and values becomes the moments of each head's keys (fast/state.h), which stand for it in the engine
 * (model/states.c), and a file of them.
 *
 *   adapter_model.safetensors   layer.L.head.H.NAME: each head's state, in the order of layers and heads (fast/state_file.c)
 *   softprompt.json             "compiled": what they serve; and what every adapter of ours says
 *   adapter_config.json         a peft_type that PEFT does not know: it says so, and does not take the moments for something else
 *
 * Every head serves the same range of scores: what its queries reach differs by head and is not known from the prompt. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/sizes.h"
#include "base/status.h"
#include "prompt/internal.h"
#include "prompt/task.h"

static const double DEFAULT_EPSILON = 1e-3, MARGIN = 1.1;
static const uint64_t DEFAULT_MAX_BYTES = 4ULL << 30;

typedef struct compiler {
    const sp_model *model;
    const sp_prompt *source;
    sp_compile_options options; /* without zeros that stand for defaults, but degree */
    sp_model_info info;
    uint64_t bytes_left;
} compiler;

/* ---- keys -> moments ---- */

static sp_attention_head keys_of(const compiler *c, size_t layer, size_t head)
{
    const size_t d = c->info.d_head, kv_dim = c->info.n_head_kv * d;
    const float *k = c->source->rows + 2 * layer * kv_dim + head * d;
    return (sp_attention_head){.k = k,
                               .v = k + kv_dim,
                               .n_keys = c->source->num_virtual_tokens,
                               .d = d,
                               .d_v = d,
                               .ldk = c->source->width,
                               .ldv = c->source->width,
                               .scale = sp_model_attention_scale(c->model)};
}

static sp_status compile_head(sp_fast_state **out, compiler *c, size_t layer, size_t head)
{
    const sp_attention_head keys = keys_of(c, layer, head);
    const sp_fast_state_options o = {.epsilon = c->options.epsilon,
                                     .range = c->options.max_logit,
                                     .degree = c->options.degree,
                                     .max_degree = SP_MAX_DEGREE, /* max_bytes stops it earlier where keys have many dimensions */
                                     .max_bytes = c->bytes_left};
    sp_fast_state_info info;
    sp_status st = sp_fast_state_create(out, &keys, &o);
    if (st) return sp_fail(st, "layer %zu, head %zu of the prompt's keys: %s", layer, head, sp_message());
    sp_fast_state_get_info(&info, *out);
    c->bytes_left -= info.n_bytes;
    return SP_OK;
}

static sp_status compile_heads(sp_prompt *p, compiler *c, const sp_hooks *hooks)
{
    const double begin = sp_seconds();
    const size_t n = c->info.n_layer * c->info.n_head_kv;
    sp_status st = SP_OK;
    if ((st = sp_state_set_create(&p->states, n))) return st;
    for (size_t i = 0; i < n && !st; i++) {
        st = compile_head(&p->states->of[i], c, i / c->info.n_head_kv, i % c->info.n_head_kv);
        const sp_progress progress = {.what = "head", .done = i + 1, .total = n, .seconds = sp_seconds() - begin, .loss = NAN};
        if (!st && hooks && hooks->progress) hooks->progress(hooks->user, &progress);
        if (!st && hooks && hooks->stop && *hooks->stop) st = sp_fail(SP_ERR_STOPPED, "stopped after %zu of %zu heads", i + 1, n);
    }
    return st;
}

/* ---- what is asked for ---- */

static sp_status complete_options(compiler *c, const sp_compile_options *options)
{
    const sp_prompt *p = c->source;
    const double reached = p->has_key_bound ? fmax(p->key_bound.bound, p->key_bound.max_logit) : p->trained_bound;
    sp_compile_options *o = &c->options;
    *o = options ? *options : (sp_compile_options){0};
    if (o->epsilon == 0) o->epsilon = DEFAULT_EPSILON;
    if (o->max_bytes == 0) o->max_bytes = DEFAULT_MAX_BYTES;
    if (o->text_position == 0) o->text_position = sp_prompt_text_position(p);
    if (o->max_logit == 0) o->max_logit = MARGIN * reached;
    if (!(o->epsilon > 0 && o->epsilon < 1))
        return sp_fail(SP_ERR_ARGUMENT, "epsilon is %g; give a number between 0 and 1", o->epsilon);
    if (!(o->max_logit >= 0 && isfinite(o->max_logit)))
        return sp_fail(SP_ERR_ARGUMENT, "max_logit is %g; give a positive number", o->max_logit);
    if (o->max_logit == 0)
        return sp_fail(SP_ERR_ARGUMENT,
                       "which scores shall be served? The prompt was not trained with a bound on them: train it with "
                       "--max-logit, or give the range, as an audit tells it");
    c->bytes_left = o->max_bytes;
    return SP_OK;
}

static sp_status check_source(const compiler *c)
{
    if (!sp_prompt_is_given(c->source))
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "a prompt of embeddings, whose keys come from the model anew for every text's positions; compile a "
                       "prefix or a cartridge");
    sp_status st = sp_prompt_check_rows(c->source, "a prompt is compiled from its rows");
    if (!st) st = sp_prompt_check(c->source, c->model, NULL);
    return st ? st : sp_model_check_states(c->model);
}

static sp_status copy_text(char **out, const char *text)
{
    return !text || (*out = strdup(text)) ? SP_OK : sp_fail_no_memory(strlen(text) + 1);
}

/* Everything but rows. */
static sp_status copy_origin(sp_prompt *p, const sp_prompt *source)
{
    p->method = source->method;
    p->num_virtual_tokens = source->num_virtual_tokens;
    p->width = source->width;
    p->num_tasks = 1;
    p->n_layer = source->n_layer;
    p->n_head = source->n_head;
    p->init = source->init;
    p->has_fingerprint = source->has_fingerprint;
    p->fingerprint = source->fingerprint;
    sp_status st = copy_text(&p->init_text, source->init_text);
    if (!st) st = copy_text(&p->base_model, source->base_model);
    if (!st && source->task) st = sp_task_copy(&p->task, source->task);
    return st;
}

sp_status sp_prompt_compile(sp_prompt **out, const sp_model *model, const sp_prompt *prompt, const sp_compile_options *options,
                            const sp_hooks *hooks)
{
    compiler c = {.model = model, .source = prompt};
    *out = NULL;
    sp_model_get_info(&c.info, model);
    sp_status st = check_source(&c);
    if (!st) st = complete_options(&c, options);
    if (st) return st;
    sp_prompt *p = calloc(1, sizeof *p);
    if (!p) return sp_fail_no_memory(sizeof *p);
    st = copy_origin(p, prompt);
    if (!st) st = sp_prompt_set_text_position(p, c.options.text_position);
    if (!st) st = compile_heads(p, &c, hooks);
    if (st)
        sp_prompt_free(p);
    else
        *out = p;
    return st;
}

sp_status sp_prompt_get_compiled_info(sp_compiled_info *out, const sp_prompt *prompt)
{
    double keys = 0, moments = 0;
    const sp_state_set *set = prompt->states;
    *out = (sp_compiled_info){
        .num_virtual_tokens = prompt->num_virtual_tokens, .text_position = sp_prompt_text_position(prompt), .range = INFINITY};
    if (!set) return sp_fail(SP_ERR_ARGUMENT, "the prompt is not compiled");
    out->n_heads = set->n;
    for (size_t i = 0; i < set->n; i++) {
        sp_fast_state_info s;
        sp_fast_state_get_info(&s, set->of[i]);
        out->rank = sp_larger(out->rank, s.rank);
        out->degree = sp_larger(out->degree, s.degree);
        out->n_features = sp_larger(out->n_features, s.n_features);
        out->epsilon = fmax(out->epsilon, s.epsilon);
        out->range = fmin(out->range, s.range);
        out->n_bytes += s.n_bytes;
        keys += (double)s.n_keys * (double)(s.d + s.d_v);
        moments += (double)s.n_features * (double)(s.d_v + 2) + (double)(s.rank * s.d);
    }
    out->cost_ratio = keys / moments;
    return SP_OK;
}

/* ---- files ---- */

enum { PREFIX_SIZE = 64 };

static void name_prefix(char out[PREFIX_SIZE], size_t index, size_t n_heads)
{
    snprintf(out, PREFIX_SIZE, "layer.%zu.head.%zu.", index / n_heads, index % n_heads);
}

sp_status sp_prompt_write_states(const sp_prompt *p, const char *path)
{
    static const sp_metadata_item kind = {"format", "softprompt"};
    const size_t n = p->states->n;
    sp_state_tensors *lists = calloc(n, sizeof *lists);
    sp_st_tensor *tensors = calloc(n * SP_STATE_TENSORS, sizeof *tensors);
    sp_status st = lists && tensors ? SP_OK : sp_fail_no_memory(n * sizeof *lists);
    for (size_t i = 0; i < n && !st; i++) {
        char prefix[PREFIX_SIZE];
        name_prefix(prefix, i, p->n_head);
        sp_fast_state_list(&lists[i], p->states->of[i], prefix);
        memcpy(tensors + i * SP_STATE_TENSORS, lists[i].tensors, sizeof lists[i].tensors);
    }
    if (!st) st = sp_safetensors_write(path, tensors, n * SP_STATE_TENSORS, &kind, 1);
    free(tensors);
    free(lists);
    return st;
}

/* Heads of one prompt hold equally many keys, in heads of equally many numbers. */
static sp_status check_state(const sp_prompt *p, const sp_adapter *a, size_t index)
{
    const sp_fast_state *s = p->states->of[index], *first = p->states->of[0];
    if (s->n_keys == p->num_virtual_tokens && s->plane.d == first->plane.d && s->d_v == s->plane.d) return SP_OK;
    return sp_fail(SP_ERR_FORMAT,
                   "%s: layer %zu, head %zu: %zu keys of %zu and values of %zu numbers, in a prompt of %zu keys of %zu",
                   a->tensors_path, index / p->n_head, index % p->n_head, s->n_keys, s->plane.d, s->d_v, p->num_virtual_tokens,
                   first->plane.d);
}

static sp_status read_states(sp_prompt *p, const sp_adapter *a)
{
    const size_t n_tensors = sp_safetensors_n_tensors(a->tensors);
    size_t n;
    if (a->num_layers == 0 || a->num_attention_heads == 0 || a->num_virtual_tokens == 0 ||
        __builtin_mul_overflow(a->num_layers, a->num_attention_heads, &n) || n > n_tensors || n * SP_STATE_TENSORS != n_tensors)
        return sp_fail(SP_ERR_FORMAT,
                       "%s: %zu tensors are no moments of %zu layers with %zu heads each, and of %zu virtual tokens; compile "
                       "the prompt again",
                       a->tensors_path, n_tensors, a->num_layers, a->num_attention_heads, a->num_virtual_tokens);
    sp_status st = sp_state_set_create(&p->states, n);
    for (size_t i = 0; i < n && !st; i++) {
        char prefix[PREFIX_SIZE];
        name_prefix(prefix, i, p->n_head);
        st = sp_fast_state_read(&p->states->of[i], a->tensors, a->tensors_path, prefix);
        if (!st) st = check_state(p, a, i);
    }
    if (!st) p->width = 2 * n * p->states->of[0]->plane.d;
    return st;
}

sp_status sp_prompt_read_states(sp_prompt **out, const sp_adapter *a)
{
    sp_prompt *p = calloc(1, sizeof *p);
    *out = NULL;
    if (!p) return sp_fail_no_memory(sizeof *p);
    p->method = SP_METHOD_PREFIX;
    p->num_virtual_tokens = a->num_virtual_tokens;
    p->num_tasks = 1;
    p->n_layer = a->num_layers;
    p->n_head = a->num_attention_heads;
    sp_status st = read_states(p, a);
    if (st)
        sp_prompt_free(p);
    else
        *out = p;
    return st;
}
