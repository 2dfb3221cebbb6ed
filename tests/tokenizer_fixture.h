/* tokenizer_fixture.h: small tokenizers for the tests, from arrays of C strings. */
#ifndef SP_TESTS_TOKENIZER_FIXTURE_H
#define SP_TESTS_TOKENIZER_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text/internal.h"
#include "text/tokenizer.h"

#define ARRAY_LEN(a) (sizeof(a) / sizeof *(a))
#define STRING(s) ((sp_string){(s), strlen(s)})

enum { MAX_FIXTURE = 600 };

typedef struct fixture {
    sp_tokenizer_source source;
    sp_string tokens[MAX_FIXTURE], merges[MAX_FIXTURE];
    int32_t types[MAX_FIXTURE];
    float scores[MAX_FIXTURE];
    char letters[256][8];
} fixture;

static inline int32_t fixture_add(fixture *f, const char *token, sp_token_type type)
{
    size_t i = f->source.n_tokens++;
    f->tokens[i] = STRING(token);
    f->types[i] = (int32_t)type;
    f->scores[i] = -(float)i;
    return (int32_t)i;
}

static inline void fixture_merge(fixture *f, const char *merge)
{
    f->merges[f->source.n_merges++] = STRING(merge);
}

static inline void fixture_start(fixture *f, const char *model, const char *pre)
{
    memset(f, 0, sizeof *f);
    f->source = (sp_tokenizer_source){.where = "test.gguf",
                                      .model = STRING(model),
                                      .tokens = f->tokens,
                                      .types = f->types,
                                      .bos = -1,
                                      .eos = -1,
                                      .eot = -1,
                                      .eom = -1,
                                      .add_bos = -1,
                                      .add_eos = -1,
                                      .add_space_prefix = -1};
    if (pre) {
        f->source.pre = STRING(pre);
        f->source.merges = f->merges;
    } else {
        f->source.scores = f->scores;
    }
}

/* Tokens 0 to 93: the printable ASCII characters from '!' on; 94 "Ġ" (space), 95 "Ċ" (line end). Then two merges. */
static inline void fixture_start_bpe(fixture *f, const char *pre)
{
    fixture_start(f, "gpt2", pre);
    for (int c = '!'; c <= '~'; c++) {
        f->letters[c][0] = (char)c;
        fixture_add(f, f->letters[c], SP_TOKEN_NORMAL);
    }
    fixture_add(f, "\xc4\xa0", SP_TOKEN_NORMAL);
    fixture_add(f, "\xc4\x8a", SP_TOKEN_NORMAL);
    fixture_add(f, "ab", SP_TOKEN_NORMAL);
    fixture_add(f, "abc", SP_TOKEN_NORMAL);
    fixture_merge(f, "a b");
    fixture_merge(f, "ab c");
}

static inline sp_tokenizer *fixture_create(fixture *f)
{
    sp_tokenizer *t;
    if (sp_tokenizer_create(&t, &f->source)) fail_msg("%s", sp_message());
    return t;
}

static inline void assert_create_fails(const fixture *f, sp_status status, const char *words)
{
    sp_tokenizer *t;
    assert_int_equal(sp_tokenizer_create(&t, &f->source), status);
    assert_null(t);
    if (!strstr(sp_message(), words)) fail_msg("\"%s\" does not say \"%s\"", sp_message(), words);
    assert_non_null(strstr(sp_message(), "test.gguf"));
}

#endif
