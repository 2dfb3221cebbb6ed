/* session.c: one growing text behind one soft prompt: a token tree of a root and a single run, and an engine that keeps its keys.
 *
 * Invariant: the engine's store holds the keys of every row of the tree. Long texts go through in parts, so that activations
 * stay small. */
#include "generate/session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "model/engine.h"

enum { PART_ROWS = 512 };

struct sp_session {
    sp_model *model;
    sp_engine *engine;
    sp_tree tree;
    size_t n_prompt;
    float *logits;   /* (n_vocab) */
    bool has_logits; /* they belong to the last token */
};

/* Keys and values of the prompt; nobody reads its logits. */
static sp_status compute_prompt(sp_session *session, const sp_prompt *prompt)
{
    size_t root;
    /* The accessors give rows that may be written and so take no const; here they are only read. */
    sp_prompt *rows = (sp_prompt *)(uintptr_t)prompt;
    sp_status st = sp_prompt_check(prompt, session->model, NULL);
    if (!st) st = sp_tree_add_prompt(&root, &session->tree, sp_prompt_num_virtual_tokens(prompt));
    if (st) return st;
    session->n_prompt = session->tree.n_rows;
    if (sp_prompt_keys_values(rows))
        return sp_engine_set_keys_values(session->engine, 0, sp_prompt_keys_values(rows), session->n_prompt);
    sp_pass pass = {.tree = &session->tree, .prompt = sp_prompt_embeddings(rows)};
    return sp_engine_forward(session->engine, &pass);
}

sp_status sp_session_create(sp_session **out, sp_model *model, const sp_prompt *prompt)
{
    sp_session *session = calloc(1, sizeof *session);
    *out = NULL;
    if (!session) return sp_fail_no_memory(sizeof *session);
    session->model = model;
    session->logits = malloc(sp_model_n_vocab(model) * sizeof *session->logits);
    sp_status st = session->logits ? sp_engine_create(&session->engine, model)
                                   : sp_fail_no_memory(sp_model_n_vocab(model) * sizeof *session->logits);
    if (!st && prompt) st = compute_prompt(session, prompt);
    if (st)
        sp_session_free(session);
    else
        *out = session;
    return st;
}

void sp_session_free(sp_session *session)
{
    if (!session) return;
    sp_engine_free(session->engine);
    sp_tree_free(&session->tree);
    free(session->logits);
    free(session);
}

const sp_model *sp_session_model(const sp_session *session)
{
    return session->model;
}

const int32_t *sp_session_tokens(const sp_session *session)
{
    return session->tree.tokens + session->n_prompt;
}

size_t sp_session_n_tokens(const sp_session *session)
{
    return session->tree.n_rows - session->n_prompt;
}

size_t sp_session_room(const sp_session *session)
{
    sp_model_info info;
    sp_model_get_info(&info, session->model);
    return info.context_length > session->tree.n_rows ? info.context_length - session->tree.n_rows : 0;
}

void sp_session_rewind(sp_session *session, size_t n_tokens)
{
    if (n_tokens >= sp_session_n_tokens(session)) return;
    sp_tree_truncate(&session->tree, session->n_prompt + n_tokens);
    session->has_logits = false;
}

static sp_status extend_tree(sp_session *session, const int32_t *tokens, size_t n)
{
    size_t run, root = session->n_prompt ? 0 : SP_NO_RUN;
    if (sp_session_n_tokens(session) > 0) return sp_tree_extend_last(&session->tree, tokens, n);
    return sp_tree_add_run(&run, &session->tree, root, tokens, n);
}

/* Comparing NaNs would give any token, and no warning. */
static sp_status check_finite(const sp_session *session, const float *logits, size_t n)
{
    sp_model_info info;
    size_t i = 0;
    while (i < n && isfinite(logits[i])) i++;
    if (i == n) return SP_OK;
    sp_model_get_info(&info, session->model);
    return sp_fail(SP_ERR_FORMAT, "%s: the logit of token %zu is %g: weights%s are damaged; fetch the model again%s", info.path,
                   i % info.n_vocab, (double)logits[i], session->n_prompt ? " or prompt" : "",
                   session->n_prompt ? ", or train the prompt again" : "");
}

/* Computes the rows behind first_row, and the logits of their last n_logits. */
static sp_status compute_rows(sp_session *session, size_t first_row, size_t n_logits, float *logits)
{
    size_t n_rows = session->tree.n_rows, *read = malloc((n_logits + 1) * sizeof *read);
    if (!read) return sp_fail_no_memory(n_logits * sizeof *read);
    for (size_t i = 0; i < n_logits; i++) read[i] = n_rows - n_logits + i;
    sp_pass pass = {.tree = &session->tree, .first_row = first_row, .read_rows = read, .n_read = n_logits};
    sp_status st = sp_engine_forward(session->engine, &pass);
    if (!st && n_logits) st = sp_engine_logits(logits, session->engine, 0, n_logits);
    if (!st) st = check_finite(session, logits, n_logits * sp_model_n_vocab(session->model));
    free(read);
    return st;
}

static sp_status append(sp_session *session, const int32_t *tokens, size_t n, float *logits, bool all)
{
    size_t before = session->tree.n_rows, n_vocab = sp_model_n_vocab(session->model);
    sp_status st = n > 0 ? SP_OK : sp_fail(SP_ERR_ARGUMENT, "no tokens to append: at least one is needed");
    if (!st && n > sp_session_room(session))
        st = sp_fail(SP_ERR_ARGUMENT, "%zu more tokens do not fit: the model's context has room for %zu; shorten the text", n,
                     sp_session_room(session));
    for (size_t done = 0; done < n && !st;) {
        size_t part = n - done < PART_ROWS ? n - done : (size_t)PART_ROWS, first_row = session->tree.n_rows;
        size_t n_logits = all ? part : logits && done + part == n ? 1 : 0;
        st = extend_tree(session, tokens + done, part);
        if (!st) st = compute_rows(session, first_row, n_logits, all ? logits + done * n_vocab : logits);
        done += part;
    }
    if (st) sp_tree_truncate(&session->tree, before);
    session->has_logits = false;
    return st;
}

sp_status sp_session_append(sp_session *session, const int32_t *tokens, size_t n, float *logits)
{
    sp_status st = append(session, tokens, n, session->logits, false);
    if (st) return st;
    session->has_logits = true;
    if (logits) memcpy(logits, session->logits, sp_model_n_vocab(session->model) * sizeof *logits);
    return SP_OK;
}

sp_status sp_session_append_all(sp_session *session, const int32_t *tokens, size_t n, float *logits)
{
    return append(session, tokens, n, logits, true);
}

sp_status sp_session_last_logits(const float **out, sp_session *session)
{
    size_t n = sp_session_n_tokens(session);
    *out = session->logits;
    if (session->has_logits) return SP_OK;
    if (n == 0) return sp_fail(SP_ERR_ARGUMENT, "nothing to continue: append at least one token first");
    sp_status st = compute_rows(session, session->tree.n_rows - 1, 1, session->logits);
    session->has_logits = st == SP_OK;
    return st;
}
