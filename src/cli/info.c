/* info.c: softprompt info. What a file is, from sp_describe's JSON; or this machine. The table shows that JSON as it is,
 * member by member, so that a new member needs no new code here. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "inputs.h"
#include "report.h"

typedef struct info_flags {
    output_flags output;
} info_flags;

enum { MAX_SHOWN = 8, MAX_LINE = 160, MAX_NAME_COLUMN = 32, INDENT = 2 };

static const option_group groups[] = {{"output", output_rows, offsetof(info_flags, output)}, {0}};

/* ---- JSON as a table ------------------------------------------------------------------------------------------------ */

static size_t name_column(const json_t *object)
{
    size_t widest = 0;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name, value) if (strlen(name) > widest) widest = strlen(name);
    return widest < MAX_NAME_COLUMN ? widest : MAX_NAME_COLUMN;
}

static bool is_flat(const json_t *value)
{
    size_t i;
    json_t *item;
    if (json_is_object(value)) return false;
    json_array_foreach(value, i, item) if (json_is_object(item) || json_is_array(item)) return false;
    return true;
}

/* Strings come from files: what could steer a terminal is shown as '?', and a chat template of a page is cut. */
static void print_string(const char *text)
{
    size_t n = 0, n_bytes = strlen(text);
    bool quotes = n_bytes == 0 || text[0] == ' ' || text[n_bytes - 1] == ' '; /* spaces at the ends matter in a verbalizer */
    if (quotes) putchar('"');
    for (; text[n] && n < MAX_LINE; n++) {
        unsigned char c = (unsigned char)text[n];
        if (c == '\n')
            fputs("\\n", stdout);
        else
            putchar(c < 0x20 || c == 0x7f ? '?' : c);
    }
    while (((unsigned char)text[n] & 0xC0) == 0x80) putchar(text[n++]); /* not in the middle of a character */
    if (text[n]) printf("... (%zu bytes)", n_bytes);
    if (quotes) putchar('"');
}

static void print_flat(const json_t *value)
{
    size_t i;
    json_t *item;
    if (json_is_string(value)) print_string(json_string_value(value));
    if (json_is_integer(value)) printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
    if (json_is_real(value)) printf("%.6g", json_real_value(value));
    if (json_is_boolean(value)) fputs(json_is_true(value) ? "yes" : "no", stdout);
    if (json_is_null(value)) fputs("none", stdout);
    json_array_foreach(value, i, item)
    {
        if (i) fputs(", ", stdout);
        if (i < MAX_SHOWN)
            print_flat(item);
        else
            break;
    }
    if (json_array_size(value) > MAX_SHOWN) printf("... (%zu)", json_array_size(value));
}

static bool ends_with(const char *name, const char *ending)
{
    size_t n = strlen(name), n_ending = strlen(ending);
    return n >= n_ending && strcmp(name + n - n_ending, ending) == 0;
}

static void print_object(const json_t *object, int indent);

static void print_member(const char *name, const json_t *value, int indent, size_t width)
{
    size_t i;
    json_t *item;
    printf("%*s", indent, "");
    print_string(name);
    if (is_flat(value)) {
        size_t length = strlen(name);
        printf("%*s", (int)(length < width ? width - length : 0) + 2, "");
        print_flat(value);
        if (json_is_integer(value) && ends_with(name, "_bytes"))
            printf("  (%s)", format_bytes((double)json_integer_value(value)).text);
        putchar('\n');
        return;
    }
    putchar('\n');
    if (json_is_object(value)) print_object(value, indent + INDENT);
    json_array_foreach(value, i, item)
    {
        if (i) putchar('\n');
        if (json_is_object(item))
            print_object(item, indent + INDENT);
        else
            printf("%*s", indent + INDENT, ""), print_flat(item), putchar('\n');
    }
}

static void print_object(const json_t *object, int indent)
{
    const char *name;
    json_t *value;
    size_t width = name_column(object);
    json_object_foreach((json_t *)object, name, value) print_member(name, value, indent, width);
}

/* ---- the command ------------------------------------------------------------------------------------------------------ */

static int print_described(json_t *object, bool json)
{
    if (json || !object) return print_json(object);
    print_object(object, 0);
    json_decref(object);
    return EXIT_DONE;
}

static int describe_file(const char *path, bool json)
{
    char *text;
    sp_status st = sp_describe(&text, path);
    if (st) return report_failure(st);
    int code = EXIT_DONE;
    if (json)
        puts(text);
    else
        code = print_described(json_loads(text, 0, NULL), false);
    sp_free(text);
    return code;
}

/* "avx2 fma" -> ["avx2", "fma"] */
static json_t *split_words(const char *words)
{
    json_t *array = json_array();
    for (words += strspn(words, " "); *words; words += strspn(words, " ")) {
        size_t n = strcspn(words, " ");
        json_array_append_new(array, json_stringn(words, n));
        words += n;
    }
    return array;
}

static int describe_machine(bool json)
{
    sp_machine machine;
    sp_machine_describe(&machine);
    json_t *object = json_object();
    json_member(&object, "kind", json_string("machine"));
    json_member(&object, "version", json_string(sp_version()));
    json_member(&object, "cpu", json_text(machine.cpu));
    json_member(&object, "features", json ? split_words(machine.features) : json_text(machine.features));
    json_member(&object, "kernels", json_text(machine.kernels));
    json_member(&object, "threads", json_integer(machine.n_threads));
    json_member(&object, "memory_bytes", json_integer((json_int_t)machine.memory_bytes));
    return print_described(object, json);
}

static int run_info(const command *self, int argc, char **argv)
{
    info_flags flags = {0};
    const char *path = NULL;
    int code;
    if (!options_parse(self, &flags, &path, argc, argv, &code)) return code;
    return path ? describe_file(path, flags.output.json) : describe_machine(flags.output.json);
}

const command info_command = {
    .name = "info",
    .usage = "[FILE] [--json]",
    .summary = "Says what FILE is: a model, an adapter directory or a safetensors file. Without FILE: this machine.",
    .example = "  softprompt info demo/model.gguf",
    .groups = groups,
    .operand = "FILE",
    .run = run_info,
};
