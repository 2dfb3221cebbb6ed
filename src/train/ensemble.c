/* ensemble.c: several prompts in front of one text, and the task that they share. */
#include "train/ensemble.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

sp_status sp_ensemble_check(const sp_prompt *const *prompts, size_t n_prompts, const sp_model *model, const sp_logger *logger)
{
    sp_status st = SP_OK;
    for (size_t i = 0; i < n_prompts && !st; i++) st = sp_prompt_check(prompts[i], model, logger);
    return st;
}

size_t sp_ensemble_n_front(const sp_prompt *const *prompts, size_t n_prompts)
{
    size_t longest = 0;
    for (size_t i = 0; i < n_prompts; i++) {
        size_t n = sp_prompt_text_position(prompts[i]);
        if (n > longest) longest = n;
    }
    return longest;
}

sp_status sp_ensemble_set(sp_root **roots, sp_scorer *scorer, const sp_prompt *const *prompts, size_t n_prompts)
{
    if (!(*roots = calloc(n_prompts + 1, sizeof **roots))) return sp_fail_no_memory((n_prompts + 1) * sizeof **roots);
    for (size_t i = 0; i < n_prompts; i++) (*roots)[i] = sp_root_of_prompt(prompts[i]);
    if (n_prompts > 1)
        sp_scorer_set_ensemble(scorer, *roots, n_prompts);
    else
        sp_scorer_set_roots(scorer, *roots, 1); /* without a prompt: one of nothing */
    return SP_OK;
}

/* ---- the task ---- */

static bool same_template(const sp_task *a, const sp_task *b)
{
    const char *first = a->template_text ? a->template_text : "{text}", *second = b->template_text ? b->template_text : "{text}";
    return strcmp(first, second) == 0;
}

static bool has_verbalizer(const sp_task *task, const sp_verbalizer *wanted)
{
    for (size_t i = 0; i < task->n_verbalizers; i++)
        if (strcmp(task->verbalizers[i].label, wanted->label) == 0) return strcmp(task->verbalizers[i].text, wanted->text) == 0;
    return false;
}

/* In whatever order: it is that in which each one's data first had the labels. */
static bool same_verbalizers(const sp_task *a, const sp_task *b)
{
    bool same = a->n_verbalizers == b->n_verbalizers;
    for (size_t i = 0; i < a->n_verbalizers && same; i++) same = has_verbalizer(b, &a->verbalizers[i]);
    return same;
}

static sp_status fail_different(const char *what, size_t first, size_t second)
{
    return sp_fail(SP_ERR_MISMATCH,
                   "prompts %zu and %zu of the ensemble were trained with different %s: all read the same text; give "
                   "one for all",
                   first + 1, second + 1, what);
}

sp_status sp_ensemble_task(sp_task *out, const sp_task *given, const sp_prompt *const *prompts, size_t n_prompts)
{
    static const sp_task nothing;
    const sp_task *own = NULL;
    size_t first = 0;
    *out = nothing;
    if (!given) given = &nothing;
    for (size_t i = 0; i < n_prompts; i++) {
        const sp_task *task = sp_prompt_task(prompts[i]);
        if (task && !own) {
            own = task;
            first = i;
        } else if (task) {
            if (!given->template_text && !same_template(own, task)) return fail_different("templates", first, i);
            if (!given->n_verbalizers && !same_verbalizers(own, task)) return fail_different("verbalizers", first, i);
            if (!given->max_length && own->max_length != task->max_length) return fail_different("maximal lengths", first, i);
        }
    }
    if (own) *out = *own;
    if (given->template_text) out->template_text = given->template_text;
    if (given->max_length) out->max_length = given->max_length;
    if (given->n_verbalizers) {
        out->verbalizers = given->verbalizers;
        out->n_verbalizers = given->n_verbalizers;
    }
    return SP_OK;
}
