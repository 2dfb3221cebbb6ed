/* matmul.h: the large matrix products, f32, on oneDNN, which picks its code for the CPU at run time. */
#ifndef SP_TENSOR_MATMUL_H
#define SP_TENSOR_MATMUL_H

#include "softprompt.h"

/* Keeps signals from the worker threads of the parallel loops (they belong to no handler's business). Call it on the thread that
 * computes, after omp_set_num_threads and before the first product of a pass; one parallel region, no system call after the first.
 */
void sp_linear_shield_workers(void);

/* Y (n, n_out) = X (n, n_in) W^T, or Y += with `accumulate`: a linear layer. W (n_out, n_in), row-major as models store it;
 * rows of X stand ldx apart, rows of Y ldy. Y must not overlap X. n 0 is fine. */
sp_status sp_linear(float *y, size_t ldy, const float *x, size_t ldx, const float *w, size_t n, size_t n_out, size_t n_in,
                    bool accumulate);

/* dX (n, n_in) = dY (n, n_out) W, or dX += with `accumulate`. Weights are frozen, so this is the whole backward. */
sp_status sp_linear_backward(float *dx, size_t lddx, const float *dy, size_t lddy, const float *w, size_t n, size_t n_out,
                             size_t n_in, bool accumulate);

#endif
