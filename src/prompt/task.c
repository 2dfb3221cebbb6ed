/* task.c: from rows of data to tokens.
 *
 *   whole    [BOS] Review :  a  long  text \n Sent iment :      one tokenisation of template and text
 *   kept     [BOS] Review :      long text \n Sent iment :      cut: the prefix tokenised alone + the tail of `whole`
 *
 * Where the text lies in `whole` is found without offsets, which a normalising tokenizer cannot give: the tokens that `whole` has
 * in common with the prefix alone at its start, and with the suffix alone at its end, are the template's; those between are the
 * text's, tokens that span a seam included. A row that is not cut is therefore exactly the one tokenisation. */
#include "prompt/task.h"

#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/status.h"
#include "format/dataset.h"

static const char placeholder[] = "{text}";

/* ---- copies -------------------------------------------------------------------------------------------------- */

static size_t string_bytes(const char *string)
{
    return string ? strlen(string) + 1 : 0;
}

static const char *put_string(char **at, const char *string)
{
    if (!string) return NULL;
    char *copy = memcpy(*at, string, strlen(string) + 1);
    *at += strlen(string) + 1;
    return copy;
}

sp_status sp_task_copy(sp_task **out, const sp_task *task)
{
    size_t n_bytes = sizeof *task + task->n_verbalizers * sizeof *task->verbalizers + string_bytes(task->template_text);
    for (size_t i = 0; i < task->n_verbalizers; i++)
        n_bytes += string_bytes(task->verbalizers[i].label) + string_bytes(task->verbalizers[i].text);
    sp_task *copy = *out = malloc(n_bytes);
    if (!copy) return sp_fail_no_memory(n_bytes);
    *copy = *task;
    sp_verbalizer *verbalizers = (sp_verbalizer *)(copy + 1);
    char *at = (char *)(verbalizers + task->n_verbalizers);
    for (size_t i = 0; i < task->n_verbalizers; i++) {
        verbalizers[i].label = put_string(&at, task->verbalizers[i].label);
        verbalizers[i].text = put_string(&at, task->verbalizers[i].text);
    }
    copy->verbalizers = task->n_verbalizers ? verbalizers : NULL;
    copy->template_text = put_string(&at, task->template_text);
    return SP_OK;
}

void sp_task_free(sp_task *task)
{
    free(task);
}

/* ---- completion from data -------------------------------------------------------------------------------------- */

/* Index of the label; n: there is none. */
static size_t find_label(const sp_verbalizer *verbalizers, size_t n, const char *label)
{
    size_t i = 0;
    while (i < n && strcmp(verbalizers[i].label, label) != 0) i++;
    return i;
}

static sp_status check_template(const char *template_text)
{
    const char *first = template_text ? strstr(template_text, placeholder) : placeholder;
    if (!first)
        return sp_fail(SP_ERR_ARGUMENT, "template \"%s\": %s is missing; put it where the text goes", template_text, placeholder);
    if (strstr(first + 1, placeholder))
        return sp_fail(SP_ERR_ARGUMENT, "template \"%s\": %s occurs twice; keep one", template_text, placeholder);
    return SP_OK;
}

static sp_status check_verbalizers(const sp_task *task)
{
    const sp_verbalizer *v = task->verbalizers;
    if (task->n_verbalizers > SP_MAX_LABELS)
        return sp_fail(SP_ERR_ARGUMENT, "%zu verbalizers, more than the %d that are possible", task->n_verbalizers, SP_MAX_LABELS);
    for (size_t i = 0; i < task->n_verbalizers; i++) {
        if (!v[i].label || !v[i].text || !*v[i].text)
            return sp_fail(SP_ERR_ARGUMENT, "verbalizer of label \"%s\": is empty; give the text that the model shall say",
                           v[i].label ? v[i].label : "");
        for (size_t j = 0; j < i; j++) {
            if (!strcmp(v[i].label, v[j].label))
                return sp_fail(SP_ERR_ARGUMENT, "label \"%s\": has two verbalizers; keep one", v[i].label);
            if (!strcmp(v[i].text, v[j].text))
                return sp_fail(SP_ERR_ARGUMENT,
                               "labels \"%s\" and \"%s\": both have the verbalizer \"%s\"; nothing would tell them apart",
                               v[j].label, v[i].label, v[i].text);
        }
    }
    return SP_OK;
}

sp_status sp_task_check(const sp_task *task)
{
    sp_status st = check_template(task->template_text);
    return st ? st : check_verbalizers(task);
}

/* Every label of the data has a verbalizer. */
static sp_status check_labels(const sp_task *task, const sp_dataset *data)
{
    for (size_t i = 0; i < sp_dataset_n_rows(data); i++) {
        const sp_row *row = sp_dataset_row(data, i);
        if (row->kind == SP_ROW_LABEL && find_label(task->verbalizers, task->n_verbalizers, row->label) == task->n_verbalizers)
            return sp_fail(SP_ERR_MISMATCH,
                           "%s:%zu: label \"%.80s\" has no verbalizer; add --verbalizer '%.80s= %.80s', or take the row out",
                           sp_dataset_path(data), row->line, row->label, row->label, row->label);
    }
    return SP_OK;
}

/* The labels that occur, in order of first appearance. labels: (SP_MAX_LABELS), the strings belong to the data. */
static sp_status collect_labels(sp_verbalizer *labels, size_t *n, const sp_dataset *data)
{
    *n = 0;
    for (size_t i = 0; i < sp_dataset_n_rows(data); i++) {
        const sp_row *row = sp_dataset_row(data, i);
        if (row->kind != SP_ROW_LABEL || find_label(labels, *n, row->label) < *n) continue;
        if (*n == SP_MAX_LABELS)
            return sp_fail(SP_ERR_ARGUMENT,
                           "%s:%zu: more than %d different labels; name another column with --label-column, or use "
                           "prompt and completion",
                           sp_dataset_path(data), row->line, SP_MAX_LABELS);
        labels[(*n)++].label = row->label;
    }
    return SP_OK;
}

/* Gives each label itself after a space. *texts: their memory, to be freed. */
static sp_status say_labels(char **texts, sp_verbalizer *labels, size_t n)
{
    size_t n_bytes = 1;
    for (size_t i = 0; i < n; i++) n_bytes += strlen(labels[i].label) + 2;
    char *at = *texts = malloc(n_bytes);
    if (!at) return sp_fail_no_memory(n_bytes);
    for (size_t i = 0; i < n; i++) {
        *at = ' ';
        labels[i].text = at++;
        put_string(&at, labels[i].label);
    }
    return SP_OK;
}

sp_status sp_task_resolve(sp_task **out, const sp_task *task, const sp_dataset *data)
{
    sp_task completed = *task;
    sp_status st;
    *out = NULL;
    if ((st = sp_task_check(task))) return st;
    if (!data) return sp_task_copy(out, task);
    if (task->n_verbalizers) return (st = check_labels(task, data)) ? st : sp_task_copy(out, task);

    char *texts = NULL;
    sp_verbalizer *labels = calloc(SP_MAX_LABELS, sizeof *labels);
    if (!labels) return sp_fail_no_memory(SP_MAX_LABELS * sizeof *labels);
    if (!(st = collect_labels(labels, &completed.n_verbalizers, data)) &&
        !(st = say_labels(&texts, labels, completed.n_verbalizers))) {
        completed.verbalizers = labels;
        st = sp_task_copy(out, &completed);
    }
    free(texts);
    free(labels);
    return st;
}

/* ---- token lists ------------------------------------------------------------------------------------------------ */

typedef struct tokens {
    int32_t *ids; /* sp_free */
    size_t n;
} tokens;

static sp_status tokenize(tokens *out, const sp_tokenizer *tokenizer, const char *text, size_t n_bytes)
{
    return sp_tokenize(&out->ids, &out->n, tokenizer, text, n_bytes, SP_TOKENIZE_PARSE_SPECIAL);
}

/* What a row is built from; everything in it is borrowed. */
typedef struct draft {
    int32_t bos;                /* -1: none */
    const int32_t *head, *tail; /* context = [bos] head tail */
    size_t n_head, n_tail;
    const tokens *candidates;
    size_t n_candidates, right;
    bool truncated;
} draft;

/* The draft as one piece of memory: pointers, lengths, then all tokens. */
static sp_status build_row(sp_encoded_row *out, const draft *d)
{
    size_t n_context = (d->bos >= 0) + d->n_head + d->n_tail, n_tokens = n_context;
    for (size_t i = 0; i < d->n_candidates; i++) n_tokens += d->candidates[i].n;
    size_t n_bytes = d->n_candidates * (sizeof(int32_t *) + sizeof(size_t)) + n_tokens * sizeof(int32_t);
    void *memory = malloc(n_bytes);
    if (!memory) return sp_fail_no_memory(n_bytes);
    *out = (sp_encoded_row){.n_context = n_context, .n_candidates = d->n_candidates, .right = d->right, .truncated = d->truncated};
    out->candidates = memory;
    out->n_candidate = (size_t *)(out->candidates + d->n_candidates);
    int32_t *at = out->context = (int32_t *)(out->n_candidate + d->n_candidates);
    if (d->bos >= 0) *at++ = d->bos;
    for (size_t i = 0; i < d->n_head; i++) *at++ = d->head[i];
    for (size_t i = 0; i < d->n_tail; i++) *at++ = d->tail[i];
    for (size_t i = 0; i < d->n_candidates; i++) {
        out->candidates[i] = at;
        out->n_candidate[i] = d->candidates[i].n;
        memcpy(at, d->candidates[i].ids, d->candidates[i].n * sizeof *at);
        at += d->candidates[i].n;
    }
    return SP_OK;
}

void sp_encoded_row_clear(sp_encoded_row *row)
{
    free(row->candidates);
    *row = (sp_encoded_row){0};
}

sp_status sp_encoded_row_of_tokens(sp_encoded_row *out, const int32_t *ids, size_t n, size_t n_context)
{
    const tokens rest = {(int32_t *)(uintptr_t)ids + n_context, n - n_context}; /* which are only read */
    const draft d = {.bos = -1, .head = ids, .n_head = n_context, .candidates = &rest, .n_candidates = 1};
    return build_row(out, &d);
}

static int32_t bos_of(const sp_tokenizer *tokenizer)
{
    return sp_tokenizer_adds_bos(tokenizer) ? sp_tokenizer_bos(tokenizer) : -1;
}

/* ---- context and cutting ------------------------------------------------------------------------------------------- */

/* What every kind of row is cut by. */
typedef struct limits {
    size_t line;
    size_t max_text; /* tokens of text */
    size_t room;     /* rows for context and longest answer */
    size_t n_answer; /* rows of the longest answer */
} limits;

static sp_status fail_room(const limits *l, const char *what, size_t n_fixed)
{
    return sp_fail(
        SP_ERR_ARGUMENT,
        "line %zu: %s takes %zu tokens and the longest answer %zu, which leaves no room for text in %zu; shorten them, or use "
        "fewer virtual tokens",
        l->line, what, n_fixed, l->n_answer, l->room);
}

/* How many of n_text tokens are kept beside n_fixed that are never cut. ARGUMENT: none would be, though there are some. */
static sp_status fit_text(size_t *n_kept, const limits *l, const char *what, size_t n_fixed, size_t n_text)
{
    *n_kept = 0;
    size_t taken = n_fixed + l->n_answer, free_rows = l->room > taken ? l->room - taken : 0;
    if (taken > l->room || (n_text && !free_rows)) return fail_room(l, what, n_fixed);
    *n_kept = n_text;
    if (*n_kept > free_rows) *n_kept = free_rows;
    if (*n_kept > l->max_text) *n_kept = l->max_text;
    return SP_OK;
}

static size_t common_start(const tokens *a, const tokens *b)
{
    size_t n = 0;
    while (n < a->n && n < b->n && a->ids[n] == b->ids[n]) n++;
    return n;
}

/* At most `limit`. */
static size_t common_end(const tokens *a, const tokens *b, size_t limit)
{
    size_t n = 0;
    while (n < limit && n < a->n && n < b->n && a->ids[a->n - 1 - n] == b->ids[b->n - 1 - n]) n++;
    return n;
}

/* The template around a text, as strings. */
typedef struct frame {
    const char *prefix, *suffix;
    size_t n_prefix;
} frame;

static frame split_template(const char *template_text)
{
    const char *at = template_text ? strstr(template_text, placeholder) : NULL;
    if (!at) return (frame){"", "", 0};
    return (frame){template_text, at + strlen(placeholder), (size_t)(at - template_text)};
}

static sp_status tokenize_whole(tokens *whole, const sp_tokenizer *tokenizer, const frame *f, const char *text)
{
    sp_buffer rendered = {0};
    sp_status st;
    if (!(st = sp_buffer_add(&rendered, f->prefix, f->n_prefix)) && !(st = sp_buffer_add_string(&rendered, text)) &&
        !(st = sp_buffer_add_string(&rendered, f->suffix)))
        st = tokenize(whole, tokenizer, rendered.bytes, rendered.n_bytes);
    sp_buffer_free(&rendered);
    return st;
}

/* The context of a text: d->tail = all of `whole`, or d->head = prefix and d->tail = what of `whole` is kept. */
static sp_status cut_context(draft *d, const limits *l, const tokens *whole, const tokens *prefix, const tokens *suffix)
{
    size_t n_start = common_start(whole, prefix), n_end = common_end(whole, suffix, whole->n - n_start);
    size_t n_text = whole->n - n_start - n_end, n_bos = d->bos >= 0, n_kept = 0;
    sp_status st = fit_text(&n_kept, l, "the template", n_bos + n_start + n_end, n_text);
    if (st) return st;
    if (n_kept == n_text) return SP_OK;
    /* With the seam gone the prefix needs all its own tokens, which may be more than `whole` began with. */
    if ((st = fit_text(&n_kept, l, "the template", n_bos + prefix->n + n_end, n_text))) return st;
    d->head = prefix->ids;
    d->n_head = prefix->n;
    d->n_tail = n_end + n_kept;
    d->tail = whole->ids + whole->n - d->n_tail;
    d->truncated = true;
    return SP_OK;
}

/* d: everything but the context. */
static sp_status encode_framed(sp_encoded_row *out, draft *d, const limits *l, const sp_tokenizer *tokenizer, const frame *f,
                               const char *text)
{
    tokens whole = {0}, prefix = {0}, suffix = {0};
    sp_status st = tokenize_whole(&whole, tokenizer, f, text);
    if (st) return st;
    d->bos = bos_of(tokenizer);
    d->tail = whole.ids;
    d->n_tail = whole.n;
    bool fits = whole.n <= l->max_text && l->n_answer <= l->room && whole.n + (d->bos >= 0) <= l->room - l->n_answer;
    if (!fits && !(st = tokenize(&prefix, tokenizer, f->prefix, f->n_prefix)) &&
        !(st = tokenize(&suffix, tokenizer, f->suffix, strlen(f->suffix))))
        st = cut_context(d, l, &whole, &prefix, &suffix);
    if (!st) st = build_row(out, d);
    sp_free(whole.ids);
    sp_free(prefix.ids);
    sp_free(suffix.ids);
    return st;
}

static size_t max_text(const sp_task *task)
{
    return task->max_length ? task->max_length : SIZE_MAX;
}

/* ---- the kinds of rows ---------------------------------------------------------------------------------------------- */

static void free_candidates(tokens *candidates, size_t n)
{
    for (size_t i = 0; candidates && i < n; i++) sp_free(candidates[i].ids);
    free(candidates);
}

/* Every verbalizer alone, without BOS: what follows the context. *longest: of the most tokens. */
static sp_status tokenize_verbalizers(tokens **out, size_t *longest, const sp_task *task, const sp_tokenizer *tokenizer)
{
    tokens *candidates = *out = calloc(task->n_verbalizers, sizeof *candidates);
    if (!candidates) return sp_fail_no_memory(task->n_verbalizers * sizeof *candidates);
    *longest = 0;
    for (size_t i = 0; i < task->n_verbalizers; i++) {
        const sp_verbalizer *v = &task->verbalizers[i];
        sp_status st = tokenize(&candidates[i], tokenizer, v->text, strlen(v->text));
        if (st) return st;
        if (!candidates[i].n)
            return sp_fail(SP_ERR_ARGUMENT, "label \"%s\": its verbalizer \"%s\" has no tokens; give it other text", v->label,
                           v->text);
        if (candidates[i].n > *longest) *longest = candidates[i].n;
    }
    return SP_OK;
}

static sp_status encode_label(sp_encoded_row *out, const sp_task *task, const sp_tokenizer *tokenizer, const sp_row *row,
                              size_t room)
{
    limits l = {row->line, max_text(task), room, 0};
    frame f = split_template(task->template_text);
    draft d = {.n_candidates = task->n_verbalizers, .right = SIZE_MAX};
    if (!task->n_verbalizers)
        return sp_fail(SP_ERR_ARGUMENT, "line %zu: a text with a label, but no verbalizers; name them with --verbalizer",
                       row->line);
    if (row->label && (d.right = find_label(task->verbalizers, task->n_verbalizers, row->label)) == task->n_verbalizers)
        return sp_fail(SP_ERR_MISMATCH, "line %zu: label \"%.80s\" has no verbalizer; name it with --verbalizer", row->line,
                       row->label);
    tokens *candidates;
    sp_status st = tokenize_verbalizers(&candidates, &l.n_answer, task, tokenizer);
    d.candidates = candidates;
    if (!st) st = encode_framed(out, &d, &l, tokenizer, &f, row->text);
    free_candidates(candidates, task->n_verbalizers);
    return st;
}

/* tokens of the completion, then EOS where the model has one. */
static sp_status tokenize_completion(tokens *out, const sp_tokenizer *tokenizer, const char *completion)
{
    int32_t eos = sp_tokenizer_eos(tokenizer);
    sp_status st = tokenize(out, tokenizer, completion, strlen(completion));
    if (st || eos < 0) return st;
    int32_t *ids = reallocarray(out->ids, out->n + 1, sizeof *ids);
    if (!ids) return sp_fail_no_memory((out->n + 1) * sizeof *ids);
    ids[out->n++] = eos;
    out->ids = ids;
    return SP_OK;
}

static sp_status encode_completion(sp_encoded_row *out, const sp_task *task, const sp_tokenizer *tokenizer, const sp_row *row,
                                   size_t room)
{
    tokens completion = {0};
    frame f = split_template(task->template_text);
    sp_status st = tokenize_completion(&completion, tokenizer, row->completion);
    limits l = {row->line, max_text(task), room, completion.n};
    draft d = {.candidates = &completion, .n_candidates = 1};
    if (!st && !completion.n) st = sp_fail(SP_ERR_ARGUMENT, "line %zu: the completion has no tokens", row->line);
    if (!st) st = encode_framed(out, &d, &l, tokenizer, &f, row->prompt);
    sp_free(completion.ids);
    return st;
}

/* The last run of ones in `answer` is the last assistant turn: *first .. *end. */
static void find_last_turn(size_t *first, size_t *end, const uint8_t *answer, size_t n)
{
    *end = n;
    while (*end && !answer[*end - 1]) --*end;
    *first = *end;
    while (*first && answer[*first - 1]) --*first;
}

static sp_status encode_conversation(sp_encoded_row *out, const sp_task *task, const sp_tokenizer *tokenizer, const sp_row *row,
                                     size_t room, tokens all, const uint8_t *answer)
{
    size_t first, end, n_kept = 0;
    find_last_turn(&first, &end, answer, all.n);
    if (first == end) return sp_fail(SP_ERR_ARGUMENT, "line %zu: the last message of the assistant has no tokens", row->line);
    tokens turn = {all.ids + first, end - first};
    bool has_bos = first && bos_of(tokenizer) >= 0 && all.ids[0] == bos_of(tokenizer);
    size_t n_text = first - has_bos;
    limits l = {row->line, max_text(task), room, turn.n};
    sp_status st = fit_text(&n_kept, &l, "BOS", has_bos, n_text);
    if (st) return st;
    draft d = {.bos = has_bos ? all.ids[0] : -1,
               .tail = all.ids + first - n_kept,
               .n_tail = n_kept,
               .candidates = &turn,
               .n_candidates = 1,
               .truncated = n_kept < n_text};
    return build_row(out, &d);
}

static sp_status encode_chat(sp_encoded_row *out, const sp_task *task, const sp_tokenizer *tokenizer, const sp_row *row,
                             size_t room)
{
    size_t n_messages = row->n_messages;
    while (n_messages && strcmp(row->messages[n_messages - 1].role, "assistant") != 0) n_messages--;
    if (!n_messages) return sp_fail(SP_ERR_ARGUMENT, "line %zu: no message is the assistant's", row->line);
    tokens all = {0};
    uint8_t *answer = NULL;
    sp_status st = sp_chat_tokenize(&all.ids, &answer, &all.n, tokenizer, row->messages, n_messages, false);
    if (!st) st = encode_conversation(out, task, tokenizer, row, room, all, answer);
    sp_free(all.ids);
    sp_free(answer);
    return st;
}

static sp_status encode_text(sp_encoded_row *out, const sp_task *task, const sp_tokenizer *tokenizer, const sp_row *row,
                             size_t room)
{
    tokens all = {0};
    size_t n_kept = 0;
    int32_t bos = bos_of(tokenizer);
    limits l = {row->line, max_text(task), room, 0};
    sp_status st = tokenize(&all, tokenizer, row->text, strlen(row->text));
    if (!st) st = fit_text(&n_kept, &l, "BOS", bos >= 0, all.n);
    if (!st && n_kept + (bos >= 0) < 2)
        st = sp_fail(SP_ERR_ARGUMENT, "line %zu: a text of fewer than two tokens: nothing of it can be predicted", row->line);
    if (!st) {
        size_t n_context = bos < 0; /* without BOS the first token is what the others are told by */
        const int32_t *kept = all.ids + all.n - n_kept;
        tokens rest = {all.ids + all.n - n_kept + n_context, n_kept - n_context};
        draft d = {
            .bos = bos, .tail = kept, .n_tail = n_context, .candidates = &rest, .n_candidates = 1, .truncated = n_kept < all.n};
        st = build_row(out, &d);
    }
    sp_free(all.ids);
    return st;
}

sp_status sp_task_encode(sp_encoded_row *out, const sp_task *task, const sp_tokenizer *tokenizer, const sp_row *row, size_t room)
{
    *out = (sp_encoded_row){0};
    switch (row->kind) {
    case SP_ROW_LABEL:
        return encode_label(out, task, tokenizer, row, room);
    case SP_ROW_COMPLETION:
        return encode_completion(out, task, tokenizer, row, room);
    case SP_ROW_CHAT:
        return encode_chat(out, task, tokenizer, row, room);
    case SP_ROW_TEXT:
        return encode_text(out, task, tokenizer, row, room);
    }
    return sp_fail(SP_ERR_ARGUMENT, "line %zu: no kind of row", row->line);
}
