"""inference.py: reading a text and writing on, against llama.cpp, on the same GGUF file and the same tokens.

Prefill: all of a context in one call, from an empty session to the logits behind its last token. Decode: DECODE_TOKENS given
tokens, one call each, behind a context; nothing is sampled on either side. Rounds alternate, figures are medians.

A row a model and context: prefill_tokens_per_second, decode_tokens_per_second, the peer's with peer_; null where not measured,
and null for us where the library refuses the model (the reason is in `refused`). kl: the divergence between the two
predictions behind the context; far apart is an error, since then they do not run the same model.
"""

import glob
import os

import common

PREFILL = (512, 2048)
DECODE = (1, 2048, 6144)
QUICK_PREFILL, QUICK_DECODE = (64,), (1, 64)
DECODE_TOKENS = 32
KL_TOLERANCE = 0.05  # nats; llama.cpp rounds activations to 8 bits and keys and values to 16

COLUMNS = (("model", "model"), ("context", "context"), ("prefill_tokens_per_second", "prefill"),
           ("peer_prefill_tokens_per_second", "llama.cpp's"), ("prefill_ratio", "ratio"), ("decode_tokens_per_second", "decode"),
           ("peer_decode_tokens_per_second", "llama.cpp's"), ("decode_ratio", "ratio"), ("peak_rss_gb", "GB"),
           ("peer_peak_rss_gb", "its GB"))


def find_models(options):
    """Those asked for; else SmolLM2, and Gemma 3 where somebody has put it into the cache: its terms are not ours to accept."""
    missing = [model for model in options.model or [] if not os.path.isfile(model)]
    if missing:
        raise common.Error(f"{missing[0]}: no such file; --model takes GGUF files")
    if options.model:
        return options.model
    gemma = sorted(glob.glob(os.path.join(common.CACHE, "models", "gemma-3-270m*.gguf")))
    if not gemma:
        common.note(f"{common.CACHE}/models/ holds no gemma-3-270m*.gguf: measured without it; --model FILE adds any GGUF file")
    return [common.SMOLLM2, *gemma]


def read_text():
    """English prose, more of it than the longest context takes."""
    path = os.path.join(common.CACHE, "hutto", "hutto_ICWSM_2014", "nytEditorialSnippets_GroundTruth.txt")
    with open(path, encoding="utf-8", errors="replace") as lines:
        return "\n".join(line.rstrip("\r\n").split("\t")[2] for line in lines if line.count("\t") >= 2)


def measure_context(ours, peer, tokens, context, options, work):
    """-> the row's figures. `ours` is None for a model that the library refuses."""
    sides = [side for side in (ours, peer) if side]
    prefills, decodes = {peer: [], ours: []}, {peer: [], ours: []}
    prefill, decode = (QUICK_PREFILL, QUICK_DECODE) if options.quick else (PREFILL, DECODE)
    for side in sides:
        side.ask("prefill", tokens=tokens[:context])  # warms up, and leaves the context that decode grows from
    kl = compare(ours, peer, work) if ours else None
    for _ in range(options.rounds if context in prefill else 0):
        for side in sides:
            prefills[side].append(context / side.ask("prefill", tokens=tokens[:context])["seconds"])
    for _ in range(options.rounds + 1 if context in decode else 0):
        for side in sides:
            written = tokens[context:context + DECODE_TOKENS]
            decodes[side].append(DECODE_TOKENS / side.ask("decode", tokens=written)["seconds"])
    mine, theirs = [[common.median(of[side][-options.rounds:]) for of in (prefills, decodes)] for side in (ours, peer)]
    return {"prefill_tokens_per_second": mine[0], "decode_tokens_per_second": mine[1], "peer_prefill_tokens_per_second": theirs[0],
            "peer_decode_tokens_per_second": theirs[1], "prefill_ratio": ratio(mine[0], theirs[0]),
            "decode_ratio": ratio(mine[1], theirs[1]), "kl": kl}


def ratio(mine, theirs):
    return mine / theirs if mine and theirs else None


def compare(ours, peer, work):
    path = os.path.join(work, "logits.npy")
    peer.ask("save_logits", path=path)
    kl = ours.ask("compare", path=path)["kl"]
    if not kl <= KL_TOLERANCE:
        raise common.Error(f"the two predictions are {kl:.3g} nats apart: not the same computation, so there is nothing to compare")
    return kl


def measure_model(model, options, work):
    rows, name = [], os.path.basename(model).removesuffix(".gguf")
    contexts = sorted({*QUICK_PREFILL, *QUICK_DECODE} if options.quick else {*PREFILL, *DECODE})
    with common.workers(options.threads, "softprompt_worker", "llamacpp_worker") as (ours, peer):
        refused = ours.ask("load", model=model, n_threads=options.threads, compute=options.compute)["refused"]
        if refused:
            common.note(f"{refused}; only llama.cpp is measured")
        build = peer.ask("load", model=model, n_threads=options.threads, n_context=contexts[-1] + DECODE_TOKENS)["build"]
        common.note(f"llama.cpp: {build}")
        tokens = peer.ask("tokenize", text=read_text()[:8 * (contexts[-1] + DECODE_TOKENS)])["tokens"]
        longest = min(peer.ask("context_length")["n"], len(tokens)) - DECODE_TOKENS
        for context in contexts:
            if context > longest:
                common.note(f"{name}: a context of {context} tokens is left out, the model has room for {longest}")
                continue
            common.note(f"{name}: context {context}")
            figures = measure_context(None if refused else ours, peer, tokens, context, options, work)
            memory = [None if side is ours and refused else side.ask("peak")["peak_rss_gb"] for side in (ours, peer)]
            rows.append(common.emit({"model": name, "context": context, **figures, "peer": "llama.cpp", "peak_rss_gb": memory[0],
                                     "peer_peak_rss_gb": memory[1], "peer_build": build, "refused": refused,
                                     "compute": options.compute, "rounds": options.rounds}))
    return rows


def measure(options, work):
    rows = [row for model in find_models(options) for row in measure_model(model, options, work)]
    common.show("inference: tokens a second, and peak memory so far; ratio: ours over llama.cpp's", COLUMNS, rows)
    return rows
