/* linear.h: products with frozen weights, which stay as the model's file stores them.
 *
 * A few rows meet the stored weights directly. For many rows a block of weights is expanded into a panel that fits the second-level
 * cache (panels.h), multiplied with every row while it is there, and forgotten: expanding costs a few per cent of the product, and
 * no copy of the model in f32 has to exist. */
#ifndef SP_TENSOR_LINEAR_H
#define SP_TENSOR_LINEAR_H

#include "base/arena.h"
#include "softprompt.h"
#include "tensor/quants.h"

enum { SP_MAX_PARTS = 3 };

/* One tensor of a model: rows of n_in numbers, one for each output. */
typedef struct sp_weight_part {
    const sp_row_reader *reader;
    const void *rows;
    size_t row_bytes, n_rows;
} sp_weight_part;

/* W (n_out, n_in): tensors that are multiplied with the same input, one below the other, as one product. */
typedef struct sp_weight {
    size_t n_in, n_parts;
    sp_weight_part parts[SP_MAX_PARTS];
} sp_weight;

size_t sp_weight_n_out(const sp_weight *w);

/* Parts first .. first + n of w. */
sp_weight sp_weight_select(const sp_weight *w, size_t first, size_t n);

/* Y (n, n_out) = X (n, n_in) W^T, or Y += with `accumulate`. Rows of X stand ldx apart, rows of Y ldy; they must not overlap. n 0
 * is fine. compute: F32, or BF16, which rounds X and W (and sums in f32); a few rows are always f32. Scratch is given back. Each
 * number is the work of one thread: the bytes do not depend on how many there are. */
sp_status sp_linear(float *y, size_t ldy, const float *x, size_t ldx, const sp_weight *w, size_t n, bool accumulate,
                    sp_compute compute, sp_arena *scratch);

/* dX (n, n_in) = dY (n, n_out) W, or dX += with `accumulate`. Weights are frozen, so this is the whole backward. */
sp_status sp_linear_backward(float *dx, size_t lddx, const float *dy, size_t lddy, const sp_weight *w, size_t n, bool accumulate,
                             sp_compute compute, sp_arena *scratch);

#endif
