/* digits.c: the whole table in one number, and so one virtual token: how far precision stands in for length.
 *
 * The number of coordinate r is sum_j v_j (B + 1)^-j, v_j in 0 .. B - 1 the table's j-th value in B levels. A layer takes the first
 * digit off, by one step for each level, and multiplies the rest by B + 1. The base is one more than the levels, so the digits
 * behind never reach the next step: it rises from i - 3/(4B) to i - 1/(4B), and what is left of digit i - 1 ends at i - 1/B.
 * Everything else is as in uniform.c: one attention layer, whose scores are 0, brings the number and all codes to each token, then
 * the value is picked.
 *
 * Every digit takes log2(B + 1) bits; f64 has 53. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "base/status.h"
#include "lab/universal.h"

static size_t count_values(const sp_universal_shape *shape)
{
    return shape->len * sp_power(shape->grid, shape->d * shape->len);
}

/* Half a level is then half of what the grid costs a function of slope 1. */
static size_t count_levels(const sp_universal_shape *shape)
{
    return 2 * shape->grid;
}

/* The mean over the tokens, the multiplications and the step's quarter of a level take some bits more. */
double sp_universal_digits_log2_bits(const sp_universal_shape *shape)
{
    double log2_values = sp_universal_table_log2(shape), digit_bits = log2((double)count_levels(shape) + 1);
    double log2_bits = log2_values + log2(digit_bits);
    return log2_bits < 1000 ? log2(exp2(log2_values) * digit_bits + 3) : log2_bits; /* beyond, f64 does not hold them, nor sees 3 */
}

static sp_status check_precision(const sp_universal_shape *shape)
{
    double bits = exp2(sp_universal_digits_log2_bits(shape));
    if (bits <= DBL_MANT_DIG) return SP_OK;
    return sp_fail(
        SP_ERR_UNSUPPORTED,
        "a table of %zu values of %zu levels in one number takes %.0f bits, %.0f decimal digits, and f64 has %d bits; use a "
        "smaller grid, or another construction",
        count_values(shape), count_levels(shape), bits, ceil(bits * log10(2)), DBL_MANT_DIG);
}

/* Value of the digit i: the middle of its level. */
static double level_middle(double digit, size_t n_levels)
{
    return (digit + 0.5) / (double)n_levels;
}

/* value = middle of the first digit's level; rest = (B + 1) (rest - digit). The value starts at the middle of level 0. */
static void take_digit(sp_net *net, const sp_universal_channels *c, size_t rest, size_t value, size_t n_levels, size_t width)
{
    double b = (double)n_levels;
    sp_net_begin_ffn(net, width);
    for (size_t i = 1; i < n_levels; i++)
        for (int end = 0; end < 2; end++) {
            sp_net_unit(net, -2 * b * (double)i + (end ? 0.5 : 1.5));
            sp_net_in(net, rest, 2 * b);
            sp_net_out(net, value, (end ? -1 : 1) / b);
        }
    sp_net_begin_ffn(net, width); /* rest += b rest - (B + 1) digit, digit = B value - 1/2 */
    sp_net_unit(net, 0);
    sp_net_in(net, rest, 1);
    sp_net_out(net, rest, b);
    sp_net_unit(net, 0);
    sp_net_in(net, value, 1);
    sp_net_out(net, rest, -(b + 1) * b);
    sp_net_unit(net, 0);
    sp_net_in(net, c->one.first, 1);
    sp_net_out(net, rest, (b + 1) / 2);
}

/* rest = the prompt's numbers, codes = all input tokens' bits. Input tokens have a 0 where the prompt's numbers are: x goes through
 * a gate. */
static void gather(sp_net *net, const sp_universal_channels *c, const sp_universal_shape *shape, sp_span numbers, sp_span rest)
{
    size_t n_tokens = 1 + shape->len, row = 0;
    sp_net_begin_attention(net, 0, numbers.n + c->gated.n);
    for (size_t r = 0; r < numbers.n; r++, row++) {
        sp_net_set(net, SP_NET_V, row, numbers.first + r, 1);
        sp_net_set(net, SP_NET_O, rest.first + r, row, (double)n_tokens);
    }
    for (size_t i = 0; i < c->gated.n; i++, row++) {
        sp_net_set(net, SP_NET_V, row, c->gated.first + i, 1);
        sp_net_set(net, SP_NET_O, c->codes.first + i, row, (double)n_tokens);
    }
}

sp_status sp_universal_digits(sp_universal *out, const sp_universal_shape *shape)
{
    size_t d = shape->d, n = count_values(shape), n_levels = count_levels(shape), width = sp_universal_width(shape);
    sp_status st = check_precision(shape);
    if (st) return st;
    sp_net *net = sp_net_create(d, shape->len, 1);
    if (!net) return sp_net_status(net);
    *out = (sp_universal){.shape = *shape, .net = net, .num_virtual_tokens = 1, .n_levels = n_levels};
    sp_universal_channels c;
    sp_universal_begin(&c, net, shape);
    sp_span is_prompt = sp_net_channels(net, 1), numbers = sp_net_channels(net, d), rest = sp_net_channels(net, d);
    sp_span values = sp_net_channels(net, d * n);
    sp_net_set_position(net, is_prompt.first, 0, 1);
    for (size_t l = 0; l < shape->len; l++)
        for (size_t i = 0; i < values.n; i++) sp_net_set_position(net, values.first + i, 1 + l, level_middle(0, n_levels));
    sp_universal_quantise(net, &c, shape);
    sp_net_begin_ffn(net, width);
    sp_universal_gate(net, &c, shape);
    for (size_t r = 0; r < d; r++) { /* numbers = x of the prompt's token, which is below B; 0 of the others' */
        sp_net_unit(net, -(double)n_levels);
        sp_net_in(net, c.x.first + r, 1);
        sp_net_in(net, is_prompt.first, (double)n_levels);
        sp_net_out(net, numbers.first + r, 1);
    }
    gather(net, &c, shape, numbers, rest);
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < d; r++) take_digit(net, &c, rest.first + r, values.first + r * n + i, n_levels, width);
    sp_universal_pick(net, &c, shape, values);
    out->value_error = 0.5 / (double)n_levels;
    out->leakage = 1e-3 / (double)n_levels; /* what rounding leaves of the last digits' steps: none is counted wrong */
    return sp_net_status(net);
}

sp_status sp_universal_digits_prompt(double *prompt, const sp_universal *universal, const sp_target_function *f)
{
    const sp_universal_shape *shape = &universal->shape;
    size_t n = count_values(shape), d = shape->d;
    double b = (double)universal->n_levels, *table = malloc(n * d * sizeof *table);
    if (!table) return sp_fail_no_memory(n * d * sizeof *table);
    sp_cell_table(table, shape, f);
    for (size_t r = 0; r < d; r++) {
        prompt[r] = 0;
        for (size_t i = n; i-- > 0;) prompt[r] = prompt[r] / (b + 1) + fmin(floor(table[i * d + r] * b), b - 1);
    }
    free(table);
    return SP_OK;
}
