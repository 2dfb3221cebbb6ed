"""llamacpp_worker.py: the same in llama.cpp, through the C interface that llama-cpp-python binds: its own defaults, flash
attention where it sees fit among them, but for the number of threads and a batch that takes a whole prompt."""

import ctypes
import time

import llama_cpp
import numpy as np

import worker

MAX_BATCH = 2048  # tokens that one llama_decode takes; inside it works in its own, smaller parts
state = {}


@llama_cpp.llama_log_callback
def say_nothing(_level, _text, _user):
    pass


def load(model, n_threads, n_context):
    llama_cpp.llama_log_set(say_nothing, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    state["model"] = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
    if not state["model"]:
        raise RuntimeError(f"llama.cpp does not load {model}")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = n_context, MAX_BATCH, n_threads, n_threads
    state["context"] = llama_cpp.llama_init_from_model(state["model"], params)
    if not state["context"]:
        raise RuntimeError(f"llama.cpp makes no context of {n_context} tokens")
    state["memory"] = llama_cpp.llama_get_memory(state["context"])
    return {"build": llama_cpp.llama_print_system_info().decode()}


def context_length():
    return {"n": llama_cpp.llama_model_n_ctx_train(state["model"])}


def tokenize(text):
    vocab, data = llama_cpp.llama_model_get_vocab(state["model"]), text.encode()
    tokens = (llama_cpp.llama_token * (len(data) + 8))()
    n = llama_cpp.llama_tokenize(vocab, data, len(data), tokens, len(tokens), True, False)
    if n < 0:
        raise RuntimeError(f"llama_tokenize returns {n}")
    return {"tokens": tokens[:n]}


def run(tokens):
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    status = llama_cpp.llama_decode(state["context"], llama_cpp.llama_batch_get_one(array, len(tokens)))
    if status:
        raise RuntimeError(f"llama_decode returns {status}")
    state["logits"] = llama_cpp.llama_get_logits_ith(state["context"], -1)  # waits until they are there


def prefill(tokens):
    llama_cpp.llama_memory_clear(state["memory"], True)
    state["n"] = len(tokens)
    begin = time.perf_counter()
    for first in range(0, len(tokens), MAX_BATCH):
        run(tokens[first:first + MAX_BATCH])
    return {"seconds": time.perf_counter() - begin}


def decode(tokens):
    begin = time.perf_counter()
    for token in tokens:
        run([token])
    seconds = time.perf_counter() - begin
    if not llama_cpp.llama_memory_seq_rm(state["memory"], 0, state["n"], -1):
        raise RuntimeError("llama.cpp does not forget the tokens")
    return {"seconds": seconds}


def logits():
    """(n_vocab), llama.cpp's own memory"""
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(state["model"]))
    return np.ctypeslib.as_array(state["logits"], (n_vocab,))


def save_logits(path):
    np.save(path, logits())


def likeliest_piece():
    piece = ctypes.create_string_buffer(256)
    n = llama_cpp.llama_token_to_piece(llama_cpp.llama_model_get_vocab(state["model"]), int(logits().argmax()), piece,
                                       len(piece), 0, False)
    return piece.raw[:max(n, 0)].decode(errors="replace")


if __name__ == "__main__":
    worker.serve({"load": load, "context_length": context_length, "tokenize": tokenize, "prefill": prefill, "decode": decode,
                  "save_logits": save_logits})
