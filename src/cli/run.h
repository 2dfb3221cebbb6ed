/* run.h: one text in, one answer out; what `run TEXT` does once and the terminal loop does line by line. */
#ifndef CLI_RUN_H
#define CLI_RUN_H

#include <softprompt.h>

#include "inputs.h"

typedef struct run_job {
    sp_model *model;
    prompt_list prompts; /* several are an ensemble; none: the model alone */
    sp_task own_task;
    const sp_task *task; /* the adapters', own_task, where TEXT is to be wrapped in it; NULL: TEXT is raw */
    sp_session *session; /* begins behind the prompts */
    sp_sampling sampling;
    size_t max_length; /* 0: a text that does not fit is an error */
    bool no_special, json, quiet;
} run_job;

/* Answers `text`: a label where the task has verbalizers, else a completion as it is generated. Returns the exit code. */
int answer_text(run_job *job, const char *text);

/* The end of an answer: the object of --json, or the line's end that a terminal needs. Returns the exit code. */
int finish_answer(const run_job *job, const sp_generation *generation);

/* An sp_text_fn that writes to standard output. `user`, a `const volatile int *`, cancels when non-zero; NULL: never. */
bool stream_text(void *user, const char *text, size_t n_bytes);

/* The conversation on a terminal, until /quit or the end of input. Ctrl-C stops an answer. Returns the exit code. */
int converse(run_job *job);

#endif
