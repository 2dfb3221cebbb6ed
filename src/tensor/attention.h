/* attention.h: attention over a token tree, forward and backward.
 *
 * Keys and values of all rows of the tree stand in one store. A query sees some spans of rows (the runs on its path to the root)
 * whole, and of the last span (its own run) the rows up to itself; of these, where the plan has a window, only the last so many.
 * Nothing is padded, and no mask is ever stored.
 *
 *   keys     transposed, kt (n_head_kv, d_head, ld): column r is row r of the tree. Scores of a query with all keys of a span are
 *            then sums of contiguous pieces, whatever the span. ld >= n_rows + SP_KEY_PADDING, the padding readable.
 *   values   v (n_rows, n_head_kv * d_head)
 *   queries  q (n_queries, n_head, d_head); query head h reads key head h / (n_head / n_head_kv) (grouped-query, arXiv 2305.13245)
 */
#ifndef SP_TENSOR_ATTENTION_H
#define SP_TENSOR_ATTENTION_H

#include "base/arena.h"
#include "softprompt.h"

enum { SP_KEY_PADDING = 16 };

typedef struct sp_attention_shape {
    size_t n_head, n_head_kv, d_head;
    float scale;    /* of scores: 1 / sqrt(d_head) */
    float soft_cap; /* scores s become soft_cap tanh(s / soft_cap); 0: they stay */
} sp_attention_shape;

typedef struct sp_keys { /* one layer's keys and values */
    const float *kt;
    size_t ld;
    const float *v;
} sp_keys;

typedef struct sp_span {
    size_t first_row, n_rows;
} sp_span;

/* Neighbouring queries of one run, computed together: first_query .. + n_queries of the plan's query_rows.
 * spans: the path, own run last, neighbours in the tree as one, without what is out of the first query's window; the last span ends
 * at the tile's last query. */
typedef struct sp_query_tile {
    size_t first_query, n_queries;
    const sp_span *spans;
    size_t n_spans, n_keys; /* n_keys: rows in all the spans */
} sp_query_tile;

typedef struct sp_attention_plan {
    const sp_query_tile *tiles;
    size_t n_tiles;
    const size_t *query_rows; /* (n_queries): each query's row in the tree */
    size_t n_queries;
    size_t window; /* a query sees itself and window - 1 keys before it; 0: all keys on its path */
    size_t max_tile_queries, max_tile_keys;
    size_t n_rows; /* of the tree: rows of keys and values */
} sp_attention_plan;

/* out (n_queries, n_head * d_head) written: softmax(scale q k^T) v, or, with a soft cap c, softmax(c tanh(scale q k^T / c)) v.
 * q rows stand ldq apart.
 * lse (n_queries, n_head) written where not NULL: ln sum exp of the scores, which backward reads.
 * Parallel over tiles and key heads, and over parts of the keys where tiles are few and long; the bytes do not depend on the
 * number of threads. Scratch is given back. */
sp_status sp_attention_forward(float *out, float *lse, const float *q, size_t ldq, const sp_attention_plan *plan,
                               const sp_keys *keys, const sp_attention_shape *shape, sp_arena *scratch);

/* With p = softmax(s), dp = dout v^T:  dv += p^T dout,  ds = p (dp - sum(dout * out)),  dq = scale ds k,  dk += scale ds^T q;
 * behind a soft cap ds is also multiplied by the cap's slope, 1 - (s / c)^2. dq (n_queries, ..) written, rows lddq apart;  dk, dv
 * (n_rows, n_head_kv * d_head) written, rows lddkv apart Weights are computed again from lse. Parallel over key heads and over
 * neighbouring tiles, at most eight lots of them, each with sums of its own for dk and dv, which are added in order: the bytes do
 * not depend on the number of threads. */
sp_status sp_attention_backward(float *dq, size_t lddq, float *dk, float *dv, size_t lddkv, const float *dout, const float *out,
                                const float *lse, const float *q, size_t ldq, const sp_attention_plan *plan, const sp_keys *keys,
                                const sp_attention_shape *shape, sp_arena *scratch);

#endif
