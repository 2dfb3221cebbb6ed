/* balance_find.c: the maps of balance.h from a sample, and whether they are expected to pay.
 *
 * With the sample's second moments of keys Sk = L^T L (rank rows, found by pivots until what is left is no longer seen in scores)
 * and of queries Sq, L Sq L^T = V^T D V: of_queries = D^-1/4 V L and of_keys = D^1/4 V (L L^T)^-1 L. Both sides then have the
 * second moments D^1/2, and of_queries^T of_keys projects on the rows of L. Cost: see the header; the eigenvectors take most of it
 * where rank is large. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/sizes.h"
#include "base/status.h"
#include "fast/balance.h"
#include "fast/turn.h"
#include "tensor/symmetric.h"

enum { LEAST_SAMPLE = 64, LEAST_KEYS = 512 };
static const double SEEN = .25;           /* what a plane may leave of keys, of what may be left: the largest is not the usual */
static const double SINGULAR = 1e-13;     /* of the largest moment: nothing but rounding is left */
static const double LEAST_MOMENT = 1e-10; /* of the largest product of moments: queries that do not vary need not be balanced */
static const double MOST_FOR_A_PLANE = .0085, MOST_FOR_BALANCING = .0125; /* of the cost to beat: what may be lost */
static const double WORTHWHILE = .85;
static const double DRAWING_COST = 1.5e6, MOMENT_COST = 12, EIGEN_COST = 1100; /* timed; of a row's latency all, of an entry */

typedef struct search {
    const sp_fast_call *call;
    const sp_turn_kernels *kernels;
    sp_arena *arena;
    size_t d, wide, n_rows;   /* wide: sp_turn_stride(d); n_rows: to draw of either side */
    size_t n_queries, n_keys; /* of the sample */
    double *q, *k;            /* (n_queries, d), (n_keys, d); keys less `centre`; rows `wide` apart */
    double *centre;
    double *query_moments, *key_moments; /* (d, d), rows `wide` apart */
    double *factor;                      /* (rank, d): L, of the moments of keys */
    double *plane;                       /* (rank, d): orthonormal; L = triangle plane */
    double *triangle;                    /* (rank, rank), lower */
    size_t rank;
    double *query_norms, *key_norms; /* (n_queries), (n_keys) in the new coordinates, ascending */
} search;

static double *doubles(const search *s, size_t n)
{
    double *x = sp_arena_alloc(s->arena, n, sizeof *x);
    if (x) memset(x, 0, n * sizeof *x);
    return x;
}

/* ---- the sample ---- */

/* One row of each of `some` equal parts. */
static void draw_rows(double *out, size_t wide, size_t some, const float *rows, size_t ld, size_t n, size_t d)
{
    sp_rng rng = sp_rng_seed(n, d);
    for (size_t j = 0; j < some; j++) {
        const size_t first = j * n / some, end = (j + 1) * n / some;
        const float *row = rows + (first + sp_rng_below(&rng, end - first)) * ld;
        for (size_t i = 0; i < d; i++) out[j * wide + i] = (double)row[i];
    }
}

/* About their mean, which lies in their plane. */
static void centre_keys(search *s)
{
    for (size_t i = 0; i < s->d; i++) {
        double sum = 0;
        for (size_t j = 0; j < s->n_keys; j++) sum += s->k[j * s->wide + i];
        s->centre[i] = sum / (double)s->n_keys;
        for (size_t j = 0; j < s->n_keys; j++) s->k[j * s->wide + i] -= s->centre[i];
    }
}

/* moments (d, d) of n rows, drawn into *sample. */
static sp_status draw(double **sample, double **moments, const search *s, size_t n, const float *rows, size_t ld, size_t n_rows)
{
    *sample = doubles(s, n * s->wide);
    *moments = doubles(s, s->d * s->wide);
    if (!*sample || !*moments) return SP_ERR_MEMORY;
    draw_rows(*sample, s->wide, n, rows, ld, n_rows, s->d);
    return SP_OK;
}

static void find_moments(double *moments, const search *s, const double *sample, size_t n)
{
    s->kernels->gram(moments, sample, n, s->d);
    for (size_t i = 0; i < s->d * s->wide; i++) moments[i] /= (double)n;
}

static sp_status draw_keys(search *s)
{
    const sp_attention_head *h = &s->call->head;
    s->n_keys = sp_smaller(s->n_rows, h->n_keys);
    s->centre = doubles(s, s->d);
    if (!s->centre) return SP_ERR_MEMORY;
    sp_status st = draw(&s->k, &s->key_moments, s, s->n_keys, h->k, h->ldk, h->n_keys);
    if (st) return st;
    centre_keys(s);
    find_moments(s->key_moments, s, s->k, s->n_keys);
    return SP_OK;
}

static sp_status draw_queries(search *s)
{
    const sp_attention_head *h = &s->call->head;
    s->n_queries = sp_smaller(s->n_rows, h->n_queries);
    sp_status st = draw(&s->q, &s->query_moments, s, s->n_queries, h->q, h->ldq, h->n_queries);
    if (!st) find_moments(s->query_moments, s, s->q, s->n_queries);
    return st;
}

/* ---- the plane ---- */

/* The mean square distance of keys from a plane that scores do not see: those of some queries. */
static double unseen(const search *s)
{
    const sp_fast_call *call = s->call;
    const size_t n = call->head.n_queries, some = sp_smaller(s->n_rows, n);
    double bound = 0;
    for (size_t j = 0; j < some; j++) bound = fmax(bound, call->bounds[j * n / some]);
    const double distance = SEEN * sp_fast_most_off(call->fast) / bound * call->frame.radius;
    return bound > 0 ? distance * distance : 0;
}

/* Rows of L, from the largest pivot on; key_moments are used up. */
static void factor_moments(search *s)
{
    const size_t d = s->d, wide = s->wide;
    const double enough = unseen(s);
    double largest = 0;
    for (s->rank = 0; s->rank < d; s->rank++) {
        size_t pivot = 0;
        double left = 0;
        for (size_t i = 0; i < d; i++) {
            left += fmax(s->key_moments[i * wide + i], 0);
            if (s->key_moments[i * wide + i] > s->key_moments[pivot * wide + pivot]) pivot = i;
        }
        const double most = s->key_moments[pivot * wide + pivot];
        largest = fmax(largest, most);
        if (left <= enough || !(most > SINGULAR * largest)) return;
        double *row = s->factor + s->rank * d;
        for (size_t i = 0; i < d; i++) row[i] = s->key_moments[pivot * wide + i] / sqrt(most);
        for (size_t i = 0; i < d; i++)
            for (size_t j = 0; j < d; j++) s->key_moments[i * wide + j] -= row[i] * row[j];
    }
}

static double dot(const double *a, const double *b, size_t n)
{
    double sum[4] = {0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t l = 0; l < 4; l++) sum[l] += a[i + l] * b[i + l];
    for (; i < n; i++) sum[0] += a[i] * b[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* L = triangle plane, by Gram and Schmidt, twice. False: a row is none of its own. */
static bool make_plane(search *s)
{
    const size_t d = s->d;
    memcpy(s->plane, s->factor, s->rank * d * sizeof *s->plane);
    memset(s->triangle, 0, s->rank * s->rank * sizeof *s->triangle);
    for (size_t r = 0; r < s->rank; r++) {
        double *row = s->plane + r * d;
        for (int pass = 0; pass < 2; pass++)
            for (size_t t = 0; t < r; t++) {
                const double along = dot(s->plane + t * d, row, d);
                s->triangle[r * s->rank + t] += along;
                for (size_t i = 0; i < d; i++) row[i] -= along * s->plane[t * d + i];
            }
        const double length = sqrt(dot(row, row, d));
        if (!(length > 0)) return false;
        s->triangle[r * s->rank + r] = length;
        for (size_t i = 0; i < d; i++) row[i] /= length;
    }
    return true;
}

/* plane <- (L L^T)^-1 L = triangle^-T plane. */
static void invert_factor(search *s)
{
    const size_t d = s->d;
    for (size_t r = s->rank; r-- > 0;) {
        double *row = s->plane + r * d;
        for (size_t t = r + 1; t < s->rank; t++)
            for (size_t i = 0; i < d; i++) row[i] -= s->triangle[t * s->rank + r] * s->plane[t * d + i];
        for (size_t i = 0; i < d; i++) row[i] /= s->triangle[r * s->rank + r];
    }
}

/* ---- balancing in it ---- */

/* products (rank, rank) = L Sq L^T. */
static sp_status multiply_moments(double *products, const search *s)
{
    double *row = doubles(s, s->d);
    if (!row) return SP_ERR_MEMORY;
    for (size_t r = 0; r < s->rank; r++) {
        for (size_t i = 0; i < s->d; i++) row[i] = dot(s->query_moments + i * s->wide, s->factor + r * s->d, s->d);
        for (size_t t = 0; t <= r; t++)
            products[r * s->rank + t] = products[t * s->rank + r] = dot(row, s->factor + t * s->d, s->d);
    }
    return SP_OK;
}

/* map (d, rank), transposed = factors V x, of x (rank, d). */
static void make_map(double *map, const search *s, const double *vectors, const double *factors, const double *x)
{
    const size_t stride = sp_turn_stride(s->rank);
    for (size_t r = 0; r < s->rank; r++)
        for (size_t t = 0; t < s->rank; t++) {
            const double v = factors[r] * vectors[r * s->rank + t];
            for (size_t i = 0; i < s->d; i++) map[i * stride + r] += v * x[t * s->d + i];
        }
}

static sp_status make_maps(sp_balance *out, search *s)
{
    const size_t rank = s->rank, d = s->d, stride = sp_turn_stride(rank);
    double *products = doubles(s, rank * rank), *vectors = doubles(s, rank * rank), *factors = doubles(s, rank);
    *out = (sp_balance){.d = d,
                        .centre = s->centre,
                        .of_queries = doubles(s, d * stride),
                        .of_keys = doubles(s, d * stride),
                        .back = doubles(s, rank * s->wide)};
    if (!products || !vectors || !factors || !out->of_queries || !out->of_keys || !out->back) return SP_ERR_MEMORY;
    sp_status st = multiply_moments(products, s);
    if (st) return st;
    sp_symmetric_eigen(products, vectors, rank);
    for (size_t r = 0; r < rank; r++) factors[r] = pow(fmax(products[r * rank + r], LEAST_MOMENT * products[0]), -.25);
    make_map(out->of_queries, s, vectors, factors, s->factor);
    for (size_t r = 0; r < rank; r++) factors[r] = 1 / factors[r];
    make_map(out->of_keys, s, vectors, factors, s->plane);
    double squares = 0;
    for (size_t i = 0; i < d; i++)
        for (size_t r = 0; r < rank; r++) {
            out->back[r * s->wide + i] = out->of_queries[i * stride + r];
            squares += out->of_queries[i * stride + r] * out->of_queries[i * stride + r];
        }
    out->of_queries_size = sqrt(squares) * (1 + 1e-9);
    if (isfinite(squares)) out->rank = rank;
    return SP_OK;
}

/* ---- what it would cost ---- */

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double *turned_norms(const search *s, const double *rows, size_t n, const double *map)
{
    const size_t stride = sp_turn_stride(s->rank);
    double *norms = doubles(s, n), *y = doubles(s, s->rank);
    if (!norms || !y) return NULL;
    for (size_t j = 0; j < n; j++) {
        memset(y, 0, s->rank * sizeof *y);
        for (size_t i = 0; i < s->d; i++)
            for (size_t r = 0; r < s->rank; r++) y[r] += rows[j * s->wide + i] * map[i * stride + r];
        norms[j] = sqrt(dot(y, y, s->rank));
    }
    qsort(norms, n, sizeof *norms, ascending);
    return norms;
}

/* Of one cut through the keys: those beyond are exact for all queries. Each query has the degree that serves it, but for causal
 * calls, of which all have the same. */
static double cost_of_cut(const search *s, size_t n_outer)
{
    sp_fast_call turned = *s->call;
    const sp_fast *fast = turned.fast;
    const double n_keys = (double)turned.head.n_keys, n_queries = (double)turned.head.n_queries, given = sp_fast_pair_cost(s->call);
    turned.head.d = s->rank;
    const double outer = (double)n_outer / (double)s->n_keys * n_keys * sp_fast_pair_cost(&turned);
    const double behind = turned.head.causal ? (double)fast->kernels->block_keys / 2 * sp_fast_pair_cost(&turned) : 0;
    const double seen = n_keys - (turned.head.causal ? n_queries / 2 : 0), radius = s->key_norms[s->n_keys - 1 - n_outer];
    double least = (double)INFINITY, queries = 0;
    size_t n_served = 0;
    for (size_t g = fast->first_degree; g <= fast->last_degree; g++) {
        const double products = sp_fast_degree_products(&turned, g), share = 1 / (double)s->n_queries;
        const size_t before = n_served;
        while (n_served < s->n_queries &&
               s->query_norms[n_served] * radius * fabs((double)turned.head.scale) <= fast->polynomials[g].rho)
            n_served++;
        if (turned.head.causal)
            queries = (double)n_served * products;
        else
            queries += (double)(n_served - before) * products;
        const double polynomial = SP_KEY_COST * products * n_keys + n_queries * share * SP_QUERY_COST * queries;
        const double exact = (1 - (double)n_served * share) * n_queries * seen * given;
        least = fmin(least, polynomial + exact + (double)n_served * share * n_queries * (outer + behind));
    }
    return least;
}

static double expected_cost(const search *s)
{
    const sp_attention_head *h = &s->call->head;
    const double turn = sp_balance_turn_cost(s->call, s->rank);
    double least = cost_of_cut(s, 0);
    for (size_t parts = 32; parts >= 8 && !h->causal; parts /= 2) least = fmin(least, cost_of_cut(s, s->n_keys / parts));
    return least + turn;
}

/* In the units of fast.h: a sample of one side and the plane; then one of the other side, eigenvectors, maps. */
static double cost_of_plane(const search *s)
{
    const double d = (double)s->d;
    return DRAWING_COST + MOMENT_COST * d * d * ((double)s->n_rows + d);
}

static double cost_of_balancing(const search *s)
{
    const double d = (double)s->d, rank = (double)s->rank;
    return DRAWING_COST + MOMENT_COST * d * d * ((double)s->n_rows + rank) + EIGEN_COST * rank * rank * rank;
}

static sp_status balance(sp_balance *out, search *s)
{
    sp_status st = draw_queries(s);
    if (st || !make_plane(s)) return st;
    invert_factor(s);
    return make_maps(out, s);
}

sp_status sp_balance_find(sp_balance *out, const sp_fast_call *call, double limit)
{
    const size_t d = call->head.d;
    const double weight = call->fast->search_weight;
    search s = {.call = call, .kernels = sp_turn_kernels_select(), .arena = call->fast->arena, .d = d, .wide = sp_turn_stride(d)};
    s.n_rows = sp_larger(LEAST_SAMPLE, d + d / 2);
    *out = (sp_balance){.d = d};
    if (call->head.n_keys < LEAST_KEYS || !(call->frame.radius > 0) || call->head.n_queries == 0) return SP_OK;
    if (weight * cost_of_plane(&s) > MOST_FOR_A_PLANE * limit) return SP_OK;
    s.factor = doubles(&s, d * d), s.plane = doubles(&s, d * d), s.triangle = doubles(&s, d * d);
    sp_status st = s.factor && s.plane && s.triangle ? draw_keys(&s) : SP_ERR_MEMORY;
    if (st) return st;
    factor_moments(&s);
    if (s.rank == 0 || weight * cost_of_balancing(&s) > MOST_FOR_BALANCING * limit) return SP_OK;
    st = balance(out, &s);
    if (st || out->rank == 0) return st;
    s.query_norms = turned_norms(&s, s.q, s.n_queries, out->of_queries);
    s.key_norms = turned_norms(&s, s.k, s.n_keys, out->of_keys);
    if (!s.query_norms || !s.key_norms) return SP_ERR_MEMORY;
    if (!(expected_cost(&s) < WORTHWHILE * limit)) out->rank = 0;
    return SP_OK;
}
