/* plan.c: from a token tree to tiles of queries and the spans that they see. */
#include <string.h>

#include "base/sizes.h"
#include "model/internal.h"

/* Queries of a group of heads: enough for keys that a tile fetches to be used often, and few enough that they, their results and
 * the scores of one block of keys stay in the second-level cache. */
enum { MAX_TILE_ROWS = 192 };

static size_t count_path(const sp_tree *tree, size_t run)
{
    size_t n = 0;
    for (; run != SP_NO_RUN; run = tree->runs[run].parent) n++;
    return n;
}

/* Spans that stand behind each other are one: a template behind its prompt, a path that never branched. Returns how many are left.
 */
static size_t join_neighbours(sp_span *spans, size_t n)
{
    size_t last = 0;
    for (size_t s = 1; s < n; s++)
        if (spans[last].first_row + spans[last].n_rows == spans[s].first_row)
            spans[last].n_rows += spans[s].n_rows;
        else
            spans[++last] = spans[s];
    return last + 1;
}

/* Keys of the path that the query at a position does not see any more. */
static size_t count_hidden(size_t position, size_t window)
{
    return window && position + 1 > window ? position + 1 - window : 0;
}

/* Takes the first n_keys out of spans that have more; returns how many spans are gone. */
static size_t drop_keys(sp_span *spans, size_t n_keys)
{
    size_t n = 0;
    for (; n_keys >= spans[n].n_rows; n++) n_keys -= spans[n].n_rows;
    spans[n].first_row += n_keys;
    spans[n].n_rows -= n_keys;
    return n;
}

/* Queries first_query .. + n, all in `run`. What has left the first one's window is not in the tile's spans; what leaves that of
 * the others, attention finds. */
static sp_status fill_tile(sp_query_tile *tile, const sp_tree *tree, size_t run, const size_t *rows, size_t first_query, size_t n,
                           size_t window, sp_arena *arena)
{
    size_t n_spans = count_path(tree, run), last_row = rows[first_query + n - 1];
    sp_span *spans = sp_arena_alloc(arena, n_spans, sizeof *spans);
    if (!spans) return SP_ERR_MEMORY;
    size_t above = tree->runs[run].parent, hidden = count_hidden(sp_tree_position(tree, run, rows[first_query]), window);
    spans[n_spans - 1] = (sp_span){tree->runs[run].first_row, last_row - tree->runs[run].first_row + 1};
    for (size_t s = n_spans - 1; s-- > 0; above = tree->runs[above].parent)
        spans[s] = (sp_span){tree->runs[above].first_row, tree->runs[above].n_rows};
    size_t dropped = drop_keys(spans, hidden);
    n_spans = join_neighbours(spans + dropped, n_spans - dropped);
    *tile = (sp_query_tile){first_query, n, spans + dropped, n_spans, sp_tree_position(tree, run, last_row) + 1 - hidden};
    return SP_OK;
}

sp_status sp_plan_attention(sp_attention_plan *out, const sp_tree *tree, const size_t *rows, size_t n_rows, size_t heads_per_key,
                            size_t window, sp_arena *arena)
{
    size_t *query_rows = sp_arena_alloc(arena, n_rows, sizeof *query_rows);
    sp_query_tile *tiles = sp_arena_alloc(arena, n_rows, sizeof *tiles); /* never more tiles than queries */
    if (!query_rows || !tiles) return SP_ERR_MEMORY;
    if (n_rows) memcpy(query_rows, rows, n_rows * sizeof *rows);
    *out = (sp_attention_plan){
        .tiles = tiles, .query_rows = query_rows, .n_queries = n_rows, .n_rows = tree->n_rows, .window = window};
    size_t limit = heads_per_key < MAX_TILE_ROWS ? MAX_TILE_ROWS / heads_per_key : 1;
    for (size_t run = 0, q = 0; q < n_rows; run++) {
        size_t run_end = tree->runs[run].first_row + tree->runs[run].n_rows;
        while (q < n_rows && rows[q] < run_end) {
            size_t n = 1;
            while (n < limit && q + n < n_rows && rows[q + n] < run_end) n++;
            sp_query_tile *tile = &tiles[out->n_tiles++];
            sp_status st = fill_tile(tile, tree, run, rows, q, n, window, arena);
            if (st) return st;
            out->max_tile_queries = sp_larger(out->max_tile_queries, n);
            out->max_tile_keys = sp_larger(out->max_tile_keys, tile->n_keys);
            q += n;
        }
    }
    return SP_OK;
}
