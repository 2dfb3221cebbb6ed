/* tree.h: runs of tokens that share prefixes, as one batch.
 *
 *   soft prompt (root) -- template -+- example 1 -- " positive"
 *                                   +- example 2
 *   another (root) -- template -- example 3
 *
 * A token attends to its own run up to itself and to every run on the path to the root. Rows are numbered through all runs in
 * order; a row's number is also where its keys and values stand in the engine's store.
 * Invariant: parents come before children, so one pass in order has every key before its readers; virtual tokens come before all
 * others. */
#ifndef SP_MODEL_TREE_H
#define SP_MODEL_TREE_H

#include "softprompt.h"

#define SP_NO_RUN SIZE_MAX

typedef struct sp_run {
    size_t parent; /* a run before this one; SP_NO_RUN: a root */
    size_t first_row, n_rows;
    size_t first_position; /* of the first row: how many rows the path above has */
    size_t text_position;  /* of a prompt: where what follows it starts, to the model; 0 of other runs */
    ptrdiff_t shift;       /* how much later in the model's eyes its rows stand than sp_tree_position says */
} sp_run;

typedef struct sp_tree {
    sp_run *runs;
    size_t n_runs, runs_capacity;
    int32_t *tokens; /* (n_rows); -1: a virtual token */
    size_t n_rows, rows_capacity;
    size_t root_position; /* where runs of tokens without a parent start, to the model: behind a prompt that has no rows */
} sp_tree;                /* zero-initialise; sp_tree_clear keeps the memory for the next batch */

void sp_tree_clear(sp_tree *tree);
void sp_tree_free(sp_tree *tree); /* frees what the struct holds */

/* A soft prompt of n >= 1 virtual tokens: a root, whose positions start at 0. To the model, what follows it starts at
 * text_position. Only where nothing but prompts stands before. */
sp_status sp_tree_add_prompt(size_t *run, sp_tree *tree, size_t n, size_t text_position);
sp_status sp_tree_add_run(size_t *run, sp_tree *tree, size_t parent, const int32_t *tokens, size_t n);
sp_status sp_tree_extend_last(sp_tree *tree, const int32_t *tokens, size_t n); /* the last run grows */

/* Forgets the rows from n_rows on, and the runs that begin there. */
void sp_tree_truncate(sp_tree *tree, size_t n_rows);

/* How many rows stand before a row of `run` on its path: its position. */
size_t sp_tree_position(const sp_tree *tree, size_t run, size_t row);

/* Adds sequences below `parent` (SP_NO_RUN: as roots), every common prefix once (a radix tree, built by sorting).
 *   rows[i] (lengths[i]) written: the row of each token of sequence i. Equal sequences get equal rows. */
sp_status sp_tree_add_sequences(size_t *const *rows, sp_tree *tree, size_t parent, const int32_t *const *sequences,
                                const size_t *lengths, size_t n_sequences);

#endif
