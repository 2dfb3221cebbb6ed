/* pattern.c: Oniguruma's dialect, atom by atom, as PCRE2 understands it.
 *
 * What means the same in both goes through; what PCRE2 reads otherwise is spelt out; what has no counterpart here is refused, so
 * that no pattern is ever run with another meaning: \s     Unicode's White_Space (PCRE2 adds U+180E) \p{..} a category of Unicode
 * 16, which Hugging Face's engine knows and the PCRE2 of a stable distribution does not: characters that are new since Unicode 14
 * are listed behind it; with a newer PCRE2 the list repeats what it knows ^ $    match at line ends {2,3}+ repeats what repeats:
 * only the signs * + ? take a + to be possessive
 *   {,3}   is {0,3}
 * Without regard to case some neighbours match one character ("ss" and U+00DF) there, and never here: such neighbours are refused.
 */
#include "text/pattern.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "text/unicode.h"

#define SPACE "\\x{09}-\\x{0d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NO_SPACE                                                                                                                   \
    "\\x{00}-\\x{08}\\x{0e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"          \
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"

/* Characters whose category is new since Unicode 14, by category. tests/oracle/tokenizer.py compares every character. */
static const struct new_characters {
    uint32_t first, last;
    char category[3];
} new_characters[] = {
    {0x1c8a, 0x1c8a, "Ll"},   {0xa7cd, 0xa7cd, "Ll"},   {0xa7db, 0xa7db, "Ll"},   {0x10d70, 0x10d85, "Ll"},
    {0x1df25, 0x1df2a, "Ll"}, {0x10d4e, 0x10d4e, "Lm"}, {0x10d6f, 0x10d6f, "Lm"}, {0x16d40, 0x16d42, "Lm"},
    {0x16d6b, 0x16d6c, "Lm"}, {0x1e030, 0x1e06d, "Lm"}, {0x1e4eb, 0x1e4eb, "Lm"}, {0x105c0, 0x105f3, "Lo"},
    {0x10d4a, 0x10d4d, "Lo"}, {0x10d4f, 0x10d4f, "Lo"}, {0x10ec2, 0x10ec4, "Lo"}, {0x1123f, 0x11240, "Lo"},
    {0x11380, 0x11389, "Lo"}, {0x1138b, 0x1138b, "Lo"}, {0x1138e, 0x1138e, "Lo"}, {0x11390, 0x113b5, "Lo"},
    {0x113b7, 0x113b7, "Lo"}, {0x113d1, 0x113d1, "Lo"}, {0x113d3, 0x113d3, "Lo"}, {0x11bc0, 0x11be0, "Lo"},
    {0x11f02, 0x11f02, "Lo"}, {0x11f04, 0x11f10, "Lo"}, {0x11f12, 0x11f33, "Lo"}, {0x1342f, 0x1342f, "Lo"},
    {0x13441, 0x13446, "Lo"}, {0x13460, 0x143fa, "Lo"}, {0x16100, 0x1611d, "Lo"}, {0x16d43, 0x16d6a, "Lo"},
    {0x18cff, 0x18cff, "Lo"}, {0x1b132, 0x1b132, "Lo"}, {0x1b155, 0x1b155, "Lo"}, {0x1e4d0, 0x1e4ea, "Lo"},
    {0x1e5d0, 0x1e5ed, "Lo"}, {0x1e5f0, 0x1e5f0, "Lo"}, {0x2b739, 0x2b739, "Lo"}, {0x2ebf0, 0x2ee5d, "Lo"},
    {0x31350, 0x323af, "Lo"}, {0x1c89, 0x1c89, "Lu"},   {0xa7cb, 0xa7cc, "Lu"},   {0xa7da, 0xa7da, "Lu"},
    {0xa7dc, 0xa7dc, "Lu"},   {0x10d50, 0x10d65, "Lu"}, {0xcf3, 0xcf3, "Mc"},     {0x113b8, 0x113ba, "Mc"},
    {0x113c2, 0x113c2, "Mc"}, {0x113c5, 0x113c5, "Mc"}, {0x113c7, 0x113ca, "Mc"}, {0x113cc, 0x113cd, "Mc"},
    {0x113cf, 0x113cf, "Mc"}, {0x1171e, 0x1171e, "Mc"}, {0x11f03, 0x11f03, "Mc"}, {0x11f34, 0x11f35, "Mc"},
    {0x11f3e, 0x11f3f, "Mc"}, {0x11f41, 0x11f41, "Mc"}, {0x1612a, 0x1612c, "Mc"}, {0x897, 0x897, "Mn"},
    {0xece, 0xece, "Mn"},     {0x10d69, 0x10d6d, "Mn"}, {0x10efc, 0x10eff, "Mn"}, {0x11241, 0x11241, "Mn"},
    {0x113bb, 0x113c0, "Mn"}, {0x113ce, 0x113ce, "Mn"}, {0x113d0, 0x113d0, "Mn"}, {0x113d2, 0x113d2, "Mn"},
    {0x113e1, 0x113e2, "Mn"}, {0x11f00, 0x11f01, "Mn"}, {0x11f36, 0x11f3a, "Mn"}, {0x11f40, 0x11f40, "Mn"},
    {0x11f42, 0x11f42, "Mn"}, {0x11f5a, 0x11f5a, "Mn"}, {0x13440, 0x13440, "Mn"}, {0x13447, 0x13455, "Mn"},
    {0x1611e, 0x16129, "Mn"}, {0x1612d, 0x1612f, "Mn"}, {0x1e08f, 0x1e08f, "Mn"}, {0x1e4ec, 0x1e4ef, "Mn"},
    {0x1e5ee, 0x1e5ef, "Mn"}, {0x10d40, 0x10d49, "Nd"}, {0x116d0, 0x116e3, "Nd"}, {0x11bf0, 0x11bf9, "Nd"},
    {0x11f50, 0x11f59, "Nd"}, {0x16130, 0x16139, "Nd"}, {0x16d70, 0x16d79, "Nd"}, {0x1ccf0, 0x1ccf9, "Nd"},
    {0x1e4f0, 0x1e4f9, "Nd"}, {0x1e5f1, 0x1e5fa, "Nd"}, {0x1d2c0, 0x1d2d3, "No"}, {0x10d6e, 0x10d6e, "Pd"},
    {0x1b4e, 0x1b4f, "Po"},   {0x1b7f, 0x1b7f, "Po"},   {0x113d4, 0x113d5, "Po"}, {0x113d7, 0x113d8, "Po"},
    {0x11b00, 0x11b09, "Po"}, {0x11be1, 0x11be1, "Po"}, {0x11f43, 0x11f4f, "Po"}, {0x16d6d, 0x16d6f, "Po"},
    {0x1e5ff, 0x1e5ff, "Po"}, {0x10d8e, 0x10d8f, "Sm"}, {0x2427, 0x2429, "So"},   {0x2ffc, 0x2fff, "So"},
    {0x31e4, 0x31e5, "So"},   {0x31ef, 0x31ef, "So"},   {0x1cc00, 0x1ccef, "So"}, {0x1cd00, 0x1ceb3, "So"},
    {0x1f6dc, 0x1f6dc, "So"}, {0x1f774, 0x1f776, "So"}, {0x1f77b, 0x1f77f, "So"}, {0x1f7d9, 0x1f7d9, "So"},
    {0x1f8b2, 0x1f8bb, "So"}, {0x1f8c0, 0x1f8c1, "So"}, {0x1fa75, 0x1fa77, "So"}, {0x1fa87, 0x1fa89, "So"},
    {0x1fa8f, 0x1fa8f, "So"}, {0x1faad, 0x1faaf, "So"}, {0x1fabb, 0x1fabf, "So"}, {0x1fac6, 0x1fac6, "So"},
    {0x1face, 0x1facf, "So"}, {0x1fada, 0x1fadc, "So"}, {0x1fadf, 0x1fadf, "So"}, {0x1fae8, 0x1fae9, "So"},
    {0x1faf7, 0x1faf8, "So"}, {0x1fbcb, 0x1fbef, "So"},
};
enum { N_NEW = sizeof new_characters / sizeof *new_characters };

enum { MAX_DEPTH = 64, MAX_PATTERN_BYTES = 1 << 14 };

typedef struct translator {
    sp_buffer *out;
    const char *where, *pattern;
    size_t n_bytes, at;
    size_t groups[MAX_DEPTH]; /* where in `out` each open group begins */
    bool caseless[MAX_DEPTH + 1];
    size_t depth;
    size_t atom;    /* where in `out` the last atom begins; NONE: nothing to repeat */
    char neighbour; /* the last atom, if it was a letter without regard to case; 0 */
    sp_status status;
} translator;

#define NONE SIZE_MAX

static void refuse(translator *t, size_t from, const char *what)
{
    size_t n = t->at > from && t->at <= t->n_bytes ? t->at - from : t->n_bytes - from;
    if (t->status) return;
    t->status = sp_fail(SP_ERR_UNSUPPORTED,
                        "%s: pattern of the pre-tokenizer, byte %zu: \"%.*s\": %s is not known here; known are characters, sets, "
                        "\\p{CATEGORY}, \\s, \\d, groups, alternatives, look-around and repetition",
                        t->where, from, (int)(n < 32 ? n : 32), t->pattern + from, what);
}

static void add(translator *t, const char *string)
{
    if (!t->status) t->status = sp_buffer_add_string(t->out, string);
}

static void add_code(translator *t, uint32_t code)
{
    if (!t->status) t->status = sp_buffer_printf(t->out, "\\x{%02x}", (unsigned)code);
}

static int peek(const translator *t, size_t ahead)
{
    return t->at + ahead < t->n_bytes ? (unsigned char)t->pattern[t->at + ahead] : -1;
}

/* ---- characters and categories ---------------------------------------------------------------------------------------------- */

static bool is_alphanumeric(int c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* "L" or "Lu", whose characters hold still but for additions. Control characters and the unassigned do not. */
static bool is_category(const char *name, size_t n)
{
    static const char known[] = "L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp ";
    char padded[5] = {0};
    if (n < 1 || n > 2) return false;
    memcpy(padded, name, n);
    padded[n] = ' ';
    const char *at = strstr(known, padded);
    return at && (at == known || at[-1] == ' ');
}

/* The members of a category, for the inside of a set. */
static void add_category(translator *t, const char *name, size_t n)
{
    if (!t->status) t->status = sp_buffer_printf(t->out, "\\p{%.*s}", (int)n, name);
    for (size_t i = 0; i < N_NEW; i++) {
        const struct new_characters *c = &new_characters[i];
        if (memcmp(c->category, name, n) != 0) continue;
        add_code(t, c->first);
        if (c->last > c->first) add(t, "-"), add_code(t, c->last);
    }
}

/* Behind "\p" or "\P": "{Lu}", "{^Lu}". *inverse may already be set. */
static void read_property(translator *t, size_t from, const char **name, size_t *n, bool *inverse)
{
    const char *start = t->pattern + t->at, *end = peek(t, 0) == '{' ? memchr(start, '}', t->n_bytes - t->at) : NULL;
    *n = 0;
    if (!end) {
        refuse(t, from, "this property");
        return;
    }
    t->at += (size_t)(end - start) + 1;
    start++;
    if (start < end && *start == '^') *inverse = !*inverse, start++;
    *name = start;
    *n = (size_t)(end - start);
    if (!is_category(*name, *n)) refuse(t, from, "this property");
}

static uint32_t read_hex(translator *t, size_t from, size_t max_digits)
{
    uint32_t code = 0;
    size_t n = 0;
    for (; n < max_digits; n++, t->at++) {
        int c = peek(t, 0), digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (c < 0 || digit < 0) break;
        code = code << 4 | (uint32_t)digit;
    }
    if (n == 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) refuse(t, from, "this character");
    return code;
}

/* One escape that stands for a set or a character. In a set what it stands for is added as members. */
static void read_escape(translator *t, bool in_set)
{
    size_t from = t->at++, n;
    int c = peek(t, 0);
    const char *name = NULL;
    bool inverse = c == 'P' || c == 'D';
    char literal[3] = {'\\', (char)c, 0};
    t->at++;
    switch (c) {
    case 's':
        add(t, in_set ? SPACE : "[" SPACE "]");
        return;
    case 'S':
        add(t, in_set ? NO_SPACE : "[^" SPACE "]");
        return;
    case 'd':
    case 'D':
    case 'p':
    case 'P':
        if (c == 'd' || c == 'D')
            name = "Nd", n = 2;
        else
            read_property(t, from, &name, &n, &inverse);
        if (inverse && in_set) refuse(t, from, "a complement inside a set");
        if (t->status) return;
        if (!in_set) add(t, inverse ? "[^" : "[");
        add_category(t, name, n);
        if (!in_set) add(t, "]");
        return;
    case 'r':
    case 'n':
    case 't':
    case 'f':
        add(t, literal);
        return;
    case 'v':
        add_code(t, 0x0b);
        return;
    case 'u':
        add_code(t, read_hex(t, from, 4));
        return;
    case 'x':
        if (peek(t, 0) == '{') {
            t->at++;
            uint32_t code = read_hex(t, from, 6);
            if (peek(t, 0) != '}') refuse(t, from, "this character");
            t->at++;
            add_code(t, code);
        } else { /* a byte, not a character, from 0x80 on */
            uint32_t code = read_hex(t, from, 2);
            if (code >= 0x80) refuse(t, from, "a byte");
            add_code(t, code);
        }
        return;
    case 'A':
    case 'z':
    case 'Z':
        if (in_set) refuse(t, from, "this escape");
        add(t, literal);
        return;
    default:
        if (c < 0x21 || c > 0x7e || is_alphanumeric(c)) refuse(t, from, "this escape");
        add(t, literal);
    }
}

static void read_character(translator *t)
{
    size_t n = sp_utf8_length(t->pattern[t->at]);
    if (!t->status) t->status = sp_buffer_add(t->out, t->pattern + t->at, n);
    t->at += n;
}

/* ---- sets, groups, repetition -------------------------------------------------------------------------------------------------
 */

/* Oniguruma nests sets and intersects them; here a set is a list. */
static void read_set(translator *t)
{
    size_t from = t->at++;
    add(t, "[");
    if (peek(t, 0) == '^') add(t, "^"), t->at++;
    if (peek(t, 0) == ']') refuse(t, from, "a set that begins with ]");
    while (!t->status && peek(t, 0) != ']') {
        int c = peek(t, 0);
        if (c < 0)
            refuse(t, from, "a set without an end");
        else if (c == '[')
            refuse(t, from, "a set inside a set");
        else if (c == '&' && peek(t, 1) == '&')
            refuse(t, from, "an intersection of sets");
        else if (c == '\\')
            read_escape(t, true);
        else
            read_character(t);
    }
    t->at++;
    add(t, "]");
}

static void open_group(translator *t)
{
    static const char *const kinds[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"};
    size_t n = 0;
    bool caseless = t->caseless[t->depth];
    const char *rest = t->pattern + t->at;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds && !n; i++) {
        size_t length = strlen(kinds[i]);
        if (length > t->n_bytes - t->at || memcmp(rest, kinds[i], length) != 0) continue;
        n = length;
        if (kinds[i][2] == 'i') caseless = true;
        if (kinds[i][2] == '-') caseless = false;
    }
    if (!n && peek(t, 1) == '?') refuse(t, t->at, "this kind of group");
    if (t->depth == MAX_DEPTH) refuse(t, t->at, "nesting so deep");
    if (t->status) return;
    t->groups[t->depth++] = t->out->n_bytes;
    t->caseless[t->depth] = caseless;
    if (n)
        t->status = sp_buffer_add(t->out, rest, n);
    else
        add(t, "(?:"); /* what a group captures nobody reads, and a pattern cannot refer to it */
    t->at += n ? n : 1;
    t->atom = NONE;
}

static void close_group(translator *t)
{
    if (t->depth == 0) {
        refuse(t, t->at, "a ) without its (");
        return;
    }
    t->atom = t->groups[--t->depth];
    add(t, ")");
    t->at++;
}

/* "{2}", "{2,}", "{2,3}", "{,3}": its length; 0: the brace stands for itself. */
static size_t interval_length(const translator *t, bool *ranged, bool *from_zero)
{
    size_t i = 1, digits = 0;
    for (; peek(t, i) >= '0' && peek(t, i) <= '9'; i++) digits++;
    *ranged = peek(t, i) == ',';
    *from_zero = digits == 0;
    if (*ranged)
        for (i++; peek(t, i) >= '0' && peek(t, i) <= '9'; i++) digits++;
    return digits && peek(t, i) == '}' ? i + 1 : 0;
}

static void insert(translator *t, size_t at, const char *string)
{
    size_t n = strlen(string), tail = t->out->n_bytes - at;
    add(t, string);
    if (t->status) return;
    memmove(t->out->bytes + at + n, t->out->bytes + at, tail);
    memcpy(t->out->bytes + at, string, n);
}

static void read_interval(translator *t, size_t n, bool ranged, bool from_zero)
{
    if (t->atom == NONE || (!ranged && peek(t, n) == '?')) {
        refuse(t, t->at, "this repetition");
        return;
    }
    add(t, from_zero ? "{0" : "{");
    if (!t->status) t->status = sp_buffer_add(t->out, t->pattern + t->at + 1, n - 1);
    t->at += n;
    if (peek(t, 0) == '?') add(t, "?"), t->at++;
    if (peek(t, 0) != '+') return;
    insert(t, t->atom, "(?:");
    add(t, ")+");
    t->at++;
    t->atom = NONE;
}

static void read_sign(translator *t)
{
    char sign[2] = {t->pattern[t->at], 0};
    if (t->atom == NONE) {
        refuse(t, t->at, "this repetition");
        return;
    }
    add(t, sign);
    t->at++;
    if (peek(t, 0) == '?')
        add(t, "?"), t->at++;
    else if (peek(t, 0) == '+')
        add(t, "+"), t->at++;
    t->atom = NONE;
}

/* ---- the pattern --------------------------------------------------------------------------------------------------------------
 */

/* A character that stands for itself; without regard to case only ASCII, and no two that could be one. */
static void read_literal(translator *t)
{
    static const char *const pairs[] = {"ss", "ff", "fi", "fl", "st"};
    int c = peek(t, 0);
    char letter = t->caseless[t->depth] ? (char)(c | 32) : 0;
    if (letter && c >= 0x80) refuse(t, t->at, "a character beyond ASCII without regard to case");
    for (size_t i = 0; letter && i < sizeof pairs / sizeof *pairs; i++)
        if (t->neighbour == pairs[i][0] && letter == pairs[i][1]) refuse(t, t->at, "such neighbours without regard to case");
    t->neighbour = letter;
    if (c == '{' || c == '}' || c == ']') add(t, "\\"); /* PCRE2 should not look for more */
    read_character(t);
}

static void read_atom(translator *t)
{
    int c = peek(t, 0);
    size_t start = t->out->n_bytes, n;
    bool ranged, from_zero;
    char neighbour = t->neighbour;
    t->neighbour = 0;
    if (c == '*' || c == '+' || c == '?') {
        read_sign(t);
        return;
    }
    if (c == '{' && (n = interval_length(t, &ranged, &from_zero))) {
        read_interval(t, n, ranged, from_zero);
        return;
    }
    if (c == '(') {
        open_group(t);
        return;
    }
    if (c == ')') {
        close_group(t);
        return;
    }
    if (c == '|') {
        add(t, "|");
        t->at++;
        t->atom = NONE;
        return;
    }
    t->atom = start;
    if (c == '^' || c == '$') {
        add(t, c == '^' ? "(?m:^)" : "(?m:$)");
        t->at++;
    } else if (c == '[') {
        read_set(t);
    } else if (c == '\\') {
        read_escape(t, false);
    } else {
        t->neighbour = neighbour;
        read_literal(t);
    }
}

sp_status sp_pattern_translate(sp_buffer *out, const char *where, sp_string pattern)
{
    translator t = {.out = out, .where = where, .pattern = pattern.bytes, .n_bytes = pattern.n_bytes, .atom = NONE};
    if (pattern.n_bytes > MAX_PATTERN_BYTES)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: a pattern of the pre-tokenizer has %zu bytes; at most %d are read", where,
                       pattern.n_bytes, MAX_PATTERN_BYTES);
    sp_buffer_clear(out);
    add(&t, "");
    while (!t.status && t.at < t.n_bytes) read_atom(&t);
    if (!t.status && t.depth) refuse(&t, 0, "a ( without its )");
    return t.status;
}
