/* net.h: a plain transformer written down weight by weight, in f64: what the labs run the theorems on.
 *
 * The stream has D channels. A sequence is num_virtual_tokens prompt tokens and len input tokens, each of d numbers; layers are
 * residual and have no norms:
 *
 *   Z = E [P, X] + positions        Z += W2 relu(W1 Z + b)        Z += O V Z softmax((K Z)^T (Q Z)), column by column
 *
 * Every token sees every token. Nearly all weights of a construction are zero, so they are kept as lists of those that are not.
 *
 *     sp_net *net = sp_net_create(d, len, num_virtual_tokens);
 *     sp_span x = sp_net_channels(net, d);                                     // all channels before the first layer
 *     sp_net_begin_ffn(net, 0);                                                // a layer, as wide as it gets
 *     sp_net_unit(net, -0.5); sp_net_in(net, x.first, 1); sp_net_out(net, y.first, 2);   // y += 2 relu(x - 1/2)
 *     if (sp_net_status(net)) ...                                              // one check behind all the building
 *
 * Building never fails in the middle: out of memory is remembered, later calls do nothing, sp_net_status tells. */
#ifndef SP_LAB_NET_H
#define SP_LAB_NET_H

#include "softprompt.h"

typedef struct sp_net sp_net;

typedef struct sp_span { /* channels first .. first + n */
    size_t first, n;
} sp_span;

/* ---- building ---- */

sp_net *sp_net_create(size_t d, size_t len, size_t num_virtual_tokens); /* NULL: no memory */
void sp_net_free(sp_net *net);
sp_status sp_net_status(const sp_net *net); /* SP_ERR_MEMORY, with the message set; NULL is no memory, too */

sp_span sp_net_channels(sp_net *net, size_t n);
void sp_net_set_embedding(sp_net *net, size_t channel, size_t coordinate, double weight);
void sp_net_set_position(sp_net *net, size_t channel, size_t token, double value); /* token: prompt tokens first */

/* A feed-forward layer. max_width: so many units at the most, further ones go into a layer of their own behind it (0: no limit):
 * for units of which none reads what another writes, that is the same function. Units of one layer all read its input. */
void sp_net_begin_ffn(sp_net *net, size_t max_width);
void sp_net_unit(sp_net *net, double bias);
void sp_net_in(sp_net *net, size_t channel, double weight);  /* of the last unit */
void sp_net_out(sp_net *net, size_t channel, double weight); /* of the last unit */

typedef enum sp_net_matrix { SP_NET_Q, SP_NET_K, SP_NET_V, SP_NET_O } sp_net_matrix;

/* An attention layer of `rank` dimensions for queries and keys and n_values for values. Q, K (rank, D), V (n_values, D),
 * O (D, n_values). Rank 0: all scores are 0. */
void sp_net_begin_attention(sp_net *net, size_t rank, size_t n_values);
void sp_net_set(sp_net *net, sp_net_matrix matrix, size_t row, size_t column, double weight);

/* What is read at the end: channels of the input tokens. */
void sp_net_set_output(sp_net *net, sp_span channels);

/* ---- running ---- */

/* y (n, len, output channels) = what the net says of the inputs x (n, len, d) behind the prompt (num_virtual_tokens, d).
 * Parallel over inputs: the bytes do not depend on the number of threads.
 *   is_full   every token is computed for every input, as the formula has it. Else prompt tokens once for all: exact, because
 *             sp_net_prompt_is_shared holds; where it does not, all are computed anyway
 *   gaps      (n, len) of the last attention layer: score of each token's best key less the next best's; NULL: not wanted, and
 *             with is_full not given. Rank 0: 0
 * MEMORY. */
sp_status sp_net_forward(double *y, double *gaps, const sp_net *net, const double *prompt, const double *x, size_t n, bool is_full);

/* Does no layer read, of prompt tokens, what attention wrote there? Then they need not be computed anew for each input. */
bool sp_net_prompt_is_shared(const sp_net *net);

/* ---- what it is ---- */

typedef struct sp_net_size {
    size_t n_channels, num_virtual_tokens;
    size_t n_ffn, n_attention; /* layers */
    size_t max_ffn_width, max_rank;
    size_t n_weights_nonzero; /* of W1, b, W2, Q, K, V, O; positions and embedding not counted */
    double max_weight, max_position;
} sp_net_size;

sp_net_size sp_net_get_size(const sp_net *net);

/* Calls `visit` for every tensor of the net, zeros and all, in a fixed order: "embedding" (D, d), "positions" (D, tokens), then of
 * layer i "layers.<i>.w1" (H, D), ".b1" (1, H), ".w2" (D, H), or ".q", ".k" (rank, D), ".v" (n_values, D), ".o" (D, n_values), and
 * at last "output" (1, 2): the first channel that is read and how many. `values` lives for the call. A status other than SP_OK ends
 * it. */
typedef sp_status sp_net_visitor(void *user, const char *name, const double *values, size_t n_rows, size_t n_columns);
sp_status sp_net_visit(const sp_net *net, sp_net_visitor *visit, void *user);

#endif
