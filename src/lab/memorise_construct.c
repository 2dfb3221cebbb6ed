/* memorise_construct.c: random data sets, and the prompts that are written down for them, run on the machines that read them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"
#include "lab/keyed.h"
#include "lab/memorise.h"

static const double RAMP = 1.0 / 1024; /* narrow: no input may lie on one */
enum {
    MAX_LOG2_GRID = 24,
    MAX_LOOKUP = 1 << 16, /* tokens of a table that is run; each has some channels, */
    MAX_UNIFORM = 1 << 10 /* or, in UNIFORM, as many as there are tokens */
};

/* ---- data ---- */

sp_status sp_pairs_draw(sp_pairs *out, size_t n, size_t d, size_t len, bool is_shared, uint64_t seed)
{
    const size_t n_each = d * len;
    double *numbers = malloc(2 * n * n_each * sizeof *numbers);
    *out = (sp_pairs){0};
    if (!numbers) return sp_fail_no_memory(2 * n * n_each * sizeof *numbers);
    *out = (sp_pairs){n, d, len, numbers, numbers + n * n_each};
    sp_rng rng = sp_rng_seed(seed, d << 32 | len);
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < n_each; k++) out->x[i * n_each + k] = sp_rng_uniform(&rng);
        for (size_t k = 0; k < n_each; k++) out->y[i * n_each + k] = sp_rng_uniform(&rng);
        if (is_shared) memcpy(out->x + i * n_each, out->x, d * sizeof *out->x);
    }
    return SP_OK;
}

void sp_pairs_clear(sp_pairs *pairs)
{
    free(pairs->x);
    *pairs = (sp_pairs){0};
}

static double distance(const double *a, const double *b, size_t n)
{
    double largest = 0;
    for (size_t k = 0; k < n; k++) largest = fmax(largest, fabs(a[k] - b[k]));
    return largest;
}

double sp_pairs_lipschitz(const sp_pairs *p)
{
    const size_t n = p->d * p->len;
    double slope = 1;
    for (size_t i = 0; i < p->n; i++)
        for (size_t j = 0; j < i; j++)
            slope = fmax(slope, distance(p->y + i * n, p->y + j * n, n) / distance(p->x + i * n, p->x + j * n, n));
    return slope;
}

/* ---- machines ---- */

/* The error of the machine behind the prompt, and the bits that its numbers need. */
static sp_status run(sp_memorise_constructed *out, const sp_universal *machine, const double *prompt, const sp_pairs *p,
                     double epsilon)
{
    const size_t n = p->n * p->len * p->d, n_prompt = machine->num_virtual_tokens * p->d;
    double *y = malloc((n + n_prompt) * sizeof *y), error = INFINITY;
    if (!y) return sp_fail_no_memory((n + n_prompt) * sizeof *y);
    double *rounded = y + n;
    sp_status st = sp_net_forward(y, NULL, machine->net, prompt, p->x, p->n, false);
    if (!st) out->error = distance(y, p->y, n);
    for (size_t bits = 1; bits <= SP_MEMORISE_MAX_BITS && !st && !(error <= 2 * epsilon); bits++) {
        for (size_t i = 0; i < n_prompt; i++) rounded[i] = ldexp(nearbyint(ldexp(prompt[i], (int)bits)), -(int)bits);
        st = sp_net_forward(y, NULL, machine->net, rounded, p->x, p->n, false);
        if (!st) error = distance(y, p->y, n);
        out->bits = bits;
    }
    free(y);
    return st;
}

/* The cells that hold a sequence get its answer; the others are never looked up. */
static void write_table(double *prompt, const sp_universal_shape *shape, const sp_pairs *p)
{
    const size_t n = p->d * p->len, n_cells = sp_power(shape->grid, n);
    for (size_t i = 0; i < p->n; i++) {
        size_t cell = 0;
        for (size_t k = 0; k < n; k++) cell = cell * shape->grid + (size_t)(p->x[i * n + k] * (double)shape->grid);
        for (size_t l = 0; l < p->len; l++)
            memcpy(prompt + (l * n_cells + cell) * p->d, p->y + i * n + l * p->d, p->d * sizeof *prompt);
    }
}

static sp_status construct_table(sp_memorise_constructed *out, const sp_pairs *p, double epsilon)
{
    sp_universal_shape shape = {
        .d = p->d, .len = p->len, .ramp = RAMP, .is_deep = p->len == 1}; /* fine grids: not the wide quantiser */
    shape.grid = out->grid = sp_universal_separating_grid(p->x, p->n, p->d * p->len, RAMP, MAX_LOG2_GRID);
    if (!out->grid) return SP_OK;
    out->num_virtual_tokens = exp2(sp_universal_table_log2(&shape));
    if (out->num_virtual_tokens > (p->len == 1 ? MAX_LOOKUP : MAX_UNIFORM)) return SP_OK;
    sp_universal machine = {0};
    sp_status st = p->len == 1 ? sp_universal_lookup(&machine, &shape) : sp_universal_uniform(&machine, &shape);
    const size_t n = machine.num_virtual_tokens * p->d;
    double *prompt = st ? NULL : calloc(n, sizeof *prompt);
    if (!st && !prompt) st = sp_fail_no_memory(n * sizeof *prompt);
    if (!st) {
        write_table(prompt, &shape, p);
        st = run(out, &machine, prompt, p, epsilon);
    }
    free(prompt);
    sp_universal_clear(&machine);
    return st;
}

static sp_status construct_keyed(sp_memorise_constructed *out, const sp_pairs *p, double epsilon)
{
    const size_t n_tokens = p->n * p->len;
    sp_universal_shape shape = {.d = p->d, .len = p->len, .ramp = RAMP};
    shape.grid = out->grid = sp_universal_separating_grid(p->x, n_tokens, p->d, RAMP, MAX_LOG2_GRID);
    if (!out->grid) return SP_OK;
    out->num_virtual_tokens = (double)n_tokens;
    sp_universal machine = {0};
    sp_status st = sp_universal_keyed(&machine, &shape, n_tokens);
    double *prompt = st ? NULL : malloc(n_tokens * p->d * sizeof *prompt);
    if (!st && !prompt) st = sp_fail_no_memory(n_tokens * p->d * sizeof *prompt);
    if (!st) {
        sp_universal_keyed_prompt(prompt, &shape, p->x, p->y, n_tokens);
        st = run(out, &machine, prompt, p, epsilon);
    }
    free(prompt);
    sp_universal_clear(&machine);
    return st;
}

sp_status sp_memorise_construct(sp_memorise_constructed *out, sp_memorise_construction construction, const sp_pairs *pairs,
                                double epsilon)
{
    *out = (sp_memorise_constructed){.error = NAN};
    return construction == SP_MEMORISE_TABLE ? construct_table(out, pairs, epsilon) : construct_keyed(out, pairs, epsilon);
}
