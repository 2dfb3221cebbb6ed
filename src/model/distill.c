/* distill.c: a loss with soft targets: a student's next-token distributions against a teacher's, both from one frozen model.
 *
 * Both sides' logits of a few rows come from one product with the output head, which so is expanded once for both; then each pair
 * of rows is walked through once, in pieces that stay in the first-level cache. Cost: the head's product forward for both, backward
 * for the student; memory: logits of SP_LOGIT_ROWS_AT_ONCE rows of each, and the
 * slopes of a soft cap of the student's. */
#include <string.h>

#include "base/status.h"
#include "model/internal.h"
#include "tensor/kernels.h"

enum { PIECE = 512 }; /* numbers of a row worked on at a time */

/* KL(teacher || student) of two rows of logits. The student's, z_i, become dKL/dz_i = weight (p_student - p_teacher) where
 * `weight` is not NULL. Terms are p (ln p - ln q), not p (z_teacher - z_student): a constant between the logits of both sides,
 * which may be large, would be multiplied with the rounding errors of p. */
static double diverge(float *student, const float *teacher, double lse_student, double lse_teacher, const float *weight, size_t n)
{
    const sp_kernels *kernels = sp_kernels_select();
    float p[PIECE];
    double sum = 0, shift = lse_student - lse_teacher;
    for (size_t first = 0; first < n; first += PIECE) {
        size_t n_piece = n - first < PIECE ? n - first : (size_t)PIECE;
        float *z = student + first;
        const float *z_teacher = teacher + first;
        memcpy(p, z_teacher, n_piece * sizeof *p);
        kernels->exp_scaled(p, (float)lse_teacher, 1, n_piece);
        for (size_t i = 0; i < n_piece; i++) sum += (double)p[i] * ((double)z_teacher[i] - (double)z[i] + shift);
        if (!weight) continue;
        kernels->exp_scaled(z, (float)lse_student, *weight, n_piece);
        for (size_t i = 0; i < n_piece; i++) z[i] -= *weight * p[i];
    }
    return sum;
}

/* logits (2 n, n_vocab): the student's rows first .. first + n, then the teacher's. normed: room for as many hidden rows. slopes:
 * of sp_cap_logits, of the student's. */
static sp_status both_logits(float *logits, float *slopes, float *normed, const sp_engine *student, const sp_engine *teacher,
                             size_t first, size_t n)
{
    sp_model *m = student->model;
    size_t d = m->d_model;
    sp_weight head = sp_weights_get_head(m);
    memcpy(normed, student->normed + first * d, n * d * sizeof *normed);
    memcpy(normed + n * d, teacher->normed + first * d, n * d * sizeof *normed);
    sp_status st = sp_linear(logits, m->n_vocab, normed, d, &head, 2 * n, false, m->compute, student->arena);
    if (st) return st;
    sp_cap_logits(logits, slopes, m, n);
    sp_cap_logits(logits + n * m->n_vocab, NULL, m, n);
    return SP_OK;
}

/* Rows first .. first + n, at most SP_LOGIT_ROWS_AT_ONCE. */
static sp_status distill_part(double *kl, sp_engine *student, const sp_engine *teacher, const float *weights, size_t first,
                              size_t n, float *logits, float *slopes, float *normed, bool with_gradient)
{
    sp_model *m = student->model;
    double lse[2 * SP_LOGIT_ROWS_AT_ONCE];
    sp_status st = both_logits(logits, slopes, normed, student, teacher, first, n);
    if (st) return st;
    sp_log_sums(lse, logits, 2 * n, m->n_vocab);
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < n; r++)
        kl[first + r] = diverge(logits + r * m->n_vocab, logits + (n + r) * m->n_vocab, lse[r], lse[n + r],
                                with_gradient ? &weights[first + r] : NULL, m->n_vocab);
    if (!with_gradient) return sp_check_losses(kl + first, n, student);
    sp_cap_logits_backward(logits, slopes, m, n);
    sp_weight head = sp_weights_get_head(m);
    return sp_linear_backward(student->dnormed + first * m->d_model, m->d_model, logits, m->n_vocab, &head, n, false, m->compute,
                              student->arena);
}

static sp_status distill(double *kl, sp_engine *student, const sp_engine *teacher, const float *weights, bool with_gradient)
{
    const sp_model *m = student->model;
    size_t n_read = student->read_plan.n_queries, rows = n_read < SP_LOGIT_ROWS_AT_ONCE ? n_read : (size_t)SP_LOGIT_ROWS_AT_ONCE;
    if (teacher->model != m || teacher->read_plan.n_queries != n_read)
        return sp_fail(SP_ERR_ARGUMENT, "student and teacher must read equally many rows of one model, not %zu and %zu", n_read,
                       teacher->read_plan.n_queries);
    if (with_gradient && !(student->dnormed = sp_arena_alloc(student->arena, n_read * m->d_model, sizeof(float))))
        return SP_ERR_MEMORY;
    sp_arena_mark mark = sp_arena_get_mark(student->arena);
    float *logits = sp_arena_alloc(student->arena, 2 * rows * m->n_vocab, sizeof *logits);
    float *normed = sp_arena_alloc(student->arena, 2 * rows * m->d_model, sizeof *normed);
    float *slopes = NULL;
    sp_status st = logits && normed ? SP_OK : SP_ERR_MEMORY;
    if (!st && with_gradient) st = sp_allocate_slopes(&slopes, student, rows);
    for (size_t first = 0; first < n_read && !st; first += rows) {
        size_t n = n_read - first < rows ? n_read - first : rows;
        st = distill_part(kl, student, teacher, weights, first, n, logits, slopes, normed, with_gradient);
    }
    sp_arena_reset(student->arena, mark);
    return st;
}

sp_status sp_engine_distill(double *kl, sp_engine *student, const sp_engine *teacher, const float *weights, bool with_gradient)
{
    int n_callers = sp_engine_enter(student);
    return sp_engine_leave(n_callers, distill(kl, student, teacher, weights, with_gradient));
}
