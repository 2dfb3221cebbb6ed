"""softprompt.py: the library through ctypes, for the oracle tests. As much of softprompt.h as they need, named the same.

    model = softprompt.Model(path)
    loss, gradient = model.loss(prompt, [(tokens, n_answer), ...])

The library is build/libsoftprompt.so, or SOFTPROMPT_LIB.
"""

import ctypes as c
import os
import tempfile

import numpy as np
import safetensors.numpy

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIBRARY = os.environ.get("SOFTPROMPT_LIB") or os.path.join(ROOT, "build", "libsoftprompt.so")
N_THREADS = int(os.environ.get("OMP_NUM_THREADS", 0))  # 0: one a processor

lib = c.CDLL(LIBRARY, mode=os.RTLD_LAZY)
lib.sp_message.restype = c.c_char_p
lib.sp_model_n_vocab.restype = lib.sp_model_d_model.restype = lib.sp_session_n_tokens.restype = c.c_size_t
lib.sp_prompt_weights.restype = c.c_void_p
lib.sp_prompt_num_virtual_tokens.restype = lib.sp_prompt_width.restype = lib.sp_prompt_n_weights.restype = c.c_size_t
for name in ("sp_model_free", "sp_prompt_free", "sp_session_free", "sp_model_n_vocab", "sp_model_d_model", "sp_session_n_tokens",
             "sp_prompt_weights", "sp_prompt_num_virtual_tokens", "sp_prompt_width", "sp_prompt_n_weights"):
    getattr(lib, name).argtypes = [c.c_void_p]
lib.sp_session_rewind.argtypes = [c.c_void_p, c.c_size_t]
lib.sp_session_rewind.restype = None
lib.sp_model_tokenizer.argtypes, lib.sp_model_tokenizer.restype = [c.c_void_p], c.c_void_p
lib.sp_free.argtypes, lib.sp_free.restype = [c.c_void_p], None

ADD_BOS, PARSE_SPECIAL = 1, 2  # of Model.tokenize


class Error(Exception):
    pass


def check(status):
    if status:
        raise Error(f"status {status}: {lib.sp_message().decode()}")


class ModelOptions(c.Structure):
    _fields_ = [("n_threads", c.c_int), ("weights", c.c_int), ("compute", c.c_int)]


class Example(c.Structure):
    _fields_ = [("tokens", c.POINTER(c.c_int32)), ("n_tokens", c.c_size_t), ("n_answer", c.c_size_t), ("task_id", c.c_size_t)]


class Sampling(c.Structure):
    _fields_ = [("max_new_tokens", c.c_size_t), ("temperature", c.c_float), ("top_k", c.c_size_t), ("top_p", c.c_float),
                ("min_p", c.c_float), ("repetition_penalty", c.c_float), ("stop", c.POINTER(c.c_char_p)), ("n_stop", c.c_size_t),
                ("seed", c.c_uint64)]


class Generation(c.Structure):
    _fields_ = [("text", c.c_void_p), ("n_bytes", c.c_size_t), ("tokens", c.POINTER(c.c_int32)), ("n_tokens", c.c_size_t),
                ("logprobs", c.POINTER(c.c_float)), ("finish", c.c_int)]


def int32_array(values):
    return (c.c_int32 * len(values))(*values)


def float_pointer(array):
    return array.ctypes.data_as(c.POINTER(c.c_float))


class Model:
    """n_threads: by default what torch takes, too. weights: 0 auto, 1 mapped, 2 f32. compute: 0 auto, 1 f32, 2 bf16."""

    def __init__(self, path, n_threads=N_THREADS, weights=0, compute=0):
        self.handle = c.c_void_p()
        options = ModelOptions(n_threads, weights, compute)
        check(lib.sp_model_load(c.byref(self.handle), os.fsencode(path), c.byref(options)))
        self.n_vocab, self.d_model = lib.sp_model_n_vocab(self.handle), lib.sp_model_d_model(self.handle)

    def __del__(self):
        lib.sp_model_free(self.handle)

    def embed(self, tokens):
        """Token embeddings (n, d_model)."""
        out = np.empty((len(tokens), self.d_model), np.float32)
        check(lib.sp_model_embed(float_pointer(out), self.handle, int32_array(tokens), c.c_size_t(len(tokens))))
        return out

    def tokenize(self, text, flags=0):
        """Token ids of a string; flags: ADD_BOS | PARSE_SPECIAL."""
        tokens, n, encoded = c.POINTER(c.c_int32)(), c.c_size_t(), text.encode()
        check(lib.sp_tokenize(c.byref(tokens), c.byref(n), c.c_void_p(lib.sp_model_tokenizer(self.handle)), encoded,
                              c.c_size_t(len(encoded)), c.c_uint(flags)))
        found = tokens[:n.value]
        lib.sp_free(tokens)
        return found

    def loss(self, prompt, examples, gradient=True):
        """prompt: a Prompt or None; examples: (tokens, n_answer) pairs -> loss, gradient (P, width) or None"""
        return self._loss(lib.sp_loss, prompt, (), examples, gradient)

    def distillation_loss(self, prompt, context, queries, gradient=True):
        """The same for the divergence from what the model says behind `context`, tokens."""
        return self._loss(lib.sp_distillation_loss, prompt, (int32_array(context), c.c_size_t(len(context))), queries, gradient)

    def key_penalty(self, prompt, query_norms, max_logit):
        """query_norms (n_layer, n_head_kv) -> penalty, gradient by the prompt's weights"""
        penalty, gradient, norms = c.c_double(), np.zeros(prompt.weights_shape, np.float32), np.ascontiguousarray(query_norms, np.float32)
        check(lib.sp_key_penalty(c.byref(penalty), float_pointer(gradient), self.handle, prompt.handle, float_pointer(norms), c.c_double(max_logit)))
        return penalty.value, gradient

    def _loss(self, function, prompt, context, examples, gradient):
        arrays = [int32_array(example[0]) for example in examples]
        packed = (Example * len(examples))(*[Example(a, len(a), *example[1:]) for a, example in zip(arrays, examples)])
        loss = c.c_double()
        grad = np.zeros(prompt.weights_shape, np.float32) if prompt and gradient else None
        check(function(c.byref(loss), None if grad is None else float_pointer(grad), self.handle, prompt and prompt.handle, *context,
                       packed, c.c_size_t(len(examples))))
        return loss.value, grad


class Prompt:
    """An adapter directory, or a matrix (P, d_model) written as PEFT writes one."""

    def __init__(self, source):
        self.handle = c.c_void_p()
        if isinstance(source, str):
            check(lib.sp_prompt_load(c.byref(self.handle), os.fsencode(source)))
        else:
            with tempfile.TemporaryDirectory() as directory:
                write_adapter(directory, source)
                check(lib.sp_prompt_load(c.byref(self.handle), os.fsencode(directory)))
        self.num_virtual_tokens = lib.sp_prompt_num_virtual_tokens(self.handle)
        self.width = lib.sp_prompt_width(self.handle)
        n_weights = lib.sp_prompt_n_weights(self.handle)
        is_matrix = n_weights == self.num_virtual_tokens * self.width
        self.weights_shape = (self.num_virtual_tokens, self.width) if is_matrix else (n_weights,)

    def __del__(self):
        lib.sp_prompt_free(self.handle)

    def values(self):
        """A view of the prompt's own memory: writing to it changes the prompt."""
        memory = (c.c_float * int(np.prod(self.weights_shape))).from_address(lib.sp_prompt_weights(self.handle))
        return np.frombuffer(memory, np.float32).reshape(self.weights_shape)

    def use_task(self, task_id):
        check(lib.sp_prompt_use_task(self.handle, c.c_size_t(task_id)))
        return self


def write_adapter(directory, matrix):
    matrix = np.ascontiguousarray(matrix, np.float32)
    with open(os.path.join(directory, "adapter_config.json"), "w") as f:
        f.write('{"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": %d, "token_dim": %d}' % matrix.shape)
    safetensors.numpy.save_file({"prompt_embeddings": matrix}, os.path.join(directory, "adapter_model.safetensors"))


class Session:
    """prompt: a Prompt, or several, an ensemble"""

    def __init__(self, model, prompt=None):
        self.handle, self.model = c.c_void_p(), model
        if isinstance(prompt, list):
            handles = (c.c_void_p * len(prompt))(*[p.handle for p in prompt])
            check(lib.sp_session_create_ensemble(c.byref(self.handle), model.handle, handles, c.c_size_t(len(prompt))))
        else:
            check(lib.sp_session_create(c.byref(self.handle), model.handle, prompt and prompt.handle))

    def __del__(self):
        lib.sp_session_free(self.handle)

    def append(self, tokens):
        logits = np.empty(self.model.n_vocab, np.float32)
        check(lib.sp_session_append(self.handle, int32_array(tokens), c.c_size_t(len(tokens)), float_pointer(logits)))
        return logits

    def append_all(self, tokens):
        logits = np.empty((len(tokens), self.model.n_vocab), np.float32)
        check(lib.sp_session_append_all(self.handle, int32_array(tokens), c.c_size_t(len(tokens)), float_pointer(logits)))
        return logits

    def rewind(self, n_tokens):
        lib.sp_session_rewind(self.handle, n_tokens)

    def generate(self, tokens=(), **options):
        """-> tokens, text, logprobs"""
        out, sampling = Generation(), Sampling(**options)
        check(lib.sp_generate(c.byref(out), self.handle, int32_array(tokens), c.c_size_t(len(tokens)), c.byref(sampling), None, None))
        result = out.tokens[:out.n_tokens], c.string_at(out.text, out.n_bytes).decode(), out.logprobs[:out.n_tokens]
        lib.sp_generation_clear(c.byref(out))
        return result
