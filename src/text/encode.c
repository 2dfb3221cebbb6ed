/* encode.c: text -> tokens.
 *
 *   text --added tokens cut out--> fragments --(form C | U+2581 for spaces)--late added tokens cut out-->
 *        segments --> pieces or words --merging--> tokens
 *
 * Everything is done in one pass from left to right, so a cursor is enough to know the region that a token starts in.
 * Cost: O(n log n) in the longest piece. */
#include <stdlib.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"
#include "text/compose.h"
#include "text/internal.h"
#include "text/unicode.h"

typedef struct encoder {
    const sp_tokenizer *tokenizer;
    const char *text;
    const sp_text_region *region; /* where the next token starts; never beyond the last one */
    const sp_text_region *last_region;
    int32_t *tokens;
    uint8_t *answer;
    size_t n_tokens, capacity;
    sp_merger merger;
    sp_buffer rewritten;  /* the fragment as its normaliser leaves it */
    sp_buffer prefixed;   /* a segment of it behind a U+2581 */
    const char *fragment; /* what is cut into segments: a part of the text, or `rewritten` */
    size_t n_fragment;
    size_t at, text_at;  /* two places that belong together: in `fragment`, in the text */
    size_t fragment_end; /* in the text */
    size_t segment;      /* where the present one begins in `fragment` */
} encoder;

static sp_status grow(encoder *e)
{
    size_t capacity = e->capacity ? 2 * e->capacity : 64;
    int32_t *tokens = realloc(e->tokens, capacity * sizeof *tokens);
    if (tokens) e->tokens = tokens;
    uint8_t *answer = realloc(e->answer, capacity);
    if (answer) e->answer = answer;
    if (!tokens || !answer) return sp_fail_no_memory(capacity * (sizeof *tokens + 1));
    e->capacity = capacity;
    return SP_OK;
}

/* A token that starts at `text_start`. */
static sp_status add_token(encoder *e, int32_t token, size_t text_start)
{
    sp_status st = e->n_tokens < e->capacity ? SP_OK : grow(e);
    if (st) return st;
    while (e->region < e->last_region && e->region->end <= text_start) e->region++;
    e->tokens[e->n_tokens] = token;
    e->answer[e->n_tokens++] = e->region->answer;
    return SP_OK;
}

/* ---- added tokens -------------------------------------------------------------------------------------------------------- */

typedef sp_status encode_fn(encoder *e, size_t start, size_t end);
typedef size_t place_fn(encoder *e, size_t offset);

static size_t skip_space(const char *text, size_t i, size_t n_bytes)
{
    while (i < n_bytes && sp_utf8_is_space(text + i)) i += sp_utf8_length(text[i]);
    return i;
}

/* Where the white space in front of text[i] begins, not before `start`. */
static size_t unskip_space(const char *text, size_t i, size_t start)
{
    while (i > start) {
        size_t before = i - 1;
        while (before > start && ((unsigned char)text[before] & 0xc0) == 0x80) before--;
        if (!sp_utf8_is_space(text + before)) break;
        i = before;
    }
    return i;
}

/* Cuts text[0, n_bytes) at `added`; what lies between goes to `encode`. As Hugging Face does it: where a special token may not be
 * one, its string is passed over whole, no shorter token inside it; and white space that a token took may still be a token, but for
 * one that would take it in turn. */
static sp_status cut_added(encoder *e, const sp_added_tokens *added, const char *text, size_t n_bytes, place_fn *place,
                           encode_fn *encode)
{
    const sp_vocabulary *v = &e->tokenizer->vocabulary;
    const sp_text_region *region = e->region;
    size_t start = 0;
    sp_status st = SP_OK;
    for (size_t i = 0, end; i < n_bytes && !st; i = end) {
        int32_t token = added->starts[(unsigned char)text[i]] ? sp_vocabulary_match_added(v, added, text + i, n_bytes - i) : -1;
        end = i + (token < 0 ? 1 : sp_vocabulary_string(v, token).n_bytes);
        if (token < 0) continue;
        if (sp_vocabulary_is_special(v, token)) {
            size_t first = place(e, i), last = place(e, end);
            while (region < e->last_region && region->end <= first) region++;
            if (!region->special || last > region->end) continue;
        }
        size_t left = v->flags[token] & SP_ADDED_LSTRIP ? sp_larger(unskip_space(text, i, sp_smaller(start, i)), start) : i;
        if (left > start) st = encode(e, start, left);
        if (!st && left < end) st = add_token(e, token, place(e, left)); /* else the token before took it, as white space */
        start = v->flags[token] & SP_ADDED_RSTRIP ? skip_space(text, end, n_bytes) : end;
    }
    return st || start >= n_bytes ? st : encode(e, start, n_bytes);
}

/* The fragment is there: the late added tokens are cut out of it. */
static sp_status encode_segments(encoder *e, place_fn *place, encode_fn *encode)
{
    const sp_added_tokens *late = &e->tokenizer->vocabulary.late;
    if (late->n == 0) return e->n_fragment ? encode(e, 0, e->n_fragment) : SP_OK;
    return cut_added(e, late, e->fragment, e->n_fragment, place, encode);
}

/* ---- byte-level BPE ------------------------------------------------------------------------------------------------------ */

/* Form C may move what follows by some bytes: a token's place is then only known to lie in its fragment. */
static size_t place_in_text(encoder *e, size_t offset)
{
    size_t place = e->text_at + offset;
    return place < e->fragment_end ? place : e->fragment_end - 1;
}

static sp_status encode_piece(void *user, size_t start, size_t n_bytes)
{
    encoder *e = user;
    const sp_tokenizer *t = e->tokenizer;
    start += e->segment;
    if (sp_splitter_ignores_merges(t->splitter)) {
        int32_t whole = sp_bpe_find(&t->vocabulary, e->fragment + start, n_bytes);
        if (whole >= 0) return add_token(e, whole, place_in_text(e, start));
    }
    sp_status st = sp_bpe_merge(&e->merger, &t->bpe, e->fragment + start, n_bytes);
    const sp_symbol *symbols = e->merger.symbols;
    for (uint32_t i = e->merger.n_symbols ? 0 : SP_NO_SYMBOL; i != SP_NO_SYMBOL && !st; i = symbols[i].next)
        st = add_token(e, symbols[i].token, place_in_text(e, start + symbols[i].start));
    return st;
}

static bool is_ascii(const char *text, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        if ((unsigned char)text[i] >= 0x80) return false;
    return true;
}

static sp_status encode_pieces(encoder *e, size_t start, size_t end)
{
    e->segment = start;
    return sp_splitter_split(e->tokenizer->splitter, e->fragment + start, end - start, encode_piece, e);
}

static sp_status encode_bpe(encoder *e, size_t start, size_t n_bytes)
{
    char *composed = NULL;
    e->fragment = e->text + start;
    e->n_fragment = n_bytes;
    e->text_at = start;
    e->fragment_end = start + n_bytes;
    if (sp_splitter_normalises(e->tokenizer->splitter) && !is_ascii(e->fragment, n_bytes)) {
        sp_status st = sp_compose(&composed, &e->n_fragment, e->fragment, n_bytes);
        if (st) return st;
        e->fragment = composed;
    }
    sp_status st = encode_segments(e, place_in_text, encode_pieces);
    free(composed);
    return st;
}

/* ---- characters ------------------------------------------------------------------------------------------------------------ */

/* A place in the rewritten fragment -> the place in the text. A space there is a mark here, and a prefix has no place. */
static size_t follow_to_text(encoder *e, size_t offset)
{
    while (e->at < offset) {
        bool space = e->text[e->text_at] == ' ';
        size_t length = sp_utf8_length(e->text[e->text_at]);
        e->at += space ? sizeof SP_SPACE_MARK - 1 : length;
        e->text_at += length;
    }
    return e->text_at;
}

/* The same without moving on. */
static size_t look_in_text(encoder *e, size_t offset)
{
    size_t at = e->at, text_at = e->text_at, place = follow_to_text(e, offset);
    e->at = at;
    e->text_at = text_at;
    return place;
}

static sp_status rewrite_spaces(encoder *e, size_t start, size_t n_bytes, bool prefix)
{
    const char *from = e->text + start, *end = from + n_bytes;
    sp_buffer_clear(&e->rewritten);
    sp_status st = prefix ? sp_buffer_add_string(&e->rewritten, SP_SPACE_MARK) : SP_OK;
    e->at = e->rewritten.n_bytes;
    e->text_at = start;
    while (from < end && !st) {
        const char *space = memchr(from, ' ', (size_t)(end - from));
        st = sp_buffer_add(&e->rewritten, from, (size_t)((space ? space : end) - from));
        if (!st && space) st = sp_buffer_add_string(&e->rewritten, SP_SPACE_MARK);
        from = space ? space + 1 : end;
    }
    e->fragment = e->rewritten.bytes;
    e->n_fragment = e->rewritten.n_bytes;
    return st;
}

/* A character without a token: its bytes' tokens, or the unknown token, once for a run of such characters. */
static sp_status spell(encoder *e, const char *character, size_t n_bytes, size_t place)
{
    const sp_spm *spm = &e->tokenizer->spm;
    bool spelt = true;
    for (size_t i = 0; i < n_bytes; i++) spelt = spelt && spm->byte_tokens[(unsigned char)character[i]] >= 0;
    sp_status st = SP_OK;
    for (size_t i = 0; spelt && i < n_bytes && !st; i++) st = add_token(e, spm->byte_tokens[(unsigned char)character[i]], place);
    if (spelt || spm->unknown < 0 || (e->n_tokens > 0 && e->tokens[e->n_tokens - 1] == spm->unknown)) return st;
    return add_token(e, spm->unknown, place);
}

/* A word of `text`, which is the fragment from e->segment on, behind `n_prefix` bytes that the fragment does not have. */
static sp_status encode_word(encoder *e, const char *text, size_t n_prefix, size_t start, size_t n_bytes)
{
    sp_status st = sp_spm_merge(&e->merger, &e->tokenizer->spm, text + start, n_bytes);
    const sp_symbol *symbols = e->merger.symbols;
    for (uint32_t i = e->merger.n_symbols ? 0 : SP_NO_SYMBOL; i != SP_NO_SYMBOL && !st; i = symbols[i].next) {
        size_t offset = start + symbols[i].start;
        size_t place = follow_to_text(e, e->segment + (offset < n_prefix ? 0 : offset - n_prefix));
        if (symbols[i].token >= 0)
            st = add_token(e, symbols[i].token, place);
        else
            st = spell(e, text + offset, symbols[i].n_bytes, place);
    }
    return st;
}

static bool wants_prefix(encoder *e, size_t start)
{
    sp_space_prefix when = e->tokenizer->space_prefix;
    size_t n_mark = sizeof SP_SPACE_MARK - 1;
    if (when != SP_PREFIX_UNLESS && (when != SP_PREFIX_FIRST || look_in_text(e, start) != 0)) return false;
    return e->n_fragment - start < n_mark || memcmp(e->fragment + start, SP_SPACE_MARK, n_mark) != 0;
}

static sp_status encode_words(encoder *e, size_t start, size_t end)
{
    const char *text = e->fragment + start;
    size_t n_bytes = end - start, n_prefix = 0;
    sp_status st = SP_OK;
    if (wants_prefix(e, start)) {
        sp_buffer_clear(&e->prefixed);
        if ((st = sp_buffer_add_string(&e->prefixed, SP_SPACE_MARK)) || (st = sp_buffer_add(&e->prefixed, text, n_bytes)))
            return st;
        n_prefix = e->prefixed.n_bytes - n_bytes;
        text = e->prefixed.bytes;
        n_bytes = e->prefixed.n_bytes;
    }
    e->segment = start;
    for (size_t i = 0, n; i < n_bytes && !st; i += n) {
        n = sp_spm_next_word(&e->tokenizer->spm, text + i, n_bytes - i);
        st = encode_word(e, text, n_prefix, i, n);
    }
    return st;
}

static sp_status encode_spm(encoder *e, size_t start, size_t n_bytes)
{
    sp_status st = rewrite_spaces(e, start, n_bytes, e->tokenizer->space_prefix == SP_PREFIX_ALWAYS);
    return st ? st : encode_segments(e, look_in_text, encode_words);
}

/* ---- the text ------------------------------------------------------------------------------------------------------------- */

static size_t same_place(encoder *e, size_t offset)
{
    (void)e;
    return offset;
}

static sp_status encode_fragment(encoder *e, size_t start, size_t end)
{
    return e->tokenizer->splitter ? encode_bpe(e, start, end - start) : encode_spm(e, start, end - start);
}

static sp_status encode_text(encoder *e)
{
    return cut_added(e, &e->tokenizer->vocabulary.added, e->text, e->last_region->end, same_place, encode_fragment);
}

sp_status sp_tokenizer_encode(int32_t **tokens, uint8_t **answer, size_t *n, const sp_tokenizer *tokenizer, const char *text,
                              const sp_text_region *regions, size_t n_regions)
{
    encoder e = {.tokenizer = tokenizer, .text = text, .region = regions, .last_region = regions + n_regions - 1};
    *tokens = NULL;
    if (answer) *answer = NULL;
    *n = 0;
    sp_status st = grow(&e); /* so that no tokens are still an array */
    if (!st) st = encode_text(&e);
    sp_merger_free(&e.merger);
    sp_buffer_free(&e.rewritten);
    sp_buffer_free(&e.prefixed);
    if (st || !answer)
        free(e.answer);
    else
        *answer = e.answer;
    if (st)
        free(e.tokens);
    else
        *tokens = e.tokens;
    *n = st ? 0 : e.n_tokens;
    return st;
}
