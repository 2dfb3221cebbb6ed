/* random_layer.c: forward and derivatives of a layer with random weights.
 *
 * Only the prompt is learnt, so queries, and the keys and values of the inputs, are computed once. A data set has few answers, T d
 * of them, and a prompt few numbers, so what is computed is the whole Jacobian; a gradient is a product with it.
 *
 * Cost of an answer: T (num_virtual_tokens D + H (D + d)), of the Jacobian T (num_virtual_tokens d (D + d) + H D d). */
#include "lab/random_layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"

enum { WEIGHTS, POSITIONS }; /* streams of the seed */

static const double SIZE =
    256; /* of positions and of what is learnt: large values make of small differences of weights large ones */
static const double SCORE = 2;    /* the deviation, about, of scores between an input of unit size and tokens of that size */
static const double HIDDEN = 0.3; /* the same of what the feed-forward layer adds to a token of unit size */

static double dot(const double *a, const double *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Lays arrays of so many numbers out behind each other. */
typedef struct part {
    double **array;
    size_t n;
} part;

static sp_status allocate(double **memory, const part *parts, size_t n_parts)
{
    size_t n = 1;
    for (size_t i = 0; i < n_parts; i++) n += parts[i].n;
    *memory = calloc(n, sizeof **memory);
    if (!*memory) return sp_fail_no_memory(n * sizeof **memory);
    double *at = *memory;
    for (size_t i = 0; i < n_parts; at += parts[i++].n) *parts[i].array = at;
    return SP_OK;
}

/* ---- the layer ---- */

static void draw_normal(double *w, size_t n, double deviation, sp_rng *rng)
{
    for (size_t i = 0; i < n; i++) w[i] = deviation * sp_rng_normal(rng);
}

/* Keys are made smaller by as much as tokens of the prompt are large. Kinks of the units lie where answers are. */
static void draw_weights(sp_random_layer *l, uint64_t seed)
{
    const sp_random_layer_shape *s = &l->shape;
    const size_t n = l->n_channels;
    const double root = sqrt((double)n), sharpness = sqrt(SCORE / root);
    sp_rng rng = sp_rng_seed(seed, WEIGHTS);
    draw_normal(l->q, n * n, sharpness, &rng);
    draw_normal(l->k, n * n, sharpness / SIZE, &rng);
    draw_normal(l->ov, n * n, 1 / root, &rng);
    draw_normal(l->w1, s->n_hidden * n, 1 / root, &rng);
    for (size_t i = 0; i < s->n_hidden; i++) l->b1[i] = 4 * sp_rng_uniform(&rng) - 2;
    draw_normal(l->w2, s->d * s->n_hidden, HIDDEN / sqrt((double)s->n_hidden), &rng);
    rng = sp_rng_seed(seed, POSITIONS);
    draw_normal(l->positions, s->max_tokens * s->n_positions, SIZE, &rng);
}

sp_status sp_random_layer_create(sp_random_layer *l, const sp_random_layer_shape *s, uint64_t seed)
{
    const size_t n = s->d + s->n_positions;
    *l = (sp_random_layer){.shape = *s, .n_channels = n, .size = SIZE};
    const part parts[] = {{&l->q, n * n},
                          {&l->k, n * n},
                          {&l->ov, n * n},
                          {&l->w1, s->n_hidden * n},
                          {&l->b1, s->n_hidden},
                          {&l->w2, s->d * s->n_hidden},
                          {&l->positions, s->max_tokens * s->n_positions}};
    sp_status st = allocate(&l->memory, parts, sizeof parts / sizeof *parts);
    if (!st) draw_weights(l, seed);
    return st;
}

void sp_random_layer_clear(sp_random_layer *layer)
{
    free(layer->memory);
    *layer = (sp_random_layer){0};
}

/* ---- inputs ---- */

/* y = M x, M (n, n) */
static void multiply(double *y, const double *m, const double *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = dot(m + i * n, x, n);
}

static void prepare_token(sp_layer_inputs *in, size_t t, const double *x)
{
    const sp_random_layer *l = in->layer;
    const size_t n = l->n_channels, d = l->shape.d;
    double *z = in->stream + t * n, *query = in->queries + t * n; /* positions of inputs are the zeros of the allocation */
    memcpy(z, x, d * sizeof *z);
    multiply(query, l->q, z, n);
    multiply(in->own_values + t * n, l->ov, z, n);
    for (size_t c = 0; c < d; c++)
        for (size_t i = 0; i < n; i++) in->slopes[t * d + c] += l->k[i * n + c] * query[i];
}

static void score_own(sp_layer_inputs *in, size_t t, double *key)
{
    const size_t n = in->layer->n_channels, len = in->layer->shape.len, first = t / len * len;
    for (size_t l = 0; l < len; l++) {
        multiply(key, in->layer->k, in->stream + (first + l) * n, n);
        in->own_scores[t * len + l] = dot(in->queries + t * n, key, n);
    }
}

sp_status sp_layer_inputs_create(sp_layer_inputs *in, const sp_random_layer *layer, const double *x, size_t n_sequences)
{
    const sp_random_layer_shape *s = &layer->shape;
    const size_t n_tokens = n_sequences * s->len, n = layer->n_channels;
    double *key;
    *in = (sp_layer_inputs){.layer = layer, .n_tokens = n_tokens};
    const part parts[] = {{&in->stream, n_tokens * n},          {&in->queries, n_tokens * n},    {&in->slopes, n_tokens * s->d},
                          {&in->own_scores, n_tokens * s->len}, {&in->own_values, n_tokens * n}, {&key, n}};
    sp_status st = allocate(&in->memory, parts, sizeof parts / sizeof *parts);
    for (size_t t = 0; t < n_tokens && !st; t++) prepare_token(in, t, x + t * s->d);
    for (size_t t = 0; t < n_tokens && !st; t++) score_own(in, t, key);
    return st;
}

void sp_layer_inputs_clear(sp_layer_inputs *inputs)
{
    free(inputs->memory);
    *inputs = (sp_layer_inputs){0};
}

/* ---- answers ---- */

typedef struct work {
    double *keys, *values; /* (num_virtual_tokens, D) */
    double *weights;       /* (num_virtual_tokens + len) */
    double *z, *mean;      /* (D) the stream behind attention; what attention adds */
    double *hidden;        /* (H) */
    double *slope;         /* (d, D) of the answer in z */
    double *direct;        /* (d, d) slope OV, of the numbers */
} work;

size_t sp_layer_scratch(const sp_random_layer *layer, size_t num_virtual_tokens)
{
    const sp_random_layer_shape *s = &layer->shape;
    return (2 * num_virtual_tokens + s->d + 2) * layer->n_channels + num_virtual_tokens + s->len + s->n_hidden + s->d * s->d;
}

static work lay_out(double *scratch, const sp_random_layer *l, size_t n_prompt)
{
    const sp_random_layer_shape *s = &l->shape;
    work w = {.keys = scratch};
    w.values = w.keys + n_prompt * l->n_channels;
    w.weights = w.values + n_prompt * l->n_channels;
    w.z = w.weights + n_prompt + s->len;
    w.mean = w.z + l->n_channels;
    w.hidden = w.mean + l->n_channels;
    w.slope = w.hidden + s->n_hidden;
    w.direct = w.slope + s->d * l->n_channels;
    return w;
}

static void project_prompt(work *w, const sp_random_layer *l, const double *prompt, size_t n_prompt)
{
    const size_t n = l->n_channels, d = l->shape.d;
    for (size_t j = 0; j < n_prompt; j++) {
        memcpy(w->z, prompt + j * d, d * sizeof *w->z);
        memcpy(w->z + d, l->positions + j * (n - d), (n - d) * sizeof *w->z);
        multiply(w->keys + j * n, l->k, w->z, n);
        multiply(w->values + j * n, l->ov, w->z, n);
    }
}

static void attend(work *w, const sp_layer_inputs *in, size_t t, size_t n_prompt)
{
    const size_t n = in->layer->n_channels, len = in->layer->shape.len, n_keys = n_prompt + len;
    double best = -INFINITY, sum = 0;
    for (size_t j = 0; j < n_prompt; j++) w->weights[j] = dot(in->queries + t * n, w->keys + j * n, n);
    memcpy(w->weights + n_prompt, in->own_scores + t * len, len * sizeof *w->weights);
    for (size_t j = 0; j < n_keys; j++) best = fmax(best, w->weights[j]);
    for (size_t j = 0; j < n_keys; j++) sum += w->weights[j] = exp(w->weights[j] - best);
    memset(w->mean, 0, n * sizeof *w->mean);
    for (size_t j = 0; j < n_keys; j++) {
        const double *value = j < n_prompt ? w->values + j * n : in->own_values + (t / len * len + j - n_prompt) * n;
        w->weights[j] /= sum;
        for (size_t c = 0; c < n; c++) w->mean[c] += w->weights[j] * value[c];
    }
    for (size_t c = 0; c < n; c++) w->z[c] = in->stream[t * n + c] + w->mean[c];
}

static void feed_forward(double *y, work *w, const sp_random_layer *l)
{
    const sp_random_layer_shape *s = &l->shape;
    const size_t n = l->n_channels;
    for (size_t u = 0; u < s->n_hidden; u++) w->hidden[u] = fmax(dot(l->w1 + u * n, w->z, n) + l->b1[u], 0);
    for (size_t r = 0; r < s->d; r++) y[r] = w->z[r] + dot(l->w2 + r * s->n_hidden, w->hidden, s->n_hidden);
}

/* slope = [I, 0] + W2 diag(unit is on) W1. */
static void feed_forward_slope(work *w, const sp_random_layer *l)
{
    const sp_random_layer_shape *s = &l->shape;
    const size_t n = l->n_channels;
    memset(w->slope, 0, s->d * n * sizeof *w->slope);
    for (size_t r = 0; r < s->d; r++) {
        w->slope[r * n + r] = 1;
        for (size_t u = 0; u < s->n_hidden; u++) {
            if (w->hidden[u] <= 0) continue;
            for (size_t c = 0; c < n; c++) w->slope[r * n + c] += l->w2[r * s->n_hidden + u] * l->w1[u * n + c];
        }
    }
    memset(w->direct, 0, s->d * s->d * sizeof *w->direct);
    for (size_t r = 0; r < s->d; r++)
        for (size_t i = 0; i < n; i++)
            for (size_t c = 0; c < s->d; c++) w->direct[r * s->d + c] += w->slope[r * n + i] * l->ov[i * n + c];
}

/* rows (d, n_prompt d). With weight a_j of prompt token j, value v_j, mean m, and K^T q = u: a number of token j moves its value,
 * by a_j OV, and all weights, which moves the mean by a_j (v_j - m) u. */
static void differentiate(double *rows, const work *w, const sp_layer_inputs *in, size_t t, size_t n_prompt)
{
    const size_t n = in->layer->n_channels, d = in->layer->shape.d;
    const double *u = in->slopes + t * d;
    for (size_t r = 0; r < d; r++) {
        const double at_mean = dot(w->slope + r * n, w->mean, n);
        for (size_t j = 0; j < n_prompt; j++) {
            const double by_weight = dot(w->slope + r * n, w->values + j * n, n) - at_mean;
            for (size_t c = 0; c < d; c++) *rows++ = w->weights[j] * (w->direct[r * d + c] + by_weight * u[c]);
        }
    }
}

void sp_layer_answer(double *y, double *jacobian, const sp_layer_inputs *in, const double *prompt, size_t n_prompt, double *scratch)
{
    const size_t d = in->layer->shape.d;
    work w = lay_out(scratch, in->layer, n_prompt);
    project_prompt(&w, in->layer, prompt, n_prompt);
    for (size_t t = 0; t < in->n_tokens; t++) {
        attend(&w, in, t, n_prompt);
        feed_forward(y + t * d, &w, in->layer);
        if (!jacobian) continue;
        feed_forward_slope(&w, in->layer);
        differentiate(jacobian + t * d * n_prompt * d, &w, in, t, n_prompt);
    }
}
