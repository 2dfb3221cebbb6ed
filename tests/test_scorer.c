/* test_scorer.c: several prompts in one pass. What is claimed: they know nothing of each other, so that scores and gradients are
 * those of passes with one prompt alone, whatever the prompts are made of and whatever passes went before. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/engine.h"
#include "softprompt.h"
#include "tiny_model.h"
#include "train/scorer.h"

enum { N_ROOTS = 5, N_EMBEDDINGS = 3, N_ITEMS = 11, N_TEXTS = 4, MAX_NLL = 64 };

static sp_model *model;
static sp_prompt *prompts[N_ROOTS];
static sp_root roots[N_ROOTS]; /* embeddings, keys and values, nothing, embeddings, keys and values */

/* Answers of one to three tokens; two begin alike. */
static const int32_t A[] = {82, 42, 253, 31}, B[] = {82, 42, 253, 31, 35, 11}, C[] = {56, 35}, D[] = {28, 29, 30};
static const sp_item TEXTS[N_TEXTS] = {
    {A, A + 3, 3, 1, 0, NULL}, {B, B + 3, 3, 3, 0, NULL}, {C, C + 1, 1, 1, 0, NULL}, {D, D + 1, 1, 2, 0, NULL}};

static int open_model(void **state)
{
    (void)state;
    char path[] = "/tmp/sp-scorer-XXXXXX";
    static const sp_method methods[N_ROOTS] = {SP_METHOD_PROMPT, SP_METHOD_CARTRIDGE, SP_METHOD_PROMPT, SP_METHOD_PROMPT,
                                               SP_METHOD_PREFIX};
    int file = mkstemp(path);
    if (file < 0 || close(file) || !tiny_model_write(path)) return -1;
    sp_status st = sp_model_load(&model, path, &(sp_model_options){.n_threads = 2});
    for (size_t r = 0; r < N_ROOTS && !st; r++) {
        if (r == 2) continue;
        const sp_prompt_options options = {.method = methods[r], .num_virtual_tokens = 3 + r, .seed = r};
        st = sp_prompt_create(&prompts[r], model, &options);
        roots[r] = sp_root_of_prompt(prompts[r]);
    }
    unlink(path);
    if (st) fprintf(stderr, "%s\n", sp_message());
    return st ? -1 : 0;
}

static int close_model(void **state)
{
    (void)state;
    for (size_t r = 0; r < N_ROOTS; r++) sp_prompt_free(prompts[r]);
    sp_model_free(model);
    return 0;
}

static sp_scorer *make_scorer(const sp_root *set, size_t n)
{
    sp_scorer *scorer;
    assert_int_equal(sp_scorer_create(&scorer, model), SP_OK);
    sp_scorer_set_roots(scorer, set, n);
    return scorer;
}

/* Texts in turn, behind roots in an order that is not theirs. */
static void make_items(sp_item *items, const size_t *order, size_t n_order)
{
    for (size_t i = 0; i < N_ITEMS; i++) {
        items[i] = TEXTS[(i * 3 + i / N_TEXTS) % N_TEXTS];
        items[i].root = order[i % n_order];
    }
}

/* Each item alone, behind its prompt alone. Returns how many tokens there are. */
static size_t score_apart(double *nll, const sp_item *items, const sp_root *set)
{
    size_t n = 0;
    for (size_t i = 0; i < N_ITEMS; i++) {
        const double *own;
        sp_item item = items[i];
        sp_scorer *scorer = make_scorer(&set[item.root], 1);
        item.root = 0;
        assert_int_equal(sp_scorer_score(&own, scorer, &item, 1), SP_OK);
        for (size_t k = 0; k < item.n_answer; k++) nll[n++] = own[k];
        sp_scorer_free(scorer);
    }
    return n;
}

static void assert_close(const double *got, const double *want, size_t n)
{
    for (size_t i = 0; i < n; i++) assert_true(fabs(got[i] - want[i]) <= 1e-5 * (1 + fabs(want[i])));
}

static void assert_scores(sp_scorer *scorer, const sp_item *items, const double *want, size_t n)
{
    const double *nll;
    assert_int_equal(sp_scorer_score(&nll, scorer, items, N_ITEMS), SP_OK);
    assert_close(nll, want, n);
}

/* Prompts of embeddings, of keys and values, and none at all, in one pass; then again, when their keys are there. */
static void test_scores_are_those_of_passes_apart(void **state)
{
    (void)state;
    static const size_t order[] = {4, 0, 2, 1, 3};
    sp_item items[N_ITEMS];
    double want[MAX_NLL];
    make_items(items, order, N_ROOTS);
    size_t n = score_apart(want, items, roots);
    assert_true(fabs(want[0] - want[1]) > 1e-3);
    sp_scorer *scorer = make_scorer(roots, N_ROOTS);
    for (int pass = 0; pass < 3; pass++) assert_scores(scorer, items, want, n);
    sp_scorer_free(scorer);
}

/* The first token of an answer that nothing precedes is predicted by its own prompt's last row. */
static void test_answers_without_context(void **state)
{
    (void)state;
    static const size_t order[] = {3, 0};
    sp_item items[N_ITEMS];
    double want[MAX_NLL];
    make_items(items, order, 2);
    items[1] = (sp_item){D, D, 0, 3, 0, NULL};
    items[4] = (sp_item){D, D, 0, 3, 3, NULL};
    size_t n = score_apart(want, items, roots);
    sp_scorer *scorer = make_scorer(roots, N_ROOTS);
    for (int pass = 0; pass < 2; pass++) assert_scores(scorer, items, want, n);
    sp_scorer_free(scorer);
}

static double norm(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sqrt(sum);
}

/* Where each root's rows begin in a gradient of all; out[n] is where they end. */
static void find_rows(size_t *out, const sp_root *set, size_t n, size_t width)
{
    out[0] = 0;
    for (size_t r = 0; r < n; r++) out[r + 1] = out[r] + set[r].n * width;
}

/* The gradients of single roots, each from a scorer that knows only this one. */
static void gradients_apart(float *gradient, const size_t *begin, const sp_item *items, const sp_root *set)
{
    const double *nll;
    for (size_t i = 0; i < N_ITEMS; i++) {
        sp_item item = items[i];
        sp_scorer *scorer = make_scorer(&set[item.root], 1);
        item.root = 0;
        assert_int_equal(sp_scorer_gradient(&nll, gradient + begin[items[i].root], scorer, &item, 1, 0.5), SP_OK);
        sp_scorer_free(scorer);
    }
}

/* unused: a root that no item uses, or SIZE_MAX. */
static void check_gradient(const sp_root *set, size_t n, size_t width, const size_t *order, size_t n_order, size_t unused)
{
    sp_item items[N_ITEMS];
    double want_nll[MAX_NLL];
    size_t begin[N_ROOTS + 1];
    const double *nll;
    make_items(items, order, n_order);
    find_rows(begin, set, n, width);
    float *want = malloc(begin[n] * sizeof *want), *got = malloc(begin[n] * sizeof *got);
    for (size_t i = 0; i < begin[n]; i++) want[i] = got[i] = 0.25f; /* gradients add up, and what has none stays as it was */
    gradients_apart(want, begin, items, set);
    size_t n_nll = score_apart(want_nll, items, set);
    sp_scorer *scorer = make_scorer(set, n);
    assert_scores(scorer, items, want_nll, n_nll);
    assert_int_equal(sp_scorer_gradient(&nll, got, scorer, items, N_ITEMS, 0.5), SP_OK);
    assert_close(nll, want_nll, n_nll);
    for (size_t r = 0; r < n; r++) {
        size_t n_own = begin[r + 1] - begin[r];
        float *own = want + begin[r], *difference = malloc((n_own + 1) * sizeof *difference);
        for (size_t i = 0; i < n_own; i++) difference[i] = own[i] - got[begin[r] + i];
        for (size_t i = 0; i < n_own; i++) own[i] -= 0.25f;
        if (r == unused)
            assert_true(norm(own, n_own) == 0 && norm(difference, n_own) == 0);
        else if (n_own)
            assert_true(norm(own, n_own) > 1e-3 && norm(difference, n_own) <= 1e-5 * norm(own, n_own));
        free(difference);
    }
    assert_scores(scorer, items, want_nll, n_nll); /* behind a pass that had other roots in other places */
    sp_scorer_free(scorer);
    free(want);
    free(got);
}

static void test_gradients_are_those_of_passes_apart(void **state)
{
    (void)state;
    const sp_root embeddings[N_EMBEDDINGS + 1] = {roots[0], roots[2], roots[3], roots[0]}, keys_values[] = {roots[4], roots[1]};
    static const size_t all[] = {3, 1, 0, 2}, some[] = {2, 0, 1};
    check_gradient(embeddings, 4, TINY_D, all, 4, SIZE_MAX);
    check_gradient(embeddings, 4, TINY_D, some, 3, 3);
    check_gradient(embeddings, 4, TINY_D, some, 2, 3);
    size_t width = sp_prompt_width(prompts[1]);
    check_gradient(keys_values, 2, width, all + 1, 2, SIZE_MAX);
    check_gradient(keys_values, 2, width, all + 1, 1, 0);
    check_gradient(keys_values, 2, width, all + 2, 1, 1);
}

/* Weights are of single tokens: the gradient is that of items of one token each, so weighted. */
static void test_weights(void **state)
{
    (void)state;
    static const float weights[] = {0.5f, 0, 2};
    const sp_item whole = {B, B + 3, 3, 3, 0, weights};
    const size_t n = roots[0].n * TINY_D;
    const double *nll;
    float *want = calloc(n, sizeof *want), *got = calloc(n, sizeof *got);
    sp_scorer *scorer = make_scorer(roots, 1);
    for (size_t k = 0; k < 3; k++) {
        const sp_item token = {B, B + 3 + k, 3 + k, 1, 0, NULL};
        assert_int_equal(sp_scorer_gradient(&nll, want, scorer, &token, 1, (double)weights[k] * 0.5), SP_OK);
    }
    assert_int_equal(sp_scorer_gradient(&nll, got, scorer, &whole, 1, 0.5), SP_OK);
    for (size_t i = 0; i < n; i++) got[i] -= want[i];
    assert_true(norm(want, n) > 1e-3 && norm(got, n) <= 1e-5 * norm(want, n));
    sp_scorer_free(scorer);
    free(want);
    free(got);
}

static void test_refusals(void **state)
{
    (void)state;
    const double *nll;
    float gradient[1];
    sp_item item = TEXTS[0];
    sp_scorer *scorer = make_scorer(roots, N_ROOTS);
    assert_int_equal(sp_scorer_gradient(&nll, gradient, scorer, &item, 1, 1), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "not as wide"));
    item.root = N_ROOTS;
    assert_int_equal(sp_scorer_score(&nll, scorer, &item, 1), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "prompt 5 of 5"));
    item = (sp_item){A, A, 0, 2, 2, NULL}; /* nothing predicts the first token */
    assert_int_equal(sp_scorer_score(&nll, scorer, &item, 1), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "starts with its answer"));
    item.root = 1;
    assert_int_equal(sp_scorer_score(&nll, scorer, &item, 1), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "keys and values"));
    sp_scorer_free(scorer);
}

/* A gradient has rows of one width, so the engine keeps no pass with both kinds; and what was given is not computed again. */
static void test_engine_refuses_both_kinds(void **state)
{
    (void)state;
    static const int32_t token = 65;
    sp_engine *engine;
    sp_tree tree = {0};
    size_t given, computed, text, row = roots[1].n + roots[0].n;
    assert_int_equal(sp_engine_create(&engine, model), SP_OK);
    assert_int_equal(sp_engine_set_keys_values(engine, 0, roots[1].keys_values, roots[1].n), SP_OK);
    assert_int_equal(sp_tree_add_prompt(&given, &tree, roots[1].n, roots[1].n), SP_OK);
    assert_int_equal(sp_tree_add_prompt(&computed, &tree, roots[0].n, roots[0].n), SP_OK);
    assert_int_equal(sp_tree_add_run(&text, &tree, computed, &token, 1), SP_OK);
    sp_pass pass = {.tree = &tree,
                    .first_row = roots[1].n,
                    .prompt = roots[0].embeddings,
                    .read_rows = &row,
                    .n_read = 1,
                    .keep_for_backward = true};
    assert_int_equal(sp_engine_forward(engine, &pass), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "at once"));
    pass.keep_for_backward = false;
    assert_int_equal(sp_engine_forward(engine, &pass), SP_OK);
    pass.first_row = 1;
    assert_int_equal(sp_engine_forward(engine, &pass), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "none that were given"));
    sp_tree_free(&tree);
    sp_engine_free(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scores_are_those_of_passes_apart),
        cmocka_unit_test(test_answers_without_context),
        cmocka_unit_test(test_gradients_are_those_of_passes_apart),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_engine_refuses_both_kinds),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
