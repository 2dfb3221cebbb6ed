/* file.h: reading files whole or mapped, and writing them whole or not at all. */
#ifndef SP_BASE_FILE_H
#define SP_BASE_FILE_H

#include "softprompt.h"

/* A file mapped read-only. Empty files map to size 0. Directories and the like are refused. */
typedef struct sp_mapped_file {
    const uint8_t *bytes;
    size_t size;
} sp_mapped_file;

sp_status sp_map_file(sp_mapped_file *out, const char *path);
void sp_unmap_file(sp_mapped_file *file); /* leaves *file empty */

/* The whole file with a NUL behind it (not counted); *out is freed with free. Larger than max_bytes: SP_ERR_FORMAT. */
sp_status sp_read_file(char **out, size_t *n_bytes, const char *path, size_t max_bytes);

/* One piece of a file to be written. */
typedef struct sp_bytes {
    const void *data;
    size_t n_bytes;
} sp_bytes;

/* Writes the pieces to "PATH.tmp.PID", syncs, renames to `path`, syncs the directory: at any crash `path` is the old file
 * or the new one. On failure (a full disk, say) the temporary file is gone and `path` is as it was. A link stays: the file that
 * it points to is replaced. Pipes and devices (/dev/stdout) are written as they are. */
sp_status sp_write_file_atomic(const char *path, const sp_bytes *pieces, size_t n_pieces);

sp_status sp_make_directory(const char *path); /* with its parents; fine where it exists */
bool sp_path_exists(const char *path);
bool sp_path_is_directory(const char *path);
char *sp_path_join(const char *dir, const char *name); /* malloc; NULL: no memory, message set */

/* Could `path` be written? Asked before long work whose result goes there. IO: no, and why. */
sp_status sp_check_writable(const char *path);

/* Takes the directory for this process, until sp_unlock or its end, however it ends. IO: another process has it. */
sp_status sp_lock_directory(int *lock, const char *path);
void sp_unlock(int lock); /* -1 is fine */

#endif
