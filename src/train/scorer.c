/* scorer.c: items -> sequences -> token tree -> targets, and the way back.
 *
 * The last token of an answer is predicted and never read, so a sequence is context and answer without it; a single-token
 * answer adds no row. The answer's token k is predicted by the row before it, which is the prompt's last row where an item
 * has no context. Several targets may share a row: the candidates of an example do. */
#include "train/scorer.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/status.h"
#include "model/engine.h"

enum { MAX_PASS_ROWS = 4096 }; /* bounds what a pass keeps for its backward; a longer batch takes several passes */

/* p > 1/2 can be no other token's: no logits are needed to know the largest. A little below ln 2, for rounding. */
static const double CERTAIN_NLL = 0.69;

/* One answer token before sorting; `index` is its place in the caller's order. */
typedef struct prediction {
    size_t row, index;
    int32_t token;
    float weight;
} prediction;

struct sp_scorer {
    sp_model *model;
    sp_engine *engine;
    sp_arena *arena; /* everything below lives in it, for one call */
    sp_tree tree;
    const float *prompt, *keys_values; /* of the prompt's rows: one of them, or neither */
    size_t n_prompt;
    bool prompt_done; /* the engine holds the prompt's keys */
    const sp_item *items;
    size_t n_items;
    prediction *predictions; /* (n_targets) ascending by row */
    size_t n_targets, n_read;
    size_t *read_rows, *reads; /* (n_read); reads (n_targets): index into read_rows, in the caller's order */
    sp_target *targets;        /* (n_targets) ascending by row */
    double *nll;               /* (n_targets) in the caller's order */
};

sp_status sp_scorer_create(sp_scorer **out, sp_model *model)
{
    *out = NULL;
    sp_scorer *s = calloc(1, sizeof *s);
    if (!s) return sp_fail_no_memory(sizeof *s);
    s->model = model;
    sp_status st = sp_arena_create(&s->arena);
    if (!st) st = sp_engine_create(&s->engine, model);
    if (st)
        sp_scorer_free(s);
    else
        *out = s;
    return st;
}

void sp_scorer_free(sp_scorer *scorer)
{
    if (!scorer) return;
    sp_tree_free(&scorer->tree);
    sp_engine_free(scorer->engine);
    sp_arena_free(scorer->arena);
    free(scorer);
}

void sp_scorer_set_prompt(sp_scorer *scorer, const sp_prompt *prompt)
{
    /* The accessor gives rows that may be written and so takes no const; here they are only read. */
    scorer->prompt = prompt ? sp_prompt_embeddings((sp_prompt *)(uintptr_t)prompt) : NULL;
    scorer->keys_values = prompt ? sp_prompt_keys_values((sp_prompt *)(uintptr_t)prompt) : NULL;
    scorer->n_prompt = prompt ? sp_prompt_num_virtual_tokens(prompt) : 0;
    scorer->prompt_done = false;
}

size_t sp_scorer_fit(const sp_item *items, size_t n_items)
{
    size_t n_rows = 0, i = 0;
    for (; i < n_items; i++) {
        bool shared = i > 0 && items[i].context == items[i - 1].context; /* the next candidate of one example */
        n_rows += items[i].n_answer + (shared ? 0 : items[i].n_context);
        if (i > 0 && n_rows > MAX_PASS_ROWS) break;
    }
    return i;
}

/* ---- the tree ---- */

static size_t sequence_length(const sp_item *item)
{
    return item->n_context + item->n_answer - 1;
}

static sp_status check_items(const sp_scorer *s, const sp_item *items, size_t n_items)
{
    for (size_t i = 0; i < n_items; i++) {
        if (items[i].n_answer == 0) return sp_fail(SP_ERR_ARGUMENT, "example %zu has no answer token; give it at least one", i + 1);
        if (items[i].n_context == 0 && s->n_prompt == 0)
            return sp_fail(SP_ERR_ARGUMENT,
                           "example %zu starts with its answer, and there is no prompt to predict it from; put "
                           "a context or a prompt in front",
                           i + 1);
        if (items[i].n_context == 0 && s->keys_values)
            return sp_fail(SP_ERR_ARGUMENT,
                           "example %zu starts with its answer: a prompt of keys and values is read by tokens and predicts none; "
                           "put a context in front",
                           i + 1);
    }
    return SP_OK;
}

/* rows[i]: the tree's row of each token of item i's sequence. */
static sp_status build_tree(size_t **rows, sp_scorer *s)
{
    size_t n_sequences = 0, root = SP_NO_RUN;
    size_t *lengths = sp_arena_alloc(s->arena, s->n_items, sizeof *lengths);
    const int32_t **sequences = sp_arena_alloc(s->arena, s->n_items, sizeof *sequences);
    size_t **filled = sp_arena_alloc(s->arena, s->n_items, sizeof *filled);
    if (!lengths || !sequences || !filled) return SP_ERR_MEMORY;
    for (size_t i = 0; i < s->n_items; i++) {
        const sp_item *item = &s->items[i];
        size_t n = sequence_length(item);
        int32_t *tokens = sp_arena_alloc(s->arena, n, sizeof *tokens);
        rows[i] = sp_arena_alloc(s->arena, n, sizeof **rows);
        if (!tokens || !rows[i]) return SP_ERR_MEMORY;
        if (n == 0) continue;
        if (item->n_context) memcpy(tokens, item->context, item->n_context * sizeof *tokens);
        if (item->n_answer > 1) memcpy(tokens + item->n_context, item->answer, (item->n_answer - 1) * sizeof *tokens);
        sequences[n_sequences] = tokens;
        lengths[n_sequences] = n;
        filled[n_sequences++] = rows[i];
    }
    sp_tree_clear(&s->tree);
    sp_status st = s->n_prompt ? sp_tree_add_prompt(&root, &s->tree, s->n_prompt) : SP_OK;
    if (!st && n_sequences) st = sp_tree_add_sequences((size_t *const *)filled, &s->tree, root, sequences, lengths, n_sequences);
    return st;
}

/* ---- targets ---- */

static int by_row(const void *left, const void *right)
{
    const prediction *a = left, *b = right;
    if (a->row != b->row) return a->row < b->row ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static void list_predictions(sp_scorer *s, size_t *const *rows, double scale)
{
    prediction *next = s->predictions;
    for (size_t i = 0; i < s->n_items; i++) {
        const sp_item *item = &s->items[i];
        for (size_t k = 0; k < item->n_answer; k++, next++) {
            size_t position = item->n_context + k; /* in the sequence; the row before predicts it */
            *next = (prediction){position ? rows[i][position - 1] : s->n_prompt - 1, (size_t)(next - s->predictions),
                                 item->answer[k], (float)(scale / (double)item->n_answer)};
        }
    }
    qsort(s->predictions, s->n_targets, sizeof *s->predictions, by_row);
}

static sp_status build_targets(sp_scorer *s, size_t *const *rows, double scale)
{
    s->n_targets = s->n_read = 0;
    for (size_t i = 0; i < s->n_items; i++) s->n_targets += s->items[i].n_answer;
    s->predictions = sp_arena_alloc(s->arena, s->n_targets, sizeof *s->predictions);
    s->read_rows = sp_arena_alloc(s->arena, s->n_targets, sizeof *s->read_rows);
    s->reads = sp_arena_alloc(s->arena, s->n_targets, sizeof *s->reads);
    s->targets = sp_arena_alloc(s->arena, s->n_targets, sizeof *s->targets);
    if (!s->predictions || !s->read_rows || !s->reads || !s->targets) return SP_ERR_MEMORY;
    list_predictions(s, rows, scale);
    for (size_t i = 0; i < s->n_targets; i++) {
        const prediction *p = &s->predictions[i];
        if (s->n_read == 0 || s->read_rows[s->n_read - 1] != p->row) s->read_rows[s->n_read++] = p->row;
        s->targets[i] = (sp_target){s->n_read - 1, p->token, p->weight};
        s->reads[p->index] = s->n_read - 1;
    }
    return SP_OK;
}

/* ---- passes ---- */

static sp_status forward(sp_scorer *s, bool with_gradient)
{
    sp_status st = SP_OK;
    if (s->keys_values && !s->prompt_done) st = sp_engine_set_keys_values(s->engine, s->keys_values, s->n_prompt);
    if (st) return st;
    bool reuse = s->keys_values || (s->prompt_done && !with_gradient && s->read_rows[0] >= s->n_prompt);
    const sp_pass pass = {.tree = &s->tree,
                          .first_row = reuse ? s->n_prompt : 0,
                          .prompt = s->prompt,
                          .read_rows = s->read_rows,
                          .n_read = s->n_read,
                          .keep_for_backward = with_gradient};
    s->prompt_done = false;
    st = sp_engine_forward(s->engine, &pass);
    s->prompt_done = !st && s->n_prompt > 0;
    return st;
}

static sp_status cross_entropy(sp_scorer *s, bool with_gradient)
{
    double *sorted = sp_arena_alloc(s->arena, s->n_targets, sizeof *sorted);
    s->nll = sp_arena_alloc(s->arena, s->n_targets, sizeof *s->nll);
    if (!sorted || !s->nll) return SP_ERR_MEMORY;
    sp_status st = sp_engine_cross_entropy(sorted, s->engine, s->targets, s->n_targets, with_gradient);
    for (size_t i = 0; i < s->n_targets && !st; i++) s->nll[s->predictions[i].index] = sorted[i];
    return st;
}

static sp_status run_pass(const double **nll, sp_scorer *s, const sp_item *items, size_t n_items, double scale, bool with_gradient)
{
    *nll = NULL;
    sp_status st = check_items(s, items, n_items);
    if (st) return st;
    s->items = items;
    s->n_items = n_items;
    sp_arena_reset(s->arena, (sp_arena_mark){0});
    size_t **rows = sp_arena_alloc(s->arena, n_items, sizeof *rows);
    if (!rows) return SP_ERR_MEMORY;
    if ((st = build_tree(rows, s)) || (st = build_targets(s, rows, scale)) || (st = forward(s, with_gradient)) ||
        (st = cross_entropy(s, with_gradient)))
        return st;
    *nll = s->nll;
    return SP_OK;
}

sp_status sp_scorer_score(const double **nll, sp_scorer *scorer, const sp_item *items, size_t n_items)
{
    return run_pass(nll, scorer, items, n_items, 1, false);
}

sp_status sp_scorer_gradient(const double **nll, float *gradient, sp_scorer *scorer, const sp_item *items, size_t n_items,
                             double scale)
{
    sp_status st = run_pass(nll, scorer, items, n_items, scale, true);
    return st ? st : sp_engine_backward(gradient, scorer->engine);
}

/* Is `token` the first of the largest? */
static bool is_largest(const float *logits, size_t n, int32_t token)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best == (size_t)token;
}

sp_status sp_scorer_is_greedy(bool *out, sp_scorer *scorer, size_t index)
{
    sp_arena_mark mark = sp_arena_get_mark(scorer->arena);
    size_t n_vocab = sp_model_n_vocab(scorer->model), first = 0;
    const sp_item *item = &scorer->items[index];
    float *logits = sp_arena_alloc(scorer->arena, n_vocab, sizeof *logits);
    sp_status st = logits ? SP_OK : SP_ERR_MEMORY;
    for (size_t i = 0; i < index; i++) first += scorer->items[i].n_answer;
    *out = true;
    for (size_t k = 0; k < item->n_answer && *out && !st; k++) {
        if (scorer->nll[first + k] < CERTAIN_NLL) continue;
        st = sp_engine_logits(logits, scorer->engine, scorer->reads[first + k], 1);
        if (!st) *out = is_largest(logits, n_vocab, item->answer[k]);
    }
    sp_arena_reset(scorer->arena, mark);
    return st;
}
