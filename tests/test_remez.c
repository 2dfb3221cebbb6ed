/* test_remez.c: best polynomials for exp: their certified errors against dense sampling, ranges by degree, alternation, counts.
 * Against mpmath: tests/oracle/remez.py. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "fast/remez.h"

static double error_at(const sp_exp_polynomial *p, double s)
{
    double sum = 0;
    for (size_t j = p->degree + 1; j-- > 0;) sum = sum * s + p->c[j];
    return sum * exp(-s) - 1;
}

/* The certificate holds at every sample, and is not loose: within a thousandth of what is met, but for rounding. The error
 * alternates between its largest values at degree + 2 points, which no other polynomial of the degree could undercut (Chebyshev).
 */
static void errors_alternate_below_the_certificate(void **state)
{
    enum { SAMPLES = 20000 };
    (void)state;
    static const double ranges[] = {0.05, 0.3, 1, 2.5, 5, 9};
    for (size_t degree = 0; degree <= SP_MAX_DEGREE; degree++)
        for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++) {
            sp_exp_polynomial p;
            sp_exp_polynomial_fit(&p, degree, ranges[r]);
            if (p.eps >= 1) continue;
            double largest = 0, rounding = 1e-12 * exp(2 * ranges[r]);
            size_t alternations = 0;
            bool was_above = false;
            for (int i = 0; i <= SAMPLES; i++) {
                double error = error_at(&p, ranges[r] * (2.0 * i / SAMPLES - 1));
                assert_true(fabs(error) <= p.eps);
                largest = fmax(largest, fabs(error));
                if (fabs(error) < 0.999 * p.eps || (alternations > 0 && was_above == (error > 0))) continue;
                was_above = error > 0;
                alternations++;
            }
            assert_true(p.eps <= 1.001 * largest + rounding);
            if (p.eps > 1e3 * rounding) assert_int_equal(alternations, degree + 2);
        }
}

/* Largest ranges by degree, to the digits that docs/fast-attention.md prints. */
static void ranges_by_degree(void **state)
{
    (void)state;
    static const struct {
        size_t degree;
        double eps, rho, digits;
    } rows[] = {
        {1, 1e-3, .063, 5e-4},   {2, 1e-3, .289, 5e-4},  {3, 1e-3, .665, 5e-4},  {4, 1e-3, 1.150, 5e-4}, {5, 1e-3, 1.712, 5e-4},
        {6, 1e-3, 2.332, 5e-4},  {7, 1e-3, 2.994, 5e-4}, {8, 1e-3, 3.689, 5e-4}, {9, 1e-3, 4.411, 5e-4}, {10, 1e-3, 5.156, 5e-4},
        {12, 1e-3, 6.70, 5e-3},  {1, 5e-4, .045, 5e-4},  {2, 5e-4, .229, 5e-4},  {3, 5e-4, .558, 5e-4},  {4, 5e-4, .999, 5e-4},
        {5, 5e-4, 1.521, 5e-4},  {6, 5e-4, 2.103, 5e-4}, {7, 5e-4, 2.732, 5e-4}, {8, 5e-4, 3.398, 5e-4}, {9, 5e-4, 4.092, 5e-4},
        {10, 5e-4, 4.811, 5e-4}, {12, 5e-4, 6.31, 5e-3},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double rho = sp_exp_polynomial_range(rows[i].degree, rows[i].eps);
        if (!(fabs(rho - rows[i].rho) <= rows[i].digits))
            fail_msg("degree %zu, eps %g: range %.6f, not %.3f", rows[i].degree, rows[i].eps, rho, rows[i].rho);
    }
    assert_true(fabs(sp_exp_polynomial_range(0, 0.5) - atanh(0.5)) < 1e-9); /* a constant: 1 / cosh rho, tanh rho off */
    assert_true(sp_exp_polynomial_range(3, 0) == 0 && sp_exp_polynomial_range(3, -1) == 0 && sp_exp_polynomial_range(3, NAN) == 0);
}

/* The range of a degree is where the next one begins. */
static void smallest_degrees(void **state)
{
    (void)state;
    sp_exp_polynomial p;
    for (size_t degree = 1; degree <= 12; degree++) {
        double rho = sp_exp_polynomial_range(degree, 1e-3);
        assert_true(sp_exp_polynomial_find(&p, rho, 1e-3, SP_MAX_DEGREE));
        assert_int_equal(p.degree, degree);
        assert_true(p.rho == rho && p.eps <= 1e-3 && p.eps > 0.999e-3);
        assert_true(sp_exp_polynomial_find(&p, rho * (1 + 1e-6), 1e-3, SP_MAX_DEGREE));
        assert_int_equal(p.degree, degree + 1);
        assert_false(sp_exp_polynomial_find(&p, rho * (1 + 1e-6), 1e-3, degree));
        assert_int_equal(p.degree, degree);
        assert_true(p.eps > 1e-3);
    }
}

/* From no range at all to ranges that nothing serves. */
static void ends_of_the_scale(void **state)
{
    (void)state;
    sp_exp_polynomial p;
    for (size_t degree = 0; degree <= SP_MAX_DEGREE; degree++) {
        sp_exp_polynomial_fit(&p, degree, 0);
        assert_true(p.c[0] == 1 && p.eps < 1e-13);
        for (double rho = 1e-300; rho < 1e-3; rho *= 17) {
            sp_exp_polynomial_fit(&p, degree, rho);
            assert_true(p.eps < (degree ? 1e-6 : 1.01 * rho) + 1e-13);
            for (int i = -4; i <= 4; i++) assert_true(fabs(error_at(&p, rho * i / 4)) <= p.eps);
        }
        static const double hopeless[] = {45, 1e3, INFINITY, NAN, -1};
        for (size_t i = 0; i < sizeof hopeless / sizeof *hopeless; i++) {
            assert_false(sp_exp_polynomial_find(&p, hopeless[i], 1e-3, SP_MAX_DEGREE));
            assert_true(p.eps > 1e-3 && p.eps <= 1);
        }
    }
}

static void distances(void **state)
{
    (void)state;
    for (double eps = 1e-8; eps < 1; eps *= 3) {
        double want = tanh(atanh(eps) / 2);
        assert_true(fabs(sp_weights_distance(eps) / want - 1) < 1e-8);
        assert_true(sp_weights_distance(eps) >= eps / 2);
    }
    assert_true(sp_weights_distance(1) == 1 && sp_weights_distance(NAN) == 1);
}

static void counts(void **state)
{
    (void)state;
    static const struct {
        size_t d, degree, count;
    } rows[] = {{8, 4, 495},
                {16, 3, 969},
                {16, 4, 4845},
                {64, 2, 2145},
                {4, 6, 210},
                {0, 5, 1},
                {5, 0, 1},
                {64, 8, 11969016345u},
                {64, 16, 26958221130508525u},
                {256, 16, SIZE_MAX},
                {SIZE_MAX, 2, SIZE_MAX},
                {SIZE_MAX, 1, SIZE_MAX}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(sp_monomials_count(rows[i].d, rows[i].degree), rows[i].count);
    for (size_t d = 1; d < 20; d++) /* Pascal's rule */
        for (size_t g = 1; g <= SP_MAX_DEGREE; g++)
            assert_int_equal(sp_monomials_count(d, g), sp_monomials_count(d - 1, g) + sp_monomials_count(d, g - 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_alternate_below_the_certificate),
        cmocka_unit_test(ranges_by_degree),
        cmocka_unit_test(smallest_degrees),
        cmocka_unit_test(ends_of_the_scale),
        cmocka_unit_test(distances),
        cmocka_unit_test(counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
