"""compiled.py: decoding behind a prefix of 2^16 keys: behind the keys themselves, behind their moments (softprompt compile), and
behind nothing.

The prefix is a trained one made long: `train --max-logit 2 --key-rank 4` on the movie reviews, 128 virtual tokens, a few steps;
then each head's keys and values are 2^16 random mixtures of two of its own, which stay inside the same bound and in the same
plane. Text starts at position 128 behind all of them. Rounds of decoding alternate.

A row: what, n_keys, decode_tokens_per_second and its ratio to decoding behind nothing; memory of the prompt; of moments, what the
text's predictions differ by from those behind the keys, and the certificate: weights_bound and the share of queries beyond.
"""

import json
import os

import common
import ours
import training

N_TRAINED, R, RANK, STEPS, N_KEYS, N_DECODE = 128, 2, 4, 20, 1 << 16, {"keys": 4, "moments": 32, "nothing": 32}
QUICK = {"steps": 2, "n_keys": 1 << 10}
N_HEADS, D_HEAD = 90, 64  # of keys in SmolLM2-135M

COLUMNS = (("what", "behind"), ("n_keys", "keys"), ("decode_tokens_per_second", "decode"), ("ratio", "of nothing's"), ("bytes", "bytes"),
           ("kl", "KL"), ("logprob_difference", "ln p off"), ("weights_bound", "weights off at most"), ("beyond", "beyond"))


def train(options, data, steps, work):
    adapter = os.path.join(work, "trained")
    common.run_program(
        ["train", "-m", common.SMOLLM2, "-d", data, "-o", adapter, "--method", "prefix", "--num-virtual-tokens", str(N_TRAINED), "--max-logit",
         str(R), "--key-rank", str(RANK), "--steps", str(steps), "--batch-size", "8", "--threads", str(options.threads), "--quiet",
         *common.TASK], options.threads)
    return adapter


def lengthen(adapter, n_keys, work):
    """-> an adapter of n_keys keys a head, each between two of the trained ones."""
    import numpy as np  # the bench's help is read without them
    import safetensors.numpy

    longer, rng = os.path.join(work, "long"), np.random.default_rng(1)
    os.makedirs(longer)
    rows = safetensors.numpy.load_file(os.path.join(adapter, "adapter_model.safetensors"))["prompt_embeddings"]
    trained = rows.reshape(N_TRAINED, N_HEADS // 3, 2, 3, D_HEAD)
    mixed = np.empty((n_keys, *trained.shape[1:]), np.float32)
    for layer in range(trained.shape[1]):
        for head in range(trained.shape[3]):
            first, second = rng.integers(0, N_TRAINED, (2, n_keys))
            share = rng.uniform(0, 1, (n_keys, 1)).astype(np.float32)
            for s in range(2):
                of_head = trained[:, layer, s, head]
                mixed[:, layer, s, head] = share * of_head[first] + (1 - share) * of_head[second]
    safetensors.numpy.save_file({"prompt_embeddings": mixed.reshape(n_keys, -1)}, os.path.join(longer, "adapter_model.safetensors"))
    for name, change in ("adapter_config.json", {"num_virtual_tokens": n_keys}), ("softprompt.json", None):
        with open(os.path.join(adapter, name), encoding="utf-8") as file:
            found = json.load(file)
        if change:
            found.update(change)
        else:
            found["method"].update(num_virtual_tokens=n_keys, text_position=N_TRAINED)
        with open(os.path.join(longer, name), "w", encoding="utf-8") as file:
            json.dump(found, file)
    return longer


def compile_prompt(longer, options, work):
    compiled = os.path.join(work, "compiled")
    done = common.run_program(["compile", "-m", common.SMOLLM2, "-p", longer, "-o", compiled, "--json", "--quiet"], options.threads)
    return compiled, json.loads(done["stdout"])


def certificate(compiled, data, options):
    done = common.run_program(["eval", "-m", common.SMOLLM2, "-p", compiled, "-d", data, "--threads", str(options.threads), "--json",
                               "--quiet"], options.threads)
    use = json.loads(done["stdout"])["compiled"]
    return {"weights_bound": use["weights_bound"], "beyond": use["beyond"] / use["queries"]}


def measure(options, work):
    steps, n_keys = (QUICK["steps"], QUICK["n_keys"]) if options.quick else (STEPS, N_KEYS)
    rows, text = [], "".join(row["text"] + "\n" for row in training.sample_rows(options.data, 4, "test"))
    held_out = os.path.join(work, "held-out.jsonl")
    ours.write_rows(held_out, training.sample_rows(options.data, 64, "test"))
    common.note(f"training {N_TRAINED} bounded keys, {steps} steps; making {n_keys} of them; compiling them")
    longer = lengthen(train(options, os.path.join(options.data, "train.jsonl"), steps, work), n_keys, work)
    compiled, told = compile_prompt(longer, options, work)
    proved = certificate(compiled, held_out, options)
    with common.workers(options.threads, "compiled_worker") as [worker]:
        worker.ask("load", model=common.SMOLLM2, n_threads=options.threads, compute=options.compute)
        found = {name: worker.ask("add", name=name, adapter=adapter, text=text)
                 for name, adapter in (("keys", longer), ("moments", compiled), ("nothing", None))}
        differences = worker.ask("compare", one="keys", other="moments")
        speeds = common.decode_speeds(worker, N_DECODE, options.rounds)
    for name in N_DECODE:
        row = {"what": name, "n_keys": 0 if name == "nothing" else n_keys, "decode_tokens_per_second": speeds[name],
               "ratio": speeds[name] / speeds["nothing"], "nll": found[name]["nll"], "ready_seconds": found[name]["seconds"],
               "bytes": {"keys": told["bytes_of_keys"], "moments": told["bytes"], "nothing": 0}[name]}
        if name == "moments":
            row |= {key: differences[key] for key in ("kl", "logprob_difference", "disagree")} | proved
            row |= {key: told[key] for key in ("rank", "degree", "features", "epsilon", "range")}
            row["faster_than_keys"] = speeds["moments"] / speeds["keys"]
        rows.append(common.emit(row))
    common.show(f"compiled: decoding behind {n_keys} keys, tokens a second", COLUMNS, rows)
    return rows
