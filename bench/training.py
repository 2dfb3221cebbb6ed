"""training.py: a training step and an evaluation against PEFT and against a PyTorch script that shares the prompt's work.

A round is one step (or evaluation) of each contender, one after the other, so that what else the machine does falls on all of
them; figures are medians over rounds. Every step sees the same rows: the data file has exactly a batch of them. All contenders
start from the same vectors, and their losses must agree, or nothing is reported. A peer that dies for want of memory has nulls.

A row: method, P, B, seconds, peak_rss_gb: ours, the peer's with peer_; ratio = peer_seconds / seconds. Method "prompt" is a
training step, "eval" an evaluation of eval_rows rows in batches of B.
"""

import os
import random

import common
import ours

SIZES = ((20, 16), (32, 16), (100, 16), (100, 32))
QUICK_SIZES = ((20, 16),)
EVAL_SIZE = (32, 32)
STEPS_A_RUN = 4  # of the program, in each round; the first is left out
MAX_PROMPT_ROWS = 2000  # P B: beyond it PEFT's steps take half a minute, and two rounds have to be enough
LOSS_TOLERANCE = {"f32": 1e-3, "bf16": 0.05}
ACCURACY_TOLERANCE = 2.5  # rows: on an untrained prompt some are close calls
N_EVAL_ROWS, N_QUICK_EVAL_ROWS = 128, 32
LABEL_TOKENS = (2731, 3524)  # " positive", " negative"
PEERS = {"peft": "peft_worker", "torch-shared": "shared_worker"}

COLUMNS = (("method", "method"), ("P", "P"), ("B", "B"), ("seconds", "seconds"), ("peak_rss_gb", "GB"), ("peer", "peer"),
           ("peer_seconds", "its seconds"), ("peer_peak_rss_gb", "its GB"), ("ratio", "ratio"), ("rounds", "rounds"))


def sample_rows(data_dir, n, split="train"):
    """The same n rows each time, as long and as short as rows are."""
    return random.Random(1).sample(ours.read_rows(os.path.join(data_dir, f"{split}.jsonl")), n)


def check_close(what, mine, theirs, tolerance):
    if not abs(mine - theirs) <= tolerance:  # NaN is not close either
        raise common.Error(f"{what}: {mine:.6f} here, {theirs:.6f} there: not the same computation, so there is nothing to compare")


def make_row(method, n_virtual, n_rows, peer, mine, theirs, **more):
    seconds, peer_seconds = common.median(mine["seconds"]), common.median(theirs["seconds"])
    return common.emit({
        "method": method, "P": n_virtual, "B": n_rows, "seconds": seconds, "peak_rss_gb": mine["peak_rss_gb"], "peer": peer,
        "peer_seconds": peer_seconds, "peer_peak_rss_gb": theirs["peak_rss_gb"],
        "ratio": peer_seconds / seconds if peer_seconds else None, "rounds": len(theirs["seconds"]),
        "all_seconds": mine["seconds"], "all_peer_seconds": theirs["seconds"], **more})


class Side:
    """What was measured of one contender: as make_row wants it."""

    def __init__(self):
        self.figures = {"seconds": [], "peak_rss_gb": None}
        self.n_steps = 0
        self.gone = False

    def add(self, seconds, peak_rss_gb):
        self.figures["seconds"].append(seconds)
        self.figures["peak_rss_gb"] = max(peak_rss_gb, self.figures["peak_rss_gb"] or 0)


class Contest:
    """Training steps at one (P, B): its files, its contenders, and what was measured of each."""

    def __init__(self, work, options, size, running):
        self.size, self.options = size, options
        self.data, self.prepared = os.path.join(work, "batch.jsonl"), os.path.join(work, "batch.json")
        self.adapter, self.run = os.path.join(work, "adapter"), os.path.join(work, "run")
        ours.write_rows(self.data, sample_rows(options.data, size[1]))
        ours.prepare(self.data, self.prepared)
        ours.make_adapter(self.adapter, self.data, size, options)
        self.workers = dict(zip(PEERS, running))
        self.mine, self.theirs = Side(), {peer: Side() for peer in PEERS}
        self.losses = []

    def step_of_ours(self):
        done = ours.train(self.run, self.data, self.size, STEPS_A_RUN, self.options)
        self.mine.add(common.median(done["step_seconds"]), done["peak_rss_gb"])
        self.losses = done["losses"]

    def step_of_peer(self, peer, timed):
        """A peer goes on where it was: its n-th loss must be our n-th, as far as a run of ours goes."""
        side = self.theirs[peer]
        answer = self.workers[peer].ask("step")
        if side.n_steps < len(self.losses):
            check_close("P = {}, B = {}, {}: loss of step {}".format(*self.size, peer, side.n_steps + 1), self.losses[side.n_steps],
                        answer["loss"], LOSS_TOLERANCE[self.options.compute])
        side.n_steps += 1
        if timed:
            side.add(answer["seconds"], answer["peak_rss_gb"])

    def of_every_peer(self, do):
        for peer, side in self.theirs.items():
            if not side.gone:
                try:
                    do(peer)
                except common.Died as error:
                    common.note(f"{error}; measured without it")
                    side.gone, side.figures = True, {"seconds": [], "peak_rss_gb": None}

    def warm_up(self):
        self.step_of_ours()
        self.mine = Side()
        self.of_every_peer(lambda peer: self.workers[peer].ask(
            "load", prepared=self.prepared, adapter=self.adapter, n_rows=self.size[1],
            learning_rate=ours.LEARNING_RATE, n_threads=self.options.threads))
        self.of_every_peer(lambda peer: self.step_of_peer(peer, timed=False))

    def round(self):
        self.step_of_ours()
        self.of_every_peer(lambda peer: self.step_of_peer(peer, timed=True))


def measure_steps(size, options, work):
    n_virtual, n_rows = size
    rounds = min(options.rounds, 2) if n_virtual * n_rows > MAX_PROMPT_ROWS else options.rounds
    with common.workers(options.threads, *PEERS.values()) as running:
        contest = Contest(work, options, size, running)
        contest.warm_up()
        for done in range(rounds):
            common.note(f"training step, P = {n_virtual}, B = {n_rows}: round {done + 1} of {rounds}")
            contest.round()
    return [make_row("prompt", n_virtual, n_rows, peer, contest.mine.figures, side.figures, loss=contest.losses[0],
                     compute=options.compute)
            for peer, side in contest.theirs.items()]


def measure_evaluation(size, options, work):
    """The whole of softprompt eval but loading the model, against the same by PEFT."""
    n_virtual, n_rows = size
    n_eval = N_QUICK_EVAL_ROWS if options.quick else N_EVAL_ROWS
    data, prepared, adapter = (os.path.join(work, name) for name in ("eval.jsonl", "eval.json", "adapter"))
    ours.write_rows(data, sample_rows(options.data, n_eval, "test"))
    ours.prepare(data, prepared)
    ours.make_adapter(adapter, data, size, options)
    mine, theirs = Side(), Side()
    with common.workers(options.threads, PEERS["peft"]) as (peer,):
        peer.ask("load", prepared=prepared, adapter=adapter, n_rows=1, learning_rate=0, n_threads=options.threads)
        for done in range(options.rounds + 1):  # the first is for warming up, and for the check
            common.note(f"evaluation, P = {n_virtual}, B = {n_rows}: round {done} of {options.rounds}")
            answers = (ours.evaluate(adapter, data, n_rows, options),
                       peer.ask("evaluate", prepared=prepared, batch_size=n_rows, labels=LABEL_TOKENS))
            check_close("rows that are right", *(n_eval * answer["accuracy"] for answer in answers), ACCURACY_TOLERANCE)
            for side, answer in zip((mine, theirs), answers):
                if done > 0:
                    side.add(answer["seconds"], answer["peak_rss_gb"])
    return make_row("eval", n_virtual, n_rows, "peft", mine.figures, theirs.figures, compute=options.compute, eval_rows=n_eval,
                    rows_per_second=n_eval / common.median(mine.figures["seconds"]),
                    peer_rows_per_second=n_eval / common.median(theirs.figures["seconds"]))


def measure(options, work):
    rows = []
    for size in QUICK_SIZES if options.quick else SIZES:
        rows += measure_steps(size, options, work)
    rows.append(measure_evaluation(EVAL_SIZE, options, work))
    common.show("training: seconds a step (eval: of all its rows) and peak memory; ratio: the peer's seconds over ours",
                COLUMNS, rows)
    return rows
