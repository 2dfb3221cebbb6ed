"""hf_model_itself.py: is hf_model.py, with which other tests compare the engine, right itself?

SmolLM2 must make sense of English, and must not if the rows of q and k stay as they are in the file; a tiny model written to
GGUF and read back must be the same model, also when transformers' own GGUF reader reads it.
"""

import os
import tempfile
from unittest import mock

import torch
from transformers import AutoModelForCausalLM

import families
import hf_model

REVIEW = ("Review: A gorgeous, witty, seductive movie that you will want to see again and again with your friends.\n"
          "Sentiment: positive")


def largest_difference(a, b, ids):
    return (a(input_ids=ids).logits - b(input_ids=ids).logits).abs().max().item()


def check_smollm2():
    ids = hf_model.load_tokenizer(hf_model.SMOLLM2).encode(REVIEW).ids
    right = hf_model.perplexity(hf_model.load(hf_model.SMOLLM2), ids)
    with mock.patch.object(families, "separate_rows", lambda rows, n_head: rows):
        wrong = hf_model.perplexity(hf_model.load(hf_model.SMOLLM2), ids)
    print(f"SmolLM2: perplexity of a review {right:.1f}, with q and k in GGUF's order {wrong:.1f}")
    assert right < 40 < 2 * right < wrong


def check_tiny(directory, **tiny):
    path = os.path.join(directory, "tiny.gguf")
    model = hf_model.tiny_model(**tiny)
    ids = torch.randint(0, model.config.vocab_size, (2, 100), generator=torch.Generator().manual_seed(0))

    hf_model.write_gguf(path, model, hf_model.train_tokenizer(model.config.vocab_size))
    difference = largest_difference(model, hf_model.load(path), ids)
    print(f"tiny {tiny}: written and read, logits differ by {difference:.1e}")
    assert difference < 1e-4
    return path, model, ids


def check_against_transformers(directory, matrix_type, **tiny):
    path = hf_model.write_tiny(os.path.join(directory, "tiny.gguf"), matrix_type=matrix_type, **tiny)
    theirs = AutoModelForCausalLM.from_pretrained(directory, gguf_file="tiny.gguf", dtype=torch.float32)
    ours = hf_model.load(path)
    ids = torch.arange(100).reshape(2, 50)
    difference = largest_difference(ours, theirs, ids)
    print(f"tiny {matrix_type} {tiny}: logits differ by {difference:.1e} from transformers' own reading")
    assert difference < 1e-4


def check_tokenizer(directory):
    path = hf_model.write_tiny(os.path.join(directory, "tiny.gguf"))
    tokenizer, again = hf_model.train_tokenizer(320), hf_model.load_tokenizer(path)
    text = "def load(path): <|start|> größer  than\n\n\t10 tokens 🙂"
    assert again.encode(text).ids == tokenizer.encode(text).ids
    assert again.decode(again.encode(text).ids, skip_special_tokens=False) == text


def main():
    check_smollm2()
    with tempfile.TemporaryDirectory() as directory:
        for rope in ("default", "linear", "llama3", "yarn"):
            check_tiny(directory, rope=rope)
        check_tiny(directory, tie_word_embeddings=False, num_key_value_heads=1, head_dim=24, rope_theta=500000.0)
        check_tiny(directory, attention_bias=True, mlp_bias=True, num_key_value_heads=4)
        for matrix_type in ("F32", "F16", "Q8_0", "Q4_0"):
            check_against_transformers(directory, matrix_type, tie_word_embeddings=matrix_type != "Q8_0")
        for family in ("mistral", "smollm3"):
            check_tiny(directory, family=family, num_hidden_layers=7)
        check_tiny(directory, family="gemma2", num_hidden_layers=3, query_pre_attn_scalar=16, sliding_window=9,
                   attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
        check_tiny(directory, family="phi3", sliding_window=9, partial_rotary_factor=0.5, tie_word_embeddings=False)
        check_tiny(directory, family="gpt2", num_key_value_heads=4)
        check_tiny(directory, family="gpt_neox", num_key_value_heads=4, partial_rotary_factor=0.25, use_parallel_residual=False,
                   tie_word_embeddings=False)
        check_tiny(directory, family="gemma3_text", num_hidden_layers=7, query_pre_attn_scalar=16, sliding_window=9)
        check_against_transformers(directory, "F32", family="qwen2")
        check_against_transformers(directory, "F32", family="qwen3", head_dim=128)  # transformers reads no other from a file
        check_against_transformers(directory, "F32", family="gpt2", num_key_value_heads=4, intermediate_size=256,
                                   max_position_embeddings=1024)
        check_against_transformers(directory, "F32", family="gemma2", num_hidden_layers=3, head_dim=256, sliding_window=9,
                                   query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
        check_against_transformers(directory, "F32", family="gemma3_text", num_hidden_layers=7, head_dim=256, sliding_window=9,
                                   query_pre_attn_scalar=256, rope_theta=1e6)
        check_tokenizer(directory)


if __name__ == "__main__":
    main()
