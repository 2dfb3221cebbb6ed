"""ensemble.py: several adapters as one model on SmolLM2-135M, against PEFT's adapters loaded one by one: ln p is the mean of theirs,
less what makes it sum to one, and each token of greedy continuations is the likeliest by this mean.

Two adapters of prompt tuning and one of prefix tuning, of different lengths, as PEFT trained and wrote them.
"""

import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # PEFT looks for the base model on the hub when it saves

import numpy as np
import peft
import torch

import engine
import generation
import hf_model
import keys_values
import softprompt

TOLERANCE = 2e-3
N_LOGITS, N_BEGINNINGS, N_NEW = 150, 3, 24

CONFIGS = [peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8),
           peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
           peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=13)]


def make_adapters(directory, tokens):
    """Directories of adapters that a few steps moved, each on a text of its own."""
    made = []
    for i, config in enumerate(CONFIGS):
        model = peft.get_peft_model(hf_model.load(hf_model.SMOLLM2), config)
        keys_values.train(model, [(tokens[40 * i:40 * i + 40], 20)], 0.01)
        made.append(os.path.join(directory, str(i)))
        model.save_pretrained(made[-1])
    return made


def normalise(logprobs):
    return torch.log_softmax(logprobs, -1)


def mean_logprobs(models, tokens):
    """(n, n_vocab): by the definition, each adapter through PEFT."""
    with torch.no_grad():
        each = [torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0, -len(tokens):], -1) for model in models]
    return normalise(torch.stack(each).mean(0))


def our_logprobs(session, tokens):
    return normalise(torch.from_numpy(session.append_all(tokens))).numpy()


def check_logprobs(model, prompts, models, tokens):
    session = softprompt.Session(model, prompts)
    theirs = mean_logprobs(models, tokens).numpy()
    good = engine.report("log-probabilities of three adapters", float(np.abs(our_logprobs(session, tokens) - theirs).max()), TOLERANCE)
    session.rewind(60)
    one_by_one = np.stack([session.append([token]) for token in tokens[60:]])
    ours = normalise(torch.from_numpy(one_by_one)).numpy()
    good &= engine.report("    token by token", float(np.abs(ours - theirs[60:]).max()), TOLERANCE)
    alone = normalise(mean_logprobs(models[:1], tokens)).numpy()
    good &= engine.report("    (and the others matter: 1 / difference from the first alone)", 1 / float(np.abs(alone - theirs).max()), 1.0)
    one = our_logprobs(softprompt.Session(model, prompts[:1]), tokens)
    good &= engine.report("one adapter, log-probabilities", float(np.abs(one - alone).max()), TOLERANCE)
    twice = our_logprobs(softprompt.Session(model, prompts[:1] * 2), tokens)
    return good & engine.report("the same twice, against itself", float(np.abs(twice - one).max()), 5e-4)


def check_generation(model, prompts, models):
    judge, worst = generation.Judge(N_NEW, models[0].base_model.config.eos_token_id), 0.0
    for tokens in generation.beginnings()[:N_BEGINNINGS]:
        generated, _, logprobs = softprompt.Session(model, prompts).generate(tokens, max_new_tokens=N_NEW)
        theirs = mean_logprobs(models, tokens + generated[:-1])[-len(generated):]
        judge.take(generated, theirs)
        worst = max(worst, float((theirs[range(len(generated)), generated] - torch.tensor(logprobs)).abs().max()))
    return judge.report() & engine.report("    and their ln p", worst, TOLERANCE)


def main():
    tokens = engine.news_tokens(N_LOGITS)
    with tempfile.TemporaryDirectory() as directory:
        adapters = make_adapters(directory, tokens)
        prompts = [softprompt.Prompt(adapter) for adapter in adapters]
        models = [peft.PeftModel.from_pretrained(hf_model.load(hf_model.SMOLLM2), adapter).eval() for adapter in adapters]
        model = softprompt.Model(hf_model.SMOLLM2)
        return check_logprobs(model, prompts, models, tokens) & check_generation(model, prompts, models)


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(0 if main() else 1)
