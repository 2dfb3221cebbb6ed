/* chat.c: a conversation as the model's chat template would write it, then as tokens.
 *
 * A template is a Jinja program. Running it would take an interpreter; nearly all models share six ways of writing a
 * conversation, so the family is told by its tell-tale strings, and the points in which members differ (a default system
 * prompt, BOS, a space before an answer) are read off the template's text. What is written is cut into regions: the
 * template's own text may hold special tokens, a message's content may not, and answers are marked. */
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "text/internal.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

/* ---- text with regions ---------------------------------------------------------------------------------------------------- */

typedef struct chat {
    const sp_tokenizer *tokenizer;
    const char *template_text;
    const sp_chat_message *messages;
    size_t n_messages;
    bool add_generation_prompt;
    sp_buffer text;
    sp_text_region *regions;
    size_t n_regions, capacity;
    sp_status status; /* of the first write that failed; later ones do nothing */
} chat;

enum part { PLAIN, ANSWER };

static void close_region(chat *c, bool special, bool answer)
{
    sp_text_region *last = c->n_regions ? &c->regions[c->n_regions - 1] : NULL;
    if (last && last->special == special && last->answer == answer) {
        last->end = c->text.n_bytes;
        return;
    }
    if (last && last->end == c->text.n_bytes) return;
    if (c->n_regions == c->capacity) {
        size_t capacity = c->capacity ? 2 * c->capacity : 16;
        sp_text_region *grown = realloc(c->regions, capacity * sizeof *grown);
        if (!grown) {
            c->status = sp_fail_no_memory(capacity * sizeof *grown);
            return;
        }
        c->regions = grown;
        c->capacity = capacity;
    }
    c->regions[c->n_regions++] = (sp_text_region){c->text.n_bytes, special, answer};
}

/* The template's own text: special tokens are parsed. */
static void write(chat *c, const char *text, enum part part)
{
    if (c->status || !*text) return;
    if (!(c->status = sp_buffer_add_string(&c->text, text))) close_region(c, true, part == ANSWER);
}

/* What people wrote: literal. */
static void write_content(chat *c, const char *text, size_t n_bytes, enum part part)
{
    if (c->status || !n_bytes) return;
    if (!(c->status = sp_utf8_add_repaired(&c->text, text, n_bytes))) close_region(c, false, part == ANSWER);
}

static void write_message(chat *c, const char *content, bool strip, enum part part)
{
    sp_buffer repaired = {0}; /* stripping reads characters */
    if (!c->status) c->status = sp_utf8_add_repaired(&repaired, content, strlen(content));
    const char *text = repaired.bytes;
    size_t n_bytes = repaired.n_bytes;
    if (strip) sp_utf8_strip(&text, &n_bytes);
    write_content(c, text, n_bytes, part);
    sp_buffer_free(&repaired);
}

static void write_token(chat *c, int32_t token, enum part part)
{
    sp_buffer name = {0};
    if (c->status || token < 0) return;
    if (!(c->status = sp_tokenizer_add_text(&name, c->tokenizer, token, true))) write(c, name.bytes ? name.bytes : "", part);
    sp_buffer_free(&name);
}

static void write_bos(chat *c)
{
    write_token(c, c->tokenizer->bos, PLAIN);
}

static void write_eos(chat *c)
{
    write_token(c, c->tokenizer->eos, ANSWER);
}

/* ---- reading the template ------------------------------------------------------------------------------------------------- */

static bool has(const chat *c, const char *string)
{
    return strstr(c->template_text, string) != NULL;
}

/* Is the Jinja literal in the template, with either kind of quotation marks? Written here with single ones. */
static bool has_quoted(const chat *c, const char *expression)
{
    char doubled[128];
    size_t i = 0;
    for (; expression[i] && i + 1 < sizeof doubled; i++) doubled[i] = expression[i] == '\'' ? '"' : expression[i];
    doubled[i] = 0;
    return has(c, expression) || has(c, doubled);
}

static bool strips_content(const chat *c)
{
    return has_quoted(c, "['content'] | trim") || has_quoted(c, "['content']|trim") || has(c, "content.strip()") ||
           has_quoted(c, "['content'].strip()");
}

static bool is_role(const chat *c, size_t i, const char *role)
{
    return strcmp(c->messages[i].role, role) == 0;
}

static bool has_system(const chat *c)
{
    return is_role(c, 0, "system");
}

static sp_status fail_role(const chat *c, size_t i, const char *remedy)
{
    return sp_fail(SP_ERR_ARGUMENT, "message %zu: role \"%s\" cannot stand here in this model's chat template; %s", i + 1,
                   c->messages[i].role, remedy);
}

/* From `first` on: user, assistant, user, ... */
static sp_status check_alternation(const chat *c, size_t first)
{
    for (size_t i = first; i < c->n_messages; i++)
        if (!is_role(c, i, (i - first) % 2 ? "assistant" : "user"))
            return fail_role(c, i, "after an optional system message, user and assistant must take turns, the user first");
    return SP_OK;
}

/* ---- the families ---------------------------------------------------------------------------------------------------------- */

/* A literal "<|im_start|>system\n...<|im_end|>" in the template is what it writes where no system message comes first. The
 * newline may be the character itself or Jinja's escape; a quotation mark or brace means that this is no whole literal. */
static void write_default_system(chat *c)
{
    static const char opening[] = "<|im_start|>system", closing[] = "<|im_end|>";
    for (const char *at = strstr(c->template_text, opening); at; at = strstr(at + 1, opening)) {
        const char *text = at + sizeof opening - 1, *end = strstr(text, closing);
        size_t newline = *text == '\n' ? 1 : strncmp(text, "\\n", 2) == 0 ? 2 : 0;
        if (!newline || !end || strcspn(text, "'\"{}") < (size_t)(end - text)) continue;
        write(c, "<|im_start|>system\n", PLAIN);
        for (text += newline; text < end; text++) {
            bool escaped = strncmp(text, "\\n", 2) == 0;
            char letter[2] = {escaped ? '\n' : *text, 0};
            write(c, letter, PLAIN);
            text += escaped;
        }
        write(c, "<|im_end|>\n", PLAIN);
        return;
    }
}

static sp_status write_chatml(chat *c)
{
    if (has(c, "bos_token")) write_bos(c);
    if (!has_system(c)) write_default_system(c);
    for (size_t i = 0; i < c->n_messages; i++) {
        enum part part = is_role(c, i, "assistant") ? ANSWER : PLAIN;
        write(c, "<|im_start|>", PLAIN);
        write_message(c, c->messages[i].role, false, PLAIN);
        write(c, "\n", PLAIN);
        write_message(c, c->messages[i].content, strips_content(c), part);
        write(c, "<|im_end|>", part);
        write(c, "\n", PLAIN);
    }
    if (c->add_generation_prompt) write(c, "<|im_start|>assistant\n", PLAIN);
    return SP_OK;
}

/* Llama 3.1 and later always open with a system turn that names two dates. Where the template would ask the clock, the date
 * that it falls back to is taken: the same input must give the same tokens tomorrow. */
static void write_llama3_dates(chat *c)
{
    static const char fallback[] = "date_string = \"";
    const char *date = strstr(c->template_text, fallback);
    write(c, "Cutting Knowledge Date: December 2023\nToday Date: ", PLAIN);
    if (date) {
        date += sizeof fallback - 1;
        write_content(c, date, strcspn(date, "\""), PLAIN);
    }
    write(c, "\n\n", PLAIN);
}

static void open_llama3_turn(chat *c, const char *role)
{
    write(c, "<|start_header_id|>", PLAIN);
    write_message(c, role, false, PLAIN);
    write(c, "<|end_header_id|>\n\n", PLAIN);
}

static sp_status write_llama3(chat *c)
{
    bool dates = has(c, "Cutting Knowledge Date: December 2023");
    size_t first = 0;
    if (has(c, "bos_token")) write_bos(c);
    if (dates) {
        open_llama3_turn(c, "system");
        write_llama3_dates(c);
        if (has_system(c)) write_message(c, c->messages[first++].content, true, PLAIN);
        write(c, "<|eot_id|>", PLAIN);
    }
    for (size_t i = first; i < c->n_messages; i++) {
        enum part part = is_role(c, i, "assistant") ? ANSWER : PLAIN;
        open_llama3_turn(c, c->messages[i].role);
        write_message(c, c->messages[i].content, strips_content(c), part);
        write(c, "<|eot_id|>", part);
    }
    if (c->add_generation_prompt) open_llama3_turn(c, "assistant");
    return SP_OK;
}

/* A system message goes in front of the first user's, as Gemma 3's template does; Gemma 1 and 2 have no other place for it. */
static sp_status write_gemma(chat *c)
{
    size_t first = has_system(c);
    sp_status st = check_alternation(c, first);
    if (st) return st;
    if (has(c, "bos_token")) write_bos(c);
    for (size_t i = first; i < c->n_messages; i++) {
        enum part part = is_role(c, i, "assistant") ? ANSWER : PLAIN;
        write(c, part == ANSWER ? "<start_of_turn>model\n" : "<start_of_turn>user\n", PLAIN);
        if (i == first && first) {
            write_message(c, c->messages[0].content, false, PLAIN);
            write(c, "\n\n", PLAIN);
        }
        write_message(c, c->messages[i].content, true, part);
        write(c, "<end_of_turn>", part);
        write(c, "\n", PLAIN);
    }
    if (c->add_generation_prompt) write(c, "<start_of_turn>model\n", PLAIN);
    return SP_OK;
}

/* The template strips the system block and the first user's text as one: with no text, the block's line ends go as well. */
static void write_llama2_user(chat *c, const char *system, const char *content)
{
    sp_buffer repaired = {0};
    if (!c->status) c->status = sp_utf8_add_repaired(&repaired, content, strlen(content));
    const char *text = repaired.bytes ? repaired.bytes : "", *stripped = text;
    size_t n_bytes = repaired.n_bytes;
    sp_utf8_strip(&stripped, &n_bytes);
    if (system) {
        write(c, "<<SYS>>\n", PLAIN);
        write_message(c, system, false, PLAIN);
        write(c, n_bytes ? "\n<</SYS>>\n\n" : "\n<</SYS>>", PLAIN);
        if (n_bytes) {
            n_bytes += (size_t)(stripped - text);
            stripped = text;
        }
    }
    write_content(c, stripped, n_bytes, PLAIN);
    sp_buffer_free(&repaired);
}

static sp_status write_llama2(chat *c)
{
    bool bos_each_turn = has_quoted(c, "bos_token + '[INST] '");
    size_t first = has_system(c);
    sp_status st = check_alternation(c, first);
    if (st) return st;
    if (!bos_each_turn && has(c, "bos_token")) write_bos(c);
    for (size_t i = first; i < c->n_messages; i++) {
        if (is_role(c, i, "user")) {
            if (bos_each_turn) write_bos(c);
            write(c, "[INST] ", PLAIN);
            write_llama2_user(c, i == first && first ? c->messages[0].content : NULL, c->messages[i].content);
            write(c, " [/INST]", PLAIN);
        } else {
            write(c, " ", ANSWER);
            write_message(c, c->messages[i].content, true, ANSWER);
            write(c, " ", ANSWER);
            write_eos(c);
        }
    }
    return SP_OK;
}

/* Members differ in the spaces around the marks, and in which user message takes the system message: the first or the last. */
static sp_status write_mistral(chat *c)
{
    const char *opening = has_quoted(c, "' [INST] '") ? " [INST] " : has_quoted(c, "'[INST] '") ? "[INST] " : "[INST]";
    const char *closing = has_quoted(c, "' [/INST]'") ? " [/INST]" : "[/INST]";
    const char *before_answer = has_quoted(c, "' ' + message['content']") ? " " : "";
    const char *after_answer = has_quoted(c, "eos_token + ' '") || has_quoted(c, "eos_token+' '") ? " " : "";
    size_t first = has_system(c), taker = has(c, "loop.last and system_message") ? c->n_messages - 1 : first;
    if (first && !has(c, "system_message")) return fail_role(c, 0, "put the instruction into the first user message");
    sp_status st = check_alternation(c, first);
    if (st) return st;
    if (has(c, "bos_token")) write_bos(c);
    for (size_t i = first; i < c->n_messages; i++) {
        if (is_role(c, i, "user")) {
            write(c, opening, PLAIN);
            if (first && i == taker) {
                write_message(c, c->messages[0].content, false, PLAIN);
                write(c, "\n\n", PLAIN);
            }
            write_message(c, c->messages[i].content, false, PLAIN);
            write(c, closing, PLAIN);
        } else {
            write(c, before_answer, ANSWER);
            write_message(c, c->messages[i].content, strips_content(c), ANSWER);
            write_eos(c);
            write(c, after_answer, PLAIN);
        }
    }
    return SP_OK;
}

static sp_status write_zephyr(chat *c)
{
    if (has(c, "bos_token")) write_bos(c);
    for (size_t i = 0; i < c->n_messages; i++) {
        bool user = is_role(c, i, "user"), answer = is_role(c, i, "assistant");
        if (!user && !answer && !is_role(c, i, "system")) return fail_role(c, i, "use system, user or assistant");
        write(c, user ? "<|user|>\n" : answer ? "<|assistant|>\n" : "<|system|>\n", PLAIN);
        write_message(c, c->messages[i].content, false, answer ? ANSWER : PLAIN);
        write_token(c, c->tokenizer->eos, answer ? ANSWER : PLAIN);
        write(c, "\n", PLAIN);
    }
    if (c->add_generation_prompt) write(c, "<|assistant|>\n", PLAIN);
    return SP_OK;
}

typedef struct family {
    const char *name;
    const char *with, *and_with, *without; /* strings of the template; NULL: no condition */
    sp_status (*write)(chat *c);
} family;

static const family families[] = {
    {"chatml", "<|im_start|>", NULL, NULL, write_chatml},  {"llama3", "<|start_header_id|>", NULL, NULL, write_llama3},
    {"gemma", "<start_of_turn>", NULL, NULL, write_gemma}, {"llama2", "[INST]", "<<SYS>>", NULL, write_llama2},
    {"mistral", "[INST]", NULL, NULL, write_mistral},      {"zephyr", "<|user|>", "eos_token", "<|end|>", write_zephyr},
};
enum { N_FAMILIES = sizeof families / sizeof *families };

static const family *find_family(const char *template_text)
{
    for (size_t i = 0; template_text && i < N_FAMILIES; i++) {
        const family *f = &families[i];
        if (strstr(template_text, f->with) && (!f->and_with || strstr(template_text, f->and_with)) &&
            (!f->without || !strstr(template_text, f->without)))
            return f;
    }
    return NULL;
}

const char *sp_tokenizer_chat_family(const sp_tokenizer *t)
{
    const family *f = find_family(t->chat_template);
    return f ? f->name : "none";
}

/* ---- conversations --------------------------------------------------------------------------------------------------------- */

static sp_status fail_family(const sp_tokenizer *t)
{
    sp_buffer names = {0};
    sp_status st = SP_OK;
    for (size_t i = 0; i < N_FAMILIES && !st; i++) st = sp_buffer_printf(&names, "%s%s", i ? ", " : "", families[i].name);
    if (!st)
        st = sp_fail(SP_ERR_UNSUPPORTED, "%s; known are: %s. Write the conversation out as plain text instead",
                     t->chat_template ? "the model's chat template is of no family known here" : "the model has no chat template",
                     names.bytes);
    sp_buffer_free(&names);
    return st;
}

static sp_status check_messages(const sp_chat_message *messages, size_t n)
{
    if (n == 0) return sp_fail(SP_ERR_ARGUMENT, "a conversation without messages; give at least one");
    for (size_t i = 0; i < n; i++)
        if (!messages[i].role || !messages[i].content)
            return sp_fail(SP_ERR_ARGUMENT, "message %zu: role or content is missing", i + 1);
    return SP_OK;
}

sp_status sp_chat_tokenize(int32_t **tokens, uint8_t **answer, size_t *n, const sp_tokenizer *tokenizer,
                           const sp_chat_message *messages, size_t n_messages, bool add_generation_prompt)
{
    const family *f = find_family(tokenizer->chat_template);
    *tokens = NULL;
    if (answer) *answer = NULL;
    *n = 0;
    sp_status st = f ? check_messages(messages, n_messages) : fail_family(tokenizer);
    if (st) return st;
    chat c = {.tokenizer = tokenizer,
              .template_text = tokenizer->chat_template,
              .messages = messages,
              .n_messages = n_messages,
              .add_generation_prompt = add_generation_prompt};
    st = f->write(&c);
    if (!st) st = c.status;
    if (!st && c.n_regions == 0) close_region(&c, true, false), st = c.status;
    if (!st) st = sp_tokenizer_encode(tokens, answer, n, tokenizer, c.text.bytes, c.regions, c.n_regions);
    sp_buffer_free(&c.text);
    free(c.regions);
    return st;
}
