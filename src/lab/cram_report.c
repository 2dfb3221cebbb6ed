/* cram_report.c: what a search of lab capacity cram reached: adapters written and read back, their texts generated, bits counted.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "lab/crammer.h"

/* How many tokens greedy decoding says of the sample's text. */
static sp_status generate(size_t *n, const sp_crammer *c, const sp_cram_learner *s, const sp_prompt *prompt)
{
    sp_session *session;
    sp_generation said = {0};
    const sp_sampling greedy = {.max_new_tokens = s->best + 1};
    sp_status st = sp_session_create(&session, c->model, prompt);
    if (!st) st = sp_generate(&said, session, &c->bos, c->n_context, &greedy, NULL, NULL);
    for (*n = 0; !st && *n < said.n_tokens && *n < s->text.n && said.tokens[*n] == s->text.tokens[*n];) ++*n;
    sp_generation_clear(&said);
    sp_session_free(session);
    return st;
}

/* Writes the sample's adapter and reads it back; sp_prompt_free. */
static sp_status save(sp_prompt **saved, const sp_crammer *c, const sp_cram_learner *s, size_t index)
{
    char name[32], *dir;
    snprintf(name, sizeof name, "sample-%zu", index + 1);
    if (!(dir = sp_path_join(c->options.export_dir, name))) return SP_ERR_MEMORY;
    sp_status st = sp_prompt_save(s->prompt, dir);
    if (!st) st = sp_prompt_load(saved, dir);
    free(dir);
    return st;
}

/* Behind the adapter that the rows were written to, or behind the rows themselves: where it could not be written, what hours have
 * found is still reported, and the failure comes last. */
static sp_status verify(size_t *n, sp_crammer *c, sp_cram_learner *s, size_t index)
{
    sp_prompt *saved = NULL;
    memcpy(sp_prompt_embeddings(s->prompt), s->best_rows, c->n_rows * c->d * sizeof *s->best_rows);
    const sp_status unsaved = c->options.export_dir ? save(&saved, c, s, index) : SP_OK;
    if (unsaved) {
        c->unsaved = unsaved;
        snprintf(c->why, sizeof c->why, "%s", sp_message());
    }
    const sp_status st = generate(n, c, s, saved ? saved : s->prompt);
    sp_prompt_free(saved);
    return st;
}

/* Bits of the sample's first n tokens behind BOS, with nothing of ours in front. */
static sp_status count_bits(double *bits, const sp_crammer *c, const sp_cram_learner *s, size_t n)
{
    const sp_item item = {.context = &c->bos, .answer = s->text.tokens, .n_context = 1, .n_answer = n};
    const double *nll;
    *bits = 0;
    if (n == 0) return SP_OK;
    sp_scorer_set_prompt(c->scorer, NULL);
    sp_status st = sp_scorer_score(&nll, c->scorer, &item, 1);
    for (size_t i = 0; i < n && !st; i++) *bits += nll[i] / log(2);
    return st;
}

static sp_status report_sample(sp_cram_sample *out, sp_crammer *c, sp_cram_learner *s, size_t index)
{
    *out = (sp_cram_sample){.row = s->text.row, .n_text = s->text.n, .steps = s->steps, .restarts = s->n_begun};
    sp_status st = verify(&out->n_tokens, c, s, index);
    if (!st) st = count_bits(&out->bits, c, s, out->n_tokens);
    if (st) return st;
    out->tokens = s->text.tokens;
    s->text.tokens = NULL;
    return SP_OK;
}

static sp_status report_samples(sp_cram_report *out, sp_crammer *c)
{
    const size_t n = c->options.n_samples;
    sp_status st = SP_OK;
    *out = (sp_cram_report){.num_virtual_tokens = c->options.num_virtual_tokens, .n_samples = n};
    if (!(out->samples = calloc(n, sizeof *out->samples))) return sp_fail_no_memory(n * sizeof *out->samples);
    for (size_t i = 0; i < n && !st; i++) {
        st = report_sample(&out->samples[i], c, &c->samples[i], i);
        out->mean_tokens += (double)out->samples[i].n_tokens / (double)n;
        out->mean_bits += out->samples[i].bits / (double)n;
    }
    out->bits_per_vector = out->mean_bits / (double)c->options.num_virtual_tokens;
    out->seconds = sp_seconds() - c->begin;
    return st;
}

sp_status sp_cram_report_or_fail(sp_cram_report *out, sp_crammer *c, sp_status learnt)
{
    const sp_status st = report_samples(out, c);
    if (st) sp_cram_report_clear(out);
    out->stopped = !st && learnt;
    if (st) return st;
    return c->unsaved ? sp_fail(c->unsaved, "%s", c->why) : learnt;
}

void sp_cram_report_clear(sp_cram_report *report)
{
    for (size_t i = 0; report->samples && i < report->n_samples; i++) free(report->samples[i].tokens);
    free(report->samples);
    *report = (sp_cram_report){0};
}
