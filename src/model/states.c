/* states.c: keys and values that stand in no row of the tree: a prompt that was compiled to moments (fast/state.h).
 *
 * Attention over the tree's rows has been computed, and ln of its normaliser, lse. The state of a head gives the same two over the
 * prompt's keys, and the two become one softmax:  out = (e^lse out + e^lse' out') / (e^lse + e^lse').  The prompt stands before
 * everything, so every query sees all of it.
 *
 * States have the numbers of a head in transformers' order, whatever file the model came from; queries are brought into it.
 * Cost of a query: the state's features times d_head, whatever the number of keys. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"
#include "fast/state.h"
#include "model/internal.h"

enum { MAX_PART = 32, PARTS_PER_THREAD = 4 };

/* Some queries of one head of keys: query i of it is head i % group of the plan's query i / group. */
typedef struct part {
    size_t head_kv, first, n;
    sp_state_use use;
    double weights_bound;
    sp_status status;
} part;

typedef struct merge {
    float *out, *lse; /* (n_queries, n_head, d_head), (n_queries, n_head) */
    const float *q;
    size_t ldq, group;
    const sp_model *model;
    sp_fast_state *const *states; /* (n_head_kv) of the layer */
    float *scratch;               /* (n_threads, scratch_floats) */
    size_t scratch_floats;
} merge;

sp_status sp_model_check_states(const sp_model *m)
{
    if (m->window)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: layers with a window of %zu positions see a prompt's keys leave one by one, which moments do not; use "
                       "the prompt as it was trained",
                       m->path, m->window);
    if (m->attention_soft_cap != 0)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: scores go through a soft cap, and moments are of scores without; use the prompt as it was trained",
                       m->path);
    return SP_OK;
}

sp_status sp_engine_set_states(sp_engine *engine, sp_state_set *states)
{
    sp_status st = states ? sp_model_check_states(engine->model) : SP_OK;
    if (st) return st;
    sp_state_set_hold(states); /* before the release: they may be the same */
    sp_state_set_release(engine->states);
    engine->states = states;
    engine->states_use = (sp_compiled_use){0};
    return SP_OK;
}

void sp_engine_get_states_use(sp_compiled_use *out, const sp_engine *engine)
{
    *out = engine->states_use;
}

static void gather(float *out, const merge *g, const part *p)
{
    const size_t d = g->model->d_head;
    for (size_t i = 0; i < p->n; i++) {
        const size_t query = (p->first + i) / g->group, head = p->head_kv * g->group + (p->first + i) % g->group;
        const float *from = g->q + query * g->ldq + head * d;
        for (size_t c = 0; c < d; c++) out[i * d + c] = from[sp_model_key_dimension(g->model, c)];
    }
}

/* One softmax of two. */
static void join(float *out, float *lse, const float *other, float other_lse, size_t d)
{
    const float max = fmaxf(*lse, other_lse), own = expf(*lse - max), others = expf(other_lse - max), sum = own + others;
    for (size_t c = 0; c < d; c++) out[c] = (own * out[c] + others * other[c]) / sum;
    *lse = max + logf(sum);
}

static void run_part(part *p, const merge *g, float *scratch)
{
    const size_t d = g->model->d_head, n_head = g->model->n_head;
    const sp_fast_state *state = g->states[p->head_kv];
    float *q = scratch, *out = q + MAX_PART * d, lse[MAX_PART];
    gather(q, g, p);
    p->status = sp_fast_state_evaluate(out, d, lse, &p->use, state, q, d, p->n, out + MAX_PART * d);
    p->weights_bound = sp_fast_state_weights_bound(state, &p->use);
    for (size_t i = 0; i < p->n && !p->status; i++) {
        const size_t query = (p->first + i) / g->group, head = p->head_kv * g->group + (p->first + i) % g->group;
        const size_t at = query * n_head + head;
        join(g->out + at * d, &g->lse[at], out + i * d, lse[i], d);
    }
}

/* As large as there is work for all threads, and no smaller than a row's queries of one head of keys: a state is read from memory
 * once for all of a part. */
static size_t part_size(size_t n, size_t group, size_t n_head_kv, size_t n_threads)
{
    return sp_smaller(sp_larger(n * n_head_kv / (PARTS_PER_THREAD * n_threads), group), MAX_PART);
}

static sp_status take_uses(sp_engine *engine, const part *parts, size_t n_parts, size_t layer)
{
    sp_status st = SP_OK;
    for (size_t i = 0; i < n_parts; i++) {
        if (parts[i].status && !st) /* messages belong to the thread that failed */
            st = sp_fail(parts[i].status, "layer %zu: a query is not finite: weights or prompt are damaged; fetch the model again",
                         layer);
        engine->states_use.n_queries += parts[i].use.n_queries;
        engine->states_use.n_beyond += parts[i].use.n_beyond;
        engine->states_use.weights_bound = fmax(engine->states_use.weights_bound, parts[i].weights_bound);
    }
    return st;
}

sp_status sp_states_attend(float *out, float *lse, sp_engine *engine, size_t layer, const float *q, size_t ldq, size_t n_queries)
{
    const sp_model *m = engine->model;
    const size_t n_threads = (size_t)omp_get_max_threads(), group = m->n_head / m->n_head_kv, n = n_queries * group;
    merge g = {out, lse, q, ldq, group, m, engine->states->of + layer * m->n_head_kv, NULL, 0};
    sp_arena_mark mark = sp_arena_get_mark(engine->arena);
    for (size_t h = 0; h < m->n_head_kv; h++)
        g.scratch_floats = sp_larger(g.scratch_floats, sp_fast_state_scratch_floats(g.states[h]) + 2 * MAX_PART * m->d_head);
    const size_t size = part_size(n, group, m->n_head_kv, n_threads), of_head = (n + size - 1) / size,
                 n_parts = of_head * m->n_head_kv;
    g.scratch = sp_arena_alloc(engine->arena, n_threads * g.scratch_floats, sizeof *g.scratch);
    part *parts = sp_arena_alloc(engine->arena, n_parts, sizeof *parts);
    if (!g.scratch || !parts) return SP_ERR_MEMORY;
    for (size_t i = 0; i < n_parts; i++) {
        const size_t first = i % of_head * size;
        parts[i] = (part){.head_kv = i / of_head, .first = first, .n = sp_smaller(size, n - first)};
    }
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t i = 0; i < n_parts; i++) run_part(&parts[i], &g, g.scratch + (size_t)omp_get_thread_num() * g.scratch_floats);
    sp_status st = take_uses(engine, parts, n_parts, layer);
    sp_arena_reset(engine->arena, mark);
    return st;
}
