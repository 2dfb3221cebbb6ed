/* gguf.h: reading a GGUF file (version 2 and 3, little-endian), bounds-checked: the gate for hostile files.
 * Everything handed out points into the mapped file or into the handle, and lives as long as the handle. */
#ifndef SP_FORMAT_GGUF_H
#define SP_FORMAT_GGUF_H

#include <ggml.h>

#include "softprompt.h"

typedef struct sp_gguf sp_gguf;

typedef struct sp_gguf_string { /* not NUL-terminated: bytes of the file */
    const char *bytes;
    size_t n_bytes;
} sp_gguf_string;

typedef struct sp_gguf_tensor {
    const char *name;    /* NUL-terminated, printable */
    enum ggml_type type; /* known to ggml, or the file is refused by name of the tensor */
    int n_dims;
    uint64_t shape[4]; /* ggml's order: shape[0] is the length of a row; 1 beyond n_dims */
    const void *data;  /* inside the mapping, n_bytes of it, aligned as the file says */
    size_t n_bytes;
} sp_gguf_tensor;

sp_status sp_gguf_open(sp_gguf **out, const char *path);
void sp_gguf_close(sp_gguf *gguf);
const char *sp_gguf_path(const sp_gguf *gguf);
size_t sp_gguf_file_bytes(const sp_gguf *gguf);

/* Metadata. An absent key is no error for sp_gguf_has, and SP_ERR_FORMAT, with key and path, for the getters; so is a value
 * of another type or out of range. Integers of every width convert where the value fits. */
bool sp_gguf_has(const sp_gguf *gguf, const char *key);
sp_status sp_gguf_get_u32(uint32_t *out, const sp_gguf *gguf, const char *key);
sp_status sp_gguf_get_f32(float *out, const sp_gguf *gguf, const char *key);
sp_status sp_gguf_get_bool(bool *out, const sp_gguf *gguf, const char *key);
sp_status sp_gguf_get_string(sp_gguf_string *out, const sp_gguf *gguf, const char *key);
sp_status sp_gguf_get_array_n(size_t *n, const sp_gguf *gguf, const char *key);
sp_status sp_gguf_get_array_string(sp_gguf_string *out, const sp_gguf *gguf, const char *key, size_t index); /* O(1) */
sp_status sp_gguf_get_array_i32(int32_t *out, const sp_gguf *gguf, const char *key, size_t index); /* any integer type, bool */
sp_status sp_gguf_get_array_f32(float *out, const sp_gguf *gguf, const char *key, size_t index);

size_t sp_gguf_n_tensors(const sp_gguf *gguf);
const sp_gguf_tensor *sp_gguf_tensor_at(const sp_gguf *gguf, size_t index);
const sp_gguf_tensor *sp_gguf_find_tensor(const sp_gguf *gguf, const char *name); /* NULL: none; hashed */

#endif
