/* cram_text.c: texts to be crammed: of the data, their words shuffled, or random tokens.
 *
 * A text that is crammed to its end measures itself and not the vectors, so long texts come first. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"
#include "lab/cram.h"
#include "text/tokenizer.h"

enum { ROWS_STREAM = 0x726f7773, WORDS_STREAM = 0x776f7264, TOKENS_STREAM = 0x746f6b65 }; /* "rows", "word", "toke" */

static const char *text_of(const sp_row *row)
{
    return row->text ? row->text : row->completion;
}

/* ---- random tokens ---- */

static sp_status draw_tokens(sp_cram_text *out, const sp_model *model, size_t n, sp_rng *rng)
{
    const sp_tokenizer *tokenizer = sp_model_tokenizer(model);
    const size_t n_vocab = sp_tokenizer_n_vocab(tokenizer);
    sp_status st = SP_OK;
    *out = (sp_cram_text){0, malloc(n * sizeof *out->tokens), 0};
    if (!out->tokens) return sp_fail_no_memory(n * sizeof *out->tokens);
    for (size_t tries = 0; out->n < n && !st; tries++) {
        const int32_t token = (int32_t)sp_rng_below(rng, n_vocab);
        char *text;
        size_t n_bytes;
        if (tries > 1000 + 1000 * n)
            return sp_fail(SP_ERR_UNSUPPORTED, "the model's vocabulary has no tokens with text to draw from");
        st = sp_detokenize(&text, &n_bytes, tokenizer, &token, 1, false); /* a special token decodes to nothing */
        if (!st && n_bytes > 0) out->tokens[out->n++] = token;
        sp_free(text);
    }
    return st;
}

/* ---- texts of the data ---- */

/* The words of `text` in random order, a space between two; free. NULL: no memory. */
static char *shuffle_words(const char *text, sp_rng *rng)
{
    static const char spaces[] = " \t\r\n";
    const size_t n_bytes = strlen(text);
    char *copy = strdup(text), *out = malloc(n_bytes + 2), *end = out;
    const char **words = malloc((n_bytes / 2 + 1) * sizeof *words);
    size_t *order = malloc((n_bytes / 2 + 1) * sizeof *order), n = 0;
    if (copy && out && words && order) {
        char *rest = copy;
        for (char *word; (word = strtok_r(rest, spaces, &rest));) words[n++] = word;
        sp_rng_permute(rng, order, n);
        for (size_t i = 0; i < n; i++) {
            if (i) *end++ = ' ';
            end = stpcpy(end, words[order[i]]);
        }
        *end = '\0';
    } else {
        free(out);
        out = NULL;
    }
    free(copy);
    free(words);
    free(order);
    return out;
}

static sp_status encode(sp_cram_text *out, size_t row, const char *text, const sp_model *model, sp_cram_kind kind,
                        size_t max_tokens, uint64_t seed)
{
    sp_rng rng = sp_rng_seed(seed, WORDS_STREAM + row);
    char *shuffled = kind == SP_CRAM_SHUFFLED ? shuffle_words(text, &rng) : NULL;
    *out = (sp_cram_text){.row = row};
    if (kind == SP_CRAM_SHUFFLED && !shuffled) return sp_fail_no_memory(strlen(text));
    sp_status st = sp_tokenize(&out->tokens, &out->n, sp_model_tokenizer(model), shuffled ? shuffled : text, SIZE_MAX, 0);
    if (out->n > max_tokens) out->n = max_tokens;
    free(shuffled);
    return st;
}

/* Keeps the longer texts: room for n, which are sorted by falling length, in the order in which equal ones came. */
static void keep(sp_cram_text *out, size_t *n_kept, size_t n, sp_cram_text text)
{
    size_t at = *n_kept;
    while (at > 0 && out[at - 1].n < text.n) at--;
    if (at == n || text.n == 0) {
        free(text.tokens);
        return;
    }
    if (*n_kept == n)
        free(out[n - 1].tokens);
    else
        ++*n_kept;
    memmove(out + at + 1, out + at, (*n_kept - at - 1) * sizeof *out);
    out[at] = text;
}

static sp_status choose(sp_cram_text *out, size_t n_texts, const sp_model *model, const sp_dataset *data, sp_cram_kind kind,
                        size_t max_tokens, uint64_t seed)
{
    const size_t n_rows = sp_dataset_n_rows(data);
    size_t *order = malloc(n_rows * sizeof *order), n_kept = 0;
    sp_rng rng = sp_rng_seed(seed, ROWS_STREAM);
    sp_status st = order ? SP_OK : sp_fail_no_memory(n_rows * sizeof *order);
    if (order) sp_rng_permute(&rng, order, n_rows);
    for (size_t i = 0; i < n_rows && !st; i++) {
        const char *text = text_of(sp_dataset_row(data, order[i]));
        sp_cram_text found;
        if (n_kept == n_texts && out[n_texts - 1].n == max_tokens) break;
        if (!text) continue;
        st = encode(&found, order[i], text, model, kind, max_tokens, seed);
        if (!st) keep(out, &n_kept, n_texts, found);
    }
    free(order);
    if (st || n_kept == n_texts) return st;
    return sp_fail(SP_ERR_ARGUMENT, "%zu texts are wanted, and the data have %zu that are not empty; give more, or ask for fewer",
                   n_texts, n_kept);
}

sp_status sp_cram_texts_draw(sp_cram_text *out, size_t n_texts, const sp_model *model, const sp_dataset *data, sp_cram_kind kind,
                             size_t max_tokens, uint64_t seed)
{
    sp_status st = SP_OK;
    for (size_t i = 0; i < n_texts; i++) out[i] = (sp_cram_text){0};
    if (kind == SP_CRAM_RANDOM) {
        sp_rng rng = sp_rng_seed(seed, TOKENS_STREAM);
        for (size_t i = 0; i < n_texts && !st; i++) st = draw_tokens(&out[i], model, max_tokens, &rng);
    } else {
        st = choose(out, n_texts, model, data, kind, max_tokens, seed);
    }
    for (size_t i = 0; i < n_texts && st; i++) {
        free(out[i].tokens);
        out[i] = (sp_cram_text){0};
    }
    return st;
}
