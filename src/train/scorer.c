/* scorer.c: roots and items -> sequences -> token tree -> targets, and the way back.
 *
 * Roots stand in the tree by kind, those of keys and values first, as the engine wants them, and else in their order. A pass that
 * only scores has all of them, so that the next one finds their keys; one that wants a gradient has those that its items use.
 *
 * The last token of an answer is predicted and never read, so a sequence is context and answer without it; a single-token
 * answer adds no row. The answer's token k is predicted by the row before it, which is the root's last row where an item
 * has no context. Several targets may share a row: the candidates of an example do.
 *
 * An ensemble has every item once behind each root. Below each the same sequences make the same runs, so what shares a row behind
 * one prompt does so behind all, and the rows that predict a token are a group of one row a prompt. */
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

/* Where a root stands in the present pass's tree. */
typedef struct placed_root {
    size_t n_items; /* that stand behind it */
    bool in_tree;
    size_t run, first_row; /* SP_NO_RUN, 0: there is nothing in front of its items */
} placed_root;

struct sp_scorer {
    sp_model *model;
    sp_engine *engine;
    sp_arena *arena; /* everything below lives in it, for one call */
    sp_tree tree;
    const sp_root *roots; /* (n_roots), the caller's, or `single` */
    size_t n_roots;
    sp_root single;
    bool is_ensemble;         /* items stand behind all roots at once */
    bool roots_done;          /* the engine holds the keys of all roots, where a scoring pass has them */
    placed_root *placed;      /* (n_roots) */
    size_t n_given, n_prompt; /* the tree's rows of roots of keys and values, of all roots */
    const sp_item *items;     /* (n_items) of an ensemble, those asked for behind the first root, then behind the next, ... */
    size_t n_items;
    prediction *predictions; /* (n_targets) ascending by row */
    size_t n_targets, n_read;
    size_t *read_rows, *reads; /* (n_read); reads (n_targets): index into read_rows, in the caller's order */
    sp_target *targets;        /* (n_targets) ascending by row */
    double *nll;               /* (n_targets) in the caller's order */
    size_t *groups, n_groups;  /* of an ensemble: (n_groups, n_roots), indices into read_rows; reads are of groups then */
};

sp_status sp_scorer_create(sp_scorer **out, sp_model *model)
{
    *out = NULL;
    sp_scorer *s = calloc(1, sizeof *s);
    if (!s) return sp_fail_no_memory(sizeof *s);
    s->model = model;
    sp_scorer_set_prompt(s, NULL);
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

sp_root sp_root_of_prompt(const sp_prompt *prompt)
{
    /* The accessors give rows that may be written and so take no const; here they are only read. */
    sp_prompt *rows = (sp_prompt *)(uintptr_t)prompt;
    if (!prompt) return (sp_root){0};
    sp_state_set *states = sp_prompt_states(prompt);
    return (sp_root){.embeddings = sp_prompt_embeddings(rows),
                     .keys_values = sp_prompt_keys_values(rows),
                     .n = states ? 0 : sp_prompt_num_virtual_tokens(prompt),
                     .text_position = sp_prompt_text_position(prompt),
                     .states = states};
}

sp_status sp_roots_of_prompt(sp_root **out, size_t *n, const sp_prompt *prompt)
{
    const sp_root in_use = sp_root_of_prompt(prompt);
    *n = prompt ? sp_prompt_num_tasks(prompt) : 1;
    sp_root *roots = *out = calloc(*n, sizeof *roots);
    if (!roots) return sp_fail_no_memory(*n * sizeof *roots);
    for (size_t k = 0; k < *n; k++) {
        roots[k] = in_use;
        if (!prompt) continue;
        roots[k].targets = sp_prompt_targets(&roots[k].n_targets, prompt);
        *(in_use.keys_values ? &roots[k].keys_values : &roots[k].embeddings) = sp_prompt_task_rows(prompt, k);
    }
    return SP_OK;
}

void sp_scorer_set_roots(sp_scorer *scorer, const sp_root *roots, size_t n_roots)
{
    scorer->roots = roots;
    scorer->n_roots = n_roots;
    scorer->roots_done = false;
    scorer->is_ensemble = false;
}

void sp_scorer_set_ensemble(sp_scorer *scorer, const sp_root *roots, size_t n_roots)
{
    sp_scorer_set_roots(scorer, roots, n_roots);
    scorer->is_ensemble = true;
}

const sp_root *sp_scorer_roots(const sp_scorer *scorer)
{
    return scorer->roots;
}

void sp_scorer_set_prompt(sp_scorer *scorer, const sp_prompt *prompt)
{
    scorer->single = sp_root_of_prompt(prompt);
    sp_scorer_set_roots(scorer, &scorer->single, 1);
}

sp_compiled_use sp_scorer_compiled_use(const sp_scorer *scorer)
{
    sp_compiled_use use;
    sp_engine_get_states_use(&use, scorer->engine);
    return use;
}

size_t sp_scorer_fit(const sp_item *items, size_t n_items)
{
    size_t n_rows = 0, i = 0;
    for (; i < n_items; i++) {
        bool shared = i > 0 && items[i].context == items[i - 1].context && items[i].root == items[i - 1].root; /* one example's */
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

/* number: of the example, from 1. */
static sp_status check_item(const sp_scorer *s, const sp_item *item, size_t number)
{
    if (item->n_answer == 0) return sp_fail(SP_ERR_ARGUMENT, "example %zu has no answer token; give it at least one", number);
    if (item->root >= s->n_roots)
        return sp_fail(SP_ERR_ARGUMENT, "example %zu stands behind prompt %zu of %zu; number them from 0", number, item->root,
                       s->n_roots);
    if (item->n_context > 0) return SP_OK;
    if (s->roots[item->root].n == 0)
        return sp_fail(SP_ERR_ARGUMENT,
                       "example %zu starts with its answer, and there is no prompt to predict it from; put "
                       "a context or a prompt in front",
                       number);
    if (s->roots[item->root].keys_values)
        return sp_fail(SP_ERR_ARGUMENT,
                       "example %zu starts with its answer: a prompt of keys and values is read by tokens and predicts none; "
                       "put a context in front",
                       number);
    return SP_OK;
}

/* The items asked for; of an ensemble behind each of its roots. */
static sp_status take_items(sp_scorer *s, const sp_item *items, size_t n_items)
{
    size_t n_copies = s->is_ensemble ? s->n_roots : 1;
    sp_status st = SP_OK;
    s->items = items;
    s->n_items = n_items * n_copies;
    if (s->is_ensemble) {
        sp_item *copies = sp_arena_alloc(s->arena, s->n_items, sizeof *copies);
        if (!copies) return SP_ERR_MEMORY;
        for (size_t i = 0; i < s->n_items; i++) {
            copies[i] = items[i % n_items];
            copies[i].root = i / n_items;
        }
        s->items = copies;
    }
    for (size_t i = 0; i < s->n_items && !st; i++) st = check_item(s, &s->items[i], i % n_items + 1);
    return st;
}

/* The prompts of one kind that take part. */
static sp_status add_prompts(sp_scorer *s, bool given)
{
    sp_status st = SP_OK;
    for (size_t r = 0; r < s->n_roots && !st; r++) {
        const sp_root *root = &s->roots[r];
        placed_root *placed = &s->placed[r];
        if (!placed->in_tree || root->n == 0 || (root->keys_values != NULL) != given) continue;
        placed->first_row = s->tree.n_rows;
        st = sp_tree_add_prompt(&placed->run, &s->tree, root->n, root->text_position);
    }
    return st;
}

/* All roots, or those that items use, as the first rows of the tree. */
static sp_status place_roots(sp_scorer *s, bool all)
{
    if (!(s->placed = sp_arena_alloc(s->arena, s->n_roots, sizeof *s->placed))) return SP_ERR_MEMORY;
    for (size_t r = 0; r < s->n_roots; r++) s->placed[r] = (placed_root){0, all, SP_NO_RUN, 0};
    for (size_t i = 0; i < s->n_items; i++) {
        placed_root *placed = &s->placed[s->items[i].root];
        placed->n_items++;
        placed->in_tree = true;
    }
    sp_tree_clear(&s->tree);
    if (s->roots[0].states) s->tree.root_position = s->roots[0].text_position;
    sp_status st = add_prompts(s, true);
    s->n_given = s->tree.n_rows;
    if (!st) st = add_prompts(s, false);
    s->n_prompt = s->tree.n_rows;
    return st;
}

/* rows: room for the tree's row of each token of the item's sequence. */
static sp_status copy_sequence(int32_t **tokens, size_t **rows, const sp_scorer *s, const sp_item *item)
{
    size_t n = sequence_length(item);
    *tokens = sp_arena_alloc(s->arena, n, sizeof **tokens);
    *rows = sp_arena_alloc(s->arena, n, sizeof **rows);
    if (!*tokens || !*rows) return SP_ERR_MEMORY;
    if (item->n_context) memcpy(*tokens, item->context, item->n_context * sizeof **tokens);
    if (item->n_answer > 1) memcpy(*tokens + item->n_context, item->answer, (item->n_answer - 1) * sizeof **tokens);
    return SP_OK;
}

/* rows[i] of the items that stand behind one root: the tree's row of each token of item i's sequence. */
static sp_status add_items(size_t **rows, sp_scorer *s, size_t root)
{
    size_t n = s->placed[root].n_items, next = 0;
    size_t *lengths = sp_arena_alloc(s->arena, n, sizeof *lengths);
    const int32_t **sequences = sp_arena_alloc(s->arena, n, sizeof *sequences);
    size_t **filled = sp_arena_alloc(s->arena, n, sizeof *filled);
    if (!lengths || !sequences || !filled) return SP_ERR_MEMORY;
    for (size_t i = 0; next < n; i++) {
        int32_t *tokens;
        if (s->items[i].root != root) continue;
        if (copy_sequence(&tokens, &rows[i], s, &s->items[i])) return SP_ERR_MEMORY;
        sequences[next] = tokens;
        lengths[next] = sequence_length(&s->items[i]);
        filled[next++] = rows[i];
    }
    return sp_tree_add_sequences((size_t *const *)filled, &s->tree, s->placed[root].run, sequences, lengths, n);
}

static sp_status build_tree(size_t **rows, sp_scorer *s, bool all_roots)
{
    sp_status st = place_roots(s, all_roots);
    for (size_t r = 0; r < s->n_roots && !st; r++)
        if (s->placed[r].n_items) st = add_items(rows, s, r);
    return st;
}

/* ---- targets ---- */

static int by_row(const void *left, const void *right)
{
    const prediction *a = left, *b = right;
    if (a->row != b->row) return a->row < b->row ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

/* What predicts the first token of an item without context. */
static size_t last_row_of_root(const sp_scorer *s, size_t root)
{
    return s->placed[root].first_row + s->roots[root].n - 1;
}

static size_t count_root_targets(const sp_scorer *s, size_t root)
{
    return s->placed[root].n_items ? s->roots[root].n_targets : 0;
}

static void list_predictions(sp_scorer *s, size_t *const *rows, double scale)
{
    prediction *next = s->predictions;
    for (size_t i = 0; i < s->n_items; i++) {
        const sp_item *item = &s->items[i];
        const double plain = s->roots[item->root].targets ? scale : scale / (double)item->n_answer;
        for (size_t k = 0; k < item->n_answer; k++, next++) {
            size_t position = item->n_context + k; /* in the sequence; the row before predicts it */
            size_t row = position ? rows[i][position - 1] : last_row_of_root(s, item->root);
            const double weight = item->weights ? scale * (double)item->weights[k] : plain;
            *next = (prediction){row, (size_t)(next - s->predictions), item->answer[k], (float)weight};
        }
    }
    for (size_t r = 0; r < s->n_roots; r++) {
        const sp_prompt_target *targets = s->roots[r].targets;
        const double weight = scale * (double)s->placed[r].n_items; /* each item would have them, if it had a prompt of its own */
        for (size_t t = 0; t < count_root_targets(s, r); t++, next++)
            *next = (prediction){s->placed[r].first_row + targets[t].row, (size_t)(next - s->predictions), targets[t].token,
                                 (float)(weight * targets[t].weight)};
    }
    qsort(s->predictions, s->n_targets, sizeof *s->predictions, by_row);
}

static sp_status build_targets(sp_scorer *s, size_t *const *rows, double scale)
{
    s->n_targets = s->n_read = 0;
    for (size_t i = 0; i < s->n_items; i++) s->n_targets += s->items[i].n_answer;
    for (size_t r = 0; r < s->n_roots; r++) s->n_targets += count_root_targets(s, r);
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

/* From targets of every root to one for each token asked for, which a group of reads predicts. */
static sp_status group_targets(sp_scorer *s)
{
    size_t n_asked = s->n_targets / s->n_roots, n = 0, last = SIZE_MAX;
    s->groups = sp_arena_alloc(s->arena, s->n_targets, sizeof *s->groups);
    if (!s->groups) return SP_ERR_MEMORY;
    s->n_groups = 0;
    for (size_t i = 0; i < s->n_targets; i++) {
        const prediction p = s->predictions[i];
        if (p.index >= n_asked) continue; /* of another root than the first */
        if (s->reads[p.index] != last) {
            last = s->reads[p.index];
            for (size_t r = 0; r < s->n_roots; r++) s->groups[s->n_groups * s->n_roots + r] = s->reads[r * n_asked + p.index];
            s->n_groups++;
        }
        s->targets[n] = (sp_target){s->n_groups - 1, p.token, p.weight};
        s->predictions[n++] = p;
    }
    for (size_t t = 0; t < n; t++) s->reads[s->predictions[t].index] = s->targets[t].read;
    s->n_targets = n;
    return SP_OK;
}

/* ---- passes ---- */

static sp_status give_keys_values(const sp_scorer *s)
{
    sp_status st = SP_OK;
    for (size_t r = 0; r < s->n_roots && !st; r++)
        if (s->placed[r].in_tree && s->roots[r].keys_values)
            st = sp_engine_set_keys_values(s->engine, s->placed[r].first_row, s->roots[r].keys_values, s->roots[r].n);
    return st;
}

/* The rows of all prompts of embeddings in the tree, one behind the other. */
static sp_status gather_embeddings(const float **out, const sp_scorer *s)
{
    size_t d = sp_model_d_model(s->model);
    float *rows = sp_arena_alloc(s->arena, (s->n_prompt - s->n_given) * d, sizeof *rows);
    if (!rows) return SP_ERR_MEMORY;
    *out = rows;
    for (size_t r = 0; r < s->n_roots; r++) {
        if (!s->placed[r].in_tree || !s->roots[r].embeddings) continue;
        memcpy(rows, s->roots[r].embeddings, s->roots[r].n * d * sizeof *rows);
        rows += s->roots[r].n * d;
    }
    return SP_OK;
}

static bool all_roots_in_tree(const sp_scorer *s)
{
    size_t n = 0;
    while (n < s->n_roots && s->placed[n].in_tree) n++;
    return n == s->n_roots;
}

static sp_status forward(sp_scorer *s, bool with_gradient)
{
    sp_pass pass = {.tree = &s->tree, .read_rows = s->read_rows, .n_read = s->n_read, .keep_for_backward = with_gradient};
    bool all = all_roots_in_tree(s), held = s->roots_done && all;
    bool reuse = held && !with_gradient && s->read_rows[0] >= s->n_prompt;
    sp_status st = held ? SP_OK : give_keys_values(s);
    if (!st && !held) st = sp_engine_set_states(s->engine, s->roots[0].states);
    pass.first_row = reuse ? s->n_prompt : s->n_given;
    if (!st && !reuse) st = gather_embeddings(&pass.prompt, s);
    s->roots_done = false;
    if (!st) st = sp_engine_forward(s->engine, &pass);
    s->roots_done = !st && all;
    if (!st && s->is_ensemble) st = sp_engine_group_reads(s->engine, s->groups, s->n_roots, s->n_groups);
    return st;
}

static sp_status cross_entropy(sp_scorer *s, bool with_gradient)
{
    double *sorted = sp_arena_alloc(s->arena, s->n_targets, sizeof *sorted);
    s->nll = sp_arena_alloc(s->arena, s->n_targets, sizeof *s->nll);
    if (!sorted || !s->nll) return SP_ERR_MEMORY;
    sp_status st = s->is_ensemble ? sp_engine_group_cross_entropy(sorted, s->engine, s->targets, s->n_targets)
                                  : sp_engine_cross_entropy(sorted, s->engine, s->targets, s->n_targets, with_gradient);
    for (size_t i = 0; i < s->n_targets && !st; i++) s->nll[s->predictions[i].index] = sorted[i];
    return st;
}

/* States are in front of every row of a tree. */
static sp_status check_states(const sp_scorer *s, bool with_gradient)
{
    size_t n = 0;
    for (size_t r = 0; r < s->n_roots; r++) n += s->roots[r].states != NULL;
    if (n == 0 || (s->n_roots == 1 && !with_gradient)) return SP_OK;
    return sp_fail(SP_ERR_UNSUPPORTED, "a compiled prompt %s; use the prompt that it was compiled from",
                   with_gradient ? "has no rows to learn" : "beside others, in an ensemble or as one of several tasks");
}

static sp_status run_pass(const double **nll, sp_scorer *s, const sp_item *items, size_t n_items, double scale, bool with_gradient)
{
    *nll = NULL;
    sp_arena_reset(s->arena, (sp_arena_mark){0});
    sp_status st = check_states(s, with_gradient);
    if (!st) st = take_items(s, items, n_items);
    if (st) return st;
    size_t **rows = sp_arena_alloc(s->arena, s->n_items, sizeof *rows);
    if (!rows) return SP_ERR_MEMORY;
    if ((st = build_tree(rows, s, !with_gradient)) || (st = build_targets(s, rows, scale))) return st;
    if (s->is_ensemble && (st = group_targets(s))) return st;
    if ((st = forward(s, with_gradient)) || (st = cross_entropy(s, with_gradient))) return st;
    *nll = s->nll;
    return SP_OK;
}

sp_status sp_scorer_score(const double **nll, sp_scorer *scorer, const sp_item *items, size_t n_items)
{
    return run_pass(nll, scorer, items, n_items, 1, false);
}

/* What a row of the prompts holds: of embeddings, d_model; of keys and values, those of all layers. */
static size_t row_width(const sp_scorer *s)
{
    sp_model_info info;
    sp_model_get_info(&info, s->model);
    return s->n_given ? 2 * info.n_layer * info.n_head_kv * info.d_head : info.d_model;
}

/* gradient += that of the roots in the tree, whose rows stand in it without those of the others between. */
static sp_status backward(float *gradient, sp_scorer *s)
{
    if (all_roots_in_tree(s)) return sp_engine_backward(gradient, s->engine);
    size_t width = row_width(s);
    float *own = sp_arena_alloc(s->arena, s->n_prompt * width, sizeof *own);
    if (!own) return SP_ERR_MEMORY;
    memset(own, 0, s->n_prompt * width * sizeof *own);
    sp_status st = sp_engine_backward(own, s->engine);
    for (size_t r = 0; r < s->n_roots && !st; r++) {
        size_t n = s->roots[r].n * width;
        const float *from = own + s->placed[r].first_row * width;
        for (size_t i = 0; s->placed[r].in_tree && i < n; i++) gradient[i] += from[i];
        gradient += n;
    }
    return st;
}

static sp_status check_gradient(const sp_scorer *s)
{
    bool embeddings = false, keys_values = false;
    if (s->is_ensemble) return sp_fail(SP_ERR_ARGUMENT, "a gradient by the prompts of an ensemble; train them apart");
    for (size_t r = 0; r < s->n_roots; r++) {
        embeddings |= s->roots[r].embeddings != NULL;
        keys_values |= s->roots[r].keys_values != NULL;
    }
    if (!embeddings || !keys_values) return SP_OK;
    return sp_fail(SP_ERR_ARGUMENT, "a gradient by prompts of embeddings and by prompts of keys and values at once: their rows are "
                                    "not as wide; score them apart");
}

sp_status sp_scorer_gradient(const double **nll, float *gradient, sp_scorer *scorer, const sp_item *items, size_t n_items,
                             double scale)
{
    *nll = NULL;
    sp_status st = check_gradient(scorer);
    if (!st) st = run_pass(nll, scorer, items, n_items, scale, true);
    return st ? st : backward(gradient, scorer);
}

/* Is `token` the first of the largest? */
static bool is_largest(const float *logits, size_t n, int32_t token)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best == (size_t)token;
}

sp_status sp_scorer_greedy_prefix(size_t *n, sp_scorer *scorer, size_t index)
{
    sp_arena_mark mark = sp_arena_get_mark(scorer->arena);
    size_t n_vocab = sp_model_n_vocab(scorer->model), first = 0;
    const sp_item *item = &scorer->items[index];
    float *logits = sp_arena_alloc(scorer->arena, n_vocab, sizeof *logits);
    sp_status st = logits ? SP_OK : SP_ERR_MEMORY;
    bool is_greedy = true;
    for (size_t i = 0; i < index; i++) first += scorer->items[i].n_answer;
    for (*n = 0; *n < item->n_answer && !st; *n += is_greedy) {
        if (scorer->nll[first + *n] < CERTAIN_NLL) continue;
        st = scorer->is_ensemble ? sp_engine_group_logits(logits, scorer->engine, scorer->reads[first + *n], 1)
                                 : sp_engine_logits(logits, scorer->engine, scorer->reads[first + *n], 1);
        if (!st) is_greedy = is_largest(logits, n_vocab, item->answer[*n]);
        if (!is_greedy) break;
    }
    sp_arena_reset(scorer->arena, mark);
    return st;
}

sp_status sp_scorer_is_greedy(bool *out, sp_scorer *scorer, size_t index)
{
    size_t n;
    sp_status st = sp_scorer_greedy_prefix(&n, scorer, index);
    *out = !st && n == scorer->items[index].n_answer;
    return st;
}
