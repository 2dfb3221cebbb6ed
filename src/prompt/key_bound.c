/* key_bound.c: the projection, head by head, in f64. */
#include "prompt/key_bound.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"
#include "tensor/kernels.h"

/* Keys are cut a little inside, so that rounding them to f32 does not take them out again, and what is between is left alone: so a
 * second projection changes nothing, and a run that is resumed goes on with what it saved. */
static const double INSIDE = 1e-5, SLACK = 5e-6;

/* Of what rounding to f32 leaves beside the directions, relative to the largest entry. */
static const double ROUNDING = 1e-6;

enum { MAX_ITERATIONS = 1000 };

/* One head's numbers in f64: (n, d) keys less their mean, (n, rank) coordinates. */
typedef struct head_work {
    double *mean, *deviations, *coordinates, *centre, *sum;
} head_work;

static size_t scratch_length(size_t n, size_t d)
{
    return d + 2 * n * d + 2 * d;
}

static head_work work_of(const sp_key_bound *b)
{
    double *next = b->scratch;
    return (head_work){.mean = next,
                       .deviations = next + b->d_head,
                       .coordinates = next + b->d_head + b->n_keys * b->d_head,
                       .centre = next + b->d_head + 2 * b->n_keys * b->d_head,
                       .sum = next + 2 * b->d_head + 2 * b->n_keys * b->d_head};
}

sp_status sp_key_bound_create(sp_key_bound **out, double max_logit, size_t rank, const sp_model_info *model, size_t n_keys)
{
    const size_t n_heads = model->n_layer * model->n_head_kv, d = model->d_head;
    sp_key_bound *b = *out = calloc(1, sizeof *b);
    if (!b) return sp_fail_no_memory(sizeof *b);
    *b = (sp_key_bound){.max_logit = max_logit,
                        .rank = rank,
                        .n_layer = model->n_layer,
                        .n_head_kv = model->n_head_kv,
                        .d_head = d,
                        .n_keys = n_keys};
    b->directions = calloc(n_heads * rank * d, sizeof *b->directions);
    b->query_norms = calloc(n_heads, sizeof *b->query_norms);
    b->scratch = malloc(scratch_length(n_keys, d) * sizeof *b->scratch);
    if (b->directions && b->query_norms && b->scratch) return SP_OK;
    sp_key_bound_free(b);
    *out = NULL;
    return sp_fail_no_memory(scratch_length(n_keys, d) * sizeof *b->scratch);
}

void sp_key_bound_free(sp_key_bound *bound)
{
    if (!bound) return;
    free(bound->directions);
    free(bound->query_norms);
    free(bound->scratch);
    free(bound);
}

size_t sp_key_bound_n_heads(const sp_key_bound *bound)
{
    return bound->n_layer * bound->n_head_kv;
}

size_t sp_key_bound_column(const sp_key_bound *bound, size_t head)
{
    const size_t layer = head / bound->n_head_kv;
    return (2 * layer * bound->n_head_kv + head % bound->n_head_kv) * bound->d_head;
}

static size_t width_of(const sp_key_bound *b)
{
    return 2 * b->n_layer * b->n_head_kv * b->d_head;
}

static const float *directions_of(const sp_key_bound *b, size_t head)
{
    return b->directions + head * b->rank * b->d_head;
}

static double norm_of(const double *x, size_t n)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += x[i] * x[i];
    return sqrt(squares);
}

void sp_key_bound_coordinates(float *coordinates, const sp_key_bound *bound, size_t head, const float *q)
{
    const size_t d = bound->d_head;
    if (bound->rank == d) {
        memcpy(coordinates, q, d * sizeof *q);
        return;
    }
    const sp_kernels *kernels = sp_kernels_select();
    const float *u = directions_of(bound, head);
    for (size_t i = 0; i < bound->rank; i++, u += d) coordinates[i] = kernels->dot(u, q, d);
}

/* mean, deviations and coordinates of a head's keys. Returns the largest amount of a key's entry. */
static double read_keys(const head_work *w, const float *keys, const sp_key_bound *b, size_t head)
{
    const size_t n = b->n_keys, d = b->d_head, width = width_of(b);
    double largest = 0;
    memset(w->mean, 0, d * sizeof *w->mean);
    for (size_t j = 0; j < n; j++)
        for (size_t k = 0; k < d; k++) {
            w->mean[k] += (double)keys[j * width + k] / (double)n;
            largest = fmax(largest, fabs((double)keys[j * width + k]));
        }
    for (size_t j = 0; j < n; j++)
        for (size_t k = 0; k < d; k++) w->deviations[j * d + k] = (double)keys[j * width + k] - w->mean[k];
    if (b->rank == d) {
        memcpy(w->coordinates, w->deviations, n * d * sizeof *w->coordinates);
        return largest;
    }
    for (size_t j = 0; j < n; j++) {
        const float *u = directions_of(b, head);
        for (size_t i = 0; i < b->rank; i++, u += d) {
            double sum = 0;
            for (size_t k = 0; k < d; k++) sum += (double)u[k] * w->deviations[j * d + k];
            w->coordinates[j * b->rank + i] = sum;
        }
    }
    return largest;
}

/* Does a deviation leave the directions by more than rounding? */
static bool leaves_directions(const head_work *w, const sp_key_bound *b, size_t head, double largest)
{
    const size_t d = b->d_head;
    if (b->rank == d) return false;
    for (size_t j = 0; j < b->n_keys; j++)
        for (size_t k = 0; k < d; k++) {
            const float *u = directions_of(b, head);
            double rest = w->deviations[j * d + k];
            for (size_t i = 0; i < b->rank; i++) rest -= w->coordinates[j * b->rank + i] * (double)u[i * d + k];
            if (fabs(rest) > ROUNDING * largest) return true;
        }
    return false;
}

/* What share of x (rank) less the centre is left when it is cut to the radius. */
static double cut_factor(const double *x, const double *centre, size_t rank, double radius)
{
    double squares = 0;
    for (size_t i = 0; i < rank; i++) squares += (x[i] - centre[i]) * (x[i] - centre[i]);
    const double norm = sqrt(squares);
    return norm > radius ? radius / norm : 1;
}

/* Huber's estimate of location: the mean, weighted by what a cut to the radius leaves, again and again until what is left sums to
 * 0. It begins at the mean, which is 0. */
static void find_centre(const head_work *w, size_t n, size_t rank, double radius)
{
    memset(w->centre, 0, rank * sizeof *w->centre);
    for (int round = 0; round < MAX_ITERATIONS; round++) {
        double weights = 0;
        memset(w->sum, 0, rank * sizeof *w->sum);
        for (size_t j = 0; j < n; j++) {
            const double *x = w->coordinates + j * rank, factor = cut_factor(x, w->centre, rank, radius);
            weights += factor;
            for (size_t i = 0; i < rank; i++) w->sum[i] += factor * (x[i] - w->centre[i]);
        }
        if (norm_of(w->sum, rank) <= 1e-9 * radius * (double)n) return;
        for (size_t i = 0; i < rank; i++) w->centre[i] += w->sum[i] / weights;
    }
}

/* coordinates = cut(coordinates - centre), of mean 0 also where the centre was not found to the last digit. */
static void cut_all(const head_work *w, size_t n, size_t rank, double radius)
{
    double largest = 0;
    memset(w->sum, 0, rank * sizeof *w->sum);
    for (size_t j = 0; j < n; j++) {
        double *x = w->coordinates + j * rank, factor = cut_factor(x, w->centre, rank, radius);
        for (size_t i = 0; i < rank; i++) {
            x[i] = factor * (x[i] - w->centre[i]);
            w->sum[i] += x[i] / (double)n;
        }
    }
    for (size_t j = 0; j < n; j++) {
        double *x = w->coordinates + j * rank;
        for (size_t i = 0; i < rank; i++) x[i] -= w->sum[i];
        largest = fmax(largest, norm_of(x, rank));
    }
    if (largest <= radius) return;
    for (size_t i = 0; i < n * rank; i++) w->coordinates[i] *= radius / largest;
}

/* keys = mean + coordinates U */
static void write_keys(float *keys, const head_work *w, const sp_key_bound *b, size_t head)
{
    const size_t d = b->d_head, width = width_of(b);
    for (size_t j = 0; j < b->n_keys; j++)
        for (size_t k = 0; k < d; k++) {
            const float *u = directions_of(b, head);
            double x = w->mean[k];
            if (b->rank == d)
                x += w->coordinates[j * d + k];
            else
                for (size_t i = 0; i < b->rank; i++) x += w->coordinates[j * b->rank + i] * (double)u[i * d + k];
            keys[j * width + k] = (float)x;
        }
}

static double largest_coordinates(const head_work *w, size_t n, size_t rank)
{
    double largest = 0;
    for (size_t j = 0; j < n; j++) largest = fmax(largest, norm_of(w->coordinates + j * rank, rank));
    return largest;
}

static bool project_head(float *keys, const sp_key_bound *b, size_t head)
{
    const head_work w = work_of(b);
    const double largest = read_keys(&w, keys, b, head), norm = (double)b->query_norms[head];
    const double radius = norm > 0 ? b->max_logit / norm * (1 - INSIDE) : INFINITY;
    const bool is_long = largest_coordinates(&w, b->n_keys, b->rank) > radius * (1 + SLACK);
    if (!is_long && !leaves_directions(&w, b, head, largest)) return false;
    if (is_long) {
        find_centre(&w, b->n_keys, b->rank, radius);
        cut_all(&w, b->n_keys, b->rank, radius);
    }
    write_keys(keys, &w, b, head);
    return true;
}

bool sp_key_bound_project(float *keys_values, const sp_key_bound *bound)
{
    bool moved = false;
    for (size_t h = 0; h < sp_key_bound_n_heads(bound); h++)
        moved = project_head(keys_values + sp_key_bound_column(bound, h), bound, h) || moved;
    return moved;
}

void sp_key_bound_measure(double *norm, double *entry, const float *keys_values, const sp_key_bound *bound, size_t head)
{
    const head_work w = work_of(bound);
    read_keys(&w, keys_values + sp_key_bound_column(bound, head), bound, head);
    *norm = largest_coordinates(&w, bound->n_keys, bound->rank);
    *entry = 0;
    for (size_t i = 0; i < bound->n_keys * bound->rank; i++) *entry = fmax(*entry, fabs(w.coordinates[i]));
}
