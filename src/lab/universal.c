/* universal.c: what the constructions share: cells and their codes, the quantiser, the choice of a value by its code. */
#include "lab/universal.h"

#include <math.h>
#include <string.h>

#include "base/status.h"

/* ---- cells ---- */

size_t sp_power(size_t base, size_t exponent)
{
    size_t n = 1;
    for (size_t i = 0; i < exponent; i++)
        if (__builtin_mul_overflow(n, base, &n)) return SIZE_MAX;
    return n;
}

size_t sp_cell_digit(const sp_universal_shape *shape, size_t cell, size_t k)
{
    return cell / sp_power(shape->grid, shape->d * shape->len - 1 - k) % shape->grid;
}

int sp_gray_bit(size_t value, size_t n_bits, size_t bit)
{
    return (int)((value ^ value >> 1) >> (n_bits - 1 - bit) & 1);
}

int sp_cell_bit(const sp_universal_shape *shape, size_t cell, size_t bit)
{
    size_t m = sp_log2(shape->grid);
    return sp_gray_bit(sp_cell_digit(shape, cell, bit / m), m, bit % m);
}

void sp_cell_centre(double *centre, const sp_universal_shape *shape, size_t cell)
{
    for (size_t k = 0; k < shape->d * shape->len; k++)
        centre[k] = ((double)sp_cell_digit(shape, cell, k) + 0.5) / (double)shape->grid;
}

void sp_cell_table(double *table, const sp_universal_shape *shape, const sp_target_function *f)
{
    size_t n = shape->d * shape->len, n_cells = sp_power(shape->grid, n);
    for (size_t cell = 0; cell < n_cells; cell++) {
        double x[n], y[n]; /* d len is small: the cells are grid to that power */
        sp_cell_centre(x, shape, cell);
        sp_target_evaluate(y, f, x, n);
        for (size_t l = 0; l < shape->len; l++)
            memcpy(table + (l * n_cells + cell) * shape->d, y + l * shape->d, shape->d * sizeof *y);
    }
}

/* ---- parts of nets ---- */

void sp_universal_begin(sp_universal_channels *c, sp_net *net, const sp_universal_shape *shape)
{
    size_t d = shape->d, len = shape->len, m = sp_log2(shape->grid), n_prompt = sp_net_get_size(net).num_virtual_tokens;
    c->x = sp_net_channels(net, d);
    c->spare = sp_net_channels(net, d);
    c->bits = sp_net_channels(net, d * m);
    c->gated = sp_net_channels(net, len * d * m);
    c->codes = sp_net_channels(net, len * d * m);
    c->onehot = sp_net_channels(net, len);
    c->one = sp_net_channels(net, 1);
    c->y = sp_net_channels(net, d);
    for (size_t r = 0; r < d; r++) {
        sp_net_set_embedding(net, c->x.first + r, r, 1);
        sp_net_set_embedding(net, c->spare.first + r, r, 1);
    }
    for (size_t t = 0; t < n_prompt + len; t++) sp_net_set_position(net, c->one.first, t, 1);
    for (size_t l = 0; l < len; l++) sp_net_set_position(net, c->onehot.first + l, n_prompt + l, 1);
    sp_net_set_output(net, c->y);
}

/* y += weight * relu(scale * x + bias) */
static void add_unit(sp_net *net, size_t x, double scale, double bias, size_t y, double weight)
{
    sp_net_unit(net, bias);
    sp_net_in(net, x, scale);
    sp_net_out(net, y, weight);
}

/* Bit i of the Gray code is where the tent map u -> 2 u, or 2 - 2 u above 1/2, iterated i times, lies above 1/2. A ramp of width w
 * on x is one of w 2^i on the i-th iterate. */
static void quantise_deep(sp_net *net, const sp_universal_channels *c, size_t d, size_t m, double w)
{
    for (size_t r = 0; r < d; r++)
        for (size_t i = 0; i < m; i++) {
            size_t u = c->spare.first + r, bit = c->bits.first + r * m + i;
            double h = w * (double)(1u << i);
            sp_net_begin_ffn(net, 4);
            add_unit(net, u, 1, -(0.5 - h / 2), bit, 1 / h);
            add_unit(net, u, 1, -(0.5 + h / 2), bit, -1 / h);
            add_unit(net, u, 1, 0, u, 1); /* u + relu(u) - 4 relu(u - 1/2) = the tent map of u in [0, 1] */
            add_unit(net, u, 1, -0.5, u, -4);
        }
}

/* The same function at once: bit i changes at (2 k + 1) / 2^{i+1}, upwards and downwards in turn. */
static void quantise_wide(sp_net *net, const sp_universal_channels *c, size_t d, size_t m, double w)
{
    sp_net_begin_ffn(net, 0);
    for (size_t r = 0; r < d; r++)
        for (size_t i = 0; i < m; i++)
            for (size_t k = 0; k < (size_t)1 << i; k++) {
                double at = (double)(2 * k + 1) / (double)((size_t)2 << i), sign = k % 2 ? -1 : 1;
                add_unit(net, c->x.first + r, 1 / w, -(at - w / 2) / w, c->bits.first + r * m + i, sign);
                add_unit(net, c->x.first + r, 1 / w, -(at + w / 2) / w, c->bits.first + r * m + i, -sign);
            }
}

void sp_universal_quantise(sp_net *net, const sp_universal_channels *c, const sp_universal_shape *shape)
{
    double w = shape->ramp / (double)shape->grid;
    (shape->is_deep ? quantise_deep : quantise_wide)(net, c, shape->d, sp_log2(shape->grid), w);
}

void sp_universal_gate(sp_net *net, const sp_universal_channels *c, const sp_universal_shape *shape)
{
    size_t n_bits = shape->d * sp_log2(shape->grid);
    for (size_t l = 0; l < shape->len; l++)
        for (size_t i = 0; i < n_bits; i++) {
            add_unit(net, c->bits.first + i, 1, -1, c->gated.first + l * n_bits + i, 1);
            sp_net_in(net, c->onehot.first + l, 1);
        }
}

/* relu(2 code - 1) and relu(1 - 2 code): how far a bit is from 0, and from 1. Half of a ramp lies on either side: at its middle the
 * cells of both are at distance 0. */
static void measure_codes(sp_net *net, const sp_universal_channels *c, size_t n_bits, sp_span from_zero, sp_span from_one,
                          size_t width)
{
    sp_net_begin_ffn(net, width);
    for (size_t i = 0; i < n_bits; i++) {
        add_unit(net, c->codes.first + i, 2, -1, from_zero.first + i, 1);
        add_unit(net, c->codes.first + i, -2, 1, from_one.first + i, 1);
    }
}

void sp_universal_pick(sp_net *net, const sp_universal_channels *c, const sp_universal_shape *shape, sp_span values)
{
    size_t d = shape->d, len = shape->len, n_cells = sp_power(shape->grid, d * len), n = len * n_cells;
    size_t n_bits = len * d * sp_log2(shape->grid), width = sp_universal_width(shape);
    sp_span from_zero = sp_net_channels(net, n_bits), from_one = sp_net_channels(net, n_bits);
    measure_codes(net, c, n_bits, from_zero, from_one, width);
    sp_net_begin_ffn(net, width);
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < d; r++) {
            size_t value = values.first + r * n + i;
            sp_net_unit(net, -2);
            sp_net_in(net, value, 1);
            sp_net_in(net, c->onehot.first + i / n_cells, 2);
            for (size_t b = 0; b < n_bits; b++)
                sp_net_in(net, (sp_cell_bit(shape, i % n_cells, b) ? from_one : from_zero).first + b, -1);
            sp_net_out(net, value, 1);
            add_unit(net, value, 1, 0, value, -1);
        }
    for (size_t step = 1; step < n; step *= 2) { /* max(a, b) = a + relu(b - a) */
        sp_net_begin_ffn(net, width);
        for (size_t r = 0; r < d; r++)
            for (size_t i = 0; i + step < n; i += 2 * step) {
                size_t a = values.first + r * n + i, b = a + step;
                sp_net_unit(net, 0);
                sp_net_in(net, b, 1);
                sp_net_in(net, a, -1);
                sp_net_out(net, a, 1);
            }
    }
    sp_net_begin_ffn(net, width);
    for (size_t r = 0; r < d; r++) add_unit(net, values.first + r * n, 1, 0, c->y.first + r, 1);
}

/* ---- all of them ---- */

sp_status sp_universal_table_prompt(double *prompt, const sp_universal *universal, const sp_target_function *f)
{
    sp_cell_table(prompt, &universal->shape, f);
    return SP_OK;
}

void sp_universal_clear(sp_universal *universal)
{
    sp_net_free(universal->net);
    *universal = (sp_universal){0};
}

double sp_universal_bound(const sp_universal *u, double lipschitz)
{
    return lipschitz * (1 + u->shape.ramp) / (double)u->shape.grid / 2 + u->leakage + u->value_error;
}

/* ---- what they take ---- */

size_t sp_universal_grid_for(sp_construction construction, double lipschitz, double ramp, double epsilon)
{
    double extra = construction == SP_DIGITS ? 0.25 : 0; /* half a level of 2 grid */
    size_t grid = 2;
    while (grid < (size_t)1 << 62 && (lipschitz * (1 + ramp) / 2 + extra) / (double)grid > epsilon) grid *= 2;
    return grid < (size_t)1 << 62 ? grid : 0;
}

double sp_universal_table_log2(const sp_universal_shape *shape)
{
    return log2((double)shape->len) + (double)shape->d * (double)shape->len * (double)sp_log2(shape->grid);
}
