/* test_chat.c: chat templates by family: what is refused, what is literal, what is marked as the answer.
 * tests/oracle/tokenizer.py holds the text itself against the templates. */
#include "tokenizer_fixture.h"

/* The fixture's characters, the given special tokens, and a template. */
static sp_tokenizer *create(fixture *f, const char *template_text, const char *const *special, size_t n_special)
{
    fixture_start_bpe(f, "gpt-2");
    for (size_t i = 0; i < n_special; i++) fixture_add(f, special[i], SP_TOKEN_CONTROL);
    if (template_text) f->source.chat_template = STRING(template_text);
    f->source.bos = 98;
    f->source.eos = 99;
    return fixture_create(f);
}

static const char *const chatml_tokens[] = {"<|im_start|>", "<|im_end|>"};
static const char chatml[] = "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}";

/* The conversation as text, special tokens included; sp_free. */
static char *render(const sp_tokenizer *t, const sp_chat_message *messages, size_t n_messages, bool open_answer)
{
    int32_t *ids;
    size_t n, n_bytes;
    char *text;
    if (sp_chat_tokenize(&ids, NULL, &n, t, messages, n_messages, open_answer)) fail_msg("%s", sp_message());
    assert_int_equal(sp_detokenize(&text, &n_bytes, t, ids, n, true), SP_OK);
    sp_free(ids);
    return text;
}

static void assert_refused(const sp_tokenizer *t, const sp_chat_message *messages, size_t n, sp_status status, const char *words)
{
    int32_t *ids;
    uint8_t *answer;
    size_t n_ids;
    assert_int_equal(sp_chat_tokenize(&ids, &answer, &n_ids, t, messages, n, false), status);
    assert_null(ids);
    assert_null(answer);
    if (!strstr(sp_message(), words)) fail_msg("\"%s\" does not say \"%s\"", sp_message(), words);
}

static void families_are_told_apart(void **state)
{
    (void)state;
    static const struct {
        const char *template_text, *family;
    } cases[] = {
        {chatml, "chatml"},
        {"<|start_header_id|>", "llama3"},
        {"<start_of_turn>", "gemma"},
        {"[INST] <<SYS>>", "llama2"},
        {"[INST]", "mistral"},
        {"<|user|> eos_token", "zephyr"},
        {"<|user|> <|end|> eos_token", "none"},
        {"", "none"},
        {NULL, "none"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        fixture f;
        sp_tokenizer *t = create(&f, cases[i].template_text, chatml_tokens, 2);
        assert_string_equal(sp_tokenizer_chat_family(t), cases[i].family);
        sp_tokenizer_free(t);
    }
}

static void what_cannot_be_written_is_refused(void **state)
{
    (void)state;
    static const sp_chat_message user = {"user", "x"}, no_role = {NULL, "x"}, no_content = {"user", NULL};
    static const sp_chat_message twice[] = {{"user", "x"}, {"user", "y"}}, system[] = {{"system", "x"}, {"user", "y"}},
                                 tool = {"tool", "x"};
    fixture f;
    sp_tokenizer *t = create(&f, NULL, chatml_tokens, 2);
    assert_refused(t, &user, 1, SP_ERR_UNSUPPORTED, "chatml, llama3");
    sp_tokenizer_free(t);
    t = create(&f, "something else", chatml_tokens, 2);
    assert_refused(t, &user, 1, SP_ERR_UNSUPPORTED, "no family");
    sp_tokenizer_free(t);
    t = create(&f, chatml, chatml_tokens, 2);
    assert_refused(t, &user, 0, SP_ERR_ARGUMENT, "without messages");
    assert_refused(t, &no_role, 1, SP_ERR_ARGUMENT, "message 1");
    assert_refused(t, &no_content, 1, SP_ERR_ARGUMENT, "message 1");
    sp_tokenizer_free(t);
    t = create(&f, "<start_of_turn>", chatml_tokens, 2);
    assert_refused(t, twice, 2, SP_ERR_ARGUMENT, "message 2");
    sp_tokenizer_free(t);
    t = create(&f, "'[INST] ' eos_token", chatml_tokens, 2);
    assert_refused(t, system, 2, SP_ERR_ARGUMENT, "first user message");
    sp_tokenizer_free(t);
    t = create(&f, "<|user|> eos_token", chatml_tokens, 2);
    assert_refused(t, &tool, 1, SP_ERR_ARGUMENT, "\"tool\"");
    sp_tokenizer_free(t);
}

static void content_is_literal_and_answers_are_marked(void **state)
{
    (void)state;
    static const sp_chat_message messages[] = {{"user", "<|im_end|>"}, {"assistant", "abc<|im_start|>"}};
    fixture f;
    sp_tokenizer *t = create(&f, chatml, chatml_tokens, 2);
    int32_t *ids;
    uint8_t *answer;
    size_t n, n_special[2] = {0}, n_marked = 0, first = SIZE_MAX;
    assert_int_equal(sp_chat_tokenize(&ids, &answer, &n, t, messages, 2, true), SP_OK);
    for (size_t i = 0; i < n; i++) {
        if (ids[i] == 98 || ids[i] == 99) n_special[ids[i] - 98]++;
        if (answer[i] && first == SIZE_MAX) first = i;
        n_marked += answer[i];
    }
    assert_int_equal(n_special[0], 3); /* two turns and the opening of a third */
    assert_int_equal(n_special[1], 2);
    assert_int_equal(n_marked, 1 + strlen("<|im_start|>") + 1);
    assert_int_equal(ids[first], 97);                /* "abc" */
    assert_int_equal(ids[first + n_marked - 1], 99); /* its end of turn; the line end behind it is the template's */
    sp_free(ids);
    sp_free(answer);
    sp_tokenizer_free(t);
}

static void a_default_system_prompt_is_the_templates(void **state)
{
    (void)state;
    static const sp_chat_message user = {"user", "x"}, system[] = {{"system", "s"}, {"user", "x"}};
    static const char *const templates[] = {"'<|im_start|>system\nBe good.\n2<|im_end|>\n'",
                                            "'<|im_start|>system\\nBe good.\\n2<|im_end|>\\n'",
                                            "'<|im_start|>system\\n' + x '<|im_start|>system\\nBe good.\\n2<|im_end|>\\n'"};
    for (size_t i = 0; i < ARRAY_LEN(templates); i++) {
        fixture f;
        sp_tokenizer *t = create(&f, templates[i], chatml_tokens, 2);
        char *text = render(t, &user, 1, false);
        assert_string_equal(text, "<|im_start|>system\nBe good.\n2<|im_end|>\n<|im_start|>user\nx<|im_end|>\n");
        sp_free(text);
        text = render(t, system, 2, true);
        assert_string_equal(text, "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
        sp_free(text);
        sp_tokenizer_free(t);
    }
}

static void invalid_utf8_in_content_is_repaired(void **state)
{
    (void)state;
    static const sp_chat_message broken[] = {{"user", "\xff\xe2\x82"}, {"assistant", "\x80"}};
    static const char *const templates[] = {chatml,   "<|start_header_id|>", "<start_of_turn>", "[INST] <<SYS>>",
                                            "[INST]", "<|user|> eos_token"};
    for (size_t i = 0; i < ARRAY_LEN(templates); i++) {
        fixture f;
        sp_tokenizer *t = create(&f, templates[i], chatml_tokens, 2);
        sp_free(render(t, broken, 2, true));
        sp_tokenizer_free(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families_are_told_apart),
        cmocka_unit_test(what_cannot_be_written_is_refused),
        cmocka_unit_test(content_is_literal_and_answers_are_marked),
        cmocka_unit_test(a_default_system_prompt_is_the_templates),
        cmocka_unit_test(invalid_utf8_in_content_is_repaired),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
