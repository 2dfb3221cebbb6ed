/* panels.c: the register blocks of large products, on vectors as wide as this compilation's flags allow (vec.h).
 *
 * A block of ROWS x 2 vectors of sums fills the register file: 12 of 32 registers' worth with AVX-512, 6 with 16 registers. */
#include "tensor/panels.h"

#include <string.h>

#include "tensor/vec.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { ROWS = 12 };
#else
enum { ROWS = 6 };
#endif
enum { WIDTH = 2 * LANES };

typedef uint32_t words __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t word __attribute__((may_alias)); /* a number, or a pair of bf16 */

/* ---- packing ---- */

/* Low or high halves of two vectors, lane by lane in turn. */
#if defined(__AVX512F__)
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif defined(__AVX__)
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif

/* Zipping vector i with vector i + LANES / 2 turns the index (row, lane) by one bit; log2(LANES) times exchanges the two. */
INLINE void transpose(vec v[LANES])
{
    for (size_t turn = 1; turn < LANES; turn *= 2) {
        vec zipped[LANES];
        for (size_t i = 0; i < LANES / 2; i++) {
            zipped[2 * i] = ZIP_LOW(v[i], v[i + LANES / 2]);
            zipped[2 * i + 1] = ZIP_HIGH(v[i], v[i + LANES / 2]);
        }
        memcpy(v, zipped, sizeof zipped);
    }
}

static void pack_transposed(float *panel, const float *rows, size_t ld, size_t k)
{
    for (size_t l = 0; l < k; l += LANES)
        for (size_t j = 0; j < WIDTH; j += LANES) {
            vec v[LANES];
            for (size_t i = 0; i < LANES; i++) v[i] = load(rows + (j + i) * ld + l);
            transpose(v);
            for (size_t i = 0; i < LANES; i++) store(panel + (l + i) * WIDTH + j, v[i]);
        }
}

/* ---- products ---- */

/* What a 32-bit word of A and of a panel holds. */
enum { NUMBERS, PAIRS };

INLINE vec add_numbers(vec sum, words x, words column)
{
    return sum + (vec)x * (vec)column;
}

/* A bf16 is the upper half of an f32: its products with another are exact. */
INLINE vec add_pairs(vec sum, words x, words column)
{
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)column);
#else
    const uint32_t upper = 0xffff0000u;
    return sum + (vec)(x << 16) * (vec)(column << 16) + (vec)(x & upper) * (vec)(column & upper);
#endif
}

/* `rows` rows of C times one panel; `rows` and `kind` are constants at each call. Rows of A are reached three from a pointer, as
 * addressing modes give for nothing. */
INLINE void block(int kind, size_t rows, float *c, size_t ldc, const word *a, size_t lda, const word *panel, size_t k,
                  bool accumulate)
{
    vec sum[ROWS][2];
    const word *three[(ROWS + 2) / 3];
    for (size_t i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (vec){0};
    for (size_t i = 0; i < rows; i += 3) three[i / 3] = a + i * lda;
    for (size_t l = 0; l < k; l++, panel += WIDTH) {
        words left = *(const words *)panel, right = *(const words *)(panel + LANES);
        for (size_t i = 0; i < rows; i++) {
            words x = (words){0} + three[i / 3][i % 3 * lda + l];
            sum[i][0] = kind == PAIRS ? add_pairs(sum[i][0], x, left) : add_numbers(sum[i][0], x, left);
            sum[i][1] = kind == PAIRS ? add_pairs(sum[i][1], x, right) : add_numbers(sum[i][1], x, right);
        }
    }
    for (size_t i = 0; i < rows; i++, c += ldc) {
        store(c, accumulate ? load(c) + sum[i][0] : sum[i][0]);
        store(c + LANES, accumulate ? load(c + LANES) + sum[i][1] : sum[i][1]);
    }
}

/* m rows, 1 <= m <= ROWS. */
INLINE void block_of_rows(int kind, size_t m, float *c, size_t ldc, const word *a, size_t lda, const word *panel, size_t k,
                          bool accumulate)
{
    switch (m) {
#if LANES == 16
    case 12:
        block(kind, 12, c, ldc, a, lda, panel, k, accumulate);
        break;
    case 11:
        block(kind, 11, c, ldc, a, lda, panel, k, accumulate);
        break;
    case 10:
        block(kind, 10, c, ldc, a, lda, panel, k, accumulate);
        break;
    case 9:
        block(kind, 9, c, ldc, a, lda, panel, k, accumulate);
        break;
    case 8:
        block(kind, 8, c, ldc, a, lda, panel, k, accumulate);
        break;
    case 7:
        block(kind, 7, c, ldc, a, lda, panel, k, accumulate);
        break;
#endif
    case 6:
        block(kind, 6, c, ldc, a, lda, panel, k, accumulate);
        break;
    case 5:
        block(kind, 5, c, ldc, a, lda, panel, k, accumulate);
        break;
    case 4:
        block(kind, 4, c, ldc, a, lda, panel, k, accumulate);
        break;
    case 3:
        block(kind, 3, c, ldc, a, lda, panel, k, accumulate);
        break;
    case 2:
        block(kind, 2, c, ldc, a, lda, panel, k, accumulate);
        break;
    default:
        block(kind, 1, c, ldc, a, lda, panel, k, accumulate);
    }
}

/* A panel of which C has only n < WIDTH columns: through a tile of its own. */
INLINE void block_of_columns(int kind, size_t m, size_t n, float *c, size_t ldc, const word *a, size_t lda, const word *panel,
                             size_t k, bool accumulate)
{
    float tile[ROWS * WIDTH];
    block_of_rows(kind, m, tile, WIDTH, a, lda, panel, k, false);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) c[i * ldc + j] = (accumulate ? c[i * ldc + j] : 0) + tile[i * WIDTH + j];
}

/* Rows of A stay in the first-level cache while the panels, which fill the second, pass by. */
INLINE void multiply_words(int kind, float *c, size_t ldc, const word *a, size_t lda, const word *panels, size_t panel_words,
                           size_t m, size_t n, size_t k, bool accumulate)
{
    for (size_t i = 0; i < m; i += ROWS) {
        size_t rows = m - i < ROWS ? m - i : ROWS;
        const word *panel = panels;
        for (size_t j = 0; j < n; j += WIDTH, panel += panel_words) {
            if (n - j < WIDTH)
                block_of_columns(kind, rows, n - j, c + i * ldc + j, ldc, a + i * lda, lda, panel, k, accumulate);
            else
                block_of_rows(kind, rows, c + i * ldc + j, ldc, a + i * lda, lda, panel, k, accumulate);
        }
    }
}

static void multiply(float *c, size_t ldc, const float *a, size_t lda, const float *panels, size_t panel_floats, size_t m, size_t n,
                     size_t k, bool accumulate)
{
    multiply_words(NUMBERS, c, ldc, (const word *)a, lda, (const word *)panels, panel_floats, m, n, k, accumulate);
}

static void multiply_bf16(float *c, size_t ldc, const uint32_t *a, size_t lda, const uint32_t *panels, size_t panel_words, size_t m,
                          size_t n, size_t k_pairs, bool accumulate)
{
    multiply_words(PAIRS, c, ldc, a, lda, panels, panel_words, m, n, k_pairs, accumulate);
}

/* ---- bf16 ---- */

/* Each word rounded to its upper half, ties to even; NaN stays NaN, whatever its lower half. */
INLINE words round_words(words x)
{
    words is_nan = (words)((x & 0x7fffffffu) > 0x7f800000u);
    return (x + 0x7fffu + (x >> 16 & 1)) | (is_nan & 0x7fc00000u);
}

static void to_bf16(uint16_t *out, const float *x, size_t n)
{
    typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
    for (size_t i = 0; i < n; i += LANES) {
        size_t part = n - i < LANES ? n - i : LANES;
        words w = {0};
        if (part == LANES)
            w = (words)load(x + i);
        else
            memcpy(&w, x + i, part * sizeof *x);
        halves h = __builtin_convertvector(round_words(w) >> 16, halves);
        if (part == LANES)
            memcpy(out + i, &h, sizeof h);
        else
            memcpy(out + i, &h, part * sizeof *out);
    }
}

static void to_pairs(uint32_t *out, const float *low, const float *high, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        words pair = round_words((words)load(low + i)) >> 16 | (round_words((words)load(high + i)) & 0xffff0000u);
        memcpy(out + i, &pair, sizeof pair);
    }
}

#define NAME_OF_(variant) #variant
#define NAME_OF(variant) NAME_OF_(variant)
#define TABLE_OF_(variant) sp_panels_##variant
#define TABLE_OF(variant) TABLE_OF_(variant)

extern const sp_panels TABLE_OF(SP_KERNEL_VARIANT);
const sp_panels TABLE_OF(SP_KERNEL_VARIANT) = {
    .name = NAME_OF(SP_KERNEL_VARIANT),
    .width = WIDTH,
    .lanes = LANES,
#if defined(__AVX512BF16__)
    .has_bf16 = true,
#endif
    .pack_transposed = pack_transposed,
    .multiply = multiply,
    .multiply_bf16 = multiply_bf16,
    .to_bf16 = to_bf16,
    .to_pairs = to_pairs,
};
