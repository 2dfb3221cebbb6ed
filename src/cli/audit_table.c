/* audit_table.c: an audit's report as tables: a summary, the prompt's own tokens, layers or heads. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "audit.h"
#include "report.h"

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
        for (size_t h = 0; h < r->n_head; h++) putchar(audit_verdict_names[heads[h].verdict][0]);
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
        printf("  %s\n", audit_verdict_names[r->heads[i].verdict]);
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

/* What moves the answers most comes first; without that, as they stand. */
static int by_weight(const void *left, const void *right)
{
    const sp_audit_token *a = *(const sp_audit_token *const *)left, *b = *(const sp_audit_token *const *)right;
    const double x = isnan(a->left_out_kl) ? fabs(a->left_out_loss) : a->left_out_kl;
    const double y = isnan(b->left_out_kl) ? fabs(b->left_out_loss) : b->left_out_kl;
    if (x > y || y > x) return x > y ? -1 : 1;
    return a < b ? -1 : a > b;
}

static void print_number(double number, int width, int digits)
{
    if (isnan(number))
        printf(" %*s", width, "-");
    else
        printf(" %*.*f", width, digits, number);
}

/* Control characters, and what is no whole character, as '?'. */
static void print_text(const char *text)
{
    json_t *whole = json_text(text);
    putchar('"');
    for (const char *c = json_string_value(whole); c && *c; c++) putchar((unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c);
    fputs(json_is_string(whole) ? "\"" : "?\"", stdout);
    json_decref(whole);
}

static void print_token(const sp_audit_report *r, const sp_audit_token *t, const sp_tokenizer *tokenizer)
{
    printf("%5zu", (size_t)(t - r->tokens));
    print_number(t->left_out_kl, 9, 4);
    print_number(t->left_out_loss, 9, 4);
    print_number(t->norm, 8, 3);
    print_number(t->key_norm, 8, 2);
    print_number(t->value_norm, 8, 2);
    fputs(" ", stdout);
    for (size_t k = 0; k < SP_AUDIT_NEIGHBOURS && t->nearest[k] >= 0; k++) {
        char *text = audit_token_text(tokenizer, t->nearest[k]);
        fputs("  ", stdout);
        print_text(text);
        printf(" %.2f", (double)t->cosine[k]);
        sp_free(text);
    }
    putchar('\n');
}

enum { MAX_LINES = 32 };

static int print_tokens(const sp_audit_report *r, const sp_tokenizer *tokenizer)
{
    const size_t n = r->num_virtual_tokens;
    const sp_audit_token **order = calloc(n, sizeof *order);
    if (!order) return report_no_memory();
    for (size_t i = 0; i < n; i++) order[i] = &r->tokens[i];
    qsort(order, n, sizeof *order, by_weight);
    if (r->vocabulary_norm[1] > 0)
        report_row("vocabulary", "norms %.3f, %.3f, %.3f at 5, 50 and 95 %%", r->vocabulary_norm[0], r->vocabulary_norm[1],
                   r->vocabulary_norm[2]);
    report_row("left out", "one by one on %zu rows: divergence of labels, rise of the loss, in nats", r->n_left_out_rows);
    printf("\ntoken        kl     loss     norm    |key|  |value|   nearest, cosine\n");
    for (size_t i = 0; i < n && i < MAX_LINES; i++) print_token(r, order[i], tokenizer);
    if (n > MAX_LINES) printf("  ...  %zu more: --json has all\n", n - MAX_LINES);
    free(order);
    return EXIT_DONE;
}

int audit_print_tables(const sp_audit_report *r, const audit_view *view)
{
    double *values = malloc(r->n_layer * r->n_head * sizeof *values);
    int code = EXIT_DONE;
    if (!values) return report_no_memory();
    report_row("texts", "%zu, %zu cut at the left; %zu rows of data skipped", r->n_texts, r->n_truncated, r->n_skipped);
    report_row("rows", "%zu; the longest sees %zu keys, %zu of them the prompt's", r->n_rows, r->n, r->num_virtual_tokens);
    print_summary(r, values, view->epsilon);
    if (r->tokens) code = print_tokens(r, view->tokenizer);
    if (view->heads)
        print_heads(r);
    else
        print_layers(r, values);
    free(values);
    return code;
}
