/* hf_directory.h: a model directory of Hugging Face, opened and checked but not yet understood.
 *
 *     config.json                     hyperparameters, in the words of the model's own family
 *     model.safetensors               the tensors; or, in shards,
 *     model.safetensors.index.json    which file has which
 *     tokenizer.json, ...             src/text reads these
 *
 * Everything handed out lives as long as the directory. */
#ifndef SP_FORMAT_HF_DIRECTORY_H
#define SP_FORMAT_HF_DIRECTORY_H

#include "format/json.h"
#include "format/safetensors.h"

#define SP_HF_CONFIG "config.json"

typedef struct sp_hf_directory sp_hf_directory;

/* IO, FORMAT (damaged, a shard is missing, the index names other files than the directory's), UNSUPPORTED (pickles), MEMORY. */
sp_status sp_hf_directory_open(sp_hf_directory **out, const char *path);
void sp_hf_directory_close(sp_hf_directory *directory);

const char *sp_hf_directory_path(const sp_hf_directory *directory);
json_t *sp_hf_directory_config(const sp_hf_directory *directory);          /* borrowed */
const char *sp_hf_directory_config_path(const sp_hf_directory *directory); /* for messages */
uint64_t sp_hf_directory_tensor_file_bytes(const sp_hf_directory *directory);

/* Tensors of all shards, shard by shard. */
size_t sp_hf_directory_n_tensors(const sp_hf_directory *directory);
const sp_st_tensor *sp_hf_directory_tensor_at(const sp_hf_directory *directory, size_t index);
const sp_safetensors *sp_hf_directory_shard_of(const sp_hf_directory *directory, size_t index);

#endif
