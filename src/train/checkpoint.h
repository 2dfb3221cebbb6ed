/* checkpoint.h: the state of a run, saved so that a kill at any moment loses some steps and nothing else.
 *
 *   DIR/checkpoints/step-00000120.safetensors    the matrices, and in its metadata "state" (JSON), "owner" and "checksum"
 *
 * A file is written whole or not at all, and the one before it is removed only when a second newer one is durable:
 * whatever happens, two good states exist once two were saved. The checksum (XXH3, 64 bits) covers state, owner and matrices. */
#ifndef SP_TRAIN_CHECKPOINT_H
#define SP_TRAIN_CHECKPOINT_H

#include "softprompt.h"
#include "train/matrix.h"

enum { SP_CHECKPOINT_MAX_MATRICES = 256 };

typedef struct sp_checkpoint {
    uint64_t step;
    const char *owner; /* which run it belongs to: a checkpoint of another owner is never loaded */
    const char *state; /* JSON */
    const sp_named_matrix *matrices;
    size_t n_matrices;
} sp_checkpoint;

/* Saves it below `run_dir` (which exists) and then removes all others but the one of step `previous`, the last that is known
 * to be good (0: none). On failure (a full disk) everything is as it was. */
sp_status sp_checkpoint_save(const char *run_dir, const sp_checkpoint *checkpoint, uint64_t previous);

/* Fills `matrices` (their names and shapes say what is expected) from the newest checkpoint that is whole, and gives its
 * state (free) and step. One that is damaged or belongs to another owner is named in a warning and the one before it is tried;
 * where none is left *state is NULL, *step 0 and the matrices are untouched: begin at the beginning. Fails with IO and MEMORY. */
sp_status sp_checkpoint_load(char **state, uint64_t *step, const char *run_dir, const char *owner, const sp_named_matrix *matrices,
                             size_t n_matrices, const sp_logger *logger);

/* *found: is there a place for checkpoints below `run_dir`, whoever made it? MEMORY. */
sp_status sp_checkpoint_find(bool *found, const char *run_dir);

/* Removes every checkpoint, and the directory if that leaves it empty. Fine where there is none. */
sp_status sp_checkpoint_remove_all(const char *run_dir);

#endif
