/* quant_blocks.h: what a block of each tensor type looks like, and how a piece of it becomes vectors of f32. For quants.c.
 *
 * The numbers are q d + m with q an integer of few bits: q d is exact in f32, so it makes no difference whether a compiler rounds
 * the product before the sum (ggml's baseline code) or not (a fused multiply-add). Types without an offset add -0.0, which leaves
 * every number as it is, zeros of both signs included. Blocks need no alignment; nothing past their ends is read.
 *
 * Plain vectors are the definition, and what a compiler makes of them is fast but for a few instructions that it does not find.
 * Little-endian, as GGUF files are. */
#ifndef SP_TENSOR_QUANT_BLOCKS_H
#define SP_TENSOR_QUANT_BLOCKS_H

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "tensor/vec.h"

enum {
    HALF_BYTES = 2,
    PIECE = 64, /* numbers that are read at a time, at most */
    VECTORS = PIECE / LANES,
    SINGLES = 32 /* numbers that are read at a time of types whose blocks are one number */
};

typedef float bytewise_vec __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint16_t shorts8 __attribute__((vector_size(16)));
typedef uint64_t words2 __attribute__((vector_size(16)));
typedef uint32_t words4 __attribute__((vector_size(16)));

/* ---- 16 bytes, or as many shorts as there are lanes, to lanes of 32 bits. Plain vectors interleave them with zeros. ---- */

#if !defined(__AVX2__)
INLINE void interleave(ivec q[4], bytes16 low, bytes16 high)
{
    const shorts8 zero = {0},
                  s[2] = {
                      (shorts8)__builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                      (shorts8)__builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)};
    for (size_t i = 0; i < 2; i++) {
        q[2 * i] = (ivec)__builtin_shufflevector(s[i], zero, 0, 8, 1, 9, 2, 10, 3, 11);
        q[2 * i + 1] = (ivec)__builtin_shufflevector(s[i], zero, 4, 12, 5, 13, 6, 14, 7, 15);
    }
}
#endif

INLINE void ints_of_bytes(ivec q[16 / LANES], const uint8_t *p)
{
#if defined(__AVX512F__)
    q[0] = (ivec)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif defined(__AVX2__)
    for (size_t i = 0; i < 2; i++) q[i] = (ivec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8 * i)));
#else
    bytes16 bytes;
    memcpy(&bytes, p, sizeof bytes);
    interleave(q, bytes, (bytes16){0});
#endif
}

INLINE void ints_of_signed_bytes(ivec q[16 / LANES], const uint8_t *p)
{
#if defined(__AVX512F__)
    q[0] = (ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif defined(__AVX2__)
    for (size_t i = 0; i < 2; i++) q[i] = (ivec)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8 * i)));
#else
    bytes16 bytes;
    memcpy(&bytes, p, sizeof bytes);
    interleave(q, (bytes16){0}, bytes);
    for (size_t i = 0; i < 4; i++) q[i] = q[i] << 16 >> 24;
#endif
}

INLINE ivec ints_of_shorts(const uint8_t *p)
{
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (ivec)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
#else
    uint64_t four; /* in a vector by way of memory, it would be waited for */
    memcpy(&four, p, sizeof four);
    const shorts8 shorts = (shorts8)(words2){four, 0};
    return (ivec)__builtin_shufflevector(shorts, (shorts8){0}, 0, 8, 1, 9, 2, 10, 3, 11);
#endif
}

INLINE vec floats_of(ivec q)
{
    return __builtin_convertvector(q, vec);
}

#if !defined(__F16C__)
/* f16 numbers in the low halves of the lanes. Exponents of normal numbers go up by 112; infinities and NaN get the largest one;
 * m 2^-24, a denormal, is made as the low bits of 0.5, less 0.5. */
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

/* Two f16 numbers, each in all lanes. */
INLINE void broadcast_two_halves(vec *first, vec *second, const uint8_t *p)
{
#if defined(__F16C__)
    int both;
    memcpy(&both, p, sizeof both);
    const __m128 numbers = _mm_cvtph_ps(_mm_cvtsi32_si128(both));
#endif
#if defined(__AVX512F__)
    *first = _mm512_broadcastss_ps(numbers);
    *second = _mm512_broadcastss_ps(_mm_movehdup_ps(numbers));
#elif defined(__F16C__)
    *first = _mm256_broadcastss_ps(numbers);
    *second = _mm256_broadcastss_ps(_mm_movehdup_ps(numbers));
#else
    *first = broadcast_half(p);
    *second = broadcast_half(p + HALF_BYTES);
#endif
}

INLINE ivec count_up(int first)
{
    ivec v;
    for (int i = 0; i < LANES; i++) v[i] = first + i;
    return v;
}

/* The low four bits of each lane, for four_bits alone, which with AVX-512 does not look at the others. */
INLINE ivec low_nibbles(ivec q)
{
#if defined(__AVX512F__)
    return q;
#else
    return q & 15;
#endif
}

/* (first + q) d + m for lanes of four bits: a table of all 16 results costs one instruction. */
INLINE vec four_bits(ivec q, int first, vec d, vec m)
{
#if defined(__AVX512F__)
    return _mm512_permutexvar_ps((__m512i)q, floats_of(count_up(first)) * d + m);
#else
    return floats_of(q + first) * d + m;
#endif
}

/* (first + the low four bits of a lane of q, and as the fifth that bit of h) d + m. */
INLINE vec five_bits(ivec q, ivec h, int first, vec d, vec m)
{
#if defined(__AVX512F__)
    enum { Q_OR_H = 0xe4 }; /* as a truth table: q where the mask is set, h elsewhere; no bit above the fifth counts */
    const __m512i index = _mm512_ternarylogic_epi32((__m512i)q, (__m512i)h, _mm512_set1_epi32(15), Q_OR_H);
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
    float d[16], m[16];
} scales;

typedef struct layout {
    size_t block, bytes, piece;                    /* numbers and bytes of a block; numbers that are read at a time */
    void (*open)(scales *s, const uint8_t *block); /* NULL: the pieces share nothing */
    void (*read)(vec *w, const scales *s, const uint8_t *block, size_t piece); /* numbers from piece * type.piece on */
} layout;

/* f32, f16, bf16 have blocks of one number: a piece is SINGLES blocks, and the rest of a row is taken apart. */
INLINE void read_f32(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    for (size_t i = 0; i < SINGLES / LANES; i++) w[i] = *(const bytewise_vec *)(block + i * sizeof *w);
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
    ivec q[16 / LANES];
    ints_of_bytes(q, bytes);
    for (size_t i = 0; i < 16 / LANES; i++) {
        w[i] = four_bits(low_nibbles(q[i]), first, d, m);
        w[16 / LANES + i] = four_bits(q[i] >> 4, first, d, m);
    }
}

/* The same, and four bytes with the fifth bits: number i has bit i. */
INLINE void read_five_bits(vec *w, const uint8_t *bytes, const uint8_t *high, int first, vec d, vec m)
{
    ivec q[16 / LANES];
    ints_of_bytes(q, bytes);
    for (size_t i = 0; i < 16 / LANES; i++) {
        w[i] = five_bits(q[i], fifth_bits(high, (int)(i * LANES)), first, d, m);
        w[16 / LANES + i] = five_bits(q[i] >> 4, fifth_bits(high, (int)(16 + i * LANES)), first, d, m);
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
    vec d, m;
    broadcast_two_halves(&d, &m, block);
    read_nibbles(w, block + 2 * HALF_BYTES, 0, d, m);
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
    vec d, m;
    broadcast_two_halves(&d, &m, block);
    read_five_bits(w, block + 2 * HALF_BYTES + 4, block + 2 * HALF_BYTES, 0, d, m);
}

/* d (f16), signed bytes (32): q d. */
INLINE void read_q8_0(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    (void)s, (void)piece;
    const vec d = broadcast_half(block);
    ivec q[32 / LANES];
    for (size_t i = 0; i < 2; i++) ints_of_signed_bytes(q + i * (16 / LANES), block + HALF_BYTES + i * 16);
    for (size_t i = 0; i < 32 / LANES; i++) w[i] = floats_of(q[i]) * d;
}

/* Eight scales and eight offsets of six bits each in 12 bytes: bytes 0-3 have scales 0-3 in their low six bits, bytes 4-7 offsets
 * 0-3, bytes 8-11 the low four bits of scales 4-7 and of offsets 4-7, whose upper two bits stand on top of bytes 0-3 and 4-7.
 * Written: the scales, then the offsets, a byte each. */
INLINE void unpack_scales(uint8_t unpacked[16], const uint8_t *block)
{
    const uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, upper = 0x30303030;
    words4 word, low, high; /* the first word is d and m */
    memcpy(&word, block, sizeof word);
    low = __builtin_shufflevector(word, word >> 4, 1, 3, 2, 7) & (words4){six, four, six, four};
    high = __builtin_shufflevector(word >> 2, word, 1, 1, 2, 2) & (words4){0, upper, 0, upper};
    low |= high;
    memcpy(unpacked, &low, sizeof low);
}

/* d (f16), m (f16), scales and offsets (12): a number is q (scale d) - offset m. */
INLINE void open_q4_k(scales *s, const uint8_t *block)
{
    uint8_t unpacked[16];
    ivec q[16 / LANES];
    vec d, m;
    broadcast_two_halves(&d, &m, block);
    unpack_scales(unpacked, block);
    ints_of_bytes(q, unpacked);
    for (size_t i = 0; i < 16 / LANES; i++) {
        store(s->d + i * LANES, floats_of(q[i]) * d);  /* the first eight count */
        store(s->m + i * LANES, floats_of(q[i]) * -m); /* the others */
    }
}

/* Then 32 bytes for each 64 numbers: number i in the low half of byte i, number 32 + i in its high half. */
INLINE void read_q4_k(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    const vec d0 = broadcast(s->d[2 * piece]), d1 = broadcast(s->d[2 * piece + 1]);
    const vec m0 = broadcast(s->m[8 + 2 * piece]), m1 = broadcast(s->m[8 + 2 * piece + 1]);
    ivec q[32 / LANES];
    for (size_t i = 0; i < 2; i++) ints_of_bytes(q + i * (16 / LANES), block + 16 + piece * 32 + i * 16);
    for (size_t i = 0; i < 32 / LANES; i++) {
        w[i] = four_bits(low_nibbles(q[i]), 0, d0, m0);
        w[32 / LANES + i] = four_bits(q[i] >> 4, 0, d1, m1);
    }
}

/* As many of 32 bytes as a vector holds. Types of more than four bits put theirs together from these, which is less work than
 * lane by lane, and read them again as bytes. */
enum { GROUP = LANES >= 8 ? 32 : 16 };
typedef uint8_t group __attribute__((vector_size(GROUP)));
typedef uint16_t group_of_shorts __attribute__((vector_size(GROUP)));

INLINE group load_group(const uint8_t *p)
{
    group g;
    memcpy(&g, p, sizeof g);
    return g;
}

/* Bits of each byte moved up by `up`, or down if it is negative; bits of the byte beside it may come in. */
INLINE group shifted(group g, int up)
{
    return up >= 0 ? (group)((group_of_shorts)g << up) : (group)((group_of_shorts)g >> -up);
}

/* As q4_K, with fifth bits (32) before the nibbles (128): byte i has those of numbers i, 32 + i, 64 + i, ... from bit 0 up. */
INLINE void read_q5_k(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    const int bit = (int)(2 * piece);
    uint8_t bytes[64];
    for (size_t i = 0; i < 32; i += GROUP) {
        const group h = load_group(block + 16 + i), q = load_group(block + 48 + piece * 32 + i);
        const group low = (q & 15) | (shifted(h, 4 - bit) & 16), high = (shifted(q, -4) & 15) | (shifted(h, 3 - bit) & 16);
        memcpy(bytes + i, &low, sizeof low);
        memcpy(bytes + 32 + i, &high, sizeof high);
    }
    for (size_t i = 0; i < 4; i++) {
        const vec d = broadcast(s->d[2 * piece + i / 2]), m = broadcast(s->m[8 + 2 * piece + i / 2]);
        ivec q[16 / LANES];
        ints_of_bytes(q, bytes + i * 16);
        for (size_t j = 0; j < 16 / LANES; j++) w[i * (16 / LANES) + j] = floats_of(q[j]) * d + m;
    }
}

/* Low halves (128), upper two bits (64), signed scales of each 16 numbers (16), d (f16): (q - 32) (scale d). Half of a block is
 * 128 numbers: 64 bytes of low halves, those of numbers 64-127 on top of those of 0-63, and 32 bytes of upper bits, byte i having
 * those of numbers i, 32 + i, 64 + i, 96 + i. */
INLINE void open_q6_k(scales *s, const uint8_t *block)
{
    const vec d = broadcast_half(block + 208);
    ivec q[16 / LANES];
    ints_of_signed_bytes(q, block + 192);
    for (size_t i = 0; i < 16 / LANES; i++) store(s->d + i * LANES, floats_of(q[i]) * d);
}

INLINE void read_q6_k(vec *w, const scales *s, const uint8_t *block, size_t piece)
{
    const uint8_t *low = block + piece / 2 * 64, *high = block + 128 + piece / 2 * 32;
    const int bit = (int)(piece % 2 * 4);
    uint8_t bytes[64];
    for (size_t i = 0; i < 64; i += GROUP) {
        const group upper = shifted(load_group(high + i % 32), 4 - bit - (int)(i / 32 * 2)) & 48;
        const group q = ((shifted(load_group(low + i), -bit) & 15) | upper) - 32;
        memcpy(bytes + i, &q, sizeof q);
    }
    for (size_t i = 0; i < 4; i++) {
        const vec d = broadcast(s->d[piece * 4 + i]);
        ivec q[16 / LANES];
        ints_of_signed_bytes(q, bytes + i * 16);
        for (size_t j = 0; j < 16 / LANES; j++) w[i * (16 / LANES) + j] = floats_of(q[j]) * d;
    }
}

static const layout f32 = {1, sizeof(float), SINGLES, NULL, read_f32};
static const layout f16 = {1, HALF_BYTES, SINGLES, NULL, read_f16};
static const layout bf16 = {1, HALF_BYTES, SINGLES, NULL, read_bf16};
static const layout q4_0 = {32, 18, 32, NULL, read_q4_0};
static const layout q4_1 = {32, 20, 32, NULL, read_q4_1};
static const layout q5_0 = {32, 22, 32, NULL, read_q5_0};
static const layout q5_1 = {32, 24, 32, NULL, read_q5_1};
static const layout q8_0 = {32, 34, 32, NULL, read_q8_0};
static const layout q4_k = {256, 144, 64, open_q4_k, read_q4_k};
static const layout q5_k = {256, 176, 64, open_q4_k, read_q5_k};
static const layout q6_k = {256, 210, 64, open_q6_k, read_q6_k};

#endif
