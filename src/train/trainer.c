/* trainer.c: a run's way from and to disk.
 *
 * What a checkpoint holds is enough to go on as if nothing had happened: the order of examples comes from seed and epoch, the
 * learning rate from the step, and no random number is drawn between. */
#include "train/trainer.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "prompt/prompt.h"
#include "train/bound_run.h"
#include "train/checkpoint.h"
#include "train/distill_run.h"
#include "train/run_dir.h"

/* One fixed name: a run that is resumed goes on in the file that it began. TensorBoard wants "tfevents" in it. */
static const char LOG_FILE[] = "log.jsonl", EVALUATIONS_FILE[] = "evaluations.jsonl";
static const char EVENTS_FILE[] = "events.out.tfevents.softprompt";

enum {
    OWN_MATRICES = 4, /* of a checkpoint, at most; the others are the optimiser's */
    MAX_SHAPES = (SP_CHECKPOINT_MAX_MATRICES - OWN_MATRICES) / SP_OPTIMIZER_MATRICES_EACH
};

const sp_logger *sp_trainer_logger(const sp_trainer *trainer)
{
    return trainer->hooks ? trainer->hooks->logger : NULL;
}

/* ---- opening ---- */

/* The task comes from the training rows; the evaluation's labels must be among its own. */
static sp_status resolve_task(sp_trainer *t, const sp_task *task)
{
    sp_task *checked = NULL;
    sp_status st = sp_task_resolve(&t->task, task, t->train_rows ? t->train_rows : t->eval_rows);
    if (!st && t->eval_rows) st = sp_task_resolve(&checked, t->task, t->eval_rows);
    sp_task_free(checked);
    return st;
}

/* As many tasks as the rows name, where nobody said how many. */
static sp_status count_tasks(size_t *num_tasks, const sp_dataset *rows)
{
    for (size_t i = 0; rows && i < sp_dataset_n_rows(rows); i++) {
        const sp_row *row = sp_dataset_row(rows, i);
        if (row->task_id == SIZE_MAX) continue; /* left out by name, later */
        if (row->task_id >= SP_MAX_TASKS)
            return sp_fail(SP_ERR_ARGUMENT, "line %zu: task %zu: a prompt has at most %d; is the column what you mean?", row->line,
                           row->task_id, SP_MAX_TASKS);
        if (row->task_id >= *num_tasks) *num_tasks = row->task_id + 1;
    }
    return SP_OK;
}

/* What of the prompt's options the data decide. */
static sp_status complete_prompt_options(sp_trainer *t)
{
    sp_prompt_options *o = &t->options.prompt;
    const bool one_task = o->init_prompt && o->source_init != SP_SOURCE_SHARED;
    if (o->num_tasks > 1 && t->options.teacher_context)
        return sp_fail(SP_ERR_ARGUMENT, "a prompt of %zu tasks, and one context to stand for; use num_tasks 1", o->num_tasks);
    if (o->method == SP_METHOD_MULTITASK && o->num_tasks == 0) {
        o->num_tasks = 1;
        return one_task || t->options.teacher_context ? SP_OK : count_tasks(&o->num_tasks, t->train_rows);
    }
    if (t->options.cpt_examples == 0) return SP_OK;
    if (!t->train_rows) return sp_fail(SP_ERR_ARGUMENT, "cpt_examples are rows of training data, and there are none; give a text");
    sp_status st = sp_cpt_examples(&t->cpt_token_ids, &t->cpt_tokens_type_mask, &o->n_cpt_tokens, t->model, t->task, t->train_rows,
                                   t->options.cpt_examples, o->seed);
    o->cpt_token_ids = t->cpt_token_ids;
    o->cpt_tokens_type_mask = t->cpt_tokens_type_mask;
    return st;
}

static sp_status make_optimizer(sp_trainer *t)
{
    sp_weight_shape shapes[MAX_SHAPES];
    size_t n = sp_prompt_n_shapes(t->prompt);
    if (n > MAX_SHAPES)
        return sp_fail(SP_ERR_ARGUMENT, "%zu matrices to train, of which a checkpoint holds %d; use fewer layers", n, MAX_SHAPES);
    for (size_t i = 0; i < n; i++) shapes[i] = sp_prompt_shape(t->prompt, i);
    return sp_optimizer_create(&t->optimizer, t->options.optimizer, shapes, n, t->options.weight_decay);
}

static sp_status make_prompt(sp_trainer *t)
{
    sp_status st = complete_prompt_options(t);
    if (!st) st = sp_prompt_create(&t->prompt, t->model, &t->options.prompt);
    if (!st) st = sp_prompt_set_task(t->prompt, t->task);
    if (!st) st = sp_roots_of_prompt(&t->roots, &t->n_roots, t->prompt);
    if (st) return st;
    t->n_weights = sp_prompt_n_weights(t->prompt);
    t->weights = sp_prompt_weights(t->prompt);
    t->best = malloc(t->n_weights * sizeof *t->best);
    t->gradient = malloc(t->n_weights * sizeof *t->gradient);
    t->d_rows = malloc(sp_prompt_n_row_values(t->prompt) * sizeof *t->d_rows);
    t->n_front = sp_prompt_text_position(t->prompt);
    if (!t->best || !t->gradient || !t->d_rows) return sp_fail_no_memory(t->n_weights * sizeof *t->best);
    memcpy(t->best, t->weights, t->n_weights * sizeof *t->best);
    return make_optimizer(t);
}

static sp_status take_directory(bool *resumed, sp_trainer *t)
{
    const sp_run_inputs inputs = {&t->options, t->task, t->model, t->train_rows, t->eval_rows};
    json_t *settings;
    sp_status st = sp_settings_create(&settings, &inputs);
    if (!st) st = sp_settings_hash(t->owner, settings);
    if (!st) st = sp_make_directory(t->dir);
    if (!st) st = sp_lock_directory(&t->lock, t->dir);
    if (!st) st = sp_run_dir_open(resumed, t->dir, settings, t->options.resume, t->options.overwrite, sp_trainer_logger(t));
    json_decref(settings);
    return st;
}

static sp_status encode_rows(sp_encoded_data *out, const sp_trainer *t, const sp_dataset *rows, const char *what)
{
    const bool tasks_matter = t->options.prompt.method == SP_METHOD_MULTITASK;
    sp_status st =
        sp_encoded_data_create(out, t->task, t->model, rows, t->n_front, tasks_matter ? t->n_roots : 0, sp_trainer_logger(t));
    if (!st && out->n_truncated)
        sp_log(sp_trainer_logger(t), SP_LOG_WARNING, "%zu of %zu %s rows were too long and lost their beginning", out->n_truncated,
               out->n, what);
    return st;
}

/* Everything that a checkpoint holds beside the state. */
static size_t list_matrices(sp_named_matrix *out, sp_trainer *t)
{
    out[0] = (sp_named_matrix){"weights", 1, t->n_weights, t->weights};
    out[1] = (sp_named_matrix){"best_weights", 1, t->n_weights, t->best};
    size_t n = 2;
    if (t->bound) {
        const size_t n_heads = sp_key_bound_n_heads(t->bound);
        if (!t->penalizer)
            out[n++] = (sp_named_matrix){"key_directions", n_heads * t->bound->rank, t->bound->d_head, t->bound->directions};
        out[n++] = (sp_named_matrix){"query_norms", 1, n_heads, t->bound->query_norms};
    }
    return n + sp_optimizer_matrices(out + n, t->optimizer);
}

static sp_status load_checkpoint(sp_trainer *t)
{
    sp_named_matrix matrices[SP_CHECKPOINT_MAX_MATRICES];
    size_t n = list_matrices(matrices, t);
    char *text;
    sp_status st = sp_checkpoint_load(&text, &t->saved_step, t->dir, t->owner, matrices, n, sp_trainer_logger(t));
    if (!st && text) st = sp_train_state_parse(&t->state, text);
    free(text);
    return st ? st : sp_prompt_update(t->prompt);
}

sp_status sp_trainer_open(sp_trainer *trainer, sp_model *model, const sp_dataset *train, const sp_dataset *eval, const char *dir,
                          const sp_train_options *options, const sp_hooks *hooks)
{
    *trainer = (sp_trainer){.model = model,
                            .train_rows = train,
                            .eval_rows = eval,
                            .dir = dir,
                            .hooks = hooks,
                            .order_epoch = SIZE_MAX,
                            .lock = -1,
                            .begin = sp_seconds()};
    bool resumed = false;
    sp_train_options wanted = *options;
    size_t n_rows = 0;
    sp_status st = sp_distill_run_resolve(&n_rows, &wanted, train, eval);
    if (!st) st = sp_train_options_resolve(&trainer->options, &wanted, n_rows);
    if (!st) st = resolve_task(trainer, &options->task);
    if (!st) st = make_prompt(trainer);
    if (!st) st = sp_bound_run_open(trainer);
    if (!st && options->teacher_context) st = sp_distill_run_open(trainer);
    if (!st && train) st = encode_rows(&trainer->train, trainer, train, "training");
    if (!st && eval) st = encode_rows(&trainer->eval, trainer, eval, "evaluation");
    if (!st && eval) trainer->judged = &trainer->eval;
    if (!st && trainer->distiller) st = sp_distill_run_take_rows(trainer);
    if (!st) st = take_directory(&resumed, trainer); /* last: what cannot be trained leaves nothing behind */
    return st || !resumed ? st : load_checkpoint(trainer);
}

/* ---- preparing ---- */

static sp_status open_logs(sp_trainer *t)
{
    char *log = sp_path_join(t->dir, LOG_FILE), *evaluations = sp_path_join(t->dir, EVALUATIONS_FILE);
    char *events = sp_path_join(t->dir, EVENTS_FILE);
    sp_status st = log && evaluations && events ? SP_OK : SP_ERR_MEMORY;
    if (!st) st = sp_run_log_open(&t->log, log, t->state.log_bytes);
    if (!st && t->judged) st = sp_run_log_open(&t->evaluations, evaluations, t->state.evaluation_bytes);
    if (!st) st = sp_events_open(&t->events, events, t->state.event_bytes, (double)time(NULL));
    free(log);
    free(evaluations);
    free(events);
    return st;
}

sp_status sp_trainer_prepare(sp_trainer *t)
{
    size_t n_examples = t->options.batch_size * t->options.gradient_accumulation_steps;
    sp_status st = t->distiller ? sp_distill_run_prepare(t) : sp_scorer_create(&t->scorer, t->model);
    if (st) return st;
    t->order = calloc(t->train.n, sizeof *t->order);
    t->items = calloc(n_examples, sizeof *t->items);
    if (!t->order || !t->items) return sp_fail_no_memory(t->train.n * sizeof *t->order + n_examples * sizeof *t->items);
    st = sp_bound_run_prepare(t);
    return st ? st : open_logs(t);
}

/* ---- saving ---- */

static sp_status write_checkpoint(sp_trainer *t)
{
    sp_named_matrix matrices[SP_CHECKPOINT_MAX_MATRICES];
    size_t n = list_matrices(matrices, t);
    char *text;
    sp_status st = sp_train_state_print(&text, &t->state);
    if (st) return st;
    bool again = t->saved_step == t->state.step; /* the last step once more, now finished */
    uint64_t previous = again ? t->before_saved_step : t->saved_step;
    const sp_checkpoint checkpoint = {t->state.step, t->owner, text, matrices, n};
    st = sp_checkpoint_save(t->dir, &checkpoint, previous);
    free(text);
    if (st) return st;
    t->before_saved_step = previous;
    t->saved_step = t->state.step;
    return SP_OK;
}

sp_status sp_trainer_save(sp_trainer *t)
{
    sp_status st = sp_run_log_sync(t->log);
    if (!st && t->evaluations) st = sp_run_log_sync(t->evaluations);
    if (!st) st = sp_events_sync(t->events);
    t->state.log_bytes = sp_run_log_offset(t->log);
    t->state.evaluation_bytes = t->evaluations ? sp_run_log_offset(t->evaluations) : 0;
    t->state.event_bytes = sp_events_offset(t->events);
    if (!st) st = write_checkpoint(t);
    if (!st || t->saved_step == 0) return st;
    return sp_fail(st, "%s; remedy it and --resume: the checkpoint of step %zu is good", sp_message(), (size_t)t->saved_step);
}

void sp_trainer_clear(sp_trainer *t)
{
    sp_run_log_close(t->log);
    sp_run_log_close(t->evaluations);
    sp_unlock(t->lock);
    sp_events_close(t->events);
    sp_scorer_free(t->scorer);
    sp_distiller_free(t->distiller);
    sp_bound_run_clear(t);
    sp_optimizer_free(t->optimizer);
    sp_prompt_free(t->prompt);
    sp_encoded_data_clear(&t->train);
    sp_encoded_data_clear(&t->eval);
    sp_task_free(t->task);
    free(t->best);
    free(t->gradient);
    free(t->d_rows);
    free(t->roots);
    sp_free(t->cpt_token_ids);
    sp_free(t->cpt_tokens_type_mask);
    free(t->order);
    free(t->items);
    *t = (sp_trainer){0};
}
