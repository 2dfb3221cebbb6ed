#!/usr/bin/env python3
"""test_cli.py: the command line as its users see it: exit codes, messages, help, JSON, streams, signals.

    python3 tests/test_cli.py [PATH OF softprompt]        default: build/softprompt

What needs a model runs where SOFTPROMPT_TEST_MODEL names a GGUF file with a chat template, or the demo's model lies in
$SOFTPROMPT_CACHE/models (two processors take about two minutes); elsewhere it is skipped with a message.
With SOFTPROMPT_TEST_PART=1/2 and 2/2 two processes share the tests. Standard library only.
"""
import contextlib
import fcntl
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = str(ROOT / "build" / "softprompt")

# On a busy machine threads that spin while they wait for each other take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def find_model():
    named = os.environ.get("SOFTPROMPT_TEST_MODEL")
    cached = Path(os.environ.get("SOFTPROMPT_CACHE", "/nonexistent"), "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
    return named or (str(cached) if cached.exists() else None)


MODEL = find_model()
IS_SHALLOW = bool(MODEL) and Path(MODEL).name.startswith("shallow-")  # by shallow_model.py: it knows nothing that a prompt could use
needs_model = unittest.skipUnless(MODEL, "no model: set SOFTPROMPT_TEST_MODEL to a GGUF file to run this")

COMMANDS = ("train", "eval", "run", "audit", "compile", "info", "plan")
LATER_COMMANDS = ("serve",)
TRAIN = ("train", "-m", "no.gguf", "-d", "no.jsonl", "-o", "no-dir")
EVAL = ("eval", "-m", "no.gguf", "-d", "no.jsonl")
RUN = ("run", "-m", "no.gguf")
AUDIT = ("audit", "-m", "no.gguf", "-d", "no.jsonl")


def softprompt(*arguments, stdin="", timeout=300, **options):
    """Runs the program; standard input is empty unless given, so that it never waits for a terminal."""
    return subprocess.run([PROGRAM, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=timeout,
                          errors="surrogateescape", **options)


class Case(unittest.TestCase):
    def check(self, result, code):
        self.assertEqual(result.returncode, code, f"{result.args}\nstdout: {result.stdout}\nstderr: {result.stderr}")
        return result

    def assert_message(self, result, code, *parts):
        """One line on standard error that begins with the program's name and has every part; nothing on standard output."""
        self.check(result, code)
        self.assertEqual(result.stdout, "")
        self.assertRegex(result.stderr, r"\Asoftprompt: [^\n]+\n\Z")
        for part in parts:
            self.assertIn(part, result.stderr)


class UsageErrors(Case):
    WRONG = [  # the command line, and what the message must name
        ((), ["no command", *COMMANDS]),
        (("trian",), ['"trian"', "did you mean train?"]),
        (("frobnicate",), ['"frobnicate"', *COMMANDS]),
        (("help", "evl"), ["did you mean eval?"]),
        (("--verbose",), ["--verbose"]),
        (("train", "-d", "a", "-o", "b"), ["--model"]),
        (("train", "-m", "a", "-o", "b"), ["--data"]),
        (("train", "-m", "a", "-d", "b"), ["--output"]),
        (("eval", "-d", "a"), ["--model"]),
        (("eval", "-m", "a"), ["--data"]),
        (("run", "text"), ["--model"]),
        (("train", "-m"), ["--model", "needs a value", "FILE"]),
        (("plan", "-m", "a"), ["--data"]),
        (("plan", "-m", "a", "-d", "b", "--max-virtual-tokens", "1"), ["--max-virtual-tokens", "from 2"]),
        (("plan", "-m", "a", "-d", "b", "--resume"), ["--resume", "-o DIR"]),
        (("plan", "-m", "a", "-d", "b", "-o", "c", "--resume", "--overwrite"), ["contradict"]),
        (("train", "-m", "", "-d", "a", "-o", "b"), ["--model", "FILE is empty"]),
        (("train", "-m", "a", "-d", "b", "-o", ""), ["--output", "DIR is empty"]),
        ((*RUN, "-p", "", "text"), ["--prompt", "DIR is empty"]),
        ((*RUN, "-p", "a", "-p", "", "text"), ["--prompt", "DIR is empty"]),
        ((*TRAIN, "--steps"), ["--steps", "needs a value"]),
        ((*TRAIN, "--json=yes"), ["--json", "takes no value"]),
        ((*TRAIN, "--lerning-rate", "1"), ["--lerning-rate", "did you mean --learning-rate?"]),
        ((*TRAIN, "--lerning-rate=1"), ["--lerning-rate is", "did you mean --learning-rate?"]),
        ((*TRAIN, "--batch", "1"), ["--batch is", "did you mean --batch-size?"]),  # abbreviations are refused
        ((*TRAIN, "--xyzzy"), ["--xyzzy"]),
        ((*TRAIN, "-z"), ["-z"]),
        ((*TRAIN, "stray"), ['"stray"']),
        ((*EVAL, "stray"), ['"stray"']),
        ((*RUN, "one", "two"), ['"two"', "quotes"]),
        (("info", "a", "b"), ['"b"']),
        ((*TRAIN, "--steps", "0"), ["--steps", '"0"', "from 1"]),
        ((*TRAIN, "--steps", "-1"), ["--steps", '"-1"']),
        ((*TRAIN, "--steps", "+1"), ["--steps", '"+1"']),
        ((*TRAIN, "--steps", " 1"), ["--steps"]),
        ((*TRAIN, "--steps", "12x"), ["--steps", '"12x"']),
        ((*TRAIN, "--steps", ""), ["--steps", '""']),
        ((*TRAIN, "--steps", "1.5"), ["--steps", "whole number"]),
        ((*TRAIN, "--seed", "99999999999999999999"), ["--seed"]),
        ((*TRAIN, "--batch-size", "1000000000000"), ["--batch-size"]),
        ((*TRAIN, "--num-virtual-tokens", "0"), ["--num-virtual-tokens"]),
        ((*TRAIN, "--gradient-accumulation-steps", "0"), ["--gradient-accumulation-steps"]),
        ((*TRAIN, "--save-every", "0"), ["--save-every"]),
        ((*TRAIN, "--threads", "0"), ["--threads"]),
        ((*TRAIN, "--max-length", "0"), ["--max-length"]),
        ((*TRAIN, "--learning-rate", "0"), ["--learning-rate"]),
        ((*TRAIN, "--learning-rate", "nan"), ["--learning-rate", '"nan"']),
        ((*TRAIN, "--learning-rate", "inf"), ["--learning-rate"]),
        ((*TRAIN, "--learning-rate", "1e999"), ["--learning-rate"]),
        ((*TRAIN, "--learning-rate", "0x1p3"), ["--learning-rate"]),
        ((*TRAIN, "--learning-rate", "0,02"), ["--learning-rate"]),
        ((*TRAIN, "--max-grad-norm", "-1"), ["--max-grad-norm"]),
        ((*TRAIN, "--epochs", "0"), ["--epochs"]),
        ((*TRAIN, "--schedule", "cosin"), ["--schedule", '"cosin"', "cosine|linear|constant"]),
        ((*TRAIN, "--optimizer", "sgd"), ["--optimizer", "adamw|adafactor"]),
        ((*TRAIN, "--init", "zero"), ["--init", "vocab|random|text"]),
        ((*TRAIN, "--sink", "eos"), ["--sink", "none|bos"]),
        ((*TRAIN, "--weights", "f16"), ["--weights", "auto|mapped|f32"]),
        ((*TRAIN, "--weights", "bf16"), ["--weights", "not in this version"]),
        ((*TRAIN, "--method", "lora"), ["--method", "prompt"]),
        ((*TRAIN, "--max-logit", "3", "--key-rank", "4"), ["--key-rank", "--method prefix"]),
        ((*TRAIN, "--max-logit", "3", "--sink", "bos"), ["--max-logit", "--sink none"]),
        ((*TRAIN, "--max-logit-weight", "3"), ["--max-logit-weight", "--max-logit R"]),
        ((*TRAIN, "--max-logit", "3", "--max-logit-weight", "3", "--method", "prefix"), ["--max-logit-weight", "--method prefix"]),
        ((*TRAIN, "--max-logit", "0", "--method", "prefix"), ["--max-logit", "from 1e-06"]),
        ((*TRAIN, "--key-rank", "4", "--method", "prefix"), ["--key-rank", "--max-logit"]),
        ((*TRAIN, "--text-position", "9"), ["--text-position", "prefix and cartridge"]),
        (("compile", "-m", "a", "-o", "b"), ["--prompt"]),
        (("compile", "-m", "a", "-p", "b"), ["--output"]),
        (("compile", "-m", "a", "-p", "b", "-o", "c", "--epsilon", "1"), ["--epsilon", "to 0.999"]),
        (("compile", "-m", "a", "-p", "b", "-o", "c", "--method", "magic"), ["--method", "polynomial"]),
        ((*TRAIN, "--max-logit", "3", "--key-rank", "4", "--method", "prefix", "--prefix-projection"), ["--key-rank", "--prefix-projection"]),
        ((*TRAIN, "--max-logit", "3", "--method", "cartridge", "--num-frozen-tokens", "1"), ["--max-logit", "--num-frozen-tokens 0"]),
        ((*TRAIN, "--num-queries", "9"), ["--num-queries", "--teacher-context"]),
        ((*TRAIN, "--teacher-context", "f", "--query-length", "9"), ["--query-length", "without --data"]),
        ((*TRAIN, "--teacher-context", "f", "--query-length", "1"), ["--query-length", "from 2"]),
        ((*TRAIN, "--steps", "1", "--epochs", "1"), ["--steps", "--epochs"]),
        ((*TRAIN, "--resume", "--overwrite"), ["--resume", "--overwrite"]),
        ((*TRAIN, "--init", "text"), ["--init-text"]),
        ((*TRAIN, "--init", "vocab", "--init-text", "a"), ["--init-text"]),
        ((*TRAIN, "--sink", "bos", "--num-virtual-tokens", "1"), ["--num-virtual-tokens", "--sink bos"]),
        ((*TRAIN, "--method", "prefix", "--sink", "bos"), ["--sink bos", "--method prompt"]),
        ((*TRAIN, "--method", "prefix", "--num-frozen-tokens", "2"), ["--num-frozen-tokens", "--method cartridge"]),
        ((*TRAIN, "--prefix-projection"), ["--prefix-projection", "--method prefix"]),
        ((*TRAIN, "--method", "ptuning", "--prefix-projection"), ["--prefix-projection", "--method prefix"]),
        ((*TRAIN, "--method", "prefix", "--encoder-reparameterization-type", "lstm"), ["--method ptuning only"]),
        ((*TRAIN, "--method", "ptuning", "--encoder-reparameterization-type", "gru"), ["gru", "mlp|lstm"]),
        ((*TRAIN, "--method", "prefix", "--encoder-hidden-size", "8"), ["--encoder-hidden-size", "--prefix-projection"]),
        ((*TRAIN, "--method", "ptuning", "--encoder-num-layers", "3"), ["--encoder-num-layers", "lstm"]),
        ((*TRAIN, "--eval-every", "5"), ["--eval-every", "-e"]),
        ((*TRAIN, "--early-stopping-patience", "5", "-e", "f"), ["--early-stopping-patience", "--eval-every"]),
        ((*TRAIN, "--template", "no place"), ["--template", "{text}"]),
        ((*TRAIN, "--template", "{text}\\q"), ["--template", "\\n"]),
        ((*TRAIN, "--template", "{text}\\"), ["--template", "\\n"]),
        ((*TRAIN, "--verbalizer", "positive"), ["--verbalizer", '"positive"']),
        ((*TRAIN, "--verbalizer", "=x"), ["--verbalizer"]),
        ((*TRAIN, "--verbalizer", "x="), ["--verbalizer"]),
        ((*TRAIN, "--verbalizer", "a=b", "--verbalizer", "a=c"), ["--verbalizer", '"a"', "twice"]),
        ((*TRAIN, "--init-text", "a\\x"), ["--init-text"]),
        ((*EVAL, "--steps", "1"), ["--steps is no option of eval"]),
        ((*EVAL, "--batch-size", "0"), ["--batch-size"]),
        ((*EVAL, "--template", "x"), ["--template", "{text}"]),
        (("audit", "-d", "a"), ["--model"]),
        ((*AUDIT, "stray"), ['"stray"']),
        ((*AUDIT, "--epsilon", "1"), ["--epsilon", "0.999"]),
        ((*AUDIT, "--epsilon", "0"), ["--epsilon"]),
        ((*AUDIT, "--head"), ["--head is", "did you mean --heads?"]),
        ((*RUN, "--temperature", "-0.1", "x"), ["--temperature"]),
        ((*RUN, "--top-p", "1.1", "x"), ["--top-p", "1.1"]),
        ((*RUN, "--top-p", "0", "x"), ["--top-p"]),
        ((*RUN, "--min-p", "2", "x"), ["--min-p"]),
        ((*RUN, "--top-k", "many", "x"), ["--top-k"]),
        ((*RUN, "--repetition-penalty", "0", "x"), ["--repetition-penalty"]),
        ((*RUN, "--max-new-tokens", "0", "x"), ["--max-new-tokens"]),
        ((*RUN, "--seed", "-3", "x"), ["--seed"]),
        ((*RUN, "--stop"), ["--stop", "needs a value"]),
    ]

    def test_each_is_refused_by_name(self):
        for arguments, parts in self.WRONG:
            with self.subTest(arguments=arguments):
                self.assert_message(softprompt(*arguments), 2, *parts)

    MULTITASK, CPT = ("--method", "multitask"), ("--method", "cpt")
    METHODS = [
        (("--num-tasks", "2"), ["--method multitask"]),
        (("--num-ranks", "2", "--method", "prefix"), ["--method multitask"]),
        ((*MULTITASK, "--num-tasks", "0"), ["--num-tasks", "0"]),
        ((*MULTITASK, "--source-init", "exact"), ["--init-prompt DIR"]),
        ((*MULTITASK, "--init-prompt", "d", "--source-task", "1"), ["--source-task", "exact"]),
        (("--init-prompt", "d", "--sink", "bos"), ["--init-prompt", "--sink bos"]),
        (("--init-prompt", "d", "--init", "vocab"), ["--init-prompt", "--init"]),
        ((*MULTITASK, "--init-prompt", "d", "--init-text", "x"), ["--init-prompt", "--init"]),
        ((*MULTITASK, "--sink", "bos"), ["--sink bos"]),
        (CPT, ["--init-text TEXT", "--cpt-examples N"]),
        ((*CPT, "--init", "vocab"), ["starts from a text"]),
        ((*CPT, "--init-text", "x", "--cpt-examples", "2"), ["give one"]),
        ((*CPT, "--cpt-examples", "2", "--num-virtual-tokens", "8"), ["--num-virtual-tokens"]),
        ((*CPT, "--init-text", "x", "--opt-weighted-loss-type", "none", "--opt-loss-decay-factor", "0.5"), ["decay"]),
        ((*CPT, "--init-text", "x", "--opt-weighted-loss-type", "linear"), ["none|decay"]),
        (("--cpt-examples", "2"), ["--method cpt"]),
        (("--opt-projection-epsilon", "0.2"), ["--method cpt"]),
    ]

    def test_flags_of_methods(self):
        for arguments, parts in self.METHODS:
            with self.subTest(arguments=arguments):
                self.assert_message(softprompt(*TRAIN, *arguments), 2, *parts)
        self.assert_message(softprompt(*EVAL, "--task", "1"), 2, "--task", "-p DIR")
        self.assert_message(softprompt(*RUN, "--task", "1", "x"), 2, "--task", "-p DIR")
        self.assert_message(softprompt(*AUDIT, "--task", "1"), 2, "--task", "-p DIR")

    def test_commands_of_later_versions(self):
        for name in LATER_COMMANDS:
            for arguments in ((name,), (name, "--help"), ("help", name)):
                with self.subTest(arguments=arguments):
                    self.assert_message(softprompt(*arguments), 2, name, "not in this version", *COMMANDS)

    def test_a_wrong_line_does_nothing(self):
        with tempfile.TemporaryDirectory() as work:
            softprompt("train", "-m", "m", "-d", "d", "-o", "dir", "--steps", "x", cwd=work)
            self.assertEqual(os.listdir(work), [])


class Help(Case):
    def test_overview(self):
        for arguments in (("help",), ("--help",), ("-h",)):
            text = self.check(softprompt(*arguments), 0).stdout
            for name in COMMANDS:
                self.assertRegex(text, rf"(?m)^  {name} ")
            for name in LATER_COMMANDS:
                self.assertNotRegex(text, rf"\b{name}\b")

    def test_each_command_has_an_example(self):
        for name in COMMANDS:
            with self.subTest(command=name):
                text = self.check(softprompt(name, "--help"), 0).stdout
                self.assertEqual(text, softprompt("help", name).stdout)
                self.assertEqual(text, softprompt(name, "-h").stdout)
                self.assertRegex(text, rf"\Ausage: softprompt {name} ")
                self.assertRegex(text, rf"\nexample\n  softprompt {name} ")
                self.assertLessEqual(max(map(len, text.splitlines())), 110)

    def test_examples_parse(self):
        """Without the demo's files an example must fail over the files, not over its flags."""
        for name in COMMANDS:
            with self.subTest(command=name), tempfile.TemporaryDirectory() as work:
                example = softprompt(name, "--help").stdout.split("\nexample\n")[1]
                line = re.sub(r"\bsoftprompt\b", PROGRAM, example, count=1)
                result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=work)
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertIn("demo/", result.stderr)

    def test_flags_of_the_contract(self):
        flags = {
            "train": "--method --num-virtual-tokens --num-frozen-tokens --init --init-text --sink --template --verbalizer "
                     "--text-column --label-column --max-length --optimizer --batch-size --gradient-accumulation-steps --steps --epochs --learning-rate "
                     "--warmup-steps --schedule --max-grad-norm --seed --threads --eval-every --early-stopping-patience "
                     "--save-every --resume --overwrite --max-logit --max-logit-weight --key-rank --text-position --teacher-context --num-queries --query-length --weights --json --quiet "
                     "--task-column --num-tasks --num-ranks --init-prompt --source-init --source-task --cpt-examples "
                     "--opt-weighted-loss-type --opt-loss-decay-factor --opt-projection-epsilon --opt-projection-format-epsilon",
            "eval": "--predictions --template --verbalizer --text-column --label-column --max-length --batch-size --threads --json "
                    "--task --task-column",
            "run": "--task --raw --no-special --max-length --max-new-tokens --temperature --top-k --top-p --min-p --repetition-penalty "
                   "--stop --seed --threads --json",
            "audit": "--prompt --data --texts --text-length --seed --plot --task --epsilon --prompt-rows --left-out --heads --template --verbalizer --text-column --label-column "
                     "--max-length --threads --json --quiet",
            "compile": "--model --prompt --output --overwrite --method --epsilon --max-logit --degree --text-position --json --quiet",
            "info": "--json",
        }
        for name, names in flags.items():
            text = softprompt(name, "--help").stdout
            for flag in names.split():
                self.assertRegex(text, rf"(?m)^ .*{flag}\b", f"{name} {flag}")

    def test_help_wins_over_what_is_missing(self):
        self.check(softprompt("train", "--steps", "3", "--help"), 0)

    def test_version(self):
        self.assertRegex(self.check(softprompt("--version"), 0).stdout, r"\Asoftprompt \d+\.\d+\.\d+\n\Z")


BEGUN_SOON = 8 * "no " + 3 * "The ship sank in the harbour before anybody had noticed that it was there. "  # and never said to its end


class Lab(Case):
    def universality(self, *arguments):
        return softprompt("lab", "universality", "-q", *arguments)

    def test_help(self):
        text = self.check(softprompt("lab", "--help"), 0).stdout
        self.assertEqual(text, softprompt("help", "lab").stdout)
        self.assertIn("universality", text)
        self.assertIn("--construction", self.check(softprompt("lab", "universality", "--help"), 0).stdout)

    def test_names(self):
        self.assert_message(softprompt("lab"), 2, "no experiment")
        self.assert_message(softprompt("lab", "universal"), 2, "did you mean universality")
        self.assert_message(softprompt("lab", "phases"), 2, "did you mean phase")

    def test_phase(self):
        with tempfile.TemporaryDirectory() as work:
            plot = Path(work, "phase.svg")
            command = ("lab", "phase", "-q", "--min-log2-n", 7, "--max-log2-n", 9, "--hard-log2-n", 8, "--seconds", 1, "--plot", plot)
            found = json.loads(self.check(softprompt(*command, "--json"), 0).stdout)
            self.assertIn("hard instances", plot.read_text())
            table = self.check(softprompt(*command), 0).stdout
        self.assertEqual(list(found), ["d", "epsilon", "points", "exponents", "exact_exponent", "hard"])
        self.assertEqual([(p["c"], p["n"]) for p in found["points"]], [(c, n) for c in (0.25, 0.5, 0.75, 1, 1.5) for n in (128, 256, 512)])
        for point in found["points"]:
            self.assertAlmostEqual(point["range"], point["c"]**2 * math.log(point["n"]), delta=1e-6)
            self.assertEqual(point["degree"] is None, point["features"] is None)
            if point["features"]:
                self.assertEqual(point["features"], math.comb(8 + point["degree"], 8))
            self.assertGreater(point["seconds_exact"], 0)
        hard = found["hard"]
        self.assertLessEqual(hard["features"], hard["n"])
        self.assertEqual((hard["points"][-1]["exact_right"], hard["points"][-1]["refused"]), (1, 1))
        self.assertLess(hard["points"][-1]["polynomial_right"], 1)
        self.assertRegex(table, r"(?m)^  n = 512 ")
        self.assert_message(softprompt("lab", "phase", "-q", "--hard-log2-n", 9), 2, "even")
        self.assert_message(softprompt("lab", "phase", "-q", "--plot", "phase.pdf"), 1, ".svg or a .png")

    def test_capacity_names(self):
        text = self.check(softprompt("lab", "capacity", "--help"), 0).stdout
        self.assertIn("cram", text)
        self.assertIn("--num-virtual-tokens", self.check(softprompt("lab", "capacity", "cram", "--help"), 0).stdout)
        self.assert_message(softprompt("lab", "capacity"), 2, "bound, memorise or cram")
        self.assert_message(softprompt("lab", "capacity", "cran"), 2, "did you mean cram")
        self.assert_message(softprompt("lab", "capacity", "-m", "no-such-file"), 1, "no-such-file")
        self.assert_message(softprompt("lab", "capacity", "cram", "-m", "x", "--kind", "random", "--text", "y"), 2, "contradict")
        self.assert_message(softprompt("lab", "capacity", "cram", "-m", "x", "--resume"), 2, "give -o DIR")

    @needs_model
    def test_cram(self):
        with tempfile.TemporaryDirectory() as work:
            texts, adapters = Path(work, "texts.csv"), Path(work, "crammed")
            texts.write_text(f"text\n{BEGUN_SOON}\nShort.\n")
            there = {"cwd": work, "env": {**os.environ, "SOFTPROMPT_CACHE": work}}
            command = ("lab", "capacity", "-q", "-m", MODEL, "--samples", 1, "--steps", 60)
            self.assert_message(softprompt(*command, **there), 1, "news.jsonl")
            result = softprompt(*command, "--text", texts, "-o", adapters, "--json", **there)
            found = json.loads(self.check(result, 0).stdout)
            self.assertEqual([found[key] for key in ("kind", "num_virtual_tokens")], ["natural", 1])
            for key in "mean_tokens mean_bits bits_per_vector seconds".split():
                self.assertGreaterEqual(found[key], 0)
            sample, = found["samples"]
            self.assertEqual(list(sample), ["tokens", "bits", "row", "text_tokens", "steps", "restarts", "token_ids", "text"])
            self.assertEqual((sample["row"], sample["steps"], len(sample["token_ids"])), (0, 60, sample["tokens"]))
            kept, = Path(work, "capacity").iterdir()
            self.assertEqual(json.loads(kept.read_text())["results"]["natural"]["1"]["steps"], 60)
            self.assertEqual((found["stopped"], json.loads(kept.read_text())["results"]["natural"]["1"]["stopped"]), (False, False))
            said = json.loads(self.check(softprompt("run", "-m", MODEL, "-p", adapters / "sample-1", "--max-new-tokens", 4, "--json", ""), 0).stdout)
            self.assertEqual(len(said["tokens"]), 4)
            text = self.check(softprompt(*command, "--quick", "--kind", "random", **there), 0).stdout
            self.assertRegex(text, r"(?m)^mean +\d+\.\d tokens, ")

    def interrupt_cram(self, work, least_step, *flags):
        """SIGINT to a search once it has told of step `least_step`: its exit code, its standard output and error."""
        texts = Path(work, "texts.csv")
        texts.write_text(f"text\n{BEGUN_SOON}\n")
        line = [PROGRAM, "lab", "capacity", "cram", "-m", MODEL, "--samples", "1", "--steps", "1000000", "--text", texts, "--json", *flags]
        process = subprocess.Popen([*map(str, line)], cwd=work, env={**os.environ, "SOFTPROMPT_CACHE": str(work)}, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        told = ""
        for message in process.stderr:
            told += message
            step = re.match(r"cram (\d+)/1000000 .* tokens ", message)
            if step and int(step[1]) >= least_step:
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, told + errors

    @needs_model
    def test_cram_interrupted(self):
        """Reported, with its adapters, and kept for the planner with a word that it was stopped."""
        with tempfile.TemporaryDirectory() as work:
            code, output, errors = self.interrupt_cram(work, 60, "-o", "crammed")
            self.assertEqual(code, 1, errors)
            self.assertRegex(errors, r"(?m)^softprompt: stopped after \d+ of 1000000 steps; what was found until then is reported$")
            found = json.loads(output)
            self.assertTrue(found["stopped"])
            self.assertGreater(found["mean_bits"], 0)
            kept, = Path(work, "capacity").iterdir()
            result = json.loads(kept.read_text())["results"]["natural"]["1"]
            self.assertTrue(result["stopped"])
            self.assertEqual(result["steps"], found["samples"][0]["steps"])
            self.assertAlmostEqual(result["bits_per_vector"], found["bits_per_vector"], 5)
            n, adapter = found["samples"][0]["tokens"], Path(work, "crammed", "sample-1")
            said = softprompt("run", "-m", MODEL, "-p", adapter, "--max-new-tokens", n, "--json", "")
            self.assertEqual(json.loads(self.check(said, 0).stdout)["tokens"], found["samples"][0]["token_ids"])
            steps = found["samples"][0]["steps"] + 1
            again = ("lab", "capacity", "cram", "-q", "-m", MODEL, "--samples", 1, "--steps", steps, "--text", "texts.csv", "-o", "crammed", "--json")
            there = {"cwd": work, "env": {**os.environ, "SOFTPROMPT_CACHE": work}}
            self.assert_message(softprompt(*again, **there), 2, "--resume")
            result = json.loads(self.check(softprompt(*again, "--resume", **there), 0).stdout)
            self.assertEqual((result["samples"][0]["steps"], result["stopped"]), (steps, False))

    @needs_model
    def test_cram_interrupted_and_not_kept(self):
        """A cache that is no folder: the result is printed all the same, and how plan takes it is said."""
        with tempfile.TemporaryDirectory() as work:
            Path(work, "capacity").write_text("")
            code, output, errors = self.interrupt_cram(work, 60)
            self.assertEqual(code, 1, errors)
            found = json.loads(output)
            self.assertGreater(found["mean_bits"], 0)
            self.assertIn(str(Path(work, "capacity")), errors)
            self.assertIn(f"plan, which takes it as --bits-per-vector {found['bits_per_vector']:.1f}", errors)

    def test_report(self):
        found = json.loads(self.check(self.universality("--quick", "--json", "--function", "sine"), 0).stdout)
        for key in ("num_virtual_tokens error bound identity_exact order weights_sha256 weights_nonzero max_weight depth gap "
                    "leakage").split():
            self.assertIn(key, found)
        self.assertEqual(sorted(found["error"]), ["1", "2", "ci95", "sup"])
        self.assertLessEqual(found["error"]["sup"], found["bound"])
        text = self.check(self.universality("--grid", 8), 0).stdout
        self.assertRegex(text, r"(?m)^d_2 falls as grid\^-(1\.0|0\.9)")

    def test_epsilon_chooses_the_grid(self):
        found = json.loads(self.check(self.universality("--epsilon", 0.05, "--quick", "--json"), 0).stdout)
        self.assertEqual(found["grid"], 16)
        self.assertLessEqual(found["bound"], 0.05)
        self.assert_message(self.universality("--epsilon", 0.05, "--grid", 8), 2, "a grid of 16 does")

    def test_refusals(self):
        self.assert_message(self.universality("--construction", "digits", "--grid", 32), 1, "decimal digits", "f64")
        self.assert_message(self.universality("--grid", 6), 2, "power of two")
        self.assert_message(self.universality("--function", "sine", "--table", "x.csv"), 2, "contradict")
        self.assert_message(self.universality("--quick", "--plot", "plot.pdf"), 1, ".svg or a .png")

    def test_files(self):
        with tempfile.TemporaryDirectory() as work:
            result = softprompt("lab", "universality", "-q", "--grid", 8, "--samples", 100, "--export", "machine", "--plot", "plot.svg",
                                cwd=work)
            self.check(result, 0)
            self.assertEqual(sorted(os.listdir(Path(work, "machine"))),
                             ["examples.json", "model.safetensors", "prompt.safetensors", "run.py"])
            self.assertIn("<svg", Path(work, "plot.svg").read_text())


class Capacity(Case):
    def capacity(self, *arguments):
        return softprompt("lab", "capacity", *arguments)

    def test_names(self):
        self.assertIn("bound", self.check(self.capacity("--help"), 0).stdout)
        self.assert_message(self.capacity(), 2, "no measurement")
        self.assert_message(self.capacity("bund"), 2, "did you mean bound")
        self.assertIn("--epsilon", self.check(self.capacity("bound", "--help"), 0).stdout)

    def test_bound(self):
        found = json.loads(self.check(self.capacity("bound", "--len", 2, "--epsilon", 0.1, "--json"), 0).stdout)
        rows = {row["name"]: row for row in found["rows"]}
        self.assertEqual(rows["lookup"]["num_virtual_tokens"], 2 * 8 ** 2)
        self.assertEqual({row["kind"] for row in rows.values()}, {"formula", "takes", "bound"})
        self.assertTrue(all(row["assumption"] for row in rows.values()))
        text = self.check(self.capacity("bound", "--d", 64, "--len", 512), 0).stdout
        self.assertRegex(text, r"paper +2\^[0-9]+\.[0-9]", "beyond f64, as a power of two")
        self.assert_message(self.capacity("bound", "--epsilon", 0.5), 2, "epsilon")
        self.assert_message(self.capacity("bound", "--alpha", 0.5), 2, "alpha")
        with tempfile.TemporaryDirectory() as work:
            self.check(softprompt("lab", "capacity", "bound", "--d", 8, "--len", 8, "--plot", "bound.svg", cwd=work), 0)
            self.assertIn("<svg", Path(work, "bound.svg").read_text())

    def test_memorise(self):
        def memorise(*arguments, **there):
            return softprompt("lab", "capacity", "memorise", "-q", *arguments, **there)
        with tempfile.TemporaryDirectory() as work:
            command = ("--sequences", "1,3", "--d", 2, "--len", "1,2", "--seeds", 2, "--max-tokens", 8, "--restarts", 2)
            found = json.loads(self.check(memorise(*command, "--json", "--plot", "memorise.svg", cwd=work), 0).stdout)
            self.assertIn("written: keyed", Path(work, "memorise.svg").read_text())
            again = json.loads(self.check(memorise(*command, "--json"), 0).stdout)
            text = self.check(memorise(*command), 0).stdout
        self.assertEqual(found["points"], again["points"])
        self.assertEqual([(p["d"], p["len"], p["n_sequences"], p["seed"]) for p in found["points"]],
                         [(2, length, n, seed) for length in (1, 2) for n in (1, 3) for seed in (0, 1)])
        reached = 0
        for point in found["points"]:
            for trained in point["trained"].values():
                self.assertEqual(trained["not_reached"], trained["num_virtual_tokens"] is None)
                self.assertEqual(trained["not_reached"], trained["error"] > found["epsilon"])
                reached += not trained["not_reached"]
            keyed = point["constructed"]["keyed"]
            self.assertEqual(keyed["num_virtual_tokens"], point["n_sequences"] * point["len"])
            self.assertLess(keyed["error"], 1e-9)
            self.assertGreaterEqual(point["log2_paper"], point["log2_pairs"])
        self.assertGreater(reached, 4)
        self.assertRegex(text, r"(?m)^  2  1    3    3  (\d+|-) (\d+|-) ")
        self.assertRegex(text, r"(?m)^wide +\d of 8 data sets memorised with up to 8 tokens")
        self.assertIn("--shared-token", self.check(softprompt("lab", "capacity", "memorise", "--help"), 0).stdout)
        self.check(memorise("--quick", "--json"), 0)
        for text in ("1,x", "1,,2", "-1", "1 2", "0", "1,", "99999999999999999999999"):
            self.assert_message(memorise("--sequences", text), 2, "as in 1,2,4")
        self.assert_message(memorise("--sequences", ",".join("1" * 17)), 2, "at most 16 numbers")
        self.assert_message(memorise("--sequences", "1000"), 2, "from 1 to 256")
        self.assert_message(memorise("--shared-token", "--len", "1"), 2, "from 2 to")
        self.assert_message(memorise("--epsilon", 0.5), 2, "epsilon")
        self.assert_message(memorise("--plot", "memorise.pdf"), 1, ".svg or a .png")


class Streams(Case):
    def test_full_disk(self):
        for arguments in (("--help",), ("info", "--json"), ("train", "--help"), ("--version",)):
            with self.subTest(arguments=arguments), open("/dev/full", "w") as full:
                result = subprocess.run([PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
                self.assertEqual(result.returncode, 1)
                self.assertRegex(result.stderr, r"\Asoftprompt: standard output: .*No space left")

    def test_closed_output(self):
        result = subprocess.run(["sh", "-c", 'exec "$0" info >&-', PROGRAM], stderr=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn("standard output", result.stderr)

    def test_closed_pipe(self):
        reader, writer = os.pipe()
        os.close(reader)
        result = subprocess.run([PROGRAM, "info"], stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        self.assertEqual(result.returncode, 1, "a closed pipe is a failure with a message, not a death by signal")
        self.assertIn("Broken pipe", result.stderr)

    def test_all_streams_closed(self):
        result = subprocess.run(["sh", "-c", 'exec "$0" info <&- >&- 2>&-', PROGRAM])
        self.assertEqual(result.returncode, 1)

    def test_nul_and_unreadable_input(self):
        with tempfile.TemporaryDirectory() as work:
            self.assert_message(softprompt(*RUN, stdin="ab\0c", cwd=work), 1, "standard input", "NUL")
            line = ["sh", "-c", 'exec "$0" run -m no.gguf < .', PROGRAM]
            self.assert_message(subprocess.run(line, capture_output=True, text=True, cwd=work), 1, "standard input", "directory")


class Info(Case):
    def test_machine(self):
        machine = json.loads(self.check(softprompt("info", "--json"), 0).stdout)
        self.assertEqual(list(machine), ["kind", "version", "cpu", "features", "kernels", "threads", "memory_bytes"])
        self.assertEqual(machine["kind"], "machine")
        self.assertGreaterEqual(machine["threads"], 1)
        self.assertGreater(machine["memory_bytes"], 1 << 20)
        self.assertIsInstance(machine["features"], list)
        text = self.check(softprompt("info"), 0).stdout
        for name in machine:
            self.assertRegex(text, rf"(?m)^{name} ")
        self.assertEqual(text, softprompt("info").stdout)

    def test_missing_file(self):
        self.assert_message(softprompt("info", "/no/such/file"), 1, "/no/such/file")

    def test_not_a_model(self):
        with tempfile.TemporaryDirectory() as work:
            path = Path(work, "junk.gguf")
            path.write_bytes(b"GGUF" + bytes(range(64)))
            self.assert_message(softprompt("info", path), 1, "junk.gguf")

    @needs_model
    def test_model(self):
        described = json.loads(self.check(softprompt("info", MODEL, "--json"), 0).stdout)
        self.assertEqual(described["kind"], "model")
        text = self.check(softprompt("info", MODEL), 0).stdout
        for name in described:
            self.assertRegex(text, rf"(?m)^{name}\b")
        self.assertNotRegex(text, "[\x00-\x09\x0b-\x1f\x7f]")


class MissingFiles(Case):
    def test_each_is_named(self):
        with tempfile.TemporaryDirectory() as work:
            Path(work, "d.jsonl").write_text('{"text": "a", "label": "b"}\n')
            for arguments, name in (
                (("train", "-m", "no.gguf", "-d", "d.jsonl", "-o", "dir"), "no.gguf"),
                (("train", "-m", "no.gguf", "-d", "no.jsonl", "-o", "dir"), "no.jsonl"),
                (("train", "-m", "no.gguf", "--teacher-context", "no.txt", "-o", "dir"), "no.txt"),
                (("eval", "-m", "no.gguf", "-d", "d.jsonl"), "no.gguf"),
                (("eval", "-m", "no.gguf", "-d", "no.jsonl"), "no.jsonl"),
                (("run", "-m", "no.gguf", "text"), "no.gguf"),
                (("audit", "-m", "no.gguf", "-d", "d.jsonl"), "no.gguf"),
            ):
                with self.subTest(arguments=arguments):
                    self.assert_message(softprompt(*arguments, cwd=work), 1, name)
            self.assertEqual(os.listdir(work), ["d.jsonl"])


POSITIVE = ["a warm and funny film", "beautifully acted", "a joy from start to end", "moving, clever and rich"]
NEGATIVE = ["a dull and empty film", "badly acted", "a bore from start to end", "flat, stupid and poor"]
TASK = ("--template", "Review: {text}\\nSentiment:", "--verbalizer", "positive= positive", "--verbalizer", "negative= negative")
STEPS = 4
BATCH = 2


def train(directory, *more, **options):
    return softprompt(*train_line(directory, *more, **options))


def train_line(directory, *more, data=None, size=("--num-virtual-tokens", 4)):
    return ["train", "-m", MODEL, "-d", data or WithModel.data, "-o", directory, *TASK, *size, "--batch-size", BATCH, "--steps", STEPS,
            "--save-every", 2, *more]


def setUpModule():
    """Trains one adapter for all the tests that need one: a few steps of a few rows."""
    if not MODEL:
        return
    WithModel.work = Path(tempfile.mkdtemp(prefix="softprompt-cli-"))
    rows = [{"text": t, "label": "positive"} for t in POSITIVE] + [{"text": t, "label": "negative"} for t in NEGATIVE]
    WithModel.data = WithModel.work / "data.jsonl"
    WithModel.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    WithModel.n_rows = len(rows)
    WithModel.dir = WithModel.work / "prompt"
    WithModel.trained = train(WithModel.dir, "-e", WithModel.data, "--json")


def tearDownModule():
    if MODEL:
        shutil.rmtree(WithModel.work)


@needs_model
class WithModel(Case):
    """work, data, n_rows, dir and trained are set by setUpModule."""

    def adapter(self, directory):
        return (Path(directory) / "adapter_model.safetensors").read_bytes()

    def run_prompt(self, *more, **options):
        return softprompt("run", "-m", MODEL, "-p", self.dir, *more, **options)


class Train(WithModel):
    def test_report(self):
        self.check(self.trained, 0)
        report = json.loads(self.trained.stdout)
        self.assertEqual(report["steps"], STEPS)
        self.assertEqual(report["resumed_from"], 0)
        self.assertFalse(report["already_finished"])
        self.assertEqual(report["evaluation"]["n"], self.n_rows)
        self.assertEqual(report["rows"], BATCH * STEPS)

    def test_run_directory(self):
        for name in ("adapter_config.json", "adapter_model.safetensors", "softprompt.json", "log.jsonl", "checkpoints"):
            self.assertTrue((self.dir / name).exists(), name)
        rows = [json.loads(line) for line in (self.dir / "log.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "loss" in row]  # evaluations have rows of their own
        self.assertEqual([row["step"] for row in rows], list(range(1, STEPS + 1)))
        for key in ("loss", "learning_rate", "grad_norm", "seconds", "examples", "tokens"):
            self.assertIn(key, rows[0])
        task = json.loads((self.dir / "softprompt.json").read_text())
        self.assertIn("Review: {text}\nSentiment:", json.dumps(task, ensure_ascii=False).replace("\\n", "\n"))

    def test_an_existing_run_is_refused(self):
        before = self.adapter(self.dir)
        result = train(self.dir, "-e", self.data)
        self.assertIn(result.returncode, (1, 2))
        self.assertIn(str(self.dir), result.stderr)
        self.assertIn("resume", result.stderr)
        self.assertIn("overwrite", result.stderr)
        self.assertEqual(self.adapter(self.dir), before)

    def test_resume_of_a_finished_run_changes_nothing(self):
        before = self.adapter(self.dir)
        result = self.check(train(self.dir, "-e", self.data, "--json", "--resume"), 0)
        self.assertTrue(json.loads(result.stdout)["already_finished"])
        self.assertEqual(self.adapter(self.dir), before)

    def test_resume_with_other_settings_names_them(self):
        result = self.check(train(self.dir, "-e", self.data, "--resume", "--learning-rate", "0.5"), 1)
        self.assertRegex(result.stderr, "learning.rate")

    def test_text_report_and_overwrite(self):
        directory = self.work / "second"
        for more in ((), ("--overwrite",)):
            text = self.check(train(directory, *more), 0).stdout
            self.assertRegex(text, rf"(?m)^steps +{STEPS}$")
            self.assertRegex(text, r"(?m)^next: softprompt eval -m \S+ -p \S+ -d FILE$")
        self.assertEqual(self.adapter(directory), self.adapter(self.dir), "same seed, same bytes")

    def test_distillation(self):
        """On data and without; the report, the files, and texts that are none."""
        text, directory = self.work / "few.txt", self.work / "distilled"
        text.write_text("\ufeff" + "".join(f"Review: {t}\nSentiment: positive\n" for t in POSITIVE))
        line = ["train", "-m", MODEL, "--teacher-context", text, "-o", directory, "--num-virtual-tokens", 4, "--steps", 3]
        result = self.check(softprompt(*line, "--num-queries", 8, "--query-length", 6, "--batch-size", 4), 0)
        self.assertRegex(result.stdout, r"(?m)^stands for +\S+few\.txt, \d+ tokens$")
        self.assertRegex(result.stdout, r"(?m)^divergence +\d\.\d{4} nats a token \(\d\.\d{4} at the start, \d\.\d{4} without")
        self.assertRegex(result.stdout, r"(?m)^measured on +1 queries that it was not trained on$")
        queries = [json.loads(row) for row in (directory / "queries.jsonl").read_text().splitlines()]
        self.assertEqual(len(queries), 8)
        self.assertTrue(all(2 <= len(query["tokens"]) <= 6 for query in queries))
        result = self.check(softprompt(*line, "-d", self.data, "-e", self.data, *TASK, "--overwrite", "--json"), 0)
        report = json.loads(result.stdout)
        self.assertIsNone(report["evaluation"])
        self.assertEqual((report["distillation"]["queries"], report["distillation"]["held_out"]), (self.n_rows, True))
        self.assertFalse((directory / "queries.jsonl").exists())
        for content, code, part in ((b"", 1, "is empty"), (b"a\0b", 1, "NUL"), (b"caf\xe9", 2, "UTF-8"), (b"word " * 9000, 2, "shorten")):
            text.write_bytes(content)
            self.assert_message(softprompt(*line, "--overwrite"), code, part)

    def test_penalty_on_keys(self):
        """Of a method whose keys come from embeddings: the report, which says that it is no bound, and the log."""
        directory = self.work / "pressed"
        text = self.check(train(directory, "-e", self.data, "--max-logit", 2, "--max-logit-weight", 0.5), 0).stdout
        self.assertRegex(text, r"(?m)^keys +pressed towards --max-logit 2 by a penalty, which bounds nothing: scores within \d+\.\d{4} of")
        self.assertRegex(text, r"(?m)^reached +scores \d+\.\d{4}, bound \d+\.\d{4}, entries \d+\.\d{4} on \d+ tokens of the evaluation$")
        told = json.loads(self.check(train(directory, "-e", self.data, "--max-logit", 2, "--max-logit-weight", 0.5, "--json", "--resume"), 0)
                          .stdout)["key_bound"]
        self.assertEqual(list(told), ["max_logit", "is_penalty", "key_rank", "n_heads", "training_bound", "bound", "score", "entries",
                                      "n_scores_inside", "n_entries_inside", "n_rows", "are_held_out"])
        self.assertIs(told["is_penalty"], True)
        saved = json.loads((directory / "softprompt.json").read_text())["method"]["key_bound"]
        self.assertEqual((saved["is_penalty"], saved["max_logit"]), (True, 2))
        rows = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
        self.assertTrue(all(row["penalty"] > 0 for row in rows))
        self.assert_message(train(directory, "-e", self.data, "--max-logit", 2, "--resume"), 1, "max_logit_weight (saved 0.5")

    def test_what_cannot_be_trained_leaves_nothing(self):
        directory = self.work / "never"
        result = train(directory, "--num-virtual-tokens", "100000")
        self.assertIn(result.returncode, (1, 2))
        self.assertRegex(result.stderr, "100000 virtual tokens")
        self.assertFalse(directory.exists())

    def test_one_training_a_directory(self):
        directory = self.work / "shared"
        directory.mkdir()
        holder = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(holder, fcntl.LOCK_EX)
            self.assertRegex(self.check(train(directory), 1).stderr, "another process")
        finally:
            os.close(holder)
        self.assertEqual(list(directory.iterdir()), [])

    def test_quiet(self):
        result = self.check(train(self.work / "quiet", "--quiet"), 0)
        self.assertEqual(result.stderr, "")

    def test_interrupt_and_resume(self):
        """Ctrl-C after the first step: a checkpoint, exit 1, and a command that finishes the run with the same bytes."""
        directory = self.work / "it's here"
        line = [PROGRAM, *map(str, train_line(directory, "-e", self.data))]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        log = directory / "log.jsonl"
        while process.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        if process.returncode == 0:
            self.skipTest("the run was over before the signal came")
        self.assertEqual(process.returncode, 1, errors)
        command = re.search(r"to go on: (.*--resume)\n\Z", errors)
        self.assertIsNotNone(command, errors)
        result = subprocess.run(["sh", "-c", command[1] + " --json"], capture_output=True, text=True)
        self.check(result, 0)
        self.assertGreater(json.loads(result.stdout)["resumed_from"], 0)
        self.assertEqual(self.adapter(directory), self.adapter(self.dir))


class Eval(WithModel):
    KEYS = ["n", "accuracy", "accuracy_ci95", "macro_f1", "exact_match", "exact_match_ci95", "loss", "perplexity", "skipped_rows",
            "truncated_rows", "seconds", "compiled", "tasks"]

    def eval(self, *arguments):
        return softprompt("eval", "-m", MODEL, *arguments)

    def test_predictions_are_tried_before_the_work(self):
        result = self.check(self.eval("-d", self.data, "--predictions", self.work / "nowhere" / "p.jsonl"), 1)
        self.assertRegex(result.stderr, "nowhere/p.jsonl: cannot write")

    def test_labels(self):
        predictions = self.work / "predictions.jsonl"
        result = json.loads(self.check(self.eval("-p", self.dir, "-d", self.data, "--json", "--predictions", predictions), 0).stdout)
        self.assertEqual(list(result), self.KEYS)
        self.assertEqual(result["n"], self.n_rows)
        low, high = result["accuracy_ci95"]
        self.assertTrue(0 <= low <= result["accuracy"] <= high <= 1)
        self.assertIsNone(result["exact_match"])
        rows = [json.loads(line) for line in predictions.read_text().splitlines()]
        self.assertEqual(len(rows), self.n_rows)
        right = sum(row["label"] == row["prediction"] for row in rows)
        self.assertAlmostEqual(right / len(rows), result["accuracy"])
        for row in rows:
            self.assertEqual(sorted(row["logprobs"]), ["negative", "positive"])
            self.assertEqual(max(row["logprobs"], key=row["logprobs"].get), row["prediction"])

    def test_model_alone(self):
        result = json.loads(self.check(self.eval("-d", self.data, "--json", *TASK), 0).stdout)
        self.assertEqual(result["n"], self.n_rows)

    def test_table(self):
        text = self.check(self.eval("-p", self.dir, "-d", self.data), 0).stdout
        self.assertRegex(text, rf"(?m)^rows +{self.n_rows}, 0 cut at the left; 0 skipped$")
        self.assertRegex(text, r"(?m)^accuracy +\d+\.\d\d %  \(95 % interval")

    def test_text_and_skipped_rows(self):
        data = self.work / "text.jsonl"
        data.write_text('{"text": "One two three four."}\n{broken\n{"text": "Five six."}\n{"text": "a"}\n')
        result = self.check(self.eval("-d", data, "--json"), 0)
        found = json.loads(result.stdout)
        self.assertEqual((found["n"], found["skipped_rows"], found["accuracy"]), (2, 2, None))
        self.assertGreater(found["perplexity"], 1)
        self.assertRegex(result.stderr, r"softprompt: warning: .*text\.jsonl:2")

    def test_predictions_into_a_pipe(self):
        """A rename would replace /dev/stdout, or a device, by a file."""
        link = self.work / "stdout"
        link.symlink_to("/proc/self/fd/1")
        result = self.check(self.eval("-p", self.dir, "-d", self.data, "--quiet", "--predictions", link), 0)
        self.assertEqual(sum(line.startswith("{") for line in result.stdout.splitlines()), self.n_rows)
        self.assertTrue(link.is_symlink())
        full = self.work / "full"
        full.symlink_to("/dev/full")
        self.assertIn("full: cannot write", self.check(self.eval("-d", self.data, "--predictions", full), 1).stderr)
        self.assertTrue(full.is_char_device())

    def test_columns(self):
        data = self.work / "named.csv"
        data.write_text("review,mood\n" + "".join(f'"{t}",positive\n' for t in POSITIVE))
        result = self.check(self.eval("-p", self.dir, "-d", data, "--text-column", "review", "--label-column", "mood", "--json"), 0)
        self.assertEqual(json.loads(result.stdout)["n"], len(POSITIVE))


class Audit(WithModel):
    KEYS = ["n", "num_virtual_tokens", "texts", "rows", "skipped_rows", "truncated_rows", "epsilon", "prompt_rows", "heads",
            "prompt"]
    TOKEN = ["norm", "key_norm", "value_norm", "nearest", "left_out_kl", "left_out_loss"]
    HEAD = ["layer", "head", "max_entry_q", "max_entry_k", "max_score", "max_score_centred", "cauchy_schwarz", "criterion", "n_keys",
            "entries_ratio", "scores_ratio", "entropy", "sink_mass", "prompt_mass", "key_rank_99", "degree", "features", "cost_ratio",
            "verdict"]

    def audit(self, *arguments):
        return softprompt("audit", "-m", MODEL, "-d", self.data, *arguments)

    def test_json(self):
        found = json.loads(self.check(self.audit("-p", self.dir, "--json", "-q"), 0).stdout)
        self.assertEqual(list(found), self.KEYS)
        self.assertEqual((found["texts"], found["num_virtual_tokens"], found["skipped_rows"]), (self.n_rows, 4, 0))
        info = json.loads(softprompt("info", "--json", MODEL).stdout)
        self.assertEqual([(h["layer"], h["head"]) for h in found["heads"]],
                         [(layer, head) for layer in range(info["n_layer"]) for head in range(info["n_head"])])
        for head in found["heads"]:
            self.assertEqual(list(head), self.HEAD)
            self.assertIn(head["verdict"], ("inside", "scores", "beyond"))
            self.assertTrue(4 < head["n_keys"] <= found["n"])
            self.assertTrue(1 <= head["key_rank_99"] <= 3)
            self.assertEqual(head["degree"] is None, head["features"] is None)
            self.assertTrue(0 < head["prompt_mass"] <= 1 and 0 < head["sink_mass"] <= head["prompt_mass"])

    def test_rows_of_the_prompt(self):
        """They see few keys and are judged by them, and the rows of texts are what they were."""
        plain, with_rows = (json.loads(self.check(self.audit("-p", self.dir, "--json", "-q", *more), 0).stdout)
                            for more in ((), ("--prompt-rows",)))
        self.assertTrue(with_rows["prompt_rows"] and not plain["prompt_rows"])
        for a, b in zip(plain["heads"], with_rows["heads"]):
            self.assertEqual((a["entropy"], a["prompt_mass"], a["key_rank_99"]), (b["entropy"], b["prompt_mass"], b["key_rank_99"]))
            self.assertLessEqual(a["max_score"], b["max_score"])
            self.assertLessEqual(a["entries_ratio"], b["entries_ratio"])
        self.assertTrue(any(head["n_keys"] < 4 for head in with_rows["heads"]))

    def test_report_of_the_prompt(self):
        prompt = json.loads(self.check(self.audit("-p", self.dir, "--json", "-q", "--left-out", 5), 0).stdout)["prompt"]
        self.assertEqual(list(prompt), ["vocabulary_norm", "left_out_rows", "virtual_tokens"])
        self.assertEqual((prompt["left_out_rows"], len(prompt["virtual_tokens"])), (5, 4))
        norms = list(prompt["vocabulary_norm"].values())
        self.assertEqual(norms, sorted(norms))
        for token in prompt["virtual_tokens"]:
            self.assertEqual(list(token), self.TOKEN)
            cosines = [near["cosine"] for near in token["nearest"]]
            self.assertEqual((len(cosines), cosines), (3, sorted(cosines, reverse=True)))
            self.assertTrue(token["norm"] > 0 and token["key_norm"] is None and token["left_out_kl"] >= 0)
        self.assertTrue(any(token["left_out_kl"] > 0 for token in prompt["virtual_tokens"]))
        none = json.loads(self.check(self.audit("-p", self.dir, "--json", "-q", "--left-out", 0), 0).stdout)["prompt"]
        self.assertEqual(none["left_out_rows"], 0)
        self.assertIsNone(none["virtual_tokens"][0]["left_out_kl"])

    def test_without_data(self):
        """The model writes the texts: the same for the same seed."""
        command = ("audit", "-m", MODEL, "-p", self.dir, "--json", "-q", "--texts", 2, "--text-length", 12, "--seed")
        first, again, other = (json.loads(self.check(softprompt(*command, seed), 0).stdout) for seed in (1, 1, 2))
        self.assertEqual(first, again)
        self.assertNotEqual(first["heads"], other["heads"])
        self.assertEqual((first["texts"], first["prompt"]["left_out_rows"]), (2, 2))
        self.assertLessEqual(first["rows"], 2 * 11)
        self.assertIsNone(first["prompt"]["virtual_tokens"][0]["left_out_kl"])
        self.assertIsNotNone(first["prompt"]["virtual_tokens"][0]["left_out_loss"])

    def test_heat_maps(self):
        svg, png = self.work / "heads.svg", self.work / "heads.png"
        result = self.check(self.audit("-p", self.dir, "-q", "--left-out", 0, "--plot", svg, "--plot", png), 0)
        self.assertRegex(result.stdout, rf"(?m)^plot +{re.escape(str(png))}$")
        self.assertIn("weight on the prompt", svg.read_text())
        self.assertEqual(png.read_bytes()[:4], b"\x89PNG")
        self.assert_message(self.audit("-q", "--plot", self.work / "heads.pdf"), 1, ".svg or a .png")

    def test_model_alone(self):
        found = json.loads(self.check(self.audit("--json", "-q", *TASK), 0).stdout)
        self.assertIsNone(found["prompt"])
        self.assertEqual(found["num_virtual_tokens"], 0)
        for head in found["heads"]:
            self.assertEqual((head["prompt_mass"], head["key_rank_99"]), (0, None))

    def test_tables(self):
        result = self.check(self.audit("-p", self.dir), 0)
        self.assertRegex(result.stdout, rf"(?m)^texts +{self.n_rows}, 0 cut at the left; 0 rows of data skipped$")
        self.assertRegex(result.stdout, r"(?m)^verdict +\d+ heads inside, \d+ by their scores, \d+ beyond, of \d+$")
        self.assertRegex(result.stdout, r"(?m)^ +0 .* [isb]+$")
        self.assertRegex(result.stderr, rf"(?m)^audit {self.n_rows}/{self.n_rows}  ")
        self.assertRegex(result.stderr, r"(?m)^left out 4/4  ")
        self.assertRegex(result.stdout, r'(?m)^ +[0-3] +0\.\d{4} +-?\d.* +- +-   ".*" \d\.\d\d')
        heads = self.check(self.audit("-p", self.dir, "--heads", "-q"), 0)
        self.assertEqual(heads.stderr, "")
        self.assertGreater(len(re.findall(r"(?m)^ +\d+ +\d+ .* (?:inside|scores|beyond)$", heads.stdout)), 1)

    def test_what_cannot_be_audited(self):
        broken = self.work / "broken.jsonl"
        broken.write_text("{broken\n")
        self.check(softprompt("audit", "-m", MODEL, "-d", broken), 1)
        self.assert_message(softprompt("audit", "-m", MODEL, "-p", self.work / "nowhere", "-d", self.data), 1, "nowhere")
        self.assert_message(softprompt("audit", "-m", MODEL, "-d", self.work / "no.jsonl"), 1, "no.jsonl")


class Plan(WithModel):
    KEYS = ["num_virtual_tokens", "range", "rows", "eval_rows", "held_out", "loss_without_prompt", "accuracy_without_prompt",
            "answer_bits", "vectors_to_memorise", "curve", "error_curve", "steps", "lengths", "seconds"]

    def plan(self, *arguments, **options):
        return softprompt("plan", "-m", MODEL, "-d", self.data, *TASK, "--steps", 2, "--seeds", 1, "--max-virtual-tokens", 2,
                          "--batch-size", 2, *arguments, **options)

    def test_json_and_pilots(self):
        pilots, plot = self.work / "pilots", self.work / "plan.svg"
        found = json.loads(self.check(self.plan("-o", pilots, "--plot", plot, "--bits-per-vector", 10, "--json", "-q"), 0).stdout)
        self.assertEqual(list(found), self.KEYS)
        self.assertEqual([length["num_virtual_tokens"] for length in found["lengths"]], [1, 2])
        self.assertIn(found["num_virtual_tokens"], (1, 2))
        self.assertAlmostEqual(found["vectors_to_memorise"], found["answer_bits"] * found["rows"] / 10)
        self.assertIn("<svg", plot.read_text())
        evaluated = json.loads(softprompt("eval", "-m", MODEL, "-p", pilots / "2-0", "-d", self.data, "--json", "-q").stdout)
        self.assertEqual(found["held_out"], False)  # so few rows that they are judged by themselves
        self.assertAlmostEqual(evaluated["loss"], found["lengths"][1]["loss"], 5)
        self.assert_message(self.plan("-o", pilots, "-q"), 2, "1-0", "--resume")
        again = json.loads(self.check(self.plan("-o", pilots, "--resume", "--json", "-q"), 0).stdout)
        self.assertEqual([length["loss"] for length in again["lengths"]], [length["loss"] for length in found["lengths"]])

    def test_table_leaves_nothing_behind(self):
        with tempfile.TemporaryDirectory() as temporary:
            result = self.check(self.plan(env={**os.environ, "TMPDIR": temporary}), 0)
            self.assertEqual(os.listdir(temporary), [])
        self.assertRegex(result.stdout, r"(?m)^recommended: --num-virtual-tokens [12]( \(between 1 and 2\))?$")
        self.assertRegex(result.stdout, r"(?m)^ +2 .*<-$|^ +1 .*<-$")
        self.assertRegex(result.stderr, r"(?m)^pilots 4/4")


class Compile(WithModel):
    """A bounded prefix, and the same as moments."""

    KEYS = ["method", "num_virtual_tokens", "text_position", "heads", "rank", "degree", "features", "epsilon", "range", "bytes",
            "bytes_of_keys", "cost_ratio", "adapter"]

    @classmethod
    def setUpClass(cls):
        cls.prefix, cls.compiled = cls.work / "bounded", cls.work / "compiled"
        trained = train(cls.prefix, "--method", "prefix", "--max-logit", 1, "--key-rank", 2, "--text-position", 16, "-q",
                        size=("--num-virtual-tokens", 12))
        assert trained.returncode == 0, trained.stderr
        cls.told = softprompt("compile", "-m", MODEL, "-p", cls.prefix, "-o", cls.compiled, "--epsilon", 1e-5, "--json", "-q")
        model = json.loads(softprompt("info", "--json", MODEL).stdout)
        cls.n_heads = model["n_layer"] * model["n_head_kv"]

    def evaluate(self, prompt):
        return json.loads(self.check(softprompt("eval", "-m", MODEL, "-p", prompt, "-d", self.data, "--json", "-q"), 0).stdout)

    def test_json(self):
        told = json.loads(self.check(self.told, 0).stdout)
        self.assertEqual(list(told), self.KEYS)
        self.assertEqual((told["num_virtual_tokens"], told["text_position"], told["heads"], told["rank"]), (12, 16, self.n_heads, 2))
        self.assertGreaterEqual(told["range"], 1.1)
        self.assertLessEqual(told["epsilon"], 1.01e-5)

    def test_says_what_the_prefix_says(self):
        keys, moments = self.evaluate(self.prefix), self.evaluate(self.compiled)
        self.assertAlmostEqual(keys["loss"], moments["loss"], 3)
        self.assertIsNone(keys["compiled"])
        self.assertEqual(moments["compiled"]["beyond"], 0)
        self.assertLess(moments["compiled"]["weights_bound"], 1e-5)
        run = [softprompt("run", "-m", MODEL, "-p", p, "--raw", "--max-new-tokens", 8, "It was", "-q") for p in (self.prefix, self.compiled)]
        self.assertEqual(self.check(run[0], 0).stdout, self.check(run[1], 0).stdout)

    def test_table_and_warnings(self):
        narrow = self.work / "narrow"
        result = self.check(softprompt("compile", "-m", MODEL, "-p", self.prefix, "-o", narrow, "--max-logit", 0.01), 0)
        self.assertRegex(result.stdout, rf"(?m)^heads +{self.n_heads}, keys of rank 2$")
        self.assertRegex(result.stderr, rf"(?m)^head {self.n_heads}/{self.n_heads}")
        result = softprompt("eval", "-m", MODEL, "-p", narrow, "-d", self.data)
        self.assertIn("larger --max-logit", self.check(result, 0).stderr)
        self.assertRegex(result.stdout, r"(?m)^compiled .*beyond the range$")

    def test_what_is_there_stays(self):
        again = ("compile", "-m", MODEL, "-p", self.prefix, "-o", self.compiled, "-q")
        self.assert_message(softprompt(*again), 1, str(self.compiled), "--overwrite")
        self.check(softprompt(*again, "--overwrite", "--epsilon", 1e-5), 0)

    def test_refusals(self):
        elsewhere = self.work / "nowhere"
        for prompt, parts in ((self.dir, ["embeddings", "prefix"]), (self.compiled, ["compiled"])):
            self.assert_message(softprompt("compile", "-m", MODEL, "-p", prompt, "-o", elsewhere, "--max-logit", 1, "-q"), 1, *parts)
        self.assert_message(softprompt("audit", "-m", MODEL, "-p", self.compiled, "-d", self.data, "-q"), 1, "compiled")
        self.assert_message(train(elsewhere, "--method", "prefix", "--init-prompt", self.compiled, "-q", size=()), 1, "compiled")
        self.assertFalse(elsewhere.exists())

    def test_info(self):
        found = json.loads(self.check(softprompt("info", self.compiled, "--json"), 0).stdout)
        self.assertEqual((found["kind"], found["method"]), ("adapter", "polynomial"))


class Ensemble(WithModel):
    """Adapters of two methods: each alone, and together."""

    @classmethod
    def setUpClass(cls):
        cls.other = cls.work / "other"
        cls.second = train(cls.other, "--method", "prefix", size=("--num-virtual-tokens", 6))

    def eval(self, *prompts, more=()):
        predictions = self.work / "ensemble.jsonl"
        line = [argument for prompt in prompts for argument in ("-p", prompt)]
        result = softprompt("eval", "-m", MODEL, *line, "-d", self.data, "--json", "--predictions", predictions, *more)
        return json.loads(self.check(result, 0).stdout), [json.loads(row) for row in predictions.read_text().splitlines()]

    def test_eval(self):
        self.check(self.second, 0)
        (first, one), (second, two), (both, together) = self.eval(self.dir), self.eval(self.other), self.eval(self.dir, self.other)
        self.assertEqual(both["n"], self.n_rows)
        for a, b, c in zip(one, two, together):
            a, b, c = ([row["logprobs"][label] for label in ("positive", "negative")] for row in (a, b, c))
            self.assertAlmostEqual(c[0] - c[1], (a[0] - a[1] + b[0] - b[1]) / 2, 3)  # answers of one token
            self.assertGreaterEqual(c[0], (a[0] + b[0]) / 2 - 1e-3)  # made to sum to one, the geometric mean grows
        self.assertAlmostEqual(both["loss"], -sum(row["logprobs"][row["label"]] for row in together) / self.n_rows, 5)
        self.assertLess(both["loss"], (first["loss"] + second["loss"]) / 2 + 1e-4)
        twice, _ = self.eval(self.dir, self.dir)
        self.assertAlmostEqual(twice["loss"], first["loss"], 4)

    def test_run(self):
        both = ("run", "-m", MODEL, "-p", self.dir, "--prompt", self.other)
        self.assertRegex(self.check(softprompt(*both, POSITIVE[0]), 0).stdout, r"\A(positive|negative) [01]\.\d\d\n\Z")
        found = json.loads(self.check(softprompt(*both, POSITIVE[0], "--raw", "--max-new-tokens", 40, "--json"), 0).stdout)
        self.assertEqual(len(found["tokens"]), len(found["logprobs"]))
        self.assertGreater(len(found["tokens"]), 0)

    def test_tasks_must_agree(self):
        other = self.work / "other-template"
        result = softprompt("train", "-m", MODEL, "-d", self.data, "-o", other, "--template", "{text} It is", "--num-virtual-tokens", 2,
                            "--steps", 1, "--verbalizer", "positive= positive", "--verbalizer", "negative= negative")
        self.check(result, 0)
        line = ("-m", MODEL, "-p", self.dir, "-p", other)
        self.assert_message(softprompt("eval", *line, "-d", self.data, "-q"), 1, "prompts 1 and 2", "different templates")
        self.assert_message(softprompt("run", *line, POSITIVE[0]), 1, "different templates")
        self.check(softprompt("eval", *line, "-d", self.data, *TASK[:2]), 0)
        self.check(softprompt("run", *line, POSITIVE[0], "--raw", "--max-new-tokens", 2), 0)

    def test_one_that_is_not_there(self):
        result = softprompt("eval", "-m", MODEL, "-p", self.dir, "-p", self.work / "nowhere", "-d", self.data, "-q")
        self.assert_message(result, 1, "nowhere")

    def test_conversation(self):
        bare = self.work / "bare"
        rows = self.work / "completions.jsonl"
        rows.write_text(json.dumps({"prompt": "One two", "completion": " three"}) + "\n")
        self.check(softprompt("train", "-m", MODEL, "-d", rows, "-o", bare, "--num-virtual-tokens", 3, "--steps", 1), 0)
        terminal = Terminal("run", "-m", MODEL, "-p", bare, "-p", bare, "--max-new-tokens", 40)
        terminal.wait_for_prompt()
        for message in ("Say hello.", "And again."):
            terminal.send(message + "\n")
            self.assertRegex(terminal.wait_for_prompt().split(message + "\r\n")[1], r"\w")
        terminal.send("\x04")
        self.assertEqual(terminal.exit_code(), 0)


class SeveralTasks(WithModel):
    """Two tasks of the same texts: what the mood is, and the opposite of it. One prompt can only say both if it knows the task."""

    def test_train_eval_run(self):
        data, directory, target = self.work / "tasks.jsonl", self.work / "tasks", self.work / "target"
        rows = [json.loads(line) for line in self.data.read_text().splitlines()]
        other = {"positive": "negative", "negative": "positive"}
        tasks = [{**row, "task": 0} for row in rows] + [{**row, "label": other[row["label"]], "task": 1} for row in rows]
        data.write_text("".join(json.dumps(row) + "\n" for row in tasks))
        result = train(directory, "--method", "multitask", "--steps", "24", "--batch-size", "8", "--json", data=data)
        self.assertEqual(json.loads(self.check(result, 0).stdout)["steps"], 24)
        found = json.loads(self.check(softprompt("eval", "-m", MODEL, "-p", directory, "-d", data, "--json"), 0).stdout)
        self.assertEqual([task["n"] for task in found["tasks"]], [len(rows)] * 2)
        for task in found["tasks"] if not IS_SHALLOW else ():
            self.assertGreater(task["accuracy"], 0.7)
        self.assertAlmostEqual(sum(task["accuracy"] for task in found["tasks"]) / 2, found["accuracy"])
        self.assertAlmostEqual(sum(task["loss"] for task in found["tasks"]) / 2, found["loss"])
        table = self.check(softprompt("eval", "-m", MODEL, "-p", directory, "-d", data), 0).stdout
        self.assertRegex(table, rf"(?m)^task 1 +accuracy \d+\.\d\d %, loss \d\.\d{{4}}, {len(rows)} rows$")

        one = json.loads(self.check(softprompt("eval", "-m", MODEL, "-p", directory, "-d", data, "--task", 1, "--json"), 0).stdout)
        self.assertIsNone(one["tasks"])
        wrong = 1 - found["tasks"][0]["accuracy"]  # rows of task 0 behind task 1
        self.assertLess(one["accuracy"], 1 - wrong)
        self.check(softprompt("eval", "-m", MODEL, "-p", directory, "-d", data, "--task", 2), 2)
        said = [json.loads(self.check(softprompt("run", "-m", MODEL, "-p", directory, "--task", task, POSITIVE[0], "--json"), 0).stdout)
                for task in (0, 1)]
        self.assertNotEqual(said[0]["logprobs"], said[1]["logprobs"])

        result = train(target, "--method", "multitask", "--init-prompt", directory, "--source-init", "exact", "--source-task", 1,
                       "--steps", "1", "--warmup-steps", "1")  # the first step of a warm-up moves nothing
        self.check(result, 0)
        again = json.loads(self.check(softprompt("run", "-m", MODEL, "-p", target, POSITIVE[0], "--json"), 0).stdout)
        self.assertEqual(again["logprobs"], said[1]["logprobs"])

    def test_rows_of_other_tasks(self):
        data, directory = self.work / "odd-tasks.jsonl", self.work / "odd-tasks"
        rows = [{"text": text, "label": "positive", "task": task} for text, task in zip(POSITIVE, (0, 5, "x"))]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = train(directory, "--method", "multitask", "--num-tasks", "2", "--steps", "1", data=data)
        self.check(result, 0)
        self.assertRegex(result.stderr, r"line 2: task 5, and the prompt has 2, from 0; row left out")
        self.assertRegex(result.stderr, r"line 3: its task is no whole number")


class ContextAware(WithModel):
    def test_examples(self):
        directory = self.work / "examples"
        self.check(train(directory, "--method", "cpt", "--cpt-examples", "3", "--steps", "2", size=()), 0)
        config = json.loads((directory / "adapter_config.json").read_text())
        kinds = [kind for i, kind in enumerate(config["cpt_tokens_type_mask"]) if i == 0 or config["cpt_tokens_type_mask"][i - 1] != kind]
        self.assertEqual(kinds, [1, 2, 3, 4, 0, 5, 6, 7, 8, 0, 9, 10, 11, 12, 0])
        self.assertEqual(config["num_virtual_tokens"], len(config["cpt_token_ids"]))
        again = train(directory, "--method", "cpt", "--cpt-examples", "3", "--steps", "2", "--resume", size=())
        self.assertIn("finished before", self.check(again, 0).stdout)
        self.assert_message(train(directory, "--method", "cpt", "--cpt-examples", "2", "--steps", "2", "--resume", size=()), 1,
                            "cpt_examples (saved 3, now 2)")

    def test_text(self):
        directory = self.work / "text-that-moves"
        self.check(train(directory, "--method", "cpt", "--init-text", "Good or bad? ", "--num-virtual-tokens", "12", "--steps", "2"), 0)
        config = json.loads((directory / "adapter_config.json").read_text())
        self.assertEqual(config["cpt_tokens_type_mask"], [1] * 12)
        self.assertRegex(self.check(softprompt("run", "-m", MODEL, "-p", directory, POSITIVE[0]), 0).stdout, r"\A(positive|negative) ")


class Run(WithModel):
    KEYS = ["text", "tokens", "finish_reason", "label", "logprobs"]

    def test_label(self):
        for result in (self.run_prompt(POSITIVE[0]), self.run_prompt(stdin=POSITIVE[0] + "\n")):
            self.assertRegex(self.check(result, 0).stdout, r"\A(positive|negative) [01]\.\d\d\n\Z")
        self.assertEqual(self.run_prompt(POSITIVE[0]).stdout, self.run_prompt(stdin=POSITIVE[0] + "\n").stdout)

    def test_label_json(self):
        found = json.loads(self.check(self.run_prompt(POSITIVE[0], "--json"), 0).stdout)
        self.assertEqual(list(found), self.KEYS)
        self.assertEqual(found["text"], " " + found["label"])
        self.assertEqual(sorted(found["logprobs"]), ["negative", "positive"])

    def test_completion(self):
        arguments = ("run", "-m", MODEL, "The capital of France is", "--max-new-tokens", 8)
        text = self.check(softprompt(*arguments), 0).stdout
        found = json.loads(self.check(softprompt(*arguments, "--json"), 0).stdout)
        self.assertEqual(found["text"], text, "standard output is the completion alone")
        self.assertEqual(len(found["tokens"]), 8)
        self.assertEqual(len(found["logprobs"]), 8)
        self.assertEqual((found["finish_reason"], found["label"]), ("length", None))
        self.assertTrue(all(p <= 0 for p in found["logprobs"]))
        stopped = json.loads(softprompt(*arguments, "--json", "--stop", text[-2:]).stdout)
        self.assertEqual(stopped["finish_reason"], "stop")
        self.assertTrue(text.startswith(stopped["text"]) and text[-2:] not in stopped["text"])

    def test_raw_leaves_the_template_aside(self):
        found = json.loads(self.check(self.run_prompt("Once", "--raw", "--json", "--max-new-tokens", 3), 0).stdout)
        self.assertIsNone(found["label"])
        self.assertEqual(len(found["tokens"]), 3)

    def test_sampling_is_seeded(self):
        def sample(seed):
            return softprompt("run", "-m", MODEL, "Once upon a time", "--temperature", 1.5, "--max-new-tokens", 12, "--seed", seed).stdout

        self.assertEqual(sample(1), sample(1))
        self.assertGreater(len({sample(seed) for seed in range(4)}), 1)

    def test_too_long(self):
        long = "word " * 20000
        for more in ((), ("--raw",)):
            result = self.run_prompt(*more, "--max-new-tokens", 2, stdin=long)
            self.assertIn(result.returncode, (1, 2))
            self.assertIn("--max-length", result.stderr)
            self.check(self.run_prompt(*more, "--max-new-tokens", 2, "--max-length", 50, stdin=long), 0)

    def test_empty_text(self):
        for result in (softprompt("run", "-m", MODEL, ""), softprompt("run", "-m", MODEL), self.run_prompt("--raw", stdin="\n")):
            self.assert_message(result, 2, "the text is empty")

    def test_a_template_without_a_place_for_the_text(self):
        """Without the check each text would get the same answer."""
        damaged = Path(shutil.copytree(self.dir, self.work / "damaged")) / "softprompt.json"
        own = json.loads(damaged.read_text())
        own["task"]["template"] = "Review:"
        damaged.write_text(json.dumps(own))
        result = softprompt("run", "-m", MODEL, "-p", damaged.parent, "x")
        self.assert_message(result, 1, str(damaged), "{text} is missing")

    def test_greedy_warns_of_idle_flags(self):
        result = self.check(softprompt("run", "-m", MODEL, "A", "--top-k", 5, "--max-new-tokens", 1), 0)
        self.assertIn("--top-k", result.stderr)

    def test_no_special_is_refused_where_it_cannot_be_kept(self):
        self.assert_message(self.run_prompt("x", "--no-special"), 2, "--no-special", "--raw")
        self.check(self.run_prompt("x", "--no-special", "--raw", "--max-new-tokens", 1), 0)

    def test_no_such_adapter(self):
        self.assert_message(softprompt("run", "-m", MODEL, "-p", self.work / "none", "x"), 1, "none")

    def test_closed_pipe_ends_generation(self):
        reader, writer = os.pipe()
        os.close(reader)
        line = [PROGRAM, "run", "-m", MODEL, "Once upon a time", "--max-new-tokens", "2000"]
        result = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
        os.close(writer)
        self.assertEqual(result.returncode, 1)


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, *arguments):
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", LC_ALL="C.UTF-8")
            os.execv(PROGRAM, [PROGRAM, *map(str, arguments)])
        self.text = ""

    def wait_for(self, pattern, timeout=60):
        """Reads until `pattern` stands in what has come since the last match; that part is returned."""
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.screen], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise AssertionError(f"no {pattern!r} after {timeout} s in {self.text!r}")
            try:
                piece = os.read(self.screen, 65536)
            except OSError:  # how Linux says that the other side is closed
                piece = b""
            if not piece:
                raise AssertionError(f"the program ended before {pattern!r}: {self.text!r}")
            self.text += piece.decode(errors="replace")
        seen, self.text = self.text[: found.end()], self.text[found.end():]
        return seen

    def wait_for_prompt(self, prompt="> "):
        """The prompt is drawn just before the line editor takes the terminal over: keys sent between the two would be lost."""
        seen = self.wait_for(rf"(\A|\n|\r){re.escape(prompt)}")
        while termios.tcgetattr(self.screen)[3] & termios.ICANON:
            time.sleep(0.01)
        return seen

    def send(self, text):
        os.write(self.screen, text.encode())

    def exit_code(self, timeout=60):
        end = time.monotonic() + timeout
        while (ended := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
            elif select.select([self.screen], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):  # how Linux says that the other side is closed
                    os.read(self.screen, 65536)
        os.close(self.screen)
        return os.waitstatus_to_exitcode(ended[1])


class OnATerminal(WithModel):
    def test_conversation(self):
        terminal = Terminal("run", "-m", MODEL, "--max-new-tokens", 12)
        terminal.wait_for_prompt()
        terminal.send("/help\n")
        self.assertIn("/reset", terminal.wait_for_prompt())
        terminal.send("Say hello to \\\n")
        terminal.wait_for_prompt("| ")
        terminal.send("Ann.\n")
        self.assertRegex(terminal.wait_for_prompt().split("Ann.\r\n")[1], r"\w")
        terminal.send("/nonsense\n")
        terminal.wait_for("/nonsense is no command")
        terminal.wait_for_prompt()
        terminal.send("/reset\n")
        terminal.wait_for_prompt()
        terminal.send("/quit\n")
        self.assertEqual(terminal.exit_code(), 0)

    def test_interrupt_stops_the_answer_alone(self):
        terminal = Terminal("run", "-m", MODEL, "--max-new-tokens", 4000, "--temperature", 1, "--stop", "no such text at all")
        terminal.wait_for_prompt()
        terminal.send("Count from one to a thousand in words, one a line.\n")
        terminal.wait_for(r"line\.\r\n[^\r\n]*\w")
        terminal.send("\x03")
        terminal.wait_for_prompt()
        terminal.send("half a line\x03")
        terminal.wait_for_prompt()
        terminal.send("\x04")
        self.assertEqual(terminal.exit_code(), 0)

    def test_labels_line_by_line(self):
        terminal = Terminal("run", "-m", MODEL, "-p", self.dir)
        terminal.wait_for_prompt()
        for text in (POSITIVE[0], NEGATIVE[0]):
            terminal.send(text + "\n")
            terminal.wait_for(r"(positive|negative) [01]\.\d\d\r\n")
            terminal.wait_for_prompt()
        terminal.send("\x04")
        self.assertEqual(terminal.exit_code(), 0)

    def test_progress_bar(self):
        terminal = Terminal(*train_line(self.work / "bar"))
        terminal.wait_for(r"\[#*\.*\]  step \d+/\d+  loss ")
        terminal.wait_for(r"next: softprompt")
        self.assertEqual(terminal.exit_code(), 0)


def each_test(suite):
    for test in suite:
        yield from each_test(test) if isinstance(test, unittest.TestSuite) else (test,)


def load_tests(loader, tests, pattern):
    """All of them, or of n parts the i-th: neighbours, which mostly take as long, go to different parts."""
    del loader, pattern
    part, n_parts = map(int, os.environ.get("SOFTPROMPT_TEST_PART", "1/1").split("/"))
    return unittest.TestSuite(test for i, test in enumerate(each_test(tests)) if i % n_parts == part - 1)


if __name__ == "__main__":
    if len(sys.argv) > 1 and "softprompt" in Path(sys.argv[1]).name:
        PROGRAM = str(Path(sys.argv.pop(1)).resolve())
    unittest.main()
