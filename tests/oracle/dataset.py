"""Data sets as libsoftprompt reads them against Python's own csv and json modules, row by row, line numbers included.

    python tests/oracle/dataset.py [--seed N] [--rounds N]

Generated files hold everything that makes CSV hard; the four files of ratings (Hutto & Gilbert 2014), below
SOFTPROMPT_CACHE, are written as CSV, TSV with and without quotes, JSON lines and a JSON array. Needs nothing but Python.
The library is build/libsoftprompt.so, or SOFTPROMPT_LIB.
"""
import argparse
import csv
import ctypes
import io
import json
import os
import pathlib
import random
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LIBRARY = os.environ.get("SOFTPROMPT_LIB") or ROOT / "build" / "libsoftprompt.so"
CACHE = pathlib.Path(os.environ.get("SOFTPROMPT_CACHE") or pathlib.Path.home() / ".cache" / "softprompt")
ALPHABET = ["a", "b", "é", "😀", "\u2028", " ", "'", "\\", "0", '"', ",", "\t", "\n", "\r\n", "\r"]
RFC_4180 = r'(?:"(?:[^"]|"")*"|[^"{0}\r\n]*)'


class Message(ctypes.Structure):
    _fields_ = [("role", ctypes.c_char_p), ("content", ctypes.c_char_p)]


class Row(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("line", ctypes.c_size_t), ("text", ctypes.c_char_p), ("label", ctypes.c_char_p),
                ("prompt", ctypes.c_char_p), ("completion", ctypes.c_char_p), ("messages", ctypes.POINTER(Message)),
                ("n_messages", ctypes.c_size_t), ("task_id", ctypes.c_size_t)]


class Options(ctypes.Structure):
    _fields_ = [("text_column", ctypes.c_char_p), ("label_column", ctypes.c_char_p), ("task_column", ctypes.c_char_p),
                ("logger", ctypes.c_void_p)]


def bind(path):
    lib = ctypes.CDLL(path, mode=1)  # RTLD_LAZY
    lib.sp_dataset_load.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_char_p, ctypes.POINTER(Options)]
    lib.sp_message.restype = ctypes.c_char_p
    for name in ("free", "n_rows", "n_skipped", "row"):
        getattr(lib, f"sp_dataset_{name}").argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] * (name == "row")
    lib.sp_dataset_n_rows.restype = lib.sp_dataset_n_skipped.restype = ctypes.c_size_t
    lib.sp_dataset_row.restype = ctypes.POINTER(Row)
    return lib


def load(lib, path, text=None, label=None):
    """([(line, values...)], skipped), or (message, None)."""
    handle = ctypes.c_void_p()
    options = Options(text and text.encode(), label and label.encode(), None, None)
    if lib.sp_dataset_load(ctypes.byref(handle), str(path).encode(), ctypes.byref(options)):
        return lib.sp_message().decode(errors="replace"), None
    rows = []
    for i in range(lib.sp_dataset_n_rows(handle)):
        row = lib.sp_dataset_row(handle, i).contents
        values = [v.decode() for v in (row.text, row.label, row.prompt, row.completion) if v is not None]
        values += [(row.messages[j].role.decode(), row.messages[j].content.decode()) for j in range(row.n_messages)]
        rows.append((row.line, *values))
    skipped = lib.sp_dataset_n_skipped(handle)
    lib.sp_dataset_free(handle)
    return rows, skipped


def read_csv(data, delimiter, quoted=True):
    """The records of Python's csv module with the line at which each starts."""
    quoting = {} if quoted else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter, **quoting)
    records, line = [], 1
    for record in reader:
        if record:
            records.append((line, record))
        line = reader.line_num + 1
    return records


def expect(got, want, what):
    if got != want:
        for g, w in zip(got[0] if isinstance(got[0], list) else [got[0]], want[0]):
            if g != w:
                sys.exit(f"{what}: read {g!r}, expected {w!r}")
        sys.exit(f"{what}: {got!r:.2000}, expected {want!r:.2000}")


def check_table(lib, path, data, delimiter, quoted=True):
    path.write_bytes(data)
    (_, header), *records = read_csv(data, delimiter, quoted)
    rows, skipped = [], 0
    for line, record in records:
        row = dict(zip(header, record)) if len(record) == len(header) else {}
        if row.get("text") and row.get("label"):
            rows.append((line, row["text"], row["label"]))
        else:
            skipped += 1
    got = load(lib, path)
    if rows:
        expect(got, (rows, skipped), path.name)
    elif got[1] is not None:
        sys.exit(f"{path.name}: rows were read where none can be")


def random_string(rng, alphabet=ALPHABET, longest=12):
    return "".join(rng.choices(alphabet, k=rng.randint(0, longest)))


def fuzz_well_formed(lib, rng, directory, rounds):
    for i in range(rounds):
        delimiter, ending = rng.choice([(",", "csv"), ("\t", "tsv")])
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=delimiter, lineterminator=rng.choice(["\n", "\r\n", "\r"]),
                            quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        columns = ["text", "label", "id"]
        rng.shuffle(columns)
        writer.writerow(columns)
        for _ in range(rng.randint(1, 20)):
            writer.writerow([random_string(rng) for _ in range(rng.choice([3, 3, 3, 3, 3, 3, 2, 4]))])
        text = out.getvalue()
        if rng.random() < 0.3:
            text = text.rstrip("\r\n")
        data = (b"\xef\xbb\xbf" if rng.random() < 0.3 else b"") + text.encode()
        check_table(lib, directory / f"good{i}.{ending}", data, delimiter)


def fuzz_any_bytes(lib, rng, directory, rounds):
    """Files of random characters: compared where they are RFC 4180, else read without harm."""
    compared = 0
    for i in range(rounds):
        delimiter, ending = rng.choice([(",", "csv"), ("\t", "tsv")])
        body = random_string(rng, ['"', '"', delimiter, "\n", "a", "b", "\r\n"], 30)
        data = f"text{delimiter}label\n{body}".encode()
        field = RFC_4180.format(delimiter)
        well_formed = re.fullmatch(f"(?:{field}(?:{delimiter}{field})*(?:\r\n|\n|\r|$))*", data.decode())
        path = directory / f"any{i}.{ending}"
        if well_formed or ending == "tsv":
            compared += 1
            check_table(lib, path, data, delimiter, quoted=bool(well_formed))
        else:
            path.write_bytes(data)
            load(lib, path)
    return compared


def random_value(rng):
    return rng.choice([random_string(rng), random_string(rng), random_string(rng), rng.randint(-99, 99), rng.random(),
                       1.0, 1e300, 0.1, True, False, None, [], {}])


def as_label(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value == int(value) and abs(value) < 2 ** 53:
        return str(int(value))
    if isinstance(value, (int, float)):
        return str(value)
    return value if isinstance(value, str) else None


def fuzz_json(lib, rng, directory, rounds):
    for i in range(rounds):
        values, lines, wanted, skipped = [], [], [], 0
        for line in range(1, rng.randint(2, 30)):
            value = {"text": random_value(rng), "label": random_value(rng), "id": 2 ** rng.randint(1, 90)}
            damage = rng.random()
            encoded = json.dumps(value, ensure_ascii=rng.random() < 0.5)
            text, label = value["text"], as_label(value["label"])
            if damage < 0.1:
                encoded = encoded[:rng.randint(1, len(encoded) - 1)]
                text = None
            elif damage < 0.15:
                del value["text"]
                encoded, text = json.dumps(value), None
            lines.append(encoded)
            values.append(value)
            if isinstance(text, str) and text and label:
                wanted.append((line, text, label))
            else:
                skipped += 1
        if not wanted:
            continue
        path = directory / f"rows{i}.jsonl"
        path.write_bytes(rng.choice(["\n", "\r\n"]).join(lines).encode())
        expect(load(lib, path), (wanted, skipped), path.name)


def chat_and_completion(lib, directory):
    path = directory / "chat.ndjson"
    messages = [("system", ""), ("user", "1 + 1?"), ("assistant", "2 <|im_end|>"), ("user", "ok")]
    path.write_text("\n" + json.dumps({"messages": [{"role": r, "content": c} for r, c in messages]}) + "\n")
    expect(load(lib, path), ([(2, *messages)], 0), path.name)
    path = directory / "pairs.csv"
    path.write_text("id,completion,prompt\n7,c,p\n")
    expect(load(lib, path), ([(2, "p", "c")], 0), path.name)


def real_files(lib, source, directory):
    total = 0
    for path in sorted(source.rglob("*_GroundTruth.txt")):
        records = [line.split("\t", 2) for line in path.read_bytes().decode(errors="replace").split("\r\n") if line]
        rows = [(text, rating) for _, rating, text in records if text and "\r" not in text and "\n" not in text]
        total += len(rows)
        for delimiter, ending in ((",", "csv"), ("\t", "tsv")):
            out = io.StringIO(newline="")
            csv.writer(out, delimiter=delimiter).writerows([("text", "label"), *rows])
            check_table(lib, directory / f"{path.stem}.{ending}", out.getvalue().encode(), delimiter)
        plain = "text\tlabel\r\n" + "".join(f"{t}\t{r}\r\n" for t, r in rows if "\t" not in t)
        check_table(lib, directory / f"{path.stem}-plain.tsv", plain.encode(), "\t", quoted='"' not in plain)
        objects = [{"text": t, "label": r} for t, r in rows]
        wanted = [(i + 1, t, r) for i, (t, r) in enumerate(rows)]
        jsonl, array = directory / f"{path.stem}.jsonl", directory / f"{path.stem}.json"
        jsonl.write_text("".join(json.dumps(o) + "\n" for o in objects))
        array.write_text("[" + ",\n".join(json.dumps(o, ensure_ascii=False) for o in objects) + "]")
        expect(load(lib, jsonl), (wanted, 0), jsonl.name)
        expect(load(lib, array), (wanted, 0), array.name)
    return total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=500)
    arguments = parser.parse_args()
    lib, rng = bind(str(LIBRARY)), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        fuzz_well_formed(lib, rng, directory, arguments.rounds)
        compared = fuzz_any_bytes(lib, rng, directory, 4 * arguments.rounds)
        fuzz_json(lib, rng, directory, arguments.rounds)
        chat_and_completion(lib, directory)
        n_real = real_files(lib, CACHE / "hutto", directory)
    assert n_real == 23703, f"{n_real} rows of ratings below {CACHE}; scripts/setup --tests fetches them"
    print(f"dataset: {arguments.rounds} tables, {compared} of {4 * arguments.rounds} random files, {arguments.rounds} JSON files, "
          f"{n_real} real rows in five formats: equal")


if __name__ == "__main__":
    main()
