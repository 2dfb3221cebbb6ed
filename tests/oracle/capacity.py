#!/usr/bin/env python3
"""softprompt lab capacity against mpmath, which has no overflow, and against brute force where everything can be enumerated.

    SOFTPROMPT_PROGRAM=build/softprompt oracle-venv/bin/python tests/oracle/capacity.py
"""

import itertools
import json
import math
import os
import random
import subprocess

import mpmath
import numpy as np

PROGRAM = os.environ["SOFTPROMPT_PROGRAM"]
mpmath.mp.dps = 60
INF = mpmath.inf


def bound(**flags):
    """The rows of one calculation, by name."""
    line = [PROGRAM, "lab", "capacity", "bound", "--json"]
    for name, value in flags.items():
        if not (name == "alpha" and value == INF):
            line += ["--" + name.replace("_", "-"), repr(value)]
    out = subprocess.run(line, check=True, capture_output=True, text=True)
    report = json.loads(out.stdout)
    assert report["alpha"] == (None if flags.get("alpha", INF) == INF else flags["alpha"])
    return {row["name"]: row for row in report["rows"]}


# ---- the formulas, again, with whole numbers of any size ----

def apart(distance):
    """How many points fit into [0, 1] more than `distance` apart, found by trying."""
    k = 1
    while mpmath.mpf(1) / k > distance:  # k + 1 points are 1/k apart
        k += 1
    return k


def coarsest_grid(loss, epsilon):
    grid = 2
    while loss / grid > epsilon:
        grid *= 2
    return grid


def expected(d, length, lipschitz, alpha, epsilon, precision, sequences, prompt_lipschitz):
    d, length, sequences = (mpmath.mpf(int(x)) for x in (d, length, sequences))
    c, eps, bits, g = (mpmath.mpf(x) for x in (lipschitz, epsilon, precision, prompt_lipschitz))
    n = d * length
    root = mpmath.mpf(1) if alpha == INF else n ** (1 / mpmath.mpf(alpha))
    log2 = lambda x: mpmath.log(x, 2)
    want = {"paper": (length * (2 * c * root / eps) ** n, None)}
    ramp = mpmath.mpf(1) / 16
    grid = coarsest_grid(c * root * (1 + ramp) / 2, eps)
    want["lookup"] = length * mpmath.mpf(grid) ** n, None
    grid = coarsest_grid(c * root * (1 + ramp) / 2, eps / root)
    want["uniform"] = length * mpmath.mpf(grid) ** n, None
    grid = coarsest_grid(c * root * (1 + ramp) / 2 + mpmath.mpf(1) / 4, eps / root)
    want["digits"] = mpmath.mpf(1), length * mpmath.mpf(grid) ** n * log2(2 * grid + 1) + 3
    base = mpmath.mpf(coarsest_grid(c * root / 2, eps / root)) ** d
    tokens = next(k for k in itertools.count(1) if base ** k >= 8)
    want["index"] = mpmath.mpf(tokens), log2(base ** (tokens + length)) + log2(length) + 5
    cells = mpmath.mpf(apart(2 * eps / c)) ** n
    counts = [cells * (n if alpha == INF else 1)]
    if alpha != INF:
        h = 2 * eps / mpmath.mpf(2) ** (1 / mpmath.mpf(alpha))
        if h < mpmath.mpf(1) / 2:
            counts.append(mpmath.mpf(apart(2 * h / c)) ** n * log2(2 * n))
    want["functions"] = max(counts) / (d * bits), max(counts)
    answers = sequences * n * log2(apart(2 * eps))
    want["pairs"] = answers / (d * bits), answers
    best = None
    for k in range(-8, 25):
        cells = mpmath.ceil(g / eps * mpmath.mpf(2) ** (mpmath.mpf(k) / 4))
        if cells < 2 or 2 * eps + g / cells >= 1:
            continue
        answers = sequences * n * log2(apart(2 * eps + g / cells))
        if best is None or answers / (d * log2(cells)) > best[0]:
            best = answers / (d * log2(cells)), answers
    want["smooth"] = best or (mpmath.mpf(0), mpmath.mpf(0))
    return want


def check_formulas():
    """Random settings; some whose numbers lie far beyond f64."""
    rng, worst, beyond = random.Random(1), 0, 0
    for trial in range(60):
        scale = rng.choice([3, 3, 40])
        flags = dict(d=rng.randint(1, scale), len=rng.randint(1, scale), lipschitz=rng.choice([0.37, 1, 1.9]),
                     alpha=rng.choice([INF, INF, 1.0, 2.0, 3.5]), epsilon=rng.choice([0.3, 0.1, 0.0331, 0.0047]),
                     precision=rng.choice([1, 8, 16, 32, 53]), sequences=rng.choice([1, 7, 64, 10 ** 9]),
                     prompt_lipschitz=rng.choice([1, 0.5, 117.0]))
        rows = bound(**flags)
        want = expected(flags["d"], flags["len"], *(flags[name] for name in "lipschitz alpha epsilon precision sequences prompt_lipschitz".split()))
        assert sorted(rows) == sorted(want)
        for name, (tokens, bits) in want.items():
            row = rows[name]
            if tokens == 0:
                assert row["log2_tokens"] is None
                continue
            difference = abs(row["log2_tokens"] - mpmath.log(tokens, 2))
            worst = max(worst, difference / max(1, abs(mpmath.log(tokens, 2))))
            if bits:
                worst = max(worst, abs(row["log2_bits"] - mpmath.log(bits, 2)) / max(1, abs(mpmath.log(bits, 2))))
            if tokens < (2 ** 53 if row["kind"] == "takes" else 2 ** 40) and row["kind"] != "formula":
                assert row["num_virtual_tokens"] == max(1, int(mpmath.ceil(tokens - mpmath.mpf(10) ** -9))), (name, flags, row, tokens)
            beyond += row["num_virtual_tokens"] is None
    print(f"formulas against mpmath: relative difference of the logarithms at most {float(worst):.1e}; {beyond} numbers beyond f64")
    assert worst < 1e-9 and beyond > 20  # reports have 9 digits


# ---- the packing, by enumeration ----

def check_packing():
    """The bumps behind the bound "functions", all 2^bits of them: each is C-Lipschitz into [0, 1], any two differ by more than
    2 epsilon somewhere. So no answer is within epsilon of both, and a machine needs a prompt for each."""
    pairs = 0
    for d, length, alpha, c, epsilon in [(1, 1, INF, 1.0, 0.06), (1, 1, INF, 2.0, 0.21), (2, 1, INF, 1.0, 0.26), (1, 2, INF, 1.0, 0.26),
                                         (2, 1, 2.0, 1.0, 0.2), (2, 1, 1.0, 1.0, 0.26)]:
        n = d * length
        row = bound(d=d, len=length, alpha=alpha, lipschitz=c, epsilon=epsilon, precision=1)["functions"]
        p = np.inf if alpha == INF else alpha
        chosen = None
        for directions, h in [(1, epsilon), (2, 2 * epsilon / 2 ** (0 if alpha == INF else 1 / alpha))]:
            m = apart(2 * h / c)
            if directions == 1:
                values = list(itertools.product([-1, 1], repeat=n)) if alpha == INF else [(s,) + (0,) * (n - 1) for s in (-1, 1)]
            else:
                values = [tuple(s * (i == k) for i in range(n)) for k in range(n) for s in (-1, 1)]
            if h < 0.5 and abs(m ** n * math.log2(len(values)) - 2 ** row["log2_bits"]) < 1e-6:
                chosen = h, m, values
        assert chosen, "the bound counts other bumps than these"
        h, m, values = chosen
        height = min(0.5, c / (2 * (m - 1)) if m > 1 else 0.5)
        assert height > h  # so that what differs, differs by more than 2 epsilon
        height = h + 0.5 * (height - h)
        centres = np.array(list(itertools.product(np.linspace(0, 1, m) if m > 1 else [0.5], repeat=n)))
        x = np.array(list(itertools.product(np.linspace(0, 1, 13 if n == 1 else 7), repeat=n)))
        x = np.concatenate([x, centres])
        bumps = np.maximum(0, height - c * np.linalg.norm(x[:, None] - centres[None], ord=p, axis=2))
        functions = [0.5 + bumps @ np.array(v) / 1.0 for v in itertools.islice(itertools.product(values, repeat=len(centres)), 4096)]
        functions = np.array(functions)
        assert len(functions) == min(4096, len(values) ** len(centres))
        assert functions.min() >= 0 and functions.max() <= 1
        distance = np.linalg.norm(x[:, None] - x[None], ord=p, axis=2)
        for f in functions[::max(1, len(functions) // 200)]:
            assert (np.linalg.norm(f[:, None] - f[None], ord=p, axis=2) <= c * distance + 1e-12).all(), (d, length, alpha)
        rng = np.random.default_rng(0)
        for _ in range(20000):
            i, j = rng.integers(len(functions), size=2)
            if i != j:
                assert np.linalg.norm(functions[i] - functions[j], ord=p, axis=1).max() > 2 * epsilon, (d, length, alpha)
                pairs += 1
    print(f"bumps: all Lipschitz; {pairs} pairs, all more than 2 epsilon apart")


check_formulas()
check_packing()
