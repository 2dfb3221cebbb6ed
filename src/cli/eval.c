/* eval.c: softprompt eval. A prompt, or the model alone, on a data set: sp_evaluate -> a table or one JSON object. */
#include <stdint.h>
#include <stdlib.h>

#include "cli.h"
#include "inputs.h"
#include "progress.h"
#include "report.h"

typedef struct eval_flags {
    model_flags model;
    text_list prompts;
    const char *data, *predictions;
    size_t batch_size, task_id; /* task_id SIZE_MAX: the rows' own */
    task_flags task;
    output_flags output;
} eval_flags;

static const option_row file_rows[] = {
    {OPTION_STRINGS, 'p', "prompt", "DIR", "an adapter; given more than once: an ensemble", .fallback = "the model alone",
     .target = offsetof(eval_flags, prompts)},
    {OPTION_COUNT, 0, "task", "K", "every row behind task K of a multitask adapter", .fallback = "the row's own",
     .target = offsetof(eval_flags, task_id), .max = 1e6},
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

/* What an evaluation says, of all rows and of each task. */
typedef struct findings {
    sp_evaluation all;
    sp_task_evaluation *tasks; /* (n_tasks) NULL: the adapter has one task, or one was asked for */
    size_t n_tasks;
} findings;

static void print_tasks(const findings *found)
{
    for (size_t k = 0; k < found->n_tasks; k++) {
        const sp_task_evaluation *task = &found->tasks[k];
        char name[32];
        snprintf(name, sizeof name, "task %zu", k);
        if (task->n == 0)
            report_row(name, "no rows");
        else if (found->all.has_accuracy)
            report_row(name, "accuracy %.2f %%, loss %.4f, %zu rows", 100 * task->accuracy, task->loss, task->n);
        else if (found->all.has_exact_match)
            report_row(name, "exact match %.2f %%, loss %.4f, %zu rows", 100 * task->exact_match, task->loss, task->n);
        else
            report_row(name, "loss %.4f, %zu rows", task->loss, task->n);
    }
}

/* Members that do not apply are null, as they are of all rows together. */
static json_t *tasks_json(const findings *found)
{
    if (!found->tasks) return json_null();
    json_t *list = json_array();
    for (size_t k = 0; k < found->n_tasks; k++) {
        const sp_task_evaluation *task = &found->tasks[k];
        json_t *object = json_object();
        json_member(&object, "n", json_integer((json_int_t)task->n));
        json_member(&object, "accuracy", task->n && found->all.has_accuracy ? json_finite(task->accuracy) : json_null());
        json_member(&object, "exact_match", task->n && found->all.has_exact_match ? json_finite(task->exact_match) : json_null());
        json_member(&object, "loss", task->n ? json_finite(task->loss) : json_null());
        if (!list || json_array_append_new(list, object)) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *compiled_json(const sp_compiled_use *use)
{
    json_t *object = json_object();
    if (use->n_queries == 0) {
        json_decref(object);
        return json_null();
    }
    json_member(&object, "queries", json_integer((json_int_t)use->n_queries));
    json_member(&object, "beyond", json_integer((json_int_t)use->n_beyond));
    json_member(&object, "weights_bound", json_finite(use->weights_bound));
    return object;
}

static json_t *findings_json(const findings *found, const sp_dataset *data)
{
    json_t *object = evaluation_json(&found->all, data);
    json_member(&object, "compiled", compiled_json(&found->all.compiled));
    json_member(&object, "tasks", tasks_json(found));
    return object;
}

static void print_report(const findings *found, const sp_dataset *data)
{
    const sp_evaluation *evaluation = &found->all;
    report_row("rows", "%zu, %zu cut at the left; %zu skipped", evaluation->n, evaluation->n_truncated,
               rows_skipped(evaluation, data));
    evaluation_rows(evaluation);
    print_tasks(found);
    if (evaluation->compiled.n_queries)
        report_row("compiled", "attention's weights off by %.3g at most; %.3g %% of the queries beyond the range",
                   evaluation->compiled.weights_bound,
                   100 * (double)evaluation->compiled.n_beyond / (double)evaluation->compiled.n_queries);
    report_row("time", "%s", format_duration(evaluation->seconds).text);
}

/* Room for what each task's rows say, where there are several. */
static sp_status make_findings(findings *found, const prompt_list *prompts, bool one_task)
{
    *found = (findings){0};
    if (prompts->n != 1 || one_task || sp_prompt_num_tasks(prompts->items[0]) == 1) return SP_OK;
    found->n_tasks = sp_prompt_num_tasks(prompts->items[0]);
    found->tasks = calloc(found->n_tasks, sizeof *found->tasks);
    return found->tasks ? SP_OK : SP_ERR_MEMORY;
}

static int evaluate(const eval_flags *flags, const sp_task *given)
{
    sp_model *model = NULL;
    prompt_list prompts = {0};
    sp_task task;
    sp_dataset *data = NULL;
    const bool one_task = flags->task_id != SIZE_MAX;
    findings found = {0};
    sp_eval_options options = {.batch_size = flags->batch_size, .predictions_path = flags->predictions, .one_task = one_task};
    progress_bar bar;
    sp_status st;
    int code = EXIT_FAILED;
    progress_init(&bar, flags->output.quiet);
    if ((st = load_data(&data, flags->data, &flags->task, &bar.logger))) goto done;
    if ((st = load_model(&model, &flags->model))) goto done;
    if ((code = load_prompts(&prompts, &flags->prompts, one_task ? flags->task_id : 0, model, &bar.logger))) goto done;
    if ((st = sp_ensemble_task(&task, given, prompts_of(&prompts), prompts.n))) goto done;
    if (make_findings(&found, &prompts, one_task)) {
        code = report_no_memory();
        goto done;
    }
    options.tasks = found.tasks;
    options.n_tasks = found.n_tasks;
    stop_at_interrupt();
    st = sp_evaluate_ensemble(&found.all, model, prompts_of(&prompts), prompts.n, &task, data, &options, &bar.hooks);
    progress_clear(&bar);
    if (st) goto done;
    if (flags->output.json)
        code = print_json(findings_json(&found, data));
    else
        code = EXIT_DONE, print_report(&found, data);
    warn_of_range(&found.all.compiled);
done:
    if (st) code = report_failure(st);
    free(found.tasks);
    prompt_list_free(&prompts);
    sp_model_free(model);
    sp_dataset_free(data);
    return code;
}

static int run_eval(const command *self, int argc, char **argv)
{
    eval_flags flags = {.task_id = SIZE_MAX};
    sp_task task = {0};
    sp_verbalizer *verbalizers = NULL;
    int code;
    if (options_parse(self, &flags, NULL, argc, argv, &code) && !(code = make_task(&task, &verbalizers, self, &flags.task))) {
        if (flags.task_id != SIZE_MAX && !flags.prompts.n)
            code = usage_error(self, "--task is one of an adapter's tasks: give -p DIR");
        else
            code = evaluate(&flags, &task);
    }
    free(verbalizers);
    text_list_free(&flags.task.verbalizers);
    text_list_free(&flags.prompts);
    return code;
}

const command eval_command = {
    .name = "eval",
    .usage = "-m MODEL [-p DIR]... -d DATA [flags]",
    .summary = "Evaluates an adapter, or the model alone, on DATA.",
    .details = "Rows with labels give accuracy and macro-F1, rows with completions exact match, rows with text\n"
               "alone perplexity. Template and verbalizers come from the adapter unless they are given. Several\n"
               "adapters are evaluated as one: the next token is as likely as the geometric mean of what they say.",
    .example = "  softprompt eval -m demo/model.gguf -p demo/prompt -d demo/data/test.jsonl --json",
    .groups = groups,
    .run = run_eval,
};
