/* test_evaluate.c: metrics against figures from elsewhere, and evaluation on a tiny model against what the plainest parts of the
 * library (a session's logits, greedy generation) say about each row. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "softprompt.h"
#include "tiny_model.h"
#include "train/metrics.h"

static sp_model *model;
static sp_prompt *prompt;
static char directory[64], path[256];

static const sp_verbalizer VERBALIZERS[] = {{"positive", " positive"}, {"negative", " negative"}, {"mixed", "?"}};
static const sp_task TASK = {"Review: {text}\nSentiment:", VERBALIZERS, 3, 0};
static const char *const TEXTS[] = {"fun", "dull", "fun and dull", "a delight", "no", "in the end a wonder", "never"};
static const char *const LABELS[] = {"positive", "negative", "mixed", "positive", "negative", "positive", "mixed"};
enum { N_ROWS = 7, N_LABELS = 3 };

static const char *in_directory(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static int open_model(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/sp-evaluate-XXXXXX");
    if (!mkdtemp(directory) || !tiny_model_write(in_directory("model.gguf"))) return -1;
    const sp_model_options options = {.n_threads = 1};
    const sp_prompt_options virtual = {.num_virtual_tokens = 5, .seed = 2};
    if (sp_model_load(&model, path, &options) || sp_prompt_create(&prompt, model, &virtual)) {
        fprintf(stderr, "%s\n", sp_message());
        return -1;
    }
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    char command[128];
    sp_prompt_free(prompt);
    sp_model_free(model);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    return system(command);
}

static sp_dataset *load_rows(const char *name, json_t *const *rows, size_t n)
{
    sp_dataset *data;
    FILE *file = fopen(in_directory(name), "w");
    assert_non_null(file);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(json_dumpf(rows[i], file, 0), 0);
        fputc('\n', file);
        json_decref(rows[i]);
    }
    fclose(file);
    assert_int_equal(sp_dataset_load(&data, path, NULL), SP_OK);
    assert_int_equal(sp_dataset_n_rows(data), n);
    return data;
}

static sp_dataset *labelled_rows(void)
{
    json_t *rows[N_ROWS];
    for (size_t i = 0; i < N_ROWS; i++) rows[i] = json_pack("{s:s, s:s}", "text", TEXTS[i], "label", LABELS[i]);
    return load_rows("labels.jsonl", rows, N_ROWS);
}

/* ---- metrics ---- */

/* R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3. */
static void test_wilson(void **state)
{
    (void)state;
    static const struct {
        size_t hits, n;
        double low, high;
    } published[] = {{81, 263, 0.2553, 0.3662}, {15, 148, 0.0624, 0.1605}, {0, 20, 0, 0.1611}, {1, 29, 0.0061, 0.1718}};
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        double interval[2], opposite[2];
        sp_wilson_interval(interval, published[i].hits, published[i].n);
        assert_true(fabs(interval[0] - published[i].low) <= 5e-5 && fabs(interval[1] - published[i].high) <= 5e-5);
        sp_wilson_interval(opposite, published[i].n - published[i].hits, published[i].n);
        assert_true(fabs(opposite[0] - (1 - interval[1])) <= 1e-12 && fabs(opposite[1] - (1 - interval[0])) <= 1e-12);
    }
}

/* true 0 0 1 1 2 2, predicted 0 1 1 1 0 2; a fourth label occurs nowhere: F1 = 2/4, 4/5, 2/3. */
static void test_macro_f1(void **state)
{
    (void)state;
    const size_t hits[] = {1, 2, 1, 0}, n_true[] = {2, 2, 2, 0}, n_predicted[] = {2, 3, 1, 0};
    assert_true(fabs(sp_macro_f1(hits, n_true, n_predicted, 4) - (0.5 + 0.8 + 2. / 3) / 3) < 1e-15);
    assert_true(sp_macro_f1(hits, n_true + 3, n_predicted + 3, 1) == 0);
}

/* ---- rows with labels ---- */

/* ln p of `answer` behind `context`, token by token through a session; *n_tokens of the answer. */
static double logprob_by_session(const char *context, const char *answer, size_t *n_tokens)
{
    sp_session *session;
    int32_t *tokens, *more;
    size_t n, n_vocab = sp_model_n_vocab(model);
    float *logits = malloc(n_vocab * sizeof *logits);
    double sum = 0;
    assert_int_equal(sp_session_create(&session, model, prompt), SP_OK);
    assert_int_equal(sp_tokenize(&tokens, &n, sp_model_tokenizer(model), context, SIZE_MAX, 0), SP_OK);
    assert_int_equal(sp_tokenize(&more, n_tokens, sp_model_tokenizer(model), answer, SIZE_MAX, 0), SP_OK);
    assert_int_equal(sp_session_append(session, tokens, n, logits), SP_OK);
    for (size_t k = 0; k < *n_tokens; k++) {
        double total = 0;
        for (size_t i = 0; i < n_vocab; i++) total += exp(logits[i]);
        sum += logits[more[k]] - log(total);
        assert_int_equal(sp_session_append(session, &more[k], 1, logits), SP_OK);
    }
    sp_session_free(session);
    sp_free(tokens);
    sp_free(more);
    free(logits);
    return sum;
}

static void logprobs_of_text(double logprobs[N_LABELS], size_t n_tokens[N_LABELS], const char *text)
{
    char context[256];
    snprintf(context, sizeof context, "Review: %s\nSentiment:", text);
    for (size_t c = 0; c < N_LABELS; c++) logprobs[c] = logprob_by_session(context, VERBALIZERS[c].text, &n_tokens[c]);
}

static size_t label_index(const char *label)
{
    size_t i = 0;
    while (strcmp(VERBALIZERS[i].label, label) != 0) i++;
    return i;
}

static void assert_near(double a, double b)
{
    assert_true(fabs(a - b) <= 1e-4 * fmax(1, fabs(b)));
}

static void check_prediction(const json_t *line, size_t row, const double logprobs[N_LABELS])
{
    size_t best = 0;
    for (size_t c = 1; c < N_LABELS; c++)
        if (logprobs[c] > logprobs[best]) best = c;
    assert_int_equal(json_integer_value(json_object_get(line, "row")), row);
    assert_int_equal(json_integer_value(json_object_get(line, "line")), row + 1);
    assert_string_equal(json_string_value(json_object_get(line, "label")), LABELS[row]);
    assert_string_equal(json_string_value(json_object_get(line, "prediction")), VERBALIZERS[best].label);
    for (size_t c = 0; c < N_LABELS; c++) {
        const json_t *value = json_object_get(json_object_get(line, "logprobs"), VERBALIZERS[c].label);
        assert_near(json_number_value(value), logprobs[c]);
    }
}

static void test_labels(void **state)
{
    (void)state;
    char predictions[256];
    sp_dataset *data = labelled_rows();
    sp_evaluation e;
    double loss = 0, nll = 0;
    size_t n_right = 0, n_all = 0;
    snprintf(predictions, sizeof predictions, "%s/predictions.jsonl", directory);
    const sp_eval_options options = {.batch_size = 3, .predictions_path = predictions};
    assert_int_equal(sp_evaluate(&e, model, prompt, &TASK, data, &options, NULL), SP_OK);
    FILE *file = fopen(predictions, "r");
    assert_non_null(file);
    for (size_t i = 0; i < N_ROWS; i++) {
        double logprobs[N_LABELS];
        size_t n_tokens[N_LABELS], right = label_index(LABELS[i]);
        json_t *line = json_loadf(file, JSON_DISABLE_EOF_CHECK, NULL);
        logprobs_of_text(logprobs, n_tokens, TEXTS[i]);
        check_prediction(line, i, logprobs);
        json_decref(line);
        loss -= logprobs[right] / (double)n_tokens[right] / N_ROWS;
        nll -= logprobs[right];
        n_all += n_tokens[right];
        n_right += logprobs[right] >= logprobs[0] && logprobs[right] >= logprobs[1] && logprobs[right] >= logprobs[2];
    }
    fclose(file);
    assert_true(e.n == N_ROWS && e.has_accuracy && !e.has_exact_match && e.n_truncated == 0);
    assert_near(e.accuracy, (double)n_right / N_ROWS);
    assert_near(e.loss, loss);
    assert_near(e.perplexity, exp(nll / (double)n_all));
    sp_dataset_free(data);
}

/* How rows are packed together changes nothing. */
static void test_batch_size_is_no_matter(void **state)
{
    (void)state;
    sp_dataset *data = labelled_rows();
    for (size_t size = 1; size <= N_ROWS; size++) {
        sp_evaluation one, all;
        const sp_eval_options options = {.batch_size = size};
        assert_int_equal(sp_evaluate(&one, model, prompt, &TASK, data, &options, NULL), SP_OK);
        assert_int_equal(sp_evaluate(&all, model, prompt, &TASK, data, NULL, NULL), SP_OK);
        assert_near(one.loss, all.loss);
        assert_true(one.accuracy == all.accuracy && one.macro_f1 == all.macro_f1);
    }
    sp_dataset_free(data);
}

static void test_without_prompt_or_task(void **state)
{
    (void)state;
    sp_dataset *data = labelled_rows();
    sp_evaluation e;
    assert_int_equal(sp_evaluate(&e, model, NULL, NULL, data, NULL, NULL), SP_OK); /* labels stand for themselves */
    assert_true(e.n == N_ROWS && e.has_accuracy && isfinite(e.loss));
    const sp_task other = {NULL, VERBALIZERS, 1, 0};
    assert_int_equal(sp_evaluate(&e, model, NULL, &other, data, NULL, NULL), SP_ERR_MISMATCH);
    const int stop = 1;
    const sp_hooks hooks = {.stop = &stop};
    assert_int_equal(sp_evaluate(&e, model, prompt, &TASK, data, NULL, &hooks), SP_ERR_STOPPED);
    sp_dataset_free(data);
}

static void test_classify(void **state)
{
    (void)state;
    sp_classification c;
    for (size_t i = 0; i < N_ROWS; i++) {
        double logprobs[N_LABELS];
        size_t n_tokens[N_LABELS];
        assert_int_equal(sp_classify(&c, model, prompt, &TASK, TEXTS[i]), SP_OK);
        logprobs_of_text(logprobs, n_tokens, TEXTS[i]);
        assert_int_equal(c.n_labels, N_LABELS);
        for (size_t k = 0; k < N_LABELS; k++) {
            assert_string_equal(c.labels[k], VERBALIZERS[k].label);
            assert_near(c.logprobs[k], logprobs[k]);
            assert_true(c.logprobs[c.best] >= c.logprobs[k]);
        }
        sp_classification_clear(&c);
    }
    char *text = malloc(TINY_CONTEXT + 1);
    memset(text, 'x', TINY_CONTEXT);
    text[TINY_CONTEXT] = 0;
    assert_int_equal(sp_classify(&c, model, prompt, &TASK, text), SP_ERR_ARGUMENT);
    const sp_task cut = {TASK.template_text, VERBALIZERS, N_LABELS, 20};
    assert_int_equal(sp_classify(&c, model, prompt, &cut, text), SP_OK);
    sp_classification_clear(&c);
    assert_int_equal(sp_classify(&c, model, prompt, NULL, "fun"), SP_ERR_ARGUMENT); /* this prompt has no task */
    free(text);
}

/* ---- completions and texts ---- */

/* What greedy generation says behind `text`, as tokens and as text of n bytes a token (every token is a byte or a few). */
static char *continue_greedily(const char *text, size_t n_tokens)
{
    sp_session *session;
    sp_generation g;
    int32_t *tokens;
    size_t n;
    const sp_sampling sampling = {.max_new_tokens = n_tokens};
    assert_int_equal(sp_session_create(&session, model, prompt), SP_OK);
    assert_int_equal(sp_tokenize(&tokens, &n, sp_model_tokenizer(model), text, SIZE_MAX, 0), SP_OK);
    assert_int_equal(sp_generate(&g, session, tokens, n, &sampling, NULL, NULL), SP_OK);
    char *said = strdup(g.text);
    sp_generation_clear(&g);
    sp_session_free(session);
    sp_free(tokens);
    return said;
}

/* Exact match counts the end of text too, which a random model never says: so the prompt is trained to say what is right. */
static void test_exact_match(void **state)
{
    (void)state;
    char run[256];
    json_t *rows[3];
    sp_prompt *trained;
    sp_train_report report;
    sp_evaluation e;
    for (size_t i = 0; i < 3; i++) rows[i] = json_pack("{s:s, s:s}", "prompt", TEXTS[i], "completion", i == 2 ? "Qz" : "a");
    sp_dataset *data = load_rows("completions.jsonl", rows, 3);
    snprintf(run, sizeof run, "%s/run", directory);
    const sp_train_options options = {.prompt = {.num_virtual_tokens = 8}, .batch_size = 3, .steps = 150, .learning_rate = 0.1};
    assert_int_equal(sp_train(&report, model, data, data, run, &options, NULL), SP_OK);
    assert_int_equal(sp_prompt_load(&trained, run), SP_OK);
    sp_prompt *untrained = prompt;
    size_t n_exact = 0;
    prompt = trained;
    for (size_t i = 0; i < 3; i++) {
        char *said = continue_greedily(TEXTS[i], 5);
        n_exact += strcmp(said, i == 2 ? "Qz" : "a") == 0;
        free(said);
    }
    prompt = untrained;
    assert_int_equal(sp_evaluate(&e, model, trained, NULL, data, NULL, NULL), SP_OK);
    assert_true(e.n == 3 && e.has_exact_match && !e.has_accuracy);
    assert_true(n_exact >= 1); /* else this test shows nothing */
    assert_near(e.exact_match, (double)n_exact / 3);
    assert_near(report.evaluation.exact_match, e.exact_match);
    assert_int_equal(sp_evaluate(&e, model, prompt, NULL, data, NULL, NULL), SP_OK);
    assert_true(e.exact_match == 0);
    sp_prompt_free(trained);
    sp_dataset_free(data);
}

static void test_text(void **state)
{
    (void)state;
    json_t *rows[] = {json_pack("{s:s}", "text", "a wonder"), json_pack("{s:s}", "text", "x"),
                      json_pack("{s:s}", "text", "dull in the end")};
    sp_dataset *data = load_rows("texts.jsonl", rows, 3);
    sp_evaluation e;
    size_t n, m;
    double first = logprob_by_session("a", " wonder", &n), second = logprob_by_session("d", "ull in the end", &m);
    assert_int_equal(sp_evaluate(&e, model, prompt, NULL, data, NULL, NULL), SP_OK);
    assert_int_equal(e.n, 2); /* one token alone predicts nothing */
    assert_true(!e.has_accuracy && !e.has_exact_match);
    assert_near(e.perplexity, exp(-(first + second) / (double)(n + m)));
    assert_near(e.loss, -(first / (double)n + second / (double)m) / 2);
    sp_dataset_free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wilson),      cmocka_unit_test(test_macro_f1),
        cmocka_unit_test(test_labels),      cmocka_unit_test(test_batch_size_is_no_matter),
        cmocka_unit_test(test_classify),    cmocka_unit_test(test_without_prompt_or_task),
        cmocka_unit_test(test_exact_match), cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
