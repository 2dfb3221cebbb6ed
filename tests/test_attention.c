/* test_attention.c: attention over token trees against plain loops in double, at every border there is: between
 * spans, between blocks of keys, between tiles, and where a few queries' keys are split. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <omp.h>

#include "base/rng.h"
#include "model/internal.h"
#include "model/tree.h"

/* A tree: the number of rows of each run, and which run stands above it; and from which row on there are queries. */
typedef struct attention_case {
    const char *name;
    struct {
        int parent;
        size_t n_rows;
    } runs[12];
    size_t first_query, query_step;
    sp_attention_shape shape;
    size_t window;
} attention_case;

#define SMALL                                                                                                                      \
    {                                                                                                                              \
        9, 3, 64, 0.125f, 0                                                                                                        \
    }
#define CAPPED                                                                                                                     \
    {                                                                                                                              \
        9, 3, 64, 0.125f, 1.5f                                                                                                     \
    }
static const attention_case cases[] = {
    {"no query", {{-1, 5}}, 5, 1, SMALL, 0},
    {"decoding behind runs that follow each other", {{-1, 255}, {0, 2}, {1, 257}, {2, 1}, {3, 500}, {4, 1}}, 1015, 1, SMALL, 64},
    {"one row", {{-1, 1}}, 0, 1, SMALL, 0},
    {"two rows, one head of 3 numbers", {{-1, 2}}, 0, 1, {1, 1, 3, 0.6f, 0}, 0},
    {"a run as long as a tile", {{-1, 64}}, 0, 1, SMALL, 0},
    {"a run one longer than a tile", {{-1, 65}}, 0, 1, SMALL, 0},
    {"a run of several blocks", {{-1, 530}}, 0, 1, {6, 2, 16, 0.25f, 0}, 0},
    {"a step of training", {{-1, 100}, {0, 3}, {1, 40}, {2, 1}, {2, 2}, {1, 35}, {5, 3}, {1, 44}}, 0, 1, SMALL, 0},
    {"only some rows are read", {{-1, 100}, {0, 7}, {1, 40}, {2, 3}, {1, 35}}, 90, 7, SMALL, 0},
    {"wide heads", {{-1, 70}, {0, 66}, {1, 5}}, 0, 1, {4, 1, 256, 0.0625f, 0}, 0},
    {"heads of 80", {{-1, 33}, {0, 300}}, 0, 1, {4, 4, 80, 0.11f, 0}, 0},
    {"decoding behind a long run", {{-1, 1500}}, 1499, 1, SMALL, 0},
    {"decoding behind many runs", {{-1, 255}, {0, 2}, {1, 257}, {2, 1}, {3, 500}, {4, 1}}, 1015, 1, SMALL, 0},
    {"answers behind a long run", {{-1, 1100}, {0, 1}, {0, 2}, {0, 5}}, 1100, 1, SMALL, 0},
    {"a window shorter than its run", {{-1, 500}}, 0, 1, SMALL, 37},
    {"a window of one", {{-1, 50}, {0, 20}}, 0, 1, SMALL, 1},
    {"a window over several runs", {{-1, 100}, {0, 3}, {1, 40}, {2, 1}, {2, 2}, {1, 300}, {5, 3}}, 0, 1, SMALL, 64},
    {"a window, few rows read", {{-1, 100}, {0, 700}, {1, 3}}, 90, 7, SMALL, 50},
    {"a window, wide heads", {{-1, 170}, {0, 166}, {1, 5}}, 0, 1, {4, 1, 256, 0.0625f, 0}, 100},
    {"a window, decoding", {{-1, 1500}}, 1499, 1, SMALL, 700},
    {"a window, split where not all queries see the keys", {{-1, 700}}, 660, 1, {3, 1, 32, 0.2f, 0}, 300},
    {"a window that hides nothing", {{-1, 40}, {0, 20}}, 0, 1, SMALL, 60},
    {"a soft cap, a step of training", {{-1, 100}, {0, 3}, {1, 40}, {2, 1}, {2, 2}, {1, 35}, {5, 3}, {1, 44}}, 0, 1, CAPPED, 0},
    {"a soft cap, a run of several blocks", {{-1, 530}}, 0, 1, {6, 2, 16, 0.25f, 2}, 0},
    {"a soft cap and a window over several runs", {{-1, 100}, {0, 3}, {1, 40}, {2, 1}, {1, 300}, {4, 3}}, 0, 1, CAPPED, 64},
    {"a soft cap, decoding behind a long run", {{-1, 1500}}, 1499, 1, CAPPED, 0},
    {"a soft cap, heads of 3 numbers", {{-1, 21}}, 0, 1, {2, 1, 3, 0.6f, 0.5f}, 0},
    {"a turn, split where not all queries see the keys", {{-1, 700}}, 660, 1, {3, 1, 32, 0.2f, 0}, 0},
};

typedef struct fixture {
    const attention_case *which;
    sp_tree tree;
    sp_arena *arena;
    sp_attention_plan plan;
    size_t n, n_queries, q_dim, kv_dim, ld, run_of[2048];
    float *kt, *v, *q, *dout;
} fixture;

static float *random_floats(fixture *f, size_t n, uint64_t seed)
{
    float *x = sp_arena_alloc(f->arena, n, sizeof *x);
    sp_rng rng = sp_rng_seed(seed, n);
    for (size_t i = 0; i < n; i++) x[i] = (float)sp_rng_normal(&rng);
    return x;
}

static void set_up(fixture *f, const attention_case *which)
{
    static const int32_t tokens[2048];
    const sp_attention_shape *shape = &which->shape;
    *f = (fixture){.which = which, .q_dim = shape->n_head * shape->d_head, .kv_dim = shape->n_head_kv * shape->d_head};
    assert_int_equal(sp_arena_create(&f->arena), SP_OK);
    for (size_t r = 0, run; which->runs[r].n_rows; r++) {
        size_t parent = which->runs[r].parent < 0 ? SP_NO_RUN : (size_t)which->runs[r].parent;
        assert_int_equal(sp_tree_add_run(&run, &f->tree, parent, tokens, which->runs[r].n_rows), SP_OK);
        for (size_t i = 0; i < which->runs[r].n_rows; i++) f->run_of[f->n++] = run;
    }
    size_t *rows = sp_arena_alloc(f->arena, f->n, sizeof *rows);
    for (size_t r = which->first_query; r < f->n; r += which->query_step) rows[f->n_queries++] = r;
    assert_int_equal(
        sp_plan_attention(&f->plan, &f->tree, rows, f->n_queries, shape->n_head / shape->n_head_kv, which->window, f->arena),
        SP_OK);
    f->ld = f->n + SP_KEY_PADDING;
    f->kt = random_floats(f, f->kv_dim * f->ld, 1);
    f->v = random_floats(f, f->n * f->kv_dim, 2);
    f->q = random_floats(f, f->n_queries * f->q_dim, 3);
    f->dout = random_floats(f, f->n_queries * f->q_dim, 4);
}

static void tear_down(fixture *f)
{
    sp_arena_free(f->arena);
    sp_tree_free(&f->tree);
}

typedef struct results {
    float *out, *lse, *dq, *dk, *dv; /* dk and dv side by side, as backward's callers have them */
} results;

static void compute(results *r, fixture *f, int n_threads)
{
    const sp_attention_shape *shape = &f->which->shape;
    const sp_keys keys = {f->kt, f->ld, f->v};
    size_t n_lse = f->n_queries * shape->n_head;
    omp_set_num_threads(n_threads);
    *r = (results){random_floats(f, f->n_queries * f->q_dim, 5), random_floats(f, n_lse, 6),
                   random_floats(f, f->n_queries * f->q_dim, 7), random_floats(f, f->n * 2 * f->kv_dim, 8), NULL};
    r->dv = r->dk + f->kv_dim;
    assert_int_equal(sp_attention_forward(r->out, r->lse, f->q, f->q_dim, &f->plan, &keys, shape, f->arena), SP_OK);
    assert_int_equal(sp_attention_backward(r->dq, f->q_dim, r->dk, r->dv, 2 * f->kv_dim, f->dout, r->out, r->lse, f->q, f->q_dim,
                                           &f->plan, &keys, shape, f->arena),
                     SP_OK);
}

static bool sees(const fixture *f, size_t row, size_t key)
{
    size_t run = f->run_of[row], window = f->which->window;
    if (window && sp_tree_position(&f->tree, run, row) >= window + sp_tree_position(&f->tree, f->run_of[key], key)) return false;
    if (f->run_of[key] == run) return key <= row;
    while ((run = f->tree.runs[run].parent) != SP_NO_RUN)
        if (f->run_of[key] == run) return true;
    return false;
}

static void assert_near(double got, double want, double tolerance, const fixture *f, const char *what)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("%s: %s: got %.9g, want %.9g within %.3g", f->which->name, what, got, want, tolerance);
}

/* Sums of n terms of size about 1, rounded at each. */
static double tolerance(double n)
{
    return 4 * FLT_EPSILON * (8 + sqrt(n)) * sqrt(n + 64);
}

/* One query's head: its result, and what it adds to the gradients. */
static void check_row(const fixture *f, const results *r, size_t query, size_t head, double *dk, double *dv)
{
    static double weights[2048], dweights[2048], slopes[2048];
    const sp_attention_shape *shape = &f->which->shape;
    size_t d = shape->d_head, group = head / (shape->n_head / shape->n_head_kv), row = f->plan.query_rows[query];
    size_t at = query * f->q_dim + head * d;
    double sum = 0, dot = 0;
    for (size_t k = 0; k < f->n; k++) {
        weights[k] = dweights[k] = slopes[k] = 0;
        if (!sees(f, row, k)) continue;
        for (size_t i = 0; i < d; i++) {
            weights[k] += (double)shape->scale * (double)f->q[at + i] * (double)f->kt[(group * d + i) * f->ld + k];
            dweights[k] += (double)f->dout[at + i] * (double)f->v[k * f->kv_dim + group * d + i];
        }
        slopes[k] = 1;
        if (shape->soft_cap != 0) {
            double cap = (double)shape->soft_cap, t = tanh(weights[k] / cap);
            weights[k] = cap * t;
            slopes[k] = 1 - t * t;
        }
        weights[k] = exp(weights[k]);
        sum += weights[k];
    }
    assert_near((double)r->lse[query * shape->n_head + head], log(sum), 1e-5, f, "lse");
    for (size_t k = 0; k < f->n; k++) dot += (weights[k] /= sum) * dweights[k];
    for (size_t i = 0; i < d; i++) {
        double out = 0, dq = 0;
        for (size_t k = 0; k < f->n; k++) {
            double ds = weights[k] * (dweights[k] - dot) * slopes[k] * (double)shape->scale;
            size_t key = k * f->kv_dim + group * d + i;
            out += weights[k] * (double)f->v[key];
            dq += ds * (double)f->kt[(group * d + i) * f->ld + k];
            dk[key] += ds * (double)f->q[at + i];
            dv[key] += weights[k] * (double)f->dout[at + i];
        }
        assert_near((double)r->out[at + i], out, tolerance((double)d), f, "out");
        assert_near((double)r->dq[at + i], dq, tolerance((double)d), f, "dq");
    }
}

static void matches_plain_loops(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        fixture f;
        results r;
        set_up(&f, &cases[c]);
        compute(&r, &f, 2);
        double *dk = calloc(f.n * f.kv_dim, sizeof *dk), *dv = calloc(f.n * f.kv_dim, sizeof *dv);
        for (size_t query = 0; query < f.n_queries; query++)
            for (size_t head = 0; head < cases[c].shape.n_head; head++) check_row(&f, &r, query, head, dk, dv);
        for (size_t row = 0; row < f.n; row++)
            for (size_t i = 0; i < f.kv_dim; i++) {
                double bound = tolerance((double)f.n_queries * 4);
                assert_near((double)r.dk[row * 2 * f.kv_dim + i], dk[row * f.kv_dim + i], bound, &f, "dk");
                assert_near((double)r.dv[row * 2 * f.kv_dim + i], dv[row * f.kv_dim + i], bound, &f, "dv");
            }
        free(dk);
        free(dv);
        tear_down(&f);
    }
}

static void threads_change_no_byte(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        fixture f;
        results one, more;
        set_up(&f, &cases[c]);
        compute(&one, &f, 1);
        for (int n_threads = 2; n_threads <= 3; n_threads++) {
            size_t n_out = f.n_queries * f.q_dim * sizeof(float);
            compute(&more, &f, n_threads);
            assert_memory_equal(one.out, more.out, n_out);
            assert_memory_equal(one.dq, more.dq, n_out);
            assert_memory_equal(one.lse, more.lse, f.n_queries * cases[c].shape.n_head * sizeof(float));
            assert_memory_equal(one.dk, more.dk, f.n * 2 * f.kv_dim * sizeof(float));
        }
        tear_down(&f);
    }
}

/* Scores far beyond what exp can hold: the largest takes everything, in whichever block it stands. */
static void survives_large_scores(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        fixture f;
        results r;
        set_up(&f, &cases[c]);
        for (size_t i = 0; i < f.n_queries * f.q_dim; i++) f.q[i] *= 1000;
        compute(&r, &f, 2);
        for (size_t i = 0; i < f.n_queries * f.q_dim; i++) assert_true(isfinite(r.out[i]) && isfinite(r.dq[i]));
        for (size_t i = 0; i < f.n * 2 * f.kv_dim; i++) assert_true(isfinite(r.dk[i]));
        tear_down(&f);
    }
}

/* A score that is no number must reach the result, and only the results that it belongs to. */
static void keeps_nan(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        fixture f;
        results r;
        set_up(&f, &cases[c]);
        f.kt[0] = NAN; /* row 0: every query sees it, but for those whose window ends before */
        compute(&r, &f, 1);
        size_t heads = cases[c].shape.n_head / cases[c].shape.n_head_kv;
        for (size_t query = 0; query < f.n_queries; query++)
            for (size_t i = 0; i < heads * cases[c].shape.d_head; i++)
                assert_int_equal(isnan(r.out[query * f.q_dim + i]) != 0, sees(&f, f.plan.query_rows[query], 0));
        tear_down(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matches_plain_loops),
        cmocka_unit_test(threads_change_no_byte),
        cmocka_unit_test(survives_large_scores),
        cmocka_unit_test(keeps_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
