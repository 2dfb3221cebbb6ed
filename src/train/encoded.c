/* encoded.c: rows -> tokens. */
#include "train/encoded.h"

#include <stdlib.h>

#include "base/status.h"

enum { MAX_NAMED = 10 }; /* rows left out that are named one by one */

sp_status sp_room_behind_prompt(size_t *out, const sp_model *model, size_t n_virtual)
{
    sp_model_info info;
    sp_model_get_info(&info, model);
    *out = info.context_length > n_virtual ? info.context_length - n_virtual : 0;
    if (*out >= 2) return SP_OK; /* a token to read and one to predict */
    return sp_fail(SP_ERR_ARGUMENT, "a prompt of %zu virtual tokens leaves no room in the model's context of %zu; use fewer",
                   n_virtual, info.context_length);
}

/* How rows are read. */
typedef struct reading {
    const sp_task *task;
    const sp_model *model;
    size_t num_tasks; /* 0: whatever a row says of its task */
    size_t room;
} reading;

static sp_status find_task(size_t *out, const sp_row *row, size_t num_tasks)
{
    *out = num_tasks ? row->task_id : 0;
    if (num_tasks == 0 || row->task_id < num_tasks) return SP_OK;
    if (row->task_id == SIZE_MAX)
        return sp_fail(SP_ERR_MISMATCH, "line %zu: its task is no whole number; number tasks from 0", row->line);
    return sp_fail(SP_ERR_MISMATCH, "line %zu: task %zu, and the prompt has %zu, from 0", row->line, row->task_id, num_tasks);
}

/* One row more, or one more that was left out. */
static sp_status add_row(sp_encoded_data *out, size_t *n_skipped, const reading *how, const sp_row *row, const sp_logger *logger)
{
    sp_status st = find_task(&out->tasks[out->n], row, how->num_tasks);
    if (!st) st = sp_task_encode(&out->rows[out->n], how->task, sp_model_tokenizer(how->model), row, how->room);
    if (st == SP_ERR_MEMORY) return st;
    if (st) {
        if (++*n_skipped <= MAX_NAMED) sp_log(logger, SP_LOG_WARNING, "%s; row left out", sp_message());
        return SP_OK;
    }
    out->n_truncated += out->rows[out->n].truncated;
    out->sources[out->n++] = row;
    return SP_OK;
}

sp_status sp_encoded_data_create(sp_encoded_data *out, const sp_task *task, const sp_model *model, const sp_dataset *data,
                                 size_t n_front, size_t num_tasks, const sp_logger *logger)
{
    reading how = {.task = task, .model = model, .num_tasks = num_tasks};
    size_t n = sp_dataset_n_rows(data), n_skipped = 0;
    *out = (sp_encoded_data){0};
    sp_status st = sp_room_behind_prompt(&how.room, model, n_front);
    if (st) return st;
    out->rows = calloc(n, sizeof *out->rows);
    out->sources = calloc(n, sizeof *out->sources);
    out->tasks = calloc(n, sizeof *out->tasks);
    if (!out->rows || !out->sources || !out->tasks) st = sp_fail_no_memory(n * sizeof *out->rows);
    for (size_t i = 0; i < n && !st; i++) st = add_row(out, &n_skipped, &how, sp_dataset_row(data, i), logger);
    if (!st && out->n == 0) st = sp_fail(SP_ERR_FORMAT, "none of %zu rows can be used; the last: %s", n, sp_message());
    if (!st && n_skipped > MAX_NAMED) sp_log(logger, SP_LOG_WARNING, "%zu of %zu rows left out", n_skipped, n);
    if (st) sp_encoded_data_clear(out);
    return st;
}

void sp_encoded_data_clear(sp_encoded_data *data)
{
    for (size_t i = 0; i < data->n; i++) sp_encoded_row_clear(&data->rows[i]);
    free(data->rows);
    free(data->sources);
    free(data->tasks);
    *data = (sp_encoded_data){0};
}

sp_item sp_item_of(const sp_encoded_row *row, size_t candidate)
{
    return (sp_item){row->context, row->candidates[candidate], row->n_context, row->n_candidate[candidate], 0, NULL};
}

sp_item sp_encoded_item(const sp_encoded_data *data, size_t index, size_t candidate)
{
    sp_item item = sp_item_of(&data->rows[index], candidate);
    item.root = data->tasks ? data->tasks[index] : 0;
    return item;
}
