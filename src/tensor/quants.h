/* quants.h: rows of a tensor read as its file stores them, whatever the type.
 *
 * quants.c holds loops for the types that model files have most, compiled for each rung of the kernel ladder; ggml's own to_float
 * reads the others. Every number is the one that ggml's to_float gives, to the bit: products of the integers and half-precision
 * scales are exact in f32, and the one sum is rounded once. A NaN is a NaN there, too, not always the same one.
 *
 * Rows need no alignment where is_fast is set; ggml reads the other types as arrays of 16-bit numbers. Nothing outside the rows is
 * read. Cannot fail; any number of threads. bench/quants.c has the speeds. */
#ifndef SP_TENSOR_QUANTS_H
#define SP_TENSOR_QUANTS_H

#include <ggml.h>
#include <stdbool.h>
#include <stddef.h>

#include "tensor/kernels.h"

typedef struct sp_row_reader {
    enum ggml_type type;

    /* out (n) written: the numbers of n / block blocks from `row` on. n: a multiple of the type's block. */
    void (*expand)(const struct sp_row_reader *reader, float *out, const void *row, size_t n);

    /* y (n_rows) written: y_i = row_i . x, f32 throughout: nothing of x is rounded. Rows (n) stand row_bytes apart, x (n).
     * y_i is the same to the bit whatever rows are beside it, so rows may be divided among threads at will. */
    void (*dots)(const struct sp_row_reader *reader, float *y, const void *rows, size_t row_bytes, size_t n_rows, const float *x,
                 size_t n);
    bool is_fast; /* has loops of its own here */
} sp_row_reader;

/* How rows of `type` are read on the rung in use (tensor/kernels.h). Never NULL for a type that ggml can expand. */
const sp_row_reader *sp_row_reader_get(enum ggml_type type);

/* The same of another rung of sp_kernels_list; for tests. */
const sp_row_reader *sp_row_reader_of_rung(const sp_kernels *rung, enum ggml_type type);

#endif
