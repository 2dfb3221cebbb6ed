"""common.py: what the benchmarks share: contenders' processes, the program itself, the machine, and how results are written.

The drivers use nothing but Python's own library and stay small: Linux counts the memory of the process that started a program
into that program's peak.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import time

BENCH = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(BENCH)
CACHE = os.environ.get("SOFTPROMPT_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "softprompt")
PROGRAM = os.environ.get("SOFTPROMPT_PROGRAM") or os.path.join(ROOT, "build", "softprompt")
SMOLLM2 = os.path.join(CACHE, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
PACKAGES = ("torch", "transformers", "peft", "llama-cpp-python", "numpy")

TASK = ["--template", r"Review: {text}\nSentiment:", "--verbalizer", "positive= positive", "--verbalizer", "negative= negative"]


class Error(Exception):
    pass


class Incomplete(Error):
    """Some of a part could not be measured; `rows` is the rest."""

    def __init__(self, message, rows):
        super().__init__(message)
        self.rows = rows


class Died(Error):
    """A contender's process is gone: out of memory, most often."""


def note(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def median(values):
    return statistics.median(values) if values else None


# ---- contenders --------------------------------------------------------------------------------------------------------------


def environment(n_threads):
    """A contender's: its number of threads, and how threads wait left to its library."""
    env = {**os.environ, "OMP_NUM_THREADS": str(n_threads), "PYTHONPATH": os.path.join(ROOT, "tests", "oracle"),
           "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    env.pop("OMP_WAIT_POLICY", None)
    return env


class Worker:
    """A contender's process: bench/NAME.py, which ends in worker.serve."""

    def __init__(self, name, n_threads):
        self.name = name
        self.process = subprocess.Popen([sys.executable, os.path.join(BENCH, f"{name}.py")], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=environment(n_threads))

    def ask(self, do, **arguments):
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Died(f"{self.name}: ended with status {self.process.wait()} when asked to {do} (-9: not enough memory?)")
        answer = json.loads(line)
        if "error" in answer:
            raise Error(f"{self.name}: {do}: {answer['error']}")
        return answer

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def workers(n_threads, *names):
    running = []
    try:
        for name in names:
            running.append(Worker(name, n_threads))
        yield running
    except BaseException:
        for worker in running:  # it may be in the middle of a long step, which nobody waits for any more
            worker.process.kill()
        raise
    finally:
        for worker in running:
            worker.close()


def decode_speeds(worker, n_tokens, rounds):
    """n_tokens: name -> how many the worker decodes behind what it knows by that name. -> name -> tokens a second, the median of rounds,
    which alternate; the first of each warms up."""
    speeds = {name: [] for name in n_tokens}
    for round_number in range(rounds + 1):
        for name, n in n_tokens.items():
            seconds = worker.ask("decode", name=name, n=n)["seconds"]
            if round_number > 0:
                speeds[name].append(n / seconds)
    return {name: median(found) for name, found in speeds.items()}


def run_program(arguments, n_threads, program=None):
    """softprompt ARGUMENTS, or another program -> its stdout, seconds until its first byte there, seconds in all, peak memory."""
    begin = time.perf_counter()
    process = subprocess.Popen([*(program or [PROGRAM]), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=environment(n_threads))
    first = process.stdout.read(1)
    first_seconds = time.perf_counter() - begin
    output = first + process.stdout.read()
    messages = process.stderr.read().decode(errors="replace").strip()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    process.stdout.close()
    process.stderr.close()
    if process.returncode:
        raise Error(f"{' '.join((program or [PROGRAM]) + arguments[:1])} failed with status {process.returncode}: {messages}")
    return {"stdout": output.decode(errors="replace"), "first_seconds": first_seconds, "seconds": seconds,
            "peak_rss_gb": usage.ru_maxrss * 1024 / 1e9}


# ---- the machine -------------------------------------------------------------------------------------------------------------


def describe_machine(n_threads):
    ours = json.loads(run_program(["info", "--json"], n_threads)["stdout"])
    versions = {name: installed_version(name) for name in PACKAGES}
    return {"cpu": ours["cpu"], "features": ours["features"], "kernels": ours["kernels"],
            "processors": len(os.sched_getaffinity(0)), "memory_gb": ours["memory_bytes"] / 1e9, "threads": n_threads,
            "load_average": os.getloadavg()[0],
            "versions": {"softprompt": ours["version"], "commit": commit(), **versions, "python": sys.version.split()[0]}}


def installed_version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # a part that needs it will say so


def commit():
    """What git calls the tree that was measured; None outside a checkout."""
    done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def machine_lines(machine):
    """What it is, and a warning where something else keeps it busy: a thread that waits for its share stops all others."""
    load = machine["load_average"]
    busy = f"; load average {load:.1f}: something else ran a moment ago, expect noise if it still does" if load > 0.5 else ""
    versions = "  ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [f"{machine['cpu']}, {machine['processors']} processors, {machine['memory_gb']:.1f} GB, {machine['threads']} used{busy}",
            f"features {' '.join(machine['features'])}; kernels {machine['kernels']}", versions]


def driver_rss_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# ---- results -----------------------------------------------------------------------------------------------------------------


def emit(row):
    """A row is a JSON line on stdout as soon as it is known; everything else goes to stderr."""
    print(json.dumps(row), flush=True)
    return row


def cell(value):
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return str(value)


def write_json(path, value):
    temporary = f"{path}.tmp.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    os.replace(temporary, path)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def table(columns, rows):
    """columns: (key of a row, heading) pairs -> lines of text, numbers to the right."""
    cells = [[heading for _, heading in columns]] + [[cell(row.get(key)) for key, _ in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    right = [all(isinstance(row.get(key), (int, float, type(None))) for row in rows) for key, _ in columns]
    return ["  ".join(text.rjust(width) if flush else text.ljust(width) for text, width, flush in zip(line, widths, right)).rstrip()
            for line in cells]


def show(title, columns, rows):
    print("\n".join(["", title, "", *table(columns, rows), ""]), file=sys.stderr, flush=True)
