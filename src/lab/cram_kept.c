/* cram_kept.c: what cramming found of a model, kept for whoever plans the length of a prompt.
 *
 *   DIR/TOKENIZER-EMBEDDINGS-BYTES.json   {"model", "results": {"natural": {"1": {"bits_per_vector", ...}, "4": ...}, ...}}
 *
 * A file a model, named by its fingerprint and the size of its file: quantisations of one model are models of their own. A result
 * is a lower bound, the closer the longer it was looked for, so one that took more steps is not replaced by one that took fewer. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "format/json.h"
#include "lab/cram.h"
#include "model/model.h"

static const char *const kind_names[] = {
    [SP_CRAM_NATURAL] = "natural", [SP_CRAM_SHUFFLED] = "shuffled", [SP_CRAM_RANDOM] = "random"};

/* free; NULL: no memory, message set. */
static char *path_of(const char *dir, const sp_model *model)
{
    const sp_fingerprint print = sp_model_fingerprint(model);
    sp_model_info info;
    char name[80];
    sp_model_get_info(&info, model);
    snprintf(name, sizeof name, "%016" PRIx64 "-%016" PRIx64 "-%" PRIu64 ".json", print.tokenizer, print.embeddings,
             info.file_bytes);
    return sp_path_join(dir, name);
}

/* The object for this kind and length, with what is kept: borrowed from `file`; NULL: there is none. */
static json_t *find(const json_t *file, sp_cram_kind kind, size_t num_virtual_tokens)
{
    char key[24];
    snprintf(key, sizeof key, "%zu", num_virtual_tokens);
    return json_object_get(json_object_get(json_object_get(file, "results"), kind_names[kind]), key);
}

static sp_status read_result(sp_cram_result *out, const json_t *object, const char *path)
{
    sp_status st = sp_json_get_real(&out->bits_per_vector, object, "bits_per_vector", path);
    if (!st) st = sp_json_get_real(&out->mean_tokens, object, "mean_tokens", path);
    if (!st) st = sp_json_get_real(&out->mean_bits, object, "mean_bits", path);
    if (!st) st = sp_json_get_size(&out->n_samples, object, "samples", path);
    out->stopped = json_is_true(json_object_get(object, "stopped"));
    return st ? st : sp_json_get_size(&out->steps, object, "steps", path);
}

sp_status sp_cram_result_load(sp_cram_result *out, bool *found, const char *dir, const sp_model *model, sp_cram_kind kind,
                              size_t num_virtual_tokens)
{
    json_t *file = NULL;
    char *path = path_of(dir, model);
    *out = (sp_cram_result){0};
    *found = false;
    if (!path) return SP_ERR_MEMORY;
    sp_status st = sp_path_exists(path) ? sp_json_read(&file, path) : SP_OK;
    const json_t *object = file ? find(file, kind, num_virtual_tokens) : NULL;
    if (object && !(st = read_result(out, object, path))) *found = true;
    json_decref(file);
    free(path);
    return st;
}

/* The member, made where it is missing; borrowed. NULL: no memory. */
static json_t *member(json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    if (!json_is_object(value) && json_object_set_new(object, key, json_object()) == 0) value = json_object_get(object, key);
    return value;
}

static sp_status write_result(json_t *file, const char *path, const sp_model *model, sp_cram_kind kind, size_t num_virtual_tokens,
                              const sp_cram_result *r)
{
    char key[24];
    sp_model_info info;
    sp_model_get_info(&info, model);
    snprintf(key, sizeof key, "%zu", num_virtual_tokens);
    json_t *results = member(file, "results"), *of_kind = results ? member(results, kind_names[kind]) : NULL;
    json_t *object = json_pack("{s:f, s:f, s:f, s:I, s:I, s:b}", "bits_per_vector", r->bits_per_vector, "mean_tokens",
                               r->mean_tokens, "mean_bits", r->mean_bits, "samples", (json_int_t)r->n_samples, "steps",
                               (json_int_t)r->steps, "stopped", r->stopped);
    if (!of_kind || !object || json_object_set_new(of_kind, key, object) ||
        json_object_set_new(file, "model", sp_json_text(info.path, strlen(info.path))))
        return sp_json_fail_no_memory();
    return sp_json_write(file, path);
}

sp_status sp_cram_result_keep(const sp_cram_report *report, const char *dir, const sp_model *model, sp_cram_kind kind)
{
    sp_cram_result before, now = {.bits_per_vector = report->bits_per_vector,
                                  .mean_tokens = report->mean_tokens,
                                  .mean_bits = report->mean_bits,
                                  .n_samples = report->n_samples,
                                  .stopped = report->stopped};
    bool found;
    json_t *file = NULL;
    for (size_t i = 0; i < report->n_samples; i++) now.steps += report->samples[i].steps;
    sp_status st = sp_make_directory(dir);
    if (!st) st = sp_cram_result_load(&before, &found, dir, model, kind, report->num_virtual_tokens);
    if (st || (found && before.steps > now.steps)) return st;
    char *path = path_of(dir, model);
    if (!path) return SP_ERR_MEMORY;
    if (sp_path_exists(path))
        st = sp_json_read(&file, path);
    else if (!(file = json_object()))
        st = sp_json_fail_no_memory();
    if (!st) st = write_result(file, path, model, kind, report->num_virtual_tokens, &now);
    json_decref(file);
    free(path);
    return st;
}
