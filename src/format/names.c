/* names.c: open addressing with linear probing, at most half full. */
#include "format/names.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/status.h"

sp_status sp_names_reserve(sp_names *names, size_t capacity)
{
    size_t n_slots = 8;
    while (n_slots / 2 < capacity) n_slots *= 2; /* callers bound capacity by a file's size: this cannot wrap */
    names->names = calloc(capacity ? capacity : 1, sizeof *names->names);
    names->slots = calloc(n_slots, sizeof *names->slots);
    if (!names->names || !names->slots) {
        sp_names_free(names);
        return sp_fail_no_memory(n_slots * sizeof *names->slots);
    }
    names->capacity = capacity;
    names->n_slots = n_slots;
    return SP_OK;
}

/* The slot that holds `name`, or the empty one where it belongs. */
static size_t *find_slot(const sp_names *names, sp_name name)
{
    size_t mask = names->n_slots - 1;
    for (size_t i = XXH3_64bits(name.bytes, name.n_bytes) & mask;; i = (i + 1) & mask) {
        size_t *slot = &names->slots[i];
        if (*slot == 0) return slot;
        const sp_name *other = &names->names[*slot - 1];
        if (other->n_bytes == name.n_bytes && memcmp(other->bytes, name.bytes, name.n_bytes) == 0) return slot;
    }
}

bool sp_names_add(sp_names *names, sp_name name)
{
    size_t *slot = find_slot(names, name);
    if (*slot) return false;
    names->names[names->n] = name;
    *slot = ++names->n;
    return true;
}

size_t sp_names_find(const sp_names *names, sp_name name)
{
    if (!names->slots) return SP_NO_NAME;
    return *find_slot(names, name) - 1; /* an empty slot wraps to SP_NO_NAME */
}

void sp_names_free(sp_names *names)
{
    free(names->names);
    free(names->slots);
    *names = (sp_names){0};
}
