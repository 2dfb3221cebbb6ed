/* target_table.c: a function through the rows of a file. Cost of a value: a pass over all rows. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/status.h"
#include "format/csv.h"
#include "lab/target.h"

enum { MAX_FILE_BYTES = 1 << 26, MAX_RECORD_BYTES = 1 << 16, NUMBER_BYTES = 64 };

struct sp_target_table {
    size_t n, n_rows, capacity; /* n inputs and n outputs a row */
    double *values;             /* (n_rows, 2 n) */
    double lipschitz;
};

/* min_i (y_i + Lip |x - x_i|), McShane 1934: the largest function of this slope through the rows, and so cut at 1. */
static void evaluate_table(double *y, const double *x, size_t n, const void *data)
{
    const sp_target_table *t = data;
    for (size_t k = 0; k < n; k++) y[k] = 1;
    for (size_t i = 0; i < t->n_rows; i++) {
        const double *row = t->values + i * 2 * n;
        double distance = 0;
        for (size_t k = 0; k < n; k++) distance = fmax(distance, fabs(x[k] - row[k]));
        for (size_t k = 0; k < n; k++) y[k] = fmin(y[k], row[n + k] + t->lipschitz * distance);
    }
}

static sp_status parse_number(double *out, const sp_csv_field *field, const char *path, size_t line, size_t column)
{
    char text[NUMBER_BYTES], *end = text;
    size_t n = field->n_bytes < sizeof text ? field->n_bytes : 0;
    memcpy(text, field->bytes, n);
    text[n] = 0;
    *out = strtod(text, &end);
    while (*end == ' ') end++;
    if (n && end != text && !*end && *out >= 0 && *out <= 1) return SP_OK;
    return sp_fail(SP_ERR_FORMAT, "%s:%zu: column %zu is no number in [0, 1]: \"%s\"", path, line, column + 1, text);
}

static sp_status add_row(sp_target_table *t, const sp_csv_record *record, const char *path)
{
    if (record->n_fields != 2 * t->n)
        return sp_fail(SP_ERR_FORMAT, "%s:%zu: %zu columns; %zu inputs and as many outputs were expected", path, record->line,
                       record->n_fields, t->n);
    if (t->n_rows == t->capacity) {
        size_t larger = t->capacity ? 2 * t->capacity : 64;
        double *moved = realloc(t->values, larger * 2 * t->n * sizeof *moved);
        if (!moved) return sp_fail_no_memory(larger * 2 * t->n * sizeof *moved);
        t->values = moved;
        t->capacity = larger;
    }
    double *row = memset(t->values + t->n_rows * 2 * t->n, 0, 2 * t->n * sizeof *row);
    for (size_t k = 0; k < 2 * t->n; k++) {
        sp_status st = parse_number(&row[k], &record->fields[k], path, record->line, k);
        if (st) return st;
    }
    t->n_rows++;
    return SP_OK;
}

static sp_status read_rows(sp_target_table *t, const char *path)
{
    char *text;
    size_t n_bytes;
    sp_csv *csv = NULL;
    const sp_csv_record *record;
    sp_status st = sp_read_file(&text, &n_bytes, path, MAX_FILE_BYTES);
    if (st) return st;
    st = sp_csv_open(&csv, text, n_bytes, ',', MAX_RECORD_BYTES);
    while (!st && !(st = sp_csv_next(&record, csv)) && record) st = add_row(t, record, path);
    sp_csv_close(csv);
    free(text);
    return !st && t->n_rows == 0 ? sp_fail(SP_ERR_FORMAT, "%s: no row; give inputs and outputs, a pair a line", path) : st;
}

/* The steepest way from one row to another. */
static sp_status find_slope(sp_target_table *t, const char *path)
{
    for (size_t i = 0; i < t->n_rows; i++)
        for (size_t j = 0; j < i; j++) {
            const double *a = t->values + i * 2 * t->n, *b = t->values + j * 2 * t->n;
            double run = 0, rise = 0;
            for (size_t k = 0; k < t->n; k++) {
                run = fmax(run, fabs(a[k] - b[k]));
                rise = fmax(rise, fabs(a[t->n + k] - b[t->n + k]));
            }
            if (run == 0 && rise > 0)
                return sp_fail(SP_ERR_FORMAT, "%s: rows %zu and %zu have the same inputs and other outputs: no function", path,
                               j + 1, i + 1);
            if (run > 0) t->lipschitz = fmax(t->lipschitz, rise / run);
        }
    return SP_OK;
}

sp_status sp_target_table_load(sp_target_table **out, sp_target_function *f, const char *path, size_t n)
{
    *out = NULL;
    sp_target_table *t = calloc(1, sizeof *t);
    if (!t) return sp_fail_no_memory(sizeof *t);
    t->n = n;
    sp_status st = read_rows(t, path);
    if (!st) st = find_slope(t, path);
    if (st) {
        sp_target_table_free(t);
        return st;
    }
    *f = (sp_target_function){"table", t->lipschitz, evaluate_table, t};
    *out = t;
    return SP_OK;
}

void sp_target_table_free(sp_target_table *table)
{
    if (!table) return;
    free(table->values);
    free(table);
}
