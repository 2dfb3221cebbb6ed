"""choosing.py: what to use for a task with labels: the model alone, examples in its context, PEFT's LoRA, each of our methods.

The same rows, template and answers for all; for all that train, the same steps and rows a step (cells.Budget), everything else at
the method's defaults, and the adapter is the best of the evaluations on validation rows. On the second model (Gemma 3, where it
is in the cache), only what trains is measured, and on the reviews.

A row: model, data, method; accuracy on the test split with its 95 % interval, macro_f1, n; of examples in the context the mean of
`accuracies`, one for each draw of examples from the training rows, half of each label, and at_best_threshold, what each would be if
the answers were calibrated on the test rows themselves. train_minutes: the median of a few steps
(step_seconds) times the steps, evaluations not counted; train_peak_rss_gb; artefact_bytes: what is kept for the task (the adapter,
or the examples' text); answer_ms: the median over single requests, from a text to the labels' probabilities, in one process that
has the model loaded and keys and values of all that the requests share computed (the prompt, the examples; of LoRA, which is
merged into the weights and asked in transformers, from its tokens); answer_peak_rss_gb. curve: [step, validation accuracy];
steps_to_target, seconds_to_target: of the first evaluation at TARGET or above, null: none was. Times are null where none were
taken (--times never).
"""

import dataclasses
import json
import os
import random
import shutil

import cells
import common
import inference
import lora
import ours
import plots
import training

TARGET = plots.TARGET  # accuracy on validation rows
TOLERANCE = {"f32": 0.01, "bf16": 0.3}  # nats: how far ln p of a label may differ and still be the same computation
EVAL_BATCH = 64

COLUMNS = (("model", "model"), ("data", "data"), ("method", "method"), ("accuracy", "accuracy"), ("low", "from"), ("high", "to"),
           ("train_minutes", "minutes"), ("train_peak_rss_gb", "GB"), ("artefact_bytes", "bytes"), ("answer_ms", "ms an answer"),
           ("answer_peak_rss_gb", "its GB"), ("steps_to_target", f"steps to {TARGET:.0%}"), ("seconds_to_target", "seconds"))


# ---- examples in the context -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class InContext:
    name: str
    shots: int

    def template(self, cell, draw):
        return few_shot_template(cell.template, draw_examples(ours.read_rows(cell.split("train")), self.shots, draw))

    def accuracy(self, cell):
        n_draws = cell.budget.draws if self.shots else 1
        draws = [cell.once(f"draw-{draw}", lambda draw=draw: self.evaluate(cell, draw)) for draw in range(n_draws)]
        rows, n = ours.read_rows(cell.split("test")), draws[0]["n"]
        best = [cells.best_threshold(rows, [row["logprobs"] for row in ours.read_rows(cell.path(f"predictions-{draw}.jsonl"))])
                for draw in range(n_draws)]
        accuracy, f1 = (sum(draw[key] for draw in draws) / n_draws for key in ("accuracy", "macro_f1"))
        checked = cell.once("check", lambda: self.check(cell))
        return {"n": n, "accuracy": accuracy, "accuracy_ci95": cells.wilson(accuracy * n, n), "macro_f1": f1,
                "accuracies": [draw["accuracy"] for draw in draws], "at_best_threshold": best, "checked": checked,
                "artefact_bytes": round(sum(draw["context_bytes"] for draw in draws) / n_draws)}

    def evaluate(self, cell, draw):
        template = self.template(cell, draw)
        found = evaluate(cell, ["--template", escaped(template)], cell.path(f"predictions-{draw}.jsonl"))
        return {**found, "context_bytes": len(template.encode()) - len(cell.template.encode())}

    def check(self, cell):
        """Some rows in transformers: the same probabilities of both labels."""
        mine = cells.spread(ours.read_rows(cell.path("predictions-0.jsonl")), cell.budget.checked_rows)
        with common.workers(cell.options.threads, lora.WORKER) as (worker,):
            prepared = cell.prepared("test", self.template(cell, 0), cell.budget.checked_rows)
            worker.ask("load", prepared=prepared, n_threads=cell.options.threads, seed=0)
            theirs = worker.ask("score", prepared=prepared, first=0, n=len(mine), batch_size=8)["logprobs"]
        return compare(cell, "transformers", [row["logprobs"] for row in mine], theirs)

    def training(self, cell):
        return {"step_seconds": 0.0, "peak_rss_gb": None}

    def answers(self, cell):
        return time_answers(cell, None, self.template(cell, 0), cell.path("predictions-0.jsonl"))


def draw_examples(rows, n, draw):
    """n rows, as many of each label, in any order; the same for the same `draw`."""
    rng = random.Random(f"{n}:{draw}")
    examples = [row for label in cells.LABELS for row in rng.sample([row for row in rows if row["label"] == label], n // 2)]
    rng.shuffle(examples)
    return examples


def few_shot_template(template, examples):
    """The examples, answered, then the question."""
    for row in examples:
        if "{text}" in row["text"]:
            raise common.Error(f"an example holds the word {{text}}, which a template replaces: {row['text']}")
    return "".join(template.replace("{text}", row["text"]) + f" {row['label']}\n\n" for row in examples) + template


def escaped(template):
    """As --template wants it."""
    return template.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


def compare(cell, whom, mine, theirs):
    """{label: ln p} for each row, twice -> how far they differ; an error where it is farther than rounding goes."""
    n_same, largest = 0, 0.0
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        for label in a:
            training.check_close(f"{cell.task}, {cell.method.name}, {whom}: row {number} of them, ln p of {label}", a[label],
                                 b[label], TOLERANCE[cell.options.compute])
            largest = max(largest, abs(a[label] - b[label]))
        n_same += max(a, key=a.get) == max(b, key=b.get)
    return {"rows": len(mine), "same_label": n_same, "largest_difference": largest}


# ---- our methods -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trained:
    """At its defaults; on Gemma 3 with the flags that docs/methods.md tells its users to add."""

    name: str
    flags: tuple = ()
    on_gemma: tuple = ()

    def command(self, cell, directory, steps, more):
        flags = [*self.flags, *(self.on_gemma if cell.model_name.startswith("gemma-3") else ())]
        return ["train", "-m", cell.model, "-d", cell.split("train"), "-o", directory, *flags, "--template", escaped(cell.template),
                *VERBALIZERS, "--steps", str(steps), "--batch-size", str(cell.budget.batch_size), "--seed",
                str(cell.budget.seed), "--threads", str(cell.options.threads), "--compute", cell.options.compute, "--json",
                "--quiet", *more]

    def accuracy(self, cell):
        run, budget = cell.path("run"), cell.budget
        evaluated = ["-e", cell.split("valid"), "--eval-every", str(budget.eval_every)]
        warmed_up = ["--warmup-steps", str(budget.warmup_steps)]
        done = common.run_program(self.command(cell, run, budget.steps, [*evaluated, *warmed_up, "--resume"]), cell.options.threads)
        evaluations = [{"step": row["step"], "accuracy": row["eval_accuracy"], "loss": row["eval_loss"]}
                       for row in ours.read_rows(os.path.join(run, "evaluations.jsonl"))]
        return {**evaluate(cell, ["-p", run], cell.path("predictions-0.jsonl")), "evaluations": evaluations,
                "best_step": json.loads(done["stdout"])["best_step"],
                "artefact_bytes": cells.artefact_bytes(run, (*cells.ADAPTER, "softprompt.json"))}

    def training(self, cell):
        directory = os.path.join(cell.work, "timed")
        done = common.run_program(self.command(cell, directory, cell.budget.timed_steps, ["--overwrite"]), cell.options.threads)
        log = ours.read_rows(os.path.join(directory, "log.jsonl"))
        shutil.rmtree(directory)
        return {"step_seconds": common.median([row["seconds"] for row in log[1:]]), "peak_rss_gb": done["peak_rss_gb"]}

    def answers(self, cell):
        return time_answers(cell, cell.path("run"), cell.template, cell.path("predictions-0.jsonl"))


VERBALIZERS = [flag for label in cells.LABELS for flag in ("--verbalizer", f"{label}= {label}")]


def evaluate(cell, flags, predictions):
    """softprompt eval of the test split."""
    verbalizers = [] if "-p" in flags else VERBALIZERS
    done = common.run_program(["eval", "-m", cell.model, "-d", cell.split("test"), *flags, *verbalizers, "--predictions",
                               predictions, "--batch-size", str(EVAL_BATCH), "--threads", str(cell.options.threads), "--compute",
                               cell.options.compute, "--json", "--quiet"], cell.options.threads)
    report = json.loads(done["stdout"])
    return {key: report[key] for key in ("n", "accuracy", "accuracy_ci95", "macro_f1", "loss")}


def time_answers(cell, adapter, template, predictions):
    """Single requests in one process; what they answer must be what eval answered."""
    texts, expected = ([row[key] for row in cells.spread(ours.read_rows(path), cell.budget.timed_answers)]
                       for path, key in ((cell.split("test"), "text"), (predictions, "logprobs")))
    with common.workers(cell.options.threads, "softprompt_worker") as (worker,):
        worker.ask("load", model=cell.model, n_threads=cell.options.threads, compute=cell.options.compute, adapter=adapter)
        for _ in range(2):  # the first time warms up
            done = worker.ask("answer", template=template, texts=texts, labels=cells.LABELS)
    compare(cell, "asked one by one", expected, done["logprobs"])
    return {"answer_ms": common.median(done["milliseconds"]), "peak_rss_gb": done["peak_rss_gb"],
            "shared_tokens": done["shared_tokens"]}


# ---- the table of methods ----------------------------------------------------------------------------------------------------

METHODS = {method.name: method for method in (
    InContext("zero-shot", 0),
    InContext("4-shot", 4),
    InContext("16-shot", 16),
    lora.Lora(),
    Trained("prompt", ("--method", "prompt"), ("--learning-rate", "0.07")),
    Trained("prefix", ("--method", "prefix"), ("--learning-rate", "0.1")),
    Trained("prefix-projection", ("--method", "prefix", "--prefix-projection")),
    Trained("cartridge", ("--method", "cartridge"), ("--learning-rate", "0.1")),
    Trained("ptuning", ("--method", "ptuning")),
    Trained("multitask", ("--method", "multitask"), ("--learning-rate", "0.07")),
    Trained("cpt", ("--method", "cpt", "--cpt-examples", "4")),
)}


# ---- rows --------------------------------------------------------------------------------------------------------------------


def reached(curve, target=TARGET):
    """The first step whose accuracy on validation rows is the target or better; None where none is."""
    return next((step for step, accuracy in curve if accuracy >= target), None)


def make_row(cell, accuracy, times, answers):
    step_seconds = times and times["step_seconds"]
    curve = [[found["step"], found["accuracy"]] for found in accuracy.get("evaluations", [])]
    steps = reached(curve)
    low, high = accuracy["accuracy_ci95"]
    return {"model": cell.model_name, "data": cell.task, "method": cell.method.name, **accuracy, "low": low, "high": high,
            "step_seconds": step_seconds,
            "train_minutes": None if step_seconds is None else step_seconds * cell.budget.steps / 60,
            "train_peak_rss_gb": times and times["peak_rss_gb"], "answer_ms": answers and answers["answer_ms"],
            "answer_peak_rss_gb": answers and answers["peak_rss_gb"], "curve": curve, "steps_to_target": steps,
            "seconds_to_target": steps * step_seconds if steps and step_seconds else None, "compute": cell.options.compute}


def measure_cell(cell):
    method, times = cell.method, cell.options.times
    cell.once("accuracy", lambda: method.accuracy(cell))
    if times != "never":
        cell.once("training", lambda: method.training(cell), again=times == "again")
        if cell.model == common.SMOLLM2:
            cell.once("answers", lambda: method.answers(cell), again=times == "again")


def row_of(cell):
    """What is kept of a cell; None: not its accuracy."""
    accuracy = cell.kept("accuracy")
    return accuracy and make_row(cell, accuracy, cell.kept("training"), cell.kept("answers"))


def table(options):
    """(model, data, method) of every cell, in the order of the table."""
    for model in inference.find_models(options):
        for task in cells.TEMPLATES:
            for method in METHODS.values():
                if model == common.SMOLLM2 or (task == "reviews" and not isinstance(method, InContext)):
                    yield model, task, method


def is_wanted(options, task, method):
    return task in (options.tasks or cells.TEMPLATES) and method.name in (options.only or METHODS)


def measure(options, work):
    """Measures the cells that are wanted; the rows are all that is kept, so that a part of the table can be measured alone."""
    for name in options.only or []:
        if name not in METHODS:
            raise common.Error(f"{name}: no such method; --only takes {', '.join(METHODS)}")
    budget, rows, failed = cells.QUICK if options.quick else cells.Budget(), [], []
    for model, task, method in table(options):
        cell, wanted = cells.Cell(options, budget, model, task, method, work), is_wanted(options, task, method)
        try:
            if wanted:
                measure_cell(cell)
        except common.Error as error:  # the others can still be measured
            common.note(f"{cell.model_name}, {task}, {method.name}: {error}")
            failed.append(f"{task} {method.name}")
        row = row_of(cell)
        if row:
            rows.append(common.emit(row) if wanted else row)
    common.show("choosing: accuracy on test rows, cost of training and of an answer", COLUMNS, rows)
    if failed:
        raise common.Incomplete(f"not measured: {', '.join(failed)}; the reasons are above, and what was measured is kept", rows)
    return rows
