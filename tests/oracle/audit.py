"""audit.py: every figure of `softprompt audit --json`, computed again in torch from the queries and keys that transformers' own
attention is given, in f64: which keys a row sees is read off the mask that transformers makes.

    python tests/oracle/audit.py tiny
    python tests/oracle/audit.py tiny gemma2  # those whose name begins so
    python tests/oracle/audit.py smollm2
"""

import json
import math
import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # PEFT looks for the base model on the hub when it saves

import mpmath
import numpy as np
import peft
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import engine
import hf_model
import keys_values
import remez
import softprompt
from engine import report

PROGRAM = os.environ.get("SOFTPROMPT_PROGRAM") or os.path.join(softprompt.ROOT, "build", "softprompt")
TOLERANCE = 1e-3
# An entropy near 0 is that of a weight near 1 and of others that are exp of a score far below: as exact as f32's scores are, and no
# more. From this many nats on the difference is relative, below it is to this.
LEAST = {"entropy": 1e-3}
FIGURES = ("max_entry_q", "max_entry_k", "max_score", "max_score_centred", "cauchy_schwarz", "criterion", "entries_ratio", "scores_ratio",
           "entropy", "sink_mass", "prompt_mass")

TINY = {  # models of engine.py, by name
    name: engine.TINY[name] for name in (
        "tied", "f16", "biases", "llama3 rope", "qwen2", "qwen3", "mistral", "mistral, f16", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox",
        "smollm3")
}


# ---- queries and keys as transformers' attention gets them ----


class Seen:
    """One call of a layer's attention: q (heads, rows, d), k (kv heads, keys, d), mask (rows, keys), what scores are multiplied by, cap."""

    calls = []

    def __init__(self, q, k, mask, scaling, softcap):
        self.q, self.k, self.mask, self.scaling, self.softcap = q[0].double(), k[0].double(), mask, scaling, softcap


def probe(module, query, key, value, attention_mask, scaling=None, softcap=None, **kwargs):
    """Plain attention, as transformers' eager one, that remembers what it was given."""
    rows, keys, scaling = query.shape[2], key.shape[2], query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    if attention_mask is not None:
        mask = attention_mask[0, 0, :, :keys] > -1
    Seen.calls.append(Seen(query, key, mask, scaling, softcap))
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), weights


ALL_ATTENTION_FUNCTIONS.register("probe", probe)
ALL_MASK_ATTENTION_FUNCTIONS.register("probe", eager_mask)


# ---- the figures, from their definitions ----


class Head:
    """What is gathered of one head over rows."""

    def __init__(self):
        self.maxima = dict.fromkeys(FIGURES[:5], 0.0)
        self.entries_ratio = self.scores_ratio = 0.0
        self.n_keys = 0
        self.entropies, self.sinks, self.prompts = [], [], []

    def note(self, q, k, position, scaling, softcap, n_prompt, only_maxima):
        """One row: q (d), k (n, d), the keys that it sees, of which the first stands at `position`."""
        n, d = k.shape
        scale = (d * scaling) ** 0.5
        centred_keys = k - k.mean(0)
        scores, centred = scaling * (k @ q), scaling * (centred_keys @ q)
        found = (q.abs().max() * scale, k.abs().max() * scale, scores.abs().max(), centred.abs().max(),
                 scaling * q.norm() * centred_keys.norm(dim=1).max())
        for name, value in zip(FIGURES[:5], found):
            self.maxima[name] = max(self.maxima[name], value.item())
        if n > 1:
            ratio = max(found[0], found[1]).item() / math.sqrt(math.log(n))
            if ratio > self.entries_ratio:
                self.entries_ratio, self.n_keys = ratio, n
            self.scores_ratio = max(self.scores_ratio, found[3].item() / math.log(n))
        if only_maxima:
            return
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.softmax(0)
        self.entropies.append(-torch.special.xlogy(weights, weights).sum().item())
        self.sinks.append(weights[0].item() if position == 0 else 0.0)
        self.prompts.append(weights[:max(0, n_prompt - position)].sum().item())

    def result(self):
        verdict = "inside" if self.entries_ratio <= 1 else "scores" if self.scores_ratio <= 1 else "beyond"
        criterion = math.sqrt(math.log(self.n_keys)) if self.n_keys else None
        return self.maxima | {"criterion": criterion, "n_keys": self.n_keys, "entries_ratio": self.entries_ratio,
                              "scores_ratio": self.scores_ratio, "verdict": verdict, "entropy": np.mean(self.entropies),
                              "sink_mass": np.mean(self.sinks), "prompt_mass": np.mean(self.prompts)}


def gather(heads, calls, n_prompt, with_prompt_rows):
    """heads (layers, heads) += one forward pass."""
    for layer, seen in enumerate(calls):
        n_head, n_rows = seen.q.shape[:2]
        total = int(calls[0].mask.shape[1]) if n_rows == calls[0].mask.shape[1] else n_prompt + n_rows
        for row in range(n_rows):
            position = total - n_rows + row
            if position < n_prompt and not with_prompt_rows:
                continue
            visible = seen.mask[row].nonzero()[:, 0]
            first = int(visible[0]) + total - seen.mask.shape[1]  # caches of windows drop the keys that no row sees any more
            for h in range(n_head):
                k = seen.k[h // (n_head // len(seen.k)), visible]
                heads[layer][h].note(seen.q[h, row], k, first, seen.scaling, seen.softcap, n_prompt, position < n_prompt)


def prefix_keys(matrix, n_layer, n_kv, d_head):
    """(P, layers, kv heads, d_head) in f64"""
    return matrix.double().reshape(len(matrix), n_layer, 2, n_kv, d_head)[:, :, 0]


def rank_99(keys):
    """keys (P, d) about their mean"""
    energy = torch.linalg.svdvals(keys - keys.mean(0)).square()
    if len(keys) == 1:
        return 0
    return int((energy.cumsum(0) < 0.99 * energy.sum()).sum()) + 1


# ---- comparison ----


def run_audit(path, data, prompt, *flags):
    command = [PROGRAM, "audit", "-m", path, "-d", data, "--json", "-q", *flags] + (["-p", prompt] if prompt else [])
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def check_degree(head, epsilon, capped):
    """By mpmath: the degree keeps epsilon, the one below does not."""
    if head["degree"] is None:
        assert capped or head["max_score_centred"] > 8.9, head  # 9.08 is the widest range of degree 16 at 1e-3
        return 0
    rho, degree = mpmath.mpf(head["max_score_centred"]), head["degree"]
    assert remez.best_error(degree, rho) <= epsilon * (1 + 1e-9), head
    assert degree == 0 or remez.best_error(degree - 1, rho) > epsilon * (1 - 1e-9), head
    return 1


def compare(what, ours, heads, ranks, d_head, n_degrees):
    worst, n_wrong, good = dict.fromkeys(FIGURES, 0.0), 0, True
    n_layer, n_head = len(heads), len(heads[0])
    assert [(h["layer"], h["head"]) for h in ours["heads"]] == [(l, h) for l in range(n_layer) for h in range(n_head)]
    for head in ours["heads"]:
        theirs = heads[head["layer"]][head["head"]].result()
        for name in FIGURES:
            if theirs[name] is None or (name == "prompt_mass" and theirs[name] == 0):
                n_wrong += head[name] not in (None, 0)
                continue
            worst[name] = max(worst[name], abs(head[name] - theirs[name]) / max(abs(theirs[name]), LEAST.get(name, 1e-6)))
        wrong = (head["n_keys"] != theirs["n_keys"]) + (head["verdict"] != theirs["verdict"])
        wrong += head["key_rank_99"] != (ranks[head["layer"]][head["head"] * len(ranks[0]) // n_head] if ranks else None)
        if head["degree"] is not None:
            features = math.comb(d_head + head["degree"], head["degree"])
            wrong += head["features"] != (features if features < 2**64 else None)
            wrong += head["features"] and abs(head["cost_ratio"] - ours["n"] * (2 * d_head + 1) / (2 * features * (d_head + 1))) > 1e-9
        n_wrong += wrong
    good &= report(f"{what}: worst figure ({max(worst, key=worst.get)})", max(worst.values()), TOLERANCE)
    good &= report("    heads whose keys, rank, features or verdict differ", n_wrong, 0)
    capped = any(seen.softcap is not None for seen in Seen.calls)
    n_checked = sum(check_degree(head, 1e-3, capped) for head in ours["heads"][:n_degrees])
    print(f"    {n_checked} degrees of {min(n_degrees, len(ours['heads']))} judged by mpmath; verdicts "
          f"{ {v: sum(h['verdict'] == v for h in ours['heads']) for v in ('inside', 'scores', 'beyond')} }")
    return good


def reference(model, texts, n_layer, n_head, forward, n_prompt, with_prompt_rows=False):
    heads = [[Head() for _ in range(n_head)] for _ in range(n_layer)]
    for tokens in texts:
        Seen.calls = []
        with torch.no_grad():
            forward(tokens)
        assert len(Seen.calls) == n_layer
        gather(heads, Seen.calls, n_prompt, with_prompt_rows)
    return heads


def prefix_matrix(directory):
    """(P, layers * 2 * kv heads * d_head)"""
    prompt = softprompt.Prompt(directory)  # which its values belong to
    return torch.from_numpy(prompt.values().copy())


# ---- the prompt's own report ----


def without(matrix, index):
    return torch.cat([matrix[:index], matrix[index + 1:]])


def nearest_differ(token, cosines):
    """Of the three that the audit names: how far their cosines are from the largest, and from what it says they are."""
    largest = cosines.topk(3).values
    ours = torch.tensor([n["cosine"] for n in token["nearest"]])
    theirs = cosines[[n["token"] for n in token["nearest"]]]
    return max((ours - largest).abs().max().item(), (theirs - largest).abs().max().item())


def check_embeddings(found, base, matrix):
    """Norms, those of the vocabulary, and the nearest tokens, by torch in f64."""
    table = base.get_input_embeddings()(torch.arange(base.config.vocab_size)).double()
    matrix, norms = matrix.double(), table.norm(dim=1)
    ordered, last = norms.sort().values, len(norms) - 1
    percentiles = [ordered[int(share * last)].item() for share in (0.05, 0.5, 0.95)]
    good = report("    norms of the vocabulary", max(abs(a / b - 1) for a, b in zip(found["vocabulary_norm"].values(), percentiles)), 1e-5)
    worst_norm = max(abs(token["norm"] / row.norm().item() - 1) for token, row in zip(found["virtual_tokens"], matrix))
    cosines = torch.nn.functional.normalize(matrix, dim=1) @ torch.nn.functional.normalize(table, dim=1).T
    worst = max(nearest_differ(token, row) for token, row in zip(found["virtual_tokens"], cosines))
    return good & report("    norms of virtual tokens", worst_norm, 1e-5) & report("    cosines of the nearest tokens", worst, 1e-5)


def check_keys_values(found, matrix, n_layer, n_kv):
    """Root mean squares over layers and heads of the norms of keys and of values."""
    norms = matrix.double().reshape(len(matrix), n_layer, 2, n_kv, -1).norm(dim=-1).square().mean((1, 3)).sqrt()
    pairs = [(token[key], norms[i, which].item()) for i, token in enumerate(found["virtual_tokens"])
             for which, key in enumerate(("key_norm", "value_norm"))]
    return report("    norms of keys and values", max(abs(ours / theirs - 1) for ours, theirs in pairs), 1e-5)


def losses_without(loss_of, matrix):
    """How much the loss rises without each row. loss_of(matrix)"""
    with torch.no_grad():
        whole = loss_of(matrix)
        return [(loss_of(without(matrix, i)) - whole).item() for i in range(len(matrix))]


def check_left_out(found, rises):
    ours = [token["left_out_loss"] for token in found["virtual_tokens"]]
    return report("    loss without each, nats", max(abs(a - b) for a, b in zip(ours, rises)), 2e-5 * max(1, *map(abs, rises)))


def prefix_loss(base, examples):
    """loss(keys and values), through PEFT, as a prefix of as many virtual tokens as there are rows"""

    def loss(matrix):
        model = peft.get_peft_model(base, keys_values.CONFIGS["PREFIX_TUNING"](len(matrix)))
        model.prompt_encoder["default"].load_prompt_embeddings(matrix)
        return keys_values.peft_loss(model.eval(), examples)

    return loss


def check_model(name, path, texts, prompts, n_degrees):
    """texts: strings, each a row of data; prompts: {what: matrix (P, d_model) or directory of keys and values}"""
    base = hf_model.load(path)
    base.set_attn_implementation("probe")
    config, model, good = base.config, softprompt.Model(path), True
    n_layer, n_head, n_kv = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_head
    tokens = [model.tokenize(text)[:-1] for text in texts]  # the last one is predicted, and not read
    with tempfile.TemporaryDirectory() as directory:
        data = os.path.join(directory, "texts.jsonl")
        with open(data, "w") as f:
            f.writelines(json.dumps({"text": text}) + "\n" for text in texts)

        heads = reference(base, tokens, n_layer, n_head, lambda t: base(input_ids=torch.tensor([t])), 0)
        ours = run_audit(path, data, None)
        good &= compare(f"{name}, no prompt", ours, heads, None, d_head, n_degrees)
        good &= report("    texts, rows and n", (ours["texts"], ours["rows"], ours["n"]) !=
                       (len(tokens), sum(map(len, tokens)), max(map(len, tokens))), 0)

        for what, prompt in prompts.items():
            examples = [(t, len(t) - 1) for t in (model.tokenize(text) for text in texts)]
            if isinstance(prompt, str):
                matrix = prefix_matrix(prompt)
                keys = prefix_keys(matrix, n_layer, n_kv, d_head)
                theirs = peft.PeftModel.from_pretrained(hf_model.load(path), prompt)
                theirs.base_model.set_attn_implementation("probe")
                heads = reference(theirs, tokens, n_layer, n_head, lambda t: theirs(input_ids=torch.tensor([t])), len(keys))
                ranks = [[rank_99(keys[:, l, h]) for h in range(n_kv)] for l in range(n_layer)]
                ours = run_audit(path, data, prompt)
                good &= compare(f"{name}, {what}", ours, heads, ranks, d_head, 1)
                good &= check_keys_values(ours["prompt"], matrix, n_layer, n_kv)
                good &= check_left_out(ours["prompt"], losses_without(prefix_loss(hf_model.load(path), examples), matrix))
                continue
            where = os.path.join(directory, what)
            os.mkdir(where)
            softprompt.write_adapter(where, prompt)
            rows = torch.from_numpy(prompt)

            def forward(t):
                return base(inputs_embeds=torch.cat([rows, base.get_input_embeddings()(torch.tensor(t))])[None])

            for flags in ((), ("--prompt-rows",)):
                heads = reference(base, tokens, n_layer, n_head, forward, len(rows), bool(flags))
                ranks = [[rank_99(k[:len(rows)]) for k in seen.k] for seen in Seen.calls]
                ours = run_audit(path, data, where, *flags)
                good &= compare(f"{name}, {what} {' '.join(flags)}", ours, heads, ranks, d_head, 1)
            good &= check_embeddings(ours["prompt"], base, rows)
            good &= check_left_out(ours["prompt"], losses_without(lambda matrix: engine.torch_loss(base, matrix, examples), rows))
    return good


WORDS = "the quick brown fox jumps over lazy dogs while seven wizards mix potent drinks and hum an old tune".split()


def random_texts(rng, n, longest):
    return [" ".join(rng.choice(WORDS, int(rng.integers(2, longest)))) for _ in range(n)]


def tiny(beginning=""):
    rng, good = np.random.default_rng(3), True
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        for name, options in TINY.items():
            if not name.startswith(beginning):
                continue
            path, prefix = hf_model.write_tiny(os.path.join(directory, "tiny.gguf"), **options), tempfile.mkdtemp(dir=directory)
            base = hf_model.load(path)
            peft.get_peft_model(base, keys_values.CONFIGS["PREFIX_TUNING"](5)).save_pretrained(prefix)
            embeddings = rng.standard_normal((4, base.get_input_embeddings().weight.shape[1])).astype(np.float32)
            good &= check_model(name, path, random_texts(rng, 4, 16), {"embeddings": embeddings, "prefix": prefix}, 3)
    return good


def check_labels(path, embeddings):
    """Divergence of the labels' probabilities without each virtual token: of reviews, against transformers'."""
    base, model, labels = hf_model.load(path), softprompt.Model(path), (" positive", " negative")
    texts = ["a gorgeous, witty, seductive movie", "dull", "the kind of film that one walks out of, were it not so cold outside"]
    contexts = [model.tokenize(f"Review: {text}\nSentiment:") for text in texts]
    answers = [model.tokenize(label)[-1:] for label in labels]

    def distributions(matrix):
        rows = [engine.torch_logits(base, matrix, context)[-1] for context in contexts]
        return torch.stack([row.double().log_softmax(0)[[answer[0] for answer in answers]].log_softmax(0) for row in rows])

    matrix = torch.from_numpy(embeddings)
    with torch.no_grad():
        full = distributions(matrix)
        theirs = [(full.exp() * (full - distributions(without(matrix, i)))).sum(1).mean().item() for i in range(len(matrix))]
    with tempfile.TemporaryDirectory() as directory:
        softprompt.write_adapter(directory, embeddings)
        data = os.path.join(directory, "reviews.jsonl")
        with open(data, "w") as f:
            f.writelines(json.dumps({"text": text, "label": "positive"}) + "\n" for text in texts)
        flags = [f"--verbalizer={label.strip()}={label}" for label in labels]
        found = run_audit(path, data, directory, "--template", "Review: {text}\nSentiment:", *flags)["prompt"]
    ours = [token["left_out_kl"] for token in found["virtual_tokens"]]
    print(f"    divergences from {min(theirs):.2g} to {max(theirs):.2g} nats")
    return report("SmolLM2, labels without each virtual token: divergence", max(abs(a - b) for a, b in zip(ours, theirs)) / max(theirs),
                  TOLERANCE)


def smollm2():
    """Reviews behind a prompt of the vocabulary's embeddings and behind a prefix of a text's keys and values, and a piece of news."""
    rng, base = np.random.default_rng(5), hf_model.load(hf_model.SMOLLM2)
    text = hf_model.load_tokenizer(hf_model.SMOLLM2).decode(engine.news_tokens(60))
    texts = [text, "Review: A gorgeous, witty, seductive movie.\nSentiment:", "Review: dull\nSentiment:"]
    embeddings = base.get_input_embeddings().weight.numpy()[rng.integers(0, base.config.vocab_size, 16)]
    with tempfile.TemporaryDirectory() as directory:
        cartridge = peft.get_peft_model(base, keys_values.CONFIGS["CARTRIDGE"](16))
        cartridge.prompt_encoder["default"].load_prompt_embeddings(keys_values.tokens_keys_values(hf_model.load(hf_model.SMOLLM2),
                                                                                                   engine.news_tokens(400)[-16:]))
        cartridge.save_pretrained(directory)
        good = check_model("SmolLM2", hf_model.SMOLLM2, texts, {"embeddings": embeddings, "keys and values": directory}, 12)
    return good & check_labels(hf_model.SMOLLM2, embeddings)


if __name__ == "__main__":
    sys.exit(0 if {"tiny": tiny, "smollm2": smollm2}[sys.argv[1]](*sys.argv[2:]) else 1)
