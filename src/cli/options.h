/* options.h: the flags of a command as a table: a row says how a flag is spelt, what help says of it and where its value goes.
 *
 *     static const option_row file_rows[] = {
 *         {OPTION_STRING, 'm', "model", "FILE", "the model, a GGUF file", .target = offsetof(eval_flags, model), .required = true},
 *         {OPTION_COUNT, 0, "batch-size", "N", "rows in one pass", "32", offsetof(eval_flags, batch_size), .min = 1},
 *         {0}};
 */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

typedef enum option_kind {
    OPTION_FLAG,    /* bool: given or not */
    OPTION_STRING,  /* const char *: as it is given */
    OPTION_TEXT,    /* const char *: \n, \t and \\ are understood */
    OPTION_COUNT,   /* size_t: a whole number, min to max (max 0: no bound) */
    OPTION_REAL,    /* double, min to max */
    OPTION_CHOICE,  /* int: which of the words of `argument`, from 0 */
    OPTION_TEXTS,   /* text_list: OPTION_TEXT, may be given more than once */
    OPTION_STRINGS, /* text_list: OPTION_STRING, may be given more than once */
    OPTION_LATER,   /* takes an argument; known, but not in this version, and so not in help */
    OPTION_HELP     /* prints help and ends the command */
} option_kind;

typedef struct text_list {
    char **items; /* the array is freed with text_list_free; the strings are the command line's */
    size_t n;
} text_list;

void text_list_free(text_list *list);

typedef struct option_row {
    option_kind kind;
    char letter;          /* 'm' for -m; 0: none */
    const char *name;     /* "model" for --model */
    const char *argument; /* what help calls the value; of a choice the words themselves: "cosine|linear|constant" */
    const char *help;
    const char *fallback; /* what holds where the flag is not given, for help; NULL: says nothing */
    size_t target;        /* offset of the value */
    double min, max;
    bool required;
    const char *later; /* of a choice: words that are known, but not in this version */
} option_row;

typedef struct option_group {
    const char *title;
    const option_row *rows; /* ended by {0} */
    size_t base;            /* where the struct that the rows' targets count from lies in the command's flags */
} option_group;

typedef struct command {
    const char *name;
    const char *usage;          /* what follows "softprompt train" in the synopsis */
    const char *summary;        /* one line */
    const char *details;        /* paragraphs, broken into lines; NULL: none */
    const char *example;        /* lines that work as they stand, after scripts/demo */
    const option_group *groups; /* ended by {0} */
    const char *operand;        /* the one argument that is no flag, as help calls it; NULL: none allowed */
    int (*run)(const struct command *self, int argc, char **argv);
} command;

/* Reads the command line (argv[0] is the command's name) into `flags` and `operand` (NULL where it was not given; `operand`
 * may be NULL where the command takes none). Values point into argv, which is written to: escapes are undone in place.
 * True: go on. False: the command is over with *exit_code: help was asked for, or the line is wrong, and the user was told. */
bool options_parse(const command *self, void *flags, const char **operand, int argc, char **argv, int *exit_code);

/* Synopsis, summary, flags in their groups, examples; to standard output. */
void options_print_help(const command *self);

/* "softprompt: MESSAGE (see softprompt train --help)" to standard error. Returns EXIT_USAGE. */
int usage_error(const command *self, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The word of `words` (n) that `given` was probably meant to be; NULL: none is near. */
const char *nearest_word(const char *given, const char *const *words, size_t n);

#endif
