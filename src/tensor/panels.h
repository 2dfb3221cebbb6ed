/* panels.h: the inner loops of large matrix products C = A B.
 *
 * B is copied into panels of `width` columns, k by k, so that the loop reads it straight through; A is read as it lies, a number of
 * a row at a time spread over a vector. Sums stay in registers for the whole of k. Compiled for each rung of the ladder
 * (kernels.h); a test compares every rung with plain loops.
 *
 * The bf16 twins take pairs of neighbouring k as one 32-bit word each, the lower k in the lower half. Products are exact in f32,
 * sums are f32; the CPU's own instruction where there is one. */
#ifndef SP_TENSOR_PANELS_H
#define SP_TENSOR_PANELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct sp_panels {
    const char *name; /* of the rung, with "bf16" at the end where has_bf16 */
    bool has_bf16;    /* multiply_bf16 uses instructions made for it; else it is as exact, and slower than f32 */
    size_t width;     /* columns of a panel: a multiple of 8 that divides 32 */
    size_t lanes;     /* pack_transposed writes k rounded up to this */

    /* One panel (k, width) out of `width` rows of B^T, ld apart: panel[l * width + j] = rows[j * ld + l]. Reads and writes k
     * rounded up to `lanes`. The words may be numbers or bf16 pairs: they are only moved. */
    void (*pack_transposed)(float *panel, const float *rows, size_t ld, size_t k);

    /* C (m, n) = A (m, k) times n columns of panels, which stand panel_floats apart; or C +=. The last panel may be a part. */
    void (*multiply)(float *c, size_t ldc, const float *a, size_t lda, const float *panels, size_t panel_floats, size_t m, size_t n,
                     size_t k, bool accumulate);

    /* The same over k_pairs pairs. */
    void (*multiply_bf16)(float *c, size_t ldc, const uint32_t *a, size_t lda, const uint32_t *panels, size_t panel_words, size_t m,
                          size_t n, size_t k_pairs, bool accumulate);

    /* out (n) = x rounded to bf16, ties to even; NaN stays NaN. */
    void (*to_bf16)(uint16_t *out, const float *x, size_t n);

    /* out (n) = pairs of the rounded low_i and high_i. n: a multiple of `lanes`. */
    void (*to_pairs)(uint32_t *out, const float *low, const float *high, size_t n);
} sp_panels;

/* The rung in use: that of sp_kernels_select, with bf16 where the CPU has it. */
const sp_panels *sp_panels_select(void);

/* All that this CPU can run, generic first; for tests. Returns how many were written. */
enum { SP_MAX_PANELS = 4 };
size_t sp_panels_list(const sp_panels *out[SP_MAX_PANELS]);

#endif
