/* architecture.c: the table of model families. A new family is a new row, and a field where it does what none did before. */
#include "model/architecture.h"

#include <stdio.h>
#include <string.h>

const sp_layer_tensor_form sp_layer_tensor_forms[SP_N_LAYER_TENSORS] = {
    [SP_ATTN_NORM] = {"attn_norm.weight", SP_D_MODEL, SP_ONE},
    [SP_ATTN_Q] = {"attn_q.weight", SP_D_MODEL, SP_Q_DIM},
    [SP_ATTN_K] = {"attn_k.weight", SP_D_MODEL, SP_KV_DIM},
    [SP_ATTN_V] = {"attn_v.weight", SP_D_MODEL, SP_KV_DIM},
    [SP_ATTN_OUT] = {"attn_output.weight", SP_Q_DIM, SP_D_MODEL},
    [SP_FFN_NORM] = {"ffn_norm.weight", SP_D_MODEL, SP_ONE},
    [SP_FFN_GATE] = {"ffn_gate.weight", SP_D_MODEL, SP_D_FFN},
    [SP_FFN_UP] = {"ffn_up.weight", SP_D_MODEL, SP_D_FFN},
    [SP_FFN_DOWN] = {"ffn_down.weight", SP_D_FFN, SP_D_MODEL},
    [SP_ATTN_Q_BIAS] = {"attn_q.bias", SP_Q_DIM, SP_ONE},
    [SP_ATTN_K_BIAS] = {"attn_k.bias", SP_KV_DIM, SP_ONE},
    [SP_ATTN_V_BIAS] = {"attn_v.bias", SP_KV_DIM, SP_ONE},
    [SP_ATTN_OUT_BIAS] = {"attn_output.bias", SP_D_MODEL, SP_ONE},
    [SP_ATTN_Q_NORM] = {"attn_q_norm.weight", SP_D_HEAD, SP_ONE},
    [SP_ATTN_K_NORM] = {"attn_k_norm.weight", SP_D_HEAD, SP_ONE},
    [SP_ATTN_POST_NORM] = {"post_attention_norm.weight", SP_D_MODEL, SP_ONE},
    [SP_FFN_POST_NORM] = {"post_ffw_norm.weight", SP_D_MODEL, SP_ONE},
    [SP_ATTN_NORM_BIAS] = {"attn_norm.bias", SP_D_MODEL, SP_ONE},
    [SP_FFN_NORM_BIAS] = {"ffn_norm.bias", SP_D_MODEL, SP_ONE},
    [SP_ATTN_QKV] = {"attn_qkv.weight", SP_D_MODEL, SP_QKV_DIM},
    [SP_ATTN_QKV_BIAS] = {"attn_qkv.bias", SP_QKV_DIM, SP_ONE},
    [SP_FFN_GATE_UP] = {"ffn_up.weight", SP_D_MODEL, SP_2_D_FFN}, /* the name of SP_FFN_UP: no row has both */
    [SP_FFN_UP_BIAS] = {"ffn_up.bias", SP_D_FFN, SP_ONE},
    [SP_FFN_DOWN_BIAS] = {"ffn_down.bias", SP_D_MODEL, SP_ONE},
};

#define BIT(role) (1u << (role))

enum {
    QKV = BIT(SP_ATTN_Q) | BIT(SP_ATTN_K) | BIT(SP_ATTN_V),
    QKV_BIASES = BIT(SP_ATTN_Q_BIAS) | BIT(SP_ATTN_K_BIAS) | BIT(SP_ATTN_V_BIAS),
    GATED_FFN = BIT(SP_FFN_GATE) | BIT(SP_FFN_UP) | BIT(SP_FFN_DOWN),
    HEAD_NORMS = BIT(SP_ATTN_Q_NORM) | BIT(SP_ATTN_K_NORM),
    POST_NORMS = BIT(SP_ATTN_POST_NORM) | BIT(SP_FFN_POST_NORM),
    PRE_NORMS = BIT(SP_ATTN_NORM) | BIT(SP_FFN_NORM),
    FUSED = BIT(SP_ATTN_QKV) | BIT(SP_ATTN_OUT) | BIT(SP_FFN_DOWN) | PRE_NORMS,
    BIASES = BIT(SP_ATTN_NORM_BIAS) | BIT(SP_FFN_NORM_BIAS) | BIT(SP_ATTN_QKV_BIAS) | BIT(SP_ATTN_OUT_BIAS) | BIT(SP_FFN_UP_BIAS) |
             BIT(SP_FFN_DOWN_BIAS),
    PLAIN = QKV | BIT(SP_ATTN_OUT) | GATED_FFN | PRE_NORMS,
};

static const sp_architecture architectures[] = {
    {.name = "llama", .required = PLAIN, .optional = QKV_BIASES | BIT(SP_ATTN_OUT_BIAS), .has_window = true}, /* and mistral */
    {.name = "qwen2", .required = PLAIN | QKV_BIASES, .rope_by_halves = true},
    {.name = "qwen3", .required = PLAIN | HEAD_NORMS, .rope_by_halves = true},
    {.name = "smollm3", .required = PLAIN, .optional = QKV_BIASES | BIT(SP_ATTN_OUT_BIAS), .no_rope_period = 4},
    {.name = "gemma2",
     .required = PLAIN | POST_NORMS,
     .activation = SP_GELU_TANH,
     .rope_by_halves = true,
     .has_window = true,
     .default_window = 4096,
     .global_period = 2,
     .scale_embeddings = true,
     .attention_soft_cap = 50,
     .logit_soft_cap = 30,
     .share_scaled_layers = 46},
    {.name = "gemma3",
     .required = PLAIN | HEAD_NORMS | POST_NORMS,
     .activation = SP_GELU_TANH,
     .rope_by_halves = true,
     .has_window = true,
     .global_period = 6,
     .local_rope_base = 10000,
     .scale_embeddings = true,
     .share_scaled_layers = 62},
    {.name = "phi3", .required = FUSED | BIT(SP_FFN_GATE_UP), .rope_by_halves = true, .has_window = true},
    {.name = "gpt2",
     .required = FUSED | BIT(SP_FFN_UP) | BIASES,
     .activation = SP_GELU_TANH,
     .layer_norm = true,
     .learned_positions = true},
    {.name = "gptneox",
     .required = FUSED | BIT(SP_FFN_UP) | BIASES,
     .activation = SP_GELU,
     .layer_norm = true,
     .parallel = true,
     .rope_by_halves = true},
};

enum { N_ARCHITECTURES = sizeof architectures / sizeof *architectures };

const sp_architecture *sp_architecture_find(const char *name)
{
    for (size_t i = 0; i < N_ARCHITECTURES; i++)
        if (strcmp(architectures[i].name, name) == 0) return &architectures[i];
    return NULL;
}

const char *sp_architecture_list(char *out, size_t size)
{
    size_t used = 0;
    *out = 0;
    for (size_t i = 0; i < N_ARCHITECTURES && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", architectures[i].name);
    return out;
}
