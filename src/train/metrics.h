/* metrics.h: what an evaluation counts. */
#ifndef SP_TRAIN_METRICS_H
#define SP_TRAIN_METRICS_H

#include "softprompt.h"

/* Wilson score interval, 95 %, of `hits` among n >= 1.  E. B. Wilson, JASA 22 (1927). */
void sp_wilson_interval(double interval[2], size_t hits, size_t n);

/* Mean of the labels' F1 = 2 hits / (times true + times predicted), over the labels that occur as either, as scikit-learn's
 * f1_score(average="macro"). hits, n_true, n_predicted (n_labels). 0 where none occurs. */
double sp_macro_f1(const size_t *hits, const size_t *n_true, const size_t *n_predicted, size_t n_labels);

#endif
