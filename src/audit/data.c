/* data.c: the rows of a file as an audit's texts, one at a time.
 *
 * The file is read twice. The first time rows are counted, for whoever watches, and labels are collected where the task names none;
 * the second time each row is encoded, audited and forgotten. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audit/internal.h"
#include "base/clock.h"
#include "base/sizes.h"
#include "base/status.h"
#include "prompt/task.h"
#include "train/encoded.h"

enum { MAX_NAMED = 10 }; /* rows left out that are named one by one */

typedef struct reading {
    sp_audit *audit;
    const char *path;
    sp_verbalizer
        *labels; /* (n_labels, of SP_MAX_LABELS) of the data; each string in one piece: the label, and the answer behind it */
    size_t n_labels;
    bool collects; /* labels are wanted */
    size_t n_rows; /* of the file */

    const sp_task *task;
    size_t room;
    size_t n_done, n_unusable;
    sp_encoded_row *kept; /* (n_kept, of max_kept) rows at equal distances, on which virtual tokens are left out */
    size_t n_kept, max_kept;
    const sp_hooks *hooks;
    double begin;
} reading;

/* ---- first reading ---- */

static sp_status add_label(reading *r, const sp_row *row)
{
    const char *label = row->label;
    for (size_t i = 0; i < r->n_labels; i++)
        if (!strcmp(r->labels[i].label, label)) return SP_OK;
    if (r->n_labels == SP_MAX_LABELS)
        return sp_fail(SP_ERR_ARGUMENT,
                       "%s:%zu: more than %d different labels; name another column with --label-column, or use "
                       "prompt and completion",
                       r->path, row->line, SP_MAX_LABELS);
    size_t n = strlen(label) + 1;
    char *strings = malloc(2 * n + 1);
    if (!strings) return sp_fail_no_memory(2 * n + 1);
    memcpy(strings, label, n);
    strings[n] = ' ';
    memcpy(strings + n + 1, label, n);
    r->labels[r->n_labels++] = (sp_verbalizer){strings, strings + n};
    return SP_OK;
}

static sp_status count_row(void *user, const sp_row *row)
{
    reading *r = user;
    r->n_rows++;
    if (r->hooks && r->hooks->stop && *r->hooks->stop) return sp_fail(SP_ERR_STOPPED, "stopped while counting rows");
    return r->collects && row->kind == SP_ROW_LABEL ? add_label(r, row) : SP_OK;
}

/* ---- second reading ---- */

static void report_progress(const reading *r)
{
    if (!r->hooks || !r->hooks->progress) return;
    const double seconds = sp_seconds() - r->begin;
    const sp_progress progress = {.what = "audit",
                                  .done = r->n_done,
                                  .total = r->n_rows,
                                  .seconds = seconds,
                                  .rows_per_second = seconds > 0 ? (double)r->n_done / seconds : 0,
                                  .loss = (double)NAN};
    r->hooks->progress(r->hooks->user, &progress);
}

/* Keeps row number `index` of the file where it is one of max_kept at equal distances; else it is forgotten. */
static void keep_or_clear(reading *r, sp_encoded_row *row, size_t index)
{
    const double step = (double)r->n_rows / (double)r->max_kept;
    if (r->n_kept < r->max_kept && (double)index >= (double)r->n_kept * step)
        r->kept[r->n_kept++] = *row;
    else
        sp_encoded_row_clear(row);
}

static sp_status audit_row(void *user, const sp_row *row)
{
    reading *r = user;
    sp_encoded_row encoded;
    if (r->hooks && r->hooks->stop && *r->hooks->stop)
        return sp_fail(SP_ERR_STOPPED, "stopped after %zu of %zu rows", r->n_done, r->n_rows);
    sp_status st = sp_task_encode(&encoded, r->task, sp_model_tokenizer(r->audit->model), row, r->room);
    if (st == SP_ERR_MEMORY) return st;
    r->n_done++;
    if (st) {
        if (++r->n_unusable <= MAX_NAMED)
            sp_log(r->hooks ? r->hooks->logger : NULL, SP_LOG_WARNING, "%s; row left out", sp_message());
        return SP_OK;
    }
    st = sp_audit_row(r->audit, &encoded);
    r->audit->report.n_truncated += encoded.truncated;
    keep_or_clear(r, &encoded, r->n_done - 1);
    report_progress(r);
    return st;
}

/* ---- both ---- */

static sp_status reserve_kept(reading *r)
{
    r->max_kept = r->audit->prompt ? sp_smaller(r->audit->options.n_left_out_rows, r->n_rows) : 0;
    r->kept = calloc(r->max_kept + 1, sizeof *r->kept);
    return r->kept ? SP_OK : sp_fail_no_memory((r->max_kept + 1) * sizeof *r->kept);
}

static sp_status read_twice(reading *r, const sp_data_options *options, sp_task *task)
{
    size_t n_skipped;
    sp_data_options silent = options ? *options : (sp_data_options){0};
    silent.logger = NULL; /* what cannot be used is named the second time */
    sp_status st = sp_dataset_visit(r->path, &silent, count_row, r, NULL);
    if (st) return st;
    if (r->collects) {
        task->verbalizers = r->labels;
        task->n_verbalizers = r->n_labels;
    }
    if ((st = sp_task_check(task)) || (st = reserve_kept(r))) return st;
    r->task = task;
    r->begin = sp_seconds();
    st = sp_dataset_visit(r->path, options, audit_row, r, &n_skipped);
    if (!st && r->n_unusable == r->n_done)
        return sp_fail(SP_ERR_FORMAT, "%s: none of %zu rows can be used; the last: %s", r->path, r->n_rows, sp_message());
    if (st) return st;
    r->audit->report.n_skipped += n_skipped + r->n_unusable;
    if (!r->audit->prompt) return SP_OK;
    const sp_root root = sp_root_of_prompt(r->audit->prompt);
    return sp_audit_leave_out(r->audit, &root, r->kept, r->n_kept, r->hooks);
}

sp_status sp_audit_data(sp_audit *audit, const char *path, const sp_data_options *options, const sp_task *task,
                        const sp_hooks *hooks)
{
    const sp_task *own = task || !audit->prompt ? task : sp_prompt_task(audit->prompt);
    sp_task completed = own ? *own : (sp_task){0};
    reading r = {.audit = audit, .path = path, .hooks = hooks, .collects = completed.n_verbalizers == 0};
    sp_status st = sp_room_behind_prompt(&r.room, audit->model, audit->n_front);
    if (!st && !(r.labels = calloc(SP_MAX_LABELS, sizeof *r.labels))) st = sp_fail_no_memory(SP_MAX_LABELS * sizeof *r.labels);
    if (!st) st = read_twice(&r, options, &completed);
    for (size_t i = 0; i < r.n_labels; i++) free((char *)(uintptr_t)r.labels[i].label);
    free(r.labels);
    for (size_t i = 0; i < r.n_kept; i++) sp_encoded_row_clear(&r.kept[i]);
    free(r.kept);
    return st;
}
