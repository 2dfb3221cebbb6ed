/* linear.c: large products in tasks of some columns of the result.
 *
 * A task walks the sum in steps of k: it expands that piece of the weights into panels of its thread's own, and multiplies all rows
 * with them. Sums over k are kept short enough (MAX_STEP) that their rounding does not show: one running sum over a vocabulary
 * loses two digits of a gradient. */
#include "tensor/linear.h"

#include <omp.h>
#include <string.h>

#include "base/clock.h"
#include "base/profile.h"
#include "base/sizes.h"
#include "base/status.h"
#include "tensor/panels.h"

enum {
    PANEL_WORDS = 1 << 16, /* of a thread: 256 KiB, half of the smallest second-level cache */
    MAX_STEP = 640,        /* terms of a sum before it is added to the result: A's rows then fit the first-level cache, too */
    ROWS_AHEAD = 16,
    CACHE_LINE_BYTES = 64,
    FEW_ROWS = 2, /* up to this many rows the stored weights are multiplied directly */
    DOT_ROWS = 32 /* outputs of a task then */
};

size_t sp_weight_n_out(const sp_weight *w)
{
    size_t n = 0;
    for (size_t i = 0; i < w->n_parts; i++) n += w->parts[i].n_rows;
    return n;
}

sp_weight sp_weight_select(const sp_weight *w, size_t first, size_t n)
{
    sp_weight selected = {.n_in = w->n_in, .n_parts = n};
    memcpy(selected.parts, w->parts + first, n * sizeof *selected.parts);
    return selected;
}

/* The part that holds output row o; o becomes the row within it. */
static const sp_weight_part *find_part(const sp_weight *w, size_t *o)
{
    const sp_weight_part *part = w->parts;
    for (; *o >= part->n_rows; part++) *o -= part->n_rows;
    return part;
}

/* out (n) = row o of W from column `first` on; first and n are multiples of the type's block, or n ends the row. The same piece
 * `ahead` rows further on is asked for: weights come from memory, and a hundred nanoseconds are as long as some thousand numbers.
 */
static void expand_piece(float *out, const sp_weight *w, size_t o, size_t first, size_t n, size_t ahead)
{
    const sp_weight_part *part = find_part(w, &o);
    const char *piece = (const char *)part->rows + o * part->row_bytes + part->row_bytes * first / w->n_in; /* of equal blocks */
    const char *next = piece + ahead * part->row_bytes, *next_end = next + part->row_bytes * n / w->n_in;
    for (; next < next_end; next += CACHE_LINE_BYTES) __builtin_prefetch(next);
    part->reader->expand(part->reader, out, piece, n);
}

static size_t largest_block(const sp_weight *w)
{
    size_t largest = 1;
    for (size_t i = 0; i < w->n_parts; i++) {
        size_t block = (size_t)ggml_blck_size(w->parts[i].reader->type);
        if (block > largest) largest = block;
    }
    return largest;
}

/* ---- few rows ---- */

/* Outputs [o, o + n) for each row of x; all in one part. */
static void dot_rows(float *y, size_t ldy, const float *x, size_t ldx, const sp_weight *w, size_t o, size_t n, size_t n_rows,
                     bool accumulate)
{
    float dots[DOT_ROWS];
    size_t row = o;
    const sp_weight_part *part = find_part(w, &row);
    const char *rows = (const char *)part->rows + row * part->row_bytes;
    for (size_t r = 0; r < n_rows; r++) {
        part->reader->dots(part->reader, dots, rows, part->row_bytes, n, x + r * ldx, w->n_in);
        for (size_t i = 0; i < n; i++) y[r * ldy + o + i] = (accumulate ? y[r * ldy + o + i] : 0) + dots[i];
    }
}

static void multiply_few(float *y, size_t ldy, const float *x, size_t ldx, const sp_weight *w, size_t n, bool accumulate)
{
    size_t n_out = sp_weight_n_out(w);
#pragma omp parallel for schedule(static)
    for (size_t first = 0; first < n_out; first += DOT_ROWS) {
        size_t end = n_out - first < DOT_ROWS ? n_out : first + DOT_ROWS;
        for (size_t o = first, part_rows; o < end; o += part_rows) {
            size_t row = o;
            part_rows = find_part(w, &row)->n_rows - row;
            if (part_rows > end - o) part_rows = end - o;
            dot_rows(y, ldy, x, ldx, w, o, part_rows, n, accumulate);
        }
    }
}

/* ---- many rows ---- */

/* One product C (n, n_columns) = A (n, n_inner) B, B = W^T or, backward, W. In bf16 words are pairs of numbers, else numbers. */
typedef struct product {
    const sp_panels *panels;
    const sp_weight *w;
    bool backward, accumulate, bf16;
    float *c;
    const void *a;   /* f32, or bf16 rows padded to whole pairs */
    size_t ldc, lda; /* lda in words */
    size_t n, n_columns, n_inner;
    size_t step;                   /* terms of a sum at a time */
    size_t columns, n_blocks;      /* of a task; tasks side by side */
    size_t rows_of_task, n_splits; /* tasks one above the other */
    size_t panel_words, scratch_words;
} product;

static size_t at_least_one(size_t a)
{
    return a ? a : 1;
}

/* ceil(a / b), and by nothing a whole. */
static size_t divide_up(size_t a, size_t b)
{
    return (a + b - 1) / at_least_one(b);
}

static size_t round_up(size_t a, size_t multiple)
{
    return divide_up(a, multiple) * multiple;
}

static size_t words_of(const product *p, size_t n_terms)
{
    return p->bf16 ? (n_terms + 1) / 2 : n_terms;
}

/* How many terms of a sum at a time: equal steps of whole blocks of the type and whole pairs, and so few that a task's fewest
 * columns, `unit`, fit. */
static size_t terms_of_step(const product *p, size_t unit, size_t block)
{
    size_t most = sp_smaller(MAX_STEP, PANEL_WORDS / unit);
    if (p->n_inner <= most) return p->n_inner;
    if (block == 1) block = 2;
    most = most / block * block;
    return sp_smaller(most, round_up(divide_up(p->n_inner, divide_up(p->n_inner, most)), block));
}

/* Tasks whose panels fit PANEL_WORDS, as many on each thread as on the others; where columns do not suffice for all threads, rows
 * are split too, at the price of expanding the same weights again. */
static void divide_work(product *p, size_t n_threads)
{
    size_t block = largest_block(p->w), width = p->panels->width;
    size_t unit = p->backward && block > width ? block : width; /* backward, a task's columns are pieces of stored rows */
    p->step = terms_of_step(p, unit, block);
    size_t n_units = divide_up(p->n_columns, unit), most = at_least_one(PANEL_WORDS / (unit * at_least_one(words_of(p, p->step))));
    size_t n_blocks = sp_smaller(n_units, round_up(divide_up(n_units, most), n_threads));
    p->columns = divide_up(n_units, n_blocks) * unit;
    p->n_blocks = divide_up(p->n_columns, p->columns);
    p->n_splits = sp_smaller(divide_up(n_threads, p->n_blocks), divide_up(p->n, 64));
    p->rows_of_task = divide_up(p->n, p->n_splits);
    p->panel_words = round_up(words_of(p, p->step), p->panels->lanes) * width;
    size_t rows = p->backward ? 2 * round_up(p->columns, width) : (width + 1) * round_up(p->step, 2 * p->panels->lanes);
    p->scratch_words = divide_up(p->columns, width) * p->panel_words + rows;
}

/* Terms [k, k + n) of one panel, forward: rows of W turned. `rows` is scratch: one row, and (width, n padded). */
static void pack_forward(float *panel, float *rows, const product *p, size_t column, size_t k, size_t n)
{
    size_t width = p->panels->width, ld = round_up(n, 2 * p->panels->lanes), words = words_of(p, ld);
    float *expanded = rows, *turned = rows + ld;
    for (size_t j = 0; j < width; j++) {
        float *row = p->bf16 ? expanded : turned + j * ld;
        size_t filled = column + j < p->n_columns ? n : 0;
        if (filled) expand_piece(row, p->w, column + j, k, n, width);
        memset(row + filled, 0, (ld - filled) * sizeof *row);
        if (p->bf16) p->panels->to_bf16((uint16_t *)(void *)(turned + j * words), row, ld);
    }
    p->panels->pack_transposed(panel, turned, words, words_of(p, n));
}

/* All panels of a task, backward: rows of W cut into pieces as wide as a panel; in bf16, pairs of rows. */
static void pack_backward(float *panels, float *rows, const product *p, size_t column, size_t n_columns, size_t k, size_t n)
{
    size_t width = p->panels->width, padded = round_up(n_columns, width), at_once = p->bf16 ? 2 : 1;
    memset(rows, 0, 2 * padded * sizeof *rows);
    for (size_t l = 0; l < n; l += at_once, panels += width) {
        expand_piece(rows, p->w, k + l, column, n_columns, ROWS_AHEAD);
        if (l + 1 < n && p->bf16) expand_piece(rows + padded, p->w, k + l + 1, column, n_columns, ROWS_AHEAD);
        if (l + 1 == n) memset(rows + padded, 0, padded * sizeof *rows);
        for (size_t j = 0; j < padded; j += width) {
            float *out = panels + j / width * p->panel_words;
            if (p->bf16)
                p->panels->to_pairs((uint32_t *)(void *)out, rows + j, rows + padded + j, width);
            else
                memcpy(out, rows + j, width * sizeof *rows);
        }
    }
}

static void pack(float *panels, float *rows, const product *p, size_t column, size_t n_columns, size_t k, size_t n)
{
    if (p->backward) {
        pack_backward(panels, rows, p, column, n_columns, k, n);
    } else {
        for (size_t j = 0; j < n_columns; j += p->panels->width)
            pack_forward(panels + j / p->panels->width * p->panel_words, rows, p, column + j, k, n);
    }
}

static void run_task(const product *p, size_t task, float *scratch)
{
    size_t column = task / p->n_splits * p->columns, n_columns = sp_smaller(p->columns, p->n_columns - column);
    size_t row = task % p->n_splits * p->rows_of_task, n_rows = row < p->n ? sp_smaller(p->rows_of_task, p->n - row) : 0;
    float *rows = scratch + divide_up(p->columns, p->panels->width) * p->panel_words, *c = p->c + row * p->ldc + column;
    for (size_t k = 0; k < p->n_inner; k += p->step) {
        size_t n = sp_smaller(p->step, p->n_inner - k), offset = row * p->lda + words_of(p, k);
        bool accumulate = p->accumulate || k > 0;
        double begin = sp_seconds();
        pack(scratch, rows, p, column, n_columns, k, n);
        sp_profile_add(SP_PART_EXPAND, sp_seconds() - begin);
        if (p->bf16)
            p->panels->multiply_bf16(c, p->ldc, (const uint32_t *)p->a + offset, p->lda, (const uint32_t *)(void *)scratch,
                                     p->panel_words, n_rows, n_columns, words_of(p, n), accumulate);
        else
            p->panels->multiply(c, p->ldc, (const float *)p->a + offset, p->lda, scratch, p->panel_words, n_rows, n_columns, n,
                                accumulate);
    }
}

/* A as rows of bf16, each padded with a zero to whole pairs. */
static sp_status round_rows(product *p, const float *a, size_t lda, sp_arena *arena)
{
    size_t ld = words_of(p, p->n_inner);
    uint32_t *rounded = sp_arena_alloc(arena, p->n * ld, sizeof *rounded);
    if (!rounded) return SP_ERR_MEMORY;
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < p->n; r++) {
        uint16_t *row = (uint16_t *)(void *)(rounded + r * ld);
        row[2 * ld - 1] = 0;
        p->panels->to_bf16(row, a + r * lda, p->n_inner);
    }
    p->a = rounded;
    p->lda = ld;
    return SP_OK;
}

static sp_status multiply_many(product *p, const float *a, size_t lda, sp_arena *arena)
{
    size_t n_threads = (size_t)omp_get_max_threads();
    sp_arena_mark mark = sp_arena_get_mark(arena);
    divide_work(p, n_threads);
    p->a = a;
    p->lda = lda;
    sp_status st = p->bf16 ? round_rows(p, a, lda, arena) : SP_OK;
    float *scratch = st ? NULL : sp_arena_alloc(arena, n_threads * p->scratch_words, sizeof *scratch);
    if (!scratch) return SP_ERR_MEMORY;
    size_t n_tasks = p->n_blocks * p->n_splits;
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t task = 0; task < n_tasks; task++) run_task(p, task, scratch + (size_t)omp_get_thread_num() * p->scratch_words);
    sp_arena_reset(arena, mark);
    return SP_OK;
}

sp_status sp_linear(float *y, size_t ldy, const float *x, size_t ldx, const sp_weight *w, size_t n, bool accumulate,
                    sp_compute compute, sp_arena *scratch)
{
    sp_status st = SP_OK;
    double begin = sp_seconds();
    if (n > FEW_ROWS) {
        product p = {.panels = sp_panels_select(),
                     .w = w,
                     .accumulate = accumulate,
                     .bf16 = compute == SP_COMPUTE_BF16,
                     .c = y,
                     .ldc = ldy,
                     .n = n,
                     .n_columns = sp_weight_n_out(w),
                     .n_inner = w->n_in};
        st = multiply_many(&p, x, ldx, scratch);
    } else if (n > 0) {
        multiply_few(y, ldy, x, ldx, w, n, accumulate);
    }
    sp_profile_add_region(SP_PART_MATMUL, begin);
    return st;
}

sp_status sp_linear_backward(float *dx, size_t lddx, const float *dy, size_t lddy, const sp_weight *w, size_t n, bool accumulate,
                             sp_compute compute, sp_arena *scratch)
{
    if (n == 0) return SP_OK;
    double begin = sp_seconds();
    product p = {.panels = sp_panels_select(),
                 .w = w,
                 .backward = true,
                 .accumulate = accumulate,
                 .bf16 = compute == SP_COMPUTE_BF16,
                 .c = dx,
                 .ldc = lddx,
                 .n = n,
                 .n_columns = w->n_in,
                 .n_inner = sp_weight_n_out(w)};
    sp_status st = multiply_many(&p, dy, lddy, scratch);
    sp_profile_add_region(SP_PART_MATMUL, begin);
    return st;
}
