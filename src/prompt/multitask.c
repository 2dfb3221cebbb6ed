/* multitask.c: the prompts of several tasks from what they share and from each one's factors, and the way back.
 * Cost: ranks + 1 multiplications a number of every task's prompt, nothing beside a pass through the model. */
#include "prompt/multitask.h"

/* Element (p, i) of one task's product cols rows. */
static float product_at(const float *cols, const float *rows, size_t p, size_t i, const sp_multitask_shape *s)
{
    float sum = 0;
    for (size_t r = 0; r < s->num_ranks; r++) sum += cols[p * s->num_ranks + r] * rows[r * s->d_model + i];
    return sum;
}

void sp_multitask_forward(float *prompts, const sp_multitask_parts *weights, const sp_multitask_shape *s)
{
    for (size_t k = 0; k < s->num_tasks; k++) {
        const float *cols = weights->cols + k * s->num_virtual_tokens * s->num_ranks;
        const float *rows = weights->rows + k * s->num_ranks * s->d_model;
        for (size_t p = 0; p < s->num_virtual_tokens; p++)
            for (size_t i = 0; i < s->d_model; i++)
                *prompts++ = weights->shared[p * s->d_model + i] * product_at(cols, rows, p, i, s);
    }
}

/* With g = dL/dprompt of a task and w its product:
 *   dshared += g * w;  dw = g * shared;  dcols += dw rows^T;  drows += cols^T dw. */
void sp_multitask_backward(const sp_multitask_parts *gradient, const float *d_prompts, const sp_multitask_parts *weights,
                           const sp_multitask_shape *s)
{
    const size_t d = s->d_model;
    for (size_t k = 0; k < s->num_tasks; k++) {
        const size_t first_col = k * s->num_virtual_tokens * s->num_ranks, first_row = k * s->num_ranks * d;
        const float *cols = weights->cols + first_col, *rows = weights->rows + first_row;
        for (size_t p = 0; p < s->num_virtual_tokens; p++, d_prompts += d) {
            const float *shared = weights->shared + p * d;
            for (size_t i = 0; i < d; i++) gradient->shared[p * d + i] += d_prompts[i] * product_at(cols, rows, p, i, s);
            for (size_t r = 0; r < s->num_ranks; r++) {
                const float col = cols[p * s->num_ranks + r], *row = rows + r * d;
                float *d_row = gradient->rows + first_row + r * d;
                double d_col = 0;
                for (size_t i = 0; i < d; i++) {
                    const float d_product = d_prompts[i] * shared[i];
                    d_col += (double)d_product * row[i];
                    d_row[i] += col * d_product;
                }
                gradient->cols[first_col + p * s->num_ranks + r] += (float)d_col;
            }
        }
    }
}
