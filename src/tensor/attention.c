/* attention.c: tiles of queries against the spans that they see.
 *
 * A tile's queries of one group of heads share their keys, so they are gathered into one block (m = queries * heads in the group)
 * and everything is a small matrix product on it. Scores of a tile stand in scratch whole: the caller chooses tiles so that they
 * stay in cache. Backward computes them again instead of storing n^2 numbers. */
#include "tensor/attention.h"

#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "tensor/kernels.h"

/* One thread's scratch for a tile: blocks of m rows. */
typedef struct tile_scratch {
    float *q, *out, *dout, *dq; /* (m, d_head) */
    float *weights, *dweights;  /* (m, pitch): scores, then weights; their gradients */
    float *lse;                 /* (m) */
    size_t pitch;
} tile_scratch;

static size_t group_size(const sp_attention_shape *shape)
{
    return shape->n_head / shape->n_head_kv;
}

static sp_status allocate_tiles(tile_scratch **out, size_t n_threads, const sp_attention_plan *plan,
                                const sp_attention_shape *shape, bool backward, sp_arena *arena)
{
    size_t m = plan->max_tile_queries * group_size(shape), block = m * shape->d_head;
    size_t pitch = (plan->max_tile_keys + SP_KEY_PADDING + 15) / 16 * 16;
    tile_scratch *tiles = sp_arena_alloc(arena, n_threads, sizeof *tiles);
    if (!tiles) return SP_ERR_MEMORY;
    for (size_t t = 0; t < n_threads; t++) {
        size_t n_blocks = backward ? 4 : 2, n_weights = backward ? 2 : 1;
        float *floats = sp_arena_alloc(arena, n_blocks * block + n_weights * m * pitch + m, sizeof(float));
        if (!floats) return SP_ERR_MEMORY;
        tiles[t] = (tile_scratch){.q = floats, .out = floats + block, .pitch = pitch};
        if (backward) tiles[t].dout = floats + 2 * block, tiles[t].dq = floats + 3 * block;
        tiles[t].weights = floats + n_blocks * block;
        tiles[t].dweights = backward ? tiles[t].weights + m * pitch : NULL;
        tiles[t].lse = floats + n_blocks * block + n_weights * m * pitch;
    }
    *out = tiles;
    return SP_OK;
}

/* The heads of one group stand side by side in a query's row. */
static void gather(float *block, const float *rows, size_t ld, const sp_query_tile *tile, size_t group, size_t width, float scale)
{
    for (size_t t = 0; t < tile->n_queries; t++) {
        const float *row = rows + (tile->first_query + t) * ld + group * width;
        for (size_t i = 0; i < width; i++) block[t * width + i] = scale * row[i];
    }
}

static void scatter(float *rows, size_t ld, const float *block, const sp_query_tile *tile, size_t group, size_t width, float scale)
{
    for (size_t t = 0; t < tile->n_queries; t++) {
        float *row = rows + (tile->first_query + t) * ld + group * width;
        for (size_t i = 0; i < width; i++) row[i] = scale * block[t * width + i];
    }
}

/* Products of a block with every visible row of a transposed matrix: out (m, pitch) = block (m, d) xt (d, rows). Spans are written
 * left to right and rounded up to whole vectors: what runs over is written again by the next span, or masked. */
static void times_transposed(float *out, size_t pitch, const float *block, const float *xt, size_t ld, const sp_query_tile *tile,
                             size_t m, size_t d, const sp_kernels *kernels)
{
    for (size_t s = 0; s < tile->n_spans; out += tile->spans[s++].n_rows) {
        size_t n = (tile->spans[s].n_rows + kernels->lanes - 1) / kernels->lanes * kernels->lanes;
        kernels->gemm(out, pitch, block, d, 1, xt + tile->spans[s].first_row, ld, m, n, d, false);
    }
}

/* block (m, d) = weights (m, pitch) x, over the visible rows of x. */
static void times_rows(float *block, const float *weights, size_t pitch, const float *x, size_t ldx, const sp_query_tile *tile,
                       size_t m, size_t d, const sp_kernels *kernels)
{
    for (size_t s = 0; s < tile->n_spans; weights += tile->spans[s++].n_rows)
        kernels->gemm(block, d, weights, pitch, 1, x + tile->spans[s].first_row * ldx, ldx, m, d, tile->spans[s].n_rows, s > 0);
}

/* Visible rows of dx += weights^T block. */
static void add_transposed_times(float *dx, size_t lddx, const float *weights, size_t pitch, const float *block,
                                 const sp_query_tile *tile, size_t m, size_t d, const sp_kernels *kernels)
{
    for (size_t s = 0; s < tile->n_spans; weights += tile->spans[s++].n_rows)
        kernels->gemm(dx + tile->spans[s].first_row * lddx, lddx, weights, 1, pitch, block, d, tile->spans[s].n_rows, d, m, true);
}

/* How many of the tile's keys query t sees: all but the rows of its own run behind it. */
static size_t visible_keys(const sp_attention_plan *plan, const sp_query_tile *tile, size_t t)
{
    size_t last = plan->query_rows[tile->first_query + tile->n_queries - 1], row = plan->query_rows[tile->first_query + t];
    return tile->n_keys - (last - row);
}

static const float *group_keys(const sp_keys *keys, const sp_attention_shape *shape, size_t group)
{
    return keys->kt + group * shape->d_head * keys->ld;
}

static void tile_forward(float *out, float *lse, const float *q, size_t ldq, const sp_attention_plan *plan,
                         const sp_query_tile *tile, size_t group, const sp_keys *keys, const sp_attention_shape *shape,
                         tile_scratch *scratch)
{
    const sp_kernels *kernels = sp_kernels_select();
    size_t heads = group_size(shape), d = shape->d_head, m = tile->n_queries * heads, kv_dim = shape->n_head_kv * d;
    gather(scratch->q, q, ldq, tile, group, heads * d, shape->scale);
    times_transposed(scratch->weights, scratch->pitch, scratch->q, group_keys(keys, shape, group), keys->ld, tile, m, d, kernels);
    for (size_t i = 0; i < m; i++) {
        size_t n = visible_keys(plan, tile, i / heads);
        float sum = kernels->softmax_row(scratch->weights + i * scratch->pitch, n, tile->n_keys);
        if (lse) lse[(tile->first_query + i / heads) * shape->n_head + group * heads + i % heads] = sum;
    }
    times_rows(scratch->out, scratch->weights, scratch->pitch, keys->v + group * d, kv_dim, tile, m, d, kernels);
    scatter(out, shape->n_head * d, scratch->out, tile, group, heads * d, 1);
}

sp_status sp_attention_forward(float *out, float *lse, const float *q, size_t ldq, const sp_attention_plan *plan,
                               const sp_keys *keys, const sp_attention_shape *shape, sp_arena *arena)
{
    sp_arena_mark mark = sp_arena_get_mark(arena);
    tile_scratch *scratch;
    sp_status st = allocate_tiles(&scratch, (size_t)omp_get_max_threads(), plan, shape, false, arena);
    if (st) return st;
    size_t n_tasks = plan->n_tiles * shape->n_head_kv;
#pragma omp parallel for schedule(static, 1)
    for (size_t task = 0; task < n_tasks; task++)
        tile_forward(out, lse, q, ldq, plan, &plan->tiles[task / shape->n_head_kv], task % shape->n_head_kv, keys, shape,
                     &scratch[omp_get_thread_num()]);
    sp_arena_reset(arena, mark);
    return SP_OK;
}

/* What backward reads beside the forward's arrays: keys by rows, values transposed. */
typedef struct other_layouts {
    float *k;  /* (n_rows, n_head_kv * d_head) */
    float *vt; /* (n_head_kv, d_head, ldvt) */
    size_t ldvt;
} other_layouts;

static sp_status make_other_layouts(other_layouts *out, const sp_attention_plan *plan, const sp_keys *keys,
                                    const sp_attention_shape *shape, sp_arena *arena)
{
    size_t kv_dim = shape->n_head_kv * shape->d_head, n = plan->n_rows, ldvt = n + SP_KEY_PADDING;
    out->ldvt = ldvt;
    out->k = sp_arena_alloc(arena, n * kv_dim, sizeof(float));
    out->vt = sp_arena_alloc(arena, kv_dim * ldvt, sizeof(float));
    if (!out->k || !out->vt) return SP_ERR_MEMORY;
    float *k = out->k, *vt = out->vt;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < kv_dim; i++) {
        for (size_t r = 0; r < n; r++) {
            k[r * kv_dim + i] = keys->kt[i * keys->ld + r];
            vt[i * ldvt + r] = keys->v[r * kv_dim + i];
        }
        memset(vt + i * ldvt + n, 0, SP_KEY_PADDING * sizeof(float));
    }
    return SP_OK;
}

/* One backward call's arguments, so that they travel together. */
typedef struct backward_pass {
    float *dq;
    size_t lddq;
    const float *dout, *out, *lse, *q;
    size_t ldq;
    const sp_attention_plan *plan;
    const sp_keys *keys;
    const sp_attention_shape *shape;
    other_layouts other;
} backward_pass;

static void tile_backward(const backward_pass *pass, const sp_query_tile *tile, size_t group, tile_scratch *scratch, float *dk,
                          float *dv, size_t lddkv)
{
    const sp_kernels *kernels = sp_kernels_select();
    const sp_attention_shape *shape = pass->shape;
    size_t heads = group_size(shape), d = shape->d_head, m = tile->n_queries * heads, kv_dim = shape->n_head_kv * d;
    size_t width = heads * d, pitch = scratch->pitch, q_dim = shape->n_head * d;
    gather(scratch->q, pass->q, pass->ldq, tile, group, width, shape->scale);
    gather(scratch->out, pass->out, q_dim, tile, group, width, 1);
    gather(scratch->dout, pass->dout, q_dim, tile, group, width, 1);
    gather(scratch->lse, pass->lse, shape->n_head, tile, group, heads, 1);
    times_transposed(scratch->weights, pitch, scratch->q, group_keys(pass->keys, shape, group), pass->keys->ld, tile, m, d,
                     kernels);
    times_transposed(scratch->dweights, pitch, scratch->dout, pass->other.vt + group * d * pass->other.ldvt, pass->other.ldvt, tile,
                     m, d, kernels);
    for (size_t i = 0; i < m; i++)
        kernels->softmax_again(scratch->weights + i * pitch, scratch->lse[i], visible_keys(pass->plan, tile, i / heads),
                               tile->n_keys);
    add_transposed_times(dv + group * d, lddkv, scratch->weights, pitch, scratch->dout, tile, m, d, kernels);
    for (size_t i = 0; i < m; i++)
        kernels->softmax_backward(scratch->dweights + i * pitch, scratch->weights + i * pitch,
                                  kernels->dot(scratch->dout + i * d, scratch->out + i * d, d), tile->n_keys);
    times_rows(scratch->dq, scratch->dweights, pitch, pass->other.k + group * d, kv_dim, tile, m, d, kernels);
    scatter(pass->dq, pass->lddq, scratch->dq, tile, group, width, shape->scale);
    add_transposed_times(dk + group * d, lddkv, scratch->dweights, pitch, scratch->q, tile, m, d, kernels);
}

static void clear_rows(float *x, size_t ld, size_t n, size_t width)
{
    for (size_t r = 0; r < n; r++) memset(x + r * ld, 0, width * sizeof *x);
}

/* dk, dv += the sums of threads 1 .. n_threads - 1, in that order. */
static void add_partial_sums(float *dk, float *dv, size_t lddkv, float *const *partial, size_t n_threads, size_t n_rows,
                             size_t kv_dim)
{
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < n_rows; r++)
        for (size_t t = 1; t < n_threads; t++)
            for (size_t i = 0; i < kv_dim; i++) {
                dk[r * lddkv + i] += partial[t][r * kv_dim + i];
                dv[r * lddkv + i] += partial[t][(n_rows + r) * kv_dim + i];
            }
}

sp_status sp_attention_backward(float *dq, size_t lddq, float *dk, float *dv, size_t lddkv, const float *dout, const float *out,
                                const float *lse, const float *q, size_t ldq, const sp_attention_plan *plan, const sp_keys *keys,
                                const sp_attention_shape *shape, sp_arena *arena)
{
    size_t n_threads = (size_t)omp_get_max_threads(), kv_dim = shape->n_head_kv * shape->d_head, n = plan->n_rows;
    sp_arena_mark mark = sp_arena_get_mark(arena);
    backward_pass pass = {dq, lddq, dout, out, lse, q, ldq, plan, keys, shape, {0}};
    tile_scratch *scratch;
    float **partial = sp_arena_alloc(arena, n_threads, sizeof *partial);
    sp_status st = partial ? make_other_layouts(&pass.other, plan, keys, shape, arena) : SP_ERR_MEMORY;
    if (!st) st = allocate_tiles(&scratch, n_threads, plan, shape, true, arena);
    for (size_t t = 1; t < n_threads && !st; t++)
        if (!(partial[t] = sp_arena_alloc(arena, 2 * n * kv_dim, sizeof(float)))) st = SP_ERR_MEMORY;
    if (st) goto done;
    clear_rows(dk, lddkv, n, kv_dim);
    clear_rows(dv, lddkv, n, kv_dim);
    size_t n_tasks = plan->n_tiles * shape->n_head_kv;
    size_t n_used = 1; /* the system may grant fewer threads than asked for */
#pragma omp parallel num_threads(n_threads)
    {
        size_t t = (size_t)omp_get_thread_num();
#pragma omp master
        n_used = (size_t)omp_get_num_threads();
        float *own_dk = t ? partial[t] : dk, *own_dv = t ? partial[t] + n * kv_dim : dv;
        size_t own_ld = t ? kv_dim : lddkv;
        if (t) memset(partial[t], 0, 2 * n * kv_dim * sizeof(float));
#pragma omp for schedule(static, 1)
        for (size_t task = 0; task < n_tasks; task++)
            tile_backward(&pass, &plan->tiles[task / shape->n_head_kv], task % shape->n_head_kv, &scratch[t], own_dk, own_dv,
                          own_ld);
    }
    add_partial_sums(dk, dv, lddkv, partial, n_used, n, kv_dim);
done:
    sp_arena_reset(arena, mark);
    return st;
}
