"""cpt.py: context-aware prompts, CPT, against PEFT: loss and gradient of a padded batch as PEFT's own forward computes them, with what
answers inside the prompt add, against one packed pass here; adapters both ways; training with PEFT's module and torch's optimiser
against `softprompt train`.

    python tests/oracle/cpt.py tiny
    python tests/oracle/cpt.py smollm2
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

import engine
import hf_model
import softprompt
from adapter import CONFIG, TENSORS, create, read
from engine import report
from keys_values import check_logits, our_logits, peft_logits

PROGRAM = os.environ.get("SOFTPROMPT_PROGRAM") or os.path.join(softprompt.ROOT, "build", "softprompt")
GRADIENT_TOLERANCE = 1e-4
CPT, NONE, DECAY = 5, 0, 1  # sp_method, sp_weighted_loss
LOSS_TYPES = ("none", "decay")
SETTINGS = ("cpt_token_ids", "cpt_mask", "cpt_tokens_type_mask", "opt_weighted_loss_type", "opt_loss_decay_factor",
            "opt_projection_epsilon", "opt_projection_format_epsilon")

# Three examples; answers of one and of two tokens; what stands between has type 0.
TYPES = [1, 2, 2, 3, 4, 0, 5, 6, 7, 8, 8, 0, 9, 9, 10, 10, 11, 12, 0]


def config(token_ids, types, loss_type, **options):
    return peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=token_ids, cpt_mask=[1] * len(token_ids), cpt_tokens_type_mask=types,
                          opt_weighted_loss_type=loss_type, **options)


def batch(examples):
    """Padded on the right, as a data collator does it."""
    longest = max(len(tokens) for tokens, _ in examples)
    pad = [longest - len(tokens) for tokens, _ in examples]
    return {"input_ids": torch.tensor([tokens + [0] * p for (tokens, _), p in zip(examples, pad)]),
            "attention_mask": torch.tensor([[1] * len(tokens) + [0] * p for (tokens, _), p in zip(examples, pad)]),
            "labels": torch.tensor([[-100] * (len(tokens) - n) + tokens[-n:] + [-100] * p for (tokens, n), p in zip(examples, pad)])}


def delta_of(model):
    return model.prompt_encoder["default"].delta_embedding.weight


def train(model, examples, learning_rate, steps):
    optimizer = torch.optim.AdamW([delta_of(model)], lr=learning_rate, weight_decay=0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch(examples)).loss.backward()
        optimizer.step()
    return model


def peft_gradient(model, examples):
    delta_of(model).grad = None
    loss = model(**batch(examples)).loss
    loss.backward()
    return loss.item(), delta_of(model).grad.numpy()


def check_projection(theirs):
    """Most tokens that move have come to the end of where they may go."""
    encoder, moved = theirs.prompt_encoder["default"], np.linalg.norm(delta_of(theirs).detach().numpy(), axis=1)
    radius = encoder.get_epsilon().numpy()
    return report("    (and the projection matters: share of tokens inside their radius)",
                  float((moved < 0.999 * radius)[radius > 1e-9].mean()), 0.5)


def check_pefts(name, theirs, model, tokens, examples, directory, learning_rate):
    there = os.path.join(directory, name)
    train(theirs, examples, learning_rate, 2).save_pretrained(there)
    prompt = softprompt.Prompt(there)
    good = check_logits(f"PEFT's, {name}", our_logits(model, prompt, tokens), peft_logits(theirs, tokens))
    loss, gradient = model.loss(prompt, examples)
    their_loss, their_gradient = peft_gradient(theirs, examples)
    good &= report("    loss of a batch", abs(loss - their_loss) / their_loss, 1e-5)
    good &= report("    gradient", engine.relative_error(gradient, their_gradient), GRADIENT_TOLERANCE)
    moves = np.array([type % 4 != 0 for type in theirs.peft_config["default"].cpt_tokens_type_mask])
    assert gradient[moves].any(axis=1).all() and not gradient[~moves].any(), "the wrong tokens move"
    good &= check_projection(theirs)
    again = os.path.join(directory, f"{name} again")
    softprompt.check(softprompt.lib.sp_prompt_save(prompt.handle, os.fsencode(again)))
    assert read(again, TENSORS) == read(there, TENSORS), "saved again it has other bytes"
    ours, theirs = (json.loads(read(where, CONFIG)) for where in (again, there))
    assert {key: ours[key] for key in SETTINGS} == {key: theirs[key] for key in SETTINGS}
    return good


def check_ours(base, model, tokens, directory):
    """Our adapter in PEFT: its logits, its bytes, its settings."""
    reference, good = os.path.join(directory, "reference"), True
    peft.get_peft_model(base, config(list(range(len(TYPES))), TYPES, "none")).save_pretrained(reference)
    reference = json.loads(read(reference, CONFIG))
    array = lambda values: (c.c_int32 * len(values))(*values)
    for name, options in {
        "text": {"init_text": b"Classify each review: "}, "text, cut": {"init_text": b"Classify each review: ", "num_virtual_tokens": 3},
        "text, repeated": {"init_text": b"Classify: ", "num_virtual_tokens": 40},
        "tokens": {"cpt_token_ids": array(tokens[:len(TYPES)]), "cpt_tokens_type_mask": array(TYPES), "n_cpt_tokens": len(TYPES),
                   "opt_weighted_loss_type": DECAY, "opt_loss_decay_factor": 0.9, "opt_projection_epsilon": 0.2},
    }.items():
        here, again = os.path.join(directory, f"ours {name}"), os.path.join(directory, f"ours {name} again")
        create(here, model, method=CPT, **options)
        loaded = peft.PeftModel.from_pretrained(base, here)
        good &= check_logits(f"ours from {name} in PEFT", our_logits(model, softprompt.Prompt(here), tokens),
                             peft_logits(loaded.eval(), tokens))
        loaded.save_pretrained(again)
        assert read(again, TENSORS) == read(here, TENSORS), "PEFT writes other bytes"
        ours = json.loads(read(here, CONFIG))
        assert ours.keys() == reference.keys(), ours.keys() ^ reference.keys()
        assert {key for key in ours if ours[key] != reference[key]} <= {"base_model_name_or_path", "num_virtual_tokens", *SETTINGS}
        values = loaded.prompt_encoder["default"].embedding.weight.detach()
        assert torch.equal(values, base.get_input_embeddings()(torch.tensor(ours["cpt_token_ids"]))), "not the tokens' embeddings"
        if name == "text, repeated":
            text = hf_tokens(model, "Classify: ")
            assert ours["cpt_token_ids"] == (text * 40)[:40] and ours["cpt_tokens_type_mask"] == [1] * 40
    return good


def hf_tokens(model, text):
    out, n = c.POINTER(c.c_int32)(), c.c_size_t()
    softprompt.lib.sp_model_tokenizer.restype = c.c_void_p
    tokenizer = c.c_void_p(softprompt.lib.sp_model_tokenizer(model.handle))
    softprompt.check(softprompt.lib.sp_tokenize(c.byref(out), c.byref(n), tokenizer, text.encode(), c.c_size_t(2**64 - 1), 2))
    return out[:n.value]


def check_all(base, model, tokens, examples, learning_rate):
    good = True
    with tempfile.TemporaryDirectory() as directory:
        for loss_type in LOSS_TYPES:
            start = tokens[100:100 + len(TYPES)]
            theirs = peft.get_peft_model(base, config(start, TYPES, loss_type, opt_loss_decay_factor=0.6, opt_projection_epsilon=0.3,
                                                      opt_projection_format_epsilon=0.05))
            good &= check_pefts(f"answers count: {loss_type}", theirs, model, tokens[:50], examples, directory, learning_rate)
        return good & check_ours(base, model, tokens[:50], directory)


def tiny():
    rng, good = np.random.default_rng(7), True
    for family in ({}, dict(family="qwen3"), dict(family="gemma3_text", query_pre_attn_scalar=24, head_dim=24, sliding_window=9,
                                                  num_hidden_layers=7, rope_theta=1e6)):
        with tempfile.TemporaryDirectory() as directory:
            path = hf_model.write_tiny(os.path.join(directory, "tiny.gguf"), **family)
            base, model = hf_model.load(path), softprompt.Model(path)
        print(f"  {family.get('family', 'llama')}")
        tokens = rng.integers(3, model.n_vocab, 150).tolist()
        good &= check_all(base, model, tokens, engine.random_examples(rng, model.n_vocab, 6, 14), 0.05)
    return good


# ---- training ----

TEMPLATE, STEPS, RATE = "Review: {text}\nSentiment:", 5, 0.002
ROWS = [("a warm and funny film", "positive"), ("dull from its first minute", "negative"), ("the cast is a delight", "positive"),
        ("I wanted my money back", "negative"), ("wasted", "mixed")]
ANSWERS = {"positive": " positive", "negative": " negative", "mixed": " neither good nor bad"}


def train_here(directory, steps, rate):
    data, adapter = os.path.join(directory, "rows.jsonl"), os.path.join(directory, f"run {steps}")
    with open(data, "w") as file:
        file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
    command = [PROGRAM, "train", "-q", "-m", hf_model.SMOLLM2, "-d", data, "-o", adapter, "--method", "cpt", "--cpt-examples", "3",
               "--template", TEMPLATE.replace("\n", "\\n"), "--opt-weighted-loss-type", "decay", "--opt-loss-decay-factor", "0.7",
               "--learning-rate", str(rate), "--schedule", "constant", "--warmup-steps", "0", "--batch-size", str(len(ROWS)), "--steps",
               str(steps), "--max-grad-norm", "0"]
    for label, answer in ANSWERS.items():
        command += ["--verbalizer", f"{label}={answer}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(adapter, "log.jsonl")) as file:
        losses = [json.loads(line)["loss"] for line in file]
    return json.loads(read(adapter, CONFIG)), losses, safetensors.numpy.load_file(os.path.join(adapter, TENSORS))["prompt_embeddings"]


def check_rendering(settings, tokenizer):
    """Three rows, one of each label, template, text, template, answer, empty line; and every token's type."""
    text = tokenizer.decode(settings["cpt_token_ids"])
    pieces, types = settings["cpt_token_ids"], settings["cpt_tokens_type_mask"]
    parts = []
    for token, type in zip(pieces, types):
        if not parts or parts[-1][0] != type:
            parts.append((type, []))
        parts[-1][1].append(token)
    shown = [(type, tokenizer.decode(tokens)) for type, tokens in parts]
    examples = [shown[5 * i:5 * i + 5] for i in range(3)]
    good = len(shown) == 15 and sorted(answer for *_, (_, answer), _ in examples) == sorted(ANSWERS.values())
    texts = {" " + text: ANSWERS[label] for text, label in ROWS}
    for i, example in enumerate(examples):
        good &= [type for type, _ in example] == [4 * i + 1, 4 * i + 2, 4 * i + 3, 4 * i + 4, 0]
        good &= example[0][1] == "Review:" and example[2][1] == "\nSentiment:" and example[4][1] == "\n\n"
        good &= texts.get(example[1][1]) == example[3][1]
    print(f"{'ok  ' if good else 'FAIL'} three rows as a prompt: {text!r}")
    return bool(good)


def has_known_sign(gradient):
    """Adam's first step moves every number by the rate, whatever its gradient: where that is rounding, so is the direction."""
    size = np.abs(gradient)
    return size > 1e-4 * np.median(size[size.any(axis=1)])


def check_training(base, tokenizer):
    with tempfile.TemporaryDirectory() as directory:
        settings, losses, ours = train_here(directory, STEPS, RATE)
    theirs = peft.get_peft_model(base, config(*(settings[key] for key in ("cpt_token_ids", "cpt_tokens_type_mask",
                                                                         "opt_weighted_loss_type")), opt_loss_decay_factor=0.7))
    start = theirs.prompt_encoder["default"].embedding.weight.detach().numpy().copy()
    examples = []
    for text, label in ROWS:
        answer = tokenizer.encode(ANSWERS[label], add_special_tokens=False).ids
        examples.append((tokenizer.encode(TEMPLATE.format(text=text), add_special_tokens=False).ids + answer, len(answer)))
    optimizer, their_losses = torch.optim.AdamW([delta_of(theirs)], lr=RATE, weight_decay=0), []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = theirs(**batch(examples)).loss
        loss.backward()
        known = has_known_sign(delta_of(theirs).grad.numpy()) if step == 0 else known
        optimizer.step()
        their_losses.append(loss.item())
    expected = theirs.get_prompt_embedding_to_save("default").numpy()
    good = check_rendering(settings, tokenizer)
    good &= report(f"training: loss of {STEPS} steps", max(abs(a - b) / b for a, b in zip(losses, their_losses)), 1e-4)
    good &= check_projection(theirs)
    moves = known.any(axis=1)[:, None] & ~known
    good &= report("    numbers whose first gradient is rounding, of those that move", float(moves.sum() / known.sum()), 1e-3)
    assert np.array_equal(ours[~known & ~moves], start[~known & ~moves]), "an answer moved"
    return good & report("    the prompt, of what it moved", float(np.linalg.norm((ours - expected)[known]) /
                                                                   np.linalg.norm((expected - start)[known])), 1e-3)


def smollm2():
    base, model, tokens = hf_model.load(hf_model.SMOLLM2), softprompt.Model(hf_model.SMOLLM2), engine.news_tokens(400)
    examples = [(tokens[20 * i:20 * i + 8 + 3 * (i % 5)], 1 + i % 3) for i in range(4)]
    good = check_all(base, model, tokens, examples, 0.01)
    return good & check_training(hf_model.load(hf_model.SMOLLM2), hf_model.load_tokenizer(hf_model.SMOLLM2))


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(0 if {"tiny": tiny, "smollm2": smollm2}[sys.argv[1]]() else 1)
