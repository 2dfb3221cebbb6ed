/* tiles.c: tiles of queries, each by one thread from its packing to its outputs.
 * Invariant: a tile reads nothing that another one writes, so that neither order nor threads change a bit. */
#include "fast/tiles.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"

#define LOG2_E 1.44269504088896341

sp_status sp_rows_pack(sp_rows *out, const sp_fast_call *call, const size_t *list)
{
    const sp_attention_head *keys = &call->head;
    const size_t n = keys->n_keys + SP_EXACT_KEYS, columns = sp_fast_columns(call);
    const double n_bytes = (double)n * (double)(keys->d + columns) * sizeof(float);
    const uint64_t max_bytes = call->fast->options.max_bytes;
    if (n_bytes > (double)max_bytes)
        return sp_fail(SP_ERR_MEMORY, "exact attention over %zu keys takes %.4g bytes, and %.4g are allowed", keys->n_keys, n_bytes,
                       (double)max_bytes);
    out->k = sp_arena_alloc(call->fast->arena, n * keys->d, sizeof *out->k);
    out->v = sp_arena_alloc(call->fast->arena, n * columns, sizeof *out->v);
    if (!out->k || !out->v) return SP_ERR_MEMORY;
    out->n = sp_frame_pack_rows(out->k, out->v, &call->frame, keys, list);
    return SP_OK;
}

double sp_tile_bound(const sp_fast_call *call, const size_t *queries, size_t n)
{
    double bound = 0;
    for (size_t i = 0; i < n; i++) bound = call->bounds[queries[i]] > bound ? call->bounds[queries[i]] : bound;
    return bound;
}

typedef struct tile_scratch {
    float *q, *sums, *max, *weights;
} tile_scratch;

static sp_status allocate(tile_scratch **out, size_t n, const sp_fast_call *call)
{
    const size_t width = call->fast->kernels->tile_queries, d = sp_larger(call->head.d, sp_fast_given(call)->head.d);
    sp_arena *arena = call->fast->arena;
    *out = sp_arena_alloc(arena, n, sizeof **out);
    if (!*out) return SP_ERR_MEMORY;
    for (size_t t = 0; t < n; t++) {
        tile_scratch *s = &(*out)[t];
        s->q = sp_arena_alloc(arena, d * width, sizeof(float));
        s->sums = sp_arena_alloc(arena, sp_fast_columns(call) * width, sizeof(float));
        s->max = sp_arena_alloc(arena, width, sizeof(float));
        s->weights = sp_arena_alloc(arena, (size_t)SP_EXACT_BLOCK * width, sizeof(float));
        if (!s->q || !s->sums || !s->max || !s->weights) return SP_ERR_MEMORY;
    }
    return SP_OK;
}

static void gather_queries(float *out, const sp_tile *tile, const sp_fast_call *call, double factor)
{
    const sp_attention_head *head = &call->head;
    call->frame.kernels->gather(out, head->q, head->ldq, tile->queries, tile->n, head->d, call->frame.query_factor * factor);
}

static void add_polynomial(tile_scratch *s, const sp_tile *tile, const sp_fast_call *call)
{
    const sp_frame *frame = &call->frame;
    const sp_fast_kernels *kernels = call->fast->kernels;
    const size_t n = sp_monomials_count(frame->d, tile->degree) * frame->columns;
    const size_t size = sp_round_up(n, kernels->lanes);
    gather_queries(s->q, tile, call, 1);
    for (size_t g = 0; g < frame->groups; g++)
        kernels->evaluate(s->sums + g * frame->columns * kernels->tile_queries, s->q, tile->state + g * size, frame->d,
                          tile->degree, frame->columns);
}

static void add_exactly(tile_scratch *s, const sp_tile *tile, const sp_fast_call *call)
{
    const sp_frame *frame = &call->frame;
    const sp_fast_kernels *kernels = call->fast->kernels;
    const sp_rows *rows = tile->rows;
    const size_t whole = (tile->end - tile->first + SP_EXACT_KEYS - 1) / SP_EXACT_KEYS * SP_EXACT_KEYS;
    const bool is_shifted = !tile->state && sp_tile_bound(call, tile->queries, tile->n) > SP_NO_SHIFT;
    for (size_t u = 0; u < kernels->tile_queries; u++) s->max[u] = -INFINITY;
    gather_queries(s->q, tile, call, LOG2_E);
    kernels->exact(s->sums, is_shifted ? s->max : NULL, s->q, rows->k + tile->first * frame->d,
                   rows->v + tile->first * sp_fast_columns(call), sp_smaller(whole, rows->n - tile->first), frame->d, frame->groups,
                   frame->columns, tile->last == PTRDIFF_MAX ? PTRDIFF_MAX : tile->last - (ptrdiff_t)tile->first, s->weights);
}

static void answer(float *out, sp_tile *tile, tile_scratch *s, const sp_fast_call *call)
{
    const sp_fast_kernels *kernels = call->fast->kernels;
    memset(s->sums, 0, sp_fast_columns(call) * kernels->tile_queries * sizeof *s->sums);
    if (tile->state) add_polynomial(s, tile, call);
    if (tile->rows && tile->first < tile->end) add_exactly(s, tile, tile->state ? call : sp_fast_given(call));
    tile->least = call->frame.kernels->scatter(out, call->head.ldo, tile->queries, tile->n, s->sums, call->head.d_v,
                                               call->frame.value_middle, call->frame.value_factor);
}

sp_status sp_tiles_answer(float *out, sp_tile *tiles, size_t n_tiles, const sp_fast_call *call)
{
    const size_t n_threads = sp_larger(1, sp_smaller(call->n_threads, n_tiles));
    const sp_arena_mark mark = sp_arena_get_mark(call->fast->arena);
    tile_scratch *scratch;
    sp_status st = allocate(&scratch, n_threads, call);
    if (st) return st;
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)n_threads)
    for (size_t i = 0; i < n_tiles; i++) answer(out, &tiles[i], &scratch[omp_get_thread_num()], call);
    sp_arena_reset(call->fast->arena, mark);
    return SP_OK;
}
