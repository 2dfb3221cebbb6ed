/* test_tasks.c: prompts of several tasks on a tiny model: what they start as, their directories, whose prompt is in front, and that
 * a pass over examples of several tasks is the sum of passes over each one's. oracle/multitask.py holds them against PEFT. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/file.h"
#include "format/safetensors.h"
#include "prompt/prompt.h"
#include "tiny_fixture.h"

enum { P = 3, TASKS = 3, RANKS = 2, N_SHARED = P * TINY_D, N_COLS = TASKS * P * RANKS, N_ROWS = TASKS * RANKS * TINY_D };

static sp_prompt *create(sp_prompt_options options)
{
    sp_prompt *p;
    options.method = SP_METHOD_MULTITASK;
    if (sp_prompt_create(&p, model, &options)) fail_msg("%s", sp_message());
    return p;
}

/* As training leaves one: no number is what it began as. */
static sp_prompt *create_moved(uint64_t seed)
{
    sp_prompt *p = create((sp_prompt_options){.num_virtual_tokens = P, .num_tasks = TASKS, .num_ranks = RANKS, .seed = seed});
    sp_rng rng = sp_rng_seed(seed, 1);
    for (size_t i = 0; i < sp_prompt_n_weights(p); i++) sp_prompt_weights(p)[i] += (float)(0.3 * sp_rng_normal(&rng));
    assert_int_equal(sp_prompt_update(p), SP_OK);
    return p;
}

static sp_prompt *load(const char *dir)
{
    sp_prompt *p;
    if (sp_prompt_load(&p, dir)) fail_msg("%s", sp_message());
    return p;
}

/* ---- what they start as ----------------------------------------------------------------------------------------- */

/* Every task begins with what all share, when its matrix has rank 1; one of rank 2 begins near it. */
static void tasks_begin_alike(void **state)
{
    (void)state;
    sp_prompt *plain, *p = create((sp_prompt_options){.num_virtual_tokens = P, .num_tasks = TASKS});
    assert_int_equal(sp_prompt_create(&plain, model, &(sp_prompt_options){.num_virtual_tokens = P}), SP_OK);
    assert_int_equal(sp_prompt_num_tasks(p), TASKS);
    assert_int_equal(sp_prompt_num_tasks(plain), 1);
    assert_int_equal(sp_prompt_n_weights(p), N_SHARED + TASKS * (P + TINY_D));
    for (size_t k = 0; k < TASKS; k++) {
        assert_int_equal(sp_prompt_use_task(p, k), SP_OK);
        assert_memory_equal(sp_prompt_embeddings(p), sp_prompt_embeddings(plain), N_SHARED * sizeof(float));
    }
    assert_fails(sp_prompt_use_task(p, TASKS), SP_ERR_ARGUMENT, "task 3 of a prompt that has 3");
    assert_fails(sp_prompt_use_task(plain, 1), SP_ERR_ARGUMENT, "task 1 of a prompt that has 1");
    sp_prompt_free(p);
    p = create((sp_prompt_options){.num_virtual_tokens = P, .num_tasks = TASKS, .num_ranks = RANKS});
    for (size_t i = 0; i < N_SHARED; i++)
        assert_true(fabsf(sp_prompt_embeddings(p)[i] - sp_prompt_embeddings(plain)[i]) <=
                    0.01F * fabsf(sp_prompt_embeddings(plain)[i]));
    assert_memory_not_equal(sp_prompt_task_rows(p, 0), sp_prompt_task_rows(p, 1), N_SHARED * sizeof(float));
    sp_prompt_free(p);
    sp_prompt_free(plain);
}

static void options_that_make_no_sense(void **state)
{
    (void)state;
    static const struct {
        sp_prompt_options options;
        const char *message;
    } cases[] = {
        {{.num_tasks = 2}, "go with method multitask only"},
        {{.method = SP_METHOD_PREFIX, .num_ranks = 2}, "go with method multitask only"},
        {{.method = SP_METHOD_CPT, .init_text = "x", .init_prompt = "d"}, "d: no such directory"},
        {{.method = SP_METHOD_MULTITASK, .num_tasks = 1025}, "at most 1024"},
        {{.method = SP_METHOD_MULTITASK, .num_ranks = 1025}, "at most 1024"},
        {{.method = SP_METHOD_MULTITASK, .sink = SP_SINK_BOS}, "goes with method prompt only"},
        {{.method = SP_METHOD_MULTITASK, .num_virtual_tokens = TINY_CONTEXT}, "fill the model's context"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        sp_prompt *p;
        sp_status st = sp_prompt_create(&p, model, &cases[i].options);
        assert_true(st == SP_ERR_ARGUMENT || st == SP_ERR_IO);
        assert_null(p);
        if (!strstr(sp_message(), cases[i].message)) fail_msg("%s", sp_message());
    }
}

/* ---- directories ------------------------------------------------------------------------------------------------ */

static void they_come_back_whole(void **state)
{
    (void)state;
    char *dir = make_directory();
    sp_prompt *p = create_moved(5);
    assert_int_equal(sp_prompt_save(p, dir), SP_OK);
    sp_prompt *q = load(dir);
    assert_int_equal(sp_prompt_method(q), SP_METHOD_MULTITASK);
    assert_int_equal(sp_prompt_num_tasks(q), TASKS);
    assert_int_equal(sp_prompt_n_weights(q), N_SHARED + N_COLS + N_ROWS);
    assert_memory_equal(sp_prompt_weights(q), sp_prompt_weights(p), (N_SHARED + N_COLS + N_ROWS) * sizeof(float));
    assert_memory_equal(sp_prompt_task_rows(q, 0), sp_prompt_task_rows(p, 0), TASKS * N_SHARED * sizeof(float));
    sp_prompt_weights(q)[N_SHARED + 1] = NAN;
    assert_fails(sp_prompt_save(q, dir), SP_ERR_ARGUMENT, "weight 97 is nan");
    sp_prompt_free(load(dir)); /* the good one is still there */
    sp_prompt_free(q);
    sp_prompt_free(p);
    remove_directory(dir);
}

typedef struct tensors {
    uint64_t cols[3], rows[3];
    size_t n_dims;
    const char *cols_name;
    float value;
} tensors;

static void write_adapter(const char *dir, const char *config, const tensors *t)
{
    float values[64], cols[64];
    for (size_t i = 0; i < 64; i++) values[i] = 1, cols[i] = t->value;
    const size_t n_cols = t->cols[0] * t->cols[1] * (t->n_dims > 2 ? t->cols[2] : 1), n_rows = t->rows[0] * t->rows[1] * t->rows[2];
    const sp_st_tensor all[] = {
        {t->cols_name, SP_F32, t->n_dims, {t->cols[0], t->cols[1], t->cols[2]}, cols, n_cols * sizeof(float)},
        {"prefix_task_rows", SP_F32, 3, {t->rows[0], t->rows[1], t->rows[2]}, values, n_rows * sizeof(float)},
        {"prompt_embeddings", SP_F32, 2, {2, 4}, values, 8 * sizeof(float)}};
    char *path = sp_path_join(dir, "adapter_config.json"), *tensors_path = sp_path_join(dir, "adapter_model.safetensors");
    assert_int_equal(sp_write_file_atomic(path, &(sp_bytes){config, strlen(config)}, 1), SP_OK);
    assert_int_equal(sp_safetensors_write(tensors_path, all, 3, NULL, 0), SP_OK);
    free(path);
    free(tensors_path);
}

static void directories_that_are_refused(void **state)
{
    (void)state;
    static const char config[] = "{\"peft_type\":\"MULTITASK_PROMPT_TUNING\"}";
    static const char three[] = "{\"peft_type\":\"MULTITASK_PROMPT_TUNING\",\"num_tasks\":3,\"num_ranks\":1}";
    static const char two[] = "{\"peft_type\":\"MULTITASK_PROMPT_TUNING\",\"num_tasks\":2,\"num_ranks\":\"1\"}";
    static const char cols[] = "prefix_task_cols";
    static const struct {
        const char *config;
        tensors tensors;
        const char *message;
    } cases[] = {
        {config, {{2, 2, 1}, {2, 1, 4}, 3, cols, 1}, NULL},
        {config, {{2, 2, 1}, {2, 1, 4}, 3, "cols", 1}, "no tensor prefix_task_cols (of 3)"},
        {config, {{2, 2, 1}, {2, 1, 4}, 2, cols, 1}, "has 2 dimensions, not 3"},
        {config, {{2, 3, 1}, {2, 1, 4}, 3, cols, 1}, "are no factors of 2 virtual tokens of 4 numbers"},
        {config, {{2, 2, 1}, {2, 1, 5}, 3, cols, 1}, "are no factors"},
        {config, {{2, 2, 1}, {3, 1, 4}, 3, cols, 1}, "are no factors"},
        {config, {{2, 2, 2}, {2, 1, 4}, 3, cols, 1}, "are no factors"},
        {config, {{0, 2, 1}, {0, 1, 4}, 3, cols, 1}, "are no factors"},
        {config, {{2, 2, 0}, {2, 0, 4}, 3, cols, 1}, "are no factors"},
        {config, {{2, 2, 1}, {2, 1, 4}, 3, cols, NAN}, "tensor prefix_task_cols: row 0, column 0 is nan"},
        {three, {{2, 2, 1}, {2, 1, 4}, 3, cols, 1}, "for 3 tasks of rank 1"},
        {two, {{2, 2, 1}, {2, 1, 4}, 3, cols, 1}, "\"num_ranks\" is a string"},
    };
    char *dir = make_directory();
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        sp_prompt *p = NULL;
        write_adapter(dir, cases[i].config, &cases[i].tensors);
        if (cases[i].message)
            assert_fails(sp_prompt_load(&p, dir), SP_ERR_FORMAT, cases[i].message);
        else
            p = load(dir);
        sp_prompt_free(p);
    }
    remove_directory(dir);
}

/* ---- starting from others --------------------------------------------------------------------------------------- */

static void assert_mean(const float *found, const float *parts, size_t n_parts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (size_t k = 0; k < n_parts; k++) sum += parts[k * n + i];
        assert_true(fabs(found[i] - sum / (double)n_parts) < 1e-6);
    }
}

static void a_target_starts_from_a_source(void **state)
{
    (void)state;
    char *dir = make_directory();
    sp_prompt *source = create_moved(6), *plain, *refused;
    const float *w = sp_prompt_weights(source), *cols = w + N_SHARED, *rows = cols + N_COLS;
    assert_int_equal(sp_prompt_save(source, dir), SP_OK);
    sp_prompt *average = create((sp_prompt_options){.init_prompt = dir});
    assert_int_equal(sp_prompt_num_virtual_tokens(average), P);
    assert_memory_equal(sp_prompt_weights(average), w, N_SHARED * sizeof *w);
    assert_mean(sp_prompt_weights(average) + N_SHARED, cols, TASKS, P * RANKS);
    assert_mean(sp_prompt_weights(average) + N_SHARED + P * RANKS, rows, TASKS, RANKS * TINY_D);
    sp_prompt *exact = create((sp_prompt_options){.init_prompt = dir, .source_init = SP_SOURCE_EXACT, .source_task = 2});
    assert_memory_equal(sp_prompt_task_rows(exact, 0), sp_prompt_task_rows(source, 2), N_SHARED * sizeof *w);
    sp_prompt *shared =
        create((sp_prompt_options){.init_prompt = dir, .source_init = SP_SOURCE_SHARED, .num_tasks = 5, .num_ranks = 1});
    assert_memory_equal(sp_prompt_weights(shared), w, N_SHARED * sizeof *w);
    assert_memory_equal(sp_prompt_task_rows(shared, 4), w, N_SHARED * sizeof *w);

    assert_int_equal(sp_prompt_create(&plain, model, &(sp_prompt_options){.num_virtual_tokens = P}), SP_OK);
    assert_int_equal(sp_prompt_save(plain, dir), SP_OK); /* a prompt of embeddings has a part to be shared, and no factors */
    sp_prompt_free(create((sp_prompt_options){.init_prompt = dir, .source_init = SP_SOURCE_SHARED}));
    assert_fails(sp_prompt_create(&refused, model, &(sp_prompt_options){.method = SP_METHOD_MULTITASK, .init_prompt = dir}),
                 SP_ERR_MISMATCH, "no prompt of several tasks");
    sp_prompt_free(plain);
    sp_prompt_free(shared);
    sp_prompt_free(exact);
    sp_prompt_free(average);
    sp_prompt_free(source);
    remove_directory(dir);
}

/* ---- whose prompt is in front ------------------------------------------------------------------------------------ */

static const int32_t A[] = {72, 101, 108, 108, 111}, B[] = {72, 101, 10, 33, 34, 35}, C[] = {9, 8};
static const sp_example examples[] = {{A, 5, 2, 0}, {B, 6, 1, 1}, {A, 5, 2, 1}, {C, 2, 1, 0}, {B, 6, 3, 1}};
enum { N_EXAMPLES = ARRAY_LEN(examples) };

/* As a prompt of embeddings of that task's rows has it. */
static void a_task_is_a_prompt_of_its_rows(void **state)
{
    (void)state;
    sp_prompt *p = create_moved(7), *plain;
    static float expected[TINY_VOCAB], logits[TINY_VOCAB], other[TINY_VOCAB];
    assert_int_equal(sp_prompt_create(&plain, model, &(sp_prompt_options){.num_virtual_tokens = P}), SP_OK);
    for (size_t k = 0; k < TASKS; k++) {
        sp_session *session, *same;
        memcpy(sp_prompt_embeddings(plain), sp_prompt_task_rows(p, k), N_SHARED * sizeof(float));
        assert_int_equal(sp_prompt_use_task(p, k), SP_OK);
        assert_int_equal(sp_session_create(&session, model, p), SP_OK);
        assert_int_equal(sp_session_create(&same, model, plain), SP_OK);
        assert_int_equal(sp_session_append(session, A, 5, logits), SP_OK);
        assert_int_equal(sp_session_append(same, A, 5, expected), SP_OK);
        assert_memory_equal(logits, expected, sizeof logits);
        if (k) assert_memory_not_equal(logits, other, sizeof logits);
        memcpy(other, logits, sizeof other);
        sp_session_free(session);
        sp_session_free(same);
    }
    sp_prompt_free(plain);
    sp_prompt_free(p);
}

static void a_pass_over_several_tasks_is_the_mean_of_each_ones(void **state)
{
    (void)state;
    enum { N = N_SHARED + N_COLS + N_ROWS };
    static float gradient[N], one[N], sum[N];
    sp_prompt *p = create_moved(8);
    double loss, alone, mean = 0;
    assert_int_equal(sp_prompt_use_task(p, 2), SP_OK); /* examples say themselves whose they are */
    if (sp_loss(&loss, gradient, model, p, examples, N_EXAMPLES)) fail_msg("%s", sp_message());
    memset(sum, 0, sizeof sum);
    for (size_t i = 0; i < N_EXAMPLES; i++) {
        assert_int_equal(sp_loss(&alone, one, model, p, &examples[i], 1), SP_OK);
        mean += alone / N_EXAMPLES;
        for (size_t j = 0; j < N; j++) sum[j] += one[j] / N_EXAMPLES;
    }
    assert_true(fabs(loss - mean) < 1e-6);
    for (size_t j = 0; j < N; j++) assert_true(fabsf(gradient[j] - sum[j]) <= 1e-5F * (1 + fabsf(sum[j])));
    const float *cols = gradient + N_SHARED + 2 * P * RANKS; /* of a task without examples */
    for (size_t j = 0; j < P * RANKS; j++) assert_true(fabsf(cols[j]) <= 0);
    assert_fails(sp_loss(&loss, NULL, model, p, &(sp_example){A, 5, 1, 3}, 1), SP_ERR_ARGUMENT, "stands behind prompt 3 of 3");
    sp_prompt_free(p);
}

/* ---- rows of data ------------------------------------------------------------------------------------------------ */

static sp_dataset *load_rows(const char *text)
{
    sp_dataset *data;
    char *path = sp_path_join(directory, "rows.jsonl");
    assert_int_equal(sp_write_file_atomic(path, &(sp_bytes){text, strlen(text)}, 1), SP_OK);
    if (sp_dataset_load(&data, path, NULL)) fail_msg("%s", sp_message());
    free(path);
    return data;
}

static const sp_verbalizer verbalizers[] = {{"good", " good"}, {"bad", " bad"}};
static const sp_task task = {"{text}:", verbalizers, 2, 0};
static const char rows_of_tasks[] = "{\"text\": \"warm\", \"label\": \"good\", \"task\": 0}\n"
                                    "{\"text\": \"dull\", \"label\": \"bad\", \"task\": 2}\n"
                                    "{\"text\": \"cold\", \"label\": \"bad\", \"task\": 2}\n"
                                    "{\"text\": \"nice\", \"label\": \"good\"}\n"
                                    "{\"text\": \"odd\", \"label\": \"bad\", \"task\": 3}\n"
                                    "{\"text\": \"off\", \"label\": \"bad\", \"task\": \"x\"}\n";

static double loss_of(const sp_prompt *p, const char *text)
{
    sp_dataset *data = load_rows(text);
    sp_evaluation found;
    if (sp_evaluate(&found, model, p, &task, data, &(sp_eval_options){.one_task = true}, NULL)) fail_msg("%s", sp_message());
    sp_dataset_free(data);
    return found.loss;
}

static void evaluation_is_by_task(void **state)
{
    (void)state;
    sp_prompt *p = create_moved(9);
    sp_dataset *data = load_rows(rows_of_tasks);
    sp_task_evaluation tasks[TASKS];
    sp_evaluation all, one;
    const sp_eval_options options = {.tasks = tasks, .n_tasks = TASKS, .batch_size = 2};
    if (sp_evaluate(&all, model, p, &task, data, &options, NULL)) fail_msg("%s", sp_message());
    assert_int_equal(all.n, 4); /* tasks 3 and "x" are none of its */
    assert_int_equal(tasks[0].n, 2);
    assert_int_equal(tasks[1].n, 0);
    assert_int_equal(tasks[2].n, 2);
    assert_true(fabs((tasks[0].loss + tasks[2].loss) / 2 - all.loss) < 1e-9);
    assert_true(fabs((tasks[0].accuracy + tasks[2].accuracy) / 2 - all.accuracy) < 1e-9);
    assert_int_equal(sp_prompt_use_task(p, 2), SP_OK);
    assert_true(fabs(loss_of(p, "{\"text\": \"dull\", \"label\": \"bad\"}\n{\"text\": \"cold\", \"label\": \"bad\"}\n") -
                     tasks[2].loss) < 1e-5);
    assert_int_equal(sp_evaluate(&one, model, p, &task, data, &(sp_eval_options){.one_task = true}, NULL), SP_OK);
    assert_int_equal(one.n, 6); /* behind the one in use every row can stand */
    sp_dataset_free(data);
    sp_prompt_free(p);
}

static void remove_run(char *dir)
{
    char command[4096];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
    free(dir);
}

/* As many tasks as the data name; a run's directory tells which. */
static void training_counts_the_tasks(void **state)
{
    (void)state;
    char *dir = make_directory();
    sp_dataset *data = load_rows(rows_of_tasks);
    sp_train_report report;
    sp_train_options options = {.prompt = {.method = SP_METHOD_MULTITASK, .num_virtual_tokens = P},
                                .task = task,
                                .steps = 3,
                                .batch_size = 2,
                                .overwrite = true};
    if (sp_train(&report, model, data, data, dir, &options, NULL)) fail_msg("%s", sp_message());
    assert_int_equal(report.evaluation.n, 5);
    sp_prompt *p = load(dir);
    assert_int_equal(sp_prompt_num_tasks(p), 4);
    assert_memory_not_equal(sp_prompt_task_rows(p, 0), sp_prompt_task_rows(p, 2), N_SHARED * sizeof(float));
    sp_prompt_free(p);
    sp_dataset_free(data);
    data = load_rows("{\"text\": \"warm\", \"label\": \"good\", \"task\": 2000}\n");
    assert_fails(sp_train(&report, model, data, NULL, dir, &options, NULL), SP_ERR_ARGUMENT, "line 1: task 2000");
    sp_dataset_free(data);
    remove_run(dir);
}

/* What the newest checkpoint of a run of one step holds of queries. */
static void read_norms(float norms[TINY_LAYERS * TINY_KV_HEADS], const char *dir)
{
    char *path = sp_path_join(dir, "checkpoints/step-00000001.safetensors");
    sp_safetensors *file;
    if (sp_safetensors_open(&file, path)) fail_msg("%s", sp_message());
    const sp_st_tensor *tensor = sp_safetensors_find(file, "query_norms");
    assert_int_equal(sp_safetensors_read_f32(norms, file, tensor, 0, TINY_LAYERS * TINY_KV_HEADS), SP_OK);
    assert_null(sp_safetensors_find(file, "key_directions"));
    sp_safetensors_close(file);
    free(path);
}

static double penalty_of_the_first_step(const char *dir)
{
    char *path = sp_path_join(dir, "log.jsonl");
    json_t *row = json_load_file(path, JSON_DISABLE_EOF_CHECK, NULL);
    const double penalty = json_number_value(json_object_get(row, "penalty"));
    json_decref(row);
    free(path);
    return penalty;
}

/* Five rows in a step, of which two, none, two and one stand behind the tasks' prompts: as many shares of these prompts' penalties,
 * by the largest queries of all. The step is too short to move anything. */
static void each_row_brings_its_prompts_penalty(void **state)
{
    (void)state;
    static const double shares[] = {0.4, 0, 0.4, 0.2};
    char *dir = make_directory();
    sp_dataset *data = load_rows(rows_of_tasks);
    sp_train_report report;
    float norms[TINY_LAYERS * TINY_KV_HEADS];
    double expected = 0, of_task[4];
    const sp_train_options options = {
        .prompt = {.method = SP_METHOD_MULTITASK, .num_virtual_tokens = P, .num_ranks = RANKS, .seed = 5},
        .task = task,
        .steps = 1,
        .batch_size = 5,
        .learning_rate = 1e-12,
        .max_logit = 0.1,
        .max_logit_weight = 3,
        .overwrite = true};
    if (sp_train(&report, model, data, NULL, dir, &options, NULL)) fail_msg("%s", sp_message());
    assert_true(report.key_bound.is_penalty && !report.key_bound.are_held_out);
    assert_true(fabs(report.key_bound.bound - report.key_bound.training_bound) <= 1e-6 * report.key_bound.bound);
    sp_prompt *p = load(dir);
    read_norms(norms, dir);
    for (size_t k = 0; k < 4; k++) {
        assert_int_equal(sp_prompt_use_task(p, k), SP_OK);
        assert_int_equal(sp_key_penalty(&of_task[k], NULL, model, p, norms, 0.1), SP_OK);
        expected += 3 * shares[k] * of_task[k];
    }
    assert_true(fabs(of_task[0] - of_task[2]) > 2e-5 * of_task[0] && fabs(of_task[3] - of_task[2]) > 2e-5 * of_task[2]);
    assert_true(fabs(penalty_of_the_first_step(dir) - expected) <= 1e-7 * expected);
    sp_prompt_free(p);
    sp_dataset_free(data);
    remove_run(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tasks_begin_alike),
        cmocka_unit_test(options_that_make_no_sense),
        cmocka_unit_test(they_come_back_whole),
        cmocka_unit_test(directories_that_are_refused),
        cmocka_unit_test(a_target_starts_from_a_source),
        cmocka_unit_test(a_task_is_a_prompt_of_its_rows),
        cmocka_unit_test(a_pass_over_several_tasks_is_the_mean_of_each_ones),
        cmocka_unit_test(evaluation_is_by_task),
        cmocka_unit_test(training_counts_the_tasks),
        cmocka_unit_test(each_row_brings_its_prompts_penalty),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
