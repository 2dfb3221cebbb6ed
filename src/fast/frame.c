/* frame.c: measuring keys and values, and bringing them into the kernels' order.
 * Cost: three passes over the keys, two over the queries and values; differences in f64, rounded once. */
#include "fast/frame.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"

enum { ROWS_AT_ONCE = 64 };

/* ---- measuring ---- */

typedef struct column_stats { /* (d) each */
    double *sum;
    float *least, *most;
} column_stats;

static sp_status allocate_stats(column_stats *out, size_t d, sp_arena *arena)
{
    *out = (column_stats){sp_arena_alloc(arena, d, sizeof(double)), sp_arena_alloc(arena, d, sizeof(float)),
                          sp_arena_alloc(arena, d, sizeof(float))};
    return out->sum && out->least && out->most ? SP_OK : SP_ERR_MEMORY;
}

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

/* Sums in f64, which finite f32 cannot overflow: so they are finite where all numbers are. */
static sp_status measure_columns(column_stats *s, const char *what, const float *x, size_t ld, size_t n, size_t d)
{
    for (size_t i = 0; i < d; i++) s->sum[i] = 0, s->least[i] = s->most[i] = x[i];
    for (size_t r = 0; r < n; r++) {
        const float *row = x + r * ld;
        double *restrict sum = s->sum;
        float *restrict least = s->least, *restrict most = s->most;
        for (size_t i = 0; i < d; i++) {
            sum[i] += (double)row[i];
            least[i] = row[i] < least[i] ? row[i] : least[i];
            most[i] = row[i] > most[i] ? row[i] : most[i];
        }
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

static double largest_distance(const float *rows, size_t ld, size_t n, const float *centre, size_t d)
{
    double squares[ROWS_AT_ONCE], largest = 0;
    for (size_t first = 0, some; first < n; first += some) {
        some = sp_smaller(ROWS_AT_ONCE, n - first);
        squared_distances(squares, rows + first * ld, ld, some, centre, d);
        for (size_t j = 0; j < some; j++) largest = squares[j] > largest ? squares[j] : largest;
    }
    return largest;
}

/* sqrt of a sum of d squares in f64, rounded up. */
static double norm_above(double squares, size_t d)
{
    return sqrt(squares) * (1 + (double)(d + 8) * DBL_EPSILON);
}

/* The smallest power of two above, inverted; 1 for 0. */
static double shrinking_factor(double size)
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
    float *middle = sp_arena_alloc(arena, d, sizeof *middle);
    sp_status st = middle ? allocate_stats(&s, d, arena) : SP_ERR_MEMORY;
    if (!st) st = measure_columns(&s, "key", head->k, head->ldk, head->n_keys, d);
    if (st) return st;
    for (size_t i = 0; i < d; i++) {
        frame->centre[i] = (float)(s.sum[i] / (double)head->n_keys);
        middle[i] = (float)(((double)s.least[i] + (double)s.most[i]) / 2);
    }
    double around_mean = largest_distance(head->k, head->ldk, head->n_keys, frame->centre, d);
    double around_middle = largest_distance(head->k, head->ldk, head->n_keys, middle, d);
    if (around_middle < around_mean) memcpy(frame->centre, middle, d * sizeof *middle);
    frame->radius = norm_above(fmin(around_mean, around_middle), d);
    frame->key_factor = shrinking_factor(frame->radius);
    frame->query_factor = (double)head->scale / frame->key_factor;
    return SP_OK;
}

static sp_status measure_values(sp_frame *frame, const sp_attention_head *head, sp_arena *arena)
{
    column_stats s;
    sp_status st = allocate_stats(&s, head->d_v, arena);
    if (!st) st = measure_columns(&s, "value", head->v, head->ldv, head->n_keys, head->d_v);
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
    frame->value_factor = shrinking_factor(half);
    return SP_OK;
}

sp_status sp_frame_measure(sp_frame *out, const sp_attention_head *head, const sp_fast_kernels *kernels, sp_arena *arena)
{
    size_t all = head->d_v + 1, groups = (all + kernels->max_columns - 1) / kernels->max_columns;
    *out = (sp_frame){.d = head->d,
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
    for (size_t first = 0, some; first < head->n_queries; first += some) {
        some = sp_smaller(ROWS_AT_ONCE, head->n_queries - first);
        squared_distances(bounds + first, head->q + first * head->ldq, head->ldq, some, origin, head->d);
    }
    for (size_t i = 0; i < head->n_queries; i++) {
        if (!isfinite(bounds[i])) return refuse("query", head->q, head->ldq, head->n_queries, head->d);
        bounds[i] = norm_above(bounds[i], head->d) * factor;
        if (!(bounds[i] < LARGEST))
            return sp_fail(SP_ERR_ARGUMENT, "query %zu: its scores may reach %g, beyond what f32 holds; scale queries or keys down",
                           i, bounds[i]);
    }
    return SP_OK;
}

void sp_frame_measure_distances(double *distances, const sp_frame *frame, const sp_attention_head *head)
{
    for (size_t first = 0, some; first < head->n_keys; first += some) {
        some = sp_smaller(ROWS_AT_ONCE, head->n_keys - first);
        squared_distances(distances + first, head->k + first * head->ldk, head->ldk, some, frame->centre, head->d);
    }
    for (size_t j = 0; j < head->n_keys; j++) distances[j] = norm_above(distances[j], head->d);
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

size_t sp_frame_pack_rows(float *k, float *v, const sp_frame *frame, const sp_attention_head *head, size_t first, size_t n)
{
    size_t d = frame->d, all = frame->groups * frame->columns, padded = (n + SP_EXACT_KEYS - 1) / SP_EXACT_KEYS * SP_EXACT_KEYS;
    memset(v, 0, padded * all * sizeof *v);
    for (size_t j = 0; j < padded; j++, k += d, v += all) {
        size_t from = first + sp_smaller(j, n - 1);
        for (size_t i = 0; i < d; i++) k[i] = shrink(head->k[from * head->ldk + i], frame->centre[i], frame->key_factor);
        if (j >= n) continue;
        for (size_t c = 0; c < frame->d_v; c++)
            v[c] = shrink(head->v[from * head->ldv + c], frame->value_middle[c], frame->value_factor);
        v[frame->d_v] = 1;
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
