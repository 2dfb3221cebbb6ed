"""max_logit.py: what a bound on the keys costs: prefixes of 32 virtual tokens on the movie reviews, with free keys and with train
--max-logit R, from R beyond the criterion to deep inside of it, keys in all dimensions of a head or in a few, three seeds each.

R = 1.4 ln n is there because a bound by Cauchy and Schwarz is not reached: scores that occur stay within ln n behind it, too.

Everything else is the method's default and the budget of choosing.py (cells.Budget, or its with --steps); the adapter is the best of
the evaluations on validation rows. Each training is kept in a folder of its own, and one that was interrupted goes on.

A row: key_rank and max_logit (null: free), accuracy on the test split, the mean of `accuracies` by seed, points: how much less than
free keys, in percent; bound, score, entries: the largest of the seeds on validation rows, as docs/bounded-keys.md has them;
scores_inside, entries_inside: the least share of heads that are inside the criterion.
"""

import dataclasses
import json
import math
import os

import cells
import choosing
import common

N_VIRTUAL, D_HEAD, SEEDS, N_EVALUATIONS = 32, 64, (1, 2, 3), 9
CRITERION = round(math.log(N_VIRTUAL), 4)  # of the scores; of the entries a rank's share of it

COLUMNS = (("key_rank", "rank"), ("max_logit", "R"), ("accuracy", "accuracy"), ("points", "points lost"), ("bound", "bound"),
           ("score", "score"), ("entries", "entries"), ("scores_inside", "inside by scores"), ("entries_inside", "by entries"))


@dataclasses.dataclass(frozen=True)
class Prefix(choosing.Trained):
    key_rank: int | None = None
    max_logit: float | None = None

    def accuracy(self, cell):
        found = super().accuracy(cell)
        with open(cell.path("run", "softprompt.json"), encoding="utf-8") as file:
            return {**found, "key_bound": json.load(file)["method"].get("key_bound")}


def make_prefix(key_rank=None, max_logit=None):
    flags = ("--method", "prefix", "--num-virtual-tokens", str(N_VIRTUAL))
    if max_logit is None:
        return Prefix("free", flags)
    bound = ("--max-logit", str(max_logit), "--key-rank", str(key_rank))
    return Prefix(f"rank-{key_rank}-R-{max_logit}", (*flags, *bound), (), key_rank, max_logit)


def list_prefixes(quick):
    if quick:
        return [make_prefix(), make_prefix(4, 2.33)]
    ranges = {D_HEAD: (4 * CRITERION, round(1.4 * CRITERION, 4), CRITERION, 1.15, 0.25), 4: (2.33, round(CRITERION / 4, 4))}
    return [make_prefix()] + [make_prefix(rank, r) for rank, of_rank in ranges.items() for r in of_rank]


def make_cell(options, budget, method, seed, work):
    cell = cells.Cell(options, dataclasses.replace(budget, seed=seed), common.SMOLLM2, "reviews", method, work)
    cell.folder = os.path.join(options.out, "max-logit-quick" if options.quick else "max-logit",
                               f"{method.name}-seed-{seed}-{common.digest(json.dumps(cell.settings()))}")
    return cell


def make_row(method, found):
    """found: of each seed."""
    bounds = [of["key_bound"] for of in found if of["key_bound"]]
    row = {"key_rank": method.key_rank, "max_logit": method.max_logit, "accuracies": [of["accuracy"] for of in found]}
    row["accuracy"] = sum(row["accuracies"]) / len(found)
    for key in ("bound", "score", "entries"):
        row[key] = max((bound[key] for bound in bounds), default=None)
    for key in ("scores_inside", "entries_inside"):
        row[key] = min((bound[f"n_{key}"] / bound["n_heads"] for bound in bounds), default=None)
    return row


def add_points(rows):
    """How much less than free keys, which are the first row, where they are wanted."""
    for row in rows if rows[0]["max_logit"] is None else []:
        row["points"] = 100 * (rows[0]["accuracy"] - row["accuracy"])


def make_budget(options):
    budget = cells.QUICK if options.quick else cells.Budget()
    return dataclasses.replace(budget, steps=options.steps, eval_every=options.steps // N_EVALUATIONS) if options.steps else budget


def measure(options, work):
    names = [method.name for method in list_prefixes(options.quick)]
    for name in options.only or []:
        if name not in names:
            raise common.Error(f"{name}: no such prefix; --only takes {', '.join(names)}")
    budget, seeds = make_budget(options), SEEDS[:1] if options.quick else SEEDS
    rows = []
    for method in list_prefixes(options.quick):
        if method.name not in (options.only or [method.name]):
            continue
        of_seeds = [make_cell(options, budget, method, seed, work) for seed in seeds]
        rows.append(make_row(method, [cell.once("accuracy", lambda cell=cell: cell.method.accuracy(cell)) for cell in of_seeds]))
        add_points(rows)
        common.emit(rows[-1])
    common.show("max-logit: accuracy on test rows with bounded keys", COLUMNS, rows)
    return rows
