/* spm.h: SentencePiece's BPE: tokens are strings of characters with U+2581 for a space, the neighbours that join next are
 * those whose joint string has the highest score, and what has no token is spelt in byte tokens "<0xE2>".
 * Kudo & Richardson, arXiv 1808.06226. */
#ifndef SP_TEXT_SPM_H
#define SP_TEXT_SPM_H

#include "base/buffer.h"
#include "text/merge.h"
#include "text/vocabulary.h"

typedef struct sp_spm {
    const sp_vocabulary *vocabulary;
    uint32_t *ranks;          /* (n_tokens) higher scores have lower ranks, equal ones equal ranks; UINT32_MAX: never made */
    int32_t byte_tokens[256]; /* -1: none */
    int32_t unknown;          /* -1: none */
    bool marks_lead;          /* in no token does U+2581 follow another character: words can be merged one by one */
} sp_spm;

/* `scores` (n_tokens of the vocabulary); NaN is SP_ERR_FORMAT. The vocabulary must outlive *out. */
sp_status sp_spm_create(sp_spm *out, const char *where, const sp_vocabulary *vocabulary, const float *scores);
void sp_spm_clear(sp_spm *spm);

/* The merger's symbols become the tokens of the text, well-formed and with U+2581 for spaces; token -1: to be spelt in bytes. */
sp_status sp_spm_merge(sp_merger *merger, const sp_spm *spm, const char *text, size_t n_bytes);

/* The end of the first part of the text that can be merged on its own. */
size_t sp_spm_next_word(const sp_spm *spm, const char *text, size_t n_bytes);

/* Appends what a token stands for: a byte, or its string with spaces for U+2581. */
sp_status sp_spm_add_bytes(sp_buffer *out, const sp_spm *spm, int32_t token);

#endif
