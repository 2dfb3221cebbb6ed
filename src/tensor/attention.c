/* attention.c: tiles of queries against the spans that they see, a block of keys at a time.
 *
 * A tile's queries of one group of heads share their keys, so they are gathered into one block (m = queries * heads in the group)
 * and everything is a small matrix product on it. Keys pass by in blocks that fit the second-level cache together with the tile's
 * rows; forward keeps the running maximum and sum of each row (arXiv 2205.14135), backward knows them. Keys and values are read
 * where they stand: copying a block side by side first was tried, and cost what it gained.
 *
 * Blocks of which no query sees anything do not exist, and of those that only some see, only these queries' rows are computed;
 * but for keys that left the window of a tile's later queries: their scores are computed and become zero. */
#include "tensor/attention.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"
#include "tensor/kernels.h"

/* How work is cut. None of it depends on the number of threads, so results do not, either. */
enum {
    VECTOR = 16,            /* floats in the longest vectors, and in a cache line */
    BLOCK_FLOATS = 1 << 14, /* of a block's keys, and of its values: 64 KiB each */
    MIN_BLOCK_KEYS = 64,    /* keys in a block, however wide the heads, */
    MAX_BLOCK_KEYS = 256,   /* and however narrow */
    FEW_SCORES = 1 << 13,   /* of a tile of few rows: its blocks are longer, to stream through keys in long pieces */
    DIAGONAL_KEYS = 16,     /* keys at a time where not every query sees them */
    MIN_PART_KEYS = 512,    /* of a tile that is split by its keys */
    FORWARD_TASKS = 16,     /* a tile with more than this share of the work is split */
    BACKWARD_PARTS = 8,     /* neighbouring tiles that add into one array of gradients of keys and values */
};

/* An odd number of cache lines: rows a power of two apart would fall into few sets of the cache. */
static size_t odd_lines(size_t n_floats)
{
    return sp_round_up(n_floats, VECTOR) | VECTOR;
}

/* ---- one tile, one group of heads ---- */

typedef struct tile_view {
    const sp_attention_plan *plan;
    const sp_query_tile *tile;
    size_t group, heads, d, m; /* heads: in the group; m = queries * heads */
    size_t block_keys, pitch;  /* the scores of a block of keys are (m, pitch) */
    float soft_cap;            /* 0: none */
    const sp_kernels *kernels;
} tile_view;

static tile_view view_tile(const sp_attention_plan *plan, size_t tile, size_t group, const sp_attention_shape *shape)
{
    size_t heads = shape->n_head / shape->n_head_kv, m = plan->tiles[tile].n_queries * heads;
    size_t block_keys = sp_smaller(sp_larger(BLOCK_FLOATS / shape->d_head, MIN_BLOCK_KEYS), MAX_BLOCK_KEYS);
    block_keys = sp_round_up(sp_smaller(sp_larger(block_keys, FEW_SCORES / m), plan->tiles[tile].n_keys), VECTOR);
    return (tile_view){.plan = plan,
                       .tile = &plan->tiles[tile],
                       .group = group,
                       .heads = heads,
                       .d = shape->d_head,
                       .m = m,
                       .block_keys = block_keys,
                       .pitch = odd_lines(block_keys + SP_KEY_PADDING),
                       .soft_cap = shape->soft_cap,
                       .kernels = sp_kernels_select()};
}

/* How many of the tile's keys query t sees: all but the rows of its own run behind it. */
static size_t visible_keys(const tile_view *view, size_t t)
{
    const size_t *rows = view->plan->query_rows + view->tile->first_query;
    return view->tile->n_keys - (rows[view->tile->n_queries - 1] - rows[t]);
}

/* The first row of the block of queries that sees a key. */
static size_t first_row_seeing(const tile_view *view, size_t key)
{
    size_t t = 0;
    while (visible_keys(view, t) <= key) t++;
    return t * view->heads;
}

/* Keys first .. first + n of the tile. */
typedef struct key_block {
    size_t first, n;
} key_block;

/* Where in a block the keys end that row i of the block of queries sees. */
static size_t visible_in_block(const tile_view *view, key_block block, size_t i)
{
    return sp_smaller(visible_keys(view, i / view->heads) - block.first, block.n);
}

/* Where they begin: all before has left the row's window. block.n: the row sees nothing of the block. */
static size_t hidden_in_block(const tile_view *view, key_block block, size_t i)
{
    size_t window = view->plan->window, end = window ? visible_keys(view, i / view->heads) : 0;
    return end > window + block.first ? sp_smaller(end - window - block.first, block.n) : 0;
}

/* The row of the tree behind a key of the tile; returns how many keys from there on stand side by side. */
static size_t find_tree_row(size_t *row, const sp_query_tile *tile, size_t key)
{
    const sp_span *span = tile->spans;
    for (; key >= span->n_rows; span++) key -= span->n_rows;
    *row = span->first_row + key;
    return span->n_rows - key;
}

/* A part of a block that is one matrix in memory and that the same queries see. */
typedef struct key_piece {
    size_t offset, n; /* in the block */
    size_t row;       /* of the tree, where it begins */
    size_t first_row; /* of the block of queries: those before see nothing of it */
} key_piece;

/* From a piece of zeros to the first, and so on; false behind the last. */
static bool next_piece(key_piece *piece, const tile_view *view, key_block block)
{
    piece->offset += piece->n;
    if (piece->offset == block.n) return false;
    size_t key = block.first + piece->offset, seen_by_all = visible_keys(view, 0);
    piece->n = sp_smaller(find_tree_row(&piece->row, view->tile, key), block.n - piece->offset);
    /* Whole vectors are worth more than the few keys that not all queries see. */
    size_t limit = key < seen_by_all ? sp_round_up(seen_by_all - block.first, VECTOR) - piece->offset : (size_t)DIAGONAL_KEYS;
    piece->n = sp_smaller(piece->n, limit);
    piece->first_row = first_row_seeing(view, key);
    return true;
}

/* Products of the queries' block with the block's keys: out (m, pitch) = rows (m, d) xt (d, keys). Pieces are written left to
 * right and rounded up to whole vectors: what runs over is written again by the next piece, or cleared by the softmax. */
static void times_columns(float *out, const float *rows, const float *xt, size_t ld, const tile_view *view, key_block block)
{
    size_t d = view->d, pitch = view->pitch, lanes = view->kernels->lanes;
    for (key_piece p = {0}; next_piece(&p, view, block);)
        view->kernels->gemm(out + p.first_row * pitch + p.offset, pitch, rows + p.first_row * d, d, 1, xt + p.row, ld,
                            view->m - p.first_row, sp_round_up(p.n, lanes), d, false);
}

/* out (m, d) += weights (m, pitch) x, over the block's keys. */
static void add_times_rows(float *out, const float *weights, const float *x, size_t ldx, const tile_view *view, key_block block)
{
    size_t d = view->d, pitch = view->pitch;
    for (key_piece p = {0}; next_piece(&p, view, block);)
        view->kernels->gemm(out + p.first_row * d, d, weights + p.first_row * pitch + p.offset, pitch, 1, x + p.row * ldx, ldx,
                            view->m - p.first_row, d, p.n, true);
}

/* The block's rows of dx += weights^T rows. */
static void add_transposed_times(float *dx, size_t lddx, const float *weights, const float *rows, const tile_view *view,
                                 key_block block)
{
    size_t d = view->d, pitch = view->pitch;
    for (key_piece p = {0}; next_piece(&p, view, block);)
        view->kernels->gemm(dx + p.row * lddx, lddx, weights + p.first_row * pitch + p.offset, 1, pitch, rows + p.first_row * d, d,
                            p.n, d, view->m - p.first_row, true);
}

/* Where row i of the block stands among the tile's rows of all heads: in floats, of rows ld apart. */
static size_t place(const tile_view *view, size_t i, size_t ld)
{
    return i / view->heads * ld + (view->group * view->heads + i % view->heads) * view->d;
}

static void gather(float *block, const float *rows, size_t ld, const tile_view *view, float factor)
{
    for (size_t i = 0; i < view->m; i++) view->kernels->scale(block + i * view->d, rows + place(view, i, ld), factor, view->d);
}

/* ---- scratch ---- */

/* One thread's scratch for a tile: blocks of m rows. */
typedef struct tile_scratch {
    float *q, *out, *dout, *dq; /* (m, d_head) */
    float *weights, *dweights;  /* (m, pitch): scores, then weights; their gradients */
    float *max, *sum;           /* (m) of the scores so far */
    float *lse, *dots;          /* (m) */
    float *slopes;              /* (n_keys) of the soft cap, of one row */
} tile_scratch;

static sp_status allocate_scratch(tile_scratch **out, size_t n_threads, const sp_attention_plan *plan,
                                  const sp_attention_shape *shape, bool backward, sp_arena *arena)
{
    size_t d = shape->d_head, m = plan->max_tile_queries * (shape->n_head / shape->n_head_kv), n_scores = 0, n_keys = 0;
    for (size_t t = 0; t < plan->n_tiles; t++) {
        tile_view view = view_tile(plan, t, 0, shape);
        n_scores = sp_larger(n_scores, view.m * view.pitch);
        n_keys = sp_larger(n_keys, view.block_keys);
    }
    tile_scratch *all = sp_arena_alloc(arena, n_threads, sizeof *all);
    if (!all) return SP_ERR_MEMORY;
    for (size_t t = 0; t < n_threads; t++) {
        tile_scratch s = {0};
        const struct {
            float **array;
            size_t n;
            bool wanted;
        } arrays[] = {
            {&s.q, m * d, true},
            {&s.out, m * d, !backward},
            {&s.dout, m * d, backward},
            {&s.dq, m * d, backward},
            {&s.weights, n_scores, true},
            {&s.dweights, n_scores, backward},
            {&s.max, m, !backward},
            {&s.sum, m, !backward},
            {&s.lse, m, backward},
            {&s.dots, m, backward},
            {&s.slopes, n_keys, backward && shape->soft_cap != 0},
        };
        for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
            if (arrays[i].wanted && !(*arrays[i].array = sp_arena_alloc(arena, arrays[i].n, sizeof(float)))) return SP_ERR_MEMORY;
        all[t] = s;
    }
    *out = all;
    return SP_OK;
}

/* ---- forward ---- */

/* A tile's keys first .. end for every group of heads. Where that is all of the tile's keys, results go to where the caller wants
 * them; else into arrays of its own, to be put together. */
typedef struct forward_task {
    size_t tile, first, end;
    float *out, *lse; /* (n_queries, n_head * d_head), (n_queries, n_head) of the tile; lse may be NULL */
    bool is_part;
} forward_task;

typedef struct forward_pass {
    const float *q;
    size_t ldq;
    const sp_attention_plan *plan;
    const sp_keys *keys;
    const sp_attention_shape *shape;
    forward_task *tasks;
    size_t n_tasks;
} forward_pass;

static size_t tile_work(const sp_query_tile *tile)
{
    return tile->n_queries * tile->n_keys;
}

static size_t total_work(const sp_attention_plan *plan)
{
    size_t work = 0;
    for (size_t t = 0; t < plan->n_tiles; t++) work += tile_work(&plan->tiles[t]);
    return work;
}

/* Into how many parts a tile's keys are cut: a few queries behind a long context would else be the work of few threads. */
static size_t count_splits(const sp_query_tile *tile, size_t work, const sp_attention_shape *shape)
{
    size_t most = (tile->n_keys + MIN_PART_KEYS - 1) / MIN_PART_KEYS;
    return sp_smaller(most, 1 + FORWARD_TASKS * tile_work(tile) / (work * shape->n_head_kv));
}

static sp_status make_tasks(forward_pass *pass, float *out, float *lse, sp_arena *arena)
{
    const sp_attention_plan *plan = pass->plan;
    size_t work = total_work(plan), n_head = pass->shape->n_head, q_dim = n_head * pass->shape->d_head, n_splits;
    size_t n = 0;
    for (size_t t = 0; t < plan->n_tiles; t++) n += count_splits(&plan->tiles[t], work, pass->shape);
    if (!(pass->tasks = sp_arena_alloc(arena, n, sizeof *pass->tasks))) return SP_ERR_MEMORY;
    for (size_t t = 0; t < plan->n_tiles; t++) {
        const sp_query_tile *tile = &plan->tiles[t];
        n_splits = count_splits(tile, work, pass->shape);
        for (size_t s = 0; s < n_splits; s++) {
            forward_task task = {t,
                                 tile->n_keys * s / n_splits / VECTOR * VECTOR,
                                 tile->n_keys * (s + 1) / n_splits / VECTOR * VECTOR,
                                 out + tile->first_query * q_dim,
                                 lse ? lse + tile->first_query * n_head : NULL,
                                 n_splits > 1};
            if (s + 1 == n_splits) task.end = tile->n_keys;
            if (task.is_part) {
                task.out = sp_arena_alloc(arena, tile->n_queries * q_dim, sizeof(float));
                task.lse = sp_arena_alloc(arena, tile->n_queries * n_head, sizeof(float));
                if (!task.out || !task.lse) return SP_ERR_MEMORY;
            }
            pass->tasks[pass->n_tasks++] = task;
        }
    }
    return SP_OK;
}

/* Scores become weights relative to each row's maximum so far; what was summed with earlier weights follows.
 * Maxima first: then no row waits for its own. */
static void weigh(const tile_view *view, key_block block, tile_scratch *s)
{
    const sp_kernels *kernels = view->kernels;
    size_t first = first_row_seeing(view, block.first);
    for (size_t i = first; i < view->m; i++) {
        size_t begin = hidden_in_block(view, block, i);
        if (begin == block.n) continue;
        float *scores = s->weights + i * view->pitch + begin;
        size_t n = visible_in_block(view, block, i) - begin;
        if (view->soft_cap != 0) kernels->soft_cap(scores, NULL, view->soft_cap, n);
        float max = kernels->max(scores, n);
        if (!(max > s->max[i])) continue;
        float factor = expf(s->max[i] - max);
        kernels->scale(s->out + i * view->d, s->out + i * view->d, factor, view->d);
        s->sum[i] *= factor;
        s->max[i] = max;
    }
    for (size_t i = first; i < view->m; i++) {
        size_t begin = hidden_in_block(view, block, i), end = visible_in_block(view, block, i);
        float *weights = s->weights + i * view->pitch;
        memset(weights, 0, begin * sizeof *weights);
        if (begin < block.n) s->sum[i] += kernels->softmax(weights + begin, s->max[i], end - begin, block.n - begin);
    }
}

static void block_forward(const tile_view *view, key_block block, const sp_keys *keys, const sp_attention_shape *shape,
                          tile_scratch *s)
{
    size_t column = view->group * view->d;
    times_columns(s->weights, s->q, keys->kt + column * keys->ld, keys->ld, view, block);
    weigh(view, block, s);
    add_times_rows(s->out, s->weights, keys->v + column, shape->n_head_kv * view->d, view, block);
}

static void run_forward_task(const forward_pass *pass, const forward_task *task, size_t group, tile_scratch *s)
{
    const sp_attention_shape *shape = pass->shape;
    tile_view view = view_tile(pass->plan, task->tile, group, shape);
    gather(s->q, pass->q + view.tile->first_query * pass->ldq, pass->ldq, &view, shape->scale);
    memset(s->out, 0, view.m * view.d * sizeof(float));
    for (size_t i = 0; i < view.m; i++) s->max[i] = -INFINITY, s->sum[i] = 0;
    /* A part may begin behind what the tile's first queries see. They keep a sum of 0. */
    for (size_t first = task->first; first < task->end; first += view.block_keys)
        block_forward(&view, (key_block){first, sp_smaller(view.block_keys, task->end - first)}, pass->keys, shape, s);
    for (size_t i = 0; i < view.m; i++) {
        float scale = s->sum[i] == 0 ? 0 : 1 / s->sum[i]; /* a NaN stays one */
        view.kernels->scale(task->out + place(&view, i, shape->n_head * view.d), s->out + i * view.d, scale, view.d);
        if (task->lse)
            task->lse[i / view.heads * shape->n_head + group * view.heads + i % view.heads] = s->max[i] + logf(s->sum[i]);
    }
}

/* The parts of one tile, put together for one query: each part's result is the attention over its keys alone, and exp(its lse)
 * their weight. */
static void merge_parts(float *out, float *lse, const forward_task *parts, size_t n_parts, size_t t,
                        const sp_attention_shape *shape)
{
    size_t d = shape->d_head;
    for (size_t i = t * shape->n_head; i < (t + 1) * shape->n_head; i++) {
        float max = -INFINITY, sum = 0;
        for (size_t p = 0; p < n_parts; p++) max = fmaxf(max, parts[p].lse[i]);
        for (size_t p = 0; p < n_parts; p++) sum += expf(parts[p].lse[i] - max);
        memset(out + i * d, 0, d * sizeof *out);
        for (size_t p = 0; p < n_parts; p++) {
            float weight = expf(parts[p].lse[i] - max) / sum;
            for (size_t j = 0; j < d; j++) out[i * d + j] += weight * parts[p].out[i * d + j];
        }
        if (lse) lse[i] = max + logf(sum);
    }
}

static void merge_tiles(float *out, float *lse, const forward_pass *pass)
{
    size_t n_head = pass->shape->n_head;
    for (size_t first = 0, n; first < pass->n_tasks; first += n) {
        const forward_task *parts = pass->tasks + first;
        const sp_query_tile *tile = &pass->plan->tiles[parts->tile];
        for (n = 1; first + n < pass->n_tasks && parts[n].tile == parts->tile;) n++;
        if (n == 1) continue;
#pragma omp for schedule(static) nowait
        for (size_t t = 0; t < tile->n_queries; t++)
            merge_parts(out + tile->first_query * n_head * pass->shape->d_head, lse ? lse + tile->first_query * n_head : NULL,
                        parts, n, t, pass->shape);
    }
}

sp_status sp_attention_forward(float *out, float *lse, const float *q, size_t ldq, const sp_attention_plan *plan,
                               const sp_keys *keys, const sp_attention_shape *shape, sp_arena *arena)
{
    sp_arena_mark mark = sp_arena_get_mark(arena);
    forward_pass pass = {q, ldq, plan, keys, shape, NULL, 0};
    tile_scratch *scratch;
    sp_status st = allocate_scratch(&scratch, (size_t)omp_get_max_threads(), plan, shape, false, arena);
    if (!st) st = make_tasks(&pass, out, lse, arena);
    if (!st) {
        size_t n_tasks = pass.n_tasks * shape->n_head_kv;
#pragma omp parallel
        {
#pragma omp for schedule(dynamic, 1)
            for (size_t i = 0; i < n_tasks; i++) { /* from the end of the tree, where paths are long: short tasks last */
                size_t task = n_tasks - 1 - i;
                run_forward_task(&pass, &pass.tasks[task / shape->n_head_kv], task % shape->n_head_kv,
                                 &scratch[omp_get_thread_num()]);
            }
            merge_tiles(out, lse, &pass);
        }
    }
    sp_arena_reset(arena, mark);
    return st;
}

/* ---- backward ---- */

/* What backward reads beside the forward's arrays: keys by rows, values transposed. */
typedef struct other_layouts {
    float *k;  /* (n_rows, n_head_kv * d_head) */
    float *vt; /* (n_head_kv * d_head, ldvt) */
    size_t ldvt;
} other_layouts;

static sp_status make_other_layouts(other_layouts *out, const sp_attention_plan *plan, const sp_keys *keys,
                                    const sp_attention_shape *shape, sp_arena *arena)
{
    enum { ROWS_AT_ONCE = 64 };
    const sp_kernels *kernels = sp_kernels_select();
    size_t kv_dim = shape->n_head_kv * shape->d_head, n = plan->n_rows, ldvt = odd_lines(n + SP_KEY_PADDING);
    float *k = sp_arena_alloc(arena, n * kv_dim, sizeof(float)), *vt = sp_arena_alloc(arena, kv_dim * ldvt, sizeof(float));
    if (!k || !vt) return SP_ERR_MEMORY;
#pragma omp parallel for schedule(static)
    for (size_t first = 0; first < n; first += ROWS_AT_ONCE) {
        size_t rows = sp_smaller(ROWS_AT_ONCE, n - first);
        kernels->transpose(k + first * kv_dim, kv_dim, keys->kt + first, keys->ld, kv_dim, rows);
        kernels->transpose(vt + first, ldvt, keys->v + first * kv_dim, kv_dim, rows, kv_dim);
    }
    for (size_t i = 0; i < kv_dim; i++) memset(vt + i * ldvt + n, 0, (ldvt - n) * sizeof *vt);
    *out = (other_layouts){k, vt, ldvt};
    return SP_OK;
}

/* Neighbouring tiles, and the gradients of the keys and values that they see. */
typedef struct backward_part {
    size_t first_tile, end_tile;
    bool *sees;     /* (n_rows): which rows its tiles see; the others of dk and dv are not written */
    float *dk, *dv; /* (n_rows, n_head_kv * d_head) */
} backward_part;

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
    backward_part *parts;
    size_t n_parts;
} backward_pass;

static void mark_seen(bool *sees, const sp_query_tile *tile)
{
    for (size_t s = 0; s < tile->n_spans; s++) memset(sees + tile->spans[s].first_row, true, tile->spans[s].n_rows);
}

/* Cuts the tiles into parts of about equal work. */
static sp_status make_parts(backward_pass *pass, sp_arena *arena)
{
    const sp_attention_plan *plan = pass->plan;
    size_t kv_dim = pass->shape->n_head_kv * pass->shape->d_head, n = plan->n_rows, work = total_work(plan), done = 0, tile = 0;
    pass->n_parts = sp_smaller(BACKWARD_PARTS, plan->n_tiles);
    if (!(pass->parts = sp_arena_alloc(arena, pass->n_parts, sizeof *pass->parts))) return SP_ERR_MEMORY;
    for (size_t p = 0; p < pass->n_parts; p++) {
        backward_part *part = &pass->parts[p];
        *part = (backward_part){.first_tile = tile,
                                .sees = sp_arena_alloc(arena, n, sizeof *part->sees),
                                .dk = sp_arena_alloc(arena, n * kv_dim, sizeof(float)),
                                .dv = sp_arena_alloc(arena, n * kv_dim, sizeof(float))};
        if (!part->sees || !part->dk || !part->dv) return SP_ERR_MEMORY;
        memset(part->sees, false, n);
        for (; tile < plan->n_tiles && (p + 1 == pass->n_parts || done < work * (p + 1) / pass->n_parts); tile++) {
            done += tile_work(&plan->tiles[tile]);
            mark_seen(part->sees, &plan->tiles[tile]);
        }
        part->end_tile = tile;
    }
    return SP_OK;
}

static void block_backward(const backward_pass *pass, const tile_view *view, key_block block, const backward_part *part,
                           tile_scratch *s)
{
    size_t kv_dim = pass->shape->n_head_kv * view->d, column = view->group * view->d, pitch = view->pitch;
    times_columns(s->weights, s->q, pass->keys->kt + column * pass->keys->ld, pass->keys->ld, view, block);
    times_columns(s->dweights, s->dout, pass->other.vt + column * pass->other.ldvt, pass->other.ldvt, view, block);
    for (size_t i = first_row_seeing(view, block.first); i < view->m; i++) {
        size_t begin = hidden_in_block(view, block, i), end = visible_in_block(view, block, i);
        float *weights = s->weights + i * pitch, *dweights = s->dweights + i * pitch;
        memset(weights, 0, begin * sizeof *weights);
        memset(dweights, 0, begin * sizeof *dweights);
        if (begin == block.n) continue;
        if (view->soft_cap != 0) view->kernels->soft_cap(weights + begin, s->slopes, view->soft_cap, end - begin);
        view->kernels->softmax_backward(weights + begin, dweights + begin, s->lse[i], s->dots[i], end - begin, block.n - begin);
        if (view->soft_cap != 0) view->kernels->multiply(dweights + begin, s->slopes, end - begin);
    }
    add_transposed_times(part->dv + column, kv_dim, s->weights, s->dout, view, block);
    add_times_rows(s->dq, s->dweights, pass->other.k + column, kv_dim, view, block);
    add_transposed_times(part->dk + column, kv_dim, s->dweights, s->q, view, block);
}

static void tile_backward(const backward_pass *pass, size_t tile, size_t group, const backward_part *part, tile_scratch *s)
{
    const sp_attention_shape *shape = pass->shape;
    tile_view view = view_tile(pass->plan, tile, group, shape);
    size_t d = view.d, q_dim = shape->n_head * d, first = view.tile->first_query;
    gather(s->q, pass->q + first * pass->ldq, pass->ldq, &view, shape->scale);
    gather(s->dout, pass->dout + first * q_dim, q_dim, &view, 1);
    for (size_t i = 0; i < view.m; i++) {
        s->lse[i] = pass->lse[(first + i / view.heads) * shape->n_head + group * view.heads + i % view.heads];
        s->dots[i] = view.kernels->dot(s->dout + i * view.d, pass->out + first * q_dim + place(&view, i, q_dim), d);
    }
    memset(s->dq, 0, view.m * view.d * sizeof(float));
    for (size_t key = 0; key < view.tile->n_keys; key += view.block_keys)
        block_backward(pass, &view, (key_block){key, sp_smaller(view.block_keys, view.tile->n_keys - key)}, part, s);
    for (size_t i = 0; i < view.m; i++)
        view.kernels->scale(pass->dq + first * pass->lddq + place(&view, i, pass->lddq), s->dq + i * view.d, shape->scale, d);
}

static void part_backward(const backward_pass *pass, const backward_part *part, size_t group, tile_scratch *s)
{
    size_t d = pass->shape->d_head, kv_dim = pass->shape->n_head_kv * d;
    for (size_t r = 0; r < pass->plan->n_rows; r++) {
        if (!part->sees[r]) continue;
        memset(part->dk + r * kv_dim + group * d, 0, d * sizeof(float));
        memset(part->dv + r * kv_dim + group * d, 0, d * sizeof(float));
    }
    for (size_t tile = part->first_tile; tile < part->end_tile; tile++) tile_backward(pass, tile, group, part, s);
}

/* dk and dv: the sums over the parts, in their order. */
static void add_parts(float *dk, float *dv, size_t lddkv, const backward_pass *pass)
{
    size_t kv_dim = pass->shape->n_head_kv * pass->shape->d_head;
#pragma omp for schedule(static)
    for (size_t r = 0; r < pass->plan->n_rows; r++) {
        float *dk_row = dk + r * lddkv, *dv_row = dv + r * lddkv;
        memset(dk_row, 0, kv_dim * sizeof *dk);
        memset(dv_row, 0, kv_dim * sizeof *dv);
        for (const backward_part *part = pass->parts; part < pass->parts + pass->n_parts; part++)
            for (size_t i = 0; part->sees[r] && i < kv_dim; i++) {
                dk_row[i] += part->dk[r * kv_dim + i];
                dv_row[i] += part->dv[r * kv_dim + i];
            }
    }
}

sp_status sp_attention_backward(float *dq, size_t lddq, float *dk, float *dv, size_t lddkv, const float *dout, const float *out,
                                const float *lse, const float *q, size_t ldq, const sp_attention_plan *plan, const sp_keys *keys,
                                const sp_attention_shape *shape, sp_arena *arena)
{
    sp_arena_mark mark = sp_arena_get_mark(arena);
    backward_pass pass = {dq, lddq, dout, out, lse, q, ldq, plan, keys, shape, {0}, NULL, 0};
    tile_scratch *scratch;
    sp_status st = make_other_layouts(&pass.other, plan, keys, shape, arena);
    if (!st) st = allocate_scratch(&scratch, (size_t)omp_get_max_threads(), plan, shape, true, arena);
    if (!st) st = make_parts(&pass, arena);
    if (!st) {
        size_t n_tasks = pass.n_parts * shape->n_head_kv;
#pragma omp parallel
        {
#pragma omp for schedule(dynamic, 1)
            for (size_t task = 0; task < n_tasks; task++)
                part_backward(&pass, &pass.parts[task / shape->n_head_kv], task % shape->n_head_kv, &scratch[omp_get_thread_num()]);
            add_parts(dk, dv, lddkv, &pass);
        }
    }
    sp_arena_reset(arena, mark);
    return st;
}
