/* lookup.c: a transformer of constant size that looks the answer up in its prompt.
 *
 * The look-up layer's query is +-T for every bit of the input's code and of the token's own number, a key is +-1 for the bits that
 * the prompt token stands for, its value is the prompt token itself. Over the full cube of codes the softmax factors, the weight of
 * key k is prod_i sigmoid(2 T q_i k_i): the match stands 2 T above every other key, and on a ramp, where one bit of a coordinate
 * goes from -1 to 1, the output is a mean of the two cells' values. For len 1 that is all. Beyond, a token has to know the others'
 * codes: a layer before copies all of them to every token, by the mean over the input tokens, whose scores stand T_1 above the
 * prompt's.
 *
 * Width: channels and weights grow with log(grid), not with the table. Cost: the prompt's length, grid^{d len}. */
#include <math.h>

#include "base/status.h"
#include "lab/universal.h"

static const double TEMPERATURE = 20; /* e^-40 = 4e-18: what leaks is below the rounding of f64 */

/* Bits that tell the input tokens apart. */
static size_t token_bits(size_t len)
{
    size_t n = 0;
    while ((size_t)1 << n < len) n++;
    return n;
}

/* +1 or -1 for bit i of a token's number */
static double sign_of_bit(size_t token, size_t i)
{
    return token >> i & 1 ? 1 : -1;
}

/* keys (n_bits + n_self) of the prompt's tokens, self (n_self) of the input's. */
static void set_positions(sp_net *net, const sp_universal_shape *shape, sp_span keys, sp_span self, size_t n_cells)
{
    size_t n_bits = keys.n - self.n, n_prompt = shape->len * n_cells;
    for (size_t t = 0; t < n_prompt; t++)
        for (size_t i = 0; i < keys.n; i++)
            sp_net_set_position(net, keys.first + i, t,
                                i < n_bits ? 2 * sp_cell_bit(shape, t % n_cells, i) - 1 : sign_of_bit(t / n_cells, i - n_bits));
    for (size_t l = 0; l < shape->len; l++)
        for (size_t i = 0; i < self.n; i++) sp_net_set_position(net, self.first + i, n_prompt + l, sign_of_bit(l, i));
}

/* codes = gated, summed over the input tokens. The normaliser, len + n_prompt e^-T_1, is a constant, which O undoes. */
static void gather_codes(sp_net *net, const sp_universal_channels *c, const sp_universal_shape *shape, size_t n_prompt)
{
    double t1 = ceil(log((double)n_prompt)) + TEMPERATURE;
    sp_net_begin_attention(net, 1, c->codes.n);
    sp_net_set(net, SP_NET_Q, 0, c->one.first, t1);
    for (size_t l = 0; l < shape->len; l++) sp_net_set(net, SP_NET_K, 0, c->onehot.first + l, 1);
    for (size_t i = 0; i < c->codes.n; i++) {
        sp_net_set(net, SP_NET_V, i, c->gated.first + i, 1);
        sp_net_set(net, SP_NET_O, c->codes.first + i, i, (double)shape->len + (double)n_prompt * exp(-t1));
    }
}

/* Keys of input tokens are -(b + 1) in a dimension of their own, in which every query is T: they never match. */
static void look_up(sp_net *net, const sp_universal_channels *c, const sp_universal_shape *shape, sp_span keys, sp_span self)
{
    size_t n_codes = keys.n - self.n;
    sp_span codes = shape->len > 1 ? c->codes : c->bits;
    sp_net_begin_attention(net, keys.n + 1, shape->d);
    for (size_t i = 0; i < keys.n; i++) {
        sp_net_set(net, SP_NET_K, i, keys.first + i, 1);
        if (i < n_codes) {
            sp_net_set(net, SP_NET_Q, i, codes.first + i, 2 * TEMPERATURE);
            sp_net_set(net, SP_NET_Q, i, c->one.first, -TEMPERATURE);
        } else {
            sp_net_set(net, SP_NET_Q, i, self.first + i - n_codes, TEMPERATURE);
        }
    }
    sp_net_set(net, SP_NET_Q, keys.n, c->one.first, TEMPERATURE);
    for (size_t l = 0; l < shape->len; l++) sp_net_set(net, SP_NET_K, keys.n, c->onehot.first + l, -(double)keys.n - 1);
    for (size_t r = 0; r < shape->d; r++) {
        sp_net_set(net, SP_NET_V, r, c->x.first + r, 1);
        sp_net_set(net, SP_NET_O, c->y.first + r, r, 1);
    }
}

sp_status sp_universal_lookup(sp_universal *out, const sp_universal_shape *shape)
{
    size_t n_cells = sp_power(shape->grid, shape->d * shape->len), n_prompt = shape->len * n_cells;
    size_t n_self = token_bits(shape->len), n_codes = shape->len * shape->d * sp_log2(shape->grid), b = n_codes + n_self;
    sp_net *net = sp_net_create(shape->d, shape->len, n_prompt);
    if (!net) return sp_net_status(net);
    *out = (sp_universal){.shape = *shape, .net = net, .num_virtual_tokens = n_prompt};
    sp_universal_channels c;
    sp_universal_begin(&c, net, shape);
    sp_span keys = sp_net_channels(net, b), self = sp_net_channels(net, n_self);
    set_positions(net, shape, keys, self, n_cells);
    sp_universal_quantise(net, &c, shape);
    if (shape->len > 1) {
        sp_net_begin_ffn(net, sp_universal_width(shape));
        sp_universal_gate(net, &c, shape);
        gather_codes(net, &c, shape, n_prompt);
    }
    look_up(net, &c, shape, keys, self);
    out->gap = 2 * TEMPERATURE;
    out->leakage = (double)b * exp(-2 * TEMPERATURE) + (double)shape->len * exp(-TEMPERATURE * ((double)b + 1));
    return sp_net_status(net);
}
