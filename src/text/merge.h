/* merge.h: joining neighbours, best pair first, until nothing joins: the loop that both kinds of BPE share. */
#ifndef SP_TEXT_MERGE_H
#define SP_TEXT_MERGE_H

#include "softprompt.h"

typedef struct sp_symbol {
    uint32_t start, n_bytes; /* in the text */
    int32_t token;           /* -1: not in the vocabulary */
    uint32_t previous, next; /* SP_NO_SYMBOL at the ends */
} sp_symbol;

#define SP_NO_SYMBOL UINT32_MAX

/* What a pair becomes. */
typedef struct sp_merge {
    uint32_t rank; /* lower joins earlier; equal ranks: from the left */
    int32_t token;
} sp_merge;

/* False: the two do not join. */
typedef bool sp_merge_fn(sp_merge *out, const void *rules, const char *text, const sp_symbol *left, const sp_symbol *right);

/* Scratch that lives as long as one call of sp_tokenize. Zero-initialise it. */
typedef struct sp_merger {
    sp_symbol *symbols;
    struct sp_candidate *heap;
    size_t n_symbols, n_heap, capacity;
} sp_merger;

/* Room for n symbols; forgets those there were. */
sp_status sp_merger_start(sp_merger *merger, size_t n_symbols);

/* Appends a symbol, within what sp_merger_start made room for. */
void sp_merger_add(sp_merger *merger, size_t start, size_t n_bytes, int32_t token);

/* Joins. What is left is reached from symbols[0], where there is one, through `next`. O(n log n). */
void sp_merger_run(sp_merger *merger, sp_merge_fn *find, const void *rules, const char *text);
void sp_merger_free(sp_merger *merger);

#endif
