/* forward.c: a pass through the layers over the rows of a token tree.
 *
 * The stream x holds one row for each row computed. The last layer needs keys and values of all of them, but queries, attention
 * and feed-forward only of the rows that somebody reads. */
#include <string.h>

#include "base/clock.h"
#include "base/profile.h"
#include "base/status.h"
#include "model/internal.h"
#include "tensor/kernels.h"

enum {
    FEW_ROWS = 4,       /* up to this many, one thread is done before others have begun */
    ROWS_OF_A_LINE = 16 /* numbers of a cache line: rows whose keys are turned into columns together */
};

static void normalise(float *y, float *rrms, const float *x, const sp_norm *norm, float eps, size_t n, size_t d)
{
    const sp_kernels *kernels = sp_kernels_select();
    double begin = sp_seconds();
#pragma omp parallel for schedule(static) if (n > FEW_ROWS)
    for (size_t r = 0; r < n; r++)
        rrms[r] = norm->bias ? kernels->layer_norm(y + r * d, x + r * d, norm->weight, norm->bias, eps, d)
                             : kernels->rms_norm(y + r * d, x + r * d, norm->weight, eps, d);
    sp_profile_add_region(SP_PART_NORM, begin);
}

/* Rows of the plan's queries out of the pass's rows. */
static void gather_queries(float *out, const float *x, const sp_engine *engine, const sp_attention_plan *plan, size_t d)
{
    for (size_t i = 0; i < plan->n_queries; i++)
        memcpy(out + i * d, x + (plan->query_rows[i] - engine->first_row) * d, d * sizeof *x);
}

sp_status sp_projections_allocate(sp_projections *out, sp_engine *engine, size_t layer, size_t n_above)
{
    size_t q_dim = sp_model_q_dim(engine->model), kv_width = 2 * sp_model_kv_dim(engine->model), n = n_above + engine->n;
    size_t n_queries = sp_layer_plan(engine, layer)->n_queries;
    if (!sp_is_last_layer(engine, layer)) {
        float *qkv = sp_arena_alloc(engine->arena, n * (q_dim + kv_width), sizeof(float));
        if (!qkv) return SP_ERR_MEMORY;
        qkv += n_above * (q_dim + kv_width);
        *out = (sp_projections){qkv, q_dim + kv_width, qkv + q_dim, q_dim + kv_width};
        return SP_OK;
    }
    float *q = sp_arena_alloc(engine->arena, n_queries * q_dim, sizeof(float));
    float *kv = sp_arena_alloc(engine->arena, n * kv_width, sizeof(float));
    if (!q || !kv) return SP_ERR_MEMORY;
    *out = (sp_projections){q, q_dim, kv + n_above * kv_width, kv_width};
    return SP_OK;
}

/* y (n, d), rows ldy apart, += b (d) in every row; nothing where b is NULL. A bias does not change what backward computes. */
static void add_bias(float *y, size_t ldy, const float *b, size_t n, size_t d)
{
    if (!b) return;
#pragma omp parallel for schedule(static) if (n > FEW_ROWS)
    for (size_t r = 0; r < n; r++)
        for (size_t i = 0; i < d; i++) y[r * ldy + i] += b[i];
}

static void add_qkv_bias(sp_projections *p, const sp_engine *engine, const float *bias, size_t n_queries)
{
    size_t q_dim = sp_model_q_dim(engine->model), kv_width = 2 * sp_model_kv_dim(engine->model);
    if (!bias) return;
    add_bias(p->q, p->ldq, bias, n_queries, q_dim);
    add_bias(p->kv, p->ldkv, bias + q_dim, engine->n, kv_width);
}

static sp_status project_all(sp_projections *p, sp_engine *engine, const sp_layer_weights *w, const float *normed)
{
    size_t d = engine->model->d_model;
    return sp_linear(p->q, p->ldq, normed, d, &w->qkv, engine->n, false, engine->model->compute, engine->arena);
}

static sp_status project_read(sp_projections *p, sp_engine *engine, const sp_layer_weights *w, const float *normed,
                              const sp_attention_plan *plan)
{
    const sp_model *m = engine->model;
    size_t d = m->d_model;
    sp_weight q = sp_weight_select(&w->qkv, 0, 1), kv = sp_weight_select(&w->qkv, 1, 2);
    float *read = sp_arena_alloc(engine->arena, plan->n_queries * d, sizeof(float));
    if (!read) return SP_ERR_MEMORY;
    gather_queries(read, normed, engine, plan, d);
    sp_status st = sp_linear(p->q, p->ldq, read, d, &q, plan->n_queries, false, m->compute, engine->arena);
    return st ? st : sp_linear(p->kv, p->ldkv, normed, d, &kv, engine->n, false, m->compute, engine->arena);
}

/* Each head of rows (n, n_heads, d_head), ld apart, becomes its norm; what it was goes to `plain`, rows behind each other. */
static sp_status normalise_rows(const float **plain, const float **rrms, float *rows, size_t ld, const float *w,
                                const sp_engine *engine, size_t n, size_t n_heads)
{
    const sp_model *m = engine->model;
    const sp_kernels *kernels = sp_kernels_select();
    size_t d = m->d_head, width = n_heads * d;
    float *kept = sp_arena_alloc(engine->arena, n * width, sizeof *kept);
    float *factors = sp_arena_alloc(engine->arena, n * n_heads, sizeof *factors);
    if (!kept || !factors) return SP_ERR_MEMORY;
    *plain = kept;
    *rrms = factors;
    double begin = sp_seconds();
#pragma omp parallel for schedule(static) if (n > FEW_ROWS)
    for (size_t r = 0; r < n; r++) {
        memcpy(kept + r * width, rows + r * ld, width * sizeof *kept);
        for (size_t h = 0; h < n_heads; h++)
            factors[r * n_heads + h] = kernels->rms_norm(rows + r * ld + h * d, kept + r * width + h * d, w, m->norm_eps, d);
    }
    sp_profile_add_region(SP_PART_NORM, begin);
    return SP_OK;
}

static sp_status normalise_heads(sp_layer_state *state, sp_projections *p, const sp_engine *engine, const sp_layer_weights *w,
                                 size_t n_queries)
{
    const sp_model *m = engine->model;
    sp_status st = SP_OK;
    state->plain_q = state->plain_k = NULL;
    if (w->vectors.q_norm)
        st = normalise_rows(&state->plain_q, &state->rrms_heads, p->q, p->ldq, w->vectors.q_norm, engine, n_queries, m->n_head);
    if (w->vectors.k_norm && !st)
        st = normalise_rows(&state->plain_k, &state->rrms_heads_kv, p->kv, p->ldkv, w->vectors.k_norm, engine, engine->n,
                            m->n_head_kv);
    return st;
}

/* Puts keys and values of rows first .. first + n where attention reads them. */
static void store_rows(const sp_engine *engine, size_t layer, const sp_projections *p, size_t first, size_t n)
{
    size_t kv_dim = sp_model_kv_dim(engine->model);
    const sp_layer_store *store = &engine->stores[layer];
    float *kt = store->kt + engine->first_row, *v = store->v + engine->first_row * kv_dim;
    for (size_t r = first; r < first + n; r++) memcpy(v + r * kv_dim, p->kv + r * p->ldkv + kv_dim, kv_dim * sizeof(float));
    for (size_t i = 0; i < kv_dim; i++)
        for (size_t r = first; r < first + n; r++) kt[i * store->ld + r] = p->kv[r * p->ldkv + i];
}

/* Turns queries and keys by their positions, where the layer has RoPE, and stores keys and values. */
static void turn_and_store(sp_engine *engine, size_t layer, const sp_projections *p, const sp_attention_plan *plan)
{
    const sp_model *m = engine->model;
    const sp_rope *rope = sp_model_rope(m, layer);
    const size_t *positions = engine->positions;
#pragma omp parallel if (engine->n > FEW_ROWS)
    {
#pragma omp for schedule(static) nowait
        for (size_t i = 0; i < plan->n_queries; i++)
            if (rope)
                sp_rope_turn(p->q + i * p->ldq, rope, positions[plan->query_rows[i] - engine->first_row], m->n_head, m->d_head, 1);
#pragma omp for schedule(static)
        for (size_t first = 0; first < engine->n; first += ROWS_OF_A_LINE) {
            size_t n = engine->n - first < ROWS_OF_A_LINE ? engine->n - first : ROWS_OF_A_LINE;
            for (size_t r = first; rope && r < first + n; r++)
                sp_rope_turn(p->kv + r * p->ldkv, rope, positions[r], m->n_head_kv, m->d_head, 1);
            store_rows(engine, layer, p, first, n);
        }
    }
}

/* Shows queries and keys to whoever wants to see them. */
static sp_status show(const sp_engine *engine, size_t layer, const sp_projections *p, const sp_attention_plan *plan)
{
    if (!engine->tap) return SP_OK;
    const sp_attention_shape shape = sp_model_attention_shape(engine->model);
    const sp_layer_store *store = &engine->stores[layer];
    const sp_attention_view view = {layer,     &shape,    p->q,        p->ldq, plan->n_queries, plan->query_rows,
                                    store->kt, store->ld, plan->window};
    return engine->tap(engine->tap_user, &view);
}

static sp_status attend(sp_layer_state *state, sp_engine *engine, size_t layer, const sp_attention_plan *plan)
{
    const sp_model *m = engine->model;
    size_t q_dim = sp_model_q_dim(m);
    float *attended = sp_arena_alloc(engine->arena, plan->n_queries * q_dim, sizeof(float));
    float *lse = sp_arena_alloc(engine->arena, plan->n_queries * m->n_head, sizeof(float));
    if (!attended || !lse) return SP_ERR_MEMORY;
    state->attended = attended;
    state->lse = lse;
    const sp_keys keys = {engine->stores[layer].kt, engine->stores[layer].ld, engine->stores[layer].v};
    const sp_attention_shape shape = sp_model_attention_shape(m);
    double begin = sp_seconds();
    sp_status st = sp_attention_forward(attended, lse, state->q, state->ldq, plan, &keys, &shape, engine->arena);
    if (!st && engine->states) st = sp_states_attend(attended, lse, engine, layer, state->q, state->ldq, plan->n_queries);
    sp_profile_add_region(SP_PART_ATTENTION, begin);
    return st;
}

/* Queries, keys and values of norm(x). */
static sp_status project(sp_projections *p, float *rrms, const float *x, sp_engine *engine, size_t layer, const sp_layer_weights *w,
                         const sp_attention_plan *plan)
{
    const sp_model *m = engine->model;
    sp_arena_mark mark = sp_arena_get_mark(engine->arena);
    float *normed = sp_arena_alloc(engine->arena, engine->n * m->d_model, sizeof(float));
    if (!normed) return SP_ERR_MEMORY;
    normalise(normed, rrms, x, &w->vectors.attn_norm, m->norm_eps, engine->n, m->d_model);
    sp_status st = sp_is_last_layer(engine, layer) ? project_read(p, engine, w, normed, plan) : project_all(p, engine, w, normed);
    if (!st) add_qkv_bias(p, engine, w->vectors.qkv_bias, plan->n_queries);
    sp_arena_reset(engine->arena, mark);
    return st;
}

static sp_status allocate_branch(sp_branch *out, const sp_engine *engine, const sp_norm *norm, size_t n)
{
    *out = (sp_branch){NULL, NULL};
    if (!norm->weight) return SP_OK;
    out->x = sp_arena_alloc(engine->arena, n * engine->model->d_model, sizeof *out->x);
    out->rrms = sp_arena_alloc(engine->arena, n, sizeof *out->rrms);
    return out->x && out->rrms ? SP_OK : SP_ERR_MEMORY;
}

/* stream (n, d_model) += y = in W^T + bias, or norm(y), where the branch is there to keep y. */
static sp_status add_branch(float *stream, const sp_branch *branch, const float *in, const sp_weight *w, const float *bias,
                            const sp_norm *norm, const sp_engine *engine, size_t n)
{
    const sp_model *m = engine->model;
    size_t d = m->d_model;
    float *y = norm->weight ? branch->x : stream;
    sp_status st = sp_linear(y, d, in, w->n_in, w, n, y == stream, m->compute, engine->arena);
    if (st) return st;
    add_bias(y, d, bias, n, d);
    if (y == stream) return SP_OK;
    sp_arena_mark mark = sp_arena_get_mark(engine->arena);
    float *normed = sp_arena_alloc(engine->arena, n * d, sizeof *normed);
    if (!normed) return SP_ERR_MEMORY;
    normalise(normed, branch->rrms, y, norm, m->norm_eps, n, d);
    for (size_t i = 0; i < n * d; i++) stream[i] += normed[i];
    sp_arena_reset(engine->arena, mark);
    return SP_OK;
}

/* x_mid = x + attention(norm(x)), for the plan's queries. */
static sp_status attention_block(sp_layer_state *state, sp_engine *engine, size_t layer, const sp_layer_weights *w,
                                 const sp_attention_plan *plan)
{
    const sp_model *m = engine->model;
    size_t d = m->d_model;
    float *rrms = sp_arena_alloc(engine->arena, engine->n, sizeof(float));
    float *x_mid = sp_arena_alloc(engine->arena, plan->n_queries * d, sizeof(float));
    sp_projections p;
    sp_status st = rrms && x_mid ? sp_projections_allocate(&p, engine, layer, 0) : SP_ERR_MEMORY;
    if (!st) st = allocate_branch(&state->attn_branch, engine, &w->vectors.attn_post_norm, plan->n_queries);
    if (!st) st = project(&p, rrms, state->x, engine, layer, w, plan);
    if (!st) st = normalise_heads(state, &p, engine, w, plan->n_queries);
    if (st) return st;
    turn_and_store(engine, layer, &p, plan);
    state->rrms = rrms;
    state->q = p.q;
    state->ldq = p.ldq;
    state->x_mid = x_mid;
    if ((st = show(engine, layer, &p, plan))) return st;
    if ((st = attend(state, engine, layer, plan))) return st;
    gather_queries(x_mid, state->x, engine, plan, d);
    return add_branch(x_mid, &state->attn_branch, state->attended, &w->out, w->vectors.out_bias, &w->vectors.attn_post_norm, engine,
                      plan->n_queries);
}

/* h (n, d_ffn) = activation(gate) * up, or activation(up), of rows as the first product gives them. */
static void activate(float *h, const float *gate_up, const sp_model *m, size_t n)
{
    void (*kernel)(float *, const float *, const float *, size_t) = sp_kernels_select()->activate[m->architecture->activation];
    size_t d_ffn = m->d_ffn, width = sp_model_up_width(m);
    double begin = sp_seconds();
#pragma omp parallel for schedule(static) if (n > FEW_ROWS)
    for (size_t r = 0; r < n; r++) {
        const float *row = gate_up + r * width;
        kernel(h + r * d_ffn, row, width > d_ffn ? row + d_ffn : NULL, d_ffn);
    }
    sp_profile_add_region(SP_PART_ACTIVATION, begin);
}

/* What the block reads: x_mid, or, beside attention, the layer's input, of the plan's queries. */
static sp_status choose_ffn_input(sp_layer_state *state, sp_engine *engine, size_t layer, const sp_attention_plan *plan)
{
    size_t d = engine->model->d_model;
    state->ffn_x = engine->model->parallel ? state->x : state->x_mid;
    if (state->ffn_x == state->x_mid || !sp_is_last_layer(engine, layer)) return SP_OK;
    float *read = sp_arena_alloc(engine->arena, plan->n_queries * d, sizeof *read);
    if (!read) return SP_ERR_MEMORY;
    gather_queries(read, state->x, engine, plan, d);
    state->ffn_x = read;
    return SP_OK;
}

/* x_out = x_mid + down(activation(gate) * up). */
static sp_status feed_forward_block(float *x_out, sp_layer_state *state, sp_engine *engine, const sp_layer_weights *w, size_t n)
{
    const sp_model *m = engine->model;
    size_t d = m->d_model, d_ffn = m->d_ffn, width = sp_model_up_width(m);
    float *rrms = sp_arena_alloc(engine->arena, n, sizeof(float));
    float *gate_up = sp_arena_alloc(engine->arena, n * width, sizeof(float));
    sp_status st = allocate_branch(&state->ffn_branch, engine, &w->vectors.ffn_post_norm, n);
    sp_arena_mark mark = sp_arena_get_mark(engine->arena);
    float *normed = sp_arena_alloc(engine->arena, n * d, sizeof(float));
    float *h = sp_arena_alloc(engine->arena, n * d_ffn, sizeof(float));
    if (st || !rrms || !gate_up || !normed || !h) return SP_ERR_MEMORY;
    state->rrms_ffn = rrms;
    state->gate_up = gate_up;
    normalise(normed, rrms, state->ffn_x, &w->vectors.ffn_norm, m->norm_eps, n, d);
    st = sp_linear(gate_up, width, normed, d, &w->gate_up, n, false, m->compute, engine->arena);
    if (st) return st;
    add_bias(gate_up + width - d_ffn, width, w->vectors.up_bias, n, d_ffn);
    activate(h, gate_up, m, n);
    memcpy(x_out, state->x_mid, n * d * sizeof *x_out);
    st = add_branch(x_out, &state->ffn_branch, h, &w->down, w->vectors.down_bias, &w->vectors.ffn_post_norm, engine, n);
    sp_arena_reset(engine->arena, mark);
    return st;
}

static sp_status layer_forward(float *x_out, sp_layer_state *state, sp_engine *engine, size_t layer)
{
    const sp_attention_plan *plan = sp_layer_plan(engine, layer);
    sp_layer_weights weights;
    sp_weights_get_layer(&weights, engine->model, layer);
    sp_status st = attention_block(state, engine, layer, &weights, plan);
    if (!st) st = choose_ffn_input(state, engine, layer, plan);
    return st ? st : feed_forward_block(x_out, state, engine, &weights, plan->n_queries);
}

/* x (d_model) += a position's vector; `scratch` as long. */
static void add_position(float *x, float *scratch, const sp_model *m, size_t position)
{
    sp_weights_expand_rows(scratch, m->positions, position, 1);
    for (size_t i = 0; i < m->d_model; i++) x[i] += scratch[i];
}

/* The stream's first row of all: embeddings of tokens, and the soft prompts; positions, where they are learned, on both. */
static sp_status embed_rows(float *x, const sp_engine *engine, const float *prompt)
{
    const sp_model *m = engine->model;
    sp_status st = SP_OK;
    sp_arena_mark mark = sp_arena_get_mark(engine->arena);
    float *scratch = m->positions ? sp_arena_alloc(engine->arena, m->d_model, sizeof *scratch) : NULL;
    if (m->positions && !scratch) return SP_ERR_MEMORY;
    for (size_t r = 0; r < engine->n && !st; r++, x += m->d_model) {
        size_t row = engine->first_row + r;
        if (prompt && row < engine->n_prompt)
            memcpy(x, prompt + (row - engine->n_given) * m->d_model, m->d_model * sizeof *x);
        else
            st = sp_model_embed(x, m, &engine->tree->tokens[row], 1);
        if (!st && m->positions) add_position(x, scratch, m, engine->positions[r]);
    }
    sp_arena_reset(engine->arena, mark);
    return st;
}

static sp_status final_norm(sp_engine *engine, size_t n_read)
{
    const sp_model *m = engine->model;
    engine->rrms_hidden = sp_arena_alloc(engine->arena, n_read, sizeof(float));
    engine->normed = sp_arena_alloc(engine->arena, n_read * m->d_model, sizeof(float));
    if (!engine->rrms_hidden || !engine->normed) return SP_ERR_MEMORY;
    normalise(engine->normed, engine->rrms_hidden, engine->hidden, &m->final_norm, m->norm_eps, n_read, m->d_model);
    return SP_OK;
}

sp_status sp_forward_layers(sp_engine *engine, const sp_pass *pass)
{
    const sp_model *m = engine->model;
    size_t row_floats = engine->n * m->d_model;
    float *x = sp_arena_alloc(engine->arena, row_floats, sizeof(float));
    float *other = pass->keep_for_backward ? NULL : sp_arena_alloc(engine->arena, row_floats, sizeof(float));
    engine->layers = NULL;
    if (pass->keep_for_backward && !(engine->layers = sp_arena_alloc(engine->arena, m->n_layer, sizeof *engine->layers)))
        return SP_ERR_MEMORY;
    if (!x || (!pass->keep_for_backward && !other)) return SP_ERR_MEMORY;
    sp_status st = embed_rows(x, engine, pass->prompt);
    for (size_t l = 0; l < m->n_layer && !st; l++) {
        sp_layer_state once, *state = engine->layers ? &engine->layers[l] : &once;
        float *x_out = engine->layers ? sp_arena_alloc(engine->arena, row_floats, sizeof(float)) : other;
        if (!x_out) return SP_ERR_MEMORY;
        sp_arena_mark mark = sp_arena_get_mark(engine->arena);
        state->x = x;
        st = layer_forward(x_out, state, engine, l);
        if (!engine->layers) sp_arena_reset(engine->arena, mark);
        other = x;
        x = x_out;
    }
    engine->hidden = x;
    return st ? st : final_norm(engine, pass->n_read);
}
