/* select.c: the ladder of kernels: C first, then each rung that the CPU has. */
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdlib.h>
#include <string.h>

#include "tensor/kernels.h"
#include "tensor/panels.h"
#include "tensor/quants.h"

extern const sp_kernels sp_kernels_generic, sp_kernels_avx2, sp_kernels_avx512;
extern const sp_panels sp_panels_generic, sp_panels_avx2, sp_panels_avx512, sp_panels_avx512bf16;
extern const sp_row_reader sp_row_readers_generic[GGML_TYPE_COUNT], sp_row_readers_avx2[GGML_TYPE_COUNT],
    sp_row_readers_avx512[GGML_TYPE_COUNT];

#if defined(__x86_64__)
/* clang 14 has no such name for __builtin_cpu_supports. */
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

size_t sp_kernels_list(const sp_kernels *out[3])
{
    size_t n = 0;
    out[n++] = &sp_kernels_generic;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) out[n++] = &sp_kernels_avx2;
    if (n == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        out[n++] = &sp_kernels_avx512;
#endif
    return n;
}

const sp_kernels *sp_kernels_select(void)
{
    static const sp_kernels *selected; /* every thread that gets here writes the same value */
    const sp_kernels *now = __atomic_load_n(&selected, __ATOMIC_RELAXED);
    if (now) return now;
    const sp_kernels *rungs[3];
    size_t n = sp_kernels_list(rungs);
    const char *wanted = getenv("SOFTPROMPT_KERNELS");
    now = rungs[n - 1];
    for (size_t i = 0; wanted && i < n; i++)
        if (strcmp(rungs[i]->name, wanted) == 0) now = rungs[i];
    __atomic_store_n(&selected, now, __ATOMIC_RELAXED);
    return now;
}

const sp_row_reader *sp_row_reader_of_rung(const sp_kernels *rung, enum ggml_type type)
{
    const sp_row_reader *readers = sp_row_readers_generic;
#if defined(__x86_64__)
    if (rung == &sp_kernels_avx2) readers = sp_row_readers_avx2;
    if (rung == &sp_kernels_avx512) readers = sp_row_readers_avx512;
#endif
    return (unsigned)type < GGML_TYPE_COUNT && readers[type].expand ? &readers[type] : NULL;
}

const sp_row_reader *sp_row_reader_get(enum ggml_type type)
{
    return sp_row_reader_of_rung(sp_kernels_select(), type);
}

/* ---- panels: the same rungs, and one more where products of bf16 have their own instruction ---- */

static const sp_panels *panels_of(const sp_kernels *rung)
{
#if defined(__x86_64__)
    if (rung == &sp_kernels_avx2) return &sp_panels_avx2;
    if (rung == &sp_kernels_avx512) return &sp_panels_avx512;
#endif
    (void)rung;
    return &sp_panels_generic;
}

static const sp_panels *with_bf16(const sp_panels *panels)
{
#if defined(__x86_64__)
    if (panels == &sp_panels_avx512 && __builtin_cpu_supports("avx512bf16")) return &sp_panels_avx512bf16;
#endif
    return panels;
}

size_t sp_panels_list(const sp_panels *out[SP_MAX_PANELS])
{
    const sp_kernels *rungs[3];
    size_t n = sp_kernels_list(rungs);
    for (size_t i = 0; i < n; i++) out[i] = panels_of(rungs[i]);
    if (with_bf16(out[n - 1]) != out[n - 1]) {
        out[n] = with_bf16(out[n - 1]);
        n++;
    }
    return n;
}

const sp_panels *sp_panels_select(void)
{
    return with_bf16(panels_of(sp_kernels_select()));
}
