"""join_sentences.py SOURCE DEST: rated sentences -> DEST, JSONL rows {"text"}, a text a row.

An id is TEXT_SENTENCE: the sentences of a text stand behind each other, and are joined by spaces, in the order of their numbers.
"""

import json
import os
import re
import sys


def read_sentences(path):
    """Yields (number of the text, number of the sentence, sentence)."""
    with open(path, encoding="utf-8", errors="replace", newline="") as source:
        for number, line in enumerate(source.read().split("\r\n"), 1):
            fields = line.split("\t")
            if len(fields) != 3 or not re.fullmatch(r"\d+_\d+", fields[0]):
                sys.exit(f"{path}:{number}: expected id, rating, text, separated by tabs, the id as 12_3; fetch it again")
            yield *map(int, fields[0].split("_")), " ".join(fields[2].split())


def main(source, dest):
    texts = {}
    for text, _, sentence in sorted(read_sentences(source)):
        texts.setdefault(text, []).append(sentence)
    temporary = f"{dest}.tmp.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": " ".join(sentences)}) + "\n" for sentences in texts.values())
    os.replace(temporary, dest)


main(*sys.argv[1:])
