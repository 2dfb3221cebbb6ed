/* arena.c: a list of blocks, each at least as large as what did not fit in the one before.
 * Blocks are never moved, so pointers stay valid; after a reset they are used again in order.
 *
 * Under AddressSanitizer only what was handed out may be touched: a gap behind each piece, and all that a reset gave back, are
 * poisoned. To it a block is one allocation otherwise, in which nothing can run over. */
#define _GNU_SOURCE /* madvise */
#include "base/arena.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "base/status.h"

#ifdef __clang__
#if __has_feature(address_sanitizer)
#define HAS_ASAN
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define HAS_ASAN
#endif
#ifdef HAS_ASAN
#include <sanitizer/asan_interface.h>
enum { GAP_BYTES = 64 };
#else
#define ASAN_POISON_MEMORY_REGION(bytes, n_bytes) ((void)(bytes), (void)(n_bytes))
#define ASAN_UNPOISON_MEMORY_REGION(bytes, n_bytes) ((void)(bytes), (void)(n_bytes))
enum { GAP_BYTES = 0 };
#endif

enum { ALIGNMENT = 64, FIRST_BLOCK_BYTES = 1 << 20, LARGE_PAGE_BYTES = 1 << 21, MAX_BLOCKS = 64 };

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

/* Large blocks in large pages where the system has them to give: fewer faults, and fewer misses of the table of pages. Their sizes
   are whole pages, since C11 wants of aligned_alloc a size that the alignment divides. */
static char *allocate_block(size_t n_bytes)
{
    if (n_bytes < 2 * LARGE_PAGE_BYTES) return aligned_alloc(ALIGNMENT, n_bytes);
    char *bytes = aligned_alloc(LARGE_PAGE_BYTES, (n_bytes + LARGE_PAGE_BYTES - 1) / LARGE_PAGE_BYTES * LARGE_PAGE_BYTES);
#ifdef MADV_HUGEPAGE
    if (bytes) madvise(bytes, n_bytes, MADV_HUGEPAGE); /* advice: it is fine if nothing comes of it */
#endif
    return bytes;
}

/* A new block twice the size of the last, or as large as is wanted: at most MAX_BLOCKS of them reach any size. */
static block *add_block(sp_arena *arena, size_t wanted)
{
    size_t size = arena->n_blocks ? 2 * arena->blocks[arena->n_blocks - 1].size : (size_t)FIRST_BLOCK_BYTES;
    if (size < wanted) size = wanted;
    char *bytes = arena->n_blocks < MAX_BLOCKS ? allocate_block(size) : NULL;
    if (!bytes && size > wanted && arena->n_blocks < MAX_BLOCKS) bytes = allocate_block(size = wanted);
    if (!bytes) {
        sp_fail_no_memory(wanted);
        return NULL;
    }
    block *b = &arena->blocks[arena->n_blocks++];
    *b = (block){bytes, size, 0};
    ASAN_POISON_MEMORY_REGION(bytes, size);
    return b;
}

/* The next n_bytes of a block, of which `wanted` will be used. */
static void *take(block *b, size_t n_bytes, size_t wanted)
{
    char *bytes = b->bytes + b->used;
    b->used += n_bytes;
    ASAN_UNPOISON_MEMORY_REGION(bytes, wanted);
    return bytes;
}

void *sp_arena_alloc(sp_arena *arena, size_t n_items, size_t item_bytes)
{
    size_t n_bytes, wanted;
    if (__builtin_mul_overflow(n_items, item_bytes, &wanted) || wanted > SIZE_MAX / 4) {
        sp_fail_no_memory(SIZE_MAX);
        return NULL;
    }
    n_bytes = (wanted + GAP_BYTES + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (n_bytes == 0) n_bytes = ALIGNMENT;
    for (; arena->current < arena->n_blocks; arena->current++) {
        block *b = &arena->blocks[arena->current];
        if (n_bytes <= b->size - b->used) return take(b, n_bytes, wanted);
    }
    block *b = add_block(arena, n_bytes);
    if (!b) return NULL;
    arena->current = arena->n_blocks - 1;
    return take(b, n_bytes, wanted);
}

sp_arena_mark sp_arena_get_mark(const sp_arena *arena)
{
    if (arena->current >= arena->n_blocks) return (sp_arena_mark){arena->current, 0};
    return (sp_arena_mark){arena->current, arena->blocks[arena->current].used};
}

void sp_arena_reset(sp_arena *arena, sp_arena_mark mark)
{
    for (size_t i = mark.block; i < arena->n_blocks; i++) {
        block *b = &arena->blocks[i];
        b->used = i == mark.block ? mark.used : 0;
        ASAN_POISON_MEMORY_REGION(b->bytes + b->used, b->size - b->used);
    }
    arena->current = mark.block;
}
