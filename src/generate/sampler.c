/* sampler.c: penalties, filters, one draw. Everything works on a list of candidates in descending order. */
#include "generate/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "tensor/kernels.h"

sp_status sp_sampler_init(sp_sampler *sampler, const sp_sampling *options, size_t n_vocab)
{
    *sampler = (sp_sampler){.options = *options, .n_vocab = n_vocab, .rng = sp_rng_seed(options->seed, 0)};
    if (!(options->temperature >= 0) || !(options->top_p >= 0 && options->top_p <= 1) ||
        !(options->min_p >= 0 && options->min_p <= 1) || !(options->repetition_penalty >= 0) || isinf(options->temperature) ||
        isinf(options->repetition_penalty))
        return sp_fail(SP_ERR_ARGUMENT,
                       "sampling: temperature and repetition penalty must be finite and >= 0, top-p and min-p in [0, 1]");
    sampler->candidates = malloc(n_vocab * sizeof *sampler->candidates);
    sampler->seen = calloc(n_vocab, sizeof *sampler->seen);
    if (sampler->candidates && sampler->seen) return SP_OK;
    sp_sampler_clear(sampler);
    return sp_fail_no_memory(n_vocab * sizeof *sampler->candidates);
}

void sp_sampler_clear(sp_sampler *sampler)
{
    free(sampler->candidates);
    free(sampler->seen);
    sampler->candidates = NULL;
    sampler->seen = NULL;
}

static void penalise(sp_sampler *s, const int32_t *tokens, size_t n)
{
    float penalty = s->options.repetition_penalty;
    if (penalty == 0 || penalty == 1) return;
    for (size_t i = 0; i < n; i++) s->seen[tokens[i]] = true;
    for (size_t i = 0; i < n; i++) {
        sp_candidate *c = &s->candidates[tokens[i]];
        if (s->seen[tokens[i]]) c->logit = c->logit > 0 ? c->logit / penalty : c->logit * penalty;
        s->seen[tokens[i]] = false; /* once a token; and the scratch is clean again */
    }
}

static int32_t largest(const sp_sampler *s)
{
    size_t best = 0;
    for (size_t i = 1; i < s->n_vocab; i++)
        if (s->candidates[i].logit > s->candidates[best].logit) best = i;
    return s->candidates[best].token;
}

static int by_descending_logit(const void *left, const void *right)
{
    const sp_candidate *a = left, *b = right;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return (a->token > b->token) - (a->token < b->token);
}

/* Probabilities of the first n at a temperature; they sum to 1. */
static void set_probabilities(sp_sampler *s, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += s->candidates[i].probability =
            exp((double)(s->candidates[i].logit - s->candidates[0].logit) / (double)s->options.temperature);
    for (size_t i = 0; i < n; i++) s->candidates[i].probability /= sum;
}

static size_t keep_top_p(const sp_sampler *s, size_t n)
{
    double sum = 0;
    if (s->options.top_p == 0 || s->options.top_p == 1) return n;
    for (size_t i = 0; i < n; i++)
        if ((sum += s->candidates[i].probability) >= (double)s->options.top_p) return i + 1;
    return n;
}

static size_t keep_min_p(const sp_sampler *s, size_t n)
{
    while (n > 1 && s->candidates[n - 1].probability < (double)s->options.min_p * s->candidates[0].probability) n--;
    return n;
}

static int32_t draw(sp_sampler *s, size_t n)
{
    double total = 0, at;
    for (size_t i = 0; i < n; i++) total += s->candidates[i].probability;
    at = sp_rng_uniform(&s->rng) * total;
    for (size_t i = 0; i + 1 < n; i++)
        if ((at -= s->candidates[i].probability) < 0) return s->candidates[i].token;
    return s->candidates[n - 1].token;
}

static int32_t choose(sp_sampler *s, const float *logits, const int32_t *tokens, size_t n_tokens)
{
    size_t n = s->n_vocab;
    for (size_t i = 0; i < n; i++) s->candidates[i] = (sp_candidate){(int32_t)i, logits[i], 0};
    penalise(s, tokens, n_tokens);
    if (s->options.temperature == 0) return largest(s);
    qsort(s->candidates, n, sizeof *s->candidates, by_descending_logit);
    if (s->options.top_k > 0 && s->options.top_k < n) n = s->options.top_k;
    set_probabilities(s, n);
    n = keep_top_p(s, n);
    n = keep_min_p(s, n);
    return draw(s, n);
}

int32_t sp_sampler_next(sp_sampler *sampler, double *logprob, const float *logits, const int32_t *tokens, size_t n)
{
    int32_t token = choose(sampler, logits, tokens, n);
    *logprob = (double)logits[token] - sp_kernels_select()->log_sum_exp(logits, sampler->n_vocab);
    return token;
}
