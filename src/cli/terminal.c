/* terminal.c: libedit. It reads ~/.editrc, so keys are the user's own. */
#include "terminal.h"

#include <histedit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

enum { HISTORY_LINES = 500 };

struct terminal {
    EditLine *editor;
    History *history;
    const volatile int *interrupted;
    bool continued; /* inside a message of several lines */
    char *message;
    size_t n_bytes;
};

static char *prompt(EditLine *editor)
{
    static char first[] = "> ", next[] = "| ";
    terminal *t = NULL;
    el_get(editor, EL_CLIENTDATA, &t);
    return t && t->continued ? next : first;
}

terminal *terminal_open(const volatile int *interrupted)
{
    HistEvent event;
    terminal *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->interrupted = interrupted;
    t->history = history_init();
    t->editor = el_init("softprompt", stdin, stderr, stderr);
    if (!t->history || !t->editor) {
        terminal_close(t);
        return NULL;
    }
    history(t->history, &event, H_SETSIZE, HISTORY_LINES);
    history(t->history, &event, H_SETUNIQUE, 1);
    el_set(t->editor, EL_CLIENTDATA, t);
    el_set(t->editor, EL_PROMPT, prompt);
    el_set(t->editor, EL_EDITOR, "emacs");
    el_set(t->editor, EL_HIST, history, t->history);
    el_source(t->editor, NULL);
    return t;
}

void terminal_close(terminal *t)
{
    if (!t) return;
    if (t->editor) el_end(t->editor);
    if (t->history) history_end(t->history);
    free(t->message);
    free(t);
}

/* Adds a line to the message; true: it goes on. */
static bool append_line(terminal *t, const char *line, size_t n, bool *no_memory)
{
    while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) n--;
    bool goes_on = n && line[n - 1] == '\\';
    char *message = realloc(t->message, t->n_bytes + n + 1);
    if ((*no_memory = !message)) return false;
    memcpy(message + t->n_bytes, line, n);
    t->message = message;
    t->n_bytes += n;
    if (goes_on) message[t->n_bytes - 1] = '\n';
    message[t->n_bytes] = '\0';
    return goes_on;
}

terminal_event terminal_read(terminal *t, const char **message)
{
    HistEvent event;
    bool no_memory = false;
    t->n_bytes = 0;
    t->continued = false;
    do {
        int n = 0;
        const char *line = el_gets(t->editor, &n);
        if (!line || n <= 0) {
            fputc('\n', stderr);
            return *t->interrupted ? TERMINAL_INTERRUPTED : TERMINAL_END;
        }
        history(t->history, &event, H_ENTER, line);
        t->continued = append_line(t, line, (size_t)n, &no_memory);
    } while (t->continued);
    *message = t->message;
    if (no_memory) report_no_memory();
    return no_memory ? TERMINAL_END : TERMINAL_MESSAGE;
}
