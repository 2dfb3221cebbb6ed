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

/* Sums in f64, which finite f32 cannot overflow: so they are finite where all numbers are. Parts are as long whatever the threads,
 * and added in their order. */
static sp_status measure_columns(column_stats *s, const char *what, const float *x, size_t ld, size_t n, size_t d,
                                 const sp_frame *frame, sp_arena *arena)
{
    const size_t parts = (n + ROWS_SUMMED - 1) / ROWS_SUMMED;
    *s = (column_stats){sp_arena_alloc(arena, parts * d, sizeof(double)), sp_arena_alloc(arena, parts * d, sizeof(float)),
                        sp_arena_alloc(arena, parts * d, sizeof(float))};
    if (!s->sum || !s->least || !s->most) return SP_ERR_MEMORY;
#pragma omp parallel for schedule(static) num_threads((int)frame->n_threads)
    for (size_t p = 0; p < parts; p++)
        frame->kernels->measure(s->sum + p * d, s->least + p * d, s->most + p * d, x + p * ROWS_SUMMED * ld, ld,
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

/* The largest squared distances of the keys from two centres, in one pass. */
static void largest_distances(double *from_a, double *from_b, const sp_frame *frame, const sp_attention_head *head, const float *a,
                              const float *b)
{
    double most_a = 0, most_b = 0;
#pragma omp parallel for schedule(static) num_threads((int)frame->n_threads) reduction(max : most_a, most_b)
    for (size_t first = 0; first < head->n_keys; first += ROWS_AT_ONCE) {
        double squares[ROWS_AT_ONCE];
        const size_t some = sp_smaller(ROWS_AT_ONCE, head->n_keys - first);
        const float *rows = head->k + first * head->ldk;
        frame->kernels->square(squares, rows, head->ldk, some, a, head->d);
        for (size_t j = 0; j < some; j++) most_a = squares[j] > most_a ? squares[j] : most_a;
        frame->kernels->square(squares, rows, head->ldk, some, b, head->d);
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
    enum { MOST = 200 }; /* halves of it are powers of f32, too; no f32 is so far out */
    int exponent;
    if (size == 0) return 1;
    frexp(size, &exponent);
    return ldexp(1, exponent > MOST ? -MOST : exponent < -MOST ? MOST : -exponent);
}

static sp_status measure_keys(sp_frame *frame, const sp_attention_head *head, sp_arena *arena)
{
    size_t d = head->d;
    column_stats s;
    double around_mean, around_middle;
    float *middle = sp_arena_alloc(arena, d, sizeof *middle);
    if (!middle) return SP_ERR_MEMORY;
    sp_status st = measure_columns(&s, "key", head->k, head->ldk, head->n_keys, d, frame, arena);
    if (st) return st;
    for (size_t i = 0; i < d; i++) {
        frame->centre[i] = (float)(s.sum[i] / (double)head->n_keys);
        middle[i] = (float)(((double)s.least[i] + (double)s.most[i]) / 2);
    }
    largest_distances(&around_mean, &around_middle, frame, head, frame->centre, middle);
    if (around_middle < around_mean) memcpy(frame->centre, middle, d * sizeof *middle);
    frame->radius = norm_above(fmin(around_mean, around_middle), d);
    frame->key_factor = sp_frame_shrinking_factor(frame->radius);
    frame->query_factor = (double)head->scale / frame->key_factor;
    return SP_OK;
}

static sp_status measure_values(sp_frame *frame, const sp_attention_head *head, sp_arena *arena)
{
    column_stats s;
    sp_status st = measure_columns(&s, "value", head->v, head->ldv, head->n_keys, head->d_v, frame, arena);
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
    *out = (sp_frame){.kernels = kernels->rows,
                      .n_threads = n_threads,
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

sp_status sp_frame_measure_keys(sp_frame *out, const sp_frame *of, const sp_attention_head *head, sp_arena *arena)
{
    *out = *of;
    out->d = head->d;
    out->centre = sp_arena_alloc(arena, head->d, sizeof *out->centre);
    return out->centre ? measure_keys(out, head, arena) : SP_ERR_MEMORY;
}

sp_status sp_frame_bound_queries(double *bounds, double *largest, const sp_frame *frame, const sp_attention_head *head,
                                 sp_arena *arena)
{
    static const double LARGEST = 1e30;
    double factor = fabs((double)head->scale) * frame->radius * (1 + 4 * DBL_EPSILON);
    float *origin = sp_arena_alloc(arena, head->d, sizeof *origin);
    if (!origin) return SP_ERR_MEMORY;
    memset(origin, 0, head->d * sizeof *origin);
#pragma omp parallel for schedule(static) num_threads((int)frame->n_threads)
    for (size_t first = 0; first < head->n_queries; first += ROWS_AT_ONCE) {
        const size_t end = sp_smaller(first + ROWS_AT_ONCE, head->n_queries);
        frame->kernels->square(bounds + first, head->q + first * head->ldq, head->ldq, end - first, origin, head->d);
        for (size_t i = first; i < end; i++) bounds[i] = norm_above(bounds[i], head->d) * factor;
    }
    *largest = 0;
    for (size_t i = 0; i < head->n_queries; i++) {
        *largest = bounds[i] > *largest ? bounds[i] : *largest;
        if (bounds[i] < LARGEST) continue;
        if (!isfinite(bounds[i])) return refuse("query", head->q, head->ldq, head->n_queries, head->d);
        return sp_fail(SP_ERR_ARGUMENT, "query %zu: its scores may reach %g, beyond what f32 holds; scale queries or keys down", i,
                       bounds[i]);
    }
    return SP_OK;
}

void sp_frame_measure_distances(double *distances, const sp_frame *frame, const sp_attention_head *head)
{
#pragma omp parallel for schedule(static) num_threads((int)frame->n_threads)
    for (size_t first = 0; first < head->n_keys; first += ROWS_AT_ONCE) {
        const size_t end = sp_smaller(first + ROWS_AT_ONCE, head->n_keys);
        frame->kernels->square(distances + first, head->k + first * head->ldk, head->ldk, end - first, frame->centre, head->d);
        for (size_t j = first; j < end; j++) distances[j] = norm_above(distances[j], head->d);
    }
}

/* ---- packing ---- */

/* Ones for the keys that there are, zeros behind them up to whole vectors, and in the columns behind these. */
static void pack_ones(float *v, const sp_frame *frame, size_t n, const sp_fast_kernels *kernels)
{
    const size_t lanes = kernels->lanes, columns = frame->columns, last = frame->d_v % columns;
    float *group = v + frame->d_v / columns * columns * kernels->block_keys;
    for (size_t j = 0; j < n; j += lanes, group += columns * lanes) {
        memset(group + last * lanes, 0, (columns - last) * lanes * sizeof *group);
        for (size_t u = 0; u < sp_smaller(lanes, n - j); u++) group[last * lanes + u] = 1;
    }
}

void sp_frame_pack_keys(float *x, float *v, const sp_frame *frame, const sp_attention_head *head, const size_t *list, size_t first,
                        size_t n, const sp_fast_kernels *kernels)
{
    const float *k = list ? head->k : head->k + first * head->ldk, *values = list ? head->v : head->v + first * head->ldv;
    const size_t *some = list ? list + first : NULL;
    const size_t block = kernels->block_keys, lanes = kernels->lanes, stride = sp_key_stride(kernels), columns = frame->columns;
    frame->kernels->pack(x, lanes, stride, k, head->ldk, some, n, frame->d, frame->centre, frame->key_factor);
    for (size_t c = 0; c < frame->d_v; c += columns)
        frame->kernels->pack(v + c * block, columns * lanes, lanes, values + c, head->ldv, some, n,
                             sp_smaller(columns, frame->d_v - c), frame->value_middle + c, frame->value_factor);
    pack_ones(v, frame, n, kernels);
}

size_t sp_frame_pack_rows(float *k, float *v, const sp_frame *frame, const sp_attention_head *head, const size_t *list)
{
    const size_t d = frame->d, d_v = frame->d_v, all = frame->groups * frame->columns, n = head->n_keys;
    const size_t padded = (n + SP_EXACT_KEYS - 1) / SP_EXACT_KEYS * SP_EXACT_KEYS;
#pragma omp parallel for schedule(static) num_threads((int)frame->n_threads)
    for (size_t first = 0; first < n; first += ROWS_AT_ONCE) {
        const size_t some = sp_smaller(ROWS_AT_ONCE, n - first), *these = list ? list + first : NULL, skipped = list ? 0 : first;
        frame->kernels->shrink(k + first * d, d, head->k + skipped * head->ldk, head->ldk, these, some, d, frame->centre,
                               frame->key_factor);
        frame->kernels->shrink(v + first * all, all, head->v + skipped * head->ldv, head->ldv, these, some, d_v,
                               frame->value_middle, frame->value_factor);
        for (size_t j = first; j < first + some; j++)
            for (size_t c = d_v; c < all; c++) v[j * all + c] = c == d_v;
    }
    for (size_t j = n; j < padded; j++) {
        memcpy(k + j * d, k + (n - 1) * d, d * sizeof *k);
        memset(v + j * all, 0, all * sizeof *v);
    }
    return padded;
}
