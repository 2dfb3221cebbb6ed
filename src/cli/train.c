/* train.c: softprompt train. Flags -> sp_train_options -> sp_train -> a short report.
 * Flags that contradict each other are refused before the model is opened; everything else is the library's to check. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "inputs.h"
#include "progress.h"
#include "report.h"

static const size_t not_given = SIZE_MAX;

typedef struct train_flags {
    model_flags model;
    const char *data, *eval, *out;
    bool resume, overwrite;
    int method;
    size_t num_virtual_tokens, num_frozen_tokens, text_position;
    int init;
    const char *init_text;
    int sink;
    bool prefix_projection;
    int encoder_type;
    size_t encoder_hidden_size, encoder_num_layers;
    size_t num_tasks, num_ranks, source_task;
    const char *init_prompt;
    int source_init;
    size_t cpt_examples;
    int opt_weighted_loss_type;
    double opt_loss_decay_factor, opt_projection_epsilon, opt_projection_format_epsilon;
    task_flags task;
    int optimizer, schedule;
    double learning_rate, weight_decay, max_grad_norm, epochs;
    size_t batch_size, gradient_accumulation_steps, steps, warmup_steps, seed;
    size_t eval_every, early_stopping_patience, save_every;
    const char *teacher_context;
    size_t num_queries, query_length;
    double max_logit, max_logit_weight;
    size_t key_rank;
    output_flags output;
} train_flags;

/* Words of a choice stand in the order of the library's enum. */
enum { INIT_UNSAID = -1, UNSAID = -1 };

static const option_row file_rows[] = {
    {OPTION_STRING, 'd', "data", "FILE", "training data: JSONL, CSV or TSV", .target = offsetof(train_flags, data)},
    {OPTION_STRING, 'e', "eval", "FILE", "data to evaluate on, during training and after it",
     .target = offsetof(train_flags, eval)},
    {OPTION_STRING, 'o', "output", "DIR", "where the adapter and its run go", .target = offsetof(train_flags, out),
     .required = true},
    {OPTION_FLAG, 0, "resume", .help = "go on from the last checkpoint in DIR, with the same flags",
     .target = offsetof(train_flags, resume)},
    {OPTION_FLAG, 0, "overwrite", .help = "throw away the run that is in DIR", .target = offsetof(train_flags, overwrite)},
    {0}};

static const option_row prompt_rows[] = {
    {OPTION_CHOICE, 0, "method", "prompt|prefix|cartridge|ptuning|multitask|cpt", "what is learnt; see docs/methods.md",
     .fallback = "prompt", .target = offsetof(train_flags, method)},
    {OPTION_COUNT, 0, "num-virtual-tokens", "N", "rows of the prompt, a sink included", .fallback = "32; cpt: the text's tokens",
     .target = offsetof(train_flags, num_virtual_tokens), .min = 1, .max = 1e6},
    {OPTION_CHOICE, 0, "init", "vocab|random|text", "start from random tokens, noise or a text", .fallback = "vocab",
     .target = offsetof(train_flags, init)},
    {OPTION_TEXT, 0, "init-text", "TEXT", "the text to start from; implies --init text",
     .target = offsetof(train_flags, init_text)},
    {OPTION_STRING, 0, "init-prompt", "DIR", "start from what this adapter has learnt",
     .target = offsetof(train_flags, init_prompt)},
    {OPTION_CHOICE, 0, "sink", "none|bos", "prompt: the first row is a frozen copy of BOS", .fallback = "none",
     .target = offsetof(train_flags, sink)},
    {OPTION_COUNT, 0, "num-frozen-tokens", "N", "cartridge: first rows that stay as they start", .fallback = "1",
     .target = offsetof(train_flags, num_frozen_tokens), .max = 1e6},
    {OPTION_COUNT, 0, "text-position", "N", "prefix, cartridge: where text starts", .fallback = "behind the prompt",
     .target = offsetof(train_flags, text_position), .min = 1, .max = 1e9},
    {OPTION_FLAG, 0, "prefix-projection", .help = "prefix: a network makes the keys and values",
     .target = offsetof(train_flags, prefix_projection)},
    {OPTION_CHOICE, 0, "encoder-reparameterization-type", "mlp|lstm", "ptuning: the network", .fallback = "mlp",
     .target = offsetof(train_flags, encoder_type)},
    {OPTION_COUNT, 0, "encoder-hidden-size", "N", "of the network", .fallback = "as wide as an embedding",
     .target = offsetof(train_flags, encoder_hidden_size), .min = 1, .max = 65536},
    {OPTION_COUNT, 0, "encoder-num-layers", "N", "of an lstm", .fallback = "2", .target = offsetof(train_flags, encoder_num_layers),
     .min = 1, .max = 8},
    {0}};

static const option_row multitask_rows[] = {
    {OPTION_COUNT, 0, "num-tasks", "N", "tasks that share the prompt", .fallback = "as many as the data name",
     .target = offsetof(train_flags, num_tasks), .min = 1, .max = 1024},
    {OPTION_COUNT, 0, "num-ranks", "N", "rank of each task's matrix", .fallback = "1, or the source's",
     .target = offsetof(train_flags, num_ranks), .min = 1, .max = 1024},
    {OPTION_CHOICE, 0, "source-init", "average|exact|shared", "its tasks' mean, one of them, what they share",
     .fallback = "average", .target = offsetof(train_flags, source_init)},
    {OPTION_COUNT, 0, "source-task", "K", "the one of --source-init exact", .fallback = "0",
     .target = offsetof(train_flags, source_task), .max = 1e6},
    {0}};

static const option_row cpt_rows[] = {
    {OPTION_COUNT, 0, "cpt-examples", "N", "start from N rows of DATA with their answers, instead of --init-text",
     .target = offsetof(train_flags, cpt_examples), .min = 1, .max = 1e6},
    {OPTION_CHOICE, 0, "opt-weighted-loss-type", "none|decay", "how much answers inside the prompt count", .fallback = "none",
     .target = offsetof(train_flags, opt_weighted_loss_type)},
    {OPTION_REAL, 0, "opt-loss-decay-factor", "X", "of decay, from example to example", .fallback = "1",
     .target = offsetof(train_flags, opt_loss_decay_factor), .min = 1e-9, .max = 1e3},
    {OPTION_REAL, 0, "opt-projection-epsilon", "X", "how far tokens of a text may move; 0: not", .fallback = "0.1",
     .target = offsetof(train_flags, opt_projection_epsilon), .max = 1e6},
    {OPTION_REAL, 0, "opt-projection-format-epsilon", "X", "the same of tokens of the template", .fallback = "0.1",
     .target = offsetof(train_flags, opt_projection_format_epsilon), .max = 1e6},
    {0}};

static const option_row training_rows[] = {
    {OPTION_COUNT, 0, "steps", "N", "optimiser steps", .fallback = "300, or 3 epochs if fewer",
     .target = offsetof(train_flags, steps), .min = 1, .max = 1e9},
    {OPTION_REAL, 0, "epochs", "X", "passes over the data, instead of --steps", .target = offsetof(train_flags, epochs),
     .min = 1e-6, .max = 1e6},
    {OPTION_COUNT, 0, "batch-size", "N", "rows in one pass", .fallback = "16", .target = offsetof(train_flags, batch_size),
     .min = 1, .max = 1e6},
    {OPTION_COUNT, 0, "gradient-accumulation-steps", "N", "passes before a step", .fallback = "1",
     .target = offsetof(train_flags, gradient_accumulation_steps), .min = 1, .max = 1e6},
    {OPTION_CHOICE, 0, "optimizer", "adamw|adafactor", "what turns gradients into steps", .fallback = "adamw",
     .target = offsetof(train_flags, optimizer)},
    {OPTION_REAL, 0, "learning-rate", "X", "at its peak", .fallback = "0.02; see docs/methods.md",
     .target = offsetof(train_flags, learning_rate), .min = 1e-12, .max = 1e3},
    {OPTION_CHOICE, 0, "schedule", "cosine|linear|constant", "after the warm-up", .fallback = "cosine",
     .target = offsetof(train_flags, schedule)},
    {OPTION_COUNT, 0, "warmup-steps", "N", "steps up to the peak", .fallback = "10, at most a tenth",
     .target = offsetof(train_flags, warmup_steps), .max = 1e9},
    {OPTION_REAL, 0, "weight-decay", "X", "decoupled, as in AdamW", .fallback = "0", .target = offsetof(train_flags, weight_decay),
     .max = 1e3},
    {OPTION_REAL, 0, "max-grad-norm", "X", "clip the gradient to this norm; 0: never", .fallback = "1",
     .target = offsetof(train_flags, max_grad_norm), .max = 1e9},
    {OPTION_COUNT, 0, "seed", "N", "of initialisation and shuffling", .fallback = "0", .target = offsetof(train_flags, seed)},
    {OPTION_COUNT, 0, "eval-every", "N", "evaluate every N steps, keep the best; 0: at the end", .fallback = "0",
     .target = offsetof(train_flags, eval_every)},
    {OPTION_COUNT, 0, "early-stopping-patience", "N", "stop after N evaluations without gain; 0: never", .fallback = "0",
     .target = offsetof(train_flags, early_stopping_patience)},
    {OPTION_COUNT, 0, "save-every", "N", "steps between checkpoints", .fallback = "10", .target = offsetof(train_flags, save_every),
     .min = 1},
    {0}};

static const option_row bound_rows[] = {
    {OPTION_REAL, 0, "max-logit", "R", "bound on the centred scores of the prompt's keys, or a penalty's aim",
     .target = offsetof(train_flags, max_logit), .min = 1e-6, .max = 1e6},
    {OPTION_REAL, 0, "max-logit-weight", "X", "of the penalty: prompt, ptuning, multitask, cpt", .fallback = "0.1",
     .target = offsetof(train_flags, max_logit_weight), .min = 1e-9, .max = 1e9},
    {OPTION_COUNT, 0, "key-rank", "N", "prefix, cartridge: dimensions a head's keys may differ in", .fallback = "all",
     .target = offsetof(train_flags, key_rank), .min = 1, .max = 65536},
    {0}};

static const option_row distillation_rows[] = {
    {OPTION_STRING, 0, "teacher-context", "FILE", "a text; the prompt learns to stand for it, on DATA or without",
     .target = offsetof(train_flags, teacher_context)},
    {OPTION_COUNT, 0, "num-queries", "N", "without DATA: continuations that the model samples", .fallback = "512",
     .target = offsetof(train_flags, num_queries), .min = 1, .max = 1e6},
    {OPTION_COUNT, 0, "query-length", "N", "tokens of each", .fallback = "64", .target = offsetof(train_flags, query_length),
     .min = 2, .max = 1e6},
    {0}};

static const option_group groups[] = {{"model", model_rows, offsetof(train_flags, model)},
                                      {"files", file_rows, 0},
                                      {"prompt", prompt_rows, 0},
                                      {"method multitask", multitask_rows, 0},
                                      {"method cpt: a text whose embeddings move", cpt_rows, 0},
                                      {"task: how a row becomes text", task_rows, offsetof(train_flags, task)},
                                      {"training", training_rows, 0},
                                      {"keys inside the criterion; see docs/bounded-keys.md", bound_rows, 0},
                                      {"distillation: a prompt in place of a text", distillation_rows, 0},
                                      {"output", output_rows, offsetof(train_flags, output)},
                                      {0}};

/* ---- from flags to options ---------------------------------------------------------------------------------------- */

static int check_distillation(const command *self, const train_flags *flags)
{
    bool sampled = flags->teacher_context && !flags->data;
    if (!flags->data && !flags->teacher_context) return usage_error(self, "-d, --data FILE is missing");
    if (sampled || (!flags->num_queries && !flags->query_length)) return EXIT_DONE;
    return usage_error(self, "--%s goes with --teacher-context FILE and without --data: then queries are sampled",
                       flags->num_queries ? "num-queries" : "query-length");
}

static int check_encoder_flags(const command *self, const train_flags *flags)
{
    const bool is_ptuning = flags->method == SP_METHOD_PTUNING;
    if (flags->prefix_projection && flags->method != SP_METHOD_PREFIX)
        return usage_error(self, "--prefix-projection goes with --method prefix only");
    if (flags->encoder_type == SP_ENCODER_LSTM && !is_ptuning)
        return usage_error(self, "--encoder-reparameterization-type goes with --method ptuning only");
    if (flags->encoder_hidden_size && !is_ptuning && !flags->prefix_projection)
        return usage_error(self, "--encoder-hidden-size goes with --method ptuning, and with --prefix-projection");
    if (flags->encoder_num_layers && flags->encoder_type != SP_ENCODER_LSTM)
        return usage_error(self, "--encoder-num-layers goes with --encoder-reparameterization-type lstm; an mlp has its two");
    return EXIT_DONE;
}

static int check_multitask(const command *self, const train_flags *flags)
{
    const bool other = flags->num_tasks || flags->num_ranks || flags->source_init != UNSAID || flags->source_task != not_given;
    if (other && flags->method != SP_METHOD_MULTITASK)
        return usage_error(self, "--num-tasks, --num-ranks and --source-... go with --method multitask only");
    if (!flags->init_prompt && (flags->source_init != UNSAID || flags->source_task != not_given))
        return usage_error(self, "--source-init and --source-task say what is taken of a source: give --init-prompt DIR");
    if (flags->source_task != not_given && flags->source_init != SP_SOURCE_EXACT)
        return usage_error(self, "--source-task goes with --source-init exact only");
    return EXIT_DONE;
}

static int check_cpt(const command *self, const train_flags *flags)
{
    const bool other = flags->cpt_examples || flags->opt_weighted_loss_type != UNSAID || flags->opt_loss_decay_factor > 0 ||
                       flags->opt_projection_epsilon >= 0 || flags->opt_projection_format_epsilon >= 0;
    if (flags->method != SP_METHOD_CPT)
        return other ? usage_error(self, "--cpt-examples and --opt-... go with --method cpt only") : EXIT_DONE;
    if (flags->init != INIT_UNSAID && flags->init != SP_INIT_TEXT)
        return usage_error(self, "--method cpt starts from a text: give --init-text TEXT or --cpt-examples N");
    if (!flags->init_text == !flags->cpt_examples)
        return usage_error(self, "--method cpt starts from --init-text TEXT or from --cpt-examples N: give one of them");
    if (flags->cpt_examples && flags->num_virtual_tokens)
        return usage_error(self, "--cpt-examples has as many virtual tokens as the rows have: leave out --num-virtual-tokens");
    if (flags->cpt_examples && !flags->data) return usage_error(self, "--cpt-examples are rows of training data: give -d FILE");
    if (flags->opt_loss_decay_factor > 0 && flags->opt_weighted_loss_type == SP_WEIGHTED_LOSS_NONE)
        return usage_error(self, "--opt-loss-decay-factor goes with --opt-weighted-loss-type decay only");
    return EXIT_DONE;
}

/* Keys that come from embeddings, or from a network. */
static int check_penalty(const command *self, const train_flags *flags)
{
    if (flags->key_rank)
        return usage_error(self, "--key-rank bounds keys that are learnt themselves: it goes with --method prefix and cartridge, "
                                 "without --prefix-projection");
    if (flags->sink == SP_SINK_BOS)
        return usage_error(self, "--max-logit counts every key, and BOS's lies far from all others: it goes with --sink none");
    return EXIT_DONE;
}

static int check_bound(const command *self, const train_flags *flags)
{
    const bool own_keys = flags->method == SP_METHOD_PREFIX || flags->method == SP_METHOD_CARTRIDGE;
    if (flags->max_logit == 0 && (flags->key_rank || flags->max_logit_weight > 0))
        return usage_error(self, "--%s goes with --max-logit R", flags->key_rank ? "key-rank" : "max-logit-weight");
    if (flags->max_logit == 0) return EXIT_DONE;
    if (!own_keys || flags->prefix_projection) return check_penalty(self, flags);
    if (flags->max_logit_weight > 0)
        return usage_error(self, "--max-logit-weight is of a penalty: --method prefix and cartridge have a bound that needs none");
    if (flags->num_frozen_tokens != not_given && flags->num_frozen_tokens > 0)
        return usage_error(self, "--max-logit bounds every key: it goes with --num-frozen-tokens 0, its default then");
    return EXIT_DONE;
}

static int check_flags(const command *self, train_flags *flags)
{
    bool text = flags->init == SP_INIT_TEXT, has_eval = flags->eval || flags->teacher_context;
    int code;
    if ((code = check_distillation(self, flags)) || (code = check_multitask(self, flags)) || (code = check_cpt(self, flags)) ||
        (code = check_bound(self, flags)))
        return code;
    if (flags->resume && flags->overwrite) return usage_error(self, "--resume and --overwrite contradict each other: give one");
    if (flags->steps && flags->epochs > 0) return usage_error(self, "--steps and --epochs contradict each other: give one");
    if (flags->init_prompt && (flags->init != INIT_UNSAID || flags->init_text))
        return usage_error(self, "--init-prompt and --init contradict each other: give one");
    if (flags->init_prompt && (flags->method == SP_METHOD_CPT || flags->sink == SP_SINK_BOS))
        return usage_error(self, "--init-prompt goes neither with --method cpt nor with --sink bos");
    if (flags->init == INIT_UNSAID)
        flags->init = flags->init_text ? SP_INIT_TEXT : SP_INIT_VOCAB;
    else if (flags->init_text && !text)
        return usage_error(self, "--init-text needs --init text");
    if (text && !flags->init_text) return usage_error(self, "--init text needs --init-text TEXT");
    if (flags->sink == SP_SINK_BOS && flags->method != SP_METHOD_PROMPT)
        return usage_error(self, "--sink bos is a row of embeddings and goes with --method prompt only");
    if (flags->num_frozen_tokens != not_given && flags->method != SP_METHOD_CARTRIDGE)
        return usage_error(self, "--num-frozen-tokens goes with --method cartridge only");
    if (flags->text_position && flags->method != SP_METHOD_PREFIX && flags->method != SP_METHOD_CARTRIDGE)
        return usage_error(self, "--text-position goes with --method prefix and cartridge only");
    if (check_encoder_flags(self, flags)) return EXIT_USAGE;
    if (flags->sink == SP_SINK_BOS && flags->num_virtual_tokens == 1)
        return usage_error(self,
                           "--num-virtual-tokens 1 leaves nothing to learn beside --sink bos, which is counted: give 2 or more");
    if (flags->eval_every && !has_eval) return usage_error(self, "--eval-every needs data to evaluate on: give -e FILE");
    if (flags->early_stopping_patience && !flags->eval_every)
        return usage_error(self, "--early-stopping-patience counts evaluations during training: give --eval-every N and -e FILE");
    return EXIT_DONE;
}

/* In sp_train_options 0 means the default, on the command line it means none. */
static size_t or_none(size_t given)
{
    return given == not_given ? 0 : given == 0 ? SIZE_MAX : given;
}

/* The same of numbers below 0 where nothing was given. */
static double real_or_none(double given)
{
    return given > 0 ? given : given < 0 ? 0 : -1;
}

static sp_weighted_loss weighted_loss_type(const train_flags *flags)
{
    if (flags->opt_weighted_loss_type != UNSAID) return (sp_weighted_loss)flags->opt_weighted_loss_type;
    return flags->opt_loss_decay_factor > 0 ? SP_WEIGHTED_LOSS_DECAY : SP_WEIGHTED_LOSS_NONE;
}

static sp_train_options make_options(const train_flags *flags, const sp_task *task, const char *teacher_context)
{
    return (sp_train_options){
        .prompt = {.method = (sp_method)flags->method,
                   .num_virtual_tokens = flags->num_virtual_tokens,
                   .num_frozen_tokens = or_none(flags->num_frozen_tokens),
                   .init = (sp_init)flags->init,
                   .init_text = flags->init_text,
                   .sink = (sp_sink)flags->sink,
                   .seed = flags->seed,
                   .text_position = flags->text_position,
                   .encoder_reparameterization_type = (sp_encoder_type)flags->encoder_type,
                   .encoder_hidden_size = flags->encoder_hidden_size,
                   .encoder_num_layers = flags->encoder_num_layers,
                   .prefix_projection = flags->prefix_projection,
                   .num_tasks = flags->num_tasks,
                   .num_ranks = flags->num_ranks,
                   .init_prompt = flags->init_prompt,
                   .source_init = flags->source_init == UNSAID ? SP_SOURCE_AVERAGE : (sp_source_init)flags->source_init,
                   .source_task = flags->source_task == not_given ? 0 : flags->source_task,
                   .opt_weighted_loss_type = weighted_loss_type(flags),
                   .opt_loss_decay_factor = flags->opt_loss_decay_factor,
                   .opt_projection_epsilon = real_or_none(flags->opt_projection_epsilon),
                   .opt_projection_format_epsilon = real_or_none(flags->opt_projection_format_epsilon)},
        .cpt_examples = flags->cpt_examples,
        .task = *task,
        .optimizer = (sp_optimizer)flags->optimizer,
        .schedule = (sp_schedule)flags->schedule,
        .learning_rate = flags->learning_rate,
        .weight_decay = flags->weight_decay,
        .max_grad_norm = flags->max_grad_norm > 0 ? flags->max_grad_norm : -1,
        .batch_size = flags->batch_size,
        .gradient_accumulation_steps = flags->gradient_accumulation_steps,
        .steps = flags->steps,
        .epochs = flags->epochs,
        .warmup_steps = or_none(flags->warmup_steps),
        .seed = flags->seed,
        .eval_every = flags->eval_every,
        .early_stopping_patience = flags->early_stopping_patience,
        .save_every = flags->save_every,
        .resume = flags->resume,
        .overwrite = flags->overwrite,
        .teacher_context = teacher_context,
        .num_queries = flags->num_queries,
        .query_length = flags->query_length,
        .max_logit = flags->max_logit,
        .max_logit_weight = flags->max_logit_weight,
        .key_rank = flags->key_rank,
    };
}

/* ---- what is said ------------------------------------------------------------------------------------------------- */

/* The command line, as a shell takes it, that goes on with this run; free. argv is still as the user gave it. */
static char *resume_command(int argc, char **argv)
{
    char *line = NULL;
    size_t n_bytes;
    FILE *stream = open_memstream(&line, &n_bytes);
    if (!stream) return NULL;
    print_quoted(stream, program_invocation_name);
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--resume") == 0 || strcmp(argv[i], "--overwrite") == 0) continue;
        fputc(' ', stream);
        print_quoted(stream, argv[i]);
    }
    fputs(" --resume", stream);
    fclose(stream);
    return line;
}

static json_t *distillation_json(const sp_distillation *d)
{
    json_t *object = json_object();
    json_member(&object, "context_tokens", json_integer((json_int_t)d->n_context));
    json_member(&object, "queries", json_integer((json_int_t)d->n_queries));
    json_member(&object, "held_out", json_boolean(d->are_held_out));
    json_member(&object, "kl_without_prompt", json_finite(d->kl_without_prompt));
    json_member(&object, "kl_at_start", json_finite(d->kl_at_start));
    json_member(&object, "kl", json_finite(d->kl));
    return object;
}

static json_t *key_bound_json(const sp_key_bound_report *r)
{
    json_t *object = json_object();
    json_member(&object, "max_logit", json_finite(r->max_logit));
    json_member(&object, "is_penalty", json_boolean(r->is_penalty));
    json_member(&object, "key_rank", json_integer((json_int_t)r->key_rank));
    json_member(&object, "n_heads", json_integer((json_int_t)r->n_heads));
    json_member(&object, "training_bound", json_finite(r->training_bound));
    json_member(&object, "bound", json_finite(r->bound));
    json_member(&object, "score", json_finite(r->score));
    json_member(&object, "entries", json_finite(r->entries));
    json_member(&object, "n_scores_inside", json_integer((json_int_t)r->n_scores_inside));
    json_member(&object, "n_entries_inside", json_integer((json_int_t)r->n_entries_inside));
    json_member(&object, "n_rows", json_integer((json_int_t)r->n_rows));
    json_member(&object, "are_held_out", json_boolean(r->are_held_out));
    return object;
}

static int print_report_json(const sp_train_report *report, const sp_dataset *data, const sp_dataset *eval, const char *dir)
{
    json_t *object = json_object();
    json_member(&object, "adapter", json_text(dir));
    json_member(&object, "steps", json_integer((json_int_t)report->steps));
    json_member(&object, "resumed_from", json_integer((json_int_t)report->resumed_from));
    json_member(&object, "best_step", json_integer((json_int_t)report->best_step));
    json_member(&object, "stopped_early", json_boolean(report->stopped_early));
    json_member(&object, "already_finished", json_boolean(report->already_finished));
    json_member(&object, "first_loss", json_finite(report->first_loss));
    json_member(&object, "last_loss", json_finite(report->last_loss));
    json_member(&object, "rows", json_integer((json_int_t)report->rows));
    json_member(&object, "tokens", json_integer((json_int_t)report->tokens));
    json_member(&object, "skipped_rows", json_integer(data ? (json_int_t)sp_dataset_n_skipped(data) : 0));
    json_member(&object, "seconds", json_finite(report->seconds));
    bool judged = report->has_evaluation && !report->has_distillation;
    json_member(&object, "evaluation", judged ? evaluation_json(&report->evaluation, eval) : json_null());
    json_member(&object, "distillation", report->has_distillation ? distillation_json(&report->distillation) : json_null());
    json_member(&object, "key_bound", report->has_key_bound ? key_bound_json(&report->key_bound) : json_null());
    json_member(&object, "thread_seconds", profile_json());
    return print_json(object);
}

static void print_next(const train_flags *flags)
{
    bool run = flags->eval || flags->teacher_context;
    printf("\nnext: softprompt %s -m ", run ? "run" : "eval");
    print_quoted(stdout, flags->model.path);
    printf(" -p ");
    print_quoted(stdout, flags->out);
    printf("%s\n", run ? " 'some text'" : " -d FILE");
}

static void distillation_rows_of(const sp_distillation *d, const train_flags *flags)
{
    report_row("stands for", "%s, %zu tokens", flags->teacher_context, d->n_context);
    report_row("divergence", "%.4f nats a token (%.4f at the start, %.4f without a prompt)", d->kl, d->kl_at_start,
               d->kl_without_prompt);
    report_row("measured on", "%zu queries%s", d->n_queries,
               d->are_held_out ? " that it was not trained on" : ", those of the training");
}

static void key_bound_rows(const sp_key_bound_report *r)
{
    if (r->is_penalty)
        report_row("keys",
                   "pressed towards --max-logit %g by a penalty, which bounds nothing: scores within %.4f of their mean on the "
                   "training rows measured",
                   r->max_logit, r->training_bound);
    else
        report_row("keys", "scores within %.4f of their mean on the training rows measured (--max-logit %g, rank %zu)",
                   r->training_bound, r->max_logit, r->key_rank);
    report_row("reached", "scores %.4f, bound %.4f, entries %.4f on %zu tokens%s", r->score, r->bound, r->entries, r->n_rows,
               r->are_held_out ? " of the evaluation" : " of the training");
    report_row("inside", "%zu of %zu heads by their scores, %zu by their entries", r->n_scores_inside, r->n_heads,
               r->n_entries_inside);
}

static void print_report(const sp_train_report *report, const train_flags *flags)
{
    if (report->already_finished)
        report_row("steps", "%zu: finished before, nothing was changed", report->steps);
    else if (report->resumed_from)
        report_row("steps", "%zu, from the checkpoint at %zu", report->steps, report->resumed_from);
    else
        report_row("steps", "%zu%s", report->steps, report->stopped_early ? ", stopped early: no gain" : "");
    if (!report->already_finished) {
        report_row("training loss", "%.4f at first, %.4f at last", report->first_loss, report->last_loss);
        report_row("time", "%s for %llu rows, %llu tokens", format_duration(report->seconds).text, (unsigned long long)report->rows,
                   (unsigned long long)report->tokens);
    }
    if (report->best_step != report->steps) report_row("kept", "step %zu, the best of the evaluations", report->best_step);
    if (report->has_distillation) {
        distillation_rows_of(&report->distillation, flags);
    } else if (report->has_evaluation) {
        report_row("evaluated", "%s, %zu rows", flags->eval, report->evaluation.n);
        evaluation_rows(&report->evaluation);
    }
    if (report->has_key_bound) key_bound_rows(&report->key_bound);
    report_row("adapter", "%s", flags->out);
    print_next(flags);
}

/* ---- the command --------------------------------------------------------------------------------------------------- */

static int train(const train_flags *flags, const sp_train_options *options, const char *resume_line)
{
    sp_model *model = NULL;
    sp_dataset *data = NULL, *eval = NULL;
    sp_train_report report;
    progress_bar bar;
    sp_status st;
    int code = EXIT_FAILED;
    progress_init(&bar, flags->output.quiet);
    if (flags->data && (st = load_data(&data, flags->data, &flags->task, &bar.logger))) goto done;
    if (flags->eval && (st = load_data(&eval, flags->eval, &flags->task, &bar.logger))) goto done;
    if ((st = load_model(&model, &flags->model))) goto done;
    stop_at_interrupt();
    st = sp_train(&report, model, data, eval, flags->out, options, &bar.hooks);
    progress_clear(&bar);
    if (st) goto done;
    if (flags->output.json)
        code = print_report_json(&report, data, eval, flags->out);
    else
        code = EXIT_DONE, print_report(&report, flags);
done:
    if (st) code = report_failure(st);
    if (st == SP_ERR_STOPPED && resume_line) report_line("to go on: %s", resume_line);
    sp_model_free(model);
    sp_dataset_free(eval);
    sp_dataset_free(data);
    return code;
}

static int run_train(const command *self, int argc, char **argv)
{
    train_flags flags = {.init = INIT_UNSAID,
                         .num_frozen_tokens = not_given,
                         .source_init = UNSAID,
                         .source_task = not_given,
                         .opt_weighted_loss_type = UNSAID,
                         .opt_projection_epsilon = -1,
                         .opt_projection_format_epsilon = -1,
                         .warmup_steps = not_given,
                         .max_grad_norm = 1};
    sp_task task = {0};
    sp_verbalizer *verbalizers = NULL;
    char *resume_line = resume_command(argc, argv), *context = NULL;
    int code;
    if (options_parse(self, &flags, NULL, argc, argv, &code) && !(code = check_flags(self, &flags)) &&
        !(code = make_task(&task, &verbalizers, self, &flags.task)) &&
        !(code = flags.teacher_context ? load_text(&context, flags.teacher_context) : EXIT_DONE)) {
        sp_train_options options = make_options(&flags, &task, context);
        code = train(&flags, &options, resume_line);
    }
    free(verbalizers);
    free(context);
    text_list_free(&flags.task.verbalizers);
    free(resume_line);
    return code;
}

const command train_command = {
    .name = "train",
    .usage = "-m MODEL (-d DATA | --teacher-context FILE) [-e EVAL] -o DIR [flags]",
    .summary = "Trains a soft prompt on DATA and writes it to DIR, a PEFT adapter directory.",
    .details = "Rows of DATA are text and label, prompt and completion, or chat messages. Only the answer\n"
               "is learnt. With --teacher-context a prompt is learnt that stands for a text.\n"
               "Ctrl-C saves a checkpoint and says how to go on. In --template, --verbalizer and\n"
               "--init-text, \\n, \\t and \\\\ are a line's end, a tab and a backslash.",
    .example = "  softprompt train -m demo/model.gguf -d demo/data/train.jsonl -e demo/data/valid.jsonl -o my-prompt \\\n"
               "    --template 'Review: {text}\\nSentiment:' --verbalizer 'positive= positive' \\\n"
               "    --verbalizer 'negative= negative' --num-virtual-tokens 32 --steps 150",
    .groups = groups,
    .run = run_train,
};
