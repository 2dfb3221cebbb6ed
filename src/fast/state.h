/* state.h: the inside of a head's moments, for the files of this directory and for the engine, whose threads bring scratch of their
 * own. What it is: softprompt.h. */
#ifndef SP_FAST_STATE_H
#define SP_FAST_STATE_H

#include <float.h>
#include <stdatomic.h>

#include "fast/plane.h"
#include "fast/remez.h"
#include "format/safetensors.h"
#include "softprompt.h"

struct sp_fast_state {
    sp_plane plane;
    size_t d_v, n_keys;
    float scale;
    sp_exp_polynomial polynomial;
    double radius;        /* of keys in the plane that it takes */
    double remainder;     /* no key so far lies farther from the plane, rounded up, */
    double max_remainder; /* and none may */
    double key_factor;    /* a power of two: |coordinates of a key| * key_factor <= 1 */

    float *value_middle;             /* (d_v) */
    float *value_least, *value_most; /* (d_v) of values so far */
    double value_factor;             /* a power of two: those it began with, less the middle, times it are at most 1 */

    size_t n_features, columns,
        ld;          /* columns: d_v values and ones; ld: rounded up to four; whole cache lines would be a fifth more to read */
    double *moments; /* (n_features, columns), in the order of fast/kernels.h */
    double *factors; /* (n_features): multinomial times coefficient */
    float *features; /* (n_features, ld): moments times factors, zeros behind the columns */
};

/* What a call found of its queries. Zero-initialise; calls add to it. */
typedef struct sp_state_use {
    size_t n_queries, n_beyond;
    double range;      /* the largest score that a query may reach, of all */
    double log_ratio;  /* how far, in ln of a weight, a query's remainder and what it was shortened by may be off: the largest */
    double least_mean; /* normaliser / keys, the smallest; 0: none yet */
} sp_state_use;

/* More than what x, a length or a score, was rounded down by. */
static inline double sp_state_rounded_up(double x)
{
    return x * (1 + 64 * DBL_EPSILON);
}

size_t sp_fast_state_scratch_floats(const sp_fast_state *state);

/* out (n, d_v) rows ldo apart: attention over the state's keys alone; lse (n): ln sum exp of its scores. q: n rows ldq apart.
 * ARGUMENT: a query that is not finite. */
sp_status sp_fast_state_evaluate(float *out, size_t ldo, float *lse, sp_state_use *use, const sp_fast_state *state, const float *q,
                                 size_t ldq, size_t n, float *scratch);

/* How far weights are off at most, in total variation, by what was found: a certificate's weights_bound alone. */
double sp_fast_state_weights_bound(const sp_fast_state *state, const sp_state_use *use);

/* The certificate of what was found, over values of range `value_range` and magnitude `value_magnitude` (the state's own or, where
 * other keys share the softmax, all). */
void sp_fast_state_certify(sp_certificate *out, const sp_fast_state *state, const sp_state_use *use);

/* The states of all heads of a prompt, (n_layer, n_head_kv): read by whoever holds it, and freed with the last of them. */
typedef struct sp_state_set {
    atomic_size_t n_holders;
    size_t n;
    sp_fast_state *of[];
} sp_state_set;

sp_status sp_state_set_create(sp_state_set **out, size_t n); /* NULLs, held by the caller */
sp_state_set *sp_state_set_hold(sp_state_set *set);          /* returns it; NULL stays NULL, here and below */
void sp_state_set_release(sp_state_set *set);

/* ---- files: a state is some tensors under a common prefix of their names ---- */

enum { SP_STATE_TENSORS = 7 };

/* What a state is, as tensors; numbers (SP_STATE_NUMBERS) is filled in. Names are written into `names`. */
enum { SP_STATE_NUMBERS = 10, SP_STATE_NAME = 96 };
typedef struct sp_state_tensors {
    char names[SP_STATE_TENSORS][SP_STATE_NAME];
    double numbers[SP_STATE_NUMBERS];
    sp_st_tensor tensors[SP_STATE_TENSORS];
} sp_state_tensors;
void sp_fast_state_list(sp_state_tensors *out, const sp_fast_state *state, const char *prefix);

/* FORMAT: a tensor is missing, has another shape, or holds what no state has. */
sp_status sp_fast_state_read(sp_fast_state **out, const sp_safetensors *file, const char *path, const char *prefix);

/* state.c, for state_file.c: features of the moments; frees nothing on failure. */
sp_status sp_fast_state_allocate(sp_fast_state *state, uint64_t max_bytes);
void sp_fast_state_refresh(sp_fast_state *state);

#endif
