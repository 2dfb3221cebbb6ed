"""train.py: `softprompt train` against the same training in torch: every step's loss, learning rate and gradient norm, and the prompt
that comes out, on SmolLM2-135M.

    python tests/oracle/train.py

The program runs twice a case: one step with a rate of zero (the first of a warm-up) writes the initial prompt, from which torch
starts as well. A batch holds every row, so that the order of rows is no matter. The learning rate is a tenth of the default: at 0.02
differences in the last digits grow some five times a step, and after eight of them show nothing but that.
"""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import safetensors.numpy
import torch
from transformers import optimization

import hf_model

PROGRAM = os.environ.get("SOFTPROMPT_PROGRAM") or os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "build", "softprompt")
TEMPLATE, STEPS, WARMUP, RATE, CLIP = "Review: {text}\nSentiment:", 6, 2, 0.002, 1.0
ROWS = [("a warm and funny film", "positive"), ("dull from its first minute", "negative"), ("the cast is a delight", "positive"),
        ("I wanted my money back", "negative"), ("wasted", "mixed")]
ANSWERS = {"positive": " positive", "negative": " negative", "mixed": " neither good nor bad"}
LOSS_TOLERANCE, NORM_TOLERANCE, PROMPT_TOLERANCE = 1e-4, 1e-3, 1e-3

# optimizer, schedule, weight decay, sink
CASES = (("adamw", "cosine", 0.1, "none"), ("adafactor", "linear", 0.0, "bos"))


def run(directory, data, case, steps, warmup):
    """-> the rows of log.jsonl and the adapter's prompt (P, d_model)"""
    optimizer, schedule, weight_decay, sink = case
    command = [PROGRAM, "train", "-q", "-m", hf_model.SMOLLM2, "-d", data, "-o", directory, "--num-virtual-tokens", "6", "--sink", sink,
               "--template", TEMPLATE.replace("\n", "\\n"), "--optimizer", optimizer, "--schedule", schedule, "--weight-decay",
               str(weight_decay), "--learning-rate", str(RATE), "--max-grad-norm", str(CLIP), "--batch-size", str(len(ROWS)),
               "--steps", str(steps), "--warmup-steps", str(warmup), "--seed", "3"]
    for label, answer in ANSWERS.items():
        command += ["--verbalizer", f"{label}={answer}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(directory, "log.jsonl")) as file:
        rows = [json.loads(line) for line in file]
    return rows, safetensors.numpy.load_file(os.path.join(directory, "adapter_model.safetensors"))["prompt_embeddings"]


def torch_loss(model, tokenizer, prompt):
    losses = []
    for text, label in ROWS:
        context = tokenizer.encode(TEMPLATE.format(text=text), add_special_tokens=False).ids
        answer = tokenizer.encode(ANSWERS[label], add_special_tokens=False).ids
        embeddings = model.get_input_embeddings()(torch.tensor([context + answer]))
        logits = model(inputs_embeds=torch.cat([prompt[None], embeddings], 1)).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[-len(answer) - 1:-1], torch.tensor(answer)))
    return torch.stack(losses).mean()


def torch_optimizer(case, parameter):
    optimizer, schedule, weight_decay, _ = case
    if optimizer == "adamw":
        made = torch.optim.AdamW([parameter], lr=RATE, weight_decay=weight_decay)
    else:
        made = optimization.Adafactor([parameter], lr=RATE, relative_step=False, scale_parameter=False, weight_decay=weight_decay)
    getter = {"cosine": optimization.get_cosine_schedule_with_warmup, "linear": optimization.get_linear_schedule_with_warmup}[schedule]
    return made, getter(made, WARMUP, STEPS)


def train_with_torch(model, tokenizer, start, case):
    """-> (loss, learning rate, gradient norm) of each step, the prompt at the end. With a sink the first row is a constant."""
    n_frozen = 1 if case[3] == "bos" else 0
    frozen, learnt = torch.tensor(start[:n_frozen]), torch.nn.Parameter(torch.tensor(start[n_frozen:]))
    optimizer, scheduler = torch_optimizer(case, learnt)
    steps = []
    for _ in range(STEPS):
        loss = torch_loss(model, tokenizer, torch.cat([frozen, learnt]))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([learnt], CLIP)
        steps.append((loss.item(), scheduler.get_last_lr()[0], float(norm)))
        optimizer.step()
        scheduler.step()
    return steps, torch.cat([frozen, learnt]).detach().numpy()


def report(what, value, limit):
    good = value <= limit
    print(f"{'ok  ' if good else 'FAIL'} {what}: {value:.2e} (limit {limit:.0e})", flush=True)
    return good


def check(case, model, tokenizer, directory):
    data = os.path.join(directory, "rows.jsonl")
    with open(data, "w") as file:
        for text, label in ROWS:
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    name = " ".join(map(str, case))
    _, start = run(os.path.join(directory, "start"), data, case, 1, 1)
    rows, ours = run(os.path.join(directory, "run"), data, case, STEPS, WARMUP)
    steps, theirs = train_with_torch(model, tokenizer, start, case)
    if len(rows) != STEPS:
        return report(f"{name}: rows in the log that are missing", abs(STEPS - len(rows)), 0)
    worst = [max(abs(row[key] - step[i]) / abs(step[i]) if step[i] else abs(row[key]) for row, step in zip(rows, steps))
             for i, key in enumerate(("loss", "learning_rate", "grad_norm"))]
    good = report(f"{name}: loss of {STEPS} steps", worst[0], LOSS_TOLERANCE)
    good &= report(f"{name}: learning rates", worst[1], 1e-12)
    good &= report(f"{name}: gradient norms", worst[2], NORM_TOLERANCE)
    return good & report(f"{name}: the prompt, of what it moved",
                         float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - start)), PROMPT_TOLERANCE)


def main():
    model, tokenizer = hf_model.load(hf_model.SMOLLM2), hf_model.load_tokenizer(hf_model.SMOLLM2)
    good = True
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            good &= check(case, model, tokenizer, directory)
    return 0 if good else 1


sys.exit(main())
