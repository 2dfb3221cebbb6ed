/* test_phase.c: the phase lab's points are what arithmetic says, its exponents those of laws, and its hard instances are decided as
 * attention in double decides them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fast/remez.h"
#include "lab/phase.h"

static sp_phase_report *run(sp_phase_options options)
{
    static sp_phase_report report;
    assert_int_equal(sp_lab_phase(&report, &options, NULL), SP_OK);
    return &report;
}

/* ---- points ---- */

static void test_points(void **state)
{
    (void)state;
    const sp_phase_report *r = run((sp_phase_options){.d = 4, .min_log2_n = 7, .max_log2_n = 9, .hard_log2_n = 6});
    assert_int_equal(r->n_sizes, 3);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(r->sizes[i].n, (size_t)128 << i);
        assert_true(r->sizes[i].seconds > 0 && !r->sizes[i].extended);
    }
    for (size_t c = 0; c < SP_PHASE_N_C; c++)
        for (size_t i = 0; i < 3; i++) {
            const sp_phase_point *p = &r->points[c][i];
            assert_true(fabs(p->range - p->c * p->c * log((double)p->n)) < 1e-12 && fabs(p->entry * p->entry - p->range) < 1e-12);
            if (p->degree == SIZE_MAX) {
                assert_true(p->range > sp_exp_polynomial_range(SP_MAX_DEGREE, 1e-3) && isnan(p->seconds));
                continue;
            }
            assert_true(p->range <= sp_exp_polynomial_range(p->degree, 1e-3));
            assert_true(p->degree == 0 || p->range > sp_exp_polynomial_range(p->degree - 1, 1e-3));
            assert_int_equal(p->features, sp_monomials_count(4, p->degree));
            assert_true(p->seconds > 0);
            assert_true(p->n_exact == 0 || p->range > 0.9 * sp_exp_polynomial_range(p->degree, 1e-3));
            assert_true(p->n_exact == p->n || p->bound > 0);
        }
}

/* Runs that would take too long are not begun; the exact kernel's are extended by n^2 and marked. */
static void test_no_time(void **state)
{
    (void)state;
    const sp_phase_report *r = run((sp_phase_options){.min_log2_n = 8, .max_log2_n = 11, .hard_log2_n = 6, .seconds = 1e-9});
    assert_true(!r->sizes[0].extended && r->sizes[1].extended && r->sizes[3].extended);
    assert_true(fabs(r->sizes[3].seconds / r->sizes[0].seconds - 64) < 1e-9);
    for (size_t c = 0; c < SP_PHASE_N_C; c++) assert_true(isnan(r->points[c][3].seconds) && isnan(r->exponents[c]));
    assert_true(isnan(r->exact_exponent));
}

/* ---- hard instances ---- */

/* Attention of query i in double. */
static double attend(const sp_phase_instance *p, size_t i, double scale)
{
    double top = 0, total = 0;
    for (size_t j = 0; j < p->n; j++) {
        double s = 0;
        for (size_t k = 0; k < SP_PHASE_HARD_D; k++) s += (double)(p->q[i * SP_PHASE_HARD_D + k] * p->k[j * SP_PHASE_HARD_D + k]);
        const double weight = exp(scale * (s - SP_PHASE_HARD_D));
        top += weight * (double)p->v[j];
        total += weight;
    }
    return top / total;
}

static void judge(double *right, double *output, const sp_phase_instance *p, double range)
{
    double n_right = 0, sum = 0;
    for (size_t i = 0; i < p->n; i++) {
        const double value = attend(p, i, range / SP_PHASE_HARD_D) * (double)sp_phase_instance_answer(p, i);
        n_right += value > 0;
        sum += value;
    }
    *right = n_right / (double)p->n;
    *output = sum / (double)p->n;
}

static void test_hard_instances(void **state)
{
    (void)state;
    const sp_phase_report *r = run((sp_phase_options){.min_log2_n = 6, .max_log2_n = 6, .hard_log2_n = 10, .seed = 4});
    sp_phase_report again = *r;
    sp_phase_instance instance;
    assert_int_equal(sp_phase_instance_create(&instance, &again), SP_OK);
    assert_true(r->hard_features <= r->hard_n && sp_monomials_count(SP_PHASE_HARD_D, r->hard_degree + 1) > r->hard_n);
    for (size_t i = 0; i < SP_PHASE_N_HARD; i++) {
        const sp_phase_hard *h = &r->hard[i];
        double right, output;
        judge(&right, &output, &instance, h->range);
        assert_true(fabs(output - h->exact_output) < 1e-5 && fabs(right - h->exact_right) < 1e-3);
        judge(&right, &output, &instance, fmin(h->range, 0.9 * r->hard_range));
        assert_true(fabs(output - h->polynomial_output) < 1e-3); /* epsilon / 2 of the values' range of 2 */
        assert_true(h->refused == 1);                            /* c of 0.5 and more is beyond degree 2 */
        assert_true(h->polynomial_right < 0.7);
    }
    assert_true(r->hard[0].exact_right < 0.5 && r->hard[SP_PHASE_N_HARD - 1].exact_right == 1);
    sp_phase_instance_clear(&instance);
}

/* Of a cluster the first key is the query, with the right answer; the others are half as near, with the wrong one. */
static void test_what_is_planted(void **state)
{
    (void)state;
    sp_phase_report report = {.options = {.hard_log2_n = 8, .epsilon = 1e-3, .seed = 1}};
    sp_phase_instance p;
    assert_int_equal(sp_phase_instance_create(&p, &report), SP_OK);
    for (size_t i = 0; i < p.n; i++) {
        double s = 0;
        for (size_t k = 0; k < SP_PHASE_HARD_D; k++) s += (double)(p.q[i * SP_PHASE_HARD_D + k] * p.k[i * SP_PHASE_HARD_D + k]);
        assert_true(s == (i % p.side ? SP_PHASE_HARD_D / 2 : SP_PHASE_HARD_D));
        assert_true(p.v[i] * sp_phase_instance_answer(&p, i) == (i % p.side ? -1 : 1));
    }
    sp_phase_instance_clear(&p);
}

/* ---- refusals ---- */

static void test_what_is_refused(void **state)
{
    (void)state;
    static const struct {
        sp_phase_options options;
        const char *name;
    } cases[] = {{{.d = 65}, "65"},
                 {{.epsilon = 1}, "epsilon"},
                 {{.min_log2_n = 5}, "2^5"},
                 {{.max_log2_n = 21}, "2^21"},
                 {{.min_log2_n = 12, .max_log2_n = 11}, "2^12"},
                 {{.hard_log2_n = 9}, "even"},
                 {{.seconds = -1}, "-1"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sp_phase_report report;
        assert_int_equal(sp_lab_phase(&report, &cases[i].options, NULL), SP_ERR_ARGUMENT);
        assert_non_null(strstr(sp_message(), cases[i].name));
    }
}

static void test_stop(void **state)
{
    (void)state;
    static const volatile int now = 1;
    sp_phase_report report;
    assert_int_equal(sp_lab_phase(&report, NULL, &(sp_hooks){.stop = &now}), SP_ERR_STOPPED);
    assert_int_equal(report.n_sizes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_points),          cmocka_unit_test(test_no_time),         cmocka_unit_test(test_hard_instances),
        cmocka_unit_test(test_what_is_planted), cmocka_unit_test(test_what_is_refused), cmocka_unit_test(test_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
