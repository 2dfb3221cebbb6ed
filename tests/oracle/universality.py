#!/usr/bin/env python3
"""softprompt lab universality against PyTorch, which runs the exported machines, and against mpmath, which integrates the identity's error.

    SOFTPROMPT_PROGRAM=build/softprompt oracle-venv/bin/python tests/oracle/universality.py
"""

import contextlib
import hashlib
import io
import json
import math
import os
import runpy
import subprocess
import sys
import tempfile

import mpmath
import torch
from safetensors.torch import load_file

PROGRAM = os.environ["SOFTPROMPT_PROGRAM"]
FUNCTIONS = "identity reverse sort mean max sine bump rotate".split()


def lab(*flags):
    """The report of one run, as a dictionary."""
    out = subprocess.run([PROGRAM, "lab", "universality", "--json", "-q", *map(str, flags)], check=True, capture_output=True, text=True)
    return json.loads(out.stdout)


def shape(d, length, grid):
    return ["--d", d, "--len", length, "--grid", grid]


# ---- the machine is a file ----

def run_reader(folder, x):
    """What the exported run.py prints for x on its standard input, without a process of its own."""
    said, stdin = io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(json.dumps(x))
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(os.path.join(folder, "run.py"))
    finally:
        sys.stdin = stdin
    return json.loads(said.getvalue())


def check_export():
    """run.py gives the examples' outputs; another function's export differs in the prompt alone; the deep and the wide machine agree."""
    worst, between = 0, 0
    for construction, d, length, grid in [("lookup", 1, 1, 16), ("lookup", 1, 2, 8), ("lookup", 2, 2, 2), ("uniform", 1, 2, 4),
                                          ("uniform", 2, 1, 2), ("index", 1, 2, 4), ("digits", 1, 1, 8), ("digits", 1, 2, 2)]:
        with tempfile.TemporaryDirectory() as folder:
            models, outputs = set(), {}
            for function in ("sine", "reverse"):
                for variant in "AB":
                    to = os.path.join(folder, function + variant)
                    lab(*shape(d, length, grid), "--construction", construction, "--variant", variant, "--function", function, "--quick",
                        "--export", to)
                    examples = json.load(open(os.path.join(to, "examples.json")))
                    theirs, ours = (torch.tensor(y, dtype=torch.float64) for y in (run_reader(to, examples["x"]), examples["y"]))
                    worst = max(worst, (theirs - ours).abs().max().item())
                    outputs[variant] = ours
                    model = hashlib.sha256(open(os.path.join(to, "model.safetensors"), "rb").read()).hexdigest()
                    models.add((variant, model))
                between = max(between, (outputs["A"] - outputs["B"]).abs().max().item())
            assert len(models) == 2, f"{construction}: the frozen model's bytes depend on the function"
    print(f"exported machines in PyTorch: largest difference {worst:.1e}; variant A against B {between:.1e}")
    assert worst <= 1e-9 and between <= 1e-9
    return worst


# ---- the identity's error ----

def identity_by_quadrature(construction, g, ramp):
    """d_2 of one coordinate: the quantiser's ramp, then what the construction makes of half a bit, integrated over [0, 1]."""
    mpmath.mp.dps = 20
    delta, w = mpmath.mpf(1) / g, mpmath.mpf(ramp) / g
    offset = delta / 4 if construction == "digits" else 0

    def value(x):
        border = mpmath.nint(x / delta)
        if not 0 < border < g or abs(x - border * delta) > w / 2:
            return (mpmath.floor(x / delta) + mpmath.mpf(1) / 2) * delta
        t = (x - border * delta) / w + mpmath.mpf(1) / 2
        low = (border - mpmath.mpf(1) / 2) * delta
        if construction == "lookup":
            return low + delta / (1 + mpmath.exp(-40 * (2 * t - 1)))
        return max(low - max(2 * t - 1, 0), low + delta - max(1 - 2 * t, 0))

    points = [mpmath.mpf(0)]
    for k in range(1, g):
        points += [k * delta + w * part / 2 for part in (-1, -0.5, -delta, 0, delta, 0.5, 1)]
    points = sorted(set(points + [mpmath.mpf(1)]))
    return float(mpmath.sqrt(mpmath.quad(lambda x: (x - value(x) - offset) ** 2, points)))


def check_identity():
    """Within 3 % of delta sqrt(dL / 12) at ramps of delta / 16; and the closed figure the program prints against quadrature."""
    worst = 0
    for d, length, grid in [(1, 1, 16), (1, 1, 128), (2, 1, 32), (1, 2, 8), (1, 2, 32), (1, 3, 8), (2, 2, 4), (2, 2, 8)]:
        report = lab(*shape(d, length, grid), "--samples", 2500 if grid ** (d * length) > 3000 else 10000, "--quick")
        ideal = math.sqrt(d * length / 12) / grid
        measured = report["error"]["2"]
        assert report["num_virtual_tokens"] == length * grid ** (d * length)
        assert abs(measured / ideal - 1) < 0.03, (d, length, grid, measured, ideal)
        low, high = report["error"]["ci95"]["2"]
        half = (high - low) / 2
        assert abs(measured - report["identity_exact"]) < 2 * half, (d, length, grid, measured, report["identity_exact"])
        worst = max(worst, abs(measured / ideal - 1))
    print(f"identity against delta sqrt(dL / 12): within {100 * worst:.2f} %")
    worst = 0
    for construction, grid, ramp in [("lookup", 4, 1 / 16), ("lookup", 4, 0.5), ("uniform", 4, 0.5), ("uniform", 8, 1), ("digits", 4, 0.5)]:
        report = lab(*shape(1, 1, grid), "--construction", construction, "--ramp", ramp, "--quick")
        worst = max(worst, abs(report["identity_exact"] / identity_by_quadrature(construction, grid, ramp) - 1))
    print(f"identity_exact against mpmath's quadrature: relative {worst:.1e}")
    assert worst < 1e-6


# ---- bounds, orders, controls ----

def check_functions():
    """Every function: under its bound everywhere; order 1 in the grid step; far off with another prompt."""
    ratio, orders, controls = 0, {}, []
    cases = [("lookup", 1, 1, 32, 1 / 16), ("lookup", 1, 2, 16, 1 / 16), ("lookup", 1, 2, 8, 0.5), ("lookup", 2, 1, 16, 0.5),
             ("lookup", 2, 2, 4, 1 / 16), ("uniform", 1, 2, 4, 0.5), ("index", 1, 2, 16, None), ("digits", 1, 1, 8, 0.5)]
    for construction, d, length, grid, ramp in cases:
        for function in FUNCTIONS:
            report = lab(*shape(d, length, grid), "--construction", construction, "--function", function, "--samples", 1000,
                         *(["--ramp", ramp] if ramp else []))
            for point in report["points"]:
                ratio = max(ratio, point["error"]["sup"] / point["bound"])
            if len(report["points"]) >= 3:
                orders[construction, d, length, function] = report["order"]
            if construction == "lookup" and grid == 16 and length == 2:
                controls.append((function, report["control"]["other"], report["control"]["shuffled"]))
    print(f"largest error seen over its bound: {ratio:.3f}")
    print(f"orders: {min(orders.values()):.3f} to {max(orders.values()):.3f}, {len(orders)} of them")
    print(f"controls at grid 16: other >= {min(c[1] for c in controls):.1f}, shuffled >= {min(c[2] for c in controls):.1f}")
    assert ratio <= 1
    assert all(abs(order - 1) <= 0.08 for order in orders.values()), orders
    assert all(other >= 4 and shuffled >= 4 for _, other, shuffled in controls), controls
    assert min(controls[0][1:]) >= 15, controls[0]


def check_gap():
    """The softmax gap of the exported look-up layer, recomputed by PyTorch at random inputs, is what was built."""
    with tempfile.TemporaryDirectory() as to:
        report = lab(*shape(1, 2, 8), "--quick", "--export", to)
        net, prompt = load_file(os.path.join(to, "model.safetensors")), load_file(os.path.join(to, "prompt.safetensors"))["prompt"]
        last = max(int(name.split(".")[1]) for name in net if name.startswith("layers."))
        x = torch.rand(500, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        smallest = math.inf
        for sample in x:
            steps = sample * 8
            if ((steps - steps.round()).abs() < 1 / 16).any():  # near a ramp
                continue
            z = net["embedding"] @ torch.cat([prompt, sample]).T + net["positions"]
            for i in range(last):
                part = {name: net.get(f"layers.{i}.{name}") for name in ("w1", "b1", "w2", "q", "k", "v", "o")}
                if part["w1"] is not None:
                    z = z + part["w2"] @ torch.relu(part["w1"] @ z + part["b1"].T)
                else:
                    z = z + part["o"] @ (part["v"] @ z) @ torch.softmax((part["k"] @ z).T @ (part["q"] @ z), dim=0)
            scores = (net[f"layers.{last}.k"] @ z).T @ (net[f"layers.{last}.q"] @ z)
            best = scores[:, len(prompt):].topk(2, dim=0).values
            smallest = min(smallest, (best[0] - best[1]).min().item())
    print(f"softmax gap: {report['gap']:.6f} here, {smallest:.6f} in PyTorch, {report['gap_bound']} as built")
    assert abs(report["gap"] - smallest) < 1e-9 and abs(report["gap"] - 40) < 1e-9


# ---- what one layer can not do ----

def layers_of(net):
    """The layers of an exported machine, each a dictionary of its matrices."""
    layers = {}
    for name, tensor in net.items():
        if name.startswith("layers."):
            _, index, matrix = name.split(".")
            layers.setdefault(int(index), {})[matrix] = tensor
    return [layers[i] for i in range(len(layers))]


def machine(folder, *flags):
    lab(*flags, "--quick", "--export", folder)
    return load_file(os.path.join(folder, "model.safetensors")), load_file(os.path.join(folder, "prompt.safetensors"))["prompt"]


def forward(net, prompt, x, replace=None):
    """y (len, d) of x (len, d). replace(part, z): what stands in for an attention layer; None: the layer itself."""
    z = net["embedding"] @ torch.cat([prompt, x]).T + net["positions"]
    for part in layers_of(net):
        if "w1" in part:
            z = z + part["w2"] @ torch.relu(part["w1"] @ z + part["b1"].T)
        elif replace:
            z = replace(part, z)
        else:
            z = z + part["o"] @ (part["v"] @ z) @ torch.softmax((part["k"] @ z).T @ (part["q"] @ z), dim=0)
    first, n = (int(number) for number in net["output"][0])
    return z[first:first + n, len(prompt):].T


def prompt_sums(part, z, n_prompt, token):
    """What the prompt contributes to one token: numerator (D_v) and normaliser of its softmax, D_v + 1 numbers."""
    weights = torch.exp((part["k"] @ z[:, :n_prompt]).T @ (part["q"] @ z[:, token]))
    return part["v"] @ z[:, :n_prompt] @ weights, weights.sum()


def check_sums():
    """Proposition 1. On all inputs that share a token, its D_v + 1 sums over the prompt are the same in a machine of one attention layer,
    and they stand in for the prompt there: what it says of that token comes out of them. In the machine of two they are not the same."""
    worst, of_two = 0, 0
    generator = torch.Generator().manual_seed(2)
    for construction, d, grid in [("uniform", 1, 4), ("uniform", 2, 2), ("digits", 1, 2), ("lookup", 1, 8)]:
        with tempfile.TemporaryDirectory() as folder:
            net, prompt = machine(folder, *shape(d, 2, grid), "--construction", construction, "--function", "sort")
            attention = [part for part in layers_of(net) if "o" in part]
            n, values = len(prompt), attention[-1]["v"].shape[0]
            assert len(attention) == (2 if construction == "lookup" else 1)
            shared, kept, spread = torch.rand(d, dtype=torch.float64, generator=generator), None, 0
            for _ in range(12):
                x = torch.stack([shared, torch.rand(d, dtype=torch.float64, generator=generator)])
                seen = []

                def remember(part, z):
                    seen.append(prompt_sums(part, z, n, n))
                    return z + part["o"] @ (part["v"] @ z) @ torch.softmax((part["k"] @ z).T @ (part["q"] @ z), dim=0)

                y = forward(net, prompt, x, remember)
                now = torch.cat([seen[-1][0], seen[-1][1].reshape(1)])
                kept = now if kept is None else kept
                assert now.isfinite().all() and y.isfinite().all()
                spread = max(spread, ((now - kept).abs().max() / kept.abs().max()).item())
                if construction == "lookup":
                    continue

                def from_sums(part, z):
                    """Token `shared` attends by the sums of the first input alone; there is no prompt any more."""
                    own = torch.exp((part["k"] @ z[:, n:]).T @ (part["q"] @ z[:, n]))
                    mean = (kept[:values] + part["v"] @ z[:, n:] @ own) / (kept[values] + own.sum())
                    out = z.clone()
                    out[:, n] += part["o"] @ mean
                    out[:, :n] = 0
                    return out

                difference = (forward(net, prompt, x, from_sums)[0] - y[0]).abs().max().item()
                assert difference < 1e-12, (construction, difference)
                worst = max(worst, difference)
            if construction == "lookup":
                of_two = spread
            else:
                assert spread == 0, (construction, spread)
            bits = d * math.ceil(grid * 0.999 / (1 + 1 / 16)) ** d  # epsilon at which this grid is the one that does
            assert construction != "uniform" or values + 1 >= bits, "a machine below the bound"
    print(f"one layer: its answer out of the D_v + 1 sums, difference {worst:.1e}; two layers: the sums move by {of_two:.2f} of their size")
    assert of_two > 0.1


def check_constant_size():
    """The look-up without its first layer: constant size, one attention layer; a token knows nothing of the other, and the prompt answers
    with the mean. Reversal: 1/sqrt(6) at every grid, where two layers fall with it."""
    found = []
    for grid in (4, 8, 16):
        with tempfile.TemporaryDirectory() as folder:
            net, prompt = machine(folder, *shape(1, 2, grid), "--function", "reverse")
        n, m = len(prompt), int(math.log2(grid))
        attention = [part for part in layers_of(net) if "o" in part]

        def alone(part, z):
            if part is not attention[0] and not torch.equal(part["v"], attention[0]["v"]):
                return z + part["o"] @ (part["v"] @ z) @ torch.softmax((part["k"] @ z).T @ (part["q"] @ z), dim=0)
            codes = (part["o"] != 0).to(torch.float64)
            z = z + codes @ part["v"] @ z  # its own bits, in its own block
            rows = codes.argmax(dim=0)
            for token in range(2):
                z[rows[(1 - token) * m:(2 - token) * m], n + token] += 0.5  # of the other's: all values alike
            return z

        squares = [[], []]
        generator = torch.Generator().manual_seed(grid)
        for _ in range(500):
            x = torch.rand(2, 1, dtype=torch.float64, generator=generator)
            for way, replace in enumerate((alone, None)):
                squares[way].append((forward(net, prompt, x, replace) - x.flip(0)).square().sum().item())
        one, two = (math.sqrt(sum(way) / len(way)) for way in squares)
        found.append((grid, one, two))
        assert abs(one * math.sqrt(6) - 1) < 0.05 and abs(two / (math.sqrt(2 / 12) / grid) - 1) < 0.06, found
    print("reversal, d_2 with one layer of constant size and with two, 1/sqrt(6) = .408: "
          + ", ".join(f"grid {grid}: {one:.3f} {two:.4f}" for grid, one, two in found))


def check_rank_one():
    """Proposition 2. With scores of rank 1 no key between two others gets more than half of the weight; of rank 2 every key of three can."""
    generator = torch.Generator().manual_seed(3)
    largest = 0
    for scale in (0.1, 1, 10, 100):
        keys = torch.randn(20000, 3, dtype=torch.float64, generator=generator).sort(dim=1).values
        query = torch.randn(20000, 1, dtype=torch.float64, generator=generator) * scale
        largest = max(largest, torch.softmax(query * keys, dim=1)[:, 1].max().item())
    angles = 2 * math.pi * torch.arange(3, dtype=torch.float64) / 3
    keys = torch.stack([angles.cos(), angles.sin()])
    smallest = torch.softmax(20 * keys.T @ keys, dim=0).diagonal().min().item()
    print(f"rank 1: the middle one of three keys gets at most {largest:.4f}; rank 2: each can get {smallest:.4f}")
    assert largest <= 0.5 and smallest > 0.999


check_export()
check_identity()
check_functions()
check_gap()
torch.set_num_threads(1)  # small products: threads would wait for each other
check_sums()
check_constant_size()
check_rank_one()
