/* settings.h: everything that decides a run's result, as DIR/settings.json records it. */
#ifndef SP_TRAIN_SETTINGS_H
#define SP_TRAIN_SETTINGS_H

#include <jansson.h>

#include "softprompt.h"

/* `options` with every default filled in, for n_rows training rows: what is written is what is meant (warmup_steps 0: none).
 * The strings stay the caller's. ARGUMENT: a number out of range, or two options that exclude each other, by name. */
sp_status sp_train_options_resolve(sp_train_options *out, const sp_train_options *options, size_t n_rows);

/* Are keys that max_logit is asked for such that they can only be penalised? Of options as they were given or resolved. */
bool sp_train_options_penalize(const sp_train_options *options);

/* What a run is made of: sections "training", "distillation", "prompt", "task", "data", "model" decide its bytes, "machine"
 * (version, threads, kernels) its last digits, "files" nothing. `options` resolved, `task` resolved; `eval` may be NULL.
 * json_decref. */
typedef struct sp_run_inputs {
    const sp_train_options *options;
    const sp_task *task;
    const sp_model *model;
    const sp_dataset *train, *eval;
} sp_run_inputs;

sp_status sp_settings_create(json_t **out, const sp_run_inputs *inputs);

/* MISMATCH: the settings differ in a section that decides; the message names each field with both values. Another machine is a
 * warning: there the same bytes are not promised. `path`: where `saved` was read, for the messages. */
sp_status sp_settings_compare(const json_t *saved, const json_t *now, const char *path, const sp_logger *logger);

/* A hash of the sections that decide, in hexadecimal: the owner of a run's checkpoints. */
enum { SP_SETTINGS_HASH_BYTES = 17 };
sp_status sp_settings_hash(char out[SP_SETTINGS_HASH_BYTES], const json_t *settings);

#endif
