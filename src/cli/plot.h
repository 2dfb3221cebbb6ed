/* plot.h: pictures, drawn by gnuplot. */
#ifndef CLI_PLOT_H
#define CLI_PLOT_H

#include <stdio.h>

/* A pipe to gnuplot, set up to draw `path` (.svg or .png); NULL, with a message: another ending, or no gnuplot. */
FILE *plot_open(const char *path);

/* Ends it. EXIT_DONE, or EXIT_FAILED with a message. */
int plot_close(FILE *gnuplot, const char *path);

#endif
