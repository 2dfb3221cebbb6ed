/* balance.h: a call in coordinates in which scores span a smaller range, or that are fewer.
 *
 * q . (k - c) stays what it is under q -> A q, k - c -> A^-T (k - c), but |q| |k - c| does not: where keys vary in other directions
 * than queries, it shrinks by as much as A can make their second moments alike. And where keys lie in a plane, its coordinates are
 * all that a score depends on. Both are one pair of maps: of_queries (rank, d) and of_keys (rank, d), of_queries^T of_keys being
 * the projection on the plane. Any pair of maps is right, since what it leaves out is measured, key by key; so a sample finds it.
 *
 * Exact in the coordinates that were given: tiles of queries without a polynomial. Tiles with one, and what they add of keys
 * exactly, stand in the new coordinates: all parts of a sum have the same scores. */
#ifndef SP_FAST_BALANCE_H
#define SP_FAST_BALANCE_H

#include "fast/fast.h"

typedef struct sp_balance {
    size_t d, rank;               /* rank 0: none was found that pays */
    double *centre;               /* (d) of keys */
    double *of_queries, *of_keys; /* (d, rank), transposed; rows sp_turn_stride(rank) apart */
    double *back;                 /* (rank, d), rows sp_turn_stride(d) apart: key = centre + back^T turned + a remainder */
    double of_queries_size;       /* Frobenius norm, rounded up */
} sp_balance;

/* From a sample of the call's rows: coordinates in which it is expected to cost less than `limit`, the turning counted in. Looking
 * may cost 2 % of `limit`. Cost: O(d^3), of max(64, 1.5 d) rows of either side. */
sp_status sp_balance_find(sp_balance *out, const sp_fast_call *call, double limit);

double sp_balance_turn_cost(const sp_fast_call *call, size_t rank);

/* The call with its queries and keys turned, rounded once to f32, and measured. Not done where numbers leave f32 or there is no
 * room for them: then `out` is not to be used. */
sp_status sp_balance_turn(sp_fast_call *out, bool *done, const sp_fast_call *call, const sp_balance *balance);

/* ---- what it does to a certificate ---- */

/* What tiles with a polynomial found. Zero-initialise. */
typedef struct sp_turned {
    double off;   /* what a score may be off by, the largest, but for f32's rounding */
    double range; /* of scores with all keys, the largest */
} sp_turned;

/* n queries that a polynomial answers; nothing where the call was not turned. */
void sp_turned_add(sp_turned *turned, const sp_fast_call *call, const size_t *queries, size_t n);

/* By how much weights may be off by f32's rounding of the turned rows, in units of u. */
double sp_turned_rounding_of_weights(const sp_turned *turned, const sp_fast_call *call);

#endif
