/* rope.c: frequencies by scaling variant, and turning pairs.
 *
 * Angles are products in f32 of position and frequency, as in the code that models were trained with: at position 8 000 an f64
 * angle would differ from it by 5e-4, which is visible in logits. */
#include "tensor/rope.h"

#include <math.h>
#include <stdlib.h>

#include "base/status.h"

struct sp_rope {
    bool by_halves;
    size_t n_pairs, n_positions;
    float *frequencies; /* (n_pairs) */
    float magnitude;    /* of cosines and sines */
    float *table;       /* (n_positions, n_pairs, 2): cosine, sine */
};

/* YaRN, arXiv 2309.00071, section 3.2: the pair that makes `turns` turns within the original context. */
static double pair_of_turns(const sp_rope_options *o, double turns)
{
    return (double)o->n_rot * log((double)o->original_context / (turns * 2 * M_PI)) / (2 * log(o->theta));
}

/* 1 where a pair keeps its frequency, 0 where it is stretched by `factor`, a ramp between. */
static double yarn_kept(const sp_rope_options *o, size_t pair)
{
    double low = fmax(floor(pair_of_turns(o, o->beta_fast)), 0);
    double high = fmin(ceil(pair_of_turns(o, o->beta_slow)), (double)o->n_rot - 1);
    double ramp = ((double)pair - low) / fmax(high - low, 0.001);
    return 1 - fmin(fmax(ramp, 0), 1);
}

static float frequency(const sp_rope_options *o, size_t pair)
{
    double f = pow(o->theta, -2.0 * (double)pair / (double)o->n_rot);
    if (o->frequency_factors) f /= o->frequency_factors[pair];
    if (o->scaling == SP_ROPE_LINEAR) f /= o->factor;
    if (o->scaling == SP_ROPE_YARN) {
        double kept = yarn_kept(o, pair);
        f = f / o->factor * (1 - kept) + f * kept;
    }
    return (float)f;
}

sp_status sp_rope_create(sp_rope **out, const sp_rope_options *options)
{
    sp_rope *rope = calloc(1, sizeof *rope);
    *out = NULL;
    if (!rope) return sp_fail_no_memory(sizeof *rope);
    rope->by_halves = options->by_halves;
    rope->n_pairs = options->n_rot / 2;
    rope->magnitude = options->scaling == SP_ROPE_LONG ? options->attention_factor : 1;
    if (options->scaling == SP_ROPE_YARN) rope->magnitude = options->attention_factor * (0.1f * logf(options->factor) + 1);
    rope->frequencies = malloc((rope->n_pairs + 1) * sizeof(float));
    if (!rope->frequencies) {
        sp_rope_free(rope);
        return sp_fail_no_memory(options->n_rot * sizeof(float));
    }
    for (size_t i = 0; i < rope->n_pairs; i++) rope->frequencies[i] = frequency(options, i);
    *out = rope;
    return SP_OK;
}

void sp_rope_free(sp_rope *rope)
{
    if (!rope) return;
    free(rope->frequencies);
    free(rope->table);
    free(rope);
}

sp_status sp_rope_reserve(sp_rope *rope, size_t n_positions)
{
    if (n_positions <= rope->n_positions) return SP_OK;
    size_t wanted = n_positions < 2 * rope->n_positions ? 2 * rope->n_positions : n_positions;
    float *table = realloc(rope->table, wanted * (rope->n_pairs + 1) * 2 * sizeof(float));
    if (!table) return sp_fail_no_memory(wanted * rope->n_pairs * 2 * sizeof(float));
    rope->table = table;
    for (size_t p = rope->n_positions; p < wanted; p++)
        for (size_t i = 0; i < rope->n_pairs; i++) {
            float angle = (float)p * rope->frequencies[i];
            table[(p * rope->n_pairs + i) * 2] = cosf(angle) * rope->magnitude;
            table[(p * rope->n_pairs + i) * 2 + 1] = sinf(angle) * rope->magnitude;
        }
    rope->n_positions = wanted;
    return SP_OK;
}

static void turn_neighbours(float *x, const float *turn, size_t n_pairs, float direction)
{
    for (size_t i = 0; i < n_pairs; i++) {
        float c = turn[2 * i], s = direction * turn[2 * i + 1], a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * c - b * s;
        x[2 * i + 1] = a * s + b * c;
    }
}

static void turn_halves(float *x, const float *turn, size_t n_pairs, float direction)
{
    for (size_t i = 0; i < n_pairs; i++) {
        float c = turn[2 * i], s = direction * turn[2 * i + 1], a = x[i], b = x[i + n_pairs];
        x[i] = a * c - b * s;
        x[i + n_pairs] = a * s + b * c;
    }
}

void sp_rope_turn(float *x, const sp_rope *rope, size_t position, size_t n_heads, size_t d_head, int direction)
{
    const float *turn = rope->table + position * rope->n_pairs * 2;
    for (size_t h = 0; h < n_heads; h++, x += d_head) {
        if (rope->by_halves)
            turn_halves(x, turn, rope->n_pairs, (float)direction);
        else
            turn_neighbours(x, turn, rope->n_pairs, (float)direction);
    }
}
