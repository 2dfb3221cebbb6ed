/* engine.c: the buffers of a pass, and what comes behind the layers: logits and losses. */
#include "model/engine.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "model/internal.h"
#include "tensor/kernels.h"

sp_status sp_engine_create(sp_engine **out, sp_model *model)
{
    sp_engine *engine = calloc(1, sizeof *engine);
    *out = NULL;
    if (!engine) return sp_fail_no_memory(sizeof *engine);
    engine->model = model;
    engine->stores = calloc(model->n_layer, sizeof *engine->stores);
    sp_status st = engine->stores ? sp_arena_create(&engine->arena) : sp_fail_no_memory(model->n_layer * sizeof *engine->stores);
    if (st)
        sp_engine_free(engine);
    else
        *out = engine;
    return st;
}

void sp_engine_free(sp_engine *engine)
{
    if (!engine) return;
    sp_state_set_release(engine->states);
    for (size_t l = 0; engine->stores && l < engine->model->n_layer; l++) {
        free(engine->stores[l].kt);
        free(engine->stores[l].v);
    }
    free(engine->stores);
    sp_arena_free(engine->arena);
    free(engine);
}

/* ---- the store of keys and values ---- */

/* An odd number of cache lines between rows of kt: powers of two would all fall into the same few sets. */
static size_t leading_dimension(size_t capacity)
{
    return ((capacity + SP_KEY_PADDING + 15) / 16 | 1) * 16;
}

/* Room for `capacity` rows, keeping the first n_kept. On failure all is kept that was there. */
static sp_status grow_store(sp_layer_store *store, size_t kv_dim, size_t n_kept, size_t capacity)
{
    size_t ld = leading_dimension(capacity);
    float *kt = aligned_alloc(64, kv_dim * ld * sizeof(float));
    float *v = kt ? realloc(store->v, capacity * kv_dim * sizeof(float)) : NULL;
    if (!v) {
        free(kt);
        return sp_fail_no_memory(kv_dim * ld * sizeof(float));
    }
    for (size_t i = 0; i < kv_dim; i++) {
        if (n_kept) memcpy(kt + i * ld, store->kt + i * store->ld, n_kept * sizeof(float));
        memset(kt + i * ld + capacity, 0, (ld - capacity) * sizeof(float));
    }
    free(store->kt);
    *store = (sp_layer_store){capacity, ld, kt, v};
    return SP_OK;
}

/* Each layer grows for itself: where memory ends in the middle, the others hold what they held, and the next try goes on. */
sp_status sp_engine_reserve(sp_engine *engine, size_t n_rows, size_t n_kept)
{
    sp_status st = SP_OK;
    for (size_t l = 0; l < engine->model->n_layer && !st; l++) {
        sp_layer_store *store = &engine->stores[l];
        if (n_rows <= store->capacity) continue;
        size_t capacity = n_rows < 2 * store->capacity ? 2 * store->capacity : n_rows;
        st = grow_store(store, sp_model_kv_dim(engine->model), n_kept, capacity);
    }
    return st;
}

sp_status sp_engine_move_rows(sp_engine *engine, size_t first, const size_t *from, size_t n)
{
    size_t kv_dim = sp_model_kv_dim(engine->model);
    sp_arena_mark mark = sp_arena_get_mark(engine->arena);
    float *moved = sp_arena_alloc(engine->arena, n * kv_dim, sizeof *moved);
    if (!moved) return SP_ERR_MEMORY;
    for (size_t l = 0; l < engine->model->n_layer; l++) {
        const sp_layer_store *store = &engine->stores[l];
        for (size_t r = 0; r < n; r++) memcpy(moved + r * kv_dim, store->v + from[r] * kv_dim, kv_dim * sizeof *moved);
        memcpy(store->v + first * kv_dim, moved, n * kv_dim * sizeof *moved);
        for (size_t i = 0; i < kv_dim; i++) {
            float *row = store->kt + i * store->ld;
            for (size_t r = 0; r < n; r++) moved[r] = row[from[r]];
            memcpy(row + first, moved, n * sizeof *moved);
        }
    }
    sp_arena_reset(engine->arena, mark);
    return SP_OK;
}

/* ---- a pass ---- */

static sp_status find_positions(sp_engine *engine)
{
    const sp_tree *tree = engine->tree;
    size_t context = engine->model->context_length, furthest = 0;
    engine->positions = sp_arena_alloc(engine->arena, engine->n, sizeof *engine->positions);
    if (!engine->positions) return SP_ERR_MEMORY;
    for (size_t run = 0; run < tree->n_runs; run++)
        for (size_t i = 0; i < tree->runs[run].n_rows; i++) {
            size_t row = tree->runs[run].first_row + i, position = sp_tree_position(tree, run, row) + (size_t)tree->runs[run].shift;
            if (row < engine->first_row) continue;
            engine->positions[row - engine->first_row] = position;
            if (position > furthest) furthest = position;
        }
    if (furthest >= context)
        return sp_fail(SP_ERR_ARGUMENT,
                       "%zu tokens, the prompt's included, do not fit the model's context of %zu; shorten the text", furthest + 1,
                       context);
    sp_status st = engine->model->rope ? sp_rope_reserve(engine->model->rope, furthest + 1) : SP_OK;
    return st || !engine->model->local_rope ? st : sp_rope_reserve(engine->model->local_rope, furthest + 1);
}

static sp_status check_read_rows(const sp_pass *pass)
{
    for (size_t i = 0; i < pass->n_read; i++)
        if (pass->read_rows[i] < pass->first_row || pass->read_rows[i] >= pass->tree->n_rows ||
            (i > 0 && pass->read_rows[i] <= pass->read_rows[i - 1]))
            return sp_fail(SP_ERR_ARGUMENT, "row %zu cannot be read: rows must ascend from %zu to %zu", pass->read_rows[i],
                           pass->first_row, pass->tree->n_rows);
    return SP_OK;
}

static sp_status make_plans(sp_engine *engine, const sp_pass *pass)
{
    const sp_model *m = engine->model;
    size_t *all = sp_arena_alloc(engine->arena, engine->n, sizeof *all), heads = m->n_head / m->n_head_kv;
    if (!all) return SP_ERR_MEMORY;
    for (size_t r = 0; r < engine->n; r++) all[r] = engine->first_row + r;
    const struct {
        sp_attention_plan *plan;
        const size_t *rows;
        size_t n_rows, window;
    } wanted[] = {{&engine->plan, all, engine->n, 0},
                  {&engine->read_plan, pass->read_rows, pass->n_read, 0},
                  {&engine->windowed_plan, all, engine->n, m->window},
                  {&engine->windowed_read_plan, pass->read_rows, pass->n_read, m->window}};
    sp_status st = SP_OK;
    for (size_t i = 0; i < (m->window ? 4 : 2) && !st; i++)
        st =
            sp_plan_attention(wanted[i].plan, pass->tree, wanted[i].rows, wanted[i].n_rows, heads, wanted[i].window, engine->arena);
    return st;
}

static size_t count_prompt_rows(const sp_engine *engine)
{
    size_t n = 0;
    while (n < engine->tree->n_rows && engine->tree->tokens[n] < 0) n++;
    return n;
}

int sp_engine_enter(const sp_engine *engine)
{
    int n_callers = omp_get_max_threads();
    omp_set_num_threads(engine->model->n_threads);
    return n_callers;
}

sp_status sp_engine_leave(int n_callers, sp_status st)
{
    omp_set_num_threads(n_callers);
    return st;
}

static sp_status forward(sp_engine *engine, const sp_pass *pass)
{
    sp_status st;
    if (pass->first_row == 0) engine->n_given = 0;
    if (pass->first_row >= pass->tree->n_rows || pass->first_row < engine->n_given ||
        (pass->keep_for_backward && pass->first_row != engine->n_given))
        return sp_fail(SP_ERR_ARGUMENT,
                       "a pass must compute at least one row, none that were given, and all others where backward is "
                       "to follow");
    sp_arena_reset(engine->arena, (sp_arena_mark){0});
    engine->tree = pass->tree;
    engine->tap = pass->tap;
    engine->tap_user = pass->tap_user;
    engine->first_row = pass->first_row;
    engine->n = pass->tree->n_rows - pass->first_row;
    engine->n_prompt = count_prompt_rows(engine);
    engine->dnormed = NULL;
    engine->group_size = 0;
    if (pass->keep_for_backward && engine->states)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "a gradient behind a compiled prompt: its keys are gone; train the prompt it was compiled from");
    if (pass->keep_for_backward && engine->n_given && engine->n_prompt > engine->n_given)
        return sp_fail(SP_ERR_ARGUMENT,
                       "a gradient by prompts of embeddings and by prompts of keys and values at once; take them in "
                       "passes of their own");
    if ((st = check_read_rows(pass)) || (st = find_positions(engine)) || (st = make_plans(engine, pass))) return st;
    if ((st = sp_engine_reserve(engine, pass->tree->n_rows, pass->first_row))) return st;
    return sp_forward_layers(engine, pass);
}

sp_status sp_engine_forward(sp_engine *engine, const sp_pass *pass)
{
    int n_callers = sp_engine_enter(engine);
    return sp_engine_leave(n_callers, forward(engine, pass));
}

/* ---- logits and losses ---- */

void sp_cap_logits(float *logits, float *slopes, const sp_model *m, size_t n)
{
    const sp_kernels *kernels = sp_kernels_select();
    size_t n_vocab = m->n_vocab;
    if (m->logit_soft_cap == 0) return;
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < n; r++)
        kernels->soft_cap(logits + r * n_vocab, slopes ? slopes + r * n_vocab : NULL, m->logit_soft_cap, n_vocab);
}

void sp_cap_logits_backward(float *gradient, const float *slopes, const sp_model *m, size_t n)
{
    const sp_kernels *kernels = sp_kernels_select();
    size_t n_vocab = m->n_vocab;
    if (m->logit_soft_cap == 0) return;
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < n; r++) kernels->multiply(gradient + r * n_vocab, slopes + r * n_vocab, n_vocab);
}

sp_status sp_allocate_slopes(float **out, sp_engine *engine, size_t n)
{
    bool capped = engine->model->logit_soft_cap != 0;
    *out = capped ? sp_arena_alloc(engine->arena, n * engine->model->n_vocab, sizeof **out) : NULL;
    return capped && !*out ? SP_ERR_MEMORY : SP_OK;
}

/* Of read rows first .. first + n. slopes: of sp_cap_logits. */
static sp_status compute_logits(float *out, float *slopes, sp_engine *engine, size_t first, size_t n)
{
    sp_model *m = engine->model;
    sp_weight head = sp_weights_get_head(m);
    const float *normed = engine->normed + first * m->d_model;
    sp_status st = sp_linear(out, m->n_vocab, normed, m->d_model, &head, n, false, m->compute, engine->arena);
    if (!st) sp_cap_logits(out, slopes, m, n);
    return st;
}

sp_status sp_engine_logits(float *out, sp_engine *engine, size_t first, size_t n)
{
    int n_callers = sp_engine_enter(engine);
    return sp_engine_leave(n_callers, compute_logits(out, NULL, engine, first, n));
}

void sp_log_sums(double *out, const float *logits, size_t n, size_t n_vocab)
{
    const sp_kernels *kernels = sp_kernels_select();
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < n; r++) out[r] = kernels->log_sum_exp(logits + r * n_vocab, n_vocab);
}

/* Logits become their gradient: sum over the row's targets of weight * (softmax - one at the token). */
static void cross_entropy_backward(float *logits, const double *lse, const sp_target *targets, size_t n_targets, size_t first,
                                   size_t n, size_t n_vocab)
{
    const sp_kernels *kernels = sp_kernels_select();
    float weights[SP_LOGIT_ROWS_AT_ONCE] = {0};
    for (size_t t = 0; t < n_targets; t++) weights[targets[t].read - first] += targets[t].weight;
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < n; r++) kernels->exp_scaled(logits + r * n_vocab, (float)lse[r], weights[r], n_vocab);
    for (size_t t = 0; t < n_targets; t++)
        logits[(targets[t].read - first) * n_vocab + (size_t)targets[t].token] -= targets[t].weight;
}

sp_status sp_check_losses(const double *losses, size_t n, const sp_engine *engine)
{
    for (size_t t = 0; t < n; t++)
        if (!isfinite(losses[t]))
            return sp_fail(SP_ERR_FORMAT, "%s: a token's loss is %g: weights%s are damaged; fetch the model again%s",
                           engine->model->path, losses[t], engine->n_prompt ? " or prompt" : "",
                           engine->n_prompt ? ", or train the prompt again" : "");
    return SP_OK;
}

/* The targets of read rows first .. first + n, at most SP_LOGIT_ROWS_AT_ONCE of them. slopes: NULL, or room for them beside logits.
 */
static sp_status cross_entropy_part(double *nll, sp_engine *engine, const sp_target *targets, size_t n_targets, size_t first,
                                    size_t n, float *logits, float *slopes, bool with_gradient)
{
    sp_model *m = engine->model;
    double lse[SP_LOGIT_ROWS_AT_ONCE];
    sp_status st = compute_logits(logits, slopes, engine, first, n);
    if (st) return st;
    sp_log_sums(lse, logits, n, m->n_vocab);
    for (size_t t = 0; t < n_targets; t++)
        nll[t] = lse[targets[t].read - first] - logits[(targets[t].read - first) * m->n_vocab + (size_t)targets[t].token];
    if (!with_gradient) return sp_check_losses(nll, n_targets, engine);
    cross_entropy_backward(logits, lse, targets, n_targets, first, n, m->n_vocab);
    sp_cap_logits_backward(logits, slopes, m, n);
    sp_weight head = sp_weights_get_head(m);
    return sp_linear_backward(engine->dnormed + first * m->d_model, m->d_model, logits, m->n_vocab, &head, n, false, m->compute,
                              engine->arena);
}

sp_status sp_check_targets(const sp_engine *engine, const sp_target *targets, size_t n_targets, size_t n_read)
{
    for (size_t t = 0; t < n_targets; t++)
        if (targets[t].token < 0 || (size_t)targets[t].token >= engine->model->n_vocab || targets[t].read >= n_read ||
            (t > 0 && targets[t].read < targets[t - 1].read))
            return sp_fail(SP_ERR_ARGUMENT, "target %zu (token %d at read row %zu) is outside the vocabulary or out of order", t,
                           (int)targets[t].token, targets[t].read);
    return SP_OK;
}

static sp_status cross_entropy(double *nll, sp_engine *engine, const sp_target *targets, size_t n_targets, bool with_gradient)
{
    const sp_model *m = engine->model;
    size_t n_read = engine->read_plan.n_queries;
    sp_status st = sp_check_targets(engine, targets, n_targets, n_read);
    if (st) return st;
    if (with_gradient && !(engine->dnormed = sp_arena_alloc(engine->arena, n_read * m->d_model, sizeof(float))))
        return SP_ERR_MEMORY;
    sp_arena_mark mark = sp_arena_get_mark(engine->arena);
    size_t rows = n_read < SP_LOGIT_ROWS_AT_ONCE ? n_read : (size_t)SP_LOGIT_ROWS_AT_ONCE;
    float *logits = sp_arena_alloc(engine->arena, rows * m->n_vocab, sizeof(float)), *slopes = NULL;
    if (with_gradient) st = sp_allocate_slopes(&slopes, engine, rows);
    if (!logits || st) return SP_ERR_MEMORY;
    for (size_t first = 0, t = 0; first < n_read && !st; first += rows) {
        size_t n = n_read - first < rows ? n_read - first : rows, end = t;
        while (end < n_targets && targets[end].read < first + n) end++;
        if (end > t || with_gradient)
            st = cross_entropy_part(nll + t, engine, targets + t, end - t, first, n, logits, slopes, with_gradient);
        t = end;
    }
    sp_arena_reset(engine->arena, mark);
    return st;
}

sp_status sp_engine_cross_entropy(double *nll, sp_engine *engine, const sp_target *targets, size_t n_targets, bool with_gradient)
{
    int n_callers = sp_engine_enter(engine);
    return sp_engine_leave(n_callers, cross_entropy(nll, engine, targets, n_targets, with_gradient));
}

static sp_status backward(float *d_prompt, sp_engine *engine, const float *d_keys_values)
{
    int n_callers = sp_engine_enter(engine);
    engine->d_keys_values = d_keys_values;
    sp_status st = sp_engine_leave(n_callers, sp_backward_layers(d_prompt, engine));
    engine->d_keys_values = NULL;
    engine->layers = NULL; /* gate_up was overwritten: once for each forward */
    return st;
}

sp_status sp_engine_backward(float *d_prompt, sp_engine *engine)
{
    if (!engine->layers || !engine->dnormed)
        return sp_fail(SP_ERR_ARGUMENT, "backward needs a forward pass that was kept and a cross-entropy with gradient");
    return backward(d_prompt, engine, NULL);
}

sp_status sp_engine_backward_keys_values(float *d_prompt, sp_engine *engine, const float *d_keys_values)
{
    if (!engine->layers || engine->n_given)
        return sp_fail(SP_ERR_ARGUMENT, "a gradient by a prompt's keys and values needs a pass that computed them and was kept");
    return backward(d_prompt, engine, d_keys_values);
}
