/* teacher.c: a token tree whose root is a text, and an engine that keeps the text's keys and values: everything that is ever read
 * behind it shares them. Invariant: rows 0 .. n_ready - 1 of the engine's store are the context's. */
#include "train/teacher.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "text/unicode.h"

enum { PART_ROWS = 512, ROOM = 2 }; /* rows in one pass; a token to read behind the context, and one to predict */

struct sp_teacher {
    sp_model *model;
    sp_engine *engine;
    sp_tree tree;
    int32_t *context;
    size_t n_context, n_ready;
};

/* ---- the text's tokens ---- */

static sp_status check_text(const char *text)
{
    size_t n_bytes = strlen(text), n_valid = sp_utf8_valid_prefix(text, n_bytes);
    if (n_valid == n_bytes) return SP_OK;
    return sp_fail(SP_ERR_ARGUMENT, "the teacher's context is not UTF-8: byte %zu of %zu; convert it", n_valid + 1, n_bytes);
}

static sp_status check_length(const sp_model *model, size_t n)
{
    sp_model_info info;
    sp_model_get_info(&info, model);
    if (n == 0)
        return sp_fail(SP_ERR_ARGUMENT, "the teacher's context has no tokens; give the text that the prompt shall stand for");
    if (n + ROOM <= info.context_length) return SP_OK;
    return sp_fail(SP_ERR_ARGUMENT,
                   "the teacher's context has %zu tokens, which leave no room for queries in the model's context of %zu; shorten "
                   "the text",
                   n, info.context_length);
}

sp_status sp_context_tokenize(int32_t **out, size_t *n, const sp_model *model, const char *text)
{
    const sp_tokenizer *tokenizer = sp_model_tokenizer(model);
    size_t n_bos = sp_tokenizer_adds_bos(tokenizer), n_text;
    int32_t *tokens = NULL;
    *out = NULL;
    *n = 0;
    sp_status st = check_text(text);
    /* Not SP_TOKENIZE_ADD_BOS, which may add an EOS too: the text goes on. */
    if (!st) st = sp_tokenize(&tokens, &n_text, tokenizer, text, SIZE_MAX, SP_TOKENIZE_PARSE_SPECIAL);
    if (!st) st = check_length(model, n_text ? n_bos + n_text : 0);
    if (!st && !(*out = malloc((n_bos + n_text) * sizeof **out))) st = sp_fail_no_memory((n_bos + n_text) * sizeof **out);
    if (!st) {
        if (n_bos) (*out)[0] = sp_tokenizer_bos(tokenizer);
        memcpy(*out + n_bos, tokens, n_text * sizeof *tokens);
        *n = n_bos + n_text;
    }
    sp_free(tokens);
    return st;
}

/* ---- the teacher ---- */

sp_status sp_teacher_create(sp_teacher **out, sp_model *model, const int32_t *context, size_t n)
{
    *out = NULL;
    sp_status st = check_length(model, n);
    if (st) return st;
    sp_teacher *t = calloc(1, sizeof *t);
    if (!t) return sp_fail_no_memory(sizeof *t);
    t->model = model;
    t->n_context = n;
    t->context = malloc(n * sizeof *t->context);
    if (t->context) memcpy(t->context, context, n * sizeof *t->context);
    st = t->context ? sp_engine_create(&t->engine, model) : sp_fail_no_memory(n * sizeof *t->context);
    if (st)
        sp_teacher_free(t);
    else
        *out = t;
    return st;
}

void sp_teacher_free(sp_teacher *teacher)
{
    if (!teacher) return;
    sp_tree_free(&teacher->tree);
    sp_engine_free(teacher->engine);
    free(teacher->context);
    free(teacher);
}

size_t sp_teacher_n_context(const sp_teacher *teacher)
{
    return teacher->n_context;
}

bool sp_teacher_starts_with_bos(const sp_teacher *teacher)
{
    return teacher->context[0] == sp_tokenizer_bos(sp_model_tokenizer(teacher->model));
}

/* The next rows of the context, at most PART_ROWS, so that activations stay small. */
static sp_status compute_part(sp_teacher *t)
{
    size_t run, n = t->n_context - t->n_ready < PART_ROWS ? t->n_context - t->n_ready : (size_t)PART_ROWS;
    sp_tree_truncate(&t->tree, t->n_ready);
    sp_status st = t->n_ready ? sp_tree_extend_last(&t->tree, t->context + t->n_ready, n)
                              : sp_tree_add_run(&run, &t->tree, SP_NO_RUN, t->context, n);
    if (!st) st = sp_engine_forward(t->engine, &(sp_pass){.tree = &t->tree, .first_row = t->n_ready});
    if (!st) t->n_ready += n;
    return st;
}

sp_status sp_teacher_begin(sp_tree **tree, sp_engine **engine, sp_teacher *teacher)
{
    sp_status st = SP_OK;
    while (!st && teacher->n_ready < teacher->n_context) st = compute_part(teacher);
    sp_tree_truncate(&teacher->tree, teacher->n_ready);
    *tree = &teacher->tree;
    *engine = teacher->engine;
    return st;
}
