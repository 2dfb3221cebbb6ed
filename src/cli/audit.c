/* audit.c: softprompt audit. Flags -> sp_audit_create, sp_audit_data -> tables, one JSON object, heat maps. */
#include <stdint.h>
#include <stdlib.h>

#include "audit.h"
#include "cli.h"
#include "inputs.h"
#include "plot.h"
#include "progress.h"
#include "report.h"

typedef struct audit_flags {
    model_flags model;
    const char *prompt, *data;
    size_t task_id, left_out, n_texts, text_length, seed;
    double epsilon;
    bool prompt_rows, heads;
    text_list plots;
    task_flags task;
    output_flags output;
} audit_flags;

static const option_row file_rows[] = {
    {OPTION_STRING, 'p', "prompt", "DIR", "an adapter", .fallback = "the model alone", .target = offsetof(audit_flags, prompt)},
    {OPTION_COUNT, 0, "task", "K", "audit task K of a multitask adapter", .fallback = "0", .target = offsetof(audit_flags, task_id),
     .max = 1e6},
    {OPTION_STRING, 'd', "data", "FILE", "the texts: JSONL, CSV or TSV", .fallback = "what the model writes",
     .target = offsetof(audit_flags, data)},
    {OPTION_COUNT, 0, "texts", "N", "without DATA: texts that the model writes", .fallback = "8",
     .target = offsetof(audit_flags, n_texts), .min = 1, .max = 1e6},
    {OPTION_COUNT, 0, "text-length", "N", "without DATA: tokens of each, or up to an end token", .fallback = "256",
     .target = offsetof(audit_flags, text_length), .min = 2, .max = 1e6},
    {OPTION_COUNT, 0, "seed", "N", "without DATA: of what the model writes", .fallback = "0",
     .target = offsetof(audit_flags, seed)},
    {OPTION_STRINGS, 0, "plot", "FILE", "draw heat maps, layers by heads, as .svg or .png; may be repeated",
     .target = offsetof(audit_flags, plots)},
    {0}};

static const option_row figure_rows[] = {
    {OPTION_REAL, 0, "epsilon", "E", "relative error of the polynomial in the place of exp", .fallback = "0.001",
     .target = offsetof(audit_flags, epsilon), .min = 1e-12, .max = 0.999},
    {OPTION_FLAG, 0, "prompt-rows", .help = "the prompt's own queries count, too, not only the texts'",
     .target = offsetof(audit_flags, prompt_rows)},
    {OPTION_COUNT, 0, "left-out", "N", "rows on which virtual tokens are left out one by one", .fallback = "64",
     .target = offsetof(audit_flags, left_out), .max = 1e6},
    {OPTION_FLAG, 0, "heads", .help = "a line for each head, not only for each layer", .target = offsetof(audit_flags, heads)},
    {0}};

static const option_group groups[] = {
    {"model", model_rows, offsetof(audit_flags, model)},
    {"files", file_rows, 0},
    {"figures", figure_rows, 0},
    {"task: how a row becomes text; what is not given comes from the adapter", task_rows, offsetof(audit_flags, task)},
    {"output", output_rows, offsetof(audit_flags, output)},
    {0}};

/* ---- the command ---- */

static sp_status audit_texts(sp_audit *running, const audit_flags *flags, const sp_task *task, const progress_bar *bar)
{
    const sp_data_options data = data_options(&flags->task, &bar->logger);
    if (flags->data) return sp_audit_data(running, flags->data, &data, task, &bar->hooks);
    return sp_audit_sampled(running, flags->n_texts, flags->text_length, flags->seed, &bar->hooks);
}

static int show(const sp_audit_report *report, const audit_flags *flags, const sp_model *model)
{
    const audit_view view = {sp_model_tokenizer(model), flags->epsilon, flags->prompt_rows, flags->heads};
    int code = flags->output.json ? audit_print_json(report, &view) : audit_print_tables(report, &view);
    for (size_t i = 0; i < flags->plots.n && !code; i++) {
        code = audit_draw(report, flags->plots.items[i]);
        if (!code && !flags->output.json) report_row("plot", "%s", flags->plots.items[i]);
    }
    return code;
}

static int audit(const audit_flags *flags, const sp_task *given)
{
    sp_model *model = NULL;
    sp_prompt *prompt = NULL;
    sp_audit *running = NULL;
    sp_task task;
    const sp_audit_report *report;
    progress_bar bar;
    progress_init(&bar, flags->output.quiet);
    const sp_audit_options options = {.epsilon = flags->epsilon,
                                      .with_prompt_rows = flags->prompt_rows,
                                      .n_left_out_rows = flags->left_out ? flags->left_out : SIZE_MAX};
    sp_status st = load_model(&model, &flags->model);
    if (!st && flags->prompt) st = load_prompt(&prompt, flags->prompt, true, flags->task_id, model, &bar.logger);
    if (!st) st = sp_ensemble_task(&task, given, (const sp_prompt *const *)&prompt, prompt ? 1 : 0);
    if (!st) st = sp_audit_create(&running, model, prompt, &options);
    stop_at_interrupt();
    if (!st) st = audit_texts(running, flags, &task, &bar);
    if (!st) st = sp_audit_get_report(&report, running);
    progress_clear(&bar);
    const int code = st ? report_failure(st) : show(report, flags, model);
    sp_audit_free(running);
    sp_prompt_free(prompt);
    sp_model_free(model);
    return code;
}

static int check_plots(const text_list *plots)
{
    for (size_t i = 0; i < plots->n; i++)
        if (!plot_check_name(plots->items[i])) return EXIT_FAILED;
    return EXIT_DONE;
}

static int run_audit(const command *self, int argc, char **argv)
{
    audit_flags flags = {.task_id = SIZE_MAX, .left_out = 64, .epsilon = 1e-3};
    sp_task task = {0};
    sp_verbalizer *verbalizers = NULL;
    int code;
    if (options_parse(self, &flags, NULL, argc, argv, &code) && !(code = make_task(&task, &verbalizers, self, &flags.task))) {
        if (flags.task_id != SIZE_MAX && !flags.prompt)
            code = usage_error(self, "--task is one of an adapter's tasks: give -p DIR");
        else if (!(code = check_plots(&flags.plots))) {
            if (flags.task_id == SIZE_MAX) flags.task_id = 0;
            code = audit(&flags, &task);
        }
    }
    free(verbalizers);
    text_list_free(&flags.task.verbalizers);
    text_list_free(&flags.plots);
    return code;
}

const command audit_command = {
    .name = "audit",
    .usage = "-m MODEL [-p DIR] [-d DATA] [flags]",
    .summary = "Is a prompt inside the criterion of efficient attention? Head by head.",
    .details = "For every layer and head, over the texts of DATA behind the adapter: the largest entries of queries and\n"
               "keys in the theorem's scaling, the scores that occur, as they are and centred, what attention does, and\n"
               "what attention in almost linear time would take. A head is inside where no row's entries exceed\n"
               "sqrt(ln n), n the keys that the row sees; scores, where its centred scores stay within ln n; else\n"
               "beyond. For each virtual token: its norm beside the vocabulary's, the tokens nearest to it, and how far\n"
               "the answers move when it is left out. docs/audit.md explains every figure.",
    .example = "  softprompt audit -m demo/model.gguf -p demo/prompt -d demo/data/valid.jsonl --plot heads.svg",
    .groups = groups,
    .run = run_audit,
};
