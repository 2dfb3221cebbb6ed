/* merge.c: a linked list of symbols and a heap of pairs that could join.
 *
 * A join changes the pairs on both sides; the entries they have in the heap are not searched for but go stale, and are
 * dropped when they come up: the pair at that place is then longer or gone. A join takes one entry off and adds two at most,
 * and n symbols make at most n - 1 joins, so 2 n entries are enough and nothing is allocated on the way. */
#include "text/merge.h"

#include <assert.h>
#include <stdlib.h>

#include "base/status.h"

typedef struct sp_candidate {
    uint64_t order;   /* rank, then the place of the left symbol: both in one comparison */
    uint32_t n_bytes; /* of the pair when it was entered */
    int32_t token;
} candidate;

sp_status sp_merger_start(sp_merger *m, size_t n_symbols)
{
    m->n_symbols = m->n_heap = 0;
    if (n_symbols <= m->capacity) return SP_OK;
    if (n_symbols >= SP_NO_SYMBOL) return sp_fail_no_memory(n_symbols * sizeof *m->symbols);
    size_t capacity = n_symbols < 256 ? 256 : n_symbols + n_symbols / 4;
    sp_merger_free(m);
    m->symbols = malloc(capacity * sizeof *m->symbols);
    m->heap = malloc(2 * capacity * sizeof *m->heap);
    if (!m->symbols || !m->heap) {
        sp_merger_free(m);
        return sp_fail_no_memory(capacity * (sizeof *m->symbols + 2 * sizeof *m->heap));
    }
    m->capacity = capacity;
    return SP_OK;
}

void sp_merger_add(sp_merger *m, size_t start, size_t n_bytes, int32_t token)
{
    uint32_t i = (uint32_t)m->n_symbols++;
    assert(i < m->capacity);
    m->symbols[i] = (sp_symbol){(uint32_t)start, (uint32_t)n_bytes, token, i ? i - 1 : SP_NO_SYMBOL, SP_NO_SYMBOL};
    if (i) m->symbols[i - 1].next = i;
}

static void push(sp_merger *m, candidate c)
{
    size_t i = m->n_heap++;
    assert(i < 2 * m->capacity);
    for (; i > 0 && c.order < m->heap[(i - 1) / 2].order; i = (i - 1) / 2) m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = c;
}

static candidate pop(sp_merger *m)
{
    candidate top = m->heap[0], last = m->heap[--m->n_heap];
    size_t i = 0;
    for (size_t child = 1; child < m->n_heap; child = 2 * i + 1) {
        if (child + 1 < m->n_heap && m->heap[child + 1].order < m->heap[child].order) child++;
        if (last.order <= m->heap[child].order) break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = last;
    return top;
}

static void consider(sp_merger *m, uint32_t left, sp_merge_fn *find, const void *rules, const char *text)
{
    sp_merge merge;
    const sp_symbol *a = &m->symbols[left], *b = a->next == SP_NO_SYMBOL ? NULL : &m->symbols[a->next];
    if (b && find(&merge, rules, text, a, b))
        push(m, (candidate){(uint64_t)merge.rank << 32 | left, a->n_bytes + b->n_bytes, merge.token});
}

void sp_merger_run(sp_merger *m, sp_merge_fn *find, const void *rules, const char *text)
{
    for (uint32_t i = 0; i < m->n_symbols; i++) consider(m, i, find, rules, text);
    while (m->n_heap > 0) {
        candidate c = pop(m);
        uint32_t left = (uint32_t)c.order, right = m->symbols[left].next;
        sp_symbol *a = &m->symbols[left];
        if (a->n_bytes == 0 || right == SP_NO_SYMBOL || a->n_bytes + m->symbols[right].n_bytes != c.n_bytes) continue;
        a->n_bytes = c.n_bytes;
        a->token = c.token;
        a->next = m->symbols[right].next;
        m->symbols[right].n_bytes = 0; /* its own entries are stale now */
        if (a->next != SP_NO_SYMBOL) m->symbols[a->next].previous = left;
        consider(m, left, find, rules, text);
        if (a->previous != SP_NO_SYMBOL) consider(m, a->previous, find, rules, text);
    }
}

void sp_merger_free(sp_merger *m)
{
    free(m->symbols);
    free(m->heap);
    *m = (sp_merger){0};
}
