/* remez.h: the polynomial that attention in almost linear time puts in the place of exp, and what it costs.
 *
 * p(s) = sum_j c_j s^j of degree g is the best for its range: it minimises the largest |p(s) / e^s - 1| over |s| <= rho. The error
 * is relative because a softmax divides by its sum: with |p / e^s - 1| <= eps on every score, the weights that p gives lie within
 * sp_weights_distance(eps) of the softmax's. (q . k)^j expands into the monomials of degree j in the d coordinates, so that p(q .
 * k) is the product of two vectors of sp_monomials_count(d, g) features.
 *
 *     sp_exp_polynomial p;
 *     if (sp_exp_polynomial_find(&p, 1.1, 1e-3, SP_MAX_DEGREE))
 *         features = sp_monomials_count(8, p.degree);                  // degree 4: 495
 */
#ifndef SP_FAST_REMEZ_H
#define SP_FAST_REMEZ_H

#include <stdbool.h>
#include <stddef.h>

/* Beyond, ranges are so wide (rho near 9 at eps 1e-3) that sums in f32, whose terms cancel like e^rho, have no digits left. */
enum { SP_MAX_DEGREE = 16 };

typedef struct sp_exp_polynomial {
    size_t degree;
    double rho;                  /* the range: |s| <= rho */
    double eps;                  /* |p(s) / e^s - 1| <= eps on it, certified: rounding included. Below 1, p is positive */
    double c[SP_MAX_DEGREE + 1]; /* of 1, s, s^2, ...; zeros behind the degree */
} sp_exp_polynomial;

/* The best polynomial of a degree (at most SP_MAX_DEGREE) for a range. Where there is none better than 0 (a range far too wide for
 * the degree, or one that is no number) it is 0, and eps 1. About 0.1 ms at degree 4, 3 ms at degree 16. */
void sp_exp_polynomial_fit(sp_exp_polynomial *out, size_t degree, double rho);

/* The smallest degree, at most max_degree (itself at most SP_MAX_DEGREE), that keeps eps on the range; false, and out that of
 * max_degree, where none does. */
bool sp_exp_polynomial_find(sp_exp_polynomial *out, double rho, double eps, size_t max_degree);

/* The largest range on which the degree keeps eps, to 9 digits and never above; 0 where eps is not positive. */
double sp_exp_polynomial_range(size_t degree, double eps);

/* How far two softmax-like weightings lie apart at most in total variation when their terms differ by factors within 1 +- eps:
 * tanh(artanh(eps) / 2) = eps / (1 + sqrt(1 - eps^2)), about eps / 2. So far, in parts of max v - min v, an output may be off. */
double sp_weights_distance(double eps);

/* C(d + degree, degree): monomials of up to that degree in d variables; SIZE_MAX where the number does not fit. */
size_t sp_monomials_count(size_t d, size_t degree);

#endif
