/* net.c: building and running a net. Channels are rows: one number of all tokens lies together, so that a weight is one loop.
 *
 * Cost of a forward: weights * tokens for the layers, tokens * (num_virtual_tokens + len) * (rank + n_values) for attention. */
#include "lab/net.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"

enum { CHUNK_BYTES = 1 << 24 }; /* of streams that one thread works on at a time */

typedef struct entry { /* of a sparse matrix */
    size_t row, column;
    double weight;
} entry;

typedef struct entries {
    entry *items;
    size_t n, capacity;
} entries;

typedef struct layer {
    bool is_attention;
    size_t max_width, width; /* feed-forward: units */
    size_t rank, n_values;   /* attention */
    entries matrices[4];     /* attention: by sp_net_matrix. Feed-forward: W1 (width, D), W2 (D, width) */
    double *bias;            /* (width) */
    size_t bias_capacity;
} layer;

enum { W1 = 0, W2 = 1 };

struct sp_net {
    size_t d, len, n_prompt, n_channels;
    entries embedding;                         /* (D, d) */
    entries prompt_positions, input_positions; /* (D, n_prompt), (D, len) */
    layer *layers;
    size_t n_layers, layers_capacity;
    sp_span output;
    bool failed;
};

/* ---- building ---- */

sp_net *sp_net_create(size_t d, size_t len, size_t num_virtual_tokens)
{
    sp_net *net = calloc(1, sizeof *net);
    if (net) *net = (sp_net){.d = d, .len = len, .n_prompt = num_virtual_tokens};
    return net;
}

void sp_net_free(sp_net *net)
{
    if (!net) return;
    for (size_t i = 0; i < net->n_layers; i++) {
        for (size_t m = 0; m < 4; m++) free(net->layers[i].matrices[m].items);
        free(net->layers[i].bias);
    }
    free(net->layers);
    free(net->embedding.items);
    free(net->prompt_positions.items);
    free(net->input_positions.items);
    free(net);
}

sp_status sp_net_status(const sp_net *net)
{
    return net && !net->failed ? SP_OK : sp_fail_no_memory(sizeof *net);
}

/* Room for one more item behind n. */
static bool grow(void **items, size_t *capacity, size_t n, size_t item_bytes)
{
    if (n < *capacity) return true;
    size_t larger = *capacity ? 2 * *capacity : 16, n_bytes;
    void *moved = __builtin_mul_overflow(larger, item_bytes, &n_bytes) ? NULL : realloc(*items, n_bytes);
    if (!moved) return false;
    *items = moved;
    *capacity = larger;
    return true;
}

static void add_entry(sp_net *net, entries *matrix, size_t row, size_t column, double weight)
{
    if (net->failed || weight == 0) return;
    if (!grow((void **)&matrix->items, &matrix->capacity, matrix->n, sizeof *matrix->items)) {
        net->failed = true;
        return;
    }
    matrix->items[matrix->n++] = (entry){row, column, weight};
}

static layer *add_layer(sp_net *net)
{
    if (net->failed || !grow((void **)&net->layers, &net->layers_capacity, net->n_layers, sizeof *net->layers)) {
        net->failed = true;
        return NULL;
    }
    net->layers[net->n_layers] = (layer){0};
    return &net->layers[net->n_layers++];
}

static layer *last_layer(sp_net *net)
{
    return net->failed ? NULL : &net->layers[net->n_layers - 1];
}

sp_span sp_net_channels(sp_net *net, size_t n)
{
    net->n_channels += n;
    return (sp_span){net->n_channels - n, n};
}

void sp_net_set_embedding(sp_net *net, size_t channel, size_t coordinate, double weight)
{
    add_entry(net, &net->embedding, channel, coordinate, weight);
}

void sp_net_set_position(sp_net *net, size_t channel, size_t token, double value)
{
    if (token < net->n_prompt)
        add_entry(net, &net->prompt_positions, channel, token, value);
    else
        add_entry(net, &net->input_positions, channel, token - net->n_prompt, value);
}

void sp_net_begin_ffn(sp_net *net, size_t max_width)
{
    layer *l = add_layer(net);
    if (l) l->max_width = max_width;
}

void sp_net_unit(sp_net *net, double bias)
{
    layer *l = last_layer(net);
    if (l && l->max_width && l->width == l->max_width) {
        sp_net_begin_ffn(net, l->max_width);
        l = last_layer(net);
    }
    if (!l) return;
    if (!grow((void **)&l->bias, &l->bias_capacity, l->width, sizeof *l->bias)) {
        net->failed = true;
        return;
    }
    l->bias[l->width++] = bias;
}

void sp_net_in(sp_net *net, size_t channel, double weight)
{
    layer *l = last_layer(net);
    if (l) add_entry(net, &l->matrices[W1], l->width - 1, channel, weight);
}

void sp_net_out(sp_net *net, size_t channel, double weight)
{
    layer *l = last_layer(net);
    if (l) add_entry(net, &l->matrices[W2], channel, l->width - 1, weight);
}

void sp_net_begin_attention(sp_net *net, size_t rank, size_t n_values)
{
    layer *l = add_layer(net);
    if (!l) return;
    l->is_attention = true;
    l->rank = rank;
    l->n_values = n_values;
}

void sp_net_set(sp_net *net, sp_net_matrix matrix, size_t row, size_t column, double weight)
{
    layer *l = last_layer(net);
    if (l) add_entry(net, &l->matrices[matrix], row, column, weight);
}

void sp_net_set_output(sp_net *net, sp_span channels)
{
    net->output = channels;
}

/* ---- which prompt tokens depend on the input ---- */

/* Does any weight of a matrix read, by column, a channel that is marked? */
static bool reads_marked(const entries *matrix, const bool *marked)
{
    for (size_t i = 0; i < matrix->n; i++)
        if (marked[matrix->items[i].column]) return true;
    return false;
}

/* A unit that reads a marked channel marks what it writes. */
static void mark_through_units(bool *marked, bool *unit_marked, const layer *l)
{
    memset(unit_marked, 0, l->width * sizeof *unit_marked);
    for (size_t i = 0; i < l->matrices[W1].n; i++)
        if (marked[l->matrices[W1].items[i].column]) unit_marked[l->matrices[W1].items[i].row] = true;
    for (size_t i = 0; i < l->matrices[W2].n; i++)
        if (unit_marked[l->matrices[W2].items[i].column]) marked[l->matrices[W2].items[i].row] = true;
}

bool sp_net_prompt_is_shared(const sp_net *net)
{
    size_t max_width = sp_net_get_size(net).max_ffn_width;
    bool *marked = calloc(net->n_channels + 1, sizeof *marked), *units = calloc(max_width + 1, sizeof *units);
    bool shared = marked && units;
    for (size_t i = 0; i < net->n_layers && shared; i++) {
        const layer *l = &net->layers[i];
        if (!l->is_attention) {
            mark_through_units(marked, units, l);
            continue;
        }
        shared = !reads_marked(&l->matrices[SP_NET_K], marked) && !reads_marked(&l->matrices[SP_NET_V], marked);
        for (size_t k = 0; k < l->matrices[SP_NET_O].n; k++) marked[l->matrices[SP_NET_O].items[k].row] = true;
    }
    free(units);
    free(marked);
    return shared;
}

/* ---- running ---- */

/* Tokens of one kind, all channels: z (n_channels, n). */
typedef struct stream {
    double *z;
    size_t n;
} stream;

/* Scratch of one thread. */
typedef struct work {
    stream inputs, prompt;                   /* prompt: shared by all inputs, n 0 where every input has its own */
    double *hidden;                          /* (max_ffn_width, max tokens) */
    double *q, *k, *v, *prompt_k, *prompt_v; /* (rank or n_values, tokens) */
    double *scores, *attended;               /* (keys), (n_values, tokens) */
    size_t own;                              /* tokens that each input has in `inputs` */
} work;

/* y (rows, n) += M x (columns, n) */
static void add_product(double *y, const entries *m, const double *x, size_t n)
{
    for (size_t i = 0; i < m->n; i++) {
        double w = m->items[i].weight, *to = y + m->items[i].row * n;
        const double *from = x + m->items[i].column * n;
        for (size_t j = 0; j < n; j++) to[j] += w * from[j];
    }
}

static void feed_forward(stream *s, double *hidden, const layer *l)
{
    for (size_t u = 0; u < l->width; u++)
        for (size_t j = 0; j < s->n; j++) hidden[u * s->n + j] = l->bias[u];
    add_product(hidden, &l->matrices[W1], s->z, s->n);
    for (size_t i = 0; i < l->width * s->n; i++) hidden[i] = fmax(hidden[i], 0);
    add_product(s->z, &l->matrices[W2], hidden, s->n);
}

static void project(double *out, const entries *m, size_t n_rows, const stream *s)
{
    memset(out, 0, n_rows * s->n * sizeof *out);
    add_product(out, m, s->z, s->n);
}

/* scores (keys) of token t: over the prompt's keys, then over its own input's, which begin at `first`. */
static void score(double *scores, const work *w, const layer *l, size_t t, size_t first)
{
    size_t n_prompt = w->prompt.n, n = w->inputs.n;
    memset(scores, 0, (n_prompt + w->own) * sizeof *scores);
    for (size_t r = 0; r < l->rank; r++) {
        double q = w->q[r * n + t];
        const double *prompt_k = w->prompt_k + r * n_prompt, *k = w->k + r * n + first;
        for (size_t j = 0; j < n_prompt; j++) scores[j] += q * prompt_k[j];
        for (size_t j = 0; j < w->own; j++) scores[n_prompt + j] += q * k[j];
    }
}

/* In place; returns the best score less the next best. */
static double softmax(double *scores, size_t n)
{
    double best = -INFINITY, next = -INFINITY, sum = 0;
    for (size_t j = 0; j < n; j++) {
        next = fmax(next, fmin(best, scores[j]));
        best = fmax(best, scores[j]);
    }
    for (size_t j = 0; j < n; j++) sum += scores[j] = exp(scores[j] - best);
    for (size_t j = 0; j < n; j++) scores[j] /= sum;
    return n > 1 ? best - next : 0;
}

static double dot(const double *a, const double *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void attend(work *w, double *gaps, const layer *l)
{
    size_t n = w->inputs.n, n_prompt = w->prompt.n;
    project(w->q, &l->matrices[SP_NET_Q], l->rank, &w->inputs);
    project(w->k, &l->matrices[SP_NET_K], l->rank, &w->inputs);
    project(w->v, &l->matrices[SP_NET_V], l->n_values, &w->inputs);
    project(w->prompt_k, &l->matrices[SP_NET_K], l->rank, &w->prompt);
    project(w->prompt_v, &l->matrices[SP_NET_V], l->n_values, &w->prompt);
    for (size_t t = 0; t < n; t++) {
        size_t first = t / w->own * w->own;
        score(w->scores, w, l, t, first);
        double gap = softmax(w->scores, n_prompt + w->own);
        if (gaps) gaps[t] = gap;
        for (size_t r = 0; r < l->n_values; r++)
            w->attended[r * n + t] =
                dot(w->scores, w->prompt_v + r * n_prompt, n_prompt) + dot(w->scores + n_prompt, w->v + r * n + first, w->own);
    }
    add_product(w->inputs.z, &l->matrices[SP_NET_O], w->attended, n);
}

/* Adds E x + positions of n tokens that stand behind each other from column `at` on; x (n, d). */
static void embed(stream *s, size_t at, const sp_net *net, const entries *positions, const double *x, size_t n)
{
    for (size_t i = 0; i < net->embedding.n; i++) {
        const entry *e = &net->embedding.items[i];
        for (size_t t = 0; t < n; t++) s->z[e->row * s->n + at + t] += e->weight * x[t * net->d + e->column];
    }
    for (size_t i = 0; i < positions->n; i++)
        s->z[positions->items[i].row * s->n + at + positions->items[i].column] += positions->items[i].weight;
}

static void free_work(work *w)
{
    double *const arrays[] = {w->inputs.z, w->prompt.z, w->hidden,   w->q,      w->k,
                              w->v,        w->prompt_k, w->prompt_v, w->scores, w->attended};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* For chunks of up to n inputs. */
static sp_status create_work(work *w, const sp_net *net, size_t n, bool shared)
{
    const sp_net_size size = sp_net_get_size(net);
    size_t n_values = 0, own = shared ? net->len : net->n_prompt + net->len, n_prompt = shared ? net->n_prompt : 0;
    for (size_t i = 0; i < net->n_layers; i++) n_values = sp_larger(n_values, net->layers[i].n_values);
    size_t n_tokens = n * own, most = sp_larger(n_tokens, n_prompt);
    *w = (work){.inputs.n = n_tokens, .prompt.n = n_prompt, .own = own};
    struct {
        double **array;
        size_t n_rows, n_columns;
    } arrays[] = {
        {&w->inputs.z, net->n_channels, n_tokens}, {&w->prompt.z, net->n_channels, n_prompt},
        {&w->hidden, size.max_ffn_width, most},    {&w->q, size.max_rank, n_tokens},
        {&w->k, size.max_rank, n_tokens},          {&w->v, n_values, n_tokens},
        {&w->prompt_k, size.max_rank, n_prompt},   {&w->prompt_v, n_values, n_prompt},
        {&w->scores, 1, n_prompt + own},           {&w->attended, n_values, n_tokens},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        size_t n_bytes;
        if (__builtin_mul_overflow(arrays[i].n_rows * sizeof(double), arrays[i].n_columns, &n_bytes))
            return sp_fail_no_memory(SIZE_MAX);
        if (!(*arrays[i].array = malloc(n_bytes + sizeof(double)))) return sp_fail_no_memory(n_bytes);
    }
    return SP_OK;
}

/* The streams of n inputs before the first layer. */
static void embed_chunk(work *w, const sp_net *net, const double *prompt, const double *x, size_t n)
{
    size_t n_own_prompt = w->own - net->len; /* prompt tokens that every input has for itself */
    w->inputs.n = n * w->own;
    memset(w->inputs.z, 0, net->n_channels * w->inputs.n * sizeof(double));
    memset(w->prompt.z, 0, net->n_channels * w->prompt.n * sizeof(double));
    if (w->prompt.n) embed(&w->prompt, 0, net, &net->prompt_positions, prompt, net->n_prompt);
    for (size_t i = 0; i < n; i++, x += net->len * net->d) {
        if (n_own_prompt) embed(&w->inputs, i * w->own, net, &net->prompt_positions, prompt, n_own_prompt);
        embed(&w->inputs, i * w->own + n_own_prompt, net, &net->input_positions, x, net->len);
    }
}

static void read_output(double *y, const work *w, const sp_net *net, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < net->len; t++)
            for (size_t c = 0; c < net->output.n; c++)
                *y++ = w->inputs.z[(net->output.first + c) * w->inputs.n + (i + 1) * w->own - net->len + t];
}

static void run_chunk(double *y, double *gaps, work *w, const sp_net *net, const double *prompt, const double *x, size_t n)
{
    embed_chunk(w, net, prompt, x, n);
    for (size_t i = 0; i < net->n_layers; i++) {
        const layer *l = &net->layers[i];
        if (l->is_attention) {
            attend(w, gaps, l);
        } else {
            feed_forward(&w->prompt, w->hidden, l);
            feed_forward(&w->inputs, w->hidden, l);
        }
    }
    read_output(y, w, net, n);
}

sp_status sp_net_forward(double *y, double *gaps, const sp_net *net, const double *prompt, const double *x, size_t n, bool is_full)
{
    bool shared = !is_full && sp_net_prompt_is_shared(net), failed = false;
    size_t own = shared ? net->len : net->n_prompt + net->len, n_output = net->len * net->output.n;
    size_t chunk = sp_larger(1, CHUNK_BYTES / sizeof(double) / ((net->n_channels + sp_net_get_size(net).max_ffn_width) * own));
    if (!shared) gaps = NULL;
#pragma omp parallel
    {
        work w;
        sp_status st = create_work(&w, net, chunk, shared);
        if (st) {
#pragma omp atomic write
            failed = true;
        }
#pragma omp for schedule(dynamic)
        for (size_t first = 0; first < n; first += chunk) {
            if (st) continue;
            size_t n_now = n - first < chunk ? n - first : chunk;
            run_chunk(y + first * n_output, gaps ? gaps + first * net->len : NULL, &w, net, prompt, x + first * net->len * net->d,
                      n_now);
        }
        free_work(&w);
    }
    return failed ? sp_fail_no_memory(2 * (size_t)CHUNK_BYTES) : SP_OK;
}

/* ---- what it is ---- */

static double largest(const entries *m, double so_far)
{
    for (size_t i = 0; i < m->n; i++) so_far = fmax(so_far, fabs(m->items[i].weight));
    return so_far;
}

sp_net_size sp_net_get_size(const sp_net *net)
{
    sp_net_size size = {.n_channels = net->n_channels, .num_virtual_tokens = net->n_prompt};
    for (size_t i = 0; i < net->n_layers; i++) {
        const layer *l = &net->layers[i];
        size.n_ffn += !l->is_attention;
        size.n_attention += l->is_attention;
        size.max_ffn_width = sp_larger(size.max_ffn_width, l->width);
        size.max_rank = sp_larger(size.max_rank, l->rank);
        for (size_t m = 0; m < 4; m++) {
            size.n_weights_nonzero += l->matrices[m].n;
            size.max_weight = largest(&l->matrices[m], size.max_weight);
        }
        for (size_t u = 0; u < l->width; u++) {
            size.n_weights_nonzero += l->bias[u] != 0;
            size.max_weight = fmax(size.max_weight, fabs(l->bias[u]));
        }
    }
    size.max_position = largest(&net->input_positions, largest(&net->prompt_positions, 0));
    return size;
}

static void write_out(double *dense, const entries *m, size_t n_columns)
{
    for (size_t i = 0; i < m->n; i++) dense[m->items[i].row * n_columns + m->items[i].column] += m->items[i].weight;
}

static sp_status visit_matrix(const char *name, const entries *m, size_t n_rows, size_t n_columns, sp_net_visitor *visit,
                              void *user)
{
    double *dense = calloc(n_rows * n_columns + 1, sizeof *dense);
    if (!dense) return sp_fail_no_memory(n_rows * n_columns * sizeof *dense);
    write_out(dense, m, n_columns);
    sp_status st = visit(user, name, dense, n_rows, n_columns);
    free(dense);
    return st;
}

static sp_status visit_positions(const sp_net *net, sp_net_visitor *visit, void *user)
{
    size_t n_tokens = net->n_prompt + net->len;
    double *dense = calloc(net->n_channels * n_tokens + 1, sizeof *dense);
    if (!dense) return sp_fail_no_memory(net->n_channels * n_tokens * sizeof *dense);
    write_out(dense, &net->prompt_positions, n_tokens);
    write_out(dense + net->n_prompt, &net->input_positions, n_tokens);
    sp_status st = visit(user, "positions", dense, net->n_channels, n_tokens);
    free(dense);
    return st;
}

static sp_status visit_layer(const sp_net *net, size_t index, sp_net_visitor *visit, void *user)
{
    static const char *const attention[] = {"q", "k", "v", "o"};
    const layer *l = &net->layers[index];
    char name[64];
    sp_status st = SP_OK;
    for (size_t m = 0; m < 4 && l->is_attention && !st; m++) {
        size_t n = m < SP_NET_V ? l->rank : l->n_values;
        snprintf(name, sizeof name, "layers.%zu.%s", index, attention[m]);
        st = m == SP_NET_O ? visit_matrix(name, &l->matrices[m], net->n_channels, n, visit, user)
                           : visit_matrix(name, &l->matrices[m], n, net->n_channels, visit, user);
    }
    if (l->is_attention || st) return st;
    snprintf(name, sizeof name, "layers.%zu.w1", index);
    if ((st = visit_matrix(name, &l->matrices[W1], l->width, net->n_channels, visit, user))) return st;
    snprintf(name, sizeof name, "layers.%zu.b1", index);
    if ((st = visit(user, name, l->bias, 1, l->width))) return st;
    snprintf(name, sizeof name, "layers.%zu.w2", index);
    return visit_matrix(name, &l->matrices[W2], net->n_channels, l->width, visit, user);
}

sp_status sp_net_visit(const sp_net *net, sp_net_visitor *visit, void *user)
{
    const double output[] = {(double)net->output.first, (double)net->output.n};
    sp_status st = visit_matrix("embedding", &net->embedding, net->n_channels, net->d, visit, user);
    if (!st) st = visit_positions(net, visit, user);
    for (size_t i = 0; i < net->n_layers && !st; i++) st = visit_layer(net, i, visit, user);
    return st ? st : visit(user, "output", output, 1, 2);
}
