/* report.h: what a command says: failures to standard error; results to standard output, as a table or as one JSON object. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include <jansson.h>
#include <softprompt.h>
#include <stdio.h>

/* "softprompt: LINE" to standard error. */
void report_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The library's last message to standard error. Returns the exit code that `status` stands for. */
int report_failure(sp_status status);

/* The same for an allocation of our own. */
int report_no_memory(void);

/* "name          value": a row of a table. */
void report_row(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same with a string that comes from a file: bytes that could steer a terminal are shown as '?'. */
void report_row_text(const char *name, const char *text);

/* "1:52", "2:05:00" */
typedef struct duration_text {
    char text[24];
} duration_text;
duration_text format_duration(double seconds);

/* "98.4 MB" */
typedef struct size_text {
    char text[24];
} size_text;
size_text format_bytes(double n_bytes);

/* `argument` as a POSIX shell takes it, in quotes where it needs them. */
void print_quoted(FILE *stream, const char *argument);

/* JSON numbers know no NaN: null. Text that is not UTF-8 (a path): null. */
json_t *json_finite(double number);
json_t *json_text(const char *text);

/* Adds `value`, which it takes over, at the end of *object. No memory: *object is freed and NULL, and stays so. */
void json_member(json_t **object, const char *name, json_t *value);

/* One line to standard output; frees `object`. NULL (no memory) is a failure. Returns the exit code. */
int print_json(json_t *object);

/* Rows of the file that were not scored: those that could not be read, and those of which nothing can be predicted. */
size_t rows_skipped(const sp_evaluation *evaluation, const sp_dataset *data);

/* An evaluation of `data` as the object that `eval --json` prints. Members that do not apply are null. */
json_t *evaluation_json(const sp_evaluation *evaluation, const sp_dataset *data);

/* The same as rows of a table, but for rows and time. */
void evaluation_rows(const sp_evaluation *evaluation);

/* Says it where queries left the range that a compiled prompt serves. */
void warn_of_range(const sp_compiled_use *use);

/* Where computing time went, in seconds summed over threads: sp_profile_get as an object. */
json_t *profile_json(void);

/* Flushes standard output. A full disk or a closed pipe turns `code` 0 into 1, with a message. */
int finish_output(int code);

#endif
