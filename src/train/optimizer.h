/* optimizer.h: AdamW and Adafactor over the matrices that are trained, and clipping of their gradient.
 *
 *     double norm = sp_gradient_clip(gradient, n, 1.0);
 *     sp_optimizer_step(optimizer, weights, gradient, learning_rate, step);
 *
 * State is f32, as in PyTorch; each element is computed in f64 and rounded once. Sums run in one
 * order, which is what makes a resumed run equal to the bit; what moves element by element runs in parallel where there is much. */
#ifndef SP_TRAIN_OPTIMIZER_H
#define SP_TRAIN_OPTIMIZER_H

#include "prompt/prompt.h"
#include "train/matrix.h"

typedef struct sp_optimizer_state sp_optimizer_state;

enum { SP_OPTIMIZER_MATRICES_EACH = 2 }; /* of state, for every matrix trained */

/* For n >= 1 matrices that stand behind each other in one array. The frozen rows of one are constants: they have no state, never
 * move, and take no part in Adafactor's means; n_frozen < n_rows in at least one. State starts at zero. Fails with MEMORY, and
 * with ARGUMENT for an unknown kind. */
sp_status sp_optimizer_create(sp_optimizer_state **out, sp_optimizer kind, const sp_weight_shape *shapes, size_t n,
                              double weight_decay);
void sp_optimizer_free(sp_optimizer_state *optimizer);

/* Of ADAMW, before the first step: how much of each moment is kept from step to step, both in [0, 1). */
void sp_optimizer_set_betas(sp_optimizer_state *optimizer, double beta1, double beta2);

/* One step down `gradient`; both arrays hold all matrices, they must not overlap. `step` counts from 1: it is all that
 * the bias corrections need, so it is the caller's and no part of the state.
 *   SP_ADAMW      Loshchilov & Hutter, arXiv 1711.05101: beta 0.9 and 0.999 unless set, eps 1e-8, as torch.optim.AdamW
 *   SP_ADAFACTOR  Shazeer & Stern, arXiv 1804.04235: factored second moment, no first one, decay 1 - step^-0.8, update clipped
 *                 to a root mean square of 1; as transformers' Adafactor with relative_step and scale_parameter off, so that
 *                 learning_rate means what it says (torch.optim.Adafactor would scale it by the matrix's own size)
 * Weight decay is decoupled in both. Cannot fail. */
void sp_optimizer_step(sp_optimizer_state *optimizer, float *weights, const float *gradient, double learning_rate, uint64_t step);

/* The state, to be saved and filled again: writes SP_OPTIMIZER_MATRICES_EACH entries for every matrix that has rows to train,
 * returns how many. Data and
 * names belong to the optimiser. */
size_t sp_optimizer_matrices(sp_named_matrix *out, sp_optimizer_state *optimizer);

/* Scales `gradient` (n) down to a 2-norm of max_norm where it is longer, as torch.nn.utils.clip_grad_norm_; max_norm <= 0
 * leaves it. Returns the norm before: not finite where an element is not. */
double sp_gradient_clip(float *gradient, size_t n, double max_norm);

#endif
