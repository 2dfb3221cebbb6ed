/* random_layer.h: one frozen transformer layer with random weights and a single head, and what a prompt makes it answer.
 *
 * The stream has D = d + n_positions channels. A token's d numbers are its first channels, and the answer is read there; the others
 * hold a random position of the prompt's tokens, and 0 of the input's:
 *
 *   Z = [P, X; positions]   A = Z + OV Z softmax((K Z)^T (Q Z))   answer = A + W2 relu(W1 A + b1), channels 0 to d, input tokens
 *
 * n_positions 0 is the layer of arXiv 2411.16525 to the letter, as wide as its tokens: positions would be part of what is learnt.
 * All in f64. Each array is drawn from the seed in order, so a longer prompt has the positions of a shorter one first.
 * Why these scales: docs/decisions. */
#ifndef SP_LAB_RANDOM_LAYER_H
#define SP_LAB_RANDOM_LAYER_H

#include "softprompt.h"

typedef struct sp_random_layer_shape {
    size_t d, len, n_positions, n_hidden;
    size_t max_tokens; /* of a prompt */
} sp_random_layer_shape;

typedef struct sp_random_layer {
    sp_random_layer_shape shape;
    size_t n_channels;    /* D */
    double size;          /* of numbers of the prompt where learning begins */
    double *q, *k, *ov;   /* (D, D) each; OV is W_O W_V */
    double *w1, *b1, *w2; /* (H, D), (H), (d, H): the other channels are not read behind it */
    double *positions;    /* (max_tokens, n_positions) */
    double *memory;
} sp_random_layer; /* zero-initialise; sp_random_layer_clear */

sp_status sp_random_layer_create(sp_random_layer *out, const sp_random_layer_shape *shape, uint64_t seed); /* MEMORY */
void sp_random_layer_clear(sp_random_layer *layer);

/* What of a set of sequences does not depend on the prompt. T = n_sequences * len tokens. */
typedef struct sp_layer_inputs {
    const sp_random_layer *layer;
    size_t n_tokens;    /* T */
    double *stream;     /* (T, D) */
    double *queries;    /* (T, D) */
    double *slopes;     /* (T, d) of a score in the numbers of a prompt token: K^T q */
    double *own_scores; /* (T, len) of the tokens of its own sequence */
    double *own_values; /* (T, D) OV z */
    double *memory;
} sp_layer_inputs; /* zero-initialise; sp_layer_inputs_clear */

/* x (n_sequences, len, d). The layer must outlive it. MEMORY. */
sp_status sp_layer_inputs_create(sp_layer_inputs *out, const sp_random_layer *layer, const double *x, size_t n_sequences);
void sp_layer_inputs_clear(sp_layer_inputs *inputs);

/* Numbers of scratch that sp_layer_answer takes. */
size_t sp_layer_scratch(const sp_random_layer *layer, size_t num_virtual_tokens);

/* y (T, d) = the answers behind the prompt (num_virtual_tokens, d), at most max_tokens of them.
 * jacobian (T d, num_virtual_tokens d) = their derivatives in the prompt; NULL: not wanted. Cannot fail. */
void sp_layer_answer(double *y, double *jacobian, const sp_layer_inputs *inputs, const double *prompt, size_t num_virtual_tokens,
                     double *scratch);

/* ---- a prompt that is learnt ---- */

typedef struct sp_layer_fit_options {
    double epsilon;         /* an error of this is good enough */
    size_t steps, restarts; /* of Levenberg and Marquardt's method, and how often it begins anew */
    uint64_t seed;          /* of the beginnings */
    const volatile int *stop;
} sp_layer_fit_options;

/* Learns a prompt (num_virtual_tokens, d) for the answers (T, d). *error: the largest difference of any number behind the best
 * prompt found, which is written. *n_steps += steps taken. MEMORY. */
sp_status sp_layer_fit(double *prompt, double *error, size_t *n_steps, const sp_layer_inputs *inputs, const double *answers,
                       size_t num_virtual_tokens, const sp_layer_fit_options *options);

#endif
