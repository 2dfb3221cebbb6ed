/* symmetric.h: eigenvectors of small symmetric matrices: moments of heads. */
#ifndef SP_TENSOR_SYMMETRIC_H
#define SP_TENSOR_SYMMETRIC_H

#include <stddef.h>

/* a (m, m), symmetric, is used up: its diagonal becomes the eigenvalues, descending. vectors (m, m) written: row i is the
 * eigenvector of the i-th, of length 1, its entry of largest amount positive. Jacobi's rotations (Golub and Van Loan, Matrix
 * Computations, 8.5); O(m^3) a sweep, of which there are a few. Cannot fail. */
void sp_symmetric_eigen(double *a, double *vectors, size_t m);

#endif
