/* terminal.h: a message typed on a terminal, with line editing and history. */
#ifndef CLI_TERMINAL_H
#define CLI_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>

typedef struct terminal terminal;

typedef enum terminal_event { TERMINAL_MESSAGE, TERMINAL_INTERRUPTED, TERMINAL_END } terminal_event;

/* Editing goes to standard error: standard output may be a file that collects the answers. NULL: no memory. */
terminal *terminal_open(const volatile int *interrupted);
void terminal_close(terminal *term); /* NULL is fine */

/* The next message, without its line's end; lines that end with a backslash go on in the next. Valid until the next call.
 * A signal that sets *interrupted drops what was typed so far. */
terminal_event terminal_read(terminal *term, const char **message);

#endif
