"""generation.py: greedy continuations on SmolLM2-135M against transformers, with and without a soft prompt.

20 beginnings of real text, 64 new tokens each. Each token of ours must be transformers' choice behind the ones before it, or tied
with it: their logits there within 1e-3 of each other.
"""

import os
import sys

import numpy as np
import torch

import engine
import hf_model
import softprompt

N_BEGINNINGS, N_NEW, TIE = 20, 64, 1e-3


def beginnings():
    tokens = engine.news_tokens(N_BEGINNINGS * 40)
    return [tokens[40 * i:40 * i + 4 + i] for i in range(N_BEGINNINGS)]


def reference_logits(model, prompt, tokens, generated):
    """What each generated token was to be chosen from: logits (n, n_vocab) behind those before it."""
    embeddings = model.get_input_embeddings()(torch.tensor([tokens + generated[:-1]]))
    if prompt is not None:
        embeddings = torch.cat([torch.from_numpy(prompt)[None], embeddings], 1)
    with torch.no_grad():
        return model(inputs_embeds=embeddings).logits[0, -len(generated):]


class Judge:
    """Of greedy continuations, token by token."""

    def __init__(self, n_new, eos):
        self.n_new, self.eos, self.good, self.n, self.n_equal, self.n_tied = n_new, eos, True, 0, 0, 0

    def fail(self, what):
        print(f"FAIL continuation {self.n}: {what}")
        self.good = False

    def take(self, generated, logits):
        """logits (n, n_vocab): what each token was to be chosen from."""
        margins = logits.max(1).values - logits[range(len(generated)), generated]
        self.n += 1
        self.n_equal += int((margins == 0).sum())
        self.n_tied += int(((margins > 0) & (margins <= TIE)).sum())
        for at in (margins > TIE).nonzero()[:1, 0].tolist():
            self.fail(f"token {at} is {generated[at]}, the reference says {int(logits[at].argmax())}, by {float(margins[at])}")
        if self.eos in generated[:-1] or (len(generated) != self.n_new and generated[-1:] != [self.eos]):
            self.fail(f"ends after {len(generated)} tokens with {generated[-1:]}")

    def report(self):
        print(f"{'ok  ' if self.good else 'FAIL'} {self.n_equal} greedy tokens of {self.n} continuations equal, {self.n_tied} tied within "
              f"{TIE}", flush=True)
        return self.good


def main():
    reference, model = hf_model.load(hf_model.SMOLLM2), softprompt.Model(hf_model.SMOLLM2)
    rng = np.random.default_rng(17)
    vocabulary = reference.get_input_embeddings().weight.numpy()
    judge = Judge(N_NEW, reference.config.eos_token_id)
    for matrix in (None, vocabulary[rng.integers(0, len(vocabulary), 16)]):
        prompt = None if matrix is None else softprompt.Prompt(matrix)
        for tokens in beginnings():
            generated, _, _ = softprompt.Session(model, prompt).generate(tokens, max_new_tokens=N_NEW)
            judge.take(generated, reference_logits(reference, matrix, tokens, generated))
    return judge.report()


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
