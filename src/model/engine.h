/* engine.h: forward and backward over a token tree. All that softprompt computes goes through here.
 *
 *     sp_engine_forward(engine, &pass);                               // hidden states of the rows that are read
 *     sp_engine_cross_entropy(engine, nll, targets, n_targets, true); // losses; the gradient's start
 *     sp_engine_backward(d_prompt, engine);                           // down to the soft prompt
 */
#ifndef SP_MODEL_ENGINE_H
#define SP_MODEL_ENGINE_H

#include "fast/state.h"
#include "model/tree.h"
#include "softprompt.h"
#include "tensor/attention.h"

typedef struct sp_engine sp_engine; /* one model's buffers: keys and values of a tree's rows, activations of a pass */

sp_status sp_engine_create(sp_engine **out, sp_model *model); /* the model must outlive it */
void sp_engine_free(sp_engine *engine);

/* What a layer's attention is about to read: queries and keys as they enter the product, behind norms of heads and RoPE. The
 * numbers of a head stand in the model's own order, which is another than transformers' where RoPE turns neighbours. */
typedef struct sp_attention_view {
    size_t layer;
    const sp_attention_shape *shape;
    const float *q; /* (n_queries, n_head, d_head), rows ldq apart, of the rows query_rows (ascending) of the tree */
    size_t ldq, n_queries;
    const size_t *query_rows;
    const float *kt; /* (n_head_kv, d_head, ldk): keys, of every row of the tree so far */
    size_t ldk;
    size_t window; /* a query sees itself and window - 1 keys before it; 0: all keys on its path */
} sp_attention_view;

/* Called for each layer in turn, on the thread that called forward; the view lives for the call. Another status than SP_OK ends the
 * pass with it. */
typedef sp_status sp_attention_tap(void *user, const sp_attention_view *view);

typedef struct sp_pass {
    const sp_tree *tree;
    size_t first_row;        /* rows before were computed by earlier passes of this engine over this tree; 0: none */
    const float *prompt;     /* (virtual tokens that were not given, d_model), as they stand in the tree; NULL: none at first_row or
                                behind */
    const size_t *read_rows; /* (n_read) ascending, >= first_row: the rows whose logits somebody wants */
    size_t n_read;
    bool keep_for_backward; /* only with first_row 0, or behind keys and values that were given */
    sp_attention_tap *tap;  /* NULL: nobody looks on. In the last layer only rows that are read are queries */
    void *tap_user;
} sp_pass;

/* Gives rows first .. first + n of the tree, virtual tokens, their keys and values, which are then not computed: passes start
 * behind all that were given. first: 0, or where those given so far end, so that several prompts may be given; prompts of
 * embeddings stand behind them. keys_values (n, 2 * n_layer * n_head_kv * d_head), the layout of sp_prompt_keys_values. Copied;
 * they stay until a pass starts at row 0. */
sp_status sp_engine_set_keys_values(sp_engine *engine, size_t first, const float *keys_values, size_t n);

/* Gives every row of the trees to come keys and values that stand in no row: those of a prompt, as moments of each layer and head
 * of keys, (n_layer, n_head_kv), of heads of d_head numbers in transformers' order. The engine holds them until they are set again,
 * NULL: none.
 * The tree's root_position says where text starts. UNSUPPORTED: layers with a window, a soft cap of scores. */
sp_status sp_engine_set_states(sp_engine *engine, sp_state_set *states);

/* What passes found of them since they were set. */
void sp_engine_get_states_use(sp_compiled_use *out, const sp_engine *engine);

/* The keys and values of rows 0 .. n - 1, as passes computed them or as they were given. */
void sp_engine_get_keys_values(float *keys_values, const sp_engine *engine, size_t n);

/* Keys and values of rows first .. first + n become those that rows from[0] .. from[n - 1] had: a tree was laid out anew. Rows keep
 * their positions, so nothing is computed. On failure nothing has moved. */
sp_status sp_engine_move_rows(sp_engine *engine, size_t first, const size_t *from, size_t n);

/* ARGUMENT: a position beyond the model's context, a token outside the vocabulary. Read rows and tree must live until backward. */
sp_status sp_engine_forward(sp_engine *engine, const sp_pass *pass);

/* Logits of read rows first .. first + n:  out (n, n_vocab). */
sp_status sp_engine_logits(float *out, sp_engine *engine, size_t first, size_t n);

typedef struct sp_target {
    size_t read;   /* index into read_rows; ascending over the targets */
    int32_t token; /* what should come next */
    float weight;  /* of its -ln p in the loss */
} sp_target;

/* nll (n_targets) written: -ln p(token), unweighted, in nats. with_gradient (after keep_for_backward): starts the backward
 * pass from sum of weight * nll. The logits of a few rows at a time are held, never all. */
sp_status sp_engine_cross_entropy(double *nll, sp_engine *engine, const sp_target *targets, size_t n_targets, bool with_gradient);

/* The same with soft targets: the r-th row that the student's last pass read is to predict what the r-th of the teacher's does.
 * kl (n_read) written: KL(teacher || student) = sum of p_teacher (ln p_teacher - ln p_student) over the whole vocabulary, in nats.
 * with_gradient (after the student's keep_for_backward): starts the student's backward from sum of weights (n_read) * kl.
 * Two engines of one model, whose passes read equally many rows. */
sp_status sp_engine_distill(double *kl, sp_engine *student, const sp_engine *teacher, const float *weights, bool with_gradient);

/* Ensembles: reads (n_groups, group_size) puts the rows that the last pass read (indices into read_rows) into groups, one row a
 * prompt. The next token behind a group is as likely as the geometric mean of what its rows say, made to sum to one: its logits are
 * the mean of theirs. For a pass that is not kept; once for each. */
sp_status sp_engine_group_reads(sp_engine *engine, const size_t *reads, size_t group_size, size_t n_groups);
sp_status sp_engine_group_logits(float *out, sp_engine *engine, size_t first, size_t n); /* out (n, n_vocab) */

/* As cross_entropy; target.read is a group. */
sp_status sp_engine_group_cross_entropy(double *nll, sp_engine *engine, const sp_target *targets, size_t n_targets);

/* d_prompt += gradient of what cross_entropy summed: (virtual tokens, d_model), or, where keys and values were given, as those are
 * laid out, prompt behind prompt as in the tree. Not of both kinds at once: such a pass cannot be kept. Once for each forward. */
sp_status sp_engine_backward(float *d_prompt, sp_engine *engine);

/* The same of a function of the prompt's keys and values, as sp_engine_get_keys_values gives them behind a pass that was kept:
 * d_keys_values (virtual tokens, 2 * n_layer * n_head_kv * d_head), its gradient by those. Of prompts of embeddings; with what
 * cross_entropy summed, where there was one: without, no row needs to be read. */
sp_status sp_engine_backward_keys_values(float *d_prompt, sp_engine *engine, const float *d_keys_values);

#endif
