/* dataset.c: rows in memory, and what makes a row usable.
 *
 * Invariant: every row has the kind of the first; its strings are valid UTF-8 without NUL bytes and, but for messages that are
 * context, not empty. Memory: the strings, one arena piece a row, plus sizeof(sp_row) each. */
#include "format/dataset.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/rng.h"
#include "base/status.h"

enum { N_NAMED = 10 };                                    /* skipped rows that the log names */
static const uint64_t HOLD_OUT_STREAM = 0x686f6c646f7574; /* of a seed */

struct sp_dataset {
    sp_arena *strings;
    sp_row *rows;
    size_t n_rows, rows_capacity, n_skipped;
    sp_row first;     /* kind and line of the first row */
    sp_row_fn *visit; /* who gets each row, which is then forgotten; NULL: rows are kept */
    void *visit_user;
    char *path;
    sp_columns columns;
    size_t task_id; /* of the next row */
    const sp_logger *logger;
    char first_problem[256];
};

/* ---- columns ------------------------------------------------------------------------------------------------ */

const char *sp_columns_choose(sp_row_kind *kind, const sp_columns *columns, unsigned has)
{
    bool text = has & SP_HAS_TEXT, label = has & SP_HAS_LABEL, prompt = has & SP_HAS_PROMPT, completion = has & SP_HAS_COMPLETION;
    *kind = SP_ROW_TEXT;
    if (columns->text_is_mapped && !text) return columns->text;
    if (columns->label_is_mapped && !label) return columns->label;
    if (columns->task_is_mapped && !(has & SP_HAS_TASK)) return columns->task;
    if (text && label)
        *kind = SP_ROW_LABEL;
    else if (prompt && completion && !columns->text_is_mapped)
        *kind = SP_ROW_COMPLETION;
    else if ((has & SP_HAS_MESSAGES) && !columns->text_is_mapped)
        *kind = SP_ROW_CHAT;
    else if (text)
        *kind = SP_ROW_TEXT;
    else if (prompt)
        return "completion";
    else if (completion)
        return "prompt";
    else
        return columns->text;
    return NULL;
}

const char *sp_columns_remedy(const sp_columns *columns, const char *column, bool is_empty)
{
    if (!strcmp(column, columns->text))
        return is_empty ? "Fill it, or name another with --text-column." : "Add it, or name another with --text-column.";
    if (!strcmp(column, columns->label))
        return is_empty ? "Fill it, or name another with --label-column." : "Add it, or name another with --label-column.";
    if (columns->task_is_mapped && !strcmp(column, columns->task)) return "Add it, or name another with --task-column.";
    return is_empty ? "Fill it." : "Add it.";
}

/* ---- skipping ------------------------------------------------------------------------------------------------ */

void sp_dataset_skip(sp_dataset *dataset, size_t line, const char *remedy, const char *problem, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, problem);
    vsnprintf(text, sizeof text, problem, arguments);
    va_end(arguments);
    if (dataset->n_skipped++ == 0) snprintf(dataset->first_problem, sizeof dataset->first_problem, "line %zu: %.200s", line, text);
    if (dataset->n_skipped <= N_NAMED)
        sp_log(dataset->logger, SP_LOG_WARNING, "%s:%zu: %s; row skipped. %s", dataset->path, line, text, remedy);
}

static bool is_utf8(const char *bytes, size_t n_bytes)
{
    const utf8proc_uint8_t *c = (const utf8proc_uint8_t *)bytes, *end = c + n_bytes;
    while (c < end) {
        utf8proc_int32_t code_point;
        utf8proc_ssize_t n = *c < 0x80 ? 1 : utf8proc_iterate(c, end - c, &code_point);
        if (n < 1) return false;
        c += n;
    }
    return true;
}

static bool cell_is_usable(sp_dataset *dataset, size_t line, const sp_cell *cell)
{
    if (cell->n_bytes == 0)
        sp_dataset_skip(dataset, line, sp_columns_remedy(&dataset->columns, cell->column, true), "column \"%s\" is empty",
                        cell->column);
    else if (!is_utf8(cell->bytes, cell->n_bytes))
        sp_dataset_skip(dataset, line, "Convert the file to UTF-8.", "column \"%s\" is not valid UTF-8", cell->column);
    else if (memchr(cell->bytes, 0, cell->n_bytes))
        sp_dataset_skip(dataset, line, "Remove it.", "column \"%s\" holds a NUL byte", cell->column);
    else
        return true;
    return false;
}

static bool kind_fits(sp_dataset *dataset, size_t line, sp_row_kind kind)
{
    static const char *const names[] = {"text and label", "prompt and completion", "messages", "text alone"};
    if (!dataset->n_rows || dataset->first.kind == kind) return true;
    sp_dataset_skip(dataset, line, "Keep one kind of row in a file.", "has %s, where the rows from line %zu on have %s",
                    names[kind], dataset->first.line, names[dataset->first.kind]);
    return false;
}

/* ---- which task a row belongs to ------------------------------------------------------------------------------- */

/* Digits alone, up to 2^32. */
static bool read_task_id(size_t *out, const sp_cell *cell)
{
    *out = 0;
    if (cell->n_bytes == 0 || cell->n_bytes > 10) return false;
    for (size_t i = 0; i < cell->n_bytes; i++) {
        if (cell->bytes[i] < '0' || cell->bytes[i] > '9') return false;
        *out = 10 * *out + (size_t)(cell->bytes[i] - '0');
    }
    return *out <= UINT32_MAX;
}

/* A column that happens to be called "task" may hold anything until a prompt of several tasks wants to know. */
bool sp_dataset_take_task(sp_dataset *dataset, size_t line, const sp_cell *cell)
{
    dataset->task_id = 0;
    if (!cell || (cell->n_bytes == 0 && !dataset->columns.task_is_mapped) || read_task_id(&dataset->task_id, cell)) return true;
    dataset->task_id = SIZE_MAX;
    if (!dataset->columns.task_is_mapped) return true;
    sp_dataset_skip(dataset, line, "Tasks are whole numbers from 0.", "column \"%s\" is \"%.*s\"", cell->column,
                    cell->n_bytes < 40 ? (int)cell->n_bytes : 40, cell->bytes);
    return false;
}

/* ---- adding rows ----------------------------------------------------------------------------------------------- */

/* A row at the end, zeroed but for kind and line; not counted yet. NULL: no memory, message set. */
static sp_row *new_row(sp_dataset *dataset, sp_row_kind kind, size_t line)
{
    size_t n_kept = dataset->visit ? 0 : dataset->n_rows;
    if (n_kept == dataset->rows_capacity) {
        size_t capacity = dataset->rows_capacity ? 2 * dataset->rows_capacity : 256;
        sp_row *rows = reallocarray(dataset->rows, capacity, sizeof *rows);
        if (!rows) {
            sp_fail_no_memory(capacity * sizeof *rows);
            return NULL;
        }
        dataset->rows = rows;
        dataset->rows_capacity = capacity;
    }
    sp_row *row = &dataset->rows[n_kept];
    *row = (sp_row){.kind = kind, .line = line, .task_id = dataset->task_id};
    return row;
}

/* The row that new_row gave is whole. */
static sp_status finish_row(sp_dataset *dataset, const sp_row *row)
{
    if (dataset->n_rows++ == 0) dataset->first = (sp_row){.kind = row->kind, .line = row->line};
    if (!dataset->visit) return SP_OK;
    sp_status st = dataset->visit(dataset->visit_user, row);
    sp_arena_reset(dataset->strings, (sp_arena_mark){0});
    return st;
}

/* Copies a string with its NUL to *at, and moves *at behind it. */
static const char *put_string(char **at, const char *bytes, size_t n_bytes)
{
    char *copy = *at;
    memcpy(copy, bytes, n_bytes);
    copy[n_bytes] = 0;
    *at += n_bytes + 1;
    return copy;
}

sp_status sp_dataset_add_cells(sp_dataset *dataset, size_t line, sp_row_kind kind, const sp_cell *cells)
{
    size_t n_cells = kind == SP_ROW_TEXT ? 1 : 2, n_bytes = 0;
    const char *strings[2] = {NULL, NULL};
    for (size_t i = 0; i < n_cells; n_bytes += cells[i++].n_bytes + 1)
        if (!cell_is_usable(dataset, line, &cells[i])) return SP_OK;
    if (!kind_fits(dataset, line, kind)) return SP_OK;

    sp_row *row = new_row(dataset, kind, line);
    char *memory = sp_arena_alloc(dataset->strings, n_bytes, 1);
    if (!row || !memory) return SP_ERR_MEMORY;
    for (size_t i = 0; i < n_cells; i++) strings[i] = put_string(&memory, cells[i].bytes, cells[i].n_bytes);
    *(kind == SP_ROW_COMPLETION ? &row->prompt : &row->text) = strings[0];
    *(kind == SP_ROW_COMPLETION ? &row->completion : &row->label) = strings[1];
    return finish_row(dataset, row);
}

/* The last assistant message is what a model learns: there must be one, and it must say something. */
static bool messages_are_usable(sp_dataset *dataset, size_t line, const sp_chat_message *messages, size_t n_messages)
{
    const sp_chat_message *answer = NULL;
    for (size_t i = 0; i < n_messages; i++) {
        const char *role = messages[i].role;
        if (!strcmp(role, "assistant")) {
            answer = &messages[i];
        } else if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0) {
            sp_dataset_skip(dataset, line, "Roles are system, user and assistant.", "message %zu has the role \"%s\"", i + 1, role);
            return false;
        }
    }
    if (!answer)
        sp_dataset_skip(dataset, line, "Add the answer to be learnt.", "no message is the assistant's");
    else if (!*answer->content)
        sp_dataset_skip(dataset, line, "Fill it.", "the last message of the assistant is empty");
    return answer && *answer->content;
}

sp_status sp_dataset_add_messages(sp_dataset *dataset, size_t line, const sp_chat_message *messages, size_t n_messages)
{
    if (!messages_are_usable(dataset, line, messages, n_messages) || !kind_fits(dataset, line, SP_ROW_CHAT)) return SP_OK;
    size_t n_bytes = n_messages * sizeof *messages; /* at most SP_MAX_ROW_BYTES of JSON: nothing here can wrap */
    for (size_t i = 0; i < n_messages; i++) n_bytes += strlen(messages[i].role) + strlen(messages[i].content) + 2;

    sp_row *row = new_row(dataset, SP_ROW_CHAT, line);
    sp_chat_message *copies = sp_arena_alloc(dataset->strings, n_bytes, 1);
    if (!row || !copies) return SP_ERR_MEMORY;
    char *at = (char *)(copies + n_messages);
    for (size_t i = 0; i < n_messages; i++) {
        copies[i].role = put_string(&at, messages[i].role, strlen(messages[i].role));
        copies[i].content = put_string(&at, messages[i].content, strlen(messages[i].content));
    }
    row->messages = copies;
    row->n_messages = n_messages;
    return finish_row(dataset, row);
}

/* ---- loading --------------------------------------------------------------------------------------------------- */

static bool ends_with(const char *path, const char *ending)
{
    size_t n = strlen(path), n_ending = strlen(ending);
    return n > n_ending && !strcasecmp(path + n - n_ending, ending);
}

/* The first character that is not blank; 0: none. */
static char first_character(const char *bytes, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        if (!strchr(" \t\r\n", bytes[i])) return bytes[i];
    return 0;
}

static sp_status read_rows(sp_dataset *dataset, const char *bytes, size_t n_bytes)
{
    const char *path = dataset->path;
    if (n_bytes == 0) return sp_fail(SP_ERR_FORMAT, "%s: is empty", path);
    if (n_bytes >= 2 && (!memcmp(bytes, "\xff\xfe", 2) || !memcmp(bytes, "\xfe\xff", 2)))
        return sp_fail(SP_ERR_FORMAT, "%s: is UTF-16; save it as UTF-8", path);
    if (ends_with(path, ".csv")) return sp_dataset_read_table(dataset, bytes, n_bytes, ',');
    if (ends_with(path, ".tsv")) return sp_dataset_read_table(dataset, bytes, n_bytes, '\t');
    if (n_bytes >= 3 && !memcmp(bytes, "\xef\xbb\xbf", 3)) {
        bytes += 3;
        n_bytes -= 3;
    }
    if (ends_with(path, ".json") && first_character(bytes, n_bytes) == '[')
        return sp_dataset_read_json_array(dataset, bytes, n_bytes);
    if (ends_with(path, ".jsonl") || ends_with(path, ".ndjson") || ends_with(path, ".json"))
        return sp_dataset_read_jsonl(dataset, bytes, n_bytes);
    return sp_fail(SP_ERR_UNSUPPORTED,
                   "%s: the name's ending says nothing of the format; known are .jsonl, .ndjson, .json, .csv, .tsv", path);
}

static sp_status check_rows(const sp_dataset *dataset)
{
    if (dataset->n_skipped)
        sp_log(dataset->logger, SP_LOG_WARNING, "%s: %zu of %zu rows skipped", dataset->path, dataset->n_skipped,
               dataset->n_skipped + dataset->n_rows);
    if (dataset->n_rows) return SP_OK;
    if (!dataset->n_skipped) return sp_fail(SP_ERR_FORMAT, "%s: holds no rows", dataset->path);
    return sp_fail(SP_ERR_FORMAT, "%s: none of %zu rows can be used; %s", dataset->path, dataset->n_skipped,
                   dataset->first_problem);
}

static sp_status load(sp_dataset *dataset)
{
    sp_mapped_file file;
    sp_status st = sp_map_file(&file, dataset->path);
    if (st) return st;
    st = read_rows(dataset, (const char *)file.bytes, file.size);
    sp_unmap_file(&file);
    return st ? st : check_rows(dataset);
}

static const char *name_or(const char *name, const char *default_name)
{
    return name && *name ? name : default_name;
}

/* visit: NULL, or who gets the rows. */
static sp_status read_file(sp_dataset **out, const char *path, const sp_data_options *options, sp_row_fn *visit, void *user)
{
    static const sp_data_options defaults = {0};
    const sp_data_options *o = options ? options : &defaults;
    sp_dataset *dataset = calloc(1, sizeof *dataset);
    sp_status st = SP_ERR_MEMORY;
    *out = NULL;
    if (!dataset) return sp_fail_no_memory(sizeof *dataset);
    dataset->visit = visit;
    dataset->visit_user = user;
    dataset->logger = o->logger;
    dataset->columns = (sp_columns){.text = name_or(o->text_column, "text"),
                                    .label = name_or(o->label_column, "label"),
                                    .task = name_or(o->task_column, "task"),
                                    .text_is_mapped = o->text_column && *o->text_column,
                                    .label_is_mapped = o->label_column && *o->label_column,
                                    .task_is_mapped = o->task_column && *o->task_column};
    if (!(dataset->path = strdup(path)))
        st = sp_fail_no_memory(strlen(path) + 1);
    else if (!(st = sp_arena_create(&dataset->strings)))
        st = load(dataset);
    if (st) {
        sp_dataset_free(dataset);
        return st;
    }
    dataset->logger = NULL; /* these three were borrowed for the call */
    dataset->columns = (sp_columns){0};
    *out = dataset;
    return SP_OK;
}

sp_status sp_dataset_load(sp_dataset **out, const char *path, const sp_data_options *options)
{
    return read_file(out, path, options, NULL, NULL);
}

sp_status sp_dataset_visit(const char *path, const sp_data_options *options, sp_row_fn *visit, void *user, size_t *n_skipped)
{
    sp_dataset *dataset;
    sp_status st = read_file(&dataset, path, options, visit, user);
    if (n_skipped) *n_skipped = st ? 0 : dataset->n_skipped;
    sp_dataset_free(dataset);
    return st;
}

void sp_dataset_free(sp_dataset *dataset)
{
    if (!dataset) return;
    sp_arena_free(dataset->strings);
    free(dataset->rows);
    free(dataset->path);
    free(dataset);
}

/* ---- parts of a data set ------------------------------------------------------------------------------------- */

static sp_status create_part(sp_dataset **out, const sp_dataset *whole, size_t n_rows)
{
    sp_dataset *part = calloc(1, sizeof *part);
    *out = part;
    if (part) part->path = strdup(whole->path);
    if (part) part->rows = malloc((n_rows ? n_rows : 1) * sizeof *part->rows);
    return part && part->path && part->rows ? SP_OK : sp_fail_no_memory(n_rows * sizeof(sp_row));
}

sp_status sp_dataset_hold_out(sp_dataset **rest, sp_dataset **held_out, const sp_dataset *whole, size_t n_held_out, uint64_t seed)
{
    size_t n = whole->n_rows, *order = malloc(n * sizeof *order);
    bool *is_held_out = calloc(n, sizeof *is_held_out);
    *rest = *held_out = NULL;
    sp_status st = order && is_held_out ? SP_OK : sp_fail_no_memory(n * sizeof *order);
    if (!st) st = create_part(rest, whole, n - n_held_out);
    if (!st) st = create_part(held_out, whole, n_held_out);
    if (!st) {
        sp_rng rng = sp_rng_seed(seed, HOLD_OUT_STREAM);
        sp_rng_permute(&rng, order, n);
        for (size_t i = 0; i < n_held_out; i++) is_held_out[order[i]] = true;
        for (size_t i = 0; i < n; i++) {
            sp_dataset *part = is_held_out[i] ? *held_out : *rest;
            part->rows[part->n_rows++] = whole->rows[i];
        }
    } else {
        sp_dataset_free(*rest);
        sp_dataset_free(*held_out);
        *rest = *held_out = NULL;
    }
    free(is_held_out);
    free(order);
    return st;
}

size_t sp_dataset_n_rows(const sp_dataset *dataset)
{
    return dataset->n_rows;
}

size_t sp_dataset_n_skipped(const sp_dataset *dataset)
{
    return dataset->n_skipped;
}

const sp_row *sp_dataset_row(const sp_dataset *dataset, size_t index)
{
    return &dataset->rows[index];
}

const char *sp_dataset_path(const sp_dataset *dataset)
{
    return dataset->path;
}

const sp_columns *sp_dataset_columns(const sp_dataset *dataset)
{
    return &dataset->columns;
}

const sp_logger *sp_dataset_logger(const sp_dataset *dataset)
{
    return dataset->logger;
}
