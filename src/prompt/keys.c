/* keys.c: keys and values that a prefix or a cartridge starts from: those of tokens, as the model computes them for a text that
 * begins with these tokens.
 *
 *   vocab    random tokens of the vocabulary: numbers as large as attention is used to, whatever the layer
 *   text     the beginning of a text, behind BOS where the model adds one: PEFT's initialize_kv_prefix_from_text. A text that is
 *            too short is an error: repeated, it would not be the text's keys and values
 *   random   a standard normal, as PEFT starts; some layers' keys and values are ten times as large, others' a tenth */
#include <stdlib.h>

#include "base/status.h"
#include "model/engine.h"
#include "prompt/internal.h"

/* Of n tokens, or of n rows of embeddings: one of them. */
static sp_status compute(float *weights, sp_model *model, const int32_t *tokens, const float *rows, size_t n)
{
    sp_tree tree = {0};
    size_t run;
    sp_engine *engine;
    sp_status st = sp_engine_create(&engine, model);
    if (st) return st;
    st = rows ? sp_tree_add_prompt(&run, &tree, n, n) : sp_tree_add_run(&run, &tree, SP_NO_RUN, tokens, n);
    if (!st) st = sp_engine_forward(engine, &(sp_pass){.tree = &tree, .prompt = rows});
    if (!st) sp_engine_get_keys_values(weights, engine, n);
    sp_tree_free(&tree);
    sp_engine_free(engine);
    return st;
}

sp_status sp_keys_values_of_tokens(float *weights, sp_model *model, const int32_t *tokens, size_t n)
{
    return compute(weights, model, tokens, NULL, n);
}

sp_status sp_keys_values_of_embeddings(float *weights, sp_model *model, const float *rows, size_t n)
{
    return compute(weights, model, NULL, rows, n);
}

sp_status sp_keys_values_of_text(float *weights, sp_model *model, const char *text, size_t n)
{
    int32_t *tokens;
    size_t n_tokens;
    sp_status st =
        sp_tokenize(&tokens, &n_tokens, sp_model_tokenizer(model), text, SIZE_MAX, SP_TOKENIZE_ADD_BOS | SP_TOKENIZE_PARSE_SPECIAL);
    if (st) return st;
    if (n_tokens < n)
        st = sp_fail(SP_ERR_ARGUMENT,
                     "the text to start from has %zu tokens, BOS included where the model adds it, and %zu virtual tokens want "
                     "their keys and values from it; use a longer text or fewer virtual tokens",
                     n_tokens, n);
    if (!st) st = sp_keys_values_of_tokens(weights, model, tokens, n);
    sp_free(tokens);
    return st;
}
