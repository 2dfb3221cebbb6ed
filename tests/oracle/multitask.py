"""multitask.py: prompts of several tasks, MULTITASK_PROMPT_TUNING, against PEFT: its adapters give its logits here, task by task, ours
give our logits there; gradients of all three tensors are those of torch autograd through PEFT, of examples of several tasks in one
packed pass; what another task starts from is what PEFT takes from the same file.

    python tests/oracle/multitask.py tiny
    python tests/oracle/multitask.py smollm2
"""

import json
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # PEFT looks for the base model on the hub when it saves

import numpy as np
import peft
import safetensors.torch
import torch

import engine
import hf_model
import softprompt
from adapter import CONFIG, RANDOM, TENSORS, TEXT, VOCAB, create, read
from engine import report
from keys_values import answer_labels, check_logits, our_logits

GRADIENT_TOLERANCE = 1e-4
# With one virtual token and rank 1 a factor is one number, a sum of terms of which little may remain: a gradient that is smaller than
# this share of the whole is judged by it.
LEAST_SHARE = 1e-2
MULTITASK, AVERAGE, EXACT, SHARED = 4, 0, 1, 2  # sp_method, sp_source_init
NAMES = ("prompt_embeddings", "prefix_task_cols", "prefix_task_rows")


def config(n, tasks, ranks, **options):
    return peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n, num_tasks=tasks, num_ranks=ranks, **options)


def parameters(model):
    encoder = model.prompt_encoder["default"]
    return [encoder.embedding.weight, encoder.prefix_task_cols, encoder.prefix_task_rows]


def peft_loss(model, examples):
    """Mean over examples of the mean over answer tokens, each example on its own."""
    losses = [model(input_ids=torch.tensor([tokens]), labels=answer_labels(tokens, n), task_ids=torch.tensor([task])).loss
              for tokens, n, task in examples]
    return torch.stack(losses).mean()


def peft_gradient(model, examples):
    """loss, gradient as one array in the order of NAMES"""
    for parameter in parameters(model):
        parameter.grad = None
    loss = peft_loss(model, examples)
    loss.backward()
    return loss.item(), np.concatenate([parameter.grad.numpy().ravel() for parameter in parameters(model)])


def peft_logits(model, tokens, task):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), task_ids=torch.tensor([task])).logits[0, -len(tokens):].numpy()


def make_pefts(base, n, tasks, ranks):
    """As training from factors of one leaves them: the first rank near 1, the others small. Products of PEFT's start are next to
    nothing; products of noise are prompts behind which f32 is noise, torch's as well (docs/methods.md)."""
    model = peft.get_peft_model(base, config(n, tasks, ranks))
    embeddings = base.get_input_embeddings().weight
    shared, cols, rows = parameters(model)
    with torch.no_grad():
        shared.copy_(embeddings[torch.randint(0, len(embeddings), (n,))])
        for factor, first in ((cols, cols[..., 0]), (rows, rows[:, 0])):
            factor.copy_(0.1 * torch.randn_like(factor))
            first += 1
    return model


def check_pefts(n, tasks, ranks, base, model, tokens, examples, directory):
    there = os.path.join(directory, f"peft {n} {tasks} {ranks}")
    theirs = make_pefts(base, n, tasks, ranks)
    theirs.save_pretrained(there)
    prompt, good = softprompt.Prompt(there), True
    for task in range(tasks):
        good &= check_logits(f"PEFT's, P = {n}, rank {ranks}, task {task} of {tasks}", our_logits(model, prompt.use_task(task), tokens),
                             peft_logits(theirs.eval(), tokens, task))
    examples = [(*example, i % tasks) for i, example in enumerate(examples)]
    loss, gradient = model.loss(prompt, examples)
    their_loss, their_gradient = peft_gradient(theirs, examples)
    good &= report("    loss", abs(loss - their_loss) / their_loss, 1e-5)
    ends = np.cumsum([parameter.numel() for parameter in parameters(theirs)])[:-1]
    for name, ours, expected in zip(NAMES, np.split(gradient, ends), np.split(their_gradient, ends)):
        error = np.linalg.norm(ours - expected) / max(np.linalg.norm(expected), LEAST_SHARE * np.linalg.norm(their_gradient))
        good &= report(f"    gradient of {name}", float(error), GRADIENT_TOLERANCE)
    one = [example for example in examples if example[2] == 0]
    _, gradient = model.loss(prompt, one)
    cols = np.split(gradient, ends)[1].reshape(tasks, -1)
    assert not cols[1:].any() and cols[0].any(), "a task that no example has got a gradient"
    return good & engine.check_packing(model, prompt, examples, *model.loss(prompt, examples))


def check_ours(base, model, tokens, directory):
    """Our adapter in PEFT: its logits, its bytes, its settings."""
    reference, good = os.path.join(directory, "reference"), True
    peft.get_peft_model(base, config(5, 3, 2)).save_pretrained(reference)
    reference = json.loads(read(reference, CONFIG))
    for name, options in {"vocab": {"init": VOCAB}, "text": {"init": TEXT, "init_text": b"Classify: "}, "random": {"init": RANDOM}}.items():
        here, again = os.path.join(directory, f"ours {name}"), os.path.join(directory, f"ours {name} again")
        create(here, model, method=MULTITASK, num_virtual_tokens=5, num_tasks=3, num_ranks=2, **options)
        loaded, prompt = peft.PeftModel.from_pretrained(base, here), softprompt.Prompt(here)
        for task in range(3):
            good &= check_logits(f"ours from {name} in PEFT, task {task}", our_logits(model, prompt.use_task(task), tokens),
                                 peft_logits(loaded.eval(), tokens, task))
        loaded.save_pretrained(again)
        assert read(again, TENSORS) == read(here, TENSORS), "PEFT writes other bytes"
        ours = json.loads(read(here, CONFIG))
        assert ours.keys() == reference.keys(), ours.keys() ^ reference.keys()
        assert {key for key in ours if ours[key] != reference[key]} <= {
            "base_model_name_or_path", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path"}
    return good


def check_sources(base, model, directory):
    """A prompt that starts from another's: PEFT's own initialisation from our file, and ours."""
    source, good = os.path.join(directory, "source"), True
    make_pefts(base, 4, 3, 2).save_pretrained(source)
    for name, number, theirs, options in (("average", AVERAGE, "AVERAGE_SOURCE_TASKS", {}),
                                          ("exact", EXACT, "EXACT_SOURCE_TASK", {"prompt_tuning_init_task": 2}),
                                          ("shared", SHARED, "ONLY_SOURCE_SHARED", {})):
        tasks = 2 if name == "shared" else 1
        there = peft.get_peft_model(base, config(4, tasks, 2, prompt_tuning_init=theirs,
                                                 prompt_tuning_init_state_dict_path=os.path.join(source, TENSORS), **options))
        here = os.path.join(directory, f"from {name}")
        create(here, model, method=MULTITASK, num_tasks=tasks, init_prompt=os.fsencode(source), source_init=number,
               num_ranks=2 if name == "shared" else 0, source_task=options.get("prompt_tuning_init_task", 0))
        ours = safetensors.torch.load_file(os.path.join(here, TENSORS))
        for tensor, expected in list(zip(NAMES, parameters(there)))[:1 if name == "shared" else 3]:
            good &= report(f"start from a source's {name}: {tensor}", float((ours[tensor] - expected).detach().abs().max()), 3e-7)
        assert {tensor: ours[tensor].shape for tensor in NAMES} == dict(zip(NAMES, [p.shape for p in parameters(there)]))
        peft.PeftModel.from_pretrained(base, here)  # without the source's file
    for wrong, message in (({"source_init": EXACT, "source_task": 3}, "source task 3, and the source has 3"),
                           ({"source_init": AVERAGE, "num_tasks": 2}, "the source's factors start one task"),
                           ({"source_init": AVERAGE, "num_ranks": 1}, "have rank 2, the prompt's 1"),
                           ({"source_init": SHARED, "num_virtual_tokens": 5}, "the source has 4 virtual tokens")):
        try:
            create(here, model, method=MULTITASK, init_prompt=os.fsencode(source), **wrong)
            raise AssertionError(f"{wrong} was taken")
        except softprompt.Error as error:
            assert message in str(error), error
    return good


def check_all(base, model, sizes, tokens, examples):
    good = True
    with tempfile.TemporaryDirectory() as directory:
        for n, tasks, ranks in sizes:
            good &= check_pefts(n, tasks, ranks, base, model, tokens, examples, directory)
        good &= check_ours(base, model, tokens, directory)
        return good & check_sources(base, model, directory)


def tiny():
    rng, good = np.random.default_rng(7), True
    for family in ({}, dict(family="qwen3"), dict(family="gemma3_text", query_pre_attn_scalar=24, head_dim=24, sliding_window=9,
                                                  num_hidden_layers=7, rope_theta=1e6)):
        with tempfile.TemporaryDirectory() as directory:
            path = hf_model.write_tiny(os.path.join(directory, "tiny.gguf"), **family)
            base, model = hf_model.load(path), softprompt.Model(path)
        print(f"  {family.get('family', 'llama')}")
        examples, tokens = engine.random_examples(rng, model.n_vocab, 6, 14), rng.integers(0, model.n_vocab, 50).tolist()
        good &= check_all(base, model, ((1, 1, 1), (5, 3, 2), (17, 2, 1)), tokens, examples)
    return good


def smollm2():
    base, model, tokens = hf_model.load(hf_model.SMOLLM2), softprompt.Model(hf_model.SMOLLM2), engine.news_tokens(400)
    examples = [(tokens[20 * i:20 * i + 8 + 3 * (i % 5)], 1 + i % 3) for i in range(4)]
    return check_all(base, model, ((8, 2, 1), (8, 2, 3)), tokens[:200], examples)


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(0 if {"tiny": tiny, "smollm2": smollm2}[sys.argv[1]]() else 1)
