/* lab_phase.c: softprompt lab phase. Flags -> sp_lab_phase -> tables, one JSON object, a plot. */
#include <math.h>
#include <stdint.h>

#include "cli.h"
#include "inputs.h"
#include "plot.h"
#include "progress.h"
#include "report.h"

typedef struct phase_flags {
    size_t d, min_log2_n, max_log2_n, hard_log2_n, seed;
    double epsilon, seconds;
    bool quick;
    const char *plot;
    output_flags output;
} phase_flags;

static const option_row experiment_rows[] = {
    {OPTION_COUNT, 0, "d", "D", "numbers of a query, a key and a value", .fallback = "8", .target = offsetof(phase_flags, d),
     .min = 1, .max = 64},
    {OPTION_REAL, 0, "epsilon", "E", "relative error of the polynomial in the place of exp", .fallback = "0.001",
     .target = offsetof(phase_flags, epsilon), .min = 1e-12, .max = 0.999},
    {OPTION_COUNT, 0, "min-log2-n", "N", "from 2^N queries and keys", .fallback = "10", .target = offsetof(phase_flags, min_log2_n),
     .min = 6, .max = 20},
    {OPTION_COUNT, 0, "max-log2-n", "N", "to 2^N", .fallback = "20", .target = offsetof(phase_flags, max_log2_n), .min = 6,
     .max = 20},
    {OPTION_COUNT, 0, "hard-log2-n", "N", "of the hard instances, even", .fallback = "14",
     .target = offsetof(phase_flags, hard_log2_n), .min = 6, .max = 16},
    {OPTION_REAL, 0, "seconds", "S", "no single run that is expected to take longer", .fallback = "10",
     .target = offsetof(phase_flags, seconds), .min = 0.001, .max = 1e6},
    {OPTION_COUNT, 0, "seed", "N", "of queries, keys and values", .fallback = "0", .target = offsetof(phase_flags, seed)},
    {OPTION_FLAG, 0, "quick", .help = "in seconds: n up to 2^14, hard instances of 2^12", .target = offsetof(phase_flags, quick)},
    {0}};

static const option_row file_rows[] = {
    {OPTION_STRING, 0, "plot", "FILE", "draw it, as .svg or .png", .target = offsetof(phase_flags, plot)}, {0}};

static const option_group groups[] = {
    {"experiment", experiment_rows, 0}, {"files", file_rows, 0}, {"output", output_rows, offsetof(phase_flags, output)}, {0}};

/* ---- JSON ---- */

static json_t *point_json(const sp_phase_point *p, const sp_phase_size *size)
{
    const bool known = p->degree != SIZE_MAX;
    json_t *object = json_object();
    json_member(&object, "c", json_real(p->c));
    json_member(&object, "n", json_integer((json_int_t)p->n));
    json_member(&object, "entry", json_real(p->entry));
    json_member(&object, "range", json_real(p->range));
    json_member(&object, "degree", known ? json_integer((json_int_t)p->degree) : json_null());
    json_member(&object, "features", known ? json_integer((json_int_t)p->features) : json_null());
    json_member(&object, "seconds_exact", json_finite(size->seconds));
    json_member(&object, "exact_extended", json_boolean(size->extended));
    json_member(&object, "seconds_polynomial", json_finite(p->seconds));
    json_member(&object, "ratio", json_finite(size->seconds / p->seconds));
    json_member(&object, "n_exact", json_integer((json_int_t)p->n_exact));
    json_member(&object, "bound", json_finite(p->bound));
    return object;
}

static json_t *hard_json(const sp_phase_report *r)
{
    json_t *points = json_array();
    for (size_t i = 0; i < SP_PHASE_N_HARD; i++) {
        const sp_phase_hard *h = &r->hard[i];
        json_array_append_new(points, json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "c", h->c, "range", h->range, "exact_right",
                                                h->exact_right, "polynomial_right", h->polynomial_right, "exact_output",
                                                h->exact_output, "polynomial_output", h->polynomial_output, "refused", h->refused));
    }
    json_t *object = json_object();
    json_member(&object, "n", json_integer((json_int_t)r->hard_n));
    json_member(&object, "d", json_integer(SP_PHASE_HARD_D));
    json_member(&object, "degree", json_integer((json_int_t)r->hard_degree));
    json_member(&object, "features", json_integer((json_int_t)r->hard_features));
    json_member(&object, "range", json_real(r->hard_range));
    json_member(&object, "points", points);
    return object;
}

static int print_report_json(const sp_phase_report *r)
{
    json_t *object = json_object(), *points = json_array(), *exponents = json_array();
    for (size_t c = 0; c < SP_PHASE_N_C; c++) {
        for (size_t i = 0; i < r->n_sizes; i++) json_array_append_new(points, point_json(&r->points[c][i], &r->sizes[i]));
        json_array_append_new(exponents, json_pack("{s:f, s:o}", "c", r->points[c][0].c, "exponent", json_finite(r->exponents[c])));
    }
    json_member(&object, "d", json_integer((json_int_t)r->options.d));
    json_member(&object, "epsilon", json_real(r->options.epsilon));
    json_member(&object, "points", points);
    json_member(&object, "exponents", exponents);
    json_member(&object, "exact_exponent", json_finite(r->exact_exponent));
    json_member(&object, "hard", hard_json(r));
    return print_json(object);
}

/* ---- tables ---- */

static void print_seconds(double seconds)
{
    if (isnan(seconds))
        printf(" %9s", "-");
    else
        printf(" %9.4g", seconds);
}

static void print_sizes(const sp_phase_report *r)
{
    printf("seconds, features in brackets       exact");
    for (size_t c = 0; c < SP_PHASE_N_C; c++) printf("       c = %-9g", r->points[c][0].c);
    putchar('\n');
    for (size_t i = 0; i < r->n_sizes; i++) {
        printf("  n = %-24zu", r->sizes[i].n);
        print_seconds(r->sizes[i].seconds);
        putchar(r->sizes[i].extended ? '*' : ' ');
        for (size_t c = 0; c < SP_PHASE_N_C; c++) {
            const sp_phase_point *p = &r->points[c][i];
            char features[16] = "(none)";
            if (p->degree != SIZE_MAX) snprintf(features, sizeof features, "(%zu)", p->features);
            print_seconds(p->seconds);
            printf(" %-9s", features);
        }
        putchar('\n');
    }
    printf("  %-28s", "grows like n to the");
    print_seconds(r->exact_exponent);
    putchar(' ');
    for (size_t c = 0; c < SP_PHASE_N_C; c++) {
        print_seconds(r->exponents[c]);
        printf(" %-9s", "");
    }
    printf("\n\n");
}

static void print_hard(const sp_phase_report *r)
{
    report_row("hard", "%zu keys and queries of d = %d; the polynomial of degree %zu, %zu features, serves scores up to %.3f",
               r->hard_n, SP_PHASE_HARD_D, r->hard_degree, r->hard_features, r->hard_range);
    printf("\n     c   scores    exact: right   output    polynomial: right   output   beyond its range\n");
    for (size_t i = 0; i < SP_PHASE_N_HARD; i++) {
        const sp_phase_hard *h = &r->hard[i];
        printf(" %5.3f %8.2f %14.1f %% %8.3f %18.1f %% %8.3f %16.1f %%\n", h->c, h->range, 100 * h->exact_right, h->exact_output,
               100 * h->polynomial_right, h->polynomial_output, 100 * h->refused);
    }
}

static void print_report(const sp_phase_report *r)
{
    report_row("entries", "B = c sqrt(ln n) of queries and keys, d = %zu; scores up to B^2; epsilon %g", r->options.d,
               r->options.epsilon);
    report_row("time", "of one thread; *: extended by n^2; -: over %g s; (none): no degree up to 16", r->options.seconds);
    putchar('\n');
    print_sizes(r);
    print_hard(r);
}

/* ---- the plot ---- */

static void write_sizes(FILE *gnuplot, const sp_phase_report *r)
{
    fprintf(gnuplot, "$sizes << END\n");
    for (size_t i = 0; i < r->n_sizes; i++) {
        fprintf(gnuplot, "%zu %g %g", r->sizes[i].n, r->sizes[i].extended ? (double)NAN : r->sizes[i].seconds, r->sizes[i].seconds);
        for (size_t c = 0; c < SP_PHASE_N_C; c++) fprintf(gnuplot, " %g", r->points[c][i].seconds);
        fprintf(gnuplot, "\n");
    }
    fprintf(gnuplot, "END\n");
}

static void write_hard(FILE *gnuplot, const sp_phase_report *r)
{
    fprintf(gnuplot, "$hard << END\n");
    for (size_t i = 0; i < SP_PHASE_N_HARD; i++)
        fprintf(gnuplot, "%g %g %g %g\n", r->hard[i].c, 100 * r->hard[i].exact_right, 100 * r->hard[i].polynomial_right,
                100 * r->hard[i].refused);
    fprintf(gnuplot, "END\n");
}

static int draw(const sp_phase_report *r, const char *path)
{
    static const char *const colours[SP_PHASE_N_C] = {"#204a87", "#3f9fb0", "#3a923a", "#b8860b", "#a02c2c"};
    FILE *gnuplot = plot_open_sized(path, 1180, 520);
    if (!gnuplot) return EXIT_FAILED;
    write_sizes(gnuplot, r);
    write_hard(gnuplot, r);
    fprintf(gnuplot,
            "set multiplot layout 1,2\nset grid\nset logscale xy 2\nset format x '2^{%%L}'\nset logscale y 10\n"
            "set format y '10^{%%L}'\nset xlabel 'n'\nset ylabel 'seconds of one thread'\nset key top left Left reverse\n"
            "set title 'd = %zu, epsilon %g: entries of c sqrt(ln n)'\n"
            "plot $sizes using 1:3 with lines lc rgb '#888888' dashtype 2 notitle, "
            "$sizes using 1:2 with linespoints pt 7 lc rgb '#404040' lw 2 title 'exact (dashed: n^2)'",
            r->options.d, r->options.epsilon);
    for (size_t c = 0; c < SP_PHASE_N_C; c++) {
        bool any = false;
        for (size_t i = 0; i < r->n_sizes; i++) any |= !isnan(r->points[c][i].seconds);
        if (any)
            fprintf(gnuplot, ", $sizes using 1:%zu with linespoints pt 5 lc rgb '%s' title 'polynomial, c = %g'", c + 4, colours[c],
                    r->points[c][0].c);
    }
    fprintf(
        gnuplot,
        "\nunset logscale\nset format '%%g'\nset xlabel 'c'\nset ylabel 'queries, %%'\nset yrange [-3:103]\nset key bottom right "
        "Right noreverse\n"
        "set arrow from 1, graph 0 to 1, graph 1 nohead dashtype 2 lc rgb '#888888'\n"
        "set title 'hard instances, n = %zu, d = %d'\n"
        "plot $hard using 1:4 with lines lc rgb '#b0b0b0' lw 2 title 'beyond the polynomial''s range', "
        "$hard using 1:2 with linespoints pt 7 lc rgb '#404040' lw 2 title 'exact: right', "
        "$hard using 1:3 with linespoints pt 5 lc rgb '#204a87' lw 2 title 'polynomial of degree %zu: right'\nunset multiplot\n",
        r->hard_n, SP_PHASE_HARD_D, r->hard_degree);
    return plot_close(gnuplot, path);
}

/* ---- the command ---- */

static int run_phase(const command *self, int argc, char **argv)
{
    phase_flags flags = {0};
    static sp_phase_report report;
    progress_bar bar;
    int code;
    if (!options_parse(self, &flags, NULL, argc, argv, &code)) return code;
    if (flags.plot && !plot_check_name(flags.plot)) return EXIT_FAILED;
    if (flags.quick && !flags.max_log2_n) flags.max_log2_n = 14;
    if (flags.quick && !flags.hard_log2_n) flags.hard_log2_n = 12;
    const sp_phase_options options = {.d = flags.d,
                                      .epsilon = flags.epsilon,
                                      .min_log2_n = flags.min_log2_n,
                                      .max_log2_n = flags.max_log2_n,
                                      .hard_log2_n = flags.hard_log2_n,
                                      .seconds = flags.seconds,
                                      .seed = flags.seed};
    progress_init(&bar, flags.output.quiet);
    stop_at_interrupt();
    sp_status st = sp_lab_phase(&report, &options, &bar.hooks);
    progress_clear(&bar);
    if (st) return report_failure(st);
    if (flags.plot && (code = draw(&report, flags.plot))) return code;
    if (flags.output.json) return print_report_json(&report);
    print_report(&report);
    if (flags.plot) report_row("plot", "%s", flags.plot);
    return EXIT_DONE;
}

const command phase_command = {
    .name = "lab phase",
    .usage = "[flags]",
    .summary = "The phase transition: exact and polynomial attention below and above B = sqrt(ln n).",
    .details = "Queries and keys whose entries are c sqrt(ln n): the polynomial that attention in almost linear time\n"
               "needs, its features, its time against n, and the exponents of both. Then instances in which the right\n"
               "answer is a nearest neighbour's: exact attention reads it off above the line, a polynomial of as many\n"
               "features does not, and its certificate says so. docs/theory.md, section 3.",
    .example = "  softprompt lab phase --plot phase.png\n"
               "  softprompt lab phase --quick --json",
    .groups = groups,
    .run = run_phase,
};
