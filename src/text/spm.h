/* spm.h: BPE over characters, with U+2581 for a space; what has no token is spelt in byte tokens "<0xE2>".
 *
 * SentencePiece (Kudo & Richardson, arXiv 1808.06226) joins the neighbours whose joint string has the highest score, and spells
 * afterwards. Hugging Face's files have merges in place of scores, as byte-level BPE has, and bytes are symbols that could join. */
#ifndef SP_TEXT_SPM_H
#define SP_TEXT_SPM_H

#include "base/buffer.h"
#include "text/bpe.h"
#include "text/merge.h"
#include "text/vocabulary.h"

typedef struct sp_spm {
    const sp_vocabulary *vocabulary;
    uint32_t *ranks;          /* (n_tokens) higher scores have lower ranks, equal ones equal ranks; UINT32_MAX: never made */
    int32_t byte_tokens[256]; /* -1: none */
    int32_t unknown;          /* -1: none */
    bool marks_lead;          /* in no token does U+2581 follow another character: words can be merged one by one */
    sp_bpe merges;            /* where ranks is NULL; from here on only of use with merges: */
    size_t n_model_tokens;    /* tokens below are the model's; others are only looked for in the text as a whole */
    bool spells_bytes;        /* what has no token becomes byte tokens, where the vocabulary has them */
    bool splits_words;        /* every U+2581 begins a word */
    bool fuses_unknown;       /* characters without a token that follow one another are one unknown token */
} sp_spm;

/* `scores` (n_tokens of the vocabulary); NaN is SP_ERR_FORMAT. The vocabulary must outlive *out. */
sp_status sp_spm_create(sp_spm *out, const char *where, const sp_vocabulary *vocabulary, const float *scores);
/* By merges, as sp_bpe_create takes them. `settings` gives unknown, n_model_tokens and the three switches below it.
 * The vocabulary must outlive *out. */
sp_status sp_spm_create_from_merges(sp_spm *out, const char *where, const sp_vocabulary *vocabulary, const sp_string *merges,
                                    const sp_string *rights, size_t n_merges, const sp_spm *settings);
void sp_spm_clear(sp_spm *spm);

/* The merger's symbols become the tokens of the text, well-formed and with U+2581 for spaces; token -1: to be spelt in bytes,
 * which happens by scores only. */
sp_status sp_spm_merge(sp_merger *merger, const sp_spm *spm, const char *text, size_t n_bytes);

/* The end of the first part of the text that can be merged on its own. */
size_t sp_spm_next_word(const sp_spm *spm, const char *text, size_t n_bytes);

/* Appends what a token stands for: a byte, or its string with spaces for U+2581. */
sp_status sp_spm_add_bytes(sp_buffer *out, const sp_spm *spm, int32_t token);

#endif
