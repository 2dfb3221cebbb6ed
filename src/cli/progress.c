/* progress.c: a bar or lines. Cost: the library reports each step; what is shown is held to ten times a second. */
#include "progress.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "report.h"

static const double redraw_seconds = 0.1, line_seconds = 5;
enum { MAX_BAR = 30, MIN_BAR = 5, DEFAULT_COLUMNS = 80 };

static volatile int stop_requested;

static void request_stop(int signal_number)
{
    (void)signal_number;
    stop_requested = 1;
}

void stop_at_interrupt(void)
{
    struct sigaction action = {.sa_handler = request_stop, .sa_flags = SA_RESTART | (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static size_t terminal_columns(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : DEFAULT_COLUMNS;
}

/* "step 120/300  loss 0.412  46 rows/s  1:52 left": what is not known yet, or does not apply, is left out. */
static void format_state(char *line, size_t n_bytes, const progress_bar *p, const sp_progress *state)
{
    bool training = strcmp(state->what, "train") == 0;
    size_t done = state->done - p->first_done;
    double left = (state->seconds - p->first_seconds) / (double)done * (double)(state->total - state->done);
    char loss[32] = "", tokens[32] = "", rate[32] = "", time_left[32] = "";
    if (isfinite(state->loss)) snprintf(loss, sizeof loss, "  loss %.3f", state->loss);
    if (state->mean_tokens > 0) snprintf(tokens, sizeof tokens, "  %.1f tokens", state->mean_tokens);
    if (state->rows_per_second > 0)
        snprintf(rate, sizeof rate, "  %.*f rows/s", state->rows_per_second < 10, state->rows_per_second);
    if (done > 0) snprintf(time_left, sizeof time_left, "  %s left", format_duration(left).text);
    snprintf(line, n_bytes, "%s %zu/%zu%s%s%s%s", training ? "step" : state->what, state->done, state->total, loss, tokens, rate,
             time_left);
}

static void draw_bar(const sp_progress *state, const char *line)
{
    size_t columns = terminal_columns(), used = strlen(line) + 6;
    size_t width = columns > used + MIN_BAR ? columns - used : 0;
    if (width > MAX_BAR) width = MAX_BAR;
    size_t filled = state->total ? (size_t)((double)width * (double)state->done / (double)state->total) : 0;
    fputs("\r\033[K", stderr);
    if (width) {
        fputc('[', stderr);
        for (size_t i = 0; i < width; i++) fputc(i < filled ? '#' : '.', stderr);
        fprintf(stderr, "]  %s", line);
    } else {
        fprintf(stderr, "%.*s", (int)columns - 1, line); /* a line that wraps cannot be redrawn */
    }
    fflush(stderr);
}

static void show(void *user, const sp_progress *state)
{
    progress_bar *p = user;
    char line[160];
    if (p->quiet || state->done > state->total) return;
    if (!p->what || strcmp(p->what, state->what) != 0 || state->done < p->first_done) {
        p->what = state->what;
        p->first_done = state->done;
        p->first_seconds = state->seconds;
        p->last_shown = p->terminal ? -INFINITY : state->seconds;
    }
    bool due = state->seconds - p->last_shown >= (p->terminal ? redraw_seconds : line_seconds);
    bool last = state->done == state->total && !p->terminal;
    if (!due && !last) return;
    p->last_shown = state->seconds;
    format_state(line, sizeof line, p, state);
    if (p->terminal)
        draw_bar(state, line);
    else
        fprintf(stderr, "%s\n", line);
    p->drawn = p->terminal;
}

void progress_clear(progress_bar *p)
{
    if (p->drawn) fputs("\r\033[K", stderr);
    p->drawn = false;
}

static void write_log(void *user, sp_log_level level, const char *line)
{
    progress_bar *p = user;
    if (p->quiet && level == SP_LOG_INFO) return;
    progress_clear(p);
    report_line("%s%s", level == SP_LOG_WARNING ? "warning: " : "", line);
}

void progress_init(progress_bar *out, bool quiet)
{
    const char *terminal = getenv("TERM");
    *out = (progress_bar){.quiet = quiet};
    out->terminal = isatty(STDERR_FILENO) && terminal && strcmp(terminal, "dumb") != 0;
    out->logger = (sp_logger){.write = write_log, .user = out};
    out->hooks = (sp_hooks){.progress = show, .user = out, .logger = &out->logger, .stop = &stop_requested};
}
