"""bounded_keys.py: `softprompt train --max-logit`: scores of the trained prompt's keys, from the queries that transformers' own attention is
given behind PEFT's prefix, in f64.

    python tests/oracle/bounded_keys.py tiny
    python tests/oracle/bounded_keys.py tiny mistral  # those whose name begins so
"""

import json
import math
import os
import subprocess
import sys
import tempfile

import numpy as np
import peft
import torch

import audit  # registers the attention "probe", which remembers what it was given
import hf_model
import softprompt
from engine import report
from keys_values import check_logits, our_logits, peft_logits

# Keys in one order and another, norms of heads, windows shorter than the texts, heads that turn in part, soft caps.
NAMES = ("tied", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gpt_neox")
N_VIRTUAL, R, INSIDE, EQUAL = 9, 0.7, 1e-5, 1e-3


def write_texts(path, texts):
    with open(path, "w") as f:
        f.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return path


def train(model, data, held_out, directory, method, *flags):
    """-> the report's key_bound, or None"""
    command = [audit.PROGRAM, "train", "-m", model, "-d", data, "-e", held_out, "-o", directory, "--method", method, "--json", "-q",
               "--num-virtual-tokens", str(N_VIRTUAL), "--steps", "12", "--batch-size", "3", "--learning-rate", "0.05", "--eval-every", "6"]
    return json.loads(subprocess.run(command + list(flags), check=True, capture_output=True, text=True).stdout)["key_bound"]


def queries_of(base, directory, texts):
    """(layer, kv head) -> queries (n, d) of rows that see a key of the prompt; what scores are multiplied by"""
    theirs, found = peft.PeftModel.from_pretrained(base, directory), {}
    theirs.base_model.set_attn_implementation("probe")
    for tokens in texts:
        audit.Seen.calls = []
        with torch.no_grad():
            theirs(input_ids=torch.tensor([tokens]))
        for layer, seen in enumerate(audit.Seen.calls):
            total, n_rows = N_VIRTUAL + len(tokens), seen.q.shape[1]
            first = [int(row.nonzero()[0, 0]) + total - seen.mask.shape[1] for row in seen.mask]  # that each row sees
            rows = [row for row in range(n_rows) if first[row] < N_VIRTUAL]
            group = len(seen.q) // len(seen.k)
            for h in range(len(seen.k)):
                found.setdefault((layer, h), []).append(seen.q[h * group:(h + 1) * group, rows].flatten(0, 1))
            scaling = seen.scaling
    return {head: torch.cat(queries) for head, queries in found.items()}, scaling


def figures(keys, queries, scaling, rank):
    """The largest score, its bound by Cauchy and Schwarz in the keys' own directions, entries (of full rank), over heads; and what lies
    outside `rank` directions, relative."""
    score = bound = entries = outside = 0.0
    n_inside = 0
    for (layer, h), q in queries.items():
        x = keys[:, layer, h] - keys[:, layer, h].mean(0)
        _, values, directions = torch.linalg.svd(x, full_matrices=False)
        u = directions[:rank] if rank < x.shape[1] else torch.eye(x.shape[1], dtype=torch.float64)
        own = scaling * (q @ x.T).abs().max().item() if len(q) else 0
        score, n_inside = max(score, own), n_inside + (own <= math.log(N_VIRTUAL))
        outside = max(outside, (values[rank:].max() / keys[:, layer, h].abs().max()).item() if len(values) > rank else 0)
        if len(q):
            bound = max(bound, scaling * (q @ u.T).norm(dim=1).max().item() * x.norm(dim=1).max().item())
            entries = max(entries, math.sqrt(rank * scaling * q.abs().max() * x.abs().max()))
    return score, bound, entries, outside, n_inside


def check(name, path, method, rank, texts, held_out, directory):
    base, model = hf_model.load(path), softprompt.Model(path)
    n_kv, n_head = base.config.num_key_value_heads, base.config.num_attention_heads
    d_head = getattr(base.config, "head_dim", None) or base.config.hidden_size // n_head
    rank = min(rank, d_head)
    data, other = (write_texts(os.path.join(directory, n), t) for n, t in (("train.jsonl", texts), ("valid.jsonl", held_out)))
    tokens, others = ([model.tokenize(text)[:-1] for text in t] for t in (texts, held_out))  # the last one is predicted, and not read
    results = {}
    for what, flags in {"bounded": ("--max-logit", str(R), "--key-rank", str(rank)), "free": ()}.items():
        where = os.path.join(directory, f"{method} {rank} {what}")
        results[what] = where, train(path, data, other, where, method, *flags)
    where, told = results["bounded"]
    keys = audit.prefix_keys(audit.prefix_matrix(where), base.config.num_hidden_layers, n_kv, d_head)
    queries, scaling = queries_of(hf_model.load(path), where, tokens)
    score, bound, _, outside, _ = figures(keys, queries, scaling, rank)
    good = report(f"{name}, {method}, rank {rank}: scores of training queries, of R", score / R, 1 + INSIDE)
    good &= report("    their bound", bound / R, 1 + INSIDE)
    good &= report("    the bound that is told, less what it is", abs(told["training_bound"] / bound - 1), EQUAL)
    good &= report("    keys outside of so many directions", outside, 1e-6)
    with open(os.path.join(where, "softprompt.json")) as f:
        saved = json.load(f)["method"]["key_bound"]
    assert saved.keys() == told.keys(), (saved, told)
    good &= report("    softprompt.json says the same", max(abs(saved[key] - told[key]) for key in told), 1e-9)

    free_queries, _ = queries_of(hf_model.load(path), results["free"][0], tokens)
    free_keys = audit.prefix_keys(audit.prefix_matrix(results["free"][0]), base.config.num_hidden_layers, n_kv, d_head)
    good &= report("    (and it matters: R / scores without it)", R / figures(free_keys, free_queries, scaling, rank)[0], 0.8)

    queries, _ = queries_of(hf_model.load(path), where, others)
    score, bound, entries, _, n_inside = figures(keys, queries, scaling, rank)
    good &= report("    on other texts: scores told", abs(told["score"] / score - 1), EQUAL)
    good &= report("    bound", abs(told["bound"] / bound - 1), EQUAL)
    if rank == d_head:
        good &= report("    entries", abs(told["entries"] / entries - 1), EQUAL)
    good &= report("    heads, those inside, tokens", (told["n_heads"], told["n_scores_inside"], told["n_rows"]) !=
                   (len(queries), n_inside, sum(map(len, others))), 0)

    theirs = peft.PeftModel.from_pretrained(base, where)
    return good & check_logits("    in PEFT", our_logits(model, softprompt.Prompt(where), tokens[0]), peft_logits(theirs.eval(), tokens[0]))


def tiny(beginning=""):
    rng, good = np.random.default_rng(11), True
    with tempfile.TemporaryDirectory() as directory:
        for name in NAMES:
            if not name.startswith(beginning):
                continue
            path = hf_model.write_tiny(os.path.join(directory, "tiny.gguf"), **audit.TINY[name])
            texts, held_out = audit.random_texts(rng, 6, 16), audit.random_texts(rng, 3, 16)
            good &= check(name, path, "prefix", 3, texts, held_out, tempfile.mkdtemp(dir=directory))
            good &= check(name, path, "cartridge", 1000, texts, held_out, tempfile.mkdtemp(dir=directory))
    return good


if __name__ == "__main__":
    sys.exit(0 if {"tiny": tiny}[sys.argv[1]](*sys.argv[2:]) else 1)
