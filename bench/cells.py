"""cells.py: what choosing.py keeps. A cell is a model, a data set and a method; it has a folder of its own, and in it a file for
each thing that was measured, so that an interrupted run goes on where it was and times can be taken again without training again.

The folder's name ends in a digest of the settings that its results depend on: with other settings everything is measured anew.
"""

import dataclasses
import json
import math
import os

import common
import ours

TEMPLATES = {"reviews": "Review: {text}\nSentiment:", "tweets": "Tweet: {text}\nSentiment:"}
LABELS = ("positive", "negative")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # PEFT's files


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is done: the same for every method that trains."""

    steps: int = 180
    warmup_steps: int = 10
    batch_size: int = 16
    eval_every: int = 20
    seed: int = 1
    draws: int = 3  # of the examples in a context
    timed_steps: int = 12
    timed_answers: int = 100
    checked_rows: int = 200  # compared with transformers
    rows: int | None = None  # of each split, spread over it; None: all


QUICK = Budget(steps=4, warmup_steps=1, batch_size=4, eval_every=2, draws=1, timed_steps=3, timed_answers=4, checked_rows=8,
               rows=48)
NOT_OF_RESULTS = ("timed_steps", "timed_answers", "draws", "checked_rows")  # what more or less of changes no accuracy


class Cell:
    """model: a GGUF file; task: "reviews" or "tweets"; method: its name, and what else its results depend on."""

    def __init__(self, options, budget, model, task, method, work):
        self.options, self.budget, self.model, self.task, self.method, self.work = options, budget, model, task, method, work
        self.model_name = os.path.basename(model).removesuffix(".gguf")
        self.template = TEMPLATES[task]
        self.folder = os.path.join(options.out, "choosing-quick" if options.quick else "choosing",
                                   f"{self.model_name}-{task}-{method.name}-{common.digest(json.dumps(self.settings()))}")

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def settings(self):
        budget = {key: value for key, value in dataclasses.asdict(self.budget).items() if key not in NOT_OF_RESULTS}
        return {**budget, "template": self.template, "compute": self.options.compute, "method": dataclasses.asdict(self.method)}

    def kept(self, name):
        """What was found and kept as NAME.json; None: nothing yet."""
        path = self.path(f"{name}.json")
        if not os.path.exists(path):
            return None
        with open(path, encoding="utf-8") as file:
            return json.load(file)["found"]

    def once(self, name, measure, again=False):
        """What `measure` finds, and keeps as NAME.json. What is kept already is not measured again, unless `again`."""
        found = None if again else self.kept(name)
        if found is None:
            common.note(f"{self.model_name}, {self.task}, {self.method.name}: {name}")
            os.makedirs(self.folder, exist_ok=True)
            common.write_json(self.path("settings.json"), self.settings())
            about = {"commit": common.commit(), "load_average": os.getloadavg()[0], "threads": self.options.threads}
            found = measure()
            common.write_json(self.path(f"{name}.json"), {**about, "found": found})
        return found

    def split(self, name):
        """The file of a split's rows; of some of them where the budget says so."""
        whole = os.path.join(self.options.data, *([] if self.task == "reviews" else [self.task]), f"{name}.jsonl")
        if self.budget.rows is None:
            return whole
        part = os.path.join(os.path.dirname(self.folder), f"{self.task}-{name}.jsonl")
        if not os.path.exists(part):
            os.makedirs(os.path.dirname(part), exist_ok=True)
            ours.write_rows(part, spread(ours.read_rows(whole), self.budget.rows))
        return part

    def prepared(self, name, template=None, n=None):
        """The split's rows, or n of them that are spread over it, as tokens for the peer."""
        template = template or self.template
        path = os.path.join(self.work, f"{self.model_name}-{self.task}-{name}-{n}-{common.digest(template)}.json")
        if not os.path.exists(path):
            data = f"{path}l"
            ours.write_rows(data, spread(ours.read_rows(self.split(name)), n))
            ours.prepare(data, path, template, self.model)
        return path


def spread(rows, n):
    """n of the rows, as many from each part of them: files begin with the rows of one label."""
    return rows if n is None or n >= len(rows) else [rows[i * len(rows) // n] for i in range(n)]


def wilson(n_right, n, z=1.959963984540054):
    """95 % score interval of a share, as eval's."""
    share, spread = n_right / n, z * z / n
    middle, half = share + spread / 2, z * math.sqrt(share * (1 - share) / n + spread / n / 4)
    return [(middle - half) / (1 + spread), (middle + half) / (1 + spread)]


def macro_f1(truth, predicted):
    scores = []
    for label in sorted({*truth, *predicted}):
        both = sum(t == p == label for t, p in zip(truth, predicted))
        scores.append(2 * both / (truth.count(label) + predicted.count(label)))
    return sum(scores) / len(scores)


def judge(rows, logprobs):
    """rows with labels, {label: ln p} of each -> the figures that eval gives."""
    truth, predicted = [row["label"] for row in rows], [max(of, key=of.get) for of in logprobs]
    n_right = sum(t == p for t, p in zip(truth, predicted))
    return {"n": len(rows), "accuracy": n_right / len(rows), "accuracy_ci95": wilson(n_right, len(rows)),
            "macro_f1": macro_f1(truth, predicted), "loss": -sum(of[t] for t, of in zip(truth, logprobs)) / len(rows)}


def best_threshold(rows, logprobs):
    """The accuracy where the difference of the two labels' ln p is compared not with 0 but with what suits these rows best: what no
    calibration of the answers can exceed."""
    first, second = LABELS
    n_right = best = sum(row["label"] == first for row in rows)  # a threshold below every difference: all are the first label
    by_difference = sorted(zip((of[first] - of[second] for of in logprobs), rows), key=lambda pair: pair[0])
    for i, (difference, row) in enumerate(by_difference):
        n_right += 1 if row["label"] == second else -1
        if i + 1 == len(rows) or by_difference[i + 1][0] > difference:
            best = max(best, n_right)
    return best / len(rows)


def merit(evaluation):
    """What the best evaluation has most of, as train has it: the more accurate, among equals the one of less loss."""
    return evaluation["accuracy"], -evaluation["loss"]


def artefact_bytes(folder, names=ADAPTER):
    return sum(os.path.getsize(os.path.join(folder, name)) for name in names)
