"""distill.py: how far a prompt is from standing for a text, and the gradient of it, against torch: KL(teacher || student) of
transformers with the text in its context and PEFT with the prompt, each query alone, by autograd.

    python tests/oracle/distill.py tiny
    python tests/oracle/distill.py smollm2    # a text of 300 tokens
"""

import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # PEFT looks for the base model on the hub when it saves

import numpy as np
import peft
import torch

import engine
import hf_model
import softprompt
from engine import report
from keys_values import tokens_keys_values

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4

CONFIGS = {
    "PROMPT_TUNING": lambda n: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n),
    "PREFIX_TUNING": lambda n: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n),
}


def divergence(teacher, student):
    """Mean over rows of KL(teacher || student) of logits, in f64: the sum over a vocabulary is no matter of rounding then."""
    p, q = torch.log_softmax(teacher.double(), -1), torch.log_softmax(student.double(), -1)
    return (p.exp() * (p - q)).sum(-1).mean()


def torch_loss(base, student, context, queries, bos):
    """Each query on its own. A BOS that begins a query, as it begins the context, is the student's alone."""
    losses = []
    for tokens, n_answer in queries:
        own = tokens[1:] if bos else tokens
        with torch.no_grad():
            theirs = base(input_ids=torch.tensor([context + own])).logits[0, -n_answer - 1:-1]
        losses.append(divergence(theirs, student(torch.tensor([tokens]))[-n_answer - 1:-1]))
    return torch.stack(losses).mean()


def torch_gradient(base, adapted, context, queries, bos):
    """loss, and its gradient by PEFT's parameters (P, width)"""
    parameter = adapted.prompt_encoder["default"].embedding.weight
    parameter.grad = None
    loss = torch_loss(base, lambda tokens: adapted(input_ids=tokens).logits[0], context, queries, bos)
    loss.backward()
    return loss.item(), parameter.grad.numpy()


def make_queries(rng, n_vocab, bos):
    """Some begin alike, one is a copy; the whole query behind its first token is compared, or the last tokens of it."""
    queries = [(tokens, len(tokens) - 1 if i % 2 else n) for i, (tokens, n) in enumerate(engine.random_examples(rng, n_vocab, 6, 14))]
    return [([0] + tokens, n) for tokens, n in queries] if bos else queries


def check_packing(model, prompt, context, queries, loss, gradient):
    alone = [model.distillation_loss(prompt, context, [query]) for query in queries]
    mean_loss, mean_gradient = np.mean([a[0] for a in alone]), np.mean([a[1] for a in alone], 0)
    good = report("    packed loss against the mean of single ones", abs(loss - mean_loss) / mean_loss, 1e-5)
    return good & report("    packed gradient", engine.relative_error(gradient, mean_gradient), 1e-5)


def check(what, name, n, base, model, context, queries, bos, start=None):
    """start (P, width): where PEFT's rows begin, instead of noise."""
    adapted = peft.get_peft_model(base, CONFIGS[name](n)).eval()
    if start is not None:
        with torch.no_grad():
            adapted.prompt_encoder["default"].embedding.weight.copy_(start)
    with tempfile.TemporaryDirectory() as directory:
        adapted.save_pretrained(directory)
        prompt = softprompt.Prompt(directory)
    print(f"  {what}, {name}, P = {n}, {len(context)} tokens of context{', BOS' if bos else ''}")
    loss, gradient = model.distillation_loss(prompt, context, queries)
    their_loss, their_gradient = torch_gradient(base, adapted, context, queries, bos)
    good = report("    loss", abs(loss - their_loss) / their_loss, LOSS_TOLERANCE)
    good &= report("    gradient", engine.relative_error(gradient, their_gradient), GRADIENT_TOLERANCE)
    return good & check_packing(model, prompt, context, queries, loss, gradient)


def check_nothing(base, model, context, queries, bos):
    """No prompt at all; and a text that stands for itself, from which nothing diverges."""
    with torch.no_grad():
        theirs = torch_loss(base, lambda tokens: base(input_ids=tokens).logits[0], context, queries, bos).item()
    ours, _ = model.distillation_loss(None, context, queries)
    good = report("    no prompt: loss", abs(ours - theirs) / theirs, LOSS_TOLERANCE)
    if not bos:
        itself, _ = model.distillation_loss(softprompt.Prompt(model.embed(context)), context, queries)
        good &= report("    the context's own embeddings: loss", abs(itself), 1e-6)
    return good


TINY = {
    "llama": dict(),
    "qwen3, own head, q8_0": dict(family="qwen3", head_dim=32, tie_word_embeddings=False, matrix_type="Q8_0"),
    "gemma2": dict(family="gemma2", num_hidden_layers=3, head_dim=24, query_pre_attn_scalar=24, sliding_window=6,
                   attn_logit_softcapping=2.0, final_logit_softcapping=2.0),
    "gemma3": dict(family="gemma3_text", num_hidden_layers=7, head_dim=24, query_pre_attn_scalar=24, sliding_window=6, rope_theta=1e6),
}


def tiny():
    rng, good = np.random.default_rng(7), True
    for what, options in TINY.items():
        with tempfile.TemporaryDirectory() as directory:
            path = hf_model.write_tiny(os.path.join(directory, "tiny.gguf"), **options)
            base, model = hf_model.load(path), softprompt.Model(path)
            for bos in (False, True):
                context = [0] * bos + rng.integers(1, model.n_vocab, 23).tolist()
                queries = make_queries(rng, model.n_vocab, bos)
                for name in CONFIGS:
                    for n in (1, 5):
                        good &= check(what, name, n, base, model, context, queries, bos)
                good &= check_nothing(base, model, context, queries, bos)
    return good


def smollm2():
    base, model, good = hf_model.load(hf_model.SMOLLM2), softprompt.Model(hf_model.SMOLLM2), True
    tokens = engine.news_tokens(400)
    context = tokens[:300]
    queries = [(tokens[300 + 20 * i:310 + 20 * i + 3 * i], 5 + 3 * i) for i in range(4)]
    embeddings = base.get_input_embeddings().weight.detach()
    start = {"PROMPT_TUNING": embeddings[context[:8]], "PREFIX_TUNING": tokens_keys_values(base, context[:8])}
    for name in CONFIGS:
        good &= check("SmolLM2", name, 8, base, model, context, queries, False, start[name])
    return good & check_nothing(base, model, context, queries, False)


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(0 if {"tiny": tiny, "smollm2": smollm2}[sys.argv[1]]() else 1)
