/* report.c: tables, JSON and messages. Members of an object stand in the order written here: same result, same bytes. */
#include "report.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "options.h"

enum { NAME_COLUMN = 14, REAL_DIGITS = 10 };

void report_line(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("softprompt: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

int report_failure(sp_status status)
{
    report_line("%s", sp_message());
    return status == SP_ERR_ARGUMENT ? EXIT_USAGE : EXIT_FAILED;
}

int report_no_memory(void)
{
    report_line("out of memory");
    return EXIT_FAILED;
}

void report_row(const char *name, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("%-*s  ", NAME_COLUMN, name);
    vprintf(format, arguments);
    putchar('\n');
    va_end(arguments);
}

void report_row_text(const char *name, const char *text)
{
    printf("%-*s  ", NAME_COLUMN, name);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) putchar(*c < 0x20 || *c == 0x7f ? '?' : *c);
    putchar('\n');
}

duration_text format_duration(double seconds)
{
    duration_text out;
    if (!(seconds >= 0 && seconds < 1e9)) seconds = 0;
    unsigned long s = (unsigned long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(out.text, sizeof out.text, "%lu:%02lu:%02lu", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out.text, sizeof out.text, "%lu:%02lu", s / 60, s % 60);
    return out;
}

size_text format_bytes(double n_bytes)
{
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB", "PB"};
    size_text out;
    size_t unit = 0;
    while (n_bytes >= 1000 && unit + 1 < sizeof units / sizeof *units) n_bytes /= 1000, unit++;
    snprintf(out.text, sizeof out.text, "%.*f %s", unit > 0, n_bytes, units[unit]);
    return out;
}

void print_quoted(FILE *stream, const char *argument)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=:,+@%";
    if (*argument && argument[strspn(argument, plain)] == '\0') {
        fputs(argument, stream);
        return;
    }
    fputc('\'', stream);
    for (; *argument; argument++)
        if (*argument == '\'')
            fputs("'\\''", stream);
        else
            fputc(*argument, stream);
    fputc('\'', stream);
}

json_t *json_finite(double number)
{
    return isfinite(number) ? json_real(number) : json_null();
}

json_t *json_text(const char *text)
{
    json_t *string = text ? json_string(text) : NULL;
    return string ? string : json_null();
}

void json_member(json_t **object, const char *name, json_t *value)
{
    if (json_object_set_new(*object, name, value) == 0) return;
    json_decref(*object);
    *object = NULL;
}

int print_json(json_t *object)
{
    int failed = !object;
    if (failed)
        report_line("out of memory while writing the result as JSON");
    else
        failed = json_dumpf(object, stdout, JSON_REAL_PRECISION(REAL_DIGITS)) != 0;
    json_decref(object);
    putchar('\n');
    return failed ? EXIT_FAILED : EXIT_DONE;
}

static json_t *json_where(bool applies, double number)
{
    return applies ? json_finite(number) : json_null();
}

static json_t *json_interval(bool applies, const double *interval)
{
    return applies ? json_pack("[o, o]", json_finite(interval[0]), json_finite(interval[1])) : json_null();
}

size_t rows_skipped(const sp_evaluation *evaluation, const sp_dataset *data)
{
    return sp_dataset_n_skipped(data) + sp_dataset_n_rows(data) - evaluation->n;
}

json_t *evaluation_json(const sp_evaluation *e, const sp_dataset *data)
{
    json_t *object = json_object();
    json_member(&object, "n", json_integer((json_int_t)e->n));
    json_member(&object, "accuracy", json_where(e->has_accuracy, e->accuracy));
    json_member(&object, "accuracy_ci95", json_interval(e->has_accuracy, e->accuracy_ci95));
    json_member(&object, "macro_f1", json_where(e->has_accuracy, e->macro_f1));
    json_member(&object, "exact_match", json_where(e->has_exact_match, e->exact_match));
    json_member(&object, "exact_match_ci95", json_interval(e->has_exact_match, e->exact_match_ci95));
    json_member(&object, "loss", json_finite(e->loss));
    json_member(&object, "perplexity", json_finite(e->perplexity));
    json_member(&object, "skipped_rows", json_integer((json_int_t)rows_skipped(e, data)));
    json_member(&object, "truncated_rows", json_integer((json_int_t)e->n_truncated));
    json_member(&object, "seconds", json_finite(e->seconds));
    return object;
}

static void share_row(const char *name, double share, const double *interval)
{
    report_row(name, "%.2f %%  (95 %% interval %.2f to %.2f)", 100 * share, 100 * interval[0], 100 * interval[1]);
}

void evaluation_rows(const sp_evaluation *e)
{
    if (e->has_accuracy) {
        share_row("accuracy", e->accuracy, e->accuracy_ci95);
        report_row("macro-F1", "%.4f", e->macro_f1);
    }
    if (e->has_exact_match) share_row("exact match", e->exact_match, e->exact_match_ci95);
    report_row("loss", "%.4f nats a row", e->loss);
    report_row("perplexity", "%.4g a token", e->perplexity);
}

void warn_of_range(const sp_compiled_use *use)
{
    if (use->n_beyond == 0) return;
    report_line(
        "warning: %.3g %% of the queries might leave the range that the compiled prompt serves, and were shortened to it; compile "
        "it with a larger --max-logit",
        100 * (double)use->n_beyond / (double)use->n_queries);
}

json_t *profile_json(void)
{
    sp_profile profile;
    sp_profile_get(&profile);
    json_t *object = json_object();
    json_member(&object, "matmul", json_finite(profile.matmul));
    json_member(&object, "expand", json_finite(profile.expand));
    json_member(&object, "attention", json_finite(profile.attention));
    json_member(&object, "norm", json_finite(profile.norm));
    json_member(&object, "activation", json_finite(profile.activation));
    return object;
}

int finish_output(int code)
{
    errno = 0;
    bool failed = fflush(stdout) != 0 || ferror(stdout);
    if (!failed) return code;
    report_line("standard output: cannot write the result: %s", errno ? strerror(errno) : "an earlier write failed");
    return code == EXIT_DONE ? EXIT_FAILED : code;
}
