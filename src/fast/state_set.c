/* state_set.c: the states of a prompt's heads, which its engines share: freed with the last of those that hold them. */
#include <stdlib.h>

#include "base/status.h"
#include "fast/state.h"

sp_status sp_state_set_create(sp_state_set **out, size_t n)
{
    sp_state_set *set = *out = calloc(1, sizeof *set + n * sizeof *set->of);
    if (!set) return sp_fail_no_memory(sizeof *set + n * sizeof *set->of);
    atomic_init(&set->n_holders, 1);
    set->n = n;
    return SP_OK;
}

sp_state_set *sp_state_set_hold(sp_state_set *set)
{
    if (set) atomic_fetch_add(&set->n_holders, 1);
    return set;
}

void sp_state_set_release(sp_state_set *set)
{
    if (!set || atomic_fetch_sub(&set->n_holders, 1) > 1) return;
    for (size_t i = 0; i < set->n; i++) sp_fast_state_free(set->of[i]);
    free(set);
}
