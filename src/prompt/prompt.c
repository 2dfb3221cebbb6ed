/* prompt.c: the soft prompt itself: its rows, the task that they were trained for, the model that they belong to. */
#include "prompt/prompt.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/status.h"
#include "prompt/internal.h"
#include "prompt/task.h"

sp_status sp_prompt_allocate(sp_prompt **out, size_t num_virtual_tokens, size_t width)
{
    size_t n_bytes;
    *out = NULL;
    if (__builtin_mul_overflow(num_virtual_tokens, width, &n_bytes) || __builtin_mul_overflow(n_bytes, sizeof(float), &n_bytes))
        return sp_fail_no_memory(SIZE_MAX);
    sp_prompt *p = calloc(1, sizeof *p);
    if (!p || !(p->rows = calloc(1, n_bytes))) {
        sp_prompt_free(p);
        return sp_fail_no_memory(n_bytes);
    }
    p->num_virtual_tokens = num_virtual_tokens;
    p->width = width;
    p->num_tasks = 1;
    p->weights = p->rows;
    p->n_weights = num_virtual_tokens * width;
    *out = p;
    return SP_OK;
}

sp_status sp_prompt_set_encoder(sp_prompt *prompt, const sp_encoder *encoder, const sp_weight_shape *shapes, size_t n)
{
    size_t n_weights = 0, n_bytes;
    for (size_t i = 0; i < n; i++) {
        size_t own;
        if (__builtin_mul_overflow(shapes[i].n_rows, shapes[i].n_columns, &own) ||
            __builtin_add_overflow(n_weights, own, &n_weights))
            return sp_fail_no_memory(SIZE_MAX);
    }
    if (__builtin_mul_overflow(n_weights, sizeof(float), &n_bytes)) return sp_fail_no_memory(SIZE_MAX);
    float *weights = calloc(1, n_bytes);
    sp_weight_shape *copy = malloc(n * sizeof *copy);
    if (!weights || !copy) {
        free(weights);
        free(copy);
        return sp_fail_no_memory(n_bytes);
    }
    memcpy(copy, shapes, n * sizeof *copy);
    prompt->encoder = encoder;
    prompt->weights = weights;
    prompt->n_weights = n_weights;
    prompt->shapes = copy;
    prompt->n_shapes = n;
    return SP_OK;
}

void sp_prompt_free(sp_prompt *prompt)
{
    if (!prompt) return;
    sp_state_set_release(prompt->states);
    sp_task_free(prompt->task);
    if (prompt->weights != prompt->rows) free(prompt->weights);
    free(prompt->rows);
    free(prompt->shapes);
    sp_network_free(prompt->network);
    sp_cpt_free(prompt->cpt);
    free(prompt->start);
    free(prompt->targets);
    free(prompt->init_text);
    free(prompt->base_model);
    free(prompt);
}

/* softprompt.json is UTF-8: a task that it cannot hold is refused here, before a training whose result could not be saved. */
static sp_status check_utf8(const char *what, const char *text)
{
    for (size_t at = 0, n = text ? strlen(text) : 0; at < n;) {
        utf8proc_int32_t character;
        utf8proc_ssize_t taken = utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(n - at), &character);
        if (taken <= 0) return sp_fail(SP_ERR_ARGUMENT, "%s \"%.64s\": byte %zu is not UTF-8", what, text, at);
        at += (size_t)taken;
    }
    return SP_OK;
}

sp_status sp_prompt_set_task(sp_prompt *prompt, const sp_task *task)
{
    sp_task *copy = NULL;
    sp_status st = check_utf8("template", task->template_text);
    for (size_t i = 0; i < task->n_verbalizers && !st; i++)
        if (!(st = check_utf8("label", task->verbalizers[i].label))) st = check_utf8("verbalizer", task->verbalizers[i].text);
    if (st || (st = sp_task_copy(&copy, task))) return st;
    sp_task_free(prompt->task);
    prompt->task = copy;
    return SP_OK;
}

void sp_prompt_set_key_bound(sp_prompt *prompt, const sp_key_bound_report *report)
{
    prompt->has_key_bound = true;
    prompt->key_bound = *report;
}

/* ---- does it belong to a model ------------------------------------------------------------------------------- */

static bool same_fingerprint(const sp_fingerprint *a, const sp_fingerprint *b)
{
    return a->tokenizer == b->tokenizer && a->embeddings == b->embeddings && a->n_layer == b->n_layer && a->d_model == b->d_model &&
           a->n_head == b->n_head && a->n_head_kv == b->n_head_kv && a->n_vocab == b->n_vocab;
}

/* The part in which they differ, for the warning. */
static const char *name_difference(const sp_fingerprint *a, const sp_fingerprint *b)
{
    if (a->n_layer != b->n_layer || a->n_head != b->n_head || a->n_head_kv != b->n_head_kv) return "layers or heads";
    if (a->tokenizer != b->tokenizer || a->n_vocab != b->n_vocab) return "tokenizer";
    return "embeddings (another quantisation of one model differs in them too)";
}

/* Scores are made with the scale that the states were. */
static sp_status check_states(const sp_prompt *prompt, const sp_model *model, const sp_model_info *info)
{
    const sp_state_set *set = prompt->states;
    const size_t n = info->n_layer * info->n_head_kv;
    for (size_t i = 0; i < set->n; i++)
        if (set->n != n || set->of[i]->plane.d != info->d_head || set->of[i]->d_v != info->d_head ||
            set->of[i]->scale != sp_model_attention_scale(model))
            return sp_fail(
                SP_ERR_MISMATCH,
                "the prompt was compiled for a model with %zu heads of keys, the first of %zu numbers; the model has %zu of "
                "%zu: use the model it was compiled with, or compile it for this one",
                set->n, set->of[0]->plane.d, n, info->d_head);
    return sp_model_check_states(model);
}

/* Keys and values: as many layers and heads, where the adapter tells them, of as many numbers. */
static sp_status check_keys_values(const sp_prompt *prompt, const sp_model *model)
{
    sp_model_info info;
    sp_model_get_info(&info, model);
    const size_t window = sp_model_window(model);
    const size_t width = 2 * info.n_layer * info.n_head_kv * info.d_head;
    if (prompt->text_position && window)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: text that starts at position %zu behind %zu virtual tokens, and layers that see %zu positions back: "
                       "which of the prompt they see is not defined; leave out the text position",
                       info.path, prompt->text_position, prompt->num_virtual_tokens, window);
    sp_status st = prompt->states ? check_states(prompt, model, &info) : SP_OK;
    if (st) return st;
    if (prompt->width == width && (prompt->n_layer == 0 || prompt->n_layer == info.n_layer) &&
        (prompt->n_head == 0 || prompt->n_head == info.n_head_kv))
        return SP_OK;
    return sp_fail(SP_ERR_MISMATCH,
                   "the prompt has %zu keys and values a virtual token (%zu layers, %zu heads; 0: not said), the model %zu (%zu, "
                   "%zu): it was trained for another model; use that one, or train a prompt for this one",
                   prompt->width, prompt->n_layer, prompt->n_head, width, info.n_layer, info.n_head_kv);
}

static sp_status check_shape(const sp_prompt *prompt, const sp_model *model)
{
    const size_t d_model = sp_model_d_model(model);
    if (sp_prompt_is_given(prompt)) return check_keys_values(prompt, model);
    if (prompt->width == d_model) return SP_OK;
    return sp_fail(SP_ERR_MISMATCH,
                   "the prompt's vectors have %zu numbers, the model's embeddings %zu: it was trained for another model; "
                   "use that one, or train a prompt for this one",
                   prompt->width, d_model);
}

sp_status sp_prompt_check(const sp_prompt *prompt, const sp_model *model, const sp_logger *logger)
{
    sp_status st = check_shape(prompt, model);
    if (st || !prompt->has_fingerprint || !logger) return st; /* the fingerprint takes some ms */
    const sp_fingerprint fingerprint = sp_model_fingerprint(model);
    if (!same_fingerprint(&prompt->fingerprint, &fingerprint))
        sp_log(logger, SP_LOG_WARNING,
               "the prompt was trained on a model with other %s; results may be worse: evaluate it, or train it on this model",
               name_difference(&prompt->fingerprint, &fingerprint));
    return SP_OK;
}

/* ---- rows and weights ----------------------------------------------------------------------------------------- */

sp_status sp_prompt_update(sp_prompt *prompt)
{
    return prompt->encoder ? prompt->encoder->update(prompt) : SP_OK;
}

size_t sp_prompt_n_row_values(const sp_prompt *prompt)
{
    return prompt->num_tasks * prompt->num_virtual_tokens * prompt->width;
}

const float *sp_prompt_task_rows(const sp_prompt *prompt, size_t task_id)
{
    return prompt->rows + task_id * prompt->num_virtual_tokens * prompt->width;
}

size_t sp_prompt_task_in_use(const sp_prompt *prompt)
{
    return prompt->task_id;
}

const sp_prompt_target *sp_prompt_targets(size_t *n, const sp_prompt *prompt)
{
    *n = prompt->n_targets;
    return prompt->targets;
}

size_t sp_prompt_n_shapes(const sp_prompt *prompt)
{
    return prompt->encoder ? prompt->n_shapes : 1;
}

sp_weight_shape sp_prompt_shape(const sp_prompt *prompt, size_t index)
{
    if (prompt->encoder) return prompt->shapes[index];
    return (sp_weight_shape){prompt->num_virtual_tokens, prompt->width, prompt->num_frozen_tokens};
}

sp_status sp_prompt_backward(float *gradient, const sp_prompt *prompt, const float *d_rows)
{
    sp_status st = SP_OK;
    if (prompt->encoder) {
        memset(gradient, 0, prompt->n_weights * sizeof *gradient);
        st = prompt->encoder->backward(gradient, prompt, d_rows);
    } else {
        memcpy(gradient, d_rows, prompt->n_weights * sizeof *gradient);
    }
    for (size_t i = 0; i < sp_prompt_n_shapes(prompt); i++) {
        const sp_weight_shape shape = sp_prompt_shape(prompt, i);
        memset(gradient, 0, shape.n_frozen * shape.n_columns * sizeof *gradient);
        gradient += shape.n_rows * shape.n_columns;
    }
    return st;
}

/* ---- accessors ----------------------------------------------------------------------------------------------- */

sp_method sp_prompt_method(const sp_prompt *prompt)
{
    return prompt->method;
}
size_t sp_prompt_num_virtual_tokens(const sp_prompt *prompt)
{
    return prompt->num_virtual_tokens;
}
size_t sp_prompt_num_frozen_tokens(const sp_prompt *prompt)
{
    return prompt->num_frozen_tokens;
}
size_t sp_prompt_width(const sp_prompt *prompt)
{
    return prompt->width;
}
size_t sp_prompt_num_tasks(const sp_prompt *prompt)
{
    return prompt->num_tasks;
}

sp_status sp_prompt_use_task(sp_prompt *prompt, size_t task_id)
{
    if (task_id >= prompt->num_tasks)
        return sp_fail(SP_ERR_ARGUMENT, "task %zu of a prompt that has %zu; they are numbered from 0", task_id, prompt->num_tasks);
    prompt->task_id = task_id;
    return SP_OK;
}

size_t sp_prompt_text_position(const sp_prompt *prompt)
{
    return prompt->text_position ? prompt->text_position : prompt->num_virtual_tokens;
}

sp_status sp_prompt_set_text_position(sp_prompt *prompt, size_t position)
{
    if (!sp_prompt_is_given(prompt))
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "a text position for a prompt of embeddings, whose own positions are 0 to %zu; only prompts of "
                       "keys and values have one",
                       prompt->num_virtual_tokens - 1);
    if (position == 0) return sp_fail(SP_ERR_ARGUMENT, "text position 0: some prompt stands before the text; give 1 or more");
    prompt->text_position = position == prompt->num_virtual_tokens ? 0 : position;
    return SP_OK;
}

sp_state_set *sp_prompt_states(const sp_prompt *prompt)
{
    return prompt->states;
}

sp_status sp_prompt_check_rows(const sp_prompt *prompt, const char *what)
{
    if (!prompt || !prompt->states) return SP_OK;
    return sp_fail(SP_ERR_UNSUPPORTED, "%s, and a compiled prompt has none left; use the prompt that it was compiled from", what);
}

static float *rows_in_use(sp_prompt *prompt)
{
    if (!prompt->rows) return NULL;
    return prompt->rows + prompt->task_id * prompt->num_virtual_tokens * prompt->width;
}
float *sp_prompt_embeddings(sp_prompt *prompt)
{
    return sp_prompt_is_given(prompt) ? NULL : rows_in_use(prompt);
}
float *sp_prompt_keys_values(sp_prompt *prompt)
{
    return sp_prompt_is_given(prompt) ? rows_in_use(prompt) : NULL;
}
float *sp_prompt_weights(sp_prompt *prompt)
{
    return prompt->weights;
}
size_t sp_prompt_n_weights(const sp_prompt *prompt)
{
    return prompt->n_weights;
}
size_t sp_prompt_d_model(const sp_prompt *prompt)
{
    return sp_prompt_is_given(prompt) ? 0 : prompt->width;
}
const sp_task *sp_prompt_task(const sp_prompt *prompt)
{
    return prompt->task;
}
