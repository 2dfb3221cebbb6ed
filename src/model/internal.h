/* internal.h: what the files of src/model share. */
#ifndef SP_MODEL_INTERNAL_H
#define SP_MODEL_INTERNAL_H

#include <math.h>

#include "base/arena.h"
#include "format/source.h"
#include "model/architecture.h"
#include "model/engine.h"
#include "model/model.h"
#include "tensor/attention.h"
#include "tensor/linear.h"
#include "tensor/rope.h"
#include "text/tokenizer.h"

enum { SP_MAX_D_HEAD = 1 << 12 };

typedef struct sp_layer_tensors { /* as they stand in the file; NULL where there is none */
    const sp_gguf_tensor *of[SP_N_LAYER_TENSORS];
} sp_layer_tensors;

typedef struct sp_norm {        /* both (d), in f32 */
    const float *weight, *bias; /* weight NULL: no norm. bias NULL: RMSNorm, else LayerNorm */
} sp_norm;

typedef struct sp_layer_vectors {          /* a layer's small tensors, in f32 */
    sp_norm attn_norm, ffn_norm;           /* of d_model numbers */
    sp_norm attn_post_norm, ffn_post_norm; /* the same, or none */
    const float *q_norm, *k_norm;          /* (d_head), or NULL */
    const float *qkv_bias;                 /* (q_dim + 2 kv_dim), or NULL */
    const float *out_bias, *down_bias;     /* (d_model), or NULL */
    const float *up_bias;                  /* (d_ffn), or NULL */
} sp_layer_vectors;

struct sp_model {
    sp_source *source;
    sp_tokenizer *tokenizer;
    char *path, *name;
    const sp_architecture *architecture;
    int n_threads;
    size_t n_layer, d_model, d_ffn, n_head, n_head_kv, d_head, n_vocab, context_length;
    size_t window, global_period; /* sp_model_has_window */
    bool rope_by_halves;          /* which pairs RoPE turns, in this model's rows of q and k: sp_rope_options */
    bool parallel;                /* both blocks read the layer's input */
    float norm_eps;
    float embedding_scale, attention_scale;
    float attention_soft_cap, logit_soft_cap; /* 0: none */
    sp_rope *rope, *local_rope; /* NULL: none; local_rope: of layers with a window, NULL where they have the others' */
    sp_layer_tensors *layers;
    const sp_gguf_tensor *embedding, *positions;                   /* positions (context_length, d_model), or NULL */
    const sp_gguf_tensor *output_norm, *output_norm_bias, *output; /* output == embedding: tied; bias NULL: RMSNorm */
    uint64_t n_parameters;

    sp_weights weights;        /* MAPPED or F32, once loaded */
    sp_compute compute;        /* F32 or BF16, once loaded */
    float *expanded;           /* F32: all layers, then the output head; MAPPED: NULL */
    bool *is_expanded;         /* F32: (n_layer + 1) */
    float *vectors_f32;        /* what `vectors` and final_norm point into: small, always expanded */
    sp_layer_vectors *vectors; /* (n_layer) */
    sp_norm final_norm;
};

/* ---- weights.c: tensors as products read them ---- */

typedef struct sp_layer_weights {
    sp_layer_vectors vectors;
    sp_weight qkv;     /* q, k, v: (q_dim + 2 kv_dim, d_model) */
    sp_weight out;     /* (d_model, q_dim) */
    sp_weight gate_up; /* gate, up: (2 d_ffn, d_model), or up alone: (d_ffn, d_model) */
    sp_weight down;    /* (d_model, d_ffn) */
} sp_layer_weights;

sp_status sp_weights_prepare(sp_model *model, sp_weights wanted); /* allocates, expands the vectors */

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

static inline size_t sp_model_length(const sp_model *model, sp_length length)
{
    const size_t lengths[SP_N_LENGTHS] = {[SP_ONE] = 1,
                                          [SP_D_MODEL] = model->d_model,
                                          [SP_D_HEAD] = model->d_head,
                                          [SP_Q_DIM] = sp_model_q_dim(model),
                                          [SP_KV_DIM] = sp_model_kv_dim(model),
                                          [SP_QKV_DIM] = sp_model_q_dim(model) + 2 * sp_model_kv_dim(model),
                                          [SP_D_FFN] = model->d_ffn,
                                          [SP_2_D_FFN] = 2 * model->d_ffn};
    return lengths[length];
}

/* Is the feed-forward block's activation a gate for another product? */
static inline bool sp_model_is_gated(const sp_model *model)
{
    return model->architecture->required >> SP_FFN_GATE & 1 || model->architecture->required >> SP_FFN_GATE_UP & 1;
}
/* What the block's first product gives a row. */
static inline size_t sp_model_up_width(const sp_model *model)
{
    return sp_model_is_gated(model) ? 2 * model->d_ffn : model->d_ffn;
}

/* Does a layer's attention reach back only `window` positions? All layers do where there is a window, but for the last of every
 * global_period. */
static inline bool sp_model_has_window(const sp_model *model, size_t layer)
{
    return model->window && !(model->global_period && (layer + 1) % model->global_period == 0);
}

/* What turns a layer's queries and keys; NULL: nothing does. */
static inline const sp_rope *sp_model_rope(const sp_model *model, size_t layer)
{
    size_t period = model->architecture->no_rope_period;
    if (period && (layer + 1) % period == 0) return NULL;
    return model->local_rope && sp_model_has_window(model, layer) ? model->local_rope : model->rope;
}

static inline sp_attention_shape sp_model_attention_shape(const sp_model *model)
{
    return (sp_attention_shape){model->n_head, model->n_head_kv, model->d_head, model->attention_scale, model->attention_soft_cap};
}

/* ---- plan.c: which queries see which spans ---- */

/* Tiles for `rows` (ascending) of the tree; all in `arena`, as is the copy of rows. window: as in sp_attention_plan. */
sp_status sp_plan_attention(sp_attention_plan *out, const sp_tree *tree, const size_t *rows, size_t n_rows, size_t heads_per_key,
                            size_t window, sp_arena *arena);

/* ---- engine.c, forward.c, backward.c, given.c ---- */

typedef struct sp_branch { /* what a block adds to the stream, where a norm stands behind it; else NULL */
    float *x, *rrms;       /* (n_queries, d_model) before that norm, (n_queries) */
} sp_branch;

typedef struct sp_layer_state { /* what a layer's backward reads */
    const float *x;             /* (n, d_model) its input */
    const float *rrms;          /* (n) of attn_norm; of a LayerNorm, here and below, 1 / standard deviation */
    const float *q;             /* (n_queries, q_dim), rows ldq apart, turned by RoPE */
    size_t ldq;
    const float *plain_q, *plain_k; /* (n_queries, q_dim), (n, kv_dim) before the norm of heads; NULL where there is none */
    const float *rrms_heads, *rrms_heads_kv; /* (n_queries, n_head), (n, n_head_kv) of that norm */
    const float *attended;                   /* (n_queries, q_dim) */
    const float *lse;                        /* (n_queries, n_head) */
    const float *x_mid;                      /* (n_queries, d_model) behind attention */
    const float *ffn_x;                      /* (n_queries, d_model) what the feed-forward block reads: x_mid, or rows of x */
    const float *rrms_ffn;                   /* (n_queries) of ffn_norm */
    float *gate_up;                          /* (n_queries, sp_model_up_width); backward overwrites it */
    sp_branch attn_branch, ffn_branch;
} sp_layer_state;

typedef struct sp_layer_store { /* one layer's keys and values of the tree's rows */
    size_t capacity, ld;
    float *kt, *v; /* (kv_dim, ld), (capacity, kv_dim) */
} sp_layer_store;

struct sp_engine {
    sp_model *model;
    sp_arena *arena; /* all of one pass */

    sp_layer_store *stores; /* (n_layer) */

    sp_state_set *states; /* (n_layer, n_head_kv) keys and values that stand in no row; NULL: none */
    sp_compiled_use states_use;

    /* The present pass. */
    const sp_tree *tree;
    sp_attention_tap *tap;
    void *tap_user;
    size_t first_row, n;    /* rows computed: first_row .. first_row + n */
    size_t n_prompt;        /* of the tree's rows virtual tokens, at the start */
    size_t n_given;         /* the first of them, whose keys and values were given: all or none where backward is to follow */
    size_t *positions;      /* (n) */
    sp_attention_plan plan; /* of every row */
    sp_attention_plan windowed_plan, windowed_read_plan; /* the same two for layers with a window, where there are any */
    sp_attention_plan read_plan; /* of the rows that are read: all that the last layer computes behind its keys */
    sp_layer_state *layers;      /* (n_layer) when kept, else NULL */
    float *hidden;               /* (n_read, d_model) output of the last layer */
    float *rrms_hidden, *normed; /* (n_read), (n_read, d_model): behind the final norm */
    float *dnormed;              /* (n_read, d_model): where backward starts; NULL before cross_entropy */
    const float *d_keys_values;  /* (n_prompt, 2 n_layer kv_dim): what backward finds beside it; NULL: nothing */
    size_t group_size, n_groups; /* `normed` is in groups, of an ensemble's rows; group_size 0: it is as it was read */
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

/* out (n_queries, n_head, d_head) and lse (n_queries, n_head), attention over the tree's rows, become attention over the states'
 * keys as well. FORMAT, ARGUMENT: a query is not finite. */
sp_status sp_states_attend(float *out, float *lse, sp_engine *engine, size_t layer, const float *q, size_t ldq, size_t n_queries);

/* d_prompt += the gradient of one layer's given keys and values: dkv (n_given, 2 kv_dim), rows ldkv apart, as the store has them */
void sp_given_gradient(float *d_prompt, const sp_engine *engine, size_t layer, const float *dkv, size_t ldkv);

/* The way back: dkv (n_prompt, 2 kv_dim), rows ldkv apart, += one layer's part of engine->d_keys_values */
void sp_add_keys_values_gradient(float *dkv, size_t ldkv, const sp_engine *engine, size_t layer);

/* The model's number of threads for as long as a call lasts: an outside program's own parallel loops keep theirs. */
int sp_engine_enter(const sp_engine *engine);
sp_status sp_engine_leave(int n_callers, sp_status st);

/* Losses hold the logits of so many rows at a time. */
enum { SP_LOGIT_ROWS_AT_ONCE = 32 };

/* Logits (n, n_vocab) through the model's soft cap, where it has one. slopes, where it is not NULL: the cap's derivative is written
 * there, which backward multiplies gradients by; room for them is allocated only where there is a cap, else *out is NULL. */
void sp_cap_logits(float *logits, float *slopes, const sp_model *model, size_t n);
void sp_cap_logits_backward(float *gradient, const float *slopes, const sp_model *model, size_t n);
sp_status sp_allocate_slopes(float **out, sp_engine *engine, size_t n);

/* ln sum exp of each row of logits (n, n_vocab). */
void sp_log_sums(double *out, const float *logits, size_t n, size_t n_vocab);

/* FORMAT: a loss is not finite. For losses without a gradient, which are taken for a result; with one they come from a step that
 * may have been too long: what to say then, training knows. */
sp_status sp_check_losses(const double *losses, size_t n, const sp_engine *engine);

/* ARGUMENT: a token outside the vocabulary, reads that do not ascend or are not below n_read. */
sp_status sp_check_targets(const sp_engine *engine, const sp_target *targets, size_t n_targets, size_t n_read);

/* Both leave the message set when they fail. */
sp_status sp_forward_layers(sp_engine *engine, const sp_pass *pass);
sp_status sp_backward_layers(float *d_prompt, sp_engine *engine);

static inline bool sp_is_last_layer(const sp_engine *engine, size_t layer)
{
    return layer + 1 == engine->model->n_layer;
}

static inline const sp_attention_plan *sp_layer_plan(const sp_engine *engine, size_t layer)
{
    if (sp_model_has_window(engine->model, layer))
        return sp_is_last_layer(engine, layer) ? &engine->windowed_read_plan : &engine->windowed_plan;
    return sp_is_last_layer(engine, layer) ? &engine->read_plan : &engine->plan;
}

#endif
