/* keyed.h: a data set as a prompt: the machine of constant size that reads it, and grids that keep its points apart. */
#ifndef SP_LAB_KEYED_H
#define SP_LAB_KEYED_H

#include "lab/universal.h"

/* Of shape the grid, d, len and ramp count; n_tokens is the prompt's length, on which nothing else depends. */
sp_status sp_universal_keyed(sp_universal *out, const sp_universal_shape *shape, size_t n_tokens);

/* prompt (n_tokens, d) written: what makes tokens x (n_tokens, d) be answered by y (n_tokens, d), all in [0, 1]. */
void sp_universal_keyed_prompt(double *prompt, const sp_universal_shape *shape, const double *x, const double *y, size_t n_tokens);

/* The smallest grid, a power of two up to 2^max_log2, that puts x (n_points, n) into cells of their own, none of them on a ramp or
 * within half of one beside it. 0: none does. */
size_t sp_universal_separating_grid(const double *x, size_t n_points, size_t n, double ramp, size_t max_log2);

#endif
