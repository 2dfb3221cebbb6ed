/* remez.c: best polynomials for exp in relative error, by Remez's exchange, and a bound on their error that holds.
 *
 * In t = s / rho on [-1, 1], E(t) = p(t) e^(-rho t) - 1 has the derivative (p'(t) - rho p(t)) e^(-rho t): its extremes are the two
 * ends and the real roots of a polynomial of degree g, at most g of them. The best p alternates between -E and E at g + 2 points
 * (Chebyshev), which are therefore all of these, and an exchange replaces the whole set by the extremes of the p found for it.
 *
 * That all extremes were met is what makes max |E| over them a certificate: g changes of sign were found of a polynomial of degree
 * g, so there are no others. What rounding can hide is added. Where ranges are so small that errors drown in rounding and changes
 * of sign get lost, the Taylor polynomial and its remainder serve. */
#include "fast/remez.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum {
    MAX_POINTS = SP_MAX_DEGREE + 2,
    MAX_EXCHANGES = 40, /* five or six are usual */
    HALVINGS = 64
};

/* Of degree 16 this is already far beyond what is of use, and powers of e stay finite. */
static const double MAX_RHO = 64;
enum { MAX_SECANTS = 20 };

static double evaluate(const double *a, size_t degree, double t)
{
    double sum = a[degree];
    for (size_t j = degree; j-- > 0;) sum = sum * t + a[j];
    return sum;
}

/* ---- real roots ---- */

/* Where a changes its sign between two points at which the signs differ. */
static double bisect(const double *a, size_t degree, double low, double high)
{
    bool rises = evaluate(a, degree, low) < 0;
    for (int i = 0; i < HALVINGS; i++) {
        double middle = low + (high - low) / 2;
        if ((evaluate(a, degree, middle) < 0) == rises)
            low = middle;
        else
            high = middle;
    }
    return low + (high - low) / 2;
}

/* The points of (-1, 1) at which a polynomial changes its sign, ascending; returns how many, at most its degree. Between two
 * neighbouring sign changes of its derivative it is monotone: so from the highest derivative down. */
static size_t find_roots(double *roots, const double *a, size_t degree)
{
    double derivatives[SP_MAX_DEGREE + 1][SP_MAX_DEGREE + 1];
    memcpy(derivatives[0], a, (degree + 1) * sizeof *a);
    for (size_t k = 1; k <= degree; k++)
        for (size_t j = 0; j + k <= degree; j++) derivatives[k][j] = derivatives[k - 1][j + 1] * (double)(j + 1);
    double parts[MAX_POINTS] = {-1, 1}; /* -1, the derivative's roots, 1 */
    size_t n = 0;
    for (size_t k = degree; k-- > 0;) {
        const double *b = derivatives[k];
        double found[MAX_POINTS];
        size_t n_found = 0;
        for (size_t i = 0; i <= n; i++)
            if ((evaluate(b, degree - k, parts[i]) < 0) != (evaluate(b, degree - k, parts[i + 1]) < 0))
                found[n_found++] = bisect(b, degree - k, parts[i], parts[i + 1]);
        n = n_found;
        memcpy(parts + 1, found, n * sizeof *found);
        parts[n + 1] = 1;
    }
    memcpy(roots, parts + 1, n * sizeof *roots);
    return n;
}

/* ---- the error of a polynomial, in t ---- */

static double error_at(const double *a, size_t degree, double rho, double t)
{
    return evaluate(a, degree, t) * exp(-rho * t) - 1;
}

/* b = a' - rho a: the derivative of E, but for a positive factor. */
static void differentiate_error(double *b, const double *a, size_t degree, double rho)
{
    for (size_t j = 0; j <= degree; j++) b[j] = (j < degree ? (double)(j + 1) * a[j + 1] : 0) - rho * a[j];
}

/* The ends and all extremes between them, ascending; returns how many. */
static size_t find_extremes(double *points, const double *a, size_t degree, double rho)
{
    double b[SP_MAX_DEGREE + 1];
    differentiate_error(b, a, degree, rho);
    size_t n = find_roots(points + 1, b, degree);
    points[0] = -1;
    points[n + 1] = 1;
    return n + 2;
}

static double largest_error(const double *a, size_t degree, double rho, const double *points, size_t n)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++) {
        double error = fabs(error_at(a, degree, rho, points[i]));
        if (!(error <= largest)) largest = error; /* a NaN, too */
    }
    return largest;
}

/* What rounding may hide of max |E|: the errors of evaluating E, and that an extreme lies not quite where b's sign was seen to
 * change: up to the true one |b| is no larger than its own rounding errors, over a length of at most 2. Horner's scheme of degree g
 * is within 2 g u sum |a_j| (Higham, Accuracy and Stability of Numerical Algorithms, 5.1), exp within a few u. */
static double rounding_of_error(const double *a, size_t degree, double rho)
{
    double values = 0, slopes = 0, b[SP_MAX_DEGREE + 1];
    differentiate_error(b, a, degree, rho);
    for (size_t j = 0; j <= degree; j++) {
        values += fabs(a[j]);
        slopes += fabs(b[j]);
    }
    return DBL_EPSILON * (double)(2 * degree + 8) * exp(rho) * (values + 2 * slopes);
}

/* ---- Remez's exchange ---- */

/* Solves m x = y (n, n), m and y being lost; false where m is singular. */
static bool solve(double m[MAX_POINTS][MAX_POINTS], double *y, size_t n)
{
    for (size_t c = 0; c < n; c++) {
        size_t pivot = c;
        for (size_t r = c + 1; r < n; r++)
            if (fabs(m[r][c]) > fabs(m[pivot][c])) pivot = r;
        if (!(fabs(m[pivot][c]) > 0)) return false;
        for (size_t j = 0; j < n; j++) {
            double swapped = m[c][j];
            m[c][j] = m[pivot][j];
            m[pivot][j] = swapped;
        }
        double swapped = y[c];
        y[c] = y[pivot];
        y[pivot] = swapped;
        for (size_t r = c + 1; r < n; r++) {
            double factor = m[r][c] / m[c][c];
            for (size_t j = c; j < n; j++) m[r][j] -= factor * m[c][j];
            y[r] -= factor * y[c];
        }
    }
    for (size_t r = n; r-- > 0;) {
        for (size_t j = r + 1; j < n; j++) y[r] -= m[r][j] * y[j];
        y[r] /= m[r][r];
    }
    return true;
}

/* a, so that E alternates between equal values at the points: p(t_i) e^(-rho t_i) + (-1)^i h = 1. */
static bool level(double *a, size_t degree, double rho, const double *points)
{
    double m[MAX_POINTS][MAX_POINTS], x[MAX_POINTS];
    size_t n = degree + 2;
    for (size_t i = 0; i < n; i++) {
        double power = exp(-rho * points[i]);
        for (size_t j = 0; j <= degree; j++) m[i][j] = power, power *= points[i];
        m[i][degree + 1] = i % 2 ? -1 : 1;
        x[i] = 1;
    }
    if (!solve(m, x, n)) return false;
    memcpy(a, x, (degree + 1) * sizeof *a);
    return true;
}

/* The best polynomial in t, and its largest error as computed; false where an extreme got lost in rounding. */
static bool exchange(double *best, double *eps, size_t degree, double rho)
{
    double points[MAX_POINTS], next[MAX_POINTS], a[SP_MAX_DEGREE + 1], moved = 1;
    *eps = INFINITY;
    for (size_t i = 0; i < degree + 2; i++) points[i] = -cos(3.14159265358979324 * (double)i / (double)(degree + 1));
    for (int step = 0; step < MAX_EXCHANGES && moved > 1e-12; step++) {
        if (!level(a, degree, rho, points)) break;
        if (find_extremes(next, a, degree, rho) != degree + 2) break;
        double largest = largest_error(a, degree, rho, next, degree + 2);
        if (largest < *eps) {
            *eps = largest;
            memcpy(best, a, (degree + 1) * sizeof *best);
        }
        moved = 0;
        for (size_t i = 0; i < degree + 2; i++) moved = fmax(moved, fabs(next[i] - points[i]));
        memcpy(points, next, (degree + 2) * sizeof *points);
    }
    return *eps < INFINITY;
}

/* e^s = 1 + s + ... + s^g / g! + R, |R| <= e^rho rho^(g+1) / (g+1)!, and what is divided by is at least e^-rho. */
static void expand(double *a, double *eps, size_t degree, double rho)
{
    double term = 1;
    for (size_t j = 0; j <= degree; j++) a[j] = term, term *= rho / (double)(j + 1);
    *eps = term * exp(2 * rho);
}

void sp_exp_polynomial_fit(sp_exp_polynomial *out, size_t degree, double rho)
{
    double a[SP_MAX_DEGREE + 1], eps;
    *out = (sp_exp_polynomial){.degree = degree, .rho = rho, .eps = 1};
    if (!(rho >= 0 && rho <= MAX_RHO)) return;
    if (!exchange(a, &eps, degree, rho)) expand(a, &eps, degree, rho);
    eps += rounding_of_error(a, degree, rho);
    if (!(eps < 1)) return;
    out->eps = nextafter(eps * (1 + 4 * DBL_EPSILON), 1);
    double power = 1;
    for (size_t j = 0; j <= degree && power > 0; j++) out->c[j] = a[j] / power, power *= rho;
}

bool sp_exp_polynomial_find(sp_exp_polynomial *out, double rho, double eps, size_t max_degree)
{
    for (size_t degree = 0; degree <= max_degree; degree++) {
        sp_exp_polynomial_fit(out, degree, rho);
        if (out->eps <= eps && out->eps < 1) return true;
    }
    return false;
}

static bool keeps(size_t degree, double rho, double eps)
{
    sp_exp_polynomial p;
    sp_exp_polynomial_fit(&p, degree, rho);
    return p.eps <= eps && p.eps < 1;
}

/* eps grows nearly like rho^(degree + 1): a secant through its logarithm over rho's lands so close that the two sides meet after
 * about ten fits, where halving takes forty. What it leaves is halved. */
double sp_exp_polynomial_range(size_t degree, double eps)
{
    static const double ASIDE = 3e-11; /* in turns, so that both sides come near */
    double low = 0, high = 1, slope = (double)degree + 1, before = 0, error_before = 0;
    if (!(eps > 0)) return 0;
    while (high < MAX_RHO && keeps(degree, high, eps)) low = high, high *= 2;
    double rho = high;
    for (int step = 0; high - low > 1e-10 * high; step++) {
        sp_exp_polynomial p;
        sp_exp_polynomial_fit(&p, degree, rho);
        if (p.eps <= eps && p.eps < 1)
            low = rho;
        else
            high = rho;
        const double at = log(rho), error = log(p.eps / eps);
        if (step > 0 && at != before) slope = (error - error_before) / (at - before);
        before = at, error_before = error;
        rho *= exp(-error / slope) * (step % 2 ? 1 - ASIDE : 1 + ASIDE);
        if (!(rho > low && rho < high) || step >= MAX_SECANTS) rho = low + (high - low) / 2;
    }
    return low;
}

/* ---- what it means for attention ---- */

double sp_weights_distance(double eps)
{
    if (!(eps < 1)) return 1;
    return nextafter(eps / (1 + sqrt((1 - eps) * (1 + eps))) * (1 + 4 * DBL_EPSILON), 1);
}

size_t sp_monomials_count(size_t d, size_t degree)
{
    size_t count = 1;
    for (size_t i = 1; i <= degree; i++) { /* C(d + i, i) = C(d + i - 1, i - 1) (d + i) / i */
        size_t divisor = i, factor = d + i, a = count, b = divisor;
        if (factor < d) return SIZE_MAX;
        while (b) { /* the divisor's part that count has; the rest divides the factor */
            size_t rest = a % b;
            a = b;
            b = rest;
        }
        count /= a;
        factor /= divisor / a;
        if (count > SIZE_MAX / factor) return SIZE_MAX;
        count *= factor;
    }
    return count;
}
