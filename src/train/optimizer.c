/* optimizer.c: AdamW and Adafactor.
 *
 * Both see only the rows that are trained, as a matrix of its own: a frozen row is no parameter. Adafactor treats every matrix
 * alone. Cost: a few passes over each matrix; AdamW holds two of its size, Adafactor a row and a column. */
#include "train/optimizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/status.h"

static const double BETA1 = 0.9, BETA2 = 0.999, ADAM_EPS = 1e-8; /* torch.optim.AdamW's defaults */
static const double FACTOR_DECAY = -0.8, FACTOR_EPS = 1e-30;     /* Adafactor's; its second eps belongs to scale_parameter */
static const double CLIP_EPS = 1e-6;                             /* torch.nn.utils.clip_grad_norm_ */

enum { PARALLEL_FROM = 1 << 16 }; /* numbers; a network between weights and rows has millions */

typedef struct part {                   /* one matrix */
    size_t n_frozen, n_rows, n_columns; /* n_rows: of the trained part */
    float *first;         /* AdamW: mean of the gradient (n_rows, n_columns).  Adafactor: of its squares, along each row (n_rows) */
    float *second;        /* AdamW: mean of its square (n_rows, n_columns).    Adafactor: along each column (n_columns) */
    double *column_means; /* Adafactor: scratch (n_columns) */
    char first_name[48], second_name[48];
} part;

struct sp_optimizer_state {
    sp_optimizer kind;
    double weight_decay;
    double beta1, beta2; /* AdamW */
    size_t n_parts;
    part *parts; /* (n_parts) */
};

static void name_state(part *p, sp_optimizer kind, size_t index, size_t n)
{
    char number[24] = ""; /* of the matrix, where there are several */
    if (n > 1) snprintf(number, sizeof number, ".%zu", index);
    snprintf(p->first_name, sizeof p->first_name, "%s%s", kind == SP_ADAMW ? "adamw.exp_avg" : "adafactor.exp_avg_sq_row", number);
    snprintf(p->second_name, sizeof p->second_name, "%s%s", kind == SP_ADAMW ? "adamw.exp_avg_sq" : "adafactor.exp_avg_sq_col",
             number);
}

static sp_status create_part(part *p, sp_optimizer kind, const sp_weight_shape *shape)
{
    *p = (part){.n_frozen = shape->n_frozen, .n_rows = shape->n_rows - shape->n_frozen, .n_columns = shape->n_columns};
    size_t n = p->n_rows * p->n_columns;
    p->first = calloc((kind == SP_ADAMW ? n : p->n_rows) + 1, sizeof *p->first); /* + 1: all rows may be frozen */
    p->second = calloc((kind == SP_ADAMW ? n : p->n_columns) + 1, sizeof *p->second);
    p->column_means = calloc(p->n_columns, sizeof *p->column_means);
    return p->first && p->second && p->column_means ? SP_OK : sp_fail_no_memory(2 * n * sizeof(float));
}

sp_status sp_optimizer_create(sp_optimizer_state **out, sp_optimizer kind, const sp_weight_shape *shapes, size_t n,
                              double weight_decay)
{
    *out = NULL;
    if (kind != SP_ADAMW && kind != SP_ADAFACTOR)
        return sp_fail(SP_ERR_ARGUMENT, "optimizer %d is not known; use SP_ADAMW or SP_ADAFACTOR", (int)kind);
    sp_optimizer_state *o = calloc(1, sizeof *o);
    if (!o) return sp_fail_no_memory(sizeof *o);
    *o = (sp_optimizer_state){.kind = kind, .weight_decay = weight_decay, .beta1 = BETA1, .beta2 = BETA2};
    o->parts = calloc(n, sizeof *o->parts);
    sp_status st = o->parts ? SP_OK : sp_fail_no_memory(n * sizeof *o->parts);
    for (; !st && o->n_parts < n; o->n_parts++) {
        st = create_part(&o->parts[o->n_parts], kind, &shapes[o->n_parts]);
        name_state(&o->parts[o->n_parts], kind, o->n_parts, n);
    }
    if (st)
        sp_optimizer_free(o);
    else
        *out = o;
    return st;
}

void sp_optimizer_free(sp_optimizer_state *optimizer)
{
    if (!optimizer) return;
    for (size_t i = 0; i < optimizer->n_parts; i++) {
        free(optimizer->parts[i].first);
        free(optimizer->parts[i].second);
        free(optimizer->parts[i].column_means);
    }
    free(optimizer->parts);
    free(optimizer);
}

void sp_optimizer_set_betas(sp_optimizer_state *optimizer, double beta1, double beta2)
{
    optimizer->beta1 = beta1;
    optimizer->beta2 = beta2;
}

/* m = mean of g, v = mean of g^2, both pulled towards zero by their start; w -= rate * (m / c1) / (sqrt(v / c2) + eps). */
static void adamw_step(const sp_optimizer_state *state, part *o, float *w, const float *gradient, double rate, double keep,
                       uint64_t step)
{
    const double beta1 = state->beta1, beta2 = state->beta2, c1 = 1 - pow(beta1, (double)step), c2 = 1 - pow(beta2, (double)step);
    const size_t n = o->n_rows * o->n_columns;
#pragma omp parallel for schedule(static) if (n >= PARALLEL_FROM)
    for (size_t i = 0; i < n; i++) {
        double g = gradient[i], m = beta1 * o->first[i] + (1 - beta1) * g, v = beta2 * o->second[i] + (1 - beta2) * g * g;
        o->first[i] = (float)m;
        o->second[i] = (float)v;
        w[i] = (float)(keep * w[i] - rate * (m / c1) / (sqrt(v / c2) + ADAM_EPS));
    }
}

/* The squares' running means along rows and columns, and the mean over the rows' (returned). */
static double adafactor_moments(part *o, const float *gradient, double beta)
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
static void adafactor_step(part *o, float *w, const float *gradient, double rate, double keep, uint64_t step)
{
    double row_mean = adafactor_moments(o, gradient, 1 - pow((double)step, FACTOR_DECAY)), squares = 0;
    size_t n = o->n_rows * o->n_columns;
    for (size_t i = 0; i < n; i++) {
        double g = gradient[i];
        squares += g * g * row_mean / ((double)o->first[i / o->n_columns] * o->second[i % o->n_columns]);
    }
    double rms = sqrt(squares / (double)n), scale = rate / fmax(1, rms);
    for (size_t i = 0; i < n; i++) {
        double moment = (double)o->first[i / o->n_columns] * o->second[i % o->n_columns] / row_mean;
        w[i] = (float)(keep * w[i] - scale * gradient[i] / sqrt(moment));
    }
}

void sp_optimizer_step(sp_optimizer_state *optimizer, float *weights, const float *gradient, double learning_rate, uint64_t step)
{
    double keep = 1 - learning_rate * optimizer->weight_decay;
    for (size_t i = 0, at = 0; i < optimizer->n_parts; i++) {
        part *p = &optimizer->parts[i];
        at += p->n_frozen * p->n_columns;
        if (p->n_rows == 0) continue;
        if (optimizer->kind == SP_ADAMW)
            adamw_step(optimizer, p, weights + at, gradient + at, learning_rate, keep, step);
        else
            adafactor_step(p, weights + at, gradient + at, learning_rate, keep, step);
        at += p->n_rows * p->n_columns;
    }
}

size_t sp_optimizer_matrices(sp_named_matrix *out, sp_optimizer_state *optimizer)
{
    bool adamw = optimizer->kind == SP_ADAMW;
    size_t n = 0;
    for (size_t i = 0; i < optimizer->n_parts; i++) {
        part *p = &optimizer->parts[i];
        if (p->n_rows == 0) continue;
        n += SP_OPTIMIZER_MATRICES_EACH;
        *out++ = (sp_named_matrix){p->first_name, p->n_rows, adamw ? p->n_columns : 1, p->first};
        *out++ = (sp_named_matrix){p->second_name, adamw ? p->n_rows : 1, p->n_columns, p->second};
    }
    return n;
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
