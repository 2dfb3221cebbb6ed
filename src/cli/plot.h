/* plot.h: pictures, drawn by gnuplot. */
#ifndef CLI_PLOT_H
#define CLI_PLOT_H

#include <stdbool.h>
#include <stdio.h>

/* Whether the ending is one that can be drawn; if not, with a message: for those who compute long before they draw. */
bool plot_check_name(const char *path);

/* A pipe to gnuplot, set up to draw `path` (.svg or .png); NULL, with a message: another ending, or no gnuplot. */
FILE *plot_open(const char *path);

/* The same with a size in pixels of the .svg; a .png has one and a half times as many, for the same picture. */
FILE *plot_open_sized(const char *path, int width, int height);

/* Ends it. EXIT_DONE, or EXIT_FAILED with a message. */
int plot_close(FILE *gnuplot, const char *path);

#endif
