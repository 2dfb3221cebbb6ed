"""adapter.py: adapter directories, ours against PEFT's, both ways, on a tiny random model.

What PEFT trains and saves must load here and give PEFT's logits; what we create and save must load in PEFT, give the same logits,
and be the bytes that PEFT itself would have written. Initialisation from text must be PEFT's. Describes the real SmolLM2, too.
"""

import ctypes as c
import json
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # PEFT looks for the base model on the hub when it saves

import gguf
import numpy as np
import peft
import safetensors.torch
import torch
from transformers import PreTrainedTokenizerFast

import hf_model
import softprompt
from softprompt import lib

N_VOCAB = 320
TOKENS = [5, 200, 17, 17, 300, 42, 9, 128]
LOGITS_TOLERANCE = 2e-3
VOCAB, RANDOM, TEXT = range(3)  # sp_init
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class PromptOptions(c.Structure):
    _fields_ = [("method", c.c_int), ("num_virtual_tokens", c.c_size_t), ("num_frozen_tokens", c.c_size_t), ("init", c.c_int),
                ("init_text", c.c_char_p), ("sink", c.c_int), ("seed", c.c_uint64), ("text_position", c.c_size_t),
                ("init_prompt", c.c_char_p), ("encoder_reparameterization_type", c.c_int),
                ("encoder_hidden_size", c.c_size_t), ("encoder_num_layers", c.c_size_t), ("prefix_projection", c.c_bool),
                ("num_tasks", c.c_size_t),
                ("num_ranks", c.c_size_t), ("source_init", c.c_int), ("source_task", c.c_size_t),
                ("cpt_token_ids", c.POINTER(c.c_int32)), ("cpt_tokens_type_mask", c.POINTER(c.c_int32)),
                ("n_cpt_tokens", c.c_size_t), ("opt_weighted_loss_type", c.c_int), ("opt_loss_decay_factor", c.c_double),
                ("opt_projection_epsilon", c.c_double), ("opt_projection_format_epsilon", c.c_double)]


def create(directory, model, **options):
    """Our new prompt, saved in `directory`."""
    handle = c.c_void_p()
    softprompt.check(lib.sp_prompt_create(c.byref(handle), model.handle, c.byref(PromptOptions(**options))))
    softprompt.check(lib.sp_prompt_save(handle, os.fsencode(directory)))
    lib.sp_prompt_free(handle)


def describe(path):
    out = c.c_void_p()
    softprompt.check(lib.sp_describe(c.byref(out), os.fsencode(path)))
    description = json.loads(c.string_at(out.value))
    lib.sp_free(out)
    return description


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def our_values(directory):
    prompt = softprompt.Prompt(directory)
    return prompt.values().copy()  # the view dies with the prompt


def our_logits(model, directory):
    return softprompt.Session(model, softprompt.Prompt(directory)).append_all(TOKENS)


def peft_logits(peft_model):
    with torch.no_grad():
        return peft_model(input_ids=torch.tensor([TOKENS])).logits[0].numpy()[-len(TOKENS):]


def assert_same_logits(what, ours, theirs):
    difference = np.abs(ours - theirs).max()
    print(f"{what}: logits differ by {difference:.1e}")
    assert difference <= LOGITS_TOLERANCE  # false for NaN, too


def train(peft_model):
    """A few steps, so that no row is still what it began as."""
    ids = torch.tensor([TOKENS])
    optimizer = torch.optim.Adam([p for p in peft_model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        peft_model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return peft_model.eval()


def check_pefts_adapters(directory, hf, model):
    common = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
    for name, config in {
        "PROMPT_TUNING, RANDOM": peft.PromptTuningConfig(**common),
        "PROMPT_TUNING, SAMPLE_VOCAB": peft.PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **common),
        "P_TUNING, MLP": peft.PromptEncoderConfig(encoder_hidden_size=16, **common),
        "P_TUNING, LSTM": peft.PromptEncoderConfig(encoder_hidden_size=16, encoder_reparameterization_type="LSTM", **common),
    }.items():
        there = os.path.join(directory, name)
        train(peft.get_peft_model(hf, config)).save_pretrained(there)
        saved = safetensors.torch.load_file(os.path.join(there, TENSORS))["prompt_embeddings"]
        assert np.array_equal(our_values(there), saved.numpy())
        assert describe(there)["runnable"]
        assert_same_logits(f"PEFT's {name}", our_logits(model, there), peft_logits(peft.PeftModel.from_pretrained(hf, there)))

        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            safetensors.torch.save_file({"prompt_embeddings": saved.to(dtype)}, os.path.join(there, TENSORS))
            assert np.array_equal(our_values(there), saved.to(dtype).float().numpy())


def check_our_adapters(directory, hf, model):
    embeddings = hf.get_input_embeddings().weight.numpy()
    reference = os.path.join(directory, "reference")
    peft.get_peft_model(hf, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)).save_pretrained(reference)
    reference = json.loads(read(reference, CONFIG))
    for name, options in {
        "vocab": {"init": VOCAB, "seed": 1}, "random": {"init": RANDOM}, "text": {"init": TEXT, "init_text": b"def load(path)"},
        "sink": {"init": VOCAB, "sink": 1},
    }.items():
        here, again = os.path.join(directory, "ours-" + name), os.path.join(directory, "again-" + name)
        create(here, model, num_virtual_tokens=6, **options)
        loaded = peft.PeftModel.from_pretrained(hf, here)
        values = loaded.prompt_encoder["default"].embedding.weight.detach().numpy()
        assert np.array_equal(values, our_values(here))
        assert_same_logits(f"our {name}", our_logits(model, here), peft_logits(loaded.eval()))

        loaded.save_pretrained(again)
        assert read(again, TENSORS) == read(here, TENSORS), "PEFT writes other bytes"
        ours = json.loads(read(here, CONFIG))
        assert ours.keys() == reference.keys(), ours.keys() ^ reference.keys()
        assert {key for key in ours if ours[key] != reference[key]} <= {
            "base_model_name_or_path", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path"}
        assert ours == json.loads(read(again, CONFIG)) | {"base_model_name_or_path": ours["base_model_name_or_path"]}

        nearest = [int(np.abs(embeddings - row).sum(axis=1).argmin()) for row in values]
        exact = [np.array_equal(embeddings[token], row) for token, row in zip(nearest, values)]
        assert all(exact) if name != "random" else not any(exact)
        if name == "vocab":
            assert len(set(nearest)) == 6
        if name == "random":
            assert abs(values.std() / embeddings.std() - 1) < 0.2
    assert nearest[0] == 0 and softprompt.Prompt(here).num_virtual_tokens == 6  # the sink's BOS is token 0 of this vocabulary


def check_text_initialisation(directory, hf, model, tokenizer):
    """Shorter than the prompt, as long, longer; PEFT runs its own initialisation with transformers' tokenizer."""
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    text = "Classify the sentiment: "
    for n in (1, 3, len(tokenizer.encode(text).ids), 40):
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n, prompt_tuning_init="TEXT",
                                         prompt_tuning_init_text=text, tokenizer_name_or_path=directory)
        theirs = peft.get_peft_model(hf, config).prompt_encoder["default"].embedding.weight.detach().numpy()
        create(directory, model, num_virtual_tokens=n, init=TEXT, init_text=text.encode())
        assert np.array_equal(our_values(directory), theirs)
    print("text initialisation is PEFT's")


def check_other_types(directory, hf):
    common = {"task_type": "CAUSAL_LM"}
    for method, config in {
        "ADAPTION_PROMPT": peft.AdaptionPromptConfig(adapter_len=2, adapter_layers=1, **common),
        "LORA": peft.LoraConfig(r=2, **common),
    }.items():
        there = os.path.join(directory, method)
        peft.get_peft_model(hf_model.tiny_model(), config).save_pretrained(there)
        description = describe(there)
        saved = safetensors.torch.load_file(os.path.join(there, TENSORS))
        assert description["kind"] == "adapter" and description["method"] == method and not description["runnable"]
        assert {t["name"]: t["shape"] for t in description["tensors"]} == {k: list(v.shape) for k, v in saved.items()}
        try:
            softprompt.Prompt(there)
            raise AssertionError(f"{method} was loaded")
        except softprompt.Error as error:
            assert config.peft_type.value in str(error) and "status 4" in str(error), error  # SP_ERR_UNSUPPORTED
    print("adapters of other types are described, and refused by name")


def check_model_description(path):
    description, theirs = describe(path), gguf.GGUFReader(path)
    counts = {}
    for tensor in theirs.tensors:
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + 1
    assert description["kind"] == "model" and description["tensor_types"] == counts
    assert description["n_parameters"] == sum(int(tensor.n_elements) for tensor in theirs.tensors)
    for name, key in {"architecture": "general.architecture", "name": "general.name", "n_layer": "llama.block_count",
                      "d_model": "llama.embedding_length", "d_ffn": "llama.feed_forward_length",
                      "n_head": "llama.attention.head_count", "n_head_kv": "llama.attention.head_count_kv",
                      "context_length": "llama.context_length", "rope_theta": "llama.rope.freq_base"}.items():
        assert description[name] == theirs.get_field(key).contents(), name
    print(f"{os.path.basename(path)}: described as the Python package gguf reads it")


def main():
    hf, tokenizer = hf_model.tiny_model(vocab_size=N_VOCAB), hf_model.train_tokenizer(N_VOCAB)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "tiny.gguf")
        hf_model.write_gguf(path, hf, tokenizer)
        model = softprompt.Model(path)
        check_pefts_adapters(directory, hf, model)
        check_our_adapters(directory, hf, model)
        check_text_initialisation(os.path.join(directory, "text"), hf, model, tokenizer)
        check_other_types(directory, hf)
        check_model_description(path)
    check_model_description(hf_model.SMOLLM2)


if __name__ == "__main__":
    main()
