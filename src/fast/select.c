/* select.c: the rungs of these kernels go with those of the tensor kernels. */
#include "fast/kernels.h"
#include "fast/turn.h"
#include "tensor/kernels.h"

extern const sp_fast_kernels sp_fast_kernels_generic, sp_fast_kernels_avx2, sp_fast_kernels_avx512;
extern const sp_turn_kernels sp_turn_kernels_generic, sp_turn_kernels_avx2, sp_turn_kernels_avx512;

static const sp_fast_kernels *of_rung(const sp_kernels *rung)
{
#if defined(__x86_64__)
    if (rung->lanes == sp_fast_kernels_avx512.lanes) return &sp_fast_kernels_avx512;
    if (rung->lanes == sp_fast_kernels_avx2.lanes) return &sp_fast_kernels_avx2;
#endif
    (void)rung;
    return &sp_fast_kernels_generic;
}

const sp_fast_kernels *sp_fast_kernels_select(void)
{
    return of_rung(sp_kernels_select());
}

size_t sp_fast_kernels_list(const sp_fast_kernels *out[3])
{
    const sp_kernels *rungs[3];
    size_t n = sp_kernels_list(rungs);
    for (size_t i = 0; i < n; i++) out[i] = of_rung(rungs[i]);
    return n;
}

const sp_turn_kernels *sp_turn_kernels_select(void)
{
#if defined(__x86_64__)
    const sp_fast_kernels *rung = sp_fast_kernels_select();
    if (rung == &sp_fast_kernels_avx512) return &sp_turn_kernels_avx512;
    if (rung == &sp_fast_kernels_avx2) return &sp_turn_kernels_avx2;
#endif
    return &sp_turn_kernels_generic;
}
