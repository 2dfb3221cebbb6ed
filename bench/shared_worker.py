"""shared_worker.py: prompt tuning written in PyTorch by somebody who minds the cost: the prompt goes through the model once, its
keys and values are shared by the batch, logits are made only where a label is. The strongest peer that is a page of Python."""

import json
import time

import safetensors.torch
import torch
import transformers

import worker
from peft_worker import pad

state = {}


def load(prepared, adapter, n_rows, learning_rate, n_threads):
    torch.set_num_threads(n_threads)
    transformers.logging.disable_progress_bar()
    with open(prepared, encoding="utf-8") as file:
        ready = json.load(file)
    model = transformers.AutoModelForCausalLM.from_pretrained(ready["model"], dtype=torch.float32).requires_grad_(False)
    prompt = safetensors.torch.load_file(f"{adapter}/adapter_model.safetensors")["prompt_embeddings"].requires_grad_(True)
    rows = ready["rows"][:n_rows]
    ids, mask, _ = pad(rows, model.config.eos_token_id or 0, with_answer=False)
    of_prompt = torch.ones(len(ids), len(prompt), dtype=mask.dtype)
    state.update(model=model, prompt=prompt, ids=ids, mask=torch.cat([of_prompt, mask], 1), last=mask.sum(1) - 1,
                 answers=torch.tensor([row["answer"] for row in rows]),
                 optimizer=torch.optim.AdamW([prompt], lr=learning_rate, weight_decay=0))


def shared_keys(n_examples):
    """The prompt's keys and values, one copy of them seen by every example."""
    alone = state["model"].model(inputs_embeds=state["prompt"][None], use_cache=True).past_key_values
    shared = transformers.DynamicCache()
    for i, layer in enumerate(alone.layers):
        shared.update(layer.keys.expand(n_examples, -1, -1, -1), layer.values.expand(n_examples, -1, -1, -1), i)
    return shared


def step():
    ids, model = state["ids"], state["model"]
    begin = time.perf_counter()
    hidden = model.model(input_ids=ids, attention_mask=state["mask"], past_key_values=shared_keys(len(ids)),
                         use_cache=True).last_hidden_state
    logits = model.lm_head(hidden[torch.arange(len(ids)), state["last"]])
    loss = torch.nn.functional.cross_entropy(logits, state["answers"])
    loss.backward()
    state["optimizer"].step()
    state["optimizer"].zero_grad()
    return {"seconds": time.perf_counter() - begin, "loss": loss.item()}


if __name__ == "__main__":
    worker.serve({"load": load, "step": step})
