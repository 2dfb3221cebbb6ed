/* vocabulary.h: token strings and their ids, and the tokens that are looked for in the text as a whole.
 *
 * A token's string is as the model's file has it: bytes in GPT-2's alphabet, or with U+2581 for spaces; control and
 * user-defined tokens are plain text. */
#ifndef SP_TEXT_VOCABULARY_H
#define SP_TEXT_VOCABULARY_H

#include "softprompt.h"

typedef enum sp_token_type { /* GGUF's tokenizer.ggml.token_type */
                             SP_TOKEN_NORMAL = 1,
                             SP_TOKEN_UNKNOWN,
                             SP_TOKEN_CONTROL,
                             SP_TOKEN_USER_DEFINED,
                             SP_TOKEN_UNUSED,
                             SP_TOKEN_BYTE
} sp_token_type;

typedef struct sp_string { /* not NUL-terminated */
    const char *bytes;
    size_t n_bytes;
} sp_string;

/* How an added token is looked for, beside its string; of no meaning for other tokens. */
enum {
    SP_ADDED_LATE = 1,   /* in the normalised text that the other added tokens left */
    SP_ADDED_LSTRIP = 2, /* takes the white space in front of it with it */
    SP_ADDED_RSTRIP = 4, /* and that behind it */
};

/* Added tokens sorted by their bytes. */
typedef struct sp_added_tokens {
    int32_t *tokens;
    size_t n;
    bool starts[256]; /* by first byte: does any of them begin so? */
} sp_added_tokens;

typedef struct sp_vocabulary {
    size_t n_tokens, max_bytes; /* of the longest token */
    char *text;                 /* every string, one behind the other */
    uint32_t *starts;           /* (n_tokens + 1) */
    uint8_t *types, *flags;     /* (n_tokens) */
    uint64_t *slots;            /* open addressing: hash in the high half, id + 1 in the low, 0 = empty */
    size_t slot_mask;
    sp_added_tokens added, late; /* control, unknown and user-defined tokens; those that are SP_ADDED_LATE */
} sp_vocabulary;

/* Copies n strings; `types` NULL: all normal; `flags` NULL: none. Two tokens with one string are SP_ERR_FORMAT, with `where` in
 * front, as no text could ever become one of them; but an added token may be called as another one is. Empty strings are kept and
 * never found. */
sp_status sp_vocabulary_create(sp_vocabulary *out, const char *where, const sp_string *tokens, const int32_t *types,
                               const uint8_t *flags, size_t n);
void sp_vocabulary_clear(sp_vocabulary *vocabulary);

sp_string sp_vocabulary_string(const sp_vocabulary *vocabulary, int32_t token);
int32_t sp_vocabulary_find(const sp_vocabulary *vocabulary, const char *bytes, size_t n_bytes); /* -1: none */

/* Is it left out of plain text (BOS and the like)? User-defined tokens are not. */
bool sp_vocabulary_is_special(const sp_vocabulary *vocabulary, int32_t token);

/* The longest of `added`, which is one of the vocabulary's two, that the text begins with; -1: none. */
int32_t sp_vocabulary_match_added(const sp_vocabulary *vocabulary, const sp_added_tokens *added, const char *text, size_t n_bytes);

#endif
