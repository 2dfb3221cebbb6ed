/* attention.c: how fast attention over token trees is, in the three shapes that it meets.
 *
 *   train    100 virtual tokens, a short template, B examples of 35 to 45 tokens, each with two short answers; with backward
 *   prefill  one run of N tokens; with backward
 *   decode   one query, or a few short answers, behind N tokens; every layer's keys and values anew, so that they come from memory
 *
 * Prints milliseconds a layer (the median of several passes over all layers) and GFLOPS of the pairs that are visible, or for
 * decoding the GB/s of keys and values. One thread's time is processor time, which other programs disturb less. Arguments: names of
 * workloads, all without. SOFTPROMPT_KERNELS picks the rung. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/rng.h"
#include "model/internal.h"
#include "model/tree.h"
#include "tensor/kernels.h"

enum { DECODE_LAYERS = 30, TRAIN_LAYERS = 4, PASSES = 15 };

typedef struct workload {
    const char *name;
    void (*build)(sp_tree *tree, size_t n);
    size_t n, n_queries; /* n_queries: the last rows of the tree that are computed; 0: all */
    size_t n_layer;
    bool backward;
    sp_attention_shape shape;
} workload;

static void must(sp_status st)
{
    if (st) {
        fprintf(stderr, "bench_attention: %s\n", sp_message());
        exit(1);
    }
}

static size_t add_run(sp_tree *tree, size_t parent, size_t n)
{
    int32_t tokens[64] = {0};
    size_t run, first = n < 64 ? n : 64;
    must(sp_tree_add_run(&run, tree, parent, tokens, first));
    for (size_t i = first; i < n; i++) must(sp_tree_extend_last(tree, tokens, 1));
    return run;
}

static void build_train(sp_tree *tree, size_t n_examples)
{
    size_t prompt;
    must(sp_tree_add_prompt(&prompt, tree, 100));
    size_t template = add_run(tree, prompt, 3);
    for (size_t i = 0; i < n_examples; i++) {
        size_t example = add_run(tree, template, 35 + i * 7 % 11);
        add_run(tree, example, 1);
        add_run(tree, example, 2);
    }
}

static void build_run(sp_tree *tree, size_t n)
{
    add_run(tree, SP_NO_RUN, n);
}

static void build_answers(sp_tree *tree, size_t n)
{
    size_t context = add_run(tree, SP_NO_RUN, n);
    for (size_t i = 1; i <= 4; i++) add_run(tree, context, i);
}

#define SMALL                                                                                                                      \
    {                                                                                                                              \
        9, 3, 64, 0.125f                                                                                                           \
    }
#define WIDE                                                                                                                       \
    {                                                                                                                              \
        4, 1, 256, 0.0625f                                                                                                         \
    }
static const workload workloads[] = {
    {"train16", build_train, 16, 0, TRAIN_LAYERS, true, SMALL},
    {"train32", build_train, 32, 0, TRAIN_LAYERS, true, SMALL},
    {"train16-wide", build_train, 16, 0, TRAIN_LAYERS, true, WIDE},
    {"prefill512", build_run, 512, 0, 2, true, SMALL},
    {"prefill2048", build_run, 2048, 0, 1, true, SMALL},
    {"prefill2048-wide", build_run, 2048, 0, 1, true, WIDE},
    {"decode2048", build_run, 2048, 1, DECODE_LAYERS, false, SMALL},
    {"decode6144", build_run, 6144, 1, DECODE_LAYERS, false, SMALL},
    {"decode2048-wide", build_run, 2048, 1, DECODE_LAYERS, false, WIDE},
    {"answers2048", build_answers, 2048, 10, DECODE_LAYERS, false, SMALL},
    {"turn16-2048", build_run, 2048, 16, DECODE_LAYERS, false, SMALL},
};

static double seconds_now(void)
{
    struct timespec t;
    if (omp_get_max_threads() > 1) return sp_seconds();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *random_floats(size_t n)
{
    float *x = aligned_alloc(64, (n * sizeof *x + 63) / 64 * 64);
    if (!x) exit(1);
    sp_rng rng = sp_rng_seed(1, n);
    for (size_t i = 0; i < n; i++) x[i] = (float)sp_rng_uniform(&rng) * 2 - 1;
    return x;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Queries times the keys that they see. */
static double count_pairs(const sp_attention_plan *plan)
{
    double pairs = 0;
    for (size_t t = 0; t < plan->n_tiles; t++) {
        const sp_query_tile *tile = &plan->tiles[t];
        size_t last = plan->query_rows[tile->first_query + tile->n_queries - 1];
        for (size_t i = 0; i < tile->n_queries; i++)
            pairs += (double)(tile->n_keys - (last - plan->query_rows[tile->first_query + i]));
    }
    return pairs;
}

static void report(const char *name, const char *what, double *seconds, size_t n_layer, double flops, double bytes)
{
    qsort(seconds, PASSES, sizeof *seconds, ascending);
    double a_layer = seconds[PASSES / 2] / (double)n_layer;
    printf("%-18s %-9s %-8s %d threads %9.4f ms/layer %8.1f GFLOPS", name, what, sp_kernels_select()->name, omp_get_max_threads(),
           1e3 * a_layer, 1e-9 * flops / a_layer);
    if (bytes > 0) printf(" %8.1f GB/s", 1e-9 * bytes / a_layer);
    printf("\n");
}

static void measure(const workload *w)
{
    sp_tree tree = {0};
    sp_arena *arena;
    sp_attention_plan plan;
    double forward[PASSES], backward[PASSES];
    must(sp_arena_create(&arena));
    w->build(&tree, w->n);
    size_t n = tree.n_rows, n_queries = w->n_queries ? w->n_queries : n, q_dim = w->shape.n_head * w->shape.d_head;
    size_t kv_dim = w->shape.n_head_kv * w->shape.d_head, ld = ((n + SP_KEY_PADDING + 15) / 16 | 1) * 16;
    size_t *rows = sp_arena_alloc(arena, n, sizeof *rows);
    for (size_t i = 0; i < n_queries; i++) rows[i] = n - n_queries + i;
    must(sp_plan_attention(&plan, &tree, rows, n_queries, w->shape.n_head / w->shape.n_head_kv, 0, arena));
    float *kt = random_floats(w->n_layer * kv_dim * ld), *v = random_floats(w->n_layer * kv_dim * n);
    float *q = random_floats(n_queries * q_dim), *out = random_floats(n_queries * q_dim), *dq = random_floats(n_queries * q_dim);
    float *lse = random_floats(n_queries * w->shape.n_head), *dkv = random_floats(n * 2 * kv_dim);
    double flops = 4 * (double)q_dim * count_pairs(&plan), bytes = 2 * sizeof(float) * (double)(kv_dim * n);
    for (int pass = -1; pass < PASSES; pass++) { /* the first warms up */
        double begin = seconds_now();
        for (size_t l = 0; l < w->n_layer; l++) {
            sp_keys keys = {kt + l * kv_dim * ld, ld, v + l * kv_dim * n};
            must(sp_attention_forward(out, lse, q, q_dim, &plan, &keys, &w->shape, arena));
        }
        double middle = seconds_now();
        for (size_t l = 0; l < w->n_layer && w->backward; l++) {
            sp_keys keys = {kt + l * kv_dim * ld, ld, v + l * kv_dim * n};
            must(sp_attention_backward(dq, q_dim, dkv, dkv + kv_dim, 2 * kv_dim, q, out, lse, q, q_dim, &plan, &keys, &w->shape,
                                       arena));
        }
        if (pass < 0) continue;
        forward[pass] = middle - begin;
        backward[pass] = seconds_now() - middle;
    }
    report(w->name, "forward", forward, w->n_layer, flops, w->backward ? 0 : bytes);
    if (w->backward) report(w->name, "backward", backward, w->n_layer, 2.5 * flops, 0);
    float *const buffers[] = {kt, v, q, out, dq, lse, dkv};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
    sp_arena_free(arena);
    sp_tree_free(&tree);
}

int main(int argc, char **argv)
{
    for (int threads = 1; threads <= 2; threads++) {
        omp_set_num_threads(threads);
        for (size_t i = 0; i < sizeof workloads / sizeof *workloads; i++) {
            bool wanted = argc == 1;
            for (int a = 1; a < argc; a++) wanted = wanted || strncmp(argv[a], workloads[i].name, strlen(argv[a])) == 0;
            if (wanted) measure(&workloads[i]);
        }
    }
    return 0;
}
