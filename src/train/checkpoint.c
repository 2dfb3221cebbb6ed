/* checkpoint.c: checkpoints as safetensors files. The order of operations is what makes them safe: the new file is durable
 * (written aside, synced, renamed, directory synced) before an old one is unlinked, and nothing is read back that the
 * checksum does not vouch for. Cost of a save: three to five times the prompt's size, and two syncs. */
#include "train/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/file.h"
#include "base/status.h"
#include "format/safetensors.h"

static const char DIRECTORY[] = "checkpoints", PREFIX[] = "step-", SUFFIX[] = ".safetensors", TEMPORARY[] = ".tmp.";
enum { NAME_BYTES = 64, HASH_BYTES = 17, HASH_STATE_BYTES = 576 };

static sp_status checksum_begin(XXH3_state_t **sum, const char *owner, const char *state)
{
    *sum = XXH3_createState();
    if (!*sum) return sp_fail_no_memory(HASH_STATE_BYTES);
    XXH3_64bits_reset(*sum);
    XXH3_64bits_update(*sum, owner, strlen(owner) + 1);
    XXH3_64bits_update(*sum, state, strlen(state) + 1);
    return SP_OK;
}

static void checksum_add(XXH3_state_t *sum, const char *name, const void *data, size_t n_bytes)
{
    XXH3_64bits_update(sum, name, strlen(name) + 1);
    XXH3_64bits_update(sum, data, n_bytes);
}

static void checksum_end(char out[HASH_BYTES], XXH3_state_t *sum)
{
    snprintf(out, HASH_BYTES, "%016" PRIx64, (uint64_t)XXH3_64bits_digest(sum));
    XXH3_freeState(sum);
}

static size_t matrix_bytes(const sp_named_matrix *matrix)
{
    return matrix->n_rows * matrix->n_columns * sizeof *matrix->data;
}

/* ---- the directory ---- */

static char *file_path(const char *directory, uint64_t step)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s%08" PRIu64 "%s", PREFIX, step, SUFFIX);
    return sp_path_join(directory, name);
}

/* Is `name` a checkpoint's, and of which step? With `temporary`, one that was being written when its process died. */
static bool parse_name(uint64_t *step, bool *temporary, const char *name)
{
    if (strncmp(name, PREFIX, strlen(PREFIX)) != 0) return false;
    const char *digits = name + strlen(PREFIX);
    size_t n = strspn(digits, "0123456789");
    if (n < 8 || n > 18 || strncmp(digits + n, SUFFIX, strlen(SUFFIX)) != 0) return false;
    const char *end = digits + n + strlen(SUFFIX);
    *step = strtoull(digits, NULL, 10);
    *temporary = strncmp(end, TEMPORARY, strlen(TEMPORARY)) == 0;
    return *temporary || *end == 0;
}

/* Removes what has another step than `keep` and `keep_too` (0: neither), and every temporary file. */
static sp_status remove_others(const char *directory, uint64_t keep, uint64_t keep_too)
{
    DIR *listing = opendir(directory);
    if (!listing) return errno == ENOENT ? SP_OK : sp_fail_errno(directory, "list");
    sp_status st = SP_OK;
    for (struct dirent *entry; !st && (entry = readdir(listing));) {
        uint64_t step;
        bool temporary;
        if (!parse_name(&step, &temporary, entry->d_name)) continue;
        if (!temporary && step && (step == keep || step == keep_too)) continue;
        char *path = sp_path_join(directory, entry->d_name);
        if (!path)
            st = SP_ERR_MEMORY;
        else if (unlink(path) && errno != ENOENT)
            st = sp_fail_errno(path, "remove");
        free(path);
    }
    closedir(listing);
    return st;
}

/* The newest step below `limit`; 0: none. */
static sp_status newest_below(uint64_t *out, const char *directory, uint64_t limit)
{
    DIR *listing = opendir(directory);
    *out = 0;
    if (!listing) return errno == ENOENT ? SP_OK : sp_fail_errno(directory, "list");
    for (struct dirent *entry; (entry = readdir(listing));) {
        uint64_t step;
        bool temporary;
        if (parse_name(&step, &temporary, entry->d_name) && !temporary && step < limit && step > *out) *out = step;
    }
    closedir(listing);
    return SP_OK;
}

/* ---- one file ---- */

static sp_status write_file(const char *path, const sp_checkpoint *checkpoint)
{
    sp_st_tensor tensors[SP_CHECKPOINT_MAX_MATRICES];
    char sum[HASH_BYTES];
    XXH3_state_t *running;
    sp_status st = checksum_begin(&running, checkpoint->owner, checkpoint->state);
    if (st) return st;
    for (size_t i = 0; i < checkpoint->n_matrices; i++) {
        const sp_named_matrix *m = &checkpoint->matrices[i];
        tensors[i] = (sp_st_tensor){.name = m->name,
                                    .type = SP_F32,
                                    .n_dims = 2,
                                    .shape = {m->n_rows, m->n_columns},
                                    .data = m->data,
                                    .n_bytes = matrix_bytes(m)};
        checksum_add(running, m->name, m->data, matrix_bytes(m));
    }
    checksum_end(sum, running);
    const sp_metadata_item metadata[] = {{"checksum", sum}, {"owner", checkpoint->owner}, {"state", checkpoint->state}};
    return sp_safetensors_write(path, tensors, checkpoint->n_matrices, metadata, 3);
}

static sp_status check_matrix(const sp_st_tensor **out, const sp_safetensors *file, const sp_named_matrix *matrix)
{
    const sp_st_tensor *t = *out = sp_safetensors_find(file, matrix->name);
    if (!t) return sp_fail(SP_ERR_FORMAT, "tensor %s is missing", matrix->name);
    if (t->type != SP_F32 || t->n_dims != 2 || t->shape[0] != matrix->n_rows || t->shape[1] != matrix->n_columns)
        return sp_fail(SP_ERR_FORMAT, "tensor %s has another shape than (%zu, %zu)", matrix->name, matrix->n_rows,
                       matrix->n_columns);
    return SP_OK;
}

/* Everything is checked before the first matrix is touched. */
static sp_status read_checked(char **state, const sp_safetensors *file, const char *owner, const sp_named_matrix *matrices,
                              size_t n_matrices)
{
    const char *saved_owner = sp_safetensors_metadata(file, "owner"), *saved_state = sp_safetensors_metadata(file, "state");
    const char *saved_sum = sp_safetensors_metadata(file, "checksum");
    if (!saved_owner || !saved_state || !saved_sum) return sp_fail(SP_ERR_FORMAT, "is no checkpoint of a training run");
    if (strcmp(saved_owner, owner) != 0) return sp_fail(SP_ERR_MISMATCH, "belongs to a run with other settings");
    const sp_st_tensor *tensors[SP_CHECKPOINT_MAX_MATRICES];
    sp_status st = SP_OK;
    for (size_t i = 0; i < n_matrices; i++)
        if ((st = check_matrix(&tensors[i], file, &matrices[i]))) return st;
    XXH3_state_t *running;
    char sum[HASH_BYTES];
    if ((st = checksum_begin(&running, saved_owner, saved_state))) return st;
    for (size_t i = 0; i < n_matrices; i++) checksum_add(running, matrices[i].name, tensors[i]->data, tensors[i]->n_bytes);
    checksum_end(sum, running);
    if (strcmp(sum, saved_sum) != 0) return sp_fail(SP_ERR_FORMAT, "is damaged: checksum %s, recorded %s", sum, saved_sum);
    if (!(*state = strdup(saved_state))) return sp_fail_no_memory(strlen(saved_state) + 1);
    for (size_t i = 0; i < n_matrices; i++) memcpy(matrices[i].data, tensors[i]->data, tensors[i]->n_bytes);
    return SP_OK;
}

static sp_status read_file(char **state, const char *path, const char *owner, const sp_named_matrix *matrices, size_t n_matrices)
{
    sp_safetensors *file;
    sp_status st = sp_safetensors_open(&file, path);
    if (st) return st; /* names the path */
    st = read_checked(state, file, owner, matrices, n_matrices);
    sp_safetensors_close(file);
    return st ? sp_fail_within(st, path) : SP_OK;
}

/* ---- public ---- */

sp_status sp_checkpoint_save(const char *run_dir, const sp_checkpoint *checkpoint, uint64_t previous)
{
    if (checkpoint->n_matrices > SP_CHECKPOINT_MAX_MATRICES || checkpoint->step == 0)
        return sp_fail(SP_ERR_ARGUMENT, "a checkpoint has at most %d matrices and a step of at least 1",
                       SP_CHECKPOINT_MAX_MATRICES);
    char *directory = sp_path_join(run_dir, DIRECTORY);
    char *path = directory ? file_path(directory, checkpoint->step) : NULL;
    sp_status st = path ? sp_make_directory(directory) : SP_ERR_MEMORY;
    if (!st) st = write_file(path, checkpoint);
    if (!st) st = remove_others(directory, checkpoint->step, previous);
    free(path);
    free(directory);
    return st;
}

sp_status sp_checkpoint_load(char **state, uint64_t *step, const char *run_dir, const char *owner, const sp_named_matrix *matrices,
                             size_t n_matrices, const sp_logger *logger)
{
    *state = NULL;
    *step = 0;
    if (n_matrices > SP_CHECKPOINT_MAX_MATRICES)
        return sp_fail(SP_ERR_ARGUMENT, "a checkpoint has at most %d matrices", SP_CHECKPOINT_MAX_MATRICES);
    char *directory = sp_path_join(run_dir, DIRECTORY);
    if (!directory) return SP_ERR_MEMORY;
    sp_status st = SP_OK;
    for (uint64_t candidate, limit = UINT64_MAX; !(st = newest_below(&candidate, directory, limit)) && candidate;
         limit = candidate) {
        char *path = file_path(directory, candidate);
        st = path ? read_file(state, path, owner, matrices, n_matrices) : SP_ERR_MEMORY;
        free(path);
        if (!st) *step = candidate;
        if (!st || st == SP_ERR_MEMORY) break;
        sp_log(logger, SP_LOG_WARNING, "%s; trying the checkpoint before it", sp_message());
    }
    free(directory);
    return st;
}

sp_status sp_checkpoint_find(bool *found, const char *run_dir)
{
    char *directory = sp_path_join(run_dir, DIRECTORY);
    if (!directory) return SP_ERR_MEMORY;
    *found = sp_path_exists(directory);
    free(directory);
    return SP_OK;
}

sp_status sp_checkpoint_remove_all(const char *run_dir)
{
    char *directory = sp_path_join(run_dir, DIRECTORY);
    if (!directory) return SP_ERR_MEMORY;
    sp_status st = remove_others(directory, 0, 0);
    if (!st && rmdir(directory) && errno != ENOENT && errno != ENOTEMPTY && errno != EEXIST && errno != ENOTDIR)
        st = sp_fail_errno(directory, "remove");
    free(directory);
    return st;
}
