/* transfer.c: a prompt that starts from what another one learnt: its rows, or, where the new one consists of keys and values and
 * the other of embeddings, the keys and values that the model computes for them, so that both say the same before the first step.
 * The way back does not exist: hardly any keys and values are those of embeddings.
 *
 * A prompt of another length is refused, not stretched: rows have learnt to stand where they stand. */
#include <string.h>

#include "base/status.h"
#include "prompt/internal.h"

static sp_status check_source(const sp_prompt *p, const sp_prompt *source, const char *dir)
{
    if (source->method == SP_METHOD_MULTITASK && source->num_tasks > 1)
        return sp_fail(SP_ERR_MISMATCH, "%s: a prompt of %zu tasks is no one prompt to start from; --method multitask takes it",
                       dir, source->num_tasks);
    if (sp_prompt_is_given(source) && !sp_prompt_is_given(p))
        return sp_fail(SP_ERR_MISMATCH,
                       "%s: keys and values, from which a prompt of embeddings cannot start; use --method prefix or cartridge",
                       dir);
    if (sp_prompt_check_rows(source, "a prompt starts from another one's rows"))
        return sp_fail(SP_ERR_UNSUPPORTED, "%s: %s", dir, sp_message());
    if (source->num_virtual_tokens == p->num_virtual_tokens) return SP_OK;
    return sp_fail(SP_ERR_MISMATCH, "%s: has %zu virtual tokens, and %zu are wanted; leave the number to it", dir,
                   source->num_virtual_tokens, p->num_virtual_tokens);
}

sp_status sp_prompt_start_from_rows(sp_prompt *p, sp_model *model, const sp_prompt *source, const char *dir)
{
    sp_status st = check_source(p, source, dir);
    if (!st && (st = sp_prompt_check(source, model, NULL))) return sp_fail(st, "%s: %s", dir, sp_message());
    if (st) return st;
    if (sp_prompt_is_given(p) && !sp_prompt_is_given(source))
        return sp_keys_values_of_embeddings(p->rows, model, source->rows, source->num_virtual_tokens);
    memcpy(p->rows, source->rows, p->num_virtual_tokens * p->width * sizeof *p->rows);
    if (p->method == SP_METHOD_PROMPT) p->num_frozen_tokens = source->num_frozen_tokens; /* a sink stays one */
    return SP_OK;
}
