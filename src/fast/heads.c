/* heads.c: many heads in one call: threads take heads, heads take threads, or some of both.
 *
 * Heads side by side, each on one thread, wait for nothing but the last of them; one after the other, all threads on each, they
 * wait after every pass. So heads go side by side, the largest first, and alone only where that is sooner by the count of
 * multiply-adds: a head larger than a thread's share of all, or the last few that would leave threads idle; and where the memory
 * that is allowed does not take as many at once as there are threads.
 *
 * Invariant: a head's bits do not depend on how it ran, since those of a call do not depend on its threads (fast.h), and plans do
 * not look at the other heads.
 * Cost: planning O(heads (heads + threads^2)), without a look at the data. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"
#include "fast/fast.h"

static const double TOGETHER = 1.1; /* what threads that share a head lose, of processor time */
static const double EVEN = 1.05;    /* not worth another plan */

/* What a head is expected to take, by its shape alone: more than it will where a polynomial serves. */
typedef struct head_cost {
    size_t head;
    double products, n_bytes;
} head_cost;

typedef struct heads_run {
    float *const *out;
    sp_certificate *certificates; /* or NULL */
    sp_fast *fast;
    const sp_attention_head *heads;
    size_t n_heads, n_threads, n_workers; /* workers: no more than heads */
    head_cost *order;                     /* (n_heads) by their products, the largest first */
    double *loads;                        /* (n_threads) scratch */
    sp_fast *workers;                     /* (n_workers), as the handle but for one thread, each with an arena of its own */

    sp_status status; /* of the first head that failed, */
    size_t failed;    /* which it is, */
    char message[1024];
} heads_run;

/* ---- what heads cost ---- */

/* In numbers of f64 and f32: rows of the exact kernel, queries and keys in other coordinates, moments and their states. A
 * polynomial that is chosen for its cost has fewer products than the exact kernel. */
static double estimate_bytes(const sp_fast *fast, const sp_attention_head *h, double exact)
{
    const double n_q = (double)h->n_queries, n_k = (double)h->n_keys, d = (double)h->d, all = (double)h->d_v + 1;
    const bool is_given = fast->options.degree > 0 || fast->options.range > 0;
    const double features = (double)sp_monomials_count(h->d, fast->last_degree) * all;
    const double moments = is_given ? features : fmin(features, exact / fmax(n_k, 1));
    const double states = is_given ? 1 : (double)fast->last_degree;
    return 8 * (n_q + n_k) * (d + 8) + 5 * n_k * (d + all) + moments * (12 + 4 * states);
}

static head_cost estimate(const heads_run *run, size_t head)
{
    const sp_attention_head *h = &run->heads[head];
    const double n_q = (double)h->n_queries, n_k = (double)h->n_keys;
    const double pair = (double)h->d + (double)h->d_v + 1 + SP_EXP_COST;
    const double exact = n_q * (n_k - (h->causal ? n_q / 2 : 0)) * pair;
    return (head_cost){head, fmax(exact, 0), estimate_bytes(run->fast, h, fmax(exact, 0))};
}

static int larger_first(const void *a, const void *b)
{
    const head_cost *x = a, *y = b;
    if (x->products != y->products) return x->products < y->products ? 1 : -1;
    return (x->head > y->head) - (x->head < y->head);
}

/* When the last thread is done with heads from `first` on, each taken by whoever is free. */
static double time_side_by_side(const heads_run *run, size_t first)
{
    double last = 0;
    for (size_t t = 0; t < run->n_threads; t++) run->loads[t] = 0;
    for (size_t i = first; i < run->n_heads; i++) {
        size_t free = 0;
        for (size_t t = 1; t < run->n_threads; t++)
            if (run->loads[t] < run->loads[free]) free = t;
        run->loads[free] += run->order[i].products;
        last = fmax(last, run->loads[free]);
    }
    return last;
}

static double time_alone(const heads_run *run, size_t i)
{
    const size_t n_threads = sp_smaller(run->n_threads, sp_fast_threads(run->fast, run->order[i].products));
    return run->order[i].products * (n_threads > 1 ? TOGETHER / (double)n_threads : 1);
}

/* How many of the largest go first, one after the other. */
static size_t choose_alone(const heads_run *run)
{
    const size_t most = sp_smaller(run->n_threads, run->n_heads);
    double all = 0, before = 0, least = time_side_by_side(run, 0);
    size_t best = 0;
    for (size_t i = 0; i < run->n_heads; i++) all += run->order[i].products;
    if (least <= EVEN * all / (double)run->n_threads) return 0;
    for (size_t n = 1; n <= most; n++) {
        before += time_alone(run, n - 1);
        const double time = before + time_side_by_side(run, n);
        if (time < least) least = time, best = n;
    }
    return best;
}

/* ---- running ---- */

static void note_failure(heads_run *run, size_t head, sp_status st)
{
#pragma omp critical
    if (!run->status || head < run->failed) {
        run->status = st;
        run->failed = head;
        snprintf(run->message, sizeof run->message, "head %zu: %s", head, sp_message());
    }
}

static void attend(heads_run *run, sp_fast *fast, size_t head)
{
    sp_certificate *certificate = run->certificates ? &run->certificates[head] : NULL;
    if (certificate) *certificate = (sp_certificate){0};
    const sp_status st = sp_fast_attention(run->out[head], certificate, fast, &run->heads[head]);
    if (st) note_failure(run, head, st);
}

/* The first n_alone of the order with all threads, then the others; of these, those too large to stand beside others with all
 * threads, too. */
static void attend_to_all(heads_run *run, size_t n_alone)
{
    const double most_bytes = (double)run->fast->options.max_bytes / (double)run->n_workers;
    size_t n_beside = 0;
    for (size_t i = 0; i < run->n_heads; i++) {
        const head_cost one = run->order[i];
        if (i < n_alone || !(one.n_bytes <= most_bytes))
            attend(run, run->fast, one.head);
        else
            run->order[n_beside++] = one;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)sp_larger(1, sp_smaller(run->n_workers, n_beside)))
    for (size_t i = 0; i < n_beside; i++) attend(run, &run->workers[omp_get_thread_num()], run->order[i].head);
}

/* A thread's arena is kept with the handle: the next call allocates nothing. */
static sp_status make_workers(heads_run *run)
{
    sp_fast *fast = run->fast;
    if (fast->n_arenas < run->n_workers) {
        sp_arena **arenas = realloc(fast->arenas, run->n_workers * sizeof *arenas);
        if (!arenas) return sp_fail_no_memory(run->n_workers * sizeof *arenas);
        fast->arenas = arenas;
    }
    for (sp_status st; fast->n_arenas < run->n_workers; fast->n_arenas++)
        if ((st = sp_arena_create(&fast->arenas[fast->n_arenas]))) return st;
    for (size_t t = 0; t < run->n_workers; t++) {
        run->workers[t] = *fast;
        run->workers[t].arena = fast->arenas[t];
        run->workers[t].options.n_threads = 1;
    }
    return SP_OK;
}

/* Each thread must have enough to do, of all heads together. */
static void count_threads(heads_run *run)
{
    double all = 0;
    for (size_t i = 0; i < run->n_heads; i++) all += run->order[i].products;
    run->n_threads = sp_fast_threads(run->fast, all);
    run->n_workers = sp_smaller(run->n_threads, run->n_heads);
}

static sp_status begin(heads_run *run)
{
    run->order = calloc(run->n_heads, sizeof *run->order);
    if (!run->order) return sp_fail_no_memory(run->n_heads * sizeof *run->order);
    for (size_t i = 0; i < run->n_heads; i++) run->order[i] = estimate(run, i);
    qsort(run->order, run->n_heads, sizeof *run->order, larger_first);
    count_threads(run);
    run->loads = calloc(run->n_threads, sizeof *run->loads);
    run->workers = calloc(run->n_workers, sizeof *run->workers);
    if (!run->loads || !run->workers) return sp_fail_no_memory(run->n_workers * sizeof(sp_fast));
    return make_workers(run);
}

sp_status sp_fast_attention_heads(float *const *out, sp_certificate *certificates, sp_fast *fast, const sp_attention_head *heads,
                                  size_t n_heads)
{
    if (n_heads == 0) return SP_OK;
    heads_run run = {.out = out, .certificates = certificates, .fast = fast, .heads = heads, .n_heads = n_heads};
    sp_status st = begin(&run);
    if (!st) {
        attend_to_all(&run, choose_alone(&run));
        if (run.status) st = sp_fail(run.status, "%s", run.message);
    }
    free(run.order);
    free(run.loads);
    free(run.workers);
    return st;
}
