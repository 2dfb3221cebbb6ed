/* key_meter.c: texts behind the prompt, many in a pass, and the engine's tap. Cost: a forward pass, and less than its attention. */
#include "train/key_meter.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/sizes.h"
#include "base/status.h"
#include "model/engine.h"
#include "model/model.h"
#include "tensor/kernels.h"

enum { ROWS_AT_ONCE = 512 }; /* texts wait until so many rows are there */

struct sp_key_meter {
    sp_model *model;
    sp_engine *engine;
    sp_arena *scratch; /* of one pass */
    sp_tree tree;      /* the prompt, then texts */
    size_t prompt_run;
    size_t *dimensions; /* (d_head) where the engine has each of a head's dimensions */

    const sp_key_bound *bound; /* of the present call, as the next two */
    const float *keys_values;
    sp_key_figures *figures;
};

sp_status sp_key_meter_create(sp_key_meter **out, sp_model *model)
{
    sp_model_info info;
    sp_model_get_info(&info, model);
    sp_key_meter *m = *out = calloc(1, sizeof *m);
    if (!m) return sp_fail_no_memory(sizeof *m);
    m->model = model;
    m->dimensions = malloc(info.d_head * sizeof *m->dimensions);
    sp_status st = m->dimensions ? sp_arena_create(&m->scratch) : sp_fail_no_memory(info.d_head * sizeof *m->dimensions);
    if (!st) st = sp_engine_create(&m->engine, model);
    for (size_t i = 0; i < info.d_head && !st; i++) m->dimensions[i] = sp_model_key_dimension(model, i);
    if (!st) return SP_OK;
    sp_key_meter_free(m);
    *out = NULL;
    return st;
}

void sp_key_meter_free(sp_key_meter *meter)
{
    if (!meter) return;
    sp_tree_free(&meter->tree);
    sp_engine_free(meter->engine);
    sp_arena_free(meter->scratch);
    free(meter->dimensions);
    free(meter);
}

/* ---- one layer ------------------------------------------------------------------------------------------------- */

/* Room for one key head. */
typedef struct workspace {
    float *q;           /* (d_head) a query in PEFT's order */
    float *coordinates; /* (rank) */
    float *keys;        /* (n_keys, d_head) less their mean; NULL: scores are not wanted */
} workspace;

static sp_status make_workspace(workspace *w, const sp_key_meter *m)
{
    const sp_key_bound *b = m->bound;
    *w = (workspace){.q = sp_arena_alloc(m->scratch, b->d_head, sizeof(float)),
                     .coordinates = sp_arena_alloc(m->scratch, b->rank, sizeof(float))};
    if (!w->q || !w->coordinates) return SP_ERR_MEMORY;
    if (m->figures->scores && !(w->keys = sp_arena_alloc(m->scratch, b->n_keys * b->d_head, sizeof(float)))) return SP_ERR_MEMORY;
    return SP_OK;
}

static void centre_keys(float *centred, const sp_key_meter *m, size_t head)
{
    const sp_key_bound *b = m->bound;
    const size_t d = b->d_head, width = 2 * sp_key_bound_n_heads(b) * d;
    const float *keys = m->keys_values + sp_key_bound_column(b, head);
    for (size_t i = 0; i < d; i++) {
        double mean = 0;
        for (size_t j = 0; j < b->n_keys; j++) mean += (double)keys[j * width + i] / (double)b->n_keys;
        for (size_t j = 0; j < b->n_keys; j++) centred[j * d + i] = (float)((double)keys[j * width + i] - mean);
    }
}

/* Does the row see one of the prompt's keys, or only those that a window leaves? */
static bool sees_prompt(const sp_key_meter *m, const sp_attention_view *view, size_t run, size_t row)
{
    return !view->window || sp_tree_position(&m->tree, run, row) + 1 < m->bound->n_keys + view->window;
}

static void add_moments(double *moments, const float *q, size_t d)
{
    for (size_t i = 0; i < d; i++, moments += d)
        for (size_t k = 0; k < d; k++) moments[k] += (double)q[i] * (double)q[k];
}

static double largest_score(const float *keys, const float *q, size_t n_keys, size_t d)
{
    const sp_kernels *kernels = sp_kernels_select();
    float largest = 0;
    for (size_t j = 0; j < n_keys; j++, keys += d) largest = fmaxf(largest, fabsf(kernels->dot(keys, q, d)));
    return (double)largest;
}

/* A number that is no smaller, in f32. */
static float round_up(double x)
{
    const float rounded = (float)x;
    return (double)rounded < x ? nextafterf(rounded, INFINITY) : rounded;
}

/* False: the query is not finite. */
static bool add_query(sp_key_figures *f, const workspace *w, const sp_key_bound *b, size_t head)
{
    double squares = 0, entry = 0;
    sp_key_bound_coordinates(w->coordinates, b, head, w->q);
    for (size_t i = 0; i < b->rank; i++) {
        squares += (double)w->coordinates[i] * (double)w->coordinates[i];
        entry = fmax(entry, fabs((double)w->coordinates[i]));
    }
    for (size_t i = 0; i < b->d_head; i++)
        if (!isfinite(w->q[i])) return false;
    if (f->moments) add_moments(f->moments + head * b->d_head * b->d_head, w->q, b->d_head);
    if (f->query_norms) f->query_norms[head] = fmaxf(f->query_norms[head], round_up(f->scale * sqrt(squares)));
    if (f->query_entries) f->query_entries[head] = fmax(f->query_entries[head], entry);
    if (f->scores) f->scores[head] = fmax(f->scores[head], f->scale * largest_score(w->keys, w->q, b->n_keys, b->d_head));
    return true;
}

/* All queries of one key head. False: one is not finite. */
static bool read_head(const sp_key_meter *m, const workspace *w, const sp_attention_view *view, size_t head_kv)
{
    const size_t d = m->bound->d_head, group = view->shape->n_head / view->shape->n_head_kv;
    const size_t head = view->layer * view->shape->n_head_kv + head_kv;
    if (w->keys) centre_keys(w->keys, m, head);
    for (size_t r = 0, run = 0; r < view->n_queries; r++) {
        const size_t row = view->query_rows[r];
        while (row >= m->tree.runs[run].first_row + m->tree.runs[run].n_rows) run++;
        if (!sees_prompt(m, view, run, row)) continue;
        const float *q = view->q + r * view->ldq + head_kv * group * d;
        for (size_t h = 0; h < group; h++, q += d) {
            for (size_t i = 0; i < d; i++) w->q[i] = q[m->dimensions[i]];
            if (!add_query(m->figures, w, m->bound, head)) return false;
        }
    }
    return true;
}

static sp_status see_layer(void *user, const sp_attention_view *view)
{
    sp_key_meter *m = user;
    const size_t n_heads = view->shape->n_head_kv;
    const sp_arena_mark mark = sp_arena_get_mark(m->scratch);
    workspace *workspaces = sp_arena_alloc(m->scratch, n_heads, sizeof *workspaces);
    sp_status st = workspaces ? SP_OK : SP_ERR_MEMORY;
    bool finite = true;
    for (size_t h = 0; h < n_heads && !st; h++) st = make_workspace(&workspaces[h], m);
    m->figures->scale = (double)view->shape->scale;
    if (!st) {
#pragma omp parallel for schedule(dynamic) reduction(&& : finite)
        for (size_t h = 0; h < n_heads; h++) finite = read_head(m, &workspaces[h], view, h) && finite;
    }
    sp_arena_reset(m->scratch, mark);
    if (st || finite) return st;
    return sp_fail(SP_ERR_FORMAT, "layer %zu: a query is not finite: weights are damaged, or training has left the numbers",
                   view->layer);
}

/* ---- passes -------------------------------------------------------------------------------------------------------- */

static sp_status run_pass(sp_key_meter *m)
{
    const size_t first = m->bound->n_keys, n = m->tree.n_rows - first;
    if (n == 0) return SP_OK;
    const sp_arena_mark mark = sp_arena_get_mark(m->scratch);
    size_t *read = sp_arena_alloc(m->scratch, n, sizeof *read);
    if (!read) return SP_ERR_MEMORY;
    for (size_t r = 0; r < n; r++) read[r] = first + r;
    const sp_pass pass = {.tree = &m->tree, .first_row = first, .read_rows = read, .n_read = n, .tap = see_layer, .tap_user = m};
    sp_status st = sp_engine_forward(m->engine, &pass);
    m->figures->n_rows += n;
    sp_arena_reset(m->scratch, mark);
    sp_tree_truncate(&m->tree, first);
    return st;
}

/* A row's context and what is read of its right answer, one run behind the prompt. */
static sp_status add_text(sp_key_meter *m, const sp_encoded_row *row)
{
    const size_t right = row->right == SIZE_MAX ? 0 : row->right, n_answer = row->n_candidate[right] - 1;
    size_t run;
    sp_status st = row->n_context ? sp_tree_add_run(&run, &m->tree, m->prompt_run, row->context, row->n_context) : SP_OK;
    if (st || n_answer == 0) return st;
    if (row->n_context) return sp_tree_extend_last(&m->tree, row->candidates[right], n_answer);
    return sp_tree_add_run(&run, &m->tree, m->prompt_run, row->candidates[right], n_answer);
}

sp_status sp_key_meter_read(sp_key_figures *figures, sp_key_meter *meter, const sp_key_bound *bound, const float *keys_values,
                            const sp_encoded_data *data, const size_t *rows, size_t n)
{
    sp_key_meter *m = meter;
    m->bound = bound;
    m->keys_values = keys_values;
    m->figures = figures;
    sp_tree_clear(&m->tree);
    sp_status st = sp_tree_add_prompt(&m->prompt_run, &m->tree, bound->n_keys, bound->n_keys);
    if (!st) st = sp_engine_set_keys_values(m->engine, 0, keys_values, bound->n_keys);
    for (size_t i = 0; i < n && !st; i++) {
        st = add_text(m, &data->rows[rows[i]]);
        if (!st && m->tree.n_rows - bound->n_keys >= ROWS_AT_ONCE) st = run_pass(m);
    }
    return st ? st : run_pass(m);
}
