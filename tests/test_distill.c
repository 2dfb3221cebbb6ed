/* test_distill.c: a prompt that stands for a text, on a tiny model: the loss, the queries that are sampled, runs and their
 * resumption.
 *
 * What is claimed: the gradient is that of the loss; a query's tokens are draws from the distributions that a session has behind
 * the text; training comes nearer to the text on queries that it does not see; stopped and resumed it leaves the same bytes; texts
 * that cannot be are refused by name. tests/oracle/distill.py holds loss and gradient against torch. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "softprompt.h"
#include "tiny_model.h"
#include "train/queries.h"
#include "train/teacher.h"

enum { N_VIRTUAL = 4, N_QUERIES = 40, QUERY_LENGTH = 12, STEPS = 12 };

static const char TEXT[] = "warm: good\ndull: bad\na delight: good\nmoney back: bad\n";
static const char ROWS[] = "text\tlabel\na warm film\tgood\ndull\tbad\nthe cast is a delight\tgood\nwasted\tbad\n";

static sp_model *model;
static char directory[64], path[256], path2[256];

static const char *in_directory(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static int open_model(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/sp-distill-XXXXXX");
    if (!mkdtemp(directory) || !tiny_model_write(in_directory("model.gguf"))) return -1;
    const sp_model_options options = {.n_threads = 2};
    return sp_model_load(&model, path, &options) ? -1 : 0;
}

static int close_model(void **state)
{
    (void)state;
    char command[128];
    sp_model_free(model);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    return system(command);
}

static sp_prompt *make_prompt(sp_method method)
{
    sp_prompt *prompt;
    const sp_prompt_options options = {.method = method, .num_virtual_tokens = N_VIRTUAL, .seed = 3};
    assert_int_equal(sp_prompt_create(&prompt, model, &options), SP_OK);
    return prompt;
}

static int32_t *context_tokens(size_t *n)
{
    int32_t *tokens;
    assert_int_equal(sp_context_tokenize(&tokens, n, model, TEXT), SP_OK);
    return tokens;
}

/* ---- the loss ---- */

/* Two share a beginning, two are equal; whole queries and their last tokens. */
static const int32_t A[] = {82, 42, 253, 31, 27}, B[] = {82, 42, 253, 31, 35, 11, 12}, C[] = {56, 35};
static const sp_example QUERIES[] = {{A, 5, 4, 0}, {B, 7, 3, 0}, {C, 2, 1, 0}, {A, 5, 4, 0}};
enum { N_EXAMPLES = sizeof QUERIES / sizeof *QUERIES };

static double loss_of(const sp_prompt *prompt, float *gradient)
{
    size_t n;
    int32_t *context = context_tokens(&n);
    double loss;
    assert_int_equal(sp_distillation_loss(&loss, gradient, model, prompt, context, n, QUERIES, N_EXAMPLES), SP_OK);
    free(context);
    return loss;
}

/* Central differences along the gradient, over the whole prompt at once. */
static void test_gradient_against_differences(void **state)
{
    (void)state;
    for (int method = SP_METHOD_PROMPT; method <= SP_METHOD_CARTRIDGE; method++) {
        sp_prompt *prompt = make_prompt((sp_method)method);
        size_t n = N_VIRTUAL * sp_prompt_width(prompt);
        float *rows = sp_prompt_weights(prompt), *gradient = malloc(n * sizeof(float)), *start = malloc(n * sizeof(float));
        double squares = 0, sides[2];
        assert_true(loss_of(prompt, gradient) > 0);
        memcpy(start, rows, n * sizeof(float));
        for (size_t k = 0; k < n; k++) squares += (double)gradient[k] * gradient[k];
        assert_true(squares > 1e-6);
        double step = 1e-2 / sqrt(squares);
        for (int side = 0; side < 2; side++) {
            for (size_t k = 0; k < n; k++) rows[k] = start[k] + (float)((side ? -step : step) * gradient[k]);
            sides[side] = loss_of(prompt, NULL);
        }
        assert_true(fabs((sides[0] - sides[1]) / (2 * step) - squares) <= 0.02 * squares);
        free(gradient);
        free(start);
        sp_prompt_free(prompt);
    }
}

/* The text's own embeddings are the text. */
static void test_a_text_stands_for_itself(void **state)
{
    (void)state;
    size_t n;
    int32_t *context = context_tokens(&n);
    const sp_prompt_options options = {.num_virtual_tokens = n, .init = SP_INIT_TEXT, .init_text = TEXT};
    sp_prompt *prompt;
    assert_int_equal(sp_prompt_create(&prompt, model, &options), SP_OK);
    assert_true(fabs(loss_of(prompt, NULL)) <= 1e-6);
    assert_true(loss_of(NULL, NULL) > 1e-2);
    sp_prompt_free(prompt);
    free(context);
}

static void test_queries_that_cannot_be(void **state)
{
    (void)state;
    size_t n;
    int32_t *context = context_tokens(&n);
    const sp_example whole = {A, 5, 5, 0};
    double loss;
    assert_int_equal(sp_distillation_loss(&loss, NULL, model, NULL, context, n, &whole, 1), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "at least one to read"));
    assert_int_equal(sp_distillation_loss(&loss, NULL, model, NULL, context, 0, QUERIES, 1), SP_ERR_ARGUMENT);
    assert_int_equal(sp_distillation_loss(&loss, NULL, model, NULL, context, n, QUERIES, 0), SP_ERR_ARGUMENT);
    free(context);
}

/* ---- sampled queries ---- */

static sp_encoded_data sample(size_t n, uint64_t seed)
{
    size_t n_context;
    int32_t *context = context_tokens(&n_context);
    sp_teacher *teacher;
    sp_encoded_data out;
    assert_int_equal(sp_teacher_create(&teacher, model, context, n_context), SP_OK);
    assert_int_equal(sp_queries_sample(&out, teacher, model, n, QUERY_LENGTH, seed, NULL), SP_OK);
    assert_int_equal(out.n, n);
    sp_teacher_free(teacher);
    free(context);
    return out;
}

/* The tokens of a query: what is read and what is predicted stand behind each other. */
static size_t tokens_of(int32_t *tokens, const sp_encoded_row *row)
{
    memcpy(tokens, row->context, row->n_context * sizeof *tokens);
    memcpy(tokens + row->n_context, row->candidates[0], row->n_candidate[0] * sizeof *tokens);
    return row->n_context + row->n_candidate[0];
}

/* How often tokens fall into each tenth of the cumulative distributions of a session that reads the same text: draws from them fall
 * into all alike. A token with a share of more than a tenth is spread over the tenths that it covers. */
static void test_samples_follow_the_distribution(void **state)
{
    (void)state;
    enum { N = 200, TENTHS = 10 };
    sp_encoded_data queries = sample(N, 1);
    size_t n_context, n_draws = 0;
    int32_t *context = context_tokens(&n_context);
    double counts[TENTHS] = {0}, statistic = 0;
    static float logits[TINY_VOCAB];
    sp_session *session;
    assert_int_equal(sp_session_create(&session, model, NULL), SP_OK);
    assert_int_equal(sp_session_append(session, context, n_context, NULL), SP_OK);
    for (size_t q = 0; q < N; q++) {
        int32_t tokens[QUERY_LENGTH];
        size_t n = tokens_of(tokens, &queries.rows[q]);
        assert_in_range(n, 2, QUERY_LENGTH);
        assert_true(n == QUERY_LENGTH || tokens[n - 1] == TINY_EOS);
        sp_session_rewind(session, n_context);
        for (size_t k = 1; k < n; k++) {
            assert_int_equal(sp_session_append(session, &tokens[k - 1], 1, logits), SP_OK);
            assert_true(tokens[k - 1] != TINY_EOS);
            double below = 0, own = 0, total = 0;
            for (size_t i = 0; i < TINY_VOCAB; i++) {
                double p = exp((double)logits[i]);
                total += p;
                if ((int32_t)i < tokens[k]) below += p;
                if ((int32_t)i == tokens[k]) own = p;
            }
            double from = below / total * TENTHS, to = (below + own) / total * TENTHS;
            for (int t = 0; t < TENTHS; t++) {
                double low = fmax(from, t), high = fmin(to, t + 1);
                if (high > low) counts[t] += (high - low) / (to - from);
            }
            n_draws++;
        }
    }
    for (int t = 0; t < TENTHS; t++)
        statistic += (counts[t] - (double)n_draws / TENTHS) * (counts[t] - (double)n_draws / TENTHS) * TENTHS / (double)n_draws;
    printf("chi squared of %zu draws in %d classes: %.1f\n", n_draws, TENTHS, statistic);
    assert_true(n_draws > 1000 && statistic < 27.9); /* 9 degrees of freedom: once in a thousand */
    sp_session_free(session);
    sp_encoded_data_clear(&queries);
    free(context);
}

static void assert_same_queries(const sp_encoded_data *a, const sp_encoded_data *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int32_t one[QUERY_LENGTH], other[QUERY_LENGTH];
        size_t length = tokens_of(one, &a->rows[i]);
        assert_int_equal(length, tokens_of(other, &b->rows[i]));
        assert_memory_equal(one, other, length * sizeof *one);
        assert_int_equal(a->rows[i].n_context, 1);
    }
}

/* A query does not depend on how many others there are; the file gives back what it got. */
static void test_queries_are_reproducible(void **state)
{
    (void)state;
    sp_encoded_data many = sample(70, 9), few = sample(3, 9), other = sample(3, 10), loaded;
    assert_same_queries(&many, &few, few.n);
    int32_t one[QUERY_LENGTH], another[QUERY_LENGTH];
    size_t n = tokens_of(one, &many.rows[0]);
    assert_true(n != tokens_of(another, &other.rows[0]) || memcmp(one, another, n * sizeof *one) != 0);
    assert_int_equal(sp_queries_save(&many, model, in_directory("queries.jsonl")), SP_OK);
    assert_int_equal(sp_queries_load(&loaded, model, path, many.n, QUERY_LENGTH), SP_OK);
    assert_int_equal(loaded.n, many.n);
    assert_same_queries(&many, &loaded, many.n);
    sp_encoded_data_clear(&loaded);
    assert_int_equal(sp_queries_load(&loaded, model, path, many.n + 1, QUERY_LENGTH), SP_ERR_FORMAT);
    assert_int_equal(sp_queries_load(&loaded, model, path, many.n - 1, QUERY_LENGTH), SP_ERR_FORMAT);
    assert_int_equal(sp_queries_load(&loaded, model, path, many.n, 3), SP_ERR_FORMAT);
    static const char *const bad[] = {"{\"tokens\": [1]}\n", "{\"tokens\": [1, 99999]}\n", "{\"tokens\": [1, \"a\"]}\n", "[1, 2]\n",
                                      "{}\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const sp_bytes bytes = {bad[i], strlen(bad[i])};
        assert_int_equal(sp_write_file_atomic(path, &bytes, 1), SP_OK);
        assert_int_equal(sp_queries_load(&loaded, model, path, 1, QUERY_LENGTH), SP_ERR_FORMAT);
    }
    sp_encoded_data_clear(&many);
    sp_encoded_data_clear(&few);
    sp_encoded_data_clear(&other);
}

/* ---- runs ---- */

static sp_train_options options_of_run(sp_method method)
{
    return (sp_train_options){.prompt = {.method = method, .num_virtual_tokens = N_VIRTUAL, .seed = 1},
                              .teacher_context = TEXT,
                              .num_queries = N_QUERIES,
                              .query_length = QUERY_LENGTH,
                              .batch_size = 4,
                              .gradient_accumulation_steps = 2,
                              .steps = STEPS,
                              .learning_rate = 0.05,
                              .eval_every = 5,
                              .save_every = 3,
                              .seed = 5};
}

static sp_status train_in(sp_train_report *report, const char *name, const sp_train_options *options, const sp_dataset *rows,
                          const sp_hooks *hooks)
{
    snprintf(path2, sizeof path2, "%s/%s", directory, name);
    return sp_train(report, model, rows, NULL, path2, options, hooks);
}

static void assert_same_file(const char *one, const char *other, const char *name)
{
    size_t n, m;
    char *a, *b, file[256];
    snprintf(file, sizeof file, "%s/%s/%s", directory, one, name);
    assert_int_equal(sp_read_file(&a, &n, file, 1 << 24), SP_OK);
    snprintf(file, sizeof file, "%s/%s/%s", directory, other, name);
    assert_int_equal(sp_read_file(&b, &m, file, 1 << 24), SP_OK);
    assert_int_equal(n, m);
    assert_memory_equal(a, b, n);
    free(a);
    free(b);
}

static void test_training_comes_nearer(void **state)
{
    (void)state;
    static const char *const names[] = {
        [SP_METHOD_PROMPT] = "prompt",   [SP_METHOD_PREFIX] = "prefix",       [SP_METHOD_CARTRIDGE] = "cartridge",
        [SP_METHOD_PTUNING] = "ptuning", [SP_METHOD_MULTITASK] = "multitask", [SP_METHOD_CPT] = "cpt"};
    for (size_t method = 0; method < sizeof names / sizeof *names; method++) {
        sp_train_options options = options_of_run((sp_method)method);
        if (method == SP_METHOD_CPT) options.prompt.init_text = "good", options.prompt.opt_projection_format_epsilon = 30;
        if (method == SP_METHOD_PTUNING) options.learning_rate = 0.003; /* a network's */
        sp_train_report report;
        size_t n;
        free(context_tokens(&n));
        if (train_in(&report, names[method], &options, NULL, NULL)) fail_msg("%s", sp_message());
        const sp_distillation *d = &report.distillation;
        printf("%s: %.4f without, %.4f at the start, %.4f\n", names[method], d->kl_without_prompt, d->kl_at_start, d->kl);
        assert_true(report.has_distillation && d->are_held_out);
        assert_int_equal(d->n_context, n);
        assert_int_equal(d->n_queries, N_QUERIES / 8);
        assert_true(d->kl < 0.9 * d->kl_at_start && d->kl < d->kl_without_prompt);
        /* What it says is so: the same loss of the adapter that was written. */
        sp_prompt *prompt;
        sp_encoded_data queries;
        int32_t *context = context_tokens(&n);
        double sum = 0, loss;
        assert_int_equal(sp_prompt_load(&prompt, path2), SP_OK);
        char file[300];
        snprintf(file, sizeof file, "%s/queries.jsonl", path2);
        assert_int_equal(sp_queries_load(&queries, model, file, N_QUERIES, QUERY_LENGTH), SP_OK);
        for (size_t i = N_QUERIES - N_QUERIES / 8; i < N_QUERIES; i++) {
            int32_t tokens[QUERY_LENGTH];
            const sp_example query = {tokens, tokens_of(tokens, &queries.rows[i]), queries.rows[i].n_candidate[0], 0};
            assert_int_equal(sp_distillation_loss(&loss, NULL, model, prompt, context, n, &query, 1), SP_OK);
            sum += loss;
        }
        assert_true(fabs(sum / (N_QUERIES / 8) - d->kl) <= 1e-5 * d->kl);
        free(context);
        sp_encoded_data_clear(&queries);
        sp_prompt_free(prompt);
        /* Finished, it is told the same again, without sampling. */
        sp_train_options again = options;
        sp_train_report other;
        again.resume = true;
        assert_int_equal(train_in(&other, names[method], &again, NULL, NULL), SP_OK);
        assert_true(other.already_finished);
        assert_memory_equal(&other.distillation, &report.distillation, sizeof report.distillation);
    }
}

/* Stops where progress reports that so much of `what` is done. */
typedef struct stopper {
    const char *what;
    size_t done;
    volatile int stop;
} stopper;

static void stop_there(void *user, const sp_progress *progress)
{
    stopper *s = user;
    if (strcmp(progress->what, s->what) == 0 && progress->done >= s->done) s->stop = 1;
}

static void test_stopped_and_resumed(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        size_t done;
    } moments[] = {{"sample", 10}, {"eval", 1}, {"train", 1}, {"train", 7}};
    sp_train_options options = options_of_run(SP_METHOD_PREFIX);
    sp_train_report straight, report;
    assert_int_equal(train_in(&straight, "straight", &options, NULL, NULL), SP_OK);
    options.resume = true;
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
        stopper s = {moments[i].what, moments[i].done, 0};
        const sp_hooks hooks = {.progress = stop_there, .user = &s, .stop = &s.stop};
        assert_int_equal(train_in(&report, "stopped", &options, NULL, &hooks), SP_ERR_STOPPED);
        assert_int_equal(train_in(&report, "stopped", &options, NULL, NULL), SP_OK);
        assert_memory_equal(&report.distillation, &straight.distillation, sizeof report.distillation);
        assert_same_file("straight", "stopped", "adapter_model.safetensors");
        assert_same_file("straight", "stopped", "settings.json");
        assert_same_file("straight", "stopped", "queries.jsonl");
        char command[128];
        snprintf(command, sizeof command, "rm -rf '%s/stopped'", directory);
        assert_int_equal(system(command), 0);
    }
    options.teacher_context = "another text";
    assert_int_equal(train_in(&report, "straight", &options, NULL, NULL), SP_ERR_MISMATCH);
    assert_non_null(strstr(sp_message(), "teacher_context (saved"));
}

static void test_on_rows_of_data(void **state)
{
    (void)state;
    sp_dataset *rows;
    const sp_bytes bytes = {ROWS, strlen(ROWS)};
    assert_int_equal(sp_write_file_atomic(in_directory("rows.tsv"), &bytes, 1), SP_OK);
    assert_int_equal(sp_dataset_load(&rows, path, NULL), SP_OK);
    sp_train_options options = options_of_run(SP_METHOD_PROMPT);
    sp_train_report report;
    options.task.template_text = "{text}:";
    assert_int_equal(train_in(&report, "rows", &options, rows, NULL), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "num_queries"));
    options.num_queries = options.query_length = 0;
    assert_int_equal(train_in(&report, "rows", &options, rows, NULL), SP_OK);
    assert_int_equal(report.distillation.n_queries, 4); /* too few for an eighth: those of the training */
    assert_false(report.distillation.are_held_out);
    assert_true(report.distillation.kl < 0.8 * report.distillation.kl_at_start);
    char file[300];
    snprintf(file, sizeof file, "%s/queries.jsonl", path2);
    assert_false(sp_path_exists(file));
    sp_dataset_free(rows);
}

static void test_texts_that_cannot_be(void **state)
{
    (void)state;
    static char long_text[TINY_CONTEXT + 1];
    memset(long_text, 'z', TINY_CONTEXT);
    sp_train_options options = options_of_run(SP_METHOD_PROMPT);
    sp_train_report report;
    const struct {
        const char *text, *message;
        size_t n_bytes;
    } cases[] = {{"", "no tokens", 0},
                 {"caf\xe9", "byte 4", 4},
                 {long_text, "leave no room for queries in the model's context of 192", TINY_CONTEXT},
                 {long_text + 5, "queries of 12 tokens behind a context of 187", TINY_CONTEXT - 5}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        options.teacher_context = cases[i].text;
        assert_int_equal(train_in(&report, "refused", &options, NULL, NULL), SP_ERR_ARGUMENT);
        if (!strstr(sp_message(), cases[i].message)) fail_msg("%s", sp_message());
        assert_false(sp_path_exists(path2));
    }
    options.teacher_context = NULL;
    assert_int_equal(train_in(&report, "refused", &options, NULL, NULL), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "nothing to train on"));
    options = options_of_run(SP_METHOD_PROMPT);
    options.query_length = 1;
    assert_int_equal(train_in(&report, "refused", &options, NULL, NULL), SP_ERR_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradient_against_differences), cmocka_unit_test(test_a_text_stands_for_itself),
        cmocka_unit_test(test_queries_that_cannot_be),       cmocka_unit_test(test_samples_follow_the_distribution),
        cmocka_unit_test(test_queries_are_reproducible),     cmocka_unit_test(test_training_comes_nearer),
        cmocka_unit_test(test_stopped_and_resumed),          cmocka_unit_test(test_on_rows_of_data),
        cmocka_unit_test(test_texts_that_cannot_be),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
