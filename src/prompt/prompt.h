/* prompt.h: what a soft prompt consists of, for the modules above (train, lab, serve). */
#ifndef SP_PROMPT_PROMPT_H
#define SP_PROMPT_PROMPT_H

#include "model/model.h"
#include "softprompt.h"

/* What training moves is one array, sp_prompt_weights, of matrices behind each other. */
typedef struct sp_weight_shape {
    size_t n_rows, n_columns;
    size_t n_frozen; /* leading rows that stay as they start */
} sp_weight_shape;

size_t sp_prompt_n_shapes(const sp_prompt *prompt); /* at least 1 */
sp_weight_shape sp_prompt_shape(const sp_prompt *prompt, size_t index);

size_t sp_prompt_n_row_values(const sp_prompt *prompt); /* num_virtual_tokens * width */

/* gradient (n_weights) written: dloss/dweights, zero where they are frozen.
 *   d_rows (num_virtual_tokens, width) dloss/drows, of the rows as sp_prompt_update left them */
sp_status sp_prompt_backward(float *gradient, const sp_prompt *prompt, const float *d_rows);

/* Is there a network between weights and rows? Its hidden size, where the options leave it to PEFT's default, is the model's. */
bool sp_prompt_options_have_network(const sp_prompt_options *options);
size_t sp_prompt_encoder_hidden_size(const sp_prompt_options *options, const sp_model *model);
size_t sp_prompt_encoder_num_layers(const sp_prompt_options *options);

/* Gives the prompt a copy of `task`: what softprompt.json will carry. */
sp_status sp_prompt_set_task(sp_prompt *prompt, const sp_task *task);

#endif
