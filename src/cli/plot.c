/* plot.c: gnuplot as a child, which reads a script with its data inside. */
#include "plot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "options.h"
#include "report.h"

static bool ends_in(const char *text, const char *ending)
{
    size_t n = strlen(text), n_ending = strlen(ending);
    return n >= n_ending && strcmp(text + n - n_ending, ending) == 0;
}

/* In gnuplot's single quotes only a quote itself needs another one. */
static void write_quoted(FILE *gnuplot, const char *text)
{
    fputc('\'', gnuplot);
    for (; *text; text++) {
        if (*text == '\'') fputc('\'', gnuplot);
        fputc(*text, gnuplot);
    }
    fputc('\'', gnuplot);
}

bool plot_check_name(const char *path)
{
    if (ends_in(path, ".svg") || ends_in(path, ".png")) return true;
    report_line("%s: a plot is a .svg or a .png file", path);
    return false;
}

FILE *plot_open_sized(const char *path, int width, int height)
{
    const bool svg = ends_in(path, ".svg");
    if (!plot_check_name(path)) return NULL;
    FILE *gnuplot = popen("gnuplot -", "w");
    if (!gnuplot) {
        report_line("cannot start gnuplot: %s", strerror(errno));
        return NULL;
    }
    if (svg)
        fprintf(gnuplot, "set terminal svg size %d,%d dynamic background rgb 'white' font 'Helvetica,Arial,sans-serif,14'\n", width,
                height);
    else
        fprintf(gnuplot, "set terminal pngcairo size %d,%d font 'sans,14' fontscale 1.25 linewidth 1.5 pointscale 1.6\n",
                width * 3 / 2, height * 3 / 2);
    fprintf(gnuplot, "set output ");
    write_quoted(gnuplot, path);
    fputc('\n', gnuplot);
    return gnuplot;
}

FILE *plot_open(const char *path)
{
    return plot_open_sized(path, 840, 520);
}

int plot_close(FILE *gnuplot, const char *path)
{
    int failed = ferror(gnuplot), status = pclose(gnuplot);
    if (!failed && status == 0 && access(path, R_OK) == 0) return EXIT_DONE;
    report_line("%s: gnuplot did not draw it; is gnuplot installed (Debian: gnuplot-nox) and the place writable?", path);
    return EXIT_FAILED;
}
