/* state_file.c: a head's moments in a safetensors file, alone or beside others under a prefix of their names.
 *
 *   PREFIXnumbers   F64 (10)   scale, degree, range, key radius, remainder, its limit, key factor, value factor, keys, version
 *   PREFIXcentre    F64 (d)               PREFIXbasis    F64 (rank, d)
 *   PREFIXmoments   F64 (features, d_v + 1), in the order of fast/kernels.h, of keys and values centred and shrunk
 *   PREFIXmiddle, PREFIXleast, PREFIXmost   F32 (d_v) of the values
 *
 * The polynomial is found again from its degree and range: a file cannot bring another one, or another epsilon. Equal states give
 * equal bytes. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "fast/state.h"

enum { SCALE, DEGREE, RANGE, RADIUS, REMAINDER, MAX_REMAINDER, KEY_FACTOR, VALUE_FACTOR, N_KEYS, VERSION };
enum { NUMBERS, CENTRE, BASIS, MOMENTS, MIDDLE, LEAST, MOST };
static const char *const names[SP_STATE_TENSORS] = {"numbers", "centre", "basis", "moments", "middle", "least", "most"};
static const double FORMAT_VERSION = 1;

static sp_st_tensor tensor_of(sp_dtype type, const void *data, size_t n_dims, size_t a, size_t b)
{
    const size_t n = a * (n_dims > 1 ? b : 1);
    return (sp_st_tensor){.type = type, .n_dims = n_dims, .shape = {a, b}, .data = data, .n_bytes = n * sp_dtype_bytes(type)};
}

void sp_fast_state_list(sp_state_tensors *out, const sp_fast_state *s, const char *prefix)
{
    const double numbers[SP_STATE_NUMBERS] = {[SCALE] = (double)s->scale,   [DEGREE] = (double)s->polynomial.degree,
                                              [RANGE] = s->polynomial.rho,  [RADIUS] = s->radius,
                                              [REMAINDER] = s->remainder,   [MAX_REMAINDER] = s->max_remainder,
                                              [KEY_FACTOR] = s->key_factor, [VALUE_FACTOR] = s->value_factor,
                                              [N_KEYS] = (double)s->n_keys, [VERSION] = FORMAT_VERSION};
    memcpy(out->numbers, numbers, sizeof numbers);
    out->tensors[NUMBERS] = tensor_of(SP_F64, out->numbers, 1, SP_STATE_NUMBERS, 0);
    out->tensors[CENTRE] = tensor_of(SP_F64, s->plane.centre, 1, s->plane.d, 0);
    out->tensors[BASIS] = tensor_of(SP_F64, s->plane.basis, 2, s->plane.rank, s->plane.d);
    out->tensors[MOMENTS] = tensor_of(SP_F64, s->moments, 2, s->n_features, s->columns);
    out->tensors[MIDDLE] = tensor_of(SP_F32, s->value_middle, 1, s->d_v, 0);
    out->tensors[LEAST] = tensor_of(SP_F32, s->value_least, 1, s->d_v, 0);
    out->tensors[MOST] = tensor_of(SP_F32, s->value_most, 1, s->d_v, 0);
    for (size_t i = 0; i < SP_STATE_TENSORS; i++) {
        snprintf(out->names[i], sizeof out->names[i], "%s%s", prefix, names[i]);
        out->tensors[i].name = out->names[i];
    }
}

sp_status sp_fast_state_save(const sp_fast_state *state, const char *path)
{
    sp_state_tensors tensors;
    sp_fast_state_list(&tensors, state, "");
    return sp_safetensors_write(path, tensors.tensors, SP_STATE_TENSORS, NULL, 0);
}

/* ---- reading: numbers are checked for what they may be; whether the keys kept to the radius, moments do not tell ---- */

typedef struct state_source {
    const sp_safetensors *file;
    const char *path, *prefix;
    const sp_st_tensor *tensors[SP_STATE_TENSORS];
} state_source;

static sp_status refuse(const state_source *source, size_t i, const char *what)
{
    return sp_fail(SP_ERR_FORMAT, "%s: tensor %s%s %s: this is no state that softprompt saved; save it again", source->path,
                   source->prefix, names[i], what);
}

static sp_status find_tensors(state_source *source)
{
    for (size_t i = 0; i < SP_STATE_TENSORS; i++) {
        char name[SP_STATE_NAME];
        const sp_dtype type = i < MIDDLE ? SP_F64 : SP_F32;
        const size_t n_dims = i == BASIS || i == MOMENTS ? 2 : 1;
        snprintf(name, sizeof name, "%s%s", source->prefix, names[i]);
        source->tensors[i] = sp_safetensors_find(source->file, name);
        if (!source->tensors[i]) return refuse(source, i, "is missing");
        if (source->tensors[i]->type != type || source->tensors[i]->n_dims != n_dims)
            return refuse(source, i, "has another type or number of dimensions");
    }
    return SP_OK;
}

/* Copies a tensor's numbers, all of which must be finite. */
static sp_status copy(void *to, const state_source *source, size_t i)
{
    const sp_st_tensor *t = source->tensors[i];
    memcpy(to, t->data, t->n_bytes);
    const size_t n = t->n_bytes / sp_dtype_bytes(t->type);
    for (size_t j = 0; j < n; j++)
        if (!isfinite(t->type == SP_F64 ? ((const double *)to)[j] : (double)((const float *)to)[j]))
            return refuse(source, i, "holds a number that is not finite");
    return SP_OK;
}

static bool is_power_of_two(double x)
{
    int exponent;
    return x > 0 && frexp(x, &exponent) == .5;
}

/* The numbers, and what follows from them. */
static sp_status read_numbers(sp_fast_state *s, const state_source *source)
{
    double x[SP_STATE_NUMBERS];
    if (source->tensors[NUMBERS]->shape[0] != SP_STATE_NUMBERS) return refuse(source, NUMBERS, "has another length");
    sp_status st = copy(x, source, NUMBERS);
    if (st) return st;
    if (x[VERSION] != FORMAT_VERSION) return refuse(source, NUMBERS, "is of another version");
    if (!(x[DEGREE] >= 1 && x[DEGREE] <= SP_MAX_DEGREE && x[DEGREE] == floor(x[DEGREE])))
        return refuse(source, NUMBERS, "has no degree");
    if (!(x[RANGE] > 0 && x[RANGE] <= 5 && x[RADIUS] >= 0 && x[REMAINDER] >= 0 && x[MAX_REMAINDER] >= x[REMAINDER] &&
          is_power_of_two(x[KEY_FACTOR]) && is_power_of_two(x[VALUE_FACTOR]) && x[RADIUS] * x[KEY_FACTOR] <= 1 && x[N_KEYS] >= 1 &&
          x[N_KEYS] < 0x1p53 && x[N_KEYS] == floor(x[N_KEYS]) && x[SCALE] == (double)(float)x[SCALE]))
        return refuse(source, NUMBERS, "holds a number out of range");
    sp_exp_polynomial_fit(&s->polynomial, (size_t)x[DEGREE], x[RANGE]);
    if (!(s->polynomial.eps < 1)) return refuse(source, NUMBERS, "has a range that its degree cannot serve");
    s->scale = (float)x[SCALE];
    s->radius = x[RADIUS];
    s->remainder = x[REMAINDER];
    s->max_remainder = x[MAX_REMAINDER];
    s->key_factor = x[KEY_FACTOR];
    s->value_factor = x[VALUE_FACTOR];
    s->n_keys = (size_t)x[N_KEYS];
    return SP_OK;
}

static sp_status check_shapes(const sp_fast_state *s, const state_source *source)
{
    const uint64_t d = source->tensors[CENTRE]->shape[0], d_v = source->tensors[MIDDLE]->shape[0];
    const uint64_t rank = source->tensors[BASIS]->shape[0];
    if (d == 0 || rank > d || rank > SP_FAST_STATE_MAX_RANK || source->tensors[BASIS]->shape[1] != d)
        return refuse(source, BASIS, "has another shape than the centre tells");
    if (d_v == 0 || source->tensors[LEAST]->shape[0] != d_v || source->tensors[MOST]->shape[0] != d_v)
        return refuse(source, MIDDLE, "has another length than least and most");
    const uint64_t *shape = source->tensors[MOMENTS]->shape;
    if (shape[0] != sp_monomials_count(rank, s->polynomial.degree) || shape[1] != d_v + 1)
        return refuse(source, MOMENTS, "has another shape than rank, degree and values tell");
    return SP_OK;
}

static sp_status allocate(sp_fast_state *s, const state_source *source)
{
    const size_t d = source->tensors[CENTRE]->shape[0], rank = source->tensors[BASIS]->shape[0];
    s->d_v = source->tensors[MIDDLE]->shape[0];
    s->plane =
        (sp_plane){.d = d, .rank = rank, .centre = calloc(d, sizeof(double)), .basis = calloc(rank ? rank * d : 1, sizeof(double))};
    s->value_middle = calloc(s->d_v, sizeof(float));
    s->value_least = calloc(s->d_v, sizeof(float));
    s->value_most = calloc(s->d_v, sizeof(float));
    if (!s->plane.centre || !s->plane.basis || !s->value_middle || !s->value_least || !s->value_most)
        return sp_fail_no_memory((rank + 1) * d * sizeof(double));
    return sp_fast_state_allocate(s, UINT64_MAX);
}

static sp_status read_state(sp_fast_state *s, state_source *source)
{
    sp_status st;
    if ((st = find_tensors(source)) || (st = read_numbers(s, source)) || (st = check_shapes(s, source)) ||
        (st = allocate(s, source)))
        return st;
    void *const arrays[] = {NULL, s->plane.centre, s->plane.basis, s->moments, s->value_middle, s->value_least, s->value_most};
    for (size_t i = CENTRE; i < SP_STATE_TENSORS && !st; i++) st = copy(arrays[i], source, i);
    if (st) return st;
    for (size_t c = 0; c < s->d_v; c++)
        if (s->value_least[c] > s->value_most[c]) return refuse(source, LEAST, "lies above most");
    if (s->moments[s->d_v] != (double)s->n_keys) return refuse(source, MOMENTS, "counts other keys than there are");
    sp_fast_state_refresh(s);
    return SP_OK;
}

sp_status sp_fast_state_read(sp_fast_state **out, const sp_safetensors *file, const char *path, const char *prefix)
{
    state_source source = {.file = file, .path = path, .prefix = prefix};
    sp_fast_state *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s) return sp_fail_no_memory(sizeof *s);
    sp_status st = read_state(s, &source);
    if (st)
        sp_fast_state_free(s);
    else
        *out = s;
    return st;
}

sp_status sp_fast_state_load(sp_fast_state **out, const char *path)
{
    sp_safetensors *file;
    *out = NULL;
    sp_status st = sp_safetensors_open(&file, path);
    if (st) return st;
    st = sp_fast_state_read(out, file, path, "");
    sp_safetensors_close(file);
    return st;
}
