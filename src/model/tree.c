/* tree.c: building token trees. Arrays double; a cleared tree keeps them for the next batch. */
#include "model/tree.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

void sp_tree_clear(sp_tree *tree)
{
    tree->n_runs = tree->n_rows = tree->root_position = 0;
}

void sp_tree_free(sp_tree *tree)
{
    free(tree->runs);
    free(tree->tokens);
    *tree = (sp_tree){0};
}

static sp_status grow(void **array, size_t *capacity, size_t wanted, size_t item_bytes)
{
    if (wanted <= *capacity) return SP_OK;
    size_t larger = wanted < 2 * *capacity ? 2 * *capacity : wanted;
    void *moved = realloc(*array, larger * item_bytes);
    if (!moved) return sp_fail_no_memory(larger * item_bytes);
    *array = moved;
    *capacity = larger;
    return SP_OK;
}

static sp_status append_rows(sp_tree *tree, const int32_t *tokens, size_t n)
{
    if (n > SIZE_MAX / 16 - tree->n_rows) return sp_fail_no_memory(SIZE_MAX);
    sp_status st = grow((void **)&tree->tokens, &tree->rows_capacity, tree->n_rows + n, sizeof *tokens);
    if (st) return st;
    for (size_t i = 0; i < n; i++) tree->tokens[tree->n_rows + i] = tokens ? tokens[i] : -1;
    tree->n_rows += n;
    return SP_OK;
}

static sp_status add_run(size_t *run, sp_tree *tree, size_t parent, const int32_t *tokens, size_t n)
{
    if (n == 0) return sp_fail(SP_ERR_ARGUMENT, "a run of no tokens: a token tree holds runs of at least one");
    assert(parent == SP_NO_RUN || parent < tree->n_runs);
    sp_status st = grow((void **)&tree->runs, &tree->runs_capacity, tree->n_runs + 1, sizeof *tree->runs);
    if (!st) st = append_rows(tree, tokens, n);
    if (st) return st;
    const sp_run *above = parent == SP_NO_RUN ? NULL : &tree->runs[parent];
    const size_t position = above ? above->first_position + above->n_rows : 0;
    const ptrdiff_t shift = !above                 ? (ptrdiff_t)tree->root_position
                            : above->text_position ? (ptrdiff_t)above->text_position - (ptrdiff_t)position
                                                   : above->shift;
    tree->runs[tree->n_runs] = (sp_run){parent, tree->n_rows - n, n, position, 0, shift};
    *run = tree->n_runs++;
    return SP_OK;
}

sp_status sp_tree_add_prompt(size_t *run, sp_tree *tree, size_t n, size_t text_position)
{
    assert(tree->n_rows == 0 || tree->tokens[tree->n_rows - 1] < 0);
    assert(tree->root_position == 0 && text_position > 0);
    sp_status st = add_run(run, tree, SP_NO_RUN, NULL, n);
    if (!st) tree->runs[*run].text_position = text_position;
    return st;
}

sp_status sp_tree_add_run(size_t *run, sp_tree *tree, size_t parent, const int32_t *tokens, size_t n)
{
    return add_run(run, tree, parent, tokens, n);
}

sp_status sp_tree_extend_last(sp_tree *tree, const int32_t *tokens, size_t n)
{
    assert(tree->n_runs > 0);
    sp_status st = append_rows(tree, tokens, n);
    if (!st) tree->runs[tree->n_runs - 1].n_rows += n;
    return st;
}

void sp_tree_truncate(sp_tree *tree, size_t n_rows)
{
    while (tree->n_runs > 0 && tree->runs[tree->n_runs - 1].first_row >= n_rows) tree->n_runs--;
    if (tree->n_runs == 0)
        n_rows = 0;
    else
        tree->runs[tree->n_runs - 1].n_rows = n_rows - tree->runs[tree->n_runs - 1].first_row;
    tree->n_rows = n_rows;
}

size_t sp_tree_position(const sp_tree *tree, size_t run, size_t row)
{
    return tree->runs[run].first_position + row - tree->runs[run].first_row;
}

/* ---- sequences, every common prefix once ---- */

typedef struct sequence {
    const int32_t *tokens;
    size_t length;
    size_t *rows;
} sequence;

/* Lexicographic, a prefix before what it is a prefix of: sequences that share a prefix become neighbours. */
static int compare_sequences(const void *left, const void *right)
{
    const sequence *a = left, *b = right;
    size_t shared = a->length < b->length ? a->length : b->length;
    for (size_t i = 0; i < shared; i++)
        if (a->tokens[i] != b->tokens[i]) return a->tokens[i] < b->tokens[i] ? -1 : 1;
    return (a->length > b->length) - (a->length < b->length);
}

/* How far first and last, and so all sorted between them, agree. */
static size_t common_prefix(const sequence *first, const sequence *last, size_t from)
{
    size_t shared = first->length < last->length ? first->length : last->length;
    while (from < shared && first->tokens[from] == last->tokens[from]) from++;
    return from;
}

/* Adds the parts behind the first `depth` tokens, which all n sorted sequences share and which end in `parent`. */
static sp_status add_branches(sp_tree *tree, size_t parent, sequence *sequences, size_t n, size_t depth)
{
    size_t begin = 0;
    while (begin < n && sequences[begin].length == depth) begin++; /* these end here */
    while (begin < n) {
        size_t end = begin + 1, run = SP_NO_RUN;
        while (end < n && sequences[end].tokens[depth] == sequences[begin].tokens[depth]) end++;
        size_t shared = common_prefix(&sequences[begin], &sequences[end - 1], depth + 1);
        sp_status st = add_run(&run, tree, parent, sequences[begin].tokens + depth, shared - depth);
        if (st) return st;
        for (size_t s = begin; s < end; s++)
            for (size_t i = depth; i < shared; i++) sequences[s].rows[i] = tree->runs[run].first_row + i - depth;
        st = add_branches(tree, run, sequences + begin, end - begin, shared);
        if (st) return st;
        begin = end;
    }
    return SP_OK;
}

sp_status sp_tree_add_sequences(size_t *const *rows, sp_tree *tree, size_t parent, const int32_t *const *sequences,
                                const size_t *lengths, size_t n_sequences)
{
    if (n_sequences == 0) return SP_OK;
    sequence *sorted = malloc(n_sequences * sizeof *sorted);
    if (!sorted) return sp_fail_no_memory(n_sequences * sizeof *sorted);
    for (size_t i = 0; i < n_sequences; i++) sorted[i] = (sequence){sequences[i], lengths[i], rows[i]};
    qsort(sorted, n_sequences, sizeof *sorted, compare_sequences);
    sp_status st = add_branches(tree, parent, sorted, n_sequences, 0);
    free(sorted);
    return st;
}
