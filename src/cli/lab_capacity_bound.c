/* lab_capacity_bound.c: softprompt lab capacity bound. Flags -> sp_lab_capacity_bound -> a table, one JSON object, a plot. */
#include <math.h>

#include "cli.h"
#include "inputs.h"
#include "plot.h"
#include "report.h"

typedef struct bound_flags {
    size_t d, len, sequences;
    double lipschitz, alpha, epsilon, precision, prompt_lipschitz;
    const char *plot;
    output_flags output;
} bound_flags;

static const option_row function_rows[] = {{OPTION_COUNT, 0, "d", "D", "numbers of a token", .fallback = "1",
                                            .target = offsetof(bound_flags, d), .min = 1, .max = 1 << 20},
                                           {OPTION_COUNT, 0, "len", "L", "tokens of an input", .fallback = "1",
                                            .target = offsetof(bound_flags, len), .min = 1, .max = 1 << 20},
                                           {OPTION_REAL, 0, "lipschitz", "C", "of the functions, in the norm alpha",
                                            .fallback = "1", .target = offsetof(bound_flags, lipschitz), .min = 1e-9, .max = 1e9},
                                           {OPTION_REAL, 0, "alpha", "A", "the norm, of inputs and of errors; at least 1",
                                            .fallback = "the sup norm", .target = offsetof(bound_flags, alpha), .min = 1,
                                            .max = 1e9},
                                           {OPTION_REAL, 0, "epsilon", "E", "largest error allowed", .fallback = "0.05",
                                            .target = offsetof(bound_flags, epsilon), .min = 1e-9, .max = 0.499999},
                                           {OPTION_COUNT, 0, "sequences", "N", "pairs of the data set to be memorised",
                                            .fallback = "64", .target = offsetof(bound_flags, sequences), .min = 1, .max = 1e15},
                                           {0}};

static const option_row prompt_rows[] = {{OPTION_REAL, 0, "precision", "BITS", "of a number of the prompt", .fallback = "32",
                                          .target = offsetof(bound_flags, precision), .min = 1, .max = 1e9},
                                         {OPTION_REAL, 0, "prompt-lipschitz", "G",
                                          "slope of the output in the prompt, for the bound \"smooth\"", .fallback = "1",
                                          .target = offsetof(bound_flags, prompt_lipschitz), .min = 1e-9, .max = 1e15},
                                         {0}};

static const option_row file_rows[] = {
    {OPTION_STRING, 0, "plot", "FILE", "draw tokens against epsilon, as .svg or .png", .target = offsetof(bound_flags, plot)}, {0}};

static const option_group groups[] = {{"what is to be told apart", function_rows, 0},
                                      {"prompt", prompt_rows, 0},
                                      {"files", file_rows, 0},
                                      {"output", output_rows, offsetof(bound_flags, output)},
                                      {0}};

/* ---- what is said ---- */

/* "1814", "1.03e+05", "2^5123.4" */
typedef struct count_text {
    char text[32];
} count_text;

static count_text format_count(double count, double log2_count)
{
    count_text out;
    if (log2_count == -INFINITY)
        snprintf(out.text, sizeof out.text, "-");
    else if (count < 1e7)
        snprintf(out.text, sizeof out.text, "%.0f", count);
    else if (isfinite(count))
        snprintf(out.text, sizeof out.text, "%.2e", count);
    else
        snprintf(out.text, sizeof out.text, "2^%.1f", log2_count);
    return out;
}

static const char *const titles[] = {"the paper's formula", "what constructions take", "what no machine passes"};

static void print_row(const sp_capacity_row *row)
{
    count_text tokens = format_count(row->num_virtual_tokens, row->log2_tokens), bits = {"-"};
    if (!isnan(row->log2_bits)) bits = format_count(exp2(row->log2_bits), row->log2_bits);
    printf("  %-10s %s%-10s  %-10s  %s\n", row->name, row->kind == SP_CAPACITY_BOUND ? ">= " : "   ", tokens.text, bits.text,
           row->formula);
    printf("  %40s%s\n", "", row->assumption);
}

static void print_report(const sp_capacity_bound_report *r)
{
    const sp_capacity_bound_options *o = &r->options;
    char norm[48] = "sup norm";
    if (isfinite(o->alpha)) snprintf(norm, sizeof norm, "norm %g", o->alpha);
    report_row("functions", "[0,1]^{%zu x %zu} to itself, %g-Lipschitz in the %s; error at most %g in that norm", o->d, o->len,
               o->lipschitz, norm, o->epsilon);
    report_row("pairs", "%zu sequences, any answers in [0,1]^{%zu x %zu}, to the same error", o->n_sequences, o->d, o->len);
    report_row("prompt", "%g bits a number, %zu numbers a token; for \"smooth\": in [0,1], output %g-Lipschitz in it", o->precision,
               o->d, o->prompt_lipschitz);
    printf("\n  %-10s %-13s  %-10s  %s\n", "", "tokens", "bits", "formula, and what it rests on");
    for (int kind = 0; kind <= SP_CAPACITY_BOUND; kind++) {
        printf("%s%s\n", titles[kind],
               kind == SP_CAPACITY_TAKES   ? " (bits: of one number)"
               : kind == SP_CAPACITY_BOUND ? " (bits: of the whole prompt)"
                                           : "");
        for (size_t i = 0; i < SP_CAPACITY_N_ROWS; i++)
            if ((int)r->rows[i].kind == kind) print_row(&r->rows[i]);
    }
}

/* Whole numbers as such, as far as f64 tells them apart. */
static json_t *count_json(double count)
{
    return count == floor(count) && count < 0x1p53 ? json_integer((json_int_t)count) : json_finite(count);
}

static json_t *row_json(const sp_capacity_row *row)
{
    static const char *const kinds[] = {"formula", "takes", "bound"};
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:s, s:s}", "name", row->name, "kind", kinds[row->kind], "num_virtual_tokens",
                     count_json(row->num_virtual_tokens), "log2_tokens", json_finite(row->log2_tokens), "log2_bits",
                     json_finite(row->log2_bits), "grid", row->grid ? json_integer((json_int_t)row->grid) : json_null(), "formula",
                     row->formula, "assumption", row->assumption);
}

static int print_report_json(const sp_capacity_bound_report *r)
{
    const sp_capacity_bound_options *o = &r->options;
    json_t *object = json_object(), *rows = json_array();
    for (size_t i = 0; i < SP_CAPACITY_N_ROWS; i++) json_array_append_new(rows, row_json(&r->rows[i]));
    json_member(&object, "d", json_integer((json_int_t)o->d));
    json_member(&object, "len", json_integer((json_int_t)o->len));
    json_member(&object, "lipschitz", json_finite(o->lipschitz));
    json_member(&object, "alpha", json_finite(o->alpha)); /* null: infinity */
    json_member(&object, "epsilon", json_finite(o->epsilon));
    json_member(&object, "precision", json_finite(o->precision));
    json_member(&object, "sequences", json_integer((json_int_t)o->n_sequences));
    json_member(&object, "prompt_lipschitz", json_finite(o->prompt_lipschitz));
    json_member(&object, "rows", rows);
    return print_json(object);
}

/* ---- the plot ---- */

enum { N_POINTS = 49 };

/* Tokens from epsilon 0.45 down to a 32nd of the one that was asked for: log2 over log2, as numbers may be beyond f64. */
static int draw(const sp_capacity_bound_report *asked, const char *path)
{
    FILE *gnuplot = plot_open(path);
    if (!gnuplot) return EXIT_FAILED;
    const sp_capacity_bound_options *o = &asked->options;
    double largest = 0.45, smallest = fmax(1e-9, o->epsilon / 32);
    fprintf(gnuplot,
            "set xlabel 'epsilon'\nset ylabel 'virtual tokens'\nset logscale x 10\nset key top right\nset grid\n"
            "set format x '%%g'\nset format y '2^{%%g}'\nset xrange [%g:%g]\nset yrange [0:*]\n$data << END\n",
            smallest, largest);
    for (size_t k = 0; k < N_POINTS; k++) {
        sp_capacity_bound_options options = *o;
        sp_capacity_bound_report r;
        options.epsilon = largest * pow(smallest / largest, (double)k / (N_POINTS - 1));
        if (sp_lab_capacity_bound(&r, &options)) continue; /* a grid beyond 2^62: the curve ends */
        fprintf(gnuplot, "%.9g", options.epsilon);
        for (size_t i = 0; i < SP_CAPACITY_N_ROWS; i++) fprintf(gnuplot, " %.9g", fmax(0, r.rows[i].log2_tokens));
        fprintf(gnuplot, "\n");
    }
    fprintf(gnuplot,
            "END\nset title 'd = %zu, L = %zu, C = %g; %g bits a number, N = %zu'\n"
            "plot $data using 1:%d with lines lc rgb '#888888' dashtype 2 title 'the paper''s formula', "
            "$data using 1:%d with steps lc rgb '#204a87' lw 2 title 'look-up takes, every function', "
            "$data using 1:%d with lines lc rgb '#c05020' lw 2 title 'bound: every function', "
            "$data using 1:%d with lines lc rgb '#e0a060' title 'bound: N pairs', "
            "$data using 1:%d with lines lc rgb '#60a060' title 'bound: N pairs, %g-Lipschitz in the prompt'\n",
            o->d, o->len, o->lipschitz, o->precision, o->n_sequences, SP_CAPACITY_PAPER + 2, SP_CAPACITY_TAKES_LOOKUP + 2,
            SP_CAPACITY_COUNT_FUNCTIONS + 2, SP_CAPACITY_COUNT_PAIRS + 2, SP_CAPACITY_COUNT_SMOOTH + 2, o->prompt_lipschitz);
    return plot_close(gnuplot, path);
}

/* ---- the command ---- */

static int run_bound(const command *self, int argc, char **argv)
{
    bound_flags flags = {0};
    sp_capacity_bound_report report;
    int code;
    if (!options_parse(self, &flags, NULL, argc, argv, &code)) return code;
    const sp_capacity_bound_options options = {
        .d = flags.d,
        .len = flags.len,
        .lipschitz = flags.lipschitz,
        .alpha = flags.alpha,
        .epsilon = flags.epsilon,
        .precision = flags.precision,
        .n_sequences = flags.sequences,
        .prompt_lipschitz = flags.prompt_lipschitz,
    };
    sp_status st = sp_lab_capacity_bound(&report, &options);
    if (st) return report_failure(st);
    if (flags.plot && (code = draw(&report, flags.plot))) return code;
    if (flags.output.json) return print_report_json(&report);
    print_report(&report);
    if (flags.plot) report_row("plot", "%s", flags.plot);
    return EXIT_DONE;
}

const command capacity_bound_command = {
    .name = "lab capacity bound",
    .usage = "[flags]",
    .summary = "How long a prompt must be, by formula: the paper's, our constructions', and what no machine passes.",
    .details = "Three kinds of number, which must not be taken for each other; each says what it rests on. Those beyond\n"
               "f64 are powers of two. docs/theory.md derives them.",
    .example = "  softprompt lab capacity bound --len 2 --epsilon 0.05\n"
               "  softprompt lab capacity bound --d 2 --len 2 --alpha 2 --precision 16 --plot bound.svg",
    .groups = groups,
    .run = run_bound,
};
