/* model.h: a loaded model as the modules above it see it. */
#ifndef SP_MODEL_MODEL_H
#define SP_MODEL_MODEL_H

#include "softprompt.h"

/* What an adapter records to recognise the model that it was trained on. */
typedef struct sp_fingerprint {
    uint64_t tokenizer;  /* hash of the tokenizer */
    uint64_t embeddings; /* hash of the embedding matrix, as stored */
    size_t n_layer, d_model, n_head, n_head_kv, n_vocab;
} sp_fingerprint;

sp_fingerprint sp_model_fingerprint(const sp_model *model); /* reads the whole embedding matrix: some ms */

sp_compute sp_model_compute(const sp_model *model);             /* F32 or BF16 */
void sp_model_set_compute(sp_model *model, sp_compute compute); /* of the passes that follow; F32 or BF16 */

/* Where the engine has dimension i (transformers' and PEFT's) of a head's key or query. */
size_t sp_model_key_dimension(const sp_model *model, size_t i);

float sp_model_attention_scale(const sp_model *model); /* of scores: 1 / sqrt(d_head), in most */
size_t sp_model_window(const sp_model *model);         /* of those layers that have one; 0: none has */

/* UNSUPPORTED: attention to a prompt's moments would be another than to its keys: layers with a window, a soft cap of scores. */
sp_status sp_model_check_states(const sp_model *model);

int sp_model_n_threads(const sp_model *model); /* what it was loaded with, the machine's where that was 0 */

/* Mean and standard deviation over all entries of the embedding matrix, scaled as sp_model_embed does: what random initialisation
 * is scaled by. */
sp_status sp_model_embedding_moments(double *mean, double *deviation, const sp_model *model);

#endif
