/* weights.c: a layer's tensors for products: as the file stores them, or expanded to f32 when first used, and kept. */
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "base/status.h"
#include "model/internal.h"

void sp_weights_expand_rows(float *out, const sp_gguf_tensor *tensor, size_t first, size_t n)
{
    size_t width = tensor->shape[0], row_bytes = ggml_row_size(tensor->type, (int64_t)width);
    const char *rows = (const char *)tensor->data + first * row_bytes;
    const sp_row_reader *reader = sp_row_reader_get(tensor->type);
#pragma omp parallel for schedule(static) if (n > 64)
    for (size_t r = 0; r < n; r++) reader->expand(reader, out + r * width, rows + r * row_bytes, width);
}

static size_t layer_floats(const sp_model *m)
{
    return m->d_model * (2 * sp_model_q_dim(m) + 2 * sp_model_kv_dim(m) + 3 * m->d_ffn);
}

static size_t head_floats(const sp_model *m)
{
    return m->n_vocab * m->d_model;
}

/* What the system could give without swapping; the page cache of the mapped file counts as free. */
static uint64_t available_bytes(void)
{
    FILE *file = fopen("/proc/meminfo", "r");
    unsigned long long kib = 0;
    char line[128];
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) break;
    if (file) fclose(file);
    return (uint64_t)kib * 1024;
}

/* ---- vectors ---- */

static size_t layer_vector_floats(const sp_model *m)
{
    return 5 * m->d_model + 2 * m->d_head + sp_model_q_dim(m) + 2 * sp_model_kv_dim(m);
}

/* The vectors of some roles behind each other at *next, which moves behind them; n[i] zeros for one that the file does not have.
 * NULL where it has none of them. */
static const float *expand_vectors(float **next, const sp_layer_tensors *t, const sp_layer_tensor *roles, const size_t *n,
                                   size_t n_roles)
{
    float *first = *next;
    bool any = false;
    for (size_t i = 0; i < n_roles; i++) any |= t->of[roles[i]] != NULL;
    for (size_t i = 0; any && i < n_roles; *next += n[i], i++) {
        if (t->of[roles[i]])
            sp_weights_expand_rows(*next, t->of[roles[i]], 0, 1);
        else
            memset(*next, 0, n[i] * sizeof(float));
    }
    return any ? first : NULL;
}

static const float *expand_vector(float **next, const sp_layer_tensors *t, sp_layer_tensor role, size_t n)
{
    return expand_vectors(next, t, &role, &n, 1);
}

static sp_status expand_all_vectors(sp_model *m)
{
    static const sp_layer_tensor biases[] = {SP_ATTN_Q_BIAS, SP_ATTN_K_BIAS, SP_ATTN_V_BIAS};
    size_t d = m->d_model, kv_dim = sp_model_kv_dim(m), n_bytes = m->n_layer * layer_vector_floats(m) * sizeof(float);
    const size_t bias_lengths[] = {sp_model_q_dim(m), kv_dim, kv_dim};
    m->vectors = calloc(m->n_layer, sizeof *m->vectors);
    m->vectors_f32 = malloc(n_bytes);
    m->output_norm_f32 = malloc(d * sizeof(float));
    if (!m->vectors || !m->vectors_f32 || !m->output_norm_f32) return sp_fail_no_memory(n_bytes);
    float *next = m->vectors_f32;
    for (size_t l = 0; l < m->n_layer; l++) {
        const sp_layer_tensors *t = &m->layers[l];
        m->vectors[l] = (sp_layer_vectors){
            .attn_norm = expand_vector(&next, t, SP_ATTN_NORM, d),
            .ffn_norm = expand_vector(&next, t, SP_FFN_NORM, d),
            .qkv_bias = expand_vectors(&next, t, biases, bias_lengths, 3),
            .out_bias = expand_vector(&next, t, SP_ATTN_OUT_BIAS, d),
            .q_norm = expand_vector(&next, t, SP_ATTN_Q_NORM, m->d_head),
            .k_norm = expand_vector(&next, t, SP_ATTN_K_NORM, m->d_head),
            .attn_post_norm = expand_vector(&next, t, SP_ATTN_POST_NORM, d),
            .ffn_post_norm = expand_vector(&next, t, SP_FFN_POST_NORM, d),
        };
    }
    sp_weights_expand_rows(m->output_norm_f32, m->output_norm, 0, 1);
    return SP_OK;
}

/* ---- matrices ---- */

static bool is_fast(const sp_gguf_tensor *tensor)
{
    return sp_row_reader_get(tensor->type)->is_fast;
}

static bool is_matrix(size_t role)
{
    return sp_layer_tensor_forms[role].rows != SP_ONE;
}

static bool all_fast(const sp_model *m)
{
    bool fast = is_fast(m->output);
    for (size_t l = 0; l < m->n_layer; l++)
        for (size_t i = 0; i < SP_N_LAYER_TENSORS; i++)
            if (m->layers[l].of[i] && is_matrix(i)) fast = fast && is_fast(m->layers[l].of[i]);
    return fast;
}

sp_status sp_weights_prepare(sp_model *m, sp_weights wanted)
{
    size_t n_bytes = (m->n_layer * layer_floats(m) + head_floats(m)) * sizeof(float);
    if (wanted == SP_WEIGHTS_AUTO) wanted = all_fast(m) || n_bytes > available_bytes() / 2 ? SP_WEIGHTS_MAPPED : SP_WEIGHTS_F32;
    m->weights = wanted;
    if (wanted == SP_WEIGHTS_F32) {
        m->is_expanded = calloc(m->n_layer + 1, sizeof *m->is_expanded);
        m->expanded = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
        if (!m->is_expanded || !m->expanded) return sp_fail_no_memory(n_bytes);
    }
    return expand_all_vectors(m);
}

/* A tensor as it is stored, or, where `kept` is not NULL, as f32 there. */
static sp_weight_part part_of(const sp_gguf_tensor *tensor, const float *kept)
{
    enum ggml_type type = kept ? GGML_TYPE_F32 : tensor->type;
    return (sp_weight_part){sp_row_reader_get(type), kept ? (const void *)kept : tensor->data,
                            ggml_row_size(type, (int64_t)tensor->shape[0]), tensor->shape[1]};
}

/* Tensors of one input as one weight; `kept`, where they are kept as f32, moves behind them, and they are expanded there. */
static sp_weight stack(const sp_gguf_tensor *const *tensors, size_t n, float **kept, bool expand)
{
    sp_weight w = {.n_in = tensors[0]->shape[0], .n_parts = n};
    for (size_t i = 0; i < n; i++) {
        if (*kept && expand) sp_weights_expand_rows(*kept, tensors[i], 0, tensors[i]->shape[1]);
        w.parts[i] = part_of(tensors[i], *kept);
        if (*kept) *kept += tensors[i]->shape[0] * tensors[i]->shape[1];
    }
    return w;
}

void sp_weights_get_layer(sp_layer_weights *out, sp_model *m, size_t layer)
{
    const sp_gguf_tensor *const *of = m->layers[layer].of;
    float *kept = m->expanded ? m->expanded + layer * layer_floats(m) : NULL;
    bool expand = kept && !m->is_expanded[layer];
    out->vectors = m->vectors[layer];
    out->qkv = stack(of + SP_ATTN_Q, 3, &kept, expand);
    out->out = stack(of + SP_ATTN_OUT, 1, &kept, expand);
    out->gate_up = stack(of + SP_FFN_GATE, 2, &kept, expand);
    out->down = stack(of + SP_FFN_DOWN, 1, &kept, expand);
    if (expand) m->is_expanded[layer] = true;
}

sp_weight sp_weights_get_head(sp_model *m)
{
    float *kept = m->expanded ? m->expanded + m->n_layer * layer_floats(m) : NULL;
    bool expand = kept && !m->is_expanded[m->n_layer];
    sp_weight head = stack(&m->output, 1, &kept, expand);
    if (expand) m->is_expanded[m->n_layer] = true;
    return head;
}
