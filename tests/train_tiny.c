/* train_tiny.c: a program for kill_resume.py to kill.
 *
 *   train_tiny make DIR     writes DIR/model.gguf and DIR/rows.tsv
 *   train_tiny KIND DIR RUN trains on them into RUN, from wherever an earlier call was when it died; KIND: a name of `kinds`
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

typedef struct kind {
    const char *name;
    sp_method method;
    bool is_distilled; /* on queries that are sampled behind a text, not on the rows */
    double max_logit;
    size_t key_rank;
} kind;

static const kind kinds[] = {{"prompt", SP_METHOD_PROMPT, false, 0, 0},       {"cartridge", SP_METHOD_CARTRIDGE, false, 0, 0},
                             {"multitask", SP_METHOD_MULTITASK, false, 0, 0}, {"cpt", SP_METHOD_CPT, false, 0, 0},
                             {"ptuning", SP_METHOD_PTUNING, false, 0, 0},     {"distill", SP_METHOD_PREFIX, true, 0, 0},
                             {"bounded", SP_METHOD_PREFIX, false, 0.4, 2},    {"penalised", SP_METHOD_PROMPT, false, 0.4, 0}};

static sp_train_options options_of(const kind *k)
{
    sp_train_options options = {.prompt = {.method = k->method, .num_virtual_tokens = 4},
                                .batch_size = 3,
                                .steps = 60,
                                .eval_every = 7,
                                .save_every = 2,
                                .resume = true,
                                .max_logit = k->max_logit,
                                .key_rank = k->key_rank};
    if (k->method == SP_METHOD_CPT) options.prompt.num_virtual_tokens = 0, options.cpt_examples = 2;
    if (k->is_distilled) {
        options.teacher_context = "warm: good\ndull: bad\n";
        options.num_queries = 100;
        options.query_length = 16;
    }
    return options;
}

static int train(const char *dir, const char *run, const kind *k)
{
    char path[512];
    sp_model *model;
    sp_dataset *rows;
    sp_train_report report;
    const sp_logger logger = {print_warning, NULL};
    const sp_hooks hooks = {.logger = &logger};
    const sp_model_options threads = {.n_threads = 2};
    const sp_train_options options = options_of(k);
    snprintf(path, sizeof path, "%s/model.gguf", dir);
    if (sp_model_load(&model, path, &threads)) return fail();
    snprintf(path, sizeof path, "%s/rows.tsv", dir);
    if (sp_dataset_load(&rows, path, NULL)) return fail();
    const sp_dataset *data = k->is_distilled ? NULL : rows;
    int code = sp_train(&report, model, data, data, run, &options, &hooks) ? fail() : 0;
    if (!code) printf("from step %zu to step %zu\n", report.resumed_from, report.steps);
    sp_dataset_free(rows);
    sp_model_free(model);
    return code;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "make") == 0) return make(argv[2]);
    for (size_t i = 0; argc == 4 && i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(argv[1], kinds[i].name) == 0) return train(argv[2], argv[3], &kinds[i]);
    fprintf(stderr, "usage: train_tiny make DIR | KIND DIR RUN\n");
    return 2;
}
