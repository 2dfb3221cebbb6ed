/* neighbours.c: virtual tokens beside the vocabulary: their norms, and the tokens whose embeddings point the same way.
 *
 * Cost: one pass over the embedding matrix, a few hundred rows at a time, and a product with every virtual token. */
#include <math.h>
#include <stdlib.h>

#include "audit/internal.h"
#include "base/sizes.h"
#include "base/sort.h"
#include "base/status.h"
#include "tensor/kernels.h"

enum { TOKENS_AT_ONCE = 512 };

static const double percentiles[3] = {0.05, 0.5, 0.95};

/* Puts a token among the nearest, which descend by cosine; of equal ones the first stays. */
static void insert(sp_audit_token *to, int32_t token, float cosine)
{
    for (size_t k = 0; k < SP_AUDIT_NEIGHBOURS; k++) {
        if (to->nearest[k] >= 0 && to->cosine[k] >= cosine) continue;
        for (size_t j = SP_AUDIT_NEIGHBOURS - 1; j > k; j--) {
            to->nearest[j] = to->nearest[j - 1];
            to->cosine[j] = to->cosine[j - 1];
        }
        to->nearest[k] = token;
        to->cosine[k] = cosine;
        return;
    }
}

static double norm_of(const float *x, size_t d)
{
    double sum = 0;
    for (size_t i = 0; i < d; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* A part of the vocabulary against all virtual tokens. rows (n, d): embeddings of tokens first .. first + n; norms (n) written. */
static void compare(sp_audit_token *tokens, size_t n_tokens, double *norms, const float *prompt, const float *rows, size_t first,
                    size_t n, size_t d)
{
    const sp_kernels *kernels = sp_kernels_select();
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < n; r++) norms[r] = norm_of(rows + r * d, d);
#pragma omp parallel for schedule(static)
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t r = 0; r < n && tokens[t].norm > 0; r++)
            if (norms[r] > 0)
                insert(&tokens[t], (int32_t)(first + r),
                       (float)((double)kernels->dot(prompt + t * d, rows + r * d, d) / (norms[r] * tokens[t].norm)));
}

/* Root mean square of what a head has of a virtual token: keys or values, column after column of its row. */
static double head_norm(const float *row, const sp_model_info *info, size_t which)
{
    const size_t kv_dim = info->n_head_kv * info->d_head;
    double sum = 0;
    for (size_t l = 0; l < info->n_layer; l++) {
        const double norm = norm_of(row + (2 * l + which) * kv_dim, kv_dim);
        sum += norm * norm;
    }
    return sqrt(sum / (double)(info->n_layer * info->n_head_kv));
}

static sp_status compare_all(sp_audit *a, const float *embeddings, const sp_model_info *info)
{
    const size_t d = info->d_model, n_vocab = info->n_vocab;
    const sp_arena_mark mark = sp_arena_get_mark(a->scratch);
    double *norms = sp_arena_alloc(a->scratch, n_vocab, sizeof *norms);
    float *rows = sp_arena_alloc(a->scratch, TOKENS_AT_ONCE * d, sizeof *rows);
    int32_t ids[TOKENS_AT_ONCE];
    if (!norms || !rows) return SP_ERR_MEMORY;
    for (size_t t = 0; t < a->n_front; t++) a->tokens[t].norm = norm_of(embeddings + t * d, d);
    for (size_t first = 0, n; first < n_vocab; first += n) {
        n = sp_smaller(TOKENS_AT_ONCE, n_vocab - first);
        for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(first + i);
        sp_status st = sp_model_embed(rows, a->model, ids, n);
        if (st) return st;
        compare(a->tokens, a->n_front, norms + first, embeddings, rows, first, n, d);
    }
    sp_sort_doubles(norms, n_vocab);
    for (size_t i = 0; i < 3; i++) a->report.vocabulary_norm[i] = norms[(size_t)(percentiles[i] * (double)(n_vocab - 1))];
    sp_arena_reset(a->scratch, mark);
    return SP_OK;
}

sp_status sp_audit_describe_tokens(sp_audit *a, const sp_root *root)
{
    sp_model_info info;
    sp_model_get_info(&info, a->model);
    a->tokens = calloc(root->n, sizeof *a->tokens);
    if (!a->tokens) return sp_fail_no_memory(root->n * sizeof *a->tokens);
    a->report.tokens = a->tokens;
    for (size_t t = 0; t < root->n; t++) {
        a->tokens[t] = (sp_audit_token){NAN, NAN, NAN, {-1, -1, -1}, {0}, NAN, NAN};
        if (!root->keys_values) continue;
        const float *row = root->keys_values + t * 2 * info.n_layer * info.n_head_kv * info.d_head;
        a->tokens[t].key_norm = head_norm(row, &info, 0);
        a->tokens[t].value_norm = head_norm(row, &info, 1);
    }
    return root->embeddings ? compare_all(a, root->embeddings, &info) : SP_OK;
}
