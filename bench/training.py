"""training.py: a training step and an evaluation against PEFT and against a PyTorch script that shares the prompt's work.

A round is one step (or evaluation) of each contender, one after the other, so that what else the machine does falls on all of
them; figures are medians over rounds. Every step sees the same rows: the data file has exactly a batch of them. All contenders
start from the same vectors, and their losses must agree, or nothing is reported.

A row: method, P, B, seconds, peak_rss_gb: ours, the peer's with peer_; ratio = peer_seconds / seconds. Method "prompt" is a
training step, "eval" an evaluation of eval_rows rows in batches of B.
"""

import os
import random

import common
import ours

SIZES = ((20, 16), (32, 16), (100, 16), (100, 32))
QUICK_SIZES = ((20, 16),)
STEPS_A_RUN = 4  # of the program, in each round; the first is left out
LOSS_TOLERANCE = 1e-3
ACCURACY_TOLERANCE = 0.02
N_EVAL_ROWS = 128
LABEL_TOKENS = (2731, 3524)  # " positive", " negative"
PEERS = {"peft": "peft_worker", "torch-shared": "shared_worker"}

COLUMNS = (("method", "method"), ("P", "P"), ("B", "B"), ("seconds", "seconds"), ("peak_rss_gb", "GB"), ("peer", "peer"),
           ("peer_seconds", "its seconds"), ("peer_peak_rss_gb", "its GB"), ("ratio", "ratio"), ("rounds", "rounds"))


def sample_rows(data_dir, n, split="train"):
    """The same n rows each time, as long and as short as rows are."""
    return random.Random(1).sample(ours.read_rows(os.path.join(data_dir, f"{split}.jsonl")), n)


def check_close(what, mine, theirs, tolerance):
    if not abs(mine - theirs) <= tolerance * max(1, abs(mine)):
        raise common.Error(f"{what}: {mine:.6f} here, {theirs:.6f} there: not the same computation, so there is nothing to compare")


def make_row(method, n_virtual, n_rows, peer, mine, theirs, **more):
    seconds, peer_seconds = common.median(mine["seconds"]), common.median(theirs["seconds"])
    return common.emit({
        "method": method, "P": n_virtual, "B": n_rows, "seconds": seconds, "peak_rss_gb": mine["peak_rss_gb"], "peer": peer,
        "peer_seconds": peer_seconds, "peer_peak_rss_gb": theirs["peak_rss_gb"], "ratio": peer_seconds / seconds,
        "rounds": len(theirs["seconds"]), "all_seconds": mine["seconds"], "all_peer_seconds": theirs["seconds"], **more})


class Contest:
    """One (P, B): its files, its contenders, and what was measured of each."""

    def __init__(self, work, data_dir, n_virtual, n_rows, n_threads, running):
        self.data, self.prepared = os.path.join(work, "batch.jsonl"), os.path.join(work, "batch.json")
        self.adapter, self.run = os.path.join(work, "adapter"), os.path.join(work, "run")
        self.n_virtual, self.n_rows, self.n_threads = n_virtual, n_rows, n_threads
        ours.write_rows(self.data, sample_rows(data_dir, n_rows))
        ours.prepare(self.data, self.prepared)
        ours.make_adapter(self.adapter, self.data, n_virtual, n_rows, n_threads)
        self.workers = dict(zip(PEERS, running))
        self.mine = {"seconds": [], "peak_rss_gb": 0}
        self.theirs = {peer: {"seconds": [], "peak_rss_gb": 0} for peer in PEERS}

    def our_step(self):
        done = ours.train(self.run, self.data, self.n_virtual, self.n_rows, STEPS_A_RUN, self.n_threads)
        self.mine["seconds"].append(common.median(done["step_seconds"]))
        self.mine["peak_rss_gb"] = max(self.mine["peak_rss_gb"], done["peak_rss_gb"])
        return done["losses"]

    def warm_up(self, losses):
        """Each peer's first steps, not timed: their losses are those of our first steps."""
        for peer, process in self.workers.items():
            process.ask("load", prepared=self.prepared, adapter=self.adapter, n_rows=self.n_rows,
                        learning_rate=ours.LEARNING_RATE, n_threads=self.n_threads)
            for i, loss in enumerate(losses[:2]):
                check_close(f"P = {self.n_virtual}, B = {self.n_rows}, loss of step {i + 1}, {peer}", loss,
                            process.ask("step")["loss"], LOSS_TOLERANCE)

    def peer_step(self, peer):
        answer = self.workers[peer].ask("step")
        self.theirs[peer]["seconds"].append(answer["seconds"])
        self.theirs[peer]["peak_rss_gb"] = answer["peak_rss_gb"]


def measure_steps(work, data_dir, size, rounds, n_threads):
    n_virtual, n_rows = size
    with common.workers(n_threads, *PEERS.values()) as running:
        contest = Contest(work, data_dir, n_virtual, n_rows, n_threads, running)
        losses = contest.our_step()
        contest.mine["seconds"].clear()
        contest.warm_up(losses)
        for done in range(rounds):
            common.note(f"training step, P = {n_virtual}, B = {n_rows}: round {done + 1} of {rounds}")
            contest.our_step()
            for peer in PEERS:
                contest.peer_step(peer)
    return [make_row("prompt", n_virtual, n_rows, peer, contest.mine, theirs, loss=losses[0])
            for peer, theirs in contest.theirs.items()]


def measure_evaluation(work, data_dir, size, rounds, n_threads):
    """The whole of softprompt eval but loading the model, against the same by PEFT."""
    n_virtual, n_rows = size
    data, prepared = os.path.join(work, "eval.jsonl"), os.path.join(work, "eval.json")
    ours.write_rows(data, sample_rows(data_dir, N_EVAL_ROWS, "test"))
    ours.prepare(data, prepared)
    adapter = os.path.join(work, "adapter")
    ours.make_adapter(adapter, data, n_virtual, n_rows, n_threads)
    mine, theirs = {"seconds": []}, {"seconds": []}
    with common.workers(n_threads, PEERS["peft"]) as (peer,):
        peer.ask("load", prepared=prepared, adapter=adapter, n_rows=1, learning_rate=0, n_threads=n_threads)
        for done in range(rounds + 1):  # the first is for warming up, and for the check
            common.note(f"evaluation, P = {n_virtual}, B = {n_rows}: round {done} of {rounds}")
            answers = (ours.evaluate(adapter, data, n_rows, n_threads),
                       peer.ask("evaluate", prepared=prepared, batch_size=n_rows, labels=LABEL_TOKENS))
            if done == 0:
                check_close("accuracy", answers[0]["accuracy"], answers[1]["accuracy"], ACCURACY_TOLERANCE)
                continue
            for side, answer in zip((mine, theirs), answers):
                side["seconds"].append(answer["seconds"])
                side["peak_rss_gb"] = answer["peak_rss_gb"]
    return [make_row("eval", n_virtual, n_rows, "peft", mine, theirs, eval_rows=N_EVAL_ROWS,
                     rows_per_second=N_EVAL_ROWS / common.median(mine["seconds"]),
                     peer_rows_per_second=N_EVAL_ROWS / common.median(theirs["seconds"]))]


def measure(options, work):
    rows = []
    for size in QUICK_SIZES if options.quick else SIZES:
        rows += measure_steps(work, options.data, size, options.rounds, options.threads)
    rows += measure_evaluation(work, options.data, (32, 32), options.rounds, options.threads)
    common.show("training: seconds a step and peak memory; ratio: the peer's seconds over ours. "
                f"eval: {N_EVAL_ROWS} rows", COLUMNS, rows)
    return rows
