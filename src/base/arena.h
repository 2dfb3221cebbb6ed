/* arena.h: scratch memory that is given back all at once. A training step allocates nothing once its arena has grown. */
#ifndef SP_BASE_ARENA_H
#define SP_BASE_ARENA_H

#include "softprompt.h"

typedef struct sp_arena sp_arena;

sp_status sp_arena_create(sp_arena **out);
void sp_arena_free(sp_arena *arena);

/* n_items * item_bytes bytes, aligned to 64, not cleared; valid until the arena is reset to an earlier mark.
 * The product is checked. NULL on failure, with the message set. n_items 0 gives a valid pointer. */
void *sp_arena_alloc(sp_arena *arena, size_t n_items, size_t item_bytes);

/* Everything allocated since the mark is given back (and kept for the next use). */
typedef struct sp_arena_mark {
    size_t block, used;
} sp_arena_mark;
sp_arena_mark sp_arena_get_mark(const sp_arena *arena);
void sp_arena_reset(sp_arena *arena, sp_arena_mark mark); /* (sp_arena_mark){0}: all */

#endif
