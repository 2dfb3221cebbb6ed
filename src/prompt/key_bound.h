/* key_bound.h: keys of a prompt that are held inside the criterion: K = c + A U, A bounded.
 *
 * Of one key head, with the keys k_j (n, d_head) of the prompt, their mean c and orthonormal rows U (rank, d_head), frozen:
 *
 *     k_j = c + a_j U,    |a_j| <= radius = max_logit / (the largest scale |U q| of the queries measured)
 *
 * so that, by Cauchy and Schwarz, |scale q . (k_j - c)| <= max_logit for those queries. c is free: q . c is common to all the
 * prompt's keys, a softmax over them does not notice it, and beside the text's keys it weighs the prompt as a whole.
 *
 * Such keys are a convex set; the nearest to any keys (in f64, then rounded) is found in closed form but for one vector:
 *
 *     minimise sum |x_j - a_j|^2 with |x_j| <= radius, sum x_j = 0    gives    x_j = cut(a_j - l, radius)
 *
 * where the multiplier l is such that the x_j sum to 0: it is Huber's estimate of location (1964) of the a_j. The mean stays. */
#ifndef SP_PROMPT_KEY_BOUND_H
#define SP_PROMPT_KEY_BOUND_H

#include "softprompt.h"

typedef struct sp_key_bound {
    double max_logit;
    size_t rank; /* d_head: U is the unit matrix, whatever the directions say */
    size_t n_layer, n_head_kv, d_head;
    size_t n_keys;      /* of each head: the prompt's virtual tokens */
    float *directions;  /* (n_layer, n_head_kv, rank, d_head), dimensions in PEFT's order */
    float *query_norms; /* (n_layer, n_head_kv): the largest scale |U q|; 0: no query was measured, no bound */
    double *scratch;
} sp_key_bound;

/* Directions and norms are zero. MEMORY. */
sp_status sp_key_bound_create(sp_key_bound **out, double max_logit, size_t rank, const sp_model_info *model, size_t n_keys);
void sp_key_bound_free(sp_key_bound *bound);

size_t sp_key_bound_n_heads(const sp_key_bound *bound); /* n_layer * n_head_kv */

/* Where the keys of a head, n_head_kv a layer, begin in a row of keys and values; rows are 2 n_layer n_head_kv d_head wide. */
size_t sp_key_bound_column(const sp_key_bound *bound, size_t head);

/* keys_values (n_keys, width) in the layout of sp_prompt_keys_values: its keys become the nearest that are bounded, its values
 * stay. Returns whether anything moved: what is inside is left as it is, to the bit, and what was moved is inside. Heads without a
 * norm keep to their directions alone. Cost: O(n_keys d_head rank) a head. */
bool sp_key_bound_project(float *keys_values, const sp_key_bound *bound);

/* What the keys of a head are like: the largest |a_j| and the largest entry of an a_j, about the mean. */
void sp_key_bound_measure(double *norm, double *entry, const float *keys_values, const sp_key_bound *bound, size_t head);

/* coordinates (rank) = U q of a query in PEFT's order. */
void sp_key_bound_coordinates(float *coordinates, const sp_key_bound *bound, size_t head, const float *q);

#endif
