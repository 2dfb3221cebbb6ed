/* splitter.h: cutting text into the pieces that byte-level BPE merges within ("pre-tokenisation"). */
#ifndef SP_TEXT_SPLITTER_H
#define SP_TEXT_SPLITTER_H

#include "softprompt.h"

typedef struct sp_splitter sp_splitter;

/* By the name in tokenizer.ggml.pre. A name that is not known is SP_ERR_UNSUPPORTED, with the list of those that are. */
sp_status sp_splitter_create(sp_splitter **out, const char *where, const char *name, size_t n_name);
void sp_splitter_free(sp_splitter *splitter);

const char *sp_splitter_name(const sp_splitter *splitter);
bool sp_splitter_normalises(const sp_splitter *splitter);     /* the text is brought to Unicode's form C first */
bool sp_splitter_ignores_merges(const sp_splitter *splitter); /* a piece that is a token stays whole, whatever the merges say */
bool sp_splitter_adds_bos(const sp_splitter *splitter);       /* where tokenizer.ggml.add_bos_token is absent */

/* Called with each piece, in order: n_bytes >= 1 from `start`. */
typedef sp_status sp_piece_fn(void *user, size_t start, size_t n_bytes);

/* Hands every byte of the text (well-formed UTF-8) to on_piece, in pieces. Fails with MEMORY, or as on_piece does. */
sp_status sp_splitter_split(const sp_splitter *splitter, const char *text, size_t n_bytes, sp_piece_fn *on_piece, void *user);

#endif
