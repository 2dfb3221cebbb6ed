"""engine.py: logits and gradients of the engine against transformers and torch autograd, on tiny random models of every kind and
on SmolLM2-135M.

    python tests/oracle/engine.py tiny        # families, variants, tensor types, finite differences in f64
    python tests/oracle/engine.py tiny qwen2  # those whose name begins so
    python tests/oracle/engine.py smollm2     # 2 000 positions of real text; gradients at P = 1, 32, 100
"""

import os
import sys
import tempfile
from unittest import mock

import numpy as np
import torch

import hf_model
import softprompt

HUTTO = os.path.join(hf_model.CACHE, "hutto", "hutto_ICWSM_2014")
LOGITS_TOLERANCE, GRADIENT_TOLERANCE, ROUNDINGS = 2e-3, 1e-4, 250


def relative_error(ours, theirs):
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def torch_logits(model, prompt, tokens):
    """Logits (n, n_vocab) behind each token, with the prompt's rows in front."""
    embeddings = model.get_input_embeddings()(torch.tensor([tokens]))
    if prompt is not None:
        embeddings = torch.cat([prompt[None], embeddings], 1)
    logits = model(inputs_embeds=embeddings).logits[0]
    return logits if prompt is None else logits[prompt.shape[0]:]


def torch_loss(model, prompt, examples):
    """Mean over examples of the mean over answer tokens, each example on its own."""
    losses = []
    for tokens, n_answer in examples:
        embeddings = model.get_input_embeddings()(torch.tensor([tokens]))
        logits = model(inputs_embeds=torch.cat([prompt[None].to(embeddings.dtype), embeddings], 1)).logits[0]
        rows = logits[-n_answer - 1:-1]
        losses.append(torch.nn.functional.cross_entropy(rows, torch.tensor(tokens[-n_answer:])))
    return torch.stack(losses).mean()


def torch_gradient(model, prompt, examples, dtype=torch.float32):
    prompt = torch.tensor(prompt, dtype=dtype, requires_grad=True)
    loss = torch_loss(model, prompt, examples)
    loss.backward()
    return loss.item(), prompt.grad.numpy()


def report(what, value, limit):
    print(f"{'ok  ' if value <= limit else 'FAIL'} {what}: {value:.2e} (limit {limit:.0e})", flush=True)
    return value <= limit


# ---- tiny models ----

TINY = {
    "tied": dict(),
    "untied": dict(tie_word_embeddings=False),
    "f16": dict(matrix_type="F16"),
    "q8_0": dict(matrix_type="Q8_0"),
    "linear rope": dict(rope="linear"),
    "llama3 rope": dict(rope="llama3"),
    "yarn rope": dict(rope="yarn"),
    "biases": dict(attention_bias=True),
    "qwen2": dict(family="qwen2"),
    "qwen2, untied, q8_0": dict(family="qwen2", tie_word_embeddings=False, matrix_type="Q8_0", num_attention_heads=6,
                                num_key_value_heads=1, hidden_size=96),
    "mistral": dict(family="mistral", sliding_window=7),
    "mistral, f16": dict(family="mistral", sliding_window=4, num_hidden_layers=3, num_key_value_heads=1, matrix_type="F16"),
    "gemma2": dict(family="gemma2", num_hidden_layers=5, head_dim=24, query_pre_attn_scalar=24, sliding_window=6,
                   attn_logit_softcapping=1.5, final_logit_softcapping=2.0),
    "gemma2, q8_0": dict(family="gemma2", num_hidden_layers=4, head_dim=32, query_pre_attn_scalar=32, sliding_window=9,
                         attn_logit_softcapping=4.0, final_logit_softcapping=1.0, num_key_value_heads=1, matrix_type="Q8_0"),
    "gemma2, 46 layers": dict(family="gemma2", num_hidden_layers=46, head_dim=24, query_pre_attn_scalar=16, sliding_window=20,
                              attn_logit_softcapping=5.0, final_logit_softcapping=5.0, initializer_range=0.1),
    "phi3": dict(family="phi3", sliding_window=7, tie_word_embeddings=False),
    "phi3, q8_0": dict(family="phi3", num_attention_heads=6, num_key_value_heads=2, hidden_size=96, sliding_window=None,
                       partial_rotary_factor=0.5, matrix_type="Q8_0"),
    "phi3, longrope": dict(family="phi3", rope="longrope", sliding_window=None, partial_rotary_factor=0.75,
                           original_max_position_embeddings=64, tie_word_embeddings=False),
    "gpt2": dict(family="gpt2", num_key_value_heads=4),
    "gpt2, f16": dict(family="gpt2", num_attention_heads=2, num_key_value_heads=2, head_dim=32, intermediate_size=128, num_hidden_layers=3,
                      matrix_type="F16"),
    "gpt_neox": dict(family="gpt_neox", num_key_value_heads=4, partial_rotary_factor=0.25, tie_word_embeddings=False),
    "gpt_neox, one block behind the other, q8_0": dict(family="gpt_neox", num_key_value_heads=4, partial_rotary_factor=0.5,
                                                       use_parallel_residual=False, tie_word_embeddings=False,
                                                       num_hidden_layers=3, matrix_type="Q8_0"),
    "gpt_neox, tied": dict(family="gpt_neox", num_attention_heads=2, num_key_value_heads=2, head_dim=32),
    "gemma3": dict(family="gemma3_text", num_hidden_layers=7, head_dim=24, query_pre_attn_scalar=24, sliding_window=6,
                   rope_theta=1e6),
    "gemma3, stretched, q8_0": dict(family="gemma3_text", num_hidden_layers=6, head_dim=32, query_pre_attn_scalar=32,
                                    sliding_window=9, rope="linear", rope_theta=1e6, matrix_type="Q8_0", num_key_value_heads=1),
    "gemma3, 62 layers": dict(family="gemma3_text", num_hidden_layers=62, head_dim=24, query_pre_attn_scalar=16, sliding_window=20,
                              rope_theta=1e6, initializer_range=0.1),
    "smollm3": dict(family="smollm3", num_hidden_layers=5),
    "smollm3, last layer without rope": dict(family="smollm3", num_hidden_layers=4, tie_word_embeddings=False),
    "qwen3": dict(family="qwen3", head_dim=24),
    "qwen3, q8_0": dict(family="qwen3", head_dim=32, num_attention_heads=6, num_key_value_heads=2, matrix_type="Q8_0"),
}


def random_examples(rng, n_vocab, n, longest):
    """Some share prefixes, one is a copy, answers of 1 to 3 tokens."""
    shared = rng.integers(0, n_vocab, 5).tolist()
    examples = []
    for i in range(n):
        tokens = (shared if i % 2 else []) + rng.integers(0, n_vocab, int(rng.integers(4, longest))).tolist()
        examples.append((tokens, int(rng.integers(1, 4))))
    return examples + [examples[0]]


def in_f64(model):
    """The transformers model, itself, in f64 throughout."""
    model = model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):  # transformers' own goes through f32, whatever the model's type
            weight, eps = module.weight + module.__class__.__name__.startswith("Gemma"), vars(module).get("variance_epsilon")
            module.forward = lambda x, w=weight, eps=eps or module.eps: torch.nn.functional.rms_norm(x, w.shape, w, eps)
    return model


def softmax_in_f64():
    """While it lasts, softmax keeps its input's type also where transformers asks it for f32."""
    return mock.patch.object(torch.nn.functional, "softmax", lambda x, dim, dtype=None: x.softmax(dim))


def check_finite_differences(path, prompt, examples, gradient):
    """The gradient along random directions against central differences of transformers in f64."""
    model = in_f64(hf_model.load(path))
    rng, worst = np.random.default_rng(5), 0.0
    for _ in range(4):
        direction = rng.standard_normal(prompt.shape)
        direction /= np.linalg.norm(direction)
        step, sides = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad(), softmax_in_f64():
                sides.append(torch_loss(model, torch.tensor(prompt.astype(np.float64) + sign * step * direction), examples).item())
        numeric, ours = (sides[0] - sides[1]) / (2 * step), float((gradient * direction).sum())
        worst = max(worst, abs(numeric - ours) / np.linalg.norm(gradient))
    return report("    finite differences, f64", worst, GRADIENT_TOLERANCE)


def check_packing(model, prompt, examples, loss, gradient, limit=1e-5):
    """One packed pass against the mean of passes over one example each."""
    alone = [model.loss(prompt, [example]) for example in examples]
    mean_loss, mean_gradient = np.mean([a[0] for a in alone]), np.mean([a[1] for a in alone], 0)
    good = report("    packed loss against the mean of single ones", abs(loss - mean_loss) / mean_loss, 1e-5)
    return good & report("    packed gradient", relative_error(gradient, mean_gradient), limit)


def check_growing_session(path):
    """A text in pieces, rewound and grown again, has the logits of the text in one."""
    model = softprompt.Model(path)
    rng = np.random.default_rng(13)
    prompt = softprompt.Prompt(rng.standard_normal((4, model.d_model)).astype(np.float32))
    tokens = rng.integers(0, model.n_vocab, 60).tolist()
    whole, session = softprompt.Session(model, prompt).append_all(tokens), softprompt.Session(model, prompt)
    session.append_all(tokens[:10] + tokens[:30])
    session.rewind(10)
    pieces = np.concatenate([session.append_all(tokens[10:11]), session.append_all(tokens[11:40]), session.append_all(tokens[40:])])
    good = report("    session in pieces", float(np.abs(pieces - whole[10:]).max()), 2e-5)
    return good & report("    last logits alone", float(np.abs(softprompt.Session(model, prompt).append(tokens) - whole[-1]).max()), 2e-5)


def check_engine(path, reference):
    """A file or directory here against the transformers model of the same weights: logits and gradients, weights mapped and f32.
    -> good, prompt, examples, gradient"""
    rng = np.random.default_rng(7)
    prompt = rng.standard_normal((3, reference.get_input_embeddings().weight.shape[1])).astype(np.float32)
    n_vocab = reference.get_input_embeddings().weight.shape[0]
    examples = random_examples(rng, n_vocab, 6, 14)
    tokens = rng.integers(0, n_vocab, 50).tolist()
    good = True
    for weights in (1, 2):
        model = softprompt.Model(path, weights=weights)
        with torch.no_grad():
            theirs = torch_logits(reference, torch.tensor(prompt), tokens).numpy()
        ours = softprompt.Session(model, softprompt.Prompt(prompt)).append_all(tokens)
        good &= report(f"    logits, weights {('mapped', 'f32')[weights - 1]}", float(np.abs(ours - theirs).max()), 2e-4)
        loss, gradient = model.loss(softprompt.Prompt(prompt), examples)
        their_loss, their_gradient = torch_gradient(reference, prompt, examples)
        good &= report("    loss", abs(loss - their_loss) / their_loss, 1e-5)
        good &= report("    gradient", relative_error(gradient, their_gradient), GRADIENT_TOLERANCE)
    if reference.config.num_hidden_layers <= 40:  # larger ones are there for one number; minutes of torch's time for the rest
        good &= check_packing(model, softprompt.Prompt(prompt), examples, loss, gradient)
    return good, prompt, examples, gradient


def check_tiny(name, options, directory):
    path = hf_model.write_tiny(os.path.join(directory, "tiny.gguf"), **options)
    print(f"  {name}")
    reference = hf_model.load(path)
    good, prompt, examples, gradient = check_engine(path, reference)
    if reference.config.num_hidden_layers > 40:
        return good
    good &= check_growing_session(path)
    return good & check_finite_differences(path, prompt, examples, gradient)


def check_threads_and_weights(path):
    """Results do not depend on the number of threads, nor on when weights are expanded."""
    rng = np.random.default_rng(11)
    prompt = softprompt.Prompt(rng.standard_normal((5, softprompt.Model(path).d_model)).astype(np.float32))
    examples = random_examples(rng, softprompt.Model(path).n_vocab, 9, 20)
    base_loss, base = softprompt.Model(path, n_threads=1, weights=1).loss(prompt, examples)
    good = True
    for n_threads, weights in ((1, 2), (2, 1), (2, 2), (3, 2)):
        loss, gradient = softprompt.Model(path, n_threads=n_threads, weights=weights).loss(prompt, examples)
        good &= report(f"  {n_threads} threads, weights {weights}: gradient", relative_error(gradient, base), 1e-5)
        good &= report(f"  {n_threads} threads, weights {weights}: loss", abs(loss - base_loss) / base_loss, 1e-5)
    return good


def tiny(beginning=""):
    with tempfile.TemporaryDirectory() as directory:
        good = True
        for name, options in TINY.items():
            if name.startswith(beginning):
                good &= check_tiny(name, options, directory)
        return good & check_threads_and_weights(hf_model.write_tiny(os.path.join(directory, "tiny.gguf")))


# ---- SmolLM2 ----


def news_tokens(n):
    with open(os.path.join(HUTTO, "nytEditorialSnippets_GroundTruth.txt"), encoding="utf-8", errors="replace") as f:
        text = "\n".join(line.rstrip("\r\n").split("\t")[2] for line in f if line.count("\t") >= 2)
    return hf_model.load_tokenizer(hf_model.SMOLLM2).encode(text[:8 * n]).ids[:n]


def smollm2_logits(reference, model):
    tokens = news_tokens(2000)
    with torch.no_grad():
        theirs = torch_logits(reference, None, tokens).numpy()
    ours = softprompt.Session(model).append_all(tokens)
    agree = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
    good = report(f"logits at {len(tokens)} positions, max abs difference", float(np.abs(ours - theirs).max()), LOGITS_TOLERANCE)
    return good & report("share of positions with another top-1", 1 - agree, 1e-3)


def gradient_in_f64(model, prompt, examples):
    with softmax_in_f64():
        return torch_gradient(model, prompt, examples, torch.float64)[1]


def smollm2_gradients(reference, model, sizes=(1, 32, 100)):
    """Gradients against transformers in f64. Some prompts are conditioned badly: that of 100 tokens here has ten times the error of
    others drawn like it, transformers' own f32 as well. So an error may also be ROUNDINGS times what the gradient moves by, in f64, where
    the prompt itself is rounded to f32 once more."""
    rng, tokens, good = np.random.default_rng(3), news_tokens(400), True
    embeddings, in_double = reference.get_input_embeddings().weight.numpy(), in_f64(hf_model.load(hf_model.SMOLLM2))
    examples = [(tokens[20 * i:20 * i + 8 + 3 * (i % 5)], 1 + i % 3) for i in range(6)]
    for n in sizes:
        prompt = embeddings[rng.integers(0, len(embeddings), n)]
        loss, gradient = model.loss(softprompt.Prompt(prompt), examples)
        their_loss, their_gradient = torch_gradient(reference, prompt, examples)
        exact = gradient_in_f64(in_double, prompt, examples)
        rounding = 2.0**-24 * np.random.default_rng(0).uniform(-1, 1, prompt.shape)
        moved = relative_error(gradient_in_f64(in_double, prompt * (1 + rounding), examples), exact)
        good &= report(f"P = {n}: loss", abs(loss - their_loss) / their_loss, 1e-5)
        good &= report(f"P = {n}: gradient (transformers' own in f32: {relative_error(their_gradient, exact):.2e})",
                       relative_error(gradient, exact), max(GRADIENT_TOLERANCE, ROUNDINGS * moved))
        if n == 32:
            good &= check_packing(model, softprompt.Prompt(prompt), examples, loss, gradient)
    return good


def mean_divergence(theirs, ours):
    """Mean over rows of KL(theirs || ours), in nats."""
    p, q = (torch.log_softmax(torch.tensor(logits).double(), -1) for logits in (theirs, ours))
    return float((p.exp() * (p - q)).sum(-1).mean())


def smollm2_bf16(reference):
    """What rounding the factors of large products to bf16 costs. Few rows are multiplied in f32: the text goes in at once."""
    model, rng, tokens = softprompt.Model(hf_model.SMOLLM2, compute=2), np.random.default_rng(3), news_tokens(2000)
    with torch.no_grad():
        theirs = torch_logits(reference, None, tokens).numpy()
    ours = softprompt.Session(model).append_all(tokens)
    good = report("bf16: mean KL of the next token, nats", mean_divergence(theirs, ours), 1e-3)
    good &= report("bf16: logits, root of the mean square difference", float(np.sqrt(np.mean((ours - theirs) ** 2))), 0.2)
    good &= report("bf16: share of positions with another top-1", float((ours.argmax(-1) != theirs.argmax(-1)).mean()), 0.03)
    prompt = reference.get_input_embeddings().weight.numpy()[rng.integers(0, model.n_vocab, 32)]
    examples = [(tokens[20 * i:20 * i + 8 + 3 * (i % 5)], 1 + i % 3) for i in range(6)]
    loss, gradient = model.loss(softprompt.Prompt(prompt), examples)
    their_loss, their_gradient = torch_gradient(reference, prompt, examples)
    good &= report("bf16: loss", abs(loss - their_loss) / their_loss, 1e-2)
    return good & report("bf16: gradient", relative_error(gradient, their_gradient), 0.1)


def smollm2():
    reference, model = hf_model.load(hf_model.SMOLLM2), softprompt.Model(hf_model.SMOLLM2)
    return smollm2_logits(reference, model) & smollm2_gradients(reference, model) & smollm2_bf16(reference)


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(0 if {"tiny": tiny, "smollm2": smollm2}[sys.argv[1]](*sys.argv[2:]) else 1)
