/* hf_tensors.h: a Hugging Face directory's tensors under GGUF's names. */
#ifndef SP_FORMAT_HF_TENSORS_H
#define SP_FORMAT_HF_TENSORS_H

#include "format/gguf.h"
#include "format/hf_config.h"
#include "format/names.h"

typedef struct sp_hf_tensors {
    sp_gguf_tensor *tensors; /* (names.n) their numbers in the mapped shards, or in `copies` */
    const char **own_names;  /* (names.n) what the shards call them */
    sp_names names;          /* GGUF's */
    void **copies;           /* (n_copies) numbers and names that are ours */
    size_t n_copies;
} sp_hf_tensors;

/* FORMAT: a tensor is missing, is there and should not be, or has a shape that its layout cannot have. UNSUPPORTED: a tensor
 * that the family's table does not have, a type other than F32, F16, BF16. Other shapes are the model's to judge. The fields of
 * *out are for sp_hf_tensors_clear, also after a failure; the directory must outlive them. */
sp_status sp_hf_tensors_read(sp_hf_tensors *out, const sp_hf_directory *directory, const sp_hf_config *config);
void sp_hf_tensors_clear(sp_hf_tensors *tensors);

#endif
