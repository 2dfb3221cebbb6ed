/* vocabulary.c: one block of strings, one hash table, one sorted list.
 * A vocabulary of 262 144 tokens must load in a blink, so there is no allocation a token: seven blocks in all. */
#define _GNU_SOURCE /* qsort_r */
#include "text/vocabulary.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/status.h"

sp_string sp_vocabulary_string(const sp_vocabulary *v, int32_t token)
{
    uint32_t start = v->starts[token];
    return (sp_string){v->text + start, v->starts[token + 1] - start};
}

bool sp_vocabulary_is_special(const sp_vocabulary *v, int32_t token)
{
    return v->types[token] == SP_TOKEN_CONTROL || v->types[token] == SP_TOKEN_UNKNOWN;
}

static bool is_added(const sp_vocabulary *v, int32_t token)
{
    return sp_vocabulary_is_special(v, token) || v->types[token] == SP_TOKEN_USER_DEFINED;
}

/* The slot that holds the string, or the empty one where it belongs. */
static uint64_t *find_slot(const sp_vocabulary *v, uint32_t hash, const char *bytes, size_t n_bytes)
{
    for (size_t i = hash & v->slot_mask;; i = (i + 1) & v->slot_mask) {
        uint64_t slot = v->slots[i];
        if (slot == 0) return &v->slots[i];
        if (slot >> 32 != hash) continue;
        sp_string s = sp_vocabulary_string(v, (int32_t)((uint32_t)slot - 1));
        if (s.n_bytes == n_bytes && memcmp(s.bytes, bytes, n_bytes) == 0) return &v->slots[i];
    }
}

static uint32_t hash_of(const char *bytes, size_t n_bytes)
{
    return (uint32_t)XXH3_64bits(bytes, n_bytes);
}

int32_t sp_vocabulary_find(const sp_vocabulary *v, const char *bytes, size_t n_bytes)
{
    if (n_bytes == 0 || n_bytes > v->max_bytes) return -1;
    return (int32_t)((uint32_t)*find_slot(v, hash_of(bytes, n_bytes), bytes, n_bytes) - 1); /* empty: 0 - 1 */
}

static sp_status allocate(sp_vocabulary *v, size_t n_text, size_t n)
{
    size_t n_slots = 16;
    while (n_slots < 2 * n) n_slots *= 2;
    v->slot_mask = n_slots - 1;
    v->text = malloc(n_text + 1);
    v->starts = malloc((n + 1) * sizeof *v->starts);
    v->types = malloc(n);
    v->flags = calloc(n, 1);
    v->slots = calloc(n_slots, sizeof *v->slots);
    if (v->text && v->starts && v->types && v->flags && v->slots) return SP_OK;
    return sp_fail_no_memory(n_text + n * 10 + n_slots * sizeof *v->slots);
}

static sp_status total_bytes(size_t *total, const char *where, const sp_string *tokens, size_t n)
{
    *total = 0;
    if (n == 0) return sp_fail(SP_ERR_FORMAT, "%s: the vocabulary is empty; fetch the file again", where);
    if (n > INT32_MAX / 2)
        return sp_fail(SP_ERR_FORMAT, "%s: a vocabulary of %zu tokens; at most %d are possible", where, n, INT32_MAX / 2);
    for (size_t i = 0; i < n; i++) {
        if (tokens[i].n_bytes > UINT32_MAX - *total)
            return sp_fail(SP_ERR_FORMAT, "%s: the vocabulary's strings take more than 4 GiB; fetch the file again", where);
        *total += tokens[i].n_bytes;
    }
    return SP_OK;
}

static sp_status copy_strings(sp_vocabulary *v, const char *where, const sp_string *tokens, const int32_t *types,
                              const uint8_t *flags, size_t n)
{
    uint32_t end = 0;
    v->n_tokens = n;
    v->starts[0] = 0;
    for (size_t i = 0; i < n; i++) {
        if (types && (types[i] < 0 || types[i] > SP_TOKEN_BYTE))
            return sp_fail(SP_ERR_FORMAT, "%s: token %zu has type %d; types are %d to %d", where, i, (int)types[i], 0,
                           SP_TOKEN_BYTE);
        if (tokens[i].n_bytes) memcpy(v->text + end, tokens[i].bytes, tokens[i].n_bytes);
        v->starts[i + 1] = end += (uint32_t)tokens[i].n_bytes;
        v->types[i] = types && types[i] ? (uint8_t)types[i] : SP_TOKEN_NORMAL;
        if (flags) v->flags[i] = flags[i];
        if (tokens[i].n_bytes > v->max_bytes) v->max_bytes = tokens[i].n_bytes;
    }
    return SP_OK;
}

static sp_status index_string(sp_vocabulary *v, const char *where, int32_t token)
{
    sp_string s = sp_vocabulary_string(v, token);
    uint32_t hash = hash_of(s.bytes, s.n_bytes);
    uint64_t *slot = find_slot(v, hash, s.bytes, s.n_bytes);
    int32_t other = (int32_t)((uint32_t)*slot - 1);
    if (*slot && is_added(v, other) == is_added(v, token))
        return sp_fail(SP_ERR_FORMAT, "%s: tokens %d and %d are both \"%.*s\"; convert the model again", where, (int)other,
                       (int)token, (int)(s.n_bytes < 64 ? s.n_bytes : 64), s.bytes);
    if (!*slot) *slot = (uint64_t)hash << 32 | (uint32_t)(token + 1);
    return SP_OK;
}

/* Added tokens come last and give way: a user-defined U+00E9 is that character, and the same string among byte-level
 * tokens is a letter of their alphabet, the byte 0xe9. */
static sp_status index_strings(sp_vocabulary *v, const char *where)
{
    sp_status st = SP_OK;
    for (int pass = 0; pass < 2; pass++)
        for (int32_t i = 0; (size_t)i < v->n_tokens && !st; i++) {
            if (is_added(v, i) == (pass == 1) && v->starts[i] != v->starts[i + 1]) st = index_string(v, where, i);
        }
    return st;
}

static int compare_strings(const void *a, const void *b, void *vocabulary)
{
    sp_string x = sp_vocabulary_string(vocabulary, *(const int32_t *)a), y = sp_vocabulary_string(vocabulary, *(const int32_t *)b);
    int order = memcmp(x.bytes, y.bytes, x.n_bytes < y.n_bytes ? x.n_bytes : y.n_bytes);
    return order ? order : x.n_bytes < y.n_bytes ? -1 : x.n_bytes > y.n_bytes;
}

/* Those whose SP_ADDED_LATE is `late`. */
static sp_status sort_added(sp_added_tokens *out, sp_vocabulary *v, bool late)
{
    size_t n = 0;
    for (int pass = 0; pass < 2; pass++) {
        out->n = 0;
        for (int32_t i = 0; (size_t)i < v->n_tokens; i++) {
            if (!is_added(v, i) || v->starts[i] == v->starts[i + 1] || !(v->flags[i] & SP_ADDED_LATE) == late) continue;
            if (pass == 1) out->tokens[out->n] = i;
            out->starts[(unsigned char)v->text[v->starts[i]]] = true;
            out->n++;
        }
        n = out->n;
        if (pass == 0 && !(out->tokens = malloc((n + 1) * sizeof *out->tokens)))
            return sp_fail_no_memory((n + 1) * sizeof *out->tokens);
    }
    qsort_r(out->tokens, n, sizeof *out->tokens, compare_strings, v);
    return SP_OK;
}

sp_status sp_vocabulary_create(sp_vocabulary *out, const char *where, const sp_string *tokens, const int32_t *types,
                               const uint8_t *flags, size_t n)
{
    size_t n_text;
    sp_status st;
    *out = (sp_vocabulary){0};
    if ((st = total_bytes(&n_text, where, tokens, n)) || (st = allocate(out, n_text, n)) ||
        (st = copy_strings(out, where, tokens, types, flags, n)) || (st = index_strings(out, where)) ||
        (st = sort_added(&out->added, out, false)) || (st = sort_added(&out->late, out, true)))
        sp_vocabulary_clear(out);
    return st;
}

void sp_vocabulary_clear(sp_vocabulary *v)
{
    free(v->text);
    free(v->starts);
    free(v->types);
    free(v->flags);
    free(v->slots);
    free(v->added.tokens);
    free(v->late.tokens);
    *v = (sp_vocabulary){0};
}

/* Of `added` [low, high), which share their first `depth` bytes: the first one whose next byte is not below `byte`.
 * A string that ends here counts as below every byte. */
static size_t lower_bound(const sp_vocabulary *v, const int32_t *added, size_t low, size_t high, size_t depth, int byte)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        sp_string s = sp_vocabulary_string(v, added[middle]);
        int next = depth < s.n_bytes ? (unsigned char)s.bytes[depth] : -1;
        if (next < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int32_t sp_vocabulary_match_added(const sp_vocabulary *v, const sp_added_tokens *added, const char *text, size_t n_bytes)
{
    int32_t longest = -1;
    const int32_t *tokens = added->tokens;
    if (n_bytes == 0 || !added->starts[(unsigned char)text[0]]) return -1;
    size_t low = 0, high = added->n;
    for (size_t depth = 0; depth < n_bytes; depth++) {
        int byte = (unsigned char)text[depth];
        low = lower_bound(v, tokens, low, high, depth, byte);
        high = lower_bound(v, tokens, low, high, depth, byte + 1);
        if (low == high) break;
        if (v->starts[tokens[low] + 1] - v->starts[tokens[low]] == depth + 1) longest = tokens[low]; /* shortest first */
    }
    return longest;
}
