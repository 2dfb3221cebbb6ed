/* json.c: jansson behind our own messages. jansson bounds the nesting (2 048 levels), we bound the bytes: a tree takes some tens
 * of times the memory of its text.
 *
 * When memory runs out jansson 2.14 goes on without the piece of text that it could not store, and its lexer then reads past the
 * end of a token. So reading first sees that there is memory for the longest token possible, and writing measures the text and
 * fills a buffer of ours, which takes no memory of jansson's. */
#include "format/json.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/buffer.h"
#include "base/file.h"
#include "base/status.h"

enum { MAX_JSON_BYTES = 4 << 20 };

static sp_status parse(json_t **out, const char *bytes, size_t n_bytes, const char *path, size_t flags)
{
    json_error_t error;
    void *volatile room = malloc(2 * n_bytes + 64); /* a token buffer doubles; volatile: or the compiler leaves both calls out */
    if (!room) return sp_json_fail_no_memory();
    free(room);
    json_t *value = json_loadb(bytes, n_bytes, JSON_REJECT_DUPLICATES | flags, &error);
    if (!value && error.line < 1) return sp_json_fail_no_memory(); /* jansson found nothing wrong with the text */
    if (!value) return sp_fail(SP_ERR_FORMAT, "%s:%d:%d: bad JSON: %s", path, error.line, error.column, error.text);
    if (!json_is_object(value)) {
        json_decref(value);
        return sp_fail(SP_ERR_FORMAT, "%s: not a JSON object", path);
    }
    *out = value;
    return SP_OK;
}

sp_status sp_json_parse(json_t **out, const char *bytes, size_t n_bytes, const char *path)
{
    *out = NULL;
    if (n_bytes > MAX_JSON_BYTES)
        return sp_fail(SP_ERR_FORMAT, "%s: %zu bytes of JSON, at most %d are read", path, n_bytes, MAX_JSON_BYTES);
    return parse(out, bytes, n_bytes, path, 0);
}

sp_status sp_json_read(json_t **out, const char *path)
{
    return sp_json_read_large(out, path, MAX_JSON_BYTES, 0);
}

sp_status sp_json_read_large(json_t **out, const char *path, size_t max_bytes, size_t flags)
{
    char *bytes;
    size_t n_bytes;
    *out = NULL;
    sp_status st = sp_read_file(&bytes, &n_bytes, path, max_bytes);
    if (!st) st = parse(out, bytes, n_bytes, path, flags);
    free(bytes);
    return st;
}

sp_status sp_json_dump(char **out, const json_t *value, size_t flags)
{
    size_t n_bytes = json_dumpb(value, NULL, 0, flags); /* 0: it could not */
    char *text = *out = n_bytes ? malloc(n_bytes + 1) : NULL;
    if (!text) return sp_json_fail_no_memory();
    if (json_dumpb(value, text, n_bytes, flags) != n_bytes) {
        free(text);
        *out = NULL;
        return sp_json_fail_no_memory();
    }
    text[n_bytes] = 0;
    return SP_OK;
}

sp_status sp_json_write(const json_t *value, const char *path)
{
    char *text;
    sp_status st = sp_json_dump(&text, value, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_ENSURE_ASCII);
    if (st) return st;
    st = sp_write_file_atomic(path, &(sp_bytes){text, strlen(text)}, 1);
    free(text);
    return st;
}

static const char *type_name(const json_t *value)
{
    static const char *const names[] = {"an object",     "an array", "a string", "an integer",
                                        "a real number", "true",     "false",    "null"};
    return names[json_typeof(value)];
}

/* NULL where the member is absent or null. */
static json_t *find_member(const json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static sp_status fail_type(const json_t *value, const char *key, const char *path, const char *wanted)
{
    return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is %s, not %s", path, key, type_name(value), wanted);
}

sp_status sp_json_get_size(size_t *out, const json_t *object, const char *key, const char *path)
{
    const json_t *value = find_member(object, key);
    if (!value) return SP_OK;
    if (!json_is_integer(value)) return fail_type(value, key, path, "an integer");
    if (json_integer_value(value) < 0)
        return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is %" JSON_INTEGER_FORMAT ", which cannot be negative", path, key,
                       json_integer_value(value));
    *out = (size_t)json_integer_value(value);
    return SP_OK;
}

sp_status sp_json_get_real(double *out, const json_t *object, const char *key, const char *path)
{
    const json_t *value = find_member(object, key);
    if (value && !json_is_number(value)) return fail_type(value, key, path, "a number");
    if (value) *out = json_number_value(value);
    return SP_OK;
}

sp_status sp_json_get_string(const char **out, const json_t *object, const char *key, const char *path)
{
    const json_t *value = find_member(object, key);
    if (value && !json_is_string(value)) return fail_type(value, key, path, "a string");
    if (value) *out = json_string_value(value);
    return SP_OK;
}

sp_status sp_json_get_object(json_t **out, const json_t *object, const char *key, const char *path)
{
    json_t *value = find_member(object, key);
    if (value && !json_is_object(value)) return fail_type(value, key, path, "an object");
    if (value) *out = value;
    return SP_OK;
}

json_t *sp_json_text(const char *bytes, size_t n_bytes)
{
    sp_buffer clean = {0};
    sp_status st = sp_buffer_add(&clean, "", 0);
    while (n_bytes > 0 && !st) {
        utf8proc_int32_t character;
        utf8proc_ssize_t limit = n_bytes < 4 ? (utf8proc_ssize_t)n_bytes : 4; /* no character is longer */
        utf8proc_ssize_t taken = utf8proc_iterate((const utf8proc_uint8_t *)bytes, limit, &character);
        st = taken > 0 ? sp_buffer_add(&clean, bytes, (size_t)taken) : sp_buffer_add_string(&clean, "\xef\xbf\xbd");
        if (taken < 1) taken = 1;
        bytes += taken;
        n_bytes -= (size_t)taken;
    }
    json_t *text = st ? NULL : json_stringn(clean.bytes, clean.n_bytes);
    sp_buffer_free(&clean);
    return text;
}
