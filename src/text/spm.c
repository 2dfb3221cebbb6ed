/* spm.c: scores as ranks or merges, words, and byte tokens. By scores a pair is looked up by its joint string, which lies in the
 * text as it is; by merges, by its two tokens. */
#include "text/spm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "text/unicode.h"

enum { MARK_BYTES = sizeof SP_SPACE_MARK - 1 };

static bool is_mark(const char *text, size_t n_bytes)
{
    return n_bytes >= MARK_BYTES && memcmp(text, SP_SPACE_MARK, MARK_BYTES) == 0;
}

/* Positive floats order as their bits do, negative ones the other way round: with this, higher scores have lower ranks. */
static uint32_t rank_of_score(float score)
{
    uint32_t bits;
    score += 0.0f; /* -0 becomes 0 */
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

/* Control and unknown tokens are never made of text; user-defined ones are found before the merging. */
static bool can_be_made(const sp_vocabulary *v, int32_t token)
{
    return v->types[token] == SP_TOKEN_NORMAL || v->types[token] == SP_TOKEN_USER_DEFINED;
}

static bool mark_follows_other(sp_string s)
{
    for (size_t i = 1; i + MARK_BYTES <= s.n_bytes; i++)
        if (is_mark(s.bytes + i, s.n_bytes - i) && !(i >= MARK_BYTES && is_mark(s.bytes + i - MARK_BYTES, MARK_BYTES))) return true;
    return false;
}

static void find_byte_tokens(sp_spm *spm, bool spells_bytes)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8];
        int n = snprintf(name, sizeof name, "<0x%02X>", byte);
        spm->byte_tokens[byte] = spells_bytes ? sp_vocabulary_find(spm->vocabulary, name, (size_t)n) : -1;
    }
}

sp_status sp_spm_create(sp_spm *out, const char *where, const sp_vocabulary *v, const float *scores)
{
    *out = (sp_spm){.vocabulary = v, .unknown = -1, .marks_lead = true};
    out->ranks = malloc(v->n_tokens * sizeof *out->ranks);
    if (!out->ranks) return sp_fail_no_memory(v->n_tokens * sizeof *out->ranks);
    for (int32_t i = 0; (size_t)i < v->n_tokens; i++) {
        if (isnan(scores[i])) {
            sp_spm_clear(out);
            return sp_fail(SP_ERR_FORMAT, "%s: token %d has no number for a score; convert the model again", where, (int)i);
        }
        out->ranks[i] = can_be_made(v, i) ? rank_of_score(scores[i]) : UINT32_MAX;
        if (v->types[i] == SP_TOKEN_UNKNOWN && out->unknown < 0) out->unknown = i;
        if (can_be_made(v, i) && mark_follows_other(sp_vocabulary_string(v, i))) out->marks_lead = false;
    }
    find_byte_tokens(out, true);
    return SP_OK;
}

sp_status sp_spm_create_from_merges(sp_spm *out, const char *where, const sp_vocabulary *v, const sp_string *merges,
                                    const sp_string *rights, size_t n_merges, const sp_spm *settings)
{
    *out = *settings;
    out->vocabulary = v;
    out->ranks = NULL;
    /* Words are on their own only where no character between them can vanish, and no two unknown ones meet. */
    out->marks_lead = (settings->spells_bytes || settings->unknown >= 0) && sp_vocabulary_find(v, SP_SPACE_MARK, MARK_BYTES) >= 0;
    for (int32_t i = 0; (size_t)i < v->n_tokens && out->marks_lead; i++)
        if (mark_follows_other(sp_vocabulary_string(v, i))) out->marks_lead = false;
    find_byte_tokens(out, settings->spells_bytes);
    return sp_bpe_create(&out->merges, where, v, merges, rights, n_merges);
}

void sp_spm_clear(sp_spm *spm)
{
    free(spm->ranks);
    sp_bpe_clear(&spm->merges);
    *spm = (sp_spm){0};
}

static bool find_merge(sp_merge *out, const void *rules, const char *text, const sp_symbol *left, const sp_symbol *right)
{
    const sp_spm *spm = rules;
    out->token = sp_vocabulary_find(spm->vocabulary, text + left->start, (size_t)left->n_bytes + right->n_bytes);
    if (out->token < 0) return false;
    out->rank = spm->ranks[out->token];
    return out->rank != UINT32_MAX;
}

static sp_status start_merge(sp_merger *merger, const sp_spm *spm, const char *text, size_t n_bytes)
{
    size_t n_characters = 0;
    for (size_t i = 0; i < n_bytes; i += sp_utf8_length(text[i])) n_characters++;
    return sp_merger_start(merger, spm->ranks ? n_characters : n_bytes);
}

static sp_status merge_by_scores(sp_merger *merger, const sp_spm *spm, const char *text, size_t n_bytes)
{
    for (size_t i = 0, length; i < n_bytes; i += length) {
        length = sp_utf8_length(text[i]);
        int32_t token = sp_vocabulary_find(spm->vocabulary, text + i, length);
        sp_merger_add(merger, i, length, token >= 0 && can_be_made(spm->vocabulary, token) ? token : -1);
    }
    sp_merger_run(merger, find_merge, spm, text);
    return SP_OK;
}

static bool can_spell(const sp_spm *spm, const char *character, size_t n_bytes)
{
    bool can = true;
    for (size_t i = 0; i < n_bytes; i++) can = can && spm->byte_tokens[(unsigned char)character[i]] >= 0;
    return can;
}

/* A character without a token and without bytes is the unknown token, or nothing where there is none. */
static sp_status merge_by_merges(sp_merger *merger, const sp_spm *spm, const char *text, size_t n_bytes)
{
    bool fuses = false;
    for (size_t i = 0, length; i < n_bytes; i += length) {
        length = sp_utf8_length(text[i]);
        int32_t token = sp_vocabulary_find(spm->vocabulary, text + i, length);
        bool known = token >= 0 && (size_t)token < spm->n_model_tokens;
        if (known) {
            sp_merger_add(merger, i, length, token);
        } else if (can_spell(spm, text + i, length)) {
            for (size_t k = 0; k < length; k++) sp_merger_add(merger, i + k, 1, spm->byte_tokens[(unsigned char)text[i + k]]);
            known = true;
        } else if (fuses) {
            merger->symbols[merger->n_symbols - 1].n_bytes += (uint32_t)length;
        } else if (spm->unknown >= 0) {
            sp_merger_add(merger, i, length, spm->unknown);
        }
        fuses = !known && spm->fuses_unknown && spm->unknown >= 0;
    }
    sp_bpe_run(merger, &spm->merges, text);
    return SP_OK;
}

sp_status sp_spm_merge(sp_merger *merger, const sp_spm *spm, const char *text, size_t n_bytes)
{
    sp_status st = start_merge(merger, spm, text, n_bytes);
    if (st) return st;
    return spm->ranks ? merge_by_scores(merger, spm, text, n_bytes) : merge_by_merges(merger, spm, text, n_bytes);
}

size_t sp_spm_next_word(const sp_spm *spm, const char *text, size_t n_bytes)
{
    size_t i = 0;
    if (!spm->marks_lead && !spm->splits_words) return n_bytes;
    while (is_mark(text + i, n_bytes - i) && (i == 0 || !spm->splits_words)) i += MARK_BYTES;
    while (i < n_bytes && !is_mark(text + i, n_bytes - i)) i += sp_utf8_length(text[i]);
    return i;
}

sp_status sp_spm_add_bytes(sp_buffer *out, const sp_spm *spm, int32_t token)
{
    sp_string s = sp_vocabulary_string(spm->vocabulary, token);
    if (spm->vocabulary->types[token] == SP_TOKEN_BYTE && s.n_bytes == 6 && s.bytes[0] == '<') {
        char hex[3] = {s.bytes[3], s.bytes[4], 0}, byte = (char)strtoul(hex, NULL, 16);
        return sp_buffer_add(out, &byte, 1);
    }
    sp_status st = SP_OK;
    for (size_t i = 0, end; i < s.n_bytes && !st; i = end) {
        bool mark = is_mark(s.bytes + i, s.n_bytes - i);
        for (end = i + (mark ? MARK_BYTES : 1); !mark && end < s.n_bytes && !is_mark(s.bytes + end, s.n_bytes - end);) end++;
        st = mark ? sp_buffer_add(out, " ", 1) : sp_buffer_add(out, s.bytes + i, end - i);
    }
    return st;
}
