/* ensemble.c: several prompts as one language model.
 *
 * Its next token is as likely as the geometric mean of what the prompts say, made to sum to one: ln p(v) = mean_k ln p_k(v) - ln z.
 * Each ln p_k is k's logits less a number that v does not change, so this is the softmax of the mean of their logits. That mean is
 * taken of the logits and not of the rows before the head: of a head with a soft cap the two differ. */
#include <assert.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"
#include "model/internal.h"

sp_status sp_engine_group_reads(sp_engine *engine, const size_t *reads, size_t group_size, size_t n_groups)
{
    size_t d = engine->model->d_model;
    float *grouped = sp_arena_alloc(engine->arena, n_groups * group_size * d, sizeof *grouped);
    if (!grouped) return SP_ERR_MEMORY;
    for (size_t i = 0; i < n_groups * group_size; i++) memcpy(grouped + i * d, engine->normed + reads[i] * d, d * sizeof *grouped);
    engine->normed = grouped;
    engine->group_size = group_size;
    engine->n_groups = n_groups;
    return SP_OK;
}

/* out (n, n_vocab): the means of logits (n, k, n_vocab). */
static void average(float *out, const float *logits, size_t n, size_t k, size_t n_vocab)
{
#pragma omp parallel for schedule(static) if (n > 1)
    for (size_t g = 0; g < n; g++) {
        float *mean = out + g * n_vocab;
        const float *each = logits + g * k * n_vocab;
        memcpy(mean, each, n_vocab * sizeof *mean);
        for (size_t i = 1; i < k; i++)
            for (size_t v = 0; v < n_vocab; v++) mean[v] += each[i * n_vocab + v];
        for (size_t v = 0; v < n_vocab; v++) mean[v] /= (float)k;
    }
}

static sp_status group_logits(float *out, sp_engine *engine, size_t first, size_t n)
{
    size_t k = engine->group_size, n_vocab = engine->model->n_vocab, at_once = sp_larger(SP_LOGIT_ROWS_AT_ONCE / k, 1);
    sp_arena_mark mark = sp_arena_get_mark(engine->arena);
    float *logits = sp_arena_alloc(engine->arena, sp_smaller(at_once, n) * k * n_vocab, sizeof *logits);
    sp_status st = logits ? SP_OK : SP_ERR_MEMORY;
    for (size_t done = 0; done < n && !st; done += at_once) {
        size_t part = sp_smaller(at_once, n - done);
        st = sp_engine_logits(logits, engine, (first + done) * k, part * k);
        if (!st) average(out + done * n_vocab, logits, part, k, n_vocab);
    }
    sp_arena_reset(engine->arena, mark);
    return st;
}

sp_status sp_engine_group_logits(float *out, sp_engine *engine, size_t first, size_t n)
{
    assert(engine->group_size && first + n <= engine->n_groups);
    int n_callers = sp_engine_enter(engine);
    return sp_engine_leave(n_callers, group_logits(out, engine, first, n));
}

/* The targets of groups first .. first + n, at most SP_LOGIT_ROWS_AT_ONCE of them. */
static sp_status cross_entropy_part(double *nll, sp_engine *engine, const sp_target *targets, size_t n_targets, size_t first,
                                    size_t n, float *logits)
{
    size_t n_vocab = engine->model->n_vocab;
    double lse[SP_LOGIT_ROWS_AT_ONCE];
    sp_status st = group_logits(logits, engine, first, n);
    if (st) return st;
    sp_log_sums(lse, logits, n, n_vocab);
    for (size_t t = 0; t < n_targets; t++) {
        size_t group = targets[t].read - first;
        nll[t] = lse[group] - logits[group * n_vocab + (size_t)targets[t].token];
    }
    return sp_check_losses(nll, n_targets, engine);
}

static sp_status cross_entropy(double *nll, sp_engine *engine, const sp_target *targets, size_t n_targets)
{
    size_t n_groups = engine->n_groups, n_vocab = engine->model->n_vocab, rows = sp_smaller(n_groups, SP_LOGIT_ROWS_AT_ONCE);
    sp_status st = sp_check_targets(engine, targets, n_targets, n_groups);
    if (st) return st;
    sp_arena_mark mark = sp_arena_get_mark(engine->arena);
    float *logits = sp_arena_alloc(engine->arena, rows * n_vocab, sizeof *logits);
    if (!logits) return SP_ERR_MEMORY;
    for (size_t first = 0, t = 0; first < n_groups && !st; first += rows) {
        size_t n = sp_smaller(rows, n_groups - first), end = t;
        while (end < n_targets && targets[end].read < first + n) end++;
        if (end > t) st = cross_entropy_part(nll + t, engine, targets + t, end - t, first, n, logits);
        t = end;
    }
    sp_arena_reset(engine->arena, mark);
    return st;
}

sp_status sp_engine_group_cross_entropy(double *nll, sp_engine *engine, const sp_target *targets, size_t n_targets)
{
    assert(engine->group_size);
    int n_callers = sp_engine_enter(engine);
    return sp_engine_leave(n_callers, cross_entropy(nll, engine, targets, n_targets));
}
