/* test_context.c: context-aware prompts on a tiny model: rows of data as a text with types, their directories, their loss against
 * the sum of what a session says, and that training keeps every token within its radius. oracle/cpt.py holds them against PEFT. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/file.h"
#include "prompt/cpt.h"
#include "tiny_fixture.h"

static sp_dataset *load_rows(const char *text)
{
    sp_dataset *data;
    char *path = sp_path_join(directory, "rows.jsonl");
    assert_int_equal(sp_write_file_atomic(path, &(sp_bytes){text, strlen(text)}, 1), SP_OK);
    if (sp_dataset_load(&data, path, NULL)) fail_msg("%s", sp_message());
    free(path);
    return data;
}

static sp_prompt *create(sp_prompt_options options)
{
    sp_prompt *p;
    options.method = SP_METHOD_CPT;
    if (sp_prompt_create(&p, model, &options)) fail_msg("%s", sp_message());
    return p;
}

static sp_prompt *load(const char *dir)
{
    sp_prompt *p;
    if (sp_prompt_load(&p, dir)) fail_msg("%s", sp_message());
    return p;
}

/* ---- rows as a text ----------------------------------------------------------------------------------------------- */

static const sp_verbalizer verbalizers[] = {{"good", " yes"}, {"bad", " no"}, {"odd", " ?"}};
static const sp_task task = {"Say: {text} So:", verbalizers, 3, 0};
static const char rows[] = "{\"text\": \"warm\", \"label\": \"good\"}\n{\"text\": \"dull\", \"label\": \"bad\"}\n"
                           "{\"text\": \"nice\", \"label\": \"good\"}\n{\"text\": \"fun\", \"label\": \"good\"}\n";

/* The tokens of one type from *at on, as text; *at moves behind them. */
static char *take_part(size_t *at, int32_t *type, const int32_t *ids, const int32_t *types, size_t n)
{
    char *text;
    size_t n_bytes, first = *at;
    assert_true(first < n);
    *type = types[first];
    while (*at < n && types[*at] == *type) ++*at;
    assert_int_equal(sp_detokenize(&text, &n_bytes, sp_model_tokenizer(model), ids + first, *at - first, true), SP_OK);
    return text;
}

static void rows_become_a_text_with_types(void **state)
{
    (void)state;
    static const char *const answers[] = {" yes", " no", " yes", " yes"}; /* label after label; " ?" has no row */
    sp_dataset *data = load_rows(rows);
    int32_t *ids, *types, *again, *other_types;
    size_t n, n_again, at = 0;
    if (sp_cpt_examples(&ids, &types, &n, model, &task, data, 4, 3)) fail_msg("%s", sp_message());
    for (int32_t example = 0; example < 4; example++) {
        const char *const expected[] = {"Say: ", NULL, " So:", answers[example], "\n\n"};
        for (int32_t part = 0; part < 5; part++) {
            int32_t type;
            char *text = take_part(&at, &type, ids, types, n);
            if (expected[part]) assert_string_equal(text, expected[part]);
            assert_int_equal(type, part == 4 ? 0 : 4 * example + part + 1);
            sp_free(text);
        }
    }
    assert_int_equal(at, n);
    assert_int_equal(sp_cpt_examples(&again, &other_types, &n_again, model, &task, data, 4, 3), SP_OK);
    assert_int_equal(n_again, n);
    assert_memory_equal(again, ids, n * sizeof *ids);
    sp_free(again);
    sp_free(other_types);
    sp_free(ids);
    sp_free(types);
    sp_dataset_free(data);
}

static void rows_that_make_no_text(void **state)
{
    (void)state;
    int32_t *ids, *types;
    size_t n;
    sp_dataset *data = load_rows(rows);
    const sp_task none = {"{text}", NULL, 0, 0}, few = {"{text}", verbalizers + 1, 1, 0};
    assert_fails(sp_cpt_examples(&ids, &types, &n, model, &task, data, 5, 0), SP_ERR_ARGUMENT,
                 "5 examples of data that have 4 rows");
    assert_fails(sp_cpt_examples(&ids, &types, &n, model, &task, data, 0, 0), SP_ERR_ARGUMENT, "0 examples");
    assert_fails(sp_cpt_examples(&ids, &types, &n, model, &none, data, 1, 0), SP_ERR_ARGUMENT, "need verbalizers");
    assert_fails(sp_cpt_examples(&ids, &types, &n, model, &few, data, 2, 0), SP_ERR_MISMATCH, "only 1 rows have a label");
    assert_null(ids);
    assert_null(types);
    sp_dataset_free(data);
    data = load_rows("{\"text\": \"alone\"}\n");
    assert_fails(sp_cpt_examples(&ids, &types, &n, model, &task, data, 1, 0), SP_ERR_UNSUPPORTED, "start from a text instead");
    sp_dataset_free(data);
}

/* ---- prompts -------------------------------------------------------------------------------------------------------- */

enum { N = 8 };
static const int32_t ids[N] = {72, 101, 108, 33, 34, 35, 36, 37}, types[N] = {1, 2, 3, 4, 5, 6, 8, 8};

static sp_prompt_options of_tokens(sp_weighted_loss type)
{
    return (sp_prompt_options){.cpt_token_ids = ids,
                               .cpt_tokens_type_mask = types,
                               .n_cpt_tokens = N,
                               .opt_weighted_loss_type = type,
                               .opt_loss_decay_factor = 0.5,
                               .opt_projection_epsilon = 2,
                               .opt_projection_format_epsilon = 1};
}

static void they_start_as_their_tokens(void **state)
{
    (void)state;
    float rows_of_tokens[N * TINY_D];
    sp_prompt *p = create(of_tokens(SP_WEIGHTED_LOSS_NONE));
    assert_int_equal(sp_model_embed(rows_of_tokens, model, ids, N), SP_OK);
    assert_int_equal(sp_prompt_num_virtual_tokens(p), N);
    assert_memory_equal(sp_prompt_embeddings(p), rows_of_tokens, sizeof rows_of_tokens);
    for (size_t i = 0; i < sp_prompt_n_weights(p); i++) assert_true(fabsf(sp_prompt_weights(p)[i]) <= 0);
    sp_prompt_free(p);
    p = create((sp_prompt_options){.init_text = "abc"});
    assert_int_equal(sp_prompt_num_virtual_tokens(p), 3);
    sp_prompt_free(p);
    p = create((sp_prompt_options){.init_text = "abc", .num_virtual_tokens = 7});
    assert_memory_equal(sp_prompt_embeddings(p), sp_prompt_embeddings(p) + 3 * TINY_D, 3 * TINY_D * sizeof(float));
    sp_prompt_free(p);
}

static void options_that_make_no_sense(void **state)
{
    (void)state;
    static const int32_t negative[N] = {1, 1, -1, 1, 1, 1, 1, 1}, outside[] = {TINY_VOCAB};
    sp_prompt_options other_size = of_tokens(SP_WEIGHTED_LOSS_NONE), odd = other_size, unknown = other_size, shrinking = other_size;
    sp_prompt *p;
    other_size.method = odd.method = unknown.method = shrinking.method = SP_METHOD_CPT;
    other_size.num_virtual_tokens = 5;
    odd.cpt_tokens_type_mask = negative;
    unknown.opt_weighted_loss_type = (sp_weighted_loss)7;
    shrinking.opt_loss_decay_factor = -1;
    const struct {
        sp_prompt_options options;
        const char *message;
    } cases[] = {{other_size, "leave their number to these"},
                 {odd, "token 2 has type -1"},
                 {unknown, "unknown opt_weighted_loss_type 7"},
                 {shrinking, "opt_loss_decay_factor is -1"},
                 {{.method = SP_METHOD_CPT}, "starts from a text that is not empty"},
                 {{.method = SP_METHOD_CPT, .init_text = ""}, "starts from a text that is not empty"},
                 {{.method = SP_METHOD_CPT, .cpt_token_ids = outside, .n_cpt_tokens = 1}, "vocabulary"},
                 {{.method = SP_METHOD_CPT, .init_text = "x", .sink = SP_SINK_BOS}, "goes with method prompt only"},
                 {{.cpt_token_ids = ids, .n_cpt_tokens = N}, "method cpt only"}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        assert_int_equal(sp_prompt_create(&p, model, &cases[i].options), SP_ERR_ARGUMENT);
        assert_null(p);
        if (!strstr(sp_message(), cases[i].message)) fail_msg("%s", sp_message());
    }
}

static void move(sp_prompt *p, float by)
{
    for (size_t i = 0; i < sp_prompt_n_weights(p); i++) sp_prompt_weights(p)[i] = by * (float)((int)(i % 5) - 2);
    assert_int_equal(sp_prompt_update(p), SP_OK);
}

/* What is saved is where the tokens are; from there one that was loaded goes on. */
static void they_come_back_whole(void **state)
{
    (void)state;
    char *dir = make_directory(), *again = make_directory();
    sp_prompt *p = create(of_tokens(SP_WEIGHTED_LOSS_DECAY));
    move(p, 0.01F);
    assert_int_equal(sp_prompt_save(p, dir), SP_OK);
    sp_prompt *q = load(dir);
    size_t n, n_loaded;
    const sp_prompt_target *targets = sp_prompt_targets(&n, p), *loaded = sp_prompt_targets(&n_loaded, q);
    assert_int_equal(sp_prompt_method(q), SP_METHOD_CPT);
    assert_memory_equal(sp_prompt_embeddings(q), sp_prompt_embeddings(p), N * TINY_D * sizeof(float));
    assert_int_equal(n, 3);
    assert_int_equal(n_loaded, n);
    assert_memory_equal(loaded, targets, n * sizeof *targets);
    for (size_t i = 0; i < sp_prompt_n_weights(q); i++) assert_true(fabsf(sp_prompt_weights(q)[i]) <= 0);
    assert_int_equal(sp_prompt_save(q, again), SP_OK);
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors", "softprompt.json"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char *paths[2] = {sp_path_join(dir, names[i]), sp_path_join(again, names[i])}, *bytes[2];
        size_t n_bytes[2];
        for (int k = 0; k < 2; k++) assert_int_equal(sp_read_file(&bytes[k], &n_bytes[k], paths[k], 1 << 20), SP_OK);
        assert_int_equal(n_bytes[0], n_bytes[1]);
        assert_memory_equal(bytes[0], bytes[1], n_bytes[0]);
        for (int k = 0; k < 2; k++) free(paths[k]), free(bytes[k]);
    }
    sp_prompt_free(q);
    sp_prompt_free(p);
    remove_directory(dir);
    remove_directory(again);
}

static void write_config(const char *dir, const char *text)
{
    char *path = sp_path_join(dir, "adapter_config.json");
    assert_int_equal(sp_write_file_atomic(path, &(sp_bytes){text, strlen(text)}, 1), SP_OK);
    free(path);
}

static void configurations_that_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *more, *message;
    } cases[] = {
        {"", NULL},
        {",\"cpt_token_ids\":null,\"opt_weighted_loss_type\":null", NULL},
        {",\"cpt_token_ids\":[1,2]", "\"cpt_token_ids\" is no list of 3 numbers"},
        {",\"cpt_tokens_type_mask\":7", "\"cpt_tokens_type_mask\" is no list of 3 numbers"},
        {",\"cpt_tokens_type_mask\":[1,-1,1]", "item 1 is no whole number from 0"},
        {",\"cpt_token_ids\":[1,2,4294967296]", "item 2 is no whole number"},
        {",\"cpt_mask\":[1,\"1\",1]", "\"cpt_mask\": item 1"},
        {",\"opt_weighted_loss_type\":\"linear\"", "is \"linear\", neither none nor decay"},
        {",\"opt_loss_decay_factor\":\"1\"", "\"opt_loss_decay_factor\" is a string, not a number"},
    };
    char *dir = make_directory();
    sp_prompt *p = create((sp_prompt_options){.init_text = "abc"});
    assert_int_equal(sp_prompt_save(p, dir), SP_OK);
    sp_prompt_free(p);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char config[256];
        snprintf(config, sizeof config, "{\"peft_type\":\"CPT\",\"num_virtual_tokens\":3%s}", cases[i].more);
        write_config(dir, config);
        p = NULL;
        if (cases[i].message)
            assert_fails(sp_prompt_load(&p, dir), SP_ERR_FORMAT, cases[i].message);
        else
            p = load(dir);
        sp_prompt_free(p);
    }
    remove_directory(dir);
}

/* ---- the loss -------------------------------------------------------------------------------------------------------- */

static const int32_t A[] = {72, 101, 108, 108, 111}, B[] = {72, 101, 10, 33, 34, 35};
static const sp_example examples[] = {{A, 5, 2, 0}, {B, 6, 1, 0}, {A, 5, 1, 0}};
enum { N_EXAMPLES = ARRAY_LEN(examples), N_ANSWER_TOKENS = 4 };

/* -ln p of tokens, one after the other, behind a prompt of these rows; NULL: none. */
static void score(double *out, sp_prompt *p, const int32_t *context, size_t n_context, const int32_t *tokens, size_t n)
{
    static float logits[TINY_VOCAB];
    sp_session *session;
    assert_int_equal(sp_session_create(&session, model, p), SP_OK);
    assert_int_equal(sp_session_append(session, context, n_context, logits), SP_OK);
    for (size_t t = 0; t < n; t++) {
        double sum = 0;
        for (size_t i = 0; i < TINY_VOCAB; i++) sum += exp((double)logits[i]);
        out[t] = log(sum) - (double)logits[tokens[t]];
        assert_int_equal(sp_session_append(session, &tokens[t], 1, logits), SP_OK);
    }
    sp_session_free(session);
}

/* Every answer's token as the model says it, the prompt's own (here exactly the text's) once for each example; mean over tokens. */
static void answers_inside_count_once_for_each_example(void **state)
{
    (void)state;
    double own[N - 1], sum = 0, behind[2], loss;
    score(own, NULL, ids, 1, ids + 1, N - 1); /* own[t - 1]: of token t */
    for (size_t k = 0; k < 2; k++) {
        sp_prompt *p = create(of_tokens(k ? SP_WEIGHTED_LOSS_DECAY : SP_WEIGHTED_LOSS_NONE));
        const double first = k ? 0.25 : 1, second = k ? 0.5 : 1;
        sum = N_EXAMPLES * (first * own[2] + second * (own[5] + own[6]));
        for (size_t i = 0; i < N_EXAMPLES; i++) {
            const size_t n_context = examples[i].n_tokens - examples[i].n_answer;
            score(behind, p, examples[i].tokens, n_context, examples[i].tokens + n_context, examples[i].n_answer);
            for (size_t t = 0; t < examples[i].n_answer; t++) sum += behind[t];
        }
        assert_int_equal(sp_loss(&loss, NULL, model, p, examples, N_EXAMPLES), SP_OK);
        assert_true(fabs(loss - sum / (N_ANSWER_TOKENS + 3 * N_EXAMPLES)) < 1e-5);
        sp_prompt_free(p);
    }
}

/* Without answers inside, as with them, it is the mean over tokens. */
static void a_text_without_answers_has_their_mean_alone(void **state)
{
    (void)state;
    sp_prompt *p = create((sp_prompt_options){.init_text = "Say it: "});
    double loss, behind[2], sum = 0;
    for (size_t i = 0; i < N_EXAMPLES; i++) {
        const size_t n_context = examples[i].n_tokens - examples[i].n_answer;
        score(behind, p, examples[i].tokens, n_context, examples[i].tokens + n_context, examples[i].n_answer);
        for (size_t t = 0; t < examples[i].n_answer; t++) sum += behind[t];
    }
    assert_int_equal(sp_loss(&loss, NULL, model, p, examples, N_EXAMPLES), SP_OK);
    assert_true(fabs(loss - sum / N_ANSWER_TOKENS) < 1e-5);
    sp_prompt_free(p);
}

static void the_gradient_is_that_of_what_may_move(void **state)
{
    (void)state;
    static float gradient[N * TINY_D];
    sp_prompt *p = create(of_tokens(SP_WEIGHTED_LOSS_DECAY));
    double loss;
    move(p, 0.01F);
    assert_int_equal(sp_loss(&loss, gradient, model, p, examples, N_EXAMPLES), SP_OK);
    for (size_t t = 0; t < N; t++) {
        double norm = 0;
        for (size_t i = 0; i < TINY_D; i++) norm += fabs((double)gradient[t * TINY_D + i]);
        assert_int_equal(norm > 0, types[t] % 4 != 0);
    }
    for (size_t i = 0; i < N * TINY_D; i += 37) { /* some of them against differences */
        if (types[i / TINY_D] % 4 == 0) continue;
        const float step = 0.02F, kept = sp_prompt_weights(p)[i];
        double sides[2];
        for (int side = 0; side < 2; side++) {
            sp_prompt_weights(p)[i] = kept + (side ? -step : step);
            assert_int_equal(sp_prompt_update(p), SP_OK);
            assert_int_equal(sp_loss(&sides[side], NULL, model, p, examples, N_EXAMPLES), SP_OK);
        }
        sp_prompt_weights(p)[i] = kept;
        assert_true(fabs((sides[0] - sides[1]) / (2 * (double)step) - (double)gradient[i]) < 2e-3);
    }
    sp_prompt_free(p);
}

/* ---- training ---------------------------------------------------------------------------------------------------------- */

static void training_keeps_within_the_radius(void **state)
{
    (void)state;
    char *dir = make_directory();
    sp_dataset *data = load_rows(rows);
    sp_train_report report;
    const sp_train_options options = {
        .prompt = {.method = SP_METHOD_CPT}, .cpt_examples = 2, .task = task, .steps = 12, .batch_size = 2, .learning_rate = 0.05};
    if (sp_train(&report, model, data, NULL, dir, &options, NULL)) fail_msg("%s", sp_message());
    assert_true(report.last_loss < report.first_loss);
    int32_t *start_ids, *start_types;
    size_t n;
    assert_int_equal(sp_cpt_examples(&start_ids, &start_types, &n, model, &task, data, 2, 0), SP_OK);
    float *start = malloc(n * TINY_D * sizeof *start);
    assert_non_null(start);
    assert_int_equal(sp_model_embed(start, model, start_ids, n), SP_OK);
    sp_prompt *p = load(dir);
    assert_int_equal(sp_prompt_num_virtual_tokens(p), n);
    for (size_t t = 0; t < n; t++) {
        double squares = 0;
        for (size_t i = 0; i < TINY_D; i++)
            squares += pow((double)sp_prompt_embeddings(p)[t * TINY_D + i] - start[t * TINY_D + i], 2);
        if (start_types[t] % 4 == 0)
            assert_true(squares <= 0);
        else
            assert_true(squares > 0 && sqrt(squares) <= 1.0001 * 0.1 * sqrt((double)TINY_D / 2048));
    }
    sp_prompt_free(p);
    free(start);
    sp_free(start_ids);
    sp_free(start_types);
    sp_dataset_free(data);
    char command[4096];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
    free(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_become_a_text_with_types),
        cmocka_unit_test(rows_that_make_no_text),
        cmocka_unit_test(they_start_as_their_tokens),
        cmocka_unit_test(options_that_make_no_sense),
        cmocka_unit_test(they_come_back_whole),
        cmocka_unit_test(configurations_that_are_refused),
        cmocka_unit_test(answers_inside_count_once_for_each_example),
        cmocka_unit_test(a_text_without_answers_has_their_mean_alone),
        cmocka_unit_test(the_gradient_is_that_of_what_may_move),
        cmocka_unit_test(training_keeps_within_the_radius),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
