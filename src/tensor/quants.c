/* quants.c: rows of quantised tensors as numbers, on vectors of the width that this compilation's flags allow.
 *
 * Every type of its own here is a `layout`: how its blocks lie in memory, and a function that turns a piece of a block into
 * vectors of f32. Two loops, one that stores the vectors and one that multiplies them by x, are inlined around it. So a product
 * sees the very numbers that expanding gives, and a type is a dozen lines.
 *
 * The numbers are q d + m with q an integer of few bits: q d is exact in f32, so it makes no difference whether a compiler rounds
 * the product before the sum (ggml's baseline code) or not (a fused multiply-add). Types without an offset add -0.0, which leaves
 * every number as it is, zeros of both signs included. */
#include "tensor/quants.h"

#include <assert.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "tensor/vec.h"

enum {
    HALF_BYTES = 2,
    PIECE = 32, /* numbers that are read at a time; each block has a whole number of pieces */
    VECTORS = PIECE / LANES,
    STAGED = 1024 /* numbers of a row that dots of a type without loops of its own expands at a time */
};

typedef uint8_t byte_vec __attribute__((vector_size(LANES)));
typedef int8_t signed_byte_vec __attribute__((vector_size(LANES)));
typedef uint16_t short_vec __attribute__((vector_size(2 * LANES)));

/* ---- numbers of few bits to lanes; the pointers need no alignment ---- */

INLINE ivec ints_of_bytes(const uint8_t *p)
{
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif defined(__AVX2__)
    return (ivec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    byte_vec bytes;
    memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, ivec);
#endif
}

INLINE ivec ints_of_signed_bytes(const uint8_t *p)
{
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif defined(__AVX2__)
    return (ivec)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    signed_byte_vec bytes;
    memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, ivec);
#endif
}

INLINE ivec ints_of_shorts(const uint8_t *p)
{
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (ivec)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
#else
    short_vec shorts;
    memcpy(&shorts, p, sizeof shorts);
    return __builtin_convertvector(shorts, ivec);
#endif
}

INLINE vec floats_of(ivec q)
{
    return __builtin_convertvector(q, vec);
}

#if !defined(__F16C__)
/* Half precision, f16 in the low halves of the lanes. The exponent moves up by 112: by a product with 2^112 for normal numbers;
 * infinities and NaN then get the largest exponent; denormals become 0.5 + m 2^-24 less 0.5, as f32 has no exponent for them. */
INLINE vec floats_of_halves(ivec h)
{
    const ivec sign = (h & 0x8000) << 16, exponent = h & 0x7c00, rest = (h & 0x7fff) << 13;
    const ivec denormal = exponent == 0, infinite = exponent == 0x7c00;
    const ivec normal = rest + (112 << 23), small = (ivec)((vec)((h & 0x3ff) | 0x3f000000) - 0.5f);
    return (vec)(sign | (denormal & small) | (~denormal & (normal | (infinite & 0x7f800000))));
}
#endif

/* Consecutive f16 numbers. */
INLINE vec load_halves(const uint8_t *p)
{
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    return floats_of_halves(ints_of_shorts(p));
#endif
}

/* One f16 number in all lanes. */
INLINE vec broadcast_half(const uint8_t *p)
{
    int16_t half;
    memcpy(&half, p, sizeof half);
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_set1_epi16(half));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_set1_epi16(half));
#else
    return floats_of_halves((ivec){0} + half);
#endif
}

INLINE ivec count_up(int first)
{
    ivec v;
    for (int i = 0; i < LANES; i++) v[i] = first + i;
    return v;
}

/* (first + the low four bits of a lane) d + m. */
INLINE vec four_bits(ivec q, int first, vec d, vec m)
{
#if defined(__AVX512F__)
    return _mm512_permutexvar_ps((__m512i)q, floats_of(count_up(first)) * d + m); /* the four bits are all that it looks at */
#else
    return floats_of((q & 15) + first) * d + m;
#endif
}

/* ---- types: what a block looks like, and how a piece of it is read ---- */

/* What the pieces of a block of 256 share. */
typedef struct scales {
    float d[16], m[8];
} scales;

typedef struct layout {
    size_t block, bytes;                                                               /* numbers and bytes of a block */
    void (*open)(scales *s, const uint8_t *block);                                     /* NULL: nothing is shared */
    void (*read)(vec w[VECTORS], const scales *s, const uint8_t *block, size_t piece); /* PIECE numbers from piece * PIECE on */
} layout;

/* f32, f16, bf16: a block of one number; loops take PIECE of them as a block and treat the rest of a row apart. */
INLINE void read_f32(vec w[VECTORS], const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    memcpy(w, block, VECTORS * sizeof *w);
}

INLINE void read_f16(vec w[VECTORS], const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    for (size_t i = 0; i < VECTORS; i++) w[i] = load_halves(block + i * LANES * HALF_BYTES);
}

INLINE void read_bf16(vec w[VECTORS], const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    for (size_t i = 0; i < VECTORS; i++) w[i] = (vec)(ints_of_shorts(block + i * LANES * HALF_BYTES) << 16);
}

/* d (f16), m (f16), 16 bytes: number i in the low half of byte i, number 16 + i in its high half. */
INLINE void read_q4_1(vec w[VECTORS], const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    const vec d = broadcast_half(block), m = broadcast_half(block + HALF_BYTES);
    for (size_t i = 0; i < VECTORS / 2; i++) {
        ivec q = ints_of_bytes(block + 2 * HALF_BYTES + i * LANES);
        w[i] = four_bits(q, 0, d, m);
        w[VECTORS / 2 + i] = four_bits(q >> 4, 0, d, m);
    }
}

/* d (f16), 32 signed bytes. */
INLINE void read_q8_0(vec w[VECTORS], const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    const vec d = broadcast_half(block);
    for (size_t i = 0; i < VECTORS; i++) w[i] = floats_of(ints_of_signed_bytes(block + HALF_BYTES + i * LANES)) * d;
}

static const layout f32 = {PIECE, 4 * PIECE, NULL, read_f32};
static const layout f16 = {PIECE, HALF_BYTES *PIECE, NULL, read_f16};
static const layout bf16 = {PIECE, HALF_BYTES *PIECE, NULL, read_bf16};
static const layout q4_1 = {32, 20, NULL, read_q4_1};
static const layout q8_0 = {32, 34, NULL, read_q8_0};

/* ---- the two loops ---- */

INLINE void expand(layout type, float *out, const uint8_t *row, size_t n)
{
    for (; n >= type.block; n -= type.block, row += type.bytes) {
        scales s;
        if (type.open) type.open(&s, row);
        for (size_t piece = 0; piece < type.block / PIECE; piece++, out += PIECE) {
            vec w[VECTORS];
            type.read(w, &s, row, piece);
            for (size_t i = 0; i < VECTORS; i++) store(out + i * LANES, w[i]);
        }
    }
}

/* The n < PIECE numbers at the end of a row of a type with blocks of one number, then zeros. */
INLINE void expand_rest(layout type, float out[PIECE], const uint8_t *row, size_t n)
{
    uint8_t block[4 * PIECE] = {0};
    memcpy(block, row, n * (type.bytes / PIECE));
    expand(type, out, block, PIECE);
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

/* `n_rows` rows (a constant at each call) share the loads of x, and their sums do not wait for each other. Each row has its own
 * sums in an order of its own: y_i does not depend on the rows beside it. */
INLINE void dots_of_rows(layout type, size_t n_rows, float *y, const uint8_t *rows, size_t row_bytes, const float *x, size_t n)
{
    vec sum[4] = {{0}};
    const uint8_t *block = rows;
    size_t left = n;
    for (; left >= type.block; left -= type.block, block += type.bytes) {
        scales s[4];
        for (size_t r = 0; r < n_rows; r++)
            if (type.open) type.open(&s[r], block + r * row_bytes);
        for (size_t piece = 0; piece < type.block / PIECE; piece++, x += PIECE)
            for (size_t r = 0; r < n_rows; r++) {
                vec w[VECTORS];
                type.read(w, &s[r], block + r * row_bytes, piece);
                for (size_t i = 0; i < VECTORS; i++) sum[r] += w[i] * load(x + i * LANES);
            }
    }
    for (size_t r = 0; r < n_rows; r++) {
        y[r] = sum_of(sum[r]);
        if (left == 0) continue;
        float rest[PIECE];
        expand_rest(type, rest, block + r * row_bytes, left);
        for (size_t i = 0; i < left; i++) y[r] += rest[i] * x[i];
    }
}

INLINE void dots(layout type, float *y, const void *rows, size_t row_bytes, size_t n_rows, const float *x, size_t n)
{
    const uint8_t *row = rows;
    for (; n_rows >= 4; n_rows -= 4, y += 4, row += 4 * row_bytes) dots_of_rows(type, 4, y, row, row_bytes, x, n);
    for (; n_rows >= 1; n_rows -= 1, y += 1, row += row_bytes) dots_of_rows(type, 1, y, row, row_bytes, x, n);
}

/* ---- by type ---- */

static void expand_single(layout type, float *out, const uint8_t *row, size_t n)
{
    size_t whole = n / PIECE * PIECE, rest = n - whole;
    expand(type, out, row, whole);
    if (rest == 0) return;
    float last[PIECE];
    expand_rest(type, last, row + whole * (type.bytes / PIECE), rest);
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
    case GGML_TYPE_Q4_1:
        expand(q4_1, out, row, n);
        break;
    case GGML_TYPE_Q8_0:
        expand(q8_0, out, row, n);
        break;
    default:
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
    case GGML_TYPE_Q4_1:
        dots(q4_1, y, rows, row_bytes, n_rows, x, n);
        break;
    case GGML_TYPE_Q8_0:
        dots(q8_0, y, rows, row_bytes, n_rows, x, n);
        break;
    default:
        dots_by_ggml(reader->type, y, rows, row_bytes, n_rows, x, n);
    }
}

#define OWN(type) [type] = {type, expand_row, dot_rows, true}
#define OTHER(type) [type] = {type, expand_row, dot_rows, false}
#define TABLE_OF_(variant) sp_row_readers_##variant
#define TABLE_OF(variant) TABLE_OF_(variant)

extern const sp_row_reader TABLE_OF(SP_KERNEL_VARIANT)[GGML_TYPE_COUNT];
const sp_row_reader TABLE_OF(SP_KERNEL_VARIANT)[GGML_TYPE_COUNT] = {
    OWN(GGML_TYPE_F32),       OWN(GGML_TYPE_F16),      OWN(GGML_TYPE_BF16),    OTHER(GGML_TYPE_Q4_0),    OWN(GGML_TYPE_Q4_1),
    OTHER(GGML_TYPE_Q5_0),    OTHER(GGML_TYPE_Q5_1),   OWN(GGML_TYPE_Q8_0),    OTHER(GGML_TYPE_Q2_K),    OTHER(GGML_TYPE_Q3_K),
    OTHER(GGML_TYPE_Q4_K),    OTHER(GGML_TYPE_Q5_K),   OTHER(GGML_TYPE_Q6_K),  OTHER(GGML_TYPE_IQ1_S),   OTHER(GGML_TYPE_IQ1_M),
    OTHER(GGML_TYPE_IQ2_XXS), OTHER(GGML_TYPE_IQ2_XS), OTHER(GGML_TYPE_IQ2_S), OTHER(GGML_TYPE_IQ3_XXS), OTHER(GGML_TYPE_IQ3_S),
    OTHER(GGML_TYPE_IQ4_NL),  OTHER(GGML_TYPE_IQ4_XS), OTHER(GGML_TYPE_TQ1_0), OTHER(GGML_TYPE_TQ2_0),   OTHER(GGML_TYPE_MXFP4),
    OTHER(GGML_TYPE_NVFP4),   OTHER(GGML_TYPE_Q1_0),
};
