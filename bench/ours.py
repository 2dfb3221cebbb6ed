"""ours.py: the program as a contender: softprompt train and eval, timed by their own logs, memory by the kernel's account."""

import json
import os
import subprocess
import sys

import common

LEARNING_RATE = 1e-3  # for both sides; small, so that losses of the first steps can be compared


def read_rows(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def prepare(data, out, *template_and_model):
    """Tokens of the rows of `data` for the peers; a process of its own, since it loads half of Python's world."""
    done = subprocess.run([sys.executable, os.path.join(common.BENCH, "data.py"), data, out, *template_and_model],
                          env=common.environment(1), stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise common.Error("bench/data.py failed; its messages are above")


def train(directory, data, size, n_steps, options, learning_rate=LEARNING_RATE, extra=()):
    """n_steps steps on the whole of `data`, B rows, from vectors that depend on P alone; size is (P, B). -> seconds of each step
    but the first, which touches all memory for the first time; losses; peak memory; what --json says."""
    n_virtual, n_rows = size
    done = common.run_program(
        ["train", "-m", common.SMOLLM2, "-d", data, "-o", directory, "--overwrite", "--num-virtual-tokens", str(n_virtual),
         "--steps", str(n_steps), "--batch-size", str(n_rows), "--learning-rate", str(learning_rate), "--schedule", "constant",
         "--warmup-steps", "0", "--weight-decay", "0", "--max-grad-norm", "0", "--seed", "1", "--save-every", str(n_steps),
         "--threads", str(options.threads), "--compute", options.compute, "--json", "--quiet", *common.TASK, *extra],
        options.threads)
    log = read_rows(os.path.join(directory, "log.jsonl"))
    return {"step_seconds": [row["seconds"] for row in log[1:]], "losses": [row["loss"] for row in log],
            "peak_rss_gb": done["peak_rss_gb"], "report": json.loads(done["stdout"])}


def make_adapter(directory, data, size, options):
    """The vectors that train starts from, as an adapter: a step too short to matter."""
    train(directory, data, size, 1, options, learning_rate=1e-12)


def evaluate(adapter, data, n_rows, options):
    done = common.run_program(["eval", "-m", common.SMOLLM2, "-p", adapter, "-d", data, "--batch-size", str(n_rows), "--threads",
                               str(options.threads), "--compute", options.compute, "--json", "--quiet"], options.threads)
    report = json.loads(done["stdout"])
    return {"seconds": report["seconds"], "accuracy": report["accuracy"], "peak_rss_gb": done["peak_rss_gb"]}
