/* lab.c: softprompt lab EXPERIMENT: the theorems, run. Finds the experiment and hands it the rest of the line. */
#include <string.h>

#include "cli.h"

#define ARRAY_LEN(array) (sizeof(array) / sizeof *(array))

static const command *const experiments[] = {&universality_command, &capacity_command};
static const char *const names[] = {"universality", "capacity"};

/* Names that are kept for experiments still to come. */
static const char *const later[] = {"phase"};

static int run_lab(const command *self, int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;
    if (!name) return usage_error(self, "no experiment: give universality or capacity");
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        options_print_help(self);
        return EXIT_DONE;
    }
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strcmp(name, names[i]) == 0) return experiments[i]->run(experiments[i], argc - 1, argv + 1);
    for (size_t i = 0; i < ARRAY_LEN(later); i++)
        if (strcmp(name, later[i]) == 0)
            return usage_error(self, "lab %s is not in this version, which has lab universality and lab capacity", name);
    const char *nearest = nearest_word(name, names, ARRAY_LEN(names));
    if (nearest) return usage_error(self, "\"%s\" is no experiment; did you mean %s?", name, nearest);
    return usage_error(self, "\"%s\" is no experiment; there are universality and capacity", name);
}

static const option_group no_groups[] = {{0}};

const command lab_command = {
    .name = "lab",
    .usage = "EXPERIMENT [flags]",
    .summary = "Runs a theorem of arXiv 2411.16525 as an experiment.",
    .details = "Experiments, each with a --help of its own:\n\n"
               "  universality  one frozen transformer, any Lipschitz function, by the prompt alone\n"
               "  capacity      how much a prompt holds",
    .example = "  softprompt lab universality --len 2 --grid 16 --function sort --plot sort.png",
    .groups = no_groups,
    .run = run_lab,
};
