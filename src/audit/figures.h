/* figures.h: what the attention of one layer is like, head by head, over rows of text.
 *
 * A row is a query q that sees n keys. Scores are s_j = scale q . k_j, what the softmax reads (before a soft cap, where the model
 * has one: the cap only shrinks them). Entries are taken times sqrt(d_head * scale), which is d_head^(1/4) where scale is 1 /
 * sqrt(d_head): then s_j = q . k_j / d_head, as in the theorem (Alman and Song, arXiv 2302.13214), and entries of at most B give
 * scores of at most B^2. A softmax does not change when all its keys are moved by one vector; the centred scores are those of the
 * keys less their mean over the keys that the row sees, s_j - mean of s. */
#ifndef SP_AUDIT_FIGURES_H
#define SP_AUDIT_FIGURES_H

#include "base/arena.h"
#include "model/engine.h"

/* One head's, gathered over rows. Zero-initialise. */
typedef struct sp_head_figures {
    double max_entry_q, max_entry_k; /* of the rows' queries, of the keys that rows see; scaled */
    double max_score, max_score_centred;
    double cauchy_schwarz;              /* the largest scale |q| max_j |k_j - mean|: a bound on centred scores */
    double entries_ratio, scores_ratio; /* the worst row's max entry / sqrt(ln n) and max centred score / ln n; rows of n >= 2 */
    size_t n_keys;                      /* n of the row that entries_ratio comes from; 0: no row sees two keys */
    double entropy, sink_mass, prompt_mass; /* sums over n_rows */
    size_t n_rows;
} sp_head_figures;

/* Rows first_row .. first_row + n of the tree: one text, which sees the n_front first rows of the tree and itself. */
typedef struct sp_text_rows {
    size_t first_row, n;
} sp_text_rows;

/* figures (n_head) += what the view's layer does with the texts, whose rows are all queries of the view.
 *   n_front       rows of the prompt; 0: texts are the whole path
 *   only_maxima   entropy, masses and n_rows stay as they are
 * Parallel over texts, blocks of rows and key heads; the bytes do not depend on the number of threads. FORMAT: a query or a key is
 * not finite. Scratch is given back. */
sp_status sp_figures_add(sp_head_figures *figures, const sp_attention_view *view, const sp_text_rows *texts, size_t n_texts,
                         size_t n_front, bool only_maxima, sp_arena *scratch);

#endif
