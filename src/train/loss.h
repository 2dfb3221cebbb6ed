/* loss.h: the loss of training. */
#ifndef SP_TRAIN_LOSS_H
#define SP_TRAIN_LOSS_H

#include "train/scorer.h"

/* loss = mean over items of the mean over answer tokens of -ln p, in nats, in as many passes as it takes, each of at most
 * pass_items >= 1 items. Behind a root with targets, as PEFT has it with CPT: the mean over the tokens of all answers and, once for
 * each item, of the targets, which their weights multiply but do not count.
 * d_rows (prompt rows, width) += dloss/drows, of every row; NULL: not computed. n_items >= 1. */
sp_status sp_mean_loss(double *loss, float *d_rows, sp_scorer *scorer, const sp_item *items, size_t n_items, size_t pass_items);

#endif
