"""planning.py: does softprompt plan recommend well? Four tasks: movie reviews; naming the colour in a sentence, which a single
vector can ask for; and pairs to be learnt by heart, 64 of them, which take several vectors, and 128, which take more.

For each task: `plan` on the training rows, then a whole training at each length of LENGTHS, one seed, all with the same steps, rows a
step and everything else at train's defaults, judged by rows that neither saw (the pairs: by themselves, and plan's pilots of the same
seed are these trainings). The made tasks come from a seed. Each plan and training is kept in a folder of its own; one that was
interrupted goes on.

A row, a task: lengths, loss and accuracy at each; missing: lengths that are not measured yet; best: the length of the highest
accuracy; smallest: the shortest length within 1 point of it; recommended, range, pilots: the longest pilot; ratio: recommended to
smallest; points: how far the training at the recommended length is behind the best; ok: it is itself within the point, at a ratio of
at most 2. ok is null where lengths are missing.
"""

import dataclasses
import json
import os
import random

import cells
import choosing
import common
import ours

LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128)
POINTS, RATIO = 0.01, 2  # what counts as good
EVAL_ROWS = 1024
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "brown", "orange")
THINGS = ("chair", "river", "horse", "stone", "bread", "tiger", "boat", "house", "bird", "table", "cup", "tree")
QUALITIES = ("old", "new", "small", "big")
WORDS = ("apple", "river", "stone", "cloud", "tiger", "chair", "bread", "green", "seven", "north", "music", "paper", "glass",
         "metal", "horse", "water")

COLUMNS = (("task", "task"), ("measured", "lengths"), ("best", "best"), ("smallest", "smallest good"),
           ("recommended", "recommended"), ("low", "from"), ("high", "to"), ("ratio", "ratio"), ("points", "points behind"),
           ("ok", "ok"))


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    template: str
    steps: int
    batch_size: int
    pilot_steps: int = 60  # plan's default; what is learnt by heart takes longer to show what a length is worth
    n_pairs: int = 0  # to be learnt by heart


TASKS = (Task("colours", "{text}:", 100, 8), Task("pairs", "{text}:", 200, 16, 200, 64),
         Task("many-pairs", "{text}:", 200, 32, 200, 128), Task("reviews", cells.TEMPLATES["reviews"], 90, 16))


# ---- data --------------------------------------------------------------------------------------------------------------------


def make_colours(n, seed):
    """The answer stands in the text: what has to be learnt is that this word of it is asked for."""
    rng, rows = random.Random(f"colours:{seed}"), []
    for _ in range(n):
        colour = rng.choice(COLOURS)
        rows.append({"text": f"the {rng.choice(THINGS)} is {colour} and the {rng.choice(THINGS)} is {rng.choice(QUALITIES)}",
                     "label": colour})
    return rows


def make_pairs(n, seed):
    """A word for each of n keys that differ, at random: log2 16 = 4 bits a pair, without a rule."""
    rng, keys = random.Random(f"pairs:{seed}"), {}
    while len(keys) < n:
        keys[pseudoword(rng, 2)] = rng.choice(WORDS)
    return [{"text": key, "label": word} for key, word in keys.items()]


def pseudoword(rng, n_syllables):
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(n_syllables))


def write_task(options, task, folder):
    """-> the files of the rows to train on and to judge by."""
    if task.name == "reviews":
        train, valid = (os.path.join(options.data, f"{name}.jsonl") for name in ("train", "valid"))
        rows = ours.read_rows(train), cells.spread(ours.read_rows(valid), EVAL_ROWS)
    elif task.name == "colours":
        rows = make_colours(512, 1), make_colours(256, 2)
    else:
        rows = (make_pairs(task.n_pairs, 1),) * 2
    paths = [os.path.join(folder, f"{name}.jsonl") for name in ("train", "eval")]
    for path, of in zip(paths, rows):
        ours.write_rows(path, cells.spread(of, 48) if options.quick else of)
    return paths


# ---- what is measured ----------------------------------------------------------------------------------------------------------


def find_folder(options, task):
    """Of all that is kept of a task; with other settings everything is measured anew."""
    settings = {**dataclasses.asdict(task), "compute": options.compute, "model": os.path.basename(common.SMOLLM2)}
    folder = os.path.join(options.out, "planning-quick" if options.quick else "planning",
                          f"{task.name}-{common.digest(json.dumps(settings))}")
    os.makedirs(folder, exist_ok=True)
    return folder


def once(folder, name, measure):
    """What `measure` finds, and keeps as NAME.json in the folder, with the program that found it."""
    path = os.path.join(folder, f"{name}.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            return json.load(file)["found"]
    common.note(f"{os.path.basename(folder)}: {name}")
    about = {"commit": common.commit()}
    found = measure()
    common.write_json(path, {**about, "found": found})
    return found


def flags_of(options, task):
    verbalizers = choosing.VERBALIZERS if task.name == "reviews" else []
    return ["-m", common.SMOLLM2, "--template", choosing.escaped(task.template), *verbalizers, "--batch-size", str(task.batch_size),
            "--threads", str(options.threads), "--compute", options.compute, "--json", "--quiet"]


def plan(options, task, folder, rows):
    """The pairs judge their own pilots, as docs/planning.md tells its users; otherwise plan holds rows out by itself."""
    judged = [] if task.n_pairs == 0 else ["-e", rows[1]]
    done = common.run_program(["plan", "-d", rows[0], *judged, *flags_of(options, task), "-o", os.path.join(folder, "pilots"),
                               "--resume", "--plot", os.path.join(folder, "plan.png"),
                               *(["--quick"] if options.quick else ["--steps", str(task.pilot_steps)])], options.threads)
    return json.loads(done["stdout"])


def find_pilot(options, task, folder, length):
    """What plan's pilot of the same seed found, where pilots are whole trainings and rows judge themselves; None: there is none."""
    path = os.path.join(folder, "pilots", f"{length}-1", "evaluations.jsonl")
    if options.quick or task.n_pairs == 0 or task.pilot_steps != task.steps or not os.path.exists(path):
        return None
    found = ours.read_rows(path)[-1]
    return {"n": found["eval_examples"], "loss": found["eval_loss"], "accuracy": found["eval_accuracy"]}


def train(options, task, folder, rows, length):
    if pilot := find_pilot(options, task, folder, length):
        return pilot
    done = common.run_program(["train", "-d", rows[0], "-e", rows[1], *flags_of(options, task), "-o",
                               os.path.join(folder, f"{length}"), "--num-virtual-tokens", str(length), "--seed", "1", "--steps",
                               str(4 if options.quick else task.steps), "--resume"], options.threads)
    found = json.loads(done["stdout"])["evaluation"]
    return {key: found[key] for key in ("n", "loss", "accuracy")}


# ---- what it says --------------------------------------------------------------------------------------------------------------


def judge(by_length, recommended):
    """{length: {loss, accuracy}} and what plan recommends -> best, smallest, ratio, how far behind, ok."""
    best = max(by_length, key=lambda n: (by_length[n]["accuracy"], -n))
    behind = {n: by_length[best]["accuracy"] - of["accuracy"] for n, of in by_length.items()}
    good = [n for n in sorted(by_length) if behind[n] <= POINTS + 1e-9]
    far = behind.get(recommended)
    return {"best": best, "smallest": good[0], "ratio": recommended / good[0], "points": None if far is None else 100 * far,
            "ok": far is not None and far <= POINTS + 1e-9 and recommended <= RATIO * good[0]}


def make_row(task, planned, by_length, wanted=LENGTHS):
    """planned, by_length: what there is of them; None where that is nothing."""
    row = {"task": task.name, "steps": task.steps, "batch_size": task.batch_size,
           "lengths": sorted(by_length), "measured": f"{len(by_length)} of {len(wanted)}",
           "missing": [n for n in wanted if n not in by_length],
           "losses": [by_length[n]["loss"] for n in sorted(by_length)],
           "accuracies": [by_length[n]["accuracy"] for n in sorted(by_length)]}
    if planned:
        tried = [of for of in planned["lengths"] if of["pilots"]]
        row.update({"recommended": planned["num_virtual_tokens"], "low": planned["range"][0], "high": planned["range"][1],
                    "pilots": tried[-1]["num_virtual_tokens"], "curve": planned["error_curve"],
                    "fitted": [[of["num_virtual_tokens"], of["fitted_accuracy"]] for of in planned["lengths"]],
                    "pilot_accuracies": [[of["num_virtual_tokens"], of["accuracy"]] for of in tried]})
    if planned and by_length:
        row.update(judge(by_length, row["recommended"]))
        if row["missing"]:
            row["ok"] = None  # one of them may be the best
    return row


def measure(options, work):
    """--only TASK measures that task alone."""
    del work
    names = [task.name for task in TASKS]
    if unknown := [name for name in options.only or [] if name not in names]:
        raise common.Error(f"{unknown[0]}: no such task; --only takes {', '.join(names)}")
    rows, lengths = [], LENGTHS[:2] if options.quick else LENGTHS
    for task in TASKS:
        if options.only and task.name not in options.only:
            continue
        folder = find_folder(options, task)
        files = write_task(options, task, folder)
        planned = once(folder, "plan", lambda: plan(options, task, folder, files))
        by_length = {}
        for length in lengths:
            by_length[length] = once(folder, f"length-{length}", lambda n=length: train(options, task, folder, files, n))
        rows.append(common.emit(make_row(task, planned, by_length, lengths)))
    common.show("planning: what plan recommends, against whole trainings", COLUMNS, rows)
    return rows
