/* run_log.c: rows of log.jsonl, printed with as many digits as a double needs, each in one write. */
#include "train/run_log.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "base/append_file.h"
#include "base/buffer.h"
#include "base/number.h"
#include "base/status.h"

struct sp_run_log {
    sp_append_file *file;
    sp_buffer row;
};

sp_status sp_run_log_open(sp_run_log **out, const char *path, uint64_t offset)
{
    sp_run_log *log = calloc(1, sizeof *log);
    *out = NULL;
    if (!log) return sp_fail_no_memory(sizeof *log);
    sp_status st = sp_append_file_open(&log->file, path, offset);
    if (st)
        sp_run_log_close(log);
    else
        *out = log;
    return st;
}

static sp_status begin_row(sp_run_log *log, size_t step)
{
    sp_buffer_clear(&log->row);
    return sp_buffer_printf(&log->row, "{\"step\": %zu", step);
}

static sp_status add_double(sp_run_log *log, const char *key, double value)
{
    char number[SP_DOUBLE_CHARS];
    sp_format_double(number, value);
    return sp_buffer_printf(&log->row, ", \"%s\": %s", key, isfinite(value) ? number : "null");
}

static sp_status add_integer(sp_run_log *log, const char *key, uint64_t value)
{
    return sp_buffer_printf(&log->row, ", \"%s\": %" PRIu64, key, value);
}

static sp_status end_row(sp_run_log *log)
{
    sp_status st = sp_buffer_add_string(&log->row, "}\n");
    return st ? st : sp_append_file_add(log->file, log->row.bytes, log->row.n_bytes);
}

sp_status sp_run_log_add_step(sp_run_log *log, const sp_run_log_step *row)
{
    sp_status st;
    if ((st = begin_row(log, row->step)) || (st = add_double(log, "loss", row->loss)) ||
        (st = add_double(log, "learning_rate", row->learning_rate)) || (st = add_double(log, "grad_norm", row->grad_norm)) ||
        (row->has_penalty && (st = add_double(log, "penalty", row->penalty))) || (st = add_double(log, "seconds", row->seconds)) ||
        (st = add_integer(log, "examples", row->examples)) || (st = add_integer(log, "tokens", row->tokens)))
        return st;
    return end_row(log);
}

sp_status sp_run_log_add_evaluation(sp_run_log *log, size_t step, const sp_evaluation *evaluation)
{
    const sp_evaluation *e = evaluation;
    sp_status st;
    if ((st = begin_row(log, step)) || (st = add_double(log, "eval_loss", e->loss)) ||
        (st = add_double(log, "eval_perplexity", e->perplexity)))
        return st;
    if (e->has_accuracy &&
        ((st = add_double(log, "eval_accuracy", e->accuracy)) || (st = add_double(log, "eval_macro_f1", e->macro_f1))))
        return st;
    if (e->has_exact_match && (st = add_double(log, "eval_exact_match", e->exact_match))) return st;
    if ((st = add_double(log, "eval_seconds", e->seconds)) || (st = add_integer(log, "eval_examples", e->n))) return st;
    return end_row(log);
}

sp_status sp_run_log_sync(sp_run_log *log)
{
    return sp_append_file_sync(log->file);
}

uint64_t sp_run_log_offset(const sp_run_log *log)
{
    return sp_append_file_offset(log->file);
}

void sp_run_log_close(sp_run_log *log)
{
    if (!log) return;
    sp_append_file_close(log->file);
    sp_buffer_free(&log->row);
    free(log);
}
