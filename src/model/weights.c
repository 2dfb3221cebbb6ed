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

static bool is_fast(const sp_gguf_tensor *tensor)
{
    return sp_row_reader_get(tensor->type)->is_fast;
}

static bool all_fast(const sp_model *m)
{
    bool fast = is_fast(m->output);
    for (size_t l = 0; l < m->n_layer && fast; l++) {
        const sp_layer_tensors *t = &m->layers[l];
        fast = is_fast(t->q) && is_fast(t->k) && is_fast(t->v) && is_fast(t->out) && is_fast(t->gate) && is_fast(t->up) &&
               is_fast(t->down);
    }
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
    return expand_norms(m);
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
    const sp_layer_tensors *t = &m->layers[layer];
    float *kept = m->expanded ? m->expanded + layer * layer_floats(m) : NULL;
    bool expand = kept && !m->is_expanded[layer];
    out->attn_norm = m->norms_f32 + 2 * layer * m->d_model;
    out->ffn_norm = m->norms_f32 + (2 * layer + 1) * m->d_model;
    out->qkv = stack((const sp_gguf_tensor *[]){t->q, t->k, t->v}, 3, &kept, expand);
    out->out = stack(&t->out, 1, &kept, expand);
    out->gate_up = stack((const sp_gguf_tensor *[]){t->gate, t->up}, 2, &kept, expand);
    out->down = stack(&t->down, 1, &kept, expand);
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
