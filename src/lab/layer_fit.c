/* layer_fit.c: the prompt of a random layer that answers what it should, by Levenberg and Marquardt's method.
 *
 * With residuals r (n) and their Jacobian J (n, m), a step is -(J^T J + damping)^{-1} J^T r = -J^T (J J^T + damping)^{-1} r: the
 * smaller of the two systems is solved. A step that lowers |r|^2 is kept and makes the damping smaller, another one is undone and
 * makes it larger. Gradients alone are not enough here: what separates two inputs is small differences of weights, and Adam needs
 * a hundred times as many steps (docs/decisions).
 *
 * Cost of a step: n m min(n, m), and an answer with its Jacobian. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/sizes.h"
#include "base/status.h"
#include "lab/random_layer.h"

static const double FIRST_DAMPING = 1e-2, LEAST_DAMPING = 1e-9, MOST_DAMPING = 1e6, SOFTER = 0.25, HARDER = 5;

typedef struct fit {
    const sp_layer_inputs *inputs;
    const double *answers;
    size_t n_prompt, n, m;               /* residuals, numbers of the prompt */
    double *prompt, *tried;              /* (m) */
    double *residuals, *tried_residuals; /* (n) */
    double *jacobian, *tried_jacobian;   /* (n, m) */
    double *system, *right;              /* (k, k), (k), k = min(n, m) */
    double *scratch, *memory;
} fit;

static sp_status create_fit(fit *f, const sp_layer_inputs *inputs, const double *answers, size_t n_prompt)
{
    const size_t d = inputs->layer->shape.d, n = inputs->n_tokens * d, m = n_prompt * d, k = sp_smaller(n, m);
    const size_t n_numbers = 2 * m + 2 * n + 2 * n * m + k * k + k + sp_layer_scratch(inputs->layer, n_prompt);
    *f = (fit){.inputs = inputs, .answers = answers, .n_prompt = n_prompt, .n = n, .m = m};
    f->memory = malloc(n_numbers * sizeof *f->memory);
    if (!f->memory) return sp_fail_no_memory(n_numbers * sizeof *f->memory);
    f->prompt = f->memory;
    f->tried = f->prompt + m;
    f->residuals = f->tried + m;
    f->tried_residuals = f->residuals + n;
    f->jacobian = f->tried_residuals + n;
    f->tried_jacobian = f->jacobian + n * m;
    f->system = f->tried_jacobian + n * m;
    f->right = f->system + k * k;
    f->scratch = f->right + k;
    return SP_OK;
}

/* ---- linear algebra ---- */

/* a (k, k), symmetric, becomes its Cholesky factor in the lower half; b = a^{-1} b. False: a is not positive. */
static bool solve(double *a, double *b, size_t k)
{
    for (size_t j = 0; j < k; j++)
        for (size_t i = j; i < k; i++) {
            double sum = a[i * k + j];
            for (size_t c = 0; c < j; c++) sum -= a[i * k + c] * a[j * k + c];
            if (i == j && !(sum > 0)) return false;
            a[i * k + j] = i == j ? sqrt(sum) : sum / a[j * k + j];
        }
    for (size_t i = 0; i < k; i++) {
        for (size_t c = 0; c < i; c++) b[i] -= a[i * k + c] * b[c];
        b[i] /= a[i * k + i];
    }
    for (size_t i = k; i-- > 0;) {
        for (size_t c = i + 1; c < k; c++) b[i] -= a[c * k + i] * b[c];
        b[i] /= a[i * k + i];
    }
    return true;
}

/* y (m) = J^T x (n) */
static void multiply_transposed(double *y, const double *jacobian, const double *x, size_t n, size_t m)
{
    memset(y, 0, m * sizeof *y);
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < m; c++) y[c] += jacobian[i * m + c] * x[i];
}

/* J J^T, or J^T J, with the damping on its diagonal; lower half. */
static void write_system(fit *f, double damping)
{
    const size_t n = f->n, m = f->m, k = sp_smaller(n, m);
    memset(f->system, 0, k * k * sizeof *f->system);
    if (n <= m) {
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j <= i; j++)
                for (size_t c = 0; c < m; c++) f->system[i * k + j] += f->jacobian[i * m + c] * f->jacobian[j * m + c];
    } else {
        for (size_t r = 0; r < n; r++)
            for (size_t i = 0; i < m; i++)
                for (size_t j = 0; j <= i; j++) f->system[i * k + j] += f->jacobian[r * m + i] * f->jacobian[r * m + j];
    }
    for (size_t i = 0; i < k; i++) f->system[i * k + i] += damping;
}

/* tried = prompt - step */
static bool take_step(fit *f, double damping)
{
    const size_t n = f->n, m = f->m;
    write_system(f, damping);
    if (n <= m) {
        memcpy(f->right, f->residuals, n * sizeof *f->right);
        if (!solve(f->system, f->right, n)) return false;
        multiply_transposed(f->tried, f->jacobian, f->right, n, m);
    } else {
        multiply_transposed(f->right, f->jacobian, f->residuals, n, m);
        if (!solve(f->system, f->right, m)) return false;
        memcpy(f->tried, f->right, m * sizeof *f->tried);
    }
    for (size_t c = 0; c < m; c++) f->tried[c] = f->prompt[c] - f->tried[c];
    return true;
}

/* ---- descent ---- */

/* |r|^2 of what is tried; *error: the largest |r_i|. */
static double try_out(fit *f, double *error)
{
    double sum = 0;
    sp_layer_answer(f->tried_residuals, f->tried_jacobian, f->inputs, f->tried, f->n_prompt, f->scratch);
    *error = 0;
    for (size_t i = 0; i < f->n; i++) {
        const double r = f->tried_residuals[i] -= f->answers[i];
        sum += r * r;
        if (!(fabs(r) <= *error)) *error = fabs(r);
    }
    return sum;
}

static void swap(double **a, double **b)
{
    double *kept = *a;
    *a = *b;
    *b = kept;
}

static void keep(fit *f)
{
    swap(&f->prompt, &f->tried);
    swap(&f->residuals, &f->tried_residuals);
    swap(&f->jacobian, &f->tried_jacobian);
}

/* From what stands in `tried`. Returns the error at the end, behind f->prompt. */
static double descend(fit *f, size_t *n_steps, const sp_layer_fit_options *o)
{
    double error = INFINITY, damping = FIRST_DAMPING, best = try_out(f, &error);
    keep(f);
    for (size_t step = 0; step < o->steps && !(error <= o->epsilon) && damping <= MOST_DAMPING; step++) {
        double tried_error = INFINITY, sum = INFINITY;
        if (o->stop && *o->stop) break;
        if (take_step(f, damping)) sum = try_out(f, &tried_error);
        ++*n_steps;
        if (sum < best) {
            best = sum;
            error = tried_error;
            damping = fmax(damping * SOFTER, LEAST_DAMPING);
            keep(f);
        } else {
            damping *= HARDER;
        }
    }
    return error;
}

sp_status sp_layer_fit(double *prompt, double *error, size_t *n_steps, const sp_layer_inputs *inputs, const double *answers,
                       size_t num_virtual_tokens, const sp_layer_fit_options *o)
{
    fit f;
    sp_rng rng = sp_rng_seed(o->seed, num_virtual_tokens);
    sp_status st = create_fit(&f, inputs, answers, num_virtual_tokens);
    *error = INFINITY;
    for (size_t start = 0; start < o->restarts && !st && !(*error <= o->epsilon); start++) {
        if (start && o->stop && *o->stop) break;
        for (size_t c = 0; c < f.m; c++) f.tried[c] = inputs->layer->size * sp_rng_normal(&rng);
        const double reached = descend(&f, n_steps, o);
        if (start && !(reached < *error)) continue;
        *error = reached;
        memcpy(prompt, f.prompt, f.m * sizeof *prompt);
    }
    free(f.memory);
    return st;
}
