/* distill.c: queries -> two token trees of one shape -> distributions side by side.
 *
 * Invariant: student's and teacher's tree hold the same sequences below their roots, sorted the same way, so that their rows
 * correspond in order: the r-th row read of one has read what the r-th of the other has. The teacher's text is computed once, the
 * prompt in every step; nothing is kept of the teacher's distributions, which for a vocabulary are far larger than what they are
 * computed from. Cost: of a training step, and half a forward pass more. */
#include "train/distill.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/status.h"
#include "model/engine.h"

struct sp_distiller {
    sp_model *model;
    sp_teacher *teacher;
    sp_engine *engine; /* the student's */
    sp_arena *arena;   /* everything of one pass */
    sp_tree tree;
    sp_root root;
    bool root_done; /* the student's engine holds its keys */
};

sp_status sp_distiller_create(sp_distiller **out, sp_model *model, const int32_t *context, size_t n)
{
    *out = NULL;
    sp_distiller *d = calloc(1, sizeof *d);
    if (!d) return sp_fail_no_memory(sizeof *d);
    d->model = model;
    sp_status st = sp_teacher_create(&d->teacher, model, context, n);
    if (!st) st = sp_engine_create(&d->engine, model);
    if (!st) st = sp_arena_create(&d->arena);
    if (st)
        sp_distiller_free(d);
    else
        *out = d;
    return st;
}

void sp_distiller_free(sp_distiller *distiller)
{
    if (!distiller) return;
    sp_tree_free(&distiller->tree);
    sp_engine_free(distiller->engine);
    sp_teacher_free(distiller->teacher);
    sp_arena_free(distiller->arena);
    free(distiller);
}

sp_teacher *sp_distiller_teacher(sp_distiller *distiller)
{
    return distiller->teacher;
}

void sp_distiller_set_prompt(sp_distiller *distiller, const sp_prompt *prompt)
{
    distiller->root = sp_root_of_prompt(prompt);
    distiller->root_done = false;
}

/* ---- the two trees ---- */

/* Queries as sequences, and where their tokens went. The last token of each is predicted and not read. */
typedef struct batch {
    const sp_item *items;
    size_t n_items, n_answers;   /* n_answers: answer tokens of all items */
    size_t n_bos;                /* tokens at the start of each that the teacher does not read: 0 or 1 */
    size_t **student, **teacher; /* (n_items) rows of each sequence's tokens; the teacher's from token n_bos on */
} batch;

static sp_status check_items(batch *b, const sp_distiller *d)
{
    int32_t bos = sp_tokenizer_bos(sp_model_tokenizer(d->model));
    b->n_bos = sp_teacher_starts_with_bos(d->teacher);
    b->n_answers = 0;
    for (size_t i = 0; i < b->n_items; i++) {
        if (b->items[i].n_context == 0 || b->items[i].context[0] != bos) b->n_bos = 0;
        b->n_answers += b->items[i].n_answer;
    }
    for (size_t i = 0; i < b->n_items; i++)
        if (b->items[i].n_answer == 0 || b->items[i].n_context <= b->n_bos)
            return sp_fail(
                SP_ERR_ARGUMENT,
                "query %zu has %zu tokens of its own, of which %zu are to be predicted: what is compared stands behind a "
                "token of the query, so it needs at least one to read and one to predict",
                i + 1, b->items[i].n_context + b->items[i].n_answer - b->n_bos, b->items[i].n_answer);
    return SP_OK;
}

static sp_status build_trees(batch *b, sp_distiller *d, sp_tree *teacher)
{
    size_t n = b->n_items, root = SP_NO_RUN;
    size_t *lengths = sp_arena_alloc(d->arena, n, sizeof *lengths);
    const int32_t **sequences = sp_arena_alloc(d->arena, n, sizeof *sequences);
    b->student = sp_arena_alloc(d->arena, n, sizeof *b->student);
    b->teacher = sp_arena_alloc(d->arena, n, sizeof *b->teacher);
    if (!lengths || !sequences || !b->student || !b->teacher) return SP_ERR_MEMORY;
    for (size_t i = 0; i < n; i++) {
        const sp_item *item = &b->items[i];
        lengths[i] = item->n_context + item->n_answer - 1;
        int32_t *tokens = sp_arena_alloc(d->arena, lengths[i], sizeof *tokens);
        b->student[i] = sp_arena_alloc(d->arena, lengths[i], sizeof **b->student);
        b->teacher[i] = sp_arena_alloc(d->arena, lengths[i], sizeof **b->teacher);
        if (!tokens || !b->student[i] || !b->teacher[i]) return SP_ERR_MEMORY;
        memcpy(tokens, item->context, item->n_context * sizeof *tokens);
        if (item->n_answer > 1) memcpy(tokens + item->n_context, item->answer, (item->n_answer - 1) * sizeof *tokens);
        sequences[i] = tokens;
    }
    sp_tree_clear(&d->tree);
    sp_status st = d->root.n ? sp_tree_add_prompt(&root, &d->tree, d->root.n, d->root.text_position) : SP_OK;
    if (!st) st = sp_tree_add_sequences(b->student, &d->tree, root, sequences, lengths, n);
    for (size_t i = 0; i < n; i++) {
        sequences[i] += b->n_bos;
        lengths[i] -= b->n_bos;
    }
    return st ? st : sp_tree_add_sequences(b->teacher, teacher, 0, sequences, lengths, n);
}

/* ---- what is compared ---- */

/* A distribution of each side, behind one token of one query. */
typedef struct pair {
    size_t student, teacher; /* rows */
    size_t index;            /* among all answer tokens, item by item */
    float weight;
} pair;

static int by_student(const void *left, const void *right)
{
    const pair *a = left, *b = right;
    if (a->student != b->student) return a->student < b->student ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

/* What the two passes read: row by row, each once; queries that begin alike share rows, whose weights then add up. */
typedef struct reads {
    size_t n, *student, *teacher; /* (n) ascending */
    float *weights;               /* (n) */
    size_t *of;                   /* (n_answers) which of them each answer token is predicted by */
} reads;

static pair *list_pairs(const batch *b, sp_arena *arena, double scale)
{
    pair *pairs = sp_arena_alloc(arena, b->n_answers, sizeof *pairs), *next = pairs;
    for (size_t i = 0; i < b->n_items && pairs; i++) {
        const sp_item *item = &b->items[i];
        for (size_t k = 0; k < item->n_answer; k++, next++) {
            size_t before = item->n_context + k - 1; /* the token behind which the answer's k-th stands */
            *next = (pair){b->student[i][before], b->teacher[i][before - b->n_bos], (size_t)(next - pairs),
                           (float)(scale / (double)item->n_answer)};
        }
    }
    if (pairs) qsort(pairs, b->n_answers, sizeof *pairs, by_student);
    return pairs;
}

static sp_status list_reads(reads *out, const batch *b, sp_arena *arena, double scale)
{
    size_t n = b->n_answers;
    const pair *pairs = list_pairs(b, arena, scale);
    *out = (reads){.student = sp_arena_alloc(arena, n, sizeof(size_t)),
                   .teacher = sp_arena_alloc(arena, n, sizeof(size_t)),
                   .weights = sp_arena_alloc(arena, n, sizeof(float)),
                   .of = sp_arena_alloc(arena, n, sizeof(size_t))};
    if (!pairs || !out->student || !out->teacher || !out->weights || !out->of) return SP_ERR_MEMORY;
    for (size_t i = 0; i < n; i++) {
        if (out->n == 0 || out->student[out->n - 1] != pairs[i].student) {
            assert(out->n == 0 || out->teacher[out->n - 1] < pairs[i].teacher);
            out->student[out->n] = pairs[i].student;
            out->teacher[out->n] = pairs[i].teacher;
            out->weights[out->n++] = 0;
        }
        assert(out->teacher[out->n - 1] == pairs[i].teacher);
        out->weights[out->n - 1] += pairs[i].weight;
        out->of[pairs[i].index] = out->n - 1;
    }
    return SP_OK;
}

/* ---- passes ---- */

static sp_status forward_student(sp_distiller *d, const reads *r, bool with_gradient)
{
    sp_status st = SP_OK;
    if (d->root.keys_values && !d->root_done) st = sp_engine_set_keys_values(d->engine, 0, d->root.keys_values, d->root.n);
    if (st) return st;
    bool reuse = d->root.keys_values || (d->root_done && !with_gradient);
    const sp_pass pass = {.tree = &d->tree,
                          .first_row = reuse ? d->root.n : 0,
                          .prompt = d->root.embeddings,
                          .read_rows = r->student,
                          .n_read = r->n,
                          .keep_for_backward = with_gradient};
    d->root_done = false;
    st = sp_engine_forward(d->engine, &pass);
    d->root_done = !st && d->root.n > 0;
    return st;
}

/* *sum: over the items, of the mean of their divergences. gradient += that of scale * sum. */
static sp_status run_pass(double *sum, float *gradient, sp_distiller *d, const sp_item *items, size_t n_items, double scale)
{
    batch b = {.items = items, .n_items = n_items};
    reads r;
    sp_tree *tree;
    sp_engine *teacher;
    sp_arena_reset(d->arena, (sp_arena_mark){0});
    sp_status st = check_items(&b, d);
    if (!st) st = sp_teacher_begin(&tree, &teacher, d->teacher);
    if (st || (st = build_trees(&b, d, tree)) || (st = list_reads(&r, &b, d->arena, scale))) return st;
    const sp_pass pass = {.tree = tree, .first_row = sp_teacher_n_context(d->teacher), .read_rows = r.teacher, .n_read = r.n};
    double *kl = sp_arena_alloc(d->arena, r.n, sizeof *kl);
    if (!kl) return SP_ERR_MEMORY;
    if ((st = sp_engine_forward(teacher, &pass)) || (st = forward_student(d, &r, gradient != NULL)) ||
        (st = sp_engine_distill(kl, d->engine, teacher, r.weights, gradient != NULL)))
        return st;
    *sum = 0;
    for (size_t i = 0, index = 0; i < n_items; i++) {
        double own = 0;
        for (size_t k = 0; k < items[i].n_answer; k++) own += kl[r.of[index++]];
        *sum += own / (double)items[i].n_answer;
    }
    return gradient ? sp_engine_backward(gradient, d->engine) : SP_OK;
}

sp_status sp_distiller_loss(double *loss, float *gradient, sp_distiller *distiller, const sp_item *items, size_t n_items,
                            size_t pass_items)
{
    double sum = 0, part, scale = 1 / (double)n_items;
    for (size_t i = 0, n; i < n_items; i += n) {
        n = sp_scorer_fit(items + i, n_items - i < pass_items ? n_items - i : pass_items);
        sp_status st = run_pass(&part, gradient, distiller, items + i, n, scale);
        if (st) return st;
        sum += part;
    }
    *loss = sum * scale;
    return SP_OK;
}

/* ---- evaluation ---- */

static void report_progress(const sp_hooks *hooks, size_t done, size_t total, double seconds, double loss)
{
    if (!hooks || !hooks->progress) return;
    const sp_progress progress = {.what = "eval",
                                  .done = done,
                                  .total = total,
                                  .seconds = seconds,
                                  .rows_per_second = seconds > 0 ? (double)done / seconds : 0,
                                  .loss = loss};
    hooks->progress(hooks->user, &progress);
}

sp_status sp_distiller_evaluate(sp_evaluation *out, sp_distiller *distiller, const sp_encoded_data *data, size_t pass_items,
                                const sp_hooks *hooks)
{
    double begin = sp_seconds(), sum = 0, loss;
    sp_status st = SP_OK;
    *out = (sp_evaluation){.n = data->n, .n_truncated = data->n_truncated, .perplexity = NAN};
    sp_item *items = calloc(pass_items, sizeof *items);
    if (!items) return sp_fail_no_memory(pass_items * sizeof *items);
    for (size_t first = 0, n; first < data->n && !st; first += n) {
        n = data->n - first < pass_items ? data->n - first : pass_items;
        for (size_t i = 0; i < n; i++) items[i] = sp_item_of(&data->rows[first + i], 0);
        if (hooks && hooks->stop && *hooks->stop)
            st = sp_fail(SP_ERR_STOPPED, "stopped after %zu of %zu queries", first, data->n);
        else
            st = sp_distiller_loss(&loss, NULL, distiller, items, n, n);
        if (st) continue;
        sum += loss * (double)n;
        report_progress(hooks, first + n, data->n, sp_seconds() - begin, sum / (double)(first + n));
    }
    free(items);
    out->loss = sum / (double)data->n;
    out->seconds = sp_seconds() - begin;
    return st;
}
