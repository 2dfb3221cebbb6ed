/* audit_json.c: an audit's report as the one object of `audit --json`. */
#include "audit.h"
#include "report.h"

const char *const audit_verdict_names[] = {"inside", "scores", "beyond"}; /* by sp_verdict */

static json_t *count_or_null(bool known, size_t count)
{
    return known ? json_integer((json_int_t)count) : json_null();
}

static json_t *head_json(const sp_audit_head *h)
{
    json_t *object = json_object();
    json_member(&object, "layer", json_integer((json_int_t)h->layer));
    json_member(&object, "head", json_integer((json_int_t)h->head));
    json_member(&object, "max_entry_q", json_finite(h->max_entry_q));
    json_member(&object, "max_entry_k", json_finite(h->max_entry_k));
    json_member(&object, "max_score", json_finite(h->max_score));
    json_member(&object, "max_score_centred", json_finite(h->max_score_centred));
    json_member(&object, "cauchy_schwarz", json_finite(h->cauchy_schwarz));
    json_member(&object, "criterion", json_finite(h->criterion));
    json_member(&object, "n_keys", json_integer((json_int_t)h->n_keys));
    json_member(&object, "entries_ratio", json_finite(h->entries_ratio));
    json_member(&object, "scores_ratio", json_finite(h->scores_ratio));
    json_member(&object, "entropy", json_finite(h->entropy));
    json_member(&object, "sink_mass", json_finite(h->sink_mass));
    json_member(&object, "prompt_mass", json_finite(h->prompt_mass));
    json_member(&object, "key_rank_99", count_or_null(h->key_rank_99 != SIZE_MAX, h->key_rank_99));
    json_member(&object, "degree", count_or_null(h->degree != SIZE_MAX, h->degree));
    json_member(&object, "features", count_or_null(h->features > 0, h->features));
    json_member(&object, "cost_ratio", h->features > 0 ? json_finite(h->cost_ratio) : json_null());
    json_member(&object, "verdict", json_text(audit_verdict_names[h->verdict]));
    return object;
}

char *audit_token_text(const sp_tokenizer *tokenizer, int32_t token)
{
    char *text = NULL;
    size_t n_bytes;
    return sp_detokenize(&text, &n_bytes, tokenizer, &token, 1, true) ? NULL : text;
}

static json_t *nearest_json(const sp_audit_token *t, const sp_tokenizer *tokenizer)
{
    json_t *list = json_array();
    for (size_t k = 0; k < SP_AUDIT_NEIGHBOURS && t->nearest[k] >= 0; k++) {
        char *text = audit_token_text(tokenizer, t->nearest[k]);
        json_t *object = json_object();
        json_member(&object, "token", json_integer(t->nearest[k]));
        json_member(&object, "text", json_text(text));
        json_member(&object, "cosine", json_finite((double)t->cosine[k]));
        json_array_append_new(list, object);
        sp_free(text);
    }
    return list;
}

static json_t *tokens_json(const sp_audit_report *r, const sp_tokenizer *tokenizer)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->num_virtual_tokens; i++) {
        const sp_audit_token *t = &r->tokens[i];
        json_t *object = json_object();
        json_member(&object, "norm", json_finite(t->norm));
        json_member(&object, "key_norm", json_finite(t->key_norm));
        json_member(&object, "value_norm", json_finite(t->value_norm));
        json_member(&object, "nearest", nearest_json(t, tokenizer));
        json_member(&object, "left_out_kl", json_finite(t->left_out_kl));
        json_member(&object, "left_out_loss", json_finite(t->left_out_loss));
        json_array_append_new(list, object);
    }
    return list;
}

static json_t *prompt_json(const sp_audit_report *r, const sp_tokenizer *tokenizer)
{
    if (!r->tokens) return json_null();
    json_t *object = json_object(), *norms = json_null();
    if (r->vocabulary_norm[1] > 0)
        norms =
            json_pack("{s:f, s:f, s:f}", "5%", r->vocabulary_norm[0], "50%", r->vocabulary_norm[1], "95%", r->vocabulary_norm[2]);
    json_member(&object, "vocabulary_norm", norms);
    json_member(&object, "left_out_rows", json_integer((json_int_t)r->n_left_out_rows));
    json_member(&object, "virtual_tokens", tokens_json(r, tokenizer));
    return object;
}

int audit_print_json(const sp_audit_report *r, const audit_view *view)
{
    json_t *object = json_object(), *heads = json_array();
    for (size_t i = 0; i < r->n_layer * r->n_head; i++) json_array_append_new(heads, head_json(&r->heads[i]));
    json_member(&object, "n", json_integer((json_int_t)r->n));
    json_member(&object, "num_virtual_tokens", json_integer((json_int_t)r->num_virtual_tokens));
    json_member(&object, "texts", json_integer((json_int_t)r->n_texts));
    json_member(&object, "rows", json_integer((json_int_t)r->n_rows));
    json_member(&object, "skipped_rows", json_integer((json_int_t)r->n_skipped));
    json_member(&object, "truncated_rows", json_integer((json_int_t)r->n_truncated));
    json_member(&object, "epsilon", json_real(view->epsilon));
    json_member(&object, "prompt_rows", json_boolean(view->prompt_rows));
    json_member(&object, "heads", heads);
    json_member(&object, "prompt", prompt_json(r, view->tokenizer));
    return print_json(object);
}
