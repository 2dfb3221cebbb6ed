/* buffer.h: a byte string that grows. Zero-initialise it; free it with sp_buffer_free. */
#ifndef SP_BASE_BUFFER_H
#define SP_BASE_BUFFER_H

#include "softprompt.h"

typedef struct sp_buffer {
    char *bytes; /* always followed by a NUL once anything was added; NULL before */
    size_t n_bytes, capacity;
} sp_buffer;

sp_status sp_buffer_add(sp_buffer *buffer, const void *bytes, size_t n_bytes);
sp_status sp_buffer_add_string(sp_buffer *buffer, const char *string);
sp_status sp_buffer_printf(sp_buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
void sp_buffer_clear(sp_buffer *buffer); /* keeps the memory */
void sp_buffer_free(sp_buffer *buffer);

#endif
