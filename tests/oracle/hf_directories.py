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

import subprocess

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import engine
import families
import hf_model
import peft_smollm2
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


def older_neox(config):
    """RoPE's share of a head and its base under gpt_neox's own names."""
    parameters = config.pop("rope_parameters")
    config["rotary_pct"], config["rotary_emb_base"] = parameters["partial_rotary_factor"], parameters["rope_theta"]
    config["torch_dtype"] = config.pop("dtype", None)
    config.pop("partial_rotary_factor", None)
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
    "gemma2, bf16, shards": dict(family="gemma2", num_hidden_layers=5, head_dim=24, query_pre_attn_scalar=24, sliding_window=6,
                                 attn_logit_softcapping=1.5, final_logit_softcapping=4.0, dtype="bf16", shards="50KB"),
    "gemma2, no caps": dict(family="gemma2", num_hidden_layers=3, head_dim=24, query_pre_attn_scalar=24, sliding_window=6,
                            attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma2, silent config": dict(family="gemma2", num_hidden_layers=4, head_dim=256, query_pre_attn_scalar=256, num_attention_heads=8,
                                  num_key_value_heads=4, hidden_size=96, rms_norm_eps=1e-6, max_position_embeddings=8192,
                                  sliding_window=4096, config=silent),
    "phi3, f16, shards": dict(family="phi3", sliding_window=7, tie_word_embeddings=False, dtype="f16", shards="40KB"),
    "phi3, longrope": dict(family="phi3", rope="longrope", sliding_window=None, partial_rotary_factor=0.75,
                           max_position_embeddings=256, original_max_position_embeddings=128),
    "phi3, silent config": dict(family="phi3", rms_norm_eps=1e-5, max_position_embeddings=4096, tie_word_embeddings=False,
                                num_key_value_heads=4, sliding_window=None, config=silent),
    "gpt2, f16": dict(family="gpt2", num_key_value_heads=4, dtype="f16"),
    "gpt2, bf16, shards": dict(family="gpt2", num_key_value_heads=4, dtype="bf16", shards="40KB"),
    "gpt2, silent config": dict(family="gpt2", num_attention_heads=12, num_key_value_heads=12, hidden_size=96, head_dim=8,
                                intermediate_size=384, max_position_embeddings=1024, config=silent),
    "gpt_neox, bf16, shards": dict(family="gpt_neox", num_key_value_heads=4, partial_rotary_factor=0.25, tie_word_embeddings=False,
                                   dtype="bf16", shards="40KB"),
    "gpt_neox, one block behind the other, older config": dict(family="gpt_neox", num_key_value_heads=4, partial_rotary_factor=0.5,
                                                               use_parallel_residual=False, config=older_neox),
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


# ---- SmolLM2-135M ----


def greedy(path, beginning):
    said = subprocess.run([peft_smollm2.PROGRAM, "run", "-m", path, "--raw", "--json", "--max-new-tokens", "40", beginning], check=True,
                          capture_output=True, text=True)
    return json.loads(said.stdout)["tokens"]


def smollm2():
    """The directory against transformers, against the GGUF file of the same weights, and with adapters of PEFT."""
    directory, tokens = hf_model.hf_directory(), engine.news_tokens(300)
    there, model = hf_model.load(hf_model.SMOLLM2), softprompt.Model(directory)
    good = engine.smollm2_logits(there, model) & engine.smollm2_gradients(there, model, sizes=(1, 32))
    ours, file = (softprompt.Session(m).append_all(tokens) for m in (model, softprompt.Model(hf_model.SMOLLM2)))
    good &= report("directory and GGUF file, logits", float(np.abs(ours - file).max()), 1e-3)
    beginnings = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "Dear Sir or Madam,\n"]
    different = sum(greedy(directory, text) != greedy(hf_model.SMOLLM2, text) for text in beginnings)
    good &= report(f"greedy continuations of {len(beginnings)} that differ", different, 0)
    return good & peft_smollm2.main(directory)


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(0 if {"tiny": tiny, "smollm2": smollm2}[sys.argv[1]](*sys.argv[2:]) else 1)
