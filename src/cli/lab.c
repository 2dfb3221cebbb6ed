/* lab.c: softprompt lab EXPERIMENT: the theorems, run. */
#include "cli.h"

static const command *const experiments[] = {&universality_command, &capacity_command, &phase_command};

static int run_lab(const command *self, int argc, char **argv)
{
    return run_named(self, "experiment", experiments, sizeof experiments / sizeof *experiments, argc, argv);
}

static const option_group no_groups[] = {{0}};

const command lab_command = {
    .name = "lab",
    .usage = "EXPERIMENT [flags]",
    .summary = "Runs a theorem of arXiv 2411.16525 as an experiment.",
    .details = "Experiments, each with a --help of its own:\n\n"
               "  universality  one frozen transformer, any Lipschitz function, by the prompt alone\n"
               "  capacity      how much a prompt holds\n"
               "  phase         when attention can be fast: below B = sqrt(ln n), and not above",
    .example = "  softprompt lab universality --len 2 --grid 16 --function sort --plot sort.png",
    .groups = no_groups,
    .run = run_lab,
};
