/* tasks.c: a prompt of several tasks: MULTITASK_PROMPT_TUNING.
 *
 * Rows hold the prompts of all tasks, one behind the other; what is in front of a text is those of one task, which the prompt's
 * user picks (task_id). Weights: what the tasks share, then their columns, then their rows, each as PEFT's tensor of that name. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"
#include "prompt/internal.h"
#include "prompt/multitask.h"

enum { FACTOR_STREAM = 0x66616374 }; /* "fact": a stream that nothing else draws from */

/* PEFT's deviation of what a factor starts from. */
static const double FACTOR_DEVIATION = 0.02;

static sp_multitask_shape shape_of(const sp_prompt *p)
{
    return (sp_multitask_shape){p->num_tasks, p->num_virtual_tokens, p->num_ranks, p->width};
}

sp_multitask_parts sp_prompt_multitask_parts(const sp_prompt *p, float *weights)
{
    float *cols = weights + p->num_virtual_tokens * p->width;
    return (sp_multitask_parts){weights, cols, cols + p->num_tasks * p->num_virtual_tokens * p->num_ranks};
}

static sp_status update(sp_prompt *p)
{
    const sp_multitask_shape shape = shape_of(p);
    const sp_multitask_parts weights = sp_prompt_multitask_parts(p, p->weights);
    sp_multitask_forward(p->rows, &weights, &shape);
    return SP_OK;
}

static sp_status backward(float *gradient, const sp_prompt *p, const float *d_rows)
{
    const sp_multitask_shape shape = shape_of(p);
    const sp_multitask_parts to = sp_prompt_multitask_parts(p, gradient), weights = sp_prompt_multitask_parts(p, p->weights);
    sp_multitask_backward(&to, d_rows, &weights, &shape);
    return SP_OK;
}

static const sp_encoder encoder = {update, backward};

sp_status sp_prompt_set_tasks(sp_prompt *p, size_t num_tasks, size_t num_ranks)
{
    const size_t n_values = p->num_virtual_tokens * p->width; /* fits: it was allocated */
    size_t n_bytes;
    if (__builtin_mul_overflow(n_values * sizeof(float), num_tasks, &n_bytes)) return sp_fail_no_memory(SIZE_MAX);
    const sp_weight_shape shapes[] = {{p->num_virtual_tokens, p->width, 0},
                                      {num_tasks * p->num_virtual_tokens, num_ranks, 0},
                                      {num_tasks * num_ranks, p->width, 0}};
    float *rows = calloc(1, n_bytes);
    if (!rows) return sp_fail_no_memory(n_bytes);
    free(p->rows);
    p->rows = p->weights = rows;
    p->num_tasks = num_tasks;
    p->num_ranks = num_ranks;
    return sp_prompt_set_encoder(p, &encoder, shapes, sizeof shapes / sizeof *shapes);
}

/* ---- what the factors start from ---- */

/* cols of rank 0 and rows of rank 0 are 1, so that every task begins with what they share; all other ranks a little noise, which
 * tells them apart. PEFT's factors are noise throughout, and so its prompts begin as nearly nothing. */
void sp_prompt_init_factors(sp_prompt *p, const sp_prompt_options *options)
{
    const sp_multitask_parts weights = sp_prompt_multitask_parts(p, p->weights);
    sp_rng rng = sp_rng_seed(options->seed, FACTOR_STREAM);
    const bool noise = options->init == SP_INIT_RANDOM;
    for (size_t i = 0; i < p->num_tasks * p->num_virtual_tokens * p->num_ranks; i++)
        weights.cols[i] = !noise && i % p->num_ranks == 0 ? 1 : (float)(FACTOR_DEVIATION * sp_rng_normal(&rng));
    for (size_t i = 0; i < p->num_tasks * p->num_ranks * p->width; i++)
        weights.rows[i] = !noise && i / p->width % p->num_ranks == 0 ? 1 : (float)(FACTOR_DEVIATION * sp_rng_normal(&rng));
}

/* ---- what was learnt on other tasks -------------------------------------------------------------------------- */

static sp_status check_source(const sp_prompt *p, const sp_prompt *source, const sp_prompt_options *options)
{
    const char *dir = options->init_prompt;
    const bool shared = options->source_init == SP_SOURCE_SHARED;
    if (source->method != SP_METHOD_MULTITASK && !(shared && source->method == SP_METHOD_PROMPT))
        return sp_fail(SP_ERR_MISMATCH, "%s: the source is no prompt of several tasks%s", dir,
                       shared ? ", and no prompt of embeddings" : "; of a prompt of embeddings the shared part can be taken");
    if (source->width != p->width || source->num_virtual_tokens != p->num_virtual_tokens)
        return sp_fail(SP_ERR_MISMATCH, "%s: the source has %zu virtual tokens of %zu numbers, the prompt %zu of %zu", dir,
                       source->num_virtual_tokens, source->width, p->num_virtual_tokens, p->width);
    if (shared) return SP_OK;
    if (source->num_ranks != p->num_ranks)
        return sp_fail(SP_ERR_MISMATCH, "%s: the source's factors have rank %zu, the prompt's %zu; leave the rank to the source",
                       dir, source->num_ranks, p->num_ranks);
    if (p->num_tasks != 1)
        return sp_fail(SP_ERR_ARGUMENT,
                       "%s: the source's factors start one task, and there are %zu; use num_tasks 1, or the shared part", dir,
                       p->num_tasks);
    if (options->source_init == SP_SOURCE_EXACT && options->source_task >= source->num_tasks)
        return sp_fail(SP_ERR_ARGUMENT, "%s: source task %zu, and the source has %zu, from 0", dir, options->source_task,
                       source->num_tasks);
    return SP_OK;
}

/* out (n) = the mean of the n_parts arrays of n numbers from `parts` on. */
static void average(float *out, const float *parts, size_t n_parts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (size_t k = 0; k < n_parts; k++) sum += parts[k * n + i];
        out[i] = (float)(sum / (double)n_parts);
    }
}

sp_status sp_prompt_start_from_source(sp_prompt *p, const sp_prompt *source, const sp_prompt_options *options)
{
    sp_status st = check_source(p, source, options);
    if (st) return st;
    const sp_multitask_parts to = sp_prompt_multitask_parts(p, p->weights);
    memcpy(to.shared, source->weights, p->num_virtual_tokens * p->width * sizeof *to.shared);
    if (options->source_init == SP_SOURCE_SHARED) return SP_OK;
    const sp_multitask_parts from = sp_prompt_multitask_parts(source, source->weights);
    const bool exact = options->source_init == SP_SOURCE_EXACT;
    const size_t first = exact ? options->source_task : 0, n_tasks = exact ? 1 : source->num_tasks;
    const size_t n_cols = p->num_virtual_tokens * p->num_ranks, n_rows = p->num_ranks * p->width;
    average(to.cols, from.cols + first * n_cols, n_tasks, n_cols);
    average(to.rows, from.rows + first * n_rows, n_tasks, n_rows);
    return SP_OK;
}
