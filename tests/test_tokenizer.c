/* test_tokenizer.c: what can be said of tokenizers without an oracle: small vocabularies with ids worked out by hand, hostile
 * descriptions, and the shape of the cost. tests/oracle/tokenizer.py has the comparison with Hugging Face. */
#include "tokenizer_fixture.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "text/unicode.h"

static void assert_text(const sp_tokenizer *t, const char *text, unsigned flags, const int32_t *want, size_t n_want)
{
    int32_t *ids;
    size_t n;
    assert_int_equal(sp_tokenize(&ids, &n, t, text, SIZE_MAX, flags), SP_OK);
    assert_int_equal(n, n_want);
    if (n) assert_memory_equal(ids, want, n * sizeof *ids);
    sp_free(ids);
}

#define ASSERT_IDS(t, text, flags, ...)                                                                                            \
    do {                                                                                                                           \
        const int32_t want_[] = {__VA_ARGS__};                                                                                     \
        assert_text(t, text, flags, want_, ARRAY_LEN(want_));                                                                      \
    } while (0)

static void assert_detokenized(const sp_tokenizer *t, const int32_t *ids, size_t n, bool with_special, const char *want)
{
    char *text;
    size_t n_bytes;
    assert_int_equal(sp_detokenize(&text, &n_bytes, t, ids, n, with_special), SP_OK);
    assert_string_equal(text, want);
    assert_int_equal(n_bytes, strlen(want));
    sp_free(text);
}

static void utf8_is_repaired_as_python_does(void **state)
{
    (void)state;
    static const struct {
        const char *bytes, *want;
    } cases[] = {
        /* bytes.decode(errors="replace") of CPython 3.11 */
        {"plain", "plain"},
        {"\x80", "\xef\xbf\xbd"},
        {"a\xc3", "a\xef\xbf\xbd"},
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xe2\x82(", "\xef\xbf\xbd("},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf0\x9f\x98z", "\xef\xbf\xbdz"},
        {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xe4\xb8\xad\xe4\xb8", "\xe4\xb8\xad\xef\xbf\xbd"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        sp_buffer out = {0};
        assert_int_equal(sp_utf8_add_repaired(&out, cases[i].bytes, strlen(cases[i].bytes)), SP_OK);
        assert_string_equal(out.bytes, cases[i].want);
        sp_buffer_free(&out);
    }
    const char *text = " \x1c\xc2\xa0x y\xe3\x80\x80\n";
    size_t n = strlen(text);
    sp_utf8_strip(&text, &n);
    assert_int_equal(n, 3);
    assert_memory_equal(text, "x y", 3);
}

static void bpe_merges_best_pair_first(void **state)
{
    (void)state;
    fixture f;
    fixture_start_bpe(&f, "smollm");
    sp_tokenizer *t = fixture_create(&f);
    assert_string_equal(sp_tokenizer_kind(t), "bpe/smollm");
    ASSERT_IDS(t, "abcab", 0, 97, 96);
    ASSERT_IDS(t, "aabb", 0, 'a' - '!', 96, 'b' - '!');
    ASSERT_IDS(t, "a  12", 0, 'a' - '!', 94, 94, '1' - '!', '2' - '!');
    assert_text(t, "", 0, NULL, 0);
    assert_text(t, "\xc3\xa9", 0, NULL, 0); /* bytes that this vocabulary lacks */
    assert_detokenized(t, (const int32_t[]){97, 94, 96}, 3, false, "abc ab");
    sp_tokenizer_free(t);
}

static void a_whole_word_wins_where_merges_are_ignored(void **state)
{
    (void)state;
    fixture f;
    fixture_start_bpe(&f, "llama-bpe");
    int32_t word = fixture_add(&f, "zebra", SP_TOKEN_NORMAL);
    sp_tokenizer *t = fixture_create(&f);
    ASSERT_IDS(t, "zebra", 0, word);
    ASSERT_IDS(t, "ab", 0, 96);
    sp_tokenizer_free(t);
}

static void added_tokens_are_found_as_flags_say(void **state)
{
    (void)state;
    fixture f;
    fixture_start_bpe(&f, "gpt-2");
    int32_t bos = fixture_add(&f, "<s>", SP_TOKEN_CONTROL), longer = fixture_add(&f, "<s>>", SP_TOKEN_CONTROL);
    int32_t eos = fixture_add(&f, "<e>", SP_TOKEN_CONTROL), user = fixture_add(&f, "ca", SP_TOKEN_USER_DEFINED);
    f.source.bos = bos;
    f.source.eos = eos;
    f.source.add_bos = f.source.add_eos = 1;
    sp_tokenizer *t = fixture_create(&f);
    ASSERT_IDS(t, "abca", 0, 96, user);
    ASSERT_IDS(t, "a<s>>b<s>", SP_TOKENIZE_PARSE_SPECIAL, 'a' - '!', longer, 'b' - '!', bos);
    ASSERT_IDS(t, "<s>", 0, '<' - '!', 's' - '!', '>' - '!');
    ASSERT_IDS(t, "ab", SP_TOKENIZE_ADD_BOS, bos, 96, eos);
    ASSERT_IDS(t, "", SP_TOKENIZE_ADD_BOS, bos, eos);
    assert_true(sp_tokenizer_adds_bos(t));
    assert_true(sp_tokenizer_is_end(t, eos));
    assert_false(sp_tokenizer_is_end(t, bos));
    const int32_t ids[] = {bos, 96, user};
    assert_detokenized(t, ids, 3, false, "abca");
    assert_detokenized(t, ids, 3, true, "<s>abca");
    sp_tokenizer_free(t);
}

static void ends_of_turns_are_known_by_name(void **state)
{
    (void)state;
    fixture f;
    fixture_start_bpe(&f, "gpt-2");
    int32_t end = fixture_add(&f, "<|im_end|>", SP_TOKEN_CONTROL);
    sp_tokenizer *t = fixture_create(&f);
    assert_true(sp_tokenizer_is_end(t, end));
    assert_int_equal(sp_tokenizer_eos(t), -1);
    assert_int_equal(sp_tokenizer_bos(t), -1);
    assert_false(sp_tokenizer_is_end(t, -1));
    sp_tokenizer_free(t);
}

static void tokens_of_another_model_are_refused(void **state)
{
    (void)state;
    static const int32_t bad[] = {-1, 98, INT32_MAX, INT32_MIN};
    fixture f;
    fixture_start_bpe(&f, "gpt-2");
    sp_tokenizer *t = fixture_create(&f);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        char *text;
        size_t n;
        assert_int_equal(sp_detokenize(&text, &n, t, &bad[i], 1, true), SP_ERR_ARGUMENT);
        assert_null(text);
    }
    sp_tokenizer_free(t);
}

static void start_spm(fixture *f)
{
    fixture_start(f, "llama", NULL);
    fixture_add(f, "<unk>", SP_TOKEN_UNKNOWN);
    fixture_add(f, "<s>", SP_TOKEN_CONTROL);
    for (int b = 0; b < 256; b++) {
        snprintf(f->letters[b], sizeof f->letters[b], "<0x%02X>", (unsigned)b);
        fixture_add(f, f->letters[b], SP_TOKEN_BYTE);
    }
    f->source.bos = 1;
    static const char *const pieces[] = {"ab", SP_SPACE_MARK "a", "bc", "abc", SP_SPACE_MARK, "a", "b",
                                         "c"}; /* from 258 on, best first */
    for (size_t i = 0; i < ARRAY_LEN(pieces); i++) fixture_add(f, pieces[i], SP_TOKEN_NORMAL);
}

static void spm_merges_by_score(void **state)
{
    (void)state;
    fixture f;
    start_spm(&f);
    sp_tokenizer *t = fixture_create(&f);
    assert_string_equal(sp_tokenizer_kind(t), "spm");
    ASSERT_IDS(t, "abc", 0, 262, 261); /* a space in front; "ab" outscores the space with "a", then "abc" */
    ASSERT_IDS(t, "a bc", 0, 259, 262, 260);
    ASSERT_IDS(t, "\xc3\xa9", SP_TOKENIZE_ADD_BOS, 1, 262, 2 + 0xc3, 2 + 0xa9); /* spelt in bytes; BOS by habit */
    ASSERT_IDS(t, "<s>a", SP_TOKENIZE_PARSE_SPECIAL, 1, 259);
    assert_detokenized(t, (const int32_t[]){1, 259, 260}, 3, false, "abc");
    assert_detokenized(t, (const int32_t[]){262, 2 + 0xc3, 2 + 0xa9}, 3, false, "\xc3\xa9");
    sp_buffer text = {0};
    assert_int_equal(sp_tokenizer_add_text(&text, t, 259, false), SP_OK);
    assert_string_equal(text.bytes, " a"); /* within a text the space stays */
    sp_buffer_free(&text);
    sp_tokenizer_free(t);
    f.source.add_space_prefix = 0;
    for (size_t i = 0; i < f.source.n_tokens; i++) f.scores[i] += 261; /* some above zero, one at it, some below */
    t = fixture_create(&f);
    ASSERT_IDS(t, "abc", 0, 261);
    ASSERT_IDS(t, "abbc", 0, 258, 260);
    sp_tokenizer_free(t);
}

static void hostile_descriptions_are_refused(void **state)
{
    (void)state;
    fixture f;
    fixture_start(&f, "gpt2", "smollm");
    assert_create_fails(&f, SP_ERR_FORMAT, "empty");
    fixture_start(&f, "t5", "smollm");
    assert_create_fails(&f, SP_ERR_UNSUPPORTED, "llama");
    fixture_start_bpe(&f, "nonsense");
    assert_create_fails(&f, SP_ERR_UNSUPPORTED, "smollm, starcoder");
    fixture_start_bpe(&f, "smollm");
    f.source.pre = (sp_string){0};
    assert_create_fails(&f, SP_ERR_UNSUPPORTED, "tokenizer.ggml.pre");
    fixture_start_bpe(&f, "smollm");
    f.source.merges = NULL;
    assert_create_fails(&f, SP_ERR_FORMAT, "merges");
    fixture_start_bpe(&f, "smollm");
    fixture_add(&f, "ab", SP_TOKEN_NORMAL);
    assert_create_fails(&f, SP_ERR_FORMAT, "tokens 96 and 98");
    fixture_start_bpe(&f, "smollm");
    f.types[3] = 77;
    assert_create_fails(&f, SP_ERR_FORMAT, "type 77");
    static const struct {
        const char *merge, *words;
    } merges[] = {
        {"xyz", "no pair"}, {"", "no pair"},    {" ", "no pair"}, {"a ", "no pair"},
        {" a", "no pair"},  {"a nope", "part"}, {"a c", "makes"}, {"a b", "twice"},
    };
    for (size_t i = 0; i < ARRAY_LEN(merges); i++) {
        fixture_start_bpe(&f, "smollm");
        fixture_merge(&f, merges[i].merge);
        assert_create_fails(&f, SP_ERR_FORMAT, merges[i].words);
    }
    fixture_start_bpe(&f, "smollm");
    f.source.eos = 98;
    assert_create_fails(&f, SP_ERR_FORMAT, "EOS");
    start_spm(&f);
    f.source.scores = NULL;
    assert_create_fails(&f, SP_ERR_FORMAT, "scores");
    start_spm(&f);
    f.scores[9] = 0.0f / 0.0f;
    assert_create_fails(&f, SP_ERR_FORMAT, "token 9");
    start_spm(&f);
    f.tokens[4].n_bytes = (size_t)UINT32_MAX + 1;
    assert_create_fails(&f, SP_ERR_FORMAT, "4 GiB");
}

static void odd_tokens_do_no_harm(void **state)
{
    (void)state;
    fixture f;
    fixture_start_bpe(&f, "smollm");
    int32_t empty = fixture_add(&f, "", SP_TOKEN_NORMAL);
    fixture_add(&f, "", SP_TOKEN_CONTROL);
    int32_t foreign = fixture_add(&f, "\xe2\x82\xac", SP_TOKEN_NORMAL), broken = fixture_add(&f, "\xff\xc4", SP_TOKEN_CONTROL);
    sp_tokenizer *t = fixture_create(&f);
    ASSERT_IDS(t, "ab", SP_TOKENIZE_PARSE_SPECIAL, 96);
    assert_detokenized(t, (const int32_t[]){empty, foreign, broken}, 3, true, "\xe2\x82\xac\xff\xc4");
    sp_tokenizer_free(t);
    start_spm(&f);
    fixture_add(&f, "<0xZ", SP_TOKEN_BYTE);
    int32_t truncated = fixture_add(&f, "\xe2\x96", SP_TOKEN_NORMAL);
    t = fixture_create(&f);
    assert_detokenized(t, (const int32_t[]){truncated - 1, truncated}, 2, true, "<0xZ\xe2\x96");
    sp_tokenizer_free(t);
}

static void the_hash_sees_what_decides_ids(void **state)
{
    (void)state;
    uint64_t hashes[8];
    for (size_t i = 0; i < ARRAY_LEN(hashes); i++) {
        fixture f;
        fixture_start_bpe(&f, i == 1 ? "gpt-2" : i == 7 ? "starcoder" : "smollm");
        fixture_add(&f, i == 2 ? "ba" : "bc", SP_TOKEN_NORMAL);
        if (i == 3) fixture_merge(&f, "b c");
        if (i == 4) f.types[f.source.n_tokens - 1] = SP_TOKEN_USER_DEFINED;
        if (i == 5) f.source.bos = 1;
        if (i == 6) f.source.chat_template = STRING("<|im_start|>");
        sp_tokenizer *t = fixture_create(&f);
        hashes[i] = sp_tokenizer_hash(t);
        sp_tokenizer_free(t);
    }
    for (size_t i = 1; i < 6; i++)
        for (size_t k = 0; k < i; k++) assert_true(hashes[i] != hashes[k]);
    assert_true(hashes[6] == hashes[0]); /* templates may be edited */
    assert_true(hashes[7] == hashes[0]); /* another name for the same pre-tokeniser */
}

/* Eight times the text may take eight times the time and a little; were a path quadratic, it would be sixty-four. Processor time:
 * what else the machine does is not the tokenizer's. */
static void long_runs_are_not_quadratic(void **state)
{
    (void)state;
    static const char *const units[] = {"a", "ab", "abc", " ", "\n", "1", "'", "<s", "e\xcc\x81", "\xff", "\xcc\x81\xcc\xa7"};
    static const char *const families[] = {"smollm", "llama-bpe", "qwen2", "gpt-4o", "deepseek-v3"};
    for (size_t k = 0; k <= ARRAY_LEN(families); k++) {
        fixture f;
        if (k < ARRAY_LEN(families))
            fixture_start_bpe(&f, families[k]);
        else
            start_spm(&f);
        fixture_add(&f, k < ARRAY_LEN(families) ? "<s>" : "</s>", SP_TOKEN_CONTROL);
        sp_tokenizer *t = fixture_create(&f);
        for (size_t u = 0; u < ARRAY_LEN(units); u++) {
            double seconds[2];
            for (size_t round = 0; round < 2; round++) {
                size_t n_bytes = (size_t)1 << (round ? 19 : 16), n, length = strlen(units[u]);
                char *text = malloc(n_bytes + length);
                int32_t *ids;
                for (size_t i = 0; i < n_bytes; i += length) memcpy(text + i, units[u], length);
                const clock_t start = clock();
                assert_int_equal(sp_tokenize(&ids, &n, t, text, n_bytes, 0), SP_OK);
                seconds[round] = (double)(clock() - start) / CLOCKS_PER_SEC;
                sp_free(ids);
                free(text);
            }
            if (seconds[1] > 40 * seconds[0] + 0.5)
                fail_msg("family %zu, \"%s\": 64 KiB take %.3f s, 512 KiB %.3f s", k, units[u], seconds[0], seconds[1]);
        }
        sp_tokenizer_free(t);
    }
}

/* The model of the demo, where it has been fetched. */
static void the_real_model_loads(void **state)
{
    (void)state;
    const char *cache = getenv("SOFTPROMPT_CACHE");
    char path[4096];
    snprintf(path, sizeof path, "%s/models/SmolLM2-135M-Instruct.Q4_1.gguf", cache ? cache : ".");
    if (access(path, R_OK)) skip();
    sp_gguf *gguf;
    sp_tokenizer *t;
    assert_int_equal(sp_gguf_open(&gguf, path), SP_OK);
    assert_int_equal(sp_tokenizer_from_gguf(&t, gguf), SP_OK);
    sp_gguf_close(gguf);
    assert_int_equal(sp_tokenizer_n_vocab(t), 49152);
    assert_string_equal(sp_tokenizer_kind(t), "bpe/smollm");
    assert_string_equal(sp_tokenizer_chat_family(t), "chatml");
    assert_false(sp_tokenizer_adds_bos(t));
    assert_int_equal(sp_tokenizer_bos(t), 1);
    ASSERT_IDS(t, " positive", 0, 2731);
    ASSERT_IDS(t, " negative", 0, 3524);
    sp_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(utf8_is_repaired_as_python_does),
        cmocka_unit_test(bpe_merges_best_pair_first),
        cmocka_unit_test(a_whole_word_wins_where_merges_are_ignored),
        cmocka_unit_test(added_tokens_are_found_as_flags_say),
        cmocka_unit_test(ends_of_turns_are_known_by_name),
        cmocka_unit_test(tokens_of_another_model_are_refused),
        cmocka_unit_test(spm_merges_by_score),
        cmocka_unit_test(hostile_descriptions_are_refused),
        cmocka_unit_test(odd_tokens_do_no_harm),
        cmocka_unit_test(the_hash_sees_what_decides_ids),
        cmocka_unit_test(long_runs_are_not_quadratic),
        cmocka_unit_test(the_real_model_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
