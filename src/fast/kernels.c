/* kernels.c: moments of keys, polynomials of queries, and exact softmax sums that fit them, on vectors of this rung's width.
 *
 * Features are never stored. On the keys' side monomials are vectors over a block, made depth first from their parents; on the
 * queries' side there are none at all: sum_a m_a S_a is nested, S_0 + q_1 (S_1 + q_1 (S_11 + ...) + q_2 (...)) + q_2 (...) + ...,
 * each node an accumulator for every column. The deepest levels, where nearly all nodes are, stay in registers: two or three of
 * them, and, of the last two variables, all there are. Nesting also keeps chains of additions short: a flat sum of r features would
 * round up to r times. */
#include "fast/kernels.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "tensor/exp.h"
#include "tensor/vec.h"

#define UNROLL _Pragma("GCC unroll 16")

enum {
    BLOCK = SP_TERMS_IN_F32 * LANES,
    STRIDE = BLOCK + SP_KEY_PAD,
    TILE = 2 * LANES,
#if LANES == 16
    MAX_COLUMNS = 13, /* of 32 registers two sets of sums take 26; 65 columns, of heads of 64, are five times 13 */
#else
    MAX_COLUMNS = 6, /* of 16 */
#endif
    MAX_CHILDREN = 3, /* of a monomial at once */
    PENDING = 256     /* vectors whose lanes are still to be summed */
};

typedef double wide __attribute__((vector_size(8 * LANES), aligned(8), may_alias));

/* ---- sums over lanes ---- */

#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* Halves, quarters, ... of two vectors, folded: vectors side by side in ever smaller parts, until each is one lane. */
#if LANES == 16
#define FOLD_8(a, b)                                                                                                               \
    (SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +                                                       \
     SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#define FOLD_4(a, b)                                                                                                               \
    (SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +                                                     \
     SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31))
#define FOLD_2(a, b)                                                                                                               \
    (SHUFFLE(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +                                                     \
     SHUFFLE(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31))
#define FOLD_1(a, b)                                                                                                               \
    (SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +                                                    \
     SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31))
#elif LANES == 8
#define FOLD_4(a, b) (SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15))
#define FOLD_2(a, b) (SHUFFLE(a, b, 0, 1, 4, 5, 8, 9, 12, 13) + SHUFFLE(a, b, 2, 3, 6, 7, 10, 11, 14, 15))
#define FOLD_1(a, b) (SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14) + SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15))
#else
#define FOLD_2(a, b) (SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7))
#define FOLD_1(a, b) (SHUFFLE(a, b, 0, 2, 4, 6) + SHUFFLE(a, b, 1, 3, 5, 7))
#endif

/* Lane i is the sum over the lanes of rows[i]. */
INLINE vec sum_rows(const vec *rows)
{
    vec s[LANES];
    UNROLL for (int i = 0; i < LANES; i++) s[i] = rows[i];
#if LANES == 16
    UNROLL for (int i = 0; i < 8; i++) s[i] = FOLD_8(s[2 * i], s[2 * i + 1]);
#endif
#if LANES >= 8
    UNROLL for (int i = 0; i < 4; i++) s[i] = FOLD_4(s[2 * i], s[2 * i + 1]);
#endif
    UNROLL for (int i = 0; i < 2; i++) s[i] = FOLD_2(s[2 * i], s[2 * i + 1]);
    return FOLD_1(s[0], s[1]);
}

/* ---- keys: moments ---- */

/* One block's way through the tree. Sums over lanes are gathered, since summing sixteen vectors' lanes at once costs a third. */
typedef struct key_walk {
    const float *x, *v;
    float *levels;       /* (degree - 1, d, STRIDE): the monomials of levels 1 .. degree - 1 that the walk stands on */
    size_t n, d, degree; /* keys, their coordinates, the monomials' degree */
    double *moments;     /* of the first pending vector */
    size_t n_pending;
    vec pending[PENDING];
} key_walk;

/* Whole vectors of sums are added to the moments; what is left moves to the front. */
static void flush(key_walk *walk)
{
    size_t i = 0;
    for (; i + LANES <= walk->n_pending; i += LANES, walk->moments += LANES) {
        wide *moments = (wide *)walk->moments;
        *moments += __builtin_convertvector(sum_rows(walk->pending + i), wide);
    }
    walk->n_pending -= i;
    memmove(walk->pending, walk->pending + i, walk->n_pending * sizeof *walk->pending);
}

/* n children of a monomial, its products with n neighbouring variables: their sums over the block with each column. The children
 * are kept where they have children themselves. */
INLINE void add_children(key_walk *walk, size_t columns, size_t n, bool keep, const float *parent, const float *x, float *kept)
{
    vec sum[MAX_CHILDREN][MAX_COLUMNS];
    UNROLL for (size_t l = 0; l < n; l++) UNROLL for (size_t c = 0; c < columns; c++) sum[l][c] = (vec){0};
    const float *v = walk->v;
    for (size_t i = 0; i < walk->n; i += LANES, v += columns * LANES) {
        vec p = load(parent + i), y[MAX_CHILDREN];
        UNROLL for (size_t l = 0; l < n; l++)
        {
            y[l] = p * load(x + l * STRIDE + i);
            if (keep) store(kept + l * STRIDE + i, y[l]);
        }
        UNROLL for (size_t c = 0; c < columns; c++)
        {
            vec value = load(v + c * LANES);
            UNROLL for (size_t l = 0; l < n; l++) sum[l][c] += y[l] * value;
        }
    }
    if (walk->n_pending + n * columns > PENDING) flush(walk);
    UNROLL for (size_t l = 0; l < n; l++) UNROLL for (size_t c = 0; c < columns; c++) walk->pending[walk->n_pending++] = sum[l][c];
}

/* How many children at once leave room for their sums in the registers. */
#if LANES == 16
#define CHILDREN_AT_ONCE(columns) ((columns) <= 9 ? 3 : 2)
#else
#define CHILDREN_AT_ONCE(columns) ((columns) <= 3 ? 3 : (columns) <= 5 ? 2 : 1)
#endif

/* All children of a node of some level, whose monomial ends in the variable `last`. */
INLINE void add_all_children(key_walk *walk, size_t columns, bool keep, size_t last, const float *parent, float *kept)
{
    const size_t most = CHILDREN_AT_ONCE(columns);
    for (size_t i = last, left; (left = walk->d - i) > 0;) {
        const float *x = walk->x + i * STRIDE;
        float *to = kept + i * STRIDE;
        if (most == 3 && left >= 3 && left != 4)
            add_children(walk, columns, 3, keep, parent, x, to), i += 3;
        else if (most >= 2 && left >= 2)
            add_children(walk, columns, 2, keep, parent, x, to), i += 2;
        else
            add_children(walk, columns, 1, keep, parent, x, to), i += 1;
    }
}

/* ---- queries: a nested Horner scheme ---- */

typedef struct query_walk {
    const float *q;
    size_t d, degree;
} query_walk;

INLINE vec query(const query_walk *walk, size_t variable, size_t vector)
{
    return load(walk->q + variable * TILE + vector * LANES);
}

/* sum += what the leaf children of a node add, whose sums stand at s: the innermost loop of all. */
INLINE void add_leaves(vec *sum, const query_walk *walk, size_t columns, size_t vectors, size_t last, const float *s)
{
    for (size_t i = last; i < walk->d; i++, s += columns) {
        vec q[2];
        UNROLL for (size_t u = 0; u < vectors; u++) q[u] = query(walk, i, u);
        UNROLL for (size_t c = 0; c < columns; c++)
        {
            vec b = broadcast(s[c]);
            UNROLL for (size_t u = 0; u < vectors; u++) sum[c * vectors + u] += q[u] * b;
        }
    }
}

/* sums = the numbers of one node's state, for all queries. */
INLINE void set_sums(vec *sums, size_t columns, size_t vectors, const float *s)
{
    UNROLL for (size_t c = 0; c < columns; c++)
    {
        vec b = broadcast(s[c]);
        UNROLL for (size_t u = 0; u < vectors; u++) sums[c * vectors + u] = b;
    }
}

/* sum += q_i x */
INLINE void add_product(vec *sum, const query_walk *walk, size_t columns, size_t vectors, size_t i, const vec *x)
{
    UNROLL for (size_t u = 0; u < vectors; u++)
    {
        vec q = query(walk, i, u);
        UNROLL for (size_t c = 0; c < columns; c++) sum[c * vectors + u] += q * x[c * vectors + u];
    }
}

/* The same for children that have leaves. Returns where the next subtree's state begins. */
INLINE const float *add_parents(vec *sum, const query_walk *walk, size_t columns, size_t vectors, size_t last, const float *s)
{
    const float *leaves = s + (walk->d - last) * columns;
    for (size_t i = last; i < walk->d; i++, s += columns) {
        vec child[MAX_COLUMNS * 2];
        set_sums(child, columns, vectors, s);
        add_leaves(child, walk, columns, vectors, i, leaves);
        leaves += (walk->d - i) * columns;
        add_product(sum, walk, columns, vectors, i, child);
    }
    return leaves;
}

/* And for children whose children have leaves, where three sets of sums fit. */
INLINE const float *add_grandparents(vec *sum, const query_walk *walk, size_t columns, size_t vectors, size_t last, const float *s)
{
    const float *below = s + (walk->d - last) * columns;
    for (size_t i = last; i < walk->d; i++, s += columns) {
        vec child[MAX_COLUMNS * 2];
        set_sums(child, columns, vectors, s);
        below = add_parents(child, walk, columns, vectors, i, below);
        add_product(sum, walk, columns, vectors, i, child);
    }
    return below;
}

/* sum += q (first + q (s_0 + q (s_1 + ...))), q the last variable: a monomial's powers of it, n of them behind the first. */
INLINE void add_chain(vec *sum, const query_walk *walk, size_t columns, size_t vectors, const float *first, size_t n,
                      const float *s)
{
    const float *from = n ? s + (n - 1) * columns : first;
    vec q[2], x[MAX_COLUMNS * 2];
    UNROLL for (size_t u = 0; u < vectors; u++) q[u] = query(walk, walk->d - 1, u);
    set_sums(x, columns, vectors, from);
    while (n-- > 0) {
        from = n ? from - columns : first;
        UNROLL for (size_t c = 0; c < columns; c++)
        {
            vec b = broadcast(from[c]);
            UNROLL for (size_t u = 0; u < vectors; u++) x[c * vectors + u] = x[c * vectors + u] * q[u] + b;
        }
    }
    add_product(sum, walk, columns, vectors, walk->d - 1, x);
}

/* The same for a node whose children are its products with the last two variables, with `levels` below it: of few variables and
 * many levels nearly all nodes stand in such triangles. Pairs of children come first, those of the powers of the last variable but
 * one; then the chains of each pair's second, from the deepest pair up. Returns where the next subtree's state begins. */
INLINE const float *add_triangle(vec *sum, const query_walk *walk, size_t columns, size_t vectors, size_t levels, const float *s)
{
    const float *pair = s + 2 * (levels - 1) * columns, *chain = pair + 2 * columns;
    vec q[2], power[MAX_COLUMNS * 2];
    UNROLL for (size_t u = 0; u < vectors; u++) q[u] = query(walk, walk->d - 2, u);
    set_sums(power, columns, vectors, pair);
    for (size_t n = 0; n + 1 < levels; n++) {
        const float *second = pair + columns;
        pair -= 2 * columns;
        UNROLL for (size_t c = 0; c < columns; c++)
        {
            vec b = broadcast(pair[c]);
            UNROLL for (size_t u = 0; u < vectors; u++) power[c * vectors + u] = power[c * vectors + u] * q[u] + b;
        }
        add_chain(power, walk, columns, vectors, second, n, chain);
        chain += n * columns;
    }
    add_product(sum, walk, columns, vectors, walk->d - 2, power);
    add_chain(sum, walk, columns, vectors, pair + columns, levels - 1, chain);
    return chain + (levels - 1) * columns;
}

/* Vectors of queries at once: two where their sums fit, since each number of the state is then read half as often. */
#if LANES == 16
#define VECTORS_AT_ONCE(columns) ((columns) <= 6 ? 2 : 1)
#else
#define VECTORS_AT_ONCE(columns) ((columns) <= 3 ? 2 : 1)
#endif

/* ---- one body for each number of columns ---- */

/* Recursion cannot be inlined, so each number of columns has walks of its own. */
#define DEFINE_WALKS(columns)                                                                                                      \
    static void walk_keys_##columns(key_walk *walk, size_t level, size_t last, const float *monomial)                              \
    {                                                                                                                              \
        if (level + 1 == walk->degree) {                                                                                           \
            add_all_children(walk, columns, false, last, monomial, walk->levels);                                                  \
            return;                                                                                                                \
        }                                                                                                                          \
        float *children = walk->levels + level * walk->d * STRIDE;                                                                 \
        add_all_children(walk, columns, true, last, monomial, children);                                                           \
        for (size_t i = last; i < walk->d; i++) walk_keys_##columns(walk, level + 1, i, children + i * STRIDE);                    \
    }                                                                                                                              \
                                                                                                                                   \
    static const float *walk_queries_##columns(vec *out, const query_walk *walk, size_t level, size_t last, const float *own,      \
                                               const float *s);                                                                    \
                                                                                                                                   \
    INLINE const float *add_below_##columns(vec *sum, const query_walk *walk, size_t level, size_t last, const float *s)           \
    {                                                                                                                              \
        enum { VECTORS = VECTORS_AT_ONCE(columns) };                                                                               \
        const size_t n = walk->d - last, levels = walk->degree - level;                                                            \
        if (levels == 1) {                                                                                                         \
            add_leaves(sum, walk, columns, VECTORS, last, s);                                                                      \
            return s + n * (columns);                                                                                              \
        }                                                                                                                          \
        if (levels == 2) return add_parents(sum, walk, columns, VECTORS, last, s);                                                 \
        if (levels == 3 && (columns)*VECTORS <= (LANES == 16 ? 9 : 4))                                                             \
            return add_grandparents(sum, walk, columns, VECTORS, last, s);                                                         \
        if (n == 2) return add_triangle(sum, walk, columns, VECTORS, levels, s);                                                   \
        if (n == 1) {                                                                                                              \
            add_chain(sum, walk, columns, VECTORS, s, levels - 1, s + (columns));                                                  \
            return s + levels * (columns);                                                                                         \
        }                                                                                                                          \
        vec kept[(columns)*VECTORS]; /* where calls find it; `sum` itself stays in registers */                                    \
        memcpy(kept, sum, sizeof kept);                                                                                            \
        const float *own = s;                                                                                                      \
        s += n * (columns);                                                                                                        \
        for (size_t i = last; i < walk->d; i++, own += (columns)) s = walk_queries_##columns(kept, walk, level + 1, i, own, s);    \
        memcpy(sum, kept, sizeof kept);                                                                                            \
        return s;                                                                                                                  \
    }                                                                                                                              \
                                                                                                                                   \
    static const float *walk_queries_##columns(vec *out, const query_walk *walk, size_t level, size_t last, const float *own,      \
                                               const float *s)                                                                     \
    {                                                                                                                              \
        enum { VECTORS = VECTORS_AT_ONCE(columns), SUMS = (columns)*VECTORS };                                                     \
        vec sum[SUMS];                                                                                                             \
        UNROLL for (size_t c = 0; c < SUMS; c++) sum[c] = broadcast(own[c / VECTORS]);                                             \
        s = add_below_##columns(sum, walk, level, last, s);                                                                        \
        UNROLL for (size_t c = 0; c < SUMS; c++) out[c] += query(walk, last, c % VECTORS) * sum[c];                                \
        return s;                                                                                                                  \
    }                                                                                                                              \
                                                                                                                                   \
    static void add_keys_##columns(key_walk *walk, const float *ones)                                                              \
    {                                                                                                                              \
        add_children(walk, columns, 1, false, ones, ones, NULL);                                                                   \
        if (walk->degree > 0) walk_keys_##columns(walk, 0, 0, ones);                                                               \
    }                                                                                                                              \
                                                                                                                                   \
    static void evaluate_##columns(float *out, query_walk walk, const float *state)                                                \
    {                                                                                                                              \
        enum { VECTORS = VECTORS_AT_ONCE(columns), SUMS = (columns)*VECTORS };                                                     \
        for (size_t first = 0; first < TILE; first += VECTORS * LANES, walk.q += VECTORS * LANES) {                                \
            vec sum[SUMS];                                                                                                         \
            for (size_t c = 0; c < SUMS; c++) sum[c] = broadcast(state[c / VECTORS]);                                              \
            if (walk.degree > 0) add_below_##columns(sum, &walk, 0, 0, state + (columns));                                         \
            for (size_t c = 0; c < SUMS; c++) {                                                                                    \
                float *to = out + c / VECTORS * TILE + first + c % VECTORS * LANES;                                                \
                store(to, load(to) + sum[c]);                                                                                      \
            }                                                                                                                      \
        }                                                                                                                          \
    }                                                                                                                              \
                                                                                                                                   \
    static void add_weighted_##columns(float *out, const float *weights, const float *v, size_t v_stride, size_t n)                \
    {                                                                                                                              \
        add_weighted(out, weights, v, v_stride, n, columns);                                                                       \
    }

/* out (columns, TILE) += weights (n, TILE) times v, of which the first columns are meant. */
INLINE void add_weighted(float *out, const float *weights, const float *v, size_t v_stride, size_t n, size_t columns)
{
    vec sum[MAX_COLUMNS][2];
    UNROLL for (size_t c = 0; c < columns; c++) UNROLL for (size_t u = 0; u < 2; u++) sum[c][u] = load(out + c * TILE + u * LANES);
    for (size_t j = 0; j < n; j++, v += v_stride, weights += TILE) {
        vec w[2] = {load(weights), load(weights + LANES)};
        UNROLL for (size_t c = 0; c < columns; c++)
        {
            vec b = broadcast(v[c]);
            UNROLL for (size_t u = 0; u < 2; u++) sum[c][u] += w[u] * b;
        }
    }
    UNROLL for (size_t c = 0; c < columns; c++) UNROLL for (size_t u = 0; u < 2; u++) store(out + c * TILE + u * LANES, sum[c][u]);
}

#if LANES == 16
#define FOR_EACH_NUMBER(what)                                                                                                      \
    what(1) what(2) what(3) what(4) what(5) what(6) what(7) what(8) what(9) what(10) what(11) what(12) what(13)
#else
#define FOR_EACH_NUMBER(what) what(1) what(2) what(3) what(4) what(5) what(6)
#endif
FOR_EACH_NUMBER(DEFINE_WALKS)

static void add_keys(double *moments, const float *x, const float *v, size_t n, size_t d, size_t degree, size_t columns,
                     float *scratch)
{
    key_walk walk = {
        .x = x, .v = v, .levels = scratch + STRIDE, .n = n, .d = d, .degree = degree, .moments = moments, .n_pending = 0};
    float *ones = scratch;
    for (size_t i = 0; i < n; i++) ones[i] = 1;
#define CASE(n)                                                                                                                    \
    case n:                                                                                                                        \
        add_keys_##n(&walk, ones);                                                                                                 \
        break;
    switch (columns) {
        FOR_EACH_NUMBER(CASE)
    }
#undef CASE
    flush(&walk);
    if (walk.n_pending == 0) return;
    while (walk.n_pending < LANES) walk.pending[walk.n_pending++] = (vec){0};
    flush(&walk);
}

static void evaluate(float *out, const float *q, const float *state, size_t d, size_t degree, size_t columns)
{
#define CASE(n)                                                                                                                    \
    case n:                                                                                                                        \
        evaluate_##n(out, (query_walk){q, d, degree}, state);                                                                      \
        break;
    switch (columns) {
        FOR_EACH_NUMBER(CASE)
    }
#undef CASE
}

/* ---- exact sums ---- */

/* 2^t; from 2^-125 down everything is that. */
INLINE vec exp2_of(vec t)
{
    t = max_of(broadcast(-125.0f), t);
#if LANES == 16
    vec n = (vec)_mm512_roundscale_ps((__m512)t, 0), p = exp2_fraction(t - n);
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    vec shifted = t + ROUND_SHIFT;
    return exp2_parts(shifted, t - (shifted - ROUND_SHIFT));
#endif
}

/* q . k of SP_EXACT_KEYS keys with the tile. */
INLINE void score_keys(vec s[SP_EXACT_KEYS][2], const float *q, const float *k, size_t d)
{
    UNROLL for (int j = 0; j < SP_EXACT_KEYS; j++) s[j][0] = s[j][1] = (vec){0};
    for (size_t i = 0; i < d; i++) {
        vec x[2] = {load(q + i * TILE), load(q + i * TILE + LANES)};
        UNROLL for (int j = 0; j < SP_EXACT_KEYS; j++)
        {
            vec b = broadcast(k[(size_t)j * d + i]);
            s[j][0] += x[0] * b;
            s[j][1] += x[1] * b;
        }
    }
}

/* Which of the lanes see a key: lane + diagonal >= key. */
INLINE ivec lanes_seeing(ptrdiff_t diagonal, size_t key, int first_lane)
{
    ivec lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = i + first_lane;
    ptrdiff_t first = (ptrdiff_t)key - diagonal; /* the first lane that does */
    return lanes >= (int32_t)(first < 0 ? 0 : first > TILE ? TILE : first);
}

/* Weights 2^(q . k) of some keys. */
INLINE void weigh_bounded(float *weights, const float *q, const float *k, size_t n, size_t d, size_t key, ptrdiff_t diagonal,
                          bool is_diagonal)
{
    for (size_t j = 0; j < n; j += SP_EXACT_KEYS, k += SP_EXACT_KEYS * d) {
        vec s[SP_EXACT_KEYS][2];
        score_keys(s, q, k, d);
        UNROLL for (int t = 0; t < SP_EXACT_KEYS; t++) UNROLL for (int u = 0; u < 2; u++)
        {
            vec e = exp2_of(s[t][u]);
            if (is_diagonal) e = (vec)(lanes_seeing(diagonal, key + j + (size_t)t, u * LANES) & (ivec)e);
            store(weights + (j + (size_t)t) * TILE + u * LANES, e);
        }
    }
}

/* The same relative to the largest score so far; `out` (rows, TILE), summed with earlier weights, follows it. Keys that a lane does
 * not see score below everything. */
static void weigh_online(float *weights, float *max, float *out, size_t rows, const float *q, const float *k, size_t n, size_t d,
                         size_t key, ptrdiff_t diagonal)
{
    vec most[2] = {load(max), load(max + LANES)}, before[2] = {most[0], most[1]};
    for (size_t j = 0; j < n; j += SP_EXACT_KEYS, k += SP_EXACT_KEYS * d) {
        vec s[SP_EXACT_KEYS][2];
        score_keys(s, q, k, d);
        for (size_t t = 0; t < SP_EXACT_KEYS; t++)
            for (int u = 0; u < 2; u++) {
                vec seen = choose(lanes_seeing(diagonal, key + j + t, u * LANES), s[t][u], broadcast(-INFINITY));
                most[u] = max_of(seen, most[u]);
                store(weights + (j + t) * TILE + u * LANES, seen);
            }
    }
    for (int u = 0; u < 2; u++) {
        store(max + u * LANES, most[u]);
        vec factor = exp2_of(before[u] - most[u]);
        factor = (vec)((ivec)factor & (before[u] > -INFINITY)); /* nothing was summed yet, and inf - inf is no number */
        for (size_t r = 0; r < rows; r++) store(out + r * TILE + u * LANES, load(out + r * TILE + u * LANES) * factor);
        for (size_t j = 0; j < n; j++) {
            float *w = weights + j * TILE + u * LANES;
            vec s = load(w);
            store(w, (vec)((ivec)exp2_of(s - most[u]) & (s > -INFINITY)));
        }
    }
}

static void exact(float *out, float *max, const float *q, const float *k, const float *v, size_t n, size_t d, size_t groups,
                  size_t columns, ptrdiff_t diagonal, float *weights)
{
    for (size_t first = 0, some; first < n; first += some) {
        some = n - first < SP_EXACT_BLOCK ? n - first : SP_EXACT_BLOCK;
        const ptrdiff_t seen = diagonal < (ptrdiff_t)n ? diagonal + 1 - (ptrdiff_t)first : (ptrdiff_t)some; /* by every lane */
        if (seen >= SP_EXACT_KEYS && (size_t)seen < some) some = (size_t)seen / SP_EXACT_KEYS * SP_EXACT_KEYS;
        bool is_diagonal = (ptrdiff_t)(first + some) - 1 > diagonal;
        const float *keys = k + first * d;
        if (max)
            weigh_online(weights, max, out, groups * columns, q, keys, some, d, first, diagonal);
        else if (is_diagonal)
            weigh_bounded(weights, q, keys, some, d, first, diagonal, true);
        else
            weigh_bounded(weights, q, keys, some, d, first, diagonal, false);
        for (size_t g = 0; g < groups; g++) {
            float *to = out + g * columns * TILE;
            const float *values = v + first * groups * columns + g * columns;
#define CASE(n)                                                                                                                    \
    case n:                                                                                                                        \
        add_weighted_##n(to, weights, values, groups *columns, some);                                                              \
        break;
            switch (columns) {
                FOR_EACH_NUMBER(CASE)
            }
#undef CASE
        }
    }
}

#define NAME_OF_(variant) #variant
#define NAME_OF(variant) NAME_OF_(variant)
#define TABLE_OF_(prefix, variant) prefix##variant
#define TABLE_OF(prefix, variant) TABLE_OF_(prefix, variant)

extern const sp_row_kernels TABLE_OF(sp_row_kernels_, SP_KERNEL_VARIANT);
extern const sp_fast_kernels TABLE_OF(sp_fast_kernels_, SP_KERNEL_VARIANT);
const sp_fast_kernels TABLE_OF(sp_fast_kernels_, SP_KERNEL_VARIANT) = {
    .name = NAME_OF(SP_KERNEL_VARIANT),
    .lanes = LANES,
    .block_keys = BLOCK,
    .tile_queries = TILE,
    .max_columns = MAX_COLUMNS,
    .rows = &TABLE_OF(sp_row_kernels_, SP_KERNEL_VARIANT),
    .add_keys = add_keys,
    .evaluate = evaluate,
    .exact = exact,
};
