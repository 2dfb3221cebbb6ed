/* state_attend.c: queries that read a head's moments, and what is known of their outputs.
 *
 * A query's features are computed here, from its few coordinates in the keys' plane, and multiplied with the moments as a small
 * matrix product: queries come a few at a time, so lanes are the columns of the values, not queries.
 *
 * Invariant: a query is shortened in the plane until |query| radius scale <= the polynomial's range.
 * Cost: of a query O(features (d_v + 1) + d * rank), whatever the number of keys. */
#include <math.h>
#include <stdlib.h>

#include "base/sizes.h"
#include "base/status.h"
#include "fast/rounding.h"
#include "fast/state.h"
#include "tensor/kernels.h"

enum {
    TILE = 16,  /* queries at a time */
    CHAIN = 64, /* features that are summed in a row */
    CACHE_LINE = 16
};

/* ---- queries ---- */

size_t sp_fast_state_scratch_floats(const sp_fast_state *state)
{
    return TILE * (state->plane.rank + state->n_features + 2 * state->ld) + CACHE_LINE;
}

/* The monomials of a query below a node, in the order of the tree. */
static float *list_monomials(float *out, const float *y, size_t d, size_t degree, size_t level, size_t last, float value)
{
    if (level == degree) return out;
    const float *children = out;
    for (size_t i = last; i < d; i++) *out++ = value * y[i];
    if (level + 1 == degree) return out;
    for (size_t i = last; i < d; i++) out = list_monomials(out, y, d, degree, level + 1, i, children[i - last]);
    return out;
}

/* f64, in sums side by side: one would wait for itself. */
static double dot(const float *x, const double *y, size_t n)
{
    enum { SUMS = 8 };
    double sums[SUMS] = {0}, sum = 0;
    size_t i = 0;
    for (; i + SUMS <= n; i += SUMS)
        for (size_t s = 0; s < SUMS; s++) sums[s] += (double)x[i + s] * y[i + s];
    for (; i < n; i++) sum += (double)x[i] * y[i];
    for (size_t s = 0; s < SUMS; s++) sum += sums[s];
    return sum;
}

/* y (rank): the query in the plane, times the scale, shortened to the range. Returns scale q . centre. */
static double place_query(float *y, sp_state_use *use, const sp_fast_state *state, const float *q)
{
    const sp_plane *plane = &state->plane;
    const size_t d = plane->d;
    const double scale = (double)state->scale, range = state->polynomial.rho / (1 + 8 * SP_UNIT_ROUNDOFF);
    const double common = dot(q, plane->centre, d);
    double norm = 0, squares = 0, coordinates[SP_FAST_STATE_MAX_RANK];
    for (size_t i = 0; i < d; i++) norm += (double)q[i] * (double)q[i];
    for (size_t s = 0; s < plane->rank; s++) {
        coordinates[s] = dot(q, plane->basis + s * d, d);
        squares += coordinates[s] * coordinates[s];
    }
    const double bound = sp_state_rounded_up(sqrt(squares) * state->radius * fabs(scale));
    const double shorter = bound > range ? range / bound : 1, beyond = bound > range ? bound - range : 0;
    for (size_t s = 0; s < plane->rank; s++) y[s] = (float)(coordinates[s] * shorter * scale / state->key_factor);
    use->n_queries++;
    use->n_beyond += bound > range;
    use->range = fmax(use->range, bound);
    use->log_ratio = fmax(use->log_ratio, beyond + sp_state_rounded_up(sqrt(norm) * state->remainder * fabs(scale)));
    return common * scale;
}

/* sums (n, ld) = features (n, n_features) times the state, CHAIN features at a time: a sum of all at once would round as often. */
static void multiply(float *sums, float *part, const float *monomials, const sp_fast_state *state, size_t n)
{
    const sp_kernels *kernels = sp_kernels_select();
    const size_t ld = state->ld, columns = state->columns;
    for (size_t first = 0; first < state->n_features; first += CHAIN) {
        float *to = first ? part : sums;
        kernels->gemm(to, ld, monomials + first, state->n_features, 1, state->features + first * ld, ld, n, columns,
                      sp_smaller(CHAIN, state->n_features - first), false);
        for (size_t i = 0; i < n && first; i++)
            for (size_t c = 0; c < columns; c++) sums[i * ld + c] += part[i * ld + c];
    }
}

static sp_status check_query(const float *q, size_t d, size_t number)
{
    for (size_t i = 0; i < d; i++)
        if (!isfinite(q[i]))
            return sp_fail(SP_ERR_ARGUMENT, "query %zu: coordinate %zu is %f; attention takes finite numbers only", number, i,
                           (double)q[i]);
    return SP_OK;
}

sp_status sp_fast_state_evaluate(float *out, size_t ldo, float *lse, sp_state_use *use, const sp_fast_state *state, const float *q,
                                 size_t ldq, size_t n, float *scratch)
{
    const size_t rank = state->plane.rank, r = state->n_features, ld = state->ld;
    float *y = scratch, *monomials = y + TILE * rank, *sums = monomials + TILE * r, *part = sums + TILE * ld;
    double common[TILE];
    for (size_t first = 0, some; first < n; first += some) {
        some = sp_smaller(TILE, n - first);
        for (size_t i = 0; i < some; i++) {
            const float *query = q + (first + i) * ldq;
            sp_status st = check_query(query, state->plane.d, first + i);
            if (st) return st;
            common[i] = place_query(y + i * rank, use, state, query);
            monomials[i * r] = 1;
            list_monomials(monomials + i * r + 1, y + i * rank, rank, state->polynomial.degree, 0, 0, 1);
        }
        multiply(sums, part, monomials, state, some);
        for (size_t i = 0; i < some; i++) {
            const float *row = sums + i * ld;
            const double normaliser = (double)row[state->d_v], factor = 1 / (normaliser * state->value_factor);
            const double mean = normaliser / (double)state->n_keys;
            if (use->least_mean == 0 || mean < use->least_mean) use->least_mean = mean;
            for (size_t c = 0; c < state->d_v; c++)
                out[(first + i) * ldo + c] = (float)((double)state->value_middle[c] + (double)row[c] * factor);
            if (lse) lse[first + i] = (float)(common[i] + log(normaliser));
        }
    }
    return SP_OK;
}

sp_status sp_fast_state_attend(float *out, float *lse, sp_certificate *certificate, const sp_fast_state *state,
                               const sp_attention_head *queries)
{
    const size_t ldq = queries->ldq ? queries->ldq : queries->d, ldo = queries->ldo ? queries->ldo : state->d_v;
    sp_state_use use = {0};
    if (queries->d != state->plane.d || ldq < queries->d || ldo < state->d_v)
        return sp_fail(SP_ERR_MISMATCH,
                       "queries of %zu numbers, %zu apart, outputs %zu apart, for a state of %zu and values of %zu", queries->d,
                       ldq, ldo, state->plane.d, state->d_v);
    float *scratch = malloc(sp_fast_state_scratch_floats(state) * sizeof *scratch);
    if (!scratch) return sp_fail_no_memory(sp_fast_state_scratch_floats(state) * sizeof *scratch);
    sp_status st = sp_fast_state_evaluate(out, ldo, lse, &use, state, queries->q, ldq, queries->n_queries, scratch);
    free(scratch);
    if (!st && certificate) sp_fast_state_certify(certificate, state, &use);
    return st;
}

/* ---- what is known of the result ---- */

/* As in attention.c, but for the sums over features: CHAIN in a row, then the parts, and a query's monomial has roundings of its
 * own. Values may have left the middle of those that the state began with: their largest distance from it counts twice. */
static double bound_rounding(const sp_fast_state *state, const sp_state_use *use, double reach, double magnitude)
{
    const sp_exp_polynomial *p = &state->polynomial;
    const sp_served served = {use->n_queries, fmin(use->range, p->rho), use->least_mean};
    const sp_term_roundings roundings = {.base = CHAIN + (double)state->n_features / CHAIN + 1, .per_level = 2};
    return sp_rounding_bound(sp_rounding_of_weights(&served, p, roundings), 2 * reach, magnitude);
}

/* Weights off by factors whose logarithms differ by L at most are off by tanh(L / 4) in total variation. */
double sp_fast_state_weights_bound(const sp_fast_state *state, const sp_state_use *use)
{
    return tanh(atanh(state->polynomial.eps) / 2 + use->log_ratio / 2);
}

void sp_fast_state_certify(sp_certificate *out, const sp_fast_state *state, const sp_state_use *use)
{
    double range = 0, reach = 0, magnitude = 0;
    for (size_t c = 0; c < state->d_v; c++) {
        const double least = (double)state->value_least[c], most = (double)state->value_most[c];
        const double middle = (double)state->value_middle[c];
        range = fmax(range, sp_state_rounded_up(most - least));
        reach = fmax(reach, sp_state_rounded_up(fmax(most - middle, middle - least)));
        magnitude = fmax(magnitude, fmax(fabs(least), fabs(most)));
    }
    *out = (sp_certificate){.n_queries = use->n_queries,
                            .n_keys = state->n_keys,
                            .degree = state->polynomial.degree,
                            .n_features = state->n_features,
                            .range = fmin(use->range, state->polynomial.rho),
                            .max_range = use->range,
                            .epsilon = state->polynomial.eps,
                            .n_beyond = use->n_beyond};
    out->weights_bound = sp_fast_state_weights_bound(state, use);
    out->polynomial_bound = range * out->weights_bound;
    out->rounding_bound = bound_rounding(state, use, reach, magnitude);
}
