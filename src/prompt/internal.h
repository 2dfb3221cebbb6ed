/* internal.h: the inside of a soft prompt, for the files of this directory only. */
#ifndef SP_PROMPT_INTERNAL_H
#define SP_PROMPT_INTERNAL_H

#include "prompt/network.h"
#include "prompt/prompt.h"

/* How rows come from weights that are not the rows themselves. */
typedef struct sp_encoder {
    sp_status (*update)(sp_prompt *prompt); /* rows from weights */

    /* gradient (n_weights) += dloss/dweights, from d_rows, dloss/drows as sp_prompt_update left them. Frozen rows are the caller's.
     */
    sp_status (*backward)(float *gradient, const sp_prompt *prompt, const float *d_rows);
} sp_encoder;

struct sp_prompt {
    sp_method method;
    size_t num_virtual_tokens, width;
    size_t num_frozen_tokens; /* leading rows that training leaves alone */
    float *rows;              /* (num_virtual_tokens, width): embeddings, or keys and values in PEFT's layout */

    const sp_encoder *encoder; /* NULL: the weights are the rows */
    float *weights;            /* (n_weights) what training moves: with an encoder an array of its own, else the rows */
    size_t n_weights;
    sp_weight_shape *shapes; /* (n_shapes) the matrices that the weights are, with an encoder; else NULL */
    size_t n_shapes;
    sp_network *network; /* of an encoder that is one; else NULL */

    sp_task *task; /* NULL: none */

    /* What adapter_config.json tells of it. Numbers and strings that an adapter left out are 0 and NULL. */
    size_t n_layer, n_head; /* n_head: of keys and values where the prompt consists of them */
    sp_init init;
    char *init_text;  /* with SP_INIT_TEXT */
    char *base_model; /* a name: no evidence */

    /* Of PTUNING and a projected PREFIX; kept of a loaded adapter, too, though its network is gone. */
    sp_encoder_type encoder_type;
    size_t encoder_hidden_size, encoder_num_layers;
    bool prefix_projection;

    bool has_fingerprint;
    sp_fingerprint fingerprint; /* of the model that it was made for */
};

/* A prompt of zeros, whose weights are its rows; at least one row and one column. */
sp_status sp_prompt_allocate(sp_prompt **out, size_t num_virtual_tokens, size_t width);

/* Gives it weights of its own, zeros: n matrices of these shapes. */
sp_status sp_prompt_set_encoder(sp_prompt *prompt, const sp_encoder *encoder, const sp_weight_shape *shapes, size_t n);

/* reparameterize.c: the network that the options ask for, as torch's modules start. */
sp_status sp_prompt_set_network(sp_prompt *prompt, const sp_model *model, const sp_prompt_options *options, sp_rng *rng);

/* Moves the network so that the rows become these (num_virtual_tokens, width). */
sp_status sp_prompt_fit_network(sp_prompt *prompt, const float *rows);

/* keys.c: weights (n, 2 n_layer n_head_kv d_head) = what the model computes for n tokens that begin a text, in PEFT's layout;
 * and for the first n tokens of `text`. ARGUMENT: the text has fewer. */
sp_status sp_keys_values_of_tokens(float *weights, sp_model *model, const int32_t *tokens, size_t n);
sp_status sp_keys_values_of_text(float *weights, sp_model *model, const char *text, size_t n);

/* Does it consist of keys and values? */
static inline bool sp_prompt_is_given(const sp_prompt *prompt)
{
    return prompt->method == SP_METHOD_PREFIX || prompt->method == SP_METHOD_CARTRIDGE;
}

enum { SP_N_METHODS = SP_METHOD_PTUNING + 1 };
extern const char *const sp_peft_types[SP_N_METHODS]; /* by sp_method: adapter_config.json's "peft_type" */

extern const char *const sp_encoder_type_names[2]; /* by sp_encoder_type, as PEFT writes them */

/* Names in files: an initialisation as PEFT and as softprompt.json write it. */
typedef struct sp_init_name {
    const char *peft, *own;
} sp_init_name;
extern const sp_init_name sp_init_names[3]; /* by sp_init */

#define SP_PROMPT_TENSOR "prompt_embeddings"
enum { SP_PROMPT_FORMAT_VERSION = 1 }; /* of softprompt.json */

#endif
