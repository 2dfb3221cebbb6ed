/* quants.c: how fast rows of quantised tensors are read, for each type with loops of its own, each rung, one and all threads.
 *
 *   bench_quants [TYPE...]      rows that stay in the cache of a core, and rows that come from memory
 *   bench_quants --smollm2      all products of one token of SmolLM2-135M as Q4_1 with an output matrix of Q8_0
 *
 * Figures are those of the best pass of many: other programs only ever make one slower. */
#include <ggml.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/rng.h"
#include "tensor/quants.h"

enum { N = 1536, CACHED_ROWS = 256, MEMORY_BYTES = 128 << 20, CHUNK_BYTES = 2 << 20, PASSES = 192 };

static const sp_kernels *rungs[3];
static size_t n_rungs;
static float x[N];

/* Bytes that give finite numbers in every type. */
static uint8_t *random_bytes(size_t bytes)
{
    uint8_t *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) exit(1);
    sp_rng rng = sp_rng_seed(1, 1);
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        uint64_t bits = sp_rng_next(&rng) & UINT64_C(0xbfbfbfbfbfbfbfbf);
        memcpy(p + i, &bits, 8);
    }
    return p;
}

/* Rows first .. first + n of a thread, by pieces that keep its results in its cache. */
static void dots(const sp_row_reader *reader, const uint8_t *rows, size_t row_bytes, size_t n_rows, size_t n)
{
    float y[64];
    for (size_t i = 0; i < n_rows; i += 64)
        reader->dots(reader, y, rows + i * row_bytes, row_bytes, n_rows - i < 64 ? n_rows - i : 64, x, n);
}

static void expand(const sp_row_reader *reader, const uint8_t *rows, size_t row_bytes, size_t n_rows, size_t n)
{
    float out[N];
    for (size_t i = 0; i < n_rows; i++) reader->expand(reader, out, rows + i * row_bytes, n);
}

typedef void work(const sp_row_reader *reader, const uint8_t *rows, size_t row_bytes, size_t n_rows, size_t n);

/* Seconds of the best pass: pass i reads the n_rows rows from row i * n_rows on, of `total` rows over and over. Passes are short,
 * or none would run without another program in between. */
static double seconds(work *run, const sp_row_reader *reader, const uint8_t *rows, size_t n_rows, size_t total, int n_threads)
{
    const size_t row_bytes = ggml_row_size(reader->type, N), places = total / n_rows;
    double best = 1e9;
    for (size_t pass = 0; pass < PASSES; pass++) {
        const uint8_t *place = rows + pass % places * n_rows * row_bytes;
        double start = omp_get_wtime();
#pragma omp parallel num_threads(n_threads)
        {
            size_t i = (size_t)omp_get_thread_num(), k = (size_t)omp_get_num_threads();
            size_t first = n_rows * i / k, last = n_rows * (i + 1) / k;
            run(reader, place + first * row_bytes, row_bytes, last - first, N);
        }
        double took = omp_get_wtime() - start;
        if (took < best) best = took;
    }
    return best;
}

static void report(const char *name, work *run, const sp_row_reader *reader, const char *rung, const uint8_t *bytes, int n_threads)
{
    const size_t row_bytes = ggml_row_size(reader->type, N), cached_rows = (size_t)n_threads * CACHED_ROWS;
    const size_t many = (size_t)n_threads * CHUNK_BYTES / row_bytes;
    double cached = seconds(run, reader, bytes, cached_rows, cached_rows, n_threads);
    double memory = seconds(run, reader, bytes, many, MEMORY_BYTES / row_bytes, n_threads);
    printf("%-8s %-8s %-7s %7d %14.2f %14.2f %14.2f\n", ggml_type_name(reader->type), rung, name, n_threads,
           (double)(cached_rows * N) / cached * 1e-9, (double)(many * N) / memory * 1e-9,
           (double)(many * row_bytes) / memory * 1e-9);
    fflush(stdout);
}

static void report_type(enum ggml_type type, const uint8_t *bytes)
{
    for (size_t v = 0; v < n_rungs; v++) {
        const sp_row_reader *reader = sp_row_reader_of_rung(rungs[v], type);
        for (int n_threads = 1; n_threads <= omp_get_max_threads(); n_threads += omp_get_max_threads() - 1) {
            report("expand", expand, reader, rungs[v]->name, bytes, n_threads);
            report("dots", dots, reader, rungs[v]->name, bytes, n_threads);
            if (omp_get_max_threads() == 1) break;
        }
    }
}

/* ---- one token of SmolLM2-135M: 30 layers, then the output matrix, each matrix divided among the threads ---- */

typedef struct matrix {
    enum ggml_type type;
    size_t n_rows, n;
} matrix;

enum { N_LAYERS = 30, TOKENS = 41 };
static const matrix layer[] = {{GGML_TYPE_Q4_1, 576, 576},  {GGML_TYPE_Q4_1, 192, 576},  {GGML_TYPE_Q4_1, 192, 576},
                               {GGML_TYPE_Q4_1, 576, 576},  {GGML_TYPE_Q4_1, 1536, 576}, {GGML_TYPE_Q4_1, 1536, 576},
                               {GGML_TYPE_Q4_1, 576, 1536}, {GGML_TYPE_Q8_0, 49152, 576}};
enum { OUTPUT = sizeof layer / sizeof *layer - 1 };

static const uint8_t *multiply(const sp_kernels *rung, const matrix *m, const uint8_t *bytes)
{
    const sp_row_reader *reader = sp_row_reader_of_rung(rung, m->type);
    const size_t row_bytes = ggml_row_size(m->type, (int64_t)m->n);
#pragma omp parallel
    {
        size_t i = (size_t)omp_get_thread_num(), k = (size_t)omp_get_num_threads();
        size_t first = m->n_rows * i / k, last = m->n_rows * (i + 1) / k;
        dots(reader, bytes + first * row_bytes, row_bytes, last - first, m->n);
    }
    return bytes + m->n_rows * row_bytes;
}

static double seconds_of_token(const sp_kernels *rung, const uint8_t *bytes)
{
    double start = omp_get_wtime();
    for (size_t l = 0; l < N_LAYERS; l++)
        for (size_t i = 0; i < OUTPUT; i++) bytes = multiply(rung, &layer[i], bytes);
    multiply(rung, &layer[OUTPUT], bytes);
    return omp_get_wtime() - start;
}

static int ascending(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static void report_token(const uint8_t *bytes)
{
    double took[3][TOKENS];
    for (size_t pass = 0; pass < TOKENS; pass++)
        for (size_t v = 0; v < n_rungs; v++) took[v][pass] = seconds_of_token(rungs[v], bytes);
    printf("one token of SmolLM2-135M, %d threads: milliseconds of all products, best and median\n", omp_get_max_threads());
    for (size_t v = 0; v < n_rungs; v++) {
        qsort(took[v], TOKENS, sizeof took[v][0], ascending);
        printf("%-8s %8.2f %8.2f\n", rungs[v]->name, 1e3 * took[v][0], 1e3 * took[v][TOKENS / 2]);
    }
}

int main(int argc, char **argv)
{
    const uint8_t *bytes = random_bytes(MEMORY_BYTES);
    sp_rng rng = sp_rng_seed(2, 1);
    n_rungs = sp_kernels_list(rungs);
    for (size_t i = 0; i < N; i++) x[i] = (float)sp_rng_normal(&rng);
    if (argc == 2 && strcmp(argv[1], "--smollm2") == 0) {
        report_token(bytes);
        return 0;
    }
    printf("%-8s %-8s %-7s %7s %14s %14s %14s\n", "type", "rung", "", "threads", "cache: num/ns", "memory: num/ns", "memory: GB/s");
    for (enum ggml_type type = 0; type < GGML_TYPE_COUNT; type++) {
        const sp_row_reader *reader = sp_row_reader_get(type);
        bool wanted = argc < 2 && reader && reader->is_fast;
        for (int i = 1; i < argc; i++) wanted |= reader && strcasecmp(argv[i], ggml_type_name(type)) == 0;
        if (wanted) report_type(type, bytes);
    }
    return 0;
}
