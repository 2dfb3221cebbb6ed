/* hf_tensors.c: tensors of safetensors shards as the tensors that a GGUF file of the same model would have.
 *
 * Names go by the family's table. Numbers stay where they are mapped, in their own type and at whatever address that is: the
 * readers of rows need no alignment. Only where GGUF's order of numbers differs (sp_hf_layout) is a tensor copied: norms are small,
 * of gpt2 every matrix of a layer, of gpt_neox
 * q, k and v, which then take memory. */
#include "format/hf_tensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

enum { MAX_NAME = 256, N_FACTORS = sizeof((sp_hf_config *)NULL)->factors / sizeof(sp_hf_vector) };

void sp_hf_tensors_clear(sp_hf_tensors *t)
{
    for (size_t i = 0; i < t->n_copies; i++) free(t->copies[i]);
    free(t->copies);
    free(t->tensors);
    free(t->own_names);
    sp_names_free(&t->names);
    *t = (sp_hf_tensors){0};
}

/* ---- names -------------------------------------------------------------------------------------------------- */

/* Does `name` begin as the pattern says? `layer` gets the number in the place of its '*', with its digits; the rest of the name. */
static const char *match(const char *pattern, const char *name, const char **layer, int *n_digits)
{
    *n_digits = 0;
    for (; *pattern; pattern++) {
        if (*pattern != '*') {
            if (*name++ != *pattern) return NULL;
            continue;
        }
        *layer = name;
        *n_digits = (int)strspn(name, "0123456789");
        if (*n_digits == 0 || *n_digits > 9) return NULL;
        name += *n_digits;
    }
    return name;
}

/* The name without what the family's checkpoints may have in front; *foreign: another model's tensor. `buffer` may hold the result.
 */
static const char *strip_prefix(char buffer[MAX_NAME], bool *foreign, const sp_hf_family *family, const char *name)
{
    *foreign = false;
    for (const sp_hf_prefix *p = family->prefixes; p && p->from; p++) {
        const size_t n = strlen(p->from);
        if (strncmp(name, p->from, n) != 0) continue;
        *foreign = p->to == NULL;
        snprintf(buffer, MAX_NAME, "%s%s", p->to ? p->to : "", name + n);
        return buffer;
    }
    return name;
}

static const sp_hf_name *find_name(const char **rest, const char **layer, int *n_digits, const sp_hf_family *family,
                                   const char *name)
{
    for (size_t i = 0; i < SP_HF_MAX_NAME_TABLES && family->names[i]; i++)
        for (const sp_hf_name *row = family->names[i]; row->hf; row++) {
            *rest = match(row->hf, name, layer, n_digits);
            if (*rest && (strcmp(*rest, ".weight") == 0 || strcmp(*rest, ".bias") == 0 || (!row->gguf && **rest == 0))) return row;
        }
    return NULL;
}

/* "blk.*.attn_q" with the layer and the rest in their places. */
static void spell(char out[MAX_NAME], const char *pattern, const char *layer, int n_digits, const char *rest)
{
    const char *star = strchr(pattern, '*');
    if (star)
        snprintf(out, MAX_NAME, "%.*s%.*s%.64s%.8s", (int)(star - pattern), pattern, n_digits, layer, star + 1, rest);
    else
        snprintf(out, MAX_NAME, "%.64s%.8s", pattern, rest);
}

/* ---- numbers ------------------------------------------------------------------------------------------------ */

/* Memory that lives as long as the tensors. NULL: none, message set. */
static void *keep(sp_hf_tensors *t, size_t n_bytes)
{
    void *copy = malloc(n_bytes);
    if (!copy)
        sp_fail_no_memory(n_bytes);
    else
        t->copies[t->n_copies++] = copy;
    return copy;
}

static sp_status read_type(sp_gguf_tensor *out, const sp_st_tensor *t, const char *path)
{
    switch (t->type) {
    case SP_F32:
        out->type = GGML_TYPE_F32;
        return SP_OK;
    case SP_F16:
        out->type = GGML_TYPE_F16;
        return SP_OK;
    case SP_BF16:
        out->type = GGML_TYPE_BF16;
        return SP_OK;
    default:
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: tensor %.128s: dtype %s; weights are read in F32, F16 and BF16: use the original checkpoint, not a "
                       "quantised one",
                       path, t->name, sp_dtype_name(t->type));
    }
}

static sp_status read_shape(sp_gguf_tensor *out, const sp_st_tensor *t, const char *path)
{
    if (t->n_dims > 2 || t->n_bytes == 0)
        return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s has %zu dimensions and %zu bytes; a vector or a matrix was expected", path,
                       t->name, t->n_dims, t->n_bytes);
    out->n_dims = t->n_dims ? (int)t->n_dims : 1;
    for (size_t i = 0; i < 4; i++) out->shape[i] = i < t->n_dims ? t->shape[t->n_dims - 1 - i] : 1;
    out->data = t->data;
    out->n_bytes = t->n_bytes;
    return SP_OK;
}

static sp_status add_one(sp_hf_tensors *all, sp_gguf_tensor *out, const sp_st_tensor *t, const sp_safetensors *shard)
{
    const size_t n = t->n_bytes / sp_dtype_bytes(t->type);
    float *values = keep(all, n * sizeof *values);
    if (!values) return SP_ERR_MEMORY;
    sp_status st = sp_safetensors_read_f32(values, shard, t, 0, n);
    for (size_t i = 0; i < n; i++) values[i] += 1;
    out->type = GGML_TYPE_F32;
    out->data = values;
    out->n_bytes = n * sizeof *values;
    return st;
}

/* (n, m) of items -> (m, n), in squares that stay in the cache */
static void transpose(uint8_t *out, const uint8_t *in, size_t n, size_t m, size_t item_bytes)
{
    enum { SQUARE = 32 };
#pragma omp parallel for schedule(static) if (n * m > 65536)
    for (size_t row = 0; row < n; row += SQUARE)
        for (size_t column = 0; column < m; column += SQUARE)
            for (size_t r = row; r < row + SQUARE && r < n; r++)
                for (size_t c = column; c < column + SQUARE && c < m; c++)
                    memcpy(out + (c * n + r) * item_bytes, in + (r * m + c) * item_bytes, item_bytes);
}

static sp_status transpose_matrix(sp_hf_tensors *all, sp_gguf_tensor *out, const sp_st_tensor *t)
{
    if (out->n_dims != 2) return SP_OK; /* a bias */
    uint8_t *values = keep(all, t->n_bytes);
    if (!values) return SP_ERR_MEMORY;
    transpose(values, t->data, out->shape[1], out->shape[0], sp_dtype_bytes(t->type));
    out->data = values;
    uint64_t n = out->shape[0];
    out->shape[0] = out->shape[1];
    out->shape[1] = n;
    return SP_OK;
}

/* Rows, or numbers of a bias: head by head (q, k, v) -> all of q, all of k, all of v. */
static sp_status separate_heads(sp_hf_tensors *all, sp_gguf_tensor *out, const sp_st_tensor *t, const sp_hf_config *c,
                                const char *path)
{
    const size_t n_head = sp_hf_config_size(c, "attention.head_count");
    const size_t n_rows = out->n_dims == 2 ? out->shape[1] : out->shape[0], row_bytes = t->n_bytes / n_rows;
    if (n_head == 0 || n_rows % 3 || n_rows / 3 % n_head)
        return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s: %zu rows are not q, k and v of %zu heads", path, t->name, n_rows, n_head);
    const size_t head_bytes = n_rows / 3 / n_head * row_bytes;
    uint8_t *values = keep(all, t->n_bytes);
    if (!values) return SP_ERR_MEMORY;
    for (size_t h = 0; h < n_head; h++)
        for (size_t part = 0; part < 3; part++)
            memcpy(values + (part * n_head + h) * head_bytes, (const uint8_t *)t->data + (3 * h + part) * head_bytes, head_bytes);
    out->data = values;
    return SP_OK;
}

static sp_status arrange(sp_hf_tensors *all, sp_gguf_tensor *out, const sp_st_tensor *t, const sp_safetensors *shard,
                         const sp_hf_config *c, sp_hf_layout layout, const char *path)
{
    switch (layout) {
    case SP_HF_PLUS_ONE:
        return add_one(all, out, t, shard);
    case SP_HF_TRANSPOSED:
        return transpose_matrix(all, out, t);
    case SP_HF_QKV_BY_HEAD:
        return separate_heads(all, out, t, c, path);
    default:
        return SP_OK;
    }
}

/* ---- all of them -------------------------------------------------------------------------------------------- */

static sp_status add(sp_hf_tensors *all, const sp_gguf_tensor *tensor, const char *name, const char *own_name, const char *path)
{
    const size_t n_bytes = strlen(name);
    char *kept = keep(all, n_bytes + 1);
    if (!kept) return SP_ERR_MEMORY;
    memcpy(kept, name, n_bytes + 1);
    all->tensors[all->names.n] = *tensor;
    all->tensors[all->names.n].name = kept;
    all->own_names[all->names.n] = own_name;
    if (!sp_names_add(&all->names, (sp_name){kept, n_bytes}))
        return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s is there under two names", path, own_name);
    return SP_OK;
}

static bool is_left_out(const sp_hf_name *row, const sp_hf_config *c)
{
    return !row->gguf || (strcmp(row->gguf, "output") == 0 && json_is_true(json_object_get(c->settings, "tie_word_embeddings")));
}

static sp_status read_tensor(sp_hf_tensors *all, const sp_hf_directory *d, size_t index, const sp_hf_config *c)
{
    const sp_st_tensor *t = sp_hf_directory_tensor_at(d, index);
    const char *path = sp_hf_directory_path(d), *rest, *layer = "";
    char stripped[MAX_NAME], name[MAX_NAME];
    bool foreign;
    int n_digits;
    if (strlen(t->name) >= MAX_NAME - 16)
        return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s...: no known name is so long", path, t->name);
    const char *own = strip_prefix(stripped, &foreign, c->family, t->name);
    if (foreign) return SP_OK;
    const sp_hf_name *row = find_name(&rest, &layer, &n_digits, c->family, own);
    if (!row)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: tensor %.128s is no part of %s as this version runs it", path, t->name,
                       c->family->model_type);
    if (is_left_out(row, c)) return SP_OK;
    sp_gguf_tensor out = {0};
    sp_status st;
    if ((st = read_type(&out, t, path)) || (st = read_shape(&out, t, path)) ||
        (st = arrange(all, &out, t, sp_hf_directory_shard_of(d, index), c, row->layout, path)))
        return st;
    spell(name, row->gguf, layer, n_digits, rest);
    return add(all, &out, name, t->name, path);
}

/* How a GGUF file has what scaled RoPE does to frequencies. */
static sp_status add_factors(sp_hf_tensors *all, const sp_hf_vector *v, const char *path)
{
    if (!v->values || v->n == 0) return SP_OK;
    const sp_gguf_tensor t = {
        .type = GGML_TYPE_F32, .n_dims = 1, .shape = {v->n, 1, 1, 1}, .data = v->values, .n_bytes = v->n * sizeof *v->values};
    return add(all, &t, v->name, v->hf, path);
}

/* ---- what must be there ------------------------------------------------------------------------------------- */

static bool has(const sp_hf_tensors *all, const char *name)
{
    return sp_names_find(&all->names, (sp_name){name, strlen(name)}) != SP_NO_NAME;
}

static sp_status fail_missing(const char *pattern, const char *layer, const char *rest, const char *path)
{
    char name[MAX_NAME];
    spell(name, pattern, layer, (int)strlen(layer), rest);
    return sp_fail(SP_ERR_FORMAT, "%s: tensor %s is missing; copy the whole directory again", path, name);
}

/* Every tensor of one layer, or, with layer "", those that stand for themselves. */
static sp_status check_layer(const sp_hf_tensors *all, const sp_hf_config *c, const char *layer, const char *path)
{
    bool tied = json_is_true(json_object_get(c->settings, "tie_word_embeddings"));
    for (size_t i = 0; i < SP_HF_MAX_NAME_TABLES && c->family->names[i]; i++)
        for (const sp_hf_name *row = c->family->names[i]; row->hf; row++) {
            char name[MAX_NAME];
            bool of_layers = strchr(row->hf, '*') != NULL;
            if (!row->gguf || of_layers != (*layer != 0) || (tied && strcmp(row->gguf, "output") == 0)) continue;
            spell(name, row->gguf, layer, (int)strlen(layer), ".weight");
            if (!has(all, name)) return fail_missing(row->hf, layer, ".weight", path);
        }
    return SP_OK;
}

/* A model without its biases would run, and be another one. */
static sp_status check_biases(const sp_hf_tensors *all, const sp_hf_config *c, const char *layer, const char *path)
{
    static const char *const names[][2] = {{"blk.*.attn_q", "model.layers.*.self_attn.q_proj"},
                                           {"blk.*.attn_k", "model.layers.*.self_attn.k_proj"},
                                           {"blk.*.attn_v", "model.layers.*.self_attn.v_proj"},
                                           {"blk.*.attn_output", "model.layers.*.self_attn.o_proj"}};
    if (!c->family->attention_bias) return SP_OK;
    bool wanted = json_is_true(json_object_get(c->settings, c->family->attention_bias));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char name[MAX_NAME];
        spell(name, names[i][0], layer, (int)strlen(layer), ".bias");
        if (wanted && !has(all, name)) return fail_missing(names[i][1], layer, ".bias", path);
        if (!wanted && has(all, name))
            return sp_fail(SP_ERR_FORMAT, "%s: tensor %s is there, but \"%s\" is not true in " SP_HF_CONFIG, path,
                           all->own_names[sp_names_find(&all->names, (sp_name){name, strlen(name)})], c->family->attention_bias);
    }
    return SP_OK;
}

/* The loop ends at the first layer that is not there: before it goes round more often than there are tensors. */
static sp_status check_complete(const sp_hf_tensors *all, const sp_hf_config *c, const char *path)
{
    const size_t n_layer = sp_hf_config_size(c, "block_count");
    sp_status st = check_layer(all, c, "", path);
    for (size_t l = 0; l < n_layer && !st; l++) {
        char layer[32];
        snprintf(layer, sizeof layer, "%zu", l);
        st = check_layer(all, c, layer, path);
        if (!st) st = check_biases(all, c, layer, path);
    }
    return st;
}

sp_status sp_hf_tensors_read(sp_hf_tensors *out, const sp_hf_directory *d, const sp_hf_config *c)
{
    const char *path = sp_hf_directory_path(d);
    const size_t n_own = sp_hf_directory_n_tensors(d), n = n_own + N_FACTORS;
    *out = (sp_hf_tensors){0};
    sp_status st = sp_names_reserve(&out->names, n);
    if (st) return st;
    out->tensors = calloc(n, sizeof *out->tensors);
    out->own_names = calloc(n, sizeof *out->own_names);
    out->copies = calloc(2 * n, sizeof *out->copies); /* a name and perhaps a copy of the numbers each */
    if (!out->tensors || !out->own_names || !out->copies) return sp_fail_no_memory(n * sizeof *out->tensors);
    for (size_t i = 0; i < n_own && !st; i++) st = read_tensor(out, d, i, c);
    for (size_t i = 0; i < N_FACTORS && !st; i++) st = add_factors(out, &c->factors[i], path);
    return st ? st : check_complete(out, c, path);
}
