"""networks.py: prompts whose rows a network makes, P_TUNING and PREFIX_TUNING with prefix_projection, against PEFT.

    python tests/oracle/networks.py tiny | smollm2     the same weights on both sides: rows, loss, the gradient of every parameter through
                                                       the model against torch autograd; adapters both ways
    python tests/oracle/networks.py steps              `softprompt train` on SmolLM2 against AdamW and Adafactor moving PEFT's module
"""

import ctypes as c
import json
import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # PEFT looks for the base model on the hub when it saves

import numpy as np
import peft
import safetensors.numpy
import torch
from transformers import optimization

import engine
import hf_model
import softprompt
from adapter import CONFIG, RANDOM, TENSORS, PromptOptions, read
from engine import report
from keys_values import LOGITS_TOLERANCE, peft_logits, peft_loss, train
from softprompt import lib

lib.sp_prompt_n_weights.restype = c.c_size_t
for name in ("sp_prompt_update", "sp_prompt_n_weights", "sp_prompt_embeddings", "sp_prompt_keys_values"):
    getattr(lib, name).argtypes = [c.c_void_p]
lib.sp_prompt_embeddings.restype = lib.sp_prompt_keys_values.restype = c.c_void_p

PROGRAM = os.environ.get("SOFTPROMPT_PROGRAM") or os.path.join(softprompt.ROOT, "build", "softprompt")
PREFIX, PTUNING = 1, 3  # sp_method
GRADIENT_TOLERANCE, ROWS_TOLERANCE = 1e-4, 1e-5


def config(kind, n, hidden, layers=2):
    common = dict(task_type="CAUSAL_LM", num_virtual_tokens=n, encoder_hidden_size=hidden)
    if kind == "projection":
        return peft.PrefixTuningConfig(prefix_projection=True, **common)
    return peft.PromptEncoderConfig(encoder_reparameterization_type=kind.upper(), encoder_num_layers=layers, **common)


def options(kind, n, hidden, layers=2):
    common = dict(num_virtual_tokens=n, encoder_hidden_size=hidden or 0, init=RANDOM)
    if kind == "projection":
        return PromptOptions(method=PREFIX, prefix_projection=True, **common)
    return PromptOptions(method=PTUNING, encoder_reparameterization_type=int(kind == "lstm"),
                         encoder_num_layers=layers if kind == "lstm" else 0, **common)


class Network(softprompt.Prompt):
    """A new prompt with a network."""

    def __init__(self, model, wanted):
        self.handle = c.c_void_p()
        softprompt.check(lib.sp_prompt_create(c.byref(self.handle), model.handle, c.byref(wanted)))
        self.num_virtual_tokens, self.width = lib.sp_prompt_num_virtual_tokens(self.handle), lib.sp_prompt_width(self.handle)
        self.n_weights = lib.sp_prompt_n_weights(self.handle)

    def weights(self):
        memory = (c.c_float * self.n_weights).from_address(lib.sp_prompt_weights(self.handle))
        return np.frombuffer(memory, np.float32)

    def set_weights(self, values):
        self.weights()[:] = values
        softprompt.check(lib.sp_prompt_update(self.handle))

    def rows(self):
        at = lib.sp_prompt_embeddings(self.handle) or lib.sp_prompt_keys_values(self.handle)
        memory = (c.c_float * (self.num_virtual_tokens * self.width)).from_address(at)
        return np.frombuffer(memory, np.float32).reshape(self.num_virtual_tokens, self.width).copy()

    def gradient(self, model, examples):
        """loss, gradient (n_weights)"""
        arrays = [softprompt.int32_array(tokens) for tokens, _ in examples]
        packed = (softprompt.Example * len(examples))(*[softprompt.Example(a, len(a), n) for a, (_, n) in zip(arrays, examples)])
        loss, gradient = c.c_double(), np.zeros(self.n_weights, np.float32)
        softprompt.check(lib.sp_loss(c.byref(loss), softprompt.float_pointer(gradient), model.handle, self.handle, packed,
                                     c.c_size_t(len(examples))))
        return loss.value, gradient


def flat(tensors):
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])


def logits(model, prompt, tokens):
    return softprompt.Session(model, prompt).append_all(tokens)


def check_parameters(encoder, gradient):
    """Relative error of the worst parameter. Of parameters whose gradient is rounding alone beside the whole one, the whole counts."""
    worst, at, floor = 0, 0, 1e-3 * np.linalg.norm(gradient)
    for parameter in encoder.parameters():
        theirs = parameter.grad.numpy().ravel()
        ours = gradient[at:at + theirs.size]
        worst, at = max(worst, np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), floor)), at + theirs.size
    assert at == gradient.size
    return report("    gradient, the worst parameter", float(worst), GRADIENT_TOLERANCE)


def check(kind, n, hidden, base, model, tokens, examples, directory, layers=2):
    print(f"  {kind}, P = {n}, hidden size {hidden or 'the default'}, {layers} layers")
    theirs = peft.get_peft_model(base, config(kind, n, hidden, layers))
    encoder, ours = theirs.prompt_encoder["default"], Network(model, options(kind, n, hidden, layers))
    ours.set_weights(flat(encoder.parameters()))
    good = report("    rows", engine.relative_error(ours.rows(), theirs.get_prompt_embedding_to_save("default").numpy()), ROWS_TOLERANCE)
    for parameter in encoder.parameters():
        parameter.grad = None
    loss, gradient = ours.gradient(model, examples)
    their_loss = peft_loss(theirs, examples)
    their_loss.backward()
    good &= report("    loss", abs(loss - their_loss.item()) / loss, 1e-5)
    good &= report("    gradient", engine.relative_error(gradient, flat(p.grad for p in encoder.parameters())), GRADIENT_TOLERANCE)
    good &= check_parameters(encoder, gradient)
    good &= report("    our network's logits", float(np.abs(logits(model, ours, tokens) - peft_logits(theirs, tokens)).max()),
                   LOGITS_TOLERANCE)
    return good & check_adapters(theirs, ours, base, model, tokens, examples, directory)


def check_adapters(theirs, ours, base, model, tokens, examples, directory):
    """What PEFT trained and saved here, what we save there."""
    there, here = tempfile.mkdtemp(dir=directory), tempfile.mkdtemp(dir=directory)
    train(theirs, examples, 0.001).eval().save_pretrained(there)
    good = report("    PEFT's adapter here: logits",
                  float(np.abs(logits(model, softprompt.Prompt(there), tokens) - peft_logits(theirs, tokens)).max()), LOGITS_TOLERANCE)
    softprompt.check(lib.sp_prompt_save(ours.handle, os.fsencode(here)))
    loaded = peft.PeftModel.from_pretrained(base, here).eval()
    good &= report("    our adapter in PEFT: logits", float(np.abs(logits(model, ours, tokens) - peft_logits(loaded, tokens)).max()),
                   LOGITS_TOLERANCE)
    our_config, their_config = (json.loads(read(place, CONFIG)) for place in (here, there))
    assert our_config.keys() == their_config.keys(), our_config.keys() ^ their_config.keys()
    assert {k for k in our_config if our_config[k] != their_config[k]} <= {"base_model_name_or_path"}, (our_config, their_config)
    return good


def tiny():
    rng, good = np.random.default_rng(7), True
    with tempfile.TemporaryDirectory() as directory:
        for kv_heads, d_head, family in ((2, 16, {}), (1, 24, dict(family="qwen3"))):
            path = hf_model.write_tiny(os.path.join(directory, "tiny.gguf"), num_key_value_heads=kv_heads, head_dim=d_head, **family)
            base, model = hf_model.load(path), softprompt.Model(path)
            examples = engine.random_examples(rng, model.n_vocab, 6, 14)
            tokens = rng.integers(0, model.n_vocab, 50).tolist()
            for kind, n, hidden, layers in (("mlp", 1, None, 2), ("mlp", 17, 40, 2), ("lstm", 1, None, 1), ("lstm", 9, 21, 2),
                                            ("lstm", 5, 8, 3), ("projection", 1, None, 2), ("projection", 17, 40, 2)):
                good &= check(kind, n, hidden, base, model, tokens, examples, directory, layers)
    return good


def smollm2():
    model, good = softprompt.Model(hf_model.SMOLLM2), True
    base, tokens = hf_model.load(hf_model.SMOLLM2), engine.news_tokens(400)
    examples = [(tokens[20 * i:20 * i + 8 + 3 * (i % 5)], 1 + i % 3) for i in range(4)]
    with tempfile.TemporaryDirectory() as directory:
        for kind in ("mlp", "lstm", "projection"):
            good &= check(kind, 8, None, base, model, tokens[:200], examples, directory)
    return good


# ---- training ----

N, HIDDEN, STEPS, RATE, CLIP = 6, 48, 5, 1e-4, 1.0
ROWS = [("a warm and funny film", "good"), ("dull from its first minute", "bad"), ("I wanted my money back", "bad")]
FLAGS = {"mlp": ["--method", "ptuning"], "lstm": ["--method", "ptuning", "--encoder-reparameterization-type", "lstm"],
         "projection": ["--method", "prefix", "--prefix-projection"]}


def run(directory, data, kind, optimizer, steps):
    """-> losses, the network's weights at the end, and the adapter's rows"""
    subprocess.run([PROGRAM, "train", "-q", "-m", hf_model.SMOLLM2, "-d", data, "-o", directory, *FLAGS[kind], "--num-virtual-tokens",
                    str(N), "--encoder-hidden-size", str(HIDDEN), "--optimizer", optimizer, "--learning-rate", str(RATE), "--schedule",
                    "constant", "--warmup-steps", "1", "--batch-size", str(len(ROWS)), "--steps", str(steps)], check=True,
                   stdout=subprocess.DEVNULL)
    with open(os.path.join(directory, "log.jsonl")) as file:
        losses = [json.loads(line)["loss"] for line in file]
    saved = safetensors.numpy.load_file(os.path.join(directory, "checkpoints", f"step-{steps:08d}.safetensors"))
    return losses, saved["weights"].ravel(), safetensors.numpy.load_file(os.path.join(directory, TENSORS))["prompt_embeddings"]


def train_with_torch(base, kind, optimizer, start, examples):
    """-> losses, weights, rows. The first step's rate is zero, as behind a warm-up of one step."""
    model = peft.get_peft_model(base, config(kind, N, HIDDEN))
    parameters, at = list(model.prompt_encoder["default"].parameters()), 0
    for parameter in parameters:
        parameter.data.copy_(torch.tensor(start[at:at + parameter.numel()]).view_as(parameter))
        at += parameter.numel()
    if optimizer == "adamw":
        made = torch.optim.AdamW(parameters, lr=0, weight_decay=0)
    else:
        made = optimization.Adafactor(parameters, lr=0, relative_step=False, scale_parameter=False)
    losses = []
    for step in range(STEPS):
        loss = peft_loss(model, examples)
        made.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        made.param_groups[0]["lr"] = RATE if step else 0.0
        made.step()
        losses.append(loss.item())
    return losses, flat(parameters), model.get_prompt_embedding_to_save("default").numpy()


def moved(what, ours, theirs, start, limit):
    return report(f"{what}, of what they moved", float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - start)), limit)


def steps():
    base, tokenizer, good = hf_model.load(hf_model.SMOLLM2), hf_model.load_tokenizer(hf_model.SMOLLM2), True
    answers = [tokenizer.encode(" " + label).ids for _, label in ROWS]
    examples = [(tokenizer.encode(text).ids + answer, len(answer)) for (text, _), answer in zip(ROWS, answers)]
    with tempfile.TemporaryDirectory() as directory:
        data = os.path.join(directory, "rows.jsonl")
        with open(data, "w") as file:
            file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
        for kind, optimizer in (("mlp", "adamw"), ("lstm", "adamw"), ("projection", "adamw"), ("mlp", "adafactor")):
            name = f"{kind}, {optimizer}"
            _, start, start_rows = run(os.path.join(directory, name + " start"), data, kind, optimizer, 1)
            ours, our_weights, our_rows = run(os.path.join(directory, name), data, kind, optimizer, STEPS)
            theirs, their_weights, their_rows = train_with_torch(base, kind, optimizer, start, examples)
            good &= report(f"{name}: loss of {STEPS} steps", max(abs(a - b) / b for a, b in zip(ours, theirs)), 1e-4)
            good &= moved(f"{name}: the rows", our_rows, their_rows, start_rows, 1e-3)
            # AdamW moves a weight whose gradient is rounding alone as far as any other, and where rounding says; the rows hardly notice.
            good &= moved(f"{name}: the weights", our_weights, their_weights, start, 1e-2 if optimizer == "adamw" else 1e-3)
    return good


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(0 if {"tiny": tiny, "smollm2": smollm2, "steps": steps}[sys.argv[1]]() else 1)
