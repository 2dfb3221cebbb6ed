/* csv.c: libcsv, a line at a time, so that every record's first line is known.
 *
 * libcsv's lenient mode takes `"a"b,c` for a field that is still open and swallows the records behind it; its strict mode stops
 * there. So a record is read strictly, and only where that fails leniently, from a parser that is shown a single line.
 * Cost: one pass, and a second over records that strict mode refuses. An open quote costs at most two scans of what follows:
 * the strict parser stops at the next line with an odd number of quotes. */
#include "format/csv.h"

#include <csv.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/status.h"

struct sp_csv {
    const char *at, *end; /* at: where the next record starts */
    size_t line;          /* of `at` */
    char separator;
    size_t max_bytes;
    size_t plain_because_of_line;
    struct csv_parser parser; /* strict, between records */

    sp_csv_record record;
    sp_csv_field *fields;
    size_t fields_capacity;
    sp_buffer bytes;  /* the fields' contents, end to end */
    bool complete;    /* the parser has seen the record's end */
    sp_status status; /* of the callbacks, which cannot return one */
};

/* libcsv trims these from fields that are not quoted; a data set's blanks are its own. */
static int no_space(unsigned char c)
{
    (void)c;
    return 0;
}

/* libcsv lets a field's buffer grow by a constant: with its 128 bytes, a field of 64 MiB would be copied half a million times. */
enum { STRICT = CSV_STRICT | CSV_STRICT_FINI, LENIENT = 0, BLOCK_BYTES = 1 << 20 };

static void reset_parser(sp_csv *csv, unsigned char options)
{
    csv_free(&csv->parser);
    csv_init(&csv->parser, options); /* fails on a NULL parser only */
    csv_set_delim(&csv->parser, (unsigned char)csv->separator);
    csv_set_space_func(&csv->parser, no_space);
    csv_set_blk_size(&csv->parser, BLOCK_BYTES);
}

/* The byte behind the line that starts at `start`, line end included. */
static const char *line_end(const sp_csv *csv, const char *start)
{
    const char *c = start;
    while (c < csv->end && *c != '\n' && *c != '\r') c++;
    if (c < csv->end && *c == '\r' && c + 1 < csv->end && c[1] == '\n') c++;
    return c < csv->end ? c + 1 : c;
}

static size_t count_lines(const sp_csv *csv, const char *from, const char *to)
{
    size_t n = 0;
    for (const char *c = from; c < to; n++) c = line_end(csv, c);
    return n;
}

/* ---- records ----------------------------------------------------------------------------------------------- */

/* `bytes` NULL: the contents are n_bytes in csv->bytes, which may yet move; finish_record points there. */
static sp_status add_field(sp_csv *csv, const char *bytes, size_t n_bytes)
{
    if (csv->record.n_fields == csv->fields_capacity) {
        size_t capacity = csv->fields_capacity ? 2 * csv->fields_capacity : 16;
        sp_csv_field *fields = realloc(csv->fields, capacity * sizeof *fields);
        if (!fields) return sp_fail_no_memory(capacity * sizeof *fields);
        csv->fields = fields;
        csv->fields_capacity = capacity;
    }
    csv->fields[csv->record.n_fields++] = (sp_csv_field){bytes, n_bytes};
    return SP_OK;
}

static void on_field(void *bytes, size_t n_bytes, void *user)
{
    sp_csv *csv = user;
    if (!csv->status) csv->status = sp_buffer_add(&csv->bytes, bytes, n_bytes);
    if (!csv->status) csv->status = add_field(csv, NULL, n_bytes);
}

static void on_record(int c, void *user)
{
    (void)c;
    ((sp_csv *)user)->complete = true;
}

static void begin_record(sp_csv *csv)
{
    csv->record.n_fields = 0;
    csv->complete = false;
    sp_buffer_clear(&csv->bytes);
}

static void finish_record(sp_csv *csv)
{
    const char *bytes = csv->bytes.bytes;
    for (size_t i = 0; i < csv->record.n_fields; i++) {
        csv->fields[i].bytes = bytes;
        bytes += csv->fields[i].n_bytes;
    }
}

/* Feeds lines from csv->at until a record is complete. *next: behind it; NULL: it breaks the parser's rules or is too long. */
static sp_status parse_strictly(const char **next, sp_csv *csv)
{
    const char *c = csv->at;
    *next = NULL;
    while (c < csv->end && !csv->complete) {
        const char *end = line_end(csv, c);
        if ((size_t)(end - csv->at) > csv->max_bytes) return SP_OK;
        size_t n_bytes = (size_t)(end - c);
        size_t done = csv_parse(&csv->parser, c, n_bytes, on_field, on_record, csv);
        if (csv->status) return csv->status;
        if (csv_error(&csv->parser) == CSV_ENOMEM) return sp_fail_no_memory(n_bytes);
        if (done != n_bytes) return SP_OK;
        c = end;
    }
    if (!csv->complete && csv_fini(&csv->parser, on_field, on_record, csv)) return csv->status;
    *next = c;
    return csv->status;
}

static sp_status parse_line_leniently(sp_csv *csv, const char *end)
{
    size_t n_bytes = (size_t)(end - csv->at);
    while (n_bytes && (csv->at[n_bytes - 1] == '\n' || csv->at[n_bytes - 1] == '\r')) n_bytes--;
    reset_parser(csv, LENIENT);
    bool failed = csv_parse(&csv->parser, csv->at, n_bytes, on_field, on_record, csv) != n_bytes ||
                  csv_fini(&csv->parser, on_field, on_record, csv);
    if (failed && !csv->status) csv->status = sp_fail_no_memory(n_bytes);
    return csv->status;
}

static sp_status next_quoted(const char **next, sp_csv *csv)
{
    begin_record(csv);
    sp_status st = parse_strictly(next, csv);
    if (st) return st;
    if (!*next) {
        *next = line_end(csv, csv->at);
        begin_record(csv);
        if ((size_t)(*next - csv->at) <= csv->max_bytes && (st = parse_line_leniently(csv, *next))) return st;
        reset_parser(csv, STRICT);
    }
    finish_record(csv);
    return SP_OK;
}

static sp_status next_plain(const char **next, sp_csv *csv)
{
    const char *end = *next = line_end(csv, csv->at);
    csv->record.n_fields = 0;
    if ((size_t)(end - csv->at) > csv->max_bytes) return SP_OK;
    while (end > csv->at && (end[-1] == '\n' || end[-1] == '\r')) end--;
    for (const char *field = csv->at;;) {
        const char *tab = memchr(field, csv->separator, (size_t)(end - field));
        const char *field_end = tab ? tab : end;
        sp_status st = add_field(csv, field, (size_t)(field_end - field));
        if (st || !tab) return st;
        field = tab + 1;
    }
}

sp_status sp_csv_next(const sp_csv_record **record, sp_csv *csv)
{
    *record = NULL;
    while (csv->at < csv->end && (*csv->at == '\n' || *csv->at == '\r')) { /* empty lines */
        csv->at = line_end(csv, csv->at);
        csv->line++;
    }
    if (csv->at == csv->end) return SP_OK;
    const char *next;
    sp_status st = csv->plain_because_of_line ? next_plain(&next, csv) : next_quoted(&next, csv);
    if (st) return st;
    csv->record.line = csv->line;
    csv->record.fields = csv->fields;
    csv->line += count_lines(csv, csv->at, next);
    csv->at = next;
    *record = &csv->record;
    return SP_OK;
}

/* ---- opening ------------------------------------------------------------------------------------------------ */

/* The dialect of a TSV file: one strict pass over all of it that keeps nothing. */
static sp_status choose_dialect(sp_csv *csv)
{
    size_t n_bytes = (size_t)(csv->end - csv->at);
    size_t done = csv_parse(&csv->parser, csv->at, n_bytes, NULL, NULL, NULL);
    if (csv_error(&csv->parser) == CSV_ENOMEM) return sp_fail_no_memory(n_bytes);
    if (done != n_bytes || csv_fini(&csv->parser, NULL, NULL, NULL))
        csv->plain_because_of_line = count_lines(csv, csv->at, csv->at + (done < n_bytes ? done + 1 : n_bytes));
    reset_parser(csv, STRICT);
    return SP_OK;
}

sp_status sp_csv_open(sp_csv **out, const char *text, size_t n_bytes, char separator, size_t max_bytes)
{
    sp_csv *csv = calloc(1, sizeof *csv);
    sp_status st = SP_OK;
    *out = NULL;
    if (!csv) return sp_fail_no_memory(sizeof *csv);
    bool has_bom = n_bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0;
    csv->at = has_bom ? text + 3 : text;
    csv->end = text + n_bytes;
    csv->line = 1;
    csv->separator = separator;
    csv->max_bytes = max_bytes;
    reset_parser(csv, STRICT);
    if (separator == '\t' && (st = choose_dialect(csv))) {
        sp_csv_close(csv);
        return st;
    }
    *out = csv;
    return SP_OK;
}

size_t sp_csv_plain_because_of_line(const sp_csv *csv)
{
    return csv->plain_because_of_line;
}

void sp_csv_close(sp_csv *csv)
{
    if (!csv) return;
    csv_free(&csv->parser);
    free(csv->fields);
    sp_buffer_free(&csv->bytes);
    free(csv);
}
