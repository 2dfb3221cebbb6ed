/* index.c: the paper's own way: attention makes a number of all tokens, and the layers behind know the answer for every number.
 *
 * Each token is one of b = grid^d cells. One layer of rank 1, whose scores are -j ln b for token j, weighs them as the digits of a
 * number in base b: id = sum_j b^{n-1-j} cell_j, an integer. The prompt's tokens are the leading digits, so a prompt is the number
 * of a function, and the feed-forward layers are a list of steps, one where the answer changes from an id to the next.
 *
 * A token or two are prompt enough, but only for the functions that were built in: the error on another one does not fall with the
 * grid. On the ramps an id between two others passes through all that lie between. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "base/status.h"
#include "lab/universal.h"

enum { MAX_STEPS = 1 << 22 };

typedef struct sizes {
    size_t base;     /* cells of a token */
    size_t n_prompt; /* digits that the functions' numbers take */
    size_t n_inputs; /* base^len */
    size_t n_ids;    /* base^(n_prompt + len) */
} sizes;

/* A token is a digit of d log2(grid) bits. */
size_t sp_universal_index_tokens(const sp_universal_shape *shape, size_t n_targets)
{
    double digit_bits = (double)shape->d * (double)sp_log2(shape->grid);
    return (size_t)fmax(1, ceil(log2((double)n_targets) / digit_bits));
}

/* The id is an integer whose weights were rounded: it must stay well below 2^53. */
double sp_universal_index_bits(const sp_universal_shape *shape, size_t n_targets)
{
    double digit_bits = (double)shape->d * (double)sp_log2(shape->grid), len = (double)shape->len;
    return ((double)sp_universal_index_tokens(shape, n_targets) + len) * digit_bits + log2(len) + 5;
}

static sp_status find_sizes(sizes *s, const sp_universal_shape *shape, size_t n_targets)
{
    *s = (sizes){.base = sp_power(shape->grid, shape->d), .n_prompt = sp_universal_index_tokens(shape, n_targets)};
    s->n_inputs = sp_power(s->base, shape->len);
    s->n_ids = sp_power(s->base, s->n_prompt + shape->len);
    double bits = sp_universal_index_bits(shape, n_targets);
    if (bits > DBL_MANT_DIG)
        return sp_fail(
            SP_ERR_UNSUPPORTED,
            "numbers of %zu tokens in base %zu take %.0f bits, %.0f decimal digits, and f64 has %d bits; use a smaller grid",
            s->n_prompt + shape->len, s->base, bits, ceil(bits * log10(2)), DBL_MANT_DIG);
    size_t n_steps;
    if (__builtin_mul_overflow(s->n_inputs, n_targets * shape->len, &n_steps) || n_steps > MAX_STEPS)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%zu functions of %zu inputs are more than the %d answers that are built in; use a smaller grid", n_targets,
                       s->n_inputs, MAX_STEPS);
    return SP_OK;
}

/* Channels. */
typedef struct channels {
    sp_span x, cell, number, one, id, token, y; /* number: -j of token j; token: l of input token l, else 0 */
} channels;

static channels begin(sp_net *net, const sp_universal_shape *shape, size_t n_prompt)
{
    channels c = {sp_net_channels(net, shape->d), sp_net_channels(net, shape->d), sp_net_channels(net, 1),
                  sp_net_channels(net, 1),        sp_net_channels(net, 1),        sp_net_channels(net, 1),
                  sp_net_channels(net, shape->d)};
    for (size_t r = 0; r < shape->d; r++) sp_net_set_embedding(net, c.x.first + r, r, 1);
    for (size_t t = 0; t < n_prompt + shape->len; t++) {
        sp_net_set_position(net, c.one.first, t, 1);
        sp_net_set_position(net, c.number.first, t, -(double)t);
        if (t >= n_prompt) sp_net_set_position(net, c.token.first, t, (double)(t - n_prompt));
    }
    sp_net_set_output(net, c.y);
    return c;
}

/* to += weights[r] * step of `from` around `at`, which rises by 1 over 1 / slope; `also` (of another channel) is added to `from`.
 */
static void add_step(sp_net *net, double slope, double at, size_t from, size_t also, double also_weight, sp_span to,
                     const double *weights)
{
    for (int end = 0; end < 2; end++) {
        sp_net_unit(net, -slope * at + (end ? -0.5 : 0.5));
        sp_net_in(net, from, slope);
        sp_net_in(net, also, slope * also_weight);
        for (size_t r = 0; r < to.n; r++) sp_net_out(net, to.first + r, end ? -weights[r] : weights[r]);
    }
}

static void count_borders(sp_net *net, const channels *c, const sp_universal_shape *shape)
{
    double slope = (double)shape->grid / shape->ramp;
    sp_net_begin_ffn(net, sp_universal_width(shape));
    for (size_t r = 0; r < shape->d; r++)
        for (size_t i = 1; i < shape->grid; i++)
            add_step(net, slope, (double)i / (double)shape->grid, c->x.first + r, c->x.first + r, 0,
                     (sp_span){c->cell.first + r, 1}, (double[]){1});
}

static void make_id(sp_net *net, const channels *c, const sp_universal_shape *shape, const sizes *s)
{
    size_t n = s->n_prompt + shape->len;
    double weights = 0;
    sp_net_begin_attention(net, 1, 1);
    sp_net_set(net, SP_NET_Q, 0, c->one.first, log((double)s->base));
    sp_net_set(net, SP_NET_K, 0, c->number.first, 1);
    for (size_t r = 0; r < shape->d; r++)
        sp_net_set(net, SP_NET_V, 0, c->cell.first + r, (double)sp_power(shape->grid, shape->d - 1 - r));
    for (size_t j = 0; j < n; j++) weights += pow((double)s->base, -(double)j);
    sp_net_set(net, SP_NET_O, c->id.first, 0, weights * pow((double)s->base, (double)n - 1));
}

/* Walks the ids upwards: for a token, the functions; for a function, the inputs. Ids that no prompt makes are left out. */
static sp_status memorise(sp_net *net, const channels *c, const sp_universal_shape *shape, const sizes *s,
                          const sp_target_function *targets, size_t n_targets)
{
    size_t d = shape->d, n = d * shape->len;
    double *x = malloc((2 * n + 2 * d) * sizeof *x), last = 0;
    if (!x) return sp_fail_no_memory((2 * n + 2 * d) * sizeof *x);
    double *y = x + n, *before = y + n, *change = before + d;
    for (size_t r = 0; r < d; r++) before[r] = 0;
    sp_net_begin_ffn(net, sp_universal_width(shape));
    for (size_t l = 0; l < shape->len; l++)
        for (size_t k = 0; k < n_targets; k++)
            for (size_t cell = 0; cell < s->n_inputs; cell++) {
                double id = (double)l * (double)s->n_ids + (double)(k * s->n_inputs + cell);
                bool changes = false, is_first = l + k + cell == 0;
                sp_cell_centre(x, shape, cell);
                sp_target_evaluate(y, &targets[k], x, n);
                for (size_t r = 0; r < d; r++) {
                    change[r] = y[l * d + r] - before[r];
                    before[r] = y[l * d + r];
                    changes |= change[r] != 0;
                }
                if (changes) /* the first one's step lies before every id */
                    add_step(net, 2, is_first ? -1 : (last + id) / 2, c->id.first, c->token.first, (double)s->n_ids, c->y, change);
                last = id;
            }
    free(x);
    return SP_OK;
}

sp_status sp_universal_index(sp_universal *out, const sp_universal_shape *shape, const sp_target_function *targets,
                             size_t n_targets)
{
    sizes s;
    sp_status st = find_sizes(&s, shape, n_targets);
    if (st) return st;
    sp_net *net = sp_net_create(shape->d, shape->len, s.n_prompt);
    if (!net) return sp_net_status(net);
    *out = (sp_universal){.shape = *shape, .net = net, .num_virtual_tokens = s.n_prompt, .n_functions = n_targets};
    channels c = begin(net, shape, s.n_prompt);
    count_borders(net, &c, shape);
    make_id(net, &c, shape, &s);
    st = memorise(net, &c, shape, &s, targets, n_targets);
    out->gap = log((double)s.base);
    out->leakage = 1e-9; /* rounding: none reaches the next step, and the sums of steps are exact to this */
    return st ? st : sp_net_status(net);
}

void sp_universal_index_prompt(double *prompt, const sp_universal *universal, size_t index)
{
    const sp_universal_shape *shape = &universal->shape;
    size_t base = sp_power(shape->grid, shape->d);
    for (size_t j = universal->num_virtual_tokens; j-- > 0; index /= base)
        for (size_t r = shape->d, cell = index % base; r-- > 0; cell /= shape->grid)
            prompt[j * shape->d + r] = ((double)(cell % shape->grid) + 0.5) / (double)shape->grid;
}
