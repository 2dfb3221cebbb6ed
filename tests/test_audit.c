/* test_audit.c: audits of a tiny model: what must hold of the figures whatever the model, prompts made to be inside the criterion,
 * the spectrum's rank, and that memory does not grow with the data. The figures themselves: tests/oracle/audit.py. */
#define _GNU_SOURCE /* mkstemps */
#include <malloc.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "audit/figures.h"
#include "audit/spectrum.h"
#include "base/rng.h"
#include "fast/remez.h"
#include "softprompt.h"
#include "tiny_model.h"

enum { N_TEXT = 150 };

static sp_model *model;
static int32_t text[N_TEXT];

static int open_model(void **state)
{
    (void)state;
    char path[] = "/tmp/sp-audit-XXXXXX";
    int file = mkstemp(path);
    if (file < 0 || close(file) || !tiny_model_write(path)) return -1;
    sp_status st = sp_model_load(&model, path, &(sp_model_options){.n_threads = 2});
    for (int32_t i = 0; i < N_TEXT; i++) text[i] = (i * 37 + i * i) % 250;
    unlink(path);
    if (st) fprintf(stderr, "%s\n", sp_message());
    return st ? -1 : 0;
}

static int close_model(void **state)
{
    (void)state;
    sp_model_free(model);
    return 0;
}

static sp_prompt *make_prompt(sp_method method, size_t n)
{
    sp_prompt *prompt;
    const sp_prompt_options options = {.method = method, .num_virtual_tokens = n, .seed = 3};
    assert_int_equal(sp_prompt_create(&prompt, model, &options), SP_OK);
    return prompt;
}

/* Audits the texts of these lengths, pieces of `text`. */
static sp_audit *audit_texts(const sp_prompt *prompt, const sp_audit_options *options, const size_t *lengths, size_t n)
{
    sp_audit *audit;
    assert_int_equal(sp_audit_create(&audit, model, prompt, options), SP_OK);
    for (size_t i = 0; i < n; i++) assert_int_equal(sp_audit_text(audit, text + i, lengths[i]), SP_OK);
    return audit;
}

static const sp_audit_report *report_of(sp_audit *audit)
{
    const sp_audit_report *report;
    assert_int_equal(sp_audit_get_report(&report, audit), SP_OK);
    return report;
}

static void assert_near(double a, double b)
{
    assert_true(fabs(a - b) <= 1e-5 * (1 + fabs(b)));
}

/* ---- figures ---- */

/* Bounds that figures keep among each other. */
static void check_head(const sp_audit_head *h, const sp_audit_report *r)
{
    const double d = TINY_D / TINY_HEADS, entries = fmax(h->max_entry_q, h->max_entry_k), slack = 1 + 1e-5;
    assert_true(h->max_score <= h->max_entry_q * h->max_entry_k * slack); /* |q . k| <= d max max, and scores are q . k / d */
    assert_true(h->max_score_centred <= 2 * h->max_score * slack);
    assert_true(h->max_score_centred <= h->cauchy_schwarz * slack);
    assert_true(h->n_keys >= 2 && h->n_keys <= r->n);
    assert_near(h->criterion, sqrt(log((double)h->n_keys)));
    assert_true(h->entries_ratio <= entries / sqrt(log(2)) * slack &&
                h->entries_ratio >= entries / sqrt(log((double)r->n)) / slack);
    assert_true(h->scores_ratio >= h->max_score_centred / log((double)r->n) / slack);
    assert_int_equal(h->verdict, h->entries_ratio <= 1  ? SP_VERDICT_INSIDE
                                 : h->scores_ratio <= 1 ? SP_VERDICT_SCORES
                                                        : SP_VERDICT_BEYOND);
    assert_true(h->entropy >= 0 && h->entropy <= log((double)r->n));
    assert_true(h->sink_mass > 0 && h->sink_mass <= 1);
    assert_true(h->degree != SIZE_MAX);
    assert_int_equal(h->features, sp_monomials_count((size_t)d, h->degree));
    assert_near(h->cost_ratio, (double)r->n * (2 * d + 1) / (2 * (double)h->features * (d + 1)));
    if (r->num_virtual_tokens) {
        assert_true(h->prompt_mass > 0 && h->prompt_mass <= 1);
        assert_true(h->key_rank_99 >= 1 && h->key_rank_99 <= r->num_virtual_tokens - 1);
    } else {
        assert_true(h->prompt_mass == 0);
        assert_true(h->key_rank_99 == SIZE_MAX);
    }
}

static void test_figures_keep_their_bounds(void **state)
{
    (void)state;
    static const size_t lengths[] = {30, 1, 70, 33, 32};
    sp_prompt *prompts[] = {NULL, make_prompt(SP_METHOD_PROMPT, 6), make_prompt(SP_METHOD_CARTRIDGE, 7)};
    for (size_t p = 0; p < 3; p++) {
        sp_audit *audit = audit_texts(prompts[p], NULL, lengths, 5);
        const sp_audit_report *r = report_of(audit);
        assert_int_equal(r->n, 70 + (prompts[p] ? sp_prompt_num_virtual_tokens(prompts[p]) : 0));
        assert_int_equal(r->n_texts, 5);
        assert_int_equal(r->n_rows, 166);
        assert_int_equal(r->n_layer * r->n_head, TINY_LAYERS * TINY_HEADS);
        for (size_t i = 0; i < TINY_LAYERS * TINY_HEADS; i++) check_head(&r->heads[i], r);
        sp_audit_free(audit);
        sp_prompt_free(prompts[p]);
    }
}

/* Texts in one audit are the audits of each: maxima of maxima, means weighted by rows. */
static void test_texts_add_up(void **state)
{
    (void)state;
    static const size_t lengths[] = {25, 60};
    sp_prompt *prompt = make_prompt(SP_METHOD_PROMPT, 5);
    sp_audit *both = audit_texts(prompt, NULL, lengths, 2), *one = audit_texts(prompt, NULL, lengths, 1), *other;
    assert_int_equal(sp_audit_create(&other, model, prompt, NULL), SP_OK);
    assert_int_equal(sp_audit_text(other, text + 1, 60), SP_OK);
    const sp_audit_head *a = report_of(one)->heads, *b = report_of(other)->heads, *all = report_of(both)->heads;
    for (size_t i = 0; i < TINY_LAYERS * TINY_HEADS; i++) {
        assert_near(all[i].max_entry_q, fmax(a[i].max_entry_q, b[i].max_entry_q));
        assert_near(all[i].max_score_centred, fmax(a[i].max_score_centred, b[i].max_score_centred));
        assert_near(all[i].cauchy_schwarz, fmax(a[i].cauchy_schwarz, b[i].cauchy_schwarz));
        assert_near(all[i].entries_ratio, fmax(a[i].entries_ratio, b[i].entries_ratio));
        assert_near(all[i].scores_ratio, fmax(a[i].scores_ratio, b[i].scores_ratio));
        assert_near(all[i].entropy, (25 * a[i].entropy + 60 * b[i].entropy) / 85);
        assert_near(all[i].prompt_mass, (25 * a[i].prompt_mass + 60 * b[i].prompt_mass) / 85);
        assert_int_equal(all[i].key_rank_99, a[i].key_rank_99);
    }
    sp_audit_free(both);
    sp_audit_free(one);
    sp_audit_free(other);
    sp_prompt_free(prompt);
}

/* A prompt of tokens' embeddings is the text of these tokens: with its own rows counted, maxima are those of the whole text. */
static void test_prompt_rows_are_rows(void **state)
{
    (void)state;
    enum { N = 9 };
    sp_prompt *prompt = make_prompt(SP_METHOD_PROMPT, N);
    const size_t whole = 40, rest = whole - N;
    sp_audit *plain, *split, *without;
    assert_int_equal(sp_model_embed(sp_prompt_embeddings(prompt), model, text, N), SP_OK);
    assert_int_equal(sp_audit_create(&plain, model, NULL, NULL), SP_OK);
    assert_int_equal(sp_audit_text(plain, text, whole), SP_OK);
    assert_int_equal(sp_audit_create(&split, model, prompt, &(sp_audit_options){.with_prompt_rows = true}), SP_OK);
    assert_int_equal(sp_audit_text(split, text + N, rest), SP_OK);
    assert_int_equal(sp_audit_create(&without, model, prompt, NULL), SP_OK);
    assert_int_equal(sp_audit_text(without, text + N, rest), SP_OK);
    const sp_audit_head *a = report_of(plain)->heads, *b = report_of(split)->heads, *c = report_of(without)->heads;
    bool differs = false;
    for (size_t i = 0; i < TINY_LAYERS * TINY_HEADS; i++) {
        assert_near(b[i].max_entry_q, a[i].max_entry_q);
        assert_near(b[i].max_score, a[i].max_score);
        assert_near(b[i].cauchy_schwarz, a[i].cauchy_schwarz);
        assert_near(b[i].entries_ratio, a[i].entries_ratio);
        assert_near(b[i].scores_ratio, a[i].scores_ratio);
        assert_int_equal(b[i].n_keys, a[i].n_keys);
        assert_true(c[i].n_keys > N);
        assert_near(c[i].entropy, b[i].entropy);
        differs |= c[i].n_keys != b[i].n_keys;
    }
    assert_true(differs);
    sp_audit_free(plain);
    sp_audit_free(split);
    sp_audit_free(without);
    sp_prompt_free(prompt);
}

/* The bytes do not depend on the number of threads. */
static void test_threads(void **state)
{
    (void)state;
    static const size_t lengths[] = {100, 3, 64};
    char path[] = "/tmp/sp-audit-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0 && !close(file) && tiny_model_write(path));
    sp_audit *two = audit_texts(NULL, NULL, lengths, 3), *five;
    sp_model *again;
    assert_int_equal(sp_model_load(&again, path, &(sp_model_options){.n_threads = 5}), SP_OK);
    unlink(path);
    assert_int_equal(sp_audit_create(&five, again, NULL, NULL), SP_OK);
    for (size_t i = 0; i < 3; i++) assert_int_equal(sp_audit_text(five, text + i, lengths[i]), SP_OK);
    assert_memory_equal(report_of(two)->heads, report_of(five)->heads, TINY_LAYERS * TINY_HEADS * sizeof(sp_audit_head));
    sp_audit_free(two);
    sp_audit_free(five);
    sp_model_free(again);
}

/* ---- verdicts, on queries and keys made for them ---- */

enum { D = 16, ROWS = 40, LDK = 64 };

/* One head's keys and queries, entries between -size and size. */
static sp_head_figures figures_of(float size, float common)
{
    static float q[ROWS * D], kt[D * LDK];
    static size_t rows[ROWS];
    sp_rng rng = sp_rng_seed(7, 0);
    sp_arena *scratch;
    for (size_t i = 0; i < ROWS * D; i++) q[i] = size * (float)(2 * sp_rng_uniform(&rng) - 1);
    for (size_t i = 0; i < D * LDK; i++) kt[i] = common + size * (float)(2 * sp_rng_uniform(&rng) - 1);
    for (size_t r = 0; r < ROWS; r++) rows[r] = r + 10;
    const sp_attention_shape shape = {1, 1, D, 0.25f, 0};
    const sp_attention_view view = {.shape = &shape, .q = q, .ldq = D, .n_queries = ROWS, .query_rows = rows, .kt = kt, .ldk = LDK};
    sp_head_figures f = {0};
    assert_int_equal(sp_arena_create(&scratch), SP_OK);
    assert_int_equal(sp_figures_add(&f, &view, &(sp_text_rows){10, ROWS}, 1, 10, false, scratch), SP_OK);
    sp_arena_free(scratch);
    return f;
}

/* Entries of 0.7 are 1.4 in the theorem's scaling of 16^(1/4), which is inside for rows of 11 keys or more: sqrt(ln 11) = 1.55. A
 * large vector common to all keys takes the head outside, but for its scores, which do not see it. */
static void test_verdicts(void **state)
{
    (void)state;
    sp_head_figures inside = figures_of(0.7f, 0), shifted = figures_of(0.7f, 30), beyond = figures_of(5, 0);
    assert_true(inside.entries_ratio <= 1 && inside.scores_ratio <= 1);
    assert_int_equal(inside.n_rows, ROWS);
    assert_true(inside.max_entry_q > 1.3 && inside.max_entry_q <= 1.4 && inside.max_entry_k > 1.3);
    assert_true(shifted.entries_ratio > 30);
    assert_true(fabs(shifted.max_score_centred / inside.max_score_centred - 1) < 1e-4);
    assert_true(fabs(shifted.scores_ratio / inside.scores_ratio - 1) < 1e-4);
    assert_true(fabs(shifted.cauchy_schwarz / inside.cauchy_schwarz - 1) < 1e-2); /* in f32, of lengths that cancel */
    assert_true(beyond.entries_ratio > 1 && beyond.scores_ratio > 1);
}

static void test_numbers_that_are_none(void **state)
{
    (void)state;
    static float q[2 * D], kt[D * LDK];
    static size_t rows[] = {0, 1};
    const float bad[] = {NAN, INFINITY};
    const sp_attention_shape shape = {1, 1, D, 0.25f, 0};
    const sp_attention_view view = {.shape = &shape, .q = q, .ldq = D, .n_queries = 2, .query_rows = rows, .kt = kt, .ldk = LDK};
    sp_arena *scratch;
    assert_int_equal(sp_arena_create(&scratch), SP_OK);
    for (size_t i = 0; i < 4; i++) {
        sp_head_figures f = {0};
        float *at = i < 2 ? &q[D + 3] : &kt[5 * LDK + 1];
        *at = bad[i % 2];
        assert_int_equal(sp_figures_add(&f, &view, &(sp_text_rows){0, 2}, 1, 0, false, scratch), SP_ERR_FORMAT);
        assert_non_null(strstr(sp_message(), "not finite"));
        *at = 0;
    }
    sp_arena_free(scratch);
}

/* ---- the spectrum ---- */

static void test_rank(void **state)
{
    (void)state;
    enum { SIDE = 24, MANY = 60, LD = 64 };
    static const size_t numbers[] = {1, 2, 7, SIDE, MANY};
    static float vectors[SIDE * LD];
    sp_rng rng = sp_rng_seed(1, 0);
    sp_arena *scratch;
    size_t rank;
    assert_int_equal(sp_arena_create(&scratch), SP_OK);
    for (size_t i = 0; i < 5; i++)
        for (size_t true_rank = 0; true_rank <= 5; true_rank++) { /* a mean, and as many directions of equal energy */
            const size_t n = numbers[i];
            memset(vectors, 0, sizeof vectors);
            for (size_t j = 0; j < SIDE; j++)
                for (size_t r = 0; r < n; r++) vectors[j * LD + r] = 3;
            for (size_t k = 0; k < true_rank && 2 * k + 1 < n; k++) {
                vectors[(3 * k) * LD + 2 * k] += 1;
                vectors[(3 * k) * LD + 2 * k + 1] -= 1;
            }
            assert_int_equal(sp_spectrum_rank(&rank, vectors, LD, SIDE, n, 0.99, scratch), SP_OK);
            assert_int_equal(rank, true_rank < n / 2 ? true_rank : n / 2);
        }
    for (size_t i = 0; i < SIDE * LD; i++) vectors[i] = (float)sp_rng_normal(&rng);
    for (size_t r = 0; r < MANY; r++) vectors[r] *= 1000; /* one direction holds nearly all */
    assert_int_equal(sp_spectrum_rank(&rank, vectors, LD, SIDE, MANY, 0.99, scratch), SP_OK);
    assert_int_equal(rank, 1);
    assert_int_equal(sp_spectrum_rank(&rank, vectors, LD, SIDE, MANY, 1 - 1e-9, scratch), SP_OK);
    assert_int_equal(rank, SIDE);
    sp_arena_free(scratch);
}

/* ---- the prompt's own report ---- */

/* A prompt of tokens' embeddings: each is its own nearest, with cosine 1. */
static void test_nearest_tokens(void **state)
{
    (void)state;
    enum { N = 5 };
    sp_prompt *prompt = make_prompt(SP_METHOD_PROMPT, N);
    const size_t length = 20;
    assert_int_equal(sp_model_embed(sp_prompt_embeddings(prompt), model, text, N), SP_OK);
    sp_audit *audit = audit_texts(prompt, NULL, &length, 1);
    const sp_audit_report *r = report_of(audit);
    assert_true(r->vocabulary_norm[0] > 0 && r->vocabulary_norm[0] <= r->vocabulary_norm[1] &&
                r->vocabulary_norm[1] <= r->vocabulary_norm[2]);
    for (size_t t = 0; t < N; t++) {
        assert_int_equal(r->tokens[t].nearest[0], text[t]);
        assert_true(fabsf(r->tokens[t].cosine[0] - 1) < 1e-5f && r->tokens[t].cosine[1] < 1 && r->tokens[t].norm > 0);
        assert_true(isnan(r->tokens[t].key_norm) && isnan(r->tokens[t].left_out_loss));
    }
    assert_int_equal(r->n_left_out_rows, 0);
    sp_audit_free(audit);
    sp_prompt_free(prompt);
}

/* A virtual token whose embedding is 0 has no direction, and nothing is near to it. */
static void test_token_without_direction(void **state)
{
    (void)state;
    sp_prompt *prompt = make_prompt(SP_METHOD_PROMPT, 2);
    const size_t length = 9;
    memset(sp_prompt_embeddings(prompt), 0, sp_prompt_width(prompt) * sizeof(float));
    sp_audit *audit = audit_texts(prompt, NULL, &length, 1);
    const sp_audit_report *r = report_of(audit);
    assert_true(r->tokens[0].norm == 0 && r->tokens[0].nearest[0] == -1 && r->tokens[1].nearest[2] >= 0);
    sp_audit_free(audit);
    sp_prompt_free(prompt);
}

/* ---- data ---- */

static void write_rows(const char *path, size_t n)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (size_t i = 0; i < n; i++)
        fprintf(file, "{\"text\": \"row %zu of a file, %020zu\", \"label\": \"%s\"}\n", i, i, i % 3 ? "yes" : "no");
    assert_int_equal(fclose(file), 0);
}

static long resident_kilobytes(void) /* anonymous memory: the file itself is mapped, and the system's */
{
    char line[256];
    long kilobytes = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) sscanf(line, "RssAnon: %ld kB", &kilobytes);
    if (status) fclose(status);
    return kilobytes;
}

static long most_kilobytes;
static size_t n_calls;

static void note_memory(void *user, const sp_progress *progress)
{
    (void)user;
    assert_true(progress->done <= progress->total);
    if (n_calls++ % 16) return;
    malloc_trim(0); /* what was freed and is kept for later is no growth */
    long now = resident_kilobytes();
    if (now > most_kilobytes) most_kilobytes = now;
}

static long memory_of_rows(size_t n)
{
    char path[] = "/tmp/sp-audit-XXXXXX.jsonl";
    int file = mkstemps(path, 6);
    assert_true(file >= 0 && !close(file));
    write_rows(path, n);
    sp_audit *audit;
    const sp_hooks hooks = {.progress = note_memory};
    most_kilobytes = 0;
    assert_int_equal(sp_audit_create(&audit, model, NULL, NULL), SP_OK);
    assert_int_equal(sp_audit_data(audit, path, NULL, NULL, &hooks), SP_OK);
    assert_int_equal(report_of(audit)->n_texts, n);
    sp_audit_free(audit);
    unlink(path);
    return most_kilobytes;
}

/* The loss without the only virtual token is that of the model alone. */
static void test_the_only_token_left_out(void **state)
{
    (void)state;
    char path[] = "/tmp/sp-audit-XXXXXX.jsonl";
    int file = mkstemps(path, 6);
    assert_true(file >= 0 && !close(file));
    write_rows(path, 12);
    sp_prompt *prompt = make_prompt(SP_METHOD_PREFIX, 1);
    sp_dataset *data;
    sp_evaluation with, alone;
    sp_audit *audit;
    assert_int_equal(sp_dataset_load(&data, path, NULL), SP_OK);
    assert_int_equal(sp_evaluate(&with, model, prompt, NULL, data, NULL, NULL), SP_OK);
    assert_int_equal(sp_evaluate(&alone, model, NULL, NULL, data, NULL, NULL), SP_OK);
    assert_int_equal(sp_audit_create(&audit, model, prompt, &(sp_audit_options){.n_left_out_rows = 100}), SP_OK);
    assert_int_equal(sp_audit_data(audit, path, NULL, NULL, NULL), SP_OK);
    const sp_audit_report *r = report_of(audit);
    assert_int_equal(r->n_left_out_rows, 12);
    assert_true(fabs(r->tokens[0].left_out_loss - (alone.loss - with.loss)) < 1e-5);
    assert_true(r->tokens[0].left_out_kl > 0 && r->tokens[0].key_norm > 0 && r->tokens[0].value_norm > 0);
    sp_audit_free(audit);
    sp_dataset_free(data);
    sp_prompt_free(prompt);
    unlink(path);
}

/* Without one of two virtual tokens, text stands where it stood if the prompt says where, and moves up if not: as behind a prompt
 * of the other alone. */
static void test_text_behind_what_is_left(void **state)
{
    (void)state;
    char path[] = "/tmp/sp-audit-XXXXXX.jsonl";
    int file = mkstemps(path, 6);
    assert_true(file >= 0 && !close(file));
    write_rows(path, 12);
    sp_dataset *data;
    assert_int_equal(sp_dataset_load(&data, path, NULL), SP_OK);
    for (size_t position = 0; position <= 9; position += 9) {
        sp_prompt *two = make_prompt(SP_METHOD_PREFIX, 2), *other = make_prompt(SP_METHOD_PREFIX, 1);
        const size_t width = sp_prompt_width(two);
        memcpy(sp_prompt_keys_values(other), sp_prompt_keys_values(two) + width, width * sizeof(float));
        if (position) assert_int_equal(sp_prompt_set_text_position(two, position), SP_OK);
        if (position) assert_int_equal(sp_prompt_set_text_position(other, position), SP_OK);
        sp_evaluation of_two, of_other;
        sp_audit *audit;
        assert_int_equal(sp_evaluate(&of_two, model, two, NULL, data, NULL, NULL), SP_OK);
        assert_int_equal(sp_evaluate(&of_other, model, other, NULL, data, NULL, NULL), SP_OK);
        assert_int_equal(sp_audit_create(&audit, model, two, &(sp_audit_options){.n_left_out_rows = 100}), SP_OK);
        assert_int_equal(sp_audit_data(audit, path, NULL, NULL, NULL), SP_OK);
        assert_true(fabs(report_of(audit)->tokens[0].left_out_loss - (of_other.loss - of_two.loss)) < 1e-5);
        sp_audit_free(audit);
        sp_prompt_free(two);
        sp_prompt_free(other);
    }
    sp_dataset_free(data);
    unlink(path);
}

static void test_texts_that_the_model_writes(void **state)
{
    (void)state;
    sp_prompt *prompt = make_prompt(SP_METHOD_PROMPT, 3);
    sp_audit *audit;
    const sp_audit_report *r;
    assert_int_equal(sp_audit_create(&audit, model, prompt, &(sp_audit_options){.n_left_out_rows = 2}), SP_OK);
    assert_int_equal(sp_audit_sampled(audit, 5, 40, 7, NULL), SP_OK);
    r = report_of(audit);
    assert_int_equal(r->n_texts, 5);
    assert_true(r->n_rows <= 5 * 39 && r->n <= 3 + 39);
    assert_int_equal(r->n_left_out_rows, 2);
    for (size_t t = 0; t < 3; t++) assert_true(isfinite(r->tokens[t].left_out_loss) && isnan(r->tokens[t].left_out_kl));
    sp_audit_free(audit);
    sp_prompt_free(prompt);
}

/* 300 kB of data or a twentieth of it. The sanitizers keep memory that was freed. */
static void test_memory_does_not_grow_with_data(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip();
#endif
    memory_of_rows(4000); /* threads and allocator have then taken what they take */
    long few = memory_of_rows(200), many = memory_of_rows(4000);
    assert_true(few > 0);
    assert_true(many - few < 150); /* rows as they are read alone would be 500 kB, their tokens as much again */
}

/* Labels without verbalizers are collected; rows that cannot be used are counted. */
static void test_rows_of_data(void **state)
{
    (void)state;
    char path[] = "/tmp/sp-audit-XXXXXX.jsonl";
    int file = mkstemps(path, 6);
    assert_true(file >= 0 && !close(file));
    FILE *out = fopen(path, "w");
    fputs("{\"text\": \"one\", \"label\": \"abc\"}\n{\"text\": \"\", \"label\": \"abc\"}\n{\"text\": \"two\", \"label\": \"d\"}\n",
          out);
    fclose(out);
    sp_audit *audit;
    assert_int_equal(sp_audit_create(&audit, model, NULL, NULL), SP_OK);
    assert_int_equal(sp_audit_data(audit, path, NULL, NULL, NULL), SP_OK);
    const sp_audit_report *r = report_of(audit);
    assert_int_equal(r->n_texts, 2);
    assert_int_equal(r->n_skipped, 1);
    assert_int_equal(r->n_rows, 3 + 3 + 3 + 1); /* bytes are tokens: "one ab", "two " */
    sp_audit_free(audit);
    assert_int_equal(sp_audit_create(&audit, model, NULL, NULL), SP_OK);
    const sp_verbalizer only = {"abc", " x"};
    const sp_task task = {.verbalizers = &only, .n_verbalizers = 1};
    assert_int_equal(sp_audit_data(audit, path, NULL, &task, NULL), SP_OK);
    r = report_of(audit);
    assert_int_equal(r->n_texts, 1); /* the label that has no verbalizer */
    assert_int_equal(r->n_skipped, 2);
    sp_audit_free(audit);
    unlink(path);
}

static void test_what_is_refused(void **state)
{
    (void)state;
    sp_audit *audit;
    const sp_audit_report *report;
    static int32_t long_text[TINY_CONTEXT + 1];
    volatile int stop = 1;
    const sp_hooks hooks = {.stop = &stop};
    sp_prompt *prompt = make_prompt(SP_METHOD_PROMPT, 4);
    assert_int_equal(sp_audit_create(&audit, model, prompt, &(sp_audit_options){.epsilon = 1}), SP_ERR_ARGUMENT);
    assert_null(audit);
    assert_int_equal(sp_audit_create(&audit, model, prompt, NULL), SP_OK);
    assert_int_equal(sp_audit_get_report(&report, audit), SP_ERR_FORMAT);
    assert_int_equal(sp_audit_text(audit, long_text, 0), SP_ERR_ARGUMENT);
    assert_int_equal(sp_audit_text(audit, long_text, TINY_CONTEXT - 3), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "give 1 to 188"));
    assert_int_equal(sp_audit_data(audit, "/nonexistent.jsonl", NULL, NULL, NULL), SP_ERR_IO);
    assert_int_equal(sp_audit_text(audit, long_text, TINY_CONTEXT - 4), SP_OK);
    assert_int_equal(report_of(audit)->n, TINY_CONTEXT);
    char path[] = "/tmp/sp-audit-XXXXXX.jsonl";
    int file = mkstemps(path, 6);
    assert_true(file >= 0 && !close(file));
    write_rows(path, 2);
    assert_int_equal(sp_audit_data(audit, path, NULL, NULL, &hooks), SP_ERR_STOPPED);
    unlink(path);
    const int32_t outside[] = {1, TINY_VOCAB};
    sp_status st = sp_audit_text(audit, outside, 2);
    assert_int_equal(st ? st : sp_audit_get_report(&report, audit), SP_ERR_ARGUMENT);
    assert_int_equal(sp_audit_text(audit, text, 5), SP_OK); /* and it goes on */
    assert_int_equal(report_of(audit)->n_texts, 2);
    sp_audit_free(audit);
    sp_audit_free(NULL);
    sp_prompt_free(prompt);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_figures_keep_their_bounds),
        cmocka_unit_test(test_texts_add_up),
        cmocka_unit_test(test_prompt_rows_are_rows),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_verdicts),
        cmocka_unit_test(test_numbers_that_are_none),
        cmocka_unit_test(test_rank),
        cmocka_unit_test(test_memory_does_not_grow_with_data),
        cmocka_unit_test(test_nearest_tokens),
        cmocka_unit_test(test_token_without_direction),
        cmocka_unit_test(test_the_only_token_left_out),
        cmocka_unit_test(test_text_behind_what_is_left),
        cmocka_unit_test(test_texts_that_the_model_writes),
        cmocka_unit_test(test_rows_of_data),
        cmocka_unit_test(test_what_is_refused),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
