/* train_tiny.c: a program for kill_resume.py to kill.
 *
 *   train_tiny make DIR     writes DIR/model.gguf and DIR/rows.tsv
 *   train_tiny METHOD DIR RUN   trains on them into RUN, from wherever an earlier call was when it died; METHOD: prompt, cartridge,
 *                               multitask, cpt, ptuning or distill
 */
#include <stdio.h>
#include <string.h>

#include "softprompt.h"
#include "tiny_model.h"

static const char ROWS[] = "text\tlabel\ttask\nwarm\tgood\t0\ndull\tbad\t1\na delight\tgood\t1\nmoney "
                           "back\tbad\t0\nwasted\tbad\t0\nat last\tgood\t1\nno\tbad"
                           "\t0\n";

static int fail(void)
{
    fprintf(stderr, "train_tiny: %s\n", sp_message());
    return 1;
}

static void print_warning(void *user, sp_log_level level, const char *line)
{
    (void)user;
    if (level == SP_LOG_WARNING) fprintf(stderr, "train_tiny: %s\n", line);
}

static int make(const char *dir)
{
    char path[512];
    snprintf(path, sizeof path, "%s/model.gguf", dir);
    if (!tiny_model_write(path)) return 1;
    snprintf(path, sizeof path, "%s/rows.tsv", dir);
    FILE *file = fopen(path, "w");
    if (!file) return 1;
    fputs(ROWS, file);
    return fclose(file) != 0;
}

/* distill: a prefix, on queries that are sampled behind a text. */
static int train(const char *dir, const char *run, sp_method method, bool distill)
{
    char path[512];
    sp_model *model;
    sp_dataset *rows;
    sp_train_report report;
    const sp_logger logger = {print_warning, NULL};
    const sp_hooks hooks = {.logger = &logger};
    const sp_model_options threads = {.n_threads = 2};
    const sp_train_options options = {.prompt = {.method = method, .num_virtual_tokens = method == SP_METHOD_CPT ? 0 : 4},
                                      .cpt_examples = method == SP_METHOD_CPT ? 2 : 0,
                                      .batch_size = 3,
                                      .steps = 60,
                                      .eval_every = 7,
                                      .save_every = 2,
                                      .resume = true,
                                      .teacher_context = distill ? "warm: good\ndull: bad\n" : NULL,
                                      .num_queries = distill ? 100 : 0,
                                      .query_length = distill ? 16 : 0};
    snprintf(path, sizeof path, "%s/model.gguf", dir);
    if (sp_model_load(&model, path, &threads)) return fail();
    snprintf(path, sizeof path, "%s/rows.tsv", dir);
    if (sp_dataset_load(&rows, path, NULL)) return fail();
    int code = sp_train(&report, model, distill ? NULL : rows, distill ? NULL : rows, run, &options, &hooks) ? fail() : 0;
    if (!code) printf("from step %zu to step %zu\n", report.resumed_from, report.steps);
    sp_dataset_free(rows);
    sp_model_free(model);
    return code;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "make") == 0) return make(argv[2]);
    if (argc == 4 && strcmp(argv[1], "prompt") == 0) return train(argv[2], argv[3], SP_METHOD_PROMPT, false);
    if (argc == 4 && strcmp(argv[1], "cartridge") == 0) return train(argv[2], argv[3], SP_METHOD_CARTRIDGE, false);
    if (argc == 4 && strcmp(argv[1], "multitask") == 0) return train(argv[2], argv[3], SP_METHOD_MULTITASK, false);
    if (argc == 4 && strcmp(argv[1], "cpt") == 0) return train(argv[2], argv[3], SP_METHOD_CPT, false);
    if (argc == 4 && strcmp(argv[1], "distill") == 0) return train(argv[2], argv[3], SP_METHOD_PREFIX, true);
    if (argc == 4 && strcmp(argv[1], "ptuning") == 0) return train(argv[2], argv[3], SP_METHOD_PTUNING, false);
    fprintf(stderr, "usage: train_tiny make DIR | METHOD DIR RUN\n");
    return 2;
}
