#!/usr/bin/env python3
"""Writes tests/data/encoder.safetensors: what PEFT's own encoders compute, for tests/test_network.c to be held against.

    oracle-venv/bin/python tests/oracle/encoder.py tests/data/encoder.safetensors

Of each case: the weights (f32) by PEFT's names, random d_rows, and from these in f64 the rows and the gradient of sum(rows * d_rows).
"""

import sys

import peft
import safetensors.torch
import torch

# name: virtual tokens, token_dim, hidden size, layers. Sizes around a vector's width, one token, more tokens than hidden numbers.
MLP = {"mlp": (5, 7, 9, 2), "mlp_one": (1, 17, 16, 2), "mlp_many": (12, 5, 4, 2)}
LSTM = {"lstm": (5, 6, 5, 2), "lstm_one": (1, 6, 4, 1), "lstm_two": (2, 3, 5, 2), "lstm_deep": (9, 4, 3, 3)}
PROJECTION = {"projection": (6, 4, 10, 3), "projection_one": (1, 2, 8, 2)}


def encoder(name):
    kind, shape = next((kind, kind[name]) for kind in (MLP, LSTM, PROJECTION) if name in kind)
    n, token_dim, hidden, layers = shape
    common = dict(task_type="CAUSAL_LM", num_virtual_tokens=n, token_dim=token_dim, num_transformer_submodules=1, num_attention_heads=1,
                  encoder_hidden_size=hidden)
    if kind is PROJECTION:
        return peft.PrefixEncoder(peft.PrefixTuningConfig(prefix_projection=True, num_layers=layers, **common))
    return peft.PromptEncoder(peft.PromptEncoderConfig(encoder_reparameterization_type="LSTM" if kind is LSTM else "MLP",
                                                       encoder_num_layers=layers, num_layers=1, **common))


def main():
    torch.manual_seed(0)
    tensors = {}
    for name in (*MLP, *LSTM, *PROJECTION):
        module = encoder(name)
        weights = {key: value.detach().clone() for key, value in module.named_parameters()}
        module.double()
        rows = module(torch.arange(module.embedding.num_embeddings)[None])[0]
        d_rows = torch.randn(rows.shape)
        (rows * d_rows).sum().backward()
        tensors |= {f"{name}.weight.{key}": value for key, value in weights.items()}
        tensors |= {f"{name}.gradient.{key}": value.grad.float() for key, value in module.named_parameters()}
        tensors |= {f"{name}.rows": rows.detach().float(), f"{name}.d_rows": d_rows}
    metadata = {"made_with": f"torch {torch.__version__}, peft {peft.__version__}"}
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, sys.argv[1], metadata)


main()
