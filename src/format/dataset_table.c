/* dataset_table.c: rows of CSV and TSV files. The first record names the columns; every other has as many fields. */
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/status.h"
#include "format/csv.h"
#include "format/dataset.h"

typedef struct table {
    sp_dataset *dataset;
    sp_row_kind kind;
    const char *names[2]; /* of the columns that make a row */
    size_t index[2], n_columns;
    size_t task; /* index of the column that says the row's task; n_columns: none */
} table;

static bool field_is(const sp_csv_field *field, const char *name)
{
    return field->n_bytes == strlen(name) && !memcmp(field->bytes, name, field->n_bytes);
}

/* Index of the column; n_fields: there is none. */
static size_t find_column(const sp_csv_record *header, const char *name)
{
    size_t i = 0;
    while (i < header->n_fields && !field_is(&header->fields[i], name)) i++;
    return i;
}

static sp_status check_single(const sp_csv_record *header, const char *path, size_t index)
{
    const sp_csv_field *name = &header->fields[index];
    for (size_t i = index + 1; i < header->n_fields; i++)
        if (header->fields[i].n_bytes == name->n_bytes && !memcmp(header->fields[i].bytes, name->bytes, name->n_bytes))
            return sp_fail(SP_ERR_FORMAT, "%s:%zu: two columns are called \"%.*s\"; rename one", path, header->line,
                           (int)name->n_bytes, name->bytes);
    return SP_OK;
}

static sp_status fail_missing(const sp_csv_record *header, const sp_dataset *dataset, const char *missing)
{
    sp_buffer list = {0};
    sp_status st = SP_OK;
    for (size_t i = 0; i < header->n_fields && i < 32 && !st; i++)
        st = sp_buffer_printf(&list, "%s\"%.*s\"", i ? ", " : "", (int)header->fields[i].n_bytes, header->fields[i].bytes);
    if (!st)
        st = sp_fail(SP_ERR_FORMAT, "%s:%zu: no column \"%s\"; the columns are %.600s. %s", sp_dataset_path(dataset), header->line,
                     missing, list.bytes, sp_columns_remedy(sp_dataset_columns(dataset), missing, false));
    sp_buffer_free(&list);
    return st;
}

static sp_status read_header(table *t, const sp_csv_record *header)
{
    const sp_columns *columns = sp_dataset_columns(t->dataset);
    const char *path = sp_dataset_path(t->dataset);
    const char *const known[] = {columns->text, columns->label, "prompt", "completion"};
    unsigned has = 0;
    if (header->n_fields == 0) return sp_fail(SP_ERR_FORMAT, "%s:%zu: the header line is too long", path, header->line);
    for (unsigned i = 0; i < 4; i++)
        if (find_column(header, known[i]) < header->n_fields) has |= 1u << i;
    t->task = find_column(header, columns->task);
    if (t->task < header->n_fields) has |= SP_HAS_TASK;
    const char *missing = sp_columns_choose(&t->kind, columns, has);
    if (missing) return fail_missing(header, t->dataset, missing);

    size_t first = t->kind == SP_ROW_COMPLETION ? 2 : 0, n = t->kind == SP_ROW_TEXT ? 1 : 2;
    t->n_columns = header->n_fields;
    for (size_t i = 0; i < n; i++) {
        t->names[i] = known[first + i];
        t->index[i] = find_column(header, t->names[i]);
        sp_status st = check_single(header, path, t->index[i]);
        if (st) return st;
    }
    return SP_OK;
}

static sp_status add_record(const table *t, const sp_csv_record *record)
{
    sp_cell cells[2];
    if (record->n_fields == 0) {
        sp_dataset_skip(t->dataset, record->line, "Is a line end or a quote missing?", "more than %d bytes", SP_MAX_ROW_BYTES);
        return SP_OK;
    }
    if (record->n_fields != t->n_columns) {
        sp_dataset_skip(t->dataset, record->line,
                        "Put fields that hold separators, quotes or line ends in quotes, and double the quotes.",
                        "%zu fields, where the header names %zu columns", record->n_fields, t->n_columns);
        return SP_OK;
    }
    for (size_t i = 0; i < 2 && t->names[i]; i++) {
        const sp_csv_field *field = &record->fields[t->index[i]];
        cells[i] = (sp_cell){t->names[i], field->bytes, field->n_bytes};
    }
    const sp_csv_field *task = t->task < t->n_columns ? &record->fields[t->task] : NULL;
    const sp_cell task_cell = {sp_dataset_columns(t->dataset)->task, task ? task->bytes : NULL, task ? task->n_bytes : 0};
    if (!sp_dataset_take_task(t->dataset, record->line, task ? &task_cell : NULL)) return SP_OK;
    return sp_dataset_add_cells(t->dataset, record->line, t->kind, cells);
}

static sp_status read_records(table *t, sp_csv *csv)
{
    const sp_csv_record *record;
    sp_status st = sp_csv_next(&record, csv);
    if (st || !record) return st;
    if ((st = read_header(t, record))) return st;
    do
        if ((st = sp_csv_next(&record, csv))) return st;
    while (record && !(st = add_record(t, record)));
    return st;
}

sp_status sp_dataset_read_table(sp_dataset *dataset, const char *bytes, size_t n_bytes, char separator)
{
    table t = {.dataset = dataset};
    sp_csv *csv;
    sp_status st = sp_csv_open(&csv, bytes, n_bytes, separator, SP_MAX_ROW_BYTES);
    if (st) return st;
    if (sp_csv_plain_because_of_line(csv))
        sp_log(sp_dataset_logger(dataset), SP_LOG_INFO,
               "%s:%zu: a quote stands where quoting has none; quotes are plain characters in this file", sp_dataset_path(dataset),
               sp_csv_plain_because_of_line(csv));
    st = read_records(&t, csv);
    sp_csv_close(csv);
    return st;
}
