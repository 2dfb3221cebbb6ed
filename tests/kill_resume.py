#!/usr/bin/env python3
"""kill_resume.py: training that is killed with SIGKILL at random moments and resumed ends in the same bytes as training that is not.

    python3 tests/kill_resume.py prompt|cartridge|multitask|cpt|distill|ptuning|bounded|penalised PATH_OF_train_tiny [KILLS]
    python3 tests/kill_resume.py program PATH_OF_softprompt [KILLS]

The first, named by the method, trains a model of two layers, so that most kills fall among the writes; `program` trains SmolLM2
with the command line (from $SOFTPROMPT_CACHE/models; exit status 77, skipped, where there is none). Standard library only.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SAME_BYTES = ("adapter_config.json", "adapter_model.safetensors", "softprompt.json", "settings.json")
ROWS = [("a warm and funny film", "positive"), ("dull from its first minute", "negative"), ("the cast is a delight", "positive"),
        ("I wanted my money back", "negative"), ("the cast is wasted", "negative")]


def run(command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def tiny_command(program, directory, method):
    run([program, "make", directory])
    return lambda where: [program, method, directory, where]


def program_command(program, directory):
    cache = os.environ.get("SOFTPROMPT_CACHE") or os.path.expanduser("~/.cache/softprompt")
    model = os.path.join(cache, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
    if not os.path.exists(model):
        print(f"skipped: no {model}")
        sys.exit(77)
    rows = os.path.join(directory, "rows.jsonl")
    with open(rows, "w") as file:
        for text, label in ROWS:
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    return lambda where: [program, "train", "-q", "-m", model, "-d", rows, "-e", rows, "-o", where, "--resume", "--template",
                        "Review: {text}\\nSentiment:", "--verbalizer", "positive= positive", "--verbalizer", "negative= negative",
                        "--num-virtual-tokens", "4", "--batch-size", "2", "--steps", "12", "--eval-every", "4", "--save-every", "1"]


def log_rows(directory):
    """The rows of the logs, but for what a clock says."""
    paths = [path for path in (directory / "log.jsonl", directory / "evaluations.jsonl") if path.exists()]
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows]


def newest_checkpoint(directory):
    return max((path.name for path in (directory / "checkpoints").glob("step-*.safetensors")), default="none")


def train_until_killed(command, seconds):
    """True: it was killed."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode:
        raise SystemExit(f"FAIL: exit status {process.returncode}: {errors}")
    return False


def finish_and_compare(command, straight, killed, kills):
    run(command(killed))
    wrong = [name for name in SAME_BYTES if (straight / name).read_bytes() != (killed / name).read_bytes()]
    if log_rows(straight) != log_rows(killed):
        wrong.append("log.jsonl")
    wrong += [f"{path.name} left over" for path in killed.rglob("*.tmp.*")]
    if wrong:
        raise SystemExit(f"FAIL after {kills} kills: {', '.join(wrong)}")


def kill_many_times(command, directory, wanted):
    straight, killed = pathlib.Path(directory, "straight"), pathlib.Path(directory, "killed")
    begin = time.monotonic()
    run(command(straight))
    whole = time.monotonic() - begin
    moments, kills, ends, checkpoints = random.Random(7), 0, 0, set()
    for _ in range(10 * wanted):
        if kills == wanted:
            break
        if (killed / "adapter_config.json").exists():
            finish_and_compare(command, straight, killed, kills)
            shutil.rmtree(killed)
            ends += 1
        if train_until_killed(command(killed), moments.uniform(0, whole)):
            kills += 1
            checkpoints.add(newest_checkpoint(killed))
    finish_and_compare(command, straight, killed, kills)
    if kills < wanted:
        raise SystemExit(f"FAIL: only {kills} of {wanted} kills came before the end")
    print(f"ok: {kills} kills in {ends + 1} runs, {len(checkpoints)} different newest checkpoints, the same bytes every time")


def main():
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # other tests run beside this one: threads that wait must not spin
    kind, program = sys.argv[1], os.path.abspath(sys.argv[2])
    kills = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    with tempfile.TemporaryDirectory(prefix="sp-kill-") as directory:
        command = program_command(program, directory) if kind == "program" else tiny_command(program, directory, kind)
        kill_many_times(command, directory, kills)


main()
