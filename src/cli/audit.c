/* audit.c: softprompt audit. sp_audit_create, sp_audit_data -> a table or one JSON object. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "cli.h"
#include "inputs.h"
#include "progress.h"
#include "report.h"

typedef struct audit_flags {
    model_flags model;
    const char *prompt, *data;
    size_t task_id;
    double epsilon;
    bool prompt_rows, heads;
    task_flags task;
    output_flags output;
} audit_flags;

static const option_row file_rows[] = {
    {OPTION_STRING, 'p', "prompt", "DIR", "an adapter", .fallback = "the model alone", .target = offsetof(audit_flags, prompt)},
    {OPTION_COUNT, 0, "task", "K", "audit task K of a multitask adapter", .fallback = "0", .target = offsetof(audit_flags, task_id),
     .max = 1e6},
    {OPTION_STRING, 'd', "data", "FILE", "the texts: JSONL, CSV or TSV, of any size", .target = offsetof(audit_flags, data),
     .required = true},
    {0}};

static const option_row figure_rows[] = {
    {OPTION_REAL, 0, "epsilon", "E", "relative error of the polynomial in the place of exp", .fallback = "0.001",
     .target = offsetof(audit_flags, epsilon), .min = 1e-12, .max = 0.999},
    {OPTION_FLAG, 0, "prompt-rows", .help = "the prompt's own queries count, too, not only the texts'",
     .target = offsetof(audit_flags, prompt_rows)},
    {OPTION_FLAG, 0, "heads", .help = "a line for each head, not only for each layer", .target = offsetof(audit_flags, heads)},
    {0}};

static const option_group groups[] = {
    {"model", model_rows, offsetof(audit_flags, model)},
    {"files", file_rows, 0},
    {"figures", figure_rows, 0},
    {"task: how a row becomes text; what is not given comes from the adapter", task_rows, offsetof(audit_flags, task)},
    {"output", output_rows, offsetof(audit_flags, output)},
    {0}};

static const char *const verdict_names[] = {"inside", "scores", "beyond"}; /* by sp_verdict */

/* ---- JSON ---- */

static json_t *count_or_null(bool known, size_t count)
{
    return known ? json_integer((json_int_t)count) : json_null();
}

static json_t *head_json(const sp_audit_head *h)
{
    json_t *object = json_object();
    json_member(&object, "layer", json_integer((json_int_t)h->layer));
    json_member(&object, "head", json_integer((json_int_t)h->head));
    json_member(&object, "max_entry_q", json_finite(h->max_entry_q));
    json_member(&object, "max_entry_k", json_finite(h->max_entry_k));
    json_member(&object, "max_score", json_finite(h->max_score));
    json_member(&object, "max_score_centred", json_finite(h->max_score_centred));
    json_member(&object, "cauchy_schwarz", json_finite(h->cauchy_schwarz));
    json_member(&object, "criterion", json_finite(h->criterion));
    json_member(&object, "n_keys", json_integer((json_int_t)h->n_keys));
    json_member(&object, "entries_ratio", json_finite(h->entries_ratio));
    json_member(&object, "scores_ratio", json_finite(h->scores_ratio));
    json_member(&object, "entropy", json_finite(h->entropy));
    json_member(&object, "sink_mass", json_finite(h->sink_mass));
    json_member(&object, "prompt_mass", json_finite(h->prompt_mass));
    json_member(&object, "key_rank_99", count_or_null(h->key_rank_99 != SIZE_MAX, h->key_rank_99));
    json_member(&object, "degree", count_or_null(h->degree != SIZE_MAX, h->degree));
    json_member(&object, "features", count_or_null(h->features > 0, h->features));
    json_member(&object, "cost_ratio", h->features > 0 ? json_finite(h->cost_ratio) : json_null());
    json_member(&object, "verdict", json_text(verdict_names[h->verdict]));
    return object;
}

static int print_report_json(const sp_audit_report *r, const audit_flags *flags)
{
    json_t *object = json_object(), *heads = json_array();
    for (size_t i = 0; i < r->n_layer * r->n_head; i++) json_array_append_new(heads, head_json(&r->heads[i]));
    json_member(&object, "n", json_integer((json_int_t)r->n));
    json_member(&object, "num_virtual_tokens", json_integer((json_int_t)r->num_virtual_tokens));
    json_member(&object, "texts", json_integer((json_int_t)r->n_texts));
    json_member(&object, "rows", json_integer((json_int_t)r->n_rows));
    json_member(&object, "skipped_rows", json_integer((json_int_t)r->n_skipped));
    json_member(&object, "truncated_rows", json_integer((json_int_t)r->n_truncated));
    json_member(&object, "epsilon", json_real(flags->epsilon));
    json_member(&object, "prompt_rows", json_boolean(flags->prompt_rows));
    json_member(&object, "heads", heads);
    return print_json(object);
}

/* ---- the table ---- */

static int ascending(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* The middle of a figure, a double of sp_audit_head at `offset`, over n heads; the lower one of two. values: room for n. */
static double median(double *values, const sp_audit_head *heads, size_t n, size_t offset)
{
    for (size_t i = 0; i < n; i++) values[i] = *(const double *)((const char *)&heads[i] + offset);
    qsort(values, n, sizeof *values, ascending);
    return values[(n - 1) / 2];
}

static double larger_entry(const sp_audit_head *h)
{
    return fmax(h->max_entry_q, h->max_entry_k);
}

typedef struct line { /* of the table */
    double entries, entries_ratio, score, centred, cauchy_schwarz, scores_ratio, entropy, sink_mass, prompt_mass;
    size_t rank, degree, features; /* SIZE_MAX, SIZE_MAX, 0: none */
} line;

static line line_of_head(const sp_audit_head *h)
{
    return (line){larger_entry(h), h->entries_ratio, h->max_score,   h->max_score_centred, h->cauchy_schwarz, h->scores_ratio,
                  h->entropy,      h->sink_mass,     h->prompt_mass, h->key_rank_99,       h->degree,         h->features};
}

/* Of n heads: the largest of what is judged by its maximum, the median of what attention does. */
static line line_of_heads(double *values, const sp_audit_head *heads, size_t n)
{
    line out = line_of_head(&heads[0]);
    for (size_t i = 1; i < n; i++) {
        const line l = line_of_head(&heads[i]);
        out.entries = fmax(out.entries, l.entries);
        out.entries_ratio = fmax(out.entries_ratio, l.entries_ratio);
        out.score = fmax(out.score, l.score);
        out.centred = fmax(out.centred, l.centred);
        out.cauchy_schwarz = fmax(out.cauchy_schwarz, l.cauchy_schwarz);
        out.scores_ratio = fmax(out.scores_ratio, l.scores_ratio);
        if (l.rank > out.rank) out.rank = l.rank;
    }
    out.entropy = median(values, heads, n, offsetof(sp_audit_head, entropy));
    out.sink_mass = median(values, heads, n, offsetof(sp_audit_head, sink_mass));
    out.prompt_mass = median(values, heads, n, offsetof(sp_audit_head, prompt_mass));
    return out;
}

static void print_line(const line *l)
{
    char rank[24] = "-";
    if (l->rank != SIZE_MAX) snprintf(rank, sizeof rank, "%zu", l->rank);
    printf(" %8.2f %7.2f %8.2f %8.2f %8.2f %7.2f %7.3f %6.3f %6.3f %5s", l->entries, l->entries_ratio, l->score, l->centred,
           l->cauchy_schwarz, l->scores_ratio, l->entropy, l->sink_mass, l->prompt_mass, rank);
}

static void print_degree(const line *l)
{
    if (l->degree == SIZE_MAX)
        printf("     -           -");
    else if (l->features)
        printf("  %4zu  %10zu", l->degree, l->features);
    else
        printf("  %4zu       > 2^64", l->degree);
}

static void print_layers(const sp_audit_report *r, double *values)
{
    printf("\nlayer  entries /sqrtln    score  centred   bound     /ln entropy   sink prompt  rank  verdicts\n");
    for (size_t l = 0; l < r->n_layer; l++) {
        const sp_audit_head *heads = r->heads + l * r->n_head;
        const line all = line_of_heads(values, heads, r->n_head);
        printf("%5zu", l);
        print_line(&all);
        printf("  ");
        for (size_t h = 0; h < r->n_head; h++) putchar(verdict_names[heads[h].verdict][0]);
        putchar('\n');
    }
}

static void print_heads(const sp_audit_report *r)
{
    printf("\nlayer head  entries /sqrtln    score  centred   bound     /ln entropy   sink prompt  rank degree    features  "
           "verdict\n");
    for (size_t i = 0; i < r->n_layer * r->n_head; i++) {
        const line l = line_of_head(&r->heads[i]);
        printf("%5zu %4zu", r->heads[i].layer, r->heads[i].head);
        print_line(&l);
        print_degree(&l);
        printf("  %s\n", verdict_names[r->heads[i].verdict]);
    }
}

static void print_summary(const sp_audit_report *r, double *values, double epsilon)
{
    const size_t n = r->n_layer * r->n_head;
    size_t n_of[3] = {0}, n_served = 0;
    for (size_t i = 0; i < n; i++) {
        n_of[r->heads[i].verdict]++;
        n_served += r->heads[i].degree != SIZE_MAX;
    }
    report_row("verdict", "%zu heads inside, %zu by their scores, %zu beyond, of %zu", n_of[SP_VERDICT_INSIDE],
               n_of[SP_VERDICT_SCORES], n_of[SP_VERDICT_BEYOND], n);
    report_row("centred score", "%.2f in the middle head; the criterion allows ln n, %.2f of the longest row",
               median(values, r->heads, n, offsetof(sp_audit_head, max_score_centred)), log((double)r->n));
    report_row("polynomial", "%zu heads have one of a degree up to 16, at a relative error of %g", n_served, epsilon);
}

static int print_report(const sp_audit_report *r, const audit_flags *flags)
{
    double *values = malloc(r->n_layer * r->n_head * sizeof *values);
    if (!values) return report_no_memory();
    report_row("texts", "%zu, %zu cut at the left; %zu rows of data skipped", r->n_texts, r->n_truncated, r->n_skipped);
    report_row("rows", "%zu; the longest sees %zu keys, %zu of them the prompt's", r->n_rows, r->n, r->num_virtual_tokens);
    print_summary(r, values, flags->epsilon);
    if (flags->heads)
        print_heads(r);
    else
        print_layers(r, values);
    free(values);
    return EXIT_DONE;
}

/* ---- the command ---- */

static int audit(const audit_flags *flags, const sp_task *given)
{
    sp_model *model = NULL;
    sp_prompt *prompt = NULL;
    sp_audit *running = NULL;
    sp_task task;
    const sp_audit_report *report;
    progress_bar bar;
    int code = EXIT_FAILED;
    progress_init(&bar, flags->output.quiet);
    const sp_audit_options options = {.epsilon = flags->epsilon, .with_prompt_rows = flags->prompt_rows};
    const sp_data_options data = data_options(&flags->task, &bar.logger);
    sp_status st = load_model(&model, &flags->model);
    if (!st && flags->prompt) st = load_prompt(&prompt, flags->prompt, true, flags->task_id, model, &bar.logger);
    if (!st) st = sp_ensemble_task(&task, given, (const sp_prompt *const *)&prompt, prompt ? 1 : 0);
    if (!st) st = sp_audit_create(&running, model, prompt, &options);
    stop_at_interrupt();
    if (!st) st = sp_audit_data(running, flags->data, &data, &task, &bar.hooks);
    if (!st) st = sp_audit_get_report(&report, running);
    progress_clear(&bar);
    if (st)
        code = report_failure(st);
    else
        code = flags->output.json ? print_report_json(report, flags) : print_report(report, flags);
    sp_audit_free(running);
    sp_prompt_free(prompt);
    sp_model_free(model);
    return code;
}

static int run_audit(const command *self, int argc, char **argv)
{
    audit_flags flags = {.task_id = SIZE_MAX, .epsilon = 1e-3};
    sp_task task = {0};
    sp_verbalizer *verbalizers = NULL;
    int code;
    if (options_parse(self, &flags, NULL, argc, argv, &code) && !(code = make_task(&task, &verbalizers, self, &flags.task))) {
        if (flags.task_id != SIZE_MAX && !flags.prompt)
            code = usage_error(self, "--task is one of an adapter's tasks: give -p DIR");
        else {
            if (flags.task_id == SIZE_MAX) flags.task_id = 0;
            code = audit(&flags, &task);
        }
    }
    free(verbalizers);
    text_list_free(&flags.task.verbalizers);
    return code;
}

const command audit_command = {
    .name = "audit",
    .usage = "-m MODEL [-p DIR] -d DATA [flags]",
    .summary = "Is a prompt inside the criterion of efficient attention? Head by head.",
    .details = "For every layer and head, over the texts of DATA behind the adapter: the largest entries of queries and\n"
               "keys in the theorem's scaling, the scores that occur, as they are and centred, what attention does, and\n"
               "what attention in almost linear time would take. A head is inside where no row's entries exceed\n"
               "sqrt(ln n), n the keys that the row sees; scores, where its centred scores stay within ln n; else\n"
               "beyond. docs/audit.md explains every figure.",
    .example = "  softprompt audit -m demo/model.gguf -p demo/prompt -d demo/data/valid.jsonl",
    .groups = groups,
    .run = run_audit,
};
