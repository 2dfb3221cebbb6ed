/* reparameterize.c: prompts whose rows a network makes: P-tuning, and prefix tuning through its projection.
 *
 * The network (network.c) and its weights exist while the prompt is trained; an adapter holds the rows, as PEFT's do. */
#include "base/status.h"
#include "prompt/internal.h"

enum { DEFAULT_LAYERS = 2 }; /* PEFT's encoder_num_layers */

static sp_status update(sp_prompt *prompt)
{
    return sp_network_forward(prompt->rows, prompt->network, prompt->weights);
}

static sp_status backward(float *gradient, const sp_prompt *prompt, const float *d_rows)
{
    return sp_network_backward(gradient, prompt->network, prompt->weights, d_rows);
}

static const sp_encoder network_encoder = {update, backward};

bool sp_prompt_options_have_network(const sp_prompt_options *options)
{
    return options->method == SP_METHOD_PTUNING || options->prefix_projection;
}

/* PEFT's token_dim: what an embedding of the network has. */
static size_t token_dim(const sp_prompt_options *options, const sp_model *model)
{
    sp_model_info info;
    sp_model_get_info(&info, model);
    return options->method == SP_METHOD_PTUNING ? info.d_model : info.n_head_kv * info.d_head;
}

size_t sp_prompt_encoder_hidden_size(const sp_prompt_options *options, const sp_model *model)
{
    return options->encoder_hidden_size ? options->encoder_hidden_size : token_dim(options, model);
}

size_t sp_prompt_encoder_num_layers(const sp_prompt_options *options)
{
    return options->encoder_num_layers ? options->encoder_num_layers : DEFAULT_LAYERS;
}

static sp_network_kind kind_of(const sp_prompt_options *options)
{
    if (options->method != SP_METHOD_PTUNING) return SP_NETWORK_PROJECTION;
    return options->encoder_reparameterization_type == SP_ENCODER_LSTM ? SP_NETWORK_LSTM : SP_NETWORK_MLP;
}

sp_status sp_prompt_set_network(sp_prompt *prompt, const sp_model *model, const sp_prompt_options *options, sp_rng *rng)
{
    const sp_network_shape shape = {.kind = kind_of(options),
                                    .n = prompt->num_virtual_tokens,
                                    .n_in = token_dim(options, model),
                                    .n_hidden = sp_prompt_encoder_hidden_size(options, model),
                                    .n_layers = sp_prompt_encoder_num_layers(options),
                                    .n_out = prompt->width};
    sp_weight_shape shapes[SP_NETWORK_MAX_MATRICES];
    sp_status st = sp_network_create(&prompt->network, &shape);
    if (st) return st;
    const size_t n = sp_network_n_matrices(prompt->network);
    for (size_t i = 0; i < n; i++) {
        const sp_network_matrix *m = &sp_network_matrices(prompt->network)[i];
        shapes[i] = (sp_weight_shape){.n_rows = m->n_rows, .n_columns = m->n_columns};
    }
    if ((st = sp_prompt_set_encoder(prompt, &network_encoder, shapes, n))) return st;
    sp_network_init(prompt->weights, prompt->network, rng);
    prompt->encoder_type = options->encoder_reparameterization_type;
    prompt->encoder_hidden_size = shape.n_hidden;
    prompt->encoder_num_layers = shape.n_layers;
    prompt->prefix_projection = options->prefix_projection;
    return SP_OK;
}

sp_status sp_prompt_fit_network(sp_prompt *prompt, const float *rows)
{
    return sp_network_fit(prompt->weights, prompt->network, rows);
}
