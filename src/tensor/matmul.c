/* matmul.c: linear layers as calls of dnnl_sgemm (row-major). */
#include "tensor/matmul.h"

#include <oneapi/dnnl/dnnl.h>

#include "base/status.h"

static sp_status product(char transpose_w, float *y, size_t ldy, const float *x, size_t ldx, const float *w, size_t ldw, size_t n,
                         size_t n_columns, size_t n_inner, bool accumulate)
{
    if (n == 0 || n_columns == 0) return SP_OK;
    dnnl_status_t status = dnnl_sgemm('N', transpose_w, (dnnl_dim_t)n, (dnnl_dim_t)n_columns, (dnnl_dim_t)n_inner, 1, x,
                                      (dnnl_dim_t)ldx, w, (dnnl_dim_t)ldw, accumulate ? 1.0f : 0.0f, y, (dnnl_dim_t)ldy);
    if (status == dnnl_success) return SP_OK;
    if (status == dnnl_out_of_memory) return sp_fail_no_memory(n * n_columns * sizeof *y);
    return sp_fail(SP_ERR_UNSUPPORTED, "oneDNN refused a matrix product of %zu x %zu x %zu (status %d)", n, n_columns, n_inner,
                   (int)status);
}

sp_status sp_linear(float *y, size_t ldy, const float *x, size_t ldx, const float *w, size_t n, size_t n_out, size_t n_in,
                    bool accumulate)
{
    return product('T', y, ldy, x, ldx, w, n_in, n, n_out, n_in, accumulate);
}

sp_status sp_linear_backward(float *dx, size_t lddx, const float *dy, size_t lddy, const float *w, size_t n, size_t n_out,
                             size_t n_in, bool accumulate)
{
    return product('N', dx, lddx, dy, lddy, w, n_in, n, n_in, n_out, accumulate);
}
