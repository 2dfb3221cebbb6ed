/* csv.h: records of CSV (RFC 4180) and TSV text, one at a time, each with the line at which it starts.
 *
 * CSV   A field may stand in quotes; then it may hold commas, line ends, and quotes written twice. Lines end in LF, CRLF or CR;
 *       a BOM is skipped, and so are empty lines. Nothing is trimmed. A record that uses quotes in another way (`5" disk`, or a
 *       quote that is never closed) is read as that one line, without knowledge of what follows: at worst it has the wrong number
 * of fields, but it swallows no other record. TSV   has two dialects: as registered (text/tab-separated-values) quotes are plain
 * characters; spreadsheets and data-frame libraries write CSV's quotes. A file in which every quote stands where the second allows
 * one is read as the second, any other as the first: a text file that happens to begin a field with a quote keeps its lines. */
#ifndef SP_FORMAT_CSV_H
#define SP_FORMAT_CSV_H

#include "softprompt.h"

typedef struct sp_csv sp_csv;

typedef struct sp_csv_field {
    const char *bytes; /* not NUL-terminated; may hold any byte */
    size_t n_bytes;
} sp_csv_field;

typedef struct sp_csv_record {
    size_t line; /* from 1 */
    const sp_csv_field *fields;
    size_t n_fields; /* 0: a line of more than max_bytes, left out */
} sp_csv_record;     /* belongs to the reader, valid until the next call */

/* separator: ',' or '\t'. `text` must outlive the reader. max_bytes: the most that one record may take. */
sp_status sp_csv_open(sp_csv **out, const char *text, size_t n_bytes, char separator, size_t max_bytes);
void sp_csv_close(sp_csv *csv); /* NULL is fine */

/* *record is NULL at the end. Fails with MEMORY only. */
sp_status sp_csv_next(const sp_csv_record **record, sp_csv *csv);

/* For TSV: the line whose quotes made the file plain; 0: none did. */
size_t sp_csv_plain_because_of_line(const sp_csv *csv);

#endif
