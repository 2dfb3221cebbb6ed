/* hf_pipeline.c: normalizer, pre_tokenizer and post_processor of a tokenizer.json, each an object or a "Sequence" of objects with
 * a "type". Two shapes come out: byte-level BPE with its splits, and BPE over characters with U+2581 for spaces. A part that is
 * neither's is refused: run without it, the tokenizer would give other tokens. */
#include "text/hf_pipeline.h"

#include <string.h>

#include "text/unicode.h"

enum { MAX_NESTING = 8 };

typedef struct reader {
    sp_hf_pipeline *out;
    const char *path;
    bool marks_spaces_early; /* a normalizer makes U+2581 of spaces */
    bool has_metaspace;
} reader;

static sp_status fail_part(const reader *r, const char *where, const char *type, const char *what, const char *known)
{
    return sp_fail(SP_ERR_UNSUPPORTED, "%s: %s \"%.64s\"%s is not known here; %s", r->path, where, type, what, known);
}

/* ---- members ------------------------------------------------------------------------------------------------------------------
 */

static sp_status get_bool(bool *out, const reader *r, const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!value || json_is_null(value)) return SP_OK;
    if (!json_is_boolean(value)) return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is neither true nor false", r->path, key);
    *out = json_is_true(value);
    return SP_OK;
}

static const char *string_of(const json_t *object, const char *key)
{
    const char *string = json_string_value(json_object_get(object, key));
    return string ? string : "";
}

static bool is(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

typedef sp_status part_fn(reader *r, const json_t *part, const char *type);

/* The parts of `object`, in order: itself, or those of its member `list` where it is a Sequence. */
static sp_status for_each_part(reader *r, const json_t *object, const char *where, const char *list, part_fn *read, size_t depth)
{
    if (!object || json_is_null(object)) return SP_OK;
    const char *type = string_of(object, "type");
    if (!*type || depth > MAX_NESTING)
        return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is no object with a \"type\", or nested too deep", r->path, where);
    if (!is(type, "Sequence")) return read(r, object, type);
    const json_t *parts = json_object_get(object, list);
    if (!json_is_array(parts)) return sp_fail(SP_ERR_FORMAT, "%s: \"%s\": a Sequence without \"%s\"", r->path, where, list);
    sp_status st = SP_OK;
    for (size_t i = 0; i < json_array_size(parts) && !st; i++)
        st = for_each_part(r, json_array_get(parts, i), where, list, read, depth + 1);
    return st;
}

/* ---- normalizer ----------------------------------------------------------------------------------------------------------------
 */

#define KNOWN_NORMALIZERS "these are: NFC (byte-level), Prepend of U+2581 and Replace of \" \" by it (characters)"

static sp_status read_normalizer(reader *r, const json_t *part, const char *type)
{
    const json_t *pattern = json_object_get(part, "pattern");
    if (is(type, "NFC")) {
        r->out->normalises = true;
    } else if (is(type, "Prepend") && is(string_of(part, "prepend"), SP_SPACE_MARK)) {
        r->out->space_prefix = SP_PREFIX_ALWAYS;
    } else if (is(type, "Replace") && is(string_of(pattern, "String"), " ") && is(string_of(part, "content"), SP_SPACE_MARK)) {
        r->marks_spaces_early = true;
    } else {
        return fail_part(r, "normalizer", type, is(type, "Prepend") || is(type, "Replace") ? " of these strings" : "",
                         KNOWN_NORMALIZERS);
    }
    return SP_OK;
}

/* ---- pre_tokenizer
 * --------------------------------------------------------------------------------------------------------------- */

#define KNOWN_PRE_TOKENIZERS "these are: ByteLevel, Split (Isolated, or Removed and inverted), Digits, Metaspace with U+2581"

static sp_status add_stage(reader *r, sp_string pattern, bool drops_gaps)
{
    if (r->out->n_stages == SP_MAX_SPLIT_STAGES)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: the pre_tokenizer splits in more than %d steps, which is not known here", r->path,
                       SP_MAX_SPLIT_STAGES);
    r->out->stages[r->out->n_stages++] = (sp_split_stage){pattern, drops_gaps};
    return SP_OK;
}

static sp_string own_pattern(const char *pattern)
{
    return (sp_string){pattern, strlen(pattern)};
}

static sp_status add_literal(reader *r, const json_t *value, bool drops_gaps)
{
    if (r->out->n_stages == SP_MAX_SPLIT_STAGES) return add_stage(r, own_pattern(""), false);
    sp_buffer *escaped = &r->out->escaped[r->out->n_stages];
    const char *literal = json_string_value(value);
    sp_status st = sp_buffer_add(escaped, "", 0);
    for (; *literal && !st; literal++) {
        bool sign = *literal > ' ' && *literal < 0x7f && strchr("\\[](){}.*+?^$|", *literal);
        st = sp_buffer_printf(escaped, "%s%c", sign ? "\\" : "", *literal);
    }
    return st ? st : add_stage(r, (sp_string){escaped->bytes, escaped->n_bytes}, drops_gaps);
}

static sp_status read_split(reader *r, const json_t *part, const char *type)
{
    const json_t *pattern = json_object_get(part, "pattern"), *regex = json_object_get(pattern, "Regex"),
                 *literal = json_object_get(pattern, "String");
    const char *behavior = string_of(part, "behavior");
    bool inverted = false;
    sp_status st = get_bool(&inverted, r, part, "invert");
    if (st) return st;
    if (r->marks_spaces_early && json_is_string(literal) && is(json_string_value(literal), " ")) return SP_OK; /* there are none */
    bool drops_gaps = is(behavior, "Removed") && inverted;
    if (!drops_gaps && !is(behavior, "Isolated"))
        return fail_part(r, "pre_tokenizer", type, " of this behavior", KNOWN_PRE_TOKENIZERS);
    if (json_is_string(regex)) return add_stage(r, (sp_string){json_string_value(regex), json_string_length(regex)}, drops_gaps);
    if (json_is_string(literal) && json_string_length(literal) > 0) return add_literal(r, literal, drops_gaps);
    return sp_fail(SP_ERR_FORMAT, "%s: a Split without a pattern", r->path);
}

static sp_status read_byte_level(reader *r, const json_t *part, const char *type)
{
    bool uses_regex = true, adds_space = true;
    sp_status st;
    if ((st = get_bool(&uses_regex, r, part, "use_regex")) || (st = get_bool(&adds_space, r, part, "add_prefix_space"))) return st;
    if (adds_space) return fail_part(r, "pre_tokenizer", type, " with add_prefix_space", KNOWN_PRE_TOKENIZERS);
    r->out->bytes = true;
    return uses_regex ? add_stage(r, own_pattern(SP_GPT2_PATTERN), false) : SP_OK;
}

static sp_status read_metaspace(reader *r, const json_t *part, const char *type)
{
    const char *scheme = json_object_get(part, "prepend_scheme") ? string_of(part, "prepend_scheme") : "always";
    bool adds_space = true;
    r->out->splits_words = true;
    sp_status st;
    if ((st = get_bool(&r->out->splits_words, r, part, "split")) || (st = get_bool(&adds_space, r, part, "add_prefix_space")))
        return st;
    if (!adds_space) scheme = "never";
    bool first = is(scheme, "first"), always = is(scheme, "always"), known = first || always || is(scheme, "never");
    if (!known || !is(string_of(part, "replacement"), SP_SPACE_MARK) || r->has_metaspace ||
        (r->out->space_prefix != SP_PREFIX_NONE && !is(scheme, "never")))
        return fail_part(r, "pre_tokenizer", type, " with these settings", KNOWN_PRE_TOKENIZERS);
    r->has_metaspace = true;
    if (first || always) r->out->space_prefix = first ? SP_PREFIX_FIRST : SP_PREFIX_UNLESS;
    return SP_OK;
}

static sp_status read_pre_tokenizer(reader *r, const json_t *part, const char *type)
{
    bool single = false;
    if (r->out->bytes) return fail_part(r, "pre_tokenizer", type, " behind ByteLevel", KNOWN_PRE_TOKENIZERS);
    if (is(type, "ByteLevel")) return read_byte_level(r, part, type);
    if (is(type, "Split")) return read_split(r, part, type);
    if (is(type, "Metaspace")) return read_metaspace(r, part, type);
    if (!is(type, "Digits")) return fail_part(r, "pre_tokenizer", type, "", KNOWN_PRE_TOKENIZERS);
    sp_status st = get_bool(&single, r, part, "individual_digits");
    return st ? st : add_stage(r, own_pattern(single ? "\\p{N}" : "\\p{N}+"), false);
}

/* ---- post_processor
 * ---------------------------------------------------------------------------------------------------------------- */

#define KNOWN_POST_PROCESSORS "these are: ByteLevel, TemplateProcessing with one token in front of a text and one behind it"

static sp_status read_template(reader *r, const json_t *part, const char *type)
{
    const json_t *single = json_object_get(part, "single");
    bool behind = false;
    if (!json_is_array(single)) return sp_fail(SP_ERR_FORMAT, "%s: a TemplateProcessing without \"single\"", r->path);
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i), *token = json_object_get(json_object_get(piece, "SpecialToken"), "id");
        if (json_object_get(piece, "Sequence") && !behind) {
            behind = true;
            continue;
        }
        sp_string *to = behind ? &r->out->after : &r->out->before;
        if (!json_is_string(token) || to->bytes)
            return fail_part(r, "post_processor", type, " of this kind", KNOWN_POST_PROCESSORS);
        *to = (sp_string){json_string_value(token), json_string_length(token)};
    }
    return behind ? SP_OK : fail_part(r, "post_processor", type, " without the text", KNOWN_POST_PROCESSORS);
}

static sp_status read_post_processor(reader *r, const json_t *part, const char *type)
{
    r->out->has_post_processor = true;
    if (is(type, "ByteLevel")) return SP_OK; /* moves offsets only */
    if (is(type, "TemplateProcessing")) return read_template(r, part, type);
    return fail_part(r, "post_processor", type, "", KNOWN_POST_PROCESSORS);
}

/* ---- all three
 * --------------------------------------------------------------------------------------------------------------------- */

static sp_status check_shape(const reader *r)
{
    const sp_hf_pipeline *p = r->out;
    const char *known = "known are byte-level BPE (pre_tokenizer ByteLevel), and BPE over characters with U+2581 for spaces";
    if (p->bytes && (r->has_metaspace || r->marks_spaces_early || p->space_prefix != SP_PREFIX_NONE))
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: ByteLevel together with U+2581 for spaces is not known here; %s", r->path, known);
    if (!p->bytes && !r->has_metaspace && !r->marks_spaces_early)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: a tokenizer without ByteLevel, Metaspace or a Replace of spaces is not known here; %s", r->path, known);
    if (!p->bytes && (p->n_stages || p->normalises))
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: NFC, Split or Digits in front of BPE over characters is not known here; %s",
                       r->path, known);
    return SP_OK;
}

sp_status sp_hf_pipeline_read(sp_hf_pipeline *out, const json_t *root, const char *path)
{
    reader r = {.out = out, .path = path};
    sp_status st;
    *out = (sp_hf_pipeline){0};
    if ((st = for_each_part(&r, json_object_get(root, "normalizer"), "normalizer", "normalizers", read_normalizer, 0)) ||
        (st = for_each_part(&r, json_object_get(root, "pre_tokenizer"), "pre_tokenizer", "pretokenizers", read_pre_tokenizer, 0)) ||
        (st = for_each_part(&r, json_object_get(root, "post_processor"), "post_processor", "processors", read_post_processor, 0)))
        return st;
    out->keeps_spaces_late = !r.marks_spaces_early;
    return check_shape(&r);
}

void sp_hf_pipeline_clear(sp_hf_pipeline *p)
{
    for (size_t i = 0; i < SP_MAX_SPLIT_STAGES; i++) sp_buffer_free(&p->escaped[i]);
    *p = (sp_hf_pipeline){0};
}
