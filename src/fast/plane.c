/* plane.c: directions from pivots, as in a QR decomposition with column pivoting, and one step of subspace iteration behind it.
 * The remainder that counts is measured, key by key, by whoever uses the plane; here it only says when to stop. */
#include "fast/plane.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

/* What n keys take while their plane is looked for. */
typedef struct plane_search {
    const sp_attention_head *keys;
    sp_plane *plane;
    double *left; /* (n_keys): squared distance from the plane so far */
    double *row;  /* (d) */
    double *sums; /* (max_rank, d) */
} plane_search;

void sp_plane_free(sp_plane *plane)
{
    free(plane->centre);
    free(plane->basis);
    *plane = (sp_plane){0};
}

static sp_status allocate(sp_plane *out, size_t d, size_t rank)
{
    *out = (sp_plane){.d = d, .centre = calloc(d, sizeof *out->centre), .basis = calloc(rank ? rank * d : 1, sizeof *out->basis)};
    if (out->centre && out->basis) return SP_OK;
    sp_plane_free(out);
    return sp_fail_no_memory((rank + 1) * d * sizeof(double));
}

double sp_plane_rounding(const sp_plane *plane)
{
    double largest = 0;
    for (size_t i = 0; i < plane->d; i++) largest = fmax(largest, fabs(plane->centre[i]));
    return largest * sqrt((double)plane->d) * FLT_EPSILON;
}

static void find_mean(double *mean, const sp_attention_head *keys)
{
    memset(mean, 0, keys->d * sizeof *mean);
    for (size_t j = 0; j < keys->n_keys; j++)
        for (size_t i = 0; i < keys->d; i++) mean[i] += (double)keys->k[j * keys->ldk + i];
    for (size_t i = 0; i < keys->d; i++) mean[i] /= (double)keys->n_keys;
}

/* Blocks of sums that do not wait for each other. */
static double dot(const double *a, const double *b, size_t n)
{
    double sum[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t l = 0; l < 8; l++) sum[l] += a[i + l] * b[i + l];
    for (; i < n; i++) sum[0] += a[i] * b[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

static void centre_key(double *out, const sp_plane *plane, const float *key)
{
    for (size_t i = 0; i < plane->d; i++) out[i] = (double)key[i] - plane->centre[i];
}

double sp_plane_project(double *a, double *remainder, const sp_plane *plane, const float *key, double *scratch)
{
    const size_t d = plane->d;
    double squares = 0;
    centre_key(scratch, plane, key);
    for (size_t s = 0; s < plane->rank; s++) {
        a[s] = dot(plane->basis + s * d, scratch, d);
        squares += a[s] * a[s];
    }
    for (size_t s = 0; s < plane->rank; s++)
        for (size_t i = 0; i < d; i++) scratch[i] -= plane->basis[s * d + i] * a[s];
    *remainder = sqrt(dot(scratch, scratch, d));
    return sqrt(squares);
}

/* x less its part in the first `rank` directions, twice, for what rounding left; then of length 1. */
static bool make_orthonormal(double *x, const sp_plane *plane, size_t rank)
{
    const size_t d = plane->d;
    for (int pass = 0; pass < 2; pass++)
        for (size_t s = 0; s < rank; s++) {
            const double a = dot(plane->basis + s * d, x, d);
            for (size_t i = 0; i < d; i++) x[i] -= a * plane->basis[s * d + i];
        }
    const double length = sqrt(dot(x, x, d));
    if (!(length > 0)) return false;
    for (size_t i = 0; i < d; i++) x[i] /= length;
    return true;
}

static size_t find_farthest(const plane_search *search)
{
    size_t farthest = 0;
    for (size_t j = 1; j < search->keys->n_keys; j++)
        if (search->left[j] > search->left[farthest]) farthest = j;
    return farthest;
}

/* One direction more: that of a key's remainder. */
static bool add_direction(plane_search *search, size_t pivot)
{
    sp_plane *plane = search->plane;
    const sp_attention_head *keys = search->keys;
    double *direction = plane->basis + plane->rank * plane->d;
    centre_key(direction, plane, keys->k + pivot * keys->ldk);
    if (!make_orthonormal(direction, plane, plane->rank)) return false;
    plane->rank++;
    for (size_t j = 0; j < keys->n_keys; j++) {
        centre_key(search->row, plane, keys->k + j * keys->ldk);
        const double a = dot(direction, search->row, plane->d);
        search->left[j] = fmax(search->left[j] - a * a, 0);
    }
    return true;
}

/* basis <- orthonormal rows of basis (K - c)^T (K - c): the pivots' own noise goes, the directions that all keys share stay. */
static void turn_towards_keys(plane_search *search)
{
    sp_plane *plane = search->plane;
    const size_t d = plane->d;
    memset(search->sums, 0, plane->rank * d * sizeof(double));
    for (size_t j = 0; j < search->keys->n_keys; j++) {
        centre_key(search->row, plane, search->keys->k + j * search->keys->ldk);
        for (size_t s = 0; s < plane->rank; s++) {
            const double a = dot(plane->basis + s * d, search->row, d);
            for (size_t i = 0; i < d; i++) search->sums[s * d + i] += a * search->row[i];
        }
    }
    for (size_t s = 0; s < plane->rank; s++) {
        if (!make_orthonormal(search->sums + s * d, plane, s)) continue; /* the direction stays what it was */
        memcpy(plane->basis + s * d, search->sums + s * d, d * sizeof(double));
    }
}

/* The centre moves to the middle of the keys' box in the plane where all keys are nearer to that. */
static void move_to_middle(plane_search *search)
{
    sp_plane *plane = search->plane;
    const size_t d = plane->d, rank = plane->rank;
    const sp_attention_head *keys = search->keys;
    double *least = search->sums, *most = search->sums + rank, *a = search->sums + 2 * rank, remainder, around_mean = 0;
    double around_middle = 0;
    for (size_t j = 0; j < keys->n_keys; j++) {
        around_mean = fmax(around_mean, sp_plane_project(a, &remainder, plane, keys->k + j * keys->ldk, search->row));
        for (size_t s = 0; s < rank; s++) {
            least[s] = j ? fmin(least[s], a[s]) : a[s];
            most[s] = j ? fmax(most[s], a[s]) : a[s];
        }
    }
    for (size_t s = 0; s < rank; s++) most[s] = (least[s] + most[s]) / 2;
    for (size_t j = 0; j < keys->n_keys; j++) {
        double squares = 0;
        sp_plane_project(a, &remainder, plane, keys->k + j * keys->ldk, search->row);
        for (size_t s = 0; s < rank; s++) squares += (a[s] - most[s]) * (a[s] - most[s]);
        around_middle = fmax(around_middle, sqrt(squares));
    }
    if (around_middle >= around_mean) return;
    for (size_t s = 0; s < rank; s++)
        for (size_t i = 0; i < d; i++) plane->centre[i] += most[s] * plane->basis[s * d + i];
}

static sp_status search_plane(plane_search *search, size_t max_rank, double tolerance)
{
    sp_plane *plane = search->plane;
    const sp_attention_head *keys = search->keys;
    find_mean(plane->centre, keys);
    for (size_t j = 0; j < keys->n_keys; j++) {
        centre_key(search->row, plane, keys->k + j * keys->ldk);
        search->left[j] = dot(search->row, search->row, plane->d);
    }
    const double radius = sqrt(search->left[find_farthest(search)]);
    for (;;) {
        const size_t farthest = find_farthest(search);
        const double distance = sqrt(search->left[farthest]);
        if (distance <= tolerance * radius + sp_plane_rounding(plane)) break;
        if (plane->rank == max_rank)
            return sp_fail(SP_ERR_UNSUPPORTED,
                           "the keys' rank is above %zu: key %zu lies %.3g off the plane, %.3g of the largest distance from their "
                           "centre; allow a higher rank or a larger tolerance",
                           max_rank, farthest, distance, distance / radius);
        if (!add_direction(search, farthest)) break; /* nothing but rounding is left */
    }
    if (plane->rank == 0) return SP_OK;
    turn_towards_keys(search);
    move_to_middle(search);
    return SP_OK;
}

sp_status sp_plane_find(sp_plane *out, const sp_attention_head *keys, size_t max_rank, double tolerance)
{
    const size_t d = keys->d, most = max_rank < d ? max_rank : d;
    sp_status st = allocate(out, d, most);
    if (st) return st;
    plane_search search = {.keys = keys,
                           .plane = out,
                           .left = calloc(keys->n_keys, sizeof(double)),
                           .row = calloc(d, sizeof(double)),
                           .sums = calloc(most * d + 3 * most + 1, sizeof(double))};
    st = search.left && search.row && search.sums ? search_plane(&search, most, tolerance)
                                                  : sp_fail_no_memory((keys->n_keys + (most + 1) * d) * sizeof(double));
    free(search.left);
    free(search.row);
    free(search.sums);
    if (st) sp_plane_free(out);
    return st;
}

sp_status sp_plane_copy(sp_plane *out, const sp_attention_head *keys, const float *centre, const float *basis, size_t rank)
{
    sp_status st = allocate(out, keys->d, rank);
    if (st) return st;
    out->rank = rank;
    if (!centre) find_mean(out->centre, keys);
    for (size_t i = 0; i < keys->d && centre; i++) out->centre[i] = (double)centre[i];
    for (size_t i = 0; i < rank * keys->d; i++) out->basis[i] = (double)basis[i];
    return SP_OK;
}
