/* lstm.h: one direction of a layer of long short-term memory, as torch.nn.LSTM computes it. Hochreiter & Schmidhuber 1997.
 *
 *     z_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, cut into i, f, g, o of n_hidden each
 *     c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),  h_t = sigmoid(o) tanh(c_t);  h and c begin at zero
 *
 * In reverse, t runs from the last row to the first. Weights are one array, as torch's state dictionary orders them: W_ih
 * (4 n_hidden, n_in), W_hh (4 n_hidden, n_hidden), b_ih, b_hh (4 n_hidden each). Shapes, threads and errors as in dense.h. */
#ifndef SP_TENSOR_LSTM_H
#define SP_TENSOR_LSTM_H

#include "base/arena.h"
#include "softprompt.h"

/* What the backward reads again. */
typedef struct sp_lstm_state {
    float *gates; /* (n, 4 n_hidden): i, f, g, o behind their sigmoid or tanh */
    float *cells; /* (n, n_hidden): c_t */
} sp_lstm_state;

/* h (n, n_hidden), rows ldh apart, and `state` are written; x (n, n_in). Fails with MEMORY. */
sp_status sp_lstm(float *h, size_t ldh, const sp_lstm_state *state, const float *x, const float *weights, size_t n, size_t n_in,
                  size_t n_hidden, bool reverse, sp_arena *scratch);

/* Of the forward's h, state and x: dX (n, n_in) = dL/dX, or dX += with `accumulate`; gradient, laid out as the weights, +=. dH's
 * rows stand ldh apart, as H's. Fails with MEMORY. */
sp_status sp_lstm_backward(float *dx, float *gradient, const float *dh, const float *h, size_t ldh, const sp_lstm_state *state,
                           const float *x, const float *weights, size_t n, size_t n_in, size_t n_hidden, bool reverse,
                           bool accumulate, sp_arena *scratch);

#endif
