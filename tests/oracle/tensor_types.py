"""tensor_types.py: every tensor type that the gguf package can expand, expanded here and there: random blocks as the embedding
matrix of a tiny model, read through sp_model_embed.

A scale that happens to be no number must be none on both sides.
"""

import os
import sys
import tempfile

import gguf
import numpy as np
from gguf import quants

import hf_model
import softprompt

N_VOCAB, D_MODEL = 320, 256  # a row of one block, for the types with the largest


def random_blocks(kind, rng):
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if kind == gguf.GGMLQuantizationType.F32:
        return rng.standard_normal((N_VOCAB, D_MODEL)).astype(np.float32).view(np.uint8)
    return rng.integers(0, 256, (N_VOCAB, D_MODEL // block_size * block_bytes), np.uint8)


def check(kind, directory, rng):
    path, blocks = os.path.join(directory, f"{kind.name}.gguf"), random_blocks(kind, rng)
    hf_model.write_tiny(path, blocks={"token_embd.weight": (blocks, kind)}, hidden_size=D_MODEL, vocab_size=N_VOCAB)
    model = softprompt.Model(path)
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(blocks, kind)
    np.testing.assert_allclose(model.embed(range(N_VOCAB)), theirs, rtol=1e-6, atol=0, equal_nan=True)
    finite = np.isfinite(theirs).mean()
    assert finite > 0.5, "hardly a number to compare"
    return f"equal, {100 * finite:.0f} % of the values finite"


def main():
    rng = np.random.default_rng(1)
    kinds = sorted(set(quants._type_traits) | {gguf.GGMLQuantizationType.F16}, key=lambda kind: kind.name)
    with tempfile.TemporaryDirectory() as directory:
        for kind in kinds:
            print(f"ok   {kind.name}: {check(kind, directory, rng)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
