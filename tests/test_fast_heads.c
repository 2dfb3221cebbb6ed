/* test_fast_heads.c: many heads in one call: the bits and the certificates of single calls, whatever the threads and the memory,
 * and whatever happens to a head among them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "drawn_floats.h"
#include "fast/fast.h"
#include "softprompt.h"

enum { MAX_HEADS = 24, MAX_THREADS = 5 };

/* Heads of all sorts, their arrays and what single calls give of them. */
typedef struct layer {
    size_t n;
    sp_attention_head heads[MAX_HEADS];
    float *q[MAX_HEADS], *k[MAX_HEADS], *v[MAX_HEADS], *out[MAX_HEADS], *want[MAX_HEADS];
    sp_certificate certificates[MAX_HEADS];
} layer;

static sp_fast *create(int n_threads, uint64_t max_bytes, double least_share)
{
    sp_fast *fast;
    if (sp_fast_create(&fast, &(sp_fast_options){.n_threads = n_threads, .max_bytes = max_bytes})) fail_msg("%s", sp_message());
    sp_fast_set_least_hybrid(fast, 0);
    sp_fast_set_least_share(fast, least_share);
    return fast;
}

static size_t output_floats(const sp_attention_head *h)
{
    return h->n_queries * (h->ldo ? h->ldo : h->d_v);
}

/* Large and small, causal and not, polynomial, hybrid and exact; of every three the second reads the first one's keys. */
static void draw(layer *out, size_t n, size_t largest)
{
    *out = (layer){.n = n};
    for (size_t h = 0; h < n; h++) {
        const size_t rows = h == n / 2 ? largest : 40 + 97 * (h % 7), d = 2 + h % 3, d_v = 1 + h % 5, shares = h % 3 == 1;
        sp_attention_head *head = &out->heads[h];
        out->q[h] = floats(rows * d, 3 * h, h % 4 == 3 ? 5 : .5);
        out->k[h] = floats(rows * d, 3 * h + 1, .6);
        out->v[h] = floats(rows * d_v, 3 * h + 2, 1);
        *head = (sp_attention_head){.q = out->q[h],
                                    .k = out->k[h],
                                    .v = out->v[h],
                                    .n_queries = rows,
                                    .n_keys = rows,
                                    .d = d,
                                    .d_v = d_v,
                                    .ldo = d_v + h % 2,
                                    .causal = h % 5 == 4};
        if (shares && !head->causal && out->heads[h - 1].d <= d) {
            head->k = out->k[h - 1], head->v = out->v[h - 1];
            head->n_keys = out->heads[h - 1].n_keys, head->d = out->heads[h - 1].d, head->d_v = out->heads[h - 1].d_v;
            head->ldq = d;
            head->ldo = head->d_v;
        }
        out->out[h] = floats(output_floats(head), 7, 9);
        out->want[h] = floats(output_floats(head), 7, 9); /* what stands between rows stays */
    }
    sp_fast *fast = create(1, 0, 0);
    for (size_t h = 0; h < n; h++)
        if (sp_fast_attention(out->want[h], &out->certificates[h], fast, &out->heads[h])) fail_msg("%s", sp_message());
    sp_fast_free(fast);
}

static void give_back(layer *l)
{
    for (size_t h = 0; h < l->n; h++) free(l->q[h]), free(l->k[h]), free(l->v[h]), free(l->out[h]), free(l->want[h]);
}

/* Heads that did not fail: outputs and certificates; forgets both. */
static void check(layer *l, const sp_certificate *certificates, const bool *failed)
{
    for (size_t h = 0; h < l->n; h++) {
        static const sp_certificate none;
        const size_t n = output_floats(&l->heads[h]);
        const sp_certificate *want = failed && failed[h] ? &none : &l->certificates[h];
        if (certificates) assert_memory_equal(&certificates[h], want, sizeof *want);
        if (!failed || !failed[h]) assert_memory_equal(l->out[h], l->want[h], n * sizeof(float));
        float *fresh = floats(n, 7, 9);
        memcpy(l->out[h], fresh, n * sizeof(float));
        free(fresh);
    }
}

/* Few and large, many and small, and one that is larger than all others; with little memory, none of them beside another. */
static void heads_are_as_single_calls(void **state)
{
    (void)state;
    static const struct {
        size_t n, largest;
        uint64_t max_bytes;
        double least_share;
    } cases[] = {{1, 900, 0, 0},          {2, 700, 0, 0},        {3, 100, 0, 0},         {5, 4000, 0, 0},
                 {MAX_HEADS, 3000, 0, 0}, {7, 2500, 3000000, 0}, {MAX_HEADS, 90, 0, 1e7}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        layer l;
        draw(&l, cases[c].n, cases[c].largest);
        for (int n_threads = 1; n_threads <= MAX_THREADS; n_threads++) {
            sp_certificate certificates[MAX_HEADS];
            sp_fast *fast = create(n_threads, cases[c].max_bytes, cases[c].least_share);
            for (int again = 0; again < 2; again++) {
                memset(certificates, 7, sizeof certificates);
                if (sp_fast_attention_heads(l.out, certificates, fast, l.heads, l.n)) fail_msg("%s", sp_message());
                check(&l, certificates, NULL);
            }
            assert_int_equal(sp_fast_attention_heads(l.out, NULL, fast, l.heads, l.n), SP_OK);
            check(&l, NULL, NULL);
            assert_int_equal(sp_fast_attention_heads(l.out, NULL, fast, l.heads, 0), SP_OK);
            sp_fast_free(fast);
        }
        give_back(&l);
    }
}

/* Two heads hold what attention refuses: the first of them is named, all others are there. */
static void a_bad_head_takes_nothing_from_the_others(void **state)
{
    (void)state;
    enum { N = 9, FIRST = 3, LAST = 7 };
    layer l;
    bool failed[N] = {[FIRST] = true, [LAST] = true};
    draw(&l, N, 2000);
    l.k[FIRST][11 * l.heads[FIRST].d + 1] = NAN; /* no other head reads these */
    l.heads[LAST].n_keys = 0;
    for (int n_threads = 1; n_threads <= MAX_THREADS; n_threads++) {
        sp_certificate certificates[N];
        sp_fast *fast = create(n_threads, 0, 0);
        memset(certificates, 7, sizeof certificates);
        assert_int_equal(sp_fast_attention_heads(l.out, certificates, fast, l.heads, l.n), SP_ERR_ARGUMENT);
        if (!strstr(sp_message(), "head 3: key 11: coordinate 1 is ")) fail_msg("%s", sp_message());
        l.heads[LAST].n_keys = 0;
        check(&l, certificates, failed);
        sp_fast_free(fast);
    }
    give_back(&l);
}

/* Each thread of somebody else's region has a handle; a call there stays on its thread. */
static void calls_nest(void **state)
{
    (void)state;
    enum { CALLERS = 3 };
    layer layers[CALLERS];
    sp_fast *fast[CALLERS];
    sp_status status[CALLERS];
    for (size_t i = 0; i < CALLERS; i++) draw(&layers[i], 4 + i, 1500), fast[i] = create(3, 0, 0);
#pragma omp parallel for num_threads(CALLERS)
    for (size_t i = 0; i < CALLERS; i++)
        status[i] = sp_fast_attention_heads(layers[i].out, NULL, fast[i], layers[i].heads, layers[i].n);
    for (size_t i = 0; i < CALLERS; i++) {
        assert_int_equal(status[i], SP_OK);
        check(&layers[i], NULL, NULL);
        give_back(&layers[i]);
        sp_fast_free(fast[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_are_as_single_calls),
        cmocka_unit_test(a_bad_head_takes_nothing_from_the_others),
        cmocka_unit_test(calls_nest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
