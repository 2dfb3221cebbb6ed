/* test_linear.c: products with stored weights against plain loops in double: every rung's panels, tensor types, shapes around each
 * block, numbers of threads, f32 and bf16. */
#include <float.h>
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "tensor/linear.h"
#include "tensor/panels.h"

static void fill(float *x, size_t n, uint64_t seed)
{
    sp_rng rng = sp_rng_seed(seed, n);
    for (size_t i = 0; i < n; i++) x[i] = (float)sp_rng_normal(&rng);
}

static float *filled(size_t n, uint64_t seed)
{
    float *x = malloc((n + 1) * sizeof *x); /* at least one, so that it is not NULL */
    assert_non_null(x);
    fill(x, n, seed);
    return x;
}

/* ---- panels ---- */

static float from_bf16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* C (m, n) or C += in f64, A and B^T as given; bound: a rounding for each term. */
static void check_product(const float *c, const float *before, size_t ldc, const float *a, const float *bt, size_t m, size_t n,
                          size_t k)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double want = before ? (double)before[i * ldc + j] : 0, magnitude = fabs(want);
            for (size_t l = 0; l < k; l++) {
                want += (double)a[i * k + l] * (double)bt[j * k + l];
                magnitude += fabs((double)a[i * k + l] * (double)bt[j * k + l]);
            }
            double error = fabs((double)c[i * ldc + j] - want), bound = (double)(k + 1) * FLT_EPSILON * magnitude;
            if (!(error <= bound)) fail_msg("(%zu, %zu) of %zu x %zu x %zu: off by %g, bound %g", i, j, m, n, k, error, bound);
        }
}

/* Panels of B^T (n, k), packed as products read them; rows are padded to whole panels and k to whole vectors. */
static float *packed(const sp_panels *panels, const float *bt, size_t n, size_t k, size_t *panel_floats)
{
    size_t width = panels->width, ld = (k + 15) / 16 * 16, n_panels = (n + width - 1) / width;
    float *rows = calloc(width * ld, sizeof *rows), *out = aligned_alloc(64, n_panels * ld * width * sizeof *out);
    assert_true(rows && out);
    *panel_floats = ld * width;
    for (size_t p = 0; p < n_panels; p++) {
        memset(rows, 0, width * ld * sizeof *rows);
        for (size_t j = 0; j < width && p * width + j < n; j++) memcpy(rows + j * ld, bt + (p * width + j) * k, k * sizeof *rows);
        panels->pack_transposed(out + p * *panel_floats, rows, ld, k);
    }
    free(rows);
    return out;
}

static void check_panels(const sp_panels *panels, size_t m, size_t n, size_t k, bool accumulate)
{
    size_t panel_floats, ldc = n + 3;
    float *a = filled(m * k, 1), *bt = filled(n * k, 2), *c = filled(m * ldc, 3), *before = filled(m * ldc, 3);
    float *b = packed(panels, bt, n, k, &panel_floats);
    panels->multiply(c, ldc, a, k, b, panel_floats, m, n, k, accumulate);
    check_product(c, accumulate ? before : NULL, ldc, a, bt, m, n, k);
    for (size_t i = 0; i < m; i++) assert_memory_equal(c + i * ldc + n, before + i * ldc + n, 3 * sizeof *c);
    free(a);
    free(bt);
    free(b);
    free(c);
    free(before);
}

/* Rounds to bf16 and back, so that plain loops see the numbers that the product sees; a becomes pairs too. */
static uint16_t *rounded(const sp_panels *panels, float *x, size_t n)
{
    uint16_t *halves = malloc(n * sizeof *halves);
    assert_non_null(halves);
    panels->to_bf16(halves, x, n);
    for (size_t i = 0; i < n; i++) x[i] = from_bf16(halves[i]);
    return halves;
}

static void check_panels_bf16(const sp_panels *panels, size_t m, size_t n, size_t k, bool accumulate)
{
    size_t panel_words, ldc = n + 3, width = panels->width;
    float *a = filled(m * k, 1), *bt = filled(n * k, 2), *c = filled(m * ldc, 3), *before = filled(m * ldc, 3);
    uint16_t *a_halves = rounded(panels, a, m * k), *b_halves = rounded(panels, bt, n * k);
    float *words = malloc(n * k / 2 * sizeof *words);
    assert_non_null(words);
    memcpy(words, b_halves, n * k * sizeof *b_halves);
    float *b = packed(panels, words, n, k / 2, &panel_words);
    panels->multiply_bf16(c, ldc, (const uint32_t *)(void *)a_halves, k / 2, (const uint32_t *)(void *)b, panel_words, m, n, k / 2,
                          accumulate);
    check_product(c, accumulate ? before : NULL, ldc, a, bt, m, n, k);
    assert_true(width <= 32 && 32 % width == 0);
    free(a);
    free(bt);
    free(b);
    free(c);
    free(before);
    free(a_halves);
    free(b_halves);
    free(words);
}

static void panels_match(void **state)
{
    (void)state;
    static const size_t rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 23, 25}, columns[] = {1, 8, 15, 16, 31, 32, 33, 65};
    static const size_t terms[] = {1, 2, 15, 16, 17, 64};
    const sp_panels *rungs[SP_MAX_PANELS];
    size_t n_rungs = sp_panels_list(rungs);
    for (size_t v = 0; v < n_rungs; v++)
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
            for (size_t j = 0; j < sizeof columns / sizeof *columns; j++)
                for (size_t l = 0; l < sizeof terms / sizeof *terms; l++)
                    for (int accumulate = 0; accumulate < 2; accumulate++) {
                        check_panels(rungs[v], rows[i], columns[j], terms[l], accumulate);
                        check_panels_bf16(rungs[v], rows[i], columns[j], 2 * terms[l], accumulate);
                    }
}

/* To the nearest, ties to even, and NaN and infinity stay what they are. */
static void bf16_is_rounded(void **state)
{
    (void)state;
    static const struct {
        uint32_t bits;
        uint16_t want;
    } cases[] = {{0x3f800000, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82},
                 {0x3f817fff, 0x3f81}, {0xbf808001, 0xbf81}, {0x7f7fffff, 0x7f80}, {0x7f800000, 0x7f80},
                 {0xff800000, 0xff80}, {0x00000000, 0x0000}, {0x80000000, 0x8000}};
    enum { N = sizeof cases / sizeof *cases };
    const sp_panels *rungs[SP_MAX_PANELS];
    size_t n_rungs = sp_panels_list(rungs);
    float x[32] = {0};
    for (size_t i = 0; i < N; i++) memcpy(x + i, &cases[i].bits, sizeof *x);
    x[N] = NAN;
    for (size_t v = 0; v < n_rungs; v++) {
        uint16_t halves[32];
        uint32_t pairs[32];
        rungs[v]->to_bf16(halves, x, N + 1); /* not whole vectors */
        rungs[v]->to_pairs(pairs, x, x + 16, 16);
        for (size_t i = 0; i < N; i++) {
            assert_int_equal(halves[i], cases[i].want);
            assert_int_equal(pairs[i], cases[i].want);
        }
        assert_true(isnan(from_bf16(halves[N])));
    }
}

/* ---- weights ---- */

/* Random numbers in the tensor type's own format, and what they then are as f32. */
static sp_weight_part make_part(float *values, enum ggml_type type, size_t n_rows, size_t n_in, uint64_t seed)
{
    size_t row_bytes = ggml_row_size(type, (int64_t)n_in);
    float *numbers = filled(n_rows * n_in, seed);
    char *rows = aligned_alloc(64, (n_rows * row_bytes + 63) / 64 * 64);
    assert_non_null(rows);
    if (type == GGML_TYPE_F32)
        memcpy(rows, numbers, n_rows * row_bytes);
    else
        assert_int_equal(ggml_quantize_chunk(type, numbers, rows, 0, (int64_t)n_rows, (int64_t)n_in, NULL), n_rows * row_bytes);
    for (size_t r = 0; r < n_rows; r++) {
        if (type == GGML_TYPE_F32)
            memcpy(values + r * n_in, numbers + r * n_in, n_in * sizeof *values);
        else
            ggml_get_type_traits(type)->to_float(rows + r * row_bytes, values + r * n_in, (int64_t)n_in);
    }
    free(numbers);
    return (sp_weight_part){sp_row_reader_get(type), rows, row_bytes, n_rows};
}

static sp_weight make_weight(float *values, const enum ggml_type *types, const size_t *n_rows, size_t n_parts, size_t n_in)
{
    sp_weight w = {.n_in = n_in, .n_parts = n_parts};
    for (size_t i = 0; i < n_parts; values += n_rows[i++] * n_in) w.parts[i] = make_part(values, types[i], n_rows[i], n_in, 40 + i);
    return w;
}

static void free_weight(sp_weight *w)
{
    for (size_t i = 0; i < w->n_parts; i++) free((void *)(uintptr_t)w->parts[i].rows);
}

static float *transposed(const float *x, size_t n_rows, size_t n_columns)
{
    float *out = malloc(n_rows * n_columns * sizeof *out);
    assert_non_null(out);
    for (size_t r = 0; r < n_rows; r++)
        for (size_t c = 0; c < n_columns; c++) out[c * n_rows + r] = x[r * n_columns + c];
    return out;
}

static sp_status multiply(float *out, const float *in, const sp_weight *w, size_t n, bool backward, bool accumulate,
                          sp_compute compute, int n_threads, sp_arena *arena)
{
    size_t n_out = sp_weight_n_out(w);
    omp_set_num_threads(n_threads);
    return backward ? sp_linear_backward(out, w->n_in, in, n_out, w, n, accumulate, compute, arena)
                    : sp_linear(out, n_out, in, w->n_in, w, n, accumulate, compute, arena);
}

/* n rows forward or backward: right in f32, near in bf16, the same bytes with 1, 2 and 3 threads. */
static void check_linear(const sp_weight *w, const float *values, size_t n, bool backward, bool accumulate, sp_arena *arena)
{
    size_t n_out = sp_weight_n_out(w), n_from = backward ? n_out : w->n_in, n_to = backward ? w->n_in : n_out;
    float *in = filled(n * n_from, 5), *out = filled(n * n_to, 6), *before = filled(n * n_to, 6), *again = filled(n * n_to, 6);
    float *bt = backward ? transposed(values, n_out, w->n_in) : NULL;
    assert_int_equal(multiply(out, in, w, n, backward, accumulate, SP_COMPUTE_F32, 1, arena), SP_OK);
    check_product(out, accumulate ? before : NULL, n_to, in, backward ? bt : values, n, n_to, n_from);
    for (int n_threads = 2; n_threads <= 3; n_threads++) {
        fill(again, n * n_to, 6);
        assert_int_equal(multiply(again, in, w, n, backward, accumulate, SP_COMPUTE_F32, n_threads, arena), SP_OK);
        assert_memory_equal(again, out, n * n_to * sizeof *out);
    }
    fill(again, n * n_to, 6);
    assert_int_equal(multiply(again, in, w, n, backward, accumulate, SP_COMPUTE_BF16, 2, arena), SP_OK);
    double error = 0, norm = 0;
    for (size_t i = 0; i < n * n_to; i++) {
        error += pow((double)again[i] - (double)out[i], 2);
        norm += pow((double)out[i], 2);
    }
    assert_true(error <= norm * pow(0x1p-7, 2)); /* each factor is off by at most 2^-9 of itself */
    free(in);
    free(out);
    free(before);
    free(again);
    free(bt);
}

static void check_weight(const enum ggml_type *types, const size_t *n_rows, size_t n_parts, size_t n_in)
{
    static const size_t rows[] = {0, 1, 2, 3, 12, 70};
    size_t n_out = 0;
    for (size_t i = 0; i < n_parts; i++) n_out += n_rows[i];
    float *values = malloc(n_out * n_in * sizeof *values);
    sp_arena *arena;
    assert_non_null(values);
    assert_int_equal(sp_arena_create(&arena), SP_OK);
    sp_weight w = make_weight(values, types, n_rows, n_parts, n_in);
    assert_int_equal(sp_weight_n_out(&w), n_out);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int variant = 0; variant < 4; variant++) check_linear(&w, values, rows[i], variant & 1, variant & 2, arena);
    free_weight(&w);
    free(values);
    sp_arena_free(arena);
}

static void weights_match(void **state)
{
    (void)state;
    check_weight((enum ggml_type[]){GGML_TYPE_F32}, (size_t[]){7}, 1, 5);
    check_weight((enum ggml_type[]){GGML_TYPE_F32}, (size_t[]){130}, 1, 33);
    check_weight((enum ggml_type[]){GGML_TYPE_F32}, (size_t[]){41}, 1, 1281); /* several steps, of an odd number of terms */
    check_weight((enum ggml_type[]){GGML_TYPE_F32}, (size_t[]){1281}, 1, 41);
    check_weight((enum ggml_type[]){GGML_TYPE_F16}, (size_t[]){33}, 1, 64);
    check_weight((enum ggml_type[]){GGML_TYPE_Q8_0}, (size_t[]){100}, 1, 96);
    check_weight((enum ggml_type[]){GGML_TYPE_Q4_1, GGML_TYPE_Q4_1, GGML_TYPE_Q8_0}, (size_t[]){40, 24, 33}, 3, 160);
    check_weight((enum ggml_type[]){GGML_TYPE_Q4_K, GGML_TYPE_Q6_K}, (size_t[]){50, 14}, 2, 512);
    check_weight((enum ggml_type[]){GGML_TYPE_Q6_K}, (size_t[]){40}, 1, 1792); /* several steps of the sum, forward */
    check_weight((enum ggml_type[]){GGML_TYPE_Q4_1}, (size_t[]){1700}, 1, 64); /* and backward */
}

static void parts_can_be_selected(void **state)
{
    (void)state;
    float values[9 * 32];
    sp_weight w = make_weight(values, (enum ggml_type[]){GGML_TYPE_F32, GGML_TYPE_F32, GGML_TYPE_F32}, (size_t[]){2, 3, 4}, 3, 32);
    sp_weight last = sp_weight_select(&w, 1, 2);
    assert_int_equal(sp_weight_n_out(&last), 7);
    assert_ptr_equal(last.parts[0].rows, w.parts[1].rows);
    assert_int_equal(last.n_in, 32);
    free_weight(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(panels_match),
        cmocka_unit_test(bf16_is_rounded),
        cmocka_unit_test(weights_match),
        cmocka_unit_test(parts_can_be_selected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
