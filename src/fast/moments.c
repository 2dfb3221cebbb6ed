/* moments.c: blocks of keys through the kernels into moments, by one thread or several.
 *
 * One thread adds block after block to the sums. Several make the moments of a window of blocks, each block by one thread, and then
 * add these up, each thread some of the numbers and all of the blocks in their order: the same additions, so the same sums.
 * Cost: (features * columns) a key; of several threads besides two passes over the moments a block, where a block is 512 keys or
 * less of a pass each. */
#include "fast/moments.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"
#include "fast/monomials.h"

enum {
    BLOCKS_A_THREAD = 4, /* in a window: so many times fewer waits for the slowest thread */
    SLICE = 512          /* numbers of the sums that one thread adds up at a time */
};

static size_t group_size(const sp_fast_call *call, size_t n_features)
{
    const size_t lanes = call->fast->kernels->lanes;
    return sp_round_up(n_features * call->frame.columns, lanes);
}

double sp_moments_bytes(const sp_fast_call *call, size_t degree, size_t n_states)
{
    const size_t n = sp_monomials_count(call->head.d, degree);
    const double per_feature =
        (double)sp_fast_columns(call) * (double)(sizeof(double) + n_states * sizeof(float)) + sizeof(double) + 1;
    const double levels = (double)degree * (double)call->head.d * (double)sp_key_stride(call->fast->kernels) * sizeof(float);
    return n == SIZE_MAX ? (double)INFINITY : (double)n * per_feature + levels;
}

/* ---- beginning ---- */

static sp_status allocate_blocks(sp_moments *m)
{
    const sp_frame *frame = &m->call->frame;
    const sp_fast_kernels *kernels = m->call->fast->kernels;
    sp_arena *arena = m->call->fast->arena;
    m->packed = sp_arena_alloc(arena, m->n_threads, sizeof *m->packed);
    if (!m->packed) return SP_ERR_MEMORY;
    for (size_t t = 0; t < m->n_threads; t++) {
        sp_key_block *b = &m->packed[t];
        b->x = sp_arena_alloc(arena, frame->d * sp_key_stride(kernels), sizeof *b->x);
        b->v = sp_arena_alloc(arena, frame->groups * frame->columns * kernels->block_keys, sizeof *b->v);
        b->scratch = sp_arena_alloc(arena, sp_fast_scratch_floats(kernels, frame->d, m->degree), sizeof *b->scratch);
        if (!b->x || !b->v || !b->scratch) return SP_ERR_MEMORY;
    }
    if (m->window == 1) return SP_OK;
    m->blocks = sp_arena_alloc(arena, m->window * frame->groups * m->size, sizeof *m->blocks);
    return m->blocks ? SP_OK : SP_ERR_MEMORY;
}

/* A window that fits, and no more threads than it has blocks. */
static void choose_window(sp_moments *m, bool each, double spare_bytes)
{
    const size_t n_blocks = (m->call->head.n_keys + m->block - 1) / m->block;
    const double block_bytes = (double)(m->call->frame.groups * m->size) * (sizeof(double) + (each ? sizeof(float) : 0));
    m->window = sp_smaller(BLOCKS_A_THREAD * m->call->n_threads, n_blocks);
    if ((double)m->window * block_bytes > spare_bytes) m->window = spare_bytes > 0 ? (size_t)(spare_bytes / block_bytes) : 1;
    m->n_threads = sp_smaller(m->call->n_threads, m->window);
    if (m->n_threads <= 1) m->n_threads = m->window = 1;
}

/* Factors of a group's numbers, one beside the other. */
static void list_factors(sp_moments *m)
{
    const double *c = m->call->fast->polynomials[m->degree].c;
    const size_t columns = m->call->frame.columns;
    for (size_t i = 0; i < m->size; i++) {
        const size_t a = i / columns;
        m->factors[i] = a < m->n_features ? m->multinomials[a] * c[m->levels[a]] : 0;
    }
}

sp_status sp_moments_begin(sp_moments *out, const sp_fast_call *call, size_t degree, size_t block, const size_t *list, bool each,
                           double spare_bytes)
{
    sp_arena *arena = call->fast->arena;
    const size_t n_features = sp_monomials_count(call->head.d, degree), size = group_size(call, n_features);
    *out = (sp_moments){.call = call, .degree = degree, .n_features = n_features, .size = size, .block = block, .list = list};
    choose_window(out, each, spare_bytes);
    out->levels = sp_arena_alloc(arena, n_features, sizeof *out->levels);
    out->multinomials = sp_arena_alloc(arena, n_features, sizeof *out->multinomials);
    out->factors = each ? sp_arena_alloc(arena, size, sizeof *out->factors) : NULL;
    out->sums = sp_arena_alloc(arena, call->frame.groups * size, sizeof *out->sums);
    if (!out->levels || !out->multinomials || !out->sums || (each && !out->factors)) return SP_ERR_MEMORY;
    memset(out->sums, 0, call->frame.groups * size * sizeof *out->sums);
    sp_monomials_list(out->levels, out->multinomials, call->head.d, degree);
    if (each) list_factors(out);
    return allocate_blocks(out);
}

/* ---- keys ---- */

static void add_block(double *sums, const sp_moments *m, sp_key_block *packed, size_t first, size_t n)
{
    const sp_frame *frame = &m->call->frame;
    const sp_fast_kernels *kernels = m->call->fast->kernels;
    const size_t whole = sp_round_up(n, kernels->lanes);
    sp_frame_pack_keys(packed->x, packed->v, frame, &m->call->head, m->list, first, n, kernels);
    for (size_t g = 0; g < frame->groups; g++)
        kernels->add_keys(sums + g * m->size, packed->x, packed->v + g * frame->columns * kernels->block_keys, whole, frame->d,
                          m->degree, frame->columns, packed->scratch);
}

/* The moments of a window's blocks, apart. */
static void make_blocks(sp_moments *m, size_t n_blocks, size_t end)
{
    const size_t block = m->block, n_moments = m->call->frame.groups * m->size;
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)m->n_threads)
    for (size_t b = 0; b < n_blocks; b++) {
        const size_t first = m->n_keys + b * block;
        double *sums = m->blocks + b * n_moments;
        memset(sums, 0, n_moments * sizeof *sums);
        add_block(sums, m, &m->packed[omp_get_thread_num()], first, sp_smaller(block, end - first));
    }
}

static void scale(float *state, const double *sums, const double *factors, size_t n)
{
    for (size_t i = 0; i < n; i++) state[i] = (float)(sums[i] * factors[i]);
}

/* Adds up the blocks of a window, in their order; the state after each where states is not NULL. */
static void add_blocks_up(float *states, sp_moments *m, size_t n_blocks)
{
    const size_t n_groups = m->call->frame.groups, n_moments = n_groups * m->size, n_slices = (m->size + SLICE - 1) / SLICE;
#pragma omp parallel for schedule(static) num_threads((int)m->n_threads)
    for (size_t s = 0; s < n_groups * n_slices; s++) {
        const size_t first = s % n_slices * SLICE, n = sp_smaller(SLICE, m->size - first), at = s / n_slices * m->size + first;
        double *sums = m->sums + at;
        for (size_t b = 0; b < n_blocks; b++) {
            const double *block = m->blocks + b * n_moments + at;
            for (size_t i = 0; i < n; i++) sums[i] += block[i];
            if (states) scale(states + b * n_moments + at, sums, m->factors + first, n);
        }
    }
}

void sp_moments_add(sp_moments *m, size_t end)
{
    const size_t block = m->block;
    while (m->n_keys < end) {
        const size_t n_blocks = sp_smaller(m->window, (end - m->n_keys + block - 1) / block);
        const size_t next = sp_smaller(m->n_keys + n_blocks * block, end);
        if (m->blocks) {
            make_blocks(m, n_blocks, next);
            add_blocks_up(NULL, m, n_blocks);
        } else {
            add_block(m->sums, m, m->packed, m->n_keys, next - m->n_keys);
        }
        m->n_keys = next;
    }
}

void sp_moments_add_each(float *states, sp_moments *m, size_t n_blocks)
{
    const size_t end = m->n_keys + n_blocks * m->block;
    if (m->blocks) {
        make_blocks(m, n_blocks, end);
        add_blocks_up(states, m, n_blocks);
        m->n_keys = end;
    } else if (n_blocks) {
        sp_moments_add(m, end);
        for (size_t g = 0; g < m->call->frame.groups; g++) scale(states + g * m->size, m->sums + g * m->size, m->factors, m->size);
    }
}

/* ---- states ---- */

size_t sp_moments_state_size(const sp_moments *m, size_t degree)
{
    return m->call->frame.groups * group_size(m->call, sp_monomials_count(m->call->head.d, degree));
}

/* Depth first, the monomials up to a smaller degree stand in the order of all. */
void sp_moments_make_state(float *state, const sp_moments *m, size_t degree)
{
    const double *c = m->call->fast->polynomials[degree].c;
    const size_t columns = m->call->frame.columns, groups = m->call->frame.groups;
    const size_t size = sp_moments_state_size(m, degree) / groups;
    for (size_t g = 0; g < groups; g++) {
        const double *from = m->sums + g * m->size;
        float *to = state + g * size;
        for (size_t a = 0; a < m->n_features; a++, from += columns) {
            if (m->levels[a] > degree) continue;
            const double factor = m->multinomials[a] * c[m->levels[a]];
            for (size_t i = 0; i < columns; i++) *to++ = (float)(from[i] * factor);
        }
    }
}
