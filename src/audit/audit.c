/* audit.c: texts behind a prompt, many in a pass, and what their queries and keys say of every head.
 *
 *   prompt --+-- text --            a pass of the engine, whose tap shows each layer's queries and keys to figures.c
 *            +-- text --
 *
 * Invariant: the engine holds the prompt's keys from the beginning; the tree is the prompt and the texts that wait for the next
 * pass. Memory: one pass, whatever the number of texts. Cost: a forward pass and about one and a half times its attention. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audit/internal.h"
#include "audit/spectrum.h"
#include "base/sizes.h"
#include "base/status.h"
#include "fast/remez.h"
#include "prompt/prompt.h"
#include "train/scorer.h"

enum {
    ROWS_AT_ONCE = 1024, /* texts wait until so many rows are there */
    DEFAULT_LEFT_OUT_ROWS = 64
};

static const double RANK_SHARE = 0.99, DEFAULT_EPSILON = 1e-3;

/* ---- passes ---- */

static sp_status find_ranks(sp_audit *a, const sp_attention_view *view)
{
    const size_t d = view->shape->d_head, n_heads = view->shape->n_head_kv;
    sp_status st = SP_OK;
    for (size_t h = 0; h < n_heads && !st; h++)
        st = sp_spectrum_rank(&a->ranks[view->layer * n_heads + h], view->kt + h * d * view->ldk, view->ldk, d, a->n_front,
                              RANK_SHARE, a->scratch);
    return st;
}

static sp_status see_texts(void *user, const sp_attention_view *view)
{
    sp_audit *a = user;
    a->soft_cap = view->shape->soft_cap;
    sp_status st = a->n_front && !a->ranks_known ? find_ranks(a, view) : SP_OK;
    sp_head_figures *figures = a->figures + view->layer * view->shape->n_head;
    return st ? st : sp_figures_add(figures, view, a->texts, a->n_texts, a->n_front, false, a->scratch);
}

/* The prompt's rows as if they were a text, with nothing in front. */
static sp_status see_prompt(void *user, const sp_attention_view *view)
{
    sp_audit *a = user;
    const sp_text_rows all = {0, a->n_front};
    return sp_figures_add(a->figures + view->layer * view->shape->n_head, view, &all, 1, 0, true, a->scratch);
}

/* `items`, with room for as many as wanted; NULL, with the message set: no memory, and items are as they were. */
static void *grow(void *items, size_t *capacity, size_t wanted, size_t item_bytes)
{
    if (wanted <= *capacity) return items;
    size_t larger = sp_larger(wanted, 2 * *capacity);
    void *grown = reallocarray(items, larger, item_bytes);
    if (grown)
        *capacity = larger;
    else
        sp_fail_no_memory(larger * item_bytes);
    return grown;
}

/* A pass over rows first .. of the tree, all of them read: in the last layer the others have no queries. */
static sp_status run_pass(sp_audit *a, size_t first, const float *prompt, sp_attention_tap *tap)
{
    const size_t n = a->tree.n_rows - first;
    size_t *rows = grow(a->rows, &a->rows_capacity, n, sizeof *rows);
    if (!rows) return SP_ERR_MEMORY;
    a->rows = rows;
    for (size_t r = 0; r < n; r++) rows[r] = first + r;
    const sp_pass pass = {
        .tree = &a->tree, .first_row = first, .prompt = prompt, .read_rows = rows, .n_read = n, .tap = tap, .tap_user = a};
    return sp_engine_forward(a->engine, &pass);
}

/* The texts that wait, which then are forgotten, also where the pass fails. */
static sp_status flush(sp_audit *a)
{
    if (!a->n_texts) return SP_OK;
    sp_status st = run_pass(a, a->n_front, NULL, see_texts);
    for (size_t t = 0; t < a->n_texts && !st; t++) {
        a->report.n = sp_larger(a->report.n, a->n_front + a->texts[t].n);
        a->report.n_rows += a->texts[t].n;
    }
    if (!st) a->report.n_texts += a->n_texts;
    if (!st) a->ranks_known = true;
    a->n_texts = 0;
    sp_tree_truncate(&a->tree, a->n_front);
    return st;
}

sp_status sp_audit_text(sp_audit *audit, const int32_t *tokens, size_t n)
{
    sp_audit *a = audit;
    size_t run, first_row = a->tree.n_rows;
    sp_model_info info;
    sp_model_get_info(&info, a->model);
    if (n == 0 || n > info.context_length - a->n_front)
        return sp_fail(SP_ERR_ARGUMENT, "a text of %zu tokens behind %zu virtual tokens: the model's context is %zu; give 1 to %zu",
                       n, a->n_front, info.context_length, info.context_length - a->n_front);
    sp_text_rows *texts = grow(a->texts, &a->texts_capacity, a->n_texts + 1, sizeof *texts);
    if (!texts) return SP_ERR_MEMORY;
    a->texts = texts;
    sp_status st = sp_tree_add_run(&run, &a->tree, a->prompt_run, tokens, n);
    if (st) return st;
    a->texts[a->n_texts++] = (sp_text_rows){first_row, n};
    return a->tree.n_rows - a->n_front >= ROWS_AT_ONCE ? flush(a) : SP_OK;
}

sp_status sp_audit_row(sp_audit *audit, const sp_encoded_row *row)
{
    const size_t n_answer = row->right == SIZE_MAX ? 1 : row->n_candidate[row->right], n = row->n_context + n_answer - 1;
    int32_t *tokens = malloc((n + 1) * sizeof *tokens);
    if (!tokens) return sp_fail_no_memory((n + 1) * sizeof *tokens);
    if (row->n_context) memcpy(tokens, row->context, row->n_context * sizeof *tokens);
    if (n_answer > 1) memcpy(tokens + row->n_context, row->candidates[row->right], (n_answer - 1) * sizeof *tokens);
    sp_status st = sp_audit_text(audit, tokens, n);
    free(tokens);
    return st;
}

/* ---- the audit itself ---- */

/* Puts the prompt's keys into the engine. */
static sp_status place_prompt(sp_audit *a)
{
    if (!a->prompt) return SP_OK;
    const sp_root root = sp_root_of_prompt(a->prompt);
    a->report.num_virtual_tokens = a->n_front = root.n;
    sp_status st = sp_audit_describe_tokens(a, &root);
    if (!st) st = sp_tree_add_prompt(&a->prompt_run, &a->tree, root.n, root.text_position);
    if (!st && root.keys_values) return sp_engine_set_keys_values(a->engine, 0, root.keys_values, root.n);
    return st ? st : run_pass(a, 0, root.embeddings, a->options.with_prompt_rows ? see_prompt : NULL);
}

static sp_status check_room(const sp_audit *a, const sp_model_info *info)
{
    const size_t n = a->prompt ? sp_prompt_text_position(a->prompt) : 0;
    if (n < info->context_length) return SP_OK;
    return sp_fail(SP_ERR_ARGUMENT,
                   "a prompt that ends at position %zu leaves no room in the model's context of %zu; use a shorter one", n,
                   info->context_length);
}

static sp_status open_audit(sp_audit *a)
{
    sp_model_info info;
    if (!(a->options.epsilon > 0 && a->options.epsilon < 1))
        return sp_fail(SP_ERR_ARGUMENT, "epsilon is %g; give a number between 0 and 1", a->options.epsilon);
    sp_model_get_info(&info, a->model);
    const size_t n = info.n_layer * info.n_head;
    a->figures = calloc(n, sizeof *a->figures);
    a->heads = calloc(n, sizeof *a->heads);
    a->ranks = calloc(info.n_layer * info.n_head_kv, sizeof *a->ranks);
    if (!a->figures || !a->heads || !a->ranks) return sp_fail_no_memory(n * (sizeof *a->figures + sizeof *a->heads));
    sp_status st = check_room(a, &info);
    if (!st) st = sp_prompt_check_rows(a->prompt, "an audit looks at a prompt's keys");
    if (!st && a->prompt) st = sp_prompt_check(a->prompt, a->model, NULL);
    if (!st) st = sp_arena_create(&a->scratch);
    if (!st) st = sp_engine_create(&a->engine, a->model);
    a->report = (sp_audit_report){.n_layer = info.n_layer, .n_head = info.n_head, .heads = a->heads};
    return st ? st : place_prompt(a);
}

sp_status sp_audit_create(sp_audit **out, sp_model *model, const sp_prompt *prompt, const sp_audit_options *options)
{
    *out = NULL;
    sp_audit *a = calloc(1, sizeof *a);
    if (!a) return sp_fail_no_memory(sizeof *a);
    a->model = model;
    a->prompt = prompt;
    a->prompt_run = SP_NO_RUN;
    if (options) a->options = *options;
    if (a->options.n_left_out_rows == 0) a->options.n_left_out_rows = DEFAULT_LEFT_OUT_ROWS;
    if (a->options.n_left_out_rows == SIZE_MAX) a->options.n_left_out_rows = 0;
    if (a->options.epsilon == 0) a->options.epsilon = DEFAULT_EPSILON;
    sp_status st = open_audit(a);
    if (st)
        sp_audit_free(a);
    else
        *out = a;
    return st;
}

void sp_audit_free(sp_audit *audit)
{
    if (!audit) return;
    sp_engine_free(audit->engine);
    sp_arena_free(audit->scratch);
    sp_tree_free(&audit->tree);
    free(audit->texts);
    free(audit->rows);
    free(audit->figures);
    free(audit->ranks);
    free(audit->heads);
    free(audit->tokens);
    free(audit);
}

/* ---- the report ---- */

static sp_verdict judge(const sp_head_figures *f)
{
    if (f->entries_ratio <= 1) return SP_VERDICT_INSIDE;
    return f->scores_ratio <= 1 ? SP_VERDICT_SCORES : SP_VERDICT_BEYOND;
}

static void describe_head(sp_audit_head *out, const sp_audit *a, size_t layer, size_t head, size_t heads_per_key)
{
    const size_t n_head = a->report.n_head;
    const sp_head_figures *f = &a->figures[layer * n_head + head];
    const double n = (double)f->n_rows;
    *out = (sp_audit_head){
        .layer = layer,
        .head = head,
        .max_entry_q = f->max_entry_q,
        .max_entry_k = f->max_entry_k,
        .max_score = f->max_score,
        .max_score_centred = f->max_score_centred,
        .cauchy_schwarz = f->cauchy_schwarz,
        .criterion = f->n_keys ? sqrt(log((double)f->n_keys)) : NAN,
        .n_keys = f->n_keys,
        .entries_ratio = f->entries_ratio,
        .scores_ratio = f->scores_ratio,
        .entropy = f->entropy / n,
        .sink_mass = f->sink_mass / n,
        .prompt_mass = f->prompt_mass / n,
        .key_rank_99 = a->n_front ? a->ranks[layer * (n_head / heads_per_key) + head / heads_per_key] : SIZE_MAX,
        .verdict = judge(f),
    };
}

/* What attention in almost linear time would take. widest: the largest range that any degree serves. */
static void plan_head(sp_audit_head *head, const sp_audit *a, double widest, size_t d_head)
{
    sp_exp_polynomial p;
    head->degree = SIZE_MAX;
    if (a->soft_cap != 0 || !(head->max_score_centred <= widest)) return;
    if (!sp_exp_polynomial_find(&p, head->max_score_centred, a->options.epsilon, SP_MAX_DEGREE)) return;
    const size_t features = sp_monomials_count(d_head, p.degree);
    head->degree = p.degree;
    if (features == SIZE_MAX) return;
    head->features = features;
    head->cost_ratio = (double)a->report.n * (2 * (double)d_head + 1) / (2 * (double)features * ((double)d_head + 1));
}

sp_status sp_audit_get_report(const sp_audit_report **out, sp_audit *audit)
{
    sp_model_info info;
    *out = NULL;
    sp_status st = flush(audit);
    if (st) return st;
    if (!audit->report.n_texts) return sp_fail(SP_ERR_FORMAT, "there was no text to audit");
    sp_model_get_info(&info, audit->model);
    const double widest = sp_exp_polynomial_range(SP_MAX_DEGREE, audit->options.epsilon);
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < info.n_layer * info.n_head; i++) {
        describe_head(&audit->heads[i], audit, i / info.n_head, i % info.n_head, info.n_head / info.n_head_kv);
        plan_head(&audit->heads[i], audit, widest, info.d_head);
    }
    *out = &audit->report;
    return SP_OK;
}
