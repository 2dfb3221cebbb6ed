/* kernels.c: the inner loops on vectors of the width that this compilation's flags allow (tensor/vec.h).
 * SP_KERNEL_VARIANT is the rung's name. */
#include "tensor/kernels.h"

#include <math.h>

#include "tensor/exp.h"
#include "tensor/vec.h"

/* Lane i of `halved` is lane i + distance of v, for i < distance: sums and maxima over lanes take log2 LANES steps of it. */
#if LANES == 16
#define FOLD(v, distance)                                                                                                          \
    __builtin_shufflevector(v, v, (distance), (distance) + 1, (distance) + 2, (distance) + 3, (distance) + 4, (distance) + 5,      \
                            (distance) + 6, (distance) + 7, 8, 9, 10, 11, 12, 13, 14, 15)
#elif LANES == 8
#define FOLD(v, distance) __builtin_shufflevector(v, v, (distance), (distance) + 1, (distance) + 2, (distance) + 3, 4, 5, 6, 7)
#else
#define FOLD(v, distance) __builtin_shufflevector(v, v, (distance), (distance) + 1, 2, 3)
#endif

INLINE float sum_of(vec v)
{
#if LANES == 16
    v += FOLD(v, 8);
#endif
#if LANES >= 8
    v += FOLD(v, 4);
#endif
    v += FOLD(v, 2);
    return v[0] + v[1];
}

INLINE float max_lane(vec v)
{
#if LANES == 16
    v = max_of(v, FOLD(v, 8));
#endif
#if LANES >= 8
    v = max_of(v, FOLD(v, 4));
#endif
    v = max_of(v, FOLD(v, 2));
    return v[0] > v[1] ? v[0] : v[1];
}

/* ---- small matrix products ---- */

/* Blocks of sums stand in registers: AVX-512 has 32 of them, the others 16. Six rows by two vectors reach the rate of the
 * multiplier on both; with fewer rows a block is wider, so that a matrix of which each number is used only once or twice streams
 * by in long pieces. */
#if LANES == 16
enum { FEW_ROWS = 6, LEAST_ROWS = 3 };
#else
enum { FEW_ROWS = 3, LEAST_ROWS = 1 };
#endif
enum { FEW_VECTORS = 4, LEAST_VECTORS = 8, MOST_ROWS = 6, MOST_ROWS_OF_ONE = 12, PREFETCH_ROWS = 8 };

/* C (rows, vectors * LANES), rows and vectors being constants at each call; with `tail`, one vector of only that many lanes. */
INLINE void gemm_block(size_t rows, size_t vectors, float *c, size_t ldc, const float *a, size_t a_row, size_t a_col,
                       const float *b, size_t ldb, size_t k, size_t tail, bool accumulate)
{
    vec sum[MOST_ROWS_OF_ONE][LEAST_VECTORS]; /* of which rows * vectors are used */
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < vectors; j++) sum[i][j] = (vec){0};
    for (size_t l = 0; l < k; l++, b += ldb) {
        vec column[LEAST_VECTORS];
        for (size_t j = 0; j < vectors; j++) column[j] = tail ? load_part(b, tail) : load(b + j * LANES);
        if (vectors >= FEW_VECTORS) /* B streams by, in rows too short for the processor to foresee the next */
            for (size_t j = 0; j < vectors * LANES; j += 16) __builtin_prefetch(b + PREFETCH_ROWS * ldb + j);
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
        if ((n) <= most) gemm_block((n), vectors, c, ldc, a, a_row, a_col, b, ldb, k, tail, accumulate);                           \
        break;
    for (size_t blocks = (m + most - 1) / most, rows; m > 0; blocks--, m -= rows, c += rows * ldc, a += rows * a_row) {
        rows = (m + blocks - 1) / blocks;
        switch (rows) {
            ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
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
    if (m <= 2 * FEW_ROWS) COLUMNS(FEW_ROWS, FEW_VECTORS);
    COLUMNS(MOST_ROWS, 2);
    COLUMNS(MOST_ROWS_OF_ONE, 1);
#undef COLUMNS
    if (n) gemm_columns(MOST_ROWS, 1, c, ldc, a, a_row, a_col, b, ldb, m, k, n, accumulate);
}

/* ---- softmax ---- */

INLINE float max_over(const float *x, size_t n)
{
    float largest = x[0];
    size_t i = 0;
    if (n >= LANES) {
        vec best = load(x);
        for (i = LANES; i + LANES <= n; i += LANES) best = max_of(best, load(x + i));
        largest = max_lane(best);
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

/* The first n lanes. */
INLINE ivec first_lanes(size_t n)
{
    ivec lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = i;
    return lanes < (int32_t)n;
}

static float max(const float *x, size_t n)
{
    vec best = broadcast(x[0]);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) best = max_of(best, load(x + i));
    if (i < n) best = max_of(best, choose(first_lanes(n - i), load(x + i), best));
    return max_lane(best);
}

static float softmax(float *s, float shift, size_t n, size_t n_padded)
{
    vec sum = {0};
    size_t i = 0;
    float shift_log2 = shift * LOG2_E;
    for (; i + LANES <= n; i += LANES) {
        vec e = exp_below(load(s + i), shift_log2);
        sum += e;
        store(s + i, e);
    }
    if (i < n) {
        vec e = (vec)(first_lanes(n - i) & (ivec)exp_below(load(s + i), shift_log2));
        sum += e;
        store(s + i, e);
        i += LANES;
    }
    for (; i < n_padded; i += LANES) store(s + i, (vec){0});
    return sum_of(sum);
}

static void softmax_backward(float *s, float *dp, float lse, float dot, size_t n, size_t n_padded)
{
    size_t i = 0;
    float lse_log2 = lse * LOG2_E;
    for (; i + LANES <= n; i += LANES) {
        vec p = exp_below(load(s + i), lse_log2);
        store(s + i, p);
        store(dp + i, p * (load(dp + i) - dot));
    }
    if (i < n) {
        ivec mask = first_lanes(n - i);
        vec p = exp_below(load(s + i), lse_log2), ds = p * (load(dp + i) - dot);
        store(s + i, (vec)(mask & (ivec)p));
        store(dp + i, (vec)(mask & (ivec)ds));
        i += LANES;
    }
    for (; i < n_padded; i += LANES) {
        store(s + i, (vec){0});
        store(dp + i, (vec){0});
    }
}

static void scale(float *y, const float *x, float factor, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, factor * load(x + i));
    for (; i < n; i++) y[i] = factor * x[i];
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

/* ---- moving ---- */

/* Squares of 16 by 16: whole cache lines on both sides, and few enough to stay in the first-level cache. */
static void transpose(float *out, size_t ldo, const float *in, size_t ldi, size_t n_rows, size_t n_columns)
{
    enum { SIDE = 16 };
    for (size_t r = 0; r < n_rows; r += SIDE)
        for (size_t c = 0; c < n_columns; c += SIDE) {
            size_t r_end = n_rows - r < SIDE ? n_rows : r + SIDE, c_end = n_columns - c < SIDE ? n_columns : c + SIDE;
            for (size_t j = c; j < c_end; j++)
                for (size_t i = r; i < r_end; i++) out[j * ldo + i] = in[i * ldi + j];
        }
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

/* ---- LayerNorm ---- */

static float mean_of(const float *x, size_t d)
{
    vec sum = {0};
    size_t i = 0;
    for (; i + LANES <= d; i += LANES) sum += load(x + i);
    float total = sum_of(sum);
    for (; i < d; i++) total += x[i];
    return total / (float)d;
}

/* The variance as the mean of squares behind the subtraction: taken as a difference of squares it would cancel. */
static float layer_norm(float *y, const float *x, const float *w, const float *b, float eps, size_t d)
{
    float mean = mean_of(x, d);
    for (size_t i = 0; i < d; i++) y[i] = x[i] - mean;
    float rstd = 1 / sqrtf(dot(y, y, d) / (float)d + eps);
    for (size_t i = 0; i < d; i++) y[i] = w[i] * (y[i] * rstd) + b[i];
    return rstd;
}

static void layer_norm_backward(float *dx, const float *dy, const float *x, const float *w, float rstd, size_t d)
{
    float mean = mean_of(x, d);
    vec g_sum = {0}, gu_sum = {0};
    size_t i = 0;
    for (; i + LANES <= d; i += LANES) {
        vec g = load(dy + i) * load(w + i);
        g_sum += g;
        gu_sum += g * (load(x + i) - mean);
    }
    float g_total = sum_of(g_sum), gu_total = sum_of(gu_sum);
    for (; i < d; i++) {
        g_total += dy[i] * w[i];
        gu_total += dy[i] * w[i] * (x[i] - mean);
    }
    float g_mean = g_total / (float)d, along = gu_total * rstd * rstd / (float)d;
    for (i = 0; i < d; i++) dx[i] += rstd * (dy[i] * w[i] - g_mean - (x[i] - mean) * along);
}

/* ---- activations ---- */

/* All are z p(z): the logistic function of z, or of a polynomial close to the normal distribution's integral, or that itself. */
#define GELU_LINEAR 1.5957691f   /* 2 sqrt(2 / pi) */
#define GELU_CUBIC 0.071354816f  /* times 0.044715 */
#define DENSITY_AT_0 0.39894228f /* 1 / sqrt(2 pi) */

INLINE vec sigmoid(vec z)
{
    return 1 / (1 + exp_vec(-z));
}

/* Phi(-|z|) / exp(-z^2 / 2) is smooth and falls like 1 / |z|: a polynomial in t = 1 / (1 + 0.27 |z|), fitted to relative error
 * 3e-8 up to |z| = 14, where the exponential has ended. So a tail keeps its digits, which 1 - Phi would lose. */
INLINE vec normal_integral(vec z, vec *density)
{
    vec size = max_of(z, -z), t = 1 / (1 + 0.27f * size), e = exp_vec(-0.5f * z * z);
    vec p = t * 2.89153963e-2f - 1.26255854e-1f;
    p = p * t + 1.69292612e-1f;
    p = p * t - 6.86223411e-2f;
    p = p * t + 1.07400358e-1f;
    p = p * t + 7.22399032e-2f;
    p = p * t + 1.01759262e-1f;
    p = p * t + 1.07550493e-1f;
    p = p * t + 1.07720182e-1f;
    vec tail = p * t * e;
    *density = DENSITY_AT_0 * e;
    return choose(z > 0, 1 - tail, tail);
}

/* p(z), and the derivative of z p(z). */
INLINE vec factor_of(vec z, vec *slope, sp_activation kind)
{
    if (kind == SP_GELU) {
        vec density, p = normal_integral(z, &density);
        *slope = p + z * density;
        return p;
    }
    bool gelu = kind == SP_GELU_TANH;
    vec p = sigmoid(gelu ? z * (GELU_LINEAR + GELU_CUBIC * z * z) : z);
    *slope = p * (1 + z * (gelu ? GELU_LINEAR + 3 * GELU_CUBIC * z * z : broadcast(1)) * (1 - p));
    return p;
}

INLINE vec load_some(const float *p, size_t part)
{
    return part ? load_part(p, part) : load(p);
}

INLINE void store_some(float *p, vec v, size_t part)
{
    if (part)
        store_part(p, v, part);
    else
        store(p, v);
}

INLINE void activate(float *h, const float *z, const float *up, size_t n, sp_activation kind)
{
    for (size_t i = 0; i < n; i += LANES) {
        size_t part = n - i < LANES ? n - i : 0;
        vec x = load_some(z + i, part), slope, y = x * factor_of(x, &slope, kind);
        store_some(h + i, up ? y * load_some(up + i, part) : y, part);
    }
}

INLINE void activate_backward(float *z, float *up, const float *dh, size_t n, sp_activation kind)
{
    for (size_t i = 0; i < n; i += LANES) {
        size_t part = n - i < LANES ? n - i : 0;
        vec x = load_some(z + i, part), d = load_some(dh + i, part), slope, p = factor_of(x, &slope, kind);
        store_some(z + i, up ? d * load_some(up + i, part) * slope : d * slope, part);
        if (up) store_some(up + i, d * x * p, part);
    }
}

#define ACTIVATION(name, kind)                                                                                                     \
    static void name(float *h, const float *z, const float *up, size_t n)                                                          \
    {                                                                                                                              \
        activate(h, z, up, n, kind);                                                                                               \
    }                                                                                                                              \
    static void name##_backward(float *z, float *up, const float *dh, size_t n)                                                    \
    {                                                                                                                              \
        activate_backward(z, up, dh, n, kind);                                                                                     \
    }
ACTIVATION(silu, SP_SILU)
ACTIVATION(gelu_tanh, SP_GELU_TANH)
ACTIVATION(gelu, SP_GELU)

/* ---- soft caps ---- */

/* Near 0 an odd polynomial (relative error 4e-9 up to 0.625), beyond it 1 - 2 / (e^2x + 1), which near 0 would be all rounding. */
INLINE vec tanh_vec(vec x)
{
    vec s = x * x, p = s * -5.65997998e-3f + 2.05909788e-2f;
    p = p * s - 5.37210644e-2f;
    p = p * s + 1.33311275e-1f;
    p = p * s - 3.33332605e-1f;
    vec size = max_of(x, -x), far = 1 - 2 / (exp_vec(2 * size) + 1);
    return choose(size < 0.625f, x + x * s * p, choose(x > 0, far, -far));
}

static void soft_cap(float *x, float *slope, float cap, size_t n)
{
    float inverse = 1 / cap;
    for (size_t i = 0; i < n; i += LANES) {
        size_t part = n - i < LANES ? n - i : 0;
        vec t = tanh_vec(inverse * load_some(x + i, part));
        store_some(x + i, cap * t, part);
        if (slope) store_some(slope + i, (1 - t) * (1 + t), part);
    }
}

static void multiply(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] *= x[i];
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
    .max = max,
    .softmax = softmax,
    .softmax_backward = softmax_backward,
    .scale = scale,
    .transpose = transpose,
    .dot = dot,
    .rms_norm = rms_norm,
    .rms_norm_backward = rms_norm_backward,
    .layer_norm = layer_norm,
    .layer_norm_backward = layer_norm_backward,
    .activate = {silu, gelu_tanh, gelu},
    .activate_backward = {silu_backward, gelu_tanh_backward, gelu_backward},
    .soft_cap = soft_cap,
    .multiply = multiply,
    .log_sum_exp = log_sum_exp,
    .exp_scaled = exp_scaled,
};
