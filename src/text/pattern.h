/* pattern.h: regular expressions as tokenizer.json has them, for the engine that is used here. */
#ifndef SP_TEXT_PATTERN_H
#define SP_TEXT_PATTERN_H

#include "base/buffer.h"
#include "text/vocabulary.h"

/* *out becomes the pattern in PCRE2's language, with the meaning that it has in Oniguruma (Ruby's syntax), which Hugging Face's
 * tokenizers run. The pattern is well-formed UTF-8. What cannot be said so is SP_ERR_UNSUPPORTED, and named, with `where` in front.
 * The result may still be no pattern: compile it. */
sp_status sp_pattern_translate(sp_buffer *out, const char *where, sp_string pattern);

#endif
