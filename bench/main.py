"""main.py [PART|all] [options]: runs the benchmarks, the keys of PARTS. scripts/bench sets up and calls it.

JSON lines, a row each, on stdout; progress and tables on stderr; in the folder of --out, PART.json with machine and versions
beside the rows, and PART.svg, PART.png.
"""

import argparse
import json
import os
import sys
import tempfile

import cells
import choosing
import common
import compiled
import distill
import inference
import max_logit
import planning
import plots
import roofline
import scaling
import startup
import training

PARTS = {"training": training, "inference": inference, "roofline": roofline, "scaling": scaling, "startup": startup,
         "choosing": choosing, "distill": distill, "max-logit": max_logit, "compiled": compiled, "planning": planning}
LONG = ("choosing", "distill", "max-logit", "compiled", "planning")  # they train for an hour or more; no speed beside a peer's
IN_ALL = [part for part in PARTS if part not in LONG]


def parse(arguments):
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures softprompt beside its peers on this machine.")
    parser.add_argument("part", nargs="?", default="all", choices=[*PARTS, "all"])
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: does everything run?")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each contest (default: 3; 1 with --quick)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of every contender (default: the processors)")
    parser.add_argument("--compute", choices=("f32", "bf16"), default="f32", help="of softprompt (default: f32, as its peers)")
    parser.add_argument("--model", action="append", metavar="FILE",
                        help="GGUF files for inference and choosing (default: those in the cache)")
    parser.add_argument("--only", action="append", metavar="METHOD",
                        help="of choosing and max-logit: this method; of planning: this task; may be given again")
    parser.add_argument("--steps", type=int, metavar="N", help="of max-logit: a training's (default: 180), evaluated nine times")
    parser.add_argument("--data", action="append", choices=list(cells.TEMPLATES), dest="tasks", help="of choosing: on this data")
    parser.add_argument("--times", choices=("once", "again", "never"), default="once",
                        help="of choosing: measure times that are not kept yet (default), all of them again, or none")
    parser.add_argument("--out", metavar="DIR", default=os.path.join(common.BENCH, "results"), help="default: bench/results")
    parser.add_argument("--json", metavar="FILE", help="also write all results as one JSON object")
    parser.add_argument("--data-dir", required=True, dest="data", help=argparse.SUPPRESS)  # scripts/bench makes it
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.threads = options.threads or len(os.sched_getaffinity(0))
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    if options.steps is not None and options.steps < max_logit.N_EVALUATIONS:
        parser.error(f"--steps is at least {max_logit.N_EVALUATIONS}")
    return options


def main(arguments):
    options = parse(arguments)
    os.makedirs(options.out, exist_ok=True)
    machine = common.describe_machine(options.threads)
    for line in common.machine_lines(machine):
        common.note(line)
    about = {"machine": machine, "rounds": options.rounds, "compute": options.compute, "quick": options.quick}
    results, failed = dict(about), False
    for part in IN_ALL if options.part == "all" else [options.part]:
        try:
            results[part] = run_part(part, options, about)
        except common.Error as error:
            failed = True
            common.note(f"{part}: {error}")
    if options.json:
        common.write_json(options.json, results)
    return int(failed)


def run_part(part, options, about):
    incomplete = None
    with tempfile.TemporaryDirectory() as work:
        try:
            rows = PARTS[part].measure(options, work)
        except common.Incomplete as error:
            incomplete, rows = error, error.rows
    path = os.path.join(options.out, f"{part}.json")
    common.write_json(path, {**about, "rows": rows})
    common.note("wrote " + "  ".join([path, *plots.draw(part, rows, options.out)]))
    if incomplete:
        raise incomplete
    return rows


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except common.Error as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit("bench: interrupted")
