/* write_random_layer.c: layers with random weights, answers and derivatives, and machines whose prompt is the data set, as JSON
 * lines for memorise.py. */
#include <stdio.h>
#include <stdlib.h>

#include "base/rng.h"
#include "lab/keyed.h"
#include "lab/memorise.h"
#include "lab/random_layer.h"

static void print_array(const char *name, const double *values, size_t n_rows, size_t n_columns)
{
    printf(", \"%s\": [", name);
    for (size_t i = 0; i < n_rows; i++) {
        printf(i ? ", [" : "[");
        for (size_t k = 0; k < n_columns; k++) printf("%s%.17g", k ? ", " : "", values[i * n_columns + k]);
        printf("]");
    }
    printf("]");
}

static sp_status print_tensor(void *unused, const char *name, const double *values, size_t n_rows, size_t n_columns)
{
    (void)unused;
    print_array(name, values, n_rows, n_columns);
    return SP_OK;
}

static int print_layer(const sp_random_layer_shape *s, size_t n_prompt, uint64_t seed)
{
    enum { N = 5 };
    sp_random_layer layer = {0};
    sp_layer_inputs inputs = {0};
    sp_pairs pairs = {0};
    if (sp_random_layer_create(&layer, s, seed) || sp_pairs_draw(&pairs, N, s->d, s->len, false, seed) ||
        sp_layer_inputs_create(&inputs, &layer, pairs.x, N))
        return 1;
    const size_t n = N * s->len * s->d, m = n_prompt * s->d;
    double *prompt = malloc(m * sizeof *prompt), *y = malloc(n * sizeof *y), *jacobian = malloc(n * m * sizeof *jacobian);
    double *scratch = malloc(sp_layer_scratch(&layer, n_prompt) * sizeof *scratch);
    if (!prompt || !y || !jacobian || !scratch) return 1;
    sp_rng rng = sp_rng_seed(seed, 7);
    for (size_t i = 0; i < m; i++) prompt[i] = layer.size * sp_rng_normal(&rng);
    sp_layer_answer(y, jacobian, &inputs, prompt, n_prompt, scratch);
    printf("{\"kind\": \"layer\", \"d\": %zu, \"len\": %zu, \"n_positions\": %zu", s->d, s->len, s->n_positions);
    print_array("q", layer.q, layer.n_channels, layer.n_channels);
    print_array("k", layer.k, layer.n_channels, layer.n_channels);
    print_array("ov", layer.ov, layer.n_channels, layer.n_channels);
    print_array("w1", layer.w1, s->n_hidden, layer.n_channels);
    print_array("b1", layer.b1, 1, s->n_hidden);
    print_array("w2", layer.w2, s->d, s->n_hidden);
    print_array("positions", layer.positions, n_prompt, s->n_positions);
    print_array("x", pairs.x, N * s->len, s->d);
    print_array("prompt", prompt, n_prompt, s->d);
    print_array("y", y, N * s->len, s->d);
    print_array("jacobian", jacobian, n, m);
    printf("}\n");
    free(prompt);
    free(y);
    free(jacobian);
    free(scratch);
    sp_pairs_clear(&pairs);
    sp_layer_inputs_clear(&inputs);
    sp_random_layer_clear(&layer);
    return 0;
}

static int print_keyed(size_t n, size_t d, size_t len, uint64_t seed)
{
    sp_pairs pairs = {0};
    sp_universal machine = {0};
    if (sp_pairs_draw(&pairs, n, d, len, false, seed)) return 1;
    const size_t grid = sp_universal_separating_grid(pairs.x, n * len, d, 1.0 / 1024, 24);
    const sp_universal_shape shape = {d, len, grid, 1.0 / 1024, true};
    double *prompt = malloc(n * len * d * sizeof *prompt);
    if (!prompt || !grid || sp_universal_keyed(&machine, &shape, n * len)) return 1;
    sp_universal_keyed_prompt(prompt, &shape, pairs.x, pairs.y, n * len);
    printf("{\"kind\": \"keyed\", \"n\": %zu, \"d\": %zu, \"len\": %zu, \"grid\": %zu", n, d, len, grid);
    print_array("prompt", prompt, n * len, d);
    print_array("x", pairs.x, n * len, d);
    print_array("y", pairs.y, n * len, d);
    if (sp_net_visit(machine.net, print_tensor, NULL)) return 1;
    printf("}\n");
    free(prompt);
    sp_universal_clear(&machine);
    sp_pairs_clear(&pairs);
    return 0;
}

int main(void)
{
    static const sp_random_layer_shape shapes[] = {{1, 1, 0, 8, 64},  {2, 1, 0, 32, 64}, {4, 2, 0, 32, 64},
                                                   {1, 2, 8, 32, 64}, {2, 3, 8, 32, 64}, {4, 1, 3, 16, 64}};
    int failed = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t n_prompt = 1; n_prompt <= 17; n_prompt += 8) failed |= print_layer(&shapes[i], n_prompt, i);
    for (size_t d = 1; d <= 4; d++)
        for (size_t len = 1; len <= 2; len++) failed |= print_keyed(16, d, len, d);
    return failed;
}
