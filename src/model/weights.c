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

static bool is_matrix(size_t role)
{
    return sp_layer_tensor_forms[role].rows != SP_ONE;
}

/* Numbers of all of a layer's tensors that the architecture may have, matrices or vectors. */
static size_t layer_floats(const sp_model *m, bool matrices)
{
    const uint32_t roles = m->architecture->required | m->architecture->optional;
    size_t n = 0;
    for (size_t i = 0; i < SP_N_LAYER_TENSORS; i++) {
        const sp_layer_tensor_form *form = &sp_layer_tensor_forms[i];
        if (roles >> i & 1 && is_matrix(i) == matrices) n += sp_model_length(m, form->width) * sp_model_length(m, form->rows);
    }
    return n;
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

static sp_norm expand_norm(float **next, const sp_layer_tensors *t, sp_layer_tensor weight, sp_layer_tensor bias, size_t n)
{
    const float *w = expand_vector(next, t, weight, n);
    return (sp_norm){w, expand_vector(next, t, bias, n)};
}

static void expand_layer_vectors(sp_layer_vectors *out, float **next, const sp_layer_tensors *t, const sp_model *m)
{
    static const sp_layer_tensor biases[] = {SP_ATTN_Q_BIAS, SP_ATTN_K_BIAS, SP_ATTN_V_BIAS};
    size_t d = m->d_model, q_dim = sp_model_q_dim(m), kv_dim = sp_model_kv_dim(m);
    const size_t bias_lengths[] = {q_dim, kv_dim, kv_dim};
    *out = (sp_layer_vectors){
        .attn_norm = expand_norm(next, t, SP_ATTN_NORM, SP_ATTN_NORM_BIAS, d),
        .ffn_norm = expand_norm(next, t, SP_FFN_NORM, SP_FFN_NORM_BIAS, d),
        .attn_post_norm = {expand_vector(next, t, SP_ATTN_POST_NORM, d), NULL},
        .ffn_post_norm = {expand_vector(next, t, SP_FFN_POST_NORM, d), NULL},
        .q_norm = expand_vector(next, t, SP_ATTN_Q_NORM, m->d_head),
        .k_norm = expand_vector(next, t, SP_ATTN_K_NORM, m->d_head),
        .qkv_bias = t->of[SP_ATTN_QKV_BIAS] ? expand_vector(next, t, SP_ATTN_QKV_BIAS, q_dim + 2 * kv_dim)
                                            : expand_vectors(next, t, biases, bias_lengths, 3),
        .out_bias = expand_vector(next, t, SP_ATTN_OUT_BIAS, d),
        .up_bias = expand_vector(next, t, SP_FFN_UP_BIAS, m->d_ffn),
        .down_bias = expand_vector(next, t, SP_FFN_DOWN_BIAS, d),
    };
}

static sp_status expand_all_vectors(sp_model *m)
{
    size_t d = m->d_model, n_bytes = (m->n_layer * layer_floats(m, false) + 2 * d) * sizeof(float);
    m->vectors = calloc(m->n_layer, sizeof *m->vectors);
    m->vectors_f32 = malloc(n_bytes);
    if (!m->vectors || !m->vectors_f32) return sp_fail_no_memory(n_bytes);
    float *next = m->vectors_f32 + 2 * d;
    for (size_t l = 0; l < m->n_layer; l++) expand_layer_vectors(&m->vectors[l], &next, &m->layers[l], m);
    sp_weights_expand_rows(m->vectors_f32, m->output_norm, 0, 1);
    if (m->output_norm_bias) sp_weights_expand_rows(m->vectors_f32 + d, m->output_norm_bias, 0, 1);
    m->final_norm = (sp_norm){m->vectors_f32, m->output_norm_bias ? m->vectors_f32 + d : NULL};
    return SP_OK;
}

/* ---- matrices ---- */

static bool is_fast(const sp_gguf_tensor *tensor)
{
    return sp_row_reader_get(tensor->type)->is_fast;
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
    size_t n_bytes = (m->n_layer * layer_floats(m, true) + head_floats(m)) * sizeof(float);
    if (wanted == SP_WEIGHTS_AUTO) wanted = all_fast(m) || n_bytes > available_bytes() / 2 ? SP_WEIGHTS_MAPPED : SP_WEIGHTS_F32;
    m->weights = wanted;
    if (wanted == SP_WEIGHTS_F32) {
        m->is_expanded = calloc(m->n_layer + 1, sizeof *m->is_expanded);
        m->expanded = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
        if (!m->is_expanded || !m->expanded) return sp_fail_no_memory(n_bytes);
    }
    return expand_all_vectors(m);
}

/* Rows of a tensor: one that holds several matrices is read as if each were one of its own. */
typedef struct tensor_rows {
    const sp_gguf_tensor *tensor;
    size_t first, n;
} tensor_rows;

static tensor_rows all_rows(const sp_gguf_tensor *tensor)
{
    return (tensor_rows){tensor, 0, tensor->shape[1]};
}

/* Rows as they are stored, or, where `kept` is not NULL, as f32 there. */
static sp_weight_part part_of(const tensor_rows *rows, const float *kept)
{
    enum ggml_type type = kept ? GGML_TYPE_F32 : rows->tensor->type;
    size_t row_bytes = ggml_row_size(type, (int64_t)rows->tensor->shape[0]);
    const char *stored = (const char *)rows->tensor->data + rows->first * row_bytes;
    return (sp_weight_part){sp_row_reader_get(type), kept ? (const void *)kept : stored, row_bytes, rows->n};
}

/* Matrices of one input as one weight; `kept`, where they are kept as f32, moves behind them, and they are expanded there. */
static sp_weight stack(const tensor_rows *matrices, size_t n, float **kept, bool expand)
{
    sp_weight w = {.n_in = matrices[0].tensor->shape[0], .n_parts = n};
    for (size_t i = 0; i < n; i++) {
        if (*kept && expand) sp_weights_expand_rows(*kept, matrices[i].tensor, matrices[i].first, matrices[i].n);
        w.parts[i] = part_of(&matrices[i], *kept);
        if (*kept) *kept += matrices[i].tensor->shape[0] * matrices[i].n;
    }
    return w;
}

static sp_weight stack_one(const sp_gguf_tensor *tensor, float **kept, bool expand)
{
    const tensor_rows all = all_rows(tensor);
    return stack(&all, 1, kept, expand);
}

static sp_weight stack_qkv(const sp_gguf_tensor *const *of, const sp_model *m, float **kept, bool expand)
{
    size_t q_dim = sp_model_q_dim(m), kv_dim = sp_model_kv_dim(m);
    const sp_gguf_tensor *fused = of[SP_ATTN_QKV];
    if (fused) {
        const tensor_rows parts[] = {{fused, 0, q_dim}, {fused, q_dim, kv_dim}, {fused, q_dim + kv_dim, kv_dim}};
        return stack(parts, 3, kept, expand);
    }
    const tensor_rows parts[] = {all_rows(of[SP_ATTN_Q]), all_rows(of[SP_ATTN_K]), all_rows(of[SP_ATTN_V])};
    return stack(parts, 3, kept, expand);
}

static sp_weight stack_gate_up(const sp_gguf_tensor *const *of, float **kept, bool expand)
{
    if (of[SP_FFN_GATE_UP]) return stack_one(of[SP_FFN_GATE_UP], kept, expand);
    if (!of[SP_FFN_GATE]) return stack_one(of[SP_FFN_UP], kept, expand);
    const tensor_rows parts[] = {all_rows(of[SP_FFN_GATE]), all_rows(of[SP_FFN_UP])};
    return stack(parts, 2, kept, expand);
}

void sp_weights_get_layer(sp_layer_weights *out, sp_model *m, size_t layer)
{
    const sp_gguf_tensor *const *of = m->layers[layer].of;
    float *kept = m->expanded ? m->expanded + layer * layer_floats(m, true) : NULL;
    bool expand = kept && !m->is_expanded[layer];
    out->vectors = m->vectors[layer];
    out->qkv = stack_qkv(of, m, &kept, expand);
    out->out = stack_one(of[SP_ATTN_OUT], &kept, expand);
    out->gate_up = stack_gate_up(of, &kept, expand);
    out->down = stack_one(of[SP_FFN_DOWN], &kept, expand);
    if (expand) m->is_expanded[layer] = true;
}

sp_weight sp_weights_get_head(sp_model *m)
{
    float *kept = m->expanded ? m->expanded + m->n_layer * layer_floats(m, true) : NULL;
    bool expand = kept && !m->is_expanded[m->n_layer];
    sp_weight head = stack_one(m->output, &kept, expand);
    if (expand) m->is_expanded[m->n_layer] = true;
    return head;
}
