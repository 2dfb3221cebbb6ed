/* from_hf.c: a Hugging Face directory's tokenizer as a description that sp_tokenizer_create builds from.
 *
 * tokenizer.json has the vocabulary, the merges and the added tokens; hf_pipeline.c reads what it does to a text. The files beside
 * it say which token is BOS and EOS, whether they are added, what ends a turn, and how a conversation is written. Where they
 * disagree, this goes by what transformers does: tokenizer_config.json's add_bos_token and add_eos_token over the post_processor.
 *
 * Every number of the files is checked before it is an index. Cost: jansson's tree of tokenizer.json, some ten times its bytes, for
 * the time of the call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/status.h"
#include "text/hf_pipeline.h"
#include "text/tokenizer.h"

enum {
    MAX_TOKENIZER_BYTES = 256 << 20,
    MAX_TEMPLATE_BYTES = 1 << 20,
    MAX_GAPS = 4096, /* ids without a token, beyond as many as there are tokens */
};

enum { TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, GENERATION_CONFIG, CONFIG, N_FILES };

static const char *const names[N_FILES] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                           "generation_config.json", "config.json"};

typedef struct reader {
    const char *dir;
    char *paths[N_FILES];
    json_t *files[N_FILES]; /* NULL: not there */
    const json_t *model;    /* of tokenizer.json */
    sp_hf_pipeline pipeline;
    sp_tokenizer_source source;
    sp_string *tokens, *merges, *rights;
    int32_t *types;
    uint8_t *flags;
    size_t capacity, n_vocab; /* tokens that there is room for; entries of the model's vocabulary */
    json_t *beyond;           /* added tokens that the model's vocabulary lacks, and their ids */
    char *template_file;
    int32_t unknown;
} reader;

static const char *where(const reader *r)
{
    return r->paths[TOKENIZER];
}

/* ---- files ------------------------------------------------------------------------------------------------------------------- */

/* tokenizer_config.json often says that the longest text has 10^30 tokens, and nothing that is read of it is an integer. */
static sp_status read_files(reader *r)
{
    sp_status st = SP_OK;
    for (int i = 0; i < N_FILES && !st; i++) {
        if (!(r->paths[i] = sp_path_join(r->dir, names[i]))) return SP_ERR_MEMORY;
        if (sp_path_exists(r->paths[i]))
            st = sp_json_read_large(&r->files[i], r->paths[i], MAX_TOKENIZER_BYTES,
                                    i == TOKENIZER_CONFIG ? JSON_DECODE_INT_AS_REAL : 0);
        else if (i == TOKENIZER)
            st = sp_fail(SP_ERR_IO,
                         "%s: there is no such file; of other tokenizers, save it with transformers: "
                         "AutoTokenizer.from_pretrained(...).save_pretrained(...)",
                         r->paths[i]);
    }
    return st;
}

/* ---- vocabulary ----------------------------------------------------------------------------------------------------------------
 */

static sp_status read_id(int32_t *out, const reader *r, const json_t *value, const char *what)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 || (uint64_t)json_integer_value(value) >= r->capacity)
        return sp_fail(SP_ERR_FORMAT, "%s: the id of \"%.64s\" is no number below %zu; fetch the model again", where(r), what,
                       r->capacity);
    *out = (int32_t)json_integer_value(value);
    return SP_OK;
}

static sp_status set_token(reader *r, int32_t id, const char *bytes, size_t n_bytes)
{
    if (r->tokens[id].bytes)
        return sp_fail(SP_ERR_FORMAT, "%s: \"%.*s\" and \"%.*s\" are both token %d; fetch the model again", where(r),
                       (int)(r->tokens[id].n_bytes < 64 ? r->tokens[id].n_bytes : 64), r->tokens[id].bytes,
                       (int)(n_bytes < 64 ? n_bytes : 64), bytes, (int)id);
    r->tokens[id] = (sp_string){bytes, n_bytes};
    r->types[id] = SP_TOKEN_NORMAL;
    if ((size_t)id >= r->source.n_tokens) r->source.n_tokens = (size_t)id + 1;
    return SP_OK;
}

static sp_status allocate(reader *r, size_t n_entries)
{
    if (n_entries > INT32_MAX / 4)
        return sp_fail(SP_ERR_FORMAT, "%s: a vocabulary of %zu tokens is too large", where(r), n_entries);
    r->capacity = 2 * n_entries + MAX_GAPS;
    r->tokens = calloc(r->capacity, sizeof *r->tokens);
    r->types = calloc(r->capacity, sizeof *r->types);
    r->flags = calloc(r->capacity, sizeof *r->flags);
    if (!r->tokens || !r->types || !r->flags) return sp_fail_no_memory(r->capacity * (sizeof *r->tokens + sizeof *r->types + 1));
    for (size_t i = 0; i < r->capacity; i++) r->types[i] = SP_TOKEN_UNUSED;
    return SP_OK;
}

static sp_status read_vocabulary(reader *r)
{
    json_t *vocabulary = json_object_get(r->model, "vocab");
    const char *key;
    json_t *value;
    if (!json_is_object(vocabulary) || json_object_size(vocabulary) == 0)
        return sp_fail(SP_ERR_FORMAT, "%s: the model's \"vocab\" is no object of tokens and ids", where(r));
    r->n_vocab = json_object_size(vocabulary);
    sp_status st = allocate(r, r->n_vocab + json_array_size(json_object_get(r->files[TOKENIZER], "added_tokens")));
    json_object_foreach(vocabulary, key, value)
    {
        int32_t id;
        if (st || (st = read_id(&id, r, value, key))) break;
        if (*key) st = set_token(r, id, key, strlen(key));
    }
    return st;
}

static sp_status read_merge(reader *r, size_t i, const json_t *merge)
{
    const json_t *left = json_is_array(merge) && json_array_size(merge) == 2 ? json_array_get(merge, 0) : NULL;
    const json_t *right = left ? json_array_get(merge, 1) : NULL;
    const json_t *first = r->rights ? left : merge;
    if (!json_is_string(first) || (r->rights && !json_is_string(right)))
        return sp_fail(SP_ERR_FORMAT, "%s: merge %zu is neither \"left right\" nor a pair, as the first one is", where(r), i);
    r->merges[i] = (sp_string){json_string_value(first), json_string_length(first)};
    if (r->rights) r->rights[i] = (sp_string){json_string_value(right), json_string_length(right)};
    return SP_OK;
}

static sp_status read_merges(reader *r)
{
    const json_t *merges = json_object_get(r->model, "merges");
    size_t n = json_array_size(merges);
    if (!json_is_array(merges)) return sp_fail(SP_ERR_FORMAT, "%s: the model's \"merges\" is no array", where(r));
    r->merges = calloc(n + 1, sizeof *r->merges);
    if (json_is_array(json_array_get(merges, 0))) r->rights = calloc(n + 1, sizeof *r->rights);
    if (!r->merges || (json_is_array(json_array_get(merges, 0)) && !r->rights))
        return sp_fail_no_memory(2 * (n + 1) * sizeof *r->merges);
    sp_status st = SP_OK;
    for (size_t i = 0; i < n && !st; i++) st = read_merge(r, i, json_array_get(merges, i));
    r->source.merges = r->merges;
    r->source.merge_rights = r->rights;
    r->source.n_merges = n;
    return st;
}

/* -1: none. */
static int32_t find_token(const reader *r, const char *string)
{
    const json_t *value = json_object_get(json_object_get(r->model, "vocab"), string);
    if (!value) value = json_object_get(r->beyond, string);
    return value ? (int32_t)json_integer_value(value) : -1; /* checked when it was read */
}

/* ---- the model's settings
 * --------------------------------------------------------------------------------------------------------- */

static sp_status get_bool(bool *out, const reader *r, const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!value || json_is_null(value)) return SP_OK;
    if (!json_is_boolean(value)) return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is neither true nor false", where(r), key);
    *out = json_is_true(value);
    return SP_OK;
}

/* Settings that change ids and are used by no model of the families that run here. */
static sp_status check_model(const reader *r)
{
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *type = json_object_get(r->model, "type"), *dropout = json_object_get(r->model, "dropout");
    bool old = !type && json_object_get(r->model, "merges"); /* files from before models had a type */
    if (!old && (!json_is_string(type) || strcmp(json_string_value(type), "BPE") != 0))
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: a tokenizer of type \"%.64s\" is not known here; BPE is", where(r),
                       json_is_string(type) ? json_string_value(type) : "(none)");
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++) {
        const json_t *value = json_object_get(r->model, empty[i]);
        if (value && !json_is_null(value) && json_string_length(value) > 0)
            return sp_fail(SP_ERR_UNSUPPORTED, "%s: BPE with %s is not known here, only without", where(r), empty[i]);
    }
    if (dropout && json_number_value(dropout) != 0)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: BPE with dropout is not known here, only without", where(r));
    return SP_OK;
}

/* A byte without a token is left out, but where the file has something else in mind. */
static sp_status set_bytes(reader *r, bool spells_bytes, bool ignores_merges)
{
    if (r->unknown >= 0 || spells_bytes)
        for (unsigned byte = 0; byte < 256; byte++) {
            char letter[3] = {0};
            sp_bpe_letter(letter, (unsigned char)byte);
            if (find_token(r, letter) < 0)
                return sp_fail(SP_ERR_UNSUPPORTED, "%s: byte-level BPE with %s and without a token for byte %u is not known here",
                               where(r), spells_bytes ? "byte_fallback" : "unk_token", byte);
        }
    r->source.model = (sp_string){"gpt2", 4};
    r->source.stages = r->pipeline.stages;
    r->source.n_stages = r->pipeline.n_stages;
    r->source.normalises = r->pipeline.normalises;
    r->source.ignores_merges = ignores_merges;
    return SP_OK;
}

static sp_status set_characters(reader *r, bool spells_bytes, bool ignores_merges, bool fuses_unknown)
{
    size_t n_bytes = 0;
    for (unsigned byte = 0; byte < 256 && spells_bytes; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", byte);
        int32_t token = find_token(r, name);
        if (token < 0) continue;
        r->types[token] = SP_TOKEN_BYTE;
        n_bytes++;
    }
    if (n_bytes % 256 != 0)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: byte_fallback with tokens for %zu of 256 bytes is not known here", where(r),
                       n_bytes);
    if (ignores_merges)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: ignore_merges is known of byte-level BPE only, and this is BPE over characters",
                       where(r));
    r->source.model = (sp_string){"llama", 5};
    r->source.add_space_prefix = (int)r->pipeline.space_prefix;
    r->source.characters = (sp_spm){.unknown = r->unknown,
                                    .n_model_tokens = r->n_vocab,
                                    .spells_bytes = n_bytes > 0,
                                    .splits_words = r->pipeline.splits_words,
                                    .fuses_unknown = fuses_unknown};
    return SP_OK;
}

static sp_status read_model_settings(reader *r)
{
    const json_t *unknown = json_object_get(r->model, "unk_token");
    bool fuses = false, spells = false, ignores = false;
    sp_status st;
    r->unknown = json_is_string(unknown) ? find_token(r, json_string_value(unknown)) : -1;
    if (json_is_string(unknown) && r->unknown < 0)
        return sp_fail(SP_ERR_FORMAT, "%s: unk_token \"%.64s\" is no token; fetch the model again", where(r),
                       json_string_value(unknown));
    if ((st = get_bool(&fuses, r, r->model, "fuse_unk")) || (st = get_bool(&spells, r, r->model, "byte_fallback")) ||
        (st = get_bool(&ignores, r, r->model, "ignore_merges")))
        return st;
    return r->pipeline.bytes ? set_bytes(r, spells, ignores) : set_characters(r, spells, ignores, fuses);
}

/* ---- added tokens
 * --------------------------------------------------------------------------------------------------------------------- */

/* A late token is looked for in normalised text: only where that is its own string are the two the same. */
static sp_status check_late(const reader *r, const char *content)
{
    bool has_space = strchr(content, ' ') || strstr(content, "\xe2\x96\x81"), ascii = true;
    for (const char *c = content; *c; c++) ascii = ascii && (unsigned char)*c < 0x80;
    const char *why = NULL;
    if (r->pipeline.normalises && !ascii) why = "NFC of something beyond ASCII";
    if (!r->pipeline.bytes && r->pipeline.space_prefix == SP_PREFIX_ALWAYS) why = "Prepend";
    if (!r->pipeline.bytes && has_space) why = "U+2581 for spaces";
    if (!why) return SP_OK;
    return sp_fail(SP_ERR_UNSUPPORTED,
                   "%s: added token \"%.64s\" is looked for in normalised text (\"normalized\"), which is not known here "
                   "with %s",
                   where(r), content, why);
}

static sp_status read_flags(bool *special, uint8_t *flags, const reader *r, const json_t *token, const char *content)
{
    bool single = false, left = false, right = false, late = false;
    sp_status st;
    *special = false;
    if ((st = get_bool(&single, r, token, "single_word")) || (st = get_bool(&left, r, token, "lstrip")) ||
        (st = get_bool(&right, r, token, "rstrip")) || (st = get_bool(&late, r, token, "normalized")) ||
        (st = get_bool(special, r, token, "special")))
        return st;
    if (single)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: added token \"%.64s\" is looked for as a word (\"single_word\"), which is not known here", where(r),
                       content);
    if (late && (left || right) && !r->pipeline.bytes)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: added token \"%.64s\" takes white space of normalised text, which is not known here", where(r),
                       content);
    if (late && (st = check_late(r, content))) return st;
    *flags = (uint8_t)((late ? SP_ADDED_LATE : 0) | (left ? SP_ADDED_LSTRIP : 0) | (right ? SP_ADDED_RSTRIP : 0));
    return SP_OK;
}

/* tokenizers numbers the tokens itself: what the file says has to be the same. */
static sp_status add_added(reader *r, const json_t *token, const json_t *id_value, int32_t *next)
{
    const char *content = json_string_value(json_object_get(token, "content"));
    bool special;
    uint8_t flags;
    int32_t id;
    if (!content || !*content) return sp_fail(SP_ERR_FORMAT, "%s: an added token without \"content\"", where(r));
    sp_status st = read_flags(&special, &flags, r, token, content);
    if (st || (st = read_id(&id, r, id_value, content))) return st;
    int32_t known = find_token(r, content), expected = known < 0 ? *next : known;
    if (id != expected)
        return sp_fail(SP_ERR_FORMAT,
                       "%s: added token \"%.64s\" is said to be %d, and is %d when it is numbered; fetch the model again", where(r),
                       content, (int)id, (int)expected);
    if (known < 0) {
        if ((st = set_token(r, id, content, strlen(content)))) return st;
        if (json_object_set_new(r->beyond, content, json_integer(id))) return sp_json_fail_no_memory();
    }
    if (id >= *next) *next = id + 1;
    r->types[id] = special ? SP_TOKEN_CONTROL : SP_TOKEN_USER_DEFINED;
    r->flags[id] = flags;
    return SP_OK;
}

static sp_status read_added(reader *r)
{
    const json_t *added = json_object_get(r->files[TOKENIZER], "added_tokens");
    int32_t next = (int32_t)r->n_vocab;
    sp_status st = (r->beyond = json_object()) ? SP_OK : sp_json_fail_no_memory();
    if (added && !json_is_array(added) && !json_is_null(added))
        return sp_fail(SP_ERR_FORMAT, "%s: \"added_tokens\" is no array", where(r));
    for (size_t i = 0; i < json_array_size(added) && !st; i++) {
        const json_t *token = json_array_get(added, i);
        st = add_added(r, token, json_object_get(token, "id"), &next);
    }
    return st;
}

/* ---- what the files beside it say
 * ----------------------------------------------------------------------------------------------------- */

/* "<s>" or {"content": "<s>", ...}; NULL: neither. */
static const char *content_of(const json_t *token)
{
    return json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
}

/* A token that a role is named for is special, whatever tokenizer.json says. */
static sp_status read_role(int32_t *out, reader *r, const char *role)
{
    *out = -1;
    for (int file = TOKENIZER_CONFIG; file <= SPECIAL_TOKENS; file++) {
        const char *content = content_of(json_object_get(r->files[file], role));
        if (!content) continue;
        *out = find_token(r, content);
        if (*out < 0)
            return sp_fail(SP_ERR_FORMAT, "%s: %s \"%.64s\" is no token of %s; fetch the model again", r->paths[file], role,
                           content, names[TOKENIZER]);
        if (r->types[*out] == SP_TOKEN_NORMAL || r->types[*out] == SP_TOKEN_USER_DEFINED) r->types[*out] = SP_TOKEN_CONTROL;
        return SP_OK;
    }
    return SP_OK;
}

/* A number, or an array of numbers; what is no token of this tokenizer is passed over: files keep those of models they came from.
 */
static void add_ends(reader *r, const json_t *value)
{
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        if (json_is_integer(id) && json_integer_value(id) >= 0 && (uint64_t)json_integer_value(id) < r->source.n_tokens &&
            r->source.n_ends < SP_MAX_END_TOKENS)
            r->source.ends[r->source.n_ends++] = (int32_t)json_integer_value(id);
    }
}

/* The token of the post_processor has to be the role's, as there is one BOS and one EOS here. */
static sp_status check_post_token(int *adds, int32_t *role, reader *r, sp_string token, const char *name)
{
    *adds = token.bytes != NULL;
    if (!token.bytes) return SP_OK;
    int32_t id = find_token(r, token.bytes);
    if (id >= 0 && *role < 0) *role = id;
    if (id >= 0 && id == *role) return SP_OK;
    return sp_fail(SP_ERR_UNSUPPORTED,
                   "%s: the post_processor adds \"%.64s\", which is not the %s; no other token is known to be added", where(r),
                   token.bytes, name);
}

static sp_status read_bos_and_eos(reader *r)
{
    sp_tokenizer_source *s = &r->source;
    int32_t other;
    sp_status st;
    if ((st = read_role(&s->bos, r, "bos_token")) || (st = read_role(&s->eos, r, "eos_token")) ||
        (st = read_role(&other, r, "unk_token")))
        return st;
    if (r->unknown >= 0 && r->types[r->unknown] == SP_TOKEN_CONTROL) r->types[r->unknown] = SP_TOKEN_UNKNOWN;
    add_ends(r, json_object_get(r->files[GENERATION_CONFIG], "eos_token_id"));
    add_ends(r, json_object_get(r->files[CONFIG], "eos_token_id"));
    st = check_post_token(&s->add_bos, &s->bos, r, r->pipeline.before, "bos_token");
    return st ? st : check_post_token(&s->add_eos, &s->eos, r, r->pipeline.after, "eos_token");
}

/* chat_template.jinja over tokenizer_config.json, which has a template, or a list of named ones. */
static sp_status read_template(reader *r)
{
    const json_t *value = json_object_get(r->files[TOKENIZER_CONFIG], "chat_template");
    char *path = sp_path_join(r->dir, "chat_template.jinja");
    sp_status st = SP_OK;
    if (!path) return SP_ERR_MEMORY;
    if (sp_path_exists(path)) {
        size_t n_bytes;
        st = sp_read_file(&r->template_file, &n_bytes, path, MAX_TEMPLATE_BYTES);
        if (!st) r->source.chat_template = (sp_string){r->template_file, n_bytes};
        free(path);
        return st;
    }
    free(path);
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *name = json_object_get(json_array_get(value, i), "name");
        if (json_is_string(name) && strcmp(json_string_value(name), "default") == 0) {
            value = json_object_get(json_array_get(value, i), "template");
            break;
        }
    }
    if (json_is_string(value)) r->source.chat_template = (sp_string){json_string_value(value), json_string_length(value)};
    return SP_OK;
}

/* ---- all of it
 * --------------------------------------------------------------------------------------------------------------------------- */

static sp_status read_source(reader *r)
{
    sp_status st = read_files(r);
    if (st) return st;
    r->source = (sp_tokenizer_source){
        .where = where(r), .bos = -1, .eos = -1, .eot = -1, .eom = -1, .add_bos = 0, .add_eos = 0, .add_space_prefix = 0};
    r->model = json_object_get(r->files[TOKENIZER], "model");
    if (!json_is_object(r->model)) return sp_fail(SP_ERR_FORMAT, "%s: there is no \"model\" in it; fetch it again", where(r));
    if ((st = check_model(r)) || (st = sp_hf_pipeline_read(&r->pipeline, r->files[TOKENIZER], where(r))) ||
        (st = read_vocabulary(r)) || (st = read_merges(r)) || (st = read_model_settings(r)) || (st = read_added(r)) ||
        (st = read_bos_and_eos(r)))
        return st;
    r->source.tokens = r->tokens;
    r->source.types = r->types;
    r->source.flags = r->flags;
    return read_template(r);
}

sp_status sp_tokenizer_from_hf(sp_tokenizer **out, const char *dir)
{
    reader r = {.dir = dir};
    *out = NULL;
    sp_status st = read_source(&r);
    if (!st) st = sp_tokenizer_create(out, &r.source);
    for (int i = 0; i < N_FILES; i++) {
        free(r.paths[i]);
        json_decref(r.files[i]);
    }
    json_decref(r.beyond);
    sp_hf_pipeline_clear(&r.pipeline);
    free(r.tokens);
    free(r.types);
    free(r.flags);
    free(r.merges);
    free(r.rights);
    free(r.template_file);
    return st;
}
