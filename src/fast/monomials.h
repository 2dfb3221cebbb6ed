/* monomials.h: what each monomial of the tree (fast/kernels.h) is multiplied by. */
#ifndef SP_FAST_MONOMIALS_H
#define SP_FAST_MONOMIALS_H

#include <stddef.h>
#include <stdint.h>

/* For the monomials of degree <= `degree` in d variables, in the kernels' order: (q . k)^j = sum over those with level j of
 * multinomial * m(q) * m(k). levels and multinomials (sp_monomials_count(d, degree)) written; levels: degrees. */
void sp_monomials_list(uint8_t *levels, double *multinomials, size_t d, size_t degree);

#endif
