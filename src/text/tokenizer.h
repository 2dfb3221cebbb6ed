/* tokenizer.h: what the model's loader needs of the text module; users see softprompt.h. */
#ifndef SP_TEXT_TOKENIZER_H
#define SP_TEXT_TOKENIZER_H

#include "base/buffer.h"
#include "format/gguf.h"

/* Builds the tokenizer that a GGUF file describes (tokenizer.ggml.*, tokenizer.chat_template). Nothing of `gguf` is kept.
 * UNSUPPORTED names the tokenizer model or pre-tokeniser that is not known, and lists those that are. */
sp_status sp_tokenizer_from_gguf(sp_tokenizer **out, const sp_gguf *gguf);
void sp_tokenizer_free(sp_tokenizer *tokenizer);

size_t sp_tokenizer_n_vocab(const sp_tokenizer *tokenizer);

/* Appends one token's bytes as they stand within a text: where sp_detokenize takes the first word's space away, this does not.
 * For text that grows token by token. */
sp_status sp_tokenizer_add_text(sp_buffer *out, const sp_tokenizer *tokenizer, int32_t token, bool with_special);

/* A hash of everything that decides how text becomes ids: half of a model's fingerprint. */
uint64_t sp_tokenizer_hash(const sp_tokenizer *tokenizer);

/* "bpe/smollm", "spm", ... ; and the chat family ("chatml", ...; "none"). For `info`. */
const char *sp_tokenizer_kind(const sp_tokenizer *tokenizer);
const char *sp_tokenizer_chat_family(const sp_tokenizer *tokenizer);

#endif
