"""distill_worker.py: what stands for a context, in the built library: divergences from the context, and decoding behind it."""

import json

import hf_model
import softprompt
import softprompt_worker
import worker

CONTINUATION = 300  # a token that is appended again and again: decoding costs the same whatever it is
state = {"sessions": {}}


def load(model, n_threads, compute, context, held_out, template, n_last):
    tokenizer = hf_model.load_tokenizer(model)
    state["model"] = softprompt.Model(model, n_threads=n_threads, compute={"f32": 1, "bf16": 2}[compute])
    state["context"] = tokenizer.encode(context).ids
    state["last"], state["decode"] = state["context"][-n_last:], tokenizer.decode
    with open(held_out, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    tokens = [tokenizer.encode(template.format(**row)).ids + tokenizer.encode(f" {row['label']}").ids for row in rows]
    state["queries"] = [(query, len(query) - 1) for query in tokens]
    return {"n_context": len(state["context"])}


def add(name, adapter, part):
    """Something to stand behind: an adapter, the `whole` context, its `last` tokens, or nothing. -> its tokens, its divergence"""
    model, tokens, prompt = state["model"], {"whole": state["context"], "last": state["last"], None: []}[part], None
    if adapter:
        prompt = softprompt.Prompt(adapter)
    elif tokens:
        prompt = softprompt.Prompt(model.embed(tokens))  # a text's own embeddings are that text
    kl, _ = model.distillation_loss(prompt, state["context"], state["queries"], gradient=False)
    session = state["sessions"][name] = softprompt.Session(model, prompt)
    session.append([CONTINUATION])
    return {"tokens": prompt.num_virtual_tokens if prompt else 0, "kl": kl, "text": state["decode"](tokens)}


def decode(name, n):
    return softprompt_worker.time_decoding(state["sessions"][name], [CONTINUATION] * n)


if __name__ == "__main__":
    worker.serve({"load": load, "add": add, "decode": decode})
