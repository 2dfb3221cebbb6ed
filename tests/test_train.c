/* test_train.c: the loss and the training loop on a tiny model, with a handful of rows.
 *
 * What is claimed: packing changes no result; a run that is stopped and resumed, at whatever step, leaves the same bytes as one
 * that is not; what goes wrong (another run's directory, a full disk, a divergence) is said and leaves the last good state. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/file.h"
#include "softprompt.h"
#include "tiny_model.h"

enum { N_VIRTUAL = 4, N_EXAMPLES = 5, STEPS = 7 };

static sp_model *model;
static char directory[64], path[256], path2[256];
static sp_dataset *train_rows, *eval_rows;

static const char TRAIN[] = "text\tlabel\n"
                            "a warm and funny film\tpositive\n"
                            "dull from its first minute\tnegative\n"
                            "the cast is a delight\tpositive\n"
                            "I wanted my money back\tnegative\n"
                            "the cast is wasted\tnegative\n";
static const char EVAL[] = "text\tlabel\na delight\tpositive\nnot funny at all\tnegative\na warm film\tpositive\n";

static const char *in_directory(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static sp_dataset *load_rows(const char *name, const char *text)
{
    sp_dataset *rows;
    FILE *file = fopen(in_directory(name), "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    assert_int_equal(sp_dataset_load(&rows, path, NULL), SP_OK);
    return rows;
}

static int open_model(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/sp-train-XXXXXX");
    if (!mkdtemp(directory) || !tiny_model_write(in_directory("model.gguf"))) return -1;
    const sp_model_options options = {.n_threads = 2};
    if (sp_model_load(&model, path, &options)) {
        fprintf(stderr, "%s\n", sp_message());
        return -1;
    }
    train_rows = load_rows("train.tsv", TRAIN);
    eval_rows = load_rows("eval.tsv", EVAL);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    char command[128];
    sp_dataset_free(train_rows);
    sp_dataset_free(eval_rows);
    sp_model_free(model);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    return system(command);
}

/* ---- the loss ---- */

/* Two share a beginning, two are equal, answers have one to three tokens, one has no context. */
static const int32_t A[] = {82, 42, 253, 31, 27}, B[] = {82, 42, 253, 31, 35, 11, 12}, C[] = {56, 35}, D[] = {28, 29, 30};
static const sp_example EXAMPLES[N_EXAMPLES] = {{A, 5, 1, 0}, {B, 7, 3, 0}, {C, 2, 1, 0}, {A, 5, 1, 0}, {D, 3, 3, 0}};

static sp_prompt *make_prompt(sp_sink sink)
{
    sp_prompt *prompt;
    const sp_prompt_options options = {.num_virtual_tokens = N_VIRTUAL, .sink = sink, .seed = 3};
    assert_int_equal(sp_prompt_create(&prompt, model, &options), SP_OK);
    return prompt;
}

static double norm(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sqrt(sum);
}

static void test_packed_is_the_mean_of_singles(void **state)
{
    (void)state;
    sp_prompt *prompt = make_prompt(SP_SINK_NONE);
    size_t n = N_VIRTUAL * sp_model_d_model(model);
    float *packed = malloc(n * sizeof(float)), *single = malloc(n * sizeof(float)), *mean = calloc(n, sizeof(float));
    double loss, own, sum = 0, alone;
    assert_int_equal(sp_loss(&loss, packed, model, prompt, EXAMPLES, N_EXAMPLES), SP_OK);
    for (size_t i = 0; i < N_EXAMPLES; i++) {
        assert_int_equal(sp_loss(&own, single, model, prompt, &EXAMPLES[i], 1), SP_OK);
        sum += own / N_EXAMPLES;
        for (size_t k = 0; k < n; k++) mean[k] += single[k] / N_EXAMPLES;
    }
    assert_true(fabs(loss - sum) <= 1e-5 * fabs(sum));
    for (size_t k = 0; k < n; k++) mean[k] -= packed[k];
    assert_true(norm(packed, n) > 1e-3);
    printf("relative difference of gradients %.1e\n", norm(mean, n) / norm(packed, n));
    assert_true(norm(mean, n) <= 1e-5 * norm(packed, n));
    assert_int_equal(sp_loss(&alone, NULL, model, prompt, EXAMPLES, N_EXAMPLES), SP_OK); /* without gradient: the same loss */
    assert_true(fabs(loss - alone) <= 1e-6 * loss);
    free(packed);
    free(single);
    free(mean);
    sp_prompt_free(prompt);
}

/* More rows than one pass takes: the sum over passes is the same. */
static void test_several_passes(void **state)
{
    (void)state;
    enum { N_LONG = 40, LENGTH = 150, KEPT = 20 };
    static int32_t tokens[N_LONG][LENGTH];
    sp_example examples[N_LONG];
    sp_prompt *prompt = make_prompt(SP_SINK_NONE);
    size_t n = N_VIRTUAL * sp_model_d_model(model);
    float *packed = malloc(n * sizeof(float)), *single = malloc(n * sizeof(float)), *mean = calloc(n, sizeof(float));
    double loss, own, sum = 0;
    for (int i = 0; i < N_LONG; i++) {
        for (int k = 0; k < LENGTH; k++) tokens[i][k] = k < KEPT ? k : (i * 31 + k * 17) % 250;
        examples[i] = (sp_example){tokens[i], LENGTH, (size_t)(1 + i % 3), 0};
    }
    assert_int_equal(sp_loss(&loss, packed, model, prompt, examples, N_LONG), SP_OK);
    for (size_t i = 0; i < N_LONG; i++) {
        assert_int_equal(sp_loss(&own, single, model, prompt, &examples[i], 1), SP_OK);
        sum += own / N_LONG;
        for (size_t k = 0; k < n; k++) mean[k] += single[k] / N_LONG;
    }
    assert_true(fabs(loss - sum) <= 1e-5 * fabs(sum));
    for (size_t k = 0; k < n; k++) mean[k] -= packed[k];
    assert_true(norm(mean, n) <= 1e-5 * norm(packed, n));
    free(packed);
    free(single);
    free(mean);
    sp_prompt_free(prompt);
}

/* The loss behind weights that are `step` along `direction` from `start`. */
static double loss_along(sp_prompt *prompt, const float *start, const float *direction, double step, size_t n_examples)
{
    float *weights = sp_prompt_weights(prompt);
    double loss;
    for (size_t k = 0; k < sp_prompt_n_weights(prompt); k++) weights[k] = start[k] + (float)(step * direction[k]);
    assert_int_equal(sp_prompt_update(prompt), SP_OK);
    assert_int_equal(sp_loss(&loss, NULL, model, prompt, EXAMPLES, n_examples), SP_OK);
    return loss;
}

/* Along the gradient the loss changes by |g|^2 a unit: central differences over the whole prompt at once, `distance` to both
 * sides. */
static void check_differences(sp_prompt *prompt, double distance, size_t n_examples)
{
    size_t n = sp_prompt_n_weights(prompt);
    float *gradient = malloc(n * sizeof(float)), *start = malloc(n * sizeof(float));
    double loss;
    assert_int_equal(sp_loss(&loss, gradient, model, prompt, EXAMPLES, n_examples), SP_OK);
    double length = norm(gradient, n), step = distance / length;
    assert_true(length > 1e-3);
    memcpy(start, sp_prompt_weights(prompt), n * sizeof(float));
    double up = loss_along(prompt, start, gradient, step, n_examples);
    double down = loss_along(prompt, start, gradient, -step, n_examples);
    assert_true(fabs((up - down) / (2 * step) - length * length) <= 0.02 * length * length);
    free(gradient);
    free(start);
}

static void test_gradient_against_differences(void **state)
{
    (void)state;
    sp_prompt *prompt = make_prompt(SP_SINK_NONE);
    check_differences(prompt, 1e-2, N_EXAMPLES);
    sp_prompt_free(prompt);
}

/* A prompt of keys and values; the last example, which begins with its answer, cannot stand behind it. */
static void test_keys_and_values(void **state)
{
    (void)state;
    for (int method = SP_METHOD_PREFIX; method <= SP_METHOD_CARTRIDGE; method++) {
        sp_prompt *prompt;
        const sp_prompt_options options = {.method = (sp_method)method, .num_virtual_tokens = N_VIRTUAL, .seed = 3};
        assert_int_equal(sp_prompt_create(&prompt, model, &options), SP_OK);
        size_t width = sp_prompt_width(prompt);
        assert_int_equal(width, 2 * TINY_LAYERS * TINY_KV_HEADS * TINY_D / TINY_HEADS);
        assert_null(sp_prompt_embeddings(prompt));
        assert_ptr_equal(sp_prompt_keys_values(prompt), sp_prompt_weights(prompt));
        check_differences(prompt, 1e-2, N_EXAMPLES - 1);
        float *gradient = malloc(N_VIRTUAL * width * sizeof(float));
        double loss;
        assert_int_equal(sp_loss(&loss, gradient, model, prompt, EXAMPLES, N_EXAMPLES - 1), SP_OK);
        assert_true((norm(gradient, width) == 0) == (method == SP_METHOD_CARTRIDGE)); /* its first row is frozen */
        assert_true(norm(gradient + width, width) > 0);
        assert_int_equal(sp_loss(&loss, NULL, model, prompt, EXAMPLES, N_EXAMPLES), SP_ERR_ARGUMENT);
        assert_non_null(strstr(sp_message(), "example 5 starts with its answer"));
        free(gradient);
        sp_prompt_free(prompt);
    }
}

/* Networks: the gradient goes through them to their weights, and from `vocab` their rows begin as those without a network. */
static void test_networks(void **state)
{
    (void)state;
    static const sp_prompt_options networks[] = {
        {.method = SP_METHOD_PTUNING, .num_virtual_tokens = N_VIRTUAL, .seed = 3},
        {.method = SP_METHOD_PTUNING,
         .num_virtual_tokens = N_VIRTUAL,
         .seed = 3,
         .encoder_hidden_size = 11,
         .encoder_reparameterization_type = SP_ENCODER_LSTM},
        {.method = SP_METHOD_PREFIX, .num_virtual_tokens = N_VIRTUAL, .seed = 3, .prefix_projection = true},
    };
    for (size_t i = 0; i < sizeof networks / sizeof *networks; i++) {
        sp_prompt *prompt, *plain;
        sp_prompt_options without = {.method = networks[i].prefix_projection ? SP_METHOD_PREFIX : SP_METHOD_PROMPT,
                                     .num_virtual_tokens = N_VIRTUAL,
                                     .seed = 3};
        assert_int_equal(sp_prompt_create(&prompt, model, &networks[i]), SP_OK);
        assert_int_equal(sp_prompt_create(&plain, model, &without), SP_OK);
        size_t n = N_VIRTUAL * sp_prompt_width(plain);
        const float *rows = i == 2 ? sp_prompt_keys_values(prompt) : sp_prompt_embeddings(prompt);
        float *difference = malloc(n * sizeof(float));
        for (size_t k = 0; k < n; k++) difference[k] = rows[k] - sp_prompt_weights(plain)[k];
        assert_true(norm(difference, n) <= 1e-2 * norm(sp_prompt_weights(plain), n));
        check_differences(prompt, 1e-4, N_EXAMPLES - 1);
        free(difference);
        sp_prompt_free(plain);
        sp_prompt_free(prompt);
    }
}

/* Keys and values of a text's own tokens are that text: the loss behind both is the same. */
static void test_a_cartridge_is_its_text(void **state)
{
    (void)state;
    static const char text[] = "warm and dull";
    int32_t *tokens, with_text[32];
    size_t n;
    double behind_cartridge, behind_text;
    assert_int_equal(sp_tokenize(&tokens, &n, sp_model_tokenizer(model), text, SIZE_MAX, SP_TOKENIZE_ADD_BOS), SP_OK);
    assert_true(n + 5 <= 32);
    memcpy(with_text, tokens, n * sizeof *tokens);
    memcpy(with_text + n, A, sizeof A);
    sp_prompt *prompt;
    sp_prompt_options options = {.method = SP_METHOD_CARTRIDGE, .num_virtual_tokens = n, .init = SP_INIT_TEXT, .init_text = text};
    assert_int_equal(sp_prompt_create(&prompt, model, &options), SP_OK);
    assert_int_equal(sp_loss(&behind_cartridge, NULL, model, prompt, EXAMPLES, 1), SP_OK);
    assert_int_equal(sp_loss(&behind_text, NULL, model, NULL, &(sp_example){with_text, n + 5, 1, 0}, 1), SP_OK);
    assert_true(fabs(behind_cartridge - behind_text) <= 1e-6 * behind_text);
    sp_prompt_free(prompt);
    options.num_virtual_tokens = n + 1;
    assert_int_equal(sp_prompt_create(&prompt, model, &options), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "use a longer text"));
    sp_free(tokens);
}

static void test_frozen_rows_and_errors(void **state)
{
    (void)state;
    sp_prompt *prompt = make_prompt(SP_SINK_BOS);
    size_t d = sp_model_d_model(model);
    float *gradient = malloc(N_VIRTUAL * d * sizeof(float));
    double loss;
    assert_int_equal(sp_loss(&loss, gradient, model, prompt, EXAMPLES, N_EXAMPLES), SP_OK);
    assert_true(norm(gradient, d) == 0 && norm(gradient + d, d) > 0);
    const sp_example whole = {D, 3, 3, 0}, none = {D, 3, 0, 0}, more = {D, 3, 4, 0},
                     outside = {(const int32_t[]){1, 1 << 20}, 2, 1, 0};
    assert_int_equal(sp_loss(&loss, NULL, model, NULL, &whole, 1), SP_ERR_ARGUMENT);
    assert_int_equal(sp_loss(&loss, NULL, model, prompt, &none, 1), SP_ERR_ARGUMENT);
    assert_int_equal(sp_loss(&loss, NULL, model, prompt, &more, 1), SP_ERR_ARGUMENT);
    assert_int_equal(sp_loss(&loss, NULL, model, prompt, &outside, 1), SP_ERR_ARGUMENT);
    assert_int_equal(sp_loss(&loss, NULL, model, prompt, &whole, 0), SP_ERR_ARGUMENT);
    assert_int_equal(sp_loss(&loss, gradient, model, NULL, EXAMPLES, 1), SP_ERR_ARGUMENT);
    free(gradient);
    sp_prompt_free(prompt);
}

/* ---- training ---- */

static const sp_verbalizer VERBALIZERS[] = {{"positive", " positive"}, {"negative", " negative"}};

static sp_train_options options_of_run(void)
{
    return (sp_train_options){.prompt = {.num_virtual_tokens = N_VIRTUAL, .seed = 1},
                              .task = {"Review: {text}\nSentiment:", VERBALIZERS, 2, 0},
                              .batch_size = 2,
                              .gradient_accumulation_steps = 2,
                              .steps = STEPS,
                              .warmup_steps = 1,
                              .eval_every = 3,
                              .save_every = 2,
                              .seed = 5};
}

static sp_status train_in(sp_train_report *report, const char *name, const sp_train_options *options, const sp_hooks *hooks)
{
    snprintf(path2, sizeof path2, "%s/%s", directory, name);
    return sp_train(report, model, train_rows, eval_rows, path2, options, hooks);
}

static char *file_of(const char *run, const char *name, size_t *n)
{
    char *bytes, file[256];
    snprintf(file, sizeof file, "%s/%s/%s", directory, run, name);
    assert_int_equal(sp_read_file(&bytes, n, file, 1 << 24), SP_OK);
    return bytes;
}

static void assert_same_file(const char *one, const char *other, const char *name)
{
    size_t n, m;
    char *a = file_of(one, name, &n), *b = file_of(other, name, &m);
    assert_int_equal(n, m);
    assert_memory_equal(a, b, n);
    free(a);
    free(b);
}

/* A log (log.jsonl, evaluations.jsonl) as an array of objects. */
static json_t *log_of(const char *run, const char *name)
{
    size_t n;
    char *text = file_of(run, name, &n), *rest = NULL;
    json_t *rows = json_array();
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        json_t *row = json_loads(line, 0, NULL);
        assert_true(json_is_object(row));
        json_array_append_new(rows, row);
    }
    free(text);
    return rows;
}

/* Equal logs, but for what a clock says. */
static void assert_same_log(const char *one, const char *other, const char *name, size_t n_rows)
{
    json_t *logs[] = {log_of(one, name), log_of(other, name)}, *row;
    for (size_t i = 0, k; i < 2; i++) json_array_foreach(logs[i], k, row)
        {
            json_object_del(row, "seconds");
            json_object_del(row, "eval_seconds");
        }
    assert_true(json_array_size(logs[0]) >= n_rows && json_equal(logs[0], logs[1]));
    json_decref(logs[0]);
    json_decref(logs[1]);
}

static void assert_same_run(const char *one, const char *other)
{
    assert_same_file(one, other, "adapter_config.json");
    assert_same_file(one, other, "adapter_model.safetensors");
    assert_same_file(one, other, "softprompt.json");
    assert_same_file(one, other, "settings.json");
    assert_same_log(one, other, "log.jsonl", STEPS);
    assert_same_log(one, other, "evaluations.jsonl", 1);
}

/* What the report says of the adapter is what the adapter that was written does. */
static void check_adapter(const sp_train_report *report, const char *name)
{
    sp_prompt *prompt;
    sp_evaluation evaluation;
    assert_int_equal(sp_prompt_load(&prompt, in_directory(name)), SP_OK);
    assert_int_equal(sp_evaluate(&evaluation, model, prompt, NULL, eval_rows, NULL, NULL), SP_OK);
    assert_true(fabs(evaluation.loss - report->evaluation.loss) <= 1e-5 * evaluation.loss);
    assert_true(evaluation.accuracy == report->evaluation.accuracy);
    sp_prompt_free(prompt);
}

/* The run that all others are compared with. */
static void test_straight_run(void **state)
{
    (void)state;
    sp_train_report report, again;
    sp_train_options options = options_of_run();
    struct stat before, after;
    assert_int_equal(train_in(&report, "straight", &options, NULL), SP_OK);
    assert_true(report.steps == STEPS && report.resumed_from == 0 && !report.already_finished && !report.stopped_early);
    assert_true(report.rows == STEPS * 4 && report.has_evaluation && report.evaluation.n == 3);
    assert_true(report.best_step == 3 || report.best_step == 6 || report.best_step == 7);
    assert_true(report.last_loss < report.first_loss);
    check_adapter(&report, "straight");
    assert_int_equal(train_in(&again, "straight", &options, NULL), SP_ERR_ARGUMENT);
    assert_non_null(strstr(sp_message(), "resume"));
    assert_int_equal(stat(in_directory("straight/checkpoints/step-00000007.safetensors"), &before), 0);
    options.resume = true;
    assert_int_equal(train_in(&again, "straight", &options, NULL), SP_OK);
    assert_true(again.already_finished && again.steps == STEPS && again.rows == 0 && again.best_step == report.best_step);
    assert_true(again.first_loss == report.first_loss && again.evaluation.loss == report.evaluation.loss);
    assert_int_equal(stat(path, &after), 0);
    assert_true(before.st_ino == after.st_ino);
    options.learning_rate = 0.5;
    assert_int_equal(train_in(&again, "straight", &options, NULL), SP_ERR_MISMATCH);
    assert_non_null(strstr(sp_message(), "learning_rate (saved 0.02, now 0.5)"));
}

/* Asks for a stop after `calls` more reports of progress, be they of training or of evaluation. */
typedef struct stopper {
    volatile int stop;
    int calls;
} stopper;

static void stop_later(void *user, const sp_progress *progress)
{
    stopper *s = user;
    (void)progress;
    if (--s->calls <= 0) s->stop = 1;
}

/* Stops after every step or two until the run is done; returns how often. */
static int train_with_stops(sp_train_report *report, const char *name, sp_train_options options)
{
    int n_stops = 0;
    options.resume = true; /* from the first call on: nothing is there yet */
    for (sp_status st = SP_ERR_STOPPED; st == SP_ERR_STOPPED; n_stops++) {
        stopper s = {0, 2 + n_stops % 2};
        const sp_hooks hooks = {.progress = stop_later, .user = &s, .stop = &s.stop};
        st = train_in(report, name, &options, &hooks);
        if (st) assert_int_equal(st, SP_ERR_STOPPED);
        assert_true(n_stops < 100);
    }
    return n_stops;
}

static void test_stopped_and_resumed_is_the_same(void **state)
{
    (void)state;
    sp_train_report report;
    assert_true(train_with_stops(&report, "stopped", options_of_run()) > 4);
    assert_same_run("straight", "stopped");
}

/* When patience ends, by the evaluations in the log, which of them was the best, and how many before it brought no gain. */
static void read_patience(size_t *best_step, size_t *last_step, size_t *n_lapses, const char *run, size_t patience)
{
    json_t *rows = log_of(run, "evaluations.jsonl"), *row, *best = NULL;
    size_t i, n_without_gain = 0, n_in_vain = 0;
    *best_step = *last_step = *n_lapses = 0;
    json_array_foreach(rows, i, row)
    {
        if (*best_step && n_without_gain == patience) continue;
        double gain = best ? json_number_value(json_object_get(row, "eval_accuracy")) -
                                 json_number_value(json_object_get(best, "eval_accuracy"))
                           : 1;
        if (gain == 0)
            gain = json_number_value(json_object_get(best, "eval_loss")) - json_number_value(json_object_get(row, "eval_loss"));
        *last_step = (size_t)json_integer_value(json_object_get(row, "step"));
        n_without_gain = gain > 0 ? 0 : n_without_gain + 1;
        n_in_vain += gain <= 0;
        if (gain <= 0) continue;
        best = row;
        *n_lapses = n_in_vain;
        *best_step = *last_step;
    }
    json_decref(rows);
}

/* A learning rate at which evaluations get better and worse: the best is kept, also across stops, and patience begins anew with it.
 */
static void test_best_and_patience(void **state)
{
    (void)state;
    sp_train_report report, stopped;
    sp_train_options options = options_of_run();
    size_t best_step, last_step, n_lapses;
    options.learning_rate = 0.1;
    options.schedule = SP_CONSTANT;
    options.optimizer = SP_ADAFACTOR;
    options.batch_size = options.gradient_accumulation_steps = 1;
    options.steps = 60;
    options.eval_every = 1;
    options.early_stopping_patience = 3;
    assert_int_equal(train_in(&report, "bumpy", &options, NULL), SP_OK);
    read_patience(&best_step, &last_step, &n_lapses, "bumpy", options.early_stopping_patience);
    assert_true(report.stopped_early && n_lapses >= options.early_stopping_patience); /* else this shows nothing */
    assert_true(report.best_step == best_step && report.steps == last_step);
    check_adapter(&report, "bumpy");
    train_with_stops(&stopped, "bumpy-stopped", options);
    assert_same_run("bumpy", "bumpy-stopped");
}

/* The newest checkpoint is cut: its run goes on from the one before, to the same end. */
static void test_damaged_checkpoint(void **state)
{
    (void)state;
    sp_train_report report;
    sp_train_options options = options_of_run();
    stopper s = {0, 4}; /* one report before the first step */
    const sp_hooks hooks = {.progress = stop_later, .user = &s, .stop = &s.stop};
    assert_int_equal(train_in(&report, "damaged", &options, &hooks), SP_ERR_STOPPED);
    assert_int_equal(truncate(in_directory("damaged/checkpoints/step-00000003.safetensors"), 5000), 0);
    options.resume = true;
    assert_int_equal(train_in(&report, "damaged", &options, NULL), SP_OK);
    assert_int_equal(report.resumed_from, 2);
    assert_same_run("straight", "damaged");
}

/* A disk that fills up while a checkpoint is written, again and again with a little more room. */
static void test_full_disk(void **state)
{
    (void)state;
    sp_train_report report;
    sp_train_options options = options_of_run();
    const struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
    int n_failures = 0;
    options.resume = true;
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t room = 100;; room += 300, n_failures++) {
        const struct rlimit little = {room, RLIM_INFINITY};
        setrlimit(RLIMIT_FSIZE, &little);
        sp_status st = train_in(&report, "full", &options, NULL);
        setrlimit(RLIMIT_FSIZE, &all);
        if (st == SP_OK) break;
        assert_int_equal(st, SP_ERR_IO);
        assert_non_null(strstr(sp_message(), "cannot write"));
    }
    assert_true(n_failures >= 5);
    assert_same_run("straight", "full");
}

/* Accumulating two batches of two is a batch of four. */
static void test_accumulation(void **state)
{
    (void)state;
    sp_train_report in_parts, whole;
    sp_train_options options = options_of_run();
    options.steps = 2;
    options.eval_every = 0;
    options.warmup_steps = SIZE_MAX;
    assert_int_equal(train_in(&in_parts, "in-parts", &options, NULL), SP_OK);
    options.batch_size = 4;
    options.gradient_accumulation_steps = 1;
    assert_int_equal(train_in(&whole, "whole", &options, NULL), SP_OK);
    assert_true(fabs(in_parts.first_loss - whole.first_loss) <= 1e-5 * whole.first_loss);
    assert_true(fabs(in_parts.last_loss - whole.last_loss) <= 1e-3 * whole.last_loss);
}

/* Nothing moves, so nothing improves. */
static void test_early_stopping(void **state)
{
    (void)state;
    sp_train_report report;
    sp_train_options options = options_of_run();
    options.learning_rate = 1e-12;
    options.eval_every = 1;
    options.early_stopping_patience = 2;
    options.optimizer = SP_ADAFACTOR;
    assert_int_equal(train_in(&report, "patience", &options, NULL), SP_OK);
    assert_true(report.stopped_early && report.steps < STEPS && report.best_step + 2 == report.steps);
}

static void test_divergence(void **state)
{
    (void)state;
    sp_train_report report;
    sp_train_options options = options_of_run();
    options.learning_rate = 1e300;
    options.max_grad_norm = -1;
    assert_int_equal(train_in(&report, "diverged", &options, NULL), SP_ERR_UNSUPPORTED);
    assert_non_null(strstr(sp_message(), "learning rate"));
    assert_false(sp_path_exists(in_directory("diverged/adapter_config.json")));
}

/* Bounded keys: stopped at whatever step, also in an evaluation, which begins by moving them, and resumed: the same bytes. */
static void test_bounded_keys(void **state)
{
    (void)state;
    sp_train_report report, stopped, again;
    sp_train_options options = options_of_run();
    options.prompt.method = SP_METHOD_PREFIX;
    options.max_logit = 0.5;
    options.key_rank = 2;
    assert_int_equal(train_in(&report, "bounded", &options, NULL), SP_OK);
    const sp_key_bound_report *r = &report.key_bound;
    assert_true(report.has_key_bound && r->max_logit == 0.5 && r->key_rank == 2 && r->n_heads == TINY_LAYERS * TINY_KV_HEADS);
    assert_true(r->training_bound > 0.4 && r->training_bound <= 0.5 && r->are_held_out && r->n_rows > 10);
    assert_true(r->score > 0 && r->score <= r->bound * (1 + 1e-6) && r->entries > 0);
    check_adapter(&report, "bounded");
    assert_true(train_with_stops(&stopped, "bounded-stopped", options) > 4);
    assert_same_run("bounded", "bounded-stopped");
    assert_memory_equal(&stopped.key_bound.bound, &r->bound, sizeof r->bound);
    options.resume = true;
    assert_int_equal(train_in(&again, "bounded", &options, NULL), SP_OK);
    assert_true(again.already_finished && again.has_key_bound && again.key_bound.bound == r->bound);
    options.max_logit = 0;
    options.key_rank = 0;
    assert_int_equal(train_in(&again, "bounded", &options, NULL), SP_ERR_MISMATCH);
    assert_non_null(strstr(sp_message(), "max_logit (saved 0.5, now none)"));
}

/* A method whose keys come from embeddings or a network: the report says that it is a penalty, and that it drew them together; and
 * a run that goes on behind a stop, over the step in which queries are measured again, is the same. */
static void check_penalised(sp_prompt_options prompt, const char *name)
{
    sp_train_report report, stopped, again, without;
    sp_train_options options = options_of_run();
    char other[32];
    options.prompt = prompt;
    options.steps = 43;
    options.eval_every = 0; /* the best of several evaluations might be an early one */
    options.max_logit = 0.2;
    options.max_logit_weight = 1e-9;
    options.overwrite = true;
    assert_int_equal(train_in(&without, "unpressed", &options, NULL), SP_OK);
    options.overwrite = false;
    options.max_logit_weight = 3;
    assert_int_equal(train_in(&report, name, &options, NULL), SP_OK);
    const sp_key_bound_report *r = &report.key_bound;
    assert_true(report.has_key_bound && r->is_penalty && r->max_logit == 0.2 && r->are_held_out && r->n_rows > 10);
    assert_true(r->n_heads == TINY_LAYERS * TINY_KV_HEADS && r->training_bound > 0 && r->score <= r->bound * (1 + 1e-6));
    printf("%s: bound %g without, %g with\n", name, without.key_bound.bound, r->bound);
    assert_true(r->bound < 0.9 * without.key_bound.bound);
    check_adapter(&report, name);
    snprintf(other, sizeof other, "%s-stopped", name);
    assert_true(train_with_stops(&stopped, other, options) > 20);
    assert_same_run(name, other);
    assert_true(stopped.key_bound.bound == r->bound && stopped.key_bound.is_penalty);
    options.resume = true;
    assert_int_equal(train_in(&again, name, &options, NULL), SP_OK);
    assert_true(again.already_finished && again.key_bound.is_penalty && again.key_bound.bound == r->bound);
    options.max_logit_weight = 2;
    assert_int_equal(train_in(&again, name, &options, NULL), SP_ERR_MISMATCH);
    assert_non_null(strstr(sp_message(), "max_logit_weight (saved 3"));
}

static void test_penalised_keys(void **state)
{
    (void)state;
    check_penalised((sp_prompt_options){.num_virtual_tokens = N_VIRTUAL}, "pressed");
    check_penalised((sp_prompt_options){.method = SP_METHOD_PTUNING, .num_virtual_tokens = N_VIRTUAL, .encoder_hidden_size = 16},
                    "pressed-ptuning");
    check_penalised((sp_prompt_options){.method = SP_METHOD_MULTITASK, .num_virtual_tokens = N_VIRTUAL, .num_tasks = 1},
                    "pressed-multitask");
    check_penalised((sp_prompt_options){.method = SP_METHOD_CPT, .init_text = "a dull film", .opt_projection_format_epsilon = 10},
                    "pressed-cpt");
    check_penalised((sp_prompt_options){.method = SP_METHOD_PREFIX, .num_virtual_tokens = N_VIRTUAL, .prefix_projection = true},
                    "pressed-projection");
}

/* What the first row of a run's log says. */
static double first_of_log(const char *run, const char *member)
{
    json_t *rows = log_of(run, "log.jsonl");
    const double value = json_number_value(json_object_get(json_array_get(rows, 0), member));
    json_decref(rows);
    return value;
}

/* The penalty is of a step, not of a pass. */
static void test_penalty_of_accumulated_batches(void **state)
{
    (void)state;
    sp_train_report report;
    sp_train_options options = options_of_run();
    options.steps = 1;
    options.eval_every = 0;
    options.max_logit = 0.2;
    options.max_logit_weight = 5;
    options.batch_size = 1;
    options.gradient_accumulation_steps = 4;
    assert_int_equal(train_in(&report, "pressed-in-parts", &options, NULL), SP_OK);
    options.batch_size = 4;
    options.gradient_accumulation_steps = 1;
    assert_int_equal(train_in(&report, "pressed-whole", &options, NULL), SP_OK);
    const double whole = first_of_log("pressed-whole", "grad_norm"), penalty = first_of_log("pressed-whole", "penalty");
    assert_true(penalty > 0.1 && first_of_log("pressed-in-parts", "penalty") == penalty);
    assert_true(fabs(first_of_log("pressed-in-parts", "grad_norm") - whole) <= 1e-5 * whole);
}

static void test_bounds_that_cannot_be(void **state)
{
    (void)state;
    sp_train_report report;
    const struct {
        sp_train_options options;
        const char *says;
    } cases[] = {
        {{.prompt = {.method = SP_METHOD_PREFIX}, .max_logit = -1}, "give a number above 0"},
        {{.prompt = {.method = SP_METHOD_PREFIX}, .max_logit = NAN}, "give a number above 0"},
        {{.prompt = {.method = SP_METHOD_PREFIX}, .key_rank = 2}, "give a number above 0"},
        {{.prompt = {.method = SP_METHOD_PROMPT}, .max_logit = 1, .key_rank = 2}, "use method prefix or cartridge"},
        {{.prompt = {.method = SP_METHOD_PREFIX, .prefix_projection = true}, .max_logit = 1, .key_rank = 2}, "leave it out"},
        {{.prompt = {.method = SP_METHOD_PROMPT, .sink = SP_SINK_BOS}, .max_logit = 1}, "use no sink"},
        {{.prompt = {.method = SP_METHOD_PROMPT}, .max_logit_weight = 1}, "give a number above 0"},
        {{.prompt = {.method = SP_METHOD_PROMPT}, .max_logit = 1, .max_logit_weight = -1}, "max_logit_weight is -1"},
        {{.prompt = {.method = SP_METHOD_PREFIX}, .max_logit = 1, .max_logit_weight = 1}, "leave it out"},
        {{.prompt = {.method = SP_METHOD_CARTRIDGE, .num_frozen_tokens = 1}, .max_logit = 1}, "use num_frozen_tokens 0"},
        {{.prompt = {.method = SP_METHOD_PREFIX}, .max_logit = 1, .key_rank = 1000}, "give 1 to 8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(train_in(&report, "impossible", &cases[i].options, NULL), SP_ERR_ARGUMENT);
        assert_non_null(strstr(sp_message(), cases[i].says));
        assert_false(sp_path_exists(in_directory("impossible")));
    }
}

static void test_overwrite(void **state)
{
    (void)state;
    sp_train_report report;
    sp_train_options options = options_of_run();
    options.overwrite = true;
    assert_int_equal(train_in(&report, "patience", &options, NULL), SP_OK);
    assert_same_run("straight", "patience");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packed_is_the_mean_of_singles),
        cmocka_unit_test(test_several_passes),
        cmocka_unit_test(test_gradient_against_differences),
        cmocka_unit_test(test_keys_and_values),
        cmocka_unit_test(test_networks),
        cmocka_unit_test(test_a_cartridge_is_its_text),
        cmocka_unit_test(test_frozen_rows_and_errors),
        cmocka_unit_test(test_straight_run),
        cmocka_unit_test(test_stopped_and_resumed_is_the_same),
        cmocka_unit_test(test_best_and_patience),
        cmocka_unit_test(test_damaged_checkpoint),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_accumulation),
        cmocka_unit_test(test_early_stopping),
        cmocka_unit_test(test_divergence),
        cmocka_unit_test(test_bounded_keys),
        cmocka_unit_test(test_penalised_keys),
        cmocka_unit_test(test_penalty_of_accumulated_batches),
        cmocka_unit_test(test_bounds_that_cannot_be),
        cmocka_unit_test(test_overwrite),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
