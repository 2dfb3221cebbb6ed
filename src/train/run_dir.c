/* run_dir.c: which files of a directory are a run's. settings.json is the first file of a run to be written and the first to
 * be removed: where it stands, everything beside it belongs to it. */
#include "train/run_dir.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/status.h"
#include "format/json.h"
#include "train/checkpoint.h"
#include "train/settings.h"

static const char SETTINGS[] = "settings.json", EVENTS[] = "events.out.tfevents.", TEMPORARY[] = ".tmp.";
static const char *const RUN_FILES[] = {"settings.json",  "log.jsonl",           "evaluations.jsonl",
                                        "queries.jsonl",  "adapter_config.json", "adapter_model.safetensors",
                                        "softprompt.json"};
enum { N_RUN_FILES = sizeof RUN_FILES / sizeof *RUN_FILES };

/* A run's own file, or a temporary one of it (NAME.tmp.PID). */
static bool is_run_file(bool *temporary, const char *name)
{
    *temporary = false;
    if (strncmp(name, EVENTS, strlen(EVENTS)) == 0) return true;
    for (size_t i = 0; i < N_RUN_FILES; i++) {
        size_t n = strlen(RUN_FILES[i]);
        if (strncmp(name, RUN_FILES[i], n) != 0) continue;
        *temporary = strncmp(name + n, TEMPORARY, strlen(TEMPORARY)) == 0;
        if (*temporary || name[n] == 0) return true;
    }
    return false;
}

static sp_status remove_file(const char *dir, const char *name)
{
    char *path = sp_path_join(dir, name);
    if (!path) return SP_ERR_MEMORY;
    sp_status st = unlink(path) && errno != ENOENT ? sp_fail_errno(path, "remove") : SP_OK;
    free(path);
    return st;
}

/* Removes the temporary files of a run, or with `all` everything that is a run's. */
static sp_status remove_run_files(const char *dir, bool all)
{
    sp_status st = all ? remove_file(dir, SETTINGS) : SP_OK;
    DIR *listing = opendir(dir);
    if (!listing) return errno == ENOENT ? SP_OK : sp_fail_errno(dir, "list");
    for (struct dirent *entry; !st && (entry = readdir(listing));) {
        bool temporary;
        if (is_run_file(&temporary, entry->d_name) && (all || temporary)) st = remove_file(dir, entry->d_name);
    }
    closedir(listing);
    return st || !all ? st : sp_checkpoint_remove_all(dir);
}

/* The first thing found in `dir` that a run makes; NULL: none. */
static const char *find_run_file(const char *dir)
{
    for (size_t i = 0; i < N_RUN_FILES; i++) {
        char *path = sp_path_join(dir, RUN_FILES[i]);
        bool there = path && sp_path_exists(path);
        free(path);
        if (there) return RUN_FILES[i];
    }
    return NULL;
}

static sp_status resume_run(const char *path, const json_t *settings, const sp_logger *logger)
{
    json_t *saved;
    sp_status st = sp_json_read(&saved, path);
    if (st) return sp_fail(st, "%s; begin again with --overwrite", sp_message());
    st = sp_settings_compare(saved, settings, path, logger);
    json_decref(saved);
    return st;
}

static sp_status open_with_path(bool *resumed, const char *dir, const char *path, const json_t *settings, bool resume,
                                bool overwrite, const sp_logger *logger)
{
    const char *found = overwrite ? NULL : find_run_file(dir);
    *resumed = found && resume && sp_path_exists(path);
    if (found && !resume)
        return sp_fail(SP_ERR_ARGUMENT,
                       "%s: holds another run (%s); use --resume to go on with it, --overwrite to replace it, or "
                       "another directory",
                       dir, found);
    if (found && !*resumed)
        return sp_fail(SP_ERR_ARGUMENT,
                       "%s: holds %s but no %s, so there is no run to resume; use --overwrite or another directory", dir, found,
                       SETTINGS);
    sp_status st = *resumed ? resume_run(path, settings, logger) : sp_make_directory(dir);
    if (!st) st = remove_run_files(dir, overwrite);
    return st || *resumed ? st : sp_json_write(settings, path);
}

sp_status sp_run_dir_open(bool *resumed, const char *dir, const json_t *settings, bool resume, bool overwrite,
                          const sp_logger *logger)
{
    *resumed = false;
    char *path = sp_path_join(dir, SETTINGS);
    if (!path) return SP_ERR_MEMORY;
    sp_status st = open_with_path(resumed, dir, path, settings, resume, overwrite, logger);
    free(path);
    return st;
}
