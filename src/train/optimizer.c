/* optimizer.c: AdamW and Adafactor.
 *
 * Both see only the rows that are trained, as a matrix of its own: a frozen row is no parameter.
 * Cost: a few passes over the matrix; AdamW holds two of its size, Adafactor a row and a column. */
#include "train/optimizer.h"

#include <math.h>
#include <stdlib.h>

#include "base/status.h"

static const double BETA1 = 0.9, BETA2 = 0.999, ADAM_EPS = 1e-8; /* torch.optim.AdamW's defaults */
static const double FACTOR_DECAY = -0.8, FACTOR_EPS = 1e-30;     /* Adafactor's; its second eps belongs to scale_parameter */
static const double CLIP_EPS = 1e-6;                             /* torch.nn.utils.clip_grad_norm_ */

struct sp_optimizer_state {
    sp_optimizer kind;
    size_t n_frozen, n_rows, n_columns; /* n_rows: of the trained part */
    double weight_decay;
    float *first;         /* AdamW: mean of the gradient (n_rows, n_columns).  Adafactor: of its squares, along each row (n_rows) */
    float *second;        /* AdamW: mean of its square (n_rows, n_columns).    Adafactor: along each column (n_columns) */
    double *column_means; /* Adafactor: scratch (n_columns) */
};

sp_status sp_optimizer_create(sp_optimizer_state **out, sp_optimizer kind, size_t n_rows, size_t n_columns, size_t n_frozen,
                              double weight_decay)
{
    *out = NULL;
    if (kind != SP_ADAMW && kind != SP_ADAFACTOR)
        return sp_fail(SP_ERR_ARGUMENT, "optimizer %d is not known; use SP_ADAMW or SP_ADAFACTOR", (int)kind);
    sp_optimizer_state *o = calloc(1, sizeof *o);
    if (!o) return sp_fail_no_memory(sizeof *o);
    *o = (sp_optimizer_state){
        .kind = kind, .n_frozen = n_frozen, .n_rows = n_rows - n_frozen, .n_columns = n_columns, .weight_decay = weight_decay};
    size_t n = o->n_rows * n_columns;
    o->first = calloc(kind == SP_ADAMW ? n : o->n_rows, sizeof *o->first);
    o->second = calloc(kind == SP_ADAMW ? n : n_columns, sizeof *o->second);
    o->column_means = calloc(n_columns, sizeof *o->column_means);
    if (!o->first || !o->second || !o->column_means) {
        sp_optimizer_free(o);
        return sp_fail_no_memory(2 * n * sizeof(float));
    }
    *out = o;
    return SP_OK;
}

void sp_optimizer_free(sp_optimizer_state *optimizer)
{
    if (!optimizer) return;
    free(optimizer->first);
    free(optimizer->second);
    free(optimizer->column_means);
    free(optimizer);
}

/* m = mean of g, v = mean of g^2, both pulled towards zero by their start; w -= rate * (m / c1) / (sqrt(v / c2) + eps). */
static void adamw_step(sp_optimizer_state *o, float *w, const float *gradient, double rate, uint64_t step)
{
    double c1 = 1 - pow(BETA1, (double)step), c2 = 1 - pow(BETA2, (double)step), keep = 1 - rate * o->weight_decay;
    for (size_t i = 0, n = o->n_rows * o->n_columns; i < n; i++) {
        double g = gradient[i], m = BETA1 * o->first[i] + (1 - BETA1) * g, v = BETA2 * o->second[i] + (1 - BETA2) * g * g;
        o->first[i] = (float)m;
        o->second[i] = (float)v;
        w[i] = (float)(keep * w[i] - rate * (m / c1) / (sqrt(v / c2) + ADAM_EPS));
    }
}

/* The squares' running means along rows and columns, and the mean over the rows' (returned). */
static double adafactor_moments(sp_optimizer_state *o, const float *gradient, double beta)
{
    double total = 0;
    for (size_t c = 0; c < o->n_columns; c++) o->column_means[c] = 0;
    for (size_t r = 0; r < o->n_rows; r++) {
        const float *g = gradient + r * o->n_columns;
        double sum = 0;
        for (size_t c = 0; c < o->n_columns; c++) {
            double square = (double)g[c] * g[c] + FACTOR_EPS;
            sum += square;
            o->column_means[c] += square / (double)o->n_rows;
        }
        o->first[r] = (float)(beta * o->first[r] + (1 - beta) * sum / (double)o->n_columns);
        total += o->first[r];
    }
    for (size_t c = 0; c < o->n_columns; c++) o->second[c] = (float)(beta * o->second[c] + (1 - beta) * o->column_means[c]);
    return total / (double)o->n_rows;
}

/* The second moment of element (r, c) is taken as row_r * column_c / mean(row); u = g / its root, clipped as a whole. */
static void adafactor_step(sp_optimizer_state *o, float *w, const float *gradient, double rate, uint64_t step)
{
    double row_mean = adafactor_moments(o, gradient, 1 - pow((double)step, FACTOR_DECAY)), squares = 0;
    size_t n = o->n_rows * o->n_columns;
    for (size_t i = 0; i < n; i++) {
        double g = gradient[i];
        squares += g * g * row_mean / ((double)o->first[i / o->n_columns] * o->second[i % o->n_columns]);
    }
    double rms = sqrt(squares / (double)n), scale = rate / fmax(1, rms), keep = 1 - rate * o->weight_decay;
    for (size_t i = 0; i < n; i++) {
        double moment = (double)o->first[i / o->n_columns] * o->second[i % o->n_columns] / row_mean;
        w[i] = (float)(keep * w[i] - scale * gradient[i] / sqrt(moment));
    }
}

void sp_optimizer_step(sp_optimizer_state *optimizer, float *matrix, const float *gradient, double learning_rate, uint64_t step)
{
    size_t frozen = optimizer->n_frozen * optimizer->n_columns;
    if (optimizer->kind == SP_ADAMW)
        adamw_step(optimizer, matrix + frozen, gradient + frozen, learning_rate, step);
    else
        adafactor_step(optimizer, matrix + frozen, gradient + frozen, learning_rate, step);
}

size_t sp_optimizer_matrices(sp_named_matrix *out, sp_optimizer_state *optimizer)
{
    size_t n = optimizer->n_rows, d = optimizer->n_columns;
    if (optimizer->kind == SP_ADAMW) {
        out[0] = (sp_named_matrix){"adamw.exp_avg", n, d, optimizer->first};
        out[1] = (sp_named_matrix){"adamw.exp_avg_sq", n, d, optimizer->second};
    } else {
        out[0] = (sp_named_matrix){"adafactor.exp_avg_sq_row", n, 1, optimizer->first};
        out[1] = (sp_named_matrix){"adafactor.exp_avg_sq_col", 1, d, optimizer->second};
    }
    return 2;
}

double sp_gradient_clip(float *gradient, size_t n, double max_norm)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += (double)gradient[i] * gradient[i];
    double norm = sqrt(squares), scale = max_norm / (norm + CLIP_EPS);
    if (max_norm > 0 && scale < 1)
        for (size_t i = 0; i < n; i++) gradient[i] = (float)(gradient[i] * scale);
    return norm;
}
