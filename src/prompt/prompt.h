/* prompt.h: what a soft prompt consists of, for the modules above (train, lab, serve). */
#ifndef SP_PROMPT_PROMPT_H
#define SP_PROMPT_PROMPT_H

#include "fast/state.h"
#include "model/model.h"
#include "softprompt.h"

/* What training moves is one array, sp_prompt_weights, of matrices behind each other. */
typedef struct sp_weight_shape {
    size_t n_rows, n_columns;
    size_t n_frozen; /* leading rows that stay as they start */
} sp_weight_shape;

size_t sp_prompt_n_shapes(const sp_prompt *prompt); /* at least 1 */
sp_weight_shape sp_prompt_shape(const sp_prompt *prompt, size_t index);

size_t sp_prompt_n_row_values(const sp_prompt *prompt); /* num_tasks * num_virtual_tokens * width */

enum { SP_MAX_TASKS = 1024, SP_MAX_RANKS = 1024 };

/* Of a compiled prompt, (n_layer, n_head_kv), for sp_engine_set_states; NULL: it has rows. */
sp_state_set *sp_prompt_states(const sp_prompt *prompt);

/* UNSUPPORTED: a compiled prompt, of which `what` ("training starts from its rows") cannot be. */
sp_status sp_prompt_check_rows(const sp_prompt *prompt, const char *what);

/* Rows of one task; its prompt, embeddings or keys and values. task_id < num_tasks. */
const float *sp_prompt_task_rows(const sp_prompt *prompt, size_t task_id);
size_t sp_prompt_task_in_use(const sp_prompt *prompt);

/* A token inside the prompt that the loss wants predicted, once for each example. */
typedef struct sp_prompt_target {
    size_t row; /* the prompt's row that predicts it */
    int32_t token;
    float weight; /* beside 1 of a token of an example's answer */
} sp_prompt_target;

/* (n) ascending by row, the prompt's. NULL: this method's loss is of answers alone, and a mean of means; else a mean over tokens.
 */
const sp_prompt_target *sp_prompt_targets(size_t *n, const sp_prompt *prompt);

/* gradient (n_weights) written: dloss/dweights, zero where they are frozen.
 *   d_rows (num_tasks, num_virtual_tokens, width) dloss/drows, of the rows as sp_prompt_update left them */
sp_status sp_prompt_backward(float *gradient, const sp_prompt *prompt, const float *d_rows);

/* Is there a network between weights and rows? Its hidden size, where the options leave it to PEFT's default, is the model's. */
bool sp_prompt_options_have_network(const sp_prompt_options *options);
size_t sp_prompt_encoder_hidden_size(const sp_prompt_options *options, const sp_model *model);
size_t sp_prompt_encoder_num_layers(const sp_prompt_options *options);

/* Are its prompts keys and values, which the model reads as they are? Else they are embeddings. */
static inline bool sp_method_is_given(sp_method method)
{
    return method == SP_METHOD_PREFIX || method == SP_METHOD_CARTRIDGE;
}

/* What softprompt.json will tell of the bound that the prompt's keys are inside. */
void sp_prompt_set_key_bound(sp_prompt *prompt, const sp_key_bound_report *report);

/* Gives the prompt a copy of `task`: what softprompt.json will carry. */
sp_status sp_prompt_set_task(sp_prompt *prompt, const sp_task *task);

#endif
