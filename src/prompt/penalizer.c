/* penalizer.c: rows -> keys -> penalty, and back.
 *
 * Keys of virtual tokens depend on no text: they stand in front of it. So a pass over them alone has them all, once for each step,
 * however many passes its examples take, and whatever the loss is. Everything of a head is computed in f64. */
#include "prompt/penalizer.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "model/engine.h"
#include "prompt/prompt.h"

struct sp_penalizer {
    sp_engine *engine; /* NULL, as keys_values and tree's prompt: rows are keys and values */
    sp_tree tree;
    float *keys_values; /* (n_keys, width) */
    float *d_keys_values;
    double *deviations; /* (n_keys, d_head) of one head */
    size_t n_keys, width, d_head;
};

static sp_status make_engine(sp_penalizer *p, sp_model *model)
{
    size_t run;
    p->keys_values = malloc(p->n_keys * p->width * sizeof *p->keys_values);
    p->d_keys_values = malloc(p->n_keys * p->width * sizeof *p->d_keys_values);
    if (!p->keys_values || !p->d_keys_values) return sp_fail_no_memory(p->n_keys * p->width * sizeof *p->keys_values);
    sp_status st = sp_engine_create(&p->engine, model);
    return st ? st : sp_tree_add_prompt(&run, &p->tree, p->n_keys, p->n_keys);
}

sp_status sp_penalizer_create(sp_penalizer **out, sp_model *model, const sp_prompt *prompt)
{
    sp_model_info info;
    sp_model_get_info(&info, model);
    sp_penalizer *p = *out = calloc(1, sizeof *p);
    if (!p) return sp_fail_no_memory(sizeof *p);
    p->n_keys = sp_prompt_num_virtual_tokens(prompt);
    p->width = 2 * info.n_layer * info.n_head_kv * info.d_head;
    p->d_head = info.d_head;
    p->deviations = malloc(p->n_keys * p->d_head * sizeof *p->deviations);
    sp_status st = p->deviations ? SP_OK : sp_fail_no_memory(p->n_keys * p->d_head * sizeof *p->deviations);
    if (!st && sp_prompt_d_model(prompt)) st = make_engine(p, model);
    if (!st) return SP_OK;
    sp_penalizer_free(p);
    *out = NULL;
    return st;
}

void sp_penalizer_free(sp_penalizer *penalizer)
{
    if (!penalizer) return;
    sp_tree_free(&penalizer->tree);
    sp_engine_free(penalizer->engine);
    free(penalizer->keys_values);
    free(penalizer->d_keys_values);
    free(penalizer->deviations);
    free(penalizer);
}

static sp_status compute_keys_values(sp_penalizer *p, const float *rows, bool keep)
{
    const sp_pass pass = {.tree = &p->tree, .prompt = rows, .keep_for_backward = keep};
    sp_status st = sp_engine_forward(p->engine, &pass);
    if (!st) sp_engine_get_keys_values(p->keys_values, p->engine, p->n_keys);
    return st;
}

sp_status sp_penalizer_keys_values(const float **keys_values, sp_penalizer *penalizer, const float *rows)
{
    *keys_values = penalizer->engine ? penalizer->keys_values : rows;
    return penalizer->engine ? compute_keys_values(penalizer, rows, false) : SP_OK;
}

/* ---- one head ------------------------------------------------------------------------------------------------------- */

static void centre_keys(double *deviations, const float *keys, size_t n, size_t width, size_t d)
{
    for (size_t i = 0; i < d; i++) {
        double mean = 0;
        for (size_t j = 0; j < n; j++) mean += (double)keys[j * width + i] / (double)n;
        for (size_t j = 0; j < n; j++) deviations[j * d + i] = (double)keys[j * width + i] - mean;
    }
}

static double norm_of(const double *x, size_t n)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += x[i] * x[i];
    return sqrt(squares);
}

/* Sum over the head's keys of max(0, |x_j| / radius - 1)^2, x_j = k_j - c. d_keys, rows width apart, += weight times its gradient:
 * with g_j = 2 (|x_j| / radius - 1) x_j / (radius |x_j|) of those beyond, since c is the mean, g_j - mean(g). The x_j become the
 * g_j. */
static double penalize_head(float *d_keys, double *x, size_t n, size_t width, size_t d, double radius, double weight)
{
    double sum = 0;
    for (size_t j = 0; j < n; j++) {
        const double norm = norm_of(x + j * d, d), excess = norm > radius ? norm / radius - 1 : 0;
        const double factor = excess > 0 ? 2 * excess / (radius * norm) : 0;
        sum += excess * excess;
        for (size_t i = 0; i < d; i++) x[j * d + i] *= factor;
    }
    for (size_t i = 0; i < d; i++) {
        double mean = 0;
        for (size_t j = 0; j < n; j++) mean += x[j * d + i] / (double)n;
        for (size_t j = 0; j < n; j++) d_keys[j * width + i] += (float)(weight * (x[j * d + i] - mean));
    }
    return sum;
}

/* d_keys_values += weight times the gradient of what is returned. */
static double penalize_keys(float *d_keys_values, const sp_penalizer *p, const sp_key_bound *bound, const float *keys_values,
                            double weight)
{
    const size_t n_heads = sp_key_bound_n_heads(bound);
    const double share = 1 / (double)(n_heads * p->n_keys);
    double sum = 0;
    for (size_t h = 0; h < n_heads; h++) {
        const double norm = (double)bound->query_norms[h];
        const size_t column = sp_key_bound_column(bound, h);
        if (norm <= 0) continue;
        centre_keys(p->deviations, keys_values + column, p->n_keys, p->width, p->d_head);
        sum += penalize_head(d_keys_values + column, p->deviations, p->n_keys, p->width, p->d_head, bound->max_logit / norm,
                             weight * share);
    }
    return sum * share;
}

sp_status sp_penalizer_add(double *penalty, float *d_rows, sp_penalizer *penalizer, const sp_key_bound *bound, const float *rows,
                           double weight)
{
    sp_penalizer *p = penalizer;
    assert(bound->rank == bound->d_head && bound->n_keys == p->n_keys);
    if (!p->engine) {
        *penalty = penalize_keys(d_rows, p, bound, rows, weight);
        return SP_OK;
    }
    sp_status st = compute_keys_values(p, rows, true);
    if (st) return st;
    memset(p->d_keys_values, 0, p->n_keys * p->width * sizeof *p->d_keys_values);
    *penalty = penalize_keys(p->d_keys_values, p, bound, p->keys_values, weight);
    return sp_engine_backward_keys_values(d_rows, p->engine, p->d_keys_values);
}

/* ---- the public call ------------------------------------------------------------------------------------------------ */

/* d_rows (num_tasks, num_virtual_tokens, width), of zeros but for the task in use. */
static sp_status penalize_prompt(double *penalty, float *d_rows, sp_model *model, const sp_prompt *prompt,
                                 const sp_key_bound *bound)
{
    const size_t task = sp_prompt_task_in_use(prompt);
    const float *rows = sp_prompt_task_rows(prompt, task);
    sp_penalizer *penalizer;
    sp_status st = sp_penalizer_create(&penalizer, model, prompt);
    if (st) return st;
    st = sp_penalizer_add(penalty, d_rows + (rows - sp_prompt_task_rows(prompt, 0)), penalizer, bound, rows, 1);
    sp_penalizer_free(penalizer);
    return st;
}

sp_status sp_key_penalty(double *penalty, float *gradient, sp_model *model, const sp_prompt *prompt, const float *query_norms,
                         double max_logit)
{
    sp_model_info info;
    sp_key_bound *bound = NULL;
    sp_model_get_info(&info, model);
    if (!(max_logit > 0) || !isfinite(max_logit))
        return sp_fail(SP_ERR_ARGUMENT, "max_logit is %g; give a number above 0", max_logit);
    sp_status st = sp_prompt_check_rows(prompt, "a penalty is of a prompt's rows");
    if (!st) st = sp_prompt_check(prompt, model, NULL);
    if (!st) st = sp_key_bound_create(&bound, max_logit, info.d_head, &info, sp_prompt_num_virtual_tokens(prompt));
    if (st) return st;
    memcpy(bound->query_norms, query_norms, sp_key_bound_n_heads(bound) * sizeof *query_norms);
    float *d_rows = calloc(sp_prompt_n_row_values(prompt), sizeof *d_rows);
    st = d_rows ? penalize_prompt(penalty, d_rows, model, prompt, bound)
                : sp_fail_no_memory(sp_prompt_n_row_values(prompt) * sizeof *d_rows);
    if (!st && gradient) st = sp_prompt_backward(gradient, prompt, d_rows);
    free(d_rows);
    sp_key_bound_free(bound);
    return st;
}
