/* symmetric.c: Jacobi's rotations, one after the other in a fixed order, so that the same matrix gives the same bytes. */
#include "tensor/symmetric.h"

#include <math.h>
#include <string.h>

enum { MAX_SWEEPS = 50 };
static const double OFF_DIAGONAL = 1e-26; /* of the matrix's energy: what is left when nothing is left to turn */

/* Rows p and q of x (m, m) become c p - s q and s p + c q. */
static void turn_rows(double *x, size_t m, size_t p, size_t q, double c, double s)
{
    for (size_t i = 0; i < m; i++) {
        const double a = x[p * m + i], b = x[q * m + i];
        x[p * m + i] = c * a - s * b;
        x[q * m + i] = s * a + c * b;
    }
}

static void turn_columns(double *x, size_t m, size_t p, size_t q, double c, double s)
{
    for (size_t i = 0; i < m; i++) {
        const double a = x[i * m + p], b = x[i * m + q];
        x[i * m + p] = c * a - s * b;
        x[i * m + q] = s * a + c * b;
    }
}

/* Turns a so that a_pq becomes 0, and the vectors with it. */
static void rotate(double *a, double *vectors, size_t m, size_t p, size_t q)
{
    const double apq = a[p * m + q];
    if (apq == 0) return;
    const double theta = (a[q * m + q] - a[p * m + p]) / (2 * apq);
    const double t = copysign(1, theta) / (fabs(theta) + hypot(theta, 1)), c = 1 / hypot(t, 1), s = t * c;
    turn_columns(a, m, p, q, c, s);
    turn_rows(a, m, p, q, c, s);
    turn_rows(vectors, m, p, q, c, s);
}

static double off_diagonal_share(const double *a, size_t m)
{
    double off = 0, all = 0;
    for (size_t p = 0; p < m; p++)
        for (size_t q = 0; q < m; q++) {
            all += a[p * m + q] * a[p * m + q];
            if (p != q) off += a[p * m + q] * a[p * m + q];
        }
    return all > 0 ? off / all : 0;
}

static void swap_pair(double *a, double *vectors, size_t m, size_t i, size_t j)
{
    const double value = a[i * m + i];
    a[i * m + i] = a[j * m + j];
    a[j * m + j] = value;
    for (size_t k = 0; k < m; k++) {
        const double entry = vectors[i * m + k];
        vectors[i * m + k] = vectors[j * m + k];
        vectors[j * m + k] = entry;
    }
}

/* An eigenvector has two signs; one of them is chosen. */
static void choose_sign(double *vector, size_t m)
{
    size_t largest = 0;
    for (size_t k = 1; k < m; k++)
        if (fabs(vector[k]) > fabs(vector[largest])) largest = k;
    if (vector[largest] < 0)
        for (size_t k = 0; k < m; k++) vector[k] = -vector[k];
}

void sp_symmetric_eigen(double *a, double *vectors, size_t m)
{
    memset(vectors, 0, m * m * sizeof *vectors);
    for (size_t i = 0; i < m; i++) vectors[i * m + i] = 1;
    for (int sweep = 0; sweep < MAX_SWEEPS && off_diagonal_share(a, m) > OFF_DIAGONAL; sweep++)
        for (size_t p = 0; p + 1 < m; p++)
            for (size_t q = p + 1; q < m; q++) rotate(a, vectors, m, p, q);
    for (size_t i = 0; i < m; i++) {
        size_t largest = i;
        for (size_t j = i + 1; j < m; j++)
            if (a[j * m + j] > a[largest * m + largest]) largest = j;
        if (largest != i) swap_pair(a, vectors, m, i, largest);
        choose_sign(vectors + i * m, m);
    }
}
