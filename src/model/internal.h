/* internal.h: what the files of src/model share. */
#ifndef SP_MODEL_INTERNAL_H
#define SP_MODEL_INTERNAL_H

#include <math.h>

#include "base/arena.h"
#include "format/gguf.h"
#include "model/engine.h"
#include "model/model.h"
#include "tensor/attention.h"
#include "tensor/linear.h"
#include "tensor/rope.h"
#include "text/tokenizer.h"

typedef struct sp_layer_tensors { /* as they stand in the file */
    const sp_gguf_tensor *attn_norm, *q, *k, *v, *out, *ffn_norm, *gate, *up, *down;
} sp_layer_tensors;

struct sp_model {
    sp_gguf *gguf;
    sp_tokenizer *tokenizer;
    char *path, *name, *architecture;
    int n_threads;
    size_t n_layer, d_model, d_ffn, n_head, n_head_kv, d_head, n_vocab, context_length;
    float norm_eps;
    sp_rope *rope;
    sp_layer_tensors *layers;
    const sp_gguf_tensor *embedding, *output_norm, *output; /* output == embedding: tied */
    uint64_t n_parameters;

    sp_weights weights;                 /* MAPPED or F32, once loaded */
    sp_compute compute;                 /* F32 or BF16, once loaded */
    float *expanded;                    /* F32: all layers, then the output head; MAPPED: NULL */
    bool *is_expanded;                  /* F32: (n_layer + 1) */
    float *output_norm_f32, *norms_f32; /* (d_model), (n_layer, 2, d_model): small, always expanded */
};

/* ---- weights.c: tensors as products read them ---- */

typedef struct sp_layer_weights {
    const float *attn_norm, *ffn_norm; /* (d_model) */
    sp_weight qkv;                     /* q, k, v: (q_dim + 2 kv_dim, d_model) */
    sp_weight out;                     /* (d_model, q_dim) */
    sp_weight gate_up;                 /* gate, up: (2 d_ffn, d_model) */
    sp_weight down;                    /* (d_model, d_ffn) */
} sp_layer_weights;

sp_status sp_weights_prepare(sp_model *model, sp_weights wanted); /* allocates, expands the norms */

/* Cannot fail: all that could was checked by sp_weights_prepare. */
void sp_weights_get_layer(sp_layer_weights *out, sp_model *model, size_t layer);
sp_weight sp_weights_get_head(sp_model *model); /* (n_vocab, d_model) */

/* out (n, row length) = rows first .. first + n of a matrix */
void sp_weights_expand_rows(float *out, const sp_gguf_tensor *tensor, size_t first, size_t n);

static inline size_t sp_model_q_dim(const sp_model *model)
{
    return model->n_head * model->d_head;
}
static inline size_t sp_model_kv_dim(const sp_model *model)
{
    return model->n_head_kv * model->d_head;
}

static inline sp_attention_shape sp_model_attention_shape(const sp_model *model)
{
    return (sp_attention_shape){model->n_head, model->n_head_kv, model->d_head, 1 / sqrtf((float)model->d_head)};
}

/* ---- plan.c: which queries see which spans ---- */

/* Tiles for `rows` (ascending) of the tree; all in `arena`, as is the copy of rows. */
sp_status sp_plan_attention(sp_attention_plan *out, const sp_tree *tree, const size_t *rows, size_t n_rows, size_t heads_per_key,
                            sp_arena *arena);

/* ---- engine.c, forward.c, backward.c, given.c ---- */

typedef struct sp_layer_state { /* what a layer's backward reads */
    const float *x;             /* (n, d_model) its input */
    const float *rrms;          /* (n) of attn_norm */
    const float *q;             /* (n_queries, q_dim), rows ldq apart, turned by RoPE */
    size_t ldq;
    const float *attended; /* (n_queries, q_dim) */
    const float *lse;      /* (n_queries, n_head) */
    const float *x_mid;    /* (n_queries, d_model) behind attention */
    const float *rrms_mid; /* (n_queries) of ffn_norm */
    float *gate_up;        /* (n_queries, 2 d_ffn); backward overwrites it */
} sp_layer_state;

typedef struct sp_layer_store { /* one layer's keys and values of the tree's rows */
    size_t capacity, ld;
    float *kt, *v; /* (kv_dim, ld), (capacity, kv_dim) */
} sp_layer_store;

struct sp_engine {
    sp_model *model;
    sp_arena *arena; /* all of one pass */

    sp_layer_store *stores; /* (n_layer) */

    /* The present pass. */
    const sp_tree *tree;
    size_t first_row, n;         /* rows computed: first_row .. first_row + n */
    size_t n_prompt;             /* of the tree's rows virtual tokens, at the start */
    size_t n_given;              /* rows whose keys and values were given: first_row where backward is to follow, or 0 */
    size_t *positions;           /* (n) */
    sp_attention_plan plan;      /* of every row */
    sp_attention_plan read_plan; /* of the rows that are read: all that the last layer computes behind its keys */
    sp_layer_state *layers;      /* (n_layer) when kept, else NULL */
    float *hidden;               /* (n_read, d_model) output of the last layer */
    float *rrms_hidden, *normed; /* (n_read), (n_read, d_model): behind the final norm */
    float *dnormed;              /* (n_read, d_model): where backward starts; NULL before cross_entropy */
};

/* One layer's queries, keys and values of the rows computed, or their gradients. */
typedef struct sp_projections {
    float *q; /* (n_queries, q_dim), rows ldq apart */
    size_t ldq;
    float *kv; /* (n, 2 kv_dim): keys, then values, in one row; rows ldkv apart */
    size_t ldkv;
} sp_projections;

/* Side by side in one matrix, as one product with the fused weights gives them; in the last layer, where only the rows that are
 * read are queries, in two. Both are the arena's. n_above: rows of keys and values that stand before kv. */
sp_status sp_projections_allocate(sp_projections *out, sp_engine *engine, size_t layer, size_t n_above);

/* Room for keys and values of n_rows, keeping the first n_kept. On failure all is kept that was there. */
sp_status sp_engine_reserve(sp_engine *engine, size_t n_rows, size_t n_kept);

/* d_prompt += the gradient of one layer's given keys and values: dkv (n_given, 2 kv_dim), rows ldkv apart, as the store has them */
void sp_given_gradient(float *d_prompt, const sp_engine *engine, size_t layer, const float *dkv, size_t ldkv);

/* Both leave the message set when they fail. */
sp_status sp_forward_layers(sp_engine *engine, const sp_pass *pass);
sp_status sp_backward_layers(float *d_prompt, sp_engine *engine);

static inline bool sp_is_last_layer(const sp_engine *engine, size_t layer)
{
    return layer + 1 == engine->model->n_layer;
}

static inline const sp_attention_plan *sp_layer_plan(const sp_engine *engine, size_t layer)
{
    return sp_is_last_layer(engine, layer) ? &engine->read_plan : &engine->plan;
}

#endif
