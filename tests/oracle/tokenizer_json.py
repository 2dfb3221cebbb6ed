"""Tokenizers from Hugging Face directories: ids against the `tokenizers` library and transformers' AutoTokenizer.

    tokenizer_json.py TOKENIZE_LINES [TEST...]      (the program of tests/tokenize_lines.c)

Every tokenizer.json is made here: SmolLM2's own, byte-level BPE with each family's pattern and with patterns of no family, BPE over
characters as llama 2, gemma and phi 3 have it, added tokens of every kind. Exit status 0: all equal.
"""
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import hf_model
import tokenizer as base
from tokenizer import ADVERSARIAL, CHATML, FAMILIES, PARSE_SPECIAL, QWEN2, check, compare, data_lines, every_character, ours, random_texts, run, string

ADD_BOS = 1
MARK = "\u2581"


def write(folder, tokenizer, config=None, change=None, files=None):
    """A directory with the tokenizer; `change` edits the parsed tokenizer.json, `files` are others: name -> text or object."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    data = json.loads(tokenizer.to_str())
    if change:
        change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=random.random() < 0.5))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in (files or {}).items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def reload(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def compare_directory(what, folder, texts, modes=(0, PARSE_SPECIAL)):
    compare(what, folder, reload(folder), texts, modes)


def refused(what, folder, *words):
    try:
        run(folder, 0, b"")
        check(f"{what} is refused", False, "it was not")
    except SystemExit as error:
        check(f"{what} is refused", all(word in str(error) for word in words), error)


def texts_of(lines, rng, n=2000):
    return lines[::40] + [t for t in ADVERSARIAL if not isinstance(t, bytes)] + random_texts(rng, n)


# ---- byte-level BPE -------------------------------------------------------------------------------------------------------------


def train_bytes(lines, stages, nfc=False, ignore_merges=False, n_vocab=1500):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.normalizer = normalizers.NFC() if nfc else None
    t.pre_tokenizer = pre_tokenizers.Sequence(stages) if len(stages) > 1 else stages[0]
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(lines[:4000] + ["中文字 日本語の 한국어 e\u0301 é 12345 678"] * 50, trainers.BpeTrainer(
        vocab_size=n_vocab, special_tokens=["<|endoftext|>"], show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t


def string_merges(data):
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]


def test_smollm2(lines, rng, folder):
    directory = Path(hf_model.hf_directory())
    texts = texts_of(lines, rng) + lines[:2000]
    compare_directory("SmolLM2's directory", directory, texts)
    auto = AutoTokenizer.from_pretrained(directory)
    got, want = ours(directory, texts[:1500], PARSE_SPECIAL | ADD_BOS), auto(texts[:1500])["input_ids"]
    check("SmolLM2's directory, AutoTokenizer", got == want)
    _, here = run(directory, 0, b"")
    _, there = run(base.MODEL, 0, b"")
    check("the same hash from GGUF and from a directory", here.split(":")[0] == there.split(":")[0], f"{here} and {there}")
    print(f"SmolLM2's directory: {len(texts)} texts; {here}")


def test_families(lines, rng, folder):
    texts = texts_of(lines, rng, 1000)
    seen = {}
    for name, (stages, nfc, ignore_merges) in FAMILIES.items():
        key = (tuple(map(str, stages)), nfc, ignore_merges)
        if key in seen:
            continue
        seen[key] = name
        path = write(folder / "family", train_bytes(lines, stages, nfc, ignore_merges), change=string_merges if len(seen) % 2 else None)
        compare_directory(name, path, texts)
        compare_directory(f"{name}, every character", path, every_character()[::8], modes=(0,))
        _, kind = run(path, 0, b"")
        check(f"{name} is known", not kind.startswith("bpe/custom"), kind)
    print(f"{len(seen)} families of byte-level BPE: {len(texts)} texts each")


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(pattern if isinstance(pattern, str) else Regex(*pattern), behavior, invert)


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
OTHER_PATTERNS = {  # of no family, and what they are here for
    "possessive": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]|\s+(?!\S)|\s+"],
    "repeated interval": [r"\p{N}{1,3}+|\p{L}{2}+|[^\p{N}\p{L}]"],
    "repeated interval of a group": [r"(?:ab|\s){2}+|[a-c]{,2}x|."],
    "lazy": [r"\p{L}+?(?=[aeiou ])|\s{1,2}?x|<[^>]*?>|[^<>]"],
    "look-behind": [r"(?<=\s)\p{L}+|(?<!a)b+|\p{N}(?=(?:\p{N}{3})*$)|\S"],
    "atomic": [r"(?>\p{L}+)(?!s)|(?>a|ab)c|'"],
    "anchors": [r"^\s*\p{L}+|\p{L}+$|\A\S|\S\z"],
    "dot": [r"<.+>|\(.*?\)|."],
    "categories": [r"\p{Lu}\p{Ll}*|[\p{Nd}\p{Nl}]+|\p{P}+|[\p{S}\p{Mn}]+|\p{No}|\p{Z}"],
    "complements": [r"\P{L}|\p{^N}\p{N}|[^\S\r\n]+|\D\d"],
    "three stages": [r"\d{3}", r"[a-zA-Z'-]+", r"\s"],
    "escapes": [r"\u00e9|\x{4e2d}|\x41|\t|\v|\f|\-|\/|\[|\]|\{|[\]\[\-^]|}"],
    "a brace that stands for itself": [r"a{|b{x}|{2|[{}]"],
    "case": [r"(?i:the|and|[a-f]+)|(?-i:X)|\s"],
    "nested groups": [r"((a|b)(c|(?:d|e))?)+|(\s|\p{P}){1,4}"],
}
ODD_TEXTS = ["aa ab abc abcabc a{ b{x} {2 {} }{", "1234567 12 1,234,567.89", "the THE The and AND abcdefABCDEF XxX", "<a><b > (x) (y\nz)", "aéb中A\x0b\x0c/-[]{}^", "don't can't 's ab'", "line one\nline two\r\nline three\n\n", "acbdaebcae a bb"]


def test_other_patterns(lines, rng, folder):
    texts = texts_of(lines, rng, 1000) + ODD_TEXTS + ["".join(rng.choice("ab cdex{}()<>1234'\n\t\u00e9\u4e2dAX-/") for _ in range(rng.randrange(1, 60))) for _ in range(2000)]
    for name, patterns in OTHER_PATTERNS.items():
        path = write(folder / "other", train_bytes(lines, [split([p]) for p in patterns] + [BYTES], n_vocab=700))
        compare_directory(f"pattern: {name}", path, texts, modes=(0,))
        compare_directory(f"pattern: {name}, every character", path, every_character()[::8], modes=(0,))
        _, kind = run(path, 0, b"")
        check(f"pattern: {name}", kind.startswith("bpe/custom"), kind)
    stages = {
        "removed and inverted": [split([FAMILY_CL100K], "removed", True)],
        "gaps that are dropped": [split([r"\p{L}+|\p{N}"], "removed", True)],
        "a literal": [split(" "), split(".")],
        "digits together": [pre_tokenizers.Digits(individual_digits=False)],
        "isolated and inverted": [split([r"\p{L}+"], "isolated", True)],
    }
    for name, made in stages.items():
        compare_directory(f"split: {name}", write(folder / "other", train_bytes(lines, made + [BYTES], n_vocab=700)), texts, modes=(0,))
    plain = write(folder / "other", train_bytes(lines, [BYTES], n_vocab=700))
    compare_directory("split: not at all", plain, texts, modes=(0,))
    print(f"{len(OTHER_PATTERNS)} patterns and {len(stages) + 1} splits of no family: {len(texts)} texts each")


FAMILY_CL100K = base.CL100K % "{1,3}"


# ---- BPE over characters ----------------------------------------------------------------------------------------------------------


def train_characters(lines, pre_tokenizer, normalizer=None, byte_fallback=True, fuse_unk=True, unk="<unk>", n_vocab=2000, alphabet=90):
    """Special tokens, the bytes where they are wanted, letters, merges: as the tokenizer.json of such models are laid out."""
    t = Tokenizer(models.BPE(unk_token=unk))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    t.train_from_iterator(lines[:6000], trainers.BpeTrainer(vocab_size=n_vocab, show_progress=False, limit_alphabet=alphabet))
    data = json.loads(t.to_str())["model"]
    merges = [tuple(m) for m in data["merges"]]
    words = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if byte_fallback else [])
    words += [w for w in sorted(data["vocab"], key=data["vocab"].get) if w not in words]
    # runs of marks, as gemma has them
    for n in (2, 3, 4):
        words.append(MARK * n)
        merges.append((MARK * (n - 1), MARK))
    model = models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges, unk_token=unk, fuse_unk=fuse_unk, byte_fallback=byte_fallback)
    t = Tokenizer(model)
    t.normalizer, t.pre_tokenizer = normalizer, pre_tokenizer
    t.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    t.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in ("<unk>", "<s>", "</s>")])
    return t


REPLACE = normalizers.Replace(" ", MARK)
LLAMA = normalizers.Sequence([normalizers.Prepend(MARK), REPLACE])


def metaspace(scheme, split):
    return pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme=scheme, split=split)


CHARACTERS = {
    "llama 2": dict(normalizer=LLAMA, pre_tokenizer=None),
    "llama 2, not legacy": dict(pre_tokenizer=metaspace("first", False)),
    "metaspace always": dict(pre_tokenizer=metaspace("always", False)),
    "metaspace never": dict(pre_tokenizer=metaspace("never", False)),
    "metaspace, words": dict(pre_tokenizer=metaspace("always", True)),
    "metaspace first, words": dict(pre_tokenizer=metaspace("first", True)),
    "gemma": dict(normalizer=REPLACE, pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous")),
    "gemma without pre-tokenizer": dict(normalizer=REPLACE, pre_tokenizer=None),
    "marked twice": dict(normalizer=REPLACE, pre_tokenizer=metaspace("first", False)),
    "unknown, fused": dict(normalizer=LLAMA, pre_tokenizer=None, byte_fallback=False, alphabet=40),
    "unknown, one by one": dict(normalizer=LLAMA, pre_tokenizer=None, byte_fallback=False, fuse_unk=False, alphabet=40),
    "unknown, words": dict(pre_tokenizer=metaspace("always", True), byte_fallback=False, alphabet=40),
    "no unknown": dict(normalizer=REPLACE, pre_tokenizer=None, byte_fallback=False, unk=None, alphabet=40),
}


def phi3_tokens(t):
    t.add_special_tokens([AddedToken(w, special=True, normalized=False, rstrip=True) for w in ("<|user|>", "<|end|>")])
    t.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in ("<|assistant|>",)])
    t.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<mask>", normalized=False, lstrip=True)])


def test_characters(lines, rng, folder):
    texts = lines[:1000] + texts_of(lines, rng, 1000)
    texts += ["<s>hello</s> world", "x<s> y", "<unk>z qz", "<0x41>", "the quick lazy dog " * 1000, "a" * 9000, " " * 9000, MARK, MARK + "x", " " + MARK + " x"]
    texts += ["".join(rng.choice(["<|user|>", "<|end|>", "<|assistant|>", "\n", "\n\n", " ", "  ", "<mask>", "x", "q", "<s>", "é"]) for _ in range(rng.randrange(1, 12))) for _ in range(1500)]
    for name, settings in CHARACTERS.items():
        t = train_characters(lines, **settings)
        phi3_tokens(t)
        compare_directory(name, write(folder / "characters", t), texts)
    got, _ = run(write(folder / "characters", train_characters(lines, **CHARACTERS["llama 2"])), "roundtrip", b"".join(map(string, texts)))
    bad = [t for t, line in zip(texts, got) if line != "same" and MARK not in t]
    check("round trip", not bad, f"{len(bad)}; {bad[:1]!r}")
    print(f"{len(CHARACTERS)} kinds of BPE over characters: {len(texts)} texts each")


# ---- added tokens -------------------------------------------------------------------------------------------------------------------

PIECES = ["<a>", "<b>", "<a><b>", "<", ">", "b><", " ", "  ", "\n", "\t", "\u3000", "x", "é", "e\u0301", "<|endoftext|>", "<c>", "<d>", "\x1c", "tool"]


def test_added_tokens(lines, rng, folder):
    texts = ["".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 14))) for _ in range(1500)]
    n = 0
    for nfc in (False, True):
        for seed in range(12):
            chosen = random.Random(seed)
            t = train_bytes(lines, FAMILIES["qwen2"][0], nfc, n_vocab=400)
            for content in ("<a>", "<a><b>", "<b>", "b><", "  ", "\n", "<c>", "<d>", "tool", " x"):
                if chosen.random() < 0.8:
                    special = chosen.random() < 0.4
                    token = AddedToken(content, special=special, normalized=chosen.random() < 0.4, lstrip=chosen.random() < 0.25, rstrip=chosen.random() < 0.25)
                    (t.add_special_tokens if special else t.add_tokens)([token])
            compare_directory(f"added tokens, NFC {nfc}, seed {seed}", write(folder / "added", t), texts)
            n += 1
    for scheme in ("first", "always", "never"):  # late tokens beside a prefix that is put behind them
        t = train_characters(lines, metaspace(scheme, False))
        t.add_tokens([AddedToken("<a>", normalized=True), AddedToken("b><", normalized=False), AddedToken("tool", normalized=True), AddedToken("é", normalized=True)])
        t.add_special_tokens([AddedToken("<b>", special=True, normalized=True)])
        compare_directory(f"added tokens, metaspace {scheme}", write(folder / "added", t), texts)
        n += 1
    t = train_characters(lines, None, REPLACE)
    t.add_tokens([AddedToken("<a>", normalized=True), AddedToken("<a><b>", normalized=False), AddedToken("tool", normalized=True)])
    compare_directory("added tokens, gemma", write(folder / "added", t), texts)
    print(f"added tokens: {n + 1} vocabularies, {len(texts)} texts each")


# ---- the files beside tokenizer.json ------------------------------------------------------------------------------------------------


def template(tokens, *pieces):
    return processors.TemplateProcessing(single=" ".join(pieces), special_tokens=[(w, i) for w, i in tokens.items()])


def test_beginning_and_end(lines, rng, folder):
    """BOS and EOS as AutoTokenizer puts them."""
    texts, n = ["", "a text", "<s>a</s>"], 0
    for post in (None, ["<s>", "$A"], ["$A", "</s>"], ["<s>", "$A", "</s>"], ["$A"]):
        for config in ({}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}):
            for objects in (False, True):
                t = train_characters(lines, None, LLAMA, n_vocab=700)
                if post:
                    t.post_processor = processors.Sequence([processors.ByteLevel(), template({"<s>": 1, "</s>": 2}, *post)])
                roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
                if objects:
                    roles = {k: {"__type": "AddedToken", "content": w, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} for k, w in roles.items()}
                path = write(folder / "roles", t, {"tokenizer_class": "PreTrainedTokenizerFast", **roles, **config})
                want = [AutoTokenizer.from_pretrained(path)(text)["input_ids"] for text in texts]
                got = ours(path, texts, PARSE_SPECIAL | ADD_BOS)
                check(f"{post} {config}", got == want, f"{got} instead of {want}")
                n += 1
    print(f"BOS and EOS: {n} configurations")


def test_templates(lines, rng, folder):
    """The chat template from each of the places where it may be."""
    t = train_bytes(lines, FAMILIES["qwen2"][0], n_vocab=500)
    t.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    roles = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    named = [{"name": "tool_use", "template": "{{ 'tools' }}"}, {"name": "default", "template": QWEN2}]
    places = {"string": (dict(roles, chat_template=CHATML), {}, CHATML), "named": (dict(roles, chat_template=named), {}, QWEN2),
              "file": (dict(roles, chat_template=CHATML), {"chat_template.jinja": QWEN2}, QWEN2), "file alone": (roles, {"chat_template.jinja": CHATML}, CHATML)}
    messages = [{"role": "user", "content": "Hello <|im_end|>"[:6]}, {"role": "assistant", "content": " I am"}, {"role": "user", "content": "x"}]
    for name, (config, files, text) in places.items():
        path = write(folder / "chat", t, config, files=files)
        want = AutoTokenizer.from_pretrained(path).apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        got, _ = base.ours_chat(path, messages, True)
        check(f"chat template, {name}", got == list(want), f"{got} instead of {want}")
    print(f"chat templates: {len(places)} places")


# ---- what is refused ------------------------------------------------------------------------------------------------------------------


def changed(**values):
    return lambda data: data.update(values)


def changed_model(**values):
    return lambda data: data["model"].update(values)


def pattern_of(regex):
    return changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
                                                                         {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]})


def added(**values):
    token = dict({"id": 400, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}, **values)
    return lambda data: data["added_tokens"].append(token)


REFUSED = [  # change, words of the message
    (changed_model(type="Unigram"), "Unigram", "BPE"), (changed_model(type="WordPiece"), "WordPiece"), (changed_model(type=None, merges=None), "BPE"),
    (changed_model(continuing_subword_prefix="##"), "continuing_subword_prefix"), (changed_model(end_of_word_suffix="</w>"), "end_of_word_suffix"), (changed_model(dropout=0.1), "dropout"),
    (changed_model(vocab=[]), "vocab"), (changed_model(vocab={"a": -1}), "id of"), (changed_model(vocab={"a": 1 << 40}), "id of"), (changed_model(vocab={"a": 5, "b": 5}), "both token 5"),
    (changed_model(merges={}), "merges"), (changed_model(merges=["a"]), "no pair"), (changed_model(merges=[["a", "b"], "c d"]), "merge 1"), (changed_model(merges=[["zz", "a"]]), "no token"),
    (changed_model(merges=[["a", 1]]), "merge 0"), (changed_model(unk_token="<none>"), "unk_token"), (changed_model(ignore_merges="yes"), "ignore_merges"),
    (changed(normalizer={"type": "NFKC"}), "NFKC"), (changed(normalizer={"type": "Lowercase"}), "Lowercase"), (changed(normalizer={"type": "Sequence"}), "Sequence"),
    (changed(normalizer={"type": "Prepend", "prepend": "x"}), "Prepend"), (changed(normalizer=["NFC"]), "type"),
    (changed(normalizer={"type": "Replace", "pattern": {"String": " "}, "content": MARK}), "U+2581"),
    (changed(pre_tokenizer=None), "ByteLevel"), (changed(pre_tokenizer={"type": "Whitespace"}), "Whitespace"), (changed(pre_tokenizer={"type": "ByteLevel"}), "add_prefix_space"),
    (changed(pre_tokenizer={"type": "Metaspace", "replacement": "_"}), "Metaspace"), (pattern_of(r"\p{Han}+"), r"\p{Han}"), (pattern_of(r"[a-z&&[^b]]"), "intersection"),
    (pattern_of(r"[[:alpha:]]"), "set inside a set"), (pattern_of(r"(a)\1"), r"\1"), (pattern_of(r"\w+"), r"\w"), (pattern_of(r"a*"), "empty"), (pattern_of(r"(?=a)"), "empty"), (pattern_of("("), "("),
    (pattern_of(")"), ")"), (pattern_of("[a"), "["), (pattern_of("(?m:a)"), "(?m"), (pattern_of("(?i)a"), "(?i"), (pattern_of(r"(?i:ss)"), "neighbours"), (pattern_of(r"a{3}?"), "{3}"),
    (pattern_of("(" * 100 + "a" + ")" * 100), "nesting"), (pattern_of("*a"), "*"), (pattern_of(r"[z-a]"), "range"), (pattern_of(r"[\P{L}]"), "complement"), (pattern_of("a" * 20000), "20000"),
    (changed(post_processor={"type": "BertProcessing"}), "BertProcessing"), (changed(post_processor={"type": "TemplateProcessing"}), "single"),
    (changed(post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"SpecialToken": {"id": "b", "type_id": 0}}]}), "TemplateProcessing"),
    (added(single_word=True), "single_word"), (added(id=900), "said to be 900"), (added(id=-1), "id of"), (added(content=""), "content"), (added(content=7), "content"), (added(id=3), "said to be 3"),
    (added(content="\u20acx", normalized=True), None), (changed(added_tokens={}), "added_tokens"), (changed(model=None), "model"), (changed(model=[]), "model"),
]


def test_refusals(lines, rng, folder):
    t = train_bytes(lines, [BYTES], n_vocab=400)
    assert t.get_vocab_size() == 400
    for change, *words in REFUSED:
        path = write(folder / "refused", t, change=change)
        if words[0]:
            refused(" ".join(words), path, *words)
        else:
            compare_directory("not refused", path, ["a\u20acxb"])
    (path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "a": 1}}}')
    refused("the same key twice", path, "duplicate")
    (path / "tokenizer.json").write_text('{"model": ')
    refused("half a file", path, "bad JSON")
    (path / "tokenizer.json").unlink()
    refused("no file", path, "no such file", "save_pretrained")
    path = write(folder / "refused", t, {"bos_token": "<none>"})
    refused("a BOS that is no token", path, "bos_token", "<none>")
    slow = write(folder / "refused", t, change=pattern_of(r"(?:a|a|ab)*c|x(?:a+)+y"))
    lines, _ = run(slow, 0, string("x" + "a" * 3000))
    check("a pattern that takes for ever", lines[0].startswith("error") and "steps" in lines[0], lines[0][:100])
    print(f"refused, by name: {len(REFUSED) + 5} files")


TESTS = {"refusals": test_refusals, "smollm2": test_smollm2, "characters": test_characters, "added": test_added_tokens,
         "roles": test_beginning_and_end, "templates": test_templates, "patterns": test_other_patterns, "families": test_families}


def main(names):
    rng, lines = random.Random(0), data_lines()
    with tempfile.TemporaryDirectory() as folder:
        for name in names or TESTS:
            TESTS[name](lines, rng, Path(folder))
    print("all equal" if not base.failures else f"{base.failures} comparisons failed")
    return bool(base.failures)


if __name__ == "__main__":
    base.PROGRAM = sys.argv[1]
    sys.exit(main(sys.argv[2:]))
