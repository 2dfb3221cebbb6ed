/* chat.c: the conversation of `softprompt run`. Each turn the whole conversation is laid out by the chat template; the session
 * keeps what it shares with the turn before, so that only the new tokens are computed.
 * With an adapter that wraps texts (a template, labels) there is no conversation: each message is a text of its own. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"
#include "run.h"
#include "terminal.h"

typedef struct chat {
    run_job *job;
    sp_chat_message *messages; /* contents are ours */
    size_t n_messages;
    int32_t *known; /* the tokens that the session holds */
    size_t n_known;
} chat;

static volatile int interrupted;

static void note_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

/* Without SA_RESTART: reading a line must end too. */
static void catch_interrupts(void)
{
    struct sigaction action = {.sa_handler = note_interrupt};
    sigaction(SIGINT, &action, NULL);
}

/* ---- messages ----------------------------------------------------------------------------------------------------------- */

static bool push_message(chat *c, const char *role, const char *content)
{
    sp_chat_message *messages = realloc(c->messages, (c->n_messages + 1) * sizeof *messages);
    char *copy = strdup(content);
    if (messages) c->messages = messages;
    if (!messages || !copy) {
        free(copy);
        return false;
    }
    messages[c->n_messages++] = (sp_chat_message){.role = role, .content = copy};
    return true;
}

static void pop_message(chat *c)
{
    free((char *)c->messages[--c->n_messages].content);
}

static void forget(chat *c)
{
    while (c->n_messages) pop_message(c);
    free(c->known);
    c->known = NULL;
    c->n_known = 0;
}

/* ---- a turn ---------------------------------------------------------------------------------------------------------------- */

/* Cuts the session back to what it has in common with `tokens`, the last one left out: its logits are wanted. */
static size_t keep_common(chat *c, const int32_t *tokens, size_t n)
{
    size_t common = 0;
    while (common < c->n_known && common + 1 < n && c->known[common] == tokens[common]) common++;
    sp_session_rewind(c->job->session, common);
    c->n_known = common;
    return common;
}

/* The session now holds `tokens` and what was generated, but for a last token that nobody had to read. */
static bool remember(chat *c, const int32_t *tokens, size_t n, const sp_generation *generation)
{
    int32_t *known = realloc(c->known, (n + generation->n_tokens + 1) * sizeof *known);
    if (!known) return false;
    memcpy(known, tokens, n * sizeof *known);
    if (generation->n_tokens) memcpy(known + n, generation->tokens, generation->n_tokens * sizeof *known);
    size_t held = sp_session_n_tokens(c->job->session), all = n + generation->n_tokens;
    c->known = known;
    c->n_known = held < all ? held : all;
    return push_message(c, "assistant", generation->text ? generation->text : "");
}

static int answer_turn(chat *c, const char *content)
{
    run_job *job = c->job;
    sp_generation generation;
    int32_t *tokens;
    size_t n;
    if (!push_message(c, "user", content)) return report_no_memory();
    sp_status st = sp_chat_tokenize(&tokens, NULL, &n, sp_model_tokenizer(job->model), c->messages, c->n_messages, true);
    if (!st) {
        size_t common = keep_common(c, tokens, n);
        st = sp_generate(&generation, job->session, tokens + common, n - common, &job->sampling, job->json ? NULL : stream_text,
                         (void *)&interrupted);
    }
    if (st) {
        pop_message(c);
        c->n_known = 0;
        sp_free(tokens);
        return report_failure(st);
    }
    int code = remember(c, tokens, n, &generation) ? finish_answer(job, &generation) : report_no_memory();
    sp_generation_clear(&generation);
    sp_free(tokens);
    return code;
}

/* ---- the loop ---------------------------------------------------------------------------------------------------------------- */

static void print_chat_help(void)
{
    fputs("/reset  begin anew\n/quit   end (or Ctrl-D)\n/help   this list\n"
          "A line that ends with \\ goes on in the next. Ctrl-C stops an answer.\n",
          stderr);
}

/* True: the message was a command. */
static bool obey(chat *c, const char *message, bool *quit)
{
    if (message[0] != '/') return message[0] == '\0';
    if (strcmp(message, "/quit") == 0)
        *quit = true;
    else if (strcmp(message, "/reset") == 0)
        forget(c);
    else if (strcmp(message, "/help") == 0)
        print_chat_help();
    else
        report_line("%s is no command; /help lists them", message);
    return true;
}

/* A model without a chat template cannot converse: found out before the first message is typed. */
static int check_template(const run_job *job)
{
    const sp_chat_message probe = {.role = "user", .content = "?"};
    int32_t *tokens;
    size_t n;
    sp_status st = sp_chat_tokenize(&tokens, NULL, &n, sp_model_tokenizer(job->model), &probe, 1, true);
    if (st) return report_failure(st);
    sp_free(tokens);
    return EXIT_DONE;
}

static void greet(const run_job *job)
{
    if (job->quiet) return;
    report_line("%s; /help lists the commands",
                job->task ? "each message is answered through the adapter's template" : "a conversation");
}

int converse(run_job *job)
{
    chat c = {.job = job};
    const char *message;
    bool quit = false;
    int code = job->task ? EXIT_DONE : check_template(job);
    if (code) return code;
    terminal *term = terminal_open(&interrupted);
    if (!term) return report_no_memory();
    catch_interrupts();
    greet(job);
    while (!quit && !ferror(stdout)) {
        interrupted = 0; /* for the line, and below for the answer */
        terminal_event event = terminal_read(term, &message);
        if (event == TERMINAL_END) break;
        if (event == TERMINAL_INTERRUPTED || obey(&c, message, &quit)) continue;
        interrupted = 0;
        if (job->task)
            answer_text(job, message); /* what failed was said; the next message may do better */
        else
            answer_turn(&c, message);
    }
    terminal_close(term);
    forget(&c);
    free(c.messages);
    return EXIT_DONE;
}
