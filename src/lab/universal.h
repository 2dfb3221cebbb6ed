/* universal.h: frozen transformers that a prompt turns into any Lipschitz function, built weight by weight.
 *
 * Hu et al., arXiv 2411.16525, prove that one transformer with a single head and a single attention layer is enough for every
 * Lipschitz f: [0,1]^{d x L} -> [0,1]^{d x L}. Its sizes are beyond any machine; these constructions reach the same with sizes that
 * run. The unit cube is cut into grid^{dL} cells, and the prompt is the table of f: token l * grid^{dL} + c is f(centre of cell c),
 * its l-th token. Nothing else depends on f (INDEX apart, whose family is built in).
 *
 * Cells are numbered with the first coordinate of the first token as the slowest digit, base grid. A coordinate's cell is told by
 * log2(grid) bits of its Gray code, so that from a cell to the next exactly one bit changes: on the ramps, where a quantiser goes
 * from one cell to the next, the output goes straight from the one value to the other. */
#ifndef SP_LAB_UNIVERSAL_H
#define SP_LAB_UNIVERSAL_H

#include "lab/net.h"
#include "lab/target.h"

typedef struct sp_universal_shape {
    size_t d, len, grid; /* grid: a power of two, cells of a coordinate */
    double ramp;         /* width of a quantiser's ramp, in grid steps: (0, 1] */
    bool is_deep;        /* variant A, feed-forward layers of at most 4 units; else B, wide ones */
} sp_universal_shape;

typedef struct sp_universal {
    sp_universal_shape shape;
    sp_net *net;
    size_t num_virtual_tokens;
    double gap;         /* scores of the last attention layer: best less next best, off the ramps; 0: all are equal */
    double leakage;     /* bound on what other keys than the right ones add to the output, off the ramps */
    double value_error; /* bound on how far a value of the table may be from what the prompt says of it */
    size_t n_levels;    /* DIGITS: values that a table's entry can take */
    size_t n_functions; /* INDEX */
} sp_universal;         /* zero-initialise; sp_universal_clear */

void sp_universal_clear(sp_universal *universal);

/* lookup.c: (II) of docs/theory.md. Constant size; one attention layer for len 1, two beyond. */
sp_status sp_universal_lookup(sp_universal *out, const sp_universal_shape *shape);

/* uniform.c: (III-u), the strict theorem: one attention layer, whose scores are all 0; O(d L grid^{dL}) channels. */
sp_status sp_universal_uniform(sp_universal *out, const sp_universal_shape *shape);

/* digits.c: the whole table in one number a coordinate: one virtual token. UNSUPPORTED: f64 has fewer digits than that takes; the
 * message says how many it would be. */
sp_status sp_universal_digits(sp_universal *out, const sp_universal_shape *shape);

/* index.c: (I), the paper's own way: the prompt is the number of a function among `targets`, (n_targets). */
sp_status sp_universal_index(sp_universal *out, const sp_universal_shape *shape, const sp_target_function *targets,
                             size_t n_targets);

/* prompt (num_virtual_tokens, d) written: what makes it f, or, of INDEX, targets[index]. MEMORY. */
sp_status sp_universal_table_prompt(double *prompt, const sp_universal *universal,
                                    const sp_target_function *f); /* LOOKUP, UNIFORM */
sp_status sp_universal_digits_prompt(double *prompt, const sp_universal *universal, const sp_target_function *f);
void sp_universal_index_prompt(double *prompt, const sp_universal *universal, size_t index);

/* ---- what they take, without building ---- */

/* The coarsest grid, a power of two, whose bound for functions of this slope is at most epsilon; what a construction loses beside
 * the grid, below 1e-9, is not counted. 0: it would be 2^62 cells or more. */
size_t sp_universal_grid_for(sp_construction construction, double lipschitz, double ramp, double epsilon);

/* log2 of the table's length, len * grid^{d len}: LOOKUP's and UNIFORM's virtual tokens. */
double sp_universal_table_log2(const sp_universal_shape *shape);

size_t sp_universal_index_tokens(const sp_universal_shape *shape, size_t n_targets);
double sp_universal_index_bits(const sp_universal_shape *shape, size_t n_targets); /* that its numbers take */
double sp_universal_digits_log2_bits(const sp_universal_shape *shape);             /* log2 of the bits of a number of its token */

/* sup |net - f| over the whole cube: Lip (delta + w) / 2 + what leaks, in the sup norm (docs/theory.md, lemma 3). INDEX: only off
 * the ramps. */
double sp_universal_bound(const sp_universal *universal, double lipschitz);

/* ---- for the constructions ---- */

static inline size_t sp_log2(size_t n) /* of a power of two */
{
    return (size_t)__builtin_ctzll(n);
}

size_t sp_power(size_t base, size_t exponent); /* SIZE_MAX where it does not fit */

/* Digit `k` (0: the slowest, of d len) of cell c; a Gray code bit of it, bit 0 the slowest. */
size_t sp_cell_digit(const sp_universal_shape *shape, size_t cell, size_t k);
int sp_gray_bit(size_t value, size_t n_bits, size_t bit);
int sp_cell_bit(const sp_universal_shape *shape, size_t cell, size_t bit); /* bit of d len log2(grid) */

/* centre (len, d) of a cell */
void sp_cell_centre(double *centre, const sp_universal_shape *shape, size_t cell);

/* table (len * n_cells, d) of f: row l * n_cells + c. */
void sp_cell_table(double *table, const sp_universal_shape *shape, const sp_target_function *f);

/* Channels that every construction has. */
typedef struct sp_universal_channels {
    sp_span x;      /* (d) the token's numbers */
    sp_span spare;  /* (d) the same, for the deep quantiser to work on */
    sp_span bits;   /* (d m) the Gray code of x */
    sp_span gated;  /* (len d m) of input token l: its bits in block l, else 0 */
    sp_span codes;  /* (len d m) the bits of all input tokens, once attention has gathered them */
    sp_span onehot; /* (len) which input token it is; 0 of prompt tokens */
    sp_span one;    /* (1) 1 */
    sp_span y;      /* (d) */
} sp_universal_channels;

void sp_universal_begin(sp_universal_channels *c, sp_net *net, const sp_universal_shape *shape);

/* bits = Gray code of x, piecewise linear: slope grid / ramp around every border of two cells. Deep: the tent map, iterated. */
void sp_universal_quantise(sp_net *net, const sp_universal_channels *c, const sp_universal_shape *shape);

/* gated = bits, in the token's own block. A layer that is begun. */
void sp_universal_gate(sp_net *net, const sp_universal_channels *c, const sp_universal_shape *shape);

/* y = the value of `values` (d, len * n_cells), rows of channels, that codes and onehot name; values must be >= 0. It overwrites
 * them: candidates are value - (distance of the codes) - 2 (other token), cut at 0, and the largest of them, by a tree of maxima.
 */
void sp_universal_pick(sp_net *net, const sp_universal_channels *c, const sp_universal_shape *shape, sp_span values);

/* For sp_net_begin_ffn: 4 in the deep variant. */
static inline size_t sp_universal_width(const sp_universal_shape *shape)
{
    return shape->is_deep ? 4 : 0;
}

#endif
