/* options.c: getopt_long driven by a table. getopt finds the flags; this file checks, converts and explains them.
 * Invariant: a value that does not parse whole, or lies out of its range, ends the command before any work is done. */
#include "options.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

enum { MAX_OPTIONS = 96, MAX_WORD = 64, HELP_COLUMN = 36, FIRST_LONG = 256 };

typedef struct option_slot {
    const option_row *row;
    char *target;
    bool given;
} option_slot;

/* A command's groups in one row, as getopt wants them. */
typedef struct option_set {
    const command *self;
    option_slot slots[MAX_OPTIONS];
    size_t n;
    struct option longs[MAX_OPTIONS + 1]; /* longs[i] is slots[i]; its value FIRST_LONG + i */
    char letters[2 * MAX_OPTIONS + 3];
} option_set;

int usage_error(const command *self, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("softprompt: ", stderr);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, " (see softprompt%s%s --help)\n", self ? " " : "", self ? self->name : "");
    va_end(arguments);
    return EXIT_USAGE;
}

void text_list_free(text_list *list)
{
    free(list->items);
    *list = (text_list){0};
}

/* ---- suggestions ------------------------------------------------------------------------------------------------- */

/* The fewest insertions, deletions and replacements that turn a into b (Levenshtein 1966), row by row. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t row[MAX_WORD + 1], n = strlen(b);
    if (n > MAX_WORD) return SIZE_MAX;
    for (size_t j = 0; j <= n; j++) row[j] = j;
    for (size_t i = 1; *a; a++, i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = diagonal + (*a != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

const char *nearest_word(const char *given, const char *const *words, size_t n)
{
    size_t length = strlen(given), least = 1 + length / 3;
    const char *nearest = NULL;
    for (size_t i = 0; i < n; i++) {
        bool begins = length >= 2 && strncmp(words[i], given, length) == 0; /* "--batch" for "--batch-size" */
        size_t distance = begins ? 0 : edit_distance(given, words[i]);
        if (distance < least || (distance == least && !nearest)) {
            nearest = words[i];
            least = distance;
        }
    }
    return nearest;
}

static int fail_unknown(const option_set *set, const char *given)
{
    const char *names[MAX_OPTIONS];
    size_t n_names = 0;
    for (size_t i = 0; i < set->n; i++)
        if (set->slots[i].row->kind != OPTION_LATER) names[n_names++] = set->slots[i].row->name;
    int length = (int)strcspn(given, "=");
    char word[MAX_WORD];
    snprintf(word, sizeof word, "%.*s", length < 2 ? 0 : length - 2, length < 2 ? "" : given + 2);
    const char *nearest = given[1] == '-' ? nearest_word(word, names, n_names) : NULL;
    if (nearest)
        return usage_error(set->self, "%.*s is no option of %s; did you mean --%s?", length, given, set->self->name, nearest);
    return usage_error(set->self, "%.*s is no option of %s", length, given, set->self->name);
}

/* ---- values ------------------------------------------------------------------------------------------------------- */

/* "a|b|c" -> the place of `word` in it, -1: not there. */
static int word_index(const char *words, const char *word)
{
    size_t length = strlen(word);
    for (int i = 0; words && *words; i++) {
        size_t n = strcspn(words, "|");
        if (n == length && strncmp(words, word, n) == 0) return i;
        words += n + (words[n] == '|');
    }
    return -1;
}

static int read_choice(const command *self, const option_row *row, int *target, const char *value)
{
    *target = word_index(row->argument, value);
    if (*target >= 0) return EXIT_DONE;
    const char *problem = word_index(row->later, value) >= 0 ? "is not in this version" : "is not one of its words";
    return usage_error(self, "--%s: \"%s\" %s; allowed: %s", row->name, value, problem, row->argument);
}

static int fail_number(const command *self, const option_row *row, const char *value, const char *wanted)
{
    if (row->max > 0)
        return usage_error(self, "--%s: \"%s\" is not %s from %.10g to %.10g", row->name, value, wanted, row->min, row->max);
    return usage_error(self, "--%s: \"%s\" is not %s of %.10g or more", row->name, value, wanted, row->min);
}

static bool in_range(const option_row *row, double number)
{
    return number >= row->min && (row->max <= 0 || number <= row->max);
}

/* Digits alone: strtoull would take " -1" for 18446744073709551615. */
static int read_count(const command *self, const option_row *row, size_t *target, const char *value)
{
    errno = 0;
    unsigned long long number = strtoull(value, NULL, 10);
    bool good = *value && value[strspn(value, "0123456789")] == '\0' && errno == 0 && number <= SIZE_MAX;
    if (!good || !in_range(row, (double)number)) return fail_number(self, row, value, "a whole number");
    *target = (size_t)number;
    return EXIT_DONE;
}

/* Decimal alone: strtod would take "nan", "inf" and "0x1p3". */
static int read_real(const command *self, const option_row *row, double *target, const char *value)
{
    char *end;
    double number = strtod(value, &end);
    bool good = *value && *end == '\0' && value[strspn(value, "+-.0123456789eE")] == '\0' && isfinite(number);
    if (!good || !in_range(row, number)) return fail_number(self, row, value, "a number");
    *target = number;
    return EXIT_DONE;
}

static int escaped(char letter)
{
    return letter == 'n' ? '\n' : letter == 't' ? '\t' : letter == '\\' ? '\\' : -1;
}

/* Undoes \n, \t and \\ in place: the result is never longer. */
static int undo_escapes(const command *self, const option_row *row, char *value)
{
    char *to = value;
    for (const char *from = value; *from; from++) {
        int byte = *from == '\\' ? escaped(*++from) : (unsigned char)*from;
        if (byte == -1)
            return usage_error(self, "--%s: a backslash may only stand in \\n, \\t and \\\\ (a backslash itself)", row->name);
        *to++ = (char)byte;
    }
    *to = '\0';
    return EXIT_DONE;
}

static int append_text(text_list *list, char *value)
{
    char **items = realloc(list->items, (list->n + 1) * sizeof *items);
    if (!items) return report_no_memory();
    list->items = items;
    items[list->n++] = value;
    return EXIT_DONE;
}

/* Names of files and columns: an empty one is a variable of a script that was never set. */
static int check_string(const command *self, const option_row *row, const char *value)
{
    return *value ? EXIT_DONE : usage_error(self, "--%s: %s is empty", row->name, row->argument);
}

static int read_value(const command *self, option_slot *slot, char *value)
{
    const option_row *row = slot->row;
    void *target = slot->target;
    int failed;
    slot->given = true;
    switch (row->kind) {
    case OPTION_FLAG:
        *(bool *)target = true;
        return EXIT_DONE;
    case OPTION_STRING:
        *(const char **)target = value;
        return check_string(self, row, value);
    case OPTION_STRINGS:
        failed = append_text(target, value);
        return failed ? failed : check_string(self, row, value);
    case OPTION_TEXT:
        *(const char **)target = value;
        return undo_escapes(self, row, value);
    case OPTION_COUNT:
        return read_count(self, row, target, value);
    case OPTION_REAL:
        return read_real(self, row, target, value);
    case OPTION_CHOICE:
        return read_choice(self, row, target, value);
    case OPTION_TEXTS:
        failed = append_text(target, value);
        return failed ? failed : undo_escapes(self, row, value);
    case OPTION_LATER:
        return usage_error(self, "--%s is not in this version", row->name);
    case OPTION_HELP:
        break; /* the caller's */
    }
    return EXIT_DONE;
}

/* ---- the command line ---------------------------------------------------------------------------------------------- */

static bool takes_value(const option_row *row)
{
    return row->kind != OPTION_FLAG && row->kind != OPTION_HELP;
}

static void collect(option_set *set, const command *self, void *flags)
{
    char *letter = set->letters;
    *letter++ = ':'; /* getopt: tell a missing value from an unknown flag */
    set->self = self;
    for (const option_group *group = self->groups; group->title; group++)
        for (const option_row *row = group->rows; row->name; row++, set->n++) {
            assert(set->n < MAX_OPTIONS);
            set->slots[set->n] = (option_slot){.row = row, .target = (char *)flags + group->base + row->target};
            set->longs[set->n] = (struct option){row->name, takes_value(row), NULL, FIRST_LONG + (int)set->n};
            if (row->letter) *letter++ = row->letter;
            if (row->letter && takes_value(row)) *letter++ = ':';
        }
}

static option_slot *find_slot(option_set *set, int code)
{
    for (size_t i = 0; i < set->n; i++)
        if (code == FIRST_LONG + (int)i || (code > 0 && code == set->slots[i].row->letter)) return &set->slots[i];
    return NULL;
}

/* The element of argv that getopt has just read a flag from: its value may be the next element, or a part of it. */
static const char *flag_read(char **argv)
{
    return argv[optind - (optarg && optarg == argv[optind - 1] ? 2 : 1)];
}

/* getopt takes "--batch" for "--batch-size". Refused: such a line would break when the next version adds a flag. */
static bool is_abbreviated(const option_slot *slot, char **argv)
{
    return strcspn(flag_read(argv) + 2, "=") != strlen(slot->row->name);
}

static int fail_getopt(option_set *set, int code, char **argv)
{
    option_slot *slot = find_slot(set, optopt);
    const char *given = argv[optind - 1];
    char letter[3] = {'-', (char)optopt, '\0'};
    if (slot && code == ':') return usage_error(set->self, "--%s needs a value: %s", slot->row->name, slot->row->argument);
    if (slot) return usage_error(set->self, "--%s takes no value", slot->row->name);
    return fail_unknown(set, optopt ? letter : given);
}

static int read_operand(const command *self, const char **operand, int argc, char **argv)
{
    if (optind == argc) return EXIT_DONE;
    if (!self->operand) return usage_error(self, "\"%s\" is no flag, and %s takes nothing else", argv[optind], self->name);
    if (argc - optind > 1)
        return usage_error(self, "\"%s\" comes after %s: give one, in quotes if it has spaces", argv[optind + 1], self->operand);
    *operand = argv[optind];
    return EXIT_DONE;
}

static int check_required(const option_set *set)
{
    for (size_t i = 0; i < set->n; i++) {
        const option_row *row = set->slots[i].row;
        if (row->required && !set->slots[i].given) {
            char letter[8] = "";
            if (row->letter) snprintf(letter, sizeof letter, "-%c, ", row->letter);
            return usage_error(set->self, "%s--%s %s is missing", letter, row->name, row->argument);
        }
    }
    return EXIT_DONE;
}

/* EXIT_DONE, or the exit code; *help: help was asked for. */
static int parse(option_set *set, const char **operand, bool *help, int argc, char **argv)
{
    int code, failed;
    optind = 0; /* 0, not 1: glibc starts afresh */
    opterr = 0;
    while ((code = getopt_long(argc, argv, set->letters, set->longs, NULL)) != -1) {
        option_slot *slot = code == '?' || code == ':' ? NULL : find_slot(set, code);
        if (!slot) return fail_getopt(set, code, argv);
        if (code >= FIRST_LONG && is_abbreviated(slot, argv)) return fail_unknown(set, flag_read(argv));
        if ((*help = slot->row->kind == OPTION_HELP)) return EXIT_DONE;
        if ((failed = read_value(set->self, slot, optarg))) return failed;
    }
    if ((failed = read_operand(set->self, operand, argc, argv))) return failed;
    return check_required(set);
}

bool options_parse(const command *self, void *flags, const char **operand, int argc, char **argv, int *exit_code)
{
    option_set set = {0};
    bool help = false;
    collect(&set, self, flags);
    *exit_code = parse(&set, operand, &help, argc, argv);
    if (help) options_print_help(self);
    return !help && *exit_code == EXIT_DONE;
}

/* ---- help ---------------------------------------------------------------------------------------------------------- */

static void print_row(const option_row *row)
{
    if (row->kind == OPTION_LATER) return;
    int column = row->letter ? printf("  -%c, --%s", row->letter, row->name) : printf("      --%s", row->name);
    if (takes_value(row)) column += printf(" %s", row->argument);
    if (column + 2 > HELP_COLUMN) column = printf("\n") - 1;
    printf("%*s%s", HELP_COLUMN - column, "", row->help);
    if (row->fallback) printf(" (default: %s)", row->fallback);
    printf("\n");
}

void options_print_help(const command *self)
{
    printf("usage: softprompt %s %s\n\n%s\n", self->name, self->usage, self->summary);
    if (self->details) printf("\n%s\n", self->details);
    for (const option_group *group = self->groups; group->title; group++) {
        printf("\n%s\n", group->title);
        for (const option_row *row = group->rows; row->name; row++) print_row(row);
    }
    printf("\nexample\n%s\n", self->example);
}
