/* run_dir.h: the directory that holds one run: who may write there, and what may be removed. */
#ifndef SP_TRAIN_RUN_DIR_H
#define SP_TRAIN_RUN_DIR_H

#include <jansson.h>

#include "softprompt.h"

/* Makes `dir` this run's: settings.json is there afterwards, whole. *resumed: it was there before and agrees.
 *   neither flag   ARGUMENT where the directory holds anything that a run makes
 *   resume         goes on where settings.json agrees (MISMATCH where it does not); begins where there is no run yet;
 *                  ARGUMENT where an adapter of another origin lies there
 *   overwrite      first removes what runs make, and nothing else: other files in the directory stay
 * What a killed process left half-written is removed. `settings` from settings.h. */
sp_status sp_run_dir_open(bool *resumed, const char *dir, const json_t *settings, bool resume, bool overwrite,
                          const sp_logger *logger);

#endif
