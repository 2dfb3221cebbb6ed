/* softprompt.h: train, evaluate and run soft prompts for frozen language models, on an ordinary CPU.
 *
 * A soft prompt is a short run of learnt vectors put in front of the input of a frozen transformer. The whole
 * of the public interface is this file; the command line uses nothing else.
 *
 *     sp_model *model;  sp_prompt *prompt;  sp_session *session;
 *     if (sp_model_load(&model, "model.gguf", NULL)) die(sp_message());
 *     if (sp_prompt_load(&prompt, "my-prompt")) die(sp_message());
 *     if (sp_session_create(&session, model, prompt)) die(sp_message());
 *     sp_tokenize(&tokens, &n_tokens, sp_model_tokenizer(model), "Review: great\nSentiment:", SIZE_MAX, SP_TOKENIZE_ADD_BOS);
 *     sp_session_append(session, tokens, n_tokens, logits);        // logits (n_vocab) of the next token
 *
 * Conventions
 *   Status      what can fail returns an sp_status, its results come first in the arguments and are set to NULL on failure;
 *               sp_message() then says what, where and what to do. What cannot fail returns its value.
 *   Ownership   who creates frees; every sp_*_free takes NULL. Memory handed out as `char **` or `T **` is freed with sp_free.
 *   Strings     UTF-8, NUL-terminated unless a length stands beside them; borrowed by the callee for the call only.
 *   Arrays      row-major; shapes are written (rows, columns).
 *   Options     a struct of zeros means every default.
 *   Threads     one handle, one thread at a time. Handles are independent, but that a prompt, a session and a trainer
 *               use their model: one at a time for each model. The library's own parallel loops use OpenMP.
 */
#ifndef SOFTPROMPT_H
#define SOFTPROMPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SP_API __attribute__((visibility("default")))

/* ---- status, messages, logging ---------------------------------------------------------------------------- */

typedef enum sp_status {
    SP_OK = 0,
    SP_ERR_ARGUMENT,    /* the call makes no sense: an unknown name, a number out of range */
    SP_ERR_IO,          /* the system refused: no such file, no permission, disk full */
    SP_ERR_FORMAT,      /* a file's bytes are not what its format allows */
    SP_ERR_UNSUPPORTED, /* well formed, but nothing this library can do */
    SP_ERR_MISMATCH,    /* two things that do not belong together: prompt and model, checkpoint and settings */
    SP_ERR_MEMORY,      /* not enough memory; the message says how much was wanted */
    SP_ERR_STOPPED      /* the caller's `stop` was seen; what was done is saved */
} sp_status;

/* The message of this thread's last failure: one line, no newline. Valid until the thread's next failing call. */
SP_API const char *sp_message(void);

SP_API const char *sp_version(void);

/* Frees memory that the library handed out; NULL is fine. */
SP_API void sp_free(void *memory);

typedef enum sp_log_level { SP_LOG_INFO, SP_LOG_WARNING } sp_log_level;

/* Where a call that can warn writes to: `line` has no newline and is valid during the call. A NULL logger is silent. */
typedef struct sp_logger {
    void (*write)(void *user, sp_log_level level, const char *line);
    void *user;
} sp_logger;

/* ---- the machine ------------------------------------------------------------------------------------------- */

typedef struct sp_machine {
    char cpu[64];       /* "AMD EPYC 7742" */
    char features[256]; /* space-separated: "avx2 fma avx512f ..." */
    char kernels[32];   /* the rung of the kernel ladder in use: "generic", "avx2", "avx512" */
    int n_threads;      /* the default number of threads: processors this process may use, cgroup limit included */
    uint64_t memory_bytes;
} sp_machine;

SP_API void sp_machine_describe(sp_machine *out);

/* Where this process's computing time went so far, in seconds summed over its threads, waiting within a part included. */
typedef struct sp_profile {
    double matmul;     /* products with weights */
    double expand;     /* bringing stored weights into the form that products read */
    double attention;  /* softmax(q k^T) v and its backward */
    double norm;       /* RMSNorm and its backward */
    double activation; /* SwiGLU and its backward */
} sp_profile;

SP_API void sp_profile_get(sp_profile *out);

/* ---- models ------------------------------------------------------------------------------------------------ */

typedef struct sp_model sp_model;
typedef struct sp_tokenizer sp_tokenizer;

typedef enum sp_weights {
    SP_WEIGHTS_AUTO,   /* MAPPED where all tensor types have loops of their own; else F32, if half the free memory suffices */
    SP_WEIGHTS_MAPPED, /* stay as the file stores them; pieces are expanded while they are multiplied */
    SP_WEIGHTS_F32     /* expanded once, when first used */
} sp_weights;

typedef enum sp_compute {
    SP_COMPUTE_AUTO, /* F32 */
    SP_COMPUTE_F32,
    SP_COMPUTE_BF16 /* large products round both factors to bf16 and sum in f32: twice as fast on CPUs that have it */
} sp_compute;

typedef struct sp_model_options {
    int n_threads; /* 0: sp_machine's */
    sp_weights weights;
    sp_compute compute;
} sp_model_options;

/* Maps a GGUF file, or a model directory of Hugging Face: config.json, tokenizer.json, and safetensors in f32, f16 or bf16, in one
 * file or in shards. `options` may be NULL. The files must stay unchanged while the model lives.
 * Fails with IO, FORMAT (damaged), UNSUPPORTED (architecture, setting or tensor type, by name), MEMORY. */
SP_API sp_status sp_model_load(sp_model **out, const char *path, const sp_model_options *options);
SP_API void sp_model_free(sp_model *model);

typedef struct sp_model_info {
    const char *path, *architecture; /* strings live as long as the model */
    const char *name;                /* general.name, "" where absent; of a directory its path */
    size_t n_layer, d_model, d_ffn, n_head, n_head_kv, d_head, n_vocab, context_length;
    uint64_t n_parameters, file_bytes;
    bool tied_output; /* the output head is the embedding matrix */
} sp_model_info;

SP_API void sp_model_get_info(sp_model_info *out, const sp_model *model);
SP_API const sp_tokenizer *sp_model_tokenizer(const sp_model *model); /* belongs to the model */
SP_API size_t sp_model_n_vocab(const sp_model *model);
SP_API size_t sp_model_d_model(const sp_model *model);

/* Token embeddings: out (n, d_model). A token outside the vocabulary is SP_ERR_ARGUMENT. */
SP_API sp_status sp_model_embed(float *out, const sp_model *model, const int32_t *tokens, size_t n);

/* What a file or directory is, as a JSON object (a NUL-terminated string, sp_free): a GGUF model of any architecture,
 * a Hugging Face model directory of any type, an adapter directory of any PEFT type, a safetensors file. The object's "kind" is
 * "model", "adapter" or "tensors". */
SP_API sp_status sp_describe(char **json, const char *path);

/* ---- text -------------------------------------------------------------------------------------------------- */

enum {
    SP_TOKENIZE_ADD_BOS = 1,      /* put BOS (and EOS) where this model's tokenizer does */
    SP_TOKENIZE_PARSE_SPECIAL = 2 /* "<|im_end|>" in the text becomes that token, as Hugging Face does; without: literal text */
};

/* text -> token ids (sp_free). n_bytes SIZE_MAX: NUL-terminated. Invalid UTF-8 is read as U+FFFD, one for each maximal
 * ill-formed part, as Python's errors="replace" does. Fails with MEMORY only. */
SP_API sp_status sp_tokenize(int32_t **out, size_t *n_out, const sp_tokenizer *tokenizer, const char *text, size_t n_bytes,
                             unsigned flags);

/* token ids -> bytes (sp_free; a NUL is added, not counted). Special tokens are left out unless `with_special`.
 * A single token may be a part of a character. Ids outside the vocabulary are SP_ERR_ARGUMENT. */
SP_API sp_status sp_detokenize(char **out, size_t *n_bytes, const sp_tokenizer *tokenizer, const int32_t *tokens, size_t n,
                               bool with_special);

SP_API int32_t sp_tokenizer_bos(const sp_tokenizer *tokenizer);                /* -1: none */
SP_API int32_t sp_tokenizer_eos(const sp_tokenizer *tokenizer);                /* -1: none */
SP_API bool sp_tokenizer_is_end(const sp_tokenizer *tokenizer, int32_t token); /* EOS, end of turn, end of message */
SP_API bool sp_tokenizer_adds_bos(const sp_tokenizer *tokenizer);

typedef struct sp_chat_message {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* taken literally: special-token strings inside it are text */
} sp_chat_message;

/* A conversation -> token ids through the model's chat template. `answer` (may be NULL) gets a mask of as many bytes:
 * 1 on tokens that the model would produce (assistant content and its end of turn). Both sp_free.
 * add_generation_prompt: end with the opening of an assistant turn.
 * UNSUPPORTED: the model has no chat template, or none of a family known here (the message names them). */
SP_API sp_status sp_chat_tokenize(int32_t **tokens, uint8_t **answer, size_t *n, const sp_tokenizer *tokenizer,
                                  const sp_chat_message *messages, size_t n_messages, bool add_generation_prompt);

/* ---- data -------------------------------------------------------------------------------------------------- */

typedef struct sp_dataset sp_dataset;

typedef enum sp_row_kind {
    SP_ROW_LABEL,      /* text and label */
    SP_ROW_COMPLETION, /* prompt and completion */
    SP_ROW_CHAT,       /* messages */
    SP_ROW_TEXT        /* text alone: scored as text */
} sp_row_kind;

typedef struct sp_row {
    sp_row_kind kind;
    size_t line;              /* where it stood in the file, from 1 */
    const char *text, *label; /* LABEL, TEXT; else NULL */
    const char *prompt, *completion;
    const sp_chat_message *messages;
    size_t n_messages;
    size_t task_id; /* which task of a multitask prompt it belongs to; 0 where it does not say, SIZE_MAX where it says no number */
} sp_row;

typedef struct sp_data_options {
    const char *text_column;  /* default "text" */
    const char *label_column; /* default "label" */
    const char *task_column;  /* default "task"; one that is given must be there, and hold whole numbers from 0 */
    const sp_logger *logger;  /* rows that cannot be used: the first ten by line, then their number */
} sp_data_options;

/* Reads .jsonl (.json, .ndjson), .csv or .tsv: by the name's ending. Rows are text/label, prompt/completion or messages.
 * A row that cannot be used (bad JSON, empty column, invalid UTF-8) is skipped, counted and named by line;
 * a file without one usable row is SP_ERR_FORMAT. */
SP_API sp_status sp_dataset_load(sp_dataset **out, const char *path, const sp_data_options *options);
SP_API void sp_dataset_free(sp_dataset *dataset);
SP_API size_t sp_dataset_n_rows(const sp_dataset *dataset);
SP_API size_t sp_dataset_n_skipped(const sp_dataset *dataset);
SP_API const sp_row *sp_dataset_row(const sp_dataset *dataset, size_t index); /* belongs to the data set */

/* The same, row by row, for files larger than memory: each usable row is handed to `visit`, in order, and forgotten; it lives for
 * the call. Another status than SP_OK ends the reading with it. n_skipped (may be NULL): rows that could not be used. */
typedef sp_status sp_row_fn(void *user, const sp_row *row);
SP_API sp_status sp_dataset_visit(const char *path, const sp_data_options *options, sp_row_fn *visit, void *user,
                                  size_t *n_skipped);

/* ---- tasks: how a row of data becomes tokens ------------------------------------------------------------------ */

typedef struct sp_verbalizer {
    const char *label; /* as it stands in the data: "positive" */
    const char *text;  /* what the model shall say: " positive" */
} sp_verbalizer;

typedef struct sp_task {
    const char *template_text; /* with {text}; NULL: "{text}" */
    const sp_verbalizer *verbalizers;
    size_t n_verbalizers; /* 0: each label of the training data stands for itself after a space */
    size_t max_length;    /* tokens of text kept, cut at the left; 0: the model's context */
} sp_task;

/* ---- prompts ----------------------------------------------------------------------------------------------- */

typedef struct sp_prompt sp_prompt;

/* What gives the prompt's rows their keys and values. */
typedef enum sp_method {
    SP_METHOD_PROMPT,    /* PROMPT_TUNING: embeddings, pushed through the model */
    SP_METHOD_PREFIX,    /* PREFIX_TUNING: keys and values of every layer themselves */
    SP_METHOD_CARTRIDGE, /* CARTRIDGE: the same, the first ones frozen */
    SP_METHOD_PTUNING,   /* P_TUNING: embeddings that a small network, which is what is learnt, makes of learnt vectors */
    SP_METHOD_MULTITASK, /* MULTITASK_PROMPT_TUNING: embeddings that tasks share, times a matrix of low rank for each */
    SP_METHOD_CPT        /* CPT: the embeddings of a text, moved a little */
} sp_method;

/* CPT: how much answers inside the prompt count in the loss beside the one that is learnt. */
typedef enum sp_weighted_loss {
    SP_WEIGHTED_LOSS_NONE, /* as much */
    SP_WEIGHTED_LOSS_DECAY /* the last example's opt_loss_decay_factor times as much, the one's before it the square of that, ... */
} sp_weighted_loss;

typedef enum sp_init { SP_INIT_VOCAB, SP_INIT_RANDOM, SP_INIT_TEXT } sp_init;
/* PEFT's encoder_reparameterization_type. MLP: three linear layers, ReLU between them. LSTM: bidirectional, then two linear layers.
 */
typedef enum sp_encoder_type { SP_ENCODER_MLP, SP_ENCODER_LSTM } sp_encoder_type;
typedef enum sp_sink { SP_SINK_NONE, SP_SINK_BOS } sp_sink;

/* MULTITASK: what is taken from a prompt of several tasks to start another. */
typedef enum sp_source_init {
    SP_SOURCE_AVERAGE, /* what they share, and the mean of their factors; PEFT's AVERAGE_SOURCE_TASKS */
    SP_SOURCE_EXACT,   /* what they share, and the factors of source_task; EXACT_SOURCE_TASK */
    SP_SOURCE_SHARED   /* what they share, or a prompt of embeddings; ONLY_SOURCE_SHARED */
} sp_source_init;

/*   VOCAB    embeddings of seeded random tokens; of PREFIX and CARTRIDGE their keys and values, as a text of these tokens has them
 *   RANDOM   normal, the vocabulary's mean and deviation; of PREFIX and CARTRIDGE a standard normal, as PEFT starts
 *   TEXT     embeddings of init_text, repeated or cut, as PEFT does; of PREFIX and CARTRIDGE the keys and values of its first
 *            tokens (BOS among them where the model adds it): it must have num_virtual_tokens or more
 * A network (PTUNING, prefix_projection) starts as torch's modules do, which is PEFT's start and with RANDOM all; with the others
 * its last layer is then moved, as little as can be, so that the rows begin as above. */
typedef struct sp_prompt_options {
    sp_method method;
    size_t num_virtual_tokens; /* 0: 32. Counts a sink row and frozen ones */
    size_t num_frozen_tokens;  /* CARTRIDGE: leading rows that stay as they start; 0: 1; SIZE_MAX: none */
    sp_init init;
    const char *init_text;
    sp_sink sink; /* BOS, with PROMPT only: the first row is a frozen copy of BOS's embedding */
    uint64_t seed;
    size_t text_position; /* PREFIX and CARTRIDGE: sp_prompt_set_text_position; 0: behind the prompt. With it there may be more
                             virtual tokens than the model has positions; VOCAB then takes the keys of short texts */

    /* An adapter directory to start from in place of `init`: its rows; of PREFIX and CARTRIDGE, where it has embeddings, the keys
     * and values that the model computes for them. num_virtual_tokens 0: as many as it has; another number is MISMATCH. Not with
     * CPT. */
    const char *init_prompt;

    /* The network of PTUNING; prefix_projection gives PREFIX one, too: a linear layer, tanh, a linear layer. An adapter holds its
     * output, as PEFT's do: a prompt that was loaded is rows, and trains as rows. */
    sp_encoder_type encoder_reparameterization_type;
    size_t encoder_hidden_size; /* 0: d_model; with prefix_projection n_head_kv * d_head */
    size_t encoder_num_layers;  /* of the LSTM; 0: 2 */
    bool prefix_projection;

    /* MULTITASK. `init` is of what the tasks share; their factors start such that each begins with that, or, with RANDOM, as PEFT's
     */
    size_t num_tasks; /* 0: 1; in training as many as the data name */
    size_t num_ranks; /* of each task's matrix; 0: 1, or the source's */
    sp_source_init source_init;
    size_t source_task;

    /* CPT starts from these tokens, or from init_text: repeated or cut to num_virtual_tokens, 0: as it is, all of type 1. Types mod
     * 4: 1 template of the input, 2 input, 3 template of the output, 0 an answer, which does not move and counts in the loss; type
     * 0 does not move either. They count on from example to example: 1 2 3 4, 5 6 7 8, ... */
    const int32_t *cpt_token_ids, *cpt_tokens_type_mask; /* (n_cpt_tokens) each; copied */
    size_t n_cpt_tokens;
    sp_weighted_loss opt_weighted_loss_type;
    double opt_loss_decay_factor;         /* 0: 1 */
    double opt_projection_epsilon;        /* how far an input's token may move, times sqrt(d_model / 2048); 0: 0.1, negative: not */
    double opt_projection_format_epsilon; /* the same of tokens of templates */
} sp_prompt_options;

SP_API sp_status sp_prompt_create(sp_prompt **out, sp_model *model, const sp_prompt_options *options);

/* Reads a PEFT adapter directory, ours or PEFT's own. UNSUPPORTED: a PEFT type that we cannot run, by name. */
SP_API sp_status sp_prompt_load(sp_prompt **out, const char *dir);

/* Writes adapter_config.json, adapter_model.safetensors and softprompt.json, each whole or not at all; makes `dir` if needed. */
SP_API sp_status sp_prompt_save(const sp_prompt *prompt, const char *dir);
SP_API void sp_prompt_free(sp_prompt *prompt);

/* Does this prompt belong to this model? Another shape is SP_ERR_MISMATCH; another fingerprint, where the adapter carries
 * one, is a warning: model names are no evidence. Every call that takes both checks the shape itself. */
SP_API sp_status sp_prompt_check(const sp_prompt *prompt, const sp_model *model, const sp_logger *logger);

/* CPT: n_examples of the data's rows as tokens with their types (both sp_free): template, text, template, answer, an empty line,
 * and so on. Rows are drawn with `seed`, label after label. UNSUPPORTED: rows of a kind that no template surrounds.
 *
 * task: with verbalizers where rows have labels. */
SP_API sp_status sp_cpt_examples(int32_t **token_ids, int32_t **tokens_type_mask, size_t *n, const sp_model *model,
                                 const sp_task *task, const sp_dataset *data, size_t n_examples, uint64_t seed);

SP_API sp_method sp_prompt_method(const sp_prompt *prompt);
SP_API size_t sp_prompt_num_virtual_tokens(const sp_prompt *prompt);
SP_API size_t sp_prompt_num_frozen_tokens(const sp_prompt *prompt); /* leading rows that training leaves alone */

/* MULTITASK: whose prompt is in front of what is computed with the prompt from now on, from 0, which it begins with. ARGUMENT: it
 * has not so many. Other prompts have one task. */
SP_API size_t sp_prompt_num_tasks(const sp_prompt *prompt);
SP_API sp_status sp_prompt_use_task(sp_prompt *prompt, size_t task_id);

/* What the model reads: (num_virtual_tokens, width), a virtual token a row, of the task in use. It belongs to the prompt and may be
 * written.
 *   embeddings    width d_model; NULL with other methods
 *   keys_values   width 2 * n_layer * n_head_kv * d_head, as PEFT saves them: column ((2 l + s) * n_head_kv + h) * d_head + i is
 *                 dimension i of head h in layer l, s = 0 of the key, 1 of the value. Keys are as attention reads them, behind RoPE
 *                 (none is applied to them), halves split as in transformers. NULL with methods of embeddings */
SP_API size_t sp_prompt_width(const sp_prompt *prompt);
SP_API float *sp_prompt_embeddings(sp_prompt *prompt);
SP_API float *sp_prompt_keys_values(sp_prompt *prompt);

/* Where the text behind the prompt starts, in the model's eyes: at num_virtual_tokens, as in PEFT, unless another position was set,
 * which prompts of keys and values may have: theirs were given, so they need no positions, and there may be more of them than the
 * model's context has. UNSUPPORTED: a prompt of embeddings; 0 is ARGUMENT. */
SP_API size_t sp_prompt_text_position(const sp_prompt *prompt);
SP_API sp_status sp_prompt_set_text_position(sp_prompt *prompt, size_t position);

/* What training moves: an array of n_weights numbers, which belongs to the prompt and may be written. With methods that learn their
 * rows themselves it is the rows; others compute the rows from it: sp_prompt_update does so, after weights were written.
 * Of a network: the embedding (num_virtual_tokens rows), then its layers' weights and biases in the order of PEFT's module. */
SP_API float *sp_prompt_weights(sp_prompt *prompt);
SP_API size_t sp_prompt_n_weights(const sp_prompt *prompt);
SP_API sp_status sp_prompt_update(sp_prompt *prompt);
SP_API size_t sp_prompt_d_model(const sp_prompt *prompt);      /* 0: not told by keys and values */
SP_API const sp_task *sp_prompt_task(const sp_prompt *prompt); /* NULL: the adapter carries none (PEFT's own) */

typedef struct sp_compiled_use {  /* what attention to a compiled prompt (sp_prompt_compile) came to */
    uint64_t n_queries, n_beyond; /* of all heads; those whose scores might leave the range, and were shortened */
    double weights_bound;         /* the worst head's: how far its weights are off at most, in total variation */
} sp_compiled_use;

/* The task of several prompts together: what `given` (may be NULL) says, and what it does not from those prompts that have a task.
 * These must agree on it, because all read the same text: MISMATCH, by name. *out borrows from all of them. */
SP_API sp_status sp_ensemble_task(sp_task *out, const sp_task *given, const sp_prompt *const *prompts, size_t n_prompts);

/* ---- the engine at its plainest: loss and gradient ----------------------------------------------------------- */

typedef struct sp_example {
    const int32_t *tokens; /* context and answer */
    size_t n_tokens;
    size_t n_answer; /* the last n_answer tokens are what the loss is about; 1 <= n_answer <= n_tokens */
    size_t task_id;  /* whose prompt it stands behind, of a prompt of several tasks; else 0 */
} sp_example;

/* loss = mean over examples of the mean over answer tokens of -ln p(token | prompt, tokens before), in nats.
 * One packed pass: the prompt's rows and every shared prefix are computed once. `prompt` may be NULL when `gradient` is.
 * With CPT, as in PEFT: mean over all tokens of the examples' answers and, once for each example, of answers inside the prompt,
 * which opt_weighted_loss_type weighs.
 *   gradient   (sp_prompt_n_weights) written: dloss/dweights, zero where they are frozen; NULL: not computed
 * An answer that starts an example needs a prompt of embeddings in front. */
SP_API sp_status sp_loss(double *loss, float *gradient, sp_model *model, const sp_prompt *prompt, const sp_example *examples,
                         size_t n_examples);

/* How far a prompt is from standing for a text: the mean over queries of the mean over their answer tokens of
 * KL(p(. | context, tokens before) || p(. | prompt, tokens before)), in nats, over the whole vocabulary.
 *   context   (n_context >= 1) the text's tokens, BOS first where the model adds one. Where it begins with BOS and all queries do,
 *             theirs is read behind the prompt alone
 *   queries   each with at least one token, beside BOS, in front of its answer
 *   gradient  as of sp_loss */
SP_API sp_status sp_distillation_loss(double *loss, float *gradient, sp_model *model, const sp_prompt *prompt,
                                      const int32_t *context, size_t n_context, const sp_example *queries, size_t n_queries);

/* How far the keys of a prompt (of the task in use) reach beyond max_logit R > 0. Of each layer and key head, with k_j the prompt's
 * keys as attention reads them, behind RoPE, and c their mean:
 *     penalty = mean over heads and virtual tokens of max(0, query_norm |k_j - c| / R - 1)^2
 *   query_norms (n_layer, n_head_kv) the largest scale |q| of the queries that count; a head whose norm is 0 counts 0
 *   gradient    (sp_prompt_n_weights) written: dpenalty/dweights, zero where they are frozen; NULL: not computed */
SP_API sp_status sp_key_penalty(double *penalty, float *gradient, sp_model *model, const sp_prompt *prompt,
                                const float *query_norms, double max_logit);

/* ---- sessions: one growing text on one prompt ----------------------------------------------------------------- */

typedef struct sp_session sp_session;

/* The prompt's keys and values are computed once, here; `prompt` may be NULL, and is not used after the call. */
SP_API sp_status sp_session_create(sp_session **out, sp_model *model, const sp_prompt *prompt);

/* The same text behind several prompts at once, an ensemble: it is one language model, whose next token is as likely as the
 * geometric mean of what the prompts say of it, made to sum to one: ln p(v) = mean over prompts of ln p_prompt(v) - ln z. Its
 * logits are the mean of the prompts' logits. Prompts may be of different methods and lengths; all are computed in one pass, each
 * text once a prompt. n_prompts 0: the model alone; 1: as above. */
SP_API sp_status sp_session_create_ensemble(sp_session **out, sp_model *model, const sp_prompt *const *prompts, size_t n_prompts);
SP_API void sp_session_free(sp_session *session);

/* Appends n >= 1 tokens. `logits` (n_vocab) gets those that follow the last one; NULL: they are only kept for sp_generate.
 * ARGUMENT: the text and the prompt no longer fit the model's context; nothing was appended then. */
SP_API sp_status sp_session_append(sp_session *session, const int32_t *tokens, size_t n, float *logits);

/* The same, with logits (n, n_vocab) behind every one of the n tokens. */
SP_API sp_status sp_session_append_all(sp_session *session, const int32_t *tokens, size_t n, float *logits);
SP_API size_t sp_session_n_tokens(const sp_session *session);                             /* the text's, without the prompt */
SP_API void sp_session_get_compiled_use(sp_compiled_use *out, const sp_session *session); /* of a compiled prompt; else zeros */
SP_API void sp_session_rewind(sp_session *session, size_t n_tokens);                      /* forget all but the first n_tokens */

typedef struct sp_sampling {
    size_t max_new_tokens;    /* 0: 256 */
    float temperature;        /* 0: greedy */
    size_t top_k;             /* 0: all */
    float top_p;              /* 0 or 1: all */
    float min_p;              /* 0: none */
    float repetition_penalty; /* 0 or 1: none */
    const char *const *stop;  /* strings that end the text; they are not part of it */
    size_t n_stop;
    uint64_t seed;
} sp_sampling;

typedef enum sp_finish { SP_FINISH_END, SP_FINISH_LENGTH, SP_FINISH_STOP, SP_FINISH_CANCELLED } sp_finish;

typedef struct sp_generation {
    char *text; /* the completion, valid UTF-8, sp_free */
    size_t n_bytes;
    int32_t *tokens; /* sp_free; the end token, if it came, is counted in n_tokens and not in text */
    size_t n_tokens;
    float *logprobs; /* (n_tokens) natural log of each token's probability under the unmodified distribution; sp_free */
    sp_finish finish;
} sp_generation;

/* Streaming: called with each piece of finished text (whole characters, never a part of a stop string); false cancels. */
typedef bool sp_text_fn(void *user, const char *text, size_t n_bytes);

/* Continues the session's text by sampling; tokens are appended first (n >= 1, unless the session has a text, or stands behind a
 * single prompt of embeddings, which predicts the first token itself).
 * `options` and `on_text` may be NULL. */
SP_API sp_status sp_generate(sp_generation *out, sp_session *session, const int32_t *tokens, size_t n, const sp_sampling *options,
                             sp_text_fn *on_text, void *user);
SP_API void sp_generation_clear(sp_generation *generation); /* frees the members */

/* Labels of one text. Members sp_free'd by sp_classification_clear. */
typedef struct sp_classification {
    size_t n_labels, best;
    const char **labels; /* the strings belong to `task` */
    double *logprobs;    /* ln of the probability of each label's verbalizer behind the text */
} sp_classification;

SP_API sp_status sp_classify(sp_classification *out, sp_model *model, const sp_prompt *prompt, const sp_task *task,
                             const char *text);

/* The same of an ensemble, as sp_session_create_ensemble has it: a label's probability is the product of its tokens'. `task` NULL:
 * sp_ensemble_task's. */
SP_API sp_status sp_classify_ensemble(sp_classification *out, sp_model *model, const sp_prompt *const *prompts, size_t n_prompts,
                                      const sp_task *task, const char *text);
SP_API void sp_classification_clear(sp_classification *classification);

/* ---- evaluation ---------------------------------------------------------------------------------------------- */

typedef struct sp_evaluation {
    size_t n;           /* rows scored */
    size_t n_truncated; /* rows cut at the left */
    bool has_accuracy, has_exact_match;
    double accuracy, accuracy_ci95[2]; /* Wilson score interval */
    double macro_f1;
    double exact_match, exact_match_ci95[2];
    double loss;       /* nats per row: mean over rows of the mean over answer tokens */
    double perplexity; /* exp(nats per answer token, over all tokens) */
    double seconds;
    sp_compiled_use compiled; /* of a compiled prompt; else zeros */
} sp_evaluation;

typedef struct sp_progress {
    const char *what; /* "train", "eval" */
    size_t done, total;
    double seconds; /* since the start of this call */
    double rows_per_second;
    double loss;        /* the last one; NAN: none yet */
    double mean_tokens; /* of cramming: said without an error so far, mean over the texts; else 0 */
} sp_progress;

/* Calls that take long report through these, on the caller's thread. All members may be NULL or 0. */
typedef struct sp_hooks {
    void (*progress)(void *user, const sp_progress *progress);
    void *user;
    const sp_logger *logger;
    const volatile int *stop; /* non-zero (from a signal handler, say): save and return SP_ERR_STOPPED */
} sp_hooks;

typedef struct sp_task_evaluation { /* what an evaluation says of one task of a multitask prompt */
    size_t n;                       /* 0: the data have no row of it, and all else is 0 */
    double accuracy, exact_match;   /* where sp_evaluation has them */
    double loss;
} sp_task_evaluation;

typedef struct sp_eval_options {
    size_t batch_size;            /* 0: 32 */
    const char *predictions_path; /* JSONL written there, a row each; NULL: none */
    bool one_task;                /* every row behind the task in use, whatever the row says */
    sp_task_evaluation *tasks;    /* (n_tasks) written, of the prompt's first tasks; NULL: not wanted */
    size_t n_tasks;
} sp_eval_options;

/* Rows stand behind the prompt of the task that they name; those of a task that the prompt does not have are left out.
 * `prompt` may be NULL: the model alone. `task` NULL: the prompt's own, or the defaults with the data's labels. */
SP_API sp_status sp_evaluate(sp_evaluation *out, sp_model *model, const sp_prompt *prompt, const sp_task *task,
                             const sp_dataset *data, const sp_eval_options *options, const sp_hooks *hooks);

/* The same of an ensemble, as sp_session_create_ensemble has it. Of prompts of several tasks, each has the one in use: one_task.
 * `task` NULL: sp_ensemble_task's. */
SP_API sp_status sp_evaluate_ensemble(sp_evaluation *out, sp_model *model, const sp_prompt *const *prompts, size_t n_prompts,
                                      const sp_task *task, const sp_dataset *data, const sp_eval_options *options,
                                      const sp_hooks *hooks);

/* ---- training ------------------------------------------------------------------------------------------------ */

typedef enum sp_optimizer { SP_ADAMW, SP_ADAFACTOR } sp_optimizer;
typedef enum sp_schedule { SP_COSINE, SP_LINEAR, SP_CONSTANT } sp_schedule;

typedef struct sp_train_options {
    sp_prompt_options prompt;
    sp_task task;
    sp_optimizer optimizer;
    sp_schedule schedule;
    double learning_rate;               /* 0: the method's, docs/methods.md */
    double weight_decay;                /* 0: none */
    double max_grad_norm;               /* 0: 1.0; negative: no clipping */
    size_t batch_size;                  /* 0: 16 */
    size_t gradient_accumulation_steps; /* 0: 1 */
    size_t steps;                       /* 0: from epochs */
    double epochs;                      /* used when steps is 0; both 0: 300 steps, or 3 epochs if those are fewer */
    size_t warmup_steps;                /* SIZE_MAX: none; 0: 10, but at most a tenth of the steps */
    uint64_t seed;
    size_t cpt_examples; /* CPT: the prompt starts from this many rows of the training data, sp_cpt_examples; 0: as it says */
    size_t eval_every;   /* steps; 0: only at the end; needs eval data */
    size_t early_stopping_patience; /* evaluations without improvement; 0: never */
    size_t save_every;              /* steps; 0: 10 */
    bool resume, overwrite;
    const char *teacher_context; /* a text that the prompt is to stand for; NULL: answers are learnt */
    size_t num_queries;          /* without training data: queries that the model samples behind the text; 0: 512 */
    size_t query_length;         /* tokens of each, or up to an end token; 0: 64 */
    double max_logit;            /* a bound on the centred scores of the prompt's keys, or the aim of a penalty, below; 0: none */
    double max_logit_weight;     /* of the penalty; 0: 0.1 */
    size_t key_rank;             /* with a bound: dimensions in which the keys of a head may differ; 0: all */
} sp_train_options;

/* Keys inside the criterion, docs/bounded-keys.md. With max_logit R, and method PREFIX (without prefix_projection) or CARTRIDGE, of
 * each layer and key head the prompt's keys are kept such that |scale q . (k_j - c)| <= R,   c the mean of the prompt's keys, for
 * every query q measured on training rows (at most 128 of them), by Cauchy and Schwarz: each step ends with a projection onto
 * k_j = c + a_j U, scale |a_j| max|U q| <= R, U (key_rank, d_head) orthonormal and frozen: the directions in which the queries were
 * longest when training began. Queries move with the prompt; training ends with measuring and projecting until they agree.
 *
 * Keys that come from embeddings, through the model, or from a network cannot be projected. With the other methods training adds
 * max_logit_weight times sp_key_penalty to its loss, which presses them towards R and bounds nothing: the report says what was
 * reached. Rows of several tasks bring the penalty of their own task's prompt; norms of queries are the largest of all tasks'. */
typedef struct sp_key_bound_report {
    double max_logit;
    bool is_penalty; /* keys were pressed towards max_logit, and may lie beyond; else they are inside, on the rows measured */
    size_t key_rank;
    size_t n_heads;          /* n_layer * n_head_kv */
    double training_bound;   /* the largest scale |a_j| max|U q| of a head, of the training rows measured: at most max_logit, but
                              * for a penalty */
    size_t n_rows;           /* tokens whose queries the next figures are of */
    bool are_held_out;       /* of rows that are not trained on; else of those of training_bound */
    double bound;            /* as training_bound */
    double score;            /* the largest |scale q . (k_j - c)| that occurs */
    double entries;          /* the largest entry of the heads' queries and keys in these directions, balanced, in the theorem's
                              * scaling: sqrt(key_rank scale max|U q|_inf max|a_j|_inf) */
    size_t n_scores_inside;  /* heads whose scores are at most ln(num_virtual_tokens) */
    size_t n_entries_inside; /* heads whose entries are at most its root: the theorem's premise */
} sp_key_bound_report;

/* Divergences from the model with the text in its context: means over queries of the mean over a query's tokens behind the first of
 * KL(behind the text || behind the prompt), in nats. The queries are eval data, or held out, or, where there are too few, those
 * that were trained on. */
typedef struct sp_distillation {
    size_t n_context; /* tokens of the text, BOS included where the model adds it */
    size_t n_queries;
    bool are_held_out;
    double kl_without_prompt; /* with nothing in front */
    double kl_at_start;       /* of the prompt that training began with */
    double kl;                /* of the adapter written */
} sp_distillation;

typedef struct sp_train_report {
    size_t steps;        /* done in all */
    size_t resumed_from; /* the step that this call began at */
    size_t best_step;    /* of the adapter written; = steps without evaluation during training */
    bool stopped_early, already_finished;
    double first_loss, last_loss;
    double seconds;        /* of this call */
    uint64_t rows, tokens; /* trained on in this call */
    bool has_evaluation;
    sp_evaluation evaluation; /* of the adapter written, where eval data was given; of distillation n and loss alone: kl */
    bool has_distillation;
    sp_distillation distillation;
    bool has_key_bound;
    sp_key_bound_report key_bound; /* with max_logit: what the adapter written reaches */
} sp_train_report;

/* With teacher_context the loss is not that of answers: the prompt learns to give what follows it the distributions that the model
 * itself gives behind the text, over the whole vocabulary (context distillation). The rows of `train`, contexts and answers, are
 * then what both read; `train` may be NULL: the model samples continuations of the text, seeded. Where `eval` is NULL, an eighth of
 * the queries, at most 64, is held out and evaluated on.
 *
 * Trains a soft prompt on `train`, keeps the best by `eval` (may be NULL), writes the adapter and its run into `dir`:
 *   adapter_config.json, adapter_model.safetensors, softprompt.json, settings.json, log.jsonl, evaluations.jsonl (with `eval`),
 *   events.out.tfevents.*, checkpoints/, and queries.jsonl where queries were sampled. Interrupted at any moment, the same call
 * with resume gives the same bytes (same machine and threads). IO: another process trains into `dir`. ARGUMENT: `dir` holds another
 * run and neither resume nor overwrite is set. MISMATCH: resume with other settings, by name. */
SP_API sp_status sp_train(sp_train_report *report, sp_model *model, const sp_dataset *train, const sp_dataset *eval,
                          const char *dir, const sp_train_options *options, const sp_hooks *hooks);

/* ---- audit: is a prompt inside the criterion? -------------------------------------------------------------------------- */

/* Attention with keys and values of a prompt and a text can be computed in almost linear time, to any polynomial accuracy, if the
 * entries of queries and keys stay below B = o(sqrt(log n)), and (under SETH) not if they do not: Hu et al., arXiv 2411.16525,
 * after Alman and Song, arXiv 2302.13214. An audit measures, head by head, where a prompt on a real model stands.
 *
 * A row is a token of a text, and its query in each head; it sees n keys, those of the prompt and of the text up to itself, or as
 * many of them as a window leaves. Queries and keys are as they enter the product, behind norms of heads and RoPE.
 *   scores     s_j = scale q . k_j, scale being the model's, which is 1 / sqrt(d_head) for most; before a soft cap
 *   centred    s_j - mean of s: of the keys less their mean over those that the row sees, which softmax does not notice
 *   entries    of q and k, times sqrt(d_head scale), which is d_head^(1/4) where scale is 1 / sqrt(d_head): then s_j = q . k_j /
 *              d_head as in the theorem, and entries of at most B give scores of at most B^2
 * The prompt's own rows are computed once and kept, and count as keys alone, unless with_prompt_rows. */
typedef struct sp_audit sp_audit;

typedef struct sp_audit_options {
    double epsilon;         /* relative error of the polynomial in the place of exp; 0: 1e-3 */
    bool with_prompt_rows;  /* a prompt of embeddings has queries, too: they count in all maxima and in the criterion */
    size_t n_left_out_rows; /* rows, at equal distances, on which virtual tokens are left out one by one, each of which is an
                               evaluation of these rows; 0: 64, SIZE_MAX: none */
} sp_audit_options;

typedef enum sp_verdict {
    SP_VERDICT_INSIDE, /* in every row entries are at most sqrt(ln n): the theorem's premise */
    SP_VERDICT_SCORES, /* they are not, but in every row the centred scores are at most ln n */
    SP_VERDICT_BEYOND
} sp_verdict;

typedef struct sp_audit_head {
    size_t layer, head;                  /* from 0 */
    double max_entry_q, max_entry_k;     /* largest entries, by amount; of all keys that a row sees */
    double max_score, max_score_centred; /* by amount */
    double cauchy_schwarz;               /* the largest scale |q| max_j |k_j - mean|, a bound on the centred scores of a row */
    double criterion;                    /* sqrt(ln n) of the worst row, that of the largest entries / sqrt(ln n); NAN: no row sees
                                            two keys, and with one there is nothing to approximate */
    size_t n_keys;                       /* n of that row; 0: none */
    double entries_ratio, scores_ratio;  /* the worst row's entries / sqrt(ln n), and the worst row's centred score / ln n */
    double entropy, sink_mass, prompt_mass; /* of attention: in nats; weight of the first position; of the prompt. Means over rows
                                               of texts */
    size_t key_rank_99; /* directions that hold 99 % of the energy of the prompt's keys about their mean; SIZE_MAX: no prompt */
    size_t degree;      /* of the best polynomial that keeps epsilon on scores up to max_score_centred; SIZE_MAX: none up to 16, or
                           the model has a soft cap, which no polynomial of scores has */
    size_t
        features; /* monomials of that degree in d_head variables, C(d_head + degree, degree); 0: no degree, or too many to count */
    double cost_ratio; /* exact / polynomial: multiplications of a row that sees the report's n keys, n (2 d_head + 1) / (2 features
                          (d_head + 1)); 0 where there are no features */
    sp_verdict verdict;
} sp_audit_head;

enum { SP_AUDIT_NEIGHBOURS = 3 };

typedef struct sp_audit_token {  /* a virtual token; NAN and -1 where a figure does not apply */
    double norm;                 /* of its embedding; prompts of embeddings only, as nearest */
    double key_norm, value_norm; /* root mean squares over layers and heads of its keys' and values' norms; keys and values only */
    int32_t nearest[SP_AUDIT_NEIGHBOURS]; /* tokens whose embeddings have the largest cosine with its own, descending */
    float cosine[SP_AUDIT_NEIGHBOURS];
    double left_out_kl;   /* what it does to the labels: mean over rows of KL(with || without), over the candidates, in nats */
    double left_out_loss; /* how much the loss rises without it: mean over rows of the mean over answer tokens, in nats */
} sp_audit_token;

typedef struct sp_audit_report {
    size_t n;                  /* the most keys that a row saw */
    size_t num_virtual_tokens; /* 0: no prompt */
    size_t n_texts, n_rows;    /* rows: tokens read */
    size_t n_skipped;          /* rows of data that could not be used */
    size_t n_truncated;        /* of those used, cut at the left */
    size_t n_layer, n_head;
    const sp_audit_head *heads; /* (n_layer * n_head), layer after layer */

    const sp_audit_token *tokens; /* (num_virtual_tokens); NULL: no prompt */
    double vocabulary_norm[3];    /* of the vocabulary's embeddings: 5 %, 50 % and 95 % have at most that norm; 0: none, or keys and
                                     values */
    size_t n_left_out_rows;       /* that left_out_* are means over; 0: none */
} sp_audit_report;                /* belongs to the audit, until its next call */

/* `prompt` may be NULL: the model alone. Of a multitask prompt it is the task in use. Model and prompt must outlive it. */
SP_API sp_status sp_audit_create(sp_audit **out, sp_model *model, const sp_prompt *prompt, const sp_audit_options *options);
SP_API void sp_audit_free(sp_audit *audit);

/* One text, n >= 1 tokens as the model reads them. It may be kept for a while, to be computed with others.
 * ARGUMENT: it does not fit the model's context behind the prompt. FORMAT: a query or a key is not finite. */
SP_API sp_status sp_audit_text(sp_audit *audit, const int32_t *tokens, size_t n);

/* All rows of a data file, read twice (to count, and for the labels where no verbalizers are given) and never held: memory does
 * not grow with it. A row's text is what evaluation reads: context and right answer, but for the answer's last token. `task` NULL:
 * the prompt's own, or the defaults. FORMAT: no row can be used. */
SP_API sp_status sp_audit_data(sp_audit *audit, const char *path, const sp_data_options *options, const sp_task *task,
                               const sp_hooks *hooks);

/* Where there is no data: n_texts (0: 8) texts of up to n_tokens (0: 256, at least 2), which the model writes behind the prompt,
 * sampled as they come (temperature 1). left_out_loss then estimates how far what it writes without a virtual token diverges.
 * UNSUPPORTED: no BOS, no end token. ARGUMENT: texts of one token, or no room for two. */
SP_API sp_status sp_audit_sampled(sp_audit *audit, size_t n_texts, size_t n_tokens, uint64_t seed, const sp_hooks *hooks);

/* What was found so far. FORMAT: no text was given yet. */
SP_API sp_status sp_audit_get_report(const sp_audit_report **out, sp_audit *audit);

/* ---- attention in almost linear time --------------------------------------------------------------------------- */

/* softmax(scale q k^T) v through a polynomial of the scores, in time proportional to n_queries + n_keys, with a bound on what it is
 * off; docs/fast-attention.md.
 *
 *     sp_fast *fast;  sp_certificate certificate;
 *     if (sp_fast_create(&fast, NULL)) die(sp_message());
 *     sp_attention_head head = {.q = q, .k = k, .v = v, .n_queries = n, .n_keys = n, .d = 8, .d_v = 8};
 *     if (sp_fast_attention(out, &certificate, fast, &head)) die(sp_message());
 *     printf("within %g\n", certificate.polynomial_bound + certificate.rounding_bound); */
typedef struct sp_fast sp_fast;

typedef struct sp_fast_options {
    double epsilon;     /* largest relative error of a weight, below 1; 0: 1e-3 */
    size_t degree;      /* of the polynomial, at most 16; 0: for each head the one that costs least */
    size_t max_degree;  /* of those to choose from; 0: 10, those above 8 only where f32's rounding is sure to stay within epsilon */
    double range;       /* scores that the polynomial must serve, beyond which queries are exact; 0: as far as epsilon allows */
    uint64_t max_bytes; /* that a call may take besides its arguments; 0: half of the machine's memory */
    int n_threads;      /* that a call may take, as many as have enough to do; 0: sp_machine's */
} sp_fast_options;

/* `options` may be NULL. ARGUMENT: an epsilon, a degree or a number of threads out of range. UNSUPPORTED: no degree up to
 * max_degree (or not `degree`) keeps epsilon on `range`; the message says which range and which epsilon it could. */
SP_API sp_status sp_fast_create(sp_fast **out, const sp_fast_options *options);
SP_API void sp_fast_free(sp_fast *fast);

typedef struct sp_attention_head { /* one head's arrays; of many heads, one each, the strides stepping over the others */
    const float *q, *k, *v;        /* (n_queries, d), (n_keys, d), (n_keys, d_v) */
    size_t n_queries, n_keys, d, d_v;
    size_t ldq, ldk, ldv, ldo; /* floats from row to row; 0: rows are dense. ldo: of the output */
    float scale;               /* of scores; 0: 1 / sqrt(d) */
    bool causal;               /* query i sees keys 0 .. n_keys - n_queries + i: the last query sees all */
} sp_attention_head;

/* What is known of an output. It differs from the exact one, of the same f32 inputs, by at most polynomial_bound + rounding_bound
 * in every coordinate of every query but the n_exact ones, which were computed exactly up to f32's rounding. */
typedef struct sp_certificate {
    size_t n_queries, n_keys;
    size_t n_exact;          /* queries whose scores might leave the range */
    size_t degree;           /* of the polynomial; 0: all queries are exact */
    size_t n_features;       /* C(d + degree, degree); of balanced ones rank in the place of d */
    double range;            /* |scores|, keys centred, of the other queries are at most this (Cauchy-Schwarz) */
    double max_range;        /* of all queries, before anything was balanced */
    double epsilon;          /* certified relative error of the weights */
    double polynomial_bound; /* (largest range of a value coordinate) * tanh(artanh(epsilon + remainder) / 2) */
    double rounding_bound;   /* of f32's rounding, the worst case */
    size_t n_beyond;         /* of a state: queries that were shortened to its range; else 0 */
    double weights_bound;    /* of a state: how far its weights are off at most, in total variation; polynomial_bound holds it */
    size_t n_exact_keys; /* of the hybrid: of the farthest keys, which `range` leaves out, so many at most are exact for a query of
                            the others; else 0. Its tiles of queries have keys and degrees of their own: degree, range and bounds
                            are then the largest of them */
    size_t rank; /* queries and keys were balanced, and scores depend on so many coordinates, at most d; 0: taken as they are */
    double remainder; /* of balanced ones: what scores may be off by, for what keys have beyond these; polynomial_bound holds it */
} sp_certificate;

/* out (n_queries, d_v) written. `certificate` may be NULL. A call shares blocks of keys and tiles of queries among its threads;
 * neither output nor certificate depends on how many these are. A handle serves one call at a time; a call from within a parallel
 * region runs on that thread.
 * Causal: blocks of keys that all of a tile's queries see go through the polynomial, the last ones, at most a block, are exact.
 * Where neither a degree nor a range was asked for and it pays, queries and keys are balanced (q -> B q, k - c -> C (k - c)), which
 * shrinks the range of opposed spectra, and keys that lie in a plane are taken in its coordinates; n_exact queries are exact as
 * they came. ARGUMENT: no keys, a dimension of 0, causal with more queries than keys, numbers that are not finite, scores beyond
 * f32: by name. MEMORY: more than max_bytes would be needed; the message says how much, or which degree would do. */
SP_API sp_status sp_fast_attention(float *out, sp_certificate *certificate, sp_fast *fast, const sp_attention_head *head);

/* Many heads: out[h] and certificates[h] (or certificates NULL) as sp_fast_attention gives them of heads[h] alone, to the bit,
 * however many threads there are. Heads side by side where they are many or small, each on one thread; one after the other, each on
 * all threads, where they are few and large, or where max_bytes has no room for as many as there are threads. Heads may share
 * arrays, but for outputs: of grouped queries several name the same keys.
 * A head that fails takes nothing from the others: all of these are computed, the status and the message ("head 3: key 11: ...")
 * are those of the first that failed, and of each that failed the certificate is all zeros (n_keys, too) and the output undefined.
 */
SP_API sp_status sp_fast_attention_heads(float *const *out, sp_certificate *certificates, sp_fast *fast,
                                         const sp_attention_head *heads, size_t n_heads);

/* One head by the exact kernel alone, which the polynomial is measured against: a fused softmax over blocks of keys. */
SP_API sp_status sp_exact_attention(float *out, sp_fast *fast, const sp_attention_head *head);

/* Keys and values that are kept as moments: a state is made once, appended to, saved; its size, and what a query costs, do not
 * depend on the number of keys. For prefixes: keys lie in a plane, k = centre + basis^T a + a remainder, and scores with them
 * depend on few numbers of a query.
 *
 *     sp_fast_state *state;
 *     sp_attention_head keys = {.k = k, .v = v, .n_keys = 65536, .d = 64, .d_v = 64};
 *     if (sp_fast_state_create(&state, &keys, &(sp_fast_state_options){.query_norm = 12})) die(sp_message());
 *     sp_attention_head queries = {.q = q, .n_queries = n, .d = 64};
 *     if (sp_fast_state_attend(out, lse, &certificate, state, &queries)) die(sp_message());
 *
 * A state shares a softmax with other keys through lse: with (out, lse) of either part, weights exp(lse - max) / sum of them; each
 * weight is then off by weights_bound at most in total variation, times the range of all values.
 *
 * Keys are gone once they are in, so queries that leave the range cannot be computed exactly. They are shortened in the plane until
 * their scores keep the range: a score then is off by as much as it might have left it, n_beyond counts such queries, and
 * weights_bound, polynomial_bound hold what that costs: they stand for every query, but say little where n_beyond is not 0. */
typedef struct sp_fast_state sp_fast_state;

enum { SP_FAST_STATE_MAX_RANK = 64 };

typedef struct sp_fast_state_options {
    double epsilon;        /* largest relative error of a weight; 0: 1e-3 */
    double query_norm;     /* length in the plane of queries to serve; 0: what range says, or what `degree` serves */
    double range;          /* |scores| to serve, but for what is common to all keys, in place of query_norm; 0: as that says */
    size_t degree;         /* of the polynomial; 0: the smallest that serves query_norm, or range */
    size_t max_degree;     /* 0: 8 */
    double key_radius;     /* distance in the plane of keys, later ones too, from the centre; 0: that of the first keys */
    double rank_tolerance; /* how far keys may lie from the plane, as a share of the largest distance from the centre; 0: 1e-5 */
    size_t max_rank;       /* of the plane, at most 64; 0: that */
    const float *centre;   /* (d), with `basis`; NULL: the keys' mean */
    const float *basis;    /* (rank, d); NULL: found from the keys */
    size_t rank;
    uint64_t max_bytes; /* 0: no limit */
} sp_fast_state_options;

typedef struct sp_fast_state_info {
    size_t d, d_v, n_keys, rank, degree, n_features, n_bytes;
    double epsilon, range; /* |scores|, but for what is common to all keys, that the polynomial serves */
    double key_radius, query_norm, remainder;
} sp_fast_state_info;

/* Of `keys` the fields k, v, n_keys, d, d_v, ldk, ldv and scale are read. Centre, plane, radius, range and degree stay as they are
 * found here. ARGUMENT: no keys, numbers that are not finite, neither query_norm nor degree. UNSUPPORTED: the keys' rank is above
 * max_rank, or no degree serves (or range above 5, beyond which f32 has no digits): the message says what would. MEMORY: max_bytes.
 */
SP_API sp_status sp_fast_state_create(sp_fast_state **out, const sp_attention_head *keys, const sp_fast_state_options *options);
SP_API void sp_fast_state_free(sp_fast_state *state);

/* ARGUMENT: a key lies beyond the radius or off the plane, or is not finite; the message says which, and none was taken. */
SP_API sp_status sp_fast_state_append(sp_fast_state *state, const sp_attention_head *keys);

/* out (n_queries, d_v), rows ldo apart, and lse (n_queries), ln sum exp of the scores, or NULL; certificate or NULL. Of `queries`
 * the fields q, n_queries, d, ldq and ldo are read. Several threads may read one state. */
SP_API sp_status sp_fast_state_attend(float *out, float *lse, sp_certificate *certificate, const sp_fast_state *state,
                                      const sp_attention_head *queries);
SP_API void sp_fast_state_get_info(sp_fast_state_info *out, const sp_fast_state *state);

/* A safetensors file; equal states give equal bytes. FORMAT: a file that holds no state; the message says why. */
SP_API sp_status sp_fast_state_save(const sp_fast_state *state, const char *path);
SP_API sp_status sp_fast_state_load(sp_fast_state **out, const char *path);

/* ---- compiling ------------------------------------------------------------------------------------------------- */

/* A prompt of keys and values, compiled: of each layer and key head the moments of its keys and values (sp_fast_state), in place of
 * the keys. Its size, and what a token behind it costs, do not depend on num_virtual_tokens; attention to it is a polynomial's, off
 * by weights_bound at most in total variation; docs/compiling.md. It evaluates and generates like any other prompt, alone, not in
 * an ensemble; it has no rows: sp_prompt_keys_values and sp_prompt_weights are NULL, and nothing can start from it or train it. */
typedef struct sp_compile_options {
    double epsilon;   /* largest relative error of a weight; 0: 1e-3 */
    double max_logit; /* scores, keys centred, that are served; 0: a tenth more than what a prompt bounded in training reached */
    size_t degree;    /* of the polynomials; 0: the smallest that serves max_logit */
    size_t text_position; /* 0: the prompt's own */
    uint64_t max_bytes;   /* of all moments; 0: 4 GiB */
} sp_compile_options;

typedef struct sp_compiled_info {
    size_t num_virtual_tokens, text_position, n_heads; /* layers times heads of keys */
    size_t rank, degree, n_features;                   /* the largest of a head */
    double epsilon, range;                             /* the largest, the smallest */
    uint64_t n_bytes;
    double cost_ratio; /* multiplications of a token with the keys themselves, by those with the moments */
} sp_compiled_info;

/* `options` and `hooks` may be NULL. UNSUPPORTED: a prompt of embeddings, or compiled already; a model with windows or a soft cap
 * of scores; no degree serves. ARGUMENT: no max_logit where the prompt has none. MEMORY: max_bytes. The message says which would.
 */
SP_API sp_status sp_prompt_compile(sp_prompt **out, const sp_model *model, const sp_prompt *prompt,
                                   const sp_compile_options *options, const sp_hooks *hooks);

/* ARGUMENT: it is not compiled. */
SP_API sp_status sp_prompt_get_compiled_info(sp_compiled_info *out, const sp_prompt *prompt);

/* ---- planning: how many virtual tokens -------------------------------------------------------------------------- */

typedef struct sp_plan_options {
    sp_task task;
    double learning_rate;      /* as in training; 0: prompt tuning's */
    size_t batch_size;         /* 0: 16 */
    size_t steps;              /* of a pilot; 0: 60 */
    size_t n_seeds;            /* pilots of each length; 0: 2 */
    size_t max_virtual_tokens; /* the longest prompt that may be recommended; 0: 128 */
    double tolerance;          /* how much larger than the longest prompt's a loss may be, as a share of it; 0: 0.02 */
    double points;             /* of rows with labels: by how many percent fewer right answers there may be; 0: 1 */
    double bits_per_vector;    /* what a virtual token of this model holds, as it was measured; 0: not known */
    uint64_t seed;
    bool resume, overwrite; /* of the pilots in the directory */
} sp_plan_options;

enum { SP_PLAN_MAX_LENGTHS = 12 };

/* What falls with the length: floor + gain num_virtual_tokens^-rate. */
typedef struct sp_plan_curve {
    double floor, gain, rate;
    double noise; /* deviation of a pilot from it, as a share of its height */
} sp_plan_curve;

/* A figure of the pilots of one length: mean and extremes, NAN where none was tried; the curve there, and where 80 % of the curves
 * run that noise like the pilots' gives. */
typedef struct sp_plan_figure {
    double mean, least, most;
    double fitted, fitted_low, fitted_high;
} sp_plan_figure;

typedef struct sp_plan_length {
    size_t num_virtual_tokens;
    size_t n_pilots;         /* 0: not tried */
    sp_plan_figure loss;     /* on the rows held out, nats a row */
    sp_plan_figure accuracy; /* all NAN where rows have no labels */
    double step_seconds;     /* a step of training, measured in this call */
    double decode_tokens_per_second;
    size_t peak_bytes;  /* resident memory of this process, training such a prompt or a shorter one */
    size_t state_bytes; /* keys and values of the prompt, f32: what a process that serves it holds */
} sp_plan_length;

typedef struct sp_plan_report {
    size_t n_rows, n_held_out; /* trained on, judged by */
    bool is_held_out;          /* false: `data` are too few, and pilots are judged by the rows that they were trained on */
    bool has_accuracy;
    double loss, accuracy;      /* of the model without a prompt, on the rows held out */
    double answer_bits;         /* a row: -log2 p of its answer under the model without a prompt; mean over the rows held out */
    double vectors_to_memorise; /* answer_bits * n_rows / bits_per_vector; NAN: bits_per_vector is not known */
    sp_plan_curve loss_curve;
    sp_plan_curve error_curve; /* of 1 - accuracy; all NAN where rows have no labels. Of n rows and k wrong answers (k + 1/2) / (n +
                                  1) is taken: no wrong answer among few rows is not the same as none at all */
    size_t num_virtual_tokens; /* what is recommended */
    size_t low, high;          /* and between what it lies in 80 % of the curves */
    size_t steps;              /* of a pilot */
    sp_plan_length lengths[SP_PLAN_MAX_LENGTHS]; /* 1, 2, 4, ... max_virtual_tokens */
    size_t n_lengths;
    double seconds;
} sp_plan_report;

/* How many virtual tokens this task wants, by prompt tuning. Pilots with 1, 2, 4, 8 and 16 virtual tokens are trained and judged by
 * `eval`, or, where it is NULL, by rows held out of `data`: an eighth, at most 512. Curves of diminishing returns are fitted to
 * their losses and, where rows have labels, to their shares of wrong answers, and the shortest prompt is recommended (1, 2, 4, ...)
 * that is by its curve nearly as good as the longest: with labels within `points` of its accuracy, else within `tolerance` of its
 * loss. Where that is longer than every pilot, longer pilots follow until it is not.
 *
 * Pilots are runs of sp_train below `dir`, NUM_VIRTUAL_TOKENS-SEED each, and stay there: with `resume` those that are there already
 * are not trained again. ARGUMENT: a number out of range; fewer than two rows; else as sp_train. */
SP_API sp_status sp_plan(sp_plan_report *out, sp_model *model, const sp_dataset *data, const sp_dataset *eval, const char *dir,
                         const sp_plan_options *options, const sp_hooks *hooks);

/* ---- labs: the theorems, run ------------------------------------------------------------------------------------ */

/* How a frozen transformer is built that a prompt turns into any Lipschitz function [0,1]^{len x d} -> [0,1]^{len x d};
 * docs/theory.md. */
typedef enum sp_construction {
    SP_LOOKUP,  /* constant size; one attention layer for len 1, two beyond */
    SP_UNIFORM, /* one attention layer, one head, every len: the theorem to the letter. As wide as the table is long */
    SP_INDEX,   /* the paper's way: the prompt is the number of a function of a finite family */
    SP_DIGITS   /* one virtual token, whose digits are the table: as far as f64 has them */
} sp_construction;

typedef struct sp_universality_options {
    size_t d, len; /* numbers of a token, tokens; 0: 1 */
    size_t grid;   /* cells of a coordinate, a power of two; 0: what epsilon takes, or 16 */
    sp_construction construction;
    bool is_deep;           /* variant A: feed-forward layers of at most 4 units; else B: wide ones. They give the same function */
    double ramp;            /* width of the quantiser's ramps in grid steps, at most 1; 0: 1/16, of INDEX 1 / (64 grid^2) */
    double epsilon;         /* largest error allowed, in the sup norm; 0: any. ARGUMENT: the grid cannot promise it */
    const char *function;   /* identity, reverse, sort, mean, max, sine, bump, rotate; NULL: identity */
    const char *table_path; /* or a CSV file, a row d len inputs and as many outputs, in [0, 1], token after token */
    const char *expression; /* or a formula of x1, x2, ... and i, the number of the output (muParser's syntax), clipped to [0, 1] */
    double lipschitz;       /* of the expression in the sup norm; 0: estimated */
    size_t n_samples;       /* 0: 10 000 */
    uint64_t seed;
    bool only_grid;         /* no coarser grids: no order */
    const char *export_dir; /* the machine as safetensors files and a PyTorch reader; NULL: none */
} sp_universality_options;

enum { SP_UNIVERSALITY_MAX_POINTS = 4 };

typedef struct sp_universality_point { /* one grid */
    size_t grid, num_virtual_tokens;
    double error[2], ci95[2][2]; /* d_1 and d_2 over random inputs, and their 95 % intervals */
    double sup;                  /* the largest difference seen, hard inputs included (INDEX: off the ramps) */
    double bound;                /* of it, proved */
    double identity_exact;       /* d_2 of the identity at this grid and ramp, in closed form */
} sp_universality_point;

typedef struct sp_universality_report {
    sp_universality_point at; /* the grid that was asked for */
    char function[32];
    double lipschitz, ramp;
    bool lipschitz_is_estimated; /* then the bound is none */
    size_t n_samples;
    size_t n_channels, depth, n_attention, max_ffn_width, max_rank, weights_nonzero;
    double max_weight;
    double gap, gap_bound; /* of the last attention layer's scores, best less next best, off the ramps: seen, and as built */
    double leakage;        /* bound on what other keys than the right ones add */
    char weights_sha256[65];
    double control_other,
        control_shuffled; /* d_2 with another function's prompt, and with this one shuffled, in multiples of the own */
    sp_universality_point points[SP_UNIVERSALITY_MAX_POINTS]; /* coarse to fine */
    size_t n_points;
    double order; /* slope of log d_2 over the log of the grid step; NAN: one grid */
    double seconds;
} sp_universality_report;

/* Builds the transformer, then gives it the function's prompt, and measures.
 * ARGUMENT: a grid that is no power of two or too coarse for epsilon, an unknown function, an expression that does not parse.
 * UNSUPPORTED: f64 has too few digits for the construction; the message says how many it takes. MEMORY: the table is too large. */
SP_API sp_status sp_lab_universality(sp_universality_report *out, const sp_universality_options *options, const sp_hooks *hooks);

/* How long a prompt must be, by formula. Functions are C-Lipschitz in the norm alpha, from [0,1]^{len x d} to itself, and epsilon
 * is the largest error allowed, in that norm too; docs/theory.md, section 2. */
typedef struct sp_capacity_bound_options {
    size_t d, len;           /* 0: 1 */
    double lipschitz;        /* C; 0: 1 */
    double alpha;            /* at least 1; 0: infinity, the sup norm */
    double epsilon;          /* in (0, 1/2); 0: 0.05 */
    double precision;        /* bits of a number of the prompt, so 2^precision values; 0: 32 */
    size_t n_sequences;      /* of the data set that is memorised; 0: 64 */
    double prompt_lipschitz; /* of the machines that `smooth` speaks of, in the sup norm, in their prompt; 0: 1, the look-up's */
} sp_capacity_bound_options;

typedef enum sp_capacity_row_id {
    SP_CAPACITY_PAPER,        /* the formula of arXiv 2411.16525 */
    SP_CAPACITY_TAKES_LOOKUP, /* what our constructions take for every function */
    SP_CAPACITY_TAKES_UNIFORM,
    SP_CAPACITY_TAKES_DIGITS,
    SP_CAPACITY_TAKES_INDEX,     /* for the 8 functions that `lab universality` has by name */
    SP_CAPACITY_COUNT_FUNCTIONS, /* what no machine passes: to tell all the functions apart */
    SP_CAPACITY_COUNT_PAIRS,     /* to memorise any n_sequences pairs */
    SP_CAPACITY_COUNT_SMOOTH,    /* the same, if the machine is Lipschitz in its prompt */
    SP_CAPACITY_N_ROWS
} sp_capacity_row_id;

typedef enum sp_capacity_kind { SP_CAPACITY_FORMULA, SP_CAPACITY_TAKES, SP_CAPACITY_BOUND } sp_capacity_kind;

typedef struct sp_capacity_row {
    const char *name; /* "paper", "lookup", ... */
    sp_capacity_kind kind;
    double log2_tokens;        /* virtual tokens; of a bound before rounding up, and -INFINITY where it says nothing */
    double num_virtual_tokens; /* whole but for the formula; INFINITY beyond f64 */
    double log2_bits;          /* what the row counts: of TAKES the bits that one number must carry; of BOUND those that the whole
                                * prompt must. NAN: none are counted */
    size_t grid;               /* of TAKES: cells of a coordinate */
    const char *formula, *assumption;
} sp_capacity_row;

typedef struct sp_capacity_bound_report {
    sp_capacity_bound_options options; /* with defaults in */
    sp_capacity_row rows[SP_CAPACITY_N_ROWS];
} sp_capacity_bound_report;

/* ARGUMENT: a number out of range, by name; a grid beyond 2^62. */
SP_API sp_status sp_lab_capacity_bound(sp_capacity_bound_report *out, const sp_capacity_bound_options *options);

/* Memorisation: random sequences X_i and answers Y_i, all of [0,1]^{len x d}; how many virtual tokens make a frozen transformer of
 * one layer and one head answer all of them within epsilon, in the sup norm; docs/theory.md, section 2. */
typedef struct sp_memorise_options {
    const size_t *sequences, *d, *len; /* lists, of which all combinations are run; NULL: 1 2 3 4 6 8 12 16; 1 2 4; 1 2 */
    size_t n_sequences, n_d, n_len;    /* their lengths */
    size_t n_seeds;                    /* data sets and layers of each; 0: 3 */
    double epsilon;                    /* in (0, 1/2); 0: 0.05 */
    double precision;                  /* bits of a number of the prompt, for the counting bound; 0: 64, which f64 has */
    size_t max_tokens;                 /* the longest prompt that is tried; 0: 64 */
    size_t steps, restarts;            /* of learning, for each length that is tried; 0: 200, 16 */
    size_t n_positions, n_hidden;      /* of the wide layer: channels of positions; units of both layers; 0: 8, 32 */
    bool is_shared;                    /* all sequences begin with the same token */
    uint64_t seed;
} sp_memorise_options;

/* Layers with random weights, whose prompt is learnt. */
typedef enum sp_memorise_layer {
    SP_MEMORISE_WIDE,  /* d channels for the token and n_positions more that hold a random position of each prompt token */
    SP_MEMORISE_PLAIN, /* as wide as its tokens, the layer of arXiv 2411.16525 */
    SP_MEMORISE_N_LAYERS
} sp_memorise_layer;

typedef struct sp_memorise_trained {
    size_t num_virtual_tokens; /* the fewest that were found to do, by doubling and bisection; 0: none up to max_tokens did */
    double error;              /* of these; not reached: the smallest that was seen with any number of tokens */
    double largest;            /* number of the prompt, by amount */
    size_t bits;               /* of a number, sign and all, that keep the error within 2 epsilon: multiples of 2^{1-bits} of the
                                * power of two above the largest. 0: not reached */
    size_t steps;              /* of learning, all lengths together */
} sp_memorise_trained;

/* Layers that are built, whose prompt is written down. */
typedef enum sp_memorise_construction {
    SP_MEMORISE_TABLE, /* SP_LOOKUP for len 1, else SP_UNIFORM, on the coarsest grid that keeps the sequences apart */
    SP_MEMORISE_KEYED, /* constant size; a virtual token for each token, found by that token's own numbers */
    SP_MEMORISE_N_CONSTRUCTIONS
} sp_memorise_construction;

typedef struct sp_memorise_constructed {
    size_t grid;               /* 0: none keeps apart what must be answered differently, and what follows is 0 and NAN */
    double num_virtual_tokens; /* whole */
    double error;              /* of the machine, run; NAN: it was too large to run */
    size_t bits;               /* as of what is learnt, numbers being in [0, 1]: multiples of 2^-bits; 0: not run */
} sp_memorise_constructed;

typedef struct sp_memorise_point {
    size_t n_sequences, d, len;
    uint64_t seed;
    double lipschitz; /* of the data set in the sup norm, at least 1 */
    sp_memorise_trained trained[SP_MEMORISE_N_LAYERS];
    sp_memorise_constructed constructed[SP_MEMORISE_N_CONSTRUCTIONS];
    double log2_paper; /* tokens, by sp_lab_capacity_bound with this slope: the paper's formula, */
    double log2_pairs; /* and what no machine passes */
} sp_memorise_point;

typedef struct sp_memorise_report {
    sp_memorise_options options; /* with defaults in, without the lists */
    sp_memorise_point *points;   /* (n_points) by d, len, n_sequences, seed */
    size_t n_points;
    double seconds;
} sp_memorise_report;

/* Parallel over points; the numbers do not depend on the number of threads. Of one seed, a larger data set holds the smaller ones.
 * ARGUMENT: a number out of range, by name. STOPPED: *out is empty. */
SP_API sp_status sp_lab_memorise(sp_memorise_report *out, const sp_memorise_options *options, const sp_hooks *hooks);
SP_API void sp_memorise_report_clear(sp_memorise_report *report);

/* The phase transition of arXiv 2411.16525 (after Alman and Song, arXiv 2302.13214), timed: attention over n keys whose entries,
 * and whose queries', are B = c sqrt(ln n), so that scores q . k / d are at most c^2 ln n; docs/theory.md, section 3. */
typedef struct sp_phase_options {
    size_t d;                      /* of a head, and of its values; 0: 8 */
    double epsilon;                /* of the polynomial in the place of exp; 0: 1e-3 */
    size_t min_log2_n, max_log2_n; /* n = 2^min .. 2^max; 0: 10 and 20 */
    size_t hard_log2_n;            /* of the hard instances, an even number; 0: 14 */
    double seconds;                /* no single run that is expected to take longer; 0: 10 */
    uint64_t seed;
} sp_phase_options;

enum { SP_PHASE_N_C = 5, SP_PHASE_MAX_SIZES = 21, SP_PHASE_N_HARD = 13, SP_PHASE_HARD_D = 32 };

typedef struct sp_phase_point {
    double c;
    size_t n;
    double entry, range; /* B, and B^2: scores are at most that */
    size_t degree;       /* that epsilon takes on this range; SIZE_MAX: more than 16, and what follows is 0 and NAN */
    size_t features;
    double seconds; /* of the polynomial; NAN: it would take longer than allowed */
    size_t n_exact; /* queries that the polynomial did not serve */
    double bound;   /* the certificate's, of values in [-1/2, 1/2] */
} sp_phase_point;

typedef struct sp_phase_size { /* the exact kernel, whose time does not depend on numbers */
    size_t n;
    double seconds;
    bool extended; /* by n^2 from the last that was run */
} sp_phase_size;

/* Hard instances: n^(1/2) clusters of n^(1/2) keys in {-B, B}^32. Of a query's cluster one key is the query itself and carries the
 * right answer, +1 or -1; all others agree with it in half as many more coordinates than not, and carry the wrong one. A softmax
 * answers right where e^(B^2) > n^(1/2) e^(B^2 / 2), which is c > 1. */
typedef struct sp_phase_hard {
    double c, range;
    double exact_right, polynomial_right;   /* shares of queries whose output has the right sign */
    double exact_output, polynomial_output; /* mean of output times right answer */
    double refused;                         /* the share of queries that the certificate says were beyond the polynomial's range */
} sp_phase_hard;

typedef struct sp_phase_report {
    sp_phase_options options; /* with defaults in */
    size_t n_sizes;
    sp_phase_size sizes[SP_PHASE_MAX_SIZES];
    sp_phase_point points[SP_PHASE_N_C][SP_PHASE_MAX_SIZES];
    double exact_exponent;          /* of time against n, from 2^12 on, of what was run; NAN: fewer than three sizes */
    double exponents[SP_PHASE_N_C]; /* of the polynomial's */
    size_t hard_n, hard_degree, hard_features;
    double hard_range; /* what that degree serves: the polynomial's scores are shrunk into it */
    sp_phase_hard hard[SP_PHASE_N_HARD];
} sp_phase_report;

/* Processor time of the calling thread. Stopped, the report holds what was found until then. ARGUMENT: a number out of range. */
SP_API sp_status sp_lab_phase(sp_phase_report *out, const sp_phase_options *options, const sp_hooks *hooks);

/* What is to be reproduced. */
typedef enum sp_cram_kind {
    SP_CRAM_NATURAL,  /* the texts as they are */
    SP_CRAM_SHUFFLED, /* their words in random order */
    SP_CRAM_RANDOM    /* tokens of the vocabulary, each as likely, without the special ones */
} sp_cram_kind;

typedef struct sp_cram_options {
    sp_cram_kind kind;
    size_t num_virtual_tokens; /* that are learnt; 0: 1. The adapter has a frozen BOS row more, the first */
    size_t n_samples;          /* 0: 4 */
    size_t steps;              /* of the optimiser, for each sample; 0: 1000 */
    double seconds;            /* stop after so many for each sample, on average; 0: only steps count */
    double learning_rate;      /* 0: 0.1 */
    uint64_t seed;             /* which texts, which order, which tokens */
    const char *export_dir;    /* the adapters, DIR/sample-1, ...; and once a minute where the search stands; NULL: none */
    bool resume;               /* go on with the search that stands in export_dir, if there is one, to the same bytes */
    bool overwrite;            /* replace it */
} sp_cram_options;

typedef struct sp_cram_sample {
    size_t row;      /* of the data, from 0; 0 with RANDOM */
    size_t n_tokens; /* that greedy decoding behind the vectors says exactly */
    size_t n_text;   /* the most it could have been */
    size_t steps;    /* that were taken */
    size_t restarts; /* how often vectors that learnt nothing began anew */
    double bits;     /* of these tokens under the model without the vectors, behind BOS: sum of -log2 p */
    int32_t *tokens; /* (n_text) */
} sp_cram_sample;

typedef struct sp_cram_report {
    size_t num_virtual_tokens, n_samples;
    sp_cram_sample *samples; /* (n_samples) */
    double mean_tokens, mean_bits, bits_per_vector;
    double seconds;
    bool stopped; /* by the hooks, with more steps to take */
} sp_cram_report;

/* The longest beginnings of texts that num_virtual_tokens learnt vectors make the model say by greedy decoding, found by learning
 * them a little further at a time. All samples share each pass. What is reported was generated behind the finished vectors, read
 * from the adapters where those are written.
 * `texts`: rows of which SP_ROW_TEXT, LABEL and so on give their text; NULL with RANDOM.
 * UNSUPPORTED: the model names no BOS. ARGUMENT: fewer texts than samples; export_dir holds a search, and neither resume nor
 * overwrite is set. MISMATCH: the search to resume is of another model, or of other texts or options than steps and seconds, which
 * count from its beginning. STOPPED: the report holds what was found until then, and
 * the adapters are written. IO: adapters could not be written; where that was noticed after the search (a disk that is full by
 * then), the report holds what was found, generated behind the vectors in memory, and n_samples is not 0. */
SP_API sp_status sp_lab_cram(sp_cram_report *out, sp_model *model, const sp_dataset *texts, const sp_cram_options *options,
                             const sp_hooks *hooks);
SP_API void sp_cram_report_clear(sp_cram_report *report);

/* What is remembered of a report. */
typedef struct sp_cram_result {
    double bits_per_vector, mean_tokens, mean_bits;
    size_t n_samples, steps; /* of all samples together */
    bool stopped;            /* as the report's */
} sp_cram_result;

/* Keeps the result in a file of this model in `dir`, which is made if needed; one that took more steps stays as it is. A search
 * that was stopped is as good a lower bound as another of so many steps, and the file says so.
 * FORMAT, on load too: what is there is damaged. IO: it can not be written, and what is there is as it was. */
SP_API sp_status sp_cram_result_keep(const sp_cram_report *report, const char *dir, const sp_model *model, sp_cram_kind kind);
SP_API sp_status sp_cram_result_load(sp_cram_result *out, bool *found, const char *dir, const sp_model *model, sp_cram_kind kind,
                                     size_t num_virtual_tokens);

#ifdef __cplusplus
}
#endif
#endif
