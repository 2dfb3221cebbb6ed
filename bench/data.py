"""data.py DATA.jsonl OUT.json [TEMPLATE [MODEL.gguf]]: makes ready what the contenders that know nothing of our formats need.

Writes {"model": a transformers directory of SmolLM2, else the GGUF file, "labels": {label: token},
"rows": [{"text", "label", "context": [token, ...], "answer": token}, ...]} for the rows of DATA: the texts in the template,
tokenized by Hugging Face's library. It makes no SentencePiece tokenizer of a GGUF file; for a model with one, and all others, the
tokens are our own library's.
"""

import json
import sys

import hf_model
import softprompt

LABELS = ("positive", "negative")
REVIEW = "Review: {text}\nSentiment:"


def load_encoder(path):
    """-> a function from a context's text to tokens (BOS where the model adds one), another for what follows it."""
    if path == hf_model.SMOLLM2:
        tokenizer = hf_model.load_tokenizer(path)
        return (lambda text: tokenizer.encode(text).ids,) * 2
    model = softprompt.Model(path)
    return (lambda text: model.tokenize(text, softprompt.ADD_BOS | softprompt.PARSE_SPECIAL),
            lambda text: model.tokenize(text, softprompt.PARSE_SPECIAL))


def answer_tokens(encode):
    """A verbalizer is one token, or the peers' loss would be another one than ours."""
    tokens = {}
    for label in LABELS:
        (tokens[label],) = encode(f" {label}")
    return tokens


def encode_rows(path, template, encode, answers):
    with open(path, encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            yield {**row, "context": encode(template.replace("{text}", row["text"])), "answer": answers[row["label"]]}


def main(data, out, template=REVIEW, model=hf_model.SMOLLM2):
    encode, encode_answer = load_encoder(model)
    answers = answer_tokens(encode_answer)
    prepared = {"model": hf_model.hf_directory() if model == hf_model.SMOLLM2 else model, "labels": answers,
                "rows": list(encode_rows(data, template, encode, answers))}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(prepared, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
