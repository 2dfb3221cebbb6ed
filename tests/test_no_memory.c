/* test_no_memory.c: every allocation of the file readers and writers, of models, attention and sessions fails in turn: the call
 * must return SP_ERR_MEMORY, give back what it had (the sanitizer build sees leaks), leave whole files and a session that can go
 * on, and succeed once nothing fails. jansson's own allocations fail as well where it writes; not where it parses, which it does
 * not survive (format/json.c). */
#define _GNU_SOURCE
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>

#include "base/file.h"
#include "files.h"
#include "format/gguf.h"
#include "format/safetensors.h"
#include "format/source.h"
#include "text/tokenizer.h"
#include "tiny_model.h"

/* ---- allocators that fail when told to; the linker puts them in place of libc's (--wrap) ------------------------- */

static size_t n_until_failure = SIZE_MAX; /* allocations that still succeed; exactly one fails, then all succeed again */

static bool jansson_can_fail;

/* Threads allocate side by side: one of them alone takes the last one. */
static bool fails_now(void)
{
    size_t left = __atomic_load_n(&n_until_failure, __ATOMIC_RELAXED);
    do {
        if (left == SIZE_MAX) return false;
    } while (!__atomic_compare_exchange_n(&n_until_failure, &left, left - 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return left == 0; /* from 0 it wraps to SIZE_MAX: never again */
}

void *__real_malloc(size_t n_bytes);
void *__real_calloc(size_t n_items, size_t item_bytes);
void *__real_realloc(void *memory, size_t n_bytes);
void *__real_aligned_alloc(size_t alignment, size_t n_bytes);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t n_bytes);

void *__wrap_malloc(size_t n_bytes);
void *__wrap_calloc(size_t n_items, size_t item_bytes);
void *__wrap_realloc(void *memory, size_t n_bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t n_bytes);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t n_bytes);

void *__wrap_malloc(size_t n_bytes)
{
    return fails_now() ? NULL : __real_malloc(n_bytes);
}
void *__wrap_calloc(size_t n_items, size_t item_bytes)
{
    return fails_now() ? NULL : __real_calloc(n_items, item_bytes);
}
void *__wrap_realloc(void *memory, size_t n_bytes)
{
    return fails_now() ? NULL : __real_realloc(memory, n_bytes);
}
void *__wrap_aligned_alloc(size_t alignment, size_t n_bytes)
{
    return fails_now() ? NULL : __real_aligned_alloc(alignment, n_bytes);
}
char *__wrap_strdup(const char *text)
{
    return fails_now() ? NULL : __real_strdup(text);
}
char *__wrap_strndup(const char *text, size_t n_bytes)
{
    return fails_now() ? NULL : __real_strndup(text, n_bytes);
}

static void *jansson_malloc(size_t n_bytes)
{
    return jansson_can_fail ? __wrap_malloc(n_bytes) : __real_malloc(n_bytes);
}

/* ---- the calls --------------------------------------------------------------------------------------------------- */

static sp_status open_gguf(const char *path)
{
    sp_gguf *g;
    sp_status st = sp_gguf_open(&g, path);
    sp_gguf_close(g);
    return st;
}

static sp_status open_safetensors(const char *path)
{
    sp_safetensors *f;
    sp_status st = sp_safetensors_open(&f, path);
    sp_safetensors_close(f);
    return st;
}

static sp_status open_source(const char *path)
{
    sp_source *source;
    sp_status st = sp_source_open(&source, path);
    sp_source_close(source);
    return st;
}

static sp_status describe(const char *path)
{
    char *json;
    sp_status st = sp_describe(&json, path);
    sp_free(json);
    return st;
}

static sp_status load_prompt(const char *dir)
{
    sp_prompt *p;
    sp_status st = sp_prompt_load(&p, dir);
    sp_prompt_free(p);
    return st;
}

static sp_prompt *prompt_to_save;

static sp_status save_prompt(const char *dir)
{
    jansson_can_fail = true;
    sp_status st = sp_prompt_save(prompt_to_save, dir);
    jansson_can_fail = false;
    const size_t n = n_until_failure;
    n_until_failure = SIZE_MAX;
    if (load_prompt(dir)) fail_msg("%s", sp_message()); /* failed or not: a whole prompt is there */
    n_until_failure = n;
    return st;
}

static sp_status use_session(sp_session *session)
{
    static const int32_t tokens[] = {72, 101, 108};
    static const char *const stop[] = {"\xff"};
    const sp_sampling sampling = {.max_new_tokens = 70, .temperature = 1, .stop = stop, .n_stop = 1};
    sp_generation generation;
    sp_status st = sp_session_append(session, tokens, ARRAY_LEN(tokens), NULL);
    if (!st) st = sp_generate(&generation, session, tokens, ARRAY_LEN(tokens), &sampling, NULL, NULL);
    if (!st) sp_generation_clear(&generation);
    return st;
}

/* A model from file to text. */
static sp_status run_model_with(const sp_prompt_options *prompt_options, const char *path)
{
    static const sp_model_options options = {.n_threads = 1};
    sp_model *model;
    sp_session *session = NULL;
    sp_prompt *prompt = NULL;
    sp_classification found = {0};
    static const sp_verbalizer verbalizers[] = {{"a", " a"}, {"b", " b"}};
    static const sp_task task = {.template_text = "{text}:", .verbalizers = verbalizers, .n_verbalizers = 2};
    sp_status st = sp_model_load(&model, path, &options);
    if (!st) st = sp_prompt_create(&prompt, model, prompt_options);
    if (!st) st = sp_session_create(&session, model, prompt);
    if (!st) st = use_session(session);
    if (!st) st = sp_classify(&found, model, prompt, &task, "text");
    sp_classification_clear(&found);
    sp_session_free(session);
    sp_prompt_free(prompt);
    sp_model_free(model);
    return st;
}

static sp_status run_model(const char *path)
{
    return run_model_with(&(sp_prompt_options){.num_virtual_tokens = 3}, path);
}

static sp_status run_prefix(const char *path)
{
    return run_model_with(&(sp_prompt_options){.method = SP_METHOD_PREFIX, .num_virtual_tokens = 3}, path);
}

/* A prefix, its moments, a text behind them. */
static sp_status run_compiled(const char *path)
{
    static const sp_model_options options = {.n_threads = 1};
    static const sp_prompt_options prefix = {.method = SP_METHOD_PREFIX, .num_virtual_tokens = 3};
    sp_model *model;
    sp_prompt *prompt = NULL, *compiled = NULL;
    sp_session *session = NULL;
    sp_status st = sp_model_load(&model, path, &options);
    if (!st) st = sp_prompt_create(&prompt, model, &prefix);
    if (!st) st = sp_prompt_compile(&compiled, model, prompt, &(sp_compile_options){.max_logit = 0.5}, NULL);
    if (!st) st = sp_session_create(&session, model, compiled);
    if (!st) st = use_session(session);
    sp_session_free(session);
    sp_prompt_free(compiled);
    sp_prompt_free(prompt);
    sp_model_free(model);
    return st;
}

/* Two prompts of both kinds as one model: its branches grow, go back and are moved. */
static sp_status run_ensemble(const char *path)
{
    static const sp_model_options options = {.n_threads = 1};
    static const sp_verbalizer verbalizers[] = {{"a", " a"}, {"b", " b"}};
    static const sp_task task = {.template_text = "{text}:", .verbalizers = verbalizers, .n_verbalizers = 2};
    static const sp_method methods[] = {SP_METHOD_PROMPT, SP_METHOD_PREFIX};
    sp_model *model;
    sp_session *session = NULL;
    sp_prompt *prompts[2] = {NULL, NULL};
    sp_classification found = {0};
    sp_status st = sp_model_load(&model, path, &options);
    for (size_t i = 0; i < 2 && !st; i++)
        st = sp_prompt_create(&prompts[i], model, &(sp_prompt_options){.method = methods[i], .num_virtual_tokens = 3 + i});
    if (!st) st = sp_session_create_ensemble(&session, model, (const sp_prompt *const *)prompts, 2);
    if (!st) st = use_session(session);
    if (!st) sp_session_rewind(session, 2);
    if (!st) st = use_session(session);
    if (!st) st = sp_classify_ensemble(&found, model, (const sp_prompt *const *)prompts, 2, &task, "text");
    sp_classification_clear(&found);
    sp_session_free(session);
    for (size_t i = 0; i < 2; i++) sp_prompt_free(prompts[i]);
    sp_model_free(model);
    return st;
}

/* A network from its start to its gradient. */
static sp_status train_ptuning(const char *path)
{
    static const sp_model_options options = {.n_threads = 1};
    static const sp_prompt_options prompt_options = {.method = SP_METHOD_PTUNING,
                                                     .num_virtual_tokens = 3,
                                                     .encoder_reparameterization_type = SP_ENCODER_LSTM,
                                                     .encoder_hidden_size = 2};
    static const int32_t tokens[] = {72, 101, 108};
    static const sp_example example = {tokens, 3, 1, 0};
    static const float norms[TINY_LAYERS * TINY_KV_HEADS] = {1, 1, 1, 1};
    static float gradient[1 << 14];
    sp_model *model;
    sp_prompt *prompt = NULL;
    double loss, penalty;
    sp_status st = sp_model_load(&model, path, &options);
    if (!st) st = sp_prompt_create(&prompt, model, &prompt_options);
    if (!st) assert_in_range(sp_prompt_n_weights(prompt), 1, ARRAY_LEN(gradient));
    if (!st) st = sp_loss(&loss, gradient, model, prompt, &example, 1);
    if (!st) st = sp_key_penalty(&penalty, gradient, model, prompt, norms, 0.1);
    if (!st) st = sp_prompt_update(prompt);
    sp_prompt_free(prompt);
    sp_model_free(model);
    return st;
}

static sp_status run_tasks(const char *path)
{
    return run_model_with(
        &(sp_prompt_options){.method = SP_METHOD_MULTITASK, .num_virtual_tokens = 3, .num_tasks = 2, .num_ranks = 2}, path);
}

static sp_status run_context(const char *path)
{
    return run_model_with(&(sp_prompt_options){.method = SP_METHOD_CPT, .init_text = "abc"}, path);
}

/* A run of training from queries that are sampled to the adapter, in one directory again and again. */
static sp_status distil(const char *path)
{
    static const sp_model_options options = {.n_threads = 1};
    const sp_train_options training = {.prompt = {.num_virtual_tokens = 2},
                                       .steps = 1,
                                       .batch_size = 2,
                                       .overwrite = true,
                                       .teacher_context = "abc",
                                       .num_queries = 9,
                                       .query_length = 4};
    sp_model *model;
    sp_train_report report;
    char *dir = __real_malloc(strlen(path) + 5);
    sprintf(dir, "%s.run", path);
    sp_status st = sp_model_load(&model, path, &options);
    if (!st) st = sp_train(&report, model, NULL, NULL, dir, &training, NULL);
    sp_model_free(model);
    free(dir);
    return st;
}

/* A prefix on two rows of data. */
static sp_status run_audit(const char *path)
{
    static const sp_model_options options = {.n_threads = 1};
    static const sp_prompt_options prefix = {.method = SP_METHOD_PREFIX, .num_virtual_tokens = 3};
    sp_model *model;
    sp_prompt *prompt = NULL;
    sp_audit *audit = NULL;
    const sp_audit_report *report;
    char *data = sp_path_join(path, "rows.csv"), *file = sp_path_join(path, "model.gguf");
    sp_status st = data && file ? sp_model_load(&model, file, &options) : SP_ERR_MEMORY;
    free(file);
    if (st) {
        free(data);
        return st;
    }
    st = sp_prompt_create(&prompt, model, &prefix);
    if (!st) st = sp_audit_create(&audit, model, prompt, NULL);
    if (!st) st = sp_audit_data(audit, data, NULL, NULL, NULL);
    if (!st) st = sp_audit_get_report(&report, audit);
    free(data);
    sp_audit_free(audit);
    sp_prompt_free(prompt);
    sp_model_free(model);
    return st;
}

/* Words crammed into a vector; adapter and result are written to where the model lies. */
static sp_status cram(const char *path)
{
    static const sp_model_options options = {.n_threads = 1};
    sp_model *model;
    sp_cram_report report = {0};
    char *dir = __real_malloc(strlen(path) + 6);
    sprintf(dir, "%s.cram", path);
    const sp_cram_options crammed = {.kind = SP_CRAM_RANDOM,
                                     .n_samples = 2,
                                     .steps = 2,
                                     .export_dir = dir,
                                     .overwrite = true}; /* of the run before, which failed */
    sp_status st = sp_model_load(&model, path, &options);
    if (!st) st = sp_lab_cram(&report, model, NULL, &crammed, NULL);
    if (!st) st = sp_cram_result_keep(&report, dir, model, SP_CRAM_RANDOM);
    sp_cram_report_clear(&report);
    sp_model_free(model);
    free(dir);
    return st;
}

/* An arena that gets no large block takes one of the size wanted: `n_recovered` such failures may go unnoticed. */
static void fail_each_but(size_t n_recovered, sp_status (*call)(const char *), const char *path, size_t at_least)
{
    size_t n = 0;
    for (;; n++) {
        n_until_failure = n;
        sp_status st = call(path);
        bool failed = n_until_failure == SIZE_MAX;
        n_until_failure = SIZE_MAX;
        if (!failed) {
            if (st) fail_msg("%s: %s", path, sp_message());
            break;
        }
        if (st == SP_OK && n_recovered > 0)
            n_recovered--;
        else if (st != SP_ERR_MEMORY)
            fail_msg("%s: allocation %zu failed: status %d, message \"%s\"", path, n, st, sp_message());
    }
    assert_true(n >= at_least);
}

static void fail_each_allocation(sp_status (*call)(const char *), const char *path, size_t at_least)
{
    fail_each_but(0, call, path, at_least);
}

static void gguf_files(void **state)
{
    (void)state;
    fail_each_allocation(open_gguf, SP_CORPUS "/gguf/model", 10);
    jansson_can_fail = true;
    fail_each_allocation(describe, SP_CORPUS "/gguf/model", 50);
    jansson_can_fail = false;
}

static void safetensors_files(void **state)
{
    (void)state;
    fail_each_allocation(open_safetensors, SP_CORPUS "/safetensors/types", 5);
    fail_each_allocation(describe, SP_CORPUS "/safetensors/types", 5);
}

/* The seed's three files: configuration, NUL, softprompt.json, NUL, tensors. */
static char *unpack_adapter(const char *seed)
{
    char *dir = make_directory(), *bytes;
    size_t n_bytes;
    assert_int_equal(sp_read_file(&bytes, &n_bytes, seed, 1 << 20), SP_OK);
    const char *own = bytes + strlen(bytes) + 1, *tensors = own + strlen(own) + 1;
    const sp_bytes pieces[] = {{bytes, strlen(bytes)}, {own, strlen(own)}, {tensors, (size_t)(bytes + n_bytes - tensors)}};
    static const char *const names[] = {"adapter_config.json", "softprompt.json", "adapter_model.safetensors"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char *path = sp_path_join(dir, names[i]);
        assert_int_equal(sp_write_file_atomic(path, &pieces[i], 1), SP_OK);
        free(path);
    }
    free(bytes);
    return dir;
}

static void check_adapter(const char *seed)
{
    char *dir = unpack_adapter(seed);
    fail_each_allocation(load_prompt, dir, 10);
    fail_each_allocation(describe, dir, 10);
    if (sp_prompt_load(&prompt_to_save, dir)) fail_msg("%s", sp_message());
    fail_each_allocation(save_prompt, dir, 50);
    assert_int_equal(load_prompt(dir), SP_OK);
    sp_prompt_free(prompt_to_save);
    remove_directory(dir); /* fails if a temporary file was left in a place of its own */
}

static void adapter_directories(void **state)
{
    (void)state;
    check_adapter(SP_CORPUS "/adapter/ours");
    check_adapter(SP_CORPUS "/adapter/compiled");
}

/* A seed's three files; an empty index is left out. */
static char *unpack_hf_directory(const char *seed)
{
    char *dir = make_directory(), *bytes;
    size_t n_bytes;
    assert_int_equal(sp_read_file(&bytes, &n_bytes, seed, 1 << 20), SP_OK);
    const char *index = bytes + strlen(bytes) + 1, *tensors = index + strlen(index) + 1;
    const sp_bytes pieces[] = {{bytes, strlen(bytes)}, {tensors, (size_t)(bytes + n_bytes - tensors)}, {index, strlen(index)}};
    const char *const names[] = {"config.json", *index ? "a.safetensors" : "model.safetensors", "model.safetensors.index.json"};
    for (size_t i = 0; i < (*index ? 3 : 2); i++) {
        char *path = sp_path_join(dir, names[i]);
        assert_int_equal(sp_write_file_atomic(path, &pieces[i], 1), SP_OK);
        free(path);
    }
    free(bytes);
    return dir;
}

static void hf_directories(void **state)
{
    static const char *const seeds[] = {SP_CORPUS "/hf_directory/llama", SP_CORPUS "/hf_directory/shards",
                                        SP_CORPUS "/hf_directory/gemma3"};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(seeds); i++) {
        char *dir = unpack_hf_directory(seeds[i]);
        fail_each_allocation(open_source, dir, 30);
        remove_directory(dir);
    }
}

static sp_status load_tokenizer(const char *dir)
{
    static const char text[] = "abab  ab<x>\n <y> 12 \xc3\xa9 e\xcc\x81";
    sp_tokenizer *t;
    int32_t *ids = NULL;
    size_t n;
    sp_status st = sp_tokenizer_from_hf(&t, dir);
    if (!st) st = sp_tokenize(&ids, &n, t, text, sizeof text - 1, SP_TOKENIZE_PARSE_SPECIAL);
    sp_free(ids);
    sp_tokenizer_free(t);
    return st;
}

static void tokenizers(void **state)
{
    static const char *const seeds[] = {SP_CORPUS "/tokenizer_json/bytes", SP_CORPUS "/tokenizer_json/characters",
                                        SP_CORPUS "/tokenizer_json/metaspace"};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(seeds); i++) {
        char *dir = make_directory(), *bytes, *path = sp_path_join(dir, "tokenizer.json");
        size_t n_bytes;
        assert_int_equal(sp_read_file(&bytes, &n_bytes, seeds[i], 1 << 20), SP_OK);
        assert_int_equal(sp_write_file_atomic(path, &(sp_bytes){bytes, strlen(bytes)}, 1), SP_OK);
        fail_each_allocation(load_tokenizer, dir, 15);
        free(path);
        free(bytes);
        remove_directory(dir);
    }
}

static char *write_tiny_model(const char *dir)
{
    char *path = sp_path_join(dir, "model.gguf");
    assert_non_null(path);
    assert_true(tiny_model_write(path));
    return path;
}

static void models(void **state)
{
    char *dir = make_directory(), *path = write_tiny_model(dir);
    (void)state;
    fail_each_but(3, run_model, path, 60);
    fail_each_but(4, run_prefix, path, 60);     /* one engine more, for the keys that it starts from */
    fail_each_but(12, run_compiled, path, 150); /* and arenas of each head's moments */
    fail_each_but(4, run_ensemble, path, 100);
    fail_each_but(4, train_ptuning, path, 60);
    fail_each_but(3, run_tasks, path, 60);
    fail_each_but(3, run_context, path, 60);
    fail_each_but(5, distil, path, 150); /* arenas of the distiller, and of the engines of student, teacher and sampling */
    fail_each_but(20, cram, path, 150);  /* arenas, and what keeps a search for another day, without which it goes on */
    char command[512];
    snprintf(command, sizeof command, "rm -r '%s.run' '%s.cram'", path, path);
    assert_int_equal(system(command), 0);
    free(path);
    remove_directory(dir);
}

static void audits(void **state)
{
    char *dir = make_directory(), *path = write_tiny_model(dir), *rows = sp_path_join(dir, "rows.csv");
    static const char text[] = "text,label\na row,yes\nanother,no\n";
    (void)state;
    assert_non_null(rows);
    assert_int_equal(sp_write_file_atomic(rows, &(sp_bytes){text, sizeof text - 1}, 1), SP_OK);
    fail_each_but(7, run_audit, dir, 160); /* the model's, three engines' and the layers' arenas */
    free(rows);
    free(path);
    remove_directory(dir);
}

static sp_status run_lab(const char *dir)
{
    const sp_universality_options options = {.len = 2, .grid = 2, .n_samples = 10, .only_grid = true, .export_dir = dir};
    sp_universality_report report;
    return sp_lab_universality(&report, &options, NULL);
}

static sp_status run_memorise(const char *unused)
{
    static const size_t sequences = 2, d = 1, len[] = {1, 2};
    const sp_memorise_options options = {.sequences = &sequences,
                                         .d = &d,
                                         .len = len,
                                         .n_sequences = 1,
                                         .n_d = 1,
                                         .n_len = 2,
                                         .n_seeds = 1,
                                         .epsilon = 0.49,
                                         .max_tokens = 2,
                                         .steps = 2,
                                         .restarts = 1};
    sp_memorise_report report;
    const int n_threads = omp_get_max_threads();
    (void)unused;
    omp_set_num_threads(1); /* so that allocations come in the same order each time */
    sp_status st = sp_lab_memorise(&report, &options, NULL);
    omp_set_num_threads(n_threads);
    sp_memorise_report_clear(&report);
    return st;
}

/* Whether a prompt's tokens are the same for all inputs is not known without memory: then they are computed for each. */
static void lab_runs(void **state)
{
    enum { N_FORWARDS = 5, N_MEMORISED = 10, N_QUESTIONS = 2 };
    char *dir = make_directory();
    (void)state;
    fail_each_but(N_FORWARDS * N_QUESTIONS, run_lab, dir, 100);
    fail_each_but(N_MEMORISED * N_QUESTIONS, run_memorise, "memorise", 100);
    remove_directory(dir);
}

/* Enough keys that each large array is a block of its own; some queries are out of the polynomial's range. */
static sp_status attend(const char *unused)
{
    enum { N_KEYS = 40000, N_QUERIES = 40, D = 4 };
    static float keys[N_KEYS * D], out[N_QUERIES * D];
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) keys[i] = (float)(i % 101) / 101 + (i < D ? 9 : 0);
    const sp_attention_head head = {
        .q = keys, .k = keys, .v = keys, .n_queries = N_QUERIES, .n_keys = N_KEYS, .d = D, .d_v = D, .scale = .03f};
    sp_certificate certificate;
    sp_fast *fast;
    (void)unused;
    sp_status st = sp_fast_create(&fast, &(sp_fast_options){.degree = 8});
    if (!st) st = sp_fast_attention(out, &certificate, fast, &head);
    if (!st) assert_true(certificate.n_exact > 0 && certificate.n_exact < N_QUERIES);
    sp_fast_free(fast);
    return st;
}

/* Heads side by side on two threads. */
static sp_status attend_to_heads(const char *unused)
{
    enum { N_HEADS = 3, N = 700, D = 4 };
    static float rows[N * D], outputs[N_HEADS][N * D];
    float *const out[] = {outputs[0], outputs[1], outputs[2]};
    sp_attention_head heads[N_HEADS];
    sp_fast *fast;
    (void)unused;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) rows[i] = (float)(i % 101) / 101;
    for (size_t h = 0; h < N_HEADS; h++)
        heads[h] = (sp_attention_head){.q = rows, .k = rows, .v = rows, .n_queries = N, .n_keys = N, .d = D, .d_v = D};
    sp_status st = sp_fast_create(&fast, &(sp_fast_options){.n_threads = 2});
    if (!st) st = sp_fast_attention_heads(out, NULL, fast, heads, N_HEADS);
    sp_fast_free(fast);
    return st;
}

static void fast_attention(void **state)
{
    enum { LARGE_BLOCKS = 3, OF_HEADS = 2 };
    (void)state;
    fail_each_but(LARGE_BLOCKS, attend, "attention", 4);
    fail_each_but(OF_HEADS, attend_to_heads, "heads", 5);
}

/* An append that failed appended nothing, and the next one gives the logits of a session that never failed. The append comes behind
 * a text that was cut, which makes an ensemble move rows first. */
static void check_session(sp_model *model, const sp_prompt *const *prompts, size_t n_prompts)
{
    enum { FEW = 3, MANY = 150 };
    static float expected[TINY_VOCAB], logits[TINY_VOCAB];
    int32_t tokens[FEW + MANY];
    for (size_t i = 0; i < ARRAY_LEN(tokens); i++) tokens[i] = (int32_t)(i * 7 % 256);
    for (size_t n = SIZE_MAX, failed = 1; failed; n++) { /* SIZE_MAX: none fails */
        sp_session *session;
        assert_int_equal(sp_session_create_ensemble(&session, model, prompts, n_prompts), SP_OK);
        assert_int_equal(sp_session_append(session, tokens, FEW + 1, NULL), SP_OK);
        sp_session_rewind(session, FEW);
        n_until_failure = n;
        sp_status st = sp_session_append(session, tokens + FEW, MANY, n == SIZE_MAX ? expected : logits);
        failed = n_until_failure == SIZE_MAX;
        n_until_failure = SIZE_MAX;
        assert_int_equal(st, n != SIZE_MAX && failed ? SP_ERR_MEMORY : SP_OK);
        assert_int_equal(sp_session_n_tokens(session), st ? FEW : FEW + MANY);
        if (st) assert_int_equal(sp_session_append(session, tokens + FEW, MANY, logits), SP_OK);
        if (n != SIZE_MAX) assert_memory_equal(logits, expected, sizeof expected);
        sp_session_free(session);
    }
}

static void sessions_go_on(void **state)
{
    static const sp_model_options options = {.n_threads = 1};
    char *dir = make_directory(), *path = write_tiny_model(dir);
    sp_model *model;
    sp_prompt *prompt;
    (void)state;
    if (sp_model_load(&model, path, &options)) fail_msg("%s", sp_message());
    if (sp_prompt_create(&prompt, model, &(sp_prompt_options){.num_virtual_tokens = 5})) fail_msg("%s", sp_message());
    const sp_prompt *twice[] = {prompt, prompt};
    check_session(model, NULL, 0);
    check_session(model, twice, 2);
    sp_prompt_free(prompt);
    sp_model_free(model);
    free(path);
    remove_directory(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_files),     cmocka_unit_test(safetensors_files), cmocka_unit_test(adapter_directories),
        cmocka_unit_test(hf_directories), cmocka_unit_test(tokenizers),        cmocka_unit_test(models),
        cmocka_unit_test(audits),         cmocka_unit_test(lab_runs),          cmocka_unit_test(fast_attention),
        cmocka_unit_test(sessions_go_on),
    };
    json_set_alloc_funcs(jansson_malloc, free);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
