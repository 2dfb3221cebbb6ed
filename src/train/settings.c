/* settings.c: options resolved, recorded and compared. One flat JSON object a section, so that comparing is one loop and a
 * difference has a name that the user knows: the option's. */
#include "train/settings.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/buffer.h"
#include "base/file.h"
#include "base/status.h"
#include "format/adapter.h"
#include "model/model.h"
#include "prompt/prompt.h"

static const char *const DECIDING[] = {"training", "distillation", "prompt", "task", "data", "model"};
static const char MACHINE[] = "machine";
enum { N_DECIDING = sizeof DECIDING / sizeof *DECIDING, DEFAULT_STEPS = 300, DEFAULT_EPOCHS = 3, DEFAULT_WARMUP = 10 };

static const char *const OPTIMIZERS[] = {[SP_ADAMW] = "adamw", [SP_ADAFACTOR] = "adafactor"};
static const char *const METHODS[] = {
    [SP_METHOD_PROMPT] = "prompt",   [SP_METHOD_PREFIX] = "prefix",       [SP_METHOD_CARTRIDGE] = "cartridge",
    [SP_METHOD_PTUNING] = "ptuning", [SP_METHOD_MULTITASK] = "multitask", [SP_METHOD_CPT] = "cpt"};
static const char *const ENCODERS[] = {[SP_ENCODER_MLP] = "mlp", [SP_ENCODER_LSTM] = "lstm"};
static const char *const SCHEDULES[] = {[SP_COSINE] = "cosine", [SP_LINEAR] = "linear", [SP_CONSTANT] = "constant"};
static const char *const INITS[] = {[SP_INIT_VOCAB] = "vocab", [SP_INIT_RANDOM] = "random", [SP_INIT_TEXT] = "text"};
static const char *const SOURCE_INITS[] = {
    [SP_SOURCE_AVERAGE] = "average", [SP_SOURCE_EXACT] = "exact", [SP_SOURCE_SHARED] = "shared"};
static const char *const WEIGHTED_LOSSES[] = {[SP_WEIGHTED_LOSS_NONE] = "none", [SP_WEIGHTED_LOSS_DECAY] = "decay"};
static const char *const SINKS[] = {[SP_SINK_NONE] = "none", [SP_SINK_BOS] = "bos"};

/* What differs from method to method, measured in docs/methods.md; every other default is the same. */
static const struct {
    double learning_rate;
} DEFAULTS[] = {
    [SP_METHOD_PROMPT] = {.learning_rate = 0.02},    [SP_METHOD_PREFIX] = {.learning_rate = 0.02},
    [SP_METHOD_CARTRIDGE] = {.learning_rate = 0.02}, [SP_METHOD_PTUNING] = {.learning_rate = 0.0003},
    [SP_METHOD_MULTITASK] = {.learning_rate = 0.02}, [SP_METHOD_CPT] = {.learning_rate = 0.01},
};
static const double NETWORK_LEARNING_RATE = 0.0003; /* of whatever method has one */

static const double DEFAULT_MAX_LOGIT_WEIGHT = 0.1; /* measured in docs/bounded-keys.md */

/* ---- options ---- */

static sp_status check_number(const char *name, double value, bool may_be_negative)
{
    if (isfinite(value) && (may_be_negative || value >= 0)) return SP_OK;
    return sp_fail(SP_ERR_ARGUMENT, "%s is %g; give a finite number%s", name, value, may_be_negative ? "" : " of at least 0");
}

bool sp_train_options_penalize(const sp_train_options *o)
{
    return o->max_logit > 0 && (!sp_method_is_given(o->prompt.method) || o->prompt.prefix_projection);
}

static sp_status check_penalty(const sp_train_options *o)
{
    if (o->key_rank)
        return sp_fail(SP_ERR_ARGUMENT,
                       "key_rank is a subspace that keys are projected onto, and of keys that come from embeddings or a network "
                       "there is but a penalty, which holds none; leave it out, or use method prefix or cartridge");
    if (o->prompt.sink == SP_SINK_BOS)
        return sp_fail(SP_ERR_ARGUMENT,
                       "max_logit counts every key, and that of a frozen copy of BOS lies far from all others; use no sink");
    return SP_OK;
}

static sp_status check_key_bound(const sp_train_options *o)
{
    const sp_prompt_options *p = &o->prompt;
    if (o->max_logit == 0 && o->key_rank == 0 && o->max_logit_weight == 0) return SP_OK;
    if (!(o->max_logit > 0) || !isfinite(o->max_logit))
        return sp_fail(SP_ERR_ARGUMENT, "max_logit is %g; give a number above 0: ln of the virtual tokens keeps the criterion",
                       o->max_logit);
    sp_status st = check_number("max_logit_weight", o->max_logit_weight, false);
    if (st) return st;
    if (sp_train_options_penalize(o)) return check_penalty(o);
    if (o->max_logit_weight > 0)
        return sp_fail(SP_ERR_ARGUMENT,
                       "max_logit_weight is of a penalty, and this method's keys are learnt themselves and projected: they are "
                       "inside whatever it is; leave it out");
    if (p->num_frozen_tokens && p->num_frozen_tokens != SIZE_MAX)
        return sp_fail(SP_ERR_ARGUMENT,
                       "max_logit bounds every key, and %zu tokens shall stay as they start; use num_frozen_tokens 0",
                       p->num_frozen_tokens);
    return SP_OK;
}

static sp_status check_options(const sp_train_options *o)
{
    sp_status st;
    if ((st = check_number("learning_rate", o->learning_rate, false)) ||
        (st = check_number("weight_decay", o->weight_decay, false)) ||
        (st = check_number("max_grad_norm", o->max_grad_norm, true)) || (st = check_number("epochs", o->epochs, false)))
        return st;
    if ((unsigned)o->optimizer > SP_ADAFACTOR || (unsigned)o->schedule > SP_CONSTANT || (unsigned)o->prompt.init > SP_INIT_TEXT ||
        (unsigned)o->prompt.sink > SP_SINK_BOS || (unsigned)o->prompt.method >= sizeof METHODS / sizeof *METHODS ||
        (unsigned)o->prompt.encoder_reparameterization_type > SP_ENCODER_LSTM ||
        (unsigned)o->prompt.source_init > SP_SOURCE_SHARED || (unsigned)o->prompt.opt_weighted_loss_type > SP_WEIGHTED_LOSS_DECAY)
        return sp_fail(
            SP_ERR_ARGUMENT,
            "optimizer, schedule, method, init, sink, encoder, source_init or opt_weighted_loss_type is none of the values of "
            "softprompt.h");
    if (o->cpt_examples && (o->prompt.method != SP_METHOD_CPT || o->prompt.n_cpt_tokens || o->prompt.init_text))
        return sp_fail(SP_ERR_ARGUMENT, "cpt_examples go with method cpt, and without another text to start from");
    if (o->steps && o->epochs > 0)
        return sp_fail(SP_ERR_ARGUMENT, "steps and epochs are both given (%zu, %g); give one of them", o->steps, o->epochs);
    if (o->resume && o->overwrite)
        return sp_fail(SP_ERR_ARGUMENT, "--resume and --overwrite exclude each other; the one goes on, the other begins again");
    return check_key_bound(o);
}

/* ceil(epochs * n_rows / examples a step); SIZE_MAX where that is beyond counting. */
static size_t steps_of_epochs(double epochs, size_t n_rows, size_t examples)
{
    double steps = ceil(epochs * (double)n_rows / (double)examples);
    return steps < 1 ? 1 : steps < 1e15 ? (size_t)steps : SIZE_MAX;
}

sp_status sp_train_options_resolve(sp_train_options *out, const sp_train_options *options, size_t n_rows)
{
    sp_status st = check_options(options);
    if (st) return st;
    sp_train_options o = *options;
    size_t examples;
    const bool by_text = o.prompt.method == SP_METHOD_CPT || o.prompt.init_prompt; /* as many virtual tokens as these have */
    if (o.prompt.num_virtual_tokens == 0 && !by_text) o.prompt.num_virtual_tokens = 32;
    if (o.prompt.method == SP_METHOD_CARTRIDGE && o.prompt.num_frozen_tokens == 0)
        o.prompt.num_frozen_tokens = o.max_logit > 0 ? SIZE_MAX : 1; /* bounded are all keys or none */
    if (o.learning_rate == 0)
        o.learning_rate =
            sp_prompt_options_have_network(&o.prompt) ? NETWORK_LEARNING_RATE : DEFAULTS[o.prompt.method].learning_rate;
    if (sp_train_options_penalize(&o) && o.max_logit_weight == 0) o.max_logit_weight = DEFAULT_MAX_LOGIT_WEIGHT;
    if (o.max_grad_norm == 0) o.max_grad_norm = 1;
    if (o.max_grad_norm < 0) o.max_grad_norm = -1;
    if (o.batch_size == 0) o.batch_size = 16;
    if (o.gradient_accumulation_steps == 0) o.gradient_accumulation_steps = 1;
    if (o.save_every == 0) o.save_every = 10;
    if (__builtin_mul_overflow(o.batch_size, o.gradient_accumulation_steps, &examples) || examples > UINT32_MAX)
        return sp_fail(SP_ERR_ARGUMENT, "batch_size %zu times gradient_accumulation_steps %zu: a step of more than %u examples",
                       o.batch_size, o.gradient_accumulation_steps, UINT32_MAX);
    if (o.steps == 0 && o.epochs == 0) {
        size_t short_run = steps_of_epochs(DEFAULT_EPOCHS, n_rows, examples);
        o.steps = short_run < DEFAULT_STEPS ? short_run : DEFAULT_STEPS;
    } else if (o.steps == 0) {
        o.steps = steps_of_epochs(o.epochs, n_rows, examples);
    }
    if (o.steps > UINT32_MAX) return sp_fail(SP_ERR_ARGUMENT, "steps: %zu are more than %u", o.steps, UINT32_MAX);
    if (o.warmup_steps == 0)
        o.warmup_steps = o.steps / 10 < DEFAULT_WARMUP ? o.steps / 10 : DEFAULT_WARMUP;
    else if (o.warmup_steps == SIZE_MAX)
        o.warmup_steps = 0;
    *out = o;
    return SP_OK;
}

/* ---- what the data are ---- */

/* Each string behind its length, so that no two rows run together; UINT64_MAX: absent, which is not empty. */
static void hash_string(XXH3_state_t *hash, const char *string)
{
    uint64_t n_bytes = string ? strlen(string) : UINT64_MAX;
    XXH3_64bits_update(hash, &n_bytes, sizeof n_bytes);
    if (string) XXH3_64bits_update(hash, string, n_bytes);
}

static void hash_row(XXH3_state_t *hash, const sp_row *row)
{
    unsigned char kind = (unsigned char)row->kind;
    XXH3_64bits_update(hash, &kind, 1);
    hash_string(hash, row->text);
    hash_string(hash, row->label);
    hash_string(hash, row->prompt);
    hash_string(hash, row->completion);
    if (row->task_id) XXH3_64bits_update(hash, &row->task_id, sizeof row->task_id);
    for (size_t i = 0; i < row->n_messages; i++) {
        hash_string(hash, row->messages[i].role);
        hash_string(hash, row->messages[i].content);
    }
}

/* {rows, hash}, or null without data. The contents count, not the file's name or format. */
static json_t *describe_data(const sp_dataset *data)
{
    if (!data) return json_null();
    XXH3_state_t *hash = XXH3_createState();
    if (!hash) return NULL;
    char hex[SP_SETTINGS_HASH_BYTES];
    size_t n = sp_dataset_n_rows(data);
    XXH3_64bits_reset(hash);
    for (size_t i = 0; i < n; i++) hash_row(hash, sp_dataset_row(data, i));
    snprintf(hex, sizeof hex, "%016" PRIx64, (uint64_t)XXH3_64bits_digest(hash));
    XXH3_freeState(hash);
    return json_pack("{s:I, s:s}", "rows", (json_int_t)n, "hash", hex);
}

/* ---- settings.json ---- */

static json_t *describe_key_bound(const sp_train_options *o)
{
    if (o->max_logit == 0) return json_object();
    if (sp_train_options_penalize(o))
        return json_pack("{s:f, s:f}", "max_logit", o->max_logit, "max_logit_weight", o->max_logit_weight);
    return json_pack("{s:f, s:I}", "max_logit", o->max_logit, "key_rank", (json_int_t)o->key_rank);
}

static json_t *describe_training(const sp_train_options *o)
{
    char seed[24]; /* as a string: JSON numbers above 2^53 do not survive every reader */
    snprintf(seed, sizeof seed, "%" PRIu64, o->seed);
    return json_pack("{s:s, s:s, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:s, s:I, s:I, s:I}", "optimizer", OPTIMIZERS[o->optimizer],
                     "schedule", SCHEDULES[o->schedule], "learning_rate", o->learning_rate, "weight_decay", o->weight_decay,
                     "max_grad_norm", o->max_grad_norm, "batch_size", (json_int_t)o->batch_size, "gradient_accumulation_steps",
                     (json_int_t)o->gradient_accumulation_steps, "steps", (json_int_t)o->steps, "warmup_steps",
                     (json_int_t)o->warmup_steps, "seed", seed, "eval_every", (json_int_t)o->eval_every, "early_stopping_patience",
                     (json_int_t)o->early_stopping_patience, "save_every", (json_int_t)o->save_every);
}

/* Of the text its hash: it may be long. */
static json_t *describe_distillation(const sp_train_options *o)
{
    if (!o->teacher_context) return json_pack("{s:n}", "teacher_context");
    char hash[SP_SETTINGS_HASH_BYTES];
    snprintf(hash, sizeof hash, "%016" PRIx64, (uint64_t)XXH3_64bits(o->teacher_context, strlen(o->teacher_context)));
    return json_pack("{s:s, s:I, s:I}", "teacher_context", hash, "num_queries", (json_int_t)o->num_queries, "query_length",
                     (json_int_t)o->query_length);
}

/* Adds what the method has beside the others. False: no memory. */
static bool describe_method(json_t *prompt, const sp_prompt_options *o, const sp_model *model)
{
    bool ok = true;
    if (o->method == SP_METHOD_CARTRIDGE) {
        size_t n_frozen = o->num_frozen_tokens == SIZE_MAX ? 0 : o->num_frozen_tokens;
        ok = json_object_set_new(prompt, "num_frozen_tokens", json_integer((json_int_t)n_frozen)) == 0;
    }
    if (ok && o->text_position) ok = json_object_set_new(prompt, "text_position", json_integer((json_int_t)o->text_position)) == 0;
    if (ok && o->method == SP_METHOD_PREFIX)
        ok = json_object_set_new(prompt, "prefix_projection", json_boolean(o->prefix_projection)) == 0;
    if (o->method == SP_METHOD_PTUNING)
        ok = json_object_set_new(prompt, "encoder_reparameterization_type",
                                 json_string(ENCODERS[o->encoder_reparameterization_type])) == 0 &&
             json_object_set_new(prompt, "encoder_num_layers", json_integer((json_int_t)sp_prompt_encoder_num_layers(o))) == 0;
    if (ok && sp_prompt_options_have_network(o))
        ok = json_object_set_new(prompt, "encoder_hidden_size",
                                 json_integer((json_int_t)sp_prompt_encoder_hidden_size(o, model))) == 0;
    return ok;
}

/* Adds the members of `more`, which it uses up; NULL: no memory, or one of them was NULL. */
static json_t *with_members(json_t *object, json_t *more)
{
    const bool ok = object && more && json_object_update(object, more) == 0;
    json_decref(more);
    if (ok) return object;
    json_decref(object);
    return NULL;
}

static json_t *describe_source(const sp_prompt_options *o, const char *hash)
{
    if (!o->init_prompt) return json_object();
    if (o->method != SP_METHOD_MULTITASK) return json_pack("{s:s}", "source_hash", hash);
    return json_pack("{s:s, s:s, s:I}", "source_hash", hash, "source_init", SOURCE_INITS[o->source_init], "source_task",
                     (json_int_t)o->source_task);
}

static json_t *describe_cpt(const sp_train_options *options)
{
    const sp_prompt_options *o = &options->prompt;
    return json_pack("{s:I, s:s, s:f, s:f, s:f}", "cpt_examples", (json_int_t)options->cpt_examples, "opt_weighted_loss_type",
                     WEIGHTED_LOSSES[o->opt_weighted_loss_type], "opt_loss_decay_factor", o->opt_loss_decay_factor,
                     "opt_projection_epsilon", o->opt_projection_epsilon, "opt_projection_format_epsilon",
                     o->opt_projection_format_epsilon);
}

static json_t *describe_prompt(const sp_train_options *options, const char *source_hash, const sp_model *model)
{
    const sp_prompt_options *o = &options->prompt;
    char seed[24];
    snprintf(seed, sizeof seed, "%" PRIu64, o->seed);
    json_t *prompt = json_pack(
        "{s:s, s:I, s:s, s:s?, s:s, s:s}", "method", METHODS[o->method], "num_virtual_tokens", (json_int_t)o->num_virtual_tokens,
        "init", INITS[o->method == SP_METHOD_CPT ? SP_INIT_TEXT : o->init], "init_text",
        o->init == SP_INIT_TEXT || o->method == SP_METHOD_CPT ? o->init_text : NULL, "sink", SINKS[o->sink], "init_seed", seed);
    if (prompt && !describe_method(prompt, o, model)) {
        json_decref(prompt);
        return NULL;
    }
    if (o->method == SP_METHOD_CPT) return with_members(with_members(prompt, describe_cpt(options)), describe_key_bound(options));
    if (o->method == SP_METHOD_MULTITASK)
        prompt = with_members(
            prompt, json_pack("{s:I, s:I}", "num_tasks", (json_int_t)o->num_tasks, "num_ranks", (json_int_t)o->num_ranks));
    prompt = with_members(prompt, describe_key_bound(options));
    return with_members(prompt, describe_source(o, source_hash));
}

static json_t *describe_task(const sp_task *task)
{
    json_t *verbalizers = json_array();
    for (size_t i = 0; verbalizers && i < task->n_verbalizers; i++)
        if (json_array_append_new(verbalizers, json_pack("[s, s]", task->verbalizers[i].label, task->verbalizers[i].text))) {
            json_decref(verbalizers);
            return NULL;
        }
    return json_pack("{s:s?, s:o, s:I}", "template", task->template_text, "verbalizers", verbalizers, "max_length",
                     (json_int_t)task->max_length);
}

static json_t *describe_model(const sp_model *model)
{
    sp_model_info info;
    sp_fingerprint print = sp_model_fingerprint(model);
    char tokenizer[17], embeddings[17];
    sp_model_get_info(&info, model);
    snprintf(tokenizer, sizeof tokenizer, "%016" PRIx64, print.tokenizer);
    snprintf(embeddings, sizeof embeddings, "%016" PRIx64, print.embeddings);
    return json_pack("{s:s, s:I, s:s, s:s, s:I, s:I, s:I, s:s}", "architecture", info.architecture, "file_bytes",
                     (json_int_t)info.file_bytes, "tokenizer", tokenizer, "embeddings", embeddings, "n_layer",
                     (json_int_t)print.n_layer, "d_model", (json_int_t)print.d_model, "n_vocab", (json_int_t)print.n_vocab,
                     "compute", sp_model_compute(model) == SP_COMPUTE_BF16 ? "bf16" : "f32");
}

static json_t *describe_machine(const sp_model *model)
{
    sp_machine machine;
    sp_machine_describe(&machine);
    return json_pack("{s:s, s:s, s:s, s:i}", "softprompt", sp_version(), "cpu", machine.cpu, "kernels", machine.kernels,
                     "n_threads", sp_model_n_threads(model));
}

/* Of the tensors that a source has; "" without one. */
static sp_status hash_source(char out[SP_SETTINGS_HASH_BYTES], const char *dir)
{
    char *path = NULL;
    sp_mapped_file file;
    *out = 0;
    if (!dir) return SP_OK;
    sp_status st = (path = sp_path_join(dir, SP_ADAPTER_TENSORS)) ? sp_map_file(&file, path) : SP_ERR_MEMORY;
    free(path);
    if (st) return st;
    snprintf(out, SP_SETTINGS_HASH_BYTES, "%016" PRIx64, (uint64_t)XXH3_64bits(file.bytes, file.size));
    sp_unmap_file(&file);
    return SP_OK;
}

sp_status sp_settings_create(json_t **out, const sp_run_inputs *inputs)
{
    sp_model_info info;
    char source_hash[SP_SETTINGS_HASH_BYTES];
    *out = NULL;
    sp_status st = hash_source(source_hash, inputs->options->prompt.init_prompt);
    if (st) return st;
    sp_model_get_info(&info, inputs->model);
    *out = json_pack("{s:o, s:o, s:o, s:o, s:{s:o, s:o}, s:o, s:o, s:{s:s}}", "training", describe_training(inputs->options),
                     "distillation", describe_distillation(inputs->options), "prompt",
                     describe_prompt(inputs->options, source_hash, inputs->model), "task", describe_task(inputs->task), "data",
                     "train", describe_data(inputs->train), "eval", describe_data(inputs->eval), "model",
                     describe_model(inputs->model), MACHINE, describe_machine(inputs->model), "files", "model", info.path);
    return *out ? SP_OK : sp_fail_no_memory(1 << 12);
}

/* ---- comparing ---- */

/* "learning_rate (saved 0.02, now 0.01)" */
static sp_status add_difference(sp_buffer *list, const char *name, const json_t *saved, const json_t *now)
{
    const size_t flags = JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9);
    char *before = NULL, *after = NULL;
    sp_status st = saved ? sp_json_dump(&before, saved, flags) : SP_OK;
    if (!st && now) st = sp_json_dump(&after, now, flags);
    if (!st)
        st = sp_buffer_printf(list, "%s%s (saved %.80s, now %.80s)", list->n_bytes ? ", " : "", name, before ? before : "none",
                              after ? after : "none");
    free(before);
    free(after);
    return st;
}

static sp_status compare_section(sp_buffer *list, const json_t *saved, const json_t *now)
{
    const char *name;
    json_t *value;
    sp_status st = SP_OK;
    json_object_foreach((json_t *)(uintptr_t)now, name, value)
    {
        const json_t *before = json_object_get(saved, name);
        if (!st && !(before && json_equal(before, value))) st = add_difference(list, name, before, value);
    }
    json_object_foreach((json_t *)(uintptr_t)saved, name, value)
    {
        if (!st && !json_object_get(now, name)) st = add_difference(list, name, value, NULL);
    }
    return st;
}

sp_status sp_settings_compare(const json_t *saved, const json_t *now, const char *path, const sp_logger *logger)
{
    sp_buffer list = {0};
    sp_status st = SP_OK;
    for (size_t i = 0; i < N_DECIDING && !st; i++)
        st = compare_section(&list, json_object_get(saved, DECIDING[i]), json_object_get(now, DECIDING[i]));
    if (!st && list.n_bytes) {
        st = sp_fail(SP_ERR_MISMATCH,
                     "%s: the run there was started with other settings: %s; resume with the saved ones, or "
                     "begin again with --overwrite",
                     path, list.bytes);
    } else if (!st) {
        st = compare_section(&list, json_object_get(saved, MACHINE), json_object_get(now, MACHINE));
        if (!st && list.n_bytes)
            sp_log(logger, SP_LOG_WARNING, "%s: the run was started elsewhere: %s; the result may differ in its last digits", path,
                   list.bytes);
    }
    sp_buffer_free(&list);
    return st;
}

sp_status sp_settings_hash(char out[SP_SETTINGS_HASH_BYTES], const json_t *settings)
{
    sp_buffer text = {0};
    sp_status st = SP_OK;
    for (size_t i = 0; i < N_DECIDING && !st; i++) {
        char *section;
        st = sp_json_dump(&section, json_object_get(settings, DECIDING[i]), JSON_COMPACT | JSON_SORT_KEYS);
        if (!st) st = sp_buffer_add_string(&text, section);
        free(section);
    }
    if (!st) snprintf(out, SP_SETTINGS_HASH_BYTES, "%016" PRIx64, (uint64_t)XXH3_64bits(text.bytes, text.n_bytes));
    sp_buffer_free(&text);
    return st;
}
