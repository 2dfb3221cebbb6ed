/* splitter.h: cutting text into the pieces that byte-level BPE merges within ("pre-tokenisation"). */
#ifndef SP_TEXT_SPLITTER_H
#define SP_TEXT_SPLITTER_H

#include "text/vocabulary.h"

typedef struct sp_splitter sp_splitter;

/* ByteLevel's own. */
#define SP_GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

enum { SP_MAX_SPLIT_STAGES = 8 };

/* A stage cuts the pieces of the stage before: matches are pieces. */
typedef struct sp_split_stage {
    sp_string pattern; /* as Oniguruma reads it: text/pattern.h */
    bool drops_gaps;   /* what lies between two matches is no piece, but gone */
} sp_split_stage;

/* By the name in tokenizer.ggml.pre. A name that is not known is SP_ERR_UNSUPPORTED, with the list of those that are. */
sp_status sp_splitter_create(sp_splitter **out, const char *where, const char *name, size_t n_name);

/* From the stages themselves, 0 to SP_MAX_SPLIT_STAGES. Where they are those of a family that has a name, the result is that
 * family's. A pattern that is none, that could match nothing, or that needs what is not known here, is SP_ERR_UNSUPPORTED. */
sp_status sp_splitter_create_from_stages(sp_splitter **out, const char *where, const sp_split_stage *stages, size_t n_stages,
                                         bool normalises, bool ignores_merges);
void sp_splitter_free(sp_splitter *splitter);

const char *sp_splitter_name(const sp_splitter *splitter);    /* "custom": of no family */
uint64_t sp_splitter_hash(const sp_splitter *splitter);       /* of what it does; families that do the same have the same */
bool sp_splitter_normalises(const sp_splitter *splitter);     /* the text is brought to Unicode's form C first */
bool sp_splitter_ignores_merges(const sp_splitter *splitter); /* a piece that is a token stays whole, whatever the merges say */
bool sp_splitter_adds_bos(const sp_splitter *splitter);       /* where tokenizer.ggml.add_bos_token is absent */

/* Called with each piece, in order: n_bytes >= 1 from `start`. */
typedef sp_status sp_piece_fn(void *user, size_t start, size_t n_bytes);

/* Hands every byte of the text (well-formed UTF-8) to on_piece, in pieces, but for dropped gaps. Fails with MEMORY, with
 * UNSUPPORTED where a pattern of a file takes too many steps, or as on_piece does. */
sp_status sp_splitter_split(const sp_splitter *splitter, const char *text, size_t n_bytes, sp_piece_fn *on_piece, void *user);

#endif
