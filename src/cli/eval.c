/* eval.c: softprompt eval. A prompt, or the model alone, on a data set: sp_evaluate -> a table or one JSON object. */
#include <stdlib.h>

#include "cli.h"
#include "inputs.h"
#include "progress.h"
#include "report.h"

typedef struct eval_flags {
    model_flags model;
    const char *prompt, *data, *predictions;
    size_t batch_size;
    task_flags task;
    output_flags output;
} eval_flags;

static const option_row file_rows[] = {
    {OPTION_STRING, 'p', "prompt", "DIR", "the adapter", .fallback = "the model alone", .target = offsetof(eval_flags, prompt)},
    {OPTION_STRING, 'd', "data", "FILE", "data: JSONL, CSV or TSV", .target = offsetof(eval_flags, data), .required = true},
    {OPTION_STRING, 0, "predictions", "FILE", "write a JSON line for each row there", .target = offsetof(eval_flags, predictions)},
    {OPTION_COUNT, 0, "batch-size", "N", "rows in one pass", .fallback = "32", .target = offsetof(eval_flags, batch_size), .min = 1,
     .max = 1e6},
    {0}};

static const option_group groups[] = {
    {"model", model_rows, offsetof(eval_flags, model)},
    {"files", file_rows, 0},
    {"task: how a row becomes text; what is not given comes from the adapter", task_rows, offsetof(eval_flags, task)},
    {"output", output_rows, offsetof(eval_flags, output)},
    {0}};

static void print_report(const sp_evaluation *evaluation, const sp_dataset *data)
{
    report_row("rows", "%zu, %zu cut at the left; %zu skipped", evaluation->n, evaluation->n_truncated,
               rows_skipped(evaluation, data));
    evaluation_rows(evaluation);
    report_row("time", "%s", format_duration(evaluation->seconds).text);
}

/* The flags' task over the adapter's own: what a flag does not say stays. */
static sp_task merge_tasks(const sp_task *own, const sp_task *given)
{
    sp_task task = own ? *own : (sp_task){0};
    if (given->template_text) task.template_text = given->template_text;
    if (given->max_length) task.max_length = given->max_length;
    if (given->n_verbalizers) {
        task.verbalizers = given->verbalizers;
        task.n_verbalizers = given->n_verbalizers;
    }
    return task;
}

static int evaluate(const eval_flags *flags, const sp_task *given)
{
    sp_model *model = NULL;
    sp_prompt *prompt = NULL;
    sp_dataset *data = NULL;
    sp_evaluation evaluation;
    sp_eval_options options = {.batch_size = flags->batch_size, .predictions_path = flags->predictions};
    progress_bar bar;
    sp_status st;
    int code = EXIT_FAILED;
    progress_init(&bar, flags->output.quiet);
    if ((st = load_data(&data, flags->data, &flags->task, &bar.logger))) goto done;
    if ((st = load_model(&model, &flags->model))) goto done;
    if ((st = load_prompt(&prompt, flags->prompt, model, &bar.logger))) goto done;
    stop_at_interrupt();
    sp_task task = merge_tasks(prompt ? sp_prompt_task(prompt) : NULL, given);
    st = sp_evaluate(&evaluation, model, prompt, &task, data, &options, &bar.hooks);
    progress_clear(&bar);
    if (st) goto done;
    if (flags->output.json)
        code = print_json(evaluation_json(&evaluation, data));
    else
        code = EXIT_DONE, print_report(&evaluation, data);
done:
    if (st) code = report_failure(st);
    sp_prompt_free(prompt);
    sp_model_free(model);
    sp_dataset_free(data);
    return code;
}

static int run_eval(const command *self, int argc, char **argv)
{
    eval_flags flags = {0};
    sp_task task = {0};
    sp_verbalizer *verbalizers = NULL;
    int code;
    if (options_parse(self, &flags, NULL, argc, argv, &code) && !(code = make_task(&task, &verbalizers, self, &flags.task)))
        code = evaluate(&flags, &task);
    free(verbalizers);
    text_list_free(&flags.task.verbalizers);
    return code;
}

const command eval_command = {
    .name = "eval",
    .usage = "-m MODEL [-p DIR] -d DATA [flags]",
    .summary = "Evaluates an adapter, or the model alone, on DATA.",
    .details = "Rows with labels give accuracy and macro-F1, rows with completions exact match, rows with text\n"
               "alone perplexity. Template and verbalizers come from the adapter unless they are given.",
    .example = "  softprompt eval -m demo/model.gguf -p demo/prompt -d demo/data/test.jsonl --json",
    .groups = groups,
    .run = run_eval,
};
