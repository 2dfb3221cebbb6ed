/* files.h: files that tests make: in memory, or in a directory that is gone afterwards. Before it: _GNU_SOURCE, cmocka.h. */
#ifndef SP_TESTS_FILES_H
#define SP_TESTS_FILES_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "softprompt.h"

#define ARRAY_LEN(array) (sizeof(array) / sizeof(array)[0])

/* A file that lives in memory, for tests that make thousands: open it by `path`. */
typedef struct memory_file {
    int fd;
    char path[32];
} memory_file;

static inline memory_file memory_file_create(void)
{
    memory_file file = {.fd = memfd_create("test", 0)};
    assert_true(file.fd >= 0);
    snprintf(file.path, sizeof file.path, "/proc/self/fd/%d", file.fd);
    return file;
}

static inline void memory_file_set(const memory_file *file, const void *bytes, size_t n_bytes)
{
    assert_int_equal(ftruncate(file->fd, 0), 0);
    if (n_bytes) assert_int_equal(pwrite(file->fd, bytes, n_bytes, 0), (ssize_t)n_bytes);
}

/* A new directory below $TMPDIR or /tmp; remove_directory frees the name. */
static inline char *make_directory(void)
{
    const char *parent = getenv("TMPDIR");
    char *path = malloc(4096);
    assert_non_null(path);
    snprintf(path, 4096, "%s/softprompt-test-XXXXXX", parent ? parent : "/tmp");
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void remove_directory(char *path)
{
    DIR *dir = opendir(path);
    assert_non_null(dir);
    for (const struct dirent *entry; (entry = readdir(dir));)
        if (entry->d_name[0] != '.') unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    assert_int_equal(rmdir(path), 0);
    free(path);
}

/* A failure that tells the user where and what: the status, words in the message, and one printable line. */
#define assert_fails(call, expected, words)                                                                                        \
    do {                                                                                                                           \
        sp_status status_ = (call);                                                                                                \
        if (status_ != (expected) || !strstr(sp_message(), (words)))                                                               \
            fail_msg("%s: status %d, message \"%s\"; expected %d, \"%s\"", #call, status_, sp_message(), (expected), (words));     \
        assert_null(strpbrk(sp_message(), "\r\n"));                                                                                \
    } while (0)

#endif
