"""roofline.py: how much of what the machine can do a training step and a decode step reach, and where a training step's time goes.

Rows have a key `what`:
    machine    threads, gemm_gflops (products of 2048 x 2048 floats, the faster of mkl_gflops and onednn_gflops),
               read_gb_per_second (1 GiB of floats, summed)
    training   P, B, seconds, gflop (flops.py counts them), gflops, gemm_share: gflops over the machine's peak;
               parts: share of all threads' time by part of the step, null where the program does not say;
               matmul_gflops: the products' operations over the time spent in them
    decode     context, seconds (a token), gb: the weights as they stand in the file, and the context's keys and values as floats;
               read_share: gb over seconds and over the peak
"""

import json
import os

import common
import flops
import ours
import training

TRAINING = ((20, 16), (100, 16))
QUICK_TRAINING = ((20, 16),)
DECODE_CONTEXTS = (1, 2048)
DECODE_TOKENS = 32
STEPS = 12

COLUMNS = {
    "machine": (("threads", "threads"), ("mkl_gflops", "GFLOP/s, MKL"), ("onednn_gflops", "oneDNN"),
                ("read_gb_per_second", "GB/s")),
    "training": (("P", "P"), ("B", "B"), ("threads", "threads"), ("seconds", "seconds"), ("gflop", "GFLOP"), ("gflops", "GFLOP/s"),
                 ("gemm_share", "of the peak"), ("matmul_gflops", "in products")),
    "decode": (("context", "context"), ("threads", "threads"), ("seconds", "seconds"), ("gb", "GB"), ("read_share", "of the peak")),
}


def thread_counts(most):
    return sorted({1, most})


def measure_machine(options):
    rows = []
    with common.workers(options.threads, "machine_worker") as (worker,):
        for n in thread_counts(options.threads):
            common.note(f"peaks of the machine, threads: {n}")
            answer = worker.ask("gemm", n_threads=n, repetitions=15)
            gemm = {name: answer[name] for name in ("mkl", "onednn")}
            rows.append(common.emit({"what": "machine", "threads": n, "gemm_gflops": max(gemm.values()), "mkl_gflops": gemm["mkl"],
                                     "onednn_gflops": gemm["onednn"],
                                     "read_gb_per_second": worker.ask("read", n_threads=n, repetitions=9)["gb_per_second"]}))
    return rows


def shares(report, n_threads):
    """Parts of a run's time -> their shares, and `rest`: what no part is charged with, waiting included."""
    parts = report.get("thread_seconds")
    if not parts:
        return None
    whole = n_threads * report["seconds"]
    return {**{part: seconds / whole for part, seconds in parts.items()}, "rest": 1 - sum(parts.values()) / whole}


def measure_training(size, options, shape, work):
    n_virtual, n_rows = size
    common.note(f"a training step, P = {n_virtual}, B = {n_rows}")
    data, prepared = os.path.join(work, "batch.jsonl"), os.path.join(work, "batch.json")
    ours.write_rows(data, training.sample_rows(options.data, n_rows))
    ours.prepare(data, prepared)
    with open(prepared, encoding="utf-8") as file:
        contexts = [row["context"] for row in json.load(file)["rows"]]
    operations = flops.training_step(shape, n_virtual, contexts)
    done = ours.train(os.path.join(work, "run"), data, size, STEPS, options)
    seconds, parts = common.median(done["step_seconds"]), shares(done["report"], options.threads)
    gflop = sum(operations.values()) / 1e9
    matmul_seconds = parts and parts.get("matmul") and parts["matmul"] * seconds
    return {"what": "training", "P": n_virtual, "B": n_rows, "threads": options.threads, "compute": options.compute,
            "seconds": seconds, "gflop": gflop, "gflops": gflop / seconds,
            "matmul_gflops": operations["matmul"] / 1e9 / matmul_seconds if matmul_seconds else None, "parts": parts}


def measure_decode(options, shape):
    rows = []
    with common.workers(options.threads, "softprompt_worker") as (worker,):
        worker.ask("load", model=common.SMOLLM2, n_threads=options.threads, compute=options.compute)
        for context in DECODE_CONTEXTS:
            common.note(f"a decode step, context {context}")
            tokens = [(7 * i) % 30000 + 100 for i in range(context + DECODE_TOKENS)]  # which ones does not matter to the time
            worker.ask("prefill", tokens=tokens[:context])
            seconds = common.median([worker.ask("decode", tokens=tokens[context:])["seconds"] / DECODE_TOKENS
                                     for _ in range(options.rounds + 2)])
            gb = flops.decode_bytes(shape, context + DECODE_TOKENS // 2) / 1e9
            rows.append({"what": "decode", "context": context, "threads": options.threads, "seconds": seconds, "gb": gb})
    return rows


def show_parts(rows):
    rows = [{"P": row["P"], "B": row["B"], **row["parts"]} for row in rows if row.get("parts")]
    if rows:
        common.show("roofline: share of all threads' time by part of a training step", [(key, key) for key in rows[0]], rows)


def measure(options, work):
    shape = json.loads(common.run_program(["info", "--json", common.SMOLLM2], 1)["stdout"])
    machine = measure_machine(options)
    found = [measure_training(size, options, shape, work) for size in (QUICK_TRAINING if options.quick else TRAINING)]
    decode = measure_decode(options, shape)
    machine += measure_machine(options)  # a machine's speed drifts: the peak is the higher of before and after
    peak = {key: max(row[key] for row in machine) for key in ("gemm_gflops", "read_gb_per_second")}
    found = [common.emit({**row, "gemm_share": row["gflops"] / peak["gemm_gflops"]}) for row in found]
    decode = [common.emit({**row, "read_share": row["gb"] / row["seconds"] / peak["read_gb_per_second"]}) for row in decode]
    common.show("roofline: the machine", COLUMNS["machine"], machine)
    common.show("roofline: a training step", COLUMNS["training"], found)
    show_parts(found)
    common.show("roofline: a decode step", COLUMNS["decode"], decode)
    return machine + found + decode
