/* main.c: softprompt COMMAND: finds the command and hands it the rest of the line. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "report.h"

#define ARRAY_LEN(array) (sizeof(array) / sizeof *(array))

static const command *const commands[] = {&train_command,   &eval_command, &run_command,  &audit_command,
                                          &compile_command, &info_command, &plan_command, &lab_command};

/* Names that are kept for commands still to come. */
static const char *const later_commands[] = {"serve"};

static int print_overview(void)
{
    printf("usage: softprompt COMMAND [flags]\n\nTrains, evaluates and runs soft prompts for frozen language models, on an "
           "ordinary CPU.\n\n");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) printf("  %-8s %s\n", commands[i]->name, commands[i]->summary);
    printf("\n  softprompt COMMAND --help, or softprompt help COMMAND: its flags\n  softprompt --version\n"
           "\nexit code: 0 done, 1 the work failed, 2 the command line is wrong\n\nexample\n%s\n",
           run_command.example);
    return EXIT_DONE;
}

static int fail_unknown(const char *name)
{
    const char *names[ARRAY_LEN(commands)];
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) names[i] = commands[i]->name;
    for (size_t i = 0; i < ARRAY_LEN(later_commands); i++)
        if (strcmp(name, later_commands[i]) == 0)
            return usage_error(NULL, "%s is not in this version, which has train, eval, run, audit, compile, info, plan and lab",
                               name);
    const char *nearest = nearest_word(name, names, ARRAY_LEN(names));
    if (nearest) return usage_error(NULL, "\"%s\" is no command; did you mean %s?", name, nearest);
    return usage_error(NULL, "\"%s\" is no command; there are train, eval, run, audit, compile, info, plan and lab", name);
}

static const command *find_command(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        if (strcmp(name, commands[i]->name) == 0) return commands[i];
    return NULL;
}

static int print_help(const char *name)
{
    const command *found = name ? find_command(name) : NULL;
    if (!name) return print_overview();
    if (!found) return fail_unknown(name);
    options_print_help(found);
    return EXIT_DONE;
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2) return usage_error(NULL, "no command: give train, eval, run, audit, compile, info, plan or lab");
    const char *name = argv[1];
    const command *found = find_command(name);
    if (found) return found->run(found, argc - 1, argv + 1);
    if (strcmp(name, "help") == 0) return print_help(argc > 2 ? argv[2] : NULL);
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) return print_overview();
    if (strcmp(name, "--version") == 0) {
        printf("softprompt %s\n", sp_version());
        return EXIT_DONE;
    }
    return fail_unknown(name);
}

/* A stream that the caller closed is opened the wrong way round: writes fail, as they should, and no data file that is
 * opened later becomes "standard output". */
static void occupy_closed_streams(void)
{
    for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; stream++)
        if (fcntl(stream, F_GETFD) == -1 && errno == EBADF) (void)!open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

/* libgomp's threads spin for a while before they sleep, by default for milliseconds: on a machine that has other work, too, each
 * parallel loop then waits for a thread that the spinning one keeps from running (a training step: 6.1 s instead of 1.2 s). It
 * reads its settings before main, so that they need a second start, which takes 2 ms. Whoever set something himself keeps it. */
static void limit_spinning(char **argv)
{
    char program[PATH_MAX] = "";
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0 || setenv("GOMP_SPINCOUNT", "2000", 1)) return;
    execv(program, argv); /* returns where that cannot be: then as it is */
}

int main(int argc, char **argv)
{
    limit_spinning(argv);
    occupy_closed_streams();
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is a failed write, with a message */
    setlocale(LC_CTYPE, "");  /* for line editing; numbers stay as in C */
    return finish_output(dispatch(argc, argv));
}
