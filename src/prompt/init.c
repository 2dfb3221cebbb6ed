/* init.c: the vectors that training starts from. Of a prompt of embeddings (keys.c has the others):
 *
 *   vocab    embeddings of random tokens: PEFT's SAMPLE_VOCAB, but without special tokens and without repetition
 *   text     embeddings of a text's tokens, repeated or cut: PEFT's TEXT, but without the BOS that a tokenizer may add
 *   random   normal numbers with mean and deviation of the vocabulary's embeddings. PEFT's RANDOM is torch.nn.Embedding's standard
 *            normal, some ten times longer than any real embedding of most models, from where training takes far more steps
 *
 * Behind a network (reparameterize.c) random is the network's own start, and the others are what its last layer is moved to give.
 *
 * Lester et al., arXiv 2104.08691, section 3.2, compare them: vocabulary and text train best. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"
#include "prompt/internal.h"
#include "text/tokenizer.h"

enum {
    DEFAULT_VIRTUAL_TOKENS = 32,
    RNG_STREAM = 0x696e6974,
    NETWORK_STREAM = 0x6e657477
}; /* "init", "netw": streams that nothing else draws from */

/* A special token decodes to nothing unless special tokens are asked for. */
static sp_status is_plain(bool *out, const sp_tokenizer *tokenizer, int32_t token)
{
    char *text;
    size_t n_bytes;
    sp_status st = sp_detokenize(&text, &n_bytes, tokenizer, &token, 1, false);
    *out = !st && n_bytes > 0;
    sp_free(text);
    return st;
}

/* n tokens of the vocabulary in random order; where it has fewer, they come again. */
static sp_status draw_tokens(int32_t *tokens, size_t n, const sp_model *model, sp_rng *rng)
{
    const size_t n_rows = sp_model_n_vocab(model), n_tokens = sp_tokenizer_n_vocab(sp_model_tokenizer(model));
    const size_t n_vocab = n_rows < n_tokens ? n_rows : n_tokens; /* an embedding matrix may be padded */
    size_t *order = malloc(n_vocab * sizeof *order), n_drawn = 0;
    sp_status st = SP_OK;
    if (!order) return sp_fail_no_memory(n_vocab * sizeof *order);
    sp_rng_permute(rng, order, n_vocab);
    for (size_t i = 0; i < n_vocab && n_drawn < n && !st; i++) {
        bool plain;
        st = is_plain(&plain, sp_model_tokenizer(model), (int32_t)order[i]);
        if (plain) tokens[n_drawn++] = (int32_t)order[i];
    }
    free(order);
    if (!st && n_drawn == 0)
        st = sp_fail(SP_ERR_UNSUPPORTED, "the model's vocabulary has no token with text to start from; use --init random");
    for (size_t i = n_drawn; i < n && !st; i++) tokens[i] = tokens[i - n_drawn];
    return st;
}

static sp_status init_vocab(float *rows, size_t n, const sp_model *model, sp_rng *rng)
{
    int32_t *tokens = malloc(n * sizeof *tokens);
    if (!tokens) return sp_fail_no_memory(n * sizeof *tokens);
    sp_status st = draw_tokens(tokens, n, model, rng);
    if (!st) st = sp_model_embed(rows, model, tokens, n);
    free(tokens);
    return st;
}

static sp_status check_text(const char *text)
{
    if (text && *text) return SP_OK;
    return sp_fail(SP_ERR_ARGUMENT, "initialisation from text needs a text that is not empty");
}

static sp_status init_text(float *rows, size_t n, const sp_model *model, const char *text)
{
    int32_t *tokens;
    size_t n_tokens;
    sp_status st = check_text(text);
    if (st) return st;
    st = sp_tokenize(&tokens, &n_tokens, sp_model_tokenizer(model), text, SIZE_MAX, SP_TOKENIZE_PARSE_SPECIAL);
    if (st) return st;
    if (n_tokens == 0) st = sp_fail(SP_ERR_ARGUMENT, "the text to start from gives no token; use a longer one");
    const size_t d_model = sp_model_d_model(model), n_embedded = n_tokens < n ? n_tokens : n;
    if (!st) st = sp_model_embed(rows, model, tokens, n_embedded);
    for (size_t r = n_embedded; r < n && !st; r++)
        memcpy(rows + r * d_model, rows + (r - n_embedded) * d_model, d_model * sizeof *rows);
    sp_free(tokens);
    return st;
}

static sp_status init_random(float *rows, size_t n, const sp_model *model, sp_rng *rng)
{
    double mean, deviation;
    sp_status st = sp_model_embedding_moments(&mean, &deviation, model);
    if (st) return st;
    for (size_t i = 0; i < n * sp_model_d_model(model); i++) rows[i] = (float)(mean + deviation * sp_rng_normal(rng));
    return SP_OK;
}

static sp_status init_embeddings(float *rows, size_t n, const sp_model *model, const sp_prompt_options *options)
{
    sp_rng rng = sp_rng_seed(options->seed, RNG_STREAM);
    switch (options->init) {
    case SP_INIT_VOCAB:
        return init_vocab(rows, n, model, &rng);
    case SP_INIT_RANDOM:
        return init_random(rows, n, model, &rng);
    case SP_INIT_TEXT:
        return init_text(rows, n, model, options->init_text);
    }
    return sp_fail(SP_ERR_ARGUMENT, "unknown initialisation %d", (int)options->init);
}

/* Tokens that are no text together but would not fit the model's context are the beginnings of several. */
static sp_status init_keys_of_vocab(sp_prompt *p, sp_model *model, sp_rng *rng)
{
    enum { PIECE = 512 };
    sp_model_info info;
    sp_model_get_info(&info, model);
    const size_t n = p->num_virtual_tokens, fitting = info.context_length < PIECE ? info.context_length : (size_t)PIECE;
    const size_t piece = n <= info.context_length ? n : fitting;
    int32_t *tokens = malloc(n * sizeof *tokens);
    if (!tokens) return sp_fail_no_memory(n * sizeof *tokens);
    sp_status st = draw_tokens(tokens, n, model, rng);
    for (size_t first = 0; first < n && !st; first += piece)
        st = sp_keys_values_of_tokens(p->rows + first * p->width, model, tokens + first, n - first < piece ? n - first : piece);
    free(tokens);
    return st;
}

static sp_status init_keys_values(sp_prompt *p, sp_model *model, const sp_prompt_options *options)
{
    sp_rng rng = sp_rng_seed(options->seed, RNG_STREAM);
    switch (options->init) {
    case SP_INIT_VOCAB:
        return init_keys_of_vocab(p, model, &rng);
    case SP_INIT_RANDOM:
        for (size_t i = 0; i < p->num_virtual_tokens * p->width; i++) p->rows[i] = (float)sp_rng_normal(&rng);
        return SP_OK;
    case SP_INIT_TEXT: {
        sp_status st = check_text(options->init_text);
        return st ? st : sp_keys_values_of_text(p->rows, model, options->init_text, p->num_virtual_tokens);
    }
    }
    return sp_fail(SP_ERR_ARGUMENT, "unknown initialisation %d", (int)options->init);
}

/* Attention needs a place to rest, and trained models rest it on BOS: the row keeps BOS's embedding. */
static sp_status init_sink(float *row, const sp_model *model)
{
    const int32_t bos = sp_tokenizer_bos(sp_model_tokenizer(model));
    if (bos < 0) return sp_fail(SP_ERR_UNSUPPORTED, "the model names no BOS token, so there is no BOS sink; use --sink none");
    return sp_model_embed(row, model, &bos, 1);
}

/* Leading rows that stay as they start. */
static size_t count_frozen(const sp_prompt_options *options)
{
    if (options->method != SP_METHOD_CARTRIDGE || options->num_frozen_tokens == SIZE_MAX) return 0;
    return options->num_frozen_tokens ? options->num_frozen_tokens : 1;
}

static sp_status check_network(const sp_prompt_options *options)
{
    const bool is_lstm = options->encoder_reparameterization_type == SP_ENCODER_LSTM;
    if ((unsigned)options->encoder_reparameterization_type > SP_ENCODER_LSTM)
        return sp_fail(SP_ERR_ARGUMENT, "unknown encoder_reparameterization_type %d",
                       (int)options->encoder_reparameterization_type);
    if (options->prefix_projection && options->method != SP_METHOD_PREFIX)
        return sp_fail(SP_ERR_ARGUMENT, "prefix_projection goes with method prefix only");
    if (options->encoder_hidden_size && !sp_prompt_options_have_network(options))
        return sp_fail(SP_ERR_ARGUMENT, "encoder_hidden_size goes with method ptuning, and with prefix_projection");
    if (is_lstm && options->method != SP_METHOD_PTUNING)
        return sp_fail(SP_ERR_ARGUMENT, "encoder_reparameterization_type goes with method ptuning only");
    if (options->encoder_num_layers && !is_lstm)
        return sp_fail(SP_ERR_ARGUMENT, "encoder_num_layers is of an LSTM; an MLP has its two hidden layers, as PEFT's");
    return SP_OK;
}

static sp_status check_options(const sp_prompt_options *options, size_t n, const sp_model *model)
{
    sp_model_info info;
    sp_model_get_info(&info, model);
    if (options->sink != SP_SINK_NONE && options->sink != SP_SINK_BOS)
        return sp_fail(SP_ERR_ARGUMENT, "unknown sink %d", (int)options->sink);
    if ((unsigned)options->method >= SP_N_METHODS) return sp_fail(SP_ERR_ARGUMENT, "unknown method %d", (int)options->method);
    if (options->sink == SP_SINK_BOS && options->method != SP_METHOD_PROMPT)
        return sp_fail(SP_ERR_ARGUMENT,
                       "a BOS sink is a row of embeddings: it goes with method prompt only; a cartridge freezes its "
                       "first token");
    if (options->num_frozen_tokens && options->method != SP_METHOD_CARTRIDGE)
        return sp_fail(SP_ERR_ARGUMENT, "num_frozen_tokens is %zu; only a cartridge has frozen tokens", options->num_frozen_tokens);
    if (options->method != SP_METHOD_MULTITASK && (options->num_tasks > 1 || options->num_ranks))
        return sp_fail(SP_ERR_ARGUMENT, "several tasks and ranks go with method multitask only");
    if (options->init_prompt && options->method == SP_METHOD_CPT)
        return sp_fail(SP_ERR_ARGUMENT, "method cpt starts from a text, and from no other prompt");
    if (options->init_prompt && options->sink != SP_SINK_NONE)
        return sp_fail(SP_ERR_ARGUMENT, "a prompt to start from brings its first row, which is a sink or not; use --sink none");
    if (options->num_tasks > SP_MAX_TASKS || options->num_ranks > SP_MAX_RANKS)
        return sp_fail(SP_ERR_ARGUMENT, "%zu tasks of rank %zu; at most %d, and %d", options->num_tasks, options->num_ranks,
                       SP_MAX_TASKS, SP_MAX_RANKS);
    if (options->method != SP_METHOD_CPT && options->n_cpt_tokens)
        return sp_fail(SP_ERR_ARGUMENT, "tokens to start from go with method cpt only; give a text");
    if (count_frozen(options) >= n)
        return sp_fail(SP_ERR_ARGUMENT, "%zu virtual tokens, of which %zu are frozen, leave nothing to train; use more", n,
                       count_frozen(options));
    if (options->sink == SP_SINK_BOS && n < 2)
        return sp_fail(SP_ERR_ARGUMENT, "1 virtual token with a BOS sink leaves nothing to train; use at least 2");
    if (options->text_position && !sp_method_is_given(options->method))
        return sp_fail(SP_ERR_ARGUMENT,
                       "text_position goes with methods prefix and cartridge: embeddings have positions of their own");
    if (!options->text_position && n >= info.context_length)
        return sp_fail(SP_ERR_ARGUMENT,
                       "%zu virtual tokens fill the model's context of %zu; use fewer, or, with a prefix or a cartridge, "
                       "a text position",
                       n, info.context_length);
    if (options->text_position >= info.context_length)
        return sp_fail(SP_ERR_ARGUMENT, "text at position %zu does not fit the model's context of %zu; use an earlier one",
                       options->text_position, info.context_length);
    return check_network(options);
}

/* What the adapter's files will tell of the model and of how the prompt began. */
static sp_status record_origin(sp_prompt *p, const sp_model *model, const sp_prompt_options *options)
{
    sp_model_info info;
    sp_model_get_info(&info, model);
    p->n_layer = info.n_layer;
    p->n_head = sp_prompt_is_given(p) ? info.n_head_kv : info.n_head;
    p->init = p->cpt ? SP_INIT_TEXT : options->init_prompt ? SP_INIT_RANDOM : options->init;
    p->fingerprint = sp_model_fingerprint(model);
    p->has_fingerprint = true;
    if (*info.name && !(p->base_model = strdup(info.name))) return sp_fail_no_memory(strlen(info.name) + 1);
    if (p->init != SP_INIT_TEXT || !options->init_text || (p->init_text = strdup(options->init_text))) return SP_OK;
    return sp_fail_no_memory(strlen(options->init_text) + 1);
}

static size_t width_of(sp_method method, const sp_model *model)
{
    sp_model_info info;
    sp_model_get_info(&info, model);
    return sp_method_is_given(method) ? 2 * info.n_layer * info.n_head_kv * info.d_head : info.d_model;
}

/* Embeddings, behind a sink where one is wanted. */
static sp_status init_rows(sp_prompt *p, const sp_model *model, const sp_prompt_options *options)
{
    p->num_frozen_tokens = options->sink == SP_SINK_BOS ? 1 : 0;
    sp_status st = p->num_frozen_tokens ? init_sink(p->rows, model) : SP_OK;
    if (st) return st;
    float *learnt = p->rows + p->num_frozen_tokens * p->width;
    return init_embeddings(learnt, p->num_virtual_tokens - p->num_frozen_tokens, model, options);
}

/* The network first: the rows that its last layer is moved to give are written where its output then comes. */
static sp_status init_plain(sp_prompt *p, sp_model *model, const sp_prompt_options *options, const sp_prompt *source)
{
    const bool has_network = sp_prompt_options_have_network(options);
    sp_rng rng = sp_rng_seed(options->seed, NETWORK_STREAM);
    sp_status st = has_network ? sp_prompt_set_network(p, model, options, &rng) : SP_OK;
    if (st || (has_network && options->init == SP_INIT_RANDOM && !source)) return st;
    if (source)
        st = sp_prompt_start_from_rows(p, model, source, options->init_prompt);
    else
        st = sp_prompt_is_given(p) ? init_keys_values(p, model, options) : init_rows(p, model, options);
    return st || !has_network ? st : sp_prompt_fit_network(p, p->rows);
}

static sp_status init_tasks(sp_prompt *p, const sp_model *model, const sp_prompt_options *options, const sp_prompt *source)
{
    const size_t num_ranks = options->num_ranks ? options->num_ranks : source && source->num_ranks ? source->num_ranks : 1;
    sp_status st = sp_prompt_set_tasks(p, options->num_tasks ? options->num_tasks : 1, num_ranks);
    if (st) return st;
    sp_prompt_init_factors(p, options);
    if (source) return sp_prompt_start_from_source(p, source, options);
    return init_embeddings(sp_prompt_multitask_parts(p, p->weights).shared, p->num_virtual_tokens, model, options);
}

static sp_status init_context(sp_prompt *p, const sp_model *model, sp_cpt *cpt)
{
    sp_status st = sp_model_embed(p->rows, model, cpt->token_ids, cpt->n);
    if (!st) return sp_prompt_set_context(p, cpt);
    sp_cpt_free(cpt);
    return st;
}

/* What says by itself how many virtual tokens there are. */
typedef struct beginning {
    sp_prompt *source; /* another prompt; NULL: none */
    sp_cpt *cpt;       /* CPT; else NULL */
    size_t n;          /* virtual tokens */
} beginning;

static sp_status open_beginning(beginning *out, const sp_model *model, const sp_prompt_options *options)
{
    sp_status st = SP_OK;
    *out = (beginning){.n = options->num_virtual_tokens ? options->num_virtual_tokens : DEFAULT_VIRTUAL_TOKENS};
    if (options->init_prompt && !(st = sp_prompt_load(&out->source, options->init_prompt)) && !options->num_virtual_tokens)
        out->n = out->source->num_virtual_tokens;
    if (!st && options->method == SP_METHOD_CPT && !(st = sp_cpt_of_options(&out->cpt, model, options))) out->n = out->cpt->n;
    return st;
}

static sp_status init(sp_prompt *p, sp_model *model, const sp_prompt_options *options, beginning *from)
{
    sp_cpt *cpt = from->cpt;
    from->cpt = NULL; /* the prompt's, from here on */
    p->num_frozen_tokens = count_frozen(options);
    if (cpt) return init_context(p, model, cpt);
    return p->method == SP_METHOD_MULTITASK ? init_tasks(p, model, options, from->source)
                                            : init_plain(p, model, options, from->source);
}

sp_status sp_prompt_create(sp_prompt **out, sp_model *model, const sp_prompt_options *options)
{
    static const sp_prompt_options defaults;
    if (!options) options = &defaults;
    beginning from;
    sp_prompt *p = NULL;
    *out = NULL;
    sp_status st = open_beginning(&from, model, options);
    if (!st) st = check_options(options, from.n, model);
    if (!st) st = sp_prompt_allocate(&p, from.n, width_of(options->method, model));
    if (st) goto done;
    p->method = options->method;
    if (options->text_position && (st = sp_prompt_set_text_position(p, options->text_position))) goto done;
    if ((st = init(p, model, options, &from)) || (st = sp_prompt_update(p)) || (st = record_origin(p, model, options))) goto done;
    *out = p;
    p = NULL;
done:
    sp_prompt_free(p);
    sp_prompt_free(from.source);
    sp_cpt_free(from.cpt);
    return st;
}
