/* run.c: softprompt run. Finds the text, wraps it in the adapter's task, and prints a label or streams a completion.
 * Standard output carries the answer and nothing else, byte for byte, but for a line's end on a terminal. */
#include "run.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "inputs.h"
#include "progress.h"
#include "report.h"

typedef struct run_flags {
    model_flags model;
    text_list prompts;
    bool raw, no_special;
    size_t task_id, max_length, max_new_tokens, top_k, seed;
    double temperature, top_p, min_p, repetition_penalty;
    text_list stop;
    output_flags output;
} run_flags;

static const option_row text_rows[] = {
    {OPTION_STRINGS, 'p', "prompt", "DIR", "an adapter; given more than once: an ensemble", .fallback = "the model alone",
     .target = offsetof(run_flags, prompts)},
    {OPTION_COUNT, 0, "task", "K", "which task of a multitask adapter", .fallback = "0", .target = offsetof(run_flags, task_id),
     .max = 1e6},
    {OPTION_FLAG, 0, "raw", .help = "leave the adapter's template and labels aside", .target = offsetof(run_flags, raw)},
    {OPTION_FLAG, 0, "no-special", .help = "take strings such as <|im_end|> in TEXT literally",
     .target = offsetof(run_flags, no_special)},
    {OPTION_COUNT, 0, "max-length", "N", "cut TEXT at the left to N tokens", .fallback = "too long is an error",
     .target = offsetof(run_flags, max_length), .min = 1, .max = 1e9},
    {0}};

static const option_row sampling_rows[] = {
    {OPTION_COUNT, 0, "max-new-tokens", "N", "end after N tokens", .fallback = "256", .target = offsetof(run_flags, max_new_tokens),
     .min = 1, .max = 1e9},
    {OPTION_REAL, 0, "temperature", "X", "0: greedy, always the likeliest token", .fallback = "0",
     .target = offsetof(run_flags, temperature), .max = 100},
    {OPTION_COUNT, 0, "top-k", "N", "choose among the N likeliest; 0: all", .fallback = "0", .target = offsetof(run_flags, top_k),
     .max = 1e9},
    {OPTION_REAL, 0, "top-p", "X", "choose among the likeliest that hold X of the probability", .fallback = "1",
     .target = offsetof(run_flags, top_p), .min = 1e-6, .max = 1},
    {OPTION_REAL, 0, "min-p", "X", "leave out what is below X times the likeliest", .fallback = "0",
     .target = offsetof(run_flags, min_p), .max = 1},
    {OPTION_REAL, 0, "repetition-penalty", "X", "above 1: repeat less", .fallback = "1",
     .target = offsetof(run_flags, repetition_penalty), .min = 0.01, .max = 100},
    {OPTION_TEXTS, 0, "stop", "TEXT", "end before TEXT (\\n, \\t, \\\\ understood); may be repeated",
     .target = offsetof(run_flags, stop)},
    {OPTION_COUNT, 0, "seed", "N", "of sampling", .fallback = "0", .target = offsetof(run_flags, seed)},
    {0}};

static const option_group groups[] = {{"model", model_rows, offsetof(run_flags, model)},
                                      {"text", text_rows, 0},
                                      {"sampling", sampling_rows, 0},
                                      {"output", output_rows, offsetof(run_flags, output)},
                                      {0}};

/* ---- fitting the text ------------------------------------------------------------------------------------------------- */

static unsigned special_flag(const run_job *job)
{
    return job->no_special ? 0 : SP_TOKENIZE_PARSE_SPECIAL;
}

static int fail_too_long(size_t n_tokens, const char *what, size_t limit)
{
    report_line("the text has %zu tokens, but %s %zu; shorten it, or let it be cut at the left with --max-length N", n_tokens, what,
                limit);
    return EXIT_USAGE;
}

/* The last n tokens as text, *out sp_free. They may begin inside a character: its rest is dropped. */
static sp_status join_tokens(char **out, const sp_tokenizer *tokenizer, const int32_t *tokens, size_t n)
{
    size_t n_bytes, n_rest = 0;
    sp_status st = sp_detokenize(out, &n_bytes, tokenizer, tokens, n, true);
    if (st) return st;
    while (n_rest < n_bytes && ((unsigned char)(*out)[n_rest] & 0xC0) == 0x80) n_rest++;
    memmove(*out, *out + n_rest, n_bytes - n_rest + 1);
    return SP_OK;
}

/* *cut (sp_free): the end of `text` where it is longer than it may be, else NULL. */
static int cut_text(char **cut, const run_job *job, const char *text)
{
    const sp_tokenizer *tokenizer = sp_model_tokenizer(job->model);
    size_t limit = job->max_length ? job->max_length : job->task ? job->task->max_length : 0, n;
    int32_t *tokens;
    int code = EXIT_DONE;
    *cut = NULL;
    if (!limit) return EXIT_DONE;
    sp_status st = sp_tokenize(&tokens, &n, tokenizer, text, SIZE_MAX, special_flag(job));
    if (st) return report_failure(st);
    if (n > limit && !job->max_length)
        code = fail_too_long(n, "the adapter was trained with --max-length", limit);
    else if (n > limit && (st = join_tokens(cut, tokenizer, tokens + n - limit, limit)))
        code = report_failure(st);
    sp_free(tokens);
    return code;
}

/* The template with `text` in it (free), NULL: no memory. */
static char *wrap_text(const sp_task *task, const char *text)
{
    const char *template_text = task && task->template_text ? task->template_text : "{text}",
               *place = strstr(template_text, "{text}");
    char *wrapped = NULL;
    size_t n_bytes;
    FILE *stream = open_memstream(&wrapped, &n_bytes);
    if (!stream) return NULL;
    if (place) fwrite(template_text, 1, (size_t)(place - template_text), stream);
    fprintf(stream, "%s%s", place ? text : template_text, place ? place + strlen("{text}") : "");
    if (fclose(stream) == 0) return wrapped;
    free(wrapped);
    return NULL;
}

static int check_room(const run_job *job, size_t n_tokens)
{
    sp_model_info info;
    sp_model_get_info(&info, job->model);
    size_t used = 0; /* by the longest prompt */
    for (size_t i = 0; i < job->prompts.n; i++) {
        size_t n_front = sp_prompt_text_position(job->prompts.items[i]);
        if (n_front > used) used = n_front;
    }
    size_t room = info.context_length > used ? info.context_length - used : 0;
    return n_tokens > room ? fail_too_long(n_tokens, "behind the prompt the model's context has room for", room) : EXIT_DONE;
}

static int fail_empty(void)
{
    report_line("the text is empty: there is nothing to continue; give TEXT, or write it to standard input");
    return EXIT_USAGE;
}

/* A prompt of embeddings predicts what comes first by itself. One that was trained for texts with a template is to have one. */
static bool can_begin(const run_job *job)
{
    const sp_prompt *first = job->prompts.n == 1 ? job->prompts.items[0] : NULL;
    return first && sp_prompt_embeddings(job->prompts.items[0]) && !sp_prompt_task(first);
}

/* `text`, cut and wrapped, as the tokens that follow the prompt (sp_free). */
static int encode_text(int32_t **tokens, size_t *n, const run_job *job, const char *text)
{
    char *cut;
    int code = cut_text(&cut, job, text);
    *tokens = NULL;
    *n = 0;
    if (code) return code;
    char *wrapped = wrap_text(job->task, cut ? cut : text);
    sp_free(cut);
    if (!wrapped) return report_no_memory();
    sp_status st =
        sp_tokenize(tokens, n, sp_model_tokenizer(job->model), wrapped, SIZE_MAX, SP_TOKENIZE_ADD_BOS | special_flag(job));
    free(wrapped);
    if (st) return report_failure(st);
    return *n || can_begin(job) ? check_room(job, *n) : fail_empty();
}

/* ---- answers ---------------------------------------------------------------------------------------------------------- */

bool stream_text(void *user, const char *text, size_t n_bytes)
{
    const volatile int *stop = user;
    fwrite(text, 1, n_bytes, stdout);
    return fflush(stdout) == 0 && !(stop && *stop);
}

static const char *finish_reason(sp_finish finish)
{
    switch (finish) {
    case SP_FINISH_END:
    case SP_FINISH_STOP:
        return "stop";
    case SP_FINISH_LENGTH:
        return "length";
    case SP_FINISH_CANCELLED:
        break;
    }
    return "cancelled";
}

static int print_answer_json(json_t *text, json_t *tokens, json_t *finish, json_t *label, json_t *logprobs)
{
    json_t *object = json_object();
    json_member(&object, "text", text);
    json_member(&object, "tokens", tokens);
    json_member(&object, "finish_reason", finish);
    json_member(&object, "label", label);
    json_member(&object, "logprobs", logprobs);
    return print_json(object);
}

int finish_answer(const run_job *job, const sp_generation *generation)
{
    if (!job->json) {
        bool open = generation->n_bytes && generation->text[generation->n_bytes - 1] != '\n';
        if (open && isatty(STDOUT_FILENO)) putchar('\n');
        return EXIT_DONE;
    }
    json_t *tokens = json_array(), *logprobs = json_array();
    for (size_t i = 0; i < generation->n_tokens; i++) {
        json_array_append_new(tokens, json_integer(generation->tokens[i]));
        json_array_append_new(logprobs, json_finite((double)generation->logprobs[i]));
    }
    return print_answer_json(json_text(generation->text), tokens, json_string(finish_reason(generation->finish)), json_null(),
                             logprobs);
}

/* The probability among the labels: what the model might say instead of any label is left out. */
static double share_of_best(const sp_classification *found)
{
    double sum = 0;
    for (size_t i = 0; i < found->n_labels; i++) sum += exp(found->logprobs[i] - found->logprobs[found->best]);
    return 1 / sum;
}

static int print_label(const run_job *job, const sp_classification *found)
{
    const char *label = found->labels[found->best];
    if (!job->json) {
        printf("%s %.2f\n", label, share_of_best(found));
        return EXIT_DONE;
    }
    json_t *logprobs = json_object();
    for (size_t i = 0; i < found->n_labels; i++) json_member(&logprobs, found->labels[i], json_finite(found->logprobs[i]));
    return print_answer_json(json_text(job->task->verbalizers[found->best].text), json_null(), json_null(), json_text(label),
                             logprobs);
}

static int classify(const run_job *job, const char *text)
{
    sp_task task = *job->task;
    sp_classification found;
    if (job->max_length) task.max_length = job->max_length;
    sp_status st = sp_classify_ensemble(&found, job->model, prompts_of(&job->prompts), job->prompts.n, &task, text);
    if (st) return report_failure(st);
    int code = print_label(job, &found);
    sp_classification_clear(&found);
    return code;
}

static int complete(run_job *job, const int32_t *tokens, size_t n)
{
    sp_generation generation;
    sp_session_rewind(job->session, 0);
    sp_status st = sp_generate(&generation, job->session, tokens, n, &job->sampling, job->json ? NULL : stream_text, NULL);
    if (st) return report_failure(st);
    int code = finish_answer(job, &generation);
    sp_compiled_use use;
    sp_session_get_compiled_use(&use, job->session);
    warn_of_range(&use);
    sp_generation_clear(&generation);
    return code;
}

/* The tokens of a text to be classified are made again by sp_classify_ensemble: here they only show that it fits. */
int answer_text(run_job *job, const char *text)
{
    int32_t *tokens;
    size_t n;
    int code = encode_text(&tokens, &n, job, text);
    if (!code) code = job->task && job->task->n_verbalizers ? classify(job, text) : complete(job, tokens, n);
    sp_free(tokens);
    return code;
}

/* ---- the command -------------------------------------------------------------------------------------------------------- */

/* All of standard input (free), without the line's end that echo and editors put last. */
static int read_standard_input(char **out)
{
    size_t room = 0;
    *out = NULL;
    ssize_t n = getdelim(out, &room, '\0', stdin);
    if (n < 0 && ferror(stdin))
        report_line("standard input: cannot read the text: %s", strerror(errno));
    else if (n > 0 && (*out)[n - 1] == '\0')
        report_line("standard input: byte %zd is NUL: text is expected", n);
    else {
        if (n < 0 || !*out) n = 0;
        if (n > 0 && (*out)[n - 1] == '\n') n--;
        if (n > 0 && (*out)[n - 1] == '\r') n--;
        if (*out) (*out)[n] = '\0'; /* at the end of input getdelim leaves its buffer as malloc gave it */
        return EXIT_DONE;
    }
    return EXIT_FAILED;
}

static void warn_of_greedy(const run_flags *flags)
{
    if (flags->temperature > 0 || (!flags->top_k && flags->top_p >= 1 && flags->min_p <= 0)) return;
    report_line("warning: --top-k, --top-p and --min-p change nothing at --temperature 0, which is greedy");
}

static sp_sampling make_sampling(const run_flags *flags)
{
    return (sp_sampling){.max_new_tokens = flags->max_new_tokens,
                         .temperature = (float)flags->temperature,
                         .top_k = flags->top_k,
                         .top_p = (float)flags->top_p,
                         .min_p = (float)flags->min_p,
                         .repetition_penalty = (float)flags->repetition_penalty,
                         .stop = (const char *const *)flags->stop.items,
                         .n_stop = flags->stop.n,
                         .seed = flags->seed};
}

/* An adapter that learnt from prompts and completions or from chats wraps nothing. */
static bool wraps_text(const sp_task *task)
{
    return task->n_verbalizers || (task->template_text && strcmp(task->template_text, "{text}") != 0);
}

/* sp_classify reads a text as training did, which parses them. */
static int fail_no_special(const command *self)
{
    return usage_error(self, "--no-special does not go with an adapter that answers with labels; leave it out, or add --raw");
}

static int open_job(run_job *job, const run_flags *flags, const sp_logger *logger)
{
    sp_status st = load_model(&job->model, &flags->model);
    if (st) return report_failure(st);
    int code = load_prompts(&job->prompts, &flags->prompts, flags->task_id, job->model, logger);
    if (code) return code;
    st = sp_session_create_ensemble(&job->session, job->model, prompts_of(&job->prompts), job->prompts.n);
    if (!st && !flags->raw) st = sp_ensemble_task(&job->own_task, NULL, prompts_of(&job->prompts), job->prompts.n);
    if (st) return report_failure(st);
    if (wraps_text(&job->own_task)) job->task = &job->own_task;
    return EXIT_DONE;
}

static void close_job(run_job *job)
{
    sp_session_free(job->session);
    prompt_list_free(&job->prompts);
    sp_model_free(job->model);
}

/* text NULL: a conversation. */
static int answer(const command *self, const run_flags *flags, const char *text)
{
    run_job job = {.sampling = make_sampling(flags),
                   .max_length = flags->max_length,
                   .no_special = flags->no_special,
                   .json = flags->output.json,
                   .quiet = flags->output.quiet};
    progress_bar bar;
    progress_init(&bar, flags->output.quiet);
    int code = open_job(&job, flags, &bar.logger);
    if (code) {
        close_job(&job);
        return code;
    }
    if (job.no_special && job.task && job.task->n_verbalizers)
        code = fail_no_special(self);
    else
        code = text ? answer_text(&job, text) : converse(&job);
    close_job(&job);
    return code;
}

static int run_run(const command *self, int argc, char **argv)
{
    run_flags flags = {.top_p = 1, .repetition_penalty = 1};
    const char *text = NULL;
    char *input = NULL;
    int code;
    if (!options_parse(self, &flags, &text, argc, argv, &code)) goto done;
    if (flags.task_id && !flags.prompts.n) {
        code = usage_error(self, "--task is one of an adapter's tasks: give -p DIR");
        goto done;
    }
    warn_of_greedy(&flags);
    if (!text && !isatty(STDIN_FILENO)) {
        if ((code = read_standard_input(&input))) goto done;
        text = input ? input : "";
    }
    code = answer(self, &flags, text);
done:
    free(input);
    text_list_free(&flags.stop);
    text_list_free(&flags.prompts);
    return code;
}

const command run_command = {
    .name = "run",
    .usage = "-m MODEL [-p DIR]... [TEXT] [flags]",
    .summary = "Answers TEXT, or standard input; on a terminal without either: a conversation.",
    .details = "An adapter with a template wraps TEXT in it; one with labels prints the likeliest label and its\n"
               "probability among the labels. Otherwise the completion alone goes to standard output. With --json:\n"
               "text, tokens, finish_reason, label and logprobs. A TEXT that begins with - comes after --. Several\n"
               "adapters answer as one: the next token is as likely as the geometric mean of what they say.",
    .example = "  softprompt run -m demo/model.gguf -p demo/prompt 'A warm, funny, beautifully acted film.'",
    .groups = groups,
    .operand = "TEXT",
    .run = run_run,
};
