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
    PIECE = 64, /* numbers that are read at a time, at most */
    VECTORS = PIECE / LANES,
    SINGLES = 32, /* numbers that are read at a time of types whose blocks are one number */
    STAGED = 1024 /* numbers of a row that dots of a type without loops of its own expands at a time */
};

typedef uint8_t byte_vec __attribute__((vector_size(LANES)));
typedef int8_t signed_byte_vec __attribute__((vector_size(LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
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

/* (first + the low four bits of a lane of q, and as the fifth that bit of h) d + m. */
INLINE vec five_bits(ivec q, ivec h, int first, vec d, vec m)
{
#if defined(__AVX512F__)
    const int mine_or_his = 0xe4; /* by a truth table: q where the mask is set, h elsewhere; five bits are all that counts */
    const __m512i index = _mm512_ternarylogic_epi32((__m512i)q, (__m512i)h, _mm512_set1_epi32(15), mine_or_his);
    return _mm512_permutex2var_ps(floats_of(count_up(first)) * d + m, index, floats_of(count_up(first + 16)) * d + m);
#else
    return floats_of(((q & 15) | (h & 16)) + first) * d + m;
#endif
}

/* Lane i has bit first + i of 32 bits as its fifth; the other bits of the lane are any. */
INLINE ivec fifth_bits(const uint8_t *p, int first)
{
    uint32_t bits;
    memcpy(&bits, p, sizeof bits);
#if defined(__AVX512F__)
    return (ivec)_mm512_rorv_epi32(_mm512_set1_epi32((int)bits), (__m512i)((count_up(first) - 4) & 31));
#else
    const ivec mine = (ivec)(((uvec){0} + 1) << (uvec)count_up(first));
    return ((ivec)((uvec){0} + bits) & mine) == mine;
#endif
}

/* ---- types: what a block looks like, and how a piece of it is read ---- */

/* What the pieces of a block of 256 share. */
typedef struct scales {
    float d[16], m[8];
} scales;

typedef struct layout {
    size_t block, bytes, piece;                    /* numbers and bytes of a block; numbers that are read at a time */
    void (*open)(scales *s, const uint8_t *block); /* NULL: the pieces share nothing */
    void (*read)(vec *w, const scales *s, const uint8_t *block, size_t piece); /* numbers from piece * type.piece on */
} layout;

/* f32, f16, bf16 have blocks of one number: the loops take SINGLES of them as a block, and the rest of a row apart. */
INLINE void read_f32(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    memcpy(w, block, SINGLES * sizeof(float));
}

INLINE void read_f16(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    for (size_t i = 0; i < SINGLES / LANES; i++) w[i] = load_halves(block + i * LANES * HALF_BYTES);
}

INLINE void read_bf16(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    for (size_t i = 0; i < SINGLES / LANES; i++) w[i] = (vec)(ints_of_shorts(block + i * LANES * HALF_BYTES) << 16);
}

/* 16 bytes of a block of 32: number i in the low half of byte i, number 16 + i in its high half. */
INLINE void read_nibbles(vec *w, const uint8_t *bytes, int first, vec d, vec m)
{
    for (size_t i = 0; i < 16 / LANES; i++) {
        ivec q = ints_of_bytes(bytes + i * LANES);
        w[i] = four_bits(q, first, d, m);
        w[16 / LANES + i] = four_bits(q >> 4, first, d, m);
    }
}

/* The same, and four bytes with the fifth bits: number i has bit i. */
INLINE void read_five_bits(vec *w, const uint8_t *bytes, const uint8_t *high, int first, vec d, vec m)
{
    for (size_t i = 0; i < 16 / LANES; i++) {
        ivec q = ints_of_bytes(bytes + i * LANES);
        w[i] = five_bits(q, fifth_bits(high, (int)(i * LANES)), first, d, m);
        w[16 / LANES + i] = five_bits(q >> 4, fifth_bits(high, (int)(16 + i * LANES)), first, d, m);
    }
}

/* d (f16), nibbles (16): (q - 8) d. */
INLINE void read_q4_0(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    read_nibbles(w, block + HALF_BYTES, -8, broadcast_half(block), broadcast(-0.0f));
}

/* d (f16), m (f16), nibbles (16): q d + m. */
INLINE void read_q4_1(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    read_nibbles(w, block + 2 * HALF_BYTES, 0, broadcast_half(block), broadcast_half(block + HALF_BYTES));
}

/* d (f16), fifth bits (4), nibbles (16): (q - 16) d. */
INLINE void read_q5_0(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    read_five_bits(w, block + HALF_BYTES + 4, block + HALF_BYTES, -16, broadcast_half(block), broadcast(-0.0f));
}

/* d (f16), m (f16), fifth bits (4), nibbles (16): q d + m. */
INLINE void read_q5_1(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    read_five_bits(w, block + 2 * HALF_BYTES + 4, block + 2 * HALF_BYTES, 0, broadcast_half(block),
                   broadcast_half(block + HALF_BYTES));
}

/* d (f16), signed bytes (32): q d. */
INLINE void read_q8_0(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    const vec d = broadcast_half(block);
    for (size_t i = 0; i < 32 / LANES; i++) w[i] = floats_of(ints_of_signed_bytes(block + HALF_BYTES + i * LANES)) * d;
}

/* d (f16), m (f16), then 12 bytes with a scale and an offset of six bits for each 32 numbers: bytes 0-3 have scales 0-3 in their
 * low six bits, bytes 4-7 offsets 0-3, bytes 8-11 the low halves of scales 4-7 and of offsets 4-7, whose upper two bits stand on
 * top of bytes 0-3 and 4-7. A number is q (scale d) - offset m. */
INLINE void open_q4_k(scales *s, const uint8_t *block)
{
    const uint8_t *packed = block + 2 * HALF_BYTES;
    const float d = broadcast_half(block)[0], m = broadcast_half(block + HALF_BYTES)[0];
    for (size_t i = 0; i < 4; i++) {
        s->d[i] = d * (float)(packed[i] & 63);
        s->m[i] = -(m * (float)(packed[4 + i] & 63));
        s->d[4 + i] = d * (float)((packed[8 + i] & 15) | (packed[i] >> 6 << 4));
        s->m[4 + i] = -(m * (float)(packed[8 + i] >> 4 | (packed[4 + i] >> 6 << 4)));
    }
}

/* Then 32 bytes for each 64 numbers: number i in the low half of byte i, number 32 + i in its high half. */
INLINE void read_q4_k(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    const vec d0 = broadcast(s->d[2 * piece]), d1 = broadcast(s->d[2 * piece + 1]);
    const vec m0 = broadcast(s->m[2 * piece]), m1 = broadcast(s->m[2 * piece + 1]);
    for (size_t i = 0; i < 32 / LANES; i++) {
        ivec q = ints_of_bytes(block + 16 + piece * 32 + i * LANES);
        w[i] = four_bits(q, 0, d0, m0);
        w[32 / LANES + i] = four_bits(q >> 4, 0, d1, m1);
    }
}

/* As q4_K, with fifth bits (32) before the nibbles (128): byte i has those of numbers i, 32 + i, 64 + i, ... from bit 0 up. */
INLINE void read_q5_k(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    const vec d0 = broadcast(s->d[2 * piece]), d1 = broadcast(s->d[2 * piece + 1]);
    const vec m0 = broadcast(s->m[2 * piece]), m1 = broadcast(s->m[2 * piece + 1]);
    for (size_t i = 0; i < 32 / LANES; i++) {
        ivec q = ints_of_bytes(block + 48 + piece * 32 + i * LANES);
        ivec h = ints_of_bytes(block + 16 + i * LANES) << 4 >> (int)(2 * piece);
        w[i] = five_bits(q, h, 0, d0, m0);
        w[32 / LANES + i] = five_bits(q >> 4, h >> 1, 0, d1, m1);
    }
}

/* Low halves (128), upper two bits (64), signed scales of each 16 numbers (16), d (f16): (q - 32) (scale d). Half of a block is
 * 128 numbers: 64 bytes of low halves, those of numbers 64-127 on top of those of 0-63, and 32 bytes of upper bits, byte i having
 * those of numbers i, 32 + i, 64 + i, 96 + i. */
INLINE void open_q6_k(scales *s, const uint8_t *block)
{
    const float d = broadcast_half(block + 208)[0];
    for (size_t i = 0; i < 16; i++) s->d[i] = d * (float)(int8_t)block[192 + i];
}

INLINE void read_q6_k(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    const uint8_t *low = block + piece / 2 * 64, *high = block + 128 + piece / 2 * 32;
    for (size_t i = 0; i < 64 / LANES; i++) {
        ivec q = ints_of_bytes(low + i * LANES) >> (int)(piece % 2 * 4);
        ivec h = ints_of_bytes(high + i * LANES % 32) << 4 >> (int)(piece % 2 * 4 + i * LANES / 32 * 2);
        w[i] = floats_of(((q & 15) | (h & 48)) - 32) * broadcast(s->d[piece * 4 + i * LANES / 16]);
    }
}

static const layout f32 = {SINGLES, 4 * SINGLES, SINGLES, NULL, read_f32};
static const layout f16 = {SINGLES, HALF_BYTES *SINGLES, SINGLES, NULL, read_f16};
static const layout bf16 = {SINGLES, HALF_BYTES *SINGLES, SINGLES, NULL, read_bf16};
static const layout q4_0 = {32, 18, 32, NULL, read_q4_0};
static const layout q4_1 = {32, 20, 32, NULL, read_q4_1};
static const layout q5_0 = {32, 22, 32, NULL, read_q5_0};
static const layout q5_1 = {32, 24, 32, NULL, read_q5_1};
static const layout q8_0 = {32, 34, 32, NULL, read_q8_0};
static const layout q4_k = {256, 144, 64, open_q4_k, read_q4_k};
static const layout q5_k = {256, 176, 64, open_q4_k, read_q5_k};
static const layout q6_k = {256, 210, 64, open_q6_k, read_q6_k};

/* ---- the two loops ---- */

INLINE void expand(layout type, float *out, const uint8_t *row, size_t n)
{
    for (; n >= type.block; n -= type.block, row += type.bytes) {
        scales s;
        if (type.open) type.open(&s, row);
#pragma GCC unroll 4
        for (size_t piece = 0; piece < type.block / type.piece; piece++, out += type.piece) {
            vec w[VECTORS];
            type.read(w, &s, row, piece);
            for (size_t i = 0; i < type.piece / LANES; i++) store(out + i * LANES, w[i]);
        }
    }
}

/* The n < SINGLES numbers at the end of a row of a type with blocks of one number, then zeros. */
INLINE void expand_rest(layout type, float out[SINGLES], const uint8_t *row, size_t n)
{
    uint8_t block[4 * SINGLES] = {0};
    memcpy(block, row, n * (type.bytes / SINGLES));
    expand(type, out, block, SINGLES);
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
#pragma GCC unroll 4
        for (size_t piece = 0; piece < type.block / type.piece; piece++, x += type.piece)
            for (size_t r = 0; r < n_rows; r++) {
                vec w[VECTORS];
                type.read(w, &s[r], block + r * row_bytes, piece);
                for (size_t i = 0; i < type.piece / LANES; i++) sum[r] += w[i] * load(x + i * LANES);
            }
    }
    for (size_t r = 0; r < n_rows; r++) {
        y[r] = sum_of(sum[r]);
        if (left == 0) continue;
        float rest[SINGLES];
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
    size_t whole = n / SINGLES * SINGLES, rest = n - whole;
    expand(type, out, row, whole);
    if (rest == 0) return;
    float last[SINGLES];
    expand_rest(type, last, row + whole * (type.bytes / SINGLES), rest);
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
    OWN(GGML_TYPE_F32),       OWN(GGML_TYPE_F16),      OWN(GGML_TYPE_BF16),    OWN(GGML_TYPE_Q4_0),      OWN(GGML_TYPE_Q4_1),
    OWN(GGML_TYPE_Q5_0),      OWN(GGML_TYPE_Q5_1),     OWN(GGML_TYPE_Q8_0),    OTHER(GGML_TYPE_Q2_K),    OTHER(GGML_TYPE_Q3_K),
    OWN(GGML_TYPE_Q4_K),      OWN(GGML_TYPE_Q5_K),     OWN(GGML_TYPE_Q6_K),    OTHER(GGML_TYPE_IQ1_S),   OTHER(GGML_TYPE_IQ1_M),
    OTHER(GGML_TYPE_IQ2_XXS), OTHER(GGML_TYPE_IQ2_XS), OTHER(GGML_TYPE_IQ2_S), OTHER(GGML_TYPE_IQ3_XXS), OTHER(GGML_TYPE_IQ3_S),
    OTHER(GGML_TYPE_IQ4_NL),  OTHER(GGML_TYPE_IQ4_XS), OTHER(GGML_TYPE_TQ1_0), OTHER(GGML_TYPE_TQ2_0),   OTHER(GGML_TYPE_MXFP4),
    OTHER(GGML_TYPE_NVFP4),   OTHER(GGML_TYPE_Q1_0),
};
