/* safetensors.c:  u64 n_header | header, a JSON object | the tensors' bytes.
 *
 *   {"__metadata__": {"format": "pt"}, "NAME": {"dtype": "F32", "shape": [5, 32], "data_offsets": [0, 640]}, ...}
 *
 * Offsets count from the end of the header. As the reference implementation does, we refuse holes, overlaps and bytes behind the
 * last tensor, so that a file has one meaning only.
 * Invariant: a tensor of an open file lies inside the mapping and has as many bytes as shape and type say. */
#include "format/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <ggml.h>

#include "base/file.h"
#include "base/status.h"
#include "format/json.h"
#include "format/names.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors are read as they lie in memory: a little-endian machine");

static const char metadata_key[] = "__metadata__";

static const struct {
    const char *name;
    size_t n_bytes;
} dtypes[] = {
    [SP_F64] = {"F64", 8}, [SP_F32] = {"F32", 4}, [SP_F16] = {"F16", 2}, [SP_BF16] = {"BF16", 2}, [SP_I64] = {"I64", 8},
    [SP_I32] = {"I32", 4}, [SP_I16] = {"I16", 2}, [SP_I8] = {"I8", 1},   [SP_U8] = {"U8", 1},     [SP_BOOL] = {"BOOL", 1},
};
enum { N_DTYPES = sizeof dtypes / sizeof dtypes[0] };

struct sp_safetensors {
    char *path;
    sp_mapped_file file;
    json_t *header; /* owns names and metadata */
    json_t *metadata;
    sp_st_tensor *tensors; /* (names.n) in the order of their bytes */
    sp_names names;
};

const char *sp_dtype_name(sp_dtype type)
{
    return dtypes[type].name;
}
size_t sp_dtype_bytes(sp_dtype type)
{
    return dtypes[type].n_bytes;
}

/* ---- the header --------------------------------------------------------------------------------------------- */

static sp_status fail_tensor(const sp_safetensors *f, const char *name, const char *what)
{
    return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s: %s", f->path, name, what);
}

static sp_status read_dtype(sp_st_tensor *t, const sp_safetensors *f, const json_t *entry)
{
    const char *name = json_string_value(json_object_get(entry, "dtype"));
    if (!name) return fail_tensor(f, t->name, "\"dtype\" is missing or no string");
    for (int type = 0; type < N_DTYPES; type++)
        if (strcmp(name, dtypes[type].name) == 0) {
            t->type = (sp_dtype)type;
            return SP_OK;
        }
    return sp_fail(SP_ERR_UNSUPPORTED, "%s: tensor %.128s: dtype %.32s is not read here; save it as F32, F16 or BF16", f->path,
                   t->name, name);
}

/* Shape, and with it the number of bytes that the tensor must have. */
static sp_status read_shape(sp_st_tensor *t, const sp_safetensors *f, const json_t *entry)
{
    const json_t *shape = json_object_get(entry, "shape"), *length;
    size_t i;
    if (!json_is_array(shape)) return fail_tensor(f, t->name, "\"shape\" is missing or no array");
    if (json_array_size(shape) > SP_SAFETENSORS_MAX_DIMS) return fail_tensor(f, t->name, "has more than 8 dimensions");
    t->n_dims = json_array_size(shape);
    t->n_bytes = dtypes[t->type].n_bytes;
    json_array_foreach(shape, i, length)
    {
        if (!json_is_integer(length) || json_integer_value(length) < 0)
            return fail_tensor(f, t->name, "\"shape\" holds something else than whole numbers");
        t->shape[i] = (uint64_t)json_integer_value(length);
        if (__builtin_mul_overflow(t->n_bytes, t->shape[i], &t->n_bytes))
            return fail_tensor(f, t->name, "\"shape\" gives no size that memory could have");
    }
    return SP_OK;
}

static sp_status read_offsets(sp_st_tensor *t, const sp_safetensors *f, const json_t *entry, const uint8_t *data, size_t n_data)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        return fail_tensor(f, t->name, "\"data_offsets\" is missing or not two whole numbers");
    json_int_t first = json_integer_value(begin), last = json_integer_value(end);
    if (first < 0 || last < first || (uint64_t)last > n_data)
        return sp_fail(SP_ERR_FORMAT,
                       "%s: tensor %.128s: bytes %" JSON_INTEGER_FORMAT " to %" JSON_INTEGER_FORMAT
                       " run past the end of the data (%zu); fetch it again",
                       f->path, t->name, first, last, n_data);
    if ((uint64_t)(last - first) != t->n_bytes)
        return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s: %" JSON_INTEGER_FORMAT " bytes where shape and %s need %zu", f->path,
                       t->name, last - first, dtypes[t->type].name, t->n_bytes);
    t->data = data + first;
    return SP_OK;
}

static sp_status check_metadata(const sp_safetensors *f)
{
    const char *key;
    json_t *value;
    if (f->metadata && !json_is_object(f->metadata))
        return sp_fail(SP_ERR_FORMAT, "%s: \"%s\" is no object", f->path, metadata_key);
    json_object_foreach(f->metadata, key, value) if (!json_is_string(value)) return sp_fail(
        SP_ERR_FORMAT, "%s: metadata \"%.128s\" is no string", f->path, key);
    return SP_OK;
}

static int compare_places(const void *left, const void *right)
{
    const sp_st_tensor *a = left, *b = right;
    if (a->data != b->data) return a->data < b->data ? -1 : 1;
    if (a->n_bytes != b->n_bytes) return a->n_bytes < b->n_bytes ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* One behind the other from the first byte of the data to the last. */
static sp_status check_places(const sp_safetensors *f, size_t n_tensors, const uint8_t *data, size_t n_data)
{
    const uint8_t *expected = data;
    for (size_t i = 0; i < n_tensors; i++) {
        const sp_st_tensor *t = &f->tensors[i];
        if (t->data != expected) return fail_tensor(f, t->name, "does not begin where the tensor before it ends");
        expected += t->n_bytes;
    }
    if (expected == data + n_data) return SP_OK;
    return sp_fail(SP_ERR_FORMAT, "%s: %zu bytes behind the last tensor; fetch it again", f->path,
                   (size_t)(data + n_data - expected));
}

static sp_status read_tensors(sp_safetensors *f, const uint8_t *data, size_t n_data)
{
    const size_t n_entries = json_object_size(f->header) - (f->metadata != NULL);
    const char *name;
    json_t *entry;
    size_t n = 0;
    sp_status st = sp_names_reserve(&f->names, n_entries);
    if (st) return st;
    f->tensors = calloc(n_entries ? n_entries : 1, sizeof *f->tensors);
    if (!f->tensors) return sp_fail_no_memory(n_entries * sizeof *f->tensors);
    json_object_foreach(f->header, name, entry)
    {
        if (strcmp(name, metadata_key) == 0) continue;
        sp_st_tensor *t = &f->tensors[n++];
        t->name = name;
        if (!json_is_object(entry)) return fail_tensor(f, name, "is no object");
        if ((st = read_dtype(t, f, entry)) || (st = read_shape(t, f, entry)) || (st = read_offsets(t, f, entry, data, n_data)))
            return st;
    }
    qsort(f->tensors, n, sizeof *f->tensors, compare_places);
    for (size_t i = 0; i < n; i++) sp_names_add(&f->names, (sp_name){f->tensors[i].name, strlen(f->tensors[i].name)});
    return check_places(f, n, data, n_data);
}

static sp_status read_file(sp_safetensors *f)
{
    uint64_t n_header;
    if (f->file.size < sizeof n_header)
        return sp_fail(SP_ERR_FORMAT, "%s: not a safetensors file: only %zu bytes", f->path, f->file.size);
    memcpy(&n_header, f->file.bytes, sizeof n_header);
    if (n_header > f->file.size - sizeof n_header)
        return sp_fail(SP_ERR_FORMAT, "%s: not a safetensors file, or cut off: a header of %" PRIu64 " bytes in a file of %zu",
                       f->path, n_header, f->file.size);
    const uint8_t *header = f->file.bytes + sizeof n_header;
    sp_status st = sp_json_parse(&f->header, (const char *)header, n_header, f->path);
    if (st) return st;
    f->metadata = json_object_get(f->header, metadata_key);
    if ((st = check_metadata(f))) return st;
    return read_tensors(f, header + n_header, f->file.size - sizeof n_header - n_header);
}

/* ---- the handle --------------------------------------------------------------------------------------------- */

sp_status sp_safetensors_open(sp_safetensors **out, const char *path)
{
    sp_status st;
    *out = NULL;
    sp_safetensors *f = calloc(1, sizeof *f);
    if (!f) return sp_fail_no_memory(sizeof *f);
    if (!(f->path = strdup(path))) {
        st = sp_fail_no_memory(strlen(path) + 1);
        goto fail;
    }
    if ((st = sp_map_file(&f->file, path)) || (st = read_file(f))) goto fail;
    *out = f;
    return SP_OK;
fail:
    sp_safetensors_close(f);
    return st;
}

void sp_safetensors_close(sp_safetensors *f)
{
    if (!f) return;
    sp_names_free(&f->names);
    free(f->tensors);
    json_decref(f->header);
    sp_unmap_file(&f->file);
    free(f->path);
    free(f);
}

size_t sp_safetensors_file_bytes(const sp_safetensors *f)
{
    return f->file.size;
}
size_t sp_safetensors_n_tensors(const sp_safetensors *f)
{
    return f->names.n;
}
const sp_st_tensor *sp_safetensors_at(const sp_safetensors *f, size_t index)
{
    return &f->tensors[index];
}

const sp_st_tensor *sp_safetensors_find(const sp_safetensors *f, const char *name)
{
    size_t i = sp_names_find(&f->names, (sp_name){name, strlen(name)});
    return i == SP_NO_NAME ? NULL : &f->tensors[i];
}

const char *sp_safetensors_metadata(const sp_safetensors *f, const char *key)
{
    return json_string_value(json_object_get(f->metadata, key));
}

const json_t *sp_safetensors_all_metadata(const sp_safetensors *f)
{
    return f->metadata;
}

/* ---- values ------------------------------------------------------------------------------------------------- */

static float value_to_f32(const uint8_t *p, sp_dtype type)
{
    double wide;
    float value = 0;
    uint16_t half;
    switch (type) {
    case SP_F64:
        memcpy(&wide, p, sizeof wide);
        return (float)wide;
    case SP_F16:
        memcpy(&half, p, sizeof half);
        return ggml_fp16_to_fp32(half);
    case SP_BF16:
        memcpy((uint8_t *)&value + 2, p, 2);
        return value; /* the upper half of an f32 */
    default:
        memcpy(&value, p, sizeof value);
        return value;
    }
}

sp_status sp_safetensors_read_f32(float *out, const sp_safetensors *f, const sp_st_tensor *t, size_t first, size_t n)
{
    const size_t item_bytes = dtypes[t->type].n_bytes, n_values = t->n_bytes / item_bytes;
    if (t->type > SP_BF16)
        return sp_fail(SP_ERR_FORMAT, "%s: tensor %.128s: %s where floating-point numbers belong", f->path, t->name,
                       dtypes[t->type].name);
    if (first > n_values || n > n_values - first)
        return sp_fail(SP_ERR_ARGUMENT, "%s: tensor %.128s: values %zu to %zu of %zu were wanted", f->path, t->name, first,
                       first + n, n_values);
    const uint8_t *p = (const uint8_t *)t->data + first * item_bytes;
    for (size_t i = 0; i < n; i++) out[i] = value_to_f32(p + i * item_bytes, t->type);
    return SP_OK;
}

/* ---- writing ------------------------------------------------------------------------------------------------ */

static json_t *tensor_entry(const sp_st_tensor *t, uint64_t offset)
{
    json_t *shape = json_array();
    for (size_t i = 0; i < t->n_dims; i++)
        if (json_array_append_new(shape, json_integer((json_int_t)t->shape[i]))) {
            json_decref(shape);
            return NULL;
        }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtypes[t->type].name, "shape", shape, "data_offsets", (json_int_t)offset,
                     (json_int_t)(offset + t->n_bytes));
}

static json_t *build_header(const sp_st_tensor *tensors, size_t n_tensors, const sp_metadata_item *metadata, size_t n_metadata)
{
    json_t *header = json_object(), *items = n_metadata ? json_object() : NULL;
    uint64_t offset = 0;
    int failed = !header;
    for (size_t i = 0; i < n_metadata; i++) failed |= json_object_set_new(items, metadata[i].key, json_string(metadata[i].value));
    if (n_metadata) failed |= json_object_set_new(header, metadata_key, items);
    for (size_t i = 0; i < n_tensors; offset += tensors[i].n_bytes, i++)
        failed |= json_object_set_new(header, tensors[i].name, tensor_entry(&tensors[i], offset));
    if (!failed) return header;
    json_decref(header);
    return NULL;
}

sp_status sp_safetensors_write(const char *path, const sp_st_tensor *tensors, size_t n_tensors, const sp_metadata_item *metadata,
                               size_t n_metadata)
{
    static const char spaces[8] = "        "; /* the data begin at a multiple of 8 */
    json_t *header = build_header(tensors, n_tensors, metadata, n_metadata);
    char *text = NULL;
    sp_bytes *pieces = malloc((n_tensors + 3) * sizeof *pieces);
    sp_status st = header && pieces ? sp_json_dump(&text, header, JSON_COMPACT) : sp_json_fail_no_memory();
    if (!st) {
        const size_t n_text = strlen(text), n_spaces = (8 - n_text % 8) % 8;
        const uint64_t n_header = n_text + n_spaces;
        pieces[0] = (sp_bytes){&n_header, sizeof n_header};
        pieces[1] = (sp_bytes){text, n_text};
        pieces[2] = (sp_bytes){spaces, n_spaces};
        for (size_t i = 0; i < n_tensors; i++) pieces[3 + i] = (sp_bytes){tensors[i].data, tensors[i].n_bytes};
        st = sp_write_file_atomic(path, pieces, n_tensors + 3);
    }
    free(pieces);
    free(text);
    json_decref(header);
    return st;
}
