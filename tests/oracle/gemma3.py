"""gemma3.py: Gemma-3-270M, Q4_K_M, the real weights: tokens, logits, gradients, keys and values, adapters, greedy continuations.

    gemma3.py tokenizer TOKENIZE_LINES     (the program of tests/tokenize_lines.c)
    gemma3.py model [CHECK...]             logits, gradients, generation, keys_values, adapters

The file comes under the Gemma terms, so it is fetched only when asked for: scripts/fetch-model --gemma. Without it the exit status is
77, which CTest counts as skipped.
"""

import copy
import importlib.util
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

import engine
import hf_model
import softprompt
from engine import report

GEMMA = os.path.join(hf_model.CACHE, "models", "gemma-3-270m.Q4_K_M.gguf")
LOGITS_TOLERANCE, GRADIENT_TOLERANCE = 2e-3, 1e-4
PACKING_LIMIT = 3e-5  # the same sums in two orders; torch's f32 is up to 1.7e-4 from its f64 here
N_POSITIONS, N_NEW = 700, 48  # longer than the window of 512


def reference_tokenizer():
    """What transformers makes of the GGUF file: a directory with its tokenizer.json, made once."""
    directory = Path(GEMMA.removesuffix(".gguf") + ".tokenizer")
    if not directory.is_dir():
        from transformers import AutoTokenizer
        temporary = f"{directory}.tmp.{os.getpid()}"
        AutoTokenizer.from_pretrained(os.path.dirname(GEMMA), gguf_file=os.path.basename(GEMMA)).save_pretrained(temporary)
        os.rename(temporary, directory)
    return directory


# ---- tokens -----------------------------------------------------------------------------------------------------------------------


def long_space_runs(text):
    """Beyond 31 spaces transformers joins pairs where SentencePiece takes the longest token: there the two disagree."""
    return " " * 32 in text or "\n" * 32 in text


def sentencepiece_processor(spec):
    """The vocabulary as a SentencePiece model: pieces, scores and types of the file, U+2581 where it writes spaces."""
    import sentencepiece
    from transformers.convert_slow_tokenizer import import_protobuf
    pb2 = import_protobuf()
    proto = pb2.ModelProto()
    kinds = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}
    for i, (token, score, kind) in enumerate(zip(spec["tokens"], spec["scores"], spec["token_type"])):
        piece = proto.pieces.add()
        piece.piece, piece.score = token.replace(" ", "\u2581"), score
        piece.type = 2 if i == spec["unknown_token_id"] else kinds[kind]  # the proto has NORMAL 1, UNKNOWN 2, CONTROL 3, USER_DEFINED 4, UNUSED 5, BYTE 6
    proto.trainer_spec.model_type = 2  # BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id, proto.trainer_spec.eos_id, proto.trainer_spec.pad_id = 3, 2, 1, 0
    for role, index in (("unk", 3), ("bos", 2), ("eos", 1), ("pad", 0)):
        setattr(proto.trainer_spec, f"{role}_piece", spec["tokens"][index])
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def compare_ids(base, what, texts, got, want):
    bad = [i for i in range(len(texts)) if got[i] != want[i]]
    shortest = min(bad, key=lambda i: len(texts[i]), default=None)
    detail = "" if shortest is None else f"{len(bad)} of {len(texts)}; {texts[shortest][:80]!r}: {got[shortest][:12]} instead of {want[shortest][:12]}"
    base.check(what, not bad, detail)


def test_chats(base, tokenizer, folder):
    """The file has no chat template: the family's templates over its vocabulary."""
    n, base.PROGRAM = 0, sys.argv[2]
    for template in base.TEMPLATES["gemma"]:
        path = tokenizer_directory(folder, template)
        for conversation in base.CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            for open_answer in (False, True):
                try:
                    text = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=open_answer, tokenize=False)
                except Exception:  # the template's own raise_exception
                    continue
                got, _ = base.ours_chat(path, messages, open_answer)
                want = tokenizer(text, add_special_tokens=False)["input_ids"]
                base.check(f"chat {conversation} {open_answer}", got == want, f"{got} instead of {want}")
                n += 1
    print(f"chats: {n} conversations equal to their templates")


def tokenizer_directory(folder, template):
    folder = Path(folder) / "with-template"
    folder.mkdir(exist_ok=True)
    for file in reference_tokenizer().iterdir():
        if not (folder / file.name).exists():
            os.symlink(file, folder / file.name)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def tokenizer():
    import tokenizer as base
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer
    base.PROGRAM = sys.argv[2]
    rng, directory = random.Random(0), reference_tokenizer()
    reference = Tokenizer.from_file(str(directory / "tokenizer.json"))
    texts = base.data_lines() + [t for t in base.ADVERSARIAL if not isinstance(t, bytes)] + base.random_texts(rng, 4000)
    texts += ["".join(rng.choice(["\n", "\n\n", " ", "  ", "\t", "a", "<b>", "</b>", "<start_of_turn>", "<bos>", "\u2581", "[multimodal]", "é", "𝕏"]) for _ in range(rng.randrange(1, 25))) for _ in range(3000)]
    short = [t for t in texts if not long_space_runs(t)]
    for flags in (0, base.PARSE_SPECIAL):
        want = base.theirs(reference, short, flags)
        compare_ids(base, f"GGUF against transformers, flags {flags}", short, base.ours(GEMMA, short, flags), want)
        compare_ids(base, f"tokenizer.json against transformers, flags {flags}", short, base.ours(directory, short, flags), want)
    compare_ids(base, "tokenizer.json, long runs", texts, base.ours(directory, texts, 0), base.theirs(reference, texts, 0))
    print(f"transformers' own reading: {len(short)} texts of {len(texts)}; {base.run(directory, 0, b'')[1]}; {base.run(GEMMA, 0, b'')[1]}")
    if importlib.util.find_spec("sentencepiece"):
        processor = sentencepiece_processor(base.read_gguf(GEMMA))
        plain = [t for t in texts if "\0" not in t]
        compare_ids(base, "GGUF against SentencePiece", plain, base.ours(GEMMA, plain, 0), [processor.encode(t) for t in plain])
        print(f"SentencePiece: {len(plain)} texts")
    with tempfile.TemporaryDirectory() as folder:
        test_chats(base, AutoTokenizer.from_pretrained(directory), folder)
    return not base.failures


# ---- the model ----------------------------------------------------------------------------------------------------------------------


def text_tokens(n):
    """BOS, then news."""
    from tokenizers import Tokenizer
    reference = Tokenizer.from_file(str(reference_tokenizer() / "tokenizer.json"))
    with open(os.path.join(engine.HUTTO, "nytEditorialSnippets_GroundTruth.txt"), encoding="utf-8", errors="replace") as f:
        text = "\n".join(line.rstrip("\r\n").split("\t")[2] for line in f if line.count("\t") >= 2)
    return [2] + reference.encode(text[:8 * n], add_special_tokens=False).ids[:n - 1]


def check_logits(reference, model, tokens):
    with torch.no_grad():
        theirs = engine.torch_logits(reference, None, tokens).numpy()
    ours = softprompt.Session(model).append_all(tokens)
    good = report(f"logits at {len(tokens)} positions, max abs difference", float(np.abs(ours - theirs).max()), LOGITS_TOLERANCE)
    return good & report("share of positions with another top-1", float((ours.argmax(-1) != theirs.argmax(-1)).mean()), 0)


def check_gradients(reference, model, tokens):
    """Against torch in f64, whose own f32 is as far from it as ours. Prompts of the vocabulary's rows, in the scale in which the model
    reads them; one example is longer than the window."""
    rng, good, embeddings = np.random.default_rng(3), True, reference.get_input_embeddings()
    examples = [(tokens[20 * i:20 * i + 8 + 3 * (i % 5)], 1 + i % 3) for i in range(5)]
    double = engine.in_f64(copy.deepcopy(reference))
    for n, these in ((1, examples), (16, examples), (4, [(tokens[:560], 2)])):
        with torch.no_grad():
            prompt = embeddings(torch.tensor(rng.integers(0, model.n_vocab, n))).numpy()
        loss, gradient = model.loss(softprompt.Prompt(prompt), these)
        their_loss, their_gradient = engine.torch_gradient(double, prompt, these, torch.float64)
        what = f"P = {n}, examples of up to {max(len(e[0]) for e in these)} tokens"
        good &= report(f"{what}: loss", abs(loss - their_loss) / their_loss, 1e-5)
        good &= report(f"{what}: gradient", engine.relative_error(gradient, their_gradient), GRADIENT_TOLERANCE)
        _, f32 = engine.torch_gradient(reference, prompt, these)
        print(f"     {what}: torch's own gradient in f32: {engine.relative_error(f32, their_gradient):.2e}", flush=True)
    return good


def check_keys_values(reference, model, tokens):
    import keys_values
    start, good = keys_values.tokens_keys_values(reference, tokens[200:208]), True
    examples = [(tokens[20 * i:20 * i + 8 + 3 * (i % 5)], 1 + i % 3) for i in range(3)]
    ids = text_ids(keys_values.TEXT_TO_START_FROM)
    with tempfile.TemporaryDirectory() as directory:
        for name in ("PREFIX_TUNING", "CARTRIDGE"):
            good &= keys_values.check_pefts(name, 8, reference, model, tokens[:560], examples, directory, start, PACKING_LIMIT,
                                            torch.float64)
        for name in keys_values.METHODS:
            good &= keys_values.check_ours(name, reference, model, tokens[:100], keys_values.TEXT_TO_START_FROM, ids, directory)
    return good


def text_ids(text):
    from tokenizers import Tokenizer
    return [2] + Tokenizer.from_file(str(reference_tokenizer() / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def check_adapters(reference, model, tokens):
    """Prompt tuning both ways."""
    from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model
    import peft_smollm2
    good, tokens = True, tokens[:540]
    with tempfile.TemporaryDirectory() as directory:
        theirs = os.path.join(directory, "peft")
        trained = get_peft_model(reference, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=8))
        optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=0.05)
        for i in range(2):
            ids = torch.tensor([tokens[40 * i:40 * i + 24]])
            trained(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.eval().save_pretrained(theirs)
        expected = peft_smollm2.logits_there(trained, tokens)
        ours = softprompt.Session(model, softprompt.Prompt(theirs)).append_all(tokens)
        good &= report("PEFT's adapter here, logits", float(np.abs(ours - expected).max()), LOGITS_TOLERANCE)
        base = trained.unload() if hasattr(trained, "unload") else reference
        here = peft_smollm2.train_here(directory, GEMMA)
        loaded = PeftModel.from_pretrained(base, here).eval()
        expected, ours = peft_smollm2.logits_there(loaded, tokens), softprompt.Session(model, softprompt.Prompt(here)).append_all(tokens)
        plain = softprompt.Session(model).append_all(tokens)
        good &= report("our adapter in PEFT, logits", float(np.abs(ours - expected).max()), LOGITS_TOLERANCE)
        return good & report("(and the prompt matters: 1 / difference without it)", 1 / float(np.abs(ours - plain).max()), 1.0)


def check_generation(reference, model, tokens):
    import generation
    judge = generation.Judge(N_NEW, reference.config.eos_token_id)
    for beginning in [[2] + tokens[40 * i + 1:40 * i + 8 + i] for i in range(6)] + [tokens[:530]]:
        generated, _, _ = softprompt.Session(model).generate(beginning, max_new_tokens=N_NEW)
        judge.take(generated, generation.reference_logits(reference, None, beginning, generated))
    return judge.report()


CHECKS = {"logits": check_logits, "gradients": check_gradients, "generation": check_generation, "keys_values": check_keys_values,
          "adapters": check_adapters}


def model():
    torch.manual_seed(0)
    reference, ours, tokens, good = hf_model.load(GEMMA), softprompt.Model(GEMMA), text_tokens(N_POSITIONS), True
    for name in sys.argv[2:] or CHECKS:
        good &= CHECKS[name](reference, ours, tokens)
    return good


if __name__ == "__main__":
    if not os.path.exists(GEMMA):
        print(f"skipped: there is no {GEMMA}; scripts/fetch-model --gemma fetches it, under the Gemma terms")
        sys.exit(77)
    sys.exit(0 if {"tokenizer": tokenizer, "model": model}[sys.argv[1]]() else 1)
