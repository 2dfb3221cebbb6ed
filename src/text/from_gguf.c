/* from_gguf.c: a GGUF file's tokenizer.* keys as a description that sp_tokenizer_create builds from.
 * The arrays that it is handed live for the call only: 16 bytes a string. */
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "text/internal.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

static sp_status read_string(sp_string *out, const sp_gguf *gguf, const char *key, bool required)
{
    sp_gguf_string s;
    *out = (sp_string){0};
    if (!required && !sp_gguf_has(gguf, key)) return SP_OK;
    sp_status st = sp_gguf_get_string(&s, gguf, key);
    if (!st) *out = (sp_string){s.bytes ? s.bytes : "", s.n_bytes};
    return st;
}

static sp_status read_strings(const sp_string **out, size_t *n, const sp_gguf *gguf, const char *key)
{
    sp_status st = sp_gguf_get_array_n(n, gguf, key);
    if (st) return st;
    sp_string *strings = calloc(*n + 1, sizeof *strings);
    if (!strings) return sp_fail_no_memory((*n + 1) * sizeof *strings);
    *out = strings;
    for (size_t i = 0; i < *n && !st; i++) {
        sp_gguf_string s = {0};
        st = sp_gguf_get_array_string(&s, gguf, key, i);
        strings[i] = (sp_string){s.bytes, s.n_bytes};
    }
    return st;
}

/* Arrays with an entry a token. */
static sp_status check_length(const sp_gguf *gguf, const char *key, size_t n_tokens)
{
    size_t n;
    sp_status st = sp_gguf_get_array_n(&n, gguf, key);
    if (st || n == n_tokens) return st;
    return sp_fail(SP_ERR_FORMAT, "%s: %s has %zu entries for %zu tokens; convert the model again", sp_gguf_path(gguf), key, n,
                   n_tokens);
}

static sp_status read_types(const int32_t **out, const sp_gguf *gguf, size_t n_tokens)
{
    const char *key = "tokenizer.ggml.token_type";
    if (!sp_gguf_has(gguf, key)) return SP_OK;
    sp_status st = check_length(gguf, key, n_tokens);
    int32_t *types = st ? NULL : malloc((n_tokens + 1) * sizeof *types);
    if (!st && !types) st = sp_fail_no_memory((n_tokens + 1) * sizeof *types);
    *out = types;
    for (size_t i = 0; i < n_tokens && !st; i++) st = sp_gguf_get_array_i32(&types[i], gguf, key, i);
    return st;
}

static sp_status read_scores(const float **out, const sp_gguf *gguf, size_t n_tokens)
{
    const char *key = "tokenizer.ggml.scores";
    if (!sp_gguf_has(gguf, key)) return SP_OK;
    sp_status st = check_length(gguf, key, n_tokens);
    float *scores = st ? NULL : malloc((n_tokens + 1) * sizeof *scores);
    if (!st && !scores) st = sp_fail_no_memory((n_tokens + 1) * sizeof *scores);
    *out = scores;
    for (size_t i = 0; i < n_tokens && !st; i++) st = sp_gguf_get_array_f32(&scores[i], gguf, key, i);
    return st;
}

static sp_status read_id(int32_t *out, const sp_gguf *gguf, const char *key)
{
    uint32_t id;
    *out = -1;
    if (!sp_gguf_has(gguf, key)) return SP_OK;
    sp_status st = sp_gguf_get_u32(&id, gguf, key);
    if (!st && id != UINT32_MAX) *out = id <= INT32_MAX ? (int32_t)id : INT32_MAX; /* converters write -1 for none */
    return st;
}

static sp_status read_switch(int *out, const sp_gguf *gguf, const char *key)
{
    bool on;
    *out = -1;
    if (!sp_gguf_has(gguf, key)) return SP_OK;
    sp_status st = sp_gguf_get_bool(&on, gguf, key);
    if (!st) *out = on;
    return st;
}

/* SentencePiece looks for user-defined tokens where spaces are U+2581 already; converters write their spaces as spaces. Such a
 * token is spelt anew, into `*spelt`, and looked for late. `tokens` and `flags` are changed. */
static sp_status spell_spaces(char **spelt, sp_string *tokens, uint8_t *flags, const int32_t *types, size_t n)
{
    size_t n_bytes = 0;
    for (int pass = 0; pass < 2; pass++) {
        char *to = *spelt;
        for (size_t i = 0; i < n; i++) {
            sp_string s = tokens[i];
            if (types[i] != SP_TOKEN_USER_DEFINED || s.n_bytes == 0 || !memchr(s.bytes, ' ', s.n_bytes)) continue;
            if (pass == 0) n_bytes += s.n_bytes * (sizeof SP_SPACE_MARK - 1);
            if (pass == 0) continue;
            tokens[i].bytes = to;
            for (size_t k = 0; k < s.n_bytes; k++) {
                size_t length = s.bytes[k] == ' ' ? sizeof SP_SPACE_MARK - 1 : 1;
                memcpy(to, s.bytes[k] == ' ' ? SP_SPACE_MARK : s.bytes + k, length);
                to += length;
            }
            tokens[i].n_bytes = (size_t)(to - tokens[i].bytes);
            flags[i] = SP_ADDED_LATE;
        }
        if (pass == 0 && !(*spelt = malloc(n_bytes + 1))) return sp_fail_no_memory(n_bytes + 1);
    }
    return SP_OK;
}

static sp_status read_source(sp_tokenizer_source *s, const sp_gguf *gguf)
{
    sp_status st;
    if ((st = read_string(&s->model, gguf, "tokenizer.ggml.model", true)) ||
        (st = read_string(&s->pre, gguf, "tokenizer.ggml.pre", false)) ||
        (st = read_string(&s->chat_template, gguf, "tokenizer.chat_template", false)) ||
        (st = read_strings(&s->tokens, &s->n_tokens, gguf, "tokenizer.ggml.tokens")) ||
        (st = read_types(&s->types, gguf, s->n_tokens)) || (st = read_scores(&s->scores, gguf, s->n_tokens)) ||
        (st = read_id(&s->bos, gguf, "tokenizer.ggml.bos_token_id")) ||
        (st = read_id(&s->eos, gguf, "tokenizer.ggml.eos_token_id")) ||
        (st = read_id(&s->eot, gguf, "tokenizer.ggml.eot_token_id")) ||
        (st = read_id(&s->eom, gguf, "tokenizer.ggml.eom_token_id")) ||
        (st = read_switch(&s->add_bos, gguf, "tokenizer.ggml.add_bos_token")) ||
        (st = read_switch(&s->add_eos, gguf, "tokenizer.ggml.add_eos_token")) ||
        (st = read_switch(&s->add_space_prefix, gguf, "tokenizer.ggml.add_space_prefix")))
        return st;
    if (!sp_gguf_has(gguf, "tokenizer.ggml.merges")) return SP_OK;
    return read_strings(&s->merges, &s->n_merges, gguf, "tokenizer.ggml.merges");
}

sp_status sp_tokenizer_from_gguf(sp_tokenizer **out, const sp_gguf *gguf)
{
    sp_tokenizer_source source = {.where = sp_gguf_path(gguf)};
    char *spelt = NULL;
    uint8_t *flags = NULL;
    *out = NULL;
    sp_status st = read_source(&source, gguf);
    if (!st && source.types && source.scores && !source.merges) {
        source.flags = flags = calloc(source.n_tokens + 1, 1);
        st = flags ? spell_spaces(&spelt, (sp_string *)(uintptr_t)source.tokens, flags, source.types, source.n_tokens)
                   : sp_fail_no_memory(source.n_tokens + 1);
    }
    if (!st) st = sp_tokenizer_create(out, &source);
    free(spelt);
    free(flags);
    free((void *)(uintptr_t)source.tokens);
    free((void *)(uintptr_t)source.types);
    free((void *)(uintptr_t)source.scores);
    free((void *)(uintptr_t)source.merges);
    return st;
}
