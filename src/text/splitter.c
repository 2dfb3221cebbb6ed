/* splitter.c: the patterns of the families, run by PCRE2's JIT.
 *
 * A pre-tokeniser is one to three stages. Each cuts what the stage before left: a match is a piece, and so is what lies
 * between two matches. The next stage sees a piece as a text of its own, so that a lookahead ends where the piece does:
 * in "a  1", digits are cut out first, and the two spaces stay together, for nothing follows them any more.
 *
 * Two things are spelt out that the originals leave to their engine. \s is Unicode's White_Space (PCRE2 adds U+180E).
 * Letters, numbers, marks and symbols that Unicode 15 and 16 brought are listed, as Hugging Face's engine knows them and the PCRE2
 * of a stable distribution does not; with a newer PCRE2 the lists repeat what it knows.
 *
 * Cost: one JIT match a piece. No pattern has nested repeats, so none is worse than linear in the run it looks at. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/splitter.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/status.h"

#define SPACE "\\x{09}-\\x{0d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NEW_LETTERS                                                                                                                \
    "\\x{1c89}\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}"      \
    "\\x{10ec2}-\\x{10ec4}\\x{1123f}\\x{11240}\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}"  \
    "\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}"           \
    "\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}"           \
    "\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{"      \
    "323af}"
#define NEW_NUMBERS                                                                                                                \
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}\\x{16130}-\\x{16139}"                    \
    "\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"
#define NEW_MARKS                                                                                                                  \
    "\\x{897}\\x{cf3}\\x{ece}\\x{10d69}-\\x{10d6d}\\x{10efc}-\\x{10eff}\\x{11241}\\x{113b8}-\\x{113c0}\\x{113c2}\\x{113c5}"        \
    "\\x{113c7}-\\x{113ca}\\x{113cc}-\\x{113d0}\\x{113d2}\\x{113e1}\\x{113e2}\\x{11f00}\\x{11f01}\\x{11f03}\\x{11f34}-\\x{11f3a}"  \
    "\\x{11f3e}-\\x{11f42}\\x{11f5a}\\x{13440}\\x{13447}-\\x{13455}\\x{1611e}-\\x{1612f}\\x{1e08f}\\x{1e4ec}-\\x{1e4ef}"           \
    "\\x{1e5ee}\\x{1e5ef}"
#define NEW_PUNCTUATION                                                                                                            \
    "\\x{1b4e}-\\x{1b4f}\\x{1b7f}\\x{10d6e}\\x{113d4}-\\x{113d5}\\x{113d7}-\\x{113d8}\\x{11b00}-\\x{11b09}\\x{11be1}"              \
    "\\x{11f43}-\\x{11f4f}\\x{16d6d}-\\x{16d6f}\\x{1e5ff}\\x{2427}-\\x{2429}\\x{2ffc}-\\x{2fff}\\x{31e4}-\\x{31e5}\\x{31ef}"       \
    "\\x{10d8e}-\\x{10d8f}\\x{1cc00}-\\x{1ccef}\\x{1cd00}-\\x{1ceb3}\\x{1f6dc}\\x{1f774}-\\x{1f776}\\x{1f77b}-\\x{1f77f}"          \
    "\\x{1f7d9}\\x{1f8b2}-\\x{1f8bb}\\x{1f8c0}-\\x{1f8c1}\\x{1fa75}-\\x{1fa77}\\x{1fa87}-\\x{1fa89}\\x{1fa8f}"                     \
    "\\x{1faad}-\\x{1faaf}\\x{1fabb}-\\x{1fabf}\\x{1fac6}\\x{1face}-\\x{1facf}\\x{1fada}-\\x{1fadc}\\x{1fadf}"                     \
    "\\x{1fae8}-\\x{1fae9}\\x{1faf7}-\\x{1faf8}\\x{1fbcb}-\\x{1fbef}"

/* Inside a class. */
#define LETTER "\\p{L}" NEW_LETTERS
#define NUMBER "\\p{N}" NEW_NUMBERS
#define MARK "\\p{M}" NEW_MARKS
#define PUNCTUATION "\\p{P}\\p{S}" NEW_PUNCTUATION
#define UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}" NEW_LETTERS MARK
#define LOWER "\\p{Ll}\\p{Lm}\\p{Lo}" NEW_LETTERS MARK

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES_BUT_LAST "[" SPACE "]+(?![^" SPACE "])"
#define LINE_ENDS "[" SPACE "]*[\\r\\n]+"
#define ANY_SPACES "[" SPACE "]+"
#define BEFORE_WORD "[^\\r\\n" LETTER NUMBER "]?"
#define SYMBOLS " ?[^" SPACE LETTER NUMBER "]+"

#define DIGIT "[" NUMBER "]"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?[" LETTER "]+| ?[" NUMBER "]+|" SYMBOLS "|" SPACES_BUT_LAST "|" ANY_SPACES
#define CL100K(digits)                                                                                                             \
    CONTRACTION "|" BEFORE_WORD "[" LETTER "]+|[" NUMBER "]" digits "|" SYMBOLS "[\\r\\n]*|" LINE_ENDS "|" SPACES_BUT_LAST         \
                "|" ANY_SPACES
#define QWEN35                                                                                                                     \
    CONTRACTION "|" BEFORE_WORD "[" LETTER MARK "]+|[" NUMBER "]| ?[^" SPACE LETTER MARK NUMBER "]+[\\r\\n]*|" LINE_ENDS           \
                "|" SPACES_BUT_LAST "|" ANY_SPACES
#define CASED(contraction, digits)                                                                                                 \
    BEFORE_WORD "[" UPPER "]*[" LOWER "]+" contraction "|" BEFORE_WORD "[" UPPER "]+[" LOWER "]*" contraction "|[" NUMBER          \
                "]" digits "|" SYMBOLS "[\\r\\n/]*|" LINE_ENDS "|" SPACES_BUT_LAST "|" ANY_SPACES
#define DEEPSEEK                                                                                                                   \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n" LETTER PUNCTUATION "]?[" LETTER MARK "]+"                     \
    "| ?[" PUNCTUATION "]+[\\r\\n]*|" LINE_ENDS "|" SPACES_BUT_LAST "|" ANY_SPACES
#define CHINESE_JAPANESE "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+"

enum { MAX_STAGES = 3 };

typedef struct family {
    const char *name, *stages[MAX_STAGES];
    bool normalises, ignores_merges, adds_bos;
} family;

static const family families[] = {
    {"gpt-2", {GPT2}, false, false, false},
    {"phi-2", {GPT2}, false, false, false},
    {"mpt", {GPT2}, true, false, false},
    {"olmo", {GPT2}, true, false, false},
    {"smollm", {DIGIT, GPT2}, false, false, false},
    {"starcoder", {DIGIT, GPT2}, false, false, false},
    {"refact", {DIGIT, GPT2}, false, false, false},
    {"command-r", {DIGIT, GPT2}, true, false, false},
    {"llama-bpe", {CL100K("{1,3}")}, false, true, true},
    {"llama3", {CL100K("{1,3}")}, false, true, true},
    {"llama-v3", {CL100K("{1,3}")}, false, true, true},
    {"qwen2", {CL100K("")}, true, false, false},
    {"qwen35", {QWEN35}, true, false, false},
    {"tekken", {CASED("", "")}, false, true, true},
    {"gpt-4o", {CASED(CONTRACTION "?", "{1,3}")}, false, false, false},
    {"llama4", {CASED(CONTRACTION "?", "{1,3}")}, false, false, false},
    {"deepseek-v3", {"[" NUMBER "]{1,3}", CHINESE_JAPANESE, DEEPSEEK}, false, false, false},
};
enum { N_FAMILIES = sizeof families / sizeof *families };

struct sp_splitter {
    const family *family;
    pcre2_code *stages[MAX_STAGES]; /* NULL behind the last */
    pcre2_match_context *limits;
};

static sp_status fail_unknown(const char *where, const char *name, size_t n_name)
{
    sp_buffer list = {0};
    sp_status st = SP_OK;
    for (size_t i = 0; i < N_FAMILIES && !st; i++) st = sp_buffer_printf(&list, "%s%s", i ? ", " : "", families[i].name);
    if (!st)
        st = sp_fail(SP_ERR_UNSUPPORTED, "%s: pre-tokeniser \"%.*s\" (tokenizer.ggml.pre) is not known here; these are: %s", where,
                     (int)(n_name < 64 ? n_name : 64), name, list.bytes);
    sp_buffer_free(&list);
    return st;
}

static sp_status compile(pcre2_code **out, const char *pattern)
{
    int error;
    PCRE2_SIZE offset;
    *out = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &error, &offset, NULL);
    if (!*out) return sp_fail_no_memory(strlen(pattern)); /* the patterns are our own and tested: nothing else is left */
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE);          /* where there is no JIT, matching is only slower */
    return SP_OK;
}

static sp_status build(sp_splitter *s)
{
    /* PCRE2's default limit of 10 million steps is for hostile patterns; ours are linear, and a run may be longer. */
    s->limits = pcre2_match_context_create(NULL);
    if (!s->limits) return sp_fail_no_memory(sizeof *s);
    pcre2_set_match_limit(s->limits, UINT32_MAX);
    pcre2_set_depth_limit(s->limits, UINT32_MAX);
    sp_status st = SP_OK;
    for (size_t i = 0; i < MAX_STAGES && s->family->stages[i] && !st; i++) st = compile(&s->stages[i], s->family->stages[i]);
    return st;
}

sp_status sp_splitter_create(sp_splitter **out, const char *where, const char *name, size_t n_name)
{
    const family *f = NULL;
    *out = NULL;
    for (size_t i = 0; i < N_FAMILIES && !f; i++)
        if (strlen(families[i].name) == n_name && memcmp(families[i].name, name, n_name) == 0) f = &families[i];
    if (!f) return fail_unknown(where, name, n_name);
    sp_splitter *s = calloc(1, sizeof *s);
    if (!s) return sp_fail_no_memory(sizeof *s);
    s->family = f;
    sp_status st = build(s);
    if (st)
        sp_splitter_free(s);
    else
        *out = s;
    return st;
}

void sp_splitter_free(sp_splitter *s)
{
    if (!s) return;
    for (size_t i = 0; i < MAX_STAGES; i++) pcre2_code_free(s->stages[i]);
    pcre2_match_context_free(s->limits);
    free(s);
}

const char *sp_splitter_name(const sp_splitter *s)
{
    return s->family->name;
}

bool sp_splitter_normalises(const sp_splitter *s)
{
    return s->family->normalises;
}

bool sp_splitter_ignores_merges(const sp_splitter *s)
{
    return s->family->ignores_merges;
}

bool sp_splitter_adds_bos(const sp_splitter *s)
{
    return s->family->adds_bos;
}

typedef struct split {
    const sp_splitter *splitter;
    const char *text;
    pcre2_match_data *match; /* read before the next stage overwrites it */
    sp_piece_fn *on_piece;
    void *user;
} split;

/* The next match in [from, end) of stage `stage`'s subject, which begins at `start`; *found false: none. */
static sp_status find_match(bool *found, size_t *match_start, size_t *match_end, const split *s, size_t stage, size_t start,
                            size_t from, size_t end)
{
    /* Without NO_UTF_CHECK every call would read the rest of the text once more. */
    int rc = pcre2_match(s->splitter->stages[stage], (PCRE2_SPTR)s->text + start, end - start, from - start, PCRE2_NO_UTF_CHECK,
                         s->match, s->splitter->limits);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) return sp_fail_no_memory(end - from);
    *found = rc > 0;
    if (rc <= 0) return SP_OK;
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(s->match);
    *match_start = start + ends[0];
    *match_end = start + ends[1];
    return SP_OK;
}

static sp_status split_stage(const split *s, size_t stage, size_t start, size_t end)
{
    sp_status st = SP_OK;
    if (start == end) return SP_OK;
    if (stage >= MAX_STAGES || !s->splitter->stages[stage]) return s->on_piece(s->user, start, end - start);
    for (size_t at = start; at < end && !st;) {
        bool found;
        size_t match_start = end, match_end = end;
        if ((st = find_match(&found, &match_start, &match_end, s, stage, start, at, end))) break;
        st = split_stage(s, stage + 1, at, match_start);
        if (!st) st = split_stage(s, stage + 1, match_start, match_end);
        at = match_end;
    }
    return st;
}

sp_status sp_splitter_split(const sp_splitter *splitter, const char *text, size_t n_bytes, sp_piece_fn *on_piece, void *user)
{
    split s = {splitter, text, pcre2_match_data_create(1, NULL), on_piece, user};
    if (!s.match) return sp_fail_no_memory(64);
    sp_status st = split_stage(&s, 0, 0, n_bytes);
    pcre2_match_data_free(s.match);
    return st;
}
