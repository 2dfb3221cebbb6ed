/* tiny_fixture.h: the tiny model, opened from a directory of its own for a group of tests. Before it: _GNU_SOURCE, cmocka.h. */
#ifndef SP_TESTS_TINY_FIXTURE_H
#define SP_TESTS_TINY_FIXTURE_H

#include "base/file.h"
#include "files.h"
#include "tiny_model.h"

static sp_model *model;
static char *directory;

static int open_model(void **state)
{
    static const sp_model_options options = {.n_threads = 1};
    (void)state;
    directory = make_directory();
    char *path = sp_path_join(directory, "model.gguf");
    bool good = path && tiny_model_write(path) && !sp_model_load(&model, path, &options);
    free(path);
    return good ? 0 : -1;
}

static int close_model(void **state)
{
    (void)state;
    sp_model_free(model);
    remove_directory(directory);
    return 0;
}

#endif
