/* append_file.c: one write call a record, at an offset that we keep ourselves.
 * Nothing is buffered: training logs a few hundred bytes a step, and whoever watches the file sees them at once. */
#include "base/append_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"

struct sp_append_file {
    int fd;
    bool regular; /* a device (/dev/null) has no length to cut */
    uint64_t offset;
    char path[];
};

static sp_status cut(sp_append_file *file)
{
    struct stat info;
    if (fstat(file->fd, &info)) return sp_fail_errno(file->path, "stat");
    file->regular = S_ISREG(info.st_mode);
    if (!file->regular) return SP_OK;
    if ((uint64_t)info.st_size < file->offset)
        return sp_fail(SP_ERR_MISMATCH,
                       "%s: holds %" PRIu64 " bytes, but %" PRIu64
                       " when the checkpoint was written; put the file back, or start again with --overwrite",
                       file->path, (uint64_t)info.st_size, file->offset);
    if (ftruncate(file->fd, (off_t)file->offset)) return sp_fail_errno(file->path, "truncate");
    if (lseek(file->fd, (off_t)file->offset, SEEK_SET) < 0) return sp_fail_errno(file->path, "seek");
    return SP_OK;
}

sp_status sp_append_file_open(sp_append_file **out, const char *path, uint64_t offset)
{
    size_t path_bytes = strlen(path) + 1;
    sp_append_file *file = malloc(sizeof *file + path_bytes);
    *out = NULL;
    if (!file) return sp_fail_no_memory(sizeof *file + path_bytes);
    memcpy(file->path, path, path_bytes);
    file->offset = offset;
    file->fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    sp_status st = file->fd < 0 ? sp_fail_errno(path, "open") : cut(file);
    if (st)
        sp_append_file_close(file);
    else
        *out = file;
    return st;
}

sp_status sp_append_file_add(sp_append_file *file, const void *bytes, size_t n_bytes)
{
    for (size_t done = 0; done < n_bytes;) {
        ssize_t put = write(file->fd, (const char *)bytes + done, n_bytes - done);
        if (put < 0 && errno == EINTR) continue;
        if (put >= 0) {
            done += (size_t)put;
            continue;
        }
        sp_status st = sp_fail_errno(file->path, "write");
        /* Half a record would spoil what stands before it for strict readers; the write's failure is what is reported. */
        if (file->regular && (ftruncate(file->fd, (off_t)file->offset) || lseek(file->fd, (off_t)file->offset, SEEK_SET) < 0))
            sp_fail_within(st, "a record was left incomplete");
        return st;
    }
    file->offset += n_bytes;
    return SP_OK;
}

sp_status sp_append_file_sync(sp_append_file *file)
{
    if (file->regular && fsync(file->fd)) return sp_fail_errno(file->path, "sync");
    return SP_OK;
}

uint64_t sp_append_file_offset(const sp_append_file *file)
{
    return file->offset;
}

void sp_append_file_close(sp_append_file *file)
{
    if (!file) return;
    if (file->fd >= 0) close(file->fd);
    free(file);
}
