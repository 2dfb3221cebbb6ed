/* json.h: JSON files read with a limit and written whole, members read with the file and the member named in the message. */
#ifndef SP_FORMAT_JSON_H
#define SP_FORMAT_JSON_H

#include <jansson.h>

#include "base/status.h"
#include "softprompt.h"

/* One JSON object from bytes or from a file (at most 4 MiB). Bad JSON is SP_ERR_FORMAT with line and column; the same key twice
 * is refused. json_decref. */
sp_status sp_json_parse(json_t **out, const char *bytes, size_t n_bytes, const char *path);
sp_status sp_json_read(json_t **out, const char *path);

/* The same for files that may be larger, at most max_bytes, or hold integers beyond 64 bits: JSON_DECODE_INT_AS_REAL among
 * jansson's `flags` makes every integer a real number. */
sp_status sp_json_read_large(json_t **out, const char *path, size_t max_bytes, size_t flags);

/* `value` as text with jansson's flags; *out is freed with free. Not json_dumps: that loses text where memory runs out. */
sp_status sp_json_dump(char **out, const json_t *value, size_t flags);

/* Writes a file atomically (base/file.h), keys sorted, two spaces a level, ASCII: as Python's json.dumps(indent=2, sort_keys=True).
 */
sp_status sp_json_write(const json_t *value, const char *path);

/* Members. An absent or null one leaves *out as it is; one of another type is SP_ERR_FORMAT. Strings belong to `object`. */
sp_status sp_json_get_size(size_t *out, const json_t *object, const char *key, const char *path);
sp_status sp_json_get_real(double *out, const json_t *object, const char *key, const char *path); /* an integer, too */
sp_status sp_json_get_string(const char **out, const json_t *object, const char *key, const char *path);
sp_status sp_json_get_object(json_t **out, const json_t *object, const char *key, const char *path); /* borrowed */

/* A JSON string of bytes in an unknown encoding: what is no UTF-8 becomes U+FFFD. NULL: no memory. */
json_t *sp_json_text(const char *bytes, size_t n_bytes);

/* jansson does not say how much memory it did not get. */
static inline sp_status sp_json_fail_no_memory(void)
{
    return sp_fail(SP_ERR_MEMORY, "out of memory while JSON was read or written");
}

#endif
