"""compiled_worker.py: decoding behind a long prefix in the built library: behind its keys, behind its moments, behind nothing."""

import time

import numpy as np

import softprompt
import softprompt_worker
import worker

CONTINUATION = 300  # a token that is appended again and again: decoding costs the same whatever it is
state = {"sessions": {}}


def load(model, n_threads, compute):
    state["model"] = softprompt.Model(model, n_threads=n_threads, compute={"f32": 1, "bf16": 2}[compute])


def add(name, adapter, text):
    """-> seconds to be ready, and what the tokens of `text` are worth behind it: their mean -ln p"""
    begin = time.perf_counter()
    session = state["sessions"][name] = softprompt.Session(state["model"], adapter and softprompt.Prompt(adapter))
    seconds = time.perf_counter() - begin
    tokens = state["model"].tokenize(text)
    logits = session.append_all(tokens).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    state[name] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return {"seconds": seconds, "n_tokens": len(tokens), "nll": float(-state[name][np.arange(len(tokens) - 1), tokens[1:]].mean())}


def compare(one, other):
    """Of what is predicted behind each token of the text: mean KL(one || other) in nats, the largest |difference| of ln p where p of
    either is at least 1e-4, how often both hold another token for the likeliest."""
    a, b = state[one], state[other]
    likely = np.maximum(a, b) > np.log(1e-4)
    return {"kl": float((np.exp(a) * (a - b)).sum(1).mean()), "logprob_difference": float(np.abs(a - b)[likely].max()),
            "disagree": float((a.argmax(1) != b.argmax(1)).mean())}


def decode(name, n):
    return softprompt_worker.time_decoding(state["sessions"][name], [CONTINUATION] * n)


if __name__ == "__main__":
    worker.serve({"load": load, "add": add, "compare": compare, "decode": decode})
