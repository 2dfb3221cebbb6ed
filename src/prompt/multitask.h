/* multitask.h: one prompt for several tasks: what they share, times a matrix of low rank for each.
 *
 *     prompt of task k = shared * (cols_k rows_k)        elementwise;  (P, d) = (P, d) * (P, r)(r, d)
 *
 * Wang et al., arXiv 2303.02861 (rank 1 there); PEFT's MULTITASK_PROMPT_TUNING. */
#ifndef SP_PROMPT_MULTITASK_H
#define SP_PROMPT_MULTITASK_H

#include <stddef.h>

typedef struct sp_multitask_shape {
    size_t num_tasks, num_virtual_tokens, num_ranks, d_model;
} sp_multitask_shape;

/* What is learnt, as three arrays; of the weights, or of their gradient. */
typedef struct sp_multitask_parts {
    float *shared; /* (num_virtual_tokens, d_model) PEFT's prompt_embeddings */
    float *cols;   /* (num_tasks, num_virtual_tokens, num_ranks) prefix_task_cols */
    float *rows;   /* (num_tasks, num_ranks, d_model) prefix_task_rows */
} sp_multitask_parts;

/* prompts (num_tasks, num_virtual_tokens, d_model) written; must not overlap the weights. */
void sp_multitask_forward(float *prompts, const sp_multitask_parts *weights, const sp_multitask_shape *shape);

/* gradient += that of the weights, from d_prompts (num_tasks, num_virtual_tokens, d_model). */
void sp_multitask_backward(const sp_multitask_parts *gradient, const float *d_prompts, const sp_multitask_parts *weights,
                           const sp_multitask_shape *shape);

#endif
