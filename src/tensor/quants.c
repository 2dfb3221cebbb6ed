/* quants.c: rows of quantised tensors as numbers, on vectors of the width that this compilation's flags allow.
 *
 * Two loops, one that stores the numbers of a row and one that multiplies them by x, are inlined around the functions of
 * quant_blocks.h that read each type's blocks. So a product sees the very numbers that expanding gives. */
#include "tensor/quants.h"

#include <assert.h>

#include "tensor/quant_blocks.h"

enum {
    ROWS = 4, /* that are multiplied at a time: sums of fewer rows wait for themselves, those of more do not fit the registers */
    /* How far ahead of a product memory is asked for. Rows side by side are several streams on one page, which the processor's
     * own prefetcher gives up on: Q8_0 from memory ran at a third of its speed without, at half with 4096. */
    AHEAD_BYTES = 16384,
    CACHE_LINE = 64,
    STAGED = 1024 /* numbers of a row that products with a type without loops of its own expand at a time */
};

/* ---- the two loops ---- */

/* Numbers that a loop takes at a time: a block, or a piece where blocks are smaller. */
INLINE size_t step_of(layout type)
{
    return type.block < type.piece ? type.piece : type.block;
}

INLINE void expand(layout type, float *out, const uint8_t *row, size_t n)
{
    const size_t step = step_of(type), step_bytes = step / type.block * type.bytes;
    for (; n >= step; n -= step, row += step_bytes) {
        scales s;
        if (type.open) type.open(&s, row);
        for (size_t piece = 0; piece < step / type.piece; piece++, out += type.piece) {
            vec w[VECTORS];
            type.read(w, &s, row, piece);
            for (size_t i = 0; i < type.piece / LANES; i++) store(out + i * LANES, w[i]);
        }
    }
}

/* The n < SINGLES numbers at the end of a row of a type with blocks of one number, then zeros. */
INLINE void expand_rest(layout type, float out[SINGLES], const uint8_t *row, size_t n)
{
    uint8_t padded[SINGLES * sizeof(float)] = {0};
    memcpy(padded, row, n * type.bytes);
    expand(type, out, padded, SINGLES);
}

INLINE float sum_of(vec v)
{
    typedef float quad __attribute__((vector_size(16)));
    quad part[LANES / 4];
    memcpy(part, &v, sizeof v);
    for (size_t n = LANES / 8; n > 0; n /= 2)
        for (size_t i = 0; i < n; i++) part[i] += part[i + n];
    return (part[0][0] + part[0][1]) + (part[0][2] + part[0][3]);
}

INLINE float dot_rest(layout type, const uint8_t *row, const float *x, size_t n)
{
    float numbers[SINGLES], sum = 0;
    expand_rest(type, numbers, row, n);
    for (size_t i = 0; i < n; i++) sum += numbers[i] * x[i];
    return sum;
}

/* `n_rows` rows (a constant at each call) share the loads of x, and their sums do not wait for each other. Each row is summed in
 * the same order whatever their number: y_i does not depend on the rows beside it. */
INLINE void dots_of_rows(layout type, size_t n_rows, float *y, const uint8_t *row, size_t row_bytes, const float *x, size_t n)
{
    const size_t step = step_of(type), step_bytes = step / type.block * type.bytes;
    vec sum[ROWS] = {{0}};
    for (; n >= step; n -= step, row += step_bytes) {
        scales s[ROWS];
        for (size_t r = 0; r < n_rows; r++) {
            for (size_t i = 0; i < step_bytes; i += CACHE_LINE) __builtin_prefetch(row + r * row_bytes + AHEAD_BYTES + i);
            if (type.open) type.open(&s[r], row + r * row_bytes);
        }
        for (size_t piece = 0; piece < step / type.piece; piece++, x += type.piece)
            for (size_t r = 0; r < n_rows; r++) {
                vec w[VECTORS];
                type.read(w, &s[r], row + r * row_bytes, piece);
                for (size_t i = 0; i < type.piece / LANES; i++) sum[r] += w[i] * load(x + i * LANES);
            }
    }
    for (size_t r = 0; r < n_rows; r++) y[r] = sum_of(sum[r]);
    if (type.block == 1 && n > 0)
        for (size_t r = 0; r < n_rows; r++) y[r] += dot_rest(type, row + r * row_bytes, x, n);
}

INLINE void dots(layout type, float *y, const void *rows, size_t row_bytes, size_t n_rows, const float *x, size_t n)
{
    const uint8_t *row = rows;
    for (; n_rows >= ROWS; n_rows -= ROWS, y += ROWS, row += ROWS * row_bytes) dots_of_rows(type, ROWS, y, row, row_bytes, x, n);
    for (; n_rows >= 1; n_rows -= 1, y += 1, row += row_bytes) dots_of_rows(type, 1, y, row, row_bytes, x, n);
}

/* ---- by type ---- */

INLINE void expand_single(layout type, float *out, const uint8_t *row, size_t n)
{
    const size_t rest = n % SINGLES, whole = n - rest;
    expand(type, out, row, whole);
    if (rest == 0) return;
    float last[SINGLES];
    expand_rest(type, last, row + whole * type.bytes, rest);
    memcpy(out + whole, last, rest * sizeof *out);
}

static void expand_by_ggml(enum ggml_type type, float *out, const void *row, size_t n)
{
    ggml_get_type_traits(type)->to_float(row, out, (int64_t)n);
}

static void dots_by_ggml(enum ggml_type type, float *y, const uint8_t *rows, size_t row_bytes, size_t n_rows, const float *x,
                         size_t n)
{
    const struct ggml_type_traits *traits = ggml_get_type_traits(type);
    const size_t block = (size_t)traits->blck_size;
    for (size_t r = 0; r < n_rows; r++, rows += row_bytes) {
        float numbers[STAGED], sum = 0;
        for (size_t i = 0, count; i < n; i += count) {
            count = n - i < STAGED / block * block ? n - i : STAGED / block * block;
            traits->to_float(rows + i / block * traits->type_size, numbers, (int64_t)count);
            dots(f32, &y[r], numbers, 0, 1, x + i, count);
            sum += y[r];
        }
        y[r] = sum;
    }
}

static void expand_row(const sp_row_reader *reader, float *out, const void *row, size_t n)
{
    switch (reader->type) {
    case GGML_TYPE_F32:
        memcpy(out, row, n * sizeof *out);
        break;
    case GGML_TYPE_F16:
        expand_single(f16, out, row, n);
        break;
    case GGML_TYPE_BF16:
        expand_single(bf16, out, row, n);
        break;
    case GGML_TYPE_Q4_0:
        expand(q4_0, out, row, n);
        break;
    case GGML_TYPE_Q4_1:
        expand(q4_1, out, row, n);
        break;
    case GGML_TYPE_Q5_0:
        expand(q5_0, out, row, n);
        break;
    case GGML_TYPE_Q5_1:
        expand(q5_1, out, row, n);
        break;
    case GGML_TYPE_Q8_0:
        expand(q8_0, out, row, n);
        break;
    case GGML_TYPE_Q4_K:
        expand(q4_k, out, row, n);
        break;
    case GGML_TYPE_Q5_K:
        expand(q5_k, out, row, n);
        break;
    case GGML_TYPE_Q6_K:
        expand(q6_k, out, row, n);
        break;
    default:
        assert(!reader->is_fast);
        expand_by_ggml(reader->type, out, row, n);
    }
}

static void dot_rows(const sp_row_reader *reader, float *y, const void *rows, size_t row_bytes, size_t n_rows, const float *x,
                     size_t n)
{
    switch (reader->type) {
    case GGML_TYPE_F32:
        dots(f32, y, rows, row_bytes, n_rows, x, n);
        break;
    case GGML_TYPE_F16:
        dots(f16, y, rows, row_bytes, n_rows, x, n);
        break;
    case GGML_TYPE_BF16:
        dots(bf16, y, rows, row_bytes, n_rows, x, n);
        break;
    case GGML_TYPE_Q4_0:
        dots(q4_0, y, rows, row_bytes, n_rows, x, n);
        break;
    case GGML_TYPE_Q4_1:
        dots(q4_1, y, rows, row_bytes, n_rows, x, n);
        break;
    case GGML_TYPE_Q5_0:
        dots(q5_0, y, rows, row_bytes, n_rows, x, n);
        break;
    case GGML_TYPE_Q5_1:
        dots(q5_1, y, rows, row_bytes, n_rows, x, n);
        break;
    case GGML_TYPE_Q8_0:
        dots(q8_0, y, rows, row_bytes, n_rows, x, n);
        break;
    case GGML_TYPE_Q4_K:
        dots(q4_k, y, rows, row_bytes, n_rows, x, n);
        break;
    case GGML_TYPE_Q5_K:
        dots(q5_k, y, rows, row_bytes, n_rows, x, n);
        break;
    case GGML_TYPE_Q6_K:
        dots(q6_k, y, rows, row_bytes, n_rows, x, n);
        break;
    default:
        assert(!reader->is_fast);
        dots_by_ggml(reader->type, y, rows, row_bytes, n_rows, x, n);
    }
}

#define OWN(type) [type] = {type, expand_row, dot_rows, true}
#define OTHER(type) [type] = {type, expand_row, dot_rows, false}
#define TABLE_OF_(variant) sp_row_readers_##variant
#define TABLE_OF(variant) TABLE_OF_(variant)

extern const sp_row_reader TABLE_OF(SP_KERNEL_VARIANT)[GGML_TYPE_COUNT];
const sp_row_reader TABLE_OF(SP_KERNEL_VARIANT)[GGML_TYPE_COUNT] = {
    OWN(GGML_TYPE_F32),       OWN(GGML_TYPE_F16),      OWN(GGML_TYPE_BF16),    OWN(GGML_TYPE_Q4_0),      OWN(GGML_TYPE_Q4_1),
    OWN(GGML_TYPE_Q5_0),      OWN(GGML_TYPE_Q5_1),     OWN(GGML_TYPE_Q8_0),    OTHER(GGML_TYPE_Q2_K),    OTHER(GGML_TYPE_Q3_K),
    OWN(GGML_TYPE_Q4_K),      OWN(GGML_TYPE_Q5_K),     OWN(GGML_TYPE_Q6_K),    OTHER(GGML_TYPE_IQ1_S),   OTHER(GGML_TYPE_IQ1_M),
    OTHER(GGML_TYPE_IQ2_XXS), OTHER(GGML_TYPE_IQ2_XS), OTHER(GGML_TYPE_IQ2_S), OTHER(GGML_TYPE_IQ3_XXS), OTHER(GGML_TYPE_IQ3_S),
    OTHER(GGML_TYPE_IQ4_NL),  OTHER(GGML_TYPE_IQ4_XS), OTHER(GGML_TYPE_TQ1_0), OTHER(GGML_TYPE_TQ2_0),   OTHER(GGML_TYPE_MXFP4),
    OTHER(GGML_TYPE_NVFP4),   OTHER(GGML_TYPE_Q1_0),
};
