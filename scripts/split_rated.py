"""split_rated.py SOURCE DEST: rated snippets -> DEST/{train,valid,test}.jsonl, rows {"text", "label"}.

A rating above 0 is "positive", below 0 "negative"; rows at 0 are dropped. A row's split follows from a hash of its id, so it
never changes, whatever is added or dropped. The few snippets that stand in the source twice share the first one's id here:
no text of the test set was trained on.
"""

import hashlib
import json
import os
import sys

SPLITS = (("test", 20), ("valid", 5), ("train", 75))  # percent


def split_of(row_id):
    percentile = int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8], "big") % 100
    for name, percent in SPLITS:
        if percentile < percent:
            return name
        percentile -= percent
    raise AssertionError("the shares must add up to 100")


def read_rows(path):
    """Yields (id, rating, text), the id of a repeated text being that of its first row."""
    first_id = {}
    with open(path, encoding="utf-8", newline="") as source:
        for number, line in enumerate(source.read().split("\r\n"), 1):
            fields = line.split("\t")
            if len(fields) != 3:
                sys.exit(f"{path}:{number}: {len(fields)} tab-separated fields, expected id, rating, text; fetch it again")
            row_id, rating, text = fields
            yield first_id.setdefault(text, row_id), float(rating), text


def write_atomic(path, lines):
    temporary = f"{path}.tmp.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(lines)
    os.replace(temporary, path)


def main(source, dest):
    lines = {name: [] for name, _ in SPLITS}
    for row_id, rating, text in read_rows(source):
        if rating != 0:
            row = {"text": text, "label": "positive" if rating > 0 else "negative"}
            lines[split_of(row_id)].append(json.dumps(row, ensure_ascii=False) + "\n")
    os.makedirs(dest, exist_ok=True)
    for name, _ in SPLITS:
        write_atomic(os.path.join(dest, f"{name}.jsonl"), lines[name])
    print(", ".join(f"{name}: {len(rows)} rows" for name, rows in lines.items()))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: split_rated.py SOURCE DEST")
    main(*sys.argv[1:])
