/* write_polynomials.c: prints what remez.py reads: "fit", degree, rho, eps and the coefficients, and "range", degree, eps and rho;
 * doubles as %a, so that no digit is lost. */
#include <stdio.h>

#include "fast/remez.h"

static void print_fit(size_t degree, double rho)
{
    sp_exp_polynomial p;
    sp_exp_polynomial_fit(&p, degree, rho);
    printf("fit %zu %a %a", degree, rho, p.eps);
    for (size_t j = 0; j <= degree; j++) printf(" %a", p.c[j]);
    printf("\n");
}

int main(void)
{
    static const double ranges[] = {1e-9, 1e-4, 0.03, 0.3, 1, 1.15, 2.5, 4, 6, 8}, errors[] = {1e-2, 1e-3, 5e-4, 1e-4, 1e-6};
    for (size_t degree = 0; degree <= SP_MAX_DEGREE; degree++)
        for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) print_fit(degree, ranges[i]);
    for (size_t degree = 1; degree <= 12; degree++)
        for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
            printf("range %zu %a %a\n", degree, errors[i], sp_exp_polynomial_range(degree, errors[i]));
    return 0;
}
