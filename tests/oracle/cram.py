"""cram.py: texts that `softprompt lab capacity cram` crammed into vectors of SmolLM2-135M, held against PEFT and torch: PEFT loads each
adapter and says the same tokens greedily; the model's own prediction costs the same bits in torch."""

import json
import math
import os
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel

import engine
import hf_model
import softprompt

PROGRAM = os.environ.get("SOFTPROMPT_PROGRAM") or os.path.join(softprompt.ROOT, "build", "softprompt")
STEPS, SAMPLES = 100, 2
TEXTS = ["Two boys found the key of the old church under a stone, and told nobody of it for a whole year after that.",
         "The council has refused to say how much the new bridge will cost, or who is going to pay for it in the end.",
         "Short."]  # not drawn: longer texts come first


def cram(directory, kind, num_virtual_tokens):
    """What the command reports; a trial, which is not kept."""
    texts, adapters = os.path.join(directory, "texts.jsonl"), os.path.join(directory, kind)
    with open(texts, "w") as f:
        f.writelines(json.dumps({"text": text}) + "\n" for text in TEXTS)
    command = [PROGRAM, "lab", "capacity", "cram", "-q", "-m", hf_model.SMOLLM2, "--quick", "--kind", kind, "--samples", str(SAMPLES),
               "--steps", str(STEPS), "--num-virtual-tokens", str(num_virtual_tokens), "-o", adapters, "--json"]
    command += [] if kind == "random" else ["--text", texts]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit("cram failed")
    return json.loads(result.stdout), adapters


def said_by_peft(adapter, n):
    """n tokens of greedy decoding: the first by the vectors alone, the others by PEFT's generate."""
    model = PeftModel.from_pretrained(hf_model.load(hf_model.SMOLLM2), adapter).eval()
    with torch.no_grad():
        first = model.base_model(inputs_embeds=model.get_prompt(batch_size=1)).logits[0, -1].argmax().item()
        if n == 1:
            return [first]
        said = model.generate(input_ids=torch.tensor([[first]]), attention_mask=torch.ones(1, 1), max_new_tokens=n - 1, min_new_tokens=n - 1,
                              do_sample=False)
    return said[0].tolist()[:n]


def bits(base, tokens, bos):
    with torch.no_grad():
        logprobs = base(input_ids=torch.tensor([[bos, *tokens]])).logits[0, :-1].double().log_softmax(-1)
    return -sum(logprobs[i, token].item() for i, token in enumerate(tokens)) / math.log(2)


def check(directory, base, tokenizer, kind, num_virtual_tokens):
    found, adapters = cram(directory, kind, num_virtual_tokens)
    wrong, off = 0, 0.0
    for i, sample in enumerate(found["samples"], 1):
        tokens = sample["token_ids"]
        assert len(tokens) == sample["tokens"]
        if kind == "natural":
            wrong += all(tokenizer.encode(text).ids[:len(tokens)] != tokens for text in TEXTS[:2])
        if not tokens:
            continue
        adapter = os.path.join(adapters, f"sample-{i}")
        with open(os.path.join(adapter, "adapter_config.json")) as f:
            assert json.load(f)["num_virtual_tokens"] == num_virtual_tokens + 1
        wrong += said_by_peft(adapter, len(tokens)) != tokens
        off = max(off, abs(bits(base, tokens, 1) / sample["bits"] - 1))
    name = f"{kind}, {num_virtual_tokens} vectors, {found['mean_tokens']:.1f} tokens"
    good = engine.report(f"{name}: samples that PEFT does not say", wrong, 0.5)
    good &= engine.report(f"{name}: bits, relative difference", off, 1e-4)
    mean = sum(sample["bits"] for sample in found["samples"]) / SAMPLES
    good &= engine.report(f"{name}: means", abs(found["mean_bits"] - mean) + abs(found["bits_per_vector"] - mean / num_virtual_tokens), 1e-6)
    return good & engine.report(f"{name}: (and something was crammed: 1 / tokens)", 1 / max(found["mean_tokens"], 1e-9), 0.5)


def main():
    base, tokenizer = hf_model.load(hf_model.SMOLLM2), hf_model.load_tokenizer(hf_model.SMOLLM2)
    with tempfile.TemporaryDirectory() as directory:
        good = check(directory, base, tokenizer, "natural", 1)
        return check(directory, base, tokenizer, "random", 4) and good


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
