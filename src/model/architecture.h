/* architecture.h: what makes a llama a llama: the differences between model families, as data.
 *
 * A family is a row of the table in architecture.c. Loading looks for the tensors that the row names, forward and backward read the
 * other fields; nothing else knows a family's name. Every family here is a stack of layers of the same form,
 *
 *   x_mid = x + post_norm(attention(norm(x)))        x_out = x_mid + post_norm(down(activation(gate) * up)), of norm(x_mid)
 *
 * or, where the two are parallel, the second of norm(x); with RMSNorm or LayerNorm, no post_norm unless its tensor is named,
 * down(activation(up)) where there is no gate, and a final norm before the output head. */
#ifndef SP_MODEL_ARCHITECTURE_H
#define SP_MODEL_ARCHITECTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensor/kernels.h"

/* A layer's tensors by what they are for. Their names in GGUF files and their shapes: sp_layer_tensor_forms. */
typedef enum sp_layer_tensor {
    SP_ATTN_NORM,
    SP_ATTN_Q,
    SP_ATTN_K,
    SP_ATTN_V,
    SP_ATTN_OUT,
    SP_FFN_NORM,
    SP_FFN_GATE,
    SP_FFN_UP,
    SP_FFN_DOWN,
    SP_ATTN_Q_BIAS,
    SP_ATTN_K_BIAS,
    SP_ATTN_V_BIAS,
    SP_ATTN_OUT_BIAS,
    SP_ATTN_Q_NORM, /* of each head alone, before RoPE */
    SP_ATTN_K_NORM,
    SP_ATTN_POST_NORM, /* of what attention adds to the stream */
    SP_FFN_POST_NORM,
    SP_ATTN_NORM_BIAS, /* of a LayerNorm */
    SP_FFN_NORM_BIAS,
    SP_ATTN_QKV, /* q, k, v, one below the other */
    SP_ATTN_QKV_BIAS,
    SP_FFN_GATE_UP, /* gate, below it up */
    SP_FFN_UP_BIAS,
    SP_FFN_DOWN_BIAS,
    SP_N_LAYER_TENSORS
} sp_layer_tensor;

/* A length that a model's hyperparameters give. */
typedef enum sp_length {
    SP_ONE,
    SP_D_MODEL,
    SP_D_HEAD,
    SP_Q_DIM,
    SP_KV_DIM,
    SP_QKV_DIM,
    SP_D_FFN,
    SP_2_D_FFN,
    SP_N_LENGTHS
} sp_length;

typedef struct sp_layer_tensor_form {
    const char *name;      /* in "blk.<layer>.<name>" */
    sp_length width, rows; /* rows SP_ONE: a vector */
} sp_layer_tensor_form;

extern const sp_layer_tensor_form sp_layer_tensor_forms[SP_N_LAYER_TENSORS];

typedef struct sp_architecture {
    const char *name;            /* general.architecture, and the prefix of the keys of hyperparameters */
    uint32_t required, optional; /* sets of tensors, 1 << role; all others are refused */
    sp_activation activation;    /* of the gate, or, without one, of up */
    bool layer_norm;             /* norms take the mean off and have biases, else RMSNorm */
    bool parallel;               /* both blocks read the layer's input, unless use_parallel_residual says no */
    bool learned_positions;      /* a vector for each position is added to the embeddings, a prompt's too; no RoPE */
    bool rope_by_halves;         /* in GGUF files RoPE turns the pairs (i, i + n_rot / 2) of a head, not (2i, 2i + 1) */
    size_t no_rope_period;       /* every so many layers, the last of them has no RoPE (arXiv 2501.18795); 0: all have it */
    bool has_window;             /* attention.sliding_window may be given: attention reaches back so many positions, */
    size_t default_window;       /* or this many, where it is not; 0: all */
    size_t global_period;        /* of so many layers the last has no window; 0: all have it */
    float local_rope_base;       /* base of RoPE in layers with a window; 0: the others' */
    bool scale_embeddings;       /* embeddings of tokens, not of a prompt, times sqrt(d_model) */
    float attention_soft_cap;    /* of scores and of logits, where the file names none; 0: none */
    float logit_soft_cap;
    size_t share_scaled_layers; /* a model of so many layers scales its scores by 1 / sqrt(d_model / n_head), not 1 / sqrt(d_head):
                                   the one of its family that does, and its file does not say it */
} sp_architecture;

/* NULL where no row has that name. */
const sp_architecture *sp_architecture_find(const char *name);

/* "llama, qwen2, ...": all that are known, for messages. Returns `out`, which is always terminated. */
const char *sp_architecture_list(char *out, size_t size);

#endif
