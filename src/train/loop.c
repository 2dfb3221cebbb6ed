/* loop.c: sp_train.
 *
 * A step: gather the examples, one packed forward and backward (more where the batch is accumulated), clip, move the prompt, write
 * the log. Everything that a step depends on is in the checkpoint or follows from settings and step number, so a run that is
 * killed and resumed goes through the same states, bit for bit, as one that is not. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/rng.h"
#include "base/status.h"
#include "prompt/prompt.h"
#include "train/bound_run.h"
#include "train/distill_run.h"
#include "train/evaluate.h"
#include "train/loss.h"
#include "train/schedule.h"
#include "train/trainer.h"

static const uint64_t ORDER_STREAM = 0x6f72646572000000; /* epoch e is ordered by stream ORDER_STREAM + e of the run's seed */
enum { EVAL_BATCH_SIZE = 32 };

/* ---- one step ---- */

/* The row that is the n-th of the run: epoch after epoch, each in an order of its own; batches straddle epochs. */
static size_t row_at(sp_trainer *t, uint64_t n)
{
    size_t epoch = (size_t)(n / t->train.n);
    if (epoch != t->order_epoch) {
        sp_rng rng = sp_rng_seed(t->options.seed, ORDER_STREAM + epoch);
        sp_rng_permute(&rng, t->order, t->train.n);
        t->order_epoch = epoch;
    }
    return t->order[n % t->train.n];
}

static uint64_t gather_items(sp_trainer *t, size_t n_examples)
{
    uint64_t n_tokens = 0;
    for (size_t i = 0; i < n_examples; i++) {
        const size_t index = row_at(t, t->state.step * n_examples + i);
        t->items[i] = sp_encoded_item(&t->train, index, t->train.rows[index].right);
        n_tokens += t->items[i].n_context + t->items[i].n_answer;
    }
    return n_tokens;
}

static sp_status check_finite(const sp_trainer *t, double loss, double norm, double rate)
{
    if (isfinite(loss) && isfinite(norm)) return SP_OK;
    char resume[64] = "nothing was saved yet";
    if (t->saved_step) snprintf(resume, sizeof resume, "the checkpoint of step %zu is good", (size_t)t->saved_step);
    return sp_fail(SP_ERR_UNSUPPORTED,
                   "step %zu: loss %g, gradient norm %g: the run has left the numbers; train with a learning rate "
                   "below %g, or check the model (%s)",
                   (size_t)t->state.step + 1, loss, norm, rate, resume);
}

static sp_status log_step(sp_trainer *t, const sp_run_log_step *row)
{
    double now = (double)time(NULL);
    sp_status st = sp_run_log_add_step(t->log, row);
    if (!st) st = sp_events_scalar(t->events, "train/loss", row->step, row->loss, now);
    if (!st) st = sp_events_scalar(t->events, "train/learning_rate", row->step, row->learning_rate, now);
    if (!st) st = sp_events_scalar(t->events, "train/grad_norm", row->step, row->grad_norm, now);
    if (!st && row->has_penalty) st = sp_events_scalar(t->events, "train/penalty", row->step, row->penalty, now);
    return st;
}

/* Of the step's items, and its gradient by the rows. */
static sp_status compute_loss(double *loss, sp_trainer *t, size_t n_examples)
{
    memset(t->d_rows, 0, sp_prompt_n_row_values(t->prompt) * sizeof *t->d_rows);
    if (t->distiller) {
        sp_distiller_set_prompt(t->distiller, t->prompt);
        return sp_distiller_loss(loss, t->d_rows, t->distiller, t->items, n_examples, t->options.batch_size);
    }
    sp_scorer_set_roots(t->scorer, t->roots, t->n_roots);
    return sp_mean_loss(loss, t->d_rows, t->scorer, t->items, n_examples, t->options.batch_size);
}

static sp_status take_step(sp_trainer *t)
{
    const sp_train_options *o = &t->options;
    double begin = sp_seconds(), loss, penalty, norm = 0;
    double rate = o->learning_rate * sp_schedule_factor(o->schedule, t->state.step, o->warmup_steps, o->steps);
    size_t n_examples = o->batch_size * o->gradient_accumulation_steps;
    uint64_t n_tokens = gather_items(t, n_examples);
    sp_status st = compute_loss(&loss, t, n_examples);
    if (!st) st = sp_bound_run_penalize(&penalty, t, n_examples);
    if (!st) st = sp_prompt_backward(t->gradient, t->prompt, t->d_rows);
    if (st) return st;
    norm = sp_gradient_clip(t->gradient, t->n_weights, o->max_grad_norm);
    if ((st = check_finite(t, loss, norm, o->learning_rate))) return st;
    sp_optimizer_step(t->optimizer, t->weights, t->gradient, rate, t->state.step + 1);
    if ((st = sp_prompt_update(t->prompt)) || (st = sp_bound_run_step(t))) return st;
    if (t->state.step++ == 0) t->state.first_loss = loss;
    t->state.last_loss = loss;
    t->n_rows += n_examples;
    t->n_tokens += n_tokens;
    const sp_run_log_step row = {.step = t->state.step,
                                 .loss = loss,
                                 .learning_rate = rate,
                                 .grad_norm = norm,
                                 .has_penalty = t->penalizer != NULL,
                                 .penalty = penalty,
                                 .seconds = sp_seconds() - begin,
                                 .examples = n_examples,
                                 .tokens = n_tokens};
    return log_step(t, &row);
}

/* ---- evaluation during training ---- */

static bool evaluation_is_due(const sp_trainer *t)
{
    const sp_train_state *s = &t->state;
    if (!t->judged || s->step == 0 || t->evaluated_step == s->step) return false;
    return s->step == t->options.steps || (t->options.eval_every && s->step % t->options.eval_every == 0);
}

static sp_status log_evaluation(sp_trainer *t, const sp_evaluation *evaluation)
{
    double now = (double)time(NULL);
    sp_status st = sp_run_log_add_evaluation(t->evaluations, t->state.step, evaluation);
    if (!st) st = sp_events_scalar(t->events, "eval/loss", t->state.step, evaluation->loss, now);
    if (!st && evaluation->has_accuracy)
        st = sp_events_scalar(t->events, "eval/accuracy", t->state.step, evaluation->accuracy, now);
    if (!st && evaluation->has_exact_match)
        st = sp_events_scalar(t->events, "eval/exact_match", t->state.step, evaluation->exact_match, now);
    return st;
}

static sp_status judge(sp_evaluation *evaluation, sp_trainer *t)
{
    const sp_evaluation_inputs inputs = {.task = t->task, .data = t->judged, .batch_size = EVAL_BATCH_SIZE};
    if (t->distiller) {
        sp_distiller_set_prompt(t->distiller, t->prompt);
        return sp_distiller_evaluate(evaluation, t->distiller, t->judged, EVAL_BATCH_SIZE, t->hooks);
    }
    sp_scorer_set_roots(t->scorer, t->roots, t->n_roots);
    return sp_evaluate_encoded(evaluation, t->scorer, &inputs, t->hooks);
}

static sp_status evaluate(sp_trainer *t)
{
    sp_train_state *s = &t->state;
    sp_evaluation evaluation;
    sp_status st = sp_bound_run_settle(t);
    if (!st) st = judge(&evaluation, t);
    if (!st) st = log_evaluation(t, &evaluation);
    if (st) return st;
    t->evaluated_step = s->step;
    if (s->best_step == 0 || sp_evaluation_is_better(&evaluation, &s->best)) {
        s->best = evaluation;
        s->best_step = s->step;
        s->n_without_gain = 0;
        memcpy(t->best, t->weights, t->n_weights * sizeof *t->best);
    } else {
        s->n_without_gain++;
    }
    s->stopped_early = t->options.early_stopping_patience && s->n_without_gain >= t->options.early_stopping_patience;
    return SP_OK;
}

/* ---- the run ---- */

static void report_progress(const sp_trainer *t, uint64_t first_step)
{
    if (!t->hooks || !t->hooks->progress) return;
    double seconds = sp_seconds() - t->begin;
    const sp_progress progress = {.what = "train",
                                  .done = (size_t)t->state.step,
                                  .total = t->options.steps,
                                  .seconds = seconds,
                                  .rows_per_second = seconds > 0 && t->state.step > first_step ? (double)t->n_rows / seconds : 0,
                                  .loss = t->state.step ? t->state.last_loss : NAN};
    t->hooks->progress(t->hooks->user, &progress);
}

static bool is_stopped(const sp_trainer *t)
{
    return t->hooks && t->hooks->stop && *t->hooks->stop;
}

static sp_status save_and_stop(sp_trainer *t)
{
    sp_status st = t->state.step == t->saved_step ? SP_OK : sp_trainer_save(t);
    return st ? st
              : sp_fail(SP_ERR_STOPPED, "%s: stopped after step %zu of %zu, which is saved; go on with --resume", t->dir,
                        (size_t)t->state.step, t->options.steps);
}

/* An evaluation begins by moving bounded keys, and moving them twice is not moving them once: a stop in the midst of it must find
 * the checkpoint as it was before. */
static sp_status save_unsettled(sp_trainer *t)
{
    return t->bound && !t->penalizer && t->state.step != t->saved_step ? sp_trainer_save(t) : SP_OK;
}

/* Until the last step or the end of patience. The checkpoint of a step stands before its evaluation: resuming repeats that. */
static sp_status run_steps(sp_trainer *t)
{
    uint64_t first_step = t->state.step;
    if (t->distiller && first_step == 0) {
        sp_status st = sp_distill_run_start(t);
        if (st) return st;
    }
    report_progress(t, first_step);
    for (;;) {
        sp_status st = evaluation_is_due(t) ? save_unsettled(t) : SP_OK;
        if (!st && evaluation_is_due(t)) st = evaluate(t);
        if (st == SP_ERR_STOPPED) return save_and_stop(t);
        if (st || t->state.stopped_early || t->state.step >= t->options.steps) return st;
        if ((st = take_step(t))) return st;
        report_progress(t, first_step);
        if (is_stopped(t)) return save_and_stop(t);
        if (t->state.step % t->options.save_every == 0 && (st = sp_trainer_save(t))) return st;
    }
}

/* The adapter first, then the checkpoint that says so: killed in between, the last steps are done again, to the same bytes. */
static sp_status finish(sp_trainer *t)
{
    if (t->state.best_step) memcpy(t->weights, t->best, t->n_weights * sizeof *t->best);
    sp_status st = sp_prompt_update(t->prompt);
    if (!st) st = sp_bound_run_finish(t);
    memcpy(t->best, t->weights, t->n_weights * sizeof *t->best);
    if (!st) st = sp_prompt_save(t->prompt, t->dir);
    t->state.finished = true;
    return st ? st : sp_trainer_save(t);
}

static void fill_report(sp_train_report *report, const sp_trainer *t)
{
    const sp_train_state *s = &t->state;
    report->steps = (size_t)s->step;
    report->best_step = (size_t)(s->best_step ? s->best_step : s->step);
    report->stopped_early = s->stopped_early;
    report->first_loss = s->first_loss;
    report->last_loss = s->last_loss;
    report->seconds = sp_seconds() - t->begin;
    report->rows = t->n_rows;
    report->tokens = t->n_tokens;
    report->has_evaluation = s->best_step != 0;
    report->evaluation = s->best;
    if (t->distiller) sp_distill_run_report(report, t);
    report->has_key_bound = t->bound && s->finished;
    report->key_bound = s->key_bound;
}

sp_status sp_train(sp_train_report *report, sp_model *model, const sp_dataset *train, const sp_dataset *eval, const char *dir,
                   const sp_train_options *options, const sp_hooks *hooks)
{
    static const sp_train_options defaults;
    sp_trainer t = {0};
    *report = (sp_train_report){0};
    sp_status st = sp_trainer_open(&t, model, train, eval, dir, options ? options : &defaults, hooks);
    report->resumed_from = (size_t)t.state.step;
    report->already_finished = t.state.finished;
    if (!st && !t.state.finished) {
        st = sp_trainer_prepare(&t);
        if (!st) st = run_steps(&t);
        if (!st) st = finish(&t);
    }
    fill_report(report, &t);
    sp_trainer_clear(&t);
    return st;
}
