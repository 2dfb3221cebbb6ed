/* kernels.h: the inner loops, once for each rung of the ladder of CPU features.
 *
 * kernels.c is compiled several times, with other compiler flags each time; sp_kernels_select picks at run time. A rung may be
 * faster, never different in meaning: tests compare all of them with plain loops in double.
 * SOFTPROMPT_KERNELS=generic|avx2|avx512 in the environment forces a rung (one that the CPU has). */
#ifndef SP_TENSOR_KERNELS_H
#define SP_TENSOR_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum sp_activation {
    SP_SILU,      /* z / (1 + exp(-z)); before a gate: SwiGLU, arXiv 2002.05202 */
    SP_GELU_TANH, /* z sigmoid(t), t = 2 sqrt(2 / pi) (z + 0.044715 z^3): close to the next one. arXiv 1606.08415 */
    SP_GELU,      /* z Phi(z), Phi being the normal distribution's integral */
    SP_N_ACTIVATIONS
} sp_activation;

typedef struct sp_kernels {
    const char *name;
    size_t lanes; /* floats in a vector: what callers may round lengths up to where memory allows */

    /* C (m, n) = A (m, k) B (k, n), or C += with `accumulate`. Row-major; A by strides, so a transposed A is the same array:
     * element (i, l) of A stands at a[i * a_row + l * a_col]. For the small products of attention; C must not overlap. */
    void (*gemm)(float *c, size_t ldc, const float *a, size_t a_row, size_t a_col, const float *b, size_t ldb, size_t m, size_t n,
                 size_t k, bool accumulate);

    /* Softmax of a row of scores, in place, given a shift not below their maximum or hardly: s_i <- exp(s_i - shift) for i < n,
     * zero for n <= i < n_padded. Returns the sum. `max` is the largest of n >= 1 scores. Rows are worked on in whole vectors: s
     * has room for n and n_padded rounded up to `lanes`, and what stands there is lost. */
    float (*max)(const float *s, size_t n);
    float (*softmax)(float *s, float shift, size_t n, size_t n_padded);

    /* The weights again from their scores and ln sum exp, and softmax's backward: p_i = exp(s_i - lse), in s;
     * ds_i = p_i (dp_i - dot), in dp, where `dot` is the sum of p_j dp_j over the row. Zero for n <= i < n_padded; in whole
     * vectors, too. */
    void (*softmax_backward)(float *s, float *dp, float lse, float dot, size_t n, size_t n_padded);

    /* y = factor x; y may be x. */
    void (*scale)(float *y, const float *x, float factor, size_t n);

    /* out (n_columns, n_rows) = in (n_rows, n_columns), transposed; rows ldo and ldi apart. */
    void (*transpose)(float *out, size_t ldo, const float *in, size_t ldi, size_t n_rows, size_t n_columns);

    float (*dot)(const float *a, const float *b, size_t n);

    /* y = w * x / sqrt(mean(x^2) + eps). RMSNorm, arXiv 1910.07467. y, x, w (d). Returns 1 / rms, which backward reads. */
    float (*rms_norm)(float *y, const float *x, const float *w, float eps, size_t d);

    /* dx += dL/dx. With g = dy * w and u = x * rrms:  dx_i += rrms * (g_i - u_i * mean(g * u)). */
    void (*rms_norm_backward)(float *dx, const float *dy, const float *x, const float *w, float rrms, size_t d);

    /* y = w * (x - mean) / sqrt(variance + eps) + b. LayerNorm, arXiv 1607.06450. Returns 1 / sqrt(variance + eps), which backward
     * reads; the mean it takes again. */
    float (*layer_norm)(float *y, const float *x, const float *w, const float *b, float eps, size_t d);

    /* dx += dL/dx. With g = dy * w and u = (x - mean) * rstd:  dx_i += rstd * (g_i - mean(g) - u_i * mean(g * u)). */
    void (*layer_norm_backward)(float *dx, const float *dy, const float *x, const float *w, float rstd, size_t d);

    /* h = a(z) * up, or a(z) where up is NULL, by sp_activation. All (n). */
    void (*activate[SP_N_ACTIVATIONS])(float *h, const float *z, const float *up, size_t n);

    /* z and up become their own gradients: dup = dh a(z), dz = dh up a'(z), up being 1 where it is NULL. */
    void (*activate_backward[SP_N_ACTIVATIONS])(float *z, float *up, const float *dh, size_t n);

    /* x <- cap tanh(x / cap), for caps above 0: a soft cap (arXiv 2408.00118). slope, where not NULL: its derivative. All (n). */
    void (*soft_cap)(float *x, float *slope, float cap, size_t n);

    /* y *= x */
    void (*multiply)(float *y, const float *x, size_t n);

    /* ln sum exp(x), n >= 1, f64 accumulation over blocks: vocabularies are long. */
    double (*log_sum_exp)(const float *x, size_t n);

    /* x_i <- scale * exp(x_i - lse) */
    void (*exp_scaled)(float *x, float lse, float scale, size_t n);
} sp_kernels;

/* The rung in use: the best that this CPU has, decided once. */
const sp_kernels *sp_kernels_select(void);

/* All rungs that this CPU can run, generic first; for tests. Returns how many were written (at most 3). */
size_t sp_kernels_list(const sp_kernels *out[3]);

#endif
