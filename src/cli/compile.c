/* compile.c: softprompt compile. A prompt of keys and values -> sp_prompt_compile -> an adapter directory of moments. */
#include <stdlib.h>
#include <unistd.h>

#include "cli.h"
#include "inputs.h"
#include "progress.h"
#include "report.h"

typedef struct compile_flags {
    model_flags model;
    const char *prompt, *dir;
    int method; /* there is one */
    double epsilon, max_logit;
    size_t degree, text_position;
    bool overwrite;
    output_flags output;
} compile_flags;

static const option_row file_rows[] = {
    {OPTION_STRING, 'p', "prompt", "DIR", "an adapter of keys and values: a prefix or a cartridge",
     .target = offsetof(compile_flags, prompt), .required = true},
    {OPTION_STRING, 'o', "output", "DIR", "write the compiled adapter there", .target = offsetof(compile_flags, dir),
     .required = true},
    {OPTION_FLAG, 0, "overwrite", .help = "in place of an adapter that is there", .target = offsetof(compile_flags, overwrite)},
    {0}};

static const option_row figure_rows[] = {
    {OPTION_CHOICE, 0, "method", "polynomial", "what the keys become", .fallback = "polynomial",
     .target = offsetof(compile_flags, method)},
    {OPTION_REAL, 0, "epsilon", "E", "largest relative error of a weight", .fallback = "0.001",
     .target = offsetof(compile_flags, epsilon), .min = 1e-12, .max = 0.999},
    {OPTION_REAL, 0, "max-logit", "R", "centred scores that are served", .fallback = "1.1 times what training reached",
     .target = offsetof(compile_flags, max_logit), .min = 1e-6, .max = 5},
    {OPTION_COUNT, 0, "degree", "N", "of the polynomials", .fallback = "the smallest that serves R",
     .target = offsetof(compile_flags, degree), .min = 1, .max = 16},
    {OPTION_COUNT, 0, "text-position", "N", "where text starts, in the model's eyes", .fallback = "the prompt's own",
     .target = offsetof(compile_flags, text_position), .min = 1, .max = 1e9},
    {0}};

static const option_group groups[] = {{"model", model_rows, offsetof(compile_flags, model)},
                                      {"files", file_rows, 0},
                                      {"figures", figure_rows, 0},
                                      {"output", output_rows, offsetof(compile_flags, output)},
                                      {0}};

/* What the keys took, in a process that serves them. */
static uint64_t bytes_of_keys(const sp_prompt *prompt)
{
    return (uint64_t)sp_prompt_num_virtual_tokens(prompt) * sp_prompt_width(prompt) * sizeof(float);
}

static int print_info_json(const sp_compiled_info *info, const sp_prompt *source, const compile_flags *flags)
{
    json_t *object = json_object();
    json_member(&object, "method", json_string("polynomial"));
    json_member(&object, "num_virtual_tokens", json_integer((json_int_t)info->num_virtual_tokens));
    json_member(&object, "text_position", json_integer((json_int_t)info->text_position));
    json_member(&object, "heads", json_integer((json_int_t)info->n_heads));
    json_member(&object, "rank", json_integer((json_int_t)info->rank));
    json_member(&object, "degree", json_integer((json_int_t)info->degree));
    json_member(&object, "features", json_integer((json_int_t)info->n_features));
    json_member(&object, "epsilon", json_finite(info->epsilon));
    json_member(&object, "range", json_finite(info->range));
    json_member(&object, "bytes", json_integer((json_int_t)info->n_bytes));
    json_member(&object, "bytes_of_keys", json_integer((json_int_t)bytes_of_keys(source)));
    json_member(&object, "cost_ratio", json_finite(info->cost_ratio));
    json_member(&object, "adapter", json_text(flags->dir));
    return print_json(object);
}

static void print_info(const sp_compiled_info *info, const sp_prompt *source, const compile_flags *flags)
{
    report_row("prompt", "%zu virtual tokens, text from position %zu", info->num_virtual_tokens, info->text_position);
    report_row("heads", "%zu, keys of rank %zu", info->n_heads, info->rank);
    report_row("polynomials", "degree %zu, %zu features; scores up to %.4g within %.3g of each weight", info->degree,
               info->n_features, info->range, info->epsilon);
    report_row("memory", "%s; the keys took %s", format_bytes((double)info->n_bytes).text,
               format_bytes((double)bytes_of_keys(source)).text);
    report_row("a token", "%.3g times the multiplications with the keys", 1 / info->cost_ratio);
    report_row("adapter", "%s", flags->dir);
    if (info->cost_ratio < 1)
        report_line(
            "attention to the keys themselves is cheaper than this: keys of lower rank (train --key-rank), a smaller range or more "
            "virtual tokens would pay");
}

static int compile(const compile_flags *flags, const sp_model *model, const sp_prompt *source, progress_bar *bar)
{
    const sp_compile_options options = {
        .epsilon = flags->epsilon, .max_logit = flags->max_logit, .degree = flags->degree, .text_position = flags->text_position};
    sp_prompt *compiled = NULL;
    sp_compiled_info info;
    stop_at_interrupt();
    sp_status st = sp_prompt_compile(&compiled, model, source, &options, &bar->hooks);
    progress_clear(bar);
    if (!st) st = sp_prompt_save(compiled, flags->dir);
    if (!st) st = sp_prompt_get_compiled_info(&info, compiled);
    sp_prompt_free(compiled);
    if (st) return report_failure(st);
    if (flags->output.json) return print_info_json(&info, source, flags);
    print_info(&info, source, flags);
    return EXIT_DONE;
}

/* What is there already is not written over unasked. */
static int check_directory(const compile_flags *flags)
{
    sp_prompt *found;
    if (flags->overwrite || access(flags->dir, F_OK) != 0 || sp_prompt_load(&found, flags->dir)) return EXIT_DONE;
    sp_prompt_free(found);
    report_line("%s: an adapter is there; give another -o, or --overwrite", flags->dir);
    return EXIT_FAILED;
}

static int run_compile(const command *self, int argc, char **argv)
{
    compile_flags flags = {0};
    sp_model *model = NULL;
    sp_prompt *source = NULL;
    progress_bar bar;
    int code;
    if (!options_parse(self, &flags, NULL, argc, argv, &code)) return code;
    progress_init(&bar, flags.output.quiet);
    if ((code = check_directory(&flags))) return code;
    sp_status st = load_model(&model, &flags.model);
    if (!st) st = load_prompt(&source, flags.prompt, true, 0, model, &bar.logger);
    code = st ? report_failure(st) : compile(&flags, model, source, &bar);
    sp_prompt_free(source);
    sp_model_free(model);
    return code;
}

const command compile_command = {
    .name = "compile",
    .usage = "-m MODEL -p DIR -o DIR [flags]",
    .summary = "Makes a prompt of a fixed size of a long prefix: moments in the place of keys.",
    .details = "Attention to the prompt becomes a polynomial's, whose memory and time do not depend on how many\n"
               "virtual tokens there are, within E of each weight wherever scores stay in the range. It pays for\n"
               "long prefixes whose keys were trained to stay together: train --max-logit R --key-rank N. The\n"
               "result is an adapter for eval and run; eval --json says whether any query left the range.",
    .example = "  softprompt compile -m demo/model.gguf -p bounded-prefix -o compiled",
    .groups = groups,
    .run = run_compile,
};
