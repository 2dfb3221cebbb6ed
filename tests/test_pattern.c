/* test_pattern.c: patterns in another engine's dialect, and splitters made of them. tests/oracle/tokenizer_json.py compares what
 * they match with Hugging Face's library. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text/pattern.h"
#include "text/splitter.h"

#define ARRAY_LEN(a) (sizeof(a) / sizeof *(a))
#define STRING(s) ((sp_string){(s), strlen(s)})
#define SPACE "\\x{09}-\\x{0d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

static void the_meaning_stays(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *want;
    } cases[] = {
        {"a|b+?c++", "a|b+?c++"},
        {"(a)(?:b)(?i:C)", "(?:a)(?:b)(?i:C)"},
        {"(?<=a)b(?!c)(?>d)", "(?<=a)b(?!c)(?>d)"},
        {"\\s\\S", "[" SPACE "][^" SPACE "]"},
        {"[\\s-]", "[" SPACE "-]"},
        {"^a$", "(?m:^)a(?m:$)"},
        {"a{1,3}+b", "(?:a{1,3})+b"},
        {"x(a|b){2}+", "x(?:(?:a|b){2})+"},
        {"a{,3}b{2,}?", "a{0,3}b{2,}?"},
        {"a{b{,}c{x}", "a\\{b\\{,\\}c\\{x\\}"},
        {"\\v\\u00e9\\x{1F600}\\x41\\-", "\\x{0b}\\x{e9}\\x{1f600}\\x{41}\\-"},
        {"\\p{Zs}[^\\p{Lt}]", "[\\p{Zs}][^\\p{Lt}]"},
        {"\\P{Zs}\\p{^Zs}\\P{^Zs}", "[^\\p{Zs}][^\\p{Zs}][\\p{Zs}]"},
        {"\xe4\xb8\xad[\xe4\xb8\x80-\xe9\xbe\xa5]", "\xe4\xb8\xad[\xe4\xb8\x80-\xe9\xbe\xa5]"},
    };
    sp_buffer out = {0};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        if (sp_pattern_translate(&out, "test", STRING(cases[i].pattern))) fail_msg("%s: %s", cases[i].pattern, sp_message());
        assert_string_equal(out.bytes, cases[i].want);
    }
    sp_buffer_free(&out);
}

static void what_has_no_counterpart_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *words;
    } cases[] = {
        {"\\w", "\\w"},
        {"\\b", "\\b"},
        {"\\h", "\\h"},
        {"(a)\\1", "\\1"},
        {"\\p{Han}", "\\p{Han}"},
        {"\\pL", "\\p"},
        {"\\p{L", "property"},
        {"[a[b]]", "inside"},
        {"[a&&b]", "intersect"},
        {"[]a]", "begins with ]"},
        {"[a", "without an"},
        {"(a", "without its )"},
        {"a)", "without its"},
        {"(?i)a", "(?i)"},
        {"(?m:a)", "(?m"},
        {"(?<n>a)", "(?<n"},
        {"*", "repetition"},
        {"a|+", "repetition"},
        {"a{2}?", "repetition"},
        {"\\x{d800}", "character"},
        {"\\x{1100000}", "ch"},
        {"\\xe9", "byte"},
        {"\\", "escape"},
        {"[\\P{L}]", "compl"},
        {"(?i:\xc3\xa9)", "ASCII"},
        {"(?i:masse)", "neigh"},
        {"(?i:fi)", "neigh"},
        {"\\u", "character"},
    };
    sp_buffer out = {0};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_int_equal(sp_pattern_translate(&out, "file.json", STRING(cases[i].pattern)), SP_ERR_UNSUPPORTED);
        if (!strstr(sp_message(), cases[i].words)) fail_msg("%s: \"%s\"", cases[i].pattern, sp_message());
        assert_non_null(strstr(sp_message(), "file.json"));
    }
    sp_buffer_free(&out);
}

/* ---- splitters ----------------------------------------------------------------------------------------------------------------
 */

static sp_status append_piece(void *user, size_t start, size_t n_bytes)
{
    static const char *text = "ab 12 c";
    sp_status st = sp_buffer_add_string(user, "|");
    return st ? st : sp_buffer_add(user, text + start, n_bytes);
}

static void assert_pieces(const sp_split_stage *stages, size_t n, const char *want)
{
    sp_splitter *s;
    sp_buffer out = {0};
    if (sp_splitter_create_from_stages(&s, "test", stages, n, false, false)) fail_msg("%s", sp_message());
    assert_string_equal(sp_splitter_name(s), "custom");
    assert_int_equal(sp_splitter_split(s, "ab 12 c", 7, append_piece, &out), SP_OK);
    assert_string_equal(out.bytes, want);
    sp_buffer_free(&out);
    sp_splitter_free(s);
}

static void stages_cut_what_the_one_before_left(void **state)
{
    (void)state;
    assert_pieces((sp_split_stage[]){{STRING("\\p{N}"), false}}, 1, "|ab |1|2| c");
    assert_pieces((sp_split_stage[]){{STRING("\\p{N}"), true}}, 1, "|1|2");
    assert_pieces((sp_split_stage[]){{STRING("\\p{N}+"), false}, {STRING("\\s"), true}}, 2, "| | ");
    assert_pieces((sp_split_stage[]){{STRING("\\s"), false}, {STRING("[a-z]"), false}}, 2, "|a|b| |12| |c");
}

static void families_are_recognised(void **state)
{
    (void)state;
    sp_splitter *named, *found, *other;
    const sp_split_stage smollm[] = {{STRING("\\p{N}"), false}, {STRING(SP_GPT2_PATTERN), false}};
    assert_int_equal(sp_splitter_create(&named, "test", "starcoder", 9), SP_OK);
    assert_int_equal(sp_splitter_create_from_stages(&found, "test", smollm, 2, false, false), SP_OK);
    assert_int_equal(sp_splitter_create_from_stages(&other, "test", smollm, 2, false, true), SP_OK);
    assert_string_equal(sp_splitter_name(found), "smollm");
    assert_string_equal(sp_splitter_name(other), "custom");
    assert_true(sp_splitter_hash(found) == sp_splitter_hash(named));
    assert_true(sp_splitter_hash(found) != sp_splitter_hash(other));
    sp_splitter_free(named);
    sp_splitter_free(found);
    sp_splitter_free(other);
}

static void hostile_patterns_end(void **state)
{
    (void)state;
    sp_splitter *s;
    sp_buffer out = {0};
    char text[4000];
    memset(text, 'a', sizeof text);
    assert_int_equal(sp_splitter_create_from_stages(&s, "test", &(sp_split_stage){STRING("a*"), false}, 1, false, false),
                     SP_ERR_UNSUPPORTED);
    assert_non_null(strstr(sp_message(), "empty"));
    assert_int_equal(
        sp_splitter_create_from_stages(&s, "test", &(sp_split_stage){STRING("(?:a|a|aa)+[bc]"), false}, 1, false, false), SP_OK);
    assert_int_equal(sp_splitter_split(s, text, sizeof text, append_piece, &out), SP_ERR_UNSUPPORTED);
    assert_non_null(strstr(sp_message(), "steps"));
    sp_splitter_free(s);
    sp_buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_meaning_stays),
        cmocka_unit_test(what_has_no_counterpart_is_named),
        cmocka_unit_test(stages_cut_what_the_one_before_left),
        cmocka_unit_test(families_are_recognised),
        cmocka_unit_test(hostile_patterns_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
