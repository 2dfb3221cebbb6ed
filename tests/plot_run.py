#!/usr/bin/env python3
"""plot_run.py PLOT_RUN: scripts/plot-run draws what a run directory holds, and says what is wrong with one that it cannot draw."""

import json
import pathlib
import subprocess
import sys
import tempfile

STEPS = [{"step": i + 1, "loss": 4 / (i + 1), "learning_rate": 0.02, "grad_norm": 1, "seconds": 1, "examples": 1, "tokens": 9}
         for i in range(40)]
EVALUATION = {"step": 20, "eval_loss": 0.5, "eval_perplexity": 1.6, "eval_accuracy": 0.8, "eval_macro_f1": 0.8}
UNDEFINED = {**STEPS[0], "step": 41, "loss": None}


def plot(directory, rows, *out):
    directory.mkdir(exist_ok=True)
    for name, of_evaluations in (("log.jsonl", False), ("evaluations.jsonl", True)):
        lines = [row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows if ("eval_loss" in row) == of_evaluations]
        (directory / name).write_text("".join(lines))
    return subprocess.run([sys.argv[1], directory, *out], capture_output=True, text=True, check=False)


def check_drawn(done, path, magic):
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}\n", done.stdout
    assert magic in path.read_bytes()[:200], path
    assert not list(path.parent.glob("*.tmp.*"))


def check_refused(done, *words):
    assert done.returncode in (1, 2) and not done.stdout, done
    assert all(word in done.stderr for word in words), done.stderr


def main():
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name, "a run")
        svg = directory / "curve.svg"
        check_drawn(plot(directory, STEPS), directory / "training.png", b"\x89PNG")
        check_drawn(plot(directory, STEPS + [EVALUATION, UNDEFINED], svg), svg, b"<svg")
        drawn = svg.read_text()
        assert "80.0 %" in drawn and "evaluation, accuracy" in drawn and "mean of 5 steps" in drawn
        check_drawn(plot(directory, [{**row, "loss": 0} for row in STEPS], svg), svg, b"<svg")
        check_refused(plot(directory, STEPS[:1]), "log.jsonl", "1 steps")
        check_refused(plot(directory, STEPS + ['{"step": 41, "lo']), "log.jsonl:41")
        check_refused(plot(directory, STEPS, "curve.gif"), "usage")
        (directory / "log.jsonl").unlink()
        check_refused(subprocess.run([sys.argv[1], directory], capture_output=True, text=True, check=False), "no such file")
    print("ok: drawn as PNG and SVG; what cannot be drawn is refused")


main()
