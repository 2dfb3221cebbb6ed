/* matrix.h: a matrix with a name: how state travels between an optimiser and a checkpoint. */
#ifndef SP_TRAIN_MATRIX_H
#define SP_TRAIN_MATRIX_H

#include <stddef.h>

typedef struct sp_named_matrix {
    const char *name;
    size_t n_rows, n_columns;
    float *data; /* (n_rows, n_columns), borrowed */
} sp_named_matrix;

#endif
