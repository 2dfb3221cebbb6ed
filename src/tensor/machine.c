/* machine.c: what processor this is, and how much of it the process may use. */
#define _GNU_SOURCE /* sched_getaffinity */
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "softprompt.h"
#include "tensor/kernels.h"

/* The value of the first line of /proc/cpuinfo that begins with `field`, into out; untouched where there is none. */
static void read_cpuinfo(char *out, size_t size, const char *field)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[8192];
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, field, strlen(field)) != 0) continue;
        const char *value = strchr(line, ':');
        if (value) snprintf(out, size, "%.*s", (int)strcspn(value + 2, "\n"), value + 2);
        break;
    }
    if (file) fclose(file);
}

/* Of the CPU's flags, those that decide how fast matrix products are. */
static void list_features(char *out, size_t size)
{
    static const char *const interesting[] = {"avx",      "avx2",        "fma",         "f16c",        "avx512f",
                                              "avx512bw", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni",
                                              "amx_bf16", "amx_int8",    "asimd",       "sve"};
    char flags[8192] = "", word[64];
    read_cpuinfo(flags, sizeof flags, "flags");
    if (!*flags) read_cpuinfo(flags, sizeof flags, "Features");
    *out = 0;
    for (size_t i = 0; i < sizeof interesting / sizeof *interesting; i++)
        for (const char *at = flags; sscanf(at, " %63s", word) == 1; at = strstr(at, word) + strlen(word))
            if (strcmp(word, interesting[i]) == 0) {
                size_t used = strlen(out);
                snprintf(out + used, size - used, "%s%s", used ? " " : "", word);
            }
}

/* A container's share of processor time, in processors rounded up; 0: no limit that can be read. */
static int cgroup_limit(void)
{
    long long quota = 0, period = 0;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r"); /* version 2: "200000 100000" or "max 100000" */
    if (file) {
        if (fscanf(file, "%lld %lld", &quota, &period) != 2) quota = 0;
        fclose(file);
    } else if ((file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"))) { /* version 1: -1 for none */
        if (fscanf(file, "%lld", &quota) != 1) quota = 0;
        fclose(file);
        if ((file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r"))) {
            if (fscanf(file, "%lld", &period) != 1) period = 0;
            fclose(file);
        }
    }
    return quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

static int count_threads(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set), limit = cgroup_limit();
    if (limit > 0 && limit < n) n = limit;
    return n > 0 ? n : 1;
}

void sp_machine_describe(sp_machine *out)
{
    *out = (sp_machine){.cpu = "unknown"};
    read_cpuinfo(out->cpu, sizeof out->cpu, "model name");
    list_features(out->features, sizeof out->features);
    snprintf(out->kernels, sizeof out->kernels, "%s", sp_kernels_select()->name);
    out->n_threads = count_threads();
    out->memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}
