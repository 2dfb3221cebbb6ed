/* model.c: from a GGUF file to a model: hyperparameters, every tensor by name and shape, tokenizer.
 *
 * A tensor of the file that nothing here would use is an error: to leave out a bias in silence is to compute another model. */
#include "model/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/sizes.h"
#include "base/status.h"
#include "model/internal.h"
#include "tensor/kernels.h"

/* ---- metadata ---- */

/* "<architecture>.<name>": the keys of hyperparameters. */
static const char *key_of(char key[128], const sp_model *m, const char *name)
{
    snprintf(key, 128, "%s.%s", m->architecture->name, name);
    return key;
}

/* A count that must be there, unless there is a fallback other than 0; in 1 .. limit. */
static sp_status read_size(size_t *out, const sp_model *m, const char *name, size_t fallback, size_t limit)
{
    char key[128];
    uint32_t value;
    *out = fallback;
    if (fallback && !sp_source_has(m->source, key_of(key, m, name))) return SP_OK;
    sp_status st = sp_source_get_u32(&value, m->source, key_of(key, m, name));
    if (st) return st;
    if (value == 0 || value > limit)
        return sp_fail(SP_ERR_FORMAT, "%s: %s is %" PRIu32 ", not in 1 .. %zu", m->path, key, value, limit);
    *out = value;
    return SP_OK;
}

static sp_status read_float(float *out, const sp_model *m, const char *name, float fallback)
{
    char key[128];
    *out = fallback;
    if (!sp_source_has(m->source, key_of(key, m, name))) return SP_OK;
    sp_status st = sp_source_get_f32(out, m->source, key);
    if (st) return st;
    if (!isfinite(*out) || *out < 0)
        return sp_fail(SP_ERR_FORMAT, "%s: %s is %g; a finite number >= 0 was expected", m->path, key, (double)*out);
    return SP_OK;
}

static sp_status copy_string(char **out, const sp_source *source, const char *key)
{
    sp_gguf_string value = {"", 0};
    if (sp_source_has(source, key)) {
        sp_status st = sp_source_get_string(&value, source, key);
        if (st) return st;
    }
    *out = strndup(value.bytes, value.n_bytes);
    return *out ? SP_OK : sp_fail_no_memory(value.n_bytes + 1);
}

static sp_status read_architecture(sp_model *m)
{
    char *name = NULL, known[256];
    sp_status st = copy_string(&m->name, m->source, "general.name");
    if (!st) st = copy_string(&name, m->source, "general.architecture");
    if (!st && !(m->architecture = sp_architecture_find(name)))
        st = sp_fail(SP_ERR_UNSUPPORTED, "%s: architecture \"%.60s\" is not supported; this version runs: %s", m->path, name,
                     sp_architecture_list(known, sizeof known));
    if (!st) m->rope_by_halves = m->architecture->rope_by_halves || sp_source_rows_as_trained(m->source);
    free(name);
    return st;
}

/* Mixtures of experts call themselves llama too. */
static sp_status refuse_experts(const sp_model *m)
{
    char key[128];
    uint32_t n = 0;
    if (!sp_source_has(m->source, key_of(key, m, "expert_count"))) return SP_OK;
    sp_status st = sp_source_get_u32(&n, m->source, key);
    if (st || n == 0) return st;
    return sp_fail(SP_ERR_UNSUPPORTED, "%s: a mixture of %" PRIu32 " experts, which this version does not run; use a dense model",
                   m->path, n);
}

/* Limits are far above any model, and low enough that no product of two of them wraps. */
static sp_status read_sizes(sp_model *m)
{
    sp_status st;
    if ((st = read_size(&m->n_layer, m, "block_count", 0, 10000))) return st;
    if ((st = read_size(&m->d_model, m, "embedding_length", 0, 1 << 20))) return st;
    if ((st = read_size(&m->d_ffn, m, "feed_forward_length", 0, 1 << 22))) return st;
    if ((st = read_size(&m->context_length, m, "context_length", 0, 1 << 28))) return st;
    if ((st = read_size(&m->n_head, m, "attention.head_count", 0, 1 << 16))) return st;
    if ((st = read_size(&m->n_head_kv, m, "attention.head_count_kv", m->n_head, 1 << 16))) return st;
    const char *epsilon = m->architecture->layer_norm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon";
    if ((st = read_float(&m->norm_eps, m, epsilon, 1e-5f))) return st;
    if (m->n_head % m->n_head_kv)
        return sp_fail(SP_ERR_FORMAT, "%s: %zu heads cannot share %zu key heads evenly", m->path, m->n_head, m->n_head_kv);
    size_t even_share = m->d_model / m->n_head, d_value;
    if ((st = read_size(&m->d_head, m, "attention.key_length", even_share ? even_share : 1, SP_MAX_D_HEAD))) return st;
    if ((st = read_size(&d_value, m, "attention.value_length", m->d_head, SP_MAX_D_HEAD))) return st;
    if (d_value != m->d_head)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: values of %zu dimensions beside keys of %zu are not supported", m->path, d_value,
                       m->d_head);
    return SP_OK;
}

static sp_status read_scales(sp_model *m)
{
    const sp_architecture *a = m->architecture;
    sp_status st;
    size_t width = m->n_layer == a->share_scaled_layers ? m->d_model / m->n_head : m->d_head;
    m->embedding_scale = a->scale_embeddings ? sqrtf((float)m->d_model) : 1;
    if ((st = read_float(&m->attention_scale, m, "attention.scale", 0))) return st;
    if (m->attention_scale == 0) m->attention_scale = 1 / sqrtf((float)width);
    if ((st = read_float(&m->attention_soft_cap, m, "attn_logit_softcapping", a->attention_soft_cap))) return st;
    return read_float(&m->logit_soft_cap, m, "final_logit_softcapping", a->logit_soft_cap);
}

static sp_status read_parallel(sp_model *m)
{
    char key[128];
    m->parallel = m->architecture->parallel;
    if (!m->parallel || !sp_source_has(m->source, key_of(key, m, "use_parallel_residual"))) return SP_OK;
    return sp_source_get_bool(&m->parallel, m->source, key);
}

/* A window as long as the context is none. */
static sp_status read_window(sp_model *m)
{
    char key[128];
    uint32_t window = (uint32_t)m->architecture->default_window;
    sp_status st = SP_OK;
    if (sp_source_has(m->source, key_of(key, m, "attention.sliding_window"))) st = sp_source_get_u32(&window, m->source, key);
    if (st || window == 0 || window >= m->context_length) return st;
    if (!m->architecture->has_window)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: %s is %" PRIu32 ", but this version knows no windows in the %s architecture",
                       m->path, key, window, m->architecture->name);
    m->window = window;
    m->global_period = m->architecture->global_period;
    if (!sp_source_has(m->source, key_of(key, m, "attention.sliding_window_pattern"))) return SP_OK;
    return read_size(&m->global_period, m, "attention.sliding_window_pattern", 0, m->n_layer + 1); /* beyond the last: none */
}

/* ---- rotary embedding ---- */

/* Divisors of frequencies: llama 3's, and those of LongRoPE (arXiv 2402.13753), for texts within the original context and beyond.
 */
enum { ROPE_FREQS, SHORT_FACTORS, LONG_FACTORS, N_FACTORS };
static const char *const factor_tensors[N_FACTORS] = {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"};

static sp_status read_scaling(sp_rope_options *o, const sp_model *m)
{
    char key[128], *type = NULL;
    float linear;
    sp_status st = copy_string(&type, m->source, key_of(key, m, "rope.scaling.type"));
    if (!st) st = read_float(&linear, m, "rope.scale_linear", 1);
    if (!st) st = read_float(&o->factor, m, "rope.scaling.factor", linear);
    if (!st && sp_source_find_tensor(m->source, factor_tensors[SHORT_FACTORS]))
        o->scaling = SP_ROPE_LONG; /* whatever the type: converters leave it out */
    else if (!st && strcmp(type, "linear") == 0)
        o->scaling = SP_ROPE_LINEAR;
    else if (!st && strcmp(type, "yarn") == 0)
        o->scaling = SP_ROPE_YARN;
    else if (!st && (*type == 0 || strcmp(type, "none") == 0))
        o->scaling = *type == 0 && o->factor != 1 ? SP_ROPE_LINEAR : SP_ROPE_NONE;
    else if (!st)
        st =
            sp_fail(SP_ERR_UNSUPPORTED,
                    "%s: %s \"%.40s\" is not supported; known: none, linear, yarn, and the tensors rope_freqs.weight (llama 3) and "
                    "rope_factors_short.weight (LongRoPE)",
                    m->path, key_of(key, m, "rope.scaling.type"), type);
    if (!st && o->scaling != SP_ROPE_NONE && !(o->factor > 0))
        st = sp_fail(SP_ERR_FORMAT, "%s: a RoPE scaling factor of %g; it must be above 0", m->path, (double)o->factor);
    free(type);
    return st;
}

static sp_status read_yarn(sp_rope_options *o, const sp_model *m)
{
    sp_status st;
    if ((st = read_size(&o->original_context, m, "rope.scaling.original_context_length", m->context_length, 1 << 28))) return st;
    if ((st = read_float(&o->attention_factor, m, "rope.scaling.attn_factor", 1))) return st;
    if ((st = read_float(&o->beta_fast, m, "rope.scaling.yarn_beta_fast", 32))) return st;
    return read_float(&o->beta_slow, m, "rope.scaling.yarn_beta_slow", 1);
}

/* The factors that the file has, or NULL. Of LongRoPE's two the short ones: which it would be depends on the length of each text.
 */
static sp_status find_frequency_factors(const float **out, const sp_model *m, size_t n_pairs)
{
    const sp_gguf_tensor *t = sp_source_find_tensor(m->source, factor_tensors[ROPE_FREQS]);
    const sp_gguf_tensor *short_factors = sp_source_find_tensor(m->source, factor_tensors[SHORT_FACTORS]);
    *out = NULL;
    if (t && short_factors)
        return sp_fail(SP_ERR_FORMAT, "%s: tensor %s beside %s: which of them divides the frequencies?", m->path, t->name,
                       short_factors->name);
    if (!t) t = short_factors;
    if (!t) return SP_OK;
    if (t->type != GGML_TYPE_F32 || t->n_dims != 1 || t->shape[0] != n_pairs)
        return sp_fail(SP_ERR_FORMAT, "%s: tensor %s: %zu values of f32 were expected", m->path, t->name, n_pairs);
    for (size_t i = 0; i < n_pairs; i++)
        if (!(((const float *)t->data)[i] > 0))
            return sp_fail(SP_ERR_FORMAT, "%s: tensor %s: value %zu is not above 0", m->path, t->name, i);
    *out = t->data;
    return SP_OK;
}

/* Layers with a window need no stretching. */
static sp_status make_local_rope(sp_model *m, const sp_rope_options *global)
{
    sp_rope_options o = {.n_rot = global->n_rot, .by_halves = global->by_halves};
    sp_status st = read_float(&o.theta, m, "rope.freq_base_swa", m->architecture->local_rope_base);
    if (!st && !(o.theta > 1))
        st = sp_fail(SP_ERR_FORMAT, "%s: RoPE with base %g; a base above 1 was expected", m->path, (double)o.theta);
    return st ? st : sp_rope_create(&m->local_rope, &o);
}

/* LongRoPE: texts end where its long factors would begin. What the file does not say of cosines and sines, the paper does. */
static sp_status limit_to_original_context(sp_rope_options *o, sp_model *m)
{
    size_t longest = m->context_length, original = o->original_context;
    float stretch = (float)longest / (float)original, factor = 1;
    if (original > 1 && original < longest) factor = sqrtf(1 + logf(stretch) / logf((float)original));
    m->context_length = sp_smaller(longest, original);
    return read_float(&o->attention_factor, m, "rope.scaling.attn_factor", factor);
}

static sp_status make_rope(sp_model *m)
{
    if (m->architecture->learned_positions) return SP_OK;
    sp_rope_options o = {.by_halves = m->rope_by_halves};
    sp_status st = read_size(&o.n_rot, m, "rope.dimension_count", m->d_head, m->d_head);
    if (!st) st = read_float(&o.theta, m, "rope.freq_base", 10000);
    if (!st) st = read_scaling(&o, m);
    if (!st) st = read_yarn(&o, m);
    if (!st && o.scaling == SP_ROPE_LONG) st = limit_to_original_context(&o, m);
    if (st) return st;
    if (o.n_rot % 2 || !(o.theta > 1))
        return sp_fail(SP_ERR_FORMAT, "%s: RoPE over %zu dimensions with base %g: an even number and a base above 1 were expected",
                       m->path, o.n_rot, (double)o.theta);
    st = find_frequency_factors(&o.frequency_factors, m, o.n_rot / 2);
    if (!st) st = sp_rope_create(&m->rope, &o);
    return st || m->architecture->local_rope_base == 0 ? st : make_local_rope(m, &o);
}

/* ---- tensors ---- */

/* A tensor of exactly this shape, of a type that expands to f32. rows 1: a vector. */
static sp_status find_tensor(const sp_gguf_tensor **out, const sp_model *m, const char *name, size_t width, size_t rows)
{
    const sp_gguf_tensor *t = sp_source_find_tensor(m->source, name);
    if (!t) return sp_fail(SP_ERR_FORMAT, "%s: tensor %s is missing; fetch the file again", m->path, name);
    if (t->n_dims > 2 || t->shape[0] != width || t->shape[1] != rows)
        return sp_fail(SP_ERR_FORMAT, "%s: tensor %s has shape (%" PRIu64 ", %" PRIu64 "); (%zu, %zu) was expected", m->path, name,
                       t->shape[1], t->shape[0], rows, width);
    if (t->type != GGML_TYPE_F32 && !ggml_get_type_traits(t->type)->to_float)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: tensor %s has type %s, which cannot be expanded to f32", m->path, name,
                       ggml_type_name(t->type));
    *out = t;
    return SP_OK;
}

static sp_status find_layer(sp_layer_tensors *out, const sp_model *m, size_t layer)
{
    for (size_t i = 0; i < SP_N_LAYER_TENSORS; i++) {
        const sp_layer_tensor_form *form = &sp_layer_tensor_forms[i];
        char name[64];
        snprintf(name, sizeof name, "blk.%zu.%s", layer, form->name);
        bool wanted = m->architecture->required >> i & 1;
        if (m->architecture->optional >> i & 1) wanted = sp_source_find_tensor(m->source, name) != NULL;
        if (!wanted) continue;
        sp_status st = find_tensor(&out->of[i], m, name, sp_model_length(m, form->width), sp_model_length(m, form->rows));
        if (st) return st;
    }
    return SP_OK;
}

/* LongRoPE's long factors are known beside the short ones only. */
static const sp_gguf_tensor *find_used_factors(const sp_model *m, size_t which)
{
    if (!m->rope || (which == LONG_FACTORS && !sp_source_find_tensor(m->source, factor_tensors[SHORT_FACTORS]))) return NULL;
    return sp_source_find_tensor(m->source, factor_tensors[which]);
}

static bool is_used(const sp_model *m, const sp_gguf_tensor *t)
{
    if (t == m->embedding || t == m->positions || t == m->output || t == m->output_norm || t == m->output_norm_bias) return true;
    for (size_t i = 0; i < N_FACTORS; i++)
        if (t == find_used_factors(m, i)) return true;
    for (size_t l = 0; l < m->n_layer; l++)
        for (size_t i = 0; i < SP_N_LAYER_TENSORS; i++)
            if (t == m->layers[l].of[i]) return true;
    return false;
}

static uint64_t count_values(const sp_gguf_tensor *t)
{
    return t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
}

static sp_status check_all_used(sp_model *m)
{
    size_t n = sp_source_n_tensors(m->source), expected = 2 + (m->output != m->embedding);
    expected += (m->positions != NULL) + (m->output_norm_bias != NULL);
    for (size_t i = 0; i < N_FACTORS; i++) expected += find_used_factors(m, i) != NULL;
    for (size_t i = 0; i < m->n_layer * SP_N_LAYER_TENSORS; i++)
        expected += m->layers[i / SP_N_LAYER_TENSORS].of[i % SP_N_LAYER_TENSORS] != NULL;
    for (size_t i = 0; i < n; i++) m->n_parameters += count_values(sp_source_tensor_at(m->source, i));
    for (size_t i = 0; n != expected && i < n; i++) {
        const sp_gguf_tensor *t = sp_source_tensor_at(m->source, i);
        if (!is_used(m, t))
            return sp_fail(SP_ERR_UNSUPPORTED, "%s: tensor %s is no part of the %s architecture as this version runs it", m->path,
                           t->name, m->architecture->name);
    }
    return SP_OK;
}

static sp_status find_tensors(sp_model *m)
{
    if (m->n_layer > sp_source_n_tensors(m->source)) /* before anything is allocated for so many */
        return sp_fail(SP_ERR_FORMAT, "%s: %zu layers, but only %zu tensors", m->path, m->n_layer, sp_source_n_tensors(m->source));
    m->layers = calloc(m->n_layer, sizeof *m->layers);
    if (!m->layers) return sp_fail_no_memory(m->n_layer * sizeof *m->layers);
    sp_status st = find_tensor(&m->embedding, m, "token_embd.weight", m->d_model, m->n_vocab);
    if (!st && m->architecture->learned_positions)
        st = find_tensor(&m->positions, m, "position_embd.weight", m->d_model, m->context_length);
    if (!st) st = find_tensor(&m->output_norm, m, "output_norm.weight", m->d_model, 1);
    if (!st && m->architecture->layer_norm) st = find_tensor(&m->output_norm_bias, m, "output_norm.bias", m->d_model, 1);
    m->output = m->embedding;
    if (!st && sp_source_find_tensor(m->source, "output.weight"))
        st = find_tensor(&m->output, m, "output.weight", m->d_model, m->n_vocab);
    for (size_t l = 0; l < m->n_layer && !st; l++) st = find_layer(&m->layers[l], m, l);
    return st ? st : check_all_used(m);
}

/* ---- vocabulary ---- */

static sp_status read_tokenizer(sp_model *m)
{
    const sp_gguf *gguf = sp_source_gguf(m->source);
    if (gguf) return sp_tokenizer_from_gguf(&m->tokenizer, gguf);
    return sp_tokenizer_from_hf(&m->tokenizer, m->path);
}

/* A GGUF file has a row of embeddings for each token. Checkpoints as they are trained may have more, so that their number is round,
 * or fewer, where a token stands for what is no text. */
static sp_status find_n_vocab(sp_model *m)
{
    const sp_gguf_tensor *embedding = sp_source_find_tensor(m->source, "token_embd.weight");
    m->n_vocab = sp_tokenizer_n_vocab(m->tokenizer);
    if (sp_source_gguf(m->source) || !embedding) return SP_OK;
    if (embedding->shape[1] > 1 << 24)
        return sp_fail(SP_ERR_FORMAT, "%s: %" PRIu64 " rows of embeddings; at most %d are read", m->path, embedding->shape[1],
                       1 << 24);
    m->n_vocab = embedding->shape[1];
    return SP_OK;
}

/* ---- public ---- */

static sp_status load(sp_model *m, const char *path, const sp_model_options *options)
{
    sp_machine machine;
    sp_machine_describe(&machine);
    m->n_threads = options->n_threads > 0 ? options->n_threads : machine.n_threads;
    sp_status st;
    if ((st = sp_source_open(&m->source, path))) return st;
    if ((st = read_architecture(m)) || (st = refuse_experts(m)) || (st = read_sizes(m)) || (st = read_scales(m)) ||
        (st = read_parallel(m)) || (st = read_window(m)) || (st = make_rope(m)))
        return st;
    if ((st = read_tokenizer(m)) || (st = find_n_vocab(m))) return st;
    if ((st = find_tensors(m))) return st;
    m->compute = options->compute == SP_COMPUTE_BF16 ? SP_COMPUTE_BF16 : SP_COMPUTE_F32;
    return sp_weights_prepare(m, options->weights);
}

sp_status sp_model_load(sp_model **out, const char *path, const sp_model_options *options)
{
    const sp_model_options defaults = {0};
    sp_model *m = calloc(1, sizeof *m);
    *out = NULL;
    if (!m) return sp_fail_no_memory(sizeof *m);
    m->path = strdup(path);
    sp_status st = m->path ? load(m, path, options ? options : &defaults) : sp_fail_no_memory(strlen(path) + 1);
    if (st)
        sp_model_free(m);
    else
        *out = m;
    return st;
}

void sp_model_free(sp_model *m)
{
    if (!m) return;
    sp_tokenizer_free(m->tokenizer);
    sp_rope_free(m->rope);
    sp_rope_free(m->local_rope);
    free(m->layers);
    free(m->expanded);
    free(m->is_expanded);
    free(m->vectors);
    free(m->vectors_f32);
    free(m->path);
    free(m->name);
    sp_source_close(m->source);
    free(m);
}

void sp_model_get_info(sp_model_info *out, const sp_model *m)
{
    *out = (sp_model_info){
        .path = m->path,
        .architecture = m->architecture->name,
        .name = m->name,
        .n_layer = m->n_layer,
        .d_model = m->d_model,
        .d_ffn = m->d_ffn,
        .n_head = m->n_head,
        .n_head_kv = m->n_head_kv,
        .d_head = m->d_head,
        .n_vocab = m->n_vocab,
        .context_length = m->context_length,
        .n_parameters = m->n_parameters,
        .file_bytes = sp_source_file_bytes(m->source),
        .tied_output = m->output == m->embedding,
    };
}

const sp_tokenizer *sp_model_tokenizer(const sp_model *m)
{
    return m->tokenizer;
}

size_t sp_model_n_vocab(const sp_model *m)
{
    return m->n_vocab;
}

sp_compute sp_model_compute(const sp_model *m)
{
    return m->compute;
}

void sp_model_set_compute(sp_model *m, sp_compute compute)
{
    m->compute = compute;
}

float sp_model_attention_scale(const sp_model *m)
{
    return m->attention_scale;
}

size_t sp_model_window(const sp_model *m)
{
    return m->window;
}

int sp_model_n_threads(const sp_model *m)
{
    return m->n_threads;
}

size_t sp_model_d_model(const sp_model *m)
{
    return m->d_model;
}

sp_status sp_model_embed(float *out, const sp_model *m, const int32_t *tokens, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || (size_t)tokens[i] >= m->n_vocab)
            return sp_fail(SP_ERR_ARGUMENT, "token %d is outside the model's vocabulary of %zu", (int)tokens[i], m->n_vocab);
        sp_weights_expand_rows(out + i * m->d_model, m->embedding, (size_t)tokens[i], 1);
        if (m->embedding_scale != 1)
            sp_kernels_select()->scale(out + i * m->d_model, out + i * m->d_model, m->embedding_scale, m->d_model);
    }
    return SP_OK;
}

sp_fingerprint sp_model_fingerprint(const sp_model *m)
{
    return (sp_fingerprint){
        .tokenizer = sp_tokenizer_hash(m->tokenizer),
        .embeddings = XXH3_64bits(m->embedding->data, m->embedding->n_bytes),
        .n_layer = m->n_layer,
        .d_model = m->d_model,
        .n_head = m->n_head,
        .n_head_kv = m->n_head_kv,
        .n_vocab = m->n_vocab,
    };
}

sp_status sp_model_embedding_moments(double *mean, double *deviation, const sp_model *m)
{
    size_t d = m->d_model;
    double sum = 0, squares = 0, n = (double)m->n_vocab * (double)d;
    float *row = malloc(d * sizeof *row);
    if (!row) return sp_fail_no_memory(d * sizeof *row);
    for (size_t token = 0; token < m->n_vocab; token++) {
        sp_weights_expand_rows(row, m->embedding, token, 1);
        for (size_t i = 0; i < d; i++) {
            sum += (double)row[i];
            squares += (double)row[i] * (double)row[i];
        }
    }
    free(row);
    *mean = sum / n;
    *deviation = sqrt(fmax(squares / n - *mean * *mean, 0)) * (double)m->embedding_scale;
    *mean *= (double)m->embedding_scale;
    return SP_OK;
}
