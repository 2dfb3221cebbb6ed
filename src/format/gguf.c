/* gguf.c: GGUF, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
 *
 *   "GGUF" u32 version  u64 n_tensors  u64 n_values
 *   n_values  times  string key  u32 type  value             string = u64 n_bytes, bytes
 *   n_tensors times  string name  u32 n_dims  u64 shape[n_dims]  u32 type  u64 offset
 *   padding to the alignment, then the tensors' data; offsets count from here
 *
 * Invariant: whatever sp_gguf_open accepts was checked whole, so that getters and readers of tensors need no bounds checks.
 * No count from the file is believed before the bytes that are left could hold it: memory is O(size of the file).
 * Cost of opening: one pass over the header (some ms for 262 144 tokens); the data are not touched. */
#include "format/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/status.h"
#include "format/names.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF is read as it lies in memory: a little-endian machine");

enum { FIRST_VERSION = 2, LAST_VERSION = 3, DEFAULT_ALIGNMENT = 32, MAX_NAME_BYTES = 65535 };
enum { MIN_VALUE_BYTES = 8 + 1 + 4 + 1, MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8 }; /* of an entry in the header */

enum value_type { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64, N_VALUE_TYPES };

static const struct {
    const char *name;
    size_t n_bytes; /* of one; 0: it varies */
} value_types[N_VALUE_TYPES] = {
    [U8] = {"u8", 1},   [I8] = {"i8", 1},   [U16] = {"u16", 2},   [I16] = {"i16", 2},       [U32] = {"u32", 4},
    [I32] = {"i32", 4}, [F32] = {"f32", 4}, [BOOL] = {"bool", 1}, [STRING] = {"string", 0}, [ARRAY] = {"array", 0},
    [U64] = {"u64", 8}, [I64] = {"i64", 8}, [F64] = {"f64", 8},
};

typedef struct value {
    enum value_type type; /* of the elements, where it is an array */
    bool is_array;
    size_t n;             /* elements; 1 where it is none */
    const uint8_t *bytes; /* of the first element */
    size_t *offsets;      /* string arrays: (n) where in the file each element begins */
} value;

struct sp_gguf {
    char *path;
    sp_mapped_file file;
    sp_names keys;
    value *values; /* (keys.n) */
    sp_names tensor_names;
    sp_gguf_tensor *tensors; /* (tensor_names.n) */
    char *name_bytes;        /* the tensors' names, each with its NUL */
};

/* ---- reading the header ------------------------------------------------------------------------------------ */

typedef struct reader {
    sp_gguf *gguf;
    size_t at;
    char place[160]; /* what is being read, for messages: "tensor blk.3.attn_q.weight" */
} reader;

static void set_place(reader *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void set_place(reader *r, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->place, sizeof r->place, format, arguments);
    va_end(arguments);
}

static size_t bytes_left(const reader *r)
{
    return r->gguf->file.size - r->at;
}

/* The next n bytes, which the file must have. */
static sp_status take(const uint8_t **bytes, reader *r, size_t n)
{
    if (n > bytes_left(r))
        return sp_fail(SP_ERR_FORMAT, "%s: %s: %zu bytes at %zu run past the end of the file (%zu); fetch it again", r->gguf->path,
                       r->place, n, r->at, r->gguf->file.size);
    *bytes = r->gguf->file.bytes + r->at;
    r->at += n;
    return SP_OK;
}

static sp_status take_u32(uint32_t *out, reader *r)
{
    const uint8_t *bytes;
    sp_status st = take(&bytes, r, sizeof *out);
    if (!st) memcpy(out, bytes, sizeof *out);
    return st;
}

static sp_status take_u64(uint64_t *out, reader *r)
{
    const uint8_t *bytes;
    sp_status st = take(&bytes, r, sizeof *out);
    if (!st) memcpy(out, bytes, sizeof *out);
    return st;
}

static sp_status take_string(sp_name *out, reader *r)
{
    uint64_t n_bytes;
    const uint8_t *bytes;
    sp_status st = take_u64(&n_bytes, r);
    if (!st) st = take(&bytes, r, n_bytes);
    if (!st) *out = (sp_name){(const char *)bytes, n_bytes};
    return st;
}

/* Names go into messages and terminals, and are compared as C strings: no control characters, no NUL inside. */
static sp_status take_name(sp_name *out, reader *r)
{
    sp_status st = take_string(out, r);
    if (st) return st;
    if (out->n_bytes == 0 || out->n_bytes > MAX_NAME_BYTES)
        return sp_fail(SP_ERR_FORMAT, "%s: %s: a name of %zu bytes at %zu, allowed are 1 to %d", r->gguf->path, r->place,
                       out->n_bytes, r->at - out->n_bytes, MAX_NAME_BYTES);
    for (size_t i = 0; i < out->n_bytes; i++)
        if ((unsigned char)out->bytes[i] < 0x20 || out->bytes[i] == 0x7f)
            return sp_fail(SP_ERR_FORMAT, "%s: %s: the name at %zu has a control character", r->gguf->path, r->place,
                           r->at - out->n_bytes);
    return SP_OK;
}

static sp_status check_value_type(uint32_t type, const reader *r)
{
    if (type < N_VALUE_TYPES) return SP_OK;
    return sp_fail(SP_ERR_FORMAT, "%s: %s: value type %" PRIu32 " at %zu is unknown, the last known is %d (%s)", r->gguf->path,
                   r->place, type, r->at - 4, N_VALUE_TYPES - 1, value_types[N_VALUE_TYPES - 1].name);
}

/* Strings lie one behind the other: they are walked once, and where each begins is kept. */
static sp_status read_string_array(value *v, reader *r)
{
    v->offsets = malloc(v->n ? v->n * sizeof *v->offsets : 1); /* n <= bytes left / 8: no more than the file's size */
    if (!v->offsets) return sp_fail_no_memory(v->n * sizeof *v->offsets);
    for (size_t i = 0; i < v->n; i++) {
        sp_name string;
        v->offsets[i] = r->at;
        sp_status st = take_string(&string, r);
        if (st) return st;
    }
    return SP_OK;
}

static sp_status read_array(value *v, reader *r)
{
    uint32_t type;
    uint64_t n;
    sp_status st;
    if ((st = take_u32(&type, r)) || (st = check_value_type(type, r)) || (st = take_u64(&n, r))) return st;
    if (type == ARRAY)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: %s: an array of arrays, which no known model needs", r->gguf->path, r->place);
    size_t item_bytes = type == STRING ? sizeof(uint64_t) : value_types[type].n_bytes; /* a string's length, at least */
    if (n > bytes_left(r) / item_bytes)
        return sp_fail(SP_ERR_FORMAT,
                       "%s: %s: an array of %" PRIu64 " %s at %zu runs past the end of the file (%zu); fetch it again",
                       r->gguf->path, r->place, n, value_types[type].name, r->at, r->gguf->file.size);
    *v = (value){.type = type, .is_array = true, .n = n, .bytes = r->gguf->file.bytes + r->at};
    if (type == STRING) return read_string_array(v, r);
    r->at += n * item_bytes;
    return SP_OK;
}

static sp_status read_value(value *v, reader *r)
{
    uint32_t type;
    sp_status st;
    if ((st = take_u32(&type, r)) || (st = check_value_type(type, r))) return st;
    if (type == ARRAY) return read_array(v, r);
    *v = (value){.type = type, .n = 1, .bytes = r->gguf->file.bytes + r->at};
    sp_name string;
    const uint8_t *bytes;
    if (type == STRING) return take_string(&string, r);
    if ((st = take(&bytes, r, value_types[type].n_bytes))) return st;
    if (type == BOOL && *bytes > 1)
        return sp_fail(SP_ERR_FORMAT, "%s: %s: a bool of %d, allowed are 0 and 1", r->gguf->path, r->place, *bytes);
    return SP_OK;
}

static sp_status read_values(reader *r, uint64_t n_values)
{
    sp_gguf *g = r->gguf;
    if (n_values > bytes_left(r) / MIN_VALUE_BYTES)
        return sp_fail(SP_ERR_FORMAT, "%s: %" PRIu64 " metadata values do not fit into the file (%zu bytes); fetch it again",
                       g->path, n_values, g->file.size);
    sp_status st = sp_names_reserve(&g->keys, n_values);
    if (st) return st;
    g->values = calloc(n_values ? n_values : 1, sizeof *g->values);
    if (!g->values) return sp_fail_no_memory(n_values * sizeof *g->values);
    for (size_t i = 0; i < n_values; i++) {
        sp_name key;
        set_place(r, "metadata value %zu of %" PRIu64, i + 1, n_values);
        if ((st = take_name(&key, r))) return st;
        set_place(r, "%.*s", key.n_bytes < 128 ? (int)key.n_bytes : 128, key.bytes);
        if (!sp_names_add(&g->keys, key)) return sp_fail(SP_ERR_FORMAT, "%s: %s: the key is there twice", g->path, r->place);
        if ((st = read_value(&g->values[i], r))) return st;
    }
    return SP_OK;
}

/* ---- tensors ------------------------------------------------------------------------------------------------ */

/* ggml's own functions abort on a type out of range, and their table has empty rows where a type was removed. */
static const struct ggml_type_traits *find_traits(uint32_t type)
{
    if (type >= GGML_TYPE_COUNT) return NULL;
    const struct ggml_type_traits *traits = ggml_get_type_traits((enum ggml_type)type);
    return traits->type_size > 0 && traits->blck_size > 0 ? traits : NULL;
}

static sp_status read_shape(sp_gguf_tensor *t, reader *r)
{
    uint32_t n_dims;
    uint64_t n_elements = 1;
    sp_status st = take_u32(&n_dims, r);
    if (st) return st;
    if (n_dims > GGML_MAX_DIMS)
        return sp_fail(SP_ERR_FORMAT, "%s: %s: %" PRIu32 " dimensions, at most %d are allowed", r->gguf->path, r->place, n_dims,
                       GGML_MAX_DIMS);
    t->n_dims = (int)n_dims;
    for (size_t i = 0; i < GGML_MAX_DIMS; i++) {
        t->shape[i] = 1;
        if (i < n_dims && (st = take_u64(&t->shape[i], r))) return st;
        if (t->shape[i] == 0 || __builtin_mul_overflow(n_elements, t->shape[i], &n_elements) || n_elements > INT64_MAX)
            return sp_fail(SP_ERR_FORMAT, "%s: %s: dimension %zu is %" PRIu64 ", which gives no size that memory could have",
                           r->gguf->path, r->place, i, t->shape[i]);
    }
    return SP_OK;
}

static sp_status read_type(sp_gguf_tensor *t, reader *r)
{
    uint32_t type;
    sp_status st = take_u32(&type, r);
    if (st) return st;
    const struct ggml_type_traits *traits = find_traits(type);
    if (!traits)
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: %s: type %" PRIu32 " is none that ggml has; use a file of another quantisation",
                       r->gguf->path, r->place, type);
    uint64_t block = (uint64_t)traits->blck_size, n_blocks = t->shape[0] / block * t->shape[1] * t->shape[2] * t->shape[3];
    if (t->shape[0] % block)
        return sp_fail(SP_ERR_FORMAT, "%s: %s: rows of %" PRIu64 " elements are not whole %s blocks of %" PRIu64, r->gguf->path,
                       r->place, t->shape[0], traits->type_name, block);
    if (__builtin_mul_overflow(n_blocks, traits->type_size, &t->n_bytes))
        return sp_fail(SP_ERR_FORMAT, "%s: %s: %" PRIu64 " blocks of %zu bytes are more than memory could have", r->gguf->path,
                       r->place, n_blocks, traits->type_size);
    t->type = (enum ggml_type)type;
    return SP_OK;
}

/* `offsets[i]` gets the tensor's offset: where the data begin is known only behind the last entry. */
static sp_status read_tensor_entries(reader *r, uint64_t *offsets, uint64_t n_tensors)
{
    sp_gguf *g = r->gguf;
    for (size_t i = 0; i < n_tensors; i++) {
        sp_name name;
        sp_status st;
        set_place(r, "tensor %zu of %" PRIu64, i + 1, n_tensors);
        if ((st = take_name(&name, r))) return st;
        set_place(r, "tensor %.*s", name.n_bytes < 128 ? (int)name.n_bytes : 128, name.bytes);
        if (!sp_names_add(&g->tensor_names, name)) return sp_fail(SP_ERR_FORMAT, "%s: %s: is there twice", g->path, r->place);
        sp_gguf_tensor *t = &g->tensors[i];
        if ((st = read_shape(t, r)) || (st = read_type(t, r)) || (st = take_u64(&offsets[i], r))) return st;
    }
    return SP_OK;
}

/* The file's names have no NUL: they get copies that do. */
static sp_status copy_tensor_names(sp_gguf *g)
{
    size_t total = 0;
    for (size_t i = 0; i < g->tensor_names.n; i++) total += g->tensor_names.names[i].n_bytes + 1;
    char *bytes = g->name_bytes = malloc(total ? total : 1);
    if (!bytes) return sp_fail_no_memory(total);
    for (size_t i = 0; i < g->tensor_names.n; i++) {
        sp_name name = g->tensor_names.names[i];
        g->tensors[i].name = memcpy(bytes, name.bytes, name.n_bytes);
        bytes[name.n_bytes] = 0;
        bytes += name.n_bytes + 1;
    }
    return SP_OK;
}

/* The padding is a power of two, so that a tensor's first byte is as aligned as the file promises; 8 is the format's least. */
static sp_status read_alignment(uint32_t *alignment, const sp_gguf *g)
{
    *alignment = DEFAULT_ALIGNMENT;
    if (!sp_gguf_has(g, "general.alignment")) return SP_OK;
    sp_status st = sp_gguf_get_u32(alignment, g, "general.alignment");
    if (!st && (*alignment < 8 || (*alignment & (*alignment - 1))))
        st = sp_fail(SP_ERR_FORMAT, "%s: general.alignment is %" PRIu32 ", not a power of two from 8", g->path, *alignment);
    return st;
}

static sp_status place_tensors(reader *r, const uint64_t *offsets)
{
    sp_gguf *g = r->gguf;
    uint32_t alignment;
    sp_status st = read_alignment(&alignment, g);
    if (st) return st;
    const uint64_t size = g->file.size, data = (r->at + (uint64_t)alignment - 1) / alignment * alignment;
    for (size_t i = 0; i < g->tensor_names.n; i++) {
        sp_gguf_tensor *t = &g->tensors[i];
        if (offsets[i] % alignment)
            return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s: offset %" PRIu64 " is not a multiple of the alignment (%" PRIu32 ")",
                           g->path, t->name, offsets[i], alignment);
        if (data > size || offsets[i] > size - data || t->n_bytes > size - data - offsets[i])
            return sp_fail(SP_ERR_FORMAT,
                           "%s: tensor %.128s: offset %" PRIu64 " + %zu bytes, counted from byte %" PRIu64
                           ", runs past the end of the file (%" PRIu64 "); fetch it again",
                           g->path, t->name, offsets[i], t->n_bytes, data, size);
        t->data = g->file.bytes + data + offsets[i];
    }
    return SP_OK;
}

static sp_status read_tensors(reader *r, uint64_t n_tensors)
{
    sp_gguf *g = r->gguf;
    if (n_tensors > bytes_left(r) / MIN_TENSOR_BYTES)
        return sp_fail(SP_ERR_FORMAT, "%s: %" PRIu64 " tensors do not fit into the file (%zu bytes); fetch it again", g->path,
                       n_tensors, g->file.size);
    sp_status st = sp_names_reserve(&g->tensor_names, n_tensors);
    if (st) return st;
    g->tensors = calloc(n_tensors ? n_tensors : 1, sizeof *g->tensors);
    uint64_t *offsets = calloc(n_tensors ? n_tensors : 1, sizeof *offsets);
    if (!g->tensors || !offsets) st = sp_fail_no_memory(n_tensors * sizeof *g->tensors);
    if (!st) st = read_tensor_entries(r, offsets, n_tensors);
    if (!st) st = copy_tensor_names(g);
    if (!st) st = place_tensors(r, offsets);
    free(offsets);
    return st;
}

/* ---- the handle --------------------------------------------------------------------------------------------- */

static sp_status check_version(uint32_t version, const char *path)
{
    if (version >= FIRST_VERSION && version <= LAST_VERSION) return SP_OK;
    if ((version & 0xffff) == 0)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "%s: a big-endian GGUF file; fetch the little-endian one, or convert it with gguf-convert-endian", path);
    return sp_fail(SP_ERR_UNSUPPORTED, "%s: GGUF version %" PRIu32 ", this program reads %d and %d; convert the model again", path,
                   version, FIRST_VERSION, LAST_VERSION);
}

static sp_status read_header(sp_gguf *g)
{
    reader r = {.gguf = g, .place = "header"};
    const uint8_t *magic;
    uint32_t version;
    uint64_t n_tensors, n_values;
    sp_status st;
    if (g->file.size < 4 || memcmp(g->file.bytes, "GGUF", 4) != 0)
        return sp_fail(SP_ERR_FORMAT, "%s: not a GGUF file: it does not begin with \"GGUF\"", g->path);
    if ((st = take(&magic, &r, 4)) || (st = take_u32(&version, &r)) || (st = check_version(version, g->path))) return st;
    if ((st = take_u64(&n_tensors, &r)) || (st = take_u64(&n_values, &r))) return st;
    if ((st = read_values(&r, n_values))) return st;
    return read_tensors(&r, n_tensors);
}

sp_status sp_gguf_open(sp_gguf **out, const char *path)
{
    sp_status st;
    *out = NULL;
    sp_gguf *g = calloc(1, sizeof *g);
    if (!g) return sp_fail_no_memory(sizeof *g);
    if (!(g->path = strdup(path))) {
        st = sp_fail_no_memory(strlen(path) + 1);
        goto fail;
    }
    if ((st = sp_map_file(&g->file, path)) || (st = read_header(g))) goto fail;
    *out = g;
    return SP_OK;
fail:
    sp_gguf_close(g);
    return st;
}

void sp_gguf_close(sp_gguf *g)
{
    if (!g) return;
    if (g->values)
        for (size_t i = 0; i < g->keys.n; i++) free(g->values[i].offsets);
    free(g->values);
    free(g->tensors);
    free(g->name_bytes);
    sp_names_free(&g->keys);
    sp_names_free(&g->tensor_names);
    sp_unmap_file(&g->file);
    free(g->path);
    free(g);
}

const char *sp_gguf_path(const sp_gguf *g)
{
    return g->path;
}
size_t sp_gguf_file_bytes(const sp_gguf *g)
{
    return g->file.size;
}

/* ---- metadata ----------------------------------------------------------------------------------------------- */

static const value *find_value(const sp_gguf *g, const char *key)
{
    size_t i = sp_names_find(&g->keys, (sp_name){key, strlen(key)});
    return i == SP_NO_NAME ? NULL : &g->values[i];
}

static sp_status fail_type(const sp_gguf *g, const char *key, const value *v, const char *wanted)
{
    return sp_fail(SP_ERR_FORMAT, "%s: %s: is %s%s, not %s", g->path, key, v->is_array ? "an array of " : "",
                   value_types[v->type].name, wanted);
}

/* The scalar under `key` (index 0), or an array's element. */
static sp_status find_item(const value **out, const sp_gguf *g, const char *key, bool in_array, size_t index)
{
    const value *v = *out = find_value(g, key);
    if (!v)
        return sp_fail(SP_ERR_FORMAT, "%s: metadata key %s is missing; the file is of another kind or was made wrongly", g->path,
                       key);
    if (v->is_array != in_array) return fail_type(g, key, v, in_array ? "an array" : "a single value");
    if (index >= v->n) return sp_fail(SP_ERR_FORMAT, "%s: %s: has %zu elements, element %zu was wanted", g->path, key, v->n, index);
    return SP_OK;
}

/* Every integer type and bool as i64; u64 beyond it is out of range, as nothing that wide is ever wanted. */
static sp_status read_integer(int64_t *out, const sp_gguf *g, const char *key, const value *v, size_t index)
{
    const uint8_t *p = v->bytes + index * value_types[v->type].n_bytes;
    union {
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } u = {0};
    if (v->type == STRING || v->type == F32 || v->type == F64) return fail_type(g, key, v, "an integer");
    memcpy(&u, p, value_types[v->type].n_bytes);
    switch (v->type) {
    case U8:
    case BOOL:
        *out = *p;
        break;
    case I8:
        *out = u.i8;
        break;
    case U16:
        *out = u.u16;
        break;
    case I16:
        *out = u.i16;
        break;
    case U32:
        *out = u.u32;
        break;
    case I32:
        *out = u.i32;
        break;
    case U64:
        *out = u.u64 <= INT64_MAX ? (int64_t)u.u64 : INT64_MAX;
        break;
    default:
        *out = u.i64;
        break;
    }
    return SP_OK;
}

static sp_status fail_range(const sp_gguf *g, const char *key, int64_t value_read, const char *type)
{
    return sp_fail(SP_ERR_FORMAT, "%s: %s: %" PRId64 " does not fit into %s", g->path, key, value_read, type);
}

static sp_status read_float(float *out, const sp_gguf *g, const char *key, const value *v, size_t index)
{
    double wide;
    if (v->type != F32 && v->type != F64) return fail_type(g, key, v, "a floating-point number");
    if (v->type == F32) {
        memcpy(out, v->bytes + index * sizeof *out, sizeof *out);
        return SP_OK;
    }
    memcpy(&wide, v->bytes + index * sizeof wide, sizeof wide);
    *out = (float)wide;
    if (isinf(*out) && !isinf(wide)) return sp_fail(SP_ERR_FORMAT, "%s: %s: %g does not fit into f32", g->path, key, wide);
    return SP_OK;
}

bool sp_gguf_has(const sp_gguf *g, const char *key)
{
    return find_value(g, key) != NULL;
}

sp_status sp_gguf_get_u32(uint32_t *out, const sp_gguf *g, const char *key)
{
    const value *v;
    int64_t wide = 0;
    sp_status st;
    if ((st = find_item(&v, g, key, false, 0)) || (st = read_integer(&wide, g, key, v, 0))) return st;
    if (wide < 0 || wide > UINT32_MAX) return fail_range(g, key, wide, "u32");
    *out = (uint32_t)wide;
    return SP_OK;
}

sp_status sp_gguf_get_f32(float *out, const sp_gguf *g, const char *key)
{
    const value *v;
    sp_status st;
    if ((st = find_item(&v, g, key, false, 0)) || (st = read_float(out, g, key, v, 0))) return st;
    return isfinite(*out) ? SP_OK : sp_fail(SP_ERR_FORMAT, "%s: %s: %g is no finite number", g->path, key, *out);
}

sp_status sp_gguf_get_bool(bool *out, const sp_gguf *g, const char *key)
{
    const value *v;
    sp_status st = find_item(&v, g, key, false, 0);
    if (!st && v->type != BOOL) st = fail_type(g, key, v, "a bool");
    if (!st) *out = *v->bytes;
    return st;
}

static sp_status read_string(sp_gguf_string *out, const sp_gguf *g, const char *key, bool in_array, size_t index)
{
    const value *v;
    uint64_t n_bytes;
    sp_status st = find_item(&v, g, key, in_array, index);
    if (!st && v->type != STRING) st = fail_type(g, key, v, "a string");
    if (st) return st;
    const uint8_t *p = in_array ? g->file.bytes + v->offsets[index] : v->bytes;
    memcpy(&n_bytes, p, sizeof n_bytes);
    *out = (sp_gguf_string){(const char *)p + sizeof n_bytes, n_bytes};
    return SP_OK;
}

sp_status sp_gguf_get_string(sp_gguf_string *out, const sp_gguf *g, const char *key)
{
    return read_string(out, g, key, false, 0);
}

sp_status sp_gguf_get_array_n(size_t *n, const sp_gguf *g, const char *key)
{
    const value *v = find_value(g, key);
    if (!v || !v->is_array) return find_item(&v, g, key, true, 0);
    *n = v->n;
    return SP_OK;
}

sp_status sp_gguf_get_array_string(sp_gguf_string *out, const sp_gguf *g, const char *key, size_t index)
{
    return read_string(out, g, key, true, index);
}

sp_status sp_gguf_get_array_i32(int32_t *out, const sp_gguf *g, const char *key, size_t index)
{
    const value *v;
    int64_t wide = 0;
    sp_status st;
    if ((st = find_item(&v, g, key, true, index)) || (st = read_integer(&wide, g, key, v, index))) return st;
    if (wide < INT32_MIN || wide > INT32_MAX) return fail_range(g, key, wide, "i32");
    *out = (int32_t)wide;
    return SP_OK;
}

sp_status sp_gguf_get_array_f32(float *out, const sp_gguf *g, const char *key, size_t index)
{
    const value *v;
    sp_status st = find_item(&v, g, key, true, index);
    return st ? st : read_float(out, g, key, v, index);
}

/* ---- tensors by number and by name -------------------------------------------------------------------------- */

size_t sp_gguf_n_tensors(const sp_gguf *g)
{
    return g->tensor_names.n;
}
const sp_gguf_tensor *sp_gguf_tensor_at(const sp_gguf *g, size_t index)
{
    return &g->tensors[index];
}

const sp_gguf_tensor *sp_gguf_find_tensor(const sp_gguf *g, const char *name)
{
    size_t i = sp_names_find(&g->tensor_names, (sp_name){name, strlen(name)});
    return i == SP_NO_NAME ? NULL : &g->tensors[i];
}
