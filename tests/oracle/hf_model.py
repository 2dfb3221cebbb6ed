"""hf_model.py: GGUF files as transformers models, and back. What the oracle tests compare the engine with.

    model = hf_model.load(hf_model.SMOLLM2)             # LlamaForCausalLM in f32, the weights that the file holds, expanded
    tokenizer = hf_model.load_tokenizer(hf_model.SMOLLM2)  # a tokenizers.Tokenizer
    path = hf_model.write_tiny("tiny.gguf", matrix_type="Q8_0", rope="yarn", tie_word_embeddings=False)

A llama GGUF holds the rows of q and k in another order than transformers: its RoPE turns neighbours (2i, 2i + 1), that of
transformers (i, i + d_head / 2). This, and what other families do, is in families.py; everything else is renaming.
"""

import json
import math
import os
import re

import gguf
import numpy as np
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

import families

CACHE = os.environ.get("SOFTPROMPT_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "softprompt")
SMOLLM2 = os.path.join(CACHE, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")


def rename(name, names):
    """A tensor's name by a table of patterns; the suffix .weight or .bias stays."""
    stem, suffix = name.rsplit(".", 1)
    layer = re.search(r"\.(\d+)\.", stem + ".")
    pattern = re.sub(r"\.\d+\.", ".{}.", stem + ".")[:-1]
    if pattern not in names:
        raise KeyError(f"no counterpart of tensor {name} is known")
    return names[pattern].format(*(layer.groups() if layer else ())) + "." + suffix


# ---- GGUF -> transformers --------------------------------------------------------------------------------------------------


class Fields:
    """Metadata of a GGUF file; names without a leading "general." or "tokenizer." are the architecture's own."""

    def __init__(self, reader):
        self.fields = reader.fields
        self.architecture = self.get("general.architecture")

    def __contains__(self, name):
        return self.get(name) is not None

    def get(self, name, default=None):
        full = name if name.startswith(("general.", "tokenizer.")) else f"{self.architecture}.{name}"
        return self.fields[full].contents() if full in self.fields else default


def rope_parameters(fields, family):
    """As configurations have them: of each kind of layer where the family has two."""
    if not family.two_ropes:
        return global_rope_parameters(fields)
    local = {"rope_type": "default", "rope_theta": fields.get("rope.freq_base_swa", 10000.0)}
    return {"full_attention": global_rope_parameters(fields), "sliding_attention": local}


def global_rope_parameters(fields):
    d_head = fields.get("attention.key_length", fields.get("embedding_length") // fields.get("attention.head_count"))
    parameters = {"rope_type": fields.get("rope.scaling.type", "none"), "rope_theta": fields.get("rope.freq_base", 10000.0),
                  "partial_rotary_factor": fields.get("rope.dimension_count", d_head) / d_head}
    if parameters["rope_type"] == "none":
        parameters["rope_type"] = "default"
    else:
        parameters["factor"] = fields.get("rope.scaling.factor")
    if parameters["rope_type"] == "yarn":
        parameters["original_max_position_embeddings"] = fields.get("rope.scaling.original_context_length")
    return parameters


def config_of(fields, tensors):
    n_head, d_model, family = fields.get("attention.head_count"), fields.get("embedding_length"), families.of_file(fields)
    norm = "rms_" if family.epsilon == "rms_norm_eps" else ""
    settings = dict(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=d_model,
        intermediate_size=fields.get("feed_forward_length"),
        num_hidden_layers=fields.get("block_count"),
        num_attention_heads=n_head,
        num_key_value_heads=fields.get("attention.head_count_kv", n_head),
        head_dim=fields.get("attention.key_length", d_model // n_head),
        max_position_embeddings=fields.get("context_length"),
        rope_parameters=rope_parameters(fields, family),
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=fields.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=None,
    )
    settings[family.epsilon] = fields.get(f"attention.layer_norm_{norm}epsilon")
    if "attention.sliding_window" in fields:
        settings["sliding_window"] = fields.get("attention.sliding_window")
    return family.config(**settings | family.settings(fields))


def load(path):
    """A transformers model with a GGUF file's weights in f32, in evaluation mode, nothing requiring a gradient."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    family, config = families.of_file(Fields(reader)), config_of(Fields(reader), tensors)
    frequency_factors = tensors.pop("rope_freqs.weight", None)
    long_rope = [tensors.pop(f"rope_factors_{which}.weight", None) for which in ("short", "long")]
    if long_rope[0] is not None:
        config.rope_parameters |= {"rope_type": "longrope",
                                   "original_max_position_embeddings": config.original_max_position_embeddings,
                                   **{f"{name}_factor": tensor.data.tolist() for name, tensor in zip(("short", "long"), long_rope)}}

    state = {}
    for name, tensor in tensors.items():
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = family.from_file(values, name, config)
        if name.endswith("norm.weight"):
            values = values - np.float32(family.norm_offset)
        state[rename(name, family.names)] = torch.from_numpy(np.array(values))
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state[family.names["token_embd"] + ".weight"]

    model = family.model(config).float()
    model.load_state_dict(state)
    if frequency_factors is not None:  # how GGUF stores llama 3's scaling: a divisor for each frequency
        model.model.rotary_emb.inv_freq /= torch.from_numpy(np.array(frequency_factors.data))
    return model.eval().requires_grad_(False)


def load_tokenizer(path):
    """The byte-level BPE tokenizer of a GGUF file, as Hugging Face's library runs it."""
    fields = Fields(gguf.GGUFReader(path))
    words, kinds = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in fields.get("tokenizer.ggml.merges")]
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pre_tokenizers = {
        "gpt-2": byte_level,
        "smollm": tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.Digits(individual_digits=True), byte_level]),
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers[fields.get("tokenizer.ggml.pre")]
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([word for word, kind in zip(words, kinds) if kind == gguf.TokenType.CONTROL])
    return tokenizer


def hf_directory(path=SMOLLM2):
    """Model and tokenizer as a directory that from_pretrained loads, made once: PATH without .gguf, with .hf."""
    directory = path.removesuffix(".gguf") + ".hf"
    if not os.path.isdir(directory):
        fields = Fields(gguf.GGUFReader(path))
        words = fields.get("tokenizer.ggml.tokens")
        special = {role: words[fields.get(f"tokenizer.ggml.{key}_token_id")] for role, key in
                   (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"))
                   if fields.get(f"tokenizer.ggml.{key}_token_id") is not None}
        model = load(path)
        if "rope_freqs.weight" in {tensor.name for tensor in gguf.GGUFReader(path).tensors}:
            raise ValueError(f"{path}: rope_freqs.weight has no place in a transformers directory")
        temporary = f"{directory}.tmp.{os.getpid()}"
        model.save_pretrained(temporary)
        PreTrainedTokenizerFast(tokenizer_object=load_tokenizer(path), clean_up_tokenization_spaces=False,
                                chat_template=fields.get("tokenizer.chat_template"), **special).save_pretrained(temporary)
        os.rename(temporary, directory)
    return directory


# ---- transformers -> GGUF --------------------------------------------------------------------------------------------------


def write_rope(writer, model):
    """The scaling of RoPE, as llama.cpp's converter writes it; frequencies that it cannot name become rope_freqs.weight."""
    config, parameters = model.config, model.config.rope_parameters
    if not families.FAMILIES[config.model_type].rope:
        return
    if families.FAMILIES[config.model_type].two_ropes:
        writer.add_float32(f"{writer.arch}.rope.freq_base_swa", parameters["sliding_attention"]["rope_theta"])
        parameters = parameters["full_attention"]
    writer.add_rope_freq_base(parameters["rope_theta"])
    writer.add_rope_dimension_count(int(config.head_dim * parameters.get("partial_rotary_factor", 1)))
    kind = parameters["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(parameters["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
    if kind == "llama3":
        plain = parameters["rope_theta"] ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32))
    if kind == "longrope":
        stretch, original = config.max_position_embeddings / config.original_max_position_embeddings, config.original_max_position_embeddings
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(original)))
        for which in ("short", "long"):
            writer.add_tensor(f"rope_factors_{which}.weight", np.array(parameters[f"{which}_factor"], np.float32))


def train_tokenizer(n_vocab):
    """A byte-level BPE tokenizer with `n_vocab` tokens: two special ones, the 256 bytes, and merges learnt from this file."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=n_vocab, special_tokens=["<|start|>", "<|end|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    with open(__file__, encoding="utf-8") as source:
        tokenizer.train_from_iterator(source, trainer)
    return tokenizer


def write_tokenizer(writer, tokenizer, add_bos):
    words = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(add_bos)


def write_gguf(path, model, tokenizer, matrix_type="F32", add_bos=False, blocks=None):
    """Writes a transformers model as a GGUF file, its matrices as `matrix_type` (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1).

    Quantised weights are no longer the model's: compare with load(path). blocks: {tensor name: (bytes (rows, row bytes), type)}
    written in place of the model's own.
    """
    config, matrix_type = model.config, gguf.GGMLQuantizationType[matrix_type]
    family = families.FAMILIES[config.model_type]
    names = {theirs: ours for ours, theirs in family.names.items()}
    writer = gguf.GGUFWriter(path, family.architecture)
    writer.add_name("tiny")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    add_epsilon = writer.add_layer_norm_rms_eps if family.epsilon == "rms_norm_eps" else writer.add_layer_norm_eps
    add_epsilon(getattr(config, family.epsilon))
    if family.windowed:
        writer.add_sliding_window(config.sliding_window or 0)
    family.write(writer, config)
    write_rope(writer, model)
    write_tokenizer(writer, tokenizer, add_bos)

    for hf_name, tensor in model.state_dict().items():
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name, values = rename(hf_name, names), tensor.float().numpy()
        values = family.to_file(values, name, config)
        if name.endswith("norm.weight"):
            values = values + np.float32(family.norm_offset)
        kind = matrix_type if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        raw, kind = (blocks or {}).get(name) or (gguf.quantize(np.ascontiguousarray(values), kind), kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


ROPE = {  # settings of each kind of RoPE in a tiny model whose context is 128
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {"original_max_position_embeddings": 64, "short_factor": [1.0, 1.3, 1.1, 2.0, 1.7, 1.2],
                 "long_factor": [4.0, 1.3, 6.1, 2.5, 1.7, 5.0]},
}


def tiny_model(family="llama", rope="default", seed=0, **changes):
    """A tiny random transformers model; `changes` are the names of its configuration.

    Weights are large enough for attention to be far from uniform: an error in RoPE or in a mask must show in the logits.
    """
    settings = dict(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=16, max_position_embeddings=128, rope_theta=10000.0, partial_rotary_factor=1.0,
                    tie_word_embeddings=True, initializer_range=0.15, bos_token_id=0, eos_token_id=1, pad_token_id=None)
    family = families.FAMILIES[family]
    settings.update({family.epsilon: 1e-5, **changes})
    settings.setdefault("n_inner", settings["intermediate_size"])  # GPT-2's word for it
    parameters = {"rope_type": rope, **{name: settings.pop(name) for name in ("rope_theta", "partial_rotary_factor")}, **ROPE[rope]}
    torch.manual_seed(seed)
    if family.two_ropes:
        parameters = {"full_attention": parameters, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    model = family.model(family.config(rope_parameters=parameters, **settings))
    norms = {f"{name}.weight" for name, module in model.named_modules() if "Norm" in type(module).__name__}
    for name, parameter in model.named_parameters():
        if name in norms or name.endswith(".bias"):  # transformers starts them at 1 and 0, which hides one that is left out
            torch.nn.init.uniform_(parameter, 0.5 - family.norm_offset, 1.5 - family.norm_offset)
    return model.float().eval().requires_grad_(False)


def write_tiny(path, matrix_type="F32", add_bos=False, blocks=None, **tiny):
    """Writes tiny_model(**tiny) with a tokenizer of its own as GGUF; returns `path`."""
    model = tiny_model(**tiny)
    write_gguf(path, model, train_tokenizer(model.config.vocab_size), matrix_type, add_bos, blocks)
    return path


def perplexity(model, ids):
    """exp of the mean loss over the tokens after the first."""
    ids = torch.tensor([ids])
    with torch.no_grad():
        return math.exp(model(input_ids=ids, labels=ids).loss.item())
