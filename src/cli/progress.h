/* progress.h: how far long work has come, on standard error, and the stop that Ctrl-C asks for.
 * On a terminal a bar redrawn in place, otherwise a line every few seconds:
 *     step 120/300  loss 0.412  46 rows/s  1:52 left */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <softprompt.h>

typedef struct progress_bar {
    sp_hooks hooks;   /* for the library's calls; point back here: a progress_bar must not be moved */
    sp_logger logger; /* warnings go to standard error around the bar; notes too, unless quiet */
    bool quiet, terminal, drawn;
    const char *what;     /* of the phase that is shown: "train" or "eval", the library's string */
    size_t first_done;    /* and where it stood when it was first seen: a resumed run starts at its checkpoint, */
    double first_seconds; /* which must not count as speed */
    double last_shown;
} progress_bar;

void progress_init(progress_bar *out, bool quiet);

/* Takes the bar off the screen, before something else is printed. */
void progress_clear(progress_bar *bar);

/* From now on the first Ctrl-C (or SIGTERM) sets the stop flag of every bar's hooks, the second kills. */
void stop_at_interrupt(void);

#endif
