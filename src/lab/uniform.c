/* uniform.c: the theorem to the letter: one attention layer, one head, whatever the length.
 *
 * Attention does nothing but average: all its scores are 0. So everything that it shall bring to a token must have a channel of its
 * own before: the first feed-forward layers put each prompt token's value into the channel of its code, relu(x - distance of the
 * codes), and each input token's bits into its block. The mean over all tokens, times their number, then holds the whole table and
 * all codes, and the layers behind choose. Width pays for the missing layer: d L grid^{dL} channels. */
#include "base/status.h"
#include "lab/universal.h"

/* What a prompt token stands for. */
typedef struct places {
    sp_span code;  /* (len d m) bits of its cell */
    sp_span token; /* (len) one-hot of its token */
} places;

static places set_positions(sp_net *net, const sp_universal_shape *shape, size_t n_cells)
{
    size_t n_bits = shape->len * shape->d * sp_log2(shape->grid);
    places p = {sp_net_channels(net, n_bits), sp_net_channels(net, shape->len)};
    for (size_t t = 0; t < shape->len * n_cells; t++) {
        for (size_t i = 0; i < n_bits; i++) sp_net_set_position(net, p.code.first + i, t, sp_cell_bit(shape, t % n_cells, i));
        sp_net_set_position(net, p.token.first + t / n_cells, t, 1);
    }
    return p;
}

/* values[r][i] of the prompt token that stands for i = x_r; of all others 0, as x_r is at most 1 and one bit of theirs, or their
 * token, is another one. Part of the layer that is begun. */
static void route(sp_net *net, const sp_universal_channels *c, const sp_universal_shape *shape, const places *p, sp_span values,
                  size_t n_cells)
{
    size_t n = shape->len * n_cells;
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < shape->d; r++) {
            size_t n_ones = 0;
            for (size_t b = 0; b < p->code.n; b++) n_ones += (size_t)sp_cell_bit(shape, i % n_cells, b);
            sp_net_unit(net, -(double)n_ones - 1);
            sp_net_in(net, c->x.first + r, 1);
            sp_net_in(net, p->token.first + i / n_cells, 1);
            for (size_t b = 0; b < p->code.n; b++) sp_net_in(net, p->code.first + b, sp_cell_bit(shape, i % n_cells, b) ? 1 : -1);
            sp_net_out(net, values.first + r * n + i, 1);
        }
}

/* to += the sum of `from` over all n_tokens */
static void sum_over_tokens(sp_net *net, const sp_span *from, const sp_span *to, size_t n, size_t n_tokens)
{
    size_t n_values = 0, row = 0;
    for (size_t i = 0; i < n; i++) n_values += from[i].n;
    sp_net_begin_attention(net, 0, n_values);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < from[i].n; k++, row++) {
            sp_net_set(net, SP_NET_V, row, from[i].first + k, 1);
            sp_net_set(net, SP_NET_O, to[i].first + k, row, (double)n_tokens);
        }
}

sp_status sp_universal_uniform(sp_universal *out, const sp_universal_shape *shape)
{
    size_t n_cells = sp_power(shape->grid, shape->d * shape->len), n_prompt = shape->len * n_cells;
    sp_net *net = sp_net_create(shape->d, shape->len, n_prompt);
    if (!net) return sp_net_status(net);
    *out = (sp_universal){.shape = *shape, .net = net, .num_virtual_tokens = n_prompt};
    sp_universal_channels c;
    sp_universal_begin(&c, net, shape);
    places p = set_positions(net, shape, n_cells);
    sp_span values = sp_net_channels(net, shape->d * n_prompt);
    sp_universal_quantise(net, &c, shape);
    sp_net_begin_ffn(net, sp_universal_width(shape));
    sp_universal_gate(net, &c, shape);
    route(net, &c, shape, &p, values, n_cells);
    sum_over_tokens(net, (sp_span[]){values, c.gated}, (sp_span[]){values, c.codes}, 2, n_prompt + shape->len);
    sp_universal_pick(net, &c, shape, values);
    out->leakage = 1e-12; /* rounding: the mean over the tokens, times their number */
    return sp_net_status(net);
}
