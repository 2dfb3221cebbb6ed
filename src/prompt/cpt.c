/* cpt.c: what may move of a text in front, how far, and which of its tokens the loss wants predicted. */
#include "prompt/cpt.h"

#include <math.h>

/* What a token that never moves is allowed, and the width of a model whose tokens may move by epsilon itself: PEFT's constants. */
static const double UNMOVED = 1e-10, REFERENCE_D_MODEL = 2048;

/* A row is shortened to its radius only up to rounding; within this it is left alone, so that shortening twice is shortening once,
 * to the bit, and a run that is resumed goes on with what it saved. */
static const double SLACK = 1e-6;

static int kind_of(int32_t type)
{
    return (int)(type % SP_CPT_N_KINDS);
}

/* Type 0 is of no kind: its remainder is an answer's. */
static bool is_label(int32_t type)
{
    return type > 0 && kind_of(type) == SP_CPT_LABEL;
}

float sp_cpt_radius(const sp_cpt *cpt, size_t token, size_t d_model)
{
    const double scale = sqrt((double)d_model / REFERENCE_D_MODEL);
    switch (kind_of(cpt->tokens_type_mask[token])) {
    case SP_CPT_INPUT_TEMPLATE:
    case SP_CPT_OUTPUT_TEMPLATE:
        return (float)(cpt->opt_projection_format_epsilon * scale);
    case SP_CPT_INPUT:
        return (float)(cpt->opt_projection_epsilon * scale);
    default:
        return (float)UNMOVED;
    }
}

void sp_cpt_project(float *delta, const sp_cpt *cpt, size_t d_model)
{
    for (size_t t = 0; t < cpt->n; t++, delta += d_model) {
        const double radius = sp_cpt_radius(cpt, t, d_model);
        double squares = 0;
        for (size_t i = 0; i < d_model; i++) squares += (double)delta[i] * delta[i];
        const double norm = sqrt(squares);
        if (!(norm > radius * (1 + SLACK))) continue;
        for (size_t i = 0; i < d_model; i++) delta[i] = (float)(delta[i] * (radius / norm));
    }
}

void sp_cpt_forward(float *rows, const float *start, const float *delta, const sp_cpt *cpt, size_t d_model)
{
    for (size_t i = 0; i < cpt->n * d_model; i++) rows[i] = start[i] + delta[i];
}

void sp_cpt_backward(float *d_delta, const float *d_rows, const sp_cpt *cpt, size_t d_model)
{
    for (size_t t = 0; t < cpt->n; t++, d_delta += d_model, d_rows += d_model) {
        if (kind_of(cpt->tokens_type_mask[t]) == SP_CPT_LABEL) continue;
        for (size_t i = 0; i < d_model; i++) d_delta[i] += d_rows[i];
    }
}

/* The largest type of an answer below `limit` among the tokens that are predicted; 0: none. */
static int32_t next_label(const sp_cpt *cpt, int32_t limit)
{
    int32_t largest = 0;
    for (size_t t = 1; t < cpt->n; t++) {
        const int32_t type = cpt->tokens_type_mask[t];
        if (is_label(type) && type < limit && type > largest) largest = type;
    }
    return largest;
}

/* Answers of one type, from the last example to the first, weigh ever less: the one that is learnt, behind them all, weighs 1. */
size_t sp_cpt_targets(sp_prompt_target *out, const sp_cpt *cpt)
{
    size_t n = 0;
    for (size_t t = 1; t < cpt->n; t++)
        if (is_label(cpt->tokens_type_mask[t])) out[n++] = (sp_prompt_target){t - 1, cpt->token_ids[t], 1};
    if (cpt->opt_weighted_loss_type != SP_WEIGHTED_LOSS_DECAY) return n;
    double weight = 1;
    for (int32_t type = next_label(cpt, INT32_MAX); type; type = next_label(cpt, type)) {
        weight *= cpt->opt_loss_decay_factor;
        for (size_t i = 0; i < n; i++)
            if (cpt->tokens_type_mask[out[i].row + 1] == type) out[i].weight = (float)weight;
    }
    return n;
}
