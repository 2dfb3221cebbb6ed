/* generate.c: sampling in a loop, and turning tokens into text that can be shown as it comes.
 *
 * Text is held back while it could still change: an unfinished character, or the beginning of a stop string. */
#define _GNU_SOURCE /* memmem */
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/status.h"
#include "generate/sampler.h"
#include "generate/session.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

enum { DEFAULT_MAX_NEW_TOKENS = 256 };

typedef struct generator {
    sp_session *session;
    sp_sampler sampler;
    sp_sampling options;
    sp_text_fn *on_text;
    void *user;
    sp_buffer raw;  /* bytes of all tokens so far */
    size_t n_shown; /* of them handed on */
    sp_buffer text; /* what was handed on, repaired to valid UTF-8 */
    int32_t *tokens;
    float *logprobs;
    size_t n, capacity;
    bool cancelled;
} generator;

static sp_status add_token(generator *g, int32_t token, double logprob)
{
    if (g->n == g->capacity) {
        size_t capacity = g->capacity ? 2 * g->capacity : 64;
        int32_t *tokens = realloc(g->tokens, capacity * sizeof *tokens);
        if (tokens) g->tokens = tokens;
        float *logprobs = realloc(g->logprobs, capacity * sizeof *logprobs);
        if (logprobs) g->logprobs = logprobs;
        if (!tokens || !logprobs) return sp_fail_no_memory(capacity * sizeof *tokens);
        g->capacity = capacity;
    }
    g->tokens[g->n] = token;
    g->logprobs[g->n++] = (float)logprob;
    return SP_OK;
}

/* Where the first stop string begins; SIZE_MAX: nowhere. Only what was not shown can hold one. */
static size_t find_stop(const generator *g)
{
    size_t first = SIZE_MAX;
    for (size_t s = 0; s < g->options.n_stop; s++) {
        size_t n = strlen(g->options.stop[s]);
        const char *at =
            n && g->raw.bytes ? memmem(g->raw.bytes + g->n_shown, g->raw.n_bytes - g->n_shown, g->options.stop[s], n) : NULL;
        if (at && (size_t)(at - g->raw.bytes) < first) first = (size_t)(at - g->raw.bytes);
    }
    return first;
}

/* How many bytes at the end could be the beginning of a stop string. */
static size_t held_for_stop(const generator *g)
{
    size_t held = 0, n_new = g->raw.n_bytes - g->n_shown;
    for (size_t s = 0; s < g->options.n_stop; s++) {
        size_t n = strlen(g->options.stop[s]);
        for (size_t k = n < n_new ? n : n_new; k > held; k--)
            if (memcmp(g->raw.bytes + g->raw.n_bytes - k, g->options.stop[s], k) == 0) held = k;
    }
    return held;
}

/* How many bytes at the end are the beginning of a character whose rest may still come. */
static size_t held_for_character(const char *bytes, size_t n)
{
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char c = (unsigned char)bytes[n - back];
        if ((c & 0xc0) == 0x80) continue;
        size_t length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
        return length > back ? back : 0;
    }
    return 0;
}

/* Hands on the bytes up to `end`. */
static sp_status show(generator *g, size_t end)
{
    size_t n_before = g->text.n_bytes;
    if (end <= g->n_shown) return SP_OK;
    sp_status st = sp_utf8_add_repaired(&g->text, g->raw.bytes + g->n_shown, end - g->n_shown);
    g->n_shown = end;
    if (!st && g->on_text && g->text.n_bytes > n_before)
        g->cancelled = !g->on_text(g->user, g->text.bytes + n_before, g->text.n_bytes - n_before);
    return st;
}

static sp_status show_what_is_final(generator *g)
{
    size_t end = g->raw.n_bytes - held_for_stop(g);
    return end > g->n_shown ? show(g, end - held_for_character(g->raw.bytes + g->n_shown, end - g->n_shown)) : SP_OK;
}

/* One token: sampled, and either the end of the text or part of it. */
static sp_status step(bool *finished, sp_finish *why, generator *g)
{
    const sp_tokenizer *tokenizer = sp_model_tokenizer(sp_session_model(g->session));
    const float *logits;
    double logprob;
    sp_status st = sp_session_last_logits(&logits, g->session);
    if (st) return st;
    int32_t token = sp_sampler_next(&g->sampler, &logprob, logits, sp_session_tokens(g->session), sp_session_n_tokens(g->session));
    if ((st = add_token(g, token, logprob))) return st;
    *finished = true;
    *why = SP_FINISH_END;
    if (sp_tokenizer_is_end(tokenizer, token)) return show(g, g->raw.n_bytes);
    bool has_text = (size_t)token < sp_tokenizer_n_vocab(tokenizer); /* a model may have more rows than there are tokens */
    if (has_text && (st = sp_tokenizer_add_text(&g->raw, tokenizer, token, false))) return st;
    size_t stop = find_stop(g);
    *why = SP_FINISH_STOP;
    if (stop != SIZE_MAX) return show(g, stop);
    if ((st = show_what_is_final(g))) return st;
    *why = g->cancelled ? SP_FINISH_CANCELLED : SP_FINISH_LENGTH;
    if (g->cancelled) return SP_OK;
    if (g->n == g->options.max_new_tokens || sp_session_room(g->session) == 0) return show(g, g->raw.n_bytes);
    *finished = false;
    return sp_session_append(g->session, &token, 1, NULL);
}

static void hand_over(sp_generation *out, generator *g, sp_finish why)
{
    *out = (sp_generation){g->text.bytes, g->text.n_bytes, g->tokens, g->n, g->logprobs, why};
    g->text = (sp_buffer){0};
    g->tokens = NULL;
    g->logprobs = NULL;
}

sp_status sp_generate(sp_generation *out, sp_session *session, const int32_t *tokens, size_t n, const sp_sampling *options,
                      sp_text_fn *on_text, void *user)
{
    generator g = {.session = session, .on_text = on_text, .user = user};
    bool finished = false;
    sp_finish why = SP_FINISH_LENGTH;
    *out = (sp_generation){0};
    if (options) g.options = *options;
    if (g.options.max_new_tokens == 0) g.options.max_new_tokens = DEFAULT_MAX_NEW_TOKENS;
    sp_status st = sp_sampler_init(&g.sampler, &g.options, sp_model_n_vocab(sp_session_model(session)));
    if (!st) st = sp_buffer_add(&g.text, "", 0); /* an empty completion is "", not NULL */
    if (!st && n > 0) st = sp_session_append(session, tokens, n, NULL);
    while (!st && !finished) st = step(&finished, &why, &g);
    if (!st) hand_over(out, &g, why);
    sp_sampler_clear(&g.sampler);
    sp_buffer_free(&g.raw);
    sp_buffer_free(&g.text);
    free(g.tokens);
    free(g.logprobs);
    return st;
}

void sp_generation_clear(sp_generation *generation)
{
    sp_free(generation->text);
    sp_free(generation->tokens);
    sp_free(generation->logprobs);
    *generation = (sp_generation){0};
}
