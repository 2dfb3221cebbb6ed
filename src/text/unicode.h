/* unicode.h: the little of Unicode that tokenizers need beside regular expressions: UTF-8 and white space. */
#ifndef SP_TEXT_UNICODE_H
#define SP_TEXT_UNICODE_H

#include "base/buffer.h"

/* U+2581, which SentencePiece vocabularies write for a space. */
#define SP_SPACE_MARK "\xe2\x96\x81"

/* How many of the first bytes are well-formed UTF-8: n_bytes if all are. */
size_t sp_utf8_valid_prefix(const char *text, size_t n_bytes);

/* Appends the text with U+FFFD for each maximal ill-formed part (Unicode 3.9, table 3-8; Python's errors="replace"). */
sp_status sp_utf8_add_repaired(sp_buffer *out, const char *text, size_t n_bytes);

/* The bytes of the character that starts with `lead`, in well-formed text: 1 to 4. */
size_t sp_utf8_length(char lead);

/* The character at `text`, which is well-formed. */
uint32_t sp_utf8_decode(const char *text);

/* Is the character at `text`, which is well-formed, Unicode's White_Space? */
bool sp_utf8_is_space(const char *text);

/* Narrows [*text, *text + *n_bytes), well-formed, as Python's str.strip does. */
void sp_utf8_strip(const char **text, size_t *n_bytes);

#endif
