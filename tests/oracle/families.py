"""families.py: what distinguishes a family's GGUF files and transformers models, one row a family. hf_model.py reads it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from transformers import (Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel,
                          GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, SmolLM3Config,
                          SmolLM3ForCausalLM)

LLAMA_NAMES = {  # GGUF: transformers
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
HEAD_NORMS = {
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
}
GEMMA_NAMES = LLAMA_NAMES | {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}

PHI3_NAMES = {
    **{name: LLAMA_NAMES[name] for name in ("token_embd", "output_norm", "output", "blk.{}.attn_norm", "blk.{}.attn_output",
                                            "blk.{}.ffn_norm", "blk.{}.ffn_down")},
    "blk.{}.attn_qkv": "model.layers.{}.self_attn.qkv_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.gate_up_proj",
}
GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}
GPT_NEOX_NAMES = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "gpt_neox.layers.{}.input_layernorm",
    "blk.{}.attn_qkv": "gpt_neox.layers.{}.attention.query_key_value",
    "blk.{}.attn_output": "gpt_neox.layers.{}.attention.dense",
    "blk.{}.ffn_norm": "gpt_neox.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
    "blk.{}.ffn_down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
}


# ---- rows that stand otherwise in GGUF files: functions of (values, GGUF's name, config), and their inverses ----


def interleave_rows(rows, n_head):
    """q or k, (n_head * d_head, ...), from transformers' order to that of llama files."""
    return rows.reshape(n_head, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def separate_rows(rows, n_head):
    """The inverse of interleave_rows."""
    return rows.reshape(n_head, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def n_rotated_heads(gguf_name, config):
    """Heads of a tensor whose rows are in RoPE's order; None for every other tensor."""
    if ".attn_q." in gguf_name:
        return config.num_attention_heads
    if ".attn_k." in gguf_name:
        return config.num_key_value_heads
    return None


def interleave(values, name, config):
    n_head = n_rotated_heads(name, config)
    return interleave_rows(values, n_head) if n_head else values


def separate(values, name, config):
    n_head = n_rotated_heads(name, config)
    return separate_rows(values, n_head) if n_head else values


def transpose(values, name, config):
    """GPT-2's layers hold their matrices (in, out)."""
    return values.T if name.startswith("blk.") and values.ndim == 2 else values


def group_qkv(values, name, config):
    """From q, k, v of one head after the other to all of q, all of k, all of v."""
    if ".attn_qkv." not in name:
        return values
    return values.reshape(config.num_attention_heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


def ungroup_qkv(values, name, config):
    if ".attn_qkv." not in name:
        return values
    return values.reshape(3, config.num_attention_heads, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


def unchanged(values, name, config):
    return values


# ---- metadata that only some have: of the configuration, from a file's fields; into a file ----


def gemma2_settings(fields):
    n_layer, share = fields.get("block_count"), fields.get("embedding_length") // fields.get("attention.head_count")
    return {"query_pre_attn_scalar": share if n_layer == 46 else fields.get("attention.key_length"),
            "attn_logit_softcapping": fields.get("attn_logit_softcapping"),
            "final_logit_softcapping": fields.get("final_logit_softcapping")}


def write_gemma2(writer, config):
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def gemma3_settings(fields):
    n_layer, share = fields.get("block_count"), fields.get("embedding_length") // fields.get("attention.head_count")
    return {"query_pre_attn_scalar": share if n_layer == 62 else fields.get("attention.key_length")}


def phi3_settings(fields):
    return {"original_max_position_embeddings": fields.get("rope.scaling.original_context_length"),
            "sliding_window": fields.get("attention.sliding_window") or None}


def write_phi3(writer, config):
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)


def gpt2_settings(fields):
    return {"n_inner": fields.get("feed_forward_length")}


def gpt_neox_settings(fields):
    return {"use_parallel_residual": fields.get("use_parallel_residual")}


def write_gpt_neox(writer, config):
    writer.add_parallel_residual(config.use_parallel_residual)


@dataclass(frozen=True)
class Family:
    architecture: str  # general.architecture
    config: type
    model: type
    names: dict = field(default_factory=lambda: LLAMA_NAMES)
    to_file: Callable = unchanged  # values as GGUF has them
    from_file: Callable = unchanged
    windowed: bool = False  # has a sliding window
    norm_offset: int = 0  # what GGUF's weights of norms have that transformers adds when it computes
    settings: Callable = lambda fields: {}
    write: Callable = lambda writer, config: None
    epsilon: str = "rms_norm_eps"  # the configuration's name for it; any other is a LayerNorm's
    rope: bool = True
    two_ropes: bool = False  # layers with a window have a RoPE of their own


FAMILIES = {  # by transformers' model_type
    "llama": Family("llama", LlamaConfig, LlamaForCausalLM, to_file=interleave, from_file=separate),
    "mistral": Family("llama", MistralConfig, MistralForCausalLM, to_file=interleave, from_file=separate, windowed=True),
    "qwen2": Family("qwen2", Qwen2Config, Qwen2ForCausalLM),
    "qwen3": Family("qwen3", Qwen3Config, Qwen3ForCausalLM, LLAMA_NAMES | HEAD_NORMS),
    "gemma2": Family("gemma2", Gemma2Config, Gemma2ForCausalLM, GEMMA_NAMES, windowed=True, norm_offset=1, settings=gemma2_settings,
                     write=write_gemma2),
    "gemma3_text": Family("gemma3", Gemma3TextConfig, Gemma3ForCausalLM, GEMMA_NAMES | HEAD_NORMS, windowed=True, norm_offset=1,
                          two_ropes=True, settings=gemma3_settings),
    "phi3": Family("phi3", Phi3Config, Phi3ForCausalLM, PHI3_NAMES, windowed=True, settings=phi3_settings, write=write_phi3),
    "gpt2": Family("gpt2", GPT2Config, GPT2LMHeadModel, GPT2_NAMES, to_file=transpose, from_file=transpose, settings=gpt2_settings,
                   epsilon="layer_norm_epsilon", rope=False),
    "gpt_neox": Family("gptneox", GPTNeoXConfig, GPTNeoXForCausalLM, GPT_NEOX_NAMES, to_file=group_qkv, from_file=ungroup_qkv,
                       settings=gpt_neox_settings, write=write_gpt_neox, epsilon="layer_norm_eps"),
    "smollm3": Family("smollm3", SmolLM3Config, SmolLM3ForCausalLM, to_file=interleave, from_file=separate),
}


def of_file(fields):
    """The family of a GGUF file, from its metadata (hf_model.Fields)."""
    for family in FAMILIES.values():
        if family.architecture == fields.architecture and family.windowed == ("attention.sliding_window" in fields):
            return family
    raise ValueError(f"architecture {fields.architecture} is not converted here")
