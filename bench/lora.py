"""lora.py: PEFT's LoRA as a method of choosing.py: its defaults, our template, answers, rows a step, steps and schedule.

As with softprompt train --eval-every, the adapter that is tested is the best of the evaluations on validation rows; here of a whole
run at each of `rates`, since there is no default to go by.
"""

import dataclasses
import os

import cells
import common
import ours

WORKER = "lora_worker"
SCORED_AT_ONCE = 256
BATCH = 32  # rows in a pass without gradients


@dataclasses.dataclass(frozen=True)
class Lora:
    name: str = "lora"
    rates: tuple = (1e-3, 4e-3)

    def accuracy(self, cell):
        evaluations = {rate: cell.once(f"run-{rate}", lambda rate=rate: self.train(cell, rate)) for rate in self.rates}
        rate = pick_rate(evaluations)
        best = run_folder(cell, rate, "best")
        with common.workers(cell.options.threads, WORKER) as (worker,):
            about = start(cell, worker, rate)
            worker.ask("restore", directory=best)
            found = evaluate(cell, worker, "test")
        return {**found, **about, "learning_rate": rate, "artefact_bytes": cells.artefact_bytes(best),
                "evaluations": evaluations[rate]}

    def train(self, cell, rate):
        with common.workers(cell.options.threads, WORKER) as (worker,):
            start(cell, worker, rate)
            return train(cell, worker, run_folder(cell, rate))

    def training(self, cell):
        with common.workers(cell.options.threads, WORKER) as (worker,):
            start(cell, worker, self.rates[0])
            answers = [worker.ask("step") for _ in range(cell.budget.timed_steps)]
        return {"step_seconds": common.median([answer["seconds"] for answer in answers[1:]]),
                "peak_rss_gb": answers[-1]["peak_rss_gb"]}

    def answers(self, cell):
        """Merged into the weights, as one would for use."""
        with common.workers(cell.options.threads, WORKER) as (worker,):
            rate = cell.kept("accuracy")["learning_rate"]
            start(cell, worker, rate)
            worker.ask("restore", directory=run_folder(cell, rate, "best"))
            worker.ask("merge")
            prepared = cell.prepared("test", n=cell.budget.timed_answers)
            for _ in range(2):  # the first time warms up
                done = worker.ask("answer", prepared=prepared)
        return {"answer_ms": common.median(done["milliseconds"]), "peak_rss_gb": done["peak_rss_gb"]}


def run_folder(cell, rate, *names):
    return cell.path(f"run-{rate}", *names)


def pick_rate(evaluations):
    """{rate: evaluations of its run} -> the rate of the best of all; among equals the first."""
    return max(evaluations, key=lambda rate: max(map(cells.merit, evaluations[rate])))


def start(cell, worker, rate):
    prepared = cell.prepared("train")
    worker.ask("load", prepared=prepared, n_threads=cell.options.threads, seed=cell.budget.seed)
    about = worker.ask("add_lora", prepared=prepared, batch_size=cell.budget.batch_size, learning_rate=rate,
                       steps=cell.budget.steps, warmup_steps=cell.budget.warmup_steps)
    about.pop("peak_rss_gb")
    return about


def evaluate(cell, worker, split):
    rows, logprobs = ours.read_rows(cell.split(split)), []
    while len(logprobs) < len(rows):
        n = min(SCORED_AT_ONCE, len(rows) - len(logprobs))
        logprobs += worker.ask("score", prepared=cell.prepared(split), first=len(logprobs), n=n, batch_size=BATCH)["logprobs"]
    return cells.judge(rows, logprobs)


def train(cell, worker, directory):
    """Trains on from the checkpoint in `directory`; log.jsonl and evaluations.jsonl there are those of softprompt train, less
    what LoRA has not. -> the evaluations."""
    budget = cell.budget
    os.makedirs(directory, exist_ok=True)
    done = worker.ask("restore", directory=directory)["step"]
    log, evaluations = (kept(os.path.join(directory, name), done) for name in ("log.jsonl", "evaluations.jsonl"))
    while done < budget.steps:
        n = min(budget.eval_every, budget.steps - done)
        log += [worker.ask("step") for _ in range(n)]
        done += n
        found = {"step": done, **evaluate(cell, worker, "valid")}
        if all(cells.merit(found) > cells.merit(earlier) for earlier in evaluations):
            worker.ask("save", directory=os.path.join(directory, "best"))
        evaluations.append(found)
        ours.write_rows(os.path.join(directory, "log.jsonl"), log)
        ours.write_rows(os.path.join(directory, "evaluations.jsonl"), evaluations)
        worker.ask("save", directory=directory)  # last: what is written above and not yet here is done again
        common.note(f"lora, {cell.task}, {os.path.basename(directory)}: step {done} of {budget.steps}, accuracy on validation rows "
                    f"{found['accuracy']:.4f}")
    return evaluations


def kept(path, n_steps):
    """The rows up to a step."""
    return [row for row in ours.read_rows(path) if row["step"] <= n_steps] if n_steps else []
