/* target.h: the functions that the universality lab approximates: by name, from a table, from an expression.
 *
 * All are f: [0,1]^{len x d} -> [0,1]^{len x d}, Lipschitz in the sup norm with a constant that is known: error bounds are
 * multiples of it. */
#ifndef SP_LAB_TARGET_H
#define SP_LAB_TARGET_H

#include "softprompt.h"

typedef struct sp_target_function {
    const char *name;
    double lipschitz; /* in the sup norm */
    /* y (n) = f(x), n = d * len numbers, token after token */
    void (*evaluate)(double *y, const double *x, size_t n, const void *data);
    const void *data;
} sp_target_function;

/* identity reverse sort mean max sine bump rotate. */
extern const sp_target_function sp_target_functions[];
extern const size_t sp_n_target_functions;

/* NULL: none of that name. */
const sp_target_function *sp_target_function_find(const char *name);

static inline void sp_target_evaluate(double *y, const sp_target_function *f, const double *x, size_t n)
{
    f->evaluate(y, x, n, f->data);
}

/* A function through the rows of a CSV file, 2 n numbers each: inputs, then outputs, all in [0, 1]; no header. Between the rows it
 * is McShane's extension, the least of y_i + Lip |x - x_i|_inf, with the smallest constant that the rows allow.
 * FORMAT: another number of columns, a number outside [0, 1], one input with two outputs. */
typedef struct sp_target_table sp_target_table;
sp_status sp_target_table_load(sp_target_table **out, sp_target_function *f, const char *path, size_t n);
void sp_target_table_free(sp_target_table *table);

/* f from an expression of x1 .. xn (n = d * len, token after token) and i, the number of the output (1 .. n); its value is clipped
 * to [0, 1]. muParser's syntax. lipschitz > 0 is the caller's word, or 0: estimated from differences on a grid, and so no proof.
 * ARGUMENT: what muParser says of it. */
typedef struct sp_target_expression sp_target_expression;
sp_status sp_target_expression_create(sp_target_expression **out, sp_target_function *f, const char *text, size_t n,
                                      double lipschitz);
void sp_target_expression_free(sp_target_expression *expression);

#endif
