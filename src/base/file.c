/* file.c: files mapped, read, and replaced atomically. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"

static sp_status open_regular(int *fd, size_t *size, const char *path)
{
    struct stat info;
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd < 0) return sp_fail_errno(path, "open");
    sp_status st = SP_OK;
    if (fstat(*fd, &info))
        st = sp_fail_errno(path, "stat");
    else if (!S_ISREG(info.st_mode))
        st = sp_fail(SP_ERR_IO, "%s: not a regular file", path);
    if (st)
        close(*fd);
    else
        *size = (size_t)info.st_size;
    return st;
}

sp_status sp_map_file(sp_mapped_file *out, const char *path)
{
    int fd;
    size_t size = 0;
    *out = (sp_mapped_file){0};
    sp_status st = open_regular(&fd, &size, path);
    if (st) return st;
    if (size > 0) {
        void *bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes == MAP_FAILED)
            st = sp_fail_errno(path, "map");
        else
            *out = (sp_mapped_file){bytes, size};
    }
    close(fd);
    return st;
}

void sp_unmap_file(sp_mapped_file *file)
{
    if (file->bytes) munmap((void *)(uintptr_t)file->bytes, file->size);
    *file = (sp_mapped_file){0};
}

static sp_status read_fully(char *bytes, size_t size, int fd, const char *path)
{
    for (size_t done = 0; done < size;) {
        ssize_t got = read(fd, bytes + done, size - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return sp_fail_errno(path, "read");
        if (got == 0) return sp_fail(SP_ERR_IO, "%s: became shorter while it was read", path);
        done += (size_t)got;
    }
    bytes[size] = 0;
    return SP_OK;
}

sp_status sp_read_file(char **out, size_t *n_bytes, const char *path, size_t max_bytes)
{
    int fd;
    *out = NULL;
    *n_bytes = 0;
    sp_status st = open_regular(&fd, n_bytes, path);
    if (st) return st;
    if (*n_bytes > max_bytes) {
        st = sp_fail(SP_ERR_FORMAT, "%s: %zu bytes, more than the %zu that such a file may have", path, *n_bytes, max_bytes);
    } else if (!(*out = malloc(*n_bytes + 1))) {
        st = sp_fail_no_memory(*n_bytes + 1);
    } else if ((st = read_fully(*out, *n_bytes, fd, path))) {
        free(*out);
        *out = NULL;
    }
    close(fd);
    return st;
}

static sp_status write_fully(int fd, const sp_bytes *piece, const char *path)
{
    const char *bytes = piece->data;
    for (size_t done = 0; done < piece->n_bytes;) {
        ssize_t put = write(fd, bytes + done, piece->n_bytes - done);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return sp_fail_errno(path, "write");
        done += (size_t)put;
    }
    return SP_OK;
}

/* The directory that holds `path`; malloc, NULL: no memory, message set. */
static char *directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = !slash ? strdup(".") : slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
    if (!dir) sp_fail_no_memory(strlen(path) + 1);
    return dir;
}

/* A rename is only durable once the directory that holds the name is. */
static sp_status sync_directory_of(const char *path)
{
    char *dir = directory_of(path);
    if (!dir) return SP_ERR_MEMORY;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    sp_status st = SP_OK;
    if (fd < 0 || (fsync(fd) && errno != EINVAL)) st = sp_fail_errno(dir, "sync");
    if (fd >= 0) close(fd);
    free(dir);
    return st;
}

static sp_status write_and_close(int fd, const char *path, const sp_bytes *pieces, size_t n_pieces)
{
    sp_status st = SP_OK;
    for (size_t i = 0; i < n_pieces && !st; i++) st = write_fully(fd, &pieces[i], path);
    if (!st && fsync(fd) && errno != EINVAL) st = sp_fail_errno(path, "sync"); /* EINVAL: a pipe or a device */
    if (close(fd) && !st) st = sp_fail_errno(path, "close");
    return st;
}

static bool is_same_file(const char *path, const struct stat *info)
{
    struct stat other;
    return stat(path, &other) == 0 && other.st_dev == info->st_dev && other.st_ino == info->st_ino;
}

/* *target (free): what `path` stands for, behind links: a rename would replace the link. *in_place: no file that a rename could
 * replace, such as /dev/stdout or an open file without a name. */
static sp_status find_target(char **target, bool *in_place, const char *path)
{
    struct stat info;
    bool exists = stat(path, &info) == 0;
    *target = exists ? realpath(path, NULL) : strdup(path);
    if (!*target && (!exists || errno == ENOMEM)) return sp_fail_no_memory(strlen(path) + 1);
    *in_place = exists && ((!S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) || !*target || !is_same_file(*target, &info));
    return SP_OK;
}

static sp_status write_in_place(const char *path, const sp_bytes *pieces, size_t n_pieces)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    return fd < 0 ? sp_fail_errno(path, "open") : write_and_close(fd, path, pieces, n_pieces);
}

static sp_status write_and_rename(const char *path, const sp_bytes *pieces, size_t n_pieces)
{
    size_t n = strlen(path) + 32;
    char *temporary = malloc(n);
    if (!temporary) return sp_fail_no_memory(n);
    snprintf(temporary, n, "%s.tmp.%ld", path, (long)getpid());
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    sp_status st = fd < 0 ? sp_fail_errno(temporary, "create") : write_and_close(fd, path, pieces, n_pieces);
    if (!st && rename(temporary, path)) st = sp_fail_errno(path, "replace");
    if (st && fd >= 0) unlink(temporary);
    free(temporary);
    return st ? st : sync_directory_of(path);
}

sp_status sp_write_file_atomic(const char *path, const sp_bytes *pieces, size_t n_pieces)
{
    char *target;
    bool in_place;
    sp_status st = find_target(&target, &in_place, path);
    if (st) return st;
    st = in_place ? write_in_place(path, pieces, n_pieces) : write_and_rename(target, pieces, n_pieces);
    free(target);
    return st;
}

sp_status sp_make_directory(const char *path)
{
    char *partial = strdup(path);
    if (!partial) return sp_fail_no_memory(strlen(path) + 1);
    sp_status st = *path ? SP_OK : sp_fail(SP_ERR_ARGUMENT, "the name of a directory is empty; give one");
    for (char *c = partial; !st && *c; c++) {
        if (c[1] != '/' && c[1] != 0) continue;
        char kept = c[1];
        c[1] = 0;
        if (mkdir(partial, 0777) && errno != EEXIST) st = sp_fail_errno(partial, "make the directory");
        c[1] = kept;
    }
    free(partial);
    if (!st && !sp_path_is_directory(path)) st = sp_fail(SP_ERR_IO, "%s: exists and is no directory; give another name", path);
    return st;
}

bool sp_path_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

bool sp_path_is_directory(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

char *sp_path_join(const char *dir, const char *name)
{
    size_t n = strlen(dir) + strlen(name) + 2;
    char *path = malloc(n);
    if (!path)
        sp_fail_no_memory(n);
    else
        snprintf(path, n, "%s%s%s", dir, *dir && dir[strlen(dir) - 1] != '/' ? "/" : "", name);
    return path;
}

sp_status sp_check_writable(const char *path)
{
    char *dir = directory_of(path);
    if (!dir) return SP_ERR_MEMORY;
    sp_status st = SP_OK;
    if (sp_path_is_directory(path))
        st = sp_fail(SP_ERR_IO, "%s: is a directory; name a file", path);
    else if (access(sp_path_exists(path) ? path : dir, W_OK))
        st = sp_fail_errno(path, "write");
    free(dir);
    return st;
}

sp_status sp_lock_directory(int *lock, const char *path)
{
    *lock = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*lock < 0) return sp_fail_errno(path, "open");
    if (flock(*lock, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return SP_OK; /* a file system without locks is no obstacle */
    close(*lock);
    *lock = -1;
    return sp_fail(SP_ERR_IO, "%s: another process is working in it; wait for it, or choose another directory", path);
}

void sp_unlock(int lock)
{
    if (lock >= 0) close(lock);
}
