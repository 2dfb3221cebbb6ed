/* status.h: how a failure is reported: a status that is returned, and one message for this thread. */
#ifndef SP_BASE_STATUS_H
#define SP_BASE_STATUS_H

#include "softprompt.h"

/* Sets the thread's message (printf style: where, what, what to do; one line) and returns `status`.
 *     return sp_fail(SP_ERR_FORMAT, "%s: ...", path, ...); */
sp_status sp_fail(sp_status status, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* SP_ERR_MEMORY, with the number of bytes that were wanted. */
sp_status sp_fail_no_memory(size_t n_bytes) __attribute__((cold));

/* SP_ERR_IO with strerror(errno): "PATH: cannot DO: No such file or directory". */
sp_status sp_fail_errno(const char *path, const char *action) __attribute__((cold));

/* Puts "WHERE: " in front of the present message and returns `status`, for a caller that knows more. */
sp_status sp_fail_within(sp_status status, const char *where) __attribute__((cold));

/* Compilers and analysers do not see that these return a failure, and warn of results that only a success sets. The macros of
 * the same names say it: the calls are the same, `status` is evaluated twice. */
static inline sp_status sp_failed(sp_status returned, sp_status status)
{
    (void)returned;
    return status;
}
#define sp_fail(status, ...) sp_failed((sp_fail)(status, __VA_ARGS__), status)
#define sp_fail_no_memory(n_bytes) sp_failed((sp_fail_no_memory)(n_bytes), SP_ERR_MEMORY)
#define sp_fail_errno(path, action) sp_failed((sp_fail_errno)(path, action), SP_ERR_IO)
#define sp_fail_within(status, where) sp_failed((sp_fail_within)(status, where), status)

/* A line to the logger; nothing where logger is NULL. */
void sp_log(const sp_logger *logger, sp_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
