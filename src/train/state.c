/* state.c: one table says what the state consists of; printing and parsing walk it, so neither can forget a member.
 * JSON has no infinity (a loss that overflowed): null stands for it. */
#include "train/state.h"

#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "format/json.h"

typedef enum member_type { COUNT, SIZE, NUMBER, FLAG } member_type;

typedef struct member {
    const char *name;
    member_type type;
    size_t offset;
} member;

#define MEMBER(type, path)                                                                                                         \
    {                                                                                                                              \
#path, type, offsetof(sp_train_state, path)                                                                                \
    }

static const member MEMBERS[] = {
    MEMBER(COUNT, step),
    MEMBER(COUNT, best_step),
    MEMBER(COUNT, n_without_gain),
    MEMBER(NUMBER, first_loss),
    MEMBER(NUMBER, last_loss),
    MEMBER(NUMBER, kl_without_prompt),
    MEMBER(NUMBER, kl_at_start),
    MEMBER(FLAG, stopped_early),
    MEMBER(FLAG, finished),
    MEMBER(COUNT, log_bytes),
    MEMBER(COUNT, evaluation_bytes),
    MEMBER(COUNT, event_bytes),
    MEMBER(SIZE, best.n),
    MEMBER(SIZE, best.n_truncated),
    MEMBER(FLAG, best.has_accuracy),
    MEMBER(FLAG, best.has_exact_match),
    MEMBER(NUMBER, best.accuracy),
    MEMBER(NUMBER, best.accuracy_ci95[0]),
    MEMBER(NUMBER, best.accuracy_ci95[1]),
    MEMBER(NUMBER, best.macro_f1),
    MEMBER(NUMBER, best.exact_match),
    MEMBER(NUMBER, best.exact_match_ci95[0]),
    MEMBER(NUMBER, best.exact_match_ci95[1]),
    MEMBER(NUMBER, best.loss),
    MEMBER(NUMBER, best.perplexity),
    MEMBER(NUMBER, best.seconds),

    /* Runs of earlier versions have none of these. */
    MEMBER(NUMBER, key_bound.max_logit),
    MEMBER(SIZE, key_bound.key_rank),
    MEMBER(SIZE, key_bound.n_heads),
    MEMBER(NUMBER, key_bound.training_bound),
    MEMBER(SIZE, key_bound.n_rows),
    MEMBER(FLAG, key_bound.are_held_out),
    MEMBER(NUMBER, key_bound.bound),
    MEMBER(NUMBER, key_bound.score),
    MEMBER(NUMBER, key_bound.entries),
    MEMBER(SIZE, key_bound.n_scores_inside),
    MEMBER(SIZE, key_bound.n_entries_inside),
    MEMBER(FLAG, key_bound.is_penalty),
};
enum { N_MEMBERS = sizeof MEMBERS / sizeof *MEMBERS, N_LATER_MEMBERS = 12 };

static json_t *print_member(const member *m, const sp_train_state *state)
{
    const char *at = (const char *)state + m->offset;
    switch (m->type) {
    case COUNT:
        return json_integer((json_int_t) * (const uint64_t *)at);
    case SIZE:
        return json_integer((json_int_t) * (const size_t *)at);
    case NUMBER:
        return isfinite(*(const double *)at) ? json_real(*(const double *)at) : json_null();
    case FLAG:
        return json_boolean(*(const bool *)at);
    }
    return NULL;
}

sp_status sp_train_state_print(char **out, const sp_train_state *state)
{
    json_t *object = json_object();
    *out = NULL;
    bool ok = object != NULL;
    for (size_t i = 0; i < N_MEMBERS && ok; i++)
        ok = json_object_set_new(object, MEMBERS[i].name, print_member(&MEMBERS[i], state)) == 0;
    sp_status st = ok ? sp_json_dump(out, object, JSON_COMPACT | JSON_REAL_PRECISION(17)) : sp_json_fail_no_memory();
    json_decref(object);
    return st;
}

static bool parse_member(sp_train_state *state, const member *m, const json_t *value)
{
    char *at = (char *)state + m->offset;
    bool is_count = json_is_integer(value) && json_integer_value(value) >= 0;
    switch (m->type) {
    case COUNT:
        *(uint64_t *)at = is_count ? (uint64_t)json_integer_value(value) : 0;
        return is_count;
    case SIZE:
        *(size_t *)at = is_count ? (size_t)json_integer_value(value) : 0;
        return is_count;
    case NUMBER:
        *(double *)at = json_is_null(value) ? INFINITY : json_number_value(value);
        return json_is_number(value) || json_is_null(value);
    case FLAG:
        *(bool *)at = json_is_true(value);
        return json_is_boolean(value);
    }
    return false;
}

sp_status sp_train_state_parse(sp_train_state *out, const char *json)
{
    json_error_t error;
    json_t *object = json_loads(json, 0, &error);
    *out = (sp_train_state){0};
    if (!json_is_object(object)) {
        json_decref(object);
        return sp_fail(SP_ERR_FORMAT, "a checkpoint's state is no JSON object; begin again with --overwrite");
    }
    sp_status st = SP_OK;
    for (size_t i = 0; i < N_MEMBERS && !st; i++) {
        const json_t *value = json_object_get(object, MEMBERS[i].name);
        if (!value && i >= N_MEMBERS - N_LATER_MEMBERS) continue;
        if (!parse_member(out, &MEMBERS[i], value))
            st = sp_fail(SP_ERR_FORMAT, "a checkpoint's state: member %s is missing or wrong; begin again with --overwrite",
                         MEMBERS[i].name);
    }
    json_decref(object);
    return st;
}
