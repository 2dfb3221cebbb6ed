#!/usr/bin/env python3
"""bench.py: the parts of bench/ that measure nothing: counting, asking contenders, writing results. Needs no Python packages."""

import argparse
import contextlib
import io
import json
import math
import os
import pathlib
import random
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bench"))

import cells
import choosing
import common
import flops
import lora
import max_logit
import planning
import plots
import roofline
import scaling
import training

sys.path.insert(0, os.path.join(common.ROOT, "scripts"))

import split_rated

SHAPE = {"d_model": 12, "d_ffn": 20, "n_layer": 3, "n_head": 3, "n_head_kv": 1, "d_head": 4, "n_vocab": 50, "file_bytes": 1000}


class Tree:
    """A token tree with a node a token, built one token at a time."""

    def __init__(self, n_virtual, contexts):
        self.parents, self.is_prompt, self.read = [], [], set()
        children = {}
        for i in range(n_virtual):
            self.parents.append(i - 1)
            self.is_prompt.append(True)
        for context in contexts:
            node = n_virtual - 1
            for token in context:
                if (node, token) not in children:
                    children[node, token] = len(self.parents)
                    self.parents.append(node)
                    self.is_prompt.append(False)
                node = children[node, token]
            self.read.add(node)

    def n_visible(self, node):
        n = 0
        while node != -1:
            node, n = self.parents[node], n + 1
        return n


def count_row_by_row(shape, tree):
    """One row's product with each matrix, layer by layer, forward and back; one query and key after the other."""
    d, f = shape["d_model"], shape["d_ffn"]
    q, kv = shape["n_head"] * shape["d_head"], shape["n_head_kv"] * shape["d_head"]
    matmul = attention = 0
    for layer in range(shape["n_layer"]):
        for row, is_prompt in enumerate(tree.is_prompt):
            asks = layer + 1 < shape["n_layer"] or row in tree.read
            wanted = layer > 0 or is_prompt  # somebody wants the gradient of this row of the layer's input
            for rows_out, rows_in, forward, backward in (
                    (q, d, asks, asks and wanted), (kv, d, True, wanted), (kv, d, True, wanted), (d, q, asks, asks),
                    (f, d, asks, asks), (f, d, asks, asks), (d, f, asks, asks)):
                matmul += 2 * rows_out * rows_in * (forward + backward)
            if asks:
                # scores and their sum of values; scores again, gradients of the weights, of values, queries and keys
                attention += sum(2 * (2 + 5) * shape["d_head"] * shape["n_head"] for _ in range(tree.n_visible(row)))
    return {"matmul": matmul + 2 * 2 * d * shape["n_vocab"] * len(tree.read), "attention": attention}


def test_flops():
    rng = random.Random(3)
    for n_layer in (1, 2, 3):
        for n_virtual in (1, 5):
            contexts = [[1, 2] + [rng.randrange(3) for _ in range(rng.randrange(6))] for _ in range(7)]
            contexts.append(contexts[0])  # a repeated row costs nothing
            shape = {**SHAPE, "n_layer": n_layer}
            found, expected = flops.training_step(shape, n_virtual, contexts), count_row_by_row(shape, Tree(n_virtual, contexts))
            assert found == expected, (n_layer, n_virtual, found, expected)


def test_decode_bytes():
    assert flops.decode_bytes(SHAPE, 10) == 1000 + 2 * 3 * 4 * 4 * 10


def test_table():
    rows = [{"name": "a", "n": 12, "x": 0.12345, "y": None}, {"name": "longer", "n": 1, "x": 12345.6, "y": None}]
    columns = (("name", "name"), ("n", "n"), ("x", "seconds"), ("y", "y"))
    assert common.table(columns, rows) == ["name     n  seconds  y", "a       12    0.123  -", "longer   1    12346  -"]


def test_rows():
    """stdout is JSON lines and nothing else; tables and notes go to stderr."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        row = training.make_row("prompt", 20, 16, "peft", {"seconds": [1, 4, 2], "peak_rss_gb": 1.5},
                                {"seconds": [9, 8, 70], "peak_rss_gb": 3})
        gone = training.make_row("prompt", 20, 16, "peft", {"seconds": [1], "peak_rss_gb": 1}, training.Side().figures)
        common.show("title", training.COLUMNS, [row, gone])
        common.note("note")
    printed = [json.loads(line) for line in out.getvalue().splitlines()]
    assert printed == [row, gone]
    assert (row["seconds"], row["peer_seconds"], row["ratio"]) == (2, 9, 4.5)
    assert gone["peer_seconds"] is None and gone["ratio"] is None
    assert "title" in err.getvalue() and "bench: note" in err.getvalue()


def test_close():
    training.check_close("x", 1, 1.0009, 1e-3)
    for theirs in (1.0011, float("nan")):
        try:
            training.check_close("x", 1, theirs, 1e-3)
        except common.Error as error:
            assert "not the same computation" in str(error)
        else:
            raise AssertionError(theirs)


WORKER = """
import os, sys
sys.path.insert(0, {bench!r})
import worker
def fail(): raise ValueError("no good")
def fill(n): return {{"n": len(bytearray(n)), "noise": print("this is no answer")}}
worker.serve({{"fail": fail, "fill": fill, "die": lambda: os._exit(3)}})
"""


def expect_error(kind, words, do):
    try:
        do()
    except common.Error as error:
        assert isinstance(error, kind) and all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"no error with {words}")


def test_worker(directory):
    bench, common.BENCH = common.BENCH, str(directory)
    (directory / "some_worker.py").write_text(WORKER.format(bench=bench))
    try:
        with contextlib.redirect_stderr(io.StringIO()), common.workers(2, "some_worker", "some_worker") as (a, b):
            assert a.ask("fill", n=10)["n"] == 10
            before = b.ask("peak")["peak_rss_gb"]
            assert a.ask("fill", n=100_000_000)["peak_rss_gb"] > before + 0.09
            assert b.ask("peak")["peak_rss_gb"] < before + 0.01  # each has its own; the interpreter may take a page more
            expect_error(common.Error, ["some_worker", "fail", "ValueError: no good"], lambda: a.ask("fail"))
            assert a.ask("fill", n=1)["n"] == 1  # still there
            expect_error(common.Died, ["status 3"], lambda: a.ask("die"))
            expect_error(common.Died, ["status 3"], lambda: a.ask("fill", n=1))
    finally:
        common.BENCH = bench


def test_program():
    python = [sys.executable, "-c"]
    done = common.run_program(["import time; print('a', flush=True); time.sleep(0.3); x = bytearray(80_000_000)"], 1, python)
    assert done["stdout"] == "a\n" and done["seconds"] > done["first_seconds"] + 0.25 and done["peak_rss_gb"] > 0.08, done
    expect_error(common.Error, ["status 5", "the reason"],
                 lambda: common.run_program(["import sys; sys.stderr.write('the reason'); sys.exit(5)"], 1, python))


def test_shares():
    assert roofline.shares({"seconds": 2}, 2) is None
    found = roofline.shares({"seconds": 2, "thread_seconds": {"matmul": 2, "norm": 1}}, 2)
    assert found == {"matmul": 0.5, "norm": 0.25, "rest": 0.25}


def test_thread_counts():
    assert [scaling.thread_counts(n) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]


def max_logit_rows():
    """Two seeds of every prefix; those with bounded keys lose 0.02 / R."""
    rows = []
    for method in max_logit.list_prefixes(quick=False):
        r = method.max_logit
        bound = r and {"bound": 1.1 * r, "score": r, "entries": 2.0, "n_heads": 90, "n_scores_inside": 90, "n_entries_inside": 45}
        rows.append(max_logit.make_row(method, [{"accuracy": accuracy - (0.02 / r if r else 0), "key_bound": bound}
                                                for accuracy in (0.85, 0.87)]))
        max_logit.add_points(rows)
    return rows


def test_max_logit():
    rows = max_logit_rows()
    free, last = rows[0], rows[-1]
    assert free["max_logit"] is None and free["points"] == 0 and free["bound"] is None and free["accuracies"] == [0.85, 0.87]
    assert last["key_rank"] == 4 and abs(last["max_logit"] - math.log(32) / 4) < 1e-4
    assert abs(last["points"] - 2 / last["max_logit"]) < 1e-9 and last["scores_inside"] == 1 and last["entries_inside"] == 0.5
    assert len({(row["key_rank"], row["max_logit"]) for row in rows}) == len(rows)


def test_max_logit_budget():
    longer = max_logit.make_budget(argparse.Namespace(quick=False, steps=360))
    assert (longer.steps, longer.eval_every) == (360, 40) and longer.batch_size == cells.Budget().batch_size
    assert max_logit.make_budget(argparse.Namespace(quick=False, steps=None)) == cells.Budget()
    assert max_logit.make_budget(argparse.Namespace(quick=True, steps=None)) == cells.QUICK


def planned(length):
    """What plan --json says, as far as the bench reads it."""
    lengths = [{"num_virtual_tokens": n, "pilots": 2 if n <= 16 else 0, "accuracy": 1 - 1 / n if n <= 16 else None,
                "fitted_accuracy": 1 - 1 / n} for n in planning.LENGTHS]
    return {"num_virtual_tokens": length, "range": [1, 2 * length], "error_curve": {"floor": 0}, "lengths": lengths}


def measured_at(*accuracies):
    return {n: {"loss": 0.4, "accuracy": accuracy} for n, accuracy in zip(planning.LENGTHS, accuracies)}


def test_planning_says_whether_it_is_good():
    task = planning.TASKS[0]
    rising = measured_at(0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
    row = planning.make_row(task, planned(64), rising)
    assert (row["best"], row["smallest"], row["ratio"], row["pilots"], row["ok"]) == (128, 64, 1, 16, True)
    assert abs(row["points"] - 1) < 1e-9
    assert planning.judge(rising, 32)["ok"] is False  # too short
    assert planning.judge(rising, 128)["ok"] is True and planning.judge(rising, 128)["ratio"] == 2
    noisy = planning.make_row(task, planned(8), measured_at(0.8, 0.855, 0.86, 0.851, 0.86, 0.85, 0.84, 0.83))
    assert (noisy["best"], noisy["smallest"], noisy["ratio"], noisy["ok"]) == (4, 2, 4, False)
    assert abs(noisy["points"] - 0.9) < 1e-9
    some = planning.make_row(task, planned(64), {n: rising[n] for n in (1, 64)})
    assert some["ok"] is None and some["missing"] == [2, 4, 8, 16, 32, 128]  # one of them may be the best
    nothing = planning.make_row(task, None, {})
    assert nothing["missing"] == list(planning.LENGTHS) and "ok" not in nothing


def test_by_heart_a_pilot_is_a_training(directory):
    """Of the same seed, judged by the same rows, of as many steps; where there is one."""
    options, by_name = argparse.Namespace(quick=False), {task.name: task for task in planning.TASKS}
    kept = directory / "pilots" / "8-1"
    kept.mkdir(parents=True)
    rows = [{"step": step, "eval_examples": 64, "eval_loss": loss, "eval_accuracy": 0.9} for step, loss in ((100, 2.0), (200, 1.0))]
    (kept / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert planning.find_pilot(options, by_name["pairs"], str(directory), 8) == {"n": 64, "loss": 1.0, "accuracy": 0.9}
    assert planning.find_pilot(options, by_name["pairs"], str(directory), 16) is None
    assert planning.find_pilot(options, by_name["reviews"], str(directory), 8) is None  # held out rows, fewer steps
    assert planning.find_pilot(argparse.Namespace(quick=True), by_name["pairs"], str(directory), 8) is None


def test_made_tasks():
    colours, other, pairs = planning.make_colours(512, 1), planning.make_colours(512, 2), planning.make_pairs(64, 1)
    assert colours == planning.make_colours(512, 1) != other and pairs == planning.make_pairs(64, 1)
    assert all(sum(colour in row["text"].split() for colour in planning.COLOURS) == 1 for row in colours)
    assert all(row["label"] in row["text"].split() for row in colours)
    assert len({row["text"] for row in pairs}) == 64 and {row["label"] for row in pairs} == set(planning.WORDS)


def test_plots(directory):
    sizes = [{"method": method, "P": 20, "B": b, "peer": peer, "peak_rss_gb": 1.0, "peer_peak_rss_gb": memory, "ratio": ratio}
             for method, b, peer, ratio, memory in (("prompt", 16, "peft", 6.5, 4.0), ("prompt", 16, "torch-shared", 2.0, 2.0),
                                                    ("prompt", 32, "peft", None, None), ("eval", 32, "peft", 5.0, 3.0))]
    texts = [{"model": 'tiny "Q4_1"', "context": n, "prefill_tokens_per_second": None, "decode_tokens_per_second": None,
              "peer_prefill_tokens_per_second": 100.0, "peer_decode_tokens_per_second": 10.0} for n in (1, 512)]
    steps = [{"vary": vary, "P": 32, "B": 16, "L": None, "threads": 2, vary: n, "seconds": n * 0.1, "peak_rss_gb": 1}
             for vary in ("P", "B", "L", "threads") for n in (1, 2, 4)]
    reached = [{"what": "machine"},
               {"what": "training", "P": 20, "B": 16, "gemm_share": 0.5, "parts": {"matmul": 0.9, "rest": 0.1}},
               {"what": "decode", "context": 1, "read_share": 0.2}]
    curves = [{"model": model, "data": data, "method": method, "curve": curve, "step_seconds": seconds}
              for model, data, method, curve, seconds in (
                  ("a", "reviews", "prompt", [[2, 0.5], [4, 0.9]], 0.5), ("a", "reviews", "lora", [[2, 0.6]], 2.0),
                  ("b", "reviews", "prompt", [[2, 0.7]], 1.0), ("a", "tweets", "prompt", [[2, 0.7]], 1.0),
                  ("a", "reviews", "zero-shot", [], 0.0), ("a", "reviews", "prefix", [[2, 0.7]], None))]
    bounds = max_logit_rows()
    rising = measured_at(0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
    plans = [planning.make_row(task, planned(n), rising) for task, n in zip((planning.TASKS[1], planning.TASKS[-1]), (64, 8))]
    for part, rows in (("training", sizes), ("inference", texts), ("scaling", steps), ("roofline", reached), ("choosing", curves),
                       ("max-logit", bounds), ("planning", plans)):
        svg, png = plots.draw(part, rows, str(directory))
        assert "<svg" in pathlib.Path(svg).read_text(encoding="utf-8")[:400] and pathlib.Path(png).read_bytes()[:4] == b"\x89PNG"
    svg = (directory / "choosing.svg").read_text(encoding="utf-8")
    assert svg.count(">prompt<") == 2 and svg.count(">lora<") == 1 and "prefix" not in svg and "tweets" not in svg
    svg = (directory / "max-logit.svg").read_text(encoding="utf-8")
    assert all(svg.count(f">{name}<") == 1 for name in ("free keys", "rank 64", "rank 4"))
    svg = (directory / "planning.svg").read_text(encoding="utf-8")
    assert svg.count(">pairs: recommended 64<") == 1 and svg.count(">reviews: recommended 8<") == 1
    assert plots.draw("choosing", curves[3:], str(directory)) == []  # nothing that can be drawn
    assert plots.draw("max-logit", bounds[:1], str(directory)) == plots.draw("max-logit", bounds[1:], str(directory)) == []
    assert plots.draw("startup", sizes, str(directory)) == [] and plots.draw("training", [], str(directory)) == []
    assert not list(directory.glob("*.tmp.*"))


# ---- choosing ----------------------------------------------------------------------------------------------------------------


def make_cell(directory, method, **changes):
    options = argparse.Namespace(out=str(directory / "out"), data=str(directory), quick=False, compute="f32", threads=1)
    budget = cells.Budget(**{"steps": 6, "eval_every": 2, **changes})
    return cells.Cell(options, budget, "some/model.gguf", "reviews", method, str(directory))


def write_splits(directory, n=12):
    rows = [{"text": f"text {i}", "label": cells.LABELS[i % 3 % 2]} for i in range(n)]
    for split in ("train", "valid", "test"):
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def test_split_of_ratings(directory):
    """A row's split does not depend on the others; rows at 0 are dropped; a repeated text stays in one split."""
    lines = [f"{i}\t{rating}\ttext {i}" for i, rating in enumerate([1.5, -0.2, 0, 3, -4] * 100)] + ["900\t-1\ttext 3"]
    (directory / "rated.txt").write_bytes("\r\n".join(lines).encode())
    with contextlib.redirect_stdout(io.StringIO()):
        split_rated.main(str(directory / "rated.txt"), str(directory / "all"))
        (directory / "some.txt").write_bytes("\r\n".join(lines[::2]).encode())
        split_rated.main(str(directory / "some.txt"), str(directory / "some"))
    whole, some = ({split: (directory / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
                    for split in ("train", "valid", "test")} for name in ("all", "some"))
    assert sum(map(len, whole.values())) == 401 and all(whole.values())
    assert all(row in whole[split] for split, rows in some.items() for row in rows)
    assert [sum('"text 3"' in row for row in rows) for rows in whole.values()].count(2) == 1
    assert {json.loads(row)["label"] for row in whole["test"]} == {"positive", "negative"}


def test_figures_of_predictions():
    low, high = cells.wilson(462, 510)  # as softprompt eval prints them in docs/evaluating.md
    assert abs(low - 0.8774195794) < 1e-9 and abs(high - 0.928276405) < 1e-9
    rows = [{"label": label} for label in ("positive", "positive", "positive", "negative")]
    logprobs = [{"positive": p, "negative": q} for p, q in ((-1, -2), (-1, -2), (-3, -1), (-2.5, -1))]
    found = cells.judge(rows, logprobs)
    assert found["accuracy"] == 0.75 and found["loss"] == (1 + 1 + 3 + 1) / 4 and found["n"] == 4
    assert abs(found["macro_f1"] - (4 / 5 + 2 / 3) / 2) < 1e-12
    less, worse = ({"accuracy": accuracy, "loss": loss} for accuracy, loss in ((0.75, found["loss"] + 1), (0.7, 0)))
    assert cells.merit(found) > cells.merit(less) > cells.merit(worse)


def test_best_threshold():
    """Against every threshold in turn; equal differences are on one side of it."""
    rng = random.Random(5)
    for n in (1, 2, 9, 40):
        rows = [{"label": rng.choice(cells.LABELS)} for _ in range(n)]
        differences = [rng.randrange(-4, 5) + 2 * (row["label"] == "positive") for row in rows]
        logprobs = [{"positive": difference - 7.0, "negative": -7.0} for difference in differences]
        expected = max(sum((d > threshold) == (row["label"] == "positive") for d, row in zip(differences, rows))
                       for threshold in range(-6, 9))
        assert cells.best_threshold(rows, logprobs) == expected / n


def test_rows_are_spread():
    assert cells.spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert cells.spread([1, 2], 2) == cells.spread([1, 2], 3) == cells.spread([1, 2], None) == [1, 2]


def test_examples(directory):
    rows = write_splits(directory, 40)
    found = choosing.draw_examples(rows, 16, 0)
    assert sorted(row["label"] for row in found) == ["negative"] * 8 + ["positive"] * 8
    assert len({row["text"] for row in found}) == 16
    assert found == choosing.draw_examples(rows, 16, 0) != choosing.draw_examples(rows, 16, 1)
    assert choosing.draw_examples(rows, 0, 0) == []
    examples = [{"text": "a\\n b\t", "label": "negative"}, {"text": "c", "label": "positive"}]
    template = choosing.few_shot_template("Review: {text}\nSentiment:", examples)
    assert template == ("Review: a\\n b\t\nSentiment: negative\n\nReview: c\nSentiment: positive\n\n"
                        "Review: {text}\nSentiment:")
    assert choosing.escaped(template).startswith("Review: a\\\\n b\\t\\nSentiment: negative\\n\\n")
    expect_error(common.Error, ["{text}"], lambda: choosing.few_shot_template("{text}", [{"text": "{text}", "label": "positive"}]))


def test_what_is_kept(directory):
    calls = []
    method = choosing.Trained("prompt", ("--method", "prompt"))
    cell = make_cell(directory, method)
    with contextlib.redirect_stderr(io.StringIO()):
        for again in (False, False, True):
            assert cell.once("accuracy", lambda: calls.append(1) or len(calls), again) == len(calls)
        assert len(calls) == 2
        assert make_cell(directory, method, timed_steps=99).once("accuracy", lambda: None) == 2  # changes no accuracy
        for other in (make_cell(directory, method, steps=7), make_cell(directory, choosing.Trained("prompt", ("--method", "x")))):
            assert other.once("accuracy", lambda: "new") == "new"


def test_compare(directory):
    cell = make_cell(directory, choosing.METHODS["zero-shot"])
    near, far = [{"a": -1.0, "b": -1.001}], [{"a": -1.0, "b": -0.9}]
    assert choosing.compare(cell, "x", near, [{"a": -1.001, "b": -1.0}])["same_label"] == 0
    assert choosing.compare(cell, "x", near, near) == {"rows": 1, "same_label": 1, "largest_difference": 0}
    for other in (far, [{"a": float("nan"), "b": -1.0}]):
        expect_error(common.Error, ["zero-shot", "row 0", "not the same computation"],
                     lambda other=other: choosing.compare(cell, "x", near, other))


def test_rates_of_gemma(directory):
    method = choosing.METHODS["prompt"]
    cell = make_cell(directory, method)
    assert "--learning-rate" not in method.command(cell, "run", 3, [])
    cell.model_name = "gemma-3-270m.Q4_K_M"
    command = method.command(cell, "run", 3, ["--resume"])
    assert command[command.index("--learning-rate") + 1] == "0.07" and command[-1] == "--resume"


class Method(choosing.InContext):
    """Finds the number of things that were measured so far."""

    def accuracy(self, cell):
        cell.options.measured.append(self.name)
        if self.name == "4-shot":
            raise common.Error("the reason")
        return {"accuracy": len(cell.options.measured), "accuracy_ci95": [0, 1]}


def test_part_of_the_table(directory):
    """What is asked for is measured and printed; what was measured before stands in the result beside it, what failed does not."""
    methods, smollm2 = choosing.METHODS, common.SMOLLM2
    other = directory / "other.gguf"
    choosing.METHODS = {name: Method(name, n) for name, n in (("zero-shot", 0), ("4-shot", 4), ("16-shot", 16))}
    choosing.METHODS["lora"] = methods["lora"]
    common.SMOLLM2 = str(directory / "smollm2.gguf")
    for path in (common.SMOLLM2, other):
        pathlib.Path(path).touch()
    options = argparse.Namespace(out=str(directory), data=str(directory), quick=False, compute="f32", threads=1, times="never",
                                 model=[common.SMOLLM2, str(other)], only=["16-shot"], tasks=["reviews"], measured=[])
    try:
        assert [row for row in choosing.table(options) if "other" in row[0]] == [(str(other), "reviews", methods["lora"])]
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            choosing.measure(options, str(directory))
            options.only, options.tasks = ["zero-shot", "4-shot"], None
            try:
                raise AssertionError(choosing.measure(options, str(directory)))
            except common.Incomplete as error:
                assert "reviews 4-shot, tweets 4-shot" in str(error)
                rows = error.rows
            options.only = ["nonsense"]
            expect_error(common.Error, ["nonsense", "zero-shot"], lambda: choosing.measure(options, str(directory)))
    finally:
        choosing.METHODS, common.SMOLLM2 = methods, smollm2
    assert options.measured == ["16-shot", "zero-shot", "4-shot", "zero-shot", "4-shot"]
    assert [(row["data"], row["method"], row["accuracy"]) for row in rows] == [
        ("reviews", "zero-shot", 2), ("reviews", "16-shot", 1), ("tweets", "zero-shot", 4)]
    assert [json.loads(line)["accuracy"] for line in out.getvalue().splitlines()] == [1, 2, 4]
    assert "4-shot: the reason" in err.getvalue()


def test_row_of_a_method(directory):
    cell = make_cell(directory, choosing.METHODS["prompt"], steps=60)
    accuracy = {"accuracy": 0.9, "accuracy_ci95": [0.8, 0.95],
                "evaluations": [{"step": step, "accuracy": a} for step, a in ((20, 0.859), (40, 0.86), (60, 0.9))]}
    row = choosing.make_row(cell, accuracy, {"step_seconds": 0.5, "peak_rss_gb": 1.0}, None)
    untimed = choosing.make_row(cell, {**accuracy, "evaluations": []}, None, None)
    assert (row["train_minutes"], row["steps_to_target"], row["seconds_to_target"]) == (0.5, 40, 20.0)
    assert (row["low"], row["high"], row["answer_ms"]) == (0.8, 0.95, None)
    assert (untimed["train_minutes"], untimed["steps_to_target"], untimed["seconds_to_target"]) == (None, None, None)


class Peer:
    """lora_worker without a model: its accuracy falls and rises again. What it saves outlives it; it dies at request `dies_at`."""

    def __init__(self, saved, dies_at=None):
        self.saved, self.left, self.steps = saved, dies_at, 0

    def ask(self, do, **arguments):
        self.left = self.left and self.left - 1
        if self.left == 0:
            raise common.Died("gone")
        if do == "step":
            self.steps += 1
            return {"step": self.steps, "loss": 1 / self.steps, "seconds": 1}
        if do == "score":
            labels, n_right = ["positive", "negative", "positive"] * 4, (0, 0, 9, 9, 2, 2, 5)[self.steps]
            asked = labels[arguments["first"]:arguments["first"] + arguments["n"]]
            return {"logprobs": [{label: -1.0 if (label == truth) == (i < n_right) else -2.0 for label in cells.LABELS}
                                 for i, truth in enumerate(asked)]}
        if do == "save":
            self.saved[os.path.basename(arguments["directory"])] = self.steps
        elif do == "restore":
            self.steps = self.saved.get(os.path.basename(arguments["directory"]), 0)
        return {"step": self.steps}


def run_lora(directory, cell, deaths):
    saved = {}
    for dies_at in deaths:
        with contextlib.suppress(common.Died):
            evaluations = lora.train(cell, Peer(saved, dies_at), str(directory))
    files = [(directory / name).read_text(encoding="utf-8") for name in ("log.jsonl", "evaluations.jsonl")]
    return evaluations, files, saved["best"]


def test_lora_goes_on(directory):
    """Wherever a run dies, it ends as one that did not."""
    write_splits(directory)
    cell = make_cell(directory, lora.Lora())
    cell.prepared = lambda *_: ""
    with contextlib.redirect_stderr(io.StringIO()):
        whole = run_lora(directory / "run", cell, [None])
        for dies_at in range(1, 16):
            assert run_lora(directory / f"run{dies_at}", cell, [dies_at, 5, None]) == whole, dies_at
    evaluations, files, best = whole
    assert [row["step"] for row in evaluations] == [2, 4, 6] and best == 2
    assert [round(12 * row["accuracy"]) for row in evaluations] == [9, 2, 5]
    assert len(files[0].splitlines()) == 6


def test_learning_rate_is_picked():
    """By the best evaluation of each run, wherever in the run it is."""
    runs = {1.0: [(0.9, 0.5), (0.7, 0.1)], 2.0: [(0.1, 0.1), (0.9, 0.4)], 3.0: [(0.9, 0.6), (0.8, 0.1)]}
    evaluations = {rate: [{"accuracy": accuracy, "loss": loss} for accuracy, loss in run] for rate, run in runs.items()}
    assert lora.pick_rate(evaluations) == 2.0


def main():
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            with tempfile.TemporaryDirectory() as directory:
                test(*[pathlib.Path(directory)] * test.__code__.co_argcount)
            print(f"{name}: passed")


if __name__ == "__main__":
    main()
