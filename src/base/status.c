/* status.c: the thread's last message. A fixed buffer: reporting a failure must not be able to fail. */
#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char message[1024];

const char *sp_message(void)
{
    return message;
}

void sp_free(void *memory)
{
    free(memory);
}

/* Text from files may stand in messages: whatever is no printable byte must not reach a terminal or break the line. */
static void make_printable(char *line)
{
    for (unsigned char *c = (unsigned char *)line; *c; c++)
        if (*c < 0x20 || *c == 0x7f) *c = '?';
}

sp_status(sp_fail)(sp_status status, const char *format, ...)
{
    char line[sizeof message]; /* the arguments may point into `message` */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    make_printable(line);
    memcpy(message, line, sizeof line);
    return status;
}

sp_status(sp_fail_no_memory)(size_t n_bytes)
{
    return sp_fail(SP_ERR_MEMORY, "out of memory: %zu bytes were wanted; use a smaller batch or model, or free some memory",
                   n_bytes);
}

sp_status(sp_fail_errno)(const char *path, const char *action)
{
    return sp_fail(SP_ERR_IO, "%s: cannot %s: %s", path, action, strerror(errno));
}

sp_status(sp_fail_within)(sp_status status, const char *where)
{
    return sp_fail(status, "%s: %s", where, message);
}

void sp_log(const sp_logger *logger, sp_log_level level, const char *format, ...)
{
    if (!logger || !logger->write) return;
    char line[sizeof message];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    make_printable(line);
    logger->write(logger->user, level, line);
}
