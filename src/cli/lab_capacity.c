/* lab_capacity.c: softprompt lab capacity MEASUREMENT: how much a prompt holds. A line of flags alone that names a model is cram's.
 */
#include <string.h>

#include "cli.h"

static const command *const measurements[] = {&capacity_bound_command, &capacity_memorise_command, &capacity_cram_command};

static bool names_model(int argc, char **argv)
{
    bool found = false;
    for (int i = 1; i < argc; i++) found |= strncmp(argv[i], "-m", 2) == 0 || strncmp(argv[i], "--model", strlen("--model")) == 0;
    return found && argv[1][0] == '-';
}

static int run_capacity(const command *self, int argc, char **argv)
{
    if (names_model(argc, argv)) return capacity_cram_command.run(&capacity_cram_command, argc, argv);
    return run_named(self, "measurement", measurements, sizeof measurements / sizeof *measurements, argc, argv);
}

static const option_group no_groups[] = {{0}};

const command capacity_command = {
    .name = "lab capacity",
    .usage = "MEASUREMENT [flags]",
    .summary = "How much a prompt holds.",
    .details = "Measurements, each with a --help of its own:\n\n"
               "  bound     the paper's formula, what constructions take, what no machine passes\n"
               "  memorise  random sequences on the smallest transformers: learnt, written down, and by formula\n"
               "  cram      the longest text that learnt vectors make a real model say; also without its name, with -m",
    .example = "  softprompt lab capacity bound --len 2 --epsilon 0.05",
    .groups = no_groups,
    .run = run_capacity,
};
