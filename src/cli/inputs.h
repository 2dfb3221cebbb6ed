/* inputs.h: what train, eval and run share: the flags for model, task and output, and the loading of what they name. */
#ifndef CLI_INPUTS_H
#define CLI_INPUTS_H

#include <softprompt.h>

#include "options.h"

typedef struct model_flags {
    const char *path;
    size_t threads; /* 0: the machine's */
    int weights;    /* sp_weights */
    int compute;    /* sp_compute */
} model_flags;

typedef struct task_flags {
    const char *template_text;
    text_list verbalizers; /* "label=text" */
    const char *text_column, *label_column, *task_column;
    size_t max_length;
} task_flags;

typedef struct output_flags {
    bool json, quiet;
} output_flags;

extern const option_row model_rows[], task_rows[], output_rows[];

sp_status load_model(sp_model **out, const model_flags *flags);

/* The adapter in `dir`, checked against the model, with this task of it in use. `dir` NULL: none, *out is NULL. */
sp_status load_prompt(sp_prompt **out, const char *dir, size_t task_id, const sp_model *model, const sp_logger *logger);

sp_status load_data(sp_dataset **out, const char *path, const task_flags *flags, const sp_logger *logger);

/* A text file as it is, but for a byte order mark at its start; free. EXIT_DONE or, with a message, the exit code. */
int load_text(char **out, const char *path);

/* Splits each --verbalizer at its first '=' (in place) into task->verbalizers, an array that the caller frees; sets what else
 * the flags say. EXIT_DONE or, with a message, the exit code. */
int make_task(sp_task *task, sp_verbalizer **verbalizers, const command *self, const task_flags *flags);

#endif
