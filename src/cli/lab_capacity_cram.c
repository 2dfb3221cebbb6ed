/* lab_capacity_cram.c: softprompt lab capacity cram. Flags -> sp_lab_cram -> a table or one JSON object. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "inputs.h"
#include "progress.h"
#include "report.h"

typedef struct cram_flags {
    model_flags model;
    const char *text, *export_dir;
    int kind;
    size_t num_virtual_tokens, samples, steps, seed;
    double minutes, learning_rate;
    bool quick, resume, overwrite;
    output_flags output;
} cram_flags;

enum { QUICK_SAMPLES = 2, QUICK_STEPS = 40 };

static const option_row text_rows[] = {
    {OPTION_STRING, 0, "text", "FILE", "rows with a text each, as train reads them",
     .fallback = "news that scripts/fetch-data fetched", .target = offsetof(cram_flags, text)},
    {OPTION_CHOICE, 0, "kind", "natural|shuffled|random", "the texts, their words in random order, or random tokens",
     .fallback = "natural", .target = offsetof(cram_flags, kind)},
    {OPTION_COUNT, 0, "samples", "N", "texts, all learnt side by side", .fallback = "4", .target = offsetof(cram_flags, samples),
     .min = 1, .max = 1000},
    {OPTION_COUNT, 0, "seed", "N", "which texts, in which order", .fallback = "0", .target = offsetof(cram_flags, seed)},
    {0}};

static const option_row learning_rows[] = {
    {OPTION_COUNT, 0, "num-virtual-tokens", "K", "learnt vectors for each text, behind a frozen BOS row", .fallback = "1",
     .target = offsetof(cram_flags, num_virtual_tokens), .min = 1, .max = 4096},
    {OPTION_COUNT, 0, "steps", "N", "of the optimiser, for each text", .fallback = "1000", .target = offsetof(cram_flags, steps),
     .min = 1, .max = 1e9},
    {OPTION_REAL, 0, "minutes", "M", "stop after M minutes for each text", .fallback = "when the steps are done",
     .target = offsetof(cram_flags, minutes), .min = 1e-3, .max = 1e6},
    {OPTION_REAL, 0, "learning-rate", "R", "of Adam", .fallback = "0.1", .target = offsetof(cram_flags, learning_rate), .min = 1e-9,
     .max = 1e3},
    {OPTION_FLAG, 0, "quick", .help = "2 texts and 40 steps: does it work at all?", .target = offsetof(cram_flags, quick)},
    {OPTION_STRING, 'o', "export", "DIR", "write the adapters there: DIR/sample-1, ...",
     .target = offsetof(cram_flags, export_dir)},
    {OPTION_FLAG, 0, "resume", .help = "go on with the search in DIR; --steps and --minutes count from its beginning",
     .target = offsetof(cram_flags, resume)},
    {OPTION_FLAG, 0, "overwrite", .help = "replace the search in DIR", .target = offsetof(cram_flags, overwrite)},
    {0}};

static const option_group groups[] = {{"model", model_rows, offsetof(cram_flags, model)},
                                      {"texts", text_rows, 0},
                                      {"learning", learning_rows, 0},
                                      {"output", output_rows, offsetof(cram_flags, output)},
                                      {0}};

static const char *const kind_names[] = {"natural", "shuffled", "random"};

/* ---- what is said ---- */

/* The first n of the sample's tokens as text; sp_free. */
static char *text_of(const sp_model *model, const sp_cram_sample *s, size_t n)
{
    char *text;
    size_t n_bytes;
    return sp_detokenize(&text, &n_bytes, sp_model_tokenizer(model), s->tokens, n, true) ? NULL : text;
}

static json_t *sample_json(const sp_model *model, const sp_cram_sample *s)
{
    char *text = text_of(model, s, s->n_tokens);
    json_t *ids = json_array(), *object = json_object();
    for (size_t i = 0; i < s->n_tokens; i++) json_array_append_new(ids, json_integer(s->tokens[i]));
    json_member(&object, "tokens", json_integer((json_int_t)s->n_tokens));
    json_member(&object, "bits", json_finite(s->bits));
    json_member(&object, "row", json_integer((json_int_t)s->row));
    json_member(&object, "text_tokens", json_integer((json_int_t)s->n_text));
    json_member(&object, "steps", json_integer((json_int_t)s->steps));
    json_member(&object, "restarts", json_integer((json_int_t)s->restarts));
    json_member(&object, "token_ids", ids);
    json_member(&object, "text", json_text(text ? text : ""));
    sp_free(text);
    return object;
}

static int print_report_json(const sp_cram_report *r, const sp_model *model, int kind)
{
    json_t *object = json_object(), *samples = json_array();
    for (size_t i = 0; i < r->n_samples; i++) json_array_append_new(samples, sample_json(model, &r->samples[i]));
    json_member(&object, "kind", json_text(kind_names[kind]));
    json_member(&object, "num_virtual_tokens", json_integer((json_int_t)r->num_virtual_tokens));
    json_member(&object, "samples", samples);
    json_member(&object, "mean_tokens", json_finite(r->mean_tokens));
    json_member(&object, "mean_bits", json_finite(r->mean_bits));
    json_member(&object, "bits_per_vector", json_finite(r->bits_per_vector));
    json_member(&object, "seconds", json_finite(r->seconds));
    json_member(&object, "stopped", json_boolean(r->stopped));
    return print_json(object);
}

static void print_report(const sp_cram_report *r, const sp_model *model, int kind)
{
    size_t n_whole = 0;
    for (size_t i = 0; i < r->n_samples; i++) {
        const sp_cram_sample *s = &r->samples[i];
        char *text = text_of(model, s, s->n_tokens), name[32];
        snprintf(name, sizeof name, "text %zu", i + 1);
        report_row(name, "%zu tokens, %.1f bits", s->n_tokens, s->bits);
        report_row_text("", text ? text : "");
        n_whole += s->n_tokens == s->n_text;
        sp_free(text);
    }
    report_row("vectors", "%zu, behind a frozen BOS row", r->num_virtual_tokens);
    report_row("texts", "%zu, %s", r->n_samples, kind_names[kind]);
    report_row("mean", "%.1f tokens, %.1f bits beyond the model's own prediction", r->mean_tokens, r->mean_bits);
    report_row("a vector", "%.1f bits", r->bits_per_vector);
    report_row("time", "%s%s", format_duration(r->seconds).text, r->stopped ? ", stopped: a longer search finds more" : "");
    if (n_whole) report_line("%zu of the texts were reproduced to their end: longer ones would measure more", n_whole);
}

/* ---- the command ---- */

static int load_texts(sp_dataset **out, const cram_flags *flags, const sp_logger *logger)
{
    const sp_data_options options = {.logger = logger};
    *out = NULL;
    if (flags->kind == SP_CRAM_RANDOM) return EXIT_DONE;
    char *path = flags->text ? NULL : cache_path("news.jsonl");
    if (!flags->text && !path) return EXIT_FAILED;
    int code = EXIT_DONE;
    if (path && access(path, R_OK) != 0) {
        report_line("%s: %s; give texts with --text, or let scripts/fetch-data fetch the news", path, strerror(errno));
        code = EXIT_FAILED;
    } else {
        const sp_status st = sp_dataset_load(out, path ? path : flags->text, &options);
        if (st) code = report_failure(st);
    }
    free(path);
    return code;
}

/* A short trial says little of a model, and one that found nothing says nothing. */
static bool is_worth_keeping(const cram_flags *flags, const sp_cram_report *report)
{
    size_t most_steps = 0;
    for (size_t i = 0; i < report->n_samples; i++)
        if (report->samples[i].steps > most_steps) most_steps = report->samples[i].steps;
    if (flags->quick) return false;
    if (report->mean_bits > 0 && (!report->stopped || most_steps >= QUICK_STEPS)) return true;
    report_line("%s: not kept for softprompt plan", report->mean_bits > 0 ? "so few steps say little of the model"
                                                                          : "no text was begun, which says nothing of the model");
    return false;
}

/* What can not be kept is not lost: it is printed, and plan takes the number. */
static int keep(const cram_flags *flags, const sp_cram_report *report, const sp_model *model)
{
    if (!is_worth_keeping(flags, report)) return EXIT_DONE;
    char *dir = cache_path("capacity");
    if (!dir) return EXIT_FAILED;
    const sp_status st = sp_cram_result_keep(report, dir, model, (sp_cram_kind)flags->kind);
    free(dir);
    if (!st) return EXIT_DONE;
    const int code = report_failure(st);
    report_line("so the result is not kept for softprompt plan, which takes it as --bits-per-vector %.1f", report->bits_per_vector);
    return code;
}

/* The adapters are there unless the search, which reports all the same, failed to write them. */
static int print_found(const cram_flags *flags, const sp_cram_report *report, const sp_model *model, bool are_saved)
{
    if (flags->output.json) return print_report_json(report, model, flags->kind);
    print_report(report, model, flags->kind);
    if (flags->export_dir && are_saved) report_row("adapters", "%s/sample-1 to sample-%zu", flags->export_dir, report->n_samples);
    return EXIT_DONE;
}

static int cram(const cram_flags *flags, sp_model *model, const sp_dataset *texts, progress_bar *bar)
{
    const sp_cram_options options = {.kind = (sp_cram_kind)flags->kind,
                                     .num_virtual_tokens = flags->num_virtual_tokens,
                                     .n_samples = flags->samples ? flags->samples
                                                  : flags->quick ? QUICK_SAMPLES
                                                                 : 0,
                                     .steps = flags->steps   ? flags->steps
                                              : flags->quick ? QUICK_STEPS
                                                             : 0,
                                     .seconds = 60 * flags->minutes,
                                     .learning_rate = flags->learning_rate,
                                     .seed = flags->seed,
                                     .export_dir = flags->export_dir,
                                     .resume = flags->resume,
                                     .overwrite = flags->overwrite};
    sp_cram_report report;
    stop_at_interrupt();
    const sp_status st = sp_lab_cram(&report, model, texts, &options, &bar->hooks);
    progress_clear(bar);
    const int searched = st ? report_failure(st) : EXIT_DONE;
    const int kept = report.n_samples ? keep(flags, &report, model) : EXIT_DONE;
    const int printed = report.n_samples ? print_found(flags, &report, model, !st || st == SP_ERR_STOPPED) : EXIT_DONE;
    sp_cram_report_clear(&report);
    return searched ? searched : kept ? kept : printed;
}

static int run_cram(const command *self, int argc, char **argv)
{
    cram_flags flags = {0};
    sp_model *model = NULL;
    sp_dataset *texts = NULL;
    progress_bar bar;
    int code;
    if (!options_parse(self, &flags, NULL, argc, argv, &code)) return code;
    if (flags.text && flags.kind == SP_CRAM_RANDOM) return usage_error(self, "--text and --kind random contradict each other");
    if ((flags.resume || flags.overwrite) && !flags.export_dir)
        return usage_error(self, "--resume and --overwrite are of a search in a directory: give -o DIR");
    if (flags.resume && flags.overwrite) return usage_error(self, "--resume and --overwrite contradict each other: give one");
    progress_init(&bar, flags.output.quiet);
    const sp_status st = load_model(&model, &flags.model);
    code = st ? report_failure(st) : load_texts(&texts, &flags, bar.hooks.logger);
    if (!code) code = cram(&flags, model, texts, &bar);
    sp_dataset_free(texts);
    sp_model_free(model);
    return code;
}

const command capacity_cram_command = {
    .name = "lab capacity cram",
    .usage = "-m MODEL [flags]",
    .summary = "The longest text that a few learnt vectors make a model say by greedy decoding.",
    .details = "The vectors stand behind a frozen row, BOS, and are learnt for each text: first for a short beginning,\n"
               "then, whenever the model says all of it, for a longer one. Reported are tokens, and the bits that the\n"
               "model alone would have needed to be told of them. Ctrl-C stops the search, and reports and keeps what was\n"
               "found until then; with -o, --resume goes on with it. docs/theory.md explains the measurement.",
    .example = "  softprompt lab capacity cram -m demo/model.gguf --samples 2 --steps 200\n"
               "  softprompt lab capacity cram -m demo/model.gguf --num-virtual-tokens 4 --kind random -o crammed",
    .groups = groups,
    .run = run_cram,
};
