"""compiled.py: `softprompt compile`: what is said behind the moments of a prefix, against transformers with the prefix's keys and values
in its cache and its own attention, text starting at the prompt's end or elsewhere.

    python tests/oracle/compiled.py tiny
    python tests/oracle/compiled.py tiny qwen3  # those whose name begins so
"""

import json
import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import peft
import torch
from transformers import DynamicCache

import audit
import hf_model
import softprompt
from engine import report
from keys_values import our_logits

# RoPE's pairs side by side in the file and apart, norms of heads, heads that turn in part.
NAMES, REFUSED = ("tied", "qwen3", "gpt_neox"), {"mistral": "window", "gemma2": "window"}
N_VIRTUAL, RANK, R = 23, 3, 1.5
LOGITS_TOLERANCE = 2e-3  # between engines, f32


def prefix(rng, config, spread):
    """(P, width) in PEFT's layout: keys of a head within RANK directions of their mean, values at large"""
    n_head = config.num_attention_heads
    n_kv, d = getattr(config, "num_key_value_heads", None) or n_head, getattr(config, "head_dim", None) or config.hidden_size // n_head
    rows = rng.standard_normal((N_VIRTUAL, config.num_hidden_layers, 2, n_kv, d)).astype(np.float32)
    for layer in range(config.num_hidden_layers):
        for h in range(n_kv):
            directions = np.linalg.qr(rng.standard_normal((d, RANK)))[0].T
            rows[:, layer, 0, h] = rng.standard_normal(d) + spread * rng.uniform(-1, 1, (N_VIRTUAL, RANK)) @ directions
    return rows


def write(directory, base, rows):
    adapter = peft.get_peft_model(base, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N_VIRTUAL))
    adapter.prompt_encoder["default"].embedding.weight.data = torch.from_numpy(rows.reshape(N_VIRTUAL, -1))
    adapter.save_pretrained(directory)


def their_logits(base, rows, tokens, text_position):
    cache, n = DynamicCache(), len(tokens)
    for layer in range(rows.shape[1]):
        keys, values = (torch.from_numpy(rows[:, layer, s].copy()).permute(1, 0, 2)[None] for s in (0, 1))
        cache.update(keys, values, layer)
    positions = torch.arange(text_position, text_position + n)[None]
    with torch.no_grad():
        return base(input_ids=torch.tensor([tokens]), past_key_values=cache, position_ids=positions,
                    attention_mask=torch.ones(1, N_VIRTUAL + n, dtype=torch.long)).logits[0].numpy()


def compile_prompt(model, source, directory, *flags):
    command = [audit.PROGRAM, "compile", "-m", model, "-p", source, "-o", directory, "--max-logit", str(R), "--json", "-q", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


def check(name, path, rng, directory):
    base, model, good = hf_model.load(path), softprompt.Model(path), True
    tokens = rng.integers(0, model.n_vocab, 50).tolist()
    rows = prefix(rng, base.config, 0.2)
    source = os.path.join(directory, "prefix")
    write(source, hf_model.load(path), rows)
    for position in (N_VIRTUAL, 7, N_VIRTUAL + 40):
        there = their_logits(base, rows, tokens, position)
        for epsilon, tolerance in ("1e-6", LOGITS_TOLERANCE), ("1e-2", 0.3):
            compiled = os.path.join(directory, f"compiled {position} {epsilon}")
            told = compile_prompt(path, source, compiled, "--epsilon", epsilon, "--text-position", str(position))
            here = our_logits(model, softprompt.Prompt(compiled), tokens)
            good &= report(f"{name}: text from {position}, epsilon {epsilon}, degree {told['degree']}: logits",
                           float(np.abs(here - there).max()), tolerance)
            good &= report("    keys of another rank", told["rank"] != RANK, 0)
    without = our_logits(model, None, tokens)
    good &= report("    (and it matters: 1 / difference without it)", 1 / float(np.abs(without - there).max()), 10)
    good &= report("    (and where text starts)", 1 / float(np.abs(their_logits(base, rows, tokens, 7) - there).max()), 1000)
    return good


def tiny(beginning=""):
    rng, good = np.random.default_rng(5), True
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "tiny.gguf")
        for name in NAMES:
            if name.startswith(beginning):
                hf_model.write_tiny(path, **audit.TINY[name])
                good &= check(name, path, rng, tempfile.mkdtemp(dir=directory))
        for name, reason in REFUSED.items():
            if name.startswith(beginning):
                hf_model.write_tiny(path, **audit.TINY[name])
                where = tempfile.mkdtemp(dir=directory)
                write(where, hf_model.load(path), prefix(rng, hf_model.load(path).config, 0.2))
                answer = compile_prompt(path, where, os.path.join(where, "compiled"))
                good &= report(f"{name}: refused by name", not (isinstance(answer, str) and reason in answer), 0)
    return good


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(0 if {"tiny": tiny}[sys.argv[1]](*sys.argv[2:]) else 1)
