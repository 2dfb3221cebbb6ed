/* dense.c: products with weights that are learnt, by the loops that multiply frozen ones.
 *
 * Cost: n n_in n_out multiplications for each of the four that is one; an encoder's are few beside a pass through the model. */
#include "tensor/dense.h"

#include "base/sizes.h"
#include "tensor/kernels.h"
#include "tensor/linear.h"

enum { ROWS_OF_TASK = 64 };

static sp_weight weight_of(const float *w, size_t n_in, size_t n_out)
{
    return (sp_weight){
        .n_in = n_in,
        .n_parts = 1,
        .parts = {{.reader = sp_row_reader_get(GGML_TYPE_F32), .rows = w, .row_bytes = n_in * sizeof *w, .n_rows = n_out}}};
}

sp_status sp_dense(float *y, size_t ldy, const float *x, size_t ldx, const float *w, const float *b, size_t n, size_t n_in,
                   size_t n_out, bool accumulate, sp_arena *scratch)
{
    const sp_weight weight = weight_of(w, n_in, n_out);
    sp_status st = sp_linear(y, ldy, x, ldx, &weight, n, accumulate, SP_COMPUTE_F32, scratch);
    for (size_t r = 0; r < n && b && !st; r++)
        for (size_t i = 0; i < n_out; i++) y[r * ldy + i] += b[i];
    return st;
}

sp_status sp_dense_backward(float *dx, const float *dy, const float *w, size_t n, size_t n_in, size_t n_out, bool accumulate,
                            sp_arena *scratch)
{
    const sp_weight weight = weight_of(w, n_in, n_out);
    return sp_linear_backward(dx, n_in, dy, n_out, &weight, n, accumulate, SP_COMPUTE_F32, scratch);
}

void sp_dense_backward_weight(float *dw, const float *dy, size_t lddy, const float *x, size_t ldx, size_t n, size_t n_in,
                              size_t n_out)
{
    const sp_kernels *kernels = sp_kernels_select();
#pragma omp parallel for schedule(static)
    for (size_t first = 0; first < n_out; first += ROWS_OF_TASK)
        kernels->gemm(dw + first * n_in, n_in, dy + first, 1, lddy, x, ldx, sp_smaller(ROWS_OF_TASK, n_out - first), n_in, n, true);
}

void sp_dense_backward_bias(float *db, const float *dy, size_t n, size_t n_out)
{
    for (size_t i = 0; i < n_out; i++) {
        double sum = 0;
        for (size_t r = 0; r < n; r++) sum += dy[r * n_out + i];
        db[i] += (float)sum;
    }
}
