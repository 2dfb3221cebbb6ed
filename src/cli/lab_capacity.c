/* lab_capacity.c: softprompt lab capacity MEASUREMENT: how much a prompt holds. Finds it and hands it the rest of the line.
 * A line of flags alone that names a model is cram's. */
#include <string.h>

#include "cli.h"

#define ARRAY_LEN(array) (sizeof(array) / sizeof *(array))

static const command *const measurements[] = {&capacity_bound_command, &capacity_cram_command};
static const char *const names[] = {"bound", "cram"};

/* Names that are kept for measurements still to come. */
static const char *const later[] = {"memorise"};

static bool names_model(int argc, char **argv)
{
    bool found = false;
    for (int i = 1; i < argc; i++) found |= strncmp(argv[i], "-m", 2) == 0 || strncmp(argv[i], "--model", strlen("--model")) == 0;
    return found && argv[1][0] == '-';
}

static int run_capacity(const command *self, int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;
    if (!name) return usage_error(self, "no measurement: give bound or cram");
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        options_print_help(self);
        return EXIT_DONE;
    }
    if (names_model(argc, argv)) return capacity_cram_command.run(&capacity_cram_command, argc, argv);
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strcmp(name, names[i]) == 0) return measurements[i]->run(measurements[i], argc - 1, argv + 1);
    for (size_t i = 0; i < ARRAY_LEN(later); i++)
        if (strcmp(name, later[i]) == 0) return usage_error(self, "lab capacity %s is not in this version", name);
    const char *nearest = nearest_word(name, names, ARRAY_LEN(names));
    if (nearest) return usage_error(self, "\"%s\" is no measurement; did you mean %s?", name, nearest);
    return usage_error(self, "\"%s\" is no measurement; there are bound and cram", name);
}

static const option_group no_groups[] = {{0}};

const command capacity_command = {
    .name = "lab capacity",
    .usage = "MEASUREMENT [flags]",
    .summary = "How much a prompt holds.",
    .details = "Measurements, each with a --help of its own:\n\n"
               "  bound     the paper's formula, what constructions take, what no machine passes\n"
               "  cram      the longest text that learnt vectors make a real model say; also without its name, with -m",
    .example = "  softprompt lab capacity bound --len 2 --epsilon 0.05",
    .groups = no_groups,
    .run = run_capacity,
};
