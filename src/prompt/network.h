/* network.h: the small networks that make a prompt's rows out of learnt vectors: forward, backward, start.
 *
 *     MLP          embedding - linear, ReLU - linear, ReLU - linear              P-tuning's, PEFT's encoder_reparameterization_type
 * MLP LSTM         embedding - bidirectional LSTM, n_layers deep - linear, ReLU - linear              P-tuning's, LSTM PROJECTION
 * embedding - linear, tanh - linear                              prefix tuning's, PEFT's prefix_projection
 *
 * Liu et al., arXiv 2103.10385; Li and Liang, arXiv 2101.00190. What PEFT 0.21.2's modules compute, without dropout; matrices have
 * their names there and come in the order of their state dictionaries. The weights are one array, matrix behind matrix; it is the
 * caller's. A network holds the activations of its last forward. One thread at a time; the bytes do not depend on how many work. */
#ifndef SP_PROMPT_NETWORK_H
#define SP_PROMPT_NETWORK_H

#include "base/rng.h"
#include "softprompt.h"

typedef enum sp_network_kind { SP_NETWORK_MLP, SP_NETWORK_LSTM, SP_NETWORK_PROJECTION } sp_network_kind;

enum {
    SP_NETWORK_MAX_LAYERS = 8,
    SP_NETWORK_MAX_HIDDEN = 65536,
    SP_NETWORK_MAX_MATRICES = 1 + 8 * SP_NETWORK_MAX_LAYERS + 6,
    SP_NETWORK_NAME_BYTES = 64
};

typedef struct sp_network_shape {
    sp_network_kind kind;
    size_t n;        /* virtual tokens, rows of the embedding and of the result */
    size_t n_in;     /* of an embedding: PEFT's token_dim */
    size_t n_hidden; /* encoder_hidden_size */
    size_t n_layers; /* encoder_num_layers, of an LSTM; the others have their own number */
    size_t n_out;    /* of a row */
} sp_network_shape;

/* One of the matrices; a bias is a row. */
typedef struct sp_network_matrix {
    char name[SP_NETWORK_NAME_BYTES]; /* "mlp_head.0.weight" */
    size_t n_rows, n_columns, offset; /* offset: of its first number among the weights */
    double bound;                     /* starts uniform in [-bound, bound); 0: as a standard normal */
} sp_network_matrix;

typedef struct sp_network sp_network;

/* Fails with ARGUMENT (a size of 0, a hidden size or a number of layers beyond the above) and MEMORY. */
sp_status sp_network_create(sp_network **out, const sp_network_shape *shape);
void sp_network_free(sp_network *network);

size_t sp_network_n_matrices(const sp_network *network);
const sp_network_matrix *sp_network_matrices(const sp_network *network);
size_t sp_network_n_weights(const sp_network *network);

/* weights (n_weights) written: distributed as torch's nn.Embedding, nn.Linear and nn.LSTM start, which is how PEFT starts. */
void sp_network_init(float *weights, const sp_network *network, sp_rng *rng);

/* Moves the last layer, as little as can be (least squares, of least norm), so that the rows become `targets` (n, n_out). They do
 * to rounding while n <= n_hidden + 1, else they come as near as they can. Fails with MEMORY. */
sp_status sp_network_fit(float *weights, sp_network *network, const float *targets);

/* rows (n, n_out) written. Fails with MEMORY. */
sp_status sp_network_forward(float *rows, sp_network *network, const float *weights);

/* gradient (n_weights) += dloss/dweights, from d_rows (n, n_out), of the weights that the last forward had. Fails with MEMORY. */
sp_status sp_network_backward(float *gradient, sp_network *network, const float *weights, const float *d_rows);

#endif
