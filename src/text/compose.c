/* compose.c: decompose, order the marks, compose. utf8proc's own ordering exchanges neighbours, which takes minutes for a
 * megabyte of marks in the wrong order; so the marks are sorted here, and utf8proc does the two other steps. */
#include "text/compose.h"

#include <stdlib.h>
#include <utf8proc.h>

#include "base/status.h"
#include "text/unicode.h"

/* A character to be sorted: its combining class, its place (the sort must be stable), and itself, in 8, 32 and 21 bits. */
static uint64_t sort_key(int32_t character, size_t place)
{
    return (uint64_t)utf8proc_get_property(character)->combining_class << 53 | (uint64_t)(uint32_t)place << 21 |
           (uint32_t)character;
}

static int compare_keys(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Decomposed, in the text's order; the number of characters. `keys` has room for them. */
static size_t decompose(uint64_t *keys, const char *text, size_t n_bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i += sp_utf8_length(text[i])) {
        utf8proc_int32_t parts[32];
        int boundary = 0;
        utf8proc_ssize_t n_parts =
            utf8proc_decompose_char((utf8proc_int32_t)sp_utf8_decode(text + i), parts, 32, UTF8PROC_DECOMPOSE, &boundary);
        for (utf8proc_ssize_t k = 0; k < n_parts; k++, n++) keys[n] = sort_key(parts[k], n);
    }
    return n;
}

static void order_marks(uint64_t *keys, size_t n)
{
    for (size_t start = 0, end; start < n; start = end) {
        for (end = start; end < n && keys[end] >> 53; end++) continue;
        if (end - start > 1) qsort(keys + start, end - start, sizeof *keys, compare_keys);
        if (end == start) end++;
    }
}

sp_status sp_compose(char **out, size_t *n_out, const char *text, size_t n_bytes)
{
    *out = NULL;
    *n_out = 0;
    if (n_bytes > UINT32_MAX / 4) return sp_fail_no_memory(n_bytes);
    utf8proc_ssize_t room =
        utf8proc_decompose((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n_bytes, NULL, 0, UTF8PROC_DECOMPOSE);
    if (room < 0) return sp_fail_no_memory(4 * n_bytes);
    uint64_t *keys = malloc(((size_t)room + 1) * sizeof *keys);
    if (!keys) return sp_fail_no_memory(((size_t)room + 1) * sizeof *keys);
    size_t n = decompose(keys, text, n_bytes);
    order_marks(keys, n);
    utf8proc_int32_t *characters = malloc((n + 1) * sizeof *characters);
    for (size_t i = 0; characters && i < n; i++) characters[i] = (utf8proc_int32_t)(keys[i] & 0x1fffff);
    free(keys);
    utf8proc_ssize_t length = -1;
    if (characters) length = utf8proc_reencode(characters, (utf8proc_ssize_t)n, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (length < 0) {
        free(characters);
        return sp_fail_no_memory((n + 1) * sizeof *characters);
    }
    *out = (char *)characters; /* encoded in place */
    *n_out = (size_t)length;
    return SP_OK;
}
