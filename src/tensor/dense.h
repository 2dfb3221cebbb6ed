/* dense.h: linear layers whose weights are learnt: products and their gradients, for the encoders of P-tuning and of a projected
 * prefix. linear.h is for weights that are frozen.
 *
 * Matrices are row-major, W (n_out, n_in) as torch.nn.Linear has it. n counts virtual tokens: dozens. Every number is the work of
 * one thread, in one order: the bytes do not depend on how many threads there are. Calls that take an arena fail with MEMORY only,
 * and give their scratch back. */
#ifndef SP_TENSOR_DENSE_H
#define SP_TENSOR_DENSE_H

#include "base/arena.h"
#include "softprompt.h"

/* Y (n, n_out) = X (n, n_in) W^T + b, or Y += with `accumulate`. Rows of Y stand ldy apart, rows of X ldx. b (n_out) may be NULL.
 */
sp_status sp_dense(float *y, size_t ldy, const float *x, size_t ldx, const float *w, const float *b, size_t n, size_t n_in,
                   size_t n_out, bool accumulate, sp_arena *scratch);

/* dX (n, n_in) = dY (n, n_out) W, or dX += with `accumulate`. */
sp_status sp_dense_backward(float *dx, const float *dy, const float *w, size_t n, size_t n_in, size_t n_out, bool accumulate,
                            sp_arena *scratch);

/* dW (n_out, n_in) += dY^T X. Rows of dY (n, n_out) stand lddy apart, rows of X ldx. */
void sp_dense_backward_weight(float *dw, const float *dy, size_t lddy, const float *x, size_t ldx, size_t n, size_t n_in,
                              size_t n_out);

/* db (n_out) += the sum of dY's rows. */
void sp_dense_backward_bias(float *db, const float *dy, size_t n, size_t n_out);

#endif
