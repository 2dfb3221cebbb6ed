/* distill_run.c: a run that distils. Queries that were sampled are kept in the run's directory: they follow from the settings, but
 * sampling them again would take as long as many steps. */
#include "train/distill_run.h"

#include <stdlib.h>

#include "base/file.h"
#include "base/status.h"
#include "train/distill.h"
#include "train/queries.h"

static const char QUERIES_FILE[] = "queries.jsonl";
enum { EVAL_BATCH_SIZE = 32 };

/* ---- options ---- */

static sp_status check_options(const sp_train_options *o, const sp_dataset *train)
{
    if (!train && !o->teacher_context)
        return sp_fail(SP_ERR_ARGUMENT,
                       "nothing to train on: give rows of data, or a teacher's context, of which queries are sampled");
    if (o->num_queries == 0 && o->query_length == 0) return SP_OK;
    if (!o->teacher_context || train)
        return sp_fail(SP_ERR_ARGUMENT,
                       "num_queries and query_length are of queries that are sampled, behind a teacher's context and "
                       "where no data are given");
    if (o->query_length != 1 && o->query_length <= UINT32_MAX && o->num_queries <= UINT32_MAX) return SP_OK;
    return sp_fail(SP_ERR_ARGUMENT, "%zu queries of %zu tokens: give 2 tokens or more, and at most %u of each", o->num_queries,
                   o->query_length, UINT32_MAX);
}

sp_status sp_distill_run_resolve(size_t *n_rows, sp_train_options *o, const sp_dataset *train, const sp_dataset *eval)
{
    sp_status st = check_options(o, train);
    if (st) return st;
    if (!train && o->num_queries == 0) o->num_queries = SP_DEFAULT_NUM_QUERIES;
    if (!train && o->query_length == 0) o->query_length = SP_DEFAULT_QUERY_LENGTH;
    *n_rows = train ? sp_dataset_n_rows(train) : o->num_queries;
    if (o->teacher_context && !eval) *n_rows -= sp_queries_n_held_out(*n_rows);
    return SP_OK;
}

/* ---- the teacher ---- */

/* A sampled query stands behind the text and behind the prompt, there with the BOS that begins it. */
static sp_status check_room(const sp_trainer *t)
{
    sp_model_info info;
    sp_model_get_info(&info, t->model);
    size_t n_teacher = sp_teacher_n_context(sp_distiller_teacher(t->distiller));
    size_t n_student = sp_prompt_num_virtual_tokens(t->prompt) + sp_tokenizer_adds_bos(sp_model_tokenizer(t->model));
    size_t n_front = n_teacher > n_student ? n_teacher : n_student;
    if (t->train_rows || n_front + t->options.query_length <= info.context_length) return SP_OK;
    return sp_fail(
        SP_ERR_ARGUMENT,
        "queries of %zu tokens behind a context of %zu and a prompt of %zu do not fit the model's context of %zu; shorten "
        "one of them",
        t->options.query_length, n_teacher, sp_prompt_num_virtual_tokens(t->prompt), info.context_length);
}

sp_status sp_distill_run_open(sp_trainer *t)
{
    int32_t *context;
    size_t n;
    sp_status st = sp_context_tokenize(&context, &n, t->model, t->options.teacher_context);
    if (!st) st = sp_distiller_create(&t->distiller, t->model, context, n);
    free(context);
    if (!st) st = check_room(t);
    t->n_front = n > sp_prompt_num_virtual_tokens(t->prompt) ? n : sp_prompt_num_virtual_tokens(t->prompt);
    return st;
}

/* ---- queries ---- */

static sp_status hold_out(sp_trainer *t)
{
    sp_status st = t->eval_rows ? SP_OK : sp_queries_hold_out(&t->eval, &t->train);
    t->judged = t->eval.n ? &t->eval : &t->train;
    return st;
}

sp_status sp_distill_run_take_rows(sp_trainer *t)
{
    sp_status st = t->train_rows ? sp_queries_of_rows(&t->train, t->model, sp_trainer_logger(t)) : SP_OK;
    if (!st && t->eval_rows) st = sp_queries_of_rows(&t->eval, t->model, sp_trainer_logger(t));
    return st || !t->train_rows ? st : hold_out(t);
}

/* By a teacher of its own: sampling computes the text's last row again, alone, to other last digits, which a run that is resumed
 * with the queries' file would not have. And its keys of all continuations take memory that steps do not need. */
static sp_status sample(sp_trainer *t)
{
    const sp_train_options *o = &t->options;
    sp_teacher *teacher = NULL;
    int32_t *context;
    size_t n;
    sp_status st = sp_context_tokenize(&context, &n, t->model, o->teacher_context);
    if (!st) st = sp_teacher_create(&teacher, t->model, context, n);
    if (!st) st = sp_queries_sample(&t->train, teacher, t->model, o->num_queries, o->query_length, o->seed, t->hooks);
    sp_teacher_free(teacher);
    free(context);
    return st;
}

sp_status sp_distill_run_prepare(sp_trainer *t)
{
    if (t->train_rows) return SP_OK;
    const sp_train_options *o = &t->options;
    char *path = sp_path_join(t->dir, QUERIES_FILE);
    if (!path) return SP_ERR_MEMORY;
    sp_status st;
    if (sp_path_exists(path)) {
        st = sp_queries_load(&t->train, t->model, path, o->num_queries, o->query_length);
    } else {
        st = sample(t);
        if (!st) st = sp_queries_save(&t->train, t->model, path);
    }
    free(path);
    return st ? st : hold_out(t);
}

/* ---- how far ---- */

static sp_status measure(double *kl, sp_trainer *t, const sp_prompt *prompt)
{
    sp_evaluation evaluation;
    sp_distiller_set_prompt(t->distiller, prompt);
    sp_status st = sp_distiller_evaluate(&evaluation, t->distiller, t->judged, EVAL_BATCH_SIZE, t->hooks);
    *kl = evaluation.loss;
    return st;
}

sp_status sp_distill_run_start(sp_trainer *t)
{
    sp_status st = measure(&t->state.kl_without_prompt, t, NULL);
    return st ? st : measure(&t->state.kl_at_start, t, t->prompt);
}

void sp_distill_run_report(sp_train_report *report, const sp_trainer *t)
{
    const sp_train_state *s = &t->state;
    report->has_distillation = s->best_step != 0;
    report->distillation = (sp_distillation){
        .n_context = sp_teacher_n_context(sp_distiller_teacher(t->distiller)),
        .n_queries = s->best.n,
        .are_held_out = t->eval_rows || sp_queries_n_held_out(t->train_rows ? t->train.n + t->eval.n : t->options.num_queries) > 0,
        .kl_without_prompt = s->kl_without_prompt,
        .kl_at_start = s->kl_at_start,
        .kl = s->best.loss,
    };
}
