"""generation.py: greedy continuations on SmolLM2-135M against transformers, with and without a soft prompt.

20 beginnings of real text, 64 new tokens each. Where the two part, the two tokens must be tied: their logits in transformers
within 1e-3 of each other; what comes behind a tie is not compared.
"""

import os
import sys

import numpy as np
import torch

import engine
import hf_model
import softprompt

N_PROMPTS, N_NEW, TIE = 20, 64, 1e-3


def beginnings():
    tokens = engine.news_tokens(N_PROMPTS * 40)
    return [tokens[40 * i:40 * i + 4 + i] for i in range(N_PROMPTS)]


def greedy_reference(model, prompt, tokens, n_new):
    """Tokens, and the logits that each was chosen from."""
    embed = model.get_input_embeddings()
    embeddings, past, out, rows = embed(torch.tensor([tokens])), None, [], []
    if prompt is not None:
        embeddings = torch.cat([torch.from_numpy(prompt)[None], embeddings], 1)
    for _ in range(n_new):
        with torch.no_grad():
            result = model(inputs_embeds=embeddings, past_key_values=past, use_cache=True)
        past, logits = result.past_key_values, result.logits[0, -1]
        rows.append(logits.numpy())
        out.append(int(logits.argmax()))
        if out[-1] == model.config.eos_token_id:
            break
        embeddings = embed(torch.tensor([[out[-1]]]))
    return out, rows


def compare(ours, theirs, rows):
    """-> compared tokens, and the margin at the first difference (None where there is none)"""
    for i, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            return i, float(rows[i][b] - rows[i][a])
    return min(len(ours), len(theirs)), None if len(ours) == len(theirs) else float("inf")


def main():
    reference, model = hf_model.load(hf_model.SMOLLM2), softprompt.Model(hf_model.SMOLLM2)
    rng = np.random.default_rng(17)
    vocabulary = reference.get_input_embeddings().weight.numpy()
    good, n_compared, n_ties = True, 0, 0
    for kind, matrix in (("without a prompt", None), ("with a prompt of 16", vocabulary[rng.integers(0, len(vocabulary), 16)])):
        prompt = None if matrix is None else softprompt.Prompt(matrix)
        for i, tokens in enumerate(beginnings()):
            ours, _, _ = softprompt.Session(model, prompt).generate(tokens, max_new_tokens=N_NEW)
            theirs, rows = greedy_reference(reference, matrix, tokens, N_NEW)
            n, margin = compare(ours, theirs, rows)
            n_compared += n
            n_ties += margin is not None
            if margin is not None and margin > TIE:
                print(f"FAIL {kind}, beginning {i}: token {n} is {ours[n:n + 1]}, transformers says {theirs[n:n + 1]}, margin {margin}")
                good = False
    print(f"{'ok' if good else 'FAIL'}: {n_compared} greedy tokens of {2 * N_PROMPTS} continuations equal, {n_ties} ended at a tie below {TIE}")
    return good


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
