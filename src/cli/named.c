/* named.c: a command that is several: the next word of the line says which. */
#include <stdio.h>
#include <string.h>

#include "cli.h"

enum { MAX_COMMANDS = 8 };

/* The last word of "lab universality". */
static const char *word_of(const command *self)
{
    const char *space = strrchr(self->name, ' ');
    return space ? space + 1 : self->name;
}

/* "universality, capacity or phase" */
static const char *list_words(char *out, size_t size, const char *const *words, size_t n, const char *and)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < n && used < size; i++) {
        const char *before = i == 0 ? "" : i + 1 == n ? and : ", ";
        used += (size_t)snprintf(out + used, size - used, "%s%s", before, words[i]);
    }
    return out;
}

int run_named(const command *self, const char *what, const command *const *commands, size_t n, int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL, *words[MAX_COMMANDS];
    char list[128];
    for (size_t i = 0; i < n; i++) words[i] = word_of(commands[i]);
    if (!name) return usage_error(self, "no %s: give %s", what, list_words(list, sizeof list, words, n, " or "));
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        options_print_help(self);
        return EXIT_DONE;
    }
    for (size_t i = 0; i < n; i++)
        if (strcmp(name, words[i]) == 0) return commands[i]->run(commands[i], argc - 1, argv + 1);
    const char *nearest = nearest_word(name, words, n);
    if (nearest) return usage_error(self, "\"%s\" is no %s; did you mean %s?", name, what, nearest);
    return usage_error(self, "\"%s\" is no %s; there are %s", name, what, list_words(list, sizeof list, words, n, " and "));
}
