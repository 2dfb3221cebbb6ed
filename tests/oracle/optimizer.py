#!/usr/bin/env python3
"""Writes tests/data/optimizer.json: what PyTorch and transformers do, for tests/test_optimizer.c to be held against.

    oracle-venv/bin/python tests/oracle/optimizer.py tests/data/optimizer.json

Trajectories start from f32 values and run in f64, so that the file holds the formulas and not another rounding.
"""

import json
import sys

import torch
import transformers
from transformers import optimization

STEPS = 30
KEPT = (1, 2, 3, 10, 30)


def numbers(tensor):
    return [float(x) for x in tensor.flatten().tolist()]


def trajectory(kind, weight_decay, rows, columns, scale, seed, betas=(0.9, 0.999)):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(rows, columns, generator=generator)
    gradients = [torch.randn(rows, columns, generator=generator) * scale * (1 + step % 7) for step in range(STEPS)]
    gradients[4] = torch.zeros(rows, columns)
    weight = torch.nn.Parameter(start.double())
    if kind == "adamw":
        optimizer = torch.optim.AdamW([weight], lr=1.0, weight_decay=weight_decay, betas=betas)
    else:
        optimizer = optimization.Adafactor([weight], lr=1.0, relative_step=False, scale_parameter=False, weight_decay=weight_decay)
    rates, kept = [], []
    for step, gradient in enumerate(gradients, 1):
        rates.append(0.02 * (1 - 0.5 * step / STEPS))
        optimizer.param_groups[0]["lr"] = rates[-1]
        weight.grad = gradient.double()
        optimizer.step()
        if step in KEPT:
            kept.append({"step": step, "matrix": numbers(weight.detach())})
    return {"kind": kind, "weight_decay": weight_decay, "beta1": betas[0], "beta2": betas[1], "rows": rows, "columns": columns, "rates": rates,
            "start": numbers(start), "gradients": [numbers(g) for g in gradients], "kept": kept}


def clipped(n, scale, max_norm, seed):
    gradient = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * scale
    weight = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))
    weight.grad = gradient.double()
    norm = torch.nn.utils.clip_grad_norm_([weight], max_norm)
    return {"max_norm": max_norm, "gradient": numbers(gradient), "norm": float(norm), "clipped": numbers(weight.grad)}


def schedule(name, warmup, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    getter = {"cosine": optimization.get_cosine_schedule_with_warmup, "linear": optimization.get_linear_schedule_with_warmup}
    if name == "constant":
        scheduler = optimization.get_constant_schedule_with_warmup(optimizer, warmup)
    else:
        scheduler = getter[name](optimizer, warmup, total)
    return {"schedule": name, "warmup": warmup, "total": total, "factors": [scheduler.lr_lambdas[0](s) for s in range(total + 1)]}


def main():
    cases = [trajectory(kind, decay, rows, columns, scale, seed)
             for seed, (kind, decay, rows, columns, scale) in enumerate([
                 ("adamw", 0.0, 3, 5, 1.0), ("adamw", 0.1, 1, 7, 1e-4), ("adafactor", 0.0, 3, 5, 1.0),
                 ("adafactor", 0.1, 4, 6, 1e-4), ("adafactor", 0.0, 1, 9, 10.0)])]
    cases.append(trajectory("adamw", 0.0, 2, 6, 1.0, len(cases), betas=(0.8, 0.99)))
    result = {
        "made_with": {"torch": torch.__version__, "transformers": transformers.__version__},
        "trajectories": cases,
        "clips": [clipped(12, 1.0, 1.0, 1), clipped(12, 0.01, 1.0, 2), clipped(1, 5.0, 0.5, 3)],
        "schedules": [schedule(name, warmup, total) for name in ("cosine", "linear", "constant")
                      for warmup, total in ((0, 10), (10, 50), (3, 3), (5, 2), (1, 1))],
    }
    with open(sys.argv[1], "w") as file:
        json.dump(result, file, separators=(",", ":"))
        file.write("\n")


main()
