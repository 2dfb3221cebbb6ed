/* lab_universality.c: softprompt lab universality. Flags -> sp_lab_universality -> a table, one JSON object, a plot. */
#include <math.h>

#include "cli.h"
#include "inputs.h"
#include "plot.h"
#include "progress.h"
#include "report.h"

typedef struct universality_flags {
    size_t d, len, grid, samples, seed;
    const char *function, *table, *expression, *export_dir, *plot;
    int construction, variant;
    double ramp, epsilon, lipschitz;
    bool quick;
    output_flags output;
} universality_flags;

enum { QUICK_SAMPLES = 1000 };

static const option_row machine_rows[] = {
    {OPTION_COUNT, 0, "d", "D", "numbers of a token", .fallback = "1", .target = offsetof(universality_flags, d), .min = 1,
     .max = 16},
    {OPTION_COUNT, 0, "len", "L", "tokens of an input", .fallback = "1", .target = offsetof(universality_flags, len), .min = 1,
     .max = 16},
    {OPTION_COUNT, 0, "grid", "G", "cells of a coordinate, a power of two", .fallback = "what --epsilon takes, or 16",
     .target = offsetof(universality_flags, grid), .min = 2, .max = 1 << 20},
    {OPTION_CHOICE, 0, "construction", "lookup|uniform|index|digits", "constant size; the theorem; the paper's way; one token",
     .fallback = "lookup", .target = offsetof(universality_flags, construction)},
    {OPTION_CHOICE, 0, "variant", "A|B", "feed-forward layers: deep, of width 4, or wide", .fallback = "A",
     .target = offsetof(universality_flags, variant)},
    {OPTION_REAL, 0, "ramp", "W", "of the quantiser, in grid steps", .fallback = "1/16; index 1/(64 grid^2)",
     .target = offsetof(universality_flags, ramp), .min = 1e-12, .max = 1},
    {OPTION_REAL, 0, "epsilon", "E", "largest error allowed, in the sup norm", .target = offsetof(universality_flags, epsilon),
     .min = 1e-12, .max = 1},
    {0}};

static const option_row target_rows[] = {
    {OPTION_STRING, 0, "function", "NAME", "identity reverse sort mean max sine bump rotate", .fallback = "identity",
     .target = offsetof(universality_flags, function)},
    {OPTION_STRING, 0, "table", "FILE", "CSV: D L inputs and as many outputs a row, in [0, 1]",
     .target = offsetof(universality_flags, table)},
    {OPTION_STRING, 0, "expression", "TEXT", "a formula of x1, x2, ... and i, the output's number",
     .target = offsetof(universality_flags, expression)},
    {OPTION_REAL, 0, "lipschitz", "C", "of the expression, in the sup norm", .fallback = "estimated",
     .target = offsetof(universality_flags, lipschitz), .min = 1e-12, .max = 1e12},
    {OPTION_COUNT, 0, "samples", "N", "random inputs to measure on", .fallback = "10000",
     .target = offsetof(universality_flags, samples), .min = 10, .max = 1e8},
    {OPTION_COUNT, 0, "seed", "N", "of the inputs", .fallback = "0", .target = offsetof(universality_flags, seed)},
    {OPTION_FLAG, 0, "quick", .help = "1000 inputs, and no coarser grids", .target = offsetof(universality_flags, quick)},
    {0}};

static const option_row file_rows[] = {{OPTION_STRING, 0, "export", "DIR",
                                        "write the machine, the prompt and a PyTorch reader there",
                                        .target = offsetof(universality_flags, export_dir)},
                                       {OPTION_STRING, 0, "plot", "FILE", "draw error against grid step, as .svg or .png",
                                        .target = offsetof(universality_flags, plot)},
                                       {0}};

static const option_group groups[] = {{"machine", machine_rows, 0},
                                      {"target", target_rows, 0},
                                      {"files", file_rows, 0},
                                      {"output", output_rows, offsetof(universality_flags, output)},
                                      {0}};

/* ---- what is said ---- */

static json_t *interval_json(const double ci95[2])
{
    return json_pack("[o, o]", json_finite(ci95[0]), json_finite(ci95[1]));
}

static json_t *error_json(const sp_universality_point *p)
{
    return json_pack("{s:o, s:o, s:o, s:{s:o, s:o}}", "1", json_finite(p->error[0]), "2", json_finite(p->error[1]), "sup",
                     json_finite(p->sup), "ci95", "1", interval_json(p->ci95[0]), "2", interval_json(p->ci95[1]));
}

static json_t *point_json(const sp_universality_point *p)
{
    return json_pack("{s:I, s:I, s:o, s:o, s:o}", "grid", (json_int_t)p->grid, "num_virtual_tokens",
                     (json_int_t)p->num_virtual_tokens, "error", error_json(p), "bound", json_finite(p->bound), "identity_exact",
                     json_finite(p->identity_exact));
}

static int print_report_json(const sp_universality_report *r)
{
    json_t *object = json_object(), *points = json_array();
    for (size_t i = 0; i < r->n_points; i++) json_array_append_new(points, point_json(&r->points[i]));
    json_member(&object, "function", json_text(r->function));
    json_member(&object, "lipschitz", json_finite(r->lipschitz));
    json_member(&object, "lipschitz_is_estimated", json_boolean(r->lipschitz_is_estimated));
    json_member(&object, "grid", json_integer((json_int_t)r->at.grid));
    json_member(&object, "ramp", json_finite(r->ramp));
    json_member(&object, "num_virtual_tokens", json_integer((json_int_t)r->at.num_virtual_tokens));
    json_member(&object, "error", error_json(&r->at));
    json_member(&object, "bound", json_finite(r->at.bound));
    json_member(&object, "identity_exact", json_finite(r->at.identity_exact));
    json_member(&object, "order", json_finite(r->order));
    json_member(&object, "weights_sha256", json_text(r->weights_sha256));
    json_member(&object, "weights_nonzero", json_integer((json_int_t)r->weights_nonzero));
    json_member(&object, "max_weight", json_finite(r->max_weight));
    json_member(&object, "channels", json_integer((json_int_t)r->n_channels));
    json_member(&object, "depth", json_integer((json_int_t)r->depth));
    json_member(&object, "attention_layers", json_integer((json_int_t)r->n_attention));
    json_member(&object, "rank", json_integer((json_int_t)r->max_rank));
    json_member(&object, "ffn_width", json_integer((json_int_t)r->max_ffn_width));
    json_member(&object, "gap", json_finite(r->gap));
    json_member(&object, "gap_bound", json_finite(r->gap_bound));
    json_member(&object, "leakage", json_finite(r->leakage));
    json_member(&object, "control",
                json_pack("{s:o, s:o}", "other", json_finite(r->control_other), "shuffled", json_finite(r->control_shuffled)));
    json_member(&object, "points", points);
    json_member(&object, "samples", json_integer((json_int_t)r->n_samples));
    json_member(&object, "seconds", json_finite(r->seconds));
    return print_json(object);
}

static void print_points(const sp_universality_report *r)
{
    printf("\n  grid  tokens         d_1         d_2         sup       bound  identity's d_2\n");
    for (size_t i = 0; i < r->n_points; i++) {
        const sp_universality_point *p = &r->points[i];
        printf("%6zu %7zu  %10.3e  %10.3e  %10.3e  %10.3e  %14.3e\n", p->grid, p->num_virtual_tokens, p->error[0], p->error[1],
               p->sup, p->bound, p->identity_exact);
    }
    if (r->n_points > 1) printf("d_2 falls as grid^-%.3f\n", r->order);
}

static void print_report(const sp_universality_report *r)
{
    report_row("function", "%s, Lipschitz %.4g in the sup norm%s", r->function, r->lipschitz,
               r->lipschitz_is_estimated ? " (estimated: the bound is none)" : "");
    report_row("virtual tokens", "%zu", r->at.num_virtual_tokens);
    report_row("error", "d_1 %.4e (95 %% interval %.4e to %.4e)", r->at.error[0], r->at.ci95[0][0], r->at.ci95[0][1]);
    report_row("", "d_2 %.4e (95 %% interval %.4e to %.4e)", r->at.error[1], r->at.ci95[1][0], r->at.ci95[1][1]);
    report_row("", "sup %.4e, bound %.4e", r->at.sup, r->at.bound);
    report_row("layers", "%zu, of them attention %zu (rank %zu), feed-forward of width %zu at most", r->depth, r->n_attention,
               r->max_rank, r->max_ffn_width);
    report_row("channels", "%zu", r->n_channels);
    report_row("weights", "%zu that are not 0, the largest %.6g", r->weights_nonzero, r->max_weight);
    report_row("sha256", "%s", r->weights_sha256);
    if (r->gap_bound > 0) report_row("softmax gap", "%.4f, built for %.4f; leakage at most %.3g", r->gap, r->gap_bound, r->leakage);
    report_row("control", "another function's prompt %.1f times the error, shuffled %.1f times", r->control_other,
               r->control_shuffled);
    report_row("time", "%.1f s, %zu inputs", r->seconds, r->n_samples);
    print_points(r);
}

/* Error against grid step, both logarithmic: points with intervals, the bound, the identity's exact error. */
static int draw(const sp_universality_report *r, const char *path)
{
    FILE *gnuplot = plot_open(path);
    if (!gnuplot) return EXIT_FAILED;
    fprintf(gnuplot,
            "set logscale xy 2\nset format y '%%.3g'\nset xlabel 'grid step'\nset ylabel 'error'\nset key top left\nset grid\n"
            "set xtics (");
    for (size_t i = 0; i < r->n_points; i++)
        fprintf(gnuplot, "%s'1/%zu' 1.0/%zu", i ? ", " : "", r->points[i].grid, r->points[i].grid);
    fprintf(gnuplot, ")\nset xrange [%g:%g]\n$data << END\n", 0.7 / (double)r->points[r->n_points - 1].grid,
            1.4 / (double)r->points[0].grid);
    for (size_t i = 0; i < r->n_points; i++) {
        const sp_universality_point *p = &r->points[i];
        fprintf(gnuplot, "%.9g %.9g %.9g %.9g %.9g %.9g %.9g\n", 1 / (double)p->grid, p->error[1], p->ci95[1][0], p->ci95[1][1],
                p->sup, p->bound, p->identity_exact);
    }
    fprintf(gnuplot,
            "END\nset title '%s: d_2 falls as step^{%.2f}'\n"
            "plot $data using 1:6 with lines dashtype 2 lc rgb '#888888' title 'bound of the sup error', "
            "$data using 1:5 with linespoints pt 6 lc rgb '#c05020' title 'largest error seen', "
            "$data using 1:7 with lines lc rgb '#88aadd' title 'd_2 of the identity, exact', "
            "$data using 1:2:3:4 with yerrorlines pt 7 lc rgb '#204a87' title 'd_2 and 95 %% interval'\n",
            r->function, r->order);
    return plot_close(gnuplot, path);
}

/* ---- the command ---- */

static sp_universality_options make_options(const universality_flags *flags)
{
    return (sp_universality_options){
        .d = flags->d,
        .len = flags->len,
        .grid = flags->grid,
        .construction = (sp_construction)flags->construction,
        .is_deep = flags->variant == 0,
        .ramp = flags->ramp,
        .epsilon = flags->epsilon,
        .function = flags->function,
        .table_path = flags->table,
        .expression = flags->expression,
        .lipschitz = flags->lipschitz,
        .n_samples = flags->samples ? flags->samples
                     : flags->quick ? QUICK_SAMPLES
                                    : 0,
        .seed = flags->seed,
        .only_grid = flags->quick && !flags->plot,
        .export_dir = flags->export_dir,
    };
}

static int run_universality(const command *self, int argc, char **argv)
{
    universality_flags flags = {0};
    sp_universality_report report;
    progress_bar bar;
    int code;
    if (!options_parse(self, &flags, NULL, argc, argv, &code)) return code;
    if ((flags.function != NULL) + (flags.table != NULL) + (flags.expression != NULL) > 1)
        return usage_error(self, "--function, --table and --expression contradict each other: give one");
    const sp_universality_options options = make_options(&flags);
    progress_init(&bar, flags.output.quiet);
    stop_at_interrupt();
    sp_status st = sp_lab_universality(&report, &options, &bar.hooks);
    progress_clear(&bar);
    if (st) return report_failure(st);
    code = EXIT_DONE;
    if (flags.plot && (code = draw(&report, flags.plot))) return code;
    if (flags.output.json) return print_report_json(&report);
    print_report(&report);
    if (flags.export_dir) report_row("export", "%s", flags.export_dir);
    if (flags.plot) report_row("plot", "%s", flags.plot);
    return code;
}

const command universality_command = {
    .name = "lab universality",
    .usage = "[flags]",
    .summary = "One frozen transformer, any Lipschitz function, by the prompt alone.",
    .details = "Builds the transformer first, then gives it the function's prompt, and measures how far the two are\n"
               "apart, against the bound that is proved. docs/theory.md explains the constructions.",
    .example = "  softprompt lab universality --len 2 --grid 16 --function sort --plot sort.png\n"
               "  softprompt lab universality --expression 'abs(x1 - 0.5)' --epsilon 0.02",
    .groups = groups,
    .run = run_universality,
};
