/* tokenizer.c: building a tokenizer from its description, and tokens back to text. The way from text is in encode.c. */
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/status.h"
#include "text/internal.h"
#include "text/unicode.h"

/* ---- building ------------------------------------------------------------------------------------------------------------ */

static bool string_is(sp_string s, const char *literal)
{
    return s.n_bytes == strlen(literal) && memcmp(s.bytes, literal, s.n_bytes) == 0;
}

static sp_status create_bpe(sp_tokenizer *t, const sp_tokenizer_source *source)
{
    if (!source->pre.bytes && !source->stages)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: tokenizer.ggml.pre is missing, so nobody can tell how text was split for this model; "
                       "convert it again with a current converter",
                       source->where);
    if (!source->merges)
        return sp_fail(SP_ERR_FORMAT, "%s: tokenizer.ggml.merges is missing; convert the model again", source->where);
    sp_status st = source->stages ? sp_splitter_create_from_stages(&t->splitter, source->where, source->stages, source->n_stages,
                                                                   source->normalises, source->ignores_merges)
                                  : sp_splitter_create(&t->splitter, source->where, source->pre.bytes, source->pre.n_bytes);
    if (!st) st = sp_bpe_create(&t->bpe, source->where, &t->vocabulary, source->merges, source->merge_rights, source->n_merges);
    if (!st) snprintf(t->kind, sizeof t->kind, "bpe/%s", sp_splitter_name(t->splitter));
    return st;
}

static sp_status create_spm(sp_tokenizer *t, const sp_tokenizer_source *source)
{
    if (!source->scores && source->characters.n_model_tokens) {
        snprintf(t->kind, sizeof t->kind, "bpe/characters");
        return sp_spm_create_from_merges(&t->spm, source->where, &t->vocabulary, source->merges, source->merge_rights,
                                         source->n_merges, &source->characters);
    }
    if (!source->scores)
        return sp_fail(SP_ERR_FORMAT, "%s: tokenizer.ggml.scores is missing; convert the model again", source->where);
    snprintf(t->kind, sizeof t->kind, "spm");
    return sp_spm_create(&t->spm, source->where, &t->vocabulary, source->scores);
}

static sp_status check_id(const sp_tokenizer *t, const char *where, const char *what, int32_t id)
{
    if (id < 0 || (size_t)id < t->vocabulary.n_tokens) return SP_OK;
    return sp_fail(SP_ERR_FORMAT, "%s: %s is token %d, but the vocabulary ends at %zu; fetch or convert the model again", where,
                   what, (int)id, t->vocabulary.n_tokens - 1);
}

static void add_end(sp_tokenizer *t, int32_t token)
{
    if (token >= 0 && !sp_tokenizer_is_end(t, token) && t->n_ends < SP_MAX_END_TOKENS) t->ends[t->n_ends++] = token;
}

/* Many files name EOS only, and the token that ends a turn is another one: those of the known families are found by name. */
static void find_ends(sp_tokenizer *t, const sp_tokenizer_source *source)
{
    static const char *const names[] = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>"};
    add_end(t, source->eos);
    add_end(t, source->eot);
    add_end(t, source->eom);
    for (size_t i = 0; i < source->n_ends; i++) add_end(t, source->ends[i]);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t token = sp_vocabulary_find(&t->vocabulary, names[i], strlen(names[i]));
        if (token >= 0 && t->vocabulary.types[token] != SP_TOKEN_NORMAL) add_end(t, token);
    }
}

static sp_status set_special(sp_tokenizer *t, const sp_tokenizer_source *source)
{
    const char *where = source->where;
    bool bos_by_habit = t->splitter ? sp_splitter_adds_bos(t->splitter) : true;
    sp_status st;
    if ((st = check_id(t, where, "BOS", source->bos)) || (st = check_id(t, where, "EOS", source->eos)) ||
        (st = check_id(t, where, "the end of a turn", source->eot)) ||
        (st = check_id(t, where, "the end of a message", source->eom)))
        return st;
    for (size_t i = 0; i < source->n_ends; i++)
        if ((st = check_id(t, where, "an end of text", source->ends[i]))) return st;
    t->bos = source->bos;
    t->eos = source->eos;
    t->adds_bos = t->bos >= 0 && (source->add_bos < 0 ? bos_by_habit : source->add_bos);
    t->adds_eos = t->eos >= 0 && source->add_eos > 0;
    if (!t->splitter) t->space_prefix = source->add_space_prefix < 0 ? SP_PREFIX_ALWAYS : (sp_space_prefix)source->add_space_prefix;
    find_ends(t, source);
    return SP_OK;
}

static uint64_t hash_characters(const sp_spm *spm, uint64_t hash)
{
    uint64_t settings[] = {spm->merges.hash,  (uint64_t)spm->unknown, spm->n_model_tokens,
                           spm->spells_bytes, spm->splits_words,      spm->fuses_unknown};
    return XXH3_64bits_withSeed(settings, sizeof settings, hash);
}

/* In this order: kind or splitter, strings and where each starts, types, merges or score ranks, BOS, EOS and the three switches,
 * and what only some files have: flags of added tokens, settings of characters with merges. The chat template is not in it: people
 * edit templates, and a prompt still fits. */
static void set_hash(sp_tokenizer *t)
{
    const sp_vocabulary *v = &t->vocabulary;
    int32_t rest[5] = {t->bos, t->eos, t->adds_bos, t->adds_eos, (int32_t)t->space_prefix};
    uint64_t hash = t->splitter ? sp_splitter_hash(t->splitter) : XXH3_64bits(t->kind, strlen(t->kind));
    hash = XXH3_64bits_withSeed(v->text, v->starts[v->n_tokens], hash);
    hash = XXH3_64bits_withSeed(v->starts, (v->n_tokens + 1) * sizeof *v->starts, hash);
    hash = XXH3_64bits_withSeed(v->types, v->n_tokens, hash);
    if (t->splitter)
        hash = XXH3_64bits_withSeed(&t->bpe.hash, sizeof t->bpe.hash, hash);
    else if (t->spm.ranks)
        hash = XXH3_64bits_withSeed(t->spm.ranks, v->n_tokens * sizeof *t->spm.ranks, hash);
    else
        hash = hash_characters(&t->spm, hash);
    hash = XXH3_64bits_withSeed(rest, sizeof rest, hash);
    for (size_t i = 0; i < v->n_tokens; i++)
        if (v->flags[i]) hash = XXH3_64bits_withSeed(&v->flags[i], 1, hash + i);
    t->hash = hash;
}

static sp_status copy_template(sp_tokenizer *t, sp_string s)
{
    if (!s.bytes) return SP_OK;
    t->chat_template = malloc(s.n_bytes + 1);
    if (!t->chat_template) return sp_fail_no_memory(s.n_bytes + 1);
    memcpy(t->chat_template, s.bytes, s.n_bytes);
    t->chat_template[s.n_bytes] = 0;
    return SP_OK;
}

sp_status sp_tokenizer_create(sp_tokenizer **out, const sp_tokenizer_source *source)
{
    bool bpe = string_is(source->model, "gpt2");
    *out = NULL;
    if (!bpe && !string_is(source->model, "llama"))
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: tokenizer \"%.*s\" (tokenizer.ggml.model) is not known here; these are: gpt2 "
                       "(byte-level BPE), llama (SentencePiece BPE)",
                       source->where, (int)(source->model.n_bytes < 64 ? source->model.n_bytes : 64), source->model.bytes);
    sp_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return sp_fail_no_memory(sizeof *t);
    sp_status st =
        sp_vocabulary_create(&t->vocabulary, source->where, source->tokens, source->types, source->flags, source->n_tokens);
    if (!st) st = bpe ? create_bpe(t, source) : create_spm(t, source);
    if (!st) st = set_special(t, source);
    if (!st) st = copy_template(t, source->chat_template);
    if (st) {
        sp_tokenizer_free(t);
        return st;
    }
    set_hash(t);
    *out = t;
    return SP_OK;
}

void sp_tokenizer_free(sp_tokenizer *t)
{
    if (!t) return;
    sp_vocabulary_clear(&t->vocabulary);
    sp_splitter_free(t->splitter);
    sp_bpe_clear(&t->bpe);
    sp_spm_clear(&t->spm);
    free(t->chat_template);
    free(t);
}

/* ---- what it is ---------------------------------------------------------------------------------------------------------- */

size_t sp_tokenizer_n_vocab(const sp_tokenizer *t)
{
    return t->vocabulary.n_tokens;
}

uint64_t sp_tokenizer_hash(const sp_tokenizer *t)
{
    return t->hash;
}

const char *sp_tokenizer_kind(const sp_tokenizer *t)
{
    return t->kind;
}

int32_t sp_tokenizer_bos(const sp_tokenizer *t)
{
    return t->bos;
}

int32_t sp_tokenizer_eos(const sp_tokenizer *t)
{
    return t->eos;
}

bool sp_tokenizer_adds_bos(const sp_tokenizer *t)
{
    return t->adds_bos;
}

bool sp_tokenizer_is_end(const sp_tokenizer *t, int32_t token)
{
    for (size_t i = 0; i < t->n_ends; i++)
        if (t->ends[i] == token) return true;
    return false;
}

/* ---- text -> tokens ------------------------------------------------------------------------------------------------------ */

/* BOS in front, EOS behind, where this tokenizer puts them. */
static sp_status add_ends(int32_t **tokens, size_t *n, const sp_tokenizer *t)
{
    int32_t *grown = realloc(*tokens, (*n + 2) * sizeof *grown);
    if (!grown) return sp_fail_no_memory((*n + 2) * sizeof *grown);
    *tokens = grown;
    if (t->adds_bos) {
        memmove(grown + 1, grown, *n * sizeof *grown);
        grown[0] = t->bos;
        ++*n;
    }
    if (t->adds_eos) grown[(*n)++] = t->eos;
    return SP_OK;
}

sp_status sp_tokenize(int32_t **out, size_t *n_out, const sp_tokenizer *tokenizer, const char *text, size_t n_bytes, unsigned flags)
{
    sp_buffer repaired = {0};
    sp_status st = SP_OK;
    *out = NULL;
    *n_out = 0;
    if (n_bytes == SIZE_MAX) n_bytes = strlen(text);
    if (sp_utf8_valid_prefix(text, n_bytes) < n_bytes) {
        st = sp_utf8_add_repaired(&repaired, text, n_bytes);
        text = repaired.bytes;
        n_bytes = repaired.n_bytes;
    }
    sp_text_region all = {n_bytes, flags & SP_TOKENIZE_PARSE_SPECIAL, false};
    if (!st) st = sp_tokenizer_encode(out, NULL, n_out, tokenizer, text, &all, 1);
    if (!st && (flags & SP_TOKENIZE_ADD_BOS)) st = add_ends(out, n_out, tokenizer);
    sp_buffer_free(&repaired);
    if (!st) return SP_OK;
    free(*out);
    *out = NULL;
    *n_out = 0;
    return st;
}

/* ---- tokens -> text ------------------------------------------------------------------------------------------------------ */

sp_status sp_tokenizer_add_text(sp_buffer *out, const sp_tokenizer *t, int32_t token, bool with_special)
{
    const sp_vocabulary *v = &t->vocabulary;
    if (token < 0 || (size_t)token >= v->n_tokens)
        return sp_fail(SP_ERR_ARGUMENT, "token %d: this vocabulary has 0 to %zu; is it another model's?", (int)token,
                       v->n_tokens - 1);
    if (sp_vocabulary_is_special(v, token) && !with_special) return SP_OK;
    sp_string s = sp_vocabulary_string(v, token);
    if (sp_vocabulary_is_special(v, token) || (t->splitter && v->types[token] == SP_TOKEN_USER_DEFINED))
        return sp_buffer_add(out, s.bytes, s.n_bytes);
    return t->splitter ? sp_bpe_add_bytes(out, s) : sp_spm_add_bytes(out, &t->spm, token);
}

sp_status sp_detokenize(char **out, size_t *n_bytes, const sp_tokenizer *tokenizer, const int32_t *tokens, size_t n,
                        bool with_special)
{
    sp_buffer text = {0};
    sp_status st = sp_buffer_add(&text, "", 0);
    for (size_t i = 0; i < n && !st; i++) st = sp_tokenizer_add_text(&text, tokenizer, tokens[i], with_special);
    *out = NULL;
    *n_bytes = 0;
    if (st) {
        sp_buffer_free(&text);
        return st;
    }
    if (tokenizer->space_prefix && text.n_bytes > 0 && text.bytes[0] == ' ') /* sp_tokenize put it there */
        memmove(text.bytes, text.bytes + 1, text.n_bytes--);
    *out = text.bytes;
    *n_bytes = text.n_bytes;
    return SP_OK;
}
