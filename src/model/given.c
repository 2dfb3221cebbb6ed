/* given.c: keys and values of virtual tokens, given and not computed: how a prefix or a cartridge is a prompt. And their gradients,
 * those of keys and values that were computed, too.
 *
 * Outside the engine they stand as PEFT saves them, a virtual token a row: column ((2 l + s) n_head_kv + h) d_head + i is
 * dimension i of head h in layer l, s = 0 of the key, 1 of the value. Numbers only change their places, so that what was loaded is
 * what is saved, bit for bit. */
#include <assert.h>
#include <string.h>

#include "base/status.h"
#include "model/internal.h"

/* Transformers turns (i, i + d_head / 2) together, and so do most models here, but those of llama GGUF files (2i, 2i + 1). */
size_t sp_model_key_dimension(const sp_model *m, size_t i)
{
    size_t half = m->d_head / 2;
    if (!m->rope || m->rope_by_halves) return i;
    return i < half ? 2 * i : 2 * (i - half) + 1;
}

static size_t given_width(const sp_model *m)
{
    return 2 * m->n_layer * sp_model_kv_dim(m);
}

sp_status sp_engine_set_keys_values(sp_engine *engine, size_t first, const float *keys_values, size_t n)
{
    const sp_model *m = engine->model;
    const size_t kv_dim = sp_model_kv_dim(m), width = given_width(m), d_head = m->d_head;
    assert(first == 0 || first == engine->n_given);
    engine->n_given = 0;
    sp_status st = sp_engine_reserve(engine, first + n, first);
    if (st) return st;
    for (size_t l = 0; l < m->n_layer; l++) {
        const sp_layer_store *store = &engine->stores[l];
        const float *keys = keys_values + 2 * l * kv_dim;
        float *v = store->v + first * kv_dim;
        for (size_t r = 0; r < n; r++) memcpy(v + r * kv_dim, keys + kv_dim + r * width, kv_dim * sizeof(float));
        for (size_t head = 0; head < kv_dim; head += d_head)
            for (size_t i = 0; i < d_head; i++) {
                float *row = store->kt + (head + sp_model_key_dimension(m, i)) * store->ld + first;
                for (size_t r = 0; r < n; r++) row[r] = keys[r * width + head + i];
            }
    }
    engine->n_given = first + n;
    return SP_OK;
}

void sp_engine_get_keys_values(float *keys_values, const sp_engine *engine, size_t n)
{
    const sp_model *m = engine->model;
    const size_t kv_dim = sp_model_kv_dim(m), width = given_width(m), d_head = m->d_head;
    for (size_t l = 0; l < m->n_layer; l++) {
        const sp_layer_store *store = &engine->stores[l];
        float *keys = keys_values + 2 * l * kv_dim;
        for (size_t r = 0; r < n; r++) memcpy(keys + kv_dim + r * width, store->v + r * kv_dim, kv_dim * sizeof(float));
        for (size_t first = 0; first < kv_dim; first += d_head)
            for (size_t i = 0; i < d_head; i++) {
                const float *row = store->kt + (first + sp_model_key_dimension(m, i)) * store->ld;
                for (size_t r = 0; r < n; r++) keys[r * width + first + i] = row[r];
            }
    }
}

void sp_given_gradient(float *d_prompt, const sp_engine *engine, size_t layer, const float *dkv, size_t ldkv)
{
    const sp_model *m = engine->model;
    const size_t kv_dim = sp_model_kv_dim(m), width = given_width(m), d_head = m->d_head;
    for (size_t r = 0; r < engine->n_given; r++, dkv += ldkv) {
        float *d_keys = d_prompt + r * width + 2 * layer * kv_dim, *d_values = d_keys + kv_dim;
        for (size_t first = 0; first < kv_dim; first += d_head)
            for (size_t i = 0; i < d_head; i++) d_keys[first + i] += dkv[first + sp_model_key_dimension(m, i)];
        for (size_t i = 0; i < kv_dim; i++) d_values[i] += dkv[kv_dim + i];
    }
}

void sp_add_keys_values_gradient(float *dkv, size_t ldkv, const sp_engine *engine, size_t layer)
{
    const sp_model *m = engine->model;
    const size_t kv_dim = sp_model_kv_dim(m), width = given_width(m), d_head = m->d_head;
    for (size_t r = 0; r < engine->n_prompt; r++, dkv += ldkv) {
        const float *d_keys = engine->d_keys_values + r * width + 2 * layer * kv_dim, *d_values = d_keys + kv_dim;
        for (size_t first = 0; first < kv_dim; first += d_head)
            for (size_t i = 0; i < d_head; i++) dkv[first + sp_model_key_dimension(m, i)] += d_keys[first + i];
        for (size_t i = 0; i < kv_dim; i++) dkv[kv_dim + i] += d_values[i];
    }
}
