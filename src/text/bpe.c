/* bpe.c: the alphabet, and the merges as a table from a pair of tokens to its rank and result. */
#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/sizes.h"
#include "base/status.h"
#include "text/unicode.h"

typedef struct sp_bpe_rule {
    uint64_t pair; /* pair_of, which is never 0; 0: empty */
    sp_merge merge;
} rule;

/* ---- the alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and on, in order ------------------- */

static bool is_own_letter(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad && byte <= 0xff);
}

/* The letter of a byte as UTF-8: 1 or 2 bytes. The others are 0x00-0x20, 0x7f-0xa0 and 0xad. */
size_t sp_bpe_letter(char out[2], unsigned char byte)
{
    unsigned letter = byte;
    if (!is_own_letter(byte)) letter = 0x100 + (byte <= 0x20 ? byte : byte == 0xad ? 67u : byte - 0x7fu + 33);
    if (letter < 0x80) {
        out[0] = (char)letter;
        return 1;
    }
    out[0] = (char)(0xc0 | letter >> 6);
    out[1] = (char)(0x80 | (letter & 0x3f));
    return 2;
}

/* -1: no letter of the alphabet. */
static int byte_of_letter(uint32_t letter)
{
    if (letter < 0x100) return is_own_letter(letter) ? (int)letter : -1;
    unsigned i = letter - 0x100;
    return i <= 0x20 ? (int)i : i < 67 ? (int)(i - 33 + 0x7f) : i == 67 ? 0xad : -1;
}

sp_status sp_bpe_add_bytes(sp_buffer *out, sp_string token)
{
    size_t before = out->n_bytes;
    if (sp_utf8_valid_prefix(token.bytes, token.n_bytes) < token.n_bytes) return sp_buffer_add(out, token.bytes, token.n_bytes);
    for (size_t i = 0; i < token.n_bytes; i += sp_utf8_length(token.bytes[i])) {
        int byte = byte_of_letter(sp_utf8_decode(token.bytes + i));
        char c = (char)byte;
        if (byte < 0) {
            out->n_bytes = before;
            return sp_buffer_add(out, token.bytes, token.n_bytes);
        }
        sp_status st = sp_buffer_add(out, &c, 1);
        if (st) return st;
    }
    return SP_OK;
}

int32_t sp_bpe_find(const sp_vocabulary *vocabulary, const char *piece, size_t n_bytes)
{
    char letters[1024];
    size_t n = 0;
    if (n_bytes > sizeof letters / 2) return -1; /* no vocabulary has a longer word */
    for (size_t i = 0; i < n_bytes; i++) n += sp_bpe_letter(letters + n, (unsigned char)piece[i]);
    int32_t token = sp_vocabulary_find(vocabulary, letters, n);
    return token >= 0 && sp_vocabulary_is_special(vocabulary, token) ? -1 : token;
}

/* ---- merges ------------------------------------------------------------------------------------------------------------- */

static uint64_t pair_of(int32_t left, int32_t right)
{
    return ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) + 1;
}

static rule *find_rule(const sp_bpe *bpe, uint64_t pair)
{
    size_t i = (pair * 0x9e3779b97f4a7c15u) >> 32 & bpe->rule_mask; /* Fibonacci hashing */
    while (bpe->rules[i].pair != 0 && bpe->rules[i].pair != pair) i = (i + 1) & bpe->rule_mask;
    return &bpe->rules[i];
}

typedef struct merge {
    sp_string left, right;
} merge;

static sp_status fail_merge(const char *where, size_t index, merge m, const char *what)
{
    return sp_fail(SP_ERR_FORMAT, "%s: merge %zu \"%.*s %.*s\" %s; fetch or convert the model again", where, index,
                   (int)(m.left.n_bytes < 64 ? m.left.n_bytes : 64), m.left.bytes,
                   (int)(m.right.n_bytes < 64 ? m.right.n_bytes : 64), m.right.bytes, what);
}

/* "ab c" -> "ab", "c"; without a space, the right part is empty. */
static merge split_merge(sp_string s)
{
    const char *space = s.n_bytes > 2 ? memchr(s.bytes + 1, ' ', s.n_bytes - 2) : NULL;
    size_t n_left = space ? (size_t)(space - s.bytes) : s.n_bytes;
    return (merge){{s.bytes, n_left}, {space ? space + 1 : "", space ? s.n_bytes - n_left - 1 : 0}};
}

/* Tokens of "ab", "c" and "abc". `joined` holds at least the merge's bytes. */
static sp_status read_merge(int32_t tokens[3], char *joined, const char *where, const sp_vocabulary *vocabulary, merge m,
                            size_t index)
{
    if (m.left.n_bytes == 0 || m.right.n_bytes == 0) return fail_merge(where, index, m, "is no pair of tokens");
    memcpy(joined, m.left.bytes, m.left.n_bytes);
    memcpy(joined + m.left.n_bytes, m.right.bytes, m.right.n_bytes);
    tokens[0] = sp_vocabulary_find(vocabulary, joined, m.left.n_bytes);
    tokens[1] = sp_vocabulary_find(vocabulary, joined + m.left.n_bytes, m.right.n_bytes);
    tokens[2] = sp_vocabulary_find(vocabulary, joined, m.left.n_bytes + m.right.n_bytes);
    if (tokens[0] < 0 || tokens[1] < 0) return fail_merge(where, index, m, "has a part that is no token");
    if (tokens[2] < 0) return fail_merge(where, index, m, "makes a string that is no token");
    return SP_OK;
}

static sp_status add_merges(sp_bpe *bpe, char *joined, const char *where, const sp_vocabulary *vocabulary, const sp_string *merges,
                            const sp_string *rights, size_t n_merges)
{
    for (size_t i = 0; i < n_merges; i++) {
        int32_t tokens[3];
        merge m = rights ? (merge){merges[i], rights[i]} : split_merge(merges[i]);
        sp_status st = read_merge(tokens, joined, where, vocabulary, m, i);
        if (st) return st;
        rule *r = find_rule(bpe, pair_of(tokens[0], tokens[1]));
        if (r->pair) return fail_merge(where, i, m, "is there twice");
        *r = (rule){pair_of(tokens[0], tokens[1]), {(uint32_t)i, tokens[2]}};
        bpe->hash = XXH3_64bits_withSeed(tokens, sizeof tokens, bpe->hash);
    }
    return SP_OK;
}

sp_status sp_bpe_create(sp_bpe *out, const char *where, const sp_vocabulary *vocabulary, const sp_string *merges,
                        const sp_string *rights, size_t n_merges)
{
    size_t n_slots = 16, longest = 1;
    *out = (sp_bpe){0};
    if (n_merges > INT32_MAX / 4)
        return sp_fail(SP_ERR_FORMAT, "%s: %zu merges; at most %d are possible", where, n_merges, INT32_MAX / 4);
    while (n_slots < 2 * n_merges) n_slots *= 2;
    for (size_t i = 0; i < n_merges; i++) longest = sp_larger(longest, merges[i].n_bytes + (rights ? rights[i].n_bytes : 0));
    out->rule_mask = n_slots - 1;
    out->rules = calloc(n_slots, sizeof *out->rules);
    char *joined = malloc(longest);
    sp_status st = out->rules && joined ? add_merges(out, joined, where, vocabulary, merges, rights, n_merges)
                                        : sp_fail_no_memory(n_slots * sizeof *out->rules + longest);
    free(joined);
    for (unsigned byte = 0; byte < 256; byte++) {
        char letter[2];
        out->byte_tokens[byte] = sp_vocabulary_find(vocabulary, letter, sp_bpe_letter(letter, (unsigned char)byte));
    }
    if (st) sp_bpe_clear(out);
    return st;
}

void sp_bpe_clear(sp_bpe *bpe)
{
    free(bpe->rules);
    *bpe = (sp_bpe){0};
}

static bool find_merge(sp_merge *out, const void *rules, const char *text, const sp_symbol *left, const sp_symbol *right)
{
    (void)text;
    const rule *r = find_rule(rules, pair_of(left->token, right->token));
    *out = r->merge;
    return r->pair != 0;
}

void sp_bpe_run(sp_merger *merger, const sp_bpe *bpe, const char *text)
{
    sp_merger_run(merger, find_merge, bpe, text);
}

sp_status sp_bpe_merge(sp_merger *merger, const sp_bpe *bpe, const char *piece, size_t n_bytes)
{
    sp_status st = sp_merger_start(merger, n_bytes);
    if (st) return st;
    for (size_t i = 0; i < n_bytes; i++) {
        int32_t token = bpe->byte_tokens[(unsigned char)piece[i]];
        if (token >= 0) sp_merger_add(merger, i, 1, token);
    }
    sp_bpe_run(merger, bpe, piece);
    return SP_OK;
}
