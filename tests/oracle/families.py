"""families.py: what distinguishes a family's GGUF files and transformers models, one row a family. hf_model.py reads it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from transformers import (Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
                          SmolLM3Config, SmolLM3ForCausalLM)

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


@dataclass(frozen=True)
class Family:
    architecture: str  # general.architecture
    config: type
    model: type
    names: dict = field(default_factory=lambda: LLAMA_NAMES)
    interleaved: bool = False  # rows of q and k stand in GGUF's own order
    windowed: bool = False  # has a sliding window
    norm_offset: int = 0  # what GGUF's weights of norms have that transformers adds when it computes
    settings: Callable = lambda fields: {}  # of the configuration, from a file's metadata
    two_ropes: bool = False  # layers with a window have a RoPE of their own


FAMILIES = {  # by transformers' model_type
    "llama": Family("llama", LlamaConfig, LlamaForCausalLM, interleaved=True),
    "mistral": Family("llama", MistralConfig, MistralForCausalLM, interleaved=True, windowed=True),
    "qwen2": Family("qwen2", Qwen2Config, Qwen2ForCausalLM),
    "qwen3": Family("qwen3", Qwen3Config, Qwen3ForCausalLM, LLAMA_NAMES | HEAD_NORMS),
    "gemma3_text": Family("gemma3", Gemma3TextConfig, Gemma3ForCausalLM, GEMMA_NAMES | HEAD_NORMS, windowed=True, norm_offset=1,
                          two_ropes=True, settings=lambda fields: {"query_pre_attn_scalar": fields.get("attention.key_length")}),
    "smollm3": Family("smollm3", SmolLM3Config, SmolLM3ForCausalLM, interleaved=True),
}


def of_file(fields):
    """The family of a GGUF file, from its metadata (hf_model.Fields)."""
    for family in FAMILIES.values():
        if family.architecture == fields.architecture and family.windowed == ("attention.sliding_window" in fields):
            return family
    raise ValueError(f"architecture {fields.architecture} is not converted here")
