/* arena.c: a list of blocks, each at least as large as what did not fit in the one before.
 * Blocks are never moved, so pointers stay valid; after a reset they are used again in order. */
#include "base/arena.h"

#include <stdlib.h>

#include "base/status.h"

enum { ALIGNMENT = 64, FIRST_BLOCK_BYTES = 1 << 20, MAX_BLOCKS = 64 };

typedef struct block {
    char *bytes;
    size_t size, used;
} block;

struct sp_arena {
    block blocks[MAX_BLOCKS];
    size_t n_blocks, current;
};

sp_status sp_arena_create(sp_arena **out)
{
    *out = calloc(1, sizeof **out);
    return *out ? SP_OK : sp_fail_no_memory(sizeof **out);
}

void sp_arena_free(sp_arena *arena)
{
    if (!arena) return;
    for (size_t i = 0; i < arena->n_blocks; i++) free(arena->blocks[i].bytes);
    free(arena);
}

/* A new block twice the size of the last, or as large as is wanted: at most MAX_BLOCKS of them reach any size. */
static block *add_block(sp_arena *arena, size_t wanted)
{
    size_t size = arena->n_blocks ? 2 * arena->blocks[arena->n_blocks - 1].size : (size_t)FIRST_BLOCK_BYTES;
    if (size < wanted) size = wanted;
    char *bytes = arena->n_blocks < MAX_BLOCKS ? aligned_alloc(ALIGNMENT, size) : NULL;
    if (!bytes && size > wanted && arena->n_blocks < MAX_BLOCKS) bytes = aligned_alloc(ALIGNMENT, size = wanted);
    if (!bytes) {
        sp_fail_no_memory(wanted);
        return NULL;
    }
    block *b = &arena->blocks[arena->n_blocks++];
    *b = (block){bytes, size, 0};
    return b;
}

void *sp_arena_alloc(sp_arena *arena, size_t n_items, size_t item_bytes)
{
    size_t n_bytes;
    if (__builtin_mul_overflow(n_items, item_bytes, &n_bytes) || n_bytes > SIZE_MAX / 4) {
        sp_fail_no_memory(SIZE_MAX);
        return NULL;
    }
    n_bytes = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (n_bytes == 0) n_bytes = ALIGNMENT;
    for (; arena->current < arena->n_blocks; arena->current++) {
        block *b = &arena->blocks[arena->current];
        if (n_bytes > b->size - b->used) continue;
        b->used += n_bytes;
        return b->bytes + b->used - n_bytes;
    }
    block *b = add_block(arena, n_bytes);
    if (!b) return NULL;
    arena->current = arena->n_blocks - 1;
    b->used = n_bytes;
    return b->bytes;
}

sp_arena_mark sp_arena_get_mark(const sp_arena *arena)
{
    if (arena->current >= arena->n_blocks) return (sp_arena_mark){arena->current, 0};
    return (sp_arena_mark){arena->current, arena->blocks[arena->current].used};
}

void sp_arena_reset(sp_arena *arena, sp_arena_mark mark)
{
    for (size_t i = mark.block; i < arena->n_blocks; i++) arena->blocks[i].used = 0;
    if (mark.block < arena->n_blocks) arena->blocks[mark.block].used = mark.used;
    arena->current = mark.block;
}
