/* fast_attention.c: attention in almost linear time against the exact kernel, in processor time of one thread, interleaved in one
 * run.
 *
 * A JSON line a row: d d_v degree rho n causal hybrid ratio cpu_seconds_exact cpu_seconds_fast error bound kernels. Queries and
 * keys are normal, cut off where the largest norms are sqrt(rho), so that scores reach nearly rho and the degree serves them all;
 * values are the sign of a key's first coordinate and noise, because values that have nothing to do with the keys flatter. Times
 * are medians, the ratio is the median of the pairs' ratios. error: the largest difference from attention in f64 over some queries.
 * bound: the certificate's.
 *
 *     bench_fast_attention             the table of docs/fast-attention.md
 *     bench_fast_attention d d_v degree log2(n) [causal]
 *     bench_fast_attention exponent    the fast side alone from n = 2^14 to 2^20, and the slope of log time over log n
 *
 * SOFTPROMPT_KERNELS picks the rung. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/rng.h"
#include "fast/remez.h"
#include "softprompt.h"
#include "tensor/kernels.h"

enum { MAX_PASSES = 15, CHECKED = 24 };

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
    must(sp_fast_create(&out->fast, &(sp_fast_options){.degree = r->degree}));
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
                                    .scale = 1,
                                    .causal = r->causal};
}

static void give_back(workload *data)
{
    free(data->q), free(data->k), free(data->v), free(data->out);
    sp_fast_free(data->fast);
}

/* Largest difference from attention in f64, over the last query and some others. */
static double find_error(const workload *data)
{
    const sp_attention_head *h = &data->head;
    double largest = 0, *sums = malloc(h->d_v * sizeof *sums);
    sp_rng rng = sp_rng_seed(2, h->n_queries);
    for (size_t c = 0; c < CHECKED && sums; c++) {
        size_t query = c ? sp_rng_below(&rng, h->n_queries) : h->n_queries - 1, n = h->causal ? query + 1 : h->n_keys;
        double normaliser = 0;
        memset(sums, 0, h->d_v * sizeof *sums);
        for (size_t j = 0; j < n; j++) {
            double s = 0;
            for (size_t i = 0; i < h->d; i++) s += (double)h->q[query * h->d + i] * (double)h->k[j * h->d + i];
            double weight = exp(s);
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

static double time_fast(workload *data, sp_certificate *certificate)
{
    double begin = cpu_seconds();
    must(sp_fast_attention(data->out, certificate, data->fast, &data->head));
    return cpu_seconds() - begin;
}

static double time_exact(workload *data)
{
    double begin = cpu_seconds();
    must(sp_exact_attention(data->out, data->fast, &data->head));
    return cpu_seconds() - begin;
}

static void measure(const row *r)
{
    workload data;
    sp_certificate certificate;
    double exact[MAX_PASSES], fast[MAX_PASSES], ratios[MAX_PASSES], some[3];
    size_t passes = r->log2_n <= 12 ? 15 : r->log2_n <= 13 ? 7 : r->log2_n <= 15 ? 3 : 1;
    draw(&data, r);
    time_fast(&data, &certificate); /* warms up */
    for (size_t p = 0; p < passes; p++) {
        exact[p] = time_exact(&data);
        for (int again = 0; again < 3; again++) some[again] = time_fast(&data, &certificate);
        fast[p] = median(some, 3);
        ratios[p] = exact[p] / fast[p];
    }
    printf("{\"d\": %zu, \"d_v\": %zu, \"degree\": %zu, \"rho\": %.4f, \"n\": %zu, \"causal\": %s, \"hybrid\": false, \"ratio\": "
           "%.3g, "
           "\"cpu_seconds_exact\": %.5g, \"cpu_seconds_fast\": %.5g, \"error\": %.3g, \"bound\": %.3g, \"exact_queries\": %zu, "
           "\"kernels\": \"%s\"}\n",
           r->d, r->d_v, certificate.degree, data.rho, data.head.n_queries, r->causal ? "true" : "false", median(ratios, passes),
           median(exact, passes), median(fast, passes), find_error(&data),
           certificate.polynomial_bound + certificate.rounding_bound, certificate.n_exact, sp_kernels_select()->name);
    fflush(stdout);
    give_back(&data);
}

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
        for (size_t p = 0; p < PASSES; p++) seconds[p] = time_fast(&data, &certificate);
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

int main(int argc, char **argv)
{
    if (argc == 1)
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) measure(&rows[i]);
    else if (strcmp(argv[1], "exponent") == 0)
        measure_exponent();
    else if (argc >= 5)
        measure(&(row){strtoul(argv[1], NULL, 10), strtoul(argv[2], NULL, 10), strtoul(argv[3], NULL, 10),
                       strtoul(argv[4], NULL, 10), argc > 5 && strcmp(argv[5], "causal") == 0});
    else
        return 2;
    return 0;
}
