"""softprompt_worker.py: a growing text in the built library, through the binding of the oracle tests."""

import os
import time

import numpy as np

import softprompt
import worker

UNSUPPORTED = "status 4: "  # sp_status of a well-formed model that the library does not run
state = {}


def load(model, n_threads, compute, adapter=None):
    """-> {"refused": why the library does not run this model, or null}"""
    try:
        state["model"] = softprompt.Model(model, n_threads=n_threads, compute={"f32": 1, "bf16": 2}[compute])
        state["session"] = softprompt.Session(state["model"], adapter and softprompt.Prompt(adapter))
    except softprompt.Error as error:
        if not str(error).startswith(UNSUPPORTED):
            raise
        return {"refused": str(error).removeprefix(UNSUPPORTED)}
    return {"refused": None}


def prefill(tokens):
    session = state["session"]
    session.rewind(0)
    begin = time.perf_counter()
    state["logits"] = session.append(tokens)
    return {"seconds": time.perf_counter() - begin}


def time_decoding(session, tokens):
    """Seconds of the tokens one by one; then they are forgotten."""
    n_before = softprompt.lib.sp_session_n_tokens(session.handle)
    begin = time.perf_counter()
    for token in tokens:
        session.append([token])
    seconds = time.perf_counter() - begin
    session.rewind(n_before)
    return {"seconds": seconds}


def decode(tokens):
    return time_decoding(state["session"], tokens)


def answer(template, texts, labels):
    """The texts one by one: milliseconds from the text to the probabilities of the labels (a token each), and their logarithms.
    The beginning that all texts in the template share is computed once, before, and its keys and values are kept."""
    model, session = state["model"], state["session"]
    candidates = {label: model.tokenize(f" {label}")[0] for label in labels}

    def encode(text):
        return model.tokenize(template.replace("{text}", text), softprompt.ADD_BOS | softprompt.PARSE_SPECIAL)

    shared = os.path.commonprefix([encode(text) for text in texts])
    session.rewind(0)
    if shared:
        session.append(shared)
    milliseconds, logprobs = [], []
    for text in texts:
        begin = time.perf_counter()
        found = log_softmax(session.append(encode(text)[len(shared):]))
        milliseconds.append(1000 * (time.perf_counter() - begin))
        logprobs.append({label: float(found[token]) for label, token in candidates.items()})
        session.rewind(len(shared))
    return {"milliseconds": milliseconds, "logprobs": logprobs, "shared_tokens": len(shared)}


def log_softmax(logits):
    logits = logits.astype(np.float64) - logits.max()
    return logits - np.log(np.exp(logits).sum())


def compare(path):
    """Kullback-Leibler divergence, in nats, of the peer's prediction (logits in a file) from ours, behind the last prefill."""
    mine, theirs = log_softmax(state["logits"]), log_softmax(np.load(path))
    return {"kl": float((np.exp(mine) * (mine - theirs)).sum())}


if __name__ == "__main__":
    worker.serve({"load": load, "prefill": prefill, "decode": decode, "compare": compare, "answer": answer})
