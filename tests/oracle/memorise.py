#!/usr/bin/env python3
"""softprompt lab capacity memorise against PyTorch: answers and derivatives of layers with random weights by autograd, the machines whose
prompt is the data set, and what theory.md says that a plain layer cannot do.

    SOFTPROMPT_PROGRAM=build/softprompt oracle-venv/bin/python tests/oracle/memorise.py build/tests/write_random_layer
"""

import json
import os
import subprocess
import sys

import torch

PROGRAM = os.environ["SOFTPROMPT_PROGRAM"]
torch.set_default_dtype(torch.float64)


def tensors(line):
    return {name: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value for name, value in line.items()}


# ---- layers with random weights ----

def run_layer(layer, prompt, x):
    """As the paper writes it: all tokens of [P, X] attend to all, of which the input's are kept."""
    n_prompt, d, extra = len(prompt), layer["d"], layer["n_positions"]
    positions = torch.cat([layer["positions"].reshape(n_prompt, extra), torch.zeros(len(x), extra)])
    z = torch.cat([torch.cat([prompt, x]), positions], dim=1).T  # (D, tokens)
    weights = torch.softmax((layer["k"] @ z).T @ (layer["q"] @ z), dim=0)
    a = z + layer["ov"] @ z @ weights
    return (a[:d] + layer["w2"] @ torch.relu(layer["w1"] @ a + layer["b1"].T))[:, n_prompt:].T


def check_layers(lines):
    answers, slopes = 0, 0
    for layer in map(tensors, lines):
        def answer(prompt):
            return torch.cat([run_layer(layer, prompt, x) for x in layer["x"].split(layer["len"])])
        y = answer(layer["prompt"])
        jacobian = torch.autograd.functional.jacobian(answer, layer["prompt"]).reshape(layer["jacobian"].shape)
        answers = max(answers, ((y - layer["y"]).abs() / (1 + y.abs())).max().item())
        slopes = max(slopes, ((jacobian - layer["jacobian"]).abs() / (1 + jacobian.abs())).max().item())
        assert jacobian.abs().max() > 1e-3
    print(f"{len(lines)} random layers: answers differ by {answers:.1e}, derivatives from autograd's by {slopes:.1e}, relative")
    assert answers < 1e-10 and slopes < 1e-10


def check_monotone(lines):
    """theory.md, proposition 3: what a plain layer's prompt brings to its queries is a monotone map of K^T Q x."""
    pairs, least = 0, 0
    for layer in (tensors(line) for line in lines if line["n_positions"] == 0):
        a = layer["k"].T @ layer["q"]
        u = (a @ torch.rand(layer["d"], 200, generator=torch.Generator().manual_seed(1))).T
        m = torch.softmax(u @ layer["prompt"].T, dim=1) @ layer["prompt"]
        products = ((u[:, None] - u[None]) * (m[:, None] - m[None])).sum(-1)
        least, pairs = min(least, products.min().item()), pairs + products.numel()
    print(f"plain layers: inner products of differences at least {least:.1e}, {pairs} pairs")
    assert least > -1e-9


# ---- machines whose prompt is the data set ----

def run_machine(net, prompt, x):
    z = net["embedding"] @ torch.cat([prompt, x]).T + net["positions"]
    for i in range(100):
        part = {name: net.get(f"layers.{i}.{name}") for name in ("w1", "b1", "w2", "q", "k", "v", "o")}
        if part["w1"] is not None:
            z = z + part["w2"] @ torch.relu(part["w1"] @ z + part["b1"].T)
        elif part["q"] is not None:
            z = z + part["o"] @ (part["v"] @ z) @ torch.softmax((part["k"] @ z).T @ (part["q"] @ z), dim=0)
    first, n = map(int, net["output"][0])
    return z[first:first + n, len(prompt):].T


def check_keyed(lines):
    worst, other = 0, 10
    for net in map(tensors, lines):
        attention = [name for name in net if name.endswith(".q")]
        assert len(attention) == 1
        y = torch.cat([run_machine(net, net["prompt"], x) for x in net["x"].split(net["len"])])
        worst = max(worst, (y - net["y"]).abs().max().item())
        y = torch.cat([run_machine(net, net["prompt"].flip(0), x) for x in net["x"].split(net["len"])])
        worst = max(worst, (y - net["y"]).abs().max().item())  # the order of the prompt does not matter
        y = torch.cat([run_machine(net, torch.rand_like(net["prompt"]), x) for x in net["x"].split(net["len"])])
        other = min(other, (y - net["y"]).abs().max().item())
    print(f"{len(lines)} keyed machines in PyTorch: error {worst:.1e}; with a random prompt at least {other:.2f}")
    assert worst < 1e-8 and other > 0.3


# ---- the formulas of the report ----

def check_bounds():
    out = subprocess.run([PROGRAM, "lab", "capacity", "memorise", "-q", "--quick", "--json"], check=True, capture_output=True, text=True)
    report = json.loads(out.stdout)
    for p in report["points"]:
        flags = {"d": p["d"], "len": p["len"], "lipschitz": p["lipschitz"], "epsilon": report["epsilon"], "precision": report["precision"],
                 "sequences": p["n_sequences"]}
        line = [PROGRAM, "lab", "capacity", "bound", "--json"] + [str(f) for name, value in flags.items() for f in ("--" + name, value)]
        rows = {row["name"]: row for row in json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)["rows"]}
        assert abs(p["log2_paper"] - rows["paper"]["log2_tokens"]) < 1e-6 and abs(p["log2_pairs"] - rows["pairs"]["log2_tokens"]) < 1e-6
        for trained in p["trained"].values():  # no prompt that was found is shorter than the bound
            assert trained["not_reached"] or trained["num_virtual_tokens"] >= 2 ** p["log2_pairs"] - 1e-9
    print(f"{len(report['points'])} points: formulas as the calculator has them, and no prompt below the bound")


lines = [json.loads(line) for line in subprocess.run([sys.argv[1]], check=True, capture_output=True, text=True).stdout.splitlines()]
check_layers([line for line in lines if line["kind"] == "layer"])
check_monotone([line for line in lines if line["kind"] == "layer"])
check_keyed([line for line in lines if line["kind"] == "keyed"])
check_bounds()
