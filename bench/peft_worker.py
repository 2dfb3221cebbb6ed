"""peft_worker.py: prompt tuning with Hugging Face PEFT, as its examples do it: a padded batch, labels of -100 outside the answer,
loss.backward(), AdamW. The padding is at the right, where transformers puts it in training, which also keeps the prompt beside
the text."""

import json
import time

import safetensors.torch
import torch
import transformers
from peft import PromptTuningConfig, TaskType, get_peft_model

import worker

IGNORED = -100
state = {}


def pad(rows, pad_token, with_answer):
    """-> input_ids, attention_mask, labels, each (rows, longest)"""
    sequences = [row["context"] + [row["answer"]] * with_answer for row in rows]
    width = max(map(len, sequences))
    ids = torch.tensor([tokens + [pad_token] * (width - len(tokens)) for tokens in sequences])
    mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in sequences])
    labels = torch.full_like(ids, IGNORED)
    for i, tokens in enumerate(sequences):
        labels[i, len(tokens) - 1] = tokens[-1]
    return ids, mask, labels


def load(prepared, adapter, n_rows, learning_rate, n_threads):
    """The adapter's vectors, and the first n_rows prepared rows as the batch of every step."""
    torch.set_num_threads(n_threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with open(prepared, encoding="utf-8") as file:
        ready = json.load(file)
    base = transformers.AutoModelForCausalLM.from_pretrained(ready["model"], dtype=torch.float32)
    vectors = safetensors.torch.load_file(f"{adapter}/adapter_model.safetensors")["prompt_embeddings"]
    state["model"] = get_peft_model(base, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(vectors)))
    state["model"].prompt_encoder["default"].embedding.weight.data.copy_(vectors)
    state["optimizer"] = torch.optim.AdamW([p for p in state["model"].parameters() if p.requires_grad], lr=learning_rate,
                                           weight_decay=0)
    state["pad"] = base.config.eos_token_id or 0
    state["batch"] = pad(ready["rows"][:n_rows], state["pad"], with_answer=True)


def step():
    ids, mask, labels = state["batch"]
    state["model"].train()
    begin = time.perf_counter()
    loss = state["model"](input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    state["optimizer"].step()
    state["optimizer"].zero_grad()
    return {"seconds": time.perf_counter() - begin, "loss": loss.item()}


def evaluate(prepared, batch_size, labels):
    """Accuracy over all prepared rows: the likelier of the labels' tokens behind each text."""
    with open(prepared, encoding="utf-8") as file:
        rows = json.load(file)["rows"]
    model, n_right = state["model"].eval(), 0
    candidates = torch.tensor(labels)
    begin = time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(rows), batch_size):
            batch = rows[first:first + batch_size]
            ids, mask, _ = pad(batch, state["pad"], with_answer=False)
            logits = model(input_ids=ids, attention_mask=mask).logits
            last = logits[torch.arange(len(batch)), logits.shape[1] - ids.shape[1] + mask.sum(1) - 1]
            best = candidates[last[:, candidates].argmax(1)]
            n_right += int((best == torch.tensor([row["answer"] for row in batch])).sum())
    return {"seconds": time.perf_counter() - begin, "accuracy": n_right / len(rows)}


if __name__ == "__main__":
    worker.serve({"load": load, "step": step, "evaluate": evaluate})
