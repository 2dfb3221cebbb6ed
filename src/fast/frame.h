/* frame.h: the coordinates in which attention is computed: keys centred and shrunk, values centred and shrunk.
 *
 * A softmax does not change under k -> k - c, so scores are kept small by a centre c: the mean of the keys or the middle of their
 * box, whichever leaves the smaller largest norm. Values v become v - middle of their range, by which rounding errors are in
 * proportion to that range, as the certificate's other part is. Factors are powers of two, so that they round nothing. */
#ifndef SP_FAST_FRAME_H
#define SP_FAST_FRAME_H

#include "base/arena.h"
#include "fast/kernels.h"
#include "softprompt.h"

typedef struct sp_frame {
    const sp_row_kernels *kernels;
    size_t n_threads; /* that measure and pack all keys or all queries at once */
    size_t d, d_v;
    size_t groups, columns; /* of columns: d_v values, ones, and zeros up to groups * columns */
    float *centre;          /* (d) of keys */
    double radius;          /* no key is farther from it; rounded up */
    double key_factor;      /* a power of two: |k - centre| * key_factor <= 1 */
    double query_factor;    /* of queries: scale / key_factor */
    float *value_middle;    /* (d_v) */
    double value_factor;    /* a power of two: |v - value_middle| * value_factor <= 1 */
    double value_range;     /* the largest max v - min v of a coordinate, rounded up */
    double value_magnitude; /* the largest |v| */
} sp_frame;

/* The smallest power of two above, inverted; 1 for 0. */
double sp_frame_shrinking_factor(double size);

/* Looks at all keys and values, at least one. ARGUMENT: one of them is no finite number; the message says which. No number depends
 * on n_threads, here and below. */
sp_status sp_frame_measure(sp_frame *out, const sp_attention_head *head, const sp_fast_kernels *kernels, size_t n_threads,
                           sp_arena *arena);

/* Other keys beside the values of a frame that is measured: `of` but for what is said of keys. ARGUMENT: as above. */
sp_status sp_frame_measure_keys(sp_frame *out, const sp_frame *of, const sp_attention_head *head, sp_arena *arena);

/* For each query an upper bound of |scale q . (k - centre)| over all keys (Cauchy-Schwarz), and the largest of them. ARGUMENT: a
 * query that is not finite, or scores that f32 does not hold. */
sp_status sp_frame_bound_queries(double *bounds, double *largest, const sp_frame *frame, const sp_attention_head *head,
                                 sp_arena *arena);

/* distances (n_keys): |k - centre|, rounded up. */
void sp_frame_measure_distances(double *distances, const sp_frame *frame, const sp_attention_head *head);

/* Keys first .. first + n of a list (NULL: of all, as they come) as a block of the kernels, n <= block_keys, zeros behind them up
 * to whole vectors: x (d, stride), v (block_keys / lanes, columns, lanes) for each group, groups one after the other. */
void sp_frame_pack_keys(float *x, float *v, const sp_frame *frame, const sp_attention_head *head, const size_t *list, size_t first,
                        size_t n, const sp_fast_kernels *kernels);

/* All keys, in the order of a list or as they come, as rows k (n, d), v (n, groups * columns), for the exact kernel; n is rounded
 * up to SP_EXACT_KEYS with copies of the last key that have no weight. Returns the rounded number. */
size_t sp_frame_pack_rows(float *k, float *v, const sp_frame *frame, const sp_attention_head *head, const size_t *list);

#endif
