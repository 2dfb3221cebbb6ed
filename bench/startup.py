"""startup.py: from the start of a process to the first token it prints, the files being in the page cache.

The peers are started through Python, as people do, its own start included. All must print the same token. A row: program,
first_token_seconds (until the first byte of output), seconds (until the process is gone), peak_rss_gb.
"""

import json
import os
import sys

import common
import ours
import training

TEXT = "The capital of France is"  # what comes next is plain enough to survive any rounding
REVIEW = "A gorgeous, witty, seductive movie."
N_VIRTUAL = 32

COLUMNS = (("program", "program"), ("first_token_seconds", "first token"), ("seconds", "seconds"), ("peak_rss_gb", "GB"),
           ("token", "token"))


def contenders(options, work):
    """name -> program, arguments. The adapter has labels, so what it prints first is one of them."""
    data, prepared, adapter = (os.path.join(work, name) for name in ("rows.jsonl", "rows.json", "adapter"))
    ours.write_rows(data, training.sample_rows(options.data, 4))
    ours.prepare(data, prepared)
    ours.make_adapter(adapter, data, (N_VIRTUAL, 4), options)
    with open(prepared, encoding="utf-8") as file:
        directory = json.load(file)["model"]
    threads, python = str(options.threads), [sys.executable]
    run = ["run", "-m", common.SMOLLM2, "--quiet", "--threads", threads, "--compute", options.compute]
    return {
        "softprompt run": ([common.PROGRAM], [*run, "--max-new-tokens", "1", TEXT]),
        "softprompt run -p ADAPTER": ([common.PROGRAM], [*run, "-p", adapter, REVIEW]),
        "llama.cpp, in Python": (python, [os.path.join(common.BENCH, "start_llamacpp.py"), common.SMOLLM2, threads, TEXT]),
        "transformers": (python, [os.path.join(common.BENCH, "start_transformers.py"), directory, threads, TEXT]),
    }


def measure(options, work):
    found = contenders(options, work)
    timings = {name: [] for name in found}
    for round_number in range(options.rounds + 1):  # the first fills the page cache
        common.note(f"start: round {round_number} of {options.rounds}")
        for name, (program, arguments) in found.items():
            done = common.run_program(arguments, options.threads, program)
            if round_number > 0:
                timings[name].append(done)
    rows = []
    for name, runs in timings.items():
        medians = {key: common.median([run[key] for run in runs]) for key in ("first_seconds", "seconds")}
        rows.append(common.emit({"program": name, "first_token_seconds": medians["first_seconds"], "seconds": medians["seconds"],
                                 "peak_rss_gb": max(run["peak_rss_gb"] for run in runs), "token": runs[0]["stdout"].strip()}))
    if len({row["token"] for row in rows if "ADAPTER" not in row["program"]}) != 1:
        raise common.Error(f"the programs' first tokens differ: {', '.join(row['token'] for row in rows)}")
    common.show("start: seconds from the start of a process to its first token", COLUMNS, rows)
    return rows
