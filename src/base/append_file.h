/* append_file.h: a log that grows record by record, and goes on where a checkpoint left it.
 *
 *     sp_append_file_open(&file, "run/log.jsonl", checkpoint_says);   // what came after the checkpoint is cut off
 *     sp_append_file_add(file, row, n_bytes);                         // at once in the file: kill -9 loses no record
 *     sp_append_file_sync(file);                                      // before a checkpoint that remembers the offset
 */
#ifndef SP_BASE_APPEND_FILE_H
#define SP_BASE_APPEND_FILE_H

#include "softprompt.h"

typedef struct sp_append_file sp_append_file;

/* Opens or creates `path` and keeps its first `offset` bytes. MISMATCH: it has fewer. */
sp_status sp_append_file_open(sp_append_file **out, const char *path, uint64_t offset);

/* Appends a record whole or, on failure (a full disk, say), not at all. */
sp_status sp_append_file_add(sp_append_file *file, const void *bytes, size_t n_bytes);
sp_status sp_append_file_sync(sp_append_file *file);        /* what was added survives a power cut */
uint64_t sp_append_file_offset(const sp_append_file *file); /* bytes in the file: what a checkpoint remembers */
void sp_append_file_close(sp_append_file *file);            /* NULL is fine */

#endif
