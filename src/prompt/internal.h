/* internal.h: the inside of a soft prompt, for the files of this directory only. */
#ifndef SP_PROMPT_INTERNAL_H
#define SP_PROMPT_INTERNAL_H

#include <jansson.h>

#include "fast/state.h"
#include "format/adapter.h"
#include "prompt/cpt.h"
#include "prompt/multitask.h"
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
    size_t num_tasks;         /* 1, but for MULTITASK */
    size_t task_id;           /* the one in use */
    float *rows;              /* (num_tasks, num_virtual_tokens, width): embeddings, or keys and values in PEFT's layout */

    const sp_encoder *encoder; /* NULL: the weights are the rows */
    float *weights;            /* (n_weights) what training moves: with an encoder an array of its own, else the rows */
    size_t n_weights;
    sp_weight_shape *shapes; /* (n_shapes) the matrices that the weights are, with an encoder; else NULL */
    size_t n_shapes;
    sp_network *network; /* of an encoder that is one; else NULL */

    size_t num_ranks;          /* MULTITASK */
    sp_cpt *cpt;               /* CPT; NULL with others, as the next two */
    float *start;              /* (num_virtual_tokens, width) the tokens' embeddings */
    sp_prompt_target *targets; /* (n_targets) */
    size_t n_targets;

    size_t text_position; /* 0: num_virtual_tokens */

    sp_state_set *states; /* (n_layer, n_head_kv) of a compiled prompt, which has no rows; else NULL */

    sp_task *task; /* NULL: none */

    bool has_key_bound;
    sp_key_bound_report key_bound; /* of the rows that were trained; a loaded prompt has none: its rows may change */
    double trained_bound;          /* what softprompt.json says of it; 0: nothing */

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

/* compile.c: a compiled prompt's states in a file (format/adapter.h) and back. */
sp_status sp_prompt_write_states(const sp_prompt *prompt, const char *path);
sp_status sp_prompt_read_states(sp_prompt **out, const sp_adapter *adapter);

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
sp_status sp_keys_values_of_embeddings(float *weights, sp_model *model, const float *rows, size_t n);
sp_status sp_keys_values_of_text(float *weights, sp_model *model, const char *text, size_t n);

/* tasks.c: makes it a prompt of several tasks; rows and weights are zero then. */
sp_status sp_prompt_set_tasks(sp_prompt *prompt, size_t num_tasks, size_t num_ranks);

/* Where what the tasks share and their factors lie in the prompt's weights, or in an array like them. */
sp_multitask_parts sp_prompt_multitask_parts(const sp_prompt *prompt, float *weights);

void sp_prompt_init_factors(sp_prompt *prompt, const sp_prompt_options *options);

/* MISMATCH, ARGUMENT: what is wanted of the source does not fit the prompt. */
sp_status sp_prompt_start_from_source(sp_prompt *prompt, const sp_prompt *source, const sp_prompt_options *options);

/* context.c: makes it a text that moves, from where its rows are; takes `cpt` over, also when it fails. */
sp_status sp_prompt_set_context(sp_prompt *prompt, sp_cpt *cpt);

/* What the options say of tokens, types and settings, as many tokens as they mean. */
sp_status sp_cpt_of_options(sp_cpt **out, const sp_model *model, const sp_prompt_options *options);

/* The fields of adapter_config.json. FORMAT: lists that are not as long as there are virtual tokens, or hold something else. */
sp_status sp_cpt_read(sp_cpt **out, const json_t *config, size_t num_virtual_tokens, const char *path);
json_t *sp_cpt_build_config(const sp_cpt *cpt); /* NULL: no memory */

/* transfer.c: the rows start as those of `source`, as keys and values where they have to be. MISMATCH: it has another shape. `dir`:
 * where it was read, for the messages. */
sp_status sp_prompt_start_from_rows(sp_prompt *prompt, sp_model *model, const sp_prompt *source, const char *dir);

/* Does it consist of keys and values? */
static inline bool sp_prompt_is_given(const sp_prompt *prompt)
{
    return sp_method_is_given(prompt->method);
}

enum { SP_N_METHODS = SP_METHOD_CPT + 1 };
extern const char *const sp_peft_types[SP_N_METHODS]; /* by sp_method: adapter_config.json's "peft_type" */

extern const char *const sp_encoder_type_names[2]; /* by sp_encoder_type, as PEFT writes them */

/* Names in files: an initialisation as PEFT and as softprompt.json write it. */
typedef struct sp_init_name {
    const char *peft, *own;
} sp_init_name;
extern const sp_init_name sp_init_names[3]; /* by sp_init */

#define SP_PROMPT_TENSOR "prompt_embeddings"
#define SP_COLS_TENSOR "prefix_task_cols"
#define SP_ROWS_TENSOR "prefix_task_rows"
enum { SP_PROMPT_FORMAT_VERSION = 1 }; /* of softprompt.json */

#endif
