/* smoke.c: a fuzzer without a fuzzing engine, for `make check`:  smoke_TARGET CORPUS N [FIRST]
 *
 * Runs the target on every seed, then on inputs FIRST .. N - 1: a seed with some mutations, both drawn from the input's number, so
 * that every run is the same. When the target dies the number is printed: pass it as FIRST (and N one above) to see it again.
 * Covers what is near the seeds; for more, build with -DSP_FUZZ=ON and let libFuzzer follow the branches. */
#define _GNU_SOURCE
#include <dirent.h>
#include <inttypes.h>
#include <signal.h>

#include "base/buffer.h"
#include "base/file.h"
#include "base/rng.h"
#include "input.h"

enum { MAX_SEEDS = 64, MAX_SEED_BYTES = 1 << 16, MAX_MUTATIONS = 6 };

static sp_bytes seeds[MAX_SEEDS];
static size_t n_seeds;
static volatile sig_atomic_t current;

/* ---- telling which input it was --------------------------------------------------------------------------------- */

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void print_current(void)
{
    char line[64];
    int n = snprintf(line, sizeof line, "smoke: died on input %ld\n", (long)current);
    if (write(STDERR_FILENO, line, (size_t)n) < 0) _exit(3);
}

static void handle_signal(int number)
{
    print_current();
    signal(number, SIG_DFL);
    raise(number);
}

static void watch_for_death(void)
{
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(print_current);
    else
        signal(SIGSEGV, handle_signal);
    signal(SIGABRT, handle_signal);
    signal(SIGBUS, handle_signal);
}

/* ---- mutations -------------------------------------------------------------------------------------------------- */

/* Lengths and counts that have broken readers before. */
static const uint64_t integers[] = {0,
                                    1,
                                    2,
                                    7,
                                    8,
                                    31,
                                    127,
                                    128,
                                    255,
                                    256,
                                    65535,
                                    65536,
                                    INT32_MAX,
                                    UINT32_MAX,
                                    UINT64_C(1) << 32,
                                    UINT64_C(1) << 60,
                                    UINT64_C(1) << 61,
                                    INT64_MAX,
                                    UINT64_C(1) << 63,
                                    UINT64_MAX - 7,
                                    UINT64_MAX};

static void overwrite_integer(sp_buffer *b, sp_rng *rng)
{
    const uint64_t value = integers[sp_rng_below(rng, sizeof integers / sizeof integers[0])];
    const size_t width = (size_t)1 << sp_rng_below(rng, 4);
    if (b->n_bytes < width) return;
    memcpy(b->bytes + sp_rng_below(rng, b->n_bytes - width + 1), &value, width);
}

static void delete_range(sp_buffer *b, sp_rng *rng)
{
    const size_t at = sp_rng_below(rng, b->n_bytes), n = 1 + sp_rng_below(rng, b->n_bytes - at);
    memmove(b->bytes + at, b->bytes + at + n, b->n_bytes - at - n);
    b->n_bytes -= n;
}

/* Replaces the tail by a piece of some seed: entries doubled, files joined. */
static void splice(sp_buffer *b, sp_rng *rng)
{
    const sp_bytes *seed = &seeds[sp_rng_below(rng, n_seeds)];
    const size_t from = sp_rng_below(rng, seed->n_bytes);
    b->n_bytes = sp_rng_below(rng, b->n_bytes);
    require(!sp_buffer_add(b, (const char *)seed->data + from, seed->n_bytes - from), "memory");
}

static void mutate(sp_buffer *b, sp_rng *rng)
{
    if (b->n_bytes == 0) return;
    switch (sp_rng_below(rng, 8)) {
    case 0:
        b->n_bytes = sp_rng_below(rng, b->n_bytes);
        break;
    case 1:
        delete_range(b, rng);
        break;
    case 2:
        splice(b, rng);
        break;
    case 3:
        b->bytes[sp_rng_below(rng, b->n_bytes)] = (char)sp_rng_next(rng);
        break;
    case 4:
    case 5:
        overwrite_integer(b, rng);
        break;
    default:
        b->bytes[sp_rng_below(rng, b->n_bytes)] ^= (char)(1 << sp_rng_below(rng, 8));
        break;
    }
}

static void run_input(sp_buffer *b, size_t number)
{
    sp_rng rng = sp_rng_seed(number, 0);
    const sp_bytes *seed = &seeds[sp_rng_below(&rng, n_seeds)];
    sp_buffer_clear(b);
    require(!sp_buffer_add(b, seed->data, seed->n_bytes), "memory");
    for (size_t n = 1 + sp_rng_below(&rng, MAX_MUTATIONS); n > 0; n--) mutate(b, &rng);
    LLVMFuzzerTestOneInput((const uint8_t *)b->bytes, b->n_bytes);
}

/* ---- the run ---------------------------------------------------------------------------------------------------- */

static int is_seed(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

/* In the order of their names: the directory's own differs between machines. */
static void read_seeds(const char *corpus)
{
    struct dirent **entries;
    const int n = scandir(corpus, &entries, is_seed, alphasort);
    require(n > 0 && n <= MAX_SEEDS, corpus);
    for (int i = 0; i < n; i++) {
        char *path = sp_path_join(corpus, entries[i]->d_name), *bytes = NULL;
        size_t n_bytes = 0;
        require(path && !sp_read_file(&bytes, &n_bytes, path, MAX_SEED_BYTES) && n_bytes > 0, "seed");
        seeds[n_seeds++] = (sp_bytes){bytes, n_bytes};
        free(path);
        free(entries[i]);
    }
    free(entries);
}

int main(int n_arguments, char **arguments)
{
    sp_buffer b = {0};
    if (n_arguments < 3) {
        fprintf(stderr, "usage: %s CORPUS N [FIRST]\n", arguments[0]);
        return 2;
    }
    const size_t n = strtoull(arguments[2], NULL, 10), first = n_arguments > 3 ? strtoull(arguments[3], NULL, 10) : 0;
    read_seeds(arguments[1]);
    watch_for_death();
    for (size_t i = 0; i < n_seeds; i++) LLVMFuzzerTestOneInput(seeds[i].data, seeds[i].n_bytes);
    for (size_t i = first; i < n; i++) {
        current = (sig_atomic_t)i;
        run_input(&b, i);
    }
    printf("%zu seeds and %zu inputs\n", n_seeds, n - first);
    sp_buffer_free(&b);
    for (size_t i = 0; i < n_seeds; i++) free((void *)(uintptr_t)seeds[i].data);
    return 0;
}
