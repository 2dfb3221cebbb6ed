"""worker.py: what a contender's process runs: requests in on stdin, answers out on stdout, a JSON object a line each.

    serve({"step": function, ...})      # {"do": "step", "lr": 1} -> function(lr=1) -> {"seconds": 0.5, "peak_rss_gb": 1.2, ...}

Each contender is a process of its own, so that its peak of memory is its own, and it stays, so that rounds can alternate: what
is loaded or built once is not timed. A request that fails is answered {"error": "..."}.
"""

import json
import os
import sys
import traceback


def peak_rss_gb():
    """Peak resident memory of this process, in units of 1e9 bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    raise RuntimeError("/proc/self/status has no VmHWM")


def serve(functions):
    functions = {**functions, "peak": dict}
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = functions[request.pop("do")](**request) or {}
            answer["peak_rss_gb"] = peak_rss_gb()
        except Exception as error:  # whatever it is, the driver wants to know
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
