"""keys_values.py: prompts that consist of keys and values, PREFIX_TUNING and CARTRIDGE, against PEFT: its adapters give its logits
here, ours give our logits there, and the gradient is that of torch autograd through PEFT.

    python tests/oracle/keys_values.py tiny
    python tests/oracle/keys_values.py tiny gpt2  # families whose name begins so
    python tests/oracle/keys_values.py smollm2
"""

import ctypes as c
import json
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # PEFT looks for the base model on the hub when it saves

import numpy as np
import peft
import torch

import engine
import hf_model
import safetensors.torch
import softprompt
from adapter import CONFIG, TENSORS, TEXT, VOCAB, create, read
from engine import report

LOGITS_TOLERANCE, GRADIENT_TOLERANCE = 2e-3, 1e-4

TEXT_TO_START_FROM = "Classify each review as positive or negative: "

CONFIGS = {
    "PREFIX_TUNING": lambda n: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n),
    "PREFIX_TUNING, projected": lambda n: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n, prefix_projection=True,
                                                                  encoder_hidden_size=24),
    "CARTRIDGE": lambda n: peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=n, num_frozen_tokens=min(2, n - 1)),
}


def answer_labels(tokens, n_answer):
    return torch.tensor([[-100] * (len(tokens) - n_answer) + tokens[-n_answer:]])


def peft_loss(model, examples):
    """Mean over examples of the mean over answer tokens, each example on its own."""
    losses = [model(input_ids=torch.tensor([tokens]), labels=answer_labels(tokens, n)).loss for tokens, n in examples]
    return torch.stack(losses).mean()


def train(model, examples, learning_rate):
    """A few steps, so that no trained row is still what it began as."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    for _ in range(2):
        optimizer.zero_grad()
        peft_loss(model, examples).backward()
        optimizer.step()
    return model


def peft_gradient(model, examples):
    """loss, gradient (P, width) as PEFT's own parameters get it; frozen rows zero"""
    encoder = model.prompt_encoder["default"]
    parameter = encoder.embedding.weight if hasattr(encoder.embedding, "padding_idx") else encoder.trainable_embedding
    parameter.grad = None
    loss = peft_loss(model, examples)
    loss.backward()
    gradient = parameter.grad.numpy()
    frozen = getattr(encoder, "num_frozen_tokens", 0)
    return loss.item(), np.concatenate([np.zeros((frozen, gradient.shape[1]), np.float32), gradient])


def peft_logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0, -len(tokens):].numpy()


def our_logits(model, prompt, tokens):
    """In pieces: the first is appended to nothing but the prompt."""
    session = softprompt.Session(model, prompt)
    return np.concatenate([session.append_all(tokens[:3]), session.append_all(tokens[3:])])


def check_logits(what, ours, theirs):
    return report(f"{what}: logits", float(np.abs(ours - theirs).max()), LOGITS_TOLERANCE)


def tokens_keys_values(base, tokens):
    """(P, width) as the model itself computes them, in PEFT's layout"""
    with torch.no_grad():
        layers = base(input_ids=torch.tensor([tokens]), use_cache=True).past_key_values.layers
    stacked = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in layers])  # layer, s, head, token, dimension
    return stacked.permute(3, 0, 1, 2, 4).reshape(len(tokens), -1)


def check_pefts(name, n, base, model, tokens, examples, directory, start=None, packing_limit=1e-5, dtype=torch.float32):
    """PEFT's adapter here. start (P, width): where it begins, instead of noise. dtype: of the loss and the gradient on PEFT's side."""
    there = os.path.join(directory, f"{name} {n}")
    theirs = peft.get_peft_model(base, CONFIGS[name](n))
    if start is not None:
        theirs.prompt_encoder["default"].load_prompt_embeddings(start)
    train(theirs, examples, 0.05 if start is None else 0.005).save_pretrained(there)
    prompt = softprompt.Prompt(there)
    good = check_logits(f"PEFT's {name}, P = {n}", our_logits(model, prompt, tokens), peft_logits(theirs.eval(), tokens))
    loss, gradient = model.loss(prompt, examples)
    if "projected" in name:  # PEFT's parameters are an encoder's there
        good &= report("    loss", abs(loss - peft_loss(theirs, examples).item()) / loss, 1e-5)
    else:
        their_loss, their_gradient = peft_gradient(theirs.to(dtype), examples)
        theirs.to(torch.float32)
        good &= report("    loss", abs(loss - their_loss) / their_loss, 1e-5)
        good &= report("    gradient", engine.relative_error(gradient, their_gradient), GRADIENT_TOLERANCE)
    return good & engine.check_packing(model, prompt, examples, loss, gradient, packing_limit)


METHODS = {"prefix": (1, "PREFIX_TUNING"), "cartridge": (2, "CARTRIDGE")}  # sp_method


def check_ours(name, base, model, tokens, text, text_tokens, directory):
    """Our adapter in PEFT: its logits, its bytes, its settings; and what it began as."""
    number, peft_name = METHODS[name]
    good, reference = True, os.path.join(directory, "reference")
    peft.get_peft_model(base, CONFIGS[peft_name](5)).save_pretrained(reference)
    reference = json.loads(read(reference, CONFIG))
    for init, options in {"text": {"init": TEXT, "init_text": text.encode()}, "vocab": {"init": VOCAB}}.items():
        here, again = os.path.join(directory, f"{name} {init}"), os.path.join(directory, f"{name} {init} again")
        create(here, model, method=number, num_virtual_tokens=5, num_frozen_tokens=2 if number == 2 else 0, **options)
        loaded = peft.PeftModel.from_pretrained(base, here)
        good &= check_logits(f"our {name} from {init} in PEFT", our_logits(model, softprompt.Prompt(here), tokens),
                             peft_logits(loaded.eval(), tokens))
        loaded.save_pretrained(again)
        assert read(again, TENSORS) == read(here, TENSORS), "PEFT writes other bytes"
        ours = json.loads(read(here, CONFIG))
        assert ours.keys() == reference.keys(), ours.keys() ^ reference.keys()
        assert {key for key in ours if ours[key] != reference[key]} <= {"base_model_name_or_path"}, (ours, reference)
        if init == "text":
            theirs = tokens_keys_values(base, text_tokens[:5]).numpy()
            values = safetensors.torch.load_file(os.path.join(here, TENSORS))["prompt_embeddings"].numpy()
            good &= report("    the text's keys and values", engine.relative_error(values, theirs), 1e-5)
        whole = our_logits(model, softprompt.Prompt(here), tokens)
        good &= report("    (and it matters: 1 / difference without it)", 1 / np.abs(whole - our_logits(model, None, tokens)).max(), 10)
    try:
        create(here, model, method=number, num_virtual_tokens=len(text_tokens) + 1, init=TEXT, init_text=text.encode())
        raise AssertionError("a text too short was taken")
    except softprompt.Error as error:
        assert f"has {len(text_tokens)} tokens" in str(error), error
    return good


# Key heads, their dimensions, the family: pairs that RoPE turns next to each other in the file and apart, keys behind a norm, layers
# without RoPE and with a window shorter than the text, soft caps, heads that turn in part or not at all.
TINY = (
    (2, 16, {}), (4, 8, {}), (1, 24, {}),
    (2, 16, dict(family="qwen3")),
    (2, 16, dict(family="smollm3")),
    (2, 16, dict(family="mistral", sliding_window=9)),
    (2, 16, dict(family="gemma2", query_pre_attn_scalar=16, sliding_window=9, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    (2, 16, dict(family="phi3", sliding_window=9, partial_rotary_factor=0.5)),
    (4, 16, dict(family="gpt2")),
    (4, 16, dict(family="gpt_neox", partial_rotary_factor=0.25)),
    (1, 24, dict(family="gemma3_text", query_pre_attn_scalar=24, sliding_window=9, rope_theta=1e6, num_hidden_layers=7)),
)


def tiny(beginning=""):
    rng, good = np.random.default_rng(7), True
    with tempfile.TemporaryDirectory() as directory:
        for kv_heads, d_head, family in TINY:
            if not family.get("family", "llama").startswith(beginning):
                continue
            options = {"num_key_value_heads": kv_heads, "head_dim": d_head, "num_hidden_layers": 3, **family}
            path = hf_model.write_tiny(os.path.join(directory, "tiny.gguf"), **options)
            base, model, tokenizer = hf_model.load(path), softprompt.Model(path), hf_model.load_tokenizer(path)
            examples = engine.random_examples(rng, model.n_vocab, 6, 14)
            tokens = rng.integers(0, model.n_vocab, 50).tolist()
            print(f"  {family.get('family', 'llama')}, {kv_heads} heads of keys, of {d_head}")
            for name in CONFIGS:
                for n in (1, 5, 17):
                    good &= check_pefts(name, n, base, model, tokens, examples, tempfile.mkdtemp(dir=directory))
            for name in METHODS:
                good &= check_ours(name, base, model, tokens, TEXT_TO_START_FROM, tokenizer.encode(TEXT_TO_START_FROM).ids, directory)
    return good


def smollm2():
    model, good = softprompt.Model(hf_model.SMOLLM2), True
    base, tokens = hf_model.load(hf_model.SMOLLM2), engine.news_tokens(400)
    examples = [(tokens[20 * i:20 * i + 8 + 3 * (i % 5)], 1 + i % 3) for i in range(4)]
    tokenizer, start = hf_model.load_tokenizer(hf_model.SMOLLM2), tokens_keys_values(base, tokens[200:208])
    with tempfile.TemporaryDirectory() as directory:
        for name in ("PREFIX_TUNING", "CARTRIDGE"):  # from noise losses are near 13 nats, and f32 is noise, in torch as well
            good &= check_pefts(name, 8, base, model, tokens[:200], examples, directory, start)
        for name in METHODS:
            good &= check_ours(name, base, model, tokens[:200], TEXT_TO_START_FROM, tokenizer.encode(TEXT_TO_START_FROM).ids, directory)
    return good


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(0 if {"tiny": tiny, "smollm2": smollm2}[sys.argv[1]](*sys.argv[2:]) else 1)
