/* buffer.c: a byte string that doubles. */
#include "base/buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

static sp_status reserve(sp_buffer *buffer, size_t more)
{
    if (more > SIZE_MAX / 4 || buffer->n_bytes > SIZE_MAX / 4) return sp_fail_no_memory(more);
    size_t wanted = buffer->n_bytes + more + 1, capacity = buffer->capacity ? buffer->capacity : 64;
    if (wanted <= buffer->capacity) return SP_OK;
    while (capacity < wanted) capacity *= 2;
    char *bytes = realloc(buffer->bytes, capacity);
    if (!bytes) return sp_fail_no_memory(capacity);
    buffer->bytes = bytes;
    buffer->capacity = capacity;
    return SP_OK;
}

sp_status sp_buffer_add(sp_buffer *buffer, const void *bytes, size_t n_bytes)
{
    sp_status st = reserve(buffer, n_bytes);
    if (st) return st;
    if (n_bytes) memcpy(buffer->bytes + buffer->n_bytes, bytes, n_bytes);
    buffer->n_bytes += n_bytes;
    buffer->bytes[buffer->n_bytes] = 0;
    return SP_OK;
}

sp_status sp_buffer_add_string(sp_buffer *buffer, const char *string)
{
    return sp_buffer_add(buffer, string, strlen(string));
}

sp_status sp_buffer_printf(sp_buffer *buffer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (n < 0) return sp_fail(SP_ERR_ARGUMENT, "text that cannot be formatted");
    sp_status st = reserve(buffer, (size_t)n);
    if (st) return st;
    va_start(arguments, format);
    vsnprintf(buffer->bytes + buffer->n_bytes, (size_t)n + 1, format, arguments);
    va_end(arguments);
    buffer->n_bytes += (size_t)n;
    return SP_OK;
}

void sp_buffer_clear(sp_buffer *buffer)
{
    buffer->n_bytes = 0;
    if (buffer->bytes) buffer->bytes[0] = 0;
}

void sp_buffer_free(sp_buffer *buffer)
{
    free(buffer->bytes);
    *buffer = (sp_buffer){0};
}
