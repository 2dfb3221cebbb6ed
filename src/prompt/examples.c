/* examples.c: rows of data as the text that a context-aware prompt starts from, and what each of its tokens is.
 *
 *     Review: | dull | \nSentiment: | negative | \n\n | Review: | warm | \nSentiment: | positive | \n\n
 *        1       2          3            4        0        5       6          7            8        0
 *
 * Each row is tokenised as it is for training, so that what is learnt reads like the examples in front of it; what stands between
 * two rows has type 0 and stays as it is. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"
#include "prompt/cpt.h"
#include "prompt/task.h"

static const char BETWEEN[] = "\n\n";
enum { EXAMPLE_STREAM = 0x65786d70 }; /* "exmp": a stream that nothing else draws from */

typedef struct token_list {
    int32_t *ids; /* sp_free */
    size_t n;
} token_list;

typedef struct writer {
    const sp_task *task;
    const sp_tokenizer *tokenizer;
    size_t room;                        /* of a row: the model's context */
    token_list prefix, suffix, between; /* of the template, each tokenised alone */
    int32_t *ids, *types;               /* (n) written so far; (capacity) */
    size_t n, capacity;
} writer;

static sp_status tokenize(token_list *out, const sp_tokenizer *tokenizer, const char *text, size_t n_bytes)
{
    return sp_tokenize(&out->ids, &out->n, tokenizer, text, n_bytes, SP_TOKENIZE_PARSE_SPECIAL);
}

static sp_status open_writer(writer *w, const sp_model *model, const sp_task *task)
{
    static const char placeholder[] = "{text}";
    sp_model_info info;
    sp_model_get_info(&info, model);
    *w = (writer){.task = task, .tokenizer = sp_model_tokenizer(model), .room = info.context_length};
    const char *template_text = task->template_text ? task->template_text : placeholder, *at = strstr(template_text, placeholder);
    const char *behind = at ? at + strlen(placeholder) : ""; /* sp_task_encode refuses a template without it */
    sp_status st = tokenize(&w->prefix, w->tokenizer, template_text, at ? (size_t)(at - template_text) : 0);
    if (!st) st = tokenize(&w->suffix, w->tokenizer, behind, strlen(behind));
    return st ? st : tokenize(&w->between, w->tokenizer, BETWEEN, strlen(BETWEEN));
}

static void close_writer(writer *w)
{
    sp_free(w->prefix.ids);
    sp_free(w->suffix.ids);
    sp_free(w->between.ids);
    free(w->ids);
    free(w->types);
}

static sp_status put(writer *w, const int32_t *ids, size_t n, int32_t type)
{
    if (w->n + n > w->capacity) {
        const size_t capacity = 2 * (w->n + n);
        int32_t *larger = realloc(w->ids, capacity * sizeof *larger);
        if (larger) w->ids = larger;
        int32_t *types = larger ? realloc(w->types, capacity * sizeof *types) : NULL;
        if (!types) return sp_fail_no_memory(capacity * sizeof *types);
        w->types = types;
        w->capacity = capacity;
    }
    for (size_t i = 0; i < n; i++) {
        w->ids[w->n] = ids[i];
        w->types[w->n++] = type;
    }
    return SP_OK;
}

/* How many tokens `a` and `b` begin with alike, at most `limit`; end: end with. A token that spans a seam is the text's. */
static size_t count_alike(const int32_t *a, size_t n_a, const token_list *b, size_t limit, bool end)
{
    size_t n = 0;
    while (n < limit && n < b->n && a[end ? n_a - 1 - n : n] == b->ids[end ? b->n - 1 - n : n]) n++;
    return n;
}

/* index: of the example, from 0 */
static sp_status put_row(writer *w, const sp_encoded_row *row, size_t index)
{
    const bool has_bos = row->n_context && sp_tokenizer_adds_bos(w->tokenizer) && row->context[0] == sp_tokenizer_bos(w->tokenizer);
    const int32_t *context = row->context + has_bos; /* BOS comes once, behind the prompt */
    const size_t n = row->n_context - has_bos, n_start = count_alike(context, n, &w->prefix, n, false);
    const size_t n_end = count_alike(context, n, &w->suffix, n - n_start, true), n_text = n - n_start - n_end;
    const int32_t first = (int32_t)(SP_CPT_N_KINDS * index);
    sp_status st = put(w, context, n_start, first + SP_CPT_INPUT_TEMPLATE);
    if (!st) st = put(w, context + n_start, n_text, first + SP_CPT_INPUT);
    if (!st) st = put(w, context + n_start + n_text, n_end, first + SP_CPT_OUTPUT_TEMPLATE);
    if (!st) st = put(w, row->candidates[row->right], row->n_candidate[row->right], first + SP_CPT_N_KINDS);
    return st ? st : put(w, w->between.ids, w->between.n, 0);
}

/* ---- which rows -------------------------------------------------------------------------------------------------- */

static bool has_label(const sp_row *row, const sp_task *task, size_t label)
{
    return row->kind != SP_ROW_LABEL || strcmp(row->label, task->verbalizers[label].label) == 0;
}

/* The first row of `order` from *at on that has the label and was not taken; n: none. Taken ones are SIZE_MAX. */
static size_t take_row(size_t *order, size_t n, const sp_dataset *data, const sp_task *task, size_t label)
{
    for (size_t i = 0; i < n; i++) {
        const size_t index = order[i];
        if (index == SIZE_MAX || !has_label(sp_dataset_row(data, index), task, label)) continue;
        order[i] = SIZE_MAX;
        return index;
    }
    return n;
}

static sp_status check_rows(const sp_dataset *data, const sp_task *task, size_t n_examples)
{
    const sp_row_kind kind = sp_dataset_row(data, 0)->kind;
    if (kind != SP_ROW_LABEL && kind != SP_ROW_COMPLETION)
        return sp_fail(SP_ERR_UNSUPPORTED,
                       "examples are written from rows of text and label, or of prompt and completion; the data have "
                       "neither: start from a text instead");
    if (kind == SP_ROW_LABEL && !task->n_verbalizers)
        return sp_fail(SP_ERR_ARGUMENT, "examples of rows with labels need verbalizers: how an answer is spelt");
    if (n_examples == 0 || n_examples > sp_dataset_n_rows(data))
        return sp_fail(SP_ERR_ARGUMENT, "%zu examples of data that have %zu rows", n_examples, sp_dataset_n_rows(data));
    return SP_OK;
}

/* In an order of the seed, label after label, so that a few examples show every answer that there is. */
static sp_status write_examples(writer *w, const sp_dataset *data, size_t n_examples, uint64_t seed)
{
    const size_t n = sp_dataset_n_rows(data), n_labels = w->task->n_verbalizers ? w->task->n_verbalizers : 1;
    size_t *order = malloc(n * sizeof *order), n_written = 0, n_misses = 0;
    sp_status st = SP_OK;
    if (!order) return sp_fail_no_memory(n * sizeof *order);
    sp_rng rng = sp_rng_seed(seed, EXAMPLE_STREAM);
    sp_rng_permute(&rng, order, n);
    for (size_t label = 0; n_written < n_examples && n_misses < n_labels && !st; label++) {
        const size_t index = take_row(order, n, data, w->task, label % n_labels);
        sp_encoded_row row;
        n_misses = index == n ? n_misses + 1 : 0;
        if (index == n) continue; /* this label's rows are used up */
        st = sp_task_encode(&row, w->task, w->tokenizer, sp_dataset_row(data, index), w->room);
        if (!st) st = put_row(w, &row, n_written++);
        sp_encoded_row_clear(&row);
    }
    free(order);
    if (!st && n_written < n_examples)
        st = sp_fail(SP_ERR_MISMATCH, "%zu examples are wanted, and only %zu rows have a label that a verbalizer names", n_examples,
                     n_written);
    return st;
}

sp_status sp_cpt_examples(int32_t **token_ids, int32_t **tokens_type_mask, size_t *n, const sp_model *model, const sp_task *task,
                          const sp_dataset *data, size_t n_examples, uint64_t seed)
{
    writer w = {0};
    *token_ids = *tokens_type_mask = NULL;
    *n = 0;
    sp_status st = check_rows(data, task, n_examples);
    if (!st) st = open_writer(&w, model, task);
    if (!st) st = write_examples(&w, data, n_examples, seed);
    if (!st) {
        *token_ids = w.ids;
        *tokens_type_mask = w.types;
        *n = w.n;
        w.ids = w.types = NULL;
    }
    close_writer(&w);
    return st;
}
