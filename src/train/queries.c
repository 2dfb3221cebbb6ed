/* queries.c: rows of data as queries; many continuations of one text, sampled side by side; their file.
 *
 * Sampling grows a token tree: all continuations stand behind the one text, whose keys and values they share, and every pass adds
 * one token to each. Cost: a pass of AT_ONCE rows a token, which reads the weights once for all of them. */
#include "train/queries.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/rng.h"
#include "base/status.h"
#include "format/json.h"
#include "tensor/kernels.h"

static const uint64_t QUERY_STREAM = 0x7175657279000000; /* query i is drawn from stream QUERY_STREAM + i of the run's seed */
enum { AT_ONCE = 64, LOGIT_ROWS = 16, HELD_OUT_SHARE = 8, MAX_HELD_OUT = 64 };
enum { MAX_FILE_BYTES = 1 << 30 };

/* ---- rows of data ---- */

/* Tokens at the start of a query that are read and not predicted. */
static size_t n_lead(const sp_tokenizer *tokenizer, int32_t first)
{
    return 1 + (sp_tokenizer_adds_bos(tokenizer) && first == sp_tokenizer_bos(tokenizer));
}

/* The row as a query. A row of too few tokens is cleared. */
static sp_status convert_row(sp_encoded_row *row, const sp_tokenizer *tokenizer)
{
    size_t n_answer = row->n_candidate[row->right], n = row->n_context + n_answer;
    int32_t *tokens = malloc(n * sizeof *tokens);
    if (!tokens) return sp_fail_no_memory(n * sizeof *tokens);
    if (row->n_context) memcpy(tokens, row->context, row->n_context * sizeof *tokens);
    memcpy(tokens + row->n_context, row->candidates[row->right], n_answer * sizeof *tokens);
    bool truncated = row->truncated;
    size_t lead = n_lead(tokenizer, tokens[0]);
    sp_encoded_row_clear(row);
    sp_status st = n > lead ? sp_encoded_row_of_tokens(row, tokens, n, lead) : SP_OK;
    row->truncated = truncated;
    free(tokens);
    return st;
}

sp_status sp_queries_of_rows(sp_encoded_data *data, const sp_model *model, const sp_logger *logger)
{
    size_t n_kept = 0;
    for (size_t i = 0; i < data->n; i++) {
        sp_status st = convert_row(&data->rows[i], sp_model_tokenizer(model));
        if (st) return st;
        if (data->rows[i].n_candidates == 0) continue;
        if (i > n_kept) {
            data->rows[n_kept] = data->rows[i];
            data->sources[n_kept] = data->sources[i];
            data->rows[i] = (sp_encoded_row){0};
        }
        n_kept++;
    }
    if (n_kept < data->n)
        sp_log(logger, SP_LOG_WARNING, "%zu of %zu rows are a single token, behind which nothing can be compared; left out",
               data->n - n_kept, data->n);
    data->n = n_kept;
    return n_kept ? SP_OK : sp_fail(SP_ERR_FORMAT, "no row has two tokens: one to read, and one to predict");
}

size_t sp_queries_n_held_out(size_t n)
{
    return n / HELD_OUT_SHARE < MAX_HELD_OUT ? n / HELD_OUT_SHARE : (size_t)MAX_HELD_OUT;
}

sp_status sp_queries_hold_out(sp_encoded_data *held_out, sp_encoded_data *data)
{
    size_t n = sp_queries_n_held_out(data->n), left = data->n - n;
    if (n == 0) return SP_OK;
    held_out->rows = calloc(n, sizeof *held_out->rows);
    held_out->sources = calloc(n, sizeof *held_out->sources);
    if (!held_out->rows || !held_out->sources) return sp_fail_no_memory(n * sizeof *held_out->rows);
    memcpy(held_out->rows, data->rows + left, n * sizeof *held_out->rows);
    if (data->sources) memcpy(held_out->sources, data->sources + left, n * sizeof *held_out->sources);
    for (size_t i = 0; i < n; i++) held_out->n_truncated += held_out->rows[i].truncated;
    held_out->n = n;
    data->n_truncated -= held_out->n_truncated;
    data->n = left;
    return SP_OK;
}

/* ---- sampling ---- */

/* Continuations that grow side by side. */
typedef struct group {
    sp_model *model;
    size_t length;
    int32_t *tokens;                            /* (AT_ONCE, length) */
    size_t n, n_tokens[AT_ONCE], runs[AT_ONCE]; /* runs: of the last token in the tree */
    bool ended[AT_ONCE];
    sp_rng rngs[AT_ONCE];
    float *first;  /* (n_vocab) probabilities behind the text, of tokens that do not end it */
    float *logits; /* (LOGIT_ROWS, n_vocab) */
} group;

/* Logits become probabilities. FORMAT: they are not numbers. */
static sp_status to_probabilities(float *logits, const sp_model *model)
{
    const sp_kernels *kernels = sp_kernels_select();
    size_t n = sp_model_n_vocab(model);
    double lse = kernels->log_sum_exp(logits, n);
    sp_model_info info;
    sp_model_get_info(&info, model);
    if (!isfinite(lse))
        return sp_fail(SP_ERR_FORMAT, "%s: logits are not finite: weights are damaged; fetch the model again", info.path);
    kernels->exp_scaled(logits, (float)lse, 1, n);
    return SP_OK;
}

static int32_t draw(const float *probabilities, size_t n, sp_rng *rng)
{
    double total = 0;
    for (size_t i = 0; i < n; i++) total += (double)probabilities[i];
    double at = sp_rng_uniform(rng) * total;
    size_t last = 0;
    for (size_t i = 0; i < n; i++) {
        if (probabilities[i] <= 0) continue;
        last = i;
        if ((at -= (double)probabilities[i]) < 0) break;
    }
    return (int32_t)last;
}

static void take_token(group *g, size_t i, int32_t token)
{
    g->tokens[i * g->length + g->n_tokens[i]++] = token;
    g->ended[i] = g->n_tokens[i] == g->length || sp_tokenizer_is_end(sp_model_tokenizer(g->model), token);
}

/* What may follow the text itself: computed once for all continuations. */
static sp_status compute_first(group *g, sp_teacher *teacher)
{
    sp_tree *tree;
    sp_engine *engine;
    size_t n_vocab = sp_model_n_vocab(g->model), last = sp_teacher_n_context(teacher) - 1;
    sp_status st = sp_teacher_begin(&tree, &engine, teacher);
    const sp_pass pass = {.tree = tree, .first_row = last, .read_rows = &last, .n_read = 1};
    if (!st) st = sp_engine_forward(engine, &pass);
    if (!st) st = sp_engine_logits(g->first, engine, 0, 1);
    if (!st) st = to_probabilities(g->first, g->model);
    for (size_t i = 0; i < n_vocab && !st; i++)
        if (sp_tokenizer_is_end(sp_model_tokenizer(g->model), (int32_t)i)) g->first[i] = 0;
    return st;
}

/* The next token of every continuation that goes on. */
static sp_status grow(group *g, sp_tree *tree, sp_engine *engine)
{
    size_t rows[AT_ONCE], of[AT_ONCE], n = 0, first_row = tree->n_rows, n_vocab = sp_model_n_vocab(g->model);
    sp_status st = SP_OK;
    for (size_t i = 0; i < g->n && !st; i++) {
        if (g->ended[i]) continue;
        st = sp_tree_add_run(&g->runs[i], tree, g->runs[i], &g->tokens[i * g->length + g->n_tokens[i] - 1], 1);
        rows[n] = first_row + n;
        of[n++] = i;
    }
    const sp_pass pass = {.tree = tree, .first_row = first_row, .read_rows = rows, .n_read = n};
    if (!st) st = sp_engine_forward(engine, &pass);
    for (size_t first = 0; first < n && !st; first += LOGIT_ROWS) {
        size_t n_part = n - first < LOGIT_ROWS ? n - first : (size_t)LOGIT_ROWS;
        st = sp_engine_logits(g->logits, engine, first, n_part);
        for (size_t r = 0; r < n_part && !st; r++) {
            if ((st = to_probabilities(g->logits + r * n_vocab, g->model))) break;
            size_t i = of[first + r];
            take_token(g, i, draw(g->logits + r * n_vocab, n_vocab, &g->rngs[i]));
        }
    }
    return st;
}

static bool all_ended(const group *g)
{
    for (size_t i = 0; i < g->n; i++)
        if (!g->ended[i]) return false;
    return true;
}

static sp_status add_query(sp_encoded_data *out, const sp_model *model, const int32_t *tokens, size_t n)
{
    const sp_tokenizer *tokenizer = sp_model_tokenizer(model);
    size_t n_bos = sp_tokenizer_adds_bos(tokenizer);
    int32_t *whole = malloc((n_bos + n) * sizeof *whole);
    if (!whole) return sp_fail_no_memory((n_bos + n) * sizeof *whole);
    if (n_bos) whole[0] = sp_tokenizer_bos(tokenizer);
    memcpy(whole + n_bos, tokens, n * sizeof *whole);
    sp_status st = sp_encoded_row_of_tokens(&out->rows[out->n], whole, n_bos + n, n_bos + 1);
    out->n += !st;
    free(whole);
    return st;
}

/* A continuation's progress is its share of the tokens. */
static void report_progress(const sp_hooks *hooks, const group *g, size_t n_before, size_t total, double begin)
{
    if (!hooks || !hooks->progress) return;
    size_t n_tokens = 0;
    for (size_t i = 0; i < g->n; i++) n_tokens += g->ended[i] ? g->length : g->n_tokens[i];
    double seconds = sp_seconds() - begin, done = (double)n_before + (double)n_tokens / (double)g->length;
    const sp_progress progress = {.what = "sample",
                                  .done = (size_t)done,
                                  .total = total,
                                  .seconds = seconds,
                                  .rows_per_second = seconds > 0 ? done / seconds : 0,
                                  .loss = NAN};
    hooks->progress(hooks->user, &progress);
}

/* Queries out->n .. + g->n. */
static sp_status sample_group(sp_encoded_data *out, group *g, sp_teacher *teacher, uint64_t seed, size_t total, double begin,
                              const sp_hooks *hooks)
{
    sp_tree *tree;
    sp_engine *engine;
    size_t n_before = out->n;
    sp_status st = sp_teacher_begin(&tree, &engine, teacher);
    for (size_t i = 0; i < g->n; i++) {
        g->rngs[i] = sp_rng_seed(seed, QUERY_STREAM + n_before + i);
        g->n_tokens[i] = g->runs[i] = 0; /* run 0 is the text */
        take_token(g, i, draw(g->first, sp_model_n_vocab(g->model), &g->rngs[i]));
    }
    while (!st && !all_ended(g)) {
        if (hooks && hooks->stop && *hooks->stop)
            return sp_fail(SP_ERR_STOPPED, "stopped after %zu of %zu queries were sampled; nothing is saved yet", n_before, total);
        st = grow(g, tree, engine);
        report_progress(hooks, g, n_before, total, begin);
    }
    for (size_t i = 0; i < g->n && !st; i++) st = add_query(out, g->model, g->tokens + i * g->length, g->n_tokens[i]);
    return st;
}

static sp_status check_room(const sp_teacher *teacher, const sp_model *model, size_t length)
{
    sp_model_info info;
    sp_model_get_info(&info, model);
    size_t n_context = sp_teacher_n_context(teacher);
    if (length < 2) return sp_fail(SP_ERR_ARGUMENT, "queries of %zu tokens: at least 2, one to read and one to predict", length);
    if (length <= info.context_length && n_context <= info.context_length - length) return SP_OK;
    return sp_fail(
        SP_ERR_ARGUMENT,
        "the teacher's context of %zu tokens and queries of %zu do not fit the model's context of %zu; shorten one of them",
        n_context, length, info.context_length);
}

sp_status sp_queries_sample(sp_encoded_data *out, sp_teacher *teacher, sp_model *model, size_t n, size_t length, uint64_t seed,
                            const sp_hooks *hooks)
{
    double begin = sp_seconds();
    size_t n_vocab = sp_model_n_vocab(model);
    *out = (sp_encoded_data){0};
    sp_status st = check_room(teacher, model, length);
    if (st) return st;
    group g = {.model = model, .length = length};
    out->rows = calloc(n, sizeof *out->rows);
    g.tokens = reallocarray(NULL, AT_ONCE * length, sizeof *g.tokens);
    g.first = malloc(n_vocab * sizeof *g.first);
    g.logits = malloc(LOGIT_ROWS * n_vocab * sizeof *g.logits);
    if (!out->rows || !g.tokens || !g.first || !g.logits) st = sp_fail_no_memory(LOGIT_ROWS * n_vocab * sizeof *g.logits);
    if (!st) st = compute_first(&g, teacher);
    while (out->n < n && !st) {
        g.n = n - out->n < AT_ONCE ? n - out->n : (size_t)AT_ONCE;
        st = sample_group(out, &g, teacher, seed, n, begin, hooks);
    }
    free(g.tokens);
    free(g.first);
    free(g.logits);
    if (st) sp_encoded_data_clear(out);
    return st;
}

/* ---- their file ---- */

static sp_status add_line(sp_buffer *lines, const sp_encoded_row *row, const sp_tokenizer *tokenizer)
{
    const int32_t *first = row->context + row->n_context - 1; /* what follows it is the candidate */
    size_t n = 1 + row->n_candidate[0], n_bytes = 0;
    char *text = NULL, *line = NULL;
    json_t *tokens = json_array();
    bool ok = tokens != NULL;
    for (size_t i = 0; i < n && ok; i++) ok = json_array_append_new(tokens, json_integer(first[i])) == 0;
    sp_status st = ok ? sp_detokenize(&text, &n_bytes, tokenizer, first, n, true) : sp_json_fail_no_memory();
    for (size_t i = 0; i < n_bytes && !st; i++)
        if (text[i] == 0) text[i] = ' '; /* which JSON holds, and its readers refuse; the text is for people alone */
    json_t *object = st ? NULL : json_pack("{s:O, s:o}", "tokens", tokens, "text", sp_json_text(text, n_bytes));
    if (!st) st = object ? sp_json_dump(&line, object, JSON_COMPACT) : sp_json_fail_no_memory();
    if (!st) st = sp_buffer_printf(lines, "%s\n", line);
    json_decref(object);
    json_decref(tokens);
    sp_free(text);
    free(line);
    return st;
}

sp_status sp_queries_save(const sp_encoded_data *data, const sp_model *model, const char *path)
{
    sp_buffer lines = {0};
    sp_status st = SP_OK;
    for (size_t i = 0; i < data->n && !st; i++) st = add_line(&lines, &data->rows[i], sp_model_tokenizer(model));
    const sp_bytes all = {lines.bytes, lines.n_bytes};
    if (!st) st = sp_write_file_atomic(path, &all, 1);
    sp_buffer_free(&lines);
    return st;
}

static sp_status fail_query(const char *path, size_t line, const char *what)
{
    return sp_fail(SP_ERR_FORMAT, "%s:%zu: %s; begin again with --overwrite", path, line, what);
}

static sp_status read_line(sp_encoded_data *out, const sp_model *model, const char *path, const char *line, size_t n_bytes,
                           size_t length)
{
    json_t *object;
    sp_status st = sp_json_parse(&object, line, n_bytes, path);
    if (st) return st;
    const json_t *list = json_object_get(object, "tokens");
    size_t n = json_array_size(list), n_vocab = sp_model_n_vocab(model);
    int32_t *tokens = n >= 2 && n <= length ? malloc(n * sizeof *tokens) : NULL;
    if (n < 2 || n > length)
        st = fail_query(path, out->n + 1, "\"tokens\" is no list of as many tokens as a query of this run has");
    else if (!tokens)
        st = sp_fail_no_memory(n * sizeof *tokens);
    for (size_t i = 0; i < n && !st; i++) {
        json_int_t token = json_integer_value(json_array_get(list, i));
        if (!json_is_integer(json_array_get(list, i)) || token < 0 || (uint64_t)token >= n_vocab)
            st = fail_query(path, out->n + 1, "a token is outside the model's vocabulary");
        else
            tokens[i] = (int32_t)token;
    }
    if (!st) st = add_query(out, model, tokens, n);
    free(tokens);
    json_decref(object);
    return st;
}

sp_status sp_queries_load(sp_encoded_data *out, const sp_model *model, const char *path, size_t n, size_t length)
{
    char *bytes;
    size_t n_bytes;
    *out = (sp_encoded_data){0};
    sp_status st = sp_read_file(&bytes, &n_bytes, path, MAX_FILE_BYTES);
    if (st) return st;
    if (!(out->rows = calloc(n, sizeof *out->rows))) st = sp_fail_no_memory(n * sizeof *out->rows);
    const char *line = bytes, *end = bytes + n_bytes;
    while (line < end && !st) {
        const char *newline = memchr(line, '\n', (size_t)(end - line)), *line_end = newline ? newline : end;
        st = out->n < n ? read_line(out, model, path, line, (size_t)(line_end - line), length)
                        : fail_query(path, n + 1, "more queries than this run has");
        line = line_end + 1;
    }
    if (!st && out->n < n) st = fail_query(path, out->n + 1, "fewer queries than this run has");
    free(bytes);
    if (st) sp_encoded_data_clear(out);
    return st;
}
