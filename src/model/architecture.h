/* architecture.h: what makes a llama a llama: the differences between model families, as data.
 *
 * A family is a row of the table in architecture.c. Loading looks for the tensors that the row names, forward and backward read the
 * other fields; nothing else knows a family's name. Every family here is a stack of layers of the same form,
 *
 *   x_mid = x + post_norm(attention(norm(x)))        x_out = x_mid + post_norm(down(activation(gate) * up)), of norm(x_mid)
 *
 * with RMSNorm, no post_norm unless its tensor is named, and a final norm before the output head. */
#ifndef SP_MODEL_ARCHITECTURE_H
#define SP_MODEL_ARCHITECTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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
    SP_N_LAYER_TENSORS
} sp_layer_tensor;

/* A length that a model's hyperparameters give. */
typedef enum sp_length { SP_ONE, SP_D_MODEL, SP_D_HEAD, SP_Q_DIM, SP_KV_DIM, SP_D_FFN, SP_N_LENGTHS } sp_length;

typedef struct sp_layer_tensor_form {
    const char *name;      /* in "blk.<layer>.<name>" */
    sp_length width, rows; /* rows SP_ONE: a vector */
} sp_layer_tensor_form;

extern const sp_layer_tensor_form sp_layer_tensor_forms[SP_N_LAYER_TENSORS];

typedef struct sp_architecture {
    const char *name;            /* general.architecture, and the prefix of the keys of hyperparameters */
    uint32_t required, optional; /* sets of tensors, 1 << role; all others are refused */
    bool rope_by_halves;         /* in GGUF files RoPE turns the pairs (i, i + n_rot / 2) of a head, not (2i, 2i + 1) */
    bool has_window;             /* attention.sliding_window may be given: attention reaches back so many positions */
    size_t global_period;        /* of so many layers the last has no window; 0: all have it */
    float local_rope_base;       /* base of RoPE in layers with a window; 0: the others' */
    bool scale_embeddings;       /* embeddings of tokens, not of a prompt, times sqrt(d_model) */
    bool gelu;                   /* the activation of the gate, else silu */
    size_t no_rope_period;       /* every so many layers, the last of them has no RoPE (arXiv 2501.18795); 0: all have it */
} sp_architecture;

/* NULL where no row has that name. */
const sp_architecture *sp_architecture_find(const char *name);

/* "llama, qwen2, ...": all that are known, for messages. Returns `out`, which is always terminated. */
const char *sp_architecture_list(char *out, size_t size);

#endif
