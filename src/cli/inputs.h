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

/* An adapter, checked against the model; its task task_id is used where it is the only one, or has several. *out on failure, too:
 * free it. */
sp_status load_prompt(sp_prompt **out, const char *dir, bool is_only, size_t task_id, const sp_model *model,
                      const sp_logger *logger);

typedef struct prompt_list {
    sp_prompt **items; /* several are an ensemble */
    size_t n;
} prompt_list;

/* The adapters in the directories `dirs` (none: an empty list), checked against the model. task_id: the task of each to be used, of
 * several adapters where they have more than one. EXIT_DONE or, with a message, the exit code. */
int load_prompts(prompt_list *out, const text_list *dirs, size_t task_id, const sp_model *model, const sp_logger *logger);
void prompt_list_free(prompt_list *list);

/* The list as the library's calls take it. */
const sp_prompt *const *prompts_of(const prompt_list *list);

sp_data_options data_options(const task_flags *flags, const sp_logger *logger);
sp_status load_data(sp_dataset **out, const char *path, const task_flags *flags, const sp_logger *logger);

/* A text file as it is, but for a byte order mark at its start; free. EXIT_DONE or, with a message, the exit code. */
int load_text(char **out, const char *path);

/* A name in the folder that the scripts use, too: $SOFTPROMPT_CACHE, or softprompt below the user's caches; free. NULL: no memory,
 * which the user was told. */
char *cache_path(const char *name);

/* Splits each --verbalizer at its first '=' (in place) into task->verbalizers, an array that the caller frees; sets what else
 * the flags say. EXIT_DONE or, with a message, the exit code. */
int make_task(sp_task *task, sp_verbalizer **verbalizers, const command *self, const task_flags *flags);

#endif
