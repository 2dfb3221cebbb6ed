/* phase_hard.c: what a bounded range of scores cannot tell: a nearest neighbour from many keys that are half as near.
 *
 * A cluster's centre is a random corner x of {-1, 1}^32. Its first key is x, with the right answer as its value; its sqrt(n) - 1
 * others differ from x in 8 coordinates of 32, so that their inner product with it is 16, half of 32, with the wrong answer. Each
 * query is a centre. The reduction behind the theorem writes nearest-neighbour search (orthogonal vectors) into attention in the
 * same way: it is the exponential that makes one key outweigh many, and that takes scores of order ln n. */
#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "base/status.h"
#include "fast/remez.h"
#include "lab/phase.h"

enum { D = SP_PHASE_HARD_D, N_FLIPPED = D / 4 };

static void draw_corner(float *x, sp_rng *rng)
{
    for (size_t i = 0; i < D; i++) x[i] = sp_rng_next(rng) >> 63 ? 1 : -1;
}

/* x with as many coordinates turned as make the inner product half. */
static void draw_decoy(float *out, const float *x, sp_rng *rng)
{
    size_t order[D];
    sp_rng_permute(rng, order, D);
    for (size_t i = 0; i < D; i++) out[i] = x[i];
    for (size_t i = 0; i < N_FLIPPED; i++) out[order[i]] = -x[order[i]];
}

static void draw(sp_phase_instance *p, uint64_t seed)
{
    sp_rng rng = sp_rng_seed(seed, 1);
    for (size_t cluster = 0; cluster < p->side; cluster++) {
        const size_t first = cluster * p->side;
        float *centre = p->k + first * D;
        draw_corner(centre, &rng);
        p->v[first] = sp_rng_next(&rng) >> 63 ? 1 : -1;
        for (size_t i = 1; i < p->side; i++) {
            draw_decoy(centre + i * D, centre, &rng);
            p->v[first + i] = -p->v[first];
        }
        for (size_t i = 0; i < p->side; i++)
            for (size_t j = 0; j < D; j++) p->q[(first + i) * D + j] = centre[j];
    }
}

static sp_status choose_polynomial(sp_phase_instance *p, sp_phase_report *r)
{
    size_t degree = 1;
    while (degree < SP_MAX_DEGREE && sp_monomials_count(D, degree + 1) <= p->n) degree++;
    p->range = sp_exp_polynomial_range(degree, r->options.epsilon);
    r->hard_degree = degree;
    r->hard_features = sp_monomials_count(D, degree);
    r->hard_range = p->range;
    return sp_fast_create(&p->fast, &(sp_fast_options){.epsilon = r->options.epsilon, .degree = degree});
}

sp_status sp_phase_instance_create(sp_phase_instance *out, sp_phase_report *r)
{
    const size_t n = (size_t)1 << r->options.hard_log2_n;
    float *all = malloc((2 * n * D + 2 * n) * sizeof *all);
    *out = (sp_phase_instance){.n = n, .side = (size_t)1 << r->options.hard_log2_n / 2, .q = all};
    if (!all) return sp_fail_no_memory((2 * n * D + 2 * n) * sizeof *all);
    out->k = all + n * D;
    out->v = all + 2 * n * D;
    out->out = out->v + n;
    r->hard_n = n;
    draw(out, r->options.seed);
    return choose_polynomial(out, r);
}

void sp_phase_instance_clear(sp_phase_instance *p)
{
    sp_fast_free(p->fast);
    free(p->q);
}

float sp_phase_instance_answer(const sp_phase_instance *p, size_t query)
{
    return p->v[query / p->side * p->side];
}

static void judge(double *right, double *output, const sp_phase_instance *p)
{
    double n_right = 0, sum = 0;
    for (size_t i = 0; i < p->n; i++) {
        const double value = (double)(p->out[i] * sp_phase_instance_answer(p, i));
        n_right += value > 0;
        sum += value;
    }
    *right = n_right / (double)p->n;
    *output = sum / (double)p->n;
}

sp_status sp_phase_instance_run(sp_phase_hard *out, sp_phase_instance *p, double c)
{
    const double range = c * c * log((double)p->n);
    /* The mean of the keys is not 0, and distances to it reach a little farther than the corners: a tenth is more than that. */
    const double served = fmin(range, p->range * 0.9);
    sp_certificate certificate;
    sp_attention_head head = {
        .q = p->q, .k = p->k, .v = p->v, .n_queries = p->n, .n_keys = p->n, .d = D, .d_v = 1, .scale = (float)(range / D)};
    *out = (sp_phase_hard){.c = c, .range = range};
    sp_status st = sp_exact_attention(p->out, p->fast, &head);
    if (st) return st;
    judge(&out->exact_right, &out->exact_output, p);
    if ((st = sp_fast_attention(p->out, &certificate, p->fast, &head))) return st;
    out->refused = (double)certificate.n_exact / (double)p->n;
    head.scale = (float)(served / D);
    if ((st = sp_fast_attention(p->out, &certificate, p->fast, &head))) return st;
    if (certificate.n_exact)
        return sp_fail(SP_ERR_UNSUPPORTED, "%zu queries lie outside the polynomial's range of %g", certificate.n_exact, p->range);
    judge(&out->polynomial_right, &out->polynomial_output, p);
    return SP_OK;
}
