/* rows.c: rows.h, on vectors of this rung's width.
 * Invariant: nothing behind a row's d numbers is read, nor behind the last row. */
#include "fast/rows.h"

#include <math.h>

#include "tensor/exp.h"
#include "tensor/vec.h"

#define UNROLL _Pragma("GCC unroll 16")

enum { QUAD = 4, ROWS_AT_ONCE = 512 };

typedef int32_t quad_mask __attribute__((vector_size(16)));
typedef double wide_quad __attribute__((vector_size(32)));
typedef float quad __attribute__((vector_size(16)));
typedef float unaligned_quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef double wide __attribute__((vector_size(8 * LANES), aligned(8), may_alias));

/* Not functions, since vectors that wide are no values that every rung could return. */
#define WIDEN(x) __builtin_convertvector(x, wide)
#define NARROW(x) __builtin_convertvector(x, vec)

/* Ones in the first n lanes, to be anded. */
INLINE ivec first_lanes(size_t n)
{
    ivec lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = i;
    return lanes < (int32_t)(n < LANES ? n : LANES);
}

/* ---- rows to lanes ---- */

/* Pairs of lanes i, j of a and b, in each quarter of four lanes. */
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define TWO_OF_EACH(o, i, j) (o) + (i), (o) + (i) + LANES, (o) + (j), (o) + (j) + LANES
#define TWO_IN_A_ROW(o, i, j) (o) + (i), (o) + (j), (o) + (i) + LANES, (o) + (j) + LANES
#if LANES == 16
#define IN_QUADS(what, i, j) what(0, i, j), what(4, i, j), what(8, i, j), what(12, i, j)
#elif LANES == 8
#define IN_QUADS(what, i, j) what(0, i, j), what(4, i, j)
#else
#define IN_QUADS(what, i, j) what(0, i, j)
#endif

/* Squares of four by four turned about their diagonals, side by side. */
INLINE void turn(vec x[QUAD])
{
    const vec a = SHUFFLE(x[0], x[1], IN_QUADS(TWO_OF_EACH, 0, 1)), b = SHUFFLE(x[2], x[3], IN_QUADS(TWO_OF_EACH, 0, 1));
    const vec c = SHUFFLE(x[0], x[1], IN_QUADS(TWO_OF_EACH, 2, 3)), d = SHUFFLE(x[2], x[3], IN_QUADS(TWO_OF_EACH, 2, 3));
    x[0] = SHUFFLE(a, b, IN_QUADS(TWO_IN_A_ROW, 0, 1));
    x[1] = SHUFFLE(a, b, IN_QUADS(TWO_IN_A_ROW, 2, 3));
    x[2] = SHUFFLE(c, d, IN_QUADS(TWO_IN_A_ROW, 0, 1));
    x[3] = SHUFFLE(c, d, IN_QUADS(TWO_IN_A_ROW, 2, 3));
}

INLINE quad max_of_quads(quad a, quad b)
{
#if defined(__AVX__)
    return (quad)_mm_max_ps((__m128)a, (__m128)b);
#else
    return (quad)(((a > b) & (quad_mask)a) | (~(a > b) & (quad_mask)b));
#endif
}

INLINE quad load_quad(const float *p)
{
    return *(const unaligned_quad *)p;
}

/* Four numbers of the rows r, r + 4, ... side by side. */
INLINE vec load_quads(const float *const *rows, size_t first)
{
#define LOAD_QUAD(r) load_quad(rows[r] + first)
#if LANES == 16
    const quad a = LOAD_QUAD(0), b = LOAD_QUAD(4), c = LOAD_QUAD(8), d = LOAD_QUAD(12);
    return SHUFFLE(SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7), SHUFFLE(c, d, 0, 1, 2, 3, 4, 5, 6, 7), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
                   11, 12, 13, 14, 15);
#elif LANES == 8
    const quad a = LOAD_QUAD(0), b = LOAD_QUAD(4);
    return SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
#else
    return LOAD_QUAD(0);
#endif
}

/* x[i] = coordinate first + i of the rows, which are lanes; zeros from d on. */
INLINE void load_columns(vec x[QUAD], const float *const rows[LANES], size_t first, size_t d)
{
    if (d - first >= QUAD) {
        UNROLL for (size_t r = 0; r < QUAD; r++) x[r] = load_quads(rows + r, first);
        turn(x);
        return;
    }
    UNROLL for (size_t i = 0; i < QUAD; i++)
    {
        float column[LANES] = {0};
        for (size_t j = 0; j < LANES && first + i < d; j++) column[j] = rows[j][first + i];
        x[i] = load(column);
    }
}

/* Where the next rows stand, the last one again where there are too few. Returns which lanes are rows of their own. */
INLINE ivec list_rows(const float *out[LANES], const float *rows, size_t ld, size_t n)
{
    UNROLL for (size_t j = 0; j < LANES; j++) out[j] = rows + (j < n ? j : n - 1) * ld;
    return first_lanes(n);
}

INLINE ivec list_some(const float *out[LANES], const float *rows, size_t ld, const size_t *list, size_t n)
{
    for (size_t j = 0; j < LANES; j++) out[j] = rows + list[j < n ? j : n - 1] * ld;
    return first_lanes(n);
}

/* ---- measuring ---- */

/* Sums in f64, the largest numbers, and the largest of their negatives. */
typedef struct quad_stats {
    wide_quad sum;
    quad above, below;
} quad_stats;

INLINE void measure_quad(quad_stats *s, quad x)
{
    s->sum += __builtin_convertvector(x, wide_quad);
    s->above = max_of_quads(x, s->above), s->below = max_of_quads(-x, s->below);
}

static void measure(double *sum, float *least, float *most, const float *rows, size_t ld, size_t n, size_t d)
{
    for (size_t first = 0; first < d; first += QUAD) {
        quad_stats s = {{0}, (quad){0} - INFINITY, (quad){0} - INFINITY};
        for (size_t j = 0; j < n; j++) {
            quad x = {0};
            if (d - first >= QUAD)
                x = load_quad(rows + j * ld + first);
            else
                memcpy(&x, rows + j * ld + first, (d - first) * sizeof *rows);
            measure_quad(&s, x);
        }
        for (size_t i = 0; i < QUAD && first + i < d; i++)
            sum[first + i] = s.sum[i], least[first + i] = -s.below[i], most[first + i] = s.above[i];
    }
}

static void square(double *squares, const float *rows, size_t ld, size_t n, const float *centre, size_t d)
{
    for (size_t j = 0; j < n; j += LANES) {
        const float *at[LANES];
        const ivec mask = list_rows(at, rows + j * ld, ld, n - j);
        wide sum = {0};
        for (size_t first = 0; first < d; first += QUAD) {
            vec x[QUAD];
            load_columns(x, at, first, d);
            UNROLL for (size_t i = 0; i < QUAD; i++)
            {
                const wide far = WIDEN(x[i]) - (first + i < d ? (double)centre[first + i] : 0);
                sum += far * far;
            }
        }
        if (mask[LANES - 1])
            *(wide *)(squares + j) = sum;
        else
            memcpy(squares + j, &sum, (n - j) * sizeof *squares);
    }
}

/* ---- packing ---- */

/* A factor in two, since a power of two that f64 holds need not be one of f32: x * half is exact but where it vanishes. */
typedef struct two_factors {
    float half, other;
} two_factors;

INLINE two_factors split(double factor)
{
    const double half = ldexp(1, ilogb(factor) / 2);
    return (two_factors){(float)half, (float)(factor / half)};
}

static void pack(float *out, size_t step, size_t stride, const float *rows, size_t ld, const size_t *list, size_t n, size_t d,
                 const float *centre, double factor)
{
    const two_factors f = split(factor);
    for (size_t j = 0; j < n; j += LANES, out += step) {
        const float *at[LANES];
        const ivec mask = list ? list_some(at, rows, ld, list + j, n - j) : list_rows(at, rows + j * ld, ld, n - j);
        for (size_t first = 0; first < d; first += QUAD) {
            vec x[QUAD];
            load_columns(x, at, first, d);
            for (size_t i = 0; i < QUAD && first + i < d; i++) {
                const vec shrunk = (x[i] * f.half - centre[first + i] * f.half) * f.other;
                store(out + (first + i) * stride, (vec)(mask & (ivec)shrunk));
            }
        }
    }
}

static void shrink(float *out, size_t ldo, const float *rows, size_t ld, const size_t *list, size_t n, size_t d,
                   const float *centre, double factor)
{
    const two_factors f = split(factor);
    for (size_t j = 0; j < n; j++, out += ldo) {
        const float *row = rows + (list ? list[j] : j) * ld;
        size_t i = 0;
        for (; i + QUAD <= d; i += QUAD)
            *(unaligned_quad *)(out + i) = (load_quad(row + i) * f.half - load_quad(centre + i) * f.half) * f.other;
        for (; i < d; i++) out[i] = (row[i] * f.half - centre[i] * f.half) * f.other;
    }
}

static void gather(float *tile, const float *rows, size_t ld, const size_t *list, size_t n, size_t d, double factor)
{
    for (size_t u = 0; u < 2; u++) {
        const float *at[LANES];
        for (size_t j = 0; j < LANES; j++) at[j] = rows + list[u * LANES + j < n ? u * LANES + j : n - 1] * ld;
        for (size_t first = 0; first < d; first += QUAD) {
            vec x[QUAD];
            load_columns(x, at, first, d);
            for (size_t i = 0; i < QUAD && first + i < d; i++)
                store(tile + ((first + i) * 2 + u) * LANES, NARROW(WIDEN(x[i]) * factor));
        }
    }
}

/* ---- and back ---- */

/* The other way: lanes to rows, n of them. */
INLINE void store_columns(float *const rows[LANES], vec x[QUAD], size_t first, size_t d, size_t n)
{
    if (d - first >= QUAD) {
        turn(x);
        UNROLL for (size_t j = 0; j < LANES; j++) if (j < n)
            memcpy(rows[j] + first, (const float *)&x[j % QUAD] + j / QUAD * QUAD, sizeof(quad));
        return;
    }
    for (size_t i = 0; first + i < d; i++)
        for (size_t j = 0; j < n; j++) rows[j][first + i] = x[i][j];
}

static double scatter(float *out, size_t ld, const size_t *list, size_t n, const float *sums, size_t d, const float *middle,
                      double factor)
{
    double least = INFINITY;
    for (size_t at = 0; at < n; at += LANES, sums += LANES) {
        const size_t some = n - at < LANES ? n - at : LANES;
        const vec normaliser = load(sums + d * 2 * LANES);
        const wide scale = 1 / (WIDEN(normaliser) * factor);
        float *rows[LANES];
        for (size_t j = 0; j < some; j++) {
            rows[j] = out + list[at + j] * ld;
            if (!((double)normaliser[j] >= least)) least = (double)normaliser[j]; /* a NaN, too */
        }
        for (size_t first = 0; first < d; first += QUAD) {
            vec x[QUAD] = {{0}};
            for (size_t i = 0; i < QUAD && first + i < d; i++)
                x[i] = NARROW((double)middle[first + i] + WIDEN(load(sums + (first + i) * 2 * LANES)) * scale);
            store_columns(rows, x, first, d, some);
        }
    }
    return least;
}

#define TABLE_OF_(variant) sp_row_kernels_##variant
#define TABLE_OF(variant) TABLE_OF_(variant)

extern const sp_row_kernels TABLE_OF(SP_KERNEL_VARIANT);
const sp_row_kernels TABLE_OF(SP_KERNEL_VARIANT) = {
    .measure = measure, .square = square, .pack = pack, .shrink = shrink, .gather = gather, .scatter = scatter};
