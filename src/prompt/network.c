/* network.c: a network is its layers in a row; each reads what the one before it wrote, the first the embedding itself.
 *
 * Cost: 2 n (n_weights - n n_in) multiplications and additions forward, twice that backward. Activations stay; the rest is scratch
 * of the network's arena, so nothing is allocated behind the first pass. */
#include "prompt/network.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/sizes.h"
#include "base/status.h"
#include "tensor/dense.h"
#include "tensor/lstm.h"

typedef enum activation { LINEAR, RELU, TANH } activation;

typedef struct layer {
    bool is_lstm; /* of two directions, n_out / 2 hidden numbers each */
    activation activation;
    size_t n_in, n_out;
    size_t first;           /* of its matrices: weight, bias; or w_ih, w_hh, b_ih, b_hh of each direction */
    float *y;               /* (n, n_out), of its activation; of the last layer NULL: the caller's */
    sp_lstm_state state[2]; /* of an LSTM */
} layer;

enum { MAX_LAYERS = SP_NETWORK_MAX_LAYERS + 3, LSTM_MATRICES = 4 };

struct sp_network {
    sp_network_shape shape;
    size_t n_layers, n_matrices, n_weights, widest; /* widest: of the numbers a layer reads or writes for a row */
    layer layers[MAX_LAYERS];
    sp_network_matrix matrices[SP_NETWORK_MAX_MATRICES];
    float *activations; /* all layers' */
    sp_arena *scratch;
};

/* ---- what it consists of ---- */

static void add_matrix(sp_network *network, const char *name, size_t n_rows, size_t n_columns, double bound)
{
    sp_network_matrix *m = &network->matrices[network->n_matrices++];
    *m = (sp_network_matrix){.n_rows = n_rows, .n_columns = n_columns, .offset = network->n_weights, .bound = bound};
    snprintf(m->name, sizeof m->name, "%s", name);
    network->n_weights += n_rows * n_columns;
}

static void add_layer(sp_network *network, const layer *added)
{
    network->layers[network->n_layers++] = *added;
    network->widest = sp_larger(network->widest, sp_larger(added->n_in, added->n_out));
}

/* torch starts a linear layer, bias included, uniform within 1 / sqrt(n_in). */
static void add_linear(sp_network *network, const char *module, int index, size_t n_in, size_t n_out, activation behind)
{
    char name[SP_NETWORK_NAME_BYTES];
    add_layer(network, &(layer){.activation = behind, .n_in = n_in, .n_out = n_out, .first = network->n_matrices});
    snprintf(name, sizeof name, "%s.%d.weight", module, index);
    add_matrix(network, name, n_out, n_in, 1 / sqrt((double)n_in));
    snprintf(name, sizeof name, "%s.%d.bias", module, index);
    add_matrix(network, name, 1, n_out, 1 / sqrt((double)n_in));
}

/* torch starts all of an LSTM uniform within 1 / sqrt(n_hidden). */
static void add_lstm(sp_network *network, size_t index, size_t n_in, size_t n_hidden)
{
    char name[SP_NETWORK_NAME_BYTES];
    const double bound = 1 / sqrt((double)n_hidden);
    add_layer(network, &(layer){.is_lstm = true, .n_in = n_in, .n_out = 2 * n_hidden, .first = network->n_matrices});
    for (int reverse = 0; reverse < 2; reverse++) {
        const char *const direction = reverse ? "_reverse" : "";
        snprintf(name, sizeof name, "lstm_head.weight_ih_l%zu%s", index, direction);
        add_matrix(network, name, 4 * n_hidden, n_in, bound);
        snprintf(name, sizeof name, "lstm_head.weight_hh_l%zu%s", index, direction);
        add_matrix(network, name, 4 * n_hidden, n_hidden, bound);
        snprintf(name, sizeof name, "lstm_head.bias_ih_l%zu%s", index, direction);
        add_matrix(network, name, 1, 4 * n_hidden, bound);
        snprintf(name, sizeof name, "lstm_head.bias_hh_l%zu%s", index, direction);
        add_matrix(network, name, 1, 4 * n_hidden, bound);
    }
}

static void add_layers(sp_network *network)
{
    const sp_network_shape *s = &network->shape;
    add_matrix(network, "embedding.weight", s->n, s->n_in, 0);
    switch (s->kind) {
    case SP_NETWORK_MLP:
        add_linear(network, "mlp_head", 0, s->n_in, s->n_hidden, RELU);
        add_linear(network, "mlp_head", 2, s->n_hidden, s->n_hidden, RELU);
        add_linear(network, "mlp_head", 4, s->n_hidden, s->n_out, LINEAR);
        break;
    case SP_NETWORK_LSTM:
        for (size_t i = 0; i < s->n_layers; i++) add_lstm(network, i, i ? 2 * s->n_hidden : s->n_in, s->n_hidden);
        add_linear(network, "mlp_head", 0, 2 * s->n_hidden, 2 * s->n_hidden, RELU);
        add_linear(network, "mlp_head", 2, 2 * s->n_hidden, s->n_out, LINEAR);
        break;
    case SP_NETWORK_PROJECTION:
        add_linear(network, "transform", 0, s->n_in, s->n_hidden, TANH);
        add_linear(network, "transform", 2, s->n_hidden, s->n_out, LINEAR);
        break;
    }
}

static size_t activations_of(const sp_network *network, const layer *l)
{
    const bool is_last = l == &network->layers[network->n_layers - 1];
    const size_t n_hidden = l->n_out / 2;
    return network->shape.n * ((is_last ? 0 : l->n_out) + (l->is_lstm ? 2 * (4 + 1) * n_hidden : 0));
}

static sp_status allocate_activations(sp_network *network)
{
    const size_t n = network->shape.n;
    size_t n_values = 0;
    for (size_t i = 0; i < network->n_layers; i++) n_values += activations_of(network, &network->layers[i]);
    float *at = network->activations = malloc(n_values * sizeof *at);
    if (!at) return sp_fail_no_memory(n_values * sizeof *at);
    for (size_t i = 0; i < network->n_layers; i++) {
        layer *l = &network->layers[i];
        const size_t n_hidden = l->n_out / 2;
        float *end = at + activations_of(network, l);
        for (int reverse = 0; l->is_lstm && reverse < 2; reverse++) {
            l->state[reverse] = (sp_lstm_state){.gates = at, .cells = at + n * 4 * n_hidden};
            at += n * (4 + 1) * n_hidden;
        }
        l->y = at < end ? at : NULL;
        at = end;
    }
    return sp_arena_create(&network->scratch);
}

/* Sizes are bounded so that no product of two of them, times the bytes of a number, can wrap. */
static sp_status check_shape(const sp_network_shape *s)
{
    const size_t most = (size_t)1 << 31;
    if (s->n_hidden > SP_NETWORK_MAX_HIDDEN)
        return sp_fail(SP_ERR_ARGUMENT, "encoder_hidden_size is %zu; at most %d", s->n_hidden, SP_NETWORK_MAX_HIDDEN);
    if (s->n_layers > SP_NETWORK_MAX_LAYERS)
        return sp_fail(SP_ERR_ARGUMENT, "encoder_num_layers is %zu; at most %d", s->n_layers, SP_NETWORK_MAX_LAYERS);
    if (!s->n || !s->n_in || !s->n_hidden || !s->n_out || (s->kind == SP_NETWORK_LSTM && !s->n_layers) || s->n > most / 2 ||
        s->n_in > most || s->n_out > most)
        return sp_fail(SP_ERR_ARGUMENT, "an encoder of %zu virtual tokens, %zu to %zu to %zu numbers each, cannot be made", s->n,
                       s->n_in, s->n_hidden, s->n_out);
    return SP_OK;
}

sp_status sp_network_create(sp_network **out, const sp_network_shape *shape)
{
    *out = NULL;
    sp_status st = check_shape(shape);
    if (st) return st;
    sp_network *network = calloc(1, sizeof *network);
    if (!network) return sp_fail_no_memory(sizeof *network);
    network->shape = *shape;
    add_layers(network);
    if ((st = allocate_activations(network))) {
        sp_network_free(network);
        return st;
    }
    *out = network;
    return SP_OK;
}

void sp_network_free(sp_network *network)
{
    if (!network) return;
    sp_arena_free(network->scratch);
    free(network->activations);
    free(network);
}

size_t sp_network_n_matrices(const sp_network *network)
{
    return network->n_matrices;
}
const sp_network_matrix *sp_network_matrices(const sp_network *network)
{
    return network->matrices;
}
size_t sp_network_n_weights(const sp_network *network)
{
    return network->n_weights;
}

/* ---- start ---- */

void sp_network_init(float *weights, const sp_network *network, sp_rng *rng)
{
    for (size_t i = 0; i < network->n_matrices; i++) {
        const sp_network_matrix *m = &network->matrices[i];
        float *w = weights + m->offset;
        for (size_t j = 0; j < m->n_rows * m->n_columns; j++)
            w[j] = (float)(m->bound > 0 ? m->bound * (2 * sp_rng_uniform(rng) - 1) : sp_rng_normal(rng));
    }
}

/* G = L L^T, the lower triangle of G (n, n) becoming L. G is positive: it has something added to its diagonal. */
static void factorise(double *g, size_t n)
{
    for (size_t j = 0; j < n; j++) {
        for (size_t k = 0; k < j; k++) g[j * n + j] -= g[j * n + k] * g[j * n + k];
        const double root = g[j * n + j] = sqrt(g[j * n + j]);
        for (size_t i = j + 1; i < n; i++) {
            for (size_t k = 0; k < j; k++) g[i * n + j] -= g[i * n + k] * g[j * n + k];
            g[i * n + j] /= root;
        }
    }
}

/* L L^T x = x, one column of x (n), its numbers `stride` apart. */
static void solve(float *x, size_t stride, double *column, const double *l, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        column[i] = x[i * stride];
        for (size_t k = 0; k < i; k++) column[i] -= l[i * n + k] * column[k];
        column[i] /= l[i * n + i];
    }
    for (size_t i = n; i-- > 0;) {
        for (size_t k = i + 1; k < n; k++) column[i] -= l[k * n + i] * column[k];
        column[i] /= l[i * n + i];
        x[i * stride] = (float)column[i];
    }
}

/* With A (n, n_in) what the last layer reads and R what its rows lack, W and b move by X^T A and X^T 1, where (A A^T + 1 1^T) X =
 * R: of all moves that reach the targets the shortest. The diagonal grows by 1e-6 of its mean, which rounding hides, so that rows
 * that cannot be told apart, or more rows than n_in + 1, still have an answer: the nearest. */
static void fill_gram(double *g, const float *a, size_t n, size_t n_in)
{
    double trace = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++) {
            double sum = 1;
            for (size_t k = 0; k < n_in; k++) sum += (double)a[i * n_in + k] * a[j * n_in + k];
            g[i * n + j] = sum;
        }
    for (size_t i = 0; i < n; i++) trace += g[i * n + i];
    for (size_t i = 0; i < n; i++) g[i * n + i] += 1e-6 * trace / (double)n;
}

sp_status sp_network_fit(float *weights, sp_network *network, const float *targets)
{
    const layer *last = &network->layers[network->n_layers - 1];
    const size_t n = network->shape.n, n_out = last->n_out;
    const sp_arena_mark mark = sp_arena_get_mark(network->scratch);
    float *x = sp_arena_alloc(network->scratch, n * n_out, sizeof *x);
    double *gram = sp_arena_alloc(network->scratch, n * n, sizeof *gram);
    double *column = sp_arena_alloc(network->scratch, n, sizeof *column);
    sp_status st = x && gram && column ? sp_network_forward(x, network, weights) : SP_ERR_MEMORY;
    if (!st) {
        const float *a = last[-1].y;
        for (size_t i = 0; i < n * n_out; i++) x[i] = targets[i] - x[i];
        fill_gram(gram, a, n, last->n_in);
        factorise(gram, n);
        for (size_t j = 0; j < n_out; j++) solve(x + j, n_out, column, gram, n);
        sp_dense_backward_weight(weights + network->matrices[last->first].offset, x, n_out, a, last->n_in, n, last->n_in, n_out);
        sp_dense_backward_bias(weights + network->matrices[last->first + 1].offset, x, n, n_out);
    }
    sp_arena_reset(network->scratch, mark);
    return st;
}

/* ---- forward ---- */

/* Where the matrices of one direction of an LSTM begin. */
static size_t lstm_offset(const sp_network *network, const layer *l, int reverse)
{
    return network->matrices[l->first + (size_t)reverse * LSTM_MATRICES].offset;
}

static void activate(float *y, activation behind, size_t n)
{
    for (size_t i = 0; i < n && behind == RELU; i++) y[i] = y[i] > 0 ? y[i] : 0;
    for (size_t i = 0; i < n && behind == TANH; i++) y[i] = (float)tanh(y[i]);
}

/* dy becomes the gradient of what the activation read; both activations know their slope from what they wrote. */
static void activate_backward(float *dy, const float *y, activation behind, size_t n)
{
    for (size_t i = 0; i < n && behind == RELU; i++) dy[i] = y[i] > 0 ? dy[i] : 0;
    for (size_t i = 0; i < n && behind == TANH; i++) dy[i] *= 1 - y[i] * y[i];
}

static sp_status forward_layer(float *y, sp_network *network, const layer *l, const float *x, const float *weights)
{
    const size_t n = network->shape.n, n_hidden = l->n_out / 2;
    const sp_network_matrix *m = &network->matrices[l->first];
    sp_status st = SP_OK;
    if (l->is_lstm) {
        for (int reverse = 0; reverse < 2 && !st; reverse++) {
            const size_t offset = lstm_offset(network, l, reverse);
            st = sp_lstm(y + (size_t)reverse * n_hidden, l->n_out, &l->state[reverse], x, weights + offset, n, l->n_in, n_hidden,
                         reverse, network->scratch);
        }
        return st;
    }
    st = sp_dense(y, l->n_out, x, l->n_in, weights + m[0].offset, weights + m[1].offset, n, l->n_in, l->n_out, false,
                  network->scratch);
    activate(y, l->activation, n * l->n_out);
    return st;
}

sp_status sp_network_forward(float *rows, sp_network *network, const float *weights)
{
    const float *x = weights; /* the embedding comes first */
    for (size_t i = 0; i < network->n_layers; i++) {
        const layer *l = &network->layers[i];
        float *y = l->y ? l->y : rows;
        sp_status st = forward_layer(y, network, l, x, weights);
        if (st) return st;
        x = y;
    }
    return SP_OK;
}

/* ---- backward ---- */

/* dx (n, n_in) = or, with `accumulate`, += dL/dx of one layer; dy is lost. */
static sp_status backward_layer(float *dx, float *gradient, float *dy, sp_network *network, const layer *l, const float *x,
                                const float *weights, bool accumulate)
{
    const size_t n = network->shape.n, n_hidden = l->n_out / 2;
    const sp_network_matrix *m = &network->matrices[l->first];
    sp_status st = SP_OK;
    if (l->is_lstm) {
        for (int reverse = 0; reverse < 2 && !st; reverse++) {
            const size_t offset = lstm_offset(network, l, reverse), column = (size_t)reverse * n_hidden;
            st = sp_lstm_backward(dx, gradient + offset, dy + column, l->y + column, l->n_out, &l->state[reverse], x,
                                  weights + offset, n, l->n_in, n_hidden, reverse, accumulate || reverse, network->scratch);
        }
        return st;
    }
    if (l->y) activate_backward(dy, l->y, l->activation, n * l->n_out);
    sp_dense_backward_weight(gradient + m[0].offset, dy, l->n_out, x, l->n_in, n, l->n_in, l->n_out);
    sp_dense_backward_bias(gradient + m[1].offset, dy, n, l->n_out);
    return sp_dense_backward(dx, dy, weights + m[0].offset, n, l->n_in, l->n_out, accumulate, network->scratch);
}

sp_status sp_network_backward(float *gradient, sp_network *network, const float *weights, const float *d_rows)
{
    const size_t n = network->shape.n;
    const sp_arena_mark mark = sp_arena_get_mark(network->scratch);
    float *dy = sp_arena_alloc(network->scratch, n * network->widest, sizeof *dy);
    float *dx = sp_arena_alloc(network->scratch, n * network->widest, sizeof *dx);
    sp_status st = dy && dx ? SP_OK : SP_ERR_MEMORY;
    if (!st) memcpy(dy, d_rows, n * network->shape.n_out * sizeof *dy);
    for (size_t i = network->n_layers; i-- > 0 && !st;) {
        const layer *l = &network->layers[i];
        st = i ? backward_layer(dx, gradient, dy, network, l, l[-1].y, weights, false)
               : backward_layer(gradient, gradient, dy, network, l, weights, weights, true); /* the embedding's own comes first */
        float *written = dx;
        dx = dy;
        dy = written;
    }
    sp_arena_reset(network->scratch, mark);
    return st;
}
