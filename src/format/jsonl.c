/* jsonl.c: rows of JSON: an object a line, or an array of objects.
 *
 * Objects are parsed one at a time (jansson), so memory is one row's beside the data set's. A damaged line costs that line; in an
 * array nobody can say where the next element starts, so damage there is an error. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/number.h"
#include "base/status.h"
#include "format/dataset.h"

typedef struct reader {
    sp_dataset *dataset;
    const sp_columns *columns;
    unsigned seen;  /* columns that any row had */
    sp_buffer keys; /* of the first object, for the message about a column that no row has */
    bool saw_object;
} reader;

enum { LABEL_CHARS = SP_DOUBLE_CHARS };

/* ---- values ------------------------------------------------------------------------------------------------- */

/* jansson refuses integers beyond 64 bits. As a hash in a column that nobody reads they are harmless, so such a row is read again
 * with its numbers as doubles. *position: bytes consumed. NULL: error says why. */
static json_t *parse_value(size_t *position, json_error_t *error, const char *bytes, size_t n_bytes, size_t flags)
{
    json_t *value = json_loadb(bytes, n_bytes, flags, error);
    if (!value && json_error_code(error) == json_error_numeric_overflow)
        value = json_loadb(bytes, n_bytes, flags | JSON_DECODE_INT_AS_REAL, error);
    *position = value ? (size_t)error->position : 0;
    return value;
}

static const char *type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    default:
        return "a number";
    }
}

/* A label that is no string, as text: 3 (also for 3.0, which a file's writer may have made of it), 0.5, true. False: none of these.
 */
static bool label_text(char out[LABEL_CHARS], const json_t *value)
{
    if (json_is_integer(value)) {
        snprintf(out, LABEL_CHARS, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else if (json_is_real(value)) {
        double real = json_real_value(value);
        if (fabs(real) < 0x1p53 && real == trunc(real))
            snprintf(out, LABEL_CHARS, "%.0f", real + 0.0); /* + 0: no "-0" */
        else
            sp_format_double(out, real);
    } else if (json_is_boolean(value)) {
        snprintf(out, LABEL_CHARS, "%s", json_is_true(value) ? "true" : "false");
    } else {
        return false;
    }
    return true;
}

/* The cell of a column that the row has; null counts as empty. False: the row was skipped. `number` holds a label's text. */
static bool get_cell(sp_cell *cell, reader *r, size_t line, const json_t *row, const char *column, char number[LABEL_CHARS])
{
    const json_t *value = json_object_get(row, column);
    bool is_label = number && label_text(number, value);
    *cell = (sp_cell){column, "", 0};
    if (json_is_string(value)) {
        cell->bytes = json_string_value(value);
        cell->n_bytes = json_string_length(value);
    } else if (is_label) {
        cell->bytes = number;
        cell->n_bytes = strlen(number);
    } else if (!json_is_null(value)) {
        sp_dataset_skip(r->dataset, line, number ? "Make it a string, a number or a boolean." : "Make it a string.",
                        "column \"%s\" is %s", column, type_name(value));
        return false;
    }
    return true;
}

/* ---- rows --------------------------------------------------------------------------------------------------- */

static sp_status add_two(reader *r, size_t line, const json_t *row, sp_row_kind kind)
{
    char number[LABEL_CHARS];
    sp_cell cells[2];
    const char *first = kind == SP_ROW_COMPLETION ? "prompt" : r->columns->text;
    const char *second = kind == SP_ROW_COMPLETION ? "completion" : r->columns->label;
    if (!get_cell(&cells[0], r, line, row, first, NULL)) return SP_OK;
    if (kind != SP_ROW_TEXT && !get_cell(&cells[1], r, line, row, second, kind == SP_ROW_LABEL ? number : NULL)) return SP_OK;
    return sp_dataset_add_cells(r->dataset, line, kind, cells);
}

static sp_status add_chat(reader *r, size_t line, const json_t *row)
{
    const json_t *list = json_object_get(row, "messages");
    size_t n = json_array_size(list);
    if (!json_is_array(list)) {
        sp_dataset_skip(r->dataset, line, "Make it a list of {\"role\", \"content\"}.", "column \"messages\" is %s",
                        type_name(list));
        return SP_OK;
    }
    sp_chat_message *messages = malloc((n ? n : 1) * sizeof *messages); /* n elements stood in memory as JSON: cannot wrap */
    if (!messages) return sp_fail_no_memory(n * sizeof *messages);
    sp_status st = SP_OK;
    size_t i = 0;
    for (; i < n; i++) {
        const json_t *message = json_array_get(list, i);
        messages[i].role = json_string_value(json_object_get(message, "role"));
        messages[i].content = json_string_value(json_object_get(message, "content"));
        if (!messages[i].role || !messages[i].content) break;
    }
    if (i < n)
        sp_dataset_skip(r->dataset, line, "Give each message both, as strings.", "message %zu has no \"role\" or no \"content\"",
                        i + 1);
    else
        st = sp_dataset_add_messages(r->dataset, line, messages, n);
    free(messages);
    return st;
}

/* The row's task as text, a number or a string of one; anything else is no number either. False: the row was skipped. */
static bool take_task(reader *r, size_t line, const json_t *row)
{
    char number[LABEL_CHARS];
    const json_t *value = json_object_get(row, r->columns->task);
    sp_cell cell = {r->columns->task, "?", 1};
    if (!value) return sp_dataset_take_task(r->dataset, line, NULL);
    if (json_is_string(value))
        cell = (sp_cell){cell.column, json_string_value(value), json_string_length(value)};
    else if (label_text(number, value))
        cell = (sp_cell){cell.column, number, strlen(number)};
    return sp_dataset_take_task(r->dataset, line, &cell);
}

static sp_status note_columns(reader *r, unsigned *has, json_t *row)
{
    const sp_columns *c = r->columns;
    const char *const known[] = {c->text, c->label, "prompt", "completion", "messages", c->task}, *key;
    json_t *value;
    sp_status st = SP_OK;
    *has = 0;
    for (unsigned i = 0; i < 6; i++)
        if (json_object_get(row, known[i])) *has |= 1u << i;
    r->seen |= *has;
    if (r->saw_object) return SP_OK;
    r->saw_object = true;
    json_object_foreach(row, key, value) if (!st && r->keys.n_bytes < 512) st =
        sp_buffer_printf(&r->keys, "%s\"%.64s\"", r->keys.n_bytes ? ", " : "", key);
    return st;
}

static sp_status add_value(reader *r, size_t line, json_t *row)
{
    unsigned has;
    sp_row_kind kind;
    if (!json_is_object(row)) {
        sp_dataset_skip(r->dataset, line, "Make each row an object.", "is %s, not an object", type_name(row));
        return SP_OK;
    }
    sp_status st = note_columns(r, &has, row);
    if (st) return st;
    const char *missing = sp_columns_choose(&kind, r->columns, has);
    if (missing) {
        sp_dataset_skip(r->dataset, line, sp_columns_remedy(r->columns, missing, false), "column \"%s\" is missing", missing);
        return SP_OK;
    }
    if (!take_task(r, line, row)) return SP_OK;
    return kind == SP_ROW_CHAT ? add_chat(r, line, row) : add_two(r, line, row, kind);
}

/* A column that no row has is a mistake of the command line, and worth a better message than the first row's problem. */
static sp_status check_columns(const reader *r)
{
    sp_row_kind kind;
    const char *missing = sp_columns_choose(&kind, r->columns, r->seen);
    if (sp_dataset_n_rows(r->dataset) || !r->saw_object || !missing) return SP_OK;
    return sp_fail(SP_ERR_FORMAT, "%s: no row has a column \"%s\"; the columns are %s. %s", sp_dataset_path(r->dataset), missing,
                   r->keys.n_bytes ? r->keys.bytes : "none", sp_columns_remedy(r->columns, missing, false));
}

/* ---- an object a line ----------------------------------------------------------------------------------------- */

static bool is_blank(const char *bytes, size_t n_bytes)
{
    size_t i = 0;
    while (i < n_bytes && (bytes[i] == ' ' || bytes[i] == '\t' || bytes[i] == '\r')) i++;
    return i == n_bytes;
}

static sp_status add_line(reader *r, size_t line, const char *bytes, size_t n_bytes)
{
    json_error_t error;
    size_t position;
    if (is_blank(bytes, n_bytes)) return SP_OK;
    if (n_bytes > SP_MAX_ROW_BYTES) {
        sp_dataset_skip(r->dataset, line, "Is a line end missing?", "more than %d bytes", SP_MAX_ROW_BYTES);
        return SP_OK;
    }
    json_t *row = parse_value(&position, &error, bytes, n_bytes, JSON_DECODE_ANY);
    if (!row && json_error_code(&error) == json_error_out_of_memory) return sp_fail_no_memory(n_bytes);
    if (!row) {
        sp_dataset_skip(r->dataset, line, "Mend it.", "bad JSON: %s (column %d)", error.text, error.column);
        return SP_OK;
    }
    sp_status st = add_value(r, line, row);
    json_decref(row);
    return st;
}

sp_status sp_dataset_read_jsonl(sp_dataset *dataset, const char *bytes, size_t n_bytes)
{
    reader r = {.dataset = dataset, .columns = sp_dataset_columns(dataset)};
    const char *c = bytes, *end = bytes + n_bytes;
    sp_status st = SP_OK;
    for (size_t line = 1; c < end && !st; line++) {
        const char *newline = memchr(c, '\n', (size_t)(end - c)), *line_end = newline ? newline : end;
        st = add_line(&r, line, c, (size_t)(line_end - c));
        c = newline ? newline + 1 : end;
    }
    if (!st) st = check_columns(&r);
    sp_buffer_free(&r.keys);
    return st;
}

/* ---- an array of objects ---------------------------------------------------------------------------------------- */

typedef struct cursor {
    const char *at, *end;
    size_t line;
} cursor;

static void skip_to(cursor *c, const char *to)
{
    for (; c->at < to; c->at++)
        if (*c->at == '\n') c->line++;
}

static char skip_blanks(cursor *c) /* the character that is there then; 0: the end */
{
    const char *to = c->at;
    while (to < c->end && (*to == ' ' || *to == '\t' || *to == '\r' || *to == '\n')) to++;
    skip_to(c, to);
    return to < c->end ? *to : 0;
}

static sp_status fail_array(const reader *r, size_t line, const char *problem)
{
    return sp_fail(SP_ERR_FORMAT, "%s:%zu: bad JSON: %s; mend the file, or write one object a line", sp_dataset_path(r->dataset),
                   line, problem);
}

static sp_status add_element(reader *r, cursor *c)
{
    json_error_t error;
    size_t position, n_bytes = (size_t)(c->end - c->at);
    if (n_bytes > SP_MAX_ROW_BYTES) n_bytes = SP_MAX_ROW_BYTES;
    json_t *row = parse_value(&position, &error, c->at, n_bytes, JSON_DECODE_ANY | JSON_DISABLE_EOF_CHECK);
    if (!row && json_error_code(&error) == json_error_out_of_memory) return sp_fail_no_memory(n_bytes);
    if (!row) return fail_array(r, c->line + (size_t)(error.line > 0 ? error.line - 1 : 0), error.text);
    sp_status st = add_value(r, c->line, row);
    json_decref(row);
    skip_to(c, c->at + position);
    return st;
}

static sp_status read_elements(reader *r, cursor *c)
{
    skip_blanks(c);
    c->at++; /* the bracket */
    if (skip_blanks(c) == ']') return SP_OK;
    for (;;) {
        sp_status st = add_element(r, c);
        if (st) return st;
        char next = skip_blanks(c);
        if (next == ']') break;
        if (next != ',') return fail_array(r, c->line, next ? "a ',' or ']' is missing" : "the file ends inside the array");
        c->at++;
        skip_blanks(c);
    }
    c->at++;
    return skip_blanks(c) ? fail_array(r, c->line, "something follows the array") : SP_OK;
}

sp_status sp_dataset_read_json_array(sp_dataset *dataset, const char *bytes, size_t n_bytes)
{
    reader r = {.dataset = dataset, .columns = sp_dataset_columns(dataset)};
    cursor c = {bytes, bytes + n_bytes, 1};
    sp_status st = read_elements(&r, &c);
    if (!st) st = check_columns(&r);
    sp_buffer_free(&r.keys);
    return st;
}
