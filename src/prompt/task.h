/* task.h: how a row of data becomes tokens: template, verbalizers, cutting. */
#ifndef SP_PROMPT_TASK_H
#define SP_PROMPT_TASK_H

#include "softprompt.h"

/* A deep copy, freed as one piece. NULL members stay NULL. */
sp_status sp_task_copy(sp_task **out, const sp_task *task);
void sp_task_free(sp_task *task);

/* ARGUMENT: a template without exactly one {text}, a label or an answer given twice, an empty answer, more than SP_MAX_LABELS
 * labels. */
enum { SP_MAX_LABELS = 1024 };
sp_status sp_task_check(const sp_task *task);

/* `task`, checked and completed from data, as a deep copy: without verbalizers, each label that occurs stands for itself after a
 * space (in order of first appearance). `data` NULL: nothing is added. MISMATCH: a label of the data that no verbalizer names, by
 * line. */
sp_status sp_task_resolve(sp_task **out, const sp_task *task, const sp_dataset *data);

/* One row as tokens: a context and one or more candidate answers, the right one among them.
 *   LABEL       context = template with the text, candidates = verbalizers; a row without a label has right = SIZE_MAX
 *   COMPLETION  context = template with the prompt, one candidate: completion and the model's EOS
 *   CHAT        context up to the last assistant turn; one candidate: that turn and its end. Earlier assistant turns are context
 *   TEXT        the text as it is, without the template: context = the first token, one candidate: all after it
 * BOS, where the model adds one, starts the context (after the virtual tokens, as in PEFT).
 *
 * Template and text are tokenised as one string, so that tokens may span the seams; special-token strings in it are parsed.
 * Text that is too long is cut at its left, by whole tokens: BOS and the template's beginning, tokenised alone, then the last
 * tokens of the whole string. Template and answer are never cut. In CHAT all of the context but BOS counts as text. */
typedef struct sp_encoded_row {
    int32_t *context;
    size_t n_context;
    int32_t **candidates; /* (n_candidates), each of n_candidate[i] >= 1 tokens */
    size_t *n_candidate;
    size_t n_candidates, right; /* right SIZE_MAX: unknown (a text to be classified) */
    bool truncated;
} sp_encoded_row; /* one allocation: freed with sp_encoded_row_clear */

/* room: the most rows that context and longest candidate may take together (model context minus virtual tokens).
 * ARGUMENT: the template and the longest answer leave no room for text; a candidate that has no tokens; a TEXT row of one token.
 * MISMATCH: the row's label has no verbalizer. Messages name the row by line, the caller adds the file. */
sp_status sp_task_encode(sp_encoded_row *out, const sp_task *task, const sp_tokenizer *tokenizer, const sp_row *row, size_t room);

/* A row of n tokens as they are: n_context of them, and the others for its one candidate; 1 <= n_context < n. */
sp_status sp_encoded_row_of_tokens(sp_encoded_row *out, const int32_t *tokens, size_t n, size_t n_context);
void sp_encoded_row_clear(sp_encoded_row *row);

#endif
