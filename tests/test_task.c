/* test_task.c: rows of data as tokens, with a tokenizer that can be worked out by hand: a token a byte, but that a blank and the
 * byte behind it make one (so tokens span the seams of a template), as do two line ends; "<e>" is special. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "prompt/task.h"

enum {
    BLANK = 1000,
    LINE_ENDS = 2000,
    BOS = 3000,
    EOS = 3001,
    SPECIAL = 3002,
    SYSTEM = 3010,
    USER = 3011,
    ASSISTANT = 3012,
    TURN_END = 3013
};

struct sp_tokenizer {
    bool adds_bos, has_eos;
};

static const sp_tokenizer plain = {false, true}, with_bos = {true, true};

/* ---- the fake ---------------------------------------------------------------------------------------------------- */

sp_status sp_tokenize(int32_t **out, size_t *n_out, const sp_tokenizer *tokenizer, const char *text, size_t n_bytes, unsigned flags)
{
    if (n_bytes == SIZE_MAX) n_bytes = strlen(text);
    int32_t *at = *out = malloc((n_bytes + 1) * sizeof *at);
    assert_non_null(at);
    if ((flags & SP_TOKENIZE_ADD_BOS) && tokenizer->adds_bos) *at++ = BOS;
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char c = (unsigned char)text[i], next = i + 1 < n_bytes ? (unsigned char)text[i + 1] : 0;
        if ((flags & SP_TOKENIZE_PARSE_SPECIAL) && n_bytes - i >= 3 && !memcmp(text + i, "<e>", 3))
            *at++ = SPECIAL, i += 2;
        else if (c == ' ' && next)
            *at++ = BLANK + next, i++;
        else if (c == '\n' && next == '\n')
            *at++ = LINE_ENDS, i++;
        else
            *at++ = c;
    }
    *n_out = (size_t)(at - *out);
    return SP_OK;
}

int32_t sp_tokenizer_bos(const sp_tokenizer *tokenizer)
{
    return tokenizer->adds_bos ? BOS : -1;
}

int32_t sp_tokenizer_eos(const sp_tokenizer *tokenizer)
{
    return tokenizer->has_eos ? EOS : -1;
}

bool sp_tokenizer_adds_bos(const sp_tokenizer *tokenizer)
{
    return tokenizer->adds_bos;
}

sp_status sp_chat_tokenize(int32_t **tokens, uint8_t **answer, size_t *n, const sp_tokenizer *tokenizer,
                           const sp_chat_message *messages, size_t n_messages, bool add_generation_prompt)
{
    int32_t *t = *tokens = malloc(4096 * sizeof *t);
    uint8_t *a = *answer = calloc(4096, 1);
    size_t k = 0;
    assert_false(add_generation_prompt);
    if (tokenizer->adds_bos) t[k++] = BOS;
    for (size_t i = 0; i < n_messages; i++) {
        bool assistant = messages[i].role[0] == 'a';
        t[k++] = assistant ? ASSISTANT : messages[i].role[0] == 'u' ? USER : SYSTEM;
        for (const char *c = messages[i].content; *c; c++) a[k] = assistant, t[k++] = *c;
        a[k] = assistant, t[k++] = TURN_END;
        t[k++] = '\n';
    }
    *n = k;
    return SP_OK;
}

/* ---- helpers ------------------------------------------------------------------------------------------------------ */

static const sp_verbalizer verbalizers[] = {{"positive", " pos"}, {"negative", " n"}};

static sp_task sentiment(size_t max_length)
{
    return (sp_task){"R: {text}\nS:", verbalizers, 2, max_length};
}

static sp_row label_row(const char *text, const char *label)
{
    return (sp_row){.kind = SP_ROW_LABEL, .line = 7, .text = text, .label = label};
}

static void assert_context(const sp_encoded_row *row, const sp_tokenizer *tokenizer, const char *want)
{
    int32_t *tokens;
    size_t n;
    sp_tokenize(&tokens, &n, tokenizer, want, SIZE_MAX, SP_TOKENIZE_ADD_BOS | SP_TOKENIZE_PARSE_SPECIAL);
    assert_int_equal(row->n_context, n);
    assert_memory_equal(row->context, tokens, n * sizeof *tokens);
    free(tokens);
}

static void assert_tokens(const int32_t *got, size_t n_got, const int32_t *want, size_t n_want)
{
    assert_int_equal(n_got, n_want);
    assert_memory_equal(got, want, n_want * sizeof *want);
}

static void assert_message(const char *part)
{
    if (!strstr(sp_message(), part)) print_error("message: %s\n", sp_message());
    assert_non_null(strstr(sp_message(), part));
}

static sp_dataset *load(const char *jsonl)
{
    char path[] = "/tmp/test_task_XXXXXX.jsonl";
    int fd = mkstemps(path, 6);
    sp_dataset *data;
    assert_true(fd >= 0);
    assert_int_equal(write(fd, jsonl, strlen(jsonl)), strlen(jsonl));
    close(fd);
    assert_int_equal(sp_dataset_load(&data, path, NULL), SP_OK);
    unlink(path);
    return data;
}

/* ---- labels --------------------------------------------------------------------------------------------------------- */

static void test_label(void **state)
{
    (void)state;
    static const int32_t pos[] = {BLANK + 'p', 'o', 's'}, neg[] = {BLANK + 'n'};
    sp_task task = sentiment(0);
    sp_row row = label_row("a <e> film\n", "negative");
    sp_encoded_row encoded;
    assert_int_equal(sp_task_encode(&encoded, &task, &with_bos, &row, 100), SP_OK);
    assert_context(&encoded, &with_bos, "R: a <e> film\n\nS:"); /* both seams are spanned by a token */
    assert_int_equal(encoded.n_candidates, 2);
    assert_int_equal(encoded.right, 1);
    assert_false(encoded.truncated);
    assert_tokens(encoded.candidates[0], encoded.n_candidate[0], pos, 3);
    assert_tokens(encoded.candidates[1], encoded.n_candidate[1], neg, 1);
    sp_encoded_row_clear(&encoded);

    row.label = NULL;
    assert_int_equal(sp_task_encode(&encoded, &task, &plain, &row, 100), SP_OK);
    assert_true(encoded.right == SIZE_MAX);
    sp_encoded_row_clear(&encoded);
    row.label = "neutral";
    assert_int_equal(sp_task_encode(&encoded, &task, &plain, &row, 100), SP_ERR_MISMATCH);
    assert_message("line 7: label \"neutral\"");
}

/* The text is 6 tokens: " abcde" has the seam's blank in its first. */
static void test_cut_by_max_length(void **state)
{
    (void)state;
    static const int32_t cut[] = {BOS, 'R', ':', ' ', 'd', 'e', 'f', '\n', 'S', ':'};
    sp_row row = label_row("abcdef", "positive");
    sp_encoded_row encoded;
    sp_task task = sentiment(6);
    assert_int_equal(sp_task_encode(&encoded, &task, &with_bos, &row, 100), SP_OK);
    assert_context(&encoded, &with_bos, "R: abcdef\nS:");
    assert_false(encoded.truncated);
    sp_encoded_row_clear(&encoded);
    task = sentiment(3);
    assert_int_equal(sp_task_encode(&encoded, &task, &with_bos, &row, 100), SP_OK);
    assert_tokens(encoded.context, encoded.n_context, cut, sizeof cut / sizeof *cut);
    assert_true(encoded.truncated);
    sp_encoded_row_clear(&encoded);
}

/* Every room from none to plenty: what fits is the whole or the longest tail of it, never a row too many. */
static void test_cut_by_room(void **state)
{
    (void)state;
    const char *text = "ab cd\nef\n";
    sp_task task = sentiment(0);
    sp_row row = label_row(text, "positive");
    sp_encoded_row whole, encoded;
    assert_int_equal(sp_task_encode(&whole, &task, &with_bos, &row, 1000), SP_OK);
    size_t n_whole = whole.n_context + 3;
    for (size_t room = 0; room < n_whole + 3; room++) {
        sp_status st = sp_task_encode(&encoded, &task, &with_bos, &row, room);
        /* BOS, "R", ":", " ", one token of text (the line ends that span the seam), "S", ":" and three of " pos" */
        assert_int_equal(st, room < 10 ? SP_ERR_ARGUMENT : SP_OK);
        if (st) {
            assert_message("line 7: the template takes");
            continue;
        }
        assert_int_equal(encoded.truncated, room < n_whole);
        assert_int_equal(encoded.n_context, room < n_whole ? room - 3 : whole.n_context);
        size_t n_tail = room < n_whole ? encoded.n_context - 4 : whole.n_context;
        assert_memory_equal(encoded.context + encoded.n_context - n_tail, whole.context + whole.n_context - n_tail,
                            n_tail * sizeof(int32_t));
        sp_encoded_row_clear(&encoded);
    }
    sp_encoded_row_clear(&whole);
}

static void test_bad_candidates(void **state)
{
    (void)state;
    static const sp_verbalizer empty[] = {{"positive", ""}};
    sp_task task = {NULL, empty, 1, 0}, none = {0};
    sp_row row = label_row("abc", "positive");
    sp_encoded_row encoded;
    assert_int_equal(sp_task_encode(&encoded, &task, &plain, &row, 100), SP_ERR_ARGUMENT);
    assert_message("label \"positive\"");
    assert_int_equal(sp_task_encode(&encoded, &none, &plain, &row, 100), SP_ERR_ARGUMENT);
    sp_encoded_row_clear(&encoded); /* a failure leaves nothing to free, and freeing it is fine */
}

/* ---- the other kinds -------------------------------------------------------------------------------------------------- */

static void test_completion(void **state)
{
    (void)state;
    static const int32_t answer[] = {'4', EOS}, cut[] = {'Q', ':', '+', '2', 'A'};
    sp_task task = {"Q:{text}A", NULL, 0, 2};
    sp_row row = {.kind = SP_ROW_COMPLETION, .line = 3, .prompt = "2+2", .completion = "4"};
    sp_encoded_row encoded;
    assert_int_equal(sp_task_encode(&encoded, &task, &plain, &row, 100), SP_OK);
    assert_tokens(encoded.context, encoded.n_context, cut, 5);
    assert_int_equal(encoded.n_candidates, 1);
    assert_int_equal(encoded.right, 0);
    assert_tokens(encoded.candidates[0], encoded.n_candidate[0], answer, 2);
    assert_true(encoded.truncated);
    sp_encoded_row_clear(&encoded);
    assert_int_equal(sp_task_encode(&encoded, &task, &plain, &row, 1), SP_ERR_ARGUMENT);
}

static void test_chat(void **state)
{
    (void)state;
    static const sp_chat_message messages[] = {
        {"user", "a"}, {"assistant", "b"}, {"user", "c"}, {"assistant", "de"}, {"user", "thanks"}};
    static const int32_t context[] = {BOS,      USER, 'a',  TURN_END, '\n',     ASSISTANT, 'b',
                                      TURN_END, '\n', USER, 'c',      TURN_END, '\n',      ASSISTANT};
    static const int32_t answer[] = {'d', 'e', TURN_END}, cut[] = {BOS, TURN_END, '\n', ASSISTANT};
    sp_row row = {.kind = SP_ROW_CHAT, .line = 3, .messages = messages, .n_messages = 5};
    sp_task task = {0};
    sp_encoded_row encoded;
    assert_int_equal(sp_task_encode(&encoded, &task, &with_bos, &row, 17), SP_OK);
    assert_tokens(encoded.context, encoded.n_context, context, 14);
    assert_tokens(encoded.candidates[0], encoded.n_candidate[0], answer, 3);
    assert_false(encoded.truncated);
    sp_encoded_row_clear(&encoded);
    assert_int_equal(sp_task_encode(&encoded, &task, &with_bos, &row, 7), SP_OK);
    assert_tokens(encoded.context, encoded.n_context, cut, 4);
    assert_true(encoded.truncated);
    sp_encoded_row_clear(&encoded);
    row.n_messages = 1;
    assert_int_equal(sp_task_encode(&encoded, &task, &with_bos, &row, 17), SP_ERR_ARGUMENT);
}

static void test_text(void **state)
{
    (void)state;
    static const int32_t bos[] = {BOS}, tokens[] = {'a', 'b', 'c'};
    sp_task task = {"not {text} used", NULL, 0, 0};
    sp_row row = {.kind = SP_ROW_TEXT, .line = 3, .text = "abc"};
    sp_encoded_row encoded;
    assert_int_equal(sp_task_encode(&encoded, &task, &plain, &row, 3), SP_OK);
    assert_tokens(encoded.context, encoded.n_context, tokens, 1);
    assert_tokens(encoded.candidates[0], encoded.n_candidate[0], tokens + 1, 2);
    sp_encoded_row_clear(&encoded);
    assert_int_equal(sp_task_encode(&encoded, &task, &with_bos, &row, 3), SP_OK);
    assert_tokens(encoded.context, encoded.n_context, bos, 1);
    assert_tokens(encoded.candidates[0], encoded.n_candidate[0], tokens + 1, 2);
    assert_true(encoded.truncated);
    sp_encoded_row_clear(&encoded);
    row.text = "a";
    assert_int_equal(sp_task_encode(&encoded, &task, &plain, &row, 3), SP_ERR_ARGUMENT);
}

/* ---- tasks and data ---------------------------------------------------------------------------------------------------- */

static void test_copy(void **state)
{
    (void)state;
    sp_task task = sentiment(9), nothing = {0}, *copy;
    assert_int_equal(sp_task_copy(&copy, &task), SP_OK);
    assert_string_equal(copy->template_text, task.template_text);
    assert_ptr_not_equal(copy->template_text, task.template_text);
    assert_int_equal(copy->n_verbalizers, 2);
    assert_string_equal(copy->verbalizers[1].label, "negative");
    assert_string_equal(copy->verbalizers[1].text, " n");
    assert_int_equal(copy->max_length, 9);
    sp_task_free(copy);
    assert_int_equal(sp_task_copy(&copy, &nothing), SP_OK);
    assert_null(copy->template_text);
    assert_null(copy->verbalizers);
    sp_task_free(copy);
}

static void test_resolve(void **state)
{
    (void)state;
    sp_dataset *data =
        load("{\"text\": \"a\", \"label\": \"z\"}\n{\"text\": \"b\", \"label\": 1}\n{\"text\": \"c\", \"label\": \"z\"}\n");
    sp_task task = {.max_length = 5}, *out;
    assert_int_equal(sp_task_resolve(&out, &task, data), SP_OK);
    assert_int_equal(out->n_verbalizers, 2);
    assert_string_equal(out->verbalizers[0].label, "z");
    assert_string_equal(out->verbalizers[0].text, " z");
    assert_string_equal(out->verbalizers[1].text, " 1");
    assert_int_equal(out->max_length, 5);
    sp_task_free(out);

    static const sp_verbalizer one[] = {{"z", " Z"}}, twice[] = {{"z", " Z"}, {"z", " 1"}}, same[] = {{"z", " Z"}, {"1", " Z"}};
    task = (sp_task){NULL, one, 1, 0};
    assert_int_equal(sp_task_resolve(&out, &task, data), SP_ERR_MISMATCH);
    assert_null(out);
    assert_message(".jsonl:2: label \"1\" has no verbalizer");
    task = (sp_task){NULL, twice, 2, 0};
    assert_int_equal(sp_task_resolve(&out, &task, data), SP_ERR_ARGUMENT);
    task = (sp_task){NULL, same, 2, 0};
    assert_int_equal(sp_task_resolve(&out, &task, data), SP_ERR_ARGUMENT);
    task = (sp_task){"no place", NULL, 0, 0};
    assert_int_equal(sp_task_resolve(&out, &task, data), SP_ERR_ARGUMENT);
    assert_message("{text} is missing");
    task = (sp_task){"{text}{text}", NULL, 0, 0};
    assert_int_equal(sp_task_resolve(&out, &task, data), SP_ERR_ARGUMENT);
    assert_message("occurs twice");
    sp_dataset_free(data);
}

static void test_too_many_labels(void **state)
{
    (void)state;
    char *jsonl = malloc(64 * (SP_MAX_LABELS + 1)), *at = jsonl;
    sp_task task = {0}, *out;
    assert_non_null(jsonl);
    for (int i = 0; i <= SP_MAX_LABELS; i++) at += sprintf(at, "{\"text\": \"a\", \"label\": %d}\n", i);
    sp_dataset *data = load(jsonl);
    assert_int_equal(sp_task_resolve(&out, &task, data), SP_ERR_ARGUMENT);
    assert_message(":1025: more than 1024 different labels");
    sp_dataset_free(data);
    free(jsonl);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_label),       cmocka_unit_test(test_cut_by_max_length),
        cmocka_unit_test(test_cut_by_room), cmocka_unit_test(test_bad_candidates),
        cmocka_unit_test(test_completion),  cmocka_unit_test(test_chat),
        cmocka_unit_test(test_text),        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_resolve),     cmocka_unit_test(test_too_many_labels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
