/* products.c: GFLOPS of the library's products with weights beside oneDNN's sgemm, at the shapes of a training step of
 * SmolLM2-135M.
 *
 *   cmake --build build --target bench_products && build/bench/bench_products [ROWS]     (needs Debian's libdnnl-dev)
 *
 * Interleaved, medians. The library's weights are Q4_1 and are expanded within the time; oneDNN's are f32. */
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "tensor/linear.h"
#include "tensor/panels.h"

enum { RUNS = 15, DEFAULT_ROWS = 512 };

static float *random_floats(size_t n)
{
    float *x = aligned_alloc(64, (n * sizeof *x + 63) / 64 * 64);
    if (!x) exit(1);
    for (size_t i = 0; i < n; i++) x[i] = (float)(rand() % 2001 - 1000) * 1e-3f;
    return x;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *seconds)
{
    qsort(seconds, RUNS, sizeof *seconds, ascending);
    return seconds[RUNS / 2];
}

static void compare(size_t rows, size_t n_out, size_t n_in, bool backward, sp_arena *arena)
{
    size_t from = backward ? n_out : n_in, to = backward ? n_in : n_out, row_bytes = ggml_row_size(GGML_TYPE_Q4_1, (int64_t)n_in);
    float *x = random_floats(rows * from), *w = random_floats(n_out * n_in), *y = random_floats(rows * to);
    void *stored = malloc(n_out * row_bytes);
    if (!stored) exit(1);
    ggml_quantize_chunk(GGML_TYPE_Q4_1, w, stored, 0, (int64_t)n_out, (int64_t)n_in, NULL);
    const sp_weight weight = {n_in, 1, {{sp_row_reader_get(GGML_TYPE_Q4_1), stored, row_bytes, n_out}}};
    double f32[RUNS], bf16[RUNS], peer[RUNS], giga = 2e-9 * (double)rows * (double)n_out * (double)n_in;
    for (int r = 0; r < RUNS; r++) {
        for (int half = 0; half < 2; half++) {
            double begin = sp_seconds();
            sp_compute compute = half ? SP_COMPUTE_BF16 : SP_COMPUTE_F32;
            sp_status st = backward ? sp_linear_backward(y, to, x, from, &weight, rows, false, compute, arena)
                                    : sp_linear(y, to, x, from, &weight, rows, false, compute, arena);
            if (st) exit(1);
            (half ? bf16 : f32)[r] = sp_seconds() - begin;
        }
        double begin = sp_seconds();
        dnnl_sgemm('N', backward ? 'N' : 'T', (dnnl_dim_t)rows, (dnnl_dim_t)to, (dnnl_dim_t)from, 1, x, (dnnl_dim_t)from, w,
                   (dnnl_dim_t)n_in, 0, y, (dnnl_dim_t)to);
        peer[r] = sp_seconds() - begin;
    }
    printf("%-8s %4zu x %4zu x %4zu   f32 %6.1f   bf16 %6.1f   oneDNN f32 %6.1f GFLOPS\n", backward ? "backward" : "forward", rows,
           to, from, giga / median(f32), giga / median(bf16), giga / median(peer));
    free(x);
    free(w);
    free(y);
    free(stored);
}

int main(int argc, char **argv)
{
    static const size_t shapes[][2] = {{960, 576}, {576, 576}, {3072, 576}, {576, 1536}};
    size_t rows = argc > 1 ? strtoul(argv[1], NULL, 10) : DEFAULT_ROWS;
    sp_arena *arena;
    if (sp_arena_create(&arena)) return 1;
    printf("%s, %d threads\n", sp_panels_select()->name, omp_get_max_threads());
    for (int backward = 0; backward < 2; backward++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) compare(rows, shapes[s][0], shapes[s][1], backward, arena);
    sp_arena_free(arena);
    return 0;
}
