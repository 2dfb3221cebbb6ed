"""bounded_keys.py: `softprompt train --max-logit`: scores of the trained prompt's keys, from the queries that transformers' own attention is
given behind PEFT's prefix, in f64.

    python tests/oracle/bounded_keys.py tiny
    python tests/oracle/bounded_keys.py tiny mistral     # those whose name begins so
    python tests/oracle/bounded_keys.py penalty          # keys that come from embeddings: the penalty, its gradient, what is told
    python tests/oracle/bounded_keys.py penalty mistral
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

import engine
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
    good &= report("    softprompt.json says the same", max(abs(saved[key] - told[key]) / max(abs(told[key]), 1) for key in told), 1e-9)

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


# ---- keys that come from embeddings ----

# No positions in keys, learned ones, and layers without RoPE beside those above.
PENALTY_NAMES = (*NAMES, "llama3 rope", "gpt2", "smollm3")
WEIGHT, GRADIENT, SLIGHT = 2.0, 1e-4, "1e-9"


def seen_of(base, prompt, tokens):
    """What each layer's attention is given of a text behind a prompt's rows."""
    audit.Seen.calls = []
    embeddings = base.get_input_embeddings()(torch.tensor([tokens]))
    base(inputs_embeds=torch.cat([prompt[None], embeddings], 1))
    return audit.Seen.calls


def text_queries(calls):
    """(layer, kv head) -> queries (n, d) of the text's rows that see a key of the prompt; what scores are multiplied by"""
    found = {}
    for layer, seen in enumerate(calls):
        first = [int(row.nonzero()[0, 0]) for row in seen.mask]
        rows = [row for row in range(N_VIRTUAL, seen.q.shape[1]) if first[row] < N_VIRTUAL]
        group = len(seen.q) // len(seen.k)
        for h in range(len(seen.k)):
            found[layer, h] = seen.q[h * group:(h + 1) * group, rows].flatten(0, 1)
    return found, calls[0].scaling


def torch_penalty(calls, norms, limit):
    """By its definition, of f64 keys that autograd follows to the prompt. norms: (layer, kv head) -> the largest scale |q|"""
    sums = 0
    for (layer, h), norm in norms.items():
        keys = calls[layer].k[h, :N_VIRTUAL]
        bounds = norm * (keys - keys.mean(0)).norm(dim=1)
        sums = sums + (bounds / limit - 1).clamp(min=0).square().sum()
    return sums / (len(norms) * N_VIRTUAL)


def check_penalty(base, model, prompt, rng):
    """The public call: some heads beyond, some inside, one that no query has seen."""
    n_layer, n_kv = base.config.num_hidden_layers, len(seen_of(base, prompt, [1])[0].k)
    norms = rng.uniform(0.3, 3, (n_layer, n_kv)).astype(np.float32)
    norms[0, 0] = 0
    good, tensor = True, prompt.clone().requires_grad_()
    for limit in (0.1, 5.0):
        tensor.grad = None
        theirs = torch_penalty(seen_of(base, tensor, [1]), {(l, h): float(norms[l, h]) for l in range(n_layer) for h in range(n_kv)}, limit)
        theirs.backward()
        ours, gradient = model.key_penalty(softprompt.Prompt(prompt.numpy()), norms, limit)
        good &= report(f"    penalty beyond {limit}", abs(ours / theirs.item() - 1), 1e-5)
        good &= report("    its gradient", engine.relative_error(gradient, tensor.grad.numpy()), GRADIENT)
    return good


def steps_of(directory):
    with open(os.path.join(directory, "log.jsonl")) as file:
        return [json.loads(line) for line in file]


def check_step(base, model, data, other, tokens, directory):
    """A step's loss and gradient, of a batch in two passes: its penalty counts once. Its learning rate is 0, so that what is written is
    what it began with."""
    where = os.path.join(directory, "one step")
    train(model, data, other, where, "prompt", "--max-logit", str(R), "--max-logit-weight", str(WEIGHT), "--steps", "1", "--warmup-steps", "1",
          "--gradient-accumulation-steps", "2")
    prompt, step = audit.prefix_matrix(where).requires_grad_(), steps_of(where)[0]
    queries = [text_queries(seen_of(base, prompt, text[:-1])) for text in tokens]
    norms = {head: max((scaling * q[head].norm(dim=1).max().item() for q, scaling in queries if len(q[head])), default=0.0) for head in queries[0][0]}
    penalty = WEIGHT * torch_penalty(seen_of(base, prompt, [1]), norms, R)
    loss = engine.torch_loss(base, prompt, [(text, len(text) - 1) for text in tokens])
    (loss + penalty).backward()
    good = report("    a step's loss", abs(step["loss"] / loss.item() - 1), 1e-5)
    good &= report("    penalty", abs(step["penalty"] / penalty.item() - 1), 1e-5)
    good &= report("    norm of the gradient of both", abs(step["grad_norm"] / prompt.grad.norm().item() - 1), GRADIENT)
    loss_gradient = torch.autograd.grad(engine.torch_loss(base, prompt, [(text, len(text) - 1) for text in tokens]), prompt)[0]
    return good & report("    (and it matters: of the loss alone, as a share)", (loss_gradient.norm() / prompt.grad.norm()).item(), 0.9)


def peft_figures(path, directory, texts, **inputs):
    """Queries of the texts and the prompt's keys behind it, as transformers' attention gets them from PEFT."""
    theirs = peft.PeftModel.from_pretrained(hf_model.load(path), directory).eval()
    theirs.base_model.set_attn_implementation("probe")
    queries = {}
    for tokens in texts:
        audit.Seen.calls = []
        with torch.no_grad():
            theirs(input_ids=torch.tensor([tokens]), **inputs)
        found, scaling = text_queries(audit.Seen.calls)
        for head, q in found.items():
            queries.setdefault(head, []).append(q)
    keys = torch.stack([seen.k[:, :N_VIRTUAL].transpose(0, 1) for seen in audit.Seen.calls], 1)
    return keys, {head: torch.cat(q) for head, q in queries.items()}, scaling


def check_told(path, data, other, tokens, others, method, flags, directory):
    """Trained with the penalty and without: what is told of both is so, and the first is less."""
    good, bounds = True, {}
    inputs = {"task_ids": torch.tensor([0])} if method == "multitask" else {}
    for what, weight in {"pressed": str(WEIGHT), "free": SLIGHT}.items():
        where = os.path.join(directory, f"{method} {what}")
        told = train(path, data, other, where, method, "--max-logit", str(R), "--max-logit-weight", weight, "--eval-every", "0", "--steps", "45",
                     "--warmup-steps", "3", *flags)
        keys, queries, scaling = peft_figures(path, where, others, **inputs)
        score, bound, entries, _, n_inside = figures(keys, queries, scaling, 1 << 20)
        bounds[what] = bound
        assert told["is_penalty"] and told["are_held_out"]
        good &= report(f"    {method}, {what}: scores told", abs(told["score"] / score - 1), EQUAL)
        good &= report("    bound", abs(told["bound"] / bound - 1), EQUAL)
        good &= report("    heads, those inside, tokens", (told["n_heads"], told["n_scores_inside"], told["n_rows"]) !=
                       (len(queries), n_inside, sum(map(len, others))), 0)
        own = figures(*peft_figures(path, where, tokens, **inputs), 1 << 20)[1]
        good &= report("    bound of the training's texts", abs(told["training_bound"] / own - 1), EQUAL)
        with open(os.path.join(where, "softprompt.json")) as f:
            saved = json.load(f)["method"]["key_bound"]
        assert saved.keys() == told.keys() and saved["is_penalty"], saved
        good &= report("    softprompt.json says the same", max(abs(saved[key] - told[key]) / max(abs(told[key]), 1) for key in told), 1e-9)
    return good & report(f"    {method}: the bound pressed, of the bound free", bounds["pressed"] / bounds["free"], 0.9)


def penalty(beginning=""):
    rng, good = np.random.default_rng(17), True
    with tempfile.TemporaryDirectory() as directory:
        for name in PENALTY_NAMES:
            if not name.startswith(beginning):
                continue
            print(f"  {name}", flush=True)
            path = hf_model.write_tiny(os.path.join(directory, "tiny.gguf"), **audit.TINY[name])
            base, model, here = hf_model.load(path), softprompt.Model(path), tempfile.mkdtemp(dir=directory)
            base.set_attn_implementation("probe")
            texts, held_out = audit.random_texts(rng, 6, 16), audit.random_texts(rng, 3, 16)
            data, other = (write_texts(os.path.join(here, n), t) for n, t in (("train.jsonl", texts), ("valid.jsonl", held_out)))
            whole, tokens, others = [model.tokenize(text) for text in texts], *([model.tokenize(t)[:-1] for t in ts] for ts in (texts, held_out))
            prompt = torch.from_numpy(rng.standard_normal((N_VIRTUAL, model.d_model)).astype(np.float32))
            good &= check_penalty(base, model, prompt, rng)
            good &= check_step(base, path, data, other, whole, here)
            methods = {"prompt": ()}
            if name == "qwen3":
                methods |= {"ptuning": ("--encoder-hidden-size", "24", "--learning-rate", "0.005"), "multitask": ("--num-tasks", "1")}
            for method, flags in methods.items():
                good &= check_told(path, data, other, tokens, others, method, flags, here)
    return good


if __name__ == "__main__":
    sys.exit(0 if {"tiny": tiny, "penalty": penalty}[sys.argv[1]](*sys.argv[2:]) else 1)
