/* session.c: one growing text behind one soft prompt, or behind several at once: a token tree with a branch for each prompt, and an
 * engine that keeps its keys.
 *
 *   prompt 1 -- the text        What is appended goes below each prompt, in one pass, and its logits are those of the ensemble.
 *   prompt 2 -- the text        A branch grows by a run for each append; when there are many, rows are moved so that it is one
 * again.
 *
 * Invariant: the engine's store holds the keys of every row of the tree. Long texts go through in parts, so that activations
 * stay small. */
#include "generate/session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/sizes.h"
#include "base/status.h"
#include "model/engine.h"
#include "prompt/prompt.h"

enum {
    PART_ROWS = 512,
    MAX_BRANCH_RUNS = 32 /* attention goes through keys run by run; moving rows costs about one read of them all */
};

/* The text behind one prompt. */
typedef struct branch {
    size_t root, n_root; /* the prompt's run and its rows; SP_NO_RUN, 0: there is no prompt */
    size_t last, before; /* the run that the text ends in, or the root; the same before an append that may fail */
} branch;

struct sp_session {
    sp_model *model;
    sp_engine *engine;
    sp_tree tree;
    branch *branches; /* (n_branches), as they stand in the tree */
    size_t n_branches;
    size_t n_prompt, n_front; /* rows of all prompts; where text starts, in the model's eyes, behind the longest */
    int32_t *tokens;          /* (n_tokens) the text */
    size_t n_tokens, tokens_capacity;
    bool is_rewound;     /* the tree of several branches still has rows of tokens that were forgotten */
    float *logits;       /* (n_vocab) */
    bool has_logits;     /* they belong to the last token */
    float *first_logits; /* (n_vocab) behind a single prompt of embeddings and no token; else NULL */
};

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

/* ---- prompts ---- */

/* Keys and values are given at once; embeddings are copied to *next, for the pass that computes theirs. */
static sp_status add_prompt(sp_session *session, branch *out, const sp_prompt *prompt, float **next)
{
    /* The accessors give rows that may be written and so take no const; here they are only read. */
    sp_prompt *rows = (sp_prompt *)(uintptr_t)prompt;
    size_t n = sp_prompt_num_virtual_tokens(prompt), first_row = session->tree.n_rows;
    const float *embeddings = sp_prompt_embeddings(rows);
    sp_status st = sp_tree_add_prompt(&out->root, &session->tree, n, sp_prompt_text_position(prompt));
    if (st) return st;
    out->last = out->root;
    out->n_root = n;
    if (!embeddings) return sp_engine_set_keys_values(session->engine, first_row, sp_prompt_keys_values(rows), n);
    memcpy(*next, embeddings, n * sp_model_d_model(session->model) * sizeof **next);
    *next += n * sp_model_d_model(session->model);
    return SP_OK;
}

static bool has_embeddings(const sp_prompt *prompt)
{
    return sp_prompt_embeddings((sp_prompt *)(uintptr_t)prompt) != NULL;
}

/* Keys and values of all prompts. Those that are given stand first, as the engine wants it. One prompt of embeddings predicts, too:
 * what it says first, behind no text, is read here, where its rows are. */
static sp_status compute_prompts(sp_session *session, const sp_prompt *const *prompts, size_t n, float *embeddings)
{
    sp_status st = SP_OK;
    branch *next = session->branches;
    float *next_embeddings = embeddings;
    for (size_t i = 0; i < n && !st; i++)
        if (!has_embeddings(prompts[i])) st = add_prompt(session, next++, prompts[i], NULL);
    size_t n_given = session->tree.n_rows;
    for (size_t i = 0; i < n && !st; i++)
        if (has_embeddings(prompts[i])) st = add_prompt(session, next++, prompts[i], &next_embeddings);
    session->n_prompt = session->tree.n_rows;
    if (st || session->n_prompt == n_given) return st;
    const size_t last = session->n_prompt - 1;
    const sp_pass pass = {.tree = &session->tree, .first_row = n_given, .prompt = embeddings, .read_rows = &last, .n_read = n == 1};
    if ((st = sp_engine_forward(session->engine, &pass)) || n > 1) return st;
    session->first_logits = malloc(sp_model_n_vocab(session->model) * sizeof *session->first_logits);
    if (!session->first_logits) return sp_fail_no_memory(sp_model_n_vocab(session->model) * sizeof *session->first_logits);
    if ((st = sp_engine_logits(session->first_logits, session->engine, 0, 1))) return st;
    return check_finite(session, session->first_logits, sp_model_n_vocab(session->model));
}

/* A compiled prompt has no rows in the tree: the text begins there. */
static sp_status add_states(sp_session *session, const sp_prompt *prompt)
{
    session->branches[0] = (branch){SP_NO_RUN, 0, SP_NO_RUN, SP_NO_RUN};
    session->tree.root_position = session->n_front;
    return sp_engine_set_states(session->engine, sp_prompt_states(prompt));
}

static sp_status add_prompts(sp_session *session, const sp_prompt *const *prompts, size_t n)
{
    size_t n_rows = 0;
    for (size_t i = 0; i < n; i++) {
        sp_status st = sp_prompt_check(prompts[i], session->model, NULL);
        if (!st && n > 1) st = sp_prompt_check_rows(prompts[i], "an ensemble stands behind its prompts' rows");
        if (st) return st;
        session->n_front = sp_larger(session->n_front, sp_prompt_text_position(prompts[i]));
        n_rows += has_embeddings(prompts[i]) ? sp_prompt_num_virtual_tokens(prompts[i]) : 0;
    }
    if (sp_prompt_states(prompts[0])) return add_states(session, prompts[0]);
    size_t n_bytes = (n_rows + 1) * sp_model_d_model(session->model) * sizeof(float);
    float *embeddings = malloc(n_bytes);
    sp_status st = embeddings ? compute_prompts(session, prompts, n, embeddings) : sp_fail_no_memory(n_bytes);
    free(embeddings);
    return st;
}

sp_status sp_session_create_ensemble(sp_session **out, sp_model *model, const sp_prompt *const *prompts, size_t n_prompts)
{
    sp_session *session = calloc(1, sizeof *session);
    *out = NULL;
    if (!session) return sp_fail_no_memory(sizeof *session);
    session->model = model;
    session->n_branches = n_prompts ? n_prompts : 1;
    session->branches = calloc(session->n_branches, sizeof *session->branches);
    session->logits = malloc(sp_model_n_vocab(model) * sizeof *session->logits);
    sp_status st = session->logits && session->branches ? sp_engine_create(&session->engine, model)
                                                        : sp_fail_no_memory(sp_model_n_vocab(model) * sizeof *session->logits);
    if (!st && n_prompts == 0) session->branches[0] = (branch){SP_NO_RUN, 0, SP_NO_RUN, SP_NO_RUN};
    if (!st && n_prompts > 0) st = add_prompts(session, prompts, n_prompts);
    if (st)
        sp_session_free(session);
    else
        *out = session;
    return st;
}

sp_status sp_session_create(sp_session **out, sp_model *model, const sp_prompt *prompt)
{
    return sp_session_create_ensemble(out, model, &prompt, prompt ? 1 : 0);
}

void sp_session_free(sp_session *session)
{
    if (!session) return;
    sp_engine_free(session->engine);
    sp_tree_free(&session->tree);
    free(session->branches);
    free(session->tokens);
    free(session->logits);
    free(session->first_logits);
    free(session);
}

void sp_session_get_compiled_use(sp_compiled_use *out, const sp_session *session)
{
    sp_engine_get_states_use(out, session->engine);
}

const sp_model *sp_session_model(const sp_session *session)
{
    return session->model;
}

const int32_t *sp_session_tokens(const sp_session *session)
{
    return session->tokens;
}

size_t sp_session_n_tokens(const sp_session *session)
{
    return session->n_tokens;
}

size_t sp_session_room(const sp_session *session)
{
    sp_model_info info;
    sp_model_get_info(&info, session->model);
    size_t used = session->n_front + session->n_tokens;
    return info.context_length > used ? info.context_length - used : 0;
}

/* ---- branches ---- */

void sp_session_rewind(sp_session *session, size_t n_tokens)
{
    if (n_tokens >= session->n_tokens) return;
    session->n_tokens = n_tokens;
    session->has_logits = false;
    session->is_rewound = session->n_branches > 1 && n_tokens > 0;
    if (session->is_rewound) return; /* what is left is no beginning of the rows: gather_branches moves them, and may fail */
    sp_tree_truncate(&session->tree, session->n_prompt + n_tokens);
    for (size_t b = 0; n_tokens == 0 && b < session->n_branches; b++) session->branches[b].last = session->branches[b].root;
}

/* from (n_tokens): the tree's row of each token below one prompt. */
static void find_rows(size_t *from, const sp_session *session, const branch *b)
{
    for (size_t run = b->last; run != b->root; run = session->tree.runs[run].parent) {
        const sp_run *r = &session->tree.runs[run];
        for (size_t i = 0, token = r->first_position - b->n_root; i < r->n_rows && token < session->n_tokens; i++, token++)
            from[token] = r->first_row + i;
    }
}

/* Every branch becomes one run of the tokens that the text has. */
static sp_status gather_branches(sp_session *session)
{
    size_t n = session->n_tokens, n_rows = session->n_branches * n, *from = malloc(n_rows * sizeof *from);
    if (!from) return sp_fail_no_memory(n_rows * sizeof *from);
    for (size_t b = 0; b < session->n_branches; b++) find_rows(from + b * n, session, &session->branches[b]);
    sp_status st = sp_engine_move_rows(session->engine, session->n_prompt, from, n_rows);
    free(from);
    if (st) return st;
    sp_tree_truncate(&session->tree, session->n_prompt);
    for (size_t b = 0; b < session->n_branches && !st; b++) /* fewer runs and rows than there were: it has the memory */
        st = sp_tree_add_run(&session->branches[b].last, &session->tree, session->branches[b].root, session->tokens, n);
    session->is_rewound = false;
    return st;
}

/* n tokens at the end of every branch. */
static sp_status extend_branches(sp_session *session, const int32_t *tokens, size_t n)
{
    sp_status st = SP_OK;
    for (size_t i = 0; i < session->n_branches && !st; i++) {
        branch *b = &session->branches[i];
        if (b->last != b->root && b->last + 1 == session->tree.n_runs)
            st = sp_tree_extend_last(&session->tree, tokens, n);
        else
            st = sp_tree_add_run(&b->last, &session->tree, b->last, tokens, n);
    }
    return st;
}

/* The row behind a branch's last one. */
static size_t end_row(const sp_session *session, size_t b)
{
    const sp_run *run = &session->tree.runs[session->branches[b].last];
    return run->first_row + run->n_rows;
}

/* Logits (n, n_vocab) behind the last n rows of a branch, or, of several, the ensemble's. The pass read branch after branch. */
static sp_status take_logits(float *logits, sp_session *session, size_t n)
{
    size_t n_branches = session->n_branches, *groups;
    if (n_branches == 1) return sp_engine_logits(logits, session->engine, 0, n);
    if (!(groups = malloc(n * n_branches * sizeof *groups))) return sp_fail_no_memory(n * n_branches * sizeof *groups);
    for (size_t i = 0; i < n * n_branches; i++) groups[i] = i % n_branches * n + i / n_branches;
    sp_status st = sp_engine_group_reads(session->engine, groups, n_branches, n);
    free(groups);
    return st ? st : sp_engine_group_logits(logits, session->engine, 0, n);
}

/* Computes the rows behind first_row, and the logits of the last n_logits tokens. */
static sp_status compute_rows(sp_session *session, size_t first_row, size_t n_logits, float *logits)
{
    size_t n_read = session->n_branches * n_logits, *read = malloc((n_read + 1) * sizeof *read);
    if (!read) return sp_fail_no_memory((n_read + 1) * sizeof *read);
    for (size_t i = 0; i < n_read; i++) read[i] = end_row(session, i / n_logits) - n_logits + i % n_logits;
    const sp_pass pass = {.tree = &session->tree, .first_row = first_row, .read_rows = read, .n_read = n_read};
    sp_status st = sp_engine_forward(session->engine, &pass);
    if (!st && n_logits) st = take_logits(logits, session, n_logits);
    if (!st) st = check_finite(session, logits, n_logits * sp_model_n_vocab(session->model));
    free(read);
    return st;
}

static sp_status reserve_tokens(sp_session *session, size_t n)
{
    if (n <= session->tokens_capacity) return SP_OK;
    size_t capacity = n < 2 * session->tokens_capacity ? 2 * session->tokens_capacity : n;
    int32_t *larger = realloc(session->tokens, capacity * sizeof *larger);
    if (!larger) return sp_fail_no_memory(capacity * sizeof *larger);
    session->tokens = larger;
    session->tokens_capacity = capacity;
    return SP_OK;
}

/* Room for n tokens more, and branches that can grow. */
static sp_status prepare_append(sp_session *session, size_t n)
{
    if (n == 0) return sp_fail(SP_ERR_ARGUMENT, "no tokens to append: at least one is needed");
    if (n > sp_session_room(session))
        return sp_fail(SP_ERR_ARGUMENT, "%zu more tokens do not fit: the model's context has room for %zu; shorten the text", n,
                       sp_session_room(session));
    sp_status st = reserve_tokens(session, session->n_tokens + n);
    bool many = session->n_branches > 1 && session->tree.n_runs > session->n_branches * (1 + MAX_BRANCH_RUNS);
    return !st && (many || session->is_rewound) ? gather_branches(session) : st;
}

static sp_status append(sp_session *session, const int32_t *tokens, size_t n, float *logits, bool all)
{
    size_t n_vocab = sp_model_n_vocab(session->model), at_once = sp_larger(PART_ROWS / session->n_branches, 1);
    sp_status st = prepare_append(session, n);
    if (st) return st;
    size_t before = session->tree.n_rows;
    for (size_t b = 0; b < session->n_branches; b++) session->branches[b].before = session->branches[b].last;
    for (size_t done = 0; done < n && !st;) {
        size_t part = sp_smaller(n - done, at_once), first_row = session->tree.n_rows;
        size_t n_logits = all ? part : logits && done + part == n ? 1 : 0;
        st = extend_branches(session, tokens + done, part);
        if (!st) st = compute_rows(session, first_row, n_logits, all ? logits + done * n_vocab : logits);
        done += part;
    }
    session->has_logits = false;
    if (st) {
        sp_tree_truncate(&session->tree, before);
        for (size_t b = 0; b < session->n_branches; b++) session->branches[b].last = session->branches[b].before;
        return st;
    }
    memcpy(session->tokens + session->n_tokens, tokens, n * sizeof *tokens);
    session->n_tokens += n;
    return SP_OK;
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
    const bool at_start = session->n_tokens == 0 && session->first_logits;
    *out = at_start ? session->first_logits : session->logits;
    if (session->has_logits || at_start) return SP_OK;
    if (session->n_tokens == 0) return sp_fail(SP_ERR_ARGUMENT, "nothing to continue: append at least one token first");
    sp_status st = session->is_rewound ? gather_branches(session) : SP_OK;
    if (!st) st = compute_rows(session, end_row(session, 0) - 1, 1, session->logits);
    session->has_logits = st == SP_OK;
    return st;
}
