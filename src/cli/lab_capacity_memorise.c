/* lab_capacity_memorise.c: softprompt lab capacity memorise. Flags -> sp_lab_memorise -> a table, one JSON object, a plot. */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "inputs.h"
#include "plot.h"
#include "progress.h"
#include "report.h"

enum { MAX_LIST = 16, MAX_PANELS = 6 };

typedef struct memorise_flags {
    const char *sequences, *d, *len;
    size_t seeds, seed, max_tokens, steps, restarts, positions, hidden;
    double epsilon, precision;
    bool shared, quick;
    const char *plot;
    output_flags output;
} memorise_flags;

static const option_row data_rows[] = {
    {OPTION_STRING, 0, "sequences", "N,N,...", "sizes of the data sets", .fallback = "1,2,3,4,6,8,12,16",
     .target = offsetof(memorise_flags, sequences)},
    {OPTION_STRING, 0, "d", "D,D,...", "numbers of a token", .fallback = "1,2,4", .target = offsetof(memorise_flags, d)},
    {OPTION_STRING, 0, "len", "L,L,...", "tokens of a sequence", .fallback = "1,2", .target = offsetof(memorise_flags, len)},
    {OPTION_REAL, 0, "epsilon", "E", "largest error allowed, of any number of an answer", .fallback = "0.05",
     .target = offsetof(memorise_flags, epsilon), .min = 1e-9, .max = 0.499999},
    {OPTION_COUNT, 0, "seeds", "N", "data sets, and layers, of each size", .fallback = "3",
     .target = offsetof(memorise_flags, seeds), .min = 1, .max = 1000},
    {OPTION_COUNT, 0, "seed", "N", "the first of the seeds", .fallback = "0", .target = offsetof(memorise_flags, seed)},
    {OPTION_FLAG, 0, "shared-token", .help = "all sequences begin with the same token, which each answers differently",
     .target = offsetof(memorise_flags, shared)},
    {0}};

static const option_row learning_rows[] = {
    {OPTION_COUNT, 0, "max-tokens", "N", "the longest prompt that is tried", .fallback = "64",
     .target = offsetof(memorise_flags, max_tokens), .min = 1, .max = 512},
    {OPTION_COUNT, 0, "steps", "N", "of learning, of each beginning", .fallback = "200", .target = offsetof(memorise_flags, steps),
     .min = 1, .max = 1e9},
    {OPTION_COUNT, 0, "restarts", "N", "beginnings, for each length of a prompt", .fallback = "16",
     .target = offsetof(memorise_flags, restarts), .min = 1, .max = 1e6},
    {OPTION_COUNT, 0, "positions", "N", "channels of positions of the wide layer", .fallback = "8",
     .target = offsetof(memorise_flags, positions), .min = 1, .max = 1024},
    {OPTION_COUNT, 0, "hidden", "N", "units of the layers' feed-forward part", .fallback = "32",
     .target = offsetof(memorise_flags, hidden), .min = 1, .max = 1024},
    {OPTION_REAL, 0, "precision", "BITS", "of a number of the prompt, for the counting bound", .fallback = "64",
     .target = offsetof(memorise_flags, precision), .min = 1, .max = 1e9},
    {OPTION_FLAG, 0, "quick", .help = "in seconds: up to 4 sequences, 2 seeds, prompts of up to 16 tokens",
     .target = offsetof(memorise_flags, quick)},
    {0}};

static const option_row file_rows[] = {
    {OPTION_STRING, 0, "plot", "FILE", "draw tokens against sequences, as .svg or .png", .target = offsetof(memorise_flags, plot)},
    {0}};

static const option_group groups[] = {{"data", data_rows, 0},
                                      {"layers and learning", learning_rows, 0},
                                      {"files", file_rows, 0},
                                      {"output", output_rows, offsetof(memorise_flags, output)},
                                      {0}};

/* ---- lists ---- */

typedef struct count_list {
    size_t items[MAX_LIST], n;
} count_list;

/* "1,2,4". EXIT_DONE or, with a message, the exit code; NULL is an empty list. */
static int read_list(count_list *out, const command *self, const char *name, const char *text)
{
    out->n = 0;
    if (!text) return EXIT_DONE;
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        const unsigned long long value = strtoull(at, &end, 10);
        if (end == at || *at == '-' || *at == '+' || *at == ' ' || errno || value == 0 || (*end && *end != ','))
            return usage_error(self, "--%s %s: give whole numbers of at least 1, as in 1,2,4", name, text);
        if (out->n == MAX_LIST) return usage_error(self, "--%s %s: give at most %d numbers", name, text, MAX_LIST);
        out->items[out->n++] = (size_t)value;
        if (!*end) return EXIT_DONE;
        at = end;
    }
}

/* ---- what is said ---- */

static const char *const layer_names[] = {"wide", "plain"}, *const construction_names[] = {"table", "keyed"};

/* "10 25 -" */
typedef struct seeds_text {
    char text[96];
} seeds_text;

static seeds_text list_trained(const sp_memorise_point *p, size_t n_seeds, int layer)
{
    seeds_text out = {""};
    for (size_t i = 0, used = 0; i < n_seeds && used < sizeof out.text; i++) {
        const size_t n = p[i].trained[layer].num_virtual_tokens;
        const char *before = i ? " " : "";
        used += (size_t)(n ? snprintf(out.text + used, sizeof out.text - used, "%s%zu", before, n)
                           : snprintf(out.text + used, sizeof out.text - used, "%s-", before));
    }
    return out;
}

/* "512", or of several seeds "128..512"; "2^93.1" where it is long */
static seeds_text range_of(double low, double high)
{
    seeds_text out, to = {""};
    if (isnan(low)) return (seeds_text){"-"};
    if (high < 1e6 && high != low) snprintf(to.text, sizeof to.text, "..%.0f", high);
    if (high < 1e6)
        snprintf(out.text, sizeof out.text, "%.0f%.20s", low, to.text);
    else
        snprintf(out.text, sizeof out.text, "2^%.1f..%.1f", log2(low), log2(high));
    return out;
}

static seeds_text range_constructed(const sp_memorise_point *p, size_t n_seeds, int construction)
{
    double low = NAN, high = NAN;
    for (size_t i = 0; i < n_seeds; i++) {
        const sp_memorise_constructed *c = &p[i].constructed[construction];
        if (!c->grid) continue;
        low = fmin(low, c->num_virtual_tokens); /* of a NaN and a number, fmin gives the number */
        high = fmax(high, c->num_virtual_tokens);
    }
    return range_of(low, high);
}

static seeds_text range_paper(const sp_memorise_point *p, size_t n_seeds)
{
    seeds_text out;
    double low = INFINITY, high = -INFINITY;
    for (size_t i = 0; i < n_seeds; i++) {
        low = fmin(low, p[i].log2_paper);
        high = fmax(high, p[i].log2_paper);
    }
    snprintf(out.text, sizeof out.text, low == high ? "2^%.1f" : "2^%.1f..%.1f", low, high);
    return out;
}

static void print_reach(const sp_memorise_report *r, int layer)
{
    size_t n = 0, largest = 0;
    for (size_t i = 0; i < r->n_points; i++) {
        if (!r->points[i].trained[layer].num_virtual_tokens) continue;
        n++;
        if (r->points[i].n_sequences > largest) largest = r->points[i].n_sequences;
    }
    if (n == 0)
        report_row(layer_names[layer], "none of %zu data sets was memorised with up to %zu tokens", r->n_points,
                   r->options.max_tokens);
    else
        report_row(layer_names[layer], "%zu of %zu data sets memorised with up to %zu tokens, at most N = %zu", n, r->n_points,
                   r->options.max_tokens, largest);
}

static double worst_constructed(const sp_memorise_report *r, int construction, size_t *n_run)
{
    double worst = 0;
    *n_run = 0;
    for (size_t i = 0; i < r->n_points; i++) {
        const double error = r->points[i].constructed[construction].error;
        if (isnan(error)) continue;
        worst = fmax(worst, error);
        ++*n_run;
    }
    return worst;
}

static double median(double *values, size_t n)
{
    for (size_t i = 1; i < n; i++)
        for (size_t k = i; k > 0 && values[k - 1] > values[k]; k--) {
            const double kept = values[k];
            values[k] = values[k - 1];
            values[k - 1] = kept;
        }
    return values[n / 2];
}

/* The bits of a number of a prompt, and those of the whole prompt in multiples of its answers'; false: no prompt to be counted. */
static bool count_bits(double *bits, double *ratio, const sp_memorise_point *p, int way, double bits_of_answer)
{
    const bool is_learnt = way < SP_MEMORISE_N_LAYERS;
    const sp_memorise_constructed *c = &p->constructed[is_learnt ? 0 : way - SP_MEMORISE_N_LAYERS];
    const sp_memorise_trained *t = &p->trained[is_learnt ? way : 0];
    *bits = (double)(is_learnt ? t->bits : c->bits);
    *ratio = (is_learnt ? (double)t->num_virtual_tokens : c->num_virtual_tokens) * *bits /
             ((double)(p->n_sequences * p->len) * bits_of_answer);
    return *bits > 0;
}

/* Medians over the prompts that were found, of each way to find one. */
static int print_bits(const sp_memorise_report *r)
{
    const double bits_of_answer = log2(ceil(1 / (4 * r->options.epsilon)));
    double *bits = malloc(2 * r->n_points * sizeof *bits);
    char line[160] = "";
    if (!bits) return report_no_memory();
    double *ratios = bits + r->n_points;
    for (int way = 0; way < SP_MEMORISE_N_LAYERS + SP_MEMORISE_N_CONSTRUCTIONS && bits_of_answer > 0; way++) {
        const char *name = way < SP_MEMORISE_N_LAYERS ? layer_names[way] : construction_names[way - SP_MEMORISE_N_LAYERS];
        size_t n = 0, used = strlen(line);
        for (size_t i = 0; i < r->n_points; i++) n += count_bits(&bits[n], &ratios[n], &r->points[i], way, bits_of_answer);
        if (n)
            snprintf(line + used, sizeof line - used, "%s%s %.0f (%.1f)", used ? ", " : "", name, median(bits, n),
                     median(ratios, n));
    }
    if (*line) report_row("bits", "of a number, error at most %g (prompt / answers; medians): %s", 2 * r->options.epsilon, line);
    free(bits);
    return EXIT_DONE;
}

static int print_report(const sp_memorise_report *r)
{
    const sp_memorise_options *o = &r->options;
    const size_t n_seeds = r->options.n_seeds; /* of one setting, behind each other */
    report_row("data", "N sequences and answers, uniform in [0,1]^{L x d}%s; error at most %g in every number",
               o->is_shared ? ", all with the same first token" : "", o->epsilon);
    report_row("learnt", "on random layers, %zu units: plain, of d channels, and wide, %zu more for positions; one number a seed",
               o->n_hidden, o->n_positions);
    report_row("written", "keyed, a token each; table, a token each cell; least: what no machine passes at %g bits a number",
               o->precision);
    printf("\n  d  L    N   NL  %-16s %-16s %-7s %-12s %-13s %s\n", "wide", "plain", "keyed", "table", "paper", "least");
    for (size_t i = 0; i < r->n_points; i += n_seeds) {
        const sp_memorise_point *p = &r->points[i];
        printf("%3zu %2zu %4zu %4zu  %-16s %-16s %-7s %-12s %-13s %.0f\n", p->d, p->len, p->n_sequences, p->n_sequences * p->len,
               list_trained(p, n_seeds, SP_MEMORISE_WIDE).text, list_trained(p, n_seeds, SP_MEMORISE_PLAIN).text,
               range_constructed(p, n_seeds, SP_MEMORISE_KEYED).text, range_constructed(p, n_seeds, SP_MEMORISE_TABLE).text,
               range_paper(p, n_seeds).text, fmax(1, ceil(exp2(p->log2_pairs) * (1 - 1e-12))));
    }
    printf("\n");
    for (int i = 0; i < SP_MEMORISE_N_LAYERS; i++) print_reach(r, i);
    for (int i = SP_MEMORISE_N_CONSTRUCTIONS; i-- > 0;) {
        size_t n_run;
        const double worst = worst_constructed(r, i, &n_run);
        report_row(construction_names[i], "%zu of %zu data sets run, largest error %.1e", n_run, r->n_points, worst);
    }
    const int code = print_bits(r);
    report_row("time", "%s", format_duration(r->seconds).text);
    return code;
}

/* ---- JSON ---- */

static json_t *trained_json(const sp_memorise_trained *t)
{
    json_t *object = json_object();
    json_member(&object, "num_virtual_tokens",
                t->num_virtual_tokens ? json_integer((json_int_t)t->num_virtual_tokens) : json_null());
    json_member(&object, "not_reached", json_boolean(t->num_virtual_tokens == 0));
    json_member(&object, "error", json_finite(t->error));
    json_member(&object, "largest", json_finite(t->largest));
    json_member(&object, "bits", t->bits ? json_integer((json_int_t)t->bits) : json_null());
    json_member(&object, "steps", json_integer((json_int_t)t->steps));
    return object;
}

static json_t *constructed_json(const sp_memorise_constructed *c)
{
    json_t *object = json_object();
    json_member(&object, "num_virtual_tokens", c->grid ? json_finite(c->num_virtual_tokens) : json_null());
    json_member(&object, "grid", c->grid ? json_integer((json_int_t)c->grid) : json_null());
    json_member(&object, "error", json_finite(c->error));
    json_member(&object, "bits", c->bits ? json_integer((json_int_t)c->bits) : json_null());
    return object;
}

static json_t *point_json(const sp_memorise_point *p)
{
    json_t *object = json_object(), *trained = json_object(), *constructed = json_object();
    for (int i = 0; i < SP_MEMORISE_N_LAYERS; i++) json_member(&trained, layer_names[i], trained_json(&p->trained[i]));
    for (int i = 0; i < SP_MEMORISE_N_CONSTRUCTIONS; i++)
        json_member(&constructed, construction_names[i], constructed_json(&p->constructed[i]));
    json_member(&object, "n_sequences", json_integer((json_int_t)p->n_sequences));
    json_member(&object, "d", json_integer((json_int_t)p->d));
    json_member(&object, "len", json_integer((json_int_t)p->len));
    json_member(&object, "seed", json_integer((json_int_t)p->seed));
    json_member(&object, "lipschitz", json_finite(p->lipschitz));
    json_member(&object, "trained", trained);
    json_member(&object, "constructed", constructed);
    json_member(&object, "log2_paper", json_finite(p->log2_paper));
    json_member(&object, "log2_pairs", json_finite(p->log2_pairs));
    return object;
}

static int print_report_json(const sp_memorise_report *r)
{
    json_t *object = json_object(), *points = json_array();
    for (size_t i = 0; i < r->n_points; i++) json_array_append_new(points, point_json(&r->points[i]));
    json_member(&object, "epsilon", json_real(r->options.epsilon));
    json_member(&object, "precision", json_real(r->options.precision));
    json_member(&object, "max_tokens", json_integer((json_int_t)r->options.max_tokens));
    json_member(&object, "n_positions", json_integer((json_int_t)r->options.n_positions));
    json_member(&object, "n_hidden", json_integer((json_int_t)r->options.n_hidden));
    json_member(&object, "shared_token", json_boolean(r->options.is_shared));
    json_member(&object, "points", points);
    json_member(&object, "seconds", json_real(r->seconds));
    return print_json(object);
}

/* ---- the plot ---- */

/* A line a size: N, NL, medians over seeds of wide, plain (above max_tokens: not reached), keyed, table, log2 of paper, least. */
static void write_medians(FILE *gnuplot, size_t panel, const sp_memorise_point *p, size_t n_sizes, size_t n_seeds, double missing)
{
    double *values = malloc(n_seeds * sizeof *values);
    fprintf(gnuplot, "$medians%zu << END\n", panel);
    for (size_t i = 0; values && i < n_sizes; i++, p += n_seeds) {
        fprintf(gnuplot, "%zu %zu", p->n_sequences, p->n_sequences * p->len);
        for (int k = 0; k < SP_MEMORISE_N_LAYERS; k++) {
            for (size_t s = 0; s < n_seeds; s++)
                values[s] = p[s].trained[k].num_virtual_tokens ? (double)p[s].trained[k].num_virtual_tokens : missing;
            const double middle = median(values, n_seeds);
            fprintf(gnuplot, " %g", middle < missing ? middle : (double)NAN);
        }
        for (int k = SP_MEMORISE_N_CONSTRUCTIONS; k-- > 0;) {
            for (size_t s = 0; s < n_seeds; s++)
                values[s] = p[s].constructed[k].grid ? p[s].constructed[k].num_virtual_tokens : NAN;
            fprintf(gnuplot, " %g", median(values, n_seeds));
        }
        for (size_t s = 0; s < n_seeds; s++) values[s] = p[s].log2_paper;
        fprintf(gnuplot, " %g %g\n", exp2(fmin(median(values, n_seeds), 1000)), fmax(1, exp2(p->log2_pairs)));
    }
    fprintf(gnuplot, "END\n");
    free(values);
}

/* A line a seed: N, wide and plain; `missing` where not reached. The two are drawn a little apart. */
static void write_seeds(FILE *gnuplot, size_t panel, const sp_memorise_point *p, size_t n, double missing)
{
    fprintf(gnuplot, "$seeds%zu << END\n", panel);
    for (size_t i = 0; i < n; i++, p++)
        fprintf(gnuplot, "%zu %g %g\n", p->n_sequences,
                p->trained[SP_MEMORISE_WIDE].num_virtual_tokens ? (double)p->trained[SP_MEMORISE_WIDE].num_virtual_tokens : missing,
                p->trained[SP_MEMORISE_PLAIN].num_virtual_tokens ? (double)p->trained[SP_MEMORISE_PLAIN].num_virtual_tokens
                                                                 : missing);
    fprintf(gnuplot, "END\n");
}

static void draw_panel(FILE *gnuplot, size_t panel, const sp_memorise_point *p)
{
    fprintf(
        gnuplot,
        "set title 'd = %zu, L = %zu' offset 0,-0.6\nplot $medians%zu using 1:7 with linespoints pt 2 lc rgb '#888888' dashtype 2 "
        "title 'the paper''s formula', "
        "$medians%zu using 1:6 with linespoints pt 4 lc rgb '#a02c2c' title 'written: table', "
        "$medians%zu using 1:5 with linespoints pt 6 lc rgb '#3a923a' lw 2 title 'written: keyed', "
        "$seeds%zu using ($1*1.04):3 with points pt 8 lc rgb '#d09030' title 'learnt: plain layer', "
        "$medians%zu using ($1*1.04):4 with lines lc rgb '#d09030' notitle, "
        "$seeds%zu using ($1/1.04):2 with points pt 7 lc rgb '#204a87' title 'learnt: wide layer', "
        "$medians%zu using ($1/1.04):3 with lines lc rgb '#204a87' lw 2 notitle, "
        "$medians%zu using 1:8 with lines lc rgb '#404040' dashtype 3 title 'no machine passes'\nunset key\n",
        p->d, p->len, panel, panel, panel, panel, panel, panel, panel, panel);
}

/* One key for all panels, above them; what was not reached stands above a line over max_tokens. */
static void draw_panels(FILE *gnuplot, const sp_memorise_report *r, size_t n_rows, size_t n_columns)
{
    size_t least = SIZE_MAX, most = 1;
    for (size_t i = 0; i < r->n_points; i++) {
        if (r->points[i].n_sequences < least) least = r->points[i].n_sequences;
        if (r->points[i].n_sequences > most) most = r->points[i].n_sequences;
    }
    fprintf(gnuplot,
            "set multiplot layout %zu,%zu margins screen %g,0.98,%g,%g spacing screen 0.09,screen %g\nset grid\n"
            "set logscale xy 2\nset format y '2^{%%L}'\nset xrange [%g:%g]\nset yrange [0.8:2**16]\nset xlabel 'sequences' offset "
            "0,0.5\nset ylabel 'virtual tokens' offset 1,0\n"
            "set key at screen 0.5,screen 0.99 center top horizontal maxrows %d samplen 2\n",
            n_rows, n_columns, 0.12 / (double)n_columns, 0.14 / (double)n_rows, 1 - 0.24 / (double)n_rows, 0.2 / (double)n_rows,
            (double)least / 1.2, (double)most * 1.2, n_columns > 1 ? 2 : 3);
    fprintf(gnuplot,
            "set arrow from graph 0, first %g to graph 1, first %g nohead lc rgb '#b0b0b0'\n"
            "set label 'none up to %zu' at graph 0.01, first %g left font ',10' textcolor rgb '#707070'\n",
            1.2 * (double)r->options.max_tokens, 1.2 * (double)r->options.max_tokens, r->options.max_tokens,
            2.4 * (double)r->options.max_tokens);
}

static int draw(const sp_memorise_report *r, size_t n_sizes, const char *path)
{
    const size_t n_seeds = r->options.n_seeds, n_each = n_sizes * n_seeds, all = r->n_points / n_each;
    const size_t n_panels = all < MAX_PANELS ? all : MAX_PANELS, n_columns = n_panels > 1 ? 2 : 1;
    const size_t n_rows = (n_panels + n_columns - 1) / n_columns;
    const double missing = 1.5 * (double)r->options.max_tokens;
    FILE *gnuplot = plot_open_sized(path, 600 * (int)n_columns, 360 * (int)n_rows + 60);
    if (!gnuplot) return EXIT_FAILED;
    for (size_t i = 0; i < n_panels; i++) {
        write_medians(gnuplot, i, r->points + i * n_each, n_sizes, n_seeds, missing);
        write_seeds(gnuplot, i, r->points + i * n_each, n_each, missing);
    }
    draw_panels(gnuplot, r, n_rows, n_columns);
    for (size_t i = 0; i < n_panels; i++) draw_panel(gnuplot, i, r->points + i * n_each);
    fprintf(gnuplot, "unset multiplot\n");
    return plot_close(gnuplot, path);
}

/* ---- the command ---- */

static void make_quick(memorise_flags *flags)
{
    if (!flags->sequences) flags->sequences = "1,2,4";
    if (!flags->d) flags->d = "1,2";
    if (!flags->seeds) flags->seeds = 2;
    if (!flags->max_tokens) flags->max_tokens = 16;
    if (!flags->restarts) flags->restarts = 2;
}

static int run_memorise(const command *self, int argc, char **argv)
{
    memorise_flags flags = {0};
    count_list sequences, d, len;
    sp_memorise_report report;
    progress_bar bar;
    int code;
    if (!options_parse(self, &flags, NULL, argc, argv, &code)) return code;
    if (flags.quick) make_quick(&flags);
    if (flags.shared && !flags.len) flags.len = "2";
    if ((code = read_list(&sequences, self, "sequences", flags.sequences)) || (code = read_list(&d, self, "d", flags.d)) ||
        (code = read_list(&len, self, "len", flags.len)))
        return code;
    if (flags.plot && !plot_check_name(flags.plot)) return EXIT_FAILED;
    const sp_memorise_options options = {
        .sequences = sequences.items,
        .d = d.items,
        .len = len.items,
        .n_sequences = sequences.n,
        .n_d = d.n,
        .n_len = len.n,
        .n_seeds = flags.seeds,
        .epsilon = flags.epsilon,
        .precision = flags.precision,
        .max_tokens = flags.max_tokens,
        .steps = flags.steps,
        .restarts = flags.restarts,
        .n_positions = flags.positions,
        .n_hidden = flags.hidden,
        .is_shared = flags.shared,
        .seed = flags.seed,
    };
    progress_init(&bar, flags.output.quiet);
    stop_at_interrupt();
    sp_status st = sp_lab_memorise(&report, &options, &bar.hooks);
    progress_clear(&bar);
    if (st) return report_failure(st);
    code = flags.plot ? draw(&report, report.options.n_sequences, flags.plot) : EXIT_DONE;
    if (!code && flags.output.json) {
        code = print_report_json(&report);
    } else if (!code) {
        code = print_report(&report);
        if (flags.plot) report_row("plot", "%s", flags.plot);
    }
    sp_memorise_report_clear(&report);
    return code;
}

const command capacity_memorise_command = {
    .name = "lab capacity memorise",
    .usage = "[flags]",
    .summary = "How many virtual tokens N random sequences take: learnt on random layers, written down, and by formula.",
    .details = "Random data sets on the smallest transformers, one layer with one head: the fewest virtual tokens that\n"
               "answer all sequences within epsilon, learnt behind random frozen weights (doubling, bisection, restarts),\n"
               "and written down for layers that are built for it. docs/theory.md says why random layers hold so few.",
    .example = "  softprompt lab capacity memorise --plot memorise.png\n"
               "  softprompt lab capacity memorise --sequences 1,2,3,4,6,8 --d 8 --len 1 --seeds 5\n"
               "  softprompt lab capacity memorise --shared-token --sequences 1,2,4,8",
    .groups = groups,
    .run = run_memorise,
};
