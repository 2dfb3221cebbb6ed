/* test_quants.c: rows of every tensor type on every rung of the kernel ladder: expanding against ggml's to_float, to the bit;
 * products against sums in double. Rows lie in allocations of their exact size, so that AddressSanitizer sees a read past them. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "tensor/quants.h"

static const sp_kernels *rungs[3];
static size_t n_rungs;

typedef struct rows {
    enum ggml_type type;
    size_t n_rows, n, row_bytes; /* one byte more than the numbers need, where ggml's code is not to read the unaligned rows */
    uint8_t *bytes;              /* exactly up to the end of the last row */
    float *numbers;              /* (n_rows, n), by ggml */
} rows;

/* ---- random blocks ---- */

static bool is_expandable(enum ggml_type type)
{
    return type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float;
}

/* Zeros of both signs, the smallest and largest denormals, a number that is one bit more, ordinary ones. */
static uint16_t random_half(sp_rng *rng)
{
    static const uint16_t special[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x3c00};
    size_t i = sp_rng_below(rng, 3 * (sizeof special / sizeof *special));
    if (i < sizeof special / sizeof *special) return special[i];
    uint16_t bits = (uint16_t)sp_rng_next(rng);
    return (uint16_t)((bits & 0x8fff) | 0x2000); /* at most 2^-3: products stay far from the ends of f32 */
}

/* Where a block of `type` has f16 numbers, which must be finite: offsets from its start. */
static size_t half_offsets(enum ggml_type type, size_t offsets[2])
{
    offsets[0] = 0;
    switch (type) {
    case GGML_TYPE_Q4_1:
    case GGML_TYPE_Q5_1:
    case GGML_TYPE_Q4_K:
    case GGML_TYPE_Q5_K:
        offsets[1] = 2;
        return 2;
    case GGML_TYPE_Q2_K:
        offsets[0] = 80, offsets[1] = 82;
        return 2;
    case GGML_TYPE_Q3_K:
        offsets[0] = 108;
        return 1;
    case GGML_TYPE_Q6_K:
        offsets[0] = 208;
        return 1;
    case GGML_TYPE_TQ1_0:
        offsets[0] = 52;
        return 1;
    case GGML_TYPE_TQ2_0:
        offsets[0] = 64;
        return 1;
    case GGML_TYPE_F32:
    case GGML_TYPE_BF16:
    case GGML_TYPE_IQ1_M: /* one f16 in four parts: set_iq1_m_scale */
    case GGML_TYPE_MXFP4:
    case GGML_TYPE_NVFP4:
        return 0;
    default:
        return 1;
    }
}

static void fill_block(enum ggml_type type, uint8_t *block, sp_rng *rng)
{
    size_t bytes = ggml_type_size(type), offsets[2];
    if (type == GGML_TYPE_F32) {
        float number = (float)sp_rng_normal(rng);
        memcpy(block, &number, sizeof number);
        return;
    }
    for (size_t i = 0; i < bytes; i++) block[i] = (uint8_t)sp_rng_next(rng);
    for (size_t i = 0, n = half_offsets(type, offsets); i < n; i++) {
        uint16_t half = random_half(rng);
        memcpy(block + offsets[i], &half, sizeof half);
    }
    if (type == GGML_TYPE_BF16) block[1] = (uint8_t)(block[1] & 0xbf);     /* below 2 */
    if (type == GGML_TYPE_MXFP4) block[0] = (uint8_t)(96 + block[0] % 64); /* its exponent */
    if (type == GGML_TYPE_NVFP4) block[0] &= 0x77, block[1] &= 0x77, block[2] &= 0x77, block[3] &= 0x77;
    if (type == GGML_TYPE_IQ1_M) block[bytes - 1] = (uint8_t)(block[bytes - 1] & 0xbf); /* the high bits of its scale */
}

/* A row's numbers by ggml, whose code wants aligned blocks. */
static void expand_by_ggml(enum ggml_type type, float *out, const uint8_t *row, size_t n)
{
    size_t bytes = ggml_row_size(type, (int64_t)n);
    void *aligned = malloc(bytes);
    assert_non_null(aligned);
    memcpy(aligned, row, bytes);
    if (type == GGML_TYPE_F32)
        memcpy(out, aligned, bytes);
    else
        ggml_get_type_traits(type)->to_float(aligned, out, (int64_t)n);
    free(aligned);
}

static rows make_rows(enum ggml_type type, size_t n_rows, size_t n)
{
    const size_t bytes = ggml_row_size(type, (int64_t)n), block_bytes = ggml_type_size(type);
    rows made = {type, n_rows, n, bytes + sp_row_reader_get(type)->is_fast, NULL, calloc(n_rows * n + 1, sizeof(float))};
    sp_rng rng = sp_rng_seed(type, n);
    made.bytes = malloc(n_rows ? (n_rows - 1) * made.row_bytes + bytes : 1);
    assert_non_null(made.bytes);
    assert_non_null(made.numbers);
    for (size_t r = 0; r < n_rows; r++) {
        uint8_t *row = made.bytes + r * made.row_bytes;
        for (size_t i = 0; i < bytes; i += block_bytes) fill_block(type, row + i, &rng);
        expand_by_ggml(type, made.numbers + r * n, row, n);
    }
    return made;
}

static void free_rows(rows *made)
{
    free(made->bytes);
    free(made->numbers);
}

/* ---- checks of one type, one shape, one rung ---- */

static void check_expand(const sp_kernels *rung, const rows *made)
{
    const sp_row_reader *reader = sp_row_reader_of_rung(rung, made->type);
    float *got = calloc(made->n + 1, sizeof *got);
    assert_non_null(got);
    got[made->n] = 12345;
    for (size_t r = 0; r < made->n_rows; r++) {
        const float *want = made->numbers + r * made->n;
        reader->expand(reader, got, made->bytes + r * made->row_bytes, made->n);
        for (size_t i = 0; i < made->n; i++)
            if (memcmp(&got[i], &want[i], sizeof *got) != 0)
                fail_msg("%s, %s: row %zu, number %zu of %zu: got %a, want %a", rung->name, ggml_type_name(made->type), r, i,
                         made->n, (double)got[i], (double)want[i]);
    }
    assert_true(got[made->n] == 12345);
    free(got);
}

static void check_dots(const sp_kernels *rung, const rows *made)
{
    const sp_row_reader *reader = sp_row_reader_of_rung(rung, made->type);
    float *x = malloc(made->n * sizeof *x), got[32], alone;
    assert_non_null(x);
    sp_rng rng = sp_rng_seed(made->n, 1);
    for (size_t i = 0; i < made->n; i++) x[i] = (float)sp_rng_normal(&rng);
    got[made->n_rows] = 12345;
    reader->dots(reader, got, made->bytes, made->row_bytes, made->n_rows, x, made->n);
    assert_true(got[made->n_rows] == 12345);
    for (size_t r = 0; r < made->n_rows; r++) {
        double want = 0, magnitude = 0;
        for (size_t i = 0; i < made->n; i++) {
            double product = (double)made->numbers[r * made->n + i] * (double)x[i];
            want += product;
            magnitude += fabs(product);
        }
        if (!(fabs((double)got[r] - want) <= (double)made->n * FLT_EPSILON * magnitude)) /* NaN fails, too */
            fail_msg("%s, %s: row %zu of %zu x %zu: got %.9g, want %.9g", rung->name, ggml_type_name(made->type), r, made->n_rows,
                     made->n, (double)got[r], want);
        reader->dots(reader, &alone, made->bytes + r * made->row_bytes, made->row_bytes, 1, x, made->n);
        assert_memory_equal(&alone, &got[r], sizeof alone); /* whatever rows are beside it */
    }
    free(x);
}

/* ---- tests ---- */

static void for_each(void (*check)(const sp_kernels *rung, const rows *made))
{
    static const size_t heights[] = {0, 1, 2, 3, 5, 17}, blocks[] = {1, 2, 3, 7}, singles[] = {1, 31, 32, 33, 577};
    size_t n_types = 0;
    for (enum ggml_type type = 0; type < GGML_TYPE_COUNT; type++) {
        if (!is_expandable(type)) {
            assert_null(sp_row_reader_get(type));
            continue;
        }
        n_types++;
        size_t block = (size_t)ggml_blck_size(type), lengths[6] = {1536}, n_lengths = 1;
        for (size_t i = 0; block == 1 && i < sizeof singles / sizeof *singles; i++) lengths[n_lengths++] = singles[i];
        for (size_t i = 0; block > 1 && i < sizeof blocks / sizeof *blocks; i++) lengths[n_lengths++] = blocks[i] * block;
        for (size_t i = 0; i < n_lengths; i++)
            for (size_t j = 0; j < sizeof heights / sizeof *heights; j++) {
                rows made = make_rows(type, heights[j], lengths[i]);
                for (size_t v = 0; v < n_rungs; v++) check(rungs[v], &made);
                free_rows(&made);
            }
    }
    assert_true(n_types > 20);
}

static void expands_as_ggml_does(void **state)
{
    (void)state;
    for_each(check_expand);
}

static void dots_match(void **state)
{
    (void)state;
    for_each(check_dots);
}

/* All 65536 numbers, infinities and NaN included; a NaN need only stay one. */
static void check_all_halves(enum ggml_type type)
{
    enum { N = 65536 };
    static uint16_t halves[N];
    static float want[N], got[N];
    for (size_t i = 0; i < N; i++) halves[i] = (uint16_t)i;
    ggml_get_type_traits(type)->to_float(halves, want, N);
    for (size_t v = 0; v < n_rungs; v++) {
        const sp_row_reader *reader = sp_row_reader_of_rung(rungs[v], type);
        reader->expand(reader, got, halves, N);
        for (size_t i = 0; i < N; i++)
            if (isnan(want[i]) ? !isnan(got[i]) : memcmp(&got[i], &want[i], sizeof *got) != 0)
                fail_msg("%s, %s: %#zx: got %a, want %a", rungs[v]->name, ggml_type_name(type), i, (double)got[i], (double)want[i]);
    }
}

static void all_halves_expand(void **state)
{
    (void)state;
    check_all_halves(GGML_TYPE_F16);
    check_all_halves(GGML_TYPE_BF16);
}

static void readers_of_the_rung_in_use(void **state)
{
    (void)state;
    for (enum ggml_type type = 0; type < GGML_TYPE_COUNT; type++)
        assert_ptr_equal(sp_row_reader_get(type), sp_row_reader_of_rung(sp_kernels_select(), type));
    assert_null(sp_row_reader_get(GGML_TYPE_COUNT));
    assert_null(sp_row_reader_get((enum ggml_type)4)); /* a type that is no more */
}

int main(void)
{
    n_rungs = sp_kernels_list(rungs);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(expands_as_ggml_does),
        cmocka_unit_test(dots_match),
        cmocka_unit_test(all_halves_expand),
        cmocka_unit_test(readers_of_the_rung_in_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
