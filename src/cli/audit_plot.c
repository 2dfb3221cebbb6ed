/* audit_plot.c: heat maps, layers from the top, heads from the left: what the criterion judges, and what attention does. */
#include <math.h>

#include "audit.h"
#include "plot.h"

enum { WIDTH = 1180, HEIGHT = 820 };

typedef struct panel {
    const char *title;
    double (*value)(const sp_audit_head *head, const sp_audit_report *report);
    bool is_ratio; /* to a limit of 1: decades, blue inside and red beyond; else a share of `most` */
    double most;   /* 0: the largest */
} panel;

static double entries(const sp_audit_head *h, const sp_audit_report *r)
{
    (void)r;
    return h->entries_ratio;
}

static double centred(const sp_audit_head *h, const sp_audit_report *r)
{
    (void)r;
    return h->scores_ratio;
}

/* What no text could pass whose queries and keys are as long; ln n of the longest row. */
static double bound(const sp_audit_head *h, const sp_audit_report *r)
{
    return h->cauchy_schwarz / log((double)r->n);
}

static double entropy(const sp_audit_head *h, const sp_audit_report *r)
{
    (void)r;
    return h->entropy;
}

static double sink(const sp_audit_head *h, const sp_audit_report *r)
{
    (void)r;
    return h->sink_mass;
}

static double prompt(const sp_audit_head *h, const sp_audit_report *r)
{
    (void)r;
    return h->prompt_mass;
}

static const panel panels[] = {
    {"entries / sqrt(ln n)", entries, true, 0},         {"centred scores / ln n", centred, true, 0},
    {"bound of centred scores / ln n", bound, true, 0}, {"entropy, nats", entropy, false, 0},
    {"weight on the first row", sink, false, 1},        {"weight on the prompt", prompt, false, 1},
};

static void draw_panel(FILE *gnuplot, const sp_audit_report *r, const panel *p, size_t index)
{
    double most = p->most, widest = 2; /* widest: the farthest from 1, as a factor */
    fprintf(gnuplot, "$panel%zu << END\n", index);
    for (size_t l = 0; l < r->n_layer; l++) {
        for (size_t h = 0; h < r->n_head; h++) {
            const double value = p->value(&r->heads[l * r->n_head + h], r);
            fprintf(gnuplot, "%zu %zu %.9g\n", h, l, value);
            if (p->most == 0) most = fmax(most, value);
            if (value > 0) widest = fmax(widest, fmax(value, 1 / value));
        }
    }
    fprintf(gnuplot, "END\nset title '%s'\n", p->title);
    if (p->is_ratio) /* as far to both sides of the limit, which is white */
        fprintf(gnuplot,
                "set logscale cb\nset cbrange [%g:%g]\nset palette defined (0 '#2166ac', 0.4 '#a6c8e0', 0.5 '#ffffff', "
                "0.6 '#f4b89a', 1 '#b2182b')\n",
                1 / widest, widest);
    else
        fprintf(gnuplot, "unset logscale cb\nset cbrange [0:%g]\nset palette defined (0 '#ffffff', 0.5 '#7fb3a8', 1 '#0b4f46')\n",
                most > 0 ? most : 1);
    fprintf(gnuplot, "plot $panel%zu using 1:2:3 with image notitle\n", index);
}

int audit_draw(const sp_audit_report *r, const char *path)
{
    FILE *gnuplot = plot_open_sized(path, WIDTH, HEIGHT);
    if (!gnuplot) return EXIT_FAILED;
    fprintf(gnuplot,
            "set multiplot layout 2,3 title '%zu keys at most, %zu of them the prompt''s; blue: inside, red: beyond'\n"
            "set xrange [-0.5:%g]\nset yrange [%g:-0.5]\nset xlabel 'head'\nset ylabel 'layer'\nset tics out nomirror\nunset key\n",
            r->n, r->num_virtual_tokens, (double)r->n_head - 0.5, (double)r->n_layer - 0.5);
    for (size_t i = 0; i < sizeof panels / sizeof *panels; i++) draw_panel(gnuplot, r, &panels[i], i);
    fprintf(gnuplot, "unset multiplot\n");
    return plot_close(gnuplot, path);
}
