/* fast_trials.c: does the certificate of sp_fast_attention hold? Random trials against attention in double: shapes, ranges,
 * degrees, epsilons, scales, offsets, causal or not, keys on a line at the scores where the polynomial errs most among them; values
 * are random, or the worst for one query: the sign of the difference of its two weightings. In every third the call chooses for
 * itself, often the hybrid, among keys and queries some of which lie far out, and which often vary in opposed directions or lie in
 * a plane, so that it balances them. Exits with 1 at the first output outside, with the trial's number.
 *
 *     fast_trials [N [SEED]]     3 000 trials by default; make check-deep runs 10^6 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "fast/balance.h"
#include "fast/frame.h"
#include "fast/remez.h"
#include "fast/fast.h"
#include "softprompt.h"

enum { MAX_KEYS = 1400, MAX_QUERIES = 40, MAX_D = 8, MAX_D_V = 3, N_EPSILONS = 4, MAX_DEGREE = 10, CHECKED = 6 };
static const double epsilons[N_EPSILONS] = {3e-2, 1e-3, 5e-4, 1e-5};

static sp_fast *handles[N_EPSILONS][MAX_DEGREE + 1];
static double ranges[N_EPSILONS][MAX_DEGREE + 1];
static size_t n_hybrids;  /* trials in which keys were exact for every query, */
static size_t n_balanced; /* in which the call took other coordinates, */
static size_t n_planes;   /* and fewer of them */

typedef struct trial {
    float q[MAX_QUERIES * MAX_D], k[MAX_KEYS * MAX_D], v[MAX_KEYS * MAX_D_V], out[MAX_QUERIES * MAX_D_V];
    sp_attention_head head;
    size_t epsilon, degree;
    bool is_chosen; /* by the call: degree is then where its range comes from */
} trial;

static void die(const char *what)
{
    fprintf(stderr, "fast_trials: %s\n", what);
    exit(1);
}

static double uniform(sp_rng *rng, double low, double high)
{
    return low + (high - low) * sp_rng_uniform(rng);
}

static sp_fast *handle(size_t epsilon, size_t degree)
{
    sp_fast **fast = &handles[epsilon][degree];
    if (*fast) return *fast;
    const sp_fast_options options = {.epsilon = epsilons[epsilon], .degree = degree, .n_threads = 1 + (int)degree % 2};
    if (sp_fast_create(fast, &options)) die(sp_message());
    sp_fast_set_least_hybrid(*fast, 0);
    sp_fast_set_least_share(*fast, 0);
    sp_fast_set_search_weight(*fast, 0);
    ranges[epsilon][degree] = degree ? sp_exp_polynomial_range(degree, epsilons[epsilon]) : 0;
    return *fast;
}

/* Directions and lengths of vectors: spread, on a sphere, on a line, or all alike. */
static void draw_vectors(float *x, size_t n, size_t d, sp_rng *rng)
{
    double line[MAX_D];
    size_t kind = sp_rng_below(rng, 4);
    for (size_t i = 0; i < d; i++) line[i] = sp_rng_normal(rng);
    for (size_t r = 0; r < n; r++) {
        double row[MAX_D], squares = 1e-30, along = sp_rng_below(rng, 2) ? uniform(rng, -1, 1) : sp_rng_below(rng, 2) ? 1 : -1;
        for (size_t i = 0; i < d; i++) {
            row[i] = kind >= 2 ? along * line[i] : sp_rng_normal(rng);
            squares += row[i] * row[i];
        }
        for (size_t i = 0; i < d; i++) x[r * d + i] = (float)(kind == 1 ? row[i] / sqrt(squares) : row[i]);
    }
}

static double largest_norm(const float *x, size_t n, size_t d)
{
    double largest = 0;
    for (size_t r = 0; r < n; r++) {
        double squares = 0;
        for (size_t i = 0; i < d; i++) squares += (double)x[r * d + i] * (double)x[r * d + i];
        largest = fmax(largest, squares);
    }
    return sqrt(largest);
}

/* Some rows, a few per cent, up to four times as long. */
static void move_out(float *x, size_t n, size_t d, sp_rng *rng)
{
    for (size_t r = 0; r < n; r++) {
        const float factor = sp_rng_below(rng, 40) ? 1 : (float)uniform(rng, 1, 4);
        for (size_t i = 0; i < d; i++) x[r * d + i] *= factor;
    }
}

/* x <- x less twice its part along a mirror of length 1. */
static void reflect(float *x, size_t n, size_t d, const double *mirror)
{
    for (size_t r = 0; r < n; r++) {
        double along = 0;
        for (size_t i = 0; i < d; i++) along += mirror[i] * (double)x[r * d + i];
        for (size_t i = 0; i < d; i++) x[r * d + i] = (float)((double)x[r * d + i] - 2 * along * mirror[i]);
    }
}

/* Keys long where queries are short and the other way round, or no keys at all beyond some coordinates, or little of them; then
 * both in other coordinates. Scores stay nearly what they were. */
static void oppose(trial *t, sp_rng *rng)
{
    sp_attention_head *h = &t->head;
    const double spread = uniform(rng, 0, 3), off = pow(10, uniform(rng, -8, -2));
    const size_t rank = sp_rng_below(rng, 2) ? h->d : 1 + sp_rng_below(rng, h->d), is_off = sp_rng_below(rng, 2);
    double mirror[MAX_D], squares = 1e-30;
    for (size_t i = 0; i < h->d; i++) {
        const double factor = exp(uniform(rng, -spread, spread));
        for (size_t j = 0; j < h->n_keys; j++) t->k[j * h->d + i] *= (float)(i < rank ? factor : is_off ? off : 0);
        for (size_t j = 0; j < h->n_queries; j++) t->q[j * h->d + i] /= (float)factor;
        mirror[i] = sp_rng_normal(rng);
        squares += mirror[i] * mirror[i];
    }
    for (size_t i = 0; i < h->d; i++) mirror[i] /= sqrt(squares);
    reflect(t->q, h->n_queries, h->d, mirror), reflect(t->k, h->n_keys, h->d, mirror);
}

/* A sum that is large enough for a choice. */
static void draw_chosen(trial *t, sp_rng *rng)
{
    sp_attention_head *h = &t->head;
    h->d = 1 + sp_rng_below(rng, sp_rng_below(rng, 2) ? 4 : MAX_D);
    h->n_queries = MAX_QUERIES;
    h->n_keys = 512 + sp_rng_below(rng, MAX_KEYS - 511);
    t->degree = 1 + sp_rng_below(rng, 6);
}

static void draw(trial *t, sp_rng *rng)
{
    static const double reaches[] = {.3, .9, .9999, 1.5};
    sp_attention_head *h = &t->head;
    t->epsilon = sp_rng_below(rng, N_EPSILONS);
    t->degree = 1 + sp_rng_below(rng, MAX_DEGREE);
    *h = (sp_attention_head){
        .q = t->q, .k = t->k, .v = t->v, .d = 1 + sp_rng_below(rng, MAX_D), .d_v = 1 + sp_rng_below(rng, MAX_D_V)};
    while (sp_monomials_count(h->d, t->degree) > 600) t->degree--;
    h->n_queries = 1 + sp_rng_below(rng, MAX_QUERIES);
    h->n_keys = 1 + sp_rng_below(rng, sp_rng_below(rng, 4) ? 60 : MAX_KEYS);
    t->is_chosen = sp_rng_below(rng, 3) == 0;
    if (t->is_chosen) draw_chosen(t, rng);
    h->causal = h->n_queries <= h->n_keys && sp_rng_below(rng, 3) == 0;
    draw_vectors(t->q, h->n_queries, h->d, rng);
    draw_vectors(t->k, h->n_keys, h->d, rng);
    if (sp_rng_below(rng, 3) == 0) /* all queries along the first key: scores at both ends where keys lie on a line */
        for (size_t i = 0; i < h->n_queries * h->d; i++) t->q[i] = t->k[i % h->d];
    double reach = reaches[sp_rng_below(rng, 4)], offset = sp_rng_below(rng, 2) ? uniform(rng, -30, 30) : 0;
    double size = largest_norm(t->q, h->n_queries, h->d) * largest_norm(t->k, h->n_keys, h->d);
    handle(t->epsilon, t->degree);
    h->scale = (float)(reach * ranges[t->epsilon][t->degree] / (size + 1e-30));
    if (t->is_chosen && sp_rng_below(rng, 2)) move_out(t->k, h->n_keys, h->d, rng);
    if (t->is_chosen && sp_rng_below(rng, 2)) move_out(t->q, h->n_queries, h->d, rng);
    if (t->is_chosen && sp_rng_below(rng, 2)) oppose(t, rng);
    for (size_t i = 0; i < h->n_keys * h->d; i++) t->k[i] += (float)offset;
    double spread = exp(uniform(rng, -20, 20)), middle = uniform(rng, -3, 3) * spread;
    for (size_t i = 0; i < h->n_keys * h->d_v; i++) t->v[i] = (float)(middle + spread * uniform(rng, -1, 1));
}

/* Of a query with a key. */
static double score(const sp_attention_head *h, const sp_frame *frame, size_t query, size_t key)
{
    double s = 0;
    for (size_t i = 0; i < h->d; i++)
        s += (double)h->scale * (double)h->q[query * h->d + i] * ((double)h->k[key * h->d + i] - (double)frame->centre[i]);
    return s;
}

/* Weights of a query: the softmax's, and those of the polynomial in the coordinates that the call takes; of scores beyond its
 * range, which are exact in a hybrid, e^s. */
static void weigh(double *exact, double *ours, const sp_fast_call *given, const sp_fast_call *call, const sp_exp_polynomial *p,
                  size_t query)
{
    const sp_attention_head *h = &given->head;
    size_t n_seen = h->causal ? h->n_keys - h->n_queries + query + 1 : h->n_keys;
    double sums[2] = {0};
    for (size_t j = 0; j < h->n_keys; j++) exact[j] = ours[j] = 0;
    for (size_t j = 0; j < n_seen; j++) {
        const double s = score(&call->head, &call->frame, query, j);
        exact[j] = exp(score(h, &given->frame, query, j));
        for (size_t g = p->degree + 1; g-- > 0;) ours[j] = ours[j] * s + p->c[g];
        if (fabs(s) > p->rho) ours[j] = exp(s);
        sums[0] += exact[j], sums[1] += ours[j];
    }
    for (size_t j = 0; j < n_seen; j++) exact[j] /= sums[0], ours[j] /= sums[1];
}

/* The call as it came, and in the coordinates that it takes; memory of the handle. */
static void find_coordinates(sp_fast_call *given, sp_fast_call *taken, sp_fast *fast, const trial *t, bool is_balanced)
{
    sp_balance balance;
    bool done;
    *given = (sp_fast_call){.fast = fast, .head = t->head};
    given->head.ldq = given->head.ldk = t->head.d, given->head.ldv = given->head.ldo = t->head.d_v;
    if (sp_fast_call_measure(given)) die(sp_message());
    *taken = *given;
    if (!is_balanced) return;
    if (sp_balance_find(&balance, given, (double)INFINITY) || balance.rank == 0) die("coordinates are not found again");
    if (sp_balance_turn(taken, &done, given, &balance) || !done) die("coordinates are not taken again");
}

/* How much of its bound a trial uses; dies where it is more than all of it. */
static double run(trial *t, size_t number, sp_rng *rng)
{
    static double exact[MAX_KEYS], ours[MAX_KEYS];
    const sp_attention_head *h = &t->head;
    sp_fast *fast = handle(t->epsilon, t->is_chosen ? 0 : t->degree);
    sp_exp_polynomial p;
    sp_fast_call given, taken;
    sp_certificate certificate = {0};
    if (t->is_chosen) { /* which does not depend on the values */
        if (sp_fast_attention(t->out, &certificate, fast, h)) die(sp_message());
        if (certificate.degree) t->degree = certificate.degree;
        n_hybrids += certificate.n_exact_keys > 0;
        n_balanced += certificate.rank > 0;
        n_planes += certificate.rank > 0 && certificate.rank < h->d;
        handle(t->epsilon, t->degree);
    }
    sp_exp_polynomial_fit(&p, t->degree, ranges[t->epsilon][t->degree]);
    find_coordinates(&given, &taken, fast, t, certificate.rank > 0);
    if (sp_rng_below(rng, 4)) { /* the worst values for the first query, in the first column */
        weigh(exact, ours, &given, &taken, &p, 0);
        float high = t->v[0], low = t->v[h->n_keys > 1 ? h->d_v : 0];
        for (size_t j = 0; j < h->n_keys; j++) t->v[j * h->d_v] = ours[j] > exact[j] ? high : low;
    }
    sp_arena_reset(fast->arena, (sp_arena_mark){0});
    if (sp_fast_attention(t->out, &certificate, fast, h)) die(sp_message());
    find_coordinates(&given, &taken, fast, t, false);
    double bound = certificate.polynomial_bound + certificate.rounding_bound, used = 0;
    for (size_t c = 0; c < CHECKED; c++) {
        size_t i = c ? sp_rng_below(rng, h->n_queries) : 0;
        double norm = largest_norm(t->q + i * h->d, 1, h->d) * given.frame.radius * fabs((double)h->scale);
        bool is_exact = norm >= ranges[t->epsilon][t->degree] * (1 - 1e-6);                  /* of which no certificate speaks, */
        if (!t->is_chosen && (is_exact || (h->causal && certificate.n_exact > 0))) continue; /* nor of causal neighbours */
        /* Which are exact is not known of a hybrid: f32's usual rounding, then. */
        double most = bound + (t->is_chosen && certificate.n_exact ? 1e-6 * (8 + norm) * given.frame.value_magnitude : 0);
        weigh(exact, ours, &given, &given, &p, i);
        for (size_t o = 0; o < h->d_v; o++) {
            double want = 0;
            for (size_t j = 0; j < h->n_keys; j++) want += exact[j] * (double)t->v[j * h->d_v + o];
            double difference = fabs(want - (double)t->out[i * h->d_v + o]);
            if (!(difference <= most)) {
                printf("trial %zu: degree %zu, epsilon %g, %zu keys of %zu, query %zu: %.9g off, certified %.9g + %.9g\n", number,
                       t->degree, epsilons[t->epsilon], h->n_keys, h->d, i, difference, certificate.polynomial_bound,
                       certificate.rounding_bound);
                exit(1);
            }
            used = fmax(used, difference / (most + 1e-300));
        }
    }
    sp_arena_reset(fast->arena, (sp_arena_mark){0});
    return used;
}

int main(int argc, char **argv)
{
    size_t n = argc > 1 ? (size_t)strtoull(argv[1], NULL, 10) : 3000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    static trial t;
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        sp_rng rng = sp_rng_seed(seed, i);
        draw(&t, &rng);
        most = fmax(most, run(&t, i, &rng));
    }
    printf("fast_trials: %zu certificates held, %zu of them of hybrids, %zu balanced, %zu of these in fewer coordinates; the "
           "closest used "
           "%.3f of its bound\n",
           n, n_hybrids, n_balanced, n_planes, most);
    if (n >= 1000 && n_hybrids < n / 100) die("too few hybrids to have tested them");
    if (n >= 1000 && (n_balanced < n / 50 || n_planes < n / 200)) die("too few balanced calls to have tested them");
    for (size_t e = 0; e < N_EPSILONS; e++)
        for (size_t g = 0; g <= MAX_DEGREE; g++) sp_fast_free(handles[e][g]);
    return 0;
}
