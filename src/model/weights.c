/* weights.c: a layer's tensors as f32: expanded once and kept, or again each time the layer is used. */
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "base/status.h"
#include "model/internal.h"
#include "tensor/matmul.h"

enum { HEAD_ROWS_AT_ONCE = 4096 };

void sp_weights_expand_rows(float *out, const sp_gguf_tensor *tensor, size_t first, size_t n)
{
    size_t width = tensor->shape[0], row_bytes = ggml_row_size(tensor->type, (int64_t)width);
    const char *rows = (const char *)tensor->data + first * row_bytes;
    ggml_to_float_t to_float = ggml_get_type_traits(tensor->type)->to_float;
    if (tensor->type == GGML_TYPE_F32) {
        memcpy(out, rows, n * row_bytes);
        return;
    }
#pragma omp parallel for schedule(static) if (n > 64)
    for (size_t r = 0; r < n; r++) to_float(rows + r * row_bytes, out + r * width, (int64_t)width);
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

static sp_status expand_norms(sp_model *m)
{
    size_t d = m->d_model;
    m->norms_f32 = malloc(m->n_layer * 2 * d * sizeof(float));
    m->output_norm_f32 = malloc(d * sizeof(float));
    if (!m->norms_f32 || !m->output_norm_f32) return sp_fail_no_memory(m->n_layer * 2 * d * sizeof(float));
    for (size_t l = 0; l < m->n_layer; l++) {
        sp_weights_expand_rows(m->norms_f32 + 2 * l * d, m->layers[l].attn_norm, 0, 1);
        sp_weights_expand_rows(m->norms_f32 + (2 * l + 1) * d, m->layers[l].ffn_norm, 0, 1);
    }
    sp_weights_expand_rows(m->output_norm_f32, m->output_norm, 0, 1);
    return SP_OK;
}

sp_status sp_weights_prepare(sp_model *m, sp_weights wanted)
{
    size_t all = m->n_layer * layer_floats(m) + head_floats(m);
    if (wanted == SP_WEIGHTS_AUTO) wanted = all * sizeof(float) < available_bytes() / 2 ? SP_WEIGHTS_F32 : SP_WEIGHTS_MAPPED;
    m->weights = wanted;
    size_t n_bytes = (wanted == SP_WEIGHTS_F32 ? all : layer_floats(m)) * sizeof(float);
    m->is_expanded = calloc(m->n_layer + 1, sizeof *m->is_expanded);
    m->expanded = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
    if (!m->is_expanded || !m->expanded) return sp_fail_no_memory(n_bytes);
    return expand_norms(m);
}

static float *expand_matrix(float *out, const sp_gguf_tensor *tensor)
{
    sp_weights_expand_rows(out, tensor, 0, tensor->shape[1]);
    return out + tensor->shape[0] * tensor->shape[1];
}

static void expand_layer(float *out, const sp_layer_tensors *t)
{
    const sp_gguf_tensor *in_order[] = {t->q, t->k, t->v, t->out, t->gate, t->up, t->down};
    for (size_t i = 0; i < sizeof in_order / sizeof *in_order; i++) out = expand_matrix(out, in_order[i]);
}

void sp_weights_get_layer(sp_layer_weights *out, sp_model *m, size_t layer)
{
    bool keep = m->weights == SP_WEIGHTS_F32;
    size_t d = m->d_model, q_dim = sp_model_q_dim(m), kv_dim = sp_model_kv_dim(m);
    float *floats = m->expanded + (keep ? layer * layer_floats(m) : 0);
    if (!keep || !m->is_expanded[layer]) expand_layer(floats, &m->layers[layer]);
    m->is_expanded[layer] = keep;
    out->attn_norm = m->norms_f32 + 2 * layer * d;
    out->ffn_norm = m->norms_f32 + (2 * layer + 1) * d;
    out->qkv = floats;
    out->out = out->qkv + (q_dim + 2 * kv_dim) * d;
    out->gate_up = out->out + d * q_dim;
    out->down = out->gate_up + 2 * m->d_ffn * d;
}

/* The head in parts of some rows: (first, n) of the vocabulary, expanded. One part where everything is kept. */
static const float *head_part(size_t *n, sp_model *m, size_t first, float *part)
{
    if (m->weights == SP_WEIGHTS_F32) {
        float *head = m->expanded + m->n_layer * layer_floats(m);
        if (!m->is_expanded[m->n_layer]) expand_matrix(head, m->output);
        m->is_expanded[m->n_layer] = true;
        *n = m->n_vocab;
        return head;
    }
    *n = m->n_vocab - first < HEAD_ROWS_AT_ONCE ? m->n_vocab - first : HEAD_ROWS_AT_ONCE;
    sp_weights_expand_rows(part, m->output, first, *n);
    return part;
}

static float *allocate_part(const sp_model *m, sp_arena *scratch)
{
    return sp_arena_alloc(scratch, m->weights == SP_WEIGHTS_F32 ? 0 : HEAD_ROWS_AT_ONCE * m->d_model, sizeof(float));
}

sp_status sp_weights_head(float *logits, sp_model *m, const float *hidden, size_t n, sp_arena *scratch)
{
    sp_arena_mark mark = sp_arena_get_mark(scratch);
    float *part = allocate_part(m, scratch);
    sp_status st = part ? SP_OK : SP_ERR_MEMORY;
    for (size_t first = 0, rows; first < m->n_vocab && !st; first += rows) {
        const float *head = head_part(&rows, m, first, part);
        st = sp_linear(logits + first, m->n_vocab, hidden, m->d_model, head, n, rows, m->d_model, false);
    }
    sp_arena_reset(scratch, mark);
    return st;
}

sp_status sp_weights_head_backward(float *dhidden, sp_model *m, const float *dlogits, size_t n, sp_arena *scratch)
{
    sp_arena_mark mark = sp_arena_get_mark(scratch);
    float *part = allocate_part(m, scratch);
    sp_status st = part ? SP_OK : SP_ERR_MEMORY;
    for (size_t first = 0, rows; first < m->n_vocab && !st; first += rows) {
        const float *head = head_part(&rows, m, first, part);
        st = sp_linear_backward(dhidden, m->d_model, dlogits + first, m->n_vocab, head, n, rows, m->d_model, first > 0);
    }
    sp_arena_reset(scratch, mark);
    return st;
}
