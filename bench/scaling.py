"""scaling.py: how the time and the memory of a training step grow: with virtual tokens P, rows B, tokens of text L, threads.

One of them varies in a series, the others stay. Natural rows (L null) have the lengths that reviews have; a row of L tokens is
several reviews, cut by --max-length, no two rows alike.
"""

import argparse
import os

import common
import ours
import training

STEPS = 4
SERIES = {
    "P": ((10, 20, 50, 100, 200), {"B": 16}),
    "B": ((4, 8, 16, 32, 64), {"P": 32}),
    "L": ((32, 64, 128, 256, 512), {"P": 32, "B": 4}),
    "threads": (None, {"P": 32, "B": 16}),
}
QUICK_SERIES = {"P": ((10, 40), {"B": 4}), "L": ((16, 64), {"P": 8, "B": 2})}

COLUMNS = (("vary", "varies"), ("P", "P"), ("B", "B"), ("L", "L"), ("threads", "threads"), ("seconds", "seconds"),
           ("peak_rss_gb", "GB"))


def long_rows(data_dir, n_rows, n_tokens):
    """Rows of at least n_tokens tokens: a word is one or more."""
    pool = iter(training.sample_rows(data_dir, 4000))
    rows = []
    for _ in range(n_rows):
        row = dict(next(pool))
        while len(row["text"].split()) < n_tokens:
            row["text"] += " " + next(pool)["text"]
        rows.append(row)
    return rows


def thread_counts(most):
    """1, 2, 4, ... and the most."""
    counts = [1]
    while 2 * counts[-1] < most:
        counts.append(2 * counts[-1])
    return sorted({*counts, most})


def measure_point(vary, point, options, work):
    options = argparse.Namespace(**{**vars(options), "threads": point["threads"]})
    data = os.path.join(work, "batch.jsonl")
    n_tokens = point.get("L")
    ours.write_rows(data, long_rows(options.data, point["B"], n_tokens) if n_tokens
                    else training.sample_rows(options.data, point["B"]))
    done = ours.train(os.path.join(work, "run"), data, (point["P"], point["B"]), STEPS, options,
                      extra=("--max-length", str(n_tokens)) if n_tokens else ())
    return common.emit({"vary": vary, "P": point["P"], "B": point["B"], "L": n_tokens, "threads": point["threads"],
                        "compute": options.compute, "seconds": common.median(done["step_seconds"]),
                        "peak_rss_gb": done["peak_rss_gb"]})


def measure(options, work):
    rows = []
    for vary, (values, fixed) in (QUICK_SERIES if options.quick else SERIES).items():
        for value in values or thread_counts(options.threads):
            common.note(f"growth with {vary}: {value}")
            rows.append(measure_point(vary, {"threads": options.threads, **fixed, vary: value}, options, work))
    common.show("growth: seconds a training step and peak memory", COLUMNS, rows)
    return rows
