"""lora_worker.py: LoRA with Hugging Face PEFT, and the plain model, in transformers.

Written so that it does not waste what it is timed for: batches are padded at the left and no further than their longest row, and
logits are made at the last position only. The answer is one token, so its loss is the cross-entropy there. Schedule, clipping and
rows a step are those of softprompt train; each epoch has an order of its own, which follows from the seed, so that a run that goes
on from a checkpoint sees the rows that it would have seen.
"""

import functools
import json
import os
import random
import time

import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model

import hf_model
import worker

RANK = 8
MAX_GRAD_NORM = 1.0
state = {}


@functools.cache
def read(prepared):
    with open(prepared, encoding="utf-8") as file:
        return json.load(file)


def load_model(path):
    if os.path.isdir(path):
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return hf_model.load(path)


def load(prepared, n_threads, seed):
    """The model that `prepared` names, frozen, without LoRA."""
    torch.set_num_threads(n_threads)
    torch.manual_seed(seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    state.update(model=load_model(read(prepared)["model"]), seed=seed)


def add_lora(prepared, batch_size, learning_rate, steps, warmup_steps):
    """PEFT's defaults: lora_alpha 8, no dropout, the modules that PEFT names for the architecture."""
    model = get_peft_model(state["model"], LoraConfig(task_type=TaskType.CAUSAL_LM, r=RANK))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup_steps, steps)
    state.update(model=model, trained=trained, optimizer=optimizer, schedule=schedule, rows=read(prepared)["rows"],
                 batch_size=batch_size, step=0)
    config = model.peft_config["default"]
    return {"parameters": sum(p.numel() for p in trained), "lora_alpha": config.lora_alpha, "dropout": config.lora_dropout,
            "target_modules": sorted(config.target_modules)}


def batch(rows):
    """-> what the model reads, padded at the left (rows, longest); positions count from each row's first token."""
    width = max(len(row["context"]) for row in rows)
    ids = torch.tensor([[0] * (width - len(row["context"])) + row["context"] for row in rows])
    mask = torch.tensor([[0] * (width - len(row["context"])) + [1] * len(row["context"]) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0), "logits_to_keep": 1,
            "use_cache": False}


def last_logits(rows):
    return state["model"](**batch(rows)).logits[:, -1]


@functools.cache
def order(n_rows, seed, epoch):
    return random.Random(f"{seed}:{epoch}").sample(range(n_rows), n_rows)


def rows_of_step(step):
    n = len(state["rows"])
    first = step * state["batch_size"]
    return [state["rows"][order(n, state["seed"], i // n)[i % n]] for i in range(first, first + state["batch_size"])]


def step():
    rows = rows_of_step(state["step"])
    rate = state["schedule"].get_last_lr()[0]
    state["model"].train()
    begin = time.perf_counter()
    loss = torch.nn.functional.cross_entropy(last_logits(rows), torch.tensor([row["answer"] for row in rows]))
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state["trained"], MAX_GRAD_NORM)
    state["optimizer"].step()
    state["optimizer"].zero_grad()
    seconds = time.perf_counter() - begin
    state["schedule"].step()
    state["step"] += 1
    return {"step": state["step"], "loss": loss.item(), "learning_rate": rate, "grad_norm": norm.item(), "seconds": seconds,
            "examples": len(rows)}


def save(directory):
    """The adapter as PEFT writes it, and a checkpoint beside it: the files of one moment, the last one whole."""
    state["model"].save_pretrained(directory)
    kept = {"trained": [p.detach() for p in state["trained"]], "optimizer": state["optimizer"].state_dict(),
            "schedule": state["schedule"].state_dict(), "step": state["step"]}
    path = os.path.join(directory, "checkpoint.pt")
    torch.save(kept, f"{path}.tmp.{os.getpid()}")
    os.replace(f"{path}.tmp.{os.getpid()}", path)


def restore(directory):
    """-> {"step": how many steps are done}; 0 where there is no checkpoint."""
    path = os.path.join(directory, "checkpoint.pt")
    if os.path.exists(path):
        kept = torch.load(path)
        with torch.no_grad():
            for mine, saved in zip(state["trained"], kept["trained"]):
                mine.copy_(saved)
        state["optimizer"].load_state_dict(kept["optimizer"])
        state["schedule"].load_state_dict(kept["schedule"])
        state["step"] = kept["step"]
    return {"step": state["step"]}


def merge():
    """LoRA's products are added to the weights: from here on the model is as fast as it was without."""
    state["model"] = state["model"].merge_and_unload()


def score(prepared, first, n, batch_size):
    """ln of the probability of each label behind rows first to first + n - 1: {"logprobs": [{label: number}, ...]}."""
    ready = read(prepared)
    rows, labels = ready["rows"][first:first + n], ready["labels"]
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["context"]))
    logprobs = [None] * len(rows)
    state["model"].eval()
    with torch.inference_mode():
        for at in range(0, len(rows), batch_size):
            chosen = by_length[at:at + batch_size]
            found = last_logits([rows[i] for i in chosen]).log_softmax(-1)
            for i, row in zip(chosen, found):
                logprobs[i] = {label: row[token].item() for label, token in labels.items()}
    return {"logprobs": logprobs}


def answer(prepared):
    """Milliseconds of each row, asked one by one: from tokens to the labels' probabilities."""
    rows, milliseconds = read(prepared)["rows"], []
    state["model"].eval()
    with torch.inference_mode():
        for row in rows:
            begin = time.perf_counter()
            last_logits([row]).log_softmax(-1)
            milliseconds.append(1000 * (time.perf_counter() - begin))
    return {"milliseconds": milliseconds}


if __name__ == "__main__":
    worker.serve({"load": load, "add_lora": add_lora, "step": step, "save": save, "restore": restore, "merge": merge,
                  "score": score, "answer": answer})
