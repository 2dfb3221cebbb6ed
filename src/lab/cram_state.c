/* cram_state.c: where a search of lab capacity cram stands, so that it can go on another day: what a run of training saves, for
 * each text. A search that goes on ends in the same bytes as one that was never interrupted.
 *
 *   DIR/checkpoints/    train/checkpoint.h: vectors, the best so far, the optimiser's moments and the doubts of all texts, a row a
 * text
 *
 * Whose they are is told by the model, the texts' tokens and the flags that decide; how long is searched is not among those. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/sizes.h"
#include "base/status.h"
#include "format/json.h"
#include "lab/crammer.h"
#include "model/model.h"
#include "train/checkpoint.h"

enum { N_MATRICES = 3 + SP_OPTIMIZER_MATRICES_EACH, OWNER_BYTES = 17 };
static const double SAVE_SECONDS = 60;

/* ---- whose ---- */

static sp_status name_owner(char out[OWNER_BYTES], const sp_crammer *c)
{
    const sp_fingerprint print = sp_model_fingerprint(c->model);
    const sp_cram_options *o = &c->options;
    sp_buffer text = {0};
    sp_status st = sp_buffer_printf(&text, "%016" PRIx64 " %016" PRIx64 " compute %d, %zu vectors, rate %.17g", print.tokenizer,
                                    print.embeddings, (int)sp_model_compute(c->model), o->num_virtual_tokens, o->learning_rate);
    for (size_t i = 0; i < o->n_samples && !st; i++)
        st = sp_buffer_add(&text, c->samples[i].text.tokens, c->samples[i].text.n * sizeof *c->samples[i].text.tokens);
    if (!st) snprintf(out, OWNER_BYTES, "%016" PRIx64, (uint64_t)XXH3_64bits(text.bytes, text.n_bytes));
    sp_buffer_free(&text);
    return st;
}

/* ---- the numbers, a row a text ---- */

typedef struct table {
    sp_named_matrix matrices[N_MATRICES]; /* vectors, best_vectors, doubts, the optimiser's */
    float *numbers;                       /* of all of them; free */
} table;

static sp_status make_table(table *t, const sp_crammer *c)
{
    const size_t n = c->options.n_samples, n_vectors = c->n_rows * c->d;
    sp_named_matrix own[SP_OPTIMIZER_MATRICES_EACH];
    size_t longest = 0, total = 0;
    for (size_t i = 0; i < n; i++) longest = sp_larger(longest, c->samples[i].text.n);
    t->matrices[0] = (sp_named_matrix){"vectors", n, n_vectors, NULL};
    t->matrices[1] = (sp_named_matrix){"best_vectors", n, n_vectors, NULL};
    t->matrices[2] = (sp_named_matrix){"doubts", n, longest, NULL};
    sp_optimizer_matrices(own, c->samples[0].optimizer);
    for (size_t m = 0; m < SP_OPTIMIZER_MATRICES_EACH; m++)
        t->matrices[3 + m] = (sp_named_matrix){own[m].name, n, own[m].n_rows * own[m].n_columns, NULL};
    for (size_t m = 0; m < N_MATRICES; m++) total += n * t->matrices[m].n_columns;
    if (!(t->numbers = calloc(total, sizeof *t->numbers))) return sp_fail_no_memory(total * sizeof *t->numbers);
    total = 0;
    for (size_t m = 0; m < N_MATRICES; total += n * t->matrices[m++].n_columns) t->matrices[m].data = t->numbers + total;
    return SP_OK;
}

/* Where the text's own numbers are, in the order of the matrices. */
static void find_numbers(float *own[N_MATRICES], sp_cram_learner *s)
{
    sp_named_matrix moments[SP_OPTIMIZER_MATRICES_EACH];
    sp_optimizer_matrices(moments, s->optimizer);
    own[0] = sp_prompt_embeddings(s->prompt);
    own[1] = s->best_rows;
    own[2] = s->doubts;
    for (size_t m = 0; m < SP_OPTIMIZER_MATRICES_EACH; m++) own[3 + m] = moments[m].data;
}

/* Between the table and the texts, one way or the other. */
static void copy_numbers(table *t, sp_crammer *c, bool into_table)
{
    for (size_t i = 0; i < c->options.n_samples; i++) {
        float *own[N_MATRICES];
        find_numbers(own, &c->samples[i]);
        for (size_t m = 0; m < N_MATRICES; m++) {
            const size_t width = t->matrices[m].n_columns,
                         bytes = (own[m] == c->samples[i].doubts ? c->samples[i].text.n : width) * sizeof(float);
            float *row = t->matrices[m].data + i * width;
            memcpy(into_table ? row : own[m], into_table ? own[m] : row, bytes);
        }
    }
}

/* ---- what is counted ---- */

static json_t *print_learner(const sp_cram_learner *s)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "target", (json_int_t)s->target, "steps", (json_int_t)s->steps,
                     "first_target", (json_int_t)s->first_target, "begun", (json_int_t)s->begun, "restarts", (json_int_t)s->n_begun,
                     "best", (json_int_t)s->best, "speaks", s->speaks);
}

static sp_status print_state(char **out, const sp_crammer *c)
{
    json_t *texts = json_array(), *object = json_pack("{s:f}", "seconds", sp_seconds() - c->begin);
    bool ok = texts && object;
    *out = NULL;
    for (size_t i = 0; i < c->options.n_samples && ok; i++) ok = json_array_append_new(texts, print_learner(&c->samples[i])) == 0;
    ok = ok && json_object_set(object, "texts", texts) == 0;
    sp_status st = ok ? sp_json_dump(out, object, JSON_COMPACT | JSON_REAL_PRECISION(17)) : sp_json_fail_no_memory();
    json_decref(texts);
    json_decref(object);
    return st;
}

static sp_status parse_learner(sp_cram_learner *s, const json_t *object, const char *path)
{
    struct {
        const char *name;
        size_t *to;
    } members[] = {{"target", &s->target}, {"steps", &s->steps}, {"first_target", &s->first_target},
                   {"begun", &s->begun},   {"best", &s->best},   {"restarts", &s->n_begun}};
    sp_status st = SP_OK;
    for (size_t i = 0; i < sizeof members / sizeof *members && !st; i++)
        st = sp_json_get_size(members[i].to, object, members[i].name, path);
    s->speaks = json_is_true(json_object_get(object, "speaks"));
    s->is_whole = s->best == s->text.n;
    if (st || (s->target > 0 && s->target <= s->text.n && s->best <= s->text.n && s->begun <= s->steps)) return st;
    return sp_fail(SP_ERR_FORMAT, "%s: a text's numbers contradict each other; begin again with --overwrite", path);
}

static sp_status parse_state(sp_crammer *c, const char *text, const char *path)
{
    json_t *object;
    double seconds = 0;
    sp_status st = sp_json_parse(&object, text, strlen(text), path);
    if (st) return st;
    const json_t *texts = json_object_get(object, "texts");
    st = sp_json_get_real(&seconds, object, "seconds", path);
    if (!st && json_array_size(texts) != c->options.n_samples)
        st = sp_fail(SP_ERR_FORMAT, "%s: a search of %zu texts; begin again with --overwrite", path, json_array_size(texts));
    for (size_t i = 0; i < c->options.n_samples && !st; i++) st = parse_learner(&c->samples[i], json_array_get(texts, i), path);
    c->begin -= seconds;
    json_decref(object);
    return st;
}

/* ---- the directory ---- */

/* Hours later would be late to notice. */
static sp_status make_export_dir(const char *dir)
{
    const sp_status st = sp_make_directory(dir);
    return !st && access(dir, W_OK | X_OK) ? sp_fail_errno(dir, "write adapters there") : st;
}

static sp_status load(sp_crammer *c, const sp_logger *logger)
{
    const char *dir = c->options.export_dir;
    table t = {0};
    char owner[OWNER_BYTES], *text = NULL;
    uint64_t step = 0;
    sp_status st = name_owner(owner, c);
    if (!st) st = make_table(&t, c);
    if (!st) st = sp_checkpoint_load(&text, &step, dir, owner, t.matrices, N_MATRICES, logger);
    if (!st && !text)
        st = sp_fail(SP_ERR_MISMATCH,
                     "%s: what is there is damaged, or a search of another model, or of other texts or vectors; give the same "
                     "flags, --overwrite, or another directory",
                     dir);
    if (!st) st = parse_state(c, text, dir);
    if (!st) copy_numbers(&t, c, false);
    if (!st) c->step = c->saved_step = (size_t)step;
    free(text);
    free(t.numbers);
    return st;
}

sp_status sp_cram_state_open(sp_crammer *c, const sp_logger *logger)
{
    const char *dir = c->options.export_dir;
    bool is_there;
    sp_status st = make_export_dir(dir);
    if (!st) st = sp_lock_directory(&c->lock, dir);
    if (!st) st = sp_checkpoint_find(&is_there, dir);
    if (st) return st;
    c->saved = sp_seconds();
    if (is_there && c->options.overwrite) return sp_checkpoint_remove_all(dir);
    if (is_there && c->options.resume) return load(c, logger);
    if (!is_there) return SP_OK;
    return sp_fail(SP_ERR_ARGUMENT,
                   "%s: holds another search; use --resume to go on with it, --overwrite to begin anew, or another directory", dir);
}

sp_status sp_cram_state_save(sp_crammer *c, bool now)
{
    if (!c->options.export_dir || c->step == c->saved_step || (!now && sp_seconds() - c->saved < SAVE_SECONDS)) return SP_OK;
    table t = {0};
    char owner[OWNER_BYTES], *text = NULL;
    sp_status st = name_owner(owner, c);
    if (!st) st = make_table(&t, c);
    if (!st) st = print_state(&text, c);
    if (!st) {
        copy_numbers(&t, c, true);
        const sp_checkpoint checkpoint = {c->step, owner, text, t.matrices, N_MATRICES};
        st = sp_checkpoint_save(c->options.export_dir, &checkpoint, c->saved_step);
    }
    if (!st) c->saved_step = c->step;
    c->saved = sp_seconds(); /* a full disk is not tried again at every step */
    free(text);
    free(t.numbers);
    return st;
}
