/* input.h: the fuzzer's bytes as files that live in memory. What goes wrong here is no finding: it aborts the run. */
#ifndef SP_FUZZ_INPUT_H
#define SP_FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "softprompt.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

typedef struct input_file {
    int fd;
    char path[32];
} input_file;

static inline void require(int condition, const char *what)
{
    if (condition) return;
    perror(what);
    exit(2);
}

static inline void input_file_open(input_file *file)
{
    file->fd = memfd_create("input", 0);
    require(file->fd >= 0, "memfd_create");
    snprintf(file->path, sizeof file->path, "/proc/self/fd/%d", file->fd);
}

static inline void input_file_set(const input_file *file, const void *bytes, size_t n_bytes)
{
    require(ftruncate(file->fd, 0) == 0, "ftruncate");
    require(n_bytes == 0 || pwrite(file->fd, bytes, n_bytes, 0) == (ssize_t)n_bytes, "pwrite");
}

/* Every failure has a message of one line. */
static inline void check_message(sp_status status)
{
    if (status && (!*sp_message() || strpbrk(sp_message(), "\r\n"))) abort();
}

#endif
