/* keyed.c: a frozen transformer of constant size whose prompt is the data set itself: one virtual token for each token to be
 * answered, whatever the grid.
 *
 * The look-up's prompt tokens are told apart by their places, so it needs a place for every cell. Here a prompt token says by
 * itself for which cell it stands: a number of it is (cell + 1/4 + answer / 2) / grid, or with 3/4 - answer / 2 in cells of odd
 * number. The quantiser, which all tokens pass, takes the Gray bits of the cell off it, and what is left behind the last tent map
 * is 1/4 + answer / 2 in either case. So the layers in front of attention turn each prompt token into a key, the bits, and a value.
 *
 * A token is found by its own numbers alone: input tokens that are answered differently must lie in different cells, off the ramps.
 * One attention layer, one head, for every len. A number of the prompt carries log2(grid) bits for the key, and those of the
 * answer. Cost: channels and weights O(d log grid); the prompt is as long as there are tokens. */
#include "lab/keyed.h"

#include <math.h>
#include <stdlib.h>

#include "base/status.h"

static const double TEMPERATURE = 20; /* as in lookup.c: others than the match weigh e^-40 each */
static const double REST = 0.25;      /* of a cell, on either side of the answers: clear of the ramps */

static void find(sp_net *net, const sp_universal_channels *c, const sp_universal_shape *shape)
{
    const size_t b = c->bits.n;
    sp_net_begin_attention(net, b + 1, shape->d);
    for (size_t i = 0; i < b; i++) {
        sp_net_set(net, SP_NET_Q, i, c->bits.first + i, 2 * TEMPERATURE);
        sp_net_set(net, SP_NET_Q, i, c->one.first, -TEMPERATURE);
        sp_net_set(net, SP_NET_K, i, c->bits.first + i, 2);
        sp_net_set(net, SP_NET_K, i, c->one.first, -1);
    }
    sp_net_set(net, SP_NET_Q, b, c->one.first, TEMPERATURE);
    for (size_t l = 0; l < shape->len; l++) sp_net_set(net, SP_NET_K, b, c->onehot.first + l, -2 * (double)b - 2);
    for (size_t r = 0; r < shape->d; r++) {
        sp_net_set(net, SP_NET_V, r, c->spare.first + r, 1 / (1 - 2 * REST));
        sp_net_set(net, SP_NET_V, r, c->one.first, -REST / (1 - 2 * REST));
        sp_net_set(net, SP_NET_O, c->y.first + r, r, 1);
    }
}

sp_status sp_universal_keyed(sp_universal *out, const sp_universal_shape *shape, size_t n_tokens)
{
    sp_net *net = sp_net_create(shape->d, shape->len, n_tokens);
    if (!net) return sp_net_status(net);
    *out = (sp_universal){.shape = *shape, .net = net, .num_virtual_tokens = n_tokens};
    out->shape.is_deep = true; /* the wide quantiser leaves no rest */
    sp_universal_channels c;
    sp_universal_begin(&c, net, &out->shape);
    sp_universal_quantise(net, &c, &out->shape);
    find(net, &c, &out->shape);
    out->gap = 2 * TEMPERATURE;
    out->leakage = (double)(n_tokens + shape->len) * exp(-2 * TEMPERATURE);
    return sp_net_status(net);
}

void sp_universal_keyed_prompt(double *prompt, const sp_universal_shape *shape, const double *x, const double *y, size_t n_tokens)
{
    const double grid = (double)shape->grid;
    for (size_t i = 0; i < n_tokens * shape->d; i++) {
        const double cell = fmin(floor(x[i] * grid), grid - 1), rest = REST + (1 - 2 * REST) * y[i];
        prompt[i] = (cell + (fmod(cell, 2) == 0 ? rest : 1 - rest)) / grid;
    }
}

/* ---- grids ---- */

/* Cells of one point: coordinates rounded down. */
typedef struct cells {
    const double *x;
    size_t n; /* coordinates */
    double grid;
} cells;

static bool is_on_ramp(const cells *c, size_t point, double ramp)
{
    for (size_t k = 0; k < c->n; k++) {
        const double steps = c->x[point * c->n + k] * c->grid, border = nearbyint(steps);
        if (border > 0 && border < c->grid && fabs(steps - border) <= ramp) return true;
    }
    return false;
}

static bool share_cell(const cells *c, size_t a, size_t b)
{
    for (size_t k = 0; k < c->n; k++)
        if (fmin(floor(c->x[a * c->n + k] * c->grid), c->grid - 1) != fmin(floor(c->x[b * c->n + k] * c->grid), c->grid - 1))
            return false;
    return true;
}

static bool is_separating(const cells *c, size_t n_points, double ramp)
{
    for (size_t a = 0; a < n_points; a++) {
        if (is_on_ramp(c, a, ramp)) return false;
        for (size_t b = 0; b < a; b++)
            if (share_cell(c, a, b)) return false;
    }
    return true;
}

size_t sp_universal_separating_grid(const double *x, size_t n_points, size_t n, double ramp, size_t max_log2)
{
    for (size_t m = 1; m <= max_log2; m++) {
        const cells c = {x, n, ldexp(1, (int)m)};
        if (is_separating(&c, n_points, ramp)) return (size_t)1 << m;
    }
    return 0;
}
