/* sampled.c: where there is no data: texts that the model itself writes behind the prompt.
 *
 * Each begins with BOS, or with the end token of a model that has none. What follows is drawn from the model's distribution as it
 * is, so that the rise of the loss without a virtual token estimates how far what is written without it diverges. */
#include <math.h>
#include <stdlib.h>

#include "audit/internal.h"
#include "base/clock.h"
#include "base/sizes.h"
#include "base/status.h"
#include "train/encoded.h"

enum { DEFAULT_N_TEXTS = 8, DEFAULT_N_TOKENS = 256 };

static sp_status find_beginning(int32_t *token, const sp_model *model)
{
    const sp_tokenizer *tokenizer = sp_model_tokenizer(model);
    *token = sp_tokenizer_bos(tokenizer) >= 0 ? sp_tokenizer_bos(tokenizer) : sp_tokenizer_eos(tokenizer);
    if (*token >= 0) return SP_OK;
    return sp_fail(SP_ERR_UNSUPPORTED, "the model names no token that a text begins with; give texts instead");
}

/* Text number `index` as a row: its beginning is the context, the rest the answer. */
static sp_status write_text(sp_encoded_row *out, sp_session *session, int32_t beginning, size_t n, uint64_t seed)
{
    const sp_sampling sampling = {.max_new_tokens = n - 1, .temperature = 1, .seed = seed};
    sp_generation written;
    sp_session_rewind(session, 0);
    sp_status st = sp_generate(&written, session, &beginning, 1, &sampling, NULL, NULL);
    if (st) return st;
    int32_t *tokens = malloc((1 + written.n_tokens) * sizeof *tokens);
    if (tokens) {
        tokens[0] = beginning;
        for (size_t i = 0; i < written.n_tokens; i++) tokens[1 + i] = written.tokens[i];
        st = sp_encoded_row_of_tokens(out, tokens, 1 + written.n_tokens, 1);
    } else
        st = sp_fail_no_memory((1 + written.n_tokens) * sizeof *tokens);
    free(tokens);
    sp_generation_clear(&written);
    return st;
}

static void report_progress(const sp_hooks *hooks, size_t done, size_t total, double begin)
{
    if (!hooks || !hooks->progress) return;
    const sp_progress progress = {
        .what = "writing", .done = done, .total = total, .seconds = sp_seconds() - begin, .loss = (double)NAN};
    hooks->progress(hooks->user, &progress);
}

static sp_status write_texts(sp_encoded_row *rows, size_t n, sp_audit *a, size_t n_tokens, uint64_t seed, const sp_hooks *hooks)
{
    const double begin = sp_seconds();
    sp_session *session = NULL;
    int32_t beginning;
    sp_status st = find_beginning(&beginning, a->model);
    if (!st) st = sp_session_create(&session, a->model, a->prompt);
    for (size_t i = 0; i < n && !st; i++) {
        if (hooks && hooks->stop && *hooks->stop)
            st = sp_fail(SP_ERR_STOPPED, "stopped after writing %zu of %zu texts", i, n);
        else
            st = write_text(&rows[i], session, beginning, n_tokens, seed + i);
        if (!st) st = sp_audit_row(a, &rows[i]);
        report_progress(hooks, i + 1, n, begin);
    }
    sp_session_free(session);
    return st;
}

static sp_status sample(sp_encoded_row *rows, size_t n, sp_audit *a, size_t n_tokens, uint64_t seed, const sp_hooks *hooks)
{
    size_t room;
    sp_status st = sp_room_behind_prompt(&room, a->model, a->n_front);
    n_tokens = sp_smaller(room, n_tokens);
    if (!st && n_tokens < 2)
        st = sp_fail(SP_ERR_ARGUMENT, "texts of %zu tokens: two are the least, and the prompt leaves room for %zu", n_tokens, room);
    if (!st) st = write_texts(rows, n, a, n_tokens, seed, hooks);
    if (st || !a->prompt) return st;
    const sp_root root = sp_root_of_prompt(a->prompt);
    return sp_audit_leave_out(a, &root, rows, sp_smaller(n, a->options.n_left_out_rows), hooks);
}

sp_status sp_audit_sampled(sp_audit *audit, size_t n_texts, size_t n_tokens, uint64_t seed, const sp_hooks *hooks)
{
    const size_t n = n_texts ? n_texts : DEFAULT_N_TEXTS;
    sp_encoded_row *rows = calloc(n, sizeof *rows);
    if (!rows) return sp_fail_no_memory(n * sizeof *rows);
    sp_status st = sample(rows, n, audit, n_tokens ? n_tokens : DEFAULT_N_TOKENS, seed, hooks);
    for (size_t i = 0; i < n; i++) sp_encoded_row_clear(&rows[i]);
    free(rows);
    return st;
}
