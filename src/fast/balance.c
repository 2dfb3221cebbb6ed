/* balance.c: a call's rows turned by the maps of balance.h, and what is certain of scores between them.
 *
 * With y = of_keys (k - c) in f64, e = k - c - of_queries^T y is measured for each key, and q . (k - c) = (of_queries q) . y + q .
 * e: the turned scores are off by |q| |e|, whatever the maps, and by the rounding of both sides to f32. Queries for which the
 * former is more than sp_fast_most_off are left to the exact kernel.
 *
 * Invariant: no output bit depends on threads, since rows are turned one by one.
 * Cost: in f64, 2 d rank a key, d rank a query. */
#include "fast/balance.h"

#include <float.h>
#include <math.h>
#include <omp.h>

#include "base/sizes.h"
#include "base/status.h"
#include "fast/turn.h"

enum { ROWS_AT_ONCE = 64 };
static const double TURN_COST = 10,
                    ROW_COST = 250;       /* in the units of fast.h: of a product in f64, of a number that is measured again */
static const double UNSERVED = 1e29;      /* a bound beyond all ranges */
static const double LEAST_RADIUS = 1e-25; /* below, numbers of f32 lose digits */
static const double MOST_BYTES = .25;     /* of those that a call may take */

double sp_balance_turn_cost(const sp_fast_call *call, size_t rank)
{
    const sp_attention_head *h = &call->head;
    const double n_keys = (double)h->n_keys, n_queries = (double)h->n_queries, products = (double)h->d * (double)rank;
    return call->fast->search_weight *
           (TURN_COST * products * (2 * n_keys + n_queries) + ROW_COST * (double)rank * (n_keys + n_queries));
}

/* ---- rows ---- */

typedef struct turning {
    const sp_turn_kernels *kernels;
    const sp_balance *balance;
    size_t n_threads, scratch_size;
    double *scratch; /* (n_threads, scratch_size) */
} turning;

/* out (n, rank); returns the largest square of a remainder, where there is a way back. */
static double turn_rows(float *out, const turning *t, const float *rows, size_t ld, size_t n, const double *centre,
                        const double *map, const double *back)
{
    double most = 0;
#pragma omp parallel for schedule(static) num_threads((int)t->n_threads) reduction(max : most)
    for (size_t first = 0; first < n; first += ROWS_AT_ONCE) {
        const size_t some = sp_smaller(ROWS_AT_ONCE, n - first);
        double squares[ROWS_AT_ONCE];
        t->kernels->turn(out + first * t->balance->rank, back ? squares : NULL, rows + first * ld, ld, some, centre, map, back,
                         t->balance->d, t->balance->rank, t->scratch + (size_t)omp_get_thread_num() * t->scratch_size);
        for (size_t j = 0; j < some && back; j++) most = squares[j] > most ? squares[j] : most;
    }
    return most;
}

/* ---- what is certain ---- */

static double norm(const float *x, size_t n)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += (double)x[i] * (double)x[i];
    return sqrt(squares);
}

/* What a score is off by, as a share of its query's bound, but for f32's rounding: the largest remainder, and what f64 rounds. */
static void bound_scores(sp_fast_call *out, const sp_fast_call *call, const sp_balance *b, double largest_square)
{
    const double d = (double)b->d, u = DBL_EPSILON / 2, radius = out->frame.radius;
    const double reach =
        (radius + norm(out->frame.centre, b->rank)) * (1 + FLT_EPSILON); /* of turned keys, before they are centred */
    const double remainder =
        sqrt(largest_square) * (1 + (d + 8) * DBL_EPSILON) + (d + 4) * u * (2 * call->frame.radius + b->of_queries_size * reach);
    out->turned_off = (remainder + (d + 4) * u * b->of_queries_size * radius) / call->frame.radius * (1 + 8 * DBL_EPSILON);
    out->turned_rounding = (1 + reach / radius) / 2;
}

/* Not done where numbers leave f32. */
static sp_status measure(sp_fast_call *out, bool *done, const sp_fast_call *call, const sp_balance *b, double largest_square)
{
    const double most = sp_fast_most_off(call->fast);
    sp_status st = sp_frame_measure_keys(&out->frame, &call->frame, &out->head, call->fast->arena);
    if (st || !(out->frame.radius > LEAST_RADIUS)) return st == SP_ERR_ARGUMENT ? SP_OK : st;
    st = sp_frame_bound_queries(out->bounds, &out->largest_bound, &out->frame, &out->head, call->fast->arena);
    if (st) return st == SP_ERR_ARGUMENT ? SP_OK : st;
    bound_scores(out, call, b, largest_square);
    for (size_t i = 0; i < call->head.n_queries; i++)
        if (!(call->bounds[i] * out->turned_off <= most)) out->bounds[i] = UNSERVED;
    *done = true;
    return SP_OK;
}

sp_status sp_balance_turn(sp_fast_call *out, bool *done, const sp_fast_call *call, const sp_balance *b)
{
    const sp_attention_head *h = &call->head;
    sp_arena *arena = call->fast->arena;
    turning t = {.kernels = sp_turn_kernels_select(),
                 .balance = b,
                 .n_threads = call->frame.n_threads,
                 .scratch_size = sp_turn_scratch_doubles(b->d, b->rank)};
    *done = false;
    *out = *call;
    if ((double)(h->n_keys + h->n_queries) * (double)b->rank * sizeof(float) > MOST_BYTES * (double)call->fast->options.max_bytes)
        return SP_OK;
    float *q = sp_arena_alloc(arena, h->n_queries * b->rank, sizeof *q), *k = sp_arena_alloc(arena, h->n_keys * b->rank, sizeof *k);
    out->bounds = sp_arena_alloc(arena, h->n_queries, sizeof *out->bounds);
    t.scratch = sp_arena_alloc(arena, t.n_threads * t.scratch_size, sizeof *t.scratch);
    if (!q || !k || !out->bounds || !t.scratch) return SP_ERR_MEMORY;
    const double largest_square = turn_rows(k, &t, h->k, h->ldk, h->n_keys, b->centre, b->of_keys, b->back);
    turn_rows(q, &t, h->q, h->ldq, h->n_queries, NULL, b->of_queries, NULL);
    out->given = call;
    out->head.q = q, out->head.k = k;
    out->head.d = out->head.ldq = out->head.ldk = b->rank;
    return measure(out, done, call, b, largest_square);
}

/* ---- certificates ---- */

void sp_turned_add(sp_turned *turned, const sp_fast_call *call, const size_t *queries, size_t n)
{
    if (!call->given) return;
    for (size_t i = 0; i < n; i++) {
        turned->off = fmax(turned->off, call->given->bounds[queries[i]] * call->turned_off);
        turned->range = fmax(turned->range, call->bounds[queries[i]]);
    }
}

double sp_turned_rounding_of_weights(const sp_turned *turned, const sp_fast_call *call)
{
    return call->given ? turned->range * call->turned_rounding : 0;
}
