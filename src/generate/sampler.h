/* sampler.h: choosing the next token from its logits. */
#ifndef SP_GENERATE_SAMPLER_H
#define SP_GENERATE_SAMPLER_H

#include "base/rng.h"
#include "softprompt.h"

typedef struct sp_candidate {
    int32_t token;
    float logit;
    double probability;
} sp_candidate;

typedef struct sp_sampler {
    sp_sampling options; /* its strings are not used here */
    size_t n_vocab;
    sp_rng rng;
    sp_candidate *candidates; /* (n_vocab) scratch */
    bool *seen;               /* (n_vocab) scratch of the repetition penalty */
} sp_sampler;

sp_status sp_sampler_init(sp_sampler *sampler, const sp_sampling *options, size_t n_vocab);
void sp_sampler_clear(sp_sampler *sampler);

/* The next token, from logits (n_vocab) behind the n tokens so far. In this order, as Hugging Face's generate does:
 *   repetition_penalty  logits of tokens in the text: divided by it where positive, multiplied where negative (arXiv 1909.05858)
 *   temperature         logits divided by it; 0: the largest logit wins (the lowest id among equals) and nothing below matters
 *   top_k, top_p, min_p the k largest; the fewest that hold p of the probability; those of at least min_p of the largest
 * then one draw. *logprob: ln of the token's probability under the logits as they came. */
int32_t sp_sampler_next(sp_sampler *sampler, double *logprob, const float *logits, const int32_t *tokens, size_t n);

#endif
