/* test_ensemble.c: several prompts as one language model, against the prompts taken one by one: ln p of the ensemble is the mean of
 * theirs, less what makes it sum to one. Prompts of both kinds and of different lengths. */
#define _GNU_SOURCE /* mkstemps */
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

#include "generate/session.h"
#include "prompt/prompt.h"
#include "softprompt.h"
#include "tiny_model.h"
#include "train/scorer.h"

enum { N_PROMPTS = 3, N_TEXT = 150 };

static sp_model *model;
static sp_prompt *prompts[N_PROMPTS]; /* embeddings, keys and values, embeddings */
static int32_t text[N_TEXT];

static int open_model(void **state)
{
    (void)state;
    char path[] = "/tmp/sp-ensemble-XXXXXX";
    static const sp_method methods[N_PROMPTS] = {SP_METHOD_PROMPT, SP_METHOD_CARTRIDGE, SP_METHOD_PROMPT};
    int file = mkstemp(path);
    if (file < 0 || close(file) || !tiny_model_write(path)) return -1;
    sp_status st = sp_model_load(&model, path, &(sp_model_options){.n_threads = 2});
    for (size_t i = 0; i < N_PROMPTS && !st; i++) {
        const sp_prompt_options options = {.method = methods[i], .num_virtual_tokens = 9 - 2 * i, .seed = i};
        st = sp_prompt_create(&prompts[i], model, &options);
    }
    for (int32_t i = 0; i < N_TEXT; i++) text[i] = (i * 37 + i * i) % 250;
    unlink(path);
    if (st) fprintf(stderr, "%s\n", sp_message());
    return st ? -1 : 0;
}

static int close_model(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_PROMPTS; i++) sp_prompt_free(prompts[i]);
    sp_model_free(model);
    return 0;
}

static sp_session *open_session(size_t n)
{
    sp_session *session;
    assert_int_equal(sp_session_create_ensemble(&session, model, (const sp_prompt *const *)prompts, n), SP_OK);
    return session;
}

static void normalise(double *logprobs)
{
    double max = -INFINITY, sum = 0;
    for (size_t v = 0; v < TINY_VOCAB; v++) max = fmax(max, logprobs[v]);
    for (size_t v = 0; v < TINY_VOCAB; v++) sum += exp(logprobs[v] - max);
    for (size_t v = 0; v < TINY_VOCAB; v++) logprobs[v] -= max + log(sum);
}

static void logprobs_of(double *out, const float *logits)
{
    for (size_t v = 0; v < TINY_VOCAB; v++) out[v] = logits[v];
    normalise(out);
}

/* out (n, TINY_VOCAB): ln p behind each of the first n tokens, by the definition. */
static double *by_definition(size_t n, size_t n_prompts)
{
    double *out = calloc(n * TINY_VOCAB, sizeof *out), own[TINY_VOCAB];
    float *logits = malloc(n * TINY_VOCAB * sizeof *logits);
    for (size_t i = 0; i < n_prompts; i++) {
        sp_session *session;
        assert_int_equal(sp_session_create(&session, model, prompts[i]), SP_OK);
        assert_int_equal(sp_session_append_all(session, text, n, logits), SP_OK);
        for (size_t t = 0; t < n; t++) {
            logprobs_of(own, logits + t * TINY_VOCAB);
            for (size_t v = 0; v < TINY_VOCAB; v++) out[t * TINY_VOCAB + v] += own[v] / (double)n_prompts;
        }
        sp_session_free(session);
    }
    for (size_t t = 0; t < n; t++) normalise(out + t * TINY_VOCAB);
    free(logits);
    return out;
}

static void assert_logprobs(const float *logits, const double *want)
{
    double got[TINY_VOCAB];
    logprobs_of(got, logits);
    for (size_t v = 0; v < TINY_VOCAB; v++) assert_true(fabs(got[v] - want[v]) <= 2e-5 * (1 + fabs(want[v])));
}

/* ---- sessions ---- */

/* Token by token, which makes runs that are gathered again and again; in one piece; and after going back. */
static void test_sessions_follow_the_definition(void **state)
{
    (void)state;
    for (size_t n_prompts = 2; n_prompts <= N_PROMPTS; n_prompts++) {
        double *want = by_definition(N_TEXT, n_prompts);
        float logits[TINY_VOCAB], *all = malloc(sizeof(float) * N_TEXT * TINY_VOCAB);
        sp_session *session = open_session(n_prompts);
        for (size_t t = 0; t < N_TEXT; t++) {
            assert_int_equal(sp_session_append(session, text + t, 1, logits), SP_OK);
            assert_logprobs(logits, want + t * TINY_VOCAB);
        }
        assert_int_equal(sp_session_n_tokens(session), N_TEXT);
        sp_session_rewind(session, 40);
        sp_session_rewind(session, 25); /* and again before anything was moved */
        assert_int_equal(sp_session_n_tokens(session), 25);
        const float *last;
        assert_int_equal(sp_session_last_logits(&last, session), SP_OK);
        assert_logprobs(last, want + 24 * TINY_VOCAB);
        assert_int_equal(sp_session_append_all(session, text + 25, 60, all), SP_OK);
        for (size_t t = 0; t < 60; t++) assert_logprobs(all + t * TINY_VOCAB, want + (25 + t) * TINY_VOCAB);
        sp_session_rewind(session, 84);
        assert_int_equal(sp_session_append(session, text + 84, N_TEXT - 84, logits), SP_OK);
        assert_logprobs(logits, want + (N_TEXT - 1) * TINY_VOCAB);
        sp_session_rewind(session, 0);
        assert_int_equal(sp_session_append_all(session, text, N_TEXT, all), SP_OK);
        for (size_t t = 0; t < N_TEXT; t++) assert_logprobs(all + t * TINY_VOCAB, want + t * TINY_VOCAB);
        assert_memory_equal(sp_session_tokens(session), text, sizeof text);
        sp_session_free(session);
        free(all);
        free(want);
    }
}

/* The room is what the longest prompt leaves, and an append beyond it appends nothing. */
static void test_room(void **state)
{
    (void)state;
    static int32_t tokens[TINY_CONTEXT];
    float logits[TINY_VOCAB];
    sp_session *session = open_session(N_PROMPTS);
    assert_int_equal(sp_session_room(session), TINY_CONTEXT - 9);
    assert_int_equal(sp_session_append(session, tokens, TINY_CONTEXT - 8, logits), SP_ERR_ARGUMENT);
    assert_int_equal(sp_session_n_tokens(session), 0);
    assert_int_equal(sp_session_append(session, tokens, TINY_CONTEXT - 9, logits), SP_OK);
    assert_int_equal(sp_session_room(session), 0);
    sp_session_free(session);
}

/* An append that fails (a token outside the vocabulary) leaves the text as it was. */
static void test_failed_append(void **state)
{
    (void)state;
    const int32_t bad[] = {5, TINY_VOCAB};
    float logits[TINY_VOCAB];
    double *want = by_definition(6, N_PROMPTS);
    sp_session *session = open_session(N_PROMPTS);
    assert_int_equal(sp_session_append(session, text, 3, NULL), SP_OK);
    assert_int_equal(sp_session_append(session, bad, 2, NULL), SP_ERR_ARGUMENT);
    assert_int_equal(sp_session_n_tokens(session), 3);
    assert_int_equal(sp_session_append(session, text + 3, 3, logits), SP_OK);
    assert_logprobs(logits, want + 5 * TINY_VOCAB);
    sp_session_free(session);
    free(want);
}

/* One prompt is itself, to the last bit; the same one twice is it, too. */
static void test_one_prompt_and_the_same_twice(void **state)
{
    (void)state;
    float alone[TINY_VOCAB], one[TINY_VOCAB], twice[TINY_VOCAB];
    for (size_t i = 0; i < 2; i++) {
        const sp_prompt *same[] = {prompts[i], prompts[i]};
        sp_session *sessions[3];
        assert_int_equal(sp_session_create(&sessions[0], model, prompts[i]), SP_OK);
        assert_int_equal(sp_session_create_ensemble(&sessions[1], model, same, 1), SP_OK);
        assert_int_equal(sp_session_create_ensemble(&sessions[2], model, same, 2), SP_OK);
        assert_int_equal(sp_session_append(sessions[0], text, 30, alone), SP_OK);
        assert_int_equal(sp_session_append(sessions[1], text, 30, one), SP_OK);
        assert_int_equal(sp_session_append(sessions[2], text, 30, twice), SP_OK);
        assert_memory_equal(alone, one, sizeof one);
        for (size_t v = 0; v < TINY_VOCAB; v++) assert_true(fabsf(twice[v] - alone[v]) <= 1e-5f * (1 + fabsf(alone[v])));
        for (size_t s = 0; s < 3; s++) sp_session_free(sessions[s]);
    }
}

static void test_greedy_generation(void **state)
{
    (void)state;
    enum { N_NEW = 50 };
    sp_session *generating = open_session(N_PROMPTS), *checking = open_session(N_PROMPTS);
    sp_generation generation;
    float logits[TINY_VOCAB];
    double logprobs[TINY_VOCAB];
    assert_int_equal(sp_generate(&generation, generating, text, 4, &(sp_sampling){.max_new_tokens = N_NEW}, NULL, NULL), SP_OK);
    assert_true(generation.n_tokens > 0);
    assert_int_equal(sp_session_append(checking, text, 4, logits), SP_OK);
    for (size_t t = 0; t < generation.n_tokens; t++) {
        int32_t best = 0;
        for (int32_t v = 1; v < TINY_VOCAB; v++)
            if (logits[v] > logits[best]) best = v;
        logprobs_of(logprobs, logits);
        assert_int_equal(generation.tokens[t], best);
        assert_true(fabs((double)generation.logprobs[t] - logprobs[best]) <= 1e-4);
        assert_int_equal(sp_session_append(checking, &best, 1, logits), SP_OK);
    }
    sp_generation_clear(&generation);
    sp_session_free(generating);
    sp_session_free(checking);
}

/* ---- scores ---- */

/* Answers behind shared beginnings: each token's nll as the definition has it, whatever other items are in the pass. */
static void test_scores_follow_the_definition(void **state)
{
    (void)state;
    static const size_t spans[][2] = {{5, 1}, {5, 3}, {2, 1}, {12, 2}, {5, 1}};
    enum { N = sizeof spans / sizeof *spans };
    sp_item items[N];
    sp_root roots[N_PROMPTS];
    double *want = by_definition(20, N_PROMPTS);
    const double *nll;
    sp_scorer *scorer;
    for (size_t i = 0; i < N; i++) items[i] = (sp_item){text, text + spans[i][0], spans[i][0], spans[i][1], 0, NULL};
    for (size_t i = 0; i < N_PROMPTS; i++) roots[i] = sp_root_of_prompt(prompts[i]);
    assert_int_equal(sp_scorer_create(&scorer, model), SP_OK);
    sp_scorer_set_ensemble(scorer, roots, N_PROMPTS);
    for (int pass = 0; pass < 2; pass++) {
        assert_int_equal(sp_scorer_score(&nll, scorer, items, N), SP_OK);
        for (size_t i = 0; i < N; i++) {
            bool want_greedy = true, greedy;
            for (size_t k = 0; k < items[i].n_answer; k++) {
                const double *logprobs = want + (items[i].n_context + k - 1) * TINY_VOCAB;
                for (size_t v = 0; v < TINY_VOCAB; v++) want_greedy &= logprobs[v] <= logprobs[items[i].answer[k]];
                assert_true(fabs(*nll++ + logprobs[items[i].answer[k]]) <= 1e-4);
            }
            assert_int_equal(sp_scorer_is_greedy(&greedy, scorer, i), SP_OK);
            assert_int_equal(greedy, want_greedy);
        }
    }
    float gradient[1];
    assert_int_equal(sp_scorer_gradient(&nll, gradient, scorer, items, N, 1), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "ensemble"));
    sp_scorer_free(scorer);
    free(want);
}

/* What an answer greedy decoding gives is found, and one that differs in its last token is not. */
static void test_greedy_answers(void **state)
{
    (void)state;
    sp_root roots[N_PROMPTS];
    sp_generation generation;
    sp_session *session = open_session(N_PROMPTS);
    sp_scorer *scorer;
    const double *nll;
    bool greedy[2];
    for (size_t i = 0; i < N_PROMPTS; i++) roots[i] = sp_root_of_prompt(prompts[i]);
    assert_int_equal(sp_generate(&generation, session, text, 7, &(sp_sampling){.max_new_tokens = 3}, NULL, NULL), SP_OK);
    int32_t other[3];
    size_t n = generation.n_tokens;
    memcpy(other, generation.tokens, n * sizeof *other);
    other[n - 1] = (other[n - 1] + 1) % TINY_VOCAB;
    const sp_item items[] = {{text, generation.tokens, 7, n, 0, NULL}, {text, other, 7, n, 0, NULL}};
    assert_int_equal(sp_scorer_create(&scorer, model), SP_OK);
    sp_scorer_set_ensemble(scorer, roots, N_PROMPTS);
    assert_int_equal(sp_scorer_score(&nll, scorer, items, 2), SP_OK);
    for (size_t i = 0; i < 2; i++) assert_int_equal(sp_scorer_is_greedy(&greedy[i], scorer, i), SP_OK);
    assert_true(greedy[0] && !greedy[1]);
    sp_scorer_free(scorer);
    sp_session_free(session);
    sp_generation_clear(&generation);
}

/* Answers that nothing precedes are predicted by each prompt's own last row. */
static void test_answers_without_context(void **state)
{
    (void)state;
    const sp_prompt *both[] = {prompts[0], prompts[2]};
    const sp_root roots[] = {sp_root_of_prompt(both[0]), sp_root_of_prompt(both[1])};
    const sp_item item = {text, text, 0, 1, 0, NULL};
    double logprob[2][TINY_VOCAB], mean[TINY_VOCAB];
    const double *nll;
    sp_scorer *scorer;
    assert_int_equal(sp_scorer_create(&scorer, model), SP_OK);
    for (size_t r = 0; r < 2; r++) {
        sp_scorer_set_prompt(scorer, both[r]);
        for (int32_t v = 0; v < TINY_VOCAB; v++) {
            const sp_item one = {&v, &v, 0, 1, 0, NULL};
            assert_int_equal(sp_scorer_score(&nll, scorer, &one, 1), SP_OK);
            logprob[r][v] = -nll[0];
        }
    }
    for (size_t v = 0; v < TINY_VOCAB; v++) mean[v] = (logprob[0][v] + logprob[1][v]) / 2;
    normalise(mean);
    sp_scorer_set_ensemble(scorer, roots, 2);
    const sp_item items[] = {item, {text, text + 5, 5, 2, 0, NULL}};
    assert_int_equal(sp_scorer_score(&nll, scorer, items, 2), SP_OK);
    assert_true(fabs(nll[0] + mean[text[0]]) <= 1e-4);
    sp_scorer_free(scorer);
}

/* ---- labels ---- */

static const sp_verbalizer VERBALIZERS[] = {{"good", "+"}, {"bad", "-"}, {"long", " tive"}};
static const sp_verbalizer REVERSED[] = {{"long", " tive"}, {"bad", "-"}, {"good", "+"}};
static const sp_verbalizer OTHERS[] = {{"good", "+"}, {"bad", "-"}, {"long", " t"}};
static const sp_task TASK = {"Review: {text}\n", VERBALIZERS, 3, 0};
static const char *const TEXTS[] = {"fun", "dull", "in the end a wonder", "no"};
static const char *const LABELS[] = {"good", "bad", "long", "bad"};
enum { N_ROWS = 4 };

/* Labels of one token differ by the mean of what they differ by behind each prompt: what makes the distribution sum to one is the
 * same for both. A label of several tokens is the product of the ensemble's tokens. */
static void test_classification(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ROWS; i++) {
        double difference = 0, sum = 0, logprobs[TINY_VOCAB];
        sp_classification found, one;
        assert_int_equal(sp_classify_ensemble(&found, model, (const sp_prompt *const *)prompts, N_PROMPTS, &TASK, TEXTS[i]), SP_OK);
        for (size_t p = 0; p < N_PROMPTS; p++) {
            assert_int_equal(sp_classify(&one, model, prompts[p], &TASK, TEXTS[i]), SP_OK);
            difference += (one.logprobs[0] - one.logprobs[1]) / N_PROMPTS;
            sp_classification_clear(&one);
        }
        assert_true(fabs(found.logprobs[0] - found.logprobs[1] - difference) <= 1e-4);
        char line[64];
        int32_t *tokens, *answer;
        size_t n, n_answer;
        float logits[TINY_VOCAB];
        snprintf(line, sizeof line, "Review: %s\n", TEXTS[i]);
        assert_int_equal(sp_tokenize(&tokens, &n, sp_model_tokenizer(model), line, SIZE_MAX, 0), SP_OK);
        assert_int_equal(sp_tokenize(&answer, &n_answer, sp_model_tokenizer(model), " tive", SIZE_MAX, 0), SP_OK);
        assert_true(n_answer > 1);
        sp_session *session = open_session(N_PROMPTS);
        assert_int_equal(sp_session_append(session, tokens, n, logits), SP_OK);
        for (size_t k = 0; k < n_answer; k++) {
            logprobs_of(logprobs, logits);
            sum += logprobs[answer[k]];
            assert_int_equal(sp_session_append(session, answer + k, 1, logits), SP_OK);
        }
        assert_true(fabs(found.logprobs[2] - sum) <= 1e-4);
        sp_session_free(session);
        sp_free(tokens);
        sp_free(answer);
        sp_classification_clear(&found);
    }
}

static sp_dataset *labelled_rows(void)
{
    char path[] = "/tmp/sp-ensemble-XXXXXX.tsv";
    sp_dataset *data;
    FILE *file = fdopen(mkstemps(path, 4), "w");
    assert_non_null(file);
    fputs("text\tlabel\n", file);
    for (size_t i = 0; i < N_ROWS; i++) fprintf(file, "%s\t%s\n", TEXTS[i], LABELS[i]);
    fclose(file);
    assert_int_equal(sp_dataset_load(&data, path, NULL), SP_OK);
    unlink(path);
    return data;
}

/* Rows together as one by one; one prompt as sp_evaluate has it. */
static void test_evaluation(void **state)
{
    (void)state;
    const sp_prompt *const *all = (const sp_prompt *const *)prompts;
    sp_dataset *data = labelled_rows();
    sp_evaluation together, one, plain;
    double loss = 0;
    size_t n_right = 0;
    for (size_t i = 0; i < N_ROWS; i++) {
        sp_classification found;
        size_t right = 0, n;
        int32_t *tokens;
        assert_int_equal(sp_classify_ensemble(&found, model, all, N_PROMPTS, &TASK, TEXTS[i]), SP_OK);
        while (strcmp(found.labels[right], LABELS[i]) != 0) right++;
        assert_int_equal(sp_tokenize(&tokens, &n, sp_model_tokenizer(model), VERBALIZERS[right].text, SIZE_MAX, 0), SP_OK);
        sp_free(tokens);
        loss -= found.logprobs[right] / (double)n / N_ROWS;
        n_right += found.best == right;
        sp_classification_clear(&found);
    }
    for (size_t batch = 1; batch <= 4; batch += 3) {
        const sp_eval_options options = {.batch_size = batch};
        assert_int_equal(sp_evaluate_ensemble(&together, model, all, N_PROMPTS, &TASK, data, &options, NULL), SP_OK);
        assert_int_equal(together.n, N_ROWS);
        assert_true(fabs(together.loss - loss) <= 1e-4);
        assert_true(fabs(together.accuracy - (double)n_right / N_ROWS) < 1e-9);
    }
    assert_int_equal(sp_evaluate_ensemble(&one, model, all, 1, &TASK, data, NULL, NULL), SP_OK);
    assert_int_equal(sp_evaluate(&plain, model, prompts[0], &TASK, data, NULL, NULL), SP_OK);
    assert_true(one.loss == plain.loss && one.accuracy == plain.accuracy);
    assert_true(fabs(together.loss - plain.loss) > 1e-3);
    assert_int_equal(sp_evaluate_ensemble(&one, model, NULL, 0, &TASK, data, NULL, NULL), SP_OK);
    assert_int_equal(sp_evaluate(&plain, model, NULL, &TASK, data, NULL, NULL), SP_OK);
    assert_true(one.loss == plain.loss);
    sp_dataset_free(data);
}

static sp_prompt *with_task(const sp_task *task)
{
    sp_prompt *prompt;
    assert_int_equal(sp_prompt_create(&prompt, model, &(sp_prompt_options){.num_virtual_tokens = 2}), SP_OK);
    if (task) assert_int_equal(sp_prompt_set_task(prompt, task), SP_OK);
    return prompt;
}

/* Prompts that have a task must agree on what is not given. */
static void test_tasks(void **state)
{
    (void)state;
    const sp_task tasks[] = {{TASK.template_text, REVERSED, 3, 0},
                             {"{text}", VERBALIZERS, 3, 0},
                             {TASK.template_text, OTHERS, 3, 0},
                             {TASK.template_text, VERBALIZERS, 2, 0},
                             {TASK.template_text, VERBALIZERS, 3, 7}};
    static const char *const differ[] = {NULL, "different templates", "different verbalizers", "different verbalizers", "maximal"};
    sp_task merged;
    for (size_t i = 0; i < 5; i++) {
        sp_prompt *three[] = {with_task(NULL), with_task(&TASK), with_task(&tasks[i])};
        const sp_prompt *const *all = (const sp_prompt *const *)three;
        assert_int_equal(sp_ensemble_task(&merged, NULL, all, 3), differ[i] ? SP_ERR_MISMATCH : SP_OK);
        if (differ[i]) assert_non_null(strstr(sp_message(), differ[i]));
        if (differ[i]) assert_non_null(strstr(sp_message(), "prompts 2 and 3"));
        if (!differ[i]) assert_string_equal(merged.verbalizers[0].label, "good");
        const sp_task given = {i == 1 ? "Text: {text}" : NULL, i == 2 || i == 3 ? OTHERS : NULL, i == 2 || i == 3 ? 3 : 0,
                               i == 4 ? 9 : 0};
        assert_int_equal(sp_ensemble_task(&merged, &given, all, 3), SP_OK);
        assert_string_equal(merged.template_text, i == 1 ? given.template_text : TASK.template_text);
        assert_int_equal(merged.n_verbalizers, 3);
        assert_int_equal(merged.max_length, i == 4 ? 9 : 0);
        for (size_t p = 0; p < 3; p++) sp_prompt_free(three[p]);
    }
    assert_int_equal(sp_ensemble_task(&merged, NULL, NULL, 0), SP_OK);
    assert_null(merged.template_text);
}

/* Rows name tasks, and an ensemble has one of each prompt. */
static void test_prompts_of_several_tasks(void **state)
{
    (void)state;
    sp_dataset *data = labelled_rows();
    sp_evaluation e;
    sp_prompt *several;
    const sp_prompt_options options = {.method = SP_METHOD_MULTITASK, .num_virtual_tokens = 3, .num_tasks = 2};
    assert_int_equal(sp_prompt_create(&several, model, &options), SP_OK);
    const sp_prompt *both[] = {prompts[0], several};
    assert_int_equal(sp_evaluate_ensemble(&e, model, both, 2, &TASK, data, NULL, NULL), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "prompt 2 of the ensemble has 2 tasks"));
    assert_int_equal(sp_evaluate_ensemble(&e, model, both, 2, &TASK, data, &(sp_eval_options){.one_task = true}, NULL), SP_OK);
    sp_prompt_free(several);
    sp_dataset_free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sessions_follow_the_definition),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_failed_append),
        cmocka_unit_test(test_one_prompt_and_the_same_twice),
        cmocka_unit_test(test_greedy_generation),
        cmocka_unit_test(test_scores_follow_the_definition),
        cmocka_unit_test(test_greedy_answers),
        cmocka_unit_test(test_answers_without_context),
        cmocka_unit_test(test_classification),
        cmocka_unit_test(test_evaluation),
        cmocka_unit_test(test_tasks),
        cmocka_unit_test(test_prompts_of_several_tasks),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
