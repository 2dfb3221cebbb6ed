/* frame.c: measuring keys and values, and bringing them into the kernels' order.
 * Cost: two passes over the keys, two over the queries and values; differences in f64, rounded once. */
#include "fast/frame.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"

enum { ROWS_AT_ONCE = 64, ROWS_SUMMED = 8192 };

/* ---- measuring ---- */

typedef struct column_stats { /* (parts, d) each, then of all in the first d */
    double *sum;
    float *least, *most;
} column_stats;

/* Names the first number of a matrix that is not finite. */
static sp_status refuse(const char *what, const float *x, size_t ld, size_t n, size_t d)
{
    for (size_t r = 0; r < n; r++)
        for (size_t i = 0; i < d; i++)
            if (!isfinite(x[r * ld + i]))
                return sp_fail(SP_ERR_ARGUMENT, "%s %zu: coordinate %zu is %f; attention takes finite numbers only", what, r, i,
                               (double)x[r * ld + i]);
    return sp_fail(SP_ERR_ARGUMENT, "%ss are too large", what);
}

static void measure_part(double *restrict sum, float *restrict least, float *restrict most, const float *x, size_t ld, size_t n,
                         size_t d)
{
    for (size_t i = 0; i < d; i++) sum[i] = 0, least[i] = most[i] = x[i];
    for (size_t r = 0; r < n; r++) {
        const float *row = x + r * ld;
        for (size_t i = 0; i < d; i++) {
            sum[i] += (double)row[i];
            least[i] = row[i] < least[i] ? row[i] : least[i];
            most[i] = row[i] > most[i] ? row[i] : most[i];
        }
    }
}

/* Sums in f64, which finite f32 cannot overflow: so they are finite where all numbers are. Parts are as long whatever the threads,
 * and added in their order. */
static sp_status measure_columns(column_stats *s, const char *what, const float *x, size_t ld, size_t n, size_t d, size_t n_threads,
                                 sp_arena *arena)
{
    const size_t parts = (n + ROWS_SUMMED - 1) / ROWS_SUMMED;
    *s = (column_stats){sp_arena_alloc(arena, parts * d, sizeof(double)), sp_arena_alloc(arena, parts * d, sizeof(float)),
                        sp_arena_alloc(arena, parts * d, sizeof(float))};
    if (!s->sum || !s->least || !s->most) return SP_ERR_MEMORY;
#pragma omp parallel for schedule(static) num_threads((int)n_threads)
    for (size_t p = 0; p < parts; p++)
        measure_part(s->sum + p * d, s->least + p * d, s->most + p * d, x + p * ROWS_SUMMED * ld, ld,
                     sp_smaller(ROWS_SUMMED, n - p * ROWS_SUMMED), d);
    for (size_t i = d; i < parts * d; i++) {
        s->sum[i % d] += s->sum[i];
        s->least[i % d] = fminf(s->least[i % d], s->least[i]);
        s->most[i % d] = fmaxf(s->most[i % d], s->most[i]);
    }
    for (size_t i = 0; i < d; i++)
        if (!isfinite(s->sum[i])) return refuse(what, x, ld, n, d);
    return SP_OK;
}

/* squares (n): of the rows' distances from a centre. Row beside row: a row's own sum would wait for each of its additions. */
static void squared_distances(double *squares, const float *rows, size_t ld, size_t n, const float *centre, size_t d)
{
    for (size_t j = 0; j < n; j++) squares[j] = 0;
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < n; j++) {
            double x = (double)rows[j * ld + i] - (double)centre[i];
            squares[j] += x * x;
        }
}

/* The largest squared distances of the keys from two centres, in one pass. */
static void largest_distances(double *from_a, double *from_b, const sp_attention_head *head, const float *a, const float *b,
                              size_t n_threads)
{
    double most_a = 0, most_b = 0;
#pragma omp parallel for schedule(static) num_threads((int)n_threads) reduction(max : most_a, most_b)
    for (size_t first = 0; first < head->n_keys; first += ROWS_AT_ONCE) {
        double squares[ROWS_AT_ONCE];
        const size_t some = sp_smaller(ROWS_AT_ONCE, head->n_keys - first);
        const float *rows = head->k + first * head->ldk;
        squared_distances(squares, rows, head->ldk, some, a, head->d);
        for (size_t j = 0; j < some; j++) most_a = squares[j] > most_a ? squares[j] : most_a;
        squared_distances(squares, rows, head->ldk, some, b, head->d);
        for (size_t j = 0; j < some; j++) most_b = squares[j] > most_b ? squares[j] : most_b;
    }
    *from_a = most_a, *from_b = most_b;
}

/* sqrt of a sum of d squares in f64, rounded up. */
static double norm_above(double squares, size_t d)
{
    return sqrt(squares) * (1 + (double)(d + 8) * DBL_EPSILON);
}

double sp_frame_shrinking_factor(double size)
{
    int exponent;
    if (size == 0) return 1;
    frexp(size, &exponent);
    return ldexp(1, -exponent);
}

static sp_status measure_keys(sp_frame *frame, const sp_attention_head *head, sp_arena *arena)
{
    size_t d = head->d;
    column_stats s;
    double around_mean, around_middle;
    float *middle = sp_arena_alloc(arena, d, sizeof *middle);
    if (!middle) return SP_ERR_MEMORY;
    sp_status st = measure_columns(&s, "key", head->k, head->ldk, head->n_keys, d, frame->n_threads, arena);
    if (st) return st;
    for (size_t i = 0; i < d; i++) {
        frame->centre[i] = (float)(s.sum[i] / (double)head->n_keys);
        middle[i] = (float)(((double)s.least[i] + (double)s.most[i]) / 2);
    }
    largest_distances(&around_mean, &around_middle, head, frame->centre, middle, frame->n_threads);
    if (around_middle < around_mean) memcpy(frame->centre, middle, d * sizeof *middle);
    frame->radius = norm_above(fmin(around_mean, around_middle), d);
    frame->key_factor = sp_frame_shrinking_factor(frame->radius);
    frame->query_factor = (double)head->scale / frame->key_factor;
    return SP_OK;
}

static sp_status measure_values(sp_frame *frame, const sp_attention_head *head, sp_arena *arena)
{
    column_stats s;
    sp_status st = measure_columns(&s, "value", head->v, head->ldv, head->n_keys, head->d_v, frame->n_threads, arena);
    if (st) return st;
    double half = 0;
    frame->value_range = frame->value_magnitude = 0;
    for (size_t c = 0; c < head->d_v; c++) {
        double least = (double)s.least[c], most = (double)s.most[c];
        frame->value_middle[c] = (float)((least + most) / 2);
        half = fmax(half, fmax(most - (double)frame->value_middle[c], (double)frame->value_middle[c] - least));
        frame->value_range = fmax(frame->value_range, (most - least) * (1 + DBL_EPSILON));
        frame->value_magnitude = fmax(frame->value_magnitude, fmax(fabs(most), fabs(least)));
    }
    frame->value_factor = sp_frame_shrinking_factor(half);
    return SP_OK;
}

sp_status sp_frame_measure(sp_frame *out, const sp_attention_head *head, const sp_fast_kernels *kernels, size_t n_threads,
                           sp_arena *arena)
{
    size_t all = head->d_v + 1, groups = (all + kernels->max_columns - 1) / kernels->max_columns;
    *out = (sp_frame){.n_threads = n_threads,
                      .d = head->d,
                      .d_v = head->d_v,
                      .groups = groups,
                      .columns = (all + groups - 1) / groups,
                      .centre = sp_arena_alloc(arena, head->d, sizeof(float)),
                      .value_middle = sp_arena_alloc(arena, head->d_v, sizeof(float))};
    if (!out->centre || !out->value_middle) return SP_ERR_MEMORY;
    sp_status st = measure_keys(out, head, arena);
    return st ? st : measure_values(out, head, arena);
}

sp_status sp_frame_bound_queries(double *bounds, const sp_frame *frame, const sp_attention_head *head, sp_arena *arena)
{
    static const double LARGEST = 1e30;
    double factor = fabs((double)head->scale) * frame->radius * (1 + 4 * DBL_EPSILON);
    float *origin = sp_arena_alloc(arena, head->d, sizeof *origin);
    if (!origin) return SP_ERR_MEMORY;
    memset(origin, 0, head->d * sizeof *origin);
#pragma omp parallel for schedule(static) num_threads((int)frame->n_threads)
    for (size_t first = 0; first < head->n_queries; first += ROWS_AT_ONCE) {
        const size_t end = sp_smaller(first + ROWS_AT_ONCE, head->n_queries);
        squared_distances(bounds + first, head->q + first * head->ldq, head->ldq, end - first, origin, head->d);
        for (size_t i = first; i < end; i++) bounds[i] = norm_above(bounds[i], head->d) * factor;
    }
    for (size_t i = 0; i < head->n_queries; i++) {
        if (!isfinite(bounds[i])) return refuse("query", head->q, head->ldq, head->n_queries, head->d);
        if (!(bounds[i] < LARGEST))
            return sp_fail(SP_ERR_ARGUMENT, "query %zu: its scores may reach %g, beyond what f32 holds; scale queries or keys down",
                           i, bounds[i]);
    }
    return SP_OK;
}

void sp_frame_measure_distances(double *distances, const sp_frame *frame, const sp_attention_head *head)
{
#pragma omp parallel for schedule(static) num_threads((int)frame->n_threads)
    for (size_t first = 0; first < head->n_keys; first += ROWS_AT_ONCE) {
        const size_t end = sp_smaller(first + ROWS_AT_ONCE, head->n_keys);
        squared_distances(distances + first, head->k + first * head->ldk, head->ldk, end - first, frame->centre, head->d);
        for (size_t j = first; j < end; j++) distances[j] = norm_above(distances[j], head->d);
    }
}

/* ---- packing ---- */

static float shrink(float x, float centre, double factor)
{
    return (float)(((double)x - (double)centre) * factor);
}

void sp_frame_pack_keys(float *x, float *v, const sp_frame *frame, const sp_attention_head *head, size_t first, size_t n,
                        const sp_fast_kernels *kernels)
{
    size_t block = kernels->block_keys, lanes = kernels->lanes, stride = sp_key_stride(kernels), columns = frame->columns;
    if (n < block) memset(x, 0, frame->d * stride * sizeof *x);
    memset(v, 0, frame->groups * columns * block * sizeof *v);
    for (size_t j = 0; j < n; j++) {
        const float *key = head->k + (first + j) * head->ldk, *value = head->v + (first + j) * head->ldv;
        for (size_t i = 0; i < frame->d; i++) x[i * stride + j] = shrink(key[i], frame->centre[i], frame->key_factor);
        float *to = v + j / lanes * columns * lanes + j % lanes;
        for (size_t c = 0, at = 0; c <= frame->d_v; c++, at++) {
            if (at == columns) at = 0, to += columns * block; /* the next group */
            to[at * lanes] = c < frame->d_v ? shrink(value[c], frame->value_middle[c], frame->value_factor) : 1;
        }
    }
}

size_t sp_frame_pack_rows(float *k, float *v, const sp_frame *frame, const sp_attention_head *head)
{
    const size_t d = frame->d, all = frame->groups * frame->columns, n = head->n_keys;
    const size_t padded = (n + SP_EXACT_KEYS - 1) / SP_EXACT_KEYS * SP_EXACT_KEYS;
#pragma omp parallel for schedule(static) num_threads((int)frame->n_threads)
    for (size_t j = 0; j < padded; j++) {
        const size_t from = sp_smaller(j, n - 1);
        const float *key = head->k + from * head->ldk, *value = head->v + from * head->ldv;
        float *row = v + j * all;
        for (size_t i = 0; i < d; i++) k[j * d + i] = shrink(key[i], frame->centre[i], frame->key_factor);
        for (size_t c = 0; c < all; c++) row[c] = 0;
        if (j >= n) continue;
        for (size_t c = 0; c < frame->d_v; c++) row[c] = shrink(value[c], frame->value_middle[c], frame->value_factor);
        row[frame->d_v] = 1;
    }
    return padded;
}

void sp_frame_pack_queries(float *tile, const sp_frame *frame, const sp_attention_head *head, const size_t *queries, size_t n,
                           double factor, const sp_fast_kernels *kernels)
{
    size_t width = kernels->tile_queries;
    factor *= frame->query_factor;
    for (size_t u = 0; u < width; u++) {
        const float *q = head->q + queries[sp_smaller(u, n - 1)] * head->ldq;
        for (size_t i = 0; i < frame->d; i++) tile[i * width + u] = (float)((double)q[i] * factor);
    }
}

double sp_frame_unpack(float *out, size_t ldo, const float *sums, const sp_frame *frame, const size_t *queries, size_t n,
                       const sp_fast_kernels *kernels)
{
    size_t width = kernels->tile_queries;
    double least = INFINITY;
    for (size_t u = 0; u < n; u++) {
        double normaliser = (double)sums[frame->d_v * width + u], factor = 1 / (normaliser * frame->value_factor);
        float *row = out + queries[u] * ldo;
        if (!(normaliser >= least)) least = normaliser; /* a NaN, too */
        for (size_t c = 0; c < frame->d_v; c++)
            row[c] = (float)((double)frame->value_middle[c] + (double)sums[c * width + u] * factor);
    }
    return least;
}
