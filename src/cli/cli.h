/* cli.h: the commands. Each file says what its command does in a table of flags and one function; main.c calls them by name. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include "options.h"

extern const command train_command, eval_command, run_command, audit_command, compile_command, info_command, plan_command,
    lab_command;

/* What lab.c chooses among. */
extern const command universality_command, capacity_command, phase_command;

/* What lab_capacity.c chooses among. */
extern const command capacity_bound_command, capacity_memorise_command, capacity_cram_command;

/* Runs the one of n commands, at most 8, whose last word is the next of the line. what: what such a command is, for messages. */
int run_named(const command *self, const char *what, const command *const *commands, size_t n, int argc, char **argv);

#endif
