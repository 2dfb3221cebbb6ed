/* plan.c: softprompt plan. Flags -> sp_plan -> a table with a recommendation, one JSON object, a plot. */
#include <ftw.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "inputs.h"
#include "plot.h"
#include "progress.h"
#include "report.h"

typedef struct plan_flags {
    model_flags model;
    const char *data, *eval, *out, *plot;
    task_flags task;
    size_t max_virtual_tokens, steps, seeds, batch_size, seed;
    double learning_rate, tolerance, points, bits_per_vector;
    bool quick, resume, overwrite;
    output_flags output;
} plan_flags;

enum { QUICK_STEPS = 8, QUICK_LONGEST = 16 };

static const option_row file_rows[] = {
    {OPTION_STRING, 'd', "data", "FILE", "rows of the task: JSONL, CSV or TSV", .target = offsetof(plan_flags, data),
     .required = true},
    {OPTION_STRING, 'e', "eval", "FILE", "rows to judge pilots by", .fallback = "an eighth of DATA, held out",
     .target = offsetof(plan_flags, eval)},
    {OPTION_STRING, 'o', "output", "DIR", "keep the pilots there; each is an adapter", .target = offsetof(plan_flags, out)},
    {OPTION_FLAG, 0, "resume", .help = "use the pilots that are in DIR already", .target = offsetof(plan_flags, resume)},
    {OPTION_FLAG, 0, "overwrite", .help = "train them anew", .target = offsetof(plan_flags, overwrite)},
    {OPTION_STRING, 0, "plot", "FILE", "draw loss, with labels accuracy, against length, as .svg or .png",
     .target = offsetof(plan_flags, plot)},
    {0}};

static const option_row pilot_rows[] = {
    {OPTION_COUNT, 0, "max-virtual-tokens", "N", "the longest prompt that may be recommended", .fallback = "128",
     .target = offsetof(plan_flags, max_virtual_tokens), .min = 2, .max = 4095},
    {OPTION_COUNT, 0, "steps", "N", "of a pilot", .fallback = "60", .target = offsetof(plan_flags, steps), .min = 1, .max = 1e6},
    {OPTION_COUNT, 0, "seeds", "N", "pilots of each length", .fallback = "2", .target = offsetof(plan_flags, seeds), .min = 1,
     .max = 16},
    {OPTION_COUNT, 0, "batch-size", "N", "rows in one step", .fallback = "16", .target = offsetof(plan_flags, batch_size), .min = 1,
     .max = 1e6},
    {OPTION_REAL, 0, "learning-rate", "X", "at its peak", .fallback = "0.02; see docs/methods.md",
     .target = offsetof(plan_flags, learning_rate), .min = 1e-12, .max = 1e3},
    {OPTION_REAL, 0, "tolerance", "X", "a loss that is larger by this share is as good", .fallback = "0.02",
     .target = offsetof(plan_flags, tolerance), .min = 1e-6, .max = 0.999},
    {OPTION_REAL, 0, "points", "X", "with labels: so much less accuracy, in percent, is as good", .fallback = "1",
     .target = offsetof(plan_flags, points), .min = 1e-6, .max = 99.9},
    {OPTION_REAL, 0, "bits-per-vector", "X", "of this model", .fallback = "what lab capacity cram kept",
     .target = offsetof(plan_flags, bits_per_vector), .min = 1e-6, .max = 1e9},
    {OPTION_COUNT, 0, "seed", "N", "of rows held out, and of the first pilots", .fallback = "0",
     .target = offsetof(plan_flags, seed)},
    {OPTION_FLAG, 0, "quick", .help = "one pilot of 8 steps each, at most 16 virtual tokens",
     .target = offsetof(plan_flags, quick)},
    {0}};

static const option_group groups[] = {{"model", model_rows, offsetof(plan_flags, model)},
                                      {"files", file_rows, 0},
                                      {"task: how a row becomes text", task_rows, offsetof(plan_flags, task)},
                                      {"pilots", pilot_rows, 0},
                                      {"output", output_rows, offsetof(plan_flags, output)},
                                      {0}};

/* ---- what is said ---- */

static json_t *range_json(double low, double high)
{
    return json_pack("[o, o]", json_finite(low), json_finite(high));
}

static json_t *curve_json(const sp_plan_curve *c)
{
    return json_pack("{s:o, s:o, s:o, s:o}", "floor", json_finite(c->floor), "gain", json_finite(c->gain), "rate",
                     json_finite(c->rate), "noise", json_finite(c->noise));
}

static json_t *length_json(const sp_plan_length *l)
{
    json_t *object = json_object();
    json_member(&object, "num_virtual_tokens", json_integer((json_int_t)l->num_virtual_tokens));
    json_member(&object, "pilots", json_integer((json_int_t)l->n_pilots));
    json_member(&object, "loss", json_finite(l->loss.mean));
    json_member(&object, "loss_range", range_json(l->loss.least, l->loss.most));
    json_member(&object, "accuracy", json_finite(l->accuracy.mean));
    json_member(&object, "accuracy_range", range_json(l->accuracy.least, l->accuracy.most));
    json_member(&object, "fitted", json_finite(l->loss.fitted));
    json_member(&object, "fitted_range", range_json(l->loss.fitted_low, l->loss.fitted_high));
    json_member(&object, "fitted_accuracy", json_finite(l->accuracy.fitted));
    json_member(&object, "fitted_accuracy_range", range_json(l->accuracy.fitted_low, l->accuracy.fitted_high));
    json_member(&object, "step_seconds", json_finite(l->step_seconds));
    json_member(&object, "decode_tokens_per_second", json_finite(l->decode_tokens_per_second));
    json_member(&object, "peak_bytes", json_integer((json_int_t)l->peak_bytes));
    json_member(&object, "state_bytes", json_integer((json_int_t)l->state_bytes));
    return object;
}

static int print_report_json(const sp_plan_report *r)
{
    json_t *object = json_object(), *lengths = json_array();
    for (size_t i = 0; i < r->n_lengths; i++) json_array_append_new(lengths, length_json(&r->lengths[i]));
    json_member(&object, "num_virtual_tokens", json_integer((json_int_t)r->num_virtual_tokens));
    json_member(&object, "range", json_pack("[I, I]", (json_int_t)r->low, (json_int_t)r->high));
    json_member(&object, "rows", json_integer((json_int_t)r->n_rows));
    json_member(&object, "eval_rows", json_integer((json_int_t)r->n_held_out));
    json_member(&object, "held_out", json_boolean(r->is_held_out));
    json_member(&object, "loss_without_prompt", json_finite(r->loss));
    json_member(&object, "accuracy_without_prompt", json_finite(r->accuracy));
    json_member(&object, "answer_bits", json_finite(r->answer_bits));
    json_member(&object, "vectors_to_memorise", json_finite(r->vectors_to_memorise));
    json_member(&object, "curve", curve_json(&r->loss_curve));
    json_member(&object, "error_curve", r->has_accuracy ? curve_json(&r->error_curve) : json_null());
    json_member(&object, "steps", json_integer((json_int_t)r->steps));
    json_member(&object, "lengths", lengths);
    json_member(&object, "seconds", json_finite(r->seconds));
    return print_json(object);
}

static void print_loss(const sp_plan_length *l)
{
    if (l->n_pilots == 0)
        printf("%17s", "-");
    else
        printf("  %7.4f %7.4f", l->loss.least, l->loss.most);
    printf("  %7.4f", l->loss.fitted);
}

static void print_accuracy(const sp_plan_length *l)
{
    if (l->n_pilots == 0)
        printf("%15s", "-");
    else
        printf("  %5.1f%% %5.1f%%", 100 * l->accuracy.least, 100 * l->accuracy.most);
    printf("  %5.1f%%", 100 * l->accuracy.fitted);
}

static void print_lengths(const sp_plan_report *r)
{
    printf("\ntokens    pilots' losses    curve%s    a step  a minute of   in training    served\n",
           r->has_accuracy ? "       accuracy   curve" : "");
    for (size_t i = 0; i < r->n_lengths; i++) {
        const sp_plan_length *l = &r->lengths[i];
        printf("%6zu ", l->num_virtual_tokens);
        print_loss(l);
        if (r->has_accuracy) print_accuracy(l);
        printf("  %6.2f s  %7.0f tok  %12s  %8s%s\n", l->step_seconds, 60 * l->decode_tokens_per_second,
               format_bytes((double)l->peak_bytes).text, format_bytes((double)l->state_bytes).text,
               l->num_virtual_tokens == r->num_virtual_tokens ? "  <-" : "");
    }
}

static void print_curve(const char *title, const char *what, const sp_plan_curve *c)
{
    report_row(title, "%s = %.4f + %.4f tokens^-%.2f; pilots lie %.1f %% off it", what, c->floor, c->gain, c->rate, 100 * c->noise);
}

static void print_need(const sp_plan_report *r)
{
    report_row("rows", "%zu to train on, %zu to judge by%s", r->n_rows, r->n_held_out,
               r->is_held_out ? "" : ": the same ones, there are too few to hold some out");
    report_row("without a prompt", "loss %.4f%s", r->loss, r->has_accuracy ? "" : " nats");
    if (r->has_accuracy) report_row("", "accuracy %.1f %%", 100 * r->accuracy);
    report_row("an answer", "%.2f bits, %.0f bits in all rows", r->answer_bits, r->answer_bits * (double)r->n_rows);
    if (isfinite(r->vectors_to_memorise))
        report_row("learnt by heart", "that is %.1f vectors; a task with a rule in it takes fewer", r->vectors_to_memorise);
    else
        report_row("learnt by heart", "unknown: lab capacity cram measures what a vector of this model holds");
}

static void print_report(const sp_plan_report *r, const plan_flags *flags)
{
    print_need(r);
    print_lengths(r);
    printf("\n");
    print_curve("curve", "loss", &r->loss_curve);
    if (r->has_accuracy) print_curve("", "wrong answers", &r->error_curve);
    report_row("rests on", "pilots of %zu steps, rows judged as above; more --steps and --seeds make it surer", r->steps);
    report_row("time", "%s", format_duration(r->seconds).text);
    if (flags->out) report_row("pilots", "%s", flags->out);
    if (flags->plot) report_row("plot", "%s", flags->plot);
    printf("\nrecommended: --num-virtual-tokens %zu", r->num_virtual_tokens);
    if (r->low < r->high) printf(" (between %zu and %zu)", r->low, r->high);
    printf("\n");
}

/* What decides against length: each length's pilots, the curve with its range, what is recommended. */
static int draw(const sp_plan_report *r, const char *path)
{
    const bool by_accuracy = r->has_accuracy;
    const sp_plan_curve *c = by_accuracy ? &r->error_curve : &r->loss_curve;
    const double scale = by_accuracy ? 100 : 1;
    FILE *gnuplot = plot_open(path);
    if (!gnuplot) return EXIT_FAILED;
    fprintf(gnuplot,
            "set logscale x 2\nset xlabel 'virtual tokens'\nset ylabel '%s'\nset key %s right\n"
            "set grid\nset xrange [0.8:%g]\n$data << END\n",
            by_accuracy ? "accuracy on the rows that judge, %" : "loss on the rows that judge, nats",
            by_accuracy ? "bottom" : "top", 1.25 * (double)r->lengths[r->n_lengths - 1].num_virtual_tokens);
    for (size_t i = 0; i < r->n_lengths; i++) {
        const sp_plan_length *l = &r->lengths[i];
        const sp_plan_figure *f = by_accuracy ? &l->accuracy : &l->loss;
        fprintf(gnuplot, "%zu %.9g %.9g %.9g %.9g %.9g\n", l->num_virtual_tokens, scale * f->fitted_low, scale * f->fitted_high,
                scale * f->mean, scale * f->least, scale * f->most);
    }
    fprintf(gnuplot,
            "END\nset arrow from %zu, graph 0 to %zu, graph 1 nohead dashtype 2 lc rgb '#c05020'\n"
            "set title 'recommended: %zu virtual tokens'\n"
            "falling(x) = %.9g + %.9g * x**(-%.9g)\n"
            "plot $data using 1:2:3 with filledcurves lc rgb '#dde6f2' title '80 %% of curves', "
            "%s with lines lc rgb '#204a87' title 'curve', "
            "$data using 1:4:5:6 with yerrorbars pt 7 lc rgb '#303030' title 'pilots: mean, extremes'\n",
            r->num_virtual_tokens, r->num_virtual_tokens, r->num_virtual_tokens, c->floor, c->gain, c->rate,
            by_accuracy ? "falling(x) < 1 ? 100 * (1 - falling(x)) : 0" : "falling(x)");
    return plot_close(gnuplot, path);
}

/* ---- the command ---- */

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *walk)
{
    (void)info, (void)kind, (void)walk;
    return remove(path);
}

/* Pilots that nobody wants to keep; free. */
static char *make_temporary_directory(void)
{
    const char *base = getenv("TMPDIR");
    char *path = NULL;
    if (asprintf(&path, "%s/softprompt-plan-XXXXXX", base && *base ? base : "/tmp") < 0) return NULL;
    if (mkdtemp(path)) return path;
    free(path);
    return NULL;
}

/* What lab capacity cram kept of this model: of one vector and natural text, its default. Left as it is where it was given. */
static sp_status find_bits_per_vector(double *bits, const sp_model *model)
{
    sp_cram_result result;
    bool found;
    char *dir = *bits > 0 ? NULL : cache_path("capacity");
    if (!dir) return *bits > 0 ? SP_OK : SP_ERR_MEMORY;
    sp_status st = sp_cram_result_load(&result, &found, dir, model, SP_CRAM_NATURAL, 1);
    if (!st && found) *bits = result.bits_per_vector;
    free(dir);
    return st;
}

static sp_plan_options make_options(const plan_flags *flags, const sp_task *task)
{
    const bool quick = flags->quick;
    return (sp_plan_options){.task = *task,
                             .learning_rate = flags->learning_rate,
                             .batch_size = flags->batch_size,
                             .steps = flags->steps ? flags->steps
                                      : quick      ? QUICK_STEPS
                                                   : 0,
                             .n_seeds = flags->seeds ? flags->seeds
                                        : quick      ? 1
                                                     : 0,
                             .max_virtual_tokens = flags->max_virtual_tokens ? flags->max_virtual_tokens
                                                   : quick                   ? QUICK_LONGEST
                                                                             : 0,
                             .tolerance = flags->tolerance,
                             .points = flags->points,
                             .bits_per_vector = flags->bits_per_vector,
                             .seed = flags->seed,
                             .resume = flags->resume,
                             .overwrite = flags->overwrite};
}

static int plan(const plan_flags *flags, const sp_task *task, const char *dir)
{
    sp_plan_options options = make_options(flags, task);
    sp_model *model = NULL;
    sp_dataset *data = NULL, *eval = NULL;
    sp_plan_report report;
    progress_bar bar;
    progress_init(&bar, flags->output.quiet);
    sp_status st = load_data(&data, flags->data, &flags->task, &bar.logger);
    if (!st && flags->eval) st = load_data(&eval, flags->eval, &flags->task, &bar.logger);
    if (!st) st = load_model(&model, &flags->model);
    if (!st) st = find_bits_per_vector(&options.bits_per_vector, model);
    stop_at_interrupt();
    if (!st) st = sp_plan(&report, model, data, eval, dir, &options, &bar.hooks);
    progress_clear(&bar);
    sp_model_free(model);
    sp_dataset_free(eval);
    sp_dataset_free(data);
    if (st == SP_ERR_STOPPED)
        report_line("%s", flags->out ? "pilots are kept: go on with --resume" : "with -o DIR pilots are kept");
    if (st) return report_failure(st);
    int code = flags->plot ? draw(&report, flags->plot) : EXIT_DONE;
    if (code) return code;
    if (flags->output.json) return print_report_json(&report);
    print_report(&report, flags);
    return code;
}

static int run_plan(const command *self, int argc, char **argv)
{
    plan_flags flags = {0};
    sp_task task = {0};
    sp_verbalizer *verbalizers = NULL;
    int code;
    if (!options_parse(self, &flags, NULL, argc, argv, &code)) return code;
    if (flags.resume && flags.overwrite) return usage_error(self, "--resume and --overwrite contradict each other: give one");
    if (flags.resume && !flags.out) return usage_error(self, "--resume needs the pilots' directory: give -o DIR");
    char *temporary = flags.out ? NULL : make_temporary_directory();
    if (!flags.out && !temporary) {
        report_line("no temporary directory for the pilots; give -o DIR");
        return EXIT_FAILED;
    }
    if (!(code = make_task(&task, &verbalizers, self, &flags.task))) code = plan(&flags, &task, temporary ? temporary : flags.out);
    if (temporary) nftw(temporary, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(temporary);
    free(verbalizers);
    text_list_free(&flags.task.verbalizers);
    return code;
}

const command plan_command = {
    .name = "plan",
    .usage = "-m MODEL -d DATA [-e EVAL] [-o DIR] [flags]",
    .summary = "How many virtual tokens a task wants, by short trainings, and what they cost.",
    .details = "Trains pilots with 1, 2, 4, 8 and 16 virtual tokens, fits curves of diminishing returns to their losses and,\n"
               "with labels, wrong answers, and recommends the shortest prompt that is by its curve nearly as good as the\n"
               "longest: with labels within --points of its accuracy, else within --tolerance of its loss. Where that is\n"
               "longer than every pilot, longer ones follow. What a step, a token and memory cost is measured here, now.",
    .example = "  softprompt plan -m demo/model.gguf -d demo/data/train.jsonl --template 'Review: {text}\\nSentiment:' \\\n"
               "    --verbalizer 'positive= positive' --verbalizer 'negative= negative' --plot plan.png",
    .groups = groups,
    .run = run_plan,
};
