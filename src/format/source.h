/* source.h: where a model's hyperparameters and tensors come from, whatever the files.
 *
 * The words are GGUF's throughout: metadata under its keys, tensors under its names ("blk.3.attn_q.weight"), in ggml's types and
 * order of dimensions. What is read from other files is translated once, when they are opened, so that nothing above has to know.
 * Everything handed out lives as long as the source. */
#ifndef SP_FORMAT_SOURCE_H
#define SP_FORMAT_SOURCE_H

#include "format/gguf.h"

typedef struct sp_source sp_source;

/* A GGUF file, or a Hugging Face directory. Fails as sp_gguf_open and sp_hf_directory_open do, and of a directory with UNSUPPORTED,
 * by name, where its family or a setting of it is none that hf_families.c has. */
sp_status sp_source_open(sp_source **out, const char *path);
void sp_source_close(sp_source *source);

const char *sp_source_path(const sp_source *source);
uint64_t sp_source_file_bytes(const sp_source *source); /* of all files that hold tensors */
const sp_gguf *sp_source_gguf(const sp_source *source); /* NULL where it is no GGUF file */

/* Are the rows of q and k in the order that models are trained in, where RoPE turns halves of a head? The GGUF files of some
 * architectures have another one. */
bool sp_source_rows_as_trained(const sp_source *source);

/* What the files themselves call a key or a tensor: "num_hidden_layers" for "llama.block_count". For messages; never NULL. */
const char *sp_source_spelling(const sp_source *source, const char *name);

/* As their namesakes of gguf.h. */
bool sp_source_has(const sp_source *source, const char *key);
sp_status sp_source_get_u32(uint32_t *out, const sp_source *source, const char *key);
sp_status sp_source_get_f32(float *out, const sp_source *source, const char *key);
sp_status sp_source_get_bool(bool *out, const sp_source *source, const char *key);
sp_status sp_source_get_string(sp_gguf_string *out, const sp_source *source, const char *key);
size_t sp_source_n_tensors(const sp_source *source);
const sp_gguf_tensor *sp_source_tensor_at(const sp_source *source, size_t index);
const sp_gguf_tensor *sp_source_find_tensor(const sp_source *source, const char *name);

#endif
