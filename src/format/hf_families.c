/* hf_families.c: the table of Hugging Face's families. A new family is a new row. */
#include "format/hf_families.h"

#include <stdio.h>
#include <string.h>

/* JSON as it stands in a file; commas and quotes survive. */
#define JSON(...) #__VA_ARGS__

/* ---- settings ----------------------------------------------------------------------------------------------- */

static const sp_hf_setting llama_settings[] = {
    {"num_hidden_layers", "block_count", SP_HF_SIZE},
    {"hidden_size", "embedding_length", SP_HF_SIZE},
    {"intermediate_size", "feed_forward_length", SP_HF_SIZE},
    {"max_position_embeddings", "context_length", SP_HF_SIZE},
    {"num_attention_heads", "attention.head_count", SP_HF_SIZE},
    {"num_key_value_heads", "attention.head_count_kv", SP_HF_SIZE},
    {"head_dim", "attention.key_length", SP_HF_SIZE},
    {"head_dim", "attention.value_length", SP_HF_SIZE},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon", SP_HF_REAL},
    {"attn_logit_softcapping", "attn_logit_softcapping", SP_HF_CAP},
    {"final_logit_softcapping", "final_logit_softcapping", SP_HF_CAP},
    {NULL, NULL, SP_HF_SIZE},
};
static const sp_hf_setting gpt2_settings[] = {
    {"n_layer", "block_count", SP_HF_SIZE},
    {"n_embd", "embedding_length", SP_HF_SIZE},
    {"n_inner", "feed_forward_length", SP_HF_SIZE}, /* null: 4 n_embd */
    {"n_positions", "context_length", SP_HF_SIZE},
    {"n_head", "attention.head_count", SP_HF_SIZE},
    {"layer_norm_epsilon", "attention.layer_norm_epsilon", SP_HF_REAL},
    {NULL, NULL, SP_HF_SIZE},
};
static const sp_hf_setting gpt_neox_settings[] = {
    {"num_hidden_layers", "block_count", SP_HF_SIZE},
    {"hidden_size", "embedding_length", SP_HF_SIZE},
    {"intermediate_size", "feed_forward_length", SP_HF_SIZE},
    {"max_position_embeddings", "context_length", SP_HF_SIZE},
    {"num_attention_heads", "attention.head_count", SP_HF_SIZE},
    {"layer_norm_eps", "attention.layer_norm_epsilon", SP_HF_REAL},
    {"use_parallel_residual", "use_parallel_residual", SP_HF_BOOL},
    {NULL, NULL, SP_HF_SIZE},
};

/* ---- tensors ------------------------------------------------------------------------------------------------ */

static const sp_hf_name ends[] = {
    {"model.embed_tokens", "token_embd", SP_HF_AS_IT_IS},
    {"lm_head", "output", SP_HF_AS_IT_IS},
    {"model.layers.*.self_attn.rotary_emb.inv_freq", NULL, SP_HF_AS_IT_IS}, /* in old checkpoints */
    {NULL, NULL, SP_HF_AS_IT_IS},
};
static const sp_hf_name projections[] = {
    {"model.layers.*.self_attn.q_proj", "blk.*.attn_q", SP_HF_AS_IT_IS},
    {"model.layers.*.self_attn.k_proj", "blk.*.attn_k", SP_HF_AS_IT_IS},
    {"model.layers.*.self_attn.v_proj", "blk.*.attn_v", SP_HF_AS_IT_IS},
    {"model.layers.*.self_attn.o_proj", "blk.*.attn_output", SP_HF_AS_IT_IS},
    {"model.layers.*.mlp.gate_proj", "blk.*.ffn_gate", SP_HF_AS_IT_IS},
    {"model.layers.*.mlp.up_proj", "blk.*.ffn_up", SP_HF_AS_IT_IS},
    {"model.layers.*.mlp.down_proj", "blk.*.ffn_down", SP_HF_AS_IT_IS},
    {NULL, NULL, SP_HF_AS_IT_IS},
};
static const sp_hf_name llama_norms[] = {
    {"model.norm", "output_norm", SP_HF_AS_IT_IS},
    {"model.layers.*.input_layernorm", "blk.*.attn_norm", SP_HF_AS_IT_IS},
    {"model.layers.*.post_attention_layernorm", "blk.*.ffn_norm", SP_HF_AS_IT_IS},
    {NULL, NULL, SP_HF_AS_IT_IS},
};
static const sp_hf_name head_norms[] = {
    {"model.layers.*.self_attn.q_norm", "blk.*.attn_q_norm", SP_HF_AS_IT_IS},
    {"model.layers.*.self_attn.k_norm", "blk.*.attn_k_norm", SP_HF_AS_IT_IS},
    {NULL, NULL, SP_HF_AS_IT_IS},
};
static const sp_hf_name gemma_norms[] = {
    {"model.norm", "output_norm", SP_HF_PLUS_ONE},
    {"model.layers.*.input_layernorm", "blk.*.attn_norm", SP_HF_PLUS_ONE},
    {"model.layers.*.post_attention_layernorm", "blk.*.post_attention_norm", SP_HF_PLUS_ONE},
    {"model.layers.*.pre_feedforward_layernorm", "blk.*.ffn_norm", SP_HF_PLUS_ONE},
    {"model.layers.*.post_feedforward_layernorm", "blk.*.post_ffw_norm", SP_HF_PLUS_ONE},
    {NULL, NULL, SP_HF_AS_IT_IS},
};
static const sp_hf_name gemma_head_norms[] = {
    {"model.layers.*.self_attn.q_norm", "blk.*.attn_q_norm", SP_HF_PLUS_ONE},
    {"model.layers.*.self_attn.k_norm", "blk.*.attn_k_norm", SP_HF_PLUS_ONE},
    {NULL, NULL, SP_HF_AS_IT_IS},
};

static const sp_hf_name phi3_names[] = {
    {"model.layers.*.self_attn.qkv_proj", "blk.*.attn_qkv", SP_HF_AS_IT_IS},
    {"model.layers.*.self_attn.o_proj", "blk.*.attn_output", SP_HF_AS_IT_IS},
    {"model.layers.*.mlp.gate_up_proj", "blk.*.ffn_up", SP_HF_AS_IT_IS},
    {"model.layers.*.mlp.down_proj", "blk.*.ffn_down", SP_HF_AS_IT_IS},
    {NULL, NULL, SP_HF_AS_IT_IS},
};
static const sp_hf_name gpt2_names[] = {
    {"wte", "token_embd", SP_HF_AS_IT_IS},
    {"wpe", "position_embd", SP_HF_AS_IT_IS},
    {"lm_head", "output", SP_HF_AS_IT_IS},
    {"ln_f", "output_norm", SP_HF_AS_IT_IS},
    {"h.*.ln_1", "blk.*.attn_norm", SP_HF_AS_IT_IS},
    {"h.*.attn.c_attn", "blk.*.attn_qkv", SP_HF_TRANSPOSED},
    {"h.*.attn.c_proj", "blk.*.attn_output", SP_HF_TRANSPOSED},
    {"h.*.ln_2", "blk.*.ffn_norm", SP_HF_AS_IT_IS},
    {"h.*.mlp.c_fc", "blk.*.ffn_up", SP_HF_TRANSPOSED},
    {"h.*.mlp.c_proj", "blk.*.ffn_down", SP_HF_TRANSPOSED},
    {"h.*.attn.bias", NULL, SP_HF_AS_IT_IS}, /* the causal mask, in old checkpoints */
    {"h.*.attn.masked_bias", NULL, SP_HF_AS_IT_IS},
    {NULL, NULL, SP_HF_AS_IT_IS},
};
static const sp_hf_name gpt_neox_names[] = {
    {"gpt_neox.embed_in", "token_embd", SP_HF_AS_IT_IS},
    {"embed_out", "output", SP_HF_AS_IT_IS},
    {"lm_head", "output", SP_HF_AS_IT_IS}, /* what transformers 5 calls it */
    {"gpt_neox.final_layer_norm", "output_norm", SP_HF_AS_IT_IS},
    {"gpt_neox.layers.*.input_layernorm", "blk.*.attn_norm", SP_HF_AS_IT_IS},
    {"gpt_neox.layers.*.attention.query_key_value", "blk.*.attn_qkv", SP_HF_QKV_BY_HEAD},
    {"gpt_neox.layers.*.attention.dense", "blk.*.attn_output", SP_HF_AS_IT_IS},
    {"gpt_neox.layers.*.post_attention_layernorm", "blk.*.ffn_norm", SP_HF_AS_IT_IS},
    {"gpt_neox.layers.*.mlp.dense_h_to_4h", "blk.*.ffn_up", SP_HF_AS_IT_IS},
    {"gpt_neox.layers.*.mlp.dense_4h_to_h", "blk.*.ffn_down", SP_HF_AS_IT_IS},
    {"gpt_neox.layers.*.attention.bias", NULL, SP_HF_AS_IT_IS}, /* the causal mask, in old checkpoints */
    {"gpt_neox.layers.*.attention.masked_bias", NULL, SP_HF_AS_IT_IS},
    {"gpt_neox.layers.*.attention.rotary_emb.inv_freq", NULL, SP_HF_AS_IT_IS},
    {NULL, NULL, SP_HF_AS_IT_IS},
};

/* Checkpoints of the hub lack it. */
static const sp_hf_prefix gpt2_prefixes[] = {{"transformer.", ""}, {NULL, NULL}};

/* The language model within one that also sees: transformers 4 and 5 name its tensors differently. */
static const sp_hf_prefix gemma3_prefixes[] = {
    {"language_model.", ""},
    {"model.language_model.", "model."},
    {"vision_tower.", NULL},
    {"multi_modal_projector.", NULL},
    {"model.vision_tower.", NULL},
    {"model.multi_modal_projector.", NULL},
    {NULL, NULL},
};

/* ---- families ----------------------------------------------------------------------------------------------- */

#define GEMMA3_DEFAULTS                                                                                                            \
    JSON({                                                                                                                         \
        "hidden_size" : 2304,                                                                                                      \
        "intermediate_size" : 9216,                                                                                                \
        "num_hidden_layers" : 26,                                                                                                  \
        "num_attention_heads" : 8,                                                                                                 \
        "num_key_value_heads" : 4,                                                                                                 \
        "head_dim" : 256,                                                                                                          \
        "hidden_activation" : "gelu_pytorch_tanh",                                                                                 \
        "max_position_embeddings" : 131072,                                                                                        \
        "rms_norm_eps" : 1e-6,                                                                                                     \
        "tie_word_embeddings" : true,                                                                                              \
        "query_pre_attn_scalar" : 256,                                                                                             \
        "sliding_window" : 4096,                                                                                                   \
        "sliding_window_pattern" : 6,                                                                                              \
        "rope_theta" : 1e6,                                                                                                        \
        "rope_local_base_freq" : 1e4                                                                                               \
    })
#define GEMMA3_FIXED                                                                                                               \
    JSON({                                                                                                                         \
        "hidden_activation" : "gelu_pytorch_tanh",                                                                                 \
        "attention_bias" : [ false, null ],                                                                                        \
        "use_bidirectional_attention" : [ false, null ]                                                                            \
    })

static const sp_hf_family families[] = {
    {.model_type = "llama",
     .architecture = "llama",
     .settings = llama_settings,
     .names = {ends, llama_norms, projections},
     .attention_bias = "attention_bias",
     .defaults =
         JSON({"hidden_act" : "silu", "max_position_embeddings" : 2048, "rms_norm_eps" : 1e-6, "tie_word_embeddings" : false}),
     .fixed = JSON({"hidden_act" : [ "silu", "swish" ], "mlp_bias" : [ false, null ]})},
    {.model_type = "mistral",
     .architecture = "llama",
     .settings = llama_settings,
     .names = {ends, llama_norms, projections},
     .attention_bias = "attention_bias",
     .defaults = JSON({
         "hidden_act" : "silu",
         "max_position_embeddings" : 131072,
         "rms_norm_eps" : 1e-6,
         "num_key_value_heads" : 8,
         "sliding_window" : 4096,
         "tie_word_embeddings" : false
     }),
     .fixed = JSON({"hidden_act" : [ "silu", "swish" ], "attention_bias" : [ false, null ]}),
     .windows = SP_HF_ALL_WINDOWS},
    {.model_type = "qwen2",
     .architecture = "qwen2",
     .settings = llama_settings,
     .names = {ends, llama_norms, projections},
     .defaults = JSON({
         "hidden_act" : "silu",
         "max_position_embeddings" : 32768,
         "rms_norm_eps" : 1e-6,
         "num_key_value_heads" : 32,
         "tie_word_embeddings" : false
     }),
     .fixed = JSON({"hidden_act" : [ "silu", "swish" ], "use_sliding_window" : [ false, null ]})},
    {.model_type = "qwen3",
     .architecture = "qwen3",
     .settings = llama_settings,
     .names = {ends, llama_norms, projections, head_norms},
     .defaults = JSON({
         "hidden_act" : "silu",
         "max_position_embeddings" : 32768,
         "rms_norm_eps" : 1e-6,
         "num_key_value_heads" : 32,
         "head_dim" : 128,
         "tie_word_embeddings" : false
     }),
     .fixed =
         JSON({"hidden_act" : [ "silu", "swish" ], "use_sliding_window" : [ false, null ], "attention_bias" : [ false, null ]})},
    {.model_type = "smollm3",
     .architecture = "smollm3",
     .settings = llama_settings,
     .names = {ends, llama_norms, projections},
     .attention_bias = "attention_bias",
     .defaults = JSON({
         "hidden_act" : "silu",
         "max_position_embeddings" : 32768,
         "rms_norm_eps" : 1e-6,
         "num_key_value_heads" : 4,
         "rope_theta" : 2e6,
         "no_rope_layer_interval" : 4,
         "tie_word_embeddings" : true
     }),
     .fixed = JSON({
         "hidden_act" : [ "silu", "swish" ],
         "mlp_bias" : [ false, null ],
         "use_sliding_window" : [ false, null ],
         "no_rope_layer_interval" : 4
     })},
    {.model_type = "gemma2",
     .architecture = "gemma2",
     .settings = llama_settings,
     .names = {ends, gemma_norms, projections},
     .defaults = JSON({
         "hidden_size" : 2304,
         "intermediate_size" : 9216,
         "num_hidden_layers" : 26,
         "num_attention_heads" : 8,
         "num_key_value_heads" : 4,
         "head_dim" : 256,
         "hidden_activation" : "gelu_pytorch_tanh",
         "max_position_embeddings" : 8192,
         "rms_norm_eps" : 1e-6,
         "tie_word_embeddings" : true,
         "query_pre_attn_scalar" : 256,
         "sliding_window" : 4096,
         "sliding_window_pattern" : 2,
         "attn_logit_softcapping" : 50.0,
         "final_logit_softcapping" : 30.0
     }),
     .fixed = JSON({
         "hidden_activation" : "gelu_pytorch_tanh",
         "attention_bias" : [ false, null ],
         "use_bidirectional_attention" : [ false, null ]
     }),
     .windows = SP_HF_WINDOWS_BY_LAYER},
    {.model_type = "gemma3_text",
     .architecture = "gemma3",
     .settings = llama_settings,
     .names = {ends, gemma_norms, projections, gemma_head_norms},
     .prefixes = gemma3_prefixes,
     .defaults = GEMMA3_DEFAULTS,
     .fixed = GEMMA3_FIXED,
     .windows = SP_HF_WINDOWS_BY_LAYER,
     .two_ropes = true},
    {.model_type = "gemma3",
     .architecture = "gemma3",
     .part = "text_config",
     .settings = llama_settings,
     .names = {ends, gemma_norms, projections, gemma_head_norms},
     .prefixes = gemma3_prefixes,
     .defaults = GEMMA3_DEFAULTS,
     .fixed = GEMMA3_FIXED,
     .windows = SP_HF_WINDOWS_BY_LAYER,
     .two_ropes = true},
    {.model_type = "phi3",
     .architecture = "phi3",
     .settings = llama_settings,
     .names = {ends, llama_norms, phi3_names},
     .defaults = JSON({
         "hidden_act" : "silu",
         "max_position_embeddings" : 4096,
         "original_max_position_embeddings" : 4096,
         "rms_norm_eps" : 1e-5,
         "tie_word_embeddings" : false
     }),
     .fixed = JSON({"hidden_act" : [ "silu", "swish" ]}),
     .windows = SP_HF_ALL_WINDOWS},
    {.model_type = "gpt2",
     .architecture = "gpt2",
     .settings = gpt2_settings,
     .names = {gpt2_names},
     .prefixes = gpt2_prefixes,
     .defaults = JSON({
         "n_layer" : 12,
         "n_embd" : 768,
         "n_head" : 12,
         "activation_function" : "gelu_new",
         "n_positions" : 1024,
         "layer_norm_epsilon" : 1e-5,
         "tie_word_embeddings" : true
     }),
     .fixed = JSON({
         "activation_function" : [ "gelu_new", "gelu_pytorch_tanh", "gelu_fast" ],
         "scale_attn_weights" : true,
         "scale_attn_by_inverse_layer_idx" : [ false, null ],
         "add_cross_attention" : [ false, null ]
     }),
     .learned_positions = true},
    {.model_type = "gpt_neox",
     .architecture = "gptneox",
     .settings = gpt_neox_settings,
     .names = {gpt_neox_names},
     .defaults = JSON({
         "hidden_act" : "gelu",
         "max_position_embeddings" : 2048,
         "layer_norm_eps" : 1e-5,
         "partial_rotary_factor" : 0.25,
         "use_parallel_residual" : true,
         "tie_word_embeddings" : false
     }),
     .fixed = JSON({"hidden_act" : "gelu", "attention_bias" : true})},
};

enum { N_FAMILIES = sizeof families / sizeof *families };

const sp_hf_family *sp_hf_family_find(const char *model_type)
{
    for (size_t i = 0; i < N_FAMILIES; i++)
        if (strcmp(families[i].model_type, model_type) == 0) return &families[i];
    return NULL;
}

const char *sp_hf_family_list(char *out, size_t size)
{
    size_t used = 0;
    *out = 0;
    for (size_t i = 0; i < N_FAMILIES && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", families[i].model_type);
    return out;
}
