#!/usr/bin/env python3
"""Writes the seeds in fuzz/corpus/: small valid files, one or two for each reader. Standard library only; equal bytes every time."""
import json
import struct
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def gguf_string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_item(kind, value):
    return gguf_string(value) if kind == STRING else struct.pack("<" + CODES[kind], value)


def gguf_value(key, kind, value):
    if isinstance(value, list):
        items = b"".join(gguf_item(kind, item) for item in value)
        return gguf_string(key) + struct.pack("<IIQ", ARRAY, kind, len(value)) + items
    return gguf_string(key) + struct.pack("<I", kind) + gguf_item(kind, value)


def gguf(version, values, tensors, alignment=32):
    """tensors: (name, shape, ggml type, bytes)."""
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + b"".join(gguf_value(*v) for v in values)
    data = b""
    for name, shape, kind, content in tensors:
        header += gguf_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += content + b"\0" * (-len(content) % alignment)
    return header + b"\0" * (-len(header) % alignment) + data


def safetensors(tensors, metadata=None):
    """tensors: (name, dtype, shape, bytes)."""
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, dtype, shape, content in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def adapter(config, tensors, own=None):
    parts = [json.dumps(config).encode()] + ([json.dumps(own).encode()] if own else []) + [tensors]
    return b"\0".join(parts)


def gguf_seeds():
    model = [
        ("general.architecture", STRING, "llama"), ("general.name", STRING, "seed"), ("general.file_type", U32, 3),
        ("llama.block_count", U32, 1), ("llama.rope.freq_base", F32, 1e4), ("llama.attention.head_count", I32, [2, 2]),
        ("tokenizer.ggml.tokens", STRING, ["<s>", "a", "\u0120b"]), ("tokenizer.ggml.scores", F32, [0.0, -1.0, -2.0]),
        ("tokenizer.ggml.token_type", I32, [3, 1, 1]), ("tokenizer.ggml.add_bos_token", BOOL, True),
    ]
    tensors = [("token_embd.weight", (32, 3), 8, bytes(102)), ("output_norm.weight", (32,), 0, bytes(128))]
    scalars = [("u8", U8, 1), ("i8", I8, -1), ("u16", U16, 1), ("i16", I16, -1), ("u64", U64, 1), ("i64", I64, -1),
               ("f64", F64, 0.5), ("general.alignment", U32, 64)]
    return {"model": gguf(3, model, tensors), "scalars": gguf(2, scalars, [("t", (4, 1, 1, 1), 0, bytes(16))], 64)}


def safetensors_seeds():
    one = [("prompt_embeddings", "F32", [2, 3], struct.pack("<6f", *range(6)))]
    many = [("a", "F16", [2], bytes(4)), ("b", "BF16", [1, 2], bytes(4)), ("c", "F64", [], bytes(8)), ("d", "U8", [3], b"abc")]
    return {"prompt": safetensors(one, {"format": "pt"}), "types": safetensors(many)}


def compiled_seed():
    """One head of keys of two numbers, of rank and degree 1: two features, two keys."""
    doubles = {"numbers": ([10], [0.5, 1, 0.04, 0.5, 0, 1e-6, 1, 1, 2, 1]), "centre": ([2], [0.1, 0.2]), "basis": ([1, 2], [1, 0]),
               "moments": ([2, 3], [0.1, -0.1, 2, 0.2, 0.3, 0])}
    floats = {"middle": [0, 0], "least": [-0.5, -0.5], "most": [0.5, 0.5]}
    tensors = [(f"layer.0.head.0.{name}", "F64", shape, struct.pack(f"<{len(x)}d", *x)) for name, (shape, x) in doubles.items()]
    tensors += [(f"layer.0.head.0.{name}", "F32", [2], struct.pack("<2f", *x)) for name, x in floats.items()]
    config = {"peft_type": "SOFTPROMPT_POLYNOMIAL", "num_virtual_tokens": 2, "num_layers": 1, "num_attention_heads": 1}
    own = {"format_version": 1, "method": {"name": "cartridge", "num_virtual_tokens": 2, "num_frozen_tokens": 0, "text_position": 5}}
    return adapter(config, safetensors(tensors, {"format": "softprompt"}), own)


def adapter_seeds():
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2, "token_dim": 3,
              "num_layers": 1, "num_attention_heads": 1, "num_transformer_submodules": 1, "base_model_name_or_path": "m",
              "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a"}
    own = {"format_version": 1, "library_version": "0.1.0",
           "method": {"name": "prompt", "num_virtual_tokens": 2, "num_frozen_tokens": 1, "init": "text", "init_text": "a"},
           "task": {"template": "{text}", "verbalizers": [{"label": "a", "text": " a"}], "max_length": 9},
           "fingerprint": {"tokenizer": "0123456789abcdef", "embeddings": "fedcba9876543210", "n_layer": 1, "d_model": 3,
                           "n_head": 1, "n_head_kv": 1, "n_vocab": 9}}
    tensors = safetensors_seeds()["prompt"]
    return {"ours": adapter(config, tensors, own), "peft": adapter({"peft_type": "P_TUNING", "token_dim": None}, tensors),
            "compiled": compiled_seed()}


def hf_directory(config, tensors, index=None):
    return b"\0".join([json.dumps(config).encode(), json.dumps(index).encode() if index else b"", tensors])


def hf_tensors(n_layers, more, dtype="F32", item=4):
    """Of a llama with d_model 2, d_ffn 3 and one head; `more`: (name, length) of vectors in each layer."""
    shapes = {"input_layernorm": [2], "post_attention_layernorm": [2], "self_attn.q_proj": [2, 2], "self_attn.k_proj": [2, 2],
              "self_attn.v_proj": [2, 2], "self_attn.o_proj": [2, 2], "mlp.gate_proj": [3, 2], "mlp.up_proj": [3, 2],
              "mlp.down_proj": [2, 3], **{name: [2] for name in more}}
    tensors = {"model.embed_tokens": [3, 2], "model.norm": [2]}
    tensors |= {f"model.layers.{i}.{name}": shape for i in range(n_layers) for name, shape in shapes.items()}
    return [(f"{name}.weight", dtype, shape, bytes(item * shape[0] * (shape + [1])[1])) for name, shape in tensors.items()]


def hf_directory_seeds():
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2, "intermediate_size": 3,
              "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 9,
              "tie_word_embeddings": True, "rope_theta": 1e4,
              "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                               "original_max_position_embeddings": 4}}
    yarn = {**config, "rope_scaling": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "mscale": 1.0,
                                                                "mscale_all_dim": 0.7}}
    gemma = {**config, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 2, "rope_scaling": None,
             "layer_types": ["sliding_attention"], "sliding_window": 4, "query_pre_attn_scalar": 2}
    norms = ["pre_feedforward_layernorm", "post_feedforward_layernorm", "self_attn.q_norm", "self_attn.k_norm"]
    plain, half = hf_tensors(1, []), hf_tensors(1, [], "BF16", 2)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: "a.safetensors" for name, *_ in half}}
    return {"llama": hf_directory(config, safetensors(plain)), "shards": hf_directory(yarn, safetensors(half), index),
            "gemma3": hf_directory(gemma, safetensors(hf_tensors(1, norms)))}


def added_token(index, content, **flags):
    return {"id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": False, **flags}


def tokenizer_json_seeds():
    letters = {letter: i for i, letter in enumerate("abx<>12")} | {"\u0120": 7, "\u010a": 8, "ab": 9, "\u0120ab": 10}
    split = {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}]?\\p{L}++|\\p{N}{1,3}+|(?<=a)b|\\s+(?!\\S)|[\\s<>]"},
             "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [11], "tokens": ["<s>"]}}}
    in_bytes = {"version": "1.0", "normalizer": {"type": "NFC"},
                "added_tokens": [added_token(11, "<s>", special=True), added_token(12, "<x>", rstrip=True), added_token(13, "<y>", lstrip=True, normalized=True)],
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "Digits", "individual_digits": True}, level]},
                "post_processor": {"type": "Sequence", "processors": [level, template]}, "decoder": level,
                "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False,
                          "ignore_merges": True, "vocab": letters, "merges": [["a", "b"], ["\u0120", "ab"]]}}
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], "\u2581", "a", "b", "ab", "\u2581ab"]
    in_characters = {"version": "1.0", "added_tokens": [added_token(i, pieces[i], special=True) for i in range(3)],
                     "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                                                                        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
                     "pre_tokenizer": None, "post_processor": None, "decoder": None,
                     "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                               "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": ["a b", "\u2581 ab"]}}
    marked = {**in_characters, "normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}}
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "model_max_length": 10**30, "chat_template": [{"name": "default", "template": "<|im_start|>"}]}
    return {"bytes": b"\0".join(json.dumps(part).encode() for part in (in_bytes, {"bos_token": "<s>"}, {"eos_token_id": [11, 12]})),
            "characters": b"\0".join(json.dumps(part).encode() for part in (in_characters, config, {"eos_token_id": 2})),
            "metaspace": b"\0".join(json.dumps(part).encode() for part in (marked, config))}


for target, seeds in {"gguf": gguf_seeds(), "safetensors": safetensors_seeds(), "adapter": adapter_seeds(),
                      "hf_directory": hf_directory_seeds(), "tokenizer_json": tokenizer_json_seeds()}.items():
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    for name, content in seeds.items():
        (CORPUS / target / name).write_bytes(content)
