/* tokenizer.h: what the model's loader needs of the text module; users see softprompt.h. */
#ifndef SP_TEXT_TOKENIZER_H
#define SP_TEXT_TOKENIZER_H

#include "base/buffer.h"
#include "format/gguf.h"

/* Builds the tokenizer that a GGUF file describes (tokenizer.ggml.*, tokenizer.chat_template). Nothing of `gguf` is kept.
 * UNSUPPORTED names the tokenizer model or pre-tokeniser that is not known, and lists those that are. */
sp_status sp_tokenizer_from_gguf(sp_tokenizer **out, const sp_gguf *gguf);

/* Builds the tokenizer of a Hugging Face model directory: tokenizer.json, beside it tokenizer_config.json, special_tokens_map.json,
 * generation_config.json, config.json and chat_template.jinja, each where it is there. Of the same ids as the `tokenizers` library.
 * The model may have rows for more tokens than the tokenizer.
 * IO: no tokenizer.json. FORMAT: it contradicts itself. UNSUPPORTED names the part that is not known, and lists those that are. */
sp_status sp_tokenizer_from_hf(sp_tokenizer **out, const char *dir);
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
