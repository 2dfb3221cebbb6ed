/* test_arena.c: scratch memory: aligned, apart, of any size, and given back to a mark. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"

enum { MEGABYTE = 1 << 20 };

static sp_arena *create(void)
{
    sp_arena *arena;
    assert_int_equal(sp_arena_create(&arena), SP_OK);
    return arena;
}

static unsigned char *allocate(sp_arena *arena, size_t n_bytes)
{
    unsigned char *bytes = sp_arena_alloc(arena, n_bytes, 1);
    assert_non_null(bytes);
    assert_int_equal((uintptr_t)bytes % 64, 0);
    return bytes;
}

/* Each size as the first of an arena, so that it decides the size of a block; large ones that no page divides among them. */
static void test_first_allocation_of_any_size(void **state)
{
    (void)state;
    const size_t sizes[] = {
        0, 1, 63, 64, 65, MEGABYTE - 1, MEGABYTE + 1, 2 * MEGABYTE + 64, 4 * MEGABYTE, 4 * MEGABYTE + 1, 12 * MEGABYTE + 64};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        sp_arena *arena = create();
        memset(allocate(arena, sizes[i]), 0xa5, sizes[i]);
        sp_arena_free(arena);
    }
}

static void test_allocations_lie_apart(void **state)
{
    (void)state;
    enum { N = 40, BYTES = 300001 };
    sp_arena *arena = create();
    unsigned char *of[N];
    for (int i = 0; i < N; i++) memset(of[i] = allocate(arena, BYTES), i, BYTES);
    for (int i = 0; i < N; i++)
        for (size_t at = 0; at < BYTES; at += 997) assert_int_equal(of[i][at], i);
    sp_arena_free(arena);
}

static void test_a_mark_gives_back_what_came_after_it(void **state)
{
    (void)state;
    sp_arena *arena = create();
    unsigned char *before = allocate(arena, 100);
    memset(before, 7, 100);
    sp_arena_mark mark = sp_arena_get_mark(arena);
    unsigned char *first = allocate(arena, 3000);
    allocate(arena, 5 * MEGABYTE); /* a block of its own */
    sp_arena_reset(arena, mark);
    assert_ptr_equal(allocate(arena, 3000), first);
    for (int i = 0; i < 100; i++) assert_int_equal(before[i], 7);
    sp_arena_free(arena);
}

static void test_sizes_that_no_memory_has(void **state)
{
    (void)state;
    sp_arena *arena = create();
    assert_null(sp_arena_alloc(arena, SIZE_MAX, 2));
    assert_null(sp_arena_alloc(arena, SIZE_MAX / 2, 1));
    allocate(arena, 10);
    sp_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_allocation_of_any_size),
        cmocka_unit_test(test_allocations_lie_apart),
        cmocka_unit_test(test_a_mark_gives_back_what_came_after_it),
        cmocka_unit_test(test_sizes_that_no_memory_has),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
