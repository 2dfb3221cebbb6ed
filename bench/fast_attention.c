/* fast_attention.c: attention in almost linear time against the exact kernel, in processor time, interleaved in one run.
 *
 * A JSON line a row: d d_v degree rho n causal hybrid threads ratio cpu_seconds_exact cpu_seconds_fast error bound kernels. With
 * several threads, whose processor time is summed, also what passes on a clock: seconds_exact, seconds_fast, ratio_seconds. Queries
 * and keys are normal, cut off where the largest norms are sqrt(rho), so that scores reach nearly rho and the degree serves them
 * all; values are the sign of a key's first coordinate and noise, because values that have nothing to do with the keys flatter.
 * Times are medians, the ratio is the median of the pairs' ratios. error: the largest difference from attention in f64 over some
 * queries. bound: the certificate's.
 *
 *     bench_fast_attention [--threads N] ...
 *     bench_fast_attention             the table of docs/fast-attention.md, and the rounding of its shapes
 *     bench_fast_attention d d_v degree log2(n) [causal]
 *     bench_fast_attention hybrid [d d_v deviation log2(n)]
 *                                      what a call chooses for itself, for scores that are normal with a deviation, none cut off;
 *                                      without a shape the table's rows, and a sweep of small sums, which must not lose
 *     bench_fast_attention exponent    the fast side alone from n = 2^14 to 2^20, and the slope of log time over log n
 *     bench_fast_attention rounding [d d_v degree log2(n)]
 *                                      the part of the error that f32 is to blame for: against the same polynomial in f64, about
 * the same centre, over some queries; without a shape those of the table at n = 2^20 bench_fast_attention state       one step of
 * decoding: three queries that share a head of 64 and read n keys of low rank, as moments and, as the engine does, one by one (d is
 * the keys' rank)
 *
 *     bench_fast_attention balanced [d d_v rank deviation spread log2(n) [causal]]
 *                                      keys of low rank and opposed spectra; rho_before: the range as it came; without a shape the
 *                                      table's rows, and a sweep of small sums, which must not lose
 *     bench_fast_attention heads       layers of heads, few and many, small and large: in one call, and a call for each
 *
 * SOFTPROMPT_KERNELS picks the rung. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/rng.h"
#include "fast/frame.h"
#include "fast/remez.h"
#include "fast/state.h"
#include "softprompt.h"
#include "tensor/attention.h"
#include "tensor/kernels.h"

enum { MAX_PASSES = 15, CHECKED = 24 };

static int n_threads = 1;

typedef struct row {
    size_t d, d_v, degree, log2_n;
    bool causal;
} row;

static const row rows[] = {
    {8, 8, 4, 12, false},   {8, 8, 4, 14, false},   {8, 8, 4, 16, false}, {16, 16, 3, 12, false}, {16, 16, 3, 15, false},
    {16, 16, 4, 14, false}, {64, 64, 2, 13, false}, {8, 8, 4, 13, true},  {8, 8, 4, 15, true},    {16, 16, 3, 15, true},
};

typedef struct workload {
    sp_fast *fast;
    sp_attention_head head;
    float *q, *k, *v, *out;
    double rho;
} workload;

static void must(sp_status st)
{
    if (!st) return;
    fprintf(stderr, "bench_fast_attention: %s\n", sp_message());
    exit(1);
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *floats(size_t n)
{
    float *x = malloc(n * sizeof *x);
    if (!x) must(SP_ERR_MEMORY);
    return x;
}

/* Vectors of norms up to `most`, three quarters of it being usual. */
static float *draw_vectors(size_t n, size_t d, double most, sp_rng *rng)
{
    float *x = floats(n * d);
    double deviation = .75 * most / sqrt((double)d);
    for (size_t r = 0; r < n; r++) {
        double squares = 0;
        for (size_t i = 0; i < d; i++) {
            double value = deviation * sp_rng_normal(rng);
            x[r * d + i] = (float)value;
            squares += value * value;
        }
        double shrink = sqrt(squares) > most ? most / sqrt(squares) : 1;
        for (size_t i = 0; i < d; i++) x[r * d + i] *= (float)shrink;
    }
    return x;
}

static void draw(workload *out, const row *r)
{
    size_t n = (size_t)1 << r->log2_n;
    sp_rng rng = sp_rng_seed(1, n);
    must(sp_fast_create(&out->fast, &(sp_fast_options){.degree = r->degree, .n_threads = n_threads}));
    out->rho = sp_exp_polynomial_range(r->degree, 1e-3);
    double most = sqrt(out->rho * .97); /* centring may move keys a little */
    out->q = draw_vectors(n, r->d, most, &rng);
    out->k = draw_vectors(n, r->d, most, &rng);
    out->v = floats(n * r->d_v);
    out->out = floats(n * r->d_v);
    for (size_t i = 0; i < n * r->d_v; i++)
        out->v[i] = (out->k[i / r->d_v * r->d] > 0 ? .5f : -.5f) + (float)sp_rng_uniform(&rng) - .5f;
    out->head = (sp_attention_head){.q = out->q,
                                    .k = out->k,
                                    .v = out->v,
                                    .n_queries = n,
                                    .n_keys = n,
                                    .d = r->d,
                                    .d_v = r->d_v,
                                    .ldq = r->d,
                                    .ldk = r->d,
                                    .ldv = r->d_v,
                                    .ldo = r->d_v,
                                    .scale = 1,
                                    .causal = r->causal};
}

static void give_back(workload *data)
{
    free(data->q), free(data->k), free(data->v), free(data->out);
    sp_fast_free(data->fast);
}

static double polynomial_at(const sp_exp_polynomial *p, double s)
{
    double value = 0;
    for (size_t j = p->degree + 1; j-- > 0;) value = value * s + p->c[j];
    return value;
}

/* What an output is compared with: attention in f64, weights exp(s), or p(s) where there is a p; keys less the centre, if any. */
typedef struct reference {
    const sp_exp_polynomial *p;
    const float *centre; /* (d) */
    uint64_t seed;       /* of the queries that are looked at */
} reference;

static const reference attention = {.seed = 2};

/* Largest difference from it, over the last query and some others. */
static double largest_difference(const workload *data, const reference *r)
{
    const sp_attention_head *h = &data->head;
    double largest = 0, *sums = malloc(h->d_v * sizeof *sums);
    sp_rng rng = sp_rng_seed(r->seed, h->n_queries);
    if (!sums) must(SP_ERR_MEMORY);
    for (size_t c = 0; c < CHECKED; c++) {
        const size_t query = c ? sp_rng_below(&rng, h->n_queries) : h->n_queries - 1, n = h->causal ? query + 1 : h->n_keys;
        const float *q = h->q + query * h->d;
        double normaliser = 0;
        memset(sums, 0, h->d_v * sizeof *sums);
        for (size_t j = 0; j < n; j++) {
            double s = 0;
            for (size_t i = 0; i < h->d; i++)
                s += (double)q[i] * ((double)h->k[j * h->d + i] - (r->centre ? (double)r->centre[i] : 0));
            const double weight = r->p ? polynomial_at(r->p, (double)h->scale * s) : exp((double)h->scale * s);
            normaliser += weight;
            for (size_t i = 0; i < h->d_v; i++) sums[i] += weight * (double)h->v[j * h->d_v + i];
        }
        for (size_t i = 0; i < h->d_v; i++)
            largest = fmax(largest, fabs(sums[i] / normaliser - (double)data->out[query * h->d_v + i]));
    }
    free(sums);
    return largest;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, size_t n)
{
    qsort(x, n, sizeof *x, ascending);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

/* What a call took; of several, sums or medians. */
typedef struct taken {
    double cpu, clock;
} taken;

static taken time_fast(workload *data, sp_certificate *certificate)
{
    const double cpu = cpu_seconds(), clock = sp_seconds();
    must(sp_fast_attention(data->out, certificate, data->fast, &data->head));
    return (taken){cpu_seconds() - cpu, sp_seconds() - clock};
}

static taken time_exact(workload *data)
{
    const double cpu = cpu_seconds(), clock = sp_seconds();
    must(sp_exact_attention(data->out, data->fast, &data->head));
    return (taken){cpu_seconds() - cpu, sp_seconds() - clock};
}

/* Passes of one exact call, or the mean of some, and three of the fast ones, in turn. */
typedef struct passes {
    size_t n;
    double exact[2][MAX_PASSES], fast[2][MAX_PASSES], ratios[2][MAX_PASSES]; /* of processor time, and on a clock */
} passes;

static void run_passes(passes *p, sp_certificate *certificate, workload *data, size_t n, size_t times)
{
    enum { AGAIN = 3 };
    for (p->n = 0; p->n < n; p->n++) {
        double fast[2][AGAIN] = {{0}}, exact[2] = {0};
        for (size_t t = 0; t < times; t++) {
            const taken one = time_exact(data);
            exact[0] += one.cpu / (double)times, exact[1] += one.clock / (double)times;
        }
        for (size_t t = 0; t < AGAIN * times; t++) {
            const taken one = time_fast(data, certificate);
            fast[0][t / times] += one.cpu / (double)times, fast[1][t / times] += one.clock / (double)times;
        }
        for (int c = 0; c < 2; c++) {
            p->exact[c][p->n] = exact[c];
            p->fast[c][p->n] = median(fast[c], AGAIN);
            p->ratios[c][p->n] = exact[c] / p->fast[c][p->n];
        }
    }
}

static void print_times(passes *p)
{
    printf("\"threads\": %d, \"ratio\": %.3g, \"cpu_seconds_exact\": %.5g, \"cpu_seconds_fast\": %.5g, ", n_threads,
           median(p->ratios[0], p->n), median(p->exact[0], p->n), median(p->fast[0], p->n));
    if (n_threads > 1)
        printf("\"ratio_seconds\": %.3g, \"seconds_exact\": %.5g, \"seconds_fast\": %.5g, ", median(p->ratios[1], p->n),
               median(p->exact[1], p->n), median(p->fast[1], p->n));
}

static void measure(const row *r)
{
    workload data;
    sp_certificate certificate;
    passes p;
    draw(&data, r);
    time_fast(&data, &certificate); /* warms up */
    run_passes(&p, &certificate, &data, r->log2_n <= 12 ? 15 : r->log2_n <= 13 ? 7 : r->log2_n <= 15 ? 3 : 1, 1);
    printf("{\"d\": %zu, \"d_v\": %zu, \"degree\": %zu, \"rho\": %.4f, \"n\": %zu, \"causal\": %s, \"hybrid\": false, ", r->d,
           r->d_v, certificate.degree, data.rho, data.head.n_queries, r->causal ? "true" : "false");
    print_times(&p);
    printf("\"error\": %.3g, \"bound\": %.3g, \"exact_queries\": %zu, \"kernels\": \"%s\"}\n",
           largest_difference(&data, &attention), certificate.polynomial_bound + certificate.rounding_bound, certificate.n_exact,
           sp_kernels_select()->name);
    fflush(stdout);
    give_back(&data);
}

/* ---- f32's part of the error ---- */

/* Keys at two opposite ends of the range alone, values their signs, queries between the ends: every sum rounds as the one before
 * it, and nothing averages out. */
static void draw_ends(workload *data, double most)
{
    const size_t d = data->head.d, d_v = data->head.d_v, n = data->head.n_keys;
    sp_rng rng = sp_rng_seed(6, n);
    for (size_t j = 0; j < n; j++) {
        const float sign = sp_rng_below(&rng, 2) ? 1 : -1, length = (float)sp_rng_uniform(&rng);
        for (size_t i = 0; i < d; i++) {
            const double direction = most * sqrt((double)(i + 1) * 2 / (double)(d * (d + 1))); /* squares sum to most^2 */
            data->k[j * d + i] = sign * (float)direction;
            data->q[j * d + i] = length * (float)direction;
        }
        for (size_t i = 0; i < d_v; i++) data->v[j * d_v + i] = sign;
    }
}

static void measure_rounding(const row *r, bool ends)
{
    workload data;
    sp_certificate certificate;
    sp_exp_polynomial p;
    sp_frame frame;
    sp_arena *arena;
    draw(&data, r);
    if (ends) draw_ends(&data, sqrt(data.rho * .97));
    must(sp_arena_create(&arena));
    must(sp_frame_measure(&frame, &data.head, sp_fast_kernels_select(), 1, arena));
    must(sp_fast_attention(data.out, &certificate, data.fast, &data.head));
    sp_exp_polynomial_fit(&p, r->degree, data.rho);
    printf("{\"d\": %zu, \"d_v\": %zu, \"degree\": %zu, \"rho\": %.4f, \"n\": %zu, \"causal\": false, \"hybrid\": false, "
           "\"keys\": \"%s\", \"rounding\": %.3g, \"rounding_bound\": %.3g, \"exact_queries\": %zu, \"kernels\": \"%s\"}\n",
           r->d, r->d_v, certificate.degree, data.rho, data.head.n_queries, ends ? "ends" : "normal",
           largest_difference(&data, &(reference){&p, frame.centre, 5}), certificate.rounding_bound, certificate.n_exact,
           sp_kernels_select()->name);
    fflush(stdout);
    sp_arena_free(arena);
    give_back(&data);
}

static void measure_roundings(void)
{
    static const row shapes[] = {{8, 8, 4, 20, false}, {16, 16, 3, 20, false}, {16, 16, 4, 20, false}, {64, 64, 2, 20, false}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        measure_rounding(&shapes[i], false), measure_rounding(&shapes[i], true);
}

/* ---- the hybrid: normal queries and keys, none cut off ---- */

static void draw_normal(workload *out, size_t d, size_t d_v, double deviation, size_t n)
{
    sp_rng rng = sp_rng_seed(4, n);
    const double size = sqrt(deviation / sqrt((double)d)); /* of a coordinate: d products of variance size^4 */
    must(sp_fast_create(&out->fast, &(sp_fast_options){.n_threads = n_threads}));
    out->q = floats(n * d), out->k = floats(n * d), out->v = floats(n * d_v), out->out = floats(n * d_v);
    for (size_t i = 0; i < n * d; i++) {
        out->q[i] = (float)(size * sp_rng_normal(&rng));
        out->k[i] = (float)(size * sp_rng_normal(&rng));
    }
    for (size_t i = 0; i < n * d_v; i++) out->v[i] = (out->k[i / d_v * d] > 0 ? .5f : -.5f) + (float)sp_rng_uniform(&rng) - .5f;
    out->head =
        (sp_attention_head){.q = out->q, .k = out->k, .v = out->v, .n_queries = n, .n_keys = n, .d = d, .d_v = d_v, .scale = 1};
}

/* How a row of a call that chose for itself ends. */
static void print_errors(const workload *data, const sp_certificate *c)
{
    printf("\"error\": %.3g, \"bound\": %.3g, \"exact_queries\": %zu, \"exact_keys\": %zu, \"kernels\": \"%s\"}\n",
           largest_difference(data, &attention), c->polynomial_bound + c->rounding_bound, c->n_exact, c->n_exact_keys,
           sp_kernels_select()->name);
    fflush(stdout);
}

static void measure_hybrid(size_t d, size_t d_v, double deviation, size_t n)
{
    workload data;
    sp_certificate certificate;
    passes p;
    draw_normal(&data, d, d_v, deviation, n);
    time_exact(&data), time_fast(&data, &certificate);
    run_passes(&p, &certificate, &data, n <= 4096 ? 9 : 1, n <= 1024 ? 5 : 1);
    printf("{\"d\": %zu, \"d_v\": %zu, \"degree\": %zu, \"rho\": %.4f, \"n\": %zu, \"causal\": false, \"hybrid\": true, "
           "\"deviation\": %g, ",
           d, d_v, certificate.degree, certificate.range, n, deviation);
    print_times(&p);
    print_errors(&data, &certificate);
    give_back(&data);
}

static void measure_hybrids(void)
{
    static const double deviations[] = {.05, .1, .25, .5, 1, 3};
    const size_t n = (size_t)1 << 15;
    measure_hybrid(8, 8, .1, n), measure_hybrid(8, 8, .25, n), measure_hybrid(8, 8, .5, n);
    measure_hybrid(4, 64, .5, n), measure_hybrid(4, 64, 1, n);
    for (size_t d = 4; d <= 64; d *= 2)
        for (size_t s = 0; s < sizeof deviations / sizeof *deviations; s++)
            for (size_t m = 512; m <= 4096; m *= 2) measure_hybrid(d, d, deviations[s], m);
}

/* ---- many heads ---- */

enum { MAX_HEADS = 64, MAX_THREADS = 64 };

typedef struct layer {
    size_t n;
    workload first; /* whose handle all use */
    sp_attention_head heads[MAX_HEADS];
    float *out[MAX_HEADS];
} layer;

/* Processor time of each thread so far. The runtime keeps its threads, so the same ones answer as worked. */
static void thread_seconds(double *out)
{
#pragma omp parallel num_threads(n_threads)
    {
        struct timespec t;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        out[omp_get_thread_num()] = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }
}

/* What a layer took: processor time of all threads; that of the busiest in each call, which is what passes where every thread has a
 * processor to itself, but for waits within a call; and what passed. */
typedef struct layer_time {
    double cpu, busiest, clock;
} layer_time;

static layer_time time_layer(layer *l, bool in_one_call)
{
    double before[MAX_THREADS], after[MAX_THREADS];
    layer_time sum = {0};
    for (size_t h = 0; h < (in_one_call ? 1 : l->n); h++) {
        double busiest = 0;
        thread_seconds(before);
        const double clock = sp_seconds();
        if (in_one_call)
            must(sp_fast_attention_heads(l->out, NULL, l->first.fast, l->heads, l->n));
        else
            must(sp_fast_attention(l->out[h], NULL, l->first.fast, &l->heads[h]));
        sum.clock += sp_seconds() - clock;
        thread_seconds(after);
        for (int t = 0; t < n_threads; t++) busiest = fmax(busiest, after[t] - before[t]), sum.cpu += after[t] - before[t];
        sum.busiest += busiest;
    }
    return sum;
}

/* ratio: of a call for each head over one call, in turn, by the busiest threads. */
static void measure_heads(size_t n_heads, size_t d, double deviation, size_t n)
{
    enum { PASSES = 15, N_TIMES = 3 };
    layer l = {.n = n_heads};
    double each[N_TIMES][PASSES], one[N_TIMES][PASSES], ratios[N_TIMES][PASSES];
    draw_normal(&l.first, d, d, deviation, n);
    for (size_t h = 0; h < n_heads; h++) l.heads[h] = l.first.head, l.out[h] = floats(n * d);
    time_layer(&l, true), time_layer(&l, false);
    for (size_t p = 0; p < PASSES; p++) {
        const layer_time a = time_layer(&l, false), b = time_layer(&l, true);
        const double as[] = {a.busiest, a.cpu, a.clock}, bs[] = {b.busiest, b.cpu, b.clock};
        for (int c = 0; c < N_TIMES; c++) each[c][p] = as[c], one[c][p] = bs[c], ratios[c][p] = as[c] / bs[c];
    }
    printf("{\"heads\": %zu, \"d\": %zu, \"d_v\": %zu, \"deviation\": %g, \"n\": %zu, \"threads\": %d, ", n_heads, d, d, deviation,
           n, n_threads);
    static const char *const names[] = {"busiest", "cpu", "clock"};
    for (int c = 0; c < N_TIMES; c++)
        printf("\"ratio_%s\": %.3g, \"%s_seconds_each\": %.5g, \"%s_seconds_one_call\": %.5g, ", names[c],
               median(ratios[c], PASSES), names[c], median(each[c], PASSES), names[c], median(one[c], PASSES));
    printf("\"kernels\": \"%s\"}\n", sp_kernels_select()->name);
    fflush(stdout);
    for (size_t h = 0; h < n_heads; h++) free(l.out[h]);
    give_back(&l.first);
}

static void measure_layers(void)
{
    measure_heads(32, 8, .1, 1 << 9), measure_heads(32, 8, .1, 1 << 11), measure_heads(9, 64, .5, 1 << 9);
    measure_heads(9, 8, .1, 1 << 13), measure_heads(3, 8, .1, 1 << 15), measure_heads(1, 8, .1, 1 << 15);
}

/* ---- balanced: keys and queries of opposed spectra, keys of low rank ---- */

/* rows (n, d) <- rows, coordinate i times spread^(t - 1/2) of t from 0 to 1, or its inverse, then turned by reflections, which are
 * the same for all rows of one d. */
static void stretch(float *x, size_t n, size_t d, double spread)
{
    enum { REFLECTIONS = 3, MAX_D = 64 };
    double mirrors[REFLECTIONS][MAX_D], y[MAX_D];
    sp_rng rng = sp_rng_seed(8, d);
    for (size_t m = 0; m < REFLECTIONS; m++) {
        double squares = 0;
        for (size_t i = 0; i < d; i++) mirrors[m][i] = sp_rng_normal(&rng), squares += mirrors[m][i] * mirrors[m][i];
        for (size_t i = 0; i < d; i++) mirrors[m][i] /= sqrt(squares);
    }
    for (size_t j = 0; j < n; j++) {
        for (size_t i = 0; i < d; i++) y[i] = (double)x[j * d + i] * pow(spread, (double)i / (double)(d - 1) - .5);
        for (size_t m = 0; m < REFLECTIONS; m++) {
            double along = 0;
            for (size_t i = 0; i < d; i++) along += mirrors[m][i] * y[i];
            for (size_t i = 0; i < d; i++) y[i] -= 2 * along * mirrors[m][i];
        }
        for (size_t i = 0; i < d; i++) x[j * d + i] = (float)y[i];
    }
}

/* Scores of a deviation in `rank` of d coordinates; spread: between the largest and the smallest deviation of a coordinate of the
 * keys, and of the queries the other way round. */
static void measure_balanced(size_t d, size_t d_v, size_t rank, double deviation, double spread, size_t n, bool causal)
{
    workload data;
    sp_certificate certificate;
    passes p;
    draw_normal(&data, d, d_v, deviation * sqrt((double)d / (double)rank), n);
    data.head.causal = causal;
    for (size_t j = 0; j < n; j++)
        for (size_t i = rank; i < d; i++) data.k[j * d + i] = 0;
    stretch(data.k, n, d, spread), stretch(data.q, n, d, 1 / spread);
    for (size_t i = 0; i < n * d; i++) data.k[i] += 1; /* what all keys have in common is seen by no score */
    time_exact(&data), time_fast(&data, &certificate);
    run_passes(&p, &certificate, &data, n <= 4096 ? 9 : n <= 8192 ? 5 : 1, n <= 1024 ? 5 : 1);
    printf("{\"d\": %zu, \"d_v\": %zu, \"degree\": %zu, \"n\": %zu, \"causal\": %s, \"hybrid\": true, \"deviation\": %g, "
           "\"key_rank\": %zu, \"spread\": %g, \"rank\": %zu, \"rho\": %.4f, \"rho_before\": %.4f, ",
           d, d_v, certificate.degree, n, causal ? "true" : "false", deviation, rank, spread, certificate.rank, certificate.range,
           certificate.max_range);
    print_times(&p);
    print_errors(&data, &certificate);
    give_back(&data);
}

static void measure_all_balanced(void)
{
    static const double spreads[] = {1, 3, 30}, deviations[] = {.1, .5};
    for (size_t log2_n = 12; log2_n <= 15; log2_n += 3) {
        const size_t n = (size_t)1 << log2_n;
        measure_balanced(8, 8, 8, .1, 30, n, false), measure_balanced(8, 8, 8, .25, 30, n, false);
        measure_balanced(16, 16, 16, .03, 100, n, false);
        measure_balanced(64, 64, 4, .25, 1, n, false), measure_balanced(64, 64, 8, .1, 1, n, false);
        measure_balanced(64, 64, 4, .25, 30, n, false), measure_balanced(64, 64, 4, .1, 30, n, true);
    }
    for (size_t d = 4; d <= 64; d *= 2) /* what must not lose */
        for (size_t s = 0; s < sizeof spreads / sizeof *spreads; s++)
            for (size_t e = 0; e < sizeof deviations / sizeof *deviations; e++)
                for (size_t n = 512; n <= 4096; n *= 2)
                    for (size_t rank = d; rank >= d / 2; rank -= d / 2)
                        measure_balanced(d, d, rank, deviations[e], spreads[s], n, false);
}

/* ---- the exponent ---- */

/* Slope of a line through log time over log n, n doubling. */
static void measure_exponent(void)
{
    enum { FIRST = 14, LAST = 20, N = LAST - FIRST + 1, PASSES = 5 };
    double sum_xy = 0, sum_xx = 0;
    for (size_t i = 0; i < N; i++) {
        workload data;
        sp_certificate certificate;
        double seconds[PASSES];
        draw(&data, &(row){8, 8, 4, FIRST + i, false});
        time_fast(&data, &certificate);
        for (size_t p = 0; p < PASSES; p++) seconds[p] = time_fast(&data, &certificate).cpu;
        double x = (double)i - (N - 1) / 2.0, time = median(seconds, PASSES);
        sum_xy += x * log2(time);
        sum_xx += x * x;
        printf("{\"d\": 8, \"d_v\": 8, \"degree\": 4, \"rho\": %.4f, \"n\": %zu, \"causal\": false, \"hybrid\": false, "
               "\"cpu_seconds_fast\": %.5g}\n",
               data.rho, data.head.n_queries, time);
        give_back(&data);
    }
    printf("{\"d\": 8, \"d_v\": 8, \"degree\": 4, \"exponent\": %.4f}\n", sum_xy / sum_xx);
}

/* ---- a state in decoding ---- */

enum { D_HEAD = 64, GROUP = 3 };

/* Keys c + U a, |a| = 1, U the first directions; queries at the range's end; values that follow the keys. */
typedef struct decoding {
    size_t n, rank;
    float *k, *kt, *v, *q; /* (n, D_HEAD), (D_HEAD, n + padding), (n, D_HEAD), (GROUP, D_HEAD) */
    float exact[GROUP * D_HEAD], moments[GROUP * D_HEAD];
    sp_fast_state *state;
    sp_arena *arena;
    float *scratch;
} decoding;

static void draw_decoding(decoding *out, size_t rank, size_t degree, size_t n)
{
    sp_rng rng = sp_rng_seed(3, n);
    const double norm = sp_exp_polynomial_range(degree, 1e-3) * sqrt((double)D_HEAD) * .999;
    float *a = draw_vectors(n, rank, 1, &rng), centre[D_HEAD];
    *out = (decoding){.n = n, .rank = rank, .k = floats(n * D_HEAD), .v = floats(n * D_HEAD)};
    out->kt = calloc(D_HEAD * (n + SP_KEY_PADDING), sizeof(float));
    out->q = draw_vectors(GROUP, D_HEAD, 8, &rng);
    if (!out->kt) must(SP_ERR_MEMORY);
    for (size_t i = 0; i < D_HEAD; i++) centre[i] = (float)sp_rng_normal(&rng);
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < D_HEAD; i++) {
            out->k[j * D_HEAD + i] = centre[i] + (i < rank ? a[j * rank + i] : 0);
            out->kt[i * (n + SP_KEY_PADDING) + j] = out->k[j * D_HEAD + i];
            out->v[j * D_HEAD + i] = (a[j * rank] > 0 ? .5f : -.5f) + (float)sp_rng_uniform(&rng) - .5f;
        }
    for (size_t u = 0; u < GROUP; u++) {
        double squares = 0;
        for (size_t i = 0; i < rank; i++) squares += (double)out->q[u * D_HEAD + i] * (double)out->q[u * D_HEAD + i];
        for (size_t i = 0; i < rank; i++) out->q[u * D_HEAD + i] *= (float)(norm / 1.1 / sqrt(squares));
    }
    const sp_attention_head keys = {.k = out->k, .v = out->v, .n_keys = n, .d = D_HEAD, .d_v = D_HEAD};
    must(sp_fast_state_create(&out->state, &keys, &(sp_fast_state_options){.degree = degree}));
    must(sp_arena_create(&out->arena));
    out->scratch = floats(sp_fast_state_scratch_floats(out->state));
    free(a);
}

static double time_exact_step(decoding *data)
{
    const sp_span span = {0, data->n};
    const size_t last = data->n - 1;
    const sp_query_tile tile = {0, 1, &span, 1, data->n};
    const sp_attention_plan plan = {&tile, 1, &last, 1, 0, 1, data->n, data->n};
    const sp_keys keys = {data->kt, data->n + SP_KEY_PADDING, data->v};
    const sp_attention_shape shape = {GROUP, 1, D_HEAD, .125f, 0};
    float lse[GROUP];
    const double begin = cpu_seconds();
    must(sp_attention_forward(data->exact, lse, data->q, GROUP * D_HEAD, &plan, &keys, &shape, data->arena));
    return cpu_seconds() - begin;
}

/* Many at once: one takes microseconds. */
static double time_state_step(decoding *data, sp_state_use *use)
{
    enum { TIMES = 64 };
    float lse[GROUP];
    const double begin = cpu_seconds();
    for (size_t t = 0; t < TIMES; t++)
        must(sp_fast_state_evaluate(data->moments, D_HEAD, lse, use, data->state, data->q, D_HEAD, GROUP, data->scratch));
    return (cpu_seconds() - begin) / TIMES;
}

static void measure_step(size_t rank, size_t degree, size_t n)
{
    enum { PASSES = 15 };
    decoding data;
    sp_state_use use = {0};
    sp_certificate certificate;
    sp_fast_state_info info;
    double exact[PASSES], moments[PASSES], ratios[PASSES], error = 0;
    draw_decoding(&data, rank, degree, n);
    time_exact_step(&data);
    time_state_step(&data, &use);
    for (size_t p = 0; p < PASSES; p++) {
        exact[p] = time_exact_step(&data);
        moments[p] = time_state_step(&data, &use);
        ratios[p] = exact[p] / moments[p];
    }
    for (size_t i = 0; i < sizeof data.exact / sizeof *data.exact; i++)
        error = fmax(error, fabs((double)data.exact[i] - (double)data.moments[i]));
    sp_fast_state_certify(&certificate, data.state, &use);
    sp_fast_state_get_info(&info, data.state);
    printf("{\"d\": %zu, \"d_v\": %d, \"degree\": %zu, \"rho\": %.4f, \"n\": %zu, \"state\": true, \"ratio\": %.3g, "
           "\"cpu_seconds_exact\": %.5g, \"cpu_seconds_fast\": %.5g, \"error\": %.3g, \"bound\": %.3g, \"beyond\": %zu, "
           "\"state_bytes\": %zu, \"kernels\": \"%s\"}\n",
           rank, D_HEAD, degree, info.range, n, median(ratios, PASSES), median(exact, PASSES), median(moments, PASSES), error,
           certificate.polynomial_bound + certificate.rounding_bound, certificate.n_beyond, info.n_bytes,
           sp_kernels_select()->name);
    fflush(stdout);
    sp_fast_state_free(data.state);
    sp_arena_free(data.arena);
    free(data.k), free(data.kt), free(data.v), free(data.q), free(data.scratch);
}

static void measure_states(void)
{
    static const size_t shapes[][2] = {{4, 6}, {8, 4}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t log2_n = 8; log2_n <= 16; log2_n += 2) measure_step(shapes[s][0], shapes[s][1], (size_t)1 << log2_n);
}

static row row_of(char **words, bool causal)
{
    return (row){strtoul(words[0], NULL, 10), strtoul(words[1], NULL, 10), strtoul(words[2], NULL, 10), strtoul(words[3], NULL, 10),
                 causal};
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "--threads") == 0) {
        n_threads = atoi(argv[2]);
        if (n_threads < 1 || n_threads > MAX_THREADS) return 2;
        argc -= 2, argv += 2;
    }
    const char *what = argc > 1 ? argv[1] : "";
    if (argc == 1) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) measure(&rows[i]);
        measure_roundings();
    } else if (strcmp(what, "exponent") == 0) {
        measure_exponent();
    } else if (strcmp(what, "hybrid") == 0 && argc >= 6) {
        measure_hybrid(strtoul(argv[2], NULL, 10), strtoul(argv[3], NULL, 10), strtod(argv[4], NULL),
                       (size_t)1 << strtoul(argv[5], NULL, 10));
    } else if (strcmp(what, "hybrid") == 0) {
        measure_hybrids();
    } else if (strcmp(what, "rounding") == 0 && argc >= 6) {
        const row shape = row_of(argv + 2, false);
        measure_rounding(&shape, false), measure_rounding(&shape, true);
    } else if (strcmp(what, "rounding") == 0) {
        measure_roundings();
    } else if (strcmp(what, "balanced") == 0 && argc >= 8) {
        measure_balanced(strtoul(argv[2], NULL, 10), strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10), strtod(argv[5], NULL),
                         strtod(argv[6], NULL), (size_t)1 << strtoul(argv[7], NULL, 10), argc > 8);
    } else if (strcmp(what, "balanced") == 0) {
        measure_all_balanced();
    } else if (strcmp(what, "heads") == 0) {
        measure_layers();
    } else if (strcmp(what, "state") == 0) {
        measure_states();
    } else if (argc >= 5) {
        const row shape = row_of(argv + 1, argc > 5 && strcmp(argv[5], "causal") == 0);
        measure(&shape);
    } else {
        return 2;
    }
    return 0;
}
