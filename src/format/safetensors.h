/* safetensors.h: reading and writing safetensors files, bounds-checked. https://github.com/huggingface/safetensors */
#ifndef SP_FORMAT_SAFETENSORS_H
#define SP_FORMAT_SAFETENSORS_H

#include <jansson.h>

#include "softprompt.h"

typedef struct sp_safetensors sp_safetensors;

typedef enum sp_dtype { SP_F64, SP_F32, SP_F16, SP_BF16, SP_I64, SP_I32, SP_I16, SP_I8, SP_U8, SP_BOOL } sp_dtype;
enum { SP_SAFETENSORS_MAX_DIMS = 8 };

typedef struct sp_st_tensor {
    const char *name;
    sp_dtype type;
    size_t n_dims;
    uint64_t shape[SP_SAFETENSORS_MAX_DIMS]; /* slowest first, as written in the file */
    const void *data;                        /* inside the mapping; not necessarily aligned */
    size_t n_bytes;
} sp_st_tensor;

sp_status sp_safetensors_open(sp_safetensors **out, const char *path);
void sp_safetensors_close(sp_safetensors *file);
size_t sp_safetensors_file_bytes(const sp_safetensors *file);
size_t sp_safetensors_n_tensors(const sp_safetensors *file);
const sp_st_tensor *sp_safetensors_at(const sp_safetensors *file, size_t index);
const sp_st_tensor *sp_safetensors_find(const sp_safetensors *file, const char *name); /* NULL: none */
const char *sp_safetensors_metadata(const sp_safetensors *file, const char *key);      /* NULL: none */
const json_t *sp_safetensors_all_metadata(const sp_safetensors *file); /* strings by key; NULL: none. Belongs to the file */

/* Values first .. first + n of a floating tensor as f32 (F64, F32, F16, BF16), in the file's order. */
sp_status sp_safetensors_read_f32(float *out, const sp_safetensors *file, const sp_st_tensor *tensor, size_t first, size_t n);
const char *sp_dtype_name(sp_dtype type); /* "F32" */
size_t sp_dtype_bytes(sp_dtype type);

typedef struct sp_metadata_item {
    const char *key, *value;
} sp_metadata_item;

/* Writes a file atomically (base/file.h): tensors in the order given, data aligned to 8. n_bytes and shape must agree. */
sp_status sp_safetensors_write(const char *path, const sp_st_tensor *tensors, size_t n_tensors, const sp_metadata_item *metadata,
                               size_t n_metadata);

#endif
