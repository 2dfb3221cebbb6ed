/* test_tree.c: token trees: every token once, every path right. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "model/tree.h"

static size_t run_of(const sp_tree *tree, size_t row)
{
    size_t run = 0;
    while (row >= tree->runs[run].first_row + tree->runs[run].n_rows) run++;
    return run;
}

/* The tokens on the path from the root to `row`, read backwards through parents, into out[0 .. position]. */
static size_t read_path(int32_t *out, const sp_tree *tree, size_t row)
{
    size_t run = run_of(tree, row), position = sp_tree_position(tree, run, row), n = position + 1;
    for (;;) {
        for (size_t r = row + 1; r-- > tree->runs[run].first_row;) out[position--] = tree->tokens[r];
        if (tree->runs[run].parent == SP_NO_RUN) break;
        assert_true(tree->runs[run].parent < run);
        run = tree->runs[run].parent;
        row = tree->runs[run].first_row + tree->runs[run].n_rows - 1;
    }
    assert_int_equal(position, SIZE_MAX); /* the path had as many rows as the position says */
    return n;
}

enum { N = 60, LONGEST = 9, ALPHABET = 3 };

/* How many different prefixes there are: what a radix tree must hold. */
static size_t count_prefixes(int32_t (*sequences)[LONGEST], const size_t *lengths)
{
    size_t count = 0;
    for (size_t i = 0; i < N; i++)
        for (size_t l = 1; l <= lengths[i]; l++) {
            bool seen = false;
            for (size_t j = 0; j < i && !seen; j++)
                seen = lengths[j] >= l && !memcmp(sequences[j], sequences[i], l * sizeof(int32_t));
            count += !seen;
        }
    return count;
}

static void random_sequences_share_every_prefix(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        int32_t sequences[N][LONGEST], path[LONGEST + 4];
        size_t lengths[N], rows[N][LONGEST], root;
        const int32_t *pointers[N];
        size_t *row_pointers[N];
        sp_rng rng = sp_rng_seed(seed, 0);
        for (size_t i = 0; i < N; i++) {
            lengths[i] = 1 + sp_rng_below(&rng, LONGEST);
            for (size_t k = 0; k < lengths[i]; k++) sequences[i][k] = (int32_t)sp_rng_below(&rng, ALPHABET);
            pointers[i] = sequences[i];
            row_pointers[i] = rows[i];
        }
        sp_tree tree = {0};
        assert_int_equal(sp_tree_add_prompt(&root, &tree, 4, 4), SP_OK);
        assert_int_equal(sp_tree_add_sequences(row_pointers, &tree, root, pointers, lengths, N), SP_OK);
        assert_int_equal(tree.n_rows, 4 + count_prefixes(sequences, lengths));
        for (size_t i = 0; i < N; i++)
            for (size_t k = 0; k < lengths[i]; k++) {
                assert_int_equal(read_path(path, &tree, rows[i][k]), 4 + k + 1);
                assert_int_equal(path[0], -1);
                assert_memory_equal(path + 4, sequences[i], (k + 1) * sizeof(int32_t));
            }
        sp_tree_free(&tree);
    }
}

static void runs_grow_and_shrink(void **state)
{
    (void)state;
    const int32_t tokens[] = {5, 6, 7, 8};
    sp_tree tree = {0};
    size_t first, second;
    assert_int_equal(sp_tree_add_run(&first, &tree, SP_NO_RUN, tokens, 2), SP_OK);
    assert_int_equal(sp_tree_add_run(&second, &tree, first, tokens + 2, 1), SP_OK);
    assert_int_equal(sp_tree_extend_last(&tree, tokens + 3, 1), SP_OK);
    assert_int_equal(tree.n_rows, 4);
    assert_int_equal(sp_tree_position(&tree, second, 3), 3);
    sp_tree_truncate(&tree, 3);
    assert_int_equal(tree.n_rows, 3);
    assert_int_equal(tree.runs[second].n_rows, 1);
    sp_tree_truncate(&tree, 2);
    assert_int_equal(tree.n_runs, 1);
    sp_tree_truncate(&tree, 0);
    assert_int_equal(tree.n_runs, 0);
    assert_int_equal(sp_tree_add_run(&first, &tree, SP_NO_RUN, tokens, 0), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "no tokens"));
    sp_tree_free(&tree);
}

/* Each prompt is a root of its own: positions start at 0, and a text sees its own prompt and no other. */
static void several_prompts(void **state)
{
    (void)state;
    const int32_t tokens[] = {5, 6};
    int32_t path[8];
    sp_tree tree = {0};
    size_t first, second, below, alone;
    assert_int_equal(sp_tree_add_prompt(&first, &tree, 3, 3), SP_OK);
    assert_int_equal(sp_tree_add_prompt(&second, &tree, 2, 2), SP_OK);
    assert_int_equal(sp_tree_add_run(&below, &tree, second, tokens, 2), SP_OK);
    assert_int_equal(sp_tree_add_run(&alone, &tree, SP_NO_RUN, tokens, 1), SP_OK);
    assert_int_equal(sp_tree_position(&tree, first, 2), 2);
    assert_int_equal(sp_tree_position(&tree, second, 3), 0);
    assert_int_equal(sp_tree_position(&tree, below, 6), 3);
    assert_int_equal(sp_tree_position(&tree, alone, 7), 0);
    assert_int_equal(read_path(path, &tree, 6), 4);
    assert_memory_equal(path, ((const int32_t[]){-1, -1, 5, 6}), 4 * sizeof *path);
    sp_tree_free(&tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_sequences_share_every_prefix),
        cmocka_unit_test(runs_grow_and_shrink),
        cmocka_unit_test(several_prompts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
