/* names.h: a set of names from a file, numbered in the order they were added, found again by hash.
 * Zero-initialise it, reserve once, free it with sp_names_free. The bytes are borrowed: they must live as long as the set. */
#ifndef SP_FORMAT_NAMES_H
#define SP_FORMAT_NAMES_H

#include "softprompt.h"

#define SP_NO_NAME SIZE_MAX

typedef struct sp_name {
    const char *bytes; /* not necessarily NUL-terminated */
    size_t n_bytes;
} sp_name;

typedef struct sp_names {
    sp_name *names; /* (n) */
    size_t n, capacity;
    size_t *slots; /* (n_slots), a power of two: number of the name + 1; 0: empty */
    size_t n_slots;
} sp_names;

sp_status sp_names_reserve(sp_names *names, size_t capacity); /* once, before the first add */
bool sp_names_add(sp_names *names, sp_name name);          /* false: it is there already, nothing changes. At most capacity times */
size_t sp_names_find(const sp_names *names, sp_name name); /* its number, or SP_NO_NAME */
void sp_names_free(sp_names *names);

#endif
