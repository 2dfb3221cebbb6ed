/* penalizer.h: how far a prompt's keys reach beyond a bound that they cannot be projected onto, because they come from embeddings,
 * through the model, or from a network: a penalty, and its gradient by the prompt's rows.
 *
 * Of one key head, with the keys k_j (n, d_head) of the prompt as attention reads them, behind RoPE, their mean c, and the largest
 * scale |q| of the queries measured:
 *
 *     bound_j = max scale |q| |k_j - c|
 *     penalty = mean over heads and virtual tokens of max(0, bound_j / max_logit - 1)^2
 *
 * the quadratic penalty of the bound that sp_key_bound_project holds (without directions): convex in the keys, with a gradient that
 * is continuous, zero where every key is inside and there alone, and the longest keys weigh most, as it is the largest that the
 * criterion asks for. Of shares of max_logit, so that a weight means the same whatever that is. Queries are taken for constants, as
 * those of a bound are, and measured again now and then. */
#ifndef SP_PROMPT_PENALIZER_H
#define SP_PROMPT_PENALIZER_H

#include "prompt/key_bound.h"

typedef struct sp_penalizer sp_penalizer; /* an engine of its own: a pass over the prompt alone */

/* For the rows of `prompt`, any task's of them, or of another of its kind. Both must outlive it. */
sp_status sp_penalizer_create(sp_penalizer **out, sp_model *model, const sp_prompt *prompt);
void sp_penalizer_free(sp_penalizer *penalizer);

/* *keys_values (n_keys, 2 n_layer n_head_kv d_head), the layout of sp_prompt_keys_values: what attention reads of a prompt of these
 * rows. The penalizer's, until its next call, or the rows themselves. */
sp_status sp_penalizer_keys_values(const float **keys_values, sp_penalizer *penalizer, const float *rows);

/* *penalty of these rows; d_rows, as the rows are, += weight times its gradient. The bound's rank is d_head; heads without a norm
 * count 0. Cost: forward and backward over the prompt's rows; of keys and values next to nothing. */
sp_status sp_penalizer_add(double *penalty, float *d_rows, sp_penalizer *penalizer, const sp_key_bound *bound, const float *rows,
                           double weight);

#endif
