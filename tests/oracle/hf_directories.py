"""hf_directories.py: models as transformers saves them, config.json and safetensors, loaded here and there.

    python tests/oracle/hf_directories.py tiny        # a random model of each family, in three types, whole and in shards
    python tests/oracle/hf_directories.py tiny gemma  # those whose name begins so
    python tests/oracle/hf_directories.py smollm2     # SmolLM2-135M as a directory: logits, gradients, adapters of PEFT, text
"""

import json
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import engine
import families
import hf_model
import softprompt
from engine import report

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


# ---- config.json as others write it ----


def older(config):
    """As transformers 4 wrote it: RoPE in three settings, windows by a period."""
    parameters = config.pop("rope_parameters", None) or {}
    local = parameters.pop("sliding_attention", None)
    parameters = parameters.pop("full_attention", parameters)
    config["torch_dtype"] = config.pop("dtype", None)
    config["rope_theta"] = parameters.pop("rope_theta", None)
    kind = parameters.pop("rope_type", "default")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, "rope_type": kind, **parameters}
    if local:
        config["rope_local_base_freq"] = local["rope_theta"]
        config.pop("layer_types", None)
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
    return config


def silent(config):
    """Without what the configuration's class says anyway: what is read must have the same defaults."""
    defaults = families.FAMILIES[config["model_type"]].config().to_dict()
    return {key: value for key, value in config.items() if key == "model_type" or key not in defaults or value != defaults[key]}


# ---- tiny models ----

# Options of hf_model.tiny_model; dtype, shards (of so much), and how config.json is changed are this file's.
TINY = {
    "llama": {},
    "llama, untied, f16": dict(tie_word_embeddings=False, dtype="f16"),
    "llama, linear rope, older config": dict(rope="linear", config=older),
    "llama, llama3 rope, bf16, shards": dict(rope="llama3", dtype="bf16", shards="30KB", num_hidden_layers=4),
    "llama, llama3 rope, older config": dict(rope="llama3", config=older),
    "llama, yarn rope, f16": dict(rope="yarn", dtype="f16"),
    "llama, biases, shards": dict(attention_bias=True, shards="40KB"),
    "llama, silent config": dict(rms_norm_eps=1e-6, max_position_embeddings=2048, tie_word_embeddings=False, num_key_value_heads=4,
                                 config=silent),
    "mistral, bf16": dict(family="mistral", sliding_window=7, dtype="bf16"),
    "mistral, silent config": dict(family="mistral", rms_norm_eps=1e-6, tie_word_embeddings=False, num_attention_heads=8,
                                   num_key_value_heads=8, max_position_embeddings=131072, sliding_window=4096, config=silent),
    "qwen2, f16": dict(family="qwen2", dtype="f16"),
    "qwen2, silent config": dict(family="qwen2", rms_norm_eps=1e-6, max_position_embeddings=32768, tie_word_embeddings=False,
                                 config=silent),
    "qwen3, bf16, shards": dict(family="qwen3", head_dim=24, dtype="bf16", shards="50KB"),
    "qwen3, silent config": dict(family="qwen3", head_dim=128, rms_norm_eps=1e-6, max_position_embeddings=32768,
                                 tie_word_embeddings=False, config=silent),
    "smollm3, f16": dict(family="smollm3", num_hidden_layers=5, dtype="f16"),
    "smollm3, silent config": dict(family="smollm3", num_hidden_layers=4, rms_norm_eps=1e-6, rope_theta=2e6,
                                   max_position_embeddings=32768, config=silent),
    "gemma3_text, bf16": dict(family="gemma3_text", num_hidden_layers=7, head_dim=24, query_pre_attn_scalar=16, sliding_window=6,
                              rope_theta=1e6, dtype="bf16"),
    "gemma3_text, stretched, older config": dict(family="gemma3_text", num_hidden_layers=6, head_dim=32, query_pre_attn_scalar=32,
                                                 sliding_window=9, rope="linear", rope_theta=1e6, config=older),
    "gemma3_text, windows everywhere, untied": dict(family="gemma3_text", num_hidden_layers=3, head_dim=24,
                                                    query_pre_attn_scalar=24, sliding_window=5, tie_word_embeddings=False),
    "gemma3_text, silent config": dict(family="gemma3_text", num_hidden_layers=7, head_dim=256, query_pre_attn_scalar=256,
                                       num_attention_heads=8, num_key_value_heads=4, hidden_size=96, rms_norm_eps=1e-6,
                                       max_position_embeddings=131072, sliding_window=4096, rope_theta=1e6, config=silent),
}


def save(directory, model, tokenizer, dtype="f32", shards=None, config=None):
    """A transformers model and a tokenizer, as a user of transformers saves them."""
    model.to(TYPES[dtype]).save_pretrained(directory, **({"max_shard_size": shards} if shards else {}))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(directory)
    assert os.path.exists(os.path.join(directory, "model.safetensors")) == (shards is None), os.listdir(directory)
    if config:
        path = os.path.join(directory, "config.json")
        with open(path) as f:
            changed = config(json.load(f))
        with open(path, "w") as f:
            json.dump(changed, f)


def reference(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().requires_grad_(False)


def check_tiny(name, options):
    own = {key: options[key] for key in ("dtype", "shards", "config") if key in options}
    model = hf_model.tiny_model(**{key: value for key, value in options.items() if key not in own})
    print(f"  {name}")
    with tempfile.TemporaryDirectory() as directory:
        save(directory, model, hf_model.train_tokenizer(model.config.vocab_size), **own)
        return engine.check_engine(directory, reference(directory))[0]


def tiny(beginning=""):
    good = True
    for name, options in TINY.items():
        if name.startswith(beginning):
            good &= check_tiny(name, options)
    return good


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(0 if {"tiny": tiny}[sys.argv[1]](*sys.argv[2:]) else 1)
