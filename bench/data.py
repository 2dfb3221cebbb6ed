"""data.py DATA.jsonl OUT.json: makes ready what the contenders that know nothing of our formats need.

Writes {"model": a transformers directory of SmolLM2, "rows": [{"text", "label", "context": [token, ...], "answer": token}, ...]}
for the rows of DATA: the texts in the template, tokenized by Hugging Face's library.
"""

import json
import sys

import hf_model


def encode_rows(path):
    tokenizer = hf_model.load_tokenizer(hf_model.SMOLLM2)
    with open(path, encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            context = tokenizer.encode(f"Review: {row['text']}\nSentiment:").ids
            (answer,) = tokenizer.encode(f" {row['label']}").ids
            yield {**row, "context": context, "answer": answer}


def main(data, out):
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"model": hf_model.hf_directory(), "rows": list(encode_rows(data))}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
