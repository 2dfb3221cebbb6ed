/* monomials.c: the tree of monomials, walked once. */
#include "fast/monomials.h"

typedef struct monomial_walk {
    uint8_t *levels;
    double *multinomials;
    size_t d, degree;
} monomial_walk;

/* The children of a node: its multinomial j! / prod n_i!, and how often its last variable occurs. A child has (j + 1) / n times
 * that, n being how often its own last variable occurs, which stands in one run. */
static void list_children(monomial_walk *walk, size_t level, size_t last, size_t run, double multinomial)
{
    if (level == walk->degree) return;
    const double *children = walk->multinomials;
    for (size_t i = last; i < walk->d; i++) {
        size_t occurs = i == last ? run + 1 : 1;
        *walk->levels++ = (uint8_t)(level + 1);
        *walk->multinomials++ = multinomial * (double)(level + 1) / (double)occurs;
    }
    for (size_t i = last; i < walk->d; i++) list_children(walk, level + 1, i, i == last ? run + 1 : 1, children[i - last]);
}

void sp_monomials_list(uint8_t *levels, double *multinomials, size_t d, size_t degree)
{
    monomial_walk walk = {levels + 1, multinomials + 1, d, degree};
    levels[0] = 0;
    multinomials[0] = 1;
    list_children(&walk, 0, 0, 0, 1);
}
