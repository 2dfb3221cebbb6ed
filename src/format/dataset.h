/* dataset.h: a data set as its readers fill it, one file format a reader.
 *
 * A reader takes a file apart into rows and offers each to sp_dataset_add_*, which keeps it or, where it cannot be used, skips it,
 * counts it and names it by line. */
#ifndef SP_FORMAT_DATASET_H
#define SP_FORMAT_DATASET_H

#include "softprompt.h"

/* No row of a real data set comes near; a damaged file (a missing line end) does. */
enum { SP_MAX_ROW_BYTES = 64 << 20 };

/* Which columns a row is made of. */
typedef struct sp_columns {
    const char *text, *label, *task;
    bool text_is_mapped, label_is_mapped, task_is_mapped; /* named by the user: a file without them is a mistake */
} sp_columns;

/* The columns that a row or a header has, as a set. */
enum { SP_HAS_TEXT = 1, SP_HAS_LABEL = 2, SP_HAS_PROMPT = 4, SP_HAS_COMPLETION = 8, SP_HAS_MESSAGES = 16, SP_HAS_TASK = 32 };

/* The kind of a row with these columns: text and label, else prompt and completion, else messages, else text alone; a mapped
 * column must be there. NULL, or the name of a column that is missing for any of them. */
const char *sp_columns_choose(sp_row_kind *kind, const sp_columns *columns, unsigned has);

/* "Add it[, or name another with --text-column]." for the column that sp_columns_choose named, or an empty one ("Fill it"). */
const char *sp_columns_remedy(const sp_columns *columns, const char *column, bool is_empty);

/* One value of a row. */
typedef struct sp_cell {
    const char *column; /* for messages */
    const char *bytes;
    size_t n_bytes;
} sp_cell;

/* Takes the task that the next row belongs to; NULL: it has no such column. False: it names none where it must, and was skipped. */
bool sp_dataset_take_task(sp_dataset *dataset, size_t line, const sp_cell *cell);

/* Takes a copy of a row of two cells (text, label or prompt, completion) or one (text). Empty cells, NUL bytes, invalid UTF-8
 * and another kind than the first row's make it a skipped row, which is no failure. Fails with MEMORY only. */
sp_status sp_dataset_add_cells(sp_dataset *dataset, size_t line, sp_row_kind kind, const sp_cell *cells);
sp_status sp_dataset_add_messages(sp_dataset *dataset, size_t line, const sp_chat_message *messages, size_t n_messages);

/* Counts a row that cannot be used, and logs "PATH:LINE: PROBLEM; row skipped. REMEDY". */
void sp_dataset_skip(sp_dataset *dataset, size_t line, const char *remedy, const char *problem, ...)
    __attribute__((format(printf, 4, 5)));

/* The rows of `whole` as two data sets, in their order there: n_held_out of them, drawn by the seed, and the rest. They borrow its
 * strings and must be freed before it. n_held_out < the number of rows. */
sp_status sp_dataset_hold_out(sp_dataset **rest, sp_dataset **held_out, const sp_dataset *whole, size_t n_held_out, uint64_t seed);

const char *sp_dataset_path(const sp_dataset *dataset); /* as it was given to sp_dataset_load */
const sp_columns *sp_dataset_columns(const sp_dataset *dataset);
const sp_logger *sp_dataset_logger(const sp_dataset *dataset); /* during loading only */

/* The readers, each for a whole file: bytes -> rows. FORMAT: nothing in the file can be a row, and why. */
sp_status sp_dataset_read_table(sp_dataset *dataset, const char *bytes, size_t n_bytes, char separator); /* CSV, TSV */
sp_status sp_dataset_read_jsonl(sp_dataset *dataset, const char *bytes, size_t n_bytes);
sp_status sp_dataset_read_json_array(sp_dataset *dataset, const char *bytes, size_t n_bytes);

#endif
