/* splitter.c: the patterns of the families, run by PCRE2's JIT.
 *
 * A pre-tokeniser is a few stages. Each cuts what the stage before left: a match is a piece, and so is what lies between two
 * matches. The next stage sees a piece as a text of its own, so that a lookahead ends where the piece does: in "a  1", digits are
 * cut out first, and the two spaces stay together, for nothing follows them any more.
 *
 * The families' patterns stand here as their tokenizer.json files have them; pattern.c says what they mean to PCRE2.
 *
 * Cost: one match a piece. No pattern of a family has nested repeats, so none is worse than linear in the run it looks at; those of
 * files are given a number of steps. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/splitter.h"

#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/buffer.h"
#include "base/status.h"
#include "text/pattern.h"

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define LAST_SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT2 SP_GPT2_PATTERN
#define CL100K(digits) CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" LAST_SPACES
#define QWEN35 CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" LAST_SPACES
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(contraction, digits)                                                                                                 \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" contraction "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" contraction             \
    "|\\p{N}" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" LAST_SPACES
#define DEEPSEEK                                                                                                                   \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"                            \
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" LAST_SPACES
#define CHINESE_JAPANESE "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
#define DIGIT "\\p{N}"

enum { MAX_FAMILY_STAGES = 3 };

typedef struct family {
    const char *name, *stages[MAX_FAMILY_STAGES];
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
    {"deepseek-v3", {"\\p{N}{1,3}", CHINESE_JAPANESE, DEEPSEEK}, false, false, false},
};
enum { N_FAMILIES = sizeof families / sizeof *families };

struct sp_splitter {
    const char *name;
    uint64_t hash;
    bool normalises, ignores_merges, adds_bos;
    bool is_limited; /* patterns of a file may be a danger, a family's are none */
    size_t n_stages;
    pcre2_code *stages[SP_MAX_SPLIT_STAGES];
    bool drops_gaps[SP_MAX_SPLIT_STAGES];
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

/* ---- families ------------------------------------------------------------------------------------------------------------- */

static size_t n_family_stages(const family *f)
{
    size_t n = 0;
    while (n < MAX_FAMILY_STAGES && f->stages[n]) n++;
    return n;
}

static bool does_the_same(const family *f, const sp_split_stage *stages, size_t n_stages, bool normalises, bool ignores_merges)
{
    bool same = n_family_stages(f) == n_stages && f->normalises == normalises && f->ignores_merges == ignores_merges;
    for (size_t i = 0; i < n_stages && same; i++)
        same = !stages[i].drops_gaps && strlen(f->stages[i]) == stages[i].pattern.n_bytes &&
               memcmp(f->stages[i], stages[i].pattern.bytes, stages[i].pattern.n_bytes) == 0;
    return same;
}

static const family *find_family(const sp_split_stage *stages, size_t n_stages, bool normalises, bool ignores_merges)
{
    for (size_t i = 0; i < N_FAMILIES; i++)
        if (does_the_same(&families[i], stages, n_stages, normalises, ignores_merges)) return &families[i];
    return NULL;
}

/* ---- building ------------------------------------------------------------------------------------------------------------- */

/* A family's hash is that of "bpe/" and the name of the first family that does the same. */
static uint64_t hash_of(const sp_split_stage *stages, size_t n_stages, bool normalises, bool ignores_merges)
{
    const family *f = find_family(stages, n_stages, normalises, ignores_merges);
    char name[32];
    if (f) return XXH3_64bits(name, (size_t)snprintf(name, sizeof name, "bpe/%s", f->name));
    unsigned char flags[2] = {normalises, ignores_merges};
    uint64_t hash = XXH3_64bits(flags, sizeof flags);
    for (size_t i = 0; i < n_stages; i++) {
        hash = XXH3_64bits_withSeed(&stages[i].drops_gaps, sizeof stages[i].drops_gaps, hash);
        hash = XXH3_64bits_withSeed(stages[i].pattern.bytes, stages[i].pattern.n_bytes, hash);
    }
    return hash;
}

static sp_status fail_pattern(const char *where, sp_string pattern, const char *what)
{
    return sp_fail(SP_ERR_UNSUPPORTED, "%s: the pre-tokenizer's pattern \"%.*s\" %s", where,
                   (int)(pattern.n_bytes < 64 ? pattern.n_bytes : 64), pattern.bytes, what);
}

static sp_status compile(pcre2_code **out, const char *where, sp_string pattern)
{
    sp_buffer translated = {0};
    int error = 0;
    PCRE2_SIZE offset;
    uint32_t matches_nothing = 0;
    sp_status st = sp_pattern_translate(&translated, where, pattern);
    if (!st) *out = pcre2_compile((PCRE2_SPTR)translated.bytes, translated.n_bytes, PCRE2_UTF, &error, &offset, NULL);
    sp_buffer_free(&translated);
    if (st) return st;
    if (!*out && error == PCRE2_ERROR_HEAP_FAILED) return sp_fail_no_memory(pattern.n_bytes);
    if (!*out) {
        PCRE2_UCHAR message[128];
        char what[200];
        pcre2_get_error_message(error, message, sizeof message);
        snprintf(what, sizeof what, "cannot be used: %s", (const char *)message);
        return fail_pattern(where, pattern, what);
    }
    pcre2_pattern_info(*out, PCRE2_INFO_MATCHEMPTY, &matches_nothing);
    if (matches_nothing) return fail_pattern(where, pattern, "can match the empty string, which is not known here");
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE); /* where there is no JIT, matching is only slower */
    return SP_OK;
}

/* PCRE2's default limit of 10 million steps is for hostile patterns; ours are linear, and a run may be longer. Those of files get
 * a hundred times our longest test's text. */
static sp_status set_limits(sp_splitter *s)
{
    s->limits = pcre2_match_context_create(NULL);
    if (!s->limits) return sp_fail_no_memory(sizeof *s);
    pcre2_set_match_limit(s->limits, s->is_limited ? 100000000 : UINT32_MAX);
    if (!s->is_limited) pcre2_set_depth_limit(s->limits, UINT32_MAX);
    return SP_OK;
}

static sp_status build(sp_splitter **out, const sp_splitter *settings, const char *where, const sp_split_stage *stages,
                       size_t n_stages)
{
    *out = NULL;
    sp_splitter *s = malloc(sizeof *s);
    if (!s) return sp_fail_no_memory(sizeof *s);
    *s = *settings;
    sp_status st = set_limits(s);
    for (size_t i = 0; i < n_stages && !st; i++) {
        s->n_stages = i + 1;
        s->drops_gaps[i] = stages[i].drops_gaps;
        st = compile(&s->stages[i], where, stages[i].pattern);
    }
    if (st)
        sp_splitter_free(s);
    else
        *out = s;
    return st;
}

sp_status sp_splitter_create(sp_splitter **out, const char *where, const char *name, size_t n_name)
{
    const family *f = NULL;
    sp_split_stage stages[MAX_FAMILY_STAGES] = {0};
    *out = NULL;
    for (size_t i = 0; i < N_FAMILIES && !f; i++)
        if (strlen(families[i].name) == n_name && memcmp(families[i].name, name, n_name) == 0) f = &families[i];
    if (!f) return fail_unknown(where, name, n_name);
    size_t n = n_family_stages(f);
    for (size_t i = 0; i < n; i++) stages[i].pattern = (sp_string){f->stages[i], strlen(f->stages[i])};
    sp_splitter settings = {.name = f->name,
                            .hash = hash_of(stages, n, f->normalises, f->ignores_merges),
                            .normalises = f->normalises,
                            .ignores_merges = f->ignores_merges,
                            .adds_bos = f->adds_bos};
    return build(out, &settings, where, stages, n);
}

sp_status sp_splitter_create_from_stages(sp_splitter **out, const char *where, const sp_split_stage *stages, size_t n_stages,
                                         bool normalises, bool ignores_merges)
{
    const family *f = find_family(stages, n_stages, normalises, ignores_merges);
    *out = NULL;
    if (f) return sp_splitter_create(out, where, f->name, strlen(f->name));
    if (n_stages > SP_MAX_SPLIT_STAGES)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: the pre-tokenizer splits in %zu steps; at most %d are known here", where, n_stages,
                       SP_MAX_SPLIT_STAGES);
    sp_splitter settings = {.name = "custom",
                            .hash = hash_of(stages, n_stages, normalises, ignores_merges),
                            .normalises = normalises,
                            .ignores_merges = ignores_merges,
                            .is_limited = true};
    return build(out, &settings, where, stages, n_stages);
}

void sp_splitter_free(sp_splitter *s)
{
    if (!s) return;
    for (size_t i = 0; i < s->n_stages; i++) pcre2_code_free(s->stages[i]);
    pcre2_match_context_free(s->limits);
    free(s);
}

const char *sp_splitter_name(const sp_splitter *s)
{
    return s->name;
}

uint64_t sp_splitter_hash(const sp_splitter *s)
{
    return s->hash;
}

bool sp_splitter_normalises(const sp_splitter *s)
{
    return s->normalises;
}

bool sp_splitter_ignores_merges(const sp_splitter *s)
{
    return s->ignores_merges;
}

bool sp_splitter_adds_bos(const sp_splitter *s)
{
    return s->adds_bos;
}

/* ---- splitting ------------------------------------------------------------------------------------------------------------ */

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
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    for (uint32_t slowly = 0; slowly <= PCRE2_NO_JIT && rc == PCRE2_ERROR_JIT_STACKLIMIT; slowly += PCRE2_NO_JIT)
        rc = pcre2_match(s->splitter->stages[stage], (PCRE2_SPTR)s->text + start, end - start, from - start,
                         PCRE2_NO_UTF_CHECK | slowly, s->match, s->splitter->limits);
    if (rc == PCRE2_ERROR_MATCHLIMIT || rc == PCRE2_ERROR_DEPTHLIMIT)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "a pattern of the tokenizer's file takes too many steps on this text; its alternatives overlap");
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
    if (stage == s->splitter->n_stages) return s->on_piece(s->user, start, end - start);
    for (size_t at = start; at < end && !st;) {
        bool found;
        size_t match_start = end, match_end = end;
        if ((st = find_match(&found, &match_start, &match_end, s, stage, start, at, end))) break;
        if (!s->splitter->drops_gaps[stage]) st = split_stage(s, stage + 1, at, match_start);
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
