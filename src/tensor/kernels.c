/* kernels.c: the inner loops on vectors of the width that this compilation's flags allow (tensor/vec.h).
 * SP_KERNEL_VARIANT is the rung's name. */
#include "tensor/kernels.h"

#include <math.h>

#include "tensor/vec.h"

INLINE float sum_of(vec v)
{
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

/* Lanes of a where the mask is set, of b elsewhere: comparisons give such masks. */
INLINE vec choose(ivec mask, vec a, vec b)
{
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}

INLINE vec max_of(vec a, vec b)
{
    return choose(a > b, a, b);
}

/* ---- exp: 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, Taylor to r^7 / 7!. Relative error below 2.5e-7 on [-87, 88];
 * arguments outside are moved to the nearer end, so that e^-1000 is 1.6e-38, not 0: no result is ever infinite or denormal. ---- */
INLINE vec exp_vec(vec x)
{
    const vec low = broadcast(-87.0f), high = broadcast(88.0f);
    const float round_shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits */
    x = choose(x < low, low, x);           /* a NaN stays one */
    x = choose(x > high, high, x);
    vec shifted = x * 1.44269504088896341f + round_shift, n = shifted - round_shift;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts: the first has few bits, its product is exact */
    vec p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    ivec power = (((ivec)shifted - (ivec)broadcast(round_shift)) + 127) << 23;
    return p * (vec)power;
}

/* ---- small matrix products ---- */

/* Blocks of sums stand in registers: AVX-512 has 32 of them, the others 16. Six rows by two vectors reach the rate of the
 * multiplier on both; with fewer rows a block is wider, so that a matrix of which each number is used only once or twice streams
 * by in long pieces. */
#if LANES == 16
enum { MAX_ROWS = 6, FEW_ROWS = 6, FEW_VECTORS = 4, LEAST_ROWS = 3, LEAST_VECTORS = 8 };
#else
enum { MAX_ROWS = 6, FEW_ROWS = 3, FEW_VECTORS = 4, LEAST_ROWS = 1, LEAST_VECTORS = 8 };
#endif

/* C (rows, vectors * LANES), rows and vectors being constants at each call; with `tail`, one vector of only that many lanes. */
INLINE void gemm_block(size_t rows, size_t vectors, float *c, size_t ldc, const float *a, size_t a_row, size_t a_col,
                       const float *b, size_t ldb, size_t k, size_t tail, bool accumulate)
{
    vec sum[MAX_ROWS][LEAST_VECTORS]; /* of which rows * vectors are used */
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < vectors; j++) sum[i][j] = (vec){0};
    for (size_t l = 0; l < k; l++, b += ldb) {
        vec column[LEAST_VECTORS];
        for (size_t j = 0; j < vectors; j++) column[j] = tail ? load_part(b, tail) : load(b + j * LANES);
        for (size_t i = 0; i < rows; i++) {
            vec x = broadcast(a[i * a_row + l * a_col]);
            for (size_t j = 0; j < vectors; j++) sum[i][j] += x * column[j];
        }
    }
    for (size_t i = 0; i < rows; i++, c += ldc)
        for (size_t j = 0; j < vectors; j++) {
            if (tail)
                store_part(c, accumulate ? sum[i][j] + load_part(c, tail) : sum[i][j], tail);
            else
                store(c + j * LANES, accumulate ? sum[i][j] + load(c + j * LANES) : sum[i][j]);
        }
}

/* All rows of some columns, in blocks of at most `most` rows, as equal as can be: 8 rows are 4 and 4. */
INLINE void gemm_columns(size_t most, size_t vectors, float *c, size_t ldc, const float *a, size_t a_row, size_t a_col,
                         const float *b, size_t ldb, size_t m, size_t k, size_t tail, bool accumulate)
{
#define ROWS(n)                                                                                                                    \
    case n:                                                                                                                        \
        if (n <= most) gemm_block(n, vectors, c, ldc, a, a_row, a_col, b, ldb, k, tail, accumulate);                               \
        break;
    for (size_t blocks = (m + most - 1) / most, rows; m > 0; blocks--, m -= rows, c += rows * ldc, a += rows * a_row) {
        rows = (m + blocks - 1) / blocks;
        switch (rows) {
            ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
        }
    }
#undef ROWS
}

static void gemm(float *c, size_t ldc, const float *a, size_t a_row, size_t a_col, const float *b, size_t ldb, size_t m, size_t n,
                 size_t k, bool accumulate)
{
#define COLUMNS(most, vectors)                                                                                                     \
    for (size_t step = (vectors)*LANES; n >= step; n -= step, c += step, b += step)                                                \
    gemm_columns(most, vectors, c, ldc, a, a_row, a_col, b, ldb, m, k, 0, accumulate)
    if (m <= LEAST_ROWS) COLUMNS(LEAST_ROWS, LEAST_VECTORS);
    if (m <= FEW_ROWS) COLUMNS(FEW_ROWS, FEW_VECTORS);
    COLUMNS(MAX_ROWS, 2);
    COLUMNS(MAX_ROWS, 1);
#undef COLUMNS
    if (n) gemm_columns(MAX_ROWS, 1, c, ldc, a, a_row, a_col, b, ldb, m, k, n, accumulate);
}

/* ---- softmax ---- */

INLINE float max_over(const float *x, size_t n)
{
    float largest = x[0];
    size_t i = 0;
    if (n >= LANES) {
        vec best = load(x);
        for (i = LANES; i + LANES <= n; i += LANES) best = max_of(best, load(x + i));
        for (int j = 0; j < LANES; j++) largest = best[j] > largest ? best[j] : largest;
    }
    for (; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

/* x_i <- scale * exp(x_i - shift); returns their sum. */
INLINE float exp_shifted(float *x, float shift, float scale, size_t n)
{
    vec sum = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec e = scale * exp_vec(load(x + i) - shift);
        sum += e;
        store(x + i, e);
    }
    if (i < n) {
        vec e = scale * exp_vec(load_part(x + i, n - i) - shift);
        store_part(x + i, e, n - i);
        for (size_t j = 0; i + j < n; j++) sum[0] += e[j];
    }
    return sum_of(sum);
}

static float softmax_row(float *s, size_t n, size_t n_padded)
{
    /* exp(89) overflows f32; the maximum cancels in the ratio, so only the range changes. */
    float largest = max_over(s, n), sum = exp_shifted(s, largest, 1, n), scale = 1 / sum;
    for (size_t i = 0; i < n; i++) s[i] *= scale;
    for (size_t i = n; i < n_padded; i++) s[i] = 0;
    return largest + logf(sum);
}

static void softmax_again(float *s, float lse, size_t n, size_t n_padded)
{
    exp_shifted(s, lse, 1, n);
    for (size_t i = n; i < n_padded; i++) s[i] = 0;
}

static void softmax_backward(float *dp, const float *p, float dot, size_t n)
{
    for (size_t i = 0; i < n; i++) dp[i] = p[i] * (dp[i] - dot);
}

static void exp_scaled(float *x, float lse, float scale, size_t n)
{
    exp_shifted(x, lse, scale, n);
}

static double log_sum_exp(const float *x, size_t n)
{
    enum { BLOCK = 1024 };
    float largest = max_over(x, n), block[BLOCK];
    double sum = 0;
    for (size_t i = 0; i < n; i += BLOCK) {
        size_t size = n - i < BLOCK ? n - i : BLOCK;
        memcpy(block, x + i, size * sizeof *x);
        sum += exp_shifted(block, largest, 1, size);
    }
    return (double)largest + log(sum);
}

/* ---- sums ---- */

static float dot(const float *a, const float *b, size_t n)
{
    vec sum0 = {0}, sum1 = {0};
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        sum0 += load(a + i) * load(b + i);
        sum1 += load(a + i + LANES) * load(b + i + LANES);
    }
    float sum = 0;
    for (; i < n; i++) sum += a[i] * b[i];
    return sum + sum_of(sum0 + sum1);
}

/* ---- RMSNorm ---- */

static float rms_norm(float *y, const float *x, const float *w, float eps, size_t d)
{
    float rrms = 1 / sqrtf(dot(x, x, d) / (float)d + eps);
    for (size_t i = 0; i < d; i++) y[i] = w[i] * (x[i] * rrms);
    return rrms;
}

static void rms_norm_backward(float *dx, const float *dy, const float *x, const float *w, float rrms, size_t d)
{
    vec sum = {0};
    size_t i = 0;
    for (; i + LANES <= d; i += LANES) sum += load(dy + i) * load(w + i) * load(x + i);
    float total = sum_of(sum);
    for (; i < d; i++) total += dy[i] * w[i] * x[i];
    float along = total * rrms * rrms / (float)d; /* mean(g * u) * rrms, with one rrms of u left to the loop below */
    for (i = 0; i < d; i++) dx[i] += rrms * (dy[i] * w[i] - x[i] * along);
}

/* ---- SwiGLU ---- */

INLINE vec sigmoid(vec z)
{
    return 1 / (1 + exp_vec(-z));
}

static void swiglu(float *h, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        size_t part = n - i < LANES ? n - i : 0;
        vec g = part ? load_part(gate + i, part) : load(gate + i), u = part ? load_part(up + i, part) : load(up + i);
        vec y = g * sigmoid(g) * u;
        if (part)
            store_part(h + i, y, part);
        else
            store(h + i, y);
    }
}

static void swiglu_backward(float *gate, float *up, const float *dh, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        size_t part = n - i < LANES ? n - i : 0;
        vec g = part ? load_part(gate + i, part) : load(gate + i), u = part ? load_part(up + i, part) : load(up + i);
        vec d = part ? load_part(dh + i, part) : load(dh + i), s = sigmoid(g);
        vec dgate = d * u * s * (1 + g * (1 - s)), dup = d * g * s;
        if (part) {
            store_part(gate + i, dgate, part);
            store_part(up + i, dup, part);
        } else {
            store(gate + i, dgate);
            store(up + i, dup);
        }
    }
}

#define NAME_OF_(variant) #variant
#define NAME_OF(variant) NAME_OF_(variant)
#define TABLE_OF_(variant) sp_kernels_##variant
#define TABLE_OF(variant) TABLE_OF_(variant)

extern const sp_kernels TABLE_OF(SP_KERNEL_VARIANT);
const sp_kernels TABLE_OF(SP_KERNEL_VARIANT) = {
    .name = NAME_OF(SP_KERNEL_VARIANT),
    .lanes = LANES,
    .gemm = gemm,
    .softmax_row = softmax_row,
    .softmax_again = softmax_again,
    .softmax_backward = softmax_backward,
    .dot = dot,
    .rms_norm = rms_norm,
    .rms_norm_backward = rms_norm_backward,
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
    .log_sum_exp = log_sum_exp,
    .exp_scaled = exp_scaled,
};
