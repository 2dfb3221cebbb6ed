/* cpt.h: context-aware prompt tuning: a text that stands in front, whose tokens' embeddings may move a little way.
 *
 *     rows = embeddings of the text's tokens + delta,   ||delta of a token|| <= what its type allows
 *
 * The text usually holds examples with their answers. Answers never move; they are predicted as well, and count in the loss.
 * Blau et al., arXiv 2410.17222; PEFT's CPT, whose names of settings these are. */
#ifndef SP_PROMPT_CPT_H
#define SP_PROMPT_CPT_H

#include "prompt/prompt.h"

/* What a token is, by its type mod 4. Types count on from example to example: 1 2 3 4, 5 6 7 8, ... Type 0: none of these. */
enum { SP_CPT_LABEL = 0, SP_CPT_INPUT_TEMPLATE = 1, SP_CPT_INPUT = 2, SP_CPT_OUTPUT_TEMPLATE = 3, SP_CPT_N_KINDS = 4 };

typedef struct sp_cpt {
    size_t n;                  /* tokens */
    int32_t *token_ids;        /* (n) */
    int32_t *tokens_type_mask; /* (n) */
    int32_t *mask;             /* (n) PEFT's cpt_mask, which it saves and never reads */
    sp_weighted_loss opt_weighted_loss_type;
    double opt_loss_decay_factor, opt_projection_epsilon, opt_projection_format_epsilon;
} sp_cpt;

/* n tokens of type 1, PEFT's defaults. */
sp_status sp_cpt_create(sp_cpt **out, size_t n);
void sp_cpt_free(sp_cpt *cpt);

/* The longest that a token's delta may be. PEFT's: epsilon sqrt(d_model / 2048); answers and type 0 as good as none. */
float sp_cpt_radius(const sp_cpt *cpt, size_t token, size_t d_model);

/* Shortens each token's row of delta (n, d_model) to its radius. PEFT does so before it reads them; here it is done behind each
 * step, which comes to the same. */
void sp_cpt_project(float *delta, const sp_cpt *cpt, size_t d_model);

/* rows (n, d_model) = start + delta, where start holds the tokens' embeddings. */
void sp_cpt_forward(float *rows, const float *start, const float *delta, const sp_cpt *cpt, size_t d_model);

/* d_delta += d_rows, both (n, d_model), of the tokens that move. The projection is no part of the gradient, as in PEFT. */
void sp_cpt_backward(float *d_delta, const float *d_rows, const sp_cpt *cpt, size_t d_model);

/* out (n) gets the targets, ascending by row; returns how many. With decay the answers of the last example weigh factor, those of
 * the one before factor^2, and so on; without, 1. The first token is predicted by nobody. */
size_t sp_cpt_targets(sp_prompt_target *out, const sp_cpt *cpt);

#endif
