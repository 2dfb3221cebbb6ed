/* matmul.c: linear layers as calls of dnnl_sgemm (row-major), but for single rows.
 *
 * oneDNN 2.6 gives a product with one row to a path that sums straight down: the gradient of a prompt lost two digits there
 * (1.3e-4 against f64, where any other path has 1e-5). One row only reads the matrix once anyway, so plain kernels do.
 *
 * Its code for AVX-512 does not survive a signal: a handler that runs in the middle of a product, however short, leaves a wrong
 * result or a broken heap (tests/test_signals.c is the proof). So signals wait until a product is done. */
#include "tensor/matmul.h"

#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <signal.h>

#include "base/status.h"
#include "tensor/kernels.h"

enum { ROW_BLOCK_COLUMNS = 64, ROW_BLOCK_SUM = 256 };

/* y (n_out) = W x, or +=. */
static void row_forward(float *y, const float *x, const float *w, size_t n_out, size_t n_in, bool accumulate)
{
    const sp_kernels *kernels = sp_kernels_select();
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n_out; i++) y[i] = (accumulate ? y[i] : 0) + kernels->dot(w + i * n_in, x, n_in);
}

/* dx (n_in) = W^T dy, or +=: sums of ROW_BLOCK_SUM terms, then their sum. */
static void row_backward(float *dx, const float *dy, const float *w, size_t n_out, size_t n_in, bool accumulate)
{
    const sp_kernels *kernels = sp_kernels_select();
#pragma omp parallel for schedule(static)
    for (size_t first = 0; first < n_in; first += ROW_BLOCK_COLUMNS) {
        size_t n = n_in - first < ROW_BLOCK_COLUMNS ? n_in - first : (size_t)ROW_BLOCK_COLUMNS;
        for (size_t i = 0; i < n_out; i += ROW_BLOCK_SUM)
            kernels->gemm(dx + first, n, dy + i, 0, 1, w + i * n_in + first, n_in, 1, n,
                          n_out - i < ROW_BLOCK_SUM ? n_out - i : (size_t)ROW_BLOCK_SUM, accumulate || i > 0);
    }
}

/* All but those that a thread raises itself, by a fault. */
static void block_signals(sigset_t *before)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
    sigset_t waiting;
    sigfillset(&waiting);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&waiting, faults[i]);
    pthread_sigmask(SIG_BLOCK, &waiting, before);
}

void sp_linear_shield_workers(void)
{
    static _Thread_local bool shielded;
#pragma omp parallel
    if (omp_get_thread_num() > 0 && !shielded) {
        block_signals(NULL);
        shielded = true;
    }
}

static sp_status product(char transpose_w, float *y, size_t ldy, const float *x, size_t ldx, const float *w, size_t ldw, size_t n,
                         size_t n_columns, size_t n_inner, bool accumulate)
{
    if (n == 0 || n_columns == 0) return SP_OK;
    sigset_t before;
    block_signals(&before);
    dnnl_status_t status = dnnl_sgemm('N', transpose_w, (dnnl_dim_t)n, (dnnl_dim_t)n_columns, (dnnl_dim_t)n_inner, 1, x,
                                      (dnnl_dim_t)ldx, w, (dnnl_dim_t)ldw, accumulate ? 1.0f : 0.0f, y, (dnnl_dim_t)ldy);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (status == dnnl_success) return SP_OK;
    if (status == dnnl_out_of_memory) return sp_fail_no_memory(n * n_columns * sizeof *y);
    return sp_fail(SP_ERR_UNSUPPORTED, "oneDNN refused a matrix product of %zu x %zu x %zu (status %d)", n, n_columns, n_inner,
                   (int)status);
}

sp_status sp_linear(float *y, size_t ldy, const float *x, size_t ldx, const float *w, size_t n, size_t n_out, size_t n_in,
                    bool accumulate)
{
    if (n == 1) {
        row_forward(y, x, w, n_out, n_in, accumulate);
        return SP_OK;
    }
    return product('T', y, ldy, x, ldx, w, n_in, n, n_out, n_in, accumulate);
}

sp_status sp_linear_backward(float *dx, size_t lddx, const float *dy, size_t lddy, const float *w, size_t n, size_t n_out,
                             size_t n_in, bool accumulate)
{
    if (n == 1) {
        row_backward(dx, dy, w, n_out, n_in, accumulate);
        return SP_OK;
    }
    return product('N', dx, lddx, dy, lddy, w, n_in, n, n_in, n_out, accumulate);
}
