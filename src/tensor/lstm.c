/* lstm.c: the input's part of all rows is one product; the recurrence is a product of one row a step.
 *
 * Each step reads the whole of W_hh: a memory's width times 16 n_hidden^2 bytes a step, forward and backward. */
#include "tensor/lstm.h"

#include <math.h>
#include <string.h>

#include "base/sizes.h"
#include "tensor/dense.h"
#include "tensor/kernels.h"

enum { COLUMNS_OF_TASK = 64, MAX_STEP = 640 }; /* MAX_STEP: terms of a sum before it is added to the result, as in linear.c */

/* Where the weights are. */
typedef struct layout {
    size_t w_ih, w_hh, b_ih, b_hh;
} layout;

static layout layout_of(size_t n_in, size_t n_hidden)
{
    const size_t n_gates = 4 * n_hidden, w_hh = n_gates * n_in, b_ih = w_hh + n_gates * n_hidden;
    return (layout){0, w_hh, b_ih, b_ih + n_gates};
}

/* Row of the s-th step, from 0. */
static size_t row_of(size_t s, size_t n, bool reverse)
{
    return reverse ? n - 1 - s : s;
}

static float sigmoid(float x)
{
    return (float)(1 / (1 + exp(-(double)x)));
}

/* One row's z becomes its gates; c and h are written. previous (n_hidden): c_{t-1}, NULL: zero. */
static void step(float *h, float *c, float *z, const float *previous, size_t n_hidden)
{
    float *i = z, *f = z + n_hidden, *g = z + 2 * n_hidden, *o = z + 3 * n_hidden;
    for (size_t j = 0; j < n_hidden; j++) {
        i[j] = sigmoid(i[j]);
        f[j] = sigmoid(f[j]);
        g[j] = (float)tanh(g[j]);
        o[j] = sigmoid(o[j]);
        c[j] = i[j] * g[j] + (previous ? f[j] * previous[j] : 0);
        h[j] = o[j] * (float)tanh(c[j]);
    }
}

sp_status sp_lstm(float *h, size_t ldh, const sp_lstm_state *state, const float *x, const float *weights, size_t n, size_t n_in,
                  size_t n_hidden, bool reverse, sp_arena *scratch)
{
    const size_t n_gates = 4 * n_hidden;
    const layout at = layout_of(n_in, n_hidden);
    const float *before = NULL, *c = NULL;
    sp_status st = sp_dense(state->gates, n_gates, x, n_in, weights + at.w_ih, weights + at.b_ih, n, n_in, n_gates, false, scratch);
    for (size_t s = 0; s < n && !st; s++) {
        const size_t t = row_of(s, n, reverse);
        float *z = state->gates + t * n_gates;
        for (size_t j = 0; j < n_gates; j++) z[j] += weights[at.b_hh + j];
        if (before) st = sp_dense(z, n_gates, before, n_hidden, weights + at.w_hh, NULL, 1, n_hidden, n_gates, true, scratch);
        step(h + t * ldh, state->cells + t * n_hidden, z, c, n_hidden);
        before = h + t * ldh;
        c = state->cells + t * n_hidden;
    }
    return st;
}

/* dz of one row from dh and dc, the gradients of h_t and, through the later rows, of c_t; dc becomes that of c_{t-1}. With u =
 * tanh(c):  do = dh u;  dc += dh o (1 - u^2);  di = dc g, df = dc c_{t-1}, dg = dc i;  then through sigmoid and tanh. */
static void step_backward(float *dz, float *dc, const float *dh, const float *gates, const float *c, const float *previous,
                          size_t n_hidden)
{
    const float *i = gates, *f = gates + n_hidden, *g = gates + 2 * n_hidden, *o = gates + 3 * n_hidden;
    for (size_t j = 0; j < n_hidden; j++) {
        const float u = (float)tanh(c[j]), dcell = dc[j] + dh[j] * o[j] * (1 - u * u);
        dz[j] = dcell * g[j] * i[j] * (1 - i[j]);
        dz[n_hidden + j] = previous ? dcell * previous[j] * f[j] * (1 - f[j]) : 0;
        dz[2 * n_hidden + j] = dcell * i[j] * (1 - g[j] * g[j]);
        dz[3 * n_hidden + j] = dh[j] * u * o[j] * (1 - o[j]);
        dc[j] = dcell * f[j];
    }
}

/* y (n_columns) += x (n_rows) W: one row, for which turning W into panels would cost more than the product. */
static void add_row_times_matrix(float *y, const float *x, const float *w, size_t n_rows, size_t n_columns)
{
    const sp_kernels *kernels = sp_kernels_select();
#pragma omp parallel for schedule(static)
    for (size_t j = 0; j < n_columns; j += COLUMNS_OF_TASK)
        for (size_t r = 0; r < n_rows; r += MAX_STEP)
            kernels->gemm(y + j, n_columns, x + r, n_rows, 1, w + r * n_columns + j, n_columns, 1,
                          sp_smaller(COLUMNS_OF_TASK, n_columns - j), sp_smaller(MAX_STEP, n_rows - r), true);
}

/* dZ (n, 4 n_hidden), from the last step to the first. carry (2, n_hidden): scratch. */
static void recurrence_backward(float *dz, float *carry, const float *dh, size_t ldh, const sp_lstm_state *state, const float *w_hh,
                                size_t n, size_t n_hidden, bool reverse)
{
    const size_t n_gates = 4 * n_hidden;
    float *row_dh = carry, *dc = carry + n_hidden;
    memset(dc, 0, n_hidden * sizeof *dc);
    for (size_t s = n; s-- > 0;) {
        const size_t t = row_of(s, n, reverse);
        const float *previous = s ? state->cells + row_of(s - 1, n, reverse) * n_hidden : NULL;
        memcpy(row_dh, dh + t * ldh, n_hidden * sizeof *row_dh);
        if (s + 1 < n) add_row_times_matrix(row_dh, dz + row_of(s + 1, n, reverse) * n_gates, w_hh, n_gates, n_hidden);
        step_backward(dz + t * n_gates, dc, row_dh, state->gates + t * n_gates, state->cells + t * n_hidden, previous, n_hidden);
    }
}

sp_status sp_lstm_backward(float *dx, float *gradient, const float *dh, const float *h, size_t ldh, const sp_lstm_state *state,
                           const float *x, const float *weights, size_t n, size_t n_in, size_t n_hidden, bool reverse,
                           bool accumulate, sp_arena *scratch)
{
    const size_t n_gates = 4 * n_hidden;
    const layout at = layout_of(n_in, n_hidden);
    const sp_arena_mark mark = sp_arena_get_mark(scratch);
    float *dz = sp_arena_alloc(scratch, n * n_gates, sizeof *dz), *carry = sp_arena_alloc(scratch, 2 * n_hidden, sizeof *carry);
    if (!dz || !carry) return SP_ERR_MEMORY;
    recurrence_backward(dz, carry, dh, ldh, state, weights + at.w_hh, n, n_hidden, reverse);
    sp_dense_backward_weight(gradient + at.w_ih, dz, n_gates, x, n_in, n, n_in, n_gates);
    if (n > 1) { /* row t of dZ meets h of the step before it */
        const float *later = reverse ? dz : dz + n_gates, *earlier = reverse ? h + ldh : h;
        sp_dense_backward_weight(gradient + at.w_hh, later, n_gates, earlier, ldh, n - 1, n_hidden, n_gates);
    }
    sp_dense_backward_bias(gradient + at.b_ih, dz, n, n_gates);
    sp_dense_backward_bias(gradient + at.b_hh, dz, n, n_gates);
    sp_status st = sp_dense_backward(dx, dz, weights + at.w_ih, n, n_in, n_gates, accumulate, scratch);
    sp_arena_reset(scratch, mark);
    return st;
}
