/* test_file.c: files written whole or not at all, and what stands where a file should be: links, pipes, devices, directories. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/file.h"
#include "files.h"

static char *dir;

static int make_dir(void **state)
{
    (void)state;
    dir = make_directory();
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    remove_directory(dir); /* fails if a temporary file or a directory was left */
    return 0;
}

static char *in_dir(const char *name)
{
    char *path = sp_path_join(dir, name);
    assert_non_null(path);
    return path;
}

static sp_status write_text(const char *path, const char *text)
{
    const sp_bytes pieces[] = {{text, strlen(text)}, {"", 0}, {"\n", 1}};
    return sp_write_file_atomic(path, pieces, ARRAY_LEN(pieces));
}

static void assert_holds(const char *path, const char *expected)
{
    char *bytes;
    size_t n_bytes;
    if (sp_read_file(&bytes, &n_bytes, path, 1000)) fail_msg("%s", sp_message());
    assert_string_equal(bytes, expected);
    free(bytes);
}

static void a_file_is_replaced(void **state)
{
    char *path = in_dir("plain");
    (void)state;
    assert_int_equal(write_text(path, "one"), SP_OK);
    assert_int_equal(write_text(path, "two"), SP_OK);
    assert_holds(path, "two\n");
    free(path);
}

static void a_link_stays_and_its_file_is_replaced(void **state)
{
    struct stat info;
    char *path = in_dir("link"), *target = in_dir("target");
    (void)state;
    assert_int_equal(write_text(target, "old"), SP_OK);
    assert_int_equal(symlink("target", path), 0);
    assert_int_equal(write_text(path, "new"), SP_OK);
    assert_int_equal(lstat(path, &info), 0);
    assert_true(S_ISLNK(info.st_mode));
    assert_holds(target, "new\n");
    free(path);
    free(target);
}

/* As /dev/stdout is: a link to a pipe, or to a file that has no name. */
static void a_pipe_gets_the_bytes(void **state)
{
    int ends[2];
    char link_path[64], got[8] = "", *path = in_dir("stdout");
    struct stat info;
    (void)state;
    assert_int_equal(pipe(ends), 0);
    snprintf(link_path, sizeof link_path, "/proc/self/fd/%d", ends[1]);
    assert_int_equal(symlink(link_path, path), 0);
    assert_int_equal(write_text(path, "text"), SP_OK);
    assert_int_equal(read(ends[0], got, sizeof got), 5);
    assert_string_equal(got, "text\n");
    assert_int_equal(lstat(path, &info), 0);
    assert_true(S_ISLNK(info.st_mode));
    close(ends[0]);
    close(ends[1]);
    free(path);
}

static void a_file_without_a_name_gets_the_bytes(void **state)
{
    memory_file file = memory_file_create();
    (void)state;
    assert_int_equal(write_text(file.path, "text"), SP_OK);
    assert_holds(file.path, "text\n");
    close(file.fd);
}

/* Through a link of our own, so that a mistake cannot cost the machine its device. */
static void a_full_device_is_a_failure_and_stays(void **state)
{
    struct stat info;
    char *path = in_dir("full");
    (void)state;
    assert_int_equal(symlink("/dev/full", path), 0);
    assert_fails(write_text(path, "text"), SP_ERR_IO, "cannot write: No space left on device");
    assert_int_equal(stat(path, &info), 0);
    assert_true(S_ISCHR(info.st_mode));
    free(path);
}

static void directories(void **state)
{
    char *file = in_dir("file"), *below = in_dir("file/below"), *deep = in_dir("a/b/"), *a = in_dir("a");
    (void)state;
    assert_int_equal(write_text(file, ""), SP_OK);
    assert_fails(write_text(dir, ""), SP_ERR_IO, "cannot replace");
    assert_fails(write_text(below, ""), SP_ERR_IO, "cannot create");
    assert_fails(sp_make_directory(file), SP_ERR_IO, "is no directory");
    assert_fails(sp_make_directory(below), SP_ERR_IO, "cannot make the directory");
    assert_fails(sp_make_directory(""), SP_ERR_ARGUMENT, "empty");
    assert_int_equal(sp_make_directory(deep), SP_OK);
    assert_int_equal(sp_make_directory(deep), SP_OK);
    assert_int_equal(rmdir(deep), 0);
    assert_int_equal(rmdir(a), 0);
    free(file);
    free(below);
    free(deep);
    free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_replaced),
        cmocka_unit_test(a_link_stays_and_its_file_is_replaced),
        cmocka_unit_test(a_pipe_gets_the_bytes),
        cmocka_unit_test(a_file_without_a_name_gets_the_bytes),
        cmocka_unit_test(a_full_device_is_a_failure_and_stays),
        cmocka_unit_test(directories),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
