/* backward.c: from the loss down to the soft prompt. Weights are frozen, so each layer only hands its stream's gradient on. */
#include <string.h>

#include "base/clock.h"
#include "base/profile.h"
#include "model/internal.h"
#include "tensor/kernels.h"

static void normalise_backward(float *dx, const float *dy, const float *x, const sp_norm *norm, const float *rrms, size_t n,
                               size_t d)
{
    const sp_kernels *kernels = sp_kernels_select();
    void (*kernel)(float *, const float *, const float *, const float *, float, size_t) =
        norm->bias ? kernels->layer_norm_backward : kernels->rms_norm_backward;
    double begin = sp_seconds();
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < n; r++) kernel(dx + r * d, dy + r * d, x + r * d, norm->weight, rrms[r], d);
    sp_profile_add_region(SP_PART_NORM, begin);
}

/* *dy (n, d_model): from the gradient of the stream to that of what a block's last product added to it. */
static sp_status branch_backward(const float **dy, const float *dx, const sp_branch *branch, const sp_norm *norm,
                                 const sp_engine *engine, size_t n)
{
    size_t d = engine->model->d_model;
    *dy = dx;
    if (!norm->weight) return SP_OK;
    float *before = sp_arena_alloc(engine->arena, n * d, sizeof *before);
    if (!before) return SP_ERR_MEMORY;
    memset(before, 0, n * d * sizeof *before);
    normalise_backward(before, dx, branch->x, norm, branch->rrms, n, d);
    *dy = before;
    return SP_OK;
}

/* Gradients of activations become those of what the first product gave, in its place. */
static void activate_backward(float *gate_up, const float *dh, const sp_model *m, size_t n)
{
    void (*kernel)(float *, float *, const float *, size_t) = sp_kernels_select()->activate_backward[m->architecture->activation];
    size_t d_ffn = m->d_ffn, width = sp_model_up_width(m);
    double begin = sp_seconds();
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < n; r++) {
        float *row = gate_up + r * width;
        kernel(row, width > d_ffn ? row + d_ffn : NULL, dh + r * d_ffn, d_ffn);
    }
    sp_profile_add_region(SP_PART_ACTIVATION, begin);
}

/* dx (n, d_model) is the gradient of x_out. d_input += that of what the block read: dx itself, where that was x_mid. */
static sp_status feed_forward_backward(float *d_input, const float *dx, const sp_layer_state *state, sp_engine *engine,
                                       const sp_layer_weights *w, size_t n)
{
    const sp_model *m = engine->model;
    size_t d = m->d_model, d_ffn = m->d_ffn, width = sp_model_up_width(m);
    float *dh = sp_arena_alloc(engine->arena, n * d_ffn, sizeof(float));
    float *dnormed = sp_arena_alloc(engine->arena, n * d, sizeof(float));
    if (!dh || !dnormed) return SP_ERR_MEMORY;
    const float *dy;
    sp_status st = branch_backward(&dy, dx, &state->ffn_branch, &w->vectors.ffn_post_norm, engine, n);
    if (!st) st = sp_linear_backward(dh, d_ffn, dy, d, &w->down, n, false, m->compute, engine->arena);
    if (st) return st;
    activate_backward(state->gate_up, dh, m, n);
    st = sp_linear_backward(dnormed, d, state->gate_up, width, &w->gate_up, n, false, m->compute, engine->arena);
    if (!st) normalise_backward(d_input, dnormed, state->ffn_x, &w->vectors.ffn_norm, state->rrms_ffn, n, d);
    return st;
}

static void turn_back(sp_projections *g, const sp_engine *engine, const sp_rope *rope, const sp_attention_plan *plan)
{
    const sp_model *m = engine->model;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (size_t i = 0; i < plan->n_queries; i++)
            sp_rope_turn(g->q + i * g->ldq, rope, engine->positions[plan->query_rows[i] - engine->first_row], m->n_head, m->d_head,
                         -1);
#pragma omp for schedule(static)
        for (size_t r = 0; r < engine->n; r++)
            sp_rope_turn(g->kv + r * g->ldkv, rope, engine->positions[r], m->n_head_kv, m->d_head, -1);
    }
}

/* Gradients of normalised heads, rows ld apart, become those of the heads before. */
static void heads_backward(float *rows, size_t ld, const float *plain, const float *rrms, const float *w, size_t n, size_t n_heads,
                           size_t d)
{
    const sp_kernels *kernels = sp_kernels_select();
    double begin = sp_seconds();
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < n; r++)
        for (size_t h = 0; h < n_heads; h++) {
            float dy[SP_MAX_D_HEAD], *dx = rows + r * ld + h * d;
            memcpy(dy, dx, d * sizeof *dx);
            memset(dx, 0, d * sizeof *dx);
            kernels->rms_norm_backward(dx, dy, plain + (r * n_heads + h) * d, w, rrms[r * n_heads + h], d);
        }
    sp_profile_add_region(SP_PART_NORM, begin);
}

/* From dx of x_mid to the gradients of queries, keys and values as the products gave them; those of keys and values that were given
 * stand above. */
static sp_status attention_backward(sp_projections *g, const float *dx, const sp_layer_state *state, sp_engine *engine,
                                    size_t layer, const sp_layer_weights *w)
{
    const sp_model *m = engine->model;
    const sp_attention_plan *plan = sp_layer_plan(engine, layer);
    size_t d = m->d_model, q_dim = sp_model_q_dim(m), kv_dim = sp_model_kv_dim(m);
    float *dattended = sp_arena_alloc(engine->arena, plan->n_queries * q_dim, sizeof(float));
    if (!dattended) return SP_ERR_MEMORY;
    const float *dy;
    sp_status st = sp_projections_allocate(g, engine, layer, engine->n_given);
    if (!st) st = branch_backward(&dy, dx, &state->attn_branch, &w->vectors.attn_post_norm, engine, plan->n_queries);
    if (!st) st = sp_linear_backward(dattended, q_dim, dy, d, &w->out, plan->n_queries, false, m->compute, engine->arena);
    if (st) return st;
    const sp_keys keys = {engine->stores[layer].kt, engine->stores[layer].ld, engine->stores[layer].v};
    const sp_attention_shape shape = sp_model_attention_shape(m);
    float *dkv = g->kv - engine->n_given * g->ldkv; /* of the tree's first row */
    double begin = sp_seconds();
    st = sp_attention_backward(g->q, g->ldq, dkv, dkv + kv_dim, g->ldkv, dattended, state->attended, state->lse, state->q,
                               state->ldq, plan, &keys, &shape, engine->arena);
    sp_profile_add_region(SP_PART_ATTENTION, begin);
    if (st) return st;
    if (engine->d_keys_values) sp_add_keys_values_gradient(dkv, g->ldkv, engine, layer);
    const sp_rope *rope = sp_model_rope(m, layer);
    if (rope) turn_back(g, engine, rope, plan);
    if (state->plain_q)
        heads_backward(g->q, g->ldq, state->plain_q, state->rrms_heads, w->vectors.q_norm, plan->n_queries, m->n_head, m->d_head);
    if (state->plain_k)
        heads_backward(g->kv, g->ldkv, state->plain_k, state->rrms_heads_kv, w->vectors.k_norm, engine->n, m->n_head_kv, m->d_head);
    return SP_OK;
}

/* dx (n_queries, d_model), the gradient of x_out, becomes all of the input's gradient that does not come through queries, keys and
 * values, whose own are in g. */
static sp_status blocks_backward(sp_projections *g, float *dx, const sp_layer_state *state, sp_engine *engine, size_t layer,
                                 const sp_layer_weights *w)
{
    size_t n = sp_layer_plan(engine, layer)->n_queries, n_floats = n * engine->model->d_model;
    if (!engine->model->parallel) {
        sp_status st = feed_forward_backward(dx, dx, state, engine, w, n);
        return st ? st : attention_backward(g, dx, state, engine, layer, w);
    }
    float *beside = sp_arena_alloc(engine->arena, n_floats, sizeof *beside); /* attention reads dx without it */
    if (!beside) return SP_ERR_MEMORY;
    memset(beside, 0, n_floats * sizeof *beside);
    sp_status st = feed_forward_backward(beside, dx, state, engine, w, n);
    if (!st) st = attention_backward(g, dx, state, engine, layer, w);
    for (size_t i = 0; i < n_floats && !st; i++) dx[i] += beside[i];
    return st;
}

/* dx_in (n_needed, d) = gradient of the layer's input, for its first n_needed rows, where every row was a query. */
static sp_status input_gradient_all(float *dx_in, const float *dx, const sp_projections *g, const sp_layer_state *state,
                                    sp_engine *engine, const sp_layer_weights *w, size_t n_needed)
{
    const sp_model *m = engine->model;
    size_t d = m->d_model;
    float *dnormed = sp_arena_alloc(engine->arena, n_needed * d, sizeof(float));
    if (!dnormed) return SP_ERR_MEMORY;
    sp_status st = sp_linear_backward(dnormed, d, g->q, g->ldq, &w->qkv, n_needed, false, m->compute, engine->arena);
    if (st) return st;
    memcpy(dx_in, dx, n_needed * d * sizeof *dx);
    normalise_backward(dx_in, dnormed, state->x, &w->vectors.attn_norm, state->rrms, n_needed, d);
    return SP_OK;
}

/* The same where only the rows that are read were queries: keys and values of all rows, the rest of those rows. */
static sp_status input_gradient_read(float *dx_in, const float *dx, const sp_projections *g, const sp_layer_state *state,
                                     sp_engine *engine, const sp_layer_weights *w, size_t n_needed)
{
    const sp_model *m = engine->model;
    const sp_attention_plan *plan = &engine->read_plan;
    sp_weight q = sp_weight_select(&w->qkv, 0, 1), kv = sp_weight_select(&w->qkv, 1, 2);
    size_t d = m->d_model;
    float *dnormed = sp_arena_alloc(engine->arena, n_needed * d, sizeof(float));
    float *dread = sp_arena_alloc(engine->arena, plan->n_queries * d, sizeof(float));
    if (!dnormed || !dread) return SP_ERR_MEMORY;
    sp_status st = sp_linear_backward(dnormed, d, g->kv, g->ldkv, &kv, n_needed, false, m->compute, engine->arena);
    if (!st) st = sp_linear_backward(dread, d, g->q, g->ldq, &q, plan->n_queries, false, m->compute, engine->arena);
    if (st) return st;
    memset(dx_in, 0, n_needed * d * sizeof *dx_in);
    for (size_t i = 0; i < plan->n_queries; i++) {
        size_t row = plan->query_rows[i] - engine->first_row;
        if (row >= n_needed) break;
        memcpy(dx_in + row * d, dx + i * d, d * sizeof *dx);
        for (size_t j = 0; j < d; j++) dnormed[row * d + j] += dread[i * d + j];
    }
    normalise_backward(dx_in, dnormed, state->x, &w->vectors.attn_norm, state->rrms, n_needed, d);
    return SP_OK;
}

/* How many rows' gradients of a layer's input somebody needs: embeddings of tokens are frozen, and nothing lies below what was
 * given. */
static size_t count_needed(const sp_engine *engine, size_t layer)
{
    if (layer > 0) return engine->n;
    return engine->n_given ? 0 : engine->n_prompt;
}

/* dx (n_queries, d), the gradient of a layer's output, is used up; dx_in gets that of its input, d_prompt that of keys and values
 * that were given. */
static sp_status layer_backward(float *dx_in, float *d_prompt, float *dx, sp_engine *engine, size_t layer)
{
    const sp_layer_state *state = &engine->layers[layer];
    size_t n_needed = count_needed(engine, layer);
    sp_layer_weights weights;
    sp_weights_get_layer(&weights, engine->model, layer);
    sp_projections g;
    sp_status st = blocks_backward(&g, dx, state, engine, layer, &weights);
    if (st) return st;
    if (engine->n_given) sp_given_gradient(d_prompt, engine, layer, g.kv - engine->n_given * g.ldkv, g.ldkv);
    if (n_needed == 0) return SP_OK;
    return sp_is_last_layer(engine, layer) ? input_gradient_read(dx_in, dx, &g, state, engine, &weights, n_needed)
                                           : input_gradient_all(dx_in, dx, &g, state, engine, &weights, n_needed);
}

sp_status sp_backward_layers(float *d_prompt, sp_engine *engine)
{
    const sp_model *m = engine->model;
    size_t d = m->d_model, n_read = engine->read_plan.n_queries;
    float *dx = sp_arena_alloc(engine->arena, engine->n * d, sizeof(float));
    float *dx_in = sp_arena_alloc(engine->arena, engine->n * d, sizeof(float));
    if (!dx || !dx_in) return SP_ERR_MEMORY;
    memset(dx, 0, n_read * d * sizeof *dx);
    if (engine->dnormed) normalise_backward(dx, engine->dnormed, engine->hidden, &m->final_norm, engine->rrms_hidden, n_read, d);
    for (size_t l = m->n_layer; l-- > 0;) {
        sp_arena_mark mark = sp_arena_get_mark(engine->arena);
        sp_status st = layer_backward(dx_in, d_prompt, dx, engine, l);
        if (st) return st;
        sp_arena_reset(engine->arena, mark);
        float *swapped = dx;
        dx = dx_in;
        dx_in = swapped;
    }
    for (size_t i = 0; i < count_needed(engine, 0) * d; i++) d_prompt[i] += dx[i];
    return SP_OK;
}
