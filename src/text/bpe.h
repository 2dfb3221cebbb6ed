/* bpe.h: byte-level BPE: tokens are strings of bytes, written in GPT-2's alphabet of 256 printable characters, and merges
 * say which two join, in which order. Sennrich et al., arXiv 1508.07909; Radford et al. 2019. */
#ifndef SP_TEXT_BPE_H
#define SP_TEXT_BPE_H

#include "base/buffer.h"
#include "text/merge.h"
#include "text/vocabulary.h"

typedef struct sp_bpe {
    struct sp_bpe_rule *rules; /* open addressing by the two tokens */
    size_t rule_mask;
    int32_t byte_tokens[256]; /* -1: this vocabulary lacks the byte */
    uint64_t hash;            /* of the rules, in order */
} sp_bpe;

/* `merges`: "left right", best first; where `rights` is not NULL, merges[i] is the left part and rights[i] the right one.
 * SP_ERR_FORMAT, with `where` in front, names a merge that is no pair, whose parts or result are not in the vocabulary, or that is
 * there twice. The vocabulary is read in this call only. */
sp_status sp_bpe_create(sp_bpe *out, const char *where, const sp_vocabulary *vocabulary, const sp_string *merges,
                        const sp_string *rights, size_t n_merges);
void sp_bpe_clear(sp_bpe *bpe);

/* Joins the merger's symbols, which are tokens already. */
void sp_bpe_run(sp_merger *merger, const sp_bpe *bpe, const char *text);

/* The merger's symbols become the tokens of the piece. A byte that the vocabulary lacks is left out, as Hugging Face does. */
sp_status sp_bpe_merge(sp_merger *merger, const sp_bpe *bpe, const char *piece, size_t n_bytes);

/* The letter of a byte as UTF-8, 1 or 2 bytes; how many. */
size_t sp_bpe_letter(char out[2], unsigned char byte);

/* The token whose bytes are the piece; -1: none. */
int32_t sp_bpe_find(const sp_vocabulary *vocabulary, const char *piece, size_t n_bytes);

/* Appends the bytes that a token's string stands for; a string with characters outside the alphabet stands for itself. */
sp_status sp_bpe_add_bytes(sp_buffer *out, sp_string token);

#endif
