"""distill.py: a few-shot context of more than a thousand tokens against prompts of 32 that were distilled from it.

The context is reviews with their labels in the demo's template; prompts learn to stand for it on other reviews (`train
--teacher-context`). Three things are then measured behind the whole context, behind its last 32 tokens, behind each prompt and
behind nothing: how far the next-token distributions of held-out reviews are from those behind the context (mean KL, nats a token, by
the library itself), the accuracy on test reviews, and decoding, one token a call, rounds alternating.

A row: what, tokens, kl, accuracy, accuracy_ci95, n_test, decode_tokens_per_second, train_seconds, and settings of the training.
"""

import json
import os
import random

import common
import ours
import training

N_SHOTS, MIN_CONTEXT, N_VIRTUAL = 36, 1000, 32
N_SHOTS_AT_START = 3  # prompts start from the last reviews of the context: of N_VIRTUAL tokens of it what is nearest to all of it
N_QUERIES, N_HELD_OUT, N_TEST, STEPS, BATCH = 1000, 64, 500, 200, 16
QUICK = {"n_queries": 16, "n_held_out": 8, "n_test": 16, "steps": 2, "batch": 4}
DECODE_TOKENS = 32
TEMPLATE = "Review: {text}\nSentiment:"

# What the methods' defaults do not say; docs/training.md says why.
METHODS = {
    "prompt": ["--method", "prompt"],
    "prefix": ["--method", "prefix"],
    "cartridge": ["--method", "cartridge"],
}

COLUMNS = (("what", "behind"), ("tokens", "tokens"), ("kl", "KL"), ("accuracy", "accuracy"), ("decode_tokens_per_second", "decode"),
           ("train_seconds", "seconds to train"))


def few_shot(data):
    """As many reviews of each label, in turns, so that the context does not prefer one. -> their texts, the other rows of training"""
    rows = ours.read_rows(os.path.join(data, "train.jsonl"))
    random.Random(1).shuffle(rows)
    of_label = {label: [row for row in rows if row["label"] == label] for label in ("positive", "negative")}
    shots = [row for pair in zip(*of_label.values()) for row in pair][:N_SHOTS]
    taken = {row["text"] for row in shots}
    return [TEMPLATE.format(**row) + f" {row['label']}\n" for row in shots], [row for row in rows if row["text"] not in taken]


def escaped(text):
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def train(name, files, start, sizes, options, work):
    """-> the adapter's directory, train's report"""
    adapter = os.path.join(work, name)
    done = common.run_program(
        ["train", "-m", common.SMOLLM2, "-d", files["queries"], "-e", files["held_out"], "-o", adapter, "--teacher-context",
         files["context"], "--init-text", escaped(start), "--num-virtual-tokens", str(N_VIRTUAL), "--steps", str(sizes["steps"]),
         "--batch-size", str(sizes["batch"]), "--threads", str(options.threads), "--compute", options.compute, "--json", "--quiet",
         *common.TASK, *METHODS[name]], options.threads)
    return adapter, json.loads(done["stdout"])


def accuracy(files, options, *prompt, template=TEMPLATE):
    task = ["--template", escaped(template), *common.TASK[2:]]
    done = common.run_program(["eval", "-m", common.SMOLLM2, "-d", files["test"], "--threads", str(options.threads), "--compute",
                               options.compute, "--json", "--quiet", *task, *prompt], options.threads)
    report = json.loads(done["stdout"])
    return {"accuracy": report["accuracy"], "accuracy_ci95": report["accuracy_ci95"], "n_test": report["n"]}


def write_files(data, sizes, work):
    shots, rest = few_shot(data)
    text = "".join(shots)
    files = {name: os.path.join(work, f"{name}.jsonl") for name in ("queries", "held_out", "test")}
    files["context"] = os.path.join(work, "context.txt")
    with open(files["context"], "w", encoding="utf-8") as file:
        file.write(text)
    ours.write_rows(files["queries"], rest[:sizes["n_queries"]])
    ours.write_rows(files["held_out"], training.sample_rows(data, sizes["n_held_out"], "valid"))
    ours.write_rows(files["test"], training.sample_rows(data, sizes["n_test"], "test"))
    return files, text, "".join(shots[-N_SHOTS_AT_START:])


def measure(options, work):
    sizes = QUICK if options.quick else {"n_queries": N_QUERIES, "n_held_out": N_HELD_OUT, "n_test": N_TEST, "steps": STEPS, "batch": BATCH}
    files, text, start = write_files(options.data, sizes, work)
    adapters, reports = {}, {}
    for name in METHODS:
        common.note(f"distilling {N_SHOTS} reviews into {N_VIRTUAL} tokens: {name}, {sizes['steps']} steps of {sizes['batch']} reviews")
        adapters[name], reports[name] = train(name, files, start, sizes, options, work)
    with common.workers(options.threads, "distill_worker") as (worker,):
        n_context = worker.ask("load", model=common.SMOLLM2, n_threads=options.threads, compute=options.compute, context=text,
                               held_out=files["held_out"], template=TEMPLATE, n_last=N_VIRTUAL)["n_context"]
        if n_context < MIN_CONTEXT:
            raise common.Error(f"the few-shot context has {n_context} tokens, fewer than {MIN_CONTEXT}")
        names = ["the whole context", f"its last {N_VIRTUAL} tokens", *adapters, "nothing"]
        found = {name: worker.ask("add", name=name, adapter=adapters.get(name), part={names[0]: "whole", names[1]: "last"}.get(name))
                 for name in names}
        speeds = common.decode_speeds(worker, {name: DECODE_TOKENS for name in names}, options.rounds)
    accuracies = {names[0]: accuracy(files, options, template=text + TEMPLATE), "nothing": accuracy(files, options),
                  names[1]: accuracy(files, options, template=found[names[1]]["text"] + TEMPLATE),
                  **{name: accuracy(files, options, "-p", adapter) for name, adapter in adapters.items()}}
    rows = [common.emit({"what": name, "tokens": found[name]["tokens"], "kl": found[name]["kl"], **accuracies[name],
                         "decode_tokens_per_second": speeds[name], "train_seconds": reports.get(name, {}).get("seconds"),
                         "settings": METHODS.get(name), "reported": reports.get(name, {}).get("distillation"), **sizes})
            for name in names]
    for name, report in reports.items():
        training.check_close(f"{name}: divergence, of training and of the binding", report["distillation"]["kl"], found[name]["kl"], 1e-3)
    common.show(f"a context of {n_context} tokens distilled into {N_VIRTUAL}", COLUMNS, rows)
    return rows
