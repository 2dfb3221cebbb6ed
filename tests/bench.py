#!/usr/bin/env python3
"""bench.py: the parts of bench/ that measure nothing: counting, asking contenders, writing results. Needs no Python packages."""

import contextlib
import io
import json
import os
import pathlib
import random
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bench"))

import common
import flops
import plots
import roofline
import scaling
import training

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
            assert b.ask("peak")["peak_rss_gb"] == before  # each has its own
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
    for part, rows in (("training", sizes), ("inference", texts), ("scaling", steps), ("roofline", reached)):
        svg, png = plots.draw(part, rows, str(directory))
        assert "<svg" in pathlib.Path(svg).read_text(encoding="utf-8")[:400] and pathlib.Path(png).read_bytes()[:4] == b"\x89PNG"
    assert plots.draw("startup", sizes, str(directory)) == [] and plots.draw("training", [], str(directory)) == []
    assert not list(directory.glob("*.tmp.*"))


def main():
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            with tempfile.TemporaryDirectory() as directory:
                test(*[pathlib.Path(directory)] * test.__code__.co_argcount)
            print(f"{name}: passed")


if __name__ == "__main__":
    main()
