/* teacher.h: the model with a text in its context: what a distilled prompt learns to stand for.
 *
 *     sp_teacher_begin(&tree, &engine, teacher);          // the tree holds one run: the text, its keys and values computed
 *     sp_tree_add_run(&run, tree, 0, tokens, n);          // what shall be read behind it
 *     sp_engine_forward(engine, &pass);                   // first_row: sp_teacher_n_context, or behind
 */
#ifndef SP_TRAIN_TEACHER_H
#define SP_TRAIN_TEACHER_H

#include "model/engine.h"
#include "softprompt.h"

typedef struct sp_teacher sp_teacher;

/* The tokens (free) of a text as a context begins with them: behind BOS where the model adds one, strings of special tokens parsed.
 * ARGUMENT: not UTF-8, no token, or too long for anything to follow it in the model's context. */
sp_status sp_context_tokenize(int32_t **out, size_t *n, const sp_model *model, const char *text);

/* context (n >= 1) is copied. The model must outlive it. */
sp_status sp_teacher_create(sp_teacher **out, sp_model *model, const int32_t *context, size_t n);
void sp_teacher_free(sp_teacher *teacher);

size_t sp_teacher_n_context(const sp_teacher *teacher);
bool sp_teacher_starts_with_bos(const sp_teacher *teacher); /* its context does; what stands behind needs no other */

/* Tree and engine, which stay the teacher's, with nothing behind the context: run 0, rows 0 .. n_context - 1. Its keys and values
 * are computed at the first call. */
sp_status sp_teacher_begin(sp_tree **tree, sp_engine **engine, sp_teacher *teacher);

#endif
