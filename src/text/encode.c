/* encode.c: text -> tokens.
 *
 *   text --added tokens cut out--> fragments --(form C | U+2581 for spaces)--> pieces or words --merging--> tokens
 *
 * Everything is done in one pass from left to right, so a cursor is enough to know the region that a token starts in.
 * Cost: O(n log n) in the longest piece. */
#include <stdlib.h>
#include <string.h>

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
    const char *fragment; /* what is cut into pieces: a part of the text, or `rewritten` */
    size_t at, text_at;   /* two places that belong together: in `fragment`, in the text */
    size_t fragment_end;  /* in the text */
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

/* ---- byte-level BPE ------------------------------------------------------------------------------------------------------ */

/* Form C may move what follows by some bytes: a token's place is then only known to lie in its fragment. */
static size_t place_in_text(const encoder *e, size_t offset)
{
    size_t place = e->text_at + offset;
    return place < e->fragment_end ? place : e->fragment_end - 1;
}

static sp_status encode_piece(void *user, size_t start, size_t n_bytes)
{
    encoder *e = user;
    const sp_tokenizer *t = e->tokenizer;
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

static sp_status encode_bpe(encoder *e, size_t start, size_t n_bytes)
{
    const sp_splitter *splitter = e->tokenizer->splitter;
    e->fragment = e->text + start;
    e->text_at = start;
    e->fragment_end = start + n_bytes;
    if (!sp_splitter_normalises(splitter) || is_ascii(e->fragment, n_bytes))
        return sp_splitter_split(splitter, e->fragment, n_bytes, encode_piece, e);
    char *composed;
    size_t n;
    sp_status st = sp_compose(&composed, &n, e->fragment, n_bytes);
    if (st) return st;
    e->fragment = composed;
    st = sp_splitter_split(splitter, composed, n, encode_piece, e);
    free(composed);
    return st;
}

/* ---- SentencePiece ------------------------------------------------------------------------------------------------------- */

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

static sp_status encode_word(encoder *e, size_t start, size_t n_bytes)
{
    sp_status st = sp_spm_merge(&e->merger, &e->tokenizer->spm, e->fragment + start, n_bytes);
    const sp_symbol *symbols = e->merger.symbols;
    for (uint32_t i = e->merger.n_symbols ? 0 : SP_NO_SYMBOL; i != SP_NO_SYMBOL && !st; i = symbols[i].next) {
        size_t offset = start + symbols[i].start, place = follow_to_text(e, offset);
        if (symbols[i].token >= 0)
            st = add_token(e, symbols[i].token, place);
        else
            st = spell(e, e->fragment + offset, symbols[i].n_bytes, place);
    }
    return st;
}

static sp_status encode_spm(encoder *e, size_t start, size_t n_bytes)
{
    sp_status st = rewrite_spaces(e, start, n_bytes, e->tokenizer->adds_space_prefix);
    for (size_t i = 0, n; i < e->rewritten.n_bytes && !st; i += n) {
        n = sp_spm_next_word(&e->tokenizer->spm, e->fragment + i, e->rewritten.n_bytes - i);
        st = encode_word(e, i, n);
    }
    return st;
}

/* ---- added tokens -------------------------------------------------------------------------------------------------------- */

static sp_status encode_fragment(encoder *e, size_t start, size_t end)
{
    if (start == end) return SP_OK;
    return e->tokenizer->splitter ? encode_bpe(e, start, end - start) : encode_spm(e, start, end - start);
}

/* Where a special token may not be one, its string is passed over whole, as Hugging Face does: no shorter token inside it. */
static sp_status encode_text(encoder *e)
{
    const sp_vocabulary *v = &e->tokenizer->vocabulary;
    const sp_text_region *region = e->region;
    size_t n_bytes = e->last_region->end, start = 0;
    sp_status st = SP_OK;
    for (size_t i = 0; i < n_bytes && !st;) {
        int32_t token = v->starts_added[(unsigned char)e->text[i]] ? sp_vocabulary_match_added(v, e->text + i, n_bytes - i) : -1;
        if (token < 0) {
            i++;
            continue;
        }
        size_t end = i + sp_vocabulary_string(v, token).n_bytes;
        while (region->end <= i) region++;
        if (!sp_vocabulary_is_special(v, token) || (region->special && end <= region->end)) {
            if ((st = encode_fragment(e, start, i)) || (st = add_token(e, token, i))) return st;
            start = end;
        }
        i = end;
    }
    return st ? st : encode_fragment(e, start, n_bytes);
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
