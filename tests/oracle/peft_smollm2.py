"""peft_smollm2.py: adapters on SmolLM2-135M in both directions: one that PEFT trained gives the same logits here, one that
softprompt trained gives the same logits in PEFT."""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from peft import PeftModel, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model

import engine
import hf_model
import softprompt

LOGITS_TOLERANCE = 2e-3
PROGRAM = os.environ.get("SOFTPROMPT_PROGRAM") or os.path.join(softprompt.ROOT, "build", "softprompt")
ROWS = [("a joy from start to finish .", "positive"), ("dull , slow and far too long .", "negative"),
        ("the cast is wonderful .", "positive"), ("i wanted my money back .", "negative")]


def logits_here(directory, tokens, path=hf_model.SMOLLM2):
    return softprompt.Session(softprompt.Model(path), softprompt.Prompt(directory)).append_all(tokens)


def logits_there(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0, -len(tokens):].numpy()


def train_there(base, tokenizer, directory):
    """Three AdamW steps of prompt tuning, as PEFT's examples do them, and the logits of the result."""
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=8, tokenizer_name_or_path=hf_model.hf_directory(),
                                prompt_tuning_init=PromptTuningInit.TEXT, prompt_tuning_init_text="Classify the review:")
    model = get_peft_model(base, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(3):
        for text, label in ROWS:
            ids = torch.tensor([tokenizer.encode(f"Review: {text}\nSentiment: {label}").ids])
            labels = ids.clone()
            labels[:, :-1] = -100
            model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(directory)
    return model


def train_here(directory, path=hf_model.SMOLLM2):
    data = os.path.join(directory, "rows.jsonl")
    with open(data, "w") as f:
        f.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
    adapter = os.path.join(directory, "adapter")
    subprocess.run([PROGRAM, "train", "-m", path, "-d", data, "-o", adapter, "--num-virtual-tokens", "8", "--steps", "4",
                    "--batch-size", "4", "--sink", "bos", "--template", r"Review: {text}\nSentiment:"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return adapter


def main(path=hf_model.SMOLLM2):
    """path: the model here, the GGUF file or a directory of the same weights."""
    tokenizer, tokens = hf_model.load_tokenizer(hf_model.SMOLLM2), engine.news_tokens(300)
    with tempfile.TemporaryDirectory() as directory:
        theirs = os.path.join(directory, "peft")
        expected = logits_there(train_there(hf_model.load(hf_model.SMOLLM2), tokenizer, theirs), tokens)
        good = engine.report("PEFT's adapter here, logits", float(np.abs(logits_here(theirs, tokens, path) - expected).max()), LOGITS_TOLERANCE)
        ours = train_here(directory, path)
        loaded = PeftModel.from_pretrained(hf_model.load(hf_model.SMOLLM2), ours).eval()
        difference = float(np.abs(logits_here(ours, tokens, path) - logits_there(loaded, tokens)).max())
        plain = float(np.abs(logits_here(ours, tokens, path) - softprompt.Session(softprompt.Model(path)).append_all(tokens)).max())
        good &= engine.report("our adapter in PEFT, logits", difference, LOGITS_TOLERANCE)
        return good & engine.report("(and the prompt matters: 1 / difference without it)", 1 / plain, 1.0)


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(0 if main() else 1)
