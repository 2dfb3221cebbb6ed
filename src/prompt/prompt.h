/* prompt.h: what a soft prompt consists of, for the modules above (train, lab, serve). */
#ifndef SP_PROMPT_PROMPT_H
#define SP_PROMPT_PROMPT_H

#include "model/model.h"
#include "softprompt.h"

/* Gives the prompt a copy of `task`: what softprompt.json will carry. */
sp_status sp_prompt_set_task(sp_prompt *prompt, const sp_task *task);

#endif
