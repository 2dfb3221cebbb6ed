/* figures.c: scores again, a block of queries at a time, and what is to be said of them.
 *
 * Attention itself keeps no scores, so they are computed here once more: for a block of rows of one text and one key head, the keys
 * that the block sees are put side by side (the prompt's and the text's), and products with queries and with the rows' mean keys
 * give scores and distances. Cost: as attention's, and half as much again; scratch (d_head + 100) numbers a key and thread. */
#include "audit/figures.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"
#include "tensor/kernels.h"

enum {
    BLOCK_ROWS = 32,
    PADDING = 16 /* kernels work in whole vectors */
};

/* A block of a text's rows, seen by the heads of one key head. */
typedef struct unit {
    const sp_text_rows *text;
    size_t first, n; /* of the text's rows */
    size_t head_kv;
} unit;

/* Room for one thread's unit. Rows ld apart. */
typedef struct workspace {
    size_t ld;
    float *keys;                   /* (d_head, ld) */
    float *norms, *entries;        /* (ld) of each key: |k|^2, max |entry| */
    float *means;                  /* (BLOCK_ROWS, d_head) */
    float *products;               /* (BLOCK_ROWS, ld) mean . k */
    float *scores;                 /* (BLOCK_ROWS, ld) */
    float *row, *weights;          /* (ld) */
    double *sum;                   /* (d_head) */
    double distances[BLOCK_ROWS];  /* of each row: max_j |k_j - mean| */
    float key_entries[BLOCK_ROWS]; /* of each row: max entry of the keys that it sees */
} workspace;

typedef struct job {
    const sp_attention_view *view;
    const sp_kernels *kernels;
    size_t n_front, heads_per_key;
    bool only_maxima;
    double entry_scale;
} job;

/* ---- gathering ---- */

static void note_row(sp_head_figures *f, double entry, double centred, size_t n)
{
    if (n < 2) return; /* one key has weight 1, whatever its score: there is nothing to approximate */
    double log_n = log((double)n), entries = entry / sqrt(log_n), scores = centred / log_n;
    if (!f->n_keys || entries > f->entries_ratio) {
        f->entries_ratio = entries;
        f->n_keys = n;
    }
    f->scores_ratio = fmax(f->scores_ratio, scores);
}

static void merge(sp_head_figures *to, const sp_head_figures *from)
{
    to->max_entry_q = fmax(to->max_entry_q, from->max_entry_q);
    to->max_entry_k = fmax(to->max_entry_k, from->max_entry_k);
    to->max_score = fmax(to->max_score, from->max_score);
    to->max_score_centred = fmax(to->max_score_centred, from->max_score_centred);
    to->cauchy_schwarz = fmax(to->cauchy_schwarz, from->cauchy_schwarz);
    to->scores_ratio = fmax(to->scores_ratio, from->scores_ratio);
    if (from->n_keys && (!to->n_keys || from->entries_ratio > to->entries_ratio)) {
        to->entries_ratio = from->entries_ratio;
        to->n_keys = from->n_keys;
    }
    to->entropy += from->entropy;
    to->sink_mass += from->sink_mass;
    to->prompt_mass += from->prompt_mass;
    to->n_rows += from->n_rows;
}

/* ---- keys ---- */

/* Keys that a text's row sees: of its path (prompt, then text), positions *first .. end. */
static size_t visible_keys(size_t *first, const job *j, size_t row)
{
    size_t end = j->n_front + row + 1, window = j->view->window;
    *first = window && end > window ? end - window : 0;
    return end;
}

/* The path's positions 0 .. n side by side. */
static void gather_keys(workspace *w, const job *j, const unit *u, size_t n)
{
    const size_t d = j->view->shape->d_head, ldk = j->view->ldk;
    const float *kt = j->view->kt + u->head_kv * d * ldk;
    for (size_t i = 0; i < d; i++, kt += ldk) {
        float *keys = w->keys + i * w->ld;
        if (j->n_front) memcpy(keys, kt, j->n_front * sizeof *keys);
        memcpy(keys + j->n_front, kt + u->text->first_row, (n - j->n_front) * sizeof *keys);
    }
}

static void measure_keys(workspace *w, size_t d, size_t n)
{
    memset(w->norms, 0, n * sizeof *w->norms);
    memset(w->entries, 0, n * sizeof *w->entries);
    for (size_t i = 0; i < d; i++) {
        const float *keys = w->keys + i * w->ld;
        for (size_t k = 0; k < n; k++) {
            float entry = fabsf(keys[k]);
            w->norms[k] += keys[k] * keys[k];
            w->entries[k] = entry > w->entries[k] || isnan(entry) ? entry : w->entries[k];
        }
    }
}

/* sum (d) += sign * the key at position k */
static void add_key(double *sum, const workspace *w, size_t d, size_t k, double sign)
{
    for (size_t i = 0; i < d; i++) sum[i] += sign * (double)w->keys[i * w->ld + k];
}

/* means (n, d_head): of the keys that each row of the block sees. In f64: keys come and go. */
static void average_keys(workspace *w, const job *j, const unit *u)
{
    const size_t d = j->view->shape->d_head;
    size_t from = 0, to = 0;
    memset(w->sum, 0, d * sizeof *w->sum);
    for (size_t r = 0; r < u->n; r++) {
        size_t first, end = visible_keys(&first, j, u->first + r);
        if (r == 0) from = to = first;
        while (to < end) add_key(w->sum, w, d, to++, 1);
        while (from < first) add_key(w->sum, w, d, from++, -1);
        for (size_t i = 0; i < d; i++) w->means[r * d + i] = (float)(w->sum[i] / (double)(end - first));
    }
}

/* distances and key_entries of the block's rows. */
static void measure_rows(workspace *w, const job *j, const unit *u, size_t n)
{
    const size_t d = j->view->shape->d_head;
    j->kernels->gemm(w->products, w->ld, w->means, d, 1, w->keys, w->ld, u->n, n, d, false);
    for (size_t r = 0; r < u->n; r++) {
        size_t first, end = visible_keys(&first, j, u->first + r);
        const float *mean = w->means + r * d, *products = w->products + r * w->ld;
        float largest = -INFINITY;
        for (size_t k = first; k < end; k++) {
            float distance = w->norms[k] - 2 * products[k];
            largest = distance > largest ? distance : largest;
        }
        w->distances[r] = sqrt(fmax(0, (double)largest + (double)j->kernels->dot(mean, mean, d)));
        w->key_entries[r] = j->kernels->max(w->entries + first, end - first);
    }
}

/* ---- rows ---- */

/* Entropy and masses of the softmax over row (n), scores that begin at position `first` of the path. */
static void add_weights(sp_head_figures *f, workspace *w, const job *j, size_t first, size_t n)
{
    const float cap = j->view->shape->soft_cap;
    if (cap != 0) j->kernels->soft_cap(w->row, NULL, cap, n);
    const float shift = j->kernels->max(w->row, n);
    memcpy(w->weights, w->row, n * sizeof *w->weights);
    j->kernels->softmax(w->weights, shift, n, n);
    double sum = 0, moment = 0, prompt = 0; /* where one key has nearly all weight, entropy is how far f64 says the sum is from 1 */
    for (size_t k = 0; k < n; k++) {
        sum += (double)w->weights[k];
        moment += (double)w->weights[k] * (double)(w->row[k] - shift);
    }
    for (size_t k = first; k < j->n_front; k++) prompt += (double)w->weights[k - first];
    f->entropy += log(sum) - moment / sum;
    f->sink_mass += first == 0 ? (double)w->weights[0] / sum : 0;
    f->prompt_mass += prompt / sum;
    f->n_rows++;
}

/* One query of a head against the keys that it sees; scores: of all keys of its path, unscaled. */
static void add_row(sp_head_figures *f, workspace *w, const job *j, const unit *u, size_t r, const float *q, const float *scores)
{
    const sp_attention_shape *shape = j->view->shape;
    size_t first, n = visible_keys(&first, j, u->first + r) - first;
    double entry_q = 0, sum = 0;
    float low = INFINITY, high = -INFINITY;
    for (size_t i = 0; i < shape->d_head; i++) entry_q = fmax(entry_q, fabs((double)q[i]));
    for (size_t k = 0; k < n; k++) {
        float s = w->row[k] = shape->scale * scores[first + k];
        sum += (double)s;
        low = s < low ? s : low;
        high = s > high ? s : high;
    }
    const double mean = sum / (double)n, centred = fmax((double)high - mean, mean - (double)low);
    const double q_scaled = entry_q * j->entry_scale, k_scaled = (double)w->key_entries[r] * j->entry_scale;
    const double length = sqrt((double)j->kernels->dot(q, q, shape->d_head));
    f->max_entry_q = fmax(f->max_entry_q, q_scaled);
    f->max_entry_k = fmax(f->max_entry_k, k_scaled);
    f->max_score = fmax(f->max_score, fmax((double)high, (double)-low));
    f->max_score_centred = fmax(f->max_score_centred, centred);
    f->cauchy_schwarz = fmax(f->cauchy_schwarz, (double)shape->scale * length * w->distances[r]);
    note_row(f, fmax(q_scaled, k_scaled), centred, n);
    if (!j->only_maxima) add_weights(f, w, j, first, n);
}

static bool all_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* figures (heads_per_key), which are empty. False: a number is not finite. */
static bool run_unit(sp_head_figures *figures, workspace *w, const job *j, const unit *u)
{
    const sp_attention_view *view = j->view;
    const size_t d = view->shape->d_head, n = j->n_front + u->first + u->n;
    const size_t query = u->text->first_row + u->first - view->query_rows[0];
    gather_keys(w, j, u, n);
    measure_keys(w, d, n);
    if (!all_finite(w->norms, n)) return false;
    average_keys(w, j, u);
    measure_rows(w, j, u, n);
    for (size_t h = 0; h < j->heads_per_key; h++) {
        const float *q = view->q + query * view->ldq + (u->head_kv * j->heads_per_key + h) * d;
        j->kernels->gemm(w->scores, w->ld, q, view->ldq, 1, w->keys, w->ld, u->n, n, d, false);
        for (size_t r = 0; r < u->n; r++, q += view->ldq) {
            if (!all_finite(q, d) || !all_finite(w->scores + r * w->ld, n)) return false;
            add_row(&figures[h], w, j, u, r, q, w->scores + r * w->ld);
        }
    }
    return true;
}

/* ---- all of it ---- */

static sp_status make_workspace(workspace *w, size_t d, size_t n_keys, sp_arena *scratch)
{
    const size_t ld = (n_keys + PADDING - 1) / PADDING * PADDING + PADDING;
    *w = (workspace){.ld = ld};
    w->keys = sp_arena_alloc(scratch, d * ld, sizeof(float));
    w->products = sp_arena_alloc(scratch, BLOCK_ROWS * ld, sizeof(float));
    w->scores = sp_arena_alloc(scratch, BLOCK_ROWS * ld, sizeof(float));
    w->means = sp_arena_alloc(scratch, BLOCK_ROWS * d, sizeof(float));
    w->sum = sp_arena_alloc(scratch, d, sizeof(double));
    w->norms = sp_arena_alloc(scratch, 4 * ld, sizeof(float));
    if (!w->keys || !w->products || !w->scores || !w->means || !w->sum || !w->norms) return SP_ERR_MEMORY;
    memset(w->keys, 0, d * ld * sizeof(float)); /* products run over the padding, too */
    w->entries = w->norms + ld;
    w->row = w->entries + ld;
    w->weights = w->row + ld;
    return SP_OK;
}

static sp_status list_units(unit **out, size_t *n, size_t *n_keys, const sp_text_rows *texts, size_t n_texts, size_t n_front,
                            size_t n_head_kv, sp_arena *scratch)
{
    *n = *n_keys = 0;
    for (size_t t = 0; t < n_texts; t++) {
        *n += (texts[t].n + BLOCK_ROWS - 1) / BLOCK_ROWS * n_head_kv;
        *n_keys = sp_larger(*n_keys, n_front + texts[t].n);
    }
    unit *next = *out = sp_arena_alloc(scratch, *n, sizeof **out);
    if (!next) return SP_ERR_MEMORY;
    for (size_t t = 0; t < n_texts; t++)
        for (size_t first = 0; first < texts[t].n; first += BLOCK_ROWS)
            for (size_t h = 0; h < n_head_kv; h++)
                *next++ = (unit){&texts[t], first, sp_smaller(BLOCK_ROWS, texts[t].n - first), h};
    return SP_OK;
}

static sp_status run_units(sp_head_figures *found, const job *j, const unit *units, size_t n, size_t n_keys, sp_arena *scratch)
{
    const size_t n_threads = sp_smaller((size_t)omp_get_max_threads(), n);
    bool finite = true;
    workspace *workspaces = sp_arena_alloc(scratch, n_threads, sizeof *workspaces);
    if (!workspaces) return SP_ERR_MEMORY;
    for (size_t t = 0; t < n_threads; t++)
        if (make_workspace(&workspaces[t], j->view->shape->d_head, n_keys, scratch)) return SP_ERR_MEMORY;
#pragma omp parallel for schedule(dynamic) num_threads((int)n_threads) reduction(&& : finite)
    for (size_t i = 0; i < n; i++)
        finite = run_unit(found + i * j->heads_per_key, &workspaces[omp_get_thread_num()], j, &units[i]) && finite;
    if (finite) return SP_OK;
    return sp_fail(SP_ERR_FORMAT, "layer %zu: a query or a key is not finite: weights or prompt are damaged", j->view->layer);
}

sp_status sp_figures_add(sp_head_figures *figures, const sp_attention_view *view, const sp_text_rows *texts, size_t n_texts,
                         size_t n_front, bool only_maxima, sp_arena *scratch)
{
    const sp_attention_shape *shape = view->shape;
    const job j = {view,        sp_kernels_select(),
                   n_front,     shape->n_head / shape->n_head_kv,
                   only_maxima, sqrt((double)shape->d_head * (double)shape->scale)};
    const sp_arena_mark mark = sp_arena_get_mark(scratch);
    unit *units;
    size_t n, n_keys;
    sp_status st = list_units(&units, &n, &n_keys, texts, n_texts, n_front, shape->n_head_kv, scratch);
    if (st || n == 0) return st;
    sp_head_figures *found = sp_arena_alloc(scratch, n * j.heads_per_key, sizeof *found);
    if (!found) return SP_ERR_MEMORY;
    memset(found, 0, n * j.heads_per_key * sizeof *found);
    st = run_units(found, &j, units, n, n_keys, scratch);
    for (size_t i = 0; i < n && !st; i++)
        for (size_t h = 0; h < j.heads_per_key; h++)
            merge(&figures[units[i].head_kv * j.heads_per_key + h], &found[i * j.heads_per_key + h]);
    sp_arena_reset(scratch, mark);
    return st;
}
