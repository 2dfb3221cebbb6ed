/* inputs.c: the flags that several commands share, and what they load. */
#include "inputs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

const option_row model_rows[] = {{OPTION_STRING, 'm', "model", "FILE",
                                  "the language model: a GGUF file or a Hugging Face directory",
                                  .target = offsetof(model_flags, path), .required = true},
                                 {OPTION_COUNT, 0, "threads", "N", "processors to use", .fallback = "all this process may use",
                                  .target = offsetof(model_flags, threads), .min = 1, .max = 4096},
                                 {OPTION_CHOICE, 0, "weights", "auto|mapped|f32", "keep weights as stored, or expand them once",
                                  .fallback = "auto", .target = offsetof(model_flags, weights), .later = "bf16"},
                                 {OPTION_CHOICE, 0, "compute", "auto|f32|bf16", "large products in f32, or rounded to bf16",
                                  .fallback = "f32", .target = offsetof(model_flags, compute)},
                                 {0}};

const option_row task_rows[] = {{OPTION_TEXT, 0, "template", "TEXT", "what the model reads, with {text} for a row's text",
                                 .fallback = "{text}", .target = offsetof(task_flags, template_text)},
                                {OPTION_TEXTS, 0, "verbalizer", "LABEL=TEXT", "the answer for a label; once for each",
                                 .fallback = "space and label", .target = offsetof(task_flags, verbalizers)},
                                {OPTION_STRING, 0, "text-column", "NAME", "the column that holds the text", .fallback = "text",
                                 .target = offsetof(task_flags, text_column)},
                                {OPTION_STRING, 0, "label-column", "NAME", "the column that holds the label", .fallback = "label",
                                 .target = offsetof(task_flags, label_column)},
                                {OPTION_STRING, 0, "task-column", "NAME", "the column with a row's task, a number from 0",
                                 .fallback = "task", .target = offsetof(task_flags, task_column)},
                                {OPTION_COUNT, 0, "max-length", "N", "cut longer texts at the left to N tokens",
                                 .fallback = "the model's context", .target = offsetof(task_flags, max_length), .min = 1,
                                 .max = 1e9},
                                {0}};

const option_row output_rows[] = {
    {OPTION_FLAG, 0, "json", .help = "print one JSON object instead of a table", .target = offsetof(output_flags, json)},
    {OPTION_FLAG, 'q', "quiet", .help = "no progress, no notes; warnings and errors stay", .target = offsetof(output_flags, quiet)},
    {OPTION_HELP, 'h', "help", .help = "print this page"},
    {0}};

sp_status load_model(sp_model **out, const model_flags *flags)
{
    sp_model_options options = {
        .n_threads = (int)flags->threads, .weights = (sp_weights)flags->weights, .compute = (sp_compute)flags->compute};
    return sp_model_load(out, flags->path, &options);
}

sp_status load_prompt(sp_prompt **out, const char *dir, bool is_only, size_t task_id, const sp_model *model,
                      const sp_logger *logger)
{
    sp_status st = sp_prompt_load(out, dir);
    if (!st) st = sp_prompt_check(*out, model, logger);
    if (!st && (is_only || sp_prompt_num_tasks(*out) > 1)) st = sp_prompt_use_task(*out, task_id);
    return st;
}

int load_prompts(prompt_list *out, const text_list *dirs, size_t task_id, const sp_model *model, const sp_logger *logger)
{
    sp_status st = SP_OK;
    *out = (prompt_list){calloc(dirs->n + 1, sizeof(sp_prompt *)), 0};
    if (!out->items) return report_no_memory();
    for (; out->n < dirs->n && !st; out->n++)
        st = load_prompt(&out->items[out->n], dirs->items[out->n], dirs->n == 1, task_id, model, logger);
    if (!st) return EXIT_DONE;
    prompt_list_free(out);
    return report_failure(st);
}

void prompt_list_free(prompt_list *list)
{
    for (size_t i = 0; i < list->n; i++) sp_prompt_free(list->items[i]);
    free(list->items);
    *list = (prompt_list){0};
}

const sp_prompt *const *prompts_of(const prompt_list *list)
{
    return (const sp_prompt *const *)list->items;
}

sp_data_options data_options(const task_flags *flags, const sp_logger *logger)
{
    return (sp_data_options){.text_column = flags->text_column,
                             .label_column = flags->label_column,
                             .task_column = flags->task_column,
                             .logger = logger};
}

sp_status load_data(sp_dataset **out, const char *path, const task_flags *flags, const sp_logger *logger)
{
    const sp_data_options options = data_options(flags, logger);
    return sp_dataset_load(out, path, &options);
}

/* All of the stream with a NUL behind it, which is not counted; NULL: errno says why. */
static char *read_stream(size_t *n_bytes, FILE *stream)
{
    size_t capacity = 1 << 16;
    char *text = malloc(capacity);
    *n_bytes = 0;
    while (text) {
        *n_bytes += fread(text + *n_bytes, 1, capacity - *n_bytes - 1, stream);
        if (*n_bytes + 1 < capacity) break;
        char *larger = realloc(text, capacity *= 2);
        if (!larger) free(text);
        text = larger;
    }
    if (text && !ferror(stream)) {
        text[*n_bytes] = '\0';
        return text;
    }
    free(text);
    return NULL;
}

int load_text(char **out, const char *path)
{
    static const char mark[] = "\xef\xbb\xbf";
    size_t n_bytes = 0;
    FILE *stream = fopen(path, "rb");
    *out = stream ? read_stream(&n_bytes, stream) : NULL;
    if (!*out)
        report_line("%s: cannot read it: %s", path, strerror(errno));
    else if (strlen(*out) < n_bytes)
        report_line("%s: byte %zu is NUL: not a text file", path, strlen(*out) + 1);
    else if (n_bytes == 0)
        report_line("%s: is empty", path);
    bool good = n_bytes > 0 && strlen(*out) == n_bytes;
    if (good && strncmp(*out, mark, strlen(mark)) == 0) memmove(*out, *out + strlen(mark), n_bytes - strlen(mark) + 1);
    if (stream) fclose(stream);
    if (good) return EXIT_DONE;
    free(*out);
    *out = NULL;
    return EXIT_FAILED;
}

/* pairs[i], "label=text", is cut in two at its first '='; those before it are already. */
static int split_verbalizer(sp_verbalizer *out, const command *self, char *const *pairs, size_t i)
{
    char *pair = pairs[i], *equals = strchr(pair, '=');
    if (!equals || equals == pair || !equals[1])
        return usage_error(self, "--verbalizer: \"%s\" is not LABEL=TEXT, such as 'positive= positive'", pair);
    *equals = '\0';
    *out = (sp_verbalizer){.label = pair, .text = equals + 1};
    for (size_t k = 0; k < i; k++)
        if (strcmp(pairs[k], pair) == 0) return usage_error(self, "--verbalizer: label \"%s\" is given twice", pair);
    return EXIT_DONE;
}

int make_task(sp_task *task, sp_verbalizer **verbalizers, const command *self, const task_flags *flags)
{
    size_t n = flags->verbalizers.n;
    *verbalizers = NULL;
    if (flags->template_text && !strstr(flags->template_text, "{text}"))
        return usage_error(self, "--template: \"{text}\" is missing: it marks where a row's text goes");
    if (flags->template_text) task->template_text = flags->template_text;
    if (flags->max_length) task->max_length = flags->max_length;
    if (!n) return EXIT_DONE;
    *verbalizers = calloc(n, sizeof **verbalizers);
    if (!*verbalizers) return report_no_memory();
    for (size_t i = 0; i < n; i++) {
        int failed = split_verbalizer(&(*verbalizers)[i], self, flags->verbalizers.items, i);
        if (failed) return failed;
    }
    task->verbalizers = *verbalizers;
    task->n_verbalizers = n;
    return EXIT_DONE;
}

char *cache_path(const char *name)
{
    const char *cache = getenv("SOFTPROMPT_CACHE"), *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *path = NULL;
    size_t n_bytes;
    FILE *stream = open_memstream(&path, &n_bytes);
    if (stream && cache && *cache)
        fprintf(stream, "%s/%s", cache, name);
    else if (stream)
        fprintf(stream, "%s%s/softprompt/%s", base && *base ? base : home ? home : ".", base && *base ? "" : "/.cache", name);
    if (stream && fclose(stream) == 0) return path;
    free(path);
    report_no_memory();
    return NULL;
}
