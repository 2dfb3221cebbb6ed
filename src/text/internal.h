/* internal.h: what the files of this module share: the tokenizer itself, what it is made from, and text with regions. */
#ifndef SP_TEXT_INTERNAL_H
#define SP_TEXT_INTERNAL_H

#include "text/bpe.h"
#include "text/splitter.h"
#include "text/spm.h"
#include "text/vocabulary.h"

/* Where BPE over characters puts a U+2581 that the text does not have. */
typedef enum sp_space_prefix {
    SP_PREFIX_NONE,
    SP_PREFIX_ALWAYS, /* in front of what lies between two added tokens */
    SP_PREFIX_UNLESS, /* the same, where it does not begin with one */
    SP_PREFIX_FIRST,  /* as UNLESS, at the text's beginning only */
} sp_space_prefix;

enum { SP_MAX_END_TOKENS = 16 };

/* A tokenizer's description, wherever it comes from. Everything is borrowed for the call. */
typedef struct sp_tokenizer_source {
    const char *where;    /* in front of messages: the file's path */
    sp_string model, pre; /* "gpt2" (bytes) or "llama" (characters); the pre-tokeniser's name, gpt2 only */
    size_t n_tokens, n_merges;
    const sp_string *tokens;                /* (n_tokens) */
    const int32_t *types;                   /* (n_tokens) sp_token_type; NULL: all normal */
    const uint8_t *flags;                   /* (n_tokens) SP_ADDED_...; NULL: none */
    const float *scores;                    /* (n_tokens) llama only; NULL: merges */
    const sp_string *merges, *merge_rights; /* (n_merges) as sp_bpe_create takes them */
    int32_t bos, eos, eot, eom;             /* -1: not given */
    int add_bos, add_eos, add_space_prefix; /* -1: not given, the family's habit; else 0 or 1, and sp_space_prefix */
    sp_string chat_template;                /* bytes NULL: none */

    /* What tokenizer.json gives and GGUF does not. */
    const sp_split_stage *stages; /* (n_stages) in place of `pre`; NULL: none */
    size_t n_stages;
    bool normalises, ignores_merges; /* beside `stages` */
    sp_spm characters;               /* settings of sp_spm_create_from_merges */
    int32_t ends[SP_MAX_END_TOKENS];
    size_t n_ends;
} sp_tokenizer_source;

struct sp_tokenizer {
    sp_vocabulary vocabulary;
    sp_splitter *splitter; /* byte-level BPE; NULL: SentencePiece */
    sp_bpe bpe;
    sp_spm spm;
    int32_t bos, eos, ends[SP_MAX_END_TOKENS];
    size_t n_ends;
    bool adds_bos, adds_eos;
    sp_space_prefix space_prefix;
    uint64_t hash;
    char kind[32];
    char *chat_template; /* NULL: none */
};

sp_status sp_tokenizer_create(sp_tokenizer **out, const sp_tokenizer_source *source);

/* A text's regions follow one another from its first byte; the last one's end is the text's. */
typedef struct sp_text_region {
    size_t end;
    bool special; /* special-token strings that lie in it are those tokens */
    bool answer;  /* tokens that start in it are marked */
} sp_text_region;

/* Well-formed UTF-8 -> tokens, and `answer` (NULL: not wanted) a byte for each; both sp_free. No BOS or EOS is added. */
sp_status sp_tokenizer_encode(int32_t **tokens, uint8_t **answer, size_t *n, const sp_tokenizer *tokenizer, const char *text,
                              const sp_text_region *regions, size_t n_regions);

#endif
