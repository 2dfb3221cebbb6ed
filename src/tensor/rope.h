/* rope.h: rotary position embedding, arXiv 2104.09864, with the scaling variants that models use. */
#ifndef SP_TENSOR_ROPE_H
#define SP_TENSOR_ROPE_H

#include <stdbool.h>

#include "softprompt.h"

typedef enum sp_rope_scaling { SP_ROPE_NONE, SP_ROPE_LINEAR, SP_ROPE_YARN, SP_ROPE_LONG } sp_rope_scaling;

typedef struct sp_rope_options {
    size_t n_rot;   /* leading dimensions of a head that turn; even */
    bool by_halves; /* which pairs turn: (i, i + n_rot / 2), as models are trained, or (2i, 2i + 1), as llama GGUF files order them
                     */
    float theta;    /* base of the frequencies */
    sp_rope_scaling scaling;
    float factor;                   /* LINEAR, YARN: how far the context is stretched */
    float attention_factor;         /* on cosines and sines; YARN: times 0.1 ln(factor) + 1 */
    float beta_fast, beta_slow;     /* YARN: turns within the original context between which frequencies blend */
    size_t original_context;        /* YARN */
    const float *frequency_factors; /* (n_rot / 2), divide the frequencies (the llama 3 scaling, LONG); NULL: none */
} sp_rope_options;

typedef struct sp_rope sp_rope; /* frequencies, and a table of cosines and sines that grows with the positions used */

sp_status sp_rope_create(sp_rope **out, const sp_rope_options *options);
void sp_rope_free(sp_rope *rope);

/* Makes the table reach positions 0 .. n_positions - 1; before sp_rope_turn is given any of them. */
sp_status sp_rope_reserve(sp_rope *rope, size_t n_positions);

/* Turns the pairs of each head, in place: x (n_heads, d_head) of one row.
 * direction +1 forward, -1 backward: the transpose of a rotation turns the other way. */
void sp_rope_turn(float *x, const sp_rope *rope, size_t position, size_t n_heads, size_t d_head, int direction);

#endif
