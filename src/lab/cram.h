/* cram.h: the texts that lab capacity cram crams. */
#ifndef SP_LAB_CRAM_H
#define SP_LAB_CRAM_H

#include "softprompt.h"

/* One text as tokens; `tokens` is freed with free. */
typedef struct sp_cram_text {
    size_t row;      /* of the data */
    int32_t *tokens; /* (n), without BOS */
    size_t n;
} sp_cram_text;

/* n_texts texts of at most max_tokens tokens each, seeded. Texts that have so many come before shorter ones.
 * out (n_texts) written, whole or, on failure, not. ARGUMENT: the data have too few texts. */
sp_status sp_cram_texts_draw(sp_cram_text *out, size_t n_texts, const sp_model *model, const sp_dataset *data, sp_cram_kind kind,
                             size_t max_tokens, uint64_t seed);

#endif
